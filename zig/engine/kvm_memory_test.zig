//! Whether the memory of several virtual machines is one memory: payload guests (test_guest.zig) on
//! two to four engines, whose pagers are the production ones (test_cluster.zig). Counters, litmus
//! shapes and random accesses; the same with lanes cut all the time, and where the CPU is scarce.
//! After each of them the audit of directory, page states and the kernel's own page table.
//! SSIHV_ITERATIONS says how many iterations (test_litmus.zig) a shape gets in each place, 100,000
//! unless said; across two pages, where each costs several page moves, a twentieth of that.

const std = @import("std");
const testing = std.testing;
const litmus = @import("test_litmus.zig");
const Litmus = litmus.Litmus;
const loads = @import("test_loads.zig");
const payload = @import("test_payload.zig");
const rig_file = @import("test_rig.zig");
const Rig = rig_file.Rig;
const Tally = rig_file.Tally;
const Weather = rig_file.Weather;
const sabotage = @import("test_sabotage.zig");
const starve = @import("test_starve.zig");

const us = std.time.ns_per_us;

/// Engines of a test, in turn.
const engines = [_]u8{ 2, 3, 4 };

fn counters(weather: Weather) !Tally {
    const rounds = @max(1, try weather.iterations() / engines.len);
    var tally: Tally = .{};
    for (engines) |nodes| {
        var rig: Rig = undefined;
        try rig.start(.{
            .nodes = nodes,
            .vcpus = nodes,
            .pages_per_node = loads.Counting.pages_per_node,
            .hold_ns_max = 100 * us,
            .weather = weather,
        });
        const counting = rig.guests.create(loads.Counting);
        counting.* = .{ .stage = rig.stage(nodes), .rounds = rounds };
        try rig.guests.run(nodes, counting, loads.Counting.work);
        const missing = counting.missing();
        try rig.finish(&tally);
        try testing.expectEqual(@as(u64, 0), missing);
    }
    std.debug.print("counters: {d} increments a guest, ", .{3 * rounds});
    tally.tell();
    try testing.expect(tally.remote_faults > rounds / 1000);
    return tally;
}

fn random(weather: Weather) !Tally {
    const rounds = @max(1, try weather.iterations() / engines.len);
    var tally: Tally = .{};
    for (engines, [_]u64{ 0, 100 * us, 1000 * us }) |nodes, hold_ns_max| {
        var rig: Rig = undefined;
        try rig.start(.{
            .nodes = nodes,
            .vcpus = nodes,
            .pages_per_node = 4,
            .hold_ns_max = hold_ns_max,
            .weather = weather,
        });
        const checker = rig.guests.create(loads.Random);
        checker.stage = rig.stage(nodes);
        checker.pages = 4 * @as(usize, nodes);
        checker.rounds = rounds;
        checker.seed = testing.random_seed;
        try rig.guests.run(nodes, checker, loads.Random.work);
        const wrong = checker.wrong.load(.acquire);
        const missing = checker.missing();
        try rig.finish(&tally);
        try testing.expectEqual([2]u64{ 0, 0 }, .{ wrong, missing });
    }
    std.debug.print("random accesses: {d} a guest, ", .{2 * rounds});
    tally.tell();
    try testing.expect(tally.remote_faults > rounds / 1000);
    return tally;
}

/// What all engines together saw of a shape in one place.
const Summary = struct {
    tally: Tally = .{},
    iterations: u64 = 0,
    rounds: u64 = 0,
    outcomes: [16]u64 = @splat(0),
    forbidden: u64 = 0,
    impossible: u64 = 0,

    fn add(self: *Summary, l: *const Litmus) void {
        self.iterations += l.iterations();
        self.rounds += l.rounds;
        for (&self.outcomes, l.outcomes) |*sum, n| sum.* += n;
        self.forbidden += l.forbidden;
        self.impossible += l.impossible;
    }

    fn distinct(self: *const Summary) usize {
        var count: usize = 0;
        for (self.outcomes) |n| count += @intFromBool(n > 0);
        return count;
    }

    fn tell(self: *const Summary, shape: *const litmus.Shape, place: litmus.Place) void {
        std.debug.print("{s} {t}: {d} iterations, ", .{ shape.name, place, self.iterations });
        for (self.outcomes, 0..) |n, outcome| {
            if (n > 0) std.debug.print("{s} {d}, ", .{ shape.outcomeName(outcome), n });
        }
        if (shape.relaxed) std.debug.print("both old {d} (allowed), ", .{self.forbidden});
        self.tally.tell();
    }
};

/// A shape in one place on `nodes` engines: in crowds, then one instance at a time.
fn litmusOn(
    nodes: u8,
    hold_ns_max: u64,
    shape: litmus.Shape,
    place: litmus.Place,
    wanted: u64,
    weather: Weather,
    sum: *Summary,
) !void {
    const crowd = place.instancesMax();
    // On the last two nodes, so that with three and four the homes are not the first threads'.
    const pages_per_node: u32 = @intCast((place.pages(crowd) + 1) / 2);
    const base = (@as(usize, nodes) - 2) * pages_per_node * payload.page_size;
    var rig: Rig = undefined;
    try rig.start(.{
        .nodes = nodes,
        .vcpus = shape.threads,
        .pages_per_node = pages_per_node,
        .hold_ns_max = hold_ns_max,
        .weather = weather,
    });
    const crowds = (wanted + crowd - 1) / crowd;
    const singles = (wanted + 63) / 64;
    var first: u64 = 0;
    for ([_]Mode{
        .{ .instances = crowd, .rounds = crowds, .delay_bits = 16 },
        .{ .instances = 1, .rounds = singles, .delay_bits = 6 },
    }) |mode| {
        const context = rig.guests.create(Litmus);
        context.* = .{
            .stage = rig.stage(shape.threads),
            .shape = shape,
            .place = place,
            .base = base,
            .first = first,
            .rounds = mode.rounds,
            .instances = mode.instances,
            .delay_bits = mode.delay_bits,
            .seed = testing.random_seed,
        };
        try rig.guests.run(shape.threads, context, Litmus.work);
        sum.add(context);
        first += mode.rounds;
    }
    try rig.finish(&sum.tally);
}

const Mode = struct { instances: usize, rounds: u64, delay_bits: u6 };

fn shapes(weather: Weather) !Tally {
    var all: Tally = .{};
    for (std.enums.values(litmus.Place), 0..) |place, p| for (place.shapes(), 0..) |shape, s| {
        const part: u64 = if (place == .split) 20 else 1;
        const each = @max(1, try weather.iterations() / part);
        // A locked instruction needs its two pages together, so each must stay for a while.
        const holds: [3]u64 = if (place == .split)
            .{ 50 * us, 200 * us, 1000 * us }
        else
            .{ 0, 50 * us, 1000 * us };
        var sum: Summary = .{};
        for (engines, 0..) |nodes, n| {
            const hold_ns_max = holds[(n + s + p) % holds.len];
            try litmusOn(nodes, hold_ns_max, shape, place, each / 3 + 1, weather, &sum);
        }
        sum.tell(&shape, place);
        try testing.expectEqual(@as(u64, 0), sum.impossible);
        if (!shape.relaxed) try testing.expectEqual(@as(u64, 0), sum.forbidden);
        try testing.expect(sum.iterations >= each);
        // Each round took a page from somebody; among so many the threads did meet.
        try testing.expect(sum.tally.remote_faults >= sum.rounds);
        if (sum.iterations >= 5000) try testing.expect(sum.distinct() > 1);
        all.add(&sum.tally);
    };
    return all;
}

test "counters, shared, in one page and across two pages, miss no increment" {
    try rig_file.needKvm();
    _ = try counters(.{});
}

test "no litmus shape shows what x86-TSO forbids" {
    try rig_file.needKvm();
    _ = try shapes(.{});
}

test "random accesses see what x86-TSO allows and nothing else" {
    try rig_file.needKvm();
    _ = try random(.{});
}

test "the same while lanes are cut and resumed all the time" {
    try rig_file.needKvm();
    const weather: Weather = .{ .cut = true, .divide = 10, .iterations_max = 100_000 };
    var all = try counters(weather);
    all.add(&try shapes(weather));
    all.add(&try random(weather));
    std.debug.print("lanes: {d} cuts, {d} ends resumed\n", .{ all.cuts, all.resumed });
    try testing.expect(all.cuts > 50);
    try testing.expect(all.resumed > all.cuts);
    try testing.expect(all.resent > all.cuts / 100);
}

test "the same where nodes keep half of the pages, and a memory node the rest" {
    try rig_file.needKvm();
    const weather: Weather = .{ .half = true, .divide = 20, .iterations_max = 50_000 };
    var all = try counters(weather);
    all.add(&try shapes(weather));
    all.add(&try random(weather));
    try testing.expect(all.evicted > all.remote_faults / 10);
}

fn scarce(how: starve.How) !void {
    try rig_file.needKvm();
    var burners: starve.Starve = undefined;
    try burners.start(how);
    const weather: Weather = .{ .divide = 100, .iterations_max = 10_000 };
    _ = try counters(weather);
    _ = try shapes(weather);
    _ = try random(weather);
    try burners.stop();
}

test "the same with every CPU busy" {
    try scarce(.burners);
}

test "the same on one busy CPU" {
    try scarce(.one_cpu);
}

/// Counters over a pager that leaves out the write-protection, and what the audit says of it then.
const Sabotaged = struct {
    const waiting = -1;
    const none = -2;

    listener: std.atomic.Value(i32) = .init(waiting),
    missing: u64 = 0,
    outcome: anyerror!void = {},

    fn run(self: *Sabotaged) void {
        const listener = sabotage.leaveOutWriteProtection() catch |e| {
            self.outcome = e;
            return self.listener.store(none, .release);
        };
        self.listener.store(listener, .release);
        self.outcome = self.count();
    }

    fn count(self: *Sabotaged) !void {
        var rig: Rig = undefined;
        try rig.start(.{ .nodes = 2, .vcpus = 2, .pages_per_node = 2, .hold_ns_max = 100 * us });
        const counting = rig.guests.create(loads.Counting);
        counting.* = .{ .stage = rig.stage(2), .rounds = 50_000 };
        try rig.guests.run(2, counting, loads.Counting.work);
        self.missing = counting.missing();
        var tally: Tally = .{};
        return rig.finish(&tally);
    }
};

test "a pager that copies a page before it protects it loses increments, and the audit sees it" {
    try rig_file.needKvm();
    var sabotaged: Sabotaged = .{};
    const thread = try std.Thread.spawn(.{}, Sabotaged.run, .{&sabotaged});
    while (sabotaged.listener.load(.acquire) == Sabotaged.waiting) try std.Thread.yield();
    const listener = sabotaged.listener.load(.acquire);
    if (listener != Sabotaged.none) sabotage.holdUp(listener);
    thread.join();
    // The pages that missing() has read are shared, and none of them is protected.
    try testing.expectError(error.MappingWrong, sabotaged.outcome);
    std.debug.print("as expected without protection: {d} increments missing\n", .{
        sabotaged.missing,
    });
    try testing.expect(sabotaged.missing > 0);
}
