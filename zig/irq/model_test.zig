//! Random operations against naive models of the same specification, written for obviousness:
//! arrays of booleans instead of bit tricks, a counter stepped tick by tick instead of arithmetic.
//! Each run takes a fresh seed (zig test --seed) and the fixed ones; a failure prints its seed and
//! step, and `regression_seeds` is where it is kept.

const std = @import("std");
const message = @import("message.zig");
const registers = @import("lapic_registers.zig");
const route = @import("route.zig");
const Lapic = @import("lapic.zig").Lapic;
const Timer = @import("lapic_timer.zig").Timer;
const Ioapic = @import("ioapic.zig").Ioapic;
const Entry = @import("ioapic.zig").Entry;
const pin_count = @import("ioapic.zig").pin_count;
const Message = message.Message;

const expect = std.testing.expect;
const expectEqual = std.testing.expectEqual;

const regression_seeds = [_]u64{ 1, 2, 0x5510 };

fn forEachSeed(comptime run: fn (random: std.Random, step: *u32) anyerror!void) !void {
    for (regression_seeds ++ .{@as(u64, std.testing.random_seed)}) |seed| {
        var prng = std.Random.DefaultPrng.init(seed);
        var step: u32 = 0;
        run(prng.random(), &step) catch |e| {
            std.debug.print("seed {} step {}\n", .{ seed, step });
            return e;
        };
    }
}

/// Requests, service and priority as the SDM words them.
const NaiveLapic = struct {
    irr: [256]bool = @splat(false),
    isr: [256]bool = @splat(false),
    tmr: [256]bool = @splat(false),
    tpr: u8 = 0,
    enabled: bool = false,

    fn top(set: *const [256]bool) ?u8 {
        var best: ?u8 = null;
        for (set, 0..) |present, vector| {
            if (present) best = @intCast(vector);
        }
        return best;
    }

    fn ppr(self: *const NaiveLapic) u8 {
        const service = top(&self.isr) orelse 0;
        if (self.tpr / 16 >= service / 16) return self.tpr;
        return service / 16 * 16;
    }

    fn accept(self: *NaiveLapic, vector: u8, level: bool) void {
        if (!self.enabled or vector < 16) return;
        self.irr[vector] = true;
        self.tmr[vector] = level;
    }

    fn pending(self: *const NaiveLapic) ?u8 {
        const vector = top(&self.irr) orelse return null;
        return if (self.enabled and vector / 16 > self.ppr() / 16) vector else null;
    }

    fn acknowledge(self: *NaiveLapic) u8 {
        const vector = self.pending() orelse return 0xff;
        self.irr[vector] = false;
        self.isr[vector] = true;
        return vector;
    }

    fn eoi(self: *NaiveLapic) ?u8 {
        const vector = top(&self.isr) orelse return null;
        self.isr[vector] = false;
        return if (self.tmr[vector]) vector else null;
    }

    fn word(set: *const [256]bool, index: usize) u32 {
        var value: u32 = 0;
        for (0..32) |bit| {
            if (set[index * 32 + bit]) value |= @as(u32, 1) << @intCast(bit);
        }
        return value;
    }
};

fn lapicRun(random: std.Random, step: *u32) !void {
    var real = Lapic.init(7, false);
    var naive: NaiveLapic = .{};
    const x2apic = random.boolean();
    if (x2apic) try real.setBase(0xfee0_0c00);
    while (step.* < 100_000) : (step.* += 1) {
        switch (random.uintLessThan(u8, 32)) {
            0...11 => {
                const vector = random.int(u8);
                const level = random.boolean();
                real.accept(vector, level);
                naive.accept(vector, level);
            },
            12...17 => try expectEqual(naive.acknowledge(), real.acknowledge()),
            18...25 => {
                const before = naive.ppr();
                const ended = naive.eoi();
                const effects = if (x2apic)
                    try real.writeX2apic(0x80b, 0, 0)
                else
                    real.writeMmio(0xb0, random.int(u32), 0);
                try expectEqual(ended, effects.eoi_level);
                try expectEqual(before != naive.ppr(), effects.priority_changed);
            },
            26...28 => {
                // Low priorities mostly, or nothing would ever be pending.
                naive.tpr = random.int(u8) >> random.uintLessThan(u3, 4);
                if (x2apic) {
                    _ = try real.writeX2apic(0x808, naive.tpr, 0);
                } else _ = real.writeMmio(0x80, naive.tpr, 0);
            },
            29 => {
                naive.tpr = random.int(u8);
                real.setTpr(naive.tpr);
            },
            30 => {
                naive.enabled = random.uintLessThan(u8, 8) != 0;
                const svr: u32 = if (naive.enabled) 0x1ff else 0xff;
                if (x2apic) {
                    _ = try real.writeX2apic(0x80f, svr, 0);
                } else _ = real.writeMmio(0xf0, svr, 0);
            },
            else => try compareSets(&real, &naive, x2apic),
        }
        try expectEqual(naive.pending(), real.pending());
        try expectEqual(naive.ppr(), real.ppr());
        try expectEqual(naive.tpr, real.tpr());
    }
    try expect(real.vectors_dropped > 0);
}

fn compareSets(real: *Lapic, naive: *const NaiveLapic, x2apic: bool) !void {
    for (0..8) |index| {
        const i: u32 = @intCast(index);
        for ([_]u32{ 0x10, 0x18, 0x20 }, [_]*const [256]bool{
            &naive.isr, &naive.tmr, &naive.irr,
        }) |first, set| {
            const value = if (x2apic)
                try real.readX2apic(0x800 + first + i, 0)
            else
                real.readMmio((first + i) << 4, 0);
            try expectEqual(NaiveLapic.word(set, index), value);
        }
    }
}

test "lapic: 100,000 random operations against the naive model" {
    try forEachSeed(lapicRun);
}

/// A counter that is stepped: `prescale` bus ticks make one count.
const NaiveTimer = struct {
    initial: u32 = 0,
    count: u32 = 0,
    divide: u32 = 2,
    prescale: u32 = 0,
    expired: bool = false,

    fn tick(self: *NaiveTimer, periodic: bool) void {
        if (self.count == 0) return;
        self.prescale += 1;
        if (self.prescale < self.divide) return;
        self.prescale = 0;
        self.count -= 1;
        if (self.count != 0) return;
        self.expired = true;
        if (periodic) self.count = self.initial;
    }
};

const divide_codes = [_]u32{ 0x0, 0x1, 0x2, 0x3, 0x8, 0x9, 0xa, 0xb };
const divide_values = [_]u32{ 2, 4, 8, 16, 32, 64, 128, 1 };

fn timerRun(random: std.Random, step: *u32) !void {
    var real: Timer = .{};
    var naive: NaiveTimer = .{};
    var periodic = false;
    var now: u64 = random.int(u32);
    while (step.* < 20_000) : (step.* += 1) {
        const wait = random.uintLessThan(u32, 64) * random.uintLessThan(u32, 8);
        for (0..wait) |_| naive.tick(periodic);
        now += wait;
        try expectEqual(naive.count, real.current(now, periodic));
        // Sometimes nobody looks for a while.
        if (random.boolean()) continue;
        try expectEqual(naive.expired, real.advance(now, periodic));
        naive.expired = false;
        try expectEqual(naive.count, real.current(now, periodic));
        if (real.deadline(false)) |due| {
            try expectEqual(now + naive.count * naive.divide - naive.prescale, due);
        } else try expectEqual(0, naive.count);
        switch (random.uintLessThan(u8, 8)) {
            0, 1 => {
                naive.initial = random.uintLessThan(u32, 100);
                naive.count = naive.initial;
                naive.prescale = 0;
                real.setInitial(naive.initial, now);
            },
            2 => {
                const which = random.uintLessThan(usize, 8);
                naive.divide = divide_values[which];
                naive.prescale = 0;
                real.setDivide(divide_codes[which], now, periodic);
            },
            3 => periodic = !periodic,
            else => {},
        }
    }
}

test "timer: random use against a counter stepped tick by tick" {
    try forEachSeed(timerRun);
}

/// What each pin would send, from the words of the datasheet, after every single operation.
const NaivePin = struct {
    line: bool = false,
    entry: Entry = .{},

    fn isLevel(self: NaivePin) bool {
        return self.entry.level and self.entry.delivery <= 1;
    }

    /// A level pin that may send does so; true if it did.
    fn settle(self: *NaivePin) bool {
        if (!self.isLevel() or !self.line) return false;
        if (self.entry.masked or self.entry.remote_irr) return false;
        self.entry.remote_irr = true;
        return true;
    }
};

fn ioapicRun(random: std.Random, step: *u32) !void {
    var real = Ioapic.init();
    var pins: [pin_count]NaivePin = @splat(.{});
    while (step.* < 100_000) : (step.* += 1) {
        var sends: [pin_count]bool = @splat(false);
        const pin = random.uintLessThan(u5, pin_count);
        const p = &pins[pin];
        switch (random.uintLessThan(u8, 8)) {
            0...3 => {
                const level = random.boolean();
                const rising = level and !p.line;
                p.line = level;
                real.setLine(pin, level);
                const known = p.entry.delivery != 3 and p.entry.delivery != 6;
                sends[pin] = if (p.isLevel()) p.settle() else rising and !p.entry.masked and known;
            },
            4, 5 => sends[pin] = writeHalf(&real, p, pin, random),
            else => {
                const vector = vectorOf(random);
                if (random.boolean()) real.eoi(vector) else real.write(0x40, vector);
                for (&pins, 0..) |*each, i| {
                    if (each.entry.vector == vector and each.entry.remote_irr) {
                        each.entry.remote_irr = false;
                        sends[i] = each.settle();
                    }
                }
            },
        }
        for (sends, 0..) |sent, i| {
            if (!sent) continue;
            const m = real.take() orelse return error.MessageMissing;
            try expect(m.valid());
            try expectEqual(pins[i].entry.vector, m.vector);
            try expectEqual(pins[i].entry.delivery, m.delivery);
            try expectEqual(pins[i].isLevel(), m.level != 0);
        }
        try expectEqual(null, real.take());
        try expectEqual(@as(u64, @bitCast(p.entry)), @as(u64, @bitCast(real.entries[pin])));
    }
}

/// Few vectors, so that several pins share one and EOIs find something.
fn vectorOf(random: std.Random) u8 {
    return 0x30 + random.uintLessThan(u8, 4);
}

/// Writes one half of an entry; true if the pin sends a message because of it.
fn writeHalf(real: *Ioapic, p: *NaivePin, pin: u5, random: std.Random) bool {
    var wanted: Entry = @bitCast(random.int(u64));
    wanted.vector = vectorOf(random);
    // Mostly plain interrupts, mostly unmasked.
    if (random.uintLessThan(u8, 4) != 0) wanted.delivery = 0;
    if (random.uintLessThan(u8, 4) != 0) wanted.masked = false;
    const bits: u64 = @bitCast(wanted);
    real.write(0, 0x10 + @as(u32, pin) * 2 + 1);
    if (random.boolean()) {
        real.write(0x10, @truncate(bits >> 32));
        p.entry.dest = wanted.dest;
        p.entry.dest_extension = wanted.dest_extension;
        return p.settle();
    }
    real.write(0, 0x10 + @as(u32, pin) * 2);
    real.write(0x10, @truncate(bits));
    p.entry.vector = wanted.vector;
    p.entry.delivery = wanted.delivery;
    p.entry.logical = wanted.logical;
    p.entry.active_low = wanted.active_low;
    p.entry.level = wanted.level;
    p.entry.masked = wanted.masked;
    if (!p.isLevel()) p.entry.remote_irr = false;
    return p.settle();
}

test "ioapic: 100,000 random operations against the naive model" {
    try forEachSeed(ioapicRun);
}

const shape_nodes = 4;
const shape_vcpus = 5;

fn randomMessage(random: std.Random) Message {
    var m: Message = .{
        .dest = switch (random.uintLessThan(u8, 4)) {
            0 => random.uintLessThan(u32, shape_nodes) << 6 | random.uintLessThan(u32, 8),
            1 => random.int(u8),
            // Cluster of some node, a few of its members.
            2 => random.uintLessThan(u32, shape_nodes * 4) << 16 | random.int(u8),
            else => if (random.boolean()) 0xff else 0xffff_ffff,
        },
        .vector = 0x40,
        .delivery = random.uintLessThan(u8, 2),
        .logical = random.int(u1),
        .shorthand = if (random.uintLessThan(u8, 4) == 0) random.int(u2) else 0,
        .source = random.uintLessThan(u32, shape_nodes) << 6 | random.uintLessThan(u32, 5),
    };
    m.x2apic = if (m.dest > 0xff) 1 else random.int(u1);
    return m;
}

/// The rules a router relies on: nodesOf never misses a receiver, and a lowest-priority message
/// that goes round the ring interrupts exactly one vCPU if any enabled one matches, else none.
fn routeRun(random: std.Random, step: *u32) !void {
    var views: [shape_nodes][shape_vcpus]route.TargetView = undefined;
    var delivered: u32 = 0;
    while (step.* < 50_000) : (step.* += 1) {
        if (step.* % 50 == 0) {
            for (&views, 0..) |*node, n| for (node, 0..) |*view, i| {
                view.* = .{
                    .apic_id = @intCast(n << 6 | i),
                    .logical_id = random.int(u8),
                    .model = random.enumValue(route.Model),
                    .mode = random.enumValue(route.Mode),
                    .software_enabled = random.boolean(),
                };
            };
        }
        const m = randomMessage(random);
        try expect(m.valid());
        const nodes = route.nodesOf(m, shape_nodes);
        var able = false;
        for (&views, 0..) |*node, n| for (node) |view| {
            if (!view.matches(m)) continue;
            try expect(nodes >> @intCast(n) & 1 != 0);
            able = able or view.software_enabled;
        };
        if (m.mode() != .lowest) continue;
        var received: u32 = 0;
        var here = m.source >> 6;
        while (true) {
            const set = route.resolve(&views[here], m);
            received += @popCount(set);
            if (set != 0) break;
            here = route.nextNode(m, shape_nodes, here) orelse break;
        }
        try expectEqual(@intFromBool(able), received);
        delivered += received;
    }
    try expect(delivered > 1000);
}

test "route: no receiver missed, one receiver for lowest priority" {
    try forEachSeed(routeRun);
}
