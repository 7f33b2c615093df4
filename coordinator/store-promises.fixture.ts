// What every store promises, as tests: changes together or not at all, revisions that notice
// others, reads that see the last change.

import { describe, expect, test } from "bun:test";

import type { Store } from "./store.ts";

const PROMISES: Record<string, (store: Store) => Promise<void>> = {
  "records keep their value, and their revision grows": async (store) => {
    expect(await store.get("vm", "a")).toBeUndefined();
    const value = { text: 'ü "quoted" \u0000 / %', n: 1.5, none: null, list: [[], {}] };
    expect(await store.apply([{ kind: "vm", id: "a", value }])).toBe(true);
    const first = await store.get("vm", "a");
    expect(first).toEqual({ id: "a", revision: first?.revision ?? 0, value });
    expect(first?.revision).toBeGreaterThan(0);
    const ifRevision = first?.revision ?? 0;
    expect(await store.apply([{ kind: "vm", id: "a", value: 2, ifRevision }])).toBe(true);
    const second = await store.get("vm", "a");
    expect(second?.value).toBe(2);
    expect(second?.revision).toBeGreaterThan(ifRevision);
    // Of another kind with the same name, and with names that begin alike.
    expect(await store.get("host", "a")).toBeUndefined();
    for (const id of ["c", "ab", "a-b", "a/b"]) {
      await store.apply([{ kind: "vm", id, value: id, ifRevision: 0 }]);
    }
    expect((await store.list("vm")).map(({ id }) => id)).toEqual(["a", "a-b", "a/b", "ab", "c"]);
    expect(await store.list("host")).toEqual([]);
    await store.apply([
      { kind: "vm", id: "a", value: undefined },
      { kind: "vm", id: "none", value: undefined },
    ]);
    expect(await store.get("vm", "a")).toBeUndefined();
  },

  "one change that does not apply leaves all of them out": async (store) => {
    await store.apply([{ kind: "token", id: "t", value: 1 }]);
    const ifRevision = (await store.get("token", "t"))?.revision ?? 0;
    const taken = [
      { kind: "token", id: "t", value: undefined, ifRevision },
      { kind: "host", id: "h", value: 1, ifRevision: 0 },
    ] as const;
    expect(await store.apply(taken)).toBe(true);
    expect(await store.apply(taken)).toBe(false);
    await store.apply([{ kind: "token", id: "u", value: 1 }]);
    const late = [{ kind: "token", id: "u", value: undefined }, taken[1]] as const;
    expect(await store.apply(late)).toBe(false);
    expect((await store.list("token")).map(({ id }) => id)).toEqual(["u"]);
  },

  "of many that change one record at a time one succeeds, each time": async (store) => {
    const wins = await Promise.all(
      Array.from({ length: 8 }, async (_, id) => {
        let won = 0;
        for (let i = 0; i < 5; i++) {
          const { revision = 0, value = 0 } = (await store.get("vm", "sum")) ?? {};
          const next = { kind: "vm", id: "sum", value: Number(value) + 1 } as const;
          const mine = { kind: "vm", id: `mine-${id}`, value: i } as const;
          if (await store.apply([{ ...next, ifRevision: revision }, mine])) won += 1;
        }
        return won;
      }),
    );
    const total = wins.reduce((sum, won) => sum + won, 0);
    expect((await store.get("vm", "sum"))?.value).toBe(total);
    expect(total).toBeGreaterThanOrEqual(5);
  },

  "many records are listed whole and in order": async (store) => {
    const ids = Array.from({ length: 700 }, (_, i) => `vm-${String(i).padStart(4, "0")}`);
    for (let i = 0; i < ids.length; i += 100) {
      const part = ids.slice(i, i + 100);
      await store.apply(part.map((id) => ({ kind: "vm", id, value: { id } })));
    }
    const listed = await store.list("vm");
    expect(listed.map(({ id }) => id)).toEqual(ids);
    expect(listed.every(({ id, value }) => (value as { id: string }).id === id)).toBe(true);
  },
};

/** `open`: another one each time, with nothing in it. */
export function promisesOf(name: string, open: () => Promise<Store>): void {
  describe(name, () => {
    for (const [what, holds] of Object.entries(PROMISES)) {
      test(what, async () => {
        const store = await open();
        await holds(store);
        store.close();
      });
    }
  });
}
