//! Sockets for the production lanes (transport/lane.zig, engine/lanes.zig): a stream each way with
//! a finite buffer, latency, short writes and bytes that change on the way; connections that are
//! cut with what was in flight, and a keeper that brings others (transport/keeper.zig). So frames
//! are numbered, sealed, acknowledged, sent again and refused here by the code that ships.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("../base/sys.zig");
const lanes_file = @import("../engine/lanes.zig");
const frame = @import("../transport/frame.zig");
const lane_file = @import("../transport/lane.zig");
const seal = @import("../transport/seal.zig");
const Cluster = @import("cluster.zig").Cluster;
const finding = @import("finding.zig");

const us = std.time.ns_per_us;
const ms = std.time.ns_per_ms;

/// Nodes of a schedule with these lanes: their rings hold what all can owe each other.
pub const nodes_max = 4;

/// Longer than all that is injected together can keep a sound peer silent.
pub const peer_timeout_ns = 4000 * ms;

/// The schedule that runs on this OS thread: a socket is but a number.
threadlocal var current: ?*Wires = null;

const Socket = struct {
    pub fn send(fd: i32, bytes: []const u8) usize {
        return current.?.send(fd, bytes);
    }

    pub fn receive(fd: i32, buffer: []u8) usize {
        return current.?.receive(fd, buffer);
    }

    pub fn close(fd: i32) void {
        current.?.close(fd);
    }

    pub fn prepare(_: i32) sys.Error!void {}
};

const Lane = lane_file.LaneOf(Socket);

/// The environment of the production lanes of one node.
const Env = struct {
    cluster: *Cluster,
    node: u8,

    pub const Lane = lane_file.LaneOf(Socket);
    pub const Keeper = Wires.Keeper;
    pub const nodes_max = 4;

    pub fn now(self: Env) u64 {
        return self.cluster.now + self.cluster.machines[self.node].clock_ns;
    }
};

pub const Lanes = lanes_file.LanesOf(Env);
pub const LaneHandle = *Lane;

/// Bytes up to `upto` have arrived at `at`.
const Mark = struct { upto: u64, at: u64 };

const Stream = struct {
    ring: []u8,
    written: u64 = 0,
    taken: u64 = 0,
    marks: std.ArrayList(Mark) = .empty,
    first_mark: usize = 0,
    /// From then on the reader sees the end, behind what has arrived.
    ends_at: ?u64 = null,
    is_waited_for: bool = false,

    fn arrived(self: *const Stream, now: u64) u64 {
        var upto = self.taken;
        for (self.marks.items[self.first_mark..]) |mark| {
            if (mark.at > now) break;
            upto = mark.upto;
        }
        return upto;
    }

    fn lastArrival(self: *const Stream) u64 {
        if (self.first_mark == self.marks.items.len) return 0;
        return self.marks.items[self.marks.items.len - 1].at;
    }

    /// When there is something to read, be it the end.
    fn readableAt(self: *const Stream) ?u64 {
        for (self.marks.items[self.first_mark..]) |mark| {
            if (mark.upto > self.taken) return mark.at;
        }
        return self.ends_at;
    }

    /// What has not arrived by `now` never does.
    fn cut(self: *Stream, now: u64) void {
        const upto = self.arrived(now);
        while (self.marks.items.len > self.first_mark and
            self.marks.items[self.marks.items.len - 1].upto > upto) _ = self.marks.pop();
        self.written = @max(upto, self.taken);
    }
};

const Connection = struct {
    /// The lower node accepts, the higher one connects.
    nodes: [2]u8,
    /// What each of them writes.
    streams: [2]Stream,
    is_open: [2]bool = .{ true, true },
};

pub const Wires = struct {
    cluster: *Cluster,
    nodes: usize,
    connections: std.ArrayList(Connection) = .empty,
    is_connecting: []bool,
    keepers: []Keeper,
    lanes: []Lane,
    buffer_bytes: usize,

    pub const Keeper = struct {
        wires: *Wires,
        node: u8,
        ready: u32 = 0,
        arrivals: [Env.nodes_max]?Arrival = @splat(null),

        pub const Arrival = union(enum) {
            connection: lane_file.Connection,
            refused: @import("../transport/keeper.zig").Words,

            pub fn discard(self: *const Arrival) void {
                if (self.* == .connection) Socket.close(self.connection.fd);
            }
        };

        pub fn wakeShard(self: *const Keeper) void {
            self.wires.cluster.wakeShard(self.node, self.wires.cluster.now);
        }

        /// A higher-numbered peer comes by itself.
        pub fn want(self: *Keeper, peer: u8) void {
            if (peer < self.node) self.wires.connectSoon(peer, self.node);
        }

        pub fn takeReady(self: *Keeper) u32 {
            defer self.ready = 0;
            return self.ready;
        }

        pub fn take(self: *Keeper, peer: usize) ?Arrival {
            defer self.arrivals[peer] = null;
            return self.arrivals[peer];
        }

        fn put(self: *Keeper, peer: u8, connection: lane_file.Connection) void {
            if (self.arrivals[peer]) |older| older.discard();
            self.arrivals[peer] = .{ .connection = connection };
            self.ready |= @as(u32, 1) << @intCast(peer);
            const cluster = self.wires.cluster;
            const late = cluster.net.random().uintLessThan(u64, 200 * us);
            cluster.wakeShard(self.node, cluster.now + late);
        }
    };

    /// In place: sockets and keepers keep its address.
    pub fn init(self: *Wires, cluster: *Cluster) !void {
        const a = cluster.allocator;
        const nodes: usize = cluster.config.nodes;
        const random = cluster.net.random();
        self.* = .{
            .cluster = cluster,
            .nodes = nodes,
            .is_connecting = try a.alloc(bool, nodes * nodes),
            .keepers = try a.alloc(Keeper, nodes),
            .lanes = try a.alloc(Lane, nodes * nodes),
            .buffer_bytes = if (random.boolean()) 64 << 10 else frame.frame_max +
                random.uintLessThan(usize, 4 * frame.frame_max),
        };
        current = self;
        @memset(self.is_connecting, false);
        for (self.keepers, 0..) |*k, n| k.* = .{ .wires = self, .node = @intCast(n) };
        const options = self.laneOptions();
        for (self.lanes, 0..) |*l, i| {
            if (i / nodes != i % nodes) l.* = try .init(a, @intCast(i % nodes), options);
        }
    }

    /// As engine/link.zig checks: what answers fits beside what requests may use. Here each thread
    /// can have four requests open, since signals take it from one to the next (core.zig).
    fn laneOptions(self: *Wires) lane_file.Options {
        const config = self.cluster.config;
        const is_small = config.faults.contains(.small_lane);
        // Less would wait for the pause after which acknowledgements go alone, each time.
        const least = self.cluster.net.random().intRangeAtMost(usize, 4, 12);
        const requests = frame.frame_max * if (is_small) least else 32;
        const small = frame.header_bytes + frame.protocol_bytes;
        const answers = frame.header_bytes + frame.payload_max + 4 * small;
        const open = @as(usize, config.nodes) * config.vcpus * 4;
        const entries: usize = if (config.tables > 0) 256 << 10 else 0;
        const wanted = requests + 2 * open * answers + entries;
        const ring = std.math.ceilPowerOfTwoAssert(usize, wanted);
        return .{
            .tx_bytes = ring,
            .reserve_bytes = ring - requests,
            .wire_bytes = 4 * frame.frame_max,
            .rx_bytes = 3 * frame.frame_max,
        };
    }

    /// The lanes of a node, not yet connected.
    pub fn lanesOf(self: *Wires, node: u8, observer: lanes_file.Observer, stats: anytype) Lanes {
        var lanes: Lanes = .{
            .env = .{ .cluster = self.cluster, .node = node },
            .own = node,
            .peer_timeout_ns = peer_timeout_ns,
            .stats = stats,
            .observer = observer,
            .keeper = &self.keepers[node],
        };
        for (0..self.nodes) |peer| {
            if (peer != node) lanes.set(@intCast(peer), self.lane(node, peer));
        }
        return lanes;
    }

    pub fn connectAll(self: *Wires) void {
        for (0..self.nodes) |low| for (low + 1..self.nodes) |high| self.connect(low, high);
    }

    pub fn lane(self: *Wires, node: usize, peer: usize) *Lane {
        return &self.lanes[node * self.nodes + peer];
    }

    fn connectSoon(self: *Wires, low: u8, high: u8) void {
        const index = @as(usize, low) * self.nodes + high;
        if (self.is_connecting[index]) return;
        self.is_connecting[index] = true;
        const ns = 50 * us + self.cluster.net.random().uintLessThan(u64, 5 * ms);
        self.cluster.events.add(self.cluster.now + ns, .connect, index, 0);
    }

    /// An attempt to connect these two: it succeeds, or is made again, or the peer is gone.
    pub fn tryConnect(self: *Wires, index: u32) void {
        const low = index / self.nodes;
        const high = index % self.nodes;
        const cluster = self.cluster;
        self.is_connecting[index] = false;
        if (cluster.machines[low].is_dead or cluster.machines[high].is_dead) return;
        var possible_at: u64 = 0;
        // A process that stands still neither connects nor accepts.
        for ([_]usize{ low, high }) |node| {
            possible_at = @max(possible_at, cluster.machines[node].stands_until);
        }
        if (cluster.network.isCut(@intCast(low), @intCast(high))) {
            possible_at = @max(possible_at, cluster.network.heals_at);
        }
        if (possible_at > cluster.now) {
            self.is_connecting[index] = true;
            return cluster.events.add(possible_at, .connect, index, 0);
        }
        self.connect(low, high);
    }

    fn connect(self: *Wires, low: usize, high: usize) void {
        const a = self.cluster.allocator;
        const number = self.connections.items.len;
        var streams: [2]Stream = undefined;
        for (&streams) |*s| s.* = .{ .ring = a.alloc(u8, self.buffer_bytes) catch
            @panic("no memory for sockets") };
        self.connections.append(a, .{
            .nodes = .{ @intCast(low), @intCast(high) },
            .streams = streams,
        }) catch @panic("no memory for sockets");
        const key: [32]u8 = @splat(7);
        const hellos = std.mem.asBytes(&number);
        const cipher = seal.Cipher.choose(seal.offered(), seal.offered());
        for ([_]usize{ low, high }, [_]usize{ high, low }, 0..) |own, peer, side| {
            self.keepers[own].put(@intCast(peer), .{
                .fd = @intCast(2 * number + side),
                .keys = .derive(&key, cipher, hellos, side == 1),
            });
        }
    }

    const End = struct { connection: *Connection, side: usize };

    fn endOf(self: *Wires, fd: i32) End {
        const number: usize = @intCast(fd);
        const end: End = .{
            .connection = &self.connections.items[number / 2],
            .side = number % 2,
        };
        if (!end.connection.is_open[end.side]) {
            finding.fail(.kernel_misuse, "socket {d} is closed already", .{fd});
        }
        return end;
    }

    fn send(self: *Wires, fd: i32, bytes: []const u8) usize {
        const end = self.endOf(fd);
        const c = end.connection;
        const out = &c.streams[end.side];
        const peer = c.nodes[1 - end.side];
        if (self.cluster.inject(.cut, 200)) self.cutConnection(c);
        if (!c.is_open[1 - end.side]) return failed(.PIPE);
        if (out.ends_at) |at| if (at <= self.cluster.now) return failed(.CONNRESET);
        var room = out.ring.len - (out.written - out.taken);
        if (room == 0) {
            out.is_waited_for = true;
            return failed(.AGAIN);
        }
        room = @min(room, bytes.len);
        if (room > 1 and self.cluster.inject(.short_write, 4)) {
            room = 1 + self.cluster.chaos.random().uintLessThan(usize, room - 1);
        }
        for (bytes[0..room], 0..) |b, i| out.ring[(out.written + i) % out.ring.len] = b;
        if (self.cluster.inject(.corrupt, 500)) {
            const i = self.cluster.chaos.random().uintLessThan(usize, room);
            out.ring[(out.written + i) % out.ring.len] ^= 0x10;
        }
        out.written += room;
        const at = @max(out.lastArrival(), self.cluster.now + self.cluster.network.delay());
        out.marks.append(self.cluster.allocator, .{ .upto = out.written, .at = at }) catch
            @panic("no memory for sockets");
        self.cluster.wakeShard(peer, at);
        return room;
    }

    fn receive(self: *Wires, fd: i32, buffer: []u8) usize {
        const end = self.endOf(fd);
        const c = end.connection;
        const in = &c.streams[1 - end.side];
        const now = self.cluster.now;
        const is_cut = self.cluster.network.isCut(c.nodes[0], c.nodes[1]);
        const arrived = if (is_cut) in.taken else in.arrived(now);
        const count = @min(arrived - in.taken, buffer.len);
        if (count == 0) {
            const has_ended = if (in.ends_at) |at| at <= now else false;
            if (!has_ended or in.taken < in.written) return failed(.AGAIN);
            return if (self.cluster.net.random().boolean()) 0 else failed(.CONNRESET);
        }
        for (buffer[0..count], 0..) |*b, i| b.* = in.ring[(in.taken + i) % in.ring.len];
        in.taken += count;
        while (in.first_mark < in.marks.items.len and
            in.marks.items[in.first_mark].upto <= in.taken) in.first_mark += 1;
        if (in.is_waited_for) {
            in.is_waited_for = false;
            self.cluster.wakeShard(c.nodes[1 - end.side], now + 10 * us);
        }
        return count;
    }

    fn close(self: *Wires, fd: i32) void {
        const end = self.endOf(fd);
        const c = end.connection;
        c.is_open[end.side] = false;
        self.endStream(c, end.side);
    }

    /// Of what is in flight some may be lost.
    fn endStream(self: *Wires, c: *Connection, side: usize) void {
        const s = &c.streams[side];
        if (s.ends_at != null) return;
        const random = self.cluster.net.random();
        if (random.boolean()) s.cut(self.cluster.now + random.uintLessThan(u64, 50 * us));
        s.ends_at = @max(s.lastArrival(), self.cluster.now + random.uintLessThan(u64, 100 * us));
        self.cluster.wakeShard(c.nodes[1 - side], s.ends_at.?);
    }

    fn cutConnection(self: *Wires, c: *Connection) void {
        self.cluster.trace("connection of {d} and {d} is cut", .{ c.nodes[0], c.nodes[1] });
        for (0..2) |side| self.endStream(c, side);
    }

    /// The node's process is gone: so are its ends of all connections.
    pub fn kill(self: *Wires, node: u8) void {
        for (self.connections.items) |*c| for (c.nodes, 0..) |n, side| {
            if (n != node or !c.is_open[side]) continue;
            c.is_open[side] = false;
            self.endStream(c, side);
        };
    }

    /// When the shard's poll would return for its sockets; null: never.
    pub fn nextEvent(self: *Wires, node: u8, lanes: *const Lanes) ?u64 {
        var soonest: ?u64 = null;
        for (lanes.all) |maybe| {
            const l = maybe orelse continue;
            if (l.fd < 0) continue;
            const end = self.endOf(l.fd);
            const c = end.connection;
            if (c.streams[1 - end.side].readableAt()) |at| {
                const is_cut = self.cluster.network.isCut(c.nodes[0], c.nodes[1]);
                const ns = if (is_cut) @max(at, self.cluster.network.heals_at) else at;
                soonest = @min(soonest orelse ns, ns);
            }
            const out = &c.streams[end.side];
            if (!l.wantsOut()) continue;
            if (out.written - out.taken < out.ring.len or out.ends_at != null) {
                soonest = self.cluster.now;
            } else out.is_waited_for = true;
        }
        const local = self.cluster.now + self.cluster.machines[node].clock_ns;
        const idle = lanes.deadline(local) - self.cluster.machines[node].clock_ns;
        return @min(soonest orelse idle, idle);
    }

    /// Whether every frame has come that was sent.
    pub fn isEmpty(self: *Wires) bool {
        for (0..self.nodes) |from| for (0..self.nodes) |to| {
            if (from == to) continue;
            if (self.lane(from, to).tx_sequence != self.lane(to, from).rx_sequence) return false;
        };
        return true;
    }
};

fn failed(e: linux.E) usize {
    return @bitCast(-@as(isize, @backingInt(e)));
}
