//! Interrupt messages to vCPUs: from ICR writes, the IOAPIC and MSIs, to the vCPUs of this node by
//! their inboxes and to other nodes by one message kind. Destination matching uses a published copy
//! of each LAPIC's identity, since the LAPIC itself belongs to its vCPU thread.

const std = @import("std");
const abi = @import("../abi.zig");
const Inbox = @import("inbox.zig").Inbox;
const Signal = @import("inbox.zig").Signal;
const Message = @import("../irq/message.zig").Message;
const route = @import("../irq/route.zig");

/// Sends a message to the nodes of the mask; set by a span.
pub const RemoteSend = *const fn (context: *anyopaque, nodes: u32, message: Message) void;

pub const Target = struct {
    inbox: *Inbox,
    /// A packed route.TargetView: written by the vCPU thread (release), read by senders (acquire).
    view: std.atomic.Value(u64) = .init(0),
};

pub const Router = struct {
    node: u32,
    node_count: u32,
    targets: [abi.vcpus_max]Target = undefined,
    target_count: u32 = 0,
    remote: ?RemoteSend = null,
    remote_context: *anyopaque = undefined,
    /// Messages no vCPU took: visible in stats, harmless as on a real bus.
    lost: std.atomic.Value(u64) = .init(0),

    pub fn add(self: *Router, inbox: *Inbox) void {
        self.targets[self.target_count] = .{ .inbox = inbox };
        self.target_count += 1;
    }

    pub fn publish(self: *Router, index: u32, view: route.TargetView) void {
        self.targets[index].view.store(@bitCast(view), .release);
    }

    fn views(self: *const Router, out: *[abi.vcpus_max]route.TargetView) []route.TargetView {
        for (0..self.target_count) |i| out[i] = @bitCast(self.targets[i].view.load(.acquire));
        return out[0..self.target_count];
    }

    /// From this node: local targets at once, other nodes by message.
    pub fn deliver(self: *Router, message: Message) void {
        var buffer: [abi.vcpus_max]route.TargetView = undefined;
        const local = route.resolve(self.views(&buffer), message);
        if (message.mode() == .lowest) return self.deliverLowest(local, message);
        if (local != 0) self.deliverSet(local, message);
        const here = @as(u32, 1) << @intCast(self.node);
        const elsewhere = route.nodesOf(message, self.node_count) & ~here;
        if (elsewhere != 0) self.sendRemote(elsewhere, message);
        if (local == 0 and elsewhere == 0) _ = self.lost.fetchAdd(1, .monotonic);
    }

    /// A message that came from another node: local targets only, except that a lowest-priority one
    /// without a receiver here goes on round the ring.
    pub fn deliverFromPeer(self: *Router, message: Message) void {
        var buffer: [abi.vcpus_max]route.TargetView = undefined;
        const local = route.resolve(self.views(&buffer), message);
        if (message.mode() == .lowest) return self.deliverLowest(local, message);
        if (local == 0) _ = self.lost.fetchAdd(1, .monotonic) else self.deliverSet(local, message);
    }

    fn deliverLowest(self: *Router, local: u64, message: Message) void {
        if (local != 0) return self.deliverSet(local, message);
        const next = route.nextNode(message, self.node_count, self.node) orelse {
            _ = self.lost.fetchAdd(1, .monotonic);
            return;
        };
        self.sendRemote(@as(u32, 1) << @intCast(next), message);
    }

    fn sendRemote(self: *Router, nodes: u32, message: Message) void {
        const send = self.remote orelse {
            _ = self.lost.fetchAdd(1, .monotonic);
            return;
        };
        send(self.remote_context, nodes, message);
    }

    fn deliverSet(self: *Router, set: u64, message: Message) void {
        var rest = set;
        while (rest != 0) : (rest &= rest - 1) {
            self.post(self.targets[@ctz(rest)].inbox, message);
        }
    }

    fn post(self: *Router, inbox: *Inbox, message: Message) void {
        switch (message.mode()) {
            .fixed, .lowest => inbox.postInterrupt(message.vector, message.level != 0),
            .nmi => inbox.post(Signal.nmi),
            // INIT level de-assert only synchronises arbitration ids: nothing on any later CPU.
            .init => if (message.level == 0 or message.assert != 0) inbox.postInit(),
            .startup => inbox.postStartup(message.vector),
            // SMI and ExtINT have no receiver in this machine: dropped and counted.
            else => _ = self.lost.fetchAdd(1, .monotonic),
        }
    }
};
