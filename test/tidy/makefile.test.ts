// The Makefile's help names what there is, and CI runs what the README says.

import { expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { checkout } from "./sources.ts";

const makefile = readFileSync(`${checkout}/Makefile`, "utf8");

test("every target of the help exists, and every phony target is in the help", () => {
  const helped = [...makefile.matchAll(/^##> (\w+)/gm)].map(([, name]) => name).sort();
  const phony = [...makefile.matchAll(/^\.PHONY: (.+)$/gm)]
    .flatMap(([, names = ""]) => names.split(" "))
    .filter((name) => name !== "FORCE")
    .sort();
  expect(helped).toEqual(phony);
  for (const name of phony) expect(makefile).toMatch(new RegExp(`^${name}:`, "m"));
});

test("set-up brings every Debian package the lab would otherwise unpack", () => {
  const packages = readFileSync(`${checkout}/tools/packages.txt`, "utf8");
  const lab = readFileSync(`${checkout}/test/lab/tools.ts`, "utf8");
  const table = /const packageOf = \{([^}]*)\}/.exec(lab)?.[1] ?? "";
  const pairs = [...table.matchAll(/^\s*"?([\w-]+)"?: "([\w-]+)",$/gm)];
  expect(pairs.length).toBeGreaterThan(2);
  for (const [, program, name] of pairs) {
    expect(packages).toMatch(new RegExp(`^lab +${name} +${program}$`, "m"));
  }
});

test("CI calls the README's test command", () => {
  const ci = readFileSync(`${checkout}/.ci/run`, "utf8");
  expect(ci).toMatch(/^exec make test$/m);
  expect(readFileSync(`${checkout}/README.md`, "utf8")).toContain("make test");
});
