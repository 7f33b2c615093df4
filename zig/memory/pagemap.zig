//! What the kernel says of this process's own pages (Documentation/admin-guide/mm/pagemap.rst):
//! the other half of an audit of page states.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("../base/sys.zig");

pub const page_size = 4096;

const bit_present: u64 = 1 << 63;
const bit_swapped: u64 = 1 << 62;
const bit_uffd_wp: u64 = 1 << 57;

pub const Mapping = enum {
    absent,
    /// Present or swapped out, write-protected by userfaultfd.
    protected,
    writable,
};

pub fn mappingOf(entry: u64) Mapping {
    if (entry & (bit_present | bit_swapped) == 0) return .absent;
    return if (entry & bit_uffd_wp != 0) .protected else .writable;
}

pub const Pagemap = struct {
    fd: i32,

    pub fn open() sys.Error!Pagemap {
        const flags: linux.O = .{ .ACCMODE = .RDONLY, .CLOEXEC = true };
        return .{ .fd = @intCast(try sys.check(linux.open("/proc/self/pagemap", flags, 0))) };
    }

    pub fn close(self: Pagemap) void {
        sys.close(self.fd);
    }

    /// How the pages from `address` (page aligned) on are mapped.
    pub fn read(self: Pagemap, address: usize, out: []u64) sys.Error!void {
        const bytes = std.mem.sliceAsBytes(out);
        var done: usize = 0;
        while (done < bytes.len) {
            const at: i64 = @intCast(address / page_size * @sizeOf(u64) + done);
            const rest = bytes[done..];
            const got = try sys.check(linux.pread(self.fd, rest.ptr, rest.len, at));
            if (got == 0) return error.SystemCall;
            done += got;
        }
    }
};

test "own pages: absent, then writable" {
    const memory = try sys.mapAnonymous(4 * page_size);
    defer sys.unmap(memory);
    memory[page_size] = 1;
    const pagemap = try Pagemap.open();
    defer pagemap.close();
    var entries: [4]u64 = undefined;
    try pagemap.read(@intFromPtr(memory.ptr), &entries);
    const expected = [4]Mapping{ .absent, .writable, .absent, .absent };
    for (entries, expected) |entry, e| try std.testing.expectEqual(e, mappingOf(entry));
    try std.testing.expectEqual(Mapping.protected, mappingOf(bit_present | bit_uffd_wp));
}
