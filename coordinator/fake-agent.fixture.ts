// An agent without engines, for tests of the coordinator: joins with a token, answers orders as the
// test says, and tells of parts as if VMs ran. Never part of the product.

import { type Admitted, joinCluster } from "../src/control/join-client.ts";
import { LineChannel } from "../src/control/line-channel.ts";
import {
  AGENT_PROTOCOL,
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
  /** Answers wait here while it is set. */
  held: (() => void)[] | undefined;
  memoryBytes = 8 * 2 ** 30;
  cpus = 4;
  verdict: "fit" | "unfit" = "fit";
  /** What it says of itself. */
  build = "test";
  laneHost = "127.0.0.1";
  problems: string[] = [];
  ended: string | undefined;
  channel: LineChannel | undefined;
  private readonly admitted: Admitted;
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

  /** Resolves with the answer to its greeting. `port`: a coordinator that was started again. */
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
      },
    });
    this.tell({
      type: "hello",
      protocol: AGENT_PROTOCOL,
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
    if (this.held === undefined) this.answer(message);
    else this.held.push(() => this.answer(message));
  }

  private answer(message: Order): void {
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
    if (message.type === "ask") return this.tell({ type: "reply", id, answer: message.question });
    this.tell({ type: "reply", id });
  }
}
