//! The faults in flight on this node: who waits for what since when. Gives threads small indexes
//! for the protocol's ages, measures service times and knows the oldest fault. One entry a
//! thread, since a thread waits for one page at a time. Shard thread only.

const std = @import("std");
const abi = @import("../abi.zig");
const histogram = @import("../base/histogram.zig");
const Heat = @import("heat.zig").Heat;

/// vCPU threads, device threads, the loader.
pub const threads_max = 96;

pub const Entry = struct {
    tid: u32,
    page: u32,
    write: bool,
    waiting: bool,
    since_ns: u64,
    /// A message was needed: the answer came from another node.
    remote: bool,
};

pub const Faults = struct {
    entries: [threads_max]Entry = undefined,
    count: u16 = 0,
    /// Threads that wait now.
    waiting: u16 = 0,
    /// Waits ended since start: each lets a thread run on.
    wakes: u64 = 0,
    stats: *abi.EngineStats,
    /// Null: nobody looks (simulation, tests).
    heat: ?Heat = null,

    /// Index of the faulting thread, whose wait for `page` starts (or goes on) now.
    pub fn begin(self: *Faults, tid: u32, page: u32, write: bool, now: u64) u16 {
        const index = self.find(tid);
        const entry = &self.entries[index];
        // The same wait seen twice (a protected page after its install): keep its start.
        if (entry.waiting and entry.page == page) {
            entry.write = entry.write or write;
            return index;
        }
        if (!entry.waiting) entry.since_ns = now;
        entry.page = page;
        entry.write = write;
        entry.remote = false;
        if (!entry.waiting) self.waiting += 1;
        entry.waiting = true;
        return index;
    }

    fn find(self: *Faults, tid: u32) u16 {
        for (self.entries[0..self.count], 0..) |e, i| {
            if (e.tid == tid) return @intCast(i);
        }
        // More threads than a VM can have means a defect in thread accounting.
        std.debug.assert(self.count < threads_max);
        self.entries[self.count] = .{
            .tid = tid,
            .page = 0,
            .write = false,
            .waiting = false,
            .since_ns = 0,
            .remote = false,
        };
        self.count += 1;
        return self.count - 1;
    }

    pub fn markRemote(self: *Faults, index: u16) void {
        if (self.entries[index].waiting) self.entries[index].remote = true;
    }

    /// The waiters of a page were woken: their service times count. Returns the longest wait for
    /// another node, 0 if there was none.
    pub fn woken(self: *Faults, page: u32, now: u64) u64 {
        var longest: u64 = 0;
        for (self.entries[0..self.count]) |*e| {
            if (!e.waiting or e.page != page) continue;
            e.waiting = false;
            self.waiting -= 1;
            self.wakes += 1;
            const ns = now -| e.since_ns;
            if (e.remote) {
                longest = @max(longest, ns);
                self.stats.faults_remote += 1;
                if (self.heat) |heat| heat.add(page);
                histogram.record(&self.stats.fault_latency, ns);
            } else self.stats.faults_local += 1;
            self.stats.stalled_ns += ns;
            self.stats.stall_ns_max = @max(self.stats.stall_ns_max, ns);
        }
        return longest;
    }

    /// Whether this thread (kernel id) is in a fault that the shard has seen and not yet ended: it
    /// executes nothing.
    pub fn isWaiting(self: *const Faults, tid: u32) bool {
        for (self.entries[0..self.count]) |e| if (e.tid == tid) return e.waiting;
        return false;
    }

    /// Updates the age of the oldest fault in flight; 0 when there is none.
    pub fn oldest(self: *Faults, now: u64) u64 {
        var age: u64 = 0;
        for (self.entries[0..self.count]) |e| {
            if (e.waiting) age = @max(age, now -| e.since_ns);
        }
        self.stats.oldest_fault_ns = age;
        return age;
    }
};

test "a wait is counted once, from its first fault to the wake" {
    var stats = std.mem.zeroes(abi.EngineStats);
    var record = std.mem.zeroes(abi.Heat);
    var faults: Faults = .{ .stats = &stats, .heat = .init(&record, 1024) };
    const a = faults.begin(100, 7, false, 1000);
    const b = faults.begin(200, 7, true, 1500);
    try std.testing.expect(a != b);
    try std.testing.expectEqual(a, faults.begin(100, 7, true, 1800));
    faults.markRemote(a);
    try std.testing.expectEqual(@as(u16, 2), faults.waiting);
    try std.testing.expectEqual(@as(u64, 2000), faults.oldest(3000));
    try std.testing.expectEqual(@as(u64, 2000), faults.woken(7, 3000));
    try std.testing.expectEqual(@as(u64, 1), stats.faults_remote);
    try std.testing.expectEqual(@as(u64, 1), stats.faults_local);
    // What was answered here is no heat.
    try std.testing.expectEqualSlices(u32, &.{ 1, 0 }, record.faults[0..record.count]);
    try std.testing.expectEqual(@as(u64, 2000), stats.stall_ns_max);
    try std.testing.expectEqual(@as(u64, 3500), stats.stalled_ns);
    try std.testing.expectEqual(@as(u64, 0), faults.woken(7, 9000));
    try std.testing.expectEqual(@as(u64, 3500), stats.stalled_ns);
    try std.testing.expectEqual(@as(u64, 0), faults.oldest(9000));
    try std.testing.expectEqual(@as(u16, 0), faults.waiting);
}
