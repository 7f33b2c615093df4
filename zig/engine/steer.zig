//! How the guest TSCs of nodes on several hosts stay together, although no two crystals run alike
//! (some parts in a million: milliseconds within minutes). Pure: readings in, steps out.
//!
//! A node asks node 0 for its TSC, a few times in a row. Node 0 answered somewhere within the
//! exchange, so half-way is off by half of what it took at most: the quickest tells most. A node
//! that is then behind for certain steps forward by as much as is certain. One that is ahead for
//! certain tells node 0, which steps forward, and so all follow the fastest crystal. No TSC goes
//! back, and none is pushed by mere errors: nobody steps while there may be no difference.
//! What remains, half a round trip to node 0, a guest can hardly see: news from there takes as
//! long. Between two other nodes it is both their halves.
//!
//! TSCs are compared without the ticks that freezes took off, which are the same on all nodes.

const std = @import("std");

/// Exchanges in a row.
const burst = 4;

/// Asks node 0.
pub const Asker = struct {
    /// Between two bursts.
    period_ns: u64,
    /// Of the last question; those that are not its answer are nobody's.
    number: u32 = 0,
    is_open: bool = false,
    sent: u64 = 0,
    /// Of this burst: exchanges to come, and what node 0 had stepped by when it began.
    left: u8 = 0,
    steps: u64 = 0,
    best: ?Reading = null,
    asked_ns: u64 = 0,
    /// What the newest burst's difference can be off by.
    bound: u64 = 0,

    const Reading = struct {
        /// Node 0's TSC less this node's, half-way through the exchange.
        difference: i64,
        took: u64,

        /// What it can be off by.
        fn bound(self: Reading) u64 {
            return self.took / 2 + 1;
        }
    };

    pub const Verdict = union(enum) {
        /// Nothing, or nothing yet: not what was asked for.
        ignored,
        /// Ask again at once.
        again,
        /// There may be no difference.
        even,
        /// This node is behind by so many ticks, for certain.
        behind: u64,
        /// Node 0 is, having stepped by `steps` so far.
        ahead: u64,
    };

    /// Whether to begin a burst, with ask().
    pub fn isDue(self: *const Asker, now_ns: u64) bool {
        return !self.is_open and now_ns -| self.asked_ns >= self.period_ns;
    }

    pub fn begin(self: *Asker, now_ns: u64) void {
        self.asked_ns = now_ns;
        self.restart();
    }

    fn restart(self: *Asker) void {
        self.left = burst;
        self.best = null;
    }

    /// A question that leaves now, at this node's `tsc`: its number.
    pub fn ask(self: *Asker, tsc: u64) u32 {
        self.number +%= 1;
        self.is_open = true;
        self.sent = tsc;
        return self.number;
    }

    /// What is open is nothing to judge by any more.
    pub fn abandon(self: *Asker) void {
        self.is_open = false;
    }

    /// Node 0's TSC when it answered, all that it had stepped by, and this node's TSC now.
    pub fn answer(self: *Asker, number: u32, theirs: u64, steps: u64, tsc: u64) Verdict {
        if (!self.is_open or number != self.number) return .ignored;
        self.is_open = false;
        if (self.left < burst and steps != self.steps) self.restart();
        self.steps = steps;
        const took = tsc -% self.sent;
        const half_way = self.sent +% took / 2;
        const reading: Reading = .{ .difference = @bitCast(theirs -% half_way), .took = took };
        if (self.best == null or took < self.best.?.took) self.best = reading;
        self.left -= 1;
        if (self.left > 0) return .again;
        const best = self.best.?;
        self.bound = best.bound();
        const certain = @abs(best.difference) -| self.bound;
        if (certain == 0) return .even;
        return if (best.difference > 0) .{ .behind = certain } else .{ .ahead = certain };
    }
};

const testing = std.testing;

fn exchange(asker: *Asker, sent: u64, theirs: u64, back: u64) Asker.Verdict {
    const number = asker.ask(sent);
    return asker.answer(number, theirs, 0, back);
}

test "what may be an error moves nothing, what is certain does" {
    var asker: Asker = .{ .period_ns = 1000 };
    try testing.expect(asker.isDue(1000));
    asker.begin(1000);
    // Slow ones say little, wherever the answer fell; the quickest counts.
    try testing.expectEqual(.again, exchange(&asker, 100, 9000, 10_100));
    try testing.expectEqual(.again, exchange(&asker, 11_000, 11_100, 11_100));
    try testing.expect(!asker.isDue(1999));
    try testing.expectEqual(.again, exchange(&asker, 12_000, 12_000, 12_200));
    try testing.expectEqual(.even, exchange(&asker, 13_000, 13_000, 13_400));
    try testing.expectEqual(@as(u64, 51), asker.bound);
    // 60 from half-way, of which 51 may be none.
    asker.begin(2000);
    for (0..3) |_| _ = exchange(&asker, 20_000, 20_110, 20_100);
    const behind: Asker.Verdict = .{ .behind = 9 };
    try testing.expectEqual(behind, exchange(&asker, 20_000, 20_110, 20_100));
    asker.begin(3000);
    for (0..3) |_| _ = exchange(&asker, 30_000, 29_950, 30_100);
    const ahead: Asker.Verdict = .{ .ahead = 49 };
    try testing.expectEqual(ahead, exchange(&asker, 30_000, 29_950, 30_100));
}

test "answers to other questions, and readings from before a step of node 0, are not judged by" {
    var asker: Asker = .{ .period_ns = 1000 };
    asker.begin(0);
    const number = asker.ask(100);
    try testing.expectEqual(.ignored, asker.answer(number +% 1, 1 << 60, 0, 200));
    try testing.expectEqual(.again, asker.answer(number, 100, 0, 120));
    try testing.expectEqual(.ignored, asker.answer(number, 1 << 60, 0, 200));
    _ = asker.ask(300);
    asker.abandon();
    try testing.expectEqual(.ignored, asker.answer(asker.number, 1 << 60, 0, 320));
    // Node 0 has stepped by 500: what was quickest before tells nothing now.
    for (0..burst - 1) |i| {
        const at = 1000 + 100 * @as(u64, @intCast(i));
        try testing.expectEqual(.again, asker.answer(asker.ask(at), at + 525, 500, at + 50));
    }
    const behind: Asker.Verdict = .{ .behind = 500 - 26 };
    try testing.expectEqual(behind, asker.answer(asker.ask(2000), 2525, 500, 2050));
}

test "differences beyond what a word holds are the largest there are" {
    var asker: Asker = .{ .period_ns = 1000 };
    asker.begin(0);
    for (0..burst - 1) |_| _ = exchange(&asker, 0, 1 << 63, 0);
    const largest: Asker.Verdict = .{ .ahead = (1 << 63) - 1 };
    try testing.expectEqual(largest, exchange(&asker, 0, 1 << 63, 0));
}

/// Hosts with crystals of their own, and messages that take as long as they like.
const Model = struct {
    const nodes = 4;
    const tick_hz = 2_000_000_000;
    random: std.Random,
    /// Of each node: how fast its crystal is, in parts in a thousand million, and its steps.
    ppb: [nodes]i64,
    steps: [nodes]u64 = @splat(0),
    askers: [nodes]Asker = @splat(.{ .period_ns = 500_000_000 }),
    now_ns: u64 = 0,
    /// What node 0 has yet to be told: by how much it is behind, having stepped by how much.
    words: [nodes]?[2]u64 = @splat(null),

    fn tsc(self: *const Model, node: usize) u64 {
        const rate: u64 = @intCast(1_000_000_000 + self.ppb[node]);
        const own_ns = @as(u128, self.now_ns) * rate / 1_000_000_000;
        return @as(u64, @intCast(own_ns * tick_hz / 1_000_000_000)) + self.steps[node];
    }

    /// 8 us at best, seldom milliseconds; each way by itself.
    fn travel(self: *Model) void {
        const seldom = self.random.uintLessThan(u8, 20) == 0;
        self.now_ns += 8000 + self.random.uintLessThan(u64, if (seldom) 3_000_000 else 20_000);
    }

    fn askOnce(self: *Model, node: usize) void {
        const asker = &self.askers[node];
        asker.begin(self.now_ns);
        while (true) {
            const number = asker.ask(self.tsc(node));
            self.travel();
            const theirs = self.tsc(0);
            self.travel();
            switch (asker.answer(number, theirs, self.steps[0], self.tsc(node))) {
                .again => continue,
                .behind => |ticks| self.steps[node] += ticks,
                .ahead => |ticks| self.words[node] = .{ ticks, asker.steps },
                .even => {},
                .ignored => unreachable,
            }
            return;
        }
    }

    /// All at once: several have found the same.
    fn deliver(self: *Model) void {
        for (&self.words) |*word| {
            const ticks, const steps = word.* orelse continue;
            self.steps[0] += ticks -| (self.steps[0] - steps);
            word.* = null;
        }
    }

    /// Between the foremost clock and the last, in nanoseconds.
    fn spread(self: *const Model) u64 {
        var first: u64 = 0;
        var last: u64 = std.math.maxInt(u64);
        for (0..nodes) |node| {
            first = @max(first, self.tsc(node));
            last = @min(last, self.tsc(node));
        }
        return (first - last) * 1_000_000_000 / tick_hz;
    }
};

test "crystals that differ by 100 in a million stay together for hours, and follow the fastest" {
    for (0..8) |seed| {
        var prng: std.Random.DefaultPrng = .init(seed);
        const random = prng.random();
        var model: Model = .{ .random = random, .ppb = undefined };
        for (&model.ppb) |*ppb| ppb.* = random.intRangeAtMost(i64, -50_000, 50_000);
        // Two of one host.
        model.ppb[3] = model.ppb[2];
        var widest: u64 = 0;
        for (0..2 * 3600 * 2) |i| {
            model.now_ns = i * 500_000_000;
            for (1..Model.nodes) |node| model.askOnce(node);
            model.deliver();
            if (i > 4) widest = @max(widest, model.spread());
        }
        // Half a quick round trip, twice, and what crystals do between bursts; without steps it
        // would be up to 720 ms.
        try testing.expect(widest < 200_000);
        // Errors of measurement have moved nobody: the fastest crystal has not been stepped.
        var fastest: usize = 0;
        for (model.ppb, 0..) |ppb, node| if (ppb > model.ppb[fastest]) {
            fastest = node;
        };
        try testing.expectEqual(@as(u64, 0), model.steps[fastest]);
    }
}
