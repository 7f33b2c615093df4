import { afterAll, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { ControlGroups, engineBytesMax, ownGroup } from "./control-group.ts";

const root = mkdtempSync(join(tmpdir(), "ssihv-group-"));
afterAll(() => rmSync(root, { recursive: true }));
let count = 0;

/** Files as the kernel shows them to a service with Delegate=yes. */
function service({ controllers = "cpu memory pids", procs = "4711\n" } = {}) {
  count += 1;
  const name = `/system.slice/ssihv-${count}.service`;
  const path = join(root, name);
  mkdirSync(path, { recursive: true });
  writeFileSync(join(path, "cgroup.controllers"), `${controllers}\n`);
  writeFileSync(join(path, "cgroup.procs"), procs);
  const mounts = `proc /proc proc rw 0 0\ncgroup2 ${root} cgroup2 rw,nosuid 0 0\n`;
  return { path, files: { self: `4:memory:/x\n0::${name}\n`, mounts, pid: 4711 } };
}

function opened(files: ReturnType<typeof service>["files"]): ControlGroups {
  const groups = ControlGroups.open(files);
  if (typeof groups === "string") throw new Error(groups);
  return groups;
}

test("an agent moves aside, and gives each engine its limit", () => {
  const { path, files } = service();
  const groups = opened(files);
  expect(readFileSync(join(path, "agent/cgroup.procs"), "utf8")).toBe("4711");
  expect(readFileSync(join(path, "cgroup.subtree_control"), "utf8")).toBe("+memory");
  expect(groups.add(99, 1 << 30)).toBeUndefined();
  expect(readFileSync(join(path, "engine-99/memory.max"), "utf8")).toBe(String(1 << 30));
  expect(readFileSync(join(path, "engine-99/cgroup.procs"), "utf8")).toBe("99");
});

test("the group of an engine that is gone goes, and what a killed agent left", async () => {
  const { path, files } = service();
  // As it is in the kernel: a group is removed by rmdir though it shows files.
  mkdirSync(join(path, "engine-5"));
  const groups = opened(files);
  expect(existsSync(join(path, "engine-5"))).toBe(false);
  mkdirSync(join(path, "engine-6"));
  await groups.remove(6);
  expect(existsSync(join(path, "engine-6"))).toBe(false);
  await groups.remove(7);
});

test("where groups are not the agent's to divide there are none, and why is said", () => {
  const { files } = service({ procs: "4711\n4712\n" });
  expect(ControlGroups.open(files)).toContain("is not its own");
  expect(ControlGroups.open(service({ controllers: "cpu" }).files)).toContain("cannot limit");
  const none = { self: "4:memory:/x\n", mounts: "proc /proc proc rw 0 0\n", pid: 1 };
  expect(ControlGroups.open(none)).toContain("no control groups of version 2");
  const { path, files: blocked } = service();
  writeFileSync(join(path, "agent"), "a file where the folder should be");
  expect(ControlGroups.open(blocked)).toContain("may not be divided (");
});

test("one that cannot be made is told, not thrown", () => {
  const { path, files } = service();
  const groups = opened(files);
  writeFileSync(join(path, "engine-8"), "");
  expect(groups.add(8, 1)).toContain("cannot be made (EEXIST)");
});

test("the group is found below the mount of version 2, beside those of version 1", () => {
  const { path, files } = service();
  expect(ownGroup(files)).toBe(path);
  expect(ownGroup({ ...files, self: "0::/\n" })).toBe(join(root, "/"));
});

test("a limit leaves room for all that an honest engine takes", () => {
  const GIB = 2 ** 30;
  const nodes = [{ memoryBytes: 4 * GIB }, { memoryBytes: 4 * GIB }];
  // Without a limit of its cache it may come to hold every page of the VM.
  const open = engineBytesMax(nodes, 0);
  expect(open).toBeGreaterThan(8 * GIB + 8 * GIB * (44 / 4096));
  expect(open).toBeLessThan(10 * GIB);
  const small = [{ memoryBytes: 4 * GIB, residentBytes: GIB, cacheBytes: GIB / 4 }, ...nodes];
  expect(engineBytesMax(small, 0)).toBeGreaterThan(1.25 * GIB);
  // Tables of pages that have left stay: those of all 12 GiB.
  expect(engineBytesMax(small, 0)).toBeGreaterThan(1.25 * GIB + 12 * GIB * (3 / 512 + 44 / 4096));
  expect(engineBytesMax(small, 0)).toBeLessThan(3 * GIB);
  const lender = [{ memoryBytes: 4 * GIB }, { memoryBytes: 0, lentBytes: 2 * GIB }];
  expect(engineBytesMax(lender, 1)).toBeGreaterThan(2 * GIB);
  expect(engineBytesMax(lender, 1)).toBeLessThan(3 * GIB);
});
