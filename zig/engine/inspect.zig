//! What others may learn of a shard's state while it works: who has a page, and what is in flight.
//! They leave a question in a word and ring the shard's bell; the shard looks once a turn and
//! answers itself, since only its thread reads the core's state consistently. Nothing here changes
//! that state. Not by the mailbox: it stands still while a lane is full, which is when one looks.
//! Works on any pager with the fields it names, so it knows none by type.

const std = @import("std");
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const dump = @import("dump.zig");
const Events = @import("events.zig").Events;

/// Which pages, packed into the word that publishes the question; 0 is none, as no sequence is 0.
const Query = packed struct(u64) { page: u32, count: u16, sequence: u16 };

/// The life of a dump: asked for, being written by the shard, there to be read.
const Dump = struct {
    const idle: u32 = 0;
    const wanted: u32 = 1;
    const taken: u32 = 2;
    const done: u32 = 3;
};

pub const Inspection = struct {
    /// The shard's bell: its mailbox's.
    bell_fd: i32 = -1,
    answer: ?*abi.PageAnswer = null,
    events: ?*Events = null,
    query: std.atomic.Value(u64) = .init(0),
    dumping: std.atomic.Value(u32) = .init(Dump.idle),
    /// The shard's from `wanted` to `done`, else the asker's.
    buffer: []u8 = &.{},
    written: usize = 0,

    /// Where answers about pages go; before the first question.
    pub fn attach(self: *Inspection, answer: *abi.PageAnswer, events: *Events) void {
        self.answer = answer;
        self.events = events;
    }

    /// The JavaScript thread: event `pages_answered` follows. Busy: the shard has yet to answer the
    /// question before.
    pub fn ask(self: *Inspection, page: u32, count: u16, sequence: u16) error{Busy}!void {
        std.debug.assert(count > 0 and count <= abi.page_records_max and sequence != 0);
        // Acquire: the shard is done with the answer before.
        if (self.query.load(.acquire) != 0) return error.Busy;
        const query: Query = .{ .page = page, .count = count, .sequence = sequence };
        self.query.store(@bitCast(query), .release);
        sys.eventfdSignal(self.bell_fd);
    }

    /// One thread at a time, never the shard's: what is in flight, in lines of text in `buffer`,
    /// which nobody may touch before the next call. Null: the shard did not answer in time.
    pub fn takeDump(self: *Inspection, buffer: []u8, patience_ns: u64) ?[]const u8 {
        // Asked for in vain before: `taken` if the shard is still at it, `done` if it came back.
        if (self.dumping.load(.acquire) != Dump.taken) {
            self.buffer = buffer;
            // Release: the shard finds the buffer.
            self.dumping.store(Dump.wanted, .release);
        }
        sys.eventfdSignal(self.bell_fd);
        const deadline = sys.monotonicNs() + patience_ns;
        while (true) {
            const state = self.dumping.load(.acquire);
            if (state == Dump.done) break;
            const now = sys.monotonicNs();
            if (now >= deadline) {
                // Not yet begun: the buffer is ours again.
                _ = self.dumping.cmpxchgStrong(Dump.wanted, Dump.idle, .acq_rel, .acquire);
                return null;
            }
            sys.futexWait(&self.dumping, state, deadline - now);
        }
        const text = self.buffer[0..self.written];
        self.dumping.store(Dump.idle, .release);
        return text;
    }

    /// Shard thread, once a turn.
    pub fn serve(self: *Inspection, pager: anytype) void {
        // Acquire: the question is whole, the buffer is ours.
        const bits = self.query.load(.acquire);
        if (bits != 0) self.describe(pager, @bitCast(bits));
        if (self.dumping.load(.monotonic) != Dump.wanted) return;
        const was = self.dumping.cmpxchgStrong(Dump.wanted, Dump.taken, .acq_rel, .acquire);
        if (was != null) return;
        self.written = dump.write(pager, self.buffer, sys.monotonicNs());
        self.dumping.store(Dump.done, .release);
        sys.futexWake(&self.dumping, 1);
    }

    fn describe(self: *Inspection, pager: anytype, query: Query) void {
        const answer = self.answer.?;
        for (answer.records[0..query.count], query.page..) |*out, page| {
            const gpa = pager.shell.ram.gpaOf(@intCast(page));
            out.* = record(&pager.shell.core, @intCast(page), gpa);
        }
        answer.count = query.count;
        answer.sequence = query.sequence;
        // Release: the answer is whole before another question can be asked.
        self.query.store(0, .release);
        self.events.?.simple(.pages_answered, 0, query.sequence, 0, 0);
    }
};

/// The page as this node's core has it now.
pub fn record(core: anytype, page: u32, gpa: u64) abi.PageRecord {
    var out = std.mem.zeroes(abi.PageRecord);
    out.gpa = gpa;
    out.home = core.homeOf(page);
    out.access = byte(accessOf(core.access(page)));
    out.copy_version = core.versions[page];
    if (core.pending.find(page)) |pending| out.waits_for = byte(requestOf(pending.kind));
    for (core.holds.deferred[0..core.holds.deferred_count]) |revoke| {
        out.revokes_deferred += @intFromBool(revoke.page == page);
    }
    if (!core.isHome(page)) return out;
    const entry = core.directory[page];
    out.state = byte(stateOf(entry.state));
    out.owner = entry.owner;
    out.sharers = if (entry.state == .stored) core.store.nodesOf(entry) else entry.sharers;
    out.version = entry.version;
    const txn = core.txns.find(page) orelse return out;
    // While requests are parked none of them is the transaction's own yet.
    var waiting = core.requests.iterate(txn.queue);
    const parked = if (txn.phase == .parked) waiting.next() else null;
    const request = parked orelse txn.request;
    out.requester = request.node;
    out.request = byte(requestOf(request.kind));
    out.phase = byte(phaseOf(txn.phase));
    out.queued = txn.queue.count;
    return out;
}

fn byte(value: anytype) u8 {
    return @intCast(@backingInt(value));
}

fn stateOf(state: anytype) abi.PageState {
    return switch (state) {
        .untouched => .untouched,
        .shared => .shared,
        .exclusive => .exclusive,
        .replicated => .replicated,
        .stored => .stored,
    };
}

fn accessOf(access: anytype) abi.PageAccess {
    return switch (access) {
        .invalid => .invalid,
        .shared => .shared,
        .exclusive => .exclusive,
        .replicated => .replicated,
    };
}

fn requestOf(kind: anytype) abi.PageRequest {
    return switch (kind) {
        .get_shared => .get_shared,
        .get_exclusive => .get_exclusive,
        .upgrade => .upgrade,
        .replicate => .replicate,
        .discard => .discard,
        .repair => .repair,
    };
}

fn phaseOf(phase: anytype) abi.PagePhase {
    return switch (phase) {
        .strict => .strict,
        .share => .share,
        .go => .go,
        .parked => .parked,
        .load => .load,
        .discard => .discard,
    };
}
