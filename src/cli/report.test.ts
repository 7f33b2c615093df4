import { expect, test } from "bun:test";

import { SsihvError } from "../base/errors.ts";
import { debugExitStatus, EXIT, exitStatusOf } from "./exit-status.ts";
import { formatError } from "./report.ts";

const error = new SsihvError("kernel_invalid", "kernel /x is a directory", {
  hint: "name a file",
  cause: new Error("outer", { cause: new Error("EISDIR\u001b[2J") }),
});

test("text has message, chain of causes and hint, and no stack", () => {
  expect(formatError(error, { json: false })).toBe(
    [
      "ssihv: kernel /x is a directory",
      "  because: outer",
      "  because: EISDIR\\x1b[2J",
      "  try: name a file",
    ].join("\n"),
  );
});

test("json has code, message and hint", () => {
  const parsed: unknown = JSON.parse(formatError(error, { json: true }));
  expect(parsed).toEqual({
    error: {
      code: "kernel_invalid",
      message: "kernel /x is a directory",
      hint: "name a file",
      causes: ["outer", "EISDIR\u001b[2J"],
    },
  });
});

test("an unexpected error is called a defect, without its stack unless asked", () => {
  const text = formatError(new TypeError("x is not a function"), { json: false });
  expect(text).toContain("x is not a function");
  expect(text).toContain("defect");
  expect(text).not.toContain(".ts:");
  const debug = formatError(new TypeError("x"), { json: false, debug: true });
  expect(debug).toContain("report.test.ts");
});

test("a chain that loops ends", () => {
  const loop = new Error("a");
  loop.cause = loop;
  expect(formatError(loop, { json: false }).split("\n").length).toBeLessThan(15);
});

test("our statuses never collide with isa-debug-exit's", () => {
  for (const status of Object.values(EXIT)) expect(status % 2).toBe(0);
  for (let value = 0; value < 256; value++) {
    expect(debugExitStatus(value) % 2).toBe(1);
    expect(debugExitStatus(value)).toBeLessThan(256);
  }
  expect(debugExitStatus(0)).toBe(1);
  expect(debugExitStatus(0x10)).toBe(33);
  expect(exitStatusOf(error)).toBe(EXIT.usage);
  expect(exitStatusOf(new SsihvError("engine_dead", "x"))).toBe(EXIT.engineDead);
  expect(exitStatusOf("x")).toBe(EXIT.defect);
});
