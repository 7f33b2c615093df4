//! Which pages may leave this node now, and the write-back slots that keep their bytes until
//! another node answers for them. What to evict is the shell's policy; the core refuses what it
//! needs itself: an eviction never waits, so it can never be part of a circle of waits.

const types = @import("types.zig");
const hold = @import("hold.zig");
const put = @import("put.zig");
const store = @import("store.zig");
const core_file = @import("core.zig");
const Actions = core_file.Actions;
const Page = types.Page;

/// A page on its way out, by the number of its slot.
pub const Slot = struct {
    page: Page = types.page_none,
    use: enum(u8) {
        /// A foreign page goes home (put.zig).
        put,
        /// A page of this home goes to memory nodes (store.zig).
        store,
        /// Empty yet: the only copy of a stored page is being read (repair.zig).
        copy,
    } = .put,
    /// put: the bytes have been sent.
    sent: bool = false,
    /// store: memory nodes that have not acknowledged, and the number their words must carry.
    missing: types.Nodes = 0,
    sequence: u32 = 0,
    /// It became a second copy, or will: of a frame that it gets.
    is_repair: bool = false,
    spare: store.Place = store.no_place,
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
    if (self.slots.items.len == 0) return false;
    const access = self.local[page];
    if (access != .shared and access != .exclusive) return false;
    if (self.tables.find(page) != null or self.pending.find(page) != null) return false;
    if (hold.keeps(self, page) or hold.isDeferred(self, page)) return false;
    if (self.isHome(page)) return self.txns.find(page) == null and store.canPush(self, page);
    // Its last eviction may still be under way.
    return !self.slots.full() and slotOf(self, page) == null;
}

pub fn evict(self: anytype, page: Page, out: *Actions) void {
    if (!canEvict(self, page)) {
        self.stats.evict_refused += 1;
        return;
    }
    self.stats.evictions += 1;
    if (self.isHome(page)) return store.push(self, page, out);
    put.give(self, page, out);
}
