//! Cuts the lanes of a cluster over and over while its nodes work, in every way that a network and
//! a peer have: an orderly end, a reset that drops what is under way, a new connection in the place
//! of one that still works. Then brings another connection, as a keeper would after a handshake, to
//! the two ends at different times.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("../base/sys.zig");
const cluster_file = @import("test_cluster.zig");
const Cluster = cluster_file.Cluster;
const Dice = @import("test_payload.zig").Dice;

const nodes_max = cluster_file.nodes_max;

pub const Cuts = struct {
    cluster: *Cluster,
    dice: Dice,
    /// Longest pause between two cuts, and longest time without a connection.
    period_ns: u64,
    down_ns: u64,
    /// Of the lower-numbered node's end of each pair's newest connection; -1: not ours.
    ends: [nodes_max][nodes_max]i32 = @splat(@splat(-1)),
    count: u64 = 0,
    stopping: std.atomic.Value(bool) = .init(false),
    failure: ?anyerror = null,
    thread: std.Thread,

    /// The cluster is resumable, and outlives this.
    pub fn start(self: *Cuts, cluster: *Cluster, seed: u64) !void {
        self.* = .{
            .cluster = cluster,
            .dice = .init(seed),
            .period_ns = 4 * std.time.ns_per_ms,
            .down_ns = std.time.ns_per_ms,
            .thread = undefined,
        };
        self.thread = try std.Thread.spawn(.{}, run, .{self});
    }

    /// Every pair is connected, or will be as soon as its shards look.
    pub fn stop(self: *Cuts) !void {
        self.stopping.store(true, .release);
        self.thread.join();
        for (self.ends) |row| for (row) |fd| sys.close(fd);
        if (self.failure) |e| return e;
    }

    fn run(self: *Cuts) void {
        var pause_ns = self.period_ns;
        while (!self.stopping.load(.acquire)) {
            self.pause(pause_ns);
            const began = sys.monotonicNs();
            self.cutOne() catch |e| {
                self.failure = e;
                return;
            };
            // On a slow machine the nodes get something done between two cuts all the same.
            const took = sys.monotonicNs() - began;
            pause_ns = std.math.clamp(4 * took, self.period_ns, std.time.ns_per_s - 1);
        }
    }

    fn pause(self: *Cuts, limit_ns: u64) void {
        sys.pause(self.dice.below(limit_ns));
    }

    fn cutOne(self: *Cuts) !void {
        const nodes = self.cluster.nodes.len;
        const a: usize = @intCast(self.dice.below(nodes - 1));
        const b: usize = a + 1 + @as(usize, @intCast(self.dice.below(nodes - 1 - a)));
        const old = self.ends[a][b];
        if (old >= 0) {
            switch (self.dice.below(3)) {
                0 => try unlessGone(linux.shutdown(old, linux.SHUT.RDWR)),
                1 => try unlessGone(disconnect(old)),
                else => {},
            }
            sys.close(old);
            self.ends[a][b] = -1;
            self.pause(self.down_ns);
        }
        self.count += 1;
        const ends = try Cluster.newConnection(a, b, self.count);
        self.ends[a][b] = @intCast(try sys.check(linux.dup(ends[0].fd)));
        const pair = [2]usize{ a, b };
        const first: usize = @intCast(self.dice.below(2));
        for ([_]usize{ first, 1 - first }) |own| {
            const keeper = &self.cluster.nodes[pair[own]].keeper.?;
            keeper.arrived(@intCast(pair[1 - own]), ends[own]);
            self.pause(self.down_ns);
        }
    }

    /// A TCP socket connected to no address forgets its peer, with a reset (connect(2)).
    fn disconnect(fd: i32) usize {
        const nobody: linux.sockaddr = .{ .family = linux.AF.UNSPEC, .data = @splat(0) };
        return linux.connect(fd, @ptrCast(&nobody), @sizeOf(linux.sockaddr));
    }

    /// The peer may have reset the connection before, when it took a newer one.
    fn unlessGone(result: usize) sys.Error!void {
        if (linux.errno(result) != .NOTCONN) _ = try sys.check(result);
    }
};
