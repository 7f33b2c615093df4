//! The seeded simulator: `make sim SECONDS=60`, or
//! `zig run -O safe zig/simulate.zig -lc -- [--seconds N] [--schedules N] [--seed N] [--nodes N]`.
//! The first seed is printed first. What is found is shrunk and printed as a line that replays it:
//! `... -- replay LINE [--trace]`. Ends with status 1 when something was found.

const std = @import("std");
const sys = @import("base/sys.zig");
const batch = @import("sim/batch.zig");
const Config = @import("sim/config.zig").Config;
const fiber = @import("sim/fiber.zig");
const schedule = @import("sim/schedule.zig");
const shrink = @import("sim/shrink.zig");

const usage =
    \\simulate: random schedules of the production core and shell, with faults
    \\  --seconds N     how long (10)
    \\  --schedules N   or how many
    \\  --seed N        the first schedule's seed (from the clock)
    \\  --nodes N       nodes of every schedule (by seed: 2 to 48)
    \\simulate replay FLAGS [--trace]: the one schedule of such a line, event by event
    \\
;

/// Where panics go while a schedule runs (sim/fiber.zig).
pub threadlocal var panic_trap: ?*const fn (words: []const u8) noreturn = null;
pub const panic = std.debug.FullPanic(onPanic);
var shows_panics = false;

fn onPanic(words: []const u8, return_address: ?usize) noreturn {
    if (panic_trap) |trap| {
        if (shows_panics) std.debug.dumpCurrentStackTrace(.{ .first_address = return_address });
        trap(words);
    }
    std.debug.defaultPanic(words, return_address);
}

/// Schedules that the shrinker may run.
const shrink_budget = 20_000;

pub fn main(init: std.process.Init.Minimal) !void {
    var args = init.args.iterate();
    _ = args.next();
    var options: batch.Options = .{
        .first_seed = sys.monotonicNs() ^ @as(u64, @intCast(sys.realtimeSeconds())) << 20,
    };
    while (args.next()) |arg| {
        if (std.mem.eql(u8, arg, "replay")) return replay(&args);
        const value = number(args.next()) orelse return refuse(arg);
        if (std.mem.eql(u8, arg, "--seconds")) {
            options.seconds = value;
        } else if (std.mem.eql(u8, arg, "--schedules")) {
            options.schedules = value;
        } else if (std.mem.eql(u8, arg, "--seed")) {
            options.first_seed = value;
        } else if (std.mem.eql(u8, arg, "--nodes") and value >= 2 and value <= 48) {
            options.nodes = @intCast(value);
        } else return refuse(arg);
    }
    if (options.schedules == std.math.maxInt(u64) and options.seconds == null) {
        options.seconds = 10;
    }
    std.debug.print("simulator: first seed {d}\n", .{options.first_seed});
    const result = try batch.run(.none, options);
    try show(&result);
    if (result.found) |found| try reportFound(found);
}

fn show(result: *const batch.Result) !void {
    var buffer: [2048]u8 = undefined;
    var w: std.Io.Writer = .fixed(&buffer);
    try batch.print(result, &w);
    std.debug.print("{s}", .{w.buffered()});
}

fn reportFound(found: batch.Found) !void {
    std.debug.print("simulator: found {t}: {s}\n  {f}\n", .{
        found.finding.kind, found.finding.words(), found.config,
    });
    var runner: schedule.Runner = try .init();
    var shrinker: shrink.Shrinker(.none) = .{
        .runner = &runner,
        .planted = .{},
        .found = .{ .config = found.config, .finding = found.finding },
        .budget = shrink_budget,
    };
    const small = shrinker.run();
    std.debug.print("simulator: the smallest that finds it: {s}\n  make sim REPLAY='{f}'\n", .{
        small.finding.words(), small.config,
    });
    std.process.exit(1);
}

fn replay(args: anytype) !void {
    var config: Config = .{ .seed = 0 };
    var is_traced = false;
    while (args.next()) |flag| {
        if (std.mem.eql(u8, flag, "--trace")) {
            is_traced = true;
            continue;
        }
        config.parseFlag(flag, args.next() orelse "") catch return refuse(flag);
    }
    config = config.sound();
    std.debug.print("simulator: replay {f}\n", .{config});
    var runner: schedule.Runner = try .init();
    shows_panics = true;
    const outcome = runner.run(.none, config, .{}, is_traced);
    var result: batch.Result = .{ .counters = outcome.counters };
    try show(&result);
    const found = outcome.finding orelse {
        std.debug.print("simulator: nothing found\n", .{});
        return;
    };
    std.debug.print("simulator: found {t}: {s}\n", .{ found.kind, found.words() });
    std.process.exit(1);
}

fn number(text: ?[]const u8) ?u64 {
    return std.fmt.parseUnsigned(u64, text orelse return null, 0) catch null;
}

fn refuse(arg: []const u8) void {
    const words = "simulate: {s}: not an option, or its value is out of range\n{s}";
    std.debug.print(words, .{ arg, usage });
    std.process.exit(64);
}
