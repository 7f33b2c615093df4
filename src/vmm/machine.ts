// A VM's whole machine as plain data, as one of its nodes needs it: memory, bus, CPUID, and on node
// 0 the bytes to load and the boot vCPU's registers. Every node computes the same plan from the
// same request, so nothing of it has to be sent. Beyond reading the first bytes of kernel and
// initrd (node 0 only) this is pure.

import type { MemoryCosts } from "../../acpi/board.ts";
import { buildTables } from "../../acpi/tables.ts";
import { openBootFile } from "../base/boot-file.ts";
import { SsihvError } from "../base/errors.ts";
import { acpiBoard } from "./acpi-board.ts";
import { busRegions, registerFiles } from "./board.ts";
import { loadBzImage } from "./bzimage.ts";
import { type CpuModel, checkHost, type HostCpu, intersect, tscTolerancePpm } from "./cpu-model.ts";
import { decodeModel } from "./cpu-model-json.ts";
import { cpuidFor } from "./cpuid-leaves.ts";
import {
  type ConfigNode,
  type EngineConfigPlan,
  type EngineSettings,
  engineConfig,
} from "./engine-config.ts";
import type { HypervisorIdentity } from "./hypervisor-identity.ts";
import { isMemoryNode, PAGE_BYTES } from "./memory-budget.ts";
import { layoutMemory, type MemoryMap } from "./memory-map.ts";
import { pollUsMaxFor } from "./polling.ts";
import type {
  BusRegion,
  CpuidEntry,
  Load,
  MsrEntry,
  RegisterFile,
  VcpuRecord,
  VirtioDevice,
} from "./records.ts";
import { type NodeShape, placeVcpus, type VcpuPlace } from "./topology.ts";
import { virtioBalloon } from "./virtio-balloon.ts";

/** What to build; src/engine/messages.ts EnginePlan has this shape. */
export interface MachineRequest {
  /** The node that asks. */
  readonly node: number;
  readonly nodes: readonly (ConfigNode & { readonly id: number })[];
  readonly kernel: string;
  readonly initrd?: string | undefined;
  readonly cmdline: string;
  /** A recorded model (encodeModel); absent: this host's own. */
  readonly cpuModel?: unknown;
  readonly hypervisor?: HypervisorIdentity;
  /** SLIT: distances[from][to], 10 is local; absent: 10 and 20. */
  readonly distances?: readonly (readonly number[])[];
  readonly lane?: { readonly key: string } | undefined;
  readonly frameCopies?: number | undefined;
  /** What its balloon is to take from the guest at first; absent: it has none. */
  readonly balloonBytes?: number | undefined;
  readonly options: Omit<EngineSettings, "pollUsMax"> & { readonly pollUsMax?: number };
}

/** The asking host, as src/native reports it. */
export interface MachineHost {
  cpuid: readonly CpuidEntry[];
  msrs: readonly MsrEntry[];
  tscKhz: number;
  /** CPUs the engine may use. */
  cpus: number;
}

export interface MachinePlan {
  memory: MemoryMap;
  vcpus: VcpuPlace[];
  cpuModel: CpuModel;
  /** abi.zig EngineConfig but for the file descriptors. */
  engineConfig: EngineConfigPlan;
  busRegions: BusRegion[];
  registerFiles: RegisterFile[];
  /** Of node 0, in a VM that has one. */
  balloon: VirtioDevice | undefined;
  /** CPUID of this node's vCPUs, by index. */
  cpuid: CpuidEntry[][];
  /** MSRs that every vCPU starts with. */
  msrs: MsrEntry[];
  /** Only where the boot vCPU is: node 0. */
  boot: Boot | undefined;
}

/** The images that go into memory before the first instruction, and where that is. */
export interface Boot {
  /** `costs`: what memory costs, known once the nodes are linked. */
  loads(costs?: MemoryCosts): Load[];
  registers: VcpuRecord;
}

/** A host's CPU in the JSON form that crosses hosts. */
export function hostCpu(name: string, host: Omit<MachineHost, "cpus">): HostCpu {
  return {
    name,
    cpuid: host.cpuid.map(({ function: fn, index, flags, eax, ebx, ecx, edx }) => {
      return { function: fn, index, flags, eax, ebx, ecx, edx };
    }),
    msrs: host.msrs.map(({ index, value }) => ({ index, value: `0x${value.toString(16)}` })),
    tscKhz: host.tscKhz,
  };
}

/**
 * IA32_MTRR_DEF_TYPE (SDM vol. 3A, 12.11.2.1): MTRRs on (bit 11), all memory write-back (6). There
 * is no firmware to set it, and with MTRRs off Linux gives up PAT.
 */
const MTRR_DEF_TYPE: MsrEntry = { index: 0x2ff, value: 0x806n };
/**
 * IA32_MISC_ENABLE (SDM vol. 4): fast strings (bit 0) on; without it Linux clears ERMS and
 * REP_GOOD.
 */
const MISC_ENABLE: MsrEntry = { index: 0x1a0, value: 1n };

function startMsrs(model: CpuModel): MsrEntry[] {
  return [
    MTRR_DEF_TYPE,
    ...(model.kind === "intel" ? [MISC_ENABLE] : []),
    ...model.msrs.map(({ index, value }) => ({ index, value: BigInt(value) })),
  ];
}

/** The guest's nodes: memory nodes only lend to them. */
function computeNodes(request: MachineRequest): NodeShape[] {
  return request.nodes
    .filter((node) => !isMemoryNode(node))
    .map(({ id, vcpus, memoryBytes }) => ({ id, vcpus, memoryBytes: BigInt(memoryBytes) }));
}

function modelFor(request: MachineRequest, host: MachineHost): CpuModel {
  const own = hostCpu(`node ${request.node}`, host);
  if (request.cpuModel === undefined) {
    if (computeNodes(request).length > 1) {
      throw new SsihvError("config_invalid", "a VM on several nodes needs a recorded CPU model", {
        hint: "intersect the hosts' CPUs first and give every node the result",
      });
    }
    return intersect([own]);
  }
  const model = decodeModel(request.cpuModel);
  checkHost(model, own, tscTolerancePpm(request.options.clockDilation));
  return model;
}

function acpiLoads(
  request: MachineRequest,
  memory: MemoryMap,
  vcpus: readonly VcpuPlace[],
  costs?: MemoryCosts,
) {
  const nodes = computeNodes(request).length;
  const hasBalloon = request.balloonBytes !== undefined;
  const board = acpiBoard(memory, vcpus, nodes, request.distances, costs, hasBalloon);
  const tables = buildTables(board);
  const end = memory.acpiBase + memory.acpiBytes;
  for (const { gpa, name, bytes } of tables.blobs) {
    if (gpa < memory.acpiBase || gpa + BigInt(bytes.length) > end) {
      throw new Error(`ACPI table ${name} does not fit its area`);
    }
  }
  return { rsdp: tables.rsdp, loads: tables.blobs.map(({ gpa, bytes }): Load => ({ gpa, bytes })) };
}

function bootOf(request: MachineRequest, memory: MemoryMap, vcpus: readonly VcpuPlace[]): Boot {
  const acpi = acpiLoads(request, memory, vcpus);
  const { loads, registers } = loadBzImage({
    kernel: openBootFile(request.kernel, "kernel", "kernel_invalid"),
    initrd:
      request.initrd === undefined
        ? undefined
        : openBootFile(request.initrd, "initrd", "initrd_invalid"),
    cmdline: request.cmdline,
    memory,
    rsdp: acpi.rsdp,
  });
  return {
    loads: (costs) => [...acpiLoads(request, memory, vcpus, costs).loads, ...loads],
    registers,
  };
}

/** A memory node's engine: the configuration alone, whatever its host's CPU is. */
export function planLender(request: MachineRequest, cpus: number): EngineConfigPlan {
  return engineConfig({
    node: request.node,
    nodes: request.nodes,
    ram: [],
    tscKhz: 0,
    laneKey: request.lane?.key,
    frameCopies: request.frameCopies,
    settings: {
      ...request.options,
      pollUsMax: request.options.pollUsMax ?? pollUsMaxFor(cpus, 0, 1),
    },
  });
}

export function planMachine(request: MachineRequest, host: MachineHost): MachinePlan {
  const nodes = computeNodes(request);
  const memory = layoutMemory(nodes);
  const vcpus = placeVcpus(nodes);
  const own = nodes[request.node];
  if (!own) {
    throw new SsihvError("topology_invalid", `node ${request.node} is not one of ${nodes.length}`);
  }
  const cpuModel = modelFor(request, host);
  if (memory.end > 1n << BigInt(cpuModel.physicalBits)) {
    throw new SsihvError(
      "memory_insufficient",
      `guest RAM ends at 0x${memory.end.toString(16)}, the hosts' CPUs address ` +
        `${cpuModel.physicalBits} bits`,
      { hint: "give the VM less memory" },
    );
  }
  const cpuid = vcpus
    .filter(({ node }) => node === own.id)
    .map(({ apicId }) =>
      cpuidFor(cpuModel, {
        apicId,
        cores: own.vcpus,
        vcpus: vcpus.length,
        dilation: request.options.clockDilation,
        hypervisor: request.hypervisor ?? "vmware",
      }),
    );
  return {
    memory,
    vcpus,
    cpuModel,
    engineConfig: engineConfig({
      node: own.id,
      nodes: request.nodes,
      ram: memory.ram,
      tscKhz: cpuModel.tscKhz,
      laneKey: request.lane?.key,
      frameCopies: request.frameCopies,
      settings: {
        ...request.options,
        pollUsMax: request.options.pollUsMax ?? pollUsMaxFor(host.cpus, own.vcpus, 1),
      },
    }),
    busRegions: busRegions(request.balloonBytes !== undefined),
    registerFiles: registerFiles(),
    balloon:
      own.id === 0 && request.balloonBytes !== undefined
        ? virtioBalloon(Math.floor(request.balloonBytes / Number(PAGE_BYTES)))
        : undefined,
    cpuid,
    msrs: startMsrs(cpuModel),
    boot: own.id === 0 ? bootOf(request, memory, vcpus) : undefined,
  };
}
