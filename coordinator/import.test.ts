// What an import may do to a store, and what it refuses; stores in files stand in for an etcd.

import { Database } from "bun:sqlite";
import { afterAll, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

import { importState } from "./import.ts";
import { SqliteStore } from "./sqlite-store.ts";
import { type Change, KINDS, type Store } from "./store.ts";

const base = mkdtempSync(join(tmpdir(), "ssihv-import-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));

let count = 0;
const fresh = () => join(base, `${count++}`, "state.sqlite");
const soon = new Date(Date.now() + 3_600_000).toISOString();
const past = new Date(Date.now() - 1000).toISOString();

const RECORDS: readonly Change[] = [
  { kind: "host", id: "a", value: { joinedAt: past, capacity: { cpus: 2 } } },
  { kind: "host", id: "b", value: { joinedAt: past } },
  { kind: "vm", id: "web", value: { slot: 0, run: { id: "r", since: past, places: [] } } },
  { kind: "token", id: "old", value: { secret: "s", expiresAt: past } },
  { kind: "token", id: "new", value: { secret: "s", expiresAt: soon } },
];

async function storeWith(records: readonly Change[]): Promise<SqliteStore> {
  const store = new SqliteStore(fresh());
  await store.apply(records);
  return store;
}

async function all(store: Store): Promise<Record<string, unknown>> {
  const lists = await Promise.all(
    KINDS.map(async (kind) => {
      return (await store.list(kind)).map(({ id, value }) => [`${kind} ${id}`, value] as const);
    }),
  );
  return Object.fromEntries(lists.flat());
}

/** Whose changes are seen, and fail from the nth on. */
function watched(store: Store, failFrom = Number.POSITIVE_INFINITY) {
  const batches: (readonly Change[])[] = [];
  const apply = async (changes: readonly Change[]) => {
    if (batches.length + 1 >= failFrom) throw new Error("etcd is gone");
    batches.push(changes);
    return await store.apply(changes);
  };
  const to: Store = {
    get: (kind, id) => store.get(kind, id),
    list: (kind) => store.list(kind),
    apply,
    close: () => store.close(),
  };
  return { to, batches };
}

const COUNTS = { hosts: 2, vms: 1, tokens: 1 };

test("all records but tokens that have expired; again nothing is written", async () => {
  const [from, target] = [await storeWith(RECORDS), await storeWith([])];
  const { to, batches } = watched(target);
  expect(await importState(from, to, false)).toEqual({ ...COUNTS, written: 4 });
  const brought = await all(target);
  const { "token old": expired, ...rest } = await all(from);
  expect(expired).toBeDefined();
  expect(brought).toEqual(rest);
  expect(batches.length).toBe(1);
  expect(await importState(from, to, true)).toEqual({ ...COUNTS, written: 0 });
  expect(batches.length).toBe(1);
});

test("a state of its own is told, and nothing is written", async () => {
  const from = await storeWith(RECORDS);
  const [host, , vm, , token] = RECORDS as [Change, Change, Change, Change, Change];
  const many = Array.from(
    { length: 7 },
    (_, i) => ({ kind: "host", id: `h${i}`, value: {} }) as const,
  );
  const cases: [readonly Change[], boolean, string][] = [
    [[{ ...host, value: { joinedAt: soon } }], true, "host a differs"],
    [[...RECORDS, { kind: "vm", id: "db", value: {} }], true, "vm db is only there"],
    [many, true, "host h3 is only there; host h4 is only there; 6 more"],
    // What was removed there does not come back.
    [[host, vm, token], true, "host b is not there any more"],
    [[], true, "host a is not there any more; host b is"],
    // Of another state, whose import was cut.
    [
      [
        { kind: "import", id: "state", value: {} },
        { ...vm, value: {} },
      ],
      true,
      "vm web differs",
    ],
  ];
  for (const [records, used, words] of cases) {
    const target = await storeWith(records);
    const { to, batches } = watched(target);
    const before = await all(target);
    await expect(importState(from, to, used)).rejects.toThrow(
      new RegExp(`^this etcd has a state of its own: .*${words}`),
    );
    expect(batches).toEqual([]);
    expect(await all(target)).toEqual(before);
  }
});

test("one that is cut is marked until it is whole, in changes that an etcd takes", async () => {
  const text = "x".repeat(20_000);
  const hosts = Array.from({ length: 330 }, (_, i) => {
    return { kind: "host", id: `h${String(i).padStart(3, "0")}`, value: { i } } as const;
  });
  const vms = Array.from({ length: 150 }, (_, i) => {
    return { kind: "vm", id: `v${i}`, value: { i, text } } as const;
  });
  const [from, target] = [await storeWith([...hosts, ...vms]), await storeWith([])];
  for (const failFrom of [3, 2, 1]) {
    const { to, batches } = watched(target, failFrom);
    await expect(importState(from, to, failFrom < 3)).rejects.toThrow("gone");
    expect(batches.length).toBe(failFrom - 1);
    expect(await target.get("import", "state")).toBeDefined();
  }
  const { to, batches } = watched(target);
  // 300 hosts are there.
  expect(await importState(from, to, true)).toMatchObject({ hosts: 330, vms: 150, written: 180 });
  expect(await all(target)).toEqual(await all(from));
  expect(batches.length).toBe(4);
  for (const batch of batches) {
    expect(batch.length).toBeLessThanOrEqual(126);
    expect(Buffer.byteLength(JSON.stringify(batch))).toBeLessThan(1_200_000);
  }
  // Cut where all had been written already: the mark goes.
  await target.apply([{ kind: "import", id: "state", value: {} }]);
  expect(await importState(from, target, true)).toMatchObject({ written: 0 });
  expect(await target.get("import", "state")).toBeUndefined();
});

test("somebody who writes at the same time is noticed", async () => {
  const [from, target] = [await storeWith(RECORDS), await storeWith([])];
  const { to } = watched(target);
  const late: Store = {
    ...to,
    apply: async (changes) => {
      await target.apply([{ kind: "host", id: "a", value: 1 }]);
      return await target.apply(changes);
    },
  };
  await expect(importState(from, late, false)).rejects.toThrow("somebody else writes");
  expect(await all(target)).toEqual({ "host a": 1 });
});

test("a state is looked at, locked meanwhile, and stays as it is", async () => {
  const path = fresh();
  const own = new SqliteStore(path);
  await own.apply(RECORDS);
  expect(() => new SqliteStore(path, "look")).toThrow(`${path} is in use`);
  own.close();
  const bytes = readFileSync(path);
  const look = new SqliteStore(path, "look");
  expect(Object.keys(await all(look)).length).toBe(RECORDS.length);
  await expect(look.apply([{ kind: "host", id: "a", value: 1 }])).rejects.toThrow("cannot be used");
  expect(() => new SqliteStore(path)).toThrow("in use");
  look.close();
  expect(readdirSync(dirname(path))).toEqual(["state.sqlite"]);
  expect(readFileSync(path).equals(bytes)).toBe(true);
});

test("what a killed coordinator told as done is looked at, too", async () => {
  const path = fresh();
  const module = JSON.stringify(join(import.meta.dir, "sqlite-store.ts"));
  const script = `
    const { SqliteStore } = await import(${module});
    const store = new SqliteStore(${JSON.stringify(path)});
    await store.apply([{ kind: "vm", id: "a", value: 1 }]);
    process.kill(process.pid, "SIGKILL");`;
  await Bun.spawn([process.execPath, "-e", script], { stderr: "inherit" }).exited;
  expect(readdirSync(dirname(path))).toContain("state.sqlite-wal");
  for (const use of ["look", "look", "own"] as const) {
    const store = new SqliteStore(path, use);
    expect(await all(store)).toEqual({ "vm a": 1 });
    store.close();
    expect(readdirSync(dirname(path))).toEqual(["state.sqlite"]);
  }
});

test("what is no state is not made one", () => {
  const path = fresh();
  expect(() => new SqliteStore(path, "look")).toThrow(`there is no ${path}`);
  mkdirSync(dirname(path));
  writeFileSync(path, "no database at all, though long enough to be one".repeat(100));
  expect(() => new SqliteStore(path, "look")).toThrow("cannot be used as the state");
  writeFileSync(path, "");
  expect(() => new SqliteStore(path, "look")).toThrow("cannot be used as the state");
  expect(readFileSync(path).length).toBe(0);
  const newer = fresh();
  new SqliteStore(newer).close();
  const database = new Database(newer);
  database.run("PRAGMA user_version = 99");
  database.close();
  expect(() => new SqliteStore(newer, "look")).toThrow("cannot be used as the state");
});
