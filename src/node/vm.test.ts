import { describe, expect, test } from "bun:test";
import { closeSync, existsSync, openSync } from "node:fs";
import { join } from "node:path";

import type { EnginePlan } from "../engine/messages.ts";
import type { ParentPage } from "./engine-process.ts";
import type { CpuDump } from "./last-words.ts";
import { Vm, type VmEvent, type VmOutcome, type VmPlan } from "./vm.ts";

const COMMAND = [process.execPath, join(import.meta.dir, "fake-engine.fixture.ts")];

const NO_DUMP = { valid: 0 } as CpuDump;

function page(words = ""): ParentPage {
  const fd = openSync("/dev/null", "r+");
  const text = new TextEncoder().encode(words);
  return {
    fd,
    close: () => closeSync(fd),
    cpuDump: () => NO_DUMP,
    lastWords: () => ({
      kind: words === "" ? 0 : 1,
      signo: 0,
      vcpu: 1,
      text_len: text.length,
      address: 0n,
      text,
    }),
  };
}

function planOf(cmdline: string, nodes = 1): VmPlan {
  return {
    name: "test",
    nodes: Array.from({ length: nodes }, (_, id) => ({ id, vcpus: 1, memoryBytes: 2 ** 27 })),
    kernel: "/dev/null",
    cmdline,
    pageTables: "auto",
    options: {
      onReset: "stop",
      clockDilation: 1,
      peerTimeoutMs: 5000,
      stallFreezeMs: 300,
      holdUsMax: 0,
      plainMemory: nodes === 1,
      pinVcpus: false,
      report: false,
    },
  };
}

/** One compute node, and memory nodes. */
function lendingPlan(cmdline: string, lenders = 1): VmPlan {
  const [compute] = planOf(cmdline).nodes;
  if (compute === undefined) throw new Error("a plan without nodes");
  const nodes = [
    { ...compute, residentBytes: 2 ** 26 },
    ...Array.from({ length: lenders }, (_, i) => ({
      ...{ id: i + 1, vcpus: 0, memoryBytes: 0 },
      lentBytes: 2 ** 26,
    })),
  ];
  return { ...planOf(cmdline, 1 + lenders), nodes, frameCopies: 1 };
}

interface Ran {
  outcome: VmOutcome;
  console: string;
  events: VmEvent[];
  summaries: ReturnType<Vm["summaries"]>;
}

async function run(
  plan: VmPlan,
  extra: {
    words?: string;
    graceMs?: number;
    drive?: (vm: Vm, console: string) => void;
    onEvent?: (vm: Vm, event: VmEvent) => void;
  } = {},
): Promise<Ran> {
  const events: VmEvent[] = [];
  let console = "";
  const vm: Vm = new Vm(
    plan,
    {
      onConsole: (chunk) => {
        console += new TextDecoder().decode(chunk);
        extra.drive?.(vm, console);
      },
      onEvent: (event) => {
        events.push(event);
        extra.onEvent?.(vm, event);
      },
    },
    { createPage: () => page(extra.words), command: COMMAND, graceMs: extra.graceMs ?? 5000 },
  );
  const outcome = await vm.run();
  return { outcome, console, events, summaries: vm.summaries() };
}

test("a guest that powers off: console arrives whole, before the outcome", async () => {
  const { outcome, console, events } = await run(planOf("say=hello notice=hi stop=powered_off"));
  expect(outcome).toMatchObject({ kind: "stopped", reason: "powered_off", node: 0 });
  expect(console).toBe("hello");
  expect(events.map((event) => event.event)).toEqual(["engine_ready", "started", "notice"]);
});

test("a Linux that reaches init has its boot time told, in the numbers too", async () => {
  const booted = await run(planOf("say=Run_/init_as_init_process summary stop=powered_off"));
  expect(booted.events.filter(({ event }) => event === "booted").length).toBe(1);
  expect(booted.summaries[0]?.bootSeconds).toBeGreaterThan(0);
  const quiet = await run(planOf("say=Run_init summary stop=powered_off"));
  expect(quiet.events.some(({ event }) => event === "booted")).toBe(false);
  expect(quiet.summaries[0]).toMatchObject({ runSeconds: 1 });
  expect(quiet.summaries[0]?.bootSeconds).toBeUndefined();
});

test("console input reaches the engine", async () => {
  let sent = false;
  const { console, outcome } = await run(planOf("say=> echo stop=debug_exit:16"), {
    drive: (vm, text) => {
      if (sent || text !== ">") return;
      sent = true;
      void vm.writeConsole(new TextEncoder().encode("typed"));
    },
  });
  expect(console).toBe(">typed");
  expect(outcome).toMatchObject({ reason: "debug_exit", code: 16 });
});

test("a crash is an error with the VM's name and last words, and no runtime report", async () => {
  const { outcome, events } = await run(planOf("err=before segv"), {
    words: "index out of bounds",
  });
  if (outcome.kind !== "failed") throw new Error("expected a failure");
  expect(outcome.error.code).toBe("engine_dead");
  expect(outcome.error.message).toContain("VM test: the engine of node 0");
  expect(outcome.error.message).toContain("SIGSEGV");
  expect(outcome.error.message).toContain("broken invariant on vCPU 1: index out of bounds");
  expect(String(outcome.error.cause)).toContain("before");
  expect(JSON.stringify(events)).not.toContain("bug in Bun");
});

test("an engine that just exits is named with its status", async () => {
  const { outcome } = await run(planOf("exit=3"));
  if (outcome.kind !== "failed") throw new Error("expected a failure");
  expect(outcome.error.message).toContain("exited with status 3");
});

test("a failure the engine tells keeps its code and hint", async () => {
  const { outcome } = await run(planOf("fail=kernel_invalid"));
  if (outcome.kind !== "failed") throw new Error("expected a failure");
  expect(outcome.error.code).toBe("kernel_invalid");
  expect(outcome.error.hint).toBe("scripted hint");
  const unknown = await run(planOf("fail=no_such_code"));
  if (unknown.outcome.kind !== "failed") throw new Error("expected a failure");
  expect(unknown.outcome.error.code).toBe("engine_failed");
});

test("two nodes: plans name each other, one death stops both, no folder stays", async () => {
  const { outcome, console, events } = await run(planOf("plan only=1 exit=9", 2));
  if (outcome.kind !== "failed") throw new Error("expected a failure");
  expect(outcome.error.message).toContain("node 1");
  const plan = JSON.parse(console) as EnginePlan;
  expect(plan.node).toBe(0);
  expect(plan.options.pageTables).toBe("replicated");
  expect(plan.lane?.peers.map((peer) => peer.node)).toEqual([1]);
  expect(plan.lane?.key).toMatch(/^[0-9a-f]{64}$/);
  const folder = join(plan.lane?.listen.slice("unix:".length) ?? "", "..");
  expect(existsSync(folder)).toBe(false);
  expect(events.filter((event) => event.event === "engine_ready").length).toBe(2);
});

test("an engine that does not stop when told is killed", async () => {
  const { outcome, console } = await run(planOf("deaf say=go"), {
    graceMs: 50,
    drive: (vm) => vm.stop(),
  });
  expect(console).toBe("go");
  expect(outcome).toMatchObject({ kind: "stopped", reason: "requested" });
});

test("pause, resume, nmi and report are passed on", async () => {
  const { events } = await run(planOf("say=go"), {
    drive: (vm) => {
      vm.togglePause();
      vm.togglePause();
      vm.nmi();
      vm.report();
      setTimeout(() => vm.stop(), 200);
    },
  });
  const texts = events.flatMap((event) => (event.event === "notice" ? [event.text] : []));
  expect(texts).toEqual(["got pause", "got resume", "got nmi", "got report"]);
});

test("a program that cannot be started is an outcome, not an exception", async () => {
  const vm = new Vm(
    planOf(""),
    { onConsole: () => undefined, onEvent: () => undefined },
    { createPage: () => page(), command: ["/nonexistent/ssihv"] },
  );
  const outcome = await vm.run();
  if (outcome.kind !== "failed") throw new Error("expected a failure");
  expect(outcome.error.code).toBe("engine_failed");
});

describe("a memory node", () => {
  test("has no CPU in the VM's model, nor a say in how page tables are shared", async () => {
    const { console } = await run(lendingPlan("plan stop=powered_off"));
    const plan = JSON.parse(console) as EnginePlan;
    expect(plan.options.pageTables).toBe("strict");
    expect(plan.cpuModel).toBeUndefined();
    expect(plan.frameCopies).toBe(1);
    expect(plan.nodes[1]?.lentBytes).toBe(2 ** 26);
    expect(plan.lane?.peers.map((peer) => peer.node)).toEqual([1]);
  });

  test("that dies in a running VM is told, and the VM goes on", async () => {
    const { outcome, events } = await run(
      lendingPlan("only=0 echo stop=powered_off only=1 dies=pause"),
      {
        onEvent: (vm, { event }) => {
          if (event === "started") vm.togglePause();
          if (event === "memory_lost") void vm.writeConsole(new TextEncoder().encode("go on"));
        },
      },
    );
    expect(outcome).toMatchObject({ kind: "stopped", reason: "powered_off", node: 0 });
    const lost = events.filter(({ event }) => event === "memory_lost");
    expect(lost.length).toBe(1);
    expect(lost[0]).toMatchObject({ node: 1 });
    expect(JSON.stringify(lost)).toContain("the engine of node 1");
    expect(JSON.stringify(lost)).toContain("exited with status 9");
  });

  /** What the engines say they were sent, by node. */
  function heard(events: readonly VmEvent[]): Record<number, string[]> {
    const by: Record<number, string[]> = {};
    for (const each of events) {
      if (each.event !== "notice") continue;
      by[each.node] ??= [];
      by[each.node]?.push(each.text);
    }
    return by;
  }

  test("whose process has ended is told to all others, once", async () => {
    let told = 0;
    const { outcome, events } = await run(lendingPlan("only=1 dies=pause", 3), {
      onEvent: (vm, each) => {
        if (each.event === "started") vm.togglePause();
        if (each.event === "notice" && each.text.endsWith("has ended")) told += 1;
        if (told === 3) vm.stop();
      },
    });
    expect(outcome).toMatchObject({ reason: "requested" });
    const text = ["got pause", "node 1 has ended"];
    expect(heard(events)).toEqual({ 0: text, 2: text, 3: text });
  });

  test("that gives up is told to have ended when it has, not before", async () => {
    const { events } = await run(lendingPlan("only=1 on=pause:fail=page_lost dies=resume"), {
      onEvent: (vm, each) => {
        if (each.event === "started") vm.togglePause();
        if (each.event === "memory_lost") vm.togglePause();
        if (each.event === "notice" && each.text.endsWith("has ended")) vm.stop();
      },
    });
    const lost = events.filter(({ event }) => event === "memory_lost");
    expect(lost).toMatchObject([{ node: 1, text: "scripted failure" }]);
    expect(heard(events)[0]).toEqual(["got pause", "got resume", "node 1 has ended"]);
  });

  test("that says goodbye, and any node's end that ends the VM, is not told", async () => {
    const plans = [
      lendingPlan("only=1 on=pause:stop=vcpu_lost", 2),
      { ...lendingPlan("only=1 dies=pause"), nodes: planOf("", 2).nodes },
    ];
    for (const plan of plans) {
      const { events } = await run(plan, {
        onEvent: (vm, each) => {
          if (each.event === "started") vm.togglePause();
          // The exit follows its word by a moment.
          if (each.event === "memory_lost") setTimeout(() => vm.stop(), 100);
        },
      });
      for (const texts of Object.values(heard(events))) expect(texts).toEqual(["got pause"]);
    }
  });

  test("that never came up ends the VM", async () => {
    const { outcome } = await run(lendingPlan("only=1 unstarted exit=3"));
    if (outcome.kind !== "failed") throw new Error("expected a failure");
    expect(outcome.error.message).toContain("the engine of node 1");
  });
});
