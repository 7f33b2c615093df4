//! A memory node: obeys homes that push pages out and fetch them (dsm/lender.zig), over the model
//! of lanes. It checks that each frame is fetched with what was put there, and that nobody fetches
//! what was never put.

const std = @import("std");
const protocol = @import("../dsm/lender.zig");
const types = @import("../dsm/types.zig");
const Cluster = @import("cluster.zig").Cluster;
const finding = @import("finding.zig");
const network = @import("network.zig");

const page_size = 4096;

pub const MemoryNode = struct {
    cluster: *Cluster,
    node: u8,
    lanes: network.Lanes,
    lent: []protocol.Lent,
    frames: [][page_size]u8,
    /// Page that each frame was put with.
    pages: []?u32,

    /// `each`: frames of every home.
    pub fn init(a: std.mem.Allocator, cluster: *Cluster, node: u8, each: u32) !MemoryNode {
        const homes: usize = cluster.config.nodes;
        const self: MemoryNode = .{
            .cluster = cluster,
            .node = node,
            .lanes = .{ .network = &cluster.network, .own = node },
            .lent = try a.alloc(protocol.Lent, homes),
            .frames = try a.alloc([page_size]u8, homes * each),
            .pages = try a.alloc(?u32, homes * each),
        };
        @memset(self.pages, null);
        for (self.lent, 0..) |*lent, home| {
            lent.* = .{
                .home = @intCast(home),
                .first = @intCast(home * each),
                .count = each,
            };
        }
        return self;
    }

    /// Takes all that has come.
    pub fn turn(self: *MemoryNode) void {
        for (0..self.cluster.config.nodes) |i| {
            const from: u8 = @intCast(i);
            if (!self.lanes.receive(from)) continue;
            while (self.lanes.next(from)) |received| self.serve(from, received.payload);
        }
    }

    /// When there is more to take.
    pub fn nextArrival(self: *MemoryNode) ?u64 {
        return self.cluster.network.nextArrival(self.node, self.lanes.lost);
    }

    fn serve(self: *MemoryNode, from: u8, payload: []const u8) void {
        const size = @sizeOf(types.Msg);
        const msg = std.mem.bytesToValue(types.Msg, payload[0..size]);
        const has_page = payload.len == size + page_size;
        protocol.validate(self.lent, from, msg) catch self.refuse(from, msg);
        if (has_page != msg.hasData()) self.refuse(from, msg);
        const frame: usize = @intCast(msg.old);
        if (protocol.isFree(msg)) {
            self.pages[frame] = null;
            self.cluster.counters.freed += 1;
            return;
        }
        const reply = protocol.answer(msg);
        self.cluster.network.note(self.node, from, reply);
        const head = std.mem.asBytes(&reply);
        if (has_page) {
            self.frames[frame] = payload[size..][0..page_size].*;
            self.pages[frame] = msg.page;
            self.cluster.counters.stored += 1;
            _ = self.lanes.queue(from, .protocol, &.{head});
            return;
        }
        if (self.pages[frame] != msg.page) {
            finding.fail(.wrong_content, "node {d} fetches page {d} from frame {d} of page {?d}", .{
                from, msg.page, frame, self.pages[frame],
            });
        }
        self.cluster.counters.loaded += 1;
        _ = self.lanes.queue(from, .protocol, &.{ head, &self.frames[frame] });
    }

    fn refuse(self: *const MemoryNode, from: u8, msg: types.Msg) noreturn {
        finding.fail(.peer_lost, "memory node {d} refuses message {d} of node {d}, frame {d}", .{
            self.node, msg.kind, from, msg.old,
        });
    }
};
