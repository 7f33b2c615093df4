//! The guest's clock as programs see it: both sides read it all the time, for as many of its
//! milliseconds as there are rounds, and tell each other every one of them. Says the longest time
//! between two reads, and fails when the clock went back, on one side or from one to the other.

const std = @import("std");
const linux = std.os.linux;
const sides = @import("sides.zig");

/// Two hosts agree on the time within half a round trip of their lane.
const skew_ns_max = 100 * std.time.ns_per_us;

/// What each side last told: one page, which goes to and fro.
var told: [sides.cpus]std.atomic.Value(u64) align(sides.page_size) = @splat(.init(0));
var gap: [sides.cpus]u64 = undefined;
var back: [sides.cpus]u64 = undefined;
var behind: [sides.cpus]u64 = undefined;

fn now() u64 {
    var ts: linux.timespec = undefined;
    _ = linux.clock_gettime(.MONOTONIC, &ts);
    return @as(u64, @intCast(ts.sec)) * std.time.ns_per_s + @as(u64, @intCast(ts.nsec));
}

fn watch(side: u32) void {
    const began = now();
    var last = began;
    var exchanged = began;
    // One planted step back.
    var planted: u64 = if (sides.options.plant and side == 0) std.time.ns_per_ms else 0;
    while (last - began < sides.options.rounds * std.time.ns_per_ms) {
        const time = now() - planted;
        planted = 0;
        if (time < last) back[side] += 1 else gap[side] = @max(gap[side], time - last);
        last = @max(last, time);
        if (last - exchanged < std.time.ns_per_ms) continue;
        exchanged = last;
        const theirs = told[1 - side].load(.seq_cst);
        const after = now();
        behind[side] = @max(behind[side], theirs -| after);
        told[side].store(after, .seq_cst);
    }
}

pub fn clock() void {
    gap = @splat(0);
    back = @splat(0);
    behind = @splat(0);
    for (&told) |*t| t.store(0, .seq_cst);
    sides.say("clock began", .{});
    sides.both(watch);
    for (0..sides.cpus) |side| {
        sides.say("clock side={d} gap_us={d} back={d} behind_ns={d}", .{
            side, gap[side] / std.time.ns_per_us, back[side], behind[side],
        });
    }
    const steps = back[0] + back[1];
    const skew = @max(behind[0], behind[1]);
    sides.report("clock", steps == 0 and skew <= skew_ns_max, sides.options.rounds, steps);
}
