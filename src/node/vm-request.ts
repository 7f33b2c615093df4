// From what the user asked for to the plan of a VM: shares of CPUs and memory per node, files that
// are there, limits that hold. Everything that can be refused is refused here, before a process is
// started.

import { resolve } from "node:path";

import { openBootFile } from "../base/boot-file.ts";
import { SsihvError } from "../base/errors.ts";
import type { MemoryCostsGiven } from "../config/memory-costs.ts";
import type { NodePlan } from "../engine/messages.ts";
import { constants } from "../native/abi.gen.ts";
import { guestCmdline } from "../vmm/guest-cmdline.ts";
import {
  budgetOf,
  checkBalloon,
  givenBytes,
  isMemoryNode,
  type NodeSizes,
  PAGE_BYTES,
  planBudget,
  usedPercent,
} from "../vmm/memory-budget.ts";
import { layoutMemory, splitMemory } from "../vmm/memory-map.ts";
import { pollUsMaxFor } from "../vmm/polling.ts";
import { NODES_MAX, type NodeShape, splitVcpus, VCPUS_PER_NODE_MAX } from "../vmm/topology.ts";
import type { HostFacts } from "./host-facts.ts";
import { lanePort } from "./join-address.ts";
import type { VmDoor, VmPlan } from "./vm.ts";

export interface NodeRequest {
  readonly cpus: number;
  readonly memoryBytes: bigint;
}

/** What the hosts give, where the user said so. */
export interface MemoryRequest {
  /** Nodes that only lend memory, after those that run vCPUs. */
  readonly memoryNodes: number;
  readonly nodeBytes?: bigint;
  readonly memoryNodeBytes?: bigint;
  readonly cacheBytes?: bigint;
  readonly copies: number;
}

export interface VmRequest {
  readonly name: string;
  readonly kernel: string;
  readonly initrd?: string;
  /** The user's own kernel options, after the defaults. */
  readonly cmdline: string;
  /** The nodes that run vCPUs. */
  readonly nodes: readonly NodeRequest[];
  readonly memory: MemoryRequest;
  readonly addresses?: readonly string[];
  /** Absent: every node is on this host. */
  readonly door?: VmDoor;
  readonly reboot: boolean;
  readonly pageTables: "auto" | "strict" | "replicated";
  readonly clockDilation: number;
  readonly peerTimeoutMs: number;
  readonly stallFreezeMs: number;
  readonly holdUsMax: number;
  /** Longest time a node's shard polls before it sleeps; absent: by the CPUs of its host. */
  readonly pollUsMax?: number;
  /** Use the pager on a single node too. */
  readonly pager: boolean;
  readonly pinVcpus: boolean;
  readonly report: boolean;
  readonly systemMap?: string;
  /** What the guest is told of its memory; absent: what is measured. */
  readonly memoryCosts?: MemoryCostsGiven;
  /** Gives the VM a balloon, which takes so much from the guest at first. */
  readonly balloonBytes?: bigint;
}

/** A kernel line longer than this is cut by Linux (COMMAND_LINE_SIZE of x86). */
const CMDLINE_BYTES_MAX = 2047;
const NAME = /^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/;

/** `cpus` and `memory` over `count` nodes, as even as it goes. */
export function splitOverNodes(count: number, cpus: number, memory: bigint): NodeRequest[] {
  if (count < 1 || count > NODES_MAX) {
    throw new SsihvError("flag_invalid", `--nodes ${count}: 1 to ${NODES_MAX} nodes are possible`);
  }
  if (cpus < count || cpus > count * VCPUS_PER_NODE_MAX) {
    const most = count * VCPUS_PER_NODE_MAX;
    const message = `--cpus ${cpus} with --nodes ${count}: ${count} to ${most} are possible`;
    throw new SsihvError("flag_invalid", message, {
      hint: `every node runs at least one vCPU and at most ${VCPUS_PER_NODE_MAX}`,
    });
  }
  const shares = named("--memory", () => splitMemory(memory, count));
  return splitVcpus(cpus, count).map((share, i) => ({
    cpus: share,
    memoryBytes: shares[i] ?? 0n,
  }));
}

/** Puts the flag's name before what a lower layer says about its value. */
function named<T>(flag: string, make: () => T): T {
  try {
    return make();
  } catch (error) {
    if (!(error instanceof SsihvError)) throw error;
    throw new SsihvError(error.code, `${flag}: ${error.message}`, {
      ...(error.hint !== undefined && { hint: error.hint }),
      cause: error.cause,
    });
  }
}

/** Whether this host has the RAM that the nodes on it need. */
export function checkMemory(nodes: readonly NodeSizes[], facts: HostFacts): void {
  const asked = nodes.reduce((sum, node) => sum + givenBytes(node), 0);
  if (facts.memoryTotal === 0 || asked <= facts.memoryTotal) return;
  const mib = (bytes: number) => `${Math.floor(bytes / 2 ** 20)} MiB`;
  const message = `the VM asks for ${mib(asked)} of RAM, this host has ${mib(facts.memoryTotal)}`;
  throw new SsihvError("memory_insufficient", message, {
    hint: `ask for less: --memory ${Math.floor((facts.memoryAvailable * 0.8) / 2 ** 21) * 2}M`,
  });
}

/** Absolute path of a file that is there, readable and not empty. */
function checkFile(
  path: string,
  what: "kernel" | "initrd",
  code: "kernel_invalid" | "initrd_invalid",
): string {
  const absolute = resolve(path);
  return named(`--${what}`, () => {
    if (openBootFile(absolute, what, code).size > 0) return absolute;
    throw new SsihvError(code, `${what} ${absolute} is empty`, { hint: "name the right file" });
  });
}

/** The nodes whose engines run on this host. */
function localNodes<T>(nodes: readonly T[], door: VmDoor | undefined): readonly T[] {
  return door === undefined ? nodes : nodes.slice(0, 1);
}

/** Engines of one host must not poll each other's CPUs away; a host that joins judges itself. */
function pollingOf(request: VmRequest, facts: HostFacts): { pollUsMax?: number } {
  if (request.pollUsMax !== undefined) return { pollUsMax: request.pollUsMax };
  if (request.door !== undefined) return {};
  const vcpus = request.nodes.reduce((sum, node) => sum + node.cpus, 0);
  const engines = request.nodes.length + request.memory.memoryNodes;
  return { pollUsMax: pollUsMaxFor(facts.cpus, vcpus, engines) };
}

function checkDoor(door: VmDoor, request: VmRequest): void {
  const count = request.nodes.length + request.memory.memoryNodes;
  if (count < 2) {
    throw new SsihvError("flag_invalid", "--listen with one node: no other host can join", {
      hint: "add --nodes 2 or --memory-nodes 1",
    });
  }
  if (request.addresses !== undefined) {
    const message = "--listen: the nodes of the configuration file have addresses of their own";
    throw new SsihvError("flag_invalid", message, {
      hint: "remove either: with --listen the other nodes are the hosts that join",
    });
  }
  const last = lanePort(door.listen.port, count - 1);
  if (last > 65_535) {
    const message = `--listen: port ${door.listen.port} leaves none for the nodes, up to ${last}`;
    throw new SsihvError("flag_invalid", message, { hint: "choose a port such as 7700" });
  }
}

/** How the hosts' memory is used, where memory nodes lend some: a line for the user. */
export function memoryWords({ nodes, frameCopies = 1 }: VmPlan): string | undefined {
  const lending = nodes.filter(isMemoryNode);
  if (lending.length === 0) return undefined;
  const mib = (bytes: number) => `${Math.floor(bytes / 2 ** 20)} MiB`;
  const guest = nodes.reduce((sum, { memoryBytes }) => sum + memoryBytes, 0);
  const compute = nodes.flatMap((node) => {
    const { id, residentBytes = 0, cacheBytes = 0 } = node;
    if (isMemoryNode(node)) return [];
    const cache = cacheBytes === 0 ? "" : ` and ${mib(cacheBytes)} of others'`;
    return `node ${id} keeps ${mib(residentBytes)} of its own pages${cache}`;
  });
  const lent = lending.map(({ id, lentBytes = 0 }) => `memory node ${id} lends ${mib(lentBytes)}`);
  const copies = frameCopies === 1 ? "" : `, ${frameCopies} copies of each lent page`;
  const used = usedPercent(budgetOf(nodes)).toFixed(1);
  const states = mib((guest / Number(PAGE_BYTES)) * constants.page_state_bytes);
  const parts = [...compute, ...lent].join(", ");
  return (
    `${mib(guest)} of RAM: ${parts}${copies}; the guest has ${used} % of what the hosts give; ` +
    `page states take up to ${states} more on each node with vCPUs`
  );
}

/** What the user should know but that does not stop the VM. */
export function warnings(plan: VmPlan, facts: HostFacts): string[] {
  const nodes = localNodes(plan.nodes, plan.door);
  const cpus = nodes.reduce((sum, node) => sum + node.vcpus, 0);
  const memory = nodes.reduce((sum, node) => sum + givenBytes(node), 0);
  const texts: string[] = [];
  if (cpus > facts.cpus) {
    texts.push(`${cpus} vCPUs on ${facts.cpus} CPU(s): they will wait for each other`);
  }
  if (memory > facts.memoryAvailable) {
    const mib = Math.floor(facts.memoryAvailable / 2 ** 20);
    texts.push(`only ${mib} MiB of memory are free here: the VM may be killed when it uses more`);
  }
  if (plan.frameCopies === 1) {
    texts.push("each page on a memory node is there alone: if that node dies, so does the VM");
  }
  return texts;
}

/** The nodes with what each host gives, memory nodes last; refuses what has no room. */
function planNodes(shapes: readonly NodeShape[], memory: MemoryRequest): NodePlan[] {
  const all = shapes.length + memory.memoryNodes;
  const homes = shapes.map(({ memoryBytes, vcpus }) => ({ bytes: memoryBytes, vcpus }));
  const budget = planBudget({ homes, ...memory });
  const compute = shapes.map(({ id, vcpus, memoryBytes }, node) => ({
    id,
    vcpus,
    memoryBytes: Number(memoryBytes),
    // Alone, a node has nothing to budget.
    ...(all > 1 && {
      residentBytes: Number(budget.compute[node]?.residentBytes),
      cacheBytes: Number(budget.compute[node]?.cacheBytes),
    }),
  }));
  const lending = budget.memory.map((bytes, i) => {
    return { id: shapes.length + i, vcpus: 0, memoryBytes: 0, lentBytes: Number(bytes) };
  });
  return [...compute, ...lending];
}

export function planVm(request: VmRequest, facts: HostFacts): VmPlan {
  const { name, cmdline, nodes, memory } = request;
  if (!NAME.test(name)) {
    throw new SsihvError("flag_invalid", `--name "${name}" is not a name`, {
      hint: "use a-z, 0-9 and '-', at most 63 characters, such as demo-1",
    });
  }
  const shapes = nodes.map(
    ({ cpus, memoryBytes }, id): NodeShape => ({ id, vcpus: cpus, memoryBytes }),
  );
  // Refuses what cannot be laid out; the engines lay it out again from the same shapes.
  named("--memory", () => layoutMemory(shapes));
  const kernel = checkFile(request.kernel, "kernel", "kernel_invalid");
  const initrd =
    request.initrd === undefined
      ? undefined
      : checkFile(request.initrd, "initrd", "initrd_invalid");
  const line = guestCmdline(nodes.length, cmdline);
  if (line.includes("\0") || new TextEncoder().encode(line).length > CMDLINE_BYTES_MAX) {
    throw new SsihvError("flag_invalid", `--cmdline is longer than ${CMDLINE_BYTES_MAX} bytes`, {
      hint: "shorten it: Linux reads no more",
    });
  }
  const { door } = request;
  if (door !== undefined) checkDoor(door, request);
  const planned = planNodes(shapes, memory);
  checkMemory(localNodes(planned, door), facts);
  return {
    name,
    nodes: planned,
    ...(memory.memoryNodes > 0 && { frameCopies: memory.copies }),
    kernel,
    ...(initrd !== undefined && { initrd }),
    cmdline: line,
    pageTables: request.pageTables,
    options: {
      onReset: request.reboot ? "restart" : "stop",
      clockDilation: request.clockDilation,
      peerTimeoutMs: request.peerTimeoutMs,
      stallFreezeMs: request.stallFreezeMs,
      holdUsMax: request.holdUsMax,
      ...pollingOf(request, facts),
      plainMemory: planned.length === 1 && !request.pager,
      pinVcpus: request.pinVcpus,
      report: request.report,
      ...(request.systemMap !== undefined && { systemMap: resolve(request.systemMap) }),
    },
    ...(request.memoryCosts !== undefined && { memoryCosts: request.memoryCosts }),
    ...(request.balloonBytes !== undefined && {
      balloonBytes: checkBalloon(Number(request.balloonBytes), planned, "--balloon: "),
    }),
    ...(request.addresses !== undefined && { addresses: request.addresses }),
    ...(door !== undefined && { door }),
  };
}
