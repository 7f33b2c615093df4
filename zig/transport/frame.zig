//! The wire form of everything two engines tell each other: a 16-byte header, little endian, and a
//! payload whose length its kind limits. A header is judged before any of its payload is stored, so
//! a hostile peer can make this node neither allocate nor read ahead; what is wrong is kept as a
//! Violation that says so in words.
//! On the wire payloads are sealed and followed by a tag; the header is in the clear but part of
//! what the tag proves (seal.zig). Numbers are those of a lane's life, not of one connection: TCP
//! neither loses nor repeats, and after a cut both sides go on where the other one stopped hearing,
//! so a gap means a broken peer or a changed stream, never something to repair.

const std = @import("std");
const builtin = @import("builtin");
const seal = @import("seal.zig");

comptime {
    // Headers cross the wire in memory form.
    std.debug.assert(builtin.cpu.arch.endian() == .little);
}

pub const Header = extern struct {
    /// Payload bytes that follow the header.
    length: u32,
    kind: u8,
    /// Zero: nothing is defined yet, and a peer that sets bits speaks another version.
    flags: u8 = 0,
    reserved: u16 = 0,
    /// Number of the frame in its direction, low half; of an ack the number that is due next.
    sequence: u32,
    /// All frames of the other direction below this number (low half) have come.
    ack: u32 = 0,
};

pub const header_bytes = @sizeOf(Header);
pub const page_bytes = 4096;
/// A message of the coherence protocol (dsm types.Msg).
pub const protocol_bytes = 40;

pub const Kind = enum(u8) {
    /// One coherence message, and the page it carries if it carries one.
    protocol = 1,
    /// IPIs, forwarded exits, start and stop: opaque here.
    span = 2,
    /// Sign of life; the payload (a clock, say) comes back in the pong.
    ping = 3,
    pong = 4,
    /// The sender leaves: u32 reason, then words for a log.
    bye = 5,
    /// Nothing but its header's ack; not numbered itself.
    ack = 6,
    /// First on every connection, not numbered: u64, how many frames have come so far.
    @"resume" = 7,
    /// Agreement on the guest's clock, before anything else: opaque here.
    clock = 8,
    /// What pages cost on this lane, measured after the clock: opaque here.
    measure = 9,
    _,

    /// Kept until acknowledged, delivered once and in order.
    pub fn isNumbered(self: Kind) bool {
        return self != .ack and self != .@"resume";
    }
};

/// Payload lengths of a kind: from `min` to `max`, or exactly `also`.
const Lengths = struct { min: u32, max: u32, also: ?u32 = null };

pub const payload_max = protocol_bytes + page_bytes;
/// Of the seal, after each payload.
pub const tag_bytes = seal.tag_bytes;
pub const frame_max = header_bytes + payload_max + tag_bytes;
pub const span_max = 256;
pub const ping_max = 16;
pub const bye_min = 4;
pub const bye_max = 128;
pub const resume_bytes = 8;
pub const clock_max = 64;

fn lengths(kind: Kind) ?Lengths {
    return switch (kind) {
        .protocol => .{ .min = protocol_bytes, .max = protocol_bytes, .also = payload_max },
        .span => .{ .min = 0, .max = span_max },
        .ping, .pong => .{ .min = 0, .max = ping_max },
        .bye => .{ .min = bye_min, .max = bye_max },
        .ack => .{ .min = 0, .max = 0 },
        .@"resume" => .{ .min = resume_bytes, .max = resume_bytes },
        .clock => .{ .min = 1, .max = clock_max },
        .measure => .{ .min = 1, .max = page_bytes },
        _ => null,
    };
}

/// Whether `kind` may carry `length` payload bytes.
pub fn fits(kind: u8, length: usize) bool {
    const l = lengths(@fromBackingInt(kind)) orelse return false;
    if (l.also) |also| if (length == also) return true;
    return length >= l.min and length <= l.max;
}

/// Why a header was refused: the header as it came, and the sequence number that was due.
pub const Violation = struct {
    what: What,
    header: Header,
    expected: u32,

    pub const What = enum {
        kind,
        length,
        sequence,
        reserved,
        /// A frame before the first resume, or another resume after it.
        phase,
        /// What came is not what the holder of the keys sent next.
        seal,
        /// Sound in form and sealed by the peer, and yet impossible.
        ack,
        @"resume",
    };

    pub fn format(self: Violation, w: *std.Io.Writer) std.Io.Writer.Error!void {
        const h = self.header;
        switch (self.what) {
            .kind => try w.print("frame of unknown kind {d}", .{h.kind}),
            .length => {
                const kind: Kind = @fromBackingInt(h.kind);
                const l = lengths(kind).?;
                try w.print("{t} frame of {d} bytes; ", .{ kind, h.length });
                if (l.min == l.max) {
                    try w.print("{d}", .{l.min});
                } else try w.print("{d} to {d}", .{ l.min, l.max });
                if (l.also) |also| try w.print(" or {d}", .{also});
                try w.writeAll(" are allowed");
            },
            .sequence => try w.print("frame number {d} where {d} was due", .{
                h.sequence, self.expected,
            }),
            .reserved => try w.print("reserved header bits set (flags 0x{x}, reserved 0x{x})", .{
                h.flags, h.reserved,
            }),
            .phase => {
                const kind: Kind = @fromBackingInt(h.kind);
                try w.print("{t} frame out of place", .{kind});
            },
            .seal => try w.writeAll("frame does not open: changed, repeated or moved on its way"),
            .ack => try w.print("acknowledges frame {d}, which was not sent", .{h.ack}),
            .@"resume" => try w.writeAll("resumes where this side never was"),
        }
        try w.print(" (kind {d}, length {d}, sequence {d})", .{ h.kind, h.length, h.sequence });
    }
};

/// Judges a header alone; null = sound. An unknown kind comes first since its length means nothing.
/// `is_resumed`: the peer's resume has come on this connection.
pub fn judge(header: Header, expected: u32, is_resumed: bool) ?Violation {
    const is_resume = header.kind == @backingInt(Kind.@"resume");
    const what: Violation.What = if (lengths(@fromBackingInt(header.kind)) == null)
        .kind
    else if (header.flags != 0 or header.reserved != 0)
        .reserved
    else if (!fits(header.kind, header.length))
        .length
    else if (is_resume == is_resumed)
        .phase
    else if (header.sequence != expected)
        .sequence
    else
        return null;
    return .{ .what = what, .header = header, .expected = expected };
}

const testing = std.testing;

test "the header's bytes are what the wire says" {
    const header: Header = .{
        .length = 0x1028,
        .kind = 1,
        .sequence = 0x05060708,
        .ack = 0x01020304,
    };
    try testing.expectEqualSlices(u8, &.{
        0x28, 0x10, 0, 0, 1, 0, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1,
    }, std.mem.asBytes(&header));
    try testing.expectEqual(@as(usize, 16), header_bytes);
}

test "lengths by kind" {
    const Case = struct { kind: u8, good: []const u32, bad: []const u32 };
    const cases = [_]Case{
        .{ .kind = 1, .good = &.{ 40, 4136 }, .bad = &.{ 0, 39, 41, 4096, 4135, 4137 } },
        .{ .kind = 2, .good = &.{ 0, 1, 256 }, .bad = &.{ 257, 4136, std.math.maxInt(u32) } },
        .{ .kind = 3, .good = &.{ 0, 16 }, .bad = &.{17} },
        .{ .kind = 4, .good = &.{ 0, 16 }, .bad = &.{17} },
        .{ .kind = 5, .good = &.{ 4, 128 }, .bad = &.{ 0, 3, 129 } },
        .{ .kind = 0, .good = &.{}, .bad = &.{ 0, 40 } },
        .{ .kind = 6, .good = &.{0}, .bad = &.{ 1, 40 } },
        .{ .kind = 7, .good = &.{8}, .bad = &.{ 0, 7, 9 } },
        .{ .kind = 8, .good = &.{ 1, 64 }, .bad = &.{ 0, 65 } },
        .{ .kind = 9, .good = &.{ 1, 4096 }, .bad = &.{ 0, 4097 } },
        .{ .kind = 10, .good = &.{}, .bad = &.{ 0, 40 } },
        .{ .kind = 255, .good = &.{}, .bad = &.{ 0, 40 } },
    };
    for (cases) |case| {
        for (case.good) |length| {
            try testing.expect(fits(case.kind, length));
            const header: Header = .{ .length = length, .kind = case.kind, .sequence = 7 };
            try testing.expectEqual(@as(?Violation, null), judge(header, 7, case.kind != 7));
        }
        for (case.bad) |length| {
            try testing.expect(!fits(case.kind, length));
            const header: Header = .{ .length = length, .kind = case.kind, .sequence = 7 };
            const known = case.kind >= 1 and case.kind <= 9;
            const want: Violation.What = if (known) .length else .kind;
            try testing.expectEqual(want, judge(header, 7, case.kind != 7).?.what);
        }
    }
}

test "a violation says what came and what was due" {
    const Case = struct { header: Header, words: []const u8 };
    const cases = [_]Case{
        .{
            .header = .{ .length = 9, .kind = 77, .sequence = 3 },
            .words = "frame of unknown kind 77 (kind 77, length 9, sequence 3)",
        },
        .{
            .header = .{ .length = 300, .kind = 2, .sequence = 3 },
            .words = "span frame of 300 bytes; 0 to 256 are allowed " ++
                "(kind 2, length 300, sequence 3)",
        },
        .{
            .header = .{ .length = 39, .kind = 1, .sequence = 3 },
            .words = "protocol frame of 39 bytes; 40 or 4136 are allowed " ++
                "(kind 1, length 39, sequence 3)",
        },
        .{
            .header = .{ .length = 40, .kind = 1, .sequence = 4 },
            .words = "frame number 4 where 3 was due (kind 1, length 40, sequence 4)",
        },
        .{
            .header = .{ .length = 40, .kind = 1, .flags = 2, .reserved = 1, .sequence = 3 },
            .words = "reserved header bits set (flags 0x2, reserved 0x1) " ++
                "(kind 1, length 40, sequence 3)",
        },
        .{
            .header = .{ .length = 8, .kind = 7, .sequence = 3 },
            .words = "resume frame out of place (kind 7, length 8, sequence 3)",
        },
    };
    for (cases) |case| {
        var buffer: [200]u8 = undefined;
        const text = try std.fmt.bufPrint(&buffer, "{f}", .{judge(case.header, 3, true).?});
        try testing.expectEqualStrings(case.words, text);
    }
}
