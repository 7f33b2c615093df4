//! Register numbers, masks and access rules of the local APIC: data, no behaviour.
//! A register number is the xAPIC offset >> 4 and the x2APIC MSR - 0x800: one numbering for both.
//! Reference: SDM volume 3A, "Local APIC Register Address Map" and "x2APIC Register Address Space".

const std = @import("std");

pub const x2apic_msr_first: u32 = 0x800;
pub const x2apic_msr_last: u32 = 0x8ff;
pub const mmio_size: u32 = 0x1000;

pub const Register = enum(u8) {
    id = 0x02,
    version = 0x03,
    tpr = 0x08,
    /// Arbitration priority: not there since the Pentium 4; reads 0, as does remote read.
    apr = 0x09,
    ppr = 0x0a,
    eoi = 0x0b,
    rrd = 0x0c,
    ldr = 0x0d,
    dfr = 0x0e,
    svr = 0x0f,
    isr_first = 0x10,
    isr_last = 0x17,
    tmr_first = 0x18,
    tmr_last = 0x1f,
    irr_first = 0x20,
    irr_last = 0x27,
    esr = 0x28,
    lvt_cmci = 0x2f,
    icr_low = 0x30,
    icr_high = 0x31,
    lvt_timer = 0x32,
    lvt_thermal = 0x33,
    lvt_perf = 0x34,
    lvt_lint0 = 0x35,
    lvt_lint1 = 0x36,
    lvt_error = 0x37,
    timer_initial = 0x38,
    timer_current = 0x39,
    timer_divide = 0x3e,
    self_ipi = 0x3f,
    _,
};

/// Index into the LVT array.
pub const Lvt = enum(u3) { timer, thermal, perf, lint0, lint1, err, cmci };
pub const lvt_count = 7;

pub fn lvtOf(register: Register) ?Lvt {
    return switch (register) {
        .lvt_timer => .timer,
        .lvt_thermal => .thermal,
        .lvt_perf => .perf,
        .lvt_lint0 => .lint0,
        .lvt_lint1 => .lint1,
        .lvt_error => .err,
        .lvt_cmci => .cmci,
        else => null,
    };
}

/// SDM "Local Vector Table".
pub const lvt_masked: u32 = 1 << 16;
pub const lvt_periodic: u32 = 1 << 17;
pub const lvt_level: u32 = 1 << 15;
pub const lvt_remote_irr: u32 = 1 << 14;
const lvt_status: u32 = 1 << 12;

/// Bits a guest may change. TSC-deadline mode (timer bit 18) is not advertised and thus reserved.
pub fn lvtWritable(lvt: Lvt) u32 {
    return switch (lvt) {
        .timer => 0x0003_00ff,
        .thermal, .perf, .cmci => 0x0001_07ff,
        .lint0, .lint1 => 0x0001_a7ff,
        .err => 0x0001_00ff,
    };
}

/// Read-only bits that a guest may write back as it read them.
fn lvtIgnored(lvt: Lvt) u32 {
    return switch (lvt) {
        .lint0, .lint1 => lvt_status | lvt_remote_irr,
        else => lvt_status,
    };
}

/// Version 0x14 (the number KVM shows and every guest knows), highest LVT 6: with CMCI.
pub const version_value: u32 = 0x0006_0014;
/// Version bit 24: SVR bit 12 may suppress EOI broadcasts. Not shown by default.
pub const version_directed_eoi: u32 = 1 << 24;

/// SDM "Spurious-Interrupt Vector Register".
pub const svr_enabled: u32 = 1 << 8;
pub const svr_directed_eoi: u32 = 1 << 12;
/// Vector, enable, and focus checking (bit 9, stored without meaning).
pub const svr_writable: u32 = 0x3ff;
pub const svr_reset: u32 = 0xff;

/// SDM "Error Status Register".
pub const esr_send_illegal_vector: u32 = 1 << 5;
pub const esr_receive_illegal_vector: u32 = 1 << 6;
pub const esr_illegal_register: u32 = 1 << 7;

/// SDM "Interrupt Command Register": what is stored; status (12) reads as idle.
pub const icr_low_writable: u32 = 0x000c_cfff;
/// In x2APIC form bits 31:20, 17:16 and 13 are reserved; 12 is ignored as the old status bit.
pub const icr_x2apic_reserved: u64 = 0xfff3_2000;
pub const icr_assert: u32 = 1 << 14;
pub const icr_level: u32 = 1 << 15;
pub const icr_logical: u32 = 1 << 11;

/// SDM "Local APIC Status and Location" (IA32_APIC_BASE).
pub const base_bsp: u64 = 1 << 8;
pub const base_x2apic: u64 = 1 << 10;
pub const base_enabled: u64 = 1 << 11;
pub const base_address_mask: u64 = 0x000f_ffff_ffff_f000;
pub const base_default: u64 = 0xfee0_0000;
pub const base_reserved: u64 = ~(base_bsp | base_x2apic | base_enabled | base_address_mask);

/// Bits that must be zero in an x2APIC write, null where the register cannot be written (SDM
/// "x2APIC Register Address Space": such accesses, and reserved bits, raise #GP).
pub fn x2apicReserved(register: Register, directed_eoi: bool) ?u64 {
    if (lvtOf(register)) |lvt| return ~@as(u64, lvtWritable(lvt) | lvtIgnored(lvt));
    return switch (register) {
        .tpr, .self_ipi => ~@as(u64, 0xff),
        .eoi, .esr => ~@as(u64, 0),
        .svr => ~@as(u64, svr_writable | if (directed_eoi) svr_directed_eoi else 0),
        .icr_low => icr_x2apic_reserved,
        .timer_initial => ~@as(u64, 0xffff_ffff),
        .timer_divide => ~@as(u64, 0xb),
        else => null,
    };
}

/// Registers an x2APIC read may name; the rest raise #GP. EOI and self IPI are write-only.
pub fn x2apicReadable(register: Register) bool {
    return switch (register) {
        .apr, .rrd, .dfr, .icr_high, .eoi, .self_ipi => false,
        else => exists(register),
    };
}

/// Registers of the xAPIC page; an access to any other sets ESR bit 7.
pub fn exists(register: Register) bool {
    return switch (@backingInt(register)) {
        0x02, 0x03, 0x08...0x28, 0x2f...0x39, 0x3e => true,
        else => false,
    };
}

/// 256 vectors: IRR, ISR, TMR and the engine's posted set share this form.
pub const VectorSet = struct {
    words: [4]u64 = @splat(0),

    pub fn set(self: *VectorSet, vector: u8) void {
        self.words[vector >> 6] |= @as(u64, 1) << @truncate(vector);
    }

    pub fn clear(self: *VectorSet, vector: u8) void {
        self.words[vector >> 6] &= ~(@as(u64, 1) << @truncate(vector));
    }

    pub fn has(self: VectorSet, vector: u8) bool {
        return self.words[vector >> 6] >> @as(u6, @truncate(vector)) & 1 != 0;
    }

    pub fn highest(self: VectorSet) ?u8 {
        var index: u8 = 4;
        while (index > 0) {
            index -= 1;
            const word = self.words[index];
            if (word != 0) return index * 64 + (63 - @as(u8, @clz(word)));
        }
        return null;
    }

    /// One of the eight 32-bit registers.
    pub fn register(self: VectorSet, index: u3) u32 {
        return @truncate(self.words[index >> 1] >> (@as(u6, index & 1) * 32));
    }
};

test "vector set: highest of every pair, and its register view" {
    for (0..256) |a| {
        for (0..256) |b| {
            var s: VectorSet = .{};
            s.set(@intCast(a));
            s.set(@intCast(b));
            try std.testing.expectEqual(@as(u8, @intCast(@max(a, b))), s.highest().?);
            const word = s.register(@intCast(a / 32));
            try std.testing.expect(word >> @intCast(a % 32) & 1 == 1);
            s.clear(@intCast(a));
            try std.testing.expectEqual(a != b, s.highest() != null);
        }
    }
}

test "register map: what exists, what x2APIC lacks" {
    var writable: u32 = 0;
    var readable: u32 = 0;
    var present: u32 = 0;
    for (0..256) |number| {
        const register: Register = @fromBackingInt(@intCast(number));
        writable += @intFromBool(x2apicReserved(register, false) != null);
        readable += @intFromBool(x2apicReadable(register));
        present += @intFromBool(exists(register));
    }
    // TPR EOI SVR ESR CMCI ICR six-LVT TMICT TDCR SELF.
    try std.testing.expectEqual(15, writable);
    // ID version TPR PPR LDR SVR 24 ESR CMCI ICR six-LVT TMICT TMCCT TDCR.
    try std.testing.expectEqual(42, readable);
    try std.testing.expectEqual(47, present);
    try std.testing.expect(!x2apicReadable(.dfr) and exists(.dfr));
}
