import { expect, test } from "bun:test";
import { type CpioEntry, writeCpio } from "./cpio.ts";

const text = (value: string) => new TextEncoder().encode(value);

interface Parsed {
  path: string;
  mode: number;
  bytes: string;
  device: string;
}

// Reads an archive as the kernel does (init/initramfs.c): header, name, body, each padded to 4.
function parse(archive: Uint8Array): Parsed[] {
  const decode = (from: number, to: number) => new TextDecoder().decode(archive.subarray(from, to));
  const align = (offset: number) => (offset + 3) & ~3;
  const entries: Parsed[] = [];
  for (let offset = 0; ; ) {
    expect(decode(offset, offset + 6)).toBe("070701");
    const field = (index: number) =>
      Number.parseInt(decode(offset + 6 + index * 8, offset + 14 + index * 8), 16);
    const nameEnd = offset + 110 + field(11);
    const path = decode(offset + 110, nameEnd - 1);
    if (path === "TRAILER!!!") return entries;
    const body = align(nameEnd);
    const bytes = decode(body, body + field(6));
    entries.push({ path, mode: field(1), bytes, device: `${field(9)}:${field(10)}` });
    offset = align(body + field(6));
  }
}

const sample: CpioEntry[] = [
  { kind: "directory", path: "bin" },
  { kind: "file", path: "bin/tool", mode: 0o755, bytes: text("abcde") },
  { kind: "symlink", path: "bin/sh", target: "tool" },
  { kind: "character", path: "console", major: 5, minor: 1 },
  { kind: "file", path: "empty", bytes: text("") },
];

test("every kind of entry comes back with its mode, body and device", () => {
  expect(parse(writeCpio(sample))).toEqual([
    { path: "bin", mode: 0o040755, bytes: "", device: "0:0" },
    { path: "bin/tool", mode: 0o100755, bytes: "abcde", device: "0:0" },
    { path: "bin/sh", mode: 0o120777, bytes: "tool", device: "0:0" },
    { path: "console", mode: 0o020600, bytes: "", device: "5:1" },
    { path: "empty", mode: 0o100644, bytes: "", device: "0:0" },
  ]);
});

test("names and bodies of every length stay aligned", () => {
  const entries = Array.from({ length: 9 }, (_, length): CpioEntry => {
    return { kind: "file", path: "n".repeat(length + 1), bytes: text("b".repeat(length)) };
  });
  const parsed = parse(writeCpio(entries));
  expect(parsed.map((entry) => entry.bytes.length)).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8]);
});

test("the archive is the same each time and a whole number of 512-byte blocks", () => {
  expect(writeCpio(sample)).toEqual(writeCpio(sample));
  expect(writeCpio(sample).length % 512).toBe(0);
});

test("a path that leaves the archive is refused", () => {
  for (const path of ["/etc/passwd", "../up", "a//b", "", "a/../b"]) {
    expect(() => writeCpio([{ kind: "directory", path }])).toThrow(RangeError);
  }
});
