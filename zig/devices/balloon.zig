//! The virtio balloon (virtio 1.2, 5.5): which pages a buffer of its queues is about. Inflate and
//! deflate buffers hold numbers of 4 KiB pages; buffers of the reporting queue are the free memory
//! itself. Pure: what is done with the pages is the caller's.

const std = @import("std");
const virtqueue = @import("virtqueue.zig");
const Chain = virtqueue.Chain;
const Descriptor = virtqueue.Descriptor;
const Queue = virtqueue.Queue;

const page_size = 4096;

/// Offsets in the configuration (5.5.4): pages the balloon is to have, and has.
pub const config_target = 0;
pub const config_actual = 4;

pub const Kind = enum { inflate, deflate, report };

/// Reporting is queue 4 (5.5.2). Drivers that number only the queues that are offered, as Linux did
/// for long, look for it behind the two others.
pub fn kindOf(queue: usize) ?Kind {
    return switch (queue) {
        0 => .inflate,
        1 => .deflate,
        2, 4 => .report,
        else => null,
    };
}

/// Goes through the pages of a chain, some at a time.
pub const Walk = struct {
    kind: Kind,
    chain: Chain,
    /// What is left of the present buffer.
    address: u64 = 0,
    len: u64 = 0,

    pub fn init(kind: Kind, queue: *Queue, head: u16) Walk {
        return .{ .kind = kind, .chain = queue.chain(head) };
    }

    /// Adds pages to the batch until it is full; false at the end of the chain. `ram`:
    /// virtqueue.zig's, and pageOf(gpa) ?u32.
    pub fn fill(self: *Walk, ram: anytype, batch: anytype) virtqueue.Error!bool {
        while (!batch.isFull()) {
            if (self.len == 0) {
                const d = try self.chain.next(ram, self.kind == .report) orelse return false;
                try self.enter(d);
                continue;
            }
            switch (self.kind) {
                .inflate, .deflate => batch.add(try self.number(ram)),
                .report => batch.add(self.page(ram)),
            }
        }
        return true;
    }

    fn enter(self: *Walk, d: Descriptor) virtqueue.Error!void {
        self.address = d.address;
        self.len = d.len;
        if (self.kind != .report) {
            if (d.len % 4 == 0) return;
            self.chain.queue.fault = .{ .what = "page numbers of that many bytes", .value = d.len };
            return error.Broken;
        }
        // Whole pages only.
        const end = std.mem.alignBackward(u64, d.address + d.len, page_size);
        self.address = std.mem.alignForward(u64, d.address, page_size);
        self.len = end -| self.address;
    }

    fn number(self: *Walk, ram: anytype) virtqueue.Error!u32 {
        const place: *align(1) volatile u32 = @ptrCast(ram.slice(self.address, 4).?.ptr);
        const found: u64 = std.mem.littleToNative(u32, place.*);
        self.address += 4;
        self.len -= 4;
        const gpa = found * page_size;
        return ram.pageOf(gpa) orelse {
            self.chain.queue.fault = .{ .what = "a page outside RAM at", .value = gpa };
            return error.Broken;
        };
    }

    /// The descriptor was checked whole: its pages are RAM.
    fn page(self: *Walk, ram: anytype) u32 {
        const found = ram.pageOf(self.address).?;
        self.address += page_size;
        self.len -= page_size;
        return found;
    }
};

const testing = std.testing;
const TestRam = virtqueue.TestRam;
const TestDriver = virtqueue.TestDriver;

const TestBatch = struct {
    pages: [4]u32 = undefined,
    count: usize = 0,

    pub fn isFull(self: *const TestBatch) bool {
        return self.count == self.pages.len;
    }

    pub fn add(self: *TestBatch, page: u32) void {
        self.pages[self.count] = page;
        self.count += 1;
    }
};

fn pagesOf(walk: *Walk, ram: *TestRam, out: []u32) !usize {
    var count: usize = 0;
    while (true) {
        var batch: TestBatch = .{};
        const more = try walk.fill(ram, &batch);
        for (batch.pages[0..batch.count]) |page| {
            if (count < out.len) out[count] = page;
            count += 1;
        }
        if (!more) return count;
    }
}

test "page numbers of several buffers, in batches" {
    var ram: TestRam = .{};
    var driver: TestDriver = .{ .ram = &ram };
    const second = TestRam.second / page_size;
    const numbers = [_]u32{ 3, 15, second, second + 15, 7, 9 };
    for (numbers, 0..) |n, i| ram.put(u32, 0x1000 + 4 * i, n);
    const next = virtqueue.flag_next;
    driver.describe(0, .{ .address = 0x1000, .len = 20, .flags = next, .next = 1 });
    driver.describe(1, .{ .address = 0x1014, .len = 4, .flags = 0, .next = 0 });
    for ([_]Kind{ .inflate, .deflate }) |kind| {
        var walk: Walk = .init(kind, &driver.queue, 0);
        var out: [8]u32 = undefined;
        const count = try pagesOf(&walk, &ram, &out);
        try testing.expectEqualSlices(u32, &.{ 3, 15, 16, 31, 7, 9 }, out[0..count]);
    }
    ram.put(u32, 0x1008, 16);
    var walk: Walk = .init(.inflate, &driver.queue, 0);
    var out: [8]u32 = undefined;
    try testing.expectError(error.Broken, pagesOf(&walk, &ram, &out));
    try testing.expectEqual(@as(u64, 16 * page_size), driver.queue.fault.value);
}

test "free memory counts by whole pages" {
    var ram: TestRam = .{};
    var driver: TestDriver = .{ .ram = &ram };
    const cases = [_]struct { address: u64, len: u32, first: u32, count: usize }{
        .{ .address = 0x1000, .len = 0x3000, .first = 1, .count = 3 },
        .{ .address = 0x1001, .len = 0x3000, .first = 2, .count = 2 },
        .{ .address = 0x1fff, .len = 0x1000, .first = 0, .count = 0 },
        .{ .address = 0x1800, .len = 0x10, .first = 0, .count = 0 },
        .{ .address = 0x1000, .len = 0, .first = 0, .count = 0 },
        .{ .address = TestRam.second, .len = TestRam.range, .first = 16, .count = 16 },
    };
    for (cases) |c| {
        const flags = virtqueue.flag_write;
        driver.describe(0, .{ .address = c.address, .len = c.len, .flags = flags, .next = 0 });
        var walk: Walk = .init(.report, &driver.queue, 0);
        var out: [16]u32 = undefined;
        const count = try pagesOf(&walk, &ram, &out);
        try testing.expectEqual(c.count, count);
        for (out[0..count], c.first..) |page, expected| try testing.expectEqual(expected, page);
    }
}

test "random buffers name only pages of RAM" {
    var prng: std.Random.DefaultPrng = .init(0x6261_6c6c);
    const random = prng.random();
    var ram: TestRam = .{};
    var driver: TestDriver = .{ .ram = &ram };
    var named: usize = 0;
    for (0..3000) |_| {
        for (0..8) |i| driver.describe(@intCast(i), .{
            .address = random.uintLessThan(u64, 2 * TestRam.range),
            .len = random.uintLessThan(u32, 3 * page_size),
            .flags = random.uintLessThan(u16, 4),
            .next = random.uintLessThan(u16, 9),
        });
        for (0..1024) |i| ram.put(u32, 0x1000 + 4 * i, random.uintLessThan(u32, 17));
        var walk: Walk = .init(random.enumValue(Kind), &driver.queue, 0);
        var out: [64]u32 = undefined;
        const count = pagesOf(&walk, &ram, &out) catch {
            try testing.expect(driver.queue.fault.what.len > 0);
            continue;
        };
        for (out[0..@min(count, out.len)]) |page| try testing.expect(page < 32);
        named += count;
    }
    try testing.expect(named > 100);
}
