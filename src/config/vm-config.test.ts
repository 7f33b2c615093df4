import { expect, test } from "bun:test";
import { Value } from "@sinclair/typebox/value";

import { VmSpec } from "../control/vm-spec.ts";
import { loadVmConfig, parseVmConfig, VmConfigSchema } from "./vm-config.ts";

const FULL = `name: demo
nodes:
  - { cpus: 2, memory: 1G, host: a }
  - { cpus: 1, memory: 512M }
kernel: /boot/vmlinuz
initrd: /boot/initrd.img
cmdline: quiet
reboot: false
page_tables: strict
clock_dilation: 2
peer_timeout: 10s
stall_freeze: 500ms
hold_max: 2ms
poll_max: 0us
memory_nodes: 1
node_memory: 768M
memory_node_memory: 2G
cache: 64M
copies: 1
balloon: 256M
memory_latency: [[90ns, 40us], [40us, 90ns]]
memory_bandwidth: [[20G, 1G], [1G, 20G]]
`;

/** Of two nodes: within one, and between them. */
function square(own: number, other: number): number[][] {
  return [
    [own, other],
    [other, own],
  ];
}

test("every setting reaches the coordinator in its own units", () => {
  const read = parseVmConfig(FULL, "vm.yaml");
  expect(read).toEqual({
    name: "demo",
    nodes: [
      { cpus: 2, memoryBytes: 2 ** 30, host: "a" },
      { cpus: 1, memoryBytes: 2 ** 29 },
    ],
    ...{ kernel: "/boot/vmlinuz", initrd: "/boot/initrd.img", cmdline: "quiet", reboot: false },
    ...{ pageTables: "strict", clockDilation: 2, peerTimeoutMs: 10_000, stallFreezeMs: 500 },
    ...{ holdUsMax: 2000, pollUsMax: 0, memoryNodes: 1, nodeMemoryBytes: 768 * 2 ** 20 },
    ...{ memoryNodeMemoryBytes: 2 ** 31, cacheBytes: 2 ** 26, copies: 1 },
    balloonBytes: 2 ** 28,
    memoryLatencyNs: square(90, 40_000),
    memoryBandwidthMBps: square((20 * 2 ** 30) / 1e6, 2 ** 30 / 1e6),
  });
  expect(Value.Check(VmSpec, read)).toBe(true);
  // What the API takes and the file cannot say would be a setting out of reach.
  const keys = Object.keys(VmSpec.properties).length;
  expect([Object.keys(VmConfigSchema.properties).length, Object.keys(read).length]).toEqual([
    keys,
    keys,
  ]);
});

test("what is not said is not there", () => {
  const text = "name: a\nnodes: [{ cpus: 1, memory: 1G }]\nkernel: /k\n";
  expect(Object.keys(parseVmConfig(text, "vm.yaml"))).toEqual(["name", "nodes", "kernel"]);
});

test("every mistake is told at once, with its place", () => {
  const schema = "nam: x\nnodes:\n  - { cpus: 0, memory: 1G }\nkernel: /k\n";
  const told = () => parseVmConfig(schema, "vm.yaml");
  expect(told).toThrow("vm.yaml:1:1: unknown key nam; did you mean name?");
  expect(told).toThrow("name is missing: expected a name of");
  expect(told).toThrow(
    "vm.yaml:3:13: nodes[0].cpus: expected a whole number from 1 to 64, found 0",
  );
  const values = FULL.replace("512M", "512X")
    .replace("/boot/vmlinuz", "vmlinuz")
    .replace("peer_timeout: 10s", "peer_timeout: 10x");
  const wrong = () => parseVmConfig(values, "vm.yaml");
  expect(wrong).toThrow("vm.yaml:4:24: nodes[1].memory");
  expect(wrong).toThrow("vm.yaml:5:9: kernel: expected an absolute path");
  expect(wrong).toThrow("vm.yaml:11:15: peer_timeout");
  const odd = () => parseVmConfig(FULL.replace("512M", "513M"), "vm.yaml");
  expect(odd).toThrow("vm.yaml:4:24: nodes[1].memory: 513M is not a multiple of 2M");
  const none = FULL.replace("balloon: 256M", 'balloon: "0"');
  expect(parseVmConfig(none, "vm.yaml").balloonBytes).toBe(0);
  const twice = FULL.replace("memory: 512M", "memory: 512M, host: a");
  expect(() => parseVmConfig(twice, "vm.yaml")).toThrow("nodes[1].host: nodes[0] is on a");
  expect(() => loadVmConfig("/none.yaml")).toThrow("--file: /none.yaml cannot be read (ENOENT)");
});
