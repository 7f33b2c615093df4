import { expect, test } from "bun:test";
import { records } from "../native/abi.gen.ts";
import { exposition } from "./exposition.ts";
import { ENGINE_METRICS, type NodeStats, nodeFamilies, VCPU_METRICS } from "./node-metrics.ts";

const buckets = Array.from({ length: 40 }, () => 0);
const STATS: NodeStats = {
  node: 1,
  engine: { faults_read: 5, faults_remote: 4, oldest_fault_ns: 2e9, cache_pages: 3 },
  vcpus: [{ exits: 7 }, { exits: 8, ipis_remote: 2 }],
  // 512 ns, 1.5 us, 100 us and half a minute.
  faultLatency: {
    count: 4,
    sum_ns: 30_000_101_500,
    buckets: buckets.map((_, i) => ([9, 10, 16, 34].includes(i) ? 1 : 0)),
  },
};

test("every counter named is one the engine has, and every metric is named once", () => {
  const fields = (told: typeof ENGINE_METRICS) =>
    told.flatMap(({ counters }) => counters.map(({ field }) => field));
  const known = (record: { fields: object }) => Object.keys(record.fields);
  expect(fields(ENGINE_METRICS).filter((f) => !known(records.EngineStats).includes(f))).toEqual([]);
  expect(fields(VCPU_METRICS).filter((f) => !known(records.VcpuStats).includes(f))).toEqual([]);
  const names = nodeFamilies([]).map(({ name }) => name);
  expect(new Set(names).size).toBe(names.length);
});

test("names follow the convention: counters end in _total, nothing else does", () => {
  for (const { name, type, help } of nodeFamilies([])) {
    expect([name, name.endsWith("_total")]).toEqual([name, type === "counter"]);
    expect(name).toStartWith("ssihv_");
    expect(help).toMatch(/^[A-Zv].*\.$/);
  }
});

test("a node's numbers in base units, with the VM and the node as labels", () => {
  const text = exposition(
    nodeFamilies([{ vm: "demo", node: 1, vcpus: 2, memoryBytes: 1024, stats: STATS }]),
  );
  const at = 'vm="demo",node="1"';
  for (const line of [
    `ssihv_node_up{${at}} 1`,
    `ssihv_node_vcpus{${at}} 2`,
    `ssihv_faults_total{${at},access="read"} 5`,
    `ssihv_faults_total{${at},access="write"} 0`,
    `ssihv_faults_answered_total{${at},from="elsewhere"} 4`,
    `ssihv_oldest_fault_seconds{${at}} 2`,
    `ssihv_cache_bytes{${at}} 12288`,
    `ssihv_vcpu_exits_total{${at},vcpu="1"} 8`,
    `ssihv_vcpu_ipis_total{${at},vcpu="1",to="other_node"} 2`,
  ]) {
    expect(text.split("\n")).toContain(line);
  }
});

test("the latency histogram counts what lies outside its bounds too", () => {
  const text = exposition(
    nodeFamilies([{ vm: "v", node: 0, vcpus: 1, memoryBytes: 0, stats: STATS }]),
  );
  const found = [...text.matchAll(/duration_seconds_bucket\{.*le="([^"]+)"\} (\d+)/g)];
  const counts = new Map(found.map(([, bound = "", count]) => [Number(bound), Number(count)]));
  // Of one bucket each: the sum up to and with it.
  expect(counts.get(2 ** 11 * 1e-9)).toBe(2);
  expect(counts.get(2 ** 17 * 1e-9)).toBe(3);
  expect(counts.get(2 ** 34 * 1e-9)).toBe(3);
  expect(text).toContain('le="+Inf"} 4');
  expect(text).toMatch(/duration_seconds_sum\{.*\} 30\.00010150*\d?\n/);
});

test("a node that does not answer is down, and has no other numbers", () => {
  const text = exposition(nodeFamilies([{ vm: "v", node: 0, vcpus: 1, memoryBytes: 4096 }]));
  expect(text).toContain('ssihv_node_up{vm="v",node="0"} 0');
  expect(text).not.toContain("ssihv_faults_total");
});
