//! Gregorian dates and seconds since 1970, for the real-time clock. Every input has an answer:
//! fields out of range are brought into it, since a guest may write anything into its clock.

const std = @import("std");

/// Years 0000 to 9999: what a year and a century of two digits each can tell.
pub const first_second: i64 = -62_167_219_200;
pub const last_second: i64 = 253_402_300_799;

pub const Date = struct {
    year: u32,
    /// 1 to 12.
    month: u8,
    /// 1 to 31.
    day: u8,
    hour: u8,
    minute: u8,
    second: u8,
};

const days_before_month = [12]u16{ 0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334 };
const month_lengths = [12]u8{ 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 };

fn isLeap(year: i64) bool {
    return @mod(year, 4) == 0 and (@mod(year, 100) != 0 or @mod(year, 400) == 0);
}

/// Days from 0000-01-01 to January 1 of `year`, for year >= 0.
fn daysBeforeYear(year: i64) i64 {
    if (year == 0) return 0;
    const before = year - 1;
    // Year 0 is a leap year: hence the one.
    return year * 365 + @divFloor(before, 4) - @divFloor(before, 100) + @divFloor(before, 400) + 1;
}

const days_to_1970 = 719_528;

fn monthLength(year: i64, month: u8) u8 {
    return month_lengths[month - 1] + @intFromBool(month == 2 and isLeap(year));
}

pub fn fromSeconds(seconds: i64) Date {
    const wanted = std.math.clamp(seconds, first_second, last_second);
    const day_number = @divFloor(wanted, std.time.s_per_day) + days_to_1970;
    const of_day: u32 = @intCast(@mod(wanted, std.time.s_per_day));
    // The estimate is at most one year off.
    var year = @divFloor(day_number * 400, 146_097);
    if (daysBeforeYear(year) > day_number) year -= 1;
    if (daysBeforeYear(year + 1) <= day_number) year += 1;
    var rest: u16 = @intCast(day_number - daysBeforeYear(year));
    var month: u8 = 1;
    while (rest >= monthLength(year, month)) : (month += 1) rest -= monthLength(year, month);
    return .{
        .year = @intCast(year),
        .month = month,
        .day = @intCast(rest + 1),
        .hour = @intCast(of_day / 3600),
        .minute = @intCast(of_day / 60 % 60),
        .second = @intCast(of_day % 60),
    };
}

pub fn toSeconds(date: Date) i64 {
    const year: i64 = @min(date.year, 9999);
    const month = std.math.clamp(date.month, 1, 12);
    const day = std.math.clamp(date.day, 1, monthLength(year, month));
    const leap_day = @intFromBool(month > 2 and isLeap(year));
    const days = daysBeforeYear(year) + days_before_month[month - 1] + leap_day + day - 1;
    return (days - days_to_1970) * std.time.s_per_day +
        @as(i64, @min(date.hour, 23)) * 3600 +
        @as(i64, @min(date.minute, 59)) * 60 + @min(date.second, 59);
}

/// 0 is Sunday.
pub fn weekday(date: Date) u8 {
    // January 1, 1970 was a Thursday.
    return @intCast(@mod(@divFloor(toSeconds(date), std.time.s_per_day) + 4, 7));
}

test "known dates, both ways" {
    const cases = [_]struct { s: i64, d: Date, w: u8 }{
        .{ .s = 0, .d = dateOf(1970, 1, 1, 0, 0, 0), .w = 4 },
        .{ .s = 951_782_400, .d = dateOf(2000, 2, 29, 0, 0, 0), .w = 2 },
        .{ .s = 951_868_799, .d = dateOf(2000, 2, 29, 23, 59, 59), .w = 2 },
        .{ .s = 4_107_542_400, .d = dateOf(2100, 3, 1, 0, 0, 0), .w = 1 },
        .{ .s = -1, .d = dateOf(1969, 12, 31, 23, 59, 59), .w = 3 },
        .{ .s = first_second, .d = dateOf(0, 1, 1, 0, 0, 0), .w = 6 },
        .{ .s = last_second, .d = dateOf(9999, 12, 31, 23, 59, 59), .w = 5 },
    };
    for (cases) |c| {
        try std.testing.expectEqual(c.d, fromSeconds(c.s));
        try std.testing.expectEqual(c.s, toSeconds(c.d));
        try std.testing.expectEqual(c.w, weekday(c.d));
    }
}

fn dateOf(year: u32, month: u8, day: u8, hour: u8, minute: u8, second: u8) Date {
    return .{
        .year = year,
        .month = month,
        .day = day,
        .hour = hour,
        .minute = minute,
        .second = second,
    };
}

test "every day of ten thousand years comes back" {
    var s: i64 = first_second + 12_345;
    var previous = fromSeconds(s - std.time.s_per_day / 2);
    while (s <= last_second) : (s += std.time.s_per_day) {
        const date = fromSeconds(s);
        try std.testing.expectEqual(s, toSeconds(date));
        const next_day = date.day == previous.day + 1 or date.day == 1 or date.day == previous.day;
        try std.testing.expect(next_day);
        previous = date;
    }
}

test "what makes no sense becomes the nearest that does" {
    try std.testing.expectEqual(
        dateOf(2023, 2, 28, 23, 59, 59),
        fromSeconds(toSeconds(dateOf(2023, 2, 31, 99, 77, 60))),
    );
    try std.testing.expectEqual(
        dateOf(9999, 12, 1, 0, 0, 0),
        fromSeconds(toSeconds(dateOf(16_599, 255, 0, 0, 0, 0))),
    );
    try std.testing.expectEqual(last_second, toSeconds(fromSeconds(std.math.maxInt(i64))));
    try std.testing.expectEqual(first_second, toSeconds(fromSeconds(std.math.minInt(i64))));
}
