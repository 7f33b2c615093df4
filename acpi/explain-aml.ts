// The namespace of a DSDT or SSDT as an outline: scopes, devices, names with their values, methods
// with their size. Bodies of methods and what else needs an interpreter are not decoded (iasl -d
// does that). Invariants: every step consumes at least one byte and stays inside its package,
// depth and lines are bounded, so hostile AML costs time in its size and no more.

import { SsihvError } from "../src/base/errors.ts";
import { describeResources } from "./explain-resources.ts";
import { addressLine, printable } from "./explain-text.ts";

/** Deeper than any firmware nests; bounds the recursion. */
const DEPTH_MAX = 32;
const LINES_MAX = 20_000;
/** Elements and characters shown of one value. */
const ELEMENTS_SHOWN = 8;
const TEXT_SHOWN = 60;

/** Thrown inside this file when AML needs an interpreter to be read on; ends the current list. */
class Undecodable extends Error {}

class Cursor {
  constructor(
    readonly bytes: Uint8Array,
    public at: number,
    readonly end: number,
  ) {}

  get done(): boolean {
    return this.at >= this.end;
  }

  peek(): number {
    return this.done ? -1 : (this.bytes[this.at] ?? -1);
  }

  byte(): number {
    if (this.done) throw new Undecodable(`the term is cut at offset ${addressLine(this.at)}`);
    return this.bytes[this.at++] ?? 0;
  }

  uint(size: number): bigint {
    let value = 0n;
    for (let i = 0; i < size; i++) value |= BigInt(this.byte()) << BigInt(8 * i);
    return value;
  }

  /** A package: its length here, then a cursor over what it holds; this cursor goes past it. */
  package(): Cursor {
    const start = this.at;
    const first = this.byte();
    const extra = first >> 6;
    let length = extra === 0 ? first & 0x3f : first & 0xf;
    for (let i = 0; i < extra; i++) length += this.byte() * 2 ** (4 + 8 * i);
    const end = start + length;
    if (end > this.end || end < this.at) {
      const where = `the package at offset ${addressLine(start)}`;
      throw new Undecodable(`${where} says it has ${length} bytes, ${this.end - start} are left`);
    }
    const inside = new Cursor(this.bytes, this.at, end);
    this.at = end;
    return inside;
  }

  /** One segment: four characters of A-Z, 0-9 and underscore. */
  segment(): string {
    const text = String.fromCharCode(this.byte(), this.byte(), this.byte(), this.byte());
    if (!/^[A-Z_][A-Z0-9_]{3}$/.test(text)) {
      throw new Undecodable(`"${printable(text)}" at ${addressLine(this.at - 4)} is no name`);
    }
    return text;
  }

  name(): string {
    let prefix = "";
    if (this.peek() === 0x5c) prefix = String.fromCharCode(this.byte());
    else
      while (this.peek() === 0x5e && prefix.length < DEPTH_MAX)
        prefix += String.fromCharCode(this.byte());
    const count = this.#segments();
    return prefix + Array.from({ length: count }, () => this.segment()).join(".");
  }

  #segments(): number {
    switch (this.peek()) {
      case 0x00:
        this.byte();
        return 0;
      case 0x2e:
        this.byte();
        return 2;
      case 0x2f:
        this.byte();
        return this.byte();
      default:
        return 1;
    }
  }
}

/** The seven characters of a compressed EISA id. */
function eisaText(value: bigint): string {
  const bytes = Array.from({ length: 4 }, (_, i) => Number((value >> BigInt(8 * i)) & 0xffn));
  const [a = 0, b = 0, c = 0, d = 0] = bytes;
  const letters = [a >> 2, ((a & 3) << 3) | (b >> 5), b & 0x1f];
  const low = ((c << 8) | d).toString(16).toUpperCase().padStart(4, "0");
  return String.fromCharCode(...letters.map((letter) => letter + 0x40)) + low;
}

function shortened(text: string): string {
  return text.length > TEXT_SHOWN ? `${text.slice(0, TEXT_SHOWN)}...` : text;
}

interface Data {
  text: string;
  integer?: bigint;
  buffer?: Uint8Array;
}

function bufferData(cursor: Cursor, depth: number): Data {
  const inside = cursor.package();
  const size = data(inside, depth + 1).integer;
  const content = inside.bytes.subarray(inside.at, inside.end);
  return { text: `Buffer of ${size ?? "?"} byte(s)`, buffer: content };
}

function packageData(cursor: Cursor, counted: boolean, depth: number): Data {
  const inside = cursor.package();
  const count = counted ? BigInt(inside.byte()) : data(inside, depth + 1).integer;
  const shown: string[] = [];
  while (!inside.done && shown.length < ELEMENTS_SHOWN) {
    const first = inside.peek();
    // A reference by name: root, parents or a letter begins it.
    const isName = first === 0x5c || first === 0x5e || (first >= 0x41 && first <= 0x5f);
    const isPath = first === 0x2e || first === 0x2f;
    shown.push(isName || isPath ? inside.name() : data(inside, depth + 1).text);
  }
  const more = inside.done ? "" : ", ...";
  return { text: `Package of ${count ?? "?"} {${shortened(shown.join(", "))}${more}}` };
}

function stringData(cursor: Cursor): Data {
  let text = "";
  for (let byte = cursor.byte(); byte !== 0; byte = cursor.byte())
    text += String.fromCharCode(byte);
  return { text: `"${shortened(printable(text))}"` };
}

function integerData(value: bigint): Data {
  return {
    text: value > 9n ? `0x${value.toString(16).toUpperCase()}` : `${value}`,
    integer: value,
  };
}

/** A data object (ACPI 6.3, 20.2.3). */
function data(cursor: Cursor, depth: number): Data {
  if (depth > DEPTH_MAX) throw new Undecodable("packages are nested too deeply");
  const at = cursor.at;
  const opcode = cursor.byte();
  switch (opcode) {
    case 0x00:
      return integerData(0n);
    case 0x01:
      return integerData(1n);
    case 0xff:
      return { text: "Ones", integer: 0xffff_ffff_ffff_ffffn };
    case 0x0a:
      return integerData(cursor.uint(1));
    case 0x0b:
      return integerData(cursor.uint(2));
    case 0x0c:
      return integerData(cursor.uint(4));
    case 0x0e:
      return integerData(cursor.uint(8));
    case 0x0d:
      return stringData(cursor);
    case 0x11:
      return bufferData(cursor, depth);
    case 0x12:
      return packageData(cursor, true, depth);
    case 0x13:
      return packageData(cursor, false, depth);
  }
  throw new Undecodable(`0x${opcode.toString(16)} at ${addressLine(at)} begins no constant`);
}

function sizeOf(inside: Cursor): string {
  return `${inside.end - inside.at} byte(s)`;
}

/** A term without terms of its own, after its one-byte opcode. */
function plainTerm(cursor: Cursor, opcode: number): string {
  switch (opcode) {
    case 0x06: {
      const source = cursor.name();
      return `Alias ${cursor.name()} of ${source}`;
    }
    case 0x14: {
      const inside = cursor.package();
      const title = inside.name();
      const flags = inside.byte();
      const how = flags & 8 ? ", serialized" : "";
      return `Method ${title}: ${flags & 7} argument(s)${how}, ${sizeOf(inside)}`;
    }
    case 0x15: {
      const title = cursor.name();
      cursor.uint(2); // object type, arguments
      return `External ${title}`;
    }
    case 0xa0:
      return `If: ${sizeOf(cursor.package())}`;
    case 0xa1:
      return `Else: ${sizeOf(cursor.package())}`;
  }
  throw new Undecodable(`opcode 0x${opcode.toString(16)} needs an interpreter, see iasl -d`);
}

/** The same after 0x5B and a second byte. */
function extendedTerm(cursor: Cursor, opcode: number): string {
  const fieldOf = (kind: string): string => {
    const inside = cursor.package();
    return `${kind} of ${inside.name()}: ${sizeOf(inside)}`;
  };
  switch (opcode) {
    case 0x01: {
      const title = cursor.name();
      return `Mutex ${title}, level ${cursor.byte() & 0xf}`;
    }
    case 0x02:
      return `Event ${cursor.name()}`;
    case 0x80: {
      const title = cursor.name();
      const space = cursor.byte();
      const offset = data(cursor, 0).text;
      return `OperationRegion ${title}: space ${space}, ${offset}, ${data(cursor, 0).text} byte(s)`;
    }
    case 0x81:
      return fieldOf("Field");
    case 0x86:
      return fieldOf("IndexField");
    case 0x87:
      return fieldOf("BankField");
  }
  throw new Undecodable(`opcode 0x5B 0x${opcode.toString(16)} is not decoded, see iasl -d`);
}

class Outline {
  readonly lines: string[] = [];

  say(at: number, depth: number, text: string): void {
    if (this.lines.length === LINES_MAX) this.lines.push("... cut: the outline is too long");
    if (this.lines.length > LINES_MAX) return;
    this.lines.push(`${addressLine(at)}  ${"  ".repeat(depth)}${text}`);
  }

  /** All terms of one package; a term that cannot be read ends the list with its reason. */
  list(cursor: Cursor, depth: number): void {
    if (depth > DEPTH_MAX) {
      this.say(cursor.at, DEPTH_MAX, "(nested too deeply to be shown)");
      return;
    }
    while (!cursor.done && this.lines.length <= LINES_MAX) {
      const at = cursor.at;
      try {
        this.#term(cursor, depth, at);
      } catch (error) {
        if (!(error instanceof Undecodable)) throw error;
        const left = cursor.end - at;
        this.say(at, depth, `(${left} byte(s) not decoded: ${error.message})`);
        return;
      }
    }
  }

  #term(cursor: Cursor, depth: number, at: number): void {
    const opcode = cursor.byte();
    switch (opcode) {
      case 0x08:
        this.#name(cursor, depth, at);
        break;
      case 0x10:
        this.#nested(cursor.package(), depth, at, "Scope");
        break;
      case 0x5b:
        this.#extended(cursor, depth, at);
        break;
      default:
        this.say(at, depth, plainTerm(cursor, opcode));
    }
  }

  #extended(cursor: Cursor, depth: number, at: number): void {
    const opcode = cursor.byte();
    switch (opcode) {
      case 0x82:
        this.#nested(cursor.package(), depth, at, "Device");
        break;
      case 0x83: // processor id, P_BLK address, its length
        this.#nested(cursor.package(), depth, at, "Processor", 6);
        break;
      case 0x84: // system level, order
        this.#nested(cursor.package(), depth, at, "PowerResource", 3);
        break;
      case 0x85:
        this.#nested(cursor.package(), depth, at, "ThermalZone");
        break;
      default:
        this.say(at, depth, extendedTerm(cursor, opcode));
    }
  }

  /** A named list of terms; `skip` bytes of its own stand between name and list. */
  #nested(inside: Cursor, depth: number, at: number, kind: string, skip = 0): void {
    const title = inside.name();
    inside.uint(skip);
    this.say(at, depth, `${kind} ${title === "" ? "\\" : title}`);
    this.list(inside, depth + 1);
  }

  #name(cursor: Cursor, depth: number, at: number): void {
    const title = cursor.name();
    const value = data(cursor, 0);
    const isId = title.endsWith("_HID") || title.endsWith("_CID");
    if (isId && value.integer !== undefined) {
      this.say(at, depth, `${title} = EISA id ${printable(eisaText(value.integer))}`);
      return;
    }
    this.say(at, depth, `${title} = ${value.text}`);
    if (value.buffer === undefined || !/_[CP]RS$/.test(title)) return;
    for (const line of describeResources(value.buffer)) this.say(at, depth + 1, line);
  }
}

/** Lines for the AML from `at` to the end of `bytes`. */
export function explainAml(bytes: Uint8Array, at: number): string[] {
  if (at > bytes.length) {
    throw new SsihvError("acpi_invalid", "the table ends before its AML begins");
  }
  const outline = new Outline();
  outline.list(new Cursor(bytes, at, bytes.length), 0);
  return outline.lines;
}
