//! A whole cluster small enough to enumerate: cores, lanes, memory, one guest thread a node and the
//! shell's rules (event queue of the userfaultfd, scan before sends). All state is plain bytes, so
//! a world can be copied and hashed. Each enabled transition leads to one next world; explorer.zig
//! walks them all. Checks are made in every transition: see Violation.

const std = @import("std");
const types = @import("types.zig");
const core_file = @import("core.zig");
const replicate = @import("replicate.zig");
const Core = core_file.Core;
const Actions = core_file.Actions;
const Msg = types.Msg;

pub const nodes_max = 3;
pub const pages_max = 3;
pub const ops_max = 4;
const lane_max = 12;
const transactions_max = 4;
const pendings_max = 2;
const events_max = 3;

pub const Violation = error{
    /// Two writers, or a writer beside a reader.
    WriterNotAlone,
    /// A readable copy that differs from the last write.
    StaleCopy,
    /// The core mapped over a present page, or changed an absent one.
    MappingWrong,
    /// A message that validate() refuses.
    MessageRefused,
    /// A blocked thread, and nothing will ever wake it.
    Deadlock,
    /// At rest, the directory is not the sum of the nodes.
    DirectoryWrong,
    /// A reader saw the flag but not the page-table entry written before it.
    OrderLost,
    /// Two different changes of one entry.
    EntryConflict,
    /// A page was copied out while its threads could still write it.
    CopiedWhileWritable,
};

/// What a guest thread does next: all pages are [2]u8; entry 0 is the page's word.
pub const Op = extern struct {
    kind: enum(u8) {
        read,
        write,
        /// Store `value` into entry 0 of the page.
        store,
        /// Wait until entry 0 has `value`.
        await,
        /// Entry 0 must have `value` now.
        expect,
    },
    page: u8 = 0,
    value: u8 = 0,
};

pub const Shape = struct {
    nodes: u8,
    pages: u8,
    /// Home of page i.
    homes: [pages_max]u8 = .{ 0, 0, 0 },
    /// Free operations (any read or write of any page) of each thread.
    free_ops: u8 = 0,
    /// Fixed programs, run in order instead.
    programs: [nodes_max][]const Op = .{ &.{}, &.{}, &.{} },
    /// Page 0 is the root page table; its entry 0 points at page 1 while it is nonzero.
    replicate: bool = false,
    mutation: core_file.Mutation = .none,
    /// The shell sends a step's messages before the diffs they depend on.
    diff_late: bool = false,
};

const Wire = extern struct { msg: Msg, data: [2]u8, pad: [6]u8 = @splat(0) };

const Lane = extern struct {
    count: u8 = 0,
    pad: [7]u8 = @splat(0),
    items: [lane_max]Wire = @splat(std.mem.zeroes(Wire)),
};

const Copy = extern struct {
    present: bool = false,
    writable: bool = false,
    data: [2]u8 = .{ 0, 0 },
};
const Twin = extern struct { used: bool = false, data: [2]u8 = .{ 0, 0 } };

const Thread = extern struct {
    next_op: u8 = 0,
    blocked: bool = false,
    page: u8 = 0,
    write: bool = false,
};

const FaultEvent = extern struct { page: u8 = 0, write: bool = false };

const NodeState = extern struct {
    access: [pages_max]types.Access = @splat(.invalid),
    directory: [pages_max]core_file.Entry = @splat(.{}),
    transactions: [transactions_max]core_file.Transaction = @splat(.{}),
    pendings: [pendings_max]core_file.Pending = @splat(.{}),
    memory: [pages_max]Copy = @splat(.{}),
    twins: [pages_max]Twin = @splat(.{}),
    thread: Thread = .{},
    event_count: u8 = 0,
    events: [events_max]FaultEvent = @splat(.{}),
};

pub const Transition = union(enum) {
    deliver: struct { from: u8, to: u8 },
    /// The shell reads the oldest fault event.
    fault: u8,
    /// The thread performs its next operation, or faults; for free operations `op` says which.
    run: struct { node: u8, op: Op },
    /// The kernel's root page table becomes known to node 0.
    root,
};

pub const World = extern struct {
    nodes: [nodes_max]NodeState = @splat(.{}),
    lanes: [nodes_max][nodes_max]Lane = @splat(@splat(.{})),
    /// What every readable copy of a strict page must contain.
    last: [pages_max][2]u8 = @splat(.{ 0, 0 }),
    rooted: bool = false,

    pub fn bytes(self: *const World) []const u8 {
        return std.mem.asBytes(self);
    }
};

/// One transition being made: the world it changes and the shape it lives in.
pub const Model = struct {
    shape: *const Shape,
    world: *World,

    fn core(self: *Model, node: u8) Core {
        const n = &self.world.nodes[node];
        return .{
            .config = .{
                .node = node,
                .node_count = self.shape.nodes,
                .page_count = self.shape.pages,
                .home = homes(self.shape),
                .replicate = self.shape.replicate,
                .threads = 1,
                .mutation = self.shape.mutation,
            },
            .access_of = n.access[0..self.shape.pages],
            .directory = n.directory[0..self.shape.pages],
            .transactions = &n.transactions,
            .pendings = &n.pendings,
        };
    }

    fn step(self: *Model, node: u8, event: types.Event, data: [2]u8) Violation!void {
        var out: Actions = .empty;
        var c = self.core(node);
        c.step(event, &out);
        var staged: Staged = .{};
        try self.perform(node, out.slice(), data, &staged);
        try self.release(node, &staged);
        try self.check();
    }

    const Outgoing = struct { to: u8, wire: Wire };
    const Staged = struct { items: [16]Outgoing = undefined, count: usize = 0 };

    fn perform(
        self: *Model,
        node: u8,
        actions: []const types.Action,
        data: [2]u8,
        staged: *Staged,
    ) Violation!void {
        const n = &self.world.nodes[node];
        for (actions) |action| switch (action) {
            .install => |i| {
                if (n.memory[i.page].present) return error.MappingWrong;
                const content = if (i.source == .zero) [2]u8{ 0, 0 } else data;
                const writable = i.access == .exclusive;
                n.memory[i.page] = .{ .present = true, .writable = writable, .data = content };
                if (i.wake) wake(n, i.page);
            },
            .protect => |p| {
                if (!n.memory[p].present) return error.MappingWrong;
                n.memory[p].writable = false;
            },
            .unprotect => |p| {
                if (!n.memory[p].present) return error.MappingWrong;
                n.memory[p].writable = true;
                wake(n, p);
            },
            .drop => |p| n.memory[p] = .{},
            .wake => |p| wake(n, p),
            .install_replica => |r| {
                if (n.memory[r.page].present) return error.MappingWrong;
                n.memory[r.page] = .{ .present = true, .writable = true, .data = data };
                n.twins[r.page] = .{ .used = true, .data = data };
                wake(n, r.page);
                try self.children(node, @intCast(r.page), r.level, staged);
            },
            .twin => |t| {
                n.twins[t.page] = .{ .used = true, .data = n.memory[t.page].data };
                try self.children(node, @intCast(t.page), t.level, staged);
            },
            .forget_replica => |p| n.twins[p] = .{},
            .patch => |p| {
                const old: u8 = @truncate(p.old);
                const new: u8 = @truncate(p.new);
                const current = n.memory[p.page].data[p.index];
                if (current != old and current != new) return error.EntryConflict;
                n.memory[p.page].data[p.index] = new;
                n.twins[p.page].data[p.index] = new;
            },
            .send => |s| {
                const copy = n.memory[s.msg.page];
                if (s.msg.hasData() and !copy.present) return error.MappingWrong;
                if (s.msg.hasData() and copy.writable) return error.CopiedWhileWritable;
                const content = if (s.msg.hasData()) copy.data else [2]u8{ 0, 0 };
                const wire: Wire = .{ .msg = s.msg, .data = content };
                staged.items[staged.count] = .{ .to = s.to, .wire = wire };
                staged.count += 1;
            },
            .fatal => return error.EntryConflict,
        };
    }

    fn children(self: *Model, node: u8, page: u8, level: u8, staged: *Staged) Violation!void {
        const n = &self.world.nodes[node];
        if (level != 4 or n.twins[page].data[0] == 0) return;
        var out: Actions = .empty;
        var c = self.core(node);
        c.step(.{ .child = .{ .parent = page, .index = 256, .page = 1, .level = 1 } }, &out);
        try self.perform(node, out.slice(), .{ 0, 0 }, staged);
    }

    /// The scan of replicas comes before the sends, unless the planted defect says otherwise.
    fn release(self: *Model, node: u8, staged: *Staged) Violation!void {
        var tells = false;
        for (staged.items[0..staged.count]) |s| tells = tells or s.wire.msg.tells();
        if (self.shape.diff_late) self.send(node, staged);
        if (self.shape.replicate and tells) try self.scan(node);
        if (!self.shape.diff_late) self.send(node, staged);
    }

    fn send(self: *Model, node: u8, staged: *Staged) void {
        for (staged.items[0..staged.count]) |s| {
            const lane = &self.world.lanes[node][s.to];
            lane.items[lane.count] = s.wire;
            lane.count += 1;
        }
        staged.count = 0;
    }

    fn scan(self: *Model, node: u8) Violation!void {
        const n = &self.world.nodes[node];
        for (0..self.shape.pages) |p| for (0..2) |i| {
            if (!n.twins[p].used or n.twins[p].data[i] == n.memory[p].data[i]) continue;
            const old = n.twins[p].data[i];
            const new = n.memory[p].data[i];
            n.twins[p].data[i] = new;
            var out: Actions = .empty;
            var c = self.core(node);
            const child: types.Page = 1;
            const table = p == 0 and i == 0;
            c.step(.{
                .replica_changed = .{
                    .page = @intCast(p),
                    // Entry 0 stands for the first entry of the kernel's half.
                    .index = if (p == 0) 256 else 0,
                    .old = old,
                    .new = new,
                    .old_child = if (table and old != 0) child else null,
                    .new_child = if (table and new != 0) child else null,
                },
            }, &out);
            var staged: Staged = .{};
            try self.perform(node, out.slice(), .{ 0, 0 }, &staged);
            for (staged.items[0..staged.count]) |*s| {
                const diff = s.wire.msg.kind == @backingInt(types.MsgKind.diff);
                if (diff) s.wire.msg.index = @intCast(i);
            }
            self.send(node, &staged);
        };
    }

    fn wake(n: *NodeState, page: types.Page) void {
        if (n.thread.blocked and n.thread.page == page) n.thread.blocked = false;
    }

    pub fn apply(self: *Model, transition: Transition) Violation!void {
        switch (transition) {
            .deliver => |d| {
                const lane = &self.world.lanes[d.from][d.to];
                const wire = lane.items[0];
                std.mem.copyForwards(Wire, lane.items[0 .. lane_max - 1], lane.items[1..]);
                lane.count -= 1;
                lane.items[lane.count] = std.mem.zeroes(Wire);
                const c = self.core(d.to);
                c.validate(d.from, wire.msg) catch return error.MessageRefused;
                const event: types.Event = .{
                    .message = .{ .from = d.from, .msg = wire.msg, .now = 0 },
                };
                try self.step(d.to, event, wire.data);
            },
            .fault => |node| {
                const n = &self.world.nodes[node];
                const e = n.events[0];
                std.mem.copyForwards(FaultEvent, n.events[0 .. events_max - 1], n.events[1..]);
                n.event_count -= 1;
                n.events[n.event_count] = .{};
                const event: types.Event = .{
                    .fault = .{ .page = e.page, .write = e.write, .thread = 0, .now = 0 },
                };
                try self.step(node, event, .{ 0, 0 });
            },
            .root => {
                self.world.rooted = true;
                try self.step(0, .{ .root = .{ .page = 0 } }, .{ 0, 0 });
            },
            .run => |r| try self.run(r.node, r.op),
        }
    }

    fn run(self: *Model, node: u8, op: Op) Violation!void {
        const n = &self.world.nodes[node];
        const copy = &n.memory[op.page];
        const write = op.kind == .write or op.kind == .store;
        if (!copy.present or (write and !copy.writable)) {
            n.thread.blocked = true;
            n.thread.page = op.page;
            n.thread.write = write;
            n.events[n.event_count] = .{ .page = op.page, .write = write };
            n.event_count += 1;
            return;
        }
        switch (op.kind) {
            .read => {},
            .write => self.put(node, op.page, (copy.data[0] + 1) & 3),
            .store => self.put(node, op.page, op.value),
            // Enabled only when it holds.
            .await => {},
            .expect => if (copy.data[0] != op.value) return error.OrderLost,
        }
        n.thread.next_op += 1;
        try self.check();
    }

    fn put(self: *Model, node: u8, page: u8, value: u8) void {
        self.world.nodes[node].memory[page].data[0] = value;
        self.world.last[page][0] = value;
    }

    /// The invariants of every state.
    fn check(self: *Model) Violation!void {
        for (0..self.shape.pages) |p| {
            var writers: u32 = 0;
            var present: u32 = 0;
            var replica = false;
            for (self.world.nodes[0..self.shape.nodes]) |n| {
                replica = replica or n.twins[p].used;
                if (!n.memory[p].present) continue;
                present += 1;
                writers += @intFromBool(n.memory[p].writable);
            }
            if (replica) continue;
            if (writers > 1 or (writers == 1 and present > 1)) return error.WriterNotAlone;
            for (self.world.nodes[0..self.shape.nodes]) |n| {
                if (n.memory[p].present and n.memory[p].data[0] != self.world.last[p][0]) {
                    return error.StaleCopy;
                }
            }
        }
    }

    /// At rest: nothing in flight, every thread done, directory and nodes agree.
    pub fn checkRest(self: *Model) Violation!void {
        for (self.world.nodes[0..self.shape.nodes], 0..) |n, i| {
            if (n.thread.blocked) return error.Deadlock;
            if (n.thread.next_op < self.opCount(@intCast(i))) return error.Deadlock;
        }
        for (0..self.shape.pages) |p| {
            const home = self.shape.homes[p];
            const entry = self.world.nodes[home].directory[p];
            for (self.world.nodes[0..self.shape.nodes], 0..) |n, i| {
                const listed: types.Access = switch (entry.state) {
                    .untouched => .invalid,
                    .shared => if (entry.sharers >> @intCast(i) & 1 != 0) .shared else .invalid,
                    .exclusive => if (entry.owner == i) .exclusive else .invalid,
                    .replicated => .replicated,
                };
                if (n.access[p] != listed) return error.DirectoryWrong;
                if (n.memory[p].present != (listed != .invalid)) return error.DirectoryWrong;
            }
            for (self.world.nodes[home].transactions) |t| if (t.open) return error.DirectoryWrong;
        }
    }

    pub fn opCount(self: *const Model, node: u8) u8 {
        if (self.shape.free_ops != 0) return self.shape.free_ops;
        return @intCast(self.shape.programs[node].len);
    }
};

fn homes(shape: *const Shape) []const core_file.HomeRange {
    // One range a page, in static storage per home assignment.
    const Table = struct {
        const all = blk: {
            var list: [27][pages_max]core_file.HomeRange = undefined;
            for (0..27) |k| {
                const digits = [3]u8{ k / 9, k / 3 % 3, k % 3 };
                for (0..pages_max) |p| list[k][p] = .{ .first_page = p, .node = digits[p] };
            }
            break :blk list;
        };
    };
    const h = shape.homes;
    return &Table.all[@as(usize, h[0]) * 9 + h[1] * 3 + h[2]];
}

/// Every transition enabled in the world.
pub fn enabled(shape: *const Shape, world: *const World, out: *[64]Transition) []Transition {
    var count: usize = 0;
    for (0..shape.nodes) |from| for (0..shape.nodes) |to| {
        if (world.lanes[from][to].count == 0) continue;
        out[count] = .{ .deliver = .{ .from = @intCast(from), .to = @intCast(to) } };
        count += 1;
    };
    if (shape.replicate and !world.rooted and world.nodes[0].memory[0].present) {
        out[count] = .root;
        count += 1;
    }
    for (world.nodes[0..shape.nodes], 0..) |n, i| {
        if (n.event_count > 0) {
            out[count] = .{ .fault = @intCast(i) };
            count += 1;
        }
        if (n.thread.blocked) continue;
        // A woken thread may also do something else first: an interrupt came in between.
        if (shape.free_ops != 0) {
            if (n.thread.next_op >= shape.free_ops) continue;
            for (0..shape.pages) |p| for ([_]bool{ false, true }) |write| {
                const op: Op = .{ .kind = if (write) .write else .read, .page = @intCast(p) };
                if (n.event_count == events_max and faults(n, op)) continue;
                out[count] = .{ .run = .{ .node = @intCast(i), .op = op } };
                count += 1;
            };
            continue;
        }
        const program = shape.programs[i];
        if (n.thread.next_op >= program.len) continue;
        const op = program[n.thread.next_op];
        if (n.event_count == events_max and faults(n, op)) continue;
        const sees = faults(n, op) or n.memory[op.page].data[0] == op.value;
        if (op.kind == .await and !sees) continue;
        out[count] = .{ .run = .{ .node = @intCast(i), .op = op } };
        count += 1;
    }
    return out[0..count];
}

fn faults(n: NodeState, op: Op) bool {
    const write = op.kind == .write or op.kind == .store;
    const copy = n.memory[op.page];
    return !copy.present or (write and !copy.writable);
}
