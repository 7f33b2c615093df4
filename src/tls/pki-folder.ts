// The folder of a cluster's CA and of the certificates made here: ca.key (never leaves this host),
// ca.pem (the CAs to believe, newest first; goes to every host), NAME.pem (a certificate and its
// key; goes to its holder). Folder 0700, secrets 0600, each file replaced by one rename.
// A new CA comes in without an outage: it is signed by the old one as well, and the leaves carry
// that cross certificate (cross.pem), so a peer that only knows the old CA still believes them.

import { randomBytes } from "node:crypto";
import {
  closeSync,
  existsSync,
  fsyncSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";

import { SsihvError } from "../base/errors.ts";
import {
  belongsTogether,
  type CertificateFacts,
  certificatesIn,
  crossSign,
  DAY_MS,
  factsOf,
  issueLeaf,
  type KeyPair,
  type LeafRequest,
  makeCa,
  signRequest,
} from "./certificate.ts";
import { readPem } from "./credentials.ts";
import { isIdentityName } from "./identity.ts";

const CA_KEY = "ca.key";
const CA_BUNDLE = "ca.pem";
const CROSS = "cross.pem";
/** Files of ours that are nobody's certificate. */
const OWN_NAMES = ["ca", "cross"];
const NOT_OWNER = 0o077;

export const CA_DAYS = 3650;

export interface Listed extends CertificateFacts {
  readonly file: string;
}

function failed(message: string, hint: string): SsihvError {
  return new SsihvError("certificate_invalid", message, { hint });
}

/** Written beside it and renamed: whoever reads sees the old file or the new one. */
export function writeFileAtomic(path: string, content: string, mode: number): void {
  const temporary = `${path}.${randomBytes(6).toString("hex")}`;
  const fd = openSync(temporary, "wx", mode);
  try {
    writeSync(fd, content);
    fsyncSync(fd);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  } finally {
    closeSync(fd);
  }
  renameSync(temporary, path);
}

/** Makes the folder; one that others may enter is refused. */
export function secretFolder(path: string): void {
  mkdirSync(path, { recursive: true, mode: 0o700 });
  const stat = lstatSync(path);
  if (!stat.isDirectory()) throw failed(`${path} is no folder`, "name another --dir");
  if (stat.uid !== process.getuid?.()) {
    throw failed(`${path} is another user's`, "name a folder of your own, or run as that user");
  }
  if ((stat.mode & NOT_OWNER) === 0) return;
  const mode = (stat.mode & 0o777).toString(8);
  throw failed(`${path} is open to other users (mode ${mode})`, `chmod 700 ${path}`);
}

export class PkiFolder {
  readonly path: string;

  private constructor(path: string) {
    this.path = path;
  }

  /** A new CA in the folder; one that is there is kept and refused. */
  static async create(path: string): Promise<PkiFolder> {
    secretFolder(path);
    if (existsSync(join(path, CA_KEY)) || existsSync(join(path, CA_BUNDLE))) {
      throw failed(`${path} has a CA already`, "ssihv certs rotate --ca replaces it");
    }
    const { certificate, key } = await makeCa(CA_DAYS);
    writeFileAtomic(join(path, CA_KEY), key, 0o600);
    writeFileAtomic(join(path, CA_BUNDLE), certificate, 0o644);
    return new PkiFolder(path);
  }

  static open(path: string): PkiFolder {
    if (!existsSync(join(path, CA_BUNDLE))) {
      throw failed(`${path} holds no CA`, `ssihv certs init --dir ${path} makes one`);
    }
    secretFolder(path);
    return new PkiFolder(path);
  }

  get caFile(): string {
    return join(this.path, CA_BUNDLE);
  }

  fileOf(name: string): string {
    return join(this.path, `${name}.pem`);
  }

  /** Whether certificates can be made here. */
  get hasCaKey(): boolean {
    return existsSync(join(this.path, CA_KEY));
  }

  /** The CAs to believe. */
  bundle(): string {
    return readPem(this.caFile, false);
  }

  /** Makes NAME.pem, with a key of its own. */
  async issue(request: LeafRequest): Promise<Listed> {
    this.refuseName(request.name);
    if (existsSync(this.fileOf(request.name))) {
      const hint = `ssihv certs rotate ${request.name} replaces it`;
      throw failed(`there is a certificate ${request.name} already`, hint);
    }
    return await this.write(request);
  }

  /** The CA that signs now. */
  issuer(): CertificateFacts {
    return factsOf(this.ca().certificate);
  }

  /** A certificate for a key that its holder keeps to itself. */
  async sign(csr: string, request: LeafRequest): Promise<string> {
    this.refuseName(request.name);
    return await signRequest(this.ca(), csr, request, this.chain());
  }

  /** The same holders, new keys. Absent: all that were made here. */
  async rotate(name?: string): Promise<Listed[]> {
    const all = this.list();
    const chosen = name === undefined ? all : all.filter(({ file }) => file === `${name}.pem`);
    if (name !== undefined && chosen.length === 0) {
      const hint = `there are: ${all.map(({ file }) => file.replace(/\.pem$/, "")).join(", ")}`;
      throw failed(`${this.path} holds no certificate ${name}`, hint);
    }
    const done: Listed[] = [];
    for (const { identity, hosts, notBefore, notAfter } of chosen) {
      if (identity === undefined) continue;
      const days = Math.max(1, Math.round((notAfter.getTime() - notBefore.getTime()) / DAY_MS));
      done.push(await this.write({ ...identity, hosts, days }));
    }
    return done;
  }

  /** A new CA, believed through the old one until everybody has the new ca.pem. */
  async rotateCa(): Promise<void> {
    const old = this.ca();
    const next = await makeCa(CA_DAYS);
    const cross = await crossSign(old, next.certificate);
    // In this order a crash in between leaves a folder that works: the new CA is believed before
    // it signs, and the cross certificate is there before a leaf needs it.
    writeFileAtomic(this.caFile, next.certificate + this.bundle(), 0o644);
    writeFileAtomic(join(this.path, CROSS), cross, 0o600);
    writeFileAtomic(join(this.path, CA_KEY), next.key, 0o600);
  }

  /** From now on the old CAs are not believed: to be done once everybody has new certificates. */
  dropOldCas(): void {
    writeFileAtomic(this.caFile, this.ca().certificate, 0o644);
    rmSync(join(this.path, CROSS), { force: true });
  }

  /** The CAs, newest first. */
  cas(): Listed[] {
    return certificatesIn(this.bundle()).map((pem) => ({ ...factsOf(pem), file: CA_BUNDLE }));
  }

  /** The certificates made here, by name. */
  list(): Listed[] {
    return readdirSync(this.path)
      .filter((file) => file.endsWith(".pem") && !OWN_NAMES.includes(file.replace(/\.pem$/, "")))
      .sort()
      .map((file) => ({ ...factsOf(readPem(join(this.path, file), true)), file }));
  }

  private ca(): KeyPair {
    if (!this.hasCaKey) {
      const hint = "issue certificates where the CA was made, and bring them here";
      throw failed(`${this.path} has no ${CA_KEY}: nothing can be signed here`, hint);
    }
    const key = readPem(join(this.path, CA_KEY), true);
    const certificate = certificatesIn(this.bundle()).find((pem) => {
      return belongsTogether({ certificate: pem, key });
    });
    if (certificate !== undefined) return { certificate, key };
    throw failed(`${CA_KEY} and ${CA_BUNDLE} do not belong together`, "restore them from a backup");
  }

  private chain(): string {
    const path = join(this.path, CROSS);
    return existsSync(path) ? readPem(path, true) : "";
  }

  private refuseName(name: string): void {
    if (isIdentityName(name) && !OWN_NAMES.includes(name)) return;
    throw failed(`"${name.slice(0, 64)}" cannot be a certificate's name`, "use a-z, 0-9 and '-'");
  }

  private async write(request: LeafRequest): Promise<Listed> {
    const { certificate, key } = await issueLeaf(this.ca(), request, this.chain());
    const path = this.fileOf(request.name);
    writeFileAtomic(path, key + certificate, 0o600);
    return { ...factsOf(certificate), file: `${request.name}.pem` };
  }
}
