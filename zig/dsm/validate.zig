//! What a peer may say. Whatever passes here, step() takes without a crash: a peer that lies
//! otherwise can only spoil memory that it could spoil anyway. Refusal ends the connection.

const std = @import("std");
const types = @import("types.zig");
const home = @import("home.zig");
const hold = @import("hold.zig");
const evict = @import("evict.zig");
const put = @import("put.zig");
const store = @import("store.zig");
const replica = @import("replica.zig");
const repair = @import("repair.zig");
const Page = types.Page;
const Node = types.Node;

/// Expelled: a message of a memory node that is lost, still under way when it was. To be dropped.
pub const Error = error{ ProtocolViolated, Expelled };

const entries_per_page = 512;

pub fn validate(self: anytype, from: Node, msg: types.Msg) Error!void {
    const kind = kindOf(msg.kind) orelse return error.ProtocolViolated;
    const known = types.flag_data | types.flag_exclusive | types.flag_zero | types.flag_refused;
    try need(msg.flags & ~@as(u8, known) == 0);
    try need(from < self.config.node_count and from != self.config.node);
    const is_lost = self.store.lost & home.bit(from) != 0;
    if (is_lost and !self.has(.stale_epoch)) return error.Expelled;
    try need(msg.page < self.config.page_count);
    try need(msg.acks < self.config.node_count);
    try need(!msg.hasData() or mayCarry(kind));
    const is_of_memory = kind == .frame_ack or kind == .frame_data;
    try need(isCompute(self, from) != is_of_memory);
    const at_home = self.isHome(msg.page);
    const from_home = self.homeOf(msg.page) == from;
    switch (kind) {
        .get_shared, .get_exclusive, .upgrade => try need(at_home and canAsk(self, from, msg.page)),
        .forward_shared, .forward_exclusive, .invalidate => {
            try need(from_home and isPeer(self, msg.requester));
            try need(self.local[msg.page] != .invalid or put.isOpen(self, msg.page));
            // Only a discard takes a writable copy without handing it on.
            const is_discard = msg.requester == from;
            try need(kind != .invalidate or is_discard or self.local[msg.page] != .exclusive);
            try need(!hold.isDeferred(self, msg.page));
        },
        .hurry => try need(from_home and isPeer(self, msg.requester)),
        .grant => {
            try need(!at_home or isOwnTurn(self, msg.page));
            try grant(self, msg);
        },
        .ack => {
            if (at_home and isDiscarding(self, from, msg.page)) return;
            try need(!at_home or isOwnTurn(self, msg.page));
            const p = self.pending.find(msg.page) orelse return error.ProtocolViolated;
            try need(!p.waits);
            const limit = if (p.granted) p.acks_needed else self.config.node_count - 1;
            try need(p.acks < limit);
        },
        .done => {
            const txn = self.txns.find(msg.page) orelse return error.ProtocolViolated;
            try need(at_home and txn.phase == .strict and txn.request.node == from);
        },
        .replicate => try need(at_home and self.config.replicate),
        .replica, .replica_ack, .diff, .diff_ack, .unreplicate => try tables(self, kind, from, msg),
        .put => try need(at_home and canPut(self, from, msg)),
        .put_ack => try need(put.isOpen(self, msg.page) and from_home),
        .put_more => {
            try need(put.isOpen(self, msg.page) and from_home);
            try need(!evict.slotOf(self, msg.page).?.sent);
        },
        .frame_ack => try need(at_home and msg.flags == 0 and self.store.lends(from)),
        .frame_data => {
            try need(at_home and msg.flags == types.flag_data);
            try need(store.isAwaited(self, from, msg));
        },
        .frame_put, .frame_get, .frame_free => return error.ProtocolViolated,
        .discard => try need(at_home and msg.flags == 0 and canDiscard(self, from, msg.page)),
        .discarded => {
            try need(from_home and msg.flags & ~types.flag_refused == 0);
            try need(self.discards.isAsked(msg.page));
        },
    }
}

/// Of replicated page tables.
fn tables(self: anytype, kind: types.MsgKind, from: Node, msg: types.Msg) Error!void {
    const at_home = self.isHome(msg.page);
    switch (kind) {
        .replica => {
            try need(self.homeOf(msg.page) == from and self.config.replicate);
            try need(msg.old == types.page_none or msg.old < self.config.page_count);
            try need(isOrigin(self, msg));
            if (msg.hasData()) try need(self.local[msg.page] == .invalid);
        },
        .replica_ack => {
            const txn = self.txns.find(msg.page) orelse return error.ProtocolViolated;
            try need(at_home and (txn.phase == .share or txn.phase == .go));
            try need(txn.missing & home.bit(from) != 0);
            try need(isOrigin(self, msg));
        },
        .diff => {
            try need(self.config.replicate and msg.index < entries_per_page);
            try need(isChild(self, @truncate(msg.age)) and isChild(self, @intCast(msg.age >> 32)));
        },
        .diff_ack => {
            const ahead = self.replicas.sequence -% msg.version;
            try need(self.compute_count > 2 and ahead < 1 << 31);
        },
        .unreplicate => {
            const access = self.local[msg.page];
            try need(self.config.replicate);
            try need(access == .replicated or !at_home);
            try need(access != .exclusive);
        },
        else => unreachable,
    }
}

fn grant(self: anytype, msg: types.Msg) Error!void {
    const p = self.pending.find(msg.page) orelse return error.ProtocolViolated;
    try need(!p.granted and !p.waits and p.acks <= msg.acks);
    const zero = msg.flags & types.flag_zero != 0;
    try need(!(zero and msg.hasData()));
    const present = self.local[msg.page] != .invalid;
    // Content comes exactly where there is none.
    try need(present != (zero or msg.hasData()));
    try need(!present or self.local[msg.page] == .shared);
}

fn kindOf(number: u8) ?types.MsgKind {
    inline for (@typeInfo(types.MsgKind).@"enum".field_names) |name| {
        const kind = @field(types.MsgKind, name);
        if (@backingInt(kind) == number) return kind;
    }
    return null;
}

fn need(ok: bool) Error!void {
    if (!ok) return error.ProtocolViolated;
}

/// A change of an entry: whose, and its number.
fn isOrigin(self: anytype, msg: types.Msg) bool {
    if (msg.new > std.math.maxInt(u32)) return false;
    return msg.requester == types.node_none or msg.requester < self.config.node_count;
}

/// At the home: the open transaction is this node's own, so somebody owes it an answer.
fn isOwnTurn(self: anytype, page: Page) bool {
    const txn = self.txns.find(page) orelse return false;
    return txn.phase == .strict and txn.request.node == self.config.node;
}

fn mayCarry(kind: types.MsgKind) bool {
    return switch (kind) {
        .grant, .replica, .put, .frame_data => true,
        else => false,
    };
}

fn isCompute(self: anytype, node: Node) bool {
    return node < self.config.node_count and self.compute & home.bit(node) != 0;
}

fn isPeer(self: anytype, node: Node) bool {
    return isCompute(self, node) and node != self.config.node;
}

fn isChild(self: anytype, page: Page) bool {
    return page == types.page_none or page < self.config.page_count;
}

/// Whose request is open has the page still to come; a writer's bytes must come with the put.
fn canPut(self: anytype, from: Node, msg: types.Msg) bool {
    if (msg.flags & ~types.flag_data != 0) return false;
    if (self.txns.find(msg.page)) |txn| {
        const is_open = txn.phase != .parked and txn.request.kind.isAccess();
        if (is_open and txn.request.node == from) return false;
    }
    const entry = self.directory[msg.page];
    return msg.hasData() or entry.state != .exclusive or entry.owner != from;
}

/// One request of a node for a page at a time, and a record for it.
fn canAsk(self: anytype, from: Node, page: Page) bool {
    const txn = self.txns.find(page) orelse {
        const entry = self.directory[page];
        return hasRecord(self) and !(entry.state == .exclusive and entry.owner == from);
    };
    const is_open = txn.phase != .parked and txn.request.kind.isAccess();
    if (is_open and txn.request.node == from) return false;
    var waiting = self.requests.iterate(txn.queue);
    while (waiting.next()) |q| if (q.node == from and q.kind.isAccess()) return false;
    return true;
}

fn isDiscarding(self: anytype, from: Node, page: Page) bool {
    const txn = self.txns.find(page) orelse return false;
    return txn.phase == .discard and txn.missing & home.bit(from) != 0;
}

/// One discard of a node for a page at a time, and a bounded number of them.
fn canDiscard(self: anytype, from: Node, page: Page) bool {
    if (self.discards.open[from] >= self.config.discards_max) return false;
    const txn = self.txns.find(page) orelse return hasRecord(self);
    const is_open = txn.phase != .parked and txn.request.kind == .discard;
    if (is_open and txn.request.node == from) return false;
    var waiting = self.requests.iterate(txn.queue);
    while (waiting.next()) |q| if (q.node == from and q.kind == .discard) return false;
    return true;
}

/// Peers may not use up the records that this node's own requests may need.
fn hasRecord(self: anytype) bool {
    const own = self.pending.items.len - self.pending.free_count + self.replicas.active +
        self.discards.count + self.store.repair.active;
    const own_max = self.pending.items.len + replica.window + self.config.discards_max +
        repair.window;
    return self.txns.free_count + own > own_max;
}
