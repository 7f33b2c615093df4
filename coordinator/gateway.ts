// From TLS to the API: each connection goes to the HTTP server of its certificate's role, over a
// Unix socket in a folder that nobody else can enter, beside the local admin socket. What a
// coordinator that was killed left of them is replaced. So the role is where a request arrives, not
// something in it.

import { chmodSync, rmSync } from "node:fs";
import { connect } from "node:net";

import type { MtlsConnection } from "../src/tls/mtls.ts";
import type { ApiRole, Handler } from "./api.ts";

/**
 * Bun's types know the setting for ports only; the server takes it here, too. (Its `timeout` of one
 * request holds until the second write of the answer.)
 */
const NO_IDLE_TIMEOUT: object = { idleTimeout: 0 };

export type HttpServer = ReturnType<typeof serveUnix>;

/**
 * HTTP on a Unix socket that only this user can open; one that is there is a dead coordinator's.
 * Streams may be quiet for as long as they like.
 */
export function serveUnix(unix: string, fetch: Handler) {
  rmSync(unix, { force: true });
  const before = process.umask(0o177);
  try {
    const server = Bun.serve({
      unix,
      ...NO_IDLE_TIMEOUT,
      fetch: (request) => fetch(request),
      // What is wrong beyond our own handler is a defect: it says nothing of its insides.
      error: () => Response.json({ error: { code: "defect_found", message: "" } }, { status: 500 }),
      maxRequestBodySize: 1 << 20,
    });
    chmodSync(unix, 0o600);
    return server;
  } finally {
    process.umask(before);
  }
}

export class Gateway {
  private readonly servers: HttpServer[] = [];
  private readonly paths = new Map<string, string>();

  /** `adminSocket`: in a folder of this user alone. */
  constructor(adminSocket: string, handlers: Readonly<Record<ApiRole, Handler>>) {
    for (const [role, handler] of Object.entries(handlers)) {
      const path = `${adminSocket}.${role}`;
      this.paths.set(role, path);
      this.servers.push(serveUnix(path, handler));
    }
  }

  pass({ peer, socket }: MtlsConnection): void {
    const path = this.paths.get(peer.role);
    if (path === undefined) {
      socket.destroy();
      return;
    }
    const inner = connect(path);
    inner.on("error", () => socket.destroy());
    inner.on("close", () => socket.destroy());
    socket.on("error", () => inner.destroy());
    socket.on("close", () => inner.destroy());
    socket.pipe(inner);
    inner.pipe(socket);
  }

  async close(): Promise<void> {
    await Promise.all(this.servers.map((server) => server.stop(true)));
    for (const path of this.paths.values()) rmSync(path, { force: true });
  }
}
