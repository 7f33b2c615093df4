// `ssihv run` end to end over fake engines: pipes, terminals, signals, statuses, JSON.

import { expect, test } from "bun:test";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expectCooked, inShell } from "../../test/pseudo-terminal.ts";

const MAIN = [process.execPath, join(import.meta.dir, "fake-main.fixture.ts")];
const KERNEL = MAIN[1] ?? "";
const BASE = ["run", "--kernel", KERNEL, "--memory", "64M"];

function runArgs(script: string, ...more: string[]): string[] {
  return [...MAIN, ...BASE, "--cmdline", script, ...more];
}

interface Ran {
  status: number;
  stdout: string;
  stderr: string;
}

async function run(args: string[], input = "", env: Record<string, string> = {}): Promise<Ran> {
  const child = Bun.spawn(args, {
    stdin: new TextEncoder().encode(input),
    stdout: "pipe",
    stderr: "pipe",
    env: { ...process.env, ...env },
  });
  const [stdout, stderr] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { status: await child.exited, stdout, stderr };
}

/** JSON lines of stderr. */
function events(stderr: string): Record<string, unknown>[] {
  const lines = stderr.trim().split("\n");
  return lines.map((line) => JSON.parse(line) as Record<string, unknown>);
}

test("pipes: the console alone on stdout, status 0 on power-off, one line at the end", async () => {
  const { status, stdout, stderr } = await run(runArgs("say=hello stop=powered_off"));
  expect(stdout).toBe("hello");
  expect(stderr.trim().split("\n")).toEqual([
    "ssihv: VM vm: the guest powered off",
    "ssihv: VM vm: no numbers: no engine lived to give them",
  ]);
  expect(status).toBe(0);
});

test("pipes: any byte passes through, and the end of input does not end the guest", async () => {
  const { status, stdout } = await run(runArgs("echo say=|late stop=powered_off"), "a\x01x\x03b");
  expect(stdout).toBe("a\x01x\x03b|late");
  expect(status).toBe(0);
  const silent = await run(runArgs("say=lived stop=powered_off"), "");
  expect(silent.stdout).toBe("lived");
});

test("statuses: reset, triple fault, debug exit, lost vCPU, failure", async () => {
  const status = async (script: string) => (await run(runArgs(script))).status;
  const all = ["reset", "triple_fault", "debug_exit:16", "vcpu_lost", "halted"];
  const got = await Promise.all(all.map((reason) => status(`stop=${reason}`)));
  expect(got).toEqual([6, 8, 33, 10, 14]);
  expect(await status("fail=cpu_incompatible")).toBe(4);
  expect(await status("fail=kernel_invalid")).toBe(2);
});

test("a crashed engine: the parent says whose and what, and stays itself", async () => {
  const { status, stdout, stderr } = await run(runArgs("say=last segv", "--name", "demo"));
  expect(status).toBe(10);
  expect(stdout).toBe("last");
  expect(stderr).toContain("VM demo: the engine of node 0");
  expect(stderr).toContain("SIGSEGV; last words: broken invariant on vCPU 0: planted");
  expect(stderr).not.toContain("bug in Bun");
  expect(stderr).not.toContain("    at ");
});

test("--json: events on stderr, the last one tells the end", async () => {
  const { stdout, stderr } = await run(runArgs("say=x notice=hey stop=debug_exit:1", "--json"));
  expect(stdout).toBe("x");
  const all = events(stderr);
  expect(all.map(({ event }) => event)).toEqual(["engine_ready", "started", "notice", "ended"]);
  expect(all.at(-1)).toEqual({
    vm: "vm",
    event: "ended",
    node: 0,
    reason: "debug_exit",
    code: 1,
    status: 3,
  });
  const summed = events((await run(runArgs("summary stop=powered_off", "--json"))).stderr);
  const { summary } = summed.find(({ event }) => event === "summary") ?? {};
  expect(summary).toMatchObject({ node: 0, oldest_fault_us: 0 });
  const failed = await run(runArgs("fail=page_lost", "--json"));
  expect(events(failed.stderr).at(-1)).toEqual({
    error: { code: "page_lost", message: "VM vm: scripted failure", hint: "scripted hint" },
  });
  expect(failed.status).toBe(10);
});

test("nothing is started when a file is missing or KVM is", async () => {
  const none = await run([...MAIN, "run", "--kernel", "/nonexistent", "--json"]);
  expect(none.status).toBe(2);
  expect(events(none.stderr).length).toBe(1);
  expect(none.stderr).toContain("--kernel: kernel /nonexistent does not exist");
  const kvm = await run(runArgs("stop=powered_off", "--json"), "", { FAKE_KVM_ERROR: "ENOENT" });
  expect(kvm.status).toBe(4);
  expect(events(kvm.stderr).length).toBe(1);
  expect(kvm.stderr).toContain("modprobe");
});

test("a signal ends the VM in order, with the shell's status for it", async () => {
  for (const [signal, status] of [
    ["SIGTERM", 143],
    ["SIGINT", 130],
  ] as const) {
    const child = Bun.spawn(runArgs("say=up"), { stdin: "pipe", stdout: "pipe", stderr: "pipe" });
    const reader = child.stdout.getReader();
    await reader.read();
    // As timeout(1) does it: the process, then its group, which names the process again.
    child.kill(signal);
    child.kill(signal);
    expect(await child.exited).toBe(status);
    expect(await child.stderr.text()).toContain("VM vm: stopped");
  }
});

test("when the parent is killed no engine stays", async () => {
  const folder = mkdtempSync(join(tmpdir(), "ssihv-killed-"));
  const child = Bun.spawn(runArgs("say=up", "--json"), {
    stdin: "pipe",
    stdout: "pipe",
    stderr: "pipe",
    env: { ...process.env, TMPDIR: folder },
  });
  const { value } = await child.stdout.getReader().read();
  expect(new TextDecoder().decode(value)).toBe("up");
  child.kill("SIGKILL");
  const ready = events(await child.stderr.text())[0];
  const pid = Number(ready?.["pid"]);
  expect(pid).toBeGreaterThan(0);
  while (existsSync(`/proc/${pid}`)) await Bun.sleep(5);
  rmSync(folder, { recursive: true });
});

test("a console that nobody reads ends the VM", async () => {
  const child = Bun.spawn(
    ["sh", "-c", `"$@" | true; echo`, "sh", ...runArgs(`say=${"x".repeat(9)} echo say=y`)],
    {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "pipe",
    },
  );
  child.stdin.write("more");
  await child.stdin.flush();
  expect(await child.exited).toBe(0);
});

test("terminal: raw while the guest runs, Ctrl-C is the guest's, put back at the end", async () => {
  await using terminal = inShell(runArgs("say=ready echo stop=powered_off"));
  await terminal.until("ready");
  terminal.type("\x03");
  await terminal.until("all-done");
  expect(terminal.text).toContain("ready\x03");
  expect(terminal.text).toContain("status=0");
  expectCooked(terminal.text);
});

test("terminal: Ctrl-A H helps, Ctrl-A Ctrl-A is literal, Ctrl-A X quits", async () => {
  await using terminal = inShell(runArgs("say=ready echo say=|done"));
  await terminal.until("ready");
  terminal.type("\x01h");
  await terminal.until("Ctrl-A X");
  terminal.type("\x01\x01");
  await terminal.until("\x01|done");
  terminal.type("\x01");
  terminal.type("x");
  await terminal.until("all-done");
  expect(terminal.text).toContain("|done\r\nssihv: VM vm: stopped\r\n");
  expect(terminal.text).toContain("status=0");
  expectCooked(terminal.text);
});

test("terminal: put back after an engine's crash and after a signal", async () => {
  await using crash = inShell(runArgs("segv"));
  await crash.until("all-done");
  expect(crash.text).toContain("status=10");
  expectCooked(crash.text);

  await using killed = inShell(runArgs("say=ready"));
  await killed.until("ready");
  const pids = await Bun.$`pgrep -P ${killed.child.pid}`.text();
  process.kill(Number(pids.trim()), "SIGTERM");
  await killed.until("all-done");
  expect(killed.text).toContain("status=143");
  expectCooked(killed.text);
});
