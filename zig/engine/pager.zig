//! The pager: the shell (shell.zig) in its production environment, with the thread that runs it.
//! That thread, the shard, owns one userfaultfd, the core, its page states and its lane to every
//! peer; other threads reach it through the mailbox.

const std = @import("std");
const linux = std.os.linux;
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const last_words = @import("../base/last_words.zig");
const core_file = @import("../dsm/core.zig");
const types = @import("../dsm/types.zig");
const Memory = @import("../base/page_array.zig").Memory;
const discards = @import("discards.zig");
const Inspection = @import("inspect.zig").Inspection;
const room = @import("room.zig");
const shell_file = @import("shell.zig");
const sleep = @import("sleep.zig").sleep;
const threads_max = @import("../memory/faults.zig").threads_max;
const mailbox_file = @import("../memory/mailbox.zig");
const Mailbox = mailbox_file.Mailbox;
const pagemap = @import("../memory/pagemap.zig");
const Pagemap = pagemap.Pagemap;
const Mapping = pagemap.Mapping;

const page_size = 4096;

/// The age of the oldest fault in the shared page is out of date by so much at most.
pub const oldest_fault_ns_max = 100 * std.time.ns_per_ms;

pub const Command = shell_file.Command;
pub const Handler = shell_file.Handler;
pub const Limits = shell_file.Limits;
pub const Shell = shell_file.ShellOf(Production);

/// The shell's environment on a real machine.
pub const Production = struct {
    mailbox: *Mailbox,

    pub const mutation: core_file.Mutation = .none;
    pub const Ram = @import("../memory/ram.zig").Ram;
    pub const Kernel = @import("../memory/uffd.zig").Linux;
    pub const Lanes = @import("lanes.zig").Lanes;

    pub inline fn bug(_: Production) shell_file.Bug {
        return .none;
    }

    pub fn now(_: Production) u64 {
        return sys.monotonicNs();
    }

    pub inline fn emptied(_: Production, _: u32) void {}

    pub fn takePost(self: Production) ?mailbox_file.Post {
        return self.mailbox.take();
    }

    /// Inline: the last words name the caller's address.
    pub inline fn fatal(_: Production, comptime format: []const u8, args: anytype) noreturn {
        last_words.fatal(format, args);
    }
};

pub const Settings = struct {
    node: u8,
    node_count: u8,
    replicate: bool,
    hold_ns_max: u64,
    /// Longest time the shard polls before it sleeps; 0: it sleeps at once.
    poll_ns_max: u64,
    peer_timeout_ns: u64,
    service_priority: u32,
    limits: Limits = .{},
    /// Nodes that have vCPUs and guest RAM; the others lend memory.
    compute: types.Nodes,
    /// Frames of this node's on each memory node.
    frames: [abi.nodes_max]abi.FrameRange = @splat(.{ .first = 0, .count = 0 }),
    frame_copies: u8 = 1,
};

pub const Error = error{ SystemCall, OutOfMemory, ThreadFailed };

/// True on the shard's own thread.
threadlocal var on_shard: bool = false;

pub const Pager = struct {
    allocator: std.mem.Allocator,
    settings: Settings,
    homes: [abi.ram_ranges_max]core_file.HomeRange,
    /// The core is made anew at each reset.
    frames: [abi.nodes_max]core_file.FrameRange,
    mailbox: *Mailbox,
    shell: Shell,
    /// Questions of other threads about what the shard knows.
    inspection: Inspection,
    thread: ?std.Thread = null,

    pub fn create(
        allocator: std.mem.Allocator,
        ram: *Production.Ram,
        settings: Settings,
        handler: Handler,
        stats: *abi.EngineStats,
    ) Error!*Pager {
        const self = try allocator.create(Pager);
        errdefer allocator.destroy(self);
        const mailbox = try allocator.create(Mailbox);
        errdefer allocator.destroy(mailbox);
        mailbox.* = .{ .eventfd = try sys.eventfd() };
        errdefer sys.close(mailbox.eventfd);
        const transfers = try Memory.kernel.alloc(u16, ram.pageCount());
        errdefer Memory.kernel.free(u16, transfers);
        const uffd = try Shell.Uffd.open(ram.memory);
        errdefer sys.close(uffd.kernel.fd);
        self.* = .{
            .allocator = allocator,
            .settings = settings,
            .homes = undefined,
            .frames = undefined,
            .mailbox = mailbox,
            .shell = undefined,
            .inspection = .{ .bell_fd = mailbox.eventfd },
        };
        self.shell = try .init(allocator, .{
            .env = .{ .mailbox = mailbox },
            .ram = ram,
            .uffd = uffd,
            .core = .{
                .node = settings.node,
                .node_count = settings.node_count,
                .page_count = ram.pageCount(),
                .home = self.homeRanges(ram),
                .replicate = settings.replicate,
                .hold_ns_max = settings.hold_ns_max,
                .threads = threads_max,
                .compute = settings.compute,
                .frames = self.frameRanges(),
                .frame_copies = settings.frame_copies,
                .discards_max = discards.open_max,
                .slots_max = if (settings.limits.any()) room.slots_max else 0,
                .page_memory = .kernel,
            },
            .limits = settings.limits,
            .lanes = .{
                .env = .{},
                .own = settings.node,
                .peer_timeout_ns = settings.peer_timeout_ns,
                .stats = stats,
                .observer = .{
                    .context = handler.context,
                    .lost = handler.lost,
                    .noticed = handler.noticed,
                },
            },
            .handler = handler,
            .stats = stats,
            .transfers = transfers,
            .faults_hold = sys.kernelBefore(6, 2),
        });
        return self;
    }

    fn homeRanges(self: *Pager, ram: *const Production.Ram) []const core_file.HomeRange {
        for (ram.ranges[0..ram.range_count], 0..) |r, i| {
            self.homes[i] = .{
                .first_page = @intCast(ram.offsets[i] / page_size),
                .node = @intCast(r.node),
            };
        }
        return self.homes[0..ram.range_count];
    }

    fn frameRanges(self: *Pager) []const core_file.FrameRange {
        var count: usize = 0;
        for (self.settings.frames, 0..) |r, node| {
            if (r.count == 0) continue;
            self.frames[count] = .{ .node = @intCast(node), .first = r.first, .count = r.count };
            count += 1;
        }
        return self.frames[0..count];
    }

    pub fn start(self: *Pager) Error!void {
        const old = sys.blockSignals();
        defer sys.restoreSignals(old);
        self.thread = std.Thread.spawn(.{}, run, .{self}) catch return error.ThreadFailed;
    }

    /// Any thread: a span message to the nodes of the mask, in order with this node's other sends.
    pub fn post(self: *Pager, nodes: u64, payload: []const u8) void {
        // The shard itself (an interrupt that follows from a message) must not wait for its own
        // box.
        if (on_shard) return self.shell.sendSpan(nodes, payload);
        self.mailbox.post(nodes, 0, payload);
    }

    /// Whether the caller is the shard itself.
    pub fn isShard() bool {
        return on_shard;
    }

    /// The pages that came from other nodes most often, most first. Read while the shard counts on:
    /// a statistic.
    pub fn hottest(self: *const Pager, out: []abi.HotPage) u32 {
        var count: usize = 0;
        for (self.shell.transfers, 0..) |times, page| {
            if (times == 0) continue;
            var at = count;
            while (at > 0 and out[at - 1].transfers < times) at -= 1;
            if (at == out.len) continue;
            const end = @min(count, out.len - 1);
            std.mem.copyBackwards(abi.HotPage, out[at + 1 .. end + 1], out[at..end]);
            out[at] = .{ .gpa = self.shell.ram.gpaOf(@intCast(page)), .transfers = times };
            count = @min(count + 1, out.len);
        }
        return @intCast(count);
    }

    pub fn command(self: *Pager, which: u8, argument: u64) void {
        self.mailbox.post(0, which, std.mem.asBytes(&argument));
    }

    fn run(self: *Pager) void {
        on_shard = true;
        _ = sys.setFifoPriority(self.settings.service_priority);
        while (!self.shell.stopping.load(.acquire)) {
            self.wait();
            self.turn();
        }
    }

    /// All that is there to do now. Shard thread, or the one that has joined it.
    pub fn turn(self: *Pager) void {
        self.shell.turn();
        self.inspection.serve(self);
    }

    /// Ends the shard's thread. No thread may be in a fault, nor have one after this.
    pub fn join(self: *Pager) void {
        const thread = self.thread orelse return;
        self.command(Command.stop, 0);
        thread.join();
        self.thread = null;
    }

    /// After join(). The guest's memory loses its faults: nothing may use it any more.
    pub fn destroy(self: *Pager) void {
        std.debug.assert(self.thread == null);
        sys.close(self.shell.uffd.kernel.fd);
        self.shell.deinit();
        sys.close(self.mailbox.eventfd);
        self.allocator.destroy(self.mailbox);
        Memory.kernel.free(u16, self.shell.transfers);
        self.allocator.destroy(self);
    }

    /// The first page that the kernel maps in another way than the core thinks; null: none. Shard
    /// thread, or the one that has joined it.
    pub fn audit(self: *const Pager) sys.Error!?u32 {
        const map = try Pagemap.open();
        defer map.close();
        var entries: [512]u64 = undefined;
        var page: u32 = 0;
        while (page < self.shell.ram.pageCount()) {
            const count = @min(entries.len, self.shell.ram.pageCount() - page);
            const first = @intFromPtr(self.shell.ram.memory.ptr) + @as(usize, page) * page_size;
            try map.read(first, entries[0..count]);
            for (entries[0..count]) |entry| {
                const expected: Mapping = switch (self.shell.core.access(page)) {
                    .invalid => .absent,
                    .shared => .protected,
                    .exclusive, .replicated => .writable,
                };
                if (pagemap.mappingOf(entry) != expected) return page;
                page += 1;
            }
        }
        return null;
    }

    fn wait(self: *Pager) void {
        var fds: [2 + abi.nodes_max]linux.pollfd = undefined;
        fds[0] = .{ .fd = self.shell.uffd.kernel.fd, .events = linux.POLL.IN, .revents = 0 };
        fds[1] = .{ .fd = self.mailbox.eventfd, .events = linux.POLL.IN, .revents = 0 };
        const n = 2 + self.shell.lanes.poll(fds[2..]);
        // Faults that must wait would only end the sleep again and again.
        if (!self.shell.mayTakeFaults()) fds[0].events = 0;
        sleep(fds[0..n], self.sleepNs(sys.monotonicNs()), self.settings.poll_ns_max);
        if (fds[1].revents != 0) sys.eventfdDrain(self.mailbox.eventfd);
    }

    /// Longest sleep when nothing comes.
    pub fn sleepNs(self: *Pager, now: u64) u64 {
        if (self.shell.discards.isDue(&self.shell)) return 0;
        var ns = self.shell.lanes.deadline(now) -| now;
        if (self.shell.core.nextDeadline()) |deadline| ns = @min(ns, deadline -| now);
        // A fault that hangs with nothing else going on is seen to grow old.
        return if (self.shell.faults.waiting > 0) @min(ns, oldest_fault_ns_max) else ns;
    }
};

test "page states take as many bytes a page as users are told" {
    const shell = @typeInfo(Shell.Core).@"struct";
    var bytes: usize = 0;
    inline for (shell.field_names, shell.field_types) |name, T| {
        // One entry a page each: arrays of their own, and the index of every pool of records.
        const is_array = comptime std.mem.eql(u8, name, "local") or
            std.mem.eql(u8, name, "versions") or std.mem.eql(u8, name, "directory");
        if (is_array) bytes += @sizeOf(std.meta.Elem(T));
        if (@typeInfo(T) == .@"struct" and @hasField(T, "index")) bytes += @sizeOf(u16);
    }
    // Transfers, and of a home's own pages the frame that may hold it.
    bytes += @sizeOf(u16) + @sizeOf(u32);
    bytes += @import("../memory/eviction.zig").bytes_per_page;
    try std.testing.expectEqual(@as(usize, abi.page_state_bytes), bytes);
}
