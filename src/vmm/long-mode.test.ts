import { describe, expect, test } from "bun:test";
import { BOOT_STACK, bootTables, longModeRegisters } from "./long-mode.ts";

const registers = longModeRegisters({ rip: 0x100_0200n, rsi: 0x1_0000n, rsp: BOOT_STACK });

/** Little-endian u64 at a guest address, from the loaded tables. */
function read(gpa: bigint): bigint {
  for (const load of bootTables()) {
    if (!("bytes" in load)) continue;
    const at = gpa - load.gpa;
    if (at < 0n || at + 8n > BigInt(load.bytes.length)) continue;
    return new DataView(load.bytes.buffer, load.bytes.byteOffset).getBigUint64(Number(at), true);
  }
  throw new Error(`nothing at 0x${gpa.toString(16)}`);
}

const ADDRESS = 0x000f_ffff_ffff_f000n;

/** What a CPU's walk of the tables gives for a linear address; undefined = not present. */
function translate(linear: bigint): bigint | undefined {
  let table = registers.cr3;
  for (const shift of [39n, 30n, 21n]) {
    const entry = read(table + ((linear >> shift) & 0x1ffn) * 8n);
    if ((entry & 1n) === 0n) return undefined;
    expect(entry & 2n).toBe(2n);
    if (shift === 21n) {
      expect(entry & 0x80n).toBe(0x80n);
      return (entry & ADDRESS) + (linear & 0x1f_ffffn);
    }
    table = entry & ADDRESS;
  }
  return undefined;
}

describe("identity page tables", () => {
  test("map every 2 MiB of the first 4 GiB to itself and nothing above", () => {
    for (let address = 0n; address < 1n << 32n; address += 1n << 21n) {
      expect(translate(address + 0x1234n)).toBe(address + 0x1234n);
    }
    expect(translate(1n << 32n)).toBeUndefined();
    expect(translate(1n << 39n)).toBeUndefined();
  });
});

describe("registers", () => {
  test("are those of 64-bit mode: PG and PE, PAE, LME and LMA", () => {
    expect(registers.cr0 & 0x8000_0001n).toBe(0x8000_0001n);
    expect(registers.cr4 & 0x20n).toBe(0x20n);
    expect(registers.efer & 0x500n).toBe(0x500n);
    expect(registers.rflags).toBe(2n);
  });

  test("agree with the descriptors in the GDT", () => {
    for (const segment of [registers.cs, registers.ds, registers.ss, registers.tr]) {
      expect(segment.selector + 7).toBeLessThanOrEqual(registers.gdt.limit);
      const descriptor = read(registers.gdt.base + BigInt(segment.selector));
      const access = Number((descriptor >> 40n) & 0xffn);
      expect(access & 0xf).toBe(segment.type);
      expect((access >> 4) & 1).toBe(segment.s);
      expect((access >> 5) & 3).toBe(segment.dpl);
      expect(access >> 7).toBe(segment.present);
      const flags = Number((descriptor >> 52n) & 0xfn);
      expect([flags & 1, (flags >> 1) & 1, (flags >> 2) & 1, flags >> 3]).toEqual([
        segment.avl,
        segment.l,
        segment.db,
        segment.g,
      ]);
    }
    expect(registers.cs).toMatchObject({ selector: 0x10, l: 1, db: 0 });
    expect(registers.ds).toMatchObject({ selector: 0x18, l: 0, db: 1 });
  });
});
