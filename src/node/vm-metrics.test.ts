import { expect, test } from "bun:test";

import { SsihvError } from "../base/errors.ts";
import type { NodeStats } from "../telemetry/node-metrics.ts";
import { metricsText } from "./vm-metrics.ts";
import type { VmObserved } from "./vm-view.ts";

const stats: NodeStats = {
  node: 0,
  engine: { faults_read: 5 },
  vcpus: [{ exits: 9 }],
  faultLatency: { count: 0, sum_ns: 0, buckets: [] },
};

/** Node 0 here, node 1 on another host, node 2 here and silent. */
const VM: VmObserved = {
  facts: () => ({
    name: "demo",
    role: "lead",
    state: "running",
    uptimeSeconds: 12.5,
    shape: [0, 1, 2].map((id) => ({ id, vcpus: 1, memoryBytes: 4096 })),
    nodes: [{ node: 0, pid: 10 }, { node: 1, host: "b" }, { node: 2 }],
  }),
  ask: (node, { kind }) => {
    if (node === 1) throw new Error("another host's node was asked");
    if (node === 2) return Promise.reject(new SsihvError("vm_silent", "its engine is gone"));
    expect(kind).toBe("stats");
    return Promise.resolve({ kind: "stats", stats });
  },
};

test("nodes of this host, up or not, and the VM's state", async () => {
  const lines = (await metricsText([VM])).split("\n");
  expect(lines.some((line) => line.startsWith("ssihv_build_info{version="))).toBe(true);
  for (const line of [
    'ssihv_vm_state{vm="demo",state="running"} 1',
    'ssihv_vm_state{vm="demo",state="paused"} 0',
    'ssihv_vm_uptime_seconds{vm="demo"} 12.5',
    'ssihv_node_up{vm="demo",node="0"} 1',
    'ssihv_node_up{vm="demo",node="2"} 0',
    'ssihv_faults_total{vm="demo",node="0",access="read"} 5',
  ]) {
    expect(lines).toContain(line);
  }
  expect(lines.join("\n")).not.toContain('node="1"');
});

test("no VM yet: the build alone", async () => {
  const text = await metricsText([]);
  expect(text.trim().split("\n").length).toBe(3);
});
