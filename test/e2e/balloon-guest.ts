// A driver of the virtio balloon in a few instructions (virtio 1.2, 4.2 and 5.5): what a guest of
// tiny-guest.ts does to find the device, set it up, give memory and see that it was taken. It polls
// and wants no interrupts.

import { BOARD } from "../../src/vmm/board.ts";
import { asm, eachPage } from "./tiny-guest.ts";

const base = Number(BOARD.virtioBase);
const PAGE = 4096;

/** Offsets of registers (4.2.2). */
const REGISTER = {
  magic: 0x00,
  deviceId: 0x08,
  driverFeatures: 0x20,
  driverFeaturesSelect: 0x24,
  queueSelect: 0x30,
  queueSize: 0x38,
  queueReady: 0x44,
  queueNotify: 0x50,
  interruptStatus: 0x60,
  interruptAck: 0x64,
  status: 0x70,
  descriptors: 0x80,
  driver: 0x90,
  device: 0xa0,
  config: 0x100,
} as const;

export const QUEUE = { inflate: 0, deflate: 1, report: 2 } as const;
const NEXT = 1;
const WRITE = 2;
const SIZE = 8;

function bytes32(value: number): number[] {
  return [0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff);
}

/** mov eax, address; mov dword [rax], value (SDM vol. 2). */
export function poke(address: number, value: number): number[] {
  return [0xb8, ...bytes32(address), 0xc7, 0x00, ...bytes32(value)];
}

/** mov eax, address; cmp dword [rax], value; je over; ud2 */
export function expect32(address: number, value: number): number[] {
  return [0xb8, ...bytes32(address), 0x81, 0x38, ...bytes32(value), 0x74, 0x02, ...asm.ud2];
}

/** mov eax, address; cmp word [rax], value; jne back */
function await16(address: number, value: number): number[] {
  return [0xb8, ...bytes32(address), 0x66, 0x81, 0x38, value & 0xff, value >> 8, 0x75, 0xf9];
}

/** mov eax, address; cmp dword [rax], value; jne back: registers are 32 bits wide. */
function await32(address: number, value: number): number[] {
  return [0xb8, ...bytes32(address), 0x81, 0x38, ...bytes32(value), 0x75, 0xf8];
}

const set = (register: number, value: number) => poke(base + register, value);

/** The device is there, takes features of its own, and is started with these queues. */
export function startDevice(memory: number, queues: readonly number[]): number[] {
  return [
    ...expect32(base + REGISTER.magic, 0x7472_6976),
    ...expect32(base + REGISTER.deviceId, 5),
    ...[0, 1, 3].flatMap((status) => set(REGISTER.status, status)),
    ...[0x24, 1].flatMap((features, select) => [
      ...set(REGISTER.driverFeaturesSelect, select),
      ...set(REGISTER.driverFeatures, features),
    ]),
    ...set(REGISTER.status, 0x0b),
    ...expect32(base + REGISTER.status, 0x0b),
    ...queues.flatMap((queue) => startQueue(memory, queue)),
    ...set(REGISTER.status, 0x0f),
  ];
}

function startQueue(memory: number, queue: number): number[] {
  const place = memory + queue * PAGE;
  return [
    ...eachPage(place, 1, [0xc7, 0x80, ...bytes32(0x202), ...bytes32(0)]), // available index
    ...set(REGISTER.queueSelect, queue),
    ...set(REGISTER.queueSize, SIZE),
    ...set(REGISTER.descriptors, place),
    ...set(REGISTER.driver, place + 0x200),
    ...set(REGISTER.device, place + 0x400),
    ...set(REGISTER.queueReady, 1),
    ...expect32(base + REGISTER.queueReady, 1),
  ];
}

export interface Buffer {
  readonly address: number;
  readonly bytes: number;
}

/** The queue's `nth` chain (from 0): these buffers. */
export function offer(
  memory: number,
  queue: number,
  nth: number,
  buffers: readonly Buffer[],
): number[] {
  const place = memory + queue * PAGE;
  const direction = queue === QUEUE.report ? WRITE : 0;
  return [
    ...buffers.flatMap(({ address, bytes }, i) => {
      const next = i + 1 < buffers.length ? NEXT | ((i + 1) << 16) : 0;
      const words = [address, 0, bytes, direction | next];
      return words.flatMap((word, j) => poke(place + 16 * i + 4 * j, word));
    }),
    // Every chain begins with descriptor 0, which the rings are zeroed to.
    ...poke(place + 0x200, (nth + 1) << 16),
    ...set(REGISTER.queueNotify, queue),
  ];
}

/** Gives the buffers and waits until they are used. */
export function give(
  memory: number,
  queue: number,
  nth: number,
  buffers: readonly Buffer[],
): number[] {
  const used = memory + queue * PAGE + 0x402;
  return [...offer(memory, queue, nth, buffers), ...await16(used, nth + 1)];
}

/** Numbers of `count` pages from an address on, at `list`. */
export function pageNumbers(list: number, address: number, count: number): number[] {
  return Array.from({ length: count }, (_, i) => poke(list + 4 * i, address / PAGE + i)).flat();
}

/** What the balloon is to have. */
export const expectTarget = (bytes: number): number[] =>
  expect32(base + REGISTER.config, bytes / PAGE);
export const awaitTarget = (bytes: number): number[] =>
  await32(base + REGISTER.config, bytes / PAGE);

/** No device answers there. */
export const expectNobody: number[] = expect32(base + REGISTER.magic, 0xffff_ffff);

/** What the driver says that the balloon has. */
export const tellActual = (pages: number): number[] => set(REGISTER.config + 4, pages);

/** A descriptor that is its own next one; then the device has stopped (DEVICE_NEEDS_RESET). */
export function loop(memory: number, queue: number): number[] {
  const place = memory + queue * PAGE;
  return [
    ...poke(place + 0x800, place / PAGE),
    ...poke(place + 12, NEXT),
    ...poke(place + 8, 4),
    ...poke(place, place + 0x800),
    ...poke(place + 0x200, 1 << 16),
    ...set(REGISTER.queueNotify, queue),
    ...await32(base + REGISTER.status, 0x4f),
  ];
}

/** Vector that the device's line is to raise; interrupts stay off, so it is seen as requested. */
const VECTOR = 0x50;
const lapic = Number(BOARD.lapicBase);
const ioapic = Number(BOARD.ioapicBase);

/** The local APIC takes interrupts (SDM vol. 3A, 11.9); the pin: level, to APIC 0 (82093AA). */
export const routeInterrupt: number[] = [
  ...poke(lapic + 0xf0, 0x1ff),
  ...poke(ioapic, 0x10 + 2 * BOARD.virtioGsi),
  ...poke(ioapic + 0x10, 0x8000 | VECTOR),
];

/** Used buffers were told: the register says so until it is acknowledged, and so does the line. */
export const expectInterrupt: number[] = [
  ...await32(base + REGISTER.interruptStatus, 1),
  ...await32(lapic + 0x200 + (VECTOR >> 5) * 0x10, 1 << (VECTOR & 31)),
  ...set(REGISTER.interruptAck, 1),
  ...expect32(base + REGISTER.interruptStatus, 0),
];

/** No driver has the device: so it is after a reset. */
export const expectReset: number[] = expect32(base + REGISTER.status, 0);

/** The reset of the driver, and what a driver reads after it. */
export const resetDevice: number[] = [...set(REGISTER.status, 0), ...expectReset];
