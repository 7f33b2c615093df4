// The dashboard for a browser on this host: its page, and behind it what the page asks of the API,
// with the certificate of whoever started it. Only looking: a fixed list of paths, GET alone.
// Invariants: it listens on the loopback address only; a request is answered when its Host names
// this very listener (a name of another site that was pointed here does not), when no other site
// made the browser send it, and when it has the cookie: given once, for the key in the link.

import { randomBytes, timingSafeEqual } from "node:crypto";
import { BROWSER_HEADERS, dashboardFile } from "../../coordinator/dashboard/files.ts";
import { otherOrigin } from "../../coordinator/dashboard/same-origin.ts";
import { bodyOf, statusOf } from "../../coordinator/http-errors.ts";
import { messageOf, SsihvError } from "../base/errors.ts";
import type { ApiClient } from "./api-client.ts";

/** What the page asks for. Not consoles: they show what a guest's user types. */
const READABLE = [
  /^\/v1\/(status|hosts|vms|numbers|events)$/,
  /^\/v1\/vms\/[^/]+(\/heat)?$/,
] as const;
const ADDRESS = "127.0.0.1";
const KEY_BYTES = 32;

const FORBIDDEN = 403;
const UNAUTHORIZED = 401;
const NOT_FOUND = 404;
const NOT_ALLOWED = 405;

type Upstream = Pick<ApiClient, "read">;

/** Its length tells nothing. */
function isSame(given: string, secret: string): boolean {
  const [a, b] = [Buffer.from(given), Buffer.from(secret)];
  return a.length === b.length && timingSafeEqual(a, b);
}

function secret(): string {
  return randomBytes(KEY_BYTES).toString("base64url");
}

function plain(status: number, text: string, more: Record<string, string> = {}): Response {
  const headers = { ...BROWSER_HEADERS, "content-type": "text/plain; charset=utf-8", ...more };
  return new Response(`${text}\n`, { status, headers });
}

export class DashboardProxy {
  private readonly upstream: Upstream;
  private readonly server: Bun.Server<undefined>;
  private readonly session = secret();
  private key: string | undefined;

  private constructor(upstream: Upstream, port: number) {
    this.upstream = upstream;
    this.server = Bun.serve({
      hostname: ADDRESS,
      port,
      // Events may be rare. (Bun's `timeout` of one request holds until its second write only.)
      idleTimeout: 0,
      fetch: (request) => this.answer(request),
      error: (error) => failure(error),
    });
  }

  /** Throws `address_invalid` where the port is taken. Port 0: any that is free. */
  static open(upstream: Upstream, port: number): DashboardProxy {
    try {
      return new DashboardProxy(upstream, port);
    } catch (cause) {
      const why = messageOf(cause);
      throw new SsihvError("address_invalid", `cannot listen on ${ADDRESS}:${port} (${why})`, {
        hint: "leave --port out: any free one is taken",
        cause,
      });
    }
  }

  get port(): number {
    return this.server.port ?? 0;
  }

  /** A link that opens the page once, in one browser; the link before it is void. */
  link(): string {
    this.key = secret();
    return `http://${ADDRESS}:${this.port}/open?key=${this.key}`;
  }

  close(): void {
    void this.server.stop(true);
  }

  private async answer(request: Request): Promise<Response> {
    const host = request.headers.get("host");
    if (host !== `${ADDRESS}:${this.port}` && host !== `localhost:${this.port}`) {
      return plain(FORBIDDEN, `This is http://${ADDRESS}:${this.port}, and nothing else.`);
    }
    const other = otherOrigin(request);
    if (other !== undefined) return plain(FORBIDDEN, other);
    if (request.method !== "GET" && request.method !== "HEAD") {
      return plain(NOT_ALLOWED, "This only shows.", { allow: "GET, HEAD" });
    }
    const { pathname, search, searchParams } = new URL(request.url);
    if (pathname === "/open") return this.open(searchParams.get("key") ?? "");
    if (!this.isKnown(request)) {
      return plain(UNAUTHORIZED, "Open the link that ssihv dashboard prints; it works once.");
    }
    const file = await dashboardFile(pathname);
    if (file !== undefined) return file;
    if (!READABLE.some((path) => path.test(pathname))) {
      return plain(NOT_FOUND, "There is nothing at this path.");
    }
    return await this.pass(pathname + search, request);
  }

  private open(given: string): Response {
    if (this.key === undefined || !isSame(given, this.key)) {
      return plain(UNAUTHORIZED, "This link was used already: start ssihv dashboard again.");
    }
    this.key = undefined;
    // Not a redirect: where a link on another site led here, a Strict cookie would not follow it.
    const page =
      '<!doctype html><meta http-equiv="refresh" content="0;url=/"><title>SSI-HV</title>';
    const cookie = `${this.cookieName}=${this.session}; Path=/; HttpOnly; SameSite=Strict`;
    return new Response(page, {
      headers: {
        ...BROWSER_HEADERS,
        "content-type": "text/html; charset=utf-8",
        "set-cookie": cookie,
      },
    });
  }

  /** Browsers give a host's cookies to all of its ports. */
  private get cookieName(): string {
    return `ssihv-${this.port}`;
  }

  private isKnown(request: Request): boolean {
    const cookies = (request.headers.get("cookie") ?? "").split(/; */);
    return cookies.some((cookie) => isSame(cookie, `${this.cookieName}=${this.session}`));
  }

  private async pass(path: string, request: Request): Promise<Response> {
    try {
      const last = request.headers.get("last-event-id");
      const answer = await this.upstream.read(path, {
        ...(last !== null && { lastEventId: last }),
        signal: request.signal,
      });
      const type = answer.headers.get("content-type") ?? "application/octet-stream";
      const headers = { ...BROWSER_HEADERS, "content-type": type };
      return new Response(untilCut(answer.body), { status: answer.status, headers });
    } catch (error) {
      return failure(error);
    }
  }
}

/** A coordinator that goes away ends the answer; the page asks again. */
function untilCut(body: ReadableStream<Uint8Array> | null): ReadableStream<Uint8Array> | null {
  if (body === null) return null;
  const reader = body.getReader();
  return new ReadableStream({
    pull: async (controller) => {
      const next = await reader.read().catch(() => undefined);
      if (next === undefined || next.done) controller.close();
      else controller.enqueue(next.value);
    },
    cancel: () => reader.cancel(),
  });
}

function failure(error: unknown): Response {
  return Response.json(bodyOf(error), { status: statusOf(error), headers: BROWSER_HEADERS });
}
