//! Several pagers in one process, each with its own copy of the VM's RAM, joined by lanes. Threads
//! of this process stand for vCPUs: they touch a node's RAM directly. Shard, core, userfaultfd
//! and lanes are the production ones, at the machine's own speed and without KVM. Memory nodes
//! (lenders) may come after the others. For tests and benches.

const std = @import("std");
const linux = std.os.linux;
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const audit = @import("../dsm/audit.zig");
const core_file = @import("../dsm/core.zig");
const Ram = @import("../memory/ram.zig").Ram;
const lane_file = @import("../transport/lane.zig");
const Lane = lane_file.Lane;
const seal = @import("../transport/seal.zig");
const Keeper = @import("../transport/keeper.zig").Keeper;
const tcp = @import("../transport/tcp.zig");
const Batch = @import("discards.zig").Batch;
const Inbox = @import("inbox.zig").Inbox;
const Lanes = @import("lanes.zig").Lanes;
const Lender = @import("lender.zig").Lender;
const pager_file = @import("pager.zig");
const Pager = pager_file.Pager;
const Shard = @import("shard.zig").Shard;

pub const page_size = 4096;
pub const nodes_max = 5;

pub const Node = struct {
    ram: Ram,
    pager: *Pager,
    stats: abi.EngineStats,
    lanes: [nodes_max]?Lane = @splat(null),
    lost: std.atomic.Value(u32) = .init(0),
    settled: std.atomic.Value(u32) = .init(0),
    resets: std.atomic.Value(u32) = .init(0),
    /// Batches of pages that are discarded.
    discards: std.atomic.Value(u32) = .init(0),
    /// Without a thread: test_cuts.zig brings the connections.
    keeper: ?Keeper = null,
};

/// A memory node.
pub const LenderNode = struct {
    lender: *Lender,
    stats: abi.EngineStats,
    lanes: [nodes_max]?Lane = @splat(null),
    /// Killed: its lanes are cut, nobody runs it.
    dead: bool = false,
};

pub const Options = struct {
    nodes: u8 = 2,
    memory_nodes: u8 = 0,
    /// Frames that each node has on each memory node.
    frames: u32 = 0,
    frame_copies: u8 = 1,
    pages_per_node: u32 = 64,
    hold_ns_max: u64 = std.time.ns_per_ms,
    poll_ns_max: u64 = 0,
    limits: pager_file.Limits = .{},
    /// A lane that is cut waits for another connection, instead of being lost.
    resumable: bool = false,
    peer_timeout_ns: u64 = 30 * std.time.ns_per_s,
};

pub const Cluster = struct {
    allocator: std.mem.Allocator,
    nodes: []Node,
    lenders: []LenderNode,
    ranges: [nodes_max]abi.RamRange = undefined,

    /// error.SkipZigTest where the host has no userfaultfd for this user.
    pub fn start(allocator: std.mem.Allocator, options: Options) !*Cluster {
        const self = try allocator.create(Cluster);
        errdefer allocator.destroy(self);
        self.* = .{
            .allocator = allocator,
            .nodes = try allocator.alloc(Node, options.nodes),
            .lenders = try allocator.alloc(LenderNode, options.memory_nodes),
        };
        const size = @as(u64, options.pages_per_node) * page_size;
        for (0..options.nodes) |n| {
            self.ranges[n] = .{ .gpa = n * size, .size = size, .node = @intCast(n) };
        }
        for (self.nodes, 0..) |*node, n| try self.startNode(node, @intCast(n), options);
        for (self.lenders, 0..) |*node, n| {
            try self.startLender(node, options.nodes + @as(u8, @intCast(n)), options);
        }
        const count = options.nodes + options.memory_nodes;
        for (0..count) |a| for (a + 1..count) |b| try self.connect(a, b);
        for (self.nodes) |*node| try node.pager.start();
        for (self.lenders) |*node| try node.lender.start();
        return self;
    }

    /// Of each node on a memory node, or of each memory node: its number first.
    fn frameRanges(options: Options, of_node: u8) [abi.nodes_max]abi.FrameRange {
        var ranges: [abi.nodes_max]abi.FrameRange = @splat(.{ .first = 0, .count = 0 });
        const lends = of_node >= options.nodes;
        for (0..options.nodes + options.memory_nodes) |other| {
            if (lends == (other >= options.nodes)) continue;
            const home = if (lends) other else of_node;
            const first: u32 = @intCast(home * options.frames);
            ranges[other] = .{ .first = first, .count = options.frames };
        }
        return ranges;
    }

    fn startLender(self: *Cluster, node: *LenderNode, number: u8, options: Options) !void {
        node.* = .{ .lender = undefined, .stats = std.mem.zeroes(abi.EngineStats) };
        node.lender = try Lender.create(self.allocator, .{
            .node = number,
            .node_count = options.nodes + options.memory_nodes,
            .frames_lent = options.nodes * options.frames,
            .ranges = frameRanges(options, number),
            .poll_ns_max = options.poll_ns_max,
            .peer_timeout_ns = options.peer_timeout_ns,
            .service_priority = 0,
        }, .{
            .context = node,
            .receive = ignore,
            .lost = ignoreNotice,
            .noticed = ignoreNotice,
            .settled = ignoreEnd,
            .reset_done = ignoreEnd,
            .discarded = ignoreEnd,
            .on_time = noTime,
            .page_lost = noPage,
            .inboxes = noInbox,
        }, &node.stats);
    }

    /// As kill -9: from now on it takes and says nothing. Its peers see their lanes end.
    pub fn killLender(self: *Cluster, which: usize) void {
        self.silenceLender(which);
        for (&self.lenders[which].lanes) |*lane| if (lane.*) |*l| l.cut();
    }

    /// Killed behind a network that is gone: nobody sees it.
    pub fn silenceLender(self: *Cluster, which: usize) void {
        const node = &self.lenders[which];
        node.lender.join();
        node.dead = true;
    }

    /// The word of whoever has reaped it, to all others.
    pub fn tellEnded(self: *Cluster, which: usize) void {
        const number: u8 = @intCast(self.nodes.len + which);
        for (self.nodes) |*node| (Shard{ .pager = node.pager }).peerEnded(number);
        for (self.lenders) |*node| {
            if (!node.dead) (Shard{ .lender = node.lender }).peerEnded(number);
        }
    }

    fn killed(self: *const Cluster) usize {
        var n: usize = 0;
        for (self.lenders) |*node| n += @intFromBool(node.dead);
        return n;
    }

    fn startNode(self: *Cluster, node: *Node, number: u8, options: Options) !void {
        node.* = .{
            .ram = try Ram.init(self.ranges[0..options.nodes]),
            .pager = undefined,
            .stats = std.mem.zeroes(abi.EngineStats),
        };
        node.pager = try Pager.create(self.allocator, &node.ram, .{
            .node = number,
            .node_count = options.nodes + options.memory_nodes,
            .compute = (@as(u64, 1) << @intCast(options.nodes)) - 1,
            .frames = frameRanges(options, number),
            .frame_copies = options.frame_copies,
            .replicate = false,
            .hold_ns_max = options.hold_ns_max,
            .poll_ns_max = options.poll_ns_max,
            .peer_timeout_ns = options.peer_timeout_ns,
            .service_priority = 0,
            .limits = options.limits,
        }, .{
            .context = node,
            .receive = ignore,
            .lost = countLost,
            .noticed = ignoreNotice,
            .settled = countSettled,
            .reset_done = countReset,
            .discarded = countDiscarded,
            .on_time = noTime,
            .page_lost = noPage,
            .inboxes = noInbox,
        }, &node.stats);
        if (options.resumable) try self.addKeeper(node, number);
    }

    fn addKeeper(self: *Cluster, node: *Node, number: u8) !void {
        const key: [32]u8 = @splat(0);
        node.keeper = try Keeper.init(.{
            .node = number,
            .node_count = @intCast(self.nodes.len),
            .listen_fd = -1,
            .key = &key,
            .abi_hash = 0,
            .vm_generation = 0,
            .deadline_ns = 0,
        }, @splat(0), node.pager.mailbox.eventfd);
        node.pager.shell.lanes.keeper = &node.keeper.?;
    }

    fn connect(self: *Cluster, a: usize, b: usize) !void {
        const ends = try newConnection(a, b, 0);
        try self.addLane(a, b, ends[0]);
        try self.addLane(b, a, ends[1]);
    }

    /// Both ends of a connection as a handshake would leave it, with keys of its own: `number` says
    /// which of this pair it is.
    pub fn newConnection(a: usize, b: usize, number: u64) ![2]lane_file.Connection {
        const deadline = sys.monotonicNs() + 10 * std.time.ns_per_s;
        const listener = try tcp.listen(try tcp.Address.parse("127.0.0.1:0"));
        defer sys.close(listener.fd);
        const near = try tcp.connect(tcp.Address.local(listener.fd).?, deadline);
        errdefer sys.close(near);
        const far = try tcp.accept(listener.fd, deadline);
        const key: [32]u8 = @splat(@intCast(a));
        const hellos = std.mem.toBytes([_]u64{ b, number });
        const cipher = seal.Cipher.choose(seal.offered(), seal.offered());
        return .{
            .{ .fd = near, .keys = .derive(&key, cipher, &hellos, true) },
            .{ .fd = far, .keys = .derive(&key, cipher, &hellos, false) },
        };
    }

    fn addLane(self: *Cluster, own: usize, peer: usize, connection: lane_file.Connection) !void {
        if (own >= self.nodes.len) {
            const node = &self.lenders[own - self.nodes.len];
            return self.addTo(&node.lanes, &node.lender.lanes, peer, connection);
        }
        const node = &self.nodes[own];
        return self.addTo(&node.lanes, &node.pager.shell.lanes, peer, connection);
    }

    fn addTo(
        self: *Cluster,
        own: *[nodes_max]?Lane,
        lanes: *Lanes,
        peer: usize,
        connection: lane_file.Connection,
    ) !void {
        own[peer] = try Lane.init(self.allocator, @intCast(peer), .{});
        try own[peer].?.adopt(connection);
        lanes.set(@intCast(peer), &own[peer].?);
    }

    /// Ends the shards, lets what is in flight arrive, audits every page, frees everything. No
    /// thread may touch the RAM any more.
    pub fn stop(self: *Cluster) !void {
        defer self.free();
        try self.rest();
    }

    /// All of that but the last: counters can be looked at before free().
    pub fn rest(self: *Cluster) !void {
        for (self.nodes) |*node| node.pager.join();
        try self.settle();
        for (self.lenders) |*node| node.lender.join();
        var lost: u32 = 0;
        for (self.nodes) |*node| lost += node.lost.load(.acquire);
        // Each node has lost each memory node that was killed, and nobody else.
        if (lost != self.nodes.len * self.killed()) return error.PeerLost;
        var cores: [nodes_max]core_file.Core = undefined;
        for (self.nodes, 0..) |*node, n| cores[n] = node.pager.shell.core;
        if (audit.audit(cores[0..self.nodes.len])) |v| {
            std.debug.print("audit: page {d} on node {d} is {t}, the directory says {t}\n", .{
                v.page, v.node, v.found, v.expected,
            });
            return error.DirectoryWrong;
        }
        for (self.nodes, 0..) |*node, n| if (try node.pager.audit()) |page| {
            std.debug.print("audit: page {d} on node {d} is mapped otherwise\n", .{ page, n });
            return error.MappingWrong;
        };
        try checkFrames(cores[0..self.nodes.len], self.lenders.len - self.killed());
    }

    /// Nothing is under way: each stored page has its frames, and no frame is in use for nothing.
    /// After a loss, too: the memory nodes that are left have room for as many copies as they can.
    fn checkFrames(cores: []const core_file.Core, alive: usize) !void {
        for (cores, 0..) |*core, n| {
            const each = @min(core.config.frame_copies, alive);
            var copies: u64 = 0;
            for (0..core.config.page_count) |page| {
                if (!core.isHome(@intCast(page))) continue;
                if (core.directory[page].state == .stored) copies += each;
            }
            if (core.store.inUse() == copies) continue;
            std.debug.print("node {d}: {d} frames in use, {d} copies of pages\n", .{
                n, core.store.inUse(), copies,
            });
            return error.FramesLeaked;
        }
    }

    fn settle(self: *Cluster) !void {
        const deadline = sys.monotonicNs() + 10 * std.time.ns_per_s;
        var quiet_rounds: usize = 0;
        while (quiet_rounds < 3) {
            if (sys.monotonicNs() > deadline) return error.NeverQuiet;
            var quiet = true;
            for (self.nodes) |*node| {
                node.pager.shell.turn();
                quiet = quiet and node.pager.shell.isQuiet();
            }
            quiet_rounds = if (quiet) quiet_rounds + 1 else 0;
        }
    }

    /// After rest().
    pub fn free(self: *Cluster) void {
        for (self.nodes) |*node| {
            node.pager.join();
            if (node.keeper) |*keeper| keeper.deinit();
            node.pager.destroy();
            for (&node.lanes) |*lane| if (lane.*) |*l| l.deinit();
            node.ram.deinit();
        }
        for (self.lenders) |*node| {
            node.lender.join();
            node.lender.destroy();
            for (&node.lanes) |*lane| if (lane.*) |*l| l.deinit();
        }
        self.allocator.free(self.lenders);
        self.allocator.free(self.nodes);
        self.allocator.destroy(self);
    }

    /// The 8-byte word at `offset` of the RAM, in this node's copy.
    pub fn word(self: *Cluster, node: usize, offset: usize) *align(1) u64 {
        return @ptrCast(self.nodes[node].ram.memory[offset..][0..8]);
    }

    /// As a guest's reset: every node forgets its pages, together. No thread may touch the RAM.
    pub fn reset(self: *Cluster) !void {
        try self.commandAll(pager_file.Command.settle, "settled");
        try self.commandAll(pager_file.Command.reset, "resets");
    }

    fn commandAll(self: *Cluster, command: u8, comptime answers: []const u8) !void {
        var before: [nodes_max]u32 = undefined;
        for (self.nodes, 0..) |*node, n| before[n] = @field(node, answers).load(.acquire);
        for (self.nodes) |*node| node.pager.command(command, 0);
        const deadline = sys.monotonicNs() + 10 * std.time.ns_per_s;
        for (self.nodes, 0..) |*node, n| {
            while (@field(node, answers).load(.acquire) == before[n]) {
                if (sys.monotonicNs() > deadline) return error.NeverAnswered;
                _ = linux.sched_yield();
            }
        }
    }

    /// As a balloon's device thread of that node: returns when the pages are discarded on all.
    pub fn discard(self: *Cluster, node: usize, first: u32, count: u32) !void {
        const n = &self.nodes[node];
        const before = n.discards.load(.acquire);
        var batch: Batch = .{};
        for (first..first + count) |page| batch.add(@intCast(page));
        n.pager.command(pager_file.Command.discard, @intFromPtr(&batch));
        const deadline = sys.monotonicNs() + 30 * std.time.ns_per_s;
        while (n.discards.load(.acquire) == before) {
            if (sys.monotonicNs() > deadline) return error.NeverAnswered;
            _ = linux.sched_yield();
        }
    }

    /// A counter of all nodes together.
    pub fn sum(self: *const Cluster, comptime counter: []const u8) u64 {
        var total: u64 = 0;
        for (self.nodes) |*node| total += @field(node.stats, counter);
        return total;
    }

    pub fn remoteFaults(self: *const Cluster) u64 {
        return self.sum("faults_remote");
    }

    /// Runs work(context, i) on `count` threads at once, spread over the CPUs, and waits for all.
    pub fn run(
        count: usize,
        context: anytype,
        comptime work: fn (@TypeOf(context), usize) void,
    ) !void {
        const Runner = struct {
            fn main(c: @TypeOf(context), index: usize) void {
                _ = sys.pinToCpu(@intCast(index));
                work(c, index);
            }
        };
        var threads: [8]std.Thread = undefined;
        for (threads[0..count], 0..) |*t, i| {
            t.* = try std.Thread.spawn(.{}, Runner.main, .{ context, i });
        }
        for (threads[0..count]) |t| t.join();
    }
};

/// Lets `count` threads go on together, over and over. In this process's own memory.
pub const Barrier = struct {
    count: u32,
    arrived: std.atomic.Value(u32) = .init(0),
    turn: std.atomic.Value(u32) = .init(0),

    pub fn wait(self: *Barrier) void {
        const turn = self.turn.load(.seq_cst);
        if (self.arrived.fetchAdd(1, .seq_cst) + 1 == self.count) {
            self.arrived.store(0, .seq_cst);
            _ = self.turn.fetchAdd(1, .seq_cst);
            return;
        }
        var spins: usize = 0;
        while (self.turn.load(.seq_cst) == turn) : (spins += 1) {
            if (spins > 100) _ = linux.sched_yield() else std.atomic.spinLoopHint();
        }
    }
};

fn ignore(_: *anyopaque, _: u8, _: []const u8) void {}
fn ignoreEnd(_: *anyopaque) void {}
fn ignoreNotice(_: *anyopaque, _: u8, _: []const u8) void {}

fn countSettled(context: *anyopaque) void {
    const node: *Node = @ptrCast(@alignCast(context));
    _ = node.settled.fetchAdd(1, .acq_rel);
}

fn countReset(context: *anyopaque) void {
    const node: *Node = @ptrCast(@alignCast(context));
    _ = node.resets.fetchAdd(1, .acq_rel);
}

fn countDiscarded(context: *anyopaque) void {
    const node: *Node = @ptrCast(@alignCast(context));
    _ = node.discards.fetchAdd(1, .acq_rel);
}

fn noTime(_: *anyopaque, _: u64) void {}
fn noPage(_: *anyopaque, _: u64, _: []const u8) void {}

fn countLost(context: *anyopaque, _: u8, why: []const u8) void {
    const node: *Node = @ptrCast(@alignCast(context));
    std.debug.print("peer lost: {s}\n", .{why});
    _ = node.lost.fetchAdd(1, .acq_rel);
}

fn noInbox(_: *anyopaque, _: usize) ?*const Inbox {
    return null;
}
