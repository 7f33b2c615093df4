// Cached files are named after what goes into them, so a changed input is never answered with a
// stale file, and appear by rename, so that a name always stands for a whole file.

import { mkdir, rename, writeFile } from "node:fs/promises";
import { dirname } from "node:path";

export function contentKey(parts: readonly Uint8Array[]): string {
  const hash = new Bun.CryptoHasher("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest("hex").slice(0, 12);
}

export async function writeWhole(path: string, bytes: Uint8Array): Promise<void> {
  await mkdir(dirname(path), { recursive: true });
  const scratch = `${path}.${process.pid}`;
  await writeFile(scratch, bytes);
  await rename(scratch, path);
}
