// `ssihv run --listen` and `ssihv join` as two processes over 127.0.0.1 with fake engines:
// statuses, words and events, and that nothing keeps running whichever process is killed.

import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { freePorts } from "../base/free-ports.fixture.ts";

const MAIN = [process.execPath, join(import.meta.dir, "fake-main.fixture.ts")];
const KERNEL = MAIN[1] ?? "";
let folder = "";
let key = "";

beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "ssihv-join-"));
  key = join(folder, "vm.key");
  writeFileSync(key, `${"5a".repeat(32)}\n`, { mode: 0o600 });
});

afterAll(() => rmSync(folder, { recursive: true }));

class Command {
  stderr = "";
  readonly child: Bun.Subprocess<"pipe", "pipe", "pipe">;
  readonly done: Promise<number>;
  private readonly stdoutText: Promise<string>;

  constructor(args: string[]) {
    this.child = Bun.spawn([...MAIN, ...args], {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "pipe",
      // What a killed command leaves behind goes with the folder.
      env: { ...process.env, TMPDIR: folder },
    });
    this.stdoutText = this.child.stdout.text();
    this.done = this.read().then(() => this.child.exited);
  }

  private async read(): Promise<void> {
    for await (const chunk of this.child.stderr) this.stderr += new TextDecoder().decode(chunk);
  }

  stdout(): Promise<string> {
    return this.stdoutText;
  }

  async until(text: string): Promise<void> {
    const gone = { is: false };
    void this.done.then(() => {
      gone.is = true;
    });
    while (!this.stderr.includes(text)) {
      if (gone.is) throw new Error(`ended without "${text}":\n${this.stderr}`);
      await Bun.sleep(5);
    }
  }
}

function pair(script: string, ...more: string[]): { lead: Command; host: Command } {
  const address = `127.0.0.1:${freePorts(4)}`;
  const shape = ["--kernel", KERNEL, "--memory", "64M", "--nodes", "2", "--cmdline", script];
  const door = ["--listen", address, "--key-file", key];
  return {
    lead: new Command(["run", ...shape, ...door, ...more]),
    host: new Command(["join", address, "--key-file", key, ...more.filter((a) => a === "--json")]),
  };
}

/** Processes whose parent is `pid`. */
async function childrenOf(pid: number): Promise<number[]> {
  const text = await Bun.$`pgrep -P ${pid}`.nothrow().text();
  return text.trim().split("\n").filter(Boolean).map(Number);
}

async function engineOf(command: Command): Promise<number> {
  for (;;) {
    const pid = (await childrenOf(command.child.pid))[0];
    if (pid !== undefined) return pid;
    await Bun.sleep(5);
  }
}

/** A zombie is gone too: who collects an orphan, and when, is the machine's business. */
function runs(pid: number): boolean {
  try {
    return !/\) Z /.test(readFileSync(`/proc/${pid}/stat`, "utf8"));
  } catch {
    // No such process any more.
    return false;
  }
}

async function gone(pid: number): Promise<void> {
  while (runs(pid)) await Bun.sleep(5);
}

test("both commands end with the guest, each with its words and status", async () => {
  const { lead, host } = pair("say=hello only=1 notice=frozen stop=powered_off");
  expect(await Promise.all([lead.done, host.done])).toEqual([0, 0]);
  expect(await lead.stdout()).toBe("hello");
  expect(await host.stdout()).toBe("");
  expect(lead.stderr).toContain("waiting for one more host; type there: ssihv join 127.0.0.1:");
  expect(lead.stderr).toContain("joined as node 1");
  expect(host.stderr).toContain("VM vm: this host is node 1 of 2 (1 vCPU(s), 32 MiB)");
  expect(host.stderr).toContain("VM vm: the guest powered off");
  // What an engine tells, both users hear.
  for (const { stderr } of [lead, host]) expect(stderr).toContain("VM vm: frozen\n");
  for (const { stderr } of [lead, host]) expect(stderr).not.toContain("5a5a");
});

test("a debug exit's value is the status on both sides; --json tells it", async () => {
  const { lead, host } = pair("only=0 stop=debug_exit:16", "--json");
  expect(await Promise.all([lead.done, host.done])).toEqual([33, 33]);
  const events = (text: string) =>
    text
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as Record<string, unknown>);
  const names = events(lead.stderr).map(({ event }) => event);
  for (const name of ["waiting", "joined", "started", "ended"]) expect(names).toContain(name);
  const told = events(host.stderr);
  expect(told.find(({ event }) => event === "joined")).toMatchObject({ vm: "vm", node: 1 });
  expect(told.at(-1)).toMatchObject({ event: "ended", reason: "debug_exit", status: 33 });
});

test("whichever process is killed, both commands end and no engine stays", async () => {
  for (const victim of ["lead", "host", "lead engine", "host engine"]) {
    const { lead, host } = pair("only=0 notice=up");
    await lead.until("up");
    const engines = { lead: await engineOf(lead), host: await engineOf(host) };
    const pids: Record<string, number> = {
      lead: lead.child.pid,
      host: host.child.pid,
      "lead engine": engines.lead,
      "host engine": engines.host,
    };
    process.kill(pids[victim] ?? 0, "SIGKILL");
    const [leadStatus, hostStatus] = await Promise.all([lead.done, host.done]);
    expect([victim, leadStatus]).toEqual([victim, victim === "lead" ? 137 : 10]);
    expect([victim, hostStatus]).toEqual([victim, victim === "host" ? 137 : 10]);
    await Promise.all([gone(engines.lead), gone(engines.host)]);
    if (victim === "lead") expect(host.stderr).toContain("its lead 127.0.0.1:");
    if (victim === "host") expect(lead.stderr).toContain("is lost: the connection");
  }
}, 20_000);

test("a signal to either command ends both in order", async () => {
  for (const victim of ["lead", "host"] as const) {
    const commands = pair("only=0 notice=up");
    await commands.lead.until("up");
    commands[victim].child.kill("SIGTERM");
    const [lead, host] = await Promise.all([commands.lead.done, commands.host.done]);
    expect([lead, host]).toEqual(victim === "lead" ? [143, 0] : [10, 143]);
    if (victim === "host") expect(commands.lead.stderr).toContain("its user ended it there");
    else expect(commands.host.stderr).toContain("VM vm: stopped");
  }
}, 20_000);

test("usage: what is missing or wrong is named before anything starts", async () => {
  const cases: [args: string[], says: string][] = [
    [["join"], "the argument HOST:PORT is missing"],
    [["join", "nowhere"], '"nowhere" is not host:port'],
    [["join", "a:1"], "--key-file is missing"],
    [["join", "a:1", "--key-file", "/nonexistent"], "/nonexistent does not exist"],
    [["join", "a:1", "--key-file", key, "--lane", "b"], "is not an IP address"],
    [["run", "--kernel", KERNEL, "--listen", "127.0.0.1:7700"], "--key-file is missing"],
    [["run", "--kernel", KERNEL, "--key-file", key], "--listen is missing"],
    [
      ["run", "--kernel", KERNEL, "--listen", "127.0.0.1:7700", "--key-file", key],
      "--listen with one node",
    ],
    [
      ["run", "--kernel", KERNEL, "--nodes", "2", "--listen", "127.0.0.1:65534", "--key-file", key],
      "leaves none for the nodes",
    ],
  ];
  for (const [args, says] of cases) {
    const command = new Command(args);
    expect({ args, status: await command.done }).toEqual({ args, status: 2 });
    expect(command.stderr).toContain(says);
    expect(command.stderr).toContain("\n  try: ");
  }
}, 20_000);
