// Builds the small programs of tests: those that run inside the guest, and helpers on the host.
// Static, so that a busybox initramfs is enough.

import { mkdirSync, readdirSync, statSync } from "node:fs";
import { basename, join } from "node:path";

const checkout = join(import.meta.dir, "..", "..");

function zig(): string {
  const folder = readdirSync(`${checkout}/.tools`).find((name) => /^zig-[\d.]+$/.test(name));
  return `${checkout}/.tools/${folder}/ziglang/zig`;
}

function newer(source: string, target: string): boolean {
  const built = statSync(target, { throwIfNoEntry: false });
  return built === undefined || statSync(source).mtimeMs > built.mtimeMs;
}

/** Path of the program made from `source`, built when that or one of its parts is newer. */
export async function buildProgram(source: string, parts: readonly string[] = []): Promise<string> {
  const name = basename(source, ".zig");
  const target = `${checkout}/build/${name}`;
  if (![source, ...parts].some((path) => newer(path, target))) return target;
  mkdirSync(`${checkout}/build`, { recursive: true });
  const target_flags = ["-target", "x86_64-linux-musl", "-O", "safe", "-fstrip"];
  const command = [zig(), "build-exe", ...target_flags, source, `-femit-bin=${target}`];
  const child = Bun.spawn(command, { cwd: checkout, stdout: "pipe", stderr: "pipe" });
  const words = await new Response(child.stderr).text();
  if ((await child.exited) !== 0) throw new Error(`${name} does not build:\n${words}`);
  return target;
}

/** Path of span_check. */
export function spanCheck(): Promise<string> {
  const parts = `${import.meta.dir}/span_check`;
  const files = readdirSync(parts).map((name) => `${parts}/${name}`);
  return buildProgram(`${import.meta.dir}/span_check.zig`, files);
}
