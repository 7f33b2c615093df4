//! The negative control: a pager that copies a page away without write-protecting it first, as one
//! of the wrong order would. Production code stays as it is: a seccomp filter (seccomp(2)), for the
//! thread that asks for it and those it starts, answers UFFDIO_WRITEPROTECT with success and does
//! nothing, and holds up MADV_DONTNEED, so that a guest surely runs between the copy and the drop.
//! A page that was read-shared never becomes writable again then: only for payloads that write
//! whatever they touch.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("../base/sys.zig");
const uffd_api = @import("../base/uffd_api.zig");

const PR_SET_NO_NEW_PRIVS = 38;
const SET_MODE_FILTER = 1;
const FLAG_NEW_LISTENER = 1 << 3;
const RET_ALLOW = 0x7fff_0000;
/// With errno 0 in its low half: the call is left out and returns 0.
const RET_ERRNO = 0x0005_0000;
/// The call waits for word from the listener.
const RET_USER_NOTIF = 0x7fc0_0000;
const USER_NOTIF_FLAG_CONTINUE = 1;
const MADV_DONTNEED = 4;

/// struct sock_filter: classic BPF, jumps count from the next instruction.
const Instruction = extern struct { code: u16, jt: u8 = 0, jf: u8 = 0, k: u32 };
const Program = extern struct { len: u16, filter: [*]const Instruction };

const load_word = 0x20;
const jump_equal = 0x15;
const give = 0x06;

/// struct seccomp_data, seccomp_notif, seccomp_notif_resp.
const Call = extern struct { number: i32, arch: u32, ip: u64, arguments: [6]u64 };
const Notice = extern struct { id: u64, pid: u32, flags: u32, call: Call };
const Response = extern struct { id: u64, value: i64 = 0, err: i32 = 0, flags: u32 };
const NOTIF_RECV = 0xc050_2100;
const NOTIF_SEND = 0xc018_2101;

comptime {
    std.debug.assert(@sizeOf(Notice) == 0x50 and @sizeOf(Response) == 0x18);
}

const delay_ns = 100 * std.time.ns_per_us;

/// The low half of argument n.
fn argument(n: u32) u32 {
    return @offsetOf(Call, "arguments") + 8 * n;
}

/// From now on it is so for this thread and the threads it starts. Returns the listener, on which
/// another thread holds up what waits.
pub fn leaveOutWriteProtection() sys.Error!i32 {
    const filter = [_]Instruction{
        .{ .code = load_word, .k = @offsetOf(Call, "number") },
        .{ .code = jump_equal, .jt = 3, .k = @backingInt(linux.SYS.ioctl) },
        .{ .code = jump_equal, .jf = 4, .k = @backingInt(linux.SYS.madvise) },
        .{ .code = load_word, .k = argument(2) },
        .{ .code = jump_equal, .jt = 4, .jf = 2, .k = MADV_DONTNEED },
        .{ .code = load_word, .k = argument(1) },
        .{ .code = jump_equal, .jt = 1, .k = uffd_api.UFFDIO_WRITEPROTECT },
        .{ .code = give, .k = RET_ALLOW },
        .{ .code = give, .k = RET_ERRNO },
        .{ .code = give, .k = RET_USER_NOTIF },
    };
    const program: Program = .{ .len = filter.len, .filter = &filter };
    _ = try sys.check(linux.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    return @intCast(try sys.check(linux.seccomp(SET_MODE_FILTER, FLAG_NEW_LISTENER, &program)));
}

/// Lets each call that waits go on after a while, until no thread is left that could make one.
pub fn holdUp(listener: i32) void {
    defer sys.close(listener);
    while (true) {
        var fds = [1]linux.pollfd{.{ .fd = listener, .events = linux.POLL.IN, .revents = 0 }};
        _ = linux.poll(&fds, 1, -1);
        if (fds[0].revents & linux.POLL.HUP != 0) return;
        var notice = std.mem.zeroes(Notice);
        // None: the thread that waited was ended.
        _ = sys.ioctl(listener, NOTIF_RECV, @intFromPtr(&notice)) catch continue;
        sys.pause(delay_ns);
        const response: Response = .{ .id = notice.id, .flags = USER_NOTIF_FLAG_CONTINUE };
        _ = sys.ioctl(listener, NOTIF_SEND, @intFromPtr(&response)) catch continue;
    }
}
