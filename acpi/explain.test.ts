import { describe, expect, test } from "bun:test";
import { checksum } from "./encoder.ts";
import { BOARDS, LARGE, ONE_NODE, TWO_NODES } from "./example.fixture.ts";
import { explainTable } from "./explain.ts";
import { buildTables } from "./tables.ts";

function table(name: string, board = TWO_NODES): Uint8Array {
  const blob = buildTables(board).blobs.find((each) => each.name === name);
  if (blob === undefined) throw new Error(`no ${name}`);
  return blob.bytes;
}

/** `bytes` with a byte changed and the checksum set right again. */
function changed(bytes: Uint8Array, at: number, value: number): Uint8Array {
  const copy = bytes.slice();
  copy[at] = value;
  copy[9] = ((copy[9] ?? 0) + checksum(copy)) & 0xff;
  return copy;
}

/** The FADT cut to `length` bytes, as older versions are. */
function oldFadt(length: number): Uint8Array {
  return changed(changed(table("FACP").slice(0, length), 4, length), 5, 0);
}

test.each(Object.entries(BOARDS))("%s: nothing odd is found in our own tables", (_, board) => {
  for (const { bytes } of buildTables(board).blobs) {
    const text = explainTable(bytes);
    expect(text).not.toMatch(/WRONG|NOT ZERO|reserved and not|not described|not decoded|cut/);
    // Every offset that begins a line lies in the table, and they only grow.
    const offsets = [...text.matchAll(/^ *0x([0-9a-f]{4,})/gm)].map(([, hex]) =>
      Number(`0x${hex}`),
    );
    expect(offsets.length).toBeGreaterThan(8);
    expect(offsets.every((at) => at < bytes.length)).toBe(true);
    expect(offsets).toEqual([...offsets].sort((a, b) => a - b));
  }
});

describe("values and meanings", () => {
  test("FADT: flags by name, registers in words", () => {
    const text = explainTable(table("FACP"));
    expect(text).toStartWith("FACP: Fixed ACPI description, 276 bytes, checksum good\n");
    expect(text).toContain("bit 10  RESET_REG_SUP: the reset register may be used");
    expect(text).toContain("resetRegister = I/O port 0xcf9, 8 bits, by byte");
    expect(text).toContain("0x0038  00 06 00 00              pm1aEventBlock = 0x600");
    expect(text).toContain("minorVersion = 3: 6.3");
    expect(text).toContain('hypervisorVendor = "SSIHV"');
    expect(text).not.toContain("HW_REDUCED_ACPI");
  });

  test("MADT and SRAT: entries by kind", () => {
    const madt = explainTable(table("APIC", LARGE));
    expect(madt).toContain("0x002c  Processor local APIC: type 0, 8 bytes");
    expect(madt).toContain("x2apicId = 0x11170");
    expect(madt).toContain("polarity active high, trigger level");
    expect(madt).toContain("uid = 0xffffffff: all processors");
    const srat = explainTable(table("SRAT", LARGE));
    expect(srat).toContain("Memory affinity: type 1, 40 bytes");
    expect(srat).toContain("base = 0x100000000");
  });

  test("SLIT: a row per node; XSDT: the addresses", () => {
    expect(explainTable(table("SLIT", LARGE))).toContain("from node   1:  254  10");
    const { blobs } = buildTables(ONE_NODE);
    const xsdt = explainTable(table("XSDT", ONE_NODE));
    const listed = [...xsdt.matchAll(/table at (0x[0-9a-f]+)/g)].map(([, hex]) => BigInt(hex ?? 0));
    const wanted = ["FACP", "APIC", "SRAT", "SLIT"];
    expect(listed).toEqual(blobs.filter(({ name }) => wanted.includes(name)).map(({ gpa }) => gpa));
  });

  test("HMAT: attributes, and matrices in words", () => {
    const text = explainTable(table("HMAT", LARGE));
    expect(text).toContain("INITIATOR_VALID");
    expect(text).toContain("dataType = 0: access latency, picoseconds");
    expect(text).toContain("from node 0: 110000 to 0, 1150 to 1");
  });

  test("RSDP and FACS, which have no common header", () => {
    expect(explainTable(table("RSDP"))).toContain("RSDP, all of it: checksum good");
    expect(explainTable(table("FACS"))).toContain("version = 2");
  });

  test("DSDT: an outline with ids and resources", () => {
    const text = explainTable(table("DSDT", LARGE));
    expect(text).toContain("_S5_ = Package of 4 {0, 0, 0, 0}");
    expect(text).toContain("    Device COM1\n");
    expect(text).toContain("_HID = EISA id PNP0501");
    expect(text).toContain("I/O ports at 0x3F8, 8 of them");
    expect(text).toContain("IRQ 4");
    expect(text).toContain("memory 0x8000000000 to 0x83FFFFFFFF, 0x400000000 in all, passed on");
    expect(text).toContain("bus numbers 0x0 to 0xFF");
    expect(text).toMatch(/_PRT = Package of 128 \{/);
  });
});

describe("foreign tables", () => {
  test("a wrong checksum is told, the rest still explained", () => {
    const bytes = table("SLIT").slice();
    bytes[9] = ((bytes[9] ?? 0) + 5) & 0xff;
    const text = explainTable(bytes);
    expect(text).toContain("CHECKSUM WRONG (the bytes sum to 5, not 0)");
    expect(text).toContain("from node   0:");
  });

  test("an unknown table shows header and bytes", () => {
    const bytes = changed(table("SLIT"), 0, "X".charCodeAt(0));
    const text = explainTable(bytes);
    expect(text).toContain("XLIT, 48 bytes, checksum good");
    expect(text).toContain("0x0024  02 00 00 00 00 00 00 00 0a 14 14 0a");
  });

  test("an older FADT ends early", () => {
    const text = explainTable(changed(oldFadt(116), 8, 1));
    expect(text).toContain('(an older version: it ends before "resetRegister")');
    expect(text).toContain("116 bytes, checksum good");
  });

  test("an unknown MADT entry is shown as bytes", () => {
    const text = explainTable(changed(table("APIC"), 44, 0x7f));
    expect(text).toContain("0x002c  not described here: type 127, 8 bytes");
    expect(text).toContain("  0x002e  00 00 01 00 00 00");
  });

  test("reserved bits and bytes that are not zero are told", () => {
    expect(explainTable(changed(table("FACP"), 115, 0x80))).toContain(
      "bits 0x80000000 are reserved and not zero",
    );
    expect(explainTable(changed(table("FACP"), 44, 1))).toContain("reserved = NOT ZERO");
  });

  test("text cannot drive a terminal", () => {
    const text = explainTable(changed(table("FACP"), 10, 0x1b));
    expect(text).toContain('oemId = "\\x1bSIHV "');
    expect(text).not.toContain("\x1b");
  });
});

describe("what is no table is refused", () => {
  test.each([
    ["nothing", new Uint8Array(), /is empty/],
    ["a short file", Uint8Array.of(65, 80, 73, 67), /at least 36 bytes, this has 4/],
    ["text", new TextEncoder().encode("root:x:0:0:root:/root:/bin/bash\n".repeat(4)), /signature/],
    ["a cut table", table("FACP").slice(0, 100), /says it has 276 bytes, 100 were given/],
    ["a length below the header", changed(table("SLIT"), 4, 35), /says it has 35 bytes/],
    ["an entry of length 0", changed(table("APIC"), 45, 0), /offset 0x2c says it has 0 byte/],
    [
      "an entry past the end",
      changed(table("APIC"), 45, 200),
      /has 200 bytes, the table has 70 left/,
    ],
    ["more localities than distances", changed(table("SLIT"), 36, 3), /3 localities need 9/],
    ["a huge locality count", changed(table("SLIT"), 43, 0x80), /localities need/],
    [
      "half a pointer",
      changed(table("XSDT").slice(0, 64), 4, 64),
      /the last pointer is cut: 4 of 8/,
    ],
    ["a cut structure", changed(table("HMAT", LARGE), 44, 200), /says it has 200 bytes/],
    ["an empty structure", changed(table("HMAT", LARGE), 44, 0), /says it has 0 bytes/],
    ["more nodes than entries", changed(table("HMAT", LARGE), 132, 9), /9 initiators/],
    ["a short RSDP", table("RSDP").slice(0, 30), /has 36 bytes, this has 30/],
    ["half a field", changed(oldFadt(118), 8, 1), /ends at 118, in the middle of "resetRegister"/],
  ])("%s", (_, bytes, message) => {
    expect(() => explainTable(bytes)).toThrow(message);
  });
});
