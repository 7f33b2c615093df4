//! The handshake against every peer that must not get in: strangers, other builds, other VMs,
//! holders of another key, recorders, mirrors, the silent, the slow, and those who change a byte.

const std = @import("std");
const linux = std.os.linux;
const testing = std.testing;
const sys = @import("../base/sys.zig");
const handshake = @import("handshake.zig");
const seal = @import("seal.zig");
const tcp = @import("tcp.zig");
const lane_test = @import("lane_test.zig");
const Handshake = handshake.Handshake;
const Hello = handshake.Hello;
const Answer = handshake.Answer;
const Verdict = handshake.Verdict;

const key: handshake.Key = @splat(0x42);
const other_key: handshake.Key = @splat(0x43);
/// Node 0 accepts, node 1 connects.
const zero: handshake.Identity = .{
    .node = 0,
    .abi_hash = 0xabc,
    .vm_generation = 5,
    .peer_min = 1,
    .peer_max = 3,
};
const one: handshake.Identity = .{
    .node = 1,
    .abi_hash = 0xabc,
    .vm_generation = 5,
    .peer_min = 0,
    .peer_max = 0,
};

const Side = struct { own: handshake.Identity, key: *const handshake.Key = &key };
const Both = struct { accepting: handshake.Result, connecting: handshake.Result };

fn within(ms: u64) u64 {
    return sys.monotonicNs() + ms * std.time.ns_per_ms;
}

/// Both sides by turns in one thread, until each has its result.
fn meet(accepting: Side, connecting: Side) !Both {
    const pair = try lane_test.socketPair();
    defer sys.close(pair.near);
    defer sys.close(pair.far);
    var a = try Handshake.init(.accepting, accepting.own, accepting.key);
    var c = try Handshake.init(.connecting, connecting.own, connecting.key);
    var from_a: ?handshake.Result = null;
    var from_c: ?handshake.Result = null;
    for (0..20) |_| {
        if (from_c == null) from_c = resultOf(c.advance(pair.far));
        if (from_a == null) from_a = resultOf(a.advance(pair.near));
    }
    return .{ .accepting = from_a.?, .connecting = from_c.? };
}

fn resultOf(progress: handshake.Progress) ?handshake.Result {
    return switch (progress) {
        .waiting => null,
        .finished => |result| result,
    };
}

fn expectReason(want: handshake.Reason, result: handshake.Result) !void {
    try testing.expectEqual(want, result.refused.reason);
}

fn expectWords(want: []const u8, result: handshake.Result) !void {
    var buffer: [200]u8 = undefined;
    const text = try std.fmt.bufPrint(&buffer, "{f}", .{result.refused});
    try testing.expectEqualStrings(want, text);
}

test "two nodes of one VM get each other's number" {
    const both = try meet(.{ .own = zero }, .{ .own = one });
    try testing.expectEqual(@as(u8, 1), both.accepting.connected.node);
    try testing.expectEqual(@as(u8, 0), both.connecting.connected.node);
}

test "another build is named on both sides" {
    var own = one;
    own.abi_hash = 0xdef;
    const both = try meet(.{ .own = zero }, .{ .own = own });
    try expectWords("peer runs build 0000000000000def, this is 0000000000000abc: " ++
        "install the same build on both", both.accepting);
    try expectWords("peer runs build 0000000000000abc, this is 0000000000000def: " ++
        "install the same build on both", both.connecting);
}

test "an engine of another start of the VM is named on both sides" {
    var own = one;
    own.vm_generation = 4;
    const both = try meet(.{ .own = zero }, .{ .own = own });
    try expectWords("peer belongs to start 4 of the VM, this is start 5: " ++
        "an engine was left behind", both.accepting);
    try expectReason(.wrong_generation, both.connecting);
}

test "another node than expected is named by the one who expected" {
    var own = one;
    own.peer_min = 2;
    own.peer_max = 2;
    const at_connecting = try meet(.{ .own = zero }, .{ .own = own });
    try expectWords("peer is node 0, expected node 2: check ids and addresses", //
        at_connecting.connecting);
    try expectWords("peer refused this node: it expects another node id", at_connecting.accepting);

    own = one;
    own.node = 7;
    const at_accepting = try meet(.{ .own = zero }, .{ .own = own });
    try expectWords("peer is node 7, expected node 1 to 3: check ids and addresses", //
        at_accepting.accepting);
    try expectWords("peer refused this node: it expects another node id", at_accepting.connecting);

    // A range that includes the own id does not make a node its own peer.
    own = zero;
    own.peer_min = 0;
    const twins = try meet(.{ .own = own }, .{ .own = own });
    try expectReason(.wrong_node, twins.accepting);
    try expectReason(.wrong_node, twins.connecting);
}

test "another key is named on both sides" {
    const both = try meet(.{ .own = zero }, .{ .own = one, .key = &other_key });
    try expectWords("peer does not have this VM's key", both.accepting);
    try expectWords("peer refused this node: its key for this VM is another", both.connecting);
}

/// A peer played by hand.
const Puppet = struct {
    pair: struct { near: i32, far: i32 },

    fn open() !Puppet {
        const pair = try lane_test.socketPair();
        return .{ .pair = .{ .near = pair.near, .far = pair.far } };
    }

    fn close(self: *Puppet) void {
        sys.close(self.pair.near);
        sys.close(self.pair.far);
    }

    fn say(self: *Puppet, message: anytype) !void {
        try sys.writeAll(self.pair.far, std.mem.asBytes(message));
    }

    fn hear(self: *Puppet, comptime T: type) !T {
        var out: T = undefined;
        const bytes = std.mem.asBytes(&out);
        const flags = linux.MSG.WAITALL | linux.MSG.DONTWAIT;
        const r = linux.recvfrom(self.pair.far, bytes, bytes.len, flags, null, null);
        try testing.expectEqual(bytes.len, try sys.check(r));
        return out;
    }

    fn hearsNothing(self: *Puppet) bool {
        var byte: [1]u8 = undefined;
        const r = linux.recvfrom(self.pair.far, &byte, 1, linux.MSG.DONTWAIT, null, null);
        return linux.errno(r) == .AGAIN;
    }

    fn leave(self: *Puppet) void {
        sys.close(self.pair.far);
        self.pair.far = -1;
    }
};

fn helloOf(role: handshake.Role, own: handshake.Identity) Hello {
    return .{
        .role = @backingInt(role),
        .node = own.node,
        .abi_hash = own.abi_hash,
        .ciphers = 1,
        .vm_generation = own.vm_generation,
        .instance = own.instance,
        .nonce = @splat(7),
    };
}

test "a stranger learns nothing, not even who is here" {
    var puppet = try Puppet.open();
    defer puppet.close();
    const request = "GET / HTTP/1.1\r\nHost: node\r\nUser-Agent: scan of every open port\r\n\r\n";
    try testing.expect(request.len >= @sizeOf(Hello));
    try sys.writeAll(puppet.pair.far, request);
    var shake = try Handshake.init(.accepting, zero, &key);
    const result = resultOf(shake.advance(puppet.pair.near)).?;
    try expectWords("what answers there is not an SSI-HV lane", result);
    try testing.expect(puppet.hearsNothing());
    try testing.expect(!result.refused.isTransient());
}

test "another wire version is refused by number" {
    var puppet = try Puppet.open();
    defer puppet.close();
    var hello = helloOf(.connecting, one);
    hello.wire_version = 9;
    try puppet.say(&hello);
    var shake = try Handshake.init(.accepting, zero, &key);
    const result = resultOf(shake.advance(puppet.pair.near)).?;
    try expectWords("peer speaks wire version 9, this node 4: install the same build on both", //
        result);
    _ = try puppet.hear(Hello);
    const answer = try puppet.hear(Answer);
    try testing.expectEqual(@backingInt(handshake.Reason.wrong_wire_version), answer.refusal);
}

test "a mirror is refused: hello sent back" {
    var puppet = try Puppet.open();
    defer puppet.close();
    var shake = try Handshake.init(.connecting, one, &key);
    try testing.expectEqual(handshake.Progress.waiting, shake.advance(puppet.pair.near));
    try puppet.say(&try puppet.hear(Hello));
    const result = resultOf(shake.advance(puppet.pair.near)).?;
    try expectReason(.wrong_role, result);
    // A connection to itself is an accident of port numbers: worth another attempt.
    try testing.expect(result.refused.isTransient());
}

test "a mirror is refused: proof sent back under a hello with the other role" {
    var puppet = try Puppet.open();
    defer puppet.close();
    var shake = try Handshake.init(.connecting, one, &key);
    _ = shake.advance(puppet.pair.near);
    var hello = try puppet.hear(Hello);
    hello.role = @backingInt(handshake.Role.accepting);
    hello.node = 0;
    try puppet.say(&hello);
    _ = shake.advance(puppet.pair.near);
    try puppet.say(&try puppet.hear(Answer));
    try expectReason(.bad_proof, resultOf(shake.advance(puppet.pair.near)).?);
    const verdict = try puppet.hear(Verdict);
    try testing.expectEqual(@backingInt(handshake.Reason.bad_proof), verdict.refusal);
}

test "a recorded handshake is refused when played again" {
    // Recorded: everything the connecting side said in a handshake that succeeded.
    var record = try Puppet.open();
    defer record.close();
    var a = try Handshake.init(.accepting, zero, &key);
    var c = try Handshake.init(.connecting, one, &key);
    const hello = c.own_hello;
    var answer: Answer = undefined;
    for (0..4) |_| {
        _ = c.advance(record.pair.far);
        if (c.phase == .proof) answer = .{ .refusal = 0, .proof = c.proofOf(.connecting) };
        _ = a.advance(record.pair.near);
    }
    try testing.expect(a.result.? == .connected);

    var replay = try Puppet.open();
    defer replay.close();
    try replay.say(&hello);
    try replay.say(&answer);
    try replay.say(&Verdict{ .refusal = 0 });
    var again = try Handshake.init(.accepting, zero, &key);
    try expectReason(.bad_proof, resultOf(again.advance(replay.pair.near)).?);
}

test "no two hellos share a nonce" {
    const a = try Handshake.init(.connecting, one, &key);
    const b = try Handshake.init(.connecting, one, &key);
    try testing.expect(!std.mem.eql(u8, &a.own_hello.nonce, &b.own_hello.nonce));
}

test "a byte changed on the way, any byte, ends the handshake" {
    const spoken = @sizeOf(Hello) + @sizeOf(Answer);
    for (0..2 * spoken) |i| {
        const victim: handshake.Role = if (i < spoken) .connecting else .accepting;
        const both = try meetThroughTamperer(victim, i % spoken);
        // Neither is ever taken in by the other.
        try testing.expect(both[0] == null or both[0].? == .refused);
        try testing.expect(both[1] == null or both[1].? == .refused);
        try testing.expect(both[0] != null or both[1] != null);
    }
}

/// Relays between the two and flips one bit of byte `at` of what `victim` says.
fn meetThroughTamperer(victim: handshake.Role, at: usize) ![2]?handshake.Result {
    var left = try Puppet.open();
    defer left.close();
    var right = try Puppet.open();
    defer right.close();
    var a = try Handshake.init(.accepting, zero, &key);
    var c = try Handshake.init(.connecting, one, &key);
    var results: [2]?handshake.Result = .{ null, null };
    var said: [2]usize = .{ 0, 0 };
    for (0..12) |_| {
        if (results[0] == null) results[0] = resultOf(c.advance(left.pair.near));
        const bad_c = if (victim == .connecting) at else null;
        try relay(left.pair.far, right.pair.far, &said[0], bad_c);
        if (results[1] == null) results[1] = resultOf(a.advance(right.pair.near));
        const bad_a = if (victim == .accepting) at else null;
        try relay(right.pair.far, left.pair.far, &said[1], bad_a);
    }
    return results;
}

fn relay(from: i32, to: i32, said: *usize, bad: ?usize) !void {
    var buffer: [256]u8 = undefined;
    const flags = linux.MSG.DONTWAIT;
    const r = linux.recvfrom(from, &buffer, buffer.len, flags, null, null);
    if (linux.errno(r) == .AGAIN) return;
    const bytes = buffer[0..try sys.check(r)];
    if (bad) |at| if (at >= said.* and at < said.* + bytes.len) {
        bytes[at - said.*] ^= 0x10;
    };
    said.* += bytes.len;
    try sys.writeAll(to, bytes);
}

test "the silent and the slow run into the deadline" {
    var silent = try Puppet.open();
    defer silent.close();
    const first = handshake.perform(silent.pair.near, .accepting, zero, &key, within(20));
    try expectWords("no hello from the peer in time", first);
    try testing.expect(first.refused.isTransient());

    var slow = try Puppet.open();
    defer slow.close();
    const hello = helloOf(.connecting, one);
    const Trickle = struct {
        fn run(fd: i32, bytes: []const u8, over: *std.atomic.Value(u32)) void {
            for (bytes) |byte| {
                // Acquire pairs with the store after perform().
                if (over.load(.acquire) != 0) return;
                sys.writeAll(fd, &.{byte}) catch return;
                sys.futexWait(over, 0, 5 * std.time.ns_per_ms);
            }
        }
    };
    var over: std.atomic.Value(u32) = .init(0);
    const bytes = std.mem.asBytes(&hello)[0 .. @sizeOf(Hello) - 1];
    const thread = try std.Thread.spawn(.{}, Trickle.run, .{ slow.pair.far, bytes, &over });
    const second = handshake.perform(slow.pair.near, .accepting, zero, &key, within(40));
    over.store(1, .release);
    sys.futexWake(&over, 1);
    thread.join();
    try expectReason(.timed_out, second);
}

test "a peer that stops after its hello is missed for its proof, then for its verdict" {
    var puppet = try Puppet.open();
    defer puppet.close();
    try puppet.say(&helloOf(.connecting, one));
    const result = handshake.perform(puppet.pair.near, .accepting, zero, &key, within(20));
    try expectWords("no proof from the peer in time", result);
}

test "a peer that leaves is missed for what it owed" {
    const Case = struct { spoken: u8, words: []const u8 };
    const cases = [_]Case{
        .{ .spoken = 0, .words = "peer closed the connection before its hello" },
        .{ .spoken = 1, .words = "peer closed the connection before its proof" },
        .{ .spoken = 2, .words = "peer closed the connection before its verdict" },
    };
    for (cases) |case| {
        var puppet = try Puppet.open();
        defer puppet.close();
        var a = try Handshake.init(.accepting, zero, &key);
        var c = try Handshake.init(.connecting, one, &key);
        for (0..case.spoken) |_| {
            _ = c.advance(puppet.pair.far);
            try testing.expectEqual(handshake.Progress.waiting, a.advance(puppet.pair.near));
        }
        puppet.leave();
        const result = resultOf(a.advance(puppet.pair.near)).?;
        try expectWords(case.words, result);
        try testing.expect(result.refused.isTransient());
    }
}

test "a refusal sent just before a close is still heard" {
    var puppet = try Puppet.open();
    defer puppet.close();
    try puppet.say(&helloOf(.accepting, zero));
    const code = @backingInt(handshake.Reason.wrong_node);
    try puppet.say(&Answer{ .refusal = code, .proof = @splat(0) });
    puppet.leave();
    // Its first send fails: the reader is gone.
    const result = handshake.perform(puppet.pair.near, .connecting, one, &key, within(1000));
    try expectWords("peer refused this node: it expects another node id", result);
}

test "a refusal of a kind unknown here is a refusal" {
    var puppet = try Puppet.open();
    defer puppet.close();
    try puppet.say(&helloOf(.accepting, zero));
    try puppet.say(&Answer{ .refusal = 200, .proof = @splat(0) });
    const result = handshake.perform(puppet.pair.near, .connecting, one, &key, within(1000));
    try expectWords("peer refused this node: reason 200", result);
}

test "what follows the handshake is left to the lane" {
    var puppet = try Puppet.open();
    defer puppet.close();
    const Connect = struct {
        fn run(fd: i32, out: *handshake.Result) void {
            out.* = handshake.perform(fd, .connecting, one, &key, within(10_000));
            sys.writeAll(fd, "first frame") catch |err| std.debug.panic("{t}", .{err});
        }
    };
    var connecting: handshake.Result = undefined;
    const thread = try std.Thread.spawn(.{}, Connect.run, .{ puppet.pair.far, &connecting });
    const fd = puppet.pair.near;
    const accepting = handshake.perform(fd, .accepting, zero, &key, within(10_000));
    thread.join();
    try testing.expect(accepting == .connected and connecting == .connected);
    var buffer: [32]u8 = undefined;
    const n = try sys.check(linux.read(fd, &buffer, buffer.len));
    try testing.expectEqualStrings("first frame", buffer[0..n]);
}

test "random bytes never get in and never crash" {
    var prng = std.Random.DefaultPrng.init(testing.random_seed);
    const random = prng.random();
    for (0..2000) |_| {
        var puppet = try Puppet.open();
        defer puppet.close();
        const role: handshake.Role = if (random.boolean()) .accepting else .connecting;
        const own = if (role == .accepting) zero else one;
        var shake = try Handshake.init(role, own, &key);
        var bytes: [@sizeOf(Hello) + @sizeOf(Answer) + 20]u8 = undefined;
        random.bytes(&bytes);
        if (random.boolean()) {
            // A good hello, so that the proof is reached.
            const far: handshake.Role = if (role == .accepting) .connecting else .accepting;
            const hello = helloOf(far, if (role == .accepting) one else zero);
            @memcpy(bytes[0..@sizeOf(Hello)], std.mem.asBytes(&hello));
            if (random.boolean()) bytes[@sizeOf(Hello)] = 0;
        }
        try sys.writeAll(puppet.pair.far, bytes[0..random.uintAtMost(usize, bytes.len)]);
        puppet.leave();
        try testing.expect(resultOf(shake.advance(puppet.pair.near)).? == .refused);
    }
}

test "an engine that was started anew is refused by both" {
    var known: [8]u64 = @splat(0);
    known[1] = 77;
    var own = zero;
    own.peer_instances = &known;
    var peer = one;
    peer.instance = 77;
    try testing.expect((try meet(.{ .own = own }, .{ .own = peer })).accepting == .connected);
    peer.instance = 78;
    const both = try meet(.{ .own = own }, .{ .own = peer });
    try expectWords("peer was started anew: what its engine held of the VM is gone", //
        both.accepting);
    try expectWords("peer refused this node: it knows another process as this node", //
        both.connecting);
    try testing.expect(!both.connecting.refused.isTransient());
}

test "both ends get the same keys, each connection others" {
    var seen: [2][32]u8 = undefined;
    for (&seen) |*key_seen| {
        const both = try meet(.{ .own = zero }, .{ .own = one });
        const a = both.accepting.connected.keys;
        const c = both.connecting.connected.keys;
        try testing.expectEqualSlices(u8, &a.tx.key, &c.rx.key);
        try testing.expectEqualSlices(u8, &a.rx.key, &c.tx.key);
        try testing.expect(!std.mem.eql(u8, &a.rx.key, &a.tx.key));
        key_seen.* = a.tx.key;
    }
    try testing.expect(!std.mem.eql(u8, &seen[0], &seen[1]));
}

test "bytes fed in any pieces end as bytes from a socket do" {
    for (1..65) |piece| {
        var a = try Handshake.init(.accepting, zero, &key);
        var c = try Handshake.init(.connecting, one, &key);
        while (c.result == null or a.result == null) {
            for ([_][2]*Handshake{ .{ &c, &a }, .{ &a, &c } }) |way| {
                const from, const to = way;
                while (from.out_start < from.out_end) {
                    const n = @min(piece, from.out_end - from.out_start);
                    try testing.expectEqual(n, to.feed(from.out[from.out_start..][0..n]));
                    from.out_start += n;
                }
            }
        }
        try testing.expect(a.result.? == .connected and c.result.? == .connected);
    }
}

test "a proof's bytes and keys are fixed, and another program computes the same" {
    var shake = try Handshake.init(.connecting, one, &key);
    shake.own_hello.nonce = @splat(1);
    shake.own_hello.ciphers = 1;
    shake.peer_hello = helloOf(.accepting, zero);
    const hex = std.fmt.bytesToHex(shake.proofOf(.connecting), .lower);
    // Computed with Python's hmac and struct from the layout in handshake.zig.
    const golden = "d6964c90870787bfc5d3aaacc16ee97b2d9efac45f39dc43faa8f09c8a378eb4";
    try testing.expectEqualStrings(golden, &hex);
    const golden_key = "aa3948bce0abd075df3065771e579dc4f78b40a6cb83d60022e82ee8f81a275f";
    const both = std.mem.toBytes([2]Hello{ shake.own_hello, shake.peer_hello });
    const keys: seal.Keys = .derive(&key, .chacha20_poly1305, &both, true);
    try testing.expectEqualStrings(golden_key, &std.fmt.bytesToHex(keys.tx.key, .lower));
    try testing.expectEqualStrings("SSIHVLAN", std.mem.asBytes(&shake.own_hello)[0..8]);
}
