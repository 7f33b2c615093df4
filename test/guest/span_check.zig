//! Runs inside a guest of two NUMA nodes: threads pinned to a CPU of each do what shared memory
//! must get right: `span_check [counters|mutex|pingpong|fill|all] [--rounds N] [--mib N]
//! [--plant]` One line a check, exit status 1 when anything was lost. --plant counts without
//! atomicity, to show that the counters can fail.

const std = @import("std");
const linux = std.os.linux;

const page_size = 4096;
const cpus = 2;

var rounds: u64 = 300;
var mib: usize = 4;
var plant = false;
var failed = false;

/// Three pages: shared words on the first, and one word across the border of the others.
var arena: [4 * page_size]u8 align(page_size) = @splat(0);
var barrier: std.atomic.Value(u32) = .init(0);

fn pin(cpu: usize) void {
    var set: linux.cpu_set_t = @splat(0);
    set[cpu / 64] = @as(usize, 1) << @intCast(cpu % 64);
    linux.sched_setaffinity(0, &set) catch {
        std.debug.print("span-check: cannot run on CPU {d}: FAILED\n", .{cpu});
        std.process.exit(2);
    };
}

/// Runs `work(side)` on both CPUs at once and waits for both.
fn both(comptime work: fn (u32) void) void {
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
    for (&threads, 0..) |*t, side| {
        const number_of: u32 = @intCast(side);
        t.* = std.Thread.spawn(.{ .stack_size = 65536 }, Side.run, .{number_of}) catch {
            std.debug.print("span-check: no thread: FAILED\n", .{});
            std.process.exit(2);
        };
    }
    for (threads) |t| t.join();
}

fn report(name: []const u8, good: bool, detail: u64) void {
    if (!good) failed = true;
    const verdict = if (good) "ok" else "FAILED";
    const values = .{ name, verdict, rounds, detail };
    std.debug.print("span-check: {s} {s} rounds={d} detail={d}\n", values);
}

fn word(offset: usize) *align(1) volatile u64 {
    return @ptrCast(&arena[offset]);
}

/// `lock incq`, also where the word crosses a page: a split lock.
fn lockedIncrement(address: *align(1) volatile u64) void {
    asm volatile ("lock incq (%[p])"
        :
        : [p] "r" (address),
        : .{ .memory = true });
}

const split_offset = 2 * page_size - 4;

fn countBoth(side: u32) void {
    for (0..rounds) |_| {
        if (plant) {
            const seen = word(0).*;
            _ = linux.sched_yield();
            word(0).* = seen + 1;
        } else lockedIncrement(word(0));
        lockedIncrement(word(64 + 8 * @as(usize, side)));
        lockedIncrement(word(split_offset));
    }
}

fn counters() void {
    @memset(&arena, 0);
    both(countBoth);
    const expected = rounds * cpus;
    report("shared-counter", word(0).* == expected, expected -% word(0).*);
    const own = word(64).* == rounds and word(72).* == rounds;
    report("own-counters-one-page", own, word(64).* +% word(72).*);
    report("split-lock", word(split_offset).* == expected, expected -% word(split_offset).*);
}

/// 0 free, 1 held, 2 held with waiters.
var mutex: std.atomic.Value(u32) align(page_size) = .init(0);
var record: [8]u64 align(page_size) = @splat(0);
var torn: std.atomic.Value(u64) = .init(0);

fn lock() void {
    if (mutex.cmpxchgStrong(0, 1, .acquire, .monotonic) == null) return;
    while (mutex.swap(2, .acquire) != 0) wait(&mutex, 2);
}

fn unlock() void {
    if (mutex.swap(0, .release) == 2) wake(&mutex);
}

fn wait(address: *const std.atomic.Value(u32), expected: u32) void {
    _ = linux.futex_4arg(&address.raw, .{ .cmd = .WAIT, .private = true }, expected, null);
}

fn wake(address: *const std.atomic.Value(u32)) void {
    _ = linux.futex_3arg(&address.raw, .{ .cmd = .WAKE, .private = true }, 1);
}

fn mutexSide(_: u32) void {
    for (0..rounds) |_| {
        lock();
        for (record) |value| {
            if (value != record[0]) _ = torn.fetchAdd(1, .monotonic);
        }
        for (&record) |*value| value.* += 1;
        unlock();
    }
}

fn mutexCheck() void {
    record = @splat(0);
    both(mutexSide);
    const good = torn.load(.seq_cst) == 0 and record[0] == rounds * cpus;
    report("mutex-record", good, rounds * cpus -% record[0] +% torn.load(.seq_cst));
}

var turn: std.atomic.Value(u32) align(page_size) = .init(0);

fn pingSide(side: u32) void {
    for (0..rounds) |_| {
        while (turn.load(.acquire) != side) wait(&turn, 1 - side);
        turn.store(1 - side, .release);
        wake(&turn);
    }
}

fn pingpong() void {
    turn.store(0, .seq_cst);
    both(pingSide);
    report("futex-ping-pong", turn.load(.seq_cst) == 0, turn.load(.seq_cst));
}

var filled: []align(page_size) u64 = &.{};
var mismatches: u64 = 0;

/// splitmix64 of the index: no two words alike, no page zero.
fn pattern(index: usize, seed: u64) u64 {
    var z = (index + 1) *% 0x9e37_79b9_7f4a_7c15 +% seed;
    z = (z ^ (z >> 30)) *% 0xbf58_476d_1ce4_e5b9;
    z = (z ^ (z >> 27)) *% 0x94d0_49bb_1331_11eb;
    return z ^ (z >> 31);
}

fn write(seed: u64) void {
    for (filled, 0..) |*value, i| value.* = pattern(i, seed);
}

fn verify(seed: u64) void {
    for (filled, 0..) |value, i| {
        if (value == pattern(i, seed)) continue;
        mismatches += 1;
        if (mismatches > 3) continue;
        std.debug.print("span-check: word {d}: {x}, not {x}\n", .{ i, value, pattern(i, seed) });
    }
}

fn fillOn(side: u32, comptime work: fn (u64) void, seed: u64) void {
    const Runner = struct {
        fn run(cpu: u32, s: u64) void {
            pin(cpu);
            work(s);
        }
    };
    const thread = std.Thread.spawn(.{}, Runner.run, .{ side, seed }) catch {
        std.debug.print("span-check: no thread: FAILED\n", .{});
        std.process.exit(2);
    };
    thread.join();
}

fn fill() void {
    filled = std.heap.page_allocator.alignedAlloc(u64, .fromByteUnits(page_size), mib << 17) catch {
        return report("fill", false, mib);
    };
    fillOn(0, write, 1);
    fillOn(1, verify, 1);
    fillOn(1, write, 2);
    fillOn(0, verify, 2);
    report("fill-both-ways", mismatches == 0, mismatches);
}

fn number(text: ?[]const u8) u64 {
    return std.fmt.parseInt(u64, text orelse "", 10) catch {
        std.debug.print("span-check: not a number\n", .{});
        std.process.exit(2);
    };
}

pub fn main(init: std.process.Init.Minimal) void {
    var which: []const u8 = "all";
    var arguments = init.args.iterate();
    _ = arguments.next();
    while (arguments.next()) |argument| {
        if (std.mem.eql(u8, argument, "--rounds")) {
            rounds = number(arguments.next());
        } else if (std.mem.eql(u8, argument, "--mib")) {
            mib = number(arguments.next());
        } else if (std.mem.eql(u8, argument, "--plant")) {
            plant = true;
        } else which = argument;
    }
    const all = std.mem.eql(u8, which, "all");
    var known = all;
    const checks = .{
        .counters = counters,
        .mutex = mutexCheck,
        .pingpong = pingpong,
        .fill = fill,
    };
    inline for (@typeInfo(@TypeOf(checks)).@"struct".field_names) |name| {
        if (all or std.mem.eql(u8, which, name)) {
            known = true;
            @field(checks, name)();
        }
    }
    if (!known) std.debug.print("span-check: no check is called {s}\n", .{which});
    if (known and !failed) std.debug.print("span-check: all ok\n", .{});
    std.process.exit(if (known and !failed) 0 else 1);
}
