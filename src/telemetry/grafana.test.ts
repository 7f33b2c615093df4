// grafana/ssihv.json speaks of metrics that there are, by labels that they have.

import { expect, test } from "bun:test";
import { type NodeStats, nodeFamilies } from "./node-metrics.ts";

interface Dashboard {
  readonly panels: readonly {
    readonly id: number;
    readonly title: string;
    readonly gridPos: { readonly x: number; readonly y: number };
    readonly targets: readonly { readonly expr: string; readonly legendFormat: string }[];
  }[];
}

const file = `${import.meta.dir}/../../grafana/ssihv.json`;
const { panels } = (await Bun.file(file).json()) as Dashboard;
const targets = panels.flatMap(({ title, targets }) => targets.map((each) => ({ title, ...each })));

const faultLatency = { count: 0, sum_ns: 0, buckets: [] };
const stats: NodeStats = { node: 0, engine: {}, vcpus: [{}], faultLatency };
/** Labels of every series, by name. */
const series = new Map<string, string[]>();
for (const family of nodeFamilies([{ vm: "v", node: 0, vcpus: 1, memoryBytes: 1, stats }])) {
  const labels = family.samples.flatMap((sample) => Object.keys(sample.labels));
  const names =
    family.type === "histogram"
      ? ["_bucket", "_sum", "_count"].map((end) => family.name + end)
      : [family.name];
  for (const name of names) series.set(name, [...labels, "le"]);
}

test("every metric of a panel is one that is served, every label one that it has", () => {
  expect(targets.length).toBeGreaterThan(12);
  for (const { title, expr, legendFormat } of targets) {
    const names = [...expr.matchAll(/\bssihv_[a-z_]+/g)].map(([name]) => name);
    expect([title, names.length > 0]).toEqual([title, true]);
    for (const name of names) expect([title, name, series.has(name)]).toEqual([title, name, true]);
    const known = names.flatMap((name) => series.get(name) ?? []);
    const matched = [...expr.matchAll(/[{,](\w+)=/g), ...legendFormat.matchAll(/\{\{(\w+)\}\}/g)];
    for (const [, label = ""] of matched) {
      expect([title, label, known.includes(label)]).toEqual([title, label, true]);
    }
  }
});

test("counters are shown as rates, gauges as they are", () => {
  for (const { title, expr } of targets) {
    const counts = /_(total|bucket)\{/.test(expr);
    expect([title, /\b(rate|increase)\(/.test(expr)]).toEqual([title, counts]);
  }
});

test("panels have numbers and places of their own", () => {
  const places = panels.map(({ gridPos: { x, y } }) => `${x},${y}`);
  expect(new Set(places).size).toBe(panels.length);
  expect(new Set(panels.map(({ id }) => id)).size).toBe(panels.length);
});
