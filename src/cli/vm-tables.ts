// What `ssihv vm` shows to people: tables with the units in their heads. Pure; programs get JSON.

import type { RunningVm } from "../node/admin-client.ts";
import type {
  CopyShown,
  NodeShown,
  PageShown,
  PagesShown,
  VmListing,
  VmShown,
} from "../node/vm-view.ts";
import { printable } from "./report.ts";

type SandboxShown = NonNullable<NodeShown["sandbox"]>;
type Row = readonly string[];

/** As an engine tells it. */
type BalloonShown = NonNullable<NonNullable<NodeShown["stats"]>["balloon"]>;

const PAGE_BYTES = 4096;

/** Columns padded to their widest cell, two spaces apart; numbers to the right. */
export function table(head: Row, rows: readonly Row[], right: ReadonlySet<string>): string {
  const all = [head, ...rows];
  const widths = head.map((_, i) => Math.max(...all.map((row) => row[i]?.length ?? 0)));
  return all
    .map((row) => {
      const cells = row.map((cell, i) => {
        const width = widths[i] ?? 0;
        return right.has(head[i] ?? "") ? cell.padStart(width) : cell.padEnd(width);
      });
      return `${printable(cells.join("  ").trimEnd())}\n`;
    })
    .join("");
}

/** 3 d 4 h, 5 h 6 min, 7 min 8 s, 9 s. */
export function duration(seconds: number): string {
  const whole = Math.floor(seconds);
  const units: [number, string][] = [
    [Math.floor(whole / 86_400), "d"],
    [Math.floor(whole / 3600) % 24, "h"],
    [Math.floor(whole / 60) % 60, "min"],
    [whole % 60, "s"],
  ];
  const first = units.findIndex(([count]) => count > 0);
  if (first < 0) return "0 s";
  const shown = units.slice(first, first + 2).filter(([count]) => count > 0);
  return shown.map(([count, unit]) => `${count} ${unit}`).join(" ");
}

function mib(bytes: number): string {
  return String(Math.round(bytes / 2 ** 20));
}

function uptime(seconds: number | null): string {
  return seconds === null ? "-" : duration(seconds);
}

const LIST_HEAD = ["NAME", "STATE", "NODES", "VCPUS", "MIB", "UPTIME", "PID"];
const LIST_RIGHT = new Set(["NODES", "VCPUS", "MIB", "PID"]);

export function listTable(vms: readonly RunningVm[]): string {
  const rows = vms.map(({ label, listing }) => {
    return listing === null ? [label, "no answer"] : [label, ...listingCells(listing)];
  });
  return table(LIST_HEAD, rows, LIST_RIGHT);
}

function listingCells({ state, nodes, vcpus, memoryBytes, uptimeSeconds, pid }: VmListing): Row {
  return [
    state,
    String(nodes),
    String(vcpus),
    mib(memoryBytes),
    uptime(uptimeSeconds),
    String(pid),
  ];
}

const NODE_HEAD = [
  ...["NODE", "HOST", "PID", "VCPUS", "MIB", "EXITS", "REMOTE-FAULTS", "MEDIAN-US", "P99-US"],
  ...["STALLED-%", "LONGEST-US", "OLDEST-FAULT-US"],
];
const NODE_RIGHT = new Set(NODE_HEAD.filter((name) => name !== "HOST"));

export function showText(label: string, vm: VmShown): string {
  const head: [string, string][] = [
    ["Name", label],
    ["State", vm.state],
    ["Uptime", uptime(vm.uptimeSeconds)],
    ["Size", `${vm.vcpus} vCPU(s), ${mib(vm.memoryBytes)} MiB`],
    ["Command", vm.role === "lead" ? `pid ${vm.pid}` : `pid ${vm.pid}, joined: its own node only`],
  ];
  const lines = head.map(([name, value]) => `${`${name}:`.padEnd(10)}${printable(value)}\n`);
  return [...lines, "\n", nodesText(vm.nodes)].join("");
}

/** The numbers of a VM's engines. */
export function nodesText(nodes: readonly NodeShown[]): string {
  const silent = nodes.flatMap(({ node, silent }) => silentLine(node, silent));
  const given = nodes.flatMap(({ stats }) => givenLine(nodes, stats?.balloon));
  const shutIn = sandboxLines(nodes);
  return [table(NODE_HEAD, nodes.map(nodeRow), NODE_RIGHT), ...shutIn, ...given, ...silent].join(
    "",
  );
}

/** A line for nodes that are alike in it. */
function sandboxLines(nodes: readonly NodeShown[]): string[] {
  const alike = Map.groupBy(
    nodes.filter(({ sandbox }) => sandbox !== null),
    ({ sandbox }) => (sandbox === null ? "" : sandboxWords(sandbox)),
  );
  return [...alike].map(([words, those]) => {
    const which = those.map(({ node }) => node).join(", ");
    return `sandbox of node ${which}: ${printable(words)}\n`;
  });
}

function sandboxWords({ user, filter, memoryBytesMax, missing }: SandboxShown): string {
  const parts = [
    user === undefined ? "no user of its own" : `user ${user}`,
    filter ? "no new privileges, system calls filtered" : "no filter",
  ];
  if (memoryBytesMax !== undefined) parts.push(`at most ${mib(memoryBytesMax)} MiB`);
  return [...parts, ...missing].join("; ");
}

/** What the guest's balloon is like, and what came of it on all nodes. */
function givenLine(nodes: readonly NodeShown[], balloon: BalloonShown | undefined): string[] {
  if (balloon === undefined) return [];
  const pages = nodes.reduce((sum, { stats }) => sum + (stats?.memory.discarded ?? 0), 0);
  const frames = nodes.reduce((sum, { stats }) => sum + (stats?.memory.framesFreed ?? 0), 0);
  const freed = frames === 0 ? "" : `, ${mib(frames * PAGE_BYTES)} MiB on memory nodes`;
  return [`${balloonWords(balloon)}; discarded ${mib(pages * PAGE_BYTES)} MiB${freed}\n`];
}

export function balloonWords({ target, actual, inflated, reported }: BalloonShown): string {
  const has = `balloon: ${mib(actual)} of ${mib(target)} MiB`;
  return `${has}; given so far ${mib(inflated)} MiB, reported free ${mib(reported)} MiB`;
}

function silentLine(node: number, why: string | null): string[] {
  return why === null ? [] : [`node ${node}: ${printable(why)}\n`];
}

function nodeRow({ node, host, pid, vcpus, memoryBytes, lentBytes, stats }: NodeShown): Row {
  const memory = mib(lentBytes ?? memoryBytes);
  const head = [String(node), host ?? "this", String(pid ?? "-"), String(vcpus), memory];
  if (stats === null) return [...head, ...NODE_HEAD.slice(head.length).map(() => "-")];
  return [
    ...head,
    String(stats.exits),
    String(stats.remoteFaults),
    stats.faultUsMedian.toFixed(0),
    stats.faultUsP99.toFixed(0),
    (stats.stalledShare * 100).toFixed(1),
    stats.longestStallUs.toFixed(0),
    stats.oldest_fault_us.toFixed(0),
  ];
}

const PAGE_HEAD = [
  ...["GPA", "HOME", "STATE", "OWNER", "SHARERS", "VERSION", "MAPPED", "TRANSACTION"],
];
const PAGE_RIGHT = new Set(["HOME", "OWNER", "VERSION"]);

export function pagesText({ pages, silent }: PagesShown): string {
  const lines = silent.flatMap(({ node, why }) => silentLine(node, why));
  return [table(PAGE_HEAD, pages.map(pageRow), PAGE_RIGHT), ...lines].join("");
}

function orDash(value: number | null): string {
  return value === null ? "-" : String(value);
}

function pageRow(page: PageShown): Row {
  const { gpa, home, state, owner, sharers, version, copies } = page;
  return [
    `0x${gpa.toString(16)}`,
    String(home),
    state ?? "unknown",
    orDash(owner),
    sharers.length === 0 ? "-" : sharers.join(","),
    orDash(version),
    copies.length === 0 ? "-" : copies.map(mapped).join(" "),
    transactionWords(page),
  ];
}

const MAPPED: Record<CopyShown["access"], string> = {
  invalid: "-",
  shared: "ro",
  exclusive: "rw",
  replicated: "rw",
};

function mapped({ node, access }: CopyShown): string {
  return `${node}:${MAPPED[access]}`;
}

function transactionWords({ transaction, copies }: PageShown): string {
  const words: string[] = [];
  if (transaction !== null) {
    const { requester, request, phase, queued } = transaction;
    const behind = queued === 0 ? "" : `, ${queued} queued`;
    words.push(`${request} by node ${requester}, phase ${phase}${behind}`);
  }
  for (const { node, waitsFor, revokesDeferred } of copies) {
    if (waitsFor !== undefined) words.push(`node ${node} waits for ${waitsFor}`);
    if (revokesDeferred > 0) words.push(`node ${node} keeps it from ${revokesDeferred}`);
  }
  return words.length === 0 ? "-" : words.join("; ");
}
