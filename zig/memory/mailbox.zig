//! Messages from any thread to the shard's thread: interrupts, forwarded exits and commands that
//! must leave in order with the shard's own sends. The lock is a leaf.
//!
//! Bounded in two steps. A vCPU waits before its next turn while the box is crowded, when it holds
//! no lock that the shard could need. What the posters of one turn can add fits above that mark: a
//! post itself never waits in practice, since it may come with a device's lock held.

const std = @import("std");
const sys = @import("../base/sys.zig");

pub const payload_max = 64;
pub const capacity = 4096;
/// From here on vCPUs wait. Above it 64 vCPUs fit with every pin of the IOAPIC each.
pub const crowded_from = capacity - 64 * 24 - 64;

pub const Post = struct {
    /// Receiving nodes, bit n = node n; 0 = a command for the shard itself.
    nodes: u64,
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

    pub fn post(self: *Mailbox, nodes: u64, kind: u8, payload: []const u8) void {
        std.debug.assert(payload.len <= payload_max);
        while (!self.tryPost(nodes, kind, payload)) rest();
    }

    fn rest() void {
        sys.pause(50 * std.time.ns_per_us);
    }

    /// A vCPU's thread, without any device's lock: lets a crowded box drain a little.
    pub fn holdBack(self: *const Mailbox) void {
        if (self.isCrowded()) rest();
    }

    /// False when full.
    pub fn tryPost(self: *Mailbox, nodes: u64, kind: u8, payload: []const u8) bool {
        self.lock.lock();
        if (self.head -% self.tail == capacity) {
            self.lock.unlock();
            return false;
        }
        const slot = &self.ring[self.head % capacity];
        slot.nodes = nodes;
        slot.kind = kind;
        slot.len = @intCast(payload.len);
        @memcpy(slot.payload[0..payload.len], payload);
        const was_empty = self.head == self.tail;
        @atomicStore(u32, &self.head, self.head +% 1, .monotonic);
        self.lock.unlock();
        if (was_empty) sys.eventfdSignal(self.eventfd);
        return true;
    }

    /// Any thread, without the lock: a momentary answer is enough to hold back.
    pub fn isCrowded(self: *const Mailbox) bool {
        const head = @atomicLoad(u32, &self.head, .monotonic);
        const tail = @atomicLoad(u32, &self.tail, .monotonic);
        // The two are not read at once: a tail that ran ahead reads as empty.
        const count = head -% tail;
        return count >= crowded_from and count <= capacity;
    }

    /// Shard thread: the oldest post, or null.
    pub fn take(self: *Mailbox) ?Post {
        self.lock.lock();
        defer self.lock.unlock();
        if (self.head == self.tail) return null;
        const post_taken = self.ring[self.tail % capacity];
        @atomicStore(u32, &self.tail, self.tail +% 1, .monotonic);
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
    try std.testing.expect(box.isCrowded());
    for (0..capacity) |i| {
        const p = box.take().?;
        try std.testing.expectEqual(@as(u8, @truncate(i)), p.kind);
        try std.testing.expectEqualSlices(u8, &.{ 1, @truncate(i) }, p.bytes());
    }
    try std.testing.expectEqual(@as(?Post, null), box.take());
    try std.testing.expect(!box.isCrowded());
    for (0..crowded_from - 1) |_| try std.testing.expect(box.tryPost(1, 0, &.{}));
    try std.testing.expect(!box.isCrowded());
    try std.testing.expect(box.tryPost(1, 0, &.{}));
    try std.testing.expect(box.isCrowded());
}
