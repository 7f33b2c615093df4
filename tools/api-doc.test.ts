// The requests that docs/API.md shows are sent to a coordinator: each does what it is for.

import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Token } from "../coordinator/api-schemas.ts";
import { Coordinator } from "../coordinator/coordinator.ts";
import { FakeAgent } from "../coordinator/fake-agent.fixture.ts";
import { askApi } from "../coordinator/local-api.fixture.ts";
import { PkiFolder } from "../src/tls/pki-folder.ts";
import { apiDoc, exampleOf, openApi } from "./api-doc.ts";

const base = mkdtempSync(join(tmpdir(), "ssihv-api-doc-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));
const unix = join(base, "run", "coordinator.api");

function send(method: string, path: string, body: unknown): Promise<Response> {
  return askApi(unix, method, path, body);
}

async function coordinator(): Promise<Coordinator> {
  const pki = await PkiFolder.create(join(base, "pki"));
  await pki.issue({ name: "coordinator", role: "coordinator", hosts: [], days: 10 });
  const started = await Coordinator.start({
    ...{ version: "test", host: "127.0.0.1", port: 0, advertise: "127.0.0.1", certs: pki.path },
    ...{ stateFolder: join(base, "state"), adminSocket: unix, portBase: 7800 },
    ...{ heartbeatMs: 1000, silenceMs: 60_000, say: () => undefined },
    hostCertificateMs: 86_400_000,
  });
  for (const host of ["host-a", "host-b"]) {
    const made = await send("POST", "/v1/tokens", { host, seconds: 60 });
    const agent = await FakeAgent.join(((await made.json()) as Token).token, host);
    agent.playing = true;
    expect((await agent.connect()).type).toBe("welcome");
  }
  return started;
}

/** Before all that looks, and after it. */
const FIRST = ["createToken", "createVm", "changeVm", "startVm"];
const LAST = ["setBalloon", "typeAtConsole", "stopVm", "destroyVm", "revokeToken", "removeHost"];
/** Who types must hold a console open; of tokens only those there are can be revoked. */
const REFUSED = { typeAtConsole: 409, revokeToken: 404 };

test("the examples of docs/API.md do what they are for", async () => {
  const running = await coordinator();
  const { paths } = await openApi();
  const rank = (id: string) => (FIRST.indexOf(id) + 1 || 10) + 10 * (LAST.indexOf(id) + 1);
  const operations = Object.entries(paths)
    .flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, operation]) => ({ path, method, operation })),
    )
    .sort((a, b) => rank(a.operation.operationId) - rank(b.operation.operationId));
  const refused: Record<string, number> = {};
  for (const { path, method, operation } of operations) {
    const example = exampleOf(method, path, operation);
    const response = await send(example.method, example.path, example.body);
    if (!response.ok) refused[operation.operationId] = response.status;
    await response.body?.cancel();
  }
  await running.close();
  expect(refused).toEqual(REFUSED);
  expect(operations.length).toBeGreaterThan(20);
});

test("a path without a group, or a parameter without an example, is refused", async () => {
  const document = await openApi();
  const { "/v1/vms": vms = {} } = document.paths;
  expect(() => apiDoc({ ...document, paths: { "/v2/vms": vms } })).toThrow("in no group");
  const unknown = { name: "colour", in: "query", schema: { type: "string" } } as const;
  const operation = { ...vms["get"], operationId: "listVms", responses: {}, parameters: [unknown] };
  expect(() => exampleOf("get", "/v1/vms", operation)).toThrow("no example of query parameter");
});
