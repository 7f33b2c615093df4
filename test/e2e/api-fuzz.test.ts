// The API against its own description: schemathesis makes thousands of requests from the OpenAPI
// document of a running coordinator, as an operator and as a reader, over mTLS. No answer may be a
// server error, of an undeclared status or content type, or other than its schema; what was
// destroyed must be gone, what was made must be there. Agents are stand-ins that accept everything.
// SSIHV_FUZZ_SEED and SSIHV_FUZZ_EXAMPLES: another run, a longer one.

import { describe, expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { FakeAgent } from "../../coordinator/fake-agent.fixture.ts";
import type { OpenApi } from "../../coordinator/openapi.ts";
import { Cluster } from "./cluster-processes.ts";
import { checkout, run } from "./support.ts";

const SEED = process.env["SSIHV_FUZZ_SEED"] ?? "20261126";
/** For each operation and phase. */
const EXAMPLES = process.env["SSIHV_FUZZ_EXAMPLES"] ?? "20";
const HOSTS = ["host-a", "host-b", "host-c"];
/**
 * Half of the names are of few things, so that requests meet what others made. A VM may be
 * well-formed and yet impossible (422). Of a stream without an end the beginning is enough.
 */
const CONFIG = `max-stream-events = 3
[dictionaries.names]
values = ["demo", "other", "host-c"]
[parameters]
"path.name" = { dictionary = "names", probability = 0.5 }
"body.name" = { dictionary = "names", probability = 0.5 }
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "401", "403", "404", "409", "422"]
`;

function fuzzer(): string | undefined {
  const tools = `${checkout}/.tools`;
  const name = existsSync(tools)
    ? readdirSync(tools).find((each) => /^schemathesis-[\d.]+$/.test(each))
    : undefined;
  return name === undefined ? undefined : join(tools, name);
}

/** Of each operation of the document ("getVm"): how often which status was answered. */
type Answered = Record<string, Record<string, number>>;

class Answers {
  readonly counts: Answered = {};
  requests = 0;
  private readonly document: OpenApi;

  constructor(document: OpenApi) {
    this.document = document;
  }

  /** `file`: interactions in the HTTP Archive format. */
  add(file: string): void {
    const { log } = JSON.parse(readFileSync(file, "utf8"));
    for (const { request, response } of log.entries) {
      this.requests += 1;
      const id = this.operation(request.method, new URL(request.url).pathname);
      if (id === undefined) continue;
      this.counts[id] ??= {};
      const known = this.counts[id];
      known[response.status] = (known[response.status] ?? 0) + 1;
    }
  }

  /** Operations that never did what they are for. */
  get neverDone(): string[] {
    return Object.keys(this.counts).filter((id) => {
      return !Object.keys(this.counts[id] ?? {}).some((status) => status.startsWith("2"));
    });
  }

  private operation(method: string, path: string): string | undefined {
    const { paths } = this.document;
    const template = Object.keys(paths).find((each) => {
      return new RegExp(`^${each.replaceAll(/\{\w+\}/g, "[^/]+")}$`).test(path);
    });
    return paths[template ?? ""]?.[method.toLowerCase()]?.operationId;
  }
}

class Fuzz {
  private readonly cluster: Cluster;
  private readonly document: string;

  constructor(cluster: Cluster, document: OpenApi) {
    this.cluster = cluster;
    this.document = join(cluster.folder, "openapi.json");
    writeFileSync(this.document, JSON.stringify(document));
    writeFileSync(join(cluster.folder, "schemathesis.toml"), CONFIG);
  }

  /** Its status, all that it said, and the file of what was asked and answered. */
  async as(role: string, ...more: string[]) {
    const { folder, apiPort } = this.cluster;
    const certs = join(folder, "certs");
    const har = join(folder, `${role}.har`);
    const { code, out, err } = await run(
      [
        ...["python3", "-m", "schemathesis.cli", "run", this.document],
        ...["--url", `https://127.0.0.1:${apiPort}`],
        ...["--tls-verify", join(certs, "ca.pem"), "--request-cert", join(certs, `${role}.pem`)],
        ...["--checks", "all", "--continue-on-failure", "--request-timeout", "20"],
        ...["--seed", SEED, "--max-examples", EXAMPLES],
        ...["--report", "har", "--report-har-path", har, ...more],
      ],
      { cwd: folder, env: { PYTHONPATH: fuzzer(), PYTHONDONTWRITEBYTECODE: "1" } },
    );
    return { code, words: out + err, har };
  }
}

/** An agent that takes whatever VM there is. */
async function agentOf(cluster: Cluster, host: string): Promise<void> {
  const agent = await FakeAgent.join((await cluster.ok("cluster", "token", host)).trim(), host);
  agent.playing = true;
  agent.memoryBytes = 2 ** 52;
  agent.cpus = 2 ** 20;
  await agent.connect();
  setInterval(() => agent.tell({ type: "alive" }), 1000).unref();
  await cluster.hostIs(host, "up");
}

async function startCluster(): Promise<Cluster> {
  const cluster = await Cluster.start();
  await cluster.ok("certs", "issue", "viewer", "--role", "read-only");
  for (const host of HOSTS) await agentOf(cluster, host);
  for (const name of ["demo", "other"]) {
    const nodes = [{ cpus: 1, memoryBytes: 2 ** 30 }];
    await cluster.call("POST", "/v1/vms", { name, nodes, kernel: "/vmlinuz", balloonBytes: 0 });
  }
  await cluster.call("POST", "/v1/vms/demo/start");
  await cluster.vmIs("demo", "running");
  return cluster;
}

/**
 * By readers, by operators with a VM that runs, and by operators who may end everything. The phase
 * "coverage" tries every limit of every field once: for readers too, but not a third time.
 */
const PASSES: readonly (readonly [role: string, ...flags: string[]])[] = [
  ["viewer", "--phases", "coverage,stateful"],
  [
    ...(["admin", "--phases", "fuzzing"] as const),
    ...["--include-path-regex", "/v1/vms/{name}/.", "--exclude-path-regex", "stop$"],
  ],
  ["admin"],
];

describe.skipIf(fuzzer() === undefined)("the API, fuzzed (needs schemathesis)", () => {
  test("answers as its document says, whoever asks whatever", async () => {
    console.log(`schemathesis: SSIHV_FUZZ_SEED=${SEED}, ${EXAMPLES} examples`);
    await using cluster = await startCluster();
    const document = await cluster.call<OpenApi>("GET", "/openapi.json");
    const fuzz = new Fuzz(cluster, document);
    const answers = new Answers(document);
    for (const [role, ...flags] of PASSES) {
      const { code, words, har } = await fuzz.as(role, ...flags);
      if (code !== 0) throw new Error(`as ${role}: ${words}`);
      answers.add(har);
    }
    console.log(`${answers.requests} requests: ${JSON.stringify(answers.counts, null, 1)}`);
    const operations = Object.values(document.paths).flatMap((path) => Object.values(path));
    const asked = Object.keys(answers.counts).sort();
    expect(asked).toEqual(operations.map(({ operationId }) => operationId).sort());
    // Who types must hold what only an open console gives: nobody guesses that. A change names its
    // VM twice: some runs guess it, and tools/api-doc.test.ts does it in every one.
    const rare = ["changeVm", "typeAtConsole"];
    expect(answers.neverDone.filter((id) => !rare.includes(id))).toEqual([]);
  }, 300_000);

  test("an answer that is not as its document says is found", async () => {
    await using cluster = await startCluster();
    const document = await cluster.call<OpenApi>("GET", "/openapi.json");
    const { Status } = document.components.schemas;
    (Status?.["properties"] as Record<string, object>)["version"] = { type: "integer" };
    const status = await new Fuzz(cluster, document).as("viewer", "--include-path", "/v1/status");
    expect([status.code, status.words]).toEqual([1, expect.stringContaining("violates schema")]);
  }, 60_000);
});
