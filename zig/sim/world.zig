//! One schedule: the production shell and core of every node in a simulated environment, run event
//! by event until nothing is left to happen. Checked after every step: one writer or many readers
//! (truth.zig, at each change of a mapping), content, versions. Checked at rest (rest.zig): every
//! fault has ended, directories, kernels and cores agree, nothing leaked.

const std = @import("std");
const abi = @import("../abi.zig");
const core_file = @import("../dsm/core.zig");
const types = @import("../dsm/types.zig");
const Inbox = @import("../engine/inbox.zig").Inbox;
const shell_file = @import("../engine/shell.zig");
const mailbox = @import("../memory/mailbox.zig");
const cluster_file = @import("cluster.zig");
const Cluster = cluster_file.Cluster;
const Config = @import("config.zig").Config;
const Event = @import("events.zig").Event;
const finding = @import("finding.zig");
const freezer_file = @import("freezer.zig");
const Freezer = freezer_file.Freezer;
const kernel = @import("kernel.zig");
const lanes_file = @import("lanes.zig");
const MemoryNode = @import("memory_node.zig").MemoryNode;
const rest = @import("rest.zig");
const peer_timeout_ns = @import("wires.zig").peer_timeout_ns;

const us = std.time.ns_per_us;
const ms = std.time.ns_per_ms;

/// A schedule in which nothing gets done for so long has a livelock, though no fault was injected
/// for most of that time.
const idle_events_max = 5000;
const idle_ns_max = 3000 * ms;
const calm_from_ns = 500 * ms;
/// As long after a silence all know that the VM is over, if it is: those that nobody tells hear
/// nothing for peer_timeout, which begins anew when a connection does.
const death_ns_max = 4 * peer_timeout_ns;
/// Fewer than a batch has pages: some wait.
const discards_max = 4;
const silence_ns_max = peer_timeout_ns + peer_timeout_ns / 2;

/// What is wrong on purpose; the core only where the world is made for Mutation.chosen.
pub const Planted = struct {
    core: core_file.Mutation = .none,
    shell: shell_file.Bug = .none,
    environment: cluster_file.Plant = .none,
};

pub fn WorldOf(comptime core_mutation: core_file.Mutation) type {
    return struct {
        cluster: Cluster,
        planted: Planted,
        shells: []Shell,
        rams: []kernel.Ram,
        memory_nodes: []MemoryNode,
        freezers: []Freezer,
        /// Frames of a home on each memory node.
        frames: []core_file.FrameRange,
        stats: []abi.EngineStats,
        ends: []End,
        homes: []core_file.HomeRange,
        /// Newest version of each page in its home's directory.
        versions: []u32,
        resets_missing: usize,
        is_resetting: bool,

        const World = @This();
        pub const Shell = shell_file.ShellOf(Env);

        /// Context of a shell's handler.
        const End = struct { world: *World, node: u8 };

        pub const Env = struct {
            world: *World,
            node: u8,

            pub const mutation = core_mutation;
            pub const Ram = kernel.Ram;
            pub const Kernel = *kernel.Kernel;
            pub const Lanes = lanes_file.Lanes;

            pub fn now(self: Env) u64 {
                const cluster = &self.world.cluster;
                return cluster.now + cluster.machines[self.node].clock_ns;
            }

            pub fn takePost(self: Env) ?mailbox.Post {
                return self.world.cluster.takePost(self.node);
            }

            /// Told at the moment from which nobody has the page.
            pub fn emptied(self: Env, page: u32) void {
                const cluster = &self.world.cluster;
                cluster.counters.emptied += 1;
                cluster.touch(page);
                cluster.trace("page {d} is discarded", .{page});
                @memset(cluster.truth.page(page), 0);
            }

            pub fn bug(self: Env) shell_file.Bug {
                return self.world.planted.shell;
            }

            pub fn fatal(self: Env, comptime format: []const u8, args: anytype) noreturn {
                const cluster = &self.world.cluster;
                if (cluster.machines[self.node].must_stop) {
                    cluster.counters.deaths += 1;
                    finding.finish();
                }
                finding.fail(.fatal, "node {d}: " ++ format, .{self.node} ++ args);
            }
        };

        /// In place: shells and cluster keep each other's addresses.
        pub fn init(
            self: *World,
            a: std.mem.Allocator,
            config: Config,
            planted: Planted,
            is_traced: bool,
        ) !void {
            const n: usize = config.nodes;
            self.planted = planted;
            self.resets_missing = 0;
            self.is_resetting = false;
            try self.cluster.init(a, config, is_traced);
            self.cluster.plant = planted.environment;
            self.cluster.checker = checkStep;
            self.shells = try a.alloc(Shell, n);
            self.rams = try a.alloc(kernel.Ram, n);
            self.stats = try a.alloc(abi.EngineStats, n);
            self.ends = try a.alloc(End, n);
            self.versions = try a.alloc(u32, config.pages);
            @memset(self.versions, 0);
            @memset(self.stats, std.mem.zeroes(abi.EngineStats));
            self.homes = try self.chooseHomes(a);
            try self.initMemory(a);
            self.freezers = try a.alloc(Freezer, n);
            for (self.freezers, 0..) |*f, i| f.* = .init(&self.cluster, @intCast(i));
            const holds_faults = self.cluster.net.random().boolean() and
                !config.faults.contains(.signal);
            for (self.shells, 0..) |*shell, i| try self.initShell(a, shell, i, holds_faults);
            if (config.lanes == .real) self.cluster.wires.connectAll();
        }

        fn lanesOf(self: *World, node: u8) lanes_file.Lanes {
            const cluster = &self.cluster;
            return .{
                .cluster = cluster,
                .own = node,
                .kind = if (cluster.config.lanes == .model)
                    .{ .model = .{ .network = &cluster.network, .own = node } }
                else
                    .{ .real = cluster.wires.lanesOf(node, .{
                        .context = &self.ends[node],
                        .lost = lost,
                        .noticed = noticed,
                    }, &self.stats[node]) },
            };
        }

        /// Ranges of one page or more, each with a random home.
        fn chooseHomes(self: *World, a: std.mem.Allocator) ![]core_file.HomeRange {
            const random = self.cluster.net.random();
            var ranges: std.ArrayList(core_file.HomeRange) = .empty;
            var page: u32 = 0;
            while (page < self.cluster.config.pages) {
                const home = random.uintLessThan(u8, self.cluster.config.nodes);
                try ranges.append(a, .{ .first_page = page, .node = home });
                page += 1 + random.uintLessThan(u32, 4);
            }
            return ranges.items;
        }

        /// Room for every page on each of them.
        fn initMemory(self: *World, a: std.mem.Allocator) !void {
            const config = self.cluster.config;
            self.memory_nodes = try a.alloc(MemoryNode, config.memory);
            for (self.memory_nodes, config.nodes..) |*m, n| {
                m.* = try .init(a, &self.cluster, @intCast(n), config.pages);
            }
            const total = @as(usize, config.nodes) * config.memory;
            self.frames = try a.alloc(core_file.FrameRange, total);
            for (self.frames, 0..) |*range, i| range.* = .{
                .node = @intCast(config.nodes + i % config.memory),
                .first = @intCast(i / config.memory * config.pages),
                .count = config.pages,
            };
        }

        fn initShell(
            self: *World,
            a: std.mem.Allocator,
            shell: *Shell,
            index: usize,
            holds_faults: bool,
        ) !void {
            const config = self.cluster.config;
            const node: u8 = @intCast(index);
            self.rams[index] = .{ .kernel = &self.cluster.machines[index].kernel };
            self.ends[index] = .{ .world = self, .node = node };
            const transfers = try a.alloc(u16, config.pages);
            @memset(transfers, 0);
            shell.* = try .init(a, .{
                .env = .{ .world = self, .node = node },
                .ram = &self.rams[index],
                .uffd = .{ .kernel = &self.cluster.machines[index].kernel, .base = kernel.base },
                .core = .{
                    .node = node,
                    .node_count = config.machines(),
                    .compute = (@as(types.Nodes, 1) << @intCast(config.nodes)) - 1,
                    .frames = self.frames[index * config.memory ..][0..config.memory],
                    .frame_copies = config.copies,
                    .page_count = config.pages,
                    .home = self.homes,
                    .replicate = config.tables > 0,
                    .hold_ns_max = @as(u64, config.hold_us) * us,
                    .threads = config.vcpus,
                    .tables_max = config.tables + 2,
                    .mutation = self.planted.core,
                    .discards_max = if (config.discards > 0) discards_max else 0,
                    .slots_max = if (config.cache > 0 or config.own > 0) config.slots else 0,
                },
                .limits = .{ .cache_pages = config.cache, .own_pages = config.own },
                .lanes = self.lanesOf(node),
                .handler = .{
                    .context = &self.ends[index],
                    .receive = receive,
                    .lost = lost,
                    .noticed = noticed,
                    .settled = settled,
                    .reset_done = resetDone,
                    .discarded = discarded,
                    .on_time = onTime,
                    .page_lost = pageLost,
                    .inboxes = inboxAt,
                },
                .stats = &self.stats[index],
                .transfers = transfers,
                .faults_hold = holds_faults,
            });
            self.cluster.machines[index].access = shell.core.local;
            const stall_ns = self.freezers[index].stall_ns;
            if (stall_ns > 0) shell.lanes.kind.real.watch.stall_ns = stall_ns;
        }

        fn ofContext(context: *anyopaque) *End {
            return @ptrCast(@alignCast(context));
        }

        fn receive(context: *anyopaque, from: u8, payload: []const u8) void {
            const end = ofContext(context);
            const cluster = &end.world.cluster;
            if (Cluster.isFreeze(payload)) {
                const wire = std.mem.bytesToValue(freezer_file.Wire, payload);
                const shell = &end.world.shells[end.node];
                return end.world.freezers[end.node].receive(shell, from, wire);
            }
            const answer = cluster.receive(end.node, from, payload) orelse return;
            end.world.shells[end.node].sendSpan(@as(u64, 1) << @intCast(from), answer);
        }

        fn lost(context: *anyopaque, node: u8, why: []const u8) void {
            const end = ofContext(context);
            end.world.cluster.hasLost(end.node, node, why);
        }

        fn noticed(context: *anyopaque, node: u8, what: []const u8) void {
            const end = ofContext(context);
            end.world.cluster.trace("node {d}: lane to {d}: {s}", .{ end.node, node, what });
        }

        fn onTime(context: *anyopaque, now: u64) void {
            const end = ofContext(context);
            end.world.freezers[end.node].onTime(&end.world.shells[end.node], now);
        }

        fn pageLost(context: *anyopaque, gpa: u64, why: []const u8) void {
            const end = ofContext(context);
            const cluster = &end.world.cluster;
            if (cluster.mayLosePages()) {
                cluster.counters.deaths += 1;
                finding.finish();
            }
            end.world.shells[end.node].env.fatal("page 0x{x}: {s}", .{ gpa, why });
        }

        fn settled(context: *anyopaque) void {
            ofContext(context).world.resets_missing -= 1;
        }

        fn resetDone(context: *anyopaque) void {
            const end = ofContext(context);
            end.world.resets_missing -= 1;
            const machine = &end.world.cluster.machines[end.node];
            machine.access = end.world.shells[end.node].core.local;
        }

        fn discarded(context: *anyopaque) void {
            const end = ofContext(context);
            end.world.cluster.machines[end.node].is_discarding = false;
        }

        fn inboxAt(context: *anyopaque, index: usize) ?*const Inbox {
            const end = ofContext(context);
            const cluster = &end.world.cluster;
            if (cluster.plant == .always_at_rest or index >= cluster.config.vcpus) return null;
            cluster.interleave(end.node);
            const first = @as(usize, end.node) * cluster.config.vcpus;
            return &cluster.vcpus[first + index].inbox;
        }

        fn ofCluster(cluster: *Cluster) *World {
            return @alignCast(@fieldParentPtr("cluster", cluster));
        }

        /// After each step of a shell, for the pages it touched.
        fn checkStep(cluster: *Cluster, _: u8) void {
            const self = ofCluster(cluster);
            if (self.is_resetting) return;
            for (cluster.touched.items) |page| {
                const home = self.shells[0].core.homeOf(page);
                const version = self.shells[home].core.directory[page].version;
                if (version < self.versions[page]) {
                    finding.fail(.version, "page {d}: the directory's version {d} became {d}", .{
                        page, self.versions[page], version,
                    });
                }
                self.versions[page] = version;
                if (cluster.truth.is_table[page]) self.checkTable(page);
            }
        }

        /// A page that may be replicated: only replicas may be written to on several nodes.
        fn checkTable(self: *World, page: u32) void {
            var writers: usize = 0;
            for (self.cluster.machines[0..self.shells.len]) |*m| {
                if (m.is_dead or !m.kernel.canWrite(page)) continue;
                if (m.access[page] != .replicated) writers += 1;
            }
            if (writers <= 1) return;
            finding.fail(.two_writers, "page {d}: {d} nodes can write to it and are no replicas", .{
                page, writers,
            });
        }

        /// The whole schedule.
        pub fn run(self: *World) void {
            const cluster = &self.cluster;
            for (0..cluster.config.rounds) |round| {
                for (cluster.vcpus) |*v| {
                    v.state = .ready;
                    v.left = cluster.config.operations;
                    const at = cluster.now + cluster.guest.random().uintLessThan(u64, 5 * us);
                    cluster.scheduleVcpu(v, at);
                }
                cluster.unfinished = cluster.vcpus.len;
                cluster.events.add(cluster.now, .weather, 0, 0);
                self.runEvents();
                if (cluster.isDying()) return self.checkDeath();
                rest.check(self);
                const is_last = round + 1 == cluster.config.rounds;
                if (!is_last and cluster.net.random().boolean()) self.reset();
            }
            self.count();
        }

        fn count(self: *World) void {
            const counters = &self.cluster.counters;
            for (self.stats) |*s| {
                counters.replicated += s.page_table_transfers;
                counters.evicted += s.pages_evicted;
                counters.refusals += s.discards_refused;
            }
            if (self.cluster.config.lanes == .model) return;
            const nodes = self.shells.len;
            for (0..nodes) |from| for (0..nodes) |to| {
                if (from == to) continue;
                const c = &self.cluster.wires.lane(from, to).counters;
                counters.held_back += c.held_back;
                counters.reconnects += c.connections - 1;
                counters.resent += c.resent;
                counters.refused += c.violations;
            };
        }

        fn runEvents(self: *World) void {
            const cluster = &self.cluster;
            while (cluster.events.next()) |event| {
                cluster.now = event.at;
                cluster.counters.events += 1;
                cluster.idle_events += 1;
                if (cluster.idle_events > idle_events_max) self.checkProgress();
                self.obey(event);
                if (cluster.config.lanes == .real and self.isOver()) return;
            }
        }

        /// Production lanes have something to do for ever: whether nothing else is left.
        fn isOver(self: *World) bool {
            const cluster = &self.cluster;
            if (cluster.isDying()) {
                for (cluster.machines[0..self.shells.len]) |*m| if (!m.is_dead) return false;
                return true;
            }
            if (cluster.unfinished > 0 or self.resets_missing > 0) return false;
            for (self.shells, cluster.machines[0..self.shells.len]) |*shell, *m| {
                if (!shell.isQuiet() or m.posts.items.len > 0) return false;
                if (m.parks_from != null) return false;
            }
            return cluster.wires.isEmpty();
        }

        /// Longer than any fault lasts, and yet vCPUs and shards are busy: with nothing.
        fn checkProgress(self: *World) void {
            const cluster = &self.cluster;
            const since = @max(cluster.progressed_at, cluster.silent_until orelse 0);
            const idle_ns = cluster.now -| since;
            if (idle_ns > calm_from_ns) cluster.is_calm = true;
            if (cluster.isDying()) {
                if (idle_ns > death_ns_max) self.checkDeath();
                return;
            }
            if (idle_ns < idle_ns_max) return;
            finding.fail(.stuck, "{d} events in {d} ms without any operation done", .{
                cluster.idle_events, idle_ns / ms,
            });
        }

        fn obey(self: *World, event: Event) void {
            const cluster = &self.cluster;
            switch (event.kind) {
                .turn => self.turn(@intCast(event.index), event.at),
                .vcpu => {
                    const v = &cluster.vcpus[event.index];
                    if (v.due == event.at) cluster.runVcpu(v);
                },
                .signal => {
                    const v = &cluster.vcpus[event.index];
                    if (!cluster.machines[v.node].has_ended) v.signal(event.argument);
                },
                .connect => cluster.wires.tryConnect(event.index),
                .ack => cluster.network.acknowledge(event.index, event.argument),
                .weather => self.weather(),
                .exit => cluster.kill(@intCast(event.index)),
                .silence => {
                    const node: u8 = @intCast(event.argument);
                    const silent = @as(types.Nodes, 1) << @intCast(event.index);
                    self.shells[node].lanes.kind.model.silent |= silent;
                    cluster.wakeShard(node, cluster.now);
                },
            }
        }

        fn turn(self: *World, node: u8, at: u64) void {
            const cluster = &self.cluster;
            const m = &cluster.machines[node];
            if (m.turn_at != at) return;
            m.turn_at = null;
            if (m.is_dead) return;
            if (m.stands_until > cluster.now) return cluster.wakeShard(node, m.stands_until);
            cluster.counters.turns += 1;
            const compute = self.shells.len;
            if (node >= compute) return self.turnMemory(&self.memory_nodes[node - compute]);
            self.shells[node].turn();
            cluster.stepDone(node);
            self.planTurn(node);
        }

        fn turnMemory(self: *World, m: *MemoryNode) void {
            m.turn();
            const at = m.nextArrival() orelse return;
            const cluster = &self.cluster;
            cluster.wakeShard(m.node, @max(at, cluster.now + 300));
        }

        /// What the shard's sleep would end for (pager.zig, wait).
        fn planTurn(self: *World, node: u8) void {
            const cluster = &self.cluster;
            const shell = &self.shells[node];
            // A turn takes its time.
            const soon = cluster.now + 300 + cluster.net.random().uintLessThan(u64, us);
            var at: ?u64 = switch (shell.lanes.kind) {
                .model => |*l| cluster.network.nextArrival(node, l.lost),
                .real => |*l| cluster.wires.nextEvent(node, l),
            };
            if (shell.core.nextDeadline()) |deadline| {
                const ns = deadline -| cluster.machines[node].clock_ns;
                at = @min(at orelse ns, ns);
            }
            const has_faults = cluster.machines[node].kernel.hasUnread() and shell.mayTakeFaults();
            const has_posts = cluster.hasPosts(node) and shell.lanes.mayRequest();
            if (has_faults or has_posts or shell.discards.isDue(shell)) at = soon;
            if (at) |ns| cluster.wakeShard(node, @max(ns, soon));
        }

        /// Now and then something breaks, or somebody stands still, while vCPUs have work.
        fn weather(self: *World) void {
            const cluster = &self.cluster;
            const random = cluster.chaos.random();
            if (cluster.unfinished == 0 or cluster.isDying()) return;
            const next = cluster.now + random.uintLessThan(u64, 4 * ms);
            cluster.events.add(next + 1, .weather, 0, 0);
            const node = random.uintLessThan(u8, cluster.config.machines());
            if (cluster.inject(.pause_node, 6)) {
                const until = cluster.now + random.uintLessThan(u64, 30 * ms);
                const stands_until = &cluster.machines[node].stands_until;
                stands_until.* = @max(stands_until.*, until);
            }
            self.longSilence(node);
            const is_parted = cluster.network.heals_at > cluster.now;
            if (!is_parted and cluster.inject(.partition, 8)) {
                const apart = random.int(types.Nodes);
                cluster.network.partition(apart, cluster.now + random.uintLessThan(u64, 40 * ms));
            }
            const runs_vcpus = node < cluster.config.nodes;
            if (runs_vcpus and cluster.inject(.crash, 24)) cluster.kill(node);
            if (!runs_vcpus and cluster.inject(.crash_memory, 12)) cluster.kill(node);
        }

        /// Once in a schedule.
        fn longSilence(self: *World, node: u8) void {
            const cluster = &self.cluster;
            if (cluster.silent_until != null) return;
            const stands = cluster.inject(.standstill, 6);
            if (!stands and !cluster.inject(.outage, 6)) return;
            const random = cluster.chaos.random();
            const until = cluster.now + random.uintLessThan(u64, silence_ns_max);
            if (stands) {
                cluster.machines[node].stands_until = until;
            } else cluster.network.partition(random.int(types.Nodes), until);
            cluster.fallSilent(until);
        }

        /// A node has died, or was given up: all others have to end, and nothing more.
        fn checkDeath(self: *World) void {
            self.cluster.counters.deaths += 1;
            for (self.cluster.machines[0..self.shells.len]) |m| {
                if (m.is_dead or m.has_ended) continue;
                finding.fail(.stuck, "node {d} goes on without a node that has died", .{m.node});
            }
        }

        /// All vCPUs are parked and nothing is in flight: every node forgets every page.
        fn reset(self: *World) void {
            const cluster = &self.cluster;
            self.commandAll(shell_file.Command.settle);
            self.is_resetting = true;
            @memset(cluster.truth.bytes, 0);
            @memset(cluster.network.granted, 0);
            cluster.tables = .init(cluster.config.tables);
            self.commandAll(shell_file.Command.reset);
            self.is_resetting = false;
            @memset(self.versions, 0);
            rest.check(self);
        }

        /// Of settling and resetting: every node obeys before it goes on.
        fn commandAll(self: *World, which: u8) void {
            self.resets_missing = self.shells.len;
            for (0..self.shells.len) |n| {
                const nothing: u64 = 0;
                self.cluster.post(@intCast(n), 0, which, std.mem.asBytes(&nothing));
            }
            self.runEvents();
            if (self.resets_missing > 0) finding.fail(.stuck, "a reset does not end", .{});
        }
    };
}
