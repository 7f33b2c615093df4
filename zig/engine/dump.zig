//! What is in flight on a node, in lines of text for whoever wonders why a VM hangs (SIGUSR1): the
//! faults and since when, this node's requests, the transactions of its pages, what is put aside,
//! what waits at the gate, and every lane. Reads the shard's state on the shard's thread, changes
//! nothing, allocates nothing; every list shows `shown_max` entries and counts the rest.

const std = @import("std");
const abi = @import("../abi.zig");
const Writer = std.Io.Writer;

/// Entries of a list that are shown.
pub const shown_max = 24;
/// Requests shown of the queue behind one transaction.
const queue_shown_max = 4;
const cut_mark = "\n(cut: no room for more)\n";

/// Fills the buffer as far as it goes; how much it holds then. `now`: monotonic.
pub fn write(pager: anytype, buffer: []u8, now: u64) usize {
    std.debug.assert(buffer.len > cut_mark.len);
    var writer: Writer = .fixed(buffer[0 .. buffer.len - cut_mark.len]);
    var lines: Lines = .{ .writer = &writer, .node = pager.settings.node };
    if (lines.all(pager, now)) return writer.end else |_| {
        @memcpy(buffer[writer.end..][0..cut_mark.len], cut_mark);
        return writer.end + cut_mark.len;
    }
}

fn us(ns: u64) u64 {
    return ns / std.time.ns_per_us;
}

const Lines = struct {
    writer: *Writer,
    node: u8,

    const Error = Writer.Error;

    fn all(self: *Lines, pager: anytype, now: u64) Error!void {
        const core = &pager.shell.core;
        try self.line("open: {d} faults, {d} requests, {d} transactions at home, " ++
            "{d} revokes put aside, {d} messages at the gate, {d} posts in the mailbox", .{
            pager.shell.faults.waiting,
            inUse(&core.pending),
            inUse(&core.txns),
            core.holds.deferred_count,
            pager.shell.gate.waiting.items.len,
            @atomicLoad(u32, &pager.mailbox.head, .monotonic) -%
                @atomicLoad(u32, &pager.mailbox.tail, .monotonic),
        });
        try self.faults(pager, now);
        try self.requests(pager);
        try self.transactions(pager);
        try self.revokes(pager, now);
        try self.tables(pager);
        try self.gate(pager);
        try self.lanes(pager, now);
    }

    fn line(self: *Lines, comptime format: []const u8, args: anytype) Error!void {
        try self.writer.print("node {d}: ", .{self.node});
        try self.writer.print(format, args);
        try self.writer.writeByte('\n');
    }

    fn rest(self: *Lines, count: usize, what: []const u8) Error!void {
        if (count > shown_max) try self.line("... {d} more {s}", .{ count - shown_max, what });
    }

    /// Oldest first.
    fn faults(self: *Lines, pager: anytype, now: u64) Error!void {
        const entries = pager.shell.faults.entries[0..pager.shell.faults.count];
        var order: [pager.shell.faults.entries.len]u16 = undefined;
        var count: usize = 0;
        for (entries, 0..) |e, i| {
            if (!e.waiting) continue;
            var at = count;
            while (at > 0 and entries[order[at - 1]].since_ns > e.since_ns) : (at -= 1) {
                order[at] = order[at - 1];
            }
            order[at] = @intCast(i);
            count += 1;
        }
        for (order[0..@min(count, shown_max)]) |i| {
            const e = entries[i];
            const kind = if (e.write) "write" else "read";
            const where = if (e.remote) "remote" else "local";
            try self.writer.print("node {d}: fault 0x{x} {s} by ", .{
                self.node, pager.shell.ram.gpaOf(e.page), kind,
            });
            try self.thread(pager, e.tid);
            try self.writer.print(" for {d} us, {s}\n", .{ us(now -| e.since_ns), where });
        }
        try self.rest(count, "faults");
    }

    fn thread(self: *Lines, pager: anytype, tid: u32) Error!void {
        var index: usize = 0;
        const handler = &pager.shell.handler;
        while (handler.inboxes(handler.context, index)) |inbox| : (index += 1) {
            const own: u32 = @bitCast(inbox.tid.load(.monotonic));
            if (own == tid) return self.writer.print("vCPU {d} (thread {d})", .{ index, tid });
        }
        try self.writer.print("thread {d}", .{tid});
    }

    fn requests(self: *Lines, pager: anytype) Error!void {
        const count = inUse(&pager.shell.core.pending);
        var at: usize = 0;
        for (0..@min(count, shown_max)) |_| {
            const p = nextOf(&pager.shell.core.pending, &at);
            try self.line("request 0x{x} {t} to home {d}: {s}, {d} of {d} acks; " ++
                "copy here {t}, version {d}", .{
                pager.shell.ram.gpaOf(p.page),
                p.kind,
                pager.shell.core.homeOf(p.page),
                if (p.granted) "granted" else "no grant yet",
                p.acks,
                p.acks_needed,
                pager.shell.core.access(p.page),
                pager.shell.core.versions[p.page],
            });
        }
        try self.rest(count, "requests");
    }

    fn transactions(self: *Lines, pager: anytype) Error!void {
        const core = &pager.shell.core;
        const count = inUse(&core.txns);
        var at: usize = 0;
        for (0..@min(count, shown_max)) |_| {
            const txn = nextOf(&core.txns, &at);
            const entry = core.directory[txn.page];
            try self.writer.print("node {d}: home 0x{x}", .{
                self.node, pager.shell.ram.gpaOf(txn.page),
            });
            if (txn.phase != .parked) try self.request(txn.request);
            try self.writer.print(", phase {t}; entry {t} owner {d} sharers 0x{x} version {d}", .{
                txn.phase, entry.state, entry.owner, entry.sharers, entry.version,
            });
            const waits_for_nodes = txn.phase == .share or txn.phase == .go;
            if (waits_for_nodes) try self.writer.print("; waits for nodes 0x{x}", .{txn.missing});
            try self.writer.print("; {d} queued", .{txn.queue.count});
            var waiting = core.requests.iterate(txn.queue);
            for (0..queue_shown_max) |i| {
                const r = waiting.next() orelse break;
                try self.writer.writeAll(if (i == 0) ":" else ",");
                try self.request(r);
            }
            try self.writer.writeByte('\n');
        }
        try self.rest(count, "transactions");
    }

    fn request(self: *Lines, r: anytype) Error!void {
        try self.writer.print(" {t} by node {d} (age {d})", .{ r.kind, r.node, r.age });
    }

    fn revokes(self: *Lines, pager: anytype, now: u64) Error!void {
        const deferred = pager.shell.core.holds.deferred[0..pager.shell.core.holds.deferred_count];
        for (deferred[0..@min(deferred.len, shown_max)]) |r| {
            try self.line("revoke 0x{x} {t} for node {d} (age {d}) put aside for {d} us more", .{
                pager.shell.ram.gpaOf(r.page), r.kind, r.requester, r.age, us(r.until -| now),
            });
        }
        try self.rest(deferred.len, "revokes");
    }

    fn tables(self: *Lines, pager: anytype) Error!void {
        if (!pager.settings.replicate) return;
        const r = &pager.shell.core.replicas;
        try self.line("page tables: {d} replicated, {d} being replicated, {d} wait for it", .{
            r.live, r.active, r.count,
        });
    }

    fn gate(self: *Lines, pager: anytype) Error!void {
        const held = pager.shell.gate.first() orelse return;
        try self.line("gate: the first message is for node {d}, waits for diff {d} of {d}", .{
            held.to, held.sequence, pager.shell.core.replicas.sequence,
        });
        for (0..pager.settings.node_count) |node| {
            if (node == self.node) continue;
            const taken = pager.shell.core.replicas.acknowledged[node];
            try self.line("gate: node {d} has taken diffs up to {d}", .{ node, taken });
        }
    }

    fn lanes(self: *Lines, pager: anytype, now: u64) Error!void {
        for (0..pager.settings.node_count) |node| {
            if (node == self.node) continue;
            const lane = pager.shell.lanes.all[node] orelse {
                try self.line("lane to node {d}: none, the node is lost or not linked", .{node});
                continue;
            };
            const held = if (lane.is_held_back) ", full: requests wait" else "";
            try self.line("lane to node {d}: {t}, {d} bytes queued, {d} unacknowledged, " ++
                "heard {d} us ago{s}", .{
                node,
                lane.phase,
                lane.queued(),
                lane.unacked(),
                us(now -| pager.shell.lanes.heard[node]),
                held,
            });
        }
    }
};

fn inUse(pool: anytype) usize {
    return pool.items.len - pool.free_count;
}

/// The record in use at or behind `at`, which moves past it; there must be one.
fn nextOf(pool: anytype, at: *usize) @TypeOf(&pool.items[0]) {
    const none = @TypeOf(pool.items[0]){};
    while (true) : (at.* += 1) {
        if (pool.items[at.*].page == none.page) continue;
        defer at.* += 1;
        return &pool.items[at.*];
    }
}
