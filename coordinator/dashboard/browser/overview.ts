// The cluster at a glance: its numbers in the page's head, its hosts, its VMs, and what happened.

import type { Host, Status, Vm } from "../../api-schemas.ts";
import type { ClusterEvent } from "../../events.ts";
import type { VmNumbers } from "../../number-schemas.ts";
import { bytes, clock, micros, NONE, percent, rate, sinceText, whole } from "../format.ts";
import type { Rates, VmHistory } from "../history.ts";
import { byId, el, setText } from "./dom.ts";
import { sparkline } from "./line-chart.ts";
import { type Column, DataTable, OLD_US, over, STALLED_MUCH, type Tone } from "./table.ts";

const EVENTS_SHOWN = 200;
const SPARK_SAMPLES = 150;
const DAY_MS = 86_400_000;
const WARN_DAYS = 30;

export class Summary {
  private readonly root = byId("summary");

  update(status: Status, now: number): void {
    const { hosts, vms, capacity, used } = status;
    const total = Object.values(vms).reduce((sum, count) => sum + count, 0);
    const days = Math.floor((Date.parse(status.certificateExpires) - now) / DAY_MS);
    // The name and number of its version; the rest is whole on a rest of the pointer.
    const version = status.version.replace(/ \(.*/, "");
    const entries: readonly (readonly [string, string])[] = [
      ["Hosts", `${hosts.up} up${hosts.silent === 0 ? "" : `, ${hosts.silent} silent`}`],
      ["VMs", total === 0 ? "none" : `${vms["running"] ?? 0} of ${total} running`],
      ["CPUs", `${used.cpus} of ${capacity.cpus} promised`],
      ["Memory", `${bytes(used.memoryBytes)} of ${bytes(capacity.memoryBytes)} promised`],
      ["Coordinator", `${version}, up ${sinceText(status.startedAt, now)}`],
      ...(days < WARN_DAYS ? [["Certificate", `ends in ${days} d`] as const] : []),
    ];
    const parts = entries.map(([name, value]) => {
      return el("div", {}, el("dt", {}, name), el("dd", {}, value));
    });
    this.root.title = status.version;
    if (this.root.textContent !== parts.map(({ textContent }) => textContent).join("")) {
      this.root.replaceChildren(...parts);
    }
  }
}

const CHECK_TONES: Readonly<Record<string, Tone>> = { degraded: "warn", unfit: "warn" };

function placesOn(host: string, vms: readonly Vm[]): string {
  const names = vms.flatMap(({ name, places }) =>
    places.filter((place) => place.host === host).map(({ node }) => `${name}/${node}`),
  );
  return names.length === 0 ? NONE : names.join(" ");
}

interface HostRow {
  readonly host: Host;
  readonly vms: readonly Vm[];
  readonly now: number;
}

function amount(used: number, given: number | undefined, write: (value: number) => string) {
  return given === undefined ? NONE : `${write(used)} of ${write(given)}`;
}

export function hostsTable(): DataTable<HostRow> {
  return new DataTable<HostRow>({
    label: "Hosts",
    empty: "no host has joined: ssihv cluster token lets one in",
    key: ({ host }) => host.name,
    columns: [
      { head: "Host", text: ({ host }) => host.name },
      {
        head: "State",
        text: ({ host }) => host.state,
        tone: ({ host }) => (host.state === "up" ? "good" : "bad"),
      },
      { head: "For", number: true, text: ({ host, now }) => sinceText(host.since, now) },
      {
        head: "CPUs promised",
        number: true,
        text: ({ host }) => amount(host.used.cpus, host.capacity?.cpus, String),
        share: ({ host }) => host.used.cpus / (host.capacity?.cpus || 1),
      },
      {
        head: "Memory promised",
        number: true,
        text: ({ host }) => amount(host.used.memoryBytes, host.capacity?.memoryBytes, bytes),
        share: ({ host }) => host.used.memoryBytes / (host.capacity?.memoryBytes || 1),
      },
      {
        head: "Check",
        hint: "ssihv check on that host",
        text: ({ host }) => host.check?.verdict ?? NONE,
        tone: ({ host }) => CHECK_TONES[host.check?.verdict ?? ""],
      },
      {
        head: "Takes",
        hint: "vCPUs, or only memory for others",
        text: ({ host }) => (host.state === "silent" ? NONE : host.runsVcpus ? "vCPUs" : "memory"),
      },
      { head: "Nodes", hint: "VM/node", text: ({ host, vms }) => placesOn(host.name, vms) },
      { head: "Address", short: true, text: ({ host }) => host.laneHost ?? NONE },
      {
        head: "Note",
        wide: true,
        text: ({ host }) => host.why ?? host.check?.problems.join("; ") ?? "",
        tone: () => "muted",
      },
    ],
  });
}

export interface VmRow {
  readonly vm: Vm;
  readonly numbers: VmNumbers | undefined;
  readonly history: VmHistory;
  readonly isCurrent: boolean;
  readonly now: number;
}

const STATE_TONES: Readonly<Record<string, Tone>> = {
  running: "good",
  failed: "bad",
  unknown: "bad",
  stopped: "muted",
};

function newest({ history, numbers }: VmRow): Rates[] {
  if (numbers === undefined) return [];
  return [...history.nodes.values()].flatMap(({ newest }) => newest?.rates ?? []);
}

function sum(row: VmRow, of: (rates: Rates) => number): number | undefined {
  const all = newest(row);
  return all.length === 0 ? undefined : all.reduce((total, rates) => total + of(rates), 0);
}

function worst(row: VmRow, of: (rates: Rates) => number): number | undefined {
  const all = newest(row);
  return all.length === 0 ? undefined : Math.max(...all.map(of));
}

function orNone(value: number | undefined, write: (value: number) => string): string {
  return value === undefined ? NONE : write(value);
}

/** Of all nodes together, sample by sample. */
function faultLine({ history }: VmRow): (number | null)[] {
  const lists = [...history.nodes.values()].map(({ samples }) => samples);
  const length = Math.min(SPARK_SAMPLES, Math.max(0, ...lists.map(({ length }) => length)));
  return Array.from({ length }, (_, i) => {
    const each = lists.map((list) => list.at(i - length)?.rates?.remoteFaults ?? null);
    const known = each.filter((value) => value !== null);
    return known.length === 0 ? null : known.reduce((total, value) => total + value, 0);
  });
}

function memoryOf({ spec }: Vm): number {
  return spec.nodes.reduce((total, { memoryBytes }) => total + memoryBytes, 0);
}

function noteOf({ vm, numbers }: VmRow): string {
  const silent = numbers?.nodes.find((node) => node.silent !== null);
  if (silent !== undefined) return `node ${silent.node}: ${silent.silent}`;
  if (numbers?.silent != null) return numbers.silent;
  return vm.since === null ? (vm.last?.text ?? "") : "";
}

const VM_COLUMNS: readonly Column<VmRow>[] = [
  {
    head: "VM",
    text: ({ vm }) => vm.name,
    link: ({ vm }) => `#vm=${encodeURIComponent(vm.name)}`,
  },
  { head: "State", text: ({ vm }) => vm.state, tone: ({ vm }) => STATE_TONES[vm.state] },
  { head: "For", number: true, text: ({ vm, now }) => sinceText(vm.since, now) },
  {
    head: "vCPUs",
    number: true,
    text: ({ vm }) => String(vm.spec.nodes.reduce((total, { cpus }) => total + cpus, 0)),
  },
  { head: "RAM", number: true, text: ({ vm }) => bytes(memoryOf(vm)) },
  {
    head: "Places",
    hint: "host of each node",
    short: true,
    text: ({ vm }) => vm.places.map(({ host }) => host).join(" ") || NONE,
  },
];

/** Of all nodes of a VM. */
const VM_NUMBERS: readonly Column<VmRow>[] = [
  {
    head: "Remote faults",
    hint: "of the last minutes, all nodes together",
    text: () => "",
    draw: (row, cell) => cell.replaceChildren(sparkline(faultLine(row))),
  },
  {
    head: "Faults/s",
    number: true,
    text: (row) =>
      orNone(
        sum(row, (rates) => rates.faults),
        rate,
      ),
  },
  {
    head: "Remote/s",
    number: true,
    text: (row) =>
      orNone(
        sum(row, (rates) => rates.remoteFaults),
        rate,
      ),
  },
  {
    head: "p99",
    hint: "of remote faults in the last second, the worst node's",
    number: true,
    text: (row) =>
      orNone(
        worst(row, (rates) => rates.faultUsP99),
        micros,
      ),
  },
  {
    head: "Stalled",
    hint: "share of vCPU time spent waiting for pages, the worst node's",
    number: true,
    text: (row) =>
      orNone(
        worst(row, (rates) => rates.stalledShare),
        percent,
      ),
    tone: (row) =>
      over(
        worst(row, (rates) => rates.stalledShare),
        STALLED_MUCH,
        "warn",
      ),
  },
  {
    head: "Oldest fault",
    hint: "age of the oldest fault in flight: grows while a guest hangs",
    number: true,
    text: (row) =>
      orNone(
        worst(row, (rates) => rates.oldestFaultUs),
        micros,
      ),
    tone: (row) =>
      over(
        worst(row, (rates) => rates.oldestFaultUs),
        OLD_US,
        "bad",
      ),
  },
  {
    head: "Note",
    wide: true,
    text: noteOf,
    tone: ({ vm }) => (vm.state === "failed" ? "warn" : "muted"),
  },
];

export function vmsTable(): DataTable<VmRow> {
  return new DataTable<VmRow>({
    label: "VMs",
    empty: "no VM is on record: ssihv vm create -f vm.yaml",
    key: ({ vm }) => vm.name,
    isCurrent: ({ isCurrent }) => isCurrent,
    columns: [...VM_COLUMNS, ...VM_NUMBERS],
  });
}

const EVENT_TONES: Readonly<Record<string, Tone>> = {
  host_silent: "bad",
  host_up: "good",
};

export class EventLog {
  readonly table = new DataTable<ClusterEvent>({
    label: "Events",
    empty: "nothing happened since the coordinator was started",
    key: ({ id }) => id,
    css: "log",
    columns: [
      { head: "Time", text: ({ at }) => clock(new Date(at)) },
      { head: "Event", text: ({ event }) => event, tone: ({ event }) => EVENT_TONES[event] },
      { head: "Host", text: ({ host }) => host ?? NONE },
      { head: "VM", text: ({ vm }) => vm ?? NONE },
      { head: "Text", wide: true, text: ({ text }) => text ?? "" },
    ],
  });
  private readonly events: ClusterEvent[] = [];
  private readonly ids = new Set<string>();
  private waiting = false;

  constructor() {
    byId("events").append(this.table.root);
  }

  /** Also one that is known: the coordinator tells all again to whom it does not know. */
  add(event: ClusterEvent): void {
    if (this.ids.has(event.id)) return;
    this.ids.add(event.id);
    this.events.unshift(event);
    for (const old of this.events.splice(EVENTS_SHOWN)) this.ids.delete(old.id);
    if (this.waiting) return;
    // Many that come at once are drawn at once.
    this.waiting = true;
    setTimeout(() => {
      this.waiting = false;
      this.table.update(this.events);
      setText(byId("events-head"), `Events (${whole(this.events.length)})`);
    }, 0);
  }
}
