import { expect, test } from "bun:test";
import { costLines, guestCosts, type LinkCost } from "./memory-costs.ts";

const cost = (ns: number, megabytes: number): LinkCost => ({
  latency_ns: BigInt(ns),
  bytes_per_second: BigInt(megabytes) * 1_000_000n,
});
const MEASURED = [
  [cost(80, 20_000), cost(40_000, 1000), cost(0, 0)],
  [cost(40_000, 1000), cost(90, 21_000), cost(0, 0)],
];

test("what was measured, in the guest's time", () => {
  expect(guestCosts(MEASURED, 2, 1)).toEqual({
    latencyNs: [
      [80, 40_000],
      [40_000, 90],
    ],
    bandwidthMBps: [
      [20_000, 1000],
      [1000, 21_000],
    ],
  });
  const slow = guestCosts(MEASURED, 2, 100);
  expect(slow?.latencyNs[0]).toEqual([0.8, 400]);
  expect(slow?.bandwidthMBps[0]).toEqual([2_000_000, 100_000]);
});

test("what the configuration says is told as it is, the rest as measured", () => {
  const latencyNs = [
    [100, 2000],
    [2000, 100],
  ];
  expect(guestCosts(MEASURED, 2, 100, { latencyNs })).toEqual({
    latencyNs,
    bandwidthMBps: [
      [2_000_000, 100_000],
      [100_000, 2_100_000],
    ],
  });
});

test("nothing is told of a pair that nobody measured", () => {
  expect(guestCosts(MEASURED, 3, 1)).toBeUndefined();
  expect(guestCosts([], 1, 1)).toBeUndefined();
});

test("lines for people", () => {
  const costs = guestCosts(MEASURED, 2, 1);
  expect(costs && costLines(costs)).toEqual([
    "node 0: a cache line in 80.0 ns, 20.0 GB/s",
    "node 0 to node 1: a page in 40.0 us, 1.00 GB/s",
    "node 1: a cache line in 90.0 ns, 21.0 GB/s",
  ]);
  const slow = { latencyNs: [[1049.6]], bandwidthMBps: [[1_234_567]] };
  expect(costLines(slow)).toEqual(["node 0: a cache line in 1050 ns, 1235 GB/s"]);
});
