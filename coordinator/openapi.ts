// The OpenAPI document of the API: what the framework's plugin makes of routes and schemas, with
// what it leaves out. Named schemas ($id) are told once and referred to; an answer without a body
// has no content; every status says what it means. The document is all that clients, the fuzzer
// and docs/API.md (tools/api-doc.ts) know of the API.

import { toOpenAPISchema } from "@elysiajs/openapi/openapi";

import { ERROR_STATUSES } from "./http-errors.ts";

type Json = { [key: string]: unknown };

export interface OpenApi {
  readonly openapi: string;
  readonly info: { readonly title: string; readonly version: string; readonly description: string };
  readonly paths: Record<string, Record<string, Operation>>;
  readonly components: { readonly schemas: Record<string, Json> };
}

export interface Operation {
  readonly operationId: string;
  readonly summary?: string;
  readonly tags?: readonly string[];
  readonly parameters?: readonly Parameter[];
  readonly requestBody?: { readonly content: Record<string, { readonly schema: Json }> };
  readonly responses: Record<string, Answer>;
}

export interface Parameter {
  readonly name: string;
  readonly in: "path" | "query" | "header";
  readonly required?: boolean;
  readonly schema: Json;
}

export interface Answer {
  readonly description: string;
  readonly headers?: Record<string, Json>;
  readonly content?: Record<string, { readonly schema: Json }>;
}

/** What each status of an answer means, on every route that gives it. */
const MEANINGS: Readonly<Record<string, string>> = {
  200: "what was asked for",
  201: "made",
  204: "done; there is no body",
  413: "the body is larger than 1 MiB; this answer has none",
  ...ERROR_STATUSES,
};

const DESCRIPTION =
  "Hosts, VMs and events of an SSI-HV cluster. Over TLS with a certificate of the cluster's CA " +
  "(roles operator and read-only), or over the coordinator's Unix socket.";

/** On a schema that takes anything, since it was checked before: the name of what it is. */
export const SAME_AS = "x-same-as";

/** The framework changes schemas when it first uses them: they are described before, once. */
let described: Pick<OpenApi, "paths" | "components"> | undefined;

/** `app`: an Elysia application, whose routes are all there. They are the same in each. */
export function describeApi(app: unknown, version: string): OpenApi {
  described ??= describeRoutes(app);
  return {
    openapi: "3.1.0",
    info: { title: "SSI-HV coordinator", version, description: DESCRIPTION },
    ...described,
  };
}

function describeRoutes(app: unknown): Pick<OpenApi, "paths" | "components"> {
  const { paths } = toOpenAPISchema(app as Parameters<typeof toOpenAPISchema>[0]);
  const schemas: Record<string, Json> = {};
  const operations = Object.entries(paths as OpenApi["paths"]).map(([path, methods]) => {
    const complete = Object.entries(methods).map(([method, operation]) => [
      method,
      named({ ...operation, responses: answersOf(operation) }, schemas),
    ]);
    return [path, Object.fromEntries(complete)];
  });
  return {
    paths: Object.fromEntries(operations),
    components: { schemas: Object.fromEntries(Object.entries(schemas).sort()) },
  };
}

function answersOf({ responses }: Operation): Operation["responses"] {
  const answers = Object.entries(responses).map(([status, { content, ...answer }]) => {
    const empty = Object.values(content ?? {}).every((media) => !media?.schema);
    const description = MEANINGS[status] ?? answer.description;
    return [status, { ...answer, description, ...(!empty && { content }) }];
  });
  return Object.fromEntries(answers);
}

/** The same with a reference for each named schema; the schemas are put into `schemas`. */
function named(value: unknown, schemas: Record<string, Json>): unknown {
  if (Array.isArray(value)) return value.map((each) => named(each, schemas));
  if (typeof value !== "object" || value === null) return value;
  const { $id, anyOf, [SAME_AS]: same, ...rest } = value as Json;
  if (typeof same === "string") return { $ref: `#/components/schemas/${same}` };
  const entries = Object.entries(rest).map(([key, each]) => [key, named(each, schemas)]);
  const plain: Json = { ...Object.fromEntries(entries), ...choice(anyOf, schemas) };
  if (typeof $id !== "string") return plain;
  const reference = { $ref: `#/components/schemas/${$id}` };
  const { type } = plain;
  if (!Array.isArray(type)) {
    schemas[$id] = plain;
    return reference;
  }
  // The plugin has written "or null" into the schema itself.
  schemas[$id] = { ...plain, type: type.find((each) => each !== "null") };
  return { anyOf: [reference, { type: "null" }] };
}

/** One of several constants is an enumeration. */
function choice(anyOf: unknown, schemas: Record<string, Json>): Json {
  if (!Array.isArray(anyOf)) return {};
  const values = anyOf.map((each: Json) => each["const"]);
  if (values.every((value) => typeof value === "string")) return { type: "string", enum: values };
  return { anyOf: named(anyOf, schemas) };
}
