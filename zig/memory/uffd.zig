//! userfaultfd: opening it in full mode (so that KVM's own accesses fault too) and the handful of
//! operations the pager uses, each with its odd outcomes made explicit (linux/userfaultfd.h).
//! EAGAIN (the address space is changing) is retried; EEXIST is an answer, not an error.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("../base/sys.zig");
const uapi = @import("../base/uffd_api.zig");

const MADV_DONTNEED = 4;

const page_size = 4096;

pub const Message = uapi.Message;

pub const Installed = enum { done, existed };

/// The system calls of a real userfaultfd, raw results; the simulator has others.
pub const Linux = struct {
    fd: i32,

    pub fn ioctl(self: Linux, request: u32, argument: usize) usize {
        return linux.ioctl(self.fd, request, argument);
    }

    pub fn read(self: Linux, buffer: []u8) usize {
        return linux.read(self.fd, buffer.ptr, buffer.len);
    }

    pub fn madvise(_: Linux, address: usize, length: usize, advice: u32) usize {
        return linux.madvise(@ptrFromInt(address), length, advice);
    }
};

pub fn UffdOf(comptime Kernel: type) type {
    return struct {
        kernel: Kernel,
        base: u64,

        const Self = @This();

        /// Opens a full-mode userfaultfd and registers the memory for missing and write-protect
        /// faults.
        pub fn open(memory: []align(std.heap.page_size_min) u8) sys.Error!Self {
            const fd = try uapi.open(.full);
            errdefer sys.close(fd);
            var api: uapi.Api = .{ .features = uapi.Feature.pagefault_wp | uapi.Feature.thread_id };
            _ = try sys.ioctl(fd, uapi.UFFDIO_API, @intFromPtr(&api));
            var register: uapi.Register = .{
                .range = .{ .start = @intFromPtr(memory.ptr), .len = memory.len },
                .mode = uapi.register_missing | uapi.register_wp,
            };
            _ = try sys.ioctl(fd, uapi.UFFDIO_REGISTER, @intFromPtr(&register));
            return .{ .kernel = .{ .fd = fd }, .base = @intFromPtr(memory.ptr) };
        }

        fn address(self: *const Self, page: u32) u64 {
            return self.base + @as(u64, page) * page_size;
        }

        pub fn pageOf(self: *const Self, fault_address: u64) u32 {
            return @intCast((fault_address - self.base) / page_size);
        }

        /// Up to `out.len` fault messages; 0 when there are none.
        pub fn read(self: *const Self, out: []Message) usize {
            const r = self.kernel.read(std.mem.sliceAsBytes(out));
            return if (linux.errno(r) == .SUCCESS) r / @sizeOf(Message) else 0;
        }

        /// Maps a page with content. `protected` leaves it read-only; without `wakes` waiters stay.
        pub fn copy(
            self: *const Self,
            page: u32,
            source: *const [page_size]u8,
            protected: bool,
            wakes: bool,
        ) sys.Error!Installed {
            var c: uapi.Copy = .{
                .dst = self.address(page),
                .src = @intFromPtr(source),
                .len = page_size,
                .mode = (if (protected) uapi.copy_wp else 0) |
                    (if (wakes) 0 else uapi.copy_dontwake),
            };
            while (true) {
                const r = self.kernel.ioctl(uapi.UFFDIO_COPY, @intFromPtr(&c));
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

        /// Never wakes anyone.
        pub fn protect(self: *const Self, page: u32) sys.Error!void {
            return self.writeProtect(page, uapi.wp_on);
        }

        /// Makes a present page writable and wakes its waiters.
        pub fn unprotect(self: *const Self, page: u32) sys.Error!void {
            return self.writeProtect(page, 0);
        }

        fn writeProtect(self: *const Self, page: u32, mode: u64) sys.Error!void {
            var w: uapi.WriteProtect = .{
                .range = .{ .start = self.address(page), .len = page_size },
                .mode = mode,
            };
            while (true) {
                const r = self.kernel.ioctl(uapi.UFFDIO_WRITEPROTECT, @intFromPtr(&w));
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

        pub fn wake(self: *const Self, page: u32) sys.Error!void {
            var range: uapi.Range = .{ .start = self.address(page), .len = page_size };
            while (true) {
                const r = self.kernel.ioctl(uapi.UFFDIO_WAKE, @intFromPtr(&range));
                if (linux.errno(r) == .INTR) continue;
                _ = try sys.check(r);
                return;
            }
        }

        pub fn drop(self: *const Self, page: u32) sys.Error!void {
            return self.dropRange(page, 1);
        }

        pub fn dropRange(self: *const Self, page: u32, count: u32) sys.Error!void {
            const size = @as(usize, count) * page_size;
            while (true) {
                const r = self.kernel.madvise(self.address(page), size, MADV_DONTNEED);
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
}

const Uffd = UffdOf(Linux);

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
                if (m.flags & uapi.flag_wp != 0) {
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
    defer sys.close(uffd.kernel.fd);
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
