// Plain objects to and from the records of zig/abi.zig, driven by the generated layouts: u64 and
// i64 are bigint, smaller integers number, u8 arrays Uint8Array, other arrays and nested records as
// they look. `pad` and `reserved` are not part of an object; they are written as zero.
// A value that does not fit, a missing or unknown field or a wrong array length is a defect of the
// caller and throws with the field's full name; nothing is truncated silently. Little endian.

import { records } from "./abi.gen.ts";

type Small = "u8" | "u16" | "u32" | "i8" | "i16" | "i32";
type Wide = "u64" | "i64";

export interface FieldLayout {
  readonly offset: number;
  /** An integer type, or the name of a record in `records`. */
  readonly type: string;
  readonly count?: number;
}

export interface RecordLayout {
  readonly name: string;
  readonly size: number;
  readonly fields: { readonly [name: string]: FieldLayout };
}

type ElementOf<T extends string> = T extends Small
  ? number
  : T extends Wide
    ? bigint
    : T extends keyof typeof records
      ? RecordOf<(typeof records)[T]>
      : never;

type ValueOf<F extends FieldLayout> = F extends { readonly count: number }
  ? F["type"] extends "u8"
    ? Uint8Array
    : readonly ElementOf<F["type"]>[]
  : ElementOf<F["type"]>;

type Hidden = "pad" | "reserved";

/** The plain object of a record. */
export type RecordOf<R extends RecordLayout> = {
  readonly [K in Exclude<keyof R["fields"], Hidden>]: ValueOf<R["fields"][K]>;
};

interface Scalar {
  readonly size: number;
  readonly min: bigint;
  readonly max: bigint;
  read(view: DataView, at: number): number | bigint;
  write(view: DataView, at: number, value: number | bigint): void;
}

function scalar(bits: number, signed: boolean): Scalar {
  const method = `${bits === 64 ? "Big" : ""}${signed ? "Int" : "Uint"}${bits}`;
  const get = DataView.prototype[`get${method}` as "getUint32"];
  const set = DataView.prototype[`set${method}` as "setUint32"];
  const span = 1n << BigInt(bits);
  return {
    size: bits / 8,
    min: signed ? -span / 2n : 0n,
    max: signed ? span / 2n - 1n : span - 1n,
    read: (view, at) => get.call(view, at, true),
    write: (view, at, value) => set.call(view, at, value as number, true),
  };
}

const scalars: { readonly [type: string]: Scalar | undefined } = {
  u8: scalar(8, false),
  u16: scalar(16, false),
  u32: scalar(32, false),
  u64: scalar(64, false),
  i8: scalar(8, true),
  i16: scalar(16, true),
  i32: scalar(32, true),
  i64: scalar(64, true),
};

function isHidden(field: string): boolean {
  return field === "pad" || field === "reserved";
}

function nestedLayout(type: string): RecordLayout {
  const found = (records as { readonly [name: string]: RecordLayout | undefined })[type];
  if (found === undefined) throw new TypeError(`record type ${type} is not in abi.gen.ts`);
  return found;
}

function show(value: unknown): string {
  if (typeof value === "bigint") return `${value}n`;
  return typeof value === "object" ? Object.prototype.toString.call(value) : String(value);
}

function writeScalar(view: DataView, at: number, s: Scalar, value: unknown, path: string): void {
  const wanted = s.size === 8 ? "bigint" : "number";
  if (typeof value !== wanted || (wanted === "number" && !Number.isInteger(value))) {
    const kind = wanted === "bigint" ? "a bigint" : "a whole number";
    throw new TypeError(`${path} takes ${kind}, not ${typeof value} ${show(value)}`);
  }
  const whole = BigInt(value as number | bigint);
  if (whole < s.min || whole > s.max) {
    throw new RangeError(`${path} takes ${s.min} to ${s.max}, not ${show(value)}`);
  }
  s.write(view, at, value as number | bigint);
}

function writeElement(view: DataView, at: number, type: string, value: unknown, path: string) {
  const s = scalars[type];
  if (s !== undefined) return writeScalar(view, at, s, value, path);
  writeRecord(view, at, nestedLayout(type), value, path);
}

function writeArray(view: DataView, at: number, field: FieldLayout, value: unknown, path: string) {
  const { type, count = 0 } = field;
  const isBytes = type === "u8" && value instanceof Uint8Array;
  if (!(isBytes || (type !== "u8" && Array.isArray(value)))) {
    const kind = type === "u8" ? "a Uint8Array" : "an array";
    throw new TypeError(`${path} takes ${kind} of ${count}, not ${typeof value} ${show(value)}`);
  }
  const items = value as readonly unknown[];
  if (items.length !== count) {
    throw new RangeError(`${path} takes ${count} elements, not ${items.length}`);
  }
  const step = elementSize(type);
  for (let i = 0; i < count; i++) {
    writeElement(view, at + i * step, type, items[i], `${path}[${i}]`);
  }
}

function elementSize(type: string): number {
  return scalars[type]?.size ?? nestedLayout(type).size;
}

function writeRecord(view: DataView, at: number, r: RecordLayout, value: unknown, path: string) {
  if (typeof value !== "object" || value === null) {
    throw new TypeError(`${path} takes an object, not ${typeof value} ${show(value)}`);
  }
  for (const name of Object.keys(value)) {
    if (!Object.hasOwn(r.fields, name)) throw new TypeError(`${path} has no field ${name}`);
  }
  const object = value as { readonly [name: string]: unknown };
  for (const [name, field] of Object.entries(r.fields)) {
    if (isHidden(name)) continue;
    const write = field.count === undefined ? writeField : writeArray;
    write(view, at + field.offset, field, object[name], `${path}.${name}`);
  }
}

function writeField(view: DataView, at: number, field: FieldLayout, value: unknown, path: string) {
  writeElement(view, at, field.type, value, path);
}

/** The bytes of one record. */
export function encode<R extends RecordLayout>(record: R, object: RecordOf<R>): Uint8Array {
  const bytes = new Uint8Array(record.size);
  writeRecord(new DataView(bytes.buffer), 0, record, object, record.name);
  return bytes;
}

/** The bytes of several records of one kind, in order: what Zig takes as pointer and count. */
export function concatRecords<R extends RecordLayout>(
  record: R,
  objects: readonly RecordOf<R>[],
): Uint8Array {
  // Never empty: ptr() of an empty view is refused, and Zig reads none of it anyway.
  const bytes = new Uint8Array(Math.max(1, record.size * objects.length));
  const view = new DataView(bytes.buffer);
  objects.forEach((object, i) => {
    writeRecord(view, i * record.size, record, object, `${record.name}[${i}]`);
  });
  return bytes;
}

function readElement(view: DataView, at: number, type: string): unknown {
  const s = scalars[type];
  return s === undefined ? readRecord(view, at, nestedLayout(type)) : s.read(view, at);
}

function readField(view: DataView, at: number, { type, count }: FieldLayout): unknown {
  if (count === undefined) return readElement(view, at, type);
  if (type === "u8") return new Uint8Array(view.buffer, view.byteOffset + at, count).slice();
  const step = elementSize(type);
  return Array.from({ length: count }, (_, i) => readElement(view, at + i * step, type));
}

function readRecord(view: DataView, at: number, record: RecordLayout): object {
  const object: { [name: string]: unknown } = {};
  for (const [name, field] of Object.entries(record.fields)) {
    if (!isHidden(name)) object[name] = readField(view, at + field.offset, field);
  }
  return object;
}

/** A plain object of its own: later changes of `source` do not show in it. */
export function decode<R extends RecordLayout>(
  record: R,
  source: Uint8Array | DataView,
): RecordOf<R> {
  if (source.byteLength < record.size) {
    throw new RangeError(`${record.name} has ${record.size} bytes, not ${source.byteLength}`);
  }
  const view = new DataView(source.buffer, source.byteOffset, source.byteLength);
  return readRecord(view, 0, record) as RecordOf<R>;
}

/**
 * A 64-bit counter of a live view as a number, exact to 2^53: two 32-bit loads, no bigint made.
 * The high half is read on both sides of the low one, so that a carry between them is seen.
 */
export function readCounter(view: DataView, offset: number): number {
  for (;;) {
    const high = view.getUint32(offset + 4, true);
    const low = view.getUint32(offset, true);
    if (view.getUint32(offset + 4, true) === high) return high * 2 ** 32 + low;
  }
}
