// abi.zig EngineConfig as a plain object: what follows from the plan. The file descriptors (shared
// page, console, doorbell, lanes) belong to the process that builds the engine and are added there.

import { SsihvError } from "../base/errors.ts";
import {
  budgetOf,
  type FrameRange,
  frameRanges,
  type NodeSizes,
  PAGE_BYTES,
} from "./memory-budget.ts";
import type { RamRange } from "./records.ts";
import { NODES_MAX } from "./topology.ts";

/** abi.zig ram_ranges_max. */
export const RAM_RANGES_MAX = 32;
const LANE_KEY_BYTES = 32;
/** abi.zig PageTables. */
const PAGE_TABLES = { strict: 0, replicated: 1 } as const;
/**
 * On a span the pager threads must run before a spinning vCPU: without a real-time priority a page
 * waits for a scheduler tick (notes/RIGS.md). Hosts that forbid it run them as any thread.
 */
export const SPAN_SERVICE_PRIORITY = 10;

/** src/engine/messages.ts EngineOptions has this shape. */
export interface EngineSettings {
  readonly pageTables: keyof typeof PAGE_TABLES;
  readonly clockDilation: number;
  readonly peerTimeoutMs: number;
  readonly stallFreezeMs: number;
  readonly holdUsMax: number;
  readonly pollUsMax: number;
  readonly plainMemory: boolean;
  readonly pinVcpus: boolean;
}

export interface EngineConfigPlan {
  node: number;
  node_count: number;
  vcpu_count: number;
  ram_range_count: number;
  vcpu_counts: number[];
  ram: RamRange[];
  tsc_khz: number;
  clock_dilation: number;
  plain_memory: number;
  page_tables: number;
  service_priority: number;
  pin_vcpus: number;
  peer_timeout_ms: number;
  hold_us_max: number;
  poll_us_max: number;
  stall_freeze_ms: number;
  lane_fds: number[];
  lane_key: Uint8Array;
  vm_generation: bigint;
  compute_nodes: bigint;
  cache_pages_max: number;
  resident_pages_max: number;
  frame_copies: number;
  frames_lent: number;
  frames: FrameRange[];
}

/** One node; compute nodes first. src/engine/messages.ts NodePlan has this shape. */
export interface ConfigNode extends NodeSizes {
  readonly vcpus: number;
}

function decodeKey(key: string | undefined): Uint8Array {
  if (key === undefined) return new Uint8Array(LANE_KEY_BYTES);
  if (!/^[0-9a-f]{64}$/i.test(key)) {
    // The key itself is never printed.
    throw new SsihvError("key_invalid", `a lane key of ${key.length} characters was given`, {
      hint: "a lane key is 32 bytes, written as 64 hexadecimal digits",
    });
  }
  const bytes = new Uint8Array(LANE_KEY_BYTES);
  for (let i = 0; i < LANE_KEY_BYTES; i++) bytes[i] = parseInt(key.slice(2 * i, 2 * i + 2), 16);
  return bytes;
}

type MemoryFields =
  | "compute_nodes"
  | "cache_pages_max"
  | "resident_pages_max"
  | "frame_copies"
  | "frames_lent"
  | "frames";

/** Pages of a budget; 0, without limit, where it holds all there are. */
function pagesMax(budget: bigint, all: bigint): number {
  return budget >= all ? 0 : Number(budget / PAGE_BYTES);
}

function memoryFields(
  node: number,
  nodes: readonly ConfigNode[],
  copies: number,
): Pick<EngineConfigPlan, MemoryFields> {
  const budget = budgetOf(nodes);
  const { compute, memory } = budget;
  const ranges = frameRanges(budget, copies);
  const own = compute[node];
  const total = compute.reduce((bytes, { homeBytes }) => bytes + homeBytes, 0n);
  const frames = Array.from({ length: NODES_MAX }, (_, other): FrameRange => {
    const range =
      own === undefined
        ? ranges[node - compute.length]?.[other]
        : ranges[other - compute.length]?.[node];
    return range ?? { first: 0, count: 0 };
  });
  return {
    compute_nodes: (1n << BigInt(compute.length)) - 1n,
    cache_pages_max: own ? pagesMax(own.cacheBytes, total - own.homeBytes) : 0,
    resident_pages_max: own ? pagesMax(own.residentBytes, own.homeBytes) : 0,
    frame_copies: copies,
    frames_lent: Number((memory[node - compute.length] ?? 0n) / PAGE_BYTES),
    frames,
  };
}

export function engineConfig(plan: {
  node: number;
  nodes: readonly ConfigNode[];
  ram: readonly RamRange[];
  tscKhz: number;
  laneKey: string | undefined;
  frameCopies?: number | undefined;
  settings: EngineSettings;
}): EngineConfigPlan {
  const { nodes, ram, settings } = plan;
  // Nodes are at most 8 and the PCI hole splits one of them.
  if (ram.length > RAM_RANGES_MAX) throw new Error(`${ram.length} RAM ranges`);
  if (settings.plainMemory && nodes.length > 1) {
    throw new SsihvError("config_invalid", "plain memory was asked for on several nodes", {
      hint: "plain memory (no pager) is for VMs on one node",
    });
  }
  const padded = Array.from({ length: RAM_RANGES_MAX }, (_, i): RamRange => {
    return ram[i] ?? { gpa: 0n, size: 0n, node: 0 };
  });
  return {
    node: plan.node,
    node_count: nodes.length,
    vcpu_count: nodes[plan.node]?.vcpus ?? 0,
    ram_range_count: ram.length,
    vcpu_counts: Array.from({ length: NODES_MAX }, (_, i) => nodes[i]?.vcpus ?? 0),
    ram: padded,
    tsc_khz: plan.tscKhz,
    clock_dilation: settings.clockDilation,
    plain_memory: settings.plainMemory ? 1 : 0,
    page_tables: PAGE_TABLES[settings.pageTables],
    service_priority: nodes.length > 1 ? SPAN_SERVICE_PRIORITY : 0,
    pin_vcpus: settings.pinVcpus ? 1 : 0,
    peer_timeout_ms: settings.peerTimeoutMs,
    hold_us_max: settings.holdUsMax,
    poll_us_max: settings.pollUsMax,
    // Alone a node waits for nobody.
    stall_freeze_ms: nodes.length > 1 ? settings.stallFreezeMs : 0,
    lane_fds: Array.from({ length: NODES_MAX }, () => -1),
    lane_key: decodeKey(plan.laneKey),
    vm_generation: 0n,
    ...memoryFields(plan.node, nodes, plan.frameCopies ?? 1),
  };
}
