import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  ACPI_BASE,
  BLOCK_BYTES,
  layoutMemory,
  type MemoryMap,
  numaRanges,
  PCI_HOLE_BASE,
  PCI_HOLE_END,
  splitMemory,
} from "./memory-map.ts";

const MIB = 1n << 20n;
const GIB = 1n << 30n;

function map(...sizes: bigint[]): MemoryMap {
  return layoutMemory(sizes.map((memoryBytes, id) => ({ id, vcpus: 1, memoryBytes })));
}

describe("layoutMemory", () => {
  test("a small VM is one range with the PC's legacy hole in its e820", () => {
    const { ram, e820, bootEnd, end } = map(512n * MIB);
    expect(ram).toEqual([{ gpa: 0n, size: 512n * MIB, node: 0 }]);
    expect(e820).toEqual([
      { base: 0n, size: 0x9fc00n, kind: "ram" },
      { base: 0x9fc00n, size: 0x60400n, kind: "reserved" },
      { base: 0x10_0000n, size: 511n * MIB, kind: "ram" },
      { base: 0xfec0_0000n, size: 0x1000n, kind: "reserved" },
      { base: 0xfee0_0000n, size: 0x1000n, kind: "reserved" },
    ]);
    expect(bootEnd).toBe(512n * MIB);
    expect(end).toBe(512n * MIB);
  });

  test("the PCI hole cuts a node's share in two", () => {
    const { ram, bootEnd, end } = map(2n * GIB, 2n * GIB);
    expect(ram).toEqual([
      { gpa: 0n, size: 2n * GIB, node: 0 },
      { gpa: 2n * GIB, size: GIB, node: 1 },
      { gpa: 4n * GIB, size: GIB, node: 1 },
    ]);
    expect(bootEnd).toBe(2n * GIB);
    expect(end).toBe(5n * GIB);
  });

  test("a share that ends at the hole does not leave an empty range", () => {
    const { ram } = map(3n * GIB, GIB);
    expect(ram).toEqual([
      { gpa: 0n, size: 3n * GIB, node: 0 },
      { gpa: 4n * GIB, size: GIB, node: 1 },
    ]);
  });

  test("any shares: ranges are disjoint, aligned, outside the hole and add up; e820 agrees", () => {
    const share = fc.bigInt({ min: 8n, max: 3000n }).map((blocks) => blocks * BLOCK_BYTES);
    fc.assert(
      fc.property(fc.array(share, { minLength: 1, maxLength: 8 }), (sizes) => {
        const { ram, e820, end } = map(...sizes);
        let at = 0n;
        for (const range of ram) {
          expect(range.gpa).toBeGreaterThanOrEqual(at);
          expect(range.gpa % BLOCK_BYTES).toBe(0n);
          expect(range.size % BLOCK_BYTES).toBe(0n);
          at = range.gpa + range.size;
          expect(at <= PCI_HOLE_BASE || range.gpa >= PCI_HOLE_END).toBe(true);
        }
        expect(end).toBe(at);
        sizes.forEach((size, node) => {
          const given = ram.filter((range) => range.node === node);
          expect(given.reduce((sum, range) => sum + range.size, 0n)).toBe(size);
        });
        e820.reduce((last, entry) => {
          expect(entry.base).toBeGreaterThanOrEqual(last);
          return entry.base + entry.size;
        }, 0n);
        const told = e820.filter((entry) => entry.kind === "ram");
        const total = sizes.reduce((sum, size) => sum + size, 0n);
        expect(told.reduce((sum, entry) => sum + entry.size, 0n)).toBe(total - 0x60400n);
      }),
    );
  });

  test("the ACPI area is reserved and on the BIOS scan range", () => {
    const { acpiBase, acpiBytes, e820 } = map(64n * MIB);
    expect(acpiBase).toBe(ACPI_BASE);
    const hole = e820.find((entry) => entry.kind === "reserved");
    expect(hole && hole.base <= acpiBase).toBe(true);
    expect(hole && hole.base + hole.size >= acpiBase + acpiBytes).toBe(true);
  });

  test("shares that cannot work are refused with what to do", () => {
    expect(() => map(8n * MIB)).toThrow(/node 0 has 8 MiB of RAM, it needs 16 MiB/);
    expect(() => map(64n * MIB, 2n * MIB)).toThrow(/node 1 has 2 MiB of RAM, it needs 4 MiB/);
    expect(() => map(65n * MIB)).toThrow(/node 0 has 65 MiB of RAM, not a multiple of 2 MiB/);
    expect(() => map(64n * MIB + 1n)).toThrow(/67108865 bytes of RAM, not a multiple/);
    expect(() => map(-GIB)).toThrow(/node 0 has -1 GiB/);
  });
});

describe("splitMemory", () => {
  test("gives whole blocks, the lower nodes what is over", () => {
    expect(splitMemory(GIB, 2)).toEqual([512n * MIB, 512n * MIB]);
    expect(splitMemory(102n * MIB, 2)).toEqual([52n * MIB, 50n * MIB]);
  });

  test("refuses odd totals, too little and impossible node counts", () => {
    expect(() => splitMemory(GIB + 1n, 2)).toThrow(/not a multiple of 2 MiB/);
    expect(() => splitMemory(16n * MIB, 2)).toThrow(/over 2 node\(s\), 32 MiB is needed/);
    expect(() => splitMemory(GIB, 0)).toThrow(/0 nodes/);
    expect(() => splitMemory(GIB, 9)).toThrow(/9 nodes/);
  });
});

test("the SRAT's ranges are RAM without the legacy hole", () => {
  expect(numaRanges(map(64n * MIB, 32n * MIB))).toEqual([
    { base: 0n, size: 0xa0000n, node: 0 },
    { base: 0x10_0000n, size: 63n * MIB, node: 0 },
    { base: 64n * MIB, size: 32n * MIB, node: 1 },
  ]);
});
