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
        const mode: DeliveryMode = @fromBackingInt(@intCast(self.delivery));
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
