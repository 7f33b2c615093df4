import { expect, test } from "bun:test";

import { enterSandbox } from "./sandbox.ts";

/** A host that allows what it is told to; `done` is what was asked of it, in order. */
function fakeHost(refused: readonly string[] = []) {
  const done: string[] = [];
  const call = (name: string) => {
    done.push(name);
    if (refused.includes(name)) throw new Error(`${name} is not allowed`);
  };
  const calls = {
    becomeUser: (user: number, priority: number) => call(`user ${user} ${priority}`),
    dieWithParent: () => call("parent"),
    filterCalls: () => call("filter"),
  };
  return { done, calls };
}

test("another user first, then the parent's death once more, then the filter", () => {
  const { done, calls } = fakeHost();
  const state = enterSandbox({ mode: "auto", user: 7 }, 10, calls);
  expect(done).toEqual(["user 7 10", "parent", "filter"]);
  expect(state).toEqual({ user: 7, filter: true, missing: [] });
});

test("what a host does not allow is told, and the rest is done", () => {
  const { done, calls } = fakeHost(["user 7 0"]);
  expect(enterSandbox({ mode: "auto", user: 7 }, 0, calls)).toEqual({
    filter: true,
    missing: ["user 7 0 is not allowed"],
  });
  expect(done).toEqual(["user 7 0", "parent", "filter"]);
  const noFilter = fakeHost(["filter"]);
  expect(enterSandbox({ mode: "auto" }, 0, noFilter.calls)).toEqual({
    filter: false,
    missing: ["filter is not allowed"],
  });
});

test("where it is required the engine does not go on without", () => {
  const { calls } = fakeHost(["filter"]);
  expect(() => enterSandbox({ mode: "required", user: 7 }, 0, calls)).toThrow(
    "no sandbox for the engine: filter is not allowed",
  );
});

test("an engine that its parent left does not go on in any case", () => {
  const { calls, done } = fakeHost(["parent"]);
  expect(() => enterSandbox({ mode: "auto", user: 7 }, 0, calls)).toThrow("parent");
  expect(done).not.toContain("filter");
});

test("turned off nothing is done", () => {
  const { done, calls } = fakeHost();
  expect(enterSandbox({ mode: "off" }, 0, calls).filter).toBe(false);
  expect(done).toEqual([]);
});
