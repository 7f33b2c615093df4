//! What the shard tells of itself: the age of a fault whose answer is withheld, pages in every
//! state with their open transactions, and dumps. The shards of test_cluster.zig are stopped where
//! a test wants a state to last, and driven by the test's own thread from there.

const std = @import("std");
const testing = std.testing;
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const cluster_file = @import("test_cluster.zig");
const Cluster = cluster_file.Cluster;
const page_size = cluster_file.page_size;
const dump = @import("dump.zig");
const Events = @import("events.zig").Events;
const Revoke = @import("../dsm/requester.zig").Revoke;
const pager_file = @import("pager.zig");
const Pager = pager_file.Pager;

const patience_ns = 10 * std.time.ns_per_s;

/// Stops the node's shard: from here on this thread drives it.
fn hold(pager: *Pager) void {
    pager.join();
    pager.shell.stopping.store(false, .release);
}

/// A vCPU's stand-in that increments a word of one node's RAM, and waits in the fault if it must.
const Toucher = struct {
    thread: std.Thread,
    done: *std.atomic.Value(bool),

    fn start(cluster: *Cluster, node: usize, offset: usize) !Toucher {
        const done = try testing.allocator.create(std.atomic.Value(bool));
        done.* = .init(false);
        const thread = try std.Thread.spawn(.{}, increment, .{ cluster, node, offset, done });
        return .{ .thread = thread, .done = done };
    }

    fn increment(cluster: *Cluster, node: usize, at: usize, done: *std.atomic.Value(bool)) void {
        _ = @atomicRmw(u64, @as(*u64, @alignCast(cluster.word(node, at))), .Add, 1, .seq_cst);
        done.store(true, .release);
    }

    fn end(self: *Toucher) void {
        self.thread.join();
        testing.allocator.destroy(self.done);
    }
};

const Answers = struct {
    shared: *abi.Shared,
    events: Events,

    fn init(self: *Answers, pager: *Pager) !void {
        self.shared = try testing.allocator.create(abi.Shared);
        self.shared.* = std.mem.zeroes(abi.Shared);
        self.events = .{ .shared = self.shared, .doorbell_fd = -1 };
        pager.inspection.attach(&self.shared.pages, &self.events);
    }

    fn deinit(self: *Answers) void {
        testing.allocator.destroy(self.shared);
    }
};

/// Turns the nodes' shards until `count` messages have come to the last of them.
fn turnUntilReceived(cluster: *Cluster, nodes: []const usize, count: u64) !void {
    const deadline = sys.monotonicNs() + patience_ns;
    const last = &cluster.nodes[nodes[nodes.len - 1]];
    while (last.stats.messages_received < count) {
        if (sys.monotonicNs() > deadline) return error.NothingCame;
        for (nodes) |n| cluster.nodes[n].pager.turn();
    }
}

fn turnUntilDone(cluster: *Cluster, touchers: []const Toucher) !void {
    const deadline = sys.monotonicNs() + patience_ns;
    for (touchers) |t| while (!t.done.load(.acquire)) {
        if (sys.monotonicNs() > deadline) return error.NeverDone;
        for (cluster.nodes) |*node| node.pager.turn();
    };
}

test "the oldest fault grows old while nothing comes, and is none when it has ended" {
    const cluster = try Cluster.start(testing.allocator, .{});
    for (cluster.nodes) |*node| hold(node.pager);
    const asker = &cluster.nodes[0];
    try testing.expect(try restNs(asker.pager) > pager_file.oldest_fault_ns_max);
    var toucher: Toucher = try .start(cluster, 0, 64 * page_size);
    const deadline = sys.monotonicNs() + patience_ns;
    while (asker.stats.oldest_fault_ns == 0) {
        if (sys.monotonicNs() > deadline) return error.FaultUnseen;
        asker.pager.turn();
    }
    // The shard wakes by itself to tell.
    try testing.expect(try restNs(asker.pager) <= pager_file.oldest_fault_ns_max);
    for (0..3) |_| {
        const before = asker.stats.oldest_fault_ns;
        asker.pager.turn();
        try testing.expect(asker.stats.oldest_fault_ns > before);
    }
    try turnUntilDone(cluster, &.{toucher});
    toucher.end();
    try testing.expectEqual(@as(u64, 0), asker.stats.oldest_fault_ns);
    try testing.expect(try restNs(asker.pager) > pager_file.oldest_fault_ns_max);
    try cluster.stop();
}

/// How long the shard would sleep once its lanes have nothing to do.
fn restNs(pager: *Pager) !u64 {
    const deadline = sys.monotonicNs() + patience_ns;
    while (true) {
        const now = sys.monotonicNs();
        if (pager.shell.lanes.deadline(now) -| now > pager_file.oldest_fault_ns_max) {
            return pager.sleepNs(now);
        }
        if (now > deadline) return error.LanesBusy;
        pager.turn();
    }
}

test "a page is told with its copy, its directory entry and its transaction" {
    const cluster = try Cluster.start(testing.allocator, .{ .nodes = 3, .hold_ns_max = 0 });
    for (cluster.nodes) |*node| hold(node.pager);
    var answers: [3]Answers = undefined;
    for (&answers, cluster.nodes) |*a, *node| try a.init(node.pager);
    defer for (&answers) |*a| a.deinit();
    const page = 64;
    const at = page * page_size;

    const untouched = try askOne(cluster, &answers, 1, page);
    try testing.expectEqual(abi.PageState.untouched, stateOf(untouched));
    try testing.expectEqual(@as(u64, at), untouched.gpa);
    try testing.expectEqual(@as(u8, 1), untouched.home);

    // Node 0 asks, and node 1 has yet to hear of it.
    var first: Toucher = try .start(cluster, 0, at);
    while (cluster.nodes[0].stats.messages_sent == 0) cluster.nodes[0].pager.turn();
    const waiting = try askOne(cluster, &answers, 0, page);
    try testing.expectEqual(@backingInt(abi.PageRequest.get_exclusive), waiting.waits_for);
    try testing.expectEqual(@backingInt(abi.PageAccess.invalid), waiting.access);
    // No word of a directory from a node that is not the home.
    try testing.expectEqual(@as(u32, 0), waiting.version);

    // Granted at home, where the transaction stays open until node 0 says done; node 2 waits.
    try turnUntilReceived(cluster, &.{1}, 1);
    var second: Toucher = try .start(cluster, 2, at);
    try turnUntilReceived(cluster, &.{ 2, 1 }, 2);
    const open = try askOne(cluster, &answers, 1, page);
    try testing.expectEqual(abi.PageState.exclusive, stateOf(open));
    try testing.expectEqual(@as(u8, 0), open.owner);
    try testing.expectEqual(@as(u8, 0), open.requester);
    try testing.expectEqual(@backingInt(abi.PageRequest.get_exclusive), open.request);
    try testing.expectEqual(@backingInt(abi.PagePhase.strict), open.phase);
    try testing.expectEqual(@as(u32, 1), open.queued);

    try turnUntilDone(cluster, &.{ first, second });
    first.end();
    second.end();
    for (cluster.nodes) |*node| try node.pager.start();
    // The home's thread reads it: two copies.
    try testing.expectEqual(@as(u64, 2), @atomicLoad(u64, wordOf(cluster, 1, at), .seq_cst));
    for (cluster.nodes) |*node| hold(node.pager);
    const deadline = sys.monotonicNs() + patience_ns;
    var shared = try askOne(cluster, &answers, 1, page);
    while (shared.request != @backingInt(abi.PageRequest.none)) {
        if (sys.monotonicNs() > deadline) return error.NeverClosed;
        for (cluster.nodes) |*node| node.pager.turn();
        shared = try askOne(cluster, &answers, 1, page);
    }
    try testing.expectEqual(abi.PageState.shared, stateOf(shared));
    // Whoever wrote last: a thread that was woken late had to ask again.
    try testing.expect(shared.owner == 0 or shared.owner == 2);
    const copies = @as(u64, 1) << @intCast(shared.owner) | 0b010;
    try testing.expectEqual(copies, shared.sharers);
    try testing.expectEqual(@backingInt(abi.PageAccess.shared), shared.access);
    try testing.expectEqual(shared.version, shared.copy_version);
    try cluster.stop();
}

fn wordOf(cluster: *Cluster, node: usize, at: usize) *u64 {
    return @alignCast(cluster.word(node, at));
}

fn stateOf(record: abi.PageRecord) abi.PageState {
    return @fromBackingInt(@as(u32, record.state));
}

/// The page as the node's shard tells it at the end of a turn, by the answer in the shared page.
fn askOne(cluster: *Cluster, answers: []Answers, node: usize, page: u32) !abi.PageRecord {
    const pager = cluster.nodes[node].pager;
    const shared = answers[node].shared;
    try pager.inspection.ask(page, 1, 7);
    try testing.expectError(error.Busy, pager.inspection.ask(page, 1, 8));
    pager.inspection.serve(pager);
    const ring = &shared.ring;
    const event = ring.entries[ring.tail % abi.event_ring_entries];
    ring.tail = ring.head;
    try testing.expectEqual(@backingInt(abi.EventKind.pages_answered), event.kind);
    try testing.expectEqual(@as(u64, 7), event.a);
    try testing.expectEqual(@as(u32, 7), shared.pages.sequence);
    try testing.expectEqual(@as(u32, 1), shared.pages.count);
    return shared.pages.records[0];
}

test "a shard that only waits answers a question about many pages" {
    const cluster = try Cluster.start(testing.allocator, .{});
    var answers: Answers = undefined;
    hold(cluster.nodes[1].pager);
    try answers.init(cluster.nodes[1].pager);
    defer answers.deinit();
    try cluster.nodes[1].pager.start();
    try cluster.nodes[1].pager.inspection.ask(60, abi.page_records_max, 1);
    const deadline = sys.monotonicNs() + patience_ns;
    // Acquire: the event is there before the head that tells of it.
    while (@atomicLoad(u32, &answers.shared.ring.head, .acquire) == 0) {
        if (sys.monotonicNs() > deadline) return error.NoAnswer;
        try std.Thread.yield();
    }
    const records = answers.shared.pages.records[0..answers.shared.pages.count];
    try testing.expectEqual(@as(usize, abi.page_records_max), records.len);
    for (records, 60..) |record, page| {
        try testing.expectEqual(page * page_size, record.gpa);
        try testing.expectEqual(@as(u8, if (page < 64) 0 else 1), record.home);
    }
    try cluster.stop();
}

test "a dump tells what is in flight, and a shard that does not answer is found out" {
    const cluster = try Cluster.start(testing.allocator, .{ .nodes = 3 });
    for (cluster.nodes) |*node| hold(node.pager);
    const at = 64 * page_size;
    var first: Toucher = try .start(cluster, 0, at);
    while (cluster.nodes[0].stats.messages_sent == 0) cluster.nodes[0].pager.turn();
    try turnUntilReceived(cluster, &.{1}, 1);
    var second: Toucher = try .start(cluster, 2, at);
    try turnUntilReceived(cluster, &.{ 2, 1 }, 2);

    var buffer: [4096]u8 = undefined;
    const asker = cluster.nodes[0].pager;
    try expectLines(buffer[0..dump.write(asker, &buffer, sys.monotonicNs())], &.{
        "node 0: open: 1 faults, 1 requests, 0 transactions at home, 0 revokes put aside, " ++
            "0 messages at the gate, 0 posts in the mailbox",
        "node 0: fault 0x40000 write by thread * for * us, remote",
        "node 0: request 0x40000 get_exclusive to home 1: no grant yet, 0 of 0 acks; " ++
            "copy here invalid, version 0",
        "node 0: lane to node 1: up, 0 bytes queued, * unacknowledged, heard * us ago",
        "node 0: lane to node 2: up, 0 bytes queued, * unacknowledged, heard * us ago",
    });
    const home = cluster.nodes[1].pager;
    const revoke: Revoke = .{ .page = 3, .kind = .invalidate, .requester = 2, .age = 5 };
    home.shell.core.holds.deferred[0] = revoke;
    home.shell.core.holds.deferred_count = 1;
    try home.shell.gate.hold(2, .span, 1, &.{"held"});
    home.settings.replicate = true;
    try expectLines(buffer[0..dump.write(home, &buffer, sys.monotonicNs())], &.{
        "node 1: open: 0 faults, 0 requests, 1 transactions at home, 1 revokes put aside, " ++
            "1 messages at the gate, 0 posts in the mailbox",
        "node 1: home 0x40000 get_exclusive by node 0 (age 1), phase strict; " ++
            "entry exclusive owner 0 sharers 0x0 version 1; " ++
            "1 queued: get_exclusive by node 2 (age *)",
        "node 1: revoke 0x3000 invalidate for node 2 (age 5) put aside for 0 us more",
        "node 1: page tables: 0 replicated, 0 being replicated, 0 wait for it",
        "node 1: gate: the first message is for node 2, waits for diff 1 of 0",
        "node 1: gate: node 0 has taken diffs up to 0",
        "node 1: gate: node 2 has taken diffs up to 0",
        "node 1: lane to node 0: up, 0 bytes queued, * unacknowledged, heard * us ago",
        "node 1: lane to node 2: up, 0 bytes queued, * unacknowledged, heard * us ago",
    });
    home.shell.core.holds.deferred_count = 0;
    home.shell.gate.clear();
    home.settings.replicate = false;

    // Nobody turns this shard: the question is taken back.
    try testing.expect(asker.inspection.takeDump(&buffer, std.time.ns_per_ms) == null);
    buffer[0] = 'x';
    asker.turn();
    try testing.expectEqual(@as(u8, 'x'), buffer[0]);
    for (cluster.nodes) |*node| try node.pager.start();
    const text = asker.inspection.takeDump(&buffer, patience_ns) orelse return error.NoDump;
    try testing.expect(std.mem.startsWith(u8, text, "node 0: open: "));
    first.end();
    second.end();
    try cluster.stop();
}

test "a dump that finds no room ends with saying so" {
    const cluster = try Cluster.start(testing.allocator, .{});
    hold(cluster.nodes[0].pager);
    var buffer: [80]u8 = undefined;
    const length = dump.write(cluster.nodes[0].pager, &buffer, 0);
    try testing.expectEqual(buffer.len, length);
    try testing.expect(std.mem.endsWith(u8, &buffer, "\n(cut: no room for more)\n"));
    try cluster.stop();
}

/// Line by line; '*' stands for digits.
fn expectLines(text: []const u8, expected: []const []const u8) !void {
    errdefer std.debug.print("{s}", .{text});
    var lines = std.mem.splitScalar(u8, text, '\n');
    for (expected) |pattern| {
        const line = lines.next() orelse return error.LineMissing;
        if (!matches(line, pattern)) {
            std.debug.print("not as expected: {s}\n", .{pattern});
            return error.LineDiffers;
        }
    }
    try testing.expectEqualStrings("", lines.rest());
}

fn matches(line: []const u8, pattern: []const u8) bool {
    var rest = line;
    var pieces = std.mem.splitScalar(u8, pattern, '*');
    const head = pieces.first();
    if (!std.mem.startsWith(u8, rest, head)) return false;
    rest = rest[head.len..];
    while (pieces.next()) |piece| {
        while (rest.len > 0 and std.ascii.isDigit(rest[0])) rest = rest[1..];
        if (!std.mem.startsWith(u8, rest, piece)) return false;
        rest = rest[piece.len..];
    }
    return rest.len == 0;
}
