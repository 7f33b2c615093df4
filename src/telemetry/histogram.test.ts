import { expect, test } from "bun:test";
import { percentileUs } from "./histogram.ts";

const histogram = (counts: Record<number, bigint>, max_ns: bigint) => {
  const buckets = Array.from({ length: 40 }, (_, i) => counts[i] ?? 0n);
  return { count: buckets.reduce((a, b) => a + b, 0n), max_ns, buckets };
};

test("no samples, no percentile", () => {
  expect(percentileUs(histogram({}, 0n), 0.5)).toBe(0);
});

test("the median lies in the bucket that holds it", () => {
  const h = histogram({ 10: 50n, 16: 49n, 20: 1n }, 1_100_000n);
  const median = percentileUs(h, 0.5);
  expect(median).toBeGreaterThan(1.024);
  expect(median).toBeLessThanOrEqual(2.048);
  expect(percentileUs(h, 0.99)).toBeLessThanOrEqual(131.072);
});

test("never above the largest sample", () => {
  expect(percentileUs(histogram({ 20: 1n }, 1_050_000n), 0.99)).toBe(1050);
});
