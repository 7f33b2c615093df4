// `ssihv run --hosts`: what it refuses before it reaches for any host, and VMs whose hosts are all
// this one, as parts of their own over fake engines. Hosts behind ssh are in
// test/e2e/hosts.test.ts.

import { expect, test } from "bun:test";
import { hostname } from "node:os";
import { join } from "node:path";

import { mainHere } from "./main-here.fixture.ts";

const MAIN = [process.execPath, join(import.meta.dir, "fake-main.fixture.ts")];
const KERNEL = MAIN[1] ?? "";
/** Two parts, which find each other by the loopback. */
const BOTH = `localhost=127.0.0.1,${hostname()}`;

function spawn(hosts: string, script: string, ...more: string[]) {
  const shape = ["--kernel", KERNEL, "--memory", "128M", "--cmdline", script, ...more];
  return Bun.spawn([...MAIN, "run", "--hosts", hosts, ...shape], {
    stdin: "pipe",
    stdout: "pipe",
    stderr: "pipe",
    env: process.env,
  });
}

async function finished(child: ReturnType<typeof spawn>) {
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { status: await child.exited, out, err };
}

test("two parts: the console both ways, and the end as a run of this host has it", async () => {
  const child = spawn(BOTH, "say=hello only=0 echo say=|late stop=debug_exit:16");
  child.stdin.write("a\x01x\x03b");
  await child.stdin.flush();
  const { status, out, err } = await finished(child);
  expect(out).toContain("a\x01x\x03b|late");
  expect(err).toContain(`ssihv: VM vm: host ${hostname()} joined as node 1\n`);
  expect(err).toContain("VM vm: the guest wrote to isa-debug-exit (value 16)");
  expect(status).toBe(33);
}, 30_000);

test("--json: the events of the lead, and the end last", async () => {
  const { status, err } = await finished(spawn(BOTH, "only=0 summary stop=reset", "--json"));
  const events = err
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  const kinds = events.map(({ event }) => event);
  for (const kind of ["engine_ready", "joined", "started", "summary"]) {
    expect(kinds).toContain(kind);
  }
  // Nobody is to type anything, so nobody is told to.
  expect(kinds).not.toContain("waiting");
  expect(events.at(-1)).toMatchObject({ event: "ended", reason: "reset", status: 6 });
  expect(status).toBe(6);
}, 30_000);

test("a part that is killed is a lost host, by its name", async () => {
  const child = spawn("localhost", "say=up");
  const reader = child.stdout.getReader();
  expect(new TextDecoder().decode((await reader.read()).value)).toBe("up");
  const parts = (await Bun.$`pgrep -P ${child.pid}`.text()).trim().split("\n").map(Number);
  expect(parts.length).toBe(1);
  for (const part of parts) process.kill(part, "SIGKILL");
  const err = await child.stderr.text();
  expect(err).toContain("ssihv: host localhost: its connection ended: status 137");
  expect(await child.exited).toBe(10);
}, 30_000);

test("hosts that nobody knows the address of", async () => {
  const { status, err } = await finished(spawn(`localhost,${hostname()}`, ""));
  expect(err).toContain("host localhost: no address is known at which the other hosts reach it");
  expect(err).toContain("--hosts localhost=10.0.0.1");
  expect(status).toBe(2);
}, 30_000);

test.each([
  [["--hosts", "a,b", "--nodes", "3"], "--hosts names 2 host(s), but 3 node(s) are asked for"],
  [["--hosts", "a", "--memory-nodes", "1"], "--memory-hosts names 0 host(s), but 1 memory node(s)"],
  [["--hosts", "a", "--memory-hosts", "a"], "a is there twice"],
  [["--hosts", "a,b", "--key-file", "vm.key"], "--key-file with --hosts"],
  [["--hosts", "a,b", "--metrics", "127.0.0.1:99"], "--metrics with --hosts"],
  [["--hosts", "a,b", "--system-map", "x"], "--system-map with --hosts"],
  [["--memory-hosts", "a"], "--memory-hosts without --hosts"],
  [["--ssh", "ssh -v"], "--ssh without --hosts"],
  [["--accept-unfit"], "--accept-unfit without --hosts"],
  [["--hosts", "a,b", "--ssh", ""], "is not a command"],
])("run %p", async (flags, why) => {
  const { status, err } = await mainHere("run", "--kernel", "k", ...flags);
  expect(err).toContain(why);
  expect(status).toBe(2);
});
