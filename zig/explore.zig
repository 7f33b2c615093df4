//! Longer explorations of the coherence protocol than the tests afford:
//! `zig run -O safe zig/explore.zig -- [--nodes N] [--pages N] [--operations N] [--evictions N]
//! [--hold] [--tables] [--states N]` and more: see usage. Ends with status 1, and the way there,
//! when something was found.

const std = @import("std");
const explorer = @import("dsm/explorer.zig");
const model = @import("dsm/model.zig");
const scenarios = @import("dsm/scenarios.zig");

const usage =
    \\explore: every interleaving of a small cluster
    \\  --nodes N       1 to 3 nodes with a vCPU (2)
    \\  --pages N       pages, with homes in turn (1)
    \\  --operations N  free loads and stores of each node's thread (3)
    \\  --hold          chains of faults hold their pages; deadlines pass at any time
    \\  --tables        the scenarios of replicated page tables instead
    \\  --evictions N   times each node may evict a page (0)
    \\  --slots N       its write-back slots (1)
    \\  --discards N    times each node may discard a page (0)
    \\  --marks N       with --tables: entries that each node's hardware may mark (0)
    \\  --memory N      memory nodes besides, 5 nodes in all at most (0)
    \\  --frames N      frames that each of them lends every home (1)
    \\  --copies N      copies of each page that a home pushes out (1)
    \\  --crashes N     memory nodes that crash (0)
    \\  --states N      give up beyond so many states (20000000)
    \\
;

pub fn main(init: std.process.Init) !void {
    var o: explorer.Options = .{};
    var tables = false;
    var args = init.minimal.args.iterate();
    _ = args.next();
    while (args.next()) |arg| {
        if (std.mem.eql(u8, arg, "--hold")) {
            o.hold_ns_max = 1;
        } else if (std.mem.eql(u8, arg, "--tables")) {
            tables = true;
        } else {
            const value = number(args.next()) orelse return refuse(arg);
            if (std.mem.eql(u8, arg, "--nodes") and value >= 1 and value <= 3) {
                o.nodes = @intCast(value);
            } else if (std.mem.eql(u8, arg, "--pages") and value >= 1 and value <= 3) {
                o.pages = @intCast(value);
            } else if (std.mem.eql(u8, arg, "--operations") and value >= 1 and value <= 20) {
                o.operations = @intCast(value);
            } else if (std.mem.eql(u8, arg, "--evictions") and value <= 20) {
                o.evictions = @intCast(value);
            } else if (std.mem.eql(u8, arg, "--slots") and value >= 1 and value <= 2) {
                o.slots = @intCast(value);
            } else if (std.mem.eql(u8, arg, "--discards") and value <= 20) {
                o.discards = @intCast(value);
            } else if (std.mem.eql(u8, arg, "--marks") and value <= 20) {
                o.marks = @intCast(value);
            } else if (std.mem.eql(u8, arg, "--memory") and value <= 3) {
                o.memory = @intCast(value);
            } else if (std.mem.eql(u8, arg, "--crashes") and value <= 3) {
                o.crashes = @intCast(value);
            } else if (std.mem.eql(u8, arg, "--frames") and value >= 1 and value <= 2) {
                o.frames = @intCast(value);
            } else if (std.mem.eql(u8, arg, "--copies") and value >= 1 and value <= 2) {
                o.frame_copies = @intCast(value);
            } else if (std.mem.eql(u8, arg, "--states")) {
                o.states_max = value;
            } else return refuse(arg);
        }
    }
    if (o.nodes + o.memory > model.nodes_max) return refuse("--memory");
    o.trace = true;
    if (o.nodes > 1) o.homes = &.{
        .{ .first_page = 0, .node = 0 },
        .{ .first_page = 1, .node = 1 },
        .{ .first_page = 2, .node = 0 },
    };
    if (!tables) return report("free operations", o);
    for (scenarios.tables, 0..) |t, i| {
        if (o.discards == 0 or i % 6 < 4) try report("two nodes", with(o, t));
    }
    for (scenarios.tables_of_three) |t| try report("three nodes", with(o, t));
}

/// A scenario with the evictions that were asked for.
fn with(o: explorer.Options, scenario: explorer.Options) explorer.Options {
    var s = scenario;
    s.evictions = o.evictions;
    s.slots = o.slots;
    s.discards = o.discards;
    // What a guest may discard: the table that goes out of use.
    s.discardable = .{ .page = scenarios.child };
    s.marks = o.marks;
    s.states_max = o.states_max;
    s.trace = true;
    return s;
}

fn number(text: ?[]const u8) ?u32 {
    return std.fmt.parseUnsigned(u32, text orelse return null, 10) catch null;
}

fn refuse(arg: []const u8) void {
    const words = "explore: {s}: not an option, or its value is out of range\n{s}";
    std.debug.print(words, .{ arg, usage });
    std.process.exit(64);
}

fn report(name: []const u8, o: explorer.Options) !void {
    const r = try explorer.Explorer(.none).run(std.heap.page_allocator, o);
    std.debug.print("{s}: {d} nodes, {d} pages: {d} states, {d} transitions, {d} quiet, " ++
        "depth {d}: {s}\n", .{
        name,          o.nodes, o.pages, r.states,
        r.transitions, r.quiet, r.depth,
        if (r.failure) |f| @errorName(f) else if (r.cut)
            "not exhaustive"
        else
            "nothing found",
    });
    if (r.failure != null) std.process.exit(1);
}
