// What a node did between two samples of its counters: how often a second, how long it took, which
// share of the time was lost.

import { type HistogramCounts, percentileUs } from "./histogram.ts";
import { type NodeStats, PAGE_BYTES } from "./node-metrics.ts";

export interface NodeRates {
  readonly exits: number;
  readonly faults: number;
  readonly remoteFaults: number;
  readonly faultUsMedian: number;
  readonly faultUsP99: number;
  /** Of the vCPUs' time, 0..1. */
  readonly stalledShare: number;
  readonly oldestFaultUs: number;
  readonly sentBytes: number;
  readonly receivedBytes: number;
  /** Bytes that peers have yet to take, now. */
  readonly unackedBytes: number;
  /** Of its links, after cuts, so far. */
  readonly reconnects: number;
  readonly evictedPages: number;
  /** Now: other nodes' memory here, and what a memory node's frames hold. */
  readonly cacheBytes: number;
  readonly lentBytes: number;
}

/** A counter of an engine that was started anew began again at zero. */
function grown(before: number, after: number): number {
  return after >= before ? after - before : after;
}

function latencyBetween(before: NodeStats, after: NodeStats): HistogramCounts {
  const buckets = after.faultLatency.buckets.map((count, i) =>
    BigInt(grown(before.faultLatency.buckets[i] ?? 0, count)),
  );
  const count = buckets.reduce((sum, each) => sum + each, 0n);
  // Its largest sample is known to its bucket only.
  const top = buckets.findLastIndex((each) => each > 0n);
  return { count, max_ns: top < 0 ? 0n : 2n ** BigInt(top + 1), buckets };
}

/** `seconds` lie between the samples; every rate is per second. */
export function ratesBetween(before: NodeStats, after: NodeStats, seconds: number): NodeRates {
  const now = (field: string) => after.engine[field] ?? 0;
  const rate = (field: string) => grown(before.engine[field] ?? 0, now(field)) / seconds;
  const exits = after.vcpus.map((vcpu, i) =>
    grown(before.vcpus[i]?.["exits"] ?? 0, vcpu["exits"] ?? 0),
  );
  const latency = latencyBetween(before, after);
  const vcpus = Math.max(1, after.vcpus.length);
  return {
    exits: exits.reduce((sum, each) => sum + each, 0) / seconds,
    faults: rate("faults_read") + rate("faults_write") + rate("faults_upgrade"),
    remoteFaults: rate("faults_remote"),
    faultUsMedian: percentileUs(latency, 0.5),
    faultUsP99: percentileUs(latency, 0.99),
    stalledShare: Math.min(1, rate("stalled_ns") / 1e9 / vcpus),
    oldestFaultUs: now("oldest_fault_ns") / 1000,
    sentBytes: rate("bytes_sent"),
    receivedBytes: rate("bytes_received"),
    unackedBytes: now("lane_bytes_unacked"),
    reconnects: now("lane_reconnects"),
    evictedPages: rate("pages_evicted"),
    cacheBytes: now("cache_pages") * PAGE_BYTES,
    lentBytes: now("frames_held") * PAGE_BYTES,
  };
}
