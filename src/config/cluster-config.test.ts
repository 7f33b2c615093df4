import { expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { SsihvError } from "../base/errors.ts";
import { ClusterConfigSchema, loadClusterConfig, parseClusterConfig } from "./cluster-config.ts";

const EXAMPLE = join(import.meta.dir, "..", "..", "cluster-config.yaml");
const NODES = "nodes:\n  - name: a\n    cpus: 1\n    memory: 64M\n";

function refusal(text: string): string[] {
  try {
    parseClusterConfig(text, "c.yaml");
  } catch (error) {
    if (!(error instanceof SsihvError)) throw error;
    expect(error.code).toBe("config_invalid");
    return error.message.split("\n");
  }
  throw new Error(`accepted:\n${text}`);
}

test("the example of the source tree parses and shows every setting", async () => {
  const config = loadClusterConfig(EXAMPLE);
  expect(config.cluster).toBe("demo");
  expect(config.nodes.map((node) => node.memoryBytes)).toEqual([512n << 20n, 512n << 20n]);
  expect(config.vm).toEqual({
    kernel: "/vmlinuz",
    initrd: "/initrd.img",
    cmdline: "",
    reboot: true,
    pageTables: "auto",
    clockDilation: 1,
    peerTimeoutMs: 5000,
    holdUsMax: 1000,
  });
  const text = await Bun.file(EXAMPLE).text();
  const { vm, nodes } = ClusterConfigSchema.properties;
  const keys = [...Object.keys(vm.properties), ...Object.keys(nodes.items.properties)];
  expect(text).toMatch(/^# vms:$/m);
  for (const key of keys) expect(text).toMatch(new RegExp(`^ *(- |# )?${key}:`, "m"));
});

test("the least there can be", () => {
  const config = parseClusterConfig(`cluster: x\n${NODES}`, "c.yaml");
  expect(config.vm).toEqual({});
  expect(config.nodes[0]?.address).toBeUndefined();
});

test("relative paths are relative to the file", () => {
  const folder = mkdtempSync(join(tmpdir(), "ssihv-config-"));
  try {
    const file = join(folder, "c.yaml");
    writeFileSync(file, `cluster: x\n${NODES}vm: {kernel: sub/bzImage}\n`);
    expect(loadClusterConfig(file).vm.kernel).toBe(join(folder, "sub/bzImage"));
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("duplicate keys and broken YAML are reported where they stand", () => {
  expect(refusal(`cluster: x\ncluster: y\n${NODES}`)).toEqual([
    "c.yaml:2:1: Map keys must be unique",
  ]);
  expect(refusal("cluster: [x\n")[0]).toMatch(/^c\.yaml:\d+:\d+: /);
  expect(refusal("a: 1\n--- \nb: 2\n")[0]).toMatch(/^c\.yaml:2:1: /);
  expect(refusal("\t- x")[0]).toMatch(/^c\.yaml:1:\d+: /);
});

test("unknown keys name the nearest known one", () => {
  expect(refusal(`cluster: x\n${NODES}vm:\n  kernl: /k\n`)).toEqual([
    "c.yaml:7:3: unknown key vm.kernl; did you mean kernel?",
  ]);
  expect(refusal(`cluster: x\n${NODES}gpu: 1\n`)).toEqual(["c.yaml:6:1: unknown key gpu"]);
  expect(refusal("cluster: x\nnodes:\n  - {name: a, cpus: 1, memory: 64M, memry: 1}\n")).toEqual([
    "c.yaml:3:37: unknown key nodes[0].memry; did you mean memory?",
  ]);
});

test("wrong types and values say what was expected and found, all at once", () => {
  const text = `cluster: "Not A Name"
nodes:
  - name: a
    cpus: many
    memory: 512
  - 7
vm:
  reboot: perhaps
  page_tables: none
`;
  expect(refusal(text)).toEqual([
    "c.yaml:1:10: cluster: expected a name of a-z, 0-9 and '-', at most 63 characters, " +
      'found "Not A Name"',
    'c.yaml:4:11: nodes[0].cpus: expected a whole number from 1 to 64, found "many"',
    'c.yaml:5:13: nodes[0].memory: expected a size with its unit such as "512M" or "4G", found 512',
    "c.yaml:6:5: nodes[1]: expected a mapping of a node's settings, found 7",
    'c.yaml:8:11: vm.reboot: expected true or false, found "perhaps"',
    'c.yaml:9:16: vm.page_tables: expected one of auto, strict, replicated, found "none"',
  ]);
});

test("missing keys are reported at what lacks them", () => {
  expect(refusal("nodes:\n  - name: a\n    cpus: 1\n")).toEqual([
    "c.yaml:1:1: cluster is missing: expected a name of a-z, 0-9 and '-', at most 63 characters",
    'c.yaml:2:5: nodes[0].memory is missing: expected a size with its unit such as "512M" or "4G"',
  ]);
  expect(refusal("")[0]).toContain("c.yaml:1:1: the file: expected a mapping");
  expect(refusal("- a")[0]).toContain("found a list");
});

test("what only makes sense together is checked too", () => {
  const node = (name: string, rest: string) => `  - {name: ${name}, cpus: 1, memory: 64M${rest}}\n`;
  const head = "cluster: x\nnodes:\n";
  expect(refusal(head + node("a", "") + node("a", ""))[0]).toContain(
    "nodes[1].name: a is nodes[0]",
  );
  expect(refusal(head + node("a", ', address: "h:1"') + node("b", ""))[0]).toContain(
    "nodes[1] has no address",
  );
  const same = node("a", ', address: "h:1"') + node("b", ', address: "h:1"');
  expect(refusal(head + same)[0]).toContain("nodes[0] has it too");
  expect(refusal(head + node("a", ', address: "h:70000"'))[0]).toContain("is not host:port");
  expect(refusal(`${head}  - {name: a, cpus: 1, memory: big}\n`)[0]).toContain(
    'c.yaml:3:32: nodes[0].memory: "big" is not a size',
  );
  expect(refusal(`cluster: x\n${NODES}vm: {hold_max: "3"}`)[0]).toContain("vm.hold_max");
});

test("what memory costs: a value for every pair of nodes, with its unit", () => {
  const { memoryCosts } = parseClusterConfig(
    `cluster: x\n${NODES}vm:\n  memory_latency: [[90.5ns]]\n  memory_bandwidth: [[20G]]\n`,
    "c.yaml",
  ).vm;
  expect(memoryCosts).toEqual({ latencyNs: [[90.5]], bandwidthMBps: [[(20 * 2 ** 30) / 1e6]] });
  const wrong = (line: string) => refusal(`cluster: x\n${NODES}vm:\n  ${line}\n`)[0];
  expect(wrong("memory_latency: [[90ns, 1us]]")).toBe(
    "c.yaml:7:19: vm.memory_latency: 1 rows of 1 values, one for each node",
  );
  expect(wrong("memory_latency: [[90]]")).toContain("vm.memory_latency[0][0]: expected");
  expect(wrong("memory_latency: [[0ns]]")).toContain('vm.memory_latency[0][0]: "0ns" is nothing');
  expect(wrong("memory_bandwidth: [[fast]]")).toContain("memory_bandwidth[0][0]");
});

test("hostile input is refused, not obeyed", () => {
  const bomb = ["a: &a [x,x,x,x,x,x,x,x,x]"];
  for (let i = 0; i < 8; i++) {
    const from = String.fromCharCode(97 + i);
    const to = String.fromCharCode(98 + i);
    bomb.push(`${to}: &${to} [${`*${from},`.repeat(9).slice(0, -1)}]`);
  }
  expect(refusal(bomb.join("\n"))[0]).toMatch(/^c\.yaml:1:1: /);
  expect(refusal("x".repeat(2 << 20))[0]).toContain("larger than");
  expect(refusal("? [a]\n: 1\n").length).toBeGreaterThan(0);
  expect(refusal(`cluster: x\n__proto__: {a: 1}\n${NODES}`)[0]).toContain("c.yaml:2:1");
  const many = Array.from({ length: 50 }, (_, i) => `k${i}: 1`).join("\n");
  expect(refusal(many).at(-1)).toMatch(/^and \d+ more$/);
});

test("a file that cannot be read is named", () => {
  expect(() => loadClusterConfig("/nonexistent/c.yaml")).toThrow("/nonexistent/c.yaml");
  expect(() => loadClusterConfig("/")).toThrow("EISDIR");
});
