//! What waits behind the open transactions of a home: one list of requests a transaction, oldest
//! chain of faults first, all of them from one pool of records. Every node has a bounded number of
//! requests open, so the pool cannot run out (core.zig sizes it; validate.zig holds peers to it).

const std = @import("std");
const core_file = @import("core.zig");
const Request = core_file.Request;

/// Place of a record + 1; 0: none.
pub const Link = u16;

const Record = struct { request: Request = undefined, next: Link = 0 };

/// One transaction's list, kept in it.
pub const Queue = struct {
    first: Link = 0,
    count: u16 = 0,
};

pub const Requests = struct {
    records: []Record,
    free: Link,

    pub fn init(a: std.mem.Allocator, count: usize) !Requests {
        const records = try a.alloc(Record, count);
        for (records, 0..) |*r, i| {
            r.* = .{ .next = if (i + 1 < count) @intCast(i + 2) else 0 };
        }
        return .{ .records = records, .free = 1 };
    }

    pub fn deinit(self: *Requests, a: std.mem.Allocator) void {
        a.free(self.records);
    }

    /// Oldest age first, in order of arrival among equals.
    pub fn insert(self: *Requests, queue: *Queue, request: Request) void {
        std.debug.assert(self.free != 0);
        const link = self.free;
        const record = &self.records[link - 1];
        self.free = record.next;
        var at = &queue.first;
        while (at.* != 0 and !older(request, self.records[at.* - 1].request)) {
            at = &self.records[at.* - 1].next;
        }
        record.* = .{ .request = request, .next = at.* };
        at.* = link;
        queue.count += 1;
    }

    /// The oldest one; there must be one.
    pub fn takeFirst(self: *Requests, queue: *Queue) Request {
        return self.take(queue, &queue.first);
    }

    /// The first one that `matches(argument, request)`, out of its turn.
    pub fn takeIf(
        self: *Requests,
        queue: *Queue,
        argument: anytype,
        comptime matches: fn (@TypeOf(argument), Request) bool,
    ) ?Request {
        var at = &queue.first;
        while (at.* != 0) : (at = &self.records[at.* - 1].next) {
            if (matches(argument, self.records[at.* - 1].request)) return self.take(queue, at);
        }
        return null;
    }

    fn take(self: *Requests, queue: *Queue, at: *Link) Request {
        const link = at.*;
        const record = &self.records[link - 1];
        at.* = record.next;
        record.next = self.free;
        self.free = link;
        queue.count -= 1;
        return record.request;
    }

    pub fn iterate(self: *const Requests, queue: Queue) Iterator {
        return .{ .requests = self, .at = queue.first };
    }

    pub const Iterator = struct {
        requests: *const Requests,
        at: Link,

        pub fn next(self: *Iterator) ?Request {
            if (self.at == 0) return null;
            const record = self.requests.records[self.at - 1];
            self.at = record.next;
            return record.request;
        }
    };
};

fn older(a: Request, b: Request) bool {
    return a.age < b.age or (a.age == b.age and a.age != 0 and a.node < b.node);
}

const testing = std.testing;

fn requestOf(node: u8, age: u64) Request {
    return .{ .node = node, .kind = .get_shared, .version = 0, .age = age };
}

fn isOf(node: u8, request: Request) bool {
    return request.node == node;
}

test "oldest first, in order of arrival without ages, out of turn, and every record comes back" {
    var requests: Requests = try .init(testing.allocator, 4);
    defer requests.deinit(testing.allocator);
    for (0..3) |_| {
        var queue: Queue = .{};
        var other: Queue = .{};
        requests.insert(&queue, requestOf(3, 7));
        requests.insert(&queue, requestOf(2, 9));
        requests.insert(&queue, requestOf(1, 7));
        requests.insert(&other, requestOf(5, 0));
        var nodes: [3]u8 = undefined;
        var i: usize = 0;
        var it = requests.iterate(queue);
        while (it.next()) |r| : (i += 1) nodes[i] = r.node;
        try testing.expectEqualSlices(u8, &.{ 1, 3, 2 }, &nodes);
        try testing.expectEqual(@as(u8, 3), requests.takeIf(&queue, @as(u8, 3), isOf).?.node);
        try testing.expectEqual(@as(?Request, null), requests.takeIf(&queue, @as(u8, 3), isOf));
        requests.insert(&other, requestOf(4, 0));
        try testing.expectEqual(@as(u8, 1), requests.takeFirst(&queue).node);
        try testing.expectEqual(@as(u8, 2), requests.takeFirst(&queue).node);
        try testing.expectEqual(@as(u16, 0), queue.count);
        try testing.expectEqual(@as(u8, 5), requests.takeFirst(&other).node);
        try testing.expectEqual(@as(u8, 4), requests.takeFirst(&other).node);
    }
}
