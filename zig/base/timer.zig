//! A POSIX timer that signals one thread (SIGEV_THREAD_ID): the APIC timer of a vCPU that sits in
//! KVM_RUN. Absolute CLOCK_MONOTONIC nanoseconds; created by the thread it signals.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("sys.zig");

const SIGEV_THREAD_ID = 4;
const TIMER_ABSTIME = 1;

/// struct sigevent, 64 bytes (uapi asm-generic/siginfo.h).
const SigEvent = extern struct {
    value: u64 = 0,
    signo: i32,
    notify: i32,
    tid: i32,
    pad: [11]i32 = @splat(0),
};

const ITimerSpec = extern struct {
    interval_sec: i64 = 0,
    interval_nsec: i64 = 0,
    value_sec: i64,
    value_nsec: i64,
};

pub const ThreadTimer = struct {
    id: i32 = -1,

    pub fn create(signal: std.posix.SIG) sys.Error!ThreadTimer {
        var event: SigEvent = .{
            .signo = @intCast(@backingInt(signal)),
            .notify = SIGEV_THREAD_ID,
            .tid = linux.gettid(),
        };
        var id: i32 = -1;
        const clock = @backingInt(linux.CLOCK.MONOTONIC);
        const r = linux.syscall3(.timer_create, clock, @intFromPtr(&event), @intFromPtr(&id));
        _ = try sys.check(r);
        return .{ .id = id };
    }

    /// Fires once at `at_ns`, at once if that is past; 0 disarms.
    pub fn set(self: *const ThreadTimer, at_ns: u64) void {
        const ns = @min(at_ns, std.math.maxInt(i64));
        const spec: ITimerSpec = .{
            .value_sec = @intCast(ns / std.time.ns_per_s),
            .value_nsec = @intCast(ns % std.time.ns_per_s),
        };
        const id: usize = @intCast(self.id);
        _ = linux.syscall4(.timer_settime, id, TIMER_ABSTIME, @intFromPtr(&spec), 0);
    }

    pub fn destroy(self: *ThreadTimer) void {
        if (self.id >= 0) _ = linux.syscall1(.timer_delete, @intCast(self.id));
        self.id = -1;
    }
};

var test_fired: std.atomic.Value(u32) = .init(0);

fn onTestSignal(_: std.posix.SIG) callconv(.c) void {
    _ = test_fired.fetchAdd(1, .monotonic);
}

test "an armed timer signals its thread once, a disarmed one never" {
    const posix = std.posix;
    const action: posix.Sigaction = .{
        .handler = .{ .handler = onTestSignal },
        .mask = posix.sigemptyset(),
        .flags = 0,
    };
    const signal: posix.SIG = @fromBackingInt(@intCast(std.c.sigrtmin() + 5));
    posix.sigaction(signal, &action, null);
    var timer = try ThreadTimer.create(signal);
    defer timer.destroy();
    timer.set(sys.monotonicNs() + std.time.ns_per_s);
    timer.set(0);
    timer.set(sys.monotonicNs() + std.time.ns_per_ms);
    while (test_fired.load(.monotonic) == 0) sys.pause(std.time.ns_per_ms);
    try std.testing.expectEqual(@as(u32, 1), test_fired.load(.monotonic));
}
