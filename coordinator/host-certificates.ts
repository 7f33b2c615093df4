// The certificates of hosts: signed here when a host joins and when its agent asks for another
// before the old one ends, and which CAs hosts are to believe. How a host that is cut off comes
// back: with a token for its own name.
// Invariant: a renewal names whom the certificate of the asking connection names, whatever it asks.

import { messageOf, SsihvError } from "../src/base/errors.ts";
import type { Trust } from "../src/control/messages.ts";
import { type CertificateFacts, CLOCK_SKEW_MS, DAY_MS } from "../src/tls/certificate.ts";
import type { PkiFolder } from "../src/tls/pki-folder.ts";
import { checkRequest, type Renewed } from "../src/tls/renewal.ts";

/** Seconds are all that a certificate's dates tell. */
const DATE_STEP_MS = 1000;

export class HostCertificates {
  private readonly pki: PkiFolder;
  private readonly lifeMs: number;
  private readonly say: (text: string) => void;
  private said = "";

  constructor(pki: PkiFolder, lifeMs: number, say: (text: string) => void) {
    this.pki = pki;
    this.lifeMs = lifeMs;
    this.say = say;
  }

  /** The CAs to believe. */
  ca(): string {
    return this.pki.bundle();
  }

  /** For a host whose name somebody has vouched for. */
  sign(request: string, host: string): Promise<string> {
    const days = this.lifeMs / DAY_MS;
    return this.pki.sign(request, { name: host, role: "node", hosts: [], days });
  }

  /** Throws `certificate_invalid` where it asks for anything but its own with a new key. */
  async renew(holder: CertificateFacts, request: string): Promise<Renewed> {
    if (holder.identity?.role !== "node") {
      throw new SsihvError("certificate_invalid", "only hosts have their certificates renewed");
    }
    await checkRequest(request, holder);
    const certificate = await this.sign(request, holder.identity.name);
    return { certificate, ca: this.ca() };
  }

  /** Undefined where nothing can be signed: the CA's key is elsewhere, or its files are damaged. */
  trust(): Trust | undefined {
    const issuer = this.issuer();
    return issuer && { ca: this.ca(), issuer: issuer.fingerprint };
  }

  /** Subject of the CA that signs now: certificates of older ones are on their way out. */
  currentIssuer(): string | undefined {
    return this.issuer()?.subject;
  }

  private issuer(): CertificateFacts | undefined {
    try {
      const issuer = this.pki.issuer();
      this.said = "";
      return issuer;
    } catch (error) {
      const why = messageOf(error);
      if (why !== this.said) this.say(`hosts' certificates cannot be renewed: ${why}`);
      this.said = why;
      return undefined;
    }
  }
}

/** A certificate of its name, but from before the host joined: of whoever had the name then. */
export function isFromBefore({ notBefore }: CertificateFacts, joinedAt: string): boolean {
  return notBefore.getTime() + CLOCK_SKEW_MS + DATE_STEP_MS < Date.parse(joinedAt);
}
