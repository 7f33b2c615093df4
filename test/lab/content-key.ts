// Names of cached files are made from what goes into them, so a changed input can never be answered
// with a stale file.

export function contentKey(parts: readonly Uint8Array[]): string {
  const hash = new Bun.CryptoHasher("sha256");
  for (const part of parts) hash.update(part);
  return hash.digest("hex").slice(0, 12);
}
