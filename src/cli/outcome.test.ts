import { expect, test } from "bun:test";

import { SsihvError } from "../base/errors.ts";
import type { VmOutcome } from "../node/vm.ts";
import {
  type EngineSummary,
  hotPageLines,
  memoryLines,
  outcomeJson,
  outcomeStatus,
  outcomeText,
  summaryLine,
} from "./outcome.ts";

type Stopped = Extract<VmOutcome, { kind: "stopped" }>;

function stopped(reason: Stopped["reason"], more: Partial<Stopped> = {}): Stopped {
  return {
    kind: "stopped",
    node: 0,
    reason,
    code: undefined,
    detail: undefined,
    registers: undefined,
    ...more,
  };
}

const SUMMARY: EngineSummary = {
  node: 0,
  runSeconds: 12.34,
  exits: 1000,
  exitsTypescript: 3,
  remoteFaults: 1,
  faultUsMedian: 50,
  faultUsP99: 400.4,
  pageTables: "replicated",
  pageTableTransfers: 7,
  oldest_fault_us: 0,
  freezes: 0,
  frozenSeconds: 0,
  longestFreezeSeconds: 0,
  longestStallUs: 900,
  stalledShare: 0.0312,
  mismatches: 0,
  memory: {
    ownPagesMax: 0,
    cachePagesMax: 0,
    evicted: 0,
    returned: 0,
    framesHeld: 0,
    discarded: 0,
    framesFreed: 0,
  },
};

test("every reason has its status", () => {
  const statuses = {
    powered_off: 0,
    requested: 0,
    reset: 6,
    triple_fault: 8,
    halted: 14,
    internal_error: 10,
    vcpu_lost: 10,
    page_lost: 10,
  } as const;
  for (const [reason, status] of Object.entries(statuses)) {
    expect(outcomeStatus(stopped(reason as Stopped["reason"]))).toBe(status);
  }
  expect(outcomeStatus(stopped("debug_exit", { code: 0x10 }))).toBe(33);
  expect(outcomeStatus(stopped("debug_exit", { code: 0xff }))).toBe(255);
  const failed = { kind: "failed", error: new SsihvError("host_unfit", "x") } as const;
  expect(outcomeStatus(failed)).toBe(4);
});

test("a triple fault shows its registers, a power-off none", () => {
  const registers = "vCPU 0  rip ...";
  expect(outcomeText("demo", stopped("triple_fault", { registers }))).toBe(
    `VM demo: the guest's CPU stopped with a triple fault\n${registers}`,
  );
  expect(outcomeText("demo", stopped("powered_off", { registers }))).toBe(
    "VM demo: the guest powered off",
  );
  expect(outcomeText("demo", stopped("internal_error", { detail: "suberror 1" }))).toContain(
    ": suberror 1",
  );
  const detail = "node 2: silent for longer than peer_timeout (told by node 1)";
  expect(outcomeText("demo", stopped("vcpu_lost", { detail }))).toBe(
    `VM demo: a vCPU is lost: its node is gone, so the VM ended everywhere: ${detail}`,
  );
});

test("json carries what the text does", () => {
  expect(outcomeJson("demo", stopped("debug_exit", { code: 3 }))).toEqual({
    event: "ended",
    vm: "demo",
    node: 0,
    reason: "debug_exit",
    code: 3,
  });
});

test("the last line sums work over the nodes and takes times of the worst", () => {
  const other = { ...SUMMARY, node: 1, remoteFaults: 9, faultUsP99: 80, longestStallUs: 12_000 };
  expect(summaryLine("demo", [SUMMARY, other])).toBe(
    "VM demo: ran 12.3 s, 2000 exits (6 by TypeScript), " +
      "10 remote faults (median 50 us, p99 400 us), replicated page tables with 14 transfers, " +
      "longest stall 12000 us, stalled 3.1 %, 0 mismatches",
  );
  expect(summaryLine("demo", [{ ...SUMMARY, bootSeconds: 4, mismatches: 1 }])).toContain(
    "boot 4.0 s",
  );
  // Only while one hangs.
  expect(summaryLine("demo", [SUMMARY, { ...SUMMARY, oldest_fault_us: 2_000_000.4 }])).toContain(
    "longest stall 900 us, oldest fault in flight 2000000 us, stalled",
  );
  expect(summaryLine("demo", [])).toContain("no numbers");
  const frozen = { ...other, freezes: 2, frozenSeconds: 23.24, longestFreezeSeconds: 20 };
  expect(summaryLine("demo", [SUMMARY, frozen])).toContain(
    "longest stall 12000 us, frozen 2 times for 23.2 s (longest 20.0 s), stalled 3.1 %",
  );
});

test("what each node's memory was used for is told where it was short", () => {
  const { memory } = SUMMARY;
  const used = { ownPagesMax: 8192, cachePagesMax: 1024, evicted: 10, returned: 4 };
  const all = [
    { ...SUMMARY, memory: { ...memory, ...used } },
    { ...SUMMARY, node: 1, memory: { ...memory, cachePagesMax: 256, evicted: 1 } },
    { ...SUMMARY, node: 2, memory: { ...memory, framesHeld: 128 } },
    { ...SUMMARY, node: 3 },
  ];
  expect(memoryLines(all)).toEqual([
    "node 0: at most 32.0 MiB of its own pages and 4.0 MiB of others'; " +
      "10 pages evicted, 4 back soon",
    "node 1: at most 1.0 MiB of others'; 1 page evicted, 0 back soon",
    "memory node 2: 0.5 MiB in use",
  ]);
  expect(summaryLine("demo", all)).toContain(
    ", 11 pages evicted, 4 back soon after they left, 0 mismatches",
  );
});

test("the report adds up the pages of all nodes and names them", () => {
  const a = { ...SUMMARY, hotPages: [{ gpa: 0x1000, transfers: 2 }] };
  const b = {
    ...SUMMARY,
    hotPages: [
      { gpa: 0x1000, transfers: 3, symbol: "init_top_pgt" },
      { gpa: 0x2000, transfers: 9 },
    ],
  };
  expect(hotPageLines([a, b]).slice(1)).toEqual([
    "       9  0x000002000",
    "       5  0x000001000  init_top_pgt",
  ]);
  expect(hotPageLines([a, b], 1).length).toBe(2);
  expect(hotPageLines([SUMMARY])).toEqual(["no page moved between nodes"]);
});
