//! Questions and answers on a lane that no shard serves yet: while a span comes up its thread
//! waits for one peer at a time.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("../base/sys.zig");
const tcp = @import("../transport/tcp.zig");
const frame = @import("../transport/frame.zig");
const lane_file = @import("../transport/lane.zig");
const Lane = lane_file.Lane;

/// A peer that is busy with others answers late; what it asks of them takes milliseconds.
const patience_ns = 20 * std.time.ns_per_s;

pub const Error = lane_file.Error || error{ TimedOut, Full };

pub fn give(lane: *Lane, kind: frame.Kind, payload: []const u8) Error!void {
    try lane.queue(@backingInt(kind), &.{payload});
    const deadline = sys.monotonicNs() + patience_ns;
    // Not sent as long as the lane is not up: then with the first thing taken.
    while (!try lane.flush() and lane.wantsOut()) {
        try tcp.waitFor(lane.fd, linux.POLL.OUT, deadline);
    }
}

/// The payload stays until the next call on the lane.
pub fn take(lane: *Lane, kind: frame.Kind, length: usize) Error![]const u8 {
    const deadline = sys.monotonicNs() + patience_ns;
    while (true) {
        if (try lane.next()) |received| {
            const is_due = received.kind == kind and received.payload.len == length;
            return if (is_due) received.payload else error.ProtocolViolated;
        }
        // Up since the peer's resume, perhaps: what waited for it may go.
        _ = try lane.flush();
        try tcp.waitFor(lane.fd, linux.POLL.IN, deadline);
        _ = try lane.receive();
    }
}
