// What the dashboard remembers: the last minutes of each node's numbers, sample by sample, and of
// the heat of the VM that is looked at. All of it in the page: the coordinator keeps no history
// (Prometheus does), and a page that is closed costs nobody anything.

import { heatBetween, type NodeHeat } from "../../src/telemetry/heat.ts";
import type { NodeStats } from "../../src/telemetry/node-metrics.ts";
import { type NodeRates, ratesBetween } from "../../src/telemetry/node-rates.ts";

/** Seconds that are remembered, and shown. */
export const REMEMBERED = 300;
/** Samples further apart tell no rates: the page was hidden, or nobody answered. */
const GAP_MS = 5000;

export interface Rates extends NodeRates {
  readonly pagesIn: number;
  readonly pagesOut: number;
  readonly localFaults: number;
}

/** A node at a moment. */
export interface Sample {
  /** On the coordinator's clock, ms. */
  readonly at: number;
  /** Remote faults by bucket, since the engine started. */
  readonly latency: readonly number[];
  /** Since the sample before; null: there is none, or it is too old. */
  readonly rates: Rates | null;
}

function rates(before: NodeStats, after: NodeStats, seconds: number): Rates {
  const grown = (field: string) => {
    const [was, is] = [before.engine[field] ?? 0, after.engine[field] ?? 0];
    return (is >= was ? is - was : is) / seconds;
  };
  return {
    ...ratesBetween(before, after, seconds),
    pagesIn: grown("pages_received"),
    pagesOut: grown("pages_sent"),
    localFaults: grown("faults_local"),
  };
}

export class NodeHistory {
  readonly samples: Sample[] = [];
  /** Of the newest sample: of those before, only what is drawn is kept. */
  stats: NodeStats | undefined;

  add(at: number, stats: NodeStats): void {
    const last = this.samples.at(-1);
    // The coordinator was started again, and its clock with it; or two readers shared an answer.
    if (last !== undefined && at < last.at) this.samples.length = 0;
    else if (last?.at === at) return;
    const before = this.samples.at(-1);
    const gap = before === undefined ? 0 : at - before.at;
    const was = before === undefined || gap > GAP_MS ? undefined : this.stats;
    this.samples.push({
      at,
      latency: stats.faultLatency.buckets,
      rates: was === undefined ? null : rates(was, stats, gap / 1000),
    });
    this.stats = stats;
    const oldest = at - REMEMBERED * 1000;
    while ((this.samples[0]?.at ?? at) < oldest) this.samples.shift();
  }

  get newest(): Sample | undefined {
    return this.samples.at(-1);
  }

  /** Remote faults by bucket in the last `seconds`; all of the engine's life where null. */
  latency(seconds: number | null): number[] {
    const newest = this.newest;
    if (newest === undefined) return [];
    const buckets = newest.latency;
    if (seconds === null) return [...buckets];
    const from = newest.at - seconds * 1000;
    const first = this.samples.find(({ at }) => at >= from) ?? newest;
    const was = first.latency;
    const isNew = buckets.some((count, i) => count < (was[i] ?? 0));
    return buckets.map((count, i) => (isNew ? count : count - (was[i] ?? 0)));
  }
}

/** Of one VM: as long as it is the same run. */
export class VmHistory {
  readonly run: string | null;
  readonly nodes = new Map<number, NodeHistory>();

  constructor(run: string | null) {
    this.run = run;
  }

  node(node: number): NodeHistory {
    const found = this.nodes.get(node) ?? new NodeHistory();
    this.nodes.set(node, found);
    return found;
  }
}

export class History {
  private readonly vms = new Map<string, VmHistory>();

  /**
   * `run`: since when it runs, which tells one run from the next. A VM that does not run keeps what
   * is known of its last run: how it came to its end is what one looks for then.
   */
  of(vm: string, run: string | null): VmHistory {
    const found = this.vms.get(vm);
    if (found !== undefined && (run === null || found.run === run)) return found;
    const fresh = new VmHistory(run);
    this.vms.set(vm, fresh);
    return fresh;
  }

  /** Others are gone. */
  keep(names: ReadonlySet<string>): void {
    for (const name of this.vms.keys()) if (!names.has(name)) this.vms.delete(name);
  }
}

/** Counts of all nodes with the time they were read, for differences over a window. */
export class HeatHistory {
  private readonly looks: { readonly at: number; readonly nodes: Map<number, NodeHeat> }[] = [];
  private readonly keptMs: number;

  constructor(keptMs: number) {
    this.keptMs = keptMs;
  }

  add(at: number, nodes: Map<number, NodeHeat>): void {
    this.looks.push({ at, nodes });
    // One that is older than the window is where a difference over all of it begins.
    while ((this.looks[1]?.at ?? at) <= at - this.keptMs) this.looks.shift();
  }

  get isEmpty(): boolean {
    return this.looks.length === 0;
  }

  /** By node, in the last `seconds`; since its engine started where null. */
  counts(seconds: number | null): Map<number, number[]> {
    const newest = this.looks.at(-1);
    if (newest === undefined) return new Map();
    const from = newest.at - (seconds ?? 0) * 1000;
    const first = this.looks.findLast(({ at }) => at <= from) ?? this.looks[0];
    const counts = new Map<number, number[]>();
    for (const [node, heat] of newest.nodes) {
      const before = seconds === null ? undefined : first?.nodes.get(node);
      counts.set(node, seconds !== null && !before ? [] : heatBetween(before, heat));
    }
    return counts;
  }
}
