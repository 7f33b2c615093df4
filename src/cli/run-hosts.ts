// `ssihv run --hosts`: flags become a plan for the hosts named, the hosts are reached and made
// ready, and the VM over them is driven from this terminal like one of this host.

import { SsihvError } from "../base/errors.ts";
import type { ClusterConfig } from "../config/cluster-config.ts";
import { payloadOf } from "../hosts/bootstrap.ts";
import { type HostSpec, isThisHost, refuseTwice } from "../hosts/host-list.ts";
import { type HostPlace, HostsVm } from "../hosts/hosts-vm.ts";
import { splitWords, sshReach } from "../hosts/reach.ts";
import { slurmNodes } from "../hosts/slurm.ts";
import { ownCommand } from "../node/engine-process.ts";
import type { VmPlan } from "../node/vm.ts";
import { memoryWords, planVm, type VmRequest } from "../node/vm-request.ts";
import type { CliContext } from "./context.ts";
import { CopyProgress } from "./copy-progress.ts";
import { type RunFlags, runRequest } from "./run-options.ts";
import { RunOutput } from "./run-output.ts";
import { RunSession } from "./run-session.ts";

export const HOSTS_HELP = `\
Over hosts by ssh: --hosts a,root@b:2222,c runs a node on each, the first leads. ssh is yours
(configuration, agent, jump hosts) and must not ask: try ssh -o BatchMode=yes b. localhost, or its
own name, is this host, without ssh. This ssihv is copied to ~/.cache/ssihv/HASH where it is absent,
all hosts are checked before anything starts, kernel and initrd are sent to the first and kept in no
file, and the VM's key is made anew and is in no argument, environment or log. The VM ends on all
hosts when this command does, however, when it is not heard for 30 s, or when the connection to a
host is lost. The hosts need TCP between each other, on 16 ports from 7700 on (the first 16 that are
free), at the addresses at which ssh reached them: a=10.0.0.1,b=10.0.0.2 names others, --listen the
lead's with its port.

In a Slurm allocation, --hosts slurm: its nodes are the hosts, the last of them (--memory-nodes N)
lend memory, srun is the way there, and scancel ends the VM.
  salloc -N2 ssihv run --hosts slurm --kernel bzImage --cpus 4 --memory 8G`;

/** What only means something on this host. */
const NOT_WITH_HOSTS = {
  keyFile: "a new key is made for each run",
  metrics: "start ssihv run --listen and ssihv join there with --metrics instead",
  systemMap: "the map would have to be on every host: leave it out",
} as const;

function flagName(key: string): string {
  return `--${key.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
}

/** Flags that only mean something with --hosts. */
export function refuseWithoutHosts(flags: RunFlags): void {
  const given = (["memoryHosts", "ssh"] as const).find((key) => flags[key] !== undefined);
  const name = given === undefined ? (flags.acceptUnfit ? "acceptUnfit" : undefined) : given;
  if (name === undefined) return;
  throw new SsihvError("flag_invalid", `${flagName(name)} without --hosts`, {
    hint: "ssihv run --hosts a,b --memory-hosts c --kernel FILE",
  });
}

function refuseFlags(flags: RunFlags): void {
  for (const [key, hint] of Object.entries(NOT_WITH_HOSTS)) {
    if (flags[key as keyof typeof NOT_WITH_HOSTS] === undefined) continue;
    throw new SsihvError("flag_invalid", `${flagName(key)} with --hosts`, { hint });
  }
}

function checkCounts(flags: RunFlags, { compute, lending }: Places, config?: ClusterConfig): void {
  const nodes = flags.nodes ?? config?.nodes.length ?? compute.length;
  const memoryNodes = flags.memoryNodes ?? config?.vm.memoryNodes ?? lending.length;
  refuseCount("--hosts", compute.length, nodes);
  refuseCount("--memory-hosts", lending.length, memoryNodes);
}

function refuseCount(flag: string, hosts: number, nodes: number): void {
  if (hosts === nodes) return;
  const kind = flag === "--hosts" ? "node" : "memory node";
  const message = `${flag} names ${hosts} host(s), but ${nodes} ${kind}(s) are asked for`;
  throw new SsihvError("flag_invalid", message, { hint: "each host is one node: name as many" });
}

/** The VM's plan, whatever host leads it: what depends on the host is judged there. */
export function planForHosts(
  request: VmRequest,
  facts: Parameters<typeof planVm>[1],
): Omit<VmPlan, "door"> {
  const { door: _, ...plan } = planVm(request, { ...facts, memoryTotal: 0 });
  const { pollUsMax: __, ...options } = plan.options;
  return request.pollUsMax === undefined ? { ...plan, options } : plan;
}

/** `listen`: a stand-in where the lead is to find out, so that what needs a door is planned. */
function requestFor(flags: RunFlags, places: Places, config?: ClusterConfig): VmRequest {
  const hosts = places.compute.length;
  const lending = places.lending.length;
  const { listen = { host: "0.0.0.0", port: 7700 }, ...others } = flags;
  const shaped = config === undefined ? { ...others, nodes: hosts } : others;
  const request = runRequest({ ...shaped, memoryNodes: lending }, config);
  if (hosts + lending === 1) return request;
  return { ...request, door: { listen, key: new Uint8Array(32), keyFile: "" } };
}

function sshPlace(spec: HostSpec, ssh: readonly string[]): HostPlace {
  const { name, address } = spec;
  return {
    name,
    ...(address !== undefined && { address }),
    ...(!isThisHost(spec) && { reach: sshReach(spec, ssh) }),
  };
}

/** Where the VM is to be: those that run vCPUs, and those that lend memory. */
interface Places {
  readonly compute: readonly HostPlace[];
  readonly lending: readonly HostPlace[];
}

async function placesOf(
  flags: RunFlags,
  hosts: readonly HostSpec[],
  config: ClusterConfig | undefined,
): Promise<Places> {
  if (hosts.length === 1 && hosts[0]?.name === "slurm") {
    if (flags.memoryHosts !== undefined) {
      throw new SsihvError("flag_invalid", "--memory-hosts with --hosts slurm", {
        hint: "--memory-nodes N: the last N nodes of the allocation lend memory",
      });
    }
    const all = await slurmNodes(process.env);
    const lending = flags.memoryNodes ?? config?.vm.memoryNodes ?? 0;
    const compute = Math.max(all.length - lending, 1);
    return { compute: all.slice(0, compute), lending: all.slice(compute) };
  }
  const lending = flags.memoryHosts ?? [];
  refuseTwice([...hosts, ...lending], "--memory-hosts");
  const ssh = flags.ssh ?? splitWords(process.env["SSIHV_SSH"] || "ssh", "SSIHV_SSH");
  return {
    compute: hosts.map((spec) => sshPlace(spec, ssh)),
    lending: lending.map((spec) => sshPlace(spec, ssh)),
  };
}

/** The file that this program is: what other hosts are to run, byte by byte. */
function ownFile(): string {
  // Also when the file that it was started from has been replaced since.
  if (isOneFile()) return "/proc/self/exe";
  throw new SsihvError("flag_invalid", "--hosts from the source tree: there is no file to copy", {
    hint: "make, and use dist/ssihv",
  });
}

export async function runOnHosts(
  context: CliContext,
  flags: RunFlags,
  hosts: readonly HostSpec[],
  config: ClusterConfig | undefined,
): Promise<number> {
  refuseFlags(flags);
  const places = await placesOf(flags, hosts, config);
  checkCounts(flags, places, config);
  const [first, ...others] = [...places.compute, ...places.lending];
  if (first === undefined) throw new SsihvError("flag_invalid", "--hosts names no host");
  const plan = planForHosts(requestFor(flags, places, config), context.host.facts());
  const output = outputFor(context, flags, plan.name);
  const memory = memoryWords(plan);
  if (memory !== undefined) output.say(`VM ${plan.name}: ${memory}`);
  const progress = new CopyProgress(output);
  const vm = await HostsVm.prepare({
    hosts: [first, ...others],
    plan,
    ...(flags.listen !== undefined && { listen: flags.listen }),
    nameChosen: flags.name !== undefined || config?.cluster !== undefined,
    acceptUnfit: flags.acceptUnfit === true,
    sandbox: flags.sandbox,
    ownPart: ownPart(),
    payload: () => payloadOf(ownFile()),
    onCopying: (host, bytes, total) => progress.copying(host, bytes, total),
    onNotice: (text) => output.say(text),
  });
  const session = new RunSession(
    (hooks) => vm.telling(hooks),
    vm.name === plan.name ? output : outputFor(context, flags, vm.name),
  );
  return session.run();
}

/** This very program again, from source whatever its main is. */
function ownPart(): string[] {
  const main = isOneFile() ? [] : process.argv.slice(1, 2);
  return [process.execPath, ...main, "part"];
}

function isOneFile(): boolean {
  return ownCommand().length === 1;
}

function outputFor(context: CliContext, flags: RunFlags, name: string): RunOutput {
  return new RunOutput({
    name,
    json: flags.json,
    report: flags.report,
    debug: process.env["SSIHV_DEBUG"] !== undefined,
    write: (line) => context.process.stderr.write(line),
  });
}
