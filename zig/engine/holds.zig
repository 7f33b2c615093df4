//! Keeping a contended page for a moment (ski rental): a page that this node waited for is not
//! given away before it was here as long as the wait took, at most `max_ns`. A revoke that comes
//! earlier is put aside, in order per page, and served when the time is over: bounded, so nobody
//! starves and no two nodes wait for each other. Pages are independent in the protocol, so
//! putting one message aside while others pass is one of the orders the explorer walks.

const std = @import("std");
const types = @import("../dsm/types.zig");

pub const Deferred = struct { from: u8, msg: types.Msg, until_ns: u64 };

const Hold = struct { page: u32 = 0, until_ns: u64 = 0 };

pub const Holds = struct {
    max_ns: u64,
    /// The newest holds; an older one that falls out ends early, which is harmless.
    recent: [32]Hold = @splat(.{}),
    next: usize = 0,
    deferred: [64]Deferred = undefined,
    count: usize = 0,

    /// The page has come after a wait of `waited_ns`.
    pub fn begin(self: *Holds, page: u32, waited_ns: u64, now: u64) void {
        if (self.max_ns == 0 or waited_ns == 0) return;
        const until = now + @min(waited_ns, self.max_ns);
        self.recent[self.next] = .{ .page = page, .until_ns = until };
        self.next = (self.next + 1) % self.recent.len;
    }

    /// Whether the message must wait; it is kept then.
    pub fn postpone(self: *Holds, from: u8, msg: types.Msg, now: u64) bool {
        if (self.count == self.deferred.len or msg.hasData()) return false;
        var until: u64 = 0;
        if (revokes(msg)) {
            for (self.recent) |h| {
                if (h.page == msg.page and h.until_ns > now) until = @max(until, h.until_ns);
            }
        }
        // Behind an earlier message for the same page, so that these two keep their order.
        for (self.deferred[0..self.count]) |d| {
            if (d.msg.page == msg.page) until = @max(until, d.until_ns);
        }
        if (until == 0) return false;
        self.deferred[self.count] = .{ .from = from, .msg = msg, .until_ns = until };
        self.count += 1;
        return true;
    }

    /// Messages that ask this node for a page. None of them carries data.
    fn revokes(msg: types.Msg) bool {
        return switch (@as(types.MsgKind, @fromBackingInt(@intCast(msg.kind)))) {
            .get_shared, .get_exclusive, .upgrade => true,
            .forward_shared, .forward_exclusive, .recall => true,
            else => false,
        };
    }

    /// The oldest message whose time is over, or null.
    pub fn due(self: *Holds, now: u64) ?Deferred {
        for (self.deferred[0..self.count], 0..) |d, i| {
            if (d.until_ns > now) continue;
            const rest = self.deferred[i + 1 .. self.count];
            std.mem.copyForwards(Deferred, self.deferred[i..][0..rest.len], rest);
            self.count -= 1;
            return d;
        }
        return null;
    }

    /// When the next one is due, or null.
    pub fn deadline(self: *const Holds) ?u64 {
        var earliest: ?u64 = null;
        for (self.deferred[0..self.count]) |d| {
            earliest = @min(earliest orelse d.until_ns, d.until_ns);
        }
        return earliest;
    }

    pub fn clear(self: *Holds) void {
        self.count = 0;
        self.recent = @splat(.{});
    }
};

fn request(kind: types.MsgKind, page: u32) types.Msg {
    return .{ .kind = @backingInt(kind), .page = page };
}

test "a page is kept as long as its wait took, at most the maximum" {
    var holds: Holds = .{ .max_ns = 1000 };
    holds.begin(7, 300, 10_000);
    holds.begin(8, 50_000, 10_000);
    try std.testing.expect(!holds.postpone(1, request(.get_shared, 9), 10_000));
    try std.testing.expect(holds.postpone(1, request(.get_exclusive, 7), 10_100));
    try std.testing.expect(holds.postpone(1, request(.forward_exclusive, 8), 10_100));
    try std.testing.expectEqual(@as(?u64, 10_300), holds.deadline());
    try std.testing.expectEqual(@as(?Deferred, null), holds.due(10_299));
    try std.testing.expectEqual(@as(u32, 7), holds.due(10_300).?.msg.page);
    try std.testing.expectEqual(@as(u32, 8), holds.due(11_000).?.msg.page);
    try std.testing.expect(!holds.postpone(1, request(.get_shared, 7), 10_301));
}

test "what comes for a page with a message put aside waits behind it" {
    var holds: Holds = .{ .max_ns = 1000 };
    holds.begin(7, 500, 0);
    try std.testing.expect(holds.postpone(1, request(.get_shared, 7), 1));
    try std.testing.expect(holds.postpone(2, request(.done, 7), 2));
    try std.testing.expectEqual(@as(u8, 1), holds.due(500).?.from);
    try std.testing.expectEqual(@as(u8, 2), holds.due(500).?.from);
}

test "without a maximum, and when full, nothing waits" {
    var none: Holds = .{ .max_ns = 0 };
    none.begin(7, 500, 0);
    try std.testing.expect(!none.postpone(1, request(.get_shared, 7), 1));
    var holds: Holds = .{ .max_ns = 1000 };
    holds.begin(7, 500, 0);
    for (0..64) |_| try std.testing.expect(holds.postpone(1, request(.get_shared, 7), 1));
    try std.testing.expect(!holds.postpone(1, request(.get_shared, 7), 1));
}
