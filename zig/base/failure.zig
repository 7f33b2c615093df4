//! The newest failure, in words: what a TypeScript caller reads after a status other than ok.
//! One record, since only the JavaScript thread calls exported functions.

const std = @import("std");
const abi = @import("../abi.zig");
const sys = @import("sys.zig");

pub var record: abi.ErrorRecord = .{ .status = 0, .errno = 0, .text_len = 0, .text = @splat(0) };

/// Records the failure and returns its status, so that an export can `return fail(...)`.
pub fn fail(status: abi.Status, comptime format: []const u8, args: anytype) i32 {
    record.status = @backingInt(status);
    record.errno = sys.last_errno;
    const text = std.fmt.bufPrint(&record.text, format, args) catch record.text[0..];
    record.text_len = @intCast(text.len);
    sys.last_errno = 0;
    return record.status;
}

test "a failure keeps its words and errno" {
    sys.last_errno = 13;
    try std.testing.expectEqual(@as(i32, -5), fail(.kvm_failed, "open {s}", .{"/dev/kvm"}));
    try std.testing.expectEqual(@as(u32, 13), record.errno);
    try std.testing.expectEqualStrings("open /dev/kvm", record.text[0..record.text_len]);
}

test "text longer than the record is cut, not lost" {
    const long: [400]u8 = @splat('x');
    _ = fail(.io_failed, "{s}", .{&long});
    try std.testing.expectEqual(@as(u32, 240), record.text_len);
}
