// Certificates of hosts as the coordinator gives them: over the wire with agents that ask for what
// is not theirs, with a CA that is replaced while they are connected, with a connection that takes
// the place of another, and with hosts that come back by a token.

import { afterAll, afterEach, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { until } from "../src/base/until.fixture.ts";
import type { ToAgent } from "../src/control/messages.ts";
import { factsOf, requestLeaf } from "../src/tls/certificate.ts";
import { PkiFolder } from "../src/tls/pki-folder.ts";
import type { Host, Token, Vm } from "./api-schemas.ts";
import { Coordinator } from "./coordinator.ts";
import { FakeAgent } from "./fake-agent.fixture.ts";
import { askApi } from "./local-api.fixture.ts";

const base = mkdtempSync(join(tmpdir(), "ssihv-coordinator-renewal-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));
const DAY_MS = 86_400_000;

let pki: PkiFolder;
beforeAll(async () => {
  pki = await PkiFolder.create(join(base, "pki"));
  await pki.issue({ name: "coordinator", role: "coordinator", hosts: [], days: 10 });
});

let count = 0;
const open: Place[] = [];
afterEach(async () => {
  for (const place of open.splice(0)) await place.close();
});

class Place {
  private readonly agents: FakeAgent[] = [];
  private readonly beating = setInterval(() => {
    for (const agent of this.agents) agent.tell({ type: "alive" });
  }, 50);
  readonly events: string[] = [];
  private readonly folder: string;
  private readonly coordinator: Coordinator;

  private constructor(folder: string, coordinator: Coordinator) {
    this.folder = folder;
    this.coordinator = coordinator;
  }

  static async start(hostCertificateMs = 10 * DAY_MS): Promise<Place> {
    const folder = join(base, `place-${count++}`);
    const coordinator = await Coordinator.start({
      ...{ version: "test", host: "127.0.0.1", port: 0, advertise: "127.0.0.1", certs: pki.path },
      ...{ hostCertificateMs, heartbeatMs: 50, silenceMs: 5000, portBase: 7800 },
      stateFolder: join(folder, "state"),
      adminSocket: join(folder, "run", "coordinator.api"),
      say: () => undefined,
    });
    const place = new Place(folder, coordinator);
    open.push(place);
    void place.listen();
    return place;
  }

  async close(): Promise<void> {
    clearInterval(this.beating);
    await this.coordinator.close();
  }

  fetch(method: string, path: string, body?: unknown): Promise<Response> {
    return askApi(join(this.folder, "run", "coordinator.api"), method, path, body);
  }

  async call<T>(method: string, path: string, body?: unknown): Promise<T> {
    const text = await (await this.fetch(method, path, body)).text();
    return (text === "" ? undefined : JSON.parse(text)) as T;
  }

  host(name: string): Promise<Host> {
    return this.call("GET", `/v1/hosts/${name}`);
  }

  async token(host: string, rejoin = false): Promise<string> {
    const { token } = await this.call<Token>("POST", "/v1/tokens", { seconds: 60, host, rejoin });
    return token;
  }

  /** Until it is welcomed and up. */
  async connect(agent: FakeAgent): Promise<Extract<ToAgent, { type: "welcome" }>> {
    const answer = await agent.connect();
    if (answer.type !== "welcome") throw new Error(JSON.stringify(answer));
    this.agents.push(agent);
    const { name } = agent.admitted;
    await until(async () => (await this.host(name)).state === "up");
    return answer;
  }

  async agent(name: string): Promise<FakeAgent> {
    const agent = await FakeAgent.join(await this.token(name), name);
    await this.connect(agent);
    return agent;
  }

  /** Ends with the coordinator. */
  private async listen(): Promise<void> {
    try {
      const { body } = await this.fetch("GET", "/v1/events");
      for await (const chunk of body ?? []) {
        const text = new TextDecoder().decode(chunk);
        for (const [, event = ""] of text.matchAll(/^event: (\w+)$/gm)) this.events.push(event);
      }
    } catch {
      // The coordinator was closed.
    }
  }
}

type Answer = Extract<ToAgent, { type: "renewed" | "not_renewed" }>;

async function renew(agent: FakeAgent, request: string): Promise<Answer> {
  const answers = () =>
    agent.orders.filter((m): m is Answer => m.type === "renewed" || m.type === "not_renewed");
  const before = answers().length;
  agent.tell({ type: "renew", request });
  await until(() => answers().length > before);
  const answer = answers().at(-1);
  if (answer === undefined) throw new Error("unreachable");
  return answer;
}

test("a host is renewed for its own name; what names another is refused", async () => {
  const place = await Place.start();
  const agent = await place.agent("a");
  await place.agent("b");
  const node = { role: "node" } as const;
  const rogues = [
    (await requestLeaf({ ...node, name: "b" })).request,
    (await requestLeaf({ name: "a", role: "operator" })).request,
    (await requestLeaf({ name: "coordinator", role: "coordinator" })).request,
    "",
    "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
    "x".repeat(8192),
  ];
  for (const request of rogues) {
    expect(await renew(agent, request)).toMatchObject({
      ...{ type: "not_renewed", fault: { code: "certificate_invalid" } },
    });
  }
  const { request, key } = await requestLeaf({ ...node, name: "a" });
  const answer = await renew(agent, request);
  if (answer.type !== "renewed") throw new Error(JSON.stringify(answer));
  expect(factsOf(answer.certificate).identity).toEqual({ name: "a", role: "node" });
  expect(answer.ca).toBe(pki.bundle());
  expect(agent.ended).toBeUndefined();
  const renewed = agent.with({ certificate: answer.certificate, key, ca: answer.ca });
  renewed.moves = true;
  await place.connect(renewed);
  const { notAfter } = factsOf(answer.certificate);
  await until(async () => {
    return (await place.host("a")).certificate?.expiresAt === notAfter.toISOString();
  });
  // The key of the connection itself again: nothing new.
  const message = expect.stringContaining("for a new key");
  expect(await renew(renewed, request)).toMatchObject({ fault: { message } });
});

test("a request that is too long, or two at a time, end the connection", async () => {
  const place = await Place.start();
  const agent = await place.agent("a");
  agent.tell({ type: "renew", request: "x".repeat(8193) });
  await until(() => agent.ended !== undefined);
  const again = agent.again();
  await place.connect(again);
  const { request } = await requestLeaf({ name: "a", role: "node" });
  again.tell({ type: "renew", request });
  again.tell({ type: "renew", request });
  await until(() => again.ended !== undefined);
  expect((await place.host("a")).certificate).not.toBeNull();
});

test("a host that was removed gets none", async () => {
  const place = await Place.start();
  const agent = await place.agent("a");
  const { request } = await requestLeaf({ name: "a", role: "node" });
  // Its request and its removal at the same time: whichever is first, the new one lets nobody in.
  agent.tell({ type: "renew", request });
  await place.call("DELETE", "/v1/hosts/a");
  await until(() => agent.ended !== undefined);
  expect(await agent.again().connect()).toMatchObject({
    ...{ type: "refused", fault: { code: "host_unknown" } },
  });
});

test("a new CA is told to all; it is the old one's turn to go when all are over", async () => {
  const place = await Place.start();
  const agent = await place.agent("a");
  const welcome = await place.connect(agent.again());
  const current = agent.again();
  await place.connect(current);
  expect(welcome.trust).toEqual({ ca: pki.bundle(), issuer: pki.issuer().fingerprint });
  await pki.rotateCa();
  await pki.rotate();
  const issuer = pki.issuer().fingerprint;
  await until(() => current.orders.some((m) => m.type === "trust" && m.trust.issuer === issuer));
  const { certificate } = await place.host("a");
  expect(certificate?.current).toBe(false);
  const metrics = await (await place.fetch("GET", "/metrics")).text();
  expect(metrics).toContain('\nssihv_cluster_host_certificate_current{host="a"} 0\n');
  const { request, key } = await requestLeaf({ name: "a", role: "node" });
  const answer = await renew(current, request);
  if (answer.type !== "renewed") throw new Error(JSON.stringify(answer));
  const renewed = current.with({ certificate: answer.certificate, key, ca: answer.ca });
  renewed.moves = true;
  await place.connect(renewed);
  await until(async () => (await place.host("a")).certificate?.current === true);
  expect(await (await place.fetch("GET", "/metrics")).text()).toContain(
    '\nssihv_cluster_host_certificate_current{host="a"} 1\n',
  );
  pki.dropOldCas();
  await pki.rotate();
  await until(() => renewed.orders.some((m) => m.type === "trust" && m.trust.ca === pki.bundle()));
  // With its own CA the host comes again; one that was not told is locked out.
  await place.connect(renewed.again());
  await expect(agent.again().connect()).rejects.toThrow();
});

test("a connection takes another's place: orders and consoles end where they began", async () => {
  const place = await Place.start();
  const first = await place.agent("a");
  const spec = { name: "demo", nodes: [{ cpus: 1, memoryBytes: 2 ** 30 }], kernel: "/k" };
  await place.call("POST", "/v1/vms", spec);
  await place.call("POST", "/v1/vms/demo/start");
  first.lead("running");
  const vm = () => place.call<Vm>("GET", "/v1/vms/demo");
  await until(async () => (await vm()).state === "running");
  const { since } = await place.host("a");
  // It is answered when there is something to read.
  const console_ = place.fetch("GET", "/v1/vms/demo/console");
  let text = "";
  let over = false;
  const reading = (async () => {
    for await (const chunk of (await console_).body ?? []) text += new TextDecoder().decode(chunk);
    over = true;
  })();
  const opened = () => first.orders.find((m) => m.type === "console_open");
  await until(() => opened() !== undefined);
  // An order that waits for its answer, too.
  first.held = [];
  const asked = place.call("GET", "/v1/vms/demo/engines");
  await until(() => first.held?.length === 1);

  const second = first.again([...first.parts.values()]);
  second.moves = true;
  await place.connect(second);
  await until(() => place.events.includes("host_certificate"));
  const order = opened();
  if (order?.type !== "console_open") throw new Error("no console");
  const say = (words: string) => {
    const data = Buffer.from(words).toString("base64");
    first.tell({ type: "console", stream: order.stream, data });
  };
  say("still here");
  await until(() => text === "still here");
  for (const answer of first.held.splice(0)) answer();
  expect(await asked).toMatchObject({ name: "demo", state: "running" });
  expect(first.ended).toBeUndefined();
  // What is new goes over the new one.
  await place.call("POST", "/v1/vms/demo/stop");
  expect([second.orders.at(-1)?.type, first.orders.at(-1)?.type]).toEqual(["stop", "ask"]);
  expect(over).toBe(false);
  first.tell({ type: "console_end", stream: order.stream });
  await reading;
  await until(() => first.ended !== undefined);
  expect([(await vm()).state, (await place.host("a")).since]).toEqual(["running", since]);
  expect(place.events.filter((event) => /^host_(up|silent)$/.test(event))).toEqual(["host_up"]);
  // One that does not say so is an agent that was started again.
  const third = second.again();
  await place.connect(third);
  await until(() => second.ended !== undefined);
});

test("what a connection that takes over does not know of goes on", async () => {
  const place = await Place.start();
  const first = await place.agent("a");
  const spec = { name: "demo", nodes: [{ cpus: 1, memoryBytes: 2 ** 30 }], kernel: "/k" };
  await place.call("POST", "/v1/vms", spec);
  // It greets before it is ordered to lead, and takes over after that; or before it has answered.
  for (const late of [false, true]) {
    const second = first.again();
    second.moves = true;
    if (late) first.held = [];
    const started = place.call("POST", "/v1/vms/demo/start");
    if (late) await until(() => first.held?.length === 1);
    else await started;
    await place.connect(second);
    await until(() => place.events.includes("host_certificate"));
    for (const answer of first.held?.splice(0) ?? []) answer();
    await started;
    for (const part of first.parts.values()) second.report(part);
    second.lead("running");
    await until(async () => (await place.call<Vm>("GET", "/v1/vms/demo")).state === "running");
    expect(second.orders.map(({ type }) => type)).not.toContain("stop");
    second.lead("ended", { kind: "stopped", reason: "requested", text: "stopped" });
    await until(async () => (await place.call<Vm>("GET", "/v1/vms/demo")).state === "stopped");
    first.parts.clear();
    place.events.length = 0;
    first.held = undefined;
    await place.connect(first);
  }
});

test("a host comes back by a token for its name; its older certificate is void", async () => {
  const place = await Place.start();
  const agent = await place.agent("a");
  const refused = await place.fetch("POST", "/v1/tokens", { seconds: 9, host: "a" });
  expect([refused.status, await refused.json()]).toMatchObject([
    409,
    { error: { hint: expect.stringContaining("token --rejoin a lets it come back") } },
  ]);
  for (const wish of [{ host: "none" }, {}]) {
    const answer = await place.fetch("POST", "/v1/tokens", { seconds: 9, rejoin: true, ...wish });
    expect([answer.status, await answer.json()]).toMatchObject([
      404,
      { error: { code: "host_unknown" } },
    ]);
  }
  const token = await place.token("a", true);
  // Whoever has the older one renews it as often as it can meanwhile.
  let newest = agent;
  const renewing = (async () => {
    while (agent.ended === undefined) {
      const { request, key } = await requestLeaf({ name: "a", role: "node" });
      const answer = await Promise.race([renew(agent, request), Bun.sleep(1000)]);
      if (answer?.type !== "renewed") continue;
      newest = agent.with({ certificate: answer.certificate, key, ca: answer.ca });
    }
  })();
  await until(() => newest !== agent);
  const back = await FakeAgent.join(token, "a");
  await until(() => agent.ended !== undefined);
  await renewing;
  await place.connect(back);
  for (const old of [agent, newest]) {
    expect(await old.again().connect()).toMatchObject({
      ...{ type: "refused", fault: { code: "peer_refused" } },
    });
  }
  expect((await place.call<Host[]>("GET", "/v1/hosts")).length).toBe(1);
  await expect(FakeAgent.join(token, "a")).rejects.toThrow("not valid (any more)");
});

test("a certificate that ended: the host is listed so, and is not let in", async () => {
  const place = await Place.start(3000);
  const agent = await place.agent("a");
  const end = Date.parse((await place.host("a")).certificate?.expiresAt ?? "");
  agent.channel?.end("off");
  // It is valid until that second is over.
  await until(async () => (await place.host("a")).state === "silent" && Date.now() > end + 1000);
  expect((await place.host("a")).why).toMatch(/^its certificate ended on \d{4}-\d\d-\d\d/);
  await expect(agent.again().connect()).rejects.toThrow();
});
