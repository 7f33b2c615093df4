// What lies in the folder after each command, who may read it, and what is refused.

import { afterAll, expect, test } from "bun:test";
import {
  chmodSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { belongsTogether, certificatesIn, factsOf, requestLeaf } from "./certificate.ts";
import { expiryWarning, loadCredentials } from "./credentials.ts";
import { identityOf } from "./identity.ts";
import { PkiFolder } from "./pki-folder.ts";

const base = mkdtempSync(join(tmpdir(), "ssihv-pki-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));

let count = 0;
function fresh(): Promise<PkiFolder> {
  return PkiFolder.create(join(base, `pki-${count++}`));
}

const alice = { name: "alice", role: "operator", hosts: [], days: 10 } as const;
const mode = (path: string) => (statSync(path).mode & 0o777).toString(8);

test("secrets are their owner's alone, whatever the umask, and no other file is left", async () => {
  const before = process.umask(0);
  try {
    const pki = await fresh();
    await pki.issue(alice);
    await pki.rotate();
    await pki.rotateCa();
    expect(readdirSync(pki.path).sort()).toEqual(["alice.pem", "ca.key", "ca.pem", "cross.pem"]);
    expect(mode(pki.path)).toBe("700");
    expect(["alice.pem", "ca.key"].map((file) => mode(join(pki.path, file)))).toEqual([
      ...["600", "600"],
    ]);
    expect(mode(pki.caFile)).toBe("644");
  } finally {
    process.umask(before);
  }
});

test("a certificate names its holder, role, hosts and end", async () => {
  const pki = await fresh();
  const hosts = ["10.0.0.1", "coordinator.example"];
  await pki.issue({ name: "coordinator", role: "coordinator", hosts, days: 20 });
  await pki.issue(alice);
  expect(pki.list().map(({ identity, hosts }) => ({ ...identity, hosts }))).toEqual([
    { name: "alice", role: "operator", hosts: [] },
    { name: "coordinator", role: "coordinator", hosts: hosts.toSorted() },
  ]);
  const own = loadCredentials(pki.fileOf("alice"), pki.caFile);
  expect(own.identity).toEqual({ name: "alice", role: "operator" });
  const days = (own.expires.getTime() - Date.now()) / 86_400_000;
  expect(days).toBeGreaterThan(9.9);
  expect(days).toBeLessThanOrEqual(10);
  expect(expiryWarning("it", own.expires)).toMatch(/^it expires on \d{4}-\d\d-\d\d, in 9 day/);
  expect(expiryWarning("it", new Date(Date.now() + 31 * 86_400_000))).toBeUndefined();
});

test("what is there is not overwritten, and names that are no file names are refused", async () => {
  const pki = await fresh();
  await pki.issue(alice);
  expect(PkiFolder.create(pki.path)).rejects.toThrow("has a CA already");
  expect(pki.issue(alice)).rejects.toThrow("there is a certificate alice already");
  for (const name of ["ca", "cross", "", "../x", "a b", "A", "x,OU=operator"]) {
    expect(pki.issue({ ...alice, name })).rejects.toThrow("cannot be a certificate's name");
  }
  expect(pki.rotate("bob")).rejects.toThrow("holds no certificate bob");
  expect(readdirSync(pki.path).sort()).toEqual(["alice.pem", "ca.key", "ca.pem"]);
});

test("files and folders that others may read are refused", async () => {
  const pki = await fresh();
  await pki.issue(alice);
  chmodSync(pki.fileOf("alice"), 0o640);
  expect(() => loadCredentials(pki.fileOf("alice"), pki.caFile)).toThrow("mode 640");
  chmodSync(pki.path, 0o755);
  expect(() => PkiFolder.open(pki.path)).toThrow("mode 755");
});

test("an expired certificate and one with another's key are told apart", async () => {
  const pki = await fresh();
  await pki.issue(alice);
  const load = () => loadCredentials(pki.fileOf("alice"), pki.caFile, Date.now() + 11 * 86_400_000);
  expect(load).toThrow(/alice\.pem: this certificate expired on \d{4}-/);
  const stolen = join(base, "stolen.pem");
  const { key } = await requestLeaf(alice);
  const certificate = certificatesIn(readFileSync(pki.fileOf("alice"), "utf8")).join("");
  expect(belongsTogether({ certificate, key })).toBe(false);
  writeFileSync(stolen, key + certificate, { mode: 0o600 });
  expect(() => loadCredentials(stolen, pki.caFile)).toThrow("holds a key of another certificate");
});

test("a request is signed for whom we say, and nonsense is no request", async () => {
  const pki = await fresh();
  const { request } = await requestLeaf({ name: "mallory", role: "operator" });
  const signed = await pki.sign(request, { ...alice, name: "host-a", role: "node" });
  expect(factsOf(signed).identity).toEqual({ name: "host-a", role: "node" });
  const broken = request.replace(/[A-Z]{4}/, "AAAA");
  for (const nonsense of ["", "x", broken, pki.bundle()]) {
    expect(pki.sign(nonsense, alice)).rejects.toThrow("no certificate request");
  }
});

test("only a subject that says all three things is somebody", () => {
  const whole = { CN: "alice", OU: "operator", O: "ssihv" };
  expect(identityOf(whole)).toEqual({ name: "alice", role: "operator" });
  const subjects = [
    ...[undefined, {}, { ...whole, O: "other" }, { ...whole, OU: "root" }],
    ...[{ ...whole, OU: ["operator", "node"] }, { ...whole, CN: ["a", "b"] }, { CN: "alice" }],
  ];
  for (const subject of subjects) expect(identityOf(subject)).toBeUndefined();
});
