// How one field of a table looks as text: "offset  bytes  name  value  meaning", then a line for
// each flag.

import type { Field } from "./layout.ts";

/** Bytes shown of a long field: a Generic Address Structure, the longest that matters, has 12. */
const BYTES_SHOWN = 12;
/** Bytes per line of a raw dump. */
const RAW_WIDTH = 16;
/** Lines of a raw dump: enough to recognise a table, not to flood a terminal. */
const RAW_LINES_MAX = 256;
const SPACES: Readonly<Record<number, string>> = {
  0: "memory",
  1: "I/O port",
  2: "PCI config",
  3: "embedded controller",
  4: "SMBus",
  10: "PCC",
  127: "fixed hardware",
};
const ACCESS = ["", ", by byte", ", by word", ", by dword", ", by qword"];

/** Foreign text: everything but printable ASCII is escaped. */
export function printable(text: string): string {
  return text.replace(/[^\x20-\x7e]/g, (char) => {
    return `\\x${char.charCodeAt(0).toString(16).padStart(2, "0")}`;
  });
}

export function addressLine(at: number): string {
  return `0x${at.toString(16).padStart(4, "0")}`;
}

/** Up to `size` bytes from `at`, in hex; long runs are cut. */
export function hexBytes(bytes: Uint8Array, at: number, size: number): string {
  const shown = bytes.subarray(at, at + Math.min(size, BYTES_SHOWN));
  const text = Array.from(shown, (byte) => byte.toString(16).padStart(2, "0")).join(" ");
  return size > BYTES_SHOWN ? `${text} ...` : text;
}

function readUint(bytes: Uint8Array, at: number, size: number): bigint {
  let value = 0n;
  for (let i = size - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[at + i] ?? 0);
  return value;
}

function showAddress(bytes: Uint8Array, at: number): string {
  const address = readUint(bytes, at + 4, 8);
  const [space = 0, width = 0, offset = 0, access = 0] = bytes.subarray(at, at + 4);
  if (address === 0n) return "none";
  const where = SPACES[space] ?? `space ${space}`;
  const from = offset === 0 ? "" : ` from bit ${offset}`;
  const how = ACCESS[access] ?? `, access size ${access}`;
  return `${where} 0x${address.toString(16)}, ${width} bits${from}${how}`;
}

function flagLines(value: bigint, field: Field): string[] {
  const flags = field.flags ?? [];
  const lines = flags
    .filter(([bit]) => (value >> BigInt(bit)) & 1n)
    .map(([bit, name, meaning]) => `bit ${`${bit}`.padStart(2)}  ${name}: ${meaning}`);
  const known = flags.reduce((mask, [bit]) => mask | (1n << BigInt(bit)), 0n);
  const rest = value & ~known;
  if (rest !== 0n) lines.push(`bits 0x${rest.toString(16)} are reserved and not zero`);
  return lines;
}

/** The value's text and the lines that follow it. */
function showValue(bytes: Uint8Array, at: number, field: Field): [string, string[]] {
  switch (field.kind) {
    case "ascii": {
      const text = String.fromCharCode(...bytes.subarray(at, at + field.size));
      return [`"${printable(text.replace(/\0+$/, ""))}"`, []];
    }
    case "address":
      return [showAddress(bytes, at), []];
    case "reserved": {
      const zero = bytes.subarray(at, at + field.size).every((byte) => byte === 0);
      return [zero ? "" : "NOT ZERO", []];
    }
    case "uint": {
      const value = readUint(bytes, at, field.size);
      const words = field.show?.(value) ?? "";
      const decimal = field.size <= 2 ? ` (${value})` : "";
      const number = value > 9n ? `0x${value.toString(16)}${decimal}` : `${value}`;
      const text = words === "" ? number : `${number}: ${words}`;
      return [text, field.flags ? flagLines(value, field) : []];
    }
  }
}

/** Lines for the field at `at`, which must lie inside `bytes`. */
export function describeField(bytes: Uint8Array, at: number, field: Field): string[] {
  const [value, more] = showValue(bytes, at, field);
  const dump = hexBytes(bytes, at, field.size);
  const name = field.name === "" ? "reserved" : field.name;
  const gap = " ".repeat(8);
  const first = `${addressLine(at)}  ${dump.padEnd(23)}  ${name}`;
  const line = value === "" ? first : `${first} = ${value}`;
  return [`${line}  [${field.meaning}]`, ...more.map((text) => `${gap}${" ".repeat(25)}${text}`)];
}

/** What no field describes, as hex; nothing when there is none. */
export function rawLines(bytes: Uint8Array, start: number, indent: string): string[] {
  const lines: string[] = [];
  for (let at = start; at < bytes.length; at += RAW_WIDTH) {
    if (lines.length === RAW_LINES_MAX) {
      lines.push(`${indent}... ${bytes.length - at} more byte(s)`);
      break;
    }
    const row = bytes.subarray(at, at + RAW_WIDTH);
    const hex = Array.from(row, (byte) => byte.toString(16).padStart(2, "0")).join(" ");
    const text = String.fromCharCode(...row).replace(/[^\x20-\x7e]/g, ".");
    lines.push(`${indent}${addressLine(at)}  ${hex.padEnd(RAW_WIDTH * 3 - 1)}  ${text}`);
  }
  return lines;
}
