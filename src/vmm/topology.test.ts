import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import {
  APIC_NODE_SHIFT,
  apicId,
  cacheEax,
  checkNodes,
  NODES_MAX,
  type NodeShape,
  placeVcpus,
  splitVcpus,
  VCPUS_PER_NODE_MAX,
} from "./topology.ts";

const shape = (...vcpus: number[]): NodeShape[] =>
  vcpus.map((count, id) => ({ id, vcpus: count, memoryBytes: 1n << 30n }));

test("the limits are those of zig/abi.zig", () => {
  const abi = readFileSync(new URL("../../zig/abi.zig", import.meta.url), "utf8");
  const value = (name: string): number =>
    Number(new RegExp(`pub const ${name}: u32 = (\\d+);`).exec(abi)?.[1]);
  expect(value("apic_node_shift")).toBe(APIC_NODE_SHIFT);
  expect(value("vcpus_max")).toBe(VCPUS_PER_NODE_MAX);
  expect(value("nodes_max")).toBe(NODES_MAX);
});

/** Every APIC id but 0xFF, which means all CPUs to an xAPIC. */
const LARGEST = Array.from({ length: NODES_MAX }, (_, node) => (node === 3 ? 63 : 64));

describe("APIC ids", () => {
  test("are unique, in order, and no package or x2APIC cluster spans nodes", () => {
    const places = placeVcpus(shape(...LARGEST));
    expect(places.length).toBe(511);
    places.forEach((place, uid) => {
      expect(place.uid).toBe(uid);
      expect(place.apicId).toBe(uid < 0xff ? uid : uid + 1);
      expect(place.apicId >> APIC_NODE_SHIFT).toBe(place.node);
    });
    const clusters = new Map<number, number>();
    for (const { apicId: id, node } of places) {
      expect(clusters.get(id >> 4) ?? node).toBe(node);
      clusters.set(id >> 4, node);
    }
  });

  test("leave gaps where nodes are small, but processor UIDs do not", () => {
    expect(placeVcpus(shape(2, 0, 1))).toEqual([
      { apicId: 0, node: 0, index: 0, uid: 0 },
      { apicId: 1, node: 0, index: 1, uid: 1 },
      { apicId: 128, node: 2, index: 0, uid: 2 },
    ]);
    expect(apicId(2, 0)).toBe(128);
  });
});

describe("shapes no engine runs are refused", () => {
  const cases: [NodeShape[], RegExp][] = [
    [[], /no nodes/],
    [shape(...Array(9).fill(1)), /9 nodes, at most 8/],
    [shape(65), /node 0 has 65 vCPUs, 0 to 64/],
    [shape(1, 1, 1, 64), /node 3 has 64 vCPUs, 0 to 63/],
    [shape(1, -1), /node 1 has -1 vCPUs/],
    [shape(1.5), /1\.5 vCPUs/],
    [shape(0, 1), /node 0 has no vCPU/],
    [[{ id: 1, vcpus: 1, memoryBytes: 0n }], /node 1 stands at place 0/],
  ];
  for (const [nodes, message] of cases) {
    test(String(message), () => expect(() => checkNodes(nodes)).toThrow(message));
  }
});

describe("splitVcpus", () => {
  test("is even, lower nodes first", () => {
    expect(splitVcpus(5, 2)).toEqual([3, 2]);
    expect(splitVcpus(8, 4)).toEqual([2, 2, 2, 2]);
    expect(splitVcpus(64, 1)).toEqual([64]);
    expect(splitVcpus(319, 5)).toEqual([64, 64, 64, 63, 64]);
    expect(splitVcpus(511, 8)).toEqual(LARGEST);
  });

  test("refuses nodes without vCPUs and too many", () => {
    expect(() => splitVcpus(1, 2)).toThrow(/1 vCPUs over 2 node/);
    expect(() => splitVcpus(65, 1)).toThrow(/1 to 64 are possible/);
    expect(() => splitVcpus(512, 8)).toThrow(/8 to 511 are possible/);
    expect(() => splitVcpus(4, 9)).toThrow(/9 nodes/);
    expect(() => splitVcpus(Number.NaN, 1)).toThrow(/NaN/);
  });
});

test("the list of caches still ends", () => {
  expect(cacheEax(0, "intel")).toBe(0);
  expect(cacheEax(0xfc00_0000, "intel")).toBe(0);
});
