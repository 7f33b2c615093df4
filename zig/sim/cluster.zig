//! Everything of a schedule but the shells: virtual time, the random streams, machines with their
//! kernels and vCPUs, the network, the truth, what is injected and counted. The streams are apart,
//! so that a fault left out changes nothing else at first.

const std = @import("std");
const types = @import("../dsm/types.zig");
const Batch = @import("../engine/discards.zig").Batch;
const mailbox = @import("../memory/mailbox.zig");
const config_file = @import("config.zig");
const Config = config_file.Config;
const Fault = config_file.Fault;
const Events = @import("events.zig").Events;
const Mode = @import("../engine/inbox.zig").Mode;
const finding = @import("finding.zig");
const guest = @import("guest.zig");
const kernel = @import("kernel.zig");
const network = @import("network.zig");
const tables_file = @import("tables.zig");
const Truth = @import("truth.zig").Truth;
const wires_file = @import("wires.zig");
const Wires = wires_file.Wires;
const Vcpu = guest.Vcpu;

const us = std.time.ns_per_us;
const ms = std.time.ns_per_ms;
const page_size = 4096;

/// Where guests' clocks begin: far from zero, so that what is taken off never wraps here.
const guest_time_first = 1 << 50;

const fault_count = @typeInfo(Fault).@"enum".field_names.len;

pub const Counters = struct {
    schedules: u64 = 0,
    events: u64 = 0,
    turns: u64 = 0,
    operations: u64 = 0,
    reads: u64 = 0,
    writes: u64 = 0,
    faults: u64 = 0,
    messages: u64 = 0,
    interrupts: u64 = 0,
    held_back: u64 = 0,
    /// Of production lanes: connections after the first, frames sent again and refused.
    reconnects: u64 = 0,
    resent: u64 = 0,
    refused: u64 = 0,
    replicated: u64 = 0,
    evicted: u64 = 0,
    /// Pages that memory nodes took and gave.
    stored: u64 = 0,
    loaded: u64 = 0,
    /// Pages discarded at their home, discards refused, and frames that memory nodes gave back.
    emptied: u64 = 0,
    refusals: u64 = 0,
    freed: u64 = 0,
    /// Memory nodes that died.
    memory_lost: u64 = 0,
    /// Times a home was told so before it could have found out.
    ends_told: u64 = 0,
    /// Nodes that were silent for seconds; times that one was given up though it lived.
    silences: u64 = 0,
    parted: u64 = 0,
    /// Freezes begun, each node's counted.
    freezes: u64 = 0,
    /// Schedules that ended as a VM does that has lost a node, or memory.
    deaths: u64 = 0,
    injected: [fault_count]u64 = @splat(0),

    pub fn add(self: *Counters, other: Counters) void {
        inline for (@typeInfo(Counters).@"struct".field_names) |name| {
            if (comptime std.mem.eql(u8, name, "injected")) continue;
            @field(self, name) += @field(other, name);
        }
        for (&self.injected, other.injected) |*sum, n| sum.* += n;
    }
};

/// Deliberate faults of the environment that amount to faults of the shell, or of its lanes.
pub const Plant = enum {
    none,
    /// A page's bytes are those of before it was write-protected: a store between them is lost.
    copied_early,
    /// COPY does not wake the page's waiters.
    wake_forgotten,
    /// EEXIST is taken for success.
    exists_is_done,
    /// EAGAIN is taken for success.
    again_is_done,
    /// vCPUs are always thought to be at rest.
    always_at_rest,
    /// A frame comes twice, or never.
    lane_repeats,
    lane_loses,
    /// A node goes on without one that it has given up.
    goes_on,
};

pub const Machine = struct {
    node: u8,
    kernel: kernel.Kernel,
    /// How the node's core says that each page is mapped.
    access: []const types.Access = &.{},
    posts: std.ArrayList(mailbox.Post) = .empty,
    posts_taken: usize = 0,
    /// Pages that the node's shard discards now; it has one batch at a time.
    batch: Batch = .{},
    is_discarding: bool = false,
    /// Added to virtual time: no two hosts' clocks agree.
    clock_ns: u64,
    stands_until: u64 = 0,
    /// Frozen: from then on vCPUs park; null: it is not.
    parks_from: ?u64 = null,
    /// Thawed: no vCPU enters the guest before.
    enters_from: u64 = 0,
    /// Added to virtual time: the guest's clock; and the newest that its vCPUs have seen.
    tsc_off: u64,
    tsc_seen: u64 = 0,
    /// Event of the next turn.
    turn_at: ?u64 = null,
    /// The process is gone.
    is_dead: bool = false,
    /// The VM has ended here: no vCPU runs any more.
    has_ended: bool = false,
    /// Memory was spoilt behind the shell's back: it has to notice.
    must_stop: bool = false,
    /// Spans sent to and taken from each node.
    spans_sent: []u32,
    spans_taken: []u32,

    pub fn guestTime(self: *const Machine, now: u64) u64 {
        return now +% self.tsc_off;
    }

    /// Whether a vCPU must stay out of the guest. Only one that executes when the freeze begins
    /// goes on until its kick: none enters (engine/parking.zig), and in a fault none executes
    /// anything.
    fn isParked(self: *const Machine, v: *const Vcpu, now: u64) bool {
        const at = self.parks_from orelse return false;
        return at <= now or v.inbox.mode.raw != Mode.guest;
    }
};

/// Two hosts' clocks agree within half a round trip.
pub const skew_ns_max = 2 * us;

/// Messages between nodes besides coherence.
pub const SpanOp = enum(u32) { interrupt, shoot, answer, echo, stop, freeze };

const Span = extern struct {
    op: SpanOp,
    from: u32,
    to: u32,
    /// Counts the spans of this node to that one, in the order in which its shard sends them.
    number: u32 = 0,
    page: u32 = 0,
    index: u32 = 0,
};

pub const Cluster = struct {
    allocator: std.mem.Allocator,
    config: Config,
    guest: std.Random.DefaultPrng,
    net: std.Random.DefaultPrng,
    chaos: std.Random.DefaultPrng,
    skews: std.Random.DefaultPrng,
    now: u64 = 0,
    events: Events,
    truth: Truth,
    machines: []Machine,
    vcpus: []Vcpu,
    network: network.Network,
    /// Sockets of production lanes; unused with the model.
    wires: Wires = undefined,
    /// vCPUs that have work left.
    unfinished: usize = 0,
    habits: guest.Habits,
    tables: tables_file.Tables,
    counters: Counters = .{ .schedules = 1 },
    injected: u32 = 0,
    /// Pages whose state changed in the step that is going on.
    touched: std.ArrayList(u32) = .empty,
    /// Events since a vCPU got something done, and when it did.
    idle_events: u64 = 0,
    progressed_at: u64 = 0,
    /// Nothing has got done for so long that no fault is injected until something is.
    is_calm: bool = false,
    is_interleaving: bool = false,
    /// End of the one long silence; whether living nodes may give each other up for it.
    silent_until: ?u64 = null,
    may_part: bool = false,
    is_traced: bool,
    plant: Plant = .none,
    /// The newest time that any guest has seen.
    tsc_newest: u64 = 0,
    /// Runs after each step of a shell.
    checker: *const fn (cluster: *Cluster, node: u8) void = undefined,
    /// The answer that a shard is about to send.
    echoed: Span = undefined,

    /// In place: others keep its address.
    pub fn init(self: *Cluster, a: std.mem.Allocator, config: Config, is_traced: bool) !void {
        self.* = .{
            .allocator = a,
            .config = config,
            .guest = .init(config.seed),
            .net = .init(config.seed ^ 0x6e65_7477_6f72_6b00),
            .chaos = .init(config.seed ^ 0x6368_616f_7300_0000),
            .skews = .init(config.seed ^ 0x736b_6577_7300_0000),
            .events = .{ .allocator = a },
            .truth = undefined,
            .machines = try a.alloc(Machine, config.machines()),
            .vcpus = try a.alloc(Vcpu, @as(usize, config.nodes) * config.vcpus),
            .network = undefined,
            .habits = undefined,
            .tables = .init(config.tables),
            .is_traced = is_traced,
        };
        self.truth = try .init(a, try self.memory(), config.pages);
        for (0..config.tables) |i| self.truth.is_table[1 + i] = true;
        self.network = try .init(self);
        if (config.lanes == .real) try self.wires.init(self);
        const data = config.pages - self.firstDataPage();
        const has_tables = config.tables > 0;
        // Shorter than a few round trips, a hold does not last until the next page is here; nor
        // does it while a full lane keeps the next fault from the shard.
        const has_holds = config.hold_us >= 100 and !config.faults.contains(.small_lane);
        self.habits = .choose(self.guest.random(), data, has_holds, has_tables);
        if (config.cache > 0 or config.own > 0) {
            const most = config_file.small_instruction_pages;
            self.habits.many_pages = @min(self.habits.many_pages, most);
        }
        for (self.machines, 0..) |*m, n| try self.initMachine(m, @intCast(n));
        for (self.vcpus, 0..) |*v, i| v.* = .{
            .cluster = self,
            .node = @intCast(i / config.vcpus),
            .index = @intCast(i),
        };
        for (self.vcpus) |*v| v.inbox.tid.raw = @intCast(v.tid());
    }

    fn initMachine(self: *Cluster, m: *Machine, node: u8) !void {
        m.* = .{
            .node = node,
            .kernel = try .init(self.allocator, self, node, try self.memory()),
            .clock_ns = self.net.random().uintLessThan(u64, 1000 * ms),
            .tsc_off = guest_time_first,
            .spans_sent = try self.allocator.alloc(u32, self.config.machines()),
            .spans_taken = try self.allocator.alloc(u32, self.config.machines()),
        };
        const skew = self.skews.random().uintLessThan(u64, skew_ns_max);
        if (self.config.stall_ms > 0) m.tsc_off += skew;
        @memset(m.spans_sent, 0);
        @memset(m.spans_taken, 0);
    }

    /// Raw: nobody looks at what has not been mapped.
    fn memory(self: *Cluster) ![]align(page_size) u8 {
        const size = @as(usize, self.config.pages) * page_size;
        const bytes = self.allocator.rawAlloc(size, .fromByteUnits(page_size), 0) orelse
            return error.OutOfMemory;
        return @alignCast(bytes[0..size]);
    }

    pub fn firstDataPage(self: *const Cluster) u32 {
        return if (self.config.tables == 0) 0 else 1 + @as(u32, self.config.tables);
    }

    pub fn pageOfGpa(self: *Cluster, gpa: u64) ?u32 {
        const ram: kernel.Ram = .{ .kernel = &self.machines[0].kernel };
        return ram.pageOf(gpa);
    }

    pub fn trace(self: *const Cluster, comptime format: []const u8, args: anytype) void {
        if (!self.is_traced) return;
        std.debug.print("{d:>12} " ++ format ++ "\n", .{self.now} ++ args);
    }

    /// Whether this fault happens now, once in `one_in` times if the schedule has it at all.
    pub fn inject(self: *Cluster, fault: Fault, one_in: u32) bool {
        if (!self.config.faults.contains(fault) or self.is_calm) return false;
        if (self.chaos.random().uintLessThan(u32, one_in) != 0) return false;
        if (self.injected >= self.config.faults_max) return false;
        self.injected += 1;
        self.counters.injected[@backingInt(fault)] += 1;
        self.trace("fault {d}: {t}", .{ self.injected, fault });
        return true;
    }

    /// The page's state may change in this step.
    pub fn touch(self: *Cluster, page: u32) void {
        for (self.touched.items) |p| if (p == page) return;
        self.touched.append(self.allocator, page) catch @panic("no memory for touched pages");
    }

    pub fn stepDone(self: *Cluster, node: u8) void {
        if (self.touched.items.len == 0) return;
        self.checker(self, node);
        self.touched.clearRetainingCapacity();
    }

    pub fn progressed(self: *Cluster) void {
        self.counters.operations += 1;
        self.idle_events = 0;
        self.progressed_at = self.now;
        self.is_calm = false;
    }

    // Time.

    pub fn wakeShard(self: *Cluster, node: u8, at: u64) void {
        const m = &self.machines[node];
        if (m.turn_at) |turn_at| if (turn_at <= at) return;
        m.turn_at = at;
        self.events.add(at, .turn, node, 0);
    }

    pub fn scheduleVcpu(self: *Cluster, v: *Vcpu, at: u64) void {
        v.due = at;
        self.events.add(at, .vcpu, v.index, 0);
    }

    /// The kernel lets the vCPU go on.
    pub fn wakeVcpu(self: *Cluster, index: u32) void {
        const v = &self.vcpus[index];
        std.debug.assert(v.state == .blocked);
        v.state = .ready;
        if (self.machines[v.node].parks_from != null) v.leaveGuest();
        // Without holds nothing else keeps the page until the vCPU has used it.
        if (self.config.hold_us == 0 and self.net.random().boolean()) {
            v.due = 0;
            return self.runVcpu(v);
        }
        var delay = self.net.random().uintLessThan(u64, 3 * us);
        if (self.inject(.late_wake, 4)) delay += self.chaos.random().uintLessThan(u64, 300 * us);
        self.scheduleVcpu(v, self.now + delay);
    }

    /// The vCPU waits in a fault: the shard hears of it, and a signal may come.
    pub fn faulted(self: *Cluster, v: *Vcpu) void {
        self.counters.faults += 1;
        self.wakeShard(v.node, self.now + 200 + self.net.random().uintLessThan(u64, 2 * us));
        if (!self.inject(.signal, 6)) return;
        const at = self.now + self.chaos.random().uintLessThan(u64, 100 * us);
        self.events.add(at, .signal, v.index, v.waits);
    }

    pub fn runVcpu(self: *Cluster, v: *Vcpu) void {
        const m = &self.machines[v.node];
        if (v.state != .ready or m.is_dead or m.has_ended) return;
        if (m.stands_until > self.now) return self.scheduleVcpu(v, m.stands_until);
        if (self.inject(.pause_vcpu, 128)) {
            const pause = self.chaos.random().uintLessThan(u64, 20 * ms);
            return self.scheduleVcpu(v, self.now + pause);
        }
        // The thaw wakes it.
        if (m.isParked(v, self.now)) return v.leaveGuest();
        if (m.enters_from > self.now) return self.scheduleVcpu(v, m.enters_from);
        self.enter(v);
    }

    /// Its guest can see the time.
    fn enter(self: *Cluster, v: *Vcpu) void {
        const m = &self.machines[v.node];
        const time = m.guestTime(self.now);
        if (time < m.tsc_seen or time + 2 * skew_ns_max < self.tsc_newest) {
            finding.fail(.freeze, "vcpu {d} of node {d} sees {d}, its node saw {d}, another {d}", .{
                v.index, v.node, time, m.tsc_seen, self.tsc_newest,
            });
        }
        m.tsc_seen = time;
        self.tsc_newest = @max(self.tsc_newest, time);
        v.run();
    }

    pub fn vcpusOf(self: *Cluster, node: u8) []Vcpu {
        const count: usize = self.config.vcpus;
        return self.vcpus[node * count ..][0..count];
    }

    /// The shard is between two system calls: what may its vCPUs do now?
    pub fn interleave(self: *Cluster, node: u8) void {
        if (self.is_interleaving or !self.config.faults.contains(.race)) return;
        if (!self.inject(.race, 3)) return;
        self.is_interleaving = true;
        defer self.is_interleaving = false;
        const few = self.chaos.random().uintLessThan(u32, self.config.vcpus);
        const v = &self.vcpus[@as(u32, node) * self.config.vcpus + few];
        const m = &self.machines[node];
        if (v.state != .ready or m.has_ended or m.stands_until > self.now) return;
        if (m.isParked(v, self.now) or m.enters_from > self.now) return;
        self.enter(v);
    }

    // Interrupts and commands: what other threads post to the shard.

    pub fn post(self: *Cluster, node: u8, nodes: u64, kind: u8, payload: []const u8) void {
        const m = &self.machines[node];
        var p: mailbox.Post = .{
            .nodes = nodes,
            .kind = kind,
            .len = @intCast(payload.len),
            .payload = undefined,
        };
        @memcpy(p.payload[0..payload.len], payload);
        m.posts.append(self.allocator, p) catch @panic("no memory for posts");
        self.wakeShard(node, self.now + self.net.random().uintLessThan(u64, us));
    }

    /// The oldest one; a span gets its number here.
    pub fn takePost(self: *Cluster, node: u8) ?mailbox.Post {
        const m = &self.machines[node];
        if (m.posts_taken == m.posts.items.len) return null;
        var p = m.posts.items[m.posts_taken];
        m.posts_taken += 1;
        if (p.nodes != 0) {
            var span = std.mem.bytesToValue(Span, p.payload[0..@sizeOf(Span)]);
            span.number = self.countSpan(node, @intCast(@ctz(p.nodes)));
            @memcpy(p.payload[0..@sizeOf(Span)], std.mem.asBytes(&span));
        }
        if (m.posts_taken == m.posts.items.len) {
            m.posts.clearRetainingCapacity();
            m.posts_taken = 0;
        }
        return p;
    }

    pub fn hasPosts(self: *const Cluster, node: u8) bool {
        return self.machines[node].posts.items.len > 0;
    }

    /// A few pages, perhaps one of them twice, and now and then a page table: in vain while the
    /// nodes know it for one.
    pub fn postDiscard(self: *Cluster, v: *Vcpu) void {
        const m = &self.machines[v.node];
        if (m.is_discarding) return;
        m.is_discarding = true;
        m.batch.count = 0;
        const random = self.guest.random();
        for (0..random.intRangeAtMost(usize, 1, 6)) |_| {
            const is_table = self.config.tables > 0 and random.uintLessThan(u8, 8) == 0;
            const table = 1 + random.uintLessThan(u32, @max(1, self.config.tables));
            m.batch.add(if (is_table) table else v.pickPage());
        }
        const address: u64 = @intFromPtr(&m.batch);
        const discard = @import("../engine/shell.zig").Command.discard;
        self.post(v.node, 0, discard, std.mem.asBytes(&address));
    }

    pub fn postRoot(self: *Cluster, node: u8, page: u32) void {
        const gpa = kernel.gpaOfPage(page);
        const root = @import("../engine/shell.zig").Command.root;
        self.post(node, 0, root, std.mem.asBytes(&gpa));
    }

    /// A span from a vCPU's thread.
    fn postSpan(self: *Cluster, from: u32, to: u32, span: Span) void {
        const near = self.vcpus[from].node;
        const far = self.vcpus[to].node;
        var s = span;
        s.from = from;
        s.to = to;
        if (near == far) return self.take(far, s);
        self.post(near, @as(u64, 1) << @intCast(far), 0, std.mem.asBytes(&s));
    }

    fn countSpan(self: *Cluster, near: u8, far: u8) u32 {
        self.machines[near].spans_sent[far] += 1;
        return self.machines[near].spans_sent[far];
    }

    pub fn sendInterrupt(self: *Cluster, v: *Vcpu) void {
        const r = self.guest.random();
        const to = r.uintLessThan(u32, @intCast(self.vcpus.len));
        self.postSpan(v.index, to, .{
            .op = if (r.boolean()) .interrupt else .echo,
            .from = 0,
            .to = 0,
        });
    }

    /// Every other vCPU has to answer.
    pub fn shootDown(self: *Cluster, v: *Vcpu, page: u32, index: u16) void {
        // A vCPU of this node that has nothing to do answers at once.
        v.script.answers_missing = @intCast(self.vcpus.len - 1);
        for (self.vcpus) |*other| {
            if (other == v) continue;
            self.postSpan(v.index, other.index, .{
                .op = .shoot,
                .from = 0,
                .to = 0,
                .page = page,
                .index = index,
            });
        }
    }

    pub fn isFreeze(payload: []const u8) bool {
        return std.mem.readInt(u32, payload[0..4], .little) == @backingInt(SpanOp.freeze);
    }

    /// A node's shard has a span from another node: the answer that it sends at once, if any.
    pub fn receive(self: *Cluster, node: u8, from: u8, payload: []const u8) ?[]const u8 {
        const span = std.mem.bytesToValue(Span, payload[0..@sizeOf(Span)]);
        const m = &self.machines[node];
        self.trace("{d} takes span {d} ({t}) of {d}", .{ node, span.number, span.op, from });
        m.spans_taken[from] += 1;
        if (span.number != m.spans_taken[from]) {
            finding.fail(.leak, "span {d} from node {d} to {d} where {d} was due", .{
                span.number, from, node, m.spans_taken[from],
            });
        }
        if (span.op == .stop) {
            self.endVm(node);
            return null;
        }
        if (span.op == .echo) {
            self.echoed = .{
                .op = .interrupt,
                .from = span.to,
                .to = span.from,
                .number = self.countSpan(node, from),
            };
            return std.mem.asBytes(&self.echoed);
        }
        self.take(node, span);
        return null;
    }

    fn take(self: *Cluster, node: u8, span: Span) void {
        self.counters.interrupts += 1;
        const v = &self.vcpus[span.to];
        switch (span.op) {
            .interrupt, .echo => {},
            .shoot => {
                tables_file.checkShot(self, node, span.page, @intCast(span.index));
                v.shooter = span.from;
                // Its thread answers as soon as it is between two instructions.
                if (v.state == .finished) self.takeInterrupts(v);
            },
            .answer => v.script.answers_missing -= 1,
            .stop, .freeze => unreachable,
        }
    }

    /// The vCPU is between two instructions.
    pub fn takeInterrupts(self: *Cluster, v: *Vcpu) void {
        const shooter = v.shooter orelse return;
        v.shooter = null;
        self.postSpan(v.index, shooter, .{ .op = .answer, .from = 0, .to = 0 });
    }

    // Death.

    /// A node gives another one up.
    pub fn hasLost(self: *Cluster, node: u8, peer: u8, why: []const u8) void {
        self.trace("node {d} gives up node {d}: {s}", .{ node, peer, why });
        const is_ending = self.machines[node].has_ended or self.machines[peer].is_dead;
        if (!is_ending and self.may_part) self.counters.parted += 1;
        if (!is_ending and !self.may_part) {
            finding.fail(.peer_lost, "node {d} gives up node {d}, which lives: {s}", .{
                node, peer, why,
            });
        }
        if (peer < self.config.nodes and self.plant != .goes_on) self.endVm(node);
    }

    /// Nothing is heard of some nodes until then. What is longer than peer_timeout parts them, and
    /// what is near it may; more than one silence could add up to it.
    pub fn fallSilent(self: *Cluster, until: u64) void {
        self.counters.silences += 1;
        self.silent_until = until;
        self.may_part = until - self.now > wires_file.peer_timeout_ns / 2;
    }

    /// Whether so many memory nodes have died that pages may be gone.
    pub fn mayLosePages(self: *const Cluster) bool {
        var dead: usize = 0;
        for (self.machines[self.config.nodes..]) |m| dead += @intFromBool(m.is_dead);
        return dead >= self.config.copies;
    }

    /// The VM ends on this node with vcpu_lost; it tells the others, and its process ends soon.
    pub fn endVm(self: *Cluster, node: u8) void {
        const m = &self.machines[node];
        if (m.has_ended) return;
        m.has_ended = true;
        for (0..self.config.nodes) |n| {
            if (n == node) continue;
            const span: Span = .{ .op = .stop, .from = 0, .to = 0 };
            self.post(node, @as(u64, 1) << @intCast(n), 0, std.mem.asBytes(&span));
        }
        const at = self.now + self.chaos.random().uintLessThan(u64, 100 * ms);
        self.events.add(at, .exit, node, 0);
    }

    /// The process is gone, whatever it was doing.
    pub fn kill(self: *Cluster, node: u8) void {
        const m = &self.machines[node];
        if (m.is_dead) return;
        self.trace("node {d} is gone", .{node});
        m.is_dead = true;
        if (node >= self.config.nodes) self.counters.memory_lost += 1;
        if (self.config.lanes == .real) return self.wires.kill(node);
        self.network.kill(node);
        for (0..self.config.nodes) |n| {
            if (n == node) continue;
            self.events.add(self.now + self.untilNoticed(node), .silence, node, @intCast(n));
        }
    }

    /// A death is noticed by silence; that of a memory node may be told, perhaps before its last
    /// frames are there.
    fn untilNoticed(self: *Cluster, node: u8) u64 {
        const random_ns = self.chaos.random().uintLessThan(u64, 100 * ms);
        if (node < self.config.nodes or random_ns >= 50 * ms) return 50 * ms + random_ns;
        self.counters.ends_told += 1;
        return random_ns / 100;
    }

    pub fn isDying(self: *const Cluster) bool {
        for (self.machines[0..self.config.nodes]) |m| if (m.is_dead or m.has_ended) return true;
        return false;
    }
};
