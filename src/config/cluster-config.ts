// cluster-config.yaml: which nodes make up the VM and how it boots, for `ssihv run`; and which VMs
// a cluster is to have, for `ssihv cluster apply` (declared-vms.ts). One schema, checked as a
// whole: every mistake in the file is reported at once, each with file, line and column. Only
// settings that something reads exist; an unknown key is a mistake, never ignored.

import { dirname, resolve } from "node:path";
import { type Static, Type } from "@sinclair/typebox";

import { parseDurationUs } from "./duration.ts";
import { type MemoryCostsGiven, readCosts } from "./memory-costs.ts";
import { parseSize, parseSizeOrNone } from "./size.ts";
import { VM_KEYS, VM_NODE_KEYS, VmConfigSchema } from "./vm-config.ts";
import { NAME_EXPECTED, Name, SETTINGS_EXPECTED, Text, VM_SETTINGS } from "./vm-settings.ts";
import { type Reader, readYaml, type SchemaWords, show, yamlText } from "./yaml-schema.ts";

const NodeSchema = Type.Object(
  {
    name: Name,
    address: Type.Optional(Text),
    cpus: Type.Integer({ minimum: 1, maximum: 64 }),
    memory: Text,
  },
  { additionalProperties: false },
);

const VmSchema = Type.Object(
  {
    kernel: Type.Optional(Text),
    ...VM_SETTINGS,
  },
  { additionalProperties: false },
);

export const ClusterConfigSchema = Type.Object(
  {
    cluster: Name,
    nodes: Type.Optional(Type.Array(NodeSchema, { minItems: 1, maxItems: 8 })),
    vm: Type.Optional(VmSchema),
    vms: Type.Optional(Type.Array(VmConfigSchema, { minItems: 1, maxItems: 1024 })),
  },
  { additionalProperties: false, $id: "cluster-config" },
);

type Raw = Static<typeof ClusterConfigSchema>;
type RawNodes = NonNullable<Raw["nodes"]>;

export interface NodeConfig {
  readonly name: string;
  /** host:port its lanes listen on; undefined: a private socket of the host. */
  readonly address: string | undefined;
  readonly cpus: number;
  readonly memoryBytes: bigint;
}

export interface VmConfig {
  /** Absolute: relative paths in the file are relative to the file. */
  readonly kernel?: string;
  readonly initrd?: string;
  readonly cmdline?: string;
  readonly reboot?: boolean;
  readonly pageTables?: "auto" | "strict" | "replicated";
  readonly clockDilation?: number;
  readonly peerTimeoutMs?: number;
  readonly stallFreezeMs?: number;
  readonly memoryNodes?: number;
  /** Bytes. */
  readonly nodeMemory?: bigint;
  readonly memoryNodeMemory?: bigint;
  readonly cache?: bigint;
  readonly copies?: number;
  /** Bytes that the guest's balloon is to have at first; absent: it has none. */
  readonly balloon?: bigint;
  readonly holdUsMax?: number;
  readonly pollUsMax?: number;
  /** What the guest is told of its memory. */
  readonly memoryCosts?: MemoryCostsGiven;
}

export interface ClusterConfig {
  readonly cluster: string;
  readonly nodes: readonly NodeConfig[];
  readonly vm: VmConfig;
}

const KEYS = {
  "": Object.keys(ClusterConfigSchema.properties),
  nodes: Object.keys(NodeSchema.properties),
  vm: Object.keys(VmSchema.properties),
  vms: [...new Set([...VM_KEYS, ...VM_NODE_KEYS])],
};

const EXPECTED = {
  ...SETTINGS_EXPECTED,
  cluster: NAME_EXPECTED,
  name: NAME_EXPECTED,
  nodes: "a list of 1 to 8 nodes",
  address: 'text such as "10.0.0.1:7800"',
  vm: "a mapping of VM settings",
  vms: "a list of VMs, each as in the file of ssihv vm create",
  host: NAME_EXPECTED,
  kernel: "a path",
  initrd: "a path",
  cache: 'a size with its unit such as "64M"',
};

export const CLUSTER_WORDS: SchemaWords = {
  keys: KEYS,
  expected: EXPECTED,
  whole: "a mapping with cluster, nodes and vm, or vms",
  hint: "cluster-config.yaml in the source tree shows every setting with its meaning",
};

const ADDRESS = /^(\[[0-9a-f:.]+\]|[a-z0-9]([a-z0-9.-]*[a-z0-9])?):(\d{1,5})$/i;

function isAddress(text: string): boolean {
  const port = Number(ADDRESS.exec(text)?.[3] ?? 0);
  return port >= 1 && port <= 65535;
}

function readNodes(raw: RawNodes, reader: Reader): NodeConfig[] {
  const names = new Map<string, number>();
  const addresses = new Map<string, number>();
  return raw.map((node, i): NodeConfig => {
    const { name, address, cpus, memory } = node;
    if (names.has(name)) {
      reader.blame(["nodes", i, "name"], `nodes[${i}].name: ${name} is nodes[${names.get(name)}]`);
    }
    names.set(name, i);
    if (address !== undefined) {
      const path = ["nodes", i, "address"];
      if (!isAddress(address)) reader.blame(path, `${show(path)}: "${address}" is not host:port`);
      const other = addresses.get(address);
      if (other !== undefined) reader.blame(path, `${show(path)}: nodes[${other}] has it too`);
      addresses.set(address, i);
    }
    const memoryBytes = reader.at(["nodes", i, "memory"], memory, parseSize, 1n);
    return { name, address, cpus, memoryBytes };
  });
}

function readVm(raw: NonNullable<Raw["vm"]>, folder: string, reader: Reader): VmConfig {
  const duration = (key: "peer_timeout" | "stall_freeze" | "hold_max" | "poll_max") => {
    const text = raw[key];
    return text === undefined ? undefined : reader.at(["vm", key], text, parseDurationUs, 0);
  };
  const peerTimeoutUs = duration("peer_timeout");
  const stallFreezeUs = duration("stall_freeze");
  const size = (key: "node_memory" | "memory_node_memory" | "cache") => {
    const text = raw[key];
    return text === undefined ? undefined : reader.at(["vm", key], text, parseSize, 1n);
  };
  const nodeMemory = size("node_memory");
  const memoryNodeMemory = size("memory_node_memory");
  const cache = size("cache");
  const balloon =
    raw.balloon === undefined
      ? undefined
      : reader.at(["vm", "balloon"], raw.balloon, parseSizeOrNone, 0n);
  const holdUsMax = duration("hold_max");
  const pollUsMax = duration("poll_max");
  return {
    ...(raw.kernel !== undefined && { kernel: resolve(folder, raw.kernel) }),
    ...(raw.initrd !== undefined && { initrd: resolve(folder, raw.initrd) }),
    ...(raw.cmdline !== undefined && { cmdline: raw.cmdline }),
    ...(raw.reboot !== undefined && { reboot: raw.reboot }),
    ...(raw.page_tables !== undefined && { pageTables: raw.page_tables }),
    ...(raw.clock_dilation !== undefined && { clockDilation: raw.clock_dilation }),
    ...(peerTimeoutUs !== undefined && { peerTimeoutMs: Math.ceil(peerTimeoutUs / 1000) }),
    ...(stallFreezeUs !== undefined && { stallFreezeMs: Math.ceil(stallFreezeUs / 1000) }),
    ...(raw.memory_nodes !== undefined && { memoryNodes: raw.memory_nodes }),
    ...(nodeMemory !== undefined && { nodeMemory }),
    ...(memoryNodeMemory !== undefined && { memoryNodeMemory }),
    ...(cache !== undefined && { cache }),
    ...(raw.copies !== undefined && { copies: raw.copies }),
    ...(balloon !== undefined && { balloon }),
    ...(holdUsMax !== undefined && { holdUsMax }),
    ...(pollUsMax !== undefined && { pollUsMax }),
  };
}

/** `file` is named in errors; relative paths inside are relative to its folder. */
export function parseClusterConfig(text: string, file: string): ClusterConfig {
  const { raw, reader } = readYaml(text, file, ClusterConfigSchema, CLUSTER_WORDS);
  const rawNodes = raw.nodes ?? [];
  if (raw.nodes === undefined) {
    reader.blame([], `nodes is missing: expected ${EXPECTED.nodes}`);
    reader.refuseMistakes();
  }
  const nodes = readNodes(rawNodes, reader);
  const vm = {
    ...readVm(raw.vm ?? {}, dirname(resolve(file)), reader),
    ...readCosts(raw.vm ?? {}, ["vm"], rawNodes.length, reader),
  };
  const without = rawNodes.findIndex((node) => node.address === undefined);
  if (without >= 0 && rawNodes.some((node) => node.address !== undefined)) {
    reader.blame(["nodes", without], `nodes[${without}] has no address, other nodes have one`);
  }
  reader.refuseMistakes();
  return { cluster: raw.cluster, nodes, vm };
}

export function loadClusterConfig(file: string): ClusterConfig {
  const hint = "name a YAML file; cluster-config.yaml in the source tree is an example";
  return parseClusterConfig(yamlText(file, "--config", hint), file);
}
