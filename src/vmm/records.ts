// Plain-object forms of the records that cross to Zig, with the field names of zig/abi.zig: bigint
// for u64, number for anything smaller, Uint8Array for byte arrays. src/vmm is pure and may not
// import src/native, so the few numbers it needs are here; records.test.ts compares them with
// zig/abi.zig.

/** One exit-less source of guest bytes at start and at every reset. */
export type Load =
  | { gpa: bigint; bytes: Uint8Array }
  | { gpa: bigint; file: string; offset: number; length: number };

/** abi.zig CpuidEntry (struct kvm_cpuid_entry2 without its padding). */
export interface CpuidEntry {
  function: number;
  index: number;
  flags: number;
  eax: number;
  ebx: number;
  ecx: number;
  edx: number;
}

/** KVM_CPUID_FLAG_SIGNIFCANT_INDEX (linux/kvm.h): the leaf has subleaves. */
export const CPUID_INDEXED = 1;

/** abi.zig MsrEntry. */
export interface MsrEntry {
  index: number;
  value: bigint;
}

/** abi.zig Segment (struct kvm_segment). */
export interface Segment {
  base: bigint;
  limit: number;
  selector: number;
  type: number;
  present: number;
  dpl: number;
  db: number;
  s: number;
  l: number;
  g: number;
  avl: number;
  unusable: number;
}

/** abi.zig DescriptorTable. */
export interface DescriptorTable {
  base: bigint;
  limit: number;
}

/** abi.zig VcpuRecord: the boot vCPU's start state. */
export interface VcpuRecord {
  rax: bigint;
  rbx: bigint;
  rcx: bigint;
  rdx: bigint;
  rsi: bigint;
  rdi: bigint;
  rsp: bigint;
  rbp: bigint;
  r8: bigint;
  r9: bigint;
  r10: bigint;
  r11: bigint;
  r12: bigint;
  r13: bigint;
  r14: bigint;
  r15: bigint;
  rip: bigint;
  rflags: bigint;
  cs: Segment;
  ds: Segment;
  es: Segment;
  fs: Segment;
  gs: Segment;
  ss: Segment;
  tr: Segment;
  ldt: Segment;
  gdt: DescriptorTable;
  idt: DescriptorTable;
  cr0: bigint;
  cr2: bigint;
  cr3: bigint;
  cr4: bigint;
  cr8: bigint;
  efer: bigint;
}

/** abi.zig IoKind (only what a bus region may be). */
export const IO_KIND = { pio: 0, mmio: 1 } as const;

/** abi.zig BusTarget. */
export const BUS_TARGET = {
  none: 0,
  uart: 1,
  rtc: 2,
  pm_timer: 3,
  ioapic: 4,
  register_file: 5,
  typescript: 6,
  hypervisor_port: 7,
  virtio: 8,
} as const;

/** abi.zig BusRegion. */
export interface BusRegion {
  kind: number;
  target: number;
  base: bigint;
  len: bigint;
  device: number;
  node: number;
}

/** abi.zig register_file_max. */
export const REGISTER_FILE_MAX = 64;

/** abi.zig RegisterFile: arrays are REGISTER_FILE_MAX long, `len` bytes of them meaningful. */
export interface RegisterFile {
  device: number;
  len: number;
  image: Uint8Array;
  write_mask: Uint8Array;
  w1c_mask: Uint8Array;
  event_mask: Uint8Array;
}

/** abi.zig virtio_queues_max, virtio_config_max. */
export const VIRTIO_QUEUES_MAX = 8;
export const VIRTIO_CONFIG_MAX = 16;

/** abi.zig VirtioDevice: a virtio device over MMIO. */
export interface VirtioDevice {
  device: number;
  id: number;
  vendor: number;
  pin: number;
  features: bigint;
  /** VIRTIO_QUEUES_MAX of them; 0: no such queue. */
  queue_sizes: number[];
  config_len: number;
  config: Uint8Array;
  config_write_mask: Uint8Array;
}

/** abi.zig RamRange. */
export interface RamRange {
  gpa: bigint;
  size: bigint;
  node: number;
}
