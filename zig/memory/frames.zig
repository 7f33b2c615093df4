//! The store of a memory node: frames of 4 KiB, by number, that compute nodes keep pages of theirs
//! in. Plain anonymous memory, neither guest RAM nor under a userfaultfd, so that a memory node can
//! answer whatever the others wait for. A frame costs memory from its first put on. Who may use
//! which frames is the caller's to check; numbers outside the store are refused here.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("../base/sys.zig");

pub const frame_size = 4096;
pub const Bytes = [frame_size]u8;

pub const Error = error{
    /// No such frame here.
    FrameInvalid,
    /// Nothing was ever put there.
    FrameEmpty,
};

pub const Counters = struct {
    puts: u64 = 0,
    gets: u64 = 0,
    /// Frames that hold something, hence cost memory.
    written: u32 = 0,
};

pub const Store = struct {
    memory: []align(std.heap.page_size_min) u8,
    /// A bit a frame: something was put there.
    map: []align(std.heap.page_size_min) u8,
    frame_count: u32,
    counters: Counters = .{},

    pub fn init(frame_count: u32) sys.Error!Store {
        std.debug.assert(frame_count > 0);
        const memory = try sys.mapAnonymous(@as(usize, frame_count) * frame_size);
        errdefer sys.unmap(memory);
        // A huge page would take the memory of 511 neighbours with a frame's first put.
        for ([_]u32{ linux.MADV.DONTFORK, linux.MADV.NOHUGEPAGE }) |advice| {
            // NOHUGEPAGE is EINVAL on a kernel without huge pages, which needs no advice.
            _ = linux.madvise(memory.ptr, memory.len, advice);
        }
        const map_bytes = std.math.divCeil(usize, frame_count, 8) catch unreachable;
        const map = try sys.mapAnonymous(std.mem.alignForward(usize, map_bytes, frame_size));
        return .{ .memory = memory, .map = map, .frame_count = frame_count };
    }

    pub fn deinit(self: *Store) void {
        sys.unmap(self.memory);
        sys.unmap(self.map);
        self.* = undefined;
    }

    pub fn put(self: *Store, frame: u32, bytes: *const Bytes) Error!void {
        if (frame >= self.frame_count) return error.FrameInvalid;
        self.counters.puts += 1;
        const bit = bitOf(frame);
        if (self.map[frame / 8] & bit == 0) {
            self.map[frame / 8] |= bit;
            self.counters.written += 1;
        }
        @memcpy(self.at(frame), bytes);
    }

    /// Valid until the frame's next put or clear().
    pub fn get(self: *Store, frame: u32) Error!*const Bytes {
        if (frame >= self.frame_count) return error.FrameInvalid;
        if (self.map[frame / 8] & bitOf(frame) == 0) return error.FrameEmpty;
        self.counters.gets += 1;
        return self.at(frame);
    }

    /// The frame holds nothing any more: its memory goes back.
    pub fn free(self: *Store, frame: u32) (Error || sys.Error)!void {
        if (frame >= self.frame_count) return error.FrameInvalid;
        const bit = bitOf(frame);
        if (self.map[frame / 8] & bit == 0) return;
        const memory = self.at(frame);
        _ = try sys.check(linux.madvise(memory, frame_size, linux.MADV.DONTNEED));
        self.map[frame / 8] &= ~bit;
        self.counters.written -= 1;
    }

    /// Forgets all contents and gives their memory back.
    pub fn clear(self: *Store) sys.Error!void {
        for ([_][]align(std.heap.page_size_min) u8{ self.memory, self.map }) |part| {
            _ = try sys.check(linux.madvise(part.ptr, part.len, linux.MADV.DONTNEED));
        }
        self.counters.written = 0;
    }

    fn at(self: *Store, frame: u32) *Bytes {
        return self.memory[@as(usize, frame) * frame_size ..][0..frame_size];
    }

    fn bitOf(frame: u32) u8 {
        return @as(u8, 1) << @intCast(frame % 8);
    }
};

fn filled(value: u8) Bytes {
    return @splat(value);
}

test "a frame gives back what was last put there" {
    var store: Store = try .init(9);
    defer store.deinit();
    for (0..9) |i| try store.put(@intCast(i), &filled(@intCast(i + 1)));
    try store.put(4, &filled(77));
    for (0..9) |i| {
        const value: u8 = if (i == 4) 77 else @intCast(i + 1);
        try std.testing.expectEqualSlices(u8, &filled(value), try store.get(@intCast(i)));
    }
    try std.testing.expectEqual(Counters{ .puts = 10, .gets = 9, .written = 9 }, store.counters);
}

test "frames outside the store and empty ones are refused" {
    var store: Store = try .init(9);
    defer store.deinit();
    for ([_]u32{ 9, 15, 16, std.math.maxInt(u32) }) |frame| {
        try std.testing.expectError(error.FrameInvalid, store.put(frame, &filled(1)));
        try std.testing.expectError(error.FrameInvalid, store.get(frame));
    }
    try std.testing.expectError(error.FrameEmpty, store.get(8));
    try std.testing.expectEqual(Counters{}, store.counters);
}

test "a large store costs what was put, and nothing once cleared" {
    const count = 1 << 20;
    var store: Store = try .init(count);
    defer store.deinit();
    try std.testing.expectEqual(@as(usize, 0), try sys.residentBytes(store.memory));
    for ([_]u32{ 0, count / 2, count / 2, count - 1 }) |frame| try store.put(frame, &filled(5));
    try std.testing.expectEqual(@as(usize, 3 * frame_size), try sys.residentBytes(store.memory));
    try std.testing.expect(try sys.residentBytes(store.map) <= 3 * frame_size);
    try std.testing.expectEqual(@as(u32, 3), store.counters.written);
    for (0..2) |_| try store.free(count / 2);
    try std.testing.expectError(error.FrameInvalid, store.free(count));
    try std.testing.expectError(error.FrameEmpty, store.get(count / 2));
    try std.testing.expectEqual(@as(usize, 2 * frame_size), try sys.residentBytes(store.memory));
    try std.testing.expectEqual(@as(u32, 2), store.counters.written);
    try store.clear();
    try std.testing.expectEqual(@as(usize, 0), try sys.residentBytes(store.memory));
    try std.testing.expectError(error.FrameEmpty, store.get(0));
}
