//! userfaultfd's user interface, the part we use (linux/userfaultfd.h): ioctl numbers, flags and
//! records, hand reduced since the compiler has no C import. Nothing here calls anything.

const std = @import("std");

pub const api_version: u64 = 0xaa;

/// USERFAULTFD_IOC_NEW on /dev/userfaultfd; its argument is the flags of the system call.
pub const IOC_NEW: u32 = 0xaa00;
pub const UFFDIO_REGISTER: u32 = 0xc020_aa00;
pub const UFFDIO_WAKE: u32 = 0x8010_aa02;
pub const UFFDIO_COPY: u32 = 0xc028_aa03;
pub const UFFDIO_WRITEPROTECT: u32 = 0xc018_aa06;
pub const UFFDIO_API: u32 = 0xc018_aa3f;

/// Faults of the kernel itself are then refused: all that an unprivileged process may open.
pub const user_mode_only: u32 = 1;

pub const Feature = struct {
    pub const pagefault_wp: u64 = 1 << 0;
    pub const thread_id: u64 = 1 << 8;
};

pub const register_missing: u64 = 1;
pub const register_wp: u64 = 2;
pub const copy_dontwake: u64 = 1;
pub const copy_wp: u64 = 2;
pub const wp_on: u64 = 1;
pub const wp_dontwake: u64 = 2;

pub const Api = extern struct { api: u64 = api_version, features: u64, ioctls: u64 = 0 };
pub const Range = extern struct { start: u64, len: u64 };
pub const Register = extern struct { range: Range, mode: u64, ioctls: u64 = 0 };
pub const Copy = extern struct { dst: u64, src: u64, len: u64, mode: u64, copied: i64 = 0 };
pub const WriteProtect = extern struct { range: Range, mode: u64 };

pub const event_pagefault = 0x12;
pub const flag_write: u64 = 1;
pub const flag_wp: u64 = 2;

/// struct uffd_msg of a page fault.
pub const Message = extern struct {
    event: u8,
    reserved: [7]u8,
    flags: u64,
    address: u64,
    thread: u32,
    reserved2: u32,
};

test "record sizes are those in the ioctl numbers" {
    const sized = .{
        .{ UFFDIO_REGISTER, Register },
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
