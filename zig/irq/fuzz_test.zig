//! Hostile guests and peers: any sequence of register accesses and lines, at any time. Nothing may
//! panic, and a few facts must hold after each step. The seeded loop runs in every test; the same
//! body is a std.testing.fuzz target for coverage-guided runs.

const std = @import("std");
const message = @import("message.zig");
const registers = @import("lapic_registers.zig");
const route = @import("route.zig");
const lapic = @import("lapic.zig");
const Lapic = lapic.Lapic;
const Ioapic = @import("ioapic.zig").Ioapic;

const Smith = std.testing.Smith;
const expect = std.testing.expect;
const expectEqual = std.testing.expectEqual;

/// Where the choices come from: a generator, or the fuzzer.
const Source = union(enum) {
    random: std.Random,
    smith: *Smith,

    fn int(self: Source, comptime T: type) T {
        return switch (self) {
            .random => |r| r.int(T),
            .smith => |s| s.value(T),
        };
    }

    /// Values that mean something are rare among 2^64: small ones, single bits, all ones.
    fn value(self: Source) u64 {
        return switch (self.int(u2)) {
            0 => self.int(u8),
            1 => @as(u64, 1) << self.int(u6),
            2 => self.int(u32),
            3 => self.int(u64),
        };
    }
};

fn lapicSteps(source: Source, steps: u32) !void {
    var l = Lapic.init(source.int(u9), source.int(u1) == 0);
    if (source.int(u1) == 0) l.version |= registers.version_directed_eoi;
    var now: u64 = source.int(u40);
    for (0..steps) |_| {
        // Time stands, runs, leaps, and steps back.
        switch (source.int(u2)) {
            0 => {},
            1 => now +|= source.int(u8),
            2 => now +|= source.int(u44),
            3 => now -|= source.int(u4),
        }
        const effects = try lapicStep(&l, source, now);
        try checkLapic(&l, effects, now);
    }
}

fn lapicStep(l: *Lapic, source: Source, now: u64) !lapic.Effects {
    switch (source.int(u4)) {
        0, 1, 2 => {
            const offset = @as(u32, source.int(u6)) << 4;
            return l.writeMmio(offset, @truncate(source.value()), now);
        },
        3 => return l.writeMmio(@truncate(source.value()), @truncate(source.value()), now),
        4, 5, 6 => {
            const msr = 0x800 + @as(u32, source.int(u6));
            return l.writeX2apic(msr, source.value(), now) catch .{};
        },
        7 => _ = l.readMmio(@truncate(source.value()), now),
        8 => _ = l.readX2apic(@truncate(0x7f0 + (source.value() & 0x1ff)), now) catch 0,
        9 => l.accept(source.int(u8), source.int(u1) == 1),
        10 => {
            const expected = l.pending() orelse @as(u8, @truncate(l.spurious));
            try expectEqual(expected, l.acknowledge());
        },
        11 => l.timerTick(now),
        12 => _ = l.lint(source.int(u1), source.int(u1) == 1),
        13 => if (source.int(u2) == 0) try base(l, source),
        14 => l.setCr8(source.int(u4)),
        15 => if (source.int(u4) == 0) l.reset(if (source.int(u1) == 0) .init else .power_on),
    }
    return .{};
}

fn base(l: *Lapic, source: Source) !void {
    const before = l.base();
    const value = switch (source.int(u2)) {
        0 => source.value(),
        1 => 0xfee0_0000,
        2 => 0xfee0_0800,
        3 => 0xfee0_0c00,
    };
    l.setBase(value) catch return expectEqual(before, l.base());
    try expectEqual(value, l.base());
}

fn checkLapic(l: *Lapic, effects: lapic.Effects, now: u64) !void {
    if (l.pending()) |vector| {
        try expect(vector >= message.vector_min and vector >> 4 > l.ppr() >> 4);
        try expect(l.softwareEnabled() and l.mode() != .disabled);
    }
    if (l.isr.highest()) |vector| try expect(vector >= message.vector_min);
    if (!l.softwareEnabled()) {
        for (l.lvt) |entry| try expect(entry & registers.lvt_masked != 0);
    }
    if (effects.ipi) |m| {
        try expect(m.valid());
        try expectEqual(l.apic_id, m.source);
        const nodes = route.nodesOf(m, 8);
        if (l.matches(m)) try expect(nodes >> @intCast(l.apic_id >> 6) & 1 != 0);
    }
    try expect(l.timer.current(now, l.timerPeriodic()) <= @max(l.timer.initial, l.timer.count));
    // A tick at the deadline leaves no deadline in the past: the thread's timer cannot spin.
    if (l.timerDeadline()) |due| {
        var copy = l.*;
        copy.timerTick(@max(now, due));
        if (copy.timerDeadline()) |next| try expect(next > now or next == std.math.maxInt(u64));
    }
}

fn ioapicSteps(source: Source, steps: u32) !void {
    var io = Ioapic.init();
    for (0..steps) |_| {
        switch (source.int(u3)) {
            0, 1 => io.setLine(source.int(u5), source.int(u1) == 1),
            2 => io.eoi(source.int(u8)),
            3 => io.write(@truncate(source.value()), @truncate(source.value())),
            4 => _ = io.read(@truncate(source.value())),
            5, 6 => {
                io.write(0, source.int(u6));
                io.write(0x10, @truncate(source.value()));
                _ = io.read(0x10);
            },
            7 => if (source.int(u8) == 0) io.reset(),
        }
        var taken: u32 = 0;
        while (io.take()) |m| : (taken += 1) try expect(m.valid());
        try expect(taken <= 24);
    }
}

/// Records as a peer could send them: whatever passes valid() can be routed.
fn routeSteps(source: Source, steps: u32) !void {
    for (0..steps) |_| {
        var bytes: [@sizeOf(message.Message)]u8 = undefined;
        for (&bytes) |*byte| byte.* = if (source.int(u1) == 0) source.int(u2) else source.int(u8);
        const m = std.mem.bytesToValue(message.Message, &bytes);
        if (!m.valid()) continue;
        const view: route.TargetView = @bitCast(@as(u64, source.int(u32)) << 32 | source.int(u9));
        const safe = route.TargetView{
            .apic_id = view.apic_id,
            .logical_id = view.logical_id,
            .model = .cluster,
            .mode = .xapic,
            .software_enabled = view.software_enabled,
        };
        try expect(@popCount(route.resolve(&.{ safe, safe }, m)) <= 2);
        const nodes = @as(u32, source.int(u3)) + 1;
        var here = @as(u32, source.int(u3)) % nodes;
        var hops: u32 = 0;
        while (route.nextNode(m, nodes, here)) |next| : (hops += 1) here = next;
        try expect(hops < nodes);
    }
}

const bodies = .{ lapicSteps, ioapicSteps, routeSteps };

test "seeded: no access sequence breaks an invariant" {
    for ([_]u64{ 1, 7, @as(u64, std.testing.random_seed) }) |seed| {
        errdefer std.debug.print("seed {}\n", .{seed});
        var prng = std.Random.DefaultPrng.init(seed);
        inline for (bodies) |body| {
            for (0..50) |_| try body(.{ .random = prng.random() }, 2000);
        }
    }
}

fn guided(_: void, smith: *Smith) anyerror!void {
    inline for (bodies) |body| try body(.{ .smith = smith }, 64);
}

test "guided: the same under the fuzzer" {
    try std.testing.fuzz({}, guided, .{});
}
