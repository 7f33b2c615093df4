//! Forward progress: on each of two nodes one instruction needs twelve pages writable at the same
//! time, and takes them in the opposite order of the other node's. Without holds they take them
//! from each other for ever; with holds each runs its instructions in a bounded number of messages.

const std = @import("std");
const model_file = @import("model.zig");
const Model = model_file.Model(.none);

const pages = 12;
const instructions = 40;
/// Time of a message or of a wake.
const unit_ns = 1000;
/// 24 faults a pair of instructions at most if nothing is taken away early, 3 messages each, and
/// as many again for what is.
const messages_max = instructions * 24 * 3 * 2;

const Outcome = struct { done: [2]u32, messages: u64, deferred: u64 };

fn simulate(hold_ns_max: u64, seed: ?u64) !Outcome {
    const a = std.testing.allocator;
    var m: Model = try .init(&.{ a, a }, .{
        .nodes = 2,
        .pages = pages,
        .homes = &.{ .{ .first_page = 0, .node = 0 }, .{ .first_page = pages / 2, .node = 1 } },
        .hold_ns_max = hold_ns_max,
    });
    defer m.deinit();
    var prng: std.Random.DefaultPrng = .init(seed orelse 0);
    var done: [2]u32 = @splat(0);
    while (m.messages < messages_max and (done[0] < instructions or done[1] < instructions)) {
        m.now += unit_ns;
        for (0..2) |n| {
            const late = if (seed == null) false else prng.random().uintLessThan(u8, 4) == 0;
            if (!late and m.lanes[1 - n][n].count > 0) try m.deliver(1 - n, n);
            const deadline = m.cores[n].nextDeadline() orelse continue;
            if (deadline <= m.now) try m.step(n, .{ .tick = .{ .now = m.now } });
        }
        for (0..2) |n| {
            if (done[n] < instructions) try attempt(&m, n, &done[n]);
        }
    }
    const stats = .{ m.cores[0].stats, m.cores[1].stats };
    return .{
        .done = done,
        .messages = m.messages,
        .deferred = stats[0].revokes_deferred + stats[1].revokes_deferred,
    };
}

/// The instruction runs if all its pages are there, else it faults on the first that is not.
fn attempt(m: *Model, n: usize, done: *u32) !void {
    const machine = &m.machines[n];
    if (machine.thread.blocked) return;
    for (0..pages) |i| {
        const page: u8 = @intCast(if (n == 0) i else pages - 1 - i);
        if (machine.present[page] and machine.writable[page]) continue;
        machine.thread.blocked = true;
        machine.thread.op = .{ .kind = .store, .page = page };
        return m.step(n, .{ .fault = .{
            .page = page,
            .write = true,
            .thread = 0,
            .now = m.now,
        } });
    }
    done.* += 1;
}

test "instructions with opposite page orders complete with holds, and starve without" {
    const held = try simulate(1_000_000, null);
    try std.testing.expectEqual([2]u32{ instructions, instructions }, held.done);
    try std.testing.expect(held.deferred > 0);
    const free = try simulate(0, null);
    try std.testing.expect(free.done[0] < instructions or free.done[1] < instructions);
    std.debug.print("livelock: {d} + {d} instructions in {d} messages with holds, " ++
        "{d} + {d} in {d} without\n", .{
        held.done[0], held.done[1], held.messages, free.done[0], free.done[1], free.messages,
    });
}

test "and with messages that come late now and then" {
    for (0..32) |seed| {
        const held = try simulate(1_000_000, seed);
        errdefer std.debug.print("seed {d}\n", .{seed});
        try std.testing.expectEqual([2]u32{ instructions, instructions }, held.done);
    }
}
