// vm.yaml: one VM as `ssihv vm create -f` takes it to the coordinator: its nodes, what they boot,
// and the settings that differ from the defaults. Paths are those of the host that leads the VM, so
// a relative one means nothing and is a mistake.

import { type Static, Type } from "@sinclair/typebox";

import { SsihvError } from "../base/errors.ts";
import { parseDurationUs } from "./duration.ts";
import { readCosts } from "./memory-costs.ts";
import { parseSize, parseSizeOrNone } from "./size.ts";
import { NAME_EXPECTED, Name, SETTINGS_EXPECTED, Text, VM_SETTINGS } from "./vm-settings.ts";
import { type Reader, readYaml, type SchemaWords, show, yamlText } from "./yaml-schema.ts";
import type { Path } from "./yaml-source.ts";

const NodeSchema = Type.Object(
  {
    cpus: Type.Integer({ minimum: 1, maximum: 64 }),
    memory: Text,
    host: Type.Optional(Name),
  },
  { additionalProperties: false },
);

export const VmConfigSchema = Type.Object(
  {
    name: Name,
    nodes: Type.Array(NodeSchema, { minItems: 1, maxItems: 8 }),
    kernel: Text,
    ...VM_SETTINGS,
  },
  { additionalProperties: false },
);
type Raw = Static<typeof VmConfigSchema>;
type RawNode = Static<typeof NodeSchema>;

export const VM_KEYS = Object.keys(VmConfigSchema.properties);
export const VM_NODE_KEYS = Object.keys(NodeSchema.properties);

export const PATH_EXPECTED = "an absolute path on the host that leads the VM";

const WORDS: SchemaWords = {
  keys: { "": VM_KEYS, nodes: VM_NODE_KEYS },
  expected: {
    ...SETTINGS_EXPECTED,
    name: NAME_EXPECTED,
    host: NAME_EXPECTED,
    nodes: "a list of 1 to 8 nodes, each with cpus and memory",
    kernel: PATH_EXPECTED,
    initrd: PATH_EXPECTED,
  },
  whole: "a mapping with name, nodes and kernel",
  hint: "ssihv vm create --help shows such a file",
};

/** As the coordinator takes it (src/control/vm-spec.ts). */
export interface VmConfigRead {
  name: string;
  nodes: { cpus: number; memoryBytes: number; host?: string }[];
  kernel: string;
  initrd?: string;
  cmdline?: string;
  reboot?: boolean;
  pageTables?: "auto" | "strict" | "replicated";
  clockDilation?: number;
  peerTimeoutMs?: number;
  stallFreezeMs?: number;
  holdUsMax?: number;
  pollUsMax?: number;
  memoryNodes?: number;
  nodeMemoryBytes?: number;
  memoryNodeMemoryBytes?: number;
  cacheBytes?: number;
  copies?: number;
  balloonBytes?: number;
  memoryLatencyNs?: number[][];
  memoryBandwidthMBps?: number[][];
}

type TextKey = {
  [K in keyof Raw]-?: NonNullable<Raw[K]> extends string ? K : never;
}[keyof Raw];

/** Where in a file a VM is declared. */
export interface VmPaths {
  readonly nodes: Path;
  readonly settings: Path;
}

/** Values of keys that may be missing; a mistake stands for 0 and is blamed. */
class Values {
  private readonly raw: Raw;
  private readonly at: Path;
  private readonly reader: Reader;

  constructor(raw: Raw, at: Path, reader: Reader) {
    this.raw = raw;
    this.at = at;
    this.reader = reader;
  }

  size(key: TextKey, parse: typeof parseSize = parseSize): number | undefined {
    const text = this.raw[key];
    return text === undefined
      ? undefined
      : Number(this.reader.at([...this.at, key], text, (value, what) => parse(value, what), 0n));
  }

  us(key: TextKey): number | undefined {
    const text = this.raw[key];
    return text === undefined
      ? undefined
      : this.reader.at([...this.at, key], text, parseDurationUs, 0);
  }

  ms(key: TextKey): number | undefined {
    const us = this.us(key);
    return us === undefined ? undefined : Math.ceil(us / 1000);
  }

  path(key: "kernel" | "initrd"): void {
    const text = this.raw[key];
    if (text === undefined || text.startsWith("/")) return;
    const expected = WORDS.expected[key] ?? "";
    const path = [...this.at, key];
    const found = JSON.stringify(text);
    this.reader.blame(path, `${show(path)}: expected ${expected}, found ${found}`);
  }
}

/** An object without the keys whose value is undefined. */
function defined<T extends object>(value: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  const entries = Object.entries(value).filter(([, each]) => each !== undefined);
  return Object.fromEntries(entries) as { [K in keyof T]?: Exclude<T[K], undefined> };
}

function mutable(rows: readonly (readonly number[])[] | undefined): number[][] | undefined {
  return rows?.map((row) => [...row]);
}

/** Guest RAM is made of large pages (src/vmm/memory-map.ts). */
const RAM_BLOCK_BYTES = 2n << 20n;

function parseRam(value: string, what: string): bigint {
  const bytes = parseSize(value, what);
  if (bytes % RAM_BLOCK_BYTES === 0n) return bytes;
  throw new SsihvError("config_invalid", `${what}: ${value} is not a multiple of 2M`);
}

function readNodes(raw: readonly RawNode[], at: Path, reader: Reader): VmConfigRead["nodes"] {
  const hosts = new Map<string, number>();
  return raw.map(({ cpus, memory, host }, i) => {
    const path = [...at, i, "memory"];
    const memoryBytes = Number(reader.at(path, memory, parseRam, RAM_BLOCK_BYTES));
    const other = host === undefined ? undefined : hosts.get(host);
    if (other !== undefined) {
      const where = [...at, i, "host"];
      reader.blame(where, `${show(where)}: nodes[${other}] is on ${host}: one node for each host`);
    }
    if (host !== undefined) hosts.set(host, i);
    return { cpus, memoryBytes, ...(host !== undefined && { host }) };
  });
}

/** A VM that the schema has nothing against; what its values have is blamed. */
export function readVm(raw: Raw, at: VmPaths, reader: Reader): VmConfigRead {
  const values = new Values(raw, at.settings, reader);
  const nodes = readNodes(raw.nodes, at.nodes, reader);
  values.path("kernel");
  values.path("initrd");
  const { memoryCosts } = readCosts(raw, at.settings, nodes.length, reader);
  return {
    name: raw.name,
    nodes,
    kernel: raw.kernel,
    ...defined({
      initrd: raw.initrd,
      cmdline: raw.cmdline,
      reboot: raw.reboot,
      pageTables: raw.page_tables,
      clockDilation: raw.clock_dilation,
      peerTimeoutMs: values.ms("peer_timeout"),
      stallFreezeMs: values.ms("stall_freeze"),
      holdUsMax: values.us("hold_max"),
      pollUsMax: values.us("poll_max"),
      memoryNodes: raw.memory_nodes,
      nodeMemoryBytes: values.size("node_memory"),
      memoryNodeMemoryBytes: values.size("memory_node_memory"),
      cacheBytes: values.size("cache"),
      copies: raw.copies,
      balloonBytes: values.size("balloon", parseSizeOrNone),
      memoryLatencyNs: mutable(memoryCosts?.latencyNs),
      memoryBandwidthMBps: mutable(memoryCosts?.bandwidthMBps),
    }),
  };
}

/** `file` is named in errors. */
export function parseVmConfig(text: string, file: string): VmConfigRead {
  const { raw, reader } = readYaml(text, file, VmConfigSchema, WORDS);
  const read = readVm(raw, { nodes: ["nodes"], settings: [] }, reader);
  reader.refuseMistakes();
  return read;
}

export function loadVmConfig(file: string): VmConfigRead {
  const hint = "name a YAML file; ssihv vm create --help shows one";
  return parseVmConfig(yamlText(file, "--file", hint), file);
}
