// One-time tokens: each lets one host in, once, before it expires. Taking the token off the store
// and putting the host on it is one change, so of two who come with the same token one gets in.

import { SsihvError } from "../src/base/errors.ts";
import {
  answerProof,
  encodeToken,
  type JoinAnswer,
  type JoinRequest,
  newSecret,
  requestProof,
  sameProof,
} from "../src/control/join-token.ts";
import type { Events } from "./events.ts";
import type { HostCertificates } from "./host-certificates.ts";
import { type HostRecord, put, remove, type TokenRecord, type TypedStore } from "./records.ts";
import type { Stored } from "./store.ts";

export interface TokenView {
  readonly id: string;
  /** Null: for a host of any name. */
  readonly host: string | null;
  readonly expiresAt: string;
}

/** Who makes the certificates, and what joiners need to know. */
export interface Admission {
  readonly certificates: HostCertificates;
  onJoined(host: string): void;
  /** Until the returned function is called, nobody of that name gets a new certificate. */
  holdRenewals(host: string): () => void;
  readonly agentPort: number;
  /** Where joiners ask. */
  readonly joinHost: string;
  readonly joinPort: number;
}

/** An agent that connects again and again cannot keep its host from joining anew. */
const TRIES = 20;

export class Tokens {
  private readonly store: TypedStore;
  private readonly events: Events;
  private readonly admission: Admission;

  constructor(store: TypedStore, events: Events, admission: Admission) {
    this.store = store;
    this.events = events;
    this.admission = admission;
  }

  /** `rejoin`: for a host that has joined already. */
  async create(
    seconds: number,
    host?: string,
    rejoin = false,
  ): Promise<TokenView & { readonly token: string }> {
    await this.dropExpired();
    if (rejoin) await this.joined(host);
    else if (host !== undefined) await this.refuseTaken(host);
    const { id, secret } = newSecret();
    const expiresAt = new Date(Date.now() + seconds * 1000).toISOString();
    const named = host === undefined ? {} : { host };
    const record = { secret, expiresAt, ...named, ...(rejoin && { rejoin }) };
    await this.store.apply(put("token", id, record));
    this.events.tell("token_created", named);
    const { joinHost, joinPort } = this.admission;
    const token = encodeToken({ host: joinHost, port: joinPort, id, secret });
    return { id, host: host ?? null, expiresAt, token };
  }

  async list(): Promise<TokenView[]> {
    await this.dropExpired();
    const tokens = await this.store.list("token");
    return tokens.map(({ id, value }) => {
      return { id, host: value.host ?? null, expiresAt: value.expiresAt };
    });
  }

  async revoke(id: string): Promise<void> {
    if ((await this.store.get("token", id)) === undefined) {
      throw new SsihvError("token_unknown", `there is no token ${id}`, {
        hint: "it was used, or has expired: GET /v1/tokens lists those there are",
      });
    }
    await this.store.apply(remove("token", id));
  }

  /** Lets a host in. One answer for every reason not to, where it could help a guesser. */
  async redeem(request: JoinRequest): Promise<JoinAnswer> {
    const token = await this.store.get("token", request.token);
    if (token === undefined || Date.parse(token.value.expiresAt) <= Date.now()) throw invalid();
    const { secret, host, rejoin = false } = token.value;
    if (!sameProof(requestProof(secret, request), request.proof)) throw invalid();
    if (host !== undefined && host !== request.name) {
      throw new SsihvError("token_invalid", `this token is for host ${host}`, {
        hint: `join with ssihv node --name ${host}, or make another token`,
      });
    }
    const { certificates, agentPort } = this.admission;
    if (!rejoin) await this.refuseTaken(request.name);
    // Whoever has its name by now must not come by a certificate that is as new as this one.
    const release = rejoin ? this.admission.holdRenewals(request.name) : () => undefined;
    let certificate: string;
    try {
      if (rejoin) await nextSecond();
      certificate = await this.letIn(request, token, rejoin);
    } finally {
      release();
    }
    this.admission.onJoined(request.name);
    const answer = { name: request.name, certificate, ca: certificates.ca(), agentPort };
    return { ...answer, proof: answerProof(secret, answer) };
  }

  /** The certificate; the token is gone, and the host on record. */
  private async letIn(
    { token: id, name, request }: JoinRequest,
    token: Stored<TokenRecord>,
    rejoin: boolean,
  ): Promise<string> {
    // Before it is signed: certificates from before that are not let in any more.
    const joinedAt = new Date().toISOString();
    const certificate = await this.admission.certificates.sign(request, name);
    for (let tries = 0; tries < TRIES; tries++) {
      const before = rejoin ? await this.joined(name) : undefined;
      const { capacity } = before?.value ?? {};
      const joined = await this.store.apply(
        remove("token", id, token.revision),
        put("host", name, { joinedAt, ...(capacity && { capacity }) }, before?.revision ?? 0),
      );
      if (joined) return certificate;
      // The host's record changes whenever its agent connects: the token may still be there.
      if ((await this.store.get("token", id))?.revision !== token.revision) break;
    }
    throw invalid();
  }

  private async joined(host: string | undefined): Promise<Stored<HostRecord>> {
    const record = host === undefined ? undefined : await this.store.get("host", host);
    if (record !== undefined) return record;
    const which = host === undefined ? "a host without a name" : `host ${host}`;
    throw new SsihvError("host_unknown", `${which} has not joined: it cannot rejoin`, {
      hint: "ssihv cluster status lists the hosts; --rejoin is for one of them",
    });
  }

  private async refuseTaken(host: string): Promise<void> {
    if ((await this.store.get("host", host)) === undefined) return;
    throw new SsihvError("name_taken", `a host named ${host} has joined already`, {
      hint:
        `ssihv cluster token --rejoin ${host} lets it come back, ` +
        `ssihv cluster remove ${host} lets another take its name`,
    });
  }

  private async dropExpired(): Promise<void> {
    for (const { id, revision, value } of await this.store.list("token")) {
      if (Date.parse(value.expiresAt) > Date.now()) continue;
      await this.store.apply(remove("token", id, revision));
    }
  }
}

/** Certificates tell whole seconds: in the next one none is older that was made before. */
async function nextSecond(): Promise<void> {
  await Bun.sleep(1000 - (Date.now() % 1000) + 1);
}

function invalid(): SsihvError {
  return new SsihvError("token_invalid", "this token is not valid (any more)", {
    hint: "each is for one host and for a short time: ssihv cluster token makes another",
  });
}
