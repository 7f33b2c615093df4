//! Thin wrappers over the system calls the data plane makes: each returns a value or an error that
//! carries no errno, with `last_errno` beside it for reports. No std.Io here: its start-up would
//! take over signal handlers of the process that loaded us.

const std = @import("std");
const linux = std.os.linux;
const posix = std.posix;

/// errno of the newest failed call of this thread.
pub threadlocal var last_errno: u32 = 0;

pub const Error = error{SystemCall};

pub fn check(result: usize) Error!usize {
    const e = linux.errno(result);
    if (e == .SUCCESS) return result;
    last_errno = @backingInt(e);
    return error.SystemCall;
}

pub fn ioctl(fd: i32, request: u32, arg: usize) Error!usize {
    while (true) {
        const r = linux.ioctl(fd, request, arg);
        if (linux.errno(r) == .INTR) continue;
        return check(r);
    }
}

pub fn close(fd: i32) void {
    if (fd >= 0) _ = linux.close(fd);
}

pub fn monotonicNs() u64 {
    var ts: linux.timespec = undefined;
    _ = linux.clock_gettime(.MONOTONIC, &ts);
    return @as(u64, @intCast(ts.sec)) * std.time.ns_per_s + @as(u64, @intCast(ts.nsec));
}

/// Less than a second; a signal may end it.
pub fn pause(ns: u64) void {
    const ts: linux.timespec = .{ .sec = 0, .nsec = @intCast(ns) };
    _ = linux.nanosleep(&ts, null);
}

pub fn realtimeSeconds() i64 {
    var ts: linux.timespec = undefined;
    _ = linux.clock_gettime(.REALTIME, &ts);
    return ts.sec;
}

pub fn mapAnonymous(size: usize) Error![]align(std.heap.page_size_min) u8 {
    const flags: linux.MAP = .{ .TYPE = .PRIVATE, .ANONYMOUS = true, .NORESERVE = true };
    const r = try check(linux.mmap(null, size, .{ .READ = true, .WRITE = true }, flags, -1, 0));
    const p: [*]align(std.heap.page_size_min) u8 = @ptrFromInt(r);
    return p[0..size];
}

pub fn mapShared(fd: i32, size: usize) Error![]align(std.heap.page_size_min) u8 {
    const flags: linux.MAP = .{ .TYPE = .SHARED };
    const r = try check(linux.mmap(null, size, .{ .READ = true, .WRITE = true }, flags, fd, 0));
    const p: [*]align(std.heap.page_size_min) u8 = @ptrFromInt(r);
    return p[0..size];
}

pub fn unmap(memory: []align(std.heap.page_size_min) u8) void {
    _ = linux.munmap(memory.ptr, memory.len);
}

/// How much of a mapping costs memory now, in bytes.
pub fn residentBytes(memory: []align(std.heap.page_size_min) const u8) Error!usize {
    const page = std.heap.pageSize();
    var seen: [512]u8 = undefined;
    var resident: usize = 0;
    var offset: usize = 0;
    while (offset < memory.len) : (offset += seen.len * page) {
        const length = @min(seen.len * page, memory.len - offset);
        _ = try check(linux.mincore(@ptrFromInt(@intFromPtr(memory.ptr) + offset), length, &seen));
        for (seen[0 .. length / page]) |flags| resident += if (flags & 1 != 0) page else 0;
    }
    return resident;
}

pub fn eventfd() Error!i32 {
    return @intCast(try check(linux.eventfd(0, linux.EFD.CLOEXEC | linux.EFD.NONBLOCK)));
}

/// Adds one to an eventfd counter; a full counter already means "wake up".
pub fn eventfdSignal(fd: i32) void {
    const one: u64 = 1;
    _ = linux.write(fd, @ptrCast(&one), 8);
}

pub fn eventfdDrain(fd: i32) void {
    var value: u64 = 0;
    _ = linux.read(fd, @ptrCast(&value), 8);
}

/// Sleeps while `*word == expected`, at most `timeout_ns`. May wake early; callers loop.
pub fn futexWait(word: *const std.atomic.Value(u32), expected: u32, timeout_ns: ?u64) void {
    const op: linux.FUTEX_OP = .{ .cmd = .WAIT, .private = true };
    if (timeout_ns) |ns| {
        const ts: linux.timespec = .{
            .sec = @intCast(ns / std.time.ns_per_s),
            .nsec = @intCast(ns % std.time.ns_per_s),
        };
        _ = linux.futex_4arg(&word.raw, op, expected, &ts);
    } else {
        _ = linux.futex_4arg(&word.raw, op, expected, null);
    }
}

pub fn futexWake(word: *const std.atomic.Value(u32), count: u31) void {
    _ = linux.futex_3arg(&word.raw, .{ .cmd = .WAKE, .private = true }, count);
}

/// A futex mutex for state that several vCPU and device threads share. Never held across anything
/// that may touch guest memory or block.
pub const Mutex = struct {
    /// 0 free, 1 held, 2 held with waiters.
    state: std.atomic.Value(u32) = .init(0),

    pub fn lock(self: *Mutex) void {
        // Acquire pairs with the release in unlock.
        if (self.state.cmpxchgStrong(0, 1, .acquire, .monotonic) == null) return;
        while (self.state.swap(2, .acquire) != 0) futexWait(&self.state, 2, null);
    }

    pub fn unlock(self: *Mutex) void {
        if (self.state.swap(0, .release) == 2) futexWake(&self.state, 1);
    }
};

/// Blocks every signal in the calling thread; std.Thread.spawn children inherit the mask.
pub fn blockSignals() posix.sigset_t {
    var all = posix.sigfillset();
    var old: posix.sigset_t = undefined;
    posix.sigprocmask(std.c.SIG.BLOCK, &all, &old);
    return old;
}

pub fn restoreSignals(old: posix.sigset_t) void {
    posix.sigprocmask(std.c.SIG.SETMASK, &old, null);
}

/// The real-time signal that kicks a vCPU thread out of KVM_RUN.
pub fn kickSignal() posix.SIG {
    return @fromBackingInt(@intCast(std.c.sigrtmin() + 2));
}

pub fn unblockSignal(sig: posix.SIG) void {
    var set = posix.sigemptyset();
    posix.sigaddset(&set, sig);
    posix.sigprocmask(std.c.SIG.UNBLOCK, &set, null);
}

/// Whether the running kernel is older than major.minor; false when its release cannot be read.
pub fn kernelBefore(major: u32, minor: u32) bool {
    var name: linux.utsname = undefined;
    if (linux.errno(linux.uname(&name)) != .SUCCESS) return false;
    var parts = std.mem.tokenizeAny(u8, std.mem.sliceTo(&name.release, 0), ".-+");
    const first = parts.next() orelse return false;
    const second = parts.next() orelse return false;
    const have_major = std.fmt.parseInt(u32, first, 10) catch return false;
    const have_minor = std.fmt.parseInt(u32, second, 10) catch return false;
    return have_major < major or (have_major == major and have_minor < minor);
}

/// Pins the calling thread to one of the CPUs it may use: number `index` modulo their count.
/// False where the kernel refuses; the thread then runs anywhere.
pub fn pinToCpu(index: u32) bool {
    var allowed: linux.cpu_set_t = @splat(0);
    const r = linux.sched_getaffinity(0, @sizeOf(linux.cpu_set_t), &allowed);
    if (linux.errno(r) != .SUCCESS) return false;
    var count: u32 = 0;
    for (allowed) |word| count += @popCount(word);
    if (count == 0) return false;
    var wanted = index % count;
    for (&allowed, 0..) |*word, w| {
        var rest = word.*;
        word.* = 0;
        while (rest != 0) : (rest &= rest - 1) {
            if (wanted == 0) allowed[w] |= rest & (~rest +% 1);
            wanted -%= 1;
        }
    }
    linux.sched_setaffinity(0, &allowed) catch return false;
    return true;
}

/// Real-time priority for service threads; without the privilege they stay as they are.
pub fn setFifoPriority(priority: u32) bool {
    if (priority == 0) return false;
    const param: linux.sched_param = .{ .priority = @intCast(priority) };
    return linux.errno(linux.sched_setscheduler(0, .{ .mode = .FIFO }, &param)) == .SUCCESS;
}

/// Writes everything or reports the failure; a peer that went away is an error, not a signal.
pub fn writeAll(fd: i32, bytes: []const u8) Error!void {
    var rest = bytes;
    while (rest.len > 0) {
        const r = linux.write(fd, rest.ptr, rest.len);
        switch (linux.errno(r)) {
            .SUCCESS => rest = rest[r..],
            .INTR => {},
            .AGAIN => {
                var p: [1]linux.pollfd = .{.{ .fd = fd, .events = linux.POLL.OUT, .revents = 0 }};
                _ = linux.poll(&p, 1, 1000);
            },
            else => |e| {
                last_errno = @backingInt(e);
                return error.SystemCall;
            },
        }
    }
}

test "mutex excludes" {
    var mutex: Mutex = .{};
    var counter: u64 = 0;
    const Worker = struct {
        fn run(m: *Mutex, c: *u64) void {
            for (0..20_000) |_| {
                m.lock();
                c.* += 1;
                m.unlock();
            }
        }
    };
    var threads: [3]std.Thread = undefined;
    for (&threads) |*t| t.* = try std.Thread.spawn(.{}, Worker.run, .{ &mutex, &counter });
    for (threads) |t| t.join();
    try std.testing.expectEqual(@as(u64, 60_000), counter);
}

test "futex wait ends at its timeout and at a changed word" {
    var word: std.atomic.Value(u32) = .init(7);
    futexWait(&word, 7, 1_000_000);
    futexWait(&word, 8, null);
    try std.testing.expectEqual(@as(u32, 7), word.raw);
}

test "the running kernel is newer than the first and older than the last" {
    try std.testing.expect(!kernelBefore(3, 0));
    try std.testing.expect(kernelBefore(1000, 0));
}
