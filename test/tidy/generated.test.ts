// Generated files say what their sources say.

import { expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { apiDoc, openApi } from "../../tools/api-doc.ts";
import { metricsDoc } from "../../tools/metrics-doc.ts";
import { checkout } from "./sources.ts";

const run = (command: string[]) => Bun.spawnSync(command, { cwd: checkout });

/** As the commit has it on CI: `make` may have refreshed the work tree's copy. */
function committed(path: string): Promise<string> {
  if (process.env["CI"] !== "true") return Bun.file(`${checkout}/${path}`).text();
  return Promise.resolve(run(["git", "show", `HEAD:${path}`]).stdout.toString());
}

test("docs/API.md is what tools/api-doc.ts prints: make gen", async () => {
  expect(await committed("docs/API.md")).toBe(apiDoc(await openApi()));
});

test("docs/METRICS.md is what tools/metrics-doc.ts prints: make gen", async () => {
  expect(await committed("docs/METRICS.md")).toBe(await metricsDoc());
});

test("src/native/abi.gen.ts is what zig/gen_abi.zig prints", async () => {
  const tools = readdirSync(`${checkout}/.tools`).filter((name) => /^zig-[\d.]+$/.test(name));
  const zig = `.tools/${tools.at(-1)}/ziglang/zig`;
  const printed = run([zig, "run", "zig/gen_abi.zig", "-lc"]);
  expect(printed.stderr.toString()).toBe("");
  expect(await committed("src/native/abi.gen.ts")).toBe(printed.stdout.toString());
}, 60_000);
