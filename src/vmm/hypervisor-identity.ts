// Who the guest is told it runs on: CPUID leaves 0x40000000 up. The identity's job is to tell the
// TSC's and the APIC bus's frequency without a kernel option, and to let Linux use x2APIC without
// interrupt remapping (notes/SPAN.md). "vmware" is complete with its port
// (zig/devices/hypervisor_port.zig); "hyperv" tells only what its MSRs must answer, see
// HYPERV_MSRS. Numbers: Linux arch/x86/kernel/cpu/vmware.c; Hyper-V TLFS, "Feature and Interface
// Discovery".

import type { CpuidEntry } from "./records.ts";

export type HypervisorIdentity = "vmware" | "hyperv";

/** APIC timer ticks a guest second, in kHz: 1 GHz, what OVMF assumes too. */
export const APIC_BUS_KHZ = 1_000_000;

export interface Frequencies {
  /** As the guest sees it: host kHz times the clock dilation. */
  tscKhz: number;
  busKhz: number;
}

/** A guest whose clocks run `dilation` times slower finds its TSC that much faster. */
export function guestFrequencies(tscKhz: number, dilation: number): Frequencies {
  return { tscKhz: tscKhz * Math.max(dilation, 1), busKhz: APIC_BUS_KHZ };
}

/**
 * MSRs that the "hyperv" identity promises. KVM answers them itself once CPUID carries "Hv#1", but
 * per VM of one host: a VP index that repeats on the next node, no clock dilation. Whoever selects
 * this identity for a span must filter them (KVM_X86_SET_MSR_FILTER) and answer in the engine.
 */
export const HYPERV_MSRS = {
  guestOsId: 0x4000_0000,
  hypercall: 0x4000_0001,
  vpIndex: 0x4000_0002,
  tscFrequency: 0x4000_0022,
  apicFrequency: 0x4000_0023,
  tscInvariantControl: 0x4000_0118,
} as const;

function text(characters: string): number {
  const [a = 0, b = 0, c = 0, d = 0] = Array.from(characters, (character) =>
    character.charCodeAt(0),
  );
  return (a | (b << 8) | (c << 16) | (d << 24)) >>> 0;
}

function entry(fn: number, eax: number, ebx = 0, ecx = 0, edx = 0): CpuidEntry {
  return { function: fn, index: 0, flags: 0, eax, ebx, ecx, edx };
}

function signature(max: number, name: string): CpuidEntry {
  const part = (at: number): number => text(name.slice(at, at + 4));
  return entry(0x4000_0000, max, part(0), part(4), part(8));
}

function vmwareLeaves({ tscKhz, busKhz }: Frequencies): CpuidEntry[] {
  return [
    signature(0x4000_0010, "VMwareVMware"),
    // ECX bits 0 and 1 would choose VMMCALL or VMCALL; zero is the port.
    entry(0x4000_0010, tscKhz, busKhz, 0, 0),
  ];
}

/** Partition privileges, leaf 0x40000003 EAX; Linux refuses the identity without the first two. */
const ACCESS_HYPERCALL_MSRS = 1 << 5;
const ACCESS_VP_INDEX = 1 << 6;
const ACCESS_FREQUENCY_MSRS = 1 << 11;
const ACCESS_TSC_INVARIANT = 1 << 15;
/** Leaf 0x40000003 EDX: the frequency MSRs exist. */
const FREQUENCY_MSRS = 1 << 8;
/**
 * Leaf 0x40000004 EAX: the guest shall relax its watchdogs; EBX: never hypercall for a spin lock.
 */
const RELAXED_TIMING = 1 << 5;
const SPIN_FOREVER = 0xffff_ffff;

function hypervLeaves(vcpus: number): CpuidEntry[] {
  const access =
    ACCESS_HYPERCALL_MSRS | ACCESS_VP_INDEX | ACCESS_FREQUENCY_MSRS | ACCESS_TSC_INVARIANT;
  return [
    signature(0x4000_0006, "Microsoft Hv"),
    entry(0x4000_0001, text("Hv#1")),
    // A version of no product: 10.0 build 0.
    entry(0x4000_0002, 0, 10 << 16),
    entry(0x4000_0003, access, 0, 0, FREQUENCY_MSRS),
    entry(0x4000_0004, RELAXED_TIMING, SPIN_FOREVER),
    entry(0x4000_0005, vcpus, vcpus),
    entry(0x4000_0006, 0),
  ];
}

/** The leaves of an identity; `vcpus` counts the whole VM. */
export function hypervisorLeaves(
  identity: HypervisorIdentity,
  frequencies: Frequencies,
  vcpus: number,
): CpuidEntry[] {
  return identity === "vmware" ? vmwareLeaves(frequencies) : hypervLeaves(vcpus);
}
