//! Messages that wait until every other node has taken the page-table entries they may depend on.
//! Only with more than two nodes: between two, one lane keeps the order by itself. In order, over
//! all lanes; shard thread only.

const std = @import("std");
const frame = @import("../transport/frame.zig");

pub const Held = struct {
    to: u8,
    kind: frame.Kind,
    /// The core's gate() when it was held.
    sequence: u32,
    bytes: []u8,
};

pub const Gate = struct {
    allocator: std.mem.Allocator,
    waiting: std.ArrayList(Held) = .empty,
    /// Messages held since start.
    held: u64 = 0,

    pub fn deinit(self: *Gate) void {
        self.clear();
        self.waiting.deinit(self.allocator);
    }

    pub fn clear(self: *Gate) void {
        for (self.waiting.items) |h| self.allocator.free(h.bytes);
        self.waiting.clearRetainingCapacity();
    }

    pub fn isEmpty(self: *const Gate) bool {
        return self.waiting.items.len == 0;
    }

    pub fn hold(
        self: *Gate,
        to: u8,
        kind: frame.Kind,
        sequence: u32,
        parts: []const []const u8,
    ) error{OutOfMemory}!void {
        const bytes = try std.mem.concat(self.allocator, u8, parts);
        errdefer self.allocator.free(bytes);
        const held: Held = .{ .to = to, .kind = kind, .sequence = sequence, .bytes = bytes };
        try self.waiting.append(self.allocator, held);
        self.held += 1;
    }

    pub fn first(self: *const Gate) ?Held {
        return if (self.isEmpty()) null else self.waiting.items[0];
    }

    /// Ends the first one's wait.
    pub fn pass(self: *Gate) void {
        const gone = self.waiting.orderedRemove(0);
        self.allocator.free(gone.bytes);
    }
};

test "what is held comes out in order, with its bytes in one piece" {
    var gate: Gate = .{ .allocator = std.testing.allocator };
    defer gate.deinit();
    try gate.hold(1, .protocol, 5, &.{ "ab", "cd" });
    try gate.hold(2, .span, 6, &.{"e"});
    try std.testing.expectEqual(@as(u64, 2), gate.held);
    const head = gate.first().?;
    try std.testing.expectEqualStrings("abcd", head.bytes);
    try std.testing.expectEqual(@as(u32, 5), head.sequence);
    gate.pass();
    try std.testing.expectEqual(@as(u8, 2), gate.first().?.to);
    gate.clear();
    try std.testing.expect(gate.isEmpty());
    try std.testing.expectEqual(@as(?Held, null), gate.first());
}
