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
  { vcpus: 2, memoryBytes: 2 ** 28 },
  { vcpus: 1, memoryBytes: 2 ** 27 },
];
const { ram } = layoutMemory(
  nodes.map(({ vcpus, memoryBytes }, id) => ({ id, vcpus, memoryBytes: BigInt(memoryBytes) })),
);

function config(laneKey?: string, plainMemory = false) {
  return engineConfig({
    node: 1,
    nodes,
    ram,
    tscKhz: 2_600_000,
    laneKey,
    settings: { ...settings, plainMemory },
  });
}

const MIB = 2 ** 20;
/** Two compute nodes that keep a half of their own, two memory nodes with twice the other half. */
const lenders = [
  { vcpus: 2, memoryBytes: 256 * MIB, residentBytes: 128 * MIB, cacheBytes: 16 * MIB },
  { vcpus: 1, memoryBytes: 128 * MIB, residentBytes: 96 * MIB, cacheBytes: 256 * MIB },
  { vcpus: 0, memoryBytes: 0, lentBytes: 160 * MIB },
  { vcpus: 0, memoryBytes: 0, lentBytes: 160 * MIB },
];

function lendingConfig(node: number) {
  const shared = { node, nodes: lenders, tscKhz: 0, laneKey: undefined, settings };
  return engineConfig({ ...shared, ram: node < 2 ? ram : [], frameCopies: 2 });
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

test("budgets are pages, and none where nothing is short", () => {
  const whole = { cache_pages_max: 0, resident_pages_max: 0, frames_lent: 0, frame_copies: 1 };
  expect(config()).toMatchObject({ ...whole, compute_nodes: 3n });
  const first = { cache_pages_max: 4096, resident_pages_max: 32_768, frame_copies: 2 };
  expect(lendingConfig(0)).toMatchObject({ ...first, compute_nodes: 3n, frames_lent: 0 });
  expect(lendingConfig(1)).toMatchObject({ cache_pages_max: 0, resident_pages_max: 24_576 });
});

test("memory nodes and compute nodes agree on whose each frame is", () => {
  const configs = [0, 1, 2, 3].map(lendingConfig);
  for (const node of [0, 1]) {
    for (const memoryNode of [2, 3]) {
      const range = configs[node]?.frames[memoryNode];
      expect(range?.count).toBe(node === 0 ? 32_768 : 8192);
      expect(configs[memoryNode]?.frames[node]).toEqual(range as never);
    }
    expect(configs[node]?.frames[1 - node]).toEqual({ first: 0, count: 0 });
  }
  expect(configs[2]).toMatchObject({ vcpu_count: 0, ram_range_count: 0, frames_lent: 40_960 });
});

test("a damaged lane key is refused without being shown", () => {
  for (const key of ["", "ab", "zz".repeat(32)]) {
    expect(() => config(key)).toThrow(`a lane key of ${key.length} characters was given`);
  }
});

test("plain memory is for one node", () => {
  expect(() => config(undefined, true)).toThrow(/plain memory was asked for on several nodes/);
});
