//! Where vCPU threads wait when the VM is paused, frozen or ends: each passes here before every
//! entry into the guest. Several masters: commands (run, pause, stop) come from TypeScript, freezes
//! and steps of the clock from the shard, and none ends another. A pause counts who has arrived;
//! the shard does not, since a vCPU in a fault cannot come before its page does (Linux before 6.2).
//! Lost-wakeup rule: masters change a word, then `turn`, then kick; a thread reads `turn`, then the
//! words, then sleeps on `turn`. And it looks once more at isOpen() after it has announced guest
//! mode in its inbox: a kick that came before would have been taken for something else.

const std = @import("std");
const sys = @import("../base/sys.zig");

const Command = struct {
    const run: u32 = 0;
    const pause: u32 = 1;
    const stop: u32 = 2;
};

pub const Passed = enum {
    go,
    stop,
    /// Not yet: but this thread was the last one to arrive for the present pause.
    all_parked,
};

/// Why the shard lets nobody run.
pub const Hold = enum(u32) { freeze = 1, step = 2 };

/// Who has arrived, for which pause: counts of an older one must not reach a newer one.
const Arrivals = packed struct(u64) { pause: u32, count: u32 };

pub const Parking = struct {
    threads: u32,
    command: std.atomic.Value(u32) = .init(Command.pause),
    /// Bits of Hold.
    holds: std.atomic.Value(u32) = .init(0),
    /// Changes with each of the two.
    turn: std.atomic.Value(u32) = .init(0),
    arrivals: std.atomic.Value(Arrivals) = .init(.{ .pause = 0, .count = 0 }),

    /// Whether a vCPU may be in the guest.
    pub fn isOpen(self: *const Parking) bool {
        return self.holds.load(.seq_cst) == 0 and self.command.load(.seq_cst) == Command.run;
    }

    pub fn isStopping(self: *const Parking) bool {
        return self.command.load(.seq_cst) == Command.stop;
    }

    /// False when it is paused or stopping already. Kick the vCPUs after this.
    pub fn pause(self: *Parking) bool {
        if (self.command.load(.seq_cst) != Command.run) return false;
        const old = self.arrivals.load(.seq_cst);
        self.arrivals.store(.{ .pause = old.pause +% 1, .count = 0 }, .seq_cst);
        return self.change(Command.run, Command.pause);
    }

    pub fn proceed(self: *Parking) void {
        _ = self.change(Command.pause, Command.run);
    }

    /// A stop, from whichever thread, stays.
    fn change(self: *Parking, from: u32, to: u32) bool {
        if (self.command.cmpxchgStrong(from, to, .seq_cst, .seq_cst)) |_| return false;
        self.wake();
        return true;
    }

    /// Kick the vCPUs after this.
    pub fn stop(self: *Parking) void {
        self.command.store(Command.stop, .seq_cst);
        self.wake();
    }

    /// Kick the vCPUs after this.
    pub fn hold(self: *Parking, why: Hold) void {
        _ = self.holds.fetchOr(@backingInt(why), .seq_cst);
        self.wake();
    }

    pub fn release(self: *Parking, why: Hold) void {
        _ = self.holds.fetchAnd(~@as(u32, @backingInt(why)), .seq_cst);
        self.wake();
    }

    fn wake(self: *Parking) void {
        _ = self.turn.fetchAdd(1, .seq_cst);
        sys.futexWake(&self.turn, std.math.maxInt(u31));
    }

    /// vCPU thread: waits until it may run. `counted` is the thread's own: the pause it was counted
    /// for.
    pub fn pass(self: *Parking, counted: *u32) Passed {
        while (true) {
            const turn = self.turn.load(.seq_cst);
            const command = self.command.load(.seq_cst);
            if (command == Command.stop) return .stop;
            if (command == Command.pause) {
                if (self.arrive(counted)) return .all_parked;
            } else if (self.holds.load(.seq_cst) == 0) return .go;
            sys.futexWait(&self.turn, turn, null);
        }
    }

    /// True for the last one.
    fn arrive(self: *Parking, counted: *u32) bool {
        var old = self.arrivals.load(.seq_cst);
        while (old.pause != counted.*) {
            const new: Arrivals = .{ .pause = old.pause, .count = old.count + 1 };
            old = self.arrivals.cmpxchgWeak(old, new, .seq_cst, .seq_cst) orelse {
                counted.* = new.pause;
                return new.count == self.threads;
            };
        }
        return false;
    }
};

const testing = std.testing;

/// A vCPU thread that only ever passes.
const Passer = struct {
    parking: *Parking,
    passes: std.atomic.Value(u64) = .init(0),
    all_parked: *std.atomic.Value(u32),

    fn run(self: *Passer) void {
        var counted: u32 = 0;
        while (true) switch (self.parking.pass(&counted)) {
            .go => _ = self.passes.fetchAdd(1, .seq_cst),
            .all_parked => _ = self.all_parked.fetchAdd(1, .seq_cst),
            .stop => return,
        };
    }
};

fn rest() void {
    sys.pause(100 * std.time.ns_per_us);
}

fn waitFor(value: *const std.atomic.Value(u32), expected: u32) void {
    while (value.load(.seq_cst) != expected) rest();
}

fn expectAllPass(passers: []Passer) void {
    for (passers) |*p| {
        const before = p.passes.load(.seq_cst);
        while (p.passes.load(.seq_cst) == before) rest();
    }
}

test "every pause is counted once, also during a freeze, and both must end" {
    var parking: Parking = .{ .threads = 3 };
    var all_parked: std.atomic.Value(u32) = .init(0);
    var passers: [3]Passer = undefined;
    for (&passers) |*p| p.* = .{ .parking = &parking, .all_parked = &all_parked };
    parking.proceed();
    var threads: [3]std.Thread = undefined;
    for (&threads, &passers) |*t, *p| t.* = try std.Thread.spawn(.{}, Passer.run, .{p});
    for (0..200) |i| {
        const round: u32 = @intCast(i);
        if (round % 3 == 1) parking.hold(.freeze);
        try testing.expect(parking.pause());
        try testing.expect(!parking.isOpen());
        waitFor(&all_parked, round + 1);
        if (round % 3 == 2) parking.hold(.freeze);
        parking.hold(.step);
        parking.proceed();
        try testing.expect(!parking.isOpen());
        parking.release(.step);
        if (round % 3 != 0) {
            // Neither has ended the other.
            try testing.expect(!parking.isOpen());
            parking.release(.freeze);
        }
        try testing.expect(parking.isOpen());
        expectAllPass(&passers);
    }
    try testing.expectEqual(@as(u32, 200), all_parked.load(.seq_cst));
    parking.hold(.freeze);
    parking.stop();
    for (threads) |t| t.join();
    // A resume that comes too late changes nothing.
    parking.proceed();
    try testing.expect(parking.isStopping());
    try testing.expect(!parking.pause());
}

test "a pause, resumed and asked for again at once, is counted for the second time too" {
    var parking: Parking = .{ .threads = 1 };
    var counted: u32 = 0;
    parking.proceed();
    try testing.expectEqual(Passed.go, parking.pass(&counted));
    try testing.expect(parking.pause());
    try testing.expectEqual(Passed.all_parked, parking.pass(&counted));
    parking.proceed();
    try testing.expect(parking.pause());
    try testing.expectEqual(Passed.all_parked, parking.pass(&counted));
}
