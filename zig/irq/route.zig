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

const expect = std.testing.expect;
const expectEqual = std.testing.expectEqual;

fn physical(dest: u32) Message {
    return .{ .dest = dest, .vector = 0x40, .delivery = 0 };
}

fn logical(dest: u32) Message {
    return .{ .dest = dest, .vector = 0x40, .delivery = 0, .logical = 1 };
}

fn long(m: Message) Message {
    var copy = m;
    copy.x2apic = 1;
    return copy;
}

fn shorthand(kind: message.Shorthand, source: u32) Message {
    var m = physical(0);
    m.shorthand = @backingInt(kind);
    m.source = source;
    return m;
}

test "matches: by table" {
    const x = TargetView{ .apic_id = 0x25, .mode = .x2apic };
    const far = TargetView{ .apic_id = 0x125, .mode = .x2apic };
    const flat = TargetView{ .apic_id = 5, .logical_id = 0x20 };
    const cluster = TargetView{ .apic_id = 5, .logical_id = 0x24, .model = .cluster };
    const invalid = TargetView{ .apic_id = 5, .logical_id = 0x20, .model = .invalid };
    const off = TargetView{ .apic_id = 5, .mode = .disabled };
    const table = [_]struct { TargetView, Message, bool }{
        .{ x, physical(0x25), true },               .{ x, physical(0x24), false },
        .{ x, long(physical(0x25)), true },         .{ x, physical(0xff), true },
        .{ x, long(physical(0xff)), false },        .{ x, long(physical(0xffff_ffff)), true },
        .{ x, long(logical(0xffff_ffff)), true },   .{ x, long(logical(0x0002_0020)), true },
        .{ x, long(logical(0x0002_ffdf)), false },  .{ x, long(logical(0x0003_0020)), false },
        .{ x, logical(0x20), false },               .{ x, logical(0xff), true },
        .{ far, physical(0x25), false },            .{ far, long(physical(0x125)), true },
        .{ far, long(logical(0x0012_0020)), true }, .{ far, long(logical(0x0002_0020)), false },
        .{ flat, physical(5), true },               .{ flat, long(physical(5)), true },
        .{ flat, logical(0x20), true },             .{ flat, logical(0x21), true },
        .{ flat, logical(0xdf), false },            .{ flat, logical(0xff), true },
        .{ flat, long(logical(0x20)), false },      .{ flat, long(logical(0x0000_0020)), false },
        .{ cluster, logical(0x24), true },          .{ cluster, logical(0x2f), true },
        .{ cluster, logical(0x2b), false },         .{ cluster, logical(0x34), false },
        .{ cluster, logical(0xff), true },          .{ cluster, logical(0x20), false },
        .{ invalid, logical(0x20), false },         .{ invalid, logical(0xff), true },
        .{ invalid, physical(5), true },            .{ off, physical(5), false },
        .{ off, physical(0xff), false },            .{ x, shorthand(.self, 0x25), true },
        .{ x, shorthand(.self, 5), false },         .{ x, shorthand(.all, 0x25), true },
        .{ x, shorthand(.all_but_self, 5), true },  .{ x, shorthand(.all_but_self, 0x25), false },
        .{ off, shorthand(.all, 0x25), false },
    };
    for (table, 0..) |row, index| {
        expectEqual(row[2], row[0].matches(row[1])) catch |e| {
            std.debug.print("row {}\n", .{index});
            return e;
        };
    }
}

test "x2APIC logical ids as the SDM derives them" {
    try expectEqual(0x0000_0001, x2apicLogicalId(0));
    try expectEqual(0x0000_8000, x2apicLogicalId(15));
    try expectEqual(0x0001_0001, x2apicLogicalId(16));
    try expectEqual(0x001f_8000, x2apicLogicalId(511));
}

test "resolve: sets, and one for lowest priority" {
    var targets: [4]TargetView = undefined;
    for (&targets, 0..) |*t, i| t.* = .{
        .apic_id = @intCast(i),
        .logical_id = @as(u8, 1) << @intCast(i),
        .software_enabled = i != 1,
    };
    try expectEqual(0b1111, resolve(&targets, physical(0xff)));
    try expectEqual(0b0100, resolve(&targets, physical(2)));
    try expectEqual(0b1010, resolve(&targets, logical(0x0a)));
    try expectEqual(0, resolve(&targets, physical(9)));
    try expectEqual(0b1011, resolve(&targets, shorthand(.all_but_self, 2)));
    var lowest = logical(0x0a);
    lowest.delivery = 1;
    // vCPU 1 is software disabled and would lose it.
    try expectEqual(0b1000, resolve(&targets, lowest));
    lowest.dest = 0x02;
    try expectEqual(0, resolve(&targets, lowest));
    lowest.dest = 0xff;
    try expectEqual(0b0001, resolve(&targets, lowest));
    try expectEqual(0, resolve(&.{}, lowest));
    try expectEqual(null, pickLowest(&targets, 0));
}

test "nodesOf: by table on four nodes" {
    const table = [_]struct { Message, u32 }{
        .{ physical(0x05), 0b0001 },
        .{ physical(0x45), 0b0010 },
        .{ physical(0xc0), 0b1000 },
        .{ physical(0xff), 0b1111 },
        .{ long(physical(0xff)), 0b1000 },
        .{ long(physical(0x100)), 0 },
        .{ long(physical(0xffff_ffff)), 0b1111 },
        .{ long(physical(0xffff_fffe)), 0 },
        .{ logical(0x01), 0b1111 },
        .{ long(logical(0x0000_0001)), 0b0001 },
        .{ long(logical(0x0003_8000)), 0b0001 },
        .{ long(logical(0x0004_0001)), 0b0010 },
        .{ long(logical(0x000f_0001)), 0b1000 },
        .{ long(logical(0x0010_0001)), 0 },
        .{ shorthand(.self, 0x41), 0b0010 },
        .{ shorthand(.all, 0x41), 0b1111 },
        .{ shorthand(.all_but_self, 0x41), 0b1111 },
    };
    for (table) |row| try expectEqual(row[1], nodesOf(row[0], 4));
    try expectEqual(0b1, nodesOf(physical(0xff), 1));
    try expectEqual(0xff, nodesOf(physical(0xff), 8));
}

test "nextNode: once around the ring from the source, whatever the source says" {
    var m = logical(0x01);
    m.delivery = 1;
    m.source = 0x42;
    try expectEqual(2, nextNode(m, 4, 1).?);
    try expectEqual(3, nextNode(m, 4, 2).?);
    try expectEqual(0, nextNode(m, 4, 3).?);
    try expectEqual(null, nextNode(m, 4, 0));
    try expectEqual(null, nextNode(m, 1, 0));
    // Only one candidate: straight there, then home.
    var one = long(physical(0x85));
    one.delivery = 1;
    one.source = 0;
    try expectEqual(2, nextNode(one, 4, 0).?);
    try expectEqual(null, nextNode(one, 4, 2));
    // A source beyond the VM ends the ring at node 0.
    m.source = 0xffff_ffff;
    var here: u32 = 1;
    var hops: u32 = 0;
    while (nextNode(m, 4, here)) |next| : (hops += 1) here = next;
    try expectEqual(2, hops);
}
