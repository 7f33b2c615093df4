// The agent of a host: keeps a connection to the coordinator, tells what the host gives and which
// parts of VMs run here, and carries out orders. Without a coordinator everything goes on; when it
// is back it hears all that happened.
// Invariants: an order is answered once it is accepted or refused; a part is kept until the
// coordinator has its end on record; nothing that the coordinator sends throws into this process.

import { SsihvError } from "../base/errors.ts";
import {
  AGENT_PROTOCOL,
  type Capacity,
  type Check,
  type FromAgent,
  faultOf,
  type Order,
} from "../control/messages.ts";
import type { VmObserved } from "../node/vm-view.ts";
import { connectMtls } from "../tls/mtls.ts";
import { CertificateRenewal, faultWords } from "./certificate-renewal.ts";
import { CoordinatorLink, type Told, type Welcome } from "./coordinator-link.ts";
import { Coordinators } from "./coordinators.ts";
import { type Membership, type NodeState, rejoinHint } from "./node-state.ts";
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

export interface AgentDeps extends Omit<PartsDeps, "onChange" | "laneHost"> {
  /** Unix time in ms, by which certificates end; replaced in tests. */
  readonly now?: () => number;
}

const RETRY_MS_MIN = 500;
const RETRY_MS_MAX = 5000;
/** States change without a word, too: they are looked at this often. */
const LOOK_MS = 200;
/** At the end: how long the coordinator has to hear the last reports. */
const GOODBYE_MS = 2000;

export class Agent {
  private readonly state: NodeState;
  private readonly membership: Membership;
  private readonly coordinators: Coordinators;
  private readonly options: AgentOptions;
  private readonly deps: PartsDeps;
  private readonly parts = new Map<string, { record: PartRecord; lead: LeadPart | undefined }>();
  private readonly stopped = Promise.withResolvers<void>();
  private readonly renewal: CertificateRenewal;
  /** That which the coordinator has for ours; `links` may hold older ones until they are idle. */
  private link: CoordinatorLink | undefined;
  private readonly links = new Set<CoordinatorLink>();
  /** Resolves when another connection is to take the place of this one. */
  private move = Promise.withResolvers<void>();
  private laneHost = "";
  /** Orders that are not answered yet. */
  private obeying = 0;
  private stopping = false;
  private over = false;

  constructor(state: NodeState, options: AgentOptions, deps: AgentDeps) {
    this.state = state;
    this.membership = state.membership();
    const { coordinatorHost: host, agentPort: port, coordinators = [] } = this.membership;
    this.coordinators = new Coordinators({ host, port }, coordinators);
    this.options = options;
    this.laneHost = options.laneHost ?? "";
    this.deps = {
      ...deps,
      laneHost: () => this.laneHost,
      onChange: (record) => this.tellNews(record),
    };
    this.renewal = new CertificateRenewal({
      ...{ state, say: deps.say, now: deps.now ?? Date.now, chance: Math.random },
      connected: () => this.link !== undefined,
      send: (message) => this.tell(message),
      onRenewed: () => this.move.resolve(),
    });
  }

  /** Until `stop`. */
  async run(): Promise<void> {
    const looking = setInterval(() => {
      for (const { record } of this.parts.values()) this.tellNews(record);
      this.renewal.look();
    }, LOOK_MS);
    let pause = RETRY_MS_MIN;
    const told = new Set<string>();
    while (!this.over) {
      const why = await this.stay();
      if (this.over) break;
      if (why === "moves") continue;
      // A connection that was welcomed begins a new count.
      if (why.welcomed) {
        pause = RETRY_MS_MIN;
        told.clear();
      }
      if (!told.has(why.words)) this.deps.say(`coordinator: ${why.words}; trying again`);
      if (!why.welcomed) told.add(why.words);
      if (this.coordinators.next()) continue;
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
    for (const link of this.links) link.close(GOODBYE_MS);
  }

  /** When this host's certificate ends; undefined before the first connection. */
  get certificateExpires(): Date | undefined {
    return this.renewal.expires;
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

  /** One connection, from its making to its end, or until another is to take its place. */
  private async stay(): Promise<"moves" | { welcomed: boolean; words: string }> {
    const { host, port } = this.coordinators.current;
    this.move = Promise.withResolvers();
    try {
      const credentials = this.state.credentials();
      this.renewal.use(credentials);
      const connection = await connectMtls({ host, port, credentials });
      if (this.over) {
        connection.socket.destroy();
        return { welcomed: false, words: "" };
      }
      const link: CoordinatorLink = new CoordinatorLink(connection, {
        onWelcome: (link, welcome) => this.welcomed(link, welcome),
        onTold: (link, message) => this.take(message, link),
        onEnd: (link) => {
          this.links.delete(link);
          if (this.link === link) this.link = undefined;
        },
      });
      this.links.add(link);
      this.laneHost = this.options.laneHost ?? link.localHost;
      this.greet(link);
      const words = await Promise.race([link.ended, this.move.promise]);
      return words === undefined ? "moves" : { welcomed: link.welcomed, words };
    } catch (error) {
      return { welcomed: false, words: `${host}:${port}: ${this.whyNot(error)}` };
    }
  }

  private whyNot(error: unknown): string {
    if (!(error instanceof SsihvError)) return error instanceof Error ? error.message : "?";
    if (error.code !== "peer_refused") return faultWords(error);
    const hint = `was the CA replaced while this host was off? Then ${rejoinHint(this.membership)}`;
    return faultWords({ message: error.message, hint });
  }

  private welcomed(link: CoordinatorLink, { trust, coordinators }: Welcome): void {
    this.link = link;
    this.coordinators.welcomed();
    if (trust !== undefined) this.renewal.onTrust(trust);
    if (coordinators !== undefined) this.learn(coordinators);
    if (!link.moves) this.deps.say("coordinator: connected");
    // What is new since the greeting. On a link that moves: all, since what was told on the older
    // one meanwhile may not have been heard there.
    for (const { record } of this.parts.values()) {
      if (link.moves) this.tell({ type: "part", part: record.tell() });
      else this.tellNews(record);
    }
  }

  private learn(coordinators: NonNullable<Welcome["coordinators"]>): void {
    if (!this.coordinators.learn(coordinators)) return;
    try {
      this.state.keepCoordinators(this.coordinators.all);
    } catch (error) {
      // It knows them until it ends.
      this.deps.say(`coordinators: not kept: ${error instanceof Error ? error.message : "?"}`);
    }
  }

  private greet(link: CoordinatorLink): void {
    const { build, capacity, check, runsVcpus } = this.options;
    link.moves = this.link !== undefined;
    link.send({
      type: "hello",
      protocol: AGENT_PROTOCOL,
      moves: link.moves,
      ...{ build, capacity, check, runsVcpus },
      laneHost: this.laneHost,
      // An older connection has yet to hear its news, should this one come to nothing.
      parts: [...this.parts.values()].map(({ record }) => {
        return link.moves ? record.report() : record.tell();
      }),
    });
  }

  private take(message: Told, link: CoordinatorLink): void {
    switch (message.type) {
      case "trust":
        return this.renewal.onTrust(message.trust);
      case "coordinators":
        return this.learn(message.coordinators);
      case "renewed":
      case "not_renewed":
        return this.renewal.onAnswer(message);
      case "forget":
        if (this.parts.get(message.run)?.record.isOver) this.parts.delete(message.run);
        return;
      case "console_close":
        return link.closeConsole(message.stream);
      default:
        return void this.obey(message, link);
    }
  }

  /** The reply goes where the order came from: on a later connection its id is another order's. */
  private async obey(order: Order, link: CoordinatorLink): Promise<void> {
    const { id } = order;
    const reply = (message: FromAgent) => link.send(message);
    this.obeying += 1;
    try {
      const answer = await this.carryOut(order, link);
      reply({ type: "reply", id, ...(answer !== undefined && { answer }) });
    } catch (error) {
      reply({ type: "reply", id, fault: faultOf(error) });
    } finally {
      this.obeying -= 1;
    }
  }

  /** What it answers, where it is a question. */
  private async carryOut(order: Order, link: CoordinatorLink): Promise<unknown> {
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
        return this.openConsole(order.run, order.stream, link);
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

  private openConsole(run: string, id: number, link: CoordinatorLink): void {
    link.openConsole(run, id, this.lead(run).history);
    if (this.part(run).record.isOver) link.endConsoles(run);
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
    if (record.isOver) for (const link of this.links) link.endConsoles(record.run);
    if (this.link === undefined || !this.parts.has(record.run)) return;
    const part = record.news();
    if (part !== undefined) this.tell({ type: "part", part });
  }

  private tell(message: FromAgent): void {
    this.link?.send(message);
  }
}
