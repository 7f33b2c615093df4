// The VMs of the cluster: what they are to be (on record) and what they are (as agents tell). The
// coordinator orders starts and stops and keeps how they ended; while a VM runs it is not needed.
// Invariants: at most one run of a VM; a host is promised before its engine is ordered, and freed
// when the end is on record; a run that its lead's agent does not know has ended; what is not known
// is called unknown; a part of a run that is on no record is told to stop.

import { randomBytes } from "node:crypto";

import { messageOf, SsihvError } from "../src/base/errors.ts";
import type { AgentQuestion, Capacity, Ended, Part } from "../src/control/messages.ts";
import { type Answers, parseAnswer } from "../src/control/vm-answers.ts";
import type { VmSpec } from "../src/control/vm-spec.ts";
import type { AgentSession } from "./agent-session.ts";
import type { Vm } from "./api-schemas.ts";
import type { Events } from "./events.ts";
import type { Hosts, HostsWatcher } from "./hosts.ts";
import { demandsOf, type HostRoom, placeVm } from "./placement.ts";
import { put, type RunRecord, remove, type TypedStore, type VmRecord } from "./records.ts";

export interface VmsOptions {
  /** First of the ports that VMs use on their hosts: PORTS_PER_VM for each. */
  readonly portBase: number;
}

/** The lead's port and one for each node's lanes, rounded up. */
export const PORTS_PER_VM = 16;
const SLOTS_MAX = 1024;

export class Vms implements HostsWatcher {
  private readonly store: TypedStore;
  private readonly hosts: Hosts;
  private readonly events: Events;
  private readonly options: VmsOptions;
  /** Runs whose orders are under way. */
  private readonly ordering = new Set<string>();
  /** One change of VMs at a time: placement looks at all of them. */
  private turn: Promise<unknown> = Promise.resolve();

  constructor(store: TypedStore, hosts: Hosts, events: Events, options: VmsOptions) {
    this.store = store;
    this.hosts = hosts;
    this.events = events;
    this.options = options;
  }

  async list(): Promise<Vm[]> {
    return (await this.store.list("vm")).map(({ value }) => this.view(value));
  }

  async show(name: string): Promise<Vm> {
    return this.view(await this.known(name));
  }

  create(spec: VmSpec): Promise<Vm> {
    return this.inTurn(async () => {
      const all = await this.store.list("vm");
      if (all.some(({ id }) => id === spec.name)) {
        throw new SsihvError("name_taken", `there is a VM ${spec.name} already`, {
          hint: `choose another name, or ssihv vm destroy ${spec.name}`,
        });
      }
      // Whether its memory adds up is known now; whether hosts have room for it, when it starts.
      demandsOf(spec);
      checkMatrices(spec);
      const slots = new Set(all.map(({ value }) => value.slot));
      const slot = Array.from({ length: SLOTS_MAX }, (_, i) => i).find((i) => !slots.has(i));
      if (slot === undefined) {
        throw new SsihvError("placement_refused", `${SLOTS_MAX} VMs: no ports are left`);
      }
      const record: VmRecord = { spec, slot, createdAt: now() };
      if (!(await this.store.apply(put("vm", spec.name, record, 0)))) throw meanwhile(spec.name);
      this.events.tell("vm_created", { vm: spec.name });
      return this.view(record);
    });
  }

  /** What a VM that does not run is to be from now on; its ports and its last end stay. */
  change(name: string, spec: VmSpec): Promise<Vm> {
    return this.inTurn(async () => {
      const stored = await this.store.get("vm", name);
      if (stored === undefined) throw unknown(name);
      if (spec.name !== name) {
        throw new SsihvError("name_taken", `VM ${name} cannot be called ${spec.name}`, {
          hint: "destroy it, and create one of that name",
        });
      }
      if (stored.value.run !== undefined) {
        const state = this.view(stored.value).state;
        throw new SsihvError("vm_busy", `VM ${name} is ${state}: it cannot be changed`, {
          hint: `ssihv vm stop ${name} first`,
        });
      }
      demandsOf(spec);
      checkMatrices(spec);
      const record: VmRecord = { ...stored.value, spec };
      if (!(await this.store.apply(put("vm", name, record, stored.revision)))) {
        throw meanwhile(name);
      }
      this.events.tell("vm_changed", { vm: name });
      return this.view(record);
    });
  }

  /** Returns when all its hosts have accepted; it runs when its state says so. */
  async start(name: string): Promise<Vm> {
    const { record, run } = await this.inTurn(() => this.promise(name));
    try {
      await this.orderAll(record, run);
    } catch (error) {
      await this.giveUp(name, run, error);
      throw error;
    } finally {
      this.ordering.delete(run.id);
    }
    const lead = this.hosts.session(leadOf(run));
    if (lead !== undefined) await this.settleRestarted(name, run, lead);
    return await this.show(name);
  }

  /** Returns when its lead has accepted. A VM that does not run is stopped already. */
  async stop(name: string): Promise<Vm> {
    const record = await this.known(name);
    const { run } = record;
    if (run !== undefined) {
      const session = await this.hosts.connected(leadOf(run));
      await session.order({ type: "stop", run: run.id });
    }
    return await this.show(name);
  }

  /** `force`: also one that runs, or of which nothing is known. */
  destroy(name: string, force: boolean): Promise<void> {
    return this.inTurn(async () => {
      const { run } = await this.known(name);
      if (run !== undefined && !force) {
        throw new SsihvError("vm_busy", `VM ${name} is not stopped`, {
          hint: `ssihv vm stop ${name} first, or destroy it with --force`,
        });
      }
      await this.store.apply(remove("vm", name));
      this.events.tell("vm_destroyed", { vm: name });
      // Its parts are on no record now: each is told to stop, those of silent hosts when they come.
      for (const { host } of run?.places ?? []) {
        const session = this.hosts.session(host);
        const part = run === undefined ? undefined : session?.parts.get(run.id);
        if (session !== undefined && part !== undefined) await this.stray(session, part);
      }
    });
  }

  /** The agent that has the VM's console, and the run. */
  async console(name: string): Promise<{ session: AgentSession; run: string }> {
    const { run } = await this.known(name);
    if (run === undefined) throw notRunning(name, "it has no console");
    return { session: await this.hosts.connected(leadOf(run)), run: run.id };
  }

  /** Of a VM that runs: what its lead's agent answers. */
  async ask<Op extends AgentQuestion["op"]>(
    name: string,
    question: Extract<AgentQuestion, { op: Op }>,
  ): Promise<Answers[Op]> {
    const { run } = await this.known(name);
    if (run === undefined) throw notRunning(name, "nothing of it can be looked at");
    const session = await this.hosts.connected(leadOf(run));
    const told = await session.order({ type: "ask", run: run.id, question });
    const answer = parseAnswer<Op>(question.op, told);
    if (answer !== undefined) return answer;
    const message = `the agent of host ${session.host} answered what this build does not know`;
    throw new SsihvError("peer_refused", message, { hint: "run the same ssihv on all hosts" });
  }

  /** What VMs were promised on a host. */
  async usedOn(host: string): Promise<Capacity> {
    return usedBy(await this.store.list("vm"), host);
  }

  /** A host that is removed has no part in anything: its VMs are over, as far as we can say. */
  async endRunsOf(host: string): Promise<void> {
    for (const { value } of await this.store.list("vm")) {
      if (value.run === undefined || leadOf(value.run) !== host) continue;
      const text = `host ${host}, which led it, was removed from the cluster`;
      await this.finish(value.spec.name, value.run.id, lost(text));
    }
  }

  async onHostUp(session: AgentSession): Promise<void> {
    for (const part of [...session.parts.values()]) await this.settle(session, part);
    for (const { value } of await this.store.list("vm")) {
      const { run, spec } = value;
      if (run === undefined || leadOf(run) !== session.host) continue;
      // Its orders are under way: whoever gives them looks again when they are.
      if (!this.ordering.has(run.id)) await this.settleRestarted(spec.name, run, session);
    }
  }

  /** A run that its lead's agent does not know has ended. */
  private async settleRestarted(name: string, run: RunRecord, lead: AgentSession): Promise<void> {
    if (lead.parts.has(run.id) || lead.hasTakenOver) return;
    const text = `the agent of host ${lead.host} does not run it any more: was it restarted?`;
    await this.finish(name, run.id, lost(text));
  }

  onHostDown(host: string): void {
    void this.looseLeads(host).catch((error: unknown) => {
      const text = messageOf(error);
      this.events.tell("host_notice", { host, text });
    });
  }

  private async looseLeads(host: string): Promise<void> {
    for (const { id, value } of await this.store.list("vm")) {
      const { run } = value;
      if (run === undefined || leadOf(run) !== host) continue;
      this.events.tell("vm_state", { vm: id, text: "unknown" });
      for (const place of run.places) {
        const part = this.hosts.session(place.host)?.parts.get(run.id);
        if (part !== undefined) await this.settleWithoutLead(id, run, place.host, part);
      }
    }
  }

  /**
   * Its lead's agent is silent, but a node with vCPUs has ended: no engine of a VM goes on without
   * one, so it has ended, whatever became of that host.
   */
  private async settleWithoutLead(name: string, run: RunRecord, host: string, part: Part) {
    const place = run.places.find((each) => each.host === host);
    if (place === undefined || place.memoryOnly || part.ended === undefined) return;
    if (this.hosts.session(leadOf(run)) !== undefined) return;
    const reason = part.ended.kind === "failed" ? part.ended.reason : "vcpu_lost";
    const text = `host ${host} tells: ${part.ended.text}`;
    await this.finish(name, run.id, { kind: "failed", reason, text });
  }

  onPart(session: AgentSession, part: Part): void {
    void this.settle(session, part).catch((error: unknown) => {
      session.end(messageOf(error));
    });
  }

  /** Brings the record and what an agent tells together. */
  private async settle(session: AgentSession, part: Part): Promise<void> {
    const run = (await this.store.get("vm", part.vm))?.value.run;
    if (run?.id !== part.run) return await this.stray(session, part);
    const isLead = part.lead && leadOf(run) === session.host;
    if (!isLead) return await this.settleWithoutLead(part.vm, run, session.host, part);
    if (part.state !== "ended") {
      this.events.tell("vm_state", { vm: part.vm, text: part.state });
      return;
    }
    await this.finish(part.vm, part.run, part.ended ?? lost("it ended without a word"));
  }

  /** A part of a run that is not on record. */
  private async stray(session: AgentSession, part: Part): Promise<void> {
    if (part.state === "ended") return session.forget(part.run);
    try {
      await session.order({ type: "stop", run: part.run });
    } catch (error) {
      // A host that went away meanwhile hears it when it comes again.
      const text = messageOf(error);
      this.events.tell("host_notice", { host: session.host, text });
    }
  }

  private async finish(name: string, runId: string, ended: Ended): Promise<void> {
    const stored = await this.store.get("vm", name);
    if (stored === undefined || stored.value.run?.id !== runId) return;
    const { run, ...rest } = stored.value;
    const record: VmRecord = { ...rest, last: { ...ended, at: now() } };
    if (!(await this.store.apply(put("vm", name, record, stored.revision)))) {
      return await this.finish(name, runId, ended);
    }
    this.events.tell("vm_ended", { vm: name, text: ended.text });
    for (const { host } of run.places) {
      const session = this.hosts.session(host);
      const part = session?.parts.get(runId);
      if (session !== undefined && part !== undefined) await this.stray(session, part);
    }
  }

  /** Puts the run on record: from here on its hosts are promised. */
  private async promise(name: string): Promise<{ record: VmRecord; run: RunRecord }> {
    const stored = await this.store.get("vm", name);
    if (stored === undefined) throw unknown(name);
    if (stored.value.run !== undefined) {
      throw new SsihvError("vm_busy", `VM ${name} is ${this.view(stored.value).state}`, {
        hint: `ssihv vm show ${name} tells more`,
      });
    }
    const places = placeVm(stored.value.spec, await this.rooms());
    const run = { id: randomBytes(16).toString("hex"), since: now(), places };
    const record = { ...stored.value, run };
    this.ordering.add(run.id);
    try {
      if (!(await this.store.apply(put("vm", name, record, stored.revision)))) {
        throw meanwhile(name);
      }
    } catch (error) {
      // It is not on record, or nobody knows whether it is: nobody gives its orders.
      this.ordering.delete(run.id);
      throw error;
    }
    this.events.tell("vm_state", { vm: name, text: "starting" });
    return { record, run };
  }

  private async orderAll({ spec, slot }: VmRecord, run: RunRecord): Promise<void> {
    const [lead, ...others] = await Promise.all(
      run.places.map(async (place) => ({ place, session: await this.hosts.connected(place.host) })),
    );
    if (lead === undefined) return;
    // Made for this run, kept nowhere, and crosses under mTLS.
    const key = randomBytes(32).toString("hex");
    const port = this.options.portBase + slot * PORTS_PER_VM;
    const head = { run: run.id, key };
    await lead.session.order({
      ...{ ...head, type: "lead", spec },
      ...{ listenHost: lead.session.laneHost, listenPort: port },
    });
    await Promise.all(
      others.map(({ place: { node, memoryOnly }, session }) =>
        session.order({
          ...{ ...head, type: "join", vm: spec.name, node, memoryOnly },
          ...{ leadHost: lead.session.laneHost, leadPort: port },
        }),
      ),
    );
  }

  /** A host did not accept: whoever did is told to stop, and the reason is on record. */
  private async giveUp(name: string, run: RunRecord, error: unknown): Promise<void> {
    const reason = error instanceof SsihvError ? error.code : "defect_found";
    const text = messageOf(error);
    await this.finish(name, run.id, { kind: "failed", reason, text });
  }

  private view(record: VmRecord): Vm {
    const { spec, run, last, createdAt } = record;
    return {
      name: spec.name,
      state: this.stateOf(record),
      spec,
      createdAt,
      since: run?.since ?? null,
      places: [...(run?.places ?? [])],
      last: last ?? null,
    };
  }

  private stateOf({ run, last }: VmRecord): Vm["state"] {
    if (run === undefined) return last?.kind === "failed" ? "failed" : "stopped";
    const session = this.hosts.session(leadOf(run));
    const state = session?.parts.get(run.id)?.state;
    if (state !== undefined) return state === "ended" ? "stopping" : state;
    return this.ordering.has(run.id) ? "starting" : "unknown";
  }

  private async rooms(): Promise<HostRoom[]> {
    const vms = await this.store.list("vm");
    return (await this.hosts.list()).map(({ name, state, why, capacity, check, runsVcpus }) => ({
      name,
      ...(state === "silent" && { unusable: `it is silent: ${why}` }),
      capacity: capacity ?? NOTHING,
      used: usedBy(vms, name),
      runsVcpus,
      problems: check?.problems ?? [],
    }));
  }

  private async known(name: string): Promise<VmRecord> {
    const stored = await this.store.get("vm", name);
    if (stored === undefined) throw unknown(name);
    return stored.value;
  }

  private inTurn<T>(act: () => Promise<T>): Promise<T> {
    const done = this.turn.then(act);
    this.turn = done.catch(() => undefined);
    return done;
  }
}

const NOTHING: Capacity = { cpus: 0, memoryBytes: 0 };

function usedBy(vms: readonly { readonly value: VmRecord }[], host: string): Capacity {
  const places = vms.flatMap(({ value }) => value.run?.places ?? []);
  return places
    .filter((place) => place.host === host)
    .reduce(
      (sum, { cpus, memoryBytes }) => ({
        cpus: sum.cpus + cpus,
        memoryBytes: sum.memoryBytes + memoryBytes,
      }),
      NOTHING,
    );
}

function leadOf(run: RunRecord): string {
  return run.places[0]?.host ?? "";
}

function lost(text: string): Ended {
  return { kind: "failed", reason: "agent_lost", text };
}

function now(): string {
  return new Date().toISOString();
}

function checkMatrices({ nodes, memoryLatencyNs, memoryBandwidthMBps }: VmSpec): void {
  const count = nodes.length;
  for (const rows of [memoryLatencyNs, memoryBandwidthMBps]) {
    if (rows === undefined) continue;
    if (rows.length === count && rows.every((row) => row.length === count)) continue;
    const message = `costs of memory: ${count} rows of ${count} values, one for each node`;
    throw new SsihvError("topology_invalid", message);
  }
}

function notRunning(name: string, why: string): SsihvError {
  return new SsihvError("vm_busy", `VM ${name} does not run: ${why}`, {
    hint: `ssihv vm start ${name}`,
  });
}

/** A change whose answer was lost has been carried out after all. */
function meanwhile(name: string): SsihvError {
  return new SsihvError("vm_busy", `VM ${name} was changed in this moment`, {
    hint: `ssihv vm show ${name} tells how it is now; ask again`,
  });
}

function unknown(name: string): SsihvError {
  return new SsihvError("vm_unknown", `there is no VM ${name}`, {
    hint: "ssihv vm list shows those there are",
  });
}
