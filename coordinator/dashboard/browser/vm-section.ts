// One VM in full: its nodes in a table, their last minutes as lines, the time of remote faults, and
// where in its memory they are.

import type { HeatAnswer } from "../../../src/control/vm-answers.ts";
import { type HotBlock, hottest, sumHeat } from "../../../src/telemetry/heat.ts";
import { PAGE_BYTES } from "../../../src/telemetry/node-metrics.ts";
import type { Vm } from "../../api-schemas.ts";
import type { NodeSample, VmNumbers } from "../../number-schemas.ts";
import { address, bytes, megabytes, micros, NONE, percent, rate, whole } from "../format.ts";
import { HeatHistory, type NodeHistory, type Rates, type VmHistory } from "../history.ts";
import { byId, el, setText } from "./dom.ts";
import { HeatMap } from "./heat-map.ts";
import { HistogramChart } from "./histogram-chart.ts";
import { LineChart } from "./line-chart.ts";
import { type Column, DataTable, OLD_US, over, STALLED_MUCH } from "./table.ts";

/** Of the histogram and the heat map; null: since the engines started. */
const WINDOWS: readonly (readonly [string, number | null])[] = [
  ["10 s", 10],
  ["1 min", 60],
  ["since start", null],
];
const HOT_BLOCKS = 8;
/** Of a block: those with the most faults. */
const HOT_NODES = 4;

interface NodeRow {
  readonly sample: NodeSample;
  readonly host: string;
  readonly history: NodeHistory;
}

function ofRates(of: (rates: Rates) => number, write: (value: number) => string) {
  return ({ history }: NodeRow): string => {
    const rates = history.newest?.rates;
    return rates == null ? NONE : write(of(rates));
  };
}

function ofCounter(field: string, write: (value: number) => string) {
  return ({ sample }: NodeRow): string => {
    return sample.stats === null ? NONE : write(sample.stats.engine[field] ?? 0);
  };
}

/** A time of remote faults, where there were any. */
const waited = (us: number) => (us === 0 ? NONE : micros(us));
const nanos = (ns: number) => micros(ns / 1000);
const pages = (count: number) => bytes(count * PAGE_BYTES);

function number(
  head: string,
  hint: string,
  text: (row: NodeRow) => string,
  tone?: Column<NodeRow>["tone"],
): Column<NodeRow> {
  return { head, hint, number: true, text, ...(tone !== undefined && { tone }) };
}

const NODE: Column<NodeRow> = { head: "Node", text: ({ sample }) => String(sample.node) };

/** What its vCPUs do, and wait for. */
const WORK_COLUMNS: readonly Column<NodeRow>[] = [
  NODE,
  { head: "Host", text: ({ host }) => host },
  number("vCPUs", "0: it lends memory", ({ sample }) => String(sample.vcpus)),
  number(
    "Exits/s",
    "from guest to host, all vCPUs",
    ofRates(({ exits }) => exits, rate),
  ),
  number(
    "Faults/s",
    "page faults, local and remote",
    ofRates(({ faults }) => faults, rate),
  ),
  number(
    "Remote/s",
    "answered by another node",
    ofRates((r) => r.remoteFaults, rate),
  ),
  number(
    "Median",
    "of remote faults in the last second",
    ofRates((r) => r.faultUsMedian, waited),
  ),
  number(
    "p99",
    "of remote faults in the last second",
    ofRates((r) => r.faultUsP99, waited),
  ),
  number(
    "Stalled",
    "share of vCPU time spent waiting for pages",
    ofRates(({ stalledShare }) => stalledShare, percent),
    ({ history }) => over(history.newest?.rates?.stalledShare, STALLED_MUCH, "warn"),
  ),
  number("Longest stall", "since the engine started", ofCounter("stall_ns_max", nanos)),
  number(
    "Oldest fault",
    "age of the oldest fault in flight: grows while a guest hangs",
    ofRates(({ oldestFaultUs }) => oldestFaultUs, micros),
    ({ history }) => over(history.newest?.rates?.oldestFaultUs, OLD_US, "bad"),
  ),
  number("Freezes", "times the VM stood still for another node", ofCounter("freezes", whole)),
  number("Remote faults", "since the engine started", ofCounter("faults_remote", whole)),
];

/** What its memory holds, and what crosses its lanes: to all peers together. */
const MEMORY_COLUMNS: readonly Column<NodeRow>[] = [
  NODE,
  number("RAM", "home of so much guest memory, or what it lends", ({ sample }) =>
    bytes(sample.lentBytes ?? sample.memoryBytes),
  ),
  number("Cache", "other nodes' memory here", ofCounter("cache_pages", pages)),
  number("Lent", "memory node: in use by others", ofCounter("frames_held", pages)),
  number(
    "Evicted/s",
    "pages that had to leave",
    ofRates(({ evictedPages }) => evictedPages, rate),
  ),
  number(
    "Pages in/s",
    "from other nodes",
    ofRates(({ pagesIn }) => pagesIn, rate),
  ),
  number(
    "Pages out/s",
    "to other nodes",
    ofRates(({ pagesOut }) => pagesOut, rate),
  ),
  number(
    "In MB/s",
    "lanes of all peers",
    ofRates((r) => r.receivedBytes, megabytes),
  ),
  number(
    "Out MB/s",
    "lanes of all peers",
    ofRates((r) => r.sentBytes, megabytes),
  ),
  number("Queued", "bytes that wait for sockets", ofCounter("lane_bytes_queued", bytes)),
  number("Unacked", "bytes that peers have yet to take", ofCounter("lane_bytes_unacked", bytes)),
  number("Held", "times a full lane held vCPUs back", ofCounter("lane_requests_held", whole)),
  number("Cuts", "lanes that were connected again", ofCounter("lane_reconnects", whole)),
];

type Line = readonly [
  title: string,
  write: (value: number) => string,
  of: (rates: Rates) => number | null,
];

const LINES: readonly Line[] = [
  ["Remote faults/s", rate, ({ remoteFaults }) => remoteFaults],
  ["Stalled", percent, ({ stalledShare }) => stalledShare],
  ["p99 of remote faults", micros, ({ faultUsP99 }) => faultUsP99 || null],
  ["Pages in/s", rate, ({ pagesIn }) => pagesIn],
];

interface HotRow extends HotBlock {
  readonly each: string;
}

export class VmSection {
  private readonly section = byId("vm");
  private readonly head = byId("vm-head");
  private readonly nodes = new DataTable<NodeRow>({
    label: "Nodes of the VM",
    empty: "none of its engines answers",
    key: ({ sample }) => String(sample.node),
    columns: WORK_COLUMNS,
  });
  private readonly memory = new DataTable<NodeRow>({
    label: "Memory and lanes of the nodes",
    empty: "",
    key: ({ sample }) => String(sample.node),
    columns: MEMORY_COLUMNS,
  });
  private readonly silent = el("p", { class: "note" });
  private readonly lines = LINES.map(([title, write, of]) => {
    return { chart: new LineChart(title, write), of };
  });
  private readonly histogram = new HistogramChart();
  private readonly heatMap = new HeatMap();
  private readonly hot = new DataTable<HotRow>({
    label: "Hot blocks",
    empty: "no remote faults in this time",
    key: ({ block }) => String(block),
    columns: [
      { head: "Hot block", css: "mono", text: ({ gpa }) => address(gpa) },
      { head: "Home", number: true, text: ({ home }) => String(home) },
      { head: "Remote faults", number: true, text: ({ faults }) => whole(faults) },
      { head: "By node", hint: "those with the most", text: ({ each }) => each },
    ],
  });
  private window: number | null = 60;
  private heat:
    | { readonly run: string; readonly history: HeatHistory; readonly last: HeatAnswer }
    | undefined;
  private histories: readonly { readonly index: number; readonly history: NodeHistory }[] = [];

  constructor() {
    byId("vm-body").append(
      el("div", { class: "stack" }, this.nodes.root, this.memory.root, this.silent),
      el("div", { class: "panels lines" }, ...this.lines.map(({ chart }) => chart.root)),
      el("div", { class: "bar" }, this.windows()),
      el(
        "div",
        { class: "panels halves" },
        this.histogram.root,
        el("div", { id: "hot" }, this.hot.root),
      ),
      this.heatMap.root,
    );
  }

  /** Undefined: none is looked at. */
  update(
    vm: Vm | undefined,
    numbers: VmNumbers | undefined,
    history: VmHistory | undefined,
    heat: HeatAnswer | undefined,
  ): void {
    this.section.hidden = vm === undefined;
    if (vm === undefined) return;
    setText(this.head, `VM ${vm.name}: ${vm.state}`);
    const hostOf = (sample: NodeSample) =>
      vm.places.find(({ node }) => node === sample.node)?.host ?? sample.host ?? NONE;
    const samples = numbers?.nodes ?? [];
    const rows = samples.flatMap((sample) => {
      const of = history?.node(sample.node);
      return of === undefined ? [] : [{ sample, host: hostOf(sample), history: of }];
    });
    this.nodes.update(rows);
    this.memory.update(rows);
    const silent = samples.flatMap(({ node, silent }) =>
      silent === null ? [] : [`node ${node}: ${silent}`],
    );
    if (numbers?.silent != null) silent.push(numbers.silent);
    if (vm.since === null && vm.last !== null) silent.push(`${vm.last.reason}: ${vm.last.text}`);
    setText(this.silent, silent.join("; "));
    this.silent.hidden = silent.length === 0;
    this.histories = [...(history?.nodes ?? [])].map(([index, of]) => ({ index, history: of }));
    this.drawLines(vm.since === null ? "its end" : "now");
    this.addHeat(vm, heat, numbers?.at);
    this.drawWindow();
  }

  private addHeat(vm: Vm, heat: HeatAnswer | undefined, at: number | undefined): void {
    const run = `${vm.name} ${vm.since}`;
    const isOver = vm.since === null && this.heat?.last.vm === vm.name;
    if (this.heat?.run !== run && !isOver) this.heat = undefined;
    if (heat === undefined || at === undefined) return;
    const history = this.heat?.history ?? new HeatHistory(60_000);
    history.add(at, new Map(heat.nodes.flatMap(({ node, heat: of }) => (of ? [[node, of]] : []))));
    this.heat = { run, history, last: heat };
  }

  private drawLines(edge: string): void {
    const computing = this.histories.filter(({ history }) => {
      return (history.stats?.vcpus.length ?? 0) > 0;
    });
    const now = Math.max(0, ...this.histories.map(({ history }) => history.newest?.at ?? 0));
    for (const { chart, of } of this.lines) {
      const series = computing.map(({ index, history }) => ({
        label: `node ${index}`,
        index,
        points: history.samples.map(({ at, rates }) => ({
          at,
          value: rates === null ? null : of(rates),
        })),
      }));
      chart.update(now, edge, series);
    }
  }

  private drawWindow(): void {
    this.histogram.update(
      this.histories.map(({ index, history }) => ({
        index,
        counts: history.latency(this.window),
      })),
    );
    const counts = this.heat?.history.counts(this.window) ?? new Map<number, number[]>();
    const ranges = this.heat?.last.ranges ?? [];
    const blockBytes = this.heat?.last.nodes.find(({ heat }) => heat !== null)?.heat?.blockBytes;
    this.heatMap.update({ ranges, blockBytes: blockBytes ?? 0, counts });
    const total = sumHeat([...counts.values()]);
    this.hot.update(
      hottest(ranges, blockBytes ?? 0, total, HOT_BLOCKS).map((block) => {
        const each = [...counts].map(([node, list]) => [node, list[block.block] ?? 0] as const);
        const most = each.filter(([, count]) => count > 0).sort(([, a], [, b]) => b - a);
        const words = most.slice(0, HOT_NODES).map(([node, count]) => `${node}: ${whole(count)}`);
        return { ...block, each: words.join(", ") };
      }),
    );
  }

  private windows(): HTMLElement {
    const choices = WINDOWS.map(([label, seconds]) => {
      const input = el("input", {
        type: "radio",
        name: "window",
        checked: seconds === this.window,
      });
      input.addEventListener("change", () => {
        this.window = seconds;
        this.drawWindow();
      });
      return el("label", {}, input, el("span", {}, label));
    });
    return el("fieldset", {}, el("legend", {}, "Below, of the last"), ...choices);
  }
}
