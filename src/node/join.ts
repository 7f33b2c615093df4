// The joining side: connects to the lead of a VM, takes the node it gives, runs that node's engine
// on this host and passes messages between the two until the VM ends.
// Invariants: when the lead is lost the engine is killed at once; `run` returns only when the
// engine is gone; what the lead sends is used only after it proved the key and the same build.

import { hostname } from "node:os";

import { messageOf, SsihvError } from "../base/errors.ts";
import type { FromEngine, Question, SandboxState } from "../engine/messages.ts";
import { buildInfo } from "./build-info.ts";
import { engineBytesMax, type Groups } from "./control-group.ts";
import { type EngineExit, EngineProcess, type ParentPage } from "./engine-process.ts";
import { formatAddress, type HostPort } from "./join-address.ts";
import { CHANNEL_HANDLERS, JoinChannel } from "./join-channel.ts";
import { silenceLimitMs } from "./join-listener.ts";
import {
  buildMismatch,
  decodeOutcome,
  type FromJoined,
  type FromLead,
  type Hello,
  isFromLead,
  MISMATCH_HINT,
  parseHello,
  type Welcome,
} from "./join-messages.ts";
import { type Asked, Questions } from "./questions.ts";
import { giveBack, type SandboxMode, sandboxFor } from "./sandbox.ts";
import { GRACE_MS, type VmOutcome } from "./vm.ts";
import type { VmFacts, VmObserved, VmState } from "./vm-view.ts";

/** Pause between attempts to reach a lead that is not there yet. */
const RETRY_MS = 500;
/** One attempt: a packet into the void is given up sooner than the kernel would. */
const ATTEMPT_MS = 3000;
/** How long the lead may take to hear our last message. */
const GOODBYE_MS = 2000;
/** How long the lead has to tell the end when our engine found the other nodes gone. */
const LAST_CHANCE_MS = 2000;
/** How long the lead may take to greet and to give a node. */
const WELCOME_MS = 10_000;

export interface JoinOptions {
  readonly lead: HostPort;
  readonly key: Uint8Array;
  /** How long to wait for a lead that is not there yet. */
  readonly waitMs: number;
  /** The address that other nodes reach this host at, where the lead does not see it. */
  readonly laneHost?: string;
  /** Lend memory, run no vCPUs. */
  readonly memoryOnly: boolean;
  /** What others are to call this host; absent: by its own name. */
  readonly hostName?: string;
  /** The node to be; absent: the lead's choice. */
  readonly node?: number;
}

export type JoinEvent =
  /** The lead does not answer yet. */
  | { readonly event: "waiting"; readonly why: string }
  | { readonly event: "joined"; readonly lead: string; readonly welcome: Welcome }
  /** What our engine tells: the lead may be the one it waits for. */
  | { readonly event: "notice" | "stderr"; readonly node: number; readonly text: string };

export interface JoinDeps {
  /** Of its engine; auto unless said. */
  readonly sandbox?: SandboxMode;
  /** Where it gets a control group. */
  readonly groups?: Groups;
  readonly createPage: () => ParentPage;
  readonly command?: readonly string[];
  readonly graceMs?: number;
  readonly retryMs?: number;
  /** Throws when this host cannot take the node. */
  readonly check?: (welcome: Welcome) => void;
  onEvent(event: JoinEvent): void;
}

export class JoinSession implements VmObserved {
  private readonly options: JoinOptions;
  private readonly deps: JoinDeps;
  private readonly ended = Promise.withResolvers<VmOutcome>();
  private readonly aborted = Promise.withResolvers<void>();
  private channel: JoinChannel | undefined;
  private greeted: Hello | undefined;
  private welcome: Welcome | undefined;
  private engine: EngineProcess | undefined;
  private engineGone = false;
  /** How our engine ended by its own account. */
  private stopped: Extract<VmOutcome, { kind: "stopped" }> | undefined;
  private over = false;
  private leaving = false;
  private readonly questions = new Questions("host");
  private ready = false;
  private paused = false;
  private startedAt: number | undefined;
  private sandbox: SandboxState | undefined;

  constructor(options: JoinOptions, deps: JoinDeps) {
    this.options = options;
    this.deps = deps;
  }

  /** How the VM ended; `failed` also where this host never became part of it. */
  async run(): Promise<VmOutcome> {
    try {
      await this.connect();
    } catch (error) {
      this.finish({ kind: "failed", error: asSsihvError(error) });
    }
    const outcome = await this.ended.promise;
    await this.stopEngine();
    await this.channel?.close(GOODBYE_MS);
    return outcome;
  }

  /**
   * Takes this host out of the VM: `why` is told to the lead. That ends the VM, but for a host that
   * lends memory to a running one: then the pages' homes are told, and go on with other copies.
   */
  leave(why: string): void {
    this.tell({ type: "leave", why });
    this.leaving = this.options.memoryOnly && this.startedAt !== undefined;
    if (this.leaving) this.engine?.send({ type: "leave" });
    else this.engine?.kill();
    this.finish({
      kind: "stopped",
      node: this.welcome?.node ?? 0,
      reason: "requested",
      code: undefined,
      detail: undefined,
      registers: undefined,
    });
  }

  /** The engine here tells on stderr what is open. */
  dump(): void {
    if (!this.engineGone) this.engine?.dump();
  }

  /** This host's part; only once it has joined. */
  facts(): VmFacts {
    const { welcome, engine, startedAt, sandbox } = this;
    if (welcome === undefined) {
      throw new SsihvError("vm_silent", "this host has not joined a VM yet");
    }
    const pid = engine === undefined ? {} : { pid: engine.pid };
    const up = startedAt === undefined ? undefined : (performance.now() - startedAt) / 1000;
    return {
      name: welcome.vm,
      role: "node",
      state: this.state(),
      ...(up !== undefined && { uptimeSeconds: up }),
      shape: welcome.nodes,
      nodes: [{ node: welcome.node, ...pid, ...(sandbox !== undefined && { sandbox }) }],
    };
  }

  async ask(_node: number, question: Question): Promise<Asked> {
    if (this.engine !== undefined && this.ready) return this.questions.ask(this.engine, question);
    throw new SsihvError("vm_silent", "its engine is not up yet", {
      hint: "ask again when the VM runs",
    });
  }

  private state(): VmState {
    if (this.over || this.engineGone) return "stopping";
    if (this.startedAt === undefined) return "starting";
    return this.paused ? "paused" : "running";
  }

  /** At once and for good; for the last moments of this process. */
  killAll(): void {
    if (!this.engineGone) this.engine?.kill();
  }

  private get leadName(): string {
    return formatAddress(this.options.lead.host, this.options.lead.port);
  }

  private async connect(): Promise<void> {
    const deadline = performance.now() + this.options.waitMs;
    let told = "";
    while (!this.over) {
      const why = await this.attempt();
      if (why === undefined) return;
      if (performance.now() >= deadline) throw unreachable(this.leadName, why, this.options.waitMs);
      if (why !== told) this.deps.onEvent({ event: "waiting", why });
      told = why;
      await Promise.race([Bun.sleep(this.deps.retryMs ?? RETRY_MS), this.aborted.promise]);
    }
  }

  /** Undefined once connected; else why not. */
  private async attempt(): Promise<string | undefined> {
    const timeUp = Bun.sleep(ATTEMPT_MS).then(() => "no answer");
    let late = false;
    const connected = Bun.connect<JoinChannel>({
      hostname: this.options.lead.host,
      port: this.options.lead.port,
      socket: {
        ...CHANNEL_HANDLERS,
        open: (socket) => {
          if (late || this.over) socket.terminate();
          else this.greet(socket);
        },
      },
    }).then(
      () => undefined,
      (error: unknown) => connectWords(error),
    );
    const why = await Promise.race([connected, timeUp]);
    late = why !== undefined;
    return why;
  }

  private greet(socket: Bun.Socket<JoinChannel>): void {
    const channel: JoinChannel = new JoinChannel(socket, "join", this.options.key, {
      onMessage: (message) => this.onMessage(channel, message),
      onEnd: (why) => this.onLost(why),
    });
    socket.data = channel;
    this.channel = channel;
    const { laneHost, memoryOnly, node, hostName } = this.options;
    this.tell({
      type: "hello",
      build: buildInfo(),
      host: hostName ?? hostname(),
      leadHost: channel.remoteHost,
      memoryOnly,
      ...(laneHost !== undefined && { laneHost }),
      ...(node !== undefined && { node }),
    });
    setTimeout(() => {
      if (this.welcome === undefined) channel.end(new Error("it gave no node in time"));
    }, WELCOME_MS).unref();
  }

  private onMessage(channel: JoinChannel, message: unknown): void {
    if (this.greeted === undefined) {
      const hello = parseHello(message);
      if (hello === undefined) return channel.end(new Error("it did not greet"));
      this.greeted = hello;
      const mismatch = buildMismatch(buildInfo(), hello.build, hello.host);
      if (mismatch !== undefined) this.refused(mismatch, MISMATCH_HINT);
    } else if (isFromLead(message)) this.onLead(channel, message);
    else channel.end(new Error("it sent a message of no known kind"));
  }

  private onLead(channel: JoinChannel, message: FromLead): void {
    switch (message.type) {
      case "welcome":
        if (this.welcome !== undefined || this.over) return;
        return this.begin(channel, message);
      case "refused":
        return this.refused(message.message, message.hint);
      case "engine":
        if (message.message.type === "pause") this.paused = true;
        if (message.message.type === "resume") this.paused = false;
        this.engine?.send(message.message);
        return;
      case "kill":
        return this.killAll();
      case "dump":
        return this.dump();
      case "ended":
        return this.finish(decodeOutcome(message.outcome));
      case "hello":
      case "alive":
        // Greeted already; and the channel took the sign of life.
        return;
    }
  }

  private refused(message: string, hint: string | undefined): void {
    const words = `${this.leadName}: ${message}`;
    const error = new SsihvError("peer_refused", words, { ...(hint !== undefined && { hint }) });
    this.finish({ kind: "failed", error });
  }

  private begin(channel: JoinChannel, welcome: Welcome): void {
    this.welcome = welcome;
    channel.keepAlive(silenceLimitMs(welcome.peerTimeoutMs));
    this.deps.onEvent({ event: "joined", lead: this.leadName, welcome });
    try {
      this.deps.check?.(welcome);
      this.spawn(welcome);
    } catch (error) {
      // The lead ends the VM for this, and tells us so.
      const { code, message, hint } = asSsihvError(error);
      const failed: FromEngine = {
        type: "failed",
        code,
        message: `host ${this.options.hostName ?? hostname()}: ${message}`,
        ...(hint !== undefined && { hint }),
      };
      this.tell({ type: "engine", message: failed });
      this.engineGone = true;
      this.tell({ type: "exit", exit: NO_ENGINE });
    }
  }

  private spawn({ vm, node, nodes }: Welcome): void {
    const page = this.deps.createPage();
    const { command, groups } = this.deps;
    const sandbox = sandboxFor(this.deps.sandbox ?? "auto", "none");
    let engine: EngineProcess;
    try {
      engine = new EngineProcess({
        vm,
        node,
        page,
        console: false,
        memoryOnly: this.options.memoryOnly,
        sandbox,
        ...(groups !== undefined && { group: { groups, bytesMax: engineBytesMax(nodes, node) } }),
        hooks: {
          onMessage: (message) => this.onEngine(message),
          onStderr: (text) => {
            this.deps.onEvent({ event: "stderr", node, text });
            this.tell({ type: "stderr", text });
          },
          onConsole: () => undefined,
        },
        ...(command !== undefined && { command }),
      });
    } catch (error) {
      page.close();
      giveBack(sandbox);
      throw error;
    }
    this.engine = engine;
    void engine.exited.then(() => giveBack(sandbox));
    void engine.exited.then((exit) => this.onEngineExit(engine, exit));
  }

  private onEngine(message: FromEngine): void {
    if (message.type === "sandboxed") this.sandbox = message.sandbox;
    if (message.type === "answer" && this.questions.answered(message)) return;
    if (message.type === "ready") this.ready = true;
    if (message.type === "started") this.startedAt ??= performance.now();
    const registers = message.type === "stopped" ? this.engine?.registers() : undefined;
    this.tell({ type: "engine", message, ...(registers !== undefined && { registers }) });
    if (this.welcome === undefined) return;
    const { node } = this.welcome;
    if (message.type === "notice") {
      this.deps.onEvent({ event: "notice", node, text: message.text });
    }
    if (message.type !== "stopped") return;
    const { reason, code, detail } = message;
    this.stopped = { kind: "stopped", node, reason, code, detail, registers };
  }

  private onEngineExit(engine: EngineProcess, exit: EngineExit): void {
    this.engineGone = true;
    const lastWords = engine.lastWords();
    this.tell({ type: "exit", exit, ...(lastWords !== undefined && { lastWords }) });
    const { stopped } = this;
    if (stopped?.reason !== "vcpu_lost") return;
    // The lane noticed before the channel did: the lead may well be the one that is gone.
    setTimeout(() => this.finish(stopped), LAST_CHANCE_MS).unref();
  }

  private onLost(why: Error): void {
    this.engine?.kill();
    if (this.over) return;
    if (why instanceof SsihvError) {
      // Bytes that are not sealed with our key: what the channel says is the whole story.
      const { message, hint } = why;
      return this.refused(message, hint);
    }
    if (this.welcome === undefined) {
      const words = `it ended the conversation: ${why.message}`;
      return this.refused(words, "do both hosts run the same ssihv and name the same key file?");
    }
    const { vm, node } = this.welcome;
    const message =
      `VM ${vm}: its lead ${this.leadName} is lost: ${why.message}; ` +
      `the engine of node ${node} was ended`;
    const hint = "the VM cannot go on without its lead; is that host up, and the network between?";
    this.finish({ kind: "failed", error: new SsihvError("vcpu_lost", message, { hint }) });
  }

  private tell(message: FromJoined): void {
    this.channel?.send(message);
  }

  private finish(outcome: VmOutcome): void {
    this.over = true;
    this.aborted.resolve();
    this.ended.resolve(outcome);
  }

  private async stopEngine(): Promise<void> {
    const { engine } = this;
    if (engine === undefined) return;
    // One that leaves ends by itself when it has said goodbye.
    if (!this.leaving) engine.send({ type: "stop" });
    const timer = setTimeout(() => this.killAll(), this.deps.graceMs ?? GRACE_MS);
    await engine.exited;
    clearTimeout(timer);
    engine.release();
  }
}

/** There was none to reap. */
const NO_ENGINE: EngineExit = {
  reaped: false,
  code: 0,
  signal: null,
  panic: undefined,
  stderrTail: "",
};

const ERRNO_WORDS: Record<string, string> = {
  ECONNREFUSED: "nobody listens there",
  EHOSTUNREACH: "that host cannot be reached",
  ENETUNREACH: "there is no route to that host",
  ENOTFOUND: "that name is not known",
};

function connectWords(error: unknown): string {
  const code = error instanceof Error && "code" in error ? String(error.code) : "";
  return ERRNO_WORDS[code] ?? (code === "" ? String(error) : `it cannot be reached (${code})`);
}

function unreachable(lead: string, why: string, waitMs: number): SsihvError {
  const message = `no VM to join at ${lead} within ${Math.ceil(waitMs / 1000)} s: ${why}`;
  return new SsihvError("node_unreachable", message, {
    hint: `start it there: ssihv run --listen ${lead} --key-file vm.key --nodes 2 --kernel FILE`,
  });
}

function asSsihvError(error: unknown): SsihvError {
  if (error instanceof SsihvError) return error;
  const message = messageOf(error);
  return new SsihvError("engine_failed", `the engine could not be started: ${message}`, {
    cause: error,
  });
}
