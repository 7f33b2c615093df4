import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { SsihvError } from "../base/errors.ts";
import type { HostFacts } from "./host-facts.ts";
import {
  checkMemory,
  type MemoryRequest,
  memoryWords,
  planVm,
  splitOverNodes,
  type VmRequest,
  warnings,
} from "./vm-request.ts";

const MIB = 2 ** 20;
const folder = mkdtempSync(join(tmpdir(), "ssihv-request-"));
const kernel = join(folder, "bzImage");
writeFileSync(kernel, "x");
afterAll(() => rmSync(folder, { recursive: true }));

const FACTS: HostFacts = {
  kernel: "6.1.0",
  cpus: 8,
  virtualisation: "svm",
  kvmModules: ["kvm_amd"],
  memoryTotal: 1024 * MIB,
  memoryAvailable: 1024 * MIB,
  overcommit: 0,
  memfdNoexec: 0,
  openFiles: 1024,
  addressSpace: Infinity,
  root: true,
};

/** `mib` of guest RAM over `nodes` nodes that run a vCPU each. */
function request(nodes: number, mib: number, memory: Partial<MemoryRequest> = {}): VmRequest {
  return {
    name: "vm",
    kernel,
    cmdline: "",
    nodes: splitOverNodes(nodes, nodes, BigInt(mib * MIB)),
    memory: { memoryNodes: 0, copies: 1, ...memory },
    reboot: true,
    pageTables: "auto",
    clockDilation: 1,
    peerTimeoutMs: 5000,
    stallFreezeMs: 300,
    holdUsMax: 1000,
    pager: false,
    pinVcpus: false,
    report: false,
  };
}

function refusal(run: () => unknown): SsihvError {
  try {
    run();
  } catch (error) {
    if (error instanceof SsihvError) return error;
    throw error;
  }
  throw new Error("nothing was refused");
}

const mib = (value: number) => BigInt(value * MIB);

describe("what the hosts give", () => {
  test("one node alone has nothing to budget", () => {
    expect(planVm(request(1, 128), FACTS).nodes).toEqual([
      { id: 0, vcpus: 1, memoryBytes: 128 * MIB },
    ]);
  });

  test("several nodes have a cache each", () => {
    const plan = planVm(request(2, 256), FACTS);
    const node = { vcpus: 1, memoryBytes: 128 * MIB, residentBytes: 128 * MIB };
    expect(plan.nodes).toEqual([
      { id: 0, ...node, cacheBytes: 64 * MIB },
      { id: 1, ...node, cacheBytes: 64 * MIB },
    ]);
    expect(plan.frameCopies).toBeUndefined();
    expect(memoryWords(plan)).toBeUndefined();
  });

  test("memory nodes come last, with what they lend", () => {
    const plan = planVm(request(1, 384, { memoryNodes: 2, copies: 2 }), FACTS);
    expect(plan.nodes.map(({ lentBytes }) => lentBytes)).toEqual([undefined, 192 * MIB, 192 * MIB]);
    expect(plan).toMatchObject({ frameCopies: 2, options: { plainMemory: false } });
    expect(memoryWords(plan)).toBe(
      "384 MiB of RAM: node 0 keeps 192 MiB of its own pages, memory node 1 lends 192 MiB, " +
        "memory node 2 lends 192 MiB, 2 copies of each lent page; " +
        "the guest has 66.6 % of what the hosts give; " +
        "page states take up to 4 MiB more on each node with vCPUs",
    );
    expect(warnings(plan, FACTS)).toEqual([]);
  });

  test("a lent page that is there once is worth a warning", () => {
    const plan = planVm(request(2, 256, { memoryNodes: 1, nodeBytes: mib(112) }), FACTS);
    expect(memoryWords(plan)).toContain(
      "node 1 keeps 84 MiB of its own pages and 28 MiB of others'",
    );
    expect(warnings(plan, FACTS).at(-1)).toContain("if that node dies, so does the VM");
  });
});

describe("a host", () => {
  test("must have the RAM of all that runs on it", () => {
    const most = request(1, 1536, { memoryNodes: 2 });
    expect(refusal(() => planVm(most, FACTS)).message).toBe(
      "the VM asks for 1536 MiB of RAM, this host has 1024 MiB",
    );
    const door = { listen: { host: "::1", port: 7700 }, key: new Uint8Array(32), keyFile: "k" };
    const plan = planVm({ ...most, door }, FACTS);
    expect(plan.nodes[0]?.residentBytes).toBe(512 * MIB);
  });

  test("is asked for what it gives: own pages, cache and what it lends", () => {
    const node = { memoryBytes: 4096 * MIB, residentBytes: 900 * MIB, cacheBytes: 200 * MIB };
    expect(refusal(() => checkMemory([node], FACTS)).message).toContain("asks for 1100 MiB");
    expect(() => checkMemory([{ memoryBytes: 0, lentBytes: 1000 * MIB }], FACTS)).not.toThrow();
  });
});

describe("what cannot be is refused in words", () => {
  const cases: [wish: VmRequest, says: string][] = [
    [request(1, 128, { cacheBytes: mib(16) }), "--cache with one node"],
    [request(1, 128, { nodeBytes: mib(64) }), "node 0 gives 64 MiB, it needs 128 MiB"],
    [request(2, 128, { memoryNodes: 7 }), "2 nodes and 7 memory nodes: at most 8 in all"],
    [request(2, 128, { copies: 2 }), "--copies without a memory node"],
    [request(1, 512, { memoryNodes: 1, copies: 2 }), "--copies 2 with 1 memory node(s)"],
  ];
  for (const [wish, says] of cases) {
    test(says, () => {
      const error = refusal(() => planVm(wish, FACTS));
      expect(error.message).toContain(says);
      expect(error.hint).not.toBe("");
    });
  }

  test("a door without anyone to come in", () => {
    const door = { listen: { host: "::1", port: 7700 }, key: new Uint8Array(32), keyFile: "k" };
    const alone = refusal(() => planVm({ ...request(1, 128), door }, FACTS));
    expect(alone.message).toContain("--listen with one node");
    const last = { ...door, listen: { host: "::1", port: 65_532 } };
    const high = { ...request(1, 128, { memoryNodes: 3 }), door: last };
    expect(refusal(() => planVm(high, FACTS)).message).toContain("leaves none for the nodes");
  });
});
