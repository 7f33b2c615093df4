//! A model of lanes as the shell sees them (engine/lanes.zig), over a network that delays, loses,
//! and falls apart: exactly once and in order on each lane, which is what transport/lane.zig
//! promises (it runs in wires.zig), in any order among lanes. A lost frame is one that comes after
//! a retransmission, with all behind it. Frames live in a pool, so that none can be forgotten.

const std = @import("std");
const types = @import("../dsm/types.zig");
const frame = @import("../transport/frame.zig");
const Received = @import("../transport/lane.zig").Received;
const finding = @import("finding.zig");
const Cluster = @import("cluster.zig").Cluster;

const us = std.time.ns_per_us;
const ms = std.time.ns_per_ms;

const Frame = struct {
    next: ?*Frame = null,
    at: u64,
    kind: frame.Kind,
    length: u16,
    bytes: []u8,

    fn isPage(self: *const Frame) bool {
        return self.bytes.len > small_bytes;
    }
};

const small_bytes = 64;
const page_bytes = frame.payload_max;

const Lane = struct {
    first: ?*Frame = null,
    last: ?*Frame = null,
    /// Given to the receiver, whose payload is valid until it takes the next.
    taken: ?*Frame = null,
    arrival: u64 = 0,
    /// Bytes that the sender has not heard of yet.
    unacked: u32 = 0,
    /// The sender was told to hold back.
    is_held: bool = false,
};

pub const Network = struct {
    cluster: *Cluster,
    nodes: usize,
    lanes: []Lane,
    /// Senders with frames for each node.
    pending: []types.Nodes,
    free_small: ?*Frame = null,
    free_page: ?*Frame = null,
    in_use: usize = 0,
    /// Room for requests on each lane, and for all; null: no end.
    request_bytes: ?u32 = null,
    ring_bytes: u32 = 0,
    /// Since `cut_at` no frame passes between these nodes and the others, until `heals_at`.
    apart: types.Nodes = 0,
    heals_at: u64 = 0,
    latency_ns: u64,
    /// Version of the newest exclusive grant of each page.
    granted: []u32,

    pub fn init(cluster: *Cluster) !Network {
        const a = cluster.allocator;
        const nodes: usize = cluster.config.machines();
        var self: Network = .{
            .cluster = cluster,
            .nodes = nodes,
            .lanes = try a.alloc(Lane, nodes * nodes),
            .pending = try a.alloc(types.Nodes, nodes),
            .latency_ns = 2 * us + cluster.net.random().uintLessThan(u64, 30 * us),
            .granted = try a.alloc(u32, cluster.config.pages),
        };
        @memset(self.lanes, .{});
        @memset(self.pending, 0);
        @memset(self.granted, 0);
        if (cluster.config.faults.contains(.small_lane)) self.limit();
        return self;
    }

    /// As engine/link.zig checks: what answers fits beside what requests may use. Here each thread
    /// can have four requests open, since signals take it from one to the next (core.zig).
    fn limit(self: *Network) void {
        const config = self.cluster.config;
        const frames = self.cluster.net.random().intRangeAtMost(u32, 2, 6);
        self.request_bytes = frames * frame.frame_max;
        const small = frame.header_bytes + frame.protocol_bytes;
        const answers = frame.header_bytes + frame.payload_max + 4 * small;
        const open = @as(u32, config.nodes) * config.vcpus * 4 + @as(u32, config.slots) * 4;
        self.ring_bytes = self.request_bytes.? + 2 * open * answers;
    }

    fn at(self: *Network, from: usize, to: usize) *Lane {
        return &self.lanes[from * self.nodes + to];
    }

    fn send(self: *Network, from: u8, to: u8, kind: frame.Kind, parts: []const []const u8) void {
        const is_planted = self.cluster.net.random().uintLessThan(u8, 32) == 0;
        if (is_planted and self.cluster.plant == .lane_loses) return;
        self.put(from, to, kind, parts);
        if (is_planted and self.cluster.plant == .lane_repeats) self.put(from, to, kind, parts);
    }

    fn put(self: *Network, from: u8, to: u8, kind: frame.Kind, parts: []const []const u8) void {
        var length: usize = 0;
        for (parts) |part| length += part.len;
        std.debug.assert(frame.fits(@backingInt(kind), length));
        const lane = self.at(from, to);
        const new = self.take(length > small_bytes);
        new.kind = kind;
        new.length = @intCast(length);
        var end: usize = 0;
        for (parts) |part| {
            @memcpy(new.bytes[end..][0..part.len], part);
            end += part.len;
        }
        lane.arrival = @max(lane.arrival, self.cluster.now + self.delay());
        new.at = lane.arrival;
        new.next = null;
        if (lane.last) |last| last.next = new else lane.first = new;
        lane.last = new;
        self.pending[to] |= bit(from);
        self.charge(lane, from, to, length);
        self.cluster.wakeShard(to, new.at);
    }

    fn charge(self: *Network, lane: *Lane, from: u8, to: u8, length: usize) void {
        if (self.request_bytes == null) return;
        lane.unacked += @intCast(frame.header_bytes + length);
        // Diffs of page tables are not bounded by what is asked.
        if (self.cluster.config.tables > 0 or lane.unacked <= self.ring_bytes) return;
        finding.fail(.leak, "the lane from {d} to {d} holds {d} bytes, more than all that can " ++
            "be owed", .{ from, to, lane.unacked });
    }

    pub fn delay(self: *Network) u64 {
        const random = self.cluster.net.random();
        var ns = self.latency_ns + random.uintLessThan(u64, self.latency_ns);
        if (self.cluster.inject(.delay, 8)) ns += random.uintLessThan(u64, 500 * us);
        if (self.cluster.inject(.loss, 32)) ns += ms + random.uintLessThan(u64, 200 * ms);
        return ns;
    }

    /// What a coherence message says about itself must make sense.
    pub fn note(self: *Network, from: u8, to: u8, msg: types.Msg) void {
        self.cluster.counters.messages += 1;
        const kind: types.MsgKind = @fromBackingInt(msg.kind);
        self.cluster.trace("{d} -> {d}: {t} page {d} version {d} flags {d} acks {d} for {d}", .{
            from, to, kind, msg.page, msg.version, msg.flags, msg.acks, msg.requester,
        });
        if (msg.kind == @backingInt(types.MsgKind.diff)) {
            self.cluster.trace("    entry {d}: 0x{x} to 0x{x}", .{ msg.index, msg.old, msg.new });
        }
        if (msg.kind != @backingInt(types.MsgKind.grant)) return;
        if (msg.flags & types.flag_exclusive == 0) return;
        if (msg.version <= self.granted[msg.page]) {
            finding.fail(.version, "page {d}: granted exclusive as version {d} after {d}", .{
                msg.page, msg.version, self.granted[msg.page],
            });
        }
        self.granted[msg.page] = msg.version;
    }

    fn take(self: *Network, is_page: bool) *Frame {
        self.in_use += 1;
        const list = if (is_page) &self.free_page else &self.free_small;
        if (list.*) |f| {
            list.* = f.next;
            return f;
        }
        const a = self.cluster.allocator;
        const f = a.create(Frame) catch @panic("no memory for frames");
        const size: usize = if (is_page) page_bytes else small_bytes;
        f.* = .{ .at = 0, .kind = .bye, .length = 0, .bytes = a.alloc(u8, size) catch
            @panic("no memory for frames") };
        return f;
    }

    fn give(self: *Network, f: *Frame) void {
        self.in_use -= 1;
        // Read after its time, it must not look right.
        @memset(f.bytes[0..f.length], 0xdd);
        const list = if (f.isPage()) &self.free_page else &self.free_small;
        f.next = list.*;
        list.* = f;
    }

    pub fn isCut(self: *const Network, a: u8, b: u8) bool {
        if (self.cluster.now >= self.heals_at) return false;
        return (self.apart & bit(a) != 0) != (self.apart & bit(b) != 0);
    }

    pub fn partition(self: *Network, apart: types.Nodes, until: u64) void {
        self.apart = apart;
        self.heals_at = until;
        for (0..self.nodes) |n| self.cluster.wakeShard(@intCast(n), until);
    }

    /// The payload that `to` was given of `from` last is not valid any more.
    fn release(self: *Network, from: u8, to: u8) void {
        const lane = self.at(from, to);
        if (lane.taken) |f| self.give(f);
        lane.taken = null;
    }

    fn next(self: *Network, from: u8, to: u8) ?Received {
        self.release(from, to);
        const lane = self.at(from, to);
        const f = lane.first orelse return null;
        if (f.at > self.cluster.now or self.isCut(from, to)) return null;
        lane.first = f.next;
        if (lane.first == null) {
            lane.last = null;
            self.pending[to] &= ~bit(from);
        }
        lane.taken = f;
        if (self.request_bytes != null) {
            const soon = self.cluster.now + self.delay();
            const bytes: u32 = frame.header_bytes + f.length;
            self.cluster.events.add(soon, .ack, from * self.nodes + to, bytes);
        }
        return .{ .kind = f.kind, .payload = f.bytes[0..f.length] };
    }

    /// The sender of the lane hears that so many bytes were taken.
    pub fn acknowledge(self: *Network, index: u32, bytes: u32) void {
        const lane = &self.lanes[index];
        lane.unacked -= bytes;
        if (!lane.is_held or !self.mayRequestOn(lane)) return;
        lane.is_held = false;
        self.cluster.wakeShard(@intCast(index / self.nodes), self.cluster.now);
    }

    fn mayRequestOn(self: *const Network, lane: *const Lane) bool {
        const room = self.request_bytes orelse return true;
        return lane.unacked + 2 * frame.frame_max <= room;
    }

    /// When the next frame can be taken by `to`; null: nothing is under way to it.
    pub fn nextArrival(self: *Network, to: u8, deaf: types.Nodes) ?u64 {
        var soonest: ?u64 = null;
        var rest = self.pending[to] & ~deaf;
        while (rest != 0) : (rest &= rest - 1) {
            const from: u8 = @intCast(@ctz(rest));
            var ns = self.at(from, to).first.?.at;
            if (self.isCut(from, to)) ns = @max(ns, self.heals_at);
            soonest = @min(soonest orelse ns, ns);
        }
        return soonest;
    }

    /// The node dies: of what it has sent, a random part of each lane still arrives; what was sent
    /// to it is gone.
    pub fn kill(self: *Network, node: u8) void {
        for (0..self.nodes) |to| {
            const lane = self.at(node, to);
            var count: u32 = 0;
            var f = lane.first;
            while (f) |one| : (f = one.next) count += 1;
            if (count == 0) continue;
            const kept = self.cluster.net.random().uintLessThan(u32, count + 1);
            self.truncate(lane, kept);
            if (kept == 0) self.pending[to] &= ~bit(node);
        }
        for (0..self.nodes) |from| {
            self.truncate(self.at(from, node), 0);
            self.release(@intCast(from), node);
        }
        self.pending[node] = 0;
    }

    /// What is still under way on a lane that `to` has given up never arrives. The frame that it
    /// may be at is released as always.
    fn forgetArrivals(self: *Network, from: u8, to: u8) void {
        self.truncate(self.at(from, to), 0);
        self.pending[to] &= ~bit(from);
    }

    fn truncate(self: *Network, lane: *Lane, kept: u32) void {
        var last: ?*Frame = null;
        var f = lane.first;
        for (0..kept) |_| {
            last = f;
            f = f.?.next;
        }
        if (last) |l| l.next = null else lane.first = null;
        lane.last = last;
        while (f) |gone| {
            f = gone.next;
            self.give(gone);
        }
    }
};

fn bit(node: usize) types.Nodes {
    return @as(types.Nodes, 1) << @intCast(node);
}

/// One node's end of all its lanes: the environment's Lanes.
pub const Lanes = struct {
    network: *Network,
    own: u8,
    /// Peers that this node has given up.
    lost: types.Nodes = 0,
    /// Peers whose silence has lasted too long, or whose end was told.
    silent: types.Nodes = 0,

    pub fn mayRequest(self: *Lanes) bool {
        const network = self.network;
        if (network.request_bytes == null) return true;
        var all_may = true;
        for (0..network.nodes) |to| {
            if (to == self.own or self.lost & bit(to) != 0) continue;
            const lane = network.at(self.own, to);
            if (network.mayRequestOn(lane)) continue;
            if (!lane.is_held) network.cluster.counters.held_back += 1;
            lane.is_held = true;
            all_may = false;
        }
        return all_may;
    }

    pub fn isLost(self: *const Lanes, node: u8) bool {
        return self.lost & bit(node) != 0;
    }

    /// Whether there may be something to take.
    pub fn receive(self: *Lanes, node: u8) bool {
        return !self.isLost(node) and self.network.pending[self.own] & bit(node) != 0;
    }

    pub fn next(self: *Lanes, node: u8) ?Received {
        if (!self.isLost(node)) return self.network.next(node, self.own);
        self.network.release(node, self.own);
        return null;
    }

    pub fn queue(self: *Lanes, to: u8, kind: frame.Kind, parts: []const []const u8) bool {
        if (self.isLost(to)) return false;
        // A dead peer's socket takes the bytes all the same.
        if (self.network.cluster.machines[to].is_dead) return true;
        self.network.send(self.own, to, kind, parts);
        return true;
    }

    pub fn lose(self: *Lanes, node: u8, why: []const u8) void {
        if (self.isLost(node)) return;
        self.lost |= bit(node);
        self.network.forgetArrivals(node, self.own);
        self.network.cluster.hasLost(self.own, node, why);
    }

    pub fn onTime(self: *Lanes, _: u64) void {
        var rest = self.silent & ~self.lost;
        while (rest != 0) : (rest &= rest - 1) {
            self.lose(@intCast(@ctz(rest)), "silent for longer than peer_timeout");
        }
    }

    pub fn flush(_: *Lanes) void {}
};
