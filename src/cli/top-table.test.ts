import { expect, test } from "bun:test";
import type { NodeSample } from "../node/vm-view.ts";
import { compare, type Look, topTable } from "./top-table.ts";

function node(number: number, remote: number, host: string | null = null): NodeSample {
  const faultLatency = { count: 0, sum_ns: 0, buckets: [] };
  const engine = { faults_remote: remote, bytes_sent: remote * 1e6, oldest_fault_ns: 2.5e6 };
  const stats = { node: number, engine, vcpus: [{ exits: 0 }], faultLatency };
  return {
    node: number,
    host,
    vcpus: 1,
    memoryBytes: 2 ** 28,
    lentBytes: null,
    stats,
    silent: null,
  };
}

function look(label: string, at: number, nodes: NodeSample[], state = "running" as const): Look {
  return { label, at, sample: { name: label, state, nodes } };
}

test("a line per node, with what it did since the last look", () => {
  const before = [look("demo", 1000, [node(0, 5), node(1, 0, "b")])];
  const after = [look("demo", 3000, [node(0, 25), { ...node(1, 0, "b"), stats: null }])];
  const shown = compare(before, after);
  expect(shown[0]?.nodes.map(({ rates }) => rates?.remoteFaults ?? null)).toEqual([10, null]);
  const [head = "", first = "", second = ""] = topTable(shown).split("\n");
  const cell = (line: string, name: string) => {
    const end = head.indexOf(name) + name.length;
    return line.slice(0, end).trim().split(/\s+/).at(-1);
  };
  expect(first.startsWith("demo")).toBe(true);
  expect(cell(first, "REMOTE/S")).toBe("10");
  expect(cell(first, "OLDEST-MS")).toBe("2.5");
  expect(cell(first, "SENT-MB/S")).toBe("10.0");
  expect(second.trim()).toBe("1  b         1");
});

test("what is new has no rates, what is silent says so", () => {
  const after = [look("new", 2000, [node(0, 9)]), { label: "mute", at: 2000, sample: null }];
  const shown = compare([], after);
  expect(shown[0]?.nodes[0]?.rates).toBeNull();
  expect(topTable(shown)).toContain("mute (no answer)");
});

test("a VM that does not run yet says what it does", () => {
  const waiting = { ...look("w", 1, [node(0, 0)]), label: "w" };
  const sample = { name: "w", state: "waiting" as const, nodes: [node(0, 0)] };
  expect(topTable(compare([waiting], [{ label: "w", at: 2, sample }]))).toContain("w (waiting)");
});

test("the blocks with the most remote faults since the look before", () => {
  const ranges = [{ gpa: 0, bytes: 2 ** 28, node: 0 }];
  const heat = (...counts: number[][]) => ({
    vm: "demo",
    ranges,
    nodes: counts.map((faults, node) => {
      return { node, heat: { blockBytes: 2 ** 21, faults }, silent: null };
    }),
  });
  const nodes = [node(0, 0), node(1, 0)];
  const before = [{ ...look("demo", 1000, nodes), heat: heat([9, 9], [9]) }];
  const after = [{ ...look("demo", 3000, nodes), heat: heat([9, 11], [9, 4, 0, 10]) }];
  const shown = compare(before, after);
  expect(shown[0]?.hotBlocks).toEqual([
    {
      ...{ block: 3, gpa: 3 * 2 ** 21, bytes: 2 ** 21, home: 0, remoteFaults: 5 },
      nodes: [{ node: 1, remoteFaults: 5 }],
    },
    {
      ...{ block: 1, gpa: 2 ** 21, bytes: 2 ** 21, home: 0, remoteFaults: 3 },
      nodes: [
        { node: 0, remoteFaults: 1 },
        { node: 1, remoteFaults: 2 },
      ],
    },
  ]);
  const lines = topTable(shown).split("\n").slice(-4);
  expect(lines.map((line) => line.trim().split(/\s+/))).toEqual([
    ["VM", "HOT-BLOCK", "HOME", "REMOTE/S", "BY-NODE"],
    ["demo", "0x600000", "0", "5", "1:5"],
    ["0x200000", "0", "3", "0:1", "1:2"],
    [""],
  ]);
  // One look tells nothing, and nothing is said where nothing happened.
  expect(topTable(compare([], after))).not.toContain("HOT-BLOCK");
  expect(
    topTable(
      compare(
        after,
        after.map((each) => ({ ...each, at: 4000 })),
      ),
    ),
  ).not.toContain("HOT-BLOCK");
});
