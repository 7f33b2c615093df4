// `ssihv node`: this host's agent, which runs what the coordinator orders, until a signal ends it.

import { constants, hostname } from "node:os";
import { resolve } from "node:path";
import { buildCommand, type FlagParametersForType } from "@stricli/core";

import type { NodeState } from "../agent/node-state.ts";
import { SsihvError } from "../base/errors.ts";
import type { Capacity, Check } from "../control/messages.ts";
import { sweepDead } from "../node/admin-name.ts";
import { versionLine } from "../node/build-info.ts";
import { ControlGroups } from "../node/control-group.ts";
import { checkHost } from "../node/host-check.ts";
import type { HostFacts } from "../node/host-facts.ts";
import { type HostPort, parseIp, parseListen } from "../node/join-address.ts";
import { certificateFamily, metricsText } from "../node/vm-metrics.ts";
import { tellReady } from "../service/readiness.ts";
import { MetricsServer } from "../telemetry/metrics-server.ts";
import type { CliContext } from "./context.ts";
import { stateFolder } from "./coordinator.ts";
import { path, SANDBOX_FLAG, type SandboxFlags, text } from "./flags.ts";
import { printable } from "./report.ts";
import { sizeFlag, wholeNumber } from "./run-options.ts";

export interface NodeFlags extends SandboxFlags {
  readonly join?: string;
  readonly name?: string;
  readonly state?: string;
  readonly lane?: string;
  readonly cpus?: number;
  readonly memory?: bigint;
  readonly metrics?: HostPort;
  readonly memoryOnly: boolean;
  readonly acceptUnfit: boolean;
}

/** Ends the VMs here in order, then the agent. */
const ENDING = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"] as const;
/** A signal this soon after the first is the same wish. */
const INSIST_MS = 1000;
const NAME_CHARACTERS = /[^a-z0-9-]+/g;
const NAME_LENGTH_MAX = 63;

/** The part of a host's name before its domain, as far as a name of ours can say it. */
export function nameOfHost(full: string): string {
  const short = (full.split(".")[0] ?? "").toLowerCase().replace(NAME_CHARACTERS, "-");
  return short.slice(0, NAME_LENGTH_MAX).replace(/^-+|-+$/g, "");
}

/** What the user said, else all CPUs, and nine tenths of the memory that is free now. */
export function capacityOf(flags: Pick<NodeFlags, "cpus" | "memory">, facts: HostFacts): Capacity {
  const { cpus = facts.cpus, memory } = flags;
  if (memory !== undefined && memory > BigInt(facts.memoryTotal) && facts.memoryTotal > 0) {
    const mib = Math.floor(facts.memoryTotal / 2 ** 20);
    throw new SsihvError("flag_invalid", `--memory: this host has ${mib} MiB`, {
      hint: `for example --memory ${Math.floor((mib * 9) / 10)}M`,
    });
  }
  return { cpus, memoryBytes: Number(memory ?? Math.floor(facts.memoryAvailable * 0.9)) };
}

async function checkOf(context: CliContext, facts: HostFacts): Promise<Check> {
  const { verdict, lines } = checkHost(await context.host.probe(), facts);
  const problems = lines
    .filter(({ state }) => state !== "good" && state !== "not_run")
    // The worst first: the first is what tables show.
    .toSorted((a, b) => Number(b.state === "missing") - Number(a.state === "missing"))
    .map(({ title, detail }) => `${title}: ${detail}`);
  return { verdict, problems };
}

/** The token, read from stdin where it is not to be seen in a list of processes. */
async function tokenOf(join: string): Promise<string> {
  return join === "-" ? await Bun.stdin.text() : join;
}

/** What this host keeps of its membership, whether it has joined or not. */
export async function openState(flag: string | undefined) {
  const { NodeState } = await import("../agent/node-state.ts");
  const folder = resolve(flag ?? stateFolder("node"));
  return { folder, state: new NodeState(folder) };
}

/** Spends the token. */
export async function joinHere(
  state: NodeState,
  flags: { readonly join: string; readonly name?: string | undefined },
  say: (line: string) => void,
): Promise<void> {
  const before = state.prepare();
  const name = before ?? flags.name ?? nameOfHost(hostname());
  refuseOtherName(flags.name, name);
  const { joinCluster } = await import("../control/join-client.ts");
  state.save(await joinCluster(await tokenOf(flags.join), name));
  say(`node: this host has joined as ${name}`);
}

async function node(this: CliContext, flags: NodeFlags): Promise<void> {
  const say = (line: string) => this.process.stderr.write(`ssihv: ${printable(line)}\n`);
  const facts = this.host.facts();
  const capacity = capacityOf(flags, facts);
  const [{ Agent }, { onlyOne }, { folder, state }] = await Promise.all([
    import("../agent/agent.ts"),
    import("../agent/only-one.ts"),
    openState(flags.state),
  ]);
  const { join } = flags;
  if (join !== undefined) await joinHere(state, { ...flags, join }, say);
  const { name } = state.membership();
  // One that could never connect is told now; later, while VMs run, it goes on trying.
  state.credentials();
  const unlock = lockOrLeave(() => onlyOne(folder), flags.join !== undefined);
  if (unlock === undefined) return say("node: the agent that runs here goes on with it");
  try {
    state.sweep();
    // What an agent that was killed left here; its engines went with it.
    await sweepDead();
    const check = await checkOf(this, facts);
    const fit = check.verdict !== "unfit" || flags.acceptUnfit;
    const runsVcpus = !flags.memoryOnly && fit;
    if (!flags.memoryOnly && check.verdict === "unfit") {
      const then = flags.acceptUnfit ? "" : "; it only lends memory";
      say(`node: this host is unfit for vCPUs: ${check.problems[0] ?? ""}${then} (ssihv check)`);
    }
    const groups = flags.sandbox === "off" ? undefined : ControlGroups.open();
    if (typeof groups === "string") say(`node: no memory limit for each engine: ${groups}`);
    const command = this.host.engineCommand;
    const agent = new Agent(
      state,
      {
        ...{ build: versionLine(), capacity, check, runsVcpus },
        ...(flags.lane !== undefined && { laneHost: flags.lane }),
      },
      {
        facts: this.host.facts,
        createPage: await this.host.sharedPages(),
        sandbox: flags.sandbox,
        ...(groups !== undefined && { groups }),
        ...(command !== undefined && { engineCommand: command }),
        say,
      },
    );
    const mib = Math.floor(capacity.memoryBytes / 2 ** 20);
    const cpus = runsVcpus ? `${capacity.cpus} CPU(s) and ` : "";
    say(`node: ${name} gives ${cpus}${mib} MiB`);
    const { metrics } = flags;
    const server =
      metrics &&
      MetricsServer.open(metrics, () => {
        return metricsText(agent.observed(), certificateFamily(agent.certificateExpires));
      });
    tellReady(say);
    const signal = await untilSignal(agent);
    server?.close();
    say(`node: ended by ${signal}`);
  } finally {
    unlock();
  }
}

/** Undefined: a host that has just joined again has an agent, which looks for its certificate. */
function lockOrLeave(lock: () => () => void, joined: boolean): (() => void) | undefined {
  try {
    return lock();
  } catch (error) {
    if (joined && error instanceof SsihvError && error.code === "name_taken") return undefined;
    throw error;
  }
}

/** A host that joins again keeps its name. */
function refuseOtherName(wished: string | undefined, name: string): void {
  if (wished === undefined || wished === name) return;
  throw new SsihvError("flag_invalid", `--name: this host is ${name}, and joins again as that`, {
    hint: "leave --name out; with another --state folder it is a new host",
  });
}

interface Stoppable {
  run(): Promise<void>;
  stop(): Promise<void>;
  dump(): void;
  killAll(): void;
}

/** One more signal, a second later, ends everything at once. */
async function untilSignal(agent: Stoppable): Promise<NodeJS.Signals> {
  let endedBy: NodeJS.Signals = "SIGTERM";
  let endedAt: number | undefined;
  const onSignal = (signal: NodeJS.Signals) => {
    if (endedAt === undefined) {
      endedBy = signal;
      endedAt = performance.now();
      void agent.stop();
    } else if (performance.now() - endedAt > INSIST_MS) {
      process.exit(128 + constants.signals[signal]);
    }
  };
  const onDump = () => agent.dump();
  const onExit = () => agent.killAll();
  for (const signal of ENDING) process.on(signal, onSignal);
  process.on("SIGUSR1", onDump);
  process.on("exit", onExit);
  await agent.run();
  for (const signal of ENDING) process.off(signal, onSignal);
  process.off("SIGUSR1", onDump);
  process.off("exit", onExit);
  return endedBy;
}

/** `ssihv install node` keeps them for the service. */
export const NODE_FLAGS: FlagParametersForType<NodeFlags, CliContext> = {
  join: {
    kind: "parsed",
    parse: text,
    optional: true,
    brief: "token of ssihv cluster token, or - to read it from stdin",
    placeholder: "TOKEN",
  },
  name: {
    kind: "parsed",
    parse: text,
    optional: true,
    brief: "with --join: the host's name in the cluster [its own]",
    placeholder: "NAME",
  },
  state: {
    kind: "parsed",
    parse: path("--state"),
    optional: true,
    brief: "folder of its certificate and membership [/var/lib/ssihv/node]",
    placeholder: "FOLDER",
  },
  lane: {
    kind: "parsed",
    parse: (value: string) => parseIp(value, "--lane"),
    optional: true,
    brief: "address other hosts reach its engines at [the one it reaches the coordinator from]",
    placeholder: "ADDRESS",
  },
  cpus: {
    kind: "parsed",
    parse: wholeNumber("--cpus", 1, 4096),
    optional: true,
    brief: "CPUs for vCPUs [all]",
    placeholder: "N",
  },
  memory: {
    kind: "parsed",
    parse: sizeFlag("--memory"),
    optional: true,
    brief: "memory for VMs, engines included [nine tenths of what is free]",
    placeholder: "SIZE",
  },
  metrics: {
    kind: "parsed",
    parse: (value: string) => parseListen(value, "--metrics"),
    optional: true,
    brief: "serve metrics of the nodes on this host there, /metrics for Prometheus",
    placeholder: "ADDRESS:PORT",
  },
  ...SANDBOX_FLAG,
  memoryOnly: {
    kind: "boolean",
    default: false,
    withNegated: false,
    brief: "take no nodes with vCPUs, only lend memory",
  },
  acceptUnfit: {
    kind: "boolean",
    default: false,
    withNegated: false,
    brief: "take nodes with vCPUs though ssihv check finds the host unfit: guests may crash",
  },
};

export const nodeCommand = buildCommand<NodeFlags, [], CliContext>({
  func: node,
  docs: {
    brief: "run this host's agent: it runs the parts of VMs that the coordinator orders",
    fullDescription: `Tells the coordinator what this host gives and how ssihv check finds it, and
runs the engines of VMs. A host joins a cluster once, with a token; from then on the command needs
no flags. Without the coordinator the VMs go on, and the agent tells the rest when it is back. When
the agent ends, its engines end: in order on a signal, at once when it is killed.

Its certificate is renewed by itself, after two thirds of its life and when the CA is replaced. A
host that was off for so long that it ended joins again under its name, with a token of
ssihv cluster token --rejoin; an agent that runs meanwhile, and its VMs, go on with it.

Examples:
  ssihv node --join ssihv-join-1.eyJ...           join, and go on as the agent
  ssihv node --join - <token.txt                  the token is not seen in ps
  ssihv node                                      from then on
  ssihv node --memory 64G --cpus 14               leave the rest to the host
  ssihv node --memory-only                        only lend memory: needs no KVM
  ssihv install node --join TOKEN                 the same as a systemd service

ssihv vm list --local, show and pages tell of the VMs here without the coordinator. When a VM
hangs, kill -USR1 this command: its engines tell what is open.

Exit status: 0 ended by a signal, 2 wrong flags, no membership or a token that is not valid,
10 the coordinator did not answer while joining.`,
  },
  parameters: { flags: NODE_FLAGS },
});
