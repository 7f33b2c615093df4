// The sizes and habits of STYLE: where one hurts, split the file or say why in a comment there.

import { describe, expect, test } from "bun:test";
import { headCommentLines, longFunctions, wideLines } from "./shape.ts";
import { checkout, sources } from "./sources.ts";

const limits = { fileLines: 800, functionLines: 80, columns: 100, headLines: 14 } as const;
const code = /\.(ts|zig|sh|py)$|(^|\/)Makefile$/;

describe("shape", () => {
  test(`no file has more than ${limits.fileLines} lines`, () => {
    const long = sources(code).map(({ path, text }) => ({ path, lines: text.split("\n").length }));
    expect(long.filter(({ lines }) => lines > limits.fileLines)).toEqual([]);
  });

  test(`no line is wider than ${limits.columns} columns`, () => {
    const wide = sources(code).flatMap(({ path, text }) =>
      wideLines(text, limits.columns).map((line) => `${path}:${line}`),
    );
    expect(wide).toEqual([]);
  });

  test(`no function has more than ${limits.functionLines} lines`, () => {
    const long = sources(/\.(ts|zig)$/).flatMap(({ path, text }) =>
      longFunctions(path, text, limits.functionLines).map(
        ({ line, name, lines }) => `${path}:${line} ${name}: ${lines} lines`,
      ),
    );
    expect(long).toEqual([]);
  });

  test("every source says at its head what it is", () => {
    const heads = sources(/\.(ts|zig|sh)$/)
      .filter(({ path }) => !path.endsWith(".test.ts"))
      .map(({ path, text }) => ({ path, lines: headCommentLines(text) }));
    expect(heads.filter(({ lines }) => lines < 1 || lines > limits.headLines)).toEqual([]);
  });
});

describe("habits", () => {
  test("nothing is left to do", () => {
    const words = new RegExp(`\\b(${["TO" + "DO", "FIX" + "ME", "X" + "XX"].join("|")})\\b`);
    const found = sources(/./).filter(({ text }) => words.test(text));
    expect(found.map(({ path }) => path)).toEqual([]);
  });

  test("Zig swallows no error silently", () => {
    const found = sources(/\.zig$/).flatMap(({ path, text }) =>
      text.split("\n").flatMap((line, i) => (/catch \{\}/.test(line) ? [`${path}:${i + 1}`] : [])),
    );
    expect(found).toEqual([]);
  });

  test("every Zig file with tests is in a root of tests", async () => {
    const roots = [
      "zig/tests.zig",
      "zig/tests_explorer.zig",
      "zig/tests_memory.zig",
      "zig/tests_kvm.zig",
      "zig/tests_lanes.zig",
      "zig/tests_sim.zig",
    ];
    const texts = await Promise.all(roots.map((root) => Bun.file(`${checkout}/${root}`).text()));
    const list = texts.join("\n");
    const missing = sources(/^zig\/.*\.zig$/)
      .filter(({ text }) => /^test /m.test(text))
      .map(({ path }) => path.replace("zig/", ""))
      .filter((path) => !path.startsWith("tests") && !list.includes(`@import("${path}")`));
    expect(missing).toEqual([]);
  });

  test("shell scripts parse", () => {
    for (const { path } of sources(/\.sh$/)) {
      const parsed = Bun.spawnSync(["sh", "-n", path], { cwd: checkout });
      expect(`${path}: ${parsed.stderr.toString()}`).toBe(`${path}: `);
    }
  });
});

describe("the measures themselves", () => {
  const filler = (n: number) => "  x();\n".repeat(n);
  test("long functions in both languages, none twice", () => {
    const ts = `export function f(a: number): void {\n${filler(9)}}\n`;
    expect(longFunctions("a.ts", ts, 10)).toEqual([{ line: 1, name: "f", lines: 11 }]);
    expect(longFunctions("a.ts", ts, 11)).toEqual([]);
    const method = `class A {\n  async run(a: string): Promise<void> {\n${filler(9)}  }\n}\n`;
    expect(longFunctions("a.ts", method, 10)).toMatchObject([{ line: 2, name: "run" }]);
    const wrapped = `export async function g(\n  a: number,\n) {\n${filler(9)}}\n`;
    expect(longFunctions("a.ts", wrapped, 10)).toMatchObject([{ name: "g", lines: 13 }]);
    const arrow = `const h = (a: number) => {\n${filler(9)}};\n`;
    expect(longFunctions("a.ts", arrow, 10)).toMatchObject([{ name: "h" }]);
    const none = `  if (a) {\n${filler(9)}  }\n  call(a, () => {\n${filler(9)}  });\n`;
    expect(longFunctions("a.ts", none, 10)).toEqual([]);
    const zig = `pub fn f(\n    a: u32,\n) void {\n${filler(9)}}\n`;
    expect(longFunctions("a.zig", zig, 10)).toMatchObject([{ line: 1, name: "f" }]);
  });
  test("width counts characters", () => {
    expect(wideLines(`${"é".repeat(4)}\n${"e".repeat(5)}`, 4)).toEqual([2]);
  });
  test("head comments", () => {
    expect(headCommentLines("#!/bin/sh\n# one\n# two\nset -e\n")).toBe(2);
    expect(headCommentLines("import x;\n")).toBe(0);
  });
});
