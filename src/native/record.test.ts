import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { records } from "./abi.gen.ts";
import { concatRecords, decode, encode, type RecordLayout, readCounter } from "./record.ts";

const range = { gpa: 0x1_0000_0000n, size: 0x8000_0000n, node: 1 };
const entry = { function: 0xb, index: 1, flags: 1, eax: 2, ebx: 3, ecx: 4, edx: 0xffff_ffff };
const segment = {
  ...{ base: 0n, limit: 0xffff_ffff, selector: 0x10, type: 11, present: 1, dpl: 0 },
  ...{ db: 0, s: 1, l: 1, g: 1, avl: 0, unusable: 0 },
};
const table = { base: 0x1000n, limit: 31 };

/** A call whose argument the type checker would refuse. */
function encodeUnchecked(record: RecordLayout, object: unknown): Uint8Array {
  return encode(record, object as never);
}

test("fields land at their offsets, little endian, pad is zero", () => {
  const bytes = encode(records.RamRange, range);
  expect(Buffer.from(bytes).toString("hex")).toBe(
    "0000000001000000" + "0000008000000000" + "01000000" + "00000000",
  );
  expect(decode(records.RamRange, bytes)).toEqual(range);
});

test("nested records and u8 arrays survive the round trip", () => {
  const zero = Object.fromEntries(
    Object.keys(records.VcpuRecord.fields).map((name) => [name, 0n]),
  ) as unknown as Parameters<typeof encode<typeof records.VcpuRecord>>[1];
  const segments = { cs: segment, ds: segment, es: segment, fs: segment, gs: segment };
  const more = { ss: segment, tr: segment, ldt: segment, gdt: table, idt: table };
  const vcpu = { ...zero, ...segments, ...more, rip: 0xffff_ffff_8000_0000n };
  expect(decode(records.VcpuRecord, encode(records.VcpuRecord, vcpu))).toEqual(vcpu);

  const text = new Uint8Array(240).fill(0x41);
  const error = { status: -5, errno: 22, text_len: 240, text };
  expect(decode(records.ErrorRecord, encode(records.ErrorRecord, error))).toEqual(error);
});

test("a decoded object does not follow the bytes it came from", () => {
  const bytes = new Uint8Array(records.ErrorRecord.size);
  const { text } = decode(records.ErrorRecord, bytes);
  bytes.fill(1);
  expect(text[0]).toBe(0);
});

test("records stand one after another, and none of them is a valid pointer still", () => {
  const bytes = concatRecords(records.CpuidEntry, [entry, { ...entry, index: 2 }]);
  expect(bytes.length).toBe(2 * records.CpuidEntry.size);
  expect(decode(records.CpuidEntry, bytes.subarray(records.CpuidEntry.size)).index).toBe(2);
  expect(concatRecords(records.CpuidEntry, []).length).toBe(1);
});

describe("what does not fit is refused with its name", () => {
  const refused = (object: unknown, message: string, record: RecordLayout = records.RamRange) => {
    expect(() => encodeUnchecked(record, object)).toThrow(message);
  };
  test("range", () => {
    refused({ ...range, node: 2 ** 32 }, "RamRange.node takes 0 to 4294967295, not 4294967296");
    refused({ ...range, node: -1 }, "RamRange.node takes 0");
    refused({ ...range, gpa: 1n << 64n }, "RamRange.gpa takes 0 to 18446744073709551615");
    refused({ ...range, gpa: -1n }, "not -1n");
  });
  test("kind", () => {
    refused({ ...range, gpa: 1 }, "RamRange.gpa takes a bigint, not number 1");
    refused({ ...range, node: 1n }, "RamRange.node takes a whole number, not bigint 1n");
    refused({ ...range, node: 0.5 }, "a whole number");
    refused({ ...range, node: Number.NaN }, "a whole number");
  });
  test("missing and unknown fields", () => {
    refused({ gpa: 1n, node: 1 }, "RamRange.size takes a bigint, not undefined");
    refused({ ...range, nodes: 1 }, "RamRange has no field nodes");
    refused({ ...range, toString: 1 }, "RamRange has no field toString");
    refused(undefined, "RamRange takes an object");
  });
  test("arrays and nested records", () => {
    const error = { status: 0, errno: 0, text_len: 0, text: new Uint8Array(3) };
    refused(error, "ErrorRecord.text takes 240 elements, not 3", records.ErrorRecord);
    refused({ ...error, text: "x" }, "takes a Uint8Array of 240", records.ErrorRecord);
    const buckets = new Array(40).fill(0n).with(7, 7);
    const histogram = { count: 0n, sum_ns: 0n, max_ns: 0n, buckets };
    refused(histogram, "Histogram.buckets[7] takes a bigint", records.Histogram);
    refused({ kvm: { state: "good" } }, "HostProbe.kvm.state takes", records.HostProbe);
  });
  test("too few bytes to decode", () => {
    expect(() => decode(records.RamRange, new Uint8Array(23))).toThrow("RamRange has 24 bytes");
  });
});

test("every record of the boundary decodes, and encodes to the same bytes", () => {
  for (const record of Object.values(records) as RecordLayout[]) {
    const bytes = new Uint8Array(record.size);
    expect(encodeUnchecked(record, decode(record, bytes))).toEqual(bytes);
  }
});

test("any values in range survive the round trip", () => {
  const u32 = fc.integer({ min: 0, max: 0xffff_ffff });
  const u64 = fc.bigInt({ min: 0n, max: (1n << 64n) - 1n });
  fc.assert(
    fc.property(u64, u64, u32, (gpa, size, node) => {
      const object = { gpa, size, node };
      expect(decode(records.RamRange, encode(records.RamRange, object))).toEqual(object);
    }),
  );
});

test("a counter is exact to 2^53 and sees a carry between its halves", () => {
  const view = new DataView(new ArrayBuffer(8));
  view.setBigUint64(0, 2n ** 53n - 1n, true);
  expect(readCounter(view, 0)).toBe(2 ** 53 - 1);

  // Between the first two loads the writer carries from 0x0_ffffffff to 0x1_00000000.
  let loads = 0;
  view.setBigUint64(0, 0xffff_ffffn, true);
  const racing = {
    getUint32: (offset: number, little: boolean) => {
      if (loads++ === 1) view.setBigUint64(0, 0x1_0000_0000n, true);
      return view.getUint32(offset, little);
    },
  } as DataView;
  expect(readCounter(racing, 0)).toBe(0x1_0000_0000);
});
