//! The explorer's bounds for every test run, and the planted bugs it must find.

const std = @import("std");
const core_file = @import("core.zig");
const explorer = @import("explorer.zig");
const scenarios = @import("scenarios.zig");
const model_file = @import("model.zig");

fn report(name: []const u8, r: explorer.Result) void {
    std.debug.print("explorer: {s}: {d} states, {d} transitions, {d} quiet, depth {d}{s}\n", .{
        name, r.states, r.transitions, r.quiet, r.depth, if (r.cut) " (cut)" else "",
    });
    if (r.failure) |f| std.debug.print("explorer: {s}: found {t}\n", .{ name, f });
}

fn sound(name: []const u8, options: explorer.Options) !explorer.Result {
    var o = options;
    o.trace = true;
    const r = try explorer.Explorer(.none).run(std.heap.page_allocator, o);
    report(name, r);
    if (r.failure) |f| return f;
    try std.testing.expect(!r.cut and r.quiet > 0);
    return r;
}

fn finds(name: []const u8, mutation: core_file.Mutation, options: explorer.Options) !void {
    var o = options;
    o.mutation = mutation;
    const r = try explorer.Explorer(.chosen).run(std.heap.page_allocator, o);
    report(name, r);
    try std.testing.expect(r.failure != null);
}

test "two nodes, one page" {
    _ = try sound("2 nodes, 1 page, 4 operations", .{ .operations = 4 });
}

test "two nodes, two pages with two homes" {
    _ = try sound("2 nodes, 2 pages, 3 operations", scenarios.two_pages);
}

test "three nodes, one page" {
    _ = try sound("3 nodes, 1 page, 2 operations", .{ .nodes = 3, .operations = 2 });
}

test "a put crosses forwards, invalidations and other puts" {
    const two = try sound("2 nodes, 1 page, 3 operations, 2 evictions", scenarios.evicting);
    try std.testing.expect(two.stats.puts_absorbed > 0 and two.stats.forwards_from_slot > 0);
    const held = try sound("2 nodes, 2 pages, holds, 1 eviction", scenarios.evicting_held);
    try std.testing.expect(held.stats.evictions > 0 and held.stats.revokes_deferred > 0);
    const three = try sound("3 nodes, 1 page, 1 eviction", scenarios.evicting_of_three);
    try std.testing.expect(three.stats.puts_absorbed > 0 and three.stats.forwards_from_slot > 0);
    try std.testing.expect(three.stats.puts_more > 0 and three.stats.upgrades_late > 0);
}

test "a put crosses the making and unmaking of page tables" {
    for (scenarios.evicting_tables) |o| {
        const r = try sound("2 nodes, replicated tables, 1 eviction", o);
        try std.testing.expect(r.stats.replicated > 0 and r.stats.puts_absorbed > 0);
    }
    const r = try sound("3 nodes, put while replicated", scenarios.put_while_replicated);
    try std.testing.expect(r.stats.unreplicated > 0 and r.stats.evictions > 0);
}

test "pages on memory nodes" {
    for (scenarios.storing) |o| {
        const r = try sound("pages on memory nodes", o);
        try std.testing.expect(r.stats.frames_stored > 0 and r.stats.frames_loaded > 0);
    }
}

test "a memory node crashes" {
    for (scenarios.losing) |o| {
        const r = try sound("a memory node crashes", o);
        try std.testing.expect(r.expelled > 0 and r.stats.loads_again > 0);
    }
    const r = try sound("a memory node crashes, another has room", scenarios.repairing);
    try std.testing.expect(r.stats.repaired > 0);
    const put = try sound("repair while another node puts", scenarios.repairing_while_put);
    try std.testing.expect(put.stats.repaired > 0 and put.stats.puts_sent > 0);
    try std.testing.expect(put.stats.loads_again > 0);
    const only = try explorer.Explorer(.none).run(
        std.heap.page_allocator,
        scenarios.losing_the_only_copy,
    );
    report("the only memory node crashes", only);
    try std.testing.expectEqual(error.PageLost, only.failure.?);
}

test "discard, with everything else" {
    _ = try sound("2 nodes, 1 page, 2 discards", scenarios.discarding);
    _ = try sound("3 nodes, 1 page, 1 discard", scenarios.discarding_of_three);
    const r = try sound("2 nodes, a memory node, 1 discard", scenarios.discarding_stored);
    try std.testing.expect(r.stats.discards > 0 and r.stats.frames_loaded > 0);
    for (scenarios.discarding_tables) |o| {
        const t = try sound("2 nodes, replicated tables, 1 discard", o);
        try std.testing.expect(t.stats.discards > 0 and t.stats.discards_refused > 0);
    }
}

test "planted bugs are found" {
    const three: explorer.Options = .{ .nodes = 3, .operations = 2 };
    try finds("early grant", .early_grant, three);
    try finds("acks counted twice", .ack_twice, three);
    try finds("stale upgrade", .stale_upgrade, .{ .operations = 3 });
    try finds("owner changes under a forward", .owner_change, three);
    try finds("a change of owner keeps the version", .version_kept, three);
    try finds("copy before protect", .none, .{
        .operations = 3,
        .shell_bug = .copy_before_protect,
    });
}

test "replicated page tables, two nodes" {
    for (scenarios.tables, 0..) |o, i| {
        var name: [64]u8 = undefined;
        const n = try std.fmt.bufPrint(&name, "2 nodes, replicated tables, homes {d}", .{i});
        const r = try sound(n, o);
        try std.testing.expect(r.stats.replicated > 0);
        if (i % 6 < 4) try std.testing.expect(r.stats.unreplicated > 0);
    }
}

test "hardware marks entries at any time" {
    for (scenarios.marked_tables) |o| {
        const r = try sound("replicated tables, 1 mark a node", o);
        try std.testing.expect(r.stats.replicated > 0 and r.marks > 0);
    }
}

test "tables below a table that goes" {
    for (scenarios.deep) |o| {
        const r = try sound("2 nodes, tables below a freed table", o);
        try std.testing.expect(r.stats.replicated == 3 and r.stats.unreplicated == 2);
    }
}

test "replicated page tables, three nodes, with a barrier" {
    for (scenarios.tables_of_three, 0..) |o, i| {
        var name: [64]u8 = undefined;
        const n = try std.fmt.bufPrint(&name, "3 nodes, replicated tables {d}", .{i});
        const r = try sound(n, o);
        try std.testing.expect(r.stats.replicated > 0);
        if (i != scenarios.ungated) try std.testing.expect(r.stats.unreplicated > 0);
    }
}

test "a table that is asked for while another node drops it" {
    _ = try sound("3 nodes, asked for while dropped", scenarios.asked_while_dropped);
    _ = try sound("3 nodes, linked again while offered", scenarios.relinked_while_offered);
    _ = try sound("3 nodes, linked again before the offer", scenarios.relinked_before_offer);
    _ = try sound("3 nodes, linked again, home last", scenarios.relinked_before_home_knew);
    _ = try sound("3 nodes, dropped before it was let go", scenarios.dropped_before_let);
}

test "holds, deadlines at any time" {
    _ = try sound("2 nodes, 2 pages, 2 operations, holds", scenarios.held);
}

test "planted bugs of replication are found" {
    var late = scenarios.tables[0];
    late.shell_bug = .diff_late;
    try finds("diff after the message that depends on it", .none, late);
    var open = scenarios.tables_of_three[scenarios.ungated];
    open.shell_bug = .no_gate;
    try finds("nobody waits for diffs to arrive", .none, open);
    var marked = scenarios.marked_tables[0];
    marked.shell_bug = .mark_is_change;
    try finds("a mark taken for a change", .none, marked);
    try finds("a freed table stays replicated", .keep_orphan, scenarios.tables[scenarios.handover]);
}

test "planted bugs of eviction are found" {
    try finds("a put acknowledged and not taken", .lost_put, scenarios.evicting);
    try finds("a put answered from the page", .put_from_page, scenarios.evicting);
    try finds("a frame freed too early", .frame_early, scenarios.storing_twice);
    try finds("a copy that counts before it is made", .repair_early, scenarios.repairing_while_put);
    try finds("a discard that does not wait", .discard_early, scenarios.discarding);
    try finds("a lost memory node's word taken", .stale_epoch, scenarios.losing[0]);
    var early = scenarios.evicting;
    // Only node 1 uses the page: nothing but the eviction copies it.
    early.scripts = &.{ &.{}, &.{ .{ .kind = .store }, .{} } };
    early.shell_bug = .copy_before_protect;
    try finds("copy into the slot before protect", .none, early);
}
