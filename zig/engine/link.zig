//! Bringing a span up: lanes to every peer, then one clock, then what pages cost (link_costs.zig),
//! then the shard. Runs on its own thread,
//! since peers may start later; TypeScript hears of the end by the event `linked`. The thread then
//! goes on as the lanes' keeper (transport/keeper.zig).
//!
//! Clock: guest TSC = host TSC + offset on every host. Node 0 chooses its offset so that the
//! guest's TSC starts near zero; every other node asks node 0 for its TSC many times and takes the
//! quickest answer as the truth (error at most half that round trip). Two engines on one host (same
//! boot id) share one TSC and get exactly the same offset. How it stays so: steer.zig.

const std = @import("std");
const linux = std.os.linux;
const abi = @import("../abi.zig");
const abi_hash = @import("../abi_hash.zig");
const sys = @import("../base/sys.zig");
const tcp = @import("../transport/tcp.zig");
const handshake = @import("../transport/handshake.zig");
const linkup = @import("../transport/linkup.zig");
const lane_file = @import("../transport/lane.zig");
const Lane = lane_file.Lane;
const frame = @import("../transport/frame.zig");
const costs_file = @import("link_costs.zig");
const talk = @import("link_talk.zig");
const Keeper = @import("../transport/keeper.zig").Keeper;
const failure = @import("../base/failure.zig");
const readTsc = @import("clock.zig").readTsc;
const Engine = @import("../engine.zig").Engine;

/// How long peers may take to appear; their hosts may still be starting their part.
const patience_ns = 120 * std.time.ns_per_s;
const clock_rounds = 32;
const clock_words = "agreement on the clock";

const Lanes = [abi.nodes_max]?*Lane;

comptime {
    // What answers must never wait (lane.zig). Each faulting thread of each node has one open
    // transaction, for which one node owes another at most one page and four messages without
    // (forward or invalidate, grant, ack, done), and as much again may have been read without being
    // acknowledged yet. Besides, each page on its way out may be asked for again with its bytes.
    // Entries of replicated page tables are not bounded by this; the rest of the reserve holds
    // 14,000 of them.
    const faults = @import("../memory/faults.zig");
    const room = @import("room.zig");
    const discards = @import("discards.zig");
    const small = frame.header_bytes + frame.protocol_bytes;
    const page = frame.header_bytes + frame.payload_max;
    const answers = page + 4 * small;
    const options: lane_file.Options = .{};
    const open = abi.nodes_max * faults.threads_max;
    const put_again = room.slots_max * page;
    // Each discard of each node: an invalidate, an ack and the word that it is done, twice.
    const discarding = abi.nodes_max * discards.open_max * 6 * small;
    const needed = open * answers + put_again + discarding + options.tx_bytes / 4;
    std.debug.assert(options.reserve_bytes >= needed);
}

pub const Link = struct {
    engine: *Engine,
    listener: ?tcp.Listener = null,
    addresses: [abi.nodes_max]?tcp.Address = @splat(null),
    cancel: std.atomic.Value(u32) = .init(0),
    outcome: linkup.Outcome = .{},
    /// Lives as long as the process: the shard may want a connection at any time.
    keeper: Keeper = undefined,
    /// On node 0 of every pair of nodes with vCPUs, once the span is up.
    costs: costs_file.Costs = costs_file.unknown,
    /// Read while files can be opened: the sandbox comes before the lanes.
    boot_id: [36]u8,
    /// With node 0, which is on this host, or is this node.
    shares_tsc: bool = false,
    words: [240]u8 = undefined,
    words_len: usize = 0,

    pub fn run(self: *Link) void {
        self.bringUp() catch |e| {
            if (self.words_len == 0) self.say("{t} (errno {d})", .{ e, sys.last_errno });
            self.engine.events.simple(.linked, 0, 1, 0, 0);
            return;
        };
        self.engine.events.simple(.linked, 0, 0, 0, 0);
        self.keeper.run();
    }

    fn say(self: *Link, comptime format: []const u8, args: anytype) void {
        const text = std.fmt.bufPrint(&self.words, format, args) catch self.words[0..];
        self.words_len = text.len;
    }

    fn bringUp(self: *Link) !void {
        const config = &self.engine.config;
        const wanted: linkup.Config = .{
            .node = @intCast(config.node),
            .node_count = @intCast(config.node_count),
            .listen_fd = if (self.listener) |l| l.fd else -1,
            .addresses = self.addresses,
            .key = &config.lane_key,
            .abi_hash = abi_hash.value,
            .vm_generation = config.vm_generation,
            .instance = try handshake.randomInstance(),
            .deadline_ns = sys.monotonicNs() + patience_ns,
            .cancel = &self.cancel,
        };
        const lends = self.engine.isMemoryNode(config.node);
        // Before peers wait for answers: it takes longer than those.
        const own_cost = if (lends) costs_file.unknown[0][0] else costs_file.measureOwn();
        linkup.connectAll(&wanted, &self.outcome);
        if (self.outcome.status != .linked) {
            self.say("{s}", .{self.outcome.text()});
            return error.PeerFailed;
        }
        const shard = self.engine.span.?.shard;
        var lanes: Lanes = @splat(null);
        for (self.outcome.fds, 0..) |fd, node| {
            if (fd < 0) continue;
            const lane = try self.engine.allocator.create(Lane);
            lane.* = try Lane.init(self.engine.allocator, @intCast(node), .{});
            try lane.adopt(self.outcome.connection(node));
            lanes[node] = lane;
        }
        try self.agreeOnClock(&lanes);
        if (!lends) try self.measureCosts(&lanes, own_cost);
        self.keeper = try Keeper.init(wanted, self.outcome.instances, shard.eventfd());
        for (lanes, 0..) |maybe, node| {
            if (maybe) |lane| shard.lanes().set(@intCast(node), lane);
        }
        shard.lanes().keeper = &self.keeper;
        try shard.start();
        // Frames may have come with the clock's: the shard must look before it sleeps.
        sys.eventfdSignal(shard.eventfd());
    }

    fn agreeOnClock(self: *Link, lanes: *const Lanes) !void {
        const clock = &self.engine.clock;
        if (self.engine.config.node != 0) {
            const lane = lanes[0].?;
            const agreed = askClock(lane, &self.boot_id) catch |e|
                return self.talkFailed(clock_words, lane, e);
            clock.offset.store(agreed.offset, .seq_cst);
            self.shares_tsc = agreed.shares_tsc;
            return;
        }
        self.shares_tsc = true;
        for (lanes) |maybe| {
            const lane = maybe orelse continue;
            answerClock(lane, clock.offset.load(.seq_cst), &self.boot_id) catch |e|
                return self.talkFailed(clock_words, lane, e);
        }
    }

    fn measureCosts(self: *Link, lanes: *const Lanes, own_cost: abi.LinkCost) !void {
        const config = &self.engine.config;
        const nodes: u32 = @intCast(config.compute_nodes);
        var failed: u8 = 0;
        const result = costs_file.measure(lanes, @intCast(config.node), nodes, own_cost, &failed);
        self.costs = result catch |e|
            return self.talkFailed("measuring what pages cost", lanes[failed].?, e);
    }

    /// Adds what the lane knows about its failure.
    fn talkFailed(self: *Link, what: []const u8, lane: *const Lane, e: talk.Error) talk.Error {
        var buffer: [160]u8 = undefined;
        const why = switch (e) {
            error.TimedOut, error.Full => @errorName(e),
            else => |known| lane.explain(known, &buffer),
        };
        self.say("{s} with node {d} failed: {s}", .{ what, lane.peer, why });
        return e;
    }
};

const Answer = extern struct { tsc: u64, offset: u64, boot_id: [36]u8, pad: u32 = 0 };

/// Node 0: answers a peer's questions until it has asked them all.
fn answerClock(lane: *Lane, offset: u64, own_boot: *const [36]u8) talk.Error!void {
    var answer: Answer = .{ .tsc = 0, .offset = offset, .boot_id = own_boot.* };
    for (0..clock_rounds) |_| {
        _ = try talk.take(lane, .clock, 1);
        answer.tsc = readTsc();
        try talk.give(lane, .clock, std.mem.asBytes(&answer));
    }
}

const Agreed = struct { offset: u64 = 0, shares_tsc: bool = false };

/// Another node: the offset that makes its guest TSC equal node 0's.
fn askClock(lane: *Lane, own_boot: *const [36]u8) talk.Error!Agreed {
    var best: u64 = std.math.maxInt(u64);
    var agreed: Agreed = .{};
    for (0..clock_rounds) |_| {
        const before = readTsc();
        try talk.give(lane, .clock, "?");
        const payload = try talk.take(lane, .clock, @sizeOf(Answer));
        const answer = std.mem.bytesToValue(Answer, payload[0..@sizeOf(Answer)]);
        const after = readTsc();
        if (std.mem.eql(u8, own_boot, &answer.boot_id) and own_boot[0] != 0) {
            agreed = .{ .offset = answer.offset, .shares_tsc = true };
            continue;
        }
        if (after -% before >= best) continue;
        best = after -% before;
        // Half-way between question and answer this host's clock stood at before + best / 2.
        agreed.offset = answer.offset +% answer.tsc -% (before +% best / 2);
    }
    return agreed;
}

/// Names this boot of this host; all zero where /proc is missing, which no other is taken to equal.
pub fn bootId() [36]u8 {
    var id: [36]u8 = @splat(0);
    const flags: linux.O = .{ .CLOEXEC = true };
    const fd = sys.check(linux.open("/proc/sys/kernel/random/boot_id", flags, 0)) catch return id;
    defer sys.close(@intCast(fd));
    const n = sys.check(linux.read(@intCast(fd), &id, id.len)) catch 0;
    if (n != id.len) id = @splat(0);
    return id;
}

test "two engines of one host get the same offset" {
    const seal = @import("../transport/seal.zig");
    var fds: [2]i32 = undefined;
    _ = try sys.check(linux.socketpair(linux.AF.UNIX, linux.SOCK.STREAM, 0, &fds));
    var lanes: [2]Lane = undefined;
    const key: [32]u8 = @splat(1);
    for (&lanes, fds, 0..) |*lane, fd, i| {
        lane.* = try .init(std.testing.allocator, @intCast(1 - i), .{});
        const keys: seal.Keys = .derive(&key, .chacha20_poly1305, "hellos", i == 0);
        try lane.adopt(.{ .fd = fd, .keys = keys });
    }
    defer for (&lanes) |*lane| lane.deinit();
    const offset: u64 = 0 -% readTsc();
    const Server = struct {
        fn run(lane: *Lane, value: u64) void {
            answerClock(lane, value, &bootId()) catch unreachable;
        }
    };
    const thread = try std.Thread.spawn(.{}, Server.run, .{ &lanes[0], offset });
    defer thread.join();
    const same: Agreed = .{ .offset = offset, .shares_tsc = true };
    try std.testing.expectEqual(same, try askClock(&lanes[1], &bootId()));
}
