// A coordinator, two agents and their VMs from the built binary with real engines on this host's
// KVM: a VM from a file to its end with its console, then with kill -9 of everything in turn, and
// many VMs one after another, which leave nothing behind. The guests are a few instructions long;
// a Linux over two hosts is the lab's.

import { describe, expect, test } from "bun:test";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import type { Vm } from "../../coordinator/api-schemas.ts";
import { freePorts } from "../../src/base/free-ports.fixture.ts";
import {
  Cluster,
  childrenOf,
  type Daemon,
  ECHO,
  holdings,
  isAlive,
  namespacesOf,
  until,
} from "./cluster-processes.ts";
import { binary, hasKvm } from "./support.ts";
import { asm, eachPage, say } from "./tiny-guest.ts";

/** More of them: SSIHV_CYCLES=600. */
const CYCLES = Number(process.env["SSIHV_CYCLES"] ?? 200);
/** By then caches and heaps have their size. */
const WARM_CYCLES = 5;
/** Heaps of two runtimes breathe; 200 leaks of an engine's page would be far more. */
const GROWTH_MIB_MAX = 48;

/** A start takes about as long as all of them. */
const KILLS = 16;
const KILL_STEP_MS = 20;
/** The coordinator's part of a start is over after some of them. */
const ORDER_STEP_MS = 3;

/** Engines of a VM, whoever started them. */
function enginesOf(vm: string): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
    .filter((pid) => commandOf(pid).includes(`\0engine\0${vm}/`) && isAlive(pid));
}

function commandOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, "utf8");
  } catch {
    // It has just ended.
    return "";
  }
}

/** `ssihv vm console`, with what is typed. */
class Console {
  text = "";
  readonly child: Bun.Subprocess<"pipe", "pipe", "pipe">;

  constructor(cluster: Cluster, vm: string) {
    this.child = Bun.spawn([binary, "vm", "console", vm], {
      env: { ...process.env, SSIHV_RUNTIME_DIR: join(cluster.folder, "run") },
      stdin: "pipe",
      stdout: "pipe",
      stderr: "pipe",
    });
    void this.listen();
  }

  shows(text: string): Promise<void> {
    return until(`"${text}" on the console, which has ${this.text}`, () =>
      this.text.includes(text),
    );
  }

  async type(text: string): Promise<void> {
    this.child.stdin.write(text);
    await this.child.stdin.flush();
  }

  private async listen(): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of this.child.stdout) this.text += decoder.decode(chunk);
  }
}

function leadOf(vm: Vm): string {
  return vm.places[0]?.host ?? "";
}

describe.skipIf(!hasKvm())("a cluster of processes (needs /dev/kvm)", () => {
  test("a VM from a file; the coordinator and agents killed, all listed truly", async () => {
    await using cluster = await Cluster.start("host-a", "host-b");
    const { coordinator } = cluster;
    await cluster.ok("vm", "create", "-f", cluster.vmFile("tiny"), "--start");
    const console_ = new Console(cluster, "tiny");
    await console_.shows("hello");
    await console_.type("one");
    await console_.shows("one");
    const before = await cluster.show("tiny");
    expect(before.state).toBe("running");
    const engines = before.engines?.nodes.map(({ pid }) => pid) ?? [];
    expect(engines.length).toBe(2);
    const page = await cluster.ok("vm", "pages", "--gpa", "0xc000000", "--json");
    // The guest on node 0 wrote to a page whose home is node 1.
    expect(JSON.parse(page)).toMatchObject({ pages: [{ home: 1, state: "exclusive", owner: 0 }] });

    // The coordinator is killed: the guest runs on, and its hosts tell of it.
    await coordinator.kill();
    expect(await console_.child.exited).toBe(10);
    expect((await cluster.ssihv("vm", "list", "--coordinator", "127.0.0.1:1")).code).toBe(10);
    // One that is only looked for on this host is done without.
    const without = await cluster.ssihv("vm", "list");
    expect([without.code, without.out]).toEqual([0, expect.stringMatching(/^NAME .*PID\n$/)]);
    expect(without.err).toContain("does not answer; this is what runs on this host");
    const lead = leadOf(before);
    const other = lead === "host-a" ? "host-b" : "host-a";
    const here = await cluster.local(lead, "vm", "show", "tiny", "--json");
    expect(JSON.parse(here.out)).toMatchObject({ state: "running", role: "lead" });
    await cluster.startCoordinator();
    const back = await cluster.vmIs("tiny", "running");
    expect([back.since, back.places]).toEqual([before.since, before.places]);
    expect(engines.every(isAlive)).toBe(true);
    const late = new Console(cluster, "tiny");
    await late.shows("helloone");
    await late.type("two");
    await late.shows("helloonetwo");

    // The agent of the lead's host is killed: its engine goes with it, and the other ends.
    await cluster.agent(lead).kill();
    const failed = await cluster.vmIs("tiny", "failed");
    expect(failed.last?.text).toContain(`host ${other} tells: `);
    expect(failed.last?.reason).toBe("vcpu_lost");
    expect((await cluster.hostIs(lead, "silent")).why).toContain("closed");
    expect(await late.child.exited).toBe(10);
    await until("no engine is left", () => !engines.some(isAlive));
    cluster.agent(lead).start();
    await cluster.hostIs(lead, "up");
    expect(cluster.sockets(lead)).toEqual([]);

    // It can be started again; now the agent of the other host is killed.
    await cluster.ok("vm", "start", "tiny");
    const again = await cluster.show("tiny");
    const second = again.places[1]?.host ?? "";
    await cluster.agent(second).kill();
    const lost = await cluster.vmIs("tiny", "failed");
    expect(lost.last?.text).toMatch(/node 1|a vCPU is lost|vcpu lost/);
    await cluster.hostIs(second, "silent");
    const gone = again.engines?.nodes.map(({ pid }) => pid) ?? [];
    await until("no engine is left", () => !gone.some(isAlive));
    expect(cluster.agent(leadOf(again)).text).toContain("VM tiny: ");
    const refused = await cluster.ssihv("vm", "start", "tiny");
    expect([refused.code, refused.err]).toEqual([
      2,
      expect.stringContaining(`host ${second}: it is silent`),
    ]);
    await cluster.ok("vm", "destroy", "tiny");
    expect(JSON.parse(await cluster.ok("vm", "list", "--json"))).toEqual([]);
  });

  test("agents and the coordinator tell Prometheus of what they look after", async () => {
    await using cluster = await Cluster.start("host-a", "host-b");
    const metricsOf = async (daemon: Daemon) => {
      const address = `127.0.0.1:${freePorts()}`;
      await daemon.end();
      daemon.start("--metrics", address);
      const read = async () => await (await fetch(`http://${address}/metrics`)).text();
      await until("it tells something", () => read().then(Boolean, () => false));
      return read;
    };
    const ofCluster = await metricsOf(cluster.coordinator);
    const ofHost = await metricsOf(cluster.agent("host-a"));
    for (const host of ["host-a", "host-b"]) await cluster.hostIs(host, "up");
    expect(await ofHost()).not.toContain("ssihv_node_up");

    await cluster.ok("vm", "create", "-f", cluster.vmFile("tiny"), "--start");
    const { places } = await cluster.vmIs("tiny", "running");
    const { node } = places.find(({ host }) => host === "host-a") ?? {};
    const text = await ofHost();
    // The other node is told by the other host, whoever leads.
    expect(text.match(/^ssihv_node_up\{.*$/gm)).toEqual([
      `ssihv_node_up{vm="tiny",node="${node}"} 1`,
    ]);
    expect(text).toContain('ssihv_vm_state{vm="tiny",state="running"} 1');
    const lines = await ofCluster();
    expect(lines).toContain('ssihv_cluster_vm_state{vm="tiny",state="running"} 1');
    expect(lines).toContain('ssihv_cluster_host_cpus{host="host-b",amount="promised"} 1');

    await cluster.ok("vm", "destroy", "tiny", "--force");
    await until("it is told no more", async () => !(await ofHost()).includes('vm="tiny"'));
    expect(await ofCluster()).not.toContain('vm="tiny"');
  });

  test("its nodes' rates and its balloon are had through the coordinator", async () => {
    await using cluster = await Cluster.start("host-a", "host-b");
    const nodes = "nodes: [{ cpus: 1, memory: 128M }, { cpus: 1, memory: 128M }]\n";
    const file = cluster.file("soft", `${nodes}balloon: "0"\n`, say("hello"), ECHO);
    await cluster.ok("vm", "create", "-f", file, "--start");
    const { places } = await cluster.vmIs("soft", "running");
    const [vm] = JSON.parse(await cluster.ok("top", "--count", "1", "--json"));
    expect(vm).toMatchObject({ name: "soft", state: "running" });
    expect(vm.nodes.map(({ host }: { host: string }) => host)).toEqual(
      places.map(({ host }) => host),
    );
    // The guest asks its UART for what is typed, all the time.
    expect(vm.nodes[0].rates.exits).toBeGreaterThan(0);
    const balloon = await cluster.ok("vm", "balloon", "soft", "16M", "--json");
    expect(JSON.parse(balloon)).toMatchObject({ target: 16 << 20, actual: 0 });
    await cluster.ok("vm", "create", "-f", cluster.vmFile("tiny"));
    await cluster.ok("vm", "destroy", "soft", "--force");
    await until("its hosts have room", async () => {
      return (await cluster.ssihv("vm", "start", "tiny")).code === 0;
    });
    const none = await cluster.ssihv("vm", "balloon", "tiny", "16M");
    expect([none.code, none.err]).toEqual([2, expect.stringContaining("VM tiny has no balloon")]);
  });

  test("an agent that is ended ends its VMs in order, and leaves nothing", async () => {
    await using cluster = await Cluster.start("host-a", "host-b");
    await cluster.ok("vm", "create", "-f", cluster.vmFile("tiny"), "--start");
    const vm = await cluster.show("tiny");
    const agent = cluster.agent(leadOf(vm));
    expect(await agent.end()).toBe(0);
    expect(agent.text).toContain("node: ended by SIGTERM");
    const { last } = await cluster.vmIs("tiny", "stopped");
    expect(last?.reason).toBe("requested");
    await until("no engine is left", () => {
      return !(vm.engines?.nodes ?? []).some(({ pid }) => isAlive(pid));
    });
    for (const host of ["host-a", "host-b"]) {
      expect(cluster.sockets(host)).toEqual([]);
    }
    agent.start();
    await cluster.hostIs(leadOf(vm), "up");
  });

  test("a host that lends memory: it has pages of the guest, and its death is told", async () => {
    await using cluster = await Cluster.start("host-a");
    await cluster.join("lender", "--memory-only");
    expect(await cluster.hostIs("lender", "up")).toMatchObject({ runsVcpus: false });
    const shape =
      "nodes: [{ cpus: 1, memory: 96M }]\nmemory_nodes: 1\nnode_memory: 48M\n" +
      "memory_node_memory: 80M\n";
    // More than may stay: some of it is with the lender, and comes back to be looked at.
    const first = 16 << 20;
    const pages = (64 << 20) / 4096;
    const fill = [eachPage(first, pages, asm.incrementAt), eachPage(first, pages, asm.expectAt(1))];
    const file = cluster.file("wide", shape, ...fill, say("whole"), ECHO);
    await cluster.ok("vm", "create", "-f", file, "--start");
    const console_ = new Console(cluster, "wide");
    await console_.shows("whole");
    const { places, engines } = await cluster.show("wide");
    expect(places.map(({ host, memoryOnly }) => [host, memoryOnly])).toEqual([
      ["host-a", false],
      ["lender", true],
    ]);
    expect(engines?.nodes.length).toBe(2);
    await cluster.agent("lender").kill();
    const { last } = await cluster.vmIs("wide", "failed");
    expect(last?.reason).toBe("page_lost");
    await cluster.hostIs("lender", "silent");
    await until("no engine is left", () => childrenOf(cluster.agent("host-a").pid).length === 0);
  });

  test("agents killed at any moment of a start leave no engine and no socket", async () => {
    await using cluster = await Cluster.start("host-a", "host-b");
    await cluster.ok("vm", "create", "-f", cluster.vmFile("orphan"));
    const orphan = () => cluster.call<Vm>("GET", "/v1/vms/orphan");
    let engines = 0;
    for (let i = 0; i < KILLS; i++) {
      const started = cluster.call("POST", "/v1/vms/orphan/start").catch(() => undefined);
      await Bun.sleep(i * KILL_STEP_MS);
      engines += cluster.engines().length;
      await Promise.all(["host-a", "host-b"].map((host) => cluster.agent(host).kill()));
      await started;
      await until("no engine is left", () => enginesOf("orphan").length === 0);
      for (const host of ["host-a", "host-b"]) {
        await cluster.hostIs(host, "silent");
        cluster.agent(host).start();
        await cluster.hostIs(host, "up");
        expect(cluster.sockets(host)).toEqual([]);
      }
      // It has failed; or it was refused, when the coordinator saw both agents go before the start.
      await until("the start is over", async () => (await orphan()).since === null);
      const { state, last } = await orphan();
      expect(state).toBe(last === null ? "stopped" : "failed");
    }
    // The kills did meet engines.
    expect(engines).toBeGreaterThan(0);
    await cluster.ok("vm", "start", "orphan");
    expect(enginesOf("orphan").length).toBe(2);
  });

  test("the coordinator killed at any moment of a start lists what there is", async () => {
    await using cluster = await Cluster.start("host-a", "host-b");
    const { coordinator } = cluster;
    const file = cluster.vmFile("tiny");
    const listed: Record<string, number> = {};
    for (let i = 0; i < KILLS; i++) {
      await cluster.ok("vm", "create", "-f", file);
      const started = cluster.call("POST", "/v1/vms/tiny/start").catch(() => undefined);
      await Bun.sleep(i * ORDER_STEP_MS);
      await coordinator.kill();
      await started;
      await cluster.startCoordinator();
      for (const host of ["host-a", "host-b"]) await cluster.hostIs(host, "up");
      let state = "";
      await until("what is listed is so", async () => {
        ({ state } = await cluster.call<Vm>("GET", "/v1/vms/tiny"));
        // Waiting: only the lead had its order.
        const engines = { running: 2, waiting: 1, stopped: 0, failed: 0 }[state];
        return engines === cluster.engines().length;
      });
      listed[state] = (listed[state] ?? 0) + 1;
      await cluster.ok("vm", "destroy", "tiny", "--force");
      await until("no engine is left", () => cluster.engines().length === 0);
    }
    console.log(`after the coordinator was killed: ${JSON.stringify(listed)}`);
    expect(listed["running"]).toBeGreaterThan(0);
    expect(JSON.parse(await cluster.ok("vm", "list", "--json"))).toEqual([]);
  });

  test(`${CYCLES} VMs come and go and leave nothing behind`, async () => {
    await using cluster = await Cluster.start("host-a", "host-b");
    const file = cluster.vmFile("tiny");
    await cluster.ok("vm", "create", "-f", file);
    const { spec } = await cluster.call<Vm>("GET", "/v1/vms/tiny");
    await cluster.call("DELETE", "/v1/vms/tiny");
    const pids = () => [cluster.coordinator, ...cluster.agents.values()].map(({ pid }) => pid);
    let before: ReturnType<typeof holdings>[] = [];
    for (let i = 0; i < WARM_CYCLES + CYCLES; i++) {
      await cluster.call("POST", "/v1/vms", spec);
      await cluster.call("POST", "/v1/vms/tiny/start");
      await cluster.vmIs("tiny", "running");
      const engines = cluster.engines();
      expect(engines.length).toBe(2);
      expect(new Set(engines.map(namespacesOf))).toEqual(new Set([namespacesOf(process.pid)]));
      // By turns in order, and with the VM still running.
      if (i % 2 === 0) {
        await cluster.call("POST", "/v1/vms/tiny/stop");
        await cluster.vmIs("tiny", "stopped");
        await cluster.call("DELETE", "/v1/vms/tiny");
      } else await cluster.call("DELETE", "/v1/vms/tiny?force=true");
      await until("its engines have ended", () => cluster.engines().length === 0);
      expect(engines.some(isAlive)).toBe(false);
      await until("its sockets are gone", () => {
        return ["host-a", "host-b"].every((host) => {
          return cluster.sockets(host).length === 0;
        });
      });
      if (i === WARM_CYCLES - 1) before = pids().map(holdings);
    }
    // Threads of the runtime come and go with an fd each; a leak would only add.
    const grown = () => {
      return pids()
        .map(holdings)
        .flatMap(({ fds, sharedPages, children }, i) => {
          const was = before[i];
          const more = was === undefined || fds > was.fds || sharedPages > was.sharedPages;
          return more || children > 0 ? [{ fds, sharedPages, children, was }] : [];
        });
    };
    // A socket's last moments may outlast the answer that told of its end.
    const deadline = Date.now() + 10_000;
    while (grown().length > 0 && Date.now() < deadline) await Bun.sleep(100);
    expect(grown()).toEqual([]);
    const after = pids().map(holdings);
    console.log(`before ${JSON.stringify(before)}\nafter ${JSON.stringify(after)}`);
    expect(after.map(({ namespaces }) => namespaces)).toEqual(
      before.map(({ namespaces }) => namespaces),
    );
    after.forEach(({ residentMib }, i) => {
      expect(residentMib - (before[i]?.residentMib ?? 0)).toBeLessThan(GROWTH_MIB_MAX);
    });
    expect(readdirSync(join(cluster.folder, "tmp"))).toEqual([]);
    expect(cluster.engines()).toEqual([]);
    expect(childrenOf(cluster.coordinator.pid)).toEqual([]);
    for (const state of ["host-a", "host-b"]) {
      const kept = readdirSync(join(cluster.folder, state)).sort();
      expect(kept).toEqual(["lock", "node.json", "node.pem"]);
    }
  });
});
