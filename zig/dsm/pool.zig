//! Records that belong to one page each, from a pool of fixed size: the protocol's transactions,
//! requests, tables and write-back slots. No allocation after init; a page's record is found by its
//! index, which costs memory only where pages have had a record.

const std = @import("std");
const types = @import("types.zig");
const Memory = @import("../base/page_array.zig").Memory;
const Page = types.Page;

/// A pool of records with the page's index kept per page (0 = none, else record + 1).
pub fn Pool(comptime T: type) type {
    return struct {
        items: []T,
        free: []u16,
        free_count: u16,
        index: []u16,

        const Self = @This();

        pub fn init(a: std.mem.Allocator, memory: Memory, count: usize, page_count: u32) !Self {
            const items = try a.alloc(T, count);
            errdefer a.free(items);
            const free = try a.alloc(u16, count);
            errdefer a.free(free);
            const index = try memory.alloc(u16, page_count);
            @memset(items, .{});
            for (free, 0..) |*f, i| f.* = @intCast(count - 1 - i);
            return .{ .items = items, .free = free, .free_count = @intCast(count), .index = index };
        }

        pub fn deinit(self: *Self, a: std.mem.Allocator, memory: Memory) void {
            a.free(self.items);
            a.free(self.free);
            memory.free(u16, self.index);
        }

        pub fn find(self: *const Self, page: Page) ?*T {
            const i = self.index[page];
            return if (i == 0) null else &self.items[i - 1];
        }

        pub fn full(self: *const Self) bool {
            return self.free_count == 0;
        }

        pub fn put(self: *Self, page: Page, value: T) *T {
            std.debug.assert(self.free_count > 0 and self.index[page] == 0);
            self.free_count -= 1;
            const i = self.free[self.free_count];
            self.index[page] = i + 1;
            self.items[i] = value;
            self.items[i].page = page;
            return &self.items[i];
        }

        pub fn remove(self: *Self, page: Page) void {
            const i = self.index[page] - 1;
            self.items[i] = .{};
            self.index[page] = 0;
            self.free[self.free_count] = i;
            self.free_count += 1;
        }
    };
}
