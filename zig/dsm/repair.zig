//! Loss of a memory node, at a home that had frames there. Its frames are void at once: whatever
//! uses one checks. What is under way goes elsewhere: loads to the other copy, stores to another
//! memory node, or back into the home's own memory. A page whose only copy is gone ends the VM.
//! What is left with one copy is copied in the background, a few pages at a time, through slots;
//! guest memory has no part in it. All of it goes on in small pieces, by ticks.

const types = @import("types.zig");
const core_file = @import("core.zig");
const evict = @import("evict.zig");
const home = @import("home.zig");
const store = @import("store.zig");
const Actions = core_file.Actions;
const Copies = store.Copies;
const Place = store.Place;
const Txn = core_file.Txn;
const Page = types.Page;
const Node = types.Node;

/// Pages that are being copied at a time.
pub const window = 4;
/// Places looked at in one step.
const walk_max = 4096;
/// And while nothing new is known: what could not be copied before may find room now.
const idle_walk_max = 64;

pub const Repair = struct {
    /// Looking for what the loss touches: how far it has got, in slots, transactions, places.
    is_recovering: bool = false,
    slot: u32 = 0,
    txn: u32 = 0,
    place: Place = 0,
    /// Looking for pages with one copy: the next place, and how many are still to be looked at
    /// since the loss.
    next: Place = 0,
    left: Place = 0,
    active: u8 = 0,
    /// A slot or a frame has become free: there may be something to do.
    is_due: bool = false,
};

pub fn lost(self: anytype, node: Node, out: *Actions) void {
    const s = &self.store;
    if (self.compute & home.bit(node) != 0 or s.lost & home.bit(node) != 0) return;
    s.lost |= home.bit(node);
    s.epoch += 1;
    for (s.lots) |*lot| {
        if (lot.node == node) lot.is_lost = true;
    }
    const active = s.repair.active;
    s.repair = .{ .is_recovering = true, .active = active };
    recover(self, out);
}

/// Time has passed, or the step before left something to do.
pub fn goOn(self: anytype, out: *Actions) void {
    if (self.store.repair.is_recovering) recover(self, out);
    if (!self.store.repair.is_recovering) copyMore(self, out);
}

/// Whether a tick is needed now.
pub fn isDue(self: anytype) bool {
    const r = &self.store.repair;
    if (r.is_recovering) return true;
    return self.store.singles > 0 and r.left > 0 and canStart(self);
}

fn recover(self: anytype, out: *Actions) void {
    const r = &self.store.repair;
    while (r.slot < self.slots.items.len) : (r.slot += 1) {
        if (isLong(out)) return;
        recoverSlot(self, &self.slots.items[r.slot], out);
    }
    while (r.txn < self.txns.items.len) : (r.txn += 1) {
        if (isLong(out)) return;
        const txn = &self.txns.items[r.txn];
        if (txn.page == types.page_none or txn.phase != .load) continue;
        if (!self.store.lotOf(txn.place).is_lost) continue;
        self.stats.loads_again += 1;
        store.ask(self, txn.page, txn, out);
    }
    var steps: usize = walk_max;
    while (r.place < self.store.pages.len) : (r.place += 1) {
        if (steps == 0 or isLong(out)) return;
        steps -= 1;
        recoverPlace(self, r.place, out);
    }
    r.is_recovering = false;
    r.left = @intCast(self.store.pages.len);
    r.is_due = true;
}

/// The rest waits for a tick.
fn isLong(out: *const Actions) bool {
    return out.count > Actions.capacity / 2;
}

/// A store under way needs no word from the lost node any more, and another copy instead.
fn recoverSlot(self: anytype, slot: *evict.Slot, out: *Actions) void {
    const page = slot.page;
    if (page == types.page_none or slot.use == .put) return;
    var copies: Copies = .of(self.directory[page]);
    if (slot.use == .copy) {
        if (slot.spare == store.no_place or !self.store.lotOf(slot.spare).is_lost) return;
        slot.spare = store.takeElsewhere(self, page, copies) orelse store.no_place;
        return;
    }
    const alive = store.alive(self, copies);
    slot.missing &= ~self.store.lost;
    if (alive.count() < copies.count()) {
        copies = alive;
        while (copies.count() < self.config.frame_copies) {
            const place = store.takeElsewhere(self, page, copies) orelse break;
            copies.add(place);
            store.sendCopy(self, slot, place, out);
        }
        store.relist(self, page, copies);
    }
    // No room anywhere: the bytes are here still.
    if (copies.count() == 0) return store.undo(self, page, out);
    if (slot.missing == 0) store.release(self, page);
}

fn recoverPlace(self: anytype, place: Place, out: *Actions) void {
    if (!self.store.lotOf(place).is_lost) return;
    const page = store.pageAt(self, place) orelse return;
    const copies = store.alive(self, .of(self.directory[page]));
    if (copies.count() == 0) return pageLost(page, out);
    store.relist(self, page, copies);
}

pub fn pageLost(page: Page, out: *Actions) void {
    out.add(.{ .fatal = .{ .page = page, .code = types.fatal_page_lost } });
}

fn canStart(self: anytype) bool {
    return self.store.repair.active < window and !self.slots.full() and !self.txns.full();
}

/// Looks for pages with one copy and begins to copy them.
fn copyMore(self: anytype, out: *Actions) void {
    const s = &self.store;
    s.repair.is_due = false;
    if (s.singles == 0) return;
    const is_new = s.repair.left > 0;
    var steps: usize = if (is_new) walk_max else idle_walk_max;
    while (steps > 0 and canStart(self)) : (steps -= 1) {
        if (is_new and s.repair.left == 0) return;
        s.repair.left -|= 1;
        const place = s.repair.next;
        s.repair.next = (place + 1) % @as(Place, @intCast(s.pages.len));
        begin(self, place, out);
    }
}

/// The page with its only copy there is read into a slot, and from there written elsewhere.
fn begin(self: anytype, place: Place, out: *Actions) void {
    if (self.store.lotOf(place).is_lost) return;
    const page = store.pageAt(self, place) orelse return;
    const copies: Copies = .of(self.directory[page]);
    if (copies.count() == self.config.frame_copies) return;
    if (evict.slotOf(self, page) != null or self.txns.find(page) != null) return;
    const spare = store.takeElsewhere(self, page, copies) orelse return;
    self.store.repair.active += 1;
    if (self.has(.repair_early)) {
        var early = copies;
        early.add(spare);
        store.relist(self, page, early);
    }
    _ = self.slots.put(page, .{ .use = .copy, .is_repair = true, .spare = spare });
    const txn = self.txns.put(page, .{ .request = .{
        .node = self.config.node,
        .kind = .repair,
        .version = 0,
        .age = 0,
    } });
    store.load(self, page, txn, out);
}

/// The bytes have come: from now on this is a store with one copy acknowledged already.
pub fn copied(self: anytype, page: Page, txn: *Txn, out: *Actions) void {
    const slot = evict.slotOf(self, page).?;
    if (slot.spare == store.no_place) {
        // Its memory node was lost, too, and no other one has room.
        store.release(self, page);
        return home.next(self, page, txn, out);
    }
    const place = slot.spare;
    slot.use = .store;
    slot.spare = store.no_place;
    slot.sequence = self.store.next();
    out.add(.{ .keep = evict.numberOf(self, page) });
    var copies: Copies = .of(self.directory[page]);
    copies.add(place);
    store.relist(self, page, copies);
    store.sendCopy(self, slot, place, out);
    home.next(self, page, txn, out);
}
