// The hosts of the cluster: which have joined, which agents are connected, what their hosts have,
// and which are silent. A silent host is reported, never acted upon: what its engines do is theirs.

import { SsihvError } from "../src/base/errors.ts";
import type { Capacity, Check, Part } from "../src/control/messages.ts";
import type { MtlsConnection } from "../src/tls/mtls.ts";
import { AgentSession } from "./agent-session.ts";
import type { Events } from "./events.ts";
import { put, remove, type TypedStore } from "./records.ts";

export interface HostsOptions {
  readonly heartbeatMs: number;
  /** A host that is not heard for this long is silent. */
  readonly silenceMs: number;
}

/** What the VMs want to know of hosts. */
export interface HostsWatcher {
  onHostUp(session: AgentSession): Promise<void>;
  onHostDown(host: string): void;
  onPart(session: AgentSession, part: Part): void;
}

export interface HostView {
  readonly name: string;
  readonly state: "up" | "silent";
  /** Since when it has been so; null: never connected since the coordinator started. */
  readonly since: string | null;
  /** Why it is silent. */
  readonly why: string | null;
  readonly joinedAt: string;
  readonly capacity: Capacity | null;
  readonly check: Check | null;
  readonly runsVcpus: boolean;
  readonly build: string | null;
  readonly laneHost: string | null;
}

export class Hosts {
  watcher: HostsWatcher | undefined;
  private readonly store: TypedStore;
  private readonly events: Events;
  private readonly options: HostsOptions;
  private readonly sessions = new Map<string, AgentSession>();
  private readonly changes = new Map<string, { at: string; why: string | null }>();

  constructor(store: TypedStore, events: Events, options: HostsOptions) {
    this.store = store;
    this.events = events;
    this.options = options;
  }

  /** An agent's connection: its certificate has named it. */
  attach({ peer, socket }: MtlsConnection): void {
    new AgentSession(peer.name, socket, this.options, {
      admit: (session) => this.admit(session),
      onUp: (session) => this.onUp(session),
      onPart: (session, part) => {
        if (this.sessions.get(session.host) === session) this.watcher?.onPart(session, part);
      },
      onEnd: (session, why) => this.onEnd(session, why),
    });
  }

  session(host: string): AgentSession | undefined {
    return this.sessions.get(host);
  }

  /** The agent of a host; throws `host_unknown` or `host_silent`. */
  async connected(host: string): Promise<AgentSession> {
    const session = this.sessions.get(host);
    if (session !== undefined) return session;
    await this.known(host);
    const why = this.changes.get(host)?.why ?? "its agent has not connected";
    throw new SsihvError("host_silent", `host ${host} is silent: ${why}`, {
      hint: "is ssihv node running there, and the network between?",
    });
  }

  async list(): Promise<HostView[]> {
    const records = await this.store.list("host");
    return records.map(({ id, value }): HostView => {
      const session = this.sessions.get(id);
      const change = this.changes.get(id);
      return {
        name: id,
        state: session === undefined ? "silent" : "up",
        since: change?.at ?? null,
        why: session === undefined ? (change?.why ?? "its agent has not connected") : null,
        joinedAt: value.joinedAt,
        capacity: session?.capacity ?? value.capacity ?? null,
        check: session?.check ?? null,
        runsVcpus: session?.runsVcpus ?? false,
        build: session?.build ?? null,
        laneHost: session?.laneHost ?? null,
      };
    });
  }

  async show(name: string): Promise<HostView> {
    await this.known(name);
    const found = (await this.list()).find((host) => host.name === name);
    if (found === undefined) throw unknown(name);
    return found;
  }

  /** Its certificate lets it in no more. What runs there is not touched. */
  async remove(name: string): Promise<void> {
    await this.known(name);
    await this.store.apply(remove("host", name));
    this.sessions.get(name)?.end("the host was removed from the cluster");
    this.changes.delete(name);
    this.events.tell("host_removed", { host: name });
  }

  close(): void {
    for (const session of [...this.sessions.values()]) session.end("the coordinator ends");
  }

  private async known(name: string): Promise<void> {
    if ((await this.store.get("host", name)) === undefined) throw unknown(name);
  }

  private async admit({ host, capacity }: AgentSession): Promise<void> {
    const record = await this.store.get("host", host);
    if (record === undefined) throw unknown(host);
    await this.store.apply(put("host", host, { ...record.value, capacity }));
  }

  private async onUp(session: AgentSession): Promise<void> {
    const { host } = session;
    // An agent that was restarted may be here before its old connection is known to be dead.
    const before = this.sessions.get(host);
    this.sessions.set(host, session);
    before?.end("its agent connected again");
    this.changes.set(host, { at: new Date().toISOString(), why: null });
    this.events.tell("host_up", { host });
    await this.watcher?.onHostUp(session);
  }

  private onEnd(session: AgentSession, why: string): void {
    const { host } = session;
    if (this.sessions.get(host) !== session) return;
    this.sessions.delete(host);
    this.changes.set(host, { at: new Date().toISOString(), why });
    this.events.tell("host_silent", { host, text: why });
    this.watcher?.onHostDown(host);
  }
}

function unknown(name: string): SsihvError {
  return new SsihvError("host_unknown", `host ${name} is not of this cluster`, {
    hint: "ssihv cluster status lists its hosts; ssihv cluster token lets one join",
  });
}
