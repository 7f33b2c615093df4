//! Turns an engine that root started into another user's process, without root's capabilities.
//! What it has open stays open: /dev/kvm, userfaultfd, images, the channel to its parent.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("sys.zig");

/// linux/prctl.h.
const PR_SET_PDEATHSIG = 1;
const PR_SET_KEEPCAPS = 8;

/// glibc's own, which change every thread of the process; the system calls change one.
extern "c" fn setgroups(size: usize, list: ?[*]const linux.gid_t) c_int;
extern "c" fn setresgid(real: linux.gid_t, effective: linux.gid_t, saved: linux.gid_t) c_int;
extern "c" fn setresuid(real: linux.uid_t, effective: linux.uid_t, saved: linux.uid_t) c_int;

pub const Error = sys.Error || error{Orphaned};

/// This process ends by `signal` with its parent, which is process `parent`: error.Orphaned where
/// that one has ended already.
pub fn dieWith(parent: i32, signal: i32) Error!void {
    _ = try sys.check(linux.prctl(PR_SET_PDEATHSIG, @intCast(signal), 0, 0, 0));
    if (linux.getppid() != parent) return error.Orphaned;
}

/// Becomes user and group `id`, in no other group. Threads that come later may still ask for
/// real-time priorities up to `priority`: by a limit, or where root may not raise that one (some
/// containers) by CAP_SYS_NICE alone, which they have from the calling thread. The caller then asks
/// for dieWith again: the kernel forgets it when a process changes its user.
pub fn become(id: u32, priority: u32) sys.Error!void {
    const limit: linux.rlimit = .{ .cur = priority, .max = priority };
    const r = linux.prlimit(0, .RTPRIO, &limit, null);
    const keeps_nice = priority > 0 and linux.errno(r) != .SUCCESS;
    if (keeps_nice) _ = try sys.check(linux.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
    try checkC(setgroups(0, null));
    try checkC(setresgid(id, id, id));
    // From root to another: the kernel takes permitted, effective and ambient capabilities away.
    try checkC(setresuid(id, id, id));
    if (keeps_nice) try keepNice();
}

/// linux/capability.h: version 3 has two words for each set.
const capability_version = 0x2008_0522;
const CAP_SYS_NICE: u32 = 1 << 23;
const CapabilityWord = extern struct { effective: u32, permitted: u32, inheritable: u32 };

fn keepNice() sys.Error!void {
    var header: [2]u32 = .{ capability_version, 0 };
    const sets: [2]CapabilityWord = .{
        .{ .effective = CAP_SYS_NICE, .permitted = CAP_SYS_NICE, .inheritable = 0 },
        .{ .effective = 0, .permitted = 0, .inheritable = 0 },
    };
    const r = linux.syscall2(.capset, @intFromPtr(&header), @intFromPtr(&sets));
    // Without it nothing is kept, and a thread runs with the priority of any.
    if (linux.errno(r) == .PERM) return dropAll(&header);
    _ = try sys.check(r);
}

fn dropAll(header: *[2]u32) sys.Error!void {
    const none: [2]CapabilityWord = @splat(.{ .effective = 0, .permitted = 0, .inheritable = 0 });
    const r = linux.syscall2(.capset, @intFromPtr(header), @intFromPtr(&none));
    _ = try sys.check(r);
}

fn checkC(result: c_int) sys.Error!void {
    if (result == 0) return;
    sys.last_errno = @intCast(std.c._errno().*);
    return error.SystemCall;
}

const testing = std.testing;
const someone = 0x7001_0005;

/// In a child with a second thread: 0, or what was wrong.
fn becomeSomeone() u8 {
    const Looker = struct {
        go: std.atomic.Value(u32) = .init(0),
        uid: u32 = 0,
        fn run(self: *@This()) void {
            while (self.go.load(.acquire) == 0) sys.futexWait(&self.go, 0, null);
            // The system call tells this thread's own.
            self.uid = linux.getuid();
        }
    };
    var looker: Looker = .{};
    const thread = std.Thread.spawn(.{}, Looker.run, .{&looker}) catch return 1;
    become(someone, 10) catch return 2;
    looker.go.store(1, .release);
    sys.futexWake(&looker.go, 1);
    thread.join();
    if (linux.getuid() != someone or linux.getgid() != someone) return 3;
    if (looker.uid != someone) return 4;
    var header: [2]u32 = .{ capability_version, 0 };
    var sets: [2]CapabilityWord = undefined;
    const r = linux.syscall2(.capget, @intFromPtr(&header), @intFromPtr(&sets));
    if (linux.errno(r) != .SUCCESS) return 5;
    for (sets) |set| if ((set.permitted | set.effective) & ~CAP_SYS_NICE != 0) return 6;
    if (linux.errno(linux.setresuid(0, 0, 0)) != .PERM) return 7;
    if (!sys.setFifoPriority(10)) return 8;
    if (sys.setFifoPriority(11) and sets[0].effective == 0) return 10;
    dieWith(linux.getppid(), 9) catch return 9;
    return 0;
}

test "every thread is another user's, without root's capabilities but for its priority" {
    if (linux.getuid() != 0) return error.SkipZigTest;
    const pid = try sys.check(linux.fork());
    if (pid == 0) linux.exit_group(becomeSomeone());
    var status: i32 = 0;
    _ = try sys.check(linux.waitpid(@intCast(pid), &status, 0));
    try testing.expectEqual(@as(u8, 0), linux.W.EXITSTATUS(@bitCast(status)));
}

test "a process whose parent is gone is told so" {
    try testing.expectError(error.Orphaned, dieWith(1 << 22, 9));
    _ = try sys.check(linux.prctl(PR_SET_PDEATHSIG, 0, 0, 0, 0));
}
