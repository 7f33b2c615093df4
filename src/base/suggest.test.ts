import { expect, test } from "bun:test";

import { editDistance, suggest } from "./suggest.ts";

test("counts single edits and swapped neighbours as one", () => {
  expect(editDistance("kernel", "kernel")).toBe(0);
  expect(editDistance("kernl", "kernel")).toBe(1);
  expect(editDistance("kenrel", "kernel")).toBe(1);
  expect(editDistance("", "abc")).toBe(3);
});

test("names the nearest candidate and stays silent when none is near", () => {
  const keys = ["kernel", "initrd", "cmdline"];
  expect(suggest("kernl", keys)).toBe("kernel");
  expect(suggest("cmd_line", keys)).toBe("cmdline");
  expect(suggest("gpu", keys)).toBeUndefined();
});
