//! Put: a node gives a foreign page back to its home. Until the home acknowledges, the node keeps
//! the bytes in a slot and answers from there whatever the home still sends it for the old copy:
//! the lane from the home is in order, so that all comes before the acknowledgement. A fault on the
//! page waits for it, too; then the home is asked as for any page.
//!
//! The home answers every put at once. It takes the bytes if nobody else has the page. If another
//! request is under way, or others have copies, it only strikes the sender off the list: whoever is
//! forwarded to the sender gets the bytes from the slot, because the forward left first.

const types = @import("types.zig");
const core_file = @import("core.zig");
const evict = @import("evict.zig");
const home = @import("home.zig");
const requester = @import("requester.zig");
const store = @import("store.zig");
const Actions = core_file.Actions;
const Page = types.Page;
const Node = types.Node;

pub fn give(self: anytype, page: Page, out: *Actions) void {
    const is_owner = self.local[page] == .exclusive;
    if (is_owner) out.add(.{ .protect = page });
    _ = self.slots.put(page, .{ .use = .put, .sent = is_owner });
    out.add(.{ .save = .{ .page = page, .slot = evict.numberOf(self, page) } });
    out.add(.{ .drop = page });
    self.local[page] = .invalid;
    send(self, page, is_owner, out);
}

fn send(self: anytype, page: Page, has_data: bool, out: *Actions) void {
    self.stats.puts_sent += 1;
    out.add(.{ .send = .{
        .to = self.homeOf(page),
        .msg = .{
            .kind = @backingInt(types.MsgKind.put),
            .flags = if (has_data) types.flag_data else 0,
            .requester = self.config.node,
            .page = page,
        },
        .slot = if (has_data) evict.numberOf(self, page) else null,
    } });
}

/// This node has put the page, and the home has not answered yet.
pub fn isOpen(self: anytype, page: Page) bool {
    const slot = evict.slotOf(self, page) orelse return false;
    return slot.use == .put;
}

/// The old copy is asked for, or taken away.
pub fn answer(self: anytype, r: requester.Revoke, out: *Actions) void {
    if (r.kind == .invalidate) {
        self.stats.invalidations += 1;
        return requester.sendAck(r, out);
    }
    self.stats.forwards_from_slot += 1;
    const from_page = self.has(.put_from_page);
    const slot = if (from_page) null else evict.numberOf(self, r.page);
    out.add(.{ .send = .{ .to = r.requester, .msg = requester.grantOf(r), .slot = slot } });
}

/// put_more: this was the only copy.
pub fn more(self: anytype, page: Page, out: *Actions) void {
    evict.slotOf(self, page).?.sent = true;
    send(self, page, true, out);
}

/// put_ack.
pub fn settled(self: anytype, page: Page, out: *Actions) void {
    store.release(self, page);
    requester.askNow(self, page, out);
}

/// A put arrives at the page's home.
pub fn arrived(self: anytype, from: Node, msg: types.Msg, out: *Actions) void {
    const page = msg.page;
    const entry = &self.directory[page];
    const is_busy = isBusy(self, page);
    if (!is_busy and isSoleCopy(entry.*, from)) {
        if (!msg.hasData()) {
            self.stats.puts_more += 1;
            return reply(.put_more, from, page, out);
        }
        take(self, page, out);
    } else {
        const listed = entry.state == .shared and entry.sharers & home.bit(from) != 0;
        if (is_busy or !listed) self.stats.puts_absorbed += 1;
        // A table that goes out of use becomes shared again by the same list.
        const has_sharers = entry.state == .shared or entry.state == .replicated;
        if (has_sharers) entry.sharers &= ~home.bit(from);
    }
    reply(.put_ack, from, page, out);
}

fn reply(kind: types.MsgKind, to: Node, page: Page, out: *Actions) void {
    out.send(to, kind, .{ .kind = 0, .requester = to, .page = page });
}

/// Somebody is being given the page. (A replicate that waits for the last nodes' word, phase go, is
/// not: the table may have gone out of use meanwhile, and the page have an owner again.)
fn isBusy(self: anytype, page: Page) bool {
    const txn = self.txns.find(page) orelse return false;
    return txn.phase != .go;
}

fn isSoleCopy(entry: core_file.Entry, node: Node) bool {
    return switch (entry.state) {
        .exclusive => entry.owner == node,
        .shared => entry.sharers == home.bit(node),
        .untouched, .replicated, .stored => false,
    };
}

/// The bytes that came are the page from now on, and the home has them alone.
fn take(self: anytype, page: Page, out: *Actions) void {
    const entry = &self.directory[page];
    home.own(self, entry, self.config.node);
    self.local[page] = .exclusive;
    self.versions[page] = entry.version;
    home.settleOwn(self, page);
    if (self.has(.lost_put)) return;
    out.add(.{ .install = .{
        .page = page,
        .access = .exclusive,
        .source = .message,
        .wake = true,
    } });
}
