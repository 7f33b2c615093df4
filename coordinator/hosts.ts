// The hosts of the cluster: which have joined, which agents are connected, what their hosts have,
// and which are silent. A silent host is reported, never acted upon: what its engines do is theirs.

import { SsihvError } from "../src/base/errors.ts";
import type { Capacity, Check, CoordinatorPlace, Part } from "../src/control/messages.ts";
import { dateText } from "../src/tls/credentials.ts";
import type { MtlsConnection } from "../src/tls/mtls.ts";
import type { Renewed } from "../src/tls/renewal.ts";
import { AgentSession } from "./agent-session.ts";
import type { Events } from "./events.ts";
import { type HostCertificates, isFromBefore } from "./host-certificates.ts";
import { type HostRecord, put, remove, type TypedStore } from "./records.ts";

export interface HostsOptions {
  readonly heartbeatMs: number;
  /** A host that is not heard for this long is silent. */
  readonly silenceMs: number;
  readonly certificates: HostCertificates;
  /** Where agents reach all coordinators; none: there is only this one. */
  coordinators(): readonly CoordinatorPlace[];
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
  /** With which its agent connected last. */
  readonly certificate: {
    readonly expiresAt: string;
    readonly issuer: string;
    /** Of the CA that signs now; else it is to be renewed before the old CA can go. */
    readonly current: boolean;
  } | null;
}

export class Hosts {
  watcher: HostsWatcher | undefined;
  private readonly store: TypedStore;
  private readonly events: Events;
  private readonly options: HostsOptions;
  private readonly sessions = new Map<string, AgentSession>();
  /** Whose agents have another connection. */
  private readonly leaving = new Set<AgentSession>();
  private readonly changes = new Map<string, { at: string; why: string | null }>();
  /** Hosts that are joining again: who has their name by now gets no new certificate. */
  private readonly rejoining = new Set<string>();
  private closed = false;

  constructor(store: TypedStore, events: Events, options: HostsOptions) {
    this.store = store;
    this.events = events;
    this.options = options;
  }

  /** An agent's connection: its certificate has named it. */
  attach({ certificate, socket }: MtlsConnection): void {
    new AgentSession(certificate, socket, this.options, {
      admit: (session) => this.admit(session),
      news: () => this.news(),
      renew: (session, request) => this.renew(session, request),
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
    const issuer = this.options.certificates.currentIssuer();
    return records.map(({ id, value }): HostView => {
      const session = this.sessions.get(id);
      const change = this.changes.get(id);
      const why = () => endedWords(value) ?? change?.why ?? "its agent has not connected";
      const { certificate } = value;
      return {
        name: id,
        state: session === undefined ? "silent" : "up",
        since: change?.at ?? null,
        why: session === undefined ? why() : null,
        joinedAt: value.joinedAt,
        capacity: session?.capacity ?? value.capacity ?? null,
        check: session?.check ?? null,
        runsVcpus: session?.runsVcpus ?? false,
        build: session?.build ?? null,
        laneHost: session?.laneHost ?? null,
        certificate: certificate
          ? { ...certificate, current: certificate.issuer === issuer }
          : null,
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
    this.endAll(name, "the host was removed from the cluster");
    this.changes.delete(name);
    this.events.tell("host_removed", { host: name });
  }

  /** A host has joined: an agent that has its name by an older certificate is another. */
  onJoined(name: string): void {
    this.endAll(name, "the host joined again");
    this.events.tell("host_joined", { host: name });
  }

  /** To all that are connected: the CAs to believe are others now. */
  tellTrust(): void {
    const trust = this.options.certificates.trust();
    if (trust === undefined) return;
    for (const session of this.sessions.values()) session.tellTrust(trust);
  }

  /** To all that are connected: where coordinators are, once that is another list. */
  tellCoordinators(): void {
    const coordinators = [...this.options.coordinators()];
    for (const session of this.sessions.values()) session.tellCoordinators(coordinators);
  }

  /** Until the returned function is called, no agent of the host gets a new certificate. */
  holdRenewals(host: string): () => void {
    this.rejoining.add(host);
    return () => this.rejoining.delete(host);
  }

  close(): void {
    this.closed = true;
    const why = "the coordinator ends";
    for (const session of [...this.sessions.values(), ...this.leaving]) session.end(why);
  }

  private news() {
    const trust = this.options.certificates.trust();
    const coordinators = [...this.options.coordinators()];
    return {
      ...(trust !== undefined && { trust }),
      ...(coordinators.length > 0 && { coordinators }),
    };
  }

  private endAll(name: string, why: string): void {
    for (const session of [...this.leaving]) if (session.host === name) session.end(why);
    this.sessions.get(name)?.end(why);
  }

  private async known(name: string): Promise<void> {
    if ((await this.store.get("host", name)) === undefined) throw unknown(name);
  }

  private async admit(session: AgentSession): Promise<void> {
    const { host, capacity, certificate } = session;
    const record = await this.store.get("host", host);
    if (record === undefined) throw unknown(host);
    if (isFromBefore(certificate, record.value.joinedAt)) {
      throw new SsihvError("peer_refused", `host ${host} has joined again since with another key`, {
        hint: `if this is the one: ssihv cluster token --rejoin ${host} lets it join once more`,
      });
    }
    const shown = { expiresAt: certificate.notAfter.toISOString(), issuer: certificate.issuer };
    const known = { ...record.value, capacity, certificate: shown };
    // The host may have been removed, or have joined again, in this moment.
    const admitted = await this.store.apply(put("host", host, known, record.revision));
    if (this.closed) throw new SsihvError("leader_elsewhere", "this coordinator has ended");
    if (!admitted) await this.admit(session);
  }

  private async onUp(session: AgentSession): Promise<void> {
    const { host } = session;
    const before = this.sessions.get(host);
    this.sessions.set(host, session);
    if (before !== undefined && session.moves) {
      session.takeOver(before);
      this.leaving.add(before);
      before.handOver();
      const text = `until ${dateText(session.certificate.notAfter)}`;
      this.events.tell("host_certificate", { host, text });
    } else {
      // An agent that was restarted may be here before its old connections are known to be dead.
      const why = "its agent connected again";
      before?.end(why);
      for (const each of [...this.leaving]) if (each.host === host) each.end(why);
      this.changes.set(host, { at: new Date().toISOString(), why: null });
      this.events.tell("host_up", { host });
    }
    await this.watcher?.onHostUp(session);
  }

  private async renew(session: AgentSession, request: string): Promise<Renewed> {
    const { host, certificate } = session;
    // What is removed is not connected any more; but its request may have been under way.
    await this.known(host);
    if (this.sessions.get(host) !== session) {
      throw new SsihvError("peer_refused", "its agent has another connection");
    }
    const renewed = await this.options.certificates.renew(certificate, request);
    // Also one that was begun before: its date may be of after.
    if (!this.rejoining.has(host) && this.sessions.get(host) === session) return renewed;
    throw new SsihvError("peer_refused", `host ${host} joins again`);
  }

  private onEnd(session: AgentSession, why: string): void {
    const { host } = session;
    this.leaving.delete(session);
    if (this.sessions.get(host) !== session) return;
    this.sessions.delete(host);
    this.changes.set(host, { at: new Date().toISOString(), why });
    this.events.tell("host_silent", { host, text: why });
    this.watcher?.onHostDown(host);
  }
}

/** Why a host is silent whose certificate has ended: it cannot come back with it. */
function endedWords({ certificate }: HostRecord): string | undefined {
  if (certificate === undefined) return undefined;
  const end = new Date(certificate.expiresAt);
  return end.getTime() > Date.now()
    ? undefined
    : `its certificate ended on ${dateText(end)}: let it rejoin`;
}

function unknown(name: string): SsihvError {
  return new SsihvError("host_unknown", `host ${name} is not of this cluster`, {
    hint: "ssihv cluster status lists its hosts; ssihv cluster token lets one join",
  });
}
