// What the store promises beside what every store does: all of it is still there after the process
// was killed.

import { Database } from "bun:sqlite";
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { SqliteStore } from "./sqlite-store.ts";
import { promisesOf } from "./store-promises.fixture.ts";

const base = mkdtempSync(join(tmpdir(), "ssihv-store-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));

let count = 0;
const fresh = () => join(base, `${count++}`, "state.sqlite");

promisesOf("sqlite", async () => new SqliteStore(fresh()));

test("revisions count the changes of a record", async () => {
  const store = new SqliteStore(fresh());
  expect(await store.get("vm", "a")).toBeUndefined();
  expect(await store.apply([{ kind: "vm", id: "a", value: { n: 1 } }])).toBe(true);
  expect(await store.get("vm", "a")).toEqual({ id: "a", revision: 1, value: { n: 1 } });
  await store.apply([{ kind: "vm", id: "a", value: { n: 2 }, ifRevision: 1 }]);
  expect(await store.get("vm", "a")).toEqual({ id: "a", revision: 2, value: { n: 2 } });
  expect(await store.get("host", "a")).toBeUndefined();
  await store.apply([
    { kind: "vm", id: "b", value: 3 },
    { kind: "vm", id: "a", value: undefined },
  ]);
  expect(await store.list("vm")).toEqual([{ id: "b", revision: 1, value: 3 }]);
  store.close();
});

test("what was told as done is there after kill -9", async () => {
  const path = fresh();
  const module = JSON.stringify(join(import.meta.dir, "sqlite-store.ts"));
  const script = `
    const { SqliteStore } = await import(${module});
    const store = new SqliteStore(${JSON.stringify(path)});
    for (let n = 1; ; n++) {
      await store.apply([
        { kind: "vm", id: "a", value: n },
        { kind: "host", id: "b", value: n },
      ]);
      console.log(n);
    }`;
  let told = 0;
  for (let round = 0; round < 3; round++) {
    const child = Bun.spawn([process.execPath, "-e", script], {
      stdout: "pipe",
      stderr: "inherit",
    });
    let text = "";
    for await (const chunk of child.stdout) {
      text += new TextDecoder().decode(chunk);
      if (text.split("\n").length > 20) child.kill("SIGKILL");
    }
    await child.exited;
    told = Number(text.trim().split("\n").at(-1));
    const store = new SqliteStore(path);
    const [vm, host] = [await store.get("vm", "a"), await store.get("host", "b")];
    store.close();
    // The last one may have been written without having been told yet.
    expect([told, told + 1]).toContain(vm?.value as number);
    expect(host?.value).toBe(vm?.value as number);
  }
  expect(told).toBeGreaterThan(18);
});

test("a state of another version is refused, not changed", () => {
  const path = fresh();
  new SqliteStore(path).close();
  const database = new Database(path);
  database.run("PRAGMA user_version = 99");
  database.close();
  expect(() => new SqliteStore(path)).toThrow("cannot be used as the state");
});
