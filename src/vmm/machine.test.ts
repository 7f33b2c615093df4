import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { intersect } from "./cpu-model.ts";
import { encodeModel } from "./cpu-model-json.ts";
import { qemuMax, skylake, zen4 } from "./fixtures/cpuid.ts";
import { kernelBytes } from "./fixtures/kernel.ts";
import {
  hostCpu,
  type MachineHost,
  type MachineRequest,
  planLender,
  planMachine,
} from "./machine.ts";
import type { Load } from "./records.ts";
import { splitVcpus } from "./topology.ts";

const folder = mkdtempSync(join(tmpdir(), "ssihv-machine-"));
afterAll(() => rmSync(folder, { recursive: true }));

const kernel = join(folder, "vmlinuz");
const image = new Uint8Array(40 * 512 + 0x1_0000);
image.set(kernelBytes());
writeFileSync(kernel, image);
const initrd = join(folder, "initrd");
writeFileSync(initrd, new Uint8Array(10_000).fill(1));

function host(from = zen4()): MachineHost {
  return {
    cpuid: from.cpuid,
    msrs: from.msrs.map(({ index, value }) => ({ index, value: BigInt(value) })),
    tscKhz: from.tscKhz,
    cpus: 8,
  };
}

function request(changes: Partial<MachineRequest> = {}): MachineRequest {
  return {
    node: 0,
    nodes: [{ id: 0, vcpus: 2, memoryBytes: 2 ** 28 }],
    kernel,
    initrd,
    cmdline: "console=ttyS0",
    options: {
      pageTables: "strict",
      clockDilation: 1,
      peerTimeoutMs: 3000,
      stallFreezeMs: 300,
      holdUsMax: 0,
      plainMemory: false,
      pinVcpus: false,
    },
    ...changes,
  };
}

const SPAN: Partial<MachineRequest> = {
  nodes: [
    { id: 0, vcpus: 2, memoryBytes: 2 ** 28 },
    { id: 1, vcpus: 1, memoryBytes: 2 ** 27 },
  ],
  cpuModel: encodeModel(intersect([zen4()])),
};

describe("a machine on one node", () => {
  const plan = planMachine(request(), host());

  test("boots with tables, kernel and initrd in disjoint places inside RAM", () => {
    const spans = (plan.boot?.loads() ?? [])
      .map((load) => [load.gpa, BigInt("bytes" in load ? load.bytes.length : load.length)] as const)
      .sort(([a], [b]) => (a < b ? -1 : 1));
    expect(spans.length).toBeGreaterThan(8);
    spans.reduce((end, [gpa, size]) => {
      expect(gpa).toBeGreaterThanOrEqual(end);
      return gpa + size;
    }, 0n);
    expect(plan.memory.end).toBe(2n ** 28n);
  });

  test("gives the zero page the RSDP that the tables have", () => {
    const rsi = plan.boot?.registers.rsi;
    const zeroPage = plan.boot?.loads().find((load) => load.gpa === rsi);
    if (!zeroPage || !("bytes" in zeroPage)) throw new Error("no zero page");
    const rsdp = new DataView(zeroPage.bytes.buffer).getBigUint64(0x70, true);
    const table = plan.boot?.loads().find((load) => load.gpa === rsdp);
    if (!table || !("bytes" in table)) throw new Error("no RSDP");
    expect(new TextDecoder().decode(table.bytes.subarray(0, 8))).toBe("RSD PTR ");
  });

  test("has a CPUID per vCPU with its own APIC id", () => {
    const ids = plan.cpuid.map((leaves) => {
      return (leaves.find((leaf) => leaf.function === 1)?.ebx ?? 0) >>> 24;
    });
    expect(ids).toEqual([0, 1]);
  });

  test("starts with MTRRs on and write-back", () => {
    expect(plan.msrs).toContainEqual({ index: 0x2ff, value: 0x806n });
    const intel = planMachine(request(), host(skylake()));
    expect(intel.msrs.map((msr) => msr.index)).toEqual([0x2ff, 0x1a0, 0x10a]);
  });
});

describe("a machine on two nodes", () => {
  const both = [0, 1].map((node) => planMachine(request({ ...SPAN, node }), host()));

  test("polls where its host has a CPU to spare, or as told", () => {
    expect(both[0]?.engineConfig.poll_us_max).toBeGreaterThan(0);
    const full = planMachine(request(SPAN), { ...host(), cpus: 1 });
    expect(full.engineConfig.poll_us_max).toBe(0);
    const told = request({ ...SPAN, options: { ...request(SPAN).options, pollUsMax: 7 } });
    expect(planMachine(told, host()).engineConfig.poll_us_max).toBe(7);
  });

  test("is the same machine on both but for whose part it is", () => {
    const [first, second] = both;
    expect(second?.memory).toEqual(first?.memory);
    expect(second?.cpuModel).toEqual(first?.cpuModel);
    expect(second?.busRegions).toEqual(first?.busRegions);
    expect(first?.engineConfig.node).toBe(0);
    expect(second?.engineConfig.node).toBe(1);
    expect(second?.cpuid.length).toBe(1);
  });

  test("boots on node 0 alone, and loads only into node 0's RAM", () => {
    expect(both[1]?.boot).toBeUndefined();
    for (const load of both[0]?.boot?.loads() ?? []) {
      const size = BigInt("bytes" in load ? load.bytes.length : load.length);
      expect(load.gpa + size).toBeLessThanOrEqual(2n ** 28n);
    }
  });

  test("needs no kernel file on the other nodes", () => {
    const away = { ...SPAN, node: 1, kernel: "/nowhere", initrd: "/nowhere" };
    expect(() => planMachine(request(away), host())).not.toThrow();
  });

  test("needs one CPU model for all", () => {
    expect(() => planMachine(request({ ...SPAN, cpuModel: undefined }), host())).toThrow(
      /needs a recorded CPU model/,
    );
    expect(() => planMachine(request(SPAN), host(qemuMax()))).toThrow(/is of CPU family 0x17/);
  });
});

describe("a machine with memory nodes", () => {
  const nodes = [
    { id: 0, vcpus: 2, memoryBytes: 2 ** 28, residentBytes: 2 ** 27 },
    { id: 1, vcpus: 0, memoryBytes: 0, lentBytes: 2 ** 26 },
    { id: 2, vcpus: 0, memoryBytes: 0, lentBytes: 2 ** 26 },
  ];

  test("shows the guest its compute nodes alone, and needs no CPU model for the others", () => {
    const plan = planMachine(request({ nodes }), host());
    const alone = planMachine(request(), host());
    expect(plan.memory).toEqual(alone.memory);
    expect(plan.vcpus).toEqual(alone.vcpus);
    expect(plan.boot?.loads()).toEqual(alone.boot?.loads() as never);
    expect(plan.engineConfig).toMatchObject({ node_count: 3, compute_nodes: 1n });
    expect(plan.engineConfig.resident_pages_max).toBe(32_768);
    expect(plan.engineConfig.frames[2]).toEqual({ first: 0, count: 16_384 });
  });

  test("plans a memory node without its host's CPU", () => {
    const config = planLender(request({ nodes, node: 2, kernel: "/nowhere" }), 4);
    expect(config).toMatchObject({ node: 2, vcpu_count: 0, ram_range_count: 0, tsc_khz: 0 });
    expect(config).toMatchObject({ frames_lent: 16_384, compute_nodes: 1n });
    expect(config.frames[0]).toEqual({ first: 0, count: 16_384 });
    expect(config.poll_us_max).toBeGreaterThan(0);
    expect(() => planMachine(request({ nodes, node: 2 }), host())).toThrow(/not one of 1/);
  });
});

test("the largest VM's tables fit their area, and its CPUID is whole", () => {
  const nodes = splitVcpus(511, 8).map((vcpus, id) => ({ id, vcpus, memoryBytes: 2 ** 30 }));
  const plan = planMachine(request({ ...SPAN, nodes }), host());
  expect(plan.vcpus.length).toBe(511);
  expect(plan.cpuid.length).toBe(64);
  const tables = (plan.boot?.loads() ?? []).filter(
    ({ gpa }) => gpa >= 0xe_0000n && gpa < 0x10_0000n,
  );
  expect(tables.length).toBeGreaterThanOrEqual(7);
});

test("what memory costs changes nothing but that there is an HMAT", () => {
  const { boot } = planMachine(request(SPAN), host());
  const costs = {
    latencyNs: [
      [90, 40_000],
      [40_000, 90],
    ],
    bandwidthMBps: [
      [10_000, 900],
      [900, 10_000],
    ],
  };
  const names = (loads: readonly Load[] = []) =>
    loads.map((load) =>
      "bytes" in load ? new TextDecoder().decode(load.bytes.subarray(0, 4)) : load.file,
    );
  const [without, having] = [boot?.loads(), boot?.loads(costs)];
  expect(names(without)).not.toContain("HMAT");
  expect(names(having)).toContain("HMAT");
  // The zero page names it: it may not move.
  expect(having?.[0]?.gpa).toBe(without?.[0]?.gpa as bigint);
});

describe("refusals", () => {
  test("missing files are named", () => {
    expect(() => planMachine(request({ kernel: join(folder, "none") }), host())).toThrow(
      /kernel .*none does not exist/,
    );
    expect(() => planMachine(request({ initrd: folder }), host())).toThrow(
      /initrd .* regular file/,
    );
  });

  test("RAM above the CPU's physical addresses", () => {
    const small = { ...host(), cpuid: host().cpuid.map((leaf) => ({ ...leaf })) };
    for (const leaf of small.cpuid) if (leaf.function === 0x8000_0008) leaf.eax = 32;
    const nodes = [{ id: 0, vcpus: 1, memoryBytes: 2 ** 32 }];
    expect(() => planMachine(request({ nodes }), small)).toThrow(/CPUs address 32 bits/);
  });

  test("a node that is not one of the VM's", () => {
    expect(() => planMachine(request({ node: 1 }), host())).toThrow(/node 1 is not one of 1/);
  });
});

test("a host's CPU survives JSON", () => {
  const cpu = hostCpu("a", host(skylake()));
  expect(JSON.parse(JSON.stringify(cpu))).toEqual(cpu);
  expect(cpu.msrs).toEqual([{ index: 0x10a, value: "0x80000000000ac04" }]);
});
