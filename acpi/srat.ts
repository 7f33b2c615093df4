// SRAT (ACPI 6.3, 5.2.16): which node every CPU and every RAM range belongs to.
// A CPU is told in the same form as in the MADT. Memory ranges are the board's: the PCI hole
// already cuts them, so no entry ever covers device addresses.

import type { AcpiBoard, AcpiCpu } from "./board.ts";
import { Encoder, encodeTable } from "./encoder.ts";
import {
  encode,
  encodeEntry,
  entry,
  type Flag,
  layout,
  reserved,
  u8,
  u24,
  u32,
  u64,
} from "./layout.ts";
import { isX2apic } from "./madt.ts";

/** ACPI 6.3. */
export const SRAT_REVISION = 3;

const CPU_FLAGS: readonly Flag[] = [[0, "ENABLED", "this entry counts"]];
const MEMORY_FLAGS: readonly Flag[] = [
  [0, "ENABLED", "this entry counts"],
  [1, "HOT_PLUGGABLE", "memory may be added here later"],
  [2, "NON_VOLATILE", "the memory keeps its content without power"],
];
const ENABLED = 1;

export const SRAT = layout("System resource affinity", [
  u32("tableRevision", "must be 1, for ACPI 1.0"),
  reserved(8),
]);

export const LOCAL_APIC_AFFINITY = entry(0, "Processor local APIC affinity", [
  u8("domainLow", "node, bits 7:0"),
  u8("apicId", "the processor's APIC id"),
  u32("flags", "state", { flags: CPU_FLAGS }),
  u8("sapicEid", "Itanium only"),
  u24("domainHigh", "node, bits 31:8"),
  u32("clockDomain", "CPUs with the same number share a clock"),
]);

export const MEMORY_AFFINITY = entry(1, "Memory affinity", [
  u32("domain", "node"),
  reserved(2),
  u64("base", "first physical address"),
  u64("size", "bytes"),
  reserved(4),
  u32("flags", "state", { flags: MEMORY_FLAGS }),
  reserved(8),
]);

export const LOCAL_X2APIC_AFFINITY = entry(2, "Processor local x2APIC affinity", [
  reserved(2),
  u32("domain", "node"),
  u32("x2apicId", "the processor's x2APIC id"),
  u32("flags", "state", { flags: CPU_FLAGS }),
  u32("clockDomain", "CPUs with the same number share a clock"),
  reserved(4),
]);

export const SRAT_ENTRIES = [LOCAL_APIC_AFFINITY, MEMORY_AFFINITY, LOCAL_X2APIC_AFFINITY] as const;

function encodeCpu(out: Encoder, cpu: AcpiCpu): void {
  // One clock domain for the whole VM: the engines keep the guest's TSCs together.
  const common = { flags: ENABLED, clockDomain: 0 };
  if (isX2apic(cpu)) {
    encodeEntry(out, LOCAL_X2APIC_AFFINITY, {
      ...common,
      domain: cpu.node,
      x2apicId: cpu.apicId,
    });
    return;
  }
  encodeEntry(out, LOCAL_APIC_AFFINITY, {
    ...common,
    domainLow: cpu.node & 0xff,
    domainHigh: cpu.node >>> 8,
    apicId: cpu.apicId,
    sapicEid: 0,
  });
}

export function buildSrat(board: AcpiBoard): Uint8Array {
  const body = new Encoder();
  encode(body, SRAT, { tableRevision: 1 });
  for (const cpu of board.cpus) encodeCpu(body, cpu);
  const ranges = [...board.memory].sort((a, b) => (a.base < b.base ? -1 : 1));
  for (const { base, size, node } of ranges) {
    encodeEntry(body, MEMORY_AFFINITY, { domain: node, base, size, flags: ENABLED });
  }
  return encodeTable("SRAT", SRAT_REVISION, body.finish());
}
