// What one sees of a running VM from outside: its state, its nodes with their numbers, and where
// its pages are. Made from what the command that runs it knows and from what its engines answer;
// the lead asks the engines of all nodes, a host that joined asks its own.
// The nodes' answers come one after another while the guest runs: each is exact, but together they
// are no snapshot of one instant.

import { messageOf, SsihvError } from "../base/errors.ts";
import {
  type BalloonSummary,
  type EngineSummary,
  type NodePlan,
  PAGES_ASKED_MAX,
  type PageCopy,
  type PageEntry,
  type PageReport,
  type PageTransaction,
  type Question,
  type SandboxState,
} from "../engine/messages.ts";
import type { NodeHeat } from "../telemetry/heat.ts";
import type { NodeStats } from "../telemetry/node-metrics.ts";
import { checkBalloon, isMemoryNode } from "../vmm/memory-budget.ts";
import { type RamPart, ramPartsOf } from "../vmm/ram-parts.ts";
import type { Asked } from "./questions.ts";

export type VmState =
  /** Hosts have yet to join. */
  "waiting" | "starting" | "running" | "paused" | "stopping";

/** A node that the command looks after. */
export interface NodeFacts {
  readonly node: number;
  /** The host that joined with it; absent: this host. */
  readonly host?: string;
  /** Absent: no engine yet. */
  readonly pid?: number;
  /** Absent: its engine has not built anything yet. */
  readonly sandbox?: SandboxState;
}

export interface VmFacts {
  readonly name: string;
  /** The command is `run` and knows all nodes, or `join` and knows its own. */
  readonly role: "lead" | "node";
  readonly state: VmState;
  /** Absent before the guest runs. */
  readonly uptimeSeconds?: number;
  /** Every node of the VM. */
  readonly shape: readonly NodePlan[];
  readonly nodes: readonly NodeFacts[];
}

/** A VM as its command lets it be looked at. */
export interface VmObserved {
  facts(): VmFacts;
  /** Throws what went wrong in words that begin with the engine ("its engine ..."). */
  ask(node: number, question: Question): Promise<Asked>;
}

export interface VmListing {
  readonly name: string;
  readonly role: VmFacts["role"];
  /** The joined host's node. */
  readonly node: number | null;
  readonly state: VmState;
  readonly nodes: number;
  readonly vcpus: number;
  readonly memoryBytes: number;
  readonly uptimeSeconds: number | null;
  readonly pid: number;
}

export interface NodeShown {
  readonly node: number;
  readonly host: string | null;
  readonly pid: number | null;
  readonly vcpus: number;
  /** Guest RAM that it is home of. */
  readonly memoryBytes: number;
  /** Of a memory node: what it lends. */
  readonly lentBytes: number | null;
  readonly sandbox: SandboxState | null;
  readonly stats: EngineSummary | null;
  /** Why there are no stats. */
  readonly silent: string | null;
}

export interface VmShown extends Omit<VmListing, "nodes" | "node"> {
  readonly node: number | null;
  readonly nodes: readonly NodeShown[];
}

/** Every counter of a node's engine. */
export interface NodeSample {
  readonly node: number;
  readonly host: string | null;
  readonly vcpus: number;
  readonly memoryBytes: number;
  readonly lentBytes: number | null;
  readonly stats: NodeStats | null;
  /** Why there are none. */
  readonly silent: string | null;
}

export interface VmSample {
  readonly name: string;
  readonly state: VmState;
  readonly nodes: readonly NodeSample[];
}

/** Remote faults by block of guest RAM, of every node that has some. */
export interface HeatShown {
  readonly vm: string;
  /** RAM in order of addresses: blocks number it end to end. */
  readonly ranges: readonly RamPart[];
  /** Of compute nodes. */
  readonly nodes: readonly {
    readonly node: number;
    readonly heat: NodeHeat | null;
    /** Why there is none. */
    readonly silent: string | null;
  }[];
}

export interface CopyShown extends PageCopy {
  readonly node: number;
}

/** What belongs to the directory is null, and `sharers` empty, when the home did not answer. */
export interface PageShown {
  readonly gpa: number;
  readonly home: number;
  readonly state: PageEntry["state"] | null;
  readonly owner: number | null;
  readonly sharers: readonly number[];
  readonly version: number | null;
  readonly transaction: PageTransaction | null;
  readonly copies: readonly CopyShown[];
}

export interface PagesShown {
  readonly vm: string;
  readonly pages: readonly PageShown[];
  /** Nodes that the command asked in vain. */
  readonly silent: readonly { readonly node: number; readonly why: string }[];
}

const PAGE_BYTES = 4096;
export const PAGES_AT_ONCE_MAX: number = PAGES_ASKED_MAX;

export function listVm(vm: VmObserved): VmListing {
  const { name, role, state, uptimeSeconds, shape, nodes } = vm.facts();
  return {
    name,
    role,
    node: role === "node" ? (nodes[0]?.node ?? null) : null,
    state,
    nodes: shape.length,
    vcpus: shape.reduce((sum, { vcpus }) => sum + vcpus, 0),
    memoryBytes: shape.reduce((sum, { memoryBytes }) => sum + memoryBytes, 0),
    uptimeSeconds: uptimeSeconds ?? null,
    pid: process.pid,
  };
}

export async function showVm(vm: VmObserved): Promise<VmShown> {
  const { shape, nodes } = vm.facts();
  const shown = await Promise.all(nodes.map((facts) => showNode(vm, facts, shape[facts.node])));
  return { ...listVm(vm), nodes: shown };
}

/** Of the nodes that are `wanted`; every one that the command looks after, unless said. */
export async function sampleVm(
  vm: VmObserved,
  wanted: (node: NodeFacts) => boolean = () => true,
): Promise<VmSample> {
  const { name, state, shape, nodes } = vm.facts();
  const samples = nodes.filter(wanted).map(async ({ node, host }): Promise<NodeSample> => {
    const plan = shape[node];
    const head = {
      ...{ node, host: host ?? null, vcpus: plan?.vcpus ?? 0 },
      ...{ memoryBytes: plan?.memoryBytes ?? 0, lentBytes: plan?.lentBytes ?? null },
    };
    try {
      const answer = await vm.ask(node, { kind: "stats" });
      return { ...head, stats: answer.kind === "stats" ? answer.stats : null, silent: null };
    } catch (error) {
      return { ...head, stats: null, silent: messageOf(error) };
    }
  });
  return { name, state, nodes: await Promise.all(samples) };
}

export async function heatOfVm(vm: VmObserved): Promise<HeatShown> {
  const { name, shape, nodes } = vm.facts();
  const compute = nodes.filter(({ node }) => !isMemoryNode(shape[node]));
  const asked = compute.map(async ({ node }) => {
    try {
      const answer = await vm.ask(node, { kind: "heat" });
      return { node, heat: answer.kind === "heat" ? answer.heat : null, silent: null };
    } catch (error) {
      return { node, heat: null, silent: messageOf(error) };
    }
  });
  return { vm: name, ranges: ramPartsOf(shape), nodes: await Promise.all(asked) };
}

async function showNode(
  vm: VmObserved,
  { node, host, pid, sandbox }: NodeFacts,
  plan: NodePlan | undefined,
): Promise<NodeShown> {
  const head = {
    node,
    host: host ?? null,
    pid: pid ?? null,
    vcpus: plan?.vcpus ?? 0,
    memoryBytes: plan?.memoryBytes ?? 0,
    lentBytes: plan?.lentBytes ?? null,
    sandbox: sandbox ?? null,
  };
  try {
    const answer = await vm.ask(node, { kind: "summary" });
    const stats = answer.kind === "summary" ? answer.summary : null;
    return { ...head, stats, silent: null };
  } catch (error) {
    return { ...head, stats: null, silent: messageOf(error) };
  }
}

/** Another size for the balloon, which is on node 0; the guest gives or takes the rest in time. */
export async function setBalloon(vm: VmObserved, bytes: number): Promise<BalloonSummary> {
  const { name, shape, nodes } = vm.facts();
  if (!nodes.some(({ node }) => node === 0)) {
    throw new SsihvError("request_invalid", `node ${nodes[0]?.node} of VM ${name} has no balloon`, {
      hint: "node 0 has it: ask where ssihv run leads the VM",
    });
  }
  const answer = await vm.ask(0, { kind: "balloon", bytes: checkBalloon(bytes, shape) });
  if (answer.kind !== "balloon") throw new Error(`an answer of kind ${answer.kind}`);
  return answer.balloon;
}

/** `count` pages from the one that holds `gpa` on. */
export async function showPages(vm: VmObserved, gpa: number, count: number): Promise<PagesShown> {
  const { name, shape, nodes } = vm.facts();
  const first = Math.floor(gpa / PAGE_BYTES) * PAGE_BYTES;
  checkRange(name, shape, first, count);
  // Memory nodes have frames, not pages: which, the page's home tells.
  const compute = nodes.filter(({ node }) => !isMemoryNode(shape[node]));
  if (compute.length === 0) {
    throw new SsihvError("request_invalid", `node ${nodes[0]?.node} of VM ${name} has no pages`, {
      hint: "it lends memory only: ask where ssihv run leads the VM",
    });
  }
  const asked = await Promise.allSettled(
    compute.map(({ node }) => vm.ask(node, { kind: "pages", gpa: first, count })),
  );
  const reports = new Map<number, readonly PageReport[]>();
  const silent: { node: number; why: string }[] = [];
  asked.forEach((result, i) => {
    const node = compute[i]?.node ?? 0;
    if (result.status === "rejected") silent.push({ node, why: messageOf(result.reason) });
    else if (result.value.kind === "pages") reports.set(node, result.value.pages);
  });
  const failed = asked.find((result) => result.status === "rejected");
  if (reports.size === 0 && failed !== undefined) throw failed.reason;
  const pages = Array.from({ length: count }, (_, i) => mergePage(reports, i));
  return { vm: name, pages, silent };
}

function hex(gpa: number): string {
  return `0x${gpa.toString(16)}`;
}

function checkRange(vm: string, shape: readonly NodePlan[], first: number, count: number): void {
  if (count < 1 || count > PAGES_ASKED_MAX) {
    const message = `${count} pages: 1 to ${PAGES_ASKED_MAX} can be asked for at a time`;
    throw new SsihvError("request_invalid", message);
  }
  const ram = ramPartsOf(shape);
  const end = first + count * PAGE_BYTES;
  let at = first;
  for (const { gpa, bytes } of ram) if (at >= gpa && at < gpa + bytes) at = gpa + bytes;
  if (at >= end) return;
  const ranges = ram.map(({ gpa, bytes, node }) => {
    return `${hex(gpa)} to ${hex(gpa + bytes - 1)} (node ${node})`;
  });
  throw new SsihvError("gpa_invalid", `VM ${vm}: guest address ${hex(at)} is not RAM`, {
    hint: `its RAM is ${ranges.join(", ")}`,
  });
}

/** The i-th page of every node's report. */
function mergePage(reports: ReadonlyMap<number, readonly PageReport[]>, i: number): PageShown {
  let entry: PageEntry | undefined;
  let gpa = 0;
  let home = 0;
  const copies: CopyShown[] = [];
  for (const [node, pages] of reports) {
    const page = pages[i];
    if (page === undefined) continue;
    ({ gpa, home } = page);
    entry ??= page.entry;
    copies.push({ node, ...page.copy });
  }
  return {
    gpa,
    home,
    state: entry?.state ?? null,
    owner: entry?.owner ?? null,
    sharers: entry?.sharers ?? [],
    version: entry?.version ?? null,
    transaction: entry?.transaction ?? null,
    copies,
  };
}
