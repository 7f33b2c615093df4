// Resource descriptors of _CRS (ACPI 6.3, 6.4): the ports, interrupts and address windows of a
// device. Each function returns one descriptor; resourceTemplate puts them into the buffer AML
// wants.

import { type Aml, buffer, join } from "./aml.ts";
import { Encoder } from "./encoder.ts";

/** Large items carry their length in two bytes after the type, small ones in its bits 2:0. */
function large(type: number, content: Encoder): Uint8Array {
  return new Encoder().u8(type).u16(content.length).bytes(content.finish()).finish();
}

/** IO port descriptor (6.4.2.5) that decodes 16 bits, fixed at `port`. */
export function io(port: number, count: number): Uint8Array {
  return new Encoder().u8(0x47).u8(1).u16(port).u16(port).u8(1).u8(count).finish();
}

/** IRQ descriptor without flags (6.4.2.1): an ISA interrupt, edge, active high, exclusive. */
export function irq(line: number): Uint8Array {
  return new Encoder()
    .u8(0x22)
    .u16(1 << line)
    .finish();
}

export interface Signalling {
  trigger: "edge" | "level";
  polarity: "high" | "low";
  shared: boolean;
}

/** Extended interrupt descriptor (6.4.3.6): global system interrupts, consumed. */
export function extendedInterrupt(gsis: readonly number[], how: Signalling): Uint8Array {
  // Bit 0 consumer, 1 edge, 2 active low, 3 shared.
  const flags =
    1 | (how.trigger === "edge" ? 2 : 0) | (how.polarity === "low" ? 4 : 0) | (how.shared ? 8 : 0);
  const content = new Encoder().u8(flags).u8(gsis.length);
  for (const gsi of gsis) content.u32(gsi);
  return large(0x89, content);
}

/** 32-bit fixed memory range (6.4.3.4). */
export function memory32Fixed(base: bigint, size: bigint, writable: boolean): Uint8Array {
  return large(
    0x86,
    new Encoder()
      .u8(writable ? 1 : 0)
      .uint(base, 4)
      .uint(size, 4),
  );
}

/** Resource types and flags of address space descriptors (6.4.3.5). */
const SPACE = { memory: 0, io: 1, bus: 2 } as const;
/** Minimum and maximum are fixed (bits 2 and 3), passed on to children (bit 0 clear). */
const WINDOW_FIXED = 0x0c;
/** Type flags: memory is writable and cacheable (bits 0 and 2:1 = 1) or, for BARs, not cached. */
const MEMORY_WRITABLE = 0x01;
/** Type flags of I/O: the entire range, both ISA and non-ISA. */
const IO_ENTIRE = 0x03;

interface Window {
  space: number;
  typeFlags: number;
  base: bigint;
  size: bigint;
}

/** Word, DWord and QWord descriptors differ in the type byte and the size of five fields. */
function window(type: number, size: number, shape: Window): Uint8Array {
  const content = new Encoder().u8(shape.space).u8(WINDOW_FIXED).u8(shape.typeFlags);
  content.uint(0, size); // granularity
  content.uint(shape.base, size);
  content.uint(shape.base + shape.size - 1n, size);
  content.uint(0, size); // translation
  content.uint(shape.size, size);
  return large(type, content);
}

export function wordBusNumber(first: number, count: number): Uint8Array {
  const shape = { space: SPACE.bus, typeFlags: 0, base: BigInt(first), size: BigInt(count) };
  return window(0x88, 2, shape);
}

export function wordIo(first: number, count: number): Uint8Array {
  const shape = { space: SPACE.io, typeFlags: IO_ENTIRE, base: BigInt(first), size: BigInt(count) };
  return window(0x88, 2, shape);
}

export function dwordMemory(base: bigint, size: bigint): Uint8Array {
  return window(0x87, 4, { space: SPACE.memory, typeFlags: MEMORY_WRITABLE, base, size });
}

export function qwordMemory(base: bigint, size: bigint): Uint8Array {
  return window(0x8a, 8, { space: SPACE.memory, typeFlags: MEMORY_WRITABLE, base, size });
}

/** The buffer of a _CRS: descriptors, then the end tag with checksum 0, which means unchecked. */
export function resourceTemplate(descriptors: readonly Uint8Array[]): Aml {
  return buffer(join([...descriptors, Uint8Array.of(0x79, 0)]));
}
