//! What must hold when nothing is left to happen: no vCPU waits, the directories equal the sum of
//! the nodes (dsm/audit.zig), every kernel maps what its core thinks, and no record, frame, staged
//! page or gated message is left over.

const std = @import("std");
const audit = @import("../dsm/audit.zig");
const Kind = @import("../engine/room.zig").Kind;
const store = @import("../dsm/store.zig");
const Copies = store.Copies;
const types = @import("../dsm/types.zig");
const finding = @import("finding.zig");

pub fn check(world: anytype) void {
    const cluster = &world.cluster;
    for (cluster.vcpus) |*v| {
        if (v.state == .finished) continue;
        finding.fail(.stuck, "vcpu {d} of node {d} is {t} and nothing is left to happen", .{
            v.index, v.node, v.state,
        });
    }
    for (world.shells, cluster.machines[0..world.shells.len], 0..) |*shell, *m, n| {
        checkShell(shell, n);
        checkRoom(shell, &m.kernel);
        checkFrames(shell);
    }
    if (cluster.network.in_use != 0) {
        finding.fail(.leak, "{d} frames are left in the lanes", .{cluster.network.in_use});
    }
    for (cluster.machines) |*from| for (cluster.machines, 0..) |*to, n| {
        if (from.spans_sent[n] == to.spans_taken[from.node]) continue;
        finding.fail(.leak, "{d} spans from node {d} to {d}, {d} came", .{
            from.spans_sent[n], from.node, n, to.spans_taken[from.node],
        });
    };
    checkFreezes(world.freezers);
    checkDirectories(world);
    checkMappings(world);
}

/// None lasts, and all nodes have taken the same off their guests' clocks.
fn checkFreezes(freezers: anytype) void {
    for (freezers) |*f| {
        const node = f.machine.node;
        if (f.machine.is_frozen) finding.fail(.freeze, "node {d} is frozen for ever", .{node});
        if (std.mem.eql(u64, f.rounds.items, freezers[0].rounds.items)) continue;
        finding.fail(.freeze, "node {d} has seen {d} rounds of freezes, node 0 {d}, or others", .{
            node, f.rounds.items.len, freezers[0].rounds.items.len,
        });
    }
}

fn checkShell(shell: anytype, node: usize) void {
    const core = &shell.core;
    const left = .{
        .{ "open requests", core.pending.items.len - core.pending.free_count },
        .{ "open transactions", core.txns.items.len - core.txns.free_count },
        .{ "deferred revokes", core.holds.deferred_count },
        .{ "open replications", core.replicas.active },
        .{ "tables to replicate", core.replicas.count },
        .{ "gated messages", shell.gate.waiting.items.len },
        .{ "write-back slots", core.slots.items.len - core.slots.free_count },
        .{ "staged messages", shell.staged_count },
        .{ "staged pages", shell.staged_page_count },
        .{ "discards asked for", core.discards.count },
        .{ "batches of discards", @intFromBool(shell.discards.is_active) },
        .{ "discards open at home", openDiscards(core) },
        .{ "untold tables", shell.children.items.len },
        .{ "seen faults", waiting(shell) },
    };
    inline for (left) |pair| {
        if (pair[1] != 0) finding.fail(.leak, "node {d}: {d} {s} are left", .{
            node, pair[1], pair[0],
        });
    }
    if (shell.replicas.list.items.len != core.replicas.live) {
        finding.fail(.leak, "node {d}: {d} twins for {d} replicas", .{
            node, shell.replicas.list.items.len, core.replicas.live,
        });
    }
    var records: usize = 0;
    var free = core.requests.free;
    while (free != 0) : (free = core.requests.records[free - 1].next) records += 1;
    if (records != core.requests.records.len) {
        finding.fail(.leak, "node {d}: {d} records of requests are lost", .{
            node, core.requests.records.len - records,
        });
    }
}

fn openDiscards(core: anytype) usize {
    var count: usize = 0;
    for (core.discards.open) |open| count += open;
    return count;
}

/// Every frame that is in use is some stored page's, and nobody else's.
fn checkFrames(shell: anytype) void {
    const s = &shell.core.store;
    var named: usize = 0;
    for (shell.core.directory, 0..) |entry, page| {
        if (entry.state != .stored) continue;
        for (Copies.of(entry).list()) |place| {
            if (place == store.no_place or s.lotOf(place).is_lost) continue;
            named += 1;
            if (s.pages[place] == page) continue;
            finding.fail(.leak, "node {d}: page {d} is in a frame of page {d}", .{
                shell.core_config.node, page, s.pages[place],
            });
        }
    }
    var used: usize = 0;
    for (s.lots) |lot| used += if (lot.is_lost) 0 else lot.count - lot.free;
    if (used == named) return;
    finding.fail(.leak, "node {d}: {d} frames are in use, {d} hold pages", .{
        shell.core_config.node, used, named,
    });
}

/// What decides which page leaves knows of every page that is here.
fn checkRoom(shell: anytype, kernel: anytype) void {
    const room = if (shell.room) |*room| room else return;
    var found: std.EnumArray(Kind, u32) = .initFill(0);
    for (0..shell.core_config.page_count) |i| {
        const page: u32 = @intCast(i);
        const kind: Kind = if (shell.core.isHome(page)) .own else .cache;
        found.getPtr(kind).* += @intFromBool(kernel.canRead(page));
    }
    for (std.enums.values(Kind)) |kind| {
        const policy = room.limited(kind) orelse continue;
        if (policy.present() == found.get(kind)) continue;
        finding.fail(.leak, "node {d}: {d} pages ({t}) are here, {d} are known of", .{
            shell.core_config.node, found.get(kind), kind, policy.present(),
        });
    }
}

fn waiting(shell: anytype) usize {
    var count: usize = 0;
    for (shell.faults.entries[0..shell.faults.count]) |e| count += @intFromBool(e.waiting);
    return count;
}

fn checkDirectories(world: anytype) void {
    const Core = @TypeOf(world.shells[0].core);
    const cores = world.cluster.allocator.alloc(Core, world.shells.len) catch
        @panic("no memory for an audit");
    for (cores, world.shells) |*core, *shell| core.* = shell.core;
    const v = audit.audit(cores) orelse return;
    finding.fail(.directory, "page {d} on node {d} is {t}, the directory says {t}", .{
        v.page, v.node, v.found, v.expected,
    });
}

fn checkMappings(world: anytype) void {
    for (world.shells, world.cluster.machines[0..world.shells.len]) |*shell, *m| {
        for (0..world.cluster.config.pages) |i| {
            const page: u32 = @intCast(i);
            const found: types.Access = if (m.kernel.canWrite(page))
                .exclusive
            else if (m.kernel.canRead(page)) .shared else .invalid;
            const access = shell.core.access(page);
            const expected: types.Access = if (access == .replicated) .exclusive else access;
            if (found == expected) continue;
            finding.fail(.mapping, "node {d}: page {d} is mapped {t}, the core says {t}", .{
                m.node, page, found, access,
            });
        }
    }
}
