// Which host gives which node its vCPUs and its memory. Pure. Each node of a VM goes to a host of
// its own; hosts are not promised more than they have. The tightest host that fits is taken, so
// that large rooms stay for large nodes. A refusal names every host and what it is short of.

import { SsihvError } from "../src/base/errors.ts";
import type { Capacity } from "../src/control/messages.ts";
import type { VmSpec } from "../src/control/vm-spec.ts";
import { checkBalloon, givenBytes, planBudget } from "../src/vmm/memory-budget.ts";
import { layoutMemory } from "../src/vmm/memory-map.ts";
import type { Place } from "./records.ts";

export interface HostRoom {
  readonly name: string;
  /** Why nothing can be placed there at all. */
  readonly unusable?: string;
  readonly capacity: Capacity;
  /** By VMs that are placed there. */
  readonly used: Capacity;
  /** vCPUs can run there. */
  readonly runsVcpus: boolean;
  /** What it lacks for that. */
  readonly problems?: readonly string[];
}

interface Demand {
  readonly node: number;
  readonly cpus: number;
  readonly memoryBytes: number;
  readonly memoryOnly: boolean;
  readonly host?: string;
}

/** An engine's own memory and that of its executable (README.md, measured). */
const ENGINE_BYTES = 64 << 20;
/** Page states: this much for each page of 4096 bytes that the guest sees (zig/abi.zig). */
const STATE_BYTES = 44;
const PAGE_BYTES = 4096;
/** Placements tried before it is given up; eight nodes on eight hosts need far fewer. */
const STEPS_MAX = 100_000;

/** Throws `memory_insufficient`, `topology_invalid`: its parts do not make a VM on any hosts. */
export function demandsOf(spec: VmSpec): Demand[] {
  const { memoryNodes = 0, nodeMemoryBytes, memoryNodeMemoryBytes, cacheBytes, copies = 1 } = spec;
  const guest = spec.nodes.reduce((sum, node) => sum + node.memoryBytes, 0);
  layoutMemory(
    spec.nodes.map(({ cpus, memoryBytes }, id) => {
      return { id, vcpus: cpus, memoryBytes: BigInt(memoryBytes) };
    }),
  );
  checkBalloon(spec.balloonBytes ?? 0, spec.nodes, "balloon: ");
  const budget = planBudget({
    homes: spec.nodes.map(({ memoryBytes, cpus }) => ({ bytes: BigInt(memoryBytes), vcpus: cpus })),
    memoryNodes,
    copies,
    ...(nodeMemoryBytes !== undefined && { nodeBytes: BigInt(nodeMemoryBytes) }),
    ...(memoryNodeMemoryBytes !== undefined && { memoryNodeBytes: BigInt(memoryNodeMemoryBytes) }),
    ...(cacheBytes !== undefined && { cacheBytes: BigInt(cacheBytes) }),
  });
  const states = Math.ceil(guest / PAGE_BYTES) * STATE_BYTES;
  const alone = spec.nodes.length + memoryNodes === 1;
  const compute = spec.nodes.map(({ cpus, memoryBytes, host }, node): Demand => {
    const { residentBytes, cacheBytes } = budget.compute[node] ?? {};
    const sizes = {
      ...{ id: node, vcpus: cpus, memoryBytes },
      ...(!alone && { residentBytes: Number(residentBytes), cacheBytes: Number(cacheBytes) }),
    };
    const own = givenBytes(sizes) + states + ENGINE_BYTES;
    const pinned = host === undefined ? {} : { host };
    return { node, cpus, memoryBytes: own, memoryOnly: false, ...pinned };
  });
  const lending = budget.memory.map((bytes, i): Demand => {
    const memoryBytes = Number(bytes) + ENGINE_BYTES;
    return { node: spec.nodes.length + i, cpus: 0, memoryBytes, memoryOnly: true };
  });
  return [...compute, ...lending];
}

/** Places in the order of the nodes. Throws `placement_refused`. */
export function placeVm(spec: VmSpec, hosts: readonly HostRoom[]): Place[] {
  const demands = demandsOf(spec);
  // The hardest to place first: those that name a host, then the largest.
  const order = demands.toSorted((a, b) => {
    const pinned = Number(b.host !== undefined) - Number(a.host !== undefined);
    return pinned !== 0 ? pinned : b.memoryBytes - a.memoryBytes || b.cpus - a.cpus;
  });
  const taken = new Map<string, number>();
  const search = new Search(order, hosts, taken);
  if (search.from(0)) {
    const hostOf = new Map([...taken].map(([host, node]) => [node, host]));
    return demands.map(({ node, cpus, memoryBytes, memoryOnly }) => {
      return { node, host: hostOf.get(node) ?? "", cpus, memoryBytes, memoryOnly };
    });
  }
  throw refusal(spec, search.stuck, hosts, search.stuckTaken);
}

class Search {
  /** The first node that found no host, with those that had one then: what a refusal tells of. */
  stuck: Demand | undefined;
  stuckTaken: ReadonlyMap<string, number> = new Map();
  private readonly order: readonly Demand[];
  private readonly hosts: readonly HostRoom[];
  private readonly taken: Map<string, number>;
  private steps = 0;

  constructor(order: readonly Demand[], hosts: readonly HostRoom[], taken: Map<string, number>) {
    this.order = order;
    this.hosts = hosts;
    this.taken = taken;
  }

  from(index: number): boolean {
    const demand = this.order[index];
    if (demand === undefined) return true;
    const fitting = this.hosts
      .filter((host) => shortage(demand, host, this.taken) === undefined)
      .toSorted((a, b) => freeBytes(a) - freeBytes(b));
    if (fitting.length === 0 && this.stuck === undefined) {
      this.stuck = demand;
      this.stuckTaken = new Map(this.taken);
    }
    for (const { name } of fitting) {
      if (++this.steps > STEPS_MAX) return false;
      this.taken.set(name, demand.node);
      if (this.from(index + 1)) return true;
      this.taken.delete(name);
    }
    return false;
  }
}

function freeBytes({ capacity, used }: HostRoom): number {
  return Math.max(0, capacity.memoryBytes - used.memoryBytes);
}

function mib(bytes: number): string {
  return `${Math.ceil(bytes / 2 ** 20)} MiB`;
}

/** Why the node cannot be on the host; undefined when it can. */
function shortage(
  demand: Demand,
  host: HostRoom,
  taken: ReadonlyMap<string, number>,
): string | undefined {
  if (demand.host !== undefined && demand.host !== host.name) {
    return `the node is to be on ${demand.host}`;
  }
  if (host.unusable !== undefined) return host.unusable;
  const other = taken.get(host.name);
  if (other !== undefined) return `it has node ${other} of this VM`;
  if (!demand.memoryOnly && !host.runsVcpus) {
    const why = (host.problems ?? []).join("; ");
    return `it cannot run vCPUs${why === "" ? "" : `: ${why}`}`;
  }
  const words: string[] = [];
  const cpus = host.capacity.cpus - host.used.cpus;
  if (cpus < demand.cpus) {
    words.push(`${demand.cpus - cpus} CPU(s) short (${cpus} free of ${host.capacity.cpus})`);
  }
  const free = freeBytes(host);
  if (free < demand.memoryBytes) {
    const of = `${mib(free)} free of ${mib(host.capacity.memoryBytes)}`;
    words.push(`${mib(demand.memoryBytes - free)} short (${of})`);
  }
  return words.length === 0 ? undefined : words.join(", ");
}

function refusal(
  spec: VmSpec,
  stuck: Demand | undefined,
  hosts: readonly HostRoom[],
  taken: ReadonlyMap<string, number>,
): SsihvError {
  const hint = "make the VM smaller, free a host, or let another host join: ssihv cluster token";
  if (hosts.length === 0 || stuck === undefined) {
    const message = `VM ${spec.name} has no place: no host has joined`;
    return new SsihvError("placement_refused", message, { hint });
  }
  const { node, cpus, memoryBytes, memoryOnly } = stuck;
  const what = memoryOnly
    ? `memory node ${node} (${mib(memoryBytes)})`
    : `node ${node} (${cpus} vCPU(s), ${mib(memoryBytes)} with page states and engine)`;
  const unknown =
    stuck.host !== undefined && !hosts.some(({ name }) => name === stuck.host)
      ? [`host ${stuck.host}: it has not joined`]
      : [];
  const lines = hosts
    .filter(({ name }) => stuck.host === undefined || name === stuck.host)
    .map((host) => `host ${host.name}: ${shortage(stuck, host, taken) ?? "it fits"}`);
  const message = `VM ${spec.name} has no place for ${what}\n${[...unknown, ...lines].join("\n")}`;
  return new SsihvError("placement_refused", message, { hint });
}
