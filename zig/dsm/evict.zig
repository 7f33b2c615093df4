//! Which pages may leave this node now, and the write-back slots that keep their bytes until
//! another node answers for them. What to evict is the shell's policy; the core refuses what it
//! needs itself: an eviction never waits, so it can never be part of a circle of waits.

const types = @import("types.zig");
const hold = @import("hold.zig");
const put = @import("put.zig");
const core_file = @import("core.zig");
const Actions = core_file.Actions;
const Page = types.Page;

/// A page on its way out, by the number of its slot.
pub const Slot = struct {
    page: Page = types.page_none,
    /// A foreign page: its bytes have been sent home.
    sent: bool = false,
};

/// The page's slot, if it is on its way out.
pub fn slotOf(self: anytype, page: Page) ?*Slot {
    // Without slots there is no index to look into.
    return if (self.slots.items.len == 0) null else self.slots.find(page);
}

pub fn numberOf(self: anytype, page: Page) types.SlotNumber {
    return self.slots.index[page] - 1;
}

pub fn canEvict(self: anytype, page: Page) bool {
    const access = self.local[page];
    if (access != .shared and access != .exclusive) return false;
    // A foreign page needs a slot, and there is none that its last eviction still uses.
    if (self.slots.full() or slotOf(self, page) != null) return false;
    if (self.isHome(page)) return false;
    if (self.tables.find(page) != null or self.pending.find(page) != null) return false;
    return !hold.keeps(self, page) and !hold.isDeferred(self, page);
}

pub fn evict(self: anytype, page: Page, out: *Actions) void {
    if (!canEvict(self, page)) {
        self.stats.evict_refused += 1;
        return;
    }
    self.stats.evictions += 1;
    put.give(self, page, out);
}
