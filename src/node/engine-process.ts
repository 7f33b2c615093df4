// One `ssihv engine` child as its parent sees it: spawned with console pipes, the shared page as fd
// 3 and a message channel; watched until it is gone.
// Invariants: nothing the child does (crash, garbage on a pipe, silence) throws into the parent;
// the `exited` promise always resolves, after the console and stderr were read to their ends.
// Lifetime: the page outlives the child for the post-mortem; release() closes it.

import { join } from "node:path";

import { SsihvError } from "../base/errors.ts";
import {
  type FromEngine,
  isFromEngine,
  type SandboxState,
  type ToEngine,
} from "../engine/messages.ts";
import type { ControlGroups, Groups } from "./control-group.ts";
import { CrashNoiseFilter } from "./crash-noise.ts";
import { formatCpuDump, formatLastWords, type PostMortemPage, signalName } from "./last-words.ts";
import { type SandboxWish, sandboxWords } from "./sandbox.ts";

export interface ParentPage extends PostMortemPage {
  readonly fd: number;
  close(): void;
}

export interface EngineExit {
  /** Its parent has waited for the process and got its status: nothing of it runs any more. */
  readonly reaped: boolean;
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  /** What the runtime's own crash report said, if it wrote one. */
  readonly panic: string | undefined;
  readonly stderrTail: string;
  /** An engine on another host: why nothing more is heard of it. */
  readonly lost?: string;
}

/** An engine as the VM drives it, on this host or another. */
export interface Engine {
  readonly node: number;
  readonly vm: string;
  /** 0 while not known. */
  readonly pid: number;
  /** Where it runs, for messages: "pid 123", "pid 123 on host b". */
  readonly place: string;
  /** Always resolves, after everything else the engine had to say. */
  readonly exited: Promise<EngineExit>;
  /** False when it can no longer hear; `exited` then tells the rest. */
  send(message: ToEngine): boolean;
  kill(): void;
  /** It tells on stderr what is open; nothing before it is ready. */
  dump(): void;
  writeConsole(bytes: Uint8Array): Promise<void>;
  lastWords(): string | undefined;
  /** Registers of the vCPU that stopped, where the engine recorded them. */
  registers(): string | undefined;
  /** Lets go of what outlives the engine, after the post-mortem. */
  release(): void;
}

export interface EngineHooks {
  onMessage(message: FromEngine): void;
  /** A line of the child's stderr, the runtime's crash report left out. */
  onStderr(line: string): void;
  /** Guest console bytes; the next chunk is read when the promise resolves. */
  onConsole(chunk: Uint8Array): Promise<void> | void;
}

export interface EngineSpawn {
  readonly vm: string;
  readonly node: number;
  readonly page: ParentPage;
  /** This engine has the VM's console. */
  readonly console: boolean;
  /** It lends memory and runs no vCPU. */
  readonly memoryOnly: boolean;
  readonly sandbox: SandboxWish;
  /** It gets a control group of its own, with that limit. */
  readonly group?: { readonly groups: Groups; readonly bytesMax: number };
  readonly hooks: EngineHooks;
  /** Replaces the executable, for tests. */
  readonly command?: readonly string[];
}

/** Environment that would turn the executable into something else, or make it phone home. */
const ENVIRONMENT_DROPPED = [
  ...["BUN_OPTIONS", "BUN_BE_BUN", "BUN_INSPECT", "BUN_INSPECT_CONNECT_TO"],
  // Of a service: its manager's, not the engine's.
  ...["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"],
];
/** Compiled executables keep their modules under this path. */
const COMPILED_ROOT = "/$bunfs/";

/** How this program starts itself: compiled it is one file, from source the runtime and main.ts. */
export function ownCommand(): string[] {
  if (import.meta.dir.startsWith(COMPILED_ROOT)) return [process.execPath];
  return [process.execPath, join(import.meta.dir, "..", "main.ts")];
}

function engineCommand({ vm, node, memoryOnly, sandbox }: EngineSpawn): string[] {
  const flags = [...(memoryOnly ? ["--memory-only"] : []), ...sandboxWords(sandbox)];
  // The label first, to be seen in `ps`.
  return [...ownCommand(), "engine", `${vm}/${node}`, ...flags];
}

function childEnvironment(): Record<string, string | undefined> {
  const env: Record<string, string | undefined> = { ...process.env };
  for (const name of ENVIRONMENT_DROPPED) delete env[name];
  return { ...env, BUN_ENABLE_CRASH_REPORTING: "0", DO_NOT_TRACK: "1" };
}

type Child = Bun.Subprocess<"pipe" | "ignore", "pipe" | "ignore", "pipe">;

export class EngineProcess implements Engine {
  readonly node: number;
  readonly vm: string;
  readonly exited: Promise<EngineExit>;
  private readonly page: ParentPage;
  private readonly child: Child;
  private readonly noise = new CrashNoiseFilter();
  private readonly groups: ControlGroups | undefined;
  /** Why it has no control group of its own; undefined too where nobody wished for one. */
  private readonly noGroup: string | undefined;
  private connected = true;
  private ready = false;

  constructor(options: EngineSpawn) {
    this.node = options.node;
    this.vm = options.vm;
    this.page = options.page;
    const command = options.command ?? engineCommand(options);
    const pipe = options.console ? "pipe" : "ignore";
    this.child = Bun.spawn([...command], {
      // The order is ENGINE_FDS: console in, console out, stderr, shared page.
      stdio: [pipe, pipe, "pipe", options.page.fd],
      env: childEnvironment(),
      // Its own session: Ctrl-C and `timeout` signal the group, and stopping in order is our part.
      detached: true,
      serialization: "json",
      ipc: (message: unknown) => {
        if (!isFromEngine(message)) return;
        if (message.type === "ready") this.ready = true;
        options.hooks.onMessage(this.completed(message, options));
      },
      onDisconnect: () => {
        this.connected = false;
      },
    }) as Child;
    // Before it hears of a VM: what it took so far is little, and counted elsewhere.
    const { groups, bytesMax } = options.group ?? {};
    if (groups !== undefined && typeof groups !== "string") {
      this.noGroup = groups.add(this.child.pid, bytesMax ?? 0);
      this.groups = groups;
    } else this.noGroup = groups;
    this.exited = this.watch(options.hooks);
  }

  /** What it says of its sandbox, with what only its parent knows. */
  private completed(message: FromEngine, { sandbox: wish, group }: EngineSpawn): FromEngine {
    if (message.type !== "sandboxed") return message;
    const known = [wish.noUser, this.noGroup].filter((words) => words !== undefined);
    const isLimited = group !== undefined && this.noGroup === undefined;
    const sandbox: SandboxState = {
      ...message.sandbox,
      ...(isLimited && { memoryBytesMax: group.bytesMax }),
      missing: [...known, ...message.sandbox.missing],
    };
    return { ...message, sandbox };
  }

  get pid(): number {
    return this.child.pid;
  }

  get place(): string {
    return `pid ${this.pid}`;
  }

  send(message: ToEngine): boolean {
    if (!this.connected) return false;
    try {
      this.child.send(message);
      return true;
    } catch {
      // The channel closed between the check and the write: same outcome, told by `exited`.
      return false;
    }
  }

  /** Bytes for the guest's serial port; resolves when the child has room for more. */
  async writeConsole(bytes: Uint8Array): Promise<void> {
    const sink = this.child.stdin;
    if (sink === undefined || typeof sink === "number") return;
    try {
      sink.write(bytes);
      await sink.flush();
    } catch {
      // The child is gone; `exited` tells it.
    }
  }

  kill(): void {
    this.child.kill("SIGKILL");
  }

  dump(): void {
    // By signal, since its JavaScript may hang in a fault; earlier than `ready` it would die of it.
    if (this.ready && this.connected) this.child.kill("SIGUSR1");
  }

  lastWords(): string | undefined {
    return formatLastWords(this.page);
  }

  registers(): string | undefined {
    return formatCpuDump(this.page.cpuDump());
  }

  release(): void {
    this.page.close();
  }

  private async watch(hooks: EngineHooks): Promise<EngineExit> {
    const { stdout, stderr } = this.child;
    const consoleDone =
      stdout instanceof ReadableStream ? readAll(stdout, hooks.onConsole) : Promise.resolve();
    const stderrDone = readAll(stderr, (chunk) => {
      for (const line of this.noise.push(chunk)) hooks.onStderr(line);
    });
    await this.child.exited;
    await Promise.all([consoleDone, stderrDone]);
    for (const line of this.noise.end()) hooks.onStderr(line);
    await this.groups?.remove(this.child.pid);
    const { exitCode: code, signalCode } = this.child;
    return {
      reaped: code !== null || signalCode !== null,
      code,
      signal: signalCode as NodeJS.Signals | null,
      panic: this.noise.panic,
      stderrTail: this.noise.tail(),
    };
  }
}

async function readAll(
  stream: ReadableStream<Uint8Array>,
  take: (chunk: Uint8Array) => Promise<void> | void,
): Promise<void> {
  const reader = stream.getReader();
  // A pipe of a dying child may end in an error: that is an end too.
  const ended = { done: true, value: undefined } as const;
  for (;;) {
    const { done, value } = await reader.read().catch(() => ended);
    if (done || value === undefined) return;
    await take(value);
  }
}

/** zig/base/last_words.zig fatal(): it would rather end than show wrong memory. */
const GAVE_UP_STATUS = 135;
/** What its last words start with when a page's state is unknown. */
const PAGE_LOST = /\bpage_lost: /;

function howItEnded(exit: EngineExit): string {
  if (exit.signal !== null) return `was killed by ${exit.signal}`;
  if (exit.code === GAVE_UP_STATUS) return "gave up";
  if (exit.code === 0) return "ended without a word";
  // The engine's own handler leaves with 128 + signal, as a shell would tell it.
  if (exit.code !== null && exit.code > 128) return `died of ${signalName(exit.code - 128)}`;
  return `exited with status ${exit.code}`;
}

const KILLED_HINT =
  "was it killed by hand or by the kernel's out-of-memory killer? see dmesg; " +
  "give the VM less --memory than the host has free";
const LOST_HINT =
  "the VM cannot go on without it; is that host up, its ssihv running, and the network between?";
const PAGE_HINT =
  "the VM cannot go on without that page; is the host's kernel sound (dmesg)? " +
  "else this is a defect in ssihv's engine: please report it";
const CRASH_HINT = "the VM cannot go on; this is a defect in ssihv's engine: please report it";

/** The error for an engine that went away without saying `stopped` or `failed`. */
export function describeDeath(engine: Engine, exit: EngineExit): SsihvError {
  if (exit.lost !== undefined) {
    const message = `VM ${engine.vm}: node ${engine.node} (${engine.place}) is lost: ${exit.lost}`;
    return new SsihvError("vcpu_lost", message, { hint: LOST_HINT });
  }
  const words = engine.lastWords();
  const who = `VM ${engine.vm}: the engine of node ${engine.node} (${engine.place})`;
  const said = words ?? exit.panic;
  const message = `${who} ${howItEnded(exit)}${said === undefined ? "" : `; last words: ${said}`}`;
  const killed = words === undefined && exit.panic === undefined && exit.signal === "SIGKILL";
  const pageLost = words !== undefined && PAGE_LOST.test(words);
  return new SsihvError(pageLost ? "page_lost" : "engine_dead", message, {
    hint: pageLost ? PAGE_HINT : killed ? KILLED_HINT : CRASH_HINT,
    ...(exit.stderrTail !== "" && {
      cause: new Error(`its stderr ended with\n${exit.stderrTail}`),
    }),
  });
}
