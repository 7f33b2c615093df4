// The agent's certificate, renewed by the agent itself: after two thirds of its life, and when the
// coordinator says that the CAs to believe are others. The new key is made here and stays here.
// Invariants: one request at a time; what is kept has been checked to be ours and to be usable; the
// old certificate is in use until then, so a failure costs nothing but a later try.

import { messageOf } from "../base/errors.ts";
import type { FromAgent, ToAgent, Trust } from "../control/messages.ts";
import { factsOf, requestLeaf } from "../tls/certificate.ts";
import { type Credentials, dateText } from "../tls/credentials.ts";
import { caPrints, checkRenewed, issuerOf, renewalDue, renewalPause } from "../tls/renewal.ts";
import type { NodeState } from "./node-state.ts";

export interface RenewalDeps {
  readonly state: NodeState;
  readonly now: () => number;
  /** From 0 to 1. */
  readonly chance: () => number;
  connected(): boolean;
  send(message: FromAgent): void;
  say(text: string): void;
  /** Another connection is to be made with it. */
  onRenewed(): void;
}

type Answer = Extract<ToAgent, { type: "renewed" | "not_renewed" }>;

/** The coordinator signs at once. */
const ANSWER_MS = 15_000;
/** Between two renewals, whatever the coordinator says of its CAs. */
const APART_MS = 1000;

export class CertificateRenewal {
  private readonly deps: RenewalDeps;
  private own: Credentials | undefined;
  /** When to ask next. */
  private due = Number.POSITIVE_INFINITY;
  /** Of the request that is under way; its key once there is one. */
  private asked: { readonly at: number; key?: string } | undefined;
  private renewedAt = Number.NEGATIVE_INFINITY;
  private said = "";

  constructor(deps: RenewalDeps) {
    this.deps = deps;
  }

  /** When the certificate in use ends. */
  get expires(): Date | undefined {
    return this.own?.expires;
  }

  /** What a connection is made with; an answer to an earlier one's request comes no more. */
  use(credentials: Credentials): void {
    this.asked = undefined;
    if (this.own?.certificate === credentials.certificate) return;
    this.own = credentials;
    this.due = renewalDue(factsOf(credentials.certificate), this.deps.chance());
  }

  onTrust({ ca, issuer }: Trust): void {
    const { own } = this;
    if (own === undefined) return;
    const same = caPrints(ca) === caPrints(own.ca) && issuerOf(own.certificate, own.ca) === issuer;
    if (!same) this.due = Math.max(this.deps.now(), this.renewedAt + APART_MS);
  }

  /** Often: asks when it is time. */
  look(): void {
    const now = this.deps.now();
    if (this.asked !== undefined && now - this.asked.at > ANSWER_MS) {
      this.failed("the coordinator does not answer");
    }
    if (this.asked === undefined && now >= this.due && this.deps.connected()) void this.ask();
  }

  onAnswer(answer: Answer): void {
    const { own, asked } = this;
    // Of a request that was given up.
    if (own === undefined || asked?.key === undefined) return;
    if (answer.type === "not_renewed") return this.failed(faultWords(answer.fault));
    try {
      checkRenewed(answer, asked.key, own.identity);
      this.deps.state.keep(asked.key, answer);
      this.use(this.deps.state.credentials());
    } catch (error) {
      return this.failed(messageOf(error));
    }
    this.said = "";
    this.renewedAt = this.deps.now();
    this.deps.say(`certificate: renewed, until ${dateText(factsOf(answer.certificate).notAfter)}`);
    this.deps.onRenewed();
  }

  private async ask(): Promise<void> {
    const { own } = this;
    if (own === undefined) return;
    const asked: { at: number; key?: string } = { at: this.deps.now() };
    this.asked = asked;
    const { request, key } = await requestLeaf(own.identity);
    // The connection may have been lost meanwhile, and another made.
    if (this.asked !== asked) return;
    asked.key = key;
    this.deps.send({ type: "renew", request });
  }

  private failed(why: string): void {
    this.asked = undefined;
    const now = this.deps.now();
    const end = this.own?.expires ?? new Date(now);
    this.due = now + renewalPause(end, now);
    if (why !== this.said) {
      this.deps.say(`certificate: not renewed, it ends on ${dateText(end)}: ${why}; trying again`);
    }
    this.said = why;
  }
}

export function faultWords(fault: { message: string; hint?: string | undefined }): string {
  const { message, hint } = fault;
  return hint === undefined ? message : `${message} (${hint})`;
}
