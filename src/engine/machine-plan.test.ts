import { expect, test } from "bun:test";
import { records } from "../native/abi.gen.ts";
import { concatRecords, encode } from "../native/record.ts";
import { busRegions, registerFiles } from "../vmm/board.ts";
import { loadBzImage } from "../vmm/bzimage.ts";
import { intersect } from "../vmm/cpu-model.ts";
import { cpuidFor } from "../vmm/cpuid-leaves.ts";
import { engineConfig } from "../vmm/engine-config.ts";
import { qemuMax, skylake, zen4 } from "../vmm/fixtures/cpuid.ts";
import { kernelFile } from "../vmm/fixtures/kernel.ts";
import { layoutMemory } from "../vmm/memory-map.ts";

// src/vmm may not import src/native: that its plain objects are records of zig/abi.zig is shown
// here.

const nodes = [{ vcpus: 2, memoryBytes: 2 ** 28 }];
const memory = layoutMemory([{ id: 0, vcpus: 2, memoryBytes: 1n << 28n }]);

test("the engine's configuration encodes with the process's descriptors", () => {
  const config = engineConfig({
    node: 0,
    nodes,
    ram: memory.ram,
    tscKhz: 2_600_000,
    laneKey: "0f".repeat(32),
    settings: {
      pageTables: "replicated",
      clockDilation: 20,
      peerTimeoutMs: 3000,
      stallFreezeMs: 300,
      holdUsMax: 100,
      pollUsMax: 50,
      plainMemory: false,
      pinVcpus: true,
    },
  });
  const own = { shared_fd: 3, console_in_fd: 0, console_out_fd: 1, doorbell_fd: 4 };
  const bytes = encode(records.EngineConfig, { ...config, ...own });
  expect(bytes.length).toBe(records.EngineConfig.size);
});

test("bus regions and register files encode", () => {
  const regions = busRegions();
  expect(concatRecords(records.BusRegion, regions).length).toBe(
    regions.length * records.BusRegion.size,
  );
  for (const file of registerFiles()) {
    expect(encode(records.RegisterFile, file).length).toBe(records.RegisterFile.size);
  }
});

test("every vCPU's CPUID encodes, for every kind of host", () => {
  for (const host of [zen4(), qemuMax(), skylake()]) {
    const request = {
      apicId: 511,
      cores: 64,
      vcpus: 512,
      dilation: 50,
      hypervisor: "vmware",
    } as const;
    const leaves = cpuidFor(intersect([host]), request);
    expect(concatRecords(records.CpuidEntry, leaves).length).toBe(
      leaves.length * records.CpuidEntry.size,
    );
    // KVM_MAX_CPUID_ENTRIES of older kernels.
    expect(leaves.length).toBeLessThanOrEqual(80);
  }
});

test("the boot vCPU's registers encode", () => {
  const { registers } = loadBzImage({
    kernel: kernelFile(),
    cmdline: "console=ttyS0",
    memory,
    rsdp: 0xe0000n,
  });
  expect(encode(records.VcpuRecord, registers).length).toBe(records.VcpuRecord.size);
});
