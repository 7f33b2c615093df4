//! A model of the machine around the core: N nodes with their shells, lanes that keep order (each
//! for itself), guest threads and a memory that knows the last write of every word. The explorer
//! tries every interleaving of it, tests drive it along one. The model's shell does what the
//! pager does, in its order, and can be told to do it wrong.

const std = @import("std");
const types = @import("types.zig");
const core_file = @import("core.zig");
const checks = @import("model_checks.zig");
const lender = @import("lender.zig");
const Actions = core_file.Actions;
const Page = types.Page;
const Node = types.Node;

pub const words = 2;
/// The accessed bit of an entry: hardware sets it where it walks, and nobody reads it.
const accessed = 0x80;
/// Word 0 of a page is this entry of a table: the first of a root's kernel half.
const first_entry = 256;
/// Of a root.
const top_level = 4;
pub const pages_max = 12;
pub const nodes_max = 5;
const lane_max = 16;
const held_max = 16;
pub const slots_max = 2;
/// Frames of a memory node, for all homes.
const frames_max = 4;

/// Deliberate faults of the shell.
pub const ShellBug = enum {
    none,
    /// The page is copied before it is write-protected: a store between them is lost.
    copy_before_protect,
    /// Diffs leave after the messages that depend on them.
    diff_late,
    /// Nobody waits for acknowledgements of diffs (more than two nodes).
    no_gate,
    /// A peer's mark is taken for a change of the entry.
    mark_is_change,
};

/// Of the step in progress. Not in the step itself: safe builds would fill it every time.
threadlocal var step_actions: Actions = .empty;

pub const Content = [words]u8;

pub const Op = struct {
    kind: enum { load, store, lock, unlock, await_set } = .load,
    page: u8 = 0,
    word: u8 = 0,
    /// Stored value; 0xff: one more than the last write.
    value: u8 = 0xff,
};

pub const Thread = struct {
    /// Free operations left, or the place in the script.
    pc: u8 = 0,
    busy: bool = false,
    blocked: bool = false,
    op: Op = .{},
};

pub const Envelope = struct { msg: types.Msg, data: Content };

const Lane = struct {
    items: [lane_max]Envelope = undefined,
    count: u8 = 0,

    fn push(self: *Lane, e: Envelope) void {
        self.items[self.count] = e;
        self.count += 1;
    }

    fn pop(self: *Lane) Envelope {
        const e = self.items[0];
        self.count -= 1;
        for (0..self.count) |i| self.items[i] = self.items[i + 1];
        return e;
    }
};

/// What waits for the acknowledgement of diffs (more than two nodes).
const Held = struct { to: Node, sequence: u32, envelope: Envelope };

pub const Failure = error{
    TwoWriters,
    StaleRead,
    LostStore,
    VersionShrank,
    /// Two exclusive copies of one version.
    VersionRepeated,
    BadInstall,
    Conflict,
    Refused,
    AuditFailed,
    /// The only copy of a page was on a memory node that is lost.
    PageLost,
    /// A record is still in use though nothing is under way.
    Leaked,
    Stuck,
};

pub const Settings = struct {
    nodes: u8,
    pages: u8,
    homes: []const core_file.HomeRange,
    replicate: bool = false,
    hold_ns_max: u64 = 0,
    shell_bug: ShellBug = .none,
    /// Of every core, if the model is of Mutation.chosen.
    mutation: core_file.Mutation = .none,
    threads: u16 = 1,
    /// Memory nodes, numbered after the others; each lends every home so many frames.
    memory: u8 = 0,
    frames: u8 = 1,
    frame_copies: u8 = 1,
    discards: u8 = 0,
    /// Write-back slots of a node.
    slots: u16 = 0,
    /// Where hardware starts its walks; null: it marks nothing.
    walked: ?u8 = null,
};

pub const Change = struct { page: u8, word: u8 };

pub fn Model(comptime mutation: core_file.Mutation) type {
    return struct {
        const Self = @This();
        pub const Core = core_file.CoreOf(mutation);

        const Machine = struct {
            content: [pages_max]Content = @splat(@splat(0)),
            present: [pages_max]bool = @splat(false),
            writable: [pages_max]bool = @splat(false),
            twin: [pages_max]Content = @splat(@splat(0)),
            /// Level + 1 of a replica, else 0.
            replica: [pages_max]u8 = @splat(0),
            /// A new replica: the core is told of the tables below, once, by the end of the step.
            fresh: [pages_max]bool = @splat(false),
            slots: [slots_max]Content = @splat(@splat(0)),
            thread: Thread = .{},
            held: [held_max]Held = undefined,
            held_count: u8 = 0,
        };

        settings: Settings,
        cores: [nodes_max]Core,
        machines: [nodes_max]Machine = @splat(.{}),
        lanes: [nodes_max][nodes_max]Lane = @splat(@splat(.{})),
        truth: [pages_max]Content = @splat(@splat(0)),
        /// Version of each page's latest exclusive copy.
        latest: [pages_max]u32 = @splat(0),
        /// What the memory nodes keep.
        frames: [nodes_max][frames_max]Content = @splat(@splat(@splat(0))),
        /// Memory nodes that have crashed.
        crashed: types.Nodes = 0,
        /// Messages of theirs that came too late.
        expelled: u64 = 0,
        now: u64 = 0,
        messages: u64 = 0,
        /// Content of the message being delivered.
        arriving: Content = @splat(0),

        pub fn init(a: []const std.mem.Allocator, settings: Settings) !Self {
            var self: Self = .{ .settings = settings, .cores = undefined };
            for (0..settings.nodes) |n| {
                var config = configOf(settings, n);
                var ranges: [nodes_max]core_file.FrameRange = undefined;
                config.frames = rangesOf(settings, n, &ranges);
                self.cores[n] = try .init(a[n], config);
            }
            return self;
        }

        fn configOf(settings: Settings, n: usize) core_file.Config {
            return .{
                .mutation = settings.mutation,
                .node = @intCast(n),
                .node_count = settings.nodes + settings.memory,
                .compute = (@as(types.Nodes, 1) << @intCast(settings.nodes)) - 1,
                .page_count = settings.pages,
                .home = settings.homes,
                .replicate = settings.replicate,
                .hold_ns_max = settings.hold_ns_max,
                .threads = settings.threads,
                .tables_max = 4,
                .migratory_unchecked_max = 1,
                .slots_max = settings.slots,
                .frame_copies = settings.frame_copies,
                .discards_max = settings.discards,
            };
        }

        fn rangesOf(
            settings: Settings,
            home: usize,
            ranges: *[nodes_max]core_file.FrameRange,
        ) []const core_file.FrameRange {
            for (0..settings.memory) |i| ranges[i] = .{
                .node = @intCast(settings.nodes + i),
                .first = @intCast(home * settings.frames),
                .count = settings.frames,
            };
            return ranges[0..settings.memory];
        }

        pub fn deinit(self: *Self) void {
            for (self.cores[0..self.settings.nodes]) |*core| core.deinit();
        }

        pub fn inFlight(self: *const Self) usize {
            var n: usize = 0;
            for (self.lanes) |row| for (row) |lane| {
                n += lane.count;
            };
            return n;
        }

        /// Runs the thread's operation: done, or blocked in a fault, or (a taken lock) as before.
        pub fn run(self: *Self, n: usize) Failure!void {
            const machine = &self.machines[n];
            const op = machine.thread.op;
            const p = op.page;
            const writes = op.kind != .load and op.kind != .await_set;
            if (!machine.present[p] or (writes and !machine.writable[p])) {
                machine.thread.blocked = true;
                return self.step(n, .{ .fault = .{
                    .page = p,
                    .write = writes,
                    .thread = 0,
                    .now = self.now,
                } });
            }
            try self.execute(n, op);
        }

        fn execute(self: *Self, n: usize, op: Op) Failure!void {
            const machine = &self.machines[n];
            const at = &machine.content[op.page][op.word];
            const last = &self.truth[op.page][op.word];
            if (!isSame(at.*, last.*)) return error.StaleRead;
            switch (op.kind) {
                .load => {},
                // Looks again: the model never runs it twice in a row without anything between.
                .await_set => if (at.* == 0) return,
                .lock => {
                    if (at.* != 0) return;
                    at.* = 1;
                },
                .unlock => at.* = 0,
                .store => at.* = if (op.value == 0xff) at.* +% 1 else op.value,
            }
            last.* = at.* & ~@as(u8, accessed);
            machine.thread.busy = false;
            machine.thread.pc += 1;
        }

        pub fn deliver(self: *Self, from: usize, to: usize) Failure!void {
            const e = self.lanes[from][to].pop();
            if (to >= self.settings.nodes) return self.serve(from, to, e);
            self.arriving = e.data;
            self.cores[to].validate(@intCast(from), e.msg) catch |refusal| switch (refusal) {
                error.Expelled => {
                    self.expelled += 1;
                    return;
                },
                error.ProtocolViolated => return error.Refused,
            };
            try self.step(to, .{ .message = .{
                .from = @intCast(from),
                .msg = e.msg,
                .now = self.now,
            } });
        }

        /// A memory node ends: what is on its way there is gone, what it has sent may still come.
        pub fn crash(self: *Self, n: usize) void {
            self.crashed |= @as(types.Nodes, 1) << @intCast(n);
            for (&self.lanes) |*row| row[n].count = 0;
        }

        pub fn hasCrashed(self: *const Self, n: usize) bool {
            return self.crashed >> @intCast(n) & 1 != 0;
        }

        /// A memory node obeys, and answers.
        fn serve(self: *Self, from: usize, to: usize, e: Envelope) Failure!void {
            const lent: lender.Lent = .{
                .home = @intCast(from),
                .first = @intCast(from * self.settings.frames),
                .count = self.settings.frames,
            };
            lender.validate(&.{lent}, @intCast(from), e.msg) catch return error.Refused;
            const frame = &self.frames[to][e.msg.old];
            if (lender.isFree(e.msg)) {
                // What nobody may read again.
                frame.* = @splat(0xee);
                return;
            }
            if (e.msg.hasData()) frame.* = e.data;
            const reply = lender.answer(e.msg);
            self.messages += 1;
            self.lanes[to][from].push(.{
                .msg = reply,
                .data = if (reply.hasData()) frame.* else @splat(0),
            });
        }

        /// One event through a node: memory actions, scan, sends.
        pub fn step(self: *Self, n: usize, event: types.Event) Failure!void {
            const core = &self.cores[n];
            var entries: [pages_max]core_file.Entry = undefined;
            var copies: [pages_max]Copy = undefined;
            for (0..self.settings.pages) |p| {
                entries[p] = core.directory[p];
                copies[p] = .{ .access = core.local[p], .version = core.versions[p] };
            }
            const discards = core.stats.discards;
            try self.stepOnly(n, event);
            if (core.stats.discards != discards) self.truth[pageOf(event)] = @splat(0);
            for (0..self.settings.pages) |p| {
                if (core.directory[p].version < entries[p].version) return error.VersionShrank;
                try self.checkVersion(p, copies[p], .{
                    .access = core.local[p],
                    .version = core.versions[p],
                });
            }
            try self.releaseHeld(n);
            try checks.writers(self);
            if (self.settings.memory > 0) try checks.stored(self);
        }

        /// Of an event that can end a discard.
        fn pageOf(event: types.Event) Page {
            return switch (event) {
                .message => |m| m.msg.page,
                .discard => |d| d.page,
                else => unreachable,
            };
        }

        const Copy = struct { access: types.Access, version: u32 };

        /// A copy that has become the only one is newer than every only one before. (What is left
        /// of a replicated table keeps its version.)
        fn checkVersion(self: *Self, p: usize, before: Copy, after: Copy) Failure!void {
            if (self.settings.replicate or after.access != .exclusive) return;
            if (before.access == .exclusive and before.version == after.version) return;
            if (after.version <= self.latest[p]) return error.VersionRepeated;
            self.latest[p] = after.version;
        }

        fn stepOnly(self: *Self, n: usize, event: types.Event) Failure!void {
            const out = &step_actions;
            out.count = 0;
            self.cores[n].step(event, out);
            var staged: [64]Held = undefined;
            const count = try self.perform(n, out.slice(), &staged);
            var tells = false;
            for (staged[0..count]) |s| tells = tells or s.envelope.msg.tells();
            const late = self.settings.shell_bug == .diff_late;
            if (tells and !late) try self.scan(n);
            for (staged[0..count]) |s| self.post(n, s.to, s.envelope);
            if (tells and late) try self.scan(n);
            try self.learnChildren(n, event);
        }

        fn perform(
            self: *Self,
            n: usize,
            actions: []const types.Action,
            staged: *[64]Held,
        ) Failure!usize {
            const m = &self.machines[n];
            var count: usize = 0;
            var early: [pages_max]Content = m.content;
            for (actions) |action| switch (action) {
                .install => |i| {
                    if (m.present[i.page]) return error.BadInstall;
                    m.present[i.page] = true;
                    m.writable[i.page] = i.access == .exclusive;
                    m.content[i.page] = switch (i.source) {
                        .zero => @splat(0),
                        .message => self.arriving,
                        .slot => |slot| m.slots[slot],
                    };
                    early[i.page] = m.content[i.page];
                    if (i.wake) wake(m, i.page);
                },
                .protect => |p| {
                    if (!m.present[p]) return error.BadInstall;
                    early[p] = m.content[p];
                    // The wrong order copies first; a store that waits to run gets in between.
                    const op = m.thread.op;
                    if (self.settings.shell_bug == .copy_before_protect and m.thread.busy and
                        !m.thread.blocked and op.kind == .store and op.page == p and m.writable[p])
                        try self.execute(n, op);
                    m.writable[p] = false;
                },
                .unprotect => |p| {
                    if (!m.present[p]) return error.BadInstall;
                    m.writable[p] = true;
                    wake(m, p);
                },
                .drop => |p| m.present[p] = false,
                .wake => |p| wake(m, p),
                .twin => |t| {
                    m.twin[t.page] = m.content[t.page];
                    m.replica[t.page] = t.level + 1;
                    m.fresh[t.page] = true;
                },
                .forget_replica => |p| m.replica[p] = 0,
                .patch => |p| try self.patch(m, p.page, p.index, p.old, p.new),
                .save => |s| {
                    if (!m.present[s.page] or m.writable[s.page]) return error.BadInstall;
                    const wrong = self.settings.shell_bug == .copy_before_protect;
                    m.slots[s.slot] = if (wrong) early[s.page] else m.content[s.page];
                },
                .send => |s| {
                    const data = if (!s.msg.hasData())
                        @as(Content, @splat(0))
                    else if (s.slot) |slot|
                        m.slots[slot]
                    else
                        try self.pageBytes(m, s.msg.page, &early);
                    staged[count] = .{ .to = s.to, .sequence = 0, .envelope = .{
                        .msg = s.msg,
                        .data = data,
                    } };
                    count += 1;
                },
                .keep => |slot| m.slots[slot] = self.arriving,
                .emptied, .discarded => {},
                .fatal => |f| return switch (f.code) {
                    types.fatal_page_lost => error.PageLost,
                    else => error.Conflict,
                },
            };
            return count;
        }

        fn pageBytes(
            self: *const Self,
            m: *const Machine,
            p: Page,
            early: *const [pages_max]Content,
        ) Failure!Content {
            if (!m.present[p]) return error.BadInstall;
            const wrong = self.settings.shell_bug == .copy_before_protect;
            return if (wrong) early[p] else m.content[p];
        }

        fn wake(m: *Machine, p: Page) void {
            if (m.thread.blocked and m.thread.op.page == p) m.thread.blocked = false;
        }

        /// As Replicas.patch of zig/memory/replicas.zig does it; an entry of 0 is not present.
        fn patch(
            self: *const Self,
            m: *Machine,
            p: Page,
            index: u16,
            old: u64,
            new: u64,
        ) Failure!void {
            if (m.replica[p] == 0) return error.Conflict;
            const at = &m.content[p][index - first_entry];
            const told = &m.twin[p][index - first_entry];
            const marks = isSame(old, new) and self.settings.shell_bug != .mark_is_change;
            if (!isSame(told.*, old)) {
                if (marks) return;
                if (!isSame(told.*, new)) return error.Conflict;
            }
            if (!isSame(at.*, old) and !isSame(at.*, new)) {
                return if (marks) {} else error.Conflict;
            }
            const extra = at.* & ~told.* & accessed;
            told.* = @intCast(new);
            at.* = if (isSame(new, 0)) told.* else told.* | extra;
        }

        fn isSame(a: u64, b: u64) bool {
            return (a ^ b) & ~@as(u64, accessed) == 0;
        }

        /// Hardware can set the accessed bit of that entry now: a walk by what this node's copies
        /// say comes to it, and may write there.
        pub fn canMark(self: *const Self, n: usize, p: u8, w: usize) bool {
            const m = &self.machines[n];
            const root = self.settings.walked orelse return false;
            if (!m.present[p] or !m.writable[p]) return false;
            const entry = m.content[p][w];
            if (isSame(entry, 0) or entry & accessed != 0) return false;
            return self.walks(m, root, p, top_level);
        }

        fn walks(self: *const Self, m: *const Machine, from: u8, to: u8, level: u8) bool {
            if (!m.present[from]) return false;
            if (from == to) return true;
            for (m.content[from]) |entry| {
                const next = self.childOf(level, entry) orelse continue;
                if (self.walks(m, @intCast(next), to, level - 1)) return true;
            }
            return false;
        }

        pub fn mark(self: *Self, n: usize, p: u8, w: usize) void {
            self.machines[n].content[p][w] |= accessed;
        }

        /// An entry is the page it points at + 100; smaller numbers are leaves and data.
        fn childOf(self: *const Self, level: u8, marked: u8) ?Page {
            const entry = marked & ~@as(u8, accessed);
            if (level < 2 or entry < 100) return null;
            return if (entry - 100 < self.settings.pages) entry - 100 else null;
        }

        /// Word of tables leaves at once, what else follows from it behind a scan of its own.
        fn scan(self: *Self, n: usize) Failure!void {
            var later: [64]Held = undefined;
            const count = try self.scanOnce(n, &later);
            if (count == 0) return;
            try self.scan(n);
            for (later[0..count]) |s| self.post(n, s.to, s.envelope);
        }

        fn scanOnce(self: *Self, n: usize, later: *[64]Held) Failure!usize {
            const m = &self.machines[n];
            var waiting: usize = 0;
            for (0..self.settings.pages) |p| for (0..words) |w| {
                if (m.replica[p] == 0) continue;
                const old = m.twin[p][w];
                const new = m.content[p][w];
                if (old == new) continue;
                m.twin[p][w] = new;
                const level = m.replica[p] - 1;
                const out = &step_actions;
                out.count = 0;
                self.cores[n].step(.{ .replica_changed = .{
                    .page = @intCast(p),
                    .index = @intCast(first_entry + w),
                    .old = old,
                    .new = new,
                    .old_child = self.childOf(level, old),
                    .new_child = self.childOf(level, new),
                } }, out);
                var staged: [64]Held = undefined;
                const count = try self.perform(n, out.slice(), &staged);
                for (staged[0..count]) |s| {
                    if (s.envelope.msg.isTableWord()) {
                        self.post(n, s.to, s.envelope);
                        continue;
                    }
                    later[waiting] = s;
                    waiting += 1;
                }
            };
            return waiting;
        }

        /// The children of tables that became replicas in this step.
        fn learnChildren(self: *Self, n: usize, event: types.Event) Failure!void {
            if (!self.settings.replicate or event == .child) return;
            const m = &self.machines[n];
            while (std.mem.findScalar(bool, &m.fresh, true)) |p| {
                m.fresh[p] = false;
                if (m.replica[p] == 0) continue;
                const level = m.replica[p] - 1;
                for (0..words) |w| {
                    const child = self.childOf(level, m.twin[p][w]) orelse continue;
                    try self.stepOnly(n, .{ .child = .{
                        .parent = @intCast(p),
                        .index = @intCast(first_entry + w),
                        .page = child,
                        .level = level - 1,
                    } });
                }
            }
        }

        /// Diffs and their acknowledgements go at once; the rest waits for the gate, in order.
        fn post(self: *Self, n: usize, to: Node, e: Envelope) void {
            const m = &self.machines[n];
            const free = e.msg.isTableWord();
            const sequence = self.cores[n].gate();
            const gated = self.settings.nodes > 2 and self.settings.shell_bug != .no_gate;
            const passed = m.held_count == 0 and self.cores[n].gatePassed(sequence);
            if (!free and gated and !passed) {
                m.held[m.held_count] = .{ .to = to, .sequence = sequence, .envelope = e };
                m.held_count += 1;
                return;
            }
            self.messages += 1;
            if (!self.hasCrashed(to)) self.lanes[n][to].push(e);
        }

        fn releaseHeld(self: *Self, n: usize) Failure!void {
            const m = &self.machines[n];
            while (m.held_count > 0 and self.cores[n].gatePassed(m.held[0].sequence)) {
                const h = m.held[0];
                m.held_count -= 1;
                for (0..m.held_count) |i| m.held[i] = m.held[i + 1];
                self.messages += 1;
                if (!self.hasCrashed(h.to)) self.lanes[n][h.to].push(h.envelope);
            }
        }

        pub fn checkQuiet(self: *const Self) Failure!void {
            return checks.quiet(self);
        }
    };
}
