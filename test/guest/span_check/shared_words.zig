//! Words that both sides use at once: counters (one of them across a page border), a record behind
//! a mutex, a token passed to and fro by futex. Nothing may be lost and nothing torn.

const std = @import("std");
const linux = std.os.linux;
const sides = @import("sides.zig");
const both = sides.both;
const cpus = sides.cpus;
const page_size = sides.page_size;
const report = sides.report;

/// Three pages: shared words on the first, and one word across the border of the others.
var arena: [4 * page_size]u8 align(page_size) = @splat(0);

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
    for (0..sides.options.rounds) |_| {
        if (sides.options.plant) {
            const seen = word(0).*;
            _ = linux.sched_yield();
            word(0).* = seen + 1;
        } else lockedIncrement(word(0));
        lockedIncrement(word(64 + 8 * @as(usize, side)));
        lockedIncrement(word(split_offset));
    }
}

pub fn counters() void {
    const rounds = sides.options.rounds;
    @memset(&arena, 0);
    both(countBoth);
    const expected = rounds * cpus;
    report("shared-counter", word(0).* == expected, rounds, expected -% word(0).*);
    const own = word(64).* == rounds and word(72).* == rounds;
    report("own-counters-one-page", own, rounds, word(64).* +% word(72).*);
    const split = word(split_offset).*;
    report("split-lock", split == expected, rounds, expected -% split);
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
    for (0..sides.options.rounds) |_| {
        lock();
        for (record) |value| {
            if (value != record[0]) _ = torn.fetchAdd(1, .monotonic);
        }
        for (&record) |*value| value.* += 1;
        unlock();
    }
}

pub fn mutexRecord() void {
    const rounds = sides.options.rounds;
    record = @splat(0);
    both(mutexSide);
    const good = torn.load(.seq_cst) == 0 and record[0] == rounds * cpus;
    report("mutex-record", good, rounds, rounds * cpus -% record[0] +% torn.load(.seq_cst));
}

var turn: std.atomic.Value(u32) align(page_size) = .init(0);

/// A round is two wake-ups of an idle CPU, each some hundred page transfers within the kernel: a
/// third of the rounds takes as long as all other checks of shared words together.
fn pingRounds() u64 {
    return @max(1, sides.options.rounds / 3);
}

fn pingSide(side: u32) void {
    for (0..pingRounds()) |_| {
        while (turn.load(.acquire) != side) wait(&turn, 1 - side);
        turn.store(1 - side, .release);
        wake(&turn);
    }
}

pub fn pingpong() void {
    turn.store(0, .seq_cst);
    both(pingSide);
    const left = turn.load(.seq_cst);
    report("futex-ping-pong", left == 0, pingRounds(), left);
}
