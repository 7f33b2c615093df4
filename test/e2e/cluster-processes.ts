// A cluster on this host from the built binary: a coordinator and agents as processes of their own,
// each with a runtime folder of its own, as on hosts of their own. All folders are below one that
// goes away, TMPDIR too, so whatever they leave behind is found.

import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Host, Vm } from "../../coordinator/api-schemas.ts";
import { askApi } from "../../coordinator/local-api.fixture.ts";
import { freePorts } from "../../src/base/free-ports.fixture.ts";
import { binary, type Finished, run } from "./support.ts";
import { asm, increment, say, writeGuest } from "./tiny-guest.ts";

const LINE_STATUS = 0x3fd;
const DATA_READY = 1;
const SERIAL = 0x3f8;
/** For ever, as these tests have it. */
export const ECHO: number[] = asm.repeat(1_000_000, [
  ...asm.waitFor(LINE_STATUS, DATA_READY),
  ...asm.echo(SERIAL),
]);
/** RAM of node 1: the second half of 256 MiB. */
const REMOTE = 192 << 20;
/** For the coordinator and its VMs. */
const PORTS = 3 + 16 * 3;

/** `what`: in words, or what makes them when it never came to be. */
export async function until(
  what: string | (() => string),
  holds: () => Promise<boolean> | boolean,
): Promise<void> {
  const end = Date.now() + 60_000;
  while (!(await holds())) {
    if (Date.now() > end) {
      throw new Error(`never happened: ${typeof what === "string" ? what : what()}`);
    }
    await Bun.sleep(20);
  }
}

/** Living children of a process. */
export function childrenOf(pid: number): number[] {
  const text = readFileSync(`/proc/${pid}/task/${pid}/children`, "utf8").trim();
  return text === "" ? [] : text.split(" ").map(Number);
}

export function isAlive(pid: number): boolean {
  try {
    // A zombie is not: nobody has taken its end yet, but it has ended.
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, "utf8"));
  } catch {
    return false;
  }
}

/** Which namespaces a process is in, as the kernel numbers them. */
export function namespacesOf(pid: number): string {
  const folder = `/proc/${pid}/ns`;
  return readdirSync(folder)
    .map((name) => readlinkSync(`${folder}/${name}`))
    .join(" ");
}

/** What a process holds, in numbers that must not grow. */
export function holdings(pid: number) {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  const maps = readFileSync(`/proc/${pid}/maps`, "utf8").split("\n");
  return {
    fds: readdirSync(`/proc/${pid}/fd`).length,
    sharedPages: maps.filter((line) => line.includes("memfd:")).length,
    threads: readdirSync(`/proc/${pid}/task`).length,
    children: childrenOf(pid).length,
    namespaces: namespacesOf(pid),
    residentMib: Math.round(Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1] ?? 0) / 1024),
  };
}

/** One of the cluster's processes, which can be killed and started again. */
export class Daemon {
  private readonly command: readonly string[];
  private readonly env: Record<string, string | undefined>;
  private child: Bun.Subprocess<"pipe", "ignore", "pipe"> | undefined;
  text = "";

  constructor(command: readonly string[], env: Record<string, string | undefined>) {
    this.command = command;
    this.env = env;
  }

  get pid(): number {
    if (this.child === undefined) throw new Error("it does not run");
    return this.child.pid;
  }

  start(...more: string[]): Bun.Subprocess<"pipe", "ignore", "pipe"> {
    this.child = Bun.spawn([...this.command, ...more], {
      env: { ...process.env, ...this.env },
      stdin: "pipe",
      stdout: "ignore",
      stderr: "pipe",
    });
    void this.listen(this.child.stderr);
    return this.child;
  }

  says(text: string, from = 0): Promise<void> {
    return until(
      () => `"${text}" in\n${this.text}`,
      () => this.text.includes(text, from),
    );
  }

  /** As by the kernel's out-of-memory killer: nothing of it runs any more. */
  async kill(): Promise<void> {
    this.child?.kill("SIGKILL");
    await this.child?.exited;
  }

  async end(): Promise<number | undefined> {
    this.child?.kill("SIGTERM");
    return await this.child?.exited;
  }

  private async listen(stream: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of stream) this.text += decoder.decode(chunk, { stream: true });
  }
}

export interface Shown extends Vm {
  readonly engines: { readonly nodes: readonly { readonly pid: number }[] } | null;
}

export class Cluster implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), "ssihv-e2e-cluster-"));
  readonly coordinator: Daemon;
  readonly agents = new Map<string, Daemon>();
  readonly apiPort: number;
  private readonly env: Record<string, string | undefined>;

  private constructor() {
    const first = freePorts(PORTS);
    this.apiPort = first;
    const tmp = join(this.folder, "tmp");
    mkdirSync(tmp);
    this.env = {
      TMPDIR: tmp,
      SSIHV_CERTS: join(this.folder, "certs"),
      SSIHV_COORDINATOR: undefined,
      SSIHV_RUNTIME_DIR: join(this.folder, "run"),
    };
    const flags = ["--listen", `127.0.0.1:${first}`, "--vm-ports", String(first + 3)];
    const state = ["--state", join(this.folder, "coordinator")];
    this.coordinator = new Daemon([binary, "coordinator", ...flags, ...state], this.env);
  }

  static async start(...hosts: string[]): Promise<Cluster> {
    const cluster = new Cluster();
    // Its address: for clients that are not ssihv.
    await cluster.ok("certs", "init", "--host", "127.0.0.1");
    await cluster.startCoordinator();
    for (const host of hosts) await cluster.join(host);
    return cluster;
  }

  /** Another host, with flags of its own. */
  async join(host: string, ...more: string[]): Promise<void> {
    const token = (await this.ok("cluster", "token", host)).trim();
    // The guests of these tests run where a Linux would not.
    const flags = ["--state", join(this.folder, host), "--cpus", "2", "--memory", "2G", ...more];
    const command = [binary, "node", "--accept-unfit", ...flags];
    const agent = new Daemon(command, { ...this.env, SSIHV_RUNTIME_DIR: this.runtime(host) });
    this.agents.set(host, agent);
    const child = agent.start("--join", "-", "--name", host);
    child.stdin.write(`${token}\n`);
    child.stdin.end();
    await agent.says("coordinator: connected");
  }

  /** Until it answers; also again, after it was killed. */
  async startCoordinator(): Promise<void> {
    const from = this.coordinator.text.length;
    this.coordinator.start();
    await this.coordinator.says("API on port", from);
  }

  /** Admin sockets of an agent's VMs; its first VM makes the folder. */
  sockets(host: string): string[] {
    const folder = this.runtime(host);
    return existsSync(folder) ? readdirSync(folder) : [];
  }

  ssihv(...args: string[]): Promise<Finished> {
    return run([binary, ...args], { env: this.env });
  }

  async ok(...args: string[]): Promise<string> {
    const { code, out, err } = await this.ssihv(...args);
    if (code !== 0) throw new Error(`${args.join(" ")}: status ${code}\n${err}`);
    return out;
  }

  /** As seen on a host without the coordinator. */
  local(host: string, ...args: string[]): Promise<Finished> {
    const env = { ...this.env, SSIHV_RUNTIME_DIR: this.runtime(host) };
    return run([binary, ...args, "--local"], { env });
  }

  agent(host: string): Daemon {
    const agent = this.agents.get(host);
    if (agent === undefined) throw new Error(`no agent ${host}`);
    return agent;
  }

  /** What the API answers on its local socket; a process for each question would be slow. */
  async call<T>(method: string, path: string, body?: unknown): Promise<T> {
    const response = await askApi(join(this.folder, "run", "coordinator.api"), method, path, body);
    const text = await response.text();
    if (!response.ok) throw new Error(`${method} ${path}: ${text}`);
    return (text === "" ? undefined : JSON.parse(text)) as T;
  }

  async vmIs(name: string, state: Vm["state"]): Promise<Vm> {
    let vm: Vm | undefined;
    await until(`VM ${name} is ${state}`, async () => {
      vm = await this.call<Vm>("GET", `/v1/vms/${name}`);
      return vm.state === state;
    });
    if (vm === undefined) throw new Error("unreachable");
    return vm;
  }

  async hostIs(name: string, state: Host["state"]): Promise<Host> {
    let host: Host | undefined;
    await until(`host ${name} is ${state}`, async () => {
      host = await this.call<Host>("GET", `/v1/hosts/${name}`);
      return host.state === state;
    });
    if (host === undefined) throw new Error("unreachable");
    return host;
  }

  async show(name: string): Promise<Shown> {
    return JSON.parse(await this.ok("vm", "show", name, "--json")) as Shown;
  }

  /** Engines of all agents. */
  engines(): number[] {
    return [...this.agents.values()].flatMap(({ pid }) => childrenOf(pid));
  }

  /** A guest that says hello, uses a page of the other node, and echoes what is typed. */
  vmFile(name: string): string {
    const nodes = "  - { cpus: 1, memory: 128M }\n".repeat(2);
    return this.file(name, `nodes:\n${nodes}`, increment(REMOTE), say("hello"), ECHO);
  }

  /** `shape`: the nodes, and what differs from the defaults. */
  file(name: string, shape: string, ...code: readonly (readonly number[])[]): string {
    const kernel = join(this.folder, `${name}.guest`);
    writeGuest(kernel, ...code);
    const file = join(this.folder, `${name}.yaml`);
    writeFileSync(file, `name: ${name}\n${shape}kernel: ${kernel}\n`);
    return file;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const daemon of [...this.agents.values(), this.coordinator]) await daemon.end();
    rmSync(this.folder, { recursive: true, force: true });
  }

  private runtime(host: string): string {
    return join(this.folder, `run-${host}`);
  }
}
