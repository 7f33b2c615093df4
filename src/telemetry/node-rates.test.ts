import { expect, test } from "bun:test";
import type { NodeStats } from "./node-metrics.ts";
import { ratesBetween } from "./node-rates.ts";

function sample(engine: Record<string, number>, exits: number, bucket16 = 0): NodeStats {
  const buckets = Array.from({ length: 40 }, (_, i) => (i === 16 ? bucket16 : i === 30 ? 7 : 0));
  return {
    node: 0,
    engine,
    vcpus: [{ exits }, { exits: 10 }],
    faultLatency: { count: 7 + bucket16, sum_ns: 0, buckets },
  };
}

test("counters become rates, gauges stay, the histogram is that of the time between", () => {
  const before = sample({ faults_read: 100, faults_remote: 50, stalled_ns: 0, cache_pages: 9 }, 20);
  const after = sample(
    {
      ...{ faults_read: 140, faults_write: 10, faults_remote: 90, stalled_ns: 2e9 },
      ...{ cache_pages: 3, oldest_fault_ns: 5000, bytes_sent: 8192, lane_reconnects: 2 },
    },
    40,
    40,
  );
  const rates = ratesBetween(before, after, 2);
  expect(rates).toMatchObject({ faults: 25, remoteFaults: 20, exits: 10, sentBytes: 4096 });
  expect(rates).toMatchObject({
    stalledShare: 0.5,
    cacheBytes: 12_288,
    oldestFaultUs: 5,
    reconnects: 2,
  });
  // Bucket 16 alone: 65.5 to 131 us; those of a second ago in bucket 30 do not count.
  expect(rates.faultUsMedian).toBeGreaterThan(65);
  expect(rates.faultUsP99).toBeLessThanOrEqual(131.072);
});

test("an engine that was started anew counts from zero", () => {
  const rates = ratesBetween(sample({ faults_read: 1000 }, 500), sample({ faults_read: 6 }, 4), 2);
  expect(rates).toMatchObject({ faults: 3, exits: 2 });
});

test("nothing happened: zeros, no division by it", () => {
  const quiet = sample({}, 0);
  expect(ratesBetween(quiet, quiet, 1)).toMatchObject({ faultUsMedian: 0, stalledShare: 0 });
});
