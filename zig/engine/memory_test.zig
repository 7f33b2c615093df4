//! Whether the memory of several nodes is one memory: counters, x86-TSO litmus shapes and a checker
//! with random accesses, by threads on the RAM of two pagers (test_cluster.zig), each followed by
//! the audit of directory, page states and the kernel's own page table. Iterations of each shape:
//! SSIHV_ITERATIONS, a few hundred unless said.

const std = @import("std");
const linux = std.os.linux;
const testing = std.testing;
const cluster_file = @import("test_cluster.zig");
const Cluster = cluster_file.Cluster;
const Barrier = cluster_file.Barrier;

const page_size = cluster_file.page_size;
const default_iterations = 400;

const Word = *align(1) u64;

fn iterations() u64 {
    const text = testing.environ.getPosix("SSIHV_ITERATIONS") orelse return default_iterations;
    return std.fmt.parseInt(u64, text, 10) catch default_iterations;
}

/// A plain load of the machine, in its place in the program.
fn load(address: Word) u64 {
    return asm volatile ("movq (%[p]), %[v]"
        : [v] "=r" (-> u64),
        : [p] "r" (address),
        : .{ .memory = true });
}

fn store(address: Word, value: u64) void {
    asm volatile ("movq %[v], (%[p])"
        :
        : [p] "r" (address),
          [v] "r" (value),
        : .{ .memory = true });
}

/// One instruction that reads and writes, also where the word crosses a page: a split lock.
fn lockedIncrement(address: Word) void {
    asm volatile ("lock incq (%[p])"
        :
        : [p] "r" (address),
        : .{ .memory = true });
}

fn fence() void {
    asm volatile ("mfence" ::: .{ .memory = true });
}

const shared_word = 0;
const split_word = 3 * page_size - 4;

const Counting = struct {
    cluster: *Cluster,
    barrier: Barrier,
    rounds: u64,

    fn work(self: *Counting, node: usize) void {
        self.barrier.wait();
        for (0..self.rounds) |_| {
            lockedIncrement(self.cluster.word(node, shared_word));
            lockedIncrement(self.cluster.word(node, 64 + 8 * node));
            lockedIncrement(self.cluster.word(node, split_word));
        }
    }
};

fn countOn(nodes: u8) !void {
    // The split word's pages are node 0's and, with two pages a node, node 1's.
    const cluster = try Cluster.start(testing.allocator, .{ .nodes = nodes, .pages_per_node = 2 });
    var counting: Counting = .{
        .cluster = cluster,
        .barrier = .{ .count = nodes },
        .rounds = iterations(),
    };
    try Cluster.run(nodes, &counting, Counting.work);
    var wrong: u64 = 0;
    for (0..nodes) |n| {
        for ([_]usize{ shared_word, split_word }) |offset| {
            if (load(cluster.word(n, offset)) != nodes * counting.rounds) wrong += 1;
        }
        for (0..nodes) |m| {
            if (load(cluster.word(n, 64 + 8 * m)) != counting.rounds) wrong += 1;
        }
    }
    try testing.expect(cluster.remoteFaults() > 2 * nodes);
    try cluster.stop();
    try testing.expectEqual(@as(u64, 0), wrong);
}

test "locked counters, one split over two pages, on two nodes" {
    try countOn(2);
}

test "locked counters, one split over two pages, on three nodes" {
    try countOn(3);
}

/// What a litmus shape's threads saw in one iteration.
const Seen = [4]u64;

const Shape = struct {
    name: []const u8,
    threads: usize,
    /// Thread `t` of iteration i, which stores i (2i and 2i + 1 in 2+2W).
    step: *const fn (x: Word, y: Word, t: usize, i: u64, seen: *Seen) void,
    /// Whether x86-TSO forbids what was seen.
    forbidden: *const fn (seen: Seen, x: u64, y: u64, i: u64) bool,
};

const shapes = [_]Shape{
    .{ .name = "SB+mfences", .threads = 2, .step = storeBuffer, .forbidden = bothOld },
    .{ .name = "MP", .threads = 2, .step = messagePassing, .forbidden = flagNotData },
    .{ .name = "LB", .threads = 2, .step = loadBuffer, .forbidden = bothNew },
    .{ .name = "2+2W", .threads = 2, .step = twoWrites, .forbidden = bothFirst },
    .{ .name = "IRIW", .threads = 4, .step = independentReads, .forbidden = twoOrders },
    .{ .name = "WRC", .threads = 3, .step = writeToRead, .forbidden = effectWithoutCause },
};

fn storeBuffer(x: Word, y: Word, t: usize, i: u64, seen: *Seen) void {
    store(if (t == 0) x else y, i);
    fence();
    seen[t] = load(if (t == 0) y else x);
}

fn bothOld(seen: Seen, _: u64, _: u64, i: u64) bool {
    return seen[0] < i and seen[1] < i;
}

fn messagePassing(x: Word, y: Word, t: usize, i: u64, seen: *Seen) void {
    if (t == 0) {
        store(x, i);
        store(y, i);
    } else {
        seen[0] = load(y);
        seen[1] = load(x);
    }
}

fn flagNotData(seen: Seen, _: u64, _: u64, i: u64) bool {
    return seen[0] == i and seen[1] < i;
}

fn loadBuffer(x: Word, y: Word, t: usize, i: u64, seen: *Seen) void {
    seen[t] = load(if (t == 0) x else y);
    store(if (t == 0) y else x, i);
}

fn bothNew(seen: Seen, _: u64, _: u64, i: u64) bool {
    return seen[0] == i and seen[1] == i;
}

fn twoWrites(x: Word, y: Word, t: usize, i: u64, _: *Seen) void {
    store(if (t == 0) x else y, 2 * i);
    store(if (t == 0) y else x, 2 * i + 1);
}

fn bothFirst(_: Seen, x: u64, y: u64, i: u64) bool {
    return x == 2 * i and y == 2 * i;
}

fn independentReads(x: Word, y: Word, t: usize, i: u64, seen: *Seen) void {
    switch (t) {
        0 => store(x, i),
        1 => store(y, i),
        2 => {
            seen[0] = load(x);
            seen[1] = load(y);
        },
        else => {
            seen[2] = load(y);
            seen[3] = load(x);
        },
    }
}

fn twoOrders(seen: Seen, _: u64, _: u64, i: u64) bool {
    return seen[0] == i and seen[1] < i and seen[2] == i and seen[3] < i;
}

fn writeToRead(x: Word, y: Word, t: usize, i: u64, seen: *Seen) void {
    switch (t) {
        0 => store(x, i),
        1 => {
            seen[0] = load(x);
            if (seen[0] == i) store(y, i);
        },
        else => {
            seen[1] = load(y);
            seen[2] = load(x);
        },
    }
}

fn effectWithoutCause(seen: Seen, _: u64, _: u64, i: u64) bool {
    return seen[0] == i and seen[1] == i and seen[2] < i;
}

/// Offsets of x and y: a page each on another home, and both in one page.
const places = [_][2]usize{ .{ 0, page_size }, .{ 128, 1024 } };

const Litmus = struct {
    cluster: *Cluster,
    shape: Shape,
    place: [2]usize,
    rounds: u64,
    barrier: Barrier,
    seen: Seen = @splat(0),
    violations: u64 = 0,

    fn work(self: *Litmus, t: usize) void {
        const node = t % self.cluster.nodes.len;
        const x = self.cluster.word(node, self.place[0]);
        const y = self.cluster.word(node, self.place[1]);
        for (1..self.rounds + 1) |i| {
            self.barrier.wait();
            self.shape.step(x, y, t, i, &self.seen);
            self.barrier.wait();
            if (t != 0) continue;
            if (self.shape.forbidden(self.seen, load(x), load(y), i)) self.violations += 1;
            self.seen = @splat(0);
        }
    }
};

test "no litmus shape shows what x86-TSO forbids" {
    for (shapes) |shape| for (places) |place| {
        const cluster = try Cluster.start(testing.allocator, .{ .pages_per_node = 1 });
        var litmus: Litmus = .{
            .cluster = cluster,
            .shape = shape,
            .place = place,
            .rounds = iterations(),
            .barrier = .{ .count = @intCast(shape.threads) },
        };
        try Cluster.run(shape.threads, &litmus, Litmus.work);
        try testing.expect(cluster.remoteFaults() > litmus.rounds / 4);
        try cluster.stop();
        errdefer std.debug.print("{s} at {any}\n", .{ shape.name, place });
        try testing.expectEqual(@as(u64, 0), litmus.violations);
    };
}

test "the judge of each shape knows the forbidden outcome" {
    const forbidden = [_]struct { seen: Seen, x: u64 = 5, y: u64 = 5 }{
        .{ .seen = .{ 4, 4, 0, 0 } },
        .{ .seen = .{ 5, 4, 0, 0 } },
        .{ .seen = .{ 5, 5, 0, 0 } },
        .{ .seen = @splat(0), .x = 10, .y = 10 },
        .{ .seen = .{ 5, 4, 5, 4 } },
        .{ .seen = .{ 5, 5, 4, 0 } },
    };
    const allowed = [_]Seen{
        .{ 5, 4, 0, 0 }, .{ 4, 4, 0, 0 }, .{ 4, 5, 0, 0 },
        @splat(0),       .{ 5, 4, 5, 5 }, .{ 4, 5, 4, 0 },
    };
    for (shapes, forbidden, allowed) |shape, bad, good| {
        try testing.expect(shape.forbidden(bad.seen, bad.x, bad.y, 5));
        try testing.expect(!shape.forbidden(good, 11, 11, 5));
    }
}

/// Each thread writes its own word of random pages, always one more than it last wrote there, and
/// reads all words of another random page: nobody's word may ever go back, nor its own be missed.
const Random = struct {
    cluster: *Cluster,
    pages: usize,
    rounds: u64,
    wrong: std.atomic.Value(u64) = .init(0),
    written: [nodes][pages_max]u64 = @splat(@splat(0)),

    const nodes = 2;
    const pages_max = 64;

    fn work(self: *Random, node: usize) void {
        var prng: std.Random.DefaultPrng = .init(testing.random_seed + node);
        const random = prng.random();
        var last: [nodes][pages_max]u64 = @splat(@splat(0));
        for (0..self.rounds) |_| {
            const target = random.uintLessThan(usize, self.pages);
            self.written[node][target] += 1;
            last[node][target] += 1;
            store(self.at(node, target, node), last[node][target]);
            const looked = random.uintLessThan(usize, self.pages);
            for (0..nodes) |writer| {
                const value = load(self.at(node, looked, writer));
                const own_missed = writer == node and value != last[node][looked];
                if (own_missed or value < last[writer][looked]) {
                    _ = self.wrong.fetchAdd(1, .monotonic);
                }
                last[writer][looked] = value;
            }
        }
    }

    fn at(self: *Random, node: usize, page: usize, writer: usize) Word {
        return self.cluster.word(node, page * page_size + 512 * writer);
    }
};

test "random accesses to few pages: no word goes back, none is missed" {
    for ([_]u64{ 0, 1, std.time.ns_per_ms }) |hold_ns_max| {
        const cluster = try Cluster.start(testing.allocator, .{
            .pages_per_node = 8,
            .hold_ns_max = hold_ns_max,
        });
        var random: Random = .{ .cluster = cluster, .pages = 16, .rounds = 4 * iterations() };
        try Cluster.run(Random.nodes, &random, Random.work);
        for (0..Random.nodes) |reader| for (0..random.pages) |page| {
            for (0..Random.nodes) |writer| {
                const value = load(random.at(reader, page, writer));
                if (value != random.written[writer][page]) _ = random.wrong.fetchAdd(1, .monotonic);
            }
        };
        try cluster.stop();
        try testing.expectEqual(@as(u64, 0), random.wrong.load(.monotonic));
    }
}
