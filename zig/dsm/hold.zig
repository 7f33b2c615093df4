//! Forward progress. One guest instruction can need many pages at once; two nodes that take them
//! from each other could go on for ever. So the faults of a thread form a chain with one age, and a
//! page that an open chain acquired is held against revokes of younger chains: deferred, not
//! refused. A chain ends when its thread has run for `hold` after its last wake, where hold is the
//! time the last fault took, at most hold_ns_max. Older chains are never made to wait.
//!
//! Ages come from a logical clock (larger than any age seen before), so they need no common time
//! and no chain stays the youngest for ever. A deferred revoke also ends by its own deadline: an
//! old request may sit behind it in the home's queue, which would close a circle of waits.

const std = @import("std");
const types = @import("types.zig");
const core_file = @import("core.zig");
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

pub const Chain = struct {
    open: bool = false,
    waiting: bool = false,
    age: u64 = 0,
    /// The page waited for, since when; or until when the chain lasts without another fault.
    page: Page = types.page_none,
    since: u64 = 0,
    until: u64 = 0,
    pages: [pages_max]Page = @splat(types.page_none),
    next: u8 = 0,
};

pub const Holds = struct {
    chains: []Chain,
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

/// A fault opens a chain or goes on with its thread's open one.
pub fn begin(self: anytype, thread: u16, page: Page, out: *Actions) void {
    if (!enabled(self)) return;
    const chain = &self.holds.chains[thread];
    if (chain.open and !chain.waiting and self.now > chain.until) end(self, chain, out);
    if (!chain.open) {
        self.holds.clock += 1;
        chain.* = .{ .open = true, .age = self.holds.clock };
    }
    if (!chain.waiting or chain.page != page) chain.since = self.now;
    chain.waiting = true;
    chain.page = page;
}

/// The page is accessible: its waiters run, and hold it for a while.
pub fn woken(self: anytype, page: Page) void {
    if (!enabled(self)) return;
    for (self.holds.chains) |*chain| {
        if (!chain.waiting or chain.page != page) continue;
        chain.waiting = false;
        const took = std.math.clamp(self.now - chain.since, 1, self.config.hold_ns_max);
        chain.until = self.now + took;
        if (std.mem.findScalar(Page, &chain.pages, page) != null) continue;
        chain.pages[chain.next] = page;
        chain.next = (chain.next + 1) % pages_max;
    }
}

fn lasts(self: anytype, chain: *const Chain) bool {
    return chain.open and (chain.waiting or self.now <= chain.until);
}

/// A chain here that is older than the asker's still needs the page.
pub fn mustDefer(self: anytype, page: Page, age: u64, asker: Node) bool {
    if (!enabled(self)) return false;
    for (self.holds.chains) |*chain| {
        if (!lasts(self, chain)) continue;
        const elder = chain.age < age or (chain.age == age and self.config.node < asker);
        if (elder and std.mem.findScalar(Page, &chain.pages, page) != null) return true;
    }
    return false;
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
        const held = mustDefer(self, r.page, r.age, r.requester);
        if (held and self.now < r.until) {
            i += 1;
            continue;
        }
        if (held) self.stats.holds_broken += 1;
        self.holds.deferred_count -= 1;
        const rest = self.holds.deferred[i .. self.holds.deferred_count + 1];
        std.mem.copyForwards(Revoke, rest[0 .. rest.len - 1], rest[1..]);
        requester.answer(self, r, out);
        released += 1;
    }
}

pub fn tick(self: anytype, out: *Actions) void {
    for (self.holds.chains) |*chain| {
        if (chain.open and !lasts(self, chain)) chain.open = false;
    }
    release(self, out);
}

/// The earliest end of a chain, or of a revoke's patience, while any revoke waits.
pub fn nextDeadline(self: anytype) ?u64 {
    if (self.holds.deferred_count == 0) return null;
    var deadline: u64 = std.math.maxInt(u64);
    for (self.holds.deferred[0..self.holds.deferred_count]) |r| {
        deadline = @min(deadline, r.until);
        // More became free at once than one step may send.
        if (!mustDefer(self, r.page, r.age, r.requester)) return self.now;
    }
    for (self.holds.chains) |*chain| {
        if (chain.open and !chain.waiting) deadline = @min(deadline, chain.until + 1);
    }
    return deadline;
}
