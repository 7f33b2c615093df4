//! What memory costs, for the guest's ACPI HMAT. Of another node: how long one page takes from
//! question to answer, and how many bytes a second come when many are on their way; measured when
//! the lanes are up and nothing else uses them. Of this host: how long a load that misses all
//! caches takes, and how fast memory is read from front to back.
//! A node asks every node with vCPUs before it, in their order, then answers those after it: so
//! nobody waits for one that waits for him. At last node 0 hears what everyone found. A way back
//! costs what the way there does.

const std = @import("std");
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const frame = @import("../transport/frame.zig");
const Lane = @import("../transport/lane.zig").Lane;
const talk = @import("link_talk.zig");

pub const Row = [abi.nodes_max]abi.LinkCost;
pub const Costs = [abi.nodes_max]Row;
pub const unknown: Costs = @splat(@splat(.{ .latency_ns = 0, .bytes_per_second = 0 }));
const Lanes = [abi.nodes_max]?*Lane;

/// The quickest counts: what disturbs only makes slower.
const latency_rounds = 16;
const bandwidth_rounds = 4;
const bandwidth_pages = 32;

const Question = extern struct { pages: u32, pad: u32 = 0 };

/// On every node with vCPUs, `nodes` being all of them as a mask. Node 0's are complete.
/// `failed` tells the peer with which it failed.
pub fn measure(
    lanes: *const Lanes,
    own: u8,
    nodes: u32,
    own_cost: abi.LinkCost,
    failed: *u8,
) talk.Error!Costs {
    var costs = unknown;
    costs[own][own] = own_cost;
    for (lanes, 0..) |maybe, node| {
        const lane = maybe orelse continue;
        if (nodes >> @intCast(node) & 1 == 0) continue;
        failed.* = @intCast(node);
        if (node < own) {
            costs[own][node] = try ask(lane);
        } else try answer(lane);
    }
    failed.* = 0;
    if (own != 0) {
        try talk.give(lanes[0].?, .measure, std.mem.asBytes(&costs[own]));
        return costs;
    }
    for (lanes, 0..) |maybe, node| {
        const lane = maybe orelse continue;
        if (nodes >> @intCast(node) & 1 == 0) continue;
        failed.* = @intCast(node);
        const payload = try talk.take(lane, .measure, @sizeOf(Row));
        costs[node] = std.mem.bytesToValue(Row, payload[0..@sizeOf(Row)]);
    }
    for (0..abi.nodes_max) |node| {
        for (0..node) |before| costs[before][node] = costs[node][before];
    }
    return costs;
}

fn ask(lane: *Lane) talk.Error!abi.LinkCost {
    var latency: u64 = std.math.maxInt(u64);
    for (0..latency_rounds) |_| latency = @min(latency, try askFor(lane, 1));
    var burst: u64 = std.math.maxInt(u64);
    for (0..bandwidth_rounds) |_| burst = @min(burst, try askFor(lane, bandwidth_pages));
    // What the burst took beyond the first page; a clock too coarse for it says the least it can.
    const ns = @max(1, burst -| latency);
    const bytes = (bandwidth_pages - 1) * frame.page_bytes;
    return .{
        .latency_ns = @max(1, latency),
        .bytes_per_second = bytes * std.time.ns_per_s / ns,
    };
}

/// Nanoseconds from the question to the last page.
fn askFor(lane: *Lane, pages: u32) talk.Error!u64 {
    const began = sys.monotonicNs();
    try talk.give(lane, .measure, std.mem.asBytes(&Question{ .pages = pages }));
    for (0..pages) |_| _ = try talk.take(lane, .measure, frame.page_bytes);
    return sys.monotonicNs() - began;
}

fn answer(lane: *Lane) talk.Error!void {
    const page: [frame.page_bytes]u8 = @splat(0);
    for (0..latency_rounds + bandwidth_rounds) |_| {
        const payload = try talk.take(lane, .measure, @sizeOf(Question));
        const question = std.mem.bytesToValue(Question, payload[0..@sizeOf(Question)]);
        if (question.pages > bandwidth_pages) return error.ProtocolViolated;
        for (0..question.pages) |_| try talk.give(lane, .measure, &page);
    }
}

/// More than caches keep, but for those of the largest servers: an L3 that holds all of this is
/// measured for memory.
const own_bytes = 32 << 20;
const own_loads = 50_000;
const own_rounds = 3;

/// What this host's own memory costs; nothing known where there is no room to measure.
pub fn measureOwn() abi.LinkCost {
    const bytes = sys.mapAnonymous(own_bytes) catch return unknown[0][0];
    defer sys.unmap(bytes);
    const words = std.mem.bytesAsSlice(u64, bytes);
    // Written, or reads would all find the kernel's one page of zeros.
    var at: usize = 0;
    while (at < bytes.len) : (at += std.heap.page_size_min) bytes[at] = 0;
    var latency: u64 = std.math.maxInt(u64);
    var sweep: u64 = std.math.maxInt(u64);
    for (0..own_rounds) |_| {
        const began = sys.monotonicNs();
        sum(words);
        const middle = sys.monotonicNs();
        chase(words);
        sweep = @min(sweep, middle - began);
        latency = @min(latency, (sys.monotonicNs() - middle) / own_loads);
    }
    return .{
        .latency_ns = @max(1, latency),
        .bytes_per_second = own_bytes * std.time.ns_per_s / @max(1, sweep),
    };
}

/// Reads all of it; many loads are under way at once.
noinline fn sum(words: []const u64) void {
    const Vector = @Vector(8, u64);
    var total: Vector = @splat(0);
    var i: usize = 0;
    while (i < words.len) : (i += 8) total +%= @as(Vector, words[i..][0..8].*);
    std.mem.doNotOptimizeAway(@reduce(.Add, total));
}

/// One load after another: each address needs the value before it, which is always zero. The
/// multiplier (Knuth, MMIX) leads through all lines in an order that no prefetcher knows.
noinline fn chase(words: []const u64) void {
    const words_per_line = 8;
    const lines = words.len / words_per_line;
    comptime std.debug.assert(std.math.isPowerOfTwo(own_bytes));
    var state: u64 = 1;
    for (0..own_loads) |_| {
        const line = (state >> 32) & (lines - 1);
        const value = words[line * words_per_line];
        state = state *% 6364136223846793005 +% 1442695040888963407 +% value;
    }
    std.mem.doNotOptimizeAway(state);
}

test "three nodes and one that only lends: node 0 knows every pair, measured or mirrored" {
    const seal = @import("../transport/seal.zig");
    const linux = std.os.linux;
    const count = 3;
    const key: [32]u8 = @splat(1);
    var all: [count][abi.nodes_max]Lane = undefined;
    var lanes: [count]Lanes = @splat(@splat(null));
    for (0..count) |a| for (a + 1..count) |b| {
        var fds: [2]i32 = undefined;
        _ = try sys.check(linux.socketpair(linux.AF.UNIX, linux.SOCK.STREAM, 0, &fds));
        for ([_][2]usize{ .{ a, b }, .{ b, a } }, fds, 0..) |pair, fd, i| {
            const lane = &all[pair[0]][pair[1]];
            lane.* = try .init(std.testing.allocator, @intCast(pair[1]), .{});
            const keys: seal.Keys = .derive(&key, .chacha20_poly1305, "hellos", i == 0);
            try lane.adopt(.{ .fd = fd, .keys = keys });
            lanes[pair[0]][pair[1]] = lane;
        }
    };
    defer for (&lanes) |row| {
        for (row) |maybe| if (maybe) |lane| lane.deinit();
    };
    const Node = struct {
        fn run(of: *const Lanes, own: u8, costs: *Costs) void {
            var failed: u8 = 0;
            const cost: abi.LinkCost = .{ .latency_ns = 50 + @as(u64, own), .bytes_per_second = 9 };
            costs.* = measure(of, own, 0b111, cost, &failed) catch unreachable;
        }
    };
    var costs: [count]Costs = undefined;
    var threads: [count]std.Thread = undefined;
    for (&threads, 0..) |*thread, own| {
        thread.* = try .spawn(.{}, Node.run, .{ &lanes[own], @as(u8, @intCast(own)), &costs[own] });
    }
    for (threads) |thread| thread.join();
    for (0..count) |a| {
        try std.testing.expectEqual(50 + a, costs[0][a][a].latency_ns);
        for (0..count) |b| {
            try std.testing.expect(costs[0][a][b].latency_ns > 0);
            try std.testing.expect(costs[0][a][b].bytes_per_second > 0);
            try std.testing.expectEqual(costs[0][a][b], costs[0][b][a]);
            try std.testing.expectEqual(costs[@max(a, b)][@max(a, b)][@min(a, b)], costs[0][a][b]);
        }
    }
    try std.testing.expectEqual(unknown[0][0], costs[0][0][count]);
}

test "a question for more pages than there may be breaks the protocol" {
    const linux = std.os.linux;
    var fds: [2]i32 = undefined;
    _ = try sys.check(linux.socketpair(linux.AF.UNIX, linux.SOCK.STREAM, 0, &fds));
    var ends: [2]Lane = undefined;
    const key: [32]u8 = @splat(1);
    for (&ends, fds, 0..) |*lane, fd, i| {
        lane.* = try .init(std.testing.allocator, @intCast(1 - i), .{});
        try lane.adopt(.{ .fd = fd, .keys = .derive(&key, .chacha20_poly1305, "hellos", i == 0) });
    }
    defer for (&ends) |*lane| lane.deinit();
    const Answerer = struct {
        fn run(lane: *Lane, result: *talk.Error!void) void {
            result.* = answer(lane);
            lane.cut();
        }
    };
    var result: talk.Error!void = {};
    const thread = try std.Thread.spawn(.{}, Answerer.run, .{ &ends[0], &result });
    const asked = askFor(&ends[1], bandwidth_pages + 1);
    thread.join();
    try std.testing.expectError(error.ProtocolViolated, result);
    if (asked) |_| return error.Answered else |_| {}
}

test "own memory costs something" {
    const cost = measureOwn();
    try std.testing.expect(cost.latency_ns > 0 and cost.bytes_per_second > 0);
}
