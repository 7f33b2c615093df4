// One CPU model for a VM: what every host of it supports, so that a vCPU may run on any of them.
// Feature registers are ANDed under the allow-list of cpu-features.ts, limits are minima, XSAVE
// areas are kept only where all hosts lay them out alike. A model is plain JSON and is recorded
// with the VM; a host that joins later is checked against it and refused by the names of what it
// lacks. Invariant: the result does not depend on the order of the hosts.

import { SsihvError } from "../base/errors.ts";
import {
  allowedMask,
  FEATURE_WORDS,
  FORCED,
  hasFeature,
  missingFeatures,
  REQUIRED,
  setFeature,
  type Words,
} from "./cpu-features.ts";
import { CPUID_INDEXED, type CpuidEntry } from "./records.ts";

/** What a node tells of its host: KVM_GET_SUPPORTED_CPUID and feature MSRs; JSON as it stands. */
export interface HostCpu {
  /** Name used in errors. */
  name: string;
  cpuid: CpuidEntry[];
  /** Values as "0x..." (64 bits do not fit a JSON number). */
  msrs: { index: number; value: string }[];
  tscKhz: number;
}

export interface Signature {
  family: number;
  model: number;
  stepping: number;
}

export interface XsaveArea {
  /** Bit of XCR0. */
  component: number;
  size: number;
  offset: number;
  /** Leaf 0xD ECX of the component: bit 1 asks for 64-byte alignment in the compacted form. */
  flags: number;
}

export interface CpuModel {
  format: 1;
  vendor: string;
  kind: "intel" | "amd";
  /** What the guest is told, see guestSignature. */
  signature: Signature;
  /** 48 bytes of 0x80000002-4 without padding. */
  brand: string;
  basicMax: number;
  extendedMax: number;
  physicalBits: number;
  clflushUnits: number;
  tscKhz: number;
  words: Words;
  xsave: XsaveArea[];
  /** Raw leaves that tell caches and TLBs, of the reference host. */
  caches: CpuidEntry[];
  msrs: { index: number; value: string }[];
}

export const MSR_ARCH_CAPABILITIES = 0x10a;

/** Hosts may differ by this much in TSC rate without scaling; Linux's clocksource copes with it. */
const TSC_TOLERANCE_PPM = 250;
/**
 * Emulated hosts, the only ones whose guests' clocks are dilated, count the ticks of one real TSC,
 * but each calibrates it by itself, on a busy machine: what they report differs, the ticks do not.
 */
const TSC_TOLERANCE_PPM_EMULATED = 20_000;
/** Highest leaves the model knows; everything above is features that stay off. */
const BASIC_MAX = 0x1f;
const EXTENDED_MAX = 0x8000_0021;
/** XCR0 components given to guests: x87, SSE, AVX, AVX-512 (3), PKRU (SDM vol. 1, 13.1). */
const XSAVE_COMPONENTS = [0, 1, 2, 5, 6, 7, 9];
const CACHE_LEAVES = [2, 4, 0x8000_0005, 0x8000_0006, 0x8000_0019, 0x8000_001a, 0x8000_001d];

function leaf(host: HostCpu, fn: number, index = 0): CpuidEntry | undefined {
  return host.cpuid.find((entry) => entry.function === fn && entry.index === index);
}

function fourBytes(value: number): string {
  return String.fromCharCode(...[0, 8, 16, 24].map((shift) => (value >>> shift) & 0xff));
}

export function vendorOf(host: HostCpu): string {
  const zero = leaf(host, 0);
  return zero ? fourBytes(zero.ebx) + fourBytes(zero.edx) + fourBytes(zero.ecx) : "";
}

const KINDS: Record<string, "intel" | "amd"> = {
  GenuineIntel: "intel",
  AuthenticAMD: "amd",
  HygonGenuine: "amd",
};

/** Leaf 1 EAX (SDM vol. 2A, figure 3-6): extended family counts from base family 15 on. */
export function signatureOf(host: HostCpu): Signature {
  const eax = leaf(host, 1)?.eax ?? 0;
  const base = (eax >>> 8) & 0xf;
  const family = base === 0xf ? base + ((eax >>> 20) & 0xff) : base;
  const extended = base === 0xf || base === 6 ? (eax >>> 16) & 0xf : 0;
  return { family, model: (extended << 4) | ((eax >>> 4) & 0xf), stepping: eax & 0xf };
}

/**
 * Family 0xF on AMD (QEMU's emulated CPUs) makes Linux scan PCI for an AGP aperture: 33,000
 * configuration accesses, each an exit (notes/SPAN.md). Such a host's guests are told Zen 2
 * (family 0x17, model 0x31) instead, with what Linux expects of one, see OLD_AMD_EXTRAS.
 */
export function guestSignature(kind: "intel" | "amd", host: Signature): Signature {
  if (kind === "amd" && host.family === OLD_AMD_FAMILY)
    return { family: 0x17, model: 0x31, stepping: 0 };
  return host;
}

const OLD_AMD_FAMILY = 0xf;
/**
 * TOPOEXT: without its leaves Linux gives every Zen 2 CPU a last-level cache of its own. BTC_NO:
 * family 0xF has no branch type confusion, and saying so spares the guest the mitigation.
 */
const OLD_AMD_EXTRAS: readonly string[] = ["topoext", "btc_no"];
/** 0x8000001D of Zen 2: 32 KiB L1 data and code, 512 KiB L2, 16 MiB L3 (EAX EBX ECX EDX). */
const OLD_AMD_CACHES: readonly (readonly [number, number, number, number])[] = [
  [0x121, 0x01c0_003f, 0x3f, 0],
  [0x122, 0x01c0_003f, 0x3f, 0],
  [0x143, 0x01c0_003f, 0x3ff, 2],
  [0x163, 0x03c0_003f, 0x3fff, 1],
  [0, 0, 0, 0],
];
const OLD_AMD_EXTENDED_MAX = 0x8000_001e;

function isOldAmd(host: HostCpu): boolean {
  return KINDS[vendorOf(host)] === "amd" && signatureOf(host).family === OLD_AMD_FAMILY;
}

function brandOf(host: HostCpu): string {
  const text = [0x8000_0002, 0x8000_0003, 0x8000_0004]
    .map((fn) => leaf(host, fn))
    .map((e) => (e ? [e.eax, e.ebx, e.ecx, e.edx].map(fourBytes).join("") : ""))
    .join("");
  // Some hypervisors hide it; Linux would then call the CPU "unknown".
  return text.replaceAll("\0", "").trim() || "SSI-HV virtual CPU";
}

/** The allowed feature bits of one host, with what is provided without the CPU. */
function wordsOf(host: HostCpu): Words {
  const words: Words = {};
  for (const featureWord of FEATURE_WORDS) {
    const entry = leaf(host, featureWord.leaf, featureWord.index);
    const value = entry ? entry[featureWord.register] : 0;
    words[featureWord.key] = (value & allowedMask(featureWord)) >>> 0;
  }
  const given = isOldAmd(host) ? [...FORCED, ...OLD_AMD_EXTRAS] : FORCED;
  for (const name of given) setFeature(words, name, true);
  return words;
}

/** Leaf 0xD subleaves of the components we give, as this host lays them out. */
function xsaveOf(host: HostCpu): XsaveArea[] {
  const main = leaf(host, 0xd, 0);
  if (!main) return [];
  return XSAVE_COMPONENTS.filter((component) => (main.eax >>> component) & 1).flatMap(
    (component) => {
      // The legacy area holds x87 and SSE (SDM vol. 1, 13.4.1).
      if (component === 0) return [{ component, size: 160, offset: 0, flags: 0 }];
      if (component === 1) return [{ component, size: 256, offset: 160, flags: 0 }];
      const area = leaf(host, 0xd, component);
      if (!area || area.eax === 0) return [];
      return [{ component, size: area.eax, offset: area.ebx, flags: area.ecx & 3 }];
    },
  );
}

function sameArea(a: XsaveArea, b: XsaveArea): boolean {
  const same = a.size === b.size && a.offset === b.offset && a.flags === b.flags;
  return a.component === b.component && same;
}

/** Drops features whose register state is not in `xsave`, and areas nobody may use. */
function reconcileXsave(words: Words, areas: readonly XsaveArea[]): XsaveArea[] {
  const has = (component: number): boolean => areas.some((area) => area.component === component);
  const drop = (test: (name: string) => boolean): void => {
    for (const { bits } of FEATURE_WORDS) {
      for (const name of Object.values(bits)) if (test(name)) setFeature(words, name, false);
    }
  };
  if (!hasFeature(words, "xsave") || !has(0) || !has(1)) {
    drop((name) => name.startsWith("xsave") || name === "xgetbv1");
    areas = [];
  }
  const avx = has(2) && areas.length > 0 && hasFeature(words, "avx");
  const vector = new Set(["avx", "fma", "f16c", "xop", "fma4", "vaes", "vpclmulqdq"]);
  const wide = /^(sha512|sm3|sm4)$/;
  if (!avx) drop((name) => vector.has(name) || name.startsWith("avx") || wide.test(name));
  const avx512 = avx && has(5) && has(6) && has(7) && hasFeature(words, "avx512f");
  if (!avx512) drop((name) => name.startsWith("avx512"));
  if (!has(9) || areas.length === 0) setFeature(words, "pku", false);
  const pku = hasFeature(words, "pku");
  return areas.filter(({ component }) => {
    if (component < 2) return true;
    if (component === 2) return avx;
    return component === 9 ? pku : avx512;
  });
}

/**
 * IA32_ARCH_CAPABILITIES: immunities and controls are ANDed, RSBA and RRSBA (bad news) are ORed.
 */
const ARCH_CAP_BAD = (1n << 2n) | (1n << 19n);
/** RDCL_NO, IBRS_ALL, SKIP_L1DFL, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO,
 * PSDP_NO, FB_CLEAR, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, RFDS_CLEAR (SDM vol. 4, MSR 0x10A). */
const ARCH_CAP_GOOD = [0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 17, 20, 24, 26, 27, 28].reduce(
  (mask, bit) => mask | (1n << BigInt(bit)),
  0n,
);

function archCapabilities(hosts: readonly HostCpu[]): bigint | undefined {
  const values = hosts.map((host) => {
    const found = host.msrs.find((msr) => msr.index === MSR_ARCH_CAPABILITIES);
    return found === undefined ? undefined : BigInt(found.value);
  });
  if (values.some((value) => value === undefined)) return undefined;
  const all = values.filter((value) => value !== undefined);
  const good = all.reduce((a, b) => a & b) & ARCH_CAP_GOOD;
  const bad = all.reduce((a, b) => a | b) & ARCH_CAP_BAD;
  return good | bad;
}

function refuse(message: string, hint: string): never {
  throw new SsihvError("cpu_incompatible", message, { hint });
}

const hex = (value: number): string => `0x${(value >>> 0).toString(16)}`;
const JOIN_HINT = "take the host out of the VM or use hosts of one CPU family";

function checkAlike(hosts: readonly HostCpu[], reference: HostCpu): void {
  const vendor = vendorOf(reference);
  const { family } = signatureOf(reference);
  for (const host of hosts) {
    const kind = KINDS[vendorOf(host)];
    if (!kind) {
      refuse(
        `host "${host.name}" has a CPU of vendor "${vendorOf(host)}"`,
        "use Intel or AMD hosts",
      );
    }
    if (vendorOf(host) !== vendor) {
      refuse(
        `host "${host.name}" is ${vendorOf(host)}, host "${reference.name}" is ${vendor}`,
        JOIN_HINT,
      );
    }
    if (signatureOf(host).family !== family) {
      refuse(
        `host "${host.name}" is of CPU family ${hex(signatureOf(host).family)}, ` +
          `host "${reference.name}" of family ${hex(family)}`,
        JOIN_HINT,
      );
    }
  }
}

function checkTsc(host: HostCpu, tscKhz: number, tolerancePpm: number): void {
  const ppm = (Math.abs(host.tscKhz - tscKhz) / tscKhz) * 1e6;
  if (ppm > tolerancePpm) {
    refuse(
      `host "${host.name}" has a TSC of ${host.tscKhz} kHz, the VM's runs at ${tscKhz} kHz ` +
        `(${Math.round(ppm)} ppm apart, ${tolerancePpm} are tolerated)`,
      "use hosts with the same TSC rate: no guest's is scaled",
    );
  }
}

function andWords(hosts: readonly HostCpu[]): Words {
  const all = hosts.map(wordsOf);
  return Object.fromEntries(
    FEATURE_WORDS.map(({ key }) => [key, all.reduce((a, w) => a & (w[key] ?? 0), -1) >>> 0]),
  );
}

function physicalBits(host: HostCpu): number {
  return (leaf(host, 0x8000_0008)?.eax ?? 36) & 0xff;
}

/** Same result for any order of hosts: the lowest model is the one described. */
function referenceOf(hosts: readonly HostCpu[]): HostCpu {
  const rank = (host: HostCpu): string => {
    const { family, model, stepping } = signatureOf(host);
    const number = (family << 12) | (model << 4) | stepping;
    return `${String(number).padStart(8, "0")} ${brandOf(host)} ${JSON.stringify(cachesOf(host))}`;
  };
  const sorted = [...hosts].sort((a, b) => (rank(a) < rank(b) ? -1 : rank(a) > rank(b) ? 1 : 0));
  const [first] = sorted;
  if (!first) refuse("a CPU model needs at least one host", "name the hosts of the VM");
  return first;
}

function cachesOf(host: HostCpu): CpuidEntry[] {
  const old = isOldAmd(host);
  const own = host.cpuid
    .filter((entry) => CACHE_LEAVES.includes(entry.function))
    .filter((entry) => !(old && entry.function === 0x8000_001d))
    .map(({ function: fn, index, flags, eax, ebx, ecx, edx }) => {
      return { function: fn, index, flags, eax, ebx, ecx, edx };
    });
  const made = old
    ? OLD_AMD_CACHES.map(([eax, ebx, ecx, edx], index) => {
        return { function: 0x8000_001d, index, flags: CPUID_INDEXED, eax, ebx, ecx, edx };
      })
    : [];
  return [...own, ...made].sort((a, b) => a.function - b.function || a.index - b.index);
}

/** How far apart the hosts' TSC rates may be in a VM with this clock dilation. */
export function tscTolerancePpm(dilation: number): number {
  return dilation > 1 ? TSC_TOLERANCE_PPM_EMULATED : TSC_TOLERANCE_PPM;
}

export interface IntersectOptions {
  /** Features the VM must have, by name; a host without one is refused. */
  required?: readonly string[];
  tolerancePpm?: number;
}

/** The CPU model that all hosts can run. */
export function intersect(hosts: readonly HostCpu[], options: IntersectOptions = {}): CpuModel {
  const reference = referenceOf(hosts);
  checkAlike(hosts, reference);
  const kind = KINDS[vendorOf(reference)] ?? "intel";
  const required: Words = {};
  for (const name of [...REQUIRED, ...(options.required ?? [])]) setFeature(required, name, true);
  for (const host of hosts) {
    const missing = missingFeatures(required, wordsOf(host));
    if (missing.length > 0) {
      refuse(`host "${host.name}" lacks ${missing.join(", ")}, which the VM needs`, JOIN_HINT);
    }
  }
  const tscKhz = Math.max(...hosts.map((host) => host.tscKhz));
  for (const host of hosts) checkTsc(host, tscKhz, options.tolerancePpm ?? TSC_TOLERANCE_PPM);

  const words = andWords(hosts);
  const areas = hosts.map(xsaveOf).reduce((common, other) => {
    return common.filter((area) => other.some((o) => sameArea(area, o)));
  });
  const xsave = reconcileXsave(words, areas);
  const caps = kind === "intel" ? archCapabilities(hosts) : undefined;
  if (caps === undefined) setFeature(words, "arch_capabilities", false);
  const givesCaps = caps !== undefined && hasFeature(words, "arch_capabilities");
  const limit = (fn: number, cap: number): number =>
    Math.min(cap, ...hosts.map((host) => leaf(host, fn)?.eax ?? fn));
  return {
    format: 1,
    vendor: vendorOf(reference),
    kind,
    signature: guestSignature(kind, signatureOf(reference)),
    brand: brandOf(reference),
    // Leaf 0xB must exist wherever x2APIC does (SDM vol. 3A, 11.12.8); we make it ourselves.
    basicMax: Math.max(0xd, limit(0, BASIC_MAX)),
    extendedMax: isOldAmd(reference)
      ? OLD_AMD_EXTENDED_MAX
      : Math.max(0x8000_0008, limit(0x8000_0000, EXTENDED_MAX)),
    physicalBits: Math.min(...hosts.map(physicalBits)),
    clflushUnits: ((leaf(reference, 1)?.ebx ?? 0) >>> 8) & 0xff,
    tscKhz,
    words,
    xsave,
    caches: cachesOf(reference),
    msrs: givesCaps ? [{ index: MSR_ARCH_CAPABILITIES, value: `0x${caps.toString(16)}` }] : [],
  };
}

/** Refuses a host that cannot run vCPUs of a recorded model; says everything it lacks at once. */
export function checkHost(
  model: CpuModel,
  host: HostCpu,
  tolerancePpm: number = TSC_TOLERANCE_PPM,
): void {
  if (vendorOf(host) !== model.vendor) {
    refuse(`host "${host.name}" is ${vendorOf(host)}, the VM's CPU is ${model.vendor}`, JOIN_HINT);
  }
  const { family } = guestSignature(model.kind, signatureOf(host));
  if (family !== model.signature.family) {
    const wanted = hex(model.signature.family);
    refuse(`host "${host.name}" is of CPU family ${hex(family)}, the VM's is ${wanted}`, JOIN_HINT);
  }
  const lacks = missingFeatures(model.words, wordsOf(host));
  const areas = xsaveOf(host);
  for (const area of model.xsave) {
    if (!areas.some((other) => sameArea(area, other))) {
      lacks.push(`XSAVE component ${area.component} at offset ${area.offset}`);
    }
  }
  if (physicalBits(host) < model.physicalBits) {
    lacks.push(`${model.physicalBits} physical address bits (it has ${physicalBits(host)})`);
  }
  if (lacks.length > 0) refuse(`host "${host.name}" lacks ${lacks.join(", ")}`, JOIN_HINT);
  const caps = model.msrs.find((msr) => msr.index === MSR_ARCH_CAPABILITIES);
  if (caps) {
    const wanted = BigInt(caps.value);
    const has = archCapabilities([host]) ?? 0n;
    const bits = (wanted & ~has & ARCH_CAP_GOOD) | (has & ~wanted & ARCH_CAP_BAD);
    if (bits !== 0n) {
      refuse(
        `host "${host.name}" differs in IA32_ARCH_CAPABILITIES (bits 0x${bits.toString(16)})`,
        JOIN_HINT,
      );
    }
  }
  checkTsc(host, model.tscKhz, tolerancePpm);
}
