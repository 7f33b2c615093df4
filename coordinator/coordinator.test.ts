// The whole coordinator in this process, with agents that have no engines: joining, placing,
// starting and ending VMs, silence, its own death, and who may do what over which way in.

import { afterAll, afterEach, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { until as untilWithin } from "../src/base/until.fixture.ts";
import { joinCluster } from "../src/control/join-client.ts";
import { decodeToken, encodeToken } from "../src/control/join-token.ts";
import { loadCredentials } from "../src/tls/credentials.ts";
import { clientTls } from "../src/tls/mtls.ts";
import { PkiFolder } from "../src/tls/pki-folder.ts";
import type { Host, Token, Vm } from "./api-schemas.ts";
import { Coordinator } from "./coordinator.ts";
import { FakeAgent } from "./fake-agent.fixture.ts";
import { askApi } from "./local-api.fixture.ts";
import type { OpenApi } from "./openapi.ts";
import { SqliteStore } from "./sqlite-store.ts";

const base = mkdtempSync(join(tmpdir(), "ssihv-coordinator-test-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));

let pki: PkiFolder;
beforeAll(async () => {
  pki = await PkiFolder.create(join(base, "pki"));
  for (const [name, role] of [
    ...([["coordinator", "coordinator"]] as const),
    ...([["admin", "operator"]] as const),
    ...([["viewer", "read-only"]] as const),
  ]) {
    await pki.issue({ name, role, hosts: [], days: 10 });
  }
});

const GIB = 2 ** 30;
let count = 0;
const open: Place[] = [];
afterEach(async () => {
  for (const place of open.splice(0)) await place.coordinator.close();
});

/** A coordinator with a state of its own, and its operator. */
class Place {
  coordinator: Coordinator;
  readonly folder: string;

  private constructor(folder: string, coordinator: Coordinator) {
    this.folder = folder;
    this.coordinator = coordinator;
  }

  static async start(): Promise<Place> {
    const folder = join(base, `place-${count++}`);
    const place = new Place(folder, await run(folder));
    open.push(place);
    return place;
  }

  /** As after kill -9: nothing was said to anybody. */
  async restart(): Promise<void> {
    await this.coordinator.close();
    this.coordinator = await run(this.folder);
  }

  async call(method: string, path: string, body?: unknown, expected?: number): Promise<unknown> {
    const response = await askApi(join(this.folder, "run", "coordinator.api"), method, path, body);
    const text = await response.text();
    if (expected !== undefined) expect([response.status, text]).toEqual([expected, text]);
    return text === "" ? undefined : JSON.parse(text);
  }

  async token(host?: string, seconds = 60): Promise<string> {
    const wish = { seconds, ...(host !== undefined && { host }) };
    return ((await this.call("POST", "/v1/tokens", wish, 201)) as Token).token;
  }

  async agent(name: string, change: (agent: FakeAgent) => void = () => undefined) {
    const agent = await FakeAgent.join(await this.token(name), name);
    change(agent);
    expect((await agent.connect()).type).toBe("welcome");
    await until(async () => (await this.host(name)).state === "up");
    return agent;
  }

  async host(name: string): Promise<Host> {
    return (await this.call("GET", `/v1/hosts/${name}`, undefined, 200)) as Host;
  }

  async vm(name = "demo"): Promise<Vm> {
    return (await this.call("GET", `/v1/vms/${name}`, undefined, 200)) as Vm;
  }

  async vmIs(state: Vm["state"]): Promise<Vm> {
    await until(async () => (await this.vm()).state === state);
    return await this.vm();
  }
}

function run(folder: string): Promise<Coordinator> {
  return Coordinator.start({
    ...{ version: "test", host: "127.0.0.1", port: 0, advertise: "127.0.0.1", certs: pki.path },
    stateFolder: join(folder, "state"),
    adminSocket: join(folder, "run", "coordinator.api"),
    ...{ heartbeatMs: 50, silenceMs: 400, portBase: 7800 },
    hostCertificateMs: 10 * 86_400_000,
    say: () => undefined,
  });
}

const until = (holds: () => Promise<boolean> | boolean) => untilWithin(holds, 10_000);

const beating = (agent: FakeAgent) => {
  const timer = setInterval(() => agent.tell({ type: "alive" }), 50);
  timer.unref();
  return agent;
};

function spec(nodes: { cpus: number; memoryBytes: number; host?: string }[], name = "demo") {
  return { name, nodes, kernel: "/boot/vmlinuz" };
}
const two = spec([
  { cpus: 2, memoryBytes: GIB },
  { cpus: 2, memoryBytes: GIB },
]);

describe("joining", () => {
  test("a token lets one host in, once, and both sides are sure of each other", async () => {
    const place = await Place.start();
    const text = await place.token();
    await FakeAgent.join(text, "a");
    expect(joinCluster(text, "b")).rejects.toThrow("not valid (any more)");
    // A wrong secret: the coordinator does not believe us.
    const token = decodeToken(await place.token());
    const forged = encodeToken({ ...token, secret: "0".repeat(64) });
    expect(joinCluster(forged, "b")).rejects.toThrow("not valid (any more)");
    // An impostor: we do not believe it.
    const own = loadCredentials(pki.fileOf("coordinator"), pki.caFile);
    const impostor = Bun.serve({
      ...{ hostname: "127.0.0.1", port: 0 },
      tls: { cert: own.certificate, key: own.key },
      fetch: () =>
        Response.json({
          ...{ name: "b", certificate: "x", ca: "x", agentPort: 1, proof: "0".repeat(64) },
        }),
    });
    const misled = encodeToken({ ...token, port: impostor.port ?? 0 });
    expect(joinCluster(misled, "b")).rejects.toThrow("does not know the token's secret");
    await impostor.stop(true);
    expect((await place.host("a")).state).toBe("silent");
  });

  test("of many that come with one token at a time one gets in", async () => {
    const place = await Place.start();
    const text = await place.token();
    const tries = Array.from({ length: 20 }, (_, i) => joinCluster(text, `host-${i}`));
    const results = await Promise.allSettled(tries);
    expect(results.filter(({ status }) => status === "fulfilled").length).toBe(1);
    expect(((await place.call("GET", "/v1/hosts")) as Host[]).length).toBe(1);
  });

  test("a token expires, is for its host only, and can be revoked", async () => {
    const place = await Place.start();
    const short = await place.token(undefined, 1);
    const named = await place.token("a");
    expect(joinCluster(named, "b")).rejects.toThrow("this token is for host a");
    const revoked = await place.token();
    await place.call("DELETE", `/v1/tokens/${decodeToken(revoked).id}`, undefined, 204);
    expect(joinCluster(revoked, "b")).rejects.toThrow("not valid");
    await Bun.sleep(1100);
    expect(joinCluster(short, "b")).rejects.toThrow("not valid");
    expect(((await place.call("GET", "/v1/tokens")) as unknown[]).length).toBe(1);
    await joinCluster(named, "a");
    expect(await place.call("POST", "/v1/tokens", { seconds: 9, host: "a" }, 409)).toMatchObject({
      error: { code: "name_taken" },
    });
  });

  test("a host that was removed is turned away with its certificate still valid", async () => {
    const place = await Place.start();
    const agent = await place.agent("a");
    await place.call("DELETE", "/v1/hosts/a", undefined, 204);
    await until(() => agent.ended !== undefined);
    expect(await agent.again().connect()).toMatchObject({
      type: "refused",
      fault: { code: "host_unknown" },
    });
  });
});

test("a host that is not heard is silent, with the reason; its VMs are left alone", async () => {
  const place = await Place.start();
  const agent = await place.agent("a");
  await place.call("POST", "/v1/vms", spec([{ cpus: 1, memoryBytes: GIB }]), 201);
  await place.call("POST", "/v1/vms/demo/start", undefined, 200);
  agent.lead("running");
  await place.vmIs("running");
  await until(async () => (await place.host("a")).state === "silent");
  expect((await place.host("a")).why).toMatch(/nothing was heard for 0\.\d s/);
  expect((await place.vm()).state).toBe("unknown");
  expect(agent.orders.map(({ type }) => type)).toEqual(["lead"]);
  // It comes back, and all is as it was.
  const again = beating(agent.again([...agent.parts.values()]));
  await again.connect();
  await place.vmIs("running");
});

describe("a VM over two hosts", () => {
  async function started() {
    const place = await Place.start();
    const a = beating(await place.agent("a"));
    const b = beating(await place.agent("b"));
    await place.call("POST", "/v1/vms", two, 201);
    const vm = (await place.call("POST", "/v1/vms/demo/start", undefined, 200)) as Vm;
    const [lead, other] = vm.places[0]?.host === "a" ? [a, b] : [b, a];
    return { place, lead, other, vm };
  }

  test("an agent of another build whose answer is not known is refused", async () => {
    const { place, lead } = await started();
    lead.lead("running");
    lead.answer = { pages: 1 };
    expect(await place.call("GET", "/v1/vms/demo/engines", undefined, 502)).toMatchObject({
      error: { code: "peer_refused", hint: "run the same ssihv on all hosts" },
    });
  });

  test("a console that its agent does not open is refused before it begins", async () => {
    const { place, lead } = await started();
    lead.fault = { code: "vm_unknown", message: "it is not here" };
    expect(await place.call("GET", "/v1/vms/demo/console?write=true", undefined, 404)).toEqual({
      error: { code: "vm_unknown", message: expect.stringContaining("it is not here") },
    });
  });

  test("each host gets its order, with one key for both, which is kept nowhere", async () => {
    const { place, lead, other, vm } = await started();
    expect(vm.state).toBe("waiting");
    const [first] = lead.orders;
    const [second] = other.orders;
    if (first?.type !== "lead" || second?.type !== "join") throw new Error("other orders");
    expect(second).toMatchObject({ vm: "demo", node: 1, memoryOnly: false, run: first.run });
    expect(second.key).toBe(first.key);
    expect([second.leadHost, second.leadPort]).toEqual([first.listenHost, first.listenPort]);
    const kept = await Bun.file(join(place.folder, "state", "state.sqlite-wal")).text();
    expect(kept).toContain("demo");
    expect(kept).not.toContain(first.key);
    lead.lead("running");
    await place.vmIs("running");
  });

  test("stop asks the lead; the end is on record and the hosts are free again", async () => {
    const { place, lead, other } = await started();
    lead.lead("running");
    await place.call("POST", "/v1/vms/demo/stop", undefined, 200);
    expect(lead.orders.at(-1)?.type).toBe("stop");
    expect((await place.host("a")).used.cpus).toBe(2);
    lead.lead("ended", { kind: "stopped", reason: "requested", text: "stopped" });
    const vm = await place.vmIs("stopped");
    expect(vm.last).toMatchObject({ kind: "stopped", reason: "requested" });
    expect(vm.places).toEqual([]);
    expect((await place.host("a")).used).toEqual({ cpus: 0, memoryBytes: 0 });
    await until(() => lead.orders.at(-1)?.type === "forget");
    // The other part may still live: it is told to stop.
    await until(() => other.orders.at(-1)?.type === "stop");
  });

  test("a host that does not accept fails the start with its words; nobody is left", async () => {
    const place = await Place.start();
    const a = beating(await place.agent("a"));
    const b = beating(await place.agent("b"));
    await place.call("POST", "/v1/vms", two, 201);
    b.fault = { code: "memory_insufficient", message: "no room", hint: "less" };
    a.fault = b.fault;
    expect(await place.call("POST", "/v1/vms/demo/start", undefined, 422)).toMatchObject({
      error: { code: "memory_insufficient", message: expect.stringMatching(/^host [ab]: no room/) },
    });
    expect((await place.vm()).last).toMatchObject({
      kind: "failed",
      reason: "memory_insufficient",
    });
    a.fault = undefined;
    b.fault = undefined;
    await place.call("POST", "/v1/vms/demo/start", undefined, 200);
  });

  test("an agent that was restarted without it: the VM has failed, and says why", async () => {
    const { place, lead } = await started();
    lead.lead("running");
    lead.channel?.end("killed");
    await place.vmIs("unknown");
    await beating(lead.again()).connect();
    const vm = await place.vmIs("failed");
    expect(vm.last).toMatchObject({ reason: "agent_lost" });
    expect(vm.last?.text).toContain("was it restarted?");
  });

  test("its lead's agent is restarted while another host takes its time: failed", async () => {
    const place = await Place.start();
    const agents = [beating(await place.agent("a")), beating(await place.agent("b"))];
    await place.call("POST", "/v1/vms", two, 201);
    // Whichever leads is asked first: the other is asked when it has accepted.
    for (const agent of agents) agent.held = [];
    const started = place.call("POST", "/v1/vms/demo/start");
    await until(() => agents.some(({ held }) => held?.length === 1));
    const [lead, other] = agents.toSorted((a, b) => b.orders.length - a.orders.length);
    if (lead === undefined || other === undefined) throw new Error("two agents");
    for (const answer of lead.held ?? []) answer();
    await until(() => other.held?.length === 1);
    lead.channel?.end("killed");
    await beating(lead.again()).connect();
    const leadHost = (await place.vm()).places[0]?.host ?? "";
    await until(async () => (await place.host(leadHost)).state === "up");
    for (const answer of other.held?.splice(0) ?? []) answer();
    other.held = undefined;
    await started;
    const { last } = await place.vmIs("failed");
    expect(last?.text).toContain("was it restarted?");
    await until(() => other.orders.at(-1)?.type === "stop");
  });

  test("the coordinator dies and is back: agents tell what runs, none gets an order", async () => {
    const { place, lead, other, vm } = await started();
    lead.lead("running");
    await place.vmIs("running");
    await place.restart();
    expect((await place.vm()).state).toBe("unknown");
    expect((await place.vm()).places).toEqual(vm.places);
    const back = [lead, other].map((agent) => beating(agent.again([...agent.parts.values()])));
    for (const agent of back) await agent.connect(place.coordinator.agentPort);
    await place.vmIs("running");
    expect(back.flatMap(({ orders }) => orders)).toEqual([]);
  });

  test("destroyed while its hosts were away: they are told to stop when they come", async () => {
    const { place, lead } = await started();
    lead.lead("running");
    lead.channel?.end("cut");
    await place.vmIs("unknown");
    expect(await place.call("DELETE", "/v1/vms/demo", undefined, 409)).toMatchObject({
      error: { code: "vm_busy" },
    });
    await place.call("DELETE", "/v1/vms/demo?force=true", undefined, 204);
    const back = beating(lead.again([...lead.parts.values()]));
    await back.connect();
    await until(() => back.orders.at(-1)?.type === "stop");
    back.lead("ended", { kind: "stopped", reason: "requested", text: "stopped" });
    await until(() => back.orders.at(-1)?.type === "forget");
  });

  test("changes while it does not run, and not its name", async () => {
    const { place, lead } = await started();
    const bigger = { ...two, cmdline: "quiet" };
    expect(await place.call("PUT", "/v1/vms/demo", bigger, 409)).toMatchObject({
      error: { code: "vm_busy", message: "VM demo is waiting: it cannot be changed" },
    });
    expect((await place.vm()).spec).toEqual(two);
    lead.lead("ended", { kind: "stopped", reason: "requested", text: "stopped" });
    const { last } = await place.vmIs("stopped");
    await place.call("PUT", "/v1/vms/demo", bigger, 200);
    expect(await place.vm()).toMatchObject({ spec: bigger, state: "stopped", last });
    await place.call("PUT", "/v1/vms/demo", { ...two, name: "other" }, 409);
    await place.call("PUT", "/v1/vms/demo", { ...two, cacheBytes: 4096 }, 422);
    await place.call("PUT", "/v1/vms/none", { ...two, name: "none" }, 404);
    expect((await place.vm()).spec).toMatchObject(bigger);
  });
});

describe("who may do what", () => {
  const as = (name: string) => clientTls(loadCredentials(pki.fileOf(name), pki.caFile));

  test("operators do, readers look, others get nothing", async () => {
    const place = await Place.start();
    await place.agent("a");
    const url = `https://127.0.0.1:${place.coordinator.apiPort}`;
    const get = (name: string) => fetch(`${url}/v1/hosts`, { tls: as(name) });
    for (const name of ["admin", "viewer"]) {
      expect(((await (await get(name)).json()) as Host[]).map((host) => host.name)).toEqual(["a"]);
    }
    // Prometheus scrapes with a reader's certificate.
    const metrics = await fetch(`${url}/metrics`, { tls: as("viewer") });
    expect(metrics.headers.get("content-type")).toStartWith("text/plain; version=0.0.4");
    expect(await metrics.text()).toContain('\nssihv_cluster_host_up{host="a"} 1\n');
    const post = (name: string) =>
      fetch(`${url}/v1/tokens`, {
        method: "POST",
        body: '{"seconds":9}',
        headers: { "content-type": "application/json" },
        tls: as(name),
      });
    expect((await post("admin")).status).toBe(201);
    const refused = await post("viewer");
    expect([refused.status, await refused.json()]).toMatchObject([
      403,
      { error: { code: "role_forbidden" } },
    ]);
    expect(fetch(url, { tls: { rejectUnauthorized: false } })).rejects.toThrow();
  });

  test("a browser with a certificate gets the page, another site's page nothing", async () => {
    const place = await Place.start();
    const url = `https://127.0.0.1:${place.coordinator.apiPort}`;
    const page = await fetch(`${url}/`, { tls: as("viewer") });
    expect(page.headers.get("content-security-policy")).toContain("frame-ancestors 'none'");
    const files = /(?:src|href)="(\/[^"]+)"/g;
    for (const [, path] of (await page.text()).matchAll(files)) {
      expect([path, (await fetch(url + path, { tls: as("viewer") })).status]).toEqual([path, 200]);
    }
    // What a form on any web site can make a browser send with its user's certificate.
    const forged = { origin: "https://evil.example", "content-type": "text/plain" };
    for (const headers of [forged, { "sec-fetch-site": "cross-site" }]) {
      const answer = await fetch(`${url}/v1/vms/demo/stop`, {
        ...{ method: "POST", headers, tls: as("admin") },
      });
      expect([answer.status, await answer.json()]).toMatchObject([
        403,
        { error: { code: "role_forbidden" } },
      ]);
    }
    await expect(fetch(`${url}/`, { tls: { rejectUnauthorized: false } })).rejects.toThrow();
  });

  test("the local socket and the state are their user's alone", async () => {
    const { folder } = await Place.start();
    const mode = (...path: string[]) => (statSync(join(folder, ...path)).mode & 0o777).toString(8);
    expect(mode("run")).toBe("700");
    expect(mode("run", "coordinator.api")).toBe("600");
    expect(mode("state")).toBe("700");
    expect(mode("state", "state.sqlite")).toBe("600");
  });

  test("two coordinators cannot share a state", async () => {
    const { folder } = await Place.start();
    expect(run(folder)).rejects.toThrow("is in use");
  });
});

describe("the API", () => {
  test("bad requests get a reason that is short", async () => {
    const place = await Place.start();
    const cases: [string, string, unknown, number, string][] = [
      ["GET", "/nowhere", undefined, 404, "nothing at this path"],
      ["PATCH", "/v1/vms", {}, 405, "does not take PATCH"],
      ["POST", "/v1/vms", { name: "demo" }, 400, "/nodes"],
      ["POST", "/v1/vms", { ...two, colour: "red" }, 400, "/colour"],
      ["POST", "/v1/vms", { ...two, name: "No Name" }, 400, "/name"],
      ["POST", "/v1/vms", { ...two, kernel: "vmlinuz" }, 400, "/kernel"],
      ["POST", "/v1/vms", { ...two, memoryNodes: 7 }, 422, "at most 8 in all"],
      ["POST", "/v1/vms", spec([{ cpus: 1, memoryBytes: 3 }]), 400, "/nodes/0/mem"],
      ["POST", "/v1/vms", spec([{ cpus: 1, memoryBytes: 4 << 20 }]), 422, "it needs 16 MiB"],
      ["POST", "/v1/vms", { ...two, balloonBytes: 2 ** 40 }, 422, "a balloon of"],
      ["POST", "/v1/vms", { ...two, cacheBytes: 4096 }, 422, "--cache"],
      ["POST", "/v1/vms", { ...two, memoryLatencyNs: [[1, 2]] }, 422, "2 rows of 2 values"],
      ["POST", "/v1/vms", { ...two, memoryLatencyNs: [[1, 0]] }, 400, "/memoryLatencyNs/0/1"],
      ["POST", "/v1/vms", two, 201, ""],
      ["GET", "/v1/vms/demo/pages?gpa=x", undefined, 400, "/gpa"],
      ["GET", "/v1/vms/demo/pages?gpa=0&count=1025", undefined, 400, "/count"],
      ["GET", "/v1/vms/No", undefined, 400, "the path is not as the API has it: /name"],
      ["GET", "/v1/vms/demo/engines", undefined, 409, "does not run"],
      ["POST", "/v1/vms", two, 409, "there is a VM demo already"],
      ["POST", "/v1/vms/demo/start", undefined, 409, "no host has joined"],
      ["GET", "/v1/vms/none", undefined, 404, "there is no VM none"],
      ["POST", "/v1/vms/none/start", undefined, 404, "there is no VM none"],
      ["DELETE", "/v1/hosts/none", undefined, 404, "host none is not of this cluster"],
      ["POST", "/v1/tokens", { seconds: 0 }, 400, "/seconds"],
      ["DELETE", "/v1/tokens/0123456789abcdef", undefined, 404, "there is no token"],
    ];
    for (const [method, path, body, status, words] of cases) {
      const { error } = (await place.call(method, path, body, status)) as {
        error?: { message: string };
      };
      if (error === undefined) continue;
      expect(error.message).toContain(words);
      expect(error.message.length).toBeLessThan(300);
    }
  });

  test("other methods are told which there are; a body has its limit", async () => {
    const { folder } = await Place.start();
    const unix = join(folder, "run", "coordinator.api");
    const patch = await fetch("http://x/v1/vms/demo", { unix, method: "PATCH" });
    expect([patch.status, patch.headers.get("allow")]).toEqual([405, "GET, HEAD, PUT, DELETE"]);
    const head = await fetch("http://x/v1/status", { unix, method: "HEAD" });
    expect([head.status, await head.text()]).toEqual([200, ""]);
    const headers = { "content-type": "application/json" };
    const post = (body: string) =>
      fetch("http://x/v1/vms", { unix, method: "POST", headers, body });
    const large = await post(`"${"a".repeat(1 << 20)}"`);
    expect([large.status, await large.text()]).toEqual([413, ""]);
    expect((await post("{")).status).toBe(400);
  });

  test("a VM that an older build took is shown as it is", async () => {
    const place = await Place.start();
    await place.coordinator.close();
    const store = new SqliteStore(join(place.folder, "state", "state.sqlite"));
    const old = { ...spec([{ cpus: 1, memoryBytes: 3 }]), kernel: "vmlinuz" };
    const value = { spec: old, slot: 0, createdAt: "2026-01-01T00:00:00Z" };
    await store.apply([{ kind: "vm", id: "demo", value }]);
    store.close();
    place.coordinator = await run(place.folder);
    expect(await place.call("GET", "/v1/vms", undefined, 200)).toMatchObject([{ spec: old }]);
    await place.call("POST", "/v1/vms/demo/start", undefined, 422);
    await place.call("DELETE", "/v1/vms/demo", undefined, 204);
  });

  test("describes itself: every path is in the OpenAPI document, with its answers", async () => {
    const place = await Place.start();
    const document = (await place.call("GET", "/openapi.json", undefined, 200)) as OpenApi;
    const { openapi, paths } = document;
    expect(openapi).toMatch(/^3\.1\./);
    expect(Object.keys(paths).sort()).toEqual([
      ...["/metrics", "/v1/events", "/v1/hosts", "/v1/hosts/{name}", "/v1/numbers"],
      ...["/v1/status", "/v1/tokens"],
      ...["/v1/tokens/{id}", "/v1/vms", "/v1/vms/{name}", "/v1/vms/{name}/balloon"],
      ...["/v1/vms/{name}/console"],
      ...["/v1/vms/{name}/engines", "/v1/vms/{name}/heat", "/v1/vms/{name}/pages"],
      ...["/v1/vms/{name}/start", "/v1/vms/{name}/stats", "/v1/vms/{name}/stop"],
    ]);
    const operations = Object.values(paths).flatMap((methods) => Object.values(methods));
    const ids = operations.map(({ operationId }) => operationId);
    expect(new Set(ids).size).toBe(operations.length);
    for (const { summary, responses } of operations) {
      expect(summary).toBeString();
      for (const { description } of Object.values(responses)) expect(description).not.toBe("");
    }
  });

  test("events stream, and go on where a reader left", async () => {
    const place = await Place.start();
    const follow = async (after: string | undefined, enough: number) => {
      const stop = new AbortController();
      const response = await fetch("http://x/v1/events", {
        unix: join(place.folder, "run", "coordinator.api"),
        signal: stop.signal,
        ...(after !== undefined && { headers: { "last-event-id": after } }),
      });
      expect(response.headers.get("content-type")).toContain("text/event-stream");
      let text = "";
      const found = () => [...text.matchAll(/^id: (\S+)\nevent: (\w+)\n/gm)];
      for await (const chunk of response.body ?? []) {
        text += new TextDecoder().decode(chunk);
        if (found().length >= enough) break;
      }
      stop.abort();
      return found().map(([, id, event]) => ({ id, event }));
    };
    await place.agent("a");
    const first = await follow(undefined, 3);
    expect(first.map(({ event }) => event)).toEqual(["token_created", "host_joined", "host_up"]);
    const later = follow(first[1]?.id, 2);
    await place.token();
    expect((await later).map(({ event }) => event)).toEqual(["host_up", "token_created"]);
  });
});
