//! Page-table walks while the tables are stolen: the guests' own page tables lie in the memory that
//! the engines share, every guest walks them and writes to all of them, and in each round one of
//! them changes an entry on one of the four levels. After INVLPG every other guest must walk the
//! new way. Only hardware that walks the guest's tables itself (NPT, EPT) can be asked that: a KVM
//! with shadow paging goes on translating the old way. There the probe must say so, by which such
//! hosts are refused real guests, and the walks are left to a host that has nested paging.

const std = @import("std");
const testing = std.testing;
const abi = @import("../abi.zig");
const probe_memory = @import("../kvm/probe_memory.zig");
const payload = @import("test_payload.zig");
const Dice = payload.Dice;
const guest = @import("test_guest.zig");
const rig_file = @import("test_rig.zig");
const Rig = rig_file.Rig;
const Tally = rig_file.Tally;
const Weather = rig_file.Weather;
const starve = @import("test_starve.zig");

const page_size = payload.page_size;

/// Pages of the VM's RAM, in this order from its start: the root, two chains of three tables and a
/// data page each, and a page with counters.
const levels = 4;
const root = 0;
const counter_page = 9;
const pages = 10;

/// The table of a level (0: root) in chain 0 or 1, then the data page.
fn pageOf(chain: usize, level: usize) usize {
    return if (level == 0) root else 1 + chain * levels + level - 1;
}

/// Seen through the tables: page 0 of an otherwise unused quarter of the root's lower half.
const window_slot = 128;
const window: u64 = window_slot << 39;
/// Where the payloads may write in a table: an entry that is not present, in a slot nobody walks.
/// Twice the count, so that bit 0 (present) stays clear.
const count_slot = 200;

fn entryOffset(page: usize, slot: usize) usize {
    return page * page_size + slot * 8;
}

const Walks = struct {
    stage: payload.Stage,
    rounds: u64,
    looks: u64,
    seed: u64,
    /// Chain that each level's entry leads to.
    way: [levels]u8 = @splat(0),
    /// Looks that went the wrong way.
    stale: std.atomic.Value(u64) = .init(0),

    const stolen_pages = [_]usize{ 0, 1, 2, 3, 5, 6, 7 };

    fn work(self: *Walks, node: usize) void {
        var dice: Dice = .init(self.seed *% 8 +% node);
        for (0..self.rounds) |i| {
            self.stage.barrier.wait();
            if (i % self.stage.nodes == node) self.turn(node, @intCast(dice.below(levels)));
            self.stage.barrier.wait();
            const expected = self.chain();
            for (0..self.looks) |k| {
                asm volatile ("invlpg (%[p])"
                    :
                    : [p] "r" (window),
                    : .{ .memory = true });
                const seen = payload.load(@ptrFromInt(window));
                if (seen != expected) _ = self.stale.fetchAdd(1, .monotonic);
                payload.dawdle(&dice, 8);
                const stolen = stolen_pages[(k + i) % stolen_pages.len];
                payload.lockedAdd(self.stage.word(node, entryOffset(stolen, count_slot)), 2);
                payload.lockedAdd(self.stage.word(node, entryOffset(counter_page, 0)), 1);
            }
        }
    }

    /// Changes where one level leads; the other guests wait.
    fn turn(self: *Walks, node: usize, level: usize) void {
        const to = 1 - self.way[level];
        const slot: usize = if (level == 0) window_slot else 0;
        const entry = self.stage.word(node, entryOffset(pageOf(0, level), slot));
        // The guest-physical address of a page is its place in RAM (test_cluster.zig).
        payload.store(entry, pageOf(to, level + 1) * page_size | guest.entry_bits);
        self.way[level] = to;
    }

    /// Chain 1 leads to its own data page from any level.
    fn chain(self: *const Walks) u64 {
        var any: u64 = 0;
        for (self.way) |w| any |= w;
        return any;
    }
};

/// Writes the tables as their first user: the root as every VM's own one, which all agree on.
fn build(rig: *Rig) !void {
    const machines = rig.guests.machines;
    const own = machines[0].tables.table(0);
    for (machines) |*m| try testing.expectEqualSlices(u64, own, m.tables.table(0));
    try testing.expectEqual(@as(u64, 0), own[window_slot] | own[count_slot]);
    for (own, 0..) |entry, slot| put(rig, root, slot, entry);
    put(rig, root, window_slot, pageOf(0, 1) * page_size | guest.entry_bits);
    for (0..2) |chain| {
        for (1..levels) |level| {
            put(rig, pageOf(chain, level), 0, pageOf(chain, level + 1) * page_size |
                guest.entry_bits);
        }
        put(rig, pageOf(chain, levels), 0, chain);
    }
}

fn put(rig: *Rig, page: usize, slot: usize, value: u64) void {
    payload.store(rig.cluster.word(0, entryOffset(page, slot)), value);
}

fn walk(nodes: u8, rounds: u64, weather: Weather, tally: *Tally) !void {
    var rig: Rig = undefined;
    try rig.start(.{
        .nodes = nodes,
        .vcpus = nodes,
        .pages_per_node = (pages + nodes - 1) / nodes,
        // One instruction needs the whole chain, which others want.
        .hold_ns_max = 20 * std.time.ns_per_ms,
        .weather = weather,
    });
    try build(&rig);
    const walks = rig.guests.create(Walks);
    walks.* = .{
        .stage = rig.stage(nodes),
        .rounds = rounds,
        .looks = 8,
        .seed = testing.random_seed,
    };
    // INVLPG is the kernel's.
    const how: guest.How = .{ .cr3 = root * page_size, .level = .kernel };
    try rig.guests.runWith(nodes, walks, Walks.work, how);
    const looks = nodes * walks.rounds * walks.looks;
    var moved: [pages]u64 = @splat(0);
    for (rig.cluster.nodes) |*n| {
        for (&moved, n.pager.shell.transfers[0..pages]) |*sum, times| sum.* += times;
    }
    var counted: u64 = 0;
    for (Walks.stolen_pages) |page| {
        counted += payload.load(rig.cluster.word(0, entryOffset(page, count_slot))) / 2;
        // Each round that counts in it takes it at least once from somebody.
        try testing.expect(moved[page] >= rounds / 2);
    }
    const shared = payload.load(rig.cluster.word(0, entryOffset(counter_page, 0)));
    const stale = walks.stale.load(.acquire);
    try rig.finish(tally);
    std.debug.print("walks on {d} engines: {d} rounds, {d} looks, transfers by page {any}\n", .{
        nodes, rounds, looks, moved,
    });
    try testing.expectEqual([3]u64{ looks, looks, 0 }, .{ counted, shared, stale });
}

/// False, and said, where only shadow paging can be had.
fn canWalk() !bool {
    try rig_file.needKvm();
    const probed = try probe_memory.replacedTables();
    const state: abi.ProbeState = @fromBackingInt(probed.state);
    if (state == .good) return true;
    try testing.expectEqual(abi.ProbeState.missing, state);
    std.debug.print("walks over stolen page tables: not applicable here: shadow paging keeps" ++
        " stale translations; they run in the lab\n", .{});
    // For whoever runs this just for the walks.
    if (testing.environ.getPosix("SSIHV_NEED_NESTED_PAGING") != null) return error.ShadowPaging;
    return false;
}

fn walkOnAll(weather: Weather) !Tally {
    const rounds = @max(20, try weather.iterations());
    var tally: Tally = .{};
    for ([_]u8{ 2, 3 }) |nodes| try walk(nodes, rounds, weather, &tally);
    tally.tell();
    return tally;
}

test "page tables that are stolen and changed: each walk after INVLPG goes the new way" {
    if (!try canWalk()) return;
    _ = try walkOnAll(.{ .divide = 100 });
}

test "the same walks while lanes are cut and resumed all the time" {
    if (!try canWalk()) return;
    const tally = try walkOnAll(.{ .divide = 200, .cut = true });
    try testing.expect(tally.cuts > 0 and tally.resumed > 0);
}

test "the same walks where nodes keep half of the pages, and a memory node the rest" {
    if (!try canWalk()) return;
    const tally = try walkOnAll(.{ .divide = 200, .half = true });
    try testing.expect(tally.evicted > 0);
}

test "the same walks with every CPU busy, and on one busy CPU" {
    if (!try canWalk()) return;
    for ([_]starve.How{ .burners, .one_cpu }) |how| {
        var burners: starve.Starve = undefined;
        try burners.start(how);
        _ = try walkOnAll(.{ .divide = 500 });
        try burners.stop();
    }
}
