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
//! After KVM_RUN: setTpr(kvm_run.cr8 << 4) (a CR8 write may cause no exit), then the exit itself;
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

    /// True if this guest-physical address is the register page now: in x2APIC mode and while
    /// disabled the page is plain bus space.
    pub fn decodes(self: *const Lapic, gpa: u64) bool {
        return self.mode() == .xapic and
            (gpa ^ self.apic_base) & registers.base_address_mask == 0;
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
    /// State After It Has Been Software Disabled"); a vector below 16 is an error, not an interrupt.
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
        switch (@as(message.DeliveryMode, @fromBackingInt(@intCast(@as(u3, @truncate(entry.* >> 8)))))) {
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
        if (entry.* & registers.lvt_remote_irr == 0 or @as(u8, @truncate(entry.*)) != vector) return;
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
