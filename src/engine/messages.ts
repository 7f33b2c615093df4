// Control messages between `ssihv run` (parent) and `ssihv engine` (child), and the plan the child
// builds its machine from. Everything here is plain JSON: bytes as numbers (exact to 2^53), keys as
// hex, no bigint, so that the same plan can later cross hosts. The channel is ordered and reliable;
// guest console bytes and telemetry do not travel here (pipes and the shared page do that).
// Order: ready -> start -> sandboxed -> started -> ... -> summary (once, if asked or at the end)
// -> stopped.
// `failed` may replace any of them and is the last message.

import type { MemoryCostsGiven } from "../config/memory-costs.ts";
import type { HotBlock, NodeHeat } from "../telemetry/heat.ts";
import type { NodeStats } from "../telemetry/node-metrics.ts";

/** File descriptors of the child. */
export const ENGINE_FDS = { consoleIn: 0, consoleOut: 1, stderr: 2, sharedPage: 3 } as const;

/** One node's part of the machine. */
export interface NodePlan {
  readonly id: number;
  readonly vcpus: number;
  /** Guest RAM that this node is the home of; none on a memory node. */
  readonly memoryBytes: number;
  /** Own pages here at a time; absent: all of them. */
  readonly residentBytes?: number;
  /** Other nodes' pages here at a time; absent: any number. */
  readonly cacheBytes?: number;
  /** Makes it a memory node: what it lends. Memory nodes come after all others. */
  readonly lentBytes?: number;
}

/** How the engine reaches the engines of the other nodes; absent in a VM of one node. */
export interface LanePlan {
  /** Address this engine accepts lanes on: "host:port" or "unix:/path". */
  readonly listen: string;
  readonly peers: readonly { readonly node: number; readonly address: string }[];
  /** 32-byte key of this VM in hex; never logged. */
  readonly key: string;
}

export type PageTablesMode = "strict" | "replicated";

export interface EngineOptions {
  /** What a guest reset does: start the machine again, or end the run with reason "reset". */
  readonly onReset: "restart" | "stop";
  readonly pageTables: PageTablesMode;
  /** Guest clocks run this many times slower; 1 on real hosts. */
  readonly clockDilation: number;
  readonly peerTimeoutMs: number;
  /** A stall longer than this freezes the whole VM; 0: never. */
  readonly stallFreezeMs: number;
  readonly holdUsMax: number;
  /** Absent: polling is worth it if this host has a CPU to spare. */
  readonly pollUsMax?: number;
  /** Pager off, plain RAM: one node only. */
  readonly plainMemory: boolean;
  readonly pinVcpus: boolean;
  /** Collect what `--report` prints (hot pages); `systemMap` names them. */
  readonly report: boolean;
  readonly systemMap?: string;
}

export interface EnginePlan {
  readonly name: string;
  /** Which of `nodes` this engine is. */
  readonly node: number;
  readonly nodes: readonly NodePlan[];
  /** Absolute paths, readable by the child. */
  readonly kernel: string;
  readonly initrd?: string;
  readonly cmdline: string;
  /** The CPU model of the VM as src/vmm/cpu-model.ts made it; absent: this host's own. */
  readonly cpuModel?: unknown;
  readonly lane?: LanePlan;
  /** Memory nodes that keep each page which its home has not; absent: one. */
  readonly frameCopies?: number;
  /** What the guest is told of its memory instead of what is measured. */
  readonly memoryCosts?: MemoryCostsGiven;
  /** What its balloon is to take from the guest at first; absent: the VM has none. */
  readonly balloonBytes?: number;
  readonly options: EngineOptions;
}

/** What one may ask a running engine; the answer carries the same id. */
export type Question =
  | { readonly kind: "summary" }
  /** Every counter, for metrics. */
  | { readonly kind: "stats" }
  /** Remote faults by block of guest RAM. */
  | { readonly kind: "heat" }
  /** `count` pages (at most PAGES_ASKED_MAX) from the one with `gpa` on. */
  | { readonly kind: "pages"; readonly gpa: number; readonly count: number }
  /** To the engine that has the balloon: take so much from the guest, from now on. */
  | { readonly kind: "balloon"; readonly bytes: number };

/** A reply about so many pages stays far below what a sealed frame between hosts may hold. */
export const PAGES_ASKED_MAX = 1024;

export type Answer =
  | { readonly kind: "summary"; readonly summary: EngineSummary }
  | { readonly kind: "stats"; readonly stats: NodeStats }
  | { readonly kind: "heat"; readonly heat: NodeHeat }
  | { readonly kind: "pages"; readonly pages: readonly PageReport[] }
  | { readonly kind: "balloon"; readonly balloon: BalloonSummary }
  /** `code`: an ErrorCode of src/base/errors.ts. */
  | {
      readonly kind: "refused";
      readonly code: string;
      readonly message: string;
      readonly hint?: string;
    };

/** A page as one engine knows it. */
export interface PageReport {
  readonly gpa: number;
  readonly home: number;
  /** Its directory entry: from the engine of its home only. */
  readonly entry?: PageEntry;
  readonly copy: PageCopy;
}

export interface PageEntry {
  readonly state: "untouched" | "shared" | "exclusive" | "replicated" | "stored";
  /** Exclusive: the node that has it. Shared: the one that wrote it last. */
  readonly owner?: number;
  /** Nodes with a read-only copy while it is shared; memory nodes that have it when stored. */
  readonly sharers: readonly number[];
  readonly version: number;
  readonly transaction?: PageTransaction;
}

export type PageRequest =
  | "get_shared"
  | "get_exclusive"
  | "upgrade"
  | "replicate"
  | "discard"
  /** The home's own: another copy on a memory node. */
  | "repair";

/** What is under way with a page at its home: only one thing at a time. */
export interface PageTransaction {
  readonly requester: number;
  readonly request: PageRequest;
  readonly phase: "strict" | "share" | "go" | "parked" | "load" | "discard";
  /** Requests that wait behind it. */
  readonly queued: number;
}

/** How the engine's own node has the page. */
export interface PageCopy {
  readonly access: "invalid" | "shared" | "exclusive" | "replicated";
  readonly version: number;
  /** The node's own open request. */
  readonly waitsFor?: PageRequest;
  /** Revokes that the node has put aside. */
  readonly revokesDeferred: number;
}

export const SANDBOX_MODES = ["auto", "off", "required"] as const;
export type SandboxMode = (typeof SANDBOX_MODES)[number];

/** What an engine is to do to shut itself in; its parent's word, on its command line. */
export interface SandboxWish {
  readonly mode: SandboxMode;
  /** The user (and group) to become. */
  readonly user?: number | undefined;
  /** Why it is to stay its parent's user. */
  readonly noUser?: string;
}

/** What came of it. */
export interface SandboxState {
  /** Absent: it runs as the user that started it. */
  readonly user?: number;
  /** No new privileges, and a filter of system calls. */
  readonly filter: boolean;
  /** What its control group lets it take; absent: it has none of its own. */
  readonly memoryBytesMax?: number;
  /** What this host did not allow. */
  readonly missing: readonly string[];
}

export type ToEngine =
  | { readonly type: "start"; readonly plan: EnginePlan }
  | { readonly type: "pause" }
  | { readonly type: "resume" }
  | { readonly type: "stop" }
  /** To a memory node of a running VM: say goodbye to its homes, then end. */
  | { readonly type: "leave" }
  /** The process of a memory node's engine has ended for certain: nobody is to wait for it. */
  | { readonly type: "peer_ended"; readonly node: number }
  | { readonly type: "nmi" }
  | { readonly type: "report" }
  | { readonly type: "ask"; readonly id: string; readonly question: Question };

/** What the child found on its host before it builds anything. */
export interface EngineCapabilities {
  readonly pid: number;
  readonly abiHash: string;
  readonly tscKhz: number;
  /** What `--page-tables auto` resolves to on this host. */
  readonly pageTables: PageTablesMode;
  /** This host's CPU for src/vmm/cpu-model.ts intersect(). */
  readonly hostCpu?: unknown;
}

export type StoppedReason =
  | "powered_off"
  | "reset"
  | "triple_fault"
  | "debug_exit"
  | "requested"
  /** Every vCPU halted with interrupts off: nothing can wake the guest. */
  | "halted"
  | "internal_error"
  | "vcpu_lost"
  | "page_lost";

export const STOPPED_REASONS: readonly StoppedReason[] = [
  "powered_off",
  "reset",
  "triple_fault",
  "debug_exit",
  "requested",
  "halted",
  "internal_error",
  "vcpu_lost",
  "page_lost",
];

/** What a node's memory was used for, in pages; the most there ever was where it says so. */
export interface MemorySummary {
  /** Counted only where a budget is smaller than what there is. */
  readonly ownPagesMax: number;
  readonly cachePagesMax: number;
  readonly evicted: number;
  /** Pages that left, evicted or taken by others, and came back soon. */
  readonly returned: number;
  /** A memory node's frames in use. */
  readonly framesHeld: number;
  /** Own pages that were discarded, and frames of memory nodes that came free so. */
  readonly discarded: number;
  readonly framesFreed: number;
}

/** In bytes. */
export interface BalloonSummary {
  /** What it is to have, and has by the guest's word. */
  readonly target: number;
  readonly actual: number;
  /** Memory given up so far, by going into it and by being reported free: also more than once. */
  readonly inflated: number;
  readonly reported: number;
}

/** The numbers of the run's last line; times in the unit the name says. */
export interface EngineSummary {
  readonly node: number;
  readonly runSeconds: number;
  readonly bootSeconds?: number;
  readonly exits: number;
  readonly exitsTypescript: number;
  readonly remoteFaults: number;
  readonly faultUsMedian: number;
  readonly faultUsP99: number;
  readonly pageTables: PageTablesMode;
  readonly pageTableTransfers: number;
  readonly longestStallUs: number;
  /** Age of the oldest fault in flight, 0 without one: where to look when a guest hangs. The one
   * name here with underscores: it is called so everywhere. */
  readonly oldest_fault_us: number;
  /** Times the whole VM stood still for another node, this node's time in it, and the longest. */
  readonly freezes: number;
  readonly frozenSeconds: number;
  readonly longestFreezeSeconds: number;
  /** Of the vCPUs' time, 0..1. */
  readonly stalledShare: number;
  readonly mismatches: number;
  readonly memory: MemorySummary;
  /** Of the node that has it. */
  readonly balloon?: BalloonSummary;
  /** Blocks of guest RAM with the most remote faults of this node, most first; absent: none. */
  readonly hotBlocks?: readonly HotBlock[];
  /** Hot pages for --report: transfers per guest page, most first. */
  readonly hotPages?: readonly {
    readonly gpa: number;
    readonly transfers: number;
    readonly symbol?: string;
  }[];
}

export type FromEngine =
  | { readonly type: "ready"; readonly capabilities: EngineCapabilities }
  /** It has opened what it needs, and shut itself in. */
  | { readonly type: "sandboxed"; readonly sandbox: SandboxState }
  | { readonly type: "started" }
  | {
      readonly type: "stopped";
      readonly reason: StoppedReason;
      /** debug_exit: the value v the guest wrote. */
      readonly code?: number;
      readonly detail?: string;
    }
  | { readonly type: "notice"; readonly text: string }
  | ({ readonly type: "summary" } & EngineSummary)
  | { readonly type: "answer"; readonly id: string; readonly answer: Answer }
  | {
      readonly type: "failed";
      /** An ErrorCode of src/base/errors.ts. */
      readonly code: string;
      readonly message: string;
      readonly hint?: string;
    };

const FROM_TYPES = new Set([
  ...["ready", "sandboxed", "started", "stopped", "notice", "summary", "answer", "failed"],
]);
const TO_TYPES = new Set([
  ...["start", "pause", "resume", "stop", "leave", "peer_ended", "nmi", "report", "ask"],
]);

function typeOf(value: unknown): string | undefined {
  if (typeof value !== "object" || value === null || !("type" in value)) return undefined;
  return typeof value.type === "string" ? value.type : undefined;
}

/** Both ends are the same executable, so the tag is enough; anything else is not ours. */
export function isFromEngine(value: unknown): value is FromEngine {
  const type = typeOf(value);
  return type !== undefined && FROM_TYPES.has(type);
}

export function isToEngine(value: unknown): value is ToEngine {
  const type = typeOf(value);
  return type !== undefined && TO_TYPES.has(type);
}
