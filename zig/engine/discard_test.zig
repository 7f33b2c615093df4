//! Discards over several pagers: pages read as zeroes for everybody once they are told to be gone,
//! wherever they were, and until somebody writes them; frames of memory nodes come free; and what
//! happens to the same pages meanwhile loses nothing. With the audit of directory, page states,
//! frames and the kernel's page tables at the end of each.

const std = @import("std");
const testing = std.testing;
const cluster_file = @import("test_cluster.zig");
const Cluster = cluster_file.Cluster;
const Batch = @import("discards.zig").Batch;
const Command = @import("pager.zig").Command;

const sys = @import("../base/sys.zig");

const page_size = cluster_file.page_size;

fn rounds(default: u64) u64 {
    const text = testing.environ.getPosix("SSIHV_ITERATIONS") orelse return default;
    return std.fmt.parseInt(u64, text, 10) catch default;
}

fn at(cluster: *Cluster, node: usize, page: usize) *align(1) volatile u64 {
    return cluster.word(node, page * page_size + 64);
}

test "pages of every home, in every state, read as zeroes on every node" {
    const cluster = try Cluster.start(testing.allocator, .{ .nodes = 3, .pages_per_node = 16 });
    defer cluster.free();
    for (0..3) |asker| {
        for (0..48) |page| {
            // Untouched, written by one, and shared by two and by three.
            const readers = page % 4;
            if (readers == 0) continue;
            at(cluster, page % 3, page).* = page;
            for (1..readers) |i| {
                try testing.expectEqual(page, at(cluster, (page + i) % 3, page).*);
            }
        }
        try cluster.discard(asker, 0, 48);
        for (0..48) |page| for (0..3) |node| {
            try testing.expectEqual(@as(u64, 0), at(cluster, (page + node) % 3, page).*);
        };
    }
    try cluster.rest();
    try testing.expectEqual(@as(u64, 3 * 48), cluster.sum("pages_discarded"));
    try testing.expectEqual(@as(u64, 0), cluster.sum("discards_refused"));
}

test "a node that keeps few pages: frames of two memory nodes come free, and their memory" {
    const pages = 96;
    const cluster = try Cluster.start(testing.allocator, .{
        .nodes = 1,
        .memory_nodes = 2,
        .pages_per_node = pages,
        .frames = pages,
        .frame_copies = 2,
        .limits = .{ .own_pages = 16 },
    });
    defer cluster.free();
    for (0..pages) |page| at(cluster, 0, page).* = page + 1;
    const core = &cluster.nodes[0].pager.shell.core;
    try cluster.discard(0, 0, pages);
    for (0..pages) |page| try testing.expectEqual(@as(u64, 0), at(cluster, 0, page).*);
    try cluster.discard(0, 0, pages);
    try untilAllFree(cluster);
    try cluster.rest();
    try testing.expectEqual(@as(u64, 2 * pages), cluster.sum("pages_discarded"));
    try testing.expect(cluster.sum("frames_freed") >= 2 * (pages - 16));
    try testing.expectEqual(@as(u64, 0), core.store.inUse());
    for (cluster.lenders) |*node| {
        try testing.expect(node.stats.frame_puts > 0);
        try testing.expectEqual(@as(u64, 0), node.stats.frames_held);
    }
}

/// Memory nodes hear of free frames without an answer, so maybe after the discard is told.
fn untilAllFree(cluster: *Cluster) !void {
    const deadline = sys.monotonicNs() + 10 * std.time.ns_per_s;
    for (cluster.lenders) |*node| {
        while (@atomicLoad(u64, &node.stats.frames_held, .monotonic) > 0) {
            if (sys.monotonicNs() > deadline) return error.FramesNeverFree;
            std.Thread.yield() catch |e| return e;
        }
    }
}

/// Threads add to words of their own in all pages, which another one discards over and over. Each
/// finds in a word what it left there, or less: zero once more, and what it added since.
const Churn = struct {
    cluster: *Cluster,
    pages: u32,
    rounds: u64,
    writers: usize,
    working: std.atomic.Value(usize),
    discards: std.atomic.Value(u64) = .init(0),
    emptied: std.atomic.Value(u64) = .init(0),
    wrong: std.atomic.Value(u64) = .init(0),

    fn work(self: *Churn, thread: usize) void {
        if (thread == self.writers) return self.discardAll();
        defer _ = self.working.fetchSub(1, .acq_rel);
        var prng: std.Random.DefaultPrng = .init(testing.random_seed + thread);
        var left: [256]u64 = @splat(0);
        const node = thread % self.cluster.nodes.len;
        // On a busy machine the others may be done before the one that discards has begun.
        var round: u64 = 0;
        while (round < self.rounds or !self.isSeen()) : (round += 1) {
            const page = prng.random().uintLessThan(u32, self.pages);
            const word: *align(1) volatile u64 =
                self.cluster.word(node, page * page_size + 64 * (1 + thread));
            const value = word.*;
            if (value != left[page]) {
                const is_empty = value == 0;
                _ = (if (is_empty) &self.emptied else &self.wrong).fetchAdd(1, .monotonic);
            }
            // Between the two it may be discarded: then it holds this, and nothing of before.
            left[page] = value + 1;
            word.* = left[page];
        }
    }

    /// Discards were many, and seen; or nothing more is to be seen.
    fn isSeen(self: *Churn) bool {
        if (self.wrong.load(.monotonic) > 0) return true;
        return self.discards.load(.monotonic) >= 100 and self.emptied.load(.monotonic) > 0;
    }

    fn discardAll(self: *Churn) void {
        var turn: u64 = 0;
        while (self.working.load(.acquire) > 0) : (turn += 1) {
            const first: u32 = @intCast(turn * 7 % self.pages);
            const count = @min(8, self.pages - first);
            const node = turn % self.cluster.nodes.len;
            self.cluster.discard(node, first, count) catch return self.found();
            _ = self.discards.fetchAdd(1, .monotonic);
        }
    }

    fn found(self: *Churn) void {
        _ = self.wrong.fetchAdd(1, .monotonic);
    }
};

fn churn(options: cluster_file.Options) !void {
    const cluster = try Cluster.start(testing.allocator, options);
    defer cluster.free();
    const writers = 2 * @as(usize, options.nodes);
    var c: Churn = .{
        .cluster = cluster,
        .pages = options.nodes * options.pages_per_node,
        .rounds = rounds(4000),
        .writers = writers,
        .working = .init(writers),
    };
    try Cluster.run(writers + 1, &c, Churn.work);
    try testing.expectEqual(@as(u64, 0), c.wrong.load(.monotonic));
    // All at once at the end: nothing is left anywhere.
    try cluster.discard(0, 0, c.pages);
    for (0..c.pages) |page| for (0..options.nodes) |node| {
        for (0..page_size / 64) |i| {
            const word = cluster.word(node, page * page_size + 64 * i);
            try testing.expectEqual(@as(u64, 0), word.*);
        }
    };
    const discards = c.discards.load(.monotonic);
    std.debug.print("churn: {d} nodes, {d} discards of {d} pages, {d} words found empty\n", .{
        options.nodes, discards, cluster.sum("pages_discarded"), c.emptied.load(.monotonic),
    });
    try testing.expect(c.isSeen());
    try cluster.rest();
}

test "discards cross accesses of all nodes" {
    try churn(.{ .nodes = 2, .pages_per_node = 12 });
    try churn(.{ .nodes = 3, .pages_per_node = 8, .hold_ns_max = 0 });
}

test "discards cross accesses, evictions and memory nodes" {
    try churn(.{
        .nodes = 2,
        .memory_nodes = 2,
        .pages_per_node = 32,
        .frames = 40,
        .frame_copies = 2,
        .limits = .{ .own_pages = 8, .cache_pages = 8 },
    });
}

test "a reset while a batch is being discarded, and the memory is as new" {
    const cluster = try Cluster.start(testing.allocator, .{ .nodes = 2, .pages_per_node = 256 });
    defer cluster.free();
    for (0..4) |_| {
        for (0..512) |page| at(cluster, page % 2, page).* = 1;
        const n = &cluster.nodes[0];
        const before = n.discards.load(.acquire);
        var batch: Batch = .{};
        for (0..512) |page| batch.add(@intCast(page));
        n.pager.command(Command.discard, @intFromPtr(&batch));
        try cluster.reset();
        // Told before the reset, whole or in part.
        try testing.expectEqual(before + 1, n.discards.load(.acquire));
        for (0..512) |page| try testing.expectEqual(@as(u64, 0), at(cluster, 1, page).*);
    }
    try cluster.rest();
}
