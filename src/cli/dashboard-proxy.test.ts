// Who gets in through the dashboard's proxy, and to what: with an API that tells what it was asked.

import { afterEach, describe, expect, test } from "bun:test";
import { SsihvError } from "../base/errors.ts";
import { DashboardProxy } from "./dashboard-proxy.ts";

interface Read {
  readonly path: string;
  readonly lastEventId: string | undefined;
}

const open: DashboardProxy[] = [];
afterEach(() => {
  for (const proxy of open.splice(0)) proxy.close();
});

function start(answer: () => Promise<Response> = async () => Response.json({ told: true })) {
  const asked: Read[] = [];
  const upstream = {
    read: (path: string, { lastEventId }: { lastEventId?: string }) => {
      asked.push({ path, lastEventId });
      return answer();
    },
  };
  const proxy = DashboardProxy.open(upstream, 0);
  open.push(proxy);
  const origin = `http://127.0.0.1:${proxy.port}`;
  const get = (path: string, headers: Record<string, string> = {}, method = "GET") =>
    fetch(`${origin}${path}`, { method, headers, redirect: "manual" });
  return { proxy, asked, origin, get };
}

async function entered({ proxy, get }: ReturnType<typeof start>): Promise<string> {
  const { pathname, search } = new URL(proxy.link());
  const answer = await get(pathname + search);
  expect(answer.status).toBe(200);
  return (answer.headers.get("set-cookie") ?? "").split(";")[0] ?? "";
}

describe("the way in", () => {
  test("a link works once, and a newer one voids it", async () => {
    const at = start();
    const old = new URL(at.proxy.link());
    const link = new URL(at.proxy.link());
    expect((await at.get(old.pathname + old.search)).status).toBe(401);
    const first = await at.get(link.pathname + link.search);
    expect(first.status).toBe(200);
    expect(first.headers.get("set-cookie")).toMatch(
      new RegExp(`^ssihv-${at.proxy.port}=[\\w-]{43}; Path=/; HttpOnly; SameSite=Strict$`),
    );
    expect((await at.get(link.pathname + link.search)).status).toBe(401);
    expect((await at.get("/open")).status).toBe(401);
    expect((await at.get("/open?key=")).status).toBe(401);
  });

  test("without the cookie there is nothing, not even the page", async () => {
    const at = start();
    const cookie = await entered(at);
    const wrong = [{}, { cookie: "" }, { cookie: `${cookie}x` }, { cookie: `x${cookie}` }];
    for (const headers of wrong as Record<string, string>[]) {
      for (const path of ["/", "/dashboard.js", "/v1/vms", "/x"]) {
        expect((await at.get(path, headers)).status).toBe(401);
      }
    }
    expect(at.asked).toEqual([]);
    const page = await at.get("/", { cookie: `other=1; ${cookie}` });
    expect([page.status, page.headers.get("content-type")]).toEqual([
      200,
      "text/html; charset=utf-8",
    ]);
  });

  test("other names of this host, and other sites, are refused with the cookie, too", async () => {
    const at = start();
    const cookie = await entered(at);
    const { port } = at.proxy;
    const others: Record<string, string>[] = [
      { host: "evil.example" },
      { host: `evil.example:${port}` },
      { host: "127.0.0.1" },
      { host: `127.0.0.1:${port}.evil.example` },
      { origin: "https://evil.example" },
      { origin: `http://localhost:${port}` },
      { "sec-fetch-site": "cross-site" },
      { "sec-fetch-site": "same-site", "sec-fetch-mode": "cors" },
    ];
    for (const headers of others) {
      const answer = await at.get("/v1/vms", { cookie, ...headers });
      expect([headers, answer.status]).toEqual([headers, 403]);
    }
    expect(at.asked).toEqual([]);
    expect((await at.get("/v1/vms", { cookie, host: `localhost:${port}` })).status).toBe(200);
  });
});

describe("what can be seen", () => {
  test("looking only, and only what the page asks for", async () => {
    const at = start();
    const cookie = await entered(at);
    for (const method of ["POST", "DELETE", "PUT", "PATCH", "OPTIONS"]) {
      expect((await at.get("/v1/vms/demo", { cookie }, method)).status).toBe(405);
    }
    const closed = ["/v1/tokens", "/v1/vms/demo/console", "/v1/vms/demo/console?write=true"];
    for (const path of [...closed, "/metrics", "/openapi.json", "/v1/vms/a/b/heat"]) {
      expect([path, (await at.get(path, { cookie })).status]).toEqual([path, 404]);
    }
    expect(at.asked).toEqual([]);
    await at.get("/v1/events", { cookie, "last-event-id": "x-3" });
    await at.get("/v1/vms/demo/heat", { cookie });
    expect(at.asked).toEqual([
      { path: "/v1/events", lastEventId: "x-3" },
      { path: "/v1/vms/demo/heat", lastEventId: undefined },
    ]);
  });

  test("answers keep their status and type; no other site may read them", async () => {
    const at = start(async () => {
      const headers = { "content-type": "text/event-stream", "access-control-allow-origin": "*" };
      return new Response("data: 1\n\n", { status: 409, headers });
    });
    const cookie = await entered(at);
    const answer = await at.get("/v1/events", { cookie });
    expect([answer.status, await answer.text()]).toEqual([409, "data: 1\n\n"]);
    const header = (name: string) => answer.headers.get(name);
    expect(header("content-type")).toBe("text/event-stream");
    expect(header("access-control-allow-origin")).toBeNull();
    expect(header("content-security-policy")).toContain("default-src 'none'; script-src 'self'");
    expect(header("x-content-type-options")).toBe("nosniff");
  });

  test("a coordinator that does not answer is told; one that goes away ends it", async () => {
    const gone = new SsihvError("coordinator_unreachable", "the coordinator does not answer");
    const at = start(() => Promise.reject(gone));
    const silent = await at.get("/v1/status", { cookie: await entered(at) });
    expect([silent.status, await silent.json()]).toEqual([
      502,
      { error: { code: "coordinator_unreachable", message: "the coordinator does not answer" } },
    ]);
    const cut = start(async () => {
      let sent = false;
      const body = new ReadableStream({
        pull: (controller) => {
          if (sent) return controller.error(new Error("reset"));
          sent = true;
          controller.enqueue(new TextEncoder().encode("data: 1\n\n"));
        },
      });
      return new Response(body);
    });
    const answer = await cut.get("/v1/events", { cookie: await entered(cut) });
    expect(await answer.text()).toBe("data: 1\n\n");
  });

  test("a port that is taken is said", () => {
    const { proxy } = start();
    const upstream = { read: async () => new Response() };
    expect(() => DashboardProxy.open(upstream, proxy.port)).toThrow(
      `cannot listen on 127.0.0.1:${proxy.port}`,
    );
  });
});
