// Boards that several tests build tables for: the smallest VM, a span of two nodes whose RAM
// passes the PCI hole, and one with PCI and APIC ids on both sides of 255.

import type { AcpiBoard } from "./board.ts";

const MIB = 1n << 20n;
const GIB = 1n << 30n;
/** RAM below 1 MiB, as the memory map tells it. */
const LOW = { base: 0n, size: 0xa_0000n, node: 0 };

export const ONE_NODE: AcpiBoard = {
  base: 0xe_0000n,
  cpus: [{ apicId: 0, uid: 0, node: 0 }],
  memory: [LOW, { base: MIB, size: 511n * MIB, node: 0 }],
  distances: [[10]],
};

export const TWO_NODES: AcpiBoard = {
  base: 0xe_0000n,
  cpus: [
    { apicId: 0, uid: 0, node: 0 },
    { apicId: 1, uid: 1, node: 0 },
    { apicId: 64, uid: 2, node: 1 },
    { apicId: 65, uid: 3, node: 1 },
  ],
  memory: [
    LOW,
    { base: MIB, size: 2n * GIB - MIB, node: 0 },
    { base: 2n * GIB, size: GIB, node: 1 },
    { base: 4n * GIB, size: GIB, node: 1 },
  ],
  distances: [
    [10, 20],
    [20, 10],
  ],
};

export const LARGE: AcpiBoard = {
  ...TWO_NODES,
  cpus: [
    { apicId: 0, uid: 0, node: 0 },
    { apicId: 254, uid: 1, node: 0 },
    { apicId: 256, uid: 2, node: 1 },
    { apicId: 3, uid: 255, node: 0 },
    { apicId: 70_000, uid: 70_000, node: 1 },
  ],
  distances: [
    [10, 12],
    [254, 10],
  ],
  costs: {
    latencyNs: [
      [95, 41_000],
      [1_400_000, 101],
    ],
    bandwidthMBps: [
      [110_000, 1150],
      [42, 98_000],
    ],
  },
  pci: {
    node: 1,
    lastBus: 255,
    memory32: { base: 0xc000_0000n, size: 0x2000_0000n },
    memory64: { base: 0x80_0000_0000n, size: 16n * GIB },
    interrupts: [16, 17, 18, 19],
  },
  virtio: [
    { base: 0xfea0_0000n, size: 0x200n, gsi: 20 },
    { base: 0xfea0_0200n, size: 0x200n, gsi: 21 },
  ],
};

export const BOARDS: Readonly<Record<string, AcpiBoard>> = {
  "one-node": ONE_NODE,
  "two-nodes": TWO_NODES,
  large: LARGE,
};
