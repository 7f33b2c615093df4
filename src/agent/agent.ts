// The agent of a host: keeps a connection to the coordinator, tells what the host gives and which
// parts of VMs run here, and carries out orders. Without a coordinator everything goes on; when it
// is back it hears all that happened.
// Invariants: an order is answered once it is accepted or refused; a part is kept until the
// coordinator has its end on record; nothing that the coordinator sends throws into this process.

import { SsihvError } from "../base/errors.ts";
import { LineChannel } from "../control/line-channel.ts";
import {
  AGENT_PROTOCOL,
  type Capacity,
  type Check,
  type Fault,
  type FromAgent,
  faultOf,
  type Order,
  parseToAgent,
  type ToAgent,
} from "../control/messages.ts";
import type { VmObserved } from "../node/vm-view.ts";
import { connectMtls, type MtlsConnection } from "../tls/mtls.ts";
import { ConsoleStream } from "./console-stream.ts";
import type { Membership, NodeState } from "./node-state.ts";
import type { PartRecord } from "./part.ts";
import { JoinPart, LeadPart, type PartsDeps } from "./vm-parts.ts";

export interface AgentOptions {
  readonly build: string;
  readonly capacity: Capacity;
  readonly check: Check;
  /** Nodes with vCPUs are taken. */
  readonly runsVcpus: boolean;
  /** Absent: the address that the coordinator is reached from. */
  readonly laneHost?: string;
}

export type AgentDeps = Omit<PartsDeps, "onChange" | "laneHost">;

const RETRY_MS_MIN = 500;
const RETRY_MS_MAX = 5000;
/** States change without a word, too: they are looked at this often. */
const LOOK_MS = 200;
/** At the end: how long the coordinator has to hear the last reports. */
const GOODBYE_MS = 2000;

export class Agent {
  private readonly state: NodeState;
  private readonly membership: Membership;
  private readonly options: AgentOptions;
  private readonly deps: PartsDeps;
  private readonly parts = new Map<string, { record: PartRecord; lead: LeadPart | undefined }>();
  private readonly streams = new Map<number, { run: string; stream: ConsoleStream }>();
  private readonly stopped = Promise.withResolvers<void>();
  private channel: LineChannel | undefined;
  private connection: MtlsConnection | undefined;
  private laneHost = "";
  /** Orders that are not answered yet. */
  private obeying = 0;
  private stopping = false;
  private over = false;

  constructor(state: NodeState, options: AgentOptions, deps: AgentDeps) {
    this.state = state;
    this.membership = state.membership();
    this.options = options;
    this.laneHost = options.laneHost ?? "";
    this.deps = {
      ...deps,
      laneHost: () => this.laneHost,
      onChange: (record) => this.tellNews(record),
    };
  }

  /** Until `stop`. */
  async run(): Promise<void> {
    const looking = setInterval(() => {
      for (const { record } of this.parts.values()) this.tellNews(record);
    }, LOOK_MS);
    let pause = RETRY_MS_MIN;
    let told = "";
    while (!this.over) {
      const why = await this.stay();
      if (this.over) break;
      // A connection that was welcomed begins a new count.
      if (why.welcomed) pause = RETRY_MS_MIN;
      if (why.words !== told) this.deps.say(`coordinator: ${why.words}; trying again`);
      told = why.welcomed ? "" : why.words;
      await Promise.race([Bun.sleep(pause), this.stopped.promise]);
      pause = Math.min(2 * pause, RETRY_MS_MAX);
    }
    clearInterval(looking);
  }

  /** Ends all parts in order, and then the agent. */
  async stop(): Promise<void> {
    this.stopping = true;
    for (const { record } of this.parts.values()) if (!record.isOver) record.running.stop();
    const busy = () =>
      this.obeying > 0 || [...this.parts.values()].some(({ record }) => !record.isOver);
    while (busy()) await Bun.sleep(10);
    this.over = true;
    this.stopped.resolve();
    const { channel } = this;
    channel?.close();
    setTimeout(() => channel?.end("it does not close"), GOODBYE_MS).unref();
  }

  /** The VMs' parts that have facts: those that are led here, and those that have joined. */
  observed(): VmObserved[] {
    return [...this.parts.values()].flatMap(({ record }) => record.observed ?? []);
  }

  /** Every engine here tells on stderr what is open. */
  dump(): void {
    for (const { record } of this.parts.values()) if (!record.isOver) record.running.dump();
  }

  /** At once; for the last moments of this process. */
  killAll(): void {
    for (const { record } of this.parts.values()) if (!record.isOver) record.running.killAll();
  }

  /** One connection, from its making to its end. */
  private async stay(): Promise<{ welcomed: boolean; words: string }> {
    const { coordinatorHost: host, agentPort: port } = this.membership;
    try {
      const target = { host, port, credentials: this.state.credentials() };
      const connection = await connectMtls(target);
      if (this.over) {
        connection.socket.destroy();
        return { welcomed: false, words: "" };
      }
      return await this.converse(connection);
    } catch (error) {
      const words = error instanceof Error ? error.message : String(error);
      return { welcomed: false, words: `${host}:${port}: ${words}` };
    }
  }

  private async converse(connection: MtlsConnection) {
    const ended = Promise.withResolvers<string>();
    let welcomed = false;
    let beating: ReturnType<typeof setInterval> | undefined;
    const channel: LineChannel = new LineChannel(connection.socket, {
      onMessage: (value) => {
        const message = parseToAgent(value);
        if (message === undefined) throw new Error("it sent a message of no known kind");
        if (message.type === "refused") throw new Error(faultWords(message.fault));
        if (message.type !== "welcome") return this.take(message, channel);
        if (!welcomed) this.deps.say("coordinator: connected");
        welcomed = true;
        clearInterval(beating);
        beating = setInterval(() => channel.send({ type: "alive" }), message.heartbeatMs);
        channel.expectWithin(message.silenceMs);
      },
      onEnd: ended.resolve,
    });
    connection.socket.on("drain", () => {
      for (const { stream } of this.streams.values()) stream.pump();
    });
    this.channel = channel;
    this.connection = connection;
    this.laneHost = this.options.laneHost ?? connection.localHost;
    this.greet();
    const words = await ended.promise;
    clearInterval(beating);
    this.channel = undefined;
    this.connection = undefined;
    for (const { stream } of this.streams.values()) stream.close();
    this.streams.clear();
    return { welcomed, words };
  }

  private greet(): void {
    const { build, capacity, check, runsVcpus } = this.options;
    this.tell({
      type: "hello",
      protocol: AGENT_PROTOCOL,
      ...{ build, capacity, check, runsVcpus },
      laneHost: this.laneHost,
      parts: [...this.parts.values()].map(({ record }) => record.report()),
    });
  }

  private take(
    message: Exclude<ToAgent, { type: "welcome" | "refused" }>,
    channel: LineChannel,
  ): void {
    if (message.type === "alive") return;
    if (message.type === "forget") {
      if (this.parts.get(message.run)?.record.isOver) this.parts.delete(message.run);
    } else if (message.type === "console_close") {
      this.streams.get(message.stream)?.stream.close();
      this.streams.delete(message.stream);
    } else void this.obey(message, channel);
  }

  /** The reply goes where the order came from: on a later connection its id is another order's. */
  private async obey(order: Order, channel: LineChannel): Promise<void> {
    const { id } = order;
    const reply = (message: FromAgent) => channel.send(message);
    this.obeying += 1;
    try {
      const answer = await this.carryOut(order);
      reply({ type: "reply", id, ...(answer !== undefined && { answer }) });
    } catch (error) {
      reply({ type: "reply", id, fault: faultOf(error) });
    } finally {
      this.obeying -= 1;
    }
  }

  /** What it answers, where it is a question. */
  private async carryOut(order: Order): Promise<unknown> {
    if (this.stopping && (order.type === "lead" || order.type === "join")) {
      throw new SsihvError("host_silent", "its agent is being ended");
    }
    switch (order.type) {
      case "lead": {
        const lead = await LeadPart.start(order, this.deps);
        return this.keep(lead.record, lead);
      }
      case "join":
        return this.keep(JoinPart.start(order, this.deps).record, undefined);
      case "stop":
        this.part(order.run).record.running.stop();
        return;
      case "console_open":
        return this.openConsole(order.run, order.stream);
      case "console_input":
        return await this.lead(order.run).type(Buffer.from(order.data, "base64"));
      case "ask":
        return await this.lead(order.run).ask(order.question);
    }
  }

  private keep(record: PartRecord, lead: LeadPart | undefined): void {
    this.parts.set(record.run, { record, lead });
    // Its order was under way when this agent was told to end.
    if (this.stopping) record.running.stop();
    this.tellNews(record);
  }

  private openConsole(run: string, id: number): void {
    const { history } = this.lead(run);
    const socket = this.connection?.socket;
    const stream = new ConsoleStream(id, history, {
      get unsentBytes() {
        return socket?.writableLength ?? 0;
      },
      send: (message) => this.tell(message),
    });
    this.streams.set(id, { run, stream });
    if (this.part(run).record.isOver) this.endStreams(run);
  }

  private endStreams(run: string): void {
    for (const [id, each] of this.streams) {
      if (each.run !== run) continue;
      each.stream.end();
      this.streams.delete(id);
    }
  }

  private part(run: string): { record: PartRecord; lead: LeadPart | undefined } {
    const part = this.parts.get(run);
    if (part !== undefined) return part;
    throw new SsihvError("vm_unknown", "this host has no part in that run of a VM");
  }

  private lead(run: string): LeadPart {
    const { lead } = this.part(run);
    if (lead !== undefined) return lead;
    throw new SsihvError("vm_unknown", "this host does not lead that run of a VM");
  }

  private tellNews(record: PartRecord): void {
    if (record.isOver) this.endStreams(record.run);
    if (this.channel === undefined || !this.parts.has(record.run)) return;
    const part = record.news();
    if (part !== undefined) this.tell({ type: "part", part });
  }

  private tell(message: FromAgent): void {
    this.channel?.send(message);
  }
}

function faultWords({ message, hint }: Fault): string {
  return hint === undefined ? message : `${message} (${hint})`;
}
