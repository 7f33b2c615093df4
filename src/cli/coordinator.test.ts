// `ssihv coordinator` and `ssihv cluster` as commands: where they look for each other, what they
// show, and how they end.

import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { freePorts } from "../base/free-ports.fixture.ts";
import { stateFolder } from "./coordinator.ts";
import { findCoordinator } from "./coordinator-address.ts";

const MAIN = [process.execPath, join(import.meta.dir, "fake-main.fixture.ts")];
const base = mkdtempSync(join(tmpdir(), "ssihv-cli-coordinator-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));

const env = {
  ...process.env,
  SSIHV_RUNTIME_DIR: join(base, "run"),
  SSIHV_CERTS: join(base, "certs"),
  SSIHV_COORDINATOR: "",
};

async function ssihv(...args: string[]) {
  const child = Bun.spawn([...MAIN, ...args], { env, stdout: "pipe", stderr: "pipe" });
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, out, err };
}

beforeAll(async () => {
  expect((await ssihv("certs", "init")).code).toBe(0);
});

test("is found on its host, answers over TLS, and is gone when it has ended", async () => {
  const before = await ssihv("cluster", "status");
  expect([before.code, before.err]).toEqual([10, expect.stringContaining("no coordinator runs")]);

  const port = freePorts(3);
  const state = join(base, "state");
  const flags = ["--listen", `127.0.0.1:${port}`, "--state", state];
  const child = Bun.spawn([...MAIN, "coordinator", ...flags], { env, stderr: "pipe" });
  const reader = child.stderr.getReader();
  const { value } = await reader.read();
  expect(new TextDecoder().decode(value)).toContain(`API on port ${port}, agents ${port + 1}`);

  const status = await ssihv("cluster", "status");
  expect([status.code, status.err]).toEqual([0, ""]);
  expect(status.out).toMatch(/^Coordinator: ssihv .*\nHosts: +0 up, 0 silent\nVMs: +none\n/s);
  const remote = await ssihv("cluster", "status", "--coordinator", `127.0.0.1:${port}`, "--json");
  expect(JSON.parse(remote.out)).toMatchObject({ hosts: [], vms: [] });
  const token = await ssihv("cluster", "token", "host-a", "--expires", "1min");
  expect(token.out).toMatch(/^ssihv-join-1\.[\w-]+\n$/);
  expect(token.err).toContain("lets host host-a join until");
  const unknown = await ssihv("cluster", "remove", "host-b");
  expect([unknown.code, unknown.err]).toEqual([2, expect.stringContaining("host host-b is not")]);
  // A socket of a coordinator is no VM's.
  expect((await ssihv("vm", "list", "--json")).out).toBe("[]\n");

  child.kill("SIGTERM");
  expect(await child.exited).toBe(0);
  expect(readdirSync(env.SSIHV_RUNTIME_DIR)).toEqual([]);
});

test("wrong flags and a second coordinator of the same state are told", async () => {
  const silence = await ssihv("coordinator", "--heartbeat", "5s", "--silence", "5s");
  expect([silence.code, silence.err]).toEqual([2, expect.stringContaining("--silence must be")]);
  const certs = await ssihv("coordinator", "--certs", join(base, "none"));
  expect([certs.code, certs.err]).toEqual([2, expect.stringContaining("holds no CA")]);
  const long = await ssihv("cluster", "token", "--expires", "20000min");
  expect([long.code, long.err]).toEqual([2, expect.stringContaining("--expires")]);
});

test("which coordinator is meant: the flag, the environment, this host's socket", () => {
  const tls = { kind: "tls", target: { host: "c", port: 7780 } } as const;
  expect(findCoordinator(tls, { SSIHV_COORDINATOR: "/other" })).toEqual(tls);
  expect(findCoordinator(undefined, { SSIHV_COORDINATOR: "c:7780" })).toEqual(tls);
  const several = findCoordinator(undefined, { SSIHV_COORDINATOR: "c:7780, d:1" });
  expect(several).toEqual({ ...tls, others: [{ host: "d", port: 1 }] });
  expect(findCoordinator(undefined, { SSIHV_COORDINATOR: "/run/c.api" })).toEqual({
    kind: "unix",
    path: "/run/c.api",
  });
  expect(findCoordinator(undefined, { SSIHV_RUNTIME_DIR: join(base, "none") })).toBeUndefined();
});

test("state lies where services or users keep it", () => {
  expect(stateFolder("node", {}, 0)).toBe("/var/lib/ssihv/node");
  const own = stateFolder("coordinator", { HOME: "/home/u" }, 1000);
  expect(own).toBe("/home/u/.local/state/ssihv/coordinator");
});
