// docs/API.md from the OpenAPI document of the coordinator: for each route what it takes, gives and
// refuses, with a request that can be typed. `make gen` writes it; a test holds it fresh, and
// another sends its requests. Usage: bun tools/api-doc.ts > docs/API.md

import { type ApiParts, buildApi } from "../coordinator/api.ts";
import type { Answer, OpenApi, Operation, Parameter } from "../coordinator/openapi.ts";

type Json = Readonly<Record<string, unknown>>;

/** Values of the requests that are shown: those of the parameters, and bodies by operation. */
const SHOWN: Readonly<Record<string, string>> = {
  "/v1/hosts/{name}": "host-b",
  "/v1/vms/{name}": "demo",
  id: "0123456789abcdef",
  gpa: "0x1000000",
  count: "4",
  write: "true",
};
const DEMO = {
  name: "demo",
  nodes: [
    { cpus: 2, memoryBytes: 2 ** 30, host: "host-a" },
    { cpus: 2, memoryBytes: 2 ** 30 },
  ],
  ...{ kernel: "/srv/vm/vmlinuz", initrd: "/srv/vm/initrd.img", balloonBytes: 0 },
};
const BODIES: Readonly<Record<string, unknown>> = {
  createToken: { host: "host-c", seconds: 900 },
  createVm: DEMO,
  changeVm: { ...DEMO, balloonBytes: 2 ** 29 },
  setBalloon: { bytes: 2 ** 29 },
  typeAtConsole: { writer: "0123456789abcdef0123456789abcdef", data: "bHMK" },
};

const GROUPS: readonly (readonly [title: string, begins: RegExp])[] = [
  ["The cluster", /^\/(v1\/status|metrics|v1\/events|v1\/numbers)/],
  ["Hosts", /^\/v1\/hosts/],
  ["Tokens", /^\/v1\/tokens/],
  ["VMs", /^\/v1\/vms/],
];

const HEAD = `# The coordinator's API

Made from the coordinator's own OpenAPI document by \`make gen\`: do not edit. A running coordinator
serves that document at \`GET /openapi.json\`, for generators of clients.

The API is HTTP with JSON, and there are two ways to it. Over TLS with a certificate of the
cluster's CA, whose role says what it may do: **operator** everything, **read-only** what is marked
so below. And over a Unix socket on the coordinator's host, for the user that runs the coordinator,
who may do everything. The examples take these for granted:

    TLS="--cacert ca.pem --cert admin.pem --connect-to ::10.0.0.1:7780"
    API=https://coordinator.ssihv.internal
    LOCAL="--unix-socket /run/ssihv/coordinator.api"

The name is in every coordinator's certificate; \`--connect-to\` says where it is. A certificate
made with \`ssihv certs init --host\` has other names and addresses too, for clients that cannot do
that.

An error has a status, and a body that says more: \`code\` is stable and made for programs,
\`message\` says what happened, and \`hint\`, where there is one, what to do.

    {"error": {"code": "vm_unknown", "message": "there is no VM demo", "hint": "..."}}
`;

function isObject(value: unknown): value is Json {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** In a cell of a table. */
function cell(text: string): string {
  return text.replaceAll("|", "\\|");
}

function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (cells: readonly string[]) => `| ${cells.map(cell).join(" | ")} |\n`;
  return [line(head), line(head.map(() => "---")), ...rows.map(line)].join("");
}

/** A named schema as a link, any other in words. */
function typeWords(schema: Json): string {
  const reference = schema["$ref"];
  if (typeof reference === "string") {
    const name = reference.replace(/^.*\//, "");
    return `[${name}](#${name.toLowerCase()})`;
  }
  const { anyOf, type, enum: values, items, properties, additionalProperties: rest } = schema;
  if (Array.isArray(anyOf)) return anyOf.map(typeWords).join(" or ");
  if (Array.isArray(values)) return values.map((value) => `\`${value}\``).join(", ");
  const types = Array.isArray(type) ? type : [type];
  return types
    .map((each) => {
      if (each === "array" && isObject(items)) return `list of ${typeWords(items)}`;
      if (each === "object" && isObject(properties)) return fieldsInline(schema);
      if (each === "object" && isObject(schema["patternProperties"])) return "object of numbers";
      if (each === "object" && isObject(rest)) return `object of ${typeWords(rest)}`;
      return String(each ?? "any");
    })
    .join(" or ");
}

function fieldsInline(schema: Json): string {
  const required = (schema["required"] ?? []) as readonly string[];
  const fields = Object.entries(schema["properties"] as Record<string, Json>).map(
    ([name, each]) => {
      return `${name}${required.includes(name) ? "" : "?"}: ${typeWords(each)}`;
    },
  );
  return `{ ${fields.join(", ")} }`;
}

const FAR = 2 ** 50;
const LIMITS: readonly (readonly [key: string, words: (value: string) => string])[] = [
  ["minimum", (value) => `at least ${value}`],
  ["exclusiveMinimum", (value) => `more than ${value}`],
  ["maximum", (value) => `at most ${value}`],
  ["multipleOf", (value) => `a multiple of ${value}`],
  ["minLength", (value) => `at least ${value} characters`],
  ["maxLength", (value) => `at most ${value} characters`],
  ["minItems", (value) => `at least ${value} of them`],
  ["maxItems", (value) => `at most ${value} of them`],
];

function limits(schema: Json): string {
  const { description, pattern } = schema;
  const words = LIMITS.flatMap(([key, say]) => {
    const limit = schema[key];
    // What no host comes near is no limit to read of.
    return limit === undefined || Number(limit) >= FAR ? [] : [say(String(limit))];
  });
  // A description tells what a pattern would, and is read more easily.
  if (pattern !== undefined && description === undefined) words.unshift(`\`${pattern}\``);
  return [description, words.join(", ")].filter((text) => text !== "" && text).join("; ");
}

function fieldRows(schema: Json): string[][] {
  const required = (schema["required"] ?? []) as readonly string[];
  const properties = (schema["properties"] ?? {}) as Readonly<Record<string, Json>>;
  return Object.entries(properties).map(([name, each]) => [
    `\`${name}\``,
    typeWords(each),
    required.includes(name) ? "yes" : "",
    limits(each),
  ]);
}

function parametersOf({ parameters = [] }: Operation): string {
  if (parameters.length === 0) return "";
  const rows = parameters.map(({ name, in: place, required, schema }) => [
    ...[`\`${name}\``, place, typeWords(schema), required === true ? "yes" : ""],
    limits(schema),
  ]);
  return `\n${table(["parameter", "in", "type", "required", ""], rows)}`;
}

function bodyOf({ requestBody }: Operation): string {
  const schema = requestBody?.content["application/json"]?.schema;
  if (schema === undefined) return "";
  if (schema["$ref"] !== undefined) return `\nBody: ${typeWords(schema)}.\n`;
  return `\n${table(["in the body", "type", "required", ""], fieldRows(schema))}`;
}

function answerRow(status: string, { description, content, headers = {} }: Answer): string[] {
  const bodies = Object.entries(content ?? {}).map(([type, { schema }]) => {
    if (type === "application/json") return typeWords(schema);
    return schema["$ref"] === undefined ? `\`${type}\`` : `\`${type}\` of ${typeWords(schema)}`;
  });
  const more = Object.entries(headers).map(([name, each]) => {
    return `header \`${name}\`: ${String(each["description"])}`;
  });
  return [status, bodies.join(", ") || "-", [description, ...more].join("; ")];
}

export interface Example {
  readonly method: string;
  /** With its query. */
  readonly path: string;
  readonly body: unknown;
}

function shownFor(path: string, { name, in: place }: Parameter): string {
  const shown = SHOWN[name] ?? SHOWN[path.split("/", 3).concat(`{${name}}`).join("/")];
  if (shown === undefined) throw new Error(`no example of ${place} parameter ${name} of ${path}`);
  return shown;
}

/** A request that does what the operation is for. */
export function exampleOf(method: string, path: string, operation: Operation): Example {
  const { parameters = [], operationId } = operation;
  const inPath = parameters.filter(({ in: place }) => place === "path");
  const filled = inPath.reduce(
    (text, each) => text.replace(`{${each.name}}`, shownFor(path, each)),
    path,
  );
  const query = parameters
    .filter(({ in: place, name }) => place === "query" && name !== "force")
    .map((each) => `${each.name}=${shownFor(path, each)}`)
    .join("&");
  const body = BODIES[operationId];
  if ((operation.requestBody === undefined) !== (body === undefined)) {
    throw new Error(`${operationId}: an example of its body is missing, or of no use`);
  }
  return { method: method.toUpperCase(), path: `${filled}${query && `?${query}`}`, body };
}

function curls({ method, path, body }: Example): string {
  const verb = method === "GET" ? "" : ` -X ${method}`;
  const data = body === undefined ? "" : ` --json '${JSON.stringify(body)}'`;
  // A stream is shown as it comes.
  const flags = /events|console/.test(path) && method === "GET" ? "-sSN" : "-sS";
  const line = (where: string, base: string) =>
    `    curl ${flags} ${where}${verb}${data}`.concat(
      ` ${path.includes("?") ? `"${base}${path}"` : `${base}${path}`}\n`,
    );
  return `\n${line("$TLS", "$API")}${line("$LOCAL", "http://ssihv")}`;
}

function operationText(path: string, method: string, operation: Operation): string {
  const { summary = "", responses } = operation;
  const roles = method === "get" ? "operator, read-only" : "operator";
  const answers = Object.entries(responses).map(([status, each]) => answerRow(status, each));
  return [
    `\n### ${method.toUpperCase()} ${path}\n`,
    `\n${summary[0]?.toUpperCase()}${summary.slice(1)}. (${roles}; \`${operation.operationId}\`)\n`,
    parametersOf(operation),
    bodyOf(operation),
    `\n${table(["status", "answer", ""], answers)}`,
    curls(exampleOf(method, path, operation)),
  ].join("");
}

function groupText(document: OpenApi, title: string, begins: RegExp): string {
  const paths = Object.entries(document.paths).filter(([path]) => begins.test(path));
  const texts = paths.flatMap(([path, methods]) => {
    return Object.entries(methods).map(([method, each]) => operationText(path, method, each));
  });
  return `\n## ${title}\n${texts.join("")}`;
}

function schemaText([name, schema]: readonly [string, Json]): string {
  const { additionalProperties: rest } = schema;
  const closed = rest === false ? "\nOther fields are refused.\n" : "";
  const rows = fieldRows(schema);
  return `\n### ${name}\n\n${table(["field", "type", "always", ""], rows)}${closed}`;
}

export function apiDoc(document: OpenApi): string {
  const groups = GROUPS.map(([title, begins]) => groupText(document, title, begins));
  const told = Object.keys(document.paths).filter((path) => {
    return GROUPS.some(([, begins]) => begins.test(path));
  });
  if (told.length !== Object.keys(document.paths).length) throw new Error("a path is in no group");
  const schemas = Object.entries(document.components.schemas).map(schemaText);
  return `${HEAD}${groups.join("")}\n## Schemas\n${schemas.join("")}`;
}

/** Routes are described, none is called: they need nothing but a version to be there. */
export async function openApi(): Promise<OpenApi> {
  const handler = buildApi({ version: "" } as ApiParts, "operator");
  const answer = await handler(new Request("http://ssihv/openapi.json"));
  return (await answer.json()) as OpenApi;
}

if (import.meta.main) process.stdout.write(apiDoc(await openApi()));
