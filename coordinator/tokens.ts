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
import { put, remove, type TypedStore } from "./records.ts";

export interface TokenView {
  readonly id: string;
  /** Null: for a host of any name. */
  readonly host: string | null;
  readonly expiresAt: string;
}

/** Who makes the certificates, and what joiners need to know. */
export interface Admission {
  sign(request: string, host: string): Promise<string>;
  ca(): string;
  readonly agentPort: number;
  /** Where joiners ask. */
  readonly joinHost: string;
  readonly joinPort: number;
}

export class Tokens {
  private readonly store: TypedStore;
  private readonly events: Events;
  private readonly admission: Admission;

  constructor(store: TypedStore, events: Events, admission: Admission) {
    this.store = store;
    this.events = events;
    this.admission = admission;
  }

  async create(seconds: number, host?: string): Promise<TokenView & { readonly token: string }> {
    await this.dropExpired();
    if (host !== undefined) await this.refuseTaken(host);
    const { id, secret } = newSecret();
    const expiresAt = new Date(Date.now() + seconds * 1000).toISOString();
    const named = host === undefined ? {} : { host };
    await this.store.apply(put("token", id, { secret, expiresAt, ...named }));
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
    const { secret, host } = token.value;
    if (!sameProof(requestProof(secret, request), request.proof)) throw invalid();
    if (host !== undefined && host !== request.name) {
      throw new SsihvError("token_invalid", `this token is for host ${host}`, {
        hint: `join with ssihv node --name ${host}, or make another token`,
      });
    }
    await this.refuseTaken(request.name);
    const certificate = await this.admission.sign(request.request, request.name);
    const joined = await this.store.apply(
      remove("token", request.token, token.revision),
      put("host", request.name, { joinedAt: new Date().toISOString() }, 0),
    );
    if (!joined) throw invalid();
    this.events.tell("host_joined", { host: request.name });
    const { agentPort } = this.admission;
    const answer = { name: request.name, certificate, ca: this.admission.ca(), agentPort };
    return { ...answer, proof: answerProof(secret, answer) };
  }

  private async refuseTaken(host: string): Promise<void> {
    if ((await this.store.get("host", host)) === undefined) return;
    throw new SsihvError("name_taken", `a host named ${host} has joined already`, {
      hint: `ssihv cluster remove ${host} lets another take its name`,
    });
  }

  private async dropExpired(): Promise<void> {
    for (const { id, revision, value } of await this.store.list("token")) {
      if (Date.parse(value.expiresAt) > Date.now()) continue;
      await this.store.apply(remove("token", id, revision));
    }
  }
}

function invalid(): SsihvError {
  return new SsihvError("token_invalid", "this token is not valid (any more)", {
    hint: "each is for one host and for a short time: ssihv cluster token makes another",
  });
}
