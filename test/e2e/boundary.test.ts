// The Zig-TypeScript boundary across builds: whatever changes in a record, an enum, a constant or a
// function changes the hash, and a library of another build is refused when it is loaded.

import { describe, expect, test } from "bun:test";
import { cpSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { ABI_HASH } from "../../src/native/abi.gen.ts";
import { checkout, type Finished, run, temporaryFolder } from "./support.ts";

function zig(): string {
  const tools = readdirSync(`${checkout}/.tools`).find((name) => /^zig-[\d.]+$/.test(name));
  return `${checkout}/.tools/${tools}/ziglang/zig`;
}

/** Replaces a text that must be there. */
function edit(path: string, from: string, to: string): void {
  const text = readFileSync(path, "utf8");
  if (!text.includes(from)) throw new Error(`${path} has no "${from}" any more: choose another`);
  writeFileSync(path, text.replace(from, to));
}

/** The ABI hash the generator prints for our Zig sources with one edit. */
async function hashAfter(file: string, from: string, to: string): Promise<string> {
  using folder = temporaryFolder();
  cpSync(`${checkout}/zig`, `${folder.path}/zig`, { recursive: true });
  edit(`${folder.path}/zig/${file}`, from, to);
  const printed = await run([zig(), "run", `${folder.path}/zig/gen_abi.zig`, "-lc"]);
  return /ABI_HASH = 0x([0-9a-f]{16})n/.exec(printed.out)?.[1] ?? printed.err;
}

describe("the hash changes with", () => {
  const edits = [
    ["a constant", "abi.zig", "vcpus_max: u32 = 64", "vcpus_max: u32 = 32"],
    ["an enum value", "abi.zig", "triple_fault = 2", "triple_fault = 12"],
    ["a field's name", "abi.zig", "    vcpu_count: u32,", "    vcpus_count: u32,"],
    ["a field's type", "abi.zig", "    console_in_fd: i32,", "    console_in_fd: u32,"],
    [
      "a function's parameter",
      "exports.zig",
      "irqLine(handle: u32, pin: u32",
      "irqLine(handle: u32, pin: u64",
    ],
  ] as const;
  test.each(edits)(
    "%s",
    async (_, file, from, to) => {
      const hash = await hashAfter(file, from, to);
      expect(hash).toMatch(/^[0-9a-f]{16}$/);
      expect(hash).not.toBe(ABI_HASH.toString(16).padStart(16, "0"));
    },
    60_000,
  );
});

/** Loads our library from bindings with one edit, in a process of its own. */
async function loadWith(from: string, to: string): Promise<Finished> {
  using folder = temporaryFolder();
  for (const part of ["src/native", "src/base"]) {
    cpSync(`${checkout}/${part}`, `${folder.path}/${part}`, { recursive: true });
  }
  symlinkSync(`${checkout}/build`, `${folder.path}/build`);
  edit(`${folder.path}/src/native/abi.gen.ts`, from, to);
  const script = 'import("./src/native/library.ts").then((m) => m.library() && console.log("ok"))';
  return await run([process.execPath, "-e", script], { cwd: folder.path });
}

describe("a library is", () => {
  const hash = `0x${ABI_HASH.toString(16).padStart(16, "0")}n`;

  test("taken when its hash is the bindings'", async () => {
    expect(await loadWith(hash, hash)).toEqual({ code: 0, out: "ok\n", err: "" });
  });

  test("refused when it is of another build, with both hashes and the cure", async () => {
    const { code, err } = await loadWith(hash, "0x0123456789abcdefn");
    expect(code).not.toBe(0);
    expect(err).toContain("abi_mismatched");
    expect(err).toContain(ABI_HASH.toString(16));
    expect(err).toContain("make clean && make");
  });
});
