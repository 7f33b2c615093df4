//! A shard's lanes to all its peers: what to poll, who is silent, which connection was cut and
//! which has come in its place. A cut lane keeps what it has not got acknowledged and goes on by
//! itself; a peer is lost when nothing that opens has come from it for peer_timeout, when it breaks
//! the protocol, when it says that it cannot go on, or when its process is known to have ended.
//! Time in which this shard itself did not look is no peer's silence. Shard thread only, once that
//! runs, but for noteEnded().

const std = @import("std");
const linux = std.os.linux;
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const frame = @import("../transport/frame.zig");
const lane_file = @import("../transport/lane.zig");
const WatchOf = @import("lane_watch.zig").WatchOf;

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
        /// The last onTime(); and the standstill before it that was longer than peer_timeout.
        turned_ns: u64 = 0,
        fence_ns: u64 = 0,
        /// Peers whose processes have ended, bit n = node n.
        ended: std.atomic.Value(u64) = .init(0),
        /// Which of them keep this node waiting.
        watch: WatchOf(Env.Lane, Env.nodes_max) = .{},

        const Self = @This();

        pub fn set(self: *Self, node: u8, lane: *Env.Lane) void {
            self.all[node] = lane;
            // Frames that came before, for the clock, may lie in its buffer still.
            lane.last_heard_ns = self.env.now();
            self.heard[node] = lane.last_heard_ns;
            self.adopted[node] = lane.last_heard_ns;
            self.watch.begin(node, lane.last_heard_ns);
        }

        pub fn isLost(self: *const Self, node: u8) bool {
            return self.all[node] == null;
        }

        /// Any thread, which then wakes the shard: who started the peer's process has reaped it.
        /// Not by the mailbox: that stands still while a lane is full, as a dead peer's may be.
        pub fn noteEnded(self: *Self, node: u8) void {
            _ = self.ended.fetchOr(@as(u64, 1) << @intCast(node), .monotonic);
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
            const idle_ns = @min(self.peer_timeout_ns / 4, std.time.ns_per_s, self.watch.period());
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
            const stood_still = self.forgiveStandstill(now);
            const ping = stood_still or now -| self.pinged_ns >= self.pingPeriod();
            if (ping) self.pinged_ns = now;
            for (self.all, 0..) |maybe, i| {
                const lane = maybe orelse continue;
                const node: u8 = @intCast(i);
                if (self.whyOver(node, now)) |why| {
                    self.lose(node, why);
                    continue;
                }
                self.renewIfSilent(node, lane, now);
                if (ping) _ = self.queue(node, .ping, &.{std.mem.asBytes(&now)});
                if (stood_still) {
                    self.watch.doubt(node, lane, now);
                    if (lane.phase == .down and self.fence(node, lane)) continue;
                }
                self.watch.look(node, lane, now);
                lane.onTime(now);
            }
            if (now -| self.counted_ns >= stats_ns) self.count(now);
        }

        /// A process that has ended says nothing more: that is known here earlier than by silence,
        /// and means the same. What it said last has been read, or is not.
        fn whyOver(self: *const Self, node: u8, now: u64) ?[]const u8 {
            // Relaxed: nothing is read because of it.
            const ended = self.ended.load(.monotonic) >> @intCast(node) & 1 != 0;
            if (ended) return "its engine has ended";
            const is_silent = now -| self.heard[node] > self.peer_timeout_ns;
            return if (is_silent) "silent for longer than peer_timeout" else null;
        }

        fn pingPeriod(self: *const Self) u64 {
            const stall_ns = self.watch.stall_ns;
            const quarter = self.peer_timeout_ns / 4;
            return if (stall_ns == 0) quarter else @min(quarter, stall_ns);
        }

        /// True when this shard has not looked for so long that its peers may have missed it.
        fn forgiveStandstill(self: *Self, now: u64) bool {
            const before = self.turned_ns;
            self.turned_ns = now;
            const stall_ns = self.watch.stall_ns;
            const limit = if (stall_ns == 0) self.peer_timeout_ns / 2 else stall_ns;
            const gap = now -| before;
            if (before == 0 or gap <= limit) return false;
            // What was read just now counts as heard now already.
            for (&self.heard) |*at| at.* = @min(now, at.* + gap);
            for (&self.adopted) |*at| at.* = @min(now, at.* + gap);
            self.watch.stood_ns = gap;
            self.fence_ns = if (gap > self.peer_timeout_ns) gap else 0;
            return true;
        }

        /// This node was silent for so long that all others have given it up, but for those that
        /// stood still as well: and these have not closed their connections meanwhile. True: it is
        /// over.
        fn fence(self: *Self, node: u8, lane: *const Env.Lane) bool {
            if (self.fence_ns == 0 or self.watch.isProven(node, lane)) return false;
            var text: [160]u8 = undefined;
            var w: std.Io.Writer = .fixed(&text);
            const tenths = self.fence_ns / (100 * std.time.ns_per_ms);
            const stood = "it has given this node up, whose engine stood still for ";
            w.print(stood ++ "{d}.{d} s, longer than peer_timeout", .{
                tenths / 10, tenths % 10,
            }) catch unreachable;
            self.lose(node, w.buffered());
            return true;
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
            if (self.fence(node, self.all[node].?)) return;
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

        /// The peer is given up and told so: if it lives and hears it, it must not go on by itself.
        /// One that hears nothing is as silent to us as we are to it, and ends by its own
        /// peer_timeout.
        pub fn lose(self: *Self, node: u8, why: []const u8) void {
            const lane = self.all[node] orelse return;
            if (lane.phase == .up) {
                const reason: [frame.bye_min]u8 = @splat(0);
                const words = why[0..@min(why.len, frame.bye_max - frame.bye_min)];
                const queued = lane.queue(@backingInt(frame.Kind.bye), &.{ &reason, words });
                // Both may fail, as all on a lane that is given up: then it is not told.
                if (queued) |_| _ = lane.flush() catch false else |_| {}
            }
            self.drop(node, why);
        }

        /// The peer's last frame.
        pub fn heardGoodbye(self: *Self, node: u8, payload: []const u8) void {
            var text: [160]u8 = undefined;
            var w: std.Io.Writer = .fixed(&text);
            const why = payload[frame.bye_min..];
            w.print("it has given this node up: {s}", .{why}) catch unreachable;
            self.drop(node, w.buffered());
        }

        /// The lane's memory stays: the caller may hold a frame of it.
        fn drop(self: *Self, node: u8, why: []const u8) void {
            const lane = self.all[node] orelse return;
            self.all[node] = null;
            self.watch.end(node);
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
    const timeout = bed.lanes.peer_timeout_ns;
    bed.lanes.onTime(now + timeout / 3);
    try testing.expectEqual(@as(u64, 1), bed.stats.lane_reconnects);
    try testing.expectEqual(@as(u32, 0), bed.told.lost);
    // Time in which this shard stood still does not count.
    bed.lanes.onTime(now + 9 * timeout);
    try testing.expectEqual(9 * timeout - timeout / 3, bed.lanes.watch.stood_ns);
    try testing.expectEqual(@as(u32, 0), bed.told.lost);
    bed.lanes.onTime(now + 9 * timeout + timeout * 2 / 5);
    try testing.expectEqual(@as(u32, 0), bed.told.lost);
    bed.lanes.onTime(now + 9 * timeout + timeout * 4 / 5);
    try testing.expectEqual(@as(u32, 1), bed.told.lost);
    try testing.expectEqualStrings("silent for longer than peer_timeout", //
        bed.told.words[0..bed.told.length]);
    try testing.expect(bed.lanes.all[1] == null);
    // A connection that comes now is nobody's.
    bed.keeper.arrived(1, .{ .fd = try sys.eventfd(), .keys = undefined });
    bed.lanes.onTime(now + 10 * timeout);
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

test "a peer that is given up is told so, and gives up in turn" {
    var bed: TestBed = undefined;
    try bed.init();
    defer bed.deinit();
    try bed.connect(0);
    // The far side's resume.
    try testing.expect(bed.lanes.next(1, bed.lanes.receive(1).?) == null);
    bed.lanes.lose(1, "silent for longer than peer_timeout");
    _ = try bed.far.receive();
    try testing.expectEqual(frame.Kind.ping, (try bed.far.next()).?.kind);
    const bye = (try bed.far.next()).?;
    try testing.expectEqual(frame.Kind.bye, bye.kind);
    try testing.expectError(error.PeerClosed, bed.far.receive());
    bed.lanes.set(1, &bed.near);
    bed.lanes.heardGoodbye(1, bye.payload);
    try testing.expectEqual(@as(u32, 2), bed.told.lost);
    const words = "it has given this node up: silent for longer than peer_timeout";
    try testing.expectEqualStrings(words, bed.told.words[0..bed.told.length]);
}

test "a peer whose process has ended is lost at the next turn, whatever its lane is like" {
    const State = enum { up, unread, down, full, given_up };
    for (std.enums.values(State)) |state| {
        var bed: TestBed = undefined;
        try bed.init();
        defer bed.deinit();
        try bed.connect(0);
        try testing.expect(bed.lanes.next(1, bed.lanes.receive(1).?) == null);
        const page: [frame.payload_max]u8 = @splat(1);
        switch (state) {
            .up => {},
            .unread => {
                try bed.far.queue(@backingInt(frame.Kind.span), &.{"last words"});
                _ = try bed.far.flush();
            },
            .down => {
                bed.far.cut();
                try testing.expect(bed.lanes.receive(1) == null);
                try testing.expect(bed.near.phase == .down);
            },
            // Nothing is taken from mailboxes now, nor from threads that fault.
            .full => while (bed.lanes.mayRequest()) {
                try testing.expect(bed.lanes.queue(1, .protocol, &.{&page}));
            },
            .given_up => bed.lanes.lose(1, "silent for longer than peer_timeout"),
        }
        const now = sys.monotonicNs();
        bed.lanes.onTime(now);
        const before: u32 = if (state == .given_up) 1 else 0;
        try testing.expectEqual(before, bed.told.lost);
        bed.lanes.noteEnded(1);
        // Told twice, and looked at often: it is lost once.
        bed.lanes.noteEnded(1);
        for (0..3) |_| bed.lanes.onTime(now);
        try testing.expectEqual(@as(u32, 1), bed.told.lost);
        if (before == 0) {
            const words = bed.told.words[0..bed.told.length];
            try testing.expectEqualStrings("its engine has ended", words);
        }
        try testing.expect(bed.lanes.isLost(1));
        try testing.expect(bed.lanes.receive(1) == null);
        try testing.expect(bed.lanes.mayRequest());
        try testing.expect(!bed.lanes.queue(1, .span, &.{"late"}));
        // A connection that it had begun is nobody's.
        bed.keeper.arrived(1, .{ .fd = try sys.eventfd(), .keys = undefined });
        bed.lanes.onTime(now);
        try testing.expectEqual(@as(u32, 1), bed.told.lost);
        try testing.expect(bed.near.phase == .down);
    }
}

test "after a standstill longer than peer_timeout a lane closed meanwhile is a verdict" {
    for ([_]bool{ false, true }) |closed_after| {
        var bed: TestBed = undefined;
        try bed.init();
        defer bed.deinit();
        try bed.connect(0);
        try testing.expect(bed.lanes.next(1, bed.lanes.receive(1).?) == null);
        const later = sys.monotonicNs() + 3 * bed.lanes.peer_timeout_ns;
        if (!closed_after) {
            bed.far.cut();
            try testing.expect(bed.lanes.receive(1) == null);
            try testing.expectEqual(@as(u32, 0), bed.told.lost);
        }
        bed.lanes.onTime(later);
        if (closed_after) {
            try testing.expectEqual(@as(u32, 0), bed.told.lost);
            bed.far.cut();
            try testing.expect(bed.lanes.receive(1) == null);
        }
        try testing.expectEqual(@as(u32, 1), bed.told.lost);
        try testing.expectStringStartsWith(bed.told.words[0..bed.told.length], //
            "it has given this node up, whose engine stood still for ");
    }
}

test "pings prove an idle lane often enough for a stall to be noticed" {
    var bed: TestBed = undefined;
    try bed.init();
    defer bed.deinit();
    bed.lanes.watch.stall_ns = 100 * std.time.ns_per_ms;
    try bed.connect(0);
    try testing.expect(bed.lanes.next(1, bed.lanes.receive(1).?) == null);
    const now = sys.monotonicNs();
    try testing.expect(bed.lanes.deadline(now) <= now + 50 * std.time.ns_per_ms);
    // The peer takes what comes and acknowledges nothing.
    const step = 50 * std.time.ns_per_ms;
    for (0..4) |i| bed.lanes.onTime(now + i * step);
    try testing.expectEqual(.silent, bed.lanes.watch.worst(now + 3 * step).?.what);
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
