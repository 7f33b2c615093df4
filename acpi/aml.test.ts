import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  ACCESS,
  arg,
  buffer,
  device,
  eisaId,
  equal,
  field,
  integer,
  list,
  local,
  method,
  name,
  namePath,
  notify,
  opRegion,
  pkgLength,
  REGION,
  returns,
  scope,
  store,
  string,
  when,
} from "./aml.ts";

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString("hex");

/** An independent reader of PkgLength, after the text of ACPI 6.3, 20.2.4. */
function readPkgLength(bytes: Uint8Array): { total: number; size: number } {
  const lead = bytes[0] ?? 0;
  const follow = lead >> 6;
  if (follow === 0) return { total: lead & 0b11_1111, size: 1 };
  let total = lead & 0b1111;
  for (let i = 1; i <= follow; i++) total |= (bytes[i] ?? 0) << (4 + 8 * (i - 1));
  return { total, size: 1 + follow };
}

function readInteger(bytes: Uint8Array): bigint {
  const sizes: Record<number, number> = { 10: 1, 11: 2, 12: 4, 14: 8 };
  const opcode = bytes[0] ?? -1;
  if (opcode === 0x00 || opcode === 0x01) return BigInt(opcode);
  if (opcode === 0xff) return (1n << 64n) - 1n;
  const size = sizes[opcode] ?? Number.NaN;
  expect(bytes.length).toBe(1 + size);
  return bytes.subarray(1).reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n);
}

describe("PkgLength", () => {
  const edges = [0, 1, 62, 63, 64, 4093, 4094, 1_048_572, 1_048_573, 268_435_451];

  test("counts itself, in the fewest bytes, over the whole range", () => {
    const payloads = fc.oneof(
      fc.integer({ min: 0, max: 268_435_451 }),
      fc.integer({ min: 0, max: 5000 }),
      fc.constantFrom(...edges),
    );
    fc.assert(
      fc.property(payloads, (payload) => {
        const coded = pkgLength(payload);
        expect(readPkgLength(coded)).toEqual({ total: payload + coded.length, size: coded.length });
        // One byte fewer could not have said it.
        const most = [0, 0x3f, 0xfff, 0xf_ffff][coded.length - 1] ?? 0;
        expect(payload + coded.length - 1).toBeGreaterThan(coded.length === 1 ? -1 : most);
        // Bits 5:4 of the first of several bytes are reserved.
        if (coded.length > 1) expect((coded[0] ?? 0) & 0x30).toBe(0);
      }),
      { numRuns: 500 },
    );
  });

  test("changes size at the edges", () => {
    expect(edges.map((payload) => pkgLength(payload).length)).toEqual([
      1, 1, 1, 2, 2, 2, 3, 3, 4, 4,
    ]);
    expect(() => pkgLength(268_435_452)).toThrow(/cannot hold/);
    expect(() => pkgLength(-1)).toThrow(/cannot hold/);
  });
});

describe("integers", () => {
  test("read back, in the fewest bytes", () => {
    const bits = fc.integer({ min: 0, max: 64 });
    const values = fc
      .tuple(fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }), bits)
      .map(([value, shift]) => value >> BigInt(shift));
    fc.assert(
      fc.property(values, (value) => {
        const coded = integer(value);
        expect(readInteger(coded)).toBe(value);
        const shorter = [1n, 0xffn, 0xffffn, 0xffff_ffffn];
        const size = coded.length - 1;
        if (size > 0) expect(value).toBeGreaterThan(shorter[Math.log2(size)] ?? 0n);
      }),
      { numRuns: 500 },
    );
  });

  test("have their own codes for 0, 1 and all ones", () => {
    expect([integer(0), integer(1), integer((1n << 64n) - 1n)].map(hex)).toEqual([
      "00",
      "01",
      "ff",
    ]);
    expect(hex(integer(0xffff_ffff))).toBe("0cffffffff");
    expect(() => integer(1n << 64n)).toThrow(/does not fit/);
    expect(() => integer(-1)).toThrow(/does not fit/);
  });
});

describe("names", () => {
  test.each([
    ["_SB", "5f53425f"],
    ["\\", "5c00"],
    ["\\_SB.PCI0", "5c2e5f53425f50434930"],
    ["^^FOO", "5e5e464f4f5f"],
    ["A.B.C", "2f03415f5f5f425f5f5f435f5f5f"],
  ])("%s", (path, bytes) => expect(hex(namePath(path))).toBe(bytes));

  test.each(["", "0ABC", "ABCDE", "abc", "A..B", "\\^A", "A B"])("%p is none", (path) => {
    expect(() => namePath(path)).toThrow();
  });
});

describe("constants", () => {
  test("EISA ids are the ones in every PC", () => {
    expect(hex(eisaId("PNP0501"))).toBe("0c41d00501");
    expect(hex(eisaId("PNP0A03"))).toBe("0c41d00a03");
    expect(() => eisaId("PNP501")).toThrow(/no EISA id/);
    expect(() => eisaId("pnp0501")).toThrow(/no EISA id/);
  });

  test("strings end in zero, buffers and packages carry their sizes", () => {
    expect(hex(string("AB"))).toBe("0d414200");
    expect(hex(buffer(Uint8Array.of(7, 8)))).toBe("11050a020708");
    expect(hex(list([integer(0), integer(1)]))).toBe("1204020001");
    expect(hex(list(Array(256).fill(integer(0)))).slice(0, 12)).toBe("1345100b0001");
  });
});

describe("terms, as iasl encodes them", () => {
  const foo = namePath("FOO");
  test.each([
    ["Name", name("X", integer(5)), "08585f5f5f0a05"],
    ["Scope", scope("_SB", []), "10055f53425f"],
    ["Device", device("D", []), "5b8205445f5f5f"],
    ["Method", method("M", { args: 2, serialized: true }, [returns(arg(1))]), "14084d5f5f5f0aa469"],
    ["Store", store(arg(0), local(7)), "706867"],
    ["If", when(equal(arg(0), integer(1)), [store(integer(1), foo)]), "a00a9368017001464f4f5f"],
    ["Else", when(arg(0), [returns(integer(1))], [returns(integer(0))]), "a00468a401a103a400"],
    ["Notify", notify("FOO", 0x80), "86464f4f5f0a80"],
    ["OperationRegion", opRegion("R", REGION.io, 0xcf9n, 1), "5b80525f5f5f010bf90c01"],
    [
      "Field",
      field("R", ACCESS.byte, [
        ["A", 4],
        ["", 100],
      ]),
      "5b810e525f5f5f01415f5f5f04004406",
    ],
  ])("%s", (_, bytes, expected) => expect(hex(bytes)).toBe(expected));

  test("refuse what cannot be encoded", () => {
    expect(() => method("M", { args: 8, serialized: false }, [])).toThrow(/8 arguments/);
    expect(() => field("R", ACCESS.any, [["A", 1 << 28]])).toThrow(/cannot have/);
  });
});
