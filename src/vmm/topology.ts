// Nodes, vCPUs and APIC ids of one VM, and the CPUID numbers that follow from them.
// Invariants: APIC id = node << 6 | index, so neither a package nor an x2APIC logical cluster (16
// ids) ever spans nodes; one package per node; one thread per core. Every leaf that tells a
// topology is made here from the same shape, so that CPUID and the SRAT cannot disagree.

import { SsihvError } from "../base/errors.ts";
import { CPUID_INDEXED, type CpuidEntry } from "./records.ts";

/** What one node gives to the VM. */
export interface NodeShape {
  id: number;
  vcpus: number;
  memoryBytes: bigint;
}

/** One vCPU: `index` counts within the node, `uid` over the whole VM (ACPI processor UID). */
export interface VcpuPlace {
  apicId: number;
  node: number;
  index: number;
  uid: number;
}

/** abi.zig apic_node_shift. */
export const APIC_NODE_SHIFT = 6;
/** abi.zig vcpus_max. */
export const VCPUS_PER_NODE_MAX = 64;
/** abi.zig nodes_max. */
export const NODES_MAX = 8;

/** Id 0xFF is "all CPUs" to an xAPIC (SDM vol. 3A, 11.6.2.1), which is how every CPU starts. */
const XAPIC_BROADCAST = 0xff;

/** Most vCPUs that node `node` can have: all its APIC ids, but for the one that is no CPU's. */
export function vcpusMax(node: number): number {
  return node === XAPIC_BROADCAST >> APIC_NODE_SHIFT ? VCPUS_PER_NODE_MAX - 1 : VCPUS_PER_NODE_MAX;
}

export function apicId(node: number, index: number): number {
  return (node << APIC_NODE_SHIFT) | index;
}

/** Refuses a shape that no engine can run; node ids must be 0, 1, 2 ... in order. */
export function checkNodes(nodes: readonly NodeShape[]): void {
  if (nodes.length === 0) {
    throw new SsihvError("topology_invalid", "the VM has no nodes", {
      hint: "give at least one node",
    });
  }
  if (nodes.length > NODES_MAX) {
    throw new SsihvError(
      "topology_invalid",
      `the VM has ${nodes.length} nodes, at most ${NODES_MAX} are possible`,
      { hint: `use --nodes ${NODES_MAX} or fewer` },
    );
  }
  nodes.forEach((node, position) => {
    if (node.id !== position) {
      throw new SsihvError(
        "topology_invalid",
        `node ${node.id} stands at place ${position}: ids must be 0, 1, 2 ... in order`,
      );
    }
    const most = vcpusMax(node.id);
    if (!Number.isInteger(node.vcpus) || node.vcpus < 0 || node.vcpus > most) {
      throw new SsihvError(
        "topology_invalid",
        `node ${node.id} has ${node.vcpus} vCPUs, 0 to ${most} are possible`,
        { hint: "spread the vCPUs over more nodes or ask for fewer" },
      );
    }
  });
  if (nodes[0]?.vcpus === 0) {
    throw new SsihvError("topology_invalid", "node 0 has no vCPU: the boot vCPU lives there", {
      hint: "give node 0 at least one vCPU",
    });
  }
}

/** `total` vCPUs over `nodes` nodes, as even as it goes, the lower nodes first. */
export function splitVcpus(total: number, nodes: number): number[] {
  if (!Number.isInteger(nodes) || nodes < 1 || nodes > NODES_MAX) {
    throw new SsihvError("topology_invalid", `${nodes} nodes: 1 to ${NODES_MAX} are possible`);
  }
  const shares = Array.from({ length: nodes }, () => 0);
  const most = shares.reduce((sum, _, node) => sum + vcpusMax(node), 0);
  if (!Number.isInteger(total) || total < nodes || total > most) {
    throw new SsihvError(
      "topology_invalid",
      `${total} vCPUs over ${nodes} node(s): ${nodes} to ${most} are possible`,
      { hint: "every node runs at least one vCPU and at most 64" },
    );
  }
  for (let given = 0; given < total; given++) {
    const open = shares.map((share, node) => (share < vcpusMax(node) ? share : total));
    const least = open.indexOf(Math.min(...open));
    shares[least] = (shares[least] ?? 0) + 1;
  }
  return shares;
}

/** All vCPUs, boot vCPU first, in APIC id order. */
export function placeVcpus(nodes: readonly NodeShape[]): VcpuPlace[] {
  checkNodes(nodes);
  const places: VcpuPlace[] = [];
  for (const node of nodes) {
    for (let index = 0; index < node.vcpus; index++) {
      places.push({ apicId: apicId(node.id, index), node: node.id, index, uid: places.length });
    }
  }
  return places;
}

/** A package as CPUID tells it to one vCPU of it. */
export interface PackageView {
  apicId: number;
  /** vCPUs in this package (this node). */
  cores: number;
}

/** APIC ids one package may use: what "maximum addressable ids" fields tell. */
export const PACKAGE_IDS = 1 << APIC_NODE_SHIFT;

/** Leaf 1 EBX 31:16: initial APIC id and addressable ids per package (SDM vol. 2A, CPUID). */
export function leaf1Ebx(hostEbx: number, view: PackageView): number {
  // Brand index (7:0) and CLFLUSH line size (15:8) are the host's.
  return (((view.apicId & 0xff) << 24) | (PACKAGE_IDS << 16) | (hostEbx & 0xffff)) >>> 0;
}

/** Leaf 0xB or 0x1F with its three subleaves: thread, core, end. */
export function topologyLeaf(leaf: 0xb | 0x1f, view: PackageView): CpuidEntry[] {
  const level = (index: number, shift: number, count: number, type: number): CpuidEntry => ({
    function: leaf,
    index,
    flags: CPUID_INDEXED,
    eax: shift, // bits 4:0: shift of the x2APIC id to the next level
    ebx: count, // bits 15:0: logical processors at this level
    ecx: (type << 8) | index, // 15:8 level type (1 thread, 2 core, 0 invalid), 7:0 subleaf
    edx: view.apicId,
  });
  return [level(0, 0, 1, 1), level(1, APIC_NODE_SHIFT, view.cores, 2), level(2, 0, 0, 0)];
}

/**
 * EAX of a cache subleaf of leaf 4 (Intel) or 0x8000001D (AMD), both laid out alike: bits 25:14 ids
 * that share the cache minus one, bits 31:26 core ids of the package minus one (Intel alone).
 * Level 3 and up is shared by the package, anything below belongs to one core.
 */
export function cacheEax(hostEax: number, vendor: "intel" | "amd"): number {
  const kind = hostEax & 0x1f;
  if (kind === 0) return 0; // no more caches
  const level = (hostEax >>> 5) & 7;
  const sharing = level >= 3 ? PACKAGE_IDS - 1 : 0;
  const cores = vendor === "intel" ? PACKAGE_IDS - 1 : 0;
  return ((cores << 26) | (sharing << 14) | (hostEax & 0x3fff)) >>> 0;
}

/**
 * 0x80000008 ECX on AMD: 15:12 width of the id within a package, 7:0 cores minus one (APM vol. 3).
 */
export function amdCoreCount(view: PackageView): number {
  return (APIC_NODE_SHIFT << 12) | (Math.max(view.cores, 1) - 1);
}

/**
 * 0x8000001E on AMD: extended APIC id, core id with one thread, node id with one node a package.
 */
export function amdTopology(view: PackageView): { eax: number; ebx: number; ecx: number } {
  return {
    eax: view.apicId,
    ebx: view.apicId & (PACKAGE_IDS - 1),
    ecx: view.apicId >>> APIC_NODE_SHIFT,
  };
}
