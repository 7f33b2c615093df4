// What an agent tells the newer of two connections to its coordinator, which has heard of what came
// before its greeting only: a coordinator of the test's welcomes it when the test says.

import { afterAll, expect, test } from "bun:test";
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { freePorts } from "../base/free-ports.fixture.ts";
import { until } from "../base/until.fixture.ts";
import { LineChannel } from "../control/line-channel.ts";
import type { FromAgent, Part, ToAgent } from "../control/messages.ts";
import { hostFacts } from "../node/host-facts.ts";
import type { CpuDump } from "../node/last-words.ts";
import { requestLeaf } from "../tls/certificate.ts";
import { loadCredentials } from "../tls/credentials.ts";
import { MtlsListener } from "../tls/mtls.ts";
import { PkiFolder } from "../tls/pki-folder.ts";
import { Agent } from "./agent.ts";
import { NodeState } from "./node-state.ts";

const base = mkdtempSync(join(tmpdir(), "ssihv-hand-over-"));
afterAll(() => rmSync(base, { recursive: true, force: true }));
const ENGINE = join(import.meta.dir, "..", "node", "fake-engine.fixture.ts");
const HOST = "127.0.0.1";
const LEAF = { name: "a", role: "node", hosts: [], days: 30 } as const;
const RUN = "0".repeat(32);
const WELCOME = { type: "welcome", heartbeatMs: 1000, silenceMs: 10_000 } as const;

/** One connection of the agent's. */
class Heard {
  readonly messages: FromAgent[] = [];
  channel: LineChannel | undefined;

  tell(message: ToAgent): void {
    this.channel?.send(message);
  }

  all<T extends FromAgent["type"]>(type: T): Extract<FromAgent, { type: T }>[] {
    return this.messages.filter((m): m is Extract<FromAgent, { type: T }> => m.type === type);
  }

  /** As it was told last. */
  get part(): Part["state"] | undefined {
    return this.all("part").at(-1)?.part.state;
  }
}

test("what happens between greeting and welcome is told on the new connection, too", async () => {
  const pki = await PkiFolder.create(join(base, "pki"));
  await pki.issue({ name: "coordinator", role: "coordinator", hosts: [], days: 10 });
  const credentials = () => loadCredentials(pki.fileOf("coordinator"), pki.caFile);
  const heard: Heard[] = [];
  const listener = await MtlsListener.open({
    ...{ hostname: HOST, port: 0, credentials: credentials(), roles: ["node"] },
    onConnection: ({ socket }) => {
      const one = new Heard();
      heard.push(one);
      one.channel = new LineChannel(socket, {
        onMessage: (message) => one.messages.push(message as FromAgent),
        onEnd: () => undefined,
      });
    },
  });
  const state = new NodeState(join(base, "a"));
  state.prepare();
  const { request, key } = await requestLeaf(LEAF);
  const certificate = await pki.sign(request, LEAF);
  const where = { coordinatorHost: HOST, agentPort: listener.port };
  state.save({ name: "a", certificate, key, ca: pki.bundle(), ...where });
  const kernel = join(base, "kernel");
  writeFileSync(kernel, "k");
  const agent = new Agent(
    state,
    {
      ...{ build: "test", check: { verdict: "fit", problems: [] }, runsVcpus: true },
      capacity: { cpus: 4, memoryBytes: 2 ** 32 },
    },
    {
      facts: hostFacts,
      createPage: () => {
        const fd = openSync("/dev/null", "r+");
        const words = { ...{ kind: 0, signo: 0, vcpu: 0, text_len: 0, address: 0n } };
        return {
          ...{ fd, close: () => closeSync(fd), cpuDump: () => ({ valid: 0 }) as CpuDump },
          lastWords: () => ({ ...words, text: new Uint8Array() }),
        };
      },
      engineCommand: [process.execPath, ENGINE],
      say: () => undefined,
    },
  );
  const ran = agent.run();
  try {
    await until(() => heard[0]?.all("hello").length === 1);
    const first = heard[0] as Heard;
    first.tell(WELCOME);
    const node = { cpus: 1, memoryBytes: 128 << 20 };
    const spec = { name: "demo", nodes: [node], kernel };
    const listen = { listenHost: HOST, listenPort: freePorts() };
    first.tell({ type: "lead", id: 1, run: RUN, key: "0".repeat(64), spec, ...listen });
    await until(() => first.part === "running");

    await pki.rotateCa();
    await pki.rotate();
    listener.replaceCredentials(credentials());
    first.tell({ type: "trust", trust: { ca: pki.bundle(), issuer: pki.issuer().fingerprint } });
    await until(() => first.all("renew").length === 1);
    const asked = first.all("renew")[0]?.request ?? "";
    first.tell({ type: "renewed", certificate: await pki.sign(asked, LEAF), ca: pki.bundle() });
    await until(() => heard[1]?.all("hello").length === 1);
    const second = heard[1] as Heard;
    const [hello] = second.all("hello");
    expect([hello?.moves, hello?.parts.map((part) => part.state)]).toEqual([true, ["running"]]);

    first.tell({ type: "stop", id: 2, run: RUN });
    await until(() => first.part === "ended");
    second.tell(WELCOME);
    await until(() => second.part === "ended");
  } finally {
    await agent.stop();
    await ran;
    listener.close();
  }
});
