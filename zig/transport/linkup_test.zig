//! Nodes that find each other, and everything that may come between: strangers, mirrors of old
//! engines, peers that are late, gone, of another build or with another key. Threads stand for
//! nodes; deadlines are far off wherever the outcome must not depend on them.

const std = @import("std");
const linux = std.os.linux;
const testing = std.testing;
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const handshake = @import("handshake.zig");
const linkup = @import("linkup.zig");
const tcp = @import("tcp.zig");

const key: handshake.Key = @splat(0x21);
const other_key: handshake.Key = @splat(0x22);

fn after(ms: u64) u64 {
    return sys.monotonicNs() + ms * std.time.ns_per_ms;
}

const long_ms = 20_000;

fn configOf(node: u8, node_count: u8, listen_fd: i32, deadline_ns: u64) linkup.Config {
    return .{
        .node = node,
        .node_count = node_count,
        .listen_fd = listen_fd,
        .key = &key,
        .abi_hash = 0xabc,
        .vm_generation = 3,
        .deadline_ns = deadline_ns,
    };
}

const Node = struct {
    config: linkup.Config,
    outcome: linkup.Outcome = .{},
    thread: ?std.Thread = null,

    fn start(self: *Node) !void {
        self.thread = try std.Thread.spawn(.{}, linkup.connectAll, .{
            &self.config, &self.outcome,
        });
    }

    fn join(self: *Node) void {
        if (self.thread) |thread| thread.join();
        self.thread = null;
    }

    fn close(self: *Node) void {
        self.join();
        for (self.outcome.fds) |fd| sys.close(fd);
    }
};

fn listenLocal() !tcp.Listener {
    return tcp.listen(try tcp.Address.parse("127.0.0.1:0"));
}

fn addressOf(listener: tcp.Listener) tcp.Address {
    return tcp.Address.local(listener.fd).?;
}

/// A port nobody listens on.
fn freeAddress() !tcp.Address {
    const probe = try listenLocal();
    defer sys.close(probe.fd);
    return addressOf(probe);
}

fn expectLinked(outcome: *const linkup.Outcome) !void {
    if (outcome.status != .linked) std.debug.print("{s}\n", .{outcome.text()});
    try testing.expectEqual(linkup.Status.linked, outcome.status);
    try testing.expectEqual(@as(usize, 0), outcome.text().len);
}

fn expectFailed(outcome: *const linkup.Outcome, node: u8, words: []const u8) !void {
    try testing.expectEqual(linkup.Status.failed, outcome.status);
    try testing.expectEqual(node, outcome.failed_node);
    if (std.mem.find(u8, outcome.text(), words) == null) {
        std.debug.print("{s}\n", .{outcome.text()});
        return error.OtherWords;
    }
    for (outcome.fds) |fd| try testing.expectEqual(@as(i32, -1), fd);
}

/// Each says its number to the other over the connection both call theirs.
fn expectJoined(a: *const Node, b: *const Node) !void {
    const near = a.outcome.fds[b.config.node];
    const far = b.outcome.fds[a.config.node];
    try sys.writeAll(near, &.{a.config.node});
    try sys.writeAll(far, &.{b.config.node});
    for ([_]i32{ near, far }, [_]u8{ b.config.node, a.config.node }) |fd, number| {
        try tcp.waitFor(fd, linux.POLL.IN, after(long_ms));
        var byte: [1]u8 = undefined;
        try testing.expectEqual(@as(usize, 1), try sys.check(linux.read(fd, &byte, 1)));
        try testing.expectEqual(number, byte[0]);
    }
}

test "eight nodes link, every pair once" {
    const count = 8;
    var listeners: [count]tcp.Listener = undefined;
    for (&listeners) |*listener| listener.* = try listenLocal();
    defer for (listeners) |listener| sys.close(listener.fd);
    var nodes: [count]Node = undefined;
    for (&nodes, 0..) |*node, i| {
        const config = configOf(@intCast(i), count, listeners[i].fd, after(long_ms));
        node.* = .{ .config = config };
        for (0..i) |j| node.config.addresses[j] = addressOf(listeners[j]);
    }
    // The last ones first: they find ports on which nobody accepts yet.
    for (0..count) |i| try nodes[count - 1 - i].start();
    defer for (&nodes) |*node| node.close();
    for (&nodes) |*node| node.join();
    for (&nodes, 0..) |*node, i| {
        try expectLinked(&node.outcome);
        try testing.expectEqual(@as(i32, -1), node.outcome.fds[i]);
        try testing.expectEqual(@as(u32, 0), node.outcome.counters.refused);
        try testing.expectEqual(count - 1 - i, node.outcome.counters.accepted);
        for (nodes[0..i]) |*lower| try expectJoined(lower, node);
    }
}

test "two nodes link over a path" {
    var buffer: [100]u8 = undefined;
    const text = try std.fmt.bufPrint(&buffer, "unix:/tmp/ssihv-{d}-link", .{linux.getpid()});
    const address = try tcp.Address.parse(text);
    const listener = try tcp.listen(address);
    defer sys.close(listener.fd);
    defer _ = linux.unlink(@ptrCast(&address.unix.path));
    var zero: Node = .{ .config = configOf(0, 2, listener.fd, after(long_ms)) };
    var one: Node = .{ .config = configOf(1, 2, -1, after(long_ms)) };
    one.config.addresses[0] = address;
    defer zero.close();
    defer one.close();
    try zero.start();
    try one.start();
    zero.join();
    one.join();
    try expectLinked(&zero.outcome);
    try expectLinked(&one.outcome);
    try expectJoined(&zero, &one);
}

test "a node alone has nothing to wait for" {
    var outcome: linkup.Outcome = .{};
    const config = configOf(0, 1, -1, 0);
    linkup.connectAll(&config, &outcome);
    try expectLinked(&outcome);
}

fn stranger(address: tcp.Address, words: []const u8) !i32 {
    const fd = try tcp.connect(address, after(long_ms));
    errdefer sys.close(fd);
    try sys.writeAll(fd, words);
    return fd;
}

test "strangers, silent or loud, more than there are slots, hold nobody up" {
    const listener = try listenLocal();
    defer sys.close(listener.fd);
    var zero: Node = .{ .config = configOf(0, 2, listener.fd, after(long_ms)) };
    defer zero.close();
    try zero.start();
    var fds: [80]i32 = @splat(-1);
    defer for (fds) |fd| sys.close(fd);
    for (&fds, 0..) |*fd, i| {
        const loud: [64]u8 = @splat('?');
        const words: []const u8 = if (i % 4 == 0) &loud else "";
        fd.* = try stranger(addressOf(listener), words);
    }
    var one: Node = .{ .config = configOf(1, 2, -1, after(long_ms)) };
    one.config.addresses[0] = addressOf(listener);
    defer one.close();
    try one.start();
    one.join();
    zero.join();
    try expectLinked(&zero.outcome);
    try expectLinked(&one.outcome);
    try expectJoined(&zero, &one);
    const counters = zero.outcome.counters;
    // 60 silent ones for 32 slots, and the loud are refused at their first words.
    try testing.expect(counters.evicted >= 60 - 32);
    try testing.expect(counters.refused >= counters.evicted + 20);
    try testing.expect(counters.accepted >= 81);
    // None of them is left connected: all that was kept is the lane.
    for (fds) |fd| {
        var byte: [1]u8 = undefined;
        try tcp.waitFor(fd, linux.POLL.IN, after(long_ms));
        const r = linux.recvfrom(fd, &byte, 1, linux.MSG.DONTWAIT, null, null);
        try testing.expect(linux.errno(r) == .CONNRESET or r == 0);
    }
}

const Changed = enum { build, generation, key, node };

/// Node 1 differs from what node 0 expects: node 1 learns at once, node 0 in its report.
fn expectMismatch(changed: Changed, at_one: []const u8, at_zero: []const u8) !void {
    const listener = try listenLocal();
    defer sys.close(listener.fd);
    var zero: Node = .{ .config = configOf(0, 2, listener.fd, after(long_ms)) };
    var one: Node = .{ .config = configOf(1, 2, -1, after(long_ms)) };
    var cancel: std.atomic.Value(u32) = .init(0);
    one.config.addresses[0] = addressOf(listener);
    switch (changed) {
        .build => one.config.abi_hash = 0xdef,
        .generation => one.config.vm_generation = 2,
        .key => one.config.key = &other_key,
        .node => {
            one.config.node = 2;
            one.config.node_count = 3;
            one.config.addresses[1] = try freeAddress();
        },
    }
    zero.config.deadline_ns = after(1000);
    one.config.cancel = &cancel;
    defer zero.close();
    defer one.close();
    try zero.start();
    try one.start();
    one.join();
    zero.join();
    try expectFailed(&one.outcome, 0, at_one);
    // At once: it did not try again (as node 2 it also looks for node 1, which is not there).
    const attempts = one.outcome.counters.attempts;
    if (changed != .node) try testing.expectEqual(@as(u32, 1), attempts);
    try expectFailed(&zero.outcome, 1, at_zero);
    try testing.expectEqual(@as(u32, 1), zero.outcome.counters.refused);
    try testing.expect(std.mem.find(u8, zero.outcome.text(), "from 127.0.0.1:") != null);
}

test "a peer of another build is named by both" {
    const words = "peer runs build 0000000000000abc, this is 0000000000000def";
    try expectMismatch(.build, words, "peer runs build 0000000000000def");
}

test "a peer of another start of the VM is named by both" {
    try expectMismatch(.generation, "peer belongs to start 3 of the VM", "start 2 of the VM");
}

test "a peer with another key is named by both" {
    try expectMismatch(.key, "peer refused this node: its key", "does not have this VM's key");
}

test "a peer with an id too high is named by both" {
    try expectMismatch(.node, "it expects another node id", "peer is node 2, expected node 1");
}

test "a peer that is not there is named with its address" {
    var one: Node = .{ .config = configOf(1, 2, -1, after(130)) };
    one.config.addresses[0] = try freeAddress();
    linkup.connectAll(&one.config, &one.outcome);
    var buffer: [200]u8 = undefined;
    const words = try std.fmt.bufPrint(&buffer, "node 0 at {f} not reached in time: " ++
        "connection refused: is its engine running?", .{one.config.addresses[0].?});
    try expectFailed(&one.outcome, 0, words);
    try testing.expect(one.outcome.counters.attempts >= 2);
}

test "a peer that does not come is named" {
    const listener = try listenLocal();
    defer sys.close(listener.fd);
    var zero: Node = .{ .config = configOf(0, 3, listener.fd, after(30)) };
    linkup.connectAll(&zero.config, &zero.outcome);
    try expectFailed(&zero.outcome, 1, "node 1 did not connect in time, and nobody else did");
}

test "what is missing is said before anything starts" {
    var one: Node = .{ .config = configOf(1, 2, -1, after(long_ms)) };
    linkup.connectAll(&one.config, &one.outcome);
    try expectFailed(&one.outcome, 0, "node 0 has no address to connect to");
    var zero: Node = .{ .config = configOf(0, 2, -1, after(long_ms)) };
    linkup.connectAll(&zero.config, &zero.outcome);
    try expectFailed(&zero.outcome, linkup.node_none, "node 0 has no socket for its peers");
}

test "waiting can be cancelled" {
    const listener = try listenLocal();
    defer sys.close(listener.fd);
    var cancel: std.atomic.Value(u32) = .init(0);
    var zero: Node = .{ .config = configOf(0, 2, listener.fd, after(long_ms)) };
    zero.config.cancel = &cancel;
    defer zero.close();
    try zero.start();
    // Release is not needed for the flag alone; it matches how the engine stores it.
    cancel.store(1, .release);
    zero.join();
    try testing.expectEqual(linkup.Status.cancelled, zero.outcome.status);
}

test "a peer whose listener comes late is reached" {
    const address = try freeAddress();
    var one: Node = .{ .config = configOf(1, 2, -1, after(long_ms)) };
    one.config.addresses[0] = address;
    defer one.close();
    try one.start();
    sys.futexWait(&std.atomic.Value(u32).init(0), 0, 150 * std.time.ns_per_ms);
    const listener = try tcp.listen(address);
    defer sys.close(listener.fd);
    var zero: Node = .{ .config = configOf(0, 2, listener.fd, after(long_ms)) };
    defer zero.close();
    try zero.start();
    zero.join();
    one.join();
    try expectLinked(&zero.outcome);
    try expectLinked(&one.outcome);
    try testing.expect(one.outcome.counters.attempts >= 2);
}

test "a peer that comes again is taken at its newest connection" {
    const listener = try listenLocal();
    defer sys.close(listener.fd);
    var zero: Node = .{ .config = configOf(0, 3, listener.fd, after(long_ms)) };
    defer zero.close();
    try zero.start();
    var own: handshake.Identity = .{
        .node = 1,
        .abi_hash = 0xabc,
        .vm_generation = 3,
        .peer_min = 0,
        .peer_max = 0,
    };
    var fds: [3]i32 = @splat(-1);
    defer for (fds) |fd| sys.close(fd);
    for (&fds, [_]u8{ 1, 1, 2 }) |*fd, node| {
        own.node = node;
        fd.* = try tcp.connect(addressOf(listener), after(long_ms));
        const result = handshake.perform(fd.*, .connecting, own, &key, after(long_ms));
        try testing.expect(result == .connected);
        if (node == 1 and fd == &fds[0]) continue;
        // The older one is closed as soon as the newer one has proved itself.
        if (node == 1) try tcp.waitFor(fds[0], linux.POLL.IN, after(long_ms));
    }
    zero.join();
    try expectLinked(&zero.outcome);
    try testing.expectEqual(@as(u32, 1), zero.outcome.counters.replaced);
    try sys.writeAll(zero.outcome.fds[1], "1");
    try tcp.waitFor(fds[1], linux.POLL.IN, after(long_ms));
}
