//! How a shard waits for work: it polls for a bounded time first, since what comes next often comes
//! soon and a wake costs more than a page, then sleeps.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("../base/sys.zig");

/// Until something is there or `timeout_ns` have passed, the first `poll_ns_max` of them awake.
pub fn sleep(fds: []linux.pollfd, timeout_ns: u64, poll_ns_max: u64) void {
    if (poll_ns_max > 0 and spin(fds, timeout_ns, poll_ns_max)) return;
    var timeout: linux.timespec = .{
        .sec = @intCast(timeout_ns / std.time.ns_per_s),
        .nsec = @intCast(timeout_ns % std.time.ns_per_s),
    };
    _ = linux.ppoll(fds.ptr, @intCast(fds.len), &timeout, null);
}

/// True: something is there, or the time is up.
fn spin(fds: []linux.pollfd, timeout_ns: u64, poll_ns_max: u64) bool {
    const began = sys.monotonicNs();
    while (true) {
        var none: linux.timespec = .{ .sec = 0, .nsec = 0 };
        const r = linux.ppoll(fds.ptr, @intCast(fds.len), &none, null);
        if (linux.errno(r) == .SUCCESS and r > 0) return true;
        const spent = sys.monotonicNs() - began;
        if (spent >= timeout_ns) return true;
        if (spent >= poll_ns_max) return false;
    }
}

test "a sleep ends by what it waits for and by its time, polling or not" {
    const fd = try sys.eventfd();
    defer sys.close(fd);
    for ([_]u64{ 0, std.time.ns_per_ms, std.time.ns_per_hour }) |poll_ns_max| {
        var fds = [1]linux.pollfd{.{ .fd = fd, .events = linux.POLL.IN, .revents = 0 }};
        sleep(&fds, 2 * std.time.ns_per_ms, poll_ns_max);
        try std.testing.expectEqual(@as(i16, 0), fds[0].revents);
        sys.eventfdSignal(fd);
        sleep(&fds, std.time.ns_per_hour, poll_ns_max);
        try std.testing.expectEqual(@as(i16, linux.POLL.IN), fds[0].revents);
        sys.eventfdDrain(fd);
    }
}
