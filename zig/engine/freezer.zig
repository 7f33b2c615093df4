//! The freeze of the whole VM as this node carries it out, on its shard's thread: what counts as
//! trouble, who is out of the guest, the guest's clock, the messages (agreement: freeze.zig), the
//! words for the user. A frozen node serves its shard as always; its vCPUs park before their next
//! entry into the guest. None is waited for in a fault: until its page comes it executes nothing,
//! and then the kick that it has been sent ends its KVM_RUN.
//! Its messages pass by whatever waits for page-table entries: they tell nothing about memory.

const std = @import("std");
const sys = @import("../base/sys.zig");
const freeze = @import("freeze.zig");
const Inbox = @import("inbox.zig").Inbox;
const Shell = @import("pager.zig").Shell;
const readTsc = @import("clock.zig").readTsc;
const Engine = @import("../engine.zig").Engine;

/// How often a freezing shard looks whether its vCPUs are out.
const pace_ns = 2 * std.time.ns_per_ms;
/// After so long a vCPU that has not left counts as out: since Linux 6.2 a kick ends its fault, but
/// not one that KVM itself took on the guest's behalf.
const leave_ns_max = 100 * std.time.ns_per_ms;
/// Longest wait for this host's clock to pass what its guest has seen: more than two hosts' clocks
/// can disagree, but for a while after one of them has leapt (steering.zig).
const catch_up_ns_max = 10 * std.time.ns_per_ms;

const Why = enum(u8) {
    told = 0,
    unreachable_lane = 1,
    silent_lane = 2,
    page = 3,
    standstill = 4,
    _,
};

/// Why a freeze began, and by whose word.
const Cause = struct {
    why: Why,
    /// The node that does not answer.
    node: u8 = 0,
    waited_ns: u64 = 0,
    /// The node that says so.
    by: u8,
};

/// As span.zig's other messages: `op` first, 40 bytes.
pub const Wire = extern struct {
    op: u8,
    kind: u8,
    why: u8,
    node: u8,
    pad: u32 = 0,
    round: u64,
    sent: u64,
    ticks: u64,
    waited_ns: u64,
};

/// When a wait for pages is a stall: no wait of this node has ended for too long. Many threads that
/// queue for one page each wait long, and yet go on. A page that does not come for peer_timeout, of
/// nodes that all answer, is no reason any more: a frozen VM would not bring it.
const PageWatch = struct {
    stall_ns: u64,
    timeout_ns: u64,
    /// Waits that have ended, and when the last one did.
    wakes: u64 = 0,
    wakes_ns: u64 = 0,

    /// The stall, if it is one, given the age of the oldest fault.
    fn wait(self: *PageWatch, age_ns: u64, wakes: u64, now: u64) ?u64 {
        if (wakes != self.wakes) {
            self.wakes = wakes;
            self.wakes_ns = now;
        }
        const waited_ns = @min(age_ns, now -| self.wakes_ns);
        return if (waited_ns > self.stall_ns and age_ns <= self.timeout_ns) waited_ns else null;
    }
};

pub const Freezer = struct {
    engine: *Engine,
    shell: *Shell,
    op: u8,
    stall_ns: u64,
    machine: freeze.Machine,
    cause: Cause = .{ .why = .told, .by = 0 },
    /// Start of the freeze; what earlier ones lasted together.
    since_ns: u64 = 0,
    before_ns: u64 = 0,
    is_announced: bool = false,
    pages: PageWatch,

    pub fn init(engine: *Engine, shell: *Shell, op: u8) Freezer {
        const c = &engine.config;
        const stall_ns = @as(u64, c.stall_freeze_ms) * std.time.ns_per_ms;
        shell.lanes.watch.stall_ns = stall_ns;
        const late_ticks = @as(u128, stall_ns) * c.tsc_khz / std.time.ns_per_ms;
        return .{
            .engine = engine,
            .shell = shell,
            .op = op,
            .stall_ns = stall_ns,
            .pages = .{ .stall_ns = stall_ns, .timeout_ns = shell.lanes.peer_timeout_ns },
            .machine = .{
                .node = @intCast(c.node),
                .node_count = @intCast(@popCount(c.compute_nodes)),
                .late_ticks = @truncate(late_ticks),
            },
        };
    }

    /// Pager.Handler.on_time.
    pub fn onTime(self: *Freezer, now: u64) void {
        const cause = self.trouble(now);
        if (cause == null and !self.machine.is_frozen) return;
        if (self.engine.stopping()) return;
        if (cause) |c| {
            if (!self.machine.is_frozen) self.cause = c else self.addCause(c);
        }
        var out: freeze.Actions = .{};
        self.machine.look(.{
            .in_trouble = cause != null,
            .is_still = self.machine.is_frozen and self.isStill(now),
            .now = self.guestTsc(),
        }, &out);
        self.perform(&out, now, self.machine.node);
        if (self.machine.is_frozen) self.count(now);
    }

    /// A message of another node's freezer.
    pub fn receive(self: *Freezer, from: u8, wire: Wire) void {
        const kind: freeze.Kind = @fromBackingInt(wire.kind);
        if (!self.machine.is_frozen) {
            self.cause = .{ .why = .told, .by = from };
            if (kind == .freeze) self.cause = .{
                .why = @fromBackingInt(wire.why),
                .node = wire.node,
                .waited_ns = wire.waited_ns,
                .by = from,
            };
        }
        var out: freeze.Actions = .{};
        self.machine.receive(from, .{
            .kind = kind,
            .round = wire.round,
            .sent = wire.sent,
            .ticks = wire.ticks,
        }, self.guestTsc(), &out);
        self.perform(&out, sys.monotonicNs(), from);
    }

    fn guestTsc(self: *const Freezer) u64 {
        return readTsc() +% self.engine.clock.tscOffset();
    }

    /// What keeps this node waiting for another one, if it does for too long.
    fn trouble(self: *Freezer, now: u64) ?Cause {
        if (self.stall_ns == 0) return null;
        const watch = &self.shell.lanes.watch;
        const by = self.machine.node;
        if (watch.stood_ns != 0) {
            defer watch.stood_ns = 0;
            return .{ .why = .standstill, .waited_ns = watch.stood_ns, .by = by };
        }
        if (watch.worst(now)) |lane| {
            const why: Why = if (lane.what == .silent) .silent_lane else .unreachable_lane;
            return .{ .why = why, .node = lane.node, .waited_ns = now - lane.since_ns, .by = by };
        }
        const faults = &self.shell.faults;
        const age_ns = self.engine.shared.stats.oldest_fault_ns;
        const waited_ns = self.pages.wait(age_ns, faults.wakes, now) orelse return null;
        return .{ .why = .page, .waited_ns = waited_ns, .by = by };
    }

    fn isStill(self: *const Freezer, now: u64) bool {
        return now -| self.since_ns > leave_ns_max or self.isOut();
    }

    /// Whether no vCPU executes guest code. One outside the guest cannot enter it while the parking
    /// is closed.
    pub fn isOut(self: *const Freezer) bool {
        for (self.engine.vcpus) |*v| {
            if (v.inbox.mode.load(.seq_cst) != Inbox.guest_mode) continue;
            const tid: u32 = @bitCast(v.inbox.tid.load(.acquire));
            if (self.shell.faults_hold and self.shell.faults.isWaiting(tid)) continue;
            return false;
        }
        return true;
    }

    fn perform(self: *Freezer, out: *const freeze.Actions, now: u64, from: u8) void {
        for (out.slice()) |action| switch (action) {
            .freeze => self.begin(now),
            .subtract => |ticks| self.engine.clock.subtract(ticks),
            .thaw => |thaw| self.end(thaw, now),
            .send => |s| self.send(s.to, s.message),
            .violated => |why| self.engine.span.?.hostile(from, why),
        };
    }

    fn send(self: *Freezer, nodes: u64, message: freeze.Message) void {
        const wire: Wire = .{
            .op = self.op,
            .kind = @backingInt(message.kind),
            .why = @backingInt(self.cause.why),
            .node = self.cause.node,
            .round = message.round,
            .sent = message.sent,
            .ticks = message.ticks,
            .waited_ns = self.cause.waited_ns,
        };
        self.shell.sendAtOnce(nodes, &.{std.mem.asBytes(&wire)});
    }

    fn begin(self: *Freezer, now: u64) void {
        self.engine.clock.hold();
        self.engine.parking.hold(.freeze);
        self.engine.kickAll();
        self.since_ns = now;
        self.shell.lanes.watch.pace_ns = pace_ns;
        self.engine.shared.stats.freezes += 1;
        const own = self.machine.node;
        // One line a node in trouble, and one of the leader for those who see only its words.
        self.is_announced = self.cause.by == own or own == freeze.leader;
        if (self.is_announced) self.announce(self.cause);
    }

    fn end(self: *Freezer, thaw: freeze.Action.Thaw, now: u64) void {
        self.engine.clock.subtract(thaw.ticks);
        self.awaitSeen(thaw.seen, now);
        self.engine.clock.release();
        // Last: a vCPU that finds it open finds the new clock too.
        self.engine.parking.release(.freeze);
        self.count(now);
        self.before_ns = self.engine.shared.stats.frozen_ns;
        self.shell.lanes.watch.pace_ns = 0;
        if (!self.is_announced) return;
        const lasted = tenths(now -| self.since_ns);
        self.notice("node {d} went on after {d}.{d} s", .{self.machine.node} ++ lasted);
    }

    /// Two hosts agree on the time within half a round trip: where this one is behind, its guest
    /// must not see that.
    fn awaitSeen(self: *const Freezer, seen: u64, now: u64) void {
        while (freeze.isAfter(seen, self.guestTsc())) {
            if (sys.monotonicNs() -| now > catch_up_ns_max) return;
            std.atomic.spinLoopHint();
        }
    }

    fn count(self: *Freezer, now: u64) void {
        const watch = &self.shell.lanes.watch;
        if (self.machine.seen != null) watch.pace_ns = 0;
        const lasted = now -| self.since_ns;
        const stats = &self.engine.shared.stats;
        stats.frozen_ns = self.before_ns + lasted;
        stats.frozen_ns_max = @max(stats.frozen_ns_max, lasted);
    }

    /// Frozen by another node's word, and now in trouble itself: worth a line of its own.
    fn addCause(self: *Freezer, cause: Cause) void {
        if (self.is_announced) return;
        self.is_announced = true;
        self.announce(cause);
    }

    fn announce(self: *Freezer, c: Cause) void {
        const time = tenths(c.waited_ns);
        const peer = .{c.node} ++ time;
        var buffer: [120]u8 = undefined;
        var w: std.Io.Writer = .fixed(&buffer);
        const written = switch (c.why) {
            .unreachable_lane => w.print("node {d} cannot be reached since {d}.{d} s", peer),
            .silent_lane => w.print("node {d} does not answer since {d}.{d} s", peer),
            .page => w.print("no page has come since {d}.{d} s", time),
            .standstill => w.print("its engine stood still for {d}.{d} s", time),
            .told, _ => w.writeAll("it has to wait"),
        };
        written catch unreachable;
        const own = self.machine.node;
        if (c.by == own) return self.notice("node {d} frozen: {s}", .{ own, w.buffered() });
        self.notice("node {d} frozen: node {d} says: {s}", .{ own, c.by, w.buffered() });
    }

    fn notice(self: *Freezer, comptime format: []const u8, arguments: anytype) void {
        var buffer: [200]u8 = undefined;
        var w: std.Io.Writer = .fixed(&buffer);
        w.print(format, arguments) catch unreachable;
        self.engine.events.notice(w.buffered());
    }
};

fn tenths(ns: u64) struct { u64, u64 } {
    const all = ns / (100 * std.time.ns_per_ms);
    return .{ all / 10, all % 10 };
}

comptime {
    std.debug.assert(@sizeOf(Wire) == 40);
}

test "pages stall when none comes for too long, but not for ever" {
    const expectEqual = std.testing.expectEqual;
    var pages: PageWatch = .{ .stall_ns = 300, .timeout_ns = 5000 };
    try expectEqual(null, pages.wait(0, 1, 10_000));
    try expectEqual(null, pages.wait(300, 1, 10_300));
    try expectEqual(@as(?u64, 301), pages.wait(301, 1, 10_301));
    // Others got theirs: the oldest one queues.
    try expectEqual(null, pages.wait(400, 2, 10_400));
    try expectEqual(null, pages.wait(700, 2, 10_700));
    try expectEqual(@as(?u64, 301), pages.wait(701, 2, 10_701));
    // A fault younger than the last wake.
    try expectEqual(null, pages.wait(200, 2, 20_000));
    try expectEqual(null, pages.wait(5001, 2, 30_000));
}

test "tenths of seconds" {
    try std.testing.expectEqual(.{ 12, 3 }, tenths(12_399 * std.time.ns_per_ms));
}
