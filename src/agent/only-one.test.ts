import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { onlyOne } from "./only-one.ts";

test("a folder has one agent at a time, another folder its own", () => {
  const folders = [0, 1].map(() => mkdtempSync(join(tmpdir(), "ssihv-only-")));
  const [one = "", two = ""] = folders;
  const free = onlyOne(one);
  expect(() => onlyOne(one)).toThrow("runs already");
  onlyOne(two)();
  free();
  onlyOne(one)();
  for (const folder of folders) rmSync(folder, { recursive: true });
});
