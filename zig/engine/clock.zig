//! The guest's clocks. Its TSC is the host's plus an offset, the same time on every node (link.zig,
//! steer.zig), and the PM timer is made of it: a guest may read that on one node and then on
//! another. APIC bus ticks (1 GHz) are of one vCPU alone, and come from the host's monotonic clock,
//! which timers are armed by. With a dilation factor the guest's seconds are longer than ours (slow
//! rigs only); the reported TSC frequency is multiplied by the same factor, so all clocks agree.
//!
//! A freeze of the VM holds all of them: what it lasted is taken off. The shard's thread holds,
//! subtracts, releases and advances; everybody reads. `walltime` is never held: it is the battery
//! clock on the board, which goes on while the machine stands still, so that a guest can set its
//! time of day from it.

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
    tsc_khz: u32,
    /// Guest TSC = host TSC + this - `off_ticks`.
    offset: std.atomic.Value(u64) = .init(0),
    /// One word, so that a reader never mixes two states: held at, or nanoseconds taken off so far.
    state: std.atomic.Value(u64) = .init(0),
    /// Where the clock stood last: it shows nothing earlier.
    floor_ns: std.atomic.Value(u64) = .init(0),
    /// The same of the guest's TSC, where something else than the guest reads it.
    floor_ticks: std.atomic.Value(u64) = .init(0),
    /// Nanoseconds and TSC ticks taken off so far.
    off_ns: std.atomic.Value(u64) = .init(0),
    off_ticks: std.atomic.Value(u64) = .init(0),
    /// Times the guest's TSC moved against the host's: whoever armed a timer or a TSC offset
    /// compares.
    changes: std.atomic.Value(u32) = .init(0),

    /// The guest's TSC starts at zero.
    pub fn init(dilation: u32, tsc_khz: u32) Clock {
        return .{
            .start_ns = sys.monotonicNs(),
            .dilation = @max(dilation, 1),
            .tsc_khz = @max(tsc_khz, 1),
            .offset = .init(0 -% readTsc()),
        };
    }

    /// The guest's TSC without what freezes took off: what nodes compare.
    pub fn steadyTsc(self: *const Clock) u64 {
        return readTsc() +% self.offset.load(.seq_cst);
    }

    /// What KVM is to add to the host's TSC.
    pub fn tscOffset(self: *const Clock) u64 {
        return self.offset.load(.seq_cst) -% self.off_ticks.load(.seq_cst);
    }

    /// Guest nanoseconds by the guest's TSC, as one that every node has: of the PM timer.
    pub fn machineTime(self: *const Clock) u64 {
        const ns = @as(u128, self.ticksAt(self.steadyTsc())) * std.time.ns_per_ms;
        return @truncate(ns / self.tsc_khz / self.dilation);
    }

    /// At a steadyTsc(), as at().
    fn ticksAt(self: *const Clock, steady: u64) u64 {
        const is_held = self.settledState() & held_bit != 0;
        const ticks = steady -| self.off_ticks.load(.seq_cst);
        // Read last: what a hold took off since then, it did after it had raised the floor.
        const floor = self.floor_ticks.load(.seq_cst);
        return if (is_held) floor else @max(ticks, floor);
    }

    /// Guest nanoseconds since start; also APIC bus ticks at 1 GHz.
    pub fn now(self: *const Clock) u64 {
        return self.at(sys.monotonicNs()) / self.dilation;
    }

    /// At `raw_ns` of the host's clock, which was read before this looks at the state: a reader
    /// that is held up in between shows the past, never a time that a hold has cut off.
    fn at(self: *const Clock, raw_ns: u64) u64 {
        const state = self.settledState();
        if (state & held_bit != 0) return state & ~held_bit;
        return @max(raw_ns -| self.start_ns -| state, self.floor_ns.load(.seq_cst));
    }

    fn settledState(self: *const Clock) u64 {
        while (true) {
            const state = self.state.load(.seq_cst);
            if (state != holding) return state;
            _ = linux.sched_yield();
        }
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
        const ticks = self.steadyTsc() -| self.off_ticks.load(.seq_cst);
        self.floor_ticks.store(@max(ticks, self.floor_ticks.load(.seq_cst)), .seq_cst);
        self.state.store(held | held_bit, .seq_cst);
    }

    /// Takes TSC ticks and the time they are off; the clock is held.
    pub fn subtract(self: *Clock, ticks: u64) void {
        const ns = @as(u128, ticks) * std.time.ns_per_ms / self.tsc_khz;
        _ = self.off_ns.fetchAdd(@truncate(ns), .seq_cst);
        _ = self.off_ticks.fetchAdd(ticks, .seq_cst);
    }

    pub fn release(self: *Clock) void {
        self.state.store(self.off_ns.load(.seq_cst) & ~held_bit, .seq_cst);
        _ = self.changes.fetchAdd(1, .seq_cst);
    }

    /// Moves the guest's TSC forward: another host's crystal is faster. While no vCPU executes, so
    /// that none is ahead of another.
    pub fn advance(self: *Clock, ticks: u64) void {
        _ = self.offset.fetchAdd(ticks, .seq_cst);
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
    const clock: Clock = .{ .start_ns = 1000, .dilation = 20, .tsc_khz = 1 };
    try testing.expectEqual(@as(u64, 1000 + 20 * 50), clock.hostTime(50));
    try testing.expectEqual(std.math.maxInt(u64), clock.hostTime(std.math.maxInt(u64) - 1));
}

test "a held clock stands, goes on where it stood, and never goes back" {
    var clock: Clock = .{ .start_ns = 1000, .dilation = 1, .tsc_khz = 2_000_000 };
    try testing.expectEqual(@as(u64, 500), clock.at(1500));
    clock.hold();
    const held = clock.now();
    try testing.expectEqual(held, clock.at(0));
    // Less than the hold lasted: another node's guest ran longer.
    clock.subtract(2_000_000);
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
    var clock: Clock = .{ .start_ns = 0, .dilation = 1, .tsc_khz = 2_596_134 };
    clock.subtract(2_596_134_000 * 3600 * 24 * 30);
    const month: u64 = 3600 * 24 * 30 * std.time.ns_per_s;
    try testing.expectEqual(month, clock.off_ns.load(.seq_cst));
}

test "the machine's time stands in a hold, goes on where it stood, and is moved forward" {
    var clock = Clock.init(2, 1_000_000);
    clock.offset.store(5000 -% readTsc(), .seq_cst);
    try testing.expect(clock.machineTime() >= 2500);
    try testing.expectEqual(@as(u64, 7000), clock.ticksAt(7000));
    clock.hold();
    const stood = clock.ticksAt(0);
    try testing.expect(stood >= 5000);
    try testing.expectEqual(stood, clock.ticksAt(1 << 60));
    try testing.expectEqual(stood / 2, clock.machineTime());
    clock.subtract(1000);
    clock.release();
    // It was held for less than that: it waits.
    try testing.expectEqual(stood, clock.ticksAt(stood + 900));
    try testing.expectEqual(stood + 100, clock.ticksAt(stood + 1100));
    const offset = clock.tscOffset();
    clock.advance(300);
    try testing.expectEqual(offset +% 300, clock.tscOffset());
    try testing.expectEqual(@as(u32, 2), clock.changes.load(.seq_cst));
    // More than there was: the guest's TSC does not go below where it began.
    clock.hold();
    clock.subtract(1 << 62);
    clock.release();
    try testing.expectEqual(clock.floor_ticks.load(.seq_cst), clock.ticksAt(1 << 61));
}

test "readers beside a thread that holds and releases see time go forward" {
    const Flag = std.atomic.Value(u32);
    const Reader = struct {
        fn run(clock: *const Clock, done: *Flag, back: *Flag) void {
            var last: [2]u64 = @splat(0);
            while (done.load(.seq_cst) == 0) {
                const times = .{ clock.now(), clock.machineTime() };
                inline for (times, &last) |time, *before| {
                    if (time < before.*) _ = back.fetchAdd(1, .seq_cst);
                    before.* = time;
                }
            }
        }
    };
    var clock = Clock.init(1, 1_000_000);
    var done: Flag = .init(0);
    var back: Flag = .init(0);
    var threads: [2]std.Thread = undefined;
    for (&threads) |*t| t.* = try std.Thread.spawn(.{}, Reader.run, .{ &clock, &done, &back });
    for (0..2000) |_| {
        const before = sys.monotonicNs();
        const ticks = readTsc();
        clock.hold();
        _ = linux.sched_yield();
        // A little more than the hold has lasted: then the clock waits where it stood.
        clock.subtract(@max(sys.monotonicNs() -| before, readTsc() - ticks));
        clock.release();
        clock.advance(7);
    }
    done.store(1, .seq_cst);
    for (threads) |t| t.join();
    try testing.expectEqual(@as(u32, 0), back.load(.seq_cst));
}
