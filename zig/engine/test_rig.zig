//! What the tests on KVM stand on: engines with a VM each and payload guests, what befalls them
//! meanwhile, and the audits at the end.

const std = @import("std");
const linux = std.os.linux;
const testing = std.testing;
const cluster_file = @import("test_cluster.zig");
const Cluster = cluster_file.Cluster;
const Cuts = @import("test_cuts.zig").Cuts;
const Guests = @import("test_guest.zig").Guests;
const payload = @import("test_payload.zig");
const Limits = @import("room.zig").Limits;

/// What befalls a test. Where it makes every page slow there are fewer iterations.
pub const Weather = struct {
    cut: bool = false,
    /// A node keeps half of its own pages and half of the others', a memory node the rest.
    half: bool = false,
    divide: u64 = 1,
    iterations_max: u64 = std.math.maxInt(u64),

    /// How many iterations a test was asked for, in this weather.
    pub fn iterations(self: Weather) !u64 {
        const text = testing.environ.getPosix("SSIHV_ITERATIONS") orelse
            return @min(iterations_default / self.divide, self.iterations_max);
        const wanted = std.fmt.parseInt(u64, text, 10) catch {
            std.debug.print("SSIHV_ITERATIONS={s}: not a number\n", .{text});
            return error.BadEnvironment;
        };
        return @max(1, @min(wanted / self.divide, self.iterations_max));
    }
};

const iterations_default = 100_000;

pub const Options = struct {
    nodes: u8,
    vcpus: usize,
    pages_per_node: u32,
    hold_ns_max: u64 = std.time.ns_per_ms,
    weather: Weather = .{},
};

/// What the rigs of a test did together.
pub const Tally = struct {
    remote_faults: u64 = 0,
    cuts: u64 = 0,
    /// Ends of lanes that went on over another connection.
    resumed: u64 = 0,
    resent: u64 = 0,
    evicted: u64 = 0,

    pub fn add(self: *Tally, other: *const Tally) void {
        inline for (@typeInfo(Tally).@"struct".field_names) |name| {
            @field(self, name) += @field(other, name);
        }
    }

    pub fn tell(self: *const Tally) void {
        std.debug.print("{d} remote faults", .{self.remote_faults});
        if (self.cuts > 0) std.debug.print(", {d} cuts, {d} frames sent again", .{
            self.cuts, self.resent,
        });
        if (self.evicted > 0) std.debug.print(", {d} pages evicted", .{self.evicted});
        std.debug.print("\n", .{});
    }
};

/// error.SkipZigTest, and why, where there is no KVM.
pub fn needKvm() !void {
    if (linux.errno(linux.access("/dev/kvm", linux.R_OK | linux.W_OK)) == .SUCCESS) return;
    std.debug.print("skipped: /dev/kvm is missing, or not this user's to open\n", .{});
    return error.SkipZigTest;
}

pub const Rig = struct {
    cluster: *Cluster,
    guests: *Guests,
    cuts: ?Cuts = null,

    pub fn start(self: *Rig, options: Options) !void {
        const cluster = try Cluster.start(testing.allocator, .{
            .nodes = options.nodes,
            .pages_per_node = options.pages_per_node,
            .hold_ns_max = options.hold_ns_max,
            .resumable = options.weather.cut,
            .memory_nodes = @intFromBool(options.weather.half),
            .frames = if (options.weather.half) options.pages_per_node else 0,
            .limits = if (options.weather.half) halfOf(options) else .{},
        });
        self.* = .{
            .cluster = cluster,
            .guests = try Guests.start(testing.allocator, cluster, options.vcpus),
        };
        if (!options.weather.cut) return;
        self.cuts = @as(Cuts, undefined);
        try self.cuts.?.start(cluster, testing.random_seed);
    }

    fn halfOf(options: Options) Limits {
        const own = options.pages_per_node;
        const others = own * (options.nodes - 1);
        return .{ .own_pages = (own + 1) / 2, .cache_pages = (others + 1) / 2 };
    }

    /// For `payloads` guests that meet.
    pub fn stage(self: *const Rig, payloads: usize) payload.Stage {
        var s: payload.Stage = .{
            .runner = .guest,
            .rams = undefined,
            .nodes = self.cluster.nodes.len,
            .barrier = .{ .runner = .guest, .count = @intCast(payloads) },
        };
        for (self.cluster.nodes, 0..) |*node, n| s.rams[n] = node.ram.memory.ptr;
        return s;
    }

    /// Nothing is lost, nothing in flight, and what each engine and its kernel say agrees.
    pub fn finish(self: *Rig, tally: *Tally) !void {
        if (self.cuts) |*cuts| {
            try cuts.stop();
            tally.cuts += cuts.count;
        }
        self.guests.stop();
        tally.remote_faults += self.cluster.remoteFaults();
        tally.evicted += self.cluster.sum("pages_evicted");
        for (self.cluster.nodes) |*node| for (&node.lanes) |*maybe| if (maybe.*) |*lane| {
            tally.resumed += lane.counters.connections - 1;
            tally.resent += lane.counters.resent;
        };
        try self.cluster.stop();
    }
};
