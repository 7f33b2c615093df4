// What one process shows to its peers and believes of them: its certificate with its private key
// in one file, and the CA's certificates in another, or in the same. One file for the pair, so that
// replacing it is one rename: nobody reads a key beside another key's certificate.
// A file that other users may read is refused: the key in it is not a secret.

import { closeSync, fstatSync, openSync, readFileSync } from "node:fs";

import { SsihvError } from "../base/errors.ts";
import { belongsTogether, certificatesIn, DAY_MS, factsOf, isRoot } from "./certificate.ts";
import type { Identity } from "./identity.ts";

export interface Credentials {
  readonly identity: Identity;
  readonly expires: Date;
  /** PEM: the certificate, and what leads from it to an older CA. */
  readonly certificate: string;
  readonly key: string;
  /** PEM: the CAs that are believed. */
  readonly ca: string;
}

const NOT_OWNER = 0o077;
const FILE_BYTES_MAX = 1 << 16;
const KEY_BLOCK = /-----BEGIN PRIVATE KEY-----[\s\S]*?-----END PRIVATE KEY-----\n?/;
/** From here on a certificate's end is told wherever it is used. */
export const WARN_DAYS = 30;

function invalid(file: string, why: string, hint: string, cause?: unknown): SsihvError {
  return new SsihvError("certificate_invalid", `${file} ${why}`, { hint, cause });
}

const MAKE_HINT =
  "ssihv certs init makes a CA and its first certificates, ssihv certs issue others";

/** The text of a file; `secret`: no other user may read it. */
export function readPem(file: string, secret: boolean): string {
  let fd: number;
  try {
    fd = openSync(file, "r");
  } catch (cause) {
    const errno = cause instanceof Error && "code" in cause ? String(cause.code) : "unreadable";
    throw invalid(file, `cannot be read (${errno})`, MAKE_HINT, cause);
  }
  try {
    const stat = fstatSync(fd);
    if (!stat.isFile() || stat.size > FILE_BYTES_MAX) {
      throw invalid(file, "is no file of certificates", MAKE_HINT);
    }
    if (secret && (stat.mode & NOT_OWNER) !== 0) {
      const mode = (stat.mode & 0o777).toString(8);
      throw invalid(file, `is open to other users (mode ${mode})`, `chmod 600 ${file}`);
    }
    return readFileSync(fd, "utf8");
  } finally {
    closeSync(fd);
  }
}

/**
 * CAs in `file` are the ones to believe, else those of `caFile`. Throws `certificate_expired` with
 * the date, or `certificate_invalid` with what is wrong.
 */
export function loadCredentials(file: string, caFile: string, now = Date.now()): Credentials {
  const text = readPem(file, true);
  const key = KEY_BLOCK.exec(text)?.[0];
  const all = certificatesIn(text);
  const certificate = all.filter((pem) => !isRoot(pem)).join("");
  const roots = all.filter(isRoot);
  const ca = (roots.length > 0 ? roots : certificatesIn(readPem(caFile, false))).join("");
  if (ca === "") throw invalid(caFile, "holds no certificate", "name the ca.pem of the cluster");
  if (key === undefined || certificate === "") {
    throw invalid(file, "does not hold a certificate and its private key", MAKE_HINT);
  }
  if (!belongsTogether({ certificate, key })) {
    throw invalid(file, "holds a key of another certificate", MAKE_HINT);
  }
  const { identity, notAfter } = factsOf(certificate);
  if (identity === undefined) throw invalid(file, "names no role of ours", MAKE_HINT);
  if (notAfter.getTime() <= now) {
    const message = `${file}: this certificate expired on ${dateText(notAfter)}`;
    throw new SsihvError("certificate_expired", message, {
      hint: "ssihv certs rotate on the host with the CA makes new ones",
    });
  }
  return { identity, expires: notAfter, certificate, key, ca };
}

export function dateText(date: Date): string {
  return date.toISOString().slice(0, 10);
}

/** Whole days left, 0 once it is over. */
export function daysLeft(notAfter: Date, now = Date.now()): number {
  return Math.max(0, Math.floor((notAfter.getTime() - now) / DAY_MS));
}

/** A line for the log when the end is near. */
export function expiryWarning(what: string, notAfter: Date, now = Date.now()): string | undefined {
  const left = daysLeft(notAfter, now);
  if (left >= WARN_DAYS) return undefined;
  return `${what} expires on ${dateText(notAfter)}, in ${left} day(s): ssihv certs rotate`;
}
