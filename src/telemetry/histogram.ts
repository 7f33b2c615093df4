// Percentiles of the log2 histograms the data plane keeps (abi.Histogram): bucket i counts
// samples of [2^i, 2^(i+1)) ns. Within a bucket samples are taken as evenly spread, so a
// percentile is exact to its bucket and never above the largest sample seen.

export interface HistogramCounts {
  readonly count: bigint;
  readonly max_ns: bigint;
  readonly buckets: readonly bigint[];
}

/** The p-quantile (0..1) in microseconds; 0 when nothing was counted. */
export function percentileUs(histogram: HistogramCounts, p: number): number {
  const count = Number(histogram.count);
  if (count === 0) return 0;
  const max = Number(histogram.max_ns);
  let rest = Math.max(1, Math.ceil(p * count));
  for (const [i, bucket] of histogram.buckets.entries()) {
    const n = Number(bucket);
    if (rest <= n) {
      const low = i === 0 ? 0 : 2 ** i;
      return Math.min(low + ((2 ** (i + 1) - low) * rest) / n, max) / 1000;
    }
    rest -= n;
  }
  return max / 1000;
}
