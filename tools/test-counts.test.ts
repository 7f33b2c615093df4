import { expect, test } from "bun:test";
import { add, countsOf, failures, lastLine, none, skippedNames } from "./test-counts.ts";

test("counts of each dialect", () => {
  expect(countsOf("zig", "SKIP a.test.b: x\n12 passed, 0 failed, 1 skipped\n", 0)).toEqual({
    passed: 12,
    failed: 0,
    skipped: 1,
  });
  const bun = "(pass) a\n\n 46 pass\n 2 skip\n 1 fail\n 150 expect() calls\nRan 49 tests\n";
  expect(countsOf("bun", bun, 1)).toEqual({ passed: 46, failed: 1, skipped: 2 });
  expect(countsOf("bun", " 12 pass\n 0 fail\n", 0)).toEqual({ ...none, passed: 12 });
  expect(countsOf("status", "whatever 3 fail", 0)).toEqual({ ...none, passed: 1 });
  expect(countsOf("status", "", 2)).toEqual({ ...none, failed: 1 });
});

test("what a test prints itself is not taken for the summary", () => {
  const nested = "1 passed, 0 failed, 0 skipped\n3 passed, 2 failed, 0 skipped\n";
  expect(countsOf("zig", nested, 1).failed).toBe(2);
});

test("a crash, silence and a failure without a count are failures", () => {
  expect(countsOf("zig", "PANIC x\n", 134).failed).toBe(1);
  expect(countsOf("bun", "", 0).failed).toBe(1);
  expect(countsOf("bun", " 3 pass\n 0 fail\n", 1)).toEqual({ passed: 3, failed: 1, skipped: 0 });
  expect(countsOf("zig", "0 passed, 0 failed, 0 skipped\n", 0).failed).toBe(1);
});

test("sums and the last line", () => {
  const sum = add({ passed: 1, failed: 2, skipped: 3 }, { passed: 10, failed: 20, skipped: 30 });
  expect(lastLine(sum)).toBe("11 passed, 22 failed, 33 skipped");
});

test("skipped tests by name", () => {
  const output = "(pass) a\n(skip) boots > two hosts: no /dev/kvm\nSKIP x.test.y: SkipZigTest\n";
  expect(skippedNames(output)).toEqual(["boots > two hosts: no /dev/kvm", "x.test.y: SkipZigTest"]);
});

test("failed tests by name with their first error, each once", () => {
  const line = "(fail) shape > no line is wider [26.56ms]";
  const first = "error: exit code 1: FAILED\n  at x.ts:3\nerror: a later one\n";
  const again = `1 tests failed:\n${line}\nFAIL x: Oops\n`;
  const output = `error: of a test that passed\n(pass) a\n${first}${line}\n\n${again}`;
  expect(failures(output)).toEqual([
    { name: "shape > no line is wider [26.56ms]", error: "exit code 1: FAILED" },
    { name: "x: Oops" },
  ]);
});
