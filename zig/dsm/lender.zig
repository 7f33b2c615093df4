//! A memory node's half of the frame messages: pure, the bytes themselves are the shell's. Each
//! home has a range of its own, so a home can spoil nobody's frames but its own.

const std = @import("std");
const types = @import("types.zig");
const Node = types.Node;

/// Frames of this memory node that are one home's alone.
pub const Lent = struct { home: Node, first: u32, count: u32 };

/// Whether a frame_put, frame_get or frame_free of an untrusted peer can be obeyed: `msg.old` is
/// its frame then.
pub fn validate(lent: []const Lent, from: Node, msg: types.Msg) error{ProtocolViolated}!void {
    const is_put = msg.kind == @backingInt(types.MsgKind.frame_put);
    const is_get = msg.kind == @backingInt(types.MsgKind.frame_get);
    if (!is_put and !is_get and !isFree(msg)) return error.ProtocolViolated;
    const flags: u8 = if (is_put) types.flag_data else 0;
    if (msg.flags != flags) return error.ProtocolViolated;
    for (lent) |l| {
        if (l.home == from and msg.old >= l.first and msg.old - l.first < l.count) return;
    }
    return error.ProtocolViolated;
}

/// Nothing to keep and nothing to answer: the frame's memory may go.
pub fn isFree(msg: types.Msg) bool {
    return msg.kind == @backingInt(types.MsgKind.frame_free);
}

/// What to answer to the others once they are obeyed: frame_ack, or frame_data with the frame's
/// bytes.
pub fn answer(msg: types.Msg) types.Msg {
    var reply = msg;
    const is_get = msg.kind == @backingInt(types.MsgKind.frame_get);
    reply.kind = @backingInt(@as(types.MsgKind, if (is_get) .frame_data else .frame_ack));
    reply.flags = if (is_get) types.flag_data else 0;
    return reply;
}

const testing = std.testing;

test "a home reaches its own frames, with the data where it belongs, and nothing else" {
    const lent = [_]Lent{
        .{ .home = 0, .first = 0, .count = 4 },
        .{ .home = 1, .first = 4, .count = 2 },
    };
    const put: types.Msg = .{
        .kind = @backingInt(types.MsgKind.frame_put),
        .flags = types.flag_data,
        .page = 9,
        .version = 7,
        .old = 4,
    };
    try validate(&lent, 1, put);
    try testing.expectEqual(@backingInt(types.MsgKind.frame_ack), answer(put).kind);
    try testing.expectEqual(@as(u32, 7), answer(put).version);
    try testing.expect(!answer(put).hasData());
    var get = put;
    get.kind = @backingInt(types.MsgKind.frame_get);
    get.flags = 0;
    get.old = 5;
    try validate(&lent, 1, get);
    try testing.expectEqual(@backingInt(types.MsgKind.frame_data), answer(get).kind);
    try testing.expect(answer(get).hasData());
    var free = get;
    free.kind = @backingInt(types.MsgKind.frame_free);
    try validate(&lent, 1, free);
    try testing.expectError(error.ProtocolViolated, validate(&lent, 0, free));
    free.flags = types.flag_data;
    try testing.expectError(error.ProtocolViolated, validate(&lent, 1, free));
    var bad = get;
    for ([_]u64{ 0, 3, 6, 1 << 32 | 5, std.math.maxInt(u64) }) |frame| {
        bad.old = frame;
        try testing.expectError(error.ProtocolViolated, validate(&lent, 1, bad));
    }
    try testing.expectError(error.ProtocolViolated, validate(&lent, 2, get));
    bad = put;
    bad.flags = 0;
    try testing.expectError(error.ProtocolViolated, validate(&lent, 1, bad));
    bad = put;
    bad.kind = @backingInt(types.MsgKind.put);
    try testing.expectError(error.ProtocolViolated, validate(&lent, 1, bad));
}
