//! Keeps a node's lanes connected while the VM runs: one thread that goes on accepting from
//! higher-numbered peers and connects again to lower-numbered ones when the shard says that a lane
//! was cut. Handshakes, strangers and slow networks cost this thread's time, never the shard's. A
//! proven connection, or the reason why there will never be another, is left in a slot for the
//! shard, whose descriptor is signalled; a newer connection takes an older one's place.
//! How long to hope is the shard's business: it gives a peer up after peer_timeout.
//! The lock is a leaf.

const std = @import("std");
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const linkup = @import("linkup.zig");
const Connection = @import("lane.zig").Connection;

/// Pauses between attempts: the first follows a cut at once.
const retry_ns = 5 * std.time.ns_per_ms;
const retry_max_ns = 250 * std.time.ns_per_ms;

pub const Arrival = union(enum) {
    connection: Connection,
    /// Words of a refusal that another attempt will not change.
    refused: Words,

    /// Nobody wants it any more.
    pub fn discard(self: *const Arrival) void {
        if (self.* == .connection) sys.close(self.connection.fd);
    }
};

pub const Words = struct {
    buffer: [240]u8,
    length: usize,

    pub fn text(self: *const Words) []const u8 {
        return self.buffer[0..self.length];
    }
};

pub const Keeper = struct {
    config: linkup.Config,
    instances: [abi.nodes_max]u64,
    outcome: linkup.Outcome = .{},
    /// Wakes the keeper.
    eventfd: i32,
    /// Wakes the shard; its owner's to close.
    shard_fd: i32,
    /// Peers to connect to again, bit n = node n.
    wanted: std.atomic.Value(u32) = .init(0),
    stopping: std.atomic.Value(bool) = .init(false),
    /// Slots that hold something, bit n = node n.
    ready: std.atomic.Value(u32) = .init(0),
    lock: sys.Mutex = .{},
    arrivals: [abi.nodes_max]?Arrival = @splat(null),

    /// Of a link-up's config and outcome; the listener must stay open as long as the keeper lives,
    /// and the keeper in its place.
    pub fn init(config: linkup.Config, instances: [abi.nodes_max]u64, shard_fd: i32) !Keeper {
        var self: Keeper = .{
            .config = config,
            .instances = instances,
            .eventfd = try sys.eventfd(),
            .shard_fd = shard_fd,
        };
        self.config.deadline_ns = std.math.maxInt(u64);
        self.config.cancel = null;
        self.config.retry_ns = retry_ns;
        self.config.retry_max_ns = retry_max_ns;
        return self;
    }

    /// After run() has returned.
    pub fn deinit(self: *Keeper) void {
        for (self.arrivals) |arrival| if (arrival) |a| a.discard();
        sys.close(self.eventfd);
    }

    /// The thread's body.
    pub fn run(self: *Keeper) void {
        self.config.peer_instances = &self.instances;
        var link: linkup.Linkup = .{
            .config = &self.config,
            .outcome = &self.outcome,
            .keeper = self,
        };
        // Acquire pairs with stop().
        while (!self.stopping.load(.acquire)) {
            var rest = self.wanted.swap(0, .acquire);
            while (rest != 0) : (rest &= rest - 1) {
                link.want(@intCast(@ctz(rest)), sys.monotonicNs());
            }
            link.serve();
        }
        link.closeUnproven();
    }

    /// Any thread.
    pub fn stop(self: *Keeper) void {
        self.stopping.store(true, .release);
        sys.eventfdSignal(self.eventfd);
    }

    /// Shard: the lane to `node` was cut. A higher-numbered peer comes by itself.
    pub fn want(self: *Keeper, node: u8) void {
        if (node > self.config.node) return;
        // Release: the keeper's next connection comes after the cut.
        _ = self.wanted.fetchOr(@as(u32, 1) << @intCast(node), .release);
        sys.eventfdSignal(self.eventfd);
    }

    /// Shard, for itself: its next sleep ends at once.
    pub fn wakeShard(self: *const Keeper) void {
        sys.eventfdSignal(self.shard_fd);
    }

    /// Shard: the peers for which take() has something; cheap when there are none.
    pub fn takeReady(self: *Keeper) u32 {
        // Relaxed at first: nothing is read because of it.
        if (self.ready.load(.monotonic) == 0) return 0;
        return self.ready.swap(0, .acquire);
    }

    /// Null when a newer arrival was taken in its place.
    pub fn take(self: *Keeper, node: usize) ?Arrival {
        self.lock.lock();
        defer self.lock.unlock();
        defer self.arrivals[node] = null;
        return self.arrivals[node];
    }

    /// Keeper thread (linkup.zig).
    pub fn arrived(self: *Keeper, node: u8, connection: Connection) void {
        self.put(node, .{ .connection = connection });
    }

    /// Keeper thread (linkup.zig).
    pub fn refused(self: *Keeper, node: u8, text: []const u8) void {
        var words: Words = .{ .buffer = undefined, .length = text.len };
        @memcpy(words.buffer[0..text.len], text);
        self.put(node, .{ .refused = words });
    }

    fn put(self: *Keeper, node: u8, arrival: Arrival) void {
        self.lock.lock();
        if (self.arrivals[node]) |older| older.discard();
        self.arrivals[node] = arrival;
        self.lock.unlock();
        // Release: whoever sees the bit finds the slot filled.
        _ = self.ready.fetchOr(@as(u32, 1) << @intCast(node), .release);
        sys.eventfdSignal(self.shard_fd);
    }
};
