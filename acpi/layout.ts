// Structures of ACPI tables as data: the fields in order, each with its name, size and meaning.
// The same list writes a structure (encode) and explains one (explain.ts), so what we say about a
// byte and what we put there cannot drift apart. Invariant: a field's offset is the sum of the
// sizes before it; no ACPI structure described here has padding that is not a field.

import type { Encoder } from "./encoder.ts";

/** Generic Address Structure (ACPI 6.3, 5.2.3.2): a register of hardware. */
export interface GenericAddress {
  /** 0 system memory, 1 system I/O. */
  space: number;
  bitWidth: number;
  bitOffset: number;
  /** 1 byte, 2 word, 3 dword, 4 qword, 0 undefined. */
  accessSize: number;
  address: bigint;
}

export const NO_ADDRESS: GenericAddress = {
  space: 0,
  bitWidth: 0,
  bitOffset: 0,
  accessSize: 0,
  address: 0n,
};

export type Value = number | bigint | string | GenericAddress;

/** One bit that has a name: [bit, name, what it means when set]. */
export type Flag = readonly [number, string, string];

export interface Field<N extends string = string> {
  /** Empty for reserved bytes, which are written as zero. */
  readonly name: N | "";
  readonly kind: "uint" | "ascii" | "address" | "reserved";
  readonly size: number;
  readonly meaning: string;
  readonly flags?: readonly Flag[];
  /** What a value means in words. */
  readonly show?: (value: bigint) => string;
}

interface Extra {
  flags?: readonly Flag[];
  show?: (value: bigint) => string;
}

function uint(size: number) {
  return <const N extends string>(name: N, meaning: string, extra: Extra = {}): Field<N> => ({
    name,
    kind: "uint",
    size,
    meaning,
    ...extra,
  });
}

export const u8 = uint(1);
export const u16 = uint(2);
export const u24 = uint(3);
export const u32 = uint(4);
export const u64 = uint(8);

export function ascii<const N extends string>(name: N, size: number, meaning: string): Field<N> {
  return { name, kind: "ascii", size, meaning };
}

/** A Generic Address Structure: 12 bytes. */
export function address<const N extends string>(name: N, meaning: string): Field<N> {
  return { name, kind: "address", size: 12, meaning };
}

export function reserved(size: number): Field<never> {
  return { name: "", kind: "reserved", size, meaning: "must be zero" };
}

export interface Layout<N extends string = string> {
  readonly title: string;
  readonly size: number;
  readonly fields: readonly Field<N>[];
}

export function layout<N extends string>(title: string, fields: readonly Field<N>[]): Layout<N> {
  return { title, size: fields.reduce((sum, field) => sum + field.size, 0), fields };
}

/** A subtable of MADT or SRAT: its first bytes are type and length. */
export interface EntryLayout<N extends string = string> extends Layout<N> {
  readonly type: number;
}

/** Bytes before a subtable's own fields. */
export const ENTRY_HEADER_BYTES = 2;

export function entry<N extends string>(
  type: number,
  title: string,
  fields: readonly Field<N>[],
): EntryLayout<N> {
  return { ...layout(title, fields), type };
}

function encodeField(out: Encoder, field: Field, value: Value | undefined): void {
  if (field.kind === "reserved") {
    out.zeros(field.size);
  } else if (value === undefined) {
    throw new Error(`ACPI field ${field.name} has no value`);
  } else if (field.kind === "ascii") {
    out.ascii(String(value), field.size);
  } else if (typeof value === "object") {
    out.u8(value.space).u8(value.bitWidth).u8(value.bitOffset).u8(value.accessSize);
    out.u64(value.address);
  } else {
    out.uint(BigInt(value), field.size);
  }
}

export function encode<N extends string>(
  out: Encoder,
  shape: Layout<N>,
  values: Readonly<Record<N, Value>>,
): void {
  const named: Readonly<Record<string, Value>> = values;
  for (const field of shape.fields) encodeField(out, field, named[field.name]);
}

export function encodeEntry<N extends string>(
  out: Encoder,
  shape: EntryLayout<N>,
  values: Readonly<Record<N, Value>>,
): void {
  out.u8(shape.type).u8(ENTRY_HEADER_BYTES + shape.size);
  encode(out, shape, values);
}
