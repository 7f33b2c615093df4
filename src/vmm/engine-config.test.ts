import { expect, test } from "bun:test";
import { engineConfig, RAM_RANGES_MAX } from "./engine-config.ts";
import { layoutMemory } from "./memory-map.ts";

const settings = {
  pageTables: "replicated",
  clockDilation: 20,
  peerTimeoutMs: 3000,
  stallFreezeMs: 300,
  holdUsMax: 0,
  pollUsMax: 0,
  plainMemory: false,
  pinVcpus: true,
} as const;

const nodes = [
  { id: 0, vcpus: 2, memoryBytes: 1n << 28n },
  { id: 1, vcpus: 1, memoryBytes: 1n << 27n },
];

function config(laneKey?: string, plainMemory = false) {
  const { ram } = layoutMemory(nodes);
  return engineConfig({
    node: 1,
    nodes,
    ram,
    tscKhz: 2_600_000,
    laneKey,
    settings: { ...settings, plainMemory },
  });
}

test("says who this node is, what all have, and where RAM lies", () => {
  const made = config("ab".repeat(32));
  expect(made).toMatchObject({ node: 1, node_count: 2, vcpu_count: 1, ram_range_count: 2 });
  expect(made.vcpu_counts).toEqual([2, 1, 0, 0, 0, 0, 0, 0]);
  expect(made.ram.length).toBe(RAM_RANGES_MAX);
  expect(made.ram[1]).toEqual({ gpa: 1n << 28n, size: 1n << 27n, node: 1 });
  expect(made).toMatchObject({
    tsc_khz: 2_600_000,
    clock_dilation: 20,
    page_tables: 1,
    pin_vcpus: 1,
    stall_freeze_ms: 300,
  });
  expect(made.lane_key).toEqual(new Uint8Array(32).fill(0xab));
  expect(made.lane_fds).toEqual(Array(8).fill(-1));
});

test("a damaged lane key is refused without being shown", () => {
  for (const key of ["", "ab", "zz".repeat(32)]) {
    expect(() => config(key)).toThrow(`a lane key of ${key.length} characters was given`);
  }
});

test("plain memory is for one node", () => {
  expect(() => config(undefined, true)).toThrow(/plain memory was asked for on several nodes/);
});
