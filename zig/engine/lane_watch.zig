//! Which lanes a node waits for too long: one that is cut and has not come back, or one whose peer
//! acknowledges nothing of what it was sent. Costs no message while frames flow: their
//! acknowledgements are looked at, and an idle lane's pings. A shard that has itself stood still
//! (stopped, starved, a host that was suspended) trusts no lane until its peer has answered anew:
//! the others may have given this node up meanwhile.

const std = @import("std");

pub const Trouble = struct {
    node: u8,
    what: enum { unreachable_lane, silent },
    since_ns: u64,
};

const State = struct {
    /// When the lane was last seen to be well, and what had been acknowledged then.
    well_ns: u64 = 0,
    acked: u64 = 0,
    /// Not well before so many frames are acknowledged.
    proof: u64 = 0,
    is_up: bool = true,
};

pub fn WatchOf(comptime Lane: type, comptime nodes_max: usize) type {
    return struct {
        /// A lane unwell for longer is in trouble; 0: none ever is.
        stall_ns: u64 = 0,
        states: [nodes_max]?State = @splat(null),
        /// How long the shard stood still when it last did; the freezer's to clear.
        stood_ns: u64 = 0,
        /// A freezing shard looks at least so often; 0: as otherwise.
        pace_ns: u64 = 0,

        const Self = @This();

        pub fn begin(self: *Self, node: u8, now: u64) void {
            self.states[node] = .{ .well_ns = now };
        }

        pub fn end(self: *Self, node: u8) void {
            self.states[node] = null;
        }

        /// On every turn of the shard, after it has read the lane.
        pub fn look(self: *Self, node: u8, lane: *const Lane, now: u64) void {
            const state = if (self.states[node]) |*s| s else return;
            const progress = lane.acked != state.acked;
            state.acked = lane.acked;
            state.is_up = lane.phase == .up;
            if (!state.is_up or lane.acked < state.proof) return;
            if (progress or lane.unacked() == 0) state.well_ns = now;
        }

        /// The lane must prove itself by an acknowledgement of its newest frame, a ping just
        /// queued.
        pub fn doubt(self: *Self, node: u8, lane: *const Lane, now: u64) void {
            const state = if (self.states[node]) |*s| s else return;
            state.proof = lane.tx_sequence;
            state.well_ns = now -| self.stall_ns -| 1;
        }

        /// False since doubt() until the peer has answered.
        pub fn isProven(self: *const Self, node: u8, lane: *const Lane) bool {
            const state = self.states[node] orelse return true;
            return lane.acked >= state.proof;
        }

        /// The lane that is unwell for longest, if any is for too long.
        pub fn worst(self: *const Self, now: u64) ?Trouble {
            if (self.stall_ns == 0) return null;
            var found: ?Trouble = null;
            for (self.states, 0..) |maybe, node| {
                const state = maybe orelse continue;
                if (now -| state.well_ns <= self.stall_ns) continue;
                if (found) |f| if (f.since_ns <= state.well_ns) continue;
                found = .{
                    .node = @intCast(node),
                    .what = if (state.is_up) .silent else .unreachable_lane,
                    .since_ns = state.well_ns,
                };
            }
            return found;
        }

        /// How often a shard must look at least, so that it notices in time.
        pub fn period(self: *const Self) u64 {
            const stall = if (self.stall_ns == 0) std.math.maxInt(u64) else self.stall_ns / 2;
            return if (self.pace_ns == 0) stall else @min(stall, self.pace_ns);
        }
    };
}

const testing = std.testing;
const TestLane = @import("../transport/lane.zig").Lane;
const Watch = WatchOf(TestLane, 4);

test "a lane is in trouble when it is down, or when nothing is acknowledged, for too long" {
    var lane = try TestLane.init(testing.allocator, 1, .{});
    defer lane.deinit();
    lane.phase = .up;
    defer lane.phase = .down;
    var watch: Watch = .{ .stall_ns = 100 };
    watch.begin(1, 1000);
    watch.look(1, &lane, 5000);
    try testing.expectEqual(null, watch.worst(5000));
    try lane.queue(3, &.{"ping"});
    watch.look(1, &lane, 5050);
    watch.look(1, &lane, 5101);
    try testing.expectEqual(null, watch.worst(5100));
    const silent: Trouble = .{ .node = 1, .what = .silent, .since_ns = 5000 };
    try testing.expectEqual(silent, watch.worst(5101));
    // More that waits changes nothing, one acknowledgement does.
    try lane.queue(3, &.{"ping"});
    watch.look(1, &lane, 5200);
    try testing.expectEqual(silent, watch.worst(5200));
    lane.acked = 1;
    watch.look(1, &lane, 5300);
    try testing.expectEqual(null, watch.worst(5400));
    lane.phase = .down;
    watch.look(1, &lane, 5401);
    try testing.expectEqual(.unreachable_lane, watch.worst(5401).?.what);
    // Up again, with the peer's resume: its acknowledgements count as news.
    lane.phase = .up;
    lane.acked = 2;
    watch.look(1, &lane, 5500);
    try testing.expectEqual(null, watch.worst(5500));
    lane.phase = .down;
    watch.look(1, &lane, 6000);
    watch.end(1);
    try testing.expectEqual(null, watch.worst(6000));
}

test "after a standstill only what was sent since then proves a lane" {
    var lane = try TestLane.init(testing.allocator, 1, .{});
    defer lane.deinit();
    lane.phase = .up;
    defer lane.phase = .down;
    var watch: Watch = .{ .stall_ns = 100 };
    watch.begin(1, 1000);
    try lane.queue(3, &.{"old"});
    try lane.queue(3, &.{"new"});
    watch.doubt(1, &lane, 1000);
    try testing.expect(watch.worst(1000) != null);
    lane.acked = 1;
    watch.look(1, &lane, 1010);
    try testing.expect(watch.worst(1010) != null);
    lane.acked = 2;
    watch.look(1, &lane, 1020);
    try testing.expectEqual(null, watch.worst(1020));
}

test "off: nothing is in trouble, and the worst of two is the one unwell for longest" {
    var watch: Watch = .{};
    watch.begin(1, 1000);
    try testing.expectEqual(null, watch.worst(1 << 40));
    try testing.expectEqual(std.math.maxInt(u64), watch.period());
    watch.stall_ns = 100;
    watch.begin(2, 900);
    try testing.expectEqual(@as(u8, 2), watch.worst(2000).?.node);
    try testing.expectEqual(@as(u64, 50), watch.period());
    watch.pace_ns = 2;
    try testing.expectEqual(@as(u64, 2), watch.period());
}
