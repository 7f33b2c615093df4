//! Room for pages on a node that may not keep them all: how many of its own and of other nodes' are
//! here, against the most that may be, and which one leaves next. The shell tells what comes and
//! goes. It starts to evict before the room is full, so that a fault seldom has to wait for that.

const std = @import("std");
const eviction = @import("../memory/eviction.zig");
const Memory = @import("../base/page_array.zig").Memory;
const Policy = eviction.Policy;

/// Pages on their way out at a time: write-back slots, a page of memory each.
pub const slots_max = 64;

/// Most pages that may be here; 0: any number.
pub const Limits = struct {
    /// Of other nodes.
    cache_pages: u32 = 0,
    /// Of this node's own.
    own_pages: u32 = 0,

    pub fn any(self: Limits) bool {
        return self.cache_pages > 0 or self.own_pages > 0;
    }
};

pub const Kind = enum { cache, own };

pub const Room = struct {
    table: *eviction.Table,
    limits: std.EnumArray(Kind, u32),
    policies: std.EnumArray(Kind, Policy),

    pub fn init(
        allocator: std.mem.Allocator,
        memory: Memory,
        page_count: u32,
        limits: Limits,
    ) error{OutOfMemory}!Room {
        const table = try allocator.create(eviction.Table);
        errdefer allocator.destroy(table);
        table.* = try .init(memory, page_count);
        var self: Room = .{
            .table = table,
            .limits = .init(.{ .cache = limits.cache_pages, .own = limits.own_pages }),
            .policies = undefined,
        };
        for (std.enums.values(Kind)) |kind| {
            const most = self.limits.get(kind);
            // What is on its way out at any time leaves that much room.
            const spare = @min(slots_max, most / 8);
            self.policies.set(kind, .{ .table = table, .budget = most - spare });
        }
        return self;
    }

    pub fn deinit(self: *Room, allocator: std.mem.Allocator) void {
        self.table.deinit();
        allocator.destroy(self.table);
        self.* = undefined;
    }

    /// The policy of pages of this kind; null: any number may be here.
    pub fn limited(self: *Room, kind: Kind) ?*Policy {
        return if (self.limits.get(kind) == 0) null else self.policies.getPtr(kind);
    }

    /// After a reset: nothing is here.
    pub fn clear(self: *Room) void {
        for (&self.policies.values) |*policy| policy.clear();
    }

    /// Not one page more may come.
    pub fn isFull(self: *Room) bool {
        for (std.enums.values(Kind)) |kind| {
            const policy = self.limited(kind) orelse continue;
            if (policy.present() >= self.limits.get(kind)) return true;
        }
        return false;
    }
};

test "a kind without a limit is never full, one with a limit leaves spare room" {
    const memory: Memory = .{ .allocator = std.testing.allocator, .fresh_is_zero = false };
    var room: Room = try .init(std.testing.allocator, memory, 64, .{ .cache_pages = 16 });
    defer room.deinit(std.testing.allocator);
    try std.testing.expectEqual(@as(?*Policy, null), room.limited(.own));
    const policy = room.limited(.cache).?;
    for (0..15) |page| policy.came(@intCast(page));
    try std.testing.expectEqual(@as(u32, 1), policy.excess());
    try std.testing.expect(!room.isFull());
    policy.came(15);
    try std.testing.expect(room.isFull());
    policy.left(policy.candidate().?);
    try std.testing.expect(!room.isFull());
}
