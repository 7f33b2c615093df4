// Agents with fake engines under a real coordinator, all in this process: from the token to the end
// of a VM, with the coordinator away in between, and what is told when something dies.

import { afterAll, afterEach, beforeAll, expect, test } from "bun:test";
import {
  closeSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Token, Vm } from "../../coordinator/api-schemas.ts";
import { Coordinator } from "../../coordinator/coordinator.ts";
import { askApi } from "../../coordinator/local-api.fixture.ts";
import { freePorts } from "../base/free-ports.fixture.ts";
import { until } from "../base/until.fixture.ts";
import { joinCluster } from "../control/join-client.ts";
import type { ParentPage } from "../node/engine-process.ts";
import { hostFacts } from "../node/host-facts.ts";
import type { CpuDump } from "../node/last-words.ts";
import { PkiFolder } from "../tls/pki-folder.ts";
import { Agent, type AgentDeps } from "./agent.ts";
import { NodeState } from "./node-state.ts";

const base = mkdtempSync(join(tmpdir(), "ssihv-agent-"));
const runtime = join(base, "run");
const before = process.env["SSIHV_RUNTIME_DIR"];
const kernel = join(base, "kernel");
const ENGINE = join(import.meta.dir, "..", "node", "fake-engine.fixture.ts");
const MIB = 2 ** 20;
let pki: PkiFolder;

beforeAll(async () => {
  process.env["SSIHV_RUNTIME_DIR"] = runtime;
  mkdirSync(runtime, { mode: 0o700 });
  writeFileSync(kernel, "k");
  pki = await PkiFolder.create(join(base, "pki"));
  await pki.issue({ name: "coordinator", role: "coordinator", hosts: [], days: 10 });
});
afterAll(() => {
  if (before === undefined) delete process.env["SSIHV_RUNTIME_DIR"];
  else process.env["SSIHV_RUNTIME_DIR"] = before;
  rmSync(base, { recursive: true, force: true });
});

function page(): ParentPage {
  const fd = openSync("/dev/null", "r+");
  return {
    fd,
    close: () => closeSync(fd),
    cpuDump: () => ({ valid: 0 }) as CpuDump,
    lastWords: () => ({
      ...{ kind: 0, signo: 0, vcpu: 0, text_len: 0, address: 0n },
      text: new Uint8Array(),
    }),
  };
}

/** A coordinator, its agents and its operator. */
class Cluster {
  coordinator: Coordinator | undefined;
  onOrder: () => void = () => undefined;
  readonly said: string[] = [];
  private readonly folder = mkdtempSync(join(base, "cluster-"));
  private readonly port = freePorts(3);
  private readonly vmPorts = freePorts(16);
  readonly agents = new Map<string, { agent: Agent; ran: Promise<void> }>();

  async up(): Promise<void> {
    this.coordinator = await Coordinator.start({
      ...{ version: "test", host: "127.0.0.1", port: this.port, advertise: "127.0.0.1" },
      certs: pki.path,
      stateFolder: join(this.folder, "state"),
      adminSocket: join(this.folder, "run", "coordinator.api"),
      ...{ heartbeatMs: 50, silenceMs: 2000, portBase: this.vmPorts },
      hostCertificateMs: 10 * 86_400_000,
      say: () => undefined,
    });
  }

  async down(): Promise<void> {
    await this.coordinator?.close();
    this.coordinator = undefined;
  }

  fetch(method: string, path: string, body?: unknown): Promise<Response> {
    return askApi(join(this.folder, "run", "coordinator.api"), method, path, body);
  }

  async call<T>(method: string, path: string, body?: unknown): Promise<T> {
    const response = await this.fetch(method, path, body);
    const text = await response.text();
    if (!response.ok) throw new Error(text);
    return (text === "" ? undefined : JSON.parse(text)) as T;
  }

  async host(name: string): Promise<Agent> {
    const { token } = await this.call<Token>("POST", "/v1/tokens", { seconds: 60 });
    const state = new NodeState(join(this.folder, name));
    state.prepare();
    state.save(await joinCluster(token, name));
    return this.agent(name);
  }

  /** Of a host that has joined. */
  async agent(name: string): Promise<Agent> {
    const deps: AgentDeps = {
      facts: () => {
        this.onOrder();
        return hostFacts();
      },
      createPage: page,
      engineCommand: [process.execPath, ENGINE],
      say: (text) => this.said.push(`${name}: ${text}`),
    };
    const check = { verdict: "fit" as const, problems: [] };
    const capacity = { cpus: 4, memoryBytes: 4096 * MIB };
    const options = { build: "test", capacity, check, runsVcpus: true };
    const agent = new Agent(new NodeState(join(this.folder, name)), options, deps);
    this.agents.set(name, { agent, ran: agent.run() });
    await until(async () => {
      const host = await this.call<{ state: string }>("GET", `/v1/hosts/${name}`);
      return host.state === "up";
    });
    return agent;
  }

  async boot(name: string, cmdline: string, nodes = 1): Promise<Vm> {
    const node = { cpus: 1, memoryBytes: 128 * MIB };
    const shape = Array.from({ length: nodes }, () => node);
    await this.call("POST", "/v1/vms", { name, nodes: shape, kernel, cmdline });
    return await this.call<Vm>("POST", `/v1/vms/${name}/start`);
  }

  vm(name: string): Promise<Vm> {
    return this.call("GET", `/v1/vms/${name}`);
  }

  async vmIs(name: string, state: Vm["state"]): Promise<Vm> {
    await until(async () => (await this.vm(name)).state === state);
    return await this.vm(name);
  }

  async close(): Promise<void> {
    for (const { agent, ran } of this.agents.values()) {
      await agent.stop();
      await ran;
    }
    await this.down();
  }
}

const open: Cluster[] = [];
afterEach(async () => {
  for (const cluster of open.splice(0)) await cluster.close();
  // No socket of a VM is left, whatever the test did.
  expect(readdirSync(runtime)).toEqual([]);
});

async function cluster(...hosts: string[]): Promise<Cluster> {
  const made = new Cluster();
  open.push(made);
  await made.up();
  for (const host of hosts) await made.host(host);
  return made;
}

/** Reads a console until it has shown the text. */
class Reader {
  text = "";
  ended = false;

  constructor(body: ReadableStream<Uint8Array>) {
    void this.read(body);
  }

  shows(text: string): Promise<void> {
    return until(() => this.text.includes(text));
  }

  private async read(body: ReadableStream<Uint8Array>): Promise<void> {
    for await (const chunk of body) this.text += new TextDecoder().decode(chunk);
    this.ended = true;
  }
}

async function console_(cluster: Cluster, name: string, write = false) {
  const response = await cluster.fetch(
    "GET",
    `/v1/vms/${name}/console${write ? "?write=true" : ""}`,
  );
  expect(response.status).toBe(200);
  const { body, headers } = response;
  return {
    reader: new Reader(body as ReadableStream<Uint8Array>),
    writer: headers.get("x-ssihv-writer"),
  };
}

test("a VM of one node: is looked at, shows its console to all, hears one, stops", async () => {
  const place = await cluster("a");
  await place.boot("demo", "say=hello repeat");
  await place.vmIs("demo", "running");
  const shown = await place.call<{ nodes: unknown[] }>("GET", "/v1/vms/demo/engines");
  expect(shown).toMatchObject({ name: "demo", nodes: [{ node: 0, silent: null }] });
  const pages = await place.call("GET", "/v1/vms/demo/pages?gpa=0x1000&count=2");
  expect(pages).toMatchObject({ vm: "demo", pages: [{ gpa: 0x1000 }, { gpa: 0x2000 }] });
  const hole = await place.fetch("GET", "/v1/vms/demo/pages?gpa=0xc0000000");
  expect(hole.status).toBe(422);

  const writing = await console_(place, "demo", true);
  await writing.reader.shows("hello");
  const late = await console_(place, "demo", true);
  await late.reader.shows("hello");
  expect([typeof writing.writer, late.writer]).toEqual(["string", null]);
  const data = Buffer.from("typed\n").toString("base64");
  await place.call("POST", "/v1/vms/demo/console", { writer: writing.writer, data });
  for (const { reader } of [writing, late]) await reader.shows("typed");
  const other = { writer: "0".repeat(32), data };
  expect((await place.fetch("POST", "/v1/vms/demo/console", other)).status).toBe(409);

  await place.call("POST", "/v1/vms/demo/stop");
  const { last, places } = await place.vmIs("demo", "stopped");
  expect([last?.reason, places]).toEqual(["requested", []]);
  await until(() => writing.reader.ended && late.reader.ended);
  await place.call("DELETE", "/v1/vms/demo");
});

test("over two hosts: each has its part, and an engine's death is told in its words", async () => {
  const place = await cluster("a", "b");
  await place.boot("demo", "", 2);
  const { places } = await place.vmIs("demo", "running");
  expect(places.map(({ host }) => host).sort()).toEqual(["a", "b"]);
  expect(readdirSync(runtime).sort()).toEqual(["demo.1.sock", "demo.sock"]);
  const shown = await place.call("GET", "/v1/vms/demo/engines");
  expect(shown).toMatchObject({ nodes: [{ node: 0 }, { node: 1 }] });
  const { nodes } = shown as { nodes: { pid: number }[] };
  process.kill(nodes[1]?.pid ?? 0, "SIGKILL");
  const { last } = await place.vmIs("demo", "failed");
  expect(last?.reason).toBe("engine_dead");
  expect(last?.text).toMatch(/the engine of node 1 .* was killed by SIGKILL/);
  await until(() => readdirSync(runtime).length === 0);
});

test("without the coordinator VMs go on; what ended meanwhile is told afterwards", async () => {
  const place = await cluster("a", "b");
  await place.boot("long", "", 2);
  await place.boot("short", "");
  const { places, since } = await place.vmIs("long", "running");
  await place.vmIs("short", "running");
  const short = await place.call<{ nodes: { pid: number }[] }>("GET", "/v1/vms/short/engines");
  await place.down();
  const heard = () => place.said.filter((line) => line.includes("trying again")).length;
  await until(() => heard() >= 2);
  process.kill(short.nodes[0]?.pid ?? 0, "SIGKILL");
  await until(() => place.said.some((line) => line.includes("killed by SIGKILL")));
  await place.up();
  expect(await place.vmIs("long", "running")).toMatchObject({ places: [...places], since });
  expect((await place.vmIs("short", "failed")).last?.text).toContain("killed by SIGKILL");
});

test("what a VM is to be reaches its engines", async () => {
  const place = await cluster("a", "b");
  const spec = {
    ...{ name: "demo", kernel, cmdline: "only=0 plan" },
    nodes: [
      { cpus: 2, memoryBytes: 128 * MIB, host: "b" },
      { cpus: 1, memoryBytes: 192 * MIB },
    ],
    ...{ reboot: false, pageTables: "strict", clockDilation: 3, peerTimeoutMs: 7000 },
    ...{ holdUsMax: 500, cacheBytes: 80 * MIB, balloonBytes: 32 * MIB },
    memoryLatencyNs: [
      [90, 400],
      [400, 90],
    ],
  };
  await place.call("POST", "/v1/vms", spec);
  await place.call("POST", "/v1/vms/demo/start");
  const { reader } = await console_(place, "demo");
  await reader.shows("\n");
  const plan = JSON.parse(reader.text.split("\n")[0] ?? "");
  expect(plan).toMatchObject({
    ...{ name: "demo", node: 0, kernel, memoryCosts: { latencyNs: spec.memoryLatencyNs } },
    balloonBytes: 32 * MIB,
    nodes: [
      { id: 0, vcpus: 2, memoryBytes: 128 * MIB, cacheBytes: 80 * MIB },
      { id: 1, vcpus: 1, memoryBytes: 192 * MIB, cacheBytes: 80 * MIB },
    ],
    options: {
      ...{ onReset: "stop", clockDilation: 3, peerTimeoutMs: 7000, stallFreezeMs: 900 },
      ...{ holdUsMax: 500, pageTables: "strict", plainMemory: false },
    },
  });
  expect(plan.cmdline).toContain("only=0 plan");
  expect((await place.vm("demo")).places.map(({ host }) => host)).toEqual(["b", "a"]);
});

test("what cannot start is refused with the host's words, and holds nothing", async () => {
  const place = await cluster("a");
  await expect(place.boot("none", "").then(() => place.boot("none", ""))).rejects.toThrow(
    "already",
  );
  const missing = { name: "bad", nodes: [{ cpus: 1, memoryBytes: MIB * 64 }], kernel: "/none" };
  await place.call("POST", "/v1/vms", missing);
  await expect(place.call("POST", "/v1/vms/bad/start")).rejects.toThrow("host a: --kernel: kernel");
  expect(await place.vm("bad")).toMatchObject({ state: "failed", places: [] });
});

test("an agent that is ended ends its VMs in order, and says so", async () => {
  const place = await cluster("a", "b");
  await place.boot("demo", "", 2);
  const { places } = await place.vmIs("demo", "running");
  await until(() => readdirSync(runtime).length === 2);
  const lead = places[0]?.host ?? "";
  await place.agents.get(lead)?.agent.stop();
  const { last } = await place.vmIs("demo", "stopped");
  expect(last?.reason).toBe("requested");
  // Started again it knows nothing of it, and takes new ones.
  await place.agent(lead);
  await place.call("POST", "/v1/vms/demo/start");
  await place.vmIs("demo", "running");
});

test("an agent that is ended in the middle of an order ends what it started", async () => {
  const place = await cluster("a");
  const { agent, ran } = place.agents.get("a") ?? {};
  // The host is looked at when an order has come, and before its engine is there.
  place.onOrder = () => void agent?.stop();
  await place.boot("demo", "").catch(() => undefined);
  await ran;
  expect(readdirSync(runtime)).toEqual([]);
  const { last, places } = await place.vmIs("demo", "stopped");
  expect([last?.reason, places]).toEqual(["requested", []]);
});

test("a host that is gone for good: the others tell that the VM has ended", async () => {
  const place = await cluster("a", "b");
  await place.boot("demo", "", 2);
  const { places } = await place.vmIs("demo", "running");
  const lead = places[0]?.host ?? "";
  const { agent } = place.agents.get(lead) ?? {};
  // Its connection and its engine, at once; it never says a word of it.
  const { link } = agent as unknown as { link: { channel: { end(why: string): void } } };
  link.channel.end("gone");
  (agent as unknown as { over: boolean }).over = true;
  agent?.killAll();
  const { last } = await place.vmIs("demo", "failed");
  expect(last?.text).toMatch(/^host [ab] tells: /);
  expect((await place.call<{ state: string }>("GET", `/v1/hosts/${lead}`)).state).toBe("silent");
});
