//! The local APIC's timer as pure arithmetic on bus ticks (1 GHz, passed in as `now`).
//! Nothing runs between calls: the count is computed when read, and an expiry is noticed when the
//! owner calls `advance`. `count` is the value the counter had at `since`; 0 means stopped.
//! A periodic timer that was not looked at for many periods expires once and keeps its phase.
//! Time that runs backwards (a clock step at a freeze) counts as no time.
//! Reference: SDM volume 3A, "APIC Timer".

const std = @import("std");

/// A periodic timer is not reported due more often than this, bus ticks. A period below it (a
/// hostile or confused guest) would otherwise occupy the vCPU's thread with host timers alone.
/// The count register still shows the true period.
pub const periodic_pace_min: u64 = 100_000;

/// Divide configuration register: bits 3, 1 and 0.
pub const divide_mask: u32 = 0xb;

pub const Timer = struct {
    initial: u32 = 0,
    divide: u32 = 0,
    count: u32 = 0,
    since: u64 = 0,

    /// SDM "Divide Configuration Register": 000 is 2, 001 is 4, ... 110 is 128, 111 is 1.
    fn shift(self: Timer) u6 {
        const code: u3 = @truncate((self.divide & 3) | ((self.divide & 8) >> 1));
        return code +% 1;
    }

    /// Counts down to `now`; true if it reached zero on the way, however often.
    pub fn advance(self: *Timer, now: u64, periodic: bool) bool {
        if (self.count == 0) return false;
        const elapsed = (now -| self.since) >> self.shift();
        if (elapsed < self.count) return false;
        if (periodic) {
            // A nonzero count implies a nonzero initial count: both are only set together.
            const into_period = (elapsed - self.count) % self.initial;
            self.since += (elapsed - into_period) << self.shift();
            self.count = self.initial;
        } else {
            self.count = 0;
        }
        return true;
    }

    /// The current-count register.
    pub fn current(self: Timer, now: u64, periodic: bool) u32 {
        var copy = self;
        _ = copy.advance(now, periodic);
        const elapsed = (now -| copy.since) >> copy.shift();
        return @intCast(copy.count -| elapsed);
    }

    /// Bus tick of the next expiry worth waking for, null if stopped.
    pub fn deadline(self: Timer, periodic: bool) ?u64 {
        if (self.count == 0) return null;
        var ticks = @as(u64, self.count) << self.shift();
        if (periodic and ticks < periodic_pace_min) {
            const period = @as(u64, self.initial) << self.shift();
            const missing = periodic_pace_min - ticks;
            ticks += (missing + period - 1) / period * period;
        }
        return self.since +| ticks;
    }

    /// A write of the initial count starts the countdown, or stops it with 0.
    pub fn setInitial(self: *Timer, value: u32, now: u64) void {
        self.initial = value;
        self.count = value;
        self.since = now;
    }

    /// A new divider applies to what is left of the count. Call `advance` first.
    pub fn setDivide(self: *Timer, value: u32, now: u64, periodic: bool) void {
        const left = self.current(now, periodic);
        if (self.count != 0) {
            self.count = left;
            self.since = now;
        }
        self.divide = value & divide_mask;
    }
};

const expectEqual = std.testing.expectEqual;
const expect = std.testing.expect;

test "divider table" {
    const table = [_]struct { u32, u64 }{
        .{ 0x0, 2 },  .{ 0x1, 4 },  .{ 0x2, 8 },   .{ 0x3, 16 },
        .{ 0x8, 32 }, .{ 0x9, 64 }, .{ 0xa, 128 }, .{ 0xb, 1 },
    };
    for (table) |row| {
        var t: Timer = .{};
        t.setDivide(row[0], 0, false);
        t.setInitial(1_000_000, 5);
        try expectEqual(5 + 1_000_000 * row[1], t.deadline(false).?);
        try expectEqual(1_000_000 - 10, t.current(5 + 10 * row[1], false));
    }
}

test "one-shot: expires once, then stays at zero" {
    var t: Timer = .{ .divide = 0xb };
    t.setInitial(100, 1000);
    try expect(!t.advance(1099, false));
    try expectEqual(1, t.current(1099, false));
    try expect(t.advance(1100, false));
    try expectEqual(null, t.deadline(false));
    try expectEqual(0, t.current(5000, false));
    try expect(!t.advance(9999, false));
    // Turning periodic does not start a counter that stands at zero.
    try expect(!t.advance(99999, true));
}

test "periodic: one expiry for many periods, phase kept" {
    var t: Timer = .{ .divide = 0xb };
    t.setInitial(1_000_000, 7);
    try expect(t.advance(7 + 5_300_000, true));
    try expect(!t.advance(7 + 5_300_001, true));
    try expectEqual(7 + 6_000_000, t.deadline(true).?);
    try expectEqual(700_000, t.current(7 + 5_300_000, true));
}

test "periodic: a tiny period is paced, its count is not" {
    var t: Timer = .{ .divide = 0xb };
    t.setInitial(3, 0);
    const due = t.deadline(true).?;
    try expect(due >= periodic_pace_min and due < periodic_pace_min + 3);
    try expectEqual(0, due % 3);
    try expectEqual(2, t.current(4, true));
    // The same count in one-shot mode is not paced: the guest arms each one.
    try expectEqual(3, t.deadline(false).?);
}

test "divider changed in flight keeps the count" {
    var t: Timer = .{ .divide = 0xb };
    t.setInitial(1000, 0);
    t.setDivide(0x0, 400, false);
    try expectEqual(600, t.current(400, false));
    try expectEqual(400 + 1200, t.deadline(false).?);
    // The next period of a periodic timer starts from the initial count again.
    try expect(t.advance(1600, true));
    try expectEqual(1000, t.count);
}

test "initial count rewritten in flight, and stopped by zero" {
    var t: Timer = .{ .divide = 0xb };
    t.setInitial(1000, 0);
    t.setInitial(50, 900);
    try expectEqual(950, t.deadline(false).?);
    t.setInitial(0, 910);
    try expectEqual(null, t.deadline(true));
    try expect(!t.advance(1 << 40, true));
}

test "time that steps back, and the end of time" {
    var t: Timer = .{ .divide = 0xb };
    t.setInitial(100, 1000);
    try expectEqual(100, t.current(500, false));
    try expect(!t.advance(0, true));
    t.setInitial(0xffff_ffff, std.math.maxInt(u64) - 1);
    t.setDivide(0xa, std.math.maxInt(u64), false);
    try expectEqual(std.math.maxInt(u64), t.deadline(false).?);
}
