// A latency histogram as it is drawn: which of the log2 buckets are shown, and its percentiles.

import { percentileUs } from "../../src/telemetry/histogram.ts";

/** Below 1 us nothing crosses a link. Until 16 ms in any case: the picture stands still. */
const FIRST = 10;
const LAST_MIN = 23;

export interface Bar {
  /** Of the bucket, in microseconds. */
  readonly fromUs: number;
  readonly toUs: number;
  /** By node, in the order given. */
  readonly counts: readonly number[];
  readonly total: number;
}

export interface HistogramView {
  readonly bars: readonly Bar[];
  readonly count: number;
  readonly medianUs: number;
  readonly p99Us: number;
}

/** `nodes`: counts by bucket, bucket i from 2^i ns on. */
export function histogramView(nodes: readonly (readonly number[])[]): HistogramView {
  const length = nodes.reduce((most, { length }) => Math.max(most, length), 0);
  const at = (list: readonly number[], i: number) => list[i] ?? 0;
  const totals = Array.from({ length }, (_, i) => nodes.reduce((sum, n) => sum + at(n, i), 0));
  const last = Math.max(
    LAST_MIN,
    totals.findLastIndex((total) => total > 0),
  );
  const bars = Array.from({ length: last - FIRST + 1 }, (_, k): Bar => {
    const i = FIRST + k;
    // What was quicker than the first bucket is in it.
    const count = (list: readonly number[]) =>
      k === 0 ? list.slice(0, FIRST + 1).reduce((sum, each) => sum + each, 0) : at(list, i);
    const counts = nodes.map(count);
    return {
      ...{ fromUs: k === 0 ? 0 : 2 ** i / 1000, toUs: 2 ** (i + 1) / 1000, counts },
      total: counts.reduce((sum, each) => sum + each, 0),
    };
  });
  const top = totals.findLastIndex((total) => total > 0);
  const histogram = {
    count: BigInt(totals.reduce((sum, each) => sum + each, 0)),
    max_ns: top < 0 ? 0n : 2n ** BigInt(top + 1),
    buckets: totals.map(BigInt),
  };
  return {
    bars,
    count: Number(histogram.count),
    medianUs: percentileUs(histogram, 0.5),
    p99Us: percentileUs(histogram, 0.99),
  };
}
