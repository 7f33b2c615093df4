// `ssihv vm` and SIGUSR1 from the built binary with real engines on this host's KVM: where the
// pages of a guest are after it touched them, and what is told of a guest that hangs because
// another node's engine is stopped. The guests are a few instructions long; a Linux is the lab's.

import { afterAll, describe, expect, test } from "bun:test";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { key, powerOff, REMOTE, start } from "./running-vm.ts";
import { binary, hasKvm, removeRuntimeFolder, run, temporaryFolder } from "./support.ts";
import { increment, say, writeGuest } from "./tiny-guest.ts";

afterAll(removeRuntimeFolder);

async function vm(...args: string[]): Promise<string> {
  const { code, out, err } = await run([binary, "vm", ...args]);
  expect([err, code]).toEqual(["", 0]);
  return out;
}

interface Shown {
  readonly nodes: readonly {
    readonly pid: number;
    readonly silent: string | null;
    readonly stats: {
      readonly oldest_fault_us: number;
      readonly hotBlocks?: readonly object[];
    } | null;
  }[];
}

async function show(): Promise<Shown> {
  return JSON.parse(await vm("show", "tiny", "--json")) as Shown;
}

/**
 * SIGSTOP, until no thread runs: each stops when one of them has taken the signal, which may wait
 * for a CPU while another still serves a fault.
 */
async function stop(pid: number): Promise<void> {
  process.kill(pid, "SIGSTOP");
  const states = () =>
    readdirSync(`/proc/${pid}/task`).map((tid) => {
      const stat = readFileSync(`/proc/${pid}/task/${tid}/stat`, "utf8");
      return stat.slice(stat.lastIndexOf(")") + 2)[0];
    });
  while (!states().every((state) => state === "T")) await Bun.sleep(1);
}

const twoNodes = ["--memory", "256M", "--nodes", "2"];

describe.skipIf(!hasKvm())("a VM that runs (needs /dev/kvm)", () => {
  test("its pages are where the guest put them, whoever their home is", async () => {
    using folder = temporaryFolder();
    const kernel = `${folder.path}/bzImage`;
    writeGuest(kernel, increment(REMOTE), say("up"), key, powerOff);
    await using tiny = start(kernel, ...twoNodes);
    const { child, type, out } = tiny;
    await out.until("up");
    const gpa = `0x${REMOTE.toString(16)}`;
    const json = JSON.parse(await vm("pages", "--gpa", gpa, "--count", "65", "--json"));
    expect(json.silent).toEqual([]);
    expect(json.pages.length).toBe(65);
    expect(json.pages[0]).toMatchObject({
      ...{ gpa: REMOTE, home: 1, state: "exclusive", owner: 0, sharers: [], version: 1 },
      transaction: null,
      copies: [
        { node: 0, access: "exclusive" },
        { node: 1, access: "invalid" },
      ],
    });
    // Behind the first question's 64 pages.
    expect(json.pages[64]).toMatchObject({ gpa: REMOTE + 64 * 4096, state: "untouched" });
    // The guest's code: loaded by its home, whose it stays.
    expect(await vm("pages", "--gpa", "0x1000000")).toMatch(
      /\n0x1000000 +0 +exclusive +0 +- +1 +0:rw 1:- +-\n$/,
    );
    // Node 1 may say that it has started after the guest has spoken.
    while (!/\ntiny +running +2 +2 +256 /.test(await vm("list"))) await Bun.sleep(10);
    const { nodes } = await show();
    for (const node of nodes) expect(node.stats?.oldest_fault_us).toBe(0);
    await type("x");
    expect(await child.exited).toBe(0);
    expect(await vm("list")).toBe("NAME  STATE  NODES  VCPUS  MIB  UPTIME  PID\n");
  });

  test("top tells what its nodes do: as a table, and unrounded to programs", async () => {
    using folder = temporaryFolder();
    const kernel = `${folder.path}/bzImage`;
    writeGuest(kernel, increment(REMOTE), say("up"), key, increment(REMOTE + 4096), say("2"), key);
    await using tiny = start(kernel, ...twoNodes);
    await tiny.out.until("up");
    const top = async (...flags: string[]) => {
      const interval = ["--interval", "1s", "--count", "1"];
      const { code, out, err } = await run([binary, "top", "tiny", ...interval, ...flags]);
      expect([err, code]).toEqual(["", 0]);
      return out;
    };
    const asking = top("--json");
    // The one fault falls between its two looks.
    await Bun.sleep(500);
    await tiny.type("x");
    const [vm] = JSON.parse(await asking);
    expect(vm).toMatchObject({ name: "tiny", state: "running" });
    expect(vm.nodes.map(({ node }: { node: number }) => node)).toEqual([0, 1]);
    expect(vm.nodes[0].rates.remoteFaults).toBeGreaterThan(0);
    expect(vm.nodes[1].rates).toMatchObject({ remoteFaults: 0, oldestFaultUs: 0 });
    // Where it was: the block of REMOTE, whose home is node 1.
    expect(vm.hotBlocks).toMatchObject([{ gpa: REMOTE, home: 1, nodes: [{ node: 0 }] }]);
    const { nodes } = await show();
    expect(nodes[0]?.stats?.hotBlocks).toMatchObject([{ gpa: REMOTE, home: 1, faults: 2 }]);
    expect(nodes[1]?.stats?.hotBlocks).toBeUndefined();
    const lines = (await top()).split("\n");
    expect(lines[0]).toStartWith("VM    NODE  HOST  VCPUS  EXITS/S  FAULTS/S  REMOTE/S");
    expect(lines[1]).toMatch(/^tiny +0 +- +1 /);
    expect(lines[2]).toMatch(/^ +1 +- +1 +0 +0 +0 /);
    const unknown = await run([binary, "top", "nobody"]);
    expect([unknown.code, unknown.err.includes("no VM nobody")]).toEqual([2, true]);
  });

  test("one that hangs: the oldest fault grows, SIGUSR1 tells what is open", async () => {
    using folder = temporaryFolder();
    const kernel = `${folder.path}/bzImage`;
    writeGuest(kernel, say("up"), key, increment(REMOTE), say("on"), powerOff);
    await using tiny = start(kernel, ...twoNodes, "--peer-timeout", "60s");
    const { child, type, out, err } = tiny;
    await out.until("up");
    const stopped = (await show()).nodes[1]?.pid ?? 0;
    await stop(stopped);
    try {
      await type("x");
      const ages: number[] = [];
      while (ages.length < 2) {
        const { nodes } = await show();
        expect(nodes[1]).toMatchObject({ stats: null, silent: expect.stringContaining("answer") });
        const age = nodes[0]?.stats?.oldest_fault_us ?? 0;
        if (age > (ages.at(-1) ?? 0)) ages.push(age);
      }
      child.kill("SIGUSR1");
      await err.until("node 0: lane to node 1: up");
      const where = `0x${REMOTE.toString(16)}`;
      expect(err.text).toMatch(/engine tiny\/0: node 0: open: 1 faults, 1 requests, 0 trans/);
      expect(err.text).toMatch(
        new RegExp(
          `node 0: fault ${where} (read|write) by vCPU 0 \\(thread \\d+\\) for \\d+ us, remote\n`,
        ),
      );
      // Whether it reads first is KVM's choice.
      const waits = `node 0: request ${where} (get_shared|get_exclusive) to home 1: no grant yet`;
      expect(err.text).toMatch(new RegExp(waits));
      const { pages } = JSON.parse(await vm("pages", "--gpa", where, "--json"));
      expect(pages[0]).toMatchObject({
        state: null,
        copies: [{ node: 0, waitsFor: expect.stringMatching(/^get_/) }],
      });
    } finally {
      process.kill(stopped, "SIGCONT");
    }
    await out.until("on");
    // The engine that was stopped had been asked, too.
    await err.until("engine tiny/1: node 1: lane to node 0: up");
    expect(await child.exited).toBe(0);
  }, 60_000);

  test("an engine asked directly tells it, too; plain memory has nothing to tell", async () => {
    using folder = temporaryFolder();
    const kernel = `${folder.path}/bzImage`;
    writeGuest(kernel, say("up"), key, powerOff);
    await using tiny = start(kernel, "--memory", "128M");
    const { child, type, out, err } = tiny;
    await out.until("up");
    process.kill((await show()).nodes[0]?.pid ?? 0, "SIGUSR1");
    await err.until("ssihv: engine tiny/0: node 0: no pager here: plain memory");
    const { code, err: words } = await run([binary, "vm", "pages", "--gpa", "0"]);
    expect(code).toBe(2);
    expect(words).toContain("VM tiny has plain memory");
    expect(words).toContain("--pager");
    await type("x");
    await out.end();
    expect(await child.exited).toBe(0);
    // The guest's console had nothing of it.
    expect(out.text).toBe("up");
  });

  test("over two commands the joined home is asked through the sealed channel", async () => {
    using folder = temporaryFolder();
    const kernel = `${folder.path}/bzImage`;
    writeGuest(kernel, increment(REMOTE), say("up"), key, powerOff);
    const keyFile = `${folder.path}/vm.key`;
    writeFileSync(keyFile, "5a".repeat(32), { mode: 0o600 });
    const probe = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data: () => undefined } });
    const address = `127.0.0.1:${Math.min(probe.port, 65_000)}`;
    probe.stop(true);
    await using lead = start(kernel, ...twoNodes, "--listen", address, "--key-file", keyFile);
    const joined = run([binary, "join", address, "--key-file", keyFile]);
    await lead.out.until("up");
    const gpa = `0x${REMOTE.toString(16)}`;
    const page = async (name: string) => {
      return JSON.parse(await vm("pages", "--vm", name, "--gpa", gpa, "--json")).pages[0];
    };
    const entry = { home: 1, state: "exclusive", owner: 0 };
    expect(await page("tiny")).toMatchObject({ ...entry, copies: [{ node: 0 }, { node: 1 }] });
    expect(await page("tiny/1")).toMatchObject({ ...entry, copies: [{ node: 1 }] });
    lead.child.kill("SIGUSR1");
    await lead.err.until("engine tiny/1: node 1: lane to node 0: up");
    await lead.type("x");
    expect(await lead.child.exited).toBe(0);
    const host = await joined;
    expect(host.code).toBe(0);
    expect(host.err).toContain("engine tiny/1: node 1: lane to node 0: up");
  });
});
