// The tables as a guest's first look at them finds them: every pointer followed, every number read
// at its offset in the specification, by code that shares nothing with the encoder.

import { describe, expect, test } from "bun:test";
import type { AcpiBoard } from "./board.ts";
import { BOARDS, LARGE, ONE_NODE, TWO_NODES } from "./example.fixture.ts";
import { buildTables } from "./tables.ts";

/** Guest memory that holds only the tables. */
class Memory {
  readonly #blobs: { gpa: bigint; bytes: Uint8Array }[];

  constructor(board: AcpiBoard) {
    this.#blobs = buildTables(board).blobs;
  }

  bytes(gpa: bigint, size: number): Uint8Array {
    const blob = this.#blobs.find(
      (each) => gpa >= each.gpa && gpa + BigInt(size) <= each.gpa + BigInt(each.bytes.length),
    );
    if (blob === undefined) throw new Error(`nothing at 0x${gpa.toString(16)}`);
    const at = Number(gpa - blob.gpa);
    return blob.bytes.subarray(at, at + size);
  }

  uint(gpa: bigint, size: number): number {
    return Number(Buffer.from(this.bytes(gpa, size)).reverse().toString("hex").replace(/^/, "0x"));
  }

  /** A table's bytes at `gpa`, checked as an OS does. */
  table(gpa: bigint, signature: string): Uint8Array {
    const bytes = this.bytes(gpa, this.uint(gpa + 4n, 4));
    expect(Buffer.from(bytes.subarray(0, 4)).toString()).toBe(signature);
    expect(bytes.reduce((sum, byte) => (sum + byte) & 0xff, 0)).toBe(0);
    return bytes;
  }

  /** Follows RSDP and XSDT to `signature`. */
  find(signature: string): Uint8Array {
    const rsdp = this.bytes(0xe_0000n, 36);
    expect(Buffer.from(rsdp.subarray(0, 8)).toString()).toBe("RSD PTR ");
    const sum = (size: number) => rsdp.subarray(0, size).reduce((a, b) => (a + b) & 0xff, 0);
    expect([sum(20), sum(36)]).toEqual([0, 0]);
    const xsdt = BigInt(this.uint(0xe_0000n + 24n, 8));
    const length = this.table(xsdt, "XSDT").length;
    for (let at = 36; at < length; at += 8) {
      const gpa = BigInt(this.uint(xsdt + BigInt(at), 8));
      const name = Buffer.from(this.bytes(gpa, 4)).toString();
      if (name === signature) return this.table(gpa, signature);
    }
    throw new Error(`the XSDT does not list ${signature}`);
  }
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
}

/** Subtables from `start`: [type, bytes]. */
function subtables(table: Uint8Array, start: number): [number, DataView][] {
  const found: [number, DataView][] = [];
  for (let at = start; at < table.length; at += table[at + 1] ?? 0) {
    const entry = table.subarray(at, at + (table[at + 1] ?? 0));
    found.push([entry[0] ?? -1, view(entry)]);
  }
  return found;
}

describe.each(Object.entries(BOARDS))("%s", (_, board) => {
  const { rsdp, blobs } = buildTables(board);

  test("RSDP first; in order, aligned, apart", () => {
    expect(rsdp).toBe(board.base);
    expect(blobs[0]?.name).toBe("RSDP");
    let end = 0n;
    for (const { gpa, bytes } of blobs) {
      expect(gpa % 64n).toBe(0n);
      expect(gpa).toBeGreaterThanOrEqual(end);
      end = gpa + BigInt(bytes.length);
    }
  });

  test("every table is reached from the RSDP", () => {
    const memory = new Memory(board);
    for (const name of ["FACP", "APIC", "SRAT", "SLIT"]) {
      const found = memory.find(name);
      expect(blobs.find((blob) => blob.name === name)?.bytes).toEqual(found);
    }
    const fadt = view(memory.find("FACP"));
    const dsdt = BigInt(fadt.getUint32(40, true));
    memory.table(dsdt, "DSDT");
    expect(fadt.getBigUint64(140, true)).toBe(dsdt);
    const facs = BigInt(fadt.getUint32(36, true));
    expect(Buffer.from(memory.bytes(facs, 4)).toString()).toBe("FACS");
    expect(memory.uint(facs + 4n, 4)).toBe(64);
    // Two FACS addresses would be taken for two structures.
    expect(fadt.getBigUint64(132, true)).toBe(0n);
  });
});

test("a board that cannot be is refused before anything is laid out", () => {
  expect(() => buildTables({ ...ONE_NODE, cpus: [] })).toThrow(/no CPUs/);
});

test("the FADT tells the PM registers at both their places, and the reset register", () => {
  const bytes = new Memory(ONE_NODE).find("FACP");
  const fadt = view(bytes);
  const io = (at: number) => [
    ...bytes.subarray(at, at + 4),
    Number(fadt.getBigUint64(at + 4, true)),
  ];
  expect([bytes.length, bytes[8], bytes[131]]).toEqual([276, 6, 3]); // ACPI 6.3
  expect(fadt.getUint16(46, true)).toBe(9);
  expect([56, 64, 76].map((at) => fadt.getUint32(at, true))).toEqual([0x600, 0x604, 0x608]);
  expect([88, 89, 91].map((at) => bytes[at])).toEqual([4, 2, 4]);
  // [I/O space, bits, from bit, access size, port]
  expect(io(148)).toEqual([1, 32, 0, 2, 0x600]);
  expect(io(172)).toEqual([1, 16, 0, 2, 0x604]);
  expect(io(208)).toEqual([1, 32, 0, 3, 0x608]);
  expect(io(116)).toEqual([1, 8, 0, 1, 0xcf9]);
  expect(bytes[128]).toBe(6);
  // No SMI port: the guest must not wait for ACPI mode. No GPE blocks.
  expect([48, 80, 84].map((at) => fadt.getUint32(at, true))).toEqual([0, 0, 0]);
  const flags = fadt.getUint32(112, true);
  const has = (bit: number) => ((flags >> bit) & 1) === 1;
  // WBINVD, PROC_C1, no fixed buttons, TMR_VAL_EXT, RESET_REG_SUP; not hardware-reduced.
  expect([0, 2, 4, 5, 8, 10].every(has)).toBe(true);
  expect([1, 3, 18, 19, 20].some(has)).toBe(false);
  // A serial port, no i8042, no VGA, MSI allowed, a CMOS clock.
  expect(fadt.getUint16(109, true)).toBe(0b000101);
});

test("the FADT names the CMOS byte in which the clock keeps the century", async () => {
  const clock = await Bun.file(`${import.meta.dir}/../zig/devices/rtc.zig`).text();
  const [, index] = /const century = (0x[0-9a-f]+);/.exec(clock) ?? [];
  expect(new Memory(ONE_NODE).find("FACP")[108]).toBe(Number(index));
});

describe("MADT", () => {
  test("tells APIC ids below 255 in the old form, boot CPU first, and one IOAPIC", () => {
    const madt = new Memory(TWO_NODES).find("APIC");
    expect([view(madt).getUint32(36, true), view(madt).getUint32(40, true)]).toEqual([
      0xfee0_0000, 0,
    ]);
    const entries = subtables(madt, 44);
    expect(entries.map(([type]) => type)).toEqual([0, 0, 0, 0, 1, 2, 2, 4]);
    const cpus = entries.filter(([type]) => type === 0).map(([, e]) => e);
    expect(cpus.map((e) => [e.getUint8(2), e.getUint8(3), e.getUint32(4, true)])).toEqual([
      [0, 0, 1],
      [1, 1, 1],
      [2, 64, 1],
      [3, 65, 1],
    ]);
    const [, ioapic] = entries[4] ?? [];
    expect([ioapic?.getUint32(4, true), ioapic?.getUint32(8, true)]).toEqual([0xfec0_0000, 0]);
    const overrides = entries.filter(([type]) => type === 2).map(([, e]) => e);
    // [source, GSI, flags]: the PIT at pin 2; the SCI level, active high.
    expect(
      overrides.map((e) => [e.getUint8(3), e.getUint32(4, true), e.getUint16(8, true)]),
    ).toEqual([
      [0, 2, 0],
      [9, 9, 0xd],
    ]);
    const [, nmi] = entries[7] ?? [];
    expect([nmi?.getUint8(2), nmi?.getUint8(5)]).toEqual([0xff, 1]);
  });

  test("tells the others as x2APIC, with an NMI entry of that form", () => {
    const entries = subtables(new Memory(LARGE).find("APIC"), 44);
    expect(entries.map(([type]) => type)).toEqual([0, 0, 9, 9, 9, 1, 2, 2, 4, 10]);
    const cpus = entries.filter(([type]) => type === 9).map(([, e]) => e);
    expect(
      cpus.map((e) => [e.getUint32(4, true), e.getUint32(8, true), e.getUint32(12, true)]),
    ).toEqual([
      [256, 1, 2],
      [3, 1, 255],
      [70_000, 1, 70_000],
    ]);
    const [, nmi] = entries[9] ?? [];
    expect([nmi?.getUint32(4, true), nmi?.getUint8(8)]).toEqual([0xffff_ffff, 1]);
  });

  test("leaves the old NMI entry out when no CPU has the old form", () => {
    const board = { ...LARGE, cpus: [{ apicId: 256, uid: 0, node: 0 }] };
    const types = subtables(new Memory(board).find("APIC"), 44).map(([type]) => type);
    expect(types).toEqual([9, 1, 2, 2, 10]);
  });
});

describe("SRAT", () => {
  test("tells each CPU in its MADT form, and RAM by node in address order", () => {
    const srat = new Memory({ ...LARGE, memory: [...LARGE.memory].reverse() }).find("SRAT");
    expect(view(srat).getUint32(36, true)).toBe(1);
    const entries = subtables(srat, 48);
    expect(entries.map(([type]) => type)).toEqual([0, 0, 2, 2, 2, 1, 1, 1, 1]);
    const old = entries.filter(([type]) => type === 0).map(([, e]) => e);
    expect(
      old.map((e) => [e.byteLength, e.getUint8(2), e.getUint8(3), e.getUint32(4, true)]),
    ).toEqual([
      [16, 0, 0, 1],
      [16, 0, 254, 1],
    ]);
    const wide = entries.filter(([type]) => type === 2).map(([, e]) => e);
    expect(wide.map((e) => [4, 8, 12].map((at) => e.getUint32(at, true)))).toEqual([
      [1, 256, 1],
      [0, 3, 1],
      [1, 70_000, 1],
    ]);
    const ram = entries.filter(([type]) => type === 1).map(([, e]) => e);
    expect(ram.every((e) => e.byteLength === 40 && e.getUint32(28, true) === 1)).toBe(true);
    expect(
      ram.map((e) => ({
        base: e.getBigUint64(8, true),
        size: e.getBigUint64(16, true),
        node: e.getUint32(2, true),
      })),
    ).toEqual([...LARGE.memory]);
  });

  test("carries nodes above 255 in both halves of the old form", () => {
    const nodes = 300;
    const distances = Array.from({ length: nodes }, (_, i) =>
      Array.from({ length: nodes }, (_, j) => (i === j ? 10 : 20)),
    );
    const board = { ...ONE_NODE, distances, cpus: [{ apicId: 5, uid: 0, node: 299 }] };
    const [first] = subtables(new Memory(board).find("SRAT"), 48);
    expect(first?.[1].getUint8(2)).toBe(299 & 0xff);
    expect([9, 10, 11].map((at) => first?.[1].getUint8(at))).toEqual([1, 0, 0]);
  });
});

test("the SLIT is the distance matrix, row by row", () => {
  const slit = new Memory(LARGE).find("SLIT");
  expect(view(slit).getBigUint64(36, true)).toBe(2n);
  expect([...slit.subarray(44)]).toEqual([10, 12, 254, 10]);
});

describe("HMAT", () => {
  /** Structures of the table from `at` on: type and bytes. */
  function structures(hmat: Uint8Array): [number, DataView][] {
    const found: [number, DataView][] = [];
    const all = view(hmat);
    for (let at = 40; at < hmat.length; at += all.getUint32(at + 4, true)) {
      const length = all.getUint32(at + 4, true);
      found.push([
        all.getUint16(at, true),
        new DataView(hmat.buffer, hmat.byteOffset + at, length),
      ]);
    }
    return found;
  }

  test("tells whose memory is whose, then latencies, then bandwidths, in units that fit", () => {
    const hmat = new Memory(LARGE).find("HMAT");
    expect(hmat[8]).toBe(2);
    const all = structures(hmat);
    expect(all.map(([type]) => type)).toEqual([0, 0, 1, 1]);
    expect(all.slice(0, 2).map(([, e]) => [8, 12, 16].map((at) => e.getUint32(at, true)))).toEqual([
      [1, 0, 0],
      [1, 1, 1],
    ]);
    const [latency, bandwidth] = all.slice(2).map(([, e]) => e);
    const matrix = (e: DataView | undefined) =>
      [48, 50, 52, 54].map(
        (at) => (e?.getUint16(at, true) ?? 0) * Number(e?.getBigUint64(24, true)),
      );
    expect([latency?.getUint8(9), bandwidth?.getUint8(9)]).toEqual([0, 3]);
    expect([32, 36, 40, 44].map((at) => latency?.getUint32(at, true))).toEqual([0, 1, 0, 1]);
    // 1.4 ms in 16 bits: the unit is 22 ns, which is how exact the others are.
    expect(latency?.getBigUint64(24, true)).toBe(22_000n);
    const wanted = LARGE.costs?.latencyNs.flat() ?? [];
    const off = matrix(latency).map((ps, i) => Math.abs(ps / 1000 - (wanted[i] ?? 0)));
    expect(Math.max(...off)).toBeLessThanOrEqual(11);
    expect(bandwidth?.getBigUint64(24, true)).toBe(2n);
    expect(matrix(bandwidth)).toEqual([110_000, 1150, 42, 98_000]);
  });

  test("is there only with costs, which must be those of all nodes", () => {
    expect(buildTables(TWO_NODES).blobs.map(({ name }) => name)).not.toContain("HMAT");
    const costs = LARGE.costs ?? { latencyNs: [], bandwidthMBps: [] };
    const refused = (change: Partial<typeof costs>) => () =>
      buildTables({ ...LARGE, costs: { ...costs, ...change } });
    expect(refused({ latencyNs: [[95]] })).toThrow("not 2 rows of 2 values");
    expect(
      refused({
        bandwidthMBps: [
          [1, 0],
          [1, 1],
        ],
      }),
    ).toThrow("memory bandwidth, MB/s, from node 0 to node 1 is 0");
  });
});
