//! Makes a configuration that found something smaller, as long as it finds the same: fewer kinds of
//! faults, nodes, pages, vCPUs, operations, rounds and tables, with its own seed or one near it;
//! at last fewer faults altogether.

const std = @import("std");
const core_file = @import("../dsm/core.zig");
const config_file = @import("config.zig");
const Config = config_file.Config;
const finding_file = @import("finding.zig");
const schedule = @import("schedule.zig");
const Planted = schedule.Planted;

pub const Found = struct { config: Config, finding: finding_file.Finding };

/// Seeds tried for each smaller configuration.
const seeds_tried = 30;

pub fn Shrinker(comptime mutation: core_file.Mutation) type {
    return struct {
        runner: *schedule.Runner,
        planted: Planted,
        found: Found,
        /// Schedules that may still be run.
        budget: u32,

        const Self = @This();

        pub fn run(self: *Self) Found {
            while (self.budget > 0 and self.shrinkOnce()) {}
            self.limitFaults();
            return self.found;
        }

        fn shrinkOnce(self: *Self) bool {
            var faults = self.found.config.faults.iterator();
            while (faults.next()) |fault| {
                var smaller = self.found.config;
                smaller.faults.remove(fault);
                if (self.accepts(smaller)) return true;
            }
            const fields = .{ "nodes", "vcpus", "operations", "pages", "tables", "rounds" };
            inline for (fields ++ .{"stall_ms"}) |name| {
                if (self.shrinkField(name)) return true;
            }
            return false;
        }

        /// To the least value, to half, or by one.
        fn shrinkField(self: *Self, comptime name: []const u8) bool {
            const value = @field(self.found.config, name);
            const least: @TypeOf(value) = switch (name[0]) {
                'n' => 2,
                't', 's' => 0,
                else => 1,
            };
            if (value <= least) return false;
            for ([_]@TypeOf(value){ least, value / 2, value - value / 4, value - 1 }) |smaller| {
                if (smaller < least or smaller >= value) continue;
                var config = self.found.config;
                @field(config, name) = smaller;
                config = config.sound();
                // Values that go together may have brought it back.
                if (std.meta.eql(config, self.found.config)) continue;
                if (self.accepts(config)) return true;
            }
            return false;
        }

        fn accepts(self: *Self, config: Config) bool {
            for (0..seeds_tried) |i| {
                var candidate = config;
                candidate.seed +%= i;
                if (self.attempt(candidate)) |_| return true;
                if (self.budget == 0) return false;
            }
            return false;
        }

        fn attempt(self: *Self, config: Config) ?schedule.Outcome {
            self.budget -|= 1;
            const outcome = self.runner.run(mutation, config, self.planted, false);
            const finding = outcome.finding orelse return null;
            if (finding.kind != self.found.finding.kind) return null;
            self.found = .{ .config = config, .finding = finding };
            return outcome;
        }

        /// Without the faults that come after the one that matters, and as many as possible before.
        fn limitFaults(self: *Self) void {
            if (self.found.config.faults.count() == 0) return;
            const outcome = self.runner.run(mutation, self.found.config, self.planted, false);
            var most: u32 = 0;
            for (outcome.counters.injected) |n| most += @intCast(n);
            var least: u32 = 0;
            while (least < most) {
                const middle = least + (most - least) / 2;
                var config = self.found.config;
                config.faults_max = middle;
                if (self.attempt(config) != null) most = middle else least = middle + 1;
            }
        }
    };
}
