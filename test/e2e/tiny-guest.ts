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
  /** mov ecx, register; mov eax, low; mov edx, high; wrmsr */
  wrmsr: (register: number, low: number, high: number): number[] => [
    ...[0xb9, ...littleEndian(register), 0xb8, ...littleEndian(low)],
    ...[0xba, ...littleEndian(high), 0x0f, 0x30],
  ],
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

/** IA32_APIC_BASE and the x2APIC's interrupt command (SDM vol. 3A, 10.4.4 and 10.12.9). */
const APIC_BASE = 0x1b;
const X2APIC_ON = 0xfee0_0d00;
const X2APIC_ICR = 0x830;
const INIT = 0x4500;
const STARTUP = 0x4600;
/** The first vCPU of node 1. */
const OTHER_APIC_ID = 1 << 6;
const OTHER_CODE = 0x7_0000;
const SHARED_PAGE = 0x6_0000;

/**
 * Node 1's vCPU writes one page for ever, in real mode from where the start-up interrupt sends it,
 * and so does this one: the page goes to and fro.
 */
export function quarrel(): number[] {
  // mov ax, page >> 4; mov ds, ax; inc byte ptr [0]; jmp back
  const other = [0xb8, 0, SHARED_PAGE >> 12, 0x8e, 0xd8, 0xfe, 0x06, 0, 0, 0xeb, 0xfa];
  // mov byte ptr [address], value
  const place = other.flatMap((byte, i) => [0xc6, 4, 0x25, ...littleEndian(OTHER_CODE + i), byte]);
  const start = STARTUP | (OTHER_CODE >> 12);
  return [
    ...place,
    ...asm.wrmsr(APIC_BASE, X2APIC_ON, 0),
    ...asm.wrmsr(X2APIC_ICR, INIT, OTHER_APIC_ID),
    ...asm.wrmsr(X2APIC_ICR, start, OTHER_APIC_ID),
    ...increment(SHARED_PAGE),
    // jmp back over itself and the increment
    ...[0xeb, -9 & 0xff],
  ];
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
