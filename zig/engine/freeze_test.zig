//! The freeze's agreement under every order of messages: exhaustively for two and three nodes with
//! a few troubles and late thaws, and by seeded runs with clocks, lanes that go down and come back,
//! and guests that look at their clock whenever they run.

const std = @import("std");
const testing = std.testing;
const freeze = @import("freeze.zig");
const Machine = freeze.Machine;
const Message = freeze.Message;
const Actions = freeze.Actions;

const nodes_max = 4;

fn Queue(comptime capacity: usize) type {
    return struct {
        items: [capacity]Message = undefined,
        count: usize = 0,

        const Self = @This();

        fn push(self: *Self, message: Message) void {
            self.items[self.count] = message;
            self.count += 1;
        }

        fn pop(self: *Self) Message {
            const head = self.items[0];
            self.count -= 1;
            const rest = self.items[1..][0..self.count];
            std.mem.copyForwards(Message, self.items[0..self.count], rest);
            return head;
        }
    };
}

/// One state of the walk. Time stands still, so that states are finite: only a late thaw is late.
const World = struct {
    count: u8,
    machines: [3]Machine = undefined,
    lanes: [3][3]Queue(8) = @splat(@splat(.{})),
    in_trouble: [3]bool = @splat(false),
    /// Troubles and late thaws that may yet come.
    troubles: u8,
    lates: u8,
    /// Thaws applied by each node, one bit each: whether its guests ran on after it.
    rounds: [3]u8 = @splat(0),

    fn init(count: u8, troubles: u8, lates: u8) World {
        var self: World = .{ .count = count, .troubles = troubles, .lates = lates };
        for (0..count) |i| {
            self.machines[i] = .{ .node = @intCast(i), .node_count = count, .late_ticks = 0 };
        }
        return self;
    }

    fn perform(self: *World, node: usize, actions: *const Actions) !void {
        for (actions.slice()) |action| switch (action) {
            .freeze => {},
            .thaw, .subtract => self.rounds[node] += 1,
            .send => |s| for (0..self.count) |to| {
                if (s.to >> @intCast(to) & 1 != 0) self.lanes[node][to].push(s.message);
            },
            .violated => |why| {
                std.debug.print("node {d}: {s}\n", .{ node, why });
                return error.Violated;
            },
        };
    }

    fn look(self: *World, node: usize, is_still: bool) !void {
        var out: Actions = .{};
        self.machines[node].look(.{
            .in_trouble = self.in_trouble[node],
            .is_still = is_still,
            .now = 0,
        }, &out);
        try self.perform(node, &out);
    }

    fn deliver(self: *World, from: usize, to: usize, now: u64) !void {
        const message = self.lanes[from][to].pop();
        var out: Actions = .{};
        self.machines[to].receive(@intCast(from), message, now, &out);
        try self.perform(to, &out);
    }

    fn key(self: *const World) u64 {
        var hash: std.hash.Wyhash = .init(0);
        hash.update(&.{ self.troubles, self.lates });
        for (self.machines[0..self.count], 0..) |*m, i| {
            hash.update(&.{
                @truncate(m.round),               m.late_in_row,
                @truncate(m.ready),               @intFromBool(m.is_frozen),
                @intFromBool(m.in_trouble),       @intFromBool(m.seen != null),
                @intFromBool(m.has_reported),     @intFromBool(m.was_ready),
                @intFromBool(self.in_trouble[i]),
            });
            for (self.lanes[i][0..self.count]) |*lane| {
                hash.update(&.{0xff});
                for (lane.items[0..lane.count]) |m2| {
                    hash.update(&.{ @backingInt(m2.kind), @truncate(m2.round) });
                }
            }
        }
        return hash.final();
    }

    /// Trouble is over and every message arrives: everybody must run in the same round.
    fn mustEnd(start: World) !void {
        var self = start;
        self.in_trouble = @splat(false);
        for (0..64) |_| {
            var moved = false;
            for (0..self.count) |from| for (0..self.count) |to| {
                while (self.lanes[from][to].count > 0) : (moved = true) {
                    try self.deliver(from, to, 0);
                }
            };
            for (0..self.count) |node| try self.look(node, true);
            for (self.machines[0..self.count]) |*m| moved = moved or m.is_frozen;
            if (!moved) break;
        }
        for (self.machines[0..self.count]) |*m| {
            try testing.expect(!m.is_frozen);
            try testing.expectEqual(self.machines[0].round, m.round);
        }
        for (self.rounds[0..self.count]) |r| try testing.expectEqual(self.rounds[0], r);
    }
};

const Walk = struct {
    seen: std.AutoHashMap(u64, void),
    open: std.ArrayList(World) = .empty,

    fn visit(self: *Walk, world: World) !void {
        if ((try self.seen.getOrPut(world.key())).found_existing) return;
        try world.mustEnd();
        try self.open.append(testing.allocator, world);
    }

    fn expand(self: *Walk, world: *const World) !void {
        for (0..world.count) |node| {
            for ([_]bool{ false, true }) |is_still| {
                var next = world.*;
                try next.look(node, is_still);
                try self.visit(next);
            }
            if (!world.in_trouble[node] and world.troubles == 0) continue;
            var next = world.*;
            if (!next.in_trouble[node]) next.troubles -= 1;
            next.in_trouble[node] = !next.in_trouble[node];
            try self.visit(next);
        }
        for (0..world.count) |from| for (0..world.count) |to| {
            if (world.lanes[from][to].count == 0) continue;
            var next = world.*;
            try next.deliver(from, to, 0);
            try self.visit(next);
            if (world.lates == 0 or world.lanes[from][to].items[0].kind != .thaw) continue;
            next = world.*;
            next.lates -= 1;
            try next.deliver(from, to, 1);
            try self.visit(next);
        };
    }
};

fn walk(count: u8, troubles: u8, lates: u8) !usize {
    var self: Walk = .{ .seen = .init(testing.allocator) };
    defer self.seen.deinit();
    defer self.open.deinit(testing.allocator);
    try self.visit(.init(count, troubles, lates));
    while (self.open.pop()) |world| try self.expand(&world);
    return self.seen.count();
}

test "two nodes, four troubles and two late thaws, in every order: all agree and all go on" {
    try testing.expect(try walk(2, 4, 2) > 15_000);
}

test "three nodes, two troubles, in every order: all agree and all go on" {
    try testing.expect(try walk(3, 2, 1) > 40_000);
}

/// What a node's guest has seen of its clock, and the hosts' own clocks.
const Host = struct {
    machine: Machine,
    /// What this host's clock is off the others'.
    skew: u64,
    taken_off: u64 = 0,
    rounds: std.ArrayList(u64) = .empty,
    runs: bool = true,
    /// The guest may still run: its vCPUs have not left yet.
    leaving: bool = false,
    seen: u64 = 0,
    down_since: [nodes_max]?u64 = @splat(null),

    fn guestTime(self: *const Host, t: u64) u64 {
        return t +% self.skew -% self.taken_off;
    }
};

const skew_max = 20;
const stall = 300;

const Simulation = struct {
    prng: std.Random.DefaultPrng,
    hosts: []Host,
    lanes: [nodes_max][nodes_max]Queue(64) = @splat(@splat(.{})),
    t: u64 = 1_000_000,

    fn random(self: *Simulation, less_than: u64) u64 {
        return self.prng.random().uintLessThan(u64, less_than);
    }

    fn perform(self: *Simulation, node: usize, actions: *const Actions) !void {
        const host = &self.hosts[node];
        for (actions.slice()) |action| switch (action) {
            .freeze => {
                host.runs = false;
                host.leaving = true;
            },
            .thaw => |thaw| {
                try host.rounds.append(testing.allocator, thaw.ticks);
                host.taken_off += thaw.ticks;
                try testing.expect(thaw.seen >= host.seen);
                host.runs = true;
                host.leaving = false;
                // Hosts disagree on the time, by little: this one waits until it is there.
                try testing.expect(host.guestTime(self.t) + 2 * skew_max >= thaw.seen);
                while (host.guestTime(self.t) < thaw.seen) self.t += 1;
            },
            .subtract => |ticks| {
                try host.rounds.append(testing.allocator, ticks);
                host.taken_off += ticks;
            },
            .send => |s| for (0..self.hosts.len) |to| {
                if (s.to >> @intCast(to) & 1 != 0) self.lanes[node][to].push(s.message);
            },
            .violated => return error.Violated,
        };
    }

    fn isDown(self: *const Simulation, a: usize, b: usize) bool {
        return self.hosts[a].down_since[b] != null;
    }

    fn setDown(self: *Simulation, a: usize, b: usize, down: bool) void {
        const since: ?u64 = if (down) self.t else null;
        self.hosts[a].down_since[b] = since;
        self.hosts[b].down_since[a] = since;
    }

    fn look(self: *Simulation, node: usize) !void {
        const host = &self.hosts[node];
        var in_trouble = false;
        for (host.down_since) |since| {
            if (since) |s| in_trouble = in_trouble or self.t - s > stall;
        }
        if (host.leaving and self.random(2) == 0) host.leaving = false;
        var out: Actions = .{};
        host.machine.look(.{
            .in_trouble = in_trouble,
            .is_still = !host.leaving,
            .now = host.guestTime(self.t),
        }, &out);
        try self.perform(node, &out);
    }

    fn deliver(self: *Simulation, from: usize, to: usize) !void {
        if (self.lanes[from][to].count == 0 or self.isDown(from, to)) return;
        const message = self.lanes[from][to].pop();
        var out: Actions = .{};
        const host = &self.hosts[to];
        host.machine.receive(@intCast(from), message, host.guestTime(self.t), &out);
        try self.perform(to, &out);
    }

    /// The guest looks at its clock.
    fn watchClock(self: *Simulation, node: usize) !void {
        const host = &self.hosts[node];
        if (!host.runs and !host.leaving) return;
        const now = host.guestTime(self.t);
        try testing.expect(now >= host.seen);
        host.seen = now;
    }

    fn step(self: *Simulation) !void {
        const node = self.random(self.hosts.len);
        const other = self.random(self.hosts.len);
        switch (self.random(100)) {
            0...29 => try self.look(node),
            30...69 => try self.deliver(node, other),
            70...89 => try self.watchClock(node),
            90...94 => self.t += self.random(40),
            95...96 => self.t += self.random(4 * stall),
            else => if (node != other) {
                const now_down = self.isDown(node, other);
                self.setDown(node, other, !now_down and self.random(4) == 0);
            },
        }
    }

    /// All lanes are up again and nothing is late any more.
    fn settle(self: *Simulation) !void {
        for (0..self.hosts.len) |a| for (0..self.hosts.len) |b| self.setDown(a, b, false);
        for (0..200) |_| {
            for (0..self.hosts.len) |a| for (0..self.hosts.len) |b| {
                while (self.lanes[a][b].count > 0) try self.deliver(a, b);
            };
            for (0..self.hosts.len) |a| try self.look(a);
            self.t += 1;
        }
    }
};

fn simulate(seed: u64, count: usize, steps: usize) !u64 {
    var hosts: [nodes_max]Host = undefined;
    var sim: Simulation = .{ .prng = .init(seed), .hosts = hosts[0..count] };
    for (sim.hosts, 0..) |*host, i| host.* = .{
        .machine = .{
            .node = @intCast(i),
            .node_count = @intCast(count),
            .late_ticks = stall,
        },
        .skew = sim.random(skew_max),
    };
    defer for (sim.hosts) |*host| host.rounds.deinit(testing.allocator);
    for (0..steps) |_| try sim.step();
    try sim.settle();
    const first = &sim.hosts[0];
    for (sim.hosts) |*host| {
        try testing.expect(host.runs);
        try testing.expectEqualSlices(u64, first.rounds.items, host.rounds.items);
    }
    return first.rounds.items.len;
}

test "seeded runs with clocks: the same ticks everywhere, no guest sees its clock go back" {
    var thaws: u64 = 0;
    for (0..300) |i| {
        const seed = testing.random_seed +% i;
        errdefer std.debug.print("freeze: seed {d}\n", .{seed});
        thaws += try simulate(seed, 2 + i % (nodes_max - 1), 3000);
    }
    try testing.expect(thaws > 1000);
}

/// Two nodes, the second one cut off for `cut` ticks: what its guest sees of it.
fn cutSeen(cut: u64) !u64 {
    var hosts: [2]Host = undefined;
    var sim: Simulation = .{ .prng = .init(1), .hosts = &hosts };
    for (sim.hosts, 0..) |*host, i| host.* = .{
        .machine = .{ .node = @intCast(i), .node_count = 2, .late_ticks = stall },
        .skew = 0,
    };
    defer for (sim.hosts) |*host| host.rounds.deinit(testing.allocator);
    const began = sim.t;
    sim.setDown(0, 1, true);
    for (0..cut) |_| {
        sim.t += 1;
        for (0..2) |n| try sim.look(n);
    }
    try sim.settle();
    return sim.hosts[1].guestTime(sim.t) - began;
}

test "of a long cut the guest sees the time before the freeze alone" {
    const short = try cutSeen(2 * stall);
    try testing.expectEqual(short, try cutSeen(100 * stall));
    try testing.expect(short < 2 * stall);
    // A cut that is over before the freeze is seen whole, and freezes nothing.
    try testing.expect(try cutSeen(stall - 10) >= stall - 10);
}

test "a thaw held up on its way begins the next round, its guests seeing nothing; thrice at most" {
    var m: Machine = .{ .node = 1, .node_count = 2, .late_ticks = 100 };
    var out: Actions = .{};
    m.receive(0, .{ .kind = .freeze, .round = 0 }, 1000, &out);
    for (0..4) |round| {
        m.look(.{ .in_trouble = false, .is_still = true, .now = 1000 + round }, &out);
        out = .{};
        const thaw: Message = .{ .kind = .thaw, .round = round, .sent = 2000, .ticks = 990 };
        m.receive(0, thaw, 2101, &out);
        try testing.expectEqual(round < 3, m.is_frozen);
        const first = out.slice()[0];
        try testing.expectEqual(@as(u64, 990), if (round < 3) first.subtract else first.thaw.ticks);
        // All that time its vCPUs were out.
        try testing.expectEqual(if (round < 3) @as(?u64, 1000) else null, m.seen);
    }
}

test "a thaw that crosses a taken-back report begins the next round before a guest has run" {
    var m: Machine = .{ .node = 1, .node_count = 2, .late_ticks = 100 };
    var out: Actions = .{};
    m.receive(0, .{ .kind = .freeze, .round = 0 }, 1000, &out);
    m.look(.{ .in_trouble = false, .is_still = true, .now = 1000 }, &out);
    m.look(.{ .in_trouble = true, .is_still = true, .now = 1001 }, &out);
    out = .{};
    m.receive(0, .{ .kind = .thaw, .round = 0, .sent = 1001, .ticks = 1 }, 1002, &out);
    try testing.expectEqual(@as(u64, 1), out.slice()[0].subtract);
    try testing.expectEqual(.freeze, out.slice()[1].send.message.kind);
    try testing.expectEqual(@as(u64, 1), out.slice()[1].send.message.round);
}

test "node 0 passes on what it is told: two of three may not hear each other" {
    const leader: Machine = .{ .node = 0, .node_count = 3, .late_ticks = 0 };
    for ([_]freeze.Kind{ .freeze, .ready }) |kind| {
        var m = leader;
        var out: Actions = .{};
        m.receive(1, .{ .kind = kind, .round = 0 }, 0, &out);
        try testing.expect(m.is_frozen);
        try testing.expectEqual(@as(u64, 0b110), out.slice()[1].send.to);
        try testing.expectEqual(.freeze, out.slice()[1].send.message.kind);
    }
}

test "a peer that reports, thaws or freezes out of turn is refused" {
    var m: Machine = .{ .node = 1, .node_count = 3, .late_ticks = 0 };
    var leader: Machine = .{ .node = 0, .node_count = 3, .late_ticks = 0 };
    const bad = [_]struct { *Machine, u8, Message }{
        .{ &m, 0, .{ .kind = .thaw, .round = 0 } },
        .{ &m, 2, .{ .kind = .freeze, .round = 1 } },
        .{ &m, 2, .{ .kind = .ready, .round = 0 } },
        .{ &leader, 2, .{ .kind = .ready, .round = 1 } },
        .{ &leader, 2, .{ .kind = .freeze, .round = 7 } },
        .{ &leader, 1, .{ .kind = .thaw, .round = 0 } },
        .{ &leader, 1, .{ .kind = @fromBackingInt(9), .round = 0 } },
    };
    for (bad) |case| {
        var out: Actions = .{};
        case[0].receive(case[1], case[2], 0, &out);
        try testing.expect(out.slice().len == 1 and out.slice()[0] == .violated);
    }
}

test "guest times are compared across their wrap" {
    try testing.expect(freeze.isAfter(5, 0 -% @as(u64, 5)));
    try testing.expect(!freeze.isAfter(0 -% @as(u64, 5), 5));
    try testing.expect(!freeze.isAfter(7, 7));
}
