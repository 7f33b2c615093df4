//! A local APIC as a state machine: no locks, no clock, no allocation, no delivery. It belongs to
//! its vCPU's thread alone; time comes in as `now`, guest bus ticks at 1 GHz. What must happen
//! outside comes back as Effects. lapic_access.zig has the register accesses, lapic_timer.zig the
//! countdown, route.zig the choice of receivers.
//!
//! How the vCPU thread uses it, before each KVM_RUN:
//!  1. timerTick(now); take posted vectors (another thread ORs bits into an atomic set and kicks)
//!     with accept(vector, level). INIT, SIPI and NMI are separate latches of the engine.
//!  2. pending(): if a vector and the guest can take it (KVM ready_for_interrupt_injection and
//!     IF): KVM_INTERRUPT with acknowledge(). If it cannot: request_interrupt_window = 1.
//!  3. kvm_run.cr8 = cr8(); host timer at timerDeadline() when it changed.
//! After KVM_RUN: setCr8(kvm_run.cr8) (a CR8 write may cause no exit), then the exit itself;
//! setBase when sregs' APIC base moved. A halted vCPU wakes when pending() gives a vector, or NMI.
//! Publish view() (release store) after reset, setBase and Effects.view_changed.

const std = @import("std");
const message = @import("message.zig");
const registers = @import("lapic_registers.zig");
const access = @import("lapic_access.zig");
const route = @import("route.zig");
const Timer = @import("lapic_timer.zig").Timer;
const Message = message.Message;
const Lvt = registers.Lvt;
const VectorSet = registers.VectorSet;

/// What a register write asks of the world.
pub const Effects = struct {
    /// Route this message (to this LAPIC too, if it matches).
    ipi: ?Message = null,
    /// Tell the IOAPIC that this level-triggered vector ended.
    eoi_level: ?u8 = null,
    /// timerDeadline() differs from before.
    timer_changed: bool = false,
    /// TPR or PPR differ from before: cr8() and pending() may too.
    priority_changed: bool = false,
    /// view() differs from before: publish it.
    view_changed: bool = false,
};

pub const ResetKind = enum { power_on, init };

/// What the core does with a local interrupt line.
pub const LocalDelivery = enum { none, accepted, nmi, smi, init, ext_int };

pub const Lapic = struct {
    apic_id: u32,
    is_bsp: bool,
    apic_base: u64,
    /// As the guest reads it; a board may set version_directed_eoi.
    version: u32 = registers.version_value,
    task_priority: u8 = 0,
    /// Bits 31:24 of the xAPIC LDR; the x2APIC one is derived.
    logical_id: u8 = 0,
    /// Bits 31:28 of DFR.
    model: u4 = 0xf,
    spurious: u32 = registers.svr_reset,
    esr: u32 = 0,
    /// Errors since the last write of ESR: not yet visible.
    esr_latched: u32 = 0,
    icr_low: u32 = 0,
    icr_high: u32 = 0,
    lvt: [registers.lvt_count]u32 = @splat(registers.lvt_masked),
    irr: VectorSet = .{},
    isr: VectorSet = .{},
    tmr: VectorSet = .{},
    timer: Timer = .{},
    /// Levels of LINT0 and LINT1.
    lint_lines: [2]bool = .{ false, false },
    /// Work since creation, for statistics; a reset keeps them.
    timer_fires: u64 = 0,
    /// Vectors that arrived while software or hardware disabled.
    vectors_dropped: u64 = 0,

    pub const readX2apic = access.readX2apic;
    pub const writeX2apic = access.writeX2apic;
    pub const readMmio = access.readMmio;
    pub const writeMmio = access.writeMmio;

    pub fn init(apic_id: u32, is_bsp: bool) Lapic {
        return .{ .apic_id = apic_id, .is_bsp = is_bsp, .apic_base = resetBase(is_bsp) };
    }

    fn resetBase(is_bsp: bool) u64 {
        const bsp = if (is_bsp) registers.base_bsp else 0;
        return registers.base_default | registers.base_enabled | bsp;
    }

    /// Power-on forgets all; INIT keeps the id and IA32_APIC_BASE, hence the mode (SDM "Local APIC
    /// State After It Receives an INIT-Deassert..." and "x2APIC State Transitions").
    pub fn reset(self: *Lapic, kind: ResetKind) void {
        const apic_base = switch (kind) {
            .power_on => resetBase(self.is_bsp),
            .init => self.apic_base,
        };
        self.* = .{
            .apic_id = self.apic_id,
            .is_bsp = self.is_bsp,
            .apic_base = apic_base,
            .version = self.version,
            .lint_lines = self.lint_lines,
            .timer_fires = self.timer_fires,
            .vectors_dropped = self.vectors_dropped,
        };
    }

    /// IA32_APIC_BASE.
    pub fn base(self: *const Lapic) u64 {
        return self.apic_base;
    }

    /// SDM "x2APIC State Transitions": x2APIC is entered only from xAPIC and left only by
    /// disabling. Disabling loses all state but the id. Publish view() afterwards.
    pub fn setBase(self: *Lapic, value: u64) error{Gp}!void {
        if (value & registers.base_reserved != 0) return error.Gp;
        const enable = value & registers.base_enabled != 0;
        const extend = value & registers.base_x2apic != 0;
        if (extend and !enable) return error.Gp;
        switch (self.mode()) {
            .disabled => if (extend) return error.Gp,
            .xapic => {},
            .x2apic => if (enable and !extend) return error.Gp,
        }
        const was = self.mode();
        self.apic_base = value;
        if (!enable and was != .disabled) self.reset(.init);
        // ICR's upper half and the logical id do not survive the change of mode.
        if (self.mode() == .x2apic and was == .xapic) {
            self.icr_high = 0;
            self.logical_id = 0;
        }
    }

    pub fn mode(self: *const Lapic) route.Mode {
        if (self.apic_base & registers.base_enabled == 0) return .disabled;
        return if (self.apic_base & registers.base_x2apic == 0) .xapic else .x2apic;
    }

    /// Guest-physical address of the register page, null while there is none: in x2APIC mode and
    /// while disabled those addresses are plain bus space.
    pub fn mmioBase(self: *const Lapic) ?u64 {
        if (self.mode() != .xapic) return null;
        return self.apic_base & registers.base_address_mask;
    }

    pub fn softwareEnabled(self: *const Lapic) bool {
        return self.spurious & registers.svr_enabled != 0;
    }

    /// What senders need to know; see route.zig.
    pub fn view(self: *const Lapic) route.TargetView {
        return .{
            .apic_id = self.apic_id,
            .logical_id = self.logical_id,
            .model = switch (self.model) {
                0xf => .flat,
                0x0 => .cluster,
                else => .invalid,
            },
            .mode = self.mode(),
            .software_enabled = self.softwareEnabled(),
        };
    }

    pub fn matches(self: *const Lapic, m: Message) bool {
        return self.view().matches(m);
    }

    /// A fixed or lowest-priority vector arrives. A disabled LAPIC takes none (SDM "Local APIC
    /// State After It Has Been Software Disabled"); a vector below 16 is an error.
    pub fn accept(self: *Lapic, vector: u8, level: bool) void {
        if (self.mode() == .disabled or !self.softwareEnabled()) {
            self.vectors_dropped += 1;
            return;
        }
        if (vector < message.vector_min) {
            self.raiseError(registers.esr_receive_illegal_vector);
            return;
        }
        self.irr.set(vector);
        if (level) self.tmr.set(vector) else self.tmr.clear(vector);
    }

    /// The vector to inject: the highest requested one whose class beats the processor priority.
    pub fn pending(self: *const Lapic) ?u8 {
        if (self.mode() == .disabled or !self.softwareEnabled()) return null;
        const vector = self.irr.highest() orelse return null;
        return if (vector >> 4 > self.ppr() >> 4) vector else null;
    }

    /// The interrupt-acknowledge cycle: moves the pending vector into service. If there is none any
    /// more the answer is the spurious vector, which is not in service and gets no EOI.
    pub fn acknowledge(self: *Lapic) u8 {
        const vector = self.pending() orelse return @truncate(self.spurious);
        self.irr.clear(vector);
        self.isr.set(vector);
        return vector;
    }

    /// SDM "Processor Priority Register".
    pub fn ppr(self: *const Lapic) u8 {
        const service = self.isr.highest() orelse 0;
        const own = self.task_priority;
        return if (own >> 4 >= service >> 4) own else service & 0xf0;
    }

    pub fn tpr(self: *const Lapic) u8 {
        return self.task_priority;
    }

    pub fn setTpr(self: *Lapic, value: u8) void {
        self.task_priority = value;
    }

    pub fn cr8(self: *const Lapic) u4 {
        return @truncate(self.task_priority >> 4);
    }

    /// CR8 as KVM_RUN left it. A CR8 that did not change leaves TPR's lower half alone.
    pub fn setCr8(self: *Lapic, value: u4) void {
        if (value != self.cr8()) self.task_priority = @as(u8, value) << 4;
    }

    /// End of interrupt: the highest vector in service. Says so if the IOAPIC must hear of it.
    pub fn endOfInterrupt(self: *Lapic) Effects {
        const vector = self.isr.highest() orelse return .{};
        self.isr.clear(vector);
        if (!self.tmr.has(vector)) return .{};
        self.endLevelLint0(vector);
        const suppressed = self.spurious & registers.svr_directed_eoi != 0;
        return .{ .eoi_level = if (suppressed) null else vector };
    }

    /// Bus tick at which timerTick has something to do; null while stopped or masked.
    pub fn timerDeadline(self: *const Lapic) ?u64 {
        if (self.lvt[@backingInt(Lvt.timer)] & registers.lvt_masked != 0) return null;
        return self.timer.deadline(self.timerPeriodic());
    }

    pub fn timerTick(self: *Lapic, now: u64) void {
        if (!self.timer.advance(now, self.timerPeriodic())) return;
        const entry = self.lvt[@backingInt(Lvt.timer)];
        if (entry & registers.lvt_masked != 0) return;
        self.timer_fires += 1;
        self.accept(@truncate(entry), false);
    }

    pub fn timerPeriodic(self: *const Lapic) bool {
        return self.lvt[@backingInt(Lvt.timer)] & registers.lvt_periodic != 0;
    }

    /// The level of LINT0 (an 8259's output, usually) or LINT1 (NMI, usually). The answer is what
    /// the core must do now; ExtINT is answered at each call while the line is up.
    pub fn lint(self: *Lapic, pin: u1, asserted: bool) LocalDelivery {
        const rising = asserted and !self.lint_lines[pin];
        self.lint_lines[pin] = asserted;
        const which: Lvt = if (pin == 0) .lint0 else .lint1;
        const entry = &self.lvt[@backingInt(which)];
        if (self.mode() == .disabled or !asserted) return .none;
        if (entry.* & registers.lvt_masked != 0) return .none;
        const vector: u8 = @truncate(entry.*);
        switch (@as(message.DeliveryMode, @fromBackingInt(@truncate(entry.* >> 8)))) {
            .ext_int => return .ext_int,
            .nmi => return if (rising) .nmi else .none,
            .smi => return if (rising) .smi else .none,
            .init => return if (rising) .init else .none,
            .fixed => {
                // LINT1 is always edge sensitive (SDM "Local Vector Table", trigger mode).
                const level = pin == 0 and entry.* & registers.lvt_level != 0;
                if (level) {
                    if (entry.* & registers.lvt_remote_irr != 0) return .none;
                    entry.* |= registers.lvt_remote_irr;
                } else if (!rising) return .none;
                self.accept(vector, level);
                return .accepted;
            },
            else => return .none,
        }
    }

    fn endLevelLint0(self: *Lapic, vector: u8) void {
        const entry = &self.lvt[@backingInt(Lvt.lint0)];
        if (@as(u8, @truncate(entry.*)) != vector) return;
        if (entry.* & registers.lvt_remote_irr == 0) return;
        entry.* &= ~registers.lvt_remote_irr;
        _ = self.lint(0, self.lint_lines[0]);
    }

    /// Latches an error until the guest writes ESR; the first of each kind interrupts.
    pub fn raiseError(self: *Lapic, bit: u32) void {
        if (self.esr_latched & bit != 0) return;
        self.esr_latched |= bit;
        const entry = self.lvt[@backingInt(Lvt.err)];
        if (entry & registers.lvt_masked == 0) self.accept(@truncate(entry), false);
    }
};

const expect = std.testing.expect;
const expectEqual = std.testing.expectEqual;
const expectError = std.testing.expectError;

fn enabled() Lapic {
    var l = Lapic.init(3, false);
    l.spurious = registers.svr_enabled | 0xff;
    return l;
}

test "reset state, and what INIT keeps" {
    var l = Lapic.init(0x41, true);
    try expectEqual(0xfee0_0900, l.base());
    try expectEqual(.xapic, l.mode());
    try expect(!l.softwareEnabled());
    try expectEqual(null, l.pending());
    for (l.lvt) |entry| try expectEqual(registers.lvt_masked, entry);
    try l.setBase(0xfee0_0d00);
    l.spurious = 0x1ff;
    l.accept(0x40, true);
    l.setTpr(0x20);
    l.timer.setInitial(5, 0);
    l.reset(.init);
    try expectEqual(0xfee0_0d00, l.base());
    try expectEqual(.x2apic, l.mode());
    try expectEqual(0, l.tpr());
    try expectEqual(null, l.irr.highest());
    try expectEqual(null, l.timer.deadline(false));
    l.reset(.power_on);
    try expectEqual(0xfee0_0900, l.base());
    try expectEqual(0x41, l.view().apic_id);
    try expectEqual(0xfee0_0800, Lapic.init(1, false).base());
}

test "apic base: every transition of the mode diagram" {
    const off = 0xfee0_0000;
    const xapic = 0xfee0_0800;
    const x2apic = 0xfee0_0c00;
    const invalid = 0xfee0_0400;
    const legal = [_]struct { u64, u64, bool }{
        .{ off, off, true },       .{ off, xapic, true },
        .{ off, x2apic, false },   .{ off, invalid, false },
        .{ xapic, off, true },     .{ xapic, xapic, true },
        .{ xapic, x2apic, true },  .{ xapic, invalid, false },
        .{ x2apic, off, true },    .{ x2apic, xapic, false },
        .{ x2apic, x2apic, true }, .{ x2apic, invalid, false },
    };
    for (legal) |row| {
        var l = Lapic.init(0, false);
        try l.setBase(row[0]);
        try expectEqual(row[0], l.base());
        if (row[2]) {
            try l.setBase(row[1]);
            try expectEqual(row[1], l.base());
        } else {
            try expectError(error.Gp, l.setBase(row[1]));
            try expectEqual(row[0], l.base());
        }
    }
    var l = Lapic.init(0, false);
    for ([_]u6{ 0, 1, 7, 9, 52, 63 }) |bit| {
        try expectError(error.Gp, l.setBase(xapic | @as(u64, 1) << bit));
    }
}

test "apic base: the page moves, and is gone outside xAPIC mode" {
    var l = Lapic.init(0, false);
    try expectEqual(0xfee0_0000, l.mmioBase().?);
    try l.setBase(0x1_2345_6800);
    try expectEqual(0x1_2345_6000, l.mmioBase().?);
    try l.setBase(0x1_2345_6c00);
    try expectEqual(null, l.mmioBase());
    try l.setBase(0x1_2345_6000);
    try expectEqual(null, l.mmioBase());
}

test "apic base: disabling loses the state, entering x2APIC keeps it" {
    var l = enabled();
    l.logical_id = 0x10;
    l.icr_high = 0x0500_0000;
    l.accept(0x55, false);
    l.setTpr(0x30);
    try l.setBase(0xfee0_0c00);
    try expectEqual(0x55, l.pending().?);
    try expectEqual(0x30, l.tpr());
    try expectEqual(0, l.icr_high);
    try expectEqual(0, l.logical_id);
    try l.setBase(0xfee0_0000);
    try expectEqual(null, l.irr.highest());
    try expectEqual(0, l.tpr());
    l.accept(0x56, false);
    try expectEqual(1, l.vectors_dropped);
    try l.setBase(0xfee0_0800);
    try expect(!l.softwareEnabled());
}

test "priority: PPR by table" {
    // TPR, highest in service (0 = none), PPR: SDM "Processor Priority Register".
    const table = [_][3]u8{
        .{ 0x00, 0x00, 0x00 }, .{ 0x2f, 0x00, 0x2f }, .{ 0x00, 0x31, 0x30 },
        .{ 0x2f, 0x31, 0x30 }, .{ 0x35, 0x31, 0x35 }, .{ 0x30, 0x3f, 0x30 },
        .{ 0xf0, 0xe1, 0xf0 }, .{ 0xff, 0x20, 0xff }, .{ 0x0f, 0x10, 0x10 },
    };
    for (table) |row| {
        var l = enabled();
        l.setTpr(row[0]);
        if (row[1] != 0) l.isr.set(row[1]);
        try expectEqual(row[2], l.ppr());
    }
}

test "priority: a request is pending only above the processor's class" {
    var l = enabled();
    l.accept(0x45, false);
    for (0..256) |tpr_value| {
        l.setTpr(@intCast(tpr_value));
        try expectEqual(tpr_value >> 4 < 4, l.pending() != null);
    }
    l.setTpr(0);
    // In service 0x4f: 0x45 waits, 0x50 nests.
    l.isr.set(0x4f);
    try expectEqual(null, l.pending());
    l.accept(0x50, false);
    try expectEqual(0x50, l.acknowledge());
    try expectEqual(0x50, l.ppr());
    _ = l.endOfInterrupt();
    try expectEqual(0x40, l.ppr());
    _ = l.endOfInterrupt();
    try expectEqual(0x45, l.acknowledge());
}

test "acknowledge without a request answers the spurious vector, not in service" {
    var l = enabled();
    l.spurious = registers.svr_enabled | 0xef;
    l.accept(0x31, false);
    l.setTpr(0x40);
    try expectEqual(0xef, l.acknowledge());
    try expectEqual(null, l.isr.highest());
    l.setTpr(0);
    try expectEqual(0x31, l.acknowledge());
}

test "cr8 follows TPR and does not clear its lower half needlessly" {
    var l = enabled();
    l.setTpr(0x57);
    try expectEqual(5, l.cr8());
    l.setCr8(5);
    try expectEqual(0x57, l.tpr());
    l.setCr8(6);
    try expectEqual(0x60, l.tpr());
}

test "eoi: edge tells nobody, level tells the IOAPIC, the newest trigger mode counts" {
    var l = enabled();
    try expectEqual(null, l.endOfInterrupt().eoi_level);
    l.accept(0x31, false);
    _ = l.acknowledge();
    try expectEqual(null, l.endOfInterrupt().eoi_level);
    l.accept(0x31, true);
    _ = l.acknowledge();
    try expectEqual(0x31, l.endOfInterrupt().eoi_level.?);
    l.accept(0x31, true);
    l.accept(0x31, false);
    _ = l.acknowledge();
    try expectEqual(null, l.endOfInterrupt().eoi_level);
}

test "a second request of a vector in service waits for its EOI" {
    var l = enabled();
    l.accept(0x31, false);
    try expectEqual(0x31, l.acknowledge());
    l.accept(0x31, false);
    l.accept(0x31, false);
    try expectEqual(null, l.pending());
    _ = l.endOfInterrupt();
    try expectEqual(0x31, l.acknowledge());
    _ = l.endOfInterrupt();
    try expectEqual(null, l.pending());
}

test "software disabled: nothing is accepted, held requests come back" {
    var l = enabled();
    l.accept(0x61, false);
    l.spurious = 0xff;
    try expectEqual(null, l.pending());
    l.accept(0x71, false);
    try expectEqual(1, l.vectors_dropped);
    l.spurious = registers.svr_enabled | 0xff;
    try expectEqual(0x61, l.pending().?);
}

test "illegal vectors are errors, raised once until ESR is written" {
    var l = enabled();
    l.lvt[@backingInt(Lvt.err)] = 0xfe;
    l.accept(0x0f, false);
    try expectEqual(registers.esr_receive_illegal_vector, l.esr_latched);
    try expectEqual(0xfe, l.acknowledge());
    _ = l.endOfInterrupt();
    l.accept(0x00, true);
    try expectEqual(null, l.pending());
    l.esr_latched = 0;
    l.accept(0x03, false);
    try expectEqual(0xfe, l.pending().?);
    // An error entry with an illegal vector of its own must not recurse.
    var bad = enabled();
    bad.lvt[@backingInt(Lvt.err)] = 0x05;
    bad.raiseError(registers.esr_illegal_register);
    const both = registers.esr_illegal_register | registers.esr_receive_illegal_vector;
    try expectEqual(both, bad.esr_latched);
}

test "lint: delivery modes by table" {
    const table = [_]struct { u32, LocalDelivery, LocalDelivery }{
        // Entry, answer at the rising edge, answer while it stays up.
        .{ 0x1_0700, .none, .none },   .{ 0x0700, .ext_int, .ext_int },
        .{ 0x0400, .nmi, .none },      .{ 0x0200, .smi, .none },
        .{ 0x0500, .init, .none },     .{ 0x0031, .accepted, .none },
        .{ 0x8031, .accepted, .none }, .{ 0x0131, .none, .none },
        .{ 0x0331, .none, .none },     .{ 0x0631, .none, .none },
    };
    for (table) |row| {
        var l = enabled();
        l.lvt[@backingInt(Lvt.lint0)] = row[0];
        try expectEqual(.none, l.lint(0, false));
        try expectEqual(row[1], l.lint(0, true));
        try expectEqual(row[2], l.lint(0, true));
        try expectEqual(.none, l.lint(0, false));
        try expectEqual(row[1] == .accepted, l.pending() != null);
    }
}

test "lint0 level: remote IRR until EOI, again while the line is up; lint1 is always an edge" {
    var l = enabled();
    l.lvt[@backingInt(Lvt.lint0)] = registers.lvt_level | 0x41;
    try expectEqual(.accepted, l.lint(0, true));
    try expect(l.lvt[@backingInt(Lvt.lint0)] & registers.lvt_remote_irr != 0);
    try expectEqual(0x41, l.acknowledge());
    _ = l.endOfInterrupt();
    try expectEqual(0x41, l.acknowledge());
    try expectEqual(.none, l.lint(0, false));
    _ = l.endOfInterrupt();
    try expectEqual(null, l.pending());
    try expect(l.lvt[@backingInt(Lvt.lint0)] & registers.lvt_remote_irr == 0);
    l.lvt[@backingInt(Lvt.lint1)] = registers.lvt_level | 0x42;
    try expectEqual(.accepted, l.lint(1, true));
    try expectEqual(0x42, l.acknowledge());
    try expectEqual(null, l.endOfInterrupt().eoi_level);
    try expectEqual(null, l.pending());
}

test "timer: fires its vector, counts, and is silent while masked" {
    var l = enabled();
    l.lvt[@backingInt(Lvt.timer)] = 0xec;
    l.timer.divide = 0xb;
    l.timer.setInitial(1000, 0);
    try expectEqual(1000, l.timerDeadline().?);
    l.timerTick(999);
    try expectEqual(null, l.pending());
    l.timerTick(1000);
    try expectEqual(0xec, l.pending().?);
    try expectEqual(1, l.timer_fires);
    l.lvt[@backingInt(Lvt.timer)] = registers.lvt_masked | 0xec;
    l.irr.clear(0xec);
    l.timer.setInitial(1000, 2000);
    try expectEqual(null, l.timerDeadline());
    l.timerTick(9000);
    try expectEqual(null, l.pending());
    try expectEqual(1, l.timer_fires);
}
