import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { checksum, claimedLength, Encoder, encodeTable, HEADER_BYTES } from "./encoder.ts";

describe("Encoder", () => {
  test("writes fields low byte first", () => {
    const out = new Encoder()
      .u8(1)
      .u16(0x0203)
      .uint(0x10_2030, 3)
      .u32(0xfffe_0001)
      .u64(5n << 56n);
    out.ascii("AB", 3).zeros(1).bytes(Uint8Array.of(9));
    expect(out.length).toBe(23);
    expect([...out.finish()]).toEqual(
      [1, 3, 2, 0x30, 0x20, 0x10, 1, 0, 0xfe, 0xff, 0, 0, 0, 0, 0, 0, 0, 5].concat([
        0x41, 0x42, 0, 0, 9,
      ]),
    );
  });

  test("grows without losing what it has", () => {
    fc.assert(
      fc.property(fc.array(fc.uint8Array({ maxLength: 700 }), { maxLength: 8 }), (pieces) => {
        const out = new Encoder();
        for (const piece of pieces) out.bytes(piece);
        expect([...out.finish()]).toEqual(pieces.flatMap((piece) => [...piece]));
      }),
    );
  });

  test("refuses values that do not fit", () => {
    expect(() => new Encoder().u8(256)).toThrow(/0x100 does not fit 1 byte/);
    expect(() => new Encoder().u16(-1)).toThrow(/does not fit/);
    expect(() => new Encoder().u32(2 ** 32)).toThrow(/does not fit/);
    expect(() => new Encoder().u64(1n << 64n)).toThrow(/does not fit/);
    expect(() => new Encoder().u8(0.5)).toThrow();
    expect(() => new Encoder().ascii("ABCDE", 4)).toThrow(/at most 4/);
    expect(() => new Encoder().ascii("ä", 4)).toThrow(/not ASCII/);
  });
});

test("a table carries its length and sums to zero", () => {
  fc.assert(
    fc.property(
      fc.uint8Array({ maxLength: 600 }),
      fc.integer({ min: 0, max: 255 }),
      (body, rev) => {
        const table = encodeTable("TEST", rev, body);
        expect(checksum(table)).toBe(0);
        expect(claimedLength(table)).toBe(HEADER_BYTES + body.length);
        expect(table[8]).toBe(rev);
        expect([...table.subarray(HEADER_BYTES)]).toEqual([...body]);
      },
    ),
  );
});
