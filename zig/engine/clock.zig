//! Guest clocks from the host's monotonic clock: APIC bus ticks (1 GHz) and the PM timer's
//! nanoseconds. With a dilation factor the guest's seconds are longer than ours (slow rigs only);
//! the reported TSC frequency is multiplied by the same factor, so all clocks agree.
//!
//! A freeze of the VM holds this clock and the guest's TSC: what it lasted is taken off both. The
//! shard's thread holds, subtracts and releases; everybody reads. `walltime` is never held: it is
//! the battery clock on the board, which goes on while the machine stands still, so that a guest
//! can set its time of day from it.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("../base/sys.zig");

/// Of `Clock.state`: the clock stands, the other bits are where; else they are what to take off.
const held_bit: u64 = 1 << 63;
/// About to stand.
const holding = std.math.maxInt(u64);

pub const Clock = struct {
    start_ns: u64,
    dilation: u32,
    /// One word, so that a reader never mixes two states: held at, or nanoseconds taken off so far.
    state: std.atomic.Value(u64) = .init(0),
    /// Where the clock stood last: it shows nothing earlier.
    floor_ns: std.atomic.Value(u64) = .init(0),
    /// Nanoseconds and TSC ticks taken off so far.
    off_ns: std.atomic.Value(u64) = .init(0),
    off_ticks: std.atomic.Value(u64) = .init(0),
    /// Times something was taken off: whoever armed a timer or a TSC offset compares.
    changes: std.atomic.Value(u32) = .init(0),

    pub fn init(dilation: u32) Clock {
        return .{ .start_ns = sys.monotonicNs(), .dilation = @max(dilation, 1) };
    }

    /// Guest nanoseconds since start; also APIC bus ticks at 1 GHz.
    pub fn now(self: *const Clock) u64 {
        return self.at(sys.monotonicNs()) / self.dilation;
    }

    /// At `raw_ns` of the host's clock, which was read before this looks at the state: a reader
    /// that is held up in between shows the past, never a time that a hold has cut off.
    fn at(self: *const Clock, raw_ns: u64) u64 {
        var state = self.state.load(.seq_cst);
        while (state == holding) : (state = self.state.load(.seq_cst)) _ = linux.sched_yield();
        if (state & held_bit != 0) return state & ~held_bit;
        return @max(raw_ns -| self.start_ns -| state, self.floor_ns.load(.seq_cst));
    }

    /// Host monotonic time at which the guest's clock reaches `guest_ns`, unless it is held before.
    pub fn hostTime(self: *const Clock, guest_ns: u64) u64 {
        return self.hostWalltime(guest_ns) +| self.off_ns.load(.seq_cst);
    }

    /// As now() and hostTime(), held by nothing.
    pub fn walltime(self: *const Clock) u64 {
        return (sys.monotonicNs() -| self.start_ns) / self.dilation;
    }

    pub fn hostWalltime(self: *const Clock, guest_ns: u64) u64 {
        return self.start_ns +| guest_ns *| self.dilation;
    }

    /// The clock stands until release().
    pub fn hold(self: *Clock) void {
        const off = self.state.swap(holding, .seq_cst);
        std.debug.assert(off & held_bit == 0);
        // Read now: nobody who still found the clock running has seen a later time.
        const elapsed = sys.monotonicNs() -| self.start_ns -| off;
        const held = @max(elapsed, self.floor_ns.load(.seq_cst));
        // Before the state: who sees the clock run again sees where it stood.
        self.floor_ns.store(held, .seq_cst);
        self.state.store(held | held_bit, .seq_cst);
    }

    /// Takes TSC ticks and the time they are off; the clock is held.
    pub fn subtract(self: *Clock, ticks: u64, tsc_khz: u32) void {
        const ns = @as(u128, ticks) * std.time.ns_per_ms / @max(tsc_khz, 1);
        _ = self.off_ns.fetchAdd(@truncate(ns), .seq_cst);
        _ = self.off_ticks.fetchAdd(ticks, .seq_cst);
    }

    pub fn release(self: *Clock) void {
        self.state.store(self.off_ns.load(.seq_cst) & ~held_bit, .seq_cst);
        _ = self.changes.fetchAdd(1, .seq_cst);
    }
};

/// The host's time-stamp counter, after every load before it (SDM vol. 2, RDTSC).
pub fn readTsc() u64 {
    var low: u32 = undefined;
    var high: u32 = undefined;
    asm volatile ("lfence; rdtsc"
        : [low] "={eax}" (low),
          [high] "={edx}" (high),
    );
    return @as(u64, high) << 32 | low;
}

const testing = std.testing;

test "dilation stretches the guest's time and inverts" {
    const clock: Clock = .{ .start_ns = 1000, .dilation = 20 };
    try testing.expectEqual(@as(u64, 1000 + 20 * 50), clock.hostTime(50));
    try testing.expectEqual(std.math.maxInt(u64), clock.hostTime(std.math.maxInt(u64) - 1));
}

test "a held clock stands, goes on where it stood, and never goes back" {
    var clock: Clock = .{ .start_ns = 1000, .dilation = 1 };
    try testing.expectEqual(@as(u64, 500), clock.at(1500));
    clock.hold();
    const held = clock.now();
    try testing.expectEqual(held, clock.at(0));
    // Less than the hold lasted: another node's guest ran longer.
    clock.subtract(2_000_000, 2_000_000);
    try testing.expectEqual(held, clock.now());
    const raw = sys.monotonicNs();
    clock.release();
    try testing.expectEqual(@as(u64, std.time.ns_per_ms), clock.off_ns.load(.seq_cst));
    try testing.expectEqual(@as(u32, 1), clock.changes.load(.seq_cst));
    const expected = raw + std.time.ns_per_s - 1000 - std.time.ns_per_ms;
    try testing.expectEqual(expected, clock.at(raw + std.time.ns_per_s));
    // Whoever read the host's clock before the hold sees no time before it.
    try testing.expectEqual(held, clock.at(1500));
    try testing.expect(clock.walltime() >= raw - 1000);
    // A deadline moves by what was taken off.
    try testing.expectEqual(expected, clock.at(clock.hostTime(expected)));
}

test "ticks become nanoseconds without overflow" {
    var clock: Clock = .{ .start_ns = 0, .dilation = 1 };
    clock.subtract(2_596_134_000 * 3600 * 24 * 30, 2_596_134);
    const month: u64 = 3600 * 24 * 30 * std.time.ns_per_s;
    try testing.expectEqual(month, clock.off_ns.load(.seq_cst));
}

test "readers beside a thread that holds and releases see time go forward" {
    const Flag = std.atomic.Value(u32);
    const Reader = struct {
        fn run(clock: *const Clock, done: *Flag, back: *Flag) void {
            var last: u64 = 0;
            while (done.load(.seq_cst) == 0) {
                const time = clock.now();
                if (time < last) _ = back.fetchAdd(1, .seq_cst);
                last = time;
            }
        }
    };
    var clock = Clock.init(1);
    var done: Flag = .init(0);
    var back: Flag = .init(0);
    var threads: [2]std.Thread = undefined;
    for (&threads) |*t| t.* = try std.Thread.spawn(.{}, Reader.run, .{ &clock, &done, &back });
    for (0..2000) |_| {
        const before = sys.monotonicNs();
        clock.hold();
        _ = linux.sched_yield();
        // A little more than the hold has lasted: then the clock waits where it stood.
        clock.subtract(sys.monotonicNs() -| before, 1_000_000);
        clock.release();
    }
    done.store(1, .seq_cst);
    for (threads) |t| t.join();
    try testing.expectEqual(@as(u32, 0), back.load(.seq_cst));
}
