// An agent without engines, for tests of the coordinator: joins with a token, answers orders as the
// test says, and tells of parts as if VMs ran. Never part of the product.

import { type Admitted, joinCluster } from "../src/control/join-client.ts";
import { LineChannel } from "../src/control/line-channel.ts";
import {
  AGENT_PROTOCOL,
  type AgentQuestion,
  type Fault,
  type FromAgent,
  type Order,
  type Part,
  parseToAgent,
  type ToAgent,
} from "../src/control/messages.ts";
import { factsOf } from "../src/tls/certificate.ts";
import type { Credentials } from "../src/tls/credentials.ts";
import { connectMtls } from "../src/tls/mtls.ts";

export class FakeAgent {
  readonly orders: ToAgent[] = [];
  readonly parts = new Map<string, Part>();
  /** Answers the next orders with this. */
  fault: Fault | undefined;
  /** Answers questions with this, in place of what fits. */
  answer: unknown;
  /** Answers wait here while it is set. */
  held: (() => void)[] | undefined;
  memoryBytes = 8 * 2 ** 30;
  cpus = 4;
  verdict: "fit" | "unfit" = "fit";
  /** Its VMs run when they are led, end when they are stopped, and have a line on their console. */
  playing = false;
  /** What it says of itself. */
  build = "test";
  laneHost = "127.0.0.1";
  problems: string[] = [];
  /** It says that it takes the place of another connection. */
  moves = false;
  ended: string | undefined;
  channel: LineChannel | undefined;
  readonly admitted: Admitted;
  private readonly welcomed = Promise.withResolvers<ToAgent>();

  constructor(admitted: Admitted) {
    this.admitted = admitted;
  }

  static async join(token: string, name: string): Promise<FakeAgent> {
    return new FakeAgent(await joinCluster(token, name));
  }

  /** The same host, its agent started again: it knows of no part but those given. */
  again(parts: readonly Part[] = []): FakeAgent {
    const agent = new FakeAgent(this.admitted);
    for (const part of parts) agent.parts.set(part.run, part);
    return agent;
  }

  /** The same host with other certificates. */
  with(other: Partial<Admitted>, parts: readonly Part[] = []): FakeAgent {
    const agent = new FakeAgent({ ...this.admitted, ...other });
    for (const part of parts) agent.parts.set(part.run, part);
    return agent;
  }

  /**
   * Resolves with the answer to its greeting; rejects where there is none. `port`: a coordinator
   * that was started again.
   */
  async connect(port = this.admitted.agentPort): Promise<ToAgent> {
    const { certificate, key, ca, name, coordinatorHost } = this.admitted;
    const credentials: Credentials = {
      ...{ certificate, key, ca, identity: { name, role: "node" } },
      expires: factsOf(certificate).notAfter,
    };
    const { socket } = await connectMtls({ host: coordinatorHost, port, credentials });
    this.channel = new LineChannel(socket, {
      onMessage: (message) => this.onMessage(message),
      onEnd: (why) => {
        this.ended = why;
        this.welcomed.reject(new Error(why));
      },
    });
    this.tell({
      type: "hello",
      protocol: AGENT_PROTOCOL,
      ...(this.moves && { moves: true }),
      ...{ build: this.build, laneHost: this.laneHost },
      capacity: { cpus: this.cpus, memoryBytes: this.memoryBytes },
      check: {
        verdict: this.verdict,
        problems: this.verdict === "fit" ? this.problems : ["KVM: missing"],
      },
      runsVcpus: this.verdict === "fit",
      parts: [...this.parts.values()],
    });
    return await this.welcomed.promise;
  }

  tell(message: FromAgent): void {
    this.channel?.send(message);
  }

  report(part: Part): void {
    this.parts.set(part.run, part);
    this.tell({ type: "part", part });
  }

  /** How the run that it leads goes on. */
  lead(state: Part["state"], ended?: Part["ended"]): void {
    const part = [...this.parts.values()].find(({ lead }) => lead);
    if (part === undefined) throw new Error("it leads nothing");
    this.report({ ...part, state, ...(ended !== undefined && { ended }) });
  }

  private onMessage(value: unknown): void {
    const message = parseToAgent(value);
    if (message === undefined) throw new Error(`not of the protocol: ${JSON.stringify(value)}`);
    if (message.type === "welcome" || message.type === "refused") {
      return this.welcomed.resolve(message);
    }
    if (message.type === "alive") return;
    this.orders.push(message);
    if (message.type === "forget") this.parts.delete(message.run);
    if (!("id" in message)) return;
    if (this.held === undefined) this.obey(message);
    else this.held.push(() => this.obey(message));
  }

  private obey(message: Order): void {
    const { id } = message;
    if (this.fault !== undefined) return this.tell({ type: "reply", id, fault: this.fault });
    if (message.type === "lead") {
      const { run, spec } = message;
      this.report({ vm: spec.name, run, node: 0, lead: true, state: "waiting" });
    }
    if (message.type === "join") {
      const { run, vm, node } = message;
      this.report({ vm, run, node, lead: false, state: "starting" });
    }
    if (message.type === "ask") {
      const answer = this.answer ?? this.told(message.run, message.question);
      return this.tell({ type: "reply", id, answer });
    }
    this.tell({ type: "reply", id });
    if (this.playing) this.play(message);
  }

  private play(message: Order): void {
    const part = this.parts.get(message.run);
    if (part === undefined) return;
    if (message.type === "lead") this.report({ ...part, state: "running" });
    if (message.type === "stop") {
      const ended = { kind: "stopped", reason: "requested", text: "stopped" } as const;
      this.report({ ...part, state: "ended", ended });
    }
    if (message.type === "console_open") {
      const { stream } = message;
      const data = Buffer.from("login: ").toString("base64");
      this.tell({ type: "console", stream, data });
      this.tell({ type: "console_end", stream });
    }
  }

  /** What it says of a VM that it leads: nothing has happened yet. */
  private told(run: string, question: AgentQuestion): unknown {
    const vm = this.parts.get(run)?.vm ?? "";
    const node = { ...{ node: 0, host: null, vcpus: 1 }, memoryBytes: 0, lentBytes: null };
    const silent = { ...node, stats: null, silent: "its engine is none" };
    const head = { ...{ name: vm, state: "running", vcpus: 1 }, memoryBytes: 0 };
    switch (question.op) {
      case "show":
        return { ...head, uptimeSeconds: 1, nodes: [{ ...silent, pid: null }] };
      case "stats":
        return { ...head, nodes: [silent] };
      case "heat":
        return { vm, ranges: [], nodes: [{ node: 0, heat: null, silent: silent.silent }] };
      case "balloon":
        return { target: question.bytes, actual: 0, inflated: 0, reported: 0 };
      case "pages":
        return { vm, pages: [this.page(question.gpa)], silent: [] };
    }
  }

  private page(gpa: number) {
    const copy = { node: 0, access: "invalid", version: 0, revokesDeferred: 0 };
    const entry = { state: "untouched", owner: null, sharers: [], version: 0, transaction: null };
    return { gpa, home: 0, ...entry, copies: [copy] };
  }
}
