//! Payload guests: one KVM virtual machine per node over that node's RAM, and a vCPU for every
//! payload. A guest runs functions of this very program at privilege level 3: it sees the
//! program's image, an arena for contexts and stacks, and its node's RAM at the addresses they have
//! here, through page tables in plain memory that never change (a KVM with shadow paging would not
//! see them replaced). There is no guest kernel: a port write ends a run, any exception is a
//! triple fault, and that is a failure with the guest's registers.
//! Built for a static program: what a compiler adds (memcpy) then lies in the image too.

const std = @import("std");
const linux = std.os.linux;
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const host = @import("../kvm/host.zig");
const probe_guest = @import("../kvm/probe_guest.zig");
const Vm = @import("../kvm/vm.zig").Vm;
const Vcpu = @import("../kvm/vcpu.zig").Vcpu;
const ram_file = @import("../memory/ram.zig");
const cluster_file = @import("test_cluster.zig");
const Cluster = cluster_file.Cluster;
const payload = @import("test_payload.zig");

const page_size = cluster_file.page_size;
const nodes_max = cluster_file.nodes_max;
const vcpus_max = 8;

/// Guest-physical places, above all RAM of a cluster and below what 36 bits reach.
const tables_gpa: u64 = 4 << 30;
const image_gpa: u64 = 5 << 30;
const arena_gpa: u64 = 6 << 30;
const tables_pages = 64;
/// Of each vCPU, at the arena's start. From the end down: a page of zeroes as task state segment,
/// whose I/O bitmap allows all ports (a KVM that emulates level 0 looks there although IOPL is 3);
/// a page where FS points, and one below it, for what is a thread's own (compilers read a stack
/// guard there); the stack.
const vcpu_size = 256 << 10;
const arena_size = 8 << 20;

/// Present, writable, user, accessed, dirty (Intel SDM vol. 3, 4.5).
pub const entry_bits: u64 = 0x67;
/// CR4: OSFXSR and OSXMMEXCPT, for the SSE instructions that compilers use.
const cr4_sse: u64 = 0x600;
/// IA32_APIC_BASE of a boot CPU, as KVM starts it.
const apic_base: u64 = 0xfee0_0900;

/// A run in which nothing moved for so long hangs.
const patience_s = 120;

pub const Error = error{
    SystemCall,
    ApiVersion,
    CapabilityMissing,
    RoomTooSmall,
    OutOfMemory,
    ThreadFailed,
    /// Said aloud with the registers.
    GuestFailed,
};

/// Four-level page tables in memory that the guest sees at `gpa`; the first page is the root.
pub const Tables = struct {
    memory: []align(page_size) u8,
    gpa: u64,
    pages: usize = 1,

    pub fn map(self: *Tables, va: u64, gpa: u64, size: u64) void {
        var done: u64 = 0;
        while (done < size) : (done += page_size) self.leaf(va + done).* = gpa + done | entry_bits;
    }

    pub fn table(self: *Tables, index: usize) *[512]u64 {
        return @ptrCast(@alignCast(self.memory[index * page_size ..][0..page_size]));
    }

    fn leaf(self: *Tables, va: u64) *u64 {
        var at: usize = 0;
        var shift: u6 = 39;
        while (true) : (shift -= 9) {
            const entry = &self.table(at)[(va >> shift) & 511];
            if (shift == 12) return entry;
            if (entry.* == 0) {
                std.debug.assert((self.pages + 1) * page_size <= self.memory.len);
                entry.* = self.gpa + self.pages * page_size | entry_bits;
                self.pages += 1;
            }
            at = @intCast((entry.* - self.gpa) / page_size);
        }
    }
};

/// Where this program's own image lies, from its program headers.
fn ownImage() []align(page_size) u8 {
    const Found = struct {
        low: usize = std.math.maxInt(usize),
        high: usize = 0,

        fn visit(info: *std.c.dl_phdr_info, _: usize, data: ?*anyopaque) callconv(.c) c_int {
            const self: *@This() = @ptrCast(@alignCast(data.?));
            for (info.phdr[0..info.phnum]) |header| {
                if (header.type != .LOAD) continue;
                self.low = @min(self.low, info.addr + header.vaddr);
                self.high = @max(self.high, info.addr + header.vaddr + header.memsz);
            }
            // The first object is the program.
            return 1;
        }
    };
    var found: Found = .{};
    _ = std.c.dl_iterate_phdr(Found.visit, &found);
    const low = std.mem.alignBackward(usize, found.low, page_size);
    const high = std.mem.alignForward(usize, found.high, page_size);
    const start: [*]align(page_size) u8 = @ptrFromInt(low);
    return start[0 .. high - low];
}

const Machine = struct {
    vm: Vm,
    tables: Tables,

    fn start(self: *Machine, guests: *Guests, node: usize) Error!void {
        const memory = try sys.mapAnonymous(tables_pages * page_size);
        errdefer sys.unmap(memory);
        var vm = try Vm.create();
        errdefer vm.destroy();
        self.* = .{ .vm = vm, .tables = .{ .memory = @alignCast(memory), .gpa = tables_gpa } };
        const image = ownImage();
        try vm.setSlot(0, tables_gpa, memory);
        try self.show(1, image_gpa, image);
        try self.show(2, arena_gpa, guests.arena);
        const ram = &guests.cluster.nodes[node].ram;
        var out: [abi.ram_ranges_max]ram_file.Chunk = undefined;
        for (ram.chunks(&out), 3..) |chunk, slot| {
            try self.show(@intCast(slot), chunk.gpa, ram.memory[chunk.offset..][0..chunk.size]);
        }
    }

    /// The guest sees this memory at the address it has here.
    fn show(self: *Machine, slot: u32, gpa: u64, memory: []const u8) Error!void {
        try self.vm.setSlot(slot, gpa, memory);
        self.tables.map(@intFromPtr(memory.ptr), gpa, memory.len);
    }

    fn destroy(self: *Machine) void {
        self.vm.destroy();
        sys.unmap(@alignCast(self.tables.memory));
    }
};

/// Other page tables than those in plain memory, another privilege level.
pub const How = struct {
    cr3: u64 = tables_gpa,
    level: @FieldType(probe_guest.Start, "level") = .user,
};

/// Where every run starts and ends. Calls and alignment as the C ABI wants them.
fn gate() callconv(.naked) noreturn {
    asm volatile (
        \\ callq *%%rax
        \\1:
        \\ outb %%al, %[done]
        \\ jmp 1b
        :
        : [done] "n" (payload.Port.done),
    );
}

pub const Guests = struct {
    allocator: std.mem.Allocator,
    cluster: *Cluster,
    arena: []align(page_size) u8,
    arena_used: usize = 0,
    machines: []Machine,
    vcpus: [vcpus_max]Vcpu = undefined,
    vcpu_count: usize = 0,
    /// Payloads that have ended in this run.
    ended: std.atomic.Value(u32) = .init(0),
    failed: std.atomic.Value(bool) = .init(false),
    /// Says nothing of a guest that fails.
    failure_wanted: bool = false,

    /// One VM a node; `count` vCPUs, the i-th on node i modulo the nodes.
    pub fn start(allocator: std.mem.Allocator, cluster: *Cluster, count: usize) Error!*Guests {
        std.debug.assert(count <= vcpus_max);
        const self = try allocator.create(Guests);
        errdefer allocator.destroy(self);
        const machines = try allocator.alloc(Machine, cluster.nodes.len);
        errdefer allocator.free(machines);
        self.* = .{
            .allocator = allocator,
            .cluster = cluster,
            .arena = @alignCast(try sys.mapAnonymous(arena_size)),
            .machines = machines,
        };
        errdefer sys.unmap(@alignCast(self.arena));
        var started: usize = 0;
        errdefer for (machines[0..started]) |*m| m.destroy();
        while (started < machines.len) : (started += 1) {
            try machines[started].start(self, started);
        }
        errdefer for (self.vcpus[0..self.vcpu_count]) |*v| v.destroy();
        while (self.vcpu_count < count) : (self.vcpu_count += 1) {
            const node = self.vcpu_count % machines.len;
            self.vcpus[self.vcpu_count] = try newVcpu(&machines[node].vm, //
                @intCast(self.vcpu_count / machines.len));
        }
        self.arena_used = count * vcpu_size;
        return self;
    }

    fn newVcpu(vm: *const Vm, id: u32) Error!Vcpu {
        var vcpu = try Vcpu.create(vm, id);
        errdefer vcpu.destroy();
        var entries: [256]abi.CpuidEntry = undefined;
        try vcpu.setCpuid(entries[0..try host.supportedCpuid(&entries)]);
        return vcpu;
    }

    /// Before the cluster stops: nothing may fault after its shards.
    pub fn stop(self: *Guests) void {
        for (self.vcpus[0..self.vcpu_count]) |*v| v.destroy();
        for (self.machines) |*m| m.destroy();
        sys.unmap(@alignCast(self.arena));
        self.allocator.free(self.machines);
        self.allocator.destroy(self);
    }

    /// Memory that this program and every guest see at one address, zeroed.
    pub fn create(self: *Guests, comptime T: type) *T {
        const start_at = std.mem.alignForward(usize, self.arena_used, @max(64, @alignOf(T)));
        self.arena_used = start_at + @sizeOf(T);
        std.debug.assert(self.arena_used <= self.arena.len);
        return @ptrCast(@alignCast(self.arena[start_at..].ptr));
    }

    /// Runs work(context, i) as guest on vCPU i, for the first `count` of them, and waits for all.
    /// The context lies in create()d memory.
    pub fn run(
        self: *Guests,
        count: usize,
        context: anytype,
        comptime work: fn (@TypeOf(context), usize) void,
    ) Error!void {
        return self.runWith(count, context, work, .{});
    }

    pub fn runWith(
        self: *Guests,
        count: usize,
        context: anytype,
        comptime work: fn (@TypeOf(context), usize) void,
        how: How,
    ) Error!void {
        const Called = struct {
            fn main(c: @TypeOf(context), index: usize) callconv(.c) void {
                work(c, index);
            }
        };
        self.ended.store(0, .release);
        self.failed.store(false, .release);
        for (0..count) |i| {
            try self.prepare(i, @intFromPtr(&Called.main), @intFromPtr(context), how);
        }
        var threads: [vcpus_max]std.Thread = undefined;
        for (threads[0..count], 0..) |*t, i| {
            t.* = std.Thread.spawn(.{}, drive, .{ self, i }) catch return error.ThreadFailed;
        }
        self.watch(@intCast(count));
        for (threads[0..count]) |t| t.join();
        if (self.failed.load(.acquire)) return error.GuestFailed;
    }

    fn prepare(self: *Guests, index: usize, function: u64, context: u64, how: How) Error!void {
        const vcpu = &self.vcpus[index];
        // Completes the port write that ended the run before.
        vcpu.run.immediate_exit = 1;
        _ = try vcpu.enter();
        vcpu.run.immediate_exit = 0;
        var r = probe_guest.record(.{ .routine = .spin, .level = how.level });
        r.cr3 = how.cr3;
        r.cr4 |= cr4_sse;
        r.rip = @intFromPtr(&gate);
        const end = @intFromPtr(self.arena.ptr) + (index + 1) * vcpu_size;
        r.tr.base = end - page_size;
        r.fs.base = end - 2 * page_size;
        r.rsp = end - 3 * page_size;
        r.rax = function;
        r.rdi = context;
        r.rsi = index;
        try vcpu.setBoot(&r, apic_base);
    }

    /// A vCPU's thread.
    fn drive(self: *Guests, index: usize) void {
        _ = sys.pinToCpu(@intCast(index));
        defer _ = self.ended.fetchAdd(1, .acq_rel);
        while (!self.failed.load(.acquire)) {
            const vcpu = &self.vcpus[index];
            const entered = vcpu.enter() catch return self.fail(index);
            if (entered == .interrupted) continue;
            switch (vcpu.run.exit_reason) {
                .intr => {},
                .io => switch (vcpu.run.exit.io.port) {
                    payload.Port.done => return,
                    payload.Port.yield => _ = linux.sched_yield(),
                    else => return self.fail(index),
                },
                else => return self.fail(index),
            }
        }
    }

    fn fail(self: *Guests, index: usize) void {
        const vcpu = &self.vcpus[index];
        self.failed.store(true, .release);
        if (self.failure_wanted) return;
        std.debug.print("guest {d}: KVM_RUN ended with {t}, errno {d}\n", .{
            index, vcpu.run.exit_reason, sys.last_errno,
        });
        if (vcpu.run.exit_reason == .mmio) {
            std.debug.print("guest {d}: address 0x{x}\n", .{
                index, vcpu.run.exit.mmio.phys_addr,
            });
        }
        const regs = vcpu.getRegs() catch return;
        std.debug.print("guest {d}: rip 0x{x} rsp 0x{x} rdi 0x{x} rax 0x{x}\n", .{
            index, regs.rip, regs.rsp, regs.rdi, regs.rax,
        });
    }

    /// Waits for all payloads. A run that cannot end any more ends the program, with what the nodes
    /// know of it: a guest in a fault that nobody answers is not to be had back.
    fn watch(self: *Guests, count: u32) void {
        var seen: u64 = 0;
        var idle_ms: u64 = 0;
        while (self.ended.load(.acquire) < count) {
            sys.pause(std.time.ns_per_ms);
            const now = self.activity();
            idle_ms = if (now == seen) idle_ms + 1 else 0;
            seen = now;
            const is_lost = self.lostPeers() > 0;
            if (is_lost or idle_ms > patience_s * 1000) self.giveUp(is_lost);
        }
    }

    fn lostPeers(self: *const Guests) u32 {
        var sum: u32 = 0;
        for (self.cluster.nodes) |*node| sum += node.lost.load(.acquire);
        return sum;
    }

    fn activity(self: *const Guests) u64 {
        var sum: u64 = self.ended.load(.acquire);
        for (self.cluster.nodes) |*node| {
            sum +%= node.stats.faults_local + node.stats.faults_remote +
                node.stats.messages_received;
        }
        return sum;
    }

    fn giveUp(self: *const Guests, is_lost: bool) noreturn {
        for (self.cluster.nodes, 0..) |*node, n| {
            std.debug.print("node {d}: oldest fault {d} ms, {d} remote faults, {d} messages\n", .{
                n,                        node.stats.oldest_fault_ns / std.time.ns_per_ms, //
                node.stats.faults_remote, node.stats.messages_received,
            });
        }
        if (is_lost) std.debug.panic("a node lost its peer while guests ran", .{});
        std.debug.panic("guests did not end; for {d} s no fault or message came", .{patience_s});
    }
};

test "a guest runs this program's functions, and one that fails says so" {
    const testing = std.testing;
    if (linux.errno(linux.access("/dev/kvm", linux.R_OK | linux.W_OK)) != .SUCCESS) {
        return error.SkipZigTest;
    }
    const cluster = try Cluster.start(testing.allocator, .{ .pages_per_node = 1 });
    const guests = try Guests.start(testing.allocator, cluster, 2);
    const Sum = struct {
        of: [2]u64,
        bytes: [2][600]u8,

        fn work(self: *@This(), index: usize) void {
            // Something that compilers call memcpy and memset for.
            var own: [600]u8 = @splat(@intCast(index + 1));
            payload.fence();
            self.bytes[index] = own;
            for (&own) |*b| self.of[index] += b.*;
        }

        fn wild(_: *@This(), _: usize) void {
            const nowhere: *volatile u8 = @ptrFromInt(0x10_0000_0000);
            nowhere.* = 1;
        }
    };
    const sum = guests.create(Sum);
    try guests.run(2, sum, Sum.work);
    try testing.expectEqual([2]u64{ 600, 1200 }, sum.of);
    try testing.expectEqual(@as(u8, 2), sum.bytes[1][599]);
    guests.failure_wanted = true;
    try testing.expectError(error.GuestFailed, guests.run(1, sum, Sum.wild));
    guests.stop();
    try cluster.stop();
}
