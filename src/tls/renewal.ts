// Renewal of a certificate: when it is due, what the CA's side asks of a request, and what the
// holder's side asks of the answer. Pure but for cryptography.

import { SsihvError } from "../base/errors.ts";
import {
  belongsTogether,
  type CertificateFacts,
  CLOCK_SKEW_MS,
  certificatesIn,
  factsOf,
  readRequest,
  signedBy,
  subjectOf,
} from "./certificate.ts";
import type { Identity } from "./identity.ts";

/** Of a certificate's life, when its renewal is due; and by how much more, so that all differ. */
const DUE = 2 / 3;
const SPREAD = 1 / 15;

/** `chance`: from 0 to 1, chosen once for a certificate. */
export function renewalDue(
  { notBefore, notAfter }: Pick<CertificateFacts, "notBefore" | "notAfter">,
  chance: number,
): number {
  const end = notAfter.getTime();
  // It is valid from before it was made, for the sake of clocks that are behind.
  const made = Math.min(notBefore.getTime() + CLOCK_SKEW_MS, end);
  return made + (end - made) * (DUE + SPREAD * chance);
}

const RETRY_MS_MIN = 1000;
const RETRY_MS_MAX = 3_600_000;
/** Tries in the life that is left. */
const TRIES = 20;

/** After a try that failed. */
export function renewalPause(notAfter: Date, now: number): number {
  return Math.min(Math.max((notAfter.getTime() - now) / TRIES, RETRY_MS_MIN), RETRY_MS_MAX);
}

function refused(message: string, hint?: string): SsihvError {
  return new SsihvError("certificate_invalid", message, hint === undefined ? {} : { hint });
}

/**
 * Whether the holder of a certificate may have the one that it asks for: the same name and role,
 * for a key that it has and did not have before. Throws what is wrong.
 */
export async function checkRequest(
  request: string,
  holder: Pick<CertificateFacts, "identity" | "keyPrint">,
): Promise<void> {
  const { identity, keyPrint } = holder;
  const asked = await readRequest(request);
  if (identity === undefined || asked.subject !== subjectOf(identity)) {
    throw refused("a renewal is for the same name and role as before");
  }
  if (asked.hasWishes) throw refused("a renewal asks for nothing but its name and role");
  if (asked.keyPrint === keyPrint) throw refused("a renewal is for a new key");
}

/** A certificate with its chain, and the CAs to believe from now on. */
export interface Renewed {
  readonly certificate: string;
  readonly ca: string;
}

/** Throws where the answer is not what was asked for, or could not be used. */
export function checkRenewed({ certificate, ca }: Renewed, key: string, own: Identity): void {
  const { identity, notAfter } = factsOf(certificate);
  if (identity?.name !== own.name || identity.role !== own.role) {
    throw refused("the new certificate is for somebody else");
  }
  if (!belongsTogether({ certificate, key })) throw refused("the new certificate has another key");
  if (notAfter.getTime() <= Date.now()) {
    throw refused("the new certificate is over already", "are the clocks of both hosts right?");
  }
  if (issuerOf(certificate, ca) === undefined) {
    throw refused("the new certificate is of none of the CAs that come with it");
  }
}

/** Fingerprint of the CA among `ca` that signed the certificate. */
export function issuerOf(certificate: string, ca: string): string | undefined {
  const [leaf = ""] = certificatesIn(certificate);
  const issuer = certificatesIn(ca).find((pem) => signedBy(leaf, pem));
  return issuer === undefined ? undefined : factsOf(issuer).fingerprint;
}

/** The CAs as a set that compares. */
export function caPrints(ca: string): string {
  const prints = certificatesIn(ca).map((pem) => factsOf(pem).fingerprint);
  return prints.sort().join(" ");
}
