// VMs with less memory on each node than the guest has, from the built binary with real engines on
// this host's KVM: a small cache of another node's pages, and memory nodes that lend frames, lose
// nothing, may die where each page has two copies, and are emptied by a reset. The guests are a few
// instructions long, so shadow paging is enough.

import { describe, expect, test } from "bun:test";
import { accessSync, constants, writeFileSync } from "node:fs";
import { binary, isRoot, run, temporaryFolder } from "./support.ts";
import { asm, eachPage, say, writeGuest } from "./tiny-guest.ts";

const LINE_STATUS = 0x3fd;
const DATA_READY = 1;
const MIB = 1 << 20;
const powerOff = asm.outw(0x604, 0x2000);

function hasKvm(): boolean {
  try {
    accessSync("/dev/kvm", constants.R_OK | constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

/** Adds one to a byte of every page of the range, then finds `value` in each. */
function sweep(from: number, to: number, value: number): number[][] {
  const pages = (to - from) / 4096;
  return [eachPage(from, pages, asm.incrementAt), eachPage(from, pages, asm.expectAt(value))];
}

const waitForKey = asm.waitFor(LINE_STATUS, DATA_READY);

interface Memory {
  readonly ownPagesMax: number;
  readonly cachePagesMax: number;
  readonly evicted: number;
  readonly framesHeld: number;
}

/** Of the lines of --json, those that matter here. */
type Told =
  | { readonly event: "engine_ready"; readonly node: number; readonly pid: number }
  | { readonly event: "summary"; readonly summary: { node: number; memory: Memory } };

interface Ran {
  readonly out: string;
  readonly err: string;
  readonly code: number;
  /** By node. */
  readonly memory: ReadonlyMap<number, Memory>;
}

interface Engines {
  /** The engine of a node. */
  pid(node: number): number;
  type(text: string): void;
}

/** Boots; `onOutput` is called with the whole console whenever there is more of it. */
async function boot(
  code: readonly number[][],
  flags: readonly string[],
  onOutput: (console: string, engines: Engines) => void = () => undefined,
): Promise<Ran> {
  using folder = temporaryFolder();
  const kernel = `${folder.path}/bzImage`;
  writeGuest(kernel, ...code);
  const shape = ["--kernel", kernel, "--name", "tiny", "--json"];
  const child = Bun.spawn([binary, "run", ...shape, ...flags], {
    stdin: "pipe",
    stdout: "pipe",
    stderr: "pipe",
  });
  const pids = new Map<number, number>();
  const memory = new Map<number, Memory>();
  let err = "";
  const reads = async () => {
    const decoder = new TextDecoder();
    let rest = "";
    for await (const chunk of child.stderr) {
      const text = decoder.decode(chunk, { stream: true });
      err += text;
      const lines = (rest + text).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        const told = JSON.parse(line) as Told;
        if (told.event === "engine_ready") pids.set(told.node, told.pid);
        if (told.event === "summary") memory.set(told.summary.node, told.summary.memory);
      }
    }
  };
  const engines: Engines = {
    pid: (node) => pids.get(node) ?? Number.NaN,
    type: (text) => {
      child.stdin.write(text);
      void child.stdin.flush();
    },
  };
  let out = "";
  const watches = async () => {
    const decoder = new TextDecoder();
    for await (const chunk of child.stdout) {
      out += decoder.decode(chunk, { stream: true });
      onOutput(out, engines);
    }
  };
  await Promise.all([reads(), watches()]);
  return { out, err, code: await child.exited, memory };
}

/** Pages under way come on top of every budget: threads of a shard, and slots of its peers. */
const SLACK = 96 + 2 * 64;
/** A loader's kernel takes the memory below; the guests use what is above. */
const FREE = 80 * MIB;
const END = 128 * MIB;
const one = ["--memory", "128M", "--node-memory", "40M"];

describe.skipIf(!hasKvm())("less memory than the guest has (needs /dev/kvm)", () => {
  test("another node's memory through a small cache", async () => {
    const code = [...sweep(96 * MIB, 112 * MIB, 1), say("whole"), powerOff];
    const ran = await boot(code, ["--memory", "192M", "--nodes", "2", "--cache", "4M"]);
    expect([ran.out, ran.code]).toEqual(["whole", 0]);
    const { evicted, cachePagesMax } = ran.memory.get(0) ?? {};
    // Two passes over 4096 pages, of which 1024 fit.
    expect(evicted).toBeGreaterThan(2 * 3000);
    expect(cachePagesMax).toBeLessThanOrEqual(1024 + SLACK);
  });

  test("one node and two that lend memory hold all of the guest's RAM", async () => {
    const code = [...sweep(8 * MIB, 15 * MIB, 1), ...sweep(FREE, END, 1), say("whole"), powerOff];
    const ran = await boot(code, [...one, "--memory-nodes", "2"]);
    expect([ran.out, ran.code]).toEqual(["whole", 0]);
    expect(ran.memory.get(0)?.ownPagesMax).toBeLessThanOrEqual(40 * 256 + SLACK);
    const held = [1, 2].map((node) => ran.memory.get(node)?.framesHeld ?? 0);
    // 55 MiB were written, 40 of them are at home.
    for (const frames of held) expect(frames).toBeLessThanOrEqual(44 * 256);
    expect((held[0] ?? 0) + (held[1] ?? 0)).toBeGreaterThanOrEqual(15 * 256);
  });

  /** Fills memory, says 1 and waits; then everything is there still, or not. */
  const inTwoHalves = [
    ...sweep(FREE, END, 1),
    say("1"),
    waitForKey,
    ...sweep(FREE, END, 2),
    say("2"),
    powerOff,
  ];

  function killBetween(node: number) {
    return (console: string, engines: Engines) => {
      if (console !== "1") return;
      process.kill(engines.pid(node), "SIGKILL");
      engines.type("x");
    };
  }

  test("a memory node killed takes nothing with it where there are two copies", async () => {
    const flags = [...one, "--memory-nodes", "2", "--copies", "2"];
    const ran = await boot(inTwoHalves, flags, killBetween(1));
    expect([ran.out, ran.code]).toEqual(["12", 0]);
    expect(ran.err).toContain('"event":"memory_lost"');
    expect(ran.err).toContain("the engine of node 1");
  });

  test("a memory node killed with the only copies ends the VM, which says so", async () => {
    const ran = await boot(inTwoHalves, [...one, "--memory-nodes", "2"], killBetween(2));
    expect([ran.out, ran.code]).toEqual(["1", 10]);
    expect(ran.err).toContain("page_lost");
  });

  test("a host that joins to lend memory needs no KVM", async () => {
    using folder = temporaryFolder();
    const kernel = `${folder.path}/bzImage`;
    const key = `${folder.path}/vm.key`;
    writeGuest(kernel, ...sweep(FREE, END, 1), say("whole"), powerOff);
    writeFileSync(key, "5a".repeat(32), { mode: 0o600 });
    const probe = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data: () => undefined } });
    const address = `127.0.0.1:${Math.min(probe.port, 65_000)}`;
    probe.stop(true);
    const door = ["--listen", address, "--key-file", key];
    const join = [binary, "join", address, "--key-file", key, "--memory-only"];
    // As on a host without the device, where this user may hide it.
    const hide = 'mount --bind /dev/null /dev/kvm && exec "$@"';
    const hidden = isRoot ? ["unshare", "-m", "sh", "-c", hide, "sh"] : [];
    const [lead, host] = await Promise.all([
      run([binary, "run", "--kernel", kernel, ...one, "--memory-nodes", "1", ...door]),
      run([...hidden, ...join]),
    ]);
    expect([lead.out, lead.code, host.code]).toEqual(["whole", 0, 0]);
    expect(lead.err).toContain("waiting for one more host to lend memory; type there: ssihv join");
    expect(host.err).toContain("VM vm: this host is node 1 of 2 (lends 88 MiB)");
    expect(host.err).toContain("VM vm: the guest powered off");
    expect(lead.err).toMatch(/ [1-9]\d* pages evicted/);
  });

  test("a reset empties the memory nodes", async () => {
    // The clock's RAM (index 0x40) outlives a reset; the first boot finds it zero.
    const index = asm.outb(0x70, 0x40);
    const again = [...index, ...asm.outb(0x71, 1), ...asm.outb(0xcf9, 6), ...asm.spin];
    const read = [0x66, 0xba, 0x71, 0x00, 0xec, 0x84, 0xc0, 0x75, again.length];
    // Each boot finds zeroes, so the sum is one again.
    const code = [...sweep(FREE, END, 1), say("b"), index, read, again, powerOff];
    const ran = await boot(code, [...one, "--memory-nodes", "1"]);
    expect([ran.out, ran.code]).toEqual(["bb", 0]);
  });
});
