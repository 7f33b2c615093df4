import { expect, test } from "bun:test";

import { SsihvError } from "../base/errors.ts";
import { parseDurationUs, parseLongMs } from "./duration.ts";

test("reads every unit", () => {
  expect(parseDurationUs("5s", "x")).toBe(5_000_000);
  expect(parseDurationUs(" 20 ms ", "x")).toBe(20_000);
  expect(parseDurationUs("0.5ms", "x")).toBe(500);
  expect(parseDurationUs("7us", "x")).toBe(7);
  expect(parseDurationUs("2min", "x")).toBe(120_000_000);
  expect(parseDurationUs("0s", "x")).toBe(0);
});

test("reads days and hours where something lasts long", () => {
  expect(parseLongMs("365d", "x")).toBe(365 * 86_400_000);
  expect(parseLongMs("1.5h", "x")).toBe(5_400_000);
  expect(() => parseLongMs("5ms", "--cert-life")).toThrow('--cert-life: "5ms" is not a duration');
});

test("refuses anything else by name", () => {
  for (const text of ["", "5", "s", "-1s", "1h", "1e3s", "5 s s", "9".repeat(50)]) {
    expect(() => parseDurationUs(text, "--peer-timeout")).toThrow(SsihvError);
    expect(() => parseDurationUs(text, "--peer-timeout")).toThrow("--peer-timeout");
  }
});
