// How a run ended, in words, as JSON and as an exit status; and the line of numbers every run ends
// with. Pure.

import type { Vm, VmOutcome } from "../node/vm.ts";
import { debugExitStatus, EXIT, exitStatusOf } from "./exit-status.ts";

type Stopped = Extract<VmOutcome, { kind: "stopped" }>;
type StoppedReason = Stopped["reason"];
export type EngineSummary = ReturnType<Vm["summaries"]>[number];

const STATUS: Record<StoppedReason, number> = {
  powered_off: EXIT.ok,
  requested: EXIT.ok,
  reset: EXIT.guestReset,
  triple_fault: EXIT.tripleFault,
  // The value decides; see outcomeStatus.
  debug_exit: EXIT.ok,
  halted: EXIT.guestHalted,
  internal_error: EXIT.engineDead,
  vcpu_lost: EXIT.engineDead,
  page_lost: EXIT.engineDead,
};

const WORDS: Record<StoppedReason, string> = {
  powered_off: "the guest powered off",
  requested: "stopped",
  reset: "the guest reset, and --no-reboot was given",
  triple_fault: "the guest's CPU stopped with a triple fault",
  debug_exit: "the guest wrote to isa-debug-exit",
  halted: "the guest halted for good: no vCPU can be woken any more",
  internal_error: "the engine could not go on",
  vcpu_lost: "a vCPU is lost: its node is gone, so the VM ended everywhere",
  page_lost: "a page is lost: the only copy of it is gone, so the VM ended everywhere",
};

export function outcomeStatus(outcome: VmOutcome): number {
  if (outcome.kind === "failed") return exitStatusOf(outcome.error);
  if (outcome.reason === "debug_exit") return debugExitStatus(outcome.code ?? 0);
  return STATUS[outcome.reason];
}

/** One or more lines without the program's name. */
export function outcomeText(name: string, outcome: Stopped): string {
  const code = outcome.code === undefined ? "" : ` (value ${outcome.code})`;
  const detail = outcome.detail === undefined ? "" : `: ${outcome.detail}`;
  const text = `VM ${name}: ${WORDS[outcome.reason]}${code}${detail}`;
  return outcome.registers === undefined || STATUS[outcome.reason] === EXIT.ok
    ? text
    : `${text}\n${outcome.registers}`;
}

export function outcomeJson(name: string, outcome: Stopped): Record<string, unknown> {
  const { node, reason, code, detail, registers } = outcome;
  return {
    event: "ended",
    vm: name,
    node,
    reason,
    ...(code !== undefined && { code }),
    ...(detail !== undefined && { detail }),
    ...(registers !== undefined && { registers }),
  };
}

function count(value: number, one: string, many = `${one}s`): string {
  return `${value} ${value === 1 ? one : many}`;
}

function sum(summaries: readonly EngineSummary[], of: (each: EngineSummary) => number): number {
  return summaries.reduce((total, each) => total + of(each), 0);
}

function worst(summaries: readonly EngineSummary[], of: (each: EngineSummary) => number): number {
  return Math.max(0, ...summaries.map(of));
}

function faultWords(summaries: readonly EngineSummary[]): string {
  const faults = count(
    sum(summaries, (each) => each.remoteFaults),
    "remote fault",
  );
  const median = Math.round(worst(summaries, (each) => each.faultUsMedian));
  const p99 = Math.round(worst(summaries, (each) => each.faultUsP99));
  return `${faults} (median ${median} us, p99 ${p99} us)`;
}

/** All nodes freeze together: the one that was frozen longest tells. */
function freezeWords(summaries: readonly EngineSummary[]): string[] {
  const freezes = worst(summaries, (each) => each.freezes);
  if (freezes === 0) return [];
  const all = worst(summaries, (each) => each.frozenSeconds).toFixed(1);
  const longest = worst(summaries, (each) => each.longestFreezeSeconds).toFixed(1);
  return [`frozen ${count(freezes, "time")} for ${all} s (longest ${longest} s)`];
}

function evictionWords(summaries: readonly EngineSummary[]): string[] {
  const evicted = sum(summaries, ({ memory }) => memory.evicted);
  if (evicted === 0) return [];
  const returned = sum(summaries, ({ memory }) => memory.returned);
  return [`${count(evicted, "page")} evicted`, `${returned} back soon after they left`];
}

/** `--report`: what each node's memory was used for, where its budgets were smaller than it. */
export function memoryLines(summaries: readonly EngineSummary[]): string[] {
  const mib = (pages: number) => `${(pages / 256).toFixed(1)} MiB`;
  return summaries.flatMap(({ node, memory }) => {
    const { ownPagesMax, cachePagesMax, evicted, returned, framesHeld } = memory;
    if (framesHeld > 0) return [`memory node ${node}: ${mib(framesHeld)} in use`];
    if (ownPagesMax === 0 && cachePagesMax === 0) return [];
    const own = ownPagesMax === 0 ? [] : [`${mib(ownPagesMax)} of its own pages`];
    const cache = cachePagesMax === 0 ? [] : [`${mib(cachePagesMax)} of others'`];
    const parts = [...own, ...cache].join(" and ");
    return [
      `node ${node}: at most ${parts}; ${count(evicted, "page")} evicted, ${returned} back soon`,
    ];
  });
}

/** The run's last line: work summed over the nodes, times of the worst node. */
export function summaryLine(name: string, summaries: readonly EngineSummary[]): string {
  const first = summaries[0];
  if (first === undefined) return `VM ${name}: no numbers: no engine lived to give them`;
  const boot = summaries.find((each) => each.bootSeconds !== undefined)?.bootSeconds;
  const exits = sum(summaries, (each) => each.exits);
  const rare = sum(summaries, (each) => each.exitsTypescript);
  const transfers = sum(summaries, (each) => each.pageTableTransfers);
  const mismatches = sum(summaries, (each) => each.mismatches);
  const oldest = Math.round(worst(summaries, (each) => each.oldest_fault_us));
  const parts = [
    `ran ${worst(summaries, (each) => each.runSeconds).toFixed(1)} s`,
    ...(boot === undefined ? [] : [`boot ${boot.toFixed(1)} s`]),
    `${count(exits, "exit")} (${rare} by TypeScript)`,
    faultWords(summaries),
    `${first.pageTables} page tables with ${count(transfers, "transfer")}`,
    `longest stall ${Math.round(worst(summaries, (each) => each.longestStallUs))} us`,
    ...(oldest === 0 ? [] : [`oldest fault in flight ${oldest} us`]),
    ...freezeWords(summaries),
    `stalled ${(worst(summaries, (each) => each.stalledShare) * 100).toFixed(1)} %`,
    ...evictionWords(summaries),
    count(mismatches, "mismatch", "mismatches"),
  ];
  return `VM ${name}: ${parts.join(", ")}`;
}

/** `--report`: the pages that moved most, all nodes together. */
export function hotPageLines(summaries: readonly EngineSummary[], limit = 20): string[] {
  const pages = new Map<number, { transfers: number; symbol: string | undefined }>();
  for (const { hotPages } of summaries) {
    for (const { gpa, transfers, symbol } of hotPages ?? []) {
      const page = pages.get(gpa) ?? { transfers: 0, symbol: undefined };
      pages.set(gpa, {
        transfers: page.transfers + transfers,
        symbol: symbol ?? page.symbol,
      });
    }
  }
  if (pages.size === 0) return ["no page moved between nodes"];
  const sorted = [...pages].sort(([, a], [, b]) => b.transfers - a.transfers).slice(0, limit);
  return [
    "pages that moved most (transfers, guest address, symbol):",
    ...sorted.map(([gpa, { transfers, symbol }]) => {
      const address = `0x${gpa.toString(16).padStart(9, "0")}`;
      return `${String(transfers).padStart(8)}  ${address}  ${symbol ?? ""}`.trimEnd();
    }),
  ];
}
