//! Guest clocks from the host's monotonic clock: APIC bus ticks (1 GHz) and the PM timer's
//! nanoseconds. With a dilation factor the guest's seconds are longer than ours (slow rigs only);
//! the reported TSC frequency is multiplied by the same factor, so all clocks agree.

const std = @import("std");
const sys = @import("../base/sys.zig");

pub const Clock = struct {
    start_ns: u64,
    dilation: u32,

    pub fn init(dilation: u32) Clock {
        return .{ .start_ns = sys.monotonicNs(), .dilation = @max(dilation, 1) };
    }

    /// Guest nanoseconds since start; also APIC bus ticks at 1 GHz.
    pub fn now(self: *const Clock) u64 {
        return (sys.monotonicNs() - self.start_ns) / self.dilation;
    }

    /// Host monotonic time at which the guest's clock reaches `guest_ns`.
    pub fn hostTime(self: *const Clock, guest_ns: u64) u64 {
        return self.start_ns +| guest_ns *| self.dilation;
    }
};

test "dilation stretches the guest's time and inverts" {
    const clock: Clock = .{ .start_ns = 1000, .dilation = 20 };
    try std.testing.expectEqual(@as(u64, 1000 + 20 * 50), clock.hostTime(50));
    try std.testing.expectEqual(std.math.maxInt(u64), clock.hostTime(std.math.maxInt(u64) - 1));
}
