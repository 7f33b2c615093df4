//! Forward progress: on each of two nodes one instruction needs twelve pages writable at the same
//! time, and takes them in the opposite order of the other node's. Without holds they take them
//! from each other for ever; with holds each runs its instructions in a bounded number of messages.
//! The same for three nodes with two pages, where an older chain can have to wait behind a younger
//! one's transaction that a third chain holds up.

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

const nodes_max = model_file.nodes_max;

const Outcome = struct {
    done: [nodes_max]u32 = @splat(0),
    messages: u64 = 0,
    deferred: u64 = 0,
    hurries: u64 = 0,
};

/// The pages that each node's instructions need, in this order.
const Orders = []const []const u8;

const opposite: Orders = &.{
    &.{ 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 },
    &.{ 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0 },
};

fn simulate(hold_ns_max: u64, orders: Orders, seed: ?u64) !Outcome {
    const a = std.testing.allocator;
    var m: Model = try .init(&.{ a, a, a }, .{
        .nodes = @intCast(orders.len),
        .pages = pages,
        .homes = &.{ .{ .first_page = 0, .node = 0 }, .{ .first_page = pages / 2, .node = 1 } },
        .hold_ns_max = hold_ns_max,
    });
    defer m.deinit();
    var prng: std.Random.DefaultPrng = .init(seed orelse 0);
    var outcome: Outcome = .{};
    const done = outcome.done[0..orders.len];
    while (m.messages < messages_max and std.mem.min(u32, done) < instructions) {
        m.now += unit_ns;
        for (0..orders.len) |n| {
            for (0..orders.len) |from| {
                const late = if (seed == null) false else prng.random().uintLessThan(u8, 4) == 0;
                if (!late and m.lanes[from][n].count > 0) try m.deliver(from, n);
            }
            const deadline = m.cores[n].nextDeadline() orelse continue;
            if (deadline <= m.now) try m.step(n, .{ .tick = .{ .now = m.now } });
        }
        for (orders, done, 0..) |order, *d, n| {
            if (d.* < instructions) try attempt(&m, n, order, d);
        }
    }
    outcome.messages = m.messages;
    for (m.cores[0..orders.len]) |*core| {
        outcome.deferred += core.stats.revokes_deferred;
        outcome.hurries += core.stats.hurries;
    }
    return outcome;
}

/// The instruction runs if all its pages are there, else it faults on the first that is not.
fn attempt(m: *Model, n: usize, order: []const u8, done: *u32) !void {
    const machine = &m.machines[n];
    if (machine.thread.blocked) return;
    for (order) |page| {
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

fn expectDone(orders: Orders, outcome: Outcome) !void {
    for (outcome.done[0..orders.len]) |d| try std.testing.expectEqual(@as(u32, instructions), d);
}

test "instructions with opposite page orders complete with holds, and starve without" {
    const held = try simulate(1_000_000, opposite, null);
    try expectDone(opposite, held);
    try std.testing.expect(held.deferred > 0);
    const free = try simulate(0, opposite, null);
    try std.testing.expect(free.done[0] < instructions or free.done[1] < instructions);
    std.debug.print("livelock: {d} + {d} instructions in {d} messages with holds, " ++
        "{d} + {d} in {d} without\n", .{
        held.done[0], held.done[1], held.messages, free.done[0], free.done[1], free.messages,
    });
}

test "and with messages that come late now and then" {
    for (0..32) |seed| {
        const held = try simulate(1_000_000, opposite, seed);
        errdefer std.debug.print("seed {d}\n", .{seed});
        try expectDone(opposite, held);
    }
}

test "three nodes: nobody waits for ever behind a younger chain's transaction" {
    var hurries: u64 = 0;
    const every: []const Orders = &.{
        &.{ &.{ 0, 1 }, &.{ 1, 0 }, &.{ 0, 1 } },
        &.{ &.{ 0, 1 }, &.{ 0, 1 }, &.{ 1, 0 } },
        &.{ &.{ 6, 0 }, &.{ 0, 6 }, &.{ 6, 0 } },
        &.{ &.{ 0, 6, 1 }, &.{ 6, 1, 0 }, &.{ 1, 0, 6 } },
    };
    for (every, 0..) |orders, i| for (0..64) |seed| {
        const held = try simulate(1_000_000, orders, seed);
        errdefer std.debug.print("orders {d}, seed {d}\n", .{ i, seed });
        try expectDone(orders, held);
        hurries += held.hurries;
    };
    try std.testing.expect(hurries > 0);
}
