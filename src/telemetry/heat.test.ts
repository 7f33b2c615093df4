import { describe, expect, test } from "bun:test";
import { blockAt, blockCount, heatBetween, hottest, sumHeat } from "./heat.ts";

const MIB = 2 ** 20;
const BLOCK = 2 * MIB;
/** A hole, as below 4 GiB, between the second node's parts. */
const RANGES = [
  { gpa: 0, bytes: 4 * MIB, node: 0 },
  { gpa: 4 * MIB, bytes: 2 * MIB, node: 1 },
  { gpa: 4096 * MIB, bytes: 6 * MIB, node: 1 },
];

describe("blocks", () => {
  test("number the RAM end to end, and say where in it they are", () => {
    expect(blockCount(RANGES, BLOCK)).toBe(6);
    expect(blockAt(RANGES, BLOCK, 1)).toEqual({ block: 1, gpa: BLOCK, bytes: BLOCK, home: 0 });
    const behind = { block: 3, gpa: 4096 * MIB, bytes: BLOCK, home: 1 };
    expect(blockAt(RANGES, BLOCK, 3)).toEqual(behind);
    expect(blockAt(RANGES, BLOCK, 6)).toBeUndefined();
  });

  test("the last one ends with the RAM", () => {
    expect(blockCount(RANGES, 8 * MIB)).toBe(2);
    const last = { block: 1, gpa: 4098 * MIB, bytes: 4 * MIB, home: 1 };
    expect(blockAt(RANGES, 8 * MIB, 1)).toEqual(last);
    expect(blockCount([], 0)).toBe(0);
  });
});

describe("what happened between two looks", () => {
  const heat = (...faults: number[]) => ({ blockBytes: BLOCK, faults });
  test("is the difference, also over the end of a counter's range", () => {
    expect(heatBetween(undefined, heat(3, 4))).toEqual([3, 4]);
    expect(heatBetween(heat(3), heat(5, 7))).toEqual([2, 7]);
    expect(heatBetween(heat(2 ** 32 - 1, 0), heat(4, 1))).toEqual([5, 1]);
  });

  test("is all of it where the engine is another one", () => {
    expect(heatBetween(heat(30, 40), heat(2, 41))).toEqual([2, 41]);
    expect(heatBetween({ blockBytes: 1, faults: [1] }, heat(2))).toEqual([2]);
  });
});

test("the hottest blocks of all nodes", () => {
  const counts = sumHeat([[1, 0, 5], [1], [0, 0, 0, 9]]);
  expect(counts).toEqual([2, 0, 5, 9]);
  const hot = hottest(RANGES, BLOCK, counts, 2);
  expect(hot.map(({ gpa, home, faults }) => [gpa, home, faults])).toEqual([
    [4096 * MIB, 1, 9],
    [4 * MIB, 1, 5],
  ]);
  expect(hottest(RANGES, BLOCK, [0, 0], 3)).toEqual([]);
});
