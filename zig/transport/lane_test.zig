//! One conformance suite for lanes, run over every kind of socket a lane may get: loopback TCP and
//! a local socket pair. Where the bytes of a peer are played by hand, the test writes them to the
//! far descriptor itself. Counters are asserted, times never. Cuts: resume_test.zig.

const std = @import("std");
const linux = std.os.linux;
const testing = std.testing;
const sys = @import("../base/sys.zig");
const frame = @import("frame.zig");
const lane = @import("lane.zig");
const seal = @import("seal.zig");
const tcp = @import("tcp.zig");
const Lane = lane.Lane;

const Pair = struct { near: i32, far: i32 };
const MakePair = *const fn () anyerror!Pair;

fn soon() u64 {
    return sys.monotonicNs() + 10 * std.time.ns_per_s;
}

pub fn tcpPair() anyerror!Pair {
    const listener = try tcp.listen(try tcp.Address.parse("127.0.0.1:0"));
    defer sys.close(listener.fd);
    const near = try tcp.connect(tcp.Address.local(listener.fd).?, soon());
    errdefer sys.close(near);
    return .{ .near = near, .far = try tcp.accept(listener.fd, soon()) };
}

pub fn socketPair() anyerror!Pair {
    var fds: [2]i32 = undefined;
    const kind = linux.SOCK.STREAM | linux.SOCK.CLOEXEC;
    _ = try sys.check(linux.socketpair(linux.AF.UNIX, kind, 0, &fds));
    return .{ .near = fds[0], .far = fds[1] };
}

pub const small: lane.Options = .{
    .tx_bytes = 16 << 10,
    .reserve_bytes = 4 << 10,
    .wire_bytes = 8192,
    .rx_bytes = 8192,
};

/// Keys as a handshake would give: [0] for one end, [1] for the other.
pub fn keyPair(seed: u64) [2]seal.Keys {
    const key: [32]u8 = @splat(0x5c);
    const cipher = seal.Cipher.choose(seal.offered(), seal.offered());
    const hellos = std.mem.asBytes(&seed);
    return .{ .derive(&key, cipher, hellos, true), .derive(&key, cipher, hellos, false) };
}

fn overBoth(comptime run: fn (MakePair) anyerror!void) !void {
    for ([_]MakePair{ tcpPair, socketPair }) |make| try run(make);
}

const Ends = struct {
    near: Lane,
    far: Lane,

    fn open(make: MakePair, options: lane.Options) !Ends {
        var near: Lane = try .init(testing.allocator, 1, options);
        errdefer near.deinit();
        var far: Lane = try .init(testing.allocator, 0, options);
        errdefer far.deinit();
        const pair = try make();
        const keys = keyPair(0);
        const adopted = near.adopt(.{ .fd = pair.near, .keys = keys[0] });
        try far.adopt(.{ .fd = pair.far, .keys = keys[1] });
        try adopted;
        var ends: Ends = .{ .near = near, .far = far };
        try ends.settle();
        return ends;
    }

    /// Both have the other's resume.
    fn settle(self: *Ends) !void {
        for ([_]*Lane{ &self.near, &self.far }) |l| try testing.expect(try l.flush());
        for ([_]*Lane{ &self.near, &self.far }) |l| {
            while (l.phase != .up) {
                if (try l.receive() == 0) try tcp.waitFor(l.fd, linux.POLL.IN, soon());
                try testing.expectEqual(@as(?lane.Received, null), try l.next());
            }
            l.counters = .{};
        }
    }

    fn close(self: *Ends) void {
        self.near.deinit();
        self.far.deinit();
    }
};

/// A peer played by hand: what it says is sealed as a lane would, unless the test spoils it.
const Puppet = struct {
    fd: i32,
    keys: seal.Keys,

    /// Lane and puppet with resumes exchanged.
    fn open(make: MakePair) !struct { Lane, Puppet } {
        var l: Lane = try .init(testing.allocator, 1, small);
        errdefer l.deinit();
        const pair = try make();
        const keys = keyPair(1);
        var puppet: Puppet = .{ .fd = pair.far, .keys = keys[1] };
        errdefer sys.close(pair.far);
        try l.adopt(.{ .fd = pair.near, .keys = keys[0] });
        try testing.expect(try l.flush());
        var out: [64]u8 = undefined;
        try puppet.say(puppet.encode(&out, resume_kind, 0, &@as([8]u8, @splat(0))));
        while (l.phase != .up) {
            if (try l.receive() == 0) try tcp.waitFor(l.fd, linux.POLL.IN, soon());
            try testing.expectEqual(@as(?lane.Received, null), try l.next());
        }
        l.counters = .{};
        return .{ l, puppet };
    }

    fn say(self: *const Puppet, bytes: []const u8) !void {
        try sys.writeAll(self.fd, bytes);
    }

    fn encode(self: *Puppet, out: []u8, kind: u8, sequence: u32, payload: []const u8) []const u8 {
        return self.encodeHeader(out, .{
            .length = @intCast(payload.len),
            .kind = kind,
            .sequence = sequence,
        }, payload);
    }

    /// A frame as a peer would write it, into `out`.
    fn encodeHeader(
        self: *Puppet,
        out: []u8,
        header: frame.Header,
        payload: []const u8,
    ) []const u8 {
        const ad = out[0..frame.header_bytes];
        ad.* = std.mem.toBytes(header);
        const end = frame.header_bytes + payload.len;
        const tag = out[end..][0..frame.tag_bytes];
        self.keys.tx.seal(out[frame.header_bytes..end], tag, payload, ad);
        return out[0 .. end + frame.tag_bytes];
    }
};

/// Waits for the next frame; the peer has sent it or is about to.
fn take(l: *Lane) !lane.Received {
    while (true) {
        if (try l.next()) |received| return received;
        if (try l.receive() == 0) try tcp.waitFor(l.fd, linux.POLL.IN, soon());
    }
}

/// Reads until the peer's close is seen; frames stay unread.
fn awaitClose(l: *Lane) !void {
    while (true) {
        const n = l.receive() catch |err| return switch (err) {
            error.PeerClosed => {},
            else => err,
        };
        if (n == 0) try tcp.waitFor(l.fd, linux.POLL.IN, soon());
    }
}

fn fill(bytes: []u8, seed: u64) void {
    var prng = std.Random.DefaultPrng.init(seed);
    prng.random().bytes(bytes);
}

const protocol = @backingInt(frame.Kind.protocol);
const span = @backingInt(frame.Kind.span);
const ping = @backingInt(frame.Kind.ping);
const bye = @backingInt(frame.Kind.bye);
const resume_kind = @backingInt(frame.Kind.@"resume");
const overhead = frame.header_bytes + frame.tag_bytes;

fn everyKindArrives(make: MakePair) !void {
    var ends = try Ends.open(make, small);
    defer ends.close();
    var message: [frame.protocol_bytes]u8 = undefined;
    var page: [frame.page_bytes]u8 = undefined;
    fill(&message, 1);
    fill(&page, 2);
    try ends.near.queue(protocol, &.{&message});
    try ends.near.queue(protocol, &.{ &message, &page });
    try ends.near.queue(span, &.{});
    try ends.near.queue(ping, &.{"12345678"});
    try ends.near.queue(bye, &.{ "\x07\x00\x00\x00", "power off" });
    const wire = 5 * overhead + 2 * 40 + 4096 + 8 + 13;
    const kept = wire - 5 * frame.tag_bytes;
    try testing.expectEqual(@as(usize, kept), ends.near.queued());
    try testing.expect(try ends.near.flush());
    try testing.expectEqual(@as(usize, 0), ends.near.queued());

    const first = try take(&ends.far);
    try testing.expectEqual(frame.Kind.protocol, first.kind);
    try testing.expectEqualSlices(u8, &message, first.payload);
    const second = try take(&ends.far);
    try testing.expectEqualSlices(u8, &message, second.payload[0..message.len]);
    try testing.expectEqualSlices(u8, &page, second.payload[message.len..]);
    const third = try take(&ends.far);
    try testing.expectEqual(frame.Kind.span, third.kind);
    try testing.expectEqual(@as(usize, 0), third.payload.len);
    try testing.expectEqualStrings("12345678", (try take(&ends.far)).payload);
    try testing.expectEqualStrings("power off", (try take(&ends.far)).payload[4..]);
    try testing.expectEqual(@as(?lane.Received, null), try ends.far.next());
    try testing.expect(!ends.far.midFrame());

    const sent = ends.near.counters;
    try testing.expectEqual(@as(u64, 5), sent.messages_sent);
    try testing.expectEqual(@as(u64, wire), sent.bytes_sent);
    try testing.expectEqual(@as(u64, kept), sent.unacked_bytes_max);
    try testing.expectEqual(@as(usize, kept), ends.near.unacked());
    try testing.expectEqual(@as(u64, 1), sent.writes);
    const got = ends.far.counters;
    try testing.expectEqual(@as(u64, 5), got.messages_received);
    try testing.expectEqual(@as(u64, wire), got.bytes_received);
}

test "every kind arrives as it was sent, in one write" {
    try overBoth(everyKindArrives);
}

/// Three frames of different kinds, cut in two at every byte.
fn anyCutIsHarmless(make: MakePair) !void {
    var wire: [3 * frame.frame_max]u8 = undefined;
    var payload: [frame.payload_max]u8 = undefined;
    fill(&payload, 3);
    var size: usize = 0;
    const cases = [_]struct { u8, usize }{ .{ protocol, 40 }, .{ span, 77 }, .{ ping, 3 } };
    for (cases) |f| size += overhead + f[1];
    const first = size;
    for (1..first) |cut| {
        var l, var puppet = try Puppet.open(make);
        defer sys.close(puppet.fd);
        defer l.deinit();
        size = 0;
        for (cases, 0..) |f, i| {
            size += puppet.encode(wire[size..], f[0], @intCast(i), payload[0..f[1]]).len;
        }
        try puppet.say(wire[0..cut]);
        while (l.counters.bytes_received < cut) {
            if (try l.receive() == 0) try tcp.waitFor(l.fd, linux.POLL.IN, soon());
        }
        var seen: usize = 0;
        while (try l.next()) |_| seen += 1;
        try puppet.say(wire[cut..size]);
        for (seen..3) |i| {
            const received = try take(&l);
            const want = [_]usize{ 40, 77, 3 };
            try testing.expectEqualSlices(u8, payload[0..want[i]], received.payload);
        }
        try testing.expectEqual(@as(u64, size), l.counters.bytes_received);
        try testing.expect(!l.midFrame());
    }
}

test "frames cut at any byte are put together" {
    try overBoth(anyCutIsHarmless);
}

/// The ring wraps at every offset, the socket takes and brings what it likes.
fn longStreamIsWhole(make: MakePair) !void {
    var ends = try Ends.open(make, small);
    defer ends.close();
    // A small send buffer: many partial writes. (A small receive buffer would only test TCP's timer
    // for closed windows.)
    const least: i32 = 1;
    const bytes = std.mem.asBytes(&least);
    const level = linux.SOL.SOCKET;
    _ = linux.setsockopt(ends.near.fd, level, linux.SO.SNDBUF, bytes, @sizeOf(i32));
    var prng = std.Random.DefaultPrng.init(11);
    const random = prng.random();
    var payload: [frame.payload_max]u8 = undefined;
    var sent: u64 = 0;
    var taken: u64 = 0;
    const total = 3000;
    while (taken < total) {
        while (sent < total) : (sent += 1) {
            const length = streamLength(sent);
            fill(payload[0..length], sent);
            const split = random.uintAtMost(usize, length);
            const parts = [_][]const u8{ payload[0..split], payload[split..length] };
            const kind = if (length > frame.span_max) protocol else span;
            ends.near.queue(kind, &parts) catch |err| {
                try testing.expectEqual(error.Full, err);
                break;
            };
        }
        _ = try ends.near.flush();
        _ = try ends.near.receive();
        try testing.expectEqual(@as(?lane.Received, null), try ends.near.next());
        if (try ends.far.receive() == 0) {
            // Nothing under way but an acknowledgement that waits for company.
            ends.far.is_ack_due = true;
            _ = try ends.far.flush();
            continue;
        }
        while (try ends.far.next()) |received| : (taken += 1) {
            const length = streamLength(taken);
            try testing.expectEqual(length, received.payload.len);
            fill(payload[0..length], taken);
            try testing.expectEqualSlices(u8, payload[0..length], received.payload);
        }
    }
    try testing.expectEqual(@as(u64, total), ends.near.counters.messages_sent);
    try testing.expectEqual(@as(u64, total), ends.far.counters.messages_received);
    try testing.expectEqual(ends.near.counters.bytes_sent, ends.far.counters.bytes_received);
    try testing.expect(ends.near.counters.refused > 0);
    try testing.expect(ends.near.counters.unacked_bytes_max <= small.tx_bytes);
}

fn streamLength(number: u64) usize {
    return if (number % 5 == 0) frame.payload_max else @intCast(number * 7 % 257);
}

test "a long stream through a small ring and a small socket is whole and in order" {
    try overBoth(longStreamIsWhole);
}

/// Whole frames at the far end, acknowledged at once.
fn drain(l: *Lane, want: []const u8) !u64 {
    var taken: u64 = 0;
    while (try l.receive() > 0) {
        while (try l.next()) |received| : (taken += 1) {
            try testing.expectEqualSlices(u8, want, received.payload);
        }
    }
    l.is_ack_due = taken > 0;
    _ = try l.flush();
    return taken;
}

fn slowPeerHoldsBack(make: MakePair) !void {
    var ends = try Ends.open(make, small);
    defer ends.close();
    const question: [frame.protocol_bytes]u8 = @splat(9);
    const answer: [frame.payload_max]u8 = @splat(9);
    var asked: u64 = 0;
    while (ends.near.mayRequest()) : (asked += 1) {
        try ends.near.queue(protocol, &.{&question});
        _ = try ends.near.flush();
    }
    // The socket took it all, and yet no more is let in: the peer has not.
    try testing.expect(ends.near.queued() == 0 or ends.near.counters.blocked > 0);
    try testing.expect(ends.near.unacked() <= small.tx_bytes - small.reserve_bytes);
    try testing.expectEqual(@as(u64, 1), ends.near.counters.held_back);
    try testing.expect(!ends.near.takeRoomNotice());
    // An answer still fits, as long as it is one of those that the reserve is meant for.
    try ends.near.queue(protocol, &.{&answer});
    try testing.expect(!ends.near.mayRequest());
    try testing.expectEqual(@as(u64, 1), ends.near.counters.held_back);
    // Beyond it a frame is refused and changes nothing.
    const before = ends.near.unacked();
    const refused = while (true) {
        ends.near.queue(protocol, &.{&answer}) catch |err| break err;
    };
    try testing.expectEqual(error.Full, refused);
    try testing.expect(ends.near.unacked() > before);
    try testing.expect(ends.near.unacked() <= small.tx_bytes);
    // The peer reads: room comes back, and is told once.
    var taken: u64 = 0;
    while (ends.near.unacked() > 0) {
        _ = try ends.near.flush();
        while (try ends.far.receive() > 0) {
            while (try ends.far.next()) |_| taken += 1;
        }
        ends.far.is_ack_due = true;
        _ = try ends.far.flush();
        _ = try ends.near.receive();
        try testing.expectEqual(@as(?lane.Received, null), try ends.near.next());
    }
    try testing.expectEqual(ends.near.counters.messages_sent, taken);
    try testing.expect(ends.near.takeRoomNotice());
    try testing.expect(!ends.near.takeRoomNotice());
    try testing.expect(ends.near.mayRequest());
}

test "a slow peer holds requests back, answers still fit, memory stays bounded" {
    try overBoth(slowPeerHoldsBack);
}

fn acksRideAlong(make: MakePair) !void {
    var options = small;
    options.tx_bytes = 1 << 20;
    var ends = try Ends.open(make, options);
    defer ends.close();
    const question: [frame.protocol_bytes]u8 = @splat(1);
    const answer: [frame.payload_max]u8 = @splat(2);
    for (0..1000) |_| {
        try ends.near.queue(protocol, &.{&question});
        try testing.expect(try ends.near.flush());
        _ = try take(&ends.far);
        try ends.far.queue(protocol, &.{&answer});
        try testing.expect(try ends.far.flush());
        _ = try take(&ends.near);
        try testing.expectEqual(@as(usize, 0), ends.near.unacked());
    }
    // 1000 pages, 2000 frames, nothing else; the last one's acknowledgement is still owed.
    for ([_]*Lane{ &ends.near, &ends.far }) |l| {
        try testing.expectEqual(@as(u64, 1000), l.counters.messages_sent);
        try testing.expectEqual(@as(u64, 1000), l.counters.writes);
        try testing.expectEqual(@as(u64, 0), l.counters.acks_alone);
    }
    try testing.expect(ends.far.unacked() > 0);
    const deadline = ends.near.ackDeadline().?;
    ends.near.onTime(deadline - 1);
    try testing.expect(try ends.near.flush());
    try testing.expectEqual(@as(u64, 0), ends.near.counters.acks_alone);
    ends.near.onTime(deadline);
    try testing.expect(try ends.near.flush());
    try testing.expectEqual(@as(u64, 1), ends.near.counters.acks_alone);
    try testing.expectEqual(@as(?u64, null), ends.near.ackDeadline());
    while (ends.far.unacked() > 0) {
        if (try ends.far.receive() == 0) try tcp.waitFor(ends.far.fd, linux.POLL.IN, soon());
        try testing.expectEqual(@as(?lane.Received, null), try ends.far.next());
    }
    // An acknowledgement is not acknowledged.
    try testing.expectEqual(@as(?u64, null), ends.far.ackDeadline());
}

test "acknowledgements ride along; one goes alone after a pause, and is not answered" {
    try overBoth(acksRideAlong);
}

const Hostile = struct { bytes: []const u8, what: frame.Violation.What };

fn hostileBytesAreRefused(make: MakePair) !void {
    var header: [6][frame.header_bytes]u8 = undefined;
    const bad = [_]frame.Header{
        .{ .length = 40, .kind = 10, .sequence = 1 },
        .{ .length = 0xffff_ffff, .kind = 1, .sequence = 1 },
        .{ .length = 257, .kind = 2, .sequence = 1 },
        .{ .length = 40, .kind = 1, .sequence = 2 },
        .{ .length = 40, .kind = 1, .flags = 1, .sequence = 1 },
        .{ .length = 8, .kind = 7, .sequence = 0 },
    };
    for (&header, bad) |*bytes, h| bytes.* = std.mem.toBytes(h);
    const cases = [_]Hostile{
        .{ .bytes = "GET / HTTP/1.1\r\nHost: engine\r\n\r\n", .what = .kind },
        .{ .bytes = &header[0], .what = .kind },
        .{ .bytes = &header[1], .what = .length },
        .{ .bytes = &header[2], .what = .length },
        .{ .bytes = &header[3], .what = .sequence },
        .{ .bytes = &header[4], .what = .reserved },
        .{ .bytes = &header[5], .what = .phase },
    };
    for (cases) |case| {
        var l, var puppet = try Puppet.open(make);
        defer sys.close(puppet.fd);
        defer l.deinit();
        var out: [64]u8 = undefined;
        try puppet.say(puppet.encode(&out, span, 0, "good"));
        try puppet.say(case.bytes);
        // What came before the bad frame still counts.
        try testing.expectEqualStrings("good", (try take(&l)).payload);
        try testing.expectError(error.Refused, take(&l));
        try testing.expectEqual(case.what, l.violation.?.what);
        // The connection stays refused, whatever follows.
        try puppet.say(puppet.encode(&out, span, 1, "late"));
        _ = try l.receive();
        try testing.expectError(error.Refused, l.next());
        try testing.expectEqual(@as(u64, 1), l.counters.messages_received);
    }
}

test "hostile bytes are refused by name, before their payload has come" {
    try overBoth(hostileBytesAreRefused);
}

fn replayIsRefused(make: MakePair) !void {
    var l, var puppet = try Puppet.open(make);
    defer sys.close(puppet.fd);
    defer l.deinit();
    var out: [64]u8 = undefined;
    const bytes = puppet.encode(&out, span, 0, "once");
    try puppet.say(bytes);
    try puppet.say(bytes);
    _ = try take(&l);
    try testing.expectError(error.Refused, take(&l));
    try testing.expectEqual(@as(u32, 1), l.violation.?.expected);
    try testing.expectEqual(@as(u32, 0), l.violation.?.header.sequence);
}

test "a frame that comes twice is refused" {
    try overBoth(replayIsRefused);
}

fn replayWithTheNextNumberIsRefused(make: MakePair) !void {
    var l, var puppet = try Puppet.open(make);
    defer sys.close(puppet.fd);
    defer l.deinit();
    var out: [64]u8 = undefined;
    const bytes = puppet.encode(&out, span, 0, "once");
    try puppet.say(bytes);
    var again: [64]u8 = out;
    again[@offsetOf(frame.Header, "sequence")] = 1;
    try puppet.say(again[0..bytes.len]);
    _ = try take(&l);
    try testing.expectError(error.Refused, take(&l));
    var words: [200]u8 = undefined;
    const want = "bytes on the lane were refused: frame does not open: changed, repeated or " ++
        "moved on its way (kind 2, length 4, sequence 1)";
    try testing.expectEqualStrings(want, l.explain(error.Refused, &words));
}

test "a frame that comes twice under another number does not open" {
    try overBoth(replayWithTheNextNumberIsRefused);
}

test "any flipped bit of a frame is refused" {
    var sealed: [64]u8 = undefined;
    const payload = "seventeen bytes..";
    const length = payload.len + overhead;
    for (0..length * 8) |bit| {
        var l, var puppet = try Puppet.open(socketPair);
        defer sys.close(puppet.fd);
        defer l.deinit();
        const bytes = puppet.encode(&sealed, span, 0, payload);
        try testing.expectEqual(length, bytes.len);
        sealed[bit / 8] ^= @as(u8, 1) << @intCast(bit % 8);
        try puppet.say(bytes);
        // A length made longer waits for bytes that are the next frame's: refused with those.
        const filler: [frame.span_max]u8 = @splat(0);
        try puppet.say(&filler);
        try testing.expectError(error.Refused, take(&l));
        try testing.expectEqual(@as(u64, 0), l.counters.messages_received);
    }
}

test "a lane with another key opens nothing" {
    var l: Lane = try .init(testing.allocator, 1, small);
    defer l.deinit();
    const pair = try socketPair();
    defer sys.close(pair.far);
    try l.adopt(.{ .fd = pair.near, .keys = keyPair(2)[0] });
    var puppet: Puppet = .{ .fd = pair.far, .keys = keyPair(3)[1] };
    var out: [64]u8 = undefined;
    try puppet.say(puppet.encode(&out, resume_kind, 0, &@as([8]u8, @splat(0))));
    try testing.expectError(error.Refused, take(&l));
    try testing.expectEqual(frame.Violation.What.seal, l.violation.?.what);
}

test "a peer that acknowledges or resumes what never was is broken" {
    var l, var puppet = try Puppet.open(socketPair);
    defer sys.close(puppet.fd);
    defer l.deinit();
    try l.queue(span, &.{"one"});
    try testing.expect(try l.flush());
    var out: [64]u8 = undefined;
    const header: frame.Header = .{ .length = 0, .kind = span, .sequence = 0, .ack = 2 };
    try puppet.say(puppet.encodeHeader(&out, header, ""));
    try testing.expectError(error.ProtocolViolated, take(&l));
    var words: [200]u8 = undefined;
    try testing.expectEqualStrings("it broke the lane's protocol: acknowledges frame 2, which " ++
        "was not sent (kind 2, length 0, sequence 0)", //
        l.explain(error.ProtocolViolated, &words));

    const pair = try socketPair();
    defer sys.close(pair.far);
    const keys = keyPair(4);
    try l.adopt(.{ .fd = pair.near, .keys = keys[0] });
    var second: Puppet = .{ .fd = pair.far, .keys = keys[1] };
    try second.say(second.encode(&out, resume_kind, 0, &.{ 2, 0, 0, 0, 0, 0, 0, 0 }));
    try testing.expectError(error.ProtocolViolated, take(&l));
    try testing.expectEqual(frame.Violation.What.@"resume", l.violation.?.what);
}

fn closeIsSeen(make: MakePair) !void {
    var wire: [frame.frame_max]u8 = undefined;
    const page: [frame.payload_max]u8 = @splat(1);
    for ([_]usize{ 0, 1, 15, 16, 17, 100, wire.len - 1, wire.len }) |kept| {
        var l, var puppet = try Puppet.open(make);
        defer l.deinit();
        var out: [64]u8 = undefined;
        const before = puppet.say(puppet.encode(&out, span, 0, "before"));
        const part = puppet.say(puppet.encode(&wire, protocol, 1, &page)[0..kept]);
        sys.close(puppet.fd);
        try before;
        try part;
        try awaitClose(&l);
        // Everything whole is still delivered; the rest shows that the peer broke off.
        try testing.expectEqualStrings("before", (try l.next()).?.payload);
        const is_whole = kept == wire.len;
        try testing.expectEqual(is_whole, try l.next() != null);
        try testing.expectEqual(@as(?lane.Received, null), try l.next());
        try testing.expectEqual(kept != 0 and !is_whole, l.midFrame());
        try testing.expectError(error.PeerClosed, l.receive());
    }
}

test "a close, also inside a frame, comes after all that was whole" {
    try overBoth(closeIsSeen);
}

fn writingToTheDeadFails(make: MakePair) !void {
    var l, const puppet = try Puppet.open(make);
    defer l.deinit();
    sys.close(puppet.fd);
    // TCP learns from the answer to its first bytes; no SIGPIPE may end the test meanwhile.
    const failed = for (0..1000) |_| {
        l.queue(ping, &.{}) catch break error.Full;
        _ = l.flush() catch |err| break err;
        var p: [1]linux.pollfd = .{.{ .fd = l.fd, .events = 0, .revents = 0 }};
        _ = linux.poll(&p, 1, 10);
    } else error.NeverNoticed;
    try testing.expectEqual(error.PeerClosed, failed);
}

test "writing to a closed peer is an error, not a signal" {
    try overBoth(writingToTheDeadFails);
}

fn undrainedBufferWaits(make: MakePair) !void {
    var options = small;
    options.tx_bytes = 64 << 10;
    options.rx_bytes = frame.frame_max;
    var ends = try Ends.open(make, options);
    defer ends.close();
    const page: [frame.payload_max]u8 = @splat(4);
    for (0..4) |_| try ends.near.queue(protocol, &.{&page});
    try testing.expect(try ends.near.flush());
    while (ends.far.rx_end < frame.frame_max) {
        if (try ends.far.receive() == 0) try tcp.waitFor(ends.far.fd, linux.POLL.IN, soon());
    }
    // No room, so nothing is read; the frame in the buffer is untouched.
    try testing.expectEqual(@as(usize, 0), try ends.far.receive());
    for (0..4) |_| try testing.expectEqualSlices(u8, &page, (try take(&ends.far)).payload);
}

test "a buffer of one frame is enough" {
    try overBoth(undrainedBufferWaits);
}

test "what is no socket cannot become a lane, and is closed" {
    const fd = try sys.eventfd();
    var l: Lane = try .init(testing.allocator, 1, small);
    defer l.deinit();
    try testing.expectError(error.SystemCall, l.adopt(.{ .fd = fd, .keys = keyPair(5)[0] }));
    try testing.expectEqual(@backingInt(linux.E.NOTSOCK), sys.last_errno);
    try testing.expectEqual(linux.E.BADF, linux.errno(linux.fcntl(fd, linux.F.GETFD, 0)));
}

test "TCP lanes send small frames at once" {
    var ends = try Ends.open(tcpPair, small);
    defer ends.close();
    for ([_]i32{ ends.near.fd, ends.far.fd }) |fd| {
        var value: i32 = 0;
        var size: linux.socklen_t = @sizeOf(i32);
        const bytes = std.mem.asBytes(&value);
        const r = linux.getsockopt(fd, linux.IPPROTO.TCP, linux.TCP.NODELAY, bytes, &size);
        _ = try sys.check(r);
        try testing.expectEqual(@as(i32, 1), value);
    }
}

test "a lane's end is told in words, cut where the buffer ends" {
    var l, const puppet = try Puppet.open(socketPair);
    defer l.deinit();
    try sys.writeAll(puppet.fd, "GET / HTTP/1.1\r\n");
    sys.close(puppet.fd);
    try awaitClose(&l);
    var buffer: [200]u8 = undefined;
    const closed = l.explain(error.PeerClosed, &buffer);
    try testing.expectEqualStrings("it closed the connection in the middle of a frame", closed);
    try testing.expectError(error.Refused, l.next());
    const words = "bytes on the lane were refused: frame of unknown kind 47";
    const broken = l.explain(error.Refused, &buffer);
    try testing.expectEqualStrings(words, broken[0..words.len]);
    try testing.expectEqualStrings("bytes on", l.explain(error.Refused, buffer[0..8]));
}
