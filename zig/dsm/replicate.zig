//! Replicated page-table pages, the part of the core that makes and unmakes them (two nodes).
//! A home collects the newest copy, sends it to the other node and both keep it writable with a
//! twin; from then on the shell's scan turns every store into a diff that precedes whatever could
//! depend on it. A page whose parent entry goes away is strict again before anybody can learn of
//! it. Lanes are FIFO, so with two nodes a diff or an unreplicate needs no acknowledgement.

const types = @import("types.zig");
const core_file = @import("core.zig");
const Core = core_file.Core;
const Actions = core_file.Actions;
const Msg = types.Msg;
const MsgKind = types.MsgKind;
const Node = types.Node;
const Page = types.Page;

/// Replications a home may have open at once. More are passed over: strict sharing of a page table
/// is always right, only slow.
pub const open_max = 128;

pub fn levelGood(level: u16) bool {
    return level >= 1 and level <= 4;
}

fn peer(core: *const Core) Node {
    return 1 - core.config.node;
}

/// This node found that the page is a kernel page table of `level`.
pub fn want(core: *Core, page: Page, level: u8, out: *Actions) void {
    if (!core.config.replicate or core.access_of[page] == .replicated) return;
    const home = core.homeOf(page);
    if (home == core.config.node) return wantAtHome(core, page, level, out);
    out.send(home, .{
        .kind = @backingInt(MsgKind.replicate),
        .page = page,
        .index = level,
    });
}

fn wantAtHome(core: *Core, page: Page, level: u8, out: *Actions) void {
    if (core.directory[page].state == .replicated) return;
    if (core.transactionOf(page)) |t| {
        if (t.kind == .replicate) return;
        for (t.waiting[0..t.waiting_count]) |w| if (w.kind == .replicate) return;
    }
    var open: usize = 0;
    for (core.transactions) |t| open += @intFromBool(t.open and t.kind == .replicate);
    if (open == open_max) return;
    core.directory[page].level = level;
    core.request(page, .{ .node = core.config.node, .kind = .replicate }, out);
}

/// The transaction's turn has come: fetch the newest copy, or go on at once with this node's own.
pub fn begin(core: *Core, page: Page, out: *Actions) void {
    const entry = core.directory[page];
    if (core.access_of[page] != .invalid) {
        if (core.access_of[page] == .exclusive) out.add(.{ .protect = page });
        return spread(core, page, out);
    }
    if (entry.state == .untouched) {
        out.add(.{ .install = .{
            .page = page,
            .access = .shared,
            .source = .zero,
            .wake = false,
        } });
        core.access_of[page] = .shared;
        return spread(core, page, out);
    }
    out.send(peer(core), .{ .kind = @backingInt(MsgKind.recall), .page = page });
}

/// At the home, which has a write-protected copy: the other node gets one, both become writable.
fn spread(core: *Core, page: Page, out: *Actions) void {
    const level = levelOf(core, page);
    core.transactionOf(page).?.acks = 1;
    out.send(peer(core), .{
        .kind = @backingInt(MsgKind.replica),
        .flags = types.flag_data,
        .page = page,
        .index = level,
    });
    adopt(core, page, level, out);
    settle(core, page, core.config.node);
}

/// What `node` asked for before it had a replica is settled: its pending request went with the
/// adoption. The page may be strict again by now (a scan puts an unreplicate before the
/// acknowledgement), so the requests in the queue must not be served any more.
fn settle(core: *Core, page: Page, node: Node) void {
    const t = core.transactionOf(page).?;
    var kept: u8 = 0;
    for (t.waiting[0..t.waiting_count]) |w| {
        if (w.node == node and w.kind != .replicate) continue;
        t.waiting[kept] = w;
        kept += 1;
    }
    for (t.waiting[kept..t.waiting_count]) |*w| w.* = .{ .node = 0, .kind = .shared };
    t.waiting_count = kept;
}

fn levelOf(core: *const Core, page: Page) u8 {
    return core.directory[page].level;
}

/// A copy that is mapped write-protected here becomes a replica.
fn adopt(core: *Core, page: Page, level: u8, out: *Actions) void {
    core.directory[page].level = level;
    out.add(.{ .twin = .{ .page = page, .level = level } });
    // Last, and it wakes: whoever waits for the page finds it writable.
    out.add(.{ .unprotect = page });
    core.access_of[page] = .replicated;
    if (core.pendingOf(page)) |p| p.* = .{};
}

pub fn onMessage(core: *Core, from: Node, msg: Msg, out: *Actions) void {
    const page = msg.page;
    switch (@as(MsgKind, @fromBackingInt(@intCast(msg.kind)))) {
        .replicate => wantAtHome(core, page, @intCast(msg.index), out),
        .recall => {
            if (core.access_of[page] == .exclusive) out.add(.{ .protect = page });
            core.access_of[page] = .shared;
            out.send(from, .{
                .kind = @backingInt(MsgKind.returned),
                .flags = types.flag_data,
                .page = page,
            });
        },
        .returned => {
            out.add(.{ .install = .{
                .page = page,
                .access = .shared,
                .source = .message,
                .wake = false,
            } });
            core.access_of[page] = .shared;
            spread(core, page, out);
        },
        .replica => {
            const level: u8 = @intCast(msg.index);
            if (core.access_of[page] == .shared) adopt(core, page, level, out) else {
                out.add(.{ .install_replica = .{
                    .page = page,
                    .source = .message,
                    .level = level,
                } });
                core.access_of[page] = .replicated;
                core.directory[page].level = level;
                if (core.pendingOf(page)) |p| p.* = .{};
            }
            out.send(from, .{ .kind = @backingInt(MsgKind.replica_ack), .page = page });
        },
        .replica_ack => {
            const level = core.directory[page].level;
            settle(core, page, from);
            // Unreplicated by this node while the acknowledgement was on its way: already strict.
            if (core.access_of[page] == .replicated) {
                core.directory[page] = .{ .state = .replicated, .level = level };
            }
            core.close(page, out);
        },
        // For a page this node has just unreplicated: the peer sent it before it could know, and a
        // guest frees a page table only when nobody uses it, so it can only be an accessed bit.
        .diff => if (core.access_of[page] == .replicated) out.add(.{
            .patch = .{ .page = page, .index = msg.index, .old = msg.old, .new = msg.new },
        }),
        .unreplicate => {
            out.add(.{ .forget_replica = page });
            out.add(.{ .drop = page });
            core.access_of[page] = .invalid;
            if (core.isHome(page)) core.directory[page] = .{ .state = .exclusive, .owner = from };
        },
        else => unreachable,
    }
}

/// The scan found a store into a replica: tell the other node, and follow the table it points at.
pub fn changed(core: *Core, change: anytype, out: *Actions) void {
    out.send(peer(core), .{
        .kind = @backingInt(MsgKind.diff),
        .page = change.page,
        .index = change.index,
        .old = change.old,
        .new = change.new,
    });
    const level = levelOf(core, change.page);
    if (level < 2 or (level == 4 and change.index < types.kernel_half_first)) return;
    const same = change.old_child != null and change.new_child != null and
        change.old_child.? == change.new_child.?;
    if (same) return;
    if (change.old_child) |child| {
        if (core.access_of[child] == .replicated) unreplicate(core, child, out);
    }
    if (change.new_child) |child| want(core, child, level - 1, out);
}

/// A table below one that this node has just made strict: the guest may free it with its parent.
pub fn unlinked(core: *Core, page: Page, out: *Actions) void {
    if (core.access_of[page] == .replicated) unreplicate(core, page, out);
}

fn unreplicate(core: *Core, page: Page, out: *Actions) void {
    out.send(peer(core), .{
        .kind = @backingInt(MsgKind.unreplicate),
        .page = page,
        .requester = core.config.node,
    });
    out.add(.{ .forget_replica = page });
    core.access_of[page] = .exclusive;
    if (core.isHome(page)) {
        core.directory[page] = .{ .state = .exclusive, .owner = core.config.node };
    }
}

test "a table below an unlinked one becomes strict too, once" {
    const std = @import("std");
    const home = [_]core_file.HomeRange{.{ .first_page = 0, .node = 0 }};
    var core = try Core.init(std.testing.allocator, .{
        .node = 0,
        .node_count = 2,
        .page_count = 2,
        .home = &home,
        .replicate = true,
        .threads = 1,
    });
    defer core.deinit();
    core.access_of[1] = .replicated;
    core.directory[1] = .{ .state = .replicated, .level = 1 };
    var out: Actions = .empty;
    core.step(.{ .unlinked = .{ .page = 1 } }, &out);
    try std.testing.expectEqual(@as(usize, 2), out.count);
    try std.testing.expectEqual(@backingInt(MsgKind.unreplicate), out.items[0].send.msg.kind);
    try std.testing.expectEqual(types.Access.exclusive, core.access(1));
    try std.testing.expectEqual(core_file.DirectoryState.exclusive, core.directory[1].state);
    core.step(.{ .unlinked = .{ .page = 1 } }, &out);
    try std.testing.expectEqual(@as(usize, 2), out.count);
}
