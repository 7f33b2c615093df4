//! Messages from any thread to the shard's thread: interrupts, forwarded exits and commands that
//! must leave in order with the shard's own sends. Bounded: a full mailbox holds back the poster,
//! which the shard never waits for. The lock is a leaf.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("../base/sys.zig");

pub const payload_max = 64;
pub const capacity = 1024;

pub const Post = struct {
    /// Receiving nodes, bit n = node n; 0 = a command for the shard itself.
    nodes: u32,
    kind: u8,
    len: u8,
    payload: [payload_max]u8,

    pub fn bytes(self: *const Post) []const u8 {
        return self.payload[0..self.len];
    }
};

pub const Mailbox = struct {
    eventfd: i32,
    lock: sys.Mutex = .{},
    ring: [capacity]Post = undefined,
    head: u32 = 0,
    tail: u32 = 0,
    /// Posters that found it full and waited: visible in stats.
    full_waits: u64 = 0,

    pub fn post(self: *Mailbox, nodes: u32, kind: u8, payload: []const u8) void {
        std.debug.assert(payload.len <= payload_max);
        while (!self.tryPost(nodes, kind, payload)) {
            const pause: linux.timespec = .{ .sec = 0, .nsec = 50 * std.time.ns_per_us };
            _ = linux.nanosleep(&pause, null);
        }
    }

    /// False when full.
    pub fn tryPost(self: *Mailbox, nodes: u32, kind: u8, payload: []const u8) bool {
        self.lock.lock();
        if (self.head -% self.tail == capacity) {
            self.full_waits += 1;
            self.lock.unlock();
            return false;
        }
        const slot = &self.ring[self.head % capacity];
        slot.nodes = nodes;
        slot.kind = kind;
        slot.len = @intCast(payload.len);
        @memcpy(slot.payload[0..payload.len], payload);
        const was_empty = self.head == self.tail;
        self.head +%= 1;
        self.lock.unlock();
        if (was_empty) sys.eventfdSignal(self.eventfd);
        return true;
    }

    /// Shard thread: the oldest post, or null.
    pub fn take(self: *Mailbox) ?Post {
        self.lock.lock();
        defer self.lock.unlock();
        if (self.head == self.tail) return null;
        const post_taken = self.ring[self.tail % capacity];
        self.tail +%= 1;
        return post_taken;
    }
};

test "posts come out in order and a full box refuses" {
    const box = try std.testing.allocator.create(Mailbox);
    defer std.testing.allocator.destroy(box);
    box.* = .{ .eventfd = try sys.eventfd() };
    defer sys.close(box.eventfd);
    for (0..capacity) |i| {
        try std.testing.expect(box.tryPost(2, @truncate(i), &.{ 1, @truncate(i) }));
    }
    try std.testing.expect(!box.tryPost(2, 0, &.{}));
    try std.testing.expectEqual(@as(u64, 1), box.full_waits);
    for (0..capacity) |i| {
        const p = box.take().?;
        try std.testing.expectEqual(@as(u8, @truncate(i)), p.kind);
        try std.testing.expectEqualSlices(u8, &.{ 1, @truncate(i) }, p.bytes());
    }
    try std.testing.expectEqual(@as(?Post, null), box.take());
}
