// What a host keeps of its membership: its certificate with its key and the CAs in one file, and
// where the coordinator is. In a folder of mode 700; made by joining, read at every start.
// One file, so that a renewal is one rename: whenever this host dies, what is there can be used.

import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";

import { type Static, Type } from "@sinclair/typebox";
import { Value } from "@sinclair/typebox/value";

import { SsihvError } from "../base/errors.ts";
import type { Admitted } from "../control/join-client.ts";
import { type CoordinatorPlace, CoordinatorPlaces } from "../control/messages.ts";
import { Name } from "../control/vm-spec.ts";
import { type Credentials, loadCredentials } from "../tls/credentials.ts";
import { secretFolder, writeFileAtomic } from "../tls/pki-folder.ts";
import type { Renewed } from "../tls/renewal.ts";

const Membership = Type.Object({
  name: Name,
  coordinatorHost: Type.String({ minLength: 1, maxLength: 255 }),
  agentPort: Type.Integer({ minimum: 1, maximum: 65_535 }),
  /** As the one that leads told last; absent: there is one. */
  coordinators: Type.Optional(CoordinatorPlaces),
});
export type Membership = Static<typeof Membership>;

const FILE = "node.json";
const OWN = "node.pem";
/** Where hosts that joined an older ssihv have the CAs until their first renewal. */
const OLD_CA = "ca.pem";

/** What writeFileAtomic had not renamed yet. */
const LEFT_OVER = /^node\.(pem|json)\.[0-9a-f]{12}$/;

export function rejoinHint({ name }: Pick<Membership, "name">): string {
  return (
    `let it join again under its name: ssihv cluster token --rejoin ${name}, where the ` +
    "coordinator runs, then here: ssihv node --join TOKEN"
  );
}

export class NodeState {
  private readonly folder: string;

  constructor(folder: string) {
    this.folder = folder;
  }

  get joined(): boolean {
    return existsSync(join(this.folder, FILE));
  }

  /**
   * Before a token is spent: whether what it brings can be kept. A host that has joined may do so
   * again once its certificate is of no use; then this is its name.
   */
  prepare(): string | undefined {
    secretFolder(this.folder);
    if (!this.joined) return undefined;
    const { name } = this.membership();
    try {
      this.credentials();
    } catch (error) {
      if (error instanceof SsihvError) return name;
      throw error;
    }
    const message = `this host has joined a cluster already (${join(this.folder, FILE)})`;
    throw new SsihvError("token_invalid", message, {
      hint:
        "leave --join out; to join another cluster, use another --state folder; " +
        `if the coordinator refuses this host, remove ${join(this.folder, OWN)} first`,
    });
  }

  save({ name, certificate, key, ca, coordinatorHost, agentPort }: Admitted): void {
    this.keep(key, { certificate, ca });
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

  /** Where the coordinators are, as the one that leads tells. */
  keepCoordinators(coordinators: readonly CoordinatorPlace[]): void {
    const membership: Membership = { ...this.membership(), coordinators: [...coordinators] };
    writeFileAtomic(join(this.folder, FILE), `${JSON.stringify(membership)}\n`, 0o600);
  }

  /** Read anew for each connection: they may have been replaced. */
  credentials(): Credentials {
    try {
      return loadCredentials(join(this.folder, OWN), join(this.folder, OLD_CA));
    } catch (cause) {
      if (!(cause instanceof SsihvError)) throw cause;
      const hint = rejoinHint(this.membership());
      throw new SsihvError(cause.code, cause.message, { hint, cause });
    }
  }

  /** In the place of what is there; a crash leaves the one or the other. */
  keep(key: string, { certificate, ca }: Renewed): void {
    writeFileAtomic(join(this.folder, OWN), key + certificate + ca, 0o600);
    rmSync(join(this.folder, OLD_CA), { force: true });
  }

  /** What an agent that was killed in the middle of that has left. */
  sweep(): void {
    for (const file of readdirSync(this.folder)) {
      if (LEFT_OVER.test(file)) rmSync(join(this.folder, file), { force: true });
    }
  }
}
