//! Memory of one NUMA node: which nodes there are, how much of each is free, and anonymous pages
//! bound to one. A policy the kernel refuses ends the program: pages from elsewhere prove nothing.

const std = @import("std");
const linux = std.os.linux;
const sides = @import("sides.zig");

pub const nodes_max = 32;

/// mbind(2): allocate from the nodes of the mask or fail.
const MPOL_BIND = 2;
/// get_mempolicy(2): the node (1) of the page at an address (2), not a policy.
const MPOL_F_NODE_OF_ADDR = 1 | 2;
/// Bits in a node mask; the kernel looks at one bit less than it is told.
const mask_bits = 64;

pub const Meminfo = struct {
    /// Bytes.
    total: u64,
    free: u64,

    pub fn inUse(self: Meminfo) u64 {
        return self.total - self.free;
    }

    pub fn percentInUse(self: Meminfo) u64 {
        return self.inUse() * 100 / self.total;
    }
};

fn read(comptime format: []const u8, values: anytype, content: []u8) []const u8 {
    var name: [256]u8 = undefined;
    const path = std.fmt.bufPrintSentinel(&name, format, values, 0) catch
        sides.fatal("the name of the nodes' folder is too long", .{});
    const opened = linux.open(path, .{}, 0);
    if (linux.errno(opened) != .SUCCESS)
        sides.fatal("cannot open {s}: {t}", .{ path, linux.errno(opened) });
    const file: i32 = @intCast(opened);
    defer _ = linux.close(file);
    const length = linux.read(file, content.ptr, content.len);
    if (linux.errno(length) != .SUCCESS)
        sides.fatal("cannot read {s}: {t}", .{ path, linux.errno(length) });
    return std.mem.trim(u8, content[0..length], " \n");
}

/// Numbers of the nodes that are online, from a list like `0-1,4`.
pub fn online(numbers: *[nodes_max]u32) []const u32 {
    var content: [256]u8 = undefined;
    const list = read("{s}/online", .{sides.options.node_dir}, &content);
    var count: usize = 0;
    var ranges = std.mem.splitScalar(u8, list, ',');
    while (ranges.next()) |range| {
        var ends = std.mem.splitScalar(u8, range, '-');
        const first = nodeNumber(ends.next() orelse "", list);
        const last = if (ends.next()) |text| nodeNumber(text, list) else first;
        for (first..last + 1) |node| {
            numbers[count] = @intCast(node);
            count += 1;
        }
    }
    return numbers[0..count];
}

fn nodeNumber(text: []const u8, list: []const u8) u32 {
    const node = std.fmt.parseInt(u32, text, 10) catch nodes_max;
    if (node >= nodes_max) sides.fatal("nodes {s} online, not below {d}", .{ list, nodes_max });
    return node;
}

pub fn meminfo(node: u32) Meminfo {
    var content: [4096]u8 = undefined;
    const text = read("{s}/node{d}/meminfo", .{ sides.options.node_dir, node }, &content);
    const info: Meminfo = .{
        .total = field(text, "MemTotal:"),
        .free = field(text, "MemFree:"),
    };
    if (info.total == 0 or info.free > info.total) sides.fatal("node {d} has no memory", .{node});
    return info;
}

/// Lines read `Node 0 MemTotal:  130000 kB`.
fn field(text: []const u8, name: []const u8) u64 {
    var words = std.mem.tokenizeAny(u8, text, " \n");
    while (words.next()) |word| {
        if (!std.mem.eql(u8, word, name)) continue;
        const kib = std.fmt.parseInt(u64, words.next() orelse "", 10) catch break;
        return kib << 10;
    }
    sides.fatal("no {s} in a node's meminfo", .{name});
}

/// Free bytes at which the kernel starts to reclaim on a node that has `total` of all nodes' bytes:
/// its low watermark, a quarter above its part of min_free_kbytes (__setup_per_zone_wmarks).
pub fn lowWatermark(total: u64, total_of_all: u64) u64 {
    var content: [64]u8 = undefined;
    const text = read("/proc/sys/vm/min_free_kbytes", .{}, &content);
    const kib = std.fmt.parseInt(u64, text, 10) catch
        sides.fatal("min_free_kbytes is {s}", .{text});
    const min: u128 = kib << 10;
    return @intCast((min + min / 4) * total / total_of_all);
}

/// `bytes`, a multiple of the page size, that come from `node` when they are first written. Small
/// pages only: a huge page would be one fault where 512 are wanted.
pub fn mapBound(node: u32, bytes: u64) []align(sides.page_size) u64 {
    const address = linux.mmap(
        null,
        bytes,
        .{ .READ = true, .WRITE = true },
        .{ .TYPE = .PRIVATE, .ANONYMOUS = true },
        -1,
        0,
    );
    expectDone(address, "mmap", node);
    const mask: u64 = @as(u64, 1) << @intCast(node);
    const bound = linux.syscall6(
        .mbind,
        address,
        bytes,
        MPOL_BIND,
        @intFromPtr(&mask),
        mask_bits,
        0,
    );
    expectDone(bound, "mbind", node);
    const pages: [*]align(sides.page_size) u8 = @ptrFromInt(address);
    const advised = linux.madvise(pages, bytes, linux.MADV.NOHUGEPAGE);
    // EINVAL from a kernel without huge pages, which needs no advice.
    if (linux.errno(advised) != .INVAL) expectDone(advised, "madvise", node);
    return @as([*]align(sides.page_size) u64, @ptrCast(pages))[0 .. bytes / @sizeOf(u64)];
}

pub fn unmap(words: []align(sides.page_size) u64) void {
    const done = linux.munmap(@ptrCast(words.ptr), words.len * @sizeOf(u64));
    if (linux.errno(done) != .SUCCESS) sides.fatal("munmap: {t}", .{linux.errno(done)});
}

/// Ends the program when the page at `word`, written before, is not on `node`.
pub fn expectOn(node: u32, word: *const u64) void {
    var actual: u32 = undefined;
    const asked = linux.syscall5(
        .get_mempolicy,
        @intFromPtr(&actual),
        0,
        0,
        @intFromPtr(word),
        MPOL_F_NODE_OF_ADDR,
    );
    expectDone(asked, "get_mempolicy", node);
    if (actual != node) sides.fatal("a page bound to node {d} is on node {d}", .{ node, actual });
}

fn expectDone(result: usize, call: []const u8, node: u32) void {
    const code = linux.errno(result);
    if (code != .SUCCESS) sides.fatal("{s} for node {d}: {t}", .{ call, node, code });
}
