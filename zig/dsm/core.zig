//! The coherence protocol of one node, as a pure step function: an event in, actions out. No I/O,
//! no clock, no threads, no allocation on a step. Home-based directory, one writer or many readers.
//! Invariants:
//! - one transaction per page at a time at its home, closed by the requester's `done`; later
//! requests queue there, so no message of one transaction meets another's;
//! - write permission = the data and the grant and every acknowledgement;
//! - a give-away is always protect, send (copies), drop, in this order;
//! - a node has at most one request in flight per page.
//! Replicated pages (guest kernel page tables, two nodes): see replicate.zig.

const std = @import("std");
const types = @import("types.zig");
const replicate = @import("replicate.zig");
const Msg = types.Msg;
const MsgKind = types.MsgKind;
const Node = types.Node;
const Page = types.Page;
const Action = types.Action;
const Access = types.Access;

/// Pages from `first_page` on belong to `node`, up to the next range.
pub const HomeRange = struct { first_page: u32, node: u8 };

/// Defects that tests plant to show that the explorer finds them.
pub const Mutation = enum {
    none,
    /// Write permission before all acknowledgements.
    early_grant,
    /// One acknowledgement counted as two.
    ack_counted_twice,
    /// An upgrade is believed although the requester's copy was invalidated meanwhile.
    stale_upgrade,
    /// The copy is sent before the page is write-protected.
    copy_before_protect,
    /// A sharer keeps its copy when it acknowledges an invalidation.
    invalidation_ignored,
    /// The home starts the next transaction without waiting for `done`.
    done_skipped,
};

pub const Config = struct {
    node: Node,
    node_count: u8,
    page_count: u32,
    home: []const HomeRange,
    /// Page-table pages may be replicated.
    replicate: bool,
    /// Threads of this node that may fault at once.
    threads: u16,
    mutation: Mutation = .none,
};

/// Most actions one step can have: a broadcast to every node with its memory actions, for a
/// transaction and the one that follows it.
pub const actions_max = 6 * types.nodes_max;

pub const Actions = struct {
    items: [actions_max]Action = undefined,
    count: usize = 0,

    pub const empty: Actions = .{};

    pub fn slice(self: *const Actions) []const Action {
        return self.items[0..self.count];
    }

    pub fn add(self: *Actions, action: Action) void {
        self.items[self.count] = action;
        self.count += 1;
    }

    pub fn send(self: *Actions, to: Node, msg: Msg) void {
        self.add(.{ .send = .{ .to = to, .msg = msg } });
    }
};

pub const DirectoryState = enum(u8) { untouched, shared, exclusive, replicated };

/// Reads answered with write permission after a page was seen to migrate (read, then written, by
/// each node in turn), before the next read checks again whether it still does.
const migratory_credit = 3;

/// What a home knows of one of its pages: 8 bytes a page.
pub const Entry = extern struct {
    state: DirectoryState = .untouched,
    owner: Node = 0,
    /// Bit n = node n has a read-only copy (state shared).
    sharers: u8 = 0,
    /// Page-table level of a replicated page.
    level: u8 = 0,
    /// The node that had write permission last.
    writer: Node = types.node_none,
    credit: u8 = 0,
    pad: u16 = 0,

    fn makeExclusive(self: *Entry, owner: Node) void {
        self.state = .exclusive;
        self.owner = owner;
        self.sharers = 0;
        self.writer = owner;
    }
};

pub const RequestKind = enum(u8) { shared, exclusive, upgrade, replicate };
pub const Request = extern struct { node: Node, kind: RequestKind };

/// One open transaction at a home, with the requests that wait for its end.
pub const Transaction = extern struct {
    page: Page = 0,
    open: bool = false,
    kind: RequestKind = .shared,
    requester: Node = 0,
    waiting_count: u8 = 0,
    /// Acknowledgements a replication still waits for.
    acks: u8 = 0,
    pad: [3]u8 = @splat(0),
    /// A node has one request in flight per page, and the home itself may want to replicate it.
    waiting: [types.nodes_max + 1]Request = @splat(.{ .node = 0, .kind = .shared }),
    pad2: [2]u8 = @splat(0),
};

/// One request of this node in flight.
pub const Pending = extern struct {
    page: Page = 0,
    open: bool = false,
    /// The grant came: `acks_needed` and `exclusive` are known.
    granted: bool = false,
    exclusive: bool = false,
    /// The content is mapped here already (write-protected).
    mapped: bool = false,
    zero: bool = false,
    acks_needed: u8 = 0,
    acks: u8 = 0,
    pad: u8 = 0,
};

pub const Core = struct {
    config: Config,
    access_of: []Access,
    directory: []Entry,
    transactions: []Transaction,
    pendings: []Pending,
    allocator: ?std.mem.Allocator = null,

    pub fn init(allocator: std.mem.Allocator, config: Config) error{OutOfMemory}!Core {
        const access_of = try allocator.alloc(Access, config.page_count);
        errdefer allocator.free(access_of);
        const directory = try allocator.alloc(Entry, config.page_count);
        errdefer allocator.free(directory);
        // Every thread of every node may have one request at this home, plus replications.
        const open_max = @as(usize, config.threads) * config.node_count + replicate.open_max;
        const transactions = try allocator.alloc(Transaction, open_max);
        errdefer allocator.free(transactions);
        const pendings = try allocator.alloc(Pending, config.threads);
        @memset(access_of, .invalid);
        @memset(directory, .{});
        @memset(transactions, .{});
        @memset(pendings, .{});
        return .{
            .config = config,
            .access_of = access_of,
            .directory = directory,
            .transactions = transactions,
            .pendings = pendings,
            .allocator = allocator,
        };
    }

    pub fn deinit(self: *Core) void {
        const allocator = self.allocator.?;
        allocator.free(self.access_of);
        allocator.free(self.directory);
        allocator.free(self.transactions);
        allocator.free(self.pendings);
        self.* = undefined;
    }

    pub fn access(self: *const Core, page: Page) Access {
        return self.access_of[page];
    }

    /// The protocol has no deadlines of its own yet: nothing is held back.
    pub fn nextDeadline(_: *const Core) ?u64 {
        return null;
    }

    pub fn homeOf(self: *const Core, page: Page) Node {
        var node: Node = 0;
        for (self.config.home) |range| {
            if (page >= range.first_page) node = range.node;
        }
        return node;
    }

    pub fn isHome(self: *const Core, page: Page) bool {
        return self.homeOf(page) == self.config.node;
    }

    pub fn transactionOf(self: *const Core, page: Page) ?*Transaction {
        for (self.transactions) |*t| if (t.open and t.page == page) return t;
        return null;
    }

    pub fn pendingOf(self: *const Core, page: Page) ?*Pending {
        for (self.pendings) |*p| if (p.open and p.page == page) return p;
        return null;
    }

    /// Whether a message of an authenticated peer makes sense here and now. What passes may still
    /// be wrong in content; what does not would break an invariant of step().
    pub fn validate(self: *const Core, from: Node, msg: Msg) error{ProtocolViolated}!void {
        const kind = std.enums.fromInt(MsgKind, msg.kind) orelse return error.ProtocolViolated;
        if (msg.page >= self.config.page_count) return error.ProtocolViolated;
        const stranger = from >= self.config.node_count or from == self.config.node;
        if (stranger) return error.ProtocolViolated;
        const page = msg.page;
        const ours = self.isHome(page);
        const good = switch (kind) {
            .get_shared, .get_exclusive, .upgrade => ours and !self.asked(page, from),
            .replicate => ours and self.config.replicate and replicate.levelGood(msg.index),
            .forward_shared, .forward_exclusive => !ours and self.homeOf(page) == from and
                msg.requester < self.config.node_count and msg.requester != self.config.node and
                self.has(page),
            .invalidate => self.homeOf(page) == from and msg.requester < self.config.node_count and
                msg.requester != self.config.node and self.access_of[page] != .replicated,
            .grant => self.granting(page, msg),
            .ack => self.pendingOf(page) != null,
            .done => ours and self.openedBy(page, from),
            .recall => self.homeOf(page) == from and self.has(page),
            .returned => ours and msg.hasData() and self.recalling(page),
            .replica => self.homeOf(page) == from and msg.hasData() and
                replicate.levelGood(msg.index) and self.access_of[page] != .exclusive and
                self.access_of[page] != .replicated,
            .replica_ack => ours and self.recalling(page) and self.transactionOf(page).?.acks > 0,
            .diff => self.config.replicate and msg.index < 512,
            .unreplicate => self.access_of[page] == .replicated,
            .diff_ack, .unreplicate_ack => false,
        };
        if (!good) return error.ProtocolViolated;
    }

    fn has(self: *const Core, page: Page) bool {
        return self.access_of[page] == .shared or self.access_of[page] == .exclusive;
    }

    fn asked(self: *const Core, page: Page, from: Node) bool {
        const t = self.transactionOf(page) orelse return false;
        if (t.requester == from and t.kind != .replicate) return true;
        for (t.waiting[0..t.waiting_count]) |w| {
            if (w.node == from and w.kind != .replicate) return true;
        }
        return false;
    }

    fn granting(self: *const Core, page: Page, msg: Msg) bool {
        const p = self.pendingOf(page) orelse return false;
        const content = msg.flags & (types.flag_data | types.flag_zero) != 0;
        const mapped = self.access_of[page] != .invalid;
        return !p.granted and content != mapped;
    }

    fn openedBy(self: *const Core, page: Page, from: Node) bool {
        const t = self.transactionOf(page) orelse return false;
        return t.requester == from and t.kind != .replicate;
    }

    fn recalling(self: *const Core, page: Page) bool {
        const t = self.transactionOf(page) orelse return false;
        return t.kind == .replicate;
    }

    pub fn step(self: *Core, event: types.Event, out: *Actions) void {
        switch (event) {
            .fault => |f| self.onFault(f.page, f.write, out),
            .message => |m| self.onMessage(m.from, m.msg, out),
            .tick => {},
            .unlinked => |u| replicate.unlinked(self, u.page, out),
            .root => |r| replicate.want(self, r.page, 4, out),
            .child => |c| replicate.want(self, c.page, c.level, out),
            .replica_changed => |r| replicate.changed(self, r, out),
        }
    }

    fn onFault(self: *Core, page: Page, write: bool, out: *Actions) void {
        switch (self.access_of[page]) {
            // The event is older than the permission: let the thread try again.
            .replicated, .exclusive => return out.add(.{ .unprotect = page }),
            .shared => if (!write) return out.add(.{ .wake = page }),
            .invalid => {},
        }
        // Another thread asked already; all waiters of the page wake together and try again.
        if (self.pendingOf(page) != null) return;
        const free = self.transactionOf(page) == null;
        if (self.isHome(page) and self.directory[page].state == .untouched and free) {
            self.directory[page] = .{ .state = .exclusive, .owner = self.config.node };
            self.access_of[page] = .exclusive;
            return out.add(.{
                .install = .{ .page = page, .access = .exclusive, .source = .zero, .wake = true },
            });
        }
        const kind: RequestKind = if (self.access_of[page] == .shared)
            .upgrade
        else if (write) .exclusive else .shared;
        self.openPending(page);
        const home = self.homeOf(page);
        if (home == self.config.node) {
            return self.request(page, .{ .node = home, .kind = kind }, out);
        }
        out.send(home, .{
            .kind = @backingInt(switch (kind) {
                .shared => MsgKind.get_shared,
                .exclusive => MsgKind.get_exclusive,
                .upgrade => MsgKind.upgrade,
                .replicate => unreachable,
            }),
            .page = page,
            .requester = self.config.node,
        });
    }

    fn openPending(self: *Core, page: Page) void {
        for (self.pendings) |*p| {
            if (p.open) continue;
            p.* = .{ .page = page, .open = true };
            return;
        }
        // One thread waits for one page, and there is a slot for each thread.
        unreachable;
    }

    /// At the home: begins the request's transaction, or queues it behind the open one.
    pub fn request(self: *Core, page: Page, r: Request, out: *Actions) void {
        if (self.directory[page].state == .replicated) return;
        if (self.transactionOf(page)) |t| {
            t.waiting[t.waiting_count] = r;
            t.waiting_count += 1;
            return;
        }
        for (self.transactions) |*t| {
            if (t.open) continue;
            t.* = .{ .page = page, .open = true };
            return self.begin(t, r, out);
        }
        unreachable;
    }

    /// The transaction's requester is done: the next one begins, if any.
    pub fn close(self: *Core, page: Page, out: *Actions) void {
        const t = self.transactionOf(page).?;
        // Whoever waits for a page that has become a replica has one now.
        if (t.waiting_count == 0 or self.directory[page].state == .replicated) {
            t.* = .{};
            return;
        }
        const next = t.waiting[0];
        const rest = t.waiting[1..t.waiting_count];
        std.mem.copyForwards(Request, t.waiting[0..rest.len], rest);
        t.waiting_count -= 1;
        t.waiting[t.waiting_count] = .{ .node = 0, .kind = .shared };
        self.begin(t, next, out);
    }

    fn begin(self: *Core, t: *Transaction, r: Request, out: *Actions) void {
        t.kind = r.kind;
        t.requester = r.node;
        const page = t.page;
        if (r.kind == .replicate) return replicate.begin(self, page, out);
        const entry = &self.directory[page];
        const listed = entry.state == .shared and entry.sharers & bit(r.node) != 0;
        const believed = listed or self.config.mutation == .stale_upgrade;
        switch (entry.state) {
            .untouched => {
                entry.makeExclusive(r.node);
                self.grant(page, r.node, types.flag_zero | types.flag_exclusive, 0, out);
            },
            .shared => if (r.kind == .shared) {
                self.giveShared(page, r.node, out);
            } else if (r.kind == .upgrade and believed) {
                self.giveUpgrade(page, r.node, out);
            } else self.giveExclusive(page, r.node, out),
            .exclusive => if (r.kind == .upgrade and self.config.mutation == .stale_upgrade) {
                entry.owner = r.node;
                self.grant(page, r.node, types.flag_exclusive, 0, out);
            } else if (r.kind == .shared and entry.credit == 0) {
                self.giveShared(page, r.node, out);
            } else {
                if (r.kind == .shared) entry.credit -= 1;
                self.giveExclusive(page, r.node, out);
            },
            .replicated => unreachable,
        }
        if (self.config.mutation == .done_skipped) self.close(page, out);
    }

    fn bit(node: Node) u8 {
        return @as(u8, 1) << @intCast(node);
    }

    /// The node that provides the content: the home itself if it can, else the first that has it.
    fn provider(self: *const Core, entry: Entry) Node {
        if (entry.state == .exclusive) return entry.owner;
        if (entry.sharers & bit(self.config.node) != 0) return self.config.node;
        return @ctz(entry.sharers);
    }

    fn giveShared(self: *Core, page: Page, to: Node, out: *Actions) void {
        const entry = &self.directory[page];
        const from = self.provider(entry.*);
        const sharers = if (entry.state == .shared) entry.sharers else bit(from);
        entry.state = .shared;
        entry.sharers = sharers | bit(to);
        if (from != self.config.node) {
            return forward(out, .forward_shared, page, from, to, 0);
        }
        self.shareOut(page, to, out);
    }

    fn giveUpgrade(self: *Core, page: Page, to: Node, out: *Actions) void {
        const entry = &self.directory[page];
        // Read and then written by another node than the last writer, nobody else reading: it
        // migrates. A writer whose page a poller reads does not.
        const migrates = entry.writer != to and entry.writer != types.node_none and
            entry.sharers == bit(to) | bit(entry.writer);
        entry.credit = if (migrates) migratory_credit else 0;
        const acks = self.invalidateSharers(page, entry.sharers & ~bit(to), to, out);
        entry.makeExclusive(to);
        self.grant(page, to, types.flag_exclusive, acks, out);
    }

    fn giveExclusive(self: *Core, page: Page, to: Node, out: *Actions) void {
        const entry = &self.directory[page];
        const from = self.provider(entry.*);
        std.debug.assert(from != to);
        var acks: u8 = 0;
        if (entry.state == .shared) {
            const others = entry.sharers & ~bit(from) & ~bit(to);
            acks = self.invalidateSharers(page, others, to, out);
        }
        entry.makeExclusive(to);
        if (from != self.config.node) {
            return forward(out, .forward_exclusive, page, from, to, acks);
        }
        self.giveAway(page, to, acks, out);
    }

    /// Tells sharers to drop their copies; returns how many acks the requester awaits. The home's
    /// own copy is dropped at once.
    fn invalidateSharers(self: *Core, page: Page, set: u8, requester: Node, out: *Actions) u8 {
        var acks: u8 = 0;
        var rest = set;
        while (rest != 0) : (rest &= rest - 1) {
            const node: Node = @ctz(rest);
            if (node == self.config.node) {
                self.dropCopy(page, out);
                continue;
            }
            acks += 1;
            out.send(node, .{
                .kind = @backingInt(MsgKind.invalidate),
                .page = page,
                .requester = requester,
            });
        }
        return acks;
    }

    /// Asks the provider to serve the requester.
    fn forward(out: *Actions, kind: MsgKind, page: Page, from: Node, to: Node, acks: u8) void {
        out.send(from, .{
            .kind = @backingInt(kind),
            .page = page,
            .requester = to,
            .acks = acks,
        });
    }

    fn dropCopy(self: *Core, page: Page, out: *Actions) void {
        if (self.access_of[page] == .invalid) return;
        out.add(.{ .drop = page });
        self.access_of[page] = .invalid;
    }

    /// This node has the page and lets `to` read it too.
    fn shareOut(self: *Core, page: Page, to: Node, out: *Actions) void {
        if (self.access_of[page] == .exclusive) out.add(.{ .protect = page });
        self.access_of[page] = .shared;
        out.send(to, .{
            .kind = @backingInt(MsgKind.grant),
            .flags = types.flag_data,
            .page = page,
        });
    }

    /// This node has the page and gives it up.
    fn giveAway(self: *Core, page: Page, to: Node, acks: u8, out: *Actions) void {
        const late = self.config.mutation == .copy_before_protect;
        if (!late) out.add(.{ .protect = page });
        out.send(to, .{
            .kind = @backingInt(MsgKind.grant),
            .flags = types.flag_data | types.flag_exclusive,
            .acks = acks,
            .page = page,
        });
        if (late) out.add(.{ .protect = page });
        self.dropCopy(page, out);
    }

    /// A grant without content, or of zeroes, by the home.
    fn grant(self: *Core, page: Page, to: Node, flags: u8, acks: u8, out: *Actions) void {
        if (to != self.config.node) {
            return out.send(to, .{
                .kind = @backingInt(MsgKind.grant),
                .flags = flags,
                .acks = acks,
                .page = page,
            });
        }
        self.takeGrant(page, flags, acks, out);
    }

    fn onMessage(self: *Core, from: Node, msg: Msg, out: *Actions) void {
        const page = msg.page;
        switch (@as(MsgKind, @fromBackingInt(@intCast(msg.kind)))) {
            .get_shared => self.request(page, .{ .node = from, .kind = .shared }, out),
            .get_exclusive => self.request(page, .{ .node = from, .kind = .exclusive }, out),
            .upgrade => self.request(page, .{ .node = from, .kind = .upgrade }, out),
            .forward_shared => self.shareOut(page, msg.requester, out),
            .forward_exclusive => self.giveAway(page, msg.requester, msg.acks, out),
            .invalidate => {
                if (self.config.mutation != .invalidation_ignored) self.dropCopy(page, out);
                out.send(msg.requester, .{ .kind = @backingInt(MsgKind.ack), .page = page });
            },
            .grant => self.takeGrant(page, msg.flags, msg.acks, out),
            .ack => {
                const p = self.pendingOf(page).?;
                p.acks += if (self.config.mutation == .ack_counted_twice) 2 else 1;
                self.finish(p, out);
            },
            .done => self.close(page, out),
            else => replicate.onMessage(self, from, msg, out),
        }
    }

    fn takeGrant(self: *Core, page: Page, flags: u8, acks: u8, out: *Actions) void {
        const p = self.pendingOf(page).?;
        p.granted = true;
        p.acks_needed = acks;
        p.exclusive = flags & types.flag_exclusive != 0;
        p.zero = flags & types.flag_zero != 0;
        p.mapped = flags & (types.flag_zero | types.flag_data) == 0;
        const wait = p.acks < p.acks_needed and self.config.mutation != .early_grant;
        if (wait and !p.mapped) {
            // Content that waits for acknowledgements may be read, not written.
            const source: types.Source = if (p.zero) .zero else .message;
            out.add(.{ .install = .{
                .page = page,
                .access = .shared,
                .source = source,
                .wake = false,
            } });
            self.access_of[page] = .shared;
            p.mapped = true;
        }
        self.finish(p, out);
    }

    /// Ends a request whose grant and acknowledgements are all there.
    fn finish(self: *Core, p: *Pending, out: *Actions) void {
        if (!p.granted) return;
        if (p.acks < p.acks_needed and self.config.mutation != .early_grant) return;
        const page = p.page;
        const permission: Access = if (p.exclusive) .exclusive else .shared;
        if (!p.mapped) {
            const source: types.Source = if (p.zero) .zero else .message;
            out.add(.{ .install = .{
                .page = page,
                .access = permission,
                .source = source,
                .wake = true,
            } });
        } else if (p.exclusive) out.add(.{ .unprotect = page }) else out.add(.{ .wake = page });
        self.access_of[page] = permission;
        p.* = .{};
        const home = self.homeOf(page);
        if (self.config.mutation == .done_skipped) return;
        if (home == self.config.node) return self.close(page, out);
        out.send(home, .{ .kind = @backingInt(MsgKind.done), .page = page });
    }
};
