// Engines of one VM driven by the test itself, in their parent's place, from the built binary: all
// messages and the shared pages are at hand, and the lanes between them can be held up or cut. The
// guests are those of tiny-guest.ts; node 0 has the only vCPU that runs.

import { randomBytes } from "node:crypto";
import type { EngineOptions, EnginePlan, FromEngine, ToEngine } from "../../src/engine/messages.ts";
import { SharedPage } from "../../src/native/shared-page.ts";
import { type EngineExit, EngineProcess } from "../../src/node/engine-process.ts";
import { agreeOnCpu } from "../../src/node/vm-cpu.ts";
import { LaneProxy } from "./lane-proxy.ts";
import { binary, temporaryFolder } from "./support.ts";
import { writeGuest } from "./tiny-guest.ts";

export type Stopped = Extract<FromEngine, { type: "stopped" }>;

const NODE_BYTES = 128 << 20;

export interface EnginesOptions {
  readonly nodes: number;
  readonly code: readonly (readonly number[])[];
  readonly peerTimeoutMs?: number;
  readonly stallFreezeMs?: number;
}

export class EngineUnderTest {
  readonly node: number;
  readonly messages: FromEngine[] = [];
  readonly page: SharedPage;
  console = "";
  exit: EngineExit | undefined;
  readonly process: EngineProcess;

  constructor(node: number) {
    this.node = node;
    this.page = SharedPage.create();
    this.process = new EngineProcess({
      vm: "tiny",
      node,
      page: this.page,
      memoryOnly: false,
      sandbox: { mode: "auto" },
      console: node === 0,
      command: [binary, "engine", `tiny/${node}`],
      hooks: {
        onMessage: (message) => this.messages.push(message),
        onStderr: (text) => console.error(`engine ${node}: ${text}`),
        onConsole: (chunk) => {
          this.console += new TextDecoder().decode(chunk);
        },
      },
    });
    void this.process.exited.then((exit) => {
      this.exit = exit;
    });
  }

  get hasStarted(): boolean {
    const failed = this.messages.find(({ type }) => type === "failed");
    if (failed !== undefined) throw new Error(JSON.stringify(failed));
    return this.messages.some(({ type }) => type === "started");
  }

  get stopped(): Stopped | undefined {
    return this.messages.find((message) => message.type === "stopped");
  }

  /** What it told its user, a line each. */
  get notices(): string {
    return this.messages.flatMap((each) => (each.type === "notice" ? [each.text] : [])).join("\n");
  }

  get freezes(): number {
    return Number(this.page.stats().freezes);
  }

  /** Times it said that it goes on. */
  get wentOn(): number {
    return this.notices.split("went on").length - 1;
  }

  get frozenMs(): number {
    return Number(this.page.stats().frozen_ns) / 1e6;
  }

  send(message: ToEngine): void {
    this.process.send(message);
  }

  signal(name: "SIGSTOP" | "SIGCONT" | "SIGKILL"): void {
    process.kill(this.process.pid, name);
  }
}

/** Until it holds; the limit is for a defect, which must not hang the suite. */
export async function until(what: string, holds: () => boolean): Promise<void> {
  const end = Date.now() + 60_000;
  while (!holds()) {
    if (Date.now() > end) throw new Error(`never happened: ${what}`);
    await Bun.sleep(5);
  }
}

export class Engines implements AsyncDisposable {
  readonly all: EngineUnderTest[];
  /** By lower and higher node: "0-1". */
  readonly proxies = new Map<string, LaneProxy>();
  private readonly folder = temporaryFolder();

  private constructor(nodes: number) {
    this.all = Array.from({ length: nodes }, (_, node) => new EngineUnderTest(node));
  }

  static async start(options: EnginesOptions): Promise<Engines> {
    const engines = new Engines(options.nodes);
    const { all, folder, proxies } = engines;
    const kernel = `${folder.path}/bzImage`;
    writeGuest(kernel, ...options.code);
    const address = (node: number) => `unix:${folder.path}/node-${node}`;
    for (const { node: low } of all) {
      for (const { node: high } of all.slice(low + 1)) {
        const pair = `${low}-${high}`;
        proxies.set(pair, new LaneProxy(`${folder.path}/${pair}`, `${folder.path}/node-${low}`));
      }
    }
    const key = randomBytes(32).toString("hex");
    await until("all engines ready", () => all.every(({ messages }) => messages.length > 0));
    const cpuModel = agreeOnCpu(
      all.flatMap(({ messages }) =>
        messages.flatMap((each) => (each.type === "ready" ? [each.capabilities] : [])),
      ),
      1,
    );
    for (const engine of all) {
      const peers = all
        .filter((peer) => peer !== engine)
        .map(({ node }) => {
          // The higher node connects: through the proxy.
          const through = `unix:${folder.path}/${node}-${engine.node}`;
          return { node, address: node < engine.node ? through : address(node) };
        });
      const lane = { listen: address(engine.node), peers, key };
      const plan = planOf(options, kernel, engine.node);
      engine.send({ type: "start", plan: { ...plan, cpuModel, lane } });
    }
    await until("all engines started", () => all.every((engine) => engine.hasStarted));
    return engines;
  }

  engine(node: number): EngineUnderTest {
    const engine = this.all[node];
    if (engine === undefined) throw new RangeError(`no node ${node}`);
    return engine;
  }

  proxy(pair: string): LaneProxy {
    const proxy = this.proxies.get(pair);
    if (proxy === undefined) throw new RangeError(`no lane ${pair}`);
    return proxy;
  }

  type(text: string): Promise<void> {
    return this.engine(0).process.writeConsole(new TextEncoder().encode(text));
  }

  /** Every engine has said how it ended. */
  async allStopped(): Promise<(Stopped | undefined)[]> {
    await until("all engines stopped", () => this.all.every(({ stopped }) => stopped));
    return this.all.map(({ stopped }) => stopped);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { process, exit } of this.all) if (exit === undefined) process.kill();
    await Promise.all(this.all.map(({ process }) => process.exited));
    for (const proxy of this.proxies.values()) proxy.close();
    for (const { page } of this.all) page.close();
    this.folder[Symbol.dispose]();
  }
}

function planOf(options: EnginesOptions, kernel: string, node: number): EnginePlan {
  const engine: EngineOptions = {
    onReset: "restart",
    pageTables: "strict",
    clockDilation: 1,
    peerTimeoutMs: options.peerTimeoutMs ?? 30_000,
    stallFreezeMs: options.stallFreezeMs ?? 300,
    holdUsMax: 1000,
    pollUsMax: 0,
    plainMemory: false,
    pinVcpus: false,
    report: false,
  };
  const nodes = Array.from({ length: options.nodes }, (_, id) => {
    return { id, vcpus: 1, memoryBytes: NODE_BYTES };
  });
  return { name: "tiny", node, nodes, kernel, cmdline: "", options: engine };
}

/** The first page of node 1's RAM, and the end of it. */
export const NODE_1 = { first: NODE_BYTES, end: 2 * NODE_BYTES } as const;
