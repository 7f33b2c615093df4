//! The simulator on itself: a schedule replays exactly, the kept regressions stay silent, planted
//! faults are found within a bounded number of schedules and shrink, and 100,000 schedules of the
//! code as it is find nothing.

const std = @import("std");
const batch = @import("batch.zig");
const config_file = @import("config.zig");
const Config = config_file.Config;
const Fault = config_file.Fault;
const finding = @import("finding.zig");
const schedule = @import("schedule.zig");
const Planted = schedule.Planted;
const shrink = @import("shrink.zig");

const testing = std.testing;

/// The code as it is: SSIHV_SCHEDULES of them, 100,000 unless said.
const default_schedules = 100_000;
const first_seed = 1;

/// Schedules within which a planted fault must be found.
const planted_max = 3000;

fn show(result: *const batch.Result) !void {
    var buffer: [2048]u8 = undefined;
    var w: std.Io.Writer = .fixed(&buffer);
    try batch.print(result, &w);
    std.debug.print("{s}", .{w.buffered()});
}

test "the same configuration is the same schedule" {
    var runner: schedule.Runner = try .init();
    defer runner.deinit();
    for (0..200) |seed| {
        const config = Config.fromSeed(seed);
        const first = runner.run(.none, config, .{}, false);
        const second = runner.run(.none, config, .{}, false);
        try testing.expect(first.finding == null and second.finding == null);
        try testing.expect(std.meta.eql(first.counters, second.counters));
        try testing.expectEqual(first.now, second.now);
    }
}

test "kept regressions find nothing any more" {
    var runner: schedule.Runner = try .init();
    defer runner.deinit();
    var lines = std.mem.tokenizeScalar(u8, @embedFile("regressions.txt"), '\n');
    var count: usize = 0;
    while (lines.next()) |line| {
        const config = try Config.parseLine(line) orelse continue;
        const outcome = runner.run(.none, config, .{}, false);
        count += 1;
        const found = outcome.finding orelse continue;
        std.debug.print("simulator: found again {t}: {s}\n  {f}\n", .{
            found.kind, found.words(), config,
        });
        return error.FoundAgain;
    }
    try testing.expect(count > 0);
}

fn finds(name: []const u8, planted: Planted) !void {
    const result = try batch.run(.chosen, .{
        .first_seed = first_seed,
        .schedules = planted_max,
        .planted = planted,
    });
    const found = result.found orelse {
        std.debug.print("simulator: planted and not found: {s}\n", .{name});
        return error.NotFound;
    };
    var runner: schedule.Runner = try .init();
    defer runner.deinit();
    var shrinker: shrink.Shrinker(.chosen) = .{
        .runner = &runner,
        .planted = planted,
        .found = .{ .config = found.config, .finding = found.finding },
        .budget = 1500,
    };
    const small = shrinker.run();
    std.debug.print("simulator: {s}: found after {d} schedules as {t}: {f}\n", .{
        name, found.config.seed - first_seed + 1, small.finding.kind, small.config,
    });
    // What was shrunk finds it again.
    const again = runner.run(.chosen, small.config, planted, false);
    try testing.expectEqual(small.finding.kind, again.finding.?.kind);
}

test "faults planted in the core are found" {
    try finds("early grant", .{ .core = .early_grant });
    try finds("acks counted twice", .{ .core = .ack_twice });
    try finds("stale upgrade", .{ .core = .stale_upgrade });
    try finds("owner changes under a forward", .{ .core = .owner_change });
    try finds("a freed table stays replicated", .{ .core = .keep_orphan });
    try finds("a put acknowledged and not taken", .{ .core = .lost_put });
    try finds("a frame freed too early", .{ .core = .frame_early });
    try finds("a discard that does not wait", .{ .core = .discard_early });
    try finds("a change of owner keeps the version", .{ .core = .version_kept });
}

test "faults planted in the shell are found" {
    try finds("copy before protect", .{ .environment = .copied_early });
    try finds("forgotten wake", .{ .environment = .wake_forgotten });
    try finds("EEXIST taken for success", .{ .environment = .exists_is_done });
    try finds("diff after the message", .{ .shell = .late_diff });
    try finds("nobody waits for diffs to arrive", .{ .shell = .no_gate });
    try finds("EAGAIN taken for success", .{ .environment = .again_is_done });
    try finds("vCPUs always thought at rest", .{ .environment = .always_at_rest });
    try finds("a frame comes twice", .{ .environment = .lane_repeats });
    try finds("a frame never comes", .{ .environment = .lane_loses });
    try finds("a node goes on alone", .{ .environment = .goes_on });
}

test "schedules of the code as it is find nothing" {
    const text = testing.environ.getPosix("SSIHV_SCHEDULES");
    const count = if (text) |t| try std.fmt.parseUnsigned(u64, t, 10) else default_schedules;
    std.debug.print("simulator: first seed {d}\n", .{first_seed});
    const result = try batch.run(.none, .{ .first_seed = first_seed, .schedules = count });
    try show(&result);
    if (result.found) |found| {
        std.debug.print("simulator: found {t}: {s}\n  make sim REPLAY='{f}'\n", .{
            found.finding.kind, found.finding.words(), found.config,
        });
        return error.Found;
    }
    // Whatever is not injected is not tested.
    for (std.enums.values(Fault)) |fault| {
        if (fault == .small_lane) continue;
        try testing.expect(result.counters.injected[@backingInt(fault)] > 0);
    }
    const c = &result.counters;
    try testing.expect(c.held_back > 0 and c.replicated > 0);
    try testing.expect(c.evicted > 0 and c.stored > 0 and c.loaded > 0 and c.memory_lost > 0);
    try testing.expect(c.ends_told > 0);
    try testing.expect(c.emptied > 0 and c.refusals > 0 and c.freed > 0);
    // Some silences part nodes, others are sat out.
    try testing.expect(c.parted > 0 and c.silences > c.parted and c.freezes > 0);
}
