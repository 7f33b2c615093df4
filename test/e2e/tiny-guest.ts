// Guests of a few instructions in a bzImage's clothes: what they do is known to the byte, they need
// no initrd and no interrupt, and they run where a Linux does not (shadow paging, no TDP).

import { writeFileSync } from "node:fs";
import { kernelBytes } from "../../src/vmm/fixtures/kernel.ts";

/** Sectors behind the boot sector: the header's 4096 bytes are the whole real-mode part. */
const SETUP_SECTORS = 7;
/** startup_64 (boot.rst, 64-bit boot protocol). */
const ENTRY_64 = 0x200;
const PARAGRAPH = 16;

function setDx(port: number): number[] {
  return [0x66, 0xba, port & 0xff, port >> 8]; // mov dx, port
}

/** x86-64 instructions, SDM vol. 2. */
export const asm = {
  outb: (port: number, value: number): number[] => [...setDx(port), 0xb0, value, 0xee],
  outw: (port: number, value: number): number[] => {
    return [...setDx(port), 0x66, 0xb8, value & 0xff, value >> 8, 0x66, 0xef];
  },
  /** Waits for bits of a port: in al, dx; test al, bits; jz back. */
  waitFor: (port: number, bits: number): number[] => {
    return [...setDx(port), 0xec, 0xa8, bits, 0x74, 0xfb];
  },
  /** Reads a byte from a port and writes it back. */
  echo: (port: number): number[] => [...setDx(port), 0xec, 0xee],
  /** mov ecx, count; body; dec ecx; jnz body. The body must not use ecx. */
  repeat: (count: number, body: readonly number[]): number[] => {
    const bytes = [count & 0xff, (count >> 8) & 0xff, (count >> 16) & 0xff, count >>> 24];
    const back = (-(body.length + 4) & 0xff) >>> 0;
    return [0xb9, ...bytes, ...body, 0xff, 0xc9, 0x75, back];
  },
  /** inc byte ptr [rax] */
  incrementAt: [0xfe, 0x00],
  /** cmp byte ptr [rax], value; je over; ud2 */
  expectAt: (value: number): number[] => [0x80, 0x38, value, 0x74, 0x02, ...asm.ud2],
  ud2: [0x0f, 0x0b],
  /** cli; hlt */
  halt: [0xfa, 0xf4],
  /** jmp to itself */
  spin: [0xeb, 0xfe],
};

function littleEndian(value: number): number[] {
  return [0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff);
}

/** inc byte ptr [address] (SDM vol. 2): reads and writes a page. */
export function increment(address: number): number[] {
  return [0xfe, 0x04, 0x25, ...littleEndian(address)];
}

/** For `count` pages from `address` on: the instructions, which find the page in rax. */
export function eachPage(address: number, count: number, body: readonly number[]): number[] {
  // mov eax, address; body; add eax, 4096
  const add = [0x05, 0x00, 0x10, 0x00, 0x00];
  return [0xb8, ...littleEndian(address), ...asm.repeat(count, [...body, ...add])];
}

export function say(text: string): number[] {
  return [...new TextEncoder().encode(text)].flatMap((byte) => asm.outb(0x3f8, byte));
}

export function writeGuest(path: string, ...code: readonly (readonly number[])[]): void {
  const body = [...code.flat(), ...asm.spin];
  const bytes = Math.ceil((ENTRY_64 + body.length) / PARAGRAPH) * PARAGRAPH;
  const head = kernelBytes({ sectors: SETUP_SECTORS, syssize: bytes / PARAGRAPH });
  const file = new Uint8Array(head.length + bytes);
  file.set(head);
  file.set(body, head.length + ENTRY_64);
  writeFileSync(path, file);
}
