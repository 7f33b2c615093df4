// The engine of a node on another host as the VM here drives it. It exists before any host joined:
// what is sent meanwhile waits. Once a host took the place, messages cross its channel.
// Invariants: `exited` resolves when the host says that its engine is gone, when it is told to end
// before it joined, or when the channel ends, whichever comes first; later messages are ignored.

import type { ToEngine } from "../engine/messages.ts";
import type { Engine, EngineExit, EngineHooks } from "./engine-process.ts";
import type { JoinChannel } from "./join-channel.ts";
import type { FromJoined, FromLead } from "./join-messages.ts";

/** The host that took the place. */
export interface JoinedHost {
  readonly name: string;
  /** IP address that the engines of other nodes reach it at. */
  readonly laneHost: string;
  /** IP address at which it reached this host. */
  readonly leadHost: string;
  readonly channel: Pick<JoinChannel, "send">;
}

/** Whatever became of it, nobody who would know has told. */
const NO_EXIT: EngineExit = {
  reaped: false,
  code: null,
  signal: null,
  panic: undefined,
  stderrTail: "",
};

export class RemoteEngine implements Engine {
  readonly node: number;
  readonly vm: string;
  readonly exited: Promise<EngineExit>;
  private readonly hooks: EngineHooks;
  private readonly end = Promise.withResolvers<EngineExit>();
  private readonly waiting: ToEngine[] = [];
  private joined: JoinedHost | undefined;
  private gone = false;
  private remotePid = 0;
  private words: string | undefined;
  private registersTold: string | undefined;

  constructor(vm: string, node: number, hooks: EngineHooks) {
    this.vm = vm;
    this.node = node;
    this.hooks = hooks;
    this.exited = this.end.promise;
  }

  get pid(): number {
    return this.remotePid;
  }

  get place(): string {
    const pid = this.remotePid === 0 ? "" : `pid ${this.remotePid} `;
    return this.joined === undefined ? "no host joined" : `${pid}on host ${this.joined.name}`;
  }

  get host(): JoinedHost | undefined {
    return this.joined;
  }

  /** A place that a host can take. */
  get free(): boolean {
    return this.joined === undefined && !this.gone;
  }

  attach(host: JoinedHost): void {
    this.joined = host;
    for (const message of this.waiting.splice(0)) this.pass({ type: "engine", message });
  }

  receive(message: FromJoined): void {
    if (this.gone) return;
    switch (message.type) {
      case "engine": {
        const told = message.message;
        if (told.type === "ready") this.remotePid = told.capabilities.pid;
        if (told.type === "stopped") this.registersTold = message.registers;
        return this.hooks.onMessage(told);
      }
      case "stderr":
        return this.hooks.onStderr(message.text);
      case "exit":
        this.words = message.lastWords;
        return this.finish(message.exit);
      case "leave":
        return this.lost(message.why);
      case "hello":
      case "alive":
        // Greeted already; and the channel took the sign of life.
        return;
    }
  }

  /** The channel is gone. */
  lost(why: string): void {
    this.finish({ ...NO_EXIT, lost: why });
  }

  send(message: ToEngine): boolean {
    if (this.gone) return false;
    if (this.joined !== undefined) this.pass({ type: "engine", message });
    // Nobody is there to stop, and nobody will be.
    else if (message.type === "stop") this.finish(NO_EXIT);
    else this.waiting.push(message);
    return true;
  }

  /** The other host kills its engine when it hears this, or when the channel ends with us. */
  kill(): void {
    this.pass({ type: "kill" });
    this.finish({ ...NO_EXIT, signal: "SIGKILL" });
  }

  dump(): void {
    this.pass({ type: "dump" });
  }

  async writeConsole(): Promise<void> {
    // The console is node 0's, and node 0 is never remote.
  }

  lastWords(): string | undefined {
    return this.words;
  }

  registers(): string | undefined {
    return this.registersTold;
  }

  release(): void {
    this.gone = true;
  }

  private pass(message: FromLead): void {
    this.joined?.channel.send(message);
  }

  private finish(exit: EngineExit): void {
    this.gone = true;
    this.end.resolve(exit);
  }
}
