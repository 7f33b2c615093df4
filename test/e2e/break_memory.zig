//! Breaks the pager of a running engine from outside, as a kernel that fails would: takes the
//! engine's userfaultfd and unregisters the guest's memory, so that the shard's next operation on a
//! page fails. `break_memory PID`; needs the right to trace that process. Exit status 1 with words
//! when it could not.

const std = @import("std");
const linux = std.os.linux;

/// _IOR(0xaa, 1, struct uffdio_range) (linux/userfaultfd.h).
const uffdio_unregister = 0x8010aa01;
const Range = extern struct { start: u64, len: u64 };

fn fail(comptime format: []const u8, arguments: anytype) noreturn {
    std.debug.print("break_memory: " ++ format ++ "\n", arguments);
    std.process.exit(1);
}

fn checked(what: []const u8, result: usize) usize {
    const e = linux.errno(result);
    if (e != .SUCCESS) fail("{s}: {t}", .{ what, e });
    return result;
}

/// The number of the process's userfaultfd.
fn userfaultfdOf(pid: i32) i32 {
    for (0..256) |fd| {
        var path: [64]u8 = undefined;
        const name = std.fmt.bufPrintSentinel(&path, "/proc/{d}/fd/{d}", .{ pid, fd }, 0) catch
            unreachable;
        var target: [128]u8 = undefined;
        const r = linux.readlink(name, &target, target.len);
        if (linux.errno(r) != .SUCCESS) continue;
        if (std.mem.eql(u8, target[0..r], "anon_inode:[userfaultfd]")) return @intCast(fd);
    }
    fail("process {d} has no userfaultfd", .{pid});
}

/// What is registered: the mappings with the flags "um" (missing) or "uw" (write-protect).
fn registered(pid: i32, out: []Range) []Range {
    var path: [64]u8 = undefined;
    const name = std.fmt.bufPrintSentinel(&path, "/proc/{d}/smaps", .{pid}, 0) catch unreachable;
    const fd = checked("open smaps", linux.open(name, .{}, 0));
    var text: std.ArrayList(u8) = .empty;
    const allocator = std.heap.page_allocator;
    while (true) {
        text.ensureUnusedCapacity(allocator, 1 << 16) catch fail("no memory", .{});
        const free = text.unusedCapacitySlice();
        const n = checked("read smaps", linux.read(@intCast(fd), free.ptr, free.len));
        if (n == 0) break;
        text.items.len += n;
    }
    var count: usize = 0;
    var at: Range = .{ .start = 0, .len = 0 };
    var lines = std.mem.splitScalar(u8, text.items, '\n');
    while (lines.next()) |line| {
        if (std.mem.startsWith(u8, line, "VmFlags:")) {
            const flagged = std.mem.find(u8, line, " um") orelse std.mem.find(u8, line, " uw");
            if (flagged == null or count == out.len) continue;
            out[count] = at;
            count += 1;
        } else if (rangeOf(line)) |range| at = range;
    }
    return out[0..count];
}

/// "7f00-7f10 rw-p ..." or null.
fn rangeOf(line: []const u8) ?Range {
    const dash = std.mem.findScalar(u8, line, '-') orelse return null;
    const end = std.mem.findScalar(u8, line, ' ') orelse return null;
    if (end < dash) return null;
    const first = std.fmt.parseInt(u64, line[0..dash], 16) catch return null;
    const last = std.fmt.parseInt(u64, line[dash + 1 .. end], 16) catch return null;
    return .{ .start = first, .len = last - first };
}

pub fn main(init: std.process.Init.Minimal) void {
    var arguments = init.args.iterate();
    _ = arguments.next();
    const pid = std.fmt.parseInt(i32, arguments.next() orelse "", 10) catch fail("PID?", .{});
    const pidfd = checked("pidfd_open", linux.pidfd_open(pid, 0));
    const theirs = userfaultfdOf(pid);
    const uffd = checked("pidfd_getfd", linux.pidfd_getfd(@intCast(pidfd), theirs, 0));
    var ranges: [256]Range = undefined;
    const found = registered(pid, &ranges);
    if (found.len == 0) fail("process {d} has no registered memory", .{pid});
    for (found) |*range| {
        const r = linux.ioctl(@intCast(uffd), uffdio_unregister, @intFromPtr(range));
        _ = checked("UFFDIO_UNREGISTER", r);
    }
}
