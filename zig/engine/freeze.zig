//! When the whole VM stands still, and when it goes on: the pure part. A node that has waited too
//! long for another one freezes (its vCPUs park, its guest clock stops) and tells all others. Every
//! node reports to node 0, the epoch authority, when its own trouble is over, with the newest time
//! its guest may have seen. Once all have, node 0 thaws the round: everybody takes the same number
//! of TSC ticks off its clock, so that it goes on where the last guest stopped.
//!
//! Invariants, held by freeze_test.zig: all nodes take off the same ticks in the same rounds; no
//! guest sees its clock go back; a node that reported may still be in trouble when the thaw comes,
//! and then the next round begins without its guests having run. Guest TSC values are compared as
//! differences: they may wrap.

const std = @import("std");

/// The node that has the boot vCPU.
pub const leader: u8 = 0;

/// A thaw that comes later than `late_ticks` freezes again at once, but never more often than this
/// in a row: where every message takes so long the VM must run all the same.
const late_in_row_max = 3;

pub const Kind = enum(u8) {
    /// The sender has frozen in this round: so must you.
    freeze = 1,
    /// To node 0: the sender's trouble is over; `ticks` is what its guest may have seen.
    ready = 2,
    /// To node 0: not any more.
    unready = 3,
    /// From node 0, at its guest time `sent`: take `ticks` off and go on.
    thaw = 4,
    _,
};

pub const Message = struct {
    kind: Kind,
    /// Thaws that the sender has seen.
    round: u64,
    sent: u64 = 0,
    ticks: u64 = 0,
};

pub const Action = union(enum) {
    /// Stop the guest's clock and park the vCPUs.
    freeze,
    /// Take the ticks off the guest's clock, which then shows `seen` or more, and go on.
    thaw: Thaw,
    /// Take the ticks off and stay frozen: the next round has begun already.
    subtract: u64,
    send: Send,
    /// The peer broke the protocol of freezes.
    violated: []const u8,

    pub const Thaw = struct { ticks: u64, seen: u64 };
    pub const Send = struct {
        /// Bit n = node n.
        to: u64,
        message: Message,
    };
};

/// What one step can ask for, in order.
pub const Actions = struct {
    items: [4]Action = undefined,
    count: usize = 0,

    pub fn slice(self: *const Actions) []const Action {
        return self.items[0..self.count];
    }

    fn add(self: *Actions, action: Action) void {
        self.items[self.count] = action;
        self.count += 1;
    }
};

/// The node's own condition, looked at on every turn of its shard.
pub const Look = struct {
    in_trouble: bool,
    /// No vCPU of this node executes guest code, nor will before the thaw.
    is_still: bool,
    /// Guest TSC now.
    now: u64,
};

pub const Machine = struct {
    node: u8,
    node_count: u8,
    /// Of the guest TSC. A thaw takes a moment; what is later was held up on its way.
    late_ticks: u64,

    /// Thaws applied so far: the number of the round that is, or comes next.
    round: u64 = 0,
    is_frozen: bool = false,
    in_trouble: bool = false,
    /// What this node's guest may have seen; null until its vCPUs are out of the guest.
    seen: ?u64 = null,
    /// Node 0 has been told that this node is ready; and was it ever in this round?
    has_reported: bool = false,
    was_ready: bool = false,
    late_in_row: u8 = 0,

    /// Node 0: who is ready, and the newest time that any of their guests may have seen.
    ready: u64 = 0,
    newest: u64 = 0,

    fn all(self: *const Machine) u64 {
        return (@as(u64, 1) << @intCast(self.node_count)) - 1;
    }

    fn others(self: *const Machine) u64 {
        return self.all() & ~bit(self.node);
    }

    pub fn look(self: *Machine, now: Look, out: *Actions) void {
        self.in_trouble = now.in_trouble;
        if (!self.is_frozen) {
            if (now.in_trouble) self.begin(out);
            return;
        }
        if (self.seen == null and now.is_still) self.seen = now.now;
        if (self.in_trouble) return self.takeBack(out);
        if (self.has_reported) return;
        const seen = self.seen orelse return;
        self.has_reported = true;
        self.was_ready = true;
        if (self.node == leader) return self.takeReady(leader, seen, now.now, out);
        self.send(bit(leader), .{ .kind = .ready, .round = self.round, .ticks = seen }, out);
    }

    pub fn receive(self: *Machine, from: u8, message: Message, now: u64, out: *Actions) void {
        switch (message.kind) {
            .freeze => self.receiveFreeze(message.round, out),
            .ready, .unready => self.receiveReport(from, message, now, out),
            .thaw => self.receiveThaw(from, message, now, out),
            _ => out.add(.{ .violated = "freeze message of unknown kind" }),
        }
    }

    /// Freezes and tells everybody: they may not see what this node sees. Node 0 passes on what it
    /// is told, since two of three nodes may be unable to hear each other.
    fn begin(self: *Machine, out: *Actions) void {
        self.enter(out);
        self.tellFreeze(out);
    }

    fn enter(self: *Machine, out: *Actions) void {
        self.is_frozen = true;
        self.seen = null;
        out.add(.freeze);
    }

    fn tellFreeze(self: *Machine, out: *Actions) void {
        self.send(self.others(), .{ .kind = .freeze, .round = self.round }, out);
    }

    fn send(self: *Machine, to: u64, message: Message, out: *Actions) void {
        _ = self;
        if (to != 0) out.add(.{ .send = .{ .to = to, .message = message } });
    }

    fn receiveFreeze(self: *Machine, round: u64, out: *Actions) void {
        // Held up on its way: that round is over.
        if (round < self.round) return;
        if (round == self.round) {
            if (self.is_frozen) return;
            return if (self.node == leader) self.begin(out) else self.enter(out);
        }
        // Its sender has the thaw of this round already, for which this node must have been ready.
        // Node 0 passes the freeze on, behind the thaw.
        const is_due = self.was_ready and self.node != leader and round == self.round + 1;
        if (!is_due) out.add(.{ .violated = "freeze of a round that cannot be" });
    }

    fn takeBack(self: *Machine, out: *Actions) void {
        if (!self.has_reported) return;
        self.has_reported = false;
        if (self.node == leader) {
            self.ready &= ~bit(leader);
            return;
        }
        self.send(bit(leader), .{ .kind = .unready, .round = self.round }, out);
    }

    fn receiveReport(self: *Machine, from: u8, message: Message, now: u64, out: *Actions) void {
        // It crossed the thaw.
        if (self.node == leader and message.round < self.round) return;
        if (self.node != leader or message.round != self.round) {
            return out.add(.{ .violated = "report for a freeze that cannot be" });
        }
        // The sender was told by a third node, whose own word has yet to come here.
        if (!self.is_frozen) self.begin(out);
        if (message.kind == .ready) return self.takeReady(from, message.ticks, now, out);
        self.ready &= ~bit(from);
    }

    fn takeReady(self: *Machine, from: u8, seen: u64, now: u64, out: *Actions) void {
        if (self.ready == 0 or isAfter(seen, self.newest)) self.newest = seen;
        self.ready |= bit(from);
        if (self.ready != self.all()) return;
        // Clocks of two hosts agree within half a round trip: a short freeze may end before it
        // began, and then nothing is taken off.
        const ticks = if (isAfter(now, self.newest)) now -% self.newest else 0;
        self.send(self.others(), .{
            .kind = .thaw,
            .round = self.round,
            .sent = now,
            .ticks = ticks,
        }, out);
        self.apply(ticks, false, out);
    }

    fn receiveThaw(self: *Machine, from: u8, message: Message, now: u64, out: *Actions) void {
        // The report may have been taken back since, but there was one.
        const is_due = from == leader and self.node != leader and self.was_ready and
            message.round == self.round;
        if (!is_due) return out.add(.{ .violated = "thaw of a freeze that is not" });
        const lateness = now -% message.sent;
        const is_late = isAfter(now, message.sent) and lateness > self.late_ticks;
        self.late_in_row = if (is_late) self.late_in_row + 1 else 0;
        self.apply(message.ticks, is_late and self.late_in_row <= late_in_row_max, out);
    }

    fn apply(self: *Machine, ticks: u64, is_late: bool, out: *Actions) void {
        self.round += 1;
        self.has_reported = false;
        self.was_ready = false;
        self.ready = 0;
        if (!self.in_trouble and !is_late) {
            // It was ready, hence still.
            const seen = self.seen.?;
            self.is_frozen = false;
            self.seen = null;
            return out.add(.{ .thaw = .{ .ticks = ticks, .seen = seen } });
        }
        // Its guests have not run: what they have seen is still the same.
        out.add(.{ .subtract = ticks });
        self.tellFreeze(out);
    }
};

fn bit(node: u8) u64 {
    return @as(u64, 1) << @intCast(node);
}

/// Of two guest TSC values less than half their range apart.
pub fn isAfter(a: u64, b: u64) bool {
    return @as(i64, @bitCast(a -% b)) > 0;
}
