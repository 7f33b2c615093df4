// Where a host without a certificate asks for one. It is the only thing that answers here, and it
// answers only who knows a token's secret. TLS hides names and addresses from listeners; what lets
// each side believe the other is the token (src/control/join-token.ts).

import { TypeCompiler } from "@sinclair/typebox/compiler";

import { SsihvError } from "../src/base/errors.ts";
import { type JoinAnswer, JoinRequest } from "../src/control/join-token.ts";
import type { Credentials } from "../src/tls/credentials.ts";
import { bodyOf, statusOf } from "./http-errors.ts";

const BODY_BYTES_MAX = 1 << 15;
const request = TypeCompiler.Compile(JoinRequest);
/** A guesser at 256 bits needs no help to fail; this keeps it from keeping us busy. */
const TRIES_PER_SECOND = 50;

export type Redeem = (request: JoinRequest) => Promise<JoinAnswer>;

export class JoinDoor {
  private readonly server: Bun.Server<undefined>;
  private readonly redeem: Redeem;
  private tries = 0;
  private second = 0;

  constructor(hostname: string, port: number, credentials: Credentials, redeem: Redeem) {
    this.redeem = redeem;
    try {
      this.server = Bun.serve({
        hostname,
        port,
        tls: { cert: credentials.certificate, key: credentials.key },
        fetch: (asked) => this.answer(asked),
        maxRequestBodySize: BODY_BYTES_MAX,
      });
    } catch (cause) {
      const code = cause instanceof Error && "code" in cause ? String(cause.code) : "refused";
      throw new SsihvError("address_invalid", `cannot listen on ${hostname}:${port} (${code})`, {
        hint: "choose another --listen: three ports in a row must be free",
        cause,
      });
    }
  }

  get port(): number {
    return this.server.port ?? 0;
  }

  async close(): Promise<void> {
    await this.server.stop(true);
  }

  private async answer(asked: Request): Promise<Response> {
    try {
      this.limit();
      const { pathname } = new URL(asked.url);
      if (asked.method !== "POST" || pathname !== "/v1/join") {
        throw new SsihvError("request_invalid", "hosts join here, with POST /v1/join");
      }
      const body: unknown = await asked.json().catch(() => undefined);
      if (!request.Check(body)) throw new SsihvError("request_invalid", "this is no join request");
      return Response.json(await this.redeem(body));
    } catch (error) {
      return Response.json(bodyOf(error), { status: statusOf(error) });
    }
  }

  private limit(): void {
    const second = Math.floor(Date.now() / 1000);
    if (second !== this.second) this.tries = 0;
    this.second = second;
    this.tries += 1;
    if (this.tries > TRIES_PER_SECOND) {
      throw new SsihvError("request_invalid", "too many tries", { hint: "try again in a second" });
    }
  }
}
