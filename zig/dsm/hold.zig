//! Forward progress. One guest instruction can need many pages at once; two nodes that take them
//! from each other could go on for ever. So the faults of a thread form a chain with one age as
//! long as each follows soon after the wake of the one before (half the time that one took): they
//! may be one instruction. A page that an open chain acquired is held against revokes of younger
//! chains: deferred, not refused. Besides, every page stays for about as long as it took to get
//! it, at most hold_ns_max, whoever asks: at least half the time is progress.
//!
//! Ages come from a logical clock (larger than any age seen before), so they need no common time
//! and no chain stays the youngest for ever. A request that waits at its home behind the
//! transaction of a younger chain lends that one its age (hurry), and a node that asks for more
//! access answers what it has put aside for that page: so the oldest chain of all waits for
//! nobody longer than one hold. A deferred revoke also ends by its own deadline, counted from the
//! last page that its chain has got, whatever peers do.

const std = @import("std");
const types = @import("types.zig");
const core_file = @import("core.zig");
const home = @import("home.zig");
const requester = @import("requester.zig");
const Actions = core_file.Actions;
const Revoke = requester.Revoke;
const Page = types.Page;
const Node = types.Node;

/// Pages a chain holds, the latest ones: more than one x86 instruction can need (two operands,
/// stack and code across page borders, each with four levels of tables, and descriptors).
pub const pages_max = 32;
/// Revokes answered in one step: each may carry a page.
pub const release_max = 8;
/// A revoke waits at most so many times hold_ns_max.
const patience = 16;

/// A page that came after a wait.
pub const Kept = struct {
    page: Page = types.page_none,
    /// It stays until then, whoever asks.
    until: u64 = 0,
    /// Age of the chain that acquired it.
    age: u64 = 0,
};

pub const Chain = struct {
    open: bool = false,
    waiting: bool = false,
    age: u64 = 0,
    /// The page waited for, since when; or until when another fault still belongs to the chain.
    page: Page = types.page_none,
    since: u64 = 0,
    until: u64 = 0,
    kept: [pages_max]Kept = @splat(.{}),
    next: u8 = 0,
    /// Pages the open chain has acquired.
    acquired: u8 = 0,

    /// What is kept of a page, if anything.
    fn find(self: *Chain, page: Page) ?*Kept {
        for (&self.kept) |*k| if (k.page == page) return k;
        return null;
    }
};

pub const Holds = struct {
    chains: []Chain,
    /// Chains in use, the first ones: threads that have faulted.
    seen: u16 = 0,
    deferred: []Revoke,
    deferred_count: usize = 0,
    clock: u64 = 0,

    pub fn init(a: std.mem.Allocator, config: core_file.Config, revokes: usize) !Holds {
        const chains = try a.alloc(Chain, config.threads);
        errdefer a.free(chains);
        @memset(chains, .{});
        return .{ .chains = chains, .deferred = try a.alloc(Revoke, revokes) };
    }

    pub fn deinit(self: *Holds, a: std.mem.Allocator) void {
        a.free(self.chains);
        a.free(self.deferred);
    }
};

fn used(self: anytype) []Chain {
    return self.holds.chains[0..self.holds.seen];
}

fn enabled(self: anytype) bool {
    return self.config.hold_ns_max > 0;
}

/// A peer's age: this node's next chains are younger.
pub fn heard(self: anytype, age: u64) void {
    // Far from wrapping: a hostile age must not make this node's chains old again.
    if (enabled(self) and age < std.math.maxInt(u64) / 2) {
        self.holds.clock = @max(self.holds.clock, age);
    }
}

pub fn ageOf(self: anytype, thread: u16) u64 {
    return if (enabled(self)) self.holds.chains[thread].age else 0;
}

/// Of a request that belongs to no chain: younger than all that there are.
pub fn youngest(self: anytype) u64 {
    return if (enabled(self)) self.holds.clock + 1 else 0;
}

/// A fault opens a chain or goes on with its thread's open one.
pub fn begin(self: anytype, thread: u16, page: Page, out: *Actions) void {
    if (!enabled(self)) return;
    self.holds.seen = @max(self.holds.seen, thread + 1);
    const chain = &self.holds.chains[thread];
    // No instruction needs more pages than that.
    const full = chain.acquired >= pages_max;
    if (chain.open and (full or !gathers(self, chain))) end(self, chain, out);
    if (!chain.open) {
        self.holds.clock += 1;
        chain.open = true;
        chain.age = self.holds.clock;
        chain.acquired = 0;
    }
    if (!chain.waiting or chain.page != page) chain.since = self.now;
    chain.waiting = true;
    chain.page = page;
}

/// The page is accessible: its waiters run, and keep it for a while.
pub fn woken(self: anytype, page: Page) void {
    if (!enabled(self)) return;
    for (used(self)) |*chain| {
        if (!chain.waiting or chain.page != page) continue;
        chain.waiting = false;
        const took = std.math.clamp(self.now - chain.since, 1, self.config.hold_ns_max);
        chain.until = self.now + took / 2;
        const kept = chain.find(page) orelse new: {
            const slot = &chain.kept[chain.next];
            chain.next = (chain.next + 1) % pages_max;
            slot.* = .{ .page = page };
            break :new slot;
        };
        if (kept.age != chain.age) chain.acquired += 1;
        kept.until = self.now + took;
        kept.age = chain.age;
        renew(self, chain);
    }
}

/// The chain gets on: what it has put aside waits as long again.
fn renew(self: anytype, chain: *Chain) void {
    for (self.holds.deferred[0..self.holds.deferred_count]) |*r| {
        const kept = chain.find(r.page) orelse continue;
        if (kept.age == chain.age) r.until = self.now + patience * self.config.hold_ns_max;
    }
}

/// Whether what the thread does now may still be the instruction of its last fault.
fn gathers(self: anytype, chain: *const Chain) bool {
    return chain.open and (chain.waiting or self.now <= chain.until);
}

fn isElder(self: anytype, chain: *const Chain, age: u64, asker: Node) bool {
    return chain.age < age or (chain.age == age and self.config.node < asker);
}

/// The page was just acquired here, or an older chain than the asker's needs it still.
pub fn mustDefer(self: anytype, page: Page, age: u64, asker: Node) bool {
    if (!enabled(self)) return false;
    for (used(self)) |*chain| {
        const kept = chain.find(page) orelse continue;
        if (self.now <= kept.until) return true;
        const own = gathers(self, chain) and kept.age == chain.age;
        if (own and isElder(self, chain, age, asker)) return true;
    }
    return false;
}

/// Whether a chain of this node needs the page, or has only just got it.
pub fn keeps(self: anytype, page: Page) bool {
    if (!enabled(self)) return false;
    for (used(self)) |*chain| {
        const kept = chain.find(page) orelse continue;
        if (self.now <= kept.until) return true;
        if (gathers(self, chain) and kept.age == chain.age) return true;
    }
    return false;
}

/// Whether a revoke of the page waits here.
pub fn isDeferred(self: anytype, page: Page) bool {
    for (self.holds.deferred[0..self.holds.deferred_count]) |r| if (r.page == page) return true;
    return false;
}

/// When that may change without another event; null: only by one.
fn freeAt(self: anytype, r: Revoke) ?u64 {
    var at: u64 = self.now;
    for (used(self)) |*chain| {
        const kept = chain.find(r.page) orelse continue;
        if (self.now <= kept.until) at = @max(at, kept.until + 1);
        const own = gathers(self, chain) and kept.age == chain.age;
        if (!own or !isElder(self, chain, r.age, r.elder)) continue;
        if (chain.waiting) return null;
        at = @max(at, chain.until + 1);
    }
    return at;
}

pub fn postpone(self: anytype, r: Revoke) void {
    self.stats.revokes_deferred += 1;
    var later = r;
    later.until = self.now + patience * self.config.hold_ns_max;
    // One for each open transaction at most, and those have a record each.
    std.debug.assert(self.holds.deferred_count < self.holds.deferred.len);
    self.holds.deferred[self.holds.deferred_count] = later;
    self.holds.deferred_count += 1;
}

fn end(self: anytype, chain: *Chain, out: *Actions) void {
    chain.open = false;
    chain.waiting = false;
    release(self, out);
}

/// Answers revokes that nothing holds up any more, oldest first, at most release_max.
fn release(self: anytype, out: *Actions) void {
    var released: usize = 0;
    var i: usize = 0;
    while (i < self.holds.deferred_count and released < release_max) {
        const r = self.holds.deferred[i];
        const held = mustDefer(self, r.page, r.age, r.elder);
        if (held and self.now < r.until) {
            i += 1;
            continue;
        }
        if (held) self.stats.holds_broken += 1;
        answerDeferred(self, i, out);
        released += 1;
    }
}

fn answerDeferred(self: anytype, index: usize, out: *Actions) void {
    const r = self.holds.deferred[index];
    self.holds.deferred_count -= 1;
    const rest = self.holds.deferred[index .. self.holds.deferred_count + 1];
    std.mem.copyForwards(Revoke, rest[0 .. rest.len - 1], rest[1..]);
    requester.answer(self, r, out);
}

/// At the home: a request has to wait behind an open transaction. If it is of an older chain, those
/// who put that transaction's revokes aside have to know.
pub fn inherit(
    self: anytype,
    txn: *core_file.Txn,
    r: core_file.Request,
    out: *Actions,
) void {
    if (!enabled(self) or txn.phase != .strict or r.kind == .replicate) return;
    if (!isOlder(r.age, r.node, txn.age, txn.elder)) return;
    txn.age = r.age;
    txn.elder = r.node;
    // The asker itself has answered before it asked.
    var rest = txn.asked & ~home.bit(r.node);
    while (rest != 0) : (rest &= rest - 1) {
        self.stats.hurries += 1;
        out.send(@intCast(@ctz(rest)), .hurry, .{
            .kind = 0,
            .requester = r.node,
            .page = txn.page,
            .age = r.age,
        });
    }
    hurry(self, txn.page, r.age, r.node, out);
}

fn isOlder(age: u64, node: Node, than: u64, than_node: Node) bool {
    return age < than or (age == than and node < than_node);
}

/// An older chain waits for what may have been put aside here.
pub fn hurry(self: anytype, page: Page, age: u64, elder: Node, out: *Actions) void {
    for (self.holds.deferred[0..self.holds.deferred_count]) |*r| {
        if (r.page != page or !isOlder(age, elder, r.age, r.elder)) continue;
        r.age = age;
        r.elder = elder;
        return release(self, out);
    }
}

/// This node is about to ask for the page: a revoke of it that was put aside is answered now.
pub fn give(self: anytype, page: Page, out: *Actions) void {
    for (self.holds.deferred[0..self.holds.deferred_count], 0..) |r, i| {
        if (r.page == page) return answerDeferred(self, i, out);
    }
}

pub fn tick(self: anytype, out: *Actions) void {
    for (used(self)) |*chain| {
        if (chain.open and !gathers(self, chain)) chain.open = false;
    }
    release(self, out);
}

/// When the next deferred revoke may be answered, while any waits.
pub fn nextDeadline(self: anytype) ?u64 {
    if (self.holds.deferred_count == 0) return null;
    var deadline: u64 = std.math.maxInt(u64);
    for (self.holds.deferred[0..self.holds.deferred_count]) |r| {
        deadline = @min(deadline, r.until, freeAt(self, r) orelse r.until);
    }
    return deadline;
}
