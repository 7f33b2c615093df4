// `ssihv acpi explain` takes any file: random bytes, and real tables damaged in every way that
// keeps their outside intact. It must answer with text or SsihvError "acpi_invalid", never
// anything else, print nothing that drives a terminal, and not grow out of proportion to its
// input.

import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { checksum, HEADER_BYTES } from "../../acpi/encoder.ts";
import { BOARDS } from "../../acpi/example.fixture.ts";
import { explainTable } from "../../acpi/explain.ts";
import { buildTables } from "../../acpi/tables.ts";
import { SsihvError } from "../../src/base/errors.ts";

const RUNS = 2000;
/** A line is at most about this long, and a byte gives at most about one line. */
const CHARACTERS_PER_BYTE = 400;

/** Text, or undefined when the table was refused as it should be. */
function outcome(bytes: Uint8Array): string | undefined {
  let text: string;
  try {
    text = explainTable(bytes);
  } catch (error) {
    if (error instanceof SsihvError && error.code === "acpi_invalid") {
      expect(error.message).not.toMatch(/[^\x20-\x7e]/);
      return undefined;
    }
    throw error;
  }
  expect(text).not.toMatch(/[^\x20-\x7e\n]/);
  expect(text.length).toBeLessThan(4000 + bytes.length * CHARACTERS_PER_BYTE);
  return text;
}

/** Header length and checksum set right, so that the damage inside is what is met. */
function sealed(bytes: Uint8Array): Uint8Array {
  const copy = bytes.slice();
  new DataView(copy.buffer).setUint32(4, copy.length, true);
  copy[9] = 0;
  copy[9] = checksum(copy);
  return copy;
}

const tables = Object.values(BOARDS).flatMap((board) =>
  buildTables(board).blobs.map(({ bytes }) => bytes),
);
const signatures = ["FACP", "APIC", "SRAT", "SLIT", "XSDT", "RSDT", "DSDT", "SSDT", "FACS", "OEM1"];

test("random bytes", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 300 }), (bytes) => {
      outcome(bytes);
    }),
    { numRuns: RUNS },
  );
});

test("random bytes in a sound header of every kind", () => {
  const bodies = fc.tuple(fc.constantFrom(...signatures), fc.uint8Array({ maxLength: 300 }));
  let explained = 0;
  fc.assert(
    fc.property(bodies, ([signature, body]) => {
      const bytes = new Uint8Array(HEADER_BYTES + body.length);
      bytes.set(new TextEncoder().encode(signature));
      bytes.set(body, HEADER_BYTES);
      if (outcome(sealed(bytes)) !== undefined) explained += 1;
    }),
    { numRuns: RUNS },
  );
  expect(explained).toBeGreaterThan(RUNS / 10);
});

test("our tables with bytes changed, cut out and doubled", () => {
  const change = fc.record({
    at: fc.nat(),
    value: fc.integer({ min: 0, max: 255 }),
    cut: fc.oneof(fc.constant(0), fc.nat({ max: 40 })),
    double: fc.oneof(fc.constant(0), fc.nat({ max: 40 })),
    seal: fc.boolean(),
  });
  const damages = fc.tuple(fc.constantFrom(...tables), fc.array(change, { maxLength: 6 }));
  let explained = 0;
  let refused = 0;
  fc.assert(
    fc.property(damages, ([table, changes]) => {
      let bytes = table;
      for (const { at, value, cut, double, seal } of changes) {
        const place = at % Math.max(bytes.length, 1);
        bytes = Uint8Array.from([
          ...bytes.subarray(0, place),
          value,
          ...bytes.subarray(place + 1 - Math.min(double, place), place + 1),
          ...bytes.subarray(Math.min(place + 1 + cut, bytes.length)),
        ]);
        if (seal && bytes.length >= HEADER_BYTES) bytes = sealed(bytes);
      }
      if (outcome(bytes) === undefined) refused += 1;
      else explained += 1;
    }),
    { numRuns: RUNS },
  );
  expect(explained).toBeGreaterThan(100);
  expect(refused).toBeGreaterThan(100);
});

describe("AML made to hurt", () => {
  const dsdt = (body: Uint8Array): string | undefined => {
    const bytes = new Uint8Array(HEADER_BYTES + body.length);
    bytes.set(new TextEncoder().encode("DSDT"));
    bytes.set(body, HEADER_BYTES);
    return outcome(sealed(bytes));
  };
  /** `count` packages, one inside the other, each with `head` before its content. */
  const nested = (count: number, opcode: number, head: readonly number[]): Uint8Array => {
    const reversed: number[] = [];
    for (let i = 0; i < count; i++) {
      const total = reversed.length + head.length + 4;
      const length = [0xc0 | (total & 0xf), (total >> 4) & 0xff, (total >> 12) & 0xff, total >> 20];
      reversed.push(...[opcode, ...length, ...head].reverse());
    }
    return Uint8Array.from(reversed.reverse());
  };

  test("scopes, packages and buffers nested ten thousand deep", () => {
    expect(dsdt(nested(10_000, 0x10, [0x41, 0x42, 0x43, 0x44]))).toContain("nested too deeply");
    const named = (body: Uint8Array) => Uint8Array.of(0x08, 0x41, 0x42, 0x43, 0x44, ...body);
    expect(dsdt(named(nested(10_000, 0x12, [1])))).toContain("nested too deeply");
    expect(dsdt(named(nested(10_000, 0x11, [])))).toContain("nested too deeply");
  });

  test("a name of a million parents", () => {
    expect(dsdt(new Uint8Array(1_000_000).fill(0x5e, 1).fill(0x08, 0, 1))).toContain("not decoded");
  });

  test("more terms than anyone reads", () => {
    const event = [0x5b, 0x02, 0x41, 0x42, 0x43, 0x44];
    const text = dsdt(Uint8Array.from({ length: 300_000 }, (_, i) => event[i % 6] ?? 0));
    expect(text).toContain("the outline is too long");
    expect(text?.split("\n").length).toBeLessThan(21_000);
  });

  test("a MADT of a million empty entries", () => {
    const bytes = new Uint8Array(44 + 1_000_000).fill(0x02, 44);
    bytes.set(new TextEncoder().encode("APIC"));
    expect(outcome(sealed(bytes))).toContain("more byte(s)");
  });
});
