//! Which page leaves next when memory is short: S3-FIFO (Yang et al., SOSP 2023). A page that comes
//! for the first time waits in a small queue; one that comes back soon after it left (its ghost is
//! still known) goes to the main queue. So pages used once pass through the small queue without
//! pushing out those in use.
//!
//! The kernel gives no samples of accesses to present pages. What is seen: a page came, left, came
//! back, or was touched again while here (a write to a page that was read). Whether a page may
//! leave now is the caller's to find out; a page it cannot spare goes to the main queue's end.
//!
//! One Table has room for each guest page, shared by the policies of a node: a page is in one queue
//! at most. Every call is O(1), for candidate() on average; nothing allocates after init.

const std = @import("std");
const Memory = @import("../base/page_array.zig").Memory;

const Where = enum(u2) { nowhere = 0, small, main, ghost };

/// More would only delay its turn.
const hits_max = 3;

const Mark = packed struct(u8) {
    where: Where = .nowhere,
    /// Touched again since it came to its queue's end.
    hits: u2 = 0,
    pad: u4 = 0,
};

pub const bytes_per_page = 2 * @sizeOf(u32) + @sizeOf(Mark);

pub const Table = struct {
    memory: Memory,
    /// Neighbours in the page's queue, as page + 1; 0: none.
    next: []u32,
    previous: []u32,
    marks: []Mark,

    pub fn init(memory: Memory, page_count: u32) error{OutOfMemory}!Table {
        const next = try memory.alloc(u32, page_count);
        errdefer memory.free(u32, next);
        const previous = try memory.alloc(u32, page_count);
        errdefer memory.free(u32, previous);
        const marks = try memory.alloc(Mark, page_count);
        return .{ .memory = memory, .next = next, .previous = previous, .marks = marks };
    }

    pub fn deinit(self: *Table) void {
        self.memory.free(u32, self.next);
        self.memory.free(u32, self.previous);
        self.memory.free(Mark, self.marks);
        self.* = undefined;
    }
};

/// First in, first out, but a page can leave from anywhere.
const Queue = struct {
    where: Where,
    first: u32 = 0,
    last: u32 = 0,
    count: u32 = 0,

    fn append(self: *Queue, table: *Table, page: u32) void {
        std.debug.assert(table.marks[page].where == .nowhere);
        table.marks[page].where = self.where;
        table.next[page] = 0;
        table.previous[page] = self.last;
        if (self.last == 0) self.first = page + 1 else table.next[self.last - 1] = page + 1;
        self.last = page + 1;
        self.count += 1;
    }

    fn remove(self: *Queue, table: *Table, page: u32) void {
        std.debug.assert(table.marks[page].where == self.where);
        table.marks[page].where = .nowhere;
        const next = table.next[page];
        const previous = table.previous[page];
        if (previous == 0) self.first = next else table.next[previous - 1] = next;
        if (next == 0) self.last = previous else table.previous[next - 1] = previous;
        self.count -= 1;
    }
};

pub const Counters = struct {
    /// Most pages that ever were here.
    present_max: u32 = 0,
    /// Pages that came back while their ghost was known.
    returned: u64 = 0,
    /// Candidates that could not be spared.
    refused: u64 = 0,
};

pub const Policy = struct {
    table: *Table,
    /// Pages that should be here at most.
    budget: u32,
    small: Queue = .{ .where = .small },
    main: Queue = .{ .where = .main },
    /// Pages that left, so many at most as may be here.
    ghost: Queue = .{ .where = .ghost },
    /// The main queue's first could not be spared: the small one's is next, however few there are.
    main_refused: bool = false,
    counters: Counters = .{},

    /// No page is here, and none was.
    pub fn clear(self: *Policy) void {
        for ([_]*Queue{ &self.small, &self.main, &self.ghost }) |queue| {
            while (queue.count > 0) queue.remove(self.table, queue.first - 1);
        }
        self.main_refused = false;
    }

    pub fn present(self: *const Policy) u32 {
        return self.small.count + self.main.count;
    }

    pub fn excess(self: *const Policy) u32 {
        return self.present() -| self.budget;
    }

    /// The page was absent and is here now.
    pub fn came(self: *Policy, page: u32) void {
        self.table.marks[page].hits = 0;
        if (self.table.marks[page].where == .ghost) {
            self.counters.returned += 1;
            self.ghost.remove(self.table, page);
            self.main.append(self.table, page);
        } else self.small.append(self.table, page);
        self.counters.present_max = @max(self.counters.present_max, self.present());
    }

    /// A sign that the page is in use.
    pub fn touched(self: *Policy, page: u32) void {
        const mark = &self.table.marks[page];
        mark.hits = @min(mark.hits +| 1, hits_max);
    }

    /// The page is not here any more: it was put out, or another node took it.
    pub fn left(self: *Policy, page: u32) void {
        self.removeHere(page);
        self.ghost.append(self.table, page);
        if (self.ghost.count <= self.budget) return;
        self.ghost.remove(self.table, self.ghost.first - 1);
    }

    /// The page is not here any more and its content is gone: a return would mean nothing.
    pub fn forget(self: *Policy, page: u32) void {
        if (self.table.marks[page].where == .ghost) return self.ghost.remove(self.table, page);
        self.removeHere(page);
    }

    fn removeHere(self: *Policy, page: u32) void {
        switch (self.table.marks[page].where) {
            .small => self.small.remove(self.table, page),
            .main => self.main.remove(self.table, page),
            .ghost, .nowhere => unreachable,
        }
    }

    /// The page whose turn it is; null: none is here. It stays until left(), forget() or refuse().
    pub fn candidate(self: *Policy) ?u32 {
        const table = self.table;
        while (true) {
            // A tenth for pages whose worth is not known yet.
            const crowded = self.small.count > self.budget / 10 or self.main_refused;
            const from_small = self.small.count > 0 and (crowded or self.main.count == 0);
            const queue = if (from_small) &self.small else &self.main;
            if (queue.count == 0) return null;
            const page = queue.first - 1;
            const mark = &table.marks[page];
            if (mark.hits == 0) return page;
            mark.hits = if (from_small) 0 else mark.hits - 1;
            queue.remove(table, page);
            self.main.append(table, page);
        }
    }

    /// The candidate cannot be spared now, which is a sign of use as well.
    pub fn refuse(self: *Policy, page: u32) void {
        self.counters.refused += 1;
        self.main_refused = self.table.marks[page].where == .main;
        self.removeHere(page);
        self.main.append(self.table, page);
    }
};

const testing = std.testing;

/// What a policy is asked to do, with the pages it then has: a cache of `budget` pages over a trace
/// of accesses, of which the policy sees the misses only.
const Trial = struct {
    table: Table,
    policy: Policy = undefined,
    misses: u64 = 0,

    const pages_max = 4096;

    fn init(self: *Trial, budget: u32) !void {
        const memory: Memory = .{ .allocator = testing.allocator, .fresh_is_zero = false };
        self.* = .{ .table = try .init(memory, pages_max) };
        self.policy = .{ .table = &self.table, .budget = budget };
    }

    fn isHere(self: *const Trial, page: u32) bool {
        const where = self.table.marks[page].where;
        return where == .small or where == .main;
    }

    fn access(self: *Trial, page: u32) void {
        if (self.isHere(page)) return;
        self.misses += 1;
        self.policy.came(page);
        while (self.policy.excess() > 0) self.policy.left(self.policy.candidate().?);
    }

    fn check(self: *const Trial) !void {
        try self.checkQueues();
        try testing.expect(self.policy.excess() == 0);
    }

    fn checkQueues(self: *const Trial) !void {
        var counts: [4]u32 = @splat(0);
        for (self.table.marks) |mark| counts[@backingInt(mark.where)] += 1;
        const p = &self.policy;
        const queues = [_]*const Queue{ &p.small, &p.main, &p.ghost };
        for (queues, counts[1..4]) |queue, count| try testing.expectEqual(count, queue.count);
        try testing.expect(p.ghost.count <= p.budget);
    }
};

/// The same cache, first in, first out.
const Fifo = struct {
    here: [Trial.pages_max]bool = @splat(false),
    order: [Trial.pages_max]u32 = undefined,
    first: usize = 0,
    count: usize = 0,
    budget: usize,
    misses: u64 = 0,

    fn access(self: *Fifo, page: u32) void {
        if (self.here[page]) return;
        self.misses += 1;
        if (self.count == self.budget) {
            self.here[self.order[self.first]] = false;
            self.first = (self.first + 1) % self.order.len;
            self.count -= 1;
        }
        self.order[(self.first + self.count) % self.order.len] = page;
        self.count += 1;
        self.here[page] = true;
    }
};

const hot_pages = 200;

/// Hot pages used again and again at random; every 1000 accesses a run of `scan` other ones.
fn mixedAccesses(cache: anytype, random: std.Random, cold: *u32, scans: usize, scan: u32) void {
    for (0..scans) |_| {
        for (0..1000) |_| cache.access(random.uintLessThan(u32, hot_pages));
        for (0..scan) |_| {
            cache.access(cold.*);
            cold.* = if (cold.* + 1 == Trial.pages_max) hot_pages else cold.* + 1;
        }
    }
}

/// Misses of hot pages in 40 scans, each twice as long as the cache, after some short ones.
fn missesUnderScans(cache: anytype) u64 {
    var prng: std.Random.DefaultPrng = .init(1);
    var cold: u32 = hot_pages;
    mixedAccesses(cache, prng.random(), &cold, 10, 100);
    const before = cache.misses;
    mixedAccesses(cache, prng.random(), &cold, 40, 512);
    return cache.misses - before - 40 * 512;
}

test "scans of pages used once do not push out the pages in use" {
    var trial: Trial = undefined;
    try trial.init(256);
    defer trial.table.deinit();
    var fifo: Fifo = .{ .budget = 256 };
    const misses = missesUnderScans(&trial);
    const fifo_misses = missesUnderScans(&fifo);
    try trial.check();
    const values = .{ misses, fifo_misses };
    std.debug.print("40 scans: {d} pages in use missed, {d} first in, first out\n", values);
    // First in, first out loses all 200 to each scan but the last.
    try testing.expect(fifo_misses > 39 * 190);
    try testing.expect(misses < 40);
}

test "a new set of pages takes the place of one that is not used any more" {
    var trial: Trial = undefined;
    try trial.init(256);
    defer trial.table.deinit();
    var prng: std.Random.DefaultPrng = .init(7);
    for ([_]u32{ 0, 1000, 2000, 0 }) |base| {
        for (0..8000) |_| trial.access(base + prng.random().uintLessThan(u32, 200));
        const settled = trial.misses;
        for (0..8000) |_| trial.access(base + prng.random().uintLessThan(u32, 200));
        try testing.expectEqual(settled, trial.misses);
    }
    try trial.check();
}

test "pages come and leave in any order, and the queues stay whole" {
    var trial: Trial = undefined;
    try trial.init(64);
    defer trial.table.deinit();
    const policy = &trial.policy;
    var prng: std.Random.DefaultPrng = .init(testing.random_seed);
    const random = prng.random();
    for (0..50_000) |_| {
        const page = random.uintLessThan(u32, 512);
        switch (random.uintLessThan(u8, 8)) {
            0 => if (trial.isHere(page)) policy.left(page),
            1 => if (trial.table.marks[page].where != .nowhere) policy.forget(page),
            2 => if (trial.isHere(page)) policy.touched(page),
            3 => if (policy.candidate()) |refused| policy.refuse(refused),
            else => trial.access(page),
        }
    }
    try trial.check();
    policy.clear();
    try testing.expectEqual(@as(u32, 0), policy.present() + policy.ghost.count);
    try trial.check();
}

test "whatever cannot be spared, every page that is here gets its turn" {
    var trial: Trial = undefined;
    try trial.init(100);
    defer trial.table.deinit();
    const policy = &trial.policy;
    for (0..100) |page| policy.came(@intCast(page));
    for (0..50) |_| policy.refuse(policy.candidate().?);
    for (100..105) |page| policy.came(@intCast(page));
    policy.touched(101);
    var seen: [105]bool = @splat(false);
    for (0..2 * seen.len) |_| {
        const page = policy.candidate().?;
        seen[page] = true;
        policy.refuse(page);
    }
    for (seen) |each| try testing.expect(each);
    try testing.expectEqual(@as(u64, 260), policy.counters.refused);
    try trial.checkQueues();
}

test "two policies over one table keep their pages apart" {
    var trial: Trial = undefined;
    try trial.init(2);
    defer trial.table.deinit();
    var other: Policy = .{ .table = &trial.table, .budget = 2 };
    for ([_]u32{ 1, 3, 5 }) |page| trial.policy.came(page);
    for ([_]u32{ 2, 4, 6 }) |page| other.came(page);
    try testing.expectEqual(@as(u32, 1), trial.policy.excess());
    try testing.expectEqual(@as(u32, 3), trial.policy.counters.present_max);
    try testing.expectEqual(@as(?u32, 1), trial.policy.candidate());
    try testing.expectEqual(@as(?u32, 2), other.candidate());
    other.left(2);
    other.came(2);
    try testing.expectEqual(@as(u64, 1), other.counters.returned);
    try testing.expectEqual(@as(u64, 0), trial.policy.counters.returned);
}
