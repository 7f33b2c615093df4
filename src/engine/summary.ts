// The numbers of a run's last line, and all counters for metrics, from the shared page.

import { constants } from "../native/abi.gen.ts";
import type { SharedPage } from "../native/shared-page.ts";
import { type HotBlock, hottest, type NodeHeat } from "../telemetry/heat.ts";
import { percentileUs } from "../telemetry/histogram.ts";
import { type NodeStats, PAGE_BYTES } from "../telemetry/node-metrics.ts";
import { ramPartsOf } from "../vmm/ram-parts.ts";
import type { BalloonSummary, EnginePlan, EngineSummary } from "./messages.ts";

function ownVcpus(plan: EnginePlan): number {
  return Math.min(plan.nodes[plan.node]?.vcpus ?? 0, constants.vcpus_max);
}

/** The counters of a record, exact to 2^53; whatever else it has is left out. */
function counters(record: Readonly<Record<string, unknown>>): Record<string, number> {
  const found: Record<string, number> = {};
  for (const [name, value] of Object.entries(record)) {
    if (typeof value === "bigint") found[name] = Number(value);
  }
  return found;
}

export function allCounters(page: SharedPage, plan: EnginePlan): NodeStats {
  const stats = page.stats();
  const { count, sum_ns, buckets } = stats.fault_latency;
  return {
    node: plan.node,
    engine: counters(stats),
    vcpus: Array.from({ length: ownVcpus(plan) }, (_, i) => counters(page.vcpuStats(i))),
    faultLatency: { count: Number(count), sum_ns: Number(sum_ns), buckets: buckets.map(Number) },
  };
}

export function heatOf(page: SharedPage): NodeHeat {
  const { blockPages, faults } = page.heat();
  return { blockBytes: blockPages * PAGE_BYTES, faults };
}

const HOT_BLOCKS = 8;

function hotBlocks(page: SharedPage, plan: EnginePlan): HotBlock[] {
  const { blockBytes, faults } = heatOf(page);
  if (faults.length === 0) return [];
  return hottest(ramPartsOf(plan.nodes), blockBytes, faults, HOT_BLOCKS);
}

export function hasBalloon(plan: EnginePlan): boolean {
  return plan.node === 0 && plan.balloonBytes !== undefined;
}

export function balloonOf(stats: ReturnType<SharedPage["stats"]>): BalloonSummary {
  const bytes = (pages: bigint) => Number(pages) * PAGE_BYTES;
  return {
    target: bytes(stats.balloon_target),
    actual: bytes(stats.balloon_actual),
    inflated: bytes(stats.balloon_inflated),
    reported: bytes(stats.balloon_reported),
  };
}

export function summarise(page: SharedPage, plan: EnginePlan, runSeconds: number): EngineSummary {
  const stats = page.stats();
  const vcpus = ownVcpus(plan);
  const exits = { all: 0, typescript: 0 };
  for (let i = 0; i < vcpus; i++) {
    const vcpu = page.vcpuStats(i);
    exits.all += Number(vcpu.exits);
    exits.typescript += Number(vcpu.io_typescript);
  }
  const hot = hotBlocks(page, plan);
  const vcpuNs = runSeconds * 1e9 * Math.max(vcpus, 1);
  return {
    node: plan.node,
    runSeconds,
    exits: exits.all,
    exitsTypescript: exits.typescript,
    remoteFaults: Number(stats.faults_remote),
    faultUsMedian: percentileUs(stats.fault_latency, 0.5),
    faultUsP99: percentileUs(stats.fault_latency, 0.99),
    pageTables: plan.options.pageTables,
    pageTableTransfers: Number(stats.page_table_transfers),
    longestStallUs: Number(stats.stall_ns_max) / 1000,
    oldest_fault_us: Number(stats.oldest_fault_ns) / 1000,
    freezes: Number(stats.freezes),
    frozenSeconds: Number(stats.frozen_ns) / 1e9,
    longestFreezeSeconds: Number(stats.frozen_ns_max) / 1e9,
    // Faults of the loader count as stalls too, before any vCPU ran.
    stalledShare: Math.min(1, vcpuNs === 0 ? 0 : Number(stats.stalled_ns) / vcpuNs),
    mismatches: Number(stats.replica_conflicts),
    memory: {
      ownPagesMax: Number(stats.own_pages_max),
      cachePagesMax: Number(stats.cache_pages_max),
      evicted: Number(stats.pages_evicted),
      returned: Number(stats.pages_returned),
      framesHeld: Number(stats.frames_held),
      discarded: Number(stats.pages_discarded),
      framesFreed: Number(stats.frames_freed),
    },
    ...(hot.length > 0 && { hotBlocks: hot }),
    ...(hasBalloon(plan) && { balloon: balloonOf(stats) }),
  };
}
