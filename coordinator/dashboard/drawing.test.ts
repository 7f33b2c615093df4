import { expect, test } from "bun:test";
import { heatStep, niceMax, pathOf } from "./drawing.ts";

test("axes end at round numbers", () => {
  expect([0, 0.03, 1, 1.1, 4, 51, 1000].map(niceMax)).toEqual([1, 0.05, 1, 2, 5, 100, 1000]);
});

test("a line has gaps where nothing is known, and dots between them", () => {
  const points = [null, [0, 1], [2, 3], null, null, [4, 5], null] as const;
  expect(pathOf(points)).toBe("M0.0 1.0h0L2.0 3.0M4.0 5.0h0");
  expect(pathOf([])).toBe("");
});

test("colours by decades", () => {
  expect([0, 1, 9, 10, 99, 100, 9999, 10_000, 1e9].map(heatStep)).toEqual([
    ...[0, 1, 1, 2, 2, 3, 4, 5, 5],
  ]);
});
