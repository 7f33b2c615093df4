// `ssihv run`: flags and configuration file become one request; a flag wins over the file. Pure
// but for the key file.

import { SsihvError } from "../base/errors.ts";
import type { ClusterConfig } from "../config/cluster-config.ts";
import { parseDurationUs } from "../config/duration.ts";
import { parseSize, parseSizeOrNone } from "../config/size.ts";
import type { HostSpec } from "../hosts/host-list.ts";
import type { HostPort } from "../node/join-address.ts";
import { readKeyFile } from "../node/key-file.ts";
import type { VmDoor } from "../node/vm.ts";
import { type MemoryRequest, splitOverNodes, type VmRequest } from "../node/vm-request.ts";
import type { SandboxFlags } from "./flags.ts";

export interface RunFlags extends SandboxFlags {
  readonly kernel?: string;
  readonly initrd?: string;
  readonly cmdline?: string;
  readonly cpus?: number;
  readonly memory?: bigint;
  readonly nodes?: number;
  readonly memoryNodes?: number;
  readonly nodeMemory?: bigint;
  readonly memoryNodeMemory?: bigint;
  readonly cache?: bigint;
  readonly copies?: number;
  readonly balloon?: bigint;
  readonly name?: string;
  readonly listen?: HostPort;
  readonly metrics?: HostPort;
  readonly keyFile?: string;
  readonly config?: string;
  readonly hosts?: readonly HostSpec[];
  readonly memoryHosts?: readonly HostSpec[];
  readonly ssh?: readonly string[];
  readonly acceptUnfit?: boolean;
  readonly reboot?: boolean;
  readonly pageTables?: "auto" | "strict" | "replicated";
  readonly clockDilation?: number;
  readonly peerTimeout?: number;
  readonly stallFreeze?: number;
  readonly holdMax?: number;
  readonly pollMax?: number;
  readonly pager: boolean;
  readonly pinVcpus: boolean;
  readonly report: boolean;
  readonly systemMap?: string;
  readonly json: boolean;
}

export const RUN_DEFAULTS = {
  name: "vm",
  cpus: 1,
  memory: 512n << 20n,
  nodes: 1,
  pageTables: "auto",
  clockDilation: 1,
  peerTimeoutMs: 5000,
  /** Of the guest's time: a dilated guest's second lasts longer, and its hosts are slow. */
  stallFreezeMs: 300,
  holdUsMax: 1000,
} as const;

/** A flag's whole number; refuses what Number() would forgive. */
export function wholeNumber(flag: string, min: number, max: number) {
  return (text: string): number => {
    const value = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
    if (value >= min && value <= max) return value;
    const message = `${flag}: "${text.slice(0, 40)}" is not a whole number from ${min} to ${max}`;
    throw new SsihvError("flag_invalid", message, { hint: `for example ${flag} ${min}` });
  };
}

/** A size; a small number without a unit is a slip. */
export function sizeFlag(flag: string) {
  return (text: string): bigint => {
    const bytes = parseSize(text, flag);
    if (/^\d+$/.test(text.trim()) && bytes < 1n << 20n) {
      throw new SsihvError("flag_invalid", `${flag}: ${text} is ${text} bytes`, {
        hint: `write the unit: ${flag} ${text}M`,
      });
    }
    return bytes;
  };
}

/** A size, or nothing. */
export function sizeOrNoneFlag(flag: string) {
  const size = sizeFlag(flag);
  return (text: string): bigint => (/^\s*0/.test(text) ? parseSizeOrNone(text, flag) : size(text));
}

export function durationFlag(flag: string) {
  return (text: string): number => parseDurationUs(text, flag);
}

function shapes(flags: RunFlags, config: ClusterConfig | undefined): VmRequest["nodes"] {
  const nodes = config?.nodes;
  const reshaped = flags.nodes ?? flags.cpus ?? flags.memory;
  if (nodes !== undefined && reshaped === undefined) return nodes;
  const cpus = nodes?.reduce((sum, node) => sum + node.cpus, 0) ?? RUN_DEFAULTS.cpus;
  const memory = nodes?.reduce((sum, node) => sum + node.memoryBytes, 0n) ?? RUN_DEFAULTS.memory;
  const count = flags.nodes ?? nodes?.length ?? RUN_DEFAULTS.nodes;
  // One vCPU per node is what someone who says only --nodes means.
  const least = nodes === undefined ? Math.max(cpus, count) : cpus;
  return splitOverNodes(count, flags.cpus ?? least, flags.memory ?? memory);
}

function memoryOf(flags: RunFlags, vm: ClusterConfig["vm"]): MemoryRequest {
  const nodeMemory = flags.nodeMemory ?? vm.nodeMemory;
  const memoryNodeMemory = flags.memoryNodeMemory ?? vm.memoryNodeMemory;
  const cache = flags.cache ?? vm.cache;
  return {
    memoryNodes: flags.memoryNodes ?? vm.memoryNodes ?? 0,
    ...(nodeMemory !== undefined && { nodeBytes: nodeMemory }),
    ...(memoryNodeMemory !== undefined && { memoryNodeBytes: memoryNodeMemory }),
    ...(cache !== undefined && { cacheBytes: cache }),
    copies: flags.copies ?? vm.copies ?? 1,
  };
}

/** Reads the key file: the one thing here that is not pure. */
function doorOf({ listen, keyFile }: RunFlags): VmDoor | undefined {
  if (listen !== undefined && keyFile !== undefined) {
    return { listen, key: readKeyFile(keyFile), keyFile };
  }
  if (listen === undefined && keyFile === undefined) return undefined;
  const missing = listen === undefined ? "--listen" : "--key-file";
  const given = listen === undefined ? "--key-file" : "--listen";
  throw new SsihvError("flag_invalid", `${missing} is missing: ${given} needs it`, {
    hint: "ssihv run --nodes 2 --listen 10.0.0.1:7700 --key-file vm.key --kernel FILE",
  });
}

/** Whole milliseconds of a flag, given in microseconds. */
function wholeMs(us: number | undefined): number | undefined {
  return us === undefined ? undefined : Math.ceil(us / 1000);
}

function stallFreezeOf(
  given: number | undefined,
  { peerTimeoutMs, clockDilation }: { peerTimeoutMs: number; clockDilation: number },
): number {
  if (given === undefined) {
    return Math.min(RUN_DEFAULTS.stallFreezeMs * clockDilation, Math.ceil(peerTimeoutMs / 2));
  }
  if (given < peerTimeoutMs) return given;
  const limit = `the peer timeout, ${peerTimeoutMs} ms`;
  const message = `--stall-freeze: ${given} ms is not less than ${limit}`;
  throw new SsihvError("flag_invalid", message, {
    hint: "a node silent for longer than --peer-timeout is dead: freeze earlier, or never with 0s",
  });
}

export function runRequest(flags: RunFlags, config: ClusterConfig | undefined): VmRequest {
  const vm = config?.vm ?? {};
  const kernel = flags.kernel ?? vm.kernel;
  if (kernel === undefined) {
    throw new SsihvError("flag_invalid", "--kernel is missing: there is nothing to boot", {
      hint: "ssihv run --kernel /boot/vmlinuz-$(uname -r) --initrd initrd.img",
    });
  }
  const nodes = shapes(flags, config);
  const given = config?.nodes.flatMap(({ address }) => address ?? []) ?? [];
  const addresses = given.length === nodes.length ? given : undefined;
  const door = doorOf(flags);
  const initrd = flags.initrd ?? vm.initrd;
  const peerTimeoutMs =
    wholeMs(flags.peerTimeout) ?? vm.peerTimeoutMs ?? RUN_DEFAULTS.peerTimeoutMs;
  const clockDilation = flags.clockDilation ?? vm.clockDilation ?? RUN_DEFAULTS.clockDilation;
  const stallFreezeMs = stallFreezeOf(wholeMs(flags.stallFreeze) ?? vm.stallFreezeMs, {
    peerTimeoutMs,
    clockDilation,
  });
  const pollUsMax = flags.pollMax ?? vm.pollUsMax;
  const balloon = flags.balloon ?? vm.balloon;
  return {
    name: flags.name ?? config?.cluster ?? RUN_DEFAULTS.name,
    kernel,
    ...(initrd !== undefined && { initrd }),
    cmdline: flags.cmdline ?? vm.cmdline ?? "",
    nodes,
    memory: memoryOf(flags, vm),
    ...(addresses !== undefined && { addresses }),
    ...(door !== undefined && { door }),
    reboot: flags.reboot ?? vm.reboot ?? true,
    pageTables: flags.pageTables ?? vm.pageTables ?? RUN_DEFAULTS.pageTables,
    clockDilation,
    peerTimeoutMs,
    stallFreezeMs,
    holdUsMax: flags.holdMax ?? vm.holdUsMax ?? RUN_DEFAULTS.holdUsMax,
    ...(pollUsMax !== undefined && { pollUsMax }),
    pager: flags.pager,
    pinVcpus: flags.pinVcpus,
    report: flags.report,
    ...(flags.systemMap !== undefined && { systemMap: flags.systemMap }),
    ...(vm.memoryCosts !== undefined && { memoryCosts: vm.memoryCosts }),
    ...(balloon !== undefined && { balloonBytes: balloon }),
  };
}
