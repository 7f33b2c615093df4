//! A shard's lanes to all its peers: what to poll, who is silent, which connection was cut and
//! which has come in its place. A cut lane keeps what it has not got acknowledged and goes on by
//! itself; a peer is lost when nothing that opens has come from it for peer_timeout, when it breaks
//! the protocol, or when it says that it cannot go on. Shard thread only, once that runs.

const std = @import("std");
const linux = std.os.linux;
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const frame = @import("../transport/frame.zig");
const lane_file = @import("../transport/lane.zig");

/// The figures in shared memory may be so old.
const stats_ns = 100 * std.time.ns_per_ms;

/// Called on the shard's thread.
pub const Observer = struct {
    context: *anyopaque,
    /// The lane is gone, and with it the peer.
    lost: *const fn (context: *anyopaque, node: u8, why: []const u8) void,
    /// A connection was cut or came back: worth a line to the user.
    noticed: *const fn (context: *anyopaque, node: u8, what: []const u8) void,
};

/// Of an engine; the simulator's have other lanes, clocks and keepers.
pub const Production = struct {
    pub const Lane = lane_file.Lane;
    pub const Keeper = @import("../transport/keeper.zig").Keeper;
    pub const nodes_max = abi.nodes_max;

    pub fn now(_: Production) u64 {
        return sys.monotonicNs();
    }
};

pub const Lanes = LanesOf(Production);

pub fn LanesOf(comptime Env: type) type {
    return struct {
        env: Env,
        own: u8,
        peer_timeout_ns: u64,
        stats: *abi.EngineStats,
        all: [Env.nodes_max]?*Env.Lane = @splat(null),
        keeper: ?*Env.Keeper = null,
        observer: Observer,
        /// Monotonic time at which a frame of each peer last opened, and of its newest connection.
        heard: [Env.nodes_max]u64 = @splat(0),
        adopted: [Env.nodes_max]u64 = @splat(0),
        /// Frames known to have opened, for `heard`.
        opened: [Env.nodes_max]u64 = @splat(0),
        pinged_ns: u64 = 0,
        counted_ns: u64 = 0,

        const Self = @This();

        pub fn set(self: *Self, node: u8, lane: *Env.Lane) void {
            self.all[node] = lane;
            // Frames that came before, for the clock, may lie in its buffer still.
            lane.last_heard_ns = self.env.now();
            self.heard[node] = lane.last_heard_ns;
            self.adopted[node] = lane.last_heard_ns;
        }

        pub fn isLost(self: *const Self, node: u8) bool {
            return self.all[node] == null;
        }

        /// Appends what to wait for; poll(2) skips the descriptor -1 of a lane that is cut.
        pub fn poll(self: *const Self, fds: []linux.pollfd) usize {
            var n: usize = 0;
            for (self.all) |maybe| {
                const lane = maybe orelse continue;
                const out: i16 = if (lane.wantsOut()) linux.POLL.OUT else 0;
                fds[n] = .{ .fd = lane.fd, .events = linux.POLL.IN | out, .revents = 0 };
                n += 1;
            }
            return n;
        }

        /// When to wake for the lanes at the latest: idle checks, or an acknowledgement that is
        /// owed.
        pub fn deadline(self: *const Self, now: u64) u64 {
            const idle_ns = @min(self.peer_timeout_ns / 4, std.time.ns_per_s);
            var at = now + @max(idle_ns, std.time.ns_per_ms);
            for (self.all) |maybe| {
                const lane = maybe orelse continue;
                if (lane.ackDeadline()) |ack| at = @min(at, ack);
            }
            return at;
        }

        /// False: some lane has no room for requests. Faults stay in the kernel's queue and posts
        /// in their mailbox, so it is the vCPUs that wait; acknowledgements end it, which POLLIN
        /// tells.
        pub fn mayRequest(self: *Self) bool {
            var all_may = true;
            for (self.all) |maybe| {
                const lane = maybe orelse continue;
                all_may = lane.mayRequest() and all_may;
            }
            return all_may;
        }

        /// Reads once; null when there is nothing to take frames from.
        pub fn receive(self: *Self, node: u8) ?*Env.Lane {
            const lane = self.all[node] orelse return null;
            const got = lane.receive() catch |e| {
                self.sever(node, e);
                return null;
            };
            if (got > 0) {
                lane.last_heard_ns = self.env.now();
                self.stats.bytes_received += got;
            }
            return lane;
        }

        /// The peer's next frame, null when there is none, now or for ever.
        pub fn next(self: *Self, node: u8, lane: *Env.Lane) ?lane_file.Received {
            const received = lane.next() catch |e| {
                if (e == error.Refused) self.sever(node, error.Refused) else self.loseBy(node, e);
                return null;
            };
            if (received == null and self.opened[node] != lane.counters.opened) {
                self.opened[node] = lane.counters.opened;
                self.heard[node] = lane.last_heard_ns;
            }
            if (received == null and lane.takeRoomNotice()) self.wakeShard();
            return received;
        }

        /// Its next sleep ends at once: posts that were held back are in a box whose signal is
        /// spent.
        fn wakeShard(self: *const Self) void {
            if (self.keeper) |keeper| keeper.wakeShard();
        }

        /// A broken invariant if it does not fit: answers are bounded by what was asked (lane.zig).
        pub fn queue(self: *Self, to: u8, kind: frame.Kind, parts: []const []const u8) bool {
            const lane = self.all[to] orelse return false;
            lane.queue(@backingInt(kind), parts) catch {
                self.lose(to, "its lane is full of answers that it does not take");
                return false;
            };
            for (parts) |p| self.stats.bytes_sent += p.len;
            return true;
        }

        pub fn flush(self: *Self) void {
            for (self.all, 0..) |maybe, node| {
                const lane = maybe orelse continue;
                _ = lane.flush() catch |e| self.sever(@intCast(node), e);
            }
        }

        /// Connections that have come, pings, silence, acknowledgements, figures.
        pub fn onTime(self: *Self, now: u64) void {
            self.takeArrivals(now);
            const ping = now -| self.pinged_ns >= self.peer_timeout_ns / 4;
            if (ping) self.pinged_ns = now;
            for (self.all, 0..) |maybe, i| {
                const lane = maybe orelse continue;
                const node: u8 = @intCast(i);
                if (now -| self.heard[node] > self.peer_timeout_ns) {
                    self.lose(node, "silent for longer than peer_timeout");
                    continue;
                }
                self.renewIfSilent(node, lane, now);
                if (ping) _ = self.queue(node, .ping, &.{std.mem.asBytes(&now)});
                lane.onTime(now);
            }
            if (now -| self.counted_ns >= stats_ns) self.count(now);
        }

        /// TCP waits ever longer before it tries again, and knows nothing of peer_timeout: after
        /// half of it a fresh connection is the better chance. The side that connects makes one;
        /// the other can only say that it is needed, by closing what bytes it cannot use: a length
        /// that changed on the way has it wait for a frame that never ends.
        fn renewIfSilent(self: *Self, node: u8, lane: *Env.Lane, now: u64) void {
            if (lane.phase == .down) return;
            const since = @max(self.heard[node], self.adopted[node]);
            if (now -| since <= self.peer_timeout_ns / 2) return;
            self.cutBecause(node, "silent for half of peer_timeout");
        }

        fn sever(self: *Self, node: u8, e: lane_file.ConnectionError) void {
            var words: [160]u8 = undefined;
            self.cutBecause(node, self.all[node].?.explain(e, &words));
        }

        fn cutBecause(self: *Self, node: u8, why: []const u8) void {
            const lane = self.all[node] orelse return;
            lane.cut();
            const keeper = self.keeper orelse return self.lose(node, why);
            keeper.want(node);
            var text: [240]u8 = undefined;
            const what = std.fmt.bufPrint(&text, "connection cut, to be resumed: {s}", .{why});
            self.observer.noticed(self.observer.context, node, what catch &text);
        }

        fn takeArrivals(self: *Self, now: u64) void {
            const keeper = self.keeper orelse return;
            var rest = keeper.takeReady();
            while (rest != 0) : (rest &= rest - 1) {
                const node: u8 = @intCast(@ctz(rest));
                var arrival = keeper.take(node) orelse continue;
                const lane = self.all[node] orelse {
                    arrival.discard();
                    continue;
                };
                switch (arrival) {
                    .refused => |words| self.lose(node, words.text()),
                    .connection => |connection| {
                        self.adopted[node] = now;
                        lane.adopt(connection) catch |e| {
                            self.sever(node, e);
                            continue;
                        };
                        self.observer.noticed(self.observer.context, node, "connected again");
                    },
                }
            }
        }

        fn loseBy(self: *Self, node: u8, e: lane_file.Error) void {
            var words: [160]u8 = undefined;
            self.lose(node, self.all[node].?.explain(e, &words));
        }

        /// The lane's memory stays: the caller may hold a frame of it.
        pub fn lose(self: *Self, node: u8, why: []const u8) void {
            const lane = self.all[node] orelse return;
            self.all[node] = null;
            lane.cut();
            self.wakeShard();
            self.observer.lost(self.observer.context, node, why);
        }

        fn count(self: *Self, now: u64) void {
            self.counted_ns = now;
            var sum: struct { queued: u64 = 0, unacked: u64 = 0, most: u64 = 0 } = .{};
            var counters: lane_file.Counters = .{};
            var first: u64 = 0;
            for (self.all) |maybe| {
                const lane = maybe orelse continue;
                const c = &lane.counters;
                sum.queued += lane.queued();
                sum.unacked += lane.unacked();
                sum.most = @max(sum.most, c.unacked_bytes_max);
                counters.connections += c.connections;
                counters.resent += c.resent;
                counters.violations += c.violations;
                counters.held_back += c.held_back;
                counters.acks_alone += c.acks_alone;
                first += 1;
            }
            const stats = self.stats;
            stats.lane_bytes_queued = sum.queued;
            stats.lane_bytes_unacked = sum.unacked;
            stats.lane_bytes_unacked_max = sum.most;
            stats.lane_reconnects = counters.connections - first;
            stats.lane_frames_resent = counters.resent;
            stats.lane_refusals = counters.violations;
            stats.lane_requests_held = counters.held_back;
            stats.lane_acks_alone = counters.acks_alone;
        }
    };
}

const testing = std.testing;
const Keeper = Production.Keeper;
const Lane = Production.Lane;
const seal = @import("../transport/seal.zig");
const tcp = @import("../transport/tcp.zig");

const Told = struct {
    lost: u32 = 0,
    noticed: u32 = 0,
    words: [240]u8 = undefined,
    length: usize = 0,

    fn onLost(context: *anyopaque, node: u8, why: []const u8) void {
        const self: *Told = @ptrCast(@alignCast(context));
        std.debug.assert(node == 1);
        self.lost += 1;
        self.keep(why);
    }

    fn onNoticed(context: *anyopaque, _: u8, what: []const u8) void {
        const self: *Told = @ptrCast(@alignCast(context));
        self.noticed += 1;
        self.keep(what);
    }

    fn keep(self: *Told, words: []const u8) void {
        self.length = words.len;
        @memcpy(self.words[0..words.len], words);
    }
};

const TestBed = struct {
    stats: abi.EngineStats = std.mem.zeroes(abi.EngineStats),
    told: Told = .{},
    keeper: Keeper,
    lanes: Lanes,
    near: Lane,
    far: Lane,

    fn init(self: *TestBed) !void {
        const key: [32]u8 = @splat(1);
        self.* = .{
            .keeper = try .init(.{
                .node = 0,
                .node_count = 2,
                .listen_fd = -1,
                .key = &key,
                .abi_hash = 0,
                .vm_generation = 0,
                .deadline_ns = 0,
            }, @splat(0), try sys.eventfd()),
            .lanes = undefined,
            .near = try .init(testing.allocator, 1, .{}),
            .far = try .init(testing.allocator, 0, .{}),
        };
        self.lanes = .{
            .env = .{},
            .own = 0,
            .peer_timeout_ns = std.time.ns_per_s,
            .stats = &self.stats,
            .observer = .{
                .context = &self.told,
                .lost = Told.onLost,
                .noticed = Told.onNoticed,
            },
            .keeper = &self.keeper,
        };
        self.lanes.set(1, &self.near);
    }

    fn deinit(self: *TestBed) void {
        sys.close(self.keeper.shard_fd);
        self.keeper.deinit();
        self.near.deinit();
        self.far.deinit();
    }

    /// A new connection, as a handshake would bring it.
    fn connect(self: *TestBed, number: u64) !void {
        var fds: [2]i32 = undefined;
        _ = try sys.check(linux.socketpair(linux.AF.UNIX, linux.SOCK.STREAM, 0, &fds));
        const key: [32]u8 = @splat(1);
        const hellos = std.mem.asBytes(&number);
        const cipher: seal.Cipher = .chacha20_poly1305;
        self.keeper.arrived(1, .{
            .fd = fds[0],
            .keys = .derive(&key, cipher, hellos, true),
        });
        try self.far.adopt(.{ .fd = fds[1], .keys = .derive(&key, cipher, hellos, false) });
        _ = try self.far.flush();
        self.lanes.onTime(sys.monotonicNs());
        self.lanes.flush();
        _ = try self.far.receive();
        try testing.expect(try self.far.next() == null);
        _ = try self.far.flush();
    }
};

test "a cut is noticed and resumed, what was queued meanwhile arrives, silence ends it" {
    var bed: TestBed = undefined;
    try bed.init();
    defer bed.deinit();
    try bed.connect(0);
    try testing.expect(bed.lanes.queue(1, .span, &.{"before"}));
    bed.far.cut();
    // The peer's resume is read before the end of its connection.
    try testing.expect(bed.lanes.next(1, bed.lanes.receive(1).?) == null);
    try testing.expect(bed.lanes.receive(1) == null);
    try testing.expectEqualStrings("connection cut, to be resumed: it closed the connection", //
        bed.told.words[0..bed.told.length]);
    try testing.expect(bed.lanes.queue(1, .span, &.{"during"}));
    bed.lanes.flush();
    try bed.connect(1);
    try testing.expect(bed.lanes.next(1, bed.lanes.receive(1).?) == null);
    bed.lanes.flush();
    _ = try bed.far.receive();
    try testing.expectEqual(frame.Kind.ping, (try bed.far.next()).?.kind);
    try testing.expectEqualStrings("before", (try bed.far.next()).?.payload);
    try testing.expectEqualStrings("during", (try bed.far.next()).?.payload);
    const now = sys.monotonicNs();
    bed.lanes.onTime(now + bed.lanes.peer_timeout_ns / 2);
    try testing.expectEqual(@as(u64, 1), bed.stats.lane_reconnects);
    try testing.expectEqual(@as(u32, 0), bed.told.lost);
    bed.lanes.onTime(now + 2 * bed.lanes.peer_timeout_ns);
    try testing.expectEqual(@as(u32, 1), bed.told.lost);
    try testing.expect(bed.lanes.all[1] == null);
    // A connection that comes now is nobody's.
    bed.keeper.arrived(1, .{ .fd = try sys.eventfd(), .keys = undefined });
    bed.lanes.onTime(now + 2 * bed.lanes.peer_timeout_ns);
    try testing.expectEqual(@as(u32, 0), bed.keeper.ready.load(.monotonic));
}

test "a lane on which nothing opens is closed after half of the time, for the peer to see" {
    var bed: TestBed = undefined;
    try bed.init();
    defer bed.deinit();
    // The peer is the one who connects: it hears this side well and would go on waiting.
    try bed.connect(0);
    const noticed = bed.told.noticed;
    const heard = @max(bed.lanes.heard[1], bed.lanes.adopted[1]);
    bed.lanes.onTime(heard + bed.lanes.peer_timeout_ns / 2);
    try testing.expect(bed.near.phase != .down);
    bed.lanes.onTime(heard + bed.lanes.peer_timeout_ns / 2 + 1);
    try testing.expect(bed.near.phase == .down);
    try testing.expectEqual(noticed + 1, bed.told.noticed);
    try testing.expectEqual(@as(u32, 0), bed.told.lost);
}

test "a full lane holds requests back and keeps the peer" {
    var bed: TestBed = undefined;
    try bed.init();
    defer bed.deinit();
    try bed.connect(0);
    const page: [frame.payload_max]u8 = @splat(1);
    while (bed.lanes.mayRequest()) try testing.expect(bed.lanes.queue(1, .protocol, &.{&page}));
    try testing.expect(bed.lanes.queue(1, .protocol, &.{&page}));
    try testing.expectEqual(@as(u32, 0), bed.told.lost);
    bed.lanes.onTime(sys.monotonicNs() + stats_ns);
    try testing.expectEqual(@as(u64, 1), bed.stats.lane_requests_held);
    try testing.expectEqual(@as(u64, bed.near.unacked()), bed.stats.lane_bytes_unacked);
    while (!bed.lanes.mayRequest()) {
        bed.lanes.flush();
        while (try bed.far.receive() > 0) {
            while (try bed.far.next()) |_| {}
        }
        _ = try bed.far.flush();
        sys.eventfdDrain(bed.keeper.shard_fd);
        _ = bed.lanes.next(1, bed.lanes.receive(1).?);
    }
    // The shard is told: what it held back would have no other signal.
    try tcp.waitFor(bed.keeper.shard_fd, linux.POLL.IN, 0);
    try testing.expectEqual(@as(u32, 0), bed.told.lost);
}

test "a peer that was started anew is lost at once, with the words" {
    var bed: TestBed = undefined;
    try bed.init();
    defer bed.deinit();
    bed.keeper.refused(1, "peer was started anew");
    bed.lanes.onTime(sys.monotonicNs());
    try testing.expectEqual(@as(u32, 1), bed.told.lost);
    try testing.expectEqualStrings("peer was started anew", bed.told.words[0..bed.told.length]);
}
