// One connection to the coordinator: its channel with signs of life, and the consoles that are read
// over it. An agent that has a new certificate makes another and leaves this one to what is open on
// it; so orders are answered, and consoles shown, where they were asked for.

import { LineChannel } from "../control/line-channel.ts";
import { type FromAgent, parseToAgent, type ToAgent } from "../control/messages.ts";
import type { MtlsConnection } from "../tls/mtls.ts";
import { faultWords } from "./certificate-renewal.ts";
import type { ConsoleHistory } from "./console-history.ts";
import { ConsoleStream } from "./console-stream.ts";

export type Told = Exclude<ToAgent, { type: "welcome" | "refused" | "alive" }>;
export type Welcome = Extract<ToAgent, { type: "welcome" }>;

/** From the greeting to the welcome, which says how often each is to be heard. */
const WELCOME_MS = 15_000;

export interface LinkHooks {
  onWelcome(link: CoordinatorLink, welcome: Welcome): void;
  onTold(link: CoordinatorLink, message: Told): void;
  onEnd(link: CoordinatorLink): void;
}

export class CoordinatorLink {
  /** In words, once it has ended. */
  readonly ended: Promise<string>;
  welcomed = false;
  /** It is to take the place of another one. */
  moves = false;
  private readonly connection: MtlsConnection;
  private readonly channel: LineChannel;
  private readonly streams = new Map<number, { run: string; stream: ConsoleStream }>();
  private beating: ReturnType<typeof setInterval> | undefined;

  constructor(connection: MtlsConnection, hooks: LinkHooks) {
    this.connection = connection;
    const ended = Promise.withResolvers<string>();
    this.ended = ended.promise;
    this.channel = new LineChannel(connection.socket, {
      onMessage: (value) => this.received(value, hooks),
      onEnd: (why) => {
        clearInterval(this.beating);
        for (const { stream } of this.streams.values()) stream.close();
        this.streams.clear();
        hooks.onEnd(this);
        ended.resolve(why);
      },
    });
    // A coordinator that hangs, or whose host has died, welcomes nobody; others may.
    this.channel.expectWithin(WELCOME_MS);
    connection.socket.on("drain", () => {
      for (const { stream } of this.streams.values()) stream.pump();
    });
  }

  /** Of this host, as the coordinator is reached from it. */
  get localHost(): string {
    return this.connection.localHost;
  }

  send(message: FromAgent): void {
    this.channel.send(message);
  }

  openConsole(run: string, id: number, history: ConsoleHistory): void {
    const { socket } = this.connection;
    const stream = new ConsoleStream(id, history, {
      get unsentBytes() {
        return socket.writableLength;
      },
      send: (message) => this.send(message),
    });
    this.streams.set(id, { run, stream });
  }

  closeConsole(id: number): void {
    this.streams.get(id)?.stream.close();
    this.streams.delete(id);
  }

  /** The run's guest says no more. */
  endConsoles(run: string): void {
    for (const [id, each] of this.streams) {
      if (each.run !== run) continue;
      each.stream.end();
      this.streams.delete(id);
    }
  }

  /** Sends what is written, then closes; at once where that takes longer than `limitMs`. */
  close(limitMs: number): void {
    this.channel.close();
    setTimeout(() => this.channel.end("it does not close"), limitMs).unref();
  }

  private received(value: unknown, hooks: LinkHooks): void {
    const message = parseToAgent(value);
    if (message === undefined) throw new Error("it sent a message of no known kind");
    if (message.type === "refused") throw new Error(faultWords(message.fault));
    if (message.type === "alive") return;
    if (message.type !== "welcome") return hooks.onTold(this, message);
    clearInterval(this.beating);
    this.beating = setInterval(() => this.send({ type: "alive" }), message.heartbeatMs);
    this.channel.expectWithin(message.silenceMs);
    this.welcomed = true;
    hooks.onWelcome(this, message);
  }
}
