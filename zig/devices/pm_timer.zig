//! The ACPI power-management timer (ACPI 6.5, 4.8.3.3): a free-running 32-bit counter of guest
//! time, the clock a guest checks its TSC against. Pure: a function of guest nanoseconds since
//! start, so every node answers it from its own clock, which is the same on all.

const std = @import("std");

/// 3.579545 MHz, three times the NTSC colour carrier (ACPI 6.5, 4.8.3.3).
pub const frequency_hz = 3_579_545;

pub fn read(now_ns: u64) u32 {
    // 128 bits: the product outgrows 64 bits after 86 minutes.
    return @truncate(@as(u128, now_ns) * frequency_hz / std.time.ns_per_s);
}

test "one second is one frequency" {
    try std.testing.expectEqual(@as(u32, 0), read(0));
    try std.testing.expectEqual(@as(u32, frequency_hz), read(std.time.ns_per_s));
    try std.testing.expectEqual(@as(u32, 3579), read(std.time.ns_per_ms));
}

test "wraps at 32 bits and stays exact for as long as the clock can count" {
    // 2^32 ticks last 1199.86 s: one tick before and at the wrap.
    const wrap_ns: u64 = (@as(u128, 1) << 32) * std.time.ns_per_s / frequency_hz;
    try std.testing.expectEqual(std.math.maxInt(u32), read(wrap_ns));
    try std.testing.expectEqual(@as(u32, 0), read(wrap_ns + 1));
    const century_s: u64 = 100 * 365 * 24 * 3600;
    const expected: u32 = @truncate(@as(u128, century_s) * frequency_hz);
    try std.testing.expectEqual(expected, read(century_s * std.time.ns_per_s));
    _ = read(std.math.maxInt(u64));
}

test "steps are never backwards and at most one tick in 279 ns" {
    var before = read(7);
    var now: u64 = 7;
    for (0..10_000) |_| {
        now += 279;
        const after = read(now);
        try std.testing.expect(after -% before <= 1);
        before = after;
    }
    try std.testing.expectEqual(read(7 + 279 * 10_000), before);
}
