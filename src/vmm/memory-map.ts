// Where guest RAM lies: every node's share as one range (two when the PCI hole cuts it), and the
// e820 map that the guest is told. Invariants: ranges are whole 2 MiB blocks, in address order,
// never overlap and never touch the PCI hole, so a 2 MiB block always has one home node.
// The ACPI tables lie in 0xE0000-0xFFFFF: reserved there, and found by guests that scan for the
// RSDP.

import { SsihvError } from "../base/errors.ts";
import type { RamRange } from "./records.ts";
import { checkNodes, NODES_MAX, type NodeShape } from "./topology.ts";

const KIB = 1024n;
const MIB = 1024n * KIB;
const GIB = 1024n * MIB;

/** Every node's share is a multiple of this. */
export const BLOCK_BYTES = 2n * MIB;
/** PCI and APIC addresses live from here to 4 GiB. */
export const PCI_HOLE_BASE = 0xc000_0000n;
export const PCI_HOLE_END = 0x1_0000_0000n;
/** Real-mode data below the extended BIOS data area; above it the legacy hole up to 1 MiB. */
const EBDA_BASE = 0x9_fc00n;
export const LEGACY_HOLE_BASE = 0xa_0000n;
export const LEGACY_HOLE_END = 0x10_0000n;
/** RSDP and tables: the BIOS read-only space an OS scans for the RSDP (ACPI 6.5, 5.2.5.1). */
export const ACPI_BASE = 0xe_0000n;
export const ACPI_BYTES = LEGACY_HOLE_END - ACPI_BASE;
/** Below this no loader, page tables and zero page fit beside a kernel. */
const NODE0_BYTES_MIN = 16n * MIB;
/** Linux ignores a NUMA node with less than 4 MiB (arch/x86 NODE_MIN_SIZE). */
const NODE_BYTES_MIN = 4n * MIB;

export type E820Kind = "ram" | "reserved" | "acpi" | "nvs";

export interface E820Entry {
  base: bigint;
  size: bigint;
  kind: E820Kind;
}

export interface MemoryMap {
  ram: RamRange[];
  e820: E820Entry[];
  acpiBase: bigint;
  acpiBytes: bigint;
  /** End of node 0's RAM below the PCI hole: a loader puts nothing into another node's pages. */
  bootEnd: bigint;
  /** One past the last byte of RAM: the guest's physical address width must cover it. */
  end: bigint;
}

function formatBytes(bytes: bigint): string {
  if (bytes !== 0n && bytes % GIB === 0n) return `${bytes / GIB} GiB`;
  if (bytes !== 0n && bytes % MIB === 0n) return `${bytes / MIB} MiB`;
  if (bytes !== 0n && bytes % KIB === 0n) return `${bytes / KIB} KiB`;
  return `${bytes} bytes`;
}

function checkShare(node: NodeShape): void {
  const least = node.id === 0 ? NODE0_BYTES_MIN : NODE_BYTES_MIN;
  if (node.memoryBytes < least) {
    throw new SsihvError(
      "memory_insufficient",
      `node ${node.id} has ${formatBytes(node.memoryBytes)} of RAM, it needs ${formatBytes(least)}`,
      { hint: "give the VM more memory or spread it over fewer nodes" },
    );
  }
  if (node.memoryBytes % BLOCK_BYTES !== 0n) {
    throw new SsihvError(
      "topology_invalid",
      `node ${node.id} has ${formatBytes(node.memoryBytes)} of RAM, not a multiple of 2 MiB`,
      { hint: `round it to ${formatBytes((node.memoryBytes / BLOCK_BYTES) * BLOCK_BYTES)}` },
    );
  }
}

/** Address ranges of RAM, each with its home node, in address order: node 0 lowest. */
function layRanges(nodes: readonly NodeShape[]): RamRange[] {
  const ram: RamRange[] = [];
  let at = 0n;
  for (const node of nodes) {
    let left = node.memoryBytes;
    while (left > 0n) {
      if (at === PCI_HOLE_BASE) at = PCI_HOLE_END;
      const room = at < PCI_HOLE_BASE ? PCI_HOLE_BASE - at : left;
      const size = left < room ? left : room;
      ram.push({ gpa: at, size, node: node.id });
      at += size;
      left -= size;
    }
  }
  return ram;
}

/** Map of a PC with that RAM; entries in address order, neighbouring RAM merged. */
function layE820(ram: readonly RamRange[]): E820Entry[] {
  const entries: E820Entry[] = [
    { base: 0n, size: EBDA_BASE, kind: "ram" },
    { base: EBDA_BASE, size: LEGACY_HOLE_END - EBDA_BASE, kind: "reserved" },
  ];
  for (const range of ram) {
    const base = range.gpa === 0n ? LEGACY_HOLE_END : range.gpa;
    const end = range.gpa + range.size;
    const last = entries[entries.length - 1];
    if (last?.kind === "ram" && last.base + last.size === base) last.size = end - last.base;
    else entries.push({ base, size: end - base, kind: "ram" });
  }
  // The IOAPIC and LAPIC pages: told as taken so that no PCI window is laid over them.
  entries.push({ base: 0xfec0_0000n, size: 0x1000n, kind: "reserved" });
  entries.push({ base: 0xfee0_0000n, size: 0x1000n, kind: "reserved" });
  return entries.sort((a, b) => (a.base < b.base ? -1 : 1));
}

export function layoutMemory(nodes: readonly NodeShape[]): MemoryMap {
  checkNodes(nodes);
  for (const node of nodes) checkShare(node);
  const ram = layRanges(nodes);
  const last = ram[ram.length - 1];
  return {
    ram,
    e820: layE820(ram),
    acpiBase: ACPI_BASE,
    acpiBytes: ACPI_BYTES,
    bootEnd: ram[0]?.size ?? 0n,
    end: last ? last.gpa + last.size : 0n,
  };
}

/** Shares of `total` bytes for `nodes` nodes: whole blocks, the lower nodes get what is over. */
export function splitMemory(total: bigint, nodes: number): bigint[] {
  if (!Number.isInteger(nodes) || nodes < 1 || nodes > NODES_MAX) {
    throw new SsihvError("topology_invalid", `${nodes} nodes: 1 to ${NODES_MAX} are possible`);
  }
  if (total % BLOCK_BYTES !== 0n) {
    throw new SsihvError(
      "topology_invalid",
      `${formatBytes(total)} of memory is not a multiple of 2 MiB`,
      { hint: `round it to ${formatBytes((total / BLOCK_BYTES) * BLOCK_BYTES)}` },
    );
  }
  const count = BigInt(nodes);
  const least = NODE0_BYTES_MIN * count;
  if (total < least) {
    throw new SsihvError(
      "memory_insufficient",
      `${formatBytes(total)} of memory over ${nodes} node(s), ${formatBytes(least)} is needed`,
      { hint: "ask for more memory or fewer nodes" },
    );
  }
  const blocks = total / BLOCK_BYTES;
  return Array.from(
    { length: nodes },
    (_, node) => (blocks / count + (BigInt(node) < blocks % count ? 1n : 0n)) * BLOCK_BYTES,
  );
}

/** RAM as the SRAT tells it: without the legacy hole. */
export function numaRanges(map: MemoryMap): { base: bigint; size: bigint; node: number }[] {
  return map.ram.flatMap(({ gpa, size, node }) =>
    gpa === 0n
      ? [
          { base: 0n, size: LEGACY_HOLE_BASE, node },
          { base: LEGACY_HOLE_END, size: size - LEGACY_HOLE_END, node },
        ]
      : [{ base: gpa, size, node }],
  );
}
