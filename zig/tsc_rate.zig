//! Prints this machine's TSC rate in kHz, for the lab: ticks against the kernel's own clock.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("base/sys.zig");
const readTsc = @import("engine/clock.zig").readTsc;

const while_ns = 50 * std.time.ns_per_ms;
/// Of so many readings the one in which least time went by between the two clocks.
const tries = 200;

const Reading = struct { ticks: u64, ns: u64 };

fn read() Reading {
    var best: Reading = undefined;
    var least: u64 = std.math.maxInt(u64);
    for (0..tries) |_| {
        const before = readTsc();
        const ns = sys.monotonicNs();
        const took = readTsc() - before;
        if (took >= least) continue;
        least = took;
        best = .{ .ticks = before + took / 2, .ns = ns };
    }
    return best;
}

pub fn main() void {
    const first = read();
    sys.pause(while_ns);
    const last = read();
    const khz = (last.ticks - first.ticks) * std.time.ns_per_ms / (last.ns - first.ns);
    var buffer: [24]u8 = undefined;
    const text = std.fmt.bufPrint(&buffer, "{d}\n", .{khz}) catch unreachable;
    _ = linux.write(1, text.ptr, text.len);
}
