//! Processes that come and go on both nodes at once: each side forks children that move to the
//! other CPU, so page tables are copied, built up and torn down where the parent is not. What a
//! child wrote in the shared page and its exit code must reach the parent.

const std = @import("std");
const linux = std.os.linux;
const sides = @import("sides.zig");
const page_size = sides.page_size;

/// A child costs hundreds of page transfers: far fewer of them than of the other checks' rounds.
const rounds_per_child = 30;

const page_words = page_size / @sizeOf(u64);
const mapped_pages = 4;

/// Each mapping in a GiB of its own, where nothing else is: tables of three levels come and go.
const mapping_base = 16 << 40;
const mapping_stride = 1 << 30;
const mapping_places = 64;

/// Exit codes of a child; the good one depends on the round.
const cannot_move = 1;
const stack_wrong = 2;
const cannot_map = 3;
const mapping_wrong = 4;
const cannot_unmap = 5;
const token_wrong = 6;
const good_base = 32;

/// One a side. In the first word the parent's token, in the others the child's answer.
var shared: [sides.cpus]*[page_words]u64 = undefined;
var wrong: std.atomic.Value(u64) = .init(0);

fn childCount() u64 {
    return @max(1, sides.options.rounds / rounds_per_child);
}

pub fn churn() void {
    for (&shared) |*page| {
        const address = map(.SHARED, null, page_size) orelse sides.fatal("no shared page", .{});
        page.* = @ptrFromInt(address);
    }
    sides.both(churnSide);
    for (shared) |page| _ = linux.munmap(@ptrCast(page), page_size);
    const count = wrong.load(.seq_cst);
    sides.report("churn", count == 0, childCount(), count);
}

fn map(sharing: linux.MAP_TYPE, hint: ?[*]u8, bytes: u64) ?usize {
    const flags: linux.MAP = .{ .TYPE = sharing, .ANONYMOUS = true };
    const address = linux.mmap(hint, bytes, .{ .READ = true, .WRITE = true }, flags, -1, 0);
    return if (linux.errno(address) == .SUCCESS) address else null;
}

fn churnSide(side: u32) void {
    for (0..childCount()) |child| {
        const token = sides.pattern(child, side);
        shared[side].* = @splat(0);
        shared[side][0] = token;
        const forked = linux.fork();
        if (linux.errno(forked) != .SUCCESS) sides.fatal("fork: {t}", .{linux.errno(forked)});
        if (forked == 0) linux.exit_group(runChild(side, child, token));
        checkChild(side, child, token, waitFor(@intCast(forked)));
    }
}

/// The good exit code of a child, different from that of its neighbours on both sides.
fn goodCode(side: u32, child: u64) u8 {
    return @intCast(good_base + (child * sides.cpus + side) % 128);
}

/// In the child: nothing here may take a lock, for the thread that holds it does not exist.
fn runChild(side: u32, child: u64, token: u64) u8 {
    if (!sides.moveTo(sides.cpus - 1 - side)) return cannot_move;
    const page: *volatile [page_words]u64 = shared[side];
    if (page[0] != token) return token_wrong;
    var stack: [2 * page_words]u64 = undefined;
    if (!writeAndReadBack(&stack, token)) return stack_wrong;
    // Twice: the second mapping gets its tables where the first gave them back.
    for (0..2) |again| {
        const place = (child * 2 + again) % mapping_places * sides.cpus + side;
        const hint: [*]u8 = @ptrFromInt(mapping_base + place * mapping_stride);
        const address = map(.PRIVATE, hint, mapped_pages * page_size) orelse return cannot_map;
        const words: *[mapped_pages * page_words]u64 = @ptrFromInt(address);
        if (!writeAndReadBack(words, token +% again)) return mapping_wrong;
        const unmapped = linux.munmap(@ptrCast(words), mapped_pages * page_size);
        if (linux.errno(unmapped) != .SUCCESS) return cannot_unmap;
    }
    for (1..page_words) |i| page[i] = sides.pattern(i, token);
    const planted = sides.options.plant and side == 0 and child == 0;
    return goodCode(side, child) + @intFromBool(planted);
}

/// Volatile, so that the words go to memory and come from there.
fn writeAndReadBack(words: []volatile u64, seed: u64) bool {
    for (words, 0..) |*word, i| word.* = sides.pattern(i, seed);
    for (words, 0..) |*word, i| {
        if (word.* != sides.pattern(i, seed)) return false;
    }
    return true;
}

/// Wait status of the child.
fn waitFor(child: linux.pid_t) u32 {
    var status: i32 = undefined;
    while (true) {
        const waited = linux.waitpid(child, &status, 0);
        switch (linux.errno(waited)) {
            .SUCCESS => return @bitCast(status),
            .INTR => continue,
            else => |code| sides.fatal("wait: {t}", .{code}),
        }
    }
}

fn checkChild(side: u32, child: u64, token: u64, status: u32) void {
    const good = goodCode(side, child);
    if (!linux.W.IFEXITED(status) or linux.W.EXITSTATUS(status) != good) {
        const values = .{ child, side, status, good };
        lost("child {d} of side {d}: wait status 0x{x}, not exit {d}", values);
    }
    const page: *volatile [page_words]u64 = shared[side];
    var words: u64 = 0;
    for (1..page_words) |i| words += @intFromBool(page[i] != sides.pattern(i, token));
    if (words > 0) {
        lost("child {d} of side {d}: {d} words of the shared page wrong", .{ child, side, words });
    }
}

fn lost(comptime format: []const u8, values: anytype) void {
    _ = wrong.fetchAdd(1, .monotonic);
    sides.say(format, values);
}
