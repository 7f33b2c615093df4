//! Two more payloads on the RAM of several nodes: counters under locked increments, and random
//! accesses that are checked one by one against what x86-TSO allows.

const std = @import("std");
const payload = @import("test_payload.zig");
const Dice = payload.Dice;
const Stage = payload.Stage;
const Word = payload.Word;
const page_size = payload.page_size;
const nodes_max = payload.nodes_max;

/// Each payload adds one to a word they all share, to a word of its own in the same page, and to a
/// word across two pages: with two pages a node, of two homes.
pub const Counting = struct {
    stage: Stage,
    rounds: u64,

    pub const pages_per_node = 2;
    const shared = 0;
    const split = 2 * page_size - 4;

    fn own(node: usize) usize {
        return 64 + 8 * node;
    }

    pub fn work(self: *Counting, node: usize) void {
        self.stage.barrier.wait();
        for (0..self.rounds) |_| {
            payload.lockedIncrement(self.stage.word(node, shared));
            payload.lockedIncrement(self.stage.word(node, own(node)));
            payload.lockedIncrement(self.stage.word(node, split));
        }
    }

    /// Increments that some node does not see, or sees twice, afterwards; by a thread of this
    /// process.
    pub fn missing(self: *const Counting) u64 {
        var sum: u64 = 0;
        const all = self.stage.nodes * self.rounds;
        for (0..self.stage.nodes) |n| {
            sum += distance(all, payload.load(self.stage.word(n, shared)));
            sum += distance(all, payload.load(self.stage.word(n, split)));
            for (0..self.stage.nodes) |m| {
                sum += distance(self.rounds, payload.load(self.stage.word(n, own(m))));
            }
        }
        return sum;
    }

    fn distance(a: u64, b: u64) u64 {
        return @max(a, b) - @min(a, b);
    }
};

/// Every payload stores 1, 2, 3 ... to random ones of its own words, which lie in every page, and
/// loads random words of all. The dice that choose a writer's words are known to all readers: who
/// has seen a writer's number s knows what all of that writer's words must hold at least, since
/// stores and loads are seen in order. So a load may give the number that the newest store known
/// so far left in the word, or a newer one that the dice put into that very word: anything else is
/// wrong.
pub const Random = struct {
    stage: Stage,
    pages: usize,
    rounds: u64,
    seed: u64,
    wrong: std.atomic.Value(u64),
    /// Numbers stored by each writer.
    written: [nodes_max]u64,
    views: [nodes_max][nodes_max]View,

    pub const pages_max = 64;
    const words_a_page = 4;
    const words_max = pages_max * words_a_page;
    /// Accesses to a page before another one is chosen.
    const stay = 4;
    /// Delays of up to 2^bits turns: else one is through before another has its first page.
    const delay_bits = 10;

    /// A writer's stores up to a number: what its words hold then.
    const View = struct {
        dice: Dice,
        pages: usize,
        number: u64 = 0,
        page: usize = 0,
        holds: [words_max]u64,

        fn init(self: *View, seed: u64, writer: usize, pages: usize) void {
            self.dice = .init(seed *% nodes_max +% writer);
            self.pages = pages;
            self.number = 0;
            self.page = 0;
            for (&self.holds) |*h| h.* = 0;
        }

        /// The word that the next number goes to.
        fn advance(self: *View) usize {
            if (self.number % stay == 0) self.page = self.dice.below(self.pages);
            const word = self.page * words_a_page + self.dice.below(words_a_page);
            self.number += 1;
            self.holds[word] = self.number;
            return word;
        }

        /// Whether the word may hold `value`, which is then known.
        fn learn(self: *View, word: usize, value: u64, limit: u64) bool {
            if (value > limit) return false;
            while (self.number < value) _ = self.advance();
            return self.holds[word] == value;
        }
    };

    pub fn work(self: *Random, node: usize) void {
        const views = &self.views[node];
        for (views[0..self.stage.nodes], 0..) |*v, w| v.init(self.seed, w, self.pages);
        var dice: Dice = .init(~self.seed +% node);
        var page: usize = 0;
        self.stage.barrier.wait();
        for (0..self.rounds) |i| {
            payload.dawdle(&dice, delay_bits);
            const target = views[node].advance();
            payload.store(self.at(node, target, node), views[node].number);
            if (i % stay == 0) page = dice.below(self.pages);
            const word = page * words_a_page + dice.below(words_a_page);
            const writer = dice.below(self.stage.nodes);
            // Its own number it knows exactly, others cannot have got further than the end.
            const limit = if (writer == node) views[node].number else self.rounds;
            const value = payload.load(self.at(node, word, writer));
            if (!views[writer].learn(word, value, limit)) _ = self.wrong.fetchAdd(1, .monotonic);
        }
        self.written[node] = views[node].number;
    }

    fn at(self: *const Random, node: usize, word: usize, writer: usize) Word {
        const place = writer * words_a_page + word % words_a_page;
        return self.stage.word(node, word / words_a_page * page_size + 128 + 8 * place);
    }

    /// Words that some node sees otherwise than they were left, afterwards; by a thread of this
    /// process.
    pub fn missing(self: *Random) u64 {
        var sum: u64 = 0;
        for (0..self.stage.nodes) |writer| {
            const left = &self.views[writer][writer].holds;
            for (0..self.stage.nodes) |n| for (0..self.pages * words_a_page) |word| {
                const value = payload.load(self.at(n, word, writer));
                sum += @intFromBool(value != left[word]);
            };
        }
        return sum;
    }
};

test "the random checker accepts a writer's stores in order and nothing else" {
    const testing = std.testing;
    const seed = 7;
    var writer: Random.View = undefined;
    var reader: Random.View = undefined;
    writer.init(seed, 1, 4);
    reader.init(seed, 1, 4);
    var words: [200]usize = undefined;
    for (&words) |*w| w.* = writer.advance();
    try testing.expect(reader.learn(words[9], 10, 200));
    // Again, and the word of the store before: as they were then, not older.
    try testing.expect(reader.learn(words[9], 10, 200));
    try testing.expect(!reader.learn(words[9], 0, 200));
    // A number that went to another word, and one that does not exist yet.
    const other = if (words[20] == 0) @as(usize, 1) else 0;
    try testing.expect(!reader.learn(other, 21, 200));
    try testing.expect(!reader.learn(words[199], 200, 199));
    try testing.expect(reader.learn(words[199], 200, 200));
    for (writer.holds, 0..) |value, word| try testing.expect(reader.learn(word, value, 200));
}
