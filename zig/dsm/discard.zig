//! Discard: nobody needs the page's content any more (a balloon, a reset), so every copy goes
//! without a byte being moved, and the page reads as zeroes. It is a request like another, in the
//! page's queue at its home; the home itself awaits the acknowledgements. Replicated page tables
//! are refused: they are in use.

const std = @import("std");
const types = @import("types.zig");
const core_file = @import("core.zig");
const home = @import("home.zig");
const hold = @import("hold.zig");
const requester = @import("requester.zig");
const store = @import("store.zig");
const Actions = core_file.Actions;
const Request = core_file.Request;
const Txn = core_file.Txn;
const Page = types.Page;
const Node = types.Node;

pub const Discards = struct {
    /// What this node has asked for and not heard of.
    asked: []Page,
    count: u8 = 0,
    /// At the home: how many each node has open here.
    open: [types.nodes_max]u8 = @splat(0),

    pub fn init(a: std.mem.Allocator, config: core_file.Config) !Discards {
        return .{ .asked = try a.alloc(Page, config.discards_max) };
    }

    pub fn deinit(self: *Discards, a: std.mem.Allocator) void {
        a.free(self.asked);
    }

    pub fn isAsked(self: *const Discards, page: Page) bool {
        return std.mem.findScalar(Page, self.asked[0..self.count], page) != null;
    }
};

pub fn canDiscard(self: anytype, page: Page) bool {
    return !mustWait(self, page) and self.tables.find(page) == null;
}

/// Whether a discard that is under way has to be done first.
pub fn mustWait(self: anytype, page: Page) bool {
    const d = &self.discards;
    return d.count == d.asked.len or d.isAsked(page);
}

pub fn ask(self: anytype, page: Page, out: *Actions) void {
    if (!canDiscard(self, page)) {
        self.stats.discards_refused += 1;
        return;
    }
    self.discards.asked[self.discards.count] = page;
    self.discards.count += 1;
    const age = hold.youngest(self);
    if (self.isHome(page)) return request(self, page, self.config.node, age, out);
    out.send(self.homeOf(page), .discard, .{
        .kind = 0,
        .requester = self.config.node,
        .page = page,
        .age = age,
    });
}

/// At the home: of this node or another one.
pub fn request(self: anytype, page: Page, from: Node, age: u64, out: *Actions) void {
    self.discards.open[from] += 1;
    home.request(self, page, .{ .node = from, .kind = .discard, .version = 0, .age = age }, out);
}

/// Its turn at the home.
pub fn begin(self: anytype, page: Page, txn: *Txn, out: *Actions) void {
    if (isTable(self, page)) {
        settle(self, page, txn.request.node, types.flag_refused, out);
        return home.next(self, page, txn, out);
    }
    const entry = &self.directory[page];
    const me = self.config.node;
    txn.phase = .discard;
    txn.missing = switch (entry.state) {
        .untouched, .replicated => 0,
        .stored => stored: {
            store.dismiss(self, page, out);
            break :stored 0;
        },
        .shared => entry.sharers,
        .exclusive => home.bit(entry.owner),
    };
    if (txn.missing & home.bit(me) != 0) {
        txn.missing &= ~home.bit(me);
        requester.answer(self, revokeOf(txn.request, page), out);
    }
    var rest = txn.missing;
    while (rest != 0) : (rest &= rest - 1) {
        out.send(@intCast(@ctz(rest)), .invalidate, .{
            .kind = 0,
            .requester = me,
            .page = page,
            .age = txn.request.age,
        });
    }
    if (txn.missing == 0 or self.has(.discard_early)) finish(self, page, txn, out);
}

pub fn isTable(self: anytype, page: Page) bool {
    return self.directory[page].state == .replicated or self.tables.find(page) != null;
}

/// The home's own copy: at once, and nobody waits for word.
fn revokeOf(r: Request, page: Page) requester.Revoke {
    return .{ .page = page, .kind = .invalidate, .requester = types.node_none, .age = r.age };
}

/// At the home: a discard awaits acknowledgements.
pub fn isOpen(self: anytype, page: Page) bool {
    if (!self.isHome(page)) return false;
    const txn = self.txns.find(page) orelse return false;
    return txn.phase == .discard;
}

/// A copy is gone.
pub fn acked(self: anytype, from: Node, page: Page, out: *Actions) void {
    const txn = self.txns.find(page).?;
    txn.missing &= ~home.bit(from);
    if (txn.missing == 0) finish(self, page, txn, out);
}

fn finish(self: anytype, page: Page, txn: *Txn, out: *Actions) void {
    self.stats.discards += 1;
    const entry = &self.directory[page];
    entry.* = .{ .version = entry.version };
    out.add(.{ .emptied = page });
    settle(self, page, txn.request.node, 0, out);
    home.next(self, page, txn, out);
}

/// Tells the asker.
pub fn settle(self: anytype, page: Page, to: Node, flags: u8, out: *Actions) void {
    self.discards.open[to] -= 1;
    if (flags & types.flag_refused != 0) self.stats.discards_refused += 1;
    const msg: types.Msg = .{
        .kind = @backingInt(types.MsgKind.discarded),
        .flags = flags,
        .requester = to,
        .page = page,
    };
    if (to == self.config.node) return told(self, msg, out);
    out.send(to, .discarded, msg);
}

/// discarded: what this node asked for is done, or cannot be.
pub fn told(self: anytype, msg: types.Msg, out: *Actions) void {
    const d = &self.discards;
    const at = std.mem.findScalar(Page, d.asked[0..d.count], msg.page).?;
    d.count -= 1;
    d.asked[at] = d.asked[d.count];
    const refused = msg.flags & types.flag_refused != 0;
    out.add(.{ .discarded = .{ .page = msg.page, .refused = refused } });
}
