//! A batch of pages whose content nobody on this node needs any more (a balloon's): the shard asks
//! the core for one discard after another, as many at a time as the core takes, and tells once when
//! all of them are done on every node. Page tables are refused and stay as they are. One batch at a
//! time: who asks waits for the answer.

const std = @import("std");

/// Discards that a node has under way at most; the same on all nodes (dsm Config.discards_max).
pub const open_max = 64;

/// The shard's from the command until Handler.discarded, then its giver's again.
pub const Batch = struct {
    count: u32 = 0,
    pages: [pages_max]u32 = undefined,

    pub const pages_max = 512;

    pub fn slice(self: *const Batch) []const u32 {
        return self.pages[0..self.count];
    }

    pub fn isFull(self: *const Batch) bool {
        return self.count == pages_max;
    }

    pub fn add(self: *Batch, page: u32) void {
        self.pages[self.count] = page;
        self.count += 1;
    }
};

/// Steps of one turn: faults are not to wait for long.
const steps_max = 64;

pub const Discards = struct {
    /// Pages not asked for yet.
    left: []const u32 = &.{},
    /// A batch was given, and its end is not told yet.
    is_active: bool = false,

    pub fn begin(self: *Discards, batch: *const Batch) void {
        std.debug.assert(!self.is_active);
        self.* = .{ .left = batch.slice(), .is_active = true };
    }

    /// Before a reset, which forgets the rest as well.
    pub fn abandon(self: *Discards) void {
        self.left = &.{};
    }

    /// Whether there is something to do before anything else comes.
    pub fn isDue(self: *const Discards, shell: anytype) bool {
        if (!self.is_active or !shell.lanes.mayRequest()) return false;
        if (self.left.len == 0) return !shell.core.isDiscarding();
        return !shell.core.discardMustWait(self.left[0]);
    }

    pub fn goOn(self: *Discards, shell: anytype) void {
        if (!self.is_active) return;
        var steps: usize = 0;
        while (self.left.len > 0 and steps < steps_max and self.isDue(shell)) : (steps += 1) {
            const page = self.left[0];
            self.left = self.left[1..];
            if (!shell.core.canDiscard(page)) {
                shell.stats.discards_refused += 1;
                continue;
            }
            shell.step(.{ .discard = .{ .page = page } }, null);
        }
        if (self.left.len > 0 or shell.core.isDiscarding()) return;
        self.is_active = false;
        shell.handler.discarded(shell.handler.context);
    }
};
