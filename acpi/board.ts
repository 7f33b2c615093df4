// What the ACPI tables are told about the machine, and the check that such a machine can exist.
// Everything an author of a board may get wrong ends here with a sentence, so that the table files
// need no checks of their own. The fixed addresses are src/vmm/board.ts's; a test compares the two.

import { SsihvError } from "../src/base/errors.ts";

export interface AcpiCpu {
  /** x2APIC id. */
  apicId: number;
  /** ACPI processor UID: ties the MADT entry to the DSDT's device. */
  uid: number;
  /** Proximity domain. */
  node: number;
}

export interface AcpiMemory {
  base: bigint;
  size: bigint;
  node: number;
}

/** Fixed hardware. Ports are I/O ports, `gsi` numbers are IOAPIC pins. */
export interface AcpiHardware {
  lapicBase: bigint;
  ioapicBase: bigint;
  ioapicId: number;
  sciGsi: number;
  pm1EventPort: number;
  pm1ControlPort: number;
  pmTimerPort: number;
  resetPort: number;
  resetValue: number;
  com1Port: number;
  com1Irq: number;
  rtcPort: number;
  rtcIrq: number;
  /** CMOS index of the century byte; 0 when the clock has none. */
  rtcCenturyIndex: number;
  /** Ports of devices without an ACPI device of their own: [first, count]. */
  claimedPorts: readonly (readonly [number, number])[];
  /** Addresses below 4 GiB that are never RAM: [base, end). */
  hole: readonly [bigint, bigint];
}

export const HARDWARE: AcpiHardware = {
  lapicBase: 0xfee0_0000n,
  ioapicBase: 0xfec0_0000n,
  ioapicId: 0,
  sciGsi: 9,
  pm1EventPort: 0x600,
  pm1ControlPort: 0x604,
  pmTimerPort: 0x608,
  resetPort: 0xcf9,
  resetValue: 6,
  com1Port: 0x3f8,
  com1Irq: 4,
  rtcPort: 0x70,
  rtcIrq: 8,
  rtcCenturyIndex: 0x32,
  // isa-debug-exit, debugcon and the hypervisor's identity port.
  claimedPorts: [
    [0xf4, 4],
    [0x402, 1],
    [0x5658, 4],
  ],
  hole: [0xc000_0000n, 0x1_0000_0000n],
};

/** A PCI host bridge with configuration mechanism 1 (ports 0xCF8 to 0xCFF). */
export interface AcpiPci {
  node: number;
  /** Highest bus number below the bridge. */
  lastBus: number;
  /** Window for 32-bit BARs; must lie in the hole. */
  memory32: { base: bigint; size: bigint };
  /** Window for 64-bit BARs above RAM. */
  memory64?: { base: bigint; size: bigint } | undefined;
  /** GSIs of INTA to INTD of device 0; device n is rotated by n. */
  interrupts: readonly [number, number, number, number];
}

/** A virtio device over MMIO (virtio 1.2, 4.2). */
export interface AcpiVirtio {
  /** Its registers; must lie in the hole. */
  base: bigint;
  size: bigint;
  /** Level, active high. */
  gsi: number;
}

/** What memory costs a CPU: [node of the CPU][node of the memory], both square. */
export interface MemoryCosts {
  /** Nanoseconds until a page, or a cache line of local memory, is there. */
  latencyNs: readonly (readonly number[])[];
  /** Megabytes (10^6 bytes) a second. */
  bandwidthMBps: readonly (readonly number[])[];
}

export interface AcpiBoard {
  /** Where the tables go: guest-physical, a multiple of 64, below 4 GiB. The RSDP comes first. */
  base: bigint;
  /** Boot processor first (ACPI 6.3, 5.2.12.1). */
  cpus: readonly AcpiCpu[];
  memory: readonly AcpiMemory[];
  /** distances[from][to]: 10 is local, 11 to 254 anything else. */
  distances: readonly (readonly number[])[];
  /** Without them there is no HMAT. */
  costs?: MemoryCosts | undefined;
  hardware?: AcpiHardware | undefined;
  pci?: AcpiPci | undefined;
  virtio?: readonly AcpiVirtio[] | undefined;
}

/** SLIT values: 10 is local, 255 unreachable (ACPI 6.3, 5.2.17). */
export const DISTANCE_LOCAL = 10;
const DISTANCE_MAX = 254;
/** CPU models address at most 52 bits. */
const ADDRESS_END = 1n << 52n;
/** x2APIC ids and UIDs of all ones mean "every processor". */
const ALL_PROCESSORS = 0xffff_ffff;
/** FACS must be aligned to 64 bytes (ACPI 6.3, 5.2.10). */
export const TABLES_ALIGNMENT = 64n;
const FOUR_GIB = 1n << 32n;

function refuse(message: string, hint?: string): never {
  throw new SsihvError("acpi_invalid", message, hint === undefined ? {} : { hint });
}

function hex(value: bigint): string {
  return `0x${value.toString(16)}`;
}

function isWhole(value: number, max: number): boolean {
  return Number.isInteger(value) && value >= 0 && value <= max;
}

function checkNode(node: number, nodes: number, what: string): void {
  if (!isWhole(node, nodes - 1)) {
    refuse(
      `${what} is on node ${node}, the distance matrix has ${nodes} node(s)`,
      "give distances for every node",
    );
  }
}

function checkDistances(distances: AcpiBoard["distances"]): void {
  if (distances.length === 0) refuse("the distance matrix is empty", "one node is [[10]]");
  distances.forEach((row, from) => {
    if (row.length !== distances.length) {
      refuse(
        `the distance matrix is not square: row ${from} has ${row.length} values, ` +
          `there are ${distances.length} rows`,
      );
    }
    row.forEach((distance, to) => {
      const least = from === to ? DISTANCE_LOCAL : DISTANCE_LOCAL + 1;
      const most = from === to ? DISTANCE_LOCAL : DISTANCE_MAX;
      if (!isWhole(distance, most) || distance < least) {
        refuse(
          `the distance from node ${from} to node ${to} is ${distance}`,
          from === to ? "a node's distance to itself is 10" : `use ${least} to ${most}`,
        );
      }
    });
  });
}

/** A second; and more than memory of any host gives. */
const LATENCY_MAX_NS = 1e9;
const BANDWIDTH_MAX_MBPS = 1e9;

/** Every node to every node, each value positive and below what any machine has. */
export function checkCosts(costs: MemoryCosts, nodes: number): void {
  const check = (matrix: MemoryCosts["latencyNs"], what: string, max: number) => {
    if (matrix.length !== nodes || matrix.some((row) => row.length !== nodes)) {
      refuse(`memory ${what}: not ${nodes} rows of ${nodes} values, one for each node`);
    }
    matrix.forEach((row, from) => {
      row.forEach((value, to) => {
        if (Number.isFinite(value) && value > 0 && value <= max) return;
        refuse(`memory ${what} from node ${from} to node ${to} is ${value}`, `use 1 to ${max}`);
      });
    });
  };
  check(costs.latencyNs, "latency, ns,", LATENCY_MAX_NS);
  check(costs.bandwidthMBps, "bandwidth, MB/s,", BANDWIDTH_MAX_MBPS);
}

function checkCpus(cpus: readonly AcpiCpu[], nodes: number): void {
  if (cpus.length === 0) refuse("the board has no CPUs", "give it at least the boot CPU");
  const apicIds = new Set<number>();
  const uids = new Set<number>();
  cpus.forEach(({ apicId, uid, node }, position) => {
    const what = `CPU ${position}`;
    if (!isWhole(apicId, ALL_PROCESSORS - 1)) refuse(`${what} has the APIC id ${apicId}`);
    // 0xFF is the xAPIC's broadcast id, whoever has it hears everything (SDM vol. 3A, 11.6.2.1).
    if (apicId === 0xff) refuse(`${what} has the APIC id 255, which means all CPUs to an xAPIC`);
    if (!isWhole(uid, ALL_PROCESSORS - 1)) refuse(`${what} has the UID ${uid}`);
    if (apicIds.has(apicId)) refuse(`two CPUs have the APIC id ${apicId}`);
    if (uids.has(uid)) refuse(`two CPUs have the UID ${uid}`);
    apicIds.add(apicId);
    uids.add(uid);
    checkNode(node, nodes, what);
  });
  // The DSDT names a CPU's device by three hex digits.
  if (cpus.length > 0x1000) refuse(`${cpus.length} CPUs: at most 4096 have names`);
}

function checkMemory(memory: readonly AcpiMemory[], nodes: number, hole: AcpiHardware["hole"]) {
  if (memory.length === 0) refuse("the board has no memory");
  for (const { base, size, node } of memory) {
    const what = `the memory range at ${hex(base)} of ${hex(size)} bytes`;
    if (base < 0n || size <= 0n) refuse(`${what} is empty or negative`);
    if (base + size > ADDRESS_END) refuse(`${what} ends above 52 bits`);
    if (base < hole[1] && base + size > hole[0]) {
      refuse(
        `${what} lies in the device hole ${hex(hole[0])} to ${hex(hole[1])}`,
        "split it: RAM goes on above the hole",
      );
    }
    checkNode(node, nodes, what);
  }
  const sorted = [...memory].sort((a, b) => (a.base < b.base ? -1 : 1));
  sorted.forEach((range, i) => {
    const next = sorted[i + 1];
    if (next && range.base + range.size > next.base) {
      refuse(`the memory ranges at ${hex(range.base)} and ${hex(next.base)} overlap`);
    }
  });
}

function checkPci(pci: AcpiPci, board: AcpiBoard, hole: AcpiHardware["hole"]): void {
  checkNode(pci.node, board.distances.length, "the PCI host bridge");
  if (!isWhole(pci.lastBus, 255)) refuse(`the last PCI bus is ${pci.lastBus}`, "use 0 to 255");
  for (const gsi of pci.interrupts) {
    if (!isWhole(gsi, 0xffff)) refuse(`a PCI interrupt goes to GSI ${gsi}`);
  }
  const { base, size } = pci.memory32;
  if (size <= 0n || base < hole[0] || base + size > hole[1]) {
    refuse(
      `the PCI window at ${hex(base)} of ${hex(size)} bytes is not inside the device hole ` +
        `${hex(hole[0])} to ${hex(hole[1])}`,
    );
  }
  if (pci.memory64) {
    const { base: high, size: bytes } = pci.memory64;
    if (bytes <= 0n || high < FOUR_GIB || high + bytes > ADDRESS_END) {
      refuse(`the 64-bit PCI window at ${hex(high)} of ${hex(bytes)} bytes is impossible`);
    }
    for (const range of board.memory) {
      if (high < range.base + range.size && high + bytes > range.base) {
        refuse(`the 64-bit PCI window at ${hex(high)} overlaps RAM at ${hex(range.base)}`);
      }
    }
  }
}

/** The namespace has one digit for each, and GSIs below 16 are ISA's. */
function checkVirtio(devices: readonly AcpiVirtio[], hole: AcpiHardware["hole"]): void {
  if (devices.length > 16) refuse(`${devices.length} virtio devices: at most 16 have names`);
  for (const { base, size, gsi } of devices) {
    const what = `the virtio device at ${hex(base)} of ${hex(size)} bytes`;
    if (size <= 0n || base < hole[0] || base + size > hole[1]) {
      refuse(`${what} is not inside the device hole ${hex(hole[0])} to ${hex(hole[1])}`);
    }
    if (!isWhole(gsi, 0xffff) || gsi < 16) {
      refuse(`${what} has GSI ${gsi}`, "use 16 or more: those below are edges of ISA devices");
    }
  }
}

/** Throws SsihvError "acpi_invalid" naming the first thing that is impossible. */
export function checkBoard(board: AcpiBoard): void {
  const hole = (board.hardware ?? HARDWARE).hole;
  if (board.base < 0n || board.base >= FOUR_GIB || board.base % TABLES_ALIGNMENT !== 0n) {
    refuse(
      `the tables cannot be placed at ${hex(board.base)}`,
      "choose a multiple of 64 below 4 GiB: FADT and RSDP hold 32-bit addresses",
    );
  }
  checkDistances(board.distances);
  checkCpus(board.cpus, board.distances.length);
  checkMemory(board.memory, board.distances.length, hole);
  if (board.pci) checkPci(board.pci, board, hole);
  checkVirtio(board.virtio ?? [], hole);
}
