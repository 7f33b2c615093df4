// The virtio balloon from the built binary with real engines on this host's KVM: guests of a few
// instructions give memory and read zeroes where it was, wherever its home is; frames of memory
// nodes come free; a driver that breaks the rules loses its device and nothing else; the size is
// changed while the guest runs. A Linux with its own driver is the lab's.

import { afterAll, describe, expect, test } from "bun:test";
import {
  awaitTarget,
  expectInterrupt,
  expectNobody,
  expectReset,
  expectTarget,
  give,
  loop,
  offer,
  pageNumbers,
  QUEUE,
  resetDevice,
  routeInterrupt,
  startDevice,
  tellActual,
} from "./balloon-guest.ts";
import { key, powerOff, REMOTE, start } from "./running-vm.ts";
import { binary, hasKvm, removeRuntimeFolder, run, temporaryFolder } from "./support.ts";
import { asm, eachPage, say, writeGuest } from "./tiny-guest.ts";

afterAll(removeRuntimeFolder);

const MIB = 1 << 20;
const PAGE = 4096;
/** The loader's kernel is below; queues, and lists of pages. */
const QUEUES = 80 * MIB;
const LIST = QUEUES + 64 * 1024;
const LOCAL = 84 * MIB;

const both = [QUEUE.inflate, QUEUE.deflate, QUEUE.report];
const fill = (from: number, pages: number) => eachPage(from, pages, asm.incrementAt);
const expectAll = (from: number, pages: number, value: number) =>
  eachPage(from, pages, asm.expectAt(value));

/** Written, given up by number, zero, and used again. */
function inflate(nth: number, from: number, pages: number): number[] {
  return [
    ...fill(from, pages),
    ...pageNumbers(LIST, from, pages),
    ...give(QUEUES, QUEUE.inflate, nth, [{ address: LIST, bytes: 4 * pages }]),
    ...expectAll(from, pages, 0),
    ...give(QUEUES, QUEUE.deflate, nth, [{ address: LIST, bytes: 4 * pages }]),
    ...fill(from, pages),
    ...expectAll(from, pages, 1),
  ];
}

/** The same of free memory, all but the ends of which are whole pages. */
function report(nth: number, from: number, pages: number): number[] {
  const half = (pages / 2) * PAGE;
  const buffers = [
    { address: from, bytes: half },
    { address: from + half, bytes: half },
  ];
  return [
    ...fill(from, pages),
    ...give(QUEUES, QUEUE.report, nth, buffers),
    ...expectAll(from, pages, 0),
  ];
}

interface Shown {
  readonly nodes: readonly {
    readonly stats: {
      readonly memory: {
        readonly discarded: number;
        readonly framesFreed: number;
        readonly framesHeld: number;
      };
      readonly balloon?: Readonly<Record<"target" | "actual" | "inflated" | "reported", number>>;
    };
  }[];
}

async function show(): Promise<Shown> {
  const { out, err } = await run([binary, "vm", "show", "tiny", "--local", "--json"]);
  expect(err).toBe("");
  return JSON.parse(out) as Shown;
}

/** Runs to "up", is looked at, and ends. */
async function looked(code: readonly number[], flags: readonly string[]) {
  using folder = temporaryFolder();
  const kernel = `${folder.path}/bzImage`;
  writeGuest(kernel, code, say("up"), key, powerOff);
  await using tiny = start(kernel, ...flags);
  await tiny.out.until("up");
  const shown = await show();
  await tiny.type("x");
  await Promise.all([tiny.out.end(), tiny.err.end()]);
  return { shown, out: tiny.out.text, err: tiny.err.text, code: await tiny.child.exited };
}

describe.skipIf(!hasKvm())("the balloon (needs /dev/kvm)", () => {
  test("plain memory: what is given up reads as zeroes, and comes back", async () => {
    const guest = [
      ...routeInterrupt,
      ...startDevice(QUEUES, both),
      ...inflate(0, LOCAL, 24),
      ...expectInterrupt,
      ...report(0, LOCAL + MIB, 512),
      ...tellActual(7),
    ];
    const ran = await looked(guest, ["--memory", "128M", "--balloon", "4M"]);
    expect([ran.out, ran.code]).toEqual(["up", 0]);
    expect(ran.shown.nodes[0]?.stats.balloon).toEqual({
      target: 4 * MIB,
      actual: 7 * PAGE,
      inflated: 24 * PAGE,
      reported: 512 * PAGE,
    });
    expect(ran.shown.nodes[0]?.stats.memory.discarded).toBe(24 + 512);
  });

  test("two nodes: pages of both homes, also when the other node has nothing of them", async () => {
    const guest = [
      ...startDevice(QUEUES, both),
      ...inflate(0, LOCAL, 16),
      ...inflate(1, REMOTE, 16),
      // Nobody ever touched these.
      ...give(QUEUES, QUEUE.report, 0, [{ address: REMOTE + MIB, bytes: 2 * MIB }]),
      ...expectAll(REMOTE + MIB, 512, 0),
      ...report(1, REMOTE + 4 * MIB, 1024),
    ];
    const ran = await looked(guest, ["--memory", "256M", "--nodes", "2", "--balloon", "0"]);
    expect([ran.out, ran.code]).toEqual(["up", 0]);
    expect(ran.shown.nodes[0]?.stats.balloon).toMatchObject({
      ...{ target: 0, actual: 0, inflated: 32 * PAGE, reported: (512 + 1024) * PAGE },
    });
    expect(ran.shown.nodes[1]?.stats.balloon).toBeUndefined();
    const discarded = ran.shown.nodes.map(({ stats }) => stats.memory.discarded);
    expect(discarded).toEqual([16, 16 + 512 + 1024]);
  });

  test("frames of memory nodes come free, and their memory", async () => {
    const pages = 32 * 256;
    const guest = [...startDevice(QUEUES, both), ...report(0, 88 * MIB, pages)];
    const flags = ["--memory", "128M", "--node-memory", "16M", "--memory-nodes", "2"];
    const ran = await looked(guest, [...flags, "--copies", "2", "--balloon", "0"]);
    expect([ran.out, ran.code]).toEqual(["up", 0]);
    const [node, ...lenders] = ran.shown.nodes.map(({ stats }) => stats.memory);
    expect(node?.discarded).toBe(pages);
    // All but what 16 MiB hold were there, twice.
    expect(node?.framesFreed).toBeGreaterThanOrEqual(2 * (pages - 16 * 256));
    // Reading them again brought as many zeroes as do not fit at home.
    for (const { framesHeld } of lenders) expect(framesHeld).toBeLessThanOrEqual(pages);
  });

  test("the size is changed while the guest runs, which hears of it", async () => {
    using folder = temporaryFolder();
    const kernel = `${folder.path}/bzImage`;
    const guest = [...startDevice(QUEUES, both), ...expectTarget(MIB), ...say("up")];
    const changed = [...awaitTarget(3 * MIB), ...tellActual(5), ...say("on"), ...key];
    writeGuest(kernel, guest, changed, powerOff);
    await using tiny = start(kernel, "--memory", "128M", "--balloon", "1M");
    await tiny.out.until("up");
    const told = await run([binary, "vm", "balloon", "tiny", "3M"]);
    expect([told.err, told.out]).toEqual([
      "",
      "balloon: 0 of 3 MiB; given so far 0 MiB, reported free 0 MiB\n",
    ]);
    await tiny.out.until("on");
    expect((await show()).nodes[0]?.stats.balloon).toMatchObject({
      ...{ target: 3 * MIB, actual: 5 * PAGE },
    });
    const much = await run([binary, "vm", "balloon", "tiny", "129M"]);
    expect([much.code, much.err]).toEqual([2, expect.stringContaining("in a guest of 128 MiB")]);
    await tiny.type("x");
    expect(await tiny.child.exited).toBe(0);
  });

  test("a VM without one has none", async () => {
    using folder = temporaryFolder();
    const kernel = `${folder.path}/bzImage`;
    // Nobody is there: ones.
    writeGuest(kernel, expectNobody, say("up"), key, powerOff);
    await using tiny = start(kernel, "--memory", "128M");
    await tiny.out.until("up");
    const told = await run([binary, "vm", "balloon", "tiny", "3M"]);
    expect([told.code, told.err]).toEqual([2, expect.stringContaining("has no balloon")]);
    expect((await show()).nodes[0]?.stats.balloon).toBeUndefined();
  });

  test("a driver that breaks the rules loses the device, until it resets it", async () => {
    const guest = [
      ...startDevice(QUEUES, both),
      ...loop(QUEUES, QUEUE.inflate),
      ...resetDevice,
      ...fill(QUEUES, 1),
      ...eachPage(QUEUES, 3, [0xc7, 0x80, 0x00, 0x02, 0x00, 0x00, 0, 0, 0, 0]),
      ...eachPage(QUEUES, 3, [0xc7, 0x80, 0x00, 0x04, 0x00, 0x00, 0, 0, 0, 0]),
      ...startDevice(QUEUES, both),
      ...report(0, LOCAL, 16),
    ];
    const ran = await looked(guest, ["--memory", "128M", "--balloon", "0"]);
    expect([ran.out, ran.code]).toEqual(["up", 0]);
    expect(ran.err).toContain("virtio balloon: the guest's driver gave queue 0 a descriptor chain");
    expect(ran.shown.nodes[0]?.stats.balloon).toMatchObject({ reported: 16 * PAGE });
  });

  test("a reset of the device while it works: nothing is discarded after it", async () => {
    const pages = 4096;
    const work = [{ address: REMOTE, bytes: pages * PAGE }];
    const cut = [
      ...startDevice(QUEUES, [QUEUE.report]),
      ...offer(QUEUES, QUEUE.report, 0, work),
      ...resetDevice,
    ];
    // Untouched until now, and never taken again once the reset is over.
    const used = [...fill(REMOTE, pages), ...expectAll(REMOTE, pages, 1)];
    const guest = [...cut, ...used, ...expectAll(REMOTE, pages, 1)];
    const ran = await looked(guest, ["--memory", "256M", "--nodes", "2", "--balloon", "0"]);
    expect([ran.out, ran.code]).toEqual(["up", 0]);
    expect(ran.shown.nodes[1]?.stats.memory.discarded).toBeLessThanOrEqual(pages);
  });

  test("a guest's reset resets the device, on two nodes", async () => {
    // The clock's RAM (index 0x40) outlives a reset; the first boot finds it zero.
    const index = asm.outb(0x70, 0x40);
    const again = [...index, ...asm.outb(0x71, 1), ...asm.outb(0xcf9, 6), ...asm.spin];
    const read = [0x66, 0xba, 0x71, 0x00, 0xec, 0x84, 0xc0, 0x75, again.length];
    const guest = [
      ...expectReset,
      ...startDevice(QUEUES, both),
      ...inflate(0, REMOTE, 8),
      ...tellActual(8),
      ...say("b"),
      ...[...index, ...read, ...again],
    ];
    const ran = await looked(guest, ["--memory", "256M", "--nodes", "2", "--balloon", "1M"]);
    expect([ran.out, ran.code]).toEqual(["bbup", 0]);
    expect(ran.shown.nodes[0]?.stats.balloon).toMatchObject({
      ...{ target: MIB, actual: 8 * PAGE, inflated: 16 * PAGE },
    });
  });
});
