// What a host keeps of its membership: its certificate with its key, the CAs, and where the
// coordinator is. In a folder of mode 700; made by joining, read at every start.

import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";

import { type Static, Type } from "@sinclair/typebox";
import { Value } from "@sinclair/typebox/value";

import { SsihvError } from "../base/errors.ts";
import type { Admitted } from "../control/join-client.ts";
import { Name } from "../control/vm-spec.ts";
import { type Credentials, loadCredentials } from "../tls/credentials.ts";
import { secretFolder, writeFileAtomic } from "../tls/pki-folder.ts";

const Membership = Type.Object({
  name: Name,
  coordinatorHost: Type.String({ minLength: 1, maxLength: 255 }),
  agentPort: Type.Integer({ minimum: 1, maximum: 65_535 }),
});
export type Membership = Static<typeof Membership>;

const FILE = "node.json";
const OWN = "node.pem";
const CA = "ca.pem";

export class NodeState {
  private readonly folder: string;

  constructor(folder: string) {
    this.folder = folder;
  }

  get joined(): boolean {
    return existsSync(join(this.folder, FILE));
  }

  /** Before a token is spent: whether what it brings can be kept. */
  prepare(): void {
    secretFolder(this.folder);
    if (!this.joined) return;
    const message = `this host has joined a cluster already (${join(this.folder, FILE)})`;
    throw new SsihvError("token_invalid", message, {
      hint: "leave --join out; to join another cluster, use another --state folder",
    });
  }

  save({ name, certificate, key, ca, coordinatorHost, agentPort }: Admitted): void {
    writeFileAtomic(join(this.folder, OWN), key + certificate, 0o600);
    writeFileAtomic(join(this.folder, CA), ca, 0o644);
    const membership: Membership = { name, coordinatorHost, agentPort };
    // The last one: with it the host has joined.
    writeFileAtomic(join(this.folder, FILE), `${JSON.stringify(membership)}\n`, 0o600);
  }

  membership(): Membership {
    const path = join(this.folder, FILE);
    if (!this.joined) {
      throw new SsihvError("host_unknown", "this host has not joined a cluster", {
        hint: "ssihv cluster token, where the coordinator runs, then here: ssihv node --join TOKEN",
      });
    }
    try {
      return Value.Decode(Membership, JSON.parse(readFileSync(path, "utf8")));
    } catch (cause) {
      throw new SsihvError("config_invalid", `${path} is damaged`, {
        hint: "remove the folder, and let the host join anew",
        cause,
      });
    }
  }

  /** Read anew for each connection: they may have been replaced. */
  credentials(): Credentials {
    return loadCredentials(join(this.folder, OWN), join(this.folder, CA));
  }
}
