//! KVM's user interface, the part we use (linux/kvm.h, arch/x86/include/uapi/asm/kvm.h): ioctl
//! numbers, records, exit reasons. Hand reduced, since the compiler has no C import; a test
//! compares sizes with the ones the kernel's documentation gives. Nothing here calls anything.

const std = @import("std");
const abi = @import("../abi.zig");

fn io(nr: u32) u32 {
    return 0xAE00 | nr;
}

fn ior(nr: u32, size: u32) u32 {
    return 0x8000_0000 | size << 16 | 0xAE00 | nr;
}

fn iow(nr: u32, size: u32) u32 {
    return 0x4000_0000 | size << 16 | 0xAE00 | nr;
}

fn iowr(nr: u32, size: u32) u32 {
    return 0xC000_0000 | size << 16 | 0xAE00 | nr;
}

pub const GET_API_VERSION = io(0x00);
pub const CREATE_VM = io(0x01);
pub const GET_MSR_INDEX_LIST = iowr(0x02, 4);
pub const CHECK_EXTENSION = io(0x03);
pub const GET_VCPU_MMAP_SIZE = io(0x04);
pub const GET_SUPPORTED_CPUID = iowr(0x05, 8);
pub const GET_MSR_FEATURE_INDEX_LIST = iowr(0x0a, 4);
pub const CREATE_VCPU = io(0x41);
pub const SET_USER_MEMORY_REGION = iow(0x46, @sizeOf(UserMemoryRegion));
pub const SET_TSS_ADDR = io(0x47);
pub const SET_IDENTITY_MAP_ADDR = iow(0x48, 8);
pub const RUN = io(0x80);
pub const GET_REGS = ior(0x81, @sizeOf(Regs));
pub const SET_REGS = iow(0x82, @sizeOf(Regs));
pub const GET_SREGS = ior(0x83, @sizeOf(Sregs));
pub const SET_SREGS = iow(0x84, @sizeOf(Sregs));
pub const INTERRUPT = iow(0x86, 4);
pub const GET_MSRS = iowr(0x88, 8);
pub const SET_MSRS = iow(0x89, 8);
pub const GET_FPU = ior(0x8c, @sizeOf(Fpu));
pub const SET_FPU = iow(0x8d, @sizeOf(Fpu));
pub const SET_CPUID2 = iow(0x90, 8);
pub const GET_MP_STATE = ior(0x98, 4);
pub const SET_MP_STATE = iow(0x99, 4);
pub const NMI = io(0x9a);
pub const GET_VCPU_EVENTS = ior(0x9f, @sizeOf(VcpuEvents));
pub const SET_VCPU_EVENTS = iow(0xa0, @sizeOf(VcpuEvents));
pub const SET_DEBUGREGS = iow(0xa2, 128);
pub const ENABLE_CAP = iow(0xa3, @sizeOf(EnableCap));
pub const SET_TSC_KHZ = io(0xa2);
pub const GET_TSC_KHZ = io(0xa3);
pub const X86_SET_MSR_FILTER = iow(0xc6, @sizeOf(MsrFilter));
pub const SET_DEVICE_ATTR = iow(0xe1, @sizeOf(DeviceAttr));
pub const GET_DEVICE_ATTR = iow(0xe2, @sizeOf(DeviceAttr));
pub const HAS_DEVICE_ATTR = iow(0xe3, @sizeOf(DeviceAttr));

pub const api_version = 12;

pub const Cap = struct {
    pub const USER_MEMORY = 3;
    pub const EXT_CPUID = 7;
    pub const NR_VCPUS = 9;
    pub const NR_MEMSLOTS = 10;
    pub const SYNC_MMU = 16;
    pub const VCPU_EVENTS = 41;
    pub const TSC_CONTROL = 60;
    pub const GET_TSC_KHZ = 61;
    pub const MAX_VCPUS = 66;
    pub const VCPU_ATTRIBUTES = 127;
    pub const MAX_VCPU_ID = 128;
    pub const IMMEDIATE_EXIT = 136;
    pub const X86_USER_SPACE_MSR = 188;
    pub const X86_MSR_FILTER = 189;
};

pub const ExitReason = enum(u32) {
    unknown = 0,
    exception = 1,
    io = 2,
    hypercall = 3,
    debug = 4,
    hlt = 5,
    mmio = 6,
    irq_window_open = 7,
    shutdown = 8,
    fail_entry = 9,
    intr = 10,
    set_tpr = 11,
    tpr_access = 12,
    nmi = 16,
    internal_error = 17,
    system_event = 24,
    x86_rdmsr = 29,
    x86_wrmsr = 30,
    memory_fault = 39,
    _,
};

/// KVM_CAP_X86_USER_SPACE_MSR and kvm_run.msr.reason.
pub const MSR_EXIT_REASON_INVAL = 1;
pub const MSR_EXIT_REASON_UNKNOWN = 2;
pub const MSR_EXIT_REASON_FILTER = 4;
pub const MSR_FILTER_READ = 1;
pub const MSR_FILTER_WRITE = 2;

/// KVM_VCPU_TSC_CTRL / KVM_VCPU_TSC_OFFSET.
pub const VCPU_TSC_CTRL = 0;
pub const VCPU_TSC_OFFSET = 0;

pub const UserMemoryRegion = extern struct {
    slot: u32,
    flags: u32,
    guest_phys_addr: u64,
    memory_size: u64,
    userspace_addr: u64,
};

pub const Regs = extern struct {
    rax: u64 = 0,
    rbx: u64 = 0,
    rcx: u64 = 0,
    rdx: u64 = 0,
    rsi: u64 = 0,
    rdi: u64 = 0,
    rsp: u64 = 0,
    rbp: u64 = 0,
    r8: u64 = 0,
    r9: u64 = 0,
    r10: u64 = 0,
    r11: u64 = 0,
    r12: u64 = 0,
    r13: u64 = 0,
    r14: u64 = 0,
    r15: u64 = 0,
    rip: u64 = 0,
    rflags: u64 = 2,
};

pub const Sregs = extern struct {
    cs: abi.Segment,
    ds: abi.Segment,
    es: abi.Segment,
    fs: abi.Segment,
    gs: abi.Segment,
    ss: abi.Segment,
    tr: abi.Segment,
    ldt: abi.Segment,
    gdt: abi.DescriptorTable,
    idt: abi.DescriptorTable,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    cr8: u64,
    efer: u64,
    apic_base: u64,
    interrupt_bitmap: [4]u64,
};

pub const Fpu = extern struct {
    fpr: [128]u8 = @splat(0),
    fcw: u16 = 0x37f,
    fsw: u16 = 0,
    ftwx: u8 = 0,
    pad1: u8 = 0,
    last_opcode: u16 = 0,
    last_ip: u64 = 0,
    last_dp: u64 = 0,
    xmm: [256]u8 = @splat(0),
    mxcsr: u32 = 0x1f80,
    pad2: u32 = 0,
};

pub const VcpuEvents = extern struct {
    exception_injected: u8 = 0,
    exception_nr: u8 = 0,
    exception_has_error_code: u8 = 0,
    exception_pending: u8 = 0,
    exception_error_code: u32 = 0,
    interrupt_injected: u8 = 0,
    interrupt_nr: u8 = 0,
    interrupt_soft: u8 = 0,
    interrupt_shadow: u8 = 0,
    nmi_injected: u8 = 0,
    nmi_pending: u8 = 0,
    nmi_masked: u8 = 0,
    nmi_pad: u8 = 0,
    sipi_vector: u32 = 0,
    flags: u32 = 0,
    smi: [4]u8 = @splat(0),
    reserved: [27]u8 = @splat(0),
    exception_has_payload: u8 = 0,
    exception_payload: u64 = 0,
};

/// KVM_VCPUEVENT_VALID_NMI_PENDING | SIPI_VECTOR | SHADOW.
pub const VCPUEVENT_VALID_NMI_PENDING = 1;
pub const VCPUEVENT_VALID_SHADOW = 4;

pub const EnableCap = extern struct {
    cap: u32,
    flags: u32 = 0,
    args: [4]u64 = @splat(0),
    pad: [64]u8 = @splat(0),
};

pub const MsrFilterRange = extern struct {
    flags: u32 = 0,
    nmsrs: u32 = 0,
    base: u32 = 0,
    pad: u32 = 0,
    bitmap: u64 = 0,
};

pub const MsrFilter = extern struct {
    /// 0: KVM_MSR_FILTER_DEFAULT_ALLOW.
    flags: u32 = 0,
    pad: u32 = 0,
    ranges: [16]MsrFilterRange = @splat(.{}),
};

pub const DeviceAttr = extern struct {
    flags: u32 = 0,
    group: u32,
    attr: u64,
    addr: u64,
};

pub const MsrsOne = extern struct {
    nmsrs: u32 = 1,
    pad: u32 = 0,
    entry: abi.MsrEntry,
};

/// struct kvm_cpuid2 with room for what one vCPU needs.
pub const cpuid_entries_max = 256;
pub const Cpuid2 = extern struct {
    nent: u32,
    padding: u32 = 0,
    entries: [cpuid_entries_max]abi.CpuidEntry,
};

/// The shared run record of a vCPU; the union of exits is read through the accessors below.
pub const Run = extern struct {
    request_interrupt_window: u8,
    immediate_exit: u8,
    padding1: [6]u8,
    exit_reason: ExitReason,
    ready_for_interrupt_injection: u8,
    if_flag: u8,
    flags: u16,
    cr8: u64,
    apic_base: u64,
    exit: extern union {
        io: extern struct { direction: u8, size: u8, port: u16, count: u32, data_offset: u64 },
        mmio: extern struct { phys_addr: u64, data: [8]u8, len: u32, is_write: u8 },
        msr: extern struct { err: u8, pad: [7]u8, reason: u32, index: u32, data: u64 },
        internal: extern struct { suberror: u32, ndata: u32, data: [16]u64 },
        fail_entry: extern struct { reason: u64, cpu: u32 },
        hw: extern struct { reason: u64 },
        system_event: extern struct { type: u32, ndata: u32, data: [16]u64 },
        padding: [256]u8,
    },
};

pub const IO_OUT = 1;

test "record sizes are the kernel's" {
    const expect = std.testing.expectEqual;
    try expect(32, @sizeOf(UserMemoryRegion));
    try expect(144, @sizeOf(Regs));
    try expect(312, @sizeOf(Sregs));
    try expect(416, @sizeOf(Fpu));
    try expect(64, @sizeOf(VcpuEvents));
    try expect(104, @sizeOf(EnableCap));
    try expect(392, @sizeOf(MsrFilter));
    try expect(24, @sizeOf(DeviceAttr));
    try expect(288, @sizeOf(Run));
    try expect(@as(u32, 0xae80), RUN);
    try expect(@as(u32, 0x8090ae81), GET_REGS);
    try expect(@as(u32, 0x4020ae46), SET_USER_MEMORY_REGION);
    try expect(@as(u32, 0x4138ae84), SET_SREGS);
}
