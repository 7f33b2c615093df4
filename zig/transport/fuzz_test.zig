//! A million hostile inputs, decided by the seed, for what reads bytes of the network: the decoder
//! of frames and the handshake. Noise, sound streams with a few bytes changed, and, for the
//! decoder, nonsense that was sealed with the right key, as a broken peer would send. Nothing may
//! crash, allocate, get in, or leave a lane whose books do not add up.

const std = @import("std");
const testing = std.testing;
const frame = @import("frame.zig");
const handshake = @import("handshake.zig");
const lane = @import("lane.zig");
const seal = @import("seal.zig");
const lane_test = @import("lane_test.zig");
const Handshake = handshake.Handshake;
const Lane = lane.Lane;

const lane_inputs = 700_000;
const handshake_inputs = 300_000;

/// Bytes for a lane, and how many frames at their front are what a sound peer would send.
const Stream = struct {
    random: std.Random,
    bytes: [1024]u8 = undefined,
    length: usize = 0,
    sealer: seal.Sealer,
    /// Frames the lane will expect next, and may see acknowledged.
    sequence: u64,
    acked: u64,
    sealed: u64,

    const kinds = [_]frame.Kind{ .protocol, .span, .ping, .bye, .ack, .clock, .measure };
    const lengths = [_]usize{ 40, 100, 9, 33, 0, 20, 8 };

    fn make(self: *Stream) void {
        const random = self.random;
        if (random.uintLessThan(u8, 8) == 0) {
            random.bytes(&self.bytes);
            self.length = random.uintAtMost(usize, self.bytes.len);
            return;
        }
        for (0..random.uintLessThan(usize, 6)) |_| {
            const pick = random.uintLessThan(usize, kinds.len);
            if (self.length + lengths[pick] + 300 > self.bytes.len) break;
            var header: frame.Header = .{
                .length = @intCast(lengths[pick]),
                .kind = @backingInt(kinds[pick]),
                .sequence = @truncate(self.sequence),
                .ack = @truncate(random.intRangeAtMost(u64, self.acked, self.sealed)),
            };
            self.acked = self.sealed - (@as(u32, @truncate(self.sealed)) -% header.ack);
            self.sequence += @intFromBool(kinds[pick].isNumbered());
            if (random.uintLessThan(u8, 16) == 0) self.spoil(&header);
            self.put(header);
        }
        if (self.length == 0) return;
        for (0..random.uintLessThan(usize, 3)) |_| {
            self.bytes[random.uintLessThan(usize, self.length)] = random.int(u8);
        }
        if (random.boolean()) self.length = random.uintAtMost(usize, self.length);
    }

    /// What only the holder of the key can say, and what no sound one does.
    fn spoil(self: *Stream, header: *frame.Header) void {
        switch (self.random.uintLessThan(u8, 5)) {
            0 => header.ack = self.random.int(u32),
            1 => header.sequence = self.random.int(u32),
            2 => header.kind = self.random.int(u8) % 12,
            3 => header.flags = self.random.int(u8),
            else => {
                header.kind = @backingInt(frame.Kind.@"resume");
                header.length = 8;
            },
        }
    }

    fn put(self: *Stream, header: frame.Header) void {
        const out = self.bytes[self.length..];
        const noise: [256]u8 = @splat(0x5a);
        const ad = out[0..frame.header_bytes];
        ad.* = std.mem.toBytes(header);
        const end = frame.header_bytes + header.length;
        const tag = out[end..][0..frame.tag_bytes];
        const plain = noise[0..header.length];
        self.sealer.seal(out[frame.header_bytes..end], tag, plain, ad);
        self.length += end + frame.tag_bytes;
    }
};

/// The lane as after many frames each way, a few of its own not yet acknowledged.
fn prime(l: *Lane, random: std.Random, keys: seal.Keys) !void {
    l.phase = .up;
    l.keys = keys;
    l.violation = null;
    l.tx_head = 0;
    l.tx_sealed = 0;
    l.tx_tail = 0;
    // Around the wrap of the header's 32 bits as well.
    l.rx_sequence = @as(u64, 0xffff_fffc) + random.uintLessThan(u64, 8);
    l.acked = @as(u64, 0x1_ffff_fffc) + random.uintLessThan(u64, 8);
    l.tx_sequence = l.acked;
    for (0..random.uintLessThan(usize, 5)) |_| {
        try l.queue(@backingInt(frame.Kind.span), &.{"somewhere between two frames"[0..20]});
    }
    const sent = random.uintAtMost(u64, l.tx_sequence - l.acked);
    l.sealed = l.acked + sent;
    l.sealed_max = l.sealed;
    l.tx_sealed = sent * (frame.header_bytes + 20);
}

fn checkBooks(l: *const Lane) !void {
    try testing.expect(l.acked <= l.sealed and l.sealed <= l.sealed_max);
    try testing.expect(l.sealed_max <= l.tx_sequence);
    try testing.expect(l.tx_head <= l.tx_sealed and l.tx_sealed <= l.tx_tail);
    try testing.expect(l.unacked() == (l.tx_sequence - l.acked) * (frame.header_bytes + 20));
    try testing.expect(l.rx_start <= l.rx_end and l.rx_end <= l.rx.len);
}

test "seven hundred thousand hostile streams do not shake the decoder" {
    var l: Lane = try .init(testing.allocator, 1, lane_test.small);
    defer l.deinit();
    defer l.allocator = testing.allocator;
    l.allocator = testing.failing_allocator;
    // It has no socket to close at the end.
    defer l.phase = .down;
    var prng = std.Random.DefaultPrng.init(testing.random_seed);
    const random = prng.random();
    const keys = lane_test.keyPair(6);
    var taken: u64 = 0;
    var refused: u64 = 0;
    var broken: u64 = 0;
    for (0..lane_inputs) |_| {
        try prime(&l, random, keys[0]);
        var stream: Stream = .{
            .random = random,
            .sealer = keys[1].tx,
            .sequence = l.rx_sequence,
            .acked = l.acked,
            .sealed = l.sealed,
        };
        stream.make();
        @memcpy(l.rx[0..stream.length], stream.bytes[0..stream.length]);
        l.rx_start = 0;
        l.rx_end = stream.length;
        const first = l.rx_sequence;
        while (l.next()) |maybe| {
            const received = maybe orelse break;
            try testing.expect(frame.fits(@backingInt(received.kind), received.payload.len));
            // Sealed by the peer, so it is the peer's: noise never opens.
            for (received.payload) |byte| try testing.expectEqual(@as(u8, 0x5a), byte);
        } else |err| {
            var words: [200]u8 = undefined;
            try testing.expect(l.explain(err, &words).len > 0);
            if (err == error.Refused) refused += 1 else broken += 1;
        }
        try checkBooks(&l);
        taken += l.rx_sequence - first;
    }
    // The generator reaches both sides of every check, or it would prove nothing.
    try testing.expect(taken > lane_inputs / 4);
    try testing.expect(refused > lane_inputs / 4);
    try testing.expect(broken > lane_inputs / 200);
}

const key: handshake.Key = @splat(0x42);

/// Both sides of a handshake that went well, and what each said.
const Recording = struct {
    /// As they were before anything came: copies of them can be played again.
    fresh: [2]Handshake,
    said: [2][128]u8 = undefined,
    length: [2]usize = undefined,

    fn make() !Recording {
        const zero: handshake.Identity = .{ .node = 0, .abi_hash = 1, .vm_generation = 2 };
        var one = zero;
        one.node = 1;
        var self: Recording = .{ .fresh = .{
            try .init(.accepting, zero, &key),
            try .init(.connecting, one, &key),
        } };
        var sides = self.fresh;
        for (0..8) |_| {
            for (0..2) |i| {
                const from = &sides[i];
                const n = sides[1 - i].feed(from.out[from.out_start..from.out_end]);
                from.out_start += n;
            }
        }
        for (&sides, 0..) |*side, i| {
            try testing.expect(side.result.? == .connected);
            self.length[i] = side.out_end;
            @memcpy(self.said[i][0..side.out_end], side.out[0..side.out_end]);
        }
        return self;
    }
};

test "three hundred thousand hostile handshakes: nobody gets in" {
    var prng = std.Random.DefaultPrng.init(testing.random_seed);
    const random = prng.random();
    const recording = try Recording.make();
    var connected: u64 = 0;
    var refused: u64 = 0;
    for (0..handshake_inputs) |_| {
        const side = random.uintLessThan(usize, 2);
        const said = recording.said[1 - side][0..recording.length[1 - side]];
        var bytes: [128]u8 = undefined;
        random.bytes(&bytes);
        const sound = switch (random.uintLessThan(u8, 8)) {
            0 => 0,
            1 => random.uintAtMost(usize, said.len),
            else => said.len,
        };
        @memcpy(bytes[0..sound], said[0..sound]);
        for (0..random.uintLessThan(usize, 3)) |_| {
            bytes[random.uintLessThan(usize, said.len)] = random.int(u8);
        }
        var shake = recording.fresh[side];
        const most = random.uintAtMost(usize, bytes.len);
        var at: usize = 0;
        while (at < most and shake.result == null) {
            at += shake.feed(bytes[at..@min(most, at + 1 + random.uintLessThan(usize, 200))]);
        }
        const result = shake.result orelse continue;
        switch (result) {
            .refused => |why| {
                refused += 1;
                var words: [200]u8 = undefined;
                try testing.expect((try std.fmt.bufPrint(&words, "{f}", .{why})).len > 0);
            },
            .connected => {
                connected += 1;
                // Hello and proof bit for bit, and a verdict that is none.
                const proven = @sizeOf(handshake.Hello) + @sizeOf(handshake.Answer);
                const n = @min(proven, said.len);
                try testing.expectEqualSlices(u8, said[0..n], bytes[0..n]);
                if (said.len > n) try testing.expectEqual(@as(u8, 0), bytes[n]);
            },
        }
    }
    try testing.expect(connected > 1000);
    try testing.expect(refused > handshake_inputs / 4);
}
