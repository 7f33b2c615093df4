// When a renewal is due, which requests are none, and which answers are not kept.

import { expect, test } from "bun:test";
import {
  type CertificateFacts,
  DAY_MS,
  factsOf,
  issueLeaf,
  makeCa,
  requestLeaf,
  signRequest,
} from "./certificate.ts";
import {
  caPrints,
  checkRenewed,
  checkRequest,
  issuerOf,
  renewalDue,
  renewalPause,
} from "./renewal.ts";
import { x509 } from "./x509.ts";

const HOST = { name: "host-a", role: "node" } as const;
const LEAF = { ...HOST, hosts: [], days: 30 } as const;
const P256 = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;
const P384 = { ...P256, namedCurve: "P-384" } as const;
const RSA = {
  ...{ name: "RSASSA-PKCS1-v1_5", hash: "SHA-256", modulusLength: 2048 },
  publicExponent: new Uint8Array([1, 0, 1]),
} as const;

test("due after two thirds of the life, later by a little that differs", () => {
  const notAfter = new Date("2026-04-01T00:00:00Z");
  const made = notAfter.getTime() - 30 * DAY_MS;
  const facts = { notBefore: new Date(made - 3_600_000), notAfter };
  expect(renewalDue(facts, 0)).toBe(made + 20 * DAY_MS);
  expect(renewalDue(facts, 1)).toBe(made + 22 * DAY_MS);
  // One that was valid for less than clocks may differ: it is due at its end at the latest.
  const short = { notBefore: new Date(made), notAfter: new Date(made + 1000) };
  expect(renewalDue(short, 1)).toBe(made + 1000);
});

test("a try that failed is repeated: often enough, and not too often", () => {
  const now = Date.parse("2026-04-01T00:00:00Z");
  const pause = (left: number) => renewalPause(new Date(now + left), now);
  expect([pause(100 * DAY_MS), pause(600_000), pause(-1)]).toEqual([3_600_000, 30_000, 1000]);
});

async function csr(change: {
  name?: string;
  algorithm?: typeof P256 | typeof P384 | typeof RSA;
  keys?: CryptoKeyPair;
  extensions?: boolean;
}): Promise<string> {
  const algorithm = change.algorithm ?? P256;
  const keys =
    change.keys ??
    ((await crypto.subtle.generateKey(algorithm, true, ["sign", "verify"])) as CryptoKeyPair);
  const made = await x509.Pkcs10CertificateRequestGenerator.create({
    name: change.name ?? "CN=host-a, OU=node, O=ssihv",
    keys,
    signingAlgorithm: algorithm,
    ...(change.extensions && {
      extensions: [new x509.SubjectAlternativeNameExtension([{ type: "dns", value: "host-b" }])],
    }),
  });
  return made.toString("pem");
}

async function holder(keys: CryptoKeyPair): Promise<CertificateFacts> {
  const ca = await makeCa(30);
  return factsOf(await signRequest(ca, await csr({ keys }), LEAF));
}

test("only the same name and role with a new key of our kind is a renewal", async () => {
  const keys = await crypto.subtle.generateKey(P256, true, ["sign", "verify"]);
  const own = await holder(keys);
  await checkRequest((await requestLeaf(HOST)).request, own);
  const good = await csr({});
  const body = good.split("\n");
  // Another byte in the middle: the signature is not its key's any more.
  body[3] = (body[3] ?? "").replace(/.$/, (last) => (last === "A" ? "B" : "A"));
  const cases: [string, string][] = [
    [await csr({ name: "CN=host-b, OU=node, O=ssihv" }), "same name and role"],
    [await csr({ name: "CN=host-a, OU=operator, O=ssihv" }), "same name and role"],
    [await csr({ name: "CN=host-a, OU=node, OU=operator, O=ssihv" }), "same name and role"],
    [await csr({ name: "CN=host-a, OU=node, O=other" }), "same name and role"],
    [await csr({ extensions: true }), "nothing but its name"],
    [await csr({ keys }), "for a new key"],
    [await csr({ algorithm: P384 }), "no certificate request"],
    [await csr({ algorithm: RSA }), "no certificate request"],
    [body.join("\n"), "no certificate request"],
    ["", "no certificate request"],
    [good.slice(0, 200), "no certificate request"],
  ];
  for (const [request, words] of cases) {
    await expect(checkRequest(request, own)).rejects.toThrow(words);
  }
  // Of whoever has no name at all nothing is renewed.
  await expect(checkRequest(good, { ...own, identity: undefined })).rejects.toThrow("same name");
});

test("what is kept is ours, is valid, and is of a CA that comes with it", async () => {
  const [ca, other] = [await makeCa(30), await makeCa(30)];
  const { request, key } = await requestLeaf(HOST);
  const certificate = await signRequest(ca, request, LEAF);
  const answer = { certificate, ca: other.certificate + ca.certificate };
  checkRenewed(answer, key, HOST);
  const foreign = await requestLeaf(HOST);
  expect(() => checkRenewed(answer, foreign.key, HOST)).toThrow("another key");
  const named = { ...HOST, name: "host-b" };
  expect(() => checkRenewed(answer, key, named)).toThrow("for somebody else");
  const role = await signRequest(ca, request, { ...LEAF, role: "operator" });
  expect(() => checkRenewed({ ...answer, certificate: role }, key, HOST)).toThrow("somebody else");
  const over = await issueLeaf(ca, LEAF, "", Date.now() - 31 * DAY_MS);
  const late = { ...answer, certificate: over.certificate };
  expect(() => checkRenewed(late, over.key, HOST)).toThrow("over already");
  const unknown = { ...answer, ca: other.certificate };
  expect(() => checkRenewed(unknown, key, HOST)).toThrow("none of the CAs");
  expect(() => checkRenewed({ ...answer, certificate: "" }, key, HOST)).toThrow("no certificate");
  expect(issuerOf(certificate, answer.ca)).toBe(factsOf(ca.certificate).fingerprint);
  expect(caPrints(answer.ca)).toBe(caPrints(ca.certificate + other.certificate));
  expect(caPrints(answer.ca)).not.toBe(caPrints(ca.certificate));
});
