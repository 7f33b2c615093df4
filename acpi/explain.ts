// Any ACPI table in words: every field with its offset, bytes, value and meaning. The field lists
// are those the tables are written from. Works on foreign tables of other versions: what is
// shorter ends early, what is longer or unknown is shown as bytes. Hostile input gives an
// SsihvError or odd text, never anything else; no control character of a table reaches the
// terminal.

import { SsihvError } from "../src/base/errors.ts";
import { checksum, claimedLength, HEADER_BYTES } from "./encoder.ts";
import { explainAml } from "./explain-aml.ts";
import { addressLine, describeField, hexBytes, printable, rawLines } from "./explain-text.ts";
import { FACS, FACS_SIGNATURE } from "./facs.ts";
import { FADT } from "./fadt.ts";
import { HEADER } from "./header.ts";
import {
  HMAT,
  LOCALITY,
  STRUCTURE_HEADER_BYTES,
  STRUCTURE_LENGTH_OFFSET,
  STRUCTURES,
} from "./hmat.ts";
import { ENTRY_HEADER_BYTES, type EntryLayout, type Layout } from "./layout.ts";
import { MADT, MADT_ENTRIES } from "./madt.ts";
import { RSDP, RSDP_SIGNATURE, RSDP_V1, RSDP_V1_BYTES } from "./rsdp.ts";
import { SLIT } from "./slit.ts";
import { SRAT, SRAT_ENTRIES } from "./srat.ts";
import { XSDT_ENTRY_BYTES } from "./xsdt.ts";

/** More lines than any real table gives; a table of empty entries must not fill the memory. */
const LINES_MAX = 50_000;
/** RSDT entries have 32 bits. */
const RSDT_ENTRY_BYTES = 4;

interface Explainer {
  /** Fields right after the header. */
  fixed?: Layout;
  /** What follows them: lines for bytes from `at` to the end. */
  rest?: (bytes: Uint8Array, at: number) => string[];
}

const NO_TABLE = "give a binary ACPI table, as in /sys/firmware/acpi/tables";
const DAMAGED = "the table is damaged or cut: take it again from where it came";

function bad(message: string, hint: string = DAMAGED): never {
  throw new SsihvError("acpi_invalid", message, { hint });
}

/** Fields of `shape` from `at` on; stops where the bytes end between two fields. */
function fieldLines(bytes: Uint8Array, at: number, shape: Layout, indent = ""): string[] {
  const lines: string[] = [];
  let offset = at;
  for (const field of shape.fields) {
    if (offset === bytes.length) {
      lines.push(`${indent}(an older version: it ends before "${field.name || "reserved"}")`);
      break;
    }
    if (offset + field.size > bytes.length) {
      bad(
        `the table ends at ${bytes.length}, in the middle of "${field.name || "reserved"}", ` +
          `which is ${field.size} byte(s) at offset 0x${offset.toString(16)}`,
      );
    }
    lines.push(...describeField(bytes, offset, field).map((line) => indent + line));
    offset += field.size;
  }
  return lines;
}

/** Subtables up to the end, each with a type and a length byte. */
function entries(known: readonly EntryLayout[]) {
  return (bytes: Uint8Array, start: number): string[] => {
    const lines: string[] = [];
    for (let at = start; at < bytes.length; ) {
      if (lines.length > LINES_MAX) return [...lines, `... ${bytes.length - at} more byte(s)`];
      const type = bytes[at] ?? 0;
      const size = bytes[at + 1] ?? 0;
      const where = `the entry at offset 0x${at.toString(16)}`;
      if (size < ENTRY_HEADER_BYTES) {
        bad(`${where} says it has ${size} byte(s); an entry has at least ${ENTRY_HEADER_BYTES}`);
      }
      if (at + size > bytes.length) {
        bad(`${where} says it has ${size} bytes, the table has ${bytes.length - at} left`);
      }
      const shape = known.find((candidate) => candidate.type === type);
      const title = shape?.title ?? "not described here";
      lines.push("", `${addressLine(at)}  ${title}: type ${type}, ${size} bytes`);
      const whole = bytes.subarray(0, at + size);
      const fields = at + ENTRY_HEADER_BYTES;
      if (shape) lines.push(...fieldLines(whole, fields, shape, "  "));
      lines.push(...rawLines(whole, Math.min(fields + (shape?.size ?? 0), whole.length), "  "));
      at += size;
    }
    return lines;
  };
}

function pointers(size: number) {
  return (bytes: Uint8Array, start: number): string[] => {
    const lines: string[] = [];
    let at = start;
    for (; at + size <= bytes.length; at += size) {
      if (lines.length > LINES_MAX) return [...lines, `... ${bytes.length - at} more byte(s)`];
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
      const address = size === 8 ? view.getBigUint64(at, true) : BigInt(view.getUint32(at, true));
      const bytesOf = hexBytes(bytes, at, size);
      lines.push(`${addressLine(at)}  ${bytesOf}  table at 0x${address.toString(16)}`);
    }
    if (at < bytes.length) bad(`the last pointer is cut: ${bytes.length - at} of ${size} bytes`);
    return lines;
  };
}

function distances(bytes: Uint8Array, start: number): string[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const count = view.getBigUint64(start - SLIT.size, true);
  const space = bytes.length - start;
  if (count * count > BigInt(space)) {
    bad(`${count} localities need ${count * count} distances, the table has ${space}`);
  }
  const nodes = Number(count);
  const lines: string[] = [];
  for (let from = 0; from < nodes; from++) {
    const at = start + from * nodes;
    const row = Array.from(bytes.subarray(at, at + nodes), (value) => `${value}`.padStart(4));
    lines.push(`${addressLine(at)}  from node ${`${from}`.padStart(3)}: ${row.join("")}`);
  }
  return [...lines, ...rawLines(bytes, start + nodes * nodes, "")];
}

/** Lists and matrix of an HMAT locality structure whose own fields end at `start`. */
function localityLines(bytes: Uint8Array, start: number): string[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const fields = start - LOCALITY.size;
  const initiators = view.getUint32(fields + 4, true);
  const targets = view.getUint32(fields + 8, true);
  const unit = view.getBigUint64(fields + 16, true);
  const wanted = 4 * (initiators + targets) + 2 * initiators * targets;
  if (wanted > bytes.length - start) {
    const space = bytes.length - start;
    bad(`${initiators} initiators and ${targets} targets need ${wanted} bytes, there are ${space}`);
  }
  const node = (i: number) => view.getUint32(start + 4 * i, true);
  const lines: string[] = [];
  const matrix = start + 4 * (initiators + targets);
  for (let from = 0; from < initiators; from++) {
    const row = matrix + 2 * from * targets;
    const values = Array.from({ length: targets }, (_, to) => {
      const value = BigInt(view.getUint16(row + 2 * to, true)) * unit;
      return `${value} to ${node(initiators + to)}`;
    });
    lines.push(`  ${addressLine(row)}  from node ${node(from)}: ${values.join(", ")}`);
  }
  return [...lines, ...rawLines(bytes, start + wanted, "  ")];
}

/** Structures of an HMAT up to the end, each with a type and a length of 32 bits. */
function structures(bytes: Uint8Array, start: number): string[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const lines: string[] = [];
  for (let at = start; at < bytes.length; ) {
    if (lines.length > LINES_MAX) return [...lines, `... ${bytes.length - at} more byte(s)`];
    const left = bytes.length - at;
    const where = `the structure at offset 0x${at.toString(16)}`;
    if (left < STRUCTURE_HEADER_BYTES) bad(`${where} is cut: ${left} byte(s) are left`);
    const type = view.getUint16(at, true);
    const size = view.getUint32(at + STRUCTURE_LENGTH_OFFSET, true);
    if (size < STRUCTURE_HEADER_BYTES || size > left) {
      bad(`${where} says it has ${size} bytes, the table has ${left} left`);
    }
    const shape = STRUCTURES.find((candidate) => candidate.type === type);
    const title = shape?.title ?? "not described here";
    lines.push("", `${addressLine(at)}  ${title}: type ${type}, ${size} bytes`);
    const whole = bytes.subarray(0, at + size);
    const fields = at + STRUCTURE_HEADER_BYTES;
    if (shape) lines.push(...fieldLines(whole, fields, shape, "  "));
    const rest = Math.min(fields + (shape?.size ?? 0), whole.length);
    const isWhole = shape === LOCALITY && rest === fields + LOCALITY.size;
    lines.push(...(isWhole ? localityLines(whole, rest) : rawLines(whole, rest, "  ")));
    at += size;
  }
  return lines;
}

const TABLES: Readonly<Record<string, Explainer>> = {
  FACP: { fixed: FADT },
  APIC: { fixed: MADT, rest: entries(MADT_ENTRIES) },
  SRAT: { fixed: SRAT, rest: entries(SRAT_ENTRIES) },
  SLIT: { fixed: SLIT, rest: distances },
  HMAT: { fixed: HMAT, rest: structures },
  XSDT: { rest: pointers(XSDT_ENTRY_BYTES) },
  RSDT: { rest: pointers(RSDT_ENTRY_BYTES) },
  DSDT: { rest: explainAml },
  SSDT: { rest: explainAml },
};

function checksumWords(bytes: Uint8Array): string {
  const off = checksum(bytes);
  return off === 0 ? "checksum good" : `CHECKSUM WRONG (the bytes sum to ${256 - off}, not 0)`;
}

function explainRsdp(bytes: Uint8Array): string[] {
  if (bytes.length < RSDP_V1_BYTES) {
    bad(`an RSDP has at least ${RSDP_V1_BYTES} bytes, this has ${bytes.length}`);
  }
  const revision = bytes[15] ?? 0;
  const first = `RSDP, first part: ${checksumWords(bytes.subarray(0, RSDP_V1_BYTES))}`;
  if (revision < 2) return [first, "", ...fieldLines(bytes, 0, RSDP_V1)];
  if (bytes.length < RSDP.size) {
    bad(`an RSDP of revision ${revision} has ${RSDP.size} bytes, this has ${bytes.length}`);
  }
  const whole = `RSDP, all of it: ${checksumWords(bytes.subarray(0, RSDP.size))}`;
  return [first, whole, "", ...fieldLines(bytes, 0, RSDP), ...rawLines(bytes, RSDP.size, "")];
}

function explainFacs(bytes: Uint8Array): string[] {
  const lines = [`FACS: ${FACS.title}, ${bytes.length} bytes, has no checksum`, ""];
  return [...lines, ...fieldLines(bytes, 0, FACS), ...rawLines(bytes, FACS.size, "")];
}

function explainStandard(bytes: Uint8Array, signature: string): string[] {
  if (bytes.length < HEADER_BYTES) {
    bad(`a table has at least ${HEADER_BYTES} bytes, this has ${bytes.length}`, NO_TABLE);
  }
  if (!/^[A-Z0-9_]{4}$/.test(signature)) {
    bad(`"${printable(signature)}" is no table signature`, NO_TABLE);
  }
  const length = claimedLength(bytes);
  if (length < HEADER_BYTES || length > bytes.length) {
    bad(`${signature} says it has ${length} bytes, ${bytes.length} were given`, NO_TABLE);
  }
  const table = bytes.subarray(0, length);
  const known: Explainer = TABLES[signature] ?? {};
  const title = known.fixed ? `: ${known.fixed.title}` : "";
  const lines = [`${signature}${title}, ${length} bytes, ${checksumWords(table)}`, ""];
  lines.push(...fieldLines(table, 0, HEADER));
  let at = HEADER_BYTES;
  if (known.fixed) {
    lines.push("", ...fieldLines(table, at, known.fixed));
    at = Math.min(at + known.fixed.size, table.length);
    if (at < HEADER_BYTES + known.fixed.size && known.rest) return lines;
  }
  const rest = (known.rest ?? ((all, from) => rawLines(all, from, "")))(table, at);
  // Subtables bring their own blank lines.
  lines.push(...(rest[0] === "" ? [] : [""]), ...rest);
  if (length < bytes.length) {
    lines.push("", `${bytes.length - length} byte(s) after the table are not part of it`);
  }
  return lines;
}

/** Text without a newline at its end. Throws SsihvError "acpi_invalid" for what is no table. */
export function explainTable(bytes: Uint8Array): string {
  if (bytes.length === 0) bad("the table is empty", NO_TABLE);
  const text = (size: number): string => String.fromCharCode(...bytes.subarray(0, size));
  const lines =
    text(8) === RSDP_SIGNATURE
      ? explainRsdp(bytes)
      : text(4) === FACS_SIGNATURE
        ? explainFacs(bytes)
        : explainStandard(bytes, text(4));
  return lines.join("\n").trimEnd();
}
