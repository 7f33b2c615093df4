// A CPU model and a vCPU's place become that vCPU's CPUID, for KVM_SET_CPUID2.
// Leaves are made here one by one and anything not made is absent (reads as zero): the PMU (0xA),
// MONITOR (5), SGX (0x12), PT (0x14), SVM (0x8000000A), SEV (0x8000001F) and KVM's own leaves among
// them. KVM itself keeps OSXSAVE, OSPKE, leaf 0xD's current sizes and the APIC bit in step with the
// vCPU.

import { FEATURE_WORDS, hasFeature, type Register } from "./cpu-features.ts";
import type { CpuModel, Signature } from "./cpu-model.ts";
import {
  guestFrequencies,
  type HypervisorIdentity,
  hypervisorLeaves,
} from "./hypervisor-identity.ts";
import { CPUID_INDEXED, type CpuidEntry } from "./records.ts";
import {
  amdCoreCount,
  amdTopology,
  cacheEax,
  leaf1Ebx,
  type PackageView,
  topologyLeaf,
} from "./topology.ts";

export interface CpuidRequest {
  apicId: number;
  /** vCPUs on this vCPU's node: the cores of its package. */
  cores: number;
  /** vCPUs of the whole VM. */
  vcpus: number;
  dilation: number;
  hypervisor: HypervisorIdentity;
}

type Values = Partial<Record<Register, number>>;

function entry(fn: number, values: Values, index?: number): CpuidEntry {
  const { eax = 0, ebx = 0, ecx = 0, edx = 0 } = values;
  const flags = index === undefined ? 0 : CPUID_INDEXED;
  return { function: fn, index: index ?? 0, flags, eax, ebx, ecx, edx };
}

function fourBytes(text: string, at: number): number {
  const code = (i: number): number => text.charCodeAt(at + i) || 0;
  return (code(0) | (code(1) << 8) | (code(2) << 16) | (code(3) << 24)) >>> 0;
}

/** Leaf 1 EAX from a signature: the inverse of signatureOf. */
export function signatureEax({ family, model, stepping }: Signature): number {
  const base = Math.min(family, 0xf);
  return (
    (((family - base) << 20) |
      ((model >> 4) << 16) |
      (base << 8) |
      ((model & 0xf) << 4) |
      stepping) >>>
    0
  );
}

/** Feature registers of a leaf, as the model has them. */
function features(model: CpuModel, fn: number, index = 0): Values {
  const values: Values = {};
  for (const word of FEATURE_WORDS) {
    if (word.leaf === fn && word.index === index)
      values[word.register] = model.words[word.key] ?? 0;
  }
  return values;
}

const HTT = 1 << 28; // leaf 1 EDX: more than one logical processor in this package
const CMP_LEGACY = 1 << 1; // 0x80000001 ECX on AMD: those are cores
/** Leaf 1 EDX bits that AMD repeats in 0x80000001 EDX (APM vol. 3, E.4.2). */
const AMD_REPEATED = 0x0183_f3ff;

function basicLeaves(model: CpuModel, view: PackageView, dilation: number): CpuidEntry[] {
  const { vendor } = model;
  const one = features(model, 1);
  const leaves = [
    entry(0, {
      eax: model.basicMax,
      ebx: fourBytes(vendor, 0),
      edx: fourBytes(vendor, 4),
      ecx: fourBytes(vendor, 8),
    }),
    entry(1, {
      ...one,
      eax: signatureEax(model.signature),
      ebx: leaf1Ebx(model.clflushUnits << 8, view),
      edx: ((one.edx ?? 0) | (view.cores > 1 ? HTT : 0)) >>> 0,
    }),
    entry(6, features(model, 6)),
    // EAX of subleaf 0: the highest subleaf.
    entry(7, { ...features(model, 7, 0), eax: 2 }, 0),
    entry(7, features(model, 7, 1), 1),
    entry(7, features(model, 7, 2), 2),
    ...topologyLeaf(0xb, view),
    ...xsaveLeaves(model),
  ];
  if (model.basicMax >= 0x15 && model.kind === "intel") {
    // TSC Hz = ECX * EBX / EAX; ECX, the crystal's Hz, is the APIC bus too (SDM vol. 3A, 11.5.4).
    const { tscKhz, busKhz } = guestFrequencies(model.tscKhz, dilation);
    leaves.push(entry(0x15, { eax: busKhz, ebx: tscKhz, ecx: busKhz * 1000 }));
  }
  if (model.basicMax >= 0x1f) leaves.push(...topologyLeaf(0x1f, view));
  return leaves;
}

/** XSAVE header and legacy region: where the compacted form's areas begin (SDM vol. 1, 13.4). */
const XSAVE_LEGACY_BYTES = 576;

function xsaveLeaves(model: CpuModel): CpuidEntry[] {
  if (model.xsave.length === 0) return [];
  const mask = model.xsave.reduce((bits, area) => bits | (1 << area.component), 0);
  const extended = model.xsave.filter((area) => area.component >= 2);
  const size = extended.reduce(
    (end, area) => Math.max(end, area.offset + area.size),
    XSAVE_LEGACY_BYTES,
  );
  const compacted = extended.reduce((end, area) => {
    return ((area.flags & 2) !== 0 ? (end + 63) & ~63 : end) + area.size;
  }, XSAVE_LEGACY_BYTES);
  const hasCompacted = hasFeature(model.words, "xsavec") || hasFeature(model.words, "xsaves");
  return [
    entry(0xd, { eax: mask >>> 0, ebx: size, ecx: size }, 0),
    // ECX and EDX, the supervisor components (XSS), are none.
    entry(0xd, { ...features(model, 0xd, 1), ebx: hasCompacted ? compacted : 0 }, 1),
    ...extended.map(({ component, size: eax, offset, flags }) =>
      entry(0xd, { eax, ebx: offset, ecx: flags }, component),
    ),
  ];
}

function cacheLeaves(model: CpuModel): CpuidEntry[] {
  const topoext = hasFeature(model.words, "topoext");
  return model.caches
    .filter((leaf) => {
      if (leaf.function === 2) return model.kind === "intel";
      if (leaf.function === 4) return model.kind === "intel";
      if (leaf.function === 0x8000_001d) return model.kind === "amd" && topoext;
      return leaf.function <= model.extendedMax;
    })
    .map((leaf) => {
      const counts = leaf.function === 4 || leaf.function === 0x8000_001d;
      return counts ? { ...leaf, eax: cacheEax(leaf.eax, model.kind) } : { ...leaf };
    });
}

function extendedLeaves(model: CpuModel, view: PackageView): CpuidEntry[] {
  const amd = model.kind === "amd";
  const { vendor } = model;
  const one = features(model, 0x8000_0001);
  const repeated = amd ? (model.words["1.edx"] ?? 0) & AMD_REPEATED : 0;
  const cores = amd && view.cores > 1 ? CMP_LEGACY : 0;
  const brand = (at: number): Values => ({
    eax: fourBytes(model.brand, at),
    ebx: fourBytes(model.brand, at + 4),
    ecx: fourBytes(model.brand, at + 8),
    edx: fourBytes(model.brand, at + 12),
  });
  const vendorAgain: Values = amd
    ? { ebx: fourBytes(vendor, 0), edx: fourBytes(vendor, 4), ecx: fourBytes(vendor, 8) }
    : {};
  const leaves = [
    entry(0x8000_0000, { eax: model.extendedMax, ...vendorAgain }),
    entry(0x8000_0001, {
      eax: amd ? signatureEax(model.signature) : 0,
      ecx: ((one.ecx ?? 0) | cores) >>> 0,
      edx: ((one.edx ?? 0) | repeated) >>> 0,
    }),
    entry(0x8000_0002, brand(0)),
    entry(0x8000_0003, brand(16)),
    entry(0x8000_0004, brand(32)),
    entry(0x8000_0007, features(model, 0x8000_0007)),
    entry(0x8000_0008, {
      // 15:8 linear address bits: 48, five-level paging is off.
      eax: (48 << 8) | model.physicalBits,
      ebx: features(model, 0x8000_0008).ebx ?? 0,
      ecx: amd ? amdCoreCount(view) : 0,
    }),
  ];
  if (amd && hasFeature(model.words, "topoext")) leaves.push(entry(0x8000_001e, amdTopology(view)));
  if (model.extendedMax >= 0x8000_0021) {
    leaves.push(entry(0x8000_0021, features(model, 0x8000_0021)));
  }
  return leaves;
}

/** CPUID of one vCPU, in leaf order. */
export function cpuidFor(model: CpuModel, request: CpuidRequest): CpuidEntry[] {
  const view: PackageView = { apicId: request.apicId, cores: request.cores };
  const frequencies = guestFrequencies(model.tscKhz, request.dilation);
  return [
    ...basicLeaves(model, view, request.dilation),
    ...cacheLeaves(model),
    ...hypervisorLeaves(request.hypervisor, frequencies, request.vcpus),
    ...extendedLeaves(model, view),
  ].sort((a, b) => a.function - b.function || a.index - b.index);
}
