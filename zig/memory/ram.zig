//! Guest RAM of one engine: one private anonymous reservation of the whole VM's RAM, the ranges
//! packed one after another, so that a page number (u32, packed order) and a host address are one
//! multiplication apart. gpa <-> page goes through the short list of ranges.
//! Invariant: ranges are sorted by gpa, do not overlap, and are multiples of the page size.

const std = @import("std");
const linux = std.os.linux;
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");

pub const page_size = 4096;
pub const page_shift = 12;
/// Linux uapi: MADV_DONTFORK keeps RAM out of a forked child; MADV_NOHUGEPAGE keeps 4 KiB units.
const MADV_DONTNEED = 4;
const MADV_DONTFORK = 10;
const MADV_NOHUGEPAGE = 15;

/// Contiguous guest-physical RAM, possibly of several nodes: one KVM slot.
pub const Chunk = struct { gpa: u64, size: u64, offset: u64 };

pub const Error = error{ RangesInvalid, SystemCall };

pub const Ram = struct {
    memory: []align(std.heap.page_size_min) u8,
    ranges: [abi.ram_ranges_max]abi.RamRange,
    range_count: u32,
    /// Packed offset of each range.
    offsets: [abi.ram_ranges_max]u64,

    /// Of a node that has no guest RAM.
    pub const none: Ram = .{
        .memory = &.{},
        .ranges = undefined,
        .range_count = 0,
        .offsets = undefined,
    };

    pub fn init(ranges: []const abi.RamRange) Error!Ram {
        var ram: Ram = undefined;
        if (ranges.len == 0 or ranges.len > abi.ram_ranges_max) return error.RangesInvalid;
        var offset: u64 = 0;
        var end: u64 = 0;
        for (ranges, 0..) |r, i| {
            const bad_size = r.size == 0 or r.size % page_size != 0 or r.gpa % page_size != 0;
            if (bad_size or r.gpa < end) return error.RangesInvalid;
            end = std.math.add(u64, r.gpa, r.size) catch return error.RangesInvalid;
            ram.ranges[i] = r;
            ram.offsets[i] = offset;
            offset += r.size;
        }
        // Page numbers are u32.
        if (offset >> page_shift > std.math.maxInt(u32)) return error.RangesInvalid;
        ram.range_count = @intCast(ranges.len);
        ram.memory = try sys.mapAnonymous(offset);
        for ([_]u32{ MADV_DONTFORK, MADV_NOHUGEPAGE }) |advice| {
            // NOHUGEPAGE is EINVAL on a kernel without THP: the units are 4 KiB then anyway.
            _ = linux.madvise(ram.memory.ptr, ram.memory.len, advice);
        }
        return ram;
    }

    pub fn deinit(self: *Ram) void {
        if (self.memory.len > 0) sys.unmap(self.memory);
        self.* = undefined;
    }

    pub fn pageCount(self: *const Ram) u32 {
        return @intCast(self.memory.len >> page_shift);
    }

    /// Packed offset of a guest-physical address, or null outside RAM.
    pub fn offsetOf(self: *const Ram, gpa: u64) ?u64 {
        for (self.ranges[0..self.range_count], 0..) |r, i| {
            if (gpa >= r.gpa and gpa - r.gpa < r.size) return self.offsets[i] + (gpa - r.gpa);
        }
        return null;
    }

    pub fn gpaOf(self: *const Ram, page: u32) u64 {
        const offset = @as(u64, page) << page_shift;
        var i: usize = self.range_count;
        while (i > 0) {
            i -= 1;
            if (offset >= self.offsets[i]) return self.ranges[i].gpa + (offset - self.offsets[i]);
        }
        unreachable;
    }

    pub fn pageOf(self: *const Ram, gpa: u64) ?u32 {
        const offset = self.offsetOf(gpa) orelse return null;
        return @intCast(offset >> page_shift);
    }

    pub fn pageBytes(self: *const Ram, page: u32) *align(page_size) [page_size]u8 {
        const start = @as(usize, page) << page_shift;
        return @alignCast(self.memory[start..][0..page_size]);
    }

    /// The host memory behind [gpa, gpa+len), or null unless all of it is RAM. Guest RAM is
    /// contiguous in host memory wherever it is contiguous in guest-physical space.
    pub fn slice(self: *const Ram, gpa: u64, len: u64) ?[]u8 {
        if (len == 0) return self.memory[0..0];
        const last = std.math.add(u64, gpa, len - 1) catch return null;
        const first_offset = self.offsetOf(gpa) orelse return null;
        const last_offset = self.offsetOf(last) orelse return null;
        // A hole between them makes the packed distance shorter than the guest-physical one.
        if (last_offset -% first_offset != len - 1) return null;
        return self.memory[first_offset..][0..len];
    }

    /// Calls visit(chunk) for each guest-physically contiguous piece.
    pub fn chunks(self: *const Ram, out: *[abi.ram_ranges_max]Chunk) []Chunk {
        var n: usize = 0;
        for (self.ranges[0..self.range_count], 0..) |r, i| {
            if (n > 0 and out[n - 1].gpa + out[n - 1].size == r.gpa) {
                out[n - 1].size += r.size;
            } else {
                out[n] = .{ .gpa = r.gpa, .size = r.size, .offset = self.offsets[i] };
                n += 1;
            }
        }
        return out[0..n];
    }

    /// Forgets all contents; plain memory only (with a pager the protocol discards pages).
    pub fn clear(self: *Ram) Error!void {
        _ = try sys.check(linux.madvise(self.memory.ptr, self.memory.len, MADV_DONTNEED));
    }
};

fn testRanges() [3]abi.RamRange {
    return .{
        .{ .gpa = 0, .size = 64 << 12, .node = 0 },
        .{ .gpa = 64 << 12, .size = 32 << 12, .node = 1 },
        .{ .gpa = 1 << 32, .size = 16 << 12, .node = 1 },
    };
}

test "addresses go both ways and holes are no RAM" {
    const ranges = testRanges();
    var ram = try Ram.init(&ranges);
    defer ram.deinit();
    try std.testing.expectEqual(@as(u32, 112), ram.pageCount());
    try std.testing.expectEqual(@as(?u32, 96), ram.pageOf(1 << 32));
    try std.testing.expectEqual(@as(u64, (1 << 32) + (15 << 12)), ram.gpaOf(111));
    try std.testing.expectEqual(@as(?u64, null), ram.offsetOf(96 << 12));
    try std.testing.expect(ram.slice((64 << 12) - 8, 16) != null);
    try std.testing.expect(ram.slice((96 << 12) - 8, 16) == null);
    try std.testing.expect(ram.slice((96 << 12) - 8, (1 << 32) - (96 << 12) + 16) == null);
    try std.testing.expect(ram.slice(std.math.maxInt(u64) - 3, 16) == null);
}

test "a node without guest RAM has no address in it" {
    var ram: Ram = .none;
    defer ram.deinit();
    try std.testing.expectEqual(@as(?u64, null), ram.offsetOf(0));
    try std.testing.expect(ram.slice(0, 1) == null);
    try std.testing.expectEqual(@as(u32, 0), ram.pageCount());
}

test "adjacent ranges of two nodes are one chunk" {
    const ranges = testRanges();
    var ram = try Ram.init(&ranges);
    defer ram.deinit();
    var out: [abi.ram_ranges_max]Chunk = undefined;
    const list = ram.chunks(&out);
    try std.testing.expectEqual(@as(usize, 2), list.len);
    try std.testing.expectEqual(@as(u64, 96 << 12), list[0].size);
    try std.testing.expectEqual(@as(u64, 96 << 12), list[1].offset);
}

test "overlapping, empty and unaligned ranges are refused" {
    const bad = [_][2]abi.RamRange{
        .{ .{ .gpa = 0, .size = 8192, .node = 0 }, .{ .gpa = 4096, .size = 4096, .node = 0 } },
        .{ .{ .gpa = 0, .size = 0, .node = 0 }, .{ .gpa = 4096, .size = 4096, .node = 0 } },
        .{ .{ .gpa = 0, .size = 4096, .node = 0 }, .{ .gpa = 4100, .size = 4096, .node = 0 } },
    };
    for (bad) |ranges| try std.testing.expectError(error.RangesInvalid, Ram.init(&ranges));
}
