//! Runs one schedule from its configuration, on a fiber and in an arena of its own.

const std = @import("std");
const core_file = @import("../dsm/core.zig");
const sys = @import("../base/sys.zig");
const Config = @import("config.zig").Config;
const Counters = @import("cluster.zig").Counters;
const fiber = @import("fiber.zig");
const finding = @import("finding.zig");
const Finding = finding.Finding;
const world_file = @import("world.zig");
pub const Planted = world_file.Planted;

/// Address space of one schedule; what it uses stays for the next one, unless it was large.
const arena_bytes = 4 << 30;
const kept_bytes = 16 << 20;
const MADV_DONTNEED = 4;

pub const Outcome = struct {
    finding: ?Finding,
    counters: Counters,
    /// Virtual time at its end.
    now: u64,
};

/// What one OS thread needs to run schedules.
pub const Runner = struct {
    fiber: fiber.Fiber,
    memory: []align(std.heap.page_size_min) u8,

    pub fn init() sys.Error!Runner {
        var on: fiber.Fiber = try .init();
        errdefer on.deinit();
        return .{ .fiber = on, .memory = try sys.mapAnonymous(arena_bytes) };
    }

    pub fn deinit(self: *Runner) void {
        self.fiber.deinit();
        sys.unmap(self.memory);
    }

    pub fn run(
        self: *Runner,
        comptime mutation: core_file.Mutation,
        config: Config,
        planted: Planted,
        is_traced: bool,
    ) Outcome {
        const Job = JobOf(mutation);
        var arena: std.heap.FixedBufferAllocator = .init(self.memory);
        const world = arena.allocator().create(Job.World) catch @panic("no memory for a world");
        world.cluster.counters = .{};
        var job: Job = .{
            .world = world,
            .arena = &arena,
            .config = config.sound(),
            .planted = planted,
            .is_traced = is_traced,
        };
        const found = finding.catching(&self.fiber, Job.main, &job);
        const outcome: Outcome = .{
            .finding = found,
            .counters = world.cluster.counters,
            .now = world.cluster.now,
        };
        if (arena.end_index > kept_bytes) {
            _ = std.os.linux.madvise(self.memory.ptr, arena.end_index, MADV_DONTNEED);
        }
        return outcome;
    }
};

fn JobOf(comptime mutation: core_file.Mutation) type {
    return struct {
        const World = world_file.WorldOf(mutation);

        world: *World,
        arena: *std.heap.FixedBufferAllocator,
        config: Config,
        planted: Planted,
        is_traced: bool,

        fn main(context: *anyopaque) void {
            const self: *@This() = @ptrCast(@alignCast(context));
            const a = self.arena.allocator();
            self.world.init(a, self.config, self.planted, self.is_traced) catch
                @panic("no memory for a schedule");
            self.world.run();
        }
    };
}
