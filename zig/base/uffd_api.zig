//! userfaultfd's user interface, the part we use (linux/userfaultfd.h): ioctl numbers, flags and
//! records, hand reduced since the compiler has no C import; and the two ways of opening one.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("sys.zig");

const api_version: u64 = 0xaa;

/// USERFAULTFD_IOC_NEW on /dev/userfaultfd; its argument is the flags of the system call.
const IOC_NEW: u32 = 0xaa00;
pub const UFFDIO_REGISTER: u32 = 0xc020_aa00;
pub const UFFDIO_UNREGISTER: u32 = 0x8010_aa01;
pub const UFFDIO_WAKE: u32 = 0x8010_aa02;
pub const UFFDIO_COPY: u32 = 0xc028_aa03;
pub const UFFDIO_WRITEPROTECT: u32 = 0xc018_aa06;
pub const UFFDIO_API: u32 = 0xc018_aa3f;

pub const Feature = struct {
    pub const pagefault_wp: u64 = 1 << 0;
    pub const thread_id: u64 = 1 << 8;
};

pub const register_missing: u64 = 1;
pub const register_wp: u64 = 2;
pub const copy_dontwake: u64 = 1;
pub const copy_wp: u64 = 2;
pub const wp_on: u64 = 1;

pub const Api = extern struct { api: u64 = api_version, features: u64, ioctls: u64 = 0 };
pub const Range = extern struct { start: u64, len: u64 };
pub const Register = extern struct { range: Range, mode: u64, ioctls: u64 = 0 };
pub const Copy = extern struct { dst: u64, src: u64, len: u64, mode: u64, copied: i64 = 0 };
pub const WriteProtect = extern struct { range: Range, mode: u64 };

/// uffd_msg.event of a page fault; no other event is asked for.
pub const event_pagefault = 0x12;

const flag_write: u64 = 1;
pub const flag_wp: u64 = 2;

/// struct uffd_msg of a page fault.
pub const Message = extern struct {
    event: u8,
    reserved: [7]u8,
    flags: u64,
    address: u64,
    thread: u32,
    reserved2: u32,

    /// The thread wants to write: on an absent page, or on a protected one.
    pub fn isWrite(self: Message) bool {
        return self.flags & (flag_write | flag_wp) != 0;
    }
};

pub const Mode = enum {
    full,
    /// Faults of the kernel itself are refused: all that an unprivileged process may open.
    user_only,
};

/// The device node needs no sysctl; the system call is the way of kernels before 6.1.
pub fn open(mode: Mode) sys.Error!i32 {
    const UFFD_USER_MODE_ONLY: u32 = 1;
    const open_flags: linux.O = .{ .CLOEXEC = true, .NONBLOCK = true };
    const flags = @as(u32, @bitCast(open_flags)) |
        (if (mode == .user_only) UFFD_USER_MODE_ONLY else 0);
    const device_flags: linux.O = .{ .ACCMODE = .RDWR, .CLOEXEC = true };
    if (sys.check(linux.open("/dev/userfaultfd", device_flags, 0))) |device| {
        const fd: i32 = @intCast(device);
        defer sys.close(fd);
        return @intCast(try sys.ioctl(fd, IOC_NEW, flags));
    } else |_| {
        return @intCast(try sys.check(linux.syscall1(.userfaultfd, flags)));
    }
}

test "record sizes are those in the ioctl numbers" {
    const sized = .{
        .{ UFFDIO_REGISTER, Register },
        .{ UFFDIO_UNREGISTER, Range },
        .{ UFFDIO_WAKE, Range },
        .{ UFFDIO_COPY, Copy },
        .{ UFFDIO_WRITEPROTECT, WriteProtect },
        .{ UFFDIO_API, Api },
    };
    inline for (sized) |pair| {
        try std.testing.expectEqual(@as(u32, @sizeOf(pair[1])), pair[0] >> 16 & 0x3fff);
    }
    try std.testing.expectEqual(@as(usize, 32), @sizeOf(Message));
}
