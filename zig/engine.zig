//! One VM on one host, put together: KVM machine, RAM, vCPU threads, devices, interrupts, console.
//! This is the only file that knows all parts; each part knows the engine through the few functions
//! below. Life: create -> configure -> start -> (pause, reset, resume)* -> stop; commands return at
//! once and their completion is an event, since a vCPU may sit in a fault that takes its time.

const std = @import("std");
const abi = @import("abi.zig");
const sys = @import("base/sys.zig");
const last_words = @import("base/last_words.zig");
const Vm = @import("kvm/vm.zig").Vm;
const Vcpu = @import("kvm/vcpu.zig").Vcpu;
const Ram = @import("memory/ram.zig").Ram;
const Lapic = @import("irq/lapic.zig").Lapic;
const Balloon = @import("engine/balloon.zig").Balloon;
const Board = @import("engine/board.zig").Board;
const Bus = @import("engine/bus.zig").Bus;
const Clock = @import("engine/clock.zig").Clock;
const Dumper = @import("engine/dumper.zig").Dumper;
const Console = @import("engine/console.zig").Console;
const Events = @import("engine/events.zig").Events;
const Parking = @import("engine/parking.zig").Parking;
const Router = @import("engine/router.zig").Router;
const Signal = @import("engine/inbox.zig").Signal;
const tcp = @import("transport/tcp.zig");
const link_file = @import("engine/link.zig");
const Link = link_file.Link;
const Span = @import("engine/span.zig").Span;
const Lender = @import("engine/lender.zig").Lender;
const Pager = @import("engine/pager.zig").Pager;
const Shard = @import("engine/shard.zig").Shard;
const pager_file = @import("engine/pager.zig");
const vcpu_thread = @import("engine/vcpu_thread.zig");
const VcpuThread = vcpu_thread.VcpuThread;
const hypervisor_port = @import("devices/hypervisor_port.zig");

pub const start_msrs_max = 64;

/// Virtio's number of a memory balloon (virtio 1.2, 5.5.1).
const balloon_id = 5;
const ioapic_pins = @import("irq/ioapic.zig").pin_count;

/// "host:port" or "unix:/path", for exports.
pub const Address = tcp.Address;
pub const explainAddress = tcp.explain;

/// APIC bus frequency every guest is told (what OVMF assumes).
const bus_hz = 1_000_000_000;

pub const Error = error{ ConfigInvalid, OutOfMemory, SystemCall, ThreadFailed } ||
    pager_file.Error || @import("kvm/vm.zig").Error || @import("memory/ram.zig").Error;

pub const Engine = struct {
    allocator: std.mem.Allocator,
    config: abi.EngineConfig,
    shared: *abi.Shared,
    /// Null on a memory node, which has no vCPUs, devices or guest RAM either.
    vm: ?Vm,
    ram: Ram,
    clock: Clock,
    events: Events,
    router: Router,
    board: Board,
    bus: *Bus,
    /// On the node that has it.
    balloon: ?*Balloon = null,
    /// Guest RAM under userfaultfd; null with plain memory.
    pager: ?*Pager = null,
    /// The other nodes, and this node's shard; null with plain memory.
    span: ?*Span = null,
    link: Link,
    /// Answers SIGUSR1.
    dumper: Dumper,
    console: Console,
    console_thread: ?std.Thread = null,
    vcpus: []VcpuThread,
    boot: ?abi.VcpuRecord = null,
    msrs: [start_msrs_max]abi.MsrEntry = undefined,
    msr_count: u32 = 0,
    started: bool = false,
    parking: Parking,
    /// The first reason to stop is the one told, with its words.
    stop_claimed: std.atomic.Value(bool) = .init(false),
    stop_words: [256]u8 = undefined,
    stop_words_len: usize = 0,
    /// Of a memory node.
    leaving: std.atomic.Value(bool) = .init(false),

    pub fn create(
        allocator: std.mem.Allocator,
        config: *const abi.EngineConfig,
        shared: *abi.Shared,
    ) Error!*Engine {
        if (!isValid(config)) return error.ConfigInvalid;
        const self = try allocator.create(Engine);
        errdefer allocator.destroy(self);
        self.* = undefined;
        self.allocator = allocator;
        self.config = config.*;
        self.shared = shared;
        self.boot = null;
        self.msr_count = 0;
        self.started = false;
        self.console_thread = null;
        self.parking = .{ .threads = config.vcpu_count };
        self.stop_claimed = .init(false);
        self.stop_words_len = 0;
        self.leaving = .init(false);
        self.vm = if (isCompute(config, config.node)) try Vm.create() else null;
        errdefer if (self.vm) |*vm| vm.destroy();
        self.ram = if (self.vm == null) .none else try .init(config.ram[0..config.ram_range_count]);
        errdefer self.ram.deinit();
        self.balloon = null;
        self.pager = null;
        self.span = null;
        self.link = .{ .engine = self, .boot_id = link_file.bootId() };
        try self.addSlots();
        self.clock = Clock.init(config.clock_dilation, config.tsc_khz);
        self.events = .{ .shared = shared, .doorbell_fd = config.doorbell_fd };
        self.router = .{ .node = config.node, .node_count = self.computeCount() };
        const console_eventfd = try sys.eventfd();
        errdefer sys.close(console_eventfd);
        self.board = Board.init(&self.clock, &self.events, &self.router, console_eventfd);
        self.bus = try allocator.create(Bus);
        errdefer allocator.destroy(self.bus);
        self.bus.* = .{ .node = config.node, .board = &self.board };
        self.console = .{
            .board = &self.board,
            .stats = &shared.stats,
            .in_fd = config.console_in_fd,
            .out_fd = config.console_out_fd,
            .eventfd = console_eventfd,
        };
        self.vcpus = try allocator.alloc(VcpuThread, config.vcpu_count);
        errdefer allocator.free(self.vcpus);
        try self.createVcpus();
        vcpu_thread.installKickHandler();
        if (self.vm == null) {
            try self.createLender();
        } else if (config.plain_memory == 0 or config.node_count > 1) try self.createPager();
        self.dumper = .{ .node = config.node, .pager = self.pager };
        try self.dumper.start();
        return self;
    }

    /// Compute nodes are the first ones, node 0 always one of them.
    fn isValid(c: *const abi.EngineConfig) bool {
        if (c.vcpu_count > abi.vcpus_max or c.node >= c.node_count or
            c.node_count > abi.nodes_max or c.ram_range_count > abi.ram_ranges_max) return false;
        const compute = c.compute_nodes;
        const first_ones = compute & 1 != 0 and compute & (compute +% 1) == 0;
        if (!first_ones or compute >> @intCast(c.node_count) != 0) return false;
        for (c.ram[0..c.ram_range_count]) |r| {
            if (r.node >= c.node_count or !isCompute(c, r.node)) return false;
        }
        if (isCompute(c, c.node)) return c.frame_copies >= 1 and c.frame_copies <= 2;
        if (c.vcpu_count > 0 or c.frames_lent == 0) return false;
        for (c.frames) |r| {
            if (r.first > c.frames_lent or r.count > c.frames_lent - r.first) return false;
        }
        return true;
    }

    fn isCompute(c: *const abi.EngineConfig, node: u32) bool {
        return c.compute_nodes >> @intCast(node) & 1 != 0;
    }

    /// Whether the node lends memory and runs no guest code.
    pub fn isMemoryNode(self: *const Engine, node: u32) bool {
        return !isCompute(&self.config, node);
    }

    fn computeCount(self: *const Engine) u32 {
        return @popCount(self.config.compute_nodes);
    }

    fn handler(span: *Span) pager_file.Handler {
        return .{
            .context = span,
            .receive = Span.receive,
            .lost = Span.lost,
            .noticed = Span.noticed,
            .settled = Span.settled,
            .reset_done = Span.resetDone,
            .discarded = Span.discarded,
            .on_time = Span.onTime,
            .page_lost = Span.pageLost,
            .inboxes = Span.inboxAt,
        };
    }

    fn createLender(self: *Engine) Error!void {
        const span = try self.allocator.create(Span);
        errdefer self.allocator.destroy(span);
        const c = &self.config;
        const lender = try Lender.create(self.allocator, .{
            .node = @intCast(c.node),
            .node_count = @intCast(c.node_count),
            .frames_lent = c.frames_lent,
            .ranges = c.frames,
            .poll_ns_max = @as(u64, c.poll_us_max) * std.time.ns_per_us,
            .peer_timeout_ns = peerTimeoutNs(c),
            .service_priority = c.service_priority,
        }, handler(span), &self.shared.stats);
        span.* = .init(self, .{ .lender = lender });
        self.span = span;
    }

    fn peerTimeoutNs(c: *const abi.EngineConfig) u64 {
        return @as(u64, @max(c.peer_timeout_ms, 100)) * std.time.ns_per_ms;
    }

    fn createPager(self: *Engine) Error!void {
        const span = try self.allocator.create(Span);
        errdefer self.allocator.destroy(span);
        const c = &self.config;
        const pager = try Pager.create(self.allocator, &self.ram, .{
            .node = @intCast(c.node),
            .node_count = @intCast(c.node_count),
            .replicate = c.page_tables == @backingInt(abi.PageTables.replicated),
            .hold_ns_max = @as(u64, c.hold_us_max) * std.time.ns_per_us,
            .poll_ns_max = @as(u64, c.poll_us_max) * std.time.ns_per_us,
            .peer_timeout_ns = peerTimeoutNs(c),
            .service_priority = c.service_priority,
            .limits = .{ .cache_pages = c.cache_pages_max, .own_pages = c.resident_pages_max },
            .compute = c.compute_nodes,
            .frames = c.frames,
            .frame_copies = @intCast(c.frame_copies),
        }, handler(span), &self.shared.stats);
        span.* = .init(self, .{ .pager = pager });
        pager.inspection.attach(&self.shared.pages, &self.events);
        pager.shell.faults.heat = .init(&self.shared.heat, pager.shell.ram.pageCount());
        self.pager = pager;
        self.span = span;
        self.router.remote = Span.sendInterrupt;
        self.router.remote_context = span;
        if (c.node_count == 1) try pager.start();
    }

    /// Where this node's lanes listen; returns the port bound.
    pub fn listen(self: *Engine, address: tcp.Address) sys.Error!u16 {
        const listener = try tcp.listen(address);
        self.link.listener = listener;
        return listener.port;
    }

    /// Lets arrive what is under way; event `settled` follows. False with plain memory.
    pub fn settlePages(self: *Engine) bool {
        const span = self.span orelse return false;
        span.shard.command(pager_file.Command.settle, 0);
        return true;
    }

    /// Forgets every page of this node; event `reset_done` follows. False with plain memory.
    pub fn forgetPages(self: *Engine) bool {
        const span = self.span orelse return false;
        span.shard.command(pager_file.Command.reset, 0);
        return true;
    }

    /// Asks the shard about pages; event `pages_answered` follows.
    pub fn queryPages(
        self: *Engine,
        gpa: u64,
        count: u32,
        sequence: u16,
    ) error{ PlainMemory, NotRam, Busy }!void {
        const pager = self.pager orelse return error.PlainMemory;
        const start_gpa = std.mem.alignBackward(u64, gpa, std.heap.page_size_min);
        const first = self.ram.pageOf(start_gpa) orelse return error.NotRam;
        const bytes = @as(u64, count) * std.heap.page_size_min;
        if (self.ram.slice(start_gpa, bytes) == null) return error.NotRam;
        return pager.inspection.ask(first, @intCast(count), sequence);
    }

    /// An NMI to every vCPU of this node.
    pub fn sendNmi(self: *Engine) void {
        for (self.vcpus) |*v| v.inbox.post(Signal.nmi);
    }

    pub fn startLink(self: *Engine) Error!void {
        const old = sys.blockSignals();
        defer sys.restoreSignals(old);
        const thread = std.Thread.spawn(.{}, Link.run, .{&self.link});
        (thread catch return error.ThreadFailed).detach();
    }

    /// A STARTUP message to another node is about to leave: the page tables the sender runs on are
    /// the guest kernel's own (it brings up a CPU from a kernel thread), hence the root to
    /// replicate from.
    pub fn sampleRoot(self: *Engine, v: *VcpuThread) void {
        const pager = self.pager orelse return;
        if (self.computeCount() == 1) return;
        const sregs = v.vcpu.getSregs() catch return;
        // CR3 bits 51:12 (SDM vol. 3A, 4.5.2); the low bits are a PCID or caching flags.
        pager.command(pager_file.Command.root, sregs.cr3 & 0x000f_ffff_ffff_f000);
    }

    fn addSlots(self: *Engine) Error!void {
        var buffer: [abi.ram_ranges_max]@import("memory/ram.zig").Chunk = undefined;
        for (self.ram.chunks(&buffer), 0..) |chunk, i| {
            const memory = self.ram.memory[chunk.offset..][0..chunk.size];
            try self.vm.?.setSlot(@intCast(i), chunk.gpa, memory);
        }
    }

    fn createVcpus(self: *Engine) Error!void {
        for (self.vcpus, 0..) |*v, i| {
            const index: u32 = @intCast(i);
            const apic_id = self.config.node << abi.apic_node_shift | index;
            const boots = apic_id == 0;
            v.* = .{
                .engine = self,
                .index = index,
                .apic_id = apic_id,
                .vcpu = try Vcpu.create(&self.vm.?, apic_id),
                .lapic = Lapic.init(apic_id, boots),
                .stats = &self.shared.vcpus[i],
            };
            self.router.add(&v.inbox);
            v.publish();
        }
    }

    /// Before start. So far only a balloon, and one.
    pub fn addVirtio(self: *Engine, device: *const abi.VirtioDevice) Error!void {
        const is_good = device.id == balloon_id and device.pin < ioapic_pins and
            device.config_len >= 8;
        if (!is_good or self.balloon != null or self.started) return error.ConfigInvalid;
        const balloon = try self.allocator.create(Balloon);
        balloon.* = .init(self, device.*);
        self.balloon = balloon;
        self.bus.balloon = balloon;
        // It parks like a vCPU.
        self.parking.threads += 1;
    }

    /// CPUID of one vCPU; before start and after reset-with-a-new-model only.
    pub fn setCpuid(self: *Engine, index: u32, entries: []const abi.CpuidEntry) Error!void {
        const v = &self.vcpus[index];
        self.allocator.free(v.cpuid);
        v.cpuid = &.{};
        v.cpuid = try self.allocator.dupe(abi.CpuidEntry, entries);
        try v.vcpu.setCpuid(v.cpuid);
    }

    pub fn setMsrs(self: *Engine, entries: []const abi.MsrEntry) Error!void {
        if (entries.len > start_msrs_max) return error.ConfigInvalid;
        @memcpy(self.msrs[0..entries.len], entries);
        self.msr_count = @intCast(entries.len);
    }

    /// Starts vCPU threads; the boot vCPU of node 0 runs the loader's record, others wait for SIPI.
    pub fn start(self: *Engine) Error!void {
        try self.prepareVcpus();
        self.parking.proceed();
        self.shared.stats.start_ns = sys.monotonicNs();
        // Threads inherit a mask with everything blocked; each vCPU unblocks its kick alone.
        const old = sys.blockSignals();
        defer sys.restoreSignals(old);
        for (self.vcpus) |*v| {
            v.thread = std.Thread.spawn(.{}, VcpuThread.main, .{v}) catch return error.ThreadFailed;
        }
        if (self.balloon) |balloon| try balloon.start();
        if (self.config.console_in_fd >= 0 or self.config.console_out_fd >= 0) {
            const thread = std.Thread.spawn(.{}, runConsole, .{self});
            self.console_thread = thread catch return error.ThreadFailed;
        }
        self.started = true;
        self.setState(.running);
    }

    /// State dead: the guest's last console byte is out and the process may go.
    fn runConsole(self: *Engine) void {
        self.console.run();
        self.setState(.dead);
    }

    pub fn prepareVcpus(self: *Engine) Error!void {
        for (self.vcpus) |*v| {
            for (self.msrs[0..self.msr_count]) |entry| try v.vcpu.setMsr(entry);
            try v.setClock();
            if (v.apic_id == 0) {
                const record = self.boot orelse return error.ConfigInvalid;
                try v.vcpu.setBoot(&record, v.lapic.base());
                v.state.store(.running, .monotonic);
            } else {
                try v.vcpu.setInit(v.lapic.base());
            }
        }
    }

    /// From any thread. What has stopped never runs again: a guest may halt before start() returns,
    /// and a vCPU park while another thread stops the VM.
    fn setState(self: *Engine, state: abi.EngineState) void {
        const stopped = @backingInt(abi.EngineState.stopped);
        const new = @backingInt(state);
        const word = &self.shared.state;
        var old = @atomicLoad(u32, word, .monotonic);
        while (old < stopped or new > old) {
            // Release: whoever reads the state sees what led to it.
            old = @cmpxchgWeak(u32, word, old, new, .release, .monotonic) orelse return;
        }
    }

    pub fn pause(self: *Engine) void {
        if (!self.parking.pause()) return;
        self.kickAll();
        if (self.vcpus.len == 0) self.events.simple(.paused, 0, 0, 0, 0);
    }

    pub fn continueRun(self: *Engine) void {
        self.setState(.running);
        self.parking.proceed();
    }

    /// All vCPUs are parked: a fresh KVM machine over the same RAM, devices at power-on, RAM
    /// cleared. TypeScript then loads the images again and resumes.
    pub fn reset(self: *Engine) Error!void {
        if (self.isMemoryNode(self.config.node)) return;
        for (self.vcpus) |*v| v.vcpu.destroy();
        try self.vm.?.renew();
        // With a pager the shard forgets the pages (Command.reset) before this.
        if (self.pager == null) try self.ram.clear();
        try self.addSlots();
        self.board.reset();
        if (self.balloon) |balloon| balloon.reset();
        for (self.vcpus) |*v| {
            v.vcpu = try Vcpu.create(&self.vm.?, v.apic_id);
            v.lapic = Lapic.init(v.apic_id, v.apic_id == 0);
            v.inbox.clear();
            v.state.store(.wait_startup, .monotonic);
            v.ready = false;
            v.halted_masked = false;
            v.tsc_adjust = 0;
            v.deferred = .{ .signals = 0, .startup_vector = 0 };
            v.publish();
            try v.vcpu.setCpuid(v.cpuid);
        }
    }

    pub fn stop(self: *Engine) void {
        self.stopWith(.requested, 0xffff_ffff, 0);
    }

    /// Takes a memory node out of the VM in order; event `stopped` follows.
    pub fn leave(self: *Engine) error{StateWrong}!void {
        if (!self.isMemoryNode(self.config.node)) return error.StateWrong;
        self.leaving.store(true, .seq_cst);
        self.span.?.shard.command(pager_file.Command.leave, 0);
    }

    /// The process of a memory node has ended, by the word of whoever has reaped it. Of others it
    /// is not taken: their end is the VM's, which is told otherwise.
    pub fn peerEnded(self: *Engine, node: u32) error{StateWrong}!void {
        const span = self.span orelse return error.StateWrong;
        const is_peer = node < self.config.node_count and node != self.config.node;
        if (!is_peer or !self.isMemoryNode(node)) return error.StateWrong;
        span.shard.peerEnded(@intCast(node));
    }

    pub fn isLeaving(self: *const Engine) bool {
        return self.leaving.load(.seq_cst);
    }

    /// Ends the VM on every node, from any thread; the first reason is the one told.
    pub fn stopWith(self: *Engine, reason: abi.StopReason, vcpu: u32, detail: u64) void {
        self.stopTelling(reason, vcpu, detail, "");
    }

    pub fn stopTelling(
        self: *Engine,
        reason: abi.StopReason,
        vcpu: u32,
        detail: u64,
        words: []const u8,
    ) void {
        if (!self.stopLocally(reason, vcpu, detail, words)) return;
        // The VM is not a memory node's to end.
        if (self.isMemoryNode(self.config.node)) return;
        const span = self.span orelse return;
        if (self.config.node_count > 1) span.sendStop(reason, detail, words);
    }

    /// Ends this engine's part; false when it was ending already.
    pub fn stopLocally(
        self: *Engine,
        reason: abi.StopReason,
        vcpu: u32,
        detail: u64,
        words: []const u8,
    ) bool {
        if (self.stop_claimed.swap(true, .seq_cst)) return false;
        self.stop_words_len = @min(words.len, self.stop_words.len);
        @memcpy(self.stop_words[0..self.stop_words_len], words[0..self.stop_words_len]);
        self.parking.stop();
        self.setState(.stopped);
        self.kickAll();
        self.console.stop();
        // Behind the words, which TypeScript reads because of it.
        self.events.simple(.stopped, vcpu, @backingInt(reason), detail, 0);
        return true;
    }

    /// After event `stopped`.
    pub fn stopWords(self: *const Engine) []const u8 {
        return self.stop_words[0..self.stop_words_len];
    }

    pub fn kickAll(self: *Engine) void {
        for (self.vcpus) |*v| v.inbox.post(Signal.wake);
        if (self.balloon) |balloon| balloon.ring();
    }

    pub fn stopping(self: *const Engine) bool {
        return self.parking.isStopping();
    }

    /// Called by each vCPU thread at the top of its loop: waits while paused or frozen; false means
    /// stop. `counted` is the thread's own (parking.zig).
    pub fn checkpoint(self: *Engine, counted: *u32) bool {
        while (self.pager) |pager| {
            if (!pager.mailbox.isCrowded() or self.stopping()) break;
            pager.mailbox.holdBack();
        }
        while (true) switch (self.parking.pass(counted)) {
            .go => return true,
            .stop => return false,
            .all_parked => {
                self.setState(.paused);
                self.events.simple(.paused, 0, 0, 0, 0);
            },
        };
    }

    /// A vCPU halted with interrupts off. When every other one is too (or never started), nothing
    /// can wake the guest but an NMI nobody will send: a guest that "halted" instead of powering
    /// off.
    pub fn maskedHalt(self: *Engine, index: u32) void {
        if (self.computeCount() > 1) return;
        for (self.vcpus) |*v| {
            switch (v.state.load(.monotonic)) {
                .running => return,
                .halted => if (!v.halted_masked) return,
                .wait_startup => {},
            }
        }
        self.stopWith(.halted_forever, index, 0);
    }

    /// The IOAPIC is on node 0.
    pub fn endOfInterrupt(self: *Engine, vector: u8) void {
        if (self.config.node == 0) return self.board.endOfInterrupt(vector);
        self.span.?.sendEndOfInterrupt(vector);
    }

    /// Hands the vCPU's io request to the node that has the device.
    pub fn forward(self: *Engine, vcpu: u32, node: u32) void {
        self.span.?.forward(vcpu, node);
    }

    /// Answers a posted io request: of a vCPU here, or a forwarded one (slots from vcpus_max on).
    pub fn completeIo(self: *Engine, vcpu: u32, value: u64) error{StateWrong}!void {
        if (vcpu >= abi.vcpus_max) {
            return self.span.?.completeForeign(vcpu - abi.vcpus_max, value);
        }
        if (vcpu >= self.vcpus.len) return error.StateWrong;
        const slot = &self.shared.io_slots[vcpu];
        if (@atomicLoad(u32, &slot.state, .acquire) != @backingInt(abi.IoState.posted)) {
            return error.StateWrong;
        }
        slot.value = value;
        // Release: the vCPU sees the value before the state.
        @atomicStore(u32, &slot.state, @backingInt(abi.IoState.done), .release);
        self.vcpus[vcpu].inbox.post(Signal.wake);
    }

    pub fn frequencies(self: *const Engine) hypervisor_port.Frequencies {
        const tsc_hz = @as(u64, self.config.tsc_khz) * 1000 * @max(self.config.clock_dilation, 1);
        return .{ .tsc_hz = tsc_hz, .bus_hz = bus_hz };
    }
};
