//! Runs inside a guest of two NUMA nodes: threads pinned to a CPU of each do what shared memory
//! must get right. `span_check [counters|mutex|pingpong|churn|fill|all|clock|device|timer]
//! [--rounds N] [--mib N | --share P] [--plant] [--node-dir DIR]`; device and timer are for guests
//! only, no part of all.
//! One line a check (one a node and side for fill), exit status 1 when anything was lost, 2 when a
//! check cannot run. Fill takes N MiB in all, or as much of every node as brings P percent of its
//! memory into use. Clock lasts as many milliseconds as rounds, no part of all. --plant counts
//! without atomicity, steps a clock back, and gets words and an exit code wrong, to show that the
//! checks can fail; --node-dir replaces /sys/devices/system/node.

const std = @import("std");
const clock = @import("span_check/clock.zig");
const churn = @import("span_check/churn.zig");
const device = @import("span_check/device.zig");
const fill = @import("span_check/fill.zig");
const shared_words = @import("span_check/shared_words.zig");
const sides = @import("span_check/sides.zig");
const timer = @import("span_check/timer.zig");

const checks = .{
    .counters = shared_words.counters,
    .mutex = shared_words.mutexRecord,
    .pingpong = shared_words.pingpong,
    .churn = churn.churn,
    .fill = fill.fill,
};

fn number(option: []const u8, text: ?[]const u8, max: u64) u64 {
    const value = std.fmt.parseInt(u64, text orelse "", 10) catch max + 1;
    if (value > max) sides.fatal("{s} takes a number up to {d}", .{ option, max });
    return value;
}

fn parse(process_arguments: std.process.Args) []const u8 {
    var which: []const u8 = "all";
    const options = &sides.options;
    var arguments = process_arguments.iterate();
    _ = arguments.next();
    while (arguments.next()) |argument| {
        if (std.mem.eql(u8, argument, "--rounds")) {
            options.rounds = number(argument, arguments.next(), std.math.maxInt(u32));
        } else if (std.mem.eql(u8, argument, "--mib")) {
            options.mib = number(argument, arguments.next(), 1 << 20);
        } else if (std.mem.eql(u8, argument, "--share")) {
            options.share = number(argument, arguments.next(), 100);
        } else if (std.mem.eql(u8, argument, "--node-dir")) {
            const folder = arguments.next();
            options.node_dir = folder orelse sides.fatal("--node-dir takes a folder", .{});
        } else if (std.mem.eql(u8, argument, "--plant")) {
            options.plant = true;
        } else which = argument;
    }
    if (options.mib != null and options.share != null)
        sides.fatal("--mib or --share, not both", .{});
    return which;
}

pub fn main(init: std.process.Init.Minimal) void {
    const which = parse(init.args);
    const all = std.mem.eql(u8, which, "all");
    var known = all;
    if (std.mem.eql(u8, which, "device")) {
        known = true;
        device.device();
    }
    inline for (@typeInfo(@TypeOf(checks)).@"struct".field_names) |name| {
        if (all or std.mem.eql(u8, which, name)) {
            known = true;
            @field(checks, name)();
        }
    }
    if (std.mem.eql(u8, which, "clock")) {
        known = true;
        clock.clock();
    }
    if (std.mem.eql(u8, which, "timer")) {
        known = true;
        timer.timer();
    }
    if (!known) sides.say("no check is called {s}", .{which});
    if (known and !sides.failed) sides.say("all ok", .{});
    std.process.exit(if (known and !sides.failed) 0 else 1);
}
