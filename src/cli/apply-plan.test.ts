import { expect, test } from "bun:test";

import type { VmSpec } from "../control/vm-spec.ts";
import type { Vm } from "./api-client.ts";
import { differences, planChanges, planText } from "./apply-plan.ts";

const SPEC: VmSpec = { name: "a", nodes: [{ cpus: 1, memoryBytes: 1 << 30 }], kernel: "/k" };

function vm(spec: VmSpec, state: Vm["state"]): Vm {
  return { name: spec.name, state, spec, createdAt: "", since: null, places: [], last: null };
}

function declared(spec: VmSpec) {
  return { spec, at: "c.yaml:1:1", hosts: [] };
}

test("differences in the file's own words", () => {
  const after: VmSpec = {
    name: "a",
    nodes: [
      { cpus: 2, memoryBytes: 1 << 30, host: "h" },
      { cpus: 1, memoryBytes: 5000 },
    ],
    kernel: "/k",
    holdUsMax: 10,
    peerTimeoutMs: 5000,
    memoryNodeMemoryBytes: 64 << 20,
    memoryBandwidthMBps: [[1]],
    pageTables: "strict",
  };
  expect(differences({ ...SPEC, cmdline: "quiet" }, after)).toEqual([
    { key: "nodes[0].cpus", from: "1", to: "2" },
    { key: "cmdline", from: '"quiet"' },
    { key: "nodes[0].host", to: '"h"' },
    { key: "nodes[1].cpus", to: "1" },
    { key: "nodes[1].memory", to: "5000" },
    { key: "hold_max", to: "10us" },
    { key: "peer_timeout", to: "5000ms" },
    { key: "memory_node_memory", to: "64M" },
    { key: "memory_bandwidth", to: "[[1]]" },
    { key: "page_tables", to: '"strict"' },
  ]);
  expect(differences(SPEC, { kernel: "/k", nodes: SPEC.nodes, name: "a" })).toEqual([]);
});

test("what is to be done with each, by whether it runs", () => {
  const other = { ...SPEC, kernel: "/other" };
  const states: Vm["state"][] = ["stopped", "failed", "running", "unknown", "stopping", "waiting"];
  const actions = states.map(
    (state) => planChanges([declared(other)], [vm(SPEC, state)])[0]?.action,
  );
  expect(actions).toEqual(["change", "change", "blocked", "blocked", "blocked", "blocked"]);
  expect(planChanges([declared(SPEC)], [vm(SPEC, "running")])[0]?.action).toBe("same");
  const changes = planChanges([declared(other)], [vm({ ...SPEC, name: "z" }, "running")]);
  expect(planText(changes, [vm({ ...SPEC, name: "z" }, "running")])).toBe(
    "create   a (1 node(s), 1 vCPU(s), 1024 MiB)\nnot in the file, left alone: z\n",
  );
});
