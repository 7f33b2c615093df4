import { expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { SsihvError } from "../base/errors.ts";
import { parseClusterConfig } from "../config/cluster-config.ts";
import type { HostFacts } from "../node/host-facts.ts";
import { planVm, warnings } from "../node/vm-request.ts";
import { type RunFlags, runRequest, sizeFlag, sizeOrNoneFlag, wholeNumber } from "./run-options.ts";

const MIB = 1n << 20n;
const NO_FLAGS: RunFlags = {
  pager: false,
  sandbox: "auto",
  pinVcpus: false,
  report: false,
  json: false,
};
const CONFIG = parseClusterConfig(
  `cluster: lab
nodes:
  - {name: a, cpus: 2, memory: 256M, address: "10.0.0.1:7800"}
  - {name: b, cpus: 1, memory: 128M, address: "10.0.0.2:7800"}
vm: {kernel: /k, cmdline: quiet, reboot: false, page_tables: strict, peer_timeout: 1.5s}
`,
  "/etc/c.yaml",
);
const FACTS: HostFacts = {
  kernel: "6.1.0",
  cpus: 2,
  virtualisation: "svm",
  kvmModules: ["kvm_amd"],
  memoryTotal: 2 ** 33,
  memoryAvailable: 2 ** 32,
  overcommit: 0,
  memfdNoexec: 0,
  openFiles: 1024,
  addressSpace: Infinity,
  root: true,
};

function refusal(run: () => unknown): SsihvError {
  try {
    run();
  } catch (error) {
    if (error instanceof SsihvError) return error;
    throw error;
  }
  throw new Error("nothing was refused");
}

test("without a file the defaults hold", () => {
  const request = runRequest({ ...NO_FLAGS, kernel: "/k" }, undefined);
  expect(request).toEqual({
    name: "vm",
    kernel: "/k",
    cmdline: "",
    nodes: [{ cpus: 1, memoryBytes: 512n * MIB }],
    memory: { memoryNodes: 0, copies: 1 },
    reboot: true,
    pageTables: "auto",
    clockDilation: 1,
    peerTimeoutMs: 5000,
    stallFreezeMs: 300,
    holdUsMax: 1000,
    pager: false,
    pinVcpus: false,
    report: false,
  });
  const two = runRequest({ ...NO_FLAGS, kernel: "/k", nodes: 2 }, undefined);
  expect(two.nodes.map((node) => node.cpus)).toEqual([1, 1]);
});

test("the file's settings hold, and flags win over them", () => {
  const request = runRequest(NO_FLAGS, CONFIG);
  expect(request).toMatchObject({
    name: "lab",
    kernel: "/k",
    cmdline: "quiet",
    reboot: false,
    pageTables: "strict",
    peerTimeoutMs: 1500,
    addresses: ["10.0.0.1:7800", "10.0.0.2:7800"],
  });
  expect(request.nodes.map((node) => [node.cpus, node.memoryBytes])).toEqual([
    [2, 256n * MIB],
    [1, 128n * MIB],
  ]);
  const over = runRequest(
    { ...NO_FLAGS, kernel: "/other", reboot: true, cmdline: "", peerTimeout: 2_000_000 },
    CONFIG,
  );
  expect(over).toMatchObject({ kernel: "/other", reboot: true, cmdline: "", peerTimeoutMs: 2000 });
});

test("a freeze comes early, later where the guest's clock is slow, before a node is dead", () => {
  const stall = (over: Partial<RunFlags>, config?: typeof CONFIG) =>
    runRequest({ ...NO_FLAGS, kernel: "/k", ...over }, config).stallFreezeMs;
  expect(stall({ clockDilation: 5 })).toBe(1500);
  expect(stall({ clockDilation: 50 })).toBe(2500);
  expect(stall({ clockDilation: 50, peerTimeout: 40_000_000 })).toBe(15_000);
  expect(stall({ stallFreeze: 0 })).toBe(0);
  expect(stall({ stallFreeze: 1200 })).toBe(2);
  const file = `cluster: x\nnodes: [{name: a, cpus: 1, memory: 1G}]\nvm: {stall_freeze: 1s}\n`;
  expect(stall({}, parseClusterConfig(file, "c.yaml"))).toBe(1000);
  const late = refusal(() => stall({ stallFreeze: 5_000_000 }));
  expect(late.message).toBe("--stall-freeze: 5000 ms is not less than the peer timeout, 5000 ms");
});

test("a flag for the shape spreads the file's whole anew", () => {
  const request = runRequest({ ...NO_FLAGS, nodes: 3 }, CONFIG);
  expect(request.nodes).toEqual([
    { cpus: 1, memoryBytes: 128n * MIB },
    { cpus: 1, memoryBytes: 128n * MIB },
    { cpus: 1, memoryBytes: 128n * MIB },
  ]);
  expect(request.addresses).toBeUndefined();
  expect(runRequest({ ...NO_FLAGS, cpus: 4 }, CONFIG).nodes.map((node) => node.cpus)).toEqual([
    2, 2,
  ]);
});

test("what cannot be is refused with the flag's name", () => {
  const kernel = "/k";
  expect(refusal(() => runRequest(NO_FLAGS, undefined)).message).toContain("--kernel");
  const few = refusal(() => runRequest({ ...NO_FLAGS, kernel, nodes: 2, cpus: 1 }, undefined));
  expect(few.message).toContain("--cpus 1 with --nodes 2");
  const odd = refusal(() => runRequest({ ...NO_FLAGS, kernel, memory: 3n * MIB }, undefined));
  expect(odd.message).toStartWith("--memory: ");
  const little = refusal(() => runRequest({ ...NO_FLAGS, kernel, memory: 2n * MIB }, undefined));
  expect(little.message).toStartWith("--memory: ");
  for (const text of ["", "0", "513", "1.5", "-1", "1e2", "0x10", " 1", "99999999999"]) {
    expect(refusal(() => wholeNumber("--cpus", 1, 512)(text)).message).toContain("--cpus");
  }
  expect(wholeNumber("--cpus", 1, 512)("512")).toBe(512);
  const slip = refusal(() => sizeFlag("--cache")("512"));
  expect(slip.message).toStartWith("--cache: ");
  expect(slip.hint).toContain("--cache 512M");
  expect(sizeFlag("--memory")("512M")).toBe(512n * MIB);
});

test("a balloon may have nothing at first, and is not there unless asked for", () => {
  const size = sizeOrNoneFlag("--balloon");
  expect(["0", "0M", "64M"].map(size)).toEqual([0n, 0n, 64n * MIB]);
  expect(refusal(() => size("64")).hint).toBe("write the unit: --balloon 64M");
  const request = (flags: object) => runRequest({ ...NO_FLAGS, kernel: "/k", ...flags }, undefined);
  expect(request({ balloon: 0n }).balloonBytes).toBe(0n);
  expect(request({}).balloonBytes).toBeUndefined();
  const file = parseClusterConfig(
    'cluster: c\nnodes: [{name: a, cpus: 1, memory: 512M}]\nvm: {balloon: "64M"}',
    "c.yaml",
  );
  const from = (flags: object) => runRequest({ ...NO_FLAGS, kernel: "/k", ...flags }, file);
  expect(from({}).balloonBytes).toBe(64n * MIB);
  expect(from({ balloon: 0n }).balloonBytes).toBe(0n);
});

test("memory nodes come on top of those that run vCPUs", () => {
  const flags = { nodes: 2, memory: 256n * MIB, memoryNodes: 2, copies: 2, cache: 16n * MIB };
  const request = runRequest({ ...NO_FLAGS, kernel: "/k", ...flags }, undefined);
  expect(request.nodes.map((node) => node.memoryBytes)).toEqual([128n * MIB, 128n * MIB]);
  expect(request.memory).toEqual({ memoryNodes: 2, copies: 2, cacheBytes: 16n * MIB });
  const file = `cluster: x
nodes: [{name: a, cpus: 1, memory: 1G}]
vm: {memory_nodes: 2, node_memory: 512M, memory_node_memory: 600M, cache: 8M, copies: 2}
`;
  const config = parseClusterConfig(file, "/etc/c.yaml");
  const wanted = {
    memoryNodes: 2,
    nodeBytes: 512n * MIB,
    memoryNodeBytes: 600n * MIB,
    cacheBytes: 8n * MIB,
    copies: 2,
  };
  expect(runRequest({ ...NO_FLAGS, kernel: "/k" }, config).memory).toEqual(wanted);
  const fewer = { memoryNodes: 1, copies: 1 };
  expect(runRequest({ ...NO_FLAGS, kernel: "/k", ...fewer }, config).memory).toEqual({
    ...wanted,
    ...fewer,
  });
  const bad = (line: string) => () => parseClusterConfig(file.replace(/vm:.*/, line), "c.yaml");
  expect(bad("vm: {copies: 3}")).toThrow(/vm.copies: expected 1 or 2, found 3/);
  expect(bad("vm: {cache: many}")).toThrow(/vm.cache: "many" is not a size/);
  expect(bad("vm: {memory_node: 1}")).toThrow(/did you mean memory_nodes\?/);
  const given = { nodeMemory: 96n * MIB, memoryNodeMemory: 64n * MIB };
  expect(runRequest({ ...NO_FLAGS, kernel: "/k", ...given }, undefined).memory).toEqual({
    memoryNodes: 0,
    copies: 1,
    nodeBytes: 96n * MIB,
    memoryNodeBytes: 64n * MIB,
  });
});

test("a plan names files that are there and lines that fit", () => {
  const folder = mkdtempSync(join(tmpdir(), "ssihv-plan-"));
  try {
    const kernel = join(folder, "bzImage");
    const empty = join(folder, "empty");
    writeFileSync(kernel, "x");
    writeFileSync(empty, "");
    const base = runRequest({ ...NO_FLAGS, kernel, cmdline: "quiet", nodes: 2 }, undefined);
    const plan = planVm(base, FACTS);
    expect(plan.kernel).toBe(kernel);
    expect(plan.cmdline).toStartWith("console=ttyS0");
    expect(plan.cmdline).toEndWith("quiet");
    expect(plan.options).toMatchObject({ plainMemory: false, onReset: "restart" });
    expect(planVm({ ...base, nodes: base.nodes.slice(0, 1) }, FACTS).options.plainMemory).toBe(
      true,
    );

    const refused = (over: Partial<typeof base>) =>
      refusal(() => planVm({ ...base, ...over }, FACTS));
    expect(refused({ kernel: empty }).message).toBe(`--kernel: kernel ${empty} is empty`);
    expect(refused({ kernel: folder }).message).toContain("is not a regular file");
    expect(refused({ initrd: join(folder, "none") }).message).toContain("--initrd");
    expect(refused({ initrd: join(folder, "none") }).code).toBe("initrd_invalid");
    expect(refused({ cmdline: "x".repeat(3000) }).message).toContain("--cmdline");
    expect(refused({ name: "../x" }).message).toContain("--name");
    const huge = [{ cpus: 1, memoryBytes: 1n << 40n }];
    expect(refused({ nodes: huge }).code).toBe("memory_insufficient");

    expect(warnings(plan, FACTS)).toEqual([]);
    const tight = { ...FACTS, cpus: 1, memoryAvailable: 2 ** 28 };
    expect(warnings(plan, tight).length).toBe(2);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
