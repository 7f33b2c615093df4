//! Bringing a span up: lanes to every peer, then one clock, then the shard. Runs on its own thread,
//! since peers may start later; TypeScript hears of the end by the event `linked`. The thread then
//! goes on as the lanes' keeper (transport/keeper.zig).
//!
//! Clock: guest TSC = host TSC + offset on every host. Node 0 chooses its offset so that the
//! guest's TSC starts near zero; every other node asks node 0 for its TSC many times and takes the
//! quickest answer as the truth (error at most half that round trip). Two engines on one host (same
//! boot id) share one TSC and get exactly the same offset.

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
const Keeper = @import("../transport/keeper.zig").Keeper;
const failure = @import("../base/failure.zig");
const readTsc = @import("clock.zig").readTsc;
const Engine = @import("../engine.zig").Engine;

/// How long peers may take to appear; their hosts may still be starting their part.
const patience_ns = 120 * std.time.ns_per_s;
const clock_rounds = 32;
const clock_patience_ns = 5 * std.time.ns_per_s;

comptime {
    // What answers must never wait (lane.zig). Each faulting thread of each node has one open
    // transaction, for which one node owes another at most one page and four messages without
    // (forward or invalidate, grant, ack, done), and as much again may have been read without being
    // acknowledged yet. Besides, each page on its way out may be asked for again with its bytes.
    // Entries of replicated page tables are not bounded by this; the rest of the reserve holds
    // 14,000 of them.
    const faults = @import("../memory/faults.zig");
    const room = @import("room.zig");
    const small = frame.header_bytes + frame.protocol_bytes;
    const page = frame.header_bytes + frame.payload_max;
    const answers = page + 4 * small;
    const options: lane_file.Options = .{};
    const open = abi.nodes_max * faults.threads_max;
    const put_again = room.slots_max * page;
    std.debug.assert(options.reserve_bytes >= open * answers + put_again + options.tx_bytes / 4);
}

pub const Link = struct {
    engine: *Engine,
    listener: ?tcp.Listener = null,
    addresses: [abi.nodes_max]?tcp.Address = @splat(null),
    cancel: std.atomic.Value(u32) = .init(0),
    outcome: linkup.Outcome = .{},
    /// Lives as long as the process: the shard may want a connection at any time.
    keeper: Keeper = undefined,
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
        linkup.connectAll(&wanted, &self.outcome);
        if (self.outcome.status != .linked) {
            self.say("{s}", .{self.outcome.text()});
            return error.PeerFailed;
        }
        const shard = self.engine.span.?.shard;
        var lanes: [abi.nodes_max]?*Lane = @splat(null);
        for (self.outcome.fds, 0..) |fd, node| {
            if (fd < 0) continue;
            const lane = try self.engine.allocator.create(Lane);
            lane.* = try Lane.init(self.engine.allocator, @intCast(node), .{});
            try lane.adopt(self.outcome.connection(node));
            lanes[node] = lane;
        }
        try self.agreeOnClock(&lanes);
        self.keeper = try Keeper.init(wanted, self.outcome.instances, shard.eventfd());
        for (lanes, 0..) |maybe, node| {
            if (maybe) |lane| shard.lanes().set(@intCast(node), lane);
        }
        shard.lanes().keeper = &self.keeper;
        try shard.start();
        // Frames may have come with the clock's: the shard must look before it sleeps.
        sys.eventfdSignal(shard.eventfd());
    }

    fn agreeOnClock(self: *Link, lanes: *const [abi.nodes_max]?*Lane) !void {
        const config = &self.engine.config;
        if (config.node != 0) {
            config.tsc_offset = try self.checked(lanes[0].?, askClock(lanes[0].?));
            return;
        }
        config.tsc_offset = 0 -% readTsc();
        for (lanes) |maybe| {
            const lane = maybe orelse continue;
            try self.checked(lane, answerClock(lane, config.tsc_offset));
        }
    }

    /// Adds what the lane knows about its failure.
    fn checked(self: *Link, lane: *const Lane, result: anytype) @TypeOf(result) {
        if (result) |_| {} else |e| {
            var buffer: [160]u8 = undefined;
            const why = switch (e) {
                error.TimedOut, error.Full => @errorName(e),
                else => |known| lane.explain(known, &buffer),
            };
            self.say("agreement on the clock with node {d} failed: {s}", .{ lane.peer, why });
        }
        return result;
    }
};

const Answer = extern struct { tsc: u64, offset: u64, boot_id: [36]u8, pad: u32 = 0 };

const ClockError = lane_file.Error || error{ TimedOut, Full };

/// Node 0: answers a peer's questions until it has asked them all.
fn answerClock(lane: *Lane, offset: u64) ClockError!void {
    var answer: Answer = .{ .tsc = 0, .offset = offset, .boot_id = bootId() };
    for (0..clock_rounds) |_| {
        _ = try takeClock(lane, 1);
        answer.tsc = readTsc();
        try giveClock(lane, std.mem.asBytes(&answer));
    }
}

/// Another node: the offset that makes its guest TSC equal node 0's.
fn askClock(lane: *Lane) ClockError!u64 {
    const own_boot = bootId();
    var best: u64 = std.math.maxInt(u64);
    var offset: u64 = 0;
    for (0..clock_rounds) |_| {
        const before = readTsc();
        try giveClock(lane, "?");
        const payload = try takeClock(lane, @sizeOf(Answer));
        const answer = std.mem.bytesToValue(Answer, payload[0..@sizeOf(Answer)]);
        const after = readTsc();
        if (std.mem.eql(u8, &own_boot, &answer.boot_id)) {
            offset = answer.offset;
            continue;
        }
        if (after -% before >= best) continue;
        best = after -% before;
        // Half-way between question and answer this host's clock stood at before + best / 2.
        offset = answer.offset +% answer.tsc -% (before +% best / 2);
    }
    return offset;
}

fn giveClock(lane: *Lane, payload: []const u8) ClockError!void {
    try lane.queue(@backingInt(frame.Kind.clock), &.{payload});
    const deadline = sys.monotonicNs() + clock_patience_ns;
    // Not sent as long as the lane is not up: then with the first thing taken.
    while (!try lane.flush() and lane.wantsOut()) {
        try tcp.waitFor(lane.fd, linux.POLL.OUT, deadline);
    }
}

fn takeClock(lane: *Lane, length: usize) ClockError![]const u8 {
    const deadline = sys.monotonicNs() + clock_patience_ns;
    while (true) {
        if (try lane.next()) |received| {
            const is_clock = received.kind == .clock and received.payload.len == length;
            return if (is_clock) received.payload else error.ProtocolViolated;
        }
        // Up since the peer's resume, perhaps: what waited for it may go.
        _ = try lane.flush();
        try tcp.waitFor(lane.fd, linux.POLL.IN, deadline);
        _ = try lane.receive();
    }
}

/// Names this boot of this host; all zero where /proc is missing, which equals no real one.
fn bootId() [36]u8 {
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
            answerClock(lane, value) catch unreachable;
        }
    };
    const thread = try std.Thread.spawn(.{}, Server.run, .{ &lanes[0], offset });
    defer thread.join();
    try std.testing.expectEqual(offset, try askClock(&lanes[1]));
}
