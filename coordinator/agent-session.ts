// One agent that is connected: what it greeted with, the orders it has not answered yet, the parts
// of VMs on its host, and the console streams that come from there.
// Invariants: every order is answered or rejected, also when the connection ends; what the agent
// sends is checked before it is used; after `onEnd` nothing comes from here.

import type { Duplex } from "node:stream";

import { isErrorCode, SsihvError } from "../src/base/errors.ts";
import { LineChannel } from "../src/control/line-channel.ts";
import {
  AGENT_PROTOCOL,
  type Capacity,
  type Check,
  type CoordinatorPlace,
  type Fault,
  type FromAgent,
  faultOf,
  type Order,
  type Part,
  parseFromAgent,
  type ToAgent,
  type Trust,
} from "../src/control/messages.ts";
import type { CertificateFacts } from "../src/tls/certificate.ts";
import type { Renewed } from "../src/tls/renewal.ts";

export interface SessionHooks {
  /** It has greeted; throws an SsihvError to refuse it. */
  admit(session: AgentSession): Promise<void>;
  /** What a welcome tells besides. */
  news(): Pick<Extract<ToAgent, { type: "welcome" }>, "trust" | "coordinators">;
  /** Throws an SsihvError to refuse it. */
  renew(session: AgentSession, request: string): Promise<Renewed>;
  /** It has been welcomed. */
  onUp(session: AgentSession): Promise<void>;
  onPart(session: AgentSession, part: Part): void;
  onEnd(session: AgentSession, why: string): void;
}

export interface ConsoleReader {
  onData(bytes: Uint8Array): void;
  onEnd(): void;
}

/** An agent accepts an order, it does not wait for its effect: seconds are plenty. */
const ORDER_MS = 15_000;
/** From the connection to its greeting. */
const HELLO_MS = 10_000;

type OrderBody = Order extends infer O ? (O extends Order ? Omit<O, "id"> : never) : never;

interface Waiting {
  resolve(answer: unknown): void;
  reject(error: SsihvError): void;
}

export class AgentSession {
  readonly host: string;
  /** That its connection was made with. */
  readonly certificate: CertificateFacts;
  readonly parts = new Map<string, Part>();
  build = "";
  laneHost = "";
  capacity: Capacity = { cpus: 0, memoryBytes: 0 };
  check: Check = { verdict: "unfit", problems: [] };
  runsVcpus = false;
  /** It says that it takes the place of another connection of the same agent. */
  moves = false;
  /** It did: its agent was not restarted, and what is not known of it yet is on its way. */
  hasTakenOver = false;
  private readonly channel: LineChannel;
  private readonly hooks: SessionHooks;
  private readonly heartbeatMs: number;
  private readonly silenceMs: number;
  private readonly waiting = new Map<number, Waiting>();
  private readonly consoles = new Map<number, ConsoleReader>();
  private readonly helloTimer: ReturnType<typeof setTimeout>;
  private greeted = false;
  private renewing = false;
  private handedOver = false;
  private nextId = 1;

  constructor(
    certificate: CertificateFacts,
    stream: Duplex,
    times: { readonly heartbeatMs: number; readonly silenceMs: number },
    hooks: SessionHooks,
  ) {
    this.host = certificate.identity?.name ?? "";
    this.certificate = certificate;
    this.hooks = hooks;
    this.heartbeatMs = times.heartbeatMs;
    this.silenceMs = times.silenceMs;
    this.channel = new LineChannel(stream, {
      onMessage: (message) => this.onMessage(message),
      onEnd: (why) => this.ended(why),
    });
    this.helloTimer = setTimeout(() => this.channel.end("it did not greet"), HELLO_MS);
  }

  /** Its answer when the agent has accepted; rejects with its reason, or `host_silent`. */
  async order(body: OrderBody): Promise<unknown> {
    const id = this.nextId++;
    const answered = Promise.withResolvers<unknown>();
    this.waiting.set(id, answered);
    const timer = setTimeout(() => answered.reject(this.silent("did not answer")), ORDER_MS);
    if (this.channel.ended) answered.reject(this.silent("is not connected"));
    else this.channel.send({ ...body, id });
    try {
      return await answered.promise;
    } finally {
      clearTimeout(timer);
      this.waiting.delete(id);
      this.endWhenIdle();
    }
  }

  /** What was told on the older connection since this one greeted is true, too. */
  takeOver(before: AgentSession): void {
    this.hasTakenOver = true;
    for (const [run, part] of before.parts) if (!this.parts.has(run)) this.parts.set(run, part);
  }

  /** The agent has another connection: this one ends when its orders and consoles have. */
  handOver(): void {
    this.handedOver = true;
    this.endWhenIdle();
  }

  /** The CAs to believe are others now. */
  tellTrust(trust: Trust): void {
    if (this.greeted) this.tell({ type: "trust", trust });
  }

  tellCoordinators(coordinators: CoordinatorPlace[]): void {
    if (this.greeted) this.tell({ type: "coordinators", coordinators });
  }

  forget(run: string): void {
    this.parts.delete(run);
    this.tell({ type: "forget", run });
  }

  /** The console of a run, from its kept history on; the returned function ends it. */
  async openConsole(run: string, reader: ConsoleReader): Promise<() => void> {
    const stream = this.nextId++;
    this.consoles.set(stream, reader);
    try {
      await this.order({ type: "console_open", run, stream });
    } catch (error) {
      this.consoles.delete(stream);
      this.endWhenIdle();
      throw error;
    }
    return () => {
      if (this.consoles.delete(stream)) this.tell({ type: "console_close", stream });
      this.endWhenIdle();
    };
  }

  end(why: string): void {
    this.channel.end(why);
  }

  private tell(message: ToAgent): void {
    this.channel.send(message);
  }

  private silent(how: string): SsihvError {
    return new SsihvError("host_silent", `the agent of host ${this.host} ${how}`, {
      hint: "is ssihv node running there, and the network between?",
    });
  }

  private onMessage(value: unknown): void {
    const message = parseFromAgent(value);
    if (!this.greeted) {
      if (message?.type !== "hello") throw new Error("it did not greet in this protocol");
      void this.greet(message);
    } else if (message === undefined) throw new Error("it sent a message of no known kind");
    else this.take(message);
  }

  private async greet(hello: Extract<FromAgent, { type: "hello" }>): Promise<void> {
    this.greeted = true;
    clearTimeout(this.helloTimer);
    this.build = hello.build;
    this.laneHost = hello.laneHost;
    this.capacity = hello.capacity;
    this.check = hello.check;
    this.runsVcpus = hello.runsVcpus;
    this.moves = hello.moves ?? false;
    for (const part of hello.parts) this.parts.set(part.run, part);
    try {
      if (hello.protocol !== AGENT_PROTOCOL) {
        throw new SsihvError("peer_refused", `the agent speaks protocol ${hello.protocol}`, {
          hint: `run the same ssihv on all hosts: this coordinator speaks ${AGENT_PROTOCOL}`,
        });
      }
      await this.hooks.admit(this);
      // Nobody is there any more to be welcomed.
      if (this.channel.ended) return;
      const { heartbeatMs, silenceMs } = this;
      this.tell({ type: "welcome", heartbeatMs, silenceMs, ...this.hooks.news() });
      this.channel.expectWithin(this.silenceMs);
      await this.hooks.onUp(this);
    } catch (error) {
      this.tell({ type: "refused", fault: faultOf(error) });
      this.channel.close();
    }
  }

  private take(message: FromAgent): void {
    switch (message.type) {
      case "hello":
        return;
      case "alive":
        return this.tell({ type: "alive" });
      case "part":
        this.parts.set(message.part.run, message.part);
        return this.hooks.onPart(this, message.part);
      case "reply": {
        const waiting = this.waiting.get(message.id);
        if (message.fault === undefined) return waiting?.resolve(message.answer);
        return waiting?.reject(errorOf(message.fault, this.host));
      }
      case "console":
        return this.consoles
          .get(message.stream)
          ?.onData(new Uint8Array(Buffer.from(message.data, "base64")));
      case "console_end": {
        const reader = this.consoles.get(message.stream);
        this.consoles.delete(message.stream);
        reader?.onEnd();
        return this.endWhenIdle();
      }
      case "renew":
        return void this.renew(message.request);
    }
  }

  private async renew(request: string): Promise<void> {
    // What it sends while one is under way is not of our agents.
    if (this.renewing) return this.end("it asked for two renewals at a time");
    this.renewing = true;
    try {
      this.tell({ type: "renewed", ...(await this.hooks.renew(this, request)) });
    } catch (error) {
      this.tell({ type: "not_renewed", fault: faultOf(error) });
    } finally {
      this.renewing = false;
    }
  }

  private endWhenIdle(): void {
    if (!this.handedOver || this.waiting.size > 0 || this.consoles.size > 0) return;
    this.end("its agent has another connection");
  }

  private ended(why: string): void {
    clearTimeout(this.helloTimer);
    for (const waiting of [...this.waiting.values()]) waiting.reject(this.silent("went away"));
    for (const reader of this.consoles.values()) reader.onEnd();
    this.consoles.clear();
    this.hooks.onEnd(this, why);
  }
}

function errorOf({ code, message, hint }: Fault, host: string): SsihvError {
  const known = isErrorCode(code) ? code : "engine_failed";
  return new SsihvError(known, `host ${host}: ${message}`, { ...(hint !== undefined && { hint }) });
}
