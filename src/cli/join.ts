// `ssihv join`: makes this host a node of a VM that another host leads, until the VM ends.

import { constants } from "node:os";
import { buildCommand } from "@stricli/core";

import { SsihvError } from "../base/errors.ts";
import { JoinAdmin } from "../node/admin-open.ts";
import { type JoinEvent, JoinSession } from "../node/join.ts";
import { type HostPort, parseIp, parseListen, parseTarget } from "../node/join-address.ts";
import { readKeyFile } from "../node/key-file.ts";
import type { VmOutcome } from "../node/vm.ts";
import { metricsText } from "../node/vm-metrics.ts";
import { checkMemory } from "../node/vm-request.ts";
import { MetricsServer } from "../telemetry/metrics-server.ts";
import type { CliContext } from "./context.ts";
import { EXIT_HELP } from "./exit-status.ts";
import { path, requireKvm, SANDBOX_FLAG, type SandboxFlags } from "./flags.ts";
import { outcomeJson, outcomeStatus, outcomeText } from "./outcome.ts";
import { formatError, printable } from "./report.ts";
import { durationFlag } from "./run-options.ts";

export interface JoinFlags extends SandboxFlags {
  readonly keyFile?: string;
  readonly wait?: number;
  readonly lane?: string;
  readonly metrics?: HostPort;
  readonly memoryOnly: boolean;
  readonly json: boolean;
}

const WAIT_MS = 120_000;

/** Ends the stay in order; the VM ends with it, unless this host only lends memory. */
const ENDING = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"] as const;

class JoinOutput {
  private readonly json: boolean;
  private readonly write: (text: string) => void;
  private vm = "";

  constructor(json: boolean, write: (text: string) => void) {
    this.json = json;
    this.write = write;
  }

  event(event: JoinEvent): void {
    if (event.event === "joined") this.vm = event.welcome.vm;
    if (this.json) {
      const named = this.vm === "" ? {} : { vm: this.vm };
      if (event.event === "joined") {
        const { node } = event.welcome;
        this.line(JSON.stringify({ ...named, event: "joined", node, lead: event.lead }));
      } else this.line(JSON.stringify({ ...named, ...event }));
      return;
    }
    switch (event.event) {
      case "waiting":
        return this.line(`ssihv: waiting for the VM: ${printable(event.why)}`);
      case "joined": {
        const { vm, node, nodes } = event.welcome;
        const own = nodes[node];
        const mib = (bytes = 0) => `${Math.round(bytes / 2 ** 20)} MiB`;
        const share =
          own?.lentBytes === undefined
            ? `${own?.vcpus ?? 0} vCPU(s), ${mib(own?.memoryBytes)}`
            : `lends ${mib(own.lentBytes)}`;
        const words = `VM ${vm}: this host is node ${node} of ${nodes.length} (${share})`;
        return this.line(`ssihv: ${printable(words)}`);
      }
      case "notice":
        return this.line(`ssihv: VM ${this.vm}: ${printable(event.text)}`);
      case "stderr":
        return this.line(`ssihv: engine ${this.vm}/${event.node}: ${printable(event.text)}`);
    }
  }

  warn(text: string): void {
    if (this.json) this.line(JSON.stringify({ vm: this.vm, event: "notice", text }));
    else this.line(`ssihv: ${printable(text)}`);
  }

  outcome(outcome: VmOutcome, status: number): void {
    const { json } = this;
    if (outcome.kind === "failed") this.line(formatError(outcome.error, { json }));
    else if (json) this.line(JSON.stringify({ ...outcomeJson(this.vm, outcome), status }));
    else this.line(`ssihv: ${printable(outcomeText(this.vm, outcome))}`);
  }

  private line(text: string): void {
    this.write(`${text}\n`);
  }
}

async function join(this: CliContext, flags: JoinFlags, lead: HostPort): Promise<void> {
  if (flags.keyFile === undefined) {
    throw new SsihvError("flag_invalid", "--key-file is missing: only its holders can join", {
      hint: "bring the file that ssihv run --key-file uses to this host, and name it",
    });
  }
  const key = readKeyFile(flags.keyFile);
  if (!flags.memoryOnly) requireKvm(this.host);
  const facts = this.host.facts();
  const output = new JoinOutput(flags.json, (line) => this.process.stderr.write(line));
  const command = this.host.engineCommand;
  const admin = new JoinAdmin();
  let joined = false;
  const session: JoinSession = new JoinSession(
    {
      lead,
      key,
      waitMs: flags.wait === undefined ? WAIT_MS : Math.ceil(flags.wait / 1000),
      ...(flags.lane !== undefined && { laneHost: flags.lane }),
      memoryOnly: flags.memoryOnly,
    },
    {
      createPage: await this.host.sharedPages(),
      sandbox: flags.sandbox,
      ...(command !== undefined && { command }),
      check: ({ node, nodes }) => checkMemory(nodes.slice(node, node + 1), facts),
      onEvent: (event) => {
        output.event(event);
        if (event.event !== "joined") return;
        joined = true;
        const { vm, node } = event.welcome;
        void admin.open(vm, node, session, (text) => output.warn(text));
      },
    },
  );
  const { metrics } = flags;
  const server = metrics && MetricsServer.open(metrics, () => metricsText(joined ? [session] : []));
  try {
    this.status = await runUntilSignal(session, output, admin);
  } finally {
    server?.close();
  }
}

/** A first signal leaves the VM (JoinSession.leave); the shell's status for a signal wins then. */
async function runUntilSignal(
  session: JoinSession,
  output: JoinOutput,
  admin: JoinAdmin,
): Promise<number> {
  let endedBy: NodeJS.Signals | undefined;
  const onSignal = (signal: NodeJS.Signals) => {
    if (endedBy !== undefined) return;
    endedBy = signal;
    session.leave(`its user ended it there (${signal})`);
  };
  const onExit = () => {
    session.killAll();
    admin.close();
  };
  const onDump = () => session.dump();
  for (const signal of ENDING) process.on(signal, onSignal);
  process.on("SIGUSR1", onDump);
  process.on("exit", onExit);
  const outcome = await session.run();
  admin.close();
  for (const signal of ENDING) process.off(signal, onSignal);
  process.off("SIGUSR1", onDump);
  process.off("exit", onExit);
  const own = endedBy === undefined ? undefined : 128 + constants.signals[endedBy];
  const status = own ?? outcomeStatus(outcome);
  output.outcome(outcome, status);
  return status;
}

const EXAMPLES = `Makes this host a node of a VM that another host leads (ssihv run --listen): its
engine runs here with the vCPUs and the RAM that the lead gives it, until the VM ends. Both hosts
need the same ssihv and the same key file. The guest's console stays with the lead.

Examples:
  ssihv join 10.0.0.1:7700 --key-file vm.key
  ssihv join lead.example:7700 --key-file vm.key --wait 10min
  ssihv join 10.0.0.1:7700 --key-file vm.key --lane 192.168.7.2
  ssihv join 10.0.0.1:7700 --key-file vm.key --memory-only

A host that lends memory (--memory-only) may leave a running VM: end this command, and the VM goes
on where its pages have a second copy (ssihv run --copies 2). Any other host takes the VM with it.

A lead that is not there yet is waited for. Engines talk on ports of their own: the one after the
lead's for node 0, the next for node 1, and so on; they must be reachable.

Meanwhile ssihv vm list, show and pages tell of this host's node. When the VM hangs, kill -USR1 this
command: the engine tells what is open, here and to the lead.

${EXIT_HELP}`;

export const joinCommand = buildCommand<JoinFlags, [lead: HostPort], CliContext>({
  func: join,
  docs: {
    brief: "make this host a node of a VM that another host leads",
    fullDescription: EXAMPLES,
    customUsage: ["HOST:PORT --key-file FILE [flags]"],
  },
  parameters: {
    positional: {
      kind: "tuple",
      parameters: [
        {
          parse: (value: string) => parseTarget(value, "the lead"),
          brief: "where the lead listens",
          placeholder: "HOST:PORT",
        },
      ],
    },
    flags: {
      keyFile: {
        kind: "parsed",
        parse: path("--key-file"),
        optional: true,
        brief: "the VM's key: the file that the lead uses",
        placeholder: "FILE",
      },
      wait: {
        kind: "parsed",
        parse: durationFlag("--wait"),
        optional: true,
        brief: "how long to wait for a lead that is not there yet [120s]",
        placeholder: "TIME",
      },
      lane: {
        kind: "parsed",
        parse: (value: string) => parseIp(value, "--lane"),
        optional: true,
        brief: "address other nodes reach this host at [the one the lead sees]",
        placeholder: "ADDRESS",
      },
      metrics: {
        kind: "parsed",
        parse: (value: string) => parseListen(value, "--metrics"),
        optional: true,
        brief: "serve metrics of this host's node there, /metrics for Prometheus",
        placeholder: "ADDRESS:PORT",
      },
      ...SANDBOX_FLAG,
      memoryOnly: {
        kind: "boolean",
        default: false,
        withNegated: false,
        brief: "only lend memory: no vCPUs, so no KVM is needed (ssihv run --memory-nodes)",
      },
      json: {
        kind: "boolean",
        default: false,
        withNegated: false,
        brief: "machine-readable events on stderr",
      },
    },
  },
});
