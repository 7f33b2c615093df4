//! The coherence core: home-based MSI with a directory, one transaction per page at a time, and
//! replicated page tables. A pure step function: an event in, actions out; no I/O, no clock, no
//! allocation after init, no threads. One core per node and shard; the shell (engine/shell.zig)
//! executes the actions, the explorer runs several cores against a model.
//!
//! Parts: home.zig (directory and transactions), requester.zig (faults, grants, revokes), hold.zig
//! (chains of faults, deferred revokes), replica.zig (page tables), evict.zig and put.zig (pages
//! that leave a full node), validate.zig (hostile peers), audit.zig. They work on the state that is
//! declared here. Invariant: while no transaction of a page is open, its directory entry says which
//! nodes have which copy; only pages that are being put have left one of them already.

const std = @import("std");
const types = @import("types.zig");
const home = @import("home.zig");
const requester = @import("requester.zig");
const hold = @import("hold.zig");
const replica = @import("replica.zig");
const checks = @import("validate.zig");
const request_queue = @import("request_queue.zig");
const Pool = @import("pool.zig").Pool;
const evict = @import("evict.zig");
const put = @import("put.zig");
const store = @import("store.zig");
const discard = @import("discard.zig");
const repair = @import("repair.zig");
const Memory = @import("../base/page_array.zig").Memory;

const Page = types.Page;
const Node = types.Node;

pub const HomeRange = struct { first_page: Page, node: Node };

/// Frames of a memory node that are this home's alone.
pub const FrameRange = struct { node: Node, first: u32, count: u32 };

pub const Config = struct {
    node: Node,
    node_count: u8,
    /// Nodes with vCPUs and homes, this one among them; the others only lend memory.
    compute: types.Nodes = ~@as(types.Nodes, 0),
    page_count: u32,
    /// Sorted by first_page, the first one 0; must outlive the core.
    home: []const HomeRange,
    /// Page tables are replicated (else strict).
    replicate: bool,
    /// Longest time a page stays with a finished chain of faults; 0: no holds, requests are
    /// served in order of arrival.
    hold_ns_max: u64,
    /// Threads of this node that can fault.
    threads: u16,
    /// Page tables that can be known at a time; more stay strict.
    tables_max: u16 = 8192,
    /// Exclusive grants to readers of a migratory page until the guess is checked again.
    migratory_unchecked_max: u6 = 31,
    /// Write-back slots of the shell, for pages on their way out; 0: no page is evicted.
    slots_max: u16 = 0,
    /// At most one range a memory node. Looked at by init only.
    frames: []const FrameRange = &.{},
    /// Memory nodes that keep each page that this home has pushed out, 1 or 2.
    frame_copies: u8 = 1,
    /// Discards that each node may have under way; the same on all nodes.
    discards_max: u8 = 0,
    /// Where the arrays with an entry a page come from; null: from the core's allocator.
    page_memory: ?Memory = null,
    /// Of a core made for Mutation.chosen.
    mutation: Mutation = .none,
};

/// Deliberate faults that explorer and simulator must find; .none in every build but tests.
pub const Mutation = enum {
    none,
    /// One of the others, chosen at run time (Config.mutation): one build for all of them.
    chosen,
    /// Write access as soon as the grant is here, without waiting for acks.
    early_grant,
    /// Each ack counts for two.
    ack_twice,
    /// An upgrade is granted though the home no longer lists the requester.
    stale_upgrade,
    /// The home closes a transaction when it has forwarded, not when the requester is done.
    owner_change,
    /// A removed entry does not make its table strict again.
    keep_orphan,
    /// The home acknowledges a put and does not take the bytes.
    lost_put,
    /// A forward that meets a put is answered with what is mapped, not from the slot.
    put_from_page,
    /// Frames are free as soon as a page is asked back.
    frame_early,
    /// A copy that repair makes counts before its bytes are there.
    repair_early,
    /// Messages of a lost memory node are taken as if it were there.
    stale_epoch,
    /// A discard does not wait for the copies to go.
    discard_early,
    /// A change of owner leaves the version as it is.
    version_kept,
};

/// Actions of one step, in order. Capacity: the longest step releases `hold.release_max` revokes
/// and ends with a handful of actions for each node.
pub const Actions = struct {
    items: [capacity]types.Action = undefined,
    count: usize = 0,

    pub const capacity = 512;
    pub const empty: Actions = .{};

    pub fn slice(self: *const Actions) []const types.Action {
        return self.items[0..self.count];
    }

    pub fn add(self: *Actions, action: types.Action) void {
        std.debug.assert(self.count < capacity);
        self.items[self.count] = action;
        self.count += 1;
    }

    pub fn send(self: *Actions, to: Node, kind: types.MsgKind, msg: types.Msg) void {
        var m = msg;
        m.kind = @backingInt(kind);
        self.add(.{ .send = .{ .to = to, .msg = m } });
    }
};

pub const Stats = struct {
    faults_read: u64 = 0,
    faults_write: u64 = 0,
    upgrades: u64 = 0,
    /// Faults that needed no message, and requests sent or opened for the others.
    local: u64 = 0,
    remote: u64 = 0,
    invalidations: u64 = 0,
    migratory_grants: u64 = 0,
    revokes_deferred: u64 = 0,
    /// Deferred revokes answered because of their own age, not because the chain ended.
    holds_broken: u64 = 0,
    /// Older chains that came to wait behind a younger one's transaction, with revokes elsewhere.
    hurries: u64 = 0,
    /// Faults sent back to their thread because all request records were in use.
    requests_full: u64 = 0,
    replicated: u64 = 0,
    unreplicated: u64 = 0,
    replications_aborted: u64 = 0,
    /// Page tables that stay strict because tables_max are known already.
    tables_full: u64 = 0,
    diffs: u64 = 0,
    /// Upgrades that came when the home no longer listed the requester.
    upgrades_late: u64 = 0,
    evictions: u64 = 0,
    /// Evictions that had to be refused when they were asked for.
    evict_refused: u64 = 0,
    puts_sent: u64 = 0,
    /// At the home: puts that met another request for the page, or came after one.
    puts_absorbed: u64 = 0,
    puts_more: u64 = 0,
    /// Forwards that met a put of this node, and were answered from its slot.
    forwards_from_slot: u64 = 0,
    /// Copies of this home's pages sent to memory nodes, and pages fetched from there.
    frames_stored: u64 = 0,
    frames_loaded: u64 = 0,
    /// Loads that a lost memory node did not answer, asked of the other copy; pages that could not
    /// be stored elsewhere and stayed; pages that have two copies again.
    loads_again: u64 = 0,
    stores_undone: u64 = 0,
    repaired: u64 = 0,
    /// At the home: pages made untouched again; and those asked for too early or for a table.
    discards: u64 = 0,
    discards_refused: u64 = 0,
    /// Frames of memory nodes that discarded pages were in.
    frames_freed: u64 = 0,
};

pub const State = enum(u8) {
    untouched = 0,
    shared,
    exclusive,
    replicated,
    /// In frames of memory nodes (store.Copies), on no compute node.
    stored,
};

/// Directory entry: who has the page. Valid at the page's home.
pub const Entry = packed struct(u128) {
    state: State = .untouched,
    /// Exclusive: the owner. Shared: the last writer.
    owner: Node = 0,
    /// Confidence that the page migrates: read, then written, by each node in turn.
    migratory: u2 = 0,
    /// Exclusive grants to readers since the guess was last checked.
    unchecked: u6 = 0,
    pad: u8 = 0,
    /// Grows with each exclusive grant.
    version: u32 = 0,
    sharers: types.Nodes = 0,
};

pub const RequestKind = enum(u8) {
    get_shared,
    get_exclusive,
    upgrade,
    replicate,
    discard,
    /// The home's own: a stored page gets a second copy again.
    repair,

    /// A fault's request, of which a node has one a page.
    pub fn isAccess(self: RequestKind) bool {
        return switch (self) {
            .get_shared, .get_exclusive, .upgrade => true,
            .replicate, .discard, .repair => false,
        };
    }
};

pub const Request = struct { node: Node, kind: RequestKind, version: u32, age: u64 };

pub const Phase = enum(u8) {
    /// A plain request, or the first part of a replicate: the home fetches the only copy.
    strict,
    /// Every node takes a read-only copy of a table.
    share,
    /// Every node makes its copy writable.
    go,
    /// Requests that overtook the unreplicate wait for it (more than two nodes).
    parked,
    /// The home fetches the page from a memory node.
    load,
    /// Every copy goes.
    discard,
};

/// The transaction of a page at its home, with the requests that wait behind it.
pub const Txn = struct {
    page: Page = types.page_none,
    request: Request = undefined,
    phase: Phase = .strict,
    /// Age of the oldest chain that waits for it to end, and that chain's node.
    age: u64 = 0,
    elder: Node = 0,
    /// Other nodes that were told to give the page up.
    asked: types.Nodes = 0,
    /// Nodes whose replica_ack (or a discard's ack) is missing; nodes that refused.
    missing: types.Nodes = 0,
    refused: types.Nodes = 0,
    /// Phase load: the frame that was asked for, and by which number.
    place: store.Place = store.no_place,
    sequence: u32 = 0,
    /// Of every node at most one, of the home one more to replicate.
    queue: request_queue.Queue = .{},
};

/// This node's outstanding request for a page.
pub const Pending = struct {
    page: Page = types.page_none,
    kind: RequestKind = .get_shared,
    granted: bool = false,
    exclusive: bool = false,
    zero: bool = false,
    /// The bytes are mapped already (upgrade, or data that came before the acks).
    installed: bool = false,
    /// Not asked for yet: a put of the page is still open.
    waits: bool = false,
    acks_needed: u8 = 0,
    acks: u8 = 0,
    version: u32 = 0,
    /// While it waits: of the chain that faulted.
    age: u64 = 0,
};

pub fn memoryOf(config: Config, a: std.mem.Allocator) Memory {
    return config.page_memory orelse .{ .allocator = a, .fresh_is_zero = false };
}

pub const Core = CoreOf(.none);

pub fn CoreOf(comptime mutation: Mutation) type {
    return struct {
        allocator: std.mem.Allocator,
        config: Config,
        /// Per page: how it is mapped here, and the version of that copy.
        local: []types.Access,
        versions: []u32,
        directory: []Entry,
        pending: Pool(Pending),
        txns: Pool(Txn),
        requests: request_queue.Requests,
        tables: Pool(replica.Table),
        holds: hold.Holds,
        replicas: replica.Replicas,
        slots: Pool(evict.Slot),
        store: store.Store,
        discards: discard.Discards,
        compute: types.Nodes,
        compute_count: u8,
        /// Time of the event in progress.
        now: u64 = 0,
        stats: Stats = .{},

        const Self = @This();

        /// Whether this core has the deliberate fault. Decided at compile time in production.
        pub inline fn has(self: *const Self, comptime fault: Mutation) bool {
            return if (mutation == .chosen) self.config.mutation == fault else mutation == fault;
        }

        pub fn init(allocator: std.mem.Allocator, config: Config) !Self {
            const a = allocator;
            const n = config.page_count;
            std.debug.assert(config.node_count >= 1 and config.node_count <= types.nodes_max);
            std.debug.assert(config.node < config.node_count and config.home.len > 0);
            const nodes = ~@as(types.Nodes, 0) >> @intCast(types.nodes_max - config.node_count);
            const compute = config.compute & nodes;
            const compute_count = @popCount(compute);
            std.debug.assert(compute & home.bit(config.node) != 0);
            std.debug.assert(config.frame_copies >= 1 and config.frame_copies <= store.copies_max);
            const memory = memoryOf(config, a);
            const local = try memory.alloc(types.Access, n);
            errdefer memory.free(types.Access, local);
            const versions = try memory.alloc(u32, n);
            errdefer memory.free(u32, versions);
            const directory = try memory.alloc(Entry, n);
            errdefer memory.free(Entry, directory);
            // A thread waits for one page; a signal can take it to another before the first came.
            const requests: usize = @as(usize, config.threads) * 4;
            var pending: Pool(Pending) = try .init(a, memory, requests, n);
            errdefer pending.deinit(a, memory);
            const each = requests + config.discards_max;
            const txn_count = each * compute_count + replica.window + repair.window + 1;
            const txns_max = @min(txn_count, std.math.maxInt(u16) - 1);
            var txns: Pool(Txn) = try .init(a, memory, txns_max, n);
            errdefer txns.deinit(a, memory);
            var queued: request_queue.Requests = try .init(a, txns_max);
            errdefer queued.deinit(a);
            var tables: Pool(replica.Table) = try .init(a, memory, config.tables_max, n);
            errdefer tables.deinit(a, memory);
            var replicas: replica.Replicas = try .init(a, config);
            errdefer replicas.deinit(a);
            const evictable = if (config.slots_max == 0) 0 else n;
            var slots: Pool(evict.Slot) = try .init(a, memory, config.slots_max, evictable);
            errdefer slots.deinit(a, memory);
            var frames: store.Store = try .init(a, config);
            errdefer frames.deinit(a, config);
            var discards: discard.Discards = try .init(a, config);
            errdefer discards.deinit(a);
            return .{
                .allocator = allocator,
                .config = config,
                .local = local,
                .versions = versions,
                .directory = directory,
                .pending = pending,
                .txns = txns,
                .requests = queued,
                .tables = tables,
                .holds = try .init(a, config, requests * compute_count),
                .replicas = replicas,
                .slots = slots,
                .store = frames,
                .discards = discards,
                .compute = compute,
                .compute_count = compute_count,
            };
        }

        pub fn deinit(self: *Self) void {
            const a = self.allocator;
            const memory = memoryOf(self.config, a);
            memory.free(types.Access, self.local);
            memory.free(u32, self.versions);
            memory.free(Entry, self.directory);
            self.pending.deinit(a, memory);
            self.txns.deinit(a, memory);
            self.requests.deinit(a);
            self.tables.deinit(a, memory);
            self.holds.deinit(a);
            self.replicas.deinit(a);
            self.slots.deinit(a, memory);
            self.store.deinit(a, self.config);
            self.discards.deinit(a);
        }

        pub fn access(self: *const Self, page: Page) types.Access {
            return self.local[page];
        }

        pub fn homeOf(self: *const Self, page: Page) Node {
            // Few ranges: a node has one or two.
            var i = self.config.home.len;
            while (i > 0) {
                i -= 1;
                if (page >= self.config.home[i].first_page) return self.config.home[i].node;
            }
            unreachable;
        }

        pub fn isHome(self: *const Self, page: Page) bool {
            return self.homeOf(page) == self.config.node;
        }

        pub fn replicatedCount(self: *const Self) u64 {
            return self.replicas.live;
        }

        /// When to send a tick at the latest; null: no deadline.
        pub fn nextDeadline(self: *const Self) ?u64 {
            if (repair.isDue(self)) return self.now;
            return hold.nextDeadline(self);
        }

        /// Grows with every memory node that is lost.
        pub fn epoch(self: *const Self) u32 {
            return self.store.epoch;
        }

        /// Stored pages of this home that have fewer copies than they should.
        pub fn singleCount(self: *const Self) u64 {
            return self.store.singles;
        }

        /// More than two nodes: everything that can tell a peer of this node's stores waits until
        /// gatePassed(of the gate() at its time). Always open with two, whose lane is in order.
        pub fn gate(self: *const Self) u32 {
            return self.replicas.sequence;
        }

        pub fn gatePassed(self: *const Self, sequence: u32) bool {
            return replica.gatePassed(self, sequence);
        }

        /// Whether the page may leave this node now, as far as events until now tell.
        pub fn canEvict(self: *const Self, page: Page) bool {
            return evict.canEvict(self, page);
        }

        /// Whether a discard of the page can be asked for now.
        pub fn canDiscard(self: *const Self, page: Page) bool {
            return discard.canDiscard(self, page);
        }

        /// Whether that has to wait until another discard is done; if not, canDiscard() says
        /// whether the page can be discarded at all.
        pub fn discardMustWait(self: *const Self, page: Page) bool {
            return discard.mustWait(self, page);
        }

        /// Whether this node has asked for discards and not heard of them.
        pub fn isDiscarding(self: *const Self) bool {
            return self.discards.count > 0;
        }

        /// Whether `msg`, from an untrusted peer, can be given to step().
        pub fn validate(self: *const Self, from: Node, msg: types.Msg) checks.Error!void {
            return checks.validate(self, from, msg);
        }

        pub fn step(self: *Self, event: types.Event, out: *Actions) void {
            switch (event) {
                .fault => |f| {
                    self.now = @max(self.now, f.now);
                    requester.fault(self, f.page, f.write, f.thread, out);
                },
                .message => |m| {
                    self.now = @max(self.now, m.now);
                    self.message(m.from, m.msg, out);
                },
                .tick => |t| {
                    self.now = @max(self.now, t.now);
                    hold.tick(self, out);
                    if (repair.isDue(self)) repair.goOn(self, out);
                },
                .replica_changed => |r| replica.changed(self, .{
                    .page = r.page,
                    .index = r.index,
                    .old = r.old,
                    .new = r.new,
                    .old_child = r.old_child,
                    .new_child = r.new_child,
                }, out),
                .root => |r| replica.root(self, r.page, out),
                .child => |c| replica.found(self, c.page, c.parent, c.level, out),
                .evict => |e| {
                    self.now = @max(self.now, e.now);
                    evict.evict(self, e.page, out);
                },
                .discard => |d| discard.ask(self, d.page, out),
                .node_lost => |l| repair.lost(self, l.node, out),
            }
            if (self.store.repair.is_due) repair.goOn(self, out);
        }

        fn message(self: *Self, from: Node, msg: types.Msg, out: *Actions) void {
            const kind: types.MsgKind = @fromBackingInt(@intCast(msg.kind));
            switch (kind) {
                .get_shared, .get_exclusive, .upgrade => {
                    hold.heard(self, msg.age);
                    home.request(self, msg.page, .{
                        .node = from,
                        .kind = home.kindOf(kind),
                        .version = msg.version,
                        .age = msg.age,
                    }, out);
                },
                .forward_shared, .forward_exclusive, .invalidate => {
                    hold.heard(self, msg.age);
                    _ = requester.revoke(self, .{
                        .page = msg.page,
                        .kind = kind,
                        .requester = msg.requester,
                        .acks = msg.acks,
                        .version = msg.version,
                        .age = msg.age,
                    }, out);
                },
                .hurry => {
                    hold.heard(self, msg.age);
                    hold.hurry(self, msg.page, msg.age, msg.requester, out);
                },
                .grant => requester.grant(self, msg, out),
                .ack => if (discard.isOpen(self, msg.page)) {
                    discard.acked(self, from, msg.page, out);
                } else requester.ack(self, msg.page, out),
                .done => home.close(self, msg.page, out),
                .replicate => replica.root(self, msg.page, out),
                .replica => replica.offered(self, from, msg, out),
                .replica_ack => replica.answered(self, from, msg, out),
                .diff => replica.diff(self, from, msg, out),
                .diff_ack => replica.acknowledged(self, from, msg.version),
                .unreplicate => replica.unreplicated(self, from, msg, out),
                .put => put.arrived(self, from, msg, out),
                .put_ack => put.settled(self, msg.page, out),
                .put_more => put.more(self, msg.page, out),
                .frame_ack => store.acked(self, from, msg),
                .frame_data => store.arrived(self, msg.page, out),
                // Memory nodes answer these (lender.zig); validate() lets none through here.
                .frame_put, .frame_get, .frame_free => unreachable,
                .discard => {
                    hold.heard(self, msg.age);
                    discard.request(self, msg.page, from, msg.age, out);
                },
                .discarded => discard.told(self, msg, out),
            }
        }
    };
}
