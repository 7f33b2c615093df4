// The CPUID feature bits that a VM may have, by the names Linux prints in /proc/cpuinfo.
// A bit without a name here is never given to a guest: a feature may carry state that a span does
// not keep (MSRs, XSAVE areas, per-host devices), so each one is listed on purpose. OFF names the
// bits that hosts do have and that are kept off all the same, with the reason (a test holds them
// out). Numbers: Intel SDM vol. 2A "CPUID"; AMD APM vol. 3, appendix E.

export type Register = "eax" | "ebx" | "ecx" | "edx";

export interface FeatureWord {
  /** "leaf.register" or "leaf.subleaf.register", hexadecimal: the key in a CpuModel. */
  key: string;
  leaf: number;
  index: number;
  register: Register;
  bits: Readonly<Record<number, string>>;
}

const LEAF1_ECX: Record<number, string> = {
  0: "pni",
  1: "pclmulqdq",
  9: "ssse3",
  12: "fma",
  13: "cx16",
  17: "pcid",
  19: "sse4_1",
  20: "sse4_2",
  21: "x2apic",
  22: "movbe",
  23: "popcnt",
  25: "aes",
  26: "xsave",
  28: "avx",
  29: "f16c",
  30: "rdrand",
  31: "hypervisor",
};

const LEAF1_EDX: Record<number, string> = {
  0: "fpu",
  1: "vme",
  2: "de",
  3: "pse",
  4: "tsc",
  5: "msr",
  6: "pae",
  7: "mce",
  8: "cx8",
  9: "apic",
  11: "sep",
  12: "mtrr",
  13: "pge",
  14: "mca",
  15: "cmov",
  16: "pat",
  17: "pse36",
  19: "clflush",
  23: "mmx",
  24: "fxsr",
  25: "sse",
  26: "sse2",
  27: "ss",
};

const LEAF7_EBX: Record<number, string> = {
  0: "fsgsbase",
  3: "bmi1",
  5: "avx2",
  6: "fdp_excptn_only",
  7: "smep",
  8: "bmi2",
  9: "erms",
  10: "invpcid",
  13: "zero_fcs_fds",
  16: "avx512f",
  17: "avx512dq",
  18: "rdseed",
  19: "adx",
  20: "smap",
  21: "avx512ifma",
  23: "clflushopt",
  24: "clwb",
  26: "avx512pf",
  27: "avx512er",
  28: "avx512cd",
  29: "sha_ni",
  30: "avx512bw",
  31: "avx512vl",
};

const LEAF7_ECX: Record<number, string> = {
  0: "prefetchwt1",
  1: "avx512vbmi",
  2: "umip",
  3: "pku",
  6: "avx512_vbmi2",
  8: "gfni",
  9: "vaes",
  10: "vpclmulqdq",
  11: "avx512_vnni",
  12: "avx512_bitalg",
  14: "avx512_vpopcntdq",
  22: "rdpid",
  25: "cldemote",
  27: "movdiri",
  28: "movdir64b",
};

const LEAF7_EDX: Record<number, string> = {
  2: "avx512_4vnniw",
  3: "avx512_4fmaps",
  4: "fsrm",
  8: "avx512_vp2intersect",
  10: "md_clear",
  14: "serialize",
  23: "avx512_fp16",
  26: "spec_ctrl",
  27: "intel_stibp",
  28: "flush_l1d",
  29: "arch_capabilities",
  31: "spec_ctrl_ssbd",
};

const LEAF7_1_EAX: Record<number, string> = {
  0: "sha512",
  1: "sm3",
  2: "sm4",
  4: "avx_vnni",
  5: "avx512_bf16",
  7: "cmpccxadd",
  10: "fzrm",
  11: "fsrs",
  12: "fsrc",
  23: "avx_ifma",
};

const EXT1_ECX: Record<number, string> = {
  0: "lahf_lm",
  4: "cr8_legacy",
  5: "abm",
  6: "sse4a",
  7: "misalignsse",
  8: "3dnowprefetch",
  11: "xop",
  16: "fma4",
  17: "tce",
  21: "tbm",
  22: "topoext",
  26: "bpext",
};

const EXT1_EDX: Record<number, string> = {
  11: "syscall",
  20: "nx",
  22: "mmxext",
  25: "fxsr_opt",
  26: "pdpe1gb",
  27: "rdtscp",
  29: "lm",
  30: "3dnowext",
  31: "3dnow",
};

const EXT8_EBX: Record<number, string> = {
  0: "clzero",
  2: "xsaveerptr",
  9: "wbnoinvd",
  12: "ibpb",
  14: "ibrs",
  15: "stibp",
  16: "ibrs_always_on",
  17: "stibp_always_on",
  18: "ibrs_preferred",
  24: "ssbd",
  25: "virt_ssbd",
  26: "ssb_no",
  28: "psfd",
  29: "btc_no",
};

const EXT21_EAX: Record<number, string> = {
  0: "no_nested_data_bp",
  2: "lfence_rdtsc",
  6: "null_sel_clr_base",
  8: "autoibrs",
  9: "no_smm_ctl_msr",
  10: "fsrs_amd",
  11: "fsrc_amd",
};

const word = (
  leaf: number,
  index: number | undefined,
  register: Register,
  bits: Record<number, string>,
): FeatureWord => {
  const sub = index === undefined ? "" : `${index.toString(16)}.`;
  return { key: `${leaf.toString(16)}.${sub}${register}`, leaf, index: index ?? 0, register, bits };
};

export const FEATURE_WORDS: readonly FeatureWord[] = [
  word(1, undefined, "ecx", LEAF1_ECX),
  word(1, undefined, "edx", LEAF1_EDX),
  // ARAT: the APIC timer never stops; ours is an engine's.
  word(6, undefined, "eax", { 2: "arat" }),
  word(7, 0, "ebx", LEAF7_EBX),
  word(7, 0, "ecx", LEAF7_ECX),
  word(7, 0, "edx", LEAF7_EDX),
  word(7, 1, "eax", LEAF7_1_EAX),
  word(7, 1, "edx", { 4: "avx_vnni_int8", 5: "avx_ne_convert", 14: "prefetchiti" }),
  word(7, 2, "edx", {
    0: "intel_psfd",
    1: "ipred_ctrl",
    2: "rrsba_ctrl",
    3: "ddpd_u",
    5: "mcdt_no",
  }),
  word(0xd, 1, "eax", { 0: "xsaveopt", 1: "xsavec", 2: "xgetbv1", 3: "xsaves" }),
  word(0x8000_0001, undefined, "ecx", EXT1_ECX),
  word(0x8000_0001, undefined, "edx", EXT1_EDX),
  word(0x8000_0007, undefined, "edx", { 8: "constant_tsc" }),
  word(0x8000_0008, undefined, "ebx", EXT8_EBX),
  word(0x8000_0021, undefined, "eax", EXT21_EAX),
];

/** Given to every VM whatever the hosts say: the engine or KVM provides them without the CPU. */
export const FORCED: readonly string[] = [
  "x2apic", // the userspace LAPIC, by MSR exits
  "apic",
  "hypervisor",
  "arat",
  "constant_tsc", // guest TSC = host TSC + offset, never stopped
];

/** Without these no 64-bit guest starts: a host that lacks one is refused by name. */
export const REQUIRED: readonly string[] = [
  "fpu",
  "tsc",
  "msr",
  "pae",
  "cx8",
  "pge",
  "cmov",
  "pat",
  "fxsr",
  "sse",
  "sse2",
  "syscall",
  "nx",
  "lm",
];

/** [word, bit, name, why it is off though hosts and KVM may offer it]. */
export const OFF: readonly (readonly [string, number, string, string])[] = [
  ["1.ecx", 2, "dtes64", "debug store: part of the PMU"],
  ["1.ecx", 3, "monitor", "MWAIT would sleep on a page another node owns"],
  ["1.ecx", 5, "vmx", "nested state is not kept by a span"],
  ["1.ecx", 6, "smx", "needs SMM"],
  ["1.ecx", 7, "est", "frequency MSRs of one host"],
  ["1.ecx", 15, "pdcm", "PMU"],
  ["1.ecx", 24, "tsc_deadline_timer", "KVM's fast path may swallow the WRMSR (notes/KVM.md 1.3)"],
  ["1.edx", 21, "ds", "PMU"],
  ["1.edx", 22, "acpi", "thermal MSRs of one host"],
  ["1.edx", 29, "tm", "thermal MSRs of one host"],
  ["7.0.ebx", 1, "tsc_adjust", "would show the offsets that synchronise the nodes"],
  ["7.0.ebx", 2, "sgx", "enclave pages cannot move between hosts"],
  ["7.0.ebx", 4, "hle", "a page fetched from elsewhere aborts every transaction"],
  ["7.0.ebx", 11, "rtm", "a page fetched from elsewhere aborts every transaction"],
  ["7.0.ebx", 12, "cqm", "per-host monitoring MSRs"],
  ["7.0.ebx", 14, "mpx", "gone from Linux and from new CPUs"],
  ["7.0.ebx", 15, "rdt_a", "per-host allocation MSRs"],
  ["7.0.ebx", 25, "intel_pt", "trace buffers are physical pages written behind the pager"],
  ["7.0.ecx", 5, "waitpkg", "UMWAIT would sleep on a page another node owns"],
  ["7.0.ecx", 7, "shstk", "supervisor XSAVE state, not kept"],
  ["7.0.ecx", 16, "la57", "one more level of page-table pages to replicate, for no gain"],
  ["7.0.ecx", 24, "bus_lock_detect", "per-host MSR state"],
  ["7.0.ecx", 29, "enqcmd", "needs per-host device state"],
  ["7.0.ecx", 30, "sgx_lc", "see sgx"],
  ["7.0.edx", 11, "rtm_always_abort", "TSX is off"],
  ["7.0.edx", 13, "tsx_force_abort", "TSX is off"],
  ["7.0.edx", 16, "tsxldtrk", "TSX is off"],
  ["7.0.edx", 19, "arch_lbr", "PMU"],
  ["7.0.edx", 20, "ibt", "supervisor state, not kept"],
  ["7.0.edx", 22, "amx_bf16", "8 KiB of tile state that hosts must be asked to permit"],
  ["7.0.edx", 24, "amx_tile", "8 KiB of tile state that hosts must be asked to permit"],
  ["7.0.edx", 25, "amx_int8", "8 KiB of tile state that hosts must be asked to permit"],
  ["d.1.eax", 4, "xfd", "only for AMX"],
  ["80000001.ecx", 2, "svm", "nested state is not kept by a span"],
  ["80000001.ecx", 3, "extapic", "the userspace LAPIC has no extended registers"],
  ["80000001.ecx", 9, "osvw", "errata MSRs of one host"],
  ["80000001.ecx", 10, "ibs", "PMU"],
  ["80000001.ecx", 12, "skinit", "needs SVM"],
  ["80000001.ecx", 13, "wdt", "per-host watchdog MSRs"],
  ["80000001.ecx", 15, "lwp", "PMU"],
  ["80000001.ecx", 19, "nodeid_msr", "would name nodes of the host"],
  ["80000001.ecx", 23, "perfctr_core", "PMU"],
  ["80000001.ecx", 24, "perfctr_nb", "PMU"],
  ["80000001.ecx", 28, "perfctr_llc", "PMU"],
  ["80000001.ecx", 29, "mwaitx", "MWAITX would sleep on a page another node owns"],
];

const BY_NAME = new Map(
  FEATURE_WORDS.flatMap((featureWord) =>
    Object.entries(featureWord.bits).map(
      ([bit, name]) => [name, { key: featureWord.key, mask: (1 << Number(bit)) >>> 0 }] as const,
    ),
  ),
);

export type Words = Record<string, number>;

function find(name: string): { key: string; mask: number } {
  const found = BY_NAME.get(name);
  if (!found) throw new Error(`no CPU feature is called ${name}`);
  return found;
}

export function hasFeature(words: Words, name: string): boolean {
  const { key, mask } = find(name);
  return ((words[key] ?? 0) & mask) !== 0;
}

export function setFeature(words: Words, name: string, on: boolean): void {
  const { key, mask } = find(name);
  const value = words[key] ?? 0;
  words[key] = (on ? value | mask : value & ~mask) >>> 0;
}

/** Every allowed bit of a word. */
export function allowedMask(featureWord: FeatureWord): number {
  return Object.keys(featureWord.bits).reduce((mask, bit) => mask | (1 << Number(bit)), 0) >>> 0;
}

/** Names of the bits that `wanted` has and `has` lacks, in table order. */
export function missingFeatures(wanted: Words, has: Words): string[] {
  return FEATURE_WORDS.flatMap(({ key, bits }) => {
    const missing = ((wanted[key] ?? 0) & ~(has[key] ?? 0)) >>> 0;
    return Object.entries(bits)
      .filter(([bit]) => (missing >>> Number(bit)) & 1)
      .map(([, name]) => name);
  });
}

/** Every feature that is on, sorted by table order: for `check` and reports. */
export function featureNames(words: Words): string[] {
  return missingFeatures(words, {});
}
