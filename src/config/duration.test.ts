import { expect, test } from "bun:test";

import { SsihvError } from "../base/errors.ts";
import { parseDurationUs } from "./duration.ts";

test("reads every unit", () => {
  expect(parseDurationUs("5s", "x")).toBe(5_000_000);
  expect(parseDurationUs(" 20 ms ", "x")).toBe(20_000);
  expect(parseDurationUs("0.5ms", "x")).toBe(500);
  expect(parseDurationUs("7us", "x")).toBe(7);
  expect(parseDurationUs("2min", "x")).toBe(120_000_000);
  expect(parseDurationUs("0s", "x")).toBe(0);
});

test("refuses anything else by name", () => {
  for (const text of ["", "5", "s", "-1s", "1h", "1e3s", "5 s s", "9".repeat(50)]) {
    expect(() => parseDurationUs(text, "--peer-timeout")).toThrow(SsihvError);
    expect(() => parseDurationUs(text, "--peer-timeout")).toThrow("--peer-timeout");
  }
});
