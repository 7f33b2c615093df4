//! The classic shapes by which memory models are told apart (Alglave et al., "Herding cats"; Owens
//! et al., "A better x86 memory model: x86-TSO"), as payloads on the RAM of several nodes.
//!
//! One iteration is one instance of a shape: each of its threads does its part once, on the
//! instance's own two words, and what they saw is judged. A round is a number of instances that
//! all threads go through side by side after they have met at a barrier, with small random delays
//! and no other order between them; the words keep the round's number. With one instance a round
//! the threads start together each time; with many they overtake each other while pages move.

const std = @import("std");
const payload = @import("test_payload.zig");
const Dice = payload.Dice;
const Stage = payload.Stage;
const Word = payload.Word;
const page_size = payload.page_size;

/// What a shape's threads saw in one instance.
pub const Seen = [4]u64;

pub const Shape = struct {
    name: []const u8,
    threads: u8,
    /// Loads that are judged; 0: the last values of the two words are.
    loads: u8,
    /// The one outcome that x86-TSO forbids: bit n is set when load n saw the round's store, or
    /// word n ended with the store that its thread made second.
    forbidden: u4,
    /// The outcome is allowed after all, and only counted.
    relaxed: bool = false,
    /// Thread t's part in round i. It stores i (2+2W: 2i first, then 2i + 1).
    step: *const fn (x: Word, y: Word, t: usize, i: u64, seen: *Seen) void,
    load: *const fn (word: Word) u64,

    /// An outcome's bits, the first load's (or word's) first.
    pub fn outcomeName(self: *const Shape, index: usize) []const u8 {
        const names = [_][]const u8{
            "0000", "1000", "0100", "1100", "0010", "1010", "0110", "1110",
            "0001", "1001", "0101", "1101", "0011", "1011", "0111", "1111",
        };
        return names[index][0..if (self.loads == 0) 2 else self.loads];
    }

    /// An index of what was seen, null for a value that nobody can have stored for this round.
    fn outcome(self: *const Shape, seen: Seen, last: [2]u64, i: u64) ?u4 {
        var result: u4 = 0;
        if (self.loads == 0) {
            for (last, 0..) |value, n| {
                if (value != 2 * i and value != 2 * i + 1) return null;
                if (value == 2 * i + 1) result |= @as(u4, 1) << @intCast(n);
            }
            return result;
        }
        for (seen[0..self.loads], 0..) |value, n| {
            if (value != i - 1 and value != i) return null;
            if (value == i) result |= @as(u4, 1) << @intCast(n);
        }
        return result;
    }
};

/// Plain loads and stores.
pub const Plain = struct {
    const load = payload.load;
    const store = payload.store;
    const fence = payload.fence;
    const orders_stores = false;
};

/// Locked instructions, for words that lie across two pages: both halves hold the value, and a load
/// that sees two different ones has seen half a store.
pub const Split = struct {
    const torn = std.math.maxInt(u64);
    /// Every one of them drains the store buffer.
    const orders_stores = true;

    fn load(word: Word) u64 {
        const value = payload.lockedLoad(word);
        return if (value >> 32 == value & 0xffff_ffff) value >> 32 else torn;
    }

    fn store(word: Word, value: u64) void {
        payload.lockedStore(word, value << 32 | value);
    }

    const fence = payload.fence;
};

pub fn Shapes(comptime A: type) type {
    return struct {
        pub const all = [_]Shape{
            .{
                .name = "SB",
                .threads = 2,
                .loads = 2,
                .forbidden = 0b00,
                .relaxed = !A.orders_stores,
                .step = storeBuffer,
                .load = A.load,
            },
            .{
                .name = "SB+mfences",
                .threads = 2,
                .loads = 2,
                .forbidden = 0b00,
                .step = storeBufferFenced,
                .load = A.load,
            },
            .{
                .name = "MP",
                .threads = 2,
                .loads = 2,
                .forbidden = 0b01,
                .step = messagePassing,
                .load = A.load,
            },
            .{
                .name = "LB",
                .threads = 2,
                .loads = 2,
                .forbidden = 0b11,
                .step = loadBuffer,
                .load = A.load,
            },
            .{
                .name = "2+2W",
                .threads = 2,
                .loads = 0,
                .forbidden = 0b00,
                .step = twoWrites,
                .load = A.load,
            },
            .{
                .name = "WRC",
                .threads = 3,
                .loads = 3,
                .forbidden = 0b011,
                .step = writeToRead,
                .load = A.load,
            },
            .{
                .name = "IRIW",
                .threads = 4,
                .loads = 4,
                .forbidden = 0b0101,
                .step = independentReads,
                .load = A.load,
            },
        };

        fn storeBuffer(x: Word, y: Word, t: usize, i: u64, seen: *Seen) void {
            A.store(if (t == 0) x else y, i);
            seen[t] = A.load(if (t == 0) y else x);
        }

        fn storeBufferFenced(x: Word, y: Word, t: usize, i: u64, seen: *Seen) void {
            A.store(if (t == 0) x else y, i);
            A.fence();
            seen[t] = A.load(if (t == 0) y else x);
        }

        fn messagePassing(x: Word, y: Word, t: usize, i: u64, seen: *Seen) void {
            if (t == 0) {
                A.store(x, i);
                A.store(y, i);
            } else {
                seen[0] = A.load(y);
                seen[1] = A.load(x);
            }
        }

        fn loadBuffer(x: Word, y: Word, t: usize, i: u64, seen: *Seen) void {
            seen[t] = A.load(if (t == 0) x else y);
            A.store(if (t == 0) y else x, i);
        }

        fn twoWrites(x: Word, y: Word, t: usize, i: u64, _: *Seen) void {
            A.store(if (t == 0) x else y, 2 * i);
            A.store(if (t == 0) y else x, 2 * i + 1);
        }

        /// The middle thread passes on what it saw, old or new.
        fn writeToRead(x: Word, y: Word, t: usize, i: u64, seen: *Seen) void {
            switch (t) {
                0 => A.store(x, i),
                1 => {
                    seen[0] = A.load(x);
                    A.store(y, seen[0]);
                },
                else => {
                    seen[1] = A.load(y);
                    // The middle thread may have passed on an old value in the round before.
                    if (seen[1] +% 2 == i) seen[1] = i - 1;
                    seen[2] = A.load(x);
                },
            }
        }

        fn independentReads(x: Word, y: Word, t: usize, i: u64, seen: *Seen) void {
            switch (t) {
                0 => A.store(x, i),
                1 => A.store(y, i),
                2 => {
                    seen[0] = A.load(x);
                    seen[1] = A.load(y);
                },
                else => {
                    seen[2] = A.load(y);
                    seen[3] = A.load(x);
                },
            }
        }
    };
}

/// Where the two words of each instance lie.
pub const Place = enum {
    /// Each in a page of its own.
    apart,
    /// Both in one page.
    together,
    /// Each across two pages, one of which they share; by locked instructions.
    split,

    pub fn shapes(self: Place) []const Shape {
        return if (self == .split) &Shapes(Split).all else &Shapes(Plain).all;
    }

    pub fn instancesMax(self: Place) usize {
        return if (self == .split) 16 else page_size / 16;
    }

    pub fn pages(self: Place, instances: usize) usize {
        return switch (self) {
            .apart => 2,
            .together => 1,
            .split => 2 * instances + 1,
        };
    }

    /// Offset of word n of instance k.
    fn offset(self: Place, k: usize, n: usize) usize {
        return switch (self) {
            .apart => n * page_size + 16 * k,
            .together => 16 * k + 8 * n,
            .split => (2 * k + n + 1) * page_size - 4,
        };
    }
};

pub const instances_max = page_size / 16;

pub const Litmus = struct {
    stage: Stage,
    shape: Shape,
    place: Place,
    /// Where the place begins in the VM's RAM.
    base: usize,
    /// Rounds first + 1 to first + rounds. A later run on the same words goes on from there, with
    /// no more instances.
    first: u64,
    rounds: u64,
    instances: usize,
    /// Delays of up to 2^bits turns.
    delay_bits: u6,
    seed: u64,
    seen: [instances_max]Seen = @splat(@splat(0)),
    outcomes: [16]u64 = @splat(0),
    /// Instances that showed the forbidden outcome (or the relaxed one), and impossible values.
    forbidden: u64 = 0,
    impossible: u64 = 0,

    pub fn work(self: *Litmus, t: usize) void {
        const node = t % self.stage.nodes;
        var dice: Dice = .init(self.seed *% 8 +% t);
        for (self.first + 1..self.first + self.rounds + 1) |i| {
            self.stage.barrier.wait();
            for (0..self.instances) |k| {
                payload.dawdle(&dice, self.delay_bits);
                self.shape.step(self.at(node, k, 0), self.at(node, k, 1), t, i, &self.seen[k]);
            }
            self.stage.barrier.wait();
            // Another thread each time: it takes the pages of words whose last values count.
            if (t == i % self.shape.threads) self.judge(node, i);
        }
    }

    fn at(self: *const Litmus, node: usize, k: usize, n: usize) Word {
        return self.stage.word(node, self.base + self.place.offset(k, n));
    }

    fn judge(self: *Litmus, node: usize, i: u64) void {
        for (0..self.instances) |k| {
            var last: [2]u64 = .{ 0, 0 };
            if (self.shape.loads == 0) for (&last, 0..) |*value, n| {
                value.* = self.shape.load(self.at(node, k, n));
            };
            if (self.shape.outcome(self.seen[k], last, i)) |outcome| {
                self.outcomes[outcome] += 1;
                self.forbidden += @intFromBool(outcome == self.shape.forbidden);
            } else self.impossible += 1;
        }
    }

    pub fn iterations(self: *const Litmus) u64 {
        return self.rounds * self.instances;
    }
};

const testing = std.testing;

test "the judge of each shape knows the forbidden outcome" {
    // In the order of the shapes; for 2+2W the last values.
    const bad = [_]Seen{
        .{ 4, 4, 0, 0 },   .{ 4, 4, 0, 0 }, .{ 5, 4, 0, 0 }, .{ 5, 5, 0, 0 },
        .{ 10, 10, 0, 0 }, .{ 5, 5, 4, 0 }, .{ 5, 4, 5, 4 },
    };
    const good = [_]Seen{
        .{ 5, 4, 0, 0 },   .{ 4, 5, 0, 0 }, .{ 4, 5, 0, 0 }, .{ 5, 4, 0, 0 },
        .{ 11, 10, 0, 0 }, .{ 5, 5, 5, 0 }, .{ 5, 4, 5, 5 },
    };
    for ([_]Place{ .apart, .split }) |place| {
        for (place.shapes(), bad, good) |shape, b, g| {
            try testing.expectEqual(shape.forbidden, shape.outcome(b, b[0..2].*, 5).?);
            try testing.expect(shape.outcome(g, g[0..2].*, 5).? != shape.forbidden);
            const old: Seen = @splat(3);
            try testing.expectEqual(null, shape.outcome(old, old[0..2].*, 5));
            const half: Seen = @splat(Split.torn);
            try testing.expectEqual(null, shape.outcome(half, half[0..2].*, 5));
            // Only a plain store may be seen after the load that follows it.
            try testing.expectEqual(
                place == .apart and std.mem.eql(u8, shape.name, "SB"),
                shape.relaxed,
            );
        }
    }
}

test "no two words of a place overlap, and they lie where it says" {
    for (std.enums.values(Place)) |place| {
        var taken: [(2 * 16 + 1) * page_size]bool = @splat(false);
        for (0..place.instancesMax()) |k| for (0..2) |n| {
            const offset = place.offset(k, n);
            try testing.expectEqual(place == .split, offset % page_size > page_size - 8);
            for (taken[offset..][0..8]) |*t| {
                try testing.expect(!t.*);
                t.* = true;
            }
            try testing.expect(offset + 8 <= place.pages(place.instancesMax()) * page_size);
        };
    }
}
