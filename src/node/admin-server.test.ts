// The admin socket with clients of every kind: honest, hostile, dead. Everything lies in a folder
// of this test's.

import { afterAll, afterEach, beforeEach, expect, test } from "bun:test";
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { SsihvError } from "../base/errors.ts";
import { askAdmin, findVm, runningVms } from "./admin-client.ts";
import { sweepDead } from "./admin-name.ts";
import { AdminServer } from "./admin-server.ts";
import type { VmFacts, VmObserved } from "./vm-view.ts";

const base = mkdtempSync(join(tmpdir(), "ssihv-admin-"));
const before = process.env["SSIHV_RUNTIME_DIR"];
let folder = "";
const open: AdminServer[] = [];

beforeEach(() => {
  folder = mkdtempSync(join(base, "t-"));
  process.env["SSIHV_RUNTIME_DIR"] = folder;
});
afterEach(() => {
  for (const server of open.splice(0)) server.close();
});
afterAll(() => {
  if (before === undefined) delete process.env["SSIHV_RUNTIME_DIR"];
  else process.env["SSIHV_RUNTIME_DIR"] = before;
  rmSync(base, { recursive: true, force: true });
});

const FACTS: VmFacts = {
  name: "demo",
  role: "lead",
  state: "running",
  shape: [{ id: 0, vcpus: 1, memoryBytes: 2 ** 27 }],
  nodes: [{ node: 0, pid: 1 }],
};

const VM: VmObserved = {
  facts: () => FACTS,
  ask: (_, question) => {
    if (question.kind !== "pages") return Promise.reject(new Error("its engine broke"));
    const pages = Array.from({ length: question.count }, (_, i) => {
      const gpa = question.gpa + i * 4096;
      return { gpa, home: 0, copy: { access: "invalid" as const, version: 0, revokesDeferred: 0 } };
    });
    return Promise.resolve({ kind: "pages", pages });
  },
};

async function serve(vm = "demo", chosen = true, node?: number): Promise<AdminServer> {
  const server = await AdminServer.open({ vm, chosen, ...(node !== undefined && { node }) });
  open.push(server);
  server.serve(VM);
  return server;
}

async function errorOf(promise: Promise<unknown>): Promise<SsihvError> {
  const error = await promise.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (error instanceof SsihvError) return error;
  throw new Error("no error of ours");
}

/** A client that writes anything and reads lines. */
class Rude {
  readonly lines: string[] = [];
  closed = false;
  private text = "";
  private wake = Promise.withResolvers<void>();
  private socket: Bun.Socket<undefined> | undefined;

  static async to(path: string): Promise<Rude> {
    const rude = new Rude();
    rude.socket = await Bun.connect<undefined>({
      unix: path,
      socket: {
        data: (_, bytes) => rude.take(new TextDecoder().decode(bytes)),
        close: () => {
          rude.closed = true;
          rude.wake.resolve();
        },
      },
    });
    return rude;
  }

  write(text: string): void {
    this.socket?.write(text);
  }

  pause(): void {
    this.socket?.pause();
  }

  resume(): void {
    this.socket?.resume();
  }

  async until(done: () => boolean): Promise<void> {
    while (!done()) {
      if (this.closed) throw new Error(`closed after ${JSON.stringify(this.lines)}`);
      await this.wake.promise;
      this.wake = Promise.withResolvers<void>();
    }
  }

  async untilClosed(): Promise<void> {
    while (!this.closed) {
      await this.wake.promise;
      this.wake = Promise.withResolvers<void>();
    }
  }

  end(): void {
    this.socket?.terminate();
  }

  private take(text: string): void {
    const pieces = (this.text + text).split("\n");
    this.text = pieces.pop() ?? "";
    this.lines.push(...pieces);
    this.wake.resolve();
  }
}

test("only its user can reach it, and it goes away", async () => {
  const server = await serve();
  expect(lstatSync(server.path).mode & 0o777).toBe(0o600);
  expect(readdirSync(folder)).toEqual(["demo.sock"]);
  server.close();
  server.close();
  expect(readdirSync(folder)).toEqual([]);
});

test("answers list and pages; what goes wrong in a VM is an error of that request", async () => {
  const { path } = await serve();
  expect(await askAdmin(path, { op: "list" }, 2000)).toMatchObject({ name: "demo", nodes: 1 });
  const pages = await askAdmin(path, { op: "pages", gpa: 0x1000, count: 1024 }, 2000);
  expect((pages as { pages: unknown[] }).pages.length).toBe(1024);
  const error = await errorOf(askAdmin(path, { op: "pages", gpa: 2 ** 40, count: 1 }, 2000));
  expect(error.code).toBe("gpa_invalid");
  expect(error.hint).toContain("0x0 to 0x7ffffff (node 0)");
  expect(await askAdmin(path, { op: "heat" }, 2000)).toMatchObject({
    ...{ vm: "demo", nodes: [{ node: 0, heat: null, silent: "its engine broke" }] },
  });
  expect(await askAdmin(path, { op: "stats" }, 2000)).toMatchObject({
    ...{ name: "demo", nodes: [{ node: 0, stats: null, silent: "its engine broke" }] },
  });
  expect(await askAdmin(path, { op: "show" }, 2000)).toMatchObject({
    nodes: [{ silent: "its engine broke" }],
  });
});

test("a VM that is not started yet says so", async () => {
  const server = await AdminServer.open({ vm: "early", chosen: true });
  open.push(server);
  const error = await errorOf(askAdmin(server.path, { op: "list" }, 2000));
  expect([error.code, error.message]).toEqual(["vm_silent", "the VM is not started yet"]);
});

test("garbage gets an error each, in order, and the connection goes on", async () => {
  const { path } = await serve();
  const rude = await Rude.to(path);
  const bad = [
    "garbage",
    "[]",
    '{"id":1,"op":"format"}',
    '{"id":2,"op":"pages","gpa":"x"}',
    "\0\xff",
  ];
  rude.write(`${bad.join("\n")}\n{"id":3,"op":"list"}\n`);
  await rude.until(() => rude.lines.length === bad.length + 1);
  const replies = rude.lines.map((line) => JSON.parse(line));
  expect(replies.map(({ id }) => id)).toEqual([null, null, 1, 2, null, 3]);
  for (const { error } of replies.slice(0, -1)) expect(error.code).toBe("request_invalid");
  expect(replies.at(-1).ok.name).toBe("demo");
  rude.end();
});

test("a line without end, or requests without number, end the connection with a word", async () => {
  const { path } = await serve();
  const endless = await Rude.to(path);
  endless.write("x".repeat(5000));
  await endless.untilClosed();
  expect(JSON.parse(endless.lines[0] ?? "").error.message).toContain("longer than 4096 bytes");
  const flood = await Rude.to(path);
  flood.write('{"id":1,"op":"list"}\n'.repeat(40));
  await flood.untilClosed();
  expect(JSON.parse(flood.lines.at(-1) ?? "").error.message).toContain("more than 16 requests");
  // Nobody else is harmed.
  expect(await askAdmin(path, { op: "list" }, 2000)).toMatchObject({ name: "demo" });
});

test("a client that does not read holds up nobody, and gets all once it reads", async () => {
  const { path } = await serve();
  const slow = await Rude.to(path);
  slow.pause();
  // Far more than the socket's buffers hold.
  const big = '{"id":1,"op":"pages","gpa":0,"count":1024}\n';
  slow.write(big.repeat(12));
  await Bun.sleep(50);
  expect(await askAdmin(path, { op: "list" }, 2000)).toMatchObject({ name: "demo" });
  slow.resume();
  await slow.until(() => slow.lines.length === 12);
  for (const line of slow.lines) expect(JSON.parse(line).ok.pages.length).toBe(1024);
  slow.end();
});

test("clients that go in the middle of anything leave nothing behind", async () => {
  const { path } = await serve();
  for (const text of ["", '{"id":1,', '{"id":1,"op":"pages","gpa":0,"count":1024}\n'.repeat(8)]) {
    const rude = await Rude.to(path);
    rude.write(text);
    rude.end();
  }
  expect(await askAdmin(path, { op: "list" }, 2000)).toMatchObject({ name: "demo" });
});

test("too many connections are told so, and room comes back", async () => {
  const { path } = await serve();
  const many = await Promise.all(Array.from({ length: 32 }, () => Rude.to(path)));
  const error = await errorOf(askAdmin(path, { op: "list" }, 2000));
  expect(error.message).toContain("32 connections are open already");
  for (const rude of many) rude.end();
  while ((await askAdmin(path, { op: "list" }, 2000).catch(() => undefined)) === undefined) {
    await Bun.sleep(5);
  }
});

test("a name that is taken: an error if it was chosen, else another name", async () => {
  await serve("demo");
  const error = await errorOf(serve("demo"));
  expect(error.code).toBe("name_taken");
  expect(error.message).toBe(`a VM named demo runs here already (pid ${process.pid})`);
  expect((await serve("demo", false)).vm).toBe("demo-2");
  expect((await serve("demo", false)).vm).toBe("demo-3");
  // A joined host's node has names of its own.
  expect((await serve("demo", false, 1)).vm).toBe("demo");
  const names = ["demo-2.sock", "demo-3.sock", "demo.1.sock", "demo.sock"];
  expect(readdirSync(folder).sort()).toEqual(names);
});

/** Leaves a socket that nobody listens on, as a killed process does. */
async function leaveStale(name: string): Promise<string> {
  const path = join(folder, name);
  const script = `Bun.listen({ unix: ${JSON.stringify(path)}, socket: { data() {} } });
    process.kill(process.pid, "SIGKILL");`;
  await Bun.spawn([process.execPath, "-e", script]).exited;
  expect(existsSync(path)).toBe(true);
  return path;
}

test("a socket of a dead process is not listed and is replaced", async () => {
  const path = await leaveStale("demo.sock");
  expect((await runningVms()).vms).toEqual([]);
  expect(await askAdmin(path, { op: "list" }, 2000)).toBeUndefined();
  expect((await serve()).path).toBe(path);
  expect(await askAdmin(path, { op: "list" }, 2000)).toMatchObject({ name: "demo" });
  expect(readdirSync(folder)).toEqual(["demo.sock"]);
});

test("a lock that a dead command left is broken", async () => {
  const lock = join(folder, ".lock");
  writeFileSync(lock, "");
  utimesSync(lock, 0, 0);
  expect((await serve()).vm).toBe("demo");
  expect(readdirSync(folder)).toEqual(["demo.sock"]);
});

test("a sweep takes what killed commands left, and nothing of those that live", async () => {
  const live = await serve();
  await leaveStale("gone.sock");
  await leaveStale(".0123456789abcdef");
  const ended = Bun.spawn(["true"]);
  await ended.exited;
  writeFileSync(join(folder, ".lock"), String(ended.pid));
  writeFileSync(join(folder, "other"), "");
  await sweepDead();
  expect(readdirSync(folder).sort()).toEqual(["demo.sock", "other"]);
  expect(await askAdmin(live.path, { op: "list" }, 2000)).toMatchObject({ name: "demo" });
});

test("of many that want one dead VM's name at once, one gets it", async () => {
  await leaveStale("demo.sock");
  const results = await Promise.allSettled(Array.from({ length: 8 }, () => serve()));
  expect(results.filter(({ status }) => status === "fulfilled").length).toBe(1);
  for (const result of results) {
    if (result.status === "rejected") expect(result.reason.code).toBe("name_taken");
  }
  expect(readdirSync(folder)).toEqual(["demo.sock"]);
  expect(await askAdmin(join(folder, "demo.sock"), { op: "list" }, 2000)).toMatchObject({
    name: "demo",
  });
});

test("a folder that is not fit is told, with the way out", async () => {
  chmodSync(folder, 0o755);
  const error = await errorOf(serve());
  expect(error.code).toBe("admin_failed");
  expect(error.hint).toContain("SSIHV_RUNTIME_DIR");
  expect(String(error.cause)).toContain("mode 755");
  process.env["SSIHV_RUNTIME_DIR"] = join(folder, "x".repeat(90));
  expect(String((await errorOf(serve())).cause)).toMatch(/too long|mode/);
});

test("a VM is found by name, as the only one, or not at all", async () => {
  expect((await errorOf(findVm(undefined))).message).toContain("no VM of this user runs");
  await serve("demo", true, 1);
  expect((await findVm(undefined)).label).toBe("demo/1");
  expect((await findVm("demo")).label).toBe("demo/1");
  await serve("demo", true, 2);
  expect((await errorOf(findVm("demo"))).hint).toBe("name one: demo/1, demo/2");
  await serve("demo");
  // The lead knows all nodes.
  expect((await findVm("demo")).label).toBe("demo");
  expect((await findVm(undefined)).label).toBe("demo");
  expect((await findVm("demo/2")).label).toBe("demo/2");
  await serve("other");
  expect((await errorOf(findVm(undefined))).hint).toBe("name one: demo, demo/1, demo/2, other");
  const near = await errorOf(findVm("oter"));
  expect([near.code, near.hint]).toEqual(["vm_unknown", "did you mean other?"]);
});
