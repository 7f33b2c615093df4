// The event ring as the engine's TypeScript reads it. Its other end is zig/engine/events.zig.

import { expect, spyOn, test } from "bun:test";
import { records } from "./abi.gen.ts";
import { SharedPage } from "./shared-page.ts";

const HEAD = records.Shared.fields.ring.offset;

test("an event added while others are taken is taken too: no bell rings for it", () => {
  const page = SharedPage.create();
  try {
    const { buffer } = (page as unknown as { bytes: Uint8Array }).bytes;
    const [head, tail] = [0, 1];
    const heads = new Int32Array(buffer, HEAD, 2);
    heads[head] = 3;
    const store = Atomics.store.bind(Atomics) as (a: Int32Array, i: number, v: number) => number;
    const spy = spyOn(Atomics, "store").mockImplementation(((
      a: Int32Array,
      i: number,
      v: number,
    ) => {
      // Once, between the look at the head and the new tail.
      if (heads[head] === 3) heads[head] = 4;
      return store(a, i, v);
    }) as typeof Atomics.store);
    try {
      expect(page.takeEvents().length).toBe(4);
    } finally {
      spy.mockRestore();
    }
    expect(heads[tail]).toBe(4);
    expect(page.takeEvents()).toEqual([]);
  } finally {
    page.close();
  }
});
