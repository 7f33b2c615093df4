import { expect, test } from "bun:test";
import { age, bytes, megabytes, micros, percent, rate, sinceText, whole } from "./format.ts";

/** Spaces that do not break look like others here. */
const plain = (text: string) => text.replace(/[\u202f\u00a0]/g, " ");

test("numbers with few digits and their unit", () => {
  expect([0, 999, 1234, 1234567.4].map(whole).map(plain)).toEqual([
    ...["0", "999", "1 234", "1 234 567"],
  ]);
  expect([0, 1023, 1536, 2 ** 30, 1.5 * 2 ** 40].map(bytes).map(plain)).toEqual([
    ...["0 B", "1023 B", "1.50 KiB", "1 GiB", "1.50 TiB"],
  ]);
  expect([0, 0.4, 48.24, 999.4, 1234, 2.5e6].map(micros).map(plain)).toEqual([
    ...["0", "0.40 µs", "48.2 µs", "999 µs", "1.23 ms", "2.50 s"],
  ]);
  expect([0, 0.25, 9.96, 12345].map(rate).map(plain)).toEqual(["0", "0.3", "10.0", "12 345"]);
  expect([0, 12_345_678, 345e6].map(megabytes)).toEqual(["0", "12.35", "345"]);
  expect(plain(percent(0.0213))).toBe("2.1 %");
});

test("ages in their two largest units", () => {
  expect([0, 59.9, 61, 3600, 90_061].map(age).map(plain)).toEqual([
    ...["0 s", "59 s", "1 min 1 s", "1 h 0 min", "1 d 1 h"],
  ]);
  // A host's clock may be ahead of the reader's.
  expect(plain(sinceText("2026-11-26T12:00:01Z", Date.parse("2026-11-26T12:00:00Z")))).toBe("0 s");
  expect(sinceText(null, 0)).toBe("-");
});
