import { expect, test } from "bun:test";
import { histogramView } from "./histogram-view.ts";

test("bars by node from a microsecond on, and percentiles of all", () => {
  const counts = (at: Record<number, number>) => Array.from({ length: 40 }, (_, i) => at[i] ?? 0);
  // 2^15 ns are 32 us; what took less than 1 us is in the first bar.
  const view = histogramView([counts({ 3: 2, 10: 1, 15: 96 }), counts({ 15: 1, 20: 1 })]);
  expect(view.count).toBe(101);
  expect(view.bars[0]).toEqual({ fromUs: 0, toUs: 2.048, counts: [3, 0], total: 3 });
  expect(view.bars[5]).toEqual({ fromUs: 32.768, toUs: 65.536, counts: [96, 1], total: 97 });
  expect(view.bars.length).toBe(14);
  expect(view.medianUs).toBeGreaterThan(32.768);
  expect(view.p99Us).toBeLessThanOrEqual(65.536);
});

test("it grows for what took long, and is empty without nodes", () => {
  const slow = histogramView([Array.from({ length: 40 }, (_, i) => (i === 33 ? 1 : 0))]);
  expect(slow.bars.at(-1)).toMatchObject({ total: 1 });
  expect(slow.bars.length).toBe(24);
  expect(histogramView([])).toMatchObject({ count: 0, medianUs: 0, p99Us: 0 });
});
