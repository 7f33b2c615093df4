//! The data half of the Zig-TypeScript boundary (exports.zig is the function half).
//! Every record here is an extern struct of fixed-width fields with explicit padding; sizes are
//! asserted at compile time, and `abi_hash` is a hash of every name, offset, size and value below,
//! so a library and bindings of different builds refuse each other at load.
//! src/native/abi.gen.ts is generated from this file and exports.zig; never edit it by hand.
//! 64-bit counters in the shared page have one writer (Zig) and are read by TypeScript as two u32.

const std = @import("std");

pub const abi_version: u32 = 1;

/// Most vCPUs one node may create: one io slot and one stats record each in the shared page.
pub const vcpus_max: u32 = 64;
/// One slot for each own vCPU, then one for each forwarded exit that TypeScript answers here.
pub const io_slots_max: u32 = 2 * vcpus_max;
/// Most nodes of one VM. An APIC id is node << apic_node_shift | index.
pub const nodes_max: u32 = 8;
pub const apic_node_shift: u32 = 6;
pub const ram_ranges_max: u32 = 32;
pub const event_ring_entries: u32 = 512;
pub const last_words_text_max: u32 = 2048;
/// Pages that one question to the shard can be about.
pub const page_records_max: u32 = 64;
/// Most blocks of guest RAM whose remote faults are counted apart.
pub const heat_blocks_max: u32 = 4096;
/// What a pager keeps of each guest page it has dealt with (counted in engine/pager.zig).
pub const page_state_bytes: u32 = 44;
pub const shared_magic: u32 = 0x56495353; // "SSIV", little endian

/// Result of every exported function; text and errno of the newest failure: ssihv_error_last.
pub const Status = enum(i32) {
    ok = 0,
    invalid_argument = -1,
    handle_stale = -2,
    state_wrong = -3,
    memory_exhausted = -4,
    kvm_failed = -5,
    uffd_failed = -6,
    io_failed = -7,
    unsupported = -8,
    guest_range_invalid = -9,
    peer_failed = -10,
};

/// What the newest failed call says. `text` is UTF-8, `text_len` bytes of it.
pub const ErrorRecord = extern struct {
    status: i32,
    errno: u32,
    text_len: u32,
    pad: u32 = 0,
    text: [240]u8,
};

pub const AbiInfo = extern struct {
    version: u32,
    pad: u32 = 0,
    hash: u64,
};

/// A mapping of the shared page in this process, and the memfd behind it.
pub const SharedInfo = extern struct {
    fd: i32,
    pad: u32 = 0,
    address: u64,
    size: u64,
};

/// State of an engine as its parent sees it in the shared page.
pub const EngineState = enum(u32) {
    created = 0,
    running = 1,
    paused = 2,
    stopped = 3,
    dead = 4,
};

pub const LastWordsKind = enum(u32) {
    none = 0,
    /// A Zig panic (broken invariant); text is its message.
    panic = 1,
    /// A fatal signal; signo is set.
    signal = 2,
    /// A named fatal condition such as page_lost; text explains.
    fatal = 3,
};

/// Written once by the dying engine, read by its parent. `kind` is stored last (release).
pub const LastWords = extern struct {
    kind: u32,
    signo: u32,
    /// vCPU index of the thread that died, or 0xffff_ffff.
    vcpu: u32,
    text_len: u32,
    address: u64,
    text: [last_words_text_max]u8,
};

pub const IoKind = enum(u32) { pio = 0, mmio = 1, rdmsr = 2, wrmsr = 3 };
pub const IoState = enum(u32) {
    idle = 0,
    /// Filled by the vCPU, waiting for a completer.
    posted = 1,
    /// `value` holds the answer; the vCPU goes on.
    done = 2,
};

/// An exit that this engine cannot answer itself; one slot per vCPU, in the shared page.
/// The vCPU stores `state` = posted with release; the completer stores done with release.
pub const IoSlot = extern struct {
    state: u32,
    kind: u32,
    /// Bytes: 1, 2, 4 or 8.
    size: u32,
    is_write: u32,
    address: u64,
    value: u64,
    sequence: u32,
    /// Device id the bus table named for this address.
    device: u32,
    pad: [2]u64 = .{ 0, 0 },
};

pub const EventKind = enum(u32) {
    none = 0,
    /// A vCPU waits for TypeScript: vcpu = index, slot in io_slots.
    io_request = 1,
    /// All vCPUs parked after pause.
    paused = 2,
    /// The VM stopped by itself: a = StopReason, vcpu = who.
    stopped = 3,
    /// A register file's event bits were written: a = device, b = offset, c = value.
    register_event = 4,
    /// A peer's state changed: a = node, b = PeerState.
    peer = 5,
    /// A message the user should see: text bytes packed in a..e; vcpu = 1: the next notice goes on.
    notice = 6,
    /// All vCPUs parked, devices reset: TypeScript reloads the images.
    reset_done = 7,
    /// A control message of another node's TypeScript: a = node, b = operation, c = argument.
    control = 8,
    /// All lanes are up: a = 0; or could not be brought up: a = 1, words in the newest notice.
    linked = 9,
    /// The shard has answered a question about pages: a = its sequence, records in `pages`.
    pages_answered = 10,
    /// After pagesSettle: nothing of this node is under way.
    settled = 11,
};

pub const StopReason = enum(u32) {
    none = 0,
    requested = 1,
    triple_fault = 2,
    /// KVM_EXIT_INTERNAL_ERROR or FAIL_ENTRY; b = suberror.
    kvm_internal_error = 3,
    /// KVM_EXIT_MMIO inside RAM: memory would be wrong.
    mmio_in_ram = 4,
    vcpu_lost = 5,
    page_lost = 6,
    /// The guest can never run again: every vCPU halted with interrupts off.
    halted_forever = 7,
};

pub const PeerState = enum(u32) { connecting = 0, up = 1, lost = 2, dead = 3 };

pub const Event = extern struct {
    kind: u32,
    vcpu: u32,
    a: u64,
    b: u64,
    c: u64,
    d: u64,
    e: u64,
    time_ns: u64,
    pad: u64 = 0,
};

/// Single producer side is guarded by a lock in the engine; single consumer is TypeScript.
pub const EventRing = extern struct {
    /// Next entry to write (free running). Release on write, acquire on read.
    head: u32,
    /// Next entry to read (free running), written by TypeScript.
    tail: u32,
    /// Events that found the ring full: visible, never silent.
    dropped: u32,
    pad: u32 = 0,
    entries: [event_ring_entries]Event,
};

/// Architectural registers of a vCPU that stopped, for reports (triple fault).
pub const CpuDump = extern struct {
    valid: u32,
    vcpu: u32,
    rax: u64,
    rbx: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    rsp: u64,
    rbp: u64,
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    rip: u64,
    rflags: u64,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    efer: u64,
    cs_base: u64,
    cs_selector: u32,
    pad: u32 = 0,
};

/// Work of one vCPU since start.
pub const VcpuStats = extern struct {
    exits: u64,
    pio: u64,
    mmio: u64,
    msr: u64,
    halts: u64,
    interrupts: u64,
    irq_windows: u64,
    kicks: u64,
    /// Exits answered by TypeScript.
    io_typescript: u64,
    /// Exits answered by another node.
    io_remote: u64,
    nmis: u64,
    ipis_sent: u64,
    ipis_remote: u64,
    /// Ports and addresses nobody owns: read as ones, writes dropped.
    unclaimed: u64,
    timer_fires: u64,
    msr_unknown: u64,
};

/// Log2 buckets: bucket i counts samples of [2^i, 2^(i+1)) ns; the last one everything above.
pub const Histogram = extern struct {
    count: u64,
    sum_ns: u64,
    max_ns: u64,
    buckets: [40]u64,
};

pub const EngineStats = extern struct {
    start_ns: u64,
    /// Pager: faults taken from userfaultfd by kind, and where they were answered.
    faults_read: u64,
    faults_write: u64,
    faults_upgrade: u64,
    faults_local: u64,
    faults_remote: u64,
    faults_spurious: u64,
    pages_sent: u64,
    pages_received: u64,
    invalidations: u64,
    messages_sent: u64,
    messages_received: u64,
    bytes_sent: u64,
    bytes_received: u64,
    /// Of pages_received: pages classed as guest page tables (strict mode) or diffs (replicated).
    page_table_transfers: u64,
    replicated_pages: u64,
    replica_diffs: u64,
    /// Comparisons of all replicated tables with their twins.
    replica_scans: u64,
    replica_entries: u64,
    replica_conflicts: u64,
    revokes_deferred: u64,
    stalled_ns: u64,
    stall_ns_max: u64,
    oldest_fault_ns: u64,
    serial_bytes_out: u64,
    serial_bytes_in: u64,
    fault_latency: Histogram,
    /// Lanes, all peers together: bytes that wait for sockets, and that peers have not
    /// acknowledged (now, and the most one lane ever had).
    lane_bytes_queued: u64,
    lane_bytes_unacked: u64,
    lane_bytes_unacked_max: u64,
    /// Connections after a cut, frames sent again over them, frames refused as not the peer's.
    lane_reconnects: u64,
    lane_frames_resent: u64,
    lane_refusals: u64,
    /// Times a full lane held vCPUs back, and acknowledgements that had to travel alone.
    lane_requests_held: u64,
    lane_acks_alone: u64,
    /// Pages here now, and the most there ever were: of other nodes, and of this node's own. Kept
    /// only where their number is limited.
    cache_pages: u64,
    cache_pages_max: u64,
    own_pages: u64,
    own_pages_max: u64,
    /// Pages that had to leave, and those of all that came back soon.
    pages_evicted: u64,
    pages_returned: u64,
    /// Turns of the shard in which faults had to wait, for lanes or until pages had left.
    turns_held: u64,
    /// Memory node: frames that hold a page, and pages that came and went.
    frames_held: u64,
    frame_puts: u64,
    frame_gets: u64,
    /// Times the whole VM stood still for another node; this node's time in it, and the longest.
    freezes: u64,
    frozen_ns: u64,
    frozen_ns_max: u64,
    /// Own pages that were discarded, and frames of memory nodes that these were in.
    pages_discarded: u64,
    frames_freed: u64,
    /// Discards that this node asked for in vain: page tables.
    discards_refused: u64,
    /// Balloon, on the node that has it: pages it is to have and that the guest says it has; pages
    /// that the guest gave up, into it or by reporting them free; times that its driver broke the
    /// rules.
    balloon_target: u64,
    balloon_actual: u64,
    balloon_inflated: u64,
    balloon_reported: u64,
    balloon_faults: u64,
    /// Comparisons of this node's guest TSC with node 0's on another host, and what the newest one
    /// can be off by; steps forward, after hosts with faster crystals.
    clock_checks: u64,
    clock_error_ns: u64,
    clock_steps: u64,
    clock_stepped_ns: u64,
    reserved: [2]u64,
};

/// A page in its home's directory. Shared: read-only copies at the sharers, `owner` wrote last.
/// Stored: in frames of the memory nodes that are named as sharers, and nowhere else.
pub const PageState = enum(u32) {
    untouched = 0,
    shared = 1,
    exclusive = 2,
    replicated = 3,
    stored = 4,
};

/// How a node has a page: not at all, write-protected, as the only copy, as one of equal copies.
pub const PageAccess = enum(u32) { invalid = 0, shared = 1, exclusive = 2, replicated = 3 };

pub const PageRequest = enum(u32) {
    none = 0,
    get_shared = 1,
    get_exclusive = 2,
    upgrade = 3,
    replicate = 4,
    discard = 5,
    /// The home's own: a second copy on a memory node.
    repair = 6,
};

/// How far the transaction of a page is at its home (zig/dsm/core.zig, Phase).
pub const PagePhase = enum(u32) {
    none = 0,
    strict = 1,
    share = 2,
    go = 3,
    parked = 4,
    load = 5,
    discard = 6,
};

/// A page as one node's shard knows it: its own copy and, if it is the page's home, the directory
/// entry and the open transaction.
pub const PageRecord = extern struct {
    gpa: u64,
    /// Directory: bit n = node n has a read-only copy, or a frame with the stored page.
    sharers: u64,
    /// Directory.
    version: u32,
    /// Requests that wait behind the transaction.
    queued: u32,
    /// Version of this node's copy.
    copy_version: u32,
    /// Revokes of this node's copy that are put aside.
    revokes_deferred: u32,
    home: u8,
    /// PageState and owner: directory.
    state: u8,
    owner: u8,
    /// The transaction: for which node, PageRequest (none: no transaction), PagePhase.
    requester: u8,
    request: u8,
    phase: u8,
    /// PageAccess of this node's copy.
    access: u8,
    /// PageRequest that this node waits for itself.
    waits_for: u8,
};

/// Written by the shard only between a question and the event that answers it.
pub const PageAnswer = extern struct {
    sequence: u32,
    count: u32,
    records: [page_records_max]PageRecord,
};

/// Where this node's remote faults are: those that ended, by block of guest RAM. Block i has the
/// pages from i * block_pages on, in order of their addresses with the holes between RAM ranges
/// left out. The sum of all is EngineStats.faults_remote; each count is modulo 2^32.
pub const Heat = extern struct {
    block_pages: u32,
    /// Blocks that there are; 0 on a memory node and where no pager runs.
    count: u32,
    faults: [heat_blocks_max]u32,
};

/// The shared page: one memfd per engine, mapped by the engine and by its parent.
pub const Shared = extern struct {
    magic: u32,
    version: u32,
    hash: u64,
    size: u64,
    state: u32,
    pid: u32,
    last_words: LastWords,
    cpu_dump: CpuDump,
    stats: EngineStats,
    ring: EventRing,
    io_slots: [io_slots_max]IoSlot,
    vcpus: [vcpus_max]VcpuStats,
    pages: PageAnswer,
    heat: Heat,
};

/// One range of guest RAM. `node` is the home of its pages.
pub const RamRange = extern struct {
    gpa: u64,
    size: u64,
    node: u32,
    pad: u32 = 0,
};

/// Frames of a memory node that one compute node may use.
pub const FrameRange = extern struct {
    first: u32,
    count: u32,
};

pub const EngineConfig = extern struct {
    /// Shared page fd, already mapped by ssihv_shared_map.
    shared_fd: i32,
    /// Console: guest serial output goes to console_out_fd, input comes from console_in_fd; -1 =
    /// none.
    console_in_fd: i32,
    console_out_fd: i32,
    /// A byte is written here whenever the event ring goes from empty to not empty.
    doorbell_fd: i32,
    node: u32,
    node_count: u32,
    /// vCPUs of this node.
    vcpu_count: u32,
    ram_range_count: u32,
    /// vCPUs of every node, index = node.
    vcpu_counts: [nodes_max]u32,
    ram: [ram_ranges_max]RamRange,
    tsc_khz: u32,
    /// Guest clocks (APIC bus, PM timer, reported TSC) run this many times slower; 1 on real hosts.
    clock_dilation: u32,
    /// Nonzero: pager off, plain RAM (one node only).
    plain_memory: u32,
    /// See PageTables.
    page_tables: u32,
    /// SCHED_FIFO priority of service threads, 0 = normal.
    service_priority: u32,
    /// Pin vCPU i to host CPU i mod online.
    pin_vcpus: u32,
    peer_timeout_ms: u32,
    hold_us_max: u32,
    /// Longest time the shard polls before it sleeps; 0: it sleeps at once.
    poll_us_max: u32,
    /// Time without an answer after which the whole VM stands still; 0: never.
    stall_freeze_ms: u32,
    /// fd of the connected lane to each peer, -1 where none (index = node).
    lane_fds: [nodes_max]i32,
    /// 32-byte lane key (per VM).
    lane_key: [32]u8,
    vm_generation: u64,
    /// Nodes with vCPUs and guest RAM (bit n = node n); the others are memory nodes.
    compute_nodes: u64,
    /// Most pages of other nodes that may be here; 0: any number.
    cache_pages_max: u32,
    /// Most own pages that may be here; 0: all.
    resident_pages_max: u32,
    /// Memory nodes that keep each page which its home has not.
    frame_copies: u32,
    /// Memory node: frames that it lends.
    frames_lent: u32,
    /// Compute node: its frames on each memory node. Memory node: those of each compute node.
    frames: [nodes_max]FrameRange,
    reserved: [15]u64,
};

pub const PageTables = enum(u32) { strict = 0, replicated = 1 };

/// A guest page that moved often: transfers to this node since start.
pub const HotPage = extern struct {
    gpa: u64,
    transfers: u64,
};

/// What memory of a node costs a CPU of another one, or of the same. Zeros: not measured.
pub const LinkCost = extern struct {
    /// Nanoseconds until a page, or a cache line of local memory, is there.
    latency_ns: u64,
    bytes_per_second: u64,
};

/// What answers an address range.
pub const BusTarget = enum(u32) {
    /// Reads as ones, writes dropped, not counted as unclaimed.
    none = 0,
    uart = 1,
    rtc = 2,
    pm_timer = 3,
    ioapic = 4,
    /// A register file of `device` (see RegisterFile).
    register_file = 5,
    /// io request completed by TypeScript; `device` says which handler.
    typescript = 6,
    /// The hypervisor backdoor port that tells TSC and bus frequency.
    hypervisor_port = 7,
    /// The virtio device `device` over MMIO (see VirtioDevice).
    virtio = 8,
};

pub const BusRegion = extern struct {
    /// IoKind.pio or IoKind.mmio.
    kind: u32,
    target: u32,
    base: u64,
    len: u64,
    device: u32,
    /// Node that has the device.
    node: u32,
};

pub const register_file_max: u32 = 64;

/// A device that is only registers: read gives image; a write changes image under write_mask,
/// clears the bits written as one under w1c_mask, and a written one under event_mask raises an
/// event.
pub const RegisterFile = extern struct {
    device: u32,
    len: u32,
    image: [register_file_max]u8,
    write_mask: [register_file_max]u8,
    w1c_mask: [register_file_max]u8,
    event_mask: [register_file_max]u8,
};

pub const virtio_queues_max: u32 = 8;
pub const virtio_config_max: u32 = 16;

/// A virtio device over MMIO: what its registers say of it. So far a balloon (id 5), one a VM.
pub const VirtioDevice = extern struct {
    /// Of the bus region.
    device: u32,
    /// Virtio's numbers of the device's type and of its vendor.
    id: u32,
    vendor: u32,
    /// Of the IOAPIC; level, active high.
    pin: u32,
    features: u64,
    /// Most entries of each queue; 0: no such queue.
    queue_sizes: [virtio_queues_max]u32,
    config_len: u32,
    pad: u32 = 0,
    config: [virtio_config_max]u8,
    /// Bits of the configuration that the driver writes.
    config_write_mask: [virtio_config_max]u8,
};

/// As struct kvm_cpuid_entry2 (linux/kvm.h).
pub const CpuidEntry = extern struct {
    function: u32,
    index: u32,
    flags: u32,
    eax: u32,
    ebx: u32,
    ecx: u32,
    edx: u32,
    pad: [3]u32 = .{ 0, 0, 0 },
};

pub const MsrEntry = extern struct {
    index: u32,
    pad: u32 = 0,
    value: u64,
};

/// As struct kvm_segment.
pub const Segment = extern struct {
    base: u64,
    limit: u32,
    selector: u16,
    type: u8,
    present: u8,
    dpl: u8,
    db: u8,
    s: u8,
    l: u8,
    g: u8,
    avl: u8,
    unusable: u8,
    pad: u8 = 0,
};

pub const DescriptorTable = extern struct {
    base: u64,
    limit: u16,
    pad: [3]u16 = .{ 0, 0, 0 },
};

/// Start state of the boot vCPU: what a loader decides. Other vCPUs wait for SIPI.
pub const VcpuRecord = extern struct {
    rax: u64,
    rbx: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    rsp: u64,
    rbp: u64,
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    rip: u64,
    rflags: u64,
    cs: Segment,
    ds: Segment,
    es: Segment,
    fs: Segment,
    gs: Segment,
    ss: Segment,
    tr: Segment,
    ldt: Segment,
    gdt: DescriptorTable,
    idt: DescriptorTable,
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    cr8: u64,
    efer: u64,
};

/// Answer of one host probe (`ssihv check`): see zig/kvm/probe.zig for how each is measured.
pub const ProbeState = enum(u32) { not_run = 0, good = 1, degraded = 2, missing = 3 };

pub const ProbeResult = extern struct {
    state: u32,
    errno: u32,
    value: u64,
};

pub const HostProbe = extern struct {
    kvm: ProbeResult,
    /// value = 1 when replaced page-table pages are seen (TDP), 0 when stale translations were
    /// used.
    tdp: ProbeResult,
    /// value = WRITE|WP faults on write-protected page-table pages by a guest that only reads.
    walks_write: ProbeResult,
    x2apic_exits: ProbeResult,
    xapic_exits: ProbeResult,
    hlt_exits: ProbeResult,
    irq_window: ProbeResult,
    nmi: ProbeResult,
    msr_filter: ProbeResult,
    immediate_exit: ProbeResult,
    /// value = features of UFFDIO_API.
    uffd: ProbeResult,
    uffd_kernel_mode: ProbeResult,
    uffd_write_protect: ProbeResult,
    uffd_thread_id: ProbeResult,
    tsc_offset: ProbeResult,
    /// value = kHz.
    tsc_khz: ProbeResult,
    tsc_scaling: ProbeResult,
    vcpus_limit: ProbeResult,
    memory_lock: ProbeResult,
    reserved: [16]ProbeResult,
};

/// Every record that TypeScript sees, in order: the generator and the hash walk this list.
pub const records = .{
    ErrorRecord,  AbiInfo,   SharedInfo,   LastWords,   IoSlot,      Event,     EventRing,
    CpuDump,      VcpuStats, Histogram,    EngineStats, Shared,      RamRange,  FrameRange,
    EngineConfig, BusRegion, RegisterFile, CpuidEntry,  MsrEntry,    Segment,   DescriptorTable,
    VcpuRecord,   HotPage,   PageRecord,   PageAnswer,  ProbeResult, HostProbe, LinkCost,
    VirtioDevice, Heat,
};

/// Every enum that TypeScript sees.
pub const enums = .{
    Status,    EngineState, LastWordsKind, IoKind,     IoState,   EventKind,  StopReason,
    PeerState, PageTables,  BusTarget,     ProbeState, PageState, PageAccess, PageRequest,
    PagePhase,
};

comptime {
    std.debug.assert(@sizeOf(ErrorRecord) == 256);
    std.debug.assert(@sizeOf(IoSlot) == 56);
    std.debug.assert(@sizeOf(Event) == 64);
    std.debug.assert(@sizeOf(CpuidEntry) == 40);
    std.debug.assert(@sizeOf(Segment) == 24);
    std.debug.assert(@sizeOf(DescriptorTable) == 16);
    std.debug.assert(@sizeOf(VcpuRecord) == 18 * 8 + 8 * 24 + 2 * 16 + 6 * 8);
    std.debug.assert(@offsetOf(Shared, "last_words") % 8 == 0);
    for (records) |R| assertNoHiddenPadding(R);
}

/// A record whose fields do not add up to its size has padding the compiler chose: refuse it.
fn assertNoHiddenPadding(comptime R: type) void {
    var sum: usize = 0;
    for (@typeInfo(R).@"struct".field_types) |T| sum += @sizeOf(T);
    if (sum != @sizeOf(R)) @compileError("hidden padding in " ++ @typeName(R));
}
