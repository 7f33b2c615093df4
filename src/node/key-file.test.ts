import { expect, test } from "bun:test";
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { SsihvError } from "../base/errors.ts";
import { readKeyFile } from "./key-file.ts";

const HEX = "0123456789abcdefABCDEF0123456789".repeat(2);

/** Runs with a file of that content and mode; what the refusal says and advises. */
function refusal(content: string, mode = 0o600): { message: string; hint: string | undefined } {
  return inFile(content, mode, (path) => {
    try {
      readKeyFile(path);
    } catch (error) {
      if (error instanceof SsihvError) {
        expect(error.code).toBe("key_invalid");
        if (content !== "") expect(error.message).not.toContain(content.trim().slice(0, 16));
        return { message: error.message, hint: error.hint };
      }
      throw error;
    }
    throw new Error("nothing was refused");
  });
}

function inFile<T>(content: string, mode: number, use: (path: string) => T): T {
  const folder = mkdtempSync(join(tmpdir(), "ssihv-key-"));
  try {
    const path = join(folder, "vm.key");
    writeFileSync(path, content);
    chmodSync(path, mode);
    return use(path);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

test("a key of 64 hexadecimal characters, with or without a line's end", () => {
  for (const end of ["", "\n", "\r\n"]) {
    const key = inFile(HEX + end, 0o600, readKeyFile);
    expect(Buffer.from(key).toString("hex")).toBe(HEX.toLowerCase());
  }
  expect(inFile(HEX, 0o400, readKeyFile).length).toBe(32);
});

test("a file that others may open is refused with the way to close it", () => {
  for (const mode of [0o644, 0o640, 0o604, 0o620]) {
    const { message, hint } = refusal(HEX, mode);
    expect(message).toContain(`mode ${mode.toString(8)}`);
    expect(hint).toContain("chmod 600");
  }
});

test("what is no key is refused, and its text is not told", () => {
  for (const content of ["", HEX.slice(1), `${HEX}0`, HEX.replace("0", "g"), HEX.repeat(4)]) {
    expect(refusal(content).hint).toContain("openssl rand -hex 32");
  }
});

test("a missing file comes with the way to make it; a folder is none", () => {
  expect(() => readKeyFile("/nonexistent/vm.key")).toThrow("does not exist");
  expect(() => readKeyFile("/")).toThrow("is not a regular file");
});
