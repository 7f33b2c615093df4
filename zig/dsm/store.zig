//! Backing frames: a home pushes pages of its own out to memory nodes, and fetches them when they
//! are asked for. Each home has a private range of frames on each memory node, so nobody else has a
//! say in it: pushing out is one message and its acknowledgement a copy, and the page's directory
//! entry names the frames. Until every copy is acknowledged the bytes stay in a write-back slot,
//! and a request meanwhile takes them from there. Frames are freed by the home alone, without a
//! word: the lane to the memory node is in order. Sequence numbers tell late answers from current
//! ones.

const std = @import("std");
const types = @import("types.zig");
const core_file = @import("core.zig");
const evict = @import("evict.zig");
const home = @import("home.zig");
const repair = @import("repair.zig");
const Actions = core_file.Actions;
const Txn = core_file.Txn;
const Page = types.Page;
const Node = types.Node;

/// A frame in the home's own numbering: over all its ranges, in their order.
pub const Place = u32;
pub const no_place: Place = std.math.maxInt(Place);

pub const copies_max = 2;

/// Where a stored page is: in its directory entry, in the place of the sharers.
pub const Copies = packed struct(u64) {
    first: Place = no_place,
    second: Place = no_place,

    pub fn of(entry: core_file.Entry) Copies {
        std.debug.assert(entry.state == .stored);
        return @bitCast(entry.sharers);
    }

    pub fn list(self: Copies) [copies_max]Place {
        return .{ self.first, self.second };
    }

    pub fn count(self: Copies) u8 {
        return @as(u8, @intFromBool(self.first != no_place)) +
            @intFromBool(self.second != no_place);
    }

    pub fn add(self: *Copies, place: Place) void {
        if (self.first == no_place) self.first = place else self.second = place;
    }

    fn has(self: Copies, place: Place) bool {
        return self.first == place or self.second == place;
    }
};

/// This home's frames on one memory node.
pub const Lot = struct {
    node: Node,
    /// Its first frame by the memory node's numbering, and by the home's.
    first_frame: u32,
    first_place: Place,
    count: u32,
    free: u32,
    /// Frames from here on have never been used.
    fresh: u32 = 0,
    /// First of the others that are free: its place + 1; 0: none.
    returned: u32 = 0,
    is_lost: bool = false,

    fn has(self: Lot, place: Place) bool {
        return place >= self.first_place and place - self.first_place < self.count;
    }
};

pub const Store = struct {
    lots: []Lot,
    /// Of each place: the page it holds; of a free one the next free one of its lot + 1, or 0.
    pages: []u32,
    sequence: u32 = 0,
    /// Stored pages with fewer copies than Config.frame_copies.
    singles: u64 = 0,
    /// Memory nodes that are gone, and how often that happened.
    lost: types.Nodes = 0,
    epoch: u32 = 0,
    repair: repair.Repair = .{},

    pub fn init(a: std.mem.Allocator, config: core_file.Config) !Store {
        const lots = try a.alloc(Lot, config.frames.len);
        errdefer a.free(lots);
        var total: u32 = 0;
        for (lots, config.frames) |*lot, range| {
            lot.* = .{
                .node = range.node,
                .first_frame = range.first,
                .first_place = total,
                .count = range.count,
                .free = range.count,
            };
            total += range.count;
        }
        const memory = core_file.memoryOf(config, a);
        return .{ .lots = lots, .pages = try memory.alloc(u32, total) };
    }

    pub fn deinit(self: *Store, a: std.mem.Allocator, config: core_file.Config) void {
        a.free(self.lots);
        core_file.memoryOf(config, a).free(u32, self.pages);
    }

    /// The memory nodes that have a stored page.
    pub fn nodesOf(self: *const Store, entry: core_file.Entry) types.Nodes {
        var nodes: types.Nodes = 0;
        for (Copies.of(entry).list()) |place| {
            if (place != no_place) nodes |= home.bit(self.lotOf(place).node);
        }
        return nodes;
    }

    pub fn lotOf(self: *const Store, place: Place) *Lot {
        for (self.lots) |*lot| if (lot.has(place)) return lot;
        unreachable;
    }

    pub fn lends(self: *const Store, node: Node) bool {
        for (self.lots) |lot| if (lot.node == node) return true;
        return false;
    }

    /// The memory node with the most free frames, `not` left out; null: none has any.
    pub fn roomiest(self: *const Store, not: Node) ?*Lot {
        var best: ?*Lot = null;
        for (self.lots) |*lot| {
            if (lot.free == 0 or lot.node == not or lot.is_lost) continue;
            if (best == null or lot.free > best.?.free) best = lot;
        }
        return best;
    }

    pub fn take(self: *Store, lot: *Lot, page: Page) Place {
        lot.free -= 1;
        if (lot.returned == 0) {
            lot.fresh += 1;
            const place = lot.first_place + lot.fresh - 1;
            self.pages[place] = page;
            return place;
        }
        const place = lot.returned - 1;
        lot.returned = self.pages[place];
        self.pages[place] = page;
        return place;
    }

    pub fn free(self: *Store, place: Place) void {
        const lot = self.lotOf(place);
        if (lot.is_lost) return;
        self.pages[place] = lot.returned;
        lot.returned = place + 1;
        lot.free += 1;
        self.repair.is_due = self.epoch > 0;
    }

    fn hasLosses(self: *const Store) bool {
        for (self.lots) |lot| if (lot.is_lost) return true;
        return false;
    }

    pub fn next(self: *Store) u32 {
        self.sequence +%= 1;
        return self.sequence;
    }

    /// Frames that hold a page, or are about to.
    pub fn inUse(self: *const Store) u64 {
        var n: u64 = 0;
        for (self.lots) |lot| n += if (lot.is_lost) 0 else lot.count - lot.free;
        return n;
    }
};

/// Whether a quiet page of this home can leave: others have it, or there is a slot and frames.
/// After a loss one frame must do where there are no two.
pub fn canPush(self: anytype, page: Page) bool {
    if (isSharedElsewhere(self, page)) return true;
    if (self.slots.full()) return false;
    const first = self.store.roomiest(types.node_none) orelse return false;
    const needs_another = self.config.frame_copies > 1 and !self.store.hasLosses();
    return !needs_another or self.store.roomiest(first.node) != null;
}

fn isSharedElsewhere(self: anytype, page: Page) bool {
    const entry = self.directory[page];
    return entry.state == .shared and entry.sharers != home.bit(self.config.node);
}

/// Pushes the page out. It is present here, and quiet.
pub fn push(self: anytype, page: Page, out: *Actions) void {
    const entry = &self.directory[page];
    if (isSharedElsewhere(self, page)) {
        entry.sharers &= ~home.bit(self.config.node);
        self.local[page] = .invalid;
        return out.add(.{ .drop = page });
    }
    if (self.local[page] == .exclusive) out.add(.{ .protect = page });
    const slot = self.slots.put(page, .{ .use = .store, .sequence = self.store.next() });
    out.add(.{ .save = .{ .page = page, .slot = evict.numberOf(self, page) } });
    out.add(.{ .drop = page });
    self.local[page] = .invalid;
    var copies: Copies = .{};
    while (copies.count() < self.config.frame_copies) {
        copies.add(takeElsewhere(self, page, copies) orelse break);
    }
    entry.state = .stored;
    entry.sharers = @bitCast(copies);
    self.store.singles += isSingle(self, copies);
    for (copies.list()) |place| if (place != no_place) sendCopy(self, slot, place, out);
}

fn isSingle(self: anytype, copies: Copies) u1 {
    return @intFromBool(copies.count() < self.config.frame_copies);
}

/// Another frame for the page, on a memory node that has none of its copies.
pub fn takeElsewhere(self: anytype, page: Page, copies: Copies) ?Place {
    const is_first = copies.count() == 0;
    const not = if (is_first) types.node_none else self.store.lotOf(copies.first).node;
    const lot = self.store.roomiest(not) orelse return null;
    return self.store.take(lot, page);
}

/// Those of the copies whose memory node is there.
pub fn alive(self: anytype, copies: Copies) Copies {
    var rest: Copies = .{};
    for (copies.list()) |place| {
        if (place != no_place and !self.store.lotOf(place).is_lost) rest.add(place);
    }
    return rest;
}

/// The page's copies are these now.
pub fn relist(self: anytype, page: Page, copies: Copies) void {
    const entry = &self.directory[page];
    self.store.singles -= isSingle(self, .of(entry.*));
    self.store.singles += isSingle(self, copies);
    entry.sharers = @bitCast(copies);
}

/// The page that has a copy at that place.
pub fn pageAt(self: anytype, place: Place) ?Page {
    const page = self.store.pages[place];
    if (page >= self.config.page_count or self.directory[page].state != .stored) return null;
    return if (Copies.of(self.directory[page]).has(place)) page else null;
}

pub fn sendCopy(self: anytype, slot: *evict.Slot, place: Place, out: *Actions) void {
    const lot = self.store.lotOf(place);
    self.stats.frames_stored += 1;
    slot.missing |= home.bit(lot.node);
    out.add(.{ .send = .{
        .to = lot.node,
        .msg = message(self, .frame_put, slot.page, place, slot.sequence),
        .slot = evict.numberOf(self, slot.page),
    } });
}

fn message(self: anytype, kind: types.MsgKind, page: Page, place: Place, sequence: u32) types.Msg {
    const lot = self.store.lotOf(place);
    return .{
        .kind = @backingInt(kind),
        .flags = if (kind == .frame_put) types.flag_data else 0,
        .requester = self.config.node,
        .page = page,
        .version = sequence,
        .old = lot.first_frame + (place - lot.first_place),
    };
}

/// frame_ack: of this store, or of one that is history.
pub fn acked(self: anytype, from: Node, msg: types.Msg) void {
    const slot = evict.slotOf(self, msg.page) orelse return;
    if (slot.use != .store or slot.sequence != msg.version) return;
    slot.missing &= ~home.bit(from);
    if (slot.missing != 0) return;
    if (slot.is_repair) self.stats.repaired += 1;
    release(self, msg.page);
}

/// The slot is free for another page.
pub fn release(self: anytype, page: Page) void {
    if (evict.slotOf(self, page).?.is_repair) self.store.repair.active -= 1;
    self.slots.remove(page);
    self.store.repair.is_due = self.store.epoch > 0;
}

/// The slot that still has a stored page's bytes.
fn filledSlot(self: anytype, page: Page) ?types.SlotNumber {
    const slot = evict.slotOf(self, page) orelse return null;
    return if (slot.use == .store) evict.numberOf(self, page) else null;
}

/// A request's turn, for a stored page: fetch it first.
pub fn load(self: anytype, page: Page, txn: *Txn, out: *Actions) void {
    if (filledSlot(self, page)) |slot| {
        restore(self, page, .{ .slot = slot }, out);
        return goOn(self, page, txn, out);
    }
    txn.phase = .load;
    ask(self, page, txn, out);
}

/// Also again, when the memory node that was asked is lost.
pub fn ask(self: anytype, page: Page, txn: *Txn, out: *Actions) void {
    const copies = alive(self, .of(self.directory[page]));
    if (copies.count() == 0) return repair.pageLost(page, out);
    txn.place = copies.first;
    if (self.has(.frame_early)) freeAll(self, copies);
    txn.sequence = self.store.next();
    const to = self.store.lotOf(txn.place).node;
    out.send(to, .frame_get, message(self, .frame_get, page, txn.place, txn.sequence));
}

/// Whether frame_data is what the page's transaction waits for.
pub fn isAwaited(self: anytype, from: Node, msg: types.Msg) bool {
    const txn = self.txns.find(msg.page) orelse return false;
    if (txn.phase != .load or txn.sequence != msg.version) return false;
    return self.store.lotOf(txn.place).node == from;
}

/// frame_data, awaited.
pub fn arrived(self: anytype, page: Page, out: *Actions) void {
    const txn = self.txns.find(page).?;
    txn.phase = .strict;
    self.stats.frames_loaded += 1;
    if (txn.request.kind == .repair) return repair.copied(self, page, txn, out);
    restore(self, page, .message, out);
    goOn(self, page, txn, out);
}

/// A fault at home, when the page is on its way out and no request is open: nothing to ask.
pub fn takeBack(self: anytype, page: Page, out: *Actions) bool {
    const slot = filledSlot(self, page) orelse return false;
    restore(self, page, .{ .slot = slot }, out);
    return true;
}

/// The page's frames and slot are free.
pub fn forget(self: anytype, page: Page) void {
    const copies: Copies = .of(self.directory[page]);
    if (!self.has(.frame_early)) freeAll(self, copies);
    self.store.singles -= isSingle(self, copies);
    if (evict.slotOf(self, page) != null) release(self, page);
}

/// The same for good: the memory nodes may give the frames' memory back.
pub fn dismiss(self: anytype, page: Page, out: *Actions) void {
    for (alive(self, .of(self.directory[page])).list()) |place| {
        if (place == no_place) continue;
        const to = self.store.lotOf(place).node;
        self.stats.frames_freed += 1;
        out.add(.{ .send = .{ .to = to, .msg = message(self, .frame_free, page, place, 0) } });
    }
    forget(self, page);
}

/// A store under way that no memory node has room for: the page stays here.
pub fn undo(self: anytype, page: Page, out: *Actions) void {
    self.stats.stores_undone += 1;
    restore(self, page, .{ .slot = evict.numberOf(self, page) }, out);
}

fn freeAll(self: anytype, copies: Copies) void {
    for (copies.list()) |place| if (place != no_place) self.store.free(place);
}

/// The page is here again, and nowhere else.
fn restore(self: anytype, page: Page, source: types.Source, out: *Actions) void {
    const entry = &self.directory[page];
    forget(self, page);
    home.own(self, entry, self.config.node);
    self.local[page] = .exclusive;
    self.versions[page] = entry.version;
    out.add(.{ .install = .{
        .page = page,
        .access = .exclusive,
        .source = source,
        .wake = true,
    } });
}

/// The transaction that had to fetch the page first. What the home itself wanted of it, it has.
fn goOn(self: anytype, page: Page, txn: *Txn, out: *Actions) void {
    const is_own = txn.request.node == self.config.node and txn.request.kind.isAccess();
    home.settleOwn(self, page);
    if (is_own) return home.next(self, page, txn, out);
    home.begin(self, page, txn, out);
}
