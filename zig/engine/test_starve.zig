//! Makes the CPU scarce for a test: threads that only burn it, on every CPU or together with all
//! that the test starts on one.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("../base/sys.zig");

const burners_max = 64;

pub const How = enum {
    none,
    /// A burner on every CPU this process may use.
    burners,
    /// Threads started from now on share one CPU with a burner.
    one_cpu,
};

pub const Starve = struct {
    stopping: std.atomic.Value(bool) = .init(false),
    threads: [burners_max]std.Thread = undefined,
    count: usize = 0,
    /// CPUs that the calling thread may use otherwise.
    allowed: linux.cpu_set_t,

    pub fn start(self: *Starve, how: How) !void {
        self.* = .{ .allowed = @splat(0) };
        _ = try sys.check(linux.sched_getaffinity(0, @sizeOf(linux.cpu_set_t), &self.allowed));
        var cpus: usize = 0;
        for (self.allowed) |word| cpus += @popCount(word);
        if (how == .none) return;
        if (how == .one_cpu and !sys.pinToCpu(0)) return error.CannotPin;
        const wanted = if (how == .one_cpu) 1 else @min(cpus, burners_max);
        while (self.count < wanted) : (self.count += 1) {
            const arguments = .{ &self.stopping, @as(u32, @intCast(self.count)) };
            self.threads[self.count] = try std.Thread.spawn(.{}, burn, arguments);
        }
    }

    pub fn stop(self: *Starve) !void {
        self.stopping.store(true, .release);
        for (self.threads[0..self.count]) |t| t.join();
        try linux.sched_setaffinity(0, &self.allowed);
    }

    fn burn(stopping: *const std.atomic.Value(bool), index: u32) void {
        _ = sys.pinToCpu(index);
        while (!stopping.load(.acquire)) {
            for (0..10_000) |_| asm volatile ("" ::: .{ .memory = true });
        }
    }
};
