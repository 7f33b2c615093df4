// The HTTP API: routes, what each takes and gives, and who may. One instance per role: who is at
// the other end was decided when the connection was made (gateway.ts), so no request says it.

import { type Static, Type } from "@sinclair/typebox";
import { Elysia, sse } from "elysia";

import { SsihvError } from "../src/base/errors.ts";
import * as answer from "../src/control/vm-answers.ts";
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
import { VmNumbers } from "./number-schemas.ts";
import type { Numbers } from "./numbers.ts";
import { describeApi } from "./openapi.ts";
import { MethodRefused, methodsOf, requestError } from "./request-errors.ts";
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

/** Answers that tell what went wrong. */
function fails(...statuses: readonly number[]): Record<number, typeof schema.ApiError> {
  return Object.fromEntries(statuses.map((status) => [status, schema.ApiError]));
}
const NOTHING = Type.Void();
/** Of a route that takes a body; the HTTP server gives it before any of this is asked. */
const TOO_LARGE = { 413: NOTHING };

interface Media {
  readonly type: string;
  readonly schema?: typeof schema.EventMessage;
}

/** Of a route whose answer is no JSON. */
function stream(media: Media, headers: object, ...errors: readonly number[]) {
  const failed = errors.map((status) => [
    status,
    { description: "", content: { "application/json": { schema: schema.ApiError } } },
  ]);
  const content = { [media.type]: { schema: media.schema ?? { type: "string" as const } } };
  return { 200: { description: "", content, headers }, ...Object.fromEntries(failed) };
}

export type Handler = (request: Request) => Promise<Response>;

export function buildApi(parts: ApiParts, role: ApiRole): Handler {
  const app = new Elysia({ normalize: false })
    .onError(({ code, error, set, request }) => {
      const ours = requestError(code, error, request, allowed);
      set.status = statusOf(ours);
      if (ours instanceof MethodRefused) set.headers["allow"] = ours.allow;
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
    .use(runningRoutes(parts))
    .use(numberRoutes(parts))
    .use(consoleRoutes(parts));
  const document = describeApi(app, parts.version);
  app.get("/openapi.json", () => document);
  const allowed = methodsOf(app.routes);
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
      detail: { operationId: "getStatus", summary: "the cluster in numbers" },
    })
    .get(
      "/metrics",
      async ({ set }) => {
        set.headers["content-type"] = CONTENT_TYPE;
        return await metricsOf(parts);
      },
      {
        detail: {
          operationId: "getMetrics",
          summary: "the cluster for Prometheus, in its text format",
          responses: stream({ type: "text/plain" }, {}),
        },
      },
    )
    .get(
      "/v1/events",
      ({ request }) => follow(parts.events, request.headers.get("last-event-id"), request.signal),
      {
        headers: schema.EventsHeaders,
        detail: {
          operationId: "followEvents",
          summary: "what happens, as server-sent events; Last-Event-ID continues where one left",
          responses: stream({ type: "text/event-stream", schema: schema.EventMessage }, {}),
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
      {
        response: { 200: Type.Array(schema.Host) },
        detail: { operationId: "listHosts", summary: "all hosts" },
      },
    )
    .get("/v1/hosts/:name", async ({ params }) => withUsed(vms, await hosts.show(params.name)), {
      params: schema.ByName,
      response: { 200: schema.Host, ...fails(400, 404) },
      detail: { operationId: "getHost", summary: "one host" },
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
        response: { 204: NOTHING, ...fails(400, 403, 404, 503) },
        detail: {
          operationId: "removeHost",
          summary: "take a host out of the cluster; what runs there is not touched",
        },
      },
    );
}

function tokenRoutes({ tokens }: ApiParts) {
  return new Elysia()
    .get("/v1/tokens", () => tokens.list(), {
      response: { 200: Type.Array(schema.TokenListed) },
      detail: {
        operationId: "listTokens",
        summary: "join tokens that can still be used, without their secrets",
      },
    })
    .post(
      "/v1/tokens",
      async ({ body, set }) => {
        const token = await tokens.create(body.seconds, body.host, body.rejoin);
        set.status = 201;
        return token;
      },
      {
        parse: "json",
        body: schema.TokenRequest,
        response: { 201: schema.Token, ...fails(400, 403, 404, 409, 503), ...TOO_LARGE },
        detail: {
          operationId: "createToken",
          summary: "make a token that lets one host join, once",
        },
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
        response: { 204: NOTHING, ...fails(400, 403, 404, 503) },
        detail: { operationId: "revokeToken", summary: "make a token invalid" },
      },
    );
}

function numberRoutes({ numbers }: ApiParts) {
  return new Elysia().get("/v1/numbers", () => numbers.all(), {
    response: { 200: Type.Array(VmNumbers) },
    detail: {
      operationId: "getNumbers",
      summary: "every counter of the engines of all VMs that run, as of now",
    },
  });
}

function vmRoutes({ vms }: ApiParts) {
  const params = schema.ByName;
  return new Elysia()
    .get("/v1/vms", () => vms.list(), {
      response: { 200: Type.Array(schema.Vm) },
      detail: { operationId: "listVms", summary: "all VMs" },
    })
    .post(
      "/v1/vms",
      async ({ body, set }) => {
        const vm = await vms.create(body as Static<typeof VmSpec>);
        set.status = 201;
        return vm;
      },
      {
        parse: "json",
        body: VmSpec,
        response: { 201: schema.Vm, ...fails(400, 403, 409, 422, 503), ...TOO_LARGE },
        detail: { operationId: "createVm", summary: "put a VM on record; it does not start" },
      },
    )
    .get("/v1/vms/:name", ({ params }) => vms.show(params.name), {
      params,
      response: { 200: schema.Vm, ...fails(400, 404) },
      detail: { operationId: "getVm", summary: "one VM" },
    })
    .put(
      "/v1/vms/:name",
      ({ params, body }) => vms.change(params.name, body as Static<typeof VmSpec>),
      {
        parse: "json",
        params,
        body: VmSpec,
        response: { 200: schema.Vm, ...fails(400, 403, 404, 409, 422, 503), ...TOO_LARGE },
        detail: {
          operationId: "changeVm",
          summary: "change what a VM is to be; not while it runs",
        },
      },
    )
    .post("/v1/vms/:name/start", ({ params }) => vms.start(params.name), {
      params,
      response: { 200: schema.Vm, ...fails(400, 403, 404, 409, 422, 502, 503) },
      detail: {
        operationId: "startVm",
        summary: "start a VM; answered when its hosts have accepted",
      },
    })
    .post("/v1/vms/:name/stop", ({ params }) => vms.stop(params.name), {
      params,
      response: { 200: schema.Vm, ...fails(400, 403, 404, 502, 503) },
      detail: {
        operationId: "stopVm",
        summary: "stop a VM; answered when its lead has accepted",
      },
    })
    .delete(
      "/v1/vms/:name",
      async ({ params, query, set }) => {
        await vms.destroy(params.name, query.force === "true");
        set.status = 204;
      },
      {
        params,
        query: schema.Forced,
        response: { 204: NOTHING, ...fails(400, 403, 404, 409, 503) },
        detail: {
          operationId: "destroyVm",
          summary: "remove a VM from the record; force: also one that runs",
        },
      },
    );
}

/** What its lead's agent answers of a VM that runs. */
function runningRoutes({ vms }: ApiParts) {
  const params = schema.ByName;
  const asked = fails(400, 404, 409, 502, 503);
  return new Elysia()
    .get("/v1/vms/:name/engines", ({ params }) => vms.ask(params.name, { op: "show" }), {
      params,
      response: { 200: answer.EnginesAnswer, ...asked },
      detail: {
        operationId: "getEngines",
        summary: "numbers of a running VM's engines, as of now",
      },
    })
    .get("/v1/vms/:name/stats", ({ params }) => vms.ask(params.name, { op: "stats" }), {
      params,
      response: { 200: answer.StatsAnswer, ...asked },
      detail: {
        operationId: "getStats",
        summary: "every counter of a running VM's engines; rates are differences of two answers",
      },
    })
    .get("/v1/vms/:name/heat", ({ params }) => vms.ask(params.name, { op: "heat" }), {
      params,
      response: { 200: answer.HeatAnswer, ...asked },
      detail: {
        operationId: "getHeat",
        summary: "remote faults of a running VM by block of its memory",
      },
    })
    .get(
      "/v1/vms/:name/pages",
      ({ params, query }) => {
        const gpa = Number(query.gpa);
        return vms.ask(params.name, { op: "pages", gpa, count: Number(query.count ?? 1) });
      },
      {
        ...{ params, query: schema.PagesQuery },
        response: { 200: answer.PagesAnswer, ...asked, ...fails(422) },
        detail: { operationId: "getPages", summary: "where pages of a running VM are" },
      },
    )
    .put(
      "/v1/vms/:name/balloon",
      ({ params, body }) => vms.ask(params.name, { op: "balloon", bytes: body.bytes }),
      {
        parse: "json",
        ...{ params, body: schema.BalloonSize },
        response: { 200: answer.BalloonAnswer, ...asked, ...fails(403, 422), ...TOO_LARGE },
        detail: {
          operationId: "setBalloon",
          summary: "another size for a running VM's balloon; the guest gives and takes in time",
        },
      },
    );
}

function consoleRoutes({ consoles }: ApiParts) {
  const params = schema.ByName;
  const writer = {
    description: "with what POST types; absent: somebody else writes, or it was not asked for",
    schema: { type: "string" },
  };
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
        ...{ params, query: schema.ConsoleQuery },
        detail: {
          operationId: "openConsole",
          summary: "a guest's console: its kept history, then what it writes, until the VM ends",
          responses: stream(
            { type: "application/octet-stream" },
            { "x-ssihv-writer": writer },
            ...[400, 404, 409, 502, 503],
          ),
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
        parse: "json",
        ...{ params, body: schema.ConsoleInput },
        response: { 204: NOTHING, ...fails(400, 403, 404, 409, 502, 503), ...TOO_LARGE },
        detail: { operationId: "typeAtConsole", summary: "type at a guest's console" },
      },
    );
}
