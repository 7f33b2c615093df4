//! What a shell has for lanes here: a model of them (network.zig), or the production ones over
//! simulated sockets (wires.zig). Either way each message is looked at as it goes, and each frame
//! taken ends a step.

const std = @import("std");
const types = @import("../dsm/types.zig");
const frame = @import("../transport/frame.zig");
const Received = @import("../transport/lane.zig").Received;
const Cluster = @import("cluster.zig").Cluster;
const network = @import("network.zig");
const wires = @import("wires.zig");

pub const Lanes = struct {
    cluster: *Cluster,
    own: u8,
    kind: union(enum) { model: network.Lanes, real: wires.Lanes },

    pub const Handle = union(enum) { model, real: wires.LaneHandle };

    pub fn mayRequest(self: *Lanes) bool {
        return switch (self.kind) {
            inline else => |*l| l.mayRequest(),
        };
    }

    pub fn isLost(self: *const Lanes, node: u8) bool {
        return switch (self.kind) {
            inline else => |*l| l.isLost(node),
        };
    }

    pub fn receive(self: *Lanes, node: u8) ?Handle {
        switch (self.kind) {
            .model => |*l| return if (l.receive(node)) .model else null,
            .real => |*l| return .{ .real = l.receive(node) orelse return null },
        }
    }

    pub fn next(self: *Lanes, node: u8, handle: Handle) ?Received {
        self.cluster.stepDone(self.own);
        const received = switch (self.kind) {
            .model => |*l| l.next(node),
            .real => |*l| l.next(node, handle.real),
        } orelse return null;
        if (received.kind != .protocol) return received;
        const msg = std.mem.bytesToValue(types.Msg, received.payload[0..@sizeOf(types.Msg)]);
        self.cluster.touch(msg.page);
        self.cluster.trace("{d} takes {t} page {d} version {d} of {d}", .{
            self.own, @as(types.MsgKind, @fromBackingInt(msg.kind)), msg.page, msg.version, node,
        });
        return received;
    }

    pub fn queue(self: *Lanes, to: u8, kind: frame.Kind, parts: []const []const u8) bool {
        if (kind == .protocol and !self.isLost(to)) {
            const msg = std.mem.bytesToValue(types.Msg, parts[0][0..@sizeOf(types.Msg)]);
            self.cluster.network.note(self.own, to, msg);
        }
        return switch (self.kind) {
            inline else => |*l| l.queue(to, kind, parts),
        };
    }

    pub fn lose(self: *Lanes, node: u8, why: []const u8) void {
        switch (self.kind) {
            inline else => |*l| l.lose(node, why),
        }
    }

    pub fn heardGoodbye(self: *Lanes, node: u8, payload: []const u8) void {
        switch (self.kind) {
            // Only the production lanes tell a peer that it is given up.
            .model => unreachable,
            .real => |*l| l.heardGoodbye(node, payload),
        }
    }

    pub fn onTime(self: *Lanes, now: u64) void {
        switch (self.kind) {
            inline else => |*l| l.onTime(now),
        }
    }

    pub fn flush(self: *Lanes) void {
        switch (self.kind) {
            inline else => |*l| l.flush(),
        }
    }
};
