//! A split virtqueue as its device sees it (virtio 1.2, 2.7): takes chains that the driver made
//! available, walks their descriptors, gives them back as used. All of it lies in guest RAM, which
//! the guest changes as it likes meanwhile: each word is read once, and every index, length and
//! address is checked as it is read. What breaks the rules is error.Broken, and `fault` says what
//! and where. Touching the memory may fault like a vCPU: never on the shard's thread.
//!
//! `ram`: slice(gpa, len) ?[]u8, null unless all of it is RAM.

const std = @import("std");

pub const size_max = 256;

pub const Error = error{Broken};

/// What the driver did wrong, and the number that shows it.
pub const Fault = struct { what: []const u8, value: u64 };

/// Descriptor flags (2.7.5).
pub const flag_next = 1;
pub const flag_write = 2;
pub const flag_indirect = 4;
/// Of the available ring (2.7.6).
const no_interrupt = 1;

pub const Descriptor = extern struct { address: u64, len: u32, flags: u16, next: u16 };

pub const Queue = struct {
    size: u16 = 0,
    descriptors: u64 = 0,
    /// Available and used ring.
    driver: u64 = 0,
    device: u64 = 0,
    is_ready: bool = false,
    next_available: u16 = 0,
    next_used: u16 = 0,
    fault: Fault = .{ .what = "", .value = 0 },

    fn broken(self: *Queue, what: []const u8, value: u64) Error {
        self.fault = .{ .what = what, .value = value };
        return error.Broken;
    }

    /// Whether the driver's place for it can be used (2.7: alignment, size a power of two).
    pub fn check(self: *Queue, ram: anytype, most: u16) Error!void {
        const bad_size = self.size == 0 or self.size > most or !std.math.isPowerOfTwo(self.size);
        if (bad_size) return self.broken("a queue of that size", self.size);
        const parts = .{
            .{ "descriptor table", self.descriptors, 16, 16 * @as(u64, self.size) },
            .{ "available ring", self.driver, 2, 6 + 2 * @as(u64, self.size) },
            .{ "used ring", self.device, 4, 6 + 8 * @as(u64, self.size) },
        };
        inline for (parts) |part| {
            if (part[1] % part[2] != 0) {
                return self.broken("a " ++ part[0] ++ " that is not aligned", part[1]);
            }
            if (ram.slice(part[1], part[3]) == null) {
                return self.broken("a " ++ part[0] ++ " outside RAM", part[1]);
            }
        }
    }

    /// check() has passed: the place is RAM, and aligned.
    fn at(comptime T: type, ram: anytype, gpa: u64) *T {
        return @ptrCast(@alignCast(ram.slice(gpa, @sizeOf(T)).?.ptr));
    }

    /// First descriptor of the oldest chain not looked at, or null.
    pub fn peek(self: *Queue, ram: anytype) Error!?u16 {
        // Acquire: what the driver wrote before its index.
        const index = @atomicLoad(u16, at(u16, ram, self.driver + 2), .acquire);
        const count = index -% self.next_available;
        if (count == 0) return null;
        if (count > self.size) return self.broken("an available index that ran ahead", index);
        const slot: u64 = self.next_available % self.size;
        const head = @atomicLoad(u16, at(u16, ram, self.driver + 4 + 2 * slot), .monotonic);
        if (head >= self.size) return self.broken("an available descriptor that is none", head);
        return head;
    }

    pub fn chain(self: *Queue, head: u16) Chain {
        return .{ .queue = self, .next_index = head };
    }

    /// The chain that peek() gave is done with; whether the driver wants an interrupt for it.
    pub fn push(self: *Queue, ram: anytype, head: u16, written: u32) bool {
        const entry = self.device + 4 + 8 * @as(u64, self.next_used % self.size);
        @atomicStore(u32, at(u32, ram, entry), head, .monotonic);
        @atomicStore(u32, at(u32, ram, entry + 4), written, .monotonic);
        self.next_available +%= 1;
        self.next_used +%= 1;
        // Behind the entry, and before the driver's flags are looked at (2.7.7.1).
        @atomicStore(u16, at(u16, ram, self.device + 2), self.next_used, .seq_cst);
        return @atomicLoad(u16, at(u16, ram, self.driver), .seq_cst) & no_interrupt == 0;
    }
};

pub const Chain = struct {
    queue: *Queue,
    next_index: ?u16,
    seen: u16 = 0,

    /// The next buffer of the chain; its `address` and `len` lie in RAM.
    pub fn next(self: *Chain, ram: anytype, is_writable: bool) Error!?Descriptor {
        const index = self.next_index orelse return null;
        const queue = self.queue;
        if (index >= queue.size) return queue.broken("a next descriptor that is none", index);
        // Every descriptor once at most: more of them is a loop (2.7.5.2).
        if (self.seen == queue.size) return queue.broken("a descriptor chain that loops", index);
        self.seen += 1;
        const place = Queue.at(Descriptor, ram, queue.descriptors + 16 * @as(u64, index));
        const d = @as(*volatile Descriptor, place).*;
        if (d.flags & flag_indirect != 0) return queue.broken("an indirect descriptor", index);
        if ((d.flags & flag_write != 0) != is_writable) {
            return queue.broken("a buffer of the wrong direction at", d.address);
        }
        if (ram.slice(d.address, d.len) == null) {
            return queue.broken("a buffer outside RAM at", d.address);
        }
        self.next_index = if (d.flags & flag_next != 0) d.next else null;
        return d;
    }
};

const testing = std.testing;

/// Two ranges of RAM with a hole between them.
pub const TestRam = struct {
    bytes: [2 * range]u8 align(4096) = @splat(0),

    pub const range = 16 * 4096;
    pub const second = 1 << 20;

    pub fn slice(self: *TestRam, gpa: u64, len: u64) ?[]u8 {
        if (len == 0) return self.bytes[0..0];
        const last = std.math.add(u64, gpa, len - 1) catch return null;
        if (last < range) return self.bytes[@intCast(gpa)..][0..@intCast(len)];
        if (gpa < second or last >= second + range) return null;
        return self.bytes[@intCast(gpa - second + range)..][0..@intCast(len)];
    }

    pub fn pageOf(self: *TestRam, gpa: u64) ?u32 {
        if (self.slice(gpa, 1) == null) return null;
        const offset = if (gpa < range) gpa else gpa - second + range;
        return @intCast(offset / 4096);
    }

    pub fn put(self: *TestRam, comptime T: type, gpa: u64, value: T) void {
        @memcpy(self.slice(gpa, @sizeOf(T)).?, std.mem.asBytes(&value));
    }

    pub fn get(self: *TestRam, comptime T: type, gpa: u64) T {
        return std.mem.bytesToValue(T, self.slice(gpa, @sizeOf(T)).?[0..@sizeOf(T)]);
    }
};

/// As a driver does.
pub const TestDriver = struct {
    ram: *TestRam,
    queue: Queue = .{ .size = 8, .descriptors = 0, .driver = 0x200, .device = 0x400 },
    offered: u16 = 0,

    pub fn describe(self: *TestDriver, index: u16, d: Descriptor) void {
        self.ram.put(Descriptor, self.queue.descriptors + 16 * @as(u64, index), d);
    }

    pub fn offer(self: *TestDriver, head: u16) void {
        self.ram.put(u16, self.queue.driver + 4 + 2 * @as(u64, self.offered % 8), head);
        self.offered +%= 1;
        self.ram.put(u16, self.queue.driver + 2, self.offered);
    }
};

test "chains come in order, and are given back with an interrupt unless the driver wants none" {
    var ram: TestRam = .{};
    var driver: TestDriver = .{ .ram = &ram };
    const queue = &driver.queue;
    try queue.check(&ram, 8);
    try testing.expectEqual(@as(?u16, null), try queue.peek(&ram));
    for (0..20) |i| {
        const head: u16 = @intCast(i % 4 * 2);
        driver.describe(head, .{ .address = 4096, .len = 8, .flags = flag_next, .next = head + 1 });
        driver.describe(head + 1, .{ .address = 8192, .len = 4, .flags = 0, .next = 99 });
        driver.offer(head);
        try testing.expectEqual(head, (try queue.peek(&ram)).?);
        var chain = queue.chain(head);
        try testing.expectEqual(@as(u64, 4096), (try chain.next(&ram, false)).?.address);
        try testing.expectEqual(@as(u32, 4), (try chain.next(&ram, false)).?.len);
        try testing.expectEqual(@as(?Descriptor, null), try chain.next(&ram, false));
        ram.put(u16, queue.driver, @intCast(i % 2));
        try testing.expectEqual(i % 2 == 0, queue.push(&ram, head, 7));
        try testing.expectEqual(@as(u16, @intCast(i + 1)), ram.get(u16, queue.device + 2));
        const entry = queue.device + 4 + 8 * @as(u64, i % 8);
        try testing.expectEqual(@as(u32, head), ram.get(u32, entry));
        try testing.expectEqual(@as(u32, 7), ram.get(u32, entry + 4));
        try testing.expectEqual(@as(?u16, null), try queue.peek(&ram));
    }
}

test "queues that cannot be are refused" {
    var ram: TestRam = .{};
    const good: Queue = .{ .size = 8, .descriptors = 0, .driver = 0x200, .device = 0x400 };
    const last = TestRam.range;
    var bad: [12]Queue = @splat(good);
    for (bad[0..4], [_]u16{ 0, 3, 16, 0xffff }) |*q, size| q.size = size;
    for (bad[4..8], [_]u64{ 8, last - 64, 1 << 63, std.math.maxInt(u64) - 15 }) |*q, gpa| {
        q.descriptors = gpa;
    }
    bad[8].driver = 0x201;
    bad[9].driver = last - 8;
    bad[10].device = 0x402;
    bad[11].device = TestRam.second - 64;
    for (&bad) |*q| {
        try testing.expectError(error.Broken, q.check(&ram, 8));
        try testing.expect(q.fault.what.len > 0);
    }
}

test "loops, wild indexes and buffers outside RAM are found where they are" {
    var ram: TestRam = .{};
    var driver: TestDriver = .{ .ram = &ram };
    const queue = &driver.queue;
    const bad = [_]Descriptor{
        .{ .address = 0, .len = 8, .flags = flag_next, .next = 0 },
        .{ .address = 0, .len = 8, .flags = flag_next, .next = 8 },
        .{ .address = 0, .len = 8, .flags = flag_indirect, .next = 0 },
        .{ .address = 0, .len = 8, .flags = flag_write, .next = 0 },
        .{ .address = TestRam.range - 4, .len = 8, .flags = 0, .next = 0 },
        .{ .address = std.math.maxInt(u64) - 2, .len = 8, .flags = 0, .next = 0 },
        .{ .address = 0, .len = std.math.maxInt(u32), .flags = 0, .next = 0 },
    };
    for (bad) |d| {
        driver.describe(0, d);
        var chain = queue.chain(0);
        var steps: usize = 0;
        while (steps < 100) : (steps += 1) {
            _ = chain.next(&ram, false) catch break;
        }
        try testing.expect(steps <= 8 and queue.fault.what.len > 0);
    }
    ram.put(u16, queue.driver + 2, 9);
    try testing.expectError(error.Broken, queue.peek(&ram));
    ram.put(u16, queue.driver + 2, 1);
    ram.put(u16, queue.driver + 4, 8);
    try testing.expectError(error.Broken, queue.peek(&ram));
}

test "random memory is walked to an end, and only what is used is written" {
    var prng: std.Random.DefaultPrng = .init(0x7175_6575);
    const random = prng.random();
    var ram: TestRam = .{};
    var walked: usize = 0;
    for (0..5000) |_| {
        random.bytes(ram.bytes[0..0x1000]);
        // Descriptors that are nearly right, so that chains get long.
        for (0..8) |i| if (random.boolean()) ram.put(Descriptor, 16 * i, .{
            .address = random.uintLessThan(u64, TestRam.range + 4096),
            .len = random.uintLessThan(u32, 4096),
            .flags = random.uintLessThan(u16, 4),
            .next = random.uintLessThan(u16, 9),
        });
        for (0..8) |i| ram.put(u16, 0x204 + 2 * i, random.uintLessThan(u16, 9));
        var queue: Queue = .{ .size = 8, .descriptors = 0, .driver = 0x200, .device = 0x400 };
        queue.next_available = ram.get(u16, 0x202) -% random.uintLessThan(u16, 10);
        const head = (queue.peek(&ram) catch continue) orelse continue;
        var chain = queue.chain(head);
        var steps: usize = 0;
        const is_writable = random.boolean();
        while (chain.next(&ram, is_writable) catch null) |d| : (steps += 1) {
            try testing.expect(ram.slice(d.address, d.len) != null);
        }
        try testing.expect(steps <= 8);
        walked += steps;
        const before = ram.bytes;
        _ = queue.push(&ram, head, 0);
        for (before, ram.bytes, 0..) |old, new, i| {
            if (old != new) try testing.expect(i >= 0x400 and i < 0x400 + 6 + 8 * 8);
        }
    }
    try testing.expect(walked > 500);
}
