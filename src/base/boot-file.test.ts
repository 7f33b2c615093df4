import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BOOT_FILE_HEAD_BYTES, openBootFile } from "./boot-file.ts";
import { SsihvError } from "./errors.ts";

const folder = mkdtempSync(join(tmpdir(), "ssihv-boot-file-"));
afterAll(() => rmSync(folder, { recursive: true }));

function write(name: string, size: number): string {
  const path = join(folder, name);
  writeFileSync(path, new Uint8Array(size).fill(7));
  return path;
}

test("reads the head and the size, not the file", () => {
  const file = openBootFile(write("large", 100_000), "kernel", "kernel_invalid");
  expect(file.size).toBe(100_000);
  expect(file.head).toEqual(new Uint8Array(BOOT_FILE_HEAD_BYTES).fill(7));
});

test("a short or empty file has a short or empty head", () => {
  expect(openBootFile(write("short", 10), "kernel", "kernel_invalid").head.length).toBe(10);
  expect(openBootFile(write("empty", 0), "kernel", "kernel_invalid").head.length).toBe(0);
});

test("says what is wrong with a path, under the code of its role", () => {
  const cases: [string, RegExp][] = [
    [join(folder, "none"), /^initrd .*none does not exist$/],
    [join(folder, "short", "x"), /has a parent that is not a directory$/],
    [folder, /is not a regular file$/],
    ["/dev/null", /^initrd \/dev\/null is not a regular file$/],
  ];
  for (const [path, message] of cases) {
    try {
      openBootFile(path, "initrd", "initrd_invalid");
      throw new Error("accepted");
    } catch (error) {
      expect(error).toBeInstanceOf(SsihvError);
      expect((error as SsihvError).code).toBe("initrd_invalid");
      expect((error as SsihvError).message).toMatch(message);
    }
  }
});
