//! A userfaultfd over a small range with a thread that answers every fault at once and counts what
//! it answered: absent pages get zeroes, protected ones become writable. Nothing may wait for ever
//! on it, so it serves until stop().

const std = @import("std");
const linux = std.os.linux;
const guest = @import("probe_guest.zig");
const sys = @import("../base/sys.zig");
const uffd_api = @import("../base/uffd_api.zig");

const page_size = guest.page_size;
const pages_max = guest.ram_pages;

const Counter = std.atomic.Value(u32);

/// What the thread shares with the one that probes. Counters are written before the fault is
/// resolved (release), so whoever was woken by it sees them (acquire).
const Shared = struct {
    fd: i32,
    stop_fd: i32,
    base: u64,
    len: u64,
    protected_writes: [pages_max]Counter = @splat(.init(0)),
    absent: [pages_max]Counter = @splat(.init(0)),
    thread_id: Counter = .init(0),

    fn serve(self: *Shared) void {
        var fds = [2]linux.pollfd{
            .{ .fd = self.fd, .events = linux.POLL.IN, .revents = 0 },
            .{ .fd = self.stop_fd, .events = linux.POLL.IN, .revents = 0 },
        };
        while (true) {
            _ = linux.poll(&fds, 2, -1);
            while (self.serveOne()) {}
            if (fds[1].revents != 0) return;
        }
    }

    fn serveOne(self: *Shared) bool {
        var message: uffd_api.Message = undefined;
        const r = linux.read(self.fd, @ptrCast(&message), @sizeOf(uffd_api.Message));
        if (linux.errno(r) != .SUCCESS or r != @sizeOf(uffd_api.Message)) return false;
        const page = (message.address - self.base) / page_size;
        self.thread_id.store(message.thread, .release);
        if (message.flags & uffd_api.flag_wp != 0) {
            _ = self.protected_writes[page].fetchAdd(1, .release);
            protectPage(self, page, 0) catch self.giveUp();
        } else {
            _ = self.absent[page].fetchAdd(1, .release);
            self.install(page);
        }
        return true;
    }

    /// What cannot be resolved must not wait for ever: the whole range goes back to the kernel,
    /// every waiter goes on, and the probe sees counts that are wrong.
    fn giveUp(self: *const Shared) void {
        var range: uffd_api.Range = .{ .start = self.base, .len = self.len };
        _ = linux.ioctl(self.fd, uffd_api.UFFDIO_UNREGISTER, @intFromPtr(&range));
    }

    fn install(self: *const Shared, page: u64) void {
        const zeroes: [page_size]u8 align(page_size) = @splat(0);
        var copy: uffd_api.Copy = .{
            .dst = self.base + page * page_size,
            .src = @intFromPtr(&zeroes),
            .len = page_size,
            .mode = 0,
        };
        while (true) {
            const r = linux.ioctl(self.fd, uffd_api.UFFDIO_COPY, @intFromPtr(&copy));
            switch (linux.errno(r)) {
                .SUCCESS => return,
                .AGAIN => copy.copied = 0,
                else => return self.giveUp(),
            }
        }
    }
};

fn protectPage(shared: *const Shared, page: u64, mode: u64) sys.Error!void {
    var wp: uffd_api.WriteProtect = .{
        .range = .{ .start = shared.base + page * page_size, .len = page_size },
        .mode = mode,
    };
    while (true) {
        const r = linux.ioctl(shared.fd, uffd_api.UFFDIO_WRITEPROTECT, @intFromPtr(&wp));
        // The address space is changing at the moment: again.
        if (linux.errno(r) == .AGAIN) continue;
        _ = try sys.check(r);
        return;
    }
}

pub const Faults = struct {
    shared: *Shared,
    thread: std.Thread,

    /// Registers the memory for absent and protected pages, asking for what an engine asks for.
    pub fn start(memory: []align(std.heap.page_size_min) u8, mode: uffd_api.Mode) sys.Error!Faults {
        std.debug.assert(memory.len <= pages_max * page_size);
        const fd = try uffd_api.open(mode);
        errdefer sys.close(fd);
        const wanted = uffd_api.Feature.pagefault_wp | uffd_api.Feature.thread_id;
        var features: uffd_api.Api = .{ .features = wanted };
        _ = try sys.ioctl(fd, uffd_api.UFFDIO_API, @intFromPtr(&features));
        var register: uffd_api.Register = .{
            .range = .{ .start = @intFromPtr(memory.ptr), .len = memory.len },
            .mode = uffd_api.register_missing | uffd_api.register_wp,
        };
        _ = try sys.ioctl(fd, uffd_api.UFFDIO_REGISTER, @intFromPtr(&register));
        const stop_fd = try sys.eventfd();
        errdefer sys.close(stop_fd);
        const shared = std.heap.c_allocator.create(Shared) catch return outOfMemory();
        errdefer std.heap.c_allocator.destroy(shared);
        shared.* = .{
            .fd = fd,
            .stop_fd = stop_fd,
            .base = @intFromPtr(memory.ptr),
            .len = memory.len,
        };
        const thread = std.Thread.spawn(.{}, Shared.serve, .{shared}) catch return outOfMemory();
        return .{ .shared = shared, .thread = thread };
    }

    /// As full a mode as this process may have: for what does not depend on the mode.
    pub fn startAny(memory: []align(std.heap.page_size_min) u8) sys.Error!Faults {
        return start(memory, .full) catch start(memory, .user_only);
    }

    fn outOfMemory() sys.Error {
        sys.last_errno = @backingInt(linux.E.NOMEM);
        return error.SystemCall;
    }

    pub fn stop(self: *Faults) void {
        sys.eventfdSignal(self.shared.stop_fd);
        self.thread.join();
        sys.close(self.shared.fd);
        sys.close(self.shared.stop_fd);
        std.heap.c_allocator.destroy(self.shared);
        self.* = undefined;
    }

    pub fn protect(self: *const Faults, page: u64) sys.Error!void {
        return protectPage(self.shared, page, uffd_api.wp_on);
    }

    /// Writes that met this page protected.
    pub fn protectedWrites(self: *const Faults, page: u64) u32 {
        return self.shared.protected_writes[page].load(.acquire);
    }

    /// Accesses that met this page absent.
    pub fn absent(self: *const Faults, page: u64) u32 {
        return self.shared.absent[page].load(.acquire);
    }

    /// Thread of the newest fault.
    pub fn lastThread(self: *const Faults) u32 {
        return self.shared.thread_id.load(.acquire);
    }
};
