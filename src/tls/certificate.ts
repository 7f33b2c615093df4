// X.509 as this cluster uses it, over @peculiar/x509 and WebCrypto: a CA, leaves with a role,
// signing requests, and the cross certificate by which a new CA is believed by those who only know
// the old one. Bytes and text in, text out: files are pki-folder.ts.
// ECDSA on P-256 throughout: every TLS library has it, and signing takes microseconds.

import { createHash, createPublicKey, X509Certificate as NodeCertificate } from "node:crypto";
import { isIP } from "node:net";
import type {
  Extension,
  JsonGeneralName,
  SubjectKeyIdentifierExtension,
  X509Certificate,
} from "@peculiar/x509";

import { SsihvError } from "../base/errors.ts";
import { COORDINATOR_DNS, type Identity, identityOf, ORGANISATION } from "./identity.ts";
import { x509 } from "./x509.ts";

const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" } as const;
export const DAY_MS = 86_400_000;
/** Clocks of hosts differ: a certificate is valid a little before it is made. */
export const CLOCK_SKEW_MS = 3_600_000;

/** A certificate (and what follows it in its chain) with its private key, as PEM. */
export interface KeyPair {
  readonly certificate: string;
  readonly key: string;
}

export interface LeafRequest extends Identity {
  /** Further DNS names and IP addresses, for a coordinator that others than ours connect to. */
  readonly hosts: readonly string[];
  readonly days: number;
}

export interface CertificateFacts {
  /** Undefined: not one of ours, or a CA. */
  readonly identity: Identity | undefined;
  readonly subject: string;
  readonly notBefore: Date;
  readonly notAfter: Date;
  readonly hosts: readonly string[];
  /** Lower-case hex of the SHA-256 of the certificate. */
  readonly fingerprint: string;
  /** Subject of the CA that signed it. */
  readonly issuer: string;
  /** Lower-case hex of the SHA-256 of the public key. */
  readonly keyPrint: string;
}

function newKeys(): Promise<CryptoKeyPair> {
  return crypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
}

async function keyPem(key: CryptoKey): Promise<string> {
  const bytes = await crypto.subtle.exportKey("pkcs8", key);
  return `${x509.PemConverter.encode(bytes, "PRIVATE KEY")}\n`;
}

function signingKey(pem: string): Promise<CryptoKey> {
  const bytes = x509.PemConverter.decodeFirst(pem);
  return crypto.subtle.importKey("pkcs8", bytes, ALGORITHM, false, ["sign"]);
}

/** 20 bytes at most and positive (RFC 5280, 4.1.2.2). */
function newSerial(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[0] = ((bytes[0] ?? 0) & 0x7f) | 0x40;
  return Buffer.from(bytes).toString("hex");
}

export function subjectOf({ name, role }: Identity): string {
  return `CN=${name}, OU=${role}, O=${ORGANISATION}`;
}

const CA_USAGES = x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign;

function caExtensions(subjectKey: SubjectKeyIdentifierExtension): Extension[] {
  return [
    // One CA below it: the cross certificate of its successor.
    new x509.BasicConstraintsExtension(true, 1, true),
    new x509.KeyUsagesExtension(CA_USAGES, true),
    subjectKey,
  ];
}

export async function makeCa(days: number, now = Date.now()): Promise<KeyPair> {
  const keys = await newKeys();
  const serialNumber = newSerial();
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    // CAs of one cluster are told apart by name, too.
    name: `CN=ssihv CA ${serialNumber.slice(0, 8)}, O=${ORGANISATION}`,
    keys,
    serialNumber,
    signingAlgorithm: ALGORITHM,
    notBefore: new Date(now - CLOCK_SKEW_MS),
    notAfter: new Date(now + days * DAY_MS),
    extensions: caExtensions(await x509.SubjectKeyIdentifierExtension.create(keys.publicKey)),
  });
  return { certificate: text(certificate), key: await keyPem(keys.privateKey) };
}

/** The successor's name and key under the old CA's signature. */
export async function crossSign(old: KeyPair, successor: string): Promise<string> {
  const issuer = new x509.X509Certificate(old.certificate);
  const next = new x509.X509Certificate(successor);
  const certificate = await x509.X509CertificateGenerator.create({
    subject: next.subject,
    issuer: issuer.subject,
    publicKey: next.publicKey,
    signingKey: await signingKey(old.key),
    serialNumber: newSerial(),
    signingAlgorithm: ALGORITHM,
    notBefore: next.notBefore,
    notAfter: earlier(next.notAfter, issuer.notAfter),
    extensions: [
      new x509.BasicConstraintsExtension(true, 0, true),
      new x509.KeyUsagesExtension(CA_USAGES, true),
      await x509.SubjectKeyIdentifierExtension.create(await next.publicKey.export()),
      await x509.AuthorityKeyIdentifierExtension.create(issuer, false),
    ],
  });
  return text(certificate);
}

/** A fresh key and its certificate. `chain`: what a peer may need to get to a CA it knows. */
export async function issueLeaf(
  ca: KeyPair,
  request: LeafRequest,
  chain = "",
  now = Date.now(),
): Promise<KeyPair> {
  const keys = await newKeys();
  const certificate = await signLeaf(ca, request, keys.publicKey, now);
  return { certificate: certificate + chain, key: await keyPem(keys.privateKey) };
}

/** A key that stays here, and the request for its certificate. */
export async function requestLeaf(identity: Identity): Promise<{ request: string; key: string }> {
  const keys = await newKeys();
  const request = await x509.Pkcs10CertificateRequestGenerator.create({
    name: subjectOf(identity),
    keys,
    signingAlgorithm: ALGORITHM,
  });
  return { request: `${request.toString("pem")}\n`, key: await keyPem(keys.privateKey) };
}

/** The certificate for a request's key. Whom it names is the caller's to say, not the request's. */
export async function signRequest(
  ca: KeyPair,
  request: string,
  leaf: LeafRequest,
  chain = "",
): Promise<string> {
  const { key } = await readRequest(request);
  return (await signLeaf(ca, leaf, key, Date.now())) + chain;
}

/** What a request asks for, with its key. Throws where it is none, or not signed with that key. */
export async function readRequest(request: string) {
  try {
    const parsed = new x509.Pkcs10CertificateRequest(request);
    if (!(await parsed.verify())) throw new Error("its signature is not its key's");
    return {
      key: await parsed.publicKey.export(ALGORITHM, ["verify"]),
      subject: parsed.subject,
      /** It wishes for more than a name: alternative names, usages. */
      hasWishes: parsed.attributes.length > 0,
      keyPrint: sha256(new Uint8Array(parsed.publicKey.rawData)),
    };
  } catch (cause) {
    throw new SsihvError("certificate_invalid", "this is no certificate request of ours", {
      cause,
    });
  }
}

function sha256(bytes: Uint8Array): string {
  return createHash("sha256").update(bytes).digest("hex");
}

async function signLeaf(
  ca: KeyPair,
  leaf: LeafRequest,
  publicKey: CryptoKey,
  now: number,
): Promise<string> {
  const issuer = new x509.X509Certificate(ca.certificate);
  const server = leaf.role === "coordinator";
  const names = [...new Set([...(server ? [COORDINATOR_DNS] : []), ...leaf.hosts])];
  const certificate = await x509.X509CertificateGenerator.create({
    subject: subjectOf(leaf),
    issuer: issuer.subject,
    publicKey,
    signingKey: await signingKey(ca.key),
    serialNumber: newSerial(),
    signingAlgorithm: ALGORITHM,
    notBefore: new Date(Math.min(now - CLOCK_SKEW_MS, now + leaf.days * DAY_MS - 1000)),
    notAfter: earlier(new Date(now + leaf.days * DAY_MS), issuer.notAfter),
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      // One or the other: TLS itself then refuses a client that shows a server's certificate.
      new x509.ExtendedKeyUsageExtension(
        [server ? x509.ExtendedKeyUsage.serverAuth : x509.ExtendedKeyUsage.clientAuth],
        true,
      ),
      ...(names.length > 0
        ? [new x509.SubjectAlternativeNameExtension(names.map(generalName))]
        : []),
      await x509.SubjectKeyIdentifierExtension.create(publicKey),
      await x509.AuthorityKeyIdentifierExtension.create(issuer, false),
    ],
  });
  return text(certificate);
}

function generalName(value: string): JsonGeneralName {
  return isIP(value) === 0 ? { type: "dns", value } : { type: "ip", value };
}

function earlier(a: Date, b: Date): Date {
  return a < b ? a : b;
}

function text(certificate: X509Certificate): string {
  return `${certificate.toString("pem")}\n`;
}

const BLOCK = /-----BEGIN CERTIFICATE-----[\s\S]*?-----END CERTIFICATE-----\n?/g;

/** The certificates of a PEM text, one by one; keys and words between them are left out. */
export function certificatesIn(pem: string): string[] {
  return [...pem.matchAll(BLOCK)].map(([block]) => block);
}

/** Of the first certificate in the text. Throws where there is none. */
export function factsOf(pem: string): CertificateFacts {
  const [first] = certificatesIn(pem);
  if (first === undefined) throw new SsihvError("certificate_invalid", "there is no certificate");
  return factsOfEncoded(first);
}

/** Of one certificate, PEM or DER. */
export function factsOfEncoded(encoded: string | Uint8Array): CertificateFacts {
  try {
    const parsed = new NodeCertificate(encoded);
    const { subject, validFromDate, validToDate, subjectAltName, fingerprint256 } = parsed;
    const field = (name: string) => new RegExp(`^${name}=(.*)$`, "m").exec(subject)?.[1];
    return {
      identity: identityOf({ CN: field("CN"), OU: field("OU"), O: field("O") }),
      subject: subject.split("\n").join(", "),
      issuer: parsed.issuer.split("\n").join(", "),
      keyPrint: sha256(parsed.publicKey.export({ type: "spki", format: "der" })),
      notBefore: validFromDate,
      notAfter: validToDate,
      hosts: hostsIn(subjectAltName),
      fingerprint: fingerprint256.replaceAll(":", "").toLowerCase(),
    };
  } catch (cause) {
    throw new SsihvError("certificate_invalid", "this is no certificate", { cause });
  }
}

/** The names beside the one that every coordinator has. */
function hostsIn(subjectAltName: string | undefined): string[] {
  return (subjectAltName ?? "")
    .split(", ")
    .map((entry) => entry.replace(/^(DNS|IP Address):/, ""))
    .filter((name) => name !== "" && name !== COORDINATOR_DNS);
}

/** It signed itself: a CA to believe, and no link of a chain. */
export function isRoot(pem: string): boolean {
  return signedBy(pem, pem);
}

export function signedBy(pem: string, issuer: string): boolean {
  const [certificate, by] = [new NodeCertificate(pem), new NodeCertificate(issuer)];
  return certificate.checkIssued(by) && certificate.verify(by.publicKey);
}

/** Whether the private key belongs to the first certificate. */
export function belongsTogether({ certificate, key }: KeyPair): boolean {
  const [first = ""] = certificatesIn(certificate);
  const own = createPublicKey(key).export({ type: "spki", format: "der" });
  return own.equals(new NodeCertificate(first).publicKey.export({ type: "spki", format: "der" }));
}
