//! The MC146818 real-time clock with its 128 bytes of CMOS RAM (Motorola data sheet MC146818A,
//! "DS"; index port 0x70, data port 0x71). Pure: time comes in as guest nanoseconds since start by
//! tick(), which every access needs to be preceded by. The time of day is not counted but computed
//! from one reference; registers hold it only while the guest has stopped the clock to set it.
//! Invariant: what a guest writes is data; a date that makes no sense becomes the nearest one.

const std = @import("std");
const calendar = @import("calendar.zig");

/// Register numbers (DS figure 8); the century is the PC's (FADT "CENTURY", ACPI 6.5, 5.2.9).
const Register = struct {
    const seconds = 0;
    const seconds_alarm = 1;
    const minutes = 2;
    const minutes_alarm = 3;
    const hours = 4;
    const hours_alarm = 5;
    const weekday = 6;
    const day = 7;
    const month = 8;
    const year = 9;
    const a = 10;
    const b = 11;
    const c = 12;
    const d = 13;
    const century = 0x32;
};

/// Register A: update in progress, divider, periodic rate (DS "Register A").
const a_update: u8 = 0x80;
const a_divider: u8 = 0x70;
const a_divider_runs: u8 = 0x20;
const a_rate: u8 = 0x0f;
/// Divider on, 1024 Hz: what PC firmware leaves.
const a_reset: u8 = 0x26;

/// Register B (DS "Register B").
const b_set: u8 = 0x80;
const b_square_wave: u8 = 0x08;
const b_binary: u8 = 0x04;
const b_24_hours: u8 = 0x02;

/// Interrupt flags: same bits as flag in register C and as enable in register B.
const periodic: u8 = 0x40;
const alarm: u8 = 0x20;
const update_ended: u8 = 0x10;
const sources: u8 = periodic | alarm | update_ended;
const c_request: u8 = 0x80;

/// Register D: the battery is good.
const d_valid: u8 = 0x80;

const hour_pm: u8 = 0x80;
/// An alarm byte with both top bits set matches anything (DS "Alarm").
const alarm_any: u8 = 0xc0;

const ns_per_s = std.time.ns_per_s;
/// UIP is set this long before an update (DS table 6).
const update_ns = 244 * std.time.ns_per_us;
/// The first update after the divider starts comes half a second later (DS "Divider Control").
const divider_start_ns = ns_per_s / 2;
const crystal_hz = 32_768;

pub const Rtc = struct {
    /// Seconds since 1970 at guest time `reference_ns`; the two move together.
    reference_seconds: i64,
    reference_ns: i128,
    now_ns: u64,
    /// Time of day of the newest update that tick() has accounted for.
    updated_seconds: i64,
    /// Edges of the periodic divider so far.
    periodic_edges: u64,
    index: u7,
    ram: [128]u8,

    pub fn init(unix_seconds: i64) Rtc {
        const seconds = std.math.clamp(unix_seconds, calendar.first_second, calendar.last_second);
        var self: Rtc = .{
            .reference_seconds = seconds,
            .reference_ns = 0,
            .now_ns = 0,
            .updated_seconds = seconds,
            .periodic_edges = 0,
            .index = 0,
            .ram = @splat(0),
        };
        self.ram[Register.a] = a_reset;
        self.ram[Register.b] = b_24_hours;
        self.ram[Register.d] = d_valid;
        return self;
    }

    /// The machine's reset line: interrupts off, time and RAM kept (DS "RESET").
    pub fn reset(self: *Rtc) void {
        self.ram[Register.b] &= ~(sources | b_square_wave);
        self.ram[Register.c] = 0;
        self.index = 0;
    }

    /// Offset 0 is the index port, 1 the data port.
    pub fn read(self: *Rtc, offset: u1) u8 {
        // The index cannot be read back on a PC.
        if (offset == 0) return 0xff;
        return switch (self.index) {
            Register.a => self.ram[Register.a] | (if (self.updateSoon()) a_update else 0),
            Register.c => self.takeFlags(),
            else => |i| if (isTime(i)) self.readTime(i) else self.ram[i],
        };
    }

    pub fn write(self: *Rtc, offset: u1, value: u8) void {
        // Bit 7 of the index port masks NMI on a PC; here NMIs are the LAPIC's business.
        if (offset == 0) {
            self.index = @truncate(value);
            return;
        }
        switch (self.index) {
            Register.a => self.control(value & ~a_update, self.ram[Register.b]),
            // Setting the clock ends update interrupts (DS "Register B", SET).
            Register.b => self.control(self.ram[Register.a], if (value & b_set != 0)
                value & ~update_ended
            else
                value),
            Register.c, Register.d => {},
            else => |i| if (isTime(i)) self.writeTime(i, value) else {
                self.ram[i] = value;
            },
        }
    }

    /// Level of IRQ 8: high until register C is read.
    pub fn irq(self: *const Rtc) bool {
        return self.ram[Register.c] & self.ram[Register.b] & sources != 0;
    }

    /// Lets everything happen that is due at `now_ns`; several updates missed count as one.
    pub fn tick(self: *Rtc, now_ns: u64) void {
        self.now_ns = @max(self.now_ns, now_ns);
        if (self.periodTicks()) |_| {
            const edges = self.edgesNow();
            if (edges != self.periodic_edges) self.ram[Register.c] |= periodic;
            self.periodic_edges = edges;
        }
        if (self.stopped()) return;
        const seconds = self.secondsNow();
        if (seconds <= self.updated_seconds) return;
        self.ram[Register.c] |= update_ended;
        if (self.nextAlarm(self.updated_seconds)) |at| {
            if (at <= seconds) self.ram[Register.c] |= alarm;
        }
        self.updated_seconds = seconds;
    }

    /// Guest time of the next change of irq(), null when none is to come before the next access.
    pub fn deadline(self: *const Rtc, now_ns: u64) ?u64 {
        if (self.irq()) return null;
        const enabled = self.ram[Register.b];
        var next: ?u64 = null;
        if (enabled & periodic != 0) {
            if (self.periodTicks()) |ticks| {
                const edge = (self.edgesNow() + 1) * ticks;
                const at = (@as(u128, edge) * ns_per_s + crystal_hz - 1) / crystal_hz;
                next = saturate(at);
            }
        }
        if (!self.stopped()) {
            if (enabled & update_ended != 0) {
                next = earlier(next, self.timeOf(self.updated_seconds + 1));
            }
            if (enabled & alarm != 0) {
                if (self.nextAlarm(self.updated_seconds)) |s| next = earlier(next, self.timeOf(s));
            }
        }
        return if (next) |at| @max(at, now_ns) else null;
    }

    /// Seconds since 1970 as the registers tell them now.
    fn shownSeconds(self: *const Rtc) i64 {
        return if (self.stopped()) self.secondsFromRam() else self.secondsNow();
    }

    fn isTime(register: u7) bool {
        return switch (register) {
            Register.seconds,
            Register.minutes,
            Register.hours,
            Register.weekday,
            Register.day,
            Register.month,
            Register.year,
            Register.century,
            => true,
            else => false,
        };
    }

    /// SET, or a divider that does not run: registers are the guest's, no updates.
    fn stopped(self: *const Rtc) bool {
        return self.ram[Register.b] & b_set != 0 or !self.dividerRuns();
    }

    fn dividerRuns(self: *const Rtc) bool {
        return self.ram[Register.a] & a_divider == a_divider_runs;
    }

    fn secondsNow(self: *const Rtc) i64 {
        const elapsed = @divFloor(@as(i128, self.now_ns) - self.reference_ns, ns_per_s);
        return self.reference_seconds + @as(i64, @intCast(elapsed));
    }

    /// Guest time at which the clock shows `seconds`.
    fn timeOf(self: *const Rtc, seconds: i64) u64 {
        const at = self.reference_ns + @as(i128, seconds - self.reference_seconds) * ns_per_s;
        return if (at <= 0) 0 else saturate(@intCast(at));
    }

    fn updateSoon(self: *const Rtc) bool {
        if (self.stopped()) return false;
        const phase = @mod(@as(i128, self.now_ns) - self.reference_ns, ns_per_s);
        return phase >= ns_per_s - update_ns;
    }

    fn takeFlags(self: *Rtc) u8 {
        const flags = self.ram[Register.c] | (if (self.irq()) c_request else 0);
        self.ram[Register.c] = 0;
        return flags;
    }

    /// New registers A and B. Stopping loads the time into RAM, going on takes it from there.
    fn control(self: *Rtc, a: u8, b: u8) void {
        const was_stopped = self.stopped();
        const divider_ran = self.dividerRuns();
        const changed_rate = (a ^ self.ram[Register.a]) & (a_rate | a_divider) != 0;
        const seconds = self.shownSeconds();
        self.ram[Register.a] = a;
        self.ram[Register.b] = b;
        if (changed_rate) self.periodic_edges = self.edgesNow();
        if (self.stopped()) {
            // Encoded as the new register B says: guests set SET and the format in one write.
            if (!was_stopped) self.loadRam(seconds);
        } else if (was_stopped) {
            const started = !divider_ran;
            self.startAt(self.secondsFromRam(), started);
        }
    }

    /// The clock shows `seconds` from now on; its phase within the second is kept unless the
    /// divider has just been started.
    fn startAt(self: *Rtc, seconds: i64, divider_started: bool) void {
        const now: i128 = self.now_ns;
        self.reference_ns = if (divider_started)
            now - divider_start_ns
        else
            now - @mod(now - self.reference_ns, ns_per_s);
        self.reference_seconds = seconds;
        self.updated_seconds = seconds;
    }

    fn readTime(self: *const Rtc, register: u7) u8 {
        if (self.stopped()) return self.ram[register];
        return self.encodeField(register, calendar.fromSeconds(self.secondsNow()));
    }

    fn writeTime(self: *Rtc, register: u7, value: u8) void {
        if (self.stopped()) {
            self.ram[register] = value;
            return;
        }
        // Without SET first: one field changes under a running clock.
        self.loadRam(self.secondsNow());
        self.ram[register] = value;
        self.startAt(self.secondsFromRam(), false);
    }

    fn loadRam(self: *Rtc, seconds: i64) void {
        const date = calendar.fromSeconds(seconds);
        for (0..self.ram.len) |i| {
            const register: u7 = @intCast(i);
            if (isTime(register)) self.ram[i] = self.encodeField(register, date);
        }
    }

    fn secondsFromRam(self: *const Rtc) i64 {
        const century: u32 = self.decode(self.ram[Register.century]);
        return calendar.toSeconds(.{
            .year = century * 100 + @min(self.decode(self.ram[Register.year]), 99),
            .month = self.decode(self.ram[Register.month]),
            .day = self.decode(self.ram[Register.day]),
            .hour = self.decodeHour(self.ram[Register.hours]),
            .minute = self.decode(self.ram[Register.minutes]),
            .second = self.decode(self.ram[Register.seconds]),
        });
    }

    fn encodeField(self: *const Rtc, register: u7, date: calendar.Date) u8 {
        return switch (register) {
            Register.seconds => self.encode(date.second),
            Register.minutes => self.encode(date.minute),
            Register.hours => self.encodeHour(date.hour),
            // 1 is Sunday (DS table 3).
            Register.weekday => self.encode(calendar.weekday(date) + 1),
            Register.day => self.encode(date.day),
            Register.month => self.encode(date.month),
            Register.year => self.encode(@intCast(date.year % 100)),
            Register.century => self.encode(@intCast(date.year / 100)),
            else => unreachable,
        };
    }

    fn encode(self: *const Rtc, value: u8) u8 {
        if (self.ram[Register.b] & b_binary != 0) return value;
        return (value / 10) << 4 | value % 10;
    }

    fn decode(self: *const Rtc, raw: u8) u8 {
        if (self.ram[Register.b] & b_binary != 0) return raw;
        // Digits above 9 count on: at most 15 * 10 + 15, still a byte.
        return (raw >> 4) * 10 + (raw & 15);
    }

    fn encodeHour(self: *const Rtc, hour: u8) u8 {
        if (self.ram[Register.b] & b_24_hours != 0) return self.encode(hour);
        const twelve = if (hour % 12 == 0) 12 else hour % 12;
        return self.encode(twelve) | (if (hour >= 12) hour_pm else 0);
    }

    fn decodeHour(self: *const Rtc, raw: u8) u8 {
        if (self.ram[Register.b] & b_24_hours != 0) return self.decode(raw);
        const hour = self.decode(raw & ~hour_pm) % 12;
        return if (raw & hour_pm != 0) hour + 12 else hour;
    }

    /// Crystal ticks per periodic interrupt (DS table 5); null when off.
    fn periodTicks(self: *const Rtc) ?u64 {
        if (!self.dividerRuns()) return null;
        const rate = self.ram[Register.a] & a_rate;
        return switch (rate) {
            0 => null,
            // With a 32 kHz crystal rates 1 and 2 are those of 8 and 9.
            1, 2 => @as(u64, 1) << @intCast(rate + 6),
            else => @as(u64, 1) << @intCast(rate - 1),
        };
    }

    fn edgesNow(self: *const Rtc) u64 {
        const ticks = self.periodTicks() orelse return 0;
        return @intCast(@as(u128, self.now_ns) * crystal_hz / ns_per_s / ticks);
    }

    /// First second after `after` that matches the alarm bytes; null when none of a day's does.
    fn nextAlarm(self: *const Rtc, after: i64) ?i64 {
        const second = self.alarmField(Register.seconds_alarm);
        const minute = self.alarmField(Register.minutes_alarm);
        const hour = self.alarmField(Register.hours_alarm);
        var at = after + 1;
        // A mismatch skips to the start of the next hour, minute or second.
        while (at <= after + std.time.s_per_day) {
            const of_day = @mod(at, std.time.s_per_day);
            if (hour) |h| if (@divFloor(of_day, 3600) != h) {
                at += 3600 - @mod(of_day, 3600);
                continue;
            };
            if (minute) |m| if (@mod(@divFloor(of_day, 60), 60) != m) {
                at += 60 - @mod(of_day, 60);
                continue;
            };
            if (second) |s| if (@mod(of_day, 60) != s) {
                at += 1;
                continue;
            };
            return at;
        }
        return null;
    }

    /// Null matches anything.
    fn alarmField(self: *const Rtc, register: u7) ?u8 {
        const raw = self.ram[register];
        if (raw & alarm_any == alarm_any) return null;
        return if (register == Register.hours_alarm) self.decodeHour(raw) else self.decode(raw);
    }
};

fn earlier(a: ?u64, b: u64) u64 {
    return if (a) |v| @min(v, b) else b;
}

fn saturate(ns: u128) u64 {
    return @intCast(@min(ns, std.math.maxInt(u64)));
}

/// 2024-02-28 23:59:58 UTC, a Wednesday.
const test_seconds = 1_709_164_798;

fn get(rtc: *Rtc, register: u8) u8 {
    rtc.write(0, register);
    return rtc.read(1);
}

fn put(rtc: *Rtc, register: u8, value: u8) void {
    rtc.write(0, register);
    rtc.write(1, value);
}

fn expectTime(rtc: *Rtc, expected: [8]u8) !void {
    const order = [8]u8{
        Register.century, Register.year,  Register.month,   Register.day,
        Register.weekday, Register.hours, Register.minutes, Register.seconds,
    };
    for (order, expected) |register, value| {
        try std.testing.expectEqual(value, get(rtc, register));
    }
}

test "time of day in BCD, over a leap day" {
    var rtc = Rtc.init(test_seconds);
    try expectTime(&rtc, .{ 0x20, 0x24, 0x02, 0x28, 4, 0x23, 0x59, 0x58 });
    rtc.tick(2 * ns_per_s);
    try expectTime(&rtc, .{ 0x20, 0x24, 0x02, 0x29, 5, 0x00, 0x00, 0x00 });
    rtc.tick((2 + 86_400) * ns_per_s);
    try expectTime(&rtc, .{ 0x20, 0x24, 0x03, 0x01, 6, 0x00, 0x00, 0x00 });
    // The NMI mask bit is not part of the index; the index port itself is write only.
    try std.testing.expectEqual(@as(u8, 0x24), get(&rtc, 0x80 | Register.year));
    try std.testing.expectEqual(@as(u8, 0xff), rtc.read(0));
    try std.testing.expectEqual(d_valid, get(&rtc, Register.d));
}

test "binary and twelve-hour formats" {
    var rtc = Rtc.init(test_seconds);
    put(&rtc, Register.b, b_binary | b_24_hours);
    try expectTime(&rtc, .{ 20, 24, 2, 28, 4, 23, 59, 58 });
    put(&rtc, Register.b, 0);
    try expectTime(&rtc, .{ 0x20, 0x24, 0x02, 0x28, 4, 0x91, 0x59, 0x58 });
    rtc.tick(2 * ns_per_s);
    try std.testing.expectEqual(@as(u8, 0x12), get(&rtc, Register.hours));
    rtc.tick((2 + 12 * 3600) * ns_per_s);
    try std.testing.expectEqual(@as(u8, 0x92), get(&rtc, Register.hours));
}

test "a guest sets the clock the way Linux does" {
    var rtc = Rtc.init(test_seconds);
    rtc.tick(300 * std.time.ns_per_ms);
    put(&rtc, Register.b, b_24_hours | b_set);
    put(&rtc, Register.a, 0x76);
    const registers = [_]u8{
        Register.century, Register.year,    Register.month, Register.day, Register.hours,
        Register.minutes, Register.seconds,
    };
    for (registers, [_]u8{ 0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59 }) |register, value| {
        put(&rtc, register, value);
    }
    rtc.tick(20 * ns_per_s);
    // Stopped: what was written reads back, and no update comes.
    try expectTime(&rtc, .{ 0x19, 0x99, 0x12, 0x31, 4, 0x23, 0x59, 0x59 });
    put(&rtc, Register.b, b_24_hours);
    put(&rtc, Register.a, a_reset);
    // The divider starts half a second before its first update.
    rtc.tick(20 * ns_per_s + 499 * std.time.ns_per_ms);
    try expectTime(&rtc, .{ 0x19, 0x99, 0x12, 0x31, 6, 0x23, 0x59, 0x59 });
    rtc.tick(20 * ns_per_s + 500 * std.time.ns_per_ms);
    try expectTime(&rtc, .{ 0x20, 0x00, 0x01, 0x01, 7, 0x00, 0x00, 0x00 });
}

test "SET alone keeps the phase, and a field written under a running clock takes effect" {
    var rtc = Rtc.init(test_seconds);
    rtc.tick(700 * std.time.ns_per_ms);
    put(&rtc, Register.b, b_24_hours | b_set);
    put(&rtc, Register.seconds, 0x10);
    put(&rtc, Register.b, b_24_hours);
    rtc.tick(ns_per_s);
    try std.testing.expectEqual(@as(u8, 0x11), get(&rtc, Register.seconds));
    put(&rtc, Register.year, 0x31);
    try expectTime(&rtc, .{ 0x20, 0x31, 0x02, 0x28, 6, 0x23, 0x59, 0x11 });
}

test "update in progress shows for the last 244 microseconds and is never stuck" {
    var rtc = Rtc.init(test_seconds);
    rtc.tick(ns_per_s - update_ns - 1);
    try std.testing.expectEqual(a_reset, get(&rtc, Register.a));
    rtc.tick(ns_per_s - update_ns);
    try std.testing.expectEqual(a_reset | a_update, get(&rtc, Register.a));
    rtc.tick(ns_per_s);
    try std.testing.expectEqual(a_reset, get(&rtc, Register.a));
    rtc.tick(2 * ns_per_s - 1);
    put(&rtc, Register.b, b_24_hours | b_set);
    try std.testing.expectEqual(a_reset, get(&rtc, Register.a));
}

test "update-ended interrupt: once a second, cleared by reading C, deadline at the update" {
    var rtc = Rtc.init(test_seconds);
    try std.testing.expectEqual(null, rtc.deadline(0));
    put(&rtc, Register.b, b_24_hours | update_ended);
    try std.testing.expectEqual(@as(?u64, ns_per_s), rtc.deadline(0));
    rtc.tick(ns_per_s - 1);
    try std.testing.expect(!rtc.irq());
    rtc.tick(ns_per_s);
    try std.testing.expect(rtc.irq());
    try std.testing.expectEqual(null, rtc.deadline(ns_per_s));
    const flags = get(&rtc, Register.c) & (c_request | update_ended);
    try std.testing.expectEqual(c_request | update_ended, flags);
    try std.testing.expect(!rtc.irq());
    try std.testing.expectEqual(@as(?u64, 2 * ns_per_s), rtc.deadline(ns_per_s));
    // Minutes late: one interrupt, not hundreds.
    rtc.tick(500 * ns_per_s);
    _ = get(&rtc, Register.c);
    try std.testing.expect(!rtc.irq());
    // SET turns it off.
    put(&rtc, Register.b, b_24_hours | update_ended | b_set);
    try std.testing.expectEqual(b_24_hours | b_set, get(&rtc, Register.b));
}

test "alarm: exact, with wildcards, across midnight, and impossible" {
    var rtc = Rtc.init(test_seconds);
    put(&rtc, Register.hours_alarm, 0x00);
    put(&rtc, Register.minutes_alarm, 0x01);
    put(&rtc, Register.seconds_alarm, 0x05);
    put(&rtc, Register.b, b_24_hours | alarm);
    try std.testing.expectEqual(@as(?u64, 67 * ns_per_s), rtc.deadline(0));
    rtc.tick(66 * ns_per_s);
    try std.testing.expect(!rtc.irq());
    rtc.tick(67 * ns_per_s);
    try std.testing.expect(rtc.irq());
    _ = get(&rtc, Register.c);
    try std.testing.expectEqual(@as(?u64, (67 + 86_400) * ns_per_s), rtc.deadline(67 * ns_per_s));
    put(&rtc, Register.hours_alarm, 0xff);
    put(&rtc, Register.minutes_alarm, 0xc0);
    try std.testing.expectEqual(@as(?u64, 127 * ns_per_s), rtc.deadline(67 * ns_per_s));
    put(&rtc, Register.minutes_alarm, 0x77);
    try std.testing.expectEqual(null, rtc.deadline(67 * ns_per_s));
    rtc.tick(200_000 * ns_per_s);
    try std.testing.expect(!rtc.irq());
}

test "periodic interrupt at 1024 Hz, at 2 Hz and off" {
    var rtc = Rtc.init(test_seconds);
    put(&rtc, Register.b, b_24_hours | periodic);
    const period = ns_per_s / 1024 + 1;
    try std.testing.expectEqual(@as(?u64, period), rtc.deadline(0));
    rtc.tick(period - 1);
    try std.testing.expect(!rtc.irq());
    rtc.tick(period);
    try std.testing.expect(rtc.irq());
    _ = get(&rtc, Register.c);
    put(&rtc, Register.a, a_divider_runs | 15);
    try std.testing.expectEqual(@as(?u64, ns_per_s / 2), rtc.deadline(period));
    put(&rtc, Register.a, a_divider_runs);
    try std.testing.expectEqual(null, rtc.deadline(period));
}

test "reset ends interrupts and keeps time and RAM" {
    var rtc = Rtc.init(test_seconds);
    put(&rtc, Register.b, b_24_hours | sources);
    put(&rtc, 0x0f, 0x0a);
    rtc.tick(3 * ns_per_s);
    try std.testing.expect(rtc.irq());
    rtc.reset();
    try std.testing.expect(!rtc.irq());
    try std.testing.expectEqual(@as(u8, 0x0a), get(&rtc, 0x0f));
    try std.testing.expectEqual(@as(u8, 0x01), get(&rtc, Register.seconds));
}

test "silly start times are brought into four-digit years" {
    var rtc = Rtc.init(std.math.maxInt(i64));
    try std.testing.expectEqual(@as(u8, 0x99), get(&rtc, Register.century));
    rtc.tick(std.math.maxInt(u64));
    try std.testing.expectEqual(@as(u8, 0x59), get(&rtc, Register.seconds));
    rtc = Rtc.init(std.math.minInt(i64));
    try std.testing.expectEqual(@as(u8, 0x00), get(&rtc, Register.century));
}

test "no sequence of accesses breaks it, and deadlines are kept" {
    var prng = std.Random.DefaultPrng.init(0x5eed_0003);
    const random = prng.random();
    var rtc = Rtc.init(test_seconds);
    var now: u64 = 0;
    for (0..100_000) |_| {
        // One jump of up to 5 years in a thousand; time may also stand still or come out of order.
        now +|= switch (random.uintLessThan(u32, 1000)) {
            0 => random.uintLessThan(u64, 5 * 365 * 86_400 * ns_per_s),
            1...200 => 0,
            else => random.uintLessThan(u64, 2 * ns_per_s),
        };
        rtc.tick(if (random.uintLessThan(u32, 50) == 0) now / 2 else now);
        const register: u8 = if (random.boolean()) random.uintLessThan(u8, 14) else random.int(u8);
        switch (random.uintLessThan(u32, 3)) {
            0 => _ = get(&rtc, register),
            1 => put(&rtc, register, random.int(u8)),
            else => if (rtc.deadline(now)) |at| {
                try std.testing.expect(at >= now);
                var ahead = rtc;
                ahead.tick(at);
                try std.testing.expect(ahead.irq());
            },
        }
    }
}
