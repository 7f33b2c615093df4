import { expect, test } from "bun:test";
import { DEVICE } from "../vmm/board.ts";
import { PowerDevices } from "./power.ts";

const write = (device: number, value: number, size = 1) => ({ device, isWrite: true, size, value });
const read = (device: number, size = 1) => ({ device, isWrite: false, size, value: 0 });

test("i8042 command 0xFE resets, others do not", () => {
  const power = new PowerDevices();
  expect(power.answer(write(DEVICE.i8042, 0xfe)).decision?.kind).toBe("reset");
  expect(power.answer(write(DEVICE.i8042, 0xd1)).decision).toBeUndefined();
  expect(power.answer(read(DEVICE.i8042)).value).toBe(0);
});

test("the reset register needs RST_CPU and reads back its type bits", () => {
  const power = new PowerDevices();
  expect(power.answer(write(DEVICE.reset, 2)).decision).toBeUndefined();
  expect(power.answer(read(DEVICE.reset)).value).toBe(2);
  expect(power.answer(write(DEVICE.reset, 6)).decision?.kind).toBe("reset");
});

test("debug exit passes the value on; its register reads as ones", () => {
  const power = new PowerDevices();
  expect(power.answer(write(DEVICE.debugExit, 0x31, 4)).decision).toEqual({
    kind: "debug_exit",
    value: 0x31,
  });
  expect(power.answer(read(DEVICE.debugExit, 4)).value).toBe(0xffff_ffff);
});

test("the debug console shows its mark and takes bytes", () => {
  const power = new PowerDevices();
  expect(power.answer(read(DEVICE.debugConsole)).value).toBe(0xe9);
  expect(power.answer(write(DEVICE.debugConsole, 0x41)).debugByte).toBe(0x41);
});

test("SLP_EN powers off; other register files decide nothing", () => {
  const power = new PowerDevices();
  expect(power.registerEvent(DEVICE.pm1Control)).toEqual({ kind: "power_off" });
  expect(power.registerEvent(DEVICE.nmiStatus)).toBeUndefined();
});
