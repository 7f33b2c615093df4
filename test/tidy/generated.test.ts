// Generated files say what their sources say.

import { expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { checkout } from "./sources.ts";

const run = (command: string[]) => Bun.spawnSync(command, { cwd: checkout });

test("src/native/abi.gen.ts is what zig/gen_abi.zig prints", async () => {
  const tools = readdirSync(`${checkout}/.tools`).filter((name) => /^zig-[\d.]+$/.test(name));
  const zig = `.tools/${tools.at(-1)}/ziglang/zig`;
  const printed = run([zig, "run", "zig/gen_abi.zig", "-lc"]);
  expect(printed.stderr.toString()).toBe("");
  // `make` has refreshed the work tree's copy; on CI the commit must carry it.
  const path = "src/native/abi.gen.ts";
  const bindings =
    process.env["CI"] === "true"
      ? run(["git", "show", `HEAD:${path}`]).stdout.toString()
      : await Bun.file(`${checkout}/${path}`).text();
  expect(bindings).toBe(printed.stdout.toString());
}, 60_000);
