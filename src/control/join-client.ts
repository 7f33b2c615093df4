// The joining host's side of a token: asks for a certificate with a key that was made here, and
// believes the answer only with the token's proof.

import { Value } from "@sinclair/typebox/value";

import { isErrorCode, SsihvError } from "../base/errors.ts";
import { requestLeaf } from "../tls/certificate.ts";
import {
  answerProof,
  decodeToken,
  JoinAnswer,
  type JoinToken,
  requestProof,
  sameProof,
} from "./join-token.ts";

export interface Admitted {
  readonly name: string;
  readonly certificate: string;
  readonly key: string;
  readonly ca: string;
  readonly coordinatorHost: string;
  readonly agentPort: number;
}

const ANSWER_MS = 15_000;

function bracketed(host: string): string {
  return host.includes(":") ? `[${host}]` : host;
}

/** Throws `token_invalid`, `name_taken` or `coordinator_unreachable`. */
export async function joinCluster(tokenText: string, name: string): Promise<Admitted> {
  const token = decodeToken(tokenText);
  const { request, key } = await requestLeaf({ name, role: "node" });
  const body = { token: token.id, name, request };
  const asked = { ...body, proof: requestProof(token.secret, body) };
  const answer = await ask(token, asked);
  const { proof, ...told } = answer;
  if (told.name !== name || !sameProof(answerProof(token.secret, told), proof)) {
    const message = `${token.host}:${token.port} does not know the token's secret`;
    throw new SsihvError("peer_refused", `${message}: it is not the coordinator that made it`);
  }
  const { certificate, ca, agentPort } = told;
  return { name, certificate, key, ca, agentPort, coordinatorHost: token.host };
}

async function ask({ host, port }: JoinToken, body: object): Promise<JoinAnswer> {
  const url = `https://${bracketed(host)}:${port}/v1/join`;
  let answer: unknown;
  try {
    const response = await fetch(url, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      // Whoever answers is believed for the proof in the answer, not for a certificate: this host
      // does not know the CA yet.
      tls: { rejectUnauthorized: false },
      signal: AbortSignal.timeout(ANSWER_MS),
    });
    answer = await response.json();
  } catch (cause) {
    const message = `the coordinator cannot be asked at ${host}:${port}`;
    throw new SsihvError("coordinator_unreachable", message, {
      hint: "is it running, and can this host reach that port?",
      cause,
    });
  }
  if (Value.Check(JoinAnswer, answer)) return answer;
  const { code, message, hint } = (answer as { error?: Record<string, unknown> })?.error ?? {};
  const known = typeof code === "string" && isErrorCode(code) ? code : "token_invalid";
  throw new SsihvError(known, String(message ?? "the coordinator gave no answer that is one"), {
    ...(typeof hint === "string" && { hint }),
  });
}
