//! One entry a guest page, zero at first. With an allocator whose fresh memory is zero already (the
//! kernel's), nothing is written here: an entry costs memory from its first use on, in steps of the
//! host's page size.

const std = @import("std");
const sys = @import("sys.zig");

pub const Memory = struct {
    allocator: std.mem.Allocator,
    /// Fresh memory of the allocator reads as zero, and freed memory is never given out again.
    fresh_is_zero: bool,

    pub const kernel: Memory = .{ .allocator = std.heap.page_allocator, .fresh_is_zero = true };

    /// All-zero bytes must be a valid T. Free with free() only.
    pub fn alloc(self: Memory, comptime T: type, n: usize) error{OutOfMemory}![]T {
        const size = std.math.mul(usize, n, @sizeOf(T)) catch return error.OutOfMemory;
        if (size == 0) return &.{};
        // Raw: the plain form fills what it gives out, which would touch every byte.
        const bytes = self.allocator.rawAlloc(size, .of(T), @returnAddress()) orelse {
            return error.OutOfMemory;
        };
        if (!self.fresh_is_zero) @memset(bytes[0..size], 0);
        const first: [*]T = @ptrCast(@alignCast(bytes));
        return first[0..n];
    }

    pub fn free(self: Memory, comptime T: type, array: []T) void {
        if (array.len == 0) return;
        self.allocator.rawFree(std.mem.sliceAsBytes(array), .of(T), @returnAddress());
    }
};

test "an array for a tebibyte of guest costs what is used of it" {
    const pages = 1 << 28;
    const array = try Memory.kernel.alloc(u64, pages);
    defer Memory.kernel.free(u64, array);
    array[5] = 7;
    array[pages - 1] = 9;
    try std.testing.expectEqual(@as(u64, 0), array[pages / 2]);
    // Transparent huge pages may round each touch up to 2 MiB.
    const bytes: []align(std.heap.page_size_min) u8 = @alignCast(std.mem.sliceAsBytes(array));
    try std.testing.expect(try sys.residentBytes(bytes) <= 6 << 20);
}

test "memory that is used again is cleared" {
    const memory: Memory = .{ .allocator = std.testing.allocator, .fresh_is_zero = false };
    const array = try memory.alloc(u16, 100);
    defer memory.free(u16, array);
    for (array) |value| try std.testing.expectEqual(@as(u16, 0), value);
}
