// VMs with less memory on each node than the guest has, from the built binary with real engines on
// this host's KVM: a small cache of another node's pages, and memory nodes that lend frames, lose
// nothing, may die where each page has two copies, and are emptied by a reset. The guests are a few
// instructions long, so shadow paging is enough.

import { afterAll, describe, expect, test } from "bun:test";
import { readdirSync, renameSync } from "node:fs";
import { openDoor } from "./running-vm.ts";
import { binary, hasKvm, isRoot, removeRuntimeFolder, run, temporaryFolder } from "./support.ts";
import { asm, eachPage, say, writeGuest } from "./tiny-guest.ts";

afterAll(removeRuntimeFolder);

const LINE_STATUS = 0x3fd;
const DATA_READY = 1;
const MIB = 1 << 20;
const powerOff = asm.outw(0x604, 0x2000);

/** Adds one to a byte of every page of the range, then finds `value` in each. */
function sweep(from: number, to: number, value: number): number[][] {
  const pages = (to - from) / 4096;
  return [eachPage(from, pages, asm.incrementAt), eachPage(from, pages, asm.expectAt(value))];
}

/** Longer than a test may take: nobody finds out by silence. */
const patient = ["--peer-timeout", "1000s"];

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
  env: Record<string, string> = {},
): Promise<Ran> {
  using folder = temporaryFolder();
  const kernel = `${folder.path}/bzImage`;
  writeGuest(kernel, ...code);
  const shape = ["--kernel", kernel, "--name", "tiny", "--json"];
  const child = Bun.spawn([binary, "run", ...shape, ...flags], {
    env: { ...process.env, ...env },
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

/** Flags of a lead that lets hosts in, and what a host that lends memory types. */
function openLendersDoor(folder: string): { door: string[]; join: string[] } {
  const { door, join } = openDoor(folder);
  return { door, join: [...join, "--memory-only"] };
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
    const flags = [...one, "--memory-nodes", "2", "--copies", "2", ...patient];
    const ran = await boot(inTwoHalves, flags, killBetween(1));
    expect([ran.out, ran.code]).toEqual(["12", 0]);
    expect(ran.err).toContain('"event":"memory_lost"');
    expect(ran.err).toContain("the engine of node 1");
    // Node 0 and the other memory node.
    expect(ran.err.match(/node 1 lost: its engine has ended/g)?.length).toBe(2);
  });

  test("a memory node that stands still is lost by its silence alone", async () => {
    const flags = [...one, "--memory-nodes", "2", "--copies", "2", "--peer-timeout", "1s"];
    const ran = await boot(inTwoHalves, flags, (console, engines) => {
      process.kill(engines.pid(1), console === "1" ? "SIGSTOP" : "SIGCONT");
      if (console === "1") engines.type("x");
    });
    expect([ran.out, ran.code]).toEqual(["12", 0]);
    expect(ran.err).toContain("node 1 lost: silent for longer than peer_timeout");
    expect(ran.err).not.toContain("has ended");
  });

  test("a memory node killed in the midst of it, under load, takes nothing with it", async () => {
    // More than fits, over and over: at any time some pages are on their way.
    const rounds = [1, 2, 3];
    const load = rounds.flatMap((round) => sweep(FREE, END, round));
    const code = [...sweep(8 * MIB, 15 * MIB, 1), say("1"), ...load, say("2"), powerOff];
    const flags = [...one, "--memory-nodes", "3", "--copies", "2", ...patient];
    const ran = await boot(code, flags, (console, engines) => {
      if (console === "1") process.kill(engines.pid(3), "SIGKILL");
    });
    expect([ran.out, ran.code]).toEqual(["12", 0]);
    expect(ran.err).toContain('"event":"memory_lost","node":3');
    // Fifteen MiB at least are not at home, twice on the two that are left.
    const held = [1, 2].map((node) => ran.memory.get(node)?.framesHeld ?? 0);
    for (const frames of held) expect(frames).toBeGreaterThanOrEqual(15 * 256);
  });

  test("a reset that a memory node's death meets goes on without it", async () => {
    // The clock's RAM (index 0x40) outlives a reset: the first boot waits for the key, and resets.
    const index = asm.outb(0x70, 0x40);
    const mark = asm.outb(0x71, 1);
    const again = [...waitForKey, ...index, ...mark, ...asm.outb(0xcf9, 6), ...asm.spin];
    const read = [0x66, 0xba, 0x71, 0x00, 0xec, 0x84, 0xc0, 0x75, again.length];
    const code = [...sweep(FREE, END, 1), say("b"), index, read, again, powerOff];
    const flags = [...one, "--memory-nodes", "2", "--copies", "2", ...patient];
    const ran = await boot(code, flags, (console, engines) => {
      if (console !== "b") return;
      process.kill(engines.pid(1), "SIGKILL");
      engines.type("x");
    });
    expect([ran.out, ran.code]).toEqual(["bb", 0]);
    expect(ran.err).toContain('"event":"memory_lost","node":1');
  });

  test("pages of node 1 alone are lost: the VM ends for that, node 0 with it", async () => {
    const flags = ["--memory", "192M", "--nodes", "2", "--memory-nodes", "1"];
    const budget = ["--node-memory", "64M", "--cache", "16M", ...patient];
    // Node 1 is home from 96 MiB on: it alone has pages on the memory node.
    const code = [...sweep(96 * MIB, 160 * MIB, 1), say("1")];
    const ran = await boot(code, [...flags, ...budget], (_, engines) => {
      process.kill(engines.pid(2), "SIGKILL");
    });
    expect([ran.out, ran.code]).toEqual(["1", 10]);
    expect(ran.err).toMatch(/page_lost[^\n]*every memory node that had it is gone/);
  });

  test("a memory node that loses one of two homes does not end the VM", async () => {
    using folder = temporaryFolder();
    const flags = ["--memory", "192M", "--nodes", "2", "--memory-nodes", "2", "--copies", "2"];
    const budget = ["--node-memory", "64M", "--cache", "16M", "--peer-timeout", "4s"];
    const code = [
      ...sweep(96 * MIB, 160 * MIB, 1),
      say("1"),
      waitForKey,
      ...sweep(96 * MIB, 160 * MIB, 2),
      say("2"),
      powerOff,
    ];
    const cut = async (engines: Engines) => {
      // Once it goes on it finds both connections closed, and of node 1 no socket to connect to.
      process.kill(engines.pid(3), "SIGSTOP");
      const lanes = readdirSync(folder.path).find((name) => name.startsWith("ssihv-")) ?? "";
      renameSync(`${folder.path}/${lanes}/node-1`, `${folder.path}/${lanes}/nobody`);
      await Bun.sleep(2600);
      process.kill(engines.pid(3), "SIGCONT");
      engines.type("x");
    };
    const ran = await boot(
      code,
      [...flags, ...budget],
      (console, engines) => void (console === "1" && cut(engines)),
      { TMPDIR: folder.path },
    );
    expect([ran.out, ran.code]).toEqual(["12", 0]);
    expect(ran.err).toMatch(/node 3 lost: /);
    expect(ran.err).toMatch(/node 1 lost: /);
    expect(ran.err).not.toMatch(/node 0 lost: /);
  });

  test("a memory node killed with the only copies ends the VM, which says so", async () => {
    const flags = [...one, "--memory-nodes", "2", ...patient];
    const ran = await boot(inTwoHalves, flags, killBetween(2));
    expect([ran.out, ran.code]).toEqual(["1", 10]);
    expect(ran.err).toContain("page_lost");
  });

  test("a host that joins to lend memory needs no KVM", async () => {
    using folder = temporaryFolder();
    const kernel = `${folder.path}/bzImage`;
    writeGuest(kernel, ...sweep(FREE, END, 1), say("whole"), powerOff);
    const { door, join } = openLendersDoor(folder.path);
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

  const small = [
    "--memory",
    "128M",
    "--node-memory",
    "16M",
    "--memory-nodes",
    "2",
    "--copies",
    "2",
  ];
  const inSmallHalves = [
    ...sweep(FREE, FREE + 24 * MIB, 1),
    say("1"),
    waitForKey,
    ...sweep(FREE, FREE + 24 * MIB, 2),
    say("2"),
    powerOff,
  ];

  test("a host that lends memory leaves in order, and the VM goes on at once", async () => {
    using folder = temporaryFolder();
    const { door, join } = openLendersDoor(folder.path);
    const hosts = [0, 1].map(() => Bun.spawn(join, { stdout: "ignore", stderr: "pipe" }));
    const ran = await boot(inSmallHalves, [...small, ...door], (console, engines) => {
      if (console !== "1") return;
      hosts[0]?.kill("SIGTERM");
      engines.type("x");
    });
    expect([ran.out, ran.code]).toEqual(["12", 0]);
    expect(ran.err).toMatch(/node \d lost: it has given this node up: the user of its host took/);
    expect(ran.err).toContain("its user ended it there (SIGTERM)");
    expect(await Promise.all(hosts.map((host) => host.exited))).toEqual([143, 0]);
  });

  test("an engine killed on a host that joined: its word there is enough", async () => {
    using folder = temporaryFolder();
    const { door, join } = openLendersDoor(folder.path);
    const hosts = [0, 1].map(() => Bun.spawn(join, { stdout: "ignore", stderr: "ignore" }));
    const ran = await boot(inSmallHalves, [...small, ...patient, ...door], killBetween(2));
    // What it says is what one wants to know where it failed.
    expect([ran.out, ran.code === 0 ? "" : ran.err]).toEqual(["12", ""]);
    expect(ran.err).toMatch(/"memory_lost","node":2,"text":"[^"]*on host [^"]*killed by SIGKILL/);
    expect(ran.err.match(/node 2 lost: its engine has ended/g)?.length).toBe(2);
    expect(await Promise.all(hosts.map((host) => host.exited))).toEqual([0, 0]);
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
