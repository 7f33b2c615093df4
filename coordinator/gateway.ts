// From TLS to the API: each connection goes to the HTTP server of its certificate's role, over a
// Unix socket in a folder that nobody else can enter. So the role is where a request arrives, not
// something in it.

import { mkdtempSync, rmSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

import type { MtlsConnection } from "../src/tls/mtls.ts";
import type { ApiRole, Handler } from "./api.ts";

export type HttpServer = ReturnType<typeof serveUnix>;

/** HTTP on a Unix socket. Streams may be quiet for as long as they like. */
export function serveUnix(unix: string, fetch: Handler) {
  return Bun.serve({
    unix,
    fetch: (request, server) => {
      server.timeout(request, 0);
      return fetch(request);
    },
    // What is wrong beyond our own handler is a defect: it says nothing of its insides.
    error: () => Response.json({ error: { code: "defect_found", message: "" } }, { status: 500 }),
    maxRequestBodySize: 1 << 20,
  });
}

export class Gateway {
  private readonly folder: string;
  private readonly servers: HttpServer[] = [];
  private readonly paths = new Map<string, string>();

  constructor(handlers: Readonly<Record<ApiRole, Handler>>) {
    // mkdtemp makes the folder for this user alone (mode 0700).
    this.folder = mkdtempSync(join(tmpdir(), "ssihv-coordinator-"));
    for (const [role, handler] of Object.entries(handlers)) {
      const path = join(this.folder, role);
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
    rmSync(this.folder, { recursive: true, force: true });
  }
}
