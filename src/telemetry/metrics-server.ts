// The HTTP endpoint that a Prometheus scrapes: /metrics, without TLS and for whoever reaches it, so
// it is opened only where the user says.

import { messageOf, SsihvError } from "../base/errors.ts";
import { CONTENT_TYPE } from "./exposition.ts";

export class MetricsServer {
  private readonly server: Bun.Server<undefined>;

  private constructor(server: Bun.Server<undefined>) {
    this.server = server;
  }

  /** Throws "flag_invalid" where the address cannot be listened on. Port 0: any free one. */
  static open(
    { host, port }: { readonly host: string; readonly port: number },
    text: () => Promise<string>,
  ): MetricsServer {
    try {
      const server = Bun.serve({
        hostname: host,
        port,
        // Longer than engines may take to answer.
        idleTimeout: 10,
        fetch: (request) => respond(request, text),
      });
      return new MetricsServer(server);
    } catch (cause) {
      const why = messageOf(cause);
      throw new SsihvError("flag_invalid", `--metrics ${host}:${port} cannot be used: ${why}`, {
        hint: "name an address of this host and a port that is free",
        cause,
      });
    }
  }

  get port(): number {
    return this.server.port ?? 0;
  }

  close(): void {
    void this.server.stop(true);
  }
}

async function respond(request: Request, text: () => Promise<string>): Promise<Response> {
  const { pathname } = new URL(request.url);
  if (pathname !== "/metrics") {
    return new Response("Metrics are at /metrics\n", { status: pathname === "/" ? 200 : 404 });
  }
  if (request.method !== "GET" && request.method !== "HEAD") {
    return new Response("GET only\n", { status: 405, headers: { allow: "GET, HEAD" } });
  }
  return new Response(await text(), { headers: { "content-type": CONTENT_TYPE } });
}
