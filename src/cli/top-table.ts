// The screen of `ssihv top`: a line per VM, a line per node with what it did since the last look.
// Pure; `ssihv top --json` tells the same numbers unrounded.

import type { HeatShown, VmSample } from "../node/vm-view.ts";
import { type HeatBlock, heatBetween, hottest, sumHeat } from "../telemetry/heat.ts";
import { type NodeRates, ratesBetween } from "../telemetry/node-rates.ts";
import { table } from "./vm-tables.ts";

/** A VM, or a joined host's node of one, as it was at a time. */
export interface Look {
  readonly label: string;
  /** Milliseconds of any clock that only goes forward. */
  readonly at: number;
  /** Null: its command did not answer. */
  readonly sample: VmSample | null;
  /** Absent: not asked for, or not told. */
  readonly heat?: HeatShown;
}

export interface NodeShownRates {
  readonly node: number;
  readonly host: string | null;
  readonly vcpus: number;
  readonly memoryBytes: number;
  readonly lentBytes: number | null;
  readonly silent: string | null;
  /** Null: it did not answer, or not twice yet. */
  readonly rates: NodeRates | null;
}

/** A block of guest RAM with what happened there, a second. */
export interface HotBlockRate extends HeatBlock {
  readonly remoteFaults: number;
  /** Of each node that faulted there. */
  readonly nodes: readonly { readonly node: number; readonly remoteFaults: number }[];
}

export interface VmShownRates {
  readonly name: string;
  readonly state: string;
  readonly nodes: readonly NodeShownRates[];
  /** Most first. */
  readonly hotBlocks: readonly HotBlockRate[];
}

const HOT_BLOCKS = 5;

/** What happened between two looks at the same VMs; one that is new has no rates yet. */
export function compare(before: readonly Look[], after: readonly Look[]): VmShownRates[] {
  const earlier = new Map(before.map((look) => [look.label, look]));
  return after.map((look) => {
    const { label, at, sample } = look;
    if (sample === null) return { name: label, state: "no answer", nodes: [], hotBlocks: [] };
    const old = earlier.get(label);
    const nodes = sample.nodes.map(({ stats, ...head }): NodeShownRates => {
      const last = old?.sample?.nodes.find(({ node }) => node === head.node)?.stats ?? null;
      const seconds = old === undefined ? 0 : (at - old.at) / 1000;
      const rates =
        stats === null || last === null || seconds <= 0 ? null : ratesBetween(last, stats, seconds);
      return { ...head, rates };
    });
    return { name: label, state: sample.state, nodes, hotBlocks: hotBetween(old, look) };
  });
}

function hotBetween(before: Look | undefined, { at, heat }: Look): HotBlockRate[] {
  const seconds = before === undefined ? 0 : (at - before.at) / 1000;
  if (heat === undefined || before?.heat === undefined || seconds <= 0) return [];
  const counts = heat.nodes.flatMap(({ node, heat: now }) => {
    const was = before.heat?.nodes.find((other) => other.node === node)?.heat;
    return now === null || was == null ? [] : [{ node, faults: heatBetween(was, now) }];
  });
  const blockBytes = heat.nodes.find((node) => node.heat !== null)?.heat?.blockBytes ?? 0;
  const total = sumHeat(counts.map(({ faults }) => faults));
  return hottest(heat.ranges, blockBytes, total, HOT_BLOCKS).map(({ faults, ...block }) => ({
    ...block,
    remoteFaults: faults / seconds,
    nodes: counts
      .map((each) => ({ node: each.node, remoteFaults: (each.faults[block.block] ?? 0) / seconds }))
      .filter(({ remoteFaults }) => remoteFaults > 0),
  }));
}

const HEAD = [
  ...["VM", "NODE", "HOST", "VCPUS", "EXITS/S", "FAULTS/S", "REMOTE/S", "MEDIAN-US", "P99-US"],
  ...["STALLED-%", "OLDEST-MS", "SENT-MB/S", "RECV-MB/S", "UNACKED-KB", "RECONNECTS"],
  ...["EVICTED/S", "CACHE-MIB", "LENT-MIB"],
];
const RIGHT = new Set(HEAD.filter((name) => name !== "VM" && name !== "HOST"));

function whole(value: number): string {
  return value.toFixed(0);
}

function mib(bytes: number): string {
  return whole(bytes / 2 ** 20);
}

function rateCells(rates: NodeRates | null): string[] {
  if (rates === null) return [];
  const megabytes = (bytes: number) => (bytes / 1e6).toFixed(1);
  return [
    whole(rates.exits),
    whole(rates.faults),
    whole(rates.remoteFaults),
    whole(rates.faultUsMedian),
    whole(rates.faultUsP99),
    (rates.stalledShare * 100).toFixed(1),
    (rates.oldestFaultUs / 1000).toFixed(1),
    megabytes(rates.sentBytes),
    megabytes(rates.receivedBytes),
    whole(rates.unackedBytes / 1000),
    whole(rates.reconnects),
    whole(rates.evictedPages),
    mib(rates.cacheBytes),
    mib(rates.lentBytes),
  ];
}

export function topTable(vms: readonly VmShownRates[]): string {
  const rows = vms.flatMap(({ name, state, nodes }) => {
    const label = state === "running" ? name : `${name} (${state})`;
    if (nodes.length === 0) return [[label]];
    return nodes.map(({ node, host, vcpus, rates }, i) => [
      ...[i === 0 ? label : "", String(node), host ?? "-", String(vcpus)],
      ...rateCells(rates),
    ]);
  });
  return table(HEAD, rows, RIGHT) + hotTable(vms);
}

const HOT_HEAD = ["VM", "HOT-BLOCK", "HOME", "REMOTE/S", "BY-NODE"];
const HOT_RIGHT = new Set(["HOME", "REMOTE/S"]);

/** Where in the guests' memory the remote faults were; nothing where there were none. */
function hotTable(vms: readonly VmShownRates[]): string {
  const rows = vms.flatMap(({ name, hotBlocks }) =>
    hotBlocks.map(({ gpa, home, remoteFaults, nodes }, i) => [
      ...[i === 0 ? name : "", `0x${gpa.toString(16)}`, String(home), whole(remoteFaults)],
      nodes.map((each) => `${each.node}:${whole(each.remoteFaults)}`).join(" "),
    ]),
  );
  return rows.length === 0 ? "" : `\n${table(HOT_HEAD, rows, HOT_RIGHT)}`;
}
