//! The shell around the coherence core: it turns faults and messages into events of the core and
//! executes the core's actions on a userfaultfd, replicas and lanes. Generic over its environment
//! (clock, kernel, RAM, lanes, what a fatal condition does), so that the seeded simulator runs the
//! very same code; pager.zig has the production environment and the thread. Nothing else changes or
//! copies guest pages, and guest RAM is touched only where it cannot fault: pages that were just
//! write-protected, and replicas. It needs no vCPU thread and changes no memory slot.
//!
//! Order of one step: memory actions as given (protect, copy out, drop), then the scan of
//! replicated page tables with their diffs, then the sends. So whatever a peer learns, it learns
//! after the page-table entries it may depend on.

const std = @import("std");
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const types = @import("../dsm/types.zig");
const core_file = @import("../dsm/core.zig");
const Actions = core_file.Actions;
const frame = @import("../transport/frame.zig");
const discards_file = @import("discards.zig");
const Gate = @import("gate.zig").Gate;
const Inbox = @import("inbox.zig").Inbox;
const uffd_api = @import("../base/uffd_api.zig");
const uffd_file = @import("../memory/uffd.zig");
const Faults = @import("../memory/faults.zig").Faults;
const replicas_file = @import("../memory/replicas.zig");
const Replicas = replicas_file.Replicas;
const room_file = @import("room.zig");
const Room = room_file.Room;
const Kind = room_file.Kind;
pub const Limits = room_file.Limits;
const Memory = @import("../base/page_array.zig").Memory;
const Policy = @import("../memory/eviction.zig").Policy;

const page_size = 4096;
const PageBytes = [page_size]u8;
const zero_page: PageBytes align(page_size) = @splat(0);

/// x86 page-table entries (Intel SDM vol. 3A, 4.5): present, page size, address.
const entry_present: u64 = 1;
const entry_large: u64 = 1 << 7;
const entry_address: u64 = 0x000f_ffff_ffff_f000;

/// Commands to the shard itself (Post.nodes = 0).
pub const Command = struct {
    pub const root: u8 = 1;
    pub const reset: u8 = 2;
    pub const stop: u8 = 3;
    /// Before a reset: let what is under way arrive, begin nothing new.
    pub const settle: u8 = 4;
    /// A memory node's: say goodbye to everybody.
    pub const leave: u8 = 5;
    /// Discard the pages of the Batch at this address (discards.zig); Handler.discarded follows.
    pub const discard: u8 = 6;
};

/// What the shard tells the rest of the engine; called on the shard's thread, must not block.
pub const Handler = struct {
    context: *anyopaque,
    /// A span message from a peer.
    receive: *const fn (context: *anyopaque, from: u8, payload: []const u8) void,
    /// A peer is gone or does not keep to the protocol.
    lost: *const fn (context: *anyopaque, node: u8, why: []const u8) void,
    /// A peer's connection was cut or resumed.
    noticed: *const fn (context: *anyopaque, node: u8, what: []const u8) void,
    /// Nothing of this node is under way, as Command.settle asked.
    settled: *const fn (context: *anyopaque) void,
    /// A reset of all page state is done.
    reset_done: *const fn (context: *anyopaque) void,
    /// The pages of Command.discard are discarded on every node, but for page tables.
    discarded: *const fn (context: *anyopaque) void,
    /// The end of each turn: what the lanes and the faults are like is known.
    on_time: *const fn (context: *anyopaque, now: u64) void,
    /// A page's state is unknown: the engine dies when this returns, and nobody may run on.
    page_lost: *const fn (context: *anyopaque, gpa: u64, why: []const u8) void,
    /// The inboxes of this node's vCPUs: who may be storing right now.
    inboxes: *const fn (context: *anyopaque, index: usize) ?*const Inbox,
};

/// Whether this node's vCPUs can have stored anything: a sum of their entries into the guest, valid
/// while none of them runs.
const Stillness = struct { entries: u64, wakes: u64 };

/// Every action of a step can be a send, and the scan before it leaves adds the few that follow
/// from changed page tables.
const staged_max = 2 * Actions.capacity;
const staged_pages_max = 32;

/// Candidates that cannot be spared, before the rest is left to the next turn.
const refusals_max = 64;

/// What a staged message carries: nothing, a page copied into its place, or a write-back slot.
const Carried = union(enum) { nothing, page: u8, slot: types.SlotNumber };
const Staged = struct { to: u8, msg: types.Msg, data: Carried };

/// The way to a reset: no faults are taken (vCPUs are parked), no pages evicted. First this node's
/// own requests and pages on their way out arrive; then, all nodes having told so, what it still
/// owes others, before it forgets everything.
const Ending = enum { no, settling, settled, resetting };

/// Deliberate faults that the simulator must find; .none in production, at no cost there.
pub const Bug = enum {
    none,
    /// Diffs of page tables leave after the messages that depend on them.
    late_diff,
    /// Nobody waits for acknowledgements of diffs (more than two nodes).
    no_gate,
};

/// What an environment declares:
/// - `mutation`: the core's deliberate fault, .none but in tests; `bug()`: the shell's;
/// - `Ram`: pageCount, pageBytes (not to be called where it would fault), gpaOf, pageOf;
/// - `Kernel`: the system calls of a userfaultfd (memory/uffd.zig);
/// - `Lanes`: mayRequest, receive, next, isLost, queue, lose, onTime, flush (lanes.zig);
/// - `now()`: monotonic nanoseconds;
/// - `takePost()`: the oldest message of other threads (memory/mailbox.zig), or null;
/// - `emptied(page)`: a page of this home's is discarded: zeroes from here on;
/// - `fatal(format, args) noreturn`: memory can no longer be right.
pub fn ShellOf(comptime Env: type) type {
    return struct {
        allocator: std.mem.Allocator,
        env: Env,
        ram: *Env.Ram,
        uffd: Uffd,
        core: Core,
        core_config: core_file.Config,
        replicas: Replicas,
        faults: Faults,
        lanes: Env.Lanes,
        handler: Handler,
        stats: *abi.EngineStats,
        /// Times each page came from another node: what `--report` lists.
        transfers: []u16,
        /// Page tables found below a new replica, not yet told to the core.
        children: std.ArrayList(types.Event) = .empty,
        /// A vCPU whose fault this shard has seen stays in it until it is woken. Since Linux 6.2
        /// KVM leaves a fault for a signal (and the guest may take an interrupt before it faults
        /// again), so there a fault seen says nothing about now.
        faults_hold: bool,
        /// State of the vCPUs at the last full scan that found them all at rest.
        scanned: ?Stillness = null,
        /// More than two nodes: what waits for acknowledgements of diffs.
        gate: Gate,
        /// Of the step in progress. Kept here: a fresh one would be filled on every step, which
        /// took longer than the step itself.
        actions: Actions = .{ .count = 0 },
        staged: [staged_max]Staged = undefined,
        staged_count: usize = 0,
        staged_pages: *[staged_pages_max]PageBytes,
        staged_page_count: u8 = 0,
        /// Pages on their way out, by the core's numbers.
        slots: []PageBytes,
        /// What leaves when memory is short; null: it never is.
        room: ?Room,
        /// Memory nodes with frames of this node's, and those that the core knows to be lost.
        lenders: types.Nodes,
        lenders_lost: types.Nodes = 0,
        ending: Ending = .no,
        discards: discards_file.Discards = .{},
        takes_posts_first: bool = false,
        stopping: std.atomic.Value(bool) = .init(false),

        const Self = @This();
        pub const Core = core_file.CoreOf(Env.mutation);
        pub const Uffd = uffd_file.UffdOf(Env.Kernel);

        pub const Options = struct {
            env: Env,
            ram: *Env.Ram,
            uffd: Uffd,
            /// Without own memory: the caller keeps the home ranges.
            core: core_file.Config,
            limits: Limits = .{},
            lanes: Env.Lanes,
            handler: Handler,
            stats: *abi.EngineStats,
            /// One zero a page; the caller frees it after deinit().
            transfers: []u16,
            faults_hold: bool,
        };

        pub fn init(allocator: std.mem.Allocator, o: Options) error{OutOfMemory}!Self {
            const pages = try allocator.create([staged_pages_max]PageBytes);
            errdefer allocator.destroy(pages);
            const slots = try allocator.alloc(PageBytes, o.core.slots_max);
            errdefer allocator.free(slots);
            const memory = o.core.page_memory orelse
                Memory{ .allocator = allocator, .fresh_is_zero = false };
            var room: ?Room = null;
            if (o.limits.any()) room = try .init(allocator, memory, o.core.page_count, o.limits);
            errdefer if (room) |*r| r.deinit(allocator);
            var lenders: types.Nodes = 0;
            for (o.core.frames) |range| lenders |= @as(types.Nodes, 1) << @intCast(range.node);
            return .{
                .allocator = allocator,
                .env = o.env,
                .ram = o.ram,
                .uffd = o.uffd,
                .core = try Core.init(allocator, o.core),
                .core_config = o.core,
                .replicas = .{ .allocator = allocator },
                .gate = .{ .allocator = allocator },
                .faults = .{ .stats = o.stats },
                .lanes = o.lanes,
                .handler = o.handler,
                .stats = o.stats,
                .transfers = o.transfers,
                .staged_pages = pages,
                .slots = slots,
                .room = room,
                .lenders = lenders,
                .faults_hold = o.faults_hold,
            };
        }

        pub fn deinit(self: *Self) void {
            self.core.deinit();
            self.replicas.deinit();
            self.gate.deinit();
            self.children.deinit(self.allocator);
            self.allocator.destroy(self.staged_pages);
            self.allocator.free(self.slots);
            if (self.room) |*room| room.deinit(self.allocator);
        }

        /// All that is there to do now.
        pub fn turn(self: *Self) void {
            // Where there is room for few requests, neither may take all of it for ever.
            self.takes_posts_first = !self.takes_posts_first;
            if (self.takes_posts_first) self.takePosts();
            if (self.mayTakeFaults()) self.takeFaults() else self.stats.turns_held += 1;
            self.takePosts();
            for (0..self.core_config.node_count) |node| self.takeFrames(@intCast(node));
            self.onTime();
            self.noticeLosses();
            self.discards.goOn(self);
            if (self.ending == .no) self.makeRoom() else self.goOnEnding();
            self.lanes.flush();
        }

        /// A memory node that is lost takes its frames with it; no vCPU, so the VM may go on.
        fn noticeLosses(self: *Self) void {
            var rest = self.lenders & ~self.lenders_lost;
            while (rest != 0) : (rest &= rest - 1) {
                const node: u8 = @intCast(@ctz(rest));
                if (!self.lanes.isLost(node)) continue;
                self.lenders_lost |= @as(types.Nodes, 1) << @intCast(node);
                self.step(.{ .node_lost = .{ .node = node } }, null);
            }
        }

        fn goOnEnding(self: *Self) void {
            if (self.ending == .settled or !self.isQuiet()) return;
            if (self.ending == .resetting) return self.resetPages();
            self.ending = .settled;
            self.handler.settled(self.handler.context);
        }

        /// Whether faults can be answered: what they bring must have room, here and on the lanes.
        /// Answers and pages that come home are served in any case, so this always ends: while a
        /// page is on its way out, its receiver's word comes; and when none can go, faults go on.
        pub fn mayTakeFaults(self: *Self) bool {
            if (self.ending != .no or !self.lanes.mayRequest()) return false;
            const room = if (self.room) |*room| room else return true;
            return !room.isFull() or self.slotsInUse() == 0;
        }

        fn slotsInUse(self: *const Self) usize {
            return self.core.slots.items.len - self.core.slots.free_count;
        }

        /// Evicts until there is spare room again, as far as slots and the core allow.
        fn makeRoom(self: *Self) void {
            const room = if (self.room) |*room| room else return;
            for (std.enums.values(Kind)) |kind| {
                const policy = room.limited(kind) orelse continue;
                var refusals: usize = 0;
                while (policy.excess() > 0 and refusals < refusals_max) {
                    if (self.core.slots.full() or !self.lanes.mayRequest()) break;
                    const page = policy.candidate().?;
                    self.step(.{ .evict = .{ .page = page, .now = self.env.now() } }, null);
                    if (self.core.access(page) == .invalid) {
                        self.stats.pages_evicted += 1;
                        continue;
                    }
                    policy.refuse(page);
                    refusals += 1;
                }
            }
            self.countRoom();
        }

        fn countRoom(self: *Self) void {
            const cache = self.room.?.policies.getPtrConst(.cache);
            const own = self.room.?.policies.getPtrConst(.own);
            const stats = self.stats;
            stats.cache_pages = cache.present();
            stats.cache_pages_max = cache.counters.present_max;
            stats.own_pages = own.present();
            stats.own_pages_max = own.counters.present_max;
            stats.pages_returned = cache.counters.returned + own.counters.returned;
        }

        /// The policy of the page's kind, if its number is limited.
        fn policyOf(self: *Self, page: u32) ?*Policy {
            const room = if (self.room) |*room| room else return null;
            return room.limited(if (self.core.isHome(page)) .own else .cache);
        }

        /// A span message to the nodes of the mask, in order with this node's other sends.
        pub fn sendSpan(self: *Self, nodes: u64, payload: []const u8) void {
            self.scan();
            self.sendStaged();
            var rest = nodes;
            while (rest != 0) : (rest &= rest - 1) {
                self.queueInOrder(@intCast(@ctz(rest)), frame.Kind.span, &.{payload});
            }
        }

        /// Nothing is in flight here: no fault, no transaction, nothing put aside or held.
        pub fn isQuiet(self: *const Self) bool {
            const core = &self.core;
            return core.pending.free_count == core.pending.items.len and
                core.txns.free_count == core.txns.items.len and
                core.holds.deferred_count == 0 and self.gate.isEmpty() and
                self.slotsInUse() == 0 and !self.discards.is_active;
        }

        fn takeFaults(self: *Self) void {
            var messages: [16]uffd_api.Message = undefined;
            const n = self.uffd.read(&messages);
            for (messages[0..n]) |m| {
                std.debug.assert(m.event == uffd_api.event_pagefault);
                const now = self.env.now();
                const page = self.uffd.pageOf(m.address);
                const write = m.isWrite();
                if (write) self.stats.faults_write += 1 else self.stats.faults_read += 1;
                if (write and self.core.access(page) == .shared) self.stats.faults_upgrade += 1;
                const thread = self.faults.begin(m.thread, page, write, now);
                const event: types.Event = .{
                    .fault = .{ .page = page, .write = write, .thread = thread, .now = now },
                };
                self.step(event, null);
                self.faults.markRemote(thread);
            }
        }

        fn takePosts(self: *Self) void {
            while (self.lanes.mayRequest()) {
                const p = self.env.takePost() orelse return;
                if (p.nodes == 0) {
                    self.obey(p.kind, std.mem.readInt(u64, p.payload[0..8], .little));
                    continue;
                }
                self.sendSpan(p.nodes, p.bytes());
            }
        }

        fn obey(self: *Self, which: u8, argument: u64) void {
            switch (which) {
                Command.root => {
                    const page = self.ram.pageOf(argument) orelse return;
                    if (self.core_config.replicate) self.step(.{ .root = .{ .page = page } }, null);
                },
                Command.settle => self.end(.settling),
                Command.reset => self.end(.resetting),
                Command.discard => self.discards.begin(@ptrFromInt(argument)),
                Command.stop => self.stopping.store(true, .release),
                else => unreachable,
            }
        }

        fn end(self: *Self, how: Ending) void {
            self.ending = how;
            self.discards.abandon();
        }

        /// Every vCPU of every node is parked and nothing under way can reach this node: back to
        /// "nobody has touched anything".
        fn resetPages(self: *Self) void {
            self.ending = .no;
            self.uffd.dropRange(0, self.ram.pageCount()) catch self.refused("drop all", 0);
            self.replicas.clear();
            self.gate.clear();
            self.scanned = null;
            if (self.room) |*room| room.clear();
            self.lenders_lost = 0;
            self.core.deinit();
            self.core = Core.init(self.allocator, self.core_config) catch {
                self.env.fatal("no memory for page states at reset", .{});
            };
            self.handler.reset_done(self.handler.context);
        }

        fn takeFrames(self: *Self, node: u8) void {
            const lane = self.lanes.receive(node) orelse return;
            while (self.lanes.next(node, lane)) |f| {
                self.onFrame(node, f.kind, f.payload) catch |e| {
                    return self.lanes.lose(node, @errorName(e));
                };
                if (self.lanes.isLost(node)) return;
            }
        }

        fn onFrame(self: *Self, from: u8, kind: frame.Kind, payload: []const u8) !void {
            switch (kind) {
                .protocol => {
                    self.stats.messages_received += 1;
                    const msg = std.mem.bytesToValue(types.Msg, payload[0..@sizeOf(types.Msg)]);
                    const rest = payload[@sizeOf(types.Msg)..];
                    if (msg.hasData() != (rest.len == page_size)) return error.ProtocolViolated;
                    try self.core.validate(from, msg);
                    const whole = rest.len == page_size;
                    const data: ?*const PageBytes = if (whole) rest[0..page_size] else null;
                    if (data != null) {
                        self.stats.pages_received += 1;
                        // What comes back unasked says nothing about who uses it.
                        const is_put = msg.kind == @backingInt(types.MsgKind.put);
                        if (!is_put) self.transfers[msg.page] +|= 1;
                    }
                    const invalidate = msg.kind == @backingInt(types.MsgKind.invalidate);
                    self.stats.invalidations += @intFromBool(invalidate);
                    const now = self.env.now();
                    self.step(.{ .message = .{ .from = from, .msg = msg, .now = now } }, data);
                    self.openGate();
                },
                .span => self.handler.receive(self.handler.context, from, payload),
                .ping => self.queue(from, frame.Kind.pong, &.{payload}),
                .pong => {},
                .bye => self.lanes.heardGoodbye(from, payload),
                .ack, .@"resume", .clock, .measure, _ => return error.ProtocolViolated,
            }
        }

        fn onTime(self: *Self) void {
            const now = self.env.now();
            if (self.core.nextDeadline()) |deadline| {
                if (now >= deadline) self.step(.{ .tick = .{ .now = now } }, null);
            }
            // After what may end a wait.
            _ = self.faults.oldest(now);
            self.lanes.onTime(now);
            self.handler.on_time(self.handler.context, now);
        }

        /// Past what waits for page-table entries, since it tells nothing about memory.
        pub fn sendAtOnce(self: *Self, nodes: u64, payload: []const []const u8) void {
            var rest = nodes;
            while (rest != 0) : (rest &= rest - 1) {
                self.queue(@intCast(@ctz(rest)), frame.Kind.span, payload);
            }
        }

        fn queue(self: *Self, to: u8, kind: frame.Kind, parts: []const []const u8) void {
            if (!self.lanes.queue(to, kind, parts)) return;
            if (kind == .protocol) self.stats.messages_sent += 1;
        }

        /// One event through the core: memory actions, scan, sends.
        pub fn step(self: *Self, event: types.Event, data: ?*const PageBytes) void {
            self.stepCore(event, data);
            self.stats.revokes_deferred = self.core.stats.revokes_deferred;
            self.release();
            while (self.children.pop()) |child| {
                // A scan since may have found the entry changed: that event was the newer word.
                if (!self.stillLinked(child)) continue;
                self.stepCore(child, null);
                self.release();
            }
        }

        fn stepCore(self: *Self, event: types.Event, data: ?*const PageBytes) void {
            self.actions.count = 0;
            self.core.step(event, &self.actions);
            self.perform(self.actions.slice(), data);
        }

        /// Sends what perform() staged, after the diffs it may depend on.
        fn release(self: *Self) void {
            if (self.env.bug() == .late_diff) self.sendStaged();
            for (self.staged[0..self.staged_count]) |s| {
                if (s.msg.tells()) {
                    self.scan();
                    break;
                }
            }
            self.sendStaged();
        }

        fn sendStaged(self: *Self) void {
            for (self.staged[0..self.staged_count]) |s| {
                const data: ?*const PageBytes = switch (s.data) {
                    .nothing => null,
                    .page => |at| &self.staged_pages[at],
                    .slot => |slot| &self.slots[slot],
                };
                self.sendMessage(s.to, s.msg, data);
            }
            self.staged_count = 0;
            self.staged_page_count = 0;
        }

        fn sendMessage(self: *Self, to: u8, msg: types.Msg, data: ?*const PageBytes) void {
            const head = std.mem.asBytes(&msg);
            if (msg.isTableWord()) return self.queue(to, frame.Kind.protocol, &.{head});
            if (data) |bytes| {
                self.stats.pages_sent += 1;
                self.queueInOrder(to, frame.Kind.protocol, &.{ head, bytes });
            } else self.queueInOrder(to, frame.Kind.protocol, &.{head});
        }

        /// Behind whatever waits for peers to take this node's page-table entries.
        fn queueInOrder(self: *Self, to: u8, kind: frame.Kind, parts: []const []const u8) void {
            const sequence = self.core.gate();
            const passed = self.gate.isEmpty() and self.core.gatePassed(sequence);
            if (passed or self.env.bug() == .no_gate) return self.queue(to, kind, parts);
            self.gate.hold(to, kind, sequence, parts) catch {
                self.env.fatal("no memory for messages that wait for page-table entries", .{});
            };
        }

        fn openGate(self: *Self) void {
            while (self.gate.first()) |held| {
                if (!self.core.gatePassed(held.sequence)) return;
                self.queue(held.to, held.kind, &.{held.bytes});
                self.gate.pass();
            }
        }

        /// Executes memory actions in order and stages sends, copying the pages they carry.
        fn perform(self: *Self, actions: []const types.Action, data: ?*const PageBytes) void {
            for (actions) |action| switch (action) {
                .install => |i| self.install(i.page, i.access, i.source, i.wake, data),
                .protect => |page| self.uffd.protect(page) catch self.refused("protect", page),
                .unprotect => |page| {
                    self.uffd.unprotect(page) catch self.refused("unprotect", page);
                    if (self.policyOf(page)) |policy| policy.touched(page);
                    self.woken(page);
                },
                .drop => |page| {
                    self.uffd.drop(page) catch self.refused("drop", page);
                    if (self.policyOf(page)) |policy| policy.left(page);
                },
                .wake => |page| {
                    self.uffd.wake(page) catch self.refused("wake", page);
                    self.woken(page);
                },
                // Still write-protected: the page holds what was sent.
                .twin => |t| self.adopt(t.page, t.level, self.ram.pageBytes(t.page)),
                .forget_replica => |page| {
                    self.replicas.remove(page);
                    self.stats.replicated_pages = self.replicas.list.items.len;
                },
                .patch => |p| self.patch(p.page, p.index, p.old, p.new),
                // Write-protected: what is read now is final.
                .save => |s| @memcpy(&self.slots[s.slot], self.ram.pageBytes(s.page)),
                // The core keeps only what came with a page (dsm/repair.zig).
                .keep => |slot| self.slots[slot] = data.?.*,
                .emptied => |page| {
                    self.stats.pages_discarded += 1;
                    self.env.emptied(page);
                },
                .discarded => |d| self.stats.discards_refused += @intFromBool(d.refused),
                .send => |s| self.stage(s.to, s.msg, s.slot),
                .fatal => |f| self.cannotGoOn(f.page, f.code),
            };
        }

        fn install(
            self: *Self,
            page: u32,
            access: types.Access,
            source: types.Source,
            wakes: bool,
            data: ?*const PageBytes,
        ) void {
            const bytes = self.contentOf(source, data) orelse {
                return self.refused("install without content", page);
            };
            const result = self.uffd.copy(page, bytes, access == .shared, wakes);
            const installed = result catch return self.refused("install", page);
            // The core installs only where nothing is mapped: anything there would be a second
            // truth.
            if (installed == .existed) self.refused("install over a present page", page);
            if (self.policyOf(page)) |policy| policy.came(page);
            if (wakes) self.woken(page);
        }

        fn contentOf(
            self: *const Self,
            source: types.Source,
            data: ?*const PageBytes,
        ) ?*const PageBytes {
            return switch (source) {
                .zero => &zero_page,
                .message => data,
                .slot => |slot| &self.slots[slot],
            };
        }

        /// The page's waiters run on.
        fn woken(self: *Self, page: u32) void {
            _ = self.faults.woken(page, self.env.now());
        }

        fn stage(self: *Self, to: u8, msg: types.Msg, slot: ?types.SlotNumber) void {
            std.debug.assert(self.staged_count < staged_max);
            if (msg.kind == @backingInt(types.MsgKind.frame_free)) {
                self.stats.frames_freed += 1;
                // Only advice: it never fills a lane that is slow.
                if (!self.lanes.mayRequest()) return;
            }
            const data: Carried = if (!msg.hasData())
                .nothing
            else if (slot) |number|
                .{ .slot = number }
            else
                .{ .page = self.stagedCopy(msg.page) };
            self.staged[self.staged_count] = .{ .to = to, .msg = msg, .data = data };
            self.staged_count += 1;
        }

        /// The page's bytes now; one copy serves every send of this page in this step.
        fn stagedCopy(self: *Self, page: u32) u8 {
            for (self.staged[0..self.staged_count]) |s| {
                if (s.data == .page and s.msg.page == page) return s.data.page;
            }
            std.debug.assert(self.staged_page_count < staged_pages_max);
            const at = self.staged_page_count;
            self.staged_page_count += 1;
            @memcpy(&self.staged_pages[at], self.ram.pageBytes(page));
            return at;
        }

        /// A page became a replica here: twin it, and tell the core of its next-level tables.
        fn adopt(self: *Self, page: u32, level: u8, agreed: *const PageBytes) void {
            self.scanned = null;
            self.replicas.add(page, level, self.ram.pageBytes(page), agreed) catch {
                self.env.fatal("no memory for the twin of a page-table page", .{});
            };
            self.stats.replicated_pages = self.replicas.list.items.len;
            self.stats.page_table_transfers += 1;
            if (level < 2) return;
            const twin = self.replicas.list.items[self.replicas.list.items.len - 1].twin;
            const first: usize = if (level == 4) types.kernel_half_first else 0;
            for (first..replicas_file.entries_per_page) |i| {
                const child = self.childOf(twin[i], level) orelse continue;
                // Later, as steps of their own: a table has more children than one step may send.
                self.children.append(self.allocator, .{
                    .child = .{
                        .parent = page,
                        .index = @intCast(i),
                        .page = child,
                        .level = level - 1,
                    },
                }) catch self.env.fatal("no memory for page-table children", .{});
            }
        }

        /// Whether the agreed content of the parent still points at the child.
        fn stillLinked(self: *const Self, event: types.Event) bool {
            const c = event.child;
            const at = self.replicas.find(c.parent) orelse return false;
            const r = self.replicas.list.items[at];
            return self.childOf(r.twin[c.index], r.level) == c.page;
        }

        /// The next-level table an entry points at, if it is one and lies in RAM.
        fn childOf(self: *const Self, entry: u64, level: u8) ?u32 {
            if (level < 2 or entry & entry_present == 0) return null;
            if (level < 4 and entry & entry_large != 0) return null;
            return self.ram.pageOf(entry & entry_address);
        }

        fn patch(self: *Self, page: u32, index: u16, old: u64, new: u64) void {
            self.stats.replica_entries += 1;
            switch (self.replicas.patch(page, index, old, new)) {
                .applied => {},
                .conflict => {
                    self.stats.replica_conflicts += 1;
                    self.env.fatal(
                        "replica_conflict: entry {d} of page table 0x{x} changed on two nodes " ++
                            "at once",
                        .{ index, self.ram.gpaOf(page) },
                    );
                },
                .unknown => self.refused("patch of a page that is no replica", page),
            }
        }

        /// The vCPUs' state if none of them can be storing now: each is outside the guest, or in a
        /// fault this shard has not ended.
        fn stillness(self: *Self) ?Stillness {
            var entries: u64 = 0;
            var index: usize = 0;
            while (self.handler.inboxes(self.handler.context, index)) |inbox| : (index += 1) {
                // seq_cst, as the vCPU counts before it sets its mode: a running one is never
                // missed.
                const running = inbox.mode.load(.seq_cst) == Inbox.guest_mode;
                const tid: u32 = @bitCast(inbox.tid.load(.acquire));
                const blocked = self.faults_hold and self.faults.isWaiting(tid);
                if (running and !blocked) return null;
                entries +%= inbox.entries.load(.seq_cst);
            }
            return .{ .entries = entries, .wakes = self.faults.wakes };
        }

        /// Sends every change of a replicated page table that peers have not been told. With all
        /// vCPUs at rest since the last scan there can be none.
        fn scan(self: *Self) void {
            if (self.replicas.list.items.len == 0) return;
            const before_scan = self.stillness();
            if (before_scan != null and self.scanned != null and
                std.meta.eql(before_scan.?, self.scanned.?)) return;
            self.stats.replica_scans += 1;
            self.scanned = null;
            while (true) {
                const staged_before = self.staged_count;
                self.scanAll();
                // What follows from a change carries pages protected since: behind a scan of its
                // own.
                if (self.staged_count == staged_before) break;
            }
            // Still the same afterwards: nobody ran during the scan either.
            const after_scan = self.stillness() orelse return;
            const rested = before_scan != null and std.meta.eql(before_scan.?, after_scan);
            if (rested) self.scanned = after_scan;
        }

        fn scanAll(self: *Self) void {
            var cursor: Replicas.Cursor = .{};
            while (self.replicas.next(&cursor)) |change| {
                self.stats.replica_diffs += 1;
                const before = self.replicas.list.items.len;
                const first = self.staged_count;
                self.stepCore(.{ .replica_changed = .{
                    .page = change.page,
                    .index = change.index,
                    .old = change.old,
                    .new = change.new,
                    .old_child = self.childOf(change.old, change.level),
                    .new_child = self.childOf(change.new, change.level),
                } }, null);
                self.sendTableWords(first);
                // A removal moves replicas under the cursor.
                if (self.replicas.list.items.len != before) cursor = .{};
            }
        }

        /// Of what was staged since `first`: word of page tables leaves now, the rest stays staged.
        fn sendTableWords(self: *Self, first: usize) void {
            var kept = first;
            for (self.staged[first..self.staged_count]) |s| {
                if (s.msg.isTableWord()) {
                    self.sendMessage(s.to, s.msg, null);
                    continue;
                }
                self.staged[kept] = s;
                kept += 1;
            }
            self.staged_count = kept;
        }

        /// The kernel refused what the protocol's invariants allow: page state is no longer known.
        fn refused(self: *Self, what: []const u8, page: u32) noreturn {
            var buffer: [160]u8 = undefined;
            var w: std.Io.Writer = .fixed(&buffer);
            const words = .{ what, sys.last_errno };
            w.print("{s} failed (errno {d}), its state is unknown", words) catch unreachable;
            self.pageLost(page, w.buffered());
        }

        fn cannotGoOn(self: *Self, page: u32, code: u32) noreturn {
            if (code == types.fatal_page_lost)
                self.pageLost(page, "every memory node that had it is gone");
            self.env.fatal("page 0x{x}: the nodes' copies cannot be reconciled (code {d})", .{
                self.ram.gpaOf(page), code,
            });
        }

        fn pageLost(self: *Self, page: u32, why: []const u8) noreturn {
            const gpa = self.ram.gpaOf(page);
            self.handler.page_lost(self.handler.context, gpa, why);
            const node = self.core_config.node;
            self.env.fatal("page_lost: page 0x{x} on node {d}: {s}", .{ gpa, node, why });
        }
    };
}
