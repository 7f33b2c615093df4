//! Connections that are cut, at any byte, thousands of times, under load both ways: every frame
//! arrives exactly once and in order. First with two lanes in one thread, where the seed decides
//! all; then as nodes do it, with threads, keepers, handshakes and TCP through a proxy that cuts.

const std = @import("std");
const linux = std.os.linux;
const testing = std.testing;
const sys = @import("../base/sys.zig");
const frame = @import("frame.zig");
const handshake = @import("handshake.zig");
const keeper_file = @import("keeper.zig");
const lane = @import("lane.zig");
const linkup = @import("linkup.zig");
const tcp = @import("tcp.zig");
const lane_test = @import("lane_test.zig");
const Keeper = keeper_file.Keeper;
const Lane = lane.Lane;

const protocol = @backingInt(frame.Kind.protocol);
const span = @backingInt(frame.Kind.span);

/// One end under load: sends numbered frames of many sizes and checks the other end's.
const End = struct {
    lane: Lane,
    /// Differs between the ends, so that nobody takes his own frames for the peer's.
    salt: u64,
    sent: u64 = 0,
    taken: u64 = 0,
    total: u64,

    fn lengthOf(number: u64, salt: u64) usize {
        const mixed = (number +% salt) *% 0x9e37_79b9_7f4a_7c15;
        return if (mixed >> 61 == 0) frame.payload_max else 16 + mixed % 200;
    }

    fn fill(out: []u8, number: u64, salt: u64) void {
        std.mem.writeInt(u64, out[0..8], number, .little);
        std.mem.writeInt(u64, out[8..16], salt, .little);
        @memset(out[16..], @truncate(number *% 31 +% salt));
    }

    fn ask(self: *End, most: usize) !void {
        var payload: [frame.payload_max]u8 = undefined;
        for (0..most) |_| {
            if (self.sent == self.total or !self.lane.mayRequest()) return;
            const bytes = payload[0..lengthOf(self.sent, self.salt)];
            fill(bytes, self.sent, self.salt);
            const kind = if (bytes.len == frame.payload_max) protocol else span;
            try self.lane.queue(kind, &.{bytes});
            self.sent += 1;
        }
    }

    /// Everything that has come; as a shard does, an error means a cut.
    fn hear(self: *End) !bool {
        while (true) {
            const got = self.lane.receive() catch return false;
            try self.drain();
            if (got == 0) return true;
        }
    }

    fn drain(self: *End) !void {
        while (self.lane.next() catch |err| {
            var words: [200]u8 = undefined;
            std.debug.print("{s}\n", .{self.lane.explain(err, &words)});
            return err;
        }) |received| {
            const salt = ~self.salt;
            var want: [frame.payload_max]u8 = undefined;
            const bytes = want[0..lengthOf(self.taken, salt)];
            fill(bytes, self.taken, salt);
            try testing.expectEqualSlices(u8, bytes, received.payload);
            self.taken += 1;
        }
    }

    fn isDone(self: *const End) bool {
        return self.taken == self.total and self.sent == self.total and self.lane.unacked() == 0;
    }
};

/// A wire between two sockets that carries what the seed says, and breaks where it says.
const Wire = struct {
    ends: [2]i32,
    /// Bytes in all until the cut.
    left: usize,

    fn open(left: usize) !struct { Wire, [2]i32 } {
        const a = try lane_test.socketPair();
        const b = try lane_test.socketPair();
        return .{ .{ .ends = .{ a.far, b.far }, .left = left }, .{ a.near, b.near } };
    }

    fn close(self: *Wire) void {
        for (self.ends) |fd| sys.close(fd);
    }

    /// False: cut. Bytes that were read and not yet written are lost, as in a router.
    fn carry(self: *Wire, way: usize, most: usize) !bool {
        var buffer: [4096]u8 = undefined;
        const out = buffer[0..@min(most, self.left, buffer.len)];
        const flags = linux.MSG.DONTWAIT | linux.MSG.NOSIGNAL;
        const r = linux.recvfrom(self.ends[way], out.ptr, out.len, flags, null, null);
        if (linux.errno(r) == .AGAIN) return true;
        const n = try sys.check(r);
        if (n == 0) return false;
        self.left -= n;
        var done: usize = 0;
        while (done < n) {
            const w = linux.sendto(self.ends[1 - way], out.ptr + done, n - done, flags, null, 0);
            if (linux.errno(w) != .SUCCESS) return false;
            done += w;
        }
        return self.left > 0;
    }
};

const Tally = struct { cuts: u64 = 0, resent: u64 = 0 };

fn cutAtRandom(seed: u64, total: u64, tally: *Tally) !void {
    var prng = std.Random.DefaultPrng.init(seed);
    const random = prng.random();
    const small = lane_test.small;
    var ends = [2]End{
        .{ .lane = try .init(testing.allocator, 1, small), .salt = seed, .total = total },
        .{ .lane = try .init(testing.allocator, 0, small), .salt = ~seed, .total = total },
    };
    defer for (&ends) |*end| end.lane.deinit();
    var maybe_wire: ?Wire = null;
    defer if (maybe_wire) |*wire| wire.close();
    var connections: u64 = 0;
    var now: u64 = 1;
    while (!ends[0].isDone() or !ends[1].isDone()) {
        now += random.uintLessThan(u64, lane.ack_idle_ns / 4);
        if (maybe_wire == null) {
            connections += 1;
            // Sometimes inside the resume, sometimes after many windows.
            const left = @as(usize, 1) << random.uintAtMost(u6, 18);
            maybe_wire, const fds = try Wire.open(random.uintAtMost(usize, left) + 1);
            const keys = lane_test.keyPair(seed +% connections);
            for (&ends, fds, keys) |*end, fd, k| try end.lane.adopt(.{ .fd = fd, .keys = k });
        }
        var is_cut = false;
        for (&ends, 0..) |*end, way| {
            if (random.boolean()) try end.ask(random.uintAtMost(usize, 20));
            end.lane.last_heard_ns = now;
            end.lane.onTime(now + lane.ack_idle_ns * random.uintAtMost(u64, 1));
            _ = end.lane.flush() catch {
                is_cut = true;
            };
            const most = @as(usize, 1) << random.uintAtMost(u6, 12);
            if (!try maybe_wire.?.carry(way, most)) is_cut = true;
            if (random.boolean() and !try end.hear()) is_cut = true;
            try testing.expect(end.lane.unacked() <= small.tx_bytes);
        }
        if (!is_cut) continue;
        tally.cuts += 1;
        maybe_wire.?.close();
        maybe_wire = null;
        // One end may have read what was still under way, or learn of it by the new connection.
        for (&ends) |*end| if (random.boolean()) {
            _ = try end.hear();
            if (random.boolean()) end.lane.cut();
        };
    }
    for (&ends) |*end| tally.resent += end.lane.counters.resent;
}

test "connections cut at ten thousand random bytes: each frame once, in order" {
    var tally: Tally = .{};
    for (0..8) |run| try cutAtRandom(testing.random_seed +% run, 20_000, &tally);
    std.debug.print("{d} cuts, {d} frames sent again\n", .{ tally.cuts, tally.resent });
    try testing.expect(tally.cuts > 10_000);
    try testing.expect(tally.resent > 10_000);
}

/// Takes connections for node 0 and cuts each after a random number of bytes.
const Proxy = struct {
    listener: tcp.Listener,
    target: tcp.Address,
    random: std.Random.DefaultPrng,
    /// Cuts to make; what comes after is left alone.
    cuts_left: u32,
    cuts: u32 = 0,
    stopping: std.atomic.Value(bool) = .init(false),

    fn run(self: *Proxy) void {
        while (!self.stopping.load(.acquire)) {
            tcp.waitFor(self.listener.fd, linux.POLL.IN, soon(20)) catch continue;
            const accepted = (tcp.acceptNow(self.listener.fd) catch null) orelse continue;
            const far = tcp.connect(self.target, soon(1000)) catch {
                sys.close(accepted.fd);
                continue;
            };
            self.carry(accepted.fd, far) catch |err| std.debug.assert(err == error.SystemCall);
            // Half of them with a reset, which also drops what is under way.
            const linger = [2]i32{ @intFromBool(self.random.random().boolean()), 0 };
            for ([_]i32{ accepted.fd, far }) |fd| {
                const bytes = std.mem.asBytes(&linger);
                _ = linux.setsockopt(fd, linux.SOL.SOCKET, linux.SO.LINGER, bytes, bytes.len);
                sys.close(fd);
            }
            self.cuts += 1;
            self.cuts_left -|= 1;
        }
    }

    fn carry(self: *Proxy, near: i32, far: i32) !void {
        const random = self.random.random();
        const most = @as(usize, 1) << random.uintAtMost(u6, 17);
        const left = if (self.cuts_left == 0)
            std.math.maxInt(usize)
        else
            random.uintAtMost(usize, most) + 1;
        var wire: Wire = .{ .ends = .{ near, far }, .left = left };
        const on: i32 = 1;
        const bytes = std.mem.asBytes(&on);
        for (wire.ends) |fd| {
            _ = linux.setsockopt(fd, linux.IPPROTO.TCP, linux.TCP.NODELAY, bytes, @sizeOf(i32));
        }
        while (!self.stopping.load(.acquire)) {
            var fds: [2]linux.pollfd = undefined;
            for (&fds, wire.ends) |*p, fd| {
                p.* = .{ .fd = fd, .events = linux.POLL.IN, .revents = 0 };
            }
            if (!try tcp.pollUntil(&fds, soon(20))) continue;
            for (fds, 0..) |p, way| {
                if (p.revents != 0 and !try wire.carry(way, 4096)) return;
            }
        }
    }
};

fn soon(ms: u64) u64 {
    return sys.monotonicNs() + ms * std.time.ns_per_ms;
}

/// A node as the engine makes it: link-up, keeper, and a loop like the shard's.
const Node = struct {
    config: linkup.Config,
    end: End,
    outcome: linkup.Outcome = .{},
    shard_fd: i32,
    is_done: std.atomic.Value(bool) = .init(false),
    all_done: *std.atomic.Value(bool),
    failure: ?anyerror = null,

    fn run(self: *Node) void {
        self.work() catch |e| {
            self.failure = e;
        };
        self.is_done.store(true, .release);
    }

    fn work(self: *Node) !void {
        const peer = 1 - self.config.node;
        linkup.connectAll(&self.config, &self.outcome);
        if (self.outcome.status != .linked) return error.NotLinked;
        var keeper: Keeper = try .init(self.config, self.outcome.instances, self.shard_fd);
        defer keeper.deinit();
        keeper.config.retry_ns = 100 * std.time.ns_per_us;
        keeper.config.retry_max_ns = std.time.ns_per_ms;
        const thread = try std.Thread.spawn(.{}, Keeper.run, .{&keeper});
        defer thread.join();
        defer keeper.stop();
        const l = &self.end.lane;
        try l.adopt(self.outcome.connection(peer));
        while (!self.all_done.load(.acquire)) {
            var fds = [2]linux.pollfd{
                .{ .fd = self.shard_fd, .events = linux.POLL.IN, .revents = 0 },
                .{ .fd = l.fd, .events = linux.POLL.IN, .revents = 0 },
            };
            if (l.wantsOut()) fds[1].events |= linux.POLL.OUT;
            _ = try tcp.pollUntil(&fds, soon(1));
            sys.eventfdDrain(self.shard_fd);
            if (keeper.takeReady() != 0) if (keeper.take(peer)) |arrival| switch (arrival) {
                .connection => |connection| try l.adopt(connection),
                .refused => |words| {
                    std.debug.print("{s}\n", .{words.text()});
                    return error.Refused;
                },
            };
            const now = sys.monotonicNs();
            l.last_heard_ns = now -| lane.ack_idle_ns;
            l.onTime(now);
            try self.end.ask(40);
            const is_up = l.phase != .down;
            const heard = try self.end.hear();
            const flushed = if (l.flush()) |_| true else |_| false;
            if (is_up and (!heard or !flushed)) {
                l.cut();
                keeper.want(@intCast(peer));
            }
            if (self.end.isDone()) self.is_done.store(true, .release);
        }
    }
};

test "two nodes whose connection is cut a thousand times, handshakes too, lose nothing" {
    const key: handshake.Key = @splat(0x77);
    const listener = try tcp.listen(try tcp.Address.parse("127.0.0.1:0"));
    defer sys.close(listener.fd);
    const front = try tcp.listen(try tcp.Address.parse("127.0.0.1:0"));
    defer sys.close(front.fd);
    const wanted_cuts = 1000;
    var proxy: Proxy = .{
        .listener = front,
        .target = tcp.Address.local(listener.fd).?,
        .random = .init(testing.random_seed),
        .cuts_left = wanted_cuts,
    };
    var all_done: std.atomic.Value(bool) = .init(false);
    var nodes: [2]Node = undefined;
    for (&nodes, 0..) |*node, i| node.* = .{
        .config = .{
            .node = @intCast(i),
            .node_count = 2,
            .listen_fd = if (i == 0) listener.fd else -1,
            .key = &key,
            .abi_hash = 1,
            .vm_generation = 1,
            .instance = 100 + i,
            .deadline_ns = soon(20_000),
        },
        .end = .{
            .lane = try .init(testing.allocator, @intCast(1 - i), lane_test.small),
            .salt = if (i == 0) 5 else ~@as(u64, 5),
            .total = 30_000,
        },
        .shard_fd = try sys.eventfd(),
        .all_done = &all_done,
    };
    nodes[1].config.addresses[0] = tcp.Address.local(front.fd).?;
    defer for (&nodes) |*node| {
        node.end.lane.deinit();
        sys.close(node.shard_fd);
    };
    const proxy_thread = try std.Thread.spawn(.{}, Proxy.run, .{&proxy});
    var threads: [2]std.Thread = undefined;
    for (&threads, &nodes) |*t, *node| t.* = try std.Thread.spawn(.{}, Node.run, .{node});
    const deadline = soon(60_000);
    for (&nodes) |*node| while (!node.is_done.load(.acquire) and sys.monotonicNs() < deadline) {
        sys.pause(5 * std.time.ns_per_ms);
    };
    all_done.store(true, .release);
    for (threads) |t| t.join();
    proxy.stopping.store(true, .release);
    proxy_thread.join();
    for (&nodes) |*node| {
        if (node.failure) |e| return e;
        try testing.expect(node.end.isDone());
    }
    const counters = nodes[0].end.lane.counters;
    std.debug.print("{d} cuts by the proxy, {d} connections, {d} frames sent again by node 0\n", .{
        proxy.cuts, counters.connections, counters.resent,
    });
    try testing.expect(counters.connections > wanted_cuts / 4);
    try testing.expect(counters.resent > wanted_cuts / 4);
}
