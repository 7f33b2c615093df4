//! The IOAPIC: 24 pins in, messages out. Pure: no lock (the caller holds the engine's IOAPIC lock),
//! no thread, no delivery. After every call the owner drains `take` and routes what comes out.
//! setLine takes the logical line ("asserted"), so the polarity bit is stored and changes nothing.
//! Edge pins: a rising edge on a masked pin is ignored, not held (82093AA datasheet, "Interrupt
//! Mask"); Linux's timer check and its start-up path for edge interrupts expect just that.
//! Level pins: a message goes out while the line is asserted and remote IRR is clear; remote IRR is
//! set as the message leaves and cleared by the EOI, which sends again if the line is still up.
//! Version 0x20 with the EOI register. Entry bits 55:49 carry destination bits 14:8 (the extended
//! destination id of KVM, Hyper-V and Xen guests); guests without it leave them zero.
//! Reference: Intel 82093AA datasheet; ICH9 datasheet for version 0x20 and EOIR.

const std = @import("std");
const message = @import("message.zig");
const Message = message.Message;
const DeliveryMode = message.DeliveryMode;

pub const pin_count = 24;
const Pins = u24;

/// MMIO offsets of the three registers the window has.
pub const select_offset: u32 = 0x00;
pub const window_offset: u32 = 0x10;
pub const eoi_offset: u32 = 0x40;

/// Indexes behind IOREGSEL.
const index_id: u8 = 0x00;
const index_version: u8 = 0x01;
const index_arbitration: u8 = 0x02;
const index_entries: u8 = 0x10;

/// Version 0x20, highest entry 23 in bits 23:16.
const version: u32 = 0x20 | (pin_count - 1) << 16;

/// One redirection entry (82093AA, "I/O Redirection Table Registers").
pub const Entry = packed struct(u64) {
    vector: u8 = 0,
    delivery: u3 = 0,
    logical: bool = false,
    /// Delivery status: a message leaves at once, so it is never seen set.
    busy: bool = false,
    active_low: bool = false,
    remote_irr: bool = false,
    level: bool = false,
    masked: bool = true,
    reserved: u32 = 0,
    dest_extension: u7 = 0,
    dest: u8 = 0,

    /// Remote IRR exists only for level-triggered fixed and lowest-priority entries; NMI, SMI, INIT
    /// and ExtINT are edges whatever the trigger bit says.
    fn waitsForEoi(self: Entry) bool {
        const mode: DeliveryMode = @fromBackingInt(self.delivery);
        return self.level and (mode == .fixed or mode == .lowest);
    }
};

/// Bits a guest may change; busy (12), remote IRR (14) and the reserved ones keep their value.
const entry_writable: u64 = 0xff << 56 | 0x7f << 49 | 0x1_afff;

pub const Ioapic = struct {
    select: u8 = 0,
    id: u4 = 0,
    /// APIC id that messages carry as their source: any id of the IOAPIC's node.
    source: u32 = 0,
    /// Logical level of each input.
    lines: Pins = 0,
    /// Pins with a message to send.
    ready: Pins = 0,
    entries: [pin_count]Entry = @splat(.{}),

    pub fn init() Ioapic {
        return .{};
    }

    /// Lines belong to the devices and keep their level; an asserted one is masked now.
    pub fn reset(self: *Ioapic) void {
        self.* = .{ .lines = self.lines, .source = self.source };
    }

    pub fn read(self: *const Ioapic, offset: u32) u32 {
        return switch (offset) {
            select_offset => self.select,
            window_offset => self.readIndex(self.select),
            else => 0,
        };
    }

    pub fn write(self: *Ioapic, offset: u32, value: u32) void {
        switch (offset) {
            select_offset => self.select = @truncate(value),
            window_offset => self.writeIndex(self.select, value),
            eoi_offset => self.eoi(@truncate(value)),
            else => {},
        }
    }

    /// Pins outside the 24 do not exist and do nothing.
    pub fn setLine(self: *Ioapic, pin: u5, level: bool) void {
        if (pin >= pin_count) return;
        const bit = @as(Pins, 1) << pin;
        const was = self.lines & bit != 0;
        if (level) self.lines |= bit else self.lines &= ~bit;
        const entry = self.entries[pin];
        if (entry.waitsForEoi()) {
            self.refreshLevel(pin);
        } else if (level and !was and !entry.masked) {
            self.ready |= bit;
        }
    }

    /// A level interrupt of this vector ended at some local APIC, or the guest wrote EOIR.
    pub fn eoi(self: *Ioapic, vector: u8) void {
        for (&self.entries, 0..) |*entry, pin| {
            if (entry.vector != vector or !entry.remote_irr) continue;
            entry.remote_irr = false;
            self.refreshLevel(@intCast(pin));
        }
    }

    /// The next message to deliver, lowest pin first.
    pub fn take(self: *Ioapic) ?Message {
        while (self.ready != 0) {
            const pin: u5 = @intCast(@ctz(self.ready));
            self.ready &= self.ready - 1;
            const entry = &self.entries[pin];
            // Delivery 3 is reserved and 6 (start-up) is the ICR's alone: nothing leaves.
            if (entry.delivery == 3 or entry.delivery == 6) continue;
            const waits = entry.waitsForEoi();
            entry.remote_irr = waits;
            const dest = message.destination(entry.dest, entry.dest_extension);
            return .{
                .dest = dest,
                .vector = entry.vector,
                .delivery = entry.delivery,
                .logical = @intFromBool(entry.logical),
                .level = @intFromBool(waits),
                .x2apic = @intFromBool(dest > 0xff),
                .source = self.source,
            };
        }
        return null;
    }

    fn refreshLevel(self: *Ioapic, pin: u5) void {
        const bit = @as(Pins, 1) << pin;
        const entry = self.entries[pin];
        if (!entry.waitsForEoi()) return;
        const due = self.lines & bit != 0 and !entry.masked and !entry.remote_irr;
        if (due) self.ready |= bit else self.ready &= ~bit;
    }

    fn readIndex(self: *const Ioapic, index: u8) u32 {
        return switch (index) {
            index_id, index_arbitration => @as(u32, self.id) << 24,
            index_version => version,
            else => {
                const word = index -% index_entries;
                if (word >= pin_count * 2) return 0;
                const bits: u64 = @bitCast(self.entries[word / 2]);
                return @truncate(if (word % 2 == 0) bits else bits >> 32);
            },
        };
    }

    fn writeIndex(self: *Ioapic, index: u8, value: u32) void {
        if (index == index_id) {
            self.id = @truncate(value >> 24);
            return;
        }
        const word = index -% index_entries;
        if (word >= pin_count * 2) return;
        const pin: u5 = @intCast(word / 2);
        const shift: u6 = if (word % 2 == 0) 0 else 32;
        const writable = entry_writable & (@as(u64, 0xffff_ffff) << shift);
        const old: u64 = @bitCast(self.entries[pin]);
        var entry: Entry = @bitCast((old & ~writable) | ((@as(u64, value) << shift) & writable));
        // Going to edge clears remote IRR: how Linux frees a stuck level pin before version 0x20.
        if (!entry.waitsForEoi()) entry.remote_irr = false;
        self.entries[pin] = entry;
        if (entry.waitsForEoi()) {
            self.refreshLevel(pin);
        } else if (entry.masked or @as(Entry, @bitCast(old)).waitsForEoi()) {
            // What was waiting as a level, or behind a mask, is no edge.
            self.ready &= ~(@as(Pins, 1) << pin);
        }
    }
};

const expect = std.testing.expect;
const expectEqual = std.testing.expectEqual;

fn writeEntry(io: *Ioapic, pin: u32, bits: u64) void {
    io.write(select_offset, index_entries + pin * 2 + 1);
    io.write(window_offset, @truncate(bits >> 32));
    io.write(select_offset, index_entries + pin * 2);
    io.write(window_offset, @truncate(bits));
}

fn readEntry(io: *Ioapic, pin: u32) u64 {
    io.write(select_offset, index_entries + pin * 2);
    const low = io.read(window_offset);
    io.write(select_offset, index_entries + pin * 2 + 1);
    return @as(u64, io.read(window_offset)) << 32 | low;
}

fn pulse(io: *Ioapic, pin: u5) void {
    io.setLine(pin, true);
    io.setLine(pin, false);
}

const bit_level: u64 = 1 << 15;
const bit_remote_irr: u64 = 1 << 14;
const bit_masked: u64 = 1 << 16;

test "identity: id, version, arbitration; reset masks every entry" {
    var io = Ioapic.init();
    io.write(select_offset, index_version);
    try expectEqual(0x0017_0020, io.read(window_offset));
    try expectEqual(index_version, io.read(select_offset));
    io.write(window_offset, 0);
    try expectEqual(0x0017_0020, io.read(window_offset));
    io.write(select_offset, index_id);
    io.write(window_offset, 0xffff_ffff);
    try expectEqual(0x0f00_0000, io.read(window_offset));
    io.write(select_offset, index_arbitration);
    try expectEqual(0x0f00_0000, io.read(window_offset));
    for (0..pin_count) |pin| try expectEqual(bit_masked, readEntry(&io, @intCast(pin)));
    writeEntry(&io, 3, 0x31);
    io.reset();
    try expectEqual(bit_masked, readEntry(&io, 3));
    io.write(select_offset, index_id);
    try expectEqual(0, io.read(window_offset));
}

test "registers that are not there read zero and take nothing" {
    var io = Ioapic.init();
    for ([_]u32{ 0x03, 0x0f, 0x40, 0x41, 0xff }) |index| {
        io.write(select_offset, index);
        io.write(window_offset, 0xffff_ffff);
        try expectEqual(0, io.read(window_offset));
    }
    for ([_]u32{ 0x04, 0x0c, 0x14, 0x20, 0x44, 0xffff_fff0 }) |offset| {
        io.write(offset, 0xffff_ffff);
        try expectEqual(0, io.read(offset));
    }
    io.setLine(24, true);
    io.setLine(31, true);
    try expectEqual(0, io.lines);
    try expectEqual(null, io.take());
}

test "entry: writable bits, each of the 64" {
    for (0..64) |bit| {
        var io = Ioapic.init();
        const value = @as(u64, 1) << @intCast(bit);
        writeEntry(&io, 7, value);
        const sticks = (bit <= 11) or bit == 13 or bit == 15 or bit == 16 or bit >= 49;
        try expectEqual(if (sticks) value else 0, readEntry(&io, 7));
    }
}

test "edge: one message for each rising edge, none for a line that stays" {
    var io = Ioapic.init();
    io.source = 0x40;
    writeEntry(&io, 4, 0x0300_0000_0000_0931);
    io.setLine(4, true);
    const m = io.take().?;
    try expectEqual(Message{
        .dest = 3,
        .vector = 0x31,
        .delivery = 1,
        .logical = 1,
        .source = 0x40,
    }, m);
    io.setLine(4, true);
    try expectEqual(null, io.take());
    io.setLine(4, false);
    try expectEqual(null, io.take());
    io.setLine(4, true);
    try expect(io.take() != null);
    io.eoi(0x31);
    try expectEqual(null, io.take());
}

test "edge behind the mask is ignored, not held" {
    var io = Ioapic.init();
    writeEntry(&io, 4, bit_masked | 0x31);
    pulse(&io, 4);
    io.setLine(4, true);
    writeEntry(&io, 4, 0x31);
    try expectEqual(null, io.take());
    io.setLine(4, false);
    io.setLine(4, true);
    try expectEqual(0x31, io.take().?.vector);
}

test "level: remote IRR holds it until the EOI, which sends again while the line is up" {
    var io = Ioapic.init();
    writeEntry(&io, 9, bit_level | 0x41);
    io.setLine(9, true);
    const m = io.take().?;
    try expectEqual(1, m.level);
    try expectEqual(null, io.take());
    try expectEqual(bit_level | bit_remote_irr | 0x41, readEntry(&io, 9));
    io.setLine(9, false);
    io.setLine(9, true);
    try expectEqual(null, io.take());
    io.eoi(0x40);
    try expectEqual(null, io.take());
    io.eoi(0x41);
    try expectEqual(0x41, io.take().?.vector);
    io.setLine(9, false);
    io.write(eoi_offset, 0x41);
    try expectEqual(null, io.take());
    try expectEqual(bit_level | 0x41, readEntry(&io, 9));
}

test "level: masked while asserted, unmasked, and gone before it was taken" {
    var io = Ioapic.init();
    writeEntry(&io, 9, bit_masked | bit_level | 0x41);
    io.setLine(9, true);
    try expectEqual(null, io.take());
    writeEntry(&io, 9, bit_level | 0x41);
    io.setLine(9, false);
    try expectEqual(null, io.take());
    io.setLine(9, true);
    writeEntry(&io, 9, bit_masked | bit_level | 0x41);
    try expectEqual(null, io.take());
    writeEntry(&io, 9, bit_level | 0x41);
    try expect(io.take() != null);
}

test "one vector on two level pins: its EOI frees both" {
    var io = Ioapic.init();
    writeEntry(&io, 16, bit_level | 0x51);
    writeEntry(&io, 17, bit_level | 0x51);
    io.setLine(17, true);
    io.setLine(16, true);
    try expect(io.take() != null and io.take() != null);
    try expectEqual(null, io.take());
    io.setLine(16, false);
    io.eoi(0x51);
    try expect(io.take() != null);
    try expectEqual(null, io.take());
    try expectEqual(0, readEntry(&io, 16) & bit_remote_irr);
    try expect(readEntry(&io, 17) & bit_remote_irr != 0);
}

test "Linux's escape for a stuck level pin: mask, edge, level again" {
    var io = Ioapic.init();
    writeEntry(&io, 10, bit_level | 0x61);
    io.setLine(10, true);
    try expect(io.take() != null);
    writeEntry(&io, 10, bit_masked | 0x61);
    try expectEqual(0, readEntry(&io, 10) & bit_remote_irr);
    writeEntry(&io, 10, bit_level | 0x61);
    try expectEqual(0x61, io.take().?.vector);
}

test "trigger mode changed while the line is up" {
    var io = Ioapic.init();
    writeEntry(&io, 5, 0x31);
    io.setLine(5, true);
    try expect(io.take() != null);
    // Edge to level: an asserted line is a request. Level to edge: it is none.
    writeEntry(&io, 5, bit_level | 0x31);
    try expectEqual(1, io.take().?.level);
    writeEntry(&io, 5, 0x31);
    try expectEqual(null, io.take());
}

test "a message not yet taken goes with the mask, and with its trigger mode" {
    var io = Ioapic.init();
    writeEntry(&io, 5, 0x31);
    io.setLine(5, true);
    writeEntry(&io, 5, bit_masked | 0x31);
    try expectEqual(null, io.take());
    writeEntry(&io, 5, 0x31);
    try expectEqual(null, io.take());
    writeEntry(&io, 5, bit_level | 0x31);
    writeEntry(&io, 5, 0x31);
    try expectEqual(null, io.take());
}

test "delivery modes: NMI, SMI, INIT and ExtINT are edges, reserved ones send nothing" {
    for ([_]u64{ 2, 4, 5, 7 }) |delivery| {
        var io = Ioapic.init();
        writeEntry(&io, 2, bit_level | delivery << 8 | 0x20);
        io.setLine(2, true);
        const m = io.take().?;
        try expectEqual(@as(u8, @intCast(delivery)), m.delivery);
        try expectEqual(0, m.level);
        try expect(m.valid());
        io.setLine(2, true);
        try expectEqual(null, io.take());
        try expectEqual(0, readEntry(&io, 2) & bit_remote_irr);
    }
    for ([_]u64{ 3, 6 }) |delivery| {
        var io = Ioapic.init();
        writeEntry(&io, 2, delivery << 8 | 0x20);
        pulse(&io, 2);
        try expectEqual(null, io.take());
    }
}

test "polarity is the board's affair; extended destinations turn the message into the long form" {
    var io = Ioapic.init();
    writeEntry(&io, 1, 0x0102_0000_0000_2031);
    io.setLine(1, false);
    try expectEqual(null, io.take());
    io.setLine(1, true);
    const m = io.take().?;
    try expectEqual(0x101, m.dest);
    try expectEqual(1, m.x2apic);
    try expect(m.valid());
    writeEntry(&io, 1, 0xff00_0000_0000_0031);
    io.setLine(1, false);
    io.setLine(1, true);
    try expect(io.take().?.isBroadcast());
}

test "lowest pin first" {
    var io = Ioapic.init();
    for (0..pin_count) |pin| writeEntry(&io, @intCast(pin), 0x30 + pin);
    for (0..pin_count) |pin| io.setLine(@intCast(pin_count - 1 - pin), true);
    for (0..pin_count) |pin| try expectEqual(0x30 + pin, io.take().?.vector);
    try expectEqual(null, io.take());
}

test "reset with a line up: nothing until the guest programs it" {
    var io = Ioapic.init();
    writeEntry(&io, 4, bit_level | 0x31);
    io.setLine(4, true);
    io.reset();
    try expectEqual(null, io.take());
    writeEntry(&io, 4, bit_level | 0x32);
    try expectEqual(0x32, io.take().?.vector);
}
