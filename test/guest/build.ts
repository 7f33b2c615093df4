// Builds the programs that run inside the guest: static, so that a busybox initramfs is enough.

import { mkdirSync, readdirSync, statSync } from "node:fs";
import { join } from "node:path";

const checkout = join(import.meta.dir, "..", "..");

function zig(): string {
  const folder = readdirSync(`${checkout}/.tools`).find((name) => /^zig-[\d.]+$/.test(name));
  return `${checkout}/.tools/${folder}/ziglang/zig`;
}

function newer(source: string, target: string): boolean {
  const built = statSync(target, { throwIfNoEntry: false });
  return built === undefined || statSync(source).mtimeMs > built.mtimeMs;
}

/** Path of span_check, built when one of its sources is newer. */
export async function spanCheck(): Promise<string> {
  const source = `${import.meta.dir}/span_check.zig`;
  const parts = `${import.meta.dir}/span_check`;
  const target = `${checkout}/build/span_check`;
  const sources = [source, ...readdirSync(parts).map((name) => `${parts}/${name}`)];
  if (!sources.some((path) => newer(path, target))) return target;
  mkdirSync(`${checkout}/build`, { recursive: true });
  const target_flags = ["-target", "x86_64-linux-musl", "-O", "safe", "-fstrip"];
  const command = [zig(), "build-exe", ...target_flags, source, `-femit-bin=${target}`];
  const child = Bun.spawn(command, { cwd: checkout, stdout: "pipe", stderr: "pipe" });
  const words = await new Response(child.stderr).text();
  if ((await child.exited) !== 0) throw new Error(`span_check does not build:\n${words}`);
  return target;
}
