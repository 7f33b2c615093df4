//! The one memory that the nodes pretend to be: the last write of every byte, and for every page
//! how many nodes map it and may write to it. Told of each change of a mapping at the moment of it.

const std = @import("std");
const finding = @import("finding.zig");

pub const page_size = 4096;

/// Accessed and dirty: set by hardware, merged by OR, so no copy is wrong for lack of them.
pub const accessed_dirty: u64 = 0x60;

pub const Truth = struct {
    bytes: []align(page_size) u8,
    copies: []u8,
    writers: []u8,
    /// Pages that may be page tables now and then: writable on several nodes, checked elsewhere.
    is_table: []bool,
    /// Values stored so far: each store has one of its own.
    values: u64 = 0,

    pub fn init(a: std.mem.Allocator, memory: []align(page_size) u8, pages: u32) !Truth {
        @memset(memory, 0);
        const truth: Truth = .{
            .bytes = memory,
            .copies = try a.alloc(u8, pages),
            .writers = try a.alloc(u8, pages),
            .is_table = try a.alloc(bool, pages),
        };
        @memset(truth.copies, 0);
        @memset(truth.writers, 0);
        @memset(truth.is_table, false);
        return truth;
    }

    pub fn page(self: *const Truth, number: u32) *align(page_size) [page_size]u8 {
        return @alignCast(self.bytes[@as(usize, number) * page_size ..][0..page_size]);
    }

    pub fn newValue(self: *Truth) u64 {
        self.values += 1;
        // Nothing that reads as accessed, dirty or present: a value can be seen in a table.
        return self.values << 8;
    }

    /// Nodes that map the page, and nodes that can write to it, became more or fewer.
    pub fn account(self: *Truth, number: u32, copies: i8, writers: i8) void {
        const c = &self.copies[number];
        const w = &self.writers[number];
        c.* = @intCast(@as(i16, c.*) + copies);
        w.* = @intCast(@as(i16, w.*) + writers);
        if (self.is_table[number]) return;
        if (w.* == 0 or (w.* == 1 and c.* == 1)) return;
        finding.fail(.two_writers, "page {d}: {d} nodes can write to it, {d} have it", .{
            number, w.*, c.*,
        });
    }

    /// A page was mapped with these bytes.
    pub fn checkContent(
        self: *const Truth,
        node: u8,
        number: u32,
        found: *align(8) const [page_size]u8,
    ) void {
        if (std.mem.eql(u8, found, self.page(number))) return;
        const expected: *const [512]u64 = @ptrCast(self.page(number));
        const words: *const [512]u64 = @ptrCast(found);
        const ignored = if (self.is_table[number]) accessed_dirty else 0;
        for (words, expected, 0..) |word, right, i| {
            if (word & ~ignored == right & ~ignored) continue;
            finding.fail(
                .wrong_content,
                "page {d} came to node {d} with 0x{x} at {d} where the last write was 0x{x}",
                .{ number, node, word, i * 8, right },
            );
        }
    }
};
