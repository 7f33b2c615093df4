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
    return @fromBackingInt(@truncate(msr));
}

/// `offset` within the page. Registers are 32 bits at 16-byte steps; the bytes between are
/// undefined (zero here), and a narrow read within a register gets its bytes.
pub fn readMmio(self: *Lapic, offset: u32, now: u64) u32 {
    if (self.mode() != .xapic) return 0xffff_ffff;
    if (offset >= registers.mmio_size or offset & 0xc != 0) return 0;
    const register: Register = @fromBackingInt(@intCast(offset >> 4));
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
    const register: Register = @fromBackingInt(@intCast(offset >> 4));
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
    // A level that was waiting behind the mask goes out now; other modes need a new edge or, for
    // ExtINT, the next call of lint.
    if (lvt == .lint0 and entry.* & registers.lvt_level != 0) _ = self.lint(0, self.lint_lines[0]);
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
    const delivery: DeliveryMode = @fromBackingInt(@truncate(low >> 8));
    const shorthand: message.Shorthand = @fromBackingInt(@truncate(low >> 18));
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

const expect = std.testing.expect;
const expectEqual = std.testing.expectEqual;
const expectError = std.testing.expectError;

const msr_icr = 0x830;
const off_esr = 0x280;
const off_icr_low = 0x300;
const off_icr_high = 0x310;
const off_timer = 0x320;
const off_initial = 0x380;
const off_current = 0x390;
const off_divide = 0x3e0;
const off_svr = 0xf0;

fn inXapic() Lapic {
    var l = Lapic.init(5, false);
    _ = l.writeMmio(off_svr, 0x1ff, 0);
    return l;
}

fn inX2apic(apic_id: u32) !Lapic {
    var l = Lapic.init(apic_id, false);
    try l.setBase(0xfee0_0c00);
    _ = try l.writeX2apic(0x80f, 0x1ff, 0);
    return l;
}

test "identification in both modes" {
    var l = inXapic();
    try expectEqual(0x0500_0000, l.readMmio(0x20, 0));
    try expectEqual(0x0006_0014, l.readMmio(0x30, 0));
    _ = l.writeMmio(0xd0, 0x12ff_ffff, 0);
    try expectEqual(0x1200_0000, l.readMmio(0xd0, 0));
    _ = l.writeMmio(0xe0, 0, 0);
    try expectEqual(0x0fff_ffff, l.readMmio(0xe0, 0));
    // Read-only registers stay.
    _ = l.writeMmio(0x20, 0x0900_0000, 0);
    _ = l.writeMmio(0x30, 0, 0);
    try expectEqual(0x0500_0000, l.readMmio(0x20, 0));
    try expectEqual(0x0006_0014, l.readMmio(0x30, 0));
    var x = try inX2apic(0x1c5);
    try expectEqual(0x1c5, try x.readX2apic(0x802, 0));
    // Cluster 0x1c, bit 5.
    try expectEqual(0x001c_0020, try x.readX2apic(0x80d, 0));
}

test "x2APIC: which MSRs can be read and written, all 256" {
    const readable = [_]u8{
        0x02, 0x03, 0x08, 0x0a, 0x0d, 0x0f, 0x28, 0x2f, 0x30, 0x32,
        0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3e,
    };
    const writable = [_]u8{
        0x08, 0x0b, 0x0f, 0x28, 0x2f, 0x30, 0x32, 0x33,
        0x34, 0x35, 0x36, 0x37, 0x38, 0x3e, 0x3f,
    };
    for (0..256) |number| {
        var l = try inX2apic(0);
        const msr = 0x800 + @as(u32, @intCast(number));
        const named = std.mem.findScalar(u8, &readable, @intCast(number)) != null;
        const can_read = named or (number >= 0x10 and number <= 0x27);
        const can_write = std.mem.findScalar(u8, &writable, @intCast(number)) != null;
        try expectEqual(can_read, if (l.readX2apic(msr, 0)) |_| true else |_| false);
        try expectEqual(can_write, if (l.writeX2apic(msr, 0, 0)) |_| true else |_| false);
    }
    var l = try inX2apic(0);
    try expectError(error.Gp, l.readX2apic(0x7ff, 0));
    try expectError(error.Gp, l.readX2apic(0x900, 0));
    try expectError(error.Gp, l.writeX2apic(0x1_0808, 0, 0));
}

test "x2APIC: reserved bits, one by one" {
    // MSR and the bits a write may set.
    const table = [_]struct { u32, u64 }{
        .{ 0x808, 0xff },     .{ 0x80b, 0 },        .{ 0x80f, 0x3ff },
        .{ 0x828, 0 },        .{ 0x82f, 0x1_17ff }, .{ 0x832, 0x3_10ff },
        .{ 0x833, 0x1_17ff }, .{ 0x834, 0x1_17ff }, .{ 0x835, 0x1_f7ff },
        .{ 0x836, 0x1_f7ff }, .{ 0x837, 0x1_10ff }, .{ 0x838, 0xffff_ffff },
        .{ 0x83e, 0xb },      .{ 0x83f, 0xff },     .{ msr_icr, 0xffff_ffff_000c_dfff },
    };
    for (table) |row| {
        for (0..64) |bit| {
            var l = try inX2apic(0);
            const value = @as(u64, 1) << @intCast(bit);
            const ok = if (l.writeX2apic(row[0], value, 0)) |_| true else |_| false;
            expectEqual(row[1] & value != 0, ok) catch |e| {
                std.debug.print("msr {x} bit {}\n", .{ row[0], bit });
                return e;
            };
        }
    }
}

test "the doors are shut in the other mode" {
    var l = inXapic();
    try expectError(error.Gp, l.readX2apic(0x802, 0));
    try expectError(error.Gp, l.writeX2apic(0x808, 0x20, 0));
    var x = try inX2apic(0);
    try expectEqual(0xffff_ffff, x.readMmio(0x20, 0));
    _ = x.writeMmio(0x80, 0x55, 0);
    try expectEqual(0, x.tpr());
    try x.setBase(0xfee0_0000);
    try expectError(error.Gp, x.readX2apic(0x802, 0));
    try expectEqual(0xffff_ffff, x.readMmio(0x20, 0));
    _ = x.writeMmio(0x80, 0x55, 0);
    try expectEqual(0, x.tpr());
}

test "one register file: what one door writes the other reads" {
    var l = inXapic();
    _ = l.writeMmio(0x80, 0x35, 0);
    _ = l.writeMmio(off_timer, 0x2_00ec, 0);
    _ = l.writeMmio(off_divide, 0xb, 0);
    _ = l.writeMmio(0x350, 0x700, 0);
    l.accept(0x91, true);
    try l.setBase(0xfee0_0c00);
    try expectEqual(0x35, try l.readX2apic(0x808, 0));
    try expectEqual(0x2_00ec, try l.readX2apic(0x832, 0));
    try expectEqual(0xb, try l.readX2apic(0x83e, 0));
    try expectEqual(0x700, try l.readX2apic(0x835, 0));
    try expectEqual(1 << 17, try l.readX2apic(0x824, 0));
    try expectEqual(1 << 17, try l.readX2apic(0x81c, 0));
}

test "mmio: unaligned, narrow and absent registers" {
    var l = inXapic();
    try expectEqual(0, l.readMmio(0x24, 0));
    try expectEqual(0, l.readMmio(0x2c, 0));
    try expectEqual(0x06, l.readMmio(0x32, 0));
    _ = l.writeMmio(0x84, 0x70, 0);
    _ = l.writeMmio(0x81, 0x70, 0);
    try expectEqual(0, l.tpr());
    // Remote read and arbitration priority exist and are empty.
    try expectEqual(0, l.readMmio(0x90, 0));
    try expectEqual(0, l.readMmio(0xc0, 0));
    try expectEqual(0, l.esr_latched);
    for ([_]u32{ 0x00, 0x10, 0x40, 0x70, 0x290, 0x2e0, 0x3a0, 0x3f0, 0x400, 0xff0 }) |offset| {
        l.esr_latched = 0;
        try expectEqual(0, l.readMmio(offset, 0));
        try expectEqual(registers.esr_illegal_register, l.esr_latched);
        l.esr_latched = 0;
        _ = l.writeMmio(offset, 1, 0);
        try expectEqual(registers.esr_illegal_register, l.esr_latched);
    }
    try expectEqual(0, l.readMmio(0x1000, 0));
    try expectEqual(Effects{}, l.writeMmio(0xffff_fff0, 1, 0));
}

test "esr: shows errors only after a write, and the write clears what was gathered" {
    var l = inXapic();
    l.accept(0x01, false);
    try expectEqual(0, l.readMmio(off_esr, 0));
    _ = l.writeMmio(off_esr, 0, 0);
    try expectEqual(registers.esr_receive_illegal_vector, l.readMmio(off_esr, 0));
    try expectEqual(registers.esr_receive_illegal_vector, l.readMmio(off_esr, 0));
    _ = l.writeMmio(off_esr, 0, 0);
    try expectEqual(0, l.readMmio(off_esr, 0));
}

test "svr: software disable masks all entries and keeps them masked" {
    var l = inXapic();
    for (0..7) |i| {
        const number: u32 = if (i == 0) 0x2f0 else 0x310 + 0x10 * @as(u32, @intCast(i));
        _ = l.writeMmio(number, 0x40 + @as(u32, @intCast(i)), 0);
        try expectEqual(0x40 + @as(u32, @intCast(i)), l.readMmio(number, 0));
    }
    try expect(l.writeMmio(off_svr, 0xff, 0).view_changed);
    for (l.lvt) |entry| try expect(entry & registers.lvt_masked != 0);
    _ = l.writeMmio(0x350, 0x700, 0);
    try expectEqual(0x1_0700, l.readMmio(0x350, 0));
    try expect(l.writeMmio(off_svr, 0x1ff, 0).view_changed);
    for (l.lvt) |entry| try expect(entry & registers.lvt_masked != 0);
    _ = l.writeMmio(0x350, 0x700, 0);
    try expectEqual(0x700, l.readMmio(0x350, 0));
}

test "svr: directed EOI only where the version shows it" {
    var plain = try inX2apic(0);
    try expectError(error.Gp, plain.writeX2apic(0x80f, 0x11ff, 0));
    var l = inXapic();
    _ = l.writeMmio(off_svr, 0x11ff, 0);
    try expectEqual(0x1ff, l.readMmio(off_svr, 0));
    l.version |= registers.version_directed_eoi;
    _ = l.writeMmio(off_svr, 0x11ff, 0);
    try expectEqual(0x11ff, l.readMmio(off_svr, 0));
    l.accept(0x31, true);
    _ = l.acknowledge();
    try expectEqual(null, l.writeMmio(0xb0, 0, 0).eoi_level);
    _ = l.writeMmio(off_svr, 0x1ff, 0);
    l.accept(0x31, true);
    _ = l.acknowledge();
    try expectEqual(0x31, l.writeMmio(0xb0, 0, 0).eoi_level.?);
}

test "lvt: writable bits by table, read-only bits stay" {
    const table = [_]struct { u32, u32 }{
        .{ 0x2f0, 0x1_07ff }, .{ off_timer, 0x3_00ff }, .{ 0x330, 0x1_07ff },
        .{ 0x340, 0x1_07ff }, .{ 0x350, 0x1_a7ff },     .{ 0x360, 0x1_a7ff },
        .{ 0x370, 0x1_00ff },
    };
    for (table) |row| {
        var l = inXapic();
        _ = l.writeMmio(row[0], 0xffff_ffff, 0);
        try expectEqual(row[1], l.readMmio(row[0], 0));
        _ = l.writeMmio(row[0], 0, 0);
        try expectEqual(0, l.readMmio(row[0], 0));
    }
}

test "lvt: a level behind the mask goes out at unmask, an edge does not" {
    var l = inXapic();
    _ = l.lint(0, true);
    _ = l.writeMmio(0x350, 0x31, 0);
    try expectEqual(null, l.pending());
    _ = l.writeMmio(0x350, 0x8031, 0);
    try expectEqual(0x31, l.pending().?);
    try expectEqual(0xc031, l.readMmio(0x350, 0));
    // Back to edge: remote IRR has no meaning left.
    _ = l.writeMmio(0x350, 0x0031, 0);
    try expectEqual(0x0031, l.readMmio(0x350, 0));
}

test "icr, xAPIC: two halves make one message" {
    var l = inXapic();
    try expectEqual(Effects{}, l.writeMmio(off_icr_high, 0x07ff_ffff, 0));
    try expectEqual(0x0700_0000, l.readMmio(off_icr_high, 0));
    // NMI, physical. Bit 12 (status) reads back idle.
    const nmi = l.writeMmio(off_icr_low, 0x0000_5400, 0).ipi.?;
    try expectEqual(@as(u32, 0x0000_4400), l.readMmio(off_icr_low, 0));
    try expectEqual(DeliveryMode.nmi, nmi.mode());
    try expectEqual(7, nmi.dest);
    try expectEqual(5, nmi.source);
    try expectEqual(0, nmi.x2apic);
    const logical = l.writeMmio(off_icr_low, 0x0000_08f1, 0).ipi.?;
    try expectEqual(1, logical.logical);
    try expectEqual(0xf1, logical.vector);
    // The trigger bit means something for INIT alone.
    const edge = l.writeMmio(off_icr_low, 0x0000_c0f1, 0).ipi.?;
    try expectEqual(0, edge.level);
    try expectEqual(1, edge.assert);
    const others = l.writeMmio(off_icr_low, 0x000c_00f2, 0).ipi.?;
    try expectEqual(3, others.shorthand);
    try expect(others.valid());
}

test "icr, x2APIC: one write of 64 bits" {
    var l = try inX2apic(0x42);
    const m = (try l.writeX2apic(msr_icr, 0x0000_0101_0000_4831, 0)).ipi.?;
    try expectEqual(0x101, m.dest);
    try expectEqual(1, m.x2apic);
    try expectEqual(1, m.logical);
    try expectEqual(0x31, m.vector);
    try expectEqual(0x42, m.source);
    try expectEqual(0x0000_0101_0000_4831, try l.readX2apic(msr_icr, 0));
}

test "icr: INIT, start-up and what cannot be sent" {
    const table = [_]struct { u32, bool }{
        // INIT assert, INIT level de-assert, INIT edge; start-up; then shorthands.
        .{ 0xc500, true },    .{ 0x8500, false },   .{ 0x0500, true },   .{ 0x0699, true },
        .{ 0x4_4500, false }, .{ 0x8_4500, false }, .{ 0xc_4500, true }, .{ 0x4_0699, false },
        .{ 0x8_0699, false }, .{ 0xc_0699, true },  .{ 0x4_0400, true }, .{ 0xc_0200, true },
        // Reserved mode and ExtINT; lowest priority.
        .{ 0x0331, false },   .{ 0x0731, false },   .{ 0x0131, true },
    };
    for (table) |row| {
        var l = inXapic();
        const ipi = l.writeMmio(off_icr_low, row[0], 0).ipi;
        try expectEqual(row[1], ipi != null);
        if (ipi) |m| try expect(m.valid());
    }
}

test "icr: illegal vectors are send errors; self is accepted on the spot" {
    var l = inXapic();
    for ([_]u32{ 0x0000_000f, 0x0000_0100, 0x0004_0008 }) |icr| {
        try expectEqual(null, l.writeMmio(off_icr_low, icr, 0).ipi);
        try expectEqual(registers.esr_send_illegal_vector, l.esr_latched);
        l.esr_latched = 0;
    }
    for ([_]u32{ 0x0004_0033, 0x0004_0134 }) |icr| {
        try expectEqual(null, l.writeMmio(off_icr_low, icr, 0).ipi);
        try expectEqual(@as(u8, @truncate(icr)), l.acknowledge());
        _ = l.writeMmio(0xb0, 0, 0);
    }
    var x = try inX2apic(0);
    try expectEqual(null, (try x.writeX2apic(0x83f, 0x35, 0)).ipi);
    try expectEqual(0x35, x.acknowledge());
    _ = try x.writeX2apic(0x83f, 0x0f, 0);
    try expectEqual(registers.esr_send_illegal_vector, x.esr_latched);
}

test "timer: registers, deadline changes, TSC-deadline refused" {
    var l = inXapic();
    _ = l.writeMmio(off_divide, 0xb, 0);
    _ = l.writeMmio(off_timer, 0xec, 0);
    try expect(l.writeMmio(off_initial, 1_000_000, 10).timer_changed);
    try expectEqual(1_000_010, l.timerDeadline().?);
    try expectEqual(999_900, l.readMmio(off_current, 110));
    try expectEqual(1_000_000, l.readMmio(off_initial, 110));
    try expect(!l.writeMmio(off_timer, 0xed, 120).timer_changed);
    try expect(l.writeMmio(off_timer, 0x1_00ed, 130).timer_changed);
    // It counts on behind the mask, and unmasking finds it due where it was.
    try expectEqual(999_000, l.readMmio(off_current, 1_010));
    try expect(l.writeMmio(off_timer, 0xed, 2_000).timer_changed);
    try expectEqual(1_000_010, l.timerDeadline().?);
    try expect(l.writeMmio(off_initial, 0, 3_000).timer_changed);
    try expectEqual(0, l.readMmio(off_current, 3_001));
    // The current count is read-only.
    _ = l.writeMmio(off_current, 77, 0);
    try expectEqual(0, l.readMmio(off_current, 3_001));
    // xAPIC ignores the reserved mode bit, x2APIC refuses it.
    _ = l.writeMmio(off_timer, 0x4_00ec, 0);
    try expectEqual(0xec, l.readMmio(off_timer, 0));
    try l.setBase(0xfee0_0c00);
    try expectError(error.Gp, l.writeX2apic(0x832, 0x4_00ec, 0));
    try expectError(error.Gp, l.writeX2apic(0x839, 0, 0));
}

test "timer: a write that comes after an expiry lets the expiry happen first" {
    for ([_]u32{ off_initial, off_divide, off_timer }) |offset| {
        var l = inXapic();
        _ = l.writeMmio(off_divide, 0xb, 0);
        _ = l.writeMmio(off_timer, 0xec, 0);
        _ = l.writeMmio(off_initial, 100, 0);
        _ = l.writeMmio(offset, if (offset == off_timer) 0x1_00ed else 1, 150);
        try expectEqual(0xec, l.pending().?);
        try expectEqual(1, l.timer_fires);
    }
}

test "timer: periods that passed behind the mask do not fire at unmask" {
    var l = inXapic();
    _ = l.writeMmio(off_divide, 0xb, 0);
    _ = l.writeMmio(off_timer, 0x3_00ec, 0);
    _ = l.writeMmio(off_initial, 1_000_000, 0);
    _ = l.writeMmio(off_timer, 0x2_00ec, 3_500_000);
    try expectEqual(null, l.pending());
    try expectEqual(4_000_000, l.timerDeadline().?);
    l.timerTick(4_000_000);
    try expectEqual(0xec, l.pending().?);
}

test "effects: priority and view changes are told, others not" {
    var l = inXapic();
    try expect(l.writeMmio(0x80, 0x20, 0).priority_changed);
    try expect(!l.writeMmio(0x80, 0x20, 0).priority_changed);
    l.accept(0x51, false);
    _ = l.acknowledge();
    const eoi = l.writeMmio(0xb0, 0, 0);
    try expect(eoi.priority_changed and !eoi.view_changed and !eoi.timer_changed);
    try expect(l.writeMmio(0xd0, 0x0200_0000, 0).view_changed);
    try expect(!l.writeMmio(0xd0, 0x0200_0000, 0).view_changed);
    try expect(l.writeMmio(0xe0, 0, 0).view_changed);
}
