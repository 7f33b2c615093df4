//! One node's kernel as userfaultfd shows it: pages that are absent, write-protected or writable,
//! threads that wait in faults, messages that are told once per wait, and the answers that the
//! real one can give besides success (linux/userfaultfd.h, fs/userfaultfd.c). Between any two
//! calls vCPUs may run.

const std = @import("std");
const linux = std.os.linux;
const uapi = @import("../base/uffd_api.zig");
const finding = @import("finding.zig");
const Cluster = @import("cluster.zig").Cluster;
const truth_file = @import("truth.zig");

const page_size = truth_file.page_size;
/// Where this node's RAM seems to lie.
pub const base: u64 = 1 << 40;

const Page = packed struct(u8) { present: bool = false, protected: bool = false, pad: u6 = 0 };

/// A thread in a fault.
const Waiter = struct {
    vcpu: u32,
    page: u32,
    flags: u64,
    /// Its message was read; it waits on.
    was_read: bool = false,
};

const waiters_max = @import("config.zig").vcpus_max;

pub const Kernel = struct {
    cluster: *Cluster,
    node: u8,
    memory: []align(page_size) u8,
    pages: []Page,
    waiters: [waiters_max]Waiter = undefined,
    waiter_count: usize = 0,
    /// A planted fault: what the newest protected page held just before.
    early_page: ?u32 = null,
    early: [page_size]u8 align(page_size) = undefined,

    pub fn init(
        a: std.mem.Allocator,
        cluster: *Cluster,
        node: u8,
        memory: []align(page_size) u8,
    ) !Kernel {
        const pages = try a.alloc(Page, memory.len / page_size);
        @memset(pages, .{});
        return .{ .cluster = cluster, .node = node, .memory = memory, .pages = pages };
    }

    pub fn canRead(self: *const Kernel, page: u32) bool {
        return self.pages[page].present;
    }

    pub fn canWrite(self: *const Kernel, page: u32) bool {
        return self.pages[page].present and !self.pages[page].protected;
    }

    /// The page's bytes, wherever the caller knows that they are there.
    pub fn bytes(self: *const Kernel, page: u32) *align(page_size) [page_size]u8 {
        return @alignCast(self.memory[@as(usize, page) * page_size ..][0..page_size]);
    }

    /// A vCPU cannot go on: it waits, and a message about it can be read.
    pub fn raise(self: *Kernel, vcpu: u32, page: u32, write: bool) void {
        const is_protected = self.pages[page].present;
        std.debug.assert(!is_protected or write);
        std.debug.assert(self.find(vcpu) == null);
        const wp: u64 = if (is_protected) uapi.flag_wp else 0;
        self.waiters[self.waiter_count] = .{
            .vcpu = vcpu,
            .page = page,
            .flags = wp | @intFromBool(write),
        };
        self.waiter_count += 1;
    }

    fn find(self: *const Kernel, vcpu: u32) ?usize {
        for (self.waiters[0..self.waiter_count], 0..) |w, i| if (w.vcpu == vcpu) return i;
        return null;
    }

    /// A signal takes the thread out of its wait; a message that nobody read goes with it.
    pub fn interrupt(self: *Kernel, vcpu: u32) void {
        if (self.find(vcpu)) |i| self.remove(i);
    }

    fn remove(self: *Kernel, index: usize) void {
        const rest = self.waiters[index..self.waiter_count];
        std.mem.copyForwards(Waiter, rest[0 .. rest.len - 1], rest[1..]);
        self.waiter_count -= 1;
    }

    pub fn hasUnread(self: *const Kernel) bool {
        for (self.waiters[0..self.waiter_count]) |w| if (!w.was_read) return true;
        return false;
    }

    fn wakePage(self: *Kernel, page: u32) void {
        var woken: [waiters_max]u32 = undefined;
        var count: usize = 0;
        var i: usize = 0;
        while (i < self.waiter_count) {
            if (self.waiters[i].page != page) {
                i += 1;
                continue;
            }
            woken[count] = self.waiters[i].vcpu;
            count += 1;
            self.remove(i);
        }
        // Apart: one that runs at once may wait again.
        for (woken[0..count]) |vcpu| self.cluster.wakeVcpu(vcpu);
    }

    // The system calls of memory/uffd.zig.

    pub fn read(self: *Kernel, buffer: []u8) usize {
        self.cluster.interleave(self.node);
        if (self.cluster.inject(.late_read, 4)) return failed(.AGAIN);
        const room = buffer.len / @sizeOf(uapi.Message);
        var count: usize = 0;
        for (self.waiters[0..self.waiter_count]) |*w| {
            if (w.was_read or count == room) continue;
            w.was_read = true;
            const message: uapi.Message = .{
                .event = uapi.event_pagefault,
                .reserved = @splat(0),
                .flags = w.flags,
                .address = base + @as(u64, w.page) * page_size,
                .thread = self.cluster.vcpus[w.vcpu].tid(),
                .reserved2 = 0,
            };
            @memcpy(buffer[count * @sizeOf(uapi.Message) ..][0..@sizeOf(uapi.Message)], //
                std.mem.asBytes(&message));
            count += 1;
            self.cluster.touch(w.page);
        }
        return if (count == 0) failed(.AGAIN) else count * @sizeOf(uapi.Message);
    }

    pub fn ioctl(self: *Kernel, request: u32, argument: usize) usize {
        if (self.cluster.plant == .copied_early) self.copyEarly(request, argument);
        self.cluster.interleave(self.node);
        switch (request) {
            uapi.UFFDIO_COPY => return self.copy(@ptrFromInt(argument)),
            uapi.UFFDIO_WRITEPROTECT => return self.writeProtect(@ptrFromInt(argument)),
            uapi.UFFDIO_WAKE => {
                const range: *const uapi.Range = @ptrFromInt(argument);
                const page = self.pageOf(range.start, range.len);
                if (self.cluster.inject(.eagain, 8)) return self.notNow(.INTR);
                self.wakePage(page);
                return 0;
            },
            else => finding.fail(.kernel_misuse, "ioctl 0x{x}", .{request}),
        }
    }

    pub fn madvise(self: *Kernel, address: usize, length: usize, advice: u32) usize {
        self.cluster.interleave(self.node);
        const MADV_DONTNEED = 4;
        if (advice != MADV_DONTNEED) finding.fail(.kernel_misuse, "madvise {d}", .{advice});
        if (self.cluster.inject(.eagain, 8)) return self.notNow(.AGAIN);
        const first: u32 = @intCast((address - base) / page_size);
        for (first..first + length / page_size) |i| self.set(@intCast(i), .{});
        return 0;
    }

    fn copyEarly(self: *Kernel, request: u32, argument: usize) void {
        if (request != uapi.UFFDIO_WRITEPROTECT) return;
        const w: *const uapi.WriteProtect = @ptrFromInt(argument);
        const page = self.pageOf(w.range.start, w.range.len);
        if (!self.canWrite(page)) return;
        self.early = self.bytes(page).*;
        self.early_page = page;
    }

    /// Nothing was done; the planted fault takes that for success.
    fn notNow(self: *const Kernel, e: linux.E) usize {
        return if (self.cluster.plant == .again_is_done) 0 else failed(e);
    }

    fn copy(self: *Kernel, c: *uapi.Copy) usize {
        const page = self.pageOf(c.dst, c.len);
        if (self.cluster.inject(.eagain, 8)) {
            c.copied = -@as(i64, @backingInt(linux.E.AGAIN));
            return self.notNow(.AGAIN);
        }
        if (self.pages[page].present) return failed(.EXIST);
        if (self.cluster.inject(.exists, 16)) {
            self.cluster.machines[self.node].must_stop = true;
            @memset(self.bytes(page), 0);
            self.set(page, .{ .present = true, .protected = c.mode & uapi.copy_wp != 0 });
            return if (self.cluster.plant == .exists_is_done) 0 else failed(.EXIST);
        }
        const source: *align(1) const [page_size]u8 = @ptrFromInt(c.src);
        @memcpy(self.bytes(page), source);
        self.set(page, .{ .present = true, .protected = c.mode & uapi.copy_wp != 0 });
        self.cluster.truth.checkContent(self.node, page, self.bytes(page));
        const wakes = c.mode & uapi.copy_dontwake == 0;
        if (wakes and self.cluster.plant != .wake_forgotten) self.wakePage(page);
        c.copied = page_size;
        return 0;
    }

    fn writeProtect(self: *Kernel, w: *const uapi.WriteProtect) usize {
        const page = self.pageOf(w.range.start, w.range.len);
        if (self.cluster.inject(.eagain, 8)) return self.notNow(.AGAIN);
        if (!self.pages[page].present) {
            // The kernel would say yes; nothing sound asks.
            finding.fail(.kernel_misuse, "node {d} protects or frees page {d}, which is absent", .{
                self.node, page,
            });
        }
        const is_on = w.mode & uapi.wp_on != 0;
        self.set(page, .{ .present = true, .protected = is_on });
        if (!is_on) self.wakePage(page);
        return 0;
    }

    fn set(self: *Kernel, page: u32, new: Page) void {
        const old = self.pages[page];
        self.pages[page] = new;
        // What is dropped is gone: whoever reads it still must not get away with it.
        if (old.present and !new.present) @memset(self.bytes(page), 0xdd);
        const copies = @as(i8, @intFromBool(new.present)) - @intFromBool(old.present);
        const writable_new = new.present and !new.protected;
        const writable_old = old.present and !old.protected;
        const writers = @as(i8, @intFromBool(writable_new)) - @intFromBool(writable_old);
        self.cluster.trace("node {d}: page {d} {s}", .{
            self.node, page,
            if (!new.present) "absent" else if (new.protected)
                "protected"
            else
                "writable",
        });
        self.cluster.touch(page);
        self.cluster.truth.account(page, copies, writers);
    }

    fn pageOf(self: *const Kernel, address: u64, length: u64) u32 {
        const number = (address -% base) / page_size;
        if (length != page_size or address % page_size != 0 or number >= self.pages.len) {
            finding.fail(.kernel_misuse, "range 0x{x} + {d}", .{ address, length });
        }
        return @intCast(number);
    }
};

fn failed(e: linux.E) usize {
    return @bitCast(-@as(isize, @backingInt(e)));
}

/// The guest's RAM as the shell sees it.
pub const Ram = struct {
    kernel: *Kernel,

    /// Guest-physical memory begins here: an address is no page number.
    const first_gpa: u64 = 1 << 20;

    pub fn pageCount(self: *const Ram) u32 {
        return @intCast(self.kernel.pages.len);
    }

    pub fn gpaOf(_: *const Ram, page: u32) u64 {
        return gpaOfPage(page);
    }

    pub fn pageOf(self: *const Ram, gpa: u64) ?u32 {
        if (gpa < first_gpa) return null;
        const page = (gpa - first_gpa) / page_size;
        return if (page < self.kernel.pages.len) @intCast(page) else null;
    }

    pub fn pageBytes(self: *const Ram, page: u32) *align(page_size) [page_size]u8 {
        if (!self.kernel.canRead(page)) {
            finding.fail(.shard_fault, "node {d} touches page {d}, which is absent", .{
                self.kernel.node, page,
            });
        }
        self.kernel.cluster.interleave(self.kernel.node);
        if (self.kernel.early_page == page) {
            self.kernel.early_page = null;
            return &self.kernel.early;
        }
        return self.kernel.bytes(page);
    }
};

pub fn gpaOfPage(page: u32) u64 {
    return Ram.first_gpa + @as(u64, page) * page_size;
}
