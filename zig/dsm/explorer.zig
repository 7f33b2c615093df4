//! The exhaustive explorer: every interleaving of a small machine (model.zig). Guest threads choose
//! freely among loads and stores (or follow a script), lanes deliver in any order among each
//! other, deadlines pass at any time. Checked in every state: one writer or many readers, a load
//! returns the last store, versions grow, installs meet no present page. Checked over the
//! whole graph: from every state a quiet one can be reached, where the directories are right.

const std = @import("std");
const types = @import("types.zig");
const core_file = @import("core.zig");
const model_file = @import("model.zig");
const fingerprint = @import("fingerprint.zig");
const Failure = model_file.Failure;
const Op = model_file.Op;

pub const Options = struct {
    nodes: u8 = 2,
    pages: u8 = 1,
    /// Free operations of each node's thread; with a script its length counts.
    operations: u8 = 3,
    homes: []const core_file.HomeRange = &.{.{ .first_page = 0, .node = 0 }},
    /// One script a node, instead of free choice.
    scripts: ?[]const []const Op = null,
    /// Stores done in order before the exploration, all by node 0.
    prepare: []const Op = &.{},
    /// This page is sampled as root by node 0, at any time.
    root: ?u8 = null,
    hold_ns_max: u64 = 0,
    shell_bug: model_file.ShellBug = .none,
    /// With the explorer of Mutation.chosen.
    mutation: core_file.Mutation = .none,
    /// Each node evicts that many times at most, any page at any time, through so many slots.
    evictions: u8 = 0,
    slots: u16 = 1,
    /// Each node discards that many times at most, any page at any time.
    discards: u8 = 0,
    discardable: Only = .{},
    /// Memory nodes besides; frames that each lends every home; copies that a home makes.
    memory: u8 = 0,
    frames: u8 = 1,
    frame_copies: u8 = 1,
    evictable: Only = .{},
    /// Walks of the hardware mark that many entries of each node's tables, at any time.
    marks: u8 = 0,
    markable: Only = .{},
    /// Memory nodes that crash, at any time; homes hear of it at any time after.
    crashes: u8 = 0,
    /// Print the way to what was found.
    trace: bool = false,
    /// Give up (and say so) beyond this many states.
    states_max: usize = 20_000_000,

    /// Nodes with and without vCPUs.
    fn all(self: Options) usize {
        return self.nodes + self.memory;
    }
};

pub const Result = struct {
    states: usize = 0,
    transitions: usize = 0,
    quiet: usize = 0,
    depth: usize = 0,
    /// Of each counter the most that any node has come to.
    stats: core_file.Stats = .{},
    /// Messages of lost memory nodes that came too late, at most.
    expelled: u64 = 0,
    /// Entries that hardware has marked, over all transitions.
    marks: u64 = 0,
    /// Null: nothing wrong was found.
    failure: ?Failure = null,
    /// states_max was reached: not exhaustive.
    cut: bool = false,
};

/// Who may do something, and to what; null: anybody, anything.
pub const Only = struct {
    node: ?u8 = null,
    page: ?u8 = null,

    fn allows(self: Only, node: usize, page: usize) bool {
        return (self.node orelse node) == node and (self.page orelse page) == page;
    }
};

const Choice = union(enum) {
    deliver: struct { from: u8, to: u8 },
    operation: struct { node: u8, op: Op },
    again: u8,
    tick: u8,
    root,
    evict: struct { node: u8, page: u8 },
    discard: struct { node: u8, page: u8 },
    mark: struct { node: u8, page: u8, word: u8 },
    crash: u8,
    lost: struct { home: u8, node: u8 },
};

const arena_bytes = 16 * 1024;
const choices_max = 64;
const depth_max = 4096;

pub fn Explorer(comptime mutation: core_file.Mutation) type {
    return struct {
        const Self = @This();
        const Model = model_file.Model(mutation);
        const Arenas = [model_file.nodes_max][arena_bytes]u8;

        /// Model by value; what its cores point at lies in the arenas, copied beside it.
        const Snapshot = struct { model: Model, arenas: Arenas, done: Done };
        /// What may happen a limited number of times.
        const Done = struct {
            rooted: bool = false,
            evictions: [model_file.nodes_max]u8 = @splat(0),
            discards: [model_file.nodes_max]u8 = @splat(0),
            marks: [model_file.nodes_max]u8 = @splat(0),
            crashes: u8 = 0,
            /// Who has heard of which crash.
            told: [model_file.nodes_max]types.Nodes = @splat(0),
        };
        const Frame = struct {
            snapshot: Snapshot,
            id: u32,
            choices: [choices_max]Choice,
            count: usize,
            /// All choices are events that need not come.
            at_rest: bool,
            at: usize,
        };

        gpa: std.mem.Allocator,
        options: Options,
        arenas: *Arenas,
        used: [model_file.nodes_max]usize = @splat(0),
        model: Model = undefined,
        done: Done = .{},
        seen: std.AutoHashMapUnmanaged(u64, u32) = .empty,
        /// Edges of the state graph, for the search backward from quiet states.
        edges: std.ArrayList([2]u32) = .empty,
        quiet: std.ArrayList(u32) = .empty,
        frames: std.ArrayList(*Frame) = .empty,
        free_frames: std.ArrayList(*Frame) = .empty,
        result: Result = .{},

        pub fn run(gpa: std.mem.Allocator, options: Options) !Result {
            var self: Self = .{ .gpa = gpa, .options = options, .arenas = try gpa.create(Arenas) };
            defer self.deinit();
            try self.start();
            self.search() catch |e| switch (e) {
                error.OutOfMemory => return e,
                else => |failure| {
                    self.result.failure = failure;
                    if (options.trace) self.printPath();
                },
            };
            if (self.result.failure == null and !self.result.cut) try self.checkProgress();
            self.result.states = self.seen.count();
            return self.result;
        }

        fn deinit(self: *Self) void {
            self.gpa.destroy(self.arenas);
            for (self.frames.items) |f| self.gpa.destroy(f);
            for (self.free_frames.items) |f| self.gpa.destroy(f);
            self.frames.deinit(self.gpa);
            self.free_frames.deinit(self.gpa);
            self.seen.deinit(self.gpa);
            self.edges.deinit(self.gpa);
            self.quiet.deinit(self.gpa);
        }

        fn start(self: *Self) !void {
            const o = self.options;
            var fixed: [model_file.nodes_max]std.heap.FixedBufferAllocator = undefined;
            var allocators: [model_file.nodes_max]std.mem.Allocator = undefined;
            for (&fixed, &allocators, 0..) |*f, *a, n| {
                @memset(&self.arenas[n], 0);
                f.* = .init(&self.arenas[n]);
                a.* = f.allocator();
            }
            self.model = try .init(&allocators, .{
                .nodes = o.nodes,
                .pages = o.pages,
                .homes = o.homes,
                .replicate = o.root != null,
                .hold_ns_max = o.hold_ns_max,
                .shell_bug = .none,
                .mutation = o.mutation,
                .slots = if (o.evictions > 0) o.slots else 0,
                .memory = o.memory,
                .frames = o.frames,
                .frame_copies = o.frame_copies,
                .discards = @intFromBool(o.discards > 0),
                .walked = if (o.marks > 0) o.root else null,
            });
            for (&self.used, fixed) |*u, f| u.* = f.end_index;
            for (o.prepare) |op| {
                const thread = &self.model.machines[0].thread;
                thread.* = .{ .busy = true, .op = op };
                while (thread.busy) {
                    if (!thread.blocked) try self.model.run(0);
                    while (self.model.inFlight() > 0) {
                        for (0..o.all()) |f| for (0..o.all()) |t| {
                            if (self.model.lanes[f][t].count > 0) try self.model.deliver(f, t);
                        };
                    }
                }
            }
            self.model.machines[0].thread = .{};
            self.model.settings.shell_bug = o.shell_bug;
        }

        /// Depth first, with a snapshot per level.
        fn search(self: *Self) !void {
            _ = try self.enter(null);
            while (self.frames.items.len > 0) {
                const frame = self.frames.items[self.frames.items.len - 1];
                if (frame.at == frame.count) {
                    _ = self.frames.pop();
                    try self.free_frames.append(self.gpa, frame);
                    continue;
                }
                if (self.seen.count() >= self.options.states_max or
                    self.frames.items.len >= depth_max)
                {
                    self.result.cut = true;
                    return;
                }
                const choice = frame.choices[frame.at];
                frame.at += 1;
                self.load(&frame.snapshot);
                self.result.transitions += 1;
                try self.apply(choice);
                try self.enter(frame.id);
            }
        }

        /// From the start to the state in which something was found.
        fn printPath(self: *const Self) void {
            for (self.frames.items) |frame| {
                const choice = frame.choices[frame.at - 1];
                switch (choice) {
                    .deliver => |d| {
                        const msg = frame.snapshot.model.lanes[d.from][d.to].items[0].msg;
                        const kind: types.MsgKind = @fromBackingInt(@intCast(msg.kind));
                        std.debug.print("  {d} -> {d}: {t} of page {d} for {d}, flags {d}\n", .{
                            d.from, d.to, kind, msg.page, msg.requester, msg.flags,
                        });
                    },
                    .operation => |o| std.debug.print("  node {d}: {t} page {d}, word {d}\n", .{
                        o.node, o.op.kind, o.op.page, o.op.word,
                    }),
                    inline else => |on, tag| std.debug.print("  {t} {any}\n", .{ tag, on }),
                }
            }
        }

        fn apply(self: *Self, choice: Choice) !void {
            const m = &self.model;
            switch (choice) {
                .deliver => |d| try m.deliver(d.from, d.to),
                .operation => |o| {
                    m.machines[o.node].thread.busy = true;
                    m.machines[o.node].thread.op = o.op;
                    try m.run(o.node);
                },
                .again => |n| try m.run(n),
                .tick => |n| try m.step(n, .{ .tick = .{ .now = m.cores[n].nextDeadline().? } }),
                .root => {
                    self.done.rooted = true;
                    try m.step(0, .{ .root = .{ .page = self.options.root.? } });
                },
                .evict => |e| {
                    self.done.evictions[e.node] += 1;
                    try m.step(e.node, .{ .evict = .{ .page = e.page, .now = m.now } });
                },
                .discard => |d| {
                    self.done.discards[d.node] += 1;
                    try m.step(d.node, .{ .discard = .{ .page = d.page } });
                },
                .mark => |w| {
                    self.done.marks[w.node] += 1;
                    self.result.marks += 1;
                    m.mark(w.node, w.page, w.word);
                },
                .crash => |n| {
                    self.done.crashes += 1;
                    m.crash(n);
                },
                .lost => |l| {
                    self.done.told[l.home] |= @as(types.Nodes, 1) << @intCast(l.node);
                    try m.step(l.home, .{ .node_lost = .{ .node = l.node } });
                },
            }
        }

        /// The model's state: new ones get a frame.
        fn enter(self: *Self, from: ?u32) !void {
            self.gather();
            const entry = try self.seen.getOrPut(self.gpa, fingerprint.of(&self.model, self.done));
            const fresh = !entry.found_existing;
            if (fresh) entry.value_ptr.* = self.seen.count() - 1;
            const id = entry.value_ptr.*;
            if (from) |f| try self.edges.append(self.gpa, .{ f, id });
            if (!fresh) return;
            const frame = self.free_frames.pop() orelse try self.gpa.create(Frame);
            errdefer self.gpa.destroy(frame);
            frame.id = id;
            frame.at = 0;
            frame.count = 0;
            self.choose(frame);
            if (frame.at_rest) {
                try self.model.checkQuiet();
                self.result.quiet += 1;
                try self.quiet.append(self.gpa, id);
            }
            self.save(&frame.snapshot);
            try self.frames.append(self.gpa, frame);
            self.result.depth = @max(self.result.depth, self.frames.items.len);
        }

        fn gather(self: *Self) void {
            self.result.expelled = @max(self.result.expelled, self.model.expelled);
            for (self.model.cores[0..self.options.nodes]) |*core| {
                inline for (@typeInfo(core_file.Stats).@"struct".field_names) |name| {
                    const most = &@field(self.result.stats, name);
                    most.* = @max(most.*, @field(core.stats, name));
                }
            }
        }

        fn choose(self: *Self, frame: *Frame) void {
            self.chooseNeeded(frame);
            frame.at_rest = frame.count == 0;
            self.chooseOptional(frame);
        }

        fn chooseOptional(self: *Self, frame: *Frame) void {
            const m = &self.model;
            for (self.options.nodes..self.options.all()) |n| {
                if (m.hasCrashed(n) or self.done.crashes == self.options.crashes) continue;
                add(frame, .{ .crash = @intCast(n) });
            }
            for (0..self.options.nodes) |n| {
                if (self.done.marks[n] == self.options.marks) continue;
                for (0..self.options.pages) |p| for (0..model_file.words) |w| {
                    if (!self.options.markable.allows(n, p)) continue;
                    const page: u8 = @intCast(p);
                    if (!m.canMark(n, page, w)) continue;
                    const word: u8 = @intCast(w);
                    add(frame, .{ .mark = .{ .node = @intCast(n), .page = page, .word = word } });
                };
            }
            for (0..self.options.nodes) |n| {
                if (self.done.discards[n] == self.options.discards) continue;
                for (0..self.options.pages) |p| {
                    if (!self.options.discardable.allows(n, p)) continue;
                    if (!m.cores[n].canDiscard(@intCast(p))) continue;
                    add(frame, .{ .discard = .{ .node = @intCast(n), .page = @intCast(p) } });
                }
            }
            for (0..self.options.nodes) |n| {
                if (self.done.evictions[n] == self.options.evictions) continue;
                for (0..self.options.pages) |p| {
                    if (!self.options.evictable.allows(n, p)) continue;
                    if (!m.cores[n].canEvict(@intCast(p))) continue;
                    add(frame, .{ .evict = .{ .node = @intCast(n), .page = @intCast(p) } });
                }
            }
        }

        fn chooseNeeded(self: *Self, frame: *Frame) void {
            const m = &self.model;
            const o = self.options;
            for (0..o.all()) |f| for (0..o.all()) |t| {
                if (m.lanes[f][t].count == 0) continue;
                add(frame, .{ .deliver = .{ .from = @intCast(f), .to = @intCast(t) } });
            };
            if (o.root != null and !self.done.rooted) add(frame, .root);
            for (0..o.nodes) |i| {
                const n: u8 = @intCast(i);
                var unheard = m.crashed & ~self.done.told[n];
                while (unheard != 0) : (unheard &= unheard - 1) {
                    add(frame, .{ .lost = .{ .home = n, .node = @intCast(@ctz(unheard)) } });
                }
                if (m.cores[n].nextDeadline() != null) add(frame, .{ .tick = n });
                const thread = m.machines[n].thread;
                if (thread.blocked) continue;
                if (thread.busy) {
                    add(frame, .{ .again = n });
                    continue;
                }
                if (o.scripts) |scripts| {
                    if (thread.pc == scripts[n].len) continue;
                    add(frame, .{ .operation = .{ .node = n, .op = scripts[n][thread.pc] } });
                    continue;
                }
                if (thread.pc == o.operations) continue;
                for (0..o.pages) |p| {
                    const page: u8 = @intCast(p);
                    add(frame, .{ .operation = .{ .node = n, .op = .{ .page = page } } });
                    const op: Op = .{ .kind = .store, .page = page };
                    add(frame, .{ .operation = .{ .node = n, .op = op } });
                }
            }
        }

        fn add(frame: *Frame, choice: Choice) void {
            frame.choices[frame.count] = choice;
            frame.count += 1;
        }

        fn save(self: *Self, to: *Snapshot) void {
            to.model = self.model;
            to.done = self.done;
            for (self.used, 0..) |u, n| @memcpy(to.arenas[n][0..u], self.arenas[n][0..u]);
        }

        fn load(self: *Self, from: *const Snapshot) void {
            self.model = from.model;
            self.done = from.done;
            for (self.used, 0..) |u, n| @memcpy(self.arenas[n][0..u], from.arenas[n][0..u]);
        }

        /// From every state a quiet one is reachable: no deadlock, no circle without a way out.
        fn checkProgress(self: *Self) !void {
            const n = self.seen.count();
            const degree = try self.gpa.alloc(u32, n + 1);
            defer self.gpa.free(degree);
            @memset(degree, 0);
            for (self.edges.items) |e| degree[e[1] + 1] += 1;
            for (1..n + 1) |i| degree[i] += degree[i - 1];
            const sources = try self.gpa.alloc(u32, self.edges.items.len);
            defer self.gpa.free(sources);
            const fill = try self.gpa.dupe(u32, degree);
            defer self.gpa.free(fill);
            for (self.edges.items) |e| {
                sources[fill[e[1]]] = e[0];
                fill[e[1]] += 1;
            }
            const reached = try self.gpa.alloc(bool, n);
            defer self.gpa.free(reached);
            @memset(reached, false);
            var work: std.ArrayList(u32) = .empty;
            defer work.deinit(self.gpa);
            for (self.quiet.items) |q| {
                reached[q] = true;
                try work.append(self.gpa, q);
            }
            while (work.pop()) |id| {
                for (sources[degree[id]..degree[id + 1]]) |s| {
                    if (reached[s]) continue;
                    reached[s] = true;
                    try work.append(self.gpa, s);
                }
            }
            for (reached) |r| if (!r) {
                self.result.failure = error.Stuck;
            };
        }
    };
}
