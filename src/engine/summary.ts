// The numbers of a run's last line, from the shared page.

import { constants } from "../native/abi.gen.ts";
import type { SharedPage } from "../native/shared-page.ts";
import { percentileUs } from "../telemetry/histogram.ts";
import type { EnginePlan, EngineSummary } from "./messages.ts";

export function summarise(page: SharedPage, plan: EnginePlan, runSeconds: number): EngineSummary {
  const stats = page.stats();
  const vcpus = plan.nodes[plan.node]?.vcpus ?? 0;
  const exits = { all: 0, typescript: 0 };
  for (let i = 0; i < Math.min(vcpus, constants.vcpus_max); i++) {
    const vcpu = page.vcpuStats(i);
    exits.all += Number(vcpu.exits);
    exits.typescript += Number(vcpu.io_typescript);
  }
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
    },
  };
}
