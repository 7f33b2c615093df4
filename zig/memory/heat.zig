//! Counts remote faults by block of guest RAM, in the shared page: where the nodes get in each
//! other's way. A block is 2 MiB, or more where RAM has more than heat_blocks_max of those. One
//! increment for a remote fault, nothing on other paths. Shard thread only; others read as it
//! counts.

const std = @import("std");
const abi = @import("../abi.zig");

/// Pages of 2 MiB.
const block_shift_min = 9;

pub const Heat = struct {
    record: *abi.Heat,
    /// Pages of a block: 1 << shift.
    shift: u5,

    /// Until the engine ends: a guest's reset takes nothing back.
    pub fn init(record: *abi.Heat, page_count: u32) Heat {
        var shift: u5 = block_shift_min;
        while (blocks(page_count, shift) > abi.heat_blocks_max) shift += 1;
        record.block_pages = @as(u32, 1) << shift;
        record.count = blocks(page_count, shift);
        return .{ .record = record, .shift = shift };
    }

    fn blocks(page_count: u32, shift: u5) u32 {
        const whole = page_count >> shift;
        return whole + @intFromBool(whole << shift != page_count);
    }

    pub inline fn add(self: Heat, page: u32) void {
        self.record.faults[page >> self.shift] +%= 1;
    }
};

test "a counter for each 2 MiB, never more than there is room for" {
    var record = std.mem.zeroes(abi.Heat);
    const small: Heat = .init(&record, 3 * 512 + 1);
    try std.testing.expectEqual(@as(u32, 512), record.block_pages);
    try std.testing.expectEqual(@as(u32, 4), record.count);
    for ([_]u32{ 0, 511, 512, 1536 }) |page| small.add(page);
    try std.testing.expectEqualSlices(u32, &.{ 2, 1, 0, 1, 0 }, record.faults[0..5]);

    // 8 GiB are just enough; a page more makes blocks of 4 MiB. Then the most pages there can be.
    _ = Heat.init(&record, 4096 * 512);
    try std.testing.expectEqual(@as(u32, 512), record.block_pages);
    try std.testing.expectEqual(abi.heat_blocks_max, record.count);
    _ = Heat.init(&record, 4096 * 512 + 1);
    try std.testing.expectEqual(@as(u32, 1024), record.block_pages);
    try std.testing.expectEqual(@as(u32, 2049), record.count);
    const large: Heat = .init(&record, std.math.maxInt(u32));
    try std.testing.expectEqual(abi.heat_blocks_max, record.count);
    large.add(std.math.maxInt(u32) - 1);
    try std.testing.expectEqual(@as(u32, 1), record.faults[abi.heat_blocks_max - 1]);
}
