//! Many schedules over all CPUs: one after another from a first seed, until the time or the number
//! is over or something is found. The lowest seed that found something is the one reported.

const std = @import("std");
const core_file = @import("../dsm/core.zig");
const sys = @import("../base/sys.zig");
const Config = @import("config.zig").Config;
const Counters = @import("cluster.zig").Counters;
const Fault = @import("config.zig").Fault;
const Finding = @import("finding.zig").Finding;
const schedule = @import("schedule.zig");
const Planted = schedule.Planted;

pub const Options = struct {
    first_seed: u64,
    schedules: u64 = std.math.maxInt(u64),
    seconds: ?u64 = null,
    /// This many nodes in every schedule.
    nodes: ?u8 = null,
    planted: Planted = .{},
};

pub const Found = struct { config: Config, finding: Finding };

pub const Result = struct {
    counters: Counters = .{},
    found: ?Found = null,
    ns: u64 = 0,
};

const threads_max = 64;

pub fn run(comptime mutation: core_file.Mutation, options: Options) !Result {
    var batch: Batch = .{ .options = options, .began = sys.monotonicNs() };
    const cpus = @min(std.Thread.getCpuCount() catch 1, threads_max);
    var threads: [threads_max]std.Thread = undefined;
    for (threads[0..cpus]) |*t| t.* = try std.Thread.spawn(.{}, Batch.work, .{ &batch, mutation });
    for (threads[0..cpus]) |t| t.join();
    if (batch.failed.load(.acquire)) return error.OutOfMemory;
    batch.result.ns = sys.monotonicNs() - batch.began;
    return batch.result;
}

const Batch = struct {
    options: Options,
    began: u64,
    next: std.atomic.Value(u64) = .init(0),
    is_over: std.atomic.Value(bool) = .init(false),
    failed: std.atomic.Value(bool) = .init(false),
    lock: sys.Mutex = .{},
    result: Result = .{},

    fn work(self: *Batch, comptime mutation: core_file.Mutation) void {
        var runner = schedule.Runner.init() catch return self.failed.store(true, .release);
        defer runner.deinit();
        var counters: Counters = .{};
        while (self.take()) |number| {
            var config = Config.fromSeed(self.options.first_seed +% number);
            if (self.options.nodes) |nodes| config.nodes = nodes;
            config = config.sound();
            const outcome = runner.run(mutation, config, self.options.planted, false);
            counters.add(outcome.counters);
            if (outcome.finding) |f| self.found(config, f);
        }
        self.lock.lock();
        defer self.lock.unlock();
        self.result.counters.add(counters);
    }

    fn take(self: *Batch) ?u64 {
        if (self.is_over.load(.monotonic)) return null;
        const number = self.next.fetchAdd(1, .monotonic);
        if (number >= self.options.schedules) return null;
        const seconds = self.options.seconds orelse return number;
        if (sys.monotonicNs() - self.began < seconds * std.time.ns_per_s) return number;
        return null;
    }

    fn found(self: *Batch, config: Config, finding: Finding) void {
        self.is_over.store(true, .monotonic);
        self.lock.lock();
        defer self.lock.unlock();
        const first = self.options.first_seed;
        if (self.result.found) |f| if (f.config.seed -% first < config.seed -% first) return;
        self.result.found = .{ .config = config, .finding = finding };
    }
};

/// What was done, in a few lines.
pub fn print(result: *const Result, w: *std.Io.Writer) std.Io.Writer.Error!void {
    const c = &result.counters;
    const ms = @max(result.ns / std.time.ns_per_ms, 1);
    try w.print("simulator: {d} schedules in {d}.{d:0>3} s, {d} a second; {d} events, {d} turns " ++
        "of shards, {d} messages, {d} faults of vCPUs, {d} operations, {d} reads checked\n", .{
        c.schedules,  ms / 1000, ms % 1000,  c.schedules * 1000 / ms,
        c.events,     c.turns,   c.messages, c.faults,
        c.operations, c.reads,
    });
    try w.print("simulator: {d} interrupts, {d} twins of page tables, {d} pages evicted, " ++
        "{d} stored, {d} loaded, {d} memory nodes lost, {d} ends told, " ++
        "{d} long silences, {d} partings, {d} freezes, " ++
        "{d} times a full lane, {d} lanes resumed, {d} frames sent again, " ++
        "{d} refused, {d} VMs that ended early; " ++
        "injected:", .{
        c.interrupts, c.replicated,  c.evicted,   c.stored,
        c.loaded,     c.memory_lost, c.ends_told, c.silences,
        c.parted,     c.freezes,     c.held_back, c.reconnects,
        c.resent,     c.refused,     c.deaths,
    });
    for (std.enums.values(Fault)) |fault| {
        try w.print(" {t} {d}", .{ fault, c.injected[@backingInt(fault)] });
    }
    try w.writeAll("\n");
}
