import { expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { PkiFolder } from "../src/tls/pki-folder.ts";
import { watchCertificate } from "./own-certificate.ts";

test("a new certificate is seen, also one that is written over the old one", async () => {
  const folder = mkdtempSync(join(tmpdir(), "ssihv-own-"));
  const pki = await PkiFolder.create(join(folder, "pki"));
  await pki.issue({ name: "coordinator", role: "coordinator", hosts: [], days: 10 });
  const file = pki.fileOf("coordinator");
  const old = readFileSync(file);
  await pki.rotate();
  const fresh = readFileSync(file);
  writeFileSync(file, old);
  const said: string[] = [];
  const seen = Promise.withResolvers<void>();
  const timer = watchCertificate(pki, seen.resolve, (text) => said.push(text));
  try {
    writeFileSync(file, fresh);
    await seen.promise;
    expect(said).toEqual([]);
  } finally {
    clearInterval(timer);
    rmSync(folder, { recursive: true });
  }
});
