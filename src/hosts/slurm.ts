// The nodes of a Slurm allocation as hosts: `srun` is the way to each, a job step of one task
// whose stdin and stdout are here. A step shares what the allocation has on its node (--overlap),
// so it starts beside the one that this command may itself run in. Slurm ends what it started:
// scancel and the end of the time limit reach every part.

import { lookup } from "node:dns/promises";

import { SsihvError } from "../base/errors.ts";
import { isLoopback } from "./addresses.ts";
import type { Reach } from "./reach.ts";

export interface SlurmNode {
  readonly name: string;
  readonly reach: Reach;
}

/** Runs a command to its end; its stdout. Throws with its words. */
export type Ask = (command: readonly string[]) => Promise<string>;

type Environment = Readonly<Record<string, string | undefined>>;

/** Settings of the user's job that would change what srun makes of the streams of ours. */
const NOT_OURS = { SLURM_LABELIO: undefined, SLURM_UNBUFFEREDIO: undefined };

/** No MPI is started. */
const SRUN = ["srun", "--nodes=1", "--ntasks=1", "--overlap", "--mpi=none", "--quiet"];

/** Where Slurm binds tasks to CPUs: to all of the allocation's, not to one. */
async function bindingOf(ask: Ask): Promise<string[]> {
  const none = /^TaskPlugin\s*=\s*(task\/none|\(null\))?\s*$/m.test(
    await ask(["scontrol", "show", "config"]),
  );
  return none ? [] : ["--cpu-bind=none"];
}

function noAllocation(): SsihvError {
  return new SsihvError("flag_invalid", "--hosts slurm: this is no Slurm allocation", {
    hint: "salloc -N2 ssihv run --hosts slurm --kernel FILE; a host of that name: USER@slurm",
  });
}

function srunReach(
  srun: readonly string[],
  name: string,
  address: string,
  env: Environment,
): Reach {
  const way = [...srun, `--nodelist=${name}`];
  return {
    trial: `${way.join(" ")} true`,
    address,
    env: { ...env, ...NOT_OURS },
    command: (script) => [...way, "/bin/sh", "-c", script],
  };
}

/** The IP address at which Slurm itself reaches the node. */
async function addressOf(name: string, ask: Ask): Promise<string> {
  const told = await ask(["scontrol", "--oneliner", "show", "node", name]);
  const address = /\bNodeAddr=(\S+)/.exec(told)?.[1] ?? name;
  try {
    const all = (await lookup(address, { all: true })).map((each) => each.address);
    // Debian calls a host by a loopback address in its own /etc/hosts: no other reaches it there.
    return all.find((each) => !isLoopback(each)) ?? all[0] ?? address;
  } catch (cause) {
    throw new SsihvError("address_invalid", `host ${name}: ${address} is no known address`, {
      hint: "Slurm's NodeAddr must be one that nodes of the allocation can look up",
      cause,
    });
  }
}

/** The allocation's nodes, in Slurm's order. */
export async function slurmNodes(env: Environment, ask: Ask = askCommand): Promise<SlurmNode[]> {
  const list = env["SLURM_JOB_NODELIST"] ?? env["SLURM_NODELIST"];
  if (env["SLURM_JOB_ID"] === undefined || list === undefined) throw noAllocation();
  const srun = [...SRUN, ...(await bindingOf(ask))];
  const names = (await ask(["scontrol", "show", "hostnames", list])).trim().split(/\s+/);
  return Promise.all(
    names.map(async (name) => ({
      name,
      reach: srunReach(srun, name, await addressOf(name, ask), env),
    })),
  );
}

async function askCommand(command: readonly string[]): Promise<string> {
  let child: Bun.Subprocess<"ignore", "pipe", "pipe">;
  try {
    child = Bun.spawn([...command], { stdin: "ignore", stdout: "pipe", stderr: "pipe" });
  } catch (cause) {
    const message = `--hosts slurm: ${command[0]} cannot be started`;
    throw new SsihvError("flag_invalid", message, {
      hint: "run where Slurm's commands are: a login node, or a node of the allocation",
      cause,
    });
  }
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  if ((await child.exited) === 0) return out;
  const message = `--hosts slurm: ${command.join(" ")}: ${err.trim() || "it failed"}`;
  throw new SsihvError("node_unreachable", message, { hint: "does Slurm answer (sinfo)?" });
}
