import { expect, test } from "bun:test";
import { pollUsMaxFor } from "./polling.ts";

test("an engine polls where there is a CPU beside every vCPU", () => {
  expect(pollUsMaxFor(8, 4, 1)).toBeGreaterThan(0);
  expect(pollUsMaxFor(5, 4, 1)).toBeGreaterThan(0);
  expect(pollUsMaxFor(4, 4, 1)).toBe(0);
  expect(pollUsMaxFor(4, 2, 2)).toBeGreaterThan(0);
  expect(pollUsMaxFor(3, 2, 2)).toBe(0);
  expect(pollUsMaxFor(1, 1, 1)).toBe(0);
});
