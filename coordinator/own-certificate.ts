// The coordinator's own certificate: read from the folder of `ssihv certs`, and again when there is
// a new one.

import { createHash } from "node:crypto";

import { messageOf, SsihvError } from "../src/base/errors.ts";
import { type Credentials, loadCredentials, readPem } from "../src/tls/credentials.ts";
import type { PkiFolder } from "../src/tls/pki-folder.ts";

/** Name of its certificate in the folder. */
const OWN = "coordinator";
/** New certificates are looked for this often. */
const LOOK_MS = 1000;

export function ownCredentials(pki: PkiFolder): Credentials {
  const file = pki.fileOf(OWN);
  const credentials = loadCredentials(file, pki.caFile);
  if (credentials.identity.role === "coordinator") return credentials;
  throw new SsihvError("certificate_invalid", `${file} is not a coordinator's certificate`, {
    hint: "ssihv certs init makes one",
  });
}

/** By what the files say, not by notification: they may lie on any file system. */
export function watchCertificate(
  pki: PkiFolder,
  onChange: () => void,
  say: (text: string) => void,
): ReturnType<typeof setInterval> {
  const stamp = () => {
    const files = [readPem(pki.fileOf(OWN), true), readPem(pki.caFile, false)];
    return createHash("sha256").update(files.join("\0")).digest("hex");
  };
  let seen = stamp();
  let said = "";
  return setInterval(() => {
    try {
      const now = stamp();
      if (now === seen) return;
      onChange();
      seen = now;
      said = "";
    } catch (error) {
      // The old certificate is still good: it is tried again.
      const text = `new certificate: ${messageOf(error)}`;
      if (text !== said) say(text);
      said = text;
    }
  }, LOOK_MS);
}
