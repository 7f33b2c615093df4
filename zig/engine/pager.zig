//! The shard: one userfaultfd, one thread, its page states and its lane to every peer. It turns
//! faults and messages into events of the coherence core and executes the core's actions. Nothing
//! else changes or copies guest pages, and this thread touches guest RAM only where it cannot
//! fault: pages it has just write-protected, and replicas. It needs no vCPU thread and changes no
//! memory slot.
//!
//! Order of one step: memory actions as given (protect, copy out, drop), then the scan of
//! replicated page tables with their diffs, then the sends. So whatever a peer learns, it learns
//! after the page-table entries it may depend on.

const std = @import("std");
const linux = std.os.linux;
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const last_words = @import("../base/last_words.zig");
const types = @import("../dsm/types.zig");
const core_file = @import("../dsm/core.zig");
const Core = core_file.Core;
const Actions = core_file.Actions;
const Memory = @import("../dsm/page_array.zig").Memory;
const Lanes = @import("lanes.zig").Lanes;
const frame = @import("../transport/frame.zig");
const Gate = @import("gate.zig").Gate;
const Inbox = @import("inbox.zig").Inbox;
const Ram = @import("../memory/ram.zig").Ram;
const uffd_api = @import("../base/uffd_api.zig");
const Uffd = @import("../memory/uffd.zig").Uffd;
const Mailbox = @import("../memory/mailbox.zig").Mailbox;
const faults_file = @import("../memory/faults.zig");
const Faults = faults_file.Faults;
const pagemap = @import("../memory/pagemap.zig");
const Pagemap = pagemap.Pagemap;
const Mapping = pagemap.Mapping;
const replicas_file = @import("../memory/replicas.zig");
const Replicas = replicas_file.Replicas;

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
    /// A reset of all page state is done.
    reset_done: *const fn (context: *anyopaque) void,
    /// The inboxes of this node's vCPUs: who may be storing right now.
    inboxes: *const fn (context: *anyopaque, index: usize) ?*const Inbox,
};

/// Whether this node's vCPUs can have stored anything: a sum of their entries into the guest, valid
/// while none of them runs.
const Stillness = struct { entries: u64, wakes: u64 };

pub const Settings = struct {
    node: u8,
    node_count: u8,
    replicate: bool,
    hold_ns_max: u64,
    /// Longest time the shard polls before it sleeps; 0: it sleeps at once.
    poll_ns_max: u64,
    peer_timeout_ns: u64,
    service_priority: u32,
};

pub const Error = error{ SystemCall, OutOfMemory, ThreadFailed };

/// True on the shard's own thread.
threadlocal var on_shard: bool = false;

/// Every action of a step can be a send, and the scan before it leaves adds the few that follow
/// from changed page tables.
const staged_max = 2 * Actions.capacity;
const staged_pages_max = 32;

const Staged = struct { to: u8, msg: types.Msg, data: ?u8 };

pub const Pager = struct {
    allocator: std.mem.Allocator,
    settings: Settings,
    ram: *Ram,
    uffd: Uffd,
    core: Core,
    core_config: core_file.Config,
    homes: [abi.ram_ranges_max]core_file.HomeRange,
    replicas: Replicas,
    faults: Faults,
    mailbox: *Mailbox,
    lanes: Lanes,
    handler: Handler,
    stats: *abi.EngineStats,
    /// Times each page came from another node: what `--report` lists.
    transfers: []u16,
    /// Page tables found below a new replica, not yet told to the core.
    children: std.ArrayList(types.Event) = .empty,
    /// A vCPU whose fault this shard has seen stays in it until it is woken. Since Linux 6.2 KVM
    /// leaves a fault for a signal (and the guest may take an interrupt before it faults again), so
    /// there a fault seen says nothing about now.
    faults_hold: bool,
    /// State of the vCPUs at the last full scan that found them all at rest.
    scanned: ?Stillness = null,
    /// More than two nodes: what waits for acknowledgements of diffs.
    gate: Gate,
    staged: [staged_max]Staged = undefined,
    staged_count: usize = 0,
    staged_pages: *[staged_pages_max]PageBytes,
    staged_page_count: u8 = 0,
    stopping: std.atomic.Value(bool) = .init(false),
    thread: ?std.Thread = null,

    pub fn create(
        allocator: std.mem.Allocator,
        ram: *Ram,
        settings: Settings,
        handler: Handler,
        stats: *abi.EngineStats,
    ) Error!*Pager {
        const self = try allocator.create(Pager);
        errdefer allocator.destroy(self);
        const mailbox = try allocator.create(Mailbox);
        errdefer allocator.destroy(mailbox);
        mailbox.* = .{ .eventfd = try sys.eventfd() };
        errdefer sys.close(mailbox.eventfd);
        const transfers = try Memory.kernel.alloc(u16, ram.pageCount());
        errdefer Memory.kernel.free(u16, transfers);
        const pages = try allocator.create([staged_pages_max]PageBytes);
        errdefer allocator.destroy(pages);
        self.* = .{
            .allocator = allocator,
            .settings = settings,
            .ram = ram,
            .uffd = undefined,
            .core = undefined,
            .core_config = undefined,
            .homes = undefined,
            .replicas = .{ .allocator = allocator },
            .gate = .{ .allocator = allocator },
            .faults = .{ .stats = stats },
            .mailbox = mailbox,
            .lanes = .{
                .own = settings.node,
                .peer_timeout_ns = settings.peer_timeout_ns,
                .stats = stats,
                .observer = .{
                    .context = handler.context,
                    .lost = handler.lost,
                    .noticed = handler.noticed,
                },
            },
            .handler = handler,
            .stats = stats,
            .transfers = transfers,
            .staged_pages = pages,
            .faults_hold = sys.kernelBefore(6, 2),
        };
        self.core_config = .{
            .node = settings.node,
            .node_count = settings.node_count,
            .page_count = ram.pageCount(),
            .home = self.homeRanges(),
            .replicate = settings.replicate,
            .hold_ns_max = settings.hold_ns_max,
            .threads = faults_file.threads_max,
            .page_memory = .kernel,
        };
        self.core = try Core.init(allocator, self.core_config);
        errdefer self.core.deinit();
        self.uffd = try Uffd.open(ram.memory);
        return self;
    }

    fn homeRanges(self: *Pager) []const core_file.HomeRange {
        for (self.ram.ranges[0..self.ram.range_count], 0..) |r, i| {
            self.homes[i] = .{
                .first_page = @intCast(self.ram.offsets[i] / page_size),
                .node = @intCast(r.node),
            };
        }
        return self.homes[0..self.ram.range_count];
    }

    pub fn start(self: *Pager) Error!void {
        const old = sys.blockSignals();
        defer sys.restoreSignals(old);
        self.thread = std.Thread.spawn(.{}, run, .{self}) catch return error.ThreadFailed;
    }

    /// Any thread: a span message to the nodes of the mask, in order with this node's other sends.
    pub fn post(self: *Pager, nodes: u32, payload: []const u8) void {
        // The shard itself (an interrupt that follows from a message) must not wait for its own
        // box.
        if (on_shard) return self.sendSpan(nodes, payload);
        self.mailbox.post(nodes, 0, payload);
    }

    fn sendSpan(self: *Pager, nodes: u32, payload: []const u8) void {
        self.scan();
        self.sendStaged();
        var rest = nodes;
        while (rest != 0) : (rest &= rest - 1) {
            self.queueInOrder(@intCast(@ctz(rest)), frame.Kind.span, &.{payload});
        }
    }

    /// The pages that came from other nodes most often, most first. Read while the shard counts on:
    /// a statistic.
    pub fn hottest(self: *const Pager, out: []abi.HotPage) u32 {
        var count: usize = 0;
        for (self.transfers, 0..) |times, page| {
            if (times == 0) continue;
            var at = count;
            while (at > 0 and out[at - 1].transfers < times) at -= 1;
            if (at == out.len) continue;
            const end = @min(count, out.len - 1);
            std.mem.copyBackwards(abi.HotPage, out[at + 1 .. end + 1], out[at..end]);
            out[at] = .{ .gpa = self.ram.gpaOf(@intCast(page)), .transfers = times };
            count = @min(count + 1, out.len);
        }
        return @intCast(count);
    }

    pub fn command(self: *Pager, which: u8, argument: u64) void {
        self.mailbox.post(0, which, std.mem.asBytes(&argument));
    }

    fn run(self: *Pager) void {
        on_shard = true;
        _ = sys.setFifoPriority(self.settings.service_priority);
        while (!self.stopping.load(.acquire)) {
            self.wait();
            self.turn();
        }
    }

    /// All that is there to do now. Shard thread, or the one that has joined it.
    pub fn turn(self: *Pager) void {
        if (self.lanes.mayRequest()) self.takeFaults();
        self.takePosts();
        for (0..self.settings.node_count) |node| self.takeFrames(@intCast(node));
        self.onTime();
        self.lanes.flush();
    }

    /// Ends the shard's thread. No thread may be in a fault, nor have one after this.
    pub fn join(self: *Pager) void {
        const thread = self.thread orelse return;
        self.command(Command.stop, 0);
        thread.join();
        self.thread = null;
    }

    /// After join(). The guest's memory loses its faults: nothing may use it any more.
    pub fn destroy(self: *Pager) void {
        std.debug.assert(self.thread == null);
        sys.close(self.uffd.fd);
        self.core.deinit();
        self.replicas.deinit();
        self.gate.deinit();
        self.children.deinit(self.allocator);
        sys.close(self.mailbox.eventfd);
        self.allocator.destroy(self.mailbox);
        Memory.kernel.free(u16, self.transfers);
        self.allocator.destroy(self.staged_pages);
        self.allocator.destroy(self);
    }

    /// Nothing is in flight here: no fault, no transaction, nothing put aside or held.
    pub fn isQuiet(self: *const Pager) bool {
        const core = &self.core;
        return core.pending.free_count == core.pending.items.len and
            core.txns.free_count == core.txns.items.len and
            core.holds.deferred_count == 0 and self.gate.isEmpty();
    }

    /// The first page that the kernel maps in another way than the core thinks; null: none. Shard
    /// thread, or the one that has joined it.
    pub fn audit(self: *const Pager) sys.Error!?u32 {
        const map = try Pagemap.open();
        defer map.close();
        var entries: [512]u64 = undefined;
        var page: u32 = 0;
        while (page < self.ram.pageCount()) {
            const count = @min(entries.len, self.ram.pageCount() - page);
            const first = @intFromPtr(self.ram.memory.ptr) + @as(usize, page) * page_size;
            try map.read(first, entries[0..count]);
            for (entries[0..count]) |entry| {
                const expected: Mapping = switch (self.core.access(page)) {
                    .invalid => .absent,
                    .shared => .protected,
                    .exclusive, .replicated => .writable,
                };
                if (pagemap.mappingOf(entry) != expected) return page;
                page += 1;
            }
        }
        return null;
    }

    fn wait(self: *Pager) void {
        var fds: [2 + abi.nodes_max]linux.pollfd = undefined;
        fds[0] = .{ .fd = self.uffd.fd, .events = linux.POLL.IN, .revents = 0 };
        fds[1] = .{ .fd = self.mailbox.eventfd, .events = linux.POLL.IN, .revents = 0 };
        const n = 2 + self.lanes.poll(fds[2..]);
        // Faults that must wait would only end the sleep again and again.
        if (!self.lanes.mayRequest()) fds[0].events = 0;
        const before = sys.monotonicNs();
        var timeout_ns = self.lanes.deadline(before) -| before;
        if (self.core.nextDeadline()) |deadline| {
            timeout_ns = @min(timeout_ns, deadline -| sys.monotonicNs());
        }
        if (!self.spin(fds[0..n], timeout_ns)) {
            var timeout: linux.timespec = .{
                .sec = @intCast(timeout_ns / std.time.ns_per_s),
                .nsec = @intCast(timeout_ns % std.time.ns_per_s),
            };
            _ = linux.ppoll(&fds, n, &timeout, null);
        }
        if (fds[1].revents != 0) sys.eventfdDrain(self.mailbox.eventfd);
    }

    /// Polls for up to `poll_ns_max` before the thread sleeps, since what comes next often comes
    /// soon and a wake costs more than the page. True: something is there, or a deadline is.
    fn spin(self: *Pager, fds: []linux.pollfd, timeout_ns: u64) bool {
        if (self.settings.poll_ns_max == 0) return false;
        const began = sys.monotonicNs();
        while (true) {
            var none: linux.timespec = .{ .sec = 0, .nsec = 0 };
            const r = linux.ppoll(fds.ptr, @intCast(fds.len), &none, null);
            if (linux.errno(r) == .SUCCESS and r > 0) return true;
            const spent = sys.monotonicNs() - began;
            if (spent >= timeout_ns) return true;
            if (spent >= self.settings.poll_ns_max) return false;
        }
    }

    fn takeFaults(self: *Pager) void {
        var messages: [16]uffd_api.Message = undefined;
        const n = self.uffd.read(&messages);
        for (messages[0..n]) |m| {
            std.debug.assert(m.event == uffd_api.event_pagefault);
            const now = sys.monotonicNs();
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

    fn takePosts(self: *Pager) void {
        while (self.lanes.mayRequest()) {
            const p = self.mailbox.take() orelse return;
            if (p.nodes == 0) {
                self.obey(p.kind, std.mem.readInt(u64, p.payload[0..8], .little));
                continue;
            }
            self.sendSpan(p.nodes, p.bytes());
        }
    }

    fn obey(self: *Pager, which: u8, argument: u64) void {
        switch (which) {
            Command.root => {
                const page = self.ram.pageOf(argument) orelse return;
                if (self.settings.replicate) self.step(.{ .root = .{ .page = page } }, null);
            },
            Command.reset => self.resetPages(),
            Command.stop => self.stopping.store(true, .release),
            else => unreachable,
        }
    }

    /// Every vCPU of every node is parked and no transaction is open: back to "nobody has touched
    /// anything".
    fn resetPages(self: *Pager) void {
        self.uffd.dropRange(0, self.ram.pageCount()) catch self.refused("drop all", 0);
        self.replicas.clear();
        self.gate.clear();
        self.scanned = null;
        self.core.deinit();
        self.core = Core.init(self.allocator, self.core_config) catch {
            last_words.fatal("no memory for page states at reset", .{});
        };
        self.handler.reset_done(self.handler.context);
    }

    fn takeFrames(self: *Pager, node: u8) void {
        const lane = self.lanes.receive(node) orelse return;
        while (self.lanes.next(node, lane)) |f| {
            self.onFrame(node, f.kind, f.payload) catch |e| {
                return self.lanes.lose(node, @errorName(e));
            };
            if (self.lanes.all[node] == null) return;
        }
    }

    fn onFrame(self: *Pager, from: u8, kind: frame.Kind, payload: []const u8) !void {
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
                    self.transfers[msg.page] +|= 1;
                }
                const invalidate = msg.kind == @backingInt(types.MsgKind.invalidate);
                self.stats.invalidations += @intFromBool(invalidate);
                const now = sys.monotonicNs();
                self.step(.{ .message = .{ .from = from, .msg = msg, .now = now } }, data);
                self.openGate();
            },
            .span => self.handler.receive(self.handler.context, from, payload),
            .ping => self.queue(from, frame.Kind.pong, &.{payload}),
            .pong => {},
            .bye => self.lanes.lose(from, "the peer said goodbye"),
            .ack, .@"resume", .clock, _ => return error.ProtocolViolated,
        }
    }

    fn onTime(self: *Pager) void {
        const now = sys.monotonicNs();
        _ = self.faults.oldest(now);
        if (self.core.nextDeadline()) |deadline| {
            if (now >= deadline) self.step(.{ .tick = .{ .now = now } }, null);
        }
        self.lanes.onTime(now);
    }

    fn queue(self: *Pager, to: u8, kind: frame.Kind, parts: []const []const u8) void {
        if (self.lanes.queue(to, kind, parts) and kind == .protocol) self.stats.messages_sent += 1;
    }

    /// One event through the core: memory actions, scan, sends.
    fn step(self: *Pager, event: types.Event, data: ?*const PageBytes) void {
        var out: Actions = .empty;
        self.core.step(event, &out);
        self.stats.revokes_deferred = self.core.stats.revokes_deferred;
        self.perform(out.slice(), data);
        self.release();
        while (self.children.pop()) |child| {
            // A scan since may have found the entry changed: then that event was the newer word.
            if (!self.stillLinked(child)) continue;
            out = .empty;
            self.core.step(child, &out);
            self.perform(out.slice(), null);
            self.release();
        }
    }

    /// Sends what perform() staged, after the diffs it may depend on.
    fn release(self: *Pager) void {
        for (self.staged[0..self.staged_count]) |s| {
            if (s.msg.tells()) {
                self.scan();
                break;
            }
        }
        self.sendStaged();
    }

    fn sendStaged(self: *Pager) void {
        for (self.staged[0..self.staged_count]) |s| {
            const data = if (s.data) |slot| &self.staged_pages[slot] else null;
            self.sendMessage(s.to, s.msg, data);
        }
        self.staged_count = 0;
        self.staged_page_count = 0;
    }

    fn sendMessage(self: *Pager, to: u8, msg: types.Msg, data: ?*const PageBytes) void {
        const head = std.mem.asBytes(&msg);
        if (msg.isTableWord()) return self.queue(to, frame.Kind.protocol, &.{head});
        if (data) |bytes| {
            self.stats.pages_sent += 1;
            self.queueInOrder(to, frame.Kind.protocol, &.{ head, bytes });
        } else self.queueInOrder(to, frame.Kind.protocol, &.{head});
    }

    /// Behind whatever waits for peers to take this node's page-table entries.
    fn queueInOrder(self: *Pager, to: u8, kind: frame.Kind, parts: []const []const u8) void {
        const sequence = self.core.gate();
        if (self.gate.isEmpty() and self.core.gatePassed(sequence)) {
            return self.queue(to, kind, parts);
        }
        self.gate.hold(to, kind, sequence, parts) catch {
            last_words.fatal("no memory for messages that wait for page-table entries", .{});
        };
    }

    fn openGate(self: *Pager) void {
        while (self.gate.first()) |held| {
            if (!self.core.gatePassed(held.sequence)) return;
            self.queue(held.to, held.kind, &.{held.bytes});
            self.gate.pass();
        }
    }

    /// Executes memory actions in order and stages sends, copying the pages they carry.
    fn perform(self: *Pager, actions: []const types.Action, data: ?*const PageBytes) void {
        for (actions) |action| switch (action) {
            .install => |i| self.install(i.page, i.access, i.source, i.wake, data),
            .protect => |page| self.uffd.protect(page) catch self.refused("protect", page),
            .unprotect => |page| {
                self.uffd.unprotect(page) catch self.refused("unprotect", page);
                self.woken(page);
            },
            .drop => |page| self.uffd.drop(page) catch self.refused("drop", page),
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
            // slots_max and discards_max are 0: nothing is evicted or discarded.
            .save, .keep, .discarded => unreachable,
            .send => |s| self.stage(s.to, s.msg),
            .fatal => |f| last_words.fatal(
                "page 0x{x}: the nodes' copies cannot be reconciled (code {d})",
                .{ self.ram.gpaOf(f.page), f.code },
            ),
        };
    }

    fn install(
        self: *Pager,
        page: u32,
        access: types.Access,
        source: types.Source,
        wakes: bool,
        data: ?*const PageBytes,
    ) void {
        const bytes = contentOf(source, data) orelse {
            return self.refused("install without content", page);
        };
        const result = self.uffd.copy(page, bytes, access == .shared, wakes);
        const installed = result catch return self.refused("install", page);
        // The core installs only where nothing is mapped: anything there would be a second truth.
        if (installed == .existed) self.refused("install over a present page", page);
        if (wakes) self.woken(page);
    }

    fn contentOf(source: types.Source, data: ?*const PageBytes) ?*const PageBytes {
        return switch (source) {
            .zero => &zero_page,
            .slot => unreachable,
            .message => data,
        };
    }

    /// The page's waiters run on.
    fn woken(self: *Pager, page: u32) void {
        _ = self.faults.woken(page, sys.monotonicNs());
    }

    fn stage(self: *Pager, to: u8, msg: types.Msg) void {
        std.debug.assert(self.staged_count < staged_max);
        var slot: ?u8 = null;
        if (msg.hasData()) {
            slot = self.stagedCopy(msg.page);
        }
        self.staged[self.staged_count] = .{ .to = to, .msg = msg, .data = slot };
        self.staged_count += 1;
    }

    /// The page's bytes now; one copy serves every send of this page in this step.
    fn stagedCopy(self: *Pager, page: u32) u8 {
        for (self.staged[0..self.staged_count]) |s| {
            if (s.data != null and s.msg.page == page) return s.data.?;
        }
        std.debug.assert(self.staged_page_count < staged_pages_max);
        const slot = self.staged_page_count;
        self.staged_page_count += 1;
        @memcpy(&self.staged_pages[slot], self.ram.pageBytes(page));
        return slot;
    }

    /// A page became a replica here: twin it, and tell the core of its next-level tables.
    fn adopt(self: *Pager, page: u32, level: u8, agreed: *const PageBytes) void {
        self.scanned = null;
        self.replicas.add(page, level, self.ram.pageBytes(page), agreed) catch {
            last_words.fatal("no memory for the twin of a page-table page", .{});
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
            }) catch last_words.fatal("no memory for page-table children", .{});
        }
    }

    /// Whether the agreed content of the parent still points at the child.
    fn stillLinked(self: *const Pager, event: types.Event) bool {
        const c = event.child;
        const at = self.replicas.find(c.parent) orelse return false;
        const r = self.replicas.list.items[at];
        return self.childOf(r.twin[c.index], r.level) == c.page;
    }

    /// The next-level table an entry points at, if it is one and lies in RAM.
    fn childOf(self: *const Pager, entry: u64, level: u8) ?u32 {
        if (level < 2 or entry & entry_present == 0) return null;
        if (level < 4 and entry & entry_large != 0) return null;
        return self.ram.pageOf(entry & entry_address);
    }

    fn patch(self: *Pager, page: u32, index: u16, old: u64, new: u64) void {
        self.stats.replica_entries += 1;
        switch (self.replicas.patch(page, index, old, new)) {
            .applied => {},
            .conflict => {
                self.stats.replica_conflicts += 1;
                last_words.fatal(
                    "replica_conflict: entry {d} of page table 0x{x} changed on two nodes at once",
                    .{ index, self.ram.gpaOf(page) },
                );
            },
            .unknown => self.refused("patch of a page that is no replica", page),
        }
    }

    /// The vCPUs' state if none of them can be storing now: each is outside the guest, or in a
    /// fault this shard has not ended.
    fn stillness(self: *Pager) ?Stillness {
        var entries: u64 = 0;
        var index: usize = 0;
        while (self.handler.inboxes(self.handler.context, index)) |inbox| : (index += 1) {
            // seq_cst, as the vCPU counts before it sets its mode: a running one is never missed.
            const running = inbox.mode.load(.seq_cst) == Inbox.guest_mode;
            const tid: u32 = @bitCast(inbox.tid.load(.acquire));
            const blocked = self.faults_hold and self.faults.isWaiting(tid);
            if (running and !blocked) return null;
            entries +%= inbox.entries.load(.seq_cst);
        }
        return .{ .entries = entries, .wakes = self.faults.wakes };
    }

    /// Sends every change of a replicated page table that peers have not been told. With all vCPUs
    /// at rest since the last scan there can be none.
    fn scan(self: *Pager) void {
        if (self.replicas.list.items.len == 0) return;
        const before_scan = self.stillness();
        if (before_scan != null and self.scanned != null and
            std.meta.eql(before_scan.?, self.scanned.?)) return;
        self.stats.replica_scans += 1;
        self.scanned = null;
        while (true) {
            const staged_before = self.staged_count;
            self.scanAll();
            // What follows from a change carries pages protected since: behind a scan of its own.
            if (self.staged_count == staged_before) break;
        }
        // Still the same afterwards: nobody ran during the scan either.
        const after_scan = self.stillness() orelse return;
        const rested = before_scan != null and std.meta.eql(before_scan.?, after_scan);
        if (rested) self.scanned = after_scan;
    }

    fn scanAll(self: *Pager) void {
        var cursor: Replicas.Cursor = .{};
        while (self.replicas.next(&cursor)) |change| {
            self.stats.replica_diffs += 1;
            const before = self.replicas.list.items.len;
            var out: Actions = .empty;
            self.core.step(.{ .replica_changed = .{
                .page = change.page,
                .index = change.index,
                .old = change.old,
                .new = change.new,
                .old_child = self.childOf(change.old, change.level),
                .new_child = self.childOf(change.new, change.level),
            } }, &out);
            const first = self.staged_count;
            self.perform(out.slice(), null);
            self.sendTableWords(first);
            // A removal moves replicas under the cursor.
            if (self.replicas.list.items.len != before) cursor = .{};
        }
    }

    /// Of what was staged since `first`: word of page tables leaves now, the rest stays staged.
    fn sendTableWords(self: *Pager, first: usize) void {
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
    fn refused(self: *Pager, what: []const u8, page: u32) noreturn {
        last_words.fatal(
            "page_lost: {s} of page 0x{x} failed (errno {d}); its state is unknown",
            .{ what, self.ram.gpaOf(page), sys.last_errno },
        );
    }
};
