//! The wire form of everything two engines tell each other: a 16-byte header, little endian, and a
//! payload whose length its kind limits. A header is judged before any of its payload is stored, so
//! a hostile peer can make this node neither allocate nor read ahead; what is wrong is kept as a
//! Violation that says so in words.
//! Sequence numbers are per direction and consecutive from 0: TCP neither loses nor repeats, so a
//! gap means a broken peer or a byte stream that went out of step, never something to repair.

const std = @import("std");
const builtin = @import("builtin");

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
    sequence: u64,
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
    _,
};

/// Payload lengths of a kind: from `min` to `max`, or exactly `also`.
const Lengths = struct { min: u32, max: u32, also: ?u32 = null };

pub const payload_max = protocol_bytes + page_bytes;
pub const frame_max = header_bytes + payload_max;
pub const span_max = 256;
pub const ping_max = 16;
pub const bye_min = 4;
pub const bye_max = 128;

fn lengths(kind: Kind) ?Lengths {
    return switch (kind) {
        .protocol => .{ .min = protocol_bytes, .max = protocol_bytes, .also = payload_max },
        .span => .{ .min = 0, .max = span_max },
        .ping, .pong => .{ .min = 0, .max = ping_max },
        .bye => .{ .min = bye_min, .max = bye_max },
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
    expected: u64,

    pub const What = enum { kind, length, sequence, reserved };

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
        }
        try w.print(" (kind {d}, length {d}, sequence {d})", .{ h.kind, h.length, h.sequence });
    }
};

/// Judges a header alone; null = sound. An unknown kind comes first since its length means nothing.
pub fn judge(header: Header, expected: u64) ?Violation {
    const what: Violation.What = if (lengths(@fromBackingInt(header.kind)) == null)
        .kind
    else if (header.flags != 0 or header.reserved != 0)
        .reserved
    else if (!fits(header.kind, header.length))
        .length
    else if (header.sequence != expected)
        .sequence
    else
        return null;
    return .{ .what = what, .header = header, .expected = expected };
}

const testing = std.testing;

test "the header's bytes are what the wire says" {
    const header: Header = .{ .length = 0x1028, .kind = 1, .sequence = 0x0102030405060708 };
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
        .{ .kind = 6, .good = &.{}, .bad = &.{ 0, 40 } },
        .{ .kind = 255, .good = &.{}, .bad = &.{ 0, 40 } },
    };
    for (cases) |case| {
        for (case.good) |length| {
            try testing.expect(fits(case.kind, length));
            const header: Header = .{ .length = length, .kind = case.kind, .sequence = 7 };
            try testing.expectEqual(@as(?Violation, null), judge(header, 7));
        }
        for (case.bad) |length| {
            try testing.expect(!fits(case.kind, length));
            const header: Header = .{ .length = length, .kind = case.kind, .sequence = 7 };
            const known = case.kind >= 1 and case.kind <= 5;
            const want: Violation.What = if (known) .length else .kind;
            try testing.expectEqual(want, judge(header, 7).?.what);
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
    };
    for (cases) |case| {
        var buffer: [200]u8 = undefined;
        const text = try std.fmt.bufPrint(&buffer, "{f}", .{judge(case.header, 3).?});
        try testing.expectEqualStrings(case.words, text);
    }
}
