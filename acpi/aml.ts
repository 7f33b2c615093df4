// AML, the byte code of the ACPI namespace (ACPI 6.3, chapter 20): small functions that each
// return the bytes of one term, so that a table reads like the ASL it stands for.
// Invariants: package lengths and integers take their shortest form, which is also what iasl
// makes, so that decompiling and compiling again gives the same bytes.

import { Encoder } from "./encoder.ts";

/** Bytes of one or more AML terms. */
export type Aml = Uint8Array;

/** Opcodes (ACPI 6.3, 20.3); 0x5B begins the two-byte ones. */
const OP = {
  zero: 0x00,
  one: 0x01,
  name: 0x08,
  byte: 0x0a,
  word: 0x0b,
  dword: 0x0c,
  string: 0x0d,
  qword: 0x0e,
  scope: 0x10,
  buffer: 0x11,
  package: 0x12,
  varPackage: 0x13,
  method: 0x14,
  dualName: 0x2e,
  multiName: 0x2f,
  extended: 0x5b,
  root: 0x5c,
  parent: 0x5e,
  local0: 0x60,
  arg0: 0x68,
  store: 0x70,
  notify: 0x86,
  equal: 0x93,
  if: 0xa0,
  else: 0xa1,
  return: 0xa4,
  ones: 0xff,
} as const;

/** Second bytes after 0x5B. */
const EXTENDED = { opRegion: 0x80, field: 0x81, device: 0x82 } as const;

function bytes(...values: number[]): Aml {
  return Uint8Array.from(values);
}

export function join(terms: readonly Aml[]): Aml {
  const out = new Encoder();
  for (const term of terms) out.bytes(term);
  return out.finish();
}

/** Largest package of 1, 2, 3 and 4 length bytes, those bytes included. */
const PACKAGE_MAX = [0x3f, 0xfff, 0xf_ffff, 0xfff_ffff] as const;

/** `value` in a byte of 6 bits, or in a byte with the count of those after it (7:6) and 4 bits. */
function packageNumber(value: number, extra: number): Aml {
  if (extra === 0) return bytes(value);
  const first = (extra << 6) | (value & 0xf);
  return bytes(first, ...Array.from({ length: extra }, (_, i) => (value >>> (4 + 8 * i)) & 0xff));
}

/** PkgLength (ACPI 6.3, 20.2.4) before `payload` bytes; it counts itself. */
export function pkgLength(payload: number): Aml {
  const extra = PACKAGE_MAX.findIndex((most, i) => payload + i + 1 <= most);
  if (!Number.isInteger(payload) || payload < 0 || extra < 0) {
    throw new Error(`an AML package cannot hold ${payload} bytes`);
  }
  return packageNumber(payload + extra + 1, extra);
}

function packaged(opcode: readonly number[], payload: Aml): Aml {
  return join([bytes(...opcode), pkgLength(payload.length), payload]);
}

/** One segment of a name: four characters, padded with underscores. */
function nameSegment(segment: string): Aml {
  if (!/^[A-Z_][A-Z0-9_]{0,3}$/.test(segment)) throw new Error(`"${segment}" is no ACPI name`);
  return new Encoder().ascii(segment.padEnd(4, "_"), 4).finish();
}

/** "\\_SB.PCI0", "^FOO", "BAR": ACPI 6.3, 20.2.2. */
export function namePath(path: string): Aml {
  const [, prefix = "", rest = ""] = /^(\\|\^*)(.*)$/.exec(path) ?? [];
  const start = bytes(...Array.from(prefix, (char) => (char === "\\" ? OP.root : OP.parent)));
  if (rest === "") {
    if (prefix === "") throw new Error("an ACPI name is empty");
    return join([start, bytes(0)]);
  }
  const segments = rest.split(".").map(nameSegment);
  if (segments.length > 255) throw new Error(`the ACPI path ${path} is too deep`);
  const count =
    segments.length === 1
      ? bytes()
      : segments.length === 2
        ? bytes(OP.dualName)
        : bytes(OP.multiName, segments.length);
  return join([start, count, ...segments]);
}

/** An integer in its shortest form; all ones of 64 bits is Ones (tables of revision 2). */
export function integer(value: number | bigint): Aml {
  const big = BigInt(value);
  if (big === 0n) return bytes(OP.zero);
  if (big === 1n) return bytes(OP.one);
  if (big === 0xffff_ffff_ffff_ffffn) return bytes(OP.ones);
  const [opcode, size] =
    big <= 0xffn
      ? [OP.byte, 1]
      : big <= 0xffffn
        ? [OP.word, 2]
        : big <= 0xffff_ffffn
          ? [OP.dword, 4]
          : [OP.qword, 8];
  return new Encoder().u8(opcode).uint(big, size).finish();
}

export function string(text: string): Aml {
  return new Encoder().u8(OP.string).ascii(text, text.length).u8(0).finish();
}

export function buffer(content: Uint8Array): Aml {
  return packaged([OP.buffer], join([integer(content.length), content]));
}

/** Package; more than 255 elements need a VarPackage, whose count is a term. */
export function list(elements: readonly Aml[]): Aml {
  if (elements.length <= 255) {
    return packaged([OP.package], join([bytes(elements.length), ...elements]));
  }
  return packaged([OP.varPackage], join([integer(elements.length), ...elements]));
}

/** Compressed EISA id of "PNP0501" (ACPI 6.3, 19.3.4): three letters of 5 bits, four hex digits. */
export function eisaId(id: string): Aml {
  if (!/^[A-Z]{3}[0-9A-F]{4}$/.test(id)) throw new Error(`"${id}" is no EISA id`);
  const letter = (i: number): number => id.charCodeAt(i) - 0x40;
  const high = (letter(0) << 10) | (letter(1) << 5) | letter(2);
  const low = Number.parseInt(id.slice(3), 16);
  // Both halves are stored high byte first.
  const value = new DataView(new ArrayBuffer(4));
  value.setUint16(0, high);
  value.setUint16(2, low);
  return integer(value.getUint32(0, true));
}

export function name(path: string, value: Aml): Aml {
  return join([bytes(OP.name), namePath(path), value]);
}

export function scope(path: string, terms: readonly Aml[]): Aml {
  return packaged([OP.scope], join([namePath(path), ...terms]));
}

export function device(path: string, terms: readonly Aml[]): Aml {
  return packaged([OP.extended, EXTENDED.device], join([namePath(path), ...terms]));
}

/** Flags: bits 2:0 arguments, bit 3 serialized (ACPI 6.3, 20.2.5.2). */
export function method(
  path: string,
  shape: { args: number; serialized: boolean },
  terms: readonly Aml[],
): Aml {
  if (shape.args < 0 || shape.args > 7) throw new Error(`method ${path}: ${shape.args} arguments`);
  const flags = shape.args | (shape.serialized ? 8 : 0);
  return packaged([OP.method], join([namePath(path), bytes(flags), ...terms]));
}

export function arg(index: 0 | 1 | 2 | 3 | 4 | 5 | 6): Aml {
  return bytes(OP.arg0 + index);
}

export function local(index: 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7): Aml {
  return bytes(OP.local0 + index);
}

export function returns(value: Aml): Aml {
  return join([bytes(OP.return), value]);
}

export function store(value: Aml, target: Aml): Aml {
  return join([bytes(OP.store), value, target]);
}

export function equal(left: Aml, right: Aml): Aml {
  return join([bytes(OP.equal), left, right]);
}

export function when(condition: Aml, then: readonly Aml[], otherwise: readonly Aml[] = []): Aml {
  const branch = packaged([OP.if], join([condition, ...then]));
  return otherwise.length === 0 ? branch : join([branch, packaged([OP.else], join(otherwise))]);
}

export function notify(path: string, value: number): Aml {
  return join([bytes(OP.notify), namePath(path), integer(value)]);
}

/** Region spaces (ACPI 6.3, 20.2.5.2). */
export const REGION = { memory: 0, io: 1, pciConfig: 2 } as const;

export function opRegion(
  path: string,
  space: (typeof REGION)[keyof typeof REGION],
  offset: bigint,
  length: number,
): Aml {
  return join([
    bytes(OP.extended, EXTENDED.opRegion),
    namePath(path),
    bytes(space),
    integer(offset),
    integer(length),
  ]);
}

/** Field access types: how wide the interpreter reads (ACPI 6.3, 20.2.5.2). */
export const ACCESS = { any: 0, byte: 1, word: 2, dword: 3, qword: 4 } as const;

/** Fields of a region in order: [name, bits]; an empty name skips. Unlocked, preserving. */
export function field(
  region: string,
  access: (typeof ACCESS)[keyof typeof ACCESS],
  units: readonly (readonly [string, number])[],
): Aml {
  // A unit's bits are coded like a PkgLength that does not count itself.
  const unit = ([unitName, bits]: readonly [string, number]): Aml => {
    const extra = PACKAGE_MAX.findIndex((most) => bits <= most);
    if (extra < 0) throw new Error(`an AML field cannot have ${bits} bits`);
    return join([unitName === "" ? bytes(0) : nameSegment(unitName), packageNumber(bits, extra)]);
  };
  return packaged(
    [OP.extended, EXTENDED.field],
    join([namePath(region), bytes(access), ...units.map(unit)]),
  );
}
