//! Who receives a message: pure functions of the message and of what each local APIC publishes.
//! A LAPIC is private to its vCPU's thread, so senders decide from a TargetView: 64 bits that the
//! owner stores (release) whenever Effects.view_changed says so, and senders load (acquire). A
//! sender that sees the old view behaves as if its message had arrived before the change.
//! Across nodes: APIC id = node << apic_node_shift | index, and an x2APIC cluster is 16 ids, so a
//! physical id or a cluster names one node. xAPIC logical ids are chosen by the guest: any node.
//! Lowest priority goes to a member on the node at hand, else to the first node around the ring
//! that has one (`nextNode`), so one message never interrupts two vCPUs.
//! Reference: SDM volume 3A, "Determining IPI Destination", "Logical Destination Mode in x2APIC".

const std = @import("std");
const abi = @import("../abi.zig");
const message = @import("message.zig");
const Message = message.Message;

pub const Mode = enum(u2) { disabled, xapic, x2apic };
/// DFR model; `invalid` (neither 0000 nor 1111) matches no logical destination.
pub const Model = enum(u2) { flat, cluster, invalid };

pub const TargetView = packed struct(u64) {
    apic_id: u32,
    /// LDR bits 31:24, xAPIC mode only.
    logical_id: u8 = 0,
    model: Model = .flat,
    mode: Mode = .xapic,
    /// SVR bit 8: a software-disabled LAPIC takes INIT, SIPI, NMI and SMI, nothing with a vector.
    software_enabled: bool = false,
    pad: u19 = 0,

    /// True if the message is for this LAPIC; whether it can take it now is another question.
    pub fn matches(self: TargetView, m: Message) bool {
        if (self.mode == .disabled) return false;
        switch (m.shorthand) {
            0 => {},
            1 => return m.source == self.apic_id,
            2 => return true,
            else => return m.source != self.apic_id,
        }
        if (m.isBroadcast()) return true;
        if (m.logical == 0) return m.dest == self.apic_id;
        if (self.mode == .x2apic) return matchesCluster(x2apicLogicalId(self.apic_id), m.dest);
        // An x2APIC-form logical destination does not fit in an 8-bit LDR: no mixed modes (SDM).
        if (m.x2apic != 0) return false;
        return switch (self.model) {
            .flat => self.logical_id & m.dest != 0,
            .cluster => self.logical_id >> 4 == m.dest >> 4 and
                self.logical_id & m.dest & 0xf != 0,
            .invalid => false,
        };
    }
};

/// The x2APIC LDR: cluster in the upper half, one bit of 16 in the lower (SDM "Deriving Logical
/// x2APIC ID from the Local x2APIC ID").
pub fn x2apicLogicalId(apic_id: u32) u32 {
    return apic_id >> 4 << 16 | @as(u32, 1) << @truncate(apic_id & 0xf);
}

fn matchesCluster(own: u32, dest: u32) bool {
    return own >> 16 == dest >> 16 and own & dest & 0xffff != 0;
}

/// The local receivers of a message: bit i is targets[i]. For lowest priority at most one bit.
pub fn resolve(targets: []const TargetView, m: Message) u64 {
    std.debug.assert(targets.len <= 64);
    var set: u64 = 0;
    for (targets, 0..) |target, index| {
        if (target.matches(m)) set |= @as(u64, 1) << @intCast(index);
    }
    if (m.mode() != .lowest) return set;
    const winner = pickLowest(targets, set) orelse return 0;
    return @as(u64, 1) << winner;
}

/// Of a set of local receivers the one that gets a lowest-priority message: the first that is
/// software enabled. A fixed choice: the guest's handler and its data stay on one vCPU.
pub fn pickLowest(targets: []const TargetView, set: u64) ?u6 {
    var rest = set;
    while (rest != 0) : (rest &= rest - 1) {
        const index: u6 = @intCast(@ctz(rest));
        if (targets[index].software_enabled) return index;
    }
    return null;
}

/// Nodes that may hold a receiver, bit n = node n.
pub fn nodesOf(m: Message, node_count: u32) u32 {
    std.debug.assert(node_count >= 1 and node_count <= abi.nodes_max);
    const all = (@as(u32, 1) << @intCast(node_count)) - 1;
    if (m.shorthand == 1) return nodeBit(m.source) & all;
    if (m.shorthand != 0 or m.isBroadcast()) return all;
    if (m.logical == 0) return nodeBit(m.dest) & all;
    if (m.x2apic == 0) return all;
    return nodeBit(m.dest >> 16 << 4) & all;
}

fn nodeBit(apic_id: u32) u32 {
    const node = apic_id >> abi.apic_node_shift;
    return if (node < 32) @as(u32, 1) << @intCast(node) else 0;
}

/// Where a message goes on from node `here` that found no local receiver of a lowest-priority
/// message: the next candidate up the ring, null once it is back at the node of its source.
pub fn nextNode(m: Message, node_count: u32, here: u32) ?u32 {
    const candidates = nodesOf(m, node_count);
    // A source that is no node (a hostile record) must end the ring somewhere too.
    const named = m.source >> abi.apic_node_shift;
    const origin = if (named < node_count) named else 0;
    var node = (here + 1) % node_count;
    while (node != here) : (node = (node + 1) % node_count) {
        if (node == origin) return null;
        if (candidates >> @intCast(node) & 1 != 0) return node;
    }
    return null;
}

comptime {
    // A cluster of 16 must not span nodes.
    std.debug.assert(abi.apic_node_shift >= 4);
    std.debug.assert(abi.vcpus_max <= 64 and abi.nodes_max <= 32);
}
