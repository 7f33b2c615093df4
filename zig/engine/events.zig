//! The way up: events for TypeScript in the shared page's ring, with a doorbell byte when the ring
//! goes from empty to not empty. Any engine thread may push; a full ring is counted and the event
//! dropped, which TypeScript shows. The lock is a leaf: nothing is called while it is held.

const std = @import("std");
const linux = std.os.linux;
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");

pub const Events = struct {
    shared: *abi.Shared,
    doorbell_fd: i32,
    lock: sys.Mutex = .{},

    pub fn push(self: *Events, event: abi.Event) void {
        const ring = &self.shared.ring;
        self.lock.lock();
        defer self.lock.unlock();
        const head = ring.head;
        // Acquire: the consumer has finished with the entries before `tail`.
        const tail = @atomicLoad(u32, &ring.tail, .acquire);
        if (head -% tail >= abi.event_ring_entries) {
            ring.dropped += 1;
            return;
        }
        ring.entries[head % abi.event_ring_entries] = event;
        ring.entries[head % abi.event_ring_entries].time_ns = sys.monotonicNs();
        // seq_cst, as in the consumer: either it finds this entry after it has moved the tail, or
        // this finds the tail moved here and rings.
        @atomicStore(u32, &ring.head, head +% 1, .seq_cst);
        const taken = @atomicLoad(u32, &ring.tail, .seq_cst);
        if (taken == head and self.doorbell_fd >= 0) {
            const bell = [1]u8{1};
            // A full socket buffer means TypeScript has a bell to answer already.
            _ = linux.write(self.doorbell_fd, &bell, 1);
        }
    }

    pub fn simple(self: *Events, kind: abi.EventKind, vcpu: u32, a: u64, b: u64, c: u64) void {
        self.push(.{
            .kind = @backingInt(kind),
            .vcpu = vcpu,
            .a = a,
            .b = b,
            .c = c,
            .d = 0,
            .e = 0,
            .time_ns = 0,
        });
    }

    /// A text for the user, 40 bytes (a..e) an event; `vcpu` = 1 says that more of it follows.
    pub fn notice(self: *Events, text: []const u8) void {
        var rest = text;
        while (true) {
            var event = std.mem.zeroes(abi.Event);
            event.kind = @backingInt(abi.EventKind.notice);
            const room = std.mem.asBytes(&event)[@offsetOf(abi.Event, "a")..][0..40];
            const n = @min(rest.len, room.len);
            @memcpy(room[0..n], rest[0..n]);
            rest = rest[n..];
            event.vcpu = @intFromBool(rest.len > 0);
            self.push(event);
            if (rest.len == 0) return;
        }
    }
};

/// As SharedPage.takeEvents(), with a sleep on the doorbell in between.
const Consumer = struct {
    shared: *abi.Shared,
    bell_fd: i32,
    wanted: u64,
    taken: u64 = 0,
    missed: bool = false,

    fn run(self: *Consumer) void {
        while (self.taken < self.wanted) {
            var fd: linux.pollfd = .{ .fd = self.bell_fd, .events = linux.POLL.IN, .revents = 0 };
            if (linux.poll(@ptrCast(&fd), 1, 10_000) != 1) {
                return @atomicStore(bool, &self.missed, true, .seq_cst);
            }
            var bells: [64]u8 = undefined;
            _ = linux.read(self.bell_fd, &bells, bells.len);
            const ring = &self.shared.ring;
            var tail = ring.tail;
            while (tail != @atomicLoad(u32, &ring.head, .seq_cst)) {
                tail = @atomicLoad(u32, &ring.head, .seq_cst);
                self.taken += tail -% ring.tail;
                @atomicStore(u32, &ring.tail, tail, .seq_cst);
            }
        }
    }
};

test "no event is left without a bell" {
    const shared = try std.testing.allocator.create(abi.Shared);
    defer std.testing.allocator.destroy(shared);
    shared.* = std.mem.zeroes(abi.Shared);
    var fds: [2]i32 = undefined;
    _ = try sys.check(linux.pipe2(&fds, .{ .NONBLOCK = true }));
    defer for (fds) |fd| sys.close(fd);
    const wanted = 100_000;
    var consumer: Consumer = .{ .shared = shared, .bell_fd = fds[0], .wanted = wanted };
    const thread = try std.Thread.spawn(.{}, Consumer.run, .{&consumer});
    var events: Events = .{ .shared = shared, .doorbell_fd = fds[1] };
    const ring = &shared.ring;
    for (0..wanted) |i| {
        while (ring.head -% @atomicLoad(u32, &ring.tail, .seq_cst) == abi.event_ring_entries) {
            if (@atomicLoad(bool, &consumer.missed, .seq_cst)) break;
        }
        events.simple(.notice, 0, i, 0, 0);
    }
    thread.join();
    try std.testing.expect(!consumer.missed);
}

test "a full ring counts what it drops and rings once per burst" {
    const shared = try std.testing.allocator.create(abi.Shared);
    defer std.testing.allocator.destroy(shared);
    shared.* = std.mem.zeroes(abi.Shared);
    var fds: [2]i32 = undefined;
    _ = try sys.check(linux.pipe2(&fds, .{ .NONBLOCK = true }));
    defer for (fds) |fd| sys.close(fd);
    var events: Events = .{ .shared = shared, .doorbell_fd = fds[1] };
    for (0..abi.event_ring_entries + 3) |i| events.simple(.notice, 0, i, 0, 0);
    try std.testing.expectEqual(@as(u32, 3), shared.ring.dropped);
    try std.testing.expectEqual(@as(u64, 7), shared.ring.entries[7].a);
    var buffer: [16]u8 = undefined;
    try std.testing.expectEqual(@as(usize, 1), linux.read(fds[0], &buffer, 16));
    shared.ring.tail = shared.ring.head;
    events.simple(.notice, 0, 9, 0, 0);
    try std.testing.expectEqual(@as(usize, 1), linux.read(fds[0], &buffer, 16));
}
