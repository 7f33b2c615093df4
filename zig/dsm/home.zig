//! The home's half of the protocol: the directory entry of a page and its one transaction at a
//! time. A transaction opens with a request, sends the data's owner and the sharers on their way,
//! and closes with the requester's `done`; what comes meanwhile waits, oldest chain first.

const types = @import("types.zig");
const core_file = @import("core.zig");
const hold = @import("hold.zig");
const requester = @import("requester.zig");
const replica = @import("replica.zig");
const store = @import("store.zig");
const discard = @import("discard.zig");
const Actions = core_file.Actions;
const Entry = core_file.Entry;
const Request = core_file.Request;
const Txn = core_file.Txn;
const Page = types.Page;
const Node = types.Node;

/// Confidence from which a read is granted exclusive.
const migratory_min = 2;

pub fn bit(node: Node) types.Nodes {
    return @as(types.Nodes, 1) << @intCast(node);
}

pub fn kindOf(kind: types.MsgKind) core_file.RequestKind {
    return switch (kind) {
        .get_shared => .get_shared,
        .get_exclusive => .get_exclusive,
        .upgrade => .upgrade,
        else => unreachable,
    };
}

pub fn request(self: anytype, page: Page, r: Request, out: *Actions) void {
    if (self.txns.find(page)) |txn| {
        self.requests.insert(&txn.queue, r);
        return hold.inherit(self, txn, r, out);
    }
    if (isVain(self, page, r)) {
        return discard.settle(self, page, r.node, types.flag_refused, out);
    }
    const txn = self.txns.put(page, .{ .request = r });
    // The page is strict again already; word of it comes on another lane (more than two nodes).
    if (self.directory[page].state == .replicated) {
        txn.phase = .parked;
        return self.requests.insert(&txn.queue, r);
    }
    begin(self, page, txn, out);
}

/// A replicated table is not discarded, and no discard waits until it is none.
fn isVain(self: anytype, page: Page, r: Request) bool {
    return r.kind == .discard and self.directory[page].state == .replicated;
}

/// Forgets what `node` asked for: it has been given a copy by other means since.
pub fn forgetRequest(self: anytype, txn: *Txn, node: Node) void {
    _ = self.requests.takeIf(&txn.queue, node, isAccessOf);
}

fn isAccessOf(node: Node, r: Request) bool {
    return r.node == node and r.kind.isAccess();
}

/// The home has the page alone, without having been granted it: what it asked for is settled.
pub fn settleOwn(self: anytype, page: Page) void {
    if (self.pending.find(page) == null) return;
    self.pending.remove(page);
    if (self.txns.find(page)) |txn| forgetRequest(self, txn, self.config.node);
    hold.woken(self, page);
}

/// The requester has what it asked for: the next request's turn.
pub fn close(self: anytype, page: Page, out: *Actions) void {
    const txn = self.txns.find(page).?;
    if (txn.request.kind == .replicate and txn.phase == .strict) {
        return replica.share(self, page, txn, out);
    }
    next(self, page, txn, out);
}

pub fn next(self: anytype, page: Page, txn: *Txn, out: *Actions) void {
    txn.phase = .strict;
    while (txn.queue.count > 0) {
        const r = self.requests.takeFirst(&txn.queue);
        if (self.directory[page].state == .replicated) {
            if (r.kind == .replicate) {
                self.replicas.active -= 1;
                continue;
            }
            if (isVain(self, page, r)) {
                discard.settle(self, page, r.node, types.flag_refused, out);
                continue;
            }
            txn.phase = .parked;
            return self.requests.insert(&txn.queue, r);
        }
        txn.request = r;
        return begin(self, page, txn, out);
    }
    self.txns.remove(page);
}

pub fn begin(self: anytype, page: Page, txn: *Txn, out: *Actions) void {
    const r = txn.request;
    txn.age = r.age;
    txn.elder = r.node;
    txn.asked = 0;
    const is_stored = self.directory[page].state == .stored;
    if (is_stored and r.kind != .discard) return store.load(self, page, txn, out);
    switch (r.kind) {
        .get_shared => read(self, page, r, out),
        .get_exclusive => write(self, page, r, out),
        .upgrade => upgrade(self, page, r, out),
        .replicate => replica.fetch(self, page, txn, out),
        .discard => discard.begin(self, page, txn, out),
        // Of a stored page only, which store.load has seen to.
        .repair => unreachable,
    }
    if (self.has(.owner_change) and r.node != self.config.node) {
        if (self.txns.find(page)) |t| if (t.queue.count > 0) next(self, page, t, out);
    }
}

fn read(self: anytype, page: Page, r: Request, out: *Actions) void {
    const entry = &self.directory[page];
    switch (entry.state) {
        .untouched => firstTouch(self, page, r, out),
        .shared => {
            entry.sharers |= bit(r.node);
            if (@popCount(entry.sharers) > 2) entry.migratory = 0;
            const source = sourceOf(self, entry.*, r.node);
            forward(self, .forward_shared, source, page, r, 0, out);
        },
        .exclusive => {
            const owner = entry.owner;
            if (migrates(self, entry)) {
                self.stats.migratory_grants += 1;
                entry.owner = r.node;
                entry.version +%= 1;
                return forward(self, .forward_exclusive, owner, page, r, 0, out);
            }
            entry.state = .shared;
            entry.sharers = bit(owner) | bit(r.node);
            forward(self, .forward_shared, owner, page, r, 0, out);
        },
        .replicated, .stored => unreachable,
    }
}

fn migrates(self: anytype, entry: *Entry) bool {
    if (entry.migratory < migratory_min) return false;
    // Now and then one read is granted shared, to see whether the guess still holds.
    if (entry.unchecked == self.config.migratory_unchecked_max) {
        entry.unchecked = 0;
        return false;
    }
    entry.unchecked += 1;
    return true;
}

/// Nobody ever had the page: it is zeroes, and the first toucher most likely writes it.
fn firstTouch(self: anytype, page: Page, r: Request, out: *Actions) void {
    own(self, &self.directory[page], r.node);
    tell(self, page, r, types.flag_exclusive | types.flag_zero, 0, out);
}

/// A grant that carries no page.
fn tell(self: anytype, page: Page, r: Request, flags: u8, acks: u8, out: *Actions) void {
    const msg: types.Msg = .{
        .kind = @backingInt(types.MsgKind.grant),
        .flags = flags,
        .acks = acks,
        .requester = r.node,
        .page = page,
        .version = self.directory[page].version,
    };
    if (r.node == self.config.node) return requester.grant(self, msg, out);
    out.send(r.node, .grant, msg);
}

/// The home itself if it can (no forward), else the last writer, else any sharer.
fn sourceOf(self: anytype, entry: Entry, not: Node) Node {
    const others = entry.sharers & ~bit(not);
    if (others & bit(self.config.node) != 0) return self.config.node;
    if (others & bit(entry.owner) != 0) return entry.owner;
    // A peer that asks for what it alone has gets its own request back; nobody else is harmed.
    if (others == 0) return not;
    return @intCast(@ctz(others));
}

fn forward(
    self: anytype,
    kind: types.MsgKind,
    to: Node,
    page: Page,
    r: Request,
    acks: u8,
    out: *Actions,
) void {
    const version = self.directory[page].version;
    if (to == self.config.node) {
        _ = requester.revoke(self, .{
            .page = page,
            .kind = kind,
            .requester = r.node,
            .acks = acks,
            .version = version,
            .age = r.age,
        }, out);
        return;
    }
    self.txns.find(page).?.asked |= bit(to);
    out.send(to, kind, .{
        .kind = 0,
        .acks = acks,
        .requester = r.node,
        .page = page,
        .version = version,
        .age = r.age,
    });
}

fn write(self: anytype, page: Page, r: Request, out: *Actions) void {
    const entry = &self.directory[page];
    switch (entry.state) {
        .untouched => firstTouch(self, page, r, out),
        .shared => {
            const source = sourceOf(self, entry.*, r.node);
            const others = entry.sharers & ~bit(r.node) & ~bit(source);
            entry.migratory = 0;
            own(self, entry, r.node);
            const acks = invalidate(self, others, page, r, out);
            forward(self, .forward_exclusive, source, page, r, acks, out);
        },
        .exclusive => {
            const owner = entry.owner;
            own(self, entry, r.node);
            forward(self, .forward_exclusive, owner, page, r, 0, out);
        },
        .replicated, .stored => unreachable,
    }
}

pub fn own(self: anytype, entry: *Entry, node: Node) void {
    const keeps_version = self.has(.version_kept) and entry.state != .untouched;
    entry.state = .exclusive;
    entry.owner = node;
    entry.sharers = 0;
    if (!keeps_version) entry.version +%= 1;
}

/// The requester keeps its bytes if it still is a sharer; else it needs the page again.
fn upgrade(self: anytype, page: Page, r: Request, out: *Actions) void {
    const entry = &self.directory[page];
    const listed = entry.state == .shared and entry.sharers & bit(r.node) != 0;
    if (!listed) self.stats.upgrades_late += 1;
    if (!listed and !self.has(.stale_upgrade)) return write(self, page, r, out);
    const others = if (listed) entry.sharers & ~bit(r.node) else 0;
    // Read by two, then written by the one that did not write last: it moves on.
    if (entry.owner != r.node and @popCount(others) == 1) {
        entry.migratory +|= 1;
    } else entry.migratory = 0;
    own(self, entry, r.node);
    const acks = invalidate(self, others, page, r, out);
    tell(self, page, r, types.flag_exclusive, acks, out);
}

/// Number of acks the requester has to await. The home's own copy needs none if it goes at once.
fn invalidate(self: anytype, nodes: types.Nodes, page: Page, r: Request, out: *Actions) u8 {
    const me = self.config.node;
    var acks: u8 = 0;
    var rest = nodes;
    while (rest != 0) : (rest &= rest - 1) {
        const node: Node = @intCast(@ctz(rest));
        if (node == me) {
            const gone = requester.revoke(self, .{
                .page = page,
                .kind = .invalidate,
                .requester = types.node_none,
                .for_requester = r.node,
                .acks = 0,
                .version = self.directory[page].version,
                .age = r.age,
            }, out);
            if (!gone) acks += 1;
            continue;
        }
        acks += 1;
        forward(self, .invalidate, node, page, r, 0, out);
    }
    return acks;
}

/// The home takes the page for itself (first part of a replicate).
pub fn take(self: anytype, page: Page, r: Request, out: *Actions) void {
    const entry = self.directory[page];
    const listed = entry.state == .shared and entry.sharers & bit(r.node) != 0;
    if (listed) upgrade(self, page, r, out) else write(self, page, r, out);
}
