// Three coordinators over one etcd, agents and VMs from the built binary: whoever leads is killed,
// hangs, or is cut from etcd, another takes over, and engines and guests notice nothing.

import { describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Host, Vm } from "../../coordinator/api-schemas.ts";
import { freePorts } from "../../src/base/free-ports.fixture.ts";
import { Etcd } from "../etcd.ts";
import { childrenOf, Daemon, ECHO, isAlive, until } from "./cluster-processes.ts";
import { binary, hasKvm, run } from "./support.ts";
import { increment, say, writeGuest } from "./tiny-guest.ts";

const LEASE_S = 2;
const COORDINATORS = 3;
const PORTS_EACH = 3;
/** For them and a VM. */
const PORTS = COORDINATORS * PORTS_EACH + 16;
/** RAM of node 1. */
const REMOTE = 192 << 20;
const HOSTS = ["host-a", "host-b"] as const;
/** Moments of a start at which the leader is killed. */
const KILLS = 3;
const KILL_STEP_MS = 6;

/** `ssihv top`, which looks all the time. */
class Top implements AsyncDisposable {
  private readonly child: Bun.Subprocess<"ignore", "pipe", "pipe">;
  private text = "";

  constructor(command: readonly string[], env: Record<string, string | undefined>) {
    this.child = Bun.spawn([...command], {
      ...{ stdin: "ignore", stdout: "pipe", stderr: "pipe" },
      env: { ...process.env, ...env },
    });
    void this.listen();
  }

  private async listen(): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of this.child.stdout) this.text += decoder.decode(chunk);
  }

  /** From now on it tells numbers of the VM's nodes. */
  async shows(): Promise<void> {
    const from = this.text.length;
    await until(
      () => `top shows the VM: ${this.text.slice(from)}`,
      () => /"nodes":\[\{/.test(this.text.slice(from)),
    );
  }

  /** It has said nothing else. */
  async end(): Promise<void> {
    await this[Symbol.asyncDispose]();
    expect(await new Response(this.child.stderr).text()).toBe("");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.child.kill("SIGINT");
    await this.child.exited;
  }
}

class Three implements AsyncDisposable {
  readonly folder = mkdtempSync(join(tmpdir(), "ssihv-e2e-etcd-"));
  readonly etcd: Etcd;
  readonly agents = new Map<string, Daemon>();
  readonly coordinators: readonly {
    readonly api: string;
    readonly socket: string;
    readonly metrics: string;
    readonly daemon: Daemon;
  }[];
  private readonly env: Record<string, string | undefined>;

  private constructor(etcd: Etcd) {
    this.etcd = etcd;
    const first = freePorts(PORTS);
    const vmPorts = String(first + COORDINATORS * PORTS_EACH);
    const places = Array.from({ length: COORDINATORS }, (_, i) => first + i * PORTS_EACH);
    const apis = places.map((port) => `127.0.0.1:${port}`);
    this.env = {
      SSIHV_CERTS: join(this.folder, "certs"),
      SSIHV_COORDINATOR: apis.join(","),
      SSIHV_RUNTIME_DIR: join(this.folder, "run"),
    };
    this.coordinators = apis.map((api, i) => {
      const socket = join(this.folder, `run-${i}`, "coordinator.api");
      const shared = ["--store", `etcd=${etcd.endpoint}`, "--lease", String(LEASE_S)];
      const metrics = `127.0.0.1:${freePorts()}`;
      const own = ["--listen", api, "--socket", socket, "--vm-ports", vmPorts].concat([
        "--metrics",
        metrics,
      ]);
      return {
        ...{ api, socket, metrics },
        daemon: new Daemon([binary, "coordinator", ...own, ...shared], this.env),
      };
    });
  }

  static async start(): Promise<Three> {
    const three = new Three(await Etcd.start());
    await three.ok("certs", "init");
    for (const { daemon } of three.coordinators) {
      daemon.start();
      await until("it leads or stands by", () => /leads|stands by/.test(daemon.text));
    }
    for (const host of HOSTS) {
      const token = (await three.ok("cluster", "token", host)).trim();
      const state = ["--state", join(three.folder, host), "--cpus", "2", "--memory", "2G"];
      const runtime = { SSIHV_RUNTIME_DIR: join(three.folder, `run-${host}`) };
      const command = [binary, "node", "--accept-unfit", ...state];
      const agent = new Daemon(command, { ...three.env, ...runtime });
      three.agents.set(host, agent);
      agent.start("--join", token, "--name", host);
      await agent.says("coordinator: connected");
      const file = join(three.folder, host, "node.json");
      await until("it knows all coordinators", () => {
        return JSON.parse(readFileSync(file, "utf8")).coordinators?.length === COORDINATORS;
      });
    }
    return three;
  }

  ssihv(...args: string[]) {
    return run([binary, ...args], { env: this.env });
  }

  async ok(...args: string[]): Promise<string> {
    const { code, out, err } = await this.ssihv(...args);
    if (code !== 0) throw new Error(`${args.join(" ")}: status ${code}\n${err}`);
    return out;
  }

  /** As a script does that finds nobody leading: again. */
  async okSoon(...args: string[]): Promise<string> {
    let out = "";
    await until(`${args.join(" ")} is answered`, async () => {
      const finished = await this.ssihv(...args);
      out = finished.out;
      return finished.code === 0;
    });
    return out;
  }

  /** What whoever leads answers on its local socket, once one does; commands would be slow. */
  async ask<T>(path: string): Promise<T> {
    return (await this.answered(path)).body as T;
  }

  /** Who answers for the cluster. */
  async leader(): Promise<Daemon> {
    return (await this.answered("/v1/hosts")).by;
  }

  /** Both hosts are up at whoever leads. */
  async whole(): Promise<void> {
    await until("all hosts are up", async () => {
      const hosts = await this.ask<Host[]>("/v1/hosts");
      return hosts.length === HOSTS.length && hosts.every(({ state }) => state === "up");
    });
  }

  async vmIs(name: string, state: Vm["state"]): Promise<Vm> {
    let vm: Vm | undefined;
    await until(`VM ${name} is ${state}`, async () => {
      vm = await this.ask<Vm>(`/v1/vms/${name}`);
      return vm.state === state;
    });
    return vm as Vm;
  }

  private async answered(path: string): Promise<{ by: Daemon; body: unknown }> {
    let found: { by: Daemon; body: unknown } | undefined;
    await until(`${path} is answered`, async () => {
      for (const { daemon, socket } of this.coordinators) {
        const limit = { unix: socket, signal: AbortSignal.timeout(300) };
        const answer = await fetch(`http://x${path}`, limit).catch(() => undefined);
        if (answer?.ok) found = { by: daemon, body: await answer.json() };
      }
      return found !== undefined;
    });
    if (found === undefined) throw new Error("unreachable");
    return found;
  }

  top(name: string): Top {
    return new Top([binary, "top", name, "--json", "--interval", "200ms"], this.env);
  }

  engines(): number[] {
    return [...this.agents.values()].flatMap(({ pid }) => childrenOf(pid));
  }

  vmFile(name: string): string {
    const kernel = join(this.folder, `${name}.guest`);
    writeGuest(kernel, increment(REMOTE), say("hello"), ECHO);
    const nodes = "  - { cpus: 1, memory: 128M }\n".repeat(2);
    const file = join(this.folder, `${name}.yaml`);
    writeFileSync(file, `name: ${name}\nnodes:\n${nodes}kernel: ${kernel}\n`);
    return file;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const { daemon } of this.coordinators) {
      if (isAlive(daemon.pid)) process.kill(daemon.pid, "SIGCONT");
    }
    for (const agent of this.agents.values()) await agent.end();
    for (const { daemon } of this.coordinators) await daemon.end();
    await this.etcd[Symbol.asyncDispose]();
    rmSync(this.folder, { recursive: true, force: true });
  }
}

describe.skipIf(!hasKvm())("three coordinators over an etcd (needs /dev/kvm)", () => {
  test("the leader is killed, hangs, is ended: another leads, and the guest runs on", async () => {
    await using three = await Three.start();
    await three.ok("vm", "create", "-f", three.vmFile("tiny"), "--start");
    const before = await three.vmIs("tiny", "running");
    const engines = three.engines();
    expect(engines.length).toBe(2);

    // The two that stand by say who leads, to people and to programs.
    const first = await three.leader();
    const [leads] = three.coordinators.filter(({ daemon }) => daemon === first);
    for (const { api, daemon } of three.coordinators) {
      if (daemon === first) continue;
      expect(daemon.text).toContain(`stands by; ${leads?.api} leads`);
      const { code, err } = await three.ssihv("vm", "list", "--coordinator", api);
      expect([code, err]).toEqual([10, expect.stringContaining(`stands by: ${leads?.api} leads`)]);
      expect(err).toContain(`--coordinator ${leads?.api}`);
    }

    const unharmed = async () => {
      await three.whole();
      const { since, places } = await three.vmIs("tiny", "running");
      expect([since, places, three.engines()]).toEqual([before.since, before.places, engines]);
    };
    const token = (await three.ok("cluster", "token", "late")).trim();
    await using top = three.top("tiny");
    await top.shows();
    await first.kill();
    // Whoever names all of them is answered by the one that leads.
    expect(JSON.parse(await three.okSoon("vm", "list", "--json"))).toMatchObject([
      { name: "tiny" },
    ]);
    const second = await three.leader();
    expect(second).not.toBe(first);
    // What looks all the time goes on with the one that leads now.
    await top.shows();
    await top.end();
    await unharmed();
    first.start();
    await first.says("stands by", first.text.length);
    // A token names the coordinator that made it, which cannot let anybody in now.
    const late = ["node", "--state", join(three.folder, "late"), "--join", token, "--name", "late"];
    const refused = await three.ssihv(...late);
    expect([refused.code, refused.err]).toEqual([10, expect.stringContaining("stands by: 127.")]);
    expect(refused.err).toContain("make another token with ssihv cluster token");

    // One that hangs finds another in its place when it goes on, and stands by.
    process.kill(second.pid, "SIGSTOP");
    const at = second.text.length;
    const third = await three.leader();
    expect(third).not.toBe(second);
    process.kill(second.pid, "SIGCONT");
    await second.says("leads no more", at);
    await second.says("stands by", at);
    await unharmed();

    // One that is ended gives the lease back.
    expect(await third.end()).toBe(0);
    await three.leader();
    const from = third.text.length;
    third.start();
    await unharmed();
    await third.says("stands by", from);
    const told = await Promise.all(
      three.coordinators.map(async ({ metrics }) => {
        const text = await (await fetch(`http://${metrics}/metrics`)).text();
        return Number(/^ssihv_cluster_leader (\d)$/m.exec(text)?.[1]);
      }),
    );
    expect(told.toSorted()).toEqual([0, 0, 1]);
    await three.ok("vm", "stop", "tiny");
    await three.vmIs("tiny", "stopped");
    await three.ok("vm", "destroy", "tiny");
    expect(engines.some(isAlive)).toBe(false);
  });

  test("leaders killed at any moment of a start: what is listed is so", async () => {
    await using three = await Three.start();
    const file = three.vmFile("tiny");
    const listed: Record<string, number> = {};
    for (let i = 0; i < KILLS; i++) {
      await three.ok("vm", "create", "-f", file);
      const leader = await three.leader();
      const started = three.ssihv("vm", "start", "tiny");
      await until("the start has begun", async () => {
        const { state } = await three.ask<Vm>("/v1/vms/tiny");
        return state !== "stopped";
      });
      await Bun.sleep(i * KILL_STEP_MS);
      await leader.kill();
      await started;
      leader.start();
      await three.whole();
      let state = "";
      await until("what is listed is so", async () => {
        ({ state } = await three.ask<Vm>("/v1/vms/tiny"));
        const engines = { running: 2, waiting: 1, stopped: 0, failed: 0 }[state];
        return engines === three.engines().length;
      });
      listed[state] = (listed[state] ?? 0) + 1;
      await three.ok("vm", "destroy", "tiny", "--force");
      await until("no engine is left", () => three.engines().length === 0);
    }
    console.log(`after leaders were killed: ${JSON.stringify(listed)}`);
  });

  test("etcd is killed, and away for long: it is said, and over when it is back", async () => {
    await using three = await Three.start();
    await three.ok("vm", "create", "-f", three.vmFile("tiny"), "--start");
    const before = await three.vmIs("tiny", "running");
    const engines = three.engines();
    await three.etcd.kill();
    await three.etcd.up();
    await three.whole();
    expect((await three.vmIs("tiny", "running")).since).toBe(before.since);

    await three.etcd.kill();
    // Nothing can be asked or changed, and the reason is told; nobody leads.
    for (const words of [
      ["vm", "list"],
      ["vm", "stop", "tiny"],
    ]) {
      await until("the reason is told", async () => {
        const { code, err } = await three.ssihv(...words);
        expect(code).toBe(10);
        return err.includes("etcd does not answer (http://");
      });
    }
    await until("all stand by", () => {
      return three.coordinators.every(({ daemon: { text } }) => {
        return text.lastIndexOf("stands by; etcd") > text.lastIndexOf("coordinator: leads;");
      });
    });
    const [host = ""] = before.places.map(({ host }) => host);
    const runtime = { SSIHV_RUNTIME_DIR: join(three.folder, `run-${host}`) };
    const local = await run([binary, "vm", "list", "--local", "--json"], { env: runtime });
    expect(JSON.parse(local.out)).toMatchObject([{ name: "tiny", state: "running" }]);
    await three.etcd.up();
    await three.whole();
    const after = await three.vmIs("tiny", "running");
    expect([after.since, three.engines()]).toEqual([before.since, engines]);
  });
});
