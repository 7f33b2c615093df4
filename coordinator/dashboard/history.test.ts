import { describe, expect, test } from "bun:test";
import type { NodeStats } from "../../src/telemetry/node-metrics.ts";
import { HeatHistory, History, NodeHistory, REMEMBERED } from "./history.ts";

function stats(remote: number, buckets: readonly number[] = [0, remote]): NodeStats {
  return {
    node: 0,
    engine: { faults_remote: remote, pages_received: 2 * remote },
    vcpus: [{ exits: 0 }],
    faultLatency: { count: remote, sum_ns: remote, buckets },
  };
}

describe("a node's last minutes", () => {
  test("rates between samples, none over a gap, nothing twice", () => {
    const history = new NodeHistory();
    history.add(1000, stats(10));
    history.add(2000, stats(30));
    history.add(2000, stats(30));
    history.add(30_000, stats(90));
    history.add(30_500, stats(91));
    const rates = history.samples.map(({ at, rates }) => [at, rates?.remoteFaults, rates?.pagesIn]);
    expect(rates).toEqual([
      [1000, undefined, undefined],
      [2000, 20, 40],
      [30_000, undefined, undefined],
      [30_500, 2, 4],
    ]);
  });

  test("only so many of them; a clock that was set back begins anew", () => {
    const history = new NodeHistory();
    for (let i = 0; i < REMEMBERED + 100; i++) history.add(i * 1000, stats(i));
    expect(history.samples.length).toBe(REMEMBERED + 1);
    history.add(5000, stats(1));
    expect(history.samples.map(({ at }) => at)).toEqual([5000]);
  });

  test("the latency of a window, and of an engine that was started anew", () => {
    const history = new NodeHistory();
    history.add(0, stats(1, [1, 0]));
    history.add(4000, stats(3, [1, 2]));
    history.add(8000, stats(6, [2, 4]));
    expect(history.latency(5)).toEqual([1, 2]);
    expect(history.latency(60)).toEqual([1, 4]);
    expect(history.latency(null)).toEqual([2, 4]);
    history.add(9000, stats(1, [0, 1]));
    expect(history.latency(60)).toEqual([0, 1]);
    expect(new NodeHistory().latency(60)).toEqual([]);
  });
});

test("another run of a VM has no part in the history of the one before", () => {
  const history = new History();
  const first = history.of("demo", "monday");
  expect(history.of("demo", "monday")).toBe(first);
  expect(history.of("demo", "tuesday")).not.toBe(first);
  const second = history.of("demo", "tuesday");
  // It has ended: what was before its end is still there.
  expect(history.of("demo", null)).toBe(second);
  history.keep(new Set());
  expect(history.of("demo", "tuesday")).not.toBe(second);
});

test("heat of a window: since the look before it", () => {
  const heat = new HeatHistory(60_000);
  expect(heat.counts(10)).toEqual(new Map());
  const look = (...faults: number[]) => new Map([[0, { blockBytes: 1, faults }]]);
  heat.add(0, look(5));
  // One look tells nothing of a window, all of what was before.
  expect(heat.counts(10)).toEqual(new Map([[0, [0]]]));
  expect(heat.counts(null)).toEqual(new Map([[0, [5]]]));
  heat.add(50_000, look(6));
  heat.add(70_000, look(9, 1));
  expect(heat.counts(10)).toEqual(new Map([[0, [3, 1]]]));
  expect(heat.counts(60)).toEqual(new Map([[0, [4, 1]]]));
  heat.add(130_000, look(9, 2));
  expect(heat.counts(60)).toEqual(new Map([[0, [0, 1]]]));
});
