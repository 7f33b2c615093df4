//! The system calls of an engine that runs a guest, as a seccomp filter (seccomp(2), classic BPF):
//! a list of what its threads and its runtime use; everything else fails with EPERM and a line in
//! the host's audit log. It fails and does not kill, since an engine that ends takes its VM along,
//! and a call that failed has done no harm. No path is opened any more: an engine opens what it
//! needs before. No process is made, none but its own is signalled. Unix sockets are streams: by
//! datagrams systemd, which goes by the sender's control group, could be told things in its agent's
//! name.
//! JavaScriptCore looks into /proc/self/statm now and then and glibc tries clone3 for each thread;
//! both take a refusal well. A second, small filter that logs nothing refuses them first, or the
//! log would be full of it.
//! Invariant: no call of the pager, of KVM or of memory management looks at its arguments here, so
//! the kernel answers them from a bitmap (since 5.11) and none of them can be refused by mistake.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("sys.zig");
const Call = linux.SYS;

/// linux/filter.h, linux/bpf_common.h.
const Instruction = extern struct { code: u16, jt: u8 = 0, jf: u8 = 0, k: u32 };
const Program = extern struct { len: u16, filter: [*]const Instruction };
const LD_W_ABS = 0x20;
const JEQ_K = 0x15;
const JGT_K = 0x25;
const JGE_K = 0x35;
const JSET_K = 0x45;
const RET_K = 0x06;

/// linux/seccomp.h.
const SET_MODE_FILTER = 1;
const FLAG_TSYNC = 1 << 0;
const FLAG_LOG = 1 << 1;
/// Without it kernels before 5.16 turn speculative stores off in vCPU threads.
const FLAG_SPEC_ALLOW = 1 << 2;
const RET_KILL_PROCESS = 0x8000_0000;
const RET_ERRNO = 0x0005_0000;
const RET_ALLOW = 0x7fff_0000;

/// linux/prctl.h.
const pr_set_no_new_privs = 38;
/// linux/audit.h.
const ARCH_X86_64 = 0xc000_003e;
const X32_BIT = 0x4000_0000;
/// The newest call that was looked at; later ones are unknown, as on an older kernel.
const newest = @backingInt(Call.set_mempolicy_home_node);

/// struct seccomp_data: nr, arch, instruction pointer, six arguments.
const nr_offset = 0;
const arch_offset = 4;
fn argOffset(index: u32) u32 {
    return 16 + 8 * index;
}

/// Most frequent first, for kernels without the bitmap.
const allowed = [_]Call{
    // The run loop, the pager, the lanes.
    .ioctl,                  .read,                   .write,           .futex,
    .poll,                   .sendmsg,                .recvmsg,         .sendto,
    .recvfrom,               .epoll_wait,             .epoll_pwait,     .epoll_pwait2,
    .madvise,                .membarrier,             .clock_nanosleep, .clock_gettime,
    .sched_yield,            .readv,                  .writev,          .ppoll,
    .pread64,                .pwrite64,               .nanosleep,       .restart_syscall,
    // Memory.
    .mmap,                   .munmap,                 .mprotect,        .mremap,
    .mincore,                .brk,                    .mlock,           .mlock2,
    .munlock,                .memfd_create,           .pkey_mprotect,   .get_robust_list,
    // Threads, signals, time.
    .rseq,                   .set_robust_list,        .set_tid_address, .gettid,
    .getpid,                 .getppid,                .getuid,          .geteuid,
    .getgid,                 .getegid,                .exit,            .exit_group,
    .rt_sigaction,           .rt_sigprocmask,         .rt_sigreturn,    .rt_sigsuspend,
    .rt_sigtimedwait,        .rt_sigpending,          .sigaltstack,     .arch_prctl,
    .sched_getaffinity,      .sched_getscheduler,     .sched_getparam,  .getpriority,
    .sched_get_priority_max, .sched_get_priority_min, .getcpu,          .timer_create,
    .timer_settime,          .timer_gettime,          .timer_delete,    .timer_getoverrun,
    .timerfd_create,         .timerfd_settime,        .timerfd_gettime, .clock_getres,
    .gettimeofday,           .time,                   .futex_waitv,     .times,
    // Descriptors that are open, and those that have no path.
    .close,                  .close_range,            .fstat,           .lseek,
    .dup,                    .dup2,                   .dup3,            .pipe,
    .pipe2,                  .eventfd2,               .signalfd4,       .epoll_create1,
    .epoll_ctl,              .pselect6,               .select,          .fsync,
    .fdatasync,              .ftruncate,              .preadv,          .pwritev,
    .preadv2,                .pwritev2,               .shutdown,
    // Lanes, which come again after a cut; their families are looked at below.
           .connect,
    .bind,                   .listen,                 .accept,          .accept4,
    .getsockname,            .getpeername,            .setsockopt,      .getsockopt,
    .sendmmsg,               .recvmmsg,               .getrandom,
    // What a runtime asks of itself; seccomp, which can only take more away, for the second filter.
          .uname,
    .sysinfo,                .getrusage,              .getrlimit,       .getcwd,
    .wait4,                  .capget,                 .seccomp,
};

/// The argument that decides, and what it may be.
const Checked = struct { call: Call, arg: u32, values: []const u32 };

const AF = linux.AF;
/// linux/prctl.h: PR_SET_NAME, PR_GET_NAME, PR_GET_DUMPABLE, PR_SET_PDEATHSIG, PR_GET_PDEATHSIG,
/// PR_GET_NO_NEW_PRIVS, PR_GET_SECCOMP, PR_SET_TIMERSLACK, PR_SET_VMA.
const prctls = [_]u32{ 15, 16, 3, 1, 2, 39, 21, 29, 0x5356_4d41 };
const checked = [_]Checked{
    .{ .call = .prctl, .arg = 0, .values = &prctls },
    // Of a descriptor, as libraries ask for it: AT_EMPTY_PATH.
    .{ .call = .newfstatat, .arg = 3, .values = &.{linux.AT.EMPTY_PATH} },
    .{ .call = .statx, .arg = 2, .values = &.{linux.AT.EMPTY_PATH} },
    // The calling thread itself.
    .{ .call = .sched_setscheduler, .arg = 0, .values = &.{0} },
    .{ .call = .sched_setaffinity, .arg = 0, .values = &.{0} },
};
/// linux/fcntl.h, asm-generic/fcntl.h: F_SETOWN, F_SETSIG, F_SETOWN_EX, by which a descriptor
/// signals whom one likes.
const refused_fcntls = [_]u32{ 8, 10, 15 };
/// linux/net.h: of a socket's type, without its flags.
const type_mask = 0xf;
const ALU_AND_K = 0x54;
/// Their first argument is whom they signal: this process only.
const signals = [_]Call{ .kill, .tgkill, .rt_sigqueueinfo, .rt_tgsigqueueinfo };

const capacity = 4 * allowed.len;

const Assembler = struct {
    code: [capacity]Instruction = undefined,
    len: u16 = 0,

    fn add(self: *Assembler, code: u16, k: u32, jt: u8, jf: u8) void {
        self.code[self.len] = .{ .code = code, .jt = jt, .jf = jf, .k = k };
        self.len += 1;
    }

    fn ret(self: *Assembler, action: u32) void {
        self.add(RET_K, action, 0, 0);
    }

    /// `action` where the number is the call's.
    fn on(self: *Assembler, call: Call, action: u32) void {
        self.add(JEQ_K, @intCast(@backingInt(call)), 0, 1);
        self.ret(action);
    }

    const Verdicts = struct { listed: u32, other: u32 };

    /// One verdict where the low half of the argument is one of `values`, another where not.
    fn onValue(self: *Assembler, c: Checked, verdicts: Verdicts) void {
        const rest: u8 = @intCast(2 + 2 * c.values.len);
        self.add(JEQ_K, @intCast(@backingInt(c.call)), 0, rest);
        self.add(LD_W_ABS, argOffset(c.arg), 0, 0);
        for (c.values) |value| {
            self.add(JEQ_K, value, 0, 1);
            self.ret(verdicts.listed);
        }
        self.ret(verdicts.other);
    }

    /// A Unix socket must be a stream; other families are one of `families`.
    fn onSocket(self: *Assembler, call: Call, families: []const u32) void {
        const rest: u8 = @intCast(8 + 2 * families.len);
        self.add(JEQ_K, @intCast(@backingInt(call)), 0, rest);
        self.add(LD_W_ABS, argOffset(0), 0, 0);
        self.add(JEQ_K, AF.UNIX, 0, 5);
        self.add(LD_W_ABS, argOffset(1), 0, 0);
        self.add(ALU_AND_K, type_mask, 0, 0);
        self.add(JEQ_K, linux.SOCK.STREAM, 0, 1);
        self.ret(RET_ALLOW);
        self.ret(refusal(.PERM));
        for (families) |family| {
            self.add(JEQ_K, family, 0, 1);
            self.ret(RET_ALLOW);
        }
        self.ret(refusal(.PERM));
    }
};

fn refusal(e: linux.E) u32 {
    return RET_ERRNO | @as(u32, @backingInt(e));
}

fn assemble(a: *Assembler, pid: u32) void {
    a.add(LD_W_ABS, arch_offset, 0, 0);
    a.add(JEQ_K, ARCH_X86_64, 1, 0);
    // No honest code here makes calls of i386.
    a.ret(RET_KILL_PROCESS);
    a.add(LD_W_ABS, nr_offset, 0, 0);
    for (allowed) |call| a.on(call, RET_ALLOW);
    a.add(JGE_K, X32_BIT, 0, 1);
    a.ret(RET_KILL_PROCESS);
    // A library that tries a newer call has another way for kernels without it; clone3 is such a
    // one, whose flags lie where a filter cannot look.
    a.add(JGT_K, newest, 0, 1);
    a.ret(refusal(.NOSYS));
    a.on(.clone3, refusal(.NOSYS));
    a.onSocket(.socket, &.{ AF.INET, AF.INET6 });
    a.onSocket(.socketpair, &.{});
    const only: Assembler.Verdicts = .{ .listed = RET_ALLOW, .other = refusal(.PERM) };
    const all_but: Assembler.Verdicts = .{ .listed = refusal(.PERM), .other = RET_ALLOW };
    a.onValue(.{ .call = .fcntl, .arg = 1, .values = &refused_fcntls }, all_but);
    for (checked) |c| a.onValue(c, only);
    for (signals) |call| a.onValue(.{ .call = call, .arg = 0, .values = &.{pid} }, only);
    // A thread, never a process; the flag of one excludes namespaces of its own but for these.
    const namespaces = linux.CLONE.NEWNS | linux.CLONE.NEWUTS | linux.CLONE.NEWIPC |
        linux.CLONE.NEWUSER | linux.CLONE.NEWPID | linux.CLONE.NEWNET | linux.CLONE.NEWCGROUP;
    a.add(JEQ_K, @intCast(@backingInt(Call.clone)), 0, 5);
    a.add(LD_W_ABS, argOffset(0), 0, 0);
    a.add(JSET_K, namespaces, 2, 0);
    a.add(JSET_K, linux.CLONE.THREAD, 0, 1);
    a.ret(RET_ALLOW);
    a.ret(refusal(.PERM));
    // Limits may be read: new ones would be the third argument.
    a.add(JEQ_K, @intCast(@backingInt(Call.prlimit64)), 0, 6);
    a.add(LD_W_ABS, argOffset(2), 0, 0);
    a.add(JEQ_K, 0, 0, 3);
    a.add(LD_W_ABS, argOffset(2) + 4, 0, 0);
    a.add(JEQ_K, 0, 0, 1);
    a.ret(RET_ALLOW);
    a.ret(refusal(.PERM));
    a.ret(refusal(.PERM));
}

/// From now on, for every thread of this process and for good: no new privileges, and the filter.
pub fn enter() sys.Error!void {
    _ = try sys.check(linux.prctl(pr_set_no_new_privs, 1, 0, 0, 0));
    var assembler: Assembler = .{};
    assemble(&assembler, @intCast(linux.getpid()));
    try install(&assembler, FLAG_LOG);
    // Of two filters that refuse alike the newer one's answer counts, and whether it logs.
    var quiet: Assembler = .{};
    quiet.add(LD_W_ABS, nr_offset, 0, 0);
    quiet.on(.openat, refusal(.PERM));
    quiet.on(.clone3, refusal(.NOSYS));
    quiet.ret(RET_ALLOW);
    try install(&quiet, 0);
}

fn install(assembler: *const Assembler, log: u32) sys.Error!void {
    const program: Program = .{ .len = assembler.len, .filter = &assembler.code };
    const pointer = @intFromPtr(&program);
    const wanted = FLAG_TSYNC | FLAG_SPEC_ALLOW | log;
    var r = linux.syscall3(.seccomp, SET_MODE_FILTER, wanted, pointer);
    // Flags since Linux 4.14 and 4.17.
    if (linux.errno(r) == .INVAL) {
        r = linux.syscall3(.seccomp, SET_MODE_FILTER, FLAG_TSYNC, pointer);
    }
    // A positive number is a thread that has another filter.
    if (try sys.check(r) != 0) {
        sys.last_errno = @backingInt(linux.E.BUSY);
        return error.SystemCall;
    }
}

const testing = std.testing;

/// Runs `body` in a child that has the filter; its exit status.
fn inSandbox(comptime body: fn () u8) !u8 {
    const pid = try sys.check(linux.fork());
    if (pid == 0) {
        enter() catch linux.exit_group(200);
        linux.exit_group(body());
    }
    var status: i32 = 0;
    _ = try sys.check(linux.waitpid(@intCast(pid), &status, 0));
    const word: u32 = @bitCast(status);
    if (linux.W.IFSIGNALED(word)) return 255;
    return linux.W.EXITSTATUS(word);
}

fn refuses(result: usize, e: linux.E) bool {
    return linux.errno(result) == e;
}

/// Which of these the filter lets through: 0 for none, else the number of the first.
fn forbiddenCalls() u8 {
    const path = @intFromPtr("/proc/self/status");
    const tid: usize = @intCast(linux.getppid());
    const call = linux.syscall3;
    const calls = [_]usize{
        call(.execve, @intFromPtr("/bin/true"), 0, 0),
        call(.execveat, 0, path, 0),
        call(.ptrace, 0, 0, 0),
        call(.process_vm_readv, tid, 0, 0),
        call(.mount, path, path, 0),
        call(.umount2, path, 0, 0),
        call(.init_module, 0, 0, 0),
        call(.finit_module, 0, 0, 0),
        call(.keyctl, 0, 0, 0),
        call(.add_key, 0, 0, 0),
        call(.bpf, 0, 0, 0),
        call(.perf_event_open, 0, 0, 0),
        call(.unshare, 0, 0, 0),
        call(.setns, 0, 0, 0),
        call(.setuid, 0, 0, 0),
        call(.setresgid, 0, 0, 0),
        call(.capset, 0, 0, 0),
        call(.chroot, path, 0, 0),
        call(.open, path, 0, 0),
        call(.openat, @bitCast(@as(isize, linux.AT.FDCWD)), path, 0),
        call(.unlink, path, 0, 0),
        call(.readlink, path, 0, 0),
        call(.fork, 0, 0, 0),
        call(.vfork, 0, 0, 0),
        call(.clone, @backingInt(linux.SIG.CHLD), 0, 0),
        call(.clone, linux.CLONE.THREAD | linux.CLONE.NEWNET, 0, 0),
        call(.socket, linux.AF.NETLINK, linux.SOCK.RAW, 0),
        call(.socket, linux.AF.PACKET, linux.SOCK.RAW, 0),
        call(.socket, 40, linux.SOCK.STREAM, 0),
        call(.socket, linux.AF.UNIX, linux.SOCK.DGRAM, 0),
        call(.socket, linux.AF.UNIX, linux.SOCK.SEQPACKET | linux.SOCK.CLOEXEC, 0),
        linux.syscall4(.socketpair, linux.AF.UNIX, linux.SOCK.DGRAM, 0, path),
        call(.fcntl, 0, 8, tid),
        call(.fcntl, 0, 10, 9),
        call(.kill, tid, 0, 0),
        call(.tgkill, tid, tid, 0),
        call(.pidfd_open, tid, 0, 0),
        call(.prctl, 22, 0, 0),
        call(.userfaultfd, 0, 0, 0),
        linux.syscall4(.newfstatat, 0, path, 0, 0),
        call(.sched_setscheduler, tid, 0, 0),
        call(.prlimit64, 0, 7, path),
        call(.io_uring_setup, 1, path, 0),
        call(.reboot, 0, 0, 0),
    };
    for (calls, 1..) |result, i| if (!refuses(result, .PERM)) return @intCast(i);
    return 0;
}

fn neededCalls() u8 {
    const none: linux.timespec = .{ .sec = 0, .nsec = 1 };
    if (linux.errno(linux.nanosleep(&none, null)) != .SUCCESS) return 1;
    for ([_]u32{ linux.AF.UNIX, linux.AF.INET }) |family| {
        if (linux.errno(linux.socket(family, linux.SOCK.STREAM, 0)) != .SUCCESS) return 2;
    }
    const stream = linux.SOCK.STREAM | linux.SOCK.CLOEXEC | linux.SOCK.NONBLOCK;
    const r = linux.socket(linux.AF.UNIX, stream, 0);
    if (linux.errno(r) != .SUCCESS) return 12;
    if (linux.errno(linux.fcntl(@intCast(r), linux.F.GETFL, 0)) != .SUCCESS) return 13;
    var pair: [2]i32 = undefined;
    if (linux.errno(linux.socketpair(linux.AF.UNIX, stream, 0, &pair)) != .SUCCESS) return 14;
    const memory = sys.mapAnonymous(1 << 20) catch return 3;
    memory[0] = 1;
    if (linux.errno(linux.madvise(memory.ptr, memory.len, 4)) != .SUCCESS) return 4;
    if (memory[0] != 0) return 5;
    // Commands of membarrier(2): 16 registers for 8, private expedited.
    if (linux.errno(linux.syscall2(.membarrier, 16, 0)) != .SUCCESS) return 6;
    if (linux.errno(linux.syscall2(.membarrier, 8, 0)) != .SUCCESS) return 7;
    var limit: linux.rlimit = undefined;
    if (linux.errno(linux.prlimit(0, .NOFILE, null, &limit)) != .SUCCESS) return 8;
    const own: usize = @intCast(linux.getpid());
    if (linux.errno(linux.syscall2(.kill, own, 0)) != .SUCCESS) return 9;
    // Newer than the list, and what libraries try first.
    if (linux.errno(linux.syscall2(.clone3, 0, 0)) != .NOSYS) return 10;
    if (linux.errno(linux.syscall1(.mseal, 0)) != .NOSYS) return 11;
    return 0;
}

/// A thread that was there before and one that comes later, both under the filter.
fn threads() u8 {
    const Opener = struct {
        fn run(refused: *std.atomic.Value(u32)) void {
            const r = linux.open("/proc/self/status", .{}, 0);
            if (linux.errno(r) == .PERM) _ = refused.fetchAdd(1, .release);
        }
    };
    var refused: std.atomic.Value(u32) = .init(0);
    const thread = std.Thread.spawn(.{}, Opener.run, .{&refused}) catch return 1;
    thread.join();
    return if (refused.load(.acquire) == 1) 0 else 2;
}

test "what an engine has no use for is refused" {
    try testing.expectEqual(@as(u8, 0), try inSandbox(forbiddenCalls));
}

test "what it needs goes on" {
    try testing.expectEqual(@as(u8, 0), try inSandbox(neededCalls));
}

test "threads can be made, and have the filter" {
    try testing.expectEqual(@as(u8, 0), try inSandbox(threads));
}

test "a jump never leaves the program, and every path ends in a verdict" {
    var a: Assembler = .{};
    assemble(&a, 1);
    try testing.expect(a.len < capacity);
    for (a.code[0..a.len], 0..) |instruction, i| {
        if (instruction.code & 7 != 5) continue;
        try testing.expect(i + 1 + @max(instruction.jt, instruction.jf) < a.len);
    }
    try testing.expectEqual(@as(u16, RET_K), a.code[a.len - 1].code);
}
