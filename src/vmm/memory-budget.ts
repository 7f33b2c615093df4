// How much memory every host gives to a VM and what for. A compute node keeps pages of its own
// part of guest RAM (it is their home) and a cache of other nodes' pages; memory nodes lend frames,
// in which a home keeps those of its pages that it has no room for.
// Invariant: every home page has a place: what a home may keep here, plus its frames divided by
// the copies each page gets, is at least its part of guest RAM. So nobody ever has to refuse a page
// that comes back. Page states come on top of all this: see stateBytes().

import { SsihvError } from "../base/errors.ts";
import { NODES_MAX } from "./topology.ts";

const KIB = 1024n;
const MIB = 1024n * KIB;
export const PAGE_BYTES = 4096n;

/** A default cache is that part of what the host gives, and at least CACHE_BYTES_USUAL. */
const CACHE_PART = 16n;
const CACHE_BYTES_USUAL = 64n * MIB;
/** Of what a user said a host gives, the least default is no more than that part. */
const CACHE_PART_MAX = 4n;
/** Below this a cache is no help to anyone. */
const CACHE_BYTES_MIN = 4n * MIB;
/** One instruction may hold 32 pages (zig/dsm/hold.zig pages_max), and every vCPU runs one. */
const VCPU_BYTES_MIN = 32n * PAGE_BYTES;
/** Of its own pages a node keeps at least so many: a kernel's text and data stay where they are. */
const RESIDENT_BYTES_MIN = 16n * MIB;

export interface MemoryWish {
  /** Each compute node's part of guest RAM, and its vCPUs. */
  readonly homes: readonly { readonly bytes: bigint; readonly vcpus: number }[];
  readonly memoryNodes: number;
  /** What each compute node's host gives; absent: what the plan needs. */
  readonly nodeBytes?: bigint;
  /** What each memory node lends; absent: what the plan needs. */
  readonly memoryNodeBytes?: bigint;
  /** Of a compute node's memory: room for other nodes' pages; absent: a sixteenth. */
  readonly cacheBytes?: bigint;
  /** Memory nodes that have each page which its home has not. */
  readonly copies: number;
}

export interface ComputeBudget {
  readonly homeBytes: bigint;
  /** Own pages here at a time; as much as homeBytes where all of them may stay. */
  readonly residentBytes: bigint;
  /** Other nodes' pages here at a time; as much as there are where all of them may come. */
  readonly cacheBytes: bigint;
}

export interface MemoryBudget {
  readonly compute: readonly ComputeBudget[];
  /** What each memory node lends. */
  readonly memory: readonly bigint[];
}

/** A node as plans name it: sizes as numbers, budgets only where something is short. */
export interface NodeSizes {
  readonly memoryBytes: number;
  readonly residentBytes?: number | undefined;
  readonly cacheBytes?: number | undefined;
  readonly lentBytes?: number | undefined;
}

export function isMemoryNode(node: NodeSizes | undefined): boolean {
  return node?.lentBytes !== undefined;
}

/** What a node's host needs for guest pages. */
export function givenBytes(node: NodeSizes): number {
  const { memoryBytes, residentBytes = memoryBytes, cacheBytes = 0, lentBytes = 0 } = node;
  return residentBytes + cacheBytes + lentBytes;
}

/** The budget that a plan's nodes tell. */
export function budgetOf(nodes: readonly NodeSizes[]): MemoryBudget {
  const total = nodes.reduce((bytes, { memoryBytes }) => bytes + memoryBytes, 0);
  const compute = nodes.filter((node) => !isMemoryNode(node));
  return {
    compute: compute.map(({ memoryBytes, residentBytes, cacheBytes }) => ({
      homeBytes: BigInt(memoryBytes),
      residentBytes: BigInt(residentBytes ?? memoryBytes),
      cacheBytes: BigInt(cacheBytes ?? total - memoryBytes),
    })),
    memory: nodes.flatMap(({ lentBytes }) => (lentBytes === undefined ? [] : BigInt(lentBytes))),
  };
}

/** "340 MiB", rounded down: for messages. */
function mib(bytes: bigint): string {
  return bytes >= MIB ? `${bytes / MIB} MiB` : `${bytes / KIB} KiB`;
}

function refuse(message: string, hint: string): never {
  throw new SsihvError("memory_insufficient", message, { hint });
}

function least(a: bigint, b: bigint): bigint {
  return a < b ? a : b;
}

function most(a: bigint, b: bigint): bigint {
  return a > b ? a : b;
}

function pagesDown(bytes: bigint): bigint {
  return bytes - (bytes % PAGE_BYTES);
}

function pagesUp(bytes: bigint): bigint {
  return pagesDown(bytes + PAGE_BYTES - 1n);
}

function sum(values: readonly bigint[]): bigint {
  return values.reduce((total, value) => total + value, 0n);
}

function usualCache(given: bigint, leastCache: bigint): bigint {
  return pagesDown(most(given / CACHE_PART, leastCache));
}

function checkWish(wish: MemoryWish): void {
  const { copies, memoryNodes, memoryNodeBytes, cacheBytes } = wish;
  const nodes = wish.homes.length;
  if (nodes + memoryNodes > NODES_MAX) {
    const message = `${nodes} nodes and ${memoryNodes} memory nodes: at most ${NODES_MAX} in all`;
    throw new SsihvError("flag_invalid", `${message} are possible`);
  }
  if (cacheBytes !== undefined && nodes === 1) {
    throw new SsihvError("flag_invalid", "--cache with one node that runs vCPUs: it has no use", {
      hint: "a cache is for pages of other nodes' own memory: add --nodes 2, or leave it out",
    });
  }
  if (memoryNodes === 0) {
    const useless = memoryNodeBytes !== undefined ? "--memory-node-memory" : "--copies";
    if (memoryNodeBytes === undefined && copies === 1) return;
    throw new SsihvError("flag_invalid", `${useless} without a memory node`, {
      hint: "add --memory-nodes 2, or leave it out",
    });
  }
  if (copies <= memoryNodes) return;
  throw new SsihvError(
    "flag_invalid",
    `--copies ${copies} with ${memoryNodes} memory node(s): each copy is on another one`,
    { hint: `add --memory-nodes ${copies}` },
  );
}

/** One compute node of a plan in the making. */
interface Draft {
  readonly node: number;
  readonly home: bigint;
  /** All that other compute nodes are home of. */
  readonly foreign: bigint;
  readonly cacheMin: bigint;
}

function drafts(wish: MemoryWish): Draft[] {
  const total = sum(wish.homes.map(({ bytes }) => bytes));
  return wish.homes.map(({ bytes, vcpus }, node) => {
    const foreign = total - bytes;
    const needed = most(CACHE_BYTES_MIN, BigInt(vcpus) * VCPU_BYTES_MIN);
    return { node, home: bytes, foreign, cacheMin: least(needed, foreign) };
  });
}

/** Of a node's own pages, what it keeps when nobody said how much: every node gives alike. */
function evenResident(draft: Draft, wish: MemoryWish): bigint {
  const nodes = BigInt(wish.homes.length * wish.copies);
  return pagesUp((draft.home * nodes) / (nodes + BigInt(wish.memoryNodes)));
}

/** What is left to keep when each memory node lends so much. */
function restResident(draft: Draft, wish: MemoryWish, lent: bigint): bigint {
  const own = pagesDown((lent * draft.home) / (draft.home + draft.foreign));
  const stored = pagesDown((own * BigInt(wish.memoryNodes)) / BigInt(wish.copies));
  return most(draft.home - stored, 0n);
}

/** Own pages of a compute node whose host gives what is needed. */
function keptAtWill(draft: Draft, wish: MemoryWish): bigint {
  if (wish.memoryNodes === 0) return draft.home;
  const keeps =
    wish.memoryNodeBytes === undefined
      ? evenResident(draft, wish)
      : restResident(draft, wish, wish.memoryNodeBytes);
  return most(keeps, least(draft.home, RESIDENT_BYTES_MIN));
}

function budgetAtWill(draft: Draft, wish: MemoryWish): ComputeBudget {
  const { home, foreign, cacheMin } = draft;
  const residentBytes = keptAtWill(draft, wish);
  const cache = pagesDown(wish.cacheBytes ?? usualCache(residentBytes, CACHE_BYTES_USUAL));
  return { homeBytes: home, residentBytes, cacheBytes: least(most(cache, cacheMin), foreign) };
}

/** Of a compute node whose host gives so much. */
function budgetWithin(draft: Draft, wish: MemoryWish, nodeBytes: bigint): ComputeBudget {
  const { node, home, foreign, cacheMin } = draft;
  const { cacheBytes, memoryNodes } = wish;
  const given = pagesDown(nodeBytes);
  const usual = usualCache(given, least(CACHE_BYTES_USUAL, given / CACHE_PART_MAX));
  // Without memory nodes every own page stays, so the cache is the rest.
  const wanted = cacheBytes ?? (memoryNodes === 0 ? most(given - home, 0n) : usual);
  const cache = least(pagesDown(wanted), foreign);
  const residentBytes = least(home, most(given - cache, 0n));
  const needed = memoryNodes === 0 ? home : least(home, RESIDENT_BYTES_MIN);
  if (residentBytes < needed || given - residentBytes < cacheMin) {
    const others = most(cacheMin, least(cacheBytes ?? 0n, foreign));
    refuse(
      `node ${node} gives ${mib(given)}, it needs ${mib(needed + others)}: ${mib(needed)} for ` +
        `pages of its own, ${mib(others)} for those of other nodes`,
      memoryNodes === 0
        ? "give more --node-memory, ask for less --memory, or let --memory-nodes lend some"
        : "give more --node-memory",
    );
  }
  return { homeBytes: home, residentBytes, cacheBytes: least(foreign, given - residentBytes) };
}

function checkCache(drafted: readonly Draft[], wish: MemoryWish): void {
  const { cacheBytes } = wish;
  if (cacheBytes === undefined) return;
  for (const { node, cacheMin } of drafted) {
    if (cacheBytes >= cacheMin) continue;
    refuse(
      `--cache: ${mib(cacheBytes)} for other nodes' pages, node ${node} needs ${mib(cacheMin)}`,
      "one instruction of each vCPU may need 32 pages at a time",
    );
  }
}

/** Pages, in bytes, that a home may have to keep elsewhere. */
function shortage({ homeBytes, residentBytes }: ComputeBudget): bigint {
  return homeBytes - residentBytes;
}

/** Refuses what has no room. */
export function planBudget(wish: MemoryWish): MemoryBudget {
  checkWish(wish);
  const drafted = drafts(wish);
  checkCache(drafted, wish);
  const { nodeBytes } = wish;
  const compute = drafted.map((draft) =>
    nodeBytes === undefined ? budgetAtWill(draft, wish) : budgetWithin(draft, wish, nodeBytes),
  );
  const { copies, memoryNodes } = wish;
  if (memoryNodes === 0) return { compute, memory: [] };
  const short = sum(compute.map(shortage));
  if (short === 0n) {
    throw new SsihvError(
      "flag_invalid",
      `${memoryNodes} memory node(s), but all of the guest's RAM fits on its compute nodes`,
      { hint: "ask for more --memory, give less --node-memory, or leave --memory-nodes out" },
    );
  }
  const needed = sum(framesNeeded(compute, copies, memoryNodes)) * PAGE_BYTES;
  const lent = wish.memoryNodeBytes === undefined ? needed : pagesDown(wish.memoryNodeBytes);
  if (lent < needed) {
    const guest = sum(compute.map(({ homeBytes }) => homeBytes));
    const twice = copies === 1 ? "" : `, ${copies} copies of each page`;
    refuse(
      `${mib(short)} of the guest's ${mib(guest)} do not fit on its compute nodes${twice}: ` +
        `each memory node lends ${mib(lent)}, it needs ${mib(needed + MIB - 1n)}`,
      "give more --memory-node-memory or --node-memory, or ask for less --memory",
    );
  }
  return { compute, memory: Array.from({ length: memoryNodes }, () => lent) };
}

/** Frames that each compute node needs on each of the memory nodes: whole ones. */
function framesNeeded(
  compute: readonly ComputeBudget[],
  copies: number,
  memoryNodes: number,
): bigint[] {
  const nodes = BigInt(memoryNodes);
  return compute.map((each) => {
    return ((shortage(each) / PAGE_BYTES) * BigInt(copies) + nodes - 1n) / nodes;
  });
}

/** Frames of one memory node that one compute node may use. */
export interface FrameRange {
  readonly first: number;
  readonly count: number;
}

/** Each compute node's frames on every memory node: what it needs, and of the rest its part. */
export function frameRanges(budget: MemoryBudget, copies: number): FrameRange[][] {
  const { compute, memory } = budget;
  if (memory.length === 0) return [];
  const needed = framesNeeded(compute, copies, memory.length);
  const all = sum(needed);
  return memory.map((lent) => {
    const rest = lent / PAGE_BYTES - all;
    let first = 0n;
    let seen = 0n;
    return needed.map((frames) => {
      // Of the rest ends, not sizes, are rounded: the last one is the store's.
      const before = (rest * seen) / all;
      seen += frames;
      const count = frames + (rest * seen) / all - before;
      const range = { first: Number(first), count: Number(count) };
      first += count;
      return range;
    });
  });
}

/** Bytes that the guest can use of a hundred that the hosts give. */
export function usedPercent({ compute, memory }: MemoryBudget): number {
  const given = sum(compute.map((each) => each.residentBytes + each.cacheBytes)) + sum(memory);
  const guest = sum(compute.map(({ homeBytes }) => homeBytes));
  return Number((guest * 1000n) / given) / 10;
}

/** A guest that gives all it has does not live: the guest itself refuses long before. */
export function checkBalloon(
  bytes: number,
  nodes: readonly { memoryBytes: number }[],
  flag = "",
): number {
  const guest = nodes.reduce((sum, { memoryBytes }) => sum + memoryBytes, 0);
  if (bytes <= guest) return bytes;
  const mib = (size: number) => `${Math.floor(size / 2 ** 20)} MiB`;
  const message = `${flag}a balloon of ${mib(bytes)} in a guest of ${mib(guest)}`;
  throw new SsihvError("flag_invalid", message, { hint: "it takes from the guest's own RAM" });
}
