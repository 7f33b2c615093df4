// Stalls of a VM's nodes with real engines and KVM: the whole VM freezes when one node does not
// answer, its guest's clock stands still, and all goes on when it answers again; or it ends on
// every engine, with the same words. The guest watches the ACPI PM timer, since not every KVM lets
// a test machine set the TSC; the lab shows a Linux the same (test/lab/stall.test.ts).

import { describe, expect, test } from "bun:test";
import { describeDeath, type EngineExit } from "../../src/node/engine-process.ts";
import { buildProgram } from "../guest/build.ts";
import { Engines, NODE_1, until } from "./engines.ts";
import { hasKvm, isRoot, run } from "./support.ts";
import { asm, say } from "./tiny-guest.ts";

const PM_TIMER_HZ = 3_579_545;
const powerOff = asm.outw(0x604, 0x2000);

function u32(value: number): number[] {
  return [0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff);
}

/**
 * Increments a page of node 1 and reads the PM timer fifty times, over and over with one page after
 * the other, until a byte is typed; then tells the longest time between two reads, by letters.
 */
function watchClock(): number[] {
  const readTimer = [0xba, ...u32(0x608), 0xed]; // mov edx, 0x608; in eax, dx
  const inner = [
    ...readTimer,
    ...[0x89, 0xc3], // mov ebx, eax
    ...[0x29, 0xeb], // sub ebx, ebp
    ...[0x89, 0xc5], // mov ebp, eax
    ...[0x39, 0xf3], // cmp ebx, esi
    ...[0x76, 0x02], // jbe over
    ...[0x89, 0xde], // mov esi, ebx
  ];
  const body = [
    ...[0xfe, 0x07], // inc byte ptr [rdi]
    ...[0x81, 0xc7, ...u32(4096)], // add edi, 4096
    ...asm.repeat(50, inner),
    ...[0xba, ...u32(0x3fd), 0xec], // mov edx, 0x3fd; in al, dx
    ...[0xa8, 0x01], // test al, 1
  ];
  const nibble = [
    ...[0xc1, 0xc6, 0x04], // rol esi, 4
    ...[0x89, 0xf0], // mov eax, esi
    ...[0x24, 0x0f, 0x04, 0x40], // and al, 15; add al, '@'
    ...[0xba, ...u32(0x3f8), 0xee], // mov edx, 0x3f8; out dx, al
  ];
  return [
    ...readTimer,
    ...[0x89, 0xc5], // mov ebp, eax
    ...[0x31, 0xf6], // xor esi, esi
    ...[0xbf, ...u32(NODE_1.first)], // mov edi, first page
    ...body,
    ...[0x0f, 0x84, ...u32(-(body.length + 6))], // jz body
    ...asm.repeat(8, nibble),
  ];
}

const waitForKey = asm.waitFor(0x3fd, 1);

/** What watchClock() told, in milliseconds. */
function longestMs(console: string): number {
  const letters = /[@A-O]{8}$/.exec(console)?.[0];
  if (letters === undefined) throw new Error(`the guest said no time: ${console}`);
  const ticks = [...letters].reduce((sum, c) => sum * 16 + (c.charCodeAt(0) - 0x40), 0);
  return (ticks / PM_TIMER_HZ) * 1000;
}

describe.skipIf(!hasKvm())("a node that does not answer (needs /dev/kvm)", () => {
  /** Holds the lane up for four seconds while the guest watches its clock. */
  async function cutAndWatch(stallFreezeMs: number) {
    await using engines = await Engines.start({
      nodes: 2,
      code: [say("."), watchClock(), powerOff],
      stallFreezeMs,
    });
    const [zero, one] = [engines.engine(0), engines.engine(1)];
    await until("the guest runs", () => zero.console !== "");
    engines.proxy("0-1").hold();
    await Bun.sleep(4000);
    engines.proxy("0-1").release();
    if (stallFreezeMs > 0) {
      await until("it goes on", () => zero.notices.includes("went on"));
    }
    await engines.type("x");
    const stopped = await engines.allStopped();
    // Its console's last byte is out then.
    await zero.process.exited;
    const sides = [zero, one].map(({ freezes, frozenMs, notices }) => {
      return { freezes, frozenMs, notices };
    });
    return { stopped, sides, longest: longestMs(zero.console) };
  }

  test("freezes the VM: its guest sees the time before that alone", async () => {
    const { stopped, sides, longest } = await cutAndWatch(300);
    expect(stopped.map((each) => each?.reason)).toEqual(["powered_off", "requested"]);
    expect(longest).toBeLessThan(2000);
    for (const { freezes, frozenMs } of sides) {
      expect(freezes).toBeGreaterThanOrEqual(1);
      expect(frozenMs).toBeGreaterThan(2000);
    }
    expect(sides[0]?.notices).toMatch(/node 0 frozen: node 1 does not answer since \d\.\d s/);
    expect(sides[0]?.notices).toMatch(/node 0 went on after [3-9]\.\d s/);
    expect(sides[1]?.notices).toMatch(/node 1 frozen: node 0 does not answer since \d\.\d s/);
  }, 90_000);

  test("without freezes the same guest sees all of it", async () => {
    const { stopped, sides, longest } = await cutAndWatch(0);
    expect(stopped.map((each) => each?.reason)).toEqual(["powered_off", "requested"]);
    expect(longest).toBeGreaterThan(3500);
    for (const { freezes, notices } of sides) {
      expect(freezes).toBe(0);
      expect(notices).not.toContain("frozen");
    }
  }, 90_000);

  test("two of three that do not hear each other freeze the third too, and all go on", async () => {
    await using engines = await Engines.start({
      nodes: 3,
      code: [say("."), watchClock(), powerOff],
    });
    const { all } = engines;
    await until("the guest runs", () => engines.engine(0).console !== "");
    for (const between of ["hold", "cut"] as const) {
      const before = all.map(({ freezes }) => freezes);
      engines.proxy("1-2")[between]();
      await until("all are frozen", () =>
        all.every(({ freezes }, i) => freezes > (before[i] ?? 0)),
      );
      const went = engines.engine(0).wentOn;
      await Bun.sleep(600);
      // As long as that lasts, node 0 waits for them.
      expect(engines.engine(0).wentOn).toBe(went);
      if (between === "hold") engines.proxy("1-2").release();
      else engines.proxy("1-2").restore();
      await until("node 0 goes on", () => engines.engine(0).wentOn > went);
    }
    await engines.type("x");
    const reasons = (await engines.allStopped()).map((each) => each?.reason);
    expect(reasons).toEqual(["powered_off", "requested", "requested"]);
    const told = engines.engine(0).notices;
    expect(told).toMatch(/node 0 frozen: node [12] says: node [12] does not answer since/);
    expect(told).toMatch(/node 0 frozen: node [12] says: node [12] cannot be reached since/);
  }, 90_000);

  test("pause, reset and resume pass through a freeze", async () => {
    // CMOS byte 0x40 tells the second boot from the first.
    const first = [...asm.outb(0x70, 0x40), ...asm.outb(0x71, 1), ...waitForKey];
    const second = [0x66, 0xba, 0x71, 0x00, 0xec, 0x84, 0xc0, 0x75];
    const firstBoot = [...say("a"), ...first, ...asm.outb(0xcf9, 6), ...asm.spin];
    const code = [asm.outb(0x70, 0x40), [...second, firstBoot.length], firstBoot];
    await using engines = await Engines.start({ nodes: 2, code: [...code, say("b"), powerOff] });
    const [zero, one] = [engines.engine(0), engines.engine(1)];
    await until("the guest runs", () => zero.console === "a");
    const { freezes } = one;
    engines.proxy("0-1").hold();
    // Asked for before node 0 notices; the other node cannot hear of it.
    await engines.type("x");
    await until("the reset began", () => zero.notices.includes("guest reset"));
    await until("both are frozen", () => zero.freezes > 0 && one.freezes > freezes);
    one.send({ type: "pause" });
    await until("a frozen node pauses", () => one.notices.includes("paused"));
    one.send({ type: "resume" });
    engines.proxy("0-1").release();
    expect((await engines.allStopped())[0]?.reason).toBe("powered_off");
    await zero.process.exited;
    expect(zero.console).toBe("ab");
  }, 90_000);

  test("a stop ends a frozen VM at once", async () => {
    await using engines = await Engines.start({ nodes: 2, code: [say("."), watchClock()] });
    engines.proxy("0-1").hold();
    await until("both are frozen", () => engines.all.every(({ freezes }) => freezes > 0));
    for (const engine of engines.all) engine.send({ type: "stop" });
    for (const each of await engines.allStopped()) expect(each?.reason).toBe("requested");
    await until("both are gone", () => engines.all.every(({ exit }) => exit !== undefined));
    for (const { exit } of engines.all) expect(exit?.code).toBe(0);
  }, 90_000);

  test("an engine that was stopped for a while is waited for", async () => {
    await using engines = await Engines.start({
      nodes: 2,
      code: [say("."), watchClock(), powerOff],
    });
    const [zero, one] = [engines.engine(0), engines.engine(1)];
    await until("the guest runs", () => zero.console !== "");
    one.signal("SIGSTOP");
    await until("node 0 is frozen", () => zero.freezes > 0);
    await Bun.sleep(1000);
    one.signal("SIGCONT");
    await until("node 0 goes on", () => zero.wentOn > 0);
    await engines.type("x");
    expect((await engines.allStopped())[0]?.reason).toBe("powered_off");
    expect(one.notices).toMatch(/node 1 frozen: its engine stood still for [1-9]\d*\.\d s/);
  }, 90_000);
});

describe.skipIf(!hasKvm())("a node that is lost (needs /dev/kvm)", () => {
  const peerTimeoutMs = 1500;
  const silent = /^node 1: silent for longer than peer_timeout$/;

  test("ends the frozen VM on both sides, which name each other", async () => {
    const code = [say("."), watchClock()];
    await using engines = await Engines.start({ nodes: 2, code, peerTimeoutMs });
    engines.proxy("0-1").hold();
    const [zero, one] = await engines.allStopped();
    expect([zero?.reason, one?.reason]).toEqual(["vcpu_lost", "vcpu_lost"]);
    expect(zero?.detail).toMatch(silent);
    expect(one?.detail).toBe("node 0: silent for longer than peer_timeout");
    expect(engines.all.map(({ freezes }) => freezes > 0)).toEqual([true, true]);
  }, 90_000);

  test("of three ends the other two, also the one that still heard it", async () => {
    const code = [say("."), watchClock()];
    await using engines = await Engines.start({ nodes: 3, code, peerTimeoutMs });
    engines.proxy("0-1").hold();
    const details = (await engines.allStopped()).map((each) => {
      expect(each?.reason).toBe("vcpu_lost");
      return each?.detail;
    });
    expect(details[2]).toMatch(
      /^node [01]: silent for longer than peer_timeout \(told by node [01]\)$/,
    );
    expect(details[0]).toMatch(/^node 1: silent for longer than peer_timeout/);
    expect(details[1]).toMatch(/^node [01]: silent for longer than peer_timeout/);
  }, 90_000);

  test("by a kill ends the others, which name it", async () => {
    const code = [say("."), watchClock()];
    await using engines = await Engines.start({ nodes: 3, code, peerTimeoutMs });
    engines.engine(2).signal("SIGKILL");
    const rest = engines.all.slice(0, 2);
    await until("both others stopped", () => rest.every(({ stopped }) => stopped));
    for (const { stopped } of rest) {
      expect(stopped?.reason).toBe("vcpu_lost");
      expect(stopped?.detail).toMatch(/^node 2: /);
    }
  }, 90_000);

  test.if(isRoot)(
    "with a page ends all, which name the page (needs root)",
    async () => {
      const program = await buildProgram(`${import.meta.dir}/break_memory.zig`);
      const code = [say("."), watchClock()];
      await using engines = await Engines.start({ nodes: 2, code });
      const [zero, one] = [engines.engine(0), engines.engine(1)];
      await until("the guest runs", () => zero.console !== "");
      engines.proxy("0-1").hold();
      await until("a page is waited for", () => zero.page.stats().oldest_fault_ns > 0n);
      const broken = await run([program, `${zero.process.pid}`]);
      expect(broken).toEqual({ code: 0, out: "", err: "" });
      engines.proxy("0-1").release();
      await until("both are gone", () => engines.all.every(({ exit }) => exit !== undefined));
      const why = "on node 0: install failed \\(errno \\d+\\), its state is unknown";
      expect(one.stopped?.reason).toBe("page_lost");
      expect(one.stopped?.detail).toMatch(
        new RegExp(`^page 0x[89a-f][0-9a-f]{3}000 ${why} \\(told by node 0\\)$`),
      );
      const death = describeDeath(zero.process, zero.exit as EngineExit);
      expect(death.code).toBe("page_lost");
      expect(death.message).toMatch(
        /gave up; last words: fatal condition: page_lost: page 0x[89a-f][0-9a-f]{3}000 on node 0: /,
      );
    },
    90_000,
  );

  for (const node of [0, 1]) {
    test(`that comes back after its time ends itself (node ${node})`, async () => {
      const code = [say("."), watchClock()];
      await using engines = await Engines.start({ nodes: 2, code, peerTimeoutMs });
      const [late, other] = [engines.engine(node), engines.engine(1 - node)];
      late.signal("SIGSTOP");
      await until("the other one has given it up", () => other.stopped !== undefined);
      expect(other.stopped?.detail).toBe(`node ${node}: silent for longer than peer_timeout`);
      await until("the other one is gone", () => other.exit !== undefined);
      await Bun.sleep(peerTimeoutMs);
      late.signal("SIGCONT");
      await until("it ends itself", () => late.stopped !== undefined);
      expect(late.stopped?.reason).toBe("vcpu_lost");
      // The other one has closed the connection after half of the time, so there is no goodbye.
      const why = /, whose engine stood still for [3-9]\.\d s, longer than peer_timeout$/;
      expect(late.stopped?.detail).toStartWith(`node ${1 - node}: it has given this node up`);
      expect(late.stopped?.detail).toMatch(why);
      await until("it is gone", () => late.exit !== undefined);
      expect(late.exit).toMatchObject({ code: 0, signal: null });
    }, 90_000);
  }
});
