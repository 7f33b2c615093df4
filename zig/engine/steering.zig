//! Keeping this node's guest TSC with the other hosts' (the rule: steer.zig), on the shard's
//! thread: when to ask, the messages, the steps. Nodes on node 0's host share its TSC and need no
//! question: they take its offset, before anything that node 0 sends after its step. Costs no
//! message while a VM is on one host, and at most sixteen a second and node otherwise. Its messages
//! pass by whatever waits for page-table entries.

const std = @import("std");
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const steer = @import("steer.zig");
const Clock = @import("clock.zig").Clock;
const Shell = @import("pager.zig").Shell;
const Engine = @import("../engine.zig").Engine;

const period_ns = 500 * std.time.ns_per_ms;
/// Longest wait for vCPUs to leave the guest before a step: one in a fault that the shard does not
/// know of yet executes nothing either.
const leave_ns_max = 2 * std.time.ns_per_ms;
/// Between two looks whether they have.
const look_ns = 20 * std.time.ns_per_us;
/// A step is never longer, and one that long is told: no crystal is so wrong. A host's TSC that
/// leaps is followed in such steps.
const step_max_ms = 100;

const Kind = enum(u8) {
    /// To node 0.
    question = 1,
    /// From it: its TSC (`a`) and all that it has stepped by (`b`).
    answer = 2,
    /// To node 0: when it had stepped by `b`, it was behind the sender by so many ticks (`a`), for
    /// certain.
    behind = 3,
    /// From it: its offset by now (`a`).
    stepped = 4,
    _,
};

/// As span.zig's other messages: `op` first, 40 bytes.
pub const Wire = extern struct {
    op: u8,
    kind: u8,
    pad: u16 = 0,
    number: u32 = 0,
    a: u64 = 0,
    b: u64 = 0,
    unused: [2]u64 = @splat(0),
};

/// Of an engine; tests have other clocks and lanes.
pub const Production = struct {
    engine: *Engine,
    shell: *Shell,

    pub fn node(self: Production) u8 {
        return @intCast(self.engine.config.node);
    }

    /// Nodes with vCPUs.
    pub fn computeNodes(self: Production) u64 {
        return self.engine.config.compute_nodes;
    }

    pub fn sharesTsc(self: Production) bool {
        return self.engine.link.shares_tsc;
    }

    pub fn clock(self: Production) *Clock {
        return &self.engine.clock;
    }

    pub fn steadyTsc(self: Production) u64 {
        return self.engine.clock.steadyTsc();
    }

    pub fn stats(self: Production) *abi.EngineStats {
        return &self.engine.shared.stats;
    }

    /// Out of the guest with all vCPUs for that: one may not read what another has yet to see.
    pub fn advance(self: Production, ticks: u64) void {
        const freezer = &self.engine.span.?.freezer.?;
        self.engine.parking.hold(.step);
        self.engine.kickAll();
        const began = sys.monotonicNs();
        while (!freezer.isOut() and sys.monotonicNs() - began < leave_ns_max) sys.pause(look_ns);
        self.engine.clock.advance(ticks);
        self.engine.parking.release(.step);
    }

    pub fn send(self: Production, nodes: u64, wire: Wire) void {
        self.shell.sendAtOnce(nodes, &.{std.mem.asBytes(&wire)});
    }

    pub fn notice(self: Production, words: []const u8) void {
        self.engine.events.notice(words);
    }
};

pub const Steering = SteeringOf(Production);

pub fn SteeringOf(comptime Env: type) type {
    return struct {
        env: Env,
        op: u8,
        asker: steer.Asker = .{ .period_ns = period_ns },
        /// All steps so far.
        stepped: u64 = 0,
        is_told: bool = false,

        const Self = @This();

        /// Pager.Handler.on_time.
        pub fn onTime(self: *Self, now_ns: u64, is_frozen: bool) void {
            // A VM that stands still judges nothing: its messages may be held up, too.
            if (is_frozen) return self.asker.abandon();
            if (self.env.node() == 0 or self.env.sharesTsc()) return;
            if (!self.asker.isDue(now_ns)) return;
            self.asker.begin(now_ns);
            self.ask();
        }

        /// A message of another node's; null, or why its sender is broken.
        pub fn receive(self: *Self, from: u8, wire: Wire, is_frozen: bool) ?[]const u8 {
            const is_compute = self.env.computeNodes() >> @intCast(from) & 1 != 0;
            if (!is_compute) return "a memory node has no clock";
            const is_first = self.env.node() == 0;
            switch (@as(Kind, @fromBackingInt(wire.kind))) {
                .question => {
                    if (!is_first) return "only node 0 is asked for the time";
                    self.answer(from, wire.number);
                },
                .answer => {
                    if (from != 0) return "only node 0 tells the time";
                    if (is_frozen) self.asker.abandon() else self.judge(wire);
                },
                .behind => {
                    if (!is_first) return "only node 0 is told that it is behind";
                    // Whoever finds it so finds it again.
                    if (is_frozen) return null;
                    // Another may have found the same.
                    const since = self.stepped -% wire.b;
                    if (wire.a <= since) return null;
                    self.step(wire.a - since);
                    self.tellOthers();
                },
                .stepped => {
                    if (from != 0) return "only node 0 tells the time";
                    self.follow(wire.a);
                },
                _ => return "unknown message about the time",
            }
            return null;
        }

        fn send(self: *Self, nodes: u64, kind: Kind, number: u32, a: u64, b: u64) void {
            self.env.send(nodes, .{
                .op = self.op,
                .kind = @backingInt(kind),
                .number = number,
                .a = a,
                .b = b,
            });
        }

        fn ask(self: *Self) void {
            const number = self.asker.ask(self.env.steadyTsc());
            self.send(1, .question, number, 0, 0);
        }

        fn answer(self: *Self, to: u8, number: u32) void {
            const node = @as(u64, 1) << @intCast(to);
            self.send(node, .answer, number, self.env.steadyTsc(), self.stepped);
        }

        fn judge(self: *Self, wire: Wire) void {
            const stats = self.env.stats();
            switch (self.asker.answer(wire.number, wire.a, wire.b, self.env.steadyTsc())) {
                .ignored => return,
                .again => return self.ask(),
                .even => {},
                .behind => |ticks| self.step(ticks),
                .ahead => |ticks| self.send(1, .behind, 0, ticks, self.asker.steps),
            }
            stats.clock_checks += 1;
            stats.clock_error_ns = self.nanoseconds(self.asker.bound);
        }

        fn step(self: *Self, ticks: u64) void {
            const limit = @as(u64, self.env.clock().tsc_khz) * step_max_ms;
            const by = @min(ticks, limit);
            self.env.advance(by);
            self.stepped +%= by;
            const stats = self.env.stats();
            stats.clock_steps += 1;
            stats.clock_stepped_ns += self.nanoseconds(by);
            const was_told = self.is_told;
            self.is_told = ticks >= limit;
            if (was_told or !self.is_told) return;
            const ms = self.nanoseconds(ticks) / std.time.ns_per_ms;
            var buffer: [120]u8 = undefined;
            const words = std.fmt.bufPrint(&buffer, "node {d}: its TSC is {d} ms behind another " ++
                "host's, which must have leapt: it follows", .{ self.env.node(), ms });
            self.env.notice(words catch unreachable);
        }

        /// Of node 0, to those that share its TSC; others find out by asking.
        fn tellOthers(self: *Self) void {
            const offset = self.env.clock().offset.load(.seq_cst);
            self.send(self.env.computeNodes() & ~@as(u64, 1), .stepped, 0, offset, 0);
        }

        fn follow(self: *Self, offset: u64) void {
            if (!self.env.sharesTsc()) return;
            const by: i64 = @bitCast(offset -% self.env.clock().offset.load(.seq_cst));
            if (by > 0) self.step(@intCast(by));
        }

        fn nanoseconds(self: *const Self, ticks: u64) u64 {
            const ns = @as(u128, ticks) * std.time.ns_per_ms / self.env.clock().tsc_khz;
            return std.math.lossyCast(u64, ns);
        }
    };
}

comptime {
    std.debug.assert(@sizeOf(Wire) == 40);
}

const testing = std.testing;

/// Nodes on two hosts, with clocks that a test moves and messages it carries.
const Net = struct {
    const count = 3;
    const Node = SteeringOf(Fake);
    const Letter = struct { to: u8, from: u8, wire: Wire };

    clocks: [count]Clock = @splat(.{ .start_ns = 0, .dilation = 1, .tsc_khz = 1_000_000 }),
    figures: [count]abi.EngineStats = @splat(std.mem.zeroes(abi.EngineStats)),
    /// Of the hosts' TSCs, and which node is where.
    tscs: [2]u64 = @splat(0),
    hosts: [count]u8,
    moves: [count]u32 = @splat(0),
    notices: u32 = 0,
    letters: [8]Letter = undefined,
    waiting: usize = 0,
    nodes: [count]Node = undefined,

    const Fake = struct {
        net: *Net,
        own: u8,

        pub fn node(self: Fake) u8 {
            return self.own;
        }

        pub fn computeNodes(_: Fake) u64 {
            return 0b111;
        }

        pub fn sharesTsc(self: Fake) bool {
            return self.net.hosts[self.own] == self.net.hosts[0];
        }

        pub fn clock(self: Fake) *Clock {
            return &self.net.clocks[self.own];
        }

        pub fn steadyTsc(self: Fake) u64 {
            return self.net.tscs[self.net.hosts[self.own]] +% self.clock().offset.load(.seq_cst);
        }

        pub fn stats(self: Fake) *abi.EngineStats {
            return &self.net.figures[self.own];
        }

        pub fn advance(self: Fake, ticks: u64) void {
            self.clock().advance(ticks);
            self.net.moves[self.own] += 1;
        }

        pub fn send(self: Fake, nodes: u64, wire: Wire) void {
            var rest_of_nodes = nodes;
            while (rest_of_nodes != 0) : (rest_of_nodes &= rest_of_nodes - 1) {
                self.net.letters[self.net.waiting] = .{
                    .to = @intCast(@ctz(rest_of_nodes)),
                    .from = self.own,
                    .wire = wire,
                };
                self.net.waiting += 1;
            }
        }

        pub fn notice(self: Fake, _: []const u8) void {
            self.net.notices += 1;
        }
    };

    fn init(self: *Net, hosts: [count]u8) void {
        self.* = .{ .hosts = hosts };
        for (&self.nodes, 0..) |*node, i| {
            node.* = .{ .env = .{ .net = self, .own = @intCast(i) }, .op = 8 };
        }
    }

    /// A burst of all that ask. Every message takes 10 us; those of several travel together.
    fn burst(self: *Net, now_ns: u64) !void {
        for (&self.nodes) |*node| node.onTime(now_ns, false);
        while (self.waiting > 0) {
            const letters = self.letters;
            const sent = self.waiting;
            self.waiting = 0;
            for (&self.tscs) |*tsc| tsc.* += 10_000;
            for (letters[0..sent]) |letter| {
                const why = self.nodes[letter.to].receive(letter.from, letter.wire, false);
                try testing.expectEqual(null, why);
            }
        }
    }

    fn guestTsc(self: *const Net, node: usize) u64 {
        return self.nodes[node].env.steadyTsc();
    }
};

test "a host ahead takes all others along, one behind follows, and those of one host stay equal" {
    var net: Net = undefined;
    net.init(.{ 0, 0, 1 });
    try net.burst(1 * period_ns);
    try testing.expectEqual([_]u32{ 0, 0, 0 }, net.moves);
    try testing.expectEqual(@as(u64, 1), net.figures[2].clock_checks);
    try testing.expectEqual(@as(u64, 10_001), net.figures[2].clock_error_ns);
    // Node 2's host is ahead by 50 us, of which 10 may be none: node 0 moves, and node 1 with it.
    net.tscs[1] += 50_000;
    try net.burst(2 * period_ns);
    try testing.expectEqual([_]u32{ 1, 1, 0 }, net.moves);
    try testing.expectEqual(@as(u64, 39_999), net.figures[0].clock_stepped_ns);
    try testing.expectEqual(net.guestTsc(0), net.guestTsc(1));
    try testing.expectEqual(@as(u64, 10_001), net.guestTsc(2) - net.guestTsc(0));
    try net.burst(3 * period_ns);
    try testing.expectEqual([_]u32{ 1, 1, 0 }, net.moves);
    net.tscs[0] += 50_000;
    try net.burst(4 * period_ns);
    try testing.expectEqual([_]u32{ 1, 1, 1 }, net.moves);
    try testing.expectEqual(@as(u64, 10_001), net.guestTsc(0) - net.guestTsc(2));
    try testing.expectEqual(@as(u32, 0), net.notices);
}

test "what two nodes find at once is stepped by once" {
    var net: Net = undefined;
    net.init(.{ 0, 1, 1 });
    net.tscs[1] += 50_000;
    try net.burst(1 * period_ns);
    try testing.expectEqual(@as(u64, 39_999), net.figures[0].clock_stepped_ns);
    try testing.expectEqual([_]u32{ 1, 0, 0 }, net.moves);
    for (2..5) |i| try net.burst(i * period_ns);
    try testing.expectEqual([_]u32{ 1, 0, 0 }, net.moves);
    // Of two that find different ones the larger counts, whichever comes first.
    const first: Wire = .{ .op = 8, .kind = @backingInt(Kind.behind), .a = 300, .b = 39_999 };
    const second: Wire = .{ .op = 8, .kind = @backingInt(Kind.behind), .a = 500, .b = 39_999 };
    try testing.expectEqual(null, net.nodes[0].receive(1, first, false));
    try testing.expectEqual(null, net.nodes[0].receive(2, second, false));
    try testing.expectEqual(@as(u64, 40_499), net.nodes[0].stepped);
    try testing.expectEqual(null, net.nodes[0].receive(1, first, false));
    try testing.expectEqual(@as(u64, 40_499), net.nodes[0].stepped);
}

test "a TSC that leaps is followed in steps, and told once each time" {
    var net: Net = undefined;
    net.init(.{ 0, 0, 1 });
    for (0..2) |leap| {
        net.tscs[0] += 250_000_000;
        for (1..4) |i| try net.burst((leap * 4 + i) * period_ns);
        try testing.expectEqual(3 * (leap + 1), net.figures[2].clock_steps);
        try testing.expectEqual(@as(u64, 10_001), net.guestTsc(0) - net.guestTsc(2));
        try testing.expectEqual(leap + 1, net.notices);
    }
}

test "a VM that stands still moves no clock by what it measured" {
    var net: Net = undefined;
    net.init(.{ 0, 0, 1 });
    net.tscs[1] += 1_000_000;
    net.nodes[2].onTime(period_ns, false);
    net.nodes[2].onTime(period_ns + 1, true);
    net.waiting = 0;
    const wire: Wire = .{ .op = 8, .kind = @backingInt(Kind.answer), .number = 1, .a = 1 << 40 };
    for (0..5) |_| try testing.expectEqual(null, net.nodes[2].receive(0, wire, false));
    const behind: Wire = .{ .op = 8, .kind = @backingInt(Kind.behind), .a = 1000 };
    try testing.expectEqual(null, net.nodes[0].receive(2, behind, true));
    try testing.expectEqual([_]u32{ 0, 0, 0 }, net.moves);
    // But nodes of one host stay together: no other word of it comes.
    const stepped: Wire = .{ .op = 8, .kind = @backingInt(Kind.stepped), .a = 5 };
    try testing.expectEqual(null, net.nodes[1].receive(0, stepped, true));
    net.clocks[0].advance(5);
    try testing.expectEqual([_]u32{ 0, 1, 0 }, net.moves);
    net.moves = @splat(0);
    // And asks anew afterwards.
    try net.burst(2 * period_ns + 1);
    try testing.expectEqual([_]u32{ 1, 1, 0 }, net.moves);
}

test "messages that no node sends are refused by name" {
    var net: Net = undefined;
    net.init(.{ 0, 0, 1 });
    const refusals = .{
        .{ 2, 1, Kind.question, "only node 0 is asked for the time" },
        .{ 1, 2, Kind.answer, "only node 0 tells the time" },
        .{ 2, 1, Kind.behind, "only node 0 is told that it is behind" },
        .{ 0, 1, Kind.stepped, "only node 0 tells the time" },
        .{ 0, 2, @as(Kind, @fromBackingInt(77)), "unknown message about the time" },
        .{ 0, 5, Kind.question, "a memory node has no clock" },
    };
    inline for (refusals) |r| {
        const wire: Wire = .{ .op = 8, .kind = @backingInt(r[2]) };
        try testing.expectEqualStrings(r[3], net.nodes[r[0]].receive(r[1], wire, false).?);
    }
}
