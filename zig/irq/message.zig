//! One interrupt on its way to local APICs: what the ICR, the IOAPIC and an MSI write have in
//! common. It is the only form in which interrupts cross threads and nodes, so it is an extern
//! struct of 16 bytes without hidden padding and goes over a lane as it stands (little endian).
//! A Message names a destination, never a vCPU: matching is the receiver's (route.zig).
//! References: SDM = Intel 64 and IA-32 Software Developer's Manual, volume 3A, APIC chapter.

const std = @import("std");

/// SDM "Interrupt Command Register": bits 10:8; the same numbers serve LVT, IOAPIC and MSI.
pub const DeliveryMode = enum(u3) {
    fixed = 0,
    lowest = 1,
    smi = 2,
    nmi = 4,
    init = 5,
    startup = 6,
    ext_int = 7,
    _,
};

/// SDM "Interrupt Command Register": bits 19:18.
pub const Shorthand = enum(u2) { none = 0, self = 1, all = 2, all_but_self = 3 };

/// Destinations that mean every local APIC (SDM "Broadcast/Self Delivery Mode").
pub const broadcast_xapic: u32 = 0xff;
pub const broadcast_x2apic: u32 = 0xffff_ffff;

/// Vectors below 16 are reserved for exceptions and never valid as interrupts.
pub const vector_min: u8 = 16;

pub const Message = extern struct {
    dest: u32,
    vector: u8,
    /// A DeliveryMode; a plain number because a peer may send any byte.
    delivery: u8,
    /// 0 physical, 1 logical.
    logical: u8 = 0,
    /// 1 = level triggered: the receiver's EOI goes back to the IOAPIC.
    level: u8 = 0,
    assert: u8 = 1,
    /// A Shorthand; ICR only, resolved against `source`.
    shorthand: u8 = 0,
    /// 1: dest is the 32-bit x2APIC form; 0: the 8-bit xAPIC form, as from IOAPIC and MSI.
    x2apic: u8 = 0,
    pad: u8 = 0,
    /// APIC id of the sender; for an IOAPIC or a device, its node's first APIC id.
    source: u32 = 0,

    pub fn mode(self: Message) DeliveryMode {
        return @fromBackingInt(@truncate(self.delivery));
    }

    pub fn isBroadcast(self: Message) bool {
        return switch (self.shorthand) {
            0 => self.dest == if (self.x2apic != 0) broadcast_x2apic else broadcast_xapic,
            2 => true,
            else => false,
        };
    }

    /// Sorted out before anything looks inside: a record from a peer may hold any bytes.
    pub fn valid(self: Message) bool {
        if (self.logical > 1 or self.level > 1 or self.assert > 1 or self.x2apic > 1) return false;
        if (self.shorthand > 3 or self.pad != 0) return false;
        if (self.x2apic == 0 and self.dest > 0xff) return false;
        return switch (self.delivery) {
            0, 1, 2, 4, 5, 6, 7 => true,
            else => false,
        };
    }
};

/// The MSI a device writes (SDM "Message Signalled Interrupts"), or null when the address is not in
/// the interrupt window or the delivery mode is reserved. Address bits 11:5 carry destination bits
/// 14:8, the extended destination id that KVM, Hyper-V and Xen guests know; other guests leave the
/// bits zero.
pub fn fromMsi(address: u64, data: u32, source: u32) ?Message {
    if (address >> 20 != 0xfee) return null;
    const delivery: u3 = @truncate(data >> 8);
    if (delivery == 3 or delivery == @backingInt(DeliveryMode.startup)) return null;
    const dest = destination(@truncate(address >> 12), @truncate(address >> 5));
    const level: u1 = @truncate(data >> 15);
    return .{
        .dest = dest,
        .vector = @truncate(data),
        .delivery = delivery,
        .logical = @truncate((address >> 2) & 1),
        .level = level,
        // Data bit 14 counts only for level-triggered messages.
        .assert = if (level == 1) @truncate((data >> 14) & 1) else 1,
        .x2apic = @intFromBool(dest > 0xff),
        .source = source,
    };
}

/// An 8-bit destination with its seven extension bits, as IOAPIC entries and MSI addresses have it.
pub fn destination(low: u8, extension: u7) u32 {
    return @as(u32, extension) << 8 | low;
}

comptime {
    std.debug.assert(@sizeOf(Message) == 16);
    std.debug.assert(@offsetOf(Message, "source") == 12);
}

test "msi: fields land where the SDM puts them" {
    // dest 0x05, logical, vector 0x41, lowest priority, edge.
    const m = fromMsi(0xfee0_5004, 0x0141, 7).?;
    try std.testing.expectEqual(@as(u32, 5), m.dest);
    try std.testing.expectEqual(@as(u8, 0x41), m.vector);
    try std.testing.expectEqual(DeliveryMode.lowest, m.mode());
    try std.testing.expectEqual(@as(u8, 1), m.logical);
    try std.testing.expectEqual(@as(u8, 0), m.level);
    try std.testing.expectEqual(@as(u8, 1), m.assert);
    try std.testing.expectEqual(@as(u8, 0), m.x2apic);
    try std.testing.expectEqual(@as(u32, 7), m.source);
    try std.testing.expect(m.valid());
}

test "msi: extended destination, level de-assert, refusals" {
    const far = fromMsi(0xfee0_1020, 0x0031, 0).?;
    try std.testing.expectEqual(@as(u32, 0x101), far.dest);
    try std.testing.expectEqual(@as(u8, 1), far.x2apic);
    try std.testing.expect(far.valid());
    const low = fromMsi(0xfee0_0000, 0x8031, 0).?;
    try std.testing.expectEqual(@as(u8, 1), low.level);
    try std.testing.expectEqual(@as(u8, 0), low.assert);
    try std.testing.expectEqual(null, fromMsi(0xfed0_0000, 0x31, 0));
    try std.testing.expectEqual(null, fromMsi(0x1_fee0_0000, 0x31, 0));
    try std.testing.expectEqual(null, fromMsi(0xfee0_0000, 0x331, 0));
    try std.testing.expectEqual(null, fromMsi(0xfee0_0000, 0x631, 0));
}

test "valid: every field of a hostile record is checked" {
    const good: Message = .{ .dest = 1, .vector = 0x30, .delivery = 0 };
    try std.testing.expect(good.valid());
    inline for (.{ "logical", "level", "assert", "x2apic" }) |field| {
        var m = good;
        @field(m, field) = 2;
        try std.testing.expect(!m.valid());
    }
    var m = good;
    m.shorthand = 4;
    try std.testing.expect(!m.valid());
    m = good;
    m.pad = 1;
    try std.testing.expect(!m.valid());
    m = good;
    m.dest = 0x100;
    try std.testing.expect(!m.valid());
    m.x2apic = 1;
    try std.testing.expect(m.valid());
    for ([_]u8{ 3, 8, 255 }) |delivery| {
        m = good;
        m.delivery = delivery;
        try std.testing.expect(!m.valid());
    }
}

test "broadcast: each form knows its own" {
    try std.testing.expect((Message{ .dest = 0xff, .vector = 32, .delivery = 0 }).isBroadcast());
    const long: Message = .{ .dest = 0xff, .vector = 32, .delivery = 0, .x2apic = 1 };
    try std.testing.expect(!long.isBroadcast());
    const all: Message = .{ .dest = 0xffff_ffff, .vector = 32, .delivery = 0, .x2apic = 1 };
    try std.testing.expect(all.isBroadcast());
    const shorthand: Message = .{ .dest = 0, .vector = 32, .delivery = 0, .shorthand = 2 };
    try std.testing.expect(shorthand.isBroadcast());
}
