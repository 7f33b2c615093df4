//! What happens when: a binary heap by virtual time, in order of arrival among equals.

const std = @import("std");

pub const Kind = enum(u8) {
    /// A shard's turn; the index is its node.
    turn,
    /// A vCPU goes on; the index is its number in the cluster.
    vcpu,
    /// A signal reaches a vCPU.
    signal,
    /// A lane's sender hears that a frame was taken; the index is the lane.
    ack,
    /// Two nodes try to connect again; the index is their lane.
    connect,
    /// Something may break, or somebody stand still.
    weather,
    /// A node's process ends.
    exit,
    /// Nodes hear that the node of this index is gone.
    silence,
};

pub const Event = struct { at: u64, order: u64, kind: Kind, index: u32, argument: u32 = 0 };

pub const Events = struct {
    allocator: std.mem.Allocator,
    heap: std.ArrayList(Event) = .empty,
    count: u64 = 0,

    pub fn add(self: *Events, at: u64, kind: Kind, index: usize, argument: u32) void {
        self.count += 1;
        const event: Event = .{
            .at = at,
            .order = self.count,
            .kind = kind,
            .index = @intCast(index),
            .argument = argument,
        };
        self.heap.append(self.allocator, event) catch @panic("no memory for events");
        const items = self.heap.items;
        var i = items.len - 1;
        while (i > 0) {
            const parent = (i - 1) / 2;
            if (!before(event, items[parent])) break;
            items[i] = items[parent];
            i = parent;
        }
        items[i] = event;
    }

    pub fn next(self: *Events) ?Event {
        const items = self.heap.items;
        if (items.len == 0) return null;
        const first = items[0];
        const moved = self.heap.pop().?;
        const rest = self.heap.items;
        if (rest.len == 0) return first;
        var i: usize = 0;
        while (true) {
            var child = 2 * i + 1;
            if (child >= rest.len) break;
            if (child + 1 < rest.len and before(rest[child + 1], rest[child])) child += 1;
            if (!before(rest[child], moved)) break;
            rest[i] = rest[child];
            i = child;
        }
        rest[i] = moved;
        return first;
    }

    fn before(a: Event, b: Event) bool {
        return a.at < b.at or (a.at == b.at and a.order < b.order);
    }
};

test "events come in order of time, then of arrival" {
    var events: Events = .{ .allocator = std.testing.allocator };
    defer events.heap.deinit(std.testing.allocator);
    var prng: std.Random.DefaultPrng = .init(1);
    for (0..500) |i| events.add(prng.random().uintLessThan(u64, 50), .turn, i, 0);
    var last: Event = events.next().?;
    for (1..500) |_| {
        const e = events.next().?;
        try std.testing.expect(last.at < e.at or (last.at == e.at and last.index < e.index));
        last = e;
    }
    try std.testing.expectEqual(@as(?Event, null), events.next());
}
