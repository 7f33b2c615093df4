import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { formatSize, parseSize } from "./size.ts";

describe("parseSize", () => {
  const good: [string, bigint][] = [
    ["512M", 512n << 20n],
    ["512m", 512n << 20n],
    ["4G", 4n << 30n],
    ["1.5GiB", 3n << 29n],
    ["1.5 GiB", 3n << 29n],
    ["2048 KiB", 2n << 20n],
    ["1GB", 1n << 30n],
    ["1T", 1n << 40n],
    ["1073741824", 1n << 30n],
    ["4096B", 4096n],
    [" 64M ", 64n << 20n],
    ["0.5K", 512n],
  ];
  for (const [text, bytes] of good) {
    test(text, () => expect(parseSize(text, "--memory")).toBe(bytes));
  }

  const bad = [
    "",
    "M",
    "-1G",
    "1.G",
    ".5G",
    "1e9",
    "4 G B",
    "1Gi",
    "1iB",
    "0x10",
    "1,5G",
    "4P",
    "NaN",
  ];
  for (const text of bad) {
    test(`"${text}" is no size`, () => {
      expect(() => parseSize(text, "--memory")).toThrow(`--memory: "${text}" is not a size`);
    });
  }

  test("part bytes, nothing and too much are told apart", () => {
    expect(() => parseSize("0.3K", "-m")).toThrow(/not a whole number of bytes/);
    expect(() => parseSize("0", "-m")).toThrow(/is nothing/);
    expect(() => parseSize("0.0G", "-m")).toThrow(/is nothing/);
    expect(() => parseSize("999999T", "-m")).toThrow(/more than any host addresses/);
  });

  test("a long hostile text is cut in the message", () => {
    expect(() => parseSize("9".repeat(10_000), "-m")).toThrow(/^-m: "9{40}\.\.\." is not a size$/);
  });
});

test("formatSize is read back exactly", () => {
  fc.assert(
    fc.property(fc.bigInt({ min: 1n, max: 1n << 52n }), (bytes) => {
      expect(parseSize(formatSize(bytes), "x")).toBe(bytes);
    }),
  );
  expect(formatSize(1536n << 20n)).toBe("1536M");
  expect(formatSize(0n)).toBe("0");
});
