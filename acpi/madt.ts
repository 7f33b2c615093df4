// MADT, signature "APIC" (ACPI 6.3, 5.2.12): the interrupt controllers.
// CPUs with an APIC id below 255 are told as Processor Local APIC, the rest as Local x2APIC. The
// specification demands exactly that (5.2.12.12: ids below 255 "must use" the old form), Windows
// relies on it, and Linux takes both; the old form does not keep a guest from running them as
// x2APICs, CPUID decides that. A CPU whose UID does not fit the old form's byte is told as x2APIC.

import { type AcpiBoard, type AcpiCpu, HARDWARE } from "./board.ts";
import { Encoder, encodeTable } from "./encoder.ts";
import { encode, encodeEntry, entry, type Flag, layout, reserved, u8, u16, u32 } from "./layout.ts";

/** ACPI 6.3. */
export const MADT_REVISION = 5;
/** xAPIC ids are 8 bits and 255 is broadcast. */
const XAPIC_ID_MAX = 254;
/** UID 255 in an 8-bit UID field means all processors. */
const XAPIC_UID_MAX = 254;

const CPU_FLAGS: readonly Flag[] = [
  [0, "ENABLED", "the processor is there"],
  [1, "ONLINE_CAPABLE", "it is not there yet but may be brought online"],
];
const CPU_ENABLED = 1;

const POLARITY = ["as the bus has it", "active high", "reserved", "active low"];
const TRIGGER = ["as the bus has it", "edge", "reserved", "level"];

/** MPS INTI flags (ACPI 6.3, table 5-46): bits 1:0 polarity, 3:2 trigger mode. */
function showInti(value: bigint): string {
  const bits = Number(value);
  return `polarity ${POLARITY[bits & 3]}, trigger ${TRIGGER[(bits >> 2) & 3]}`;
}
const INTI_BUS = 0x0;
const INTI_LEVEL_HIGH = 0xd;

const all = (most: bigint) => (value: bigint) => (value === most ? "all processors" : "");

export const MADT = layout("Interrupt controllers", [
  u32("localApicAddress", "physical address of every CPU's local APIC"),
  u32("flags", "other interrupt controllers", {
    flags: [[0, "PCAT_COMPAT", "there are two 8259 PICs too, to be masked"]],
  }),
]);

export const LOCAL_APIC = entry(0, "Processor local APIC", [
  u8("uid", "the processor's _UID in the namespace"),
  u8("apicId", "the processor's APIC id"),
  u32("flags", "state", { flags: CPU_FLAGS }),
]);

export const IO_APIC = entry(1, "I/O APIC", [
  u8("ioApicId", "its id"),
  reserved(1),
  u32("address", "physical address of its registers"),
  u32("gsiBase", "global system interrupt of its pin 0"),
]);

export const INTERRUPT_OVERRIDE = entry(2, "Interrupt source override", [
  u8("bus", "0: ISA"),
  u8("source", "the bus's interrupt number"),
  u32("gsi", "the global system interrupt it arrives at"),
  u16("intiFlags", "how it is signalled", { show: showInti }),
]);

export const LOCAL_APIC_NMI = entry(4, "Local APIC NMI", [
  u8("uid", "the processor's _UID", { show: all(0xffn) }),
  u16("intiFlags", "how it is signalled", { show: showInti }),
  u8("lint", "the local APIC's pin that NMI is wired to"),
]);

export const LOCAL_X2APIC = entry(9, "Processor local x2APIC", [
  reserved(2),
  u32("x2apicId", "the processor's x2APIC id"),
  u32("flags", "state", { flags: CPU_FLAGS }),
  u32("uid", "the processor's _UID in the namespace"),
]);

export const LOCAL_X2APIC_NMI = entry(10, "Local x2APIC NMI", [
  u16("intiFlags", "how it is signalled", { show: showInti }),
  u32("uid", "the processor's _UID", { show: all(0xffff_ffffn) }),
  u8("lint", "the local APIC's pin that NMI is wired to"),
  reserved(3),
]);

export const MADT_ENTRIES = [
  LOCAL_APIC,
  IO_APIC,
  INTERRUPT_OVERRIDE,
  LOCAL_APIC_NMI,
  LOCAL_X2APIC,
  LOCAL_X2APIC_NMI,
] as const;

/** Whether the tables tell this CPU in the 32-bit form; MADT and SRAT must agree. */
export function isX2apic(cpu: AcpiCpu): boolean {
  return cpu.apicId > XAPIC_ID_MAX || cpu.uid > XAPIC_UID_MAX;
}

/** NMI is wired to LINT1 of every local APIC (MultiProcessor Specification 1.4, 3.6.2.2). */
const NMI_LINT = 1;

function encodeCpu(out: Encoder, cpu: AcpiCpu): void {
  const flags = CPU_ENABLED;
  if (isX2apic(cpu)) encodeEntry(out, LOCAL_X2APIC, { x2apicId: cpu.apicId, flags, uid: cpu.uid });
  else encodeEntry(out, LOCAL_APIC, { uid: cpu.uid, apicId: cpu.apicId, flags });
}

export function buildMadt(board: AcpiBoard): Uint8Array {
  const hardware = board.hardware ?? HARDWARE;
  const body = new Encoder();
  // PCAT_COMPAT stays clear: the PIC ports read as ones, a guest must not wait for them.
  encode(body, MADT, { localApicAddress: hardware.lapicBase, flags: 0 });
  for (const cpu of board.cpus) encodeCpu(body, cpu);
  encodeEntry(body, IO_APIC, {
    ioApicId: hardware.ioapicId,
    address: hardware.ioapicBase,
    gsiBase: 0,
  });
  // ISA interrupt 0, the PIT's, arrives at pin 2 on every PC with an IOAPIC.
  encodeEntry(body, INTERRUPT_OVERRIDE, { bus: 0, source: 0, gsi: 2, intiFlags: INTI_BUS });
  encodeEntry(body, INTERRUPT_OVERRIDE, {
    bus: 0,
    source: hardware.sciGsi,
    gsi: hardware.sciGsi,
    intiFlags: INTI_LEVEL_HIGH,
  });
  const nmi = { intiFlags: INTI_BUS, lint: NMI_LINT };
  if (!board.cpus.every(isX2apic)) encodeEntry(body, LOCAL_APIC_NMI, { ...nmi, uid: 0xff });
  if (board.cpus.some(isX2apic)) encodeEntry(body, LOCAL_X2APIC_NMI, { ...nmi, uid: 0xffff_ffff });
  return encodeTable("APIC", MADT_REVISION, body.finish());
}
