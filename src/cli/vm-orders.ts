// `ssihv vm create|start|stop|destroy`: what operators order of the coordinator. Starting and
// stopping are waited for, with a line on stderr for each step; what failed is the command's error.

import { buildCommand } from "@stricli/core";

import { isErrorCode, SsihvError } from "../base/errors.ts";
import { loadVmConfig, parseVmConfig } from "../config/vm-config.ts";
import { ApiClient, type ApiFlags, type Vm } from "./api-client.ts";
import { API_FLAGS, API_HELP, API_STATUSES, jsonFlag } from "./api-flags.ts";
import type { CliContext } from "./context.ts";
import { path, text } from "./flags.ts";
import { printable } from "./report.ts";
import { durationFlag } from "./run-options.ts";
import { vmNames } from "./vm-names.ts";

interface OrderFlags extends ApiFlags {
  readonly json: boolean;
}

export interface WaitFlags extends OrderFlags {
  readonly wait: number;
}

interface CreateFlags extends WaitFlags {
  readonly file?: string;
  readonly start: boolean;
}

interface DestroyFlags extends ApiFlags {
  readonly force: boolean;
}

const LOOK_MS = 100;

const STEPS: Partial<Record<Vm["state"], string>> = {
  waiting: "waiting for its hosts",
  starting: "its engines come up",
  stopping: "stopping",
  unknown: "unknown: the agent of its first host is not heard",
};

/** A VM that is being started or stopped: tells each step, until `done` says how it went. */
class Progress {
  private readonly say: (text: string) => void;
  private readonly began = performance.now();
  private told = "";

  constructor(context: CliContext, { json }: OrderFlags) {
    // With --json stderr is for the error alone.
    this.say = json
      ? () => undefined
      : (line) => context.process.stderr.write(`ssihv: ${printable(line)}\n`);
  }

  places({ name, places }: Vm): void {
    const words = places.map(({ node, host, memoryOnly }) => {
      return `${memoryOnly ? "memory node" : "node"} ${node} on ${host}`;
    });
    if (words.length > 0) this.say(`VM ${name}: ${words.join(", ")}`);
  }

  end(name: string, how: string): void {
    const seconds = ((performance.now() - this.began) / 1000).toFixed(1);
    this.say(`VM ${name}: ${how} after ${seconds} s`);
  }

  async until(api: ApiClient, vm: Vm, waitUs: number, done: (vm: Vm) => boolean): Promise<Vm> {
    const end = this.began + waitUs / 1000;
    let now = vm;
    while (!done(now)) {
      const step = STEPS[now.state];
      if (step !== undefined && step !== this.told) this.say(`VM ${vm.name}: ${step}`);
      this.told = step ?? this.told;
      if (performance.now() >= end) {
        const message = `VM ${vm.name} is still ${now.state} after ${Math.round(waitUs / 1e6)} s`;
        throw new SsihvError("vm_silent", message, {
          hint: `it goes on by itself: ssihv vm show ${vm.name}; --wait sets the time`,
        });
      }
      await Bun.sleep(LOOK_MS);
      now = await api.vm(vm.name);
    }
    return now;
  }
}

/** A start that did not come to be, as an error. */
function failed({ name, last }: Vm): SsihvError {
  const code = last !== null && isErrorCode(last.reason) ? last.reason : "engine_failed";
  const message = `VM ${name} did not come up: ${last?.text ?? "it is not known why"}`;
  return new SsihvError(code, message, { hint: `ssihv vm show ${name}` });
}

export async function startAndWait(
  context: CliContext,
  flags: WaitFlags,
  api: ApiClient,
  name: string,
): Promise<Vm> {
  const progress = new Progress(context, flags);
  const vm = await api.start(name);
  progress.places(vm);
  if (flags.wait === 0) return vm;
  const began = vm.since ?? "";
  // Over already: it powered off as soon as it ran, or it failed.
  const over = (now: Vm) => now.since === null || (began !== "" && now.since !== began);
  const now = await progress.until(api, vm, flags.wait, (each) => {
    return each.state === "running" || each.state === "paused" || over(each);
  });
  if (over(now) && now.last?.kind === "failed") throw failed(now);
  progress.end(name, over(now) ? `over (${now.last?.text ?? ""})` : "running");
  return now;
}

function answer(context: CliContext, { json }: OrderFlags, vm: Vm): void {
  if (json) context.process.stdout.write(`${JSON.stringify(vm)}\n`);
}

async function create(this: CliContext, flags: CreateFlags): Promise<void> {
  if (flags.file === undefined) {
    throw new SsihvError("flag_invalid", "--file is missing: what is the VM to be?", {
      hint: "ssihv vm create -f vm.yaml; ssihv vm create --help shows one",
    });
  }
  const { file } = flags;
  const spec = file === "-" ? parseVmConfig(await Bun.stdin.text(), "stdin") : loadVmConfig(file);
  const api = await ApiClient.open(flags);
  const vm = await api.create(spec);
  answer(this, flags, flags.start ? await startAndWait(this, flags, api, vm.name) : vm);
}

async function start(this: CliContext, flags: WaitFlags, name: string): Promise<void> {
  const api = await ApiClient.open(flags);
  answer(this, flags, await startAndWait(this, flags, api, name));
}

async function stop(this: CliContext, flags: WaitFlags, name: string): Promise<void> {
  const api = await ApiClient.open(flags);
  const progress = new Progress(this, flags);
  let vm = await api.stop(name);
  if (flags.wait > 0) {
    vm = await progress.until(api, vm, flags.wait, (each) => each.since === null);
    progress.end(name, `${vm.state} (${vm.last?.text ?? "it did not run"})`);
  }
  answer(this, flags, vm);
}

async function destroy(this: CliContext, flags: DestroyFlags, name: string): Promise<void> {
  const api = await ApiClient.open(flags);
  await api.destroy(name, flags.force);
}

const NAME = {
  ...{ parse: text, brief: "the VM", placeholder: "NAME" },
  proposeCompletions: vmNames,
} as const;
const ONE = { kind: "tuple", parameters: [NAME] } as const;
const VM_JSON = "one JSON object: {name, state, spec, places, last, ..}";

export function wait(what: string, most: string) {
  return {
    kind: "parsed",
    parse: durationFlag("--wait"),
    default: most,
    brief: `how long to wait until it ${what}; 0s: not at all`,
    placeholder: "TIME",
  } as const;
}

export const createCommand = buildCommand<CreateFlags, [], CliContext>({
  func: create,
  docs: {
    brief: "put a VM on the coordinator's record, and start it with --start",
    fullDescription: `The file says what the VM is to be:

  name: demo
  nodes:                        # one host each: any that has room, or the one it names
    - { cpus: 2, memory: 1G, host: host-a }
    - { cpus: 2, memory: 1G }
  kernel: /srv/vm/vmlinuz       # kernel and initrd are on the host of the first node
  initrd: /srv/vm/initrd.img
  cmdline: root=/dev/ram0

More keys, with the meaning and the defaults of cluster-config.yaml and ssihv run: reboot,
page_tables, clock_dilation, peer_timeout, stall_freeze, hold_max, poll_max; memory_nodes,
node_memory, memory_node_memory, cache, copies; balloon; memory_latency, memory_bandwidth.

Examples:
  ssihv vm create -f vm.yaml
  ssihv vm create -f vm.yaml --start && ssihv vm console demo
  sed 's/demo/demo-2/' vm.yaml | ssihv vm create -f -

${API_HELP}

${API_STATUSES}
A mistake in the file is told with file:line:column.`,
    customUsage: ["-f FILE [--start] [flags]"],
  },
  parameters: {
    flags: {
      ...API_FLAGS,
      file: {
        kind: "parsed",
        parse: path("--file"),
        optional: true,
        brief: "YAML file, - for stdin",
        placeholder: "FILE",
      },
      start: {
        kind: "boolean",
        default: false,
        withNegated: false,
        brief: "start it, too",
      },
      wait: wait("runs", "120s"),
      json: jsonFlag(VM_JSON),
    },
    aliases: { f: "file" },
  },
});

export const startCommand = buildCommand<WaitFlags, [name: string], CliContext>({
  func: start,
  docs: {
    brief: "start a VM: its nodes are placed on hosts, and its guest boots",
    fullDescription: `Returns when the guest runs, with a line on stderr for each step. Where no
hosts have room, each host is told with what it is short of, and nothing is started.

${API_HELP}

${API_STATUSES}`,
  },
  parameters: {
    positional: ONE,
    flags: { ...API_FLAGS, wait: wait("runs", "120s"), json: jsonFlag(VM_JSON) },
  },
});

export const stopCommand = buildCommand<WaitFlags, [name: string], CliContext>({
  func: stop,
  docs: {
    brief: "stop a VM at once, as if its power were cut",
    fullDescription: `The guest is not asked: have it power off by itself where that matters, on its
console or by ssh. A VM that does not run is stopped already.

${API_HELP}

${API_STATUSES}`,
  },
  parameters: {
    positional: ONE,
    flags: { ...API_FLAGS, wait: wait("has stopped", "30s"), json: jsonFlag(VM_JSON) },
  },
});

export const destroyCommand = buildCommand<DestroyFlags, [name: string], CliContext>({
  func: destroy,
  docs: {
    brief: "take a VM off the record",
    fullDescription: `A VM that runs is refused: stop it first. With --force it goes at once, also
where its hosts are silent: they are told to end it when they are heard again.

${API_HELP}

${API_STATUSES}`,
  },
  parameters: {
    positional: ONE,
    flags: {
      ...API_FLAGS,
      force: {
        kind: "boolean",
        default: false,
        withNegated: false,
        brief: "also one that runs, or of which nothing is known",
      },
    },
  },
});
