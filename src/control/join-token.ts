// The one-time token by which a host becomes a node of the cluster: where to ask, which token it
// is, and a secret. Neither side trusts the connection: the request and the answer each carry a
// proof of the secret over all that they say, so whoever is between can change no word of either,
// and the secret itself never crosses.

import { createHmac, randomBytes, timingSafeEqual } from "node:crypto";

import { type Static, Type } from "@sinclair/typebox";
import { Value } from "@sinclair/typebox/value";

import { SsihvError } from "../base/errors.ts";
import { Name } from "./vm-spec.ts";

const PREFIX = "ssihv-join-1.";
const TEXT_MAX = 1024;

const Token = Type.Object({
  /** Host and port that take the request. */
  host: Type.String({ minLength: 1, maxLength: 255 }),
  port: Type.Integer({ minimum: 1, maximum: 65_535 }),
  id: Type.String({ pattern: "^[0-9a-f]{16}$" }),
  secret: Type.String({ pattern: "^[0-9a-f]{64}$" }),
});
export type JoinToken = Static<typeof Token>;

export const JoinRequest = Type.Object(
  {
    token: Type.String({ pattern: "^[0-9a-f]{16}$" }),
    name: Name,
    /** PKCS #10, PEM: the private key stays on the host. */
    request: Type.String({ maxLength: 8192 }),
    proof: Type.String({ pattern: "^[0-9a-f]{64}$" }),
  },
  { additionalProperties: false },
);
export type JoinRequest = Static<typeof JoinRequest>;

export const JoinAnswer = Type.Object({
  name: Name,
  certificate: Type.String({ maxLength: 32_768 }),
  ca: Type.String({ maxLength: 32_768 }),
  /** Where agents connect, at the host that was asked. */
  agentPort: Type.Integer({ minimum: 1, maximum: 65_535 }),
  proof: Type.String({ pattern: "^[0-9a-f]{64}$" }),
});
export type JoinAnswer = Static<typeof JoinAnswer>;

export function newSecret(): { id: string; secret: string } {
  return { id: randomBytes(8).toString("hex"), secret: randomBytes(32).toString("hex") };
}

export function encodeToken(token: JoinToken): string {
  return PREFIX + Buffer.from(JSON.stringify(token)).toString("base64url");
}

/** Throws `token_invalid`. */
export function decodeToken(text: string): JoinToken {
  const trimmed = text.trim();
  try {
    if (!trimmed.startsWith(PREFIX) || trimmed.length > TEXT_MAX) throw new Error("no token");
    const json = Buffer.from(trimmed.slice(PREFIX.length), "base64url").toString("utf8");
    return Value.Decode(Token, JSON.parse(json));
  } catch (cause) {
    throw new SsihvError("token_invalid", "this is no join token", {
      hint: "ssihv cluster token, where the coordinator runs, makes one",
      cause,
    });
  }
}

/** JSON, so that no two different lists of words are the same text. */
function proof(secret: string, words: readonly (string | number)[]): string {
  const mac = createHmac("sha256", Buffer.from(secret, "hex"));
  return mac.update(JSON.stringify(words)).digest("hex");
}

export function requestProof(secret: string, { token, name, request }: Omit<JoinRequest, "proof">) {
  return proof(secret, ["join request", token, name, request]);
}

export function answerProof(secret: string, answer: Omit<JoinAnswer, "proof">): string {
  const { name, certificate, ca, agentPort } = answer;
  return proof(secret, ["join answer", name, certificate, ca, agentPort]);
}

export function sameProof(a: string, b: string): boolean {
  return a.length === b.length && timingSafeEqual(Buffer.from(a), Buffer.from(b));
}
