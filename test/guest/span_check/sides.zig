//! What every check needs: the options, threads pinned to the CPU of a side, the line of a verdict.
//! Side 0 is CPU 0 and side 1 is CPU 1: one of each node in the guest, any two natively.

const std = @import("std");
const linux = std.os.linux;

pub const page_size = 4096;
pub const cpus = 2;

pub const Options = struct {
    rounds: u64 = 300,
    mib: ?u64 = null,
    /// Percent of each node's MemTotal that `fill` brings into use, instead of `mib`.
    share: ?u64 = null,
    plant: bool = false,
    /// Where the kernel says which nodes there are and how much memory they have.
    node_dir: []const u8 = "/sys/devices/system/node",
};

/// Set once by main, before any check runs.
pub var options: Options = .{};
pub var failed = false;

/// Says why no check can go on, and ends the program.
pub fn fatal(comptime format: []const u8, values: anytype) noreturn {
    std.debug.print("span-check: " ++ format ++ ": FAILED\n", values);
    std.process.exit(2);
}

pub fn say(comptime format: []const u8, values: anytype) void {
    std.debug.print("span-check: " ++ format ++ "\n", values);
}

pub fn report(name: []const u8, good: bool, rounds: u64, detail: u64) void {
    if (!good) failed = true;
    const verdict = if (good) "ok" else "FAILED";
    say("{s} {s} rounds={d} detail={d}", .{ name, verdict, rounds, detail });
}

/// False when the kernel refuses. Prints nothing: a forked child must not take the lock of stderr.
pub fn moveTo(cpu: usize) bool {
    var set: linux.cpu_set_t = @splat(0);
    set[cpu / 64] = @as(usize, 1) << @intCast(cpu % 64);
    linux.sched_setaffinity(0, &set) catch return false;
    return true;
}

/// Of this thread only.
pub fn allowPorts(first: u16, count: u16) void {
    const allowed = linux.syscall3(.ioperm, first, count, 1);
    if (linux.errno(allowed) != .SUCCESS)
        fatal("ioperm for port 0x{x}: {t}", .{ first, linux.errno(allowed) });
}

pub fn pin(cpu: usize) void {
    if (!moveTo(cpu)) fatal("cannot run on CPU {d}", .{cpu});
}

fn start(comptime run: fn (u32) void, side: u32) std.Thread {
    return std.Thread.spawn(.{ .stack_size = 65536 }, run, .{side}) catch |reason|
        fatal("no thread for side {d}: {t}", .{ side, reason });
}

var barrier: std.atomic.Value(u32) = .init(0);

/// Runs `work(side)` on both CPUs at once and waits for both.
pub fn both(comptime work: fn (u32) void) void {
    barrier.store(0, .seq_cst);
    const Side = struct {
        fn run(side: u32) void {
            pin(side);
            _ = barrier.fetchAdd(1, .seq_cst);
            while (barrier.load(.seq_cst) < cpus) _ = linux.sched_yield();
            work(side);
        }
    };
    var threads: [cpus]std.Thread = undefined;
    for (&threads, 0..) |*t, side| t.* = start(Side.run, @intCast(side));
    for (threads) |t| t.join();
}

/// Runs `work(side)` on one CPU after the other.
pub fn inTurn(comptime work: fn (u32) void) void {
    const Side = struct {
        fn run(side: u32) void {
            pin(side);
            work(side);
        }
    };
    for (0..cpus) |side| start(Side.run, @intCast(side)).join();
}

/// splitmix64 of place and seed: no two words with one seed alike, no page zero.
pub fn pattern(place: u64, seed: u64) u64 {
    var z = (place +% 1) *% 0x9e37_79b9_7f4a_7c15 +% seed;
    z = (z ^ (z >> 30)) *% 0xbf58_476d_1ce4_e5b9;
    z = (z ^ (z >> 27)) *% 0x94d0_49bb_1331_11eb;
    return z ^ (z >> 31);
}
