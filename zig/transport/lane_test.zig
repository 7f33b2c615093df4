//! One conformance suite for lanes, run over every kind of socket a lane may get: loopback TCP and
//! a local socket pair. Where the bytes of a peer are played by hand, the test writes them to the
//! far descriptor itself. Counters are asserted, times never.

const std = @import("std");
const linux = std.os.linux;
const testing = std.testing;
const sys = @import("../base/sys.zig");
const frame = @import("frame.zig");
const lane = @import("lane.zig");
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

const small: lane.Options = .{ .tx_bytes = 8192, .rx_bytes = 8192 };

fn overBoth(comptime run: fn (MakePair) anyerror!void) !void {
    for ([_]MakePair{ tcpPair, socketPair }) |make| try run(make);
}

const Ends = struct {
    near: Lane,
    far: Lane,

    fn open(make: MakePair, options: lane.Options) !Ends {
        const pair = try make();
        var near = Lane.initSized(testing.allocator, pair.near, 1, options) catch |err| {
            sys.close(pair.far);
            return err;
        };
        errdefer near.deinit();
        return .{ .near = near, .far = try .initSized(testing.allocator, pair.far, 0, options) };
    }

    fn close(self: *Ends) void {
        self.near.deinit();
        self.far.deinit();
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

/// A frame as a peer would write it, into `out`.
fn encode(out: []u8, kind: u8, sequence: u64, payload: []const u8) []const u8 {
    const header: frame.Header = .{
        .length = @intCast(payload.len),
        .kind = kind,
        .sequence = sequence,
    };
    @memcpy(out[0..frame.header_bytes], std.mem.asBytes(&header));
    @memcpy(out[frame.header_bytes..][0..payload.len], payload);
    return out[0 .. frame.header_bytes + payload.len];
}

const protocol = @backingInt(frame.Kind.protocol);
const span = @backingInt(frame.Kind.span);
const ping = @backingInt(frame.Kind.ping);
const bye = @backingInt(frame.Kind.bye);

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
    const wire = 5 * frame.header_bytes + 2 * 40 + 4096 + 8 + 13;
    try testing.expectEqual(@as(usize, wire), ends.near.queued());
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
    try testing.expectEqual(@as(u64, wire), sent.queued_bytes_max);
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
    for ([_]struct { u8, usize }{ .{ protocol, 40 }, .{ span, 77 }, .{ ping, 3 } }, 0..) |f, i| {
        size += encode(wire[size..], f[0], i, payload[0..f[1]]).len;
    }
    for (1..size) |cut| {
        const pair = try make();
        defer sys.close(pair.far);
        var l = try Lane.initSized(testing.allocator, pair.near, 1, small);
        defer l.deinit();
        try sys.writeAll(pair.far, wire[0..cut]);
        while (l.counters.bytes_received < cut) {
            if (try l.receive() == 0) try tcp.waitFor(l.fd, linux.POLL.IN, soon());
        }
        var seen: usize = 0;
        while (try l.next()) |_| seen += 1;
        try sys.writeAll(pair.far, wire[cut..size]);
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
        if (try ends.far.receive() == 0) {
            try tcp.waitFor(ends.far.fd, linux.POLL.IN, soon());
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
    try testing.expect(ends.near.counters.queued_bytes_max <= small.tx_bytes);
}

fn streamLength(number: u64) usize {
    return if (number % 5 == 0) frame.payload_max else @intCast(number * 7 % 257);
}

test "a long stream through a small ring and a small socket is whole and in order" {
    try overBoth(longStreamIsWhole);
}

fn slowReaderFillsRing(make: MakePair) !void {
    var ends = try Ends.open(make, small);
    defer ends.close();
    const page: [frame.payload_max]u8 = @splat(9);
    // Two ends' socket buffers hold far less than 64 MiB: the ring fills before that.
    var queued: u64 = 0;
    while (queued < 16_384) : (queued += 1) {
        ends.near.queue(protocol, &.{&page}) catch break;
        _ = try ends.near.flush();
    }
    try testing.expect(queued < 16_384);
    try testing.expectEqual(@as(u64, 1), ends.near.counters.refused);
    try testing.expect(ends.near.counters.blocked > 0);
    try testing.expect(!try ends.near.flush());
    // Refusing changed nothing: what fits still goes in, and all that went in comes out.
    try testing.expect(ends.near.room() < frame.frame_max);
    try testing.expectEqual(queued, ends.near.counters.messages_sent);
    var taken: u64 = 0;
    while (taken < queued) {
        while (try ends.far.next()) |received| : (taken += 1) {
            try testing.expectEqualSlices(u8, &page, received.payload);
        }
        if (try ends.far.receive() == 0) _ = try ends.near.flush();
    }
    try testing.expect(try ends.near.flush());
    try ends.near.queue(protocol, &.{&page});
}

test "a slow reader fills the ring: queue() says Full, nothing is lost" {
    try overBoth(slowReaderFillsRing);
}

const Hostile = struct { bytes: []const u8, what: frame.Violation.What };

fn hostileBytesAreRefused(make: MakePair) !void {
    var header: [5][frame.header_bytes]u8 = undefined;
    const bad = [_]frame.Header{
        .{ .length = 40, .kind = 9, .sequence = 1 },
        .{ .length = 0xffff_ffff, .kind = 1, .sequence = 1 },
        .{ .length = 257, .kind = 2, .sequence = 1 },
        .{ .length = 40, .kind = 1, .sequence = 2 },
        .{ .length = 40, .kind = 1, .flags = 1, .sequence = 1 },
    };
    for (&header, bad) |*bytes, h| bytes.* = std.mem.toBytes(h);
    const cases = [_]Hostile{
        .{ .bytes = "GET / HTTP/1.1\r\nHost: engine\r\n\r\n", .what = .kind },
        .{ .bytes = &header[0], .what = .kind },
        .{ .bytes = &header[1], .what = .length },
        .{ .bytes = &header[2], .what = .length },
        .{ .bytes = &header[3], .what = .sequence },
        .{ .bytes = &header[4], .what = .reserved },
    };
    for (cases) |case| {
        const pair = try make();
        defer sys.close(pair.far);
        var l = try Lane.initSized(testing.allocator, pair.near, 1, small);
        defer l.deinit();
        var out: [64]u8 = undefined;
        try sys.writeAll(pair.far, encode(&out, span, 0, "good"));
        try sys.writeAll(pair.far, case.bytes);
        // What came before the bad frame still counts.
        try testing.expectEqualStrings("good", (try take(&l)).payload);
        try testing.expectError(error.ProtocolViolated, take(&l));
        try testing.expectEqual(case.what, l.violation.?.what);
        // The lane stays refused, whatever follows.
        try sys.writeAll(pair.far, encode(&out, span, 1, "late"));
        _ = try l.receive();
        try testing.expectError(error.ProtocolViolated, l.next());
        try testing.expectEqual(@as(u64, 1), l.counters.messages_received);
    }
}

test "hostile bytes are refused by name, before their payload has come" {
    try overBoth(hostileBytesAreRefused);
}

fn replayIsRefused(make: MakePair) !void {
    const pair = try make();
    defer sys.close(pair.far);
    var l = try Lane.initSized(testing.allocator, pair.near, 1, small);
    defer l.deinit();
    var out: [64]u8 = undefined;
    const bytes = encode(&out, span, 0, "once");
    try sys.writeAll(pair.far, bytes);
    try sys.writeAll(pair.far, bytes);
    _ = try take(&l);
    try testing.expectError(error.ProtocolViolated, take(&l));
    try testing.expectEqual(@as(u64, 1), l.violation.?.expected);
    try testing.expectEqual(@as(u64, 0), l.violation.?.header.sequence);
}

test "a frame that comes twice is refused" {
    try overBoth(replayIsRefused);
}

fn closeIsSeen(make: MakePair) !void {
    var wire: [frame.frame_max]u8 = undefined;
    const page: [frame.payload_max]u8 = @splat(1);
    const full = encode(&wire, protocol, 1, &page);
    for ([_]usize{ 0, 1, 15, 16, 17, 100, full.len - 1, full.len }) |kept| {
        const pair = try make();
        var l = Lane.initSized(testing.allocator, pair.near, 1, small) catch |err| {
            sys.close(pair.far);
            return err;
        };
        defer l.deinit();
        var out: [64]u8 = undefined;
        const before = sys.writeAll(pair.far, encode(&out, span, 0, "before"));
        const part = sys.writeAll(pair.far, full[0..kept]);
        sys.close(pair.far);
        try before;
        try part;
        try awaitClose(&l);
        // Everything whole is still delivered; the rest shows that the peer broke off.
        try testing.expectEqualStrings("before", (try l.next()).?.payload);
        const is_whole = kept == full.len;
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
    const pair = try make();
    var l = Lane.initSized(testing.allocator, pair.near, 1, small) catch |err| {
        sys.close(pair.far);
        return err;
    };
    defer l.deinit();
    sys.close(pair.far);
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
    var ends = try Ends.open(make, .{ .tx_bytes = 64 << 10, .rx_bytes = frame.frame_max });
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
    try testing.expectError(error.SystemCall, Lane.init(testing.allocator, fd, 1));
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
    const pair = try socketPair();
    var l = try Lane.initSized(testing.allocator, pair.near, 1, small);
    defer l.deinit();
    try sys.writeAll(pair.far, "GET / HTTP/1.1\r\n");
    sys.close(pair.far);
    try awaitClose(&l);
    var buffer: [200]u8 = undefined;
    const closed = l.explain(error.PeerClosed, &buffer);
    try testing.expectEqualStrings("it closed the connection in the middle of a frame", closed);
    try testing.expectError(error.ProtocolViolated, l.next());
    const words = "it broke the lane's protocol: frame of unknown kind 47";
    const broken = l.explain(error.ProtocolViolated, &buffer);
    try testing.expectEqualStrings(words, broken[0..words.len]);
    try testing.expectEqualStrings("it broke", l.explain(error.ProtocolViolated, buffer[0..8]));
}

/// Feeds bytes to next() as if they had been received, and judges the outcome by a second reading.
fn feed(l: *Lane, bytes: []const u8) !void {
    l.rx_start = 0;
    l.rx_end = bytes.len;
    l.rx_sequence = 0;
    l.violation = null;
    @memcpy(l.rx[0..bytes.len], bytes);
    var at: usize = 0;
    var sequence: u64 = 0;
    while (l.next()) |maybe| {
        const received = maybe orelse break;
        try testing.expectEqual(bytes[at + 4], @backingInt(received.kind));
        const end = at + frame.header_bytes + received.payload.len;
        try testing.expect(end <= bytes.len);
        try testing.expectEqualSlices(u8, bytes[at + frame.header_bytes .. end], received.payload);
        at = end;
        sequence += 1;
    } else |err| {
        try testing.expectEqual(error.ProtocolViolated, err);
        var words: [200]u8 = undefined;
        const text = try std.fmt.bufPrint(&words, "{f}", .{l.violation.?});
        try testing.expect(text.len > 0);
        try testing.expectEqual(sequence, l.violation.?.expected);
    }
    try testing.expectEqual(at, l.rx_start);
}

test "a hundred thousand hostile inputs never crash next()" {
    var ends = try Ends.open(socketPair, small);
    defer ends.close();
    var prng = std.Random.DefaultPrng.init(testing.random_seed);
    const random = prng.random();
    var frames: u64 = 0;
    var violations: u64 = 0;
    for (0..100_000) |_| {
        var buffer: [1024]u8 = undefined;
        const bytes = hostileInput(random, &buffer);
        const before = ends.near.counters.messages_received;
        try feed(&ends.near, bytes);
        frames += ends.near.counters.messages_received - before;
        violations += @intFromBool(ends.near.violation != null);
    }
    // The generator reaches both sides of every check, or it would prove nothing.
    try testing.expect(frames > 10_000);
    try testing.expect(violations > 10_000);
}

/// Noise, or sound frames of which a few bytes are changed.
fn hostileInput(random: std.Random, buffer: []u8) []const u8 {
    const limit = random.uintAtMost(usize, buffer.len);
    if (random.uintLessThan(u8, 4) == 0) {
        random.bytes(buffer[0..limit]);
        return buffer[0..limit];
    }
    const lengths = [_]usize{ 40, 100, 9, 0, 33 };
    const kinds = [_]u8{ protocol, span, ping, span, bye };
    const noise: [100]u8 = @splat(0x5a);
    var size: usize = 0;
    var sequence: u64 = 0;
    while (true) : (sequence += 1) {
        const pick = random.uintLessThan(usize, kinds.len);
        if (size + frame.header_bytes + lengths[pick] > limit) break;
        size += encode(buffer[size..], kinds[pick], sequence, noise[0..lengths[pick]]).len;
    }
    for (0..random.uintLessThan(usize, 4)) |_| {
        if (size == 0) break;
        buffer[random.uintLessThan(usize, size)] = random.int(u8);
    }
    return buffer[0..random.uintAtMost(usize, size)];
}
