// The project's own text files: what git tracks or would track. Paths are from the checkout's root.

import { existsSync, readFileSync } from "node:fs";
import { resolve } from "node:path";

export const checkout: string = resolve(import.meta.dir, "../..");

/** Data, locks and generated files: nobody reads or edits them line by line. */
const generated = /(^bun\.lock|package-lock\.json|\.gen\.ts|\.aml|\.bin|\.hex)$|(^|\/)golden\//;

export interface Source {
  readonly path: string;
  readonly text: string;
}

function listed(): string[] {
  const git = Bun.spawnSync(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--deduplicate"],
    { cwd: checkout },
  );
  if (git.exitCode !== 0) throw new Error(`git ls-files: ${git.stderr.toString()}`);
  return git.stdout.toString().trim().split("\n");
}

/** Sources whose path matches, generated ones left out. */
export function sources(pattern: RegExp): Source[] {
  return listed()
    .filter((path) => pattern.test(path) && !generated.test(path))
    .filter((path) => existsSync(`${checkout}/${path}`))
    .map((path) => ({ path, text: readFileSync(`${checkout}/${path}`, "utf8") }));
}

export function isTest(path: string): boolean {
  return /\.test\.ts$|\.fixture\.ts$|\/fixtures\/|^test\/|^zig\/tests\.zig$|_test\.zig$/.test(path);
}
