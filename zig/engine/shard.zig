//! The shard of an engine, whichever kind of node it is: the pager of a compute node, or the lender
//! of a memory node. What the rest of the engine needs of either.

const sys = @import("../base/sys.zig");
const Lanes = @import("lanes.zig").Lanes;
const Lender = @import("lender.zig").Lender;
const pager_file = @import("pager.zig");
const Pager = pager_file.Pager;

pub const Shard = union(enum) {
    pager: *Pager,
    lender: *Lender,

    /// Any thread: a span message to the nodes of the mask, in order with this node's other sends.
    pub fn post(self: Shard, nodes: u64, payload: []const u8) void {
        switch (self) {
            inline else => |s| s.post(nodes, payload),
        }
    }

    /// On the shard's thread: past what waits for page-table entries, since it tells nothing about
    /// memory.
    pub fn sendAtOnce(self: Shard, nodes: u64, parts: []const []const u8) void {
        var rest = nodes;
        while (rest != 0) : (rest &= rest - 1) {
            _ = self.lanes().queue(@intCast(@ctz(rest)), .span, parts);
        }
    }

    /// Whether the caller is the shard's thread.
    pub fn isCurrent(self: Shard) bool {
        return switch (self) {
            .pager => Pager.isShard(),
            .lender => Lender.isShard(),
        };
    }

    pub fn command(self: Shard, which: u8, argument: u64) void {
        switch (self) {
            inline else => |s| s.command(which, argument),
        }
    }

    /// Any thread: the process of a peer's engine has ended.
    pub fn peerEnded(self: Shard, node: u8) void {
        self.lanes().noteEnded(node);
        sys.eventfdSignal(self.eventfd());
    }

    pub fn start(self: Shard) pager_file.Error!void {
        return switch (self) {
            inline else => |s| s.start(),
        };
    }

    /// Before start(), or on the shard's thread; but for noteEnded().
    pub fn lanes(self: Shard) *Lanes {
        return switch (self) {
            .pager => |pager| &pager.shell.lanes,
            .lender => |lender| &lender.lanes,
        };
    }

    /// What wakes the shard.
    pub fn eventfd(self: Shard) i32 {
        return switch (self) {
            inline else => |s| s.mailbox.eventfd,
        };
    }
};
