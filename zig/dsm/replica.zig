//! Replicated page tables. Where the hardware's walk of the guest's page tables writes accessed
//! bits, strictly shared kernel tables livelock; so they are writable on every node, and their
//! changes travel as 8-byte entries ahead of every message that could tell of them.
//!
//! Every node knows the tables by following entries from the root, each in its own copies. A table
//! becomes replicated by a transaction at its home: fetch the only copy, give every node a
//! read-only one (share), then let every node write (go). A node that knows of no such table
//! (any more) refuses, and the page stays shared and strict: always correct. Whoever clears the
//! entry that leads to a table owns the page from then on, and says so before anything else.
//!
//! A table may go and come back while it is offered, and word of that reaches every node on a lane
//! of its own. So the offer and its acceptance name the change that each side knows the table by,
//! and count only where the other has heard of it: then whatever takes the table out of use later
//! is news to both, and each of them stops by itself.

const std = @import("std");
const types = @import("types.zig");
const core_file = @import("core.zig");
const home = @import("home.zig");
const hold = @import("hold.zig");
const Actions = core_file.Actions;
const Txn = core_file.Txn;
const Page = types.Page;
const Node = types.Node;

/// Replicate transactions a home has open at a time.
pub const window = 4;
/// A refusal can mean that the other node has not heard of the table yet (more than two nodes).
const tries_max = 16;
/// Largest depth of tables below one whose entry was cleared.
const depth_max = 4;

const root_level = 4;

/// The change of an entry by which a node came to know a table.
const Origin = struct {
    /// Who made it; none: the entry was there when the table above it came to be a replica.
    node: Node = types.node_none,
    sequence: u32 = 0,
};

pub const Table = struct {
    page: Page = types.page_none,
    /// page_none for the root.
    parent: Page = types.page_none,
    level: u8 = 0,
    tries: u8 = 0,
    origin: Origin = .{},
    /// In the home's queue of tables to replicate.
    wanted: bool = false,
    /// Part of the share that is under way: a table that went and came back since is not.
    offered: bool = false,
};

pub const Replicas = struct {
    /// Tables whose home is here and that wait for a transaction, in order.
    wants: []Page,
    first: usize = 0,
    count: usize = 0,
    /// Replicate transactions open here.
    active: u8 = 0,
    /// Pages replicated on this node.
    live: u64 = 0,
    /// Diffs sent, and how far each node has acknowledged them.
    sequence: u32 = 0,
    acknowledged: [types.nodes_max]u32 = @splat(0),
    /// Newest diff heard from each node.
    heard: [types.nodes_max]u32 = @splat(0),

    pub fn init(a: std.mem.Allocator, config: core_file.Config) !Replicas {
        return .{ .wants = try a.alloc(Page, config.tables_max) };
    }

    pub fn deinit(self: *Replicas, a: std.mem.Allocator) void {
        a.free(self.wants);
    }
};

fn others(self: anytype) types.Nodes {
    return self.compute & ~home.bit(self.config.node);
}

/// To every other compute node.
fn broadcast(self: anytype, kind: types.MsgKind, msg: types.Msg, out: *Actions) void {
    var rest = others(self);
    while (rest != 0) : (rest &= rest - 1) out.send(@intCast(@ctz(rest)), kind, msg);
}

/// A root was sampled here, or a peer says that it sampled one.
pub fn root(self: anytype, page: Page, out: *Actions) void {
    if (!self.config.replicate) return;
    if (!self.isHome(page)) {
        out.send(self.homeOf(page), .replicate, .{
            .kind = 0,
            .requester = self.config.node,
            .page = page,
            .index = root_level,
        });
        return;
    }
    learn(self, page, types.page_none, root_level, .{}, out);
}

/// An entry of `parent`, which has just come to be a replica here, points at the table `page`.
pub fn found(self: anytype, page: Page, parent: Page, level: u8, out: *Actions) void {
    learn(self, page, parent, level, .{}, out);
}

fn learn(
    self: anytype,
    page: Page,
    parent: Page,
    level: u8,
    origin: Origin,
    out: *Actions,
) void {
    if (!self.config.replicate or self.tables.find(page) != null) return;
    if (parent != types.page_none and self.local[parent] != .replicated) return;
    if (!record(self, page, parent, level, origin)) return;
    if (self.isHome(page)) want(self, self.tables.find(page).?, out);
}

fn record(self: anytype, page: Page, parent: Page, level: u8, origin: Origin) bool {
    if (self.tables.full()) {
        self.stats.tables_full += 1;
        return false;
    }
    _ = self.tables.put(page, .{ .parent = parent, .level = level, .origin = origin });
    return true;
}

/// Whether this node has heard of that change.
fn knows(self: anytype, origin: Origin) bool {
    if (origin.node == types.node_none or origin.node == self.config.node) return true;
    const ahead = self.replicas.heard[origin.node] -% origin.sequence;
    return ahead < 1 << 31;
}

fn want(self: anytype, table: *Table, out: *Actions) void {
    if (table.wanted) return;
    table.wanted = true;
    const r = &self.replicas;
    // A page is in the queue at most once while it is a table, but a table that went and came back
    // may leave its old place behind.
    if (r.count == r.wants.len) return;
    r.wants[(r.first + r.count) % r.wants.len] = table.page;
    r.count += 1;
    startNext(self, out);
}

fn startNext(self: anytype, out: *Actions) void {
    const r = &self.replicas;
    while (r.count > 0 and r.active < window) {
        const page = r.wants[r.first];
        r.first = (r.first + 1) % r.wants.len;
        r.count -= 1;
        const table = self.tables.find(page) orelse continue;
        if (!table.wanted) continue;
        table.wanted = false;
        if (self.directory[page].state == .replicated) continue;
        r.active += 1;
        home.request(self, page, .{
            .node = self.config.node,
            .kind = .replicate,
            .version = 0,
            .age = 0,
        }, out);
    }
}

/// The replicate transaction's turn: this node, the home, becomes the page's only owner first.
pub fn fetch(self: anytype, page: Page, txn: *Txn, out: *Actions) void {
    const me = self.config.node;
    const entry = &self.directory[page];
    if (entry.state == .untouched and self.local[page] == .invalid) {
        // An entry that points at a page nobody has touched is no table worth replicating.
        return finish(self, page, txn, out);
    }
    if (self.local[page] == .exclusive) return share(self, page, txn, out);
    // A fault of this node that waits in the queue is served by the same grant.
    home.forgetRequest(self, txn, me);
    if (self.pending.find(page)) |p| {
        p.* = .{ .page = page, .kind = .replicate };
    } else {
        if (self.pending.full()) {
            self.stats.replications_aborted += 1;
            return finish(self, page, txn, out);
        }
        _ = self.pending.put(page, .{ .kind = .replicate });
    }
    home.take(self, page, .{
        .node = me,
        .kind = .get_exclusive,
        .version = self.versions[page],
        .age = 0,
    }, out);
}

/// This node has the only copy: every other node takes one, read-only.
pub fn share(self: anytype, page: Page, txn: *Txn, out: *Actions) void {
    const table = self.tables.find(page) orelse return finish(self, page, txn, out);
    std.debug.assert(self.local[page] == .exclusive);
    const entry = &self.directory[page];
    txn.phase = .share;
    table.offered = true;
    txn.missing = others(self);
    txn.refused = 0;
    out.add(.{ .protect = page });
    self.local[page] = .shared;
    self.versions[page] = entry.version;
    entry.state = .shared;
    entry.owner = self.config.node;
    entry.sharers = home.bit(self.config.node);
    broadcast(self, .replica, .{
        .kind = 0,
        .flags = types.flag_data,
        .page = page,
        .version = entry.version,
        .index = table.level,
        .old = table.parent,
        .requester = table.origin.node,
        .new = table.origin.sequence,
    }, out);
    if (txn.missing == 0) advance(self, page, txn, out);
}

/// replica: a copy to take, or leave to write.
pub fn offered(self: anytype, from: Node, msg: types.Msg, out: *Actions) void {
    const page = msg.page;
    const parent: Page = @intCast(msg.old);
    if (msg.hasData() and parent == types.page_none and self.tables.find(page) == null) {
        _ = record(self, page, parent, root_level, .{});
    }
    const known = self.tables.find(page) != null;
    const origin: Origin = .{ .node = msg.requester, .sequence = @intCast(msg.new) };
    var accepted = known and knows(self, origin);
    if (!msg.hasData()) {
        accepted = known and self.tables.find(page).?.offered and
            (self.local[page] == .shared or self.local[page] == .replicated);
        if (accepted and self.local[page] == .shared) makeLive(self, page, out);
        if (accepted and self.pending.find(page) != null) self.pending.remove(page);
    } else if (accepted) {
        if (self.pending.find(page) != null) self.pending.remove(page);
        self.tables.find(page).?.offered = true;
        self.local[page] = .shared;
        self.versions[page] = msg.version;
        out.add(.{ .install = .{
            .page = page,
            .access = .shared,
            .source = .message,
            .wake = true,
        } });
        hold.woken(self, page);
    }
    const own: Origin = if (accepted) self.tables.find(page).?.origin else .{};
    out.send(from, .replica_ack, .{
        .kind = 0,
        .flags = if (accepted) 0 else types.flag_refused,
        .requester = own.node,
        .page = page,
        .new = own.sequence,
    });
}

/// The shared copy becomes writable, with a twin. Waiters run.
fn makeLive(self: anytype, page: Page, out: *Actions) void {
    out.add(.{ .twin = .{ .page = page, .level = self.tables.find(page).?.level } });
    out.add(.{ .unprotect = page });
    self.local[page] = .replicated;
    self.replicas.live += 1;
    self.stats.replicated += 1;
    hold.woken(self, page);
}

/// replica_ack: what that node asked for before is settled if it took the copy.
pub fn answered(self: anytype, from: Node, msg: types.Msg, out: *Actions) void {
    const page = msg.page;
    const txn = self.txns.find(page).?;
    txn.missing &= ~home.bit(from);
    const origin: Origin = .{ .node = msg.requester, .sequence = @intCast(msg.new) };
    if (msg.flags & types.flag_refused != 0) {
        txn.refused |= home.bit(from);
    } else {
        home.forgetRequest(self, txn, from);
        const entry = &self.directory[page];
        if (txn.phase == .share) {
            entry.sharers |= home.bit(from);
            // It has the copy, but of a table that this node has yet to hear of.
            if (!knows(self, origin)) txn.refused |= home.bit(from);
        }
    }
    if (txn.missing == 0) advance(self, page, txn, out);
}

fn advance(self: anytype, page: Page, txn: *Txn, out: *Actions) void {
    if (txn.phase == .go) return finish(self, page, txn, out);
    const table = self.tables.find(page);
    if (table == null or !table.?.offered or txn.refused != 0) {
        self.stats.replications_aborted += 1;
        if (table) |t| {
            t.offered = false;
            t.tries += 1;
            if (t.tries < tries_max) want(self, t, out);
        }
        return finish(self, page, txn, out);
    }
    txn.phase = .go;
    txn.missing = others(self);
    home.forgetRequest(self, txn, self.config.node);
    self.directory[page].state = .replicated;
    broadcast(self, .replica, .{ .kind = 0, .page = page, .old = types.page_none }, out);
    makeLive(self, page, out);
    if (self.pending.find(page) != null) self.pending.remove(page);
    if (txn.missing == 0) finish(self, page, txn, out);
}

/// Closes the replicate transaction, whatever became of it.
fn finish(self: anytype, page: Page, txn: *Txn, out: *Actions) void {
    self.replicas.active -= 1;
    home.next(self, page, txn, out);
    startNext(self, out);
}

pub const Change = struct {
    page: Page,
    index: u16,
    old: u64,
    new: u64,
    old_child: ?Page,
    new_child: ?Page,
};

/// This node's guest changed an entry of a replica.
pub fn changed(self: anytype, c: Change, out: *Actions) void {
    // Forgotten within the same scan: its owner's bytes are the truth.
    if (self.local[c.page] != .replicated) return;
    const moved = c.old_child != c.new_child;
    if (moved) if (c.old_child) |child| orphan(self, child, depth_max, out);
    if (self.local[c.page] != .replicated) return;
    self.stats.diffs += 1;
    self.replicas.sequence +%= 1;
    const old_child: u64 = c.old_child orelse types.page_none;
    const new_child: u64 = c.new_child orelse types.page_none;
    broadcast(self, .diff, .{
        .kind = 0,
        .requester = self.config.node,
        .page = c.page,
        .version = self.replicas.sequence,
        .index = c.index,
        .making = making(self, c.page),
        .age = old_child | new_child << 32,
        .old = c.old,
        .new = c.new,
    }, out);
    const origin: Origin = .{ .node = self.config.node, .sequence = self.replicas.sequence };
    if (moved) if (c.new_child) |child| link(self, c.page, c.index, child, origin, out);
}

fn link(
    self: anytype,
    parent: Page,
    index: u16,
    child: Page,
    origin: Origin,
    out: *Actions,
) void {
    const table = self.tables.find(parent) orelse return;
    if (table.level < 2) return;
    if (table.level == root_level and index < types.kernel_half_first) return;
    learn(self, child, parent, table.level - 1, origin, out);
}

/// This node's guest took the table out of use: the page is this node's, and strict, from now on.
/// What hung below it goes first: it can be freed without its entries being cleared one by one.
fn orphan(self: anytype, page: Page, depth: u8, out: *Actions) void {
    if (self.tables.find(page) == null) return;
    if (self.has(.keep_orphan)) return;
    if (out.count + 2 * @as(usize, self.config.node_count) > Actions.capacity) {
        return out.add(.{ .fatal = .{ .page = page, .code = types.fatal_unlinked } });
    }
    removeBelow(self, page, depth, orphan, out);
    if (self.local[page] != .replicated) return;
    self.stats.unreplicated += 1;
    self.replicas.live -= 1;
    out.add(.{ .forget_replica = page });
    self.local[page] = .exclusive;
    // What it asked for before another node's entry let it write: the home forgets it, too.
    if (self.pending.find(page) != null) self.pending.remove(page);
    self.replicas.sequence +%= 1;
    broadcast(self, .unreplicate, .{
        .kind = 0,
        .requester = self.config.node,
        .page = page,
        .version = self.replicas.sequence,
    }, out);
    if (self.isHome(page)) taken(self, self.config.node, page, out);
}

/// Forgets the table, and does the same to each one below it. A rare event, so it may look at
/// all tables there are.
fn removeBelow(
    self: anytype,
    page: Page,
    depth: u8,
    comptime each: anytype,
    out: *Actions,
) void {
    const level = self.tables.find(page).?.level;
    self.tables.remove(page);
    if (level < 2 or depth == 0) return;
    for (self.tables.items) |t| {
        if (t.page == types.page_none or t.parent != page) continue;
        each(self, t.page, depth - 1, out);
        if (out.count > 0 and out.items[out.count - 1] == .fatal) return;
    }
}

/// At the home: `owner` alone has the page.
fn taken(self: anytype, owner: Node, page: Page, out: *Actions) void {
    const entry = &self.directory[page];
    entry.* = .{ .state = .exclusive, .owner = owner, .version = entry.version +% 1 };
    const txn = self.txns.find(page) orelse return;
    home.forgetRequest(self, txn, owner);
    if (txn.phase == .parked) home.next(self, page, txn, out);
}

/// unreplicate: the sender owns the page.
pub fn unreplicated(self: anytype, from: Node, msg: types.Msg, out: *Actions) void {
    const page = msg.page;
    if (self.tables.find(page) != null) removeBelow(self, page, depth_max, unlink, out);
    if (self.local[page] == .replicated) {
        self.stats.unreplicated += 1;
        self.replicas.live -= 1;
        out.add(.{ .forget_replica = page });
    }
    if (self.local[page] != .invalid) out.add(.{ .drop = page });
    self.local[page] = .invalid;
    if (self.isHome(page)) taken(self, from, page, out);
    hear(self, from, msg.version, out);
}

/// Which making of the page into a replica this node's copy is of: the low bits of its version,
/// new with the exclusive copy before each. Hardware marks entries without any lock, so a diff may
/// be under way still when its table has gone and come back: it must not change the next replica,
/// nor pass for the word that its share is done. The bits would repeat after 65,536 versions of one
/// page while one frame is under way, in each of which its sender took part.
fn making(self: anytype, page: Page) u16 {
    return @truncate(self.versions[page]);
}

/// A peer's guest changed an entry.
pub fn diff(self: anytype, from: Node, msg: types.Msg, out: *Actions) void {
    defer hear(self, from, msg.version, out);
    const page = msg.page;
    if (self.tables.find(page) == null) return;
    // Of a replica that is gone: whoever took it out of use has the true bytes.
    if (msg.making != making(self, page)) return;
    // The peer was let write; the home's word to this node is still under way.
    const offered_here = self.tables.find(page).?.offered;
    if (self.local[page] == .shared and offered_here) makeLive(self, page, out);
    if (self.local[page] != .replicated) return;
    out.add(.{ .patch = .{ .page = page, .index = msg.index, .old = msg.old, .new = msg.new } });
    const old_child: Page = @truncate(msg.age);
    const new_child: Page = @intCast(msg.age >> 32);
    if (old_child == new_child) return;
    if (old_child != types.page_none) unlink(self, old_child, depth_max, out);
    const origin: Origin = .{ .node = from, .sequence = msg.version };
    if (new_child != types.page_none) link(self, page, msg.index, new_child, origin, out);
}

/// A peer took the table out of use. If that peer had a replica it owns the page and said so
/// before. If not, nobody may write to it any more without asking: copies become plain shared ones.
fn unlink(self: anytype, page: Page, depth: u8, out: *Actions) void {
    if (self.has(.keep_orphan)) return;
    if (self.tables.find(page) == null) return;
    // Replicated everywhere, yet the peer knew of no table here (an entry elsewhere led to it,
    // too): the home takes it out of use.
    const txn = self.txns.find(page);
    const settled = self.isHome(page) and (txn == null or txn.?.phase == .parked);
    if (settled and self.local[page] == .replicated) return orphan(self, page, depth, out);
    if (out.count + 2 * @as(usize, self.config.node_count) > Actions.capacity) {
        return out.add(.{ .fatal = .{ .page = page, .code = types.fatal_unlinked } });
    }
    removeBelow(self, page, depth, unlink, out);
    if (self.local[page] != .replicated) return;
    self.stats.unreplicated += 1;
    self.replicas.live -= 1;
    out.add(.{ .protect = page });
    out.add(.{ .forget_replica = page });
    self.local[page] = .shared;
    if (!self.isHome(page)) return;
    const entry = &self.directory[page];
    entry.state = .shared;
    self.versions[page] = entry.version;
}

fn hear(self: anytype, from: Node, sequence: u32, out: *Actions) void {
    self.replicas.heard[from] = sequence;
    if (self.compute_count == 2) return;
    out.send(from, .diff_ack, .{
        .kind = 0,
        .requester = self.config.node,
        .page = 0,
        .version = sequence,
    });
}

pub fn acknowledged(self: anytype, from: Node, sequence: u32) void {
    self.replicas.acknowledged[from] = sequence;
}

pub fn gatePassed(self: anytype, sequence: u32) bool {
    if (self.compute_count == 2) return true;
    var rest = others(self);
    while (rest != 0) : (rest &= rest - 1) {
        const behind = sequence -% self.replicas.acknowledged[@ctz(rest)];
        if (behind != 0 and behind < 1 << 31) return false;
    }
    return true;
}
