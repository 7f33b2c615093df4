//! A node's half of the protocol: faults become requests, grants and acks become access, and
//! revokes take copies away. Write access = data and grant and every ack. Giving a page away is
//! always protect, copy (in the send), drop.

const std = @import("std");
const types = @import("types.zig");
const core_file = @import("core.zig");
const home = @import("home.zig");
const hold = @import("hold.zig");
const put = @import("put.zig");
const store = @import("store.zig");
const Actions = core_file.Actions;
const Page = types.Page;
const Node = types.Node;

pub fn fault(self: anytype, page: Page, is_write: bool, thread: u16, out: *Actions) void {
    if (is_write) self.stats.faults_write += 1 else self.stats.faults_read += 1;
    hold.begin(self, thread, page, out);
    const access = self.local[page];
    if (access == .exclusive or access == .replicated) {
        // A write-protect fault that raced with the page's own install: nothing is missing.
        out.add(.{ .unprotect = page });
        return hold.woken(self, page);
    }
    if (access == .shared and !is_write) {
        out.add(.{ .wake = page });
        return hold.woken(self, page);
    }
    if (self.pending.find(page) != null) return;
    // What it has is not enough: those who wait for it come first, since this node's own request
    // would wait behind theirs.
    hold.give(self, page, out);
    if (self.isHome(page) and atHome(self, page, out)) {
        self.stats.local += 1;
        return hold.woken(self, page);
    }
    if (self.pending.full()) {
        // The thread faults again until a record is free.
        self.stats.requests_full += 1;
        out.add(.{ .wake = page });
        return hold.woken(self, page);
    }
    self.stats.remote += 1;
    ask(self, page, is_write, thread, out);
}

/// True if the home can serve its own fault without a request: nobody else has the page.
fn atHome(self: anytype, page: Page, out: *Actions) bool {
    const entry = &self.directory[page];
    const is_alone = entry.state == .untouched or entry.state == .stored;
    if (!is_alone or self.txns.find(page) != null) return false;
    if (entry.state == .stored) return store.takeBack(self, page, out);
    home.own(self, entry, self.config.node);
    self.versions[page] = entry.version;
    self.local[page] = .exclusive;
    out.add(.{ .install = .{
        .page = page,
        .access = .exclusive,
        .source = .zero,
        .wake = true,
    } });
    return true;
}

fn ask(self: anytype, page: Page, is_write: bool, thread: u16, out: *Actions) void {
    const kind: core_file.RequestKind = if (self.local[page] == .shared)
        .upgrade
    else if (is_write) .get_exclusive else .get_shared;
    const age = hold.ageOf(self, thread);
    const p = self.pending.put(page, .{ .kind = kind });
    if (put.isOpen(self, page)) {
        p.waits = true;
        p.age = age;
        return;
    }
    send(self, page, kind, age, out);
}

/// What was put is settled: now the home can be asked for what is still needed.
pub fn askNow(self: anytype, page: Page, out: *Actions) void {
    const p = self.pending.find(page) orelse return;
    const access = self.local[page];
    if (access != .invalid and (access != .shared or p.kind == .get_shared)) {
        // A replica came meanwhile.
        self.pending.remove(page);
        out.add(.{ .wake = page });
        return hold.woken(self, page);
    }
    if (access == .shared) {
        p.kind = .upgrade;
    } else if (p.kind == .upgrade) p.kind = .get_exclusive;
    const age = p.age;
    p.waits = false;
    p.age = 0;
    send(self, page, p.kind, age, out);
}

fn send(
    self: anytype,
    page: Page,
    kind: core_file.RequestKind,
    age: u64,
    out: *Actions,
) void {
    if (kind == .upgrade) self.stats.upgrades += 1;
    const me = self.config.node;
    const version = self.versions[page];
    if (self.isHome(page)) {
        return home.request(self, page, .{
            .node = me,
            .kind = kind,
            .version = version,
            .age = age,
        }, out);
    }
    const message_kind: types.MsgKind = switch (kind) {
        .get_shared => .get_shared,
        .get_exclusive => .get_exclusive,
        .upgrade => .upgrade,
        .replicate, .discard, .repair => unreachable,
    };
    out.send(self.homeOf(page), message_kind, .{
        .kind = 0,
        .requester = me,
        .page = page,
        .version = version,
        .age = age,
    });
}

pub fn grant(self: anytype, msg: types.Msg, out: *Actions) void {
    const p = self.pending.find(msg.page).?;
    std.debug.assert(!p.granted);
    p.granted = true;
    p.exclusive = msg.flags & types.flag_exclusive != 0;
    p.zero = msg.flags & types.flag_zero != 0;
    p.version = msg.version;
    p.acks_needed = msg.acks;
    if (!msg.hasData() and !p.zero) {
        p.installed = true;
    } else if (msg.hasData() and !ready(self, p)) {
        // The bytes came with this message: map them read-only until the acks are here. Every
        // other copy that still exists has the same bytes.
        p.installed = true;
        self.local[msg.page] = .shared;
        out.add(.{ .install = .{
            .page = msg.page,
            .access = .shared,
            .source = .message,
            .wake = false,
        } });
    }
    complete(self, msg.page, out);
}

pub fn ack(self: anytype, page: Page, out: *Actions) void {
    const p = self.pending.find(page).?;
    p.acks += if (self.has(.ack_twice)) 2 else 1;
    complete(self, page, out);
}

fn ready(self: anytype, p: *const core_file.Pending) bool {
    if (!p.granted) return false;
    if (self.has(.early_grant)) return true;
    if (self.has(.ack_twice)) return p.acks >= p.acks_needed;
    return p.acks == p.acks_needed;
}

fn complete(self: anytype, page: Page, out: *Actions) void {
    const p = self.pending.find(page) orelse return;
    if (!ready(self, p)) return;
    const access: types.Access = if (p.exclusive) .exclusive else .shared;
    if (!p.installed) {
        const source: types.Source = if (p.zero) .zero else .message;
        out.add(.{ .install = .{
            .page = page,
            .access = access,
            .source = source,
            .wake = true,
        } });
    } else if (p.exclusive) {
        out.add(.{ .unprotect = page });
    } else out.add(.{ .wake = page });
    self.local[page] = access;
    self.versions[page] = p.version;
    self.pending.remove(page);
    hold.woken(self, page);
    if (self.isHome(page)) return home.close(self, page, out);
    out.send(self.homeOf(page), .done, .{
        .kind = 0,
        .requester = self.config.node,
        .page = page,
        .version = self.versions[page],
    });
}

pub const Revoke = struct {
    page: Page = types.page_none,
    kind: types.MsgKind = .invalidate,
    /// Who gets the page or the ack; none: nobody waits for word.
    requester: Node = 0,
    /// The home's own copy, taken for this requester: gets an ack only if it had to wait.
    for_requester: Node = types.node_none,
    acks: u8 = 0,
    version: u32 = 0,
    /// Of the oldest chain that waits for the answer, and that chain's node.
    age: u64 = 0,
    elder: Node = 0,
    /// When it is answered at the latest.
    until: u64 = 0,
};

/// True if done at once; else it waits for a chain of faults here.
pub fn revoke(self: anytype, r: Revoke, out: *Actions) bool {
    if (put.isOpen(self, r.page)) {
        put.answer(self, r, out);
        return true;
    }
    const asker = if (r.requester == types.node_none) r.for_requester else r.requester;
    // While this node itself waits for more access to the page, it has no use for what it has; and
    // another reader takes nothing away.
    const takes = r.kind != .forward_shared or self.local[r.page] != .shared;
    const keeps = takes and self.pending.find(r.page) == null;
    if (keeps and hold.mustDefer(self, r.page, r.age, asker)) {
        var later = r;
        later.requester = asker;
        later.elder = asker;
        hold.postpone(self, later);
        return false;
    }
    answer(self, r, out);
    return true;
}

pub fn answer(self: anytype, r: Revoke, out: *Actions) void {
    const page = r.page;
    var access = self.local[page];
    if (access == .replicated) {
        // The home knows before this node that the table is none any more.
        out.add(.{ .protect = page });
        out.add(.{ .forget_replica = page });
        self.replicas.live -= 1;
        access = .shared;
    } else if (access == .exclusive) out.add(.{ .protect = page });
    if (r.kind == .invalidate) {
        self.stats.invalidations += 1;
        discard(self, page, out);
        if (r.requester != types.node_none) sendAck(r, out);
        return;
    }
    out.add(.{ .send = .{ .to = r.requester, .msg = grantOf(r) } });
    if (r.kind == .forward_exclusive) return discard(self, page, out);
    self.local[page] = .shared;
    self.versions[page] = r.version;
}

pub fn sendAck(r: Revoke, out: *Actions) void {
    out.send(r.requester, .ack, .{ .kind = 0, .requester = r.requester, .page = r.page });
}

/// The grant, with the page, that a forward asks for.
pub fn grantOf(r: Revoke) types.Msg {
    const exclusive: u8 = if (r.kind == .forward_exclusive) types.flag_exclusive else 0;
    return .{
        .kind = @backingInt(types.MsgKind.grant),
        .flags = types.flag_data | exclusive,
        .acks = r.acks,
        .requester = r.requester,
        .page = r.page,
        .version = r.version,
    };
}

fn discard(self: anytype, page: Page, out: *Actions) void {
    out.add(.{ .drop = page });
    self.local[page] = .invalid;
}
