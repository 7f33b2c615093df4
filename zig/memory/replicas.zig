//! Replicated page-table pages of this node: each with a twin, the content every node agreed on.
//! A scan compares page and twin and reports every changed 8-byte entry; a peer's entry is
//! applied to both. The page itself is written by guest code and by the hardware's walks at any
//! time, so entries are read and changed atomically.

const std = @import("std");

pub const entries_per_page = 512;
const page_size = 4096;

/// Accessed and dirty (Intel SDM vol. 3A, 4.8): set by hardware on any node, merged by OR.
pub const accessed_dirty: u64 = 0x60;

pub const Table = [entries_per_page]u64;
/// Comparing by wide loads: the scan is the cost of every message that tells anything.
const Wide = @Vector(8, u64);
const wide_per_page = page_size / @sizeOf(Wide);
const AlignedTable = *align(@alignOf(Wide)) Table;

pub const Replica = struct {
    page: u32,
    level: u8,
    live: AlignedTable,
    twin: AlignedTable,
};

pub const Change = struct { page: u32, level: u8, index: u16, old: u64, new: u64 };

pub const Patched = enum { applied, conflict, unknown };

pub const Replicas = struct {
    allocator: std.mem.Allocator,
    list: std.ArrayList(Replica) = .empty,

    pub fn deinit(self: *Replicas) void {
        self.clear();
        self.list.deinit(self.allocator);
    }

    pub fn clear(self: *Replicas) void {
        for (self.list.items) |r| self.allocator.free(@as([]align(@alignOf(Wide)) u64, r.twin));
        self.list.clearRetainingCapacity();
    }

    /// Adds a page that both nodes agree to hold `agreed`. Not what `live` holds by now: a page
    /// that is mapped writable may have been stored to already, which has yet to be told.
    pub fn add(
        self: *Replicas,
        page: u32,
        level: u8,
        live: *[page_size]u8,
        agreed: *const [page_size]u8,
    ) error{OutOfMemory}!void {
        std.debug.assert(self.find(page) == null);
        const words = try self.allocator.alignedAlloc(u64, .of(Wide), entries_per_page);
        errdefer self.allocator.free(words);
        const twin: AlignedTable = words[0..entries_per_page];
        @memcpy(std.mem.asBytes(twin), agreed);
        try self.list.append(self.allocator, .{
            .page = page,
            .level = level,
            .live = @ptrCast(@alignCast(live)),
            .twin = twin,
        });
    }

    pub fn remove(self: *Replicas, page: u32) void {
        const index = self.find(page) orelse return;
        const gone = self.list.swapRemove(index);
        self.allocator.free(@as([]align(@alignOf(Wide)) u64, gone.twin));
    }

    pub fn find(self: *const Replicas, page: u32) ?usize {
        for (self.list.items, 0..) |r, i| if (r.page == page) return i;
        return null;
    }

    /// The next changed entry at or after the cursor; updates the twin. Null ends the scan.
    pub fn next(self: *Replicas, cursor: *Cursor) ?Change {
        while (cursor.replica < self.list.items.len) {
            const r = self.list.items[cursor.replica];
            if (cursor.index == 0 and same(r)) {
                cursor.replica += 1;
                continue;
            }
            while (cursor.index < entries_per_page) {
                const i = cursor.index;
                cursor.index += 1;
                const new = @atomicLoad(u64, &r.live[i], .acquire);
                const old = r.twin[i];
                if (new == old) continue;
                r.twin[i] = new;
                return .{
                    .page = r.page,
                    .level = r.level,
                    .index = @intCast(i),
                    .old = old,
                    .new = new,
                };
            }
            cursor.index = 0;
            cursor.replica += 1;
        }
        return null;
    }

    pub const Cursor = struct { replica: usize = 0, index: usize = 0 };

    /// Volatile: guest code and page walks write the live table at any time.
    fn same(r: Replica) bool {
        const live: *const volatile [wide_per_page]Wide = @ptrCast(r.live);
        const twin: *const [wide_per_page]Wide = @ptrCast(r.twin);
        var difference: Wide = @splat(0);
        for (0..wide_per_page) |i| difference |= live[i] ^ twin[i];
        return @reduce(.Or, difference) == 0;
    }

    /// Applies a peer's change. It conflicts with another change of the same entry that the peer
    /// had not heard of, told or not, unless both are the same, or one only sets accessed or dirty:
    /// hardware may mark an entry that another node's guest has just cleared.
    pub fn patch(self: *Replicas, page: u32, index: u16, old: u64, new: u64) Patched {
        const at = self.find(page) orelse return .unknown;
        const r = self.list.items[at];
        std.debug.assert(index < entries_per_page);
        const told = r.twin[index];
        const marks = isSame(old, new);
        if (!isSame(told, old)) {
            // A mark on what the entry was before is of no use. What is told must stay told.
            if (marks) return .applied;
            if (!isSame(told, new)) return .conflict;
        }
        var current = @atomicLoad(u64, &r.live[index], .acquire);
        while (true) {
            if (!isSame(current, old) and !isSame(current, new)) {
                // Changed here and about to be told.
                return if (marks) .applied else .conflict;
            }
            // Bits hardware set here and nobody was told of survive, unless the entry went away.
            const extra = current & ~told & accessed_dirty;
            const merged = if (new & 1 != 0) new | extra else new;
            // Hardware may set A or D between: compare and swap keeps its bit.
            const slot = &r.live[index];
            current = @cmpxchgWeak(u64, slot, current, merged, .acq_rel, .acquire) orelse break;
        }
        r.twin[index] = new;
        return .applied;
    }

    fn isSame(a: u64, b: u64) bool {
        return (a ^ b) & ~accessed_dirty == 0;
    }
};

const TestPage = struct {
    bytes: [page_size]u8 align(page_size) = @splat(0),

    fn entry(self: *TestPage, index: usize) *u64 {
        return @ptrCast(@alignCast(&self.bytes[index * 8]));
    }
};

test "a scan reports each change once" {
    var page: TestPage = .{};
    page.entry(3).* = 0x1003;
    var replicas: Replicas = .{ .allocator = std.testing.allocator };
    defer replicas.deinit();
    try replicas.add(9, 2, &page.bytes, &page.bytes);
    var cursor: Replicas.Cursor = .{};
    try std.testing.expectEqual(@as(?Change, null), replicas.next(&cursor));
    page.entry(3).* = 0x2003;
    page.entry(511).* = 0x5001;
    cursor = .{};
    const first = replicas.next(&cursor).?;
    const expected: Change = .{ .page = 9, .level = 2, .index = 3, .old = 0x1003, .new = 0x2003 };
    try std.testing.expectEqual(expected, first);
    try std.testing.expectEqual(@as(u16, 511), replicas.next(&cursor).?.index);
    try std.testing.expectEqual(@as(?Change, null), replicas.next(&cursor));
    cursor = .{};
    try std.testing.expectEqual(@as(?Change, null), replicas.next(&cursor));
}

test "patches apply, keep unsent accessed bits, and find conflicts" {
    var page: TestPage = .{};
    page.entry(1).* = 0x1003;
    var replicas: Replicas = .{ .allocator = std.testing.allocator };
    defer replicas.deinit();
    try replicas.add(4, 1, &page.bytes, &page.bytes);
    page.entry(1).* |= 0x20;
    try std.testing.expectEqual(Patched.applied, replicas.patch(4, 1, 0x1003, 0x7003));
    try std.testing.expectEqual(@as(u64, 0x7023), page.entry(1).*);
    // The accessed bit is still unsent: the next scan tells it.
    var cursor: Replicas.Cursor = .{};
    try std.testing.expectEqual(@as(u64, 0x7023), replicas.next(&cursor).?.new);
    page.entry(1).* = 0x9003;
    try std.testing.expectEqual(Patched.conflict, replicas.patch(4, 1, 0x7023, 0x8003));
    try std.testing.expectEqual(Patched.unknown, replicas.patch(5, 1, 0, 1));
    // Both nodes made the same change: no conflict.
    page.entry(1).* = 0x7003;
    try std.testing.expectEqual(Patched.applied, replicas.patch(4, 1, 0x7023, 0));
    try std.testing.expectEqual(@as(u64, 0), page.entry(1).*);
}

test "a peer's accessed bit on an entry that was changed here meanwhile is no conflict" {
    var page: TestPage = .{};
    page.entry(2).* = 0x1003;
    var replicas: Replicas = .{ .allocator = std.testing.allocator };
    defer replicas.deinit();
    try replicas.add(4, 2, &page.bytes, &page.bytes);
    page.entry(2).* = 0;
    try std.testing.expectEqual(Patched.applied, replicas.patch(4, 2, 0x1003, 0x1023));
    try std.testing.expectEqual(@as(u64, 0), page.entry(2).*);
    // What was changed here is still to be told.
    var cursor: Replicas.Cursor = .{};
    const change = replicas.next(&cursor) orelse return error.StoreLost;
    try std.testing.expectEqual(@as(u64, 0x1003), change.old);
    try std.testing.expectEqual(@as(u64, 0), change.new);
    // Two changes that are more than marks stay a conflict.
    page.entry(2).* = 0x5003;
    try std.testing.expectEqual(Patched.conflict, replicas.patch(4, 2, 0, 0x6003));
}

test "an entry that went and came back is told, whatever a peer's hardware marked before" {
    var page: TestPage = .{};
    page.entry(2).* = 0x1003;
    var replicas: Replicas = .{ .allocator = std.testing.allocator };
    defer replicas.deinit();
    try replicas.add(4, 2, &page.bytes, &page.bytes);
    page.entry(2).* = 0;
    var cursor: Replicas.Cursor = .{};
    try std.testing.expectEqual(@as(u64, 0), replicas.next(&cursor).?.new);
    page.entry(2).* = 0x1003;
    try std.testing.expectEqual(Patched.applied, replicas.patch(4, 2, 0x1003, 0x1023));
    cursor = .{};
    const change = replicas.next(&cursor) orelse return error.StoreLost;
    try std.testing.expectEqual(@as(u64, 0), change.old);
    try std.testing.expectEqual(@as(u64, 0x1003), change.new);
    // A peer's change of what the entry was before that: nobody can say which came last.
    try std.testing.expectEqual(Patched.conflict, replicas.patch(4, 2, 0x7003, 0x8003));
}

test "a store that came before the twin was taken is still told" {
    var page: TestPage = .{};
    const agreed = page.bytes;
    // A vCPU was quicker than the shard: the page was writable as soon as it was mapped.
    page.entry(7).* = 0x3003;
    var replicas: Replicas = .{ .allocator = std.testing.allocator };
    defer replicas.deinit();
    try replicas.add(2, 1, &page.bytes, &agreed);
    var cursor: Replicas.Cursor = .{};
    const change = replicas.next(&cursor) orelse return error.StoreLost;
    try std.testing.expectEqual(@as(u16, 7), change.index);
    try std.testing.expectEqual(@as(u64, 0), change.old);
    try std.testing.expectEqual(@as(u64, 0x3003), change.new);
}
