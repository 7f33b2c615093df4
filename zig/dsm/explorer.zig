//! Every interleaving of a small cluster (model.zig), breadth first, with visited states kept by
//! hash of all their bytes. Finds the first violation or visits everything; also checks that from
//! every state the cluster can come to rest (no livelock that nothing leaves). Tests run bounded
//! shapes and plant defects, each of which must be found.

const std = @import("std");
const model = @import("model.zig");
const core_file = @import("core.zig");
const World = model.World;
const Shape = model.Shape;
const Op = model.Op;

pub const Result = struct {
    states: usize,
    transitions: usize,
    /// States without a successor: the cluster at rest.
    resting: usize,
    violation: ?model.Violation = null,
    /// States from which no resting state can be reached.
    stuck: usize = 0,
};

/// Visits at most `states_max` states; error.TooLarge when there are more.
pub fn explore(allocator: std.mem.Allocator, shape: *const Shape, states_max: usize) !Result {
    var seen: std.AutoHashMapUnmanaged(u128, u32) = .empty;
    defer seen.deinit(allocator);
    var queue: std.ArrayList(World) = .empty;
    defer queue.deinit(allocator);
    var edges: std.ArrayList([2]u32) = .empty;
    defer edges.deinit(allocator);
    var resting: std.ArrayList(u32) = .empty;
    defer resting.deinit(allocator);
    var result: Result = .{ .states = 0, .transitions = 0, .resting = 0 };

    const start: World = .{};
    try queue.append(allocator, start);
    try seen.put(allocator, hash(&start), 0);
    var next: usize = 0;
    // Worlds already expanded are dropped from the front in batches, to bound memory.
    var dropped: usize = 0;
    while (next - dropped < queue.items.len) : (next += 1) {
        if (next - dropped == 65536) {
            queue.replaceRangeAssumeCapacity(0, 65536, &.{});
            dropped += 65536;
        }
        const here = queue.items[next - dropped];
        var buffer: [64]model.Transition = undefined;
        var moved = false;
        for (model.enabled(shape, &here, &buffer)) |transition| {
            var world = here;
            var m: model.Model = .{ .shape = shape, .world = &world };
            m.apply(transition) catch |violation| {
                result.violation = violation;
                result.states = seen.count();
                return result;
            };
            moved = true;
            result.transitions += 1;
            const found = try seen.getOrPut(allocator, hash(&world));
            if (!found.found_existing) {
                found.value_ptr.* = @intCast(seen.count() - 1);
                if (seen.count() > states_max) return error.TooLarge;
                try queue.append(allocator, world);
            }
            try edges.append(allocator, .{ found.value_ptr.*, @intCast(next) });
        }
        if (moved) continue;
        try resting.append(allocator, @intCast(next));
        var world = here;
        var m: model.Model = .{ .shape = shape, .world = &world };
        m.checkRest() catch |violation| {
            result.violation = violation;
            result.states = seen.count();
            return result;
        };
    }
    result.states = seen.count();
    result.resting = resting.items.len;
    result.stuck = try countStuck(allocator, result.states, edges.items, resting.items);
    return result;
}

/// States from which no resting state is reachable, by walking the edges backwards.
fn countStuck(
    allocator: std.mem.Allocator,
    states: usize,
    edges: [][2]u32,
    resting: []const u32,
) !usize {
    std.sort.pdq([2]u32, edges, {}, struct {
        fn less(_: void, a: [2]u32, b: [2]u32) bool {
            return a[0] < b[0];
        }
    }.less);
    const first = try allocator.alloc(u32, states + 1);
    defer allocator.free(first);
    var e: usize = 0;
    for (first, 0..) |*f, state| {
        while (e < edges.len and edges[e][0] < state) e += 1;
        f.* = @intCast(e);
    }
    const reaches = try allocator.alloc(bool, states);
    defer allocator.free(reaches);
    @memset(reaches, false);
    var work: std.ArrayList(u32) = .empty;
    defer work.deinit(allocator);
    for (resting) |state| {
        reaches[state] = true;
        try work.append(allocator, state);
    }
    while (work.pop()) |state| {
        for (edges[first[state]..first[state + 1]]) |edge| {
            if (reaches[edge[1]]) continue;
            reaches[edge[1]] = true;
            try work.append(allocator, edge[1]);
        }
    }
    var stuck: usize = 0;
    for (reaches) |r| stuck += @intFromBool(!r);
    return stuck;
}

/// 128 bits: with 10^7 states two equal hashes have a probability below 10^-24.
fn hash(world: *const World) u128 {
    const a = std.hash.Wyhash.hash(0x5351_5649, world.bytes());
    const b = std.hash.Wyhash.hash(0x9e37_79b9, world.bytes());
    return @as(u128, a) << 64 | b;
}

fn expectClean(name: []const u8, shape: Shape) !void {
    const result = try explore(std.testing.allocator, &shape, 6_000_000);
    std.debug.print("explorer: {s}: {d} states, {d} transitions, {d} at rest\n", .{
        name,
        result.states,
        result.transitions,
        result.resting,
    });
    if (result.violation) |violation| return violation;
    try std.testing.expectEqual(@as(usize, 0), result.stuck);
    try std.testing.expect(result.resting > 0);
}

fn expectFound(name: []const u8, shape: Shape) !void {
    const result = try explore(std.testing.allocator, &shape, 6_000_000);
    std.debug.print("explorer: planted {s}: {s} after {d} states\n", .{
        name,
        if (result.violation) |v| @errorName(v) else if (result.stuck > 0) "stuck" else "NOT FOUND",
        result.states,
    });
    try std.testing.expect(result.violation != null or result.stuck > 0);
}

test "two nodes, one page, two operations each" {
    try expectClean("2 nodes, 1 page", .{ .nodes = 2, .pages = 1, .free_ops = 2 });
}

test "two nodes, two pages with homes apart" {
    const homes = [3]u8{ 0, 1, 0 };
    try expectClean("2 nodes, 2 pages", .{ .nodes = 2, .pages = 2, .homes = homes, .free_ops = 2 });
}

test "three nodes, one page" {
    try expectClean("3 nodes, 1 page", .{ .nodes = 3, .pages = 1, .free_ops = 2 });
}

test "planted defects of the core are found" {
    const three: Shape = .{ .nodes = 3, .pages = 1, .free_ops = 2 };
    const mutations = [_]core_file.Mutation{
        .early_grant,
        .ack_counted_twice,
        .stale_upgrade,
        .copy_before_protect,
        .invalidation_ignored,
        .done_skipped,
    };
    for (mutations) |mutation| {
        var shape = three;
        shape.mutation = mutation;
        try expectFound(@tagName(mutation), shape);
    }
}

/// Page 0: root page table with one entry; page 1: the table it points at; page 2: ordinary data.
const table_writer = [_]Op{
    .{ .kind = .store, .page = 0, .value = 1 },
    .{ .kind = .store, .page = 1, .value = 5 },
    .{ .kind = .store, .page = 2, .value = 1 },
};
const table_reader = [_]Op{
    .{ .kind = .await, .page = 2, .value = 1 },
    .{ .kind = .expect, .page = 1, .value = 5 },
    .{ .kind = .expect, .page = 0, .value = 1 },
};

test "an entry written before a flag is seen after it, at every moment of replication" {
    try expectClean("replicated tables, entry then flag", .{
        .nodes = 2,
        .pages = 3,
        .homes = .{ 0, 1, 1 },
        .programs = .{ &table_writer, &table_reader, &.{} },
        .replicate = true,
    });
}

test "planted: a diff sent after the message that depends on it is found" {
    try expectFound("diff_late", .{
        .nodes = 2,
        .pages = 3,
        .homes = .{ 0, 1, 1 },
        .programs = .{ &table_writer, &table_reader, &.{} },
        .replicate = true,
        .diff_late = true,
    });
}

/// The table is unlinked, then reused as data by the other node.
const unlinker = [_]Op{
    .{ .kind = .store, .page = 0, .value = 1 },
    .{ .kind = .store, .page = 1, .value = 5 },
    .{ .kind = .store, .page = 0, .value = 0 },
    .{ .kind = .store, .page = 2, .value = 1 },
    .{ .kind = .await, .page = 2, .value = 2 },
    .{ .kind = .expect, .page = 1, .value = 7 },
};
const reuser = [_]Op{
    .{ .kind = .await, .page = 2, .value = 1 },
    .{ .kind = .store, .page = 1, .value = 7 },
    .{ .kind = .store, .page = 2, .value = 2 },
};

test "a freed table is ordinary memory before anybody can know that it was freed" {
    for ([_][3]u8{ .{ 0, 1, 1 }, .{ 0, 0, 0 }, .{ 1, 1, 0 } }) |homes| {
        try expectClean("replicated tables, unlinked and reused", .{
            .nodes = 2,
            .pages = 3,
            .homes = homes,
            .programs = .{ &unlinker, &reuser, &.{} },
            .replicate = true,
        });
    }
}

/// The table is unlinked, then both nodes use the page without any order between them.
const unlinker_unordered = [_]Op{
    .{ .kind = .store, .page = 0, .value = 1 },
    .{ .kind = .store, .page = 1, .value = 5 },
    .{ .kind = .store, .page = 0, .value = 0 },
    .{ .kind = .store, .page = 2, .value = 1 },
    .{ .kind = .store, .page = 1, .value = 7 },
};
const reuser_unordered = [_]Op{
    .{ .kind = .await, .page = 2, .value = 1 },
    .{ .kind = .store, .page = 1, .value = 8 },
};

test "a freed table takes stores of both nodes in any order" {
    for (0..8) |bits| {
        const homes: [3]u8 = .{ @intCast(bits & 1), @intCast(bits >> 1 & 1), @intCast(bits >> 2) };
        try expectClean("replicated tables, unlinked and shared", .{
            .nodes = 2,
            .pages = 3,
            .homes = homes,
            .programs = .{ &unlinker_unordered, &reuser_unordered, &.{} },
            .replicate = true,
        });
    }
}
