//! Register accesses of the local APIC: one register file behind two doors, the xAPIC page (MMIO)
//! and the x2APIC MSRs. The doors differ in what they refuse: a wrong MSR access is #GP, a wrong
//! MMIO access sets ESR bit 7 or does nothing. Any value a guest can write is an expected one.
//! Reference: SDM volume 3A, APIC chapter.

const std = @import("std");
const message = @import("message.zig");
const registers = @import("lapic_registers.zig");
const lapic = @import("lapic.zig");
const route = @import("route.zig");
const Lapic = lapic.Lapic;
const Effects = lapic.Effects;
const Register = registers.Register;
const Lvt = registers.Lvt;
const DeliveryMode = message.DeliveryMode;

pub fn readX2apic(self: *Lapic, msr: u32, now: u64) error{Gp}!u64 {
    const register = try x2apicRegister(self, msr);
    if (!registers.x2apicReadable(register)) return error.Gp;
    const low = readRegister(self, register, now);
    return switch (register) {
        .icr_low => @as(u64, self.icr_high) << 32 | low,
        else => low,
    };
}

pub fn writeX2apic(self: *Lapic, msr: u32, value: u64, now: u64) error{Gp}!Effects {
    const register = try x2apicRegister(self, msr);
    const directed = self.version & registers.version_directed_eoi != 0;
    const reserved = registers.x2apicReserved(register, directed) orelse return error.Gp;
    if (value & reserved != 0) return error.Gp;
    switch (register) {
        .icr_low => self.icr_high = @truncate(value >> 32),
        .self_ipi => return selfIpi(self, @truncate(value)),
        else => {},
    }
    return writeTracked(self, register, @truncate(value), now);
}

fn x2apicRegister(self: *const Lapic, msr: u32) error{Gp}!Register {
    if (self.mode() != .x2apic) return error.Gp;
    if (msr < registers.x2apic_msr_first or msr > registers.x2apic_msr_last) return error.Gp;
    return @fromBackingInt(@intCast(@as(u8, @truncate(msr))));
}

/// `offset` within the page. Registers are 32 bits at 16-byte steps; the bytes between are
/// undefined (zero here), and a narrow read within a register gets its bytes.
pub fn readMmio(self: *Lapic, offset: u32, now: u64) u32 {
    if (self.mode() != .xapic) return 0xffff_ffff;
    if (offset >= registers.mmio_size or offset & 0xc != 0) return 0;
    const register: Register = @fromBackingInt(@intCast(@as(u8, @intCast(offset >> 4))));
    if (!registers.exists(register)) {
        self.raiseError(registers.esr_illegal_register);
        return 0;
    }
    const shift: u5 = @intCast((offset & 3) * 8);
    return readRegister(self, register, now) >> shift;
}

/// Only aligned 32-bit writes do anything (SDM: others are undefined).
pub fn writeMmio(self: *Lapic, offset: u32, value: u32, now: u64) Effects {
    if (self.mode() != .xapic) return .{};
    if (offset >= registers.mmio_size or offset & 0xf != 0) return .{};
    const register: Register = @fromBackingInt(@intCast(@as(u8, @intCast(offset >> 4))));
    if (!registers.exists(register)) {
        self.raiseError(registers.esr_illegal_register);
        return .{};
    }
    return writeTracked(self, register, value, now);
}

fn readRegister(self: *const Lapic, register: Register, now: u64) u32 {
    if (registers.lvtOf(register)) |lvt| return self.lvt[@backingInt(lvt)];
    const x2apic = self.mode() == .x2apic;
    const number = @backingInt(register);
    return switch (register) {
        .id => if (x2apic) self.apic_id else self.apic_id << 24,
        .version => self.version,
        .tpr => self.task_priority,
        .ppr => self.ppr(),
        .ldr => if (x2apic)
            route.x2apicLogicalId(self.apic_id)
        else
            @as(u32, self.logical_id) << 24,
        .dfr => @as(u32, self.model) << 28 | 0x0fff_ffff,
        .svr => self.spurious,
        .esr => self.esr,
        .icr_low => self.icr_low,
        .icr_high => self.icr_high,
        .timer_initial => self.timer.initial,
        .timer_current => self.timer.current(now, self.timerPeriodic()),
        .timer_divide => self.timer.divide,
        else => switch (number) {
            0x10...0x17 => self.isr.register(@truncate(number)),
            0x18...0x1f => self.tmr.register(@truncate(number)),
            0x20...0x27 => self.irr.register(@truncate(number)),
            // EOI, APR and remote read have nothing to show.
            else => 0,
        },
    };
}

/// A write, and what it changed besides the register.
fn writeTracked(self: *Lapic, register: Register, value: u32, now: u64) Effects {
    const deadline = self.timerDeadline();
    const priority = .{ self.task_priority, self.ppr() };
    const view = self.view();
    var effects = writeRegister(self, register, value, now);
    effects.timer_changed = !std.meta.eql(deadline, self.timerDeadline());
    effects.priority_changed = priority[0] != self.task_priority or priority[1] != self.ppr();
    effects.view_changed = view != self.view();
    return effects;
}

fn writeRegister(self: *Lapic, register: Register, value: u32, now: u64) Effects {
    if (registers.lvtOf(register)) |lvt| {
        writeLvt(self, lvt, value, now);
        return .{};
    }
    switch (register) {
        .tpr => self.task_priority = @truncate(value),
        .eoi => return self.endOfInterrupt(),
        .ldr => self.logical_id = @truncate(value >> 24),
        .dfr => self.model = @truncate(value >> 28),
        .svr => writeSpurious(self, value),
        .esr => {
            self.esr = self.esr_latched;
            self.esr_latched = 0;
        },
        .icr_low => {
            self.icr_low = value & registers.icr_low_writable;
            return sendIpi(self);
        },
        .icr_high => self.icr_high = value & 0xff00_0000,
        .timer_initial => {
            self.timerTick(now);
            self.timer.setInitial(value, now);
        },
        .timer_divide => {
            self.timerTick(now);
            self.timer.setDivide(value, now, self.timerPeriodic());
        },
        // Read-only registers. The id too: routing depends on it (SDM: writable on some models).
        else => {},
    }
    return .{};
}

fn writeLvt(self: *Lapic, lvt: Lvt, value: u32, now: u64) void {
    // What the timer did until now was under the old entry.
    if (lvt == .timer) self.timerTick(now);
    const entry = &self.lvt[@backingInt(lvt)];
    const writable = registers.lvtWritable(lvt);
    entry.* = (entry.* & ~writable) | (value & writable);
    // Remote IRR belongs to level mode.
    if (entry.* & registers.lvt_level == 0) entry.* &= ~registers.lvt_remote_irr;
    if (!self.softwareEnabled()) entry.* |= registers.lvt_masked;
}

fn writeSpurious(self: *Lapic, value: u32) void {
    const directed = self.version & registers.version_directed_eoi != 0;
    const extra = if (directed) registers.svr_directed_eoi else 0;
    self.spurious = value & (registers.svr_writable | extra);
    if (self.softwareEnabled()) return;
    // Software disable masks every entry, and they stay masked when it is enabled again.
    for (&self.lvt) |*entry| entry.* |= registers.lvt_masked;
}

fn selfIpi(self: *Lapic, vector: u8) Effects {
    if (vector < message.vector_min) {
        self.raiseError(registers.esr_send_illegal_vector);
    } else self.accept(vector, false);
    return .{};
}

/// Sends what ICR holds. A fixed self-IPI is accepted on the spot.
fn sendIpi(self: *Lapic) Effects {
    const low = self.icr_low;
    const vector: u8 = @truncate(low);
    const delivery: DeliveryMode = @fromBackingInt(@intCast(@as(u3, @truncate(low >> 8))));
    const shorthand: message.Shorthand = @fromBackingInt(@intCast(@as(u2, @truncate(low >> 18))));
    switch (delivery) {
        .fixed, .lowest => {
            if (vector < message.vector_min) {
                self.raiseError(registers.esr_send_illegal_vector);
                return .{};
            }
            if (shorthand == .self) return selfIpi(self, vector);
        },
        .smi, .nmi => {},
        .init => {
            // INIT level de-assert: only resets arbitration ids, which are gone (SDM "Level").
            if (low & registers.icr_level != 0 and low & registers.icr_assert == 0) return .{};
            if (shorthand == .self or shorthand == .all) return .{};
        },
        .startup => if (shorthand == .self or shorthand == .all) return .{},
        // ExtINT and the reserved mode cannot be sent.
        else => return .{},
    }
    const x2apic = self.mode() == .x2apic;
    return .{ .ipi = .{
        .dest = if (x2apic) self.icr_high else self.icr_high >> 24,
        .vector = vector,
        .delivery = @backingInt(delivery),
        .logical = @intFromBool(low & registers.icr_logical != 0),
        .shorthand = @backingInt(shorthand),
        .x2apic = @intFromBool(x2apic),
        .source = self.apic_id,
    } };
}
