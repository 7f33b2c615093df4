// The HTTP API: routes, what each takes and gives, and who may. One instance per role: who is at
// the other end was decided when the connection was made (gateway.ts), so no request says it.

import { openapi } from "@elysiajs/openapi";
import { type Static, Type } from "@sinclair/typebox";
import { Elysia, sse } from "elysia";

import { SsihvError } from "../src/base/errors.ts";
import { VmSpec } from "../src/control/vm-spec.ts";
import { CONTENT_TYPE } from "../src/telemetry/exposition.ts";
import * as schema from "./api-schemas.ts";
import type { Consoles } from "./consoles.ts";
import { BROWSER_HEADERS, dashboardFile } from "./dashboard/files.ts";
import { otherOrigin } from "./dashboard/same-origin.ts";
import type { ClusterEvent, Events } from "./events.ts";
import type { Hosts, HostView } from "./hosts.ts";
import { bodyOf, statusOf } from "./http-errors.ts";
import { clusterMetrics } from "./metrics.ts";
import * as numberSchema from "./number-schemas.ts";
import type { Numbers } from "./numbers.ts";
import type { Tokens } from "./tokens.ts";
import type { Vms } from "./vms.ts";

export interface ApiParts {
  readonly hosts: Hosts;
  readonly vms: Vms;
  readonly tokens: Tokens;
  readonly events: Events;
  readonly consoles: Consoles;
  readonly numbers: Numbers;
  readonly version: string;
  readonly startedAt: string;
  certificateExpires(): Date;
}

export type ApiRole = "operator" | "read-only";

const READING = new Set(["GET", "HEAD", "OPTIONS"]);
/** A stream without news says so this often, for proxies and for readers that wait. */
const QUIET_MS = 15_000;

const refusals = { 404: schema.ApiError, 409: schema.ApiError, 503: schema.ApiError };
const invalid = { 403: schema.ApiError, 422: schema.ApiError };

export type Handler = (request: Request) => Promise<Response>;

export function buildApi(parts: ApiParts, role: ApiRole): Handler {
  const app = new Elysia({ normalize: false })
    .use(openapi({ provider: null, specPath: "/openapi.json", documentation: about(parts) }))
    .onError(({ code, error, set }) => {
      const ours = requestError(code, error);
      set.status = statusOf(ours);
      return bodyOf(ours);
    })
    .onBeforeHandle(({ request }) => {
      if (role === "operator" || READING.has(request.method)) return;
      throw new SsihvError("role_forbidden", "a certificate of role read-only may only look", {
        hint: "ssihv certs issue NAME --role operator makes one that may do more",
      });
    })
    .use(statusRoutes(parts))
    .use(hostRoutes(parts))
    .use(tokenRoutes(parts))
    .use(vmRoutes(parts))
    .use(numberRoutes(parts))
    .use(consoleRoutes(parts));
  return async (request) => {
    const other = otherOrigin(request);
    if (other !== undefined) return refuseOrigin(other);
    const { pathname, search } = new URL(request.url);
    const file = READING.has(request.method) ? await dashboardFile(pathname) : undefined;
    // Elysia finds the path by a shortcut that fails for host names of up to three characters.
    return file ?? app.handle(new Request(`http://coordinator${pathname}${search}`, request));
  };
}

/** Its user's certificate is not another site's to use. */
function refuseOrigin(why: string): Response {
  const error = new SsihvError("role_forbidden", why, {
    hint: "only pages of the coordinator itself may ask it; programs that are no browsers may, too",
  });
  return Response.json(bodyOf(error), { status: statusOf(error), headers: BROWSER_HEADERS });
}

function about({ version }: ApiParts) {
  const description =
    "Hosts, VMs and events of an SSI-HV cluster. Over TLS with a certificate of the cluster's CA " +
    "(roles operator and read-only), or over the coordinator's Unix socket.";
  return { info: { title: "SSI-HV coordinator", version, description } };
}

/** What the framework found wrong, in our words: its own repeat the whole schema. */
function requestError(code: unknown, error: unknown): unknown {
  if (error instanceof SsihvError) return error;
  switch (code) {
    case "NOT_FOUND":
      return new SsihvError("request_invalid", "there is nothing at this path", {
        hint: "GET /openapi.json lists the paths",
      });
    case "PARSE":
      return new SsihvError("request_invalid", "the body is not JSON");
    case "VALIDATION": {
      const { type, all } = error as { type?: string; all?: readonly { path?: string }[] };
      const paths = [...new Set((all ?? []).map(({ path }) => path || "/"))].slice(0, 8);
      const message = `the ${type ?? "request"} is not as the API has it: ${paths.join(", ")}`;
      return new SsihvError("request_invalid", message, {
        hint: "GET /openapi.json has the schemas",
      });
    }
    default:
      return error;
  }
}

async function withUsed(vms: Vms, host: HostView) {
  return { ...host, used: await vms.usedOn(host.name) };
}

/** For Prometheus. */
export async function metricsOf(parts: ApiParts): Promise<string> {
  const { version, startedAt, vms } = parts;
  return clusterMetrics({
    ...{ version, startedAt, certificateExpires: parts.certificateExpires() },
    hosts: await Promise.all((await parts.hosts.list()).map((host) => withUsed(vms, host))),
    vms: await vms.list(),
  });
}

async function statusOfCluster(parts: ApiParts): Promise<schema.Status> {
  const hosts = await Promise.all((await parts.hosts.list()).map((h) => withUsed(parts.vms, h)));
  const up = hosts.filter(({ state }) => state === "up");
  const states: Record<string, number> = {};
  for (const { state } of await parts.vms.list()) states[state] = (states[state] ?? 0) + 1;
  const sum = (of: (host: (typeof up)[number]) => number) => up.reduce((all, h) => all + of(h), 0);
  return {
    version: parts.version,
    startedAt: parts.startedAt,
    hosts: { up: up.length, silent: hosts.length - up.length },
    vms: states,
    capacity: {
      cpus: sum(({ capacity }) => capacity?.cpus ?? 0),
      memoryBytes: sum(({ capacity }) => capacity?.memoryBytes ?? 0),
    },
    used: {
      cpus: sum(({ used }) => used.cpus),
      memoryBytes: sum(({ used }) => used.memoryBytes),
    },
    certificateExpires: parts.certificateExpires().toISOString(),
  };
}

function statusRoutes(parts: ApiParts) {
  return new Elysia()
    .get("/v1/status", () => statusOfCluster(parts), {
      response: { 200: schema.Status },
      detail: { summary: "the cluster in numbers" },
    })
    .get(
      "/metrics",
      async ({ set }) => {
        set.headers["content-type"] = CONTENT_TYPE;
        return await metricsOf(parts);
      },
      { detail: { summary: "the cluster for Prometheus, in its text format" } },
    )
    .get(
      "/v1/events",
      ({ request }) => follow(parts.events, request.headers.get("last-event-id"), request.signal),
      {
        detail: {
          summary: "what happens, as server-sent events; Last-Event-ID continues where one left",
        },
      },
    );
}

async function* follow(events: Events, after: string | null, signal: AbortSignal) {
  const queue: ClusterEvent[] = events.since(after ?? undefined);
  let wake: () => void = () => undefined;
  const stop = events.subscribe((event) => {
    queue.push(event);
    wake();
  });
  try {
    while (!signal.aborted) {
      for (const event of queue.splice(0)) {
        yield sse({ id: event.id, event: event.event, data: event });
      }
      const news = new Promise<void>((resolve) => {
        wake = resolve;
      });
      if (queue.length > 0) continue;
      let quiet: ReturnType<typeof setTimeout> | undefined;
      const pause = new Promise<boolean>((resolve) => {
        quiet = setTimeout(() => resolve(true), QUIET_MS);
      });
      const silent = await Promise.race([news.then(() => false), pause]);
      clearTimeout(quiet);
      if (silent) yield sse({ event: "quiet", data: "" });
    }
  } finally {
    stop();
  }
}

function hostRoutes({ hosts, vms }: ApiParts) {
  return new Elysia()
    .get(
      "/v1/hosts",
      async () => Promise.all((await hosts.list()).map((host) => withUsed(vms, host))),
      { response: { 200: Type.Array(schema.Host) }, detail: { summary: "all hosts" } },
    )
    .get("/v1/hosts/:name", async ({ params }) => withUsed(vms, await hosts.show(params.name)), {
      params: schema.ByName,
      response: { 200: schema.Host, ...refusals },
      detail: { summary: "one host" },
    })
    .delete(
      "/v1/hosts/:name",
      async ({ params, set }) => {
        await hosts.remove(params.name);
        await vms.endRunsOf(params.name);
        set.status = 204;
      },
      {
        params: schema.ByName,
        response: { ...refusals, ...invalid },
        detail: { summary: "take a host out of the cluster; what runs there is not touched" },
      },
    );
}

function tokenRoutes({ tokens }: ApiParts) {
  return new Elysia()
    .get("/v1/tokens", () => tokens.list(), {
      response: { 200: Type.Array(schema.TokenListed) },
      detail: { summary: "join tokens that can still be used, without their secrets" },
    })
    .post(
      "/v1/tokens",
      async ({ body, set }) => {
        const token = await tokens.create(body.seconds, body.host);
        set.status = 201;
        return token;
      },
      {
        body: schema.TokenRequest,
        response: { 201: schema.Token, ...refusals, ...invalid },
        detail: { summary: "make a token that lets one host join, once" },
      },
    )
    .delete(
      "/v1/tokens/:id",
      async ({ params, set }) => {
        await tokens.revoke(params.id);
        set.status = 204;
      },
      {
        params: Type.Object({ id: Type.String({ pattern: "^[0-9a-f]{16}$" }) }),
        response: invalid,
        detail: { summary: "make a token invalid" },
      },
    );
}

function numberRoutes({ numbers }: ApiParts) {
  return new Elysia()
    .get("/v1/numbers", () => numbers.all(), {
      response: { 200: Type.Array(numberSchema.VmNumbers) },
      detail: { summary: "all counters of the engines of the VMs that run, as of now" },
    })
    .get("/v1/vms/:name/heat", ({ params }) => numbers.heat(params.name), {
      params: schema.ByName,
      response: { 200: numberSchema.Heat, ...refusals, ...invalid },
      detail: { summary: "remote faults of a running VM by block of its memory" },
    });
}

function vmRoutes({ vms }: ApiParts) {
  const one = { params: schema.ByName, response: { 200: schema.Vm, ...refusals, ...invalid } };
  return new Elysia()
    .get("/v1/vms", () => vms.list(), {
      response: { 200: Type.Array(schema.Vm) },
      detail: { summary: "all VMs" },
    })
    .post(
      "/v1/vms",
      async ({ body, set }) => {
        const vm = await vms.create(body as Static<typeof VmSpec>);
        set.status = 201;
        return vm;
      },
      {
        body: VmSpec,
        response: { 201: schema.Vm, ...refusals, ...invalid },
        detail: { summary: "put a VM on record; it does not start" },
      },
    )
    .get("/v1/vms/:name", ({ params }) => vms.show(params.name), {
      ...one,
      detail: { summary: "one VM" },
    })
    .put(
      "/v1/vms/:name",
      ({ params, body }) => vms.change(params.name, body as Static<typeof VmSpec>),
      {
        ...one,
        body: VmSpec,
        detail: { summary: "change what a VM is to be; not while it runs" },
      },
    )
    .get("/v1/vms/:name/engines", ({ params }) => vms.ask(params.name, { op: "show" }), {
      ...{ params: schema.ByName, response: { ...refusals, ...invalid } },
      detail: { summary: "numbers of a running VM's engines, as of now" },
    })
    .get(
      "/v1/vms/:name/pages",
      ({ params, query }) => {
        const gpa = Number(query.gpa);
        return vms.ask(params.name, { op: "pages", gpa, count: Number(query.count ?? 1) });
      },
      {
        ...{ params: schema.ByName, query: schema.PagesQuery },
        response: { ...refusals, ...invalid },
        detail: { summary: "where pages of a running VM are" },
      },
    )
    .post("/v1/vms/:name/start", ({ params }) => vms.start(params.name), {
      ...one,
      detail: { summary: "start a VM; answered when its hosts have accepted" },
    })
    .post("/v1/vms/:name/stop", ({ params }) => vms.stop(params.name), {
      ...one,
      detail: { summary: "stop a VM; answered when its lead has accepted" },
    })
    .delete(
      "/v1/vms/:name",
      async ({ params, query, set }) => {
        await vms.destroy(params.name, query.force === "true");
        set.status = 204;
      },
      {
        params: schema.ByName,
        query: schema.Forced,
        response: { ...refusals, ...invalid },
        detail: { summary: "remove a VM from the record; force: also one that runs" },
      },
    );
}

function consoleRoutes({ consoles }: ApiParts) {
  return new Elysia()
    .get(
      "/v1/vms/:name/console",
      async ({ params, query }) => {
        const { stream, writer } = await consoles.open(params.name, query.write === "true");
        const headers = new Headers({ "content-type": "application/octet-stream" });
        if (writer !== undefined) headers.set("x-ssihv-writer", writer);
        return new Response(stream, { headers });
      },
      {
        params: schema.ByName,
        query: Type.Object({ write: Type.Optional(Type.Literal("true")) }),
        detail: {
          summary: "a guest's console: its kept history, then what it writes, until the VM ends",
        },
      },
    )
    .post(
      "/v1/vms/:name/console",
      async ({ params, body, set }) => {
        await consoles.input(params.name, body.writer, body.data);
        set.status = 204;
      },
      {
        params: schema.ByName,
        body: schema.ConsoleInput,
        response: { ...refusals, ...invalid },
        detail: { summary: "type at a guest's console" },
      },
    );
}
