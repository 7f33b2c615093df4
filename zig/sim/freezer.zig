//! A node's part in freezes of the whole VM: the production agreement (engine/freeze.zig) and lane
//! watch over the production lanes, with vCPUs and guest clocks of the simulator. As in
//! engine/freezer.zig, messages pass by whatever waits for page-table entries, and vCPUs are kicked
//! out of the guest, or of faults where the kernel lets a signal end them.
//! Checked: all nodes take the same ticks off in the same rounds, and all go on (rest.zig); no
//! guest sees its clock go back, nor one behind what any other has seen (cluster.zig).

const std = @import("std");
const freeze = @import("../engine/freeze.zig");
const Mode = @import("../engine/inbox.zig").Mode;
const cluster_file = @import("cluster.zig");
const Cluster = cluster_file.Cluster;
const Machine = cluster_file.Machine;
const finding = @import("finding.zig");

const us = std.time.ns_per_us;
const ms = std.time.ns_per_ms;

/// How often a freezing shard looks whether its vCPUs are out (engine/freezer.zig).
const pace_ns = 2 * ms;

/// A span message; its number is apart from those of other spans.
pub const Wire = extern struct {
    op: u32 = @backingInt(cluster_file.SpanOp.freeze),
    kind: u32,
    round: u64,
    sent: u64,
    ticks: u64,
};

pub const Freezer = struct {
    cluster: *Cluster,
    /// Of a lane or a shard that stands still; 0: nothing ever freezes.
    stall_ns: u64,
    machine: freeze.Machine,
    /// Ticks taken off by each round so far.
    rounds: std.ArrayList(u64) = .empty,

    pub fn init(cluster: *Cluster, node: u8) Freezer {
        const stall_ns = @as(u64, cluster.config.stall_ms) * ms;
        return .{
            .cluster = cluster,
            .stall_ns = stall_ns,
            // The guest's clock ticks each nanosecond.
            .machine = .{
                .node = node,
                .node_count = cluster.config.nodes,
                .late_ticks = stall_ns,
            },
        };
    }

    fn host(self: *const Freezer) *Machine {
        return &self.cluster.machines[self.machine.node];
    }

    /// The end of each turn of the shard.
    pub fn onTime(self: *Freezer, shell: anytype, now: u64) void {
        if (self.stall_ns == 0 or self.host().has_ended) return;
        const watch = &shell.lanes.kind.real.watch;
        const in_trouble = watch.stood_ns != 0 or watch.worst(now) != null;
        watch.stood_ns = 0;
        if (!in_trouble and !self.machine.is_frozen) return;
        if (self.machine.is_frozen) self.kick(shell);
        var out: freeze.Actions = .{};
        self.machine.look(.{
            .in_trouble = in_trouble,
            .is_still = self.machine.is_frozen and self.isStill(shell),
            .now = self.guestTime(),
        }, &out);
        self.perform(shell, &out, self.machine.node);
        if (self.machine.seen != null) watch.pace_ns = 0;
    }

    pub fn receive(self: *Freezer, shell: anytype, from: u8, wire: Wire) void {
        if (self.host().has_ended) return;
        var out: freeze.Actions = .{};
        self.machine.receive(from, .{
            .kind = @fromBackingInt(@as(u8, @intCast(wire.kind))),
            .round = wire.round,
            .sent = wire.sent,
            .ticks = wire.ticks,
        }, self.guestTime(), &out);
        self.perform(shell, &out, from);
    }

    fn guestTime(self: *const Freezer) u64 {
        return self.host().guestTime(self.cluster.now);
    }

    /// Signals reach vCPUs in faults too, where those do not hold them.
    fn kick(self: *Freezer, shell: anytype) void {
        if (shell.faults_hold or self.host().parks_from.? > self.cluster.now) return;
        for (self.cluster.vcpusOf(self.machine.node)) |*v| {
            if (v.state == .blocked) v.signal(v.waits);
        }
    }

    fn isStill(self: *const Freezer, shell: anytype) bool {
        for (self.cluster.vcpusOf(self.machine.node)) |*v| {
            if (v.inbox.mode.raw != Mode.guest) continue;
            if (shell.faults_hold and shell.faults.isWaiting(v.tid())) continue;
            return false;
        }
        return true;
    }

    fn perform(self: *Freezer, shell: anytype, out: *const freeze.Actions, from: u8) void {
        for (out.slice()) |action| switch (action) {
            .freeze => self.begin(shell),
            .subtract => |ticks| self.subtract(ticks),
            .thaw => |thaw| self.end(shell, thaw),
            .send => |s| {
                const wire: Wire = .{
                    .kind = @backingInt(s.message.kind),
                    .round = s.message.round,
                    .sent = s.message.sent,
                    .ticks = s.message.ticks,
                };
                shell.sendAtOnce(s.to, &.{std.mem.asBytes(&wire)});
            },
            .violated => |why| finding.fail(.freeze, "node {d} refuses node {d}: {s}", .{
                self.machine.node, from, why,
            }),
        };
    }

    fn begin(self: *Freezer, shell: anytype) void {
        self.cluster.trace("node {d} freezes", .{self.machine.node});
        self.cluster.counters.freezes += 1;
        const late = self.cluster.net.random().uintLessThan(u64, 100 * us);
        self.host().parks_from = self.cluster.now + late;
        shell.lanes.kind.real.watch.pace_ns = pace_ns;
    }

    fn subtract(self: *Freezer, ticks: u64) void {
        self.host().tsc_off -%= ticks;
        self.rounds.append(self.cluster.allocator, ticks) catch
            @panic("no memory for rounds of freezes");
    }

    /// Two hosts' clocks disagree by little: the guest waits for what it has seen.
    fn end(self: *Freezer, shell: anytype, thaw: freeze.Action.Thaw) void {
        self.subtract(thaw.ticks);
        const m = self.host();
        const now = self.guestTime();
        const wait = if (freeze.isAfter(thaw.seen, now)) thaw.seen -% now else 0;
        self.cluster.trace("node {d} thaws, {d} ns taken off", .{ m.node, thaw.ticks });
        if (wait > 2 * cluster_file.skew_ns_max) finding.fail(.freeze, "node {d} would wait " ++
            "{d} ns for its clock", .{ m.node, wait });
        m.parks_from = null;
        m.enters_from = self.cluster.now + wait;
        shell.lanes.kind.real.watch.pace_ns = 0;
        for (self.cluster.vcpusOf(m.node)) |*v| {
            if (v.state == .ready) self.cluster.scheduleVcpu(v, m.enters_from + 100);
        }
    }
};
