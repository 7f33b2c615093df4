//! Whether memory stays one memory where no node has room for all of it: random accesses to many
//! more pages than fit, with the audit of directory, page states and the kernel's page table at the
//! end, and no more pages here at any time than the limits and what is under way allow.

const std = @import("std");
const linux = std.os.linux;
const testing = std.testing;
const cluster_file = @import("test_cluster.zig");
const Cluster = cluster_file.Cluster;
const hold = @import("../dsm/hold.zig");
const room = @import("room.zig");

const page_size = cluster_file.page_size;
const default_rounds = 3000;

const Word = *align(1) u64;

fn rounds() u64 {
    const text = testing.environ.getPosix("SSIHV_ITERATIONS") orelse return default_rounds;
    return std.fmt.parseInt(u64, text, 10) catch default_rounds;
}

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

fn lockedIncrement(address: Word) void {
    asm volatile ("lock incq (%[p])"
        :
        : [p] "r" (address),
        : .{ .memory = true });
}

const threads_max = 8;
const pages_max = 256;

/// Every thread has a word of its own in each page, and all share one. A thread adds to the words
/// of random pages, and looks at those of others: nobody's word may go back, its own none be
/// missed, and at the end the shared word is the sum of all.
const Traffic = struct {
    cluster: *Cluster,
    threads: usize,
    pages: usize,
    rounds: u64,
    /// Of a hundred accesses, so many go to the few pages that are used most.
    warm: u8 = 50,
    wrong: std.atomic.Value(u64) = .init(0),
    written: [threads_max][pages_max]u64 = @splat(@splat(0)),

    const warm_pages = 6;

    fn work(self: *Traffic, thread: usize) void {
        var prng: std.Random.DefaultPrng = .init(testing.random_seed + thread);
        const random = prng.random();
        const seen = testing.allocator.create([threads_max][pages_max]u64) catch unreachable;
        defer testing.allocator.destroy(seen);
        seen.* = @splat(@splat(0));
        for (0..self.rounds) |_| {
            const target = self.pick(random);
            if (random.uintLessThan(u8, 3) > 0) {
                self.written[thread][target] += 1;
                seen[thread][target] += 1;
                store(self.at(thread, target, thread), seen[thread][target]);
                lockedIncrement(self.at(thread, target, self.threads));
            }
            const looked = self.pick(random);
            for (0..self.threads) |writer| {
                const value = load(self.at(thread, looked, writer));
                const own_missed = writer == thread and value != seen[thread][looked];
                if (own_missed or value < seen[writer][looked]) self.found();
                seen[writer][looked] = value;
            }
        }
    }

    fn pick(self: *const Traffic, random: std.Random) usize {
        const is_warm = random.uintLessThan(u8, 100) < self.warm;
        return random.uintLessThan(usize, if (is_warm) warm_pages else self.pages);
    }

    fn found(self: *Traffic) void {
        _ = self.wrong.fetchAdd(1, .monotonic);
    }

    /// Thread n runs on node n.
    fn at(self: *Traffic, thread: usize, page: usize, writer: usize) Word {
        const node = thread % self.cluster.nodes.len;
        return self.cluster.word(node, page * page_size + 64 * writer);
    }

    fn checkAll(self: *Traffic) void {
        for (0..self.cluster.nodes.len) |reader| for (0..self.pages) |page| {
            var all: u64 = 0;
            for (0..self.threads) |writer| {
                const value = load(self.at(reader, page, writer));
                if (value != self.written[writer][page]) self.found();
                all += self.written[writer][page];
            }
            if (load(self.at(reader, page, self.threads)) != all) self.found();
        };
    }
};

/// Beyond the limits may be what faults in flight bring, two pages a thread, one at a time; with
/// holds all that a thread's chain of faults keeps. And own pages come without being asked for, as
/// many as peers have on their way out.
fn expectWithinLimits(
    cluster: *const Cluster,
    limits: room.Limits,
    threads: usize,
    holds: bool,
) !void {
    const kept: usize = if (holds) hold.pages_max + 1 else 2;
    const asked = kept * threads / cluster.nodes.len;
    const put = (cluster.nodes.len - 1) * room.slots_max;
    for (cluster.nodes, 0..) |*node, n| {
        const stats = &node.stats;
        const cache = stats.cache_pages_max;
        const own = stats.own_pages_max;
        errdefer std.debug.print("node {d}: {d} cached, {d} own pages\n", .{ n, cache, own });
        if (limits.cache_pages > 0) try testing.expect(cache <= limits.cache_pages + asked);
        if (limits.own_pages > 0) try testing.expect(own <= limits.own_pages + asked + put);
    }
}

test "every cache is full on every node and all threads fault: all go on to their end" {
    for ([_]u64{ 0, std.time.ns_per_ms }) |hold_ns_max| {
        const limits: room.Limits = .{ .cache_pages = 4 };
        const cluster = try Cluster.start(testing.allocator, .{
            .nodes = 3,
            .pages_per_node = 8,
            .hold_ns_max = hold_ns_max,
            .limits = limits,
        });
        var traffic: Traffic = .{
            .cluster = cluster,
            .threads = 6,
            .pages = 24,
            .rounds = rounds() / 3,
            .warm = 0,
        };
        try Cluster.run(6, &traffic, Traffic.work);
        traffic.checkAll();
        try expectWithinLimits(cluster, limits, 6, hold_ns_max > 0);
        for (cluster.nodes) |*node| try testing.expect(node.stats.cache_pages_max >= 4);
        std.debug.print("full: {d} pages evicted, {d} turns held\n", .{
            cluster.sum("pages_evicted"), cluster.sum("turns_held"),
        });
        try testing.expect(cluster.sum("turns_held") > 0);
        try cluster.stop();
        try testing.expectEqual(@as(u64, 0), traffic.wrong.load(.monotonic));
    }
}

test "a reset while pages are on their way out, and the memory is as new" {
    const cluster = try Cluster.start(testing.allocator, .{
        .nodes = 3,
        .limits = .{ .cache_pages = 8 },
    });
    for (0..3) |_| {
        var traffic: Traffic = .{
            .cluster = cluster,
            .threads = 3,
            .pages = 192,
            .rounds = rounds() / 8,
        };
        try Cluster.run(3, &traffic, Traffic.work);
        try testing.expectEqual(@as(u64, 0), traffic.wrong.load(.monotonic));
        try cluster.reset();
        for (0..192) |page| try testing.expectEqual(@as(u64, 0), load(traffic.at(0, page, 0)));
        try cluster.reset();
    }
    try cluster.stop();
}

test "random accesses to many more pages than the caches hold" {
    const limits: room.Limits = .{ .cache_pages = 8 };
    for ([_]u8{ 2, 3 }) |nodes| for ([_]u64{ 0, 100 * std.time.ns_per_us }) |hold_ns_max| {
        const cluster = try Cluster.start(testing.allocator, .{
            .nodes = nodes,
            .pages_per_node = 64,
            .hold_ns_max = hold_ns_max,
            .limits = limits,
        });
        var traffic: Traffic = .{
            .cluster = cluster,
            .threads = nodes,
            .pages = @as(usize, nodes) * 64,
            .rounds = rounds(),
        };
        try Cluster.run(nodes, &traffic, Traffic.work);
        traffic.checkAll();
        try expectWithinLimits(cluster, limits, nodes, hold_ns_max > 0);
        std.debug.print("{d} nodes: {d} pages evicted, {d} came back soon, most here {d}, " ++
            "{d} turns held\n", .{
            nodes,                         cluster.sum("pages_evicted"),
            cluster.sum("pages_returned"), cluster.nodes[0].stats.cache_pages_max,
            cluster.sum("turns_held"),
        });
        try testing.expect(cluster.sum("pages_evicted") > rounds() / 4);
        try testing.expect(cluster.sum("pages_returned") > 0);
        try cluster.stop();
        try testing.expectEqual(@as(u64, 0), traffic.wrong.load(.monotonic));
    };
}

fn expectWhole(options: cluster_file.Options, traffic_rounds: u64) !void {
    const cluster = try Cluster.start(testing.allocator, options);
    var traffic: Traffic = .{
        .cluster = cluster,
        .threads = 2 * options.nodes,
        .pages = options.nodes * options.pages_per_node,
        .rounds = traffic_rounds,
    };
    try Cluster.run(traffic.threads, &traffic, Traffic.work);
    traffic.checkAll();
    try expectWithinLimits(cluster, options.limits, traffic.threads, options.hold_ns_max > 0);
    var held: u64 = 0;
    var puts: u64 = 0;
    var gets: u64 = 0;
    for (cluster.lenders) |*node| {
        held += node.stats.frames_held;
        puts += node.stats.frame_puts;
        gets += node.stats.frame_gets;
    }
    std.debug.print("{d} + {d} nodes, {d} copies: ", .{
        options.nodes, options.memory_nodes, options.frame_copies,
    });
    std.debug.print("{d} pages evicted, {d} stored, {d} loaded, {d} turns held\n", .{
        cluster.sum("pages_evicted"), puts, gets, cluster.sum("turns_held"),
    });
    try testing.expect(gets > traffic_rounds / 4);
    try testing.expect(held > 0);
    try cluster.stop();
    try testing.expectEqual(@as(u64, 0), traffic.wrong.load(.monotonic));
}

test "one node that keeps a sixth of its pages, the others on two memory nodes" {
    for ([_]u8{ 1, 2 }) |copies| try expectWhole(.{
        .nodes = 1,
        .memory_nodes = 2,
        .pages_per_node = 96,
        .frames = 40 * @as(u32, copies),
        .frame_copies = copies,
        .limits = .{ .own_pages = 16 },
    }, rounds());
}

test "two nodes with small caches that keep few of their own pages, one memory node" {
    try expectWhole(.{
        .nodes = 2,
        .memory_nodes = 1,
        .pages_per_node = 64,
        .frames = 56,
        .limits = .{ .own_pages = 8, .cache_pages = 8 },
    }, rounds());
}

/// Traffic, and one more thread that kills memory nodes meanwhile: each when it has given many
/// pages, and when what the one before had is in two places again.
const Killing = struct {
    traffic: Traffic,
    victims: []const usize,
    /// Pages that each victim gives first.
    gets: u64,
    how: How,
    working: std.atomic.Value(usize),
    killed: usize = 0,

    /// Homes learn of it by the end of their lanes, or wait for another connection longer than any
    /// test may take, but for the word that comes with the end of the lanes or without.
    const How = enum { seen, told, told_alone };

    fn kill(self: *Killing, victim: usize) void {
        const cluster = self.traffic.cluster;
        if (self.how == .told_alone) cluster.silenceLender(victim) else cluster.killLender(victim);
        if (self.how != .seen) cluster.tellEnded(victim);
        self.killed += 1;
    }

    fn work(self: *Killing, thread: usize) void {
        if (thread < self.traffic.threads) {
            self.traffic.work(thread);
            _ = self.working.fetchSub(1, .acq_rel);
            return;
        }
        for (self.victims) |victim| {
            const stats = &self.traffic.cluster.lenders[victim].stats;
            const due = @atomicLoad(u64, &stats.frame_gets, .monotonic) + self.gets;
            while (@atomicLoad(u64, &stats.frame_gets, .monotonic) < due or !self.isWhole()) {
                if (self.working.load(.acquire) == 0) return;
                _ = linux.sched_yield();
            }
            self.kill(victim);
        }
    }

    /// Whether the last loss is repaired, under way though everything is. The counters are the
    /// shards' own: what is seen here was true a moment ago, and stays so while there is room.
    fn isWhole(self: *const Killing) bool {
        if (self.killed == 0) return true;
        for (self.traffic.cluster.nodes) |*node| {
            const core = &node.pager.shell.core;
            // Repair begins when the home knows of everything that the loss touches.
            if (@atomicLoad(u64, &core.stats.repaired, .acquire) == 0) return false;
            if (@atomicLoad(u64, &core.store.singles, .acquire) > 0) return false;
        }
        return true;
    }
};

test "memory nodes die under load, one after the other's pages are repaired: nothing is lost" {
    try expectSurvived(.seen, rounds());
}

test "the end of a memory node's process, when it is told, is its loss: nobody waits for silence" {
    try expectSurvived(.told, rounds() / 4);
    try expectSurvived(.told_alone, rounds() / 4);
}

fn expectSurvived(how: Killing.How, count: u64) !void {
    const limits: room.Limits = .{ .own_pages = 8, .cache_pages = 8 };
    const cluster = try Cluster.start(testing.allocator, .{
        .nodes = 2,
        .memory_nodes = 3,
        .pages_per_node = 64,
        .frames = 64,
        .frame_copies = 2,
        .limits = limits,
        .resumable = how != .seen,
        .peer_timeout_ns = std.time.ns_per_hour,
    });
    defer cluster.free();
    const threads = 4;
    var killing: Killing = .{
        .traffic = .{
            .cluster = cluster,
            .threads = threads,
            .pages = 128,
            .rounds = count,
        },
        .victims = &.{ 1, 0 },
        .gets = count / 8,
        .how = how,
        .working = .init(threads),
    };
    const traffic = &killing.traffic;
    try Cluster.run(threads + 1, &killing, Killing.work);
    traffic.checkAll();
    try expectWithinLimits(cluster, limits, threads, true);
    // With the audit of directory, page states and frames.
    try cluster.rest();
    var repaired: u64 = 0;
    var again: u64 = 0;
    for (cluster.nodes) |*node| {
        repaired += node.pager.shell.core.stats.repaired;
        again += node.pager.shell.core.stats.loads_again;
    }
    std.debug.print("{d} memory nodes killed ({t}): {d} pages repaired, {d} asked for again\n", .{
        killing.killed, how, repaired, again,
    });
    // The one that is left has lost them too.
    const lanes = &cluster.lenders[2].lender.lanes;
    for (0..2) |which| try testing.expect(lanes.isLost(@intCast(cluster.nodes.len + which)));
    try testing.expectEqual(@as(usize, 2), killing.killed);
    try testing.expect(repaired > 0);
    try testing.expectEqual(@as(u64, 0), traffic.wrong.load(.monotonic));
}
