//! userfaultfd: opening it in full mode (so that KVM's own accesses fault too) and the handful of
//! operations the pager uses, each with its odd outcomes made explicit (linux/userfaultfd.h).
//! EAGAIN (the address space is changing) is retried; EEXIST is an answer, not an error.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("../base/sys.zig");

const API: u64 = 0xaa;
const ioctl_new = 0xaa00; // USERFAULTFD_IOC_NEW on /dev/userfaultfd
const UFFDIO_API = 0xc018_aa3f;
const UFFDIO_REGISTER = 0xc020_aa00;
const UFFDIO_WAKE = 0x8010_aa02;
const UFFDIO_COPY = 0xc028_aa03;
const UFFDIO_WRITEPROTECT = 0xc018_aa06;

pub const feature_pagefault_wp: u64 = 1 << 0;
pub const feature_thread_id: u64 = 1 << 8;

const register_missing: u64 = 1;
const register_wp: u64 = 2;
const copy_dontwake: u64 = 1;
const copy_wp: u64 = 2;
const wp_on: u64 = 1;
const wp_dontwake: u64 = 2;

const MADV_DONTNEED = 4;

const page_size = 4096;

const ApiRecord = extern struct { api: u64 = API, features: u64, ioctls: u64 = 0 };
const Range = extern struct { start: u64, len: u64 };
const Register = extern struct { range: Range, mode: u64, ioctls: u64 = 0 };
const Copy = extern struct { dst: u64, src: u64, len: u64, mode: u64, copied: i64 = 0 };
const WriteProtect = extern struct { range: Range, mode: u64 };

/// struct uffd_msg of a page fault.
pub const Message = extern struct {
    event: u8,
    reserved: [7]u8,
    flags: u64,
    address: u64,
    thread: u32,
    reserved2: u32,

    pub const event_pagefault = 0x12;
    const flag_write: u64 = 1;
    const flag_wp: u64 = 2;

    /// The thread wants to write: on an absent page, or on a protected one.
    pub fn isWrite(self: Message) bool {
        return self.flags & (flag_write | flag_wp) != 0;
    }
};

pub const Installed = enum { done, existed };

pub const Uffd = struct {
    fd: i32,
    base: u64,
    features: u64,

    /// Opens a full-mode userfaultfd and registers the memory for missing and write-protect faults.
    pub fn open(memory: []align(std.heap.page_size_min) u8) sys.Error!Uffd {
        const fd = try openFd();
        errdefer sys.close(fd);
        var api: ApiRecord = .{ .features = feature_pagefault_wp | feature_thread_id };
        _ = try sys.ioctl(fd, UFFDIO_API, @intFromPtr(&api));
        var register: Register = .{
            .range = .{ .start = @intFromPtr(memory.ptr), .len = memory.len },
            .mode = register_missing | register_wp,
        };
        _ = try sys.ioctl(fd, UFFDIO_REGISTER, @intFromPtr(&register));
        return .{ .fd = fd, .base = @intFromPtr(memory.ptr), .features = api.features };
    }

    /// The device node needs no sysctl; the system call is the way of kernels before 6.1.
    fn openFd() sys.Error!i32 {
        const flags: linux.O = .{ .CLOEXEC = true, .NONBLOCK = true };
        const device_flags: linux.O = .{ .ACCMODE = .RDWR, .CLOEXEC = true };
        if (sys.check(linux.open("/dev/userfaultfd", device_flags, 0))) |device| {
            const fd: i32 = @intCast(device);
            defer sys.close(fd);
            const raw: u32 = @bitCast(flags);
            return @intCast(try sys.ioctl(fd, ioctl_new, raw));
        } else |_| {
            const raw: u32 = @bitCast(flags);
            return @intCast(try sys.check(linux.syscall1(.userfaultfd, raw)));
        }
    }

    fn address(self: *const Uffd, page: u32) u64 {
        return self.base + @as(u64, page) * page_size;
    }

    pub fn pageOf(self: *const Uffd, fault_address: u64) u32 {
        return @intCast((fault_address - self.base) / page_size);
    }

    /// Up to `out.len` fault messages; 0 when there are none.
    pub fn read(self: *const Uffd, out: []Message) usize {
        const r = linux.read(self.fd, @ptrCast(out.ptr), out.len * @sizeOf(Message));
        return if (linux.errno(r) == .SUCCESS) r / @sizeOf(Message) else 0;
    }

    /// Maps a page with content. `protected` leaves it read-only; without `wakes` waiters stay.
    pub fn copy(self: *const Uffd, page: u32, source: *const [page_size]u8, protected: bool, wakes: bool) sys.Error!Installed {
        var c: Copy = .{
            .dst = self.address(page),
            .src = @intFromPtr(source),
            .len = page_size,
            .mode = (if (protected) copy_wp else 0) | (if (wakes) @as(u64, 0) else copy_dontwake),
        };
        while (true) {
            const r = linux.ioctl(self.fd, UFFDIO_COPY, @intFromPtr(&c));
            switch (linux.errno(r)) {
                .SUCCESS => return .done,
                .AGAIN, .INTR => c.copied = 0,
                .EXIST => return .existed,
                else => |e| {
                    sys.last_errno = @backingInt(e);
                    return error.SystemCall;
                },
            }
        }
    }

    pub fn protect(self: *const Uffd, page: u32) sys.Error!void {
        return self.writeProtect(page, wp_on | wp_dontwake);
    }

    /// Makes a present page writable and wakes its waiters.
    pub fn unprotect(self: *const Uffd, page: u32) sys.Error!void {
        return self.writeProtect(page, 0);
    }

    fn writeProtect(self: *const Uffd, page: u32, mode: u64) sys.Error!void {
        // DONTWAKE is refused together with WP: protecting never wakes anyway.
        const accepted = if (mode & wp_on != 0) wp_on else mode;
        var w: WriteProtect = .{
            .range = .{ .start = self.address(page), .len = page_size },
            .mode = accepted,
        };
        while (true) {
            const r = linux.ioctl(self.fd, UFFDIO_WRITEPROTECT, @intFromPtr(&w));
            switch (linux.errno(r)) {
                .SUCCESS => return,
                .AGAIN, .INTR => {},
                else => |e| {
                    sys.last_errno = @backingInt(e);
                    return error.SystemCall;
                },
            }
        }
    }

    pub fn wake(self: *const Uffd, page: u32) sys.Error!void {
        var range: Range = .{ .start = self.address(page), .len = page_size };
        _ = try sys.ioctl(self.fd, UFFDIO_WAKE, @intFromPtr(&range));
    }

    pub fn drop(self: *const Uffd, page: u32) sys.Error!void {
        return self.dropRange(page, 1);
    }

    pub fn dropRange(self: *const Uffd, page: u32, count: u32) sys.Error!void {
        const start: [*]u8 = @ptrFromInt(self.address(page));
        while (true) {
            const r = linux.madvise(start, @as(usize, count) * page_size, MADV_DONTNEED);
            switch (linux.errno(r)) {
                .SUCCESS => return,
                .AGAIN, .INTR => {},
                else => |e| {
                    sys.last_errno = @backingInt(e);
                    return error.SystemCall;
                },
            }
        }
    }
};

fn openForTest(memory: []align(std.heap.page_size_min) u8) !Uffd {
    return Uffd.open(memory) catch {
        // EPERM, ENOENT, ENOSYS: this machine has no usable userfaultfd; `ssihv check` says why.
        return error.SkipZigTest;
    };
}

const TestServer = struct {
    uffd: *const Uffd,
    source: *const [page_size]u8,
    writes: std.atomic.Value(u32) = .init(0),

    fn serveOne(self: *TestServer) void {
        var messages: [4]Message = undefined;
        while (true) {
            const n = self.uffd.read(&messages);
            for (messages[0..n]) |m| {
                const page = self.uffd.pageOf(m.address);
                if (m.isWrite()) _ = self.writes.fetchAdd(1, .seq_cst);
                if (m.flags & Message.flag_wp != 0) {
                    self.uffd.unprotect(page) catch unreachable;
                    return;
                }
                _ = self.uffd.copy(page, self.source, true, true) catch unreachable;
                if (!m.isWrite()) return;
            }
        }
    }
};

test "a read installs protected, a write then upgrades, a drop forgets" {
    const memory = try sys.mapAnonymous(4 * page_size);
    defer sys.unmap(memory);
    const uffd = try openForTest(memory);
    defer sys.close(uffd.fd);
    var content: [page_size]u8 align(page_size) = @splat(0x5a);
    var server: TestServer = .{ .uffd = &uffd, .source = &content };
    var thread = try std.Thread.spawn(.{}, TestServer.serveOne, .{&server});
    const byte: *volatile u8 = &memory[page_size + 7];
    try std.testing.expectEqual(@as(u8, 0x5a), byte.*);
    thread.join();
    try std.testing.expectEqual(@as(u32, 0), server.writes.load(.seq_cst));
    try std.testing.expectEqual(Installed.existed, try uffd.copy(1, &content, true, true));
    thread = try std.Thread.spawn(.{}, TestServer.serveOne, .{&server});
    byte.* = 0x77;
    thread.join();
    try std.testing.expectEqual(@as(u32, 1), server.writes.load(.seq_cst));
    try std.testing.expectEqual(@as(u8, 0x77), byte.*);
    try uffd.protect(1);
    try std.testing.expectEqual(@as(u8, 0x77), byte.*);
    try uffd.drop(1);
    thread = try std.Thread.spawn(.{}, TestServer.serveOne, .{&server});
    try std.testing.expectEqual(@as(u8, 0x5a), byte.*);
    thread.join();
}
