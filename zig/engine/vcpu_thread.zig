//! The run loop: one thread per vCPU, the only one that touches its KVM vCPU and its LAPIC.
//! Each turn: obey pause, freeze and stop, follow the guest's clock, take the inbox, let the APIC
//! timer happen, inject at most one interrupt, enter the guest, answer the exit. Kicks are a
//! real-time signal whose handler sets immediate_exit, so a kick that lands just before KVM_RUN is
//! not lost.

const std = @import("std");
const posix = std.posix;
const abi = @import("../abi.zig");
const api = @import("../kvm/api.zig");
const sys = @import("../base/sys.zig");
const timer = @import("../base/timer.zig");
const last_words = @import("../base/last_words.zig");
const Vcpu = @import("../kvm/vcpu.zig").Vcpu;
const Lapic = @import("../irq/lapic.zig").Lapic;
const Message = @import("../irq/message.zig").Message;
const inbox_file = @import("inbox.zig");
const Inbox = inbox_file.Inbox;
const Signal = inbox_file.Signal;
const bus_file = @import("bus.zig");
const exits = @import("exits.zig");
const Engine = @import("../engine.zig").Engine;

pub const RunState = enum(u8) {
    /// After power-on of an application processor, or INIT: waits for SIPI.
    wait_startup,
    running,
    /// HLT: wakes on an interrupt if interrupts were enabled, else on NMI and INIT only.
    halted,
};

/// The run record of this thread's vCPU, for the kick handler.
threadlocal var current_run: ?*volatile api.Run = null;

fn onKick(_: posix.SIG) callconv(.c) void {
    if (current_run) |run| run.immediate_exit = 1;
}

pub fn installKickHandler() void {
    const action: posix.Sigaction = .{
        .handler = .{ .handler = onKick },
        .mask = posix.sigemptyset(),
        .flags = 0,
    };
    posix.sigaction(sys.kickSignal(), &action, null);
}

pub const VcpuThread = struct {
    engine: *Engine,
    index: u32,
    apic_id: u32,
    vcpu: Vcpu,
    lapic: Lapic,
    inbox: Inbox = .{},
    state: std.atomic.Value(RunState) = .init(.wait_startup),
    stats: *abi.VcpuStats,
    cpuid: []const abi.CpuidEntry = &.{},
    thread: ?std.Thread = null,
    timer: timer.ThreadTimer = .{},
    armed_deadline: ?u64 = null,
    /// Clock.changes that timer and TSC offset follow.
    clock_changes: u32 = 0,
    /// The pause this thread was counted for.
    parked_for: u32 = 0,
    /// IF was clear at the last HLT.
    halted_masked: bool = false,
    /// KVM says an interrupt may be injected now; false again after one was.
    ready: bool = false,
    /// IA32_TSC_ADJUST as the guest wrote it; the TSC itself never moves (clock policy).
    tsc_adjust: u64 = 0,
    /// Signals taken while waiting for an io request: handled on the next turn.
    deferred: inbox_file.Taken = .{ .signals = 0, .startup_vector = 0 },

    pub fn main(self: *VcpuThread) void {
        last_words.enterVcpu(self.index);
        self.inbox.tid.store(std.os.linux.gettid(), .release);
        sys.unblockSignal(sys.kickSignal());
        self.timer = timer.ThreadTimer.create(sys.kickSignal()) catch {
            return self.engine.stopWith(.kvm_internal_error, self.index, sys.last_errno);
        };
        if (self.engine.config.pin_vcpus != 0 and !sys.pinToCpu(self.index)) {
            self.engine.events.notice("a vCPU could not be pinned");
        }
        while (self.turn()) {}
    }

    /// One turn of the loop; false ends the thread.
    fn turn(self: *VcpuThread) bool {
        if (!self.engine.checkpoint(&self.parked_for)) return false;
        self.followClock() catch return self.kvmFailed();
        const run = self.vcpu.run;
        current_run = run;
        run.immediate_exit = 0;
        self.takeInbox() catch return self.kvmFailed();
        self.tick();
        if (!self.runnable()) {
            self.sleep();
            return true;
        }
        self.prepare() catch return self.kvmFailed();
        if (!self.inbox.beginGuest()) return true;
        if (!self.mayEnter()) {
            self.inbox.endGuest();
            return true;
        }
        const entered = self.vcpu.enter();
        self.inbox.endGuest();
        const how = entered catch return self.kvmFailed();
        self.afterExit();
        if (how == .interrupted) return true;
        self.stats.exits += 1;
        return exits.handle(self);
    }

    /// After beginGuest(): whoever closes the parking later sees guest mode, and kicks.
    fn mayEnter(self: *const VcpuThread) bool {
        return self.engine.parking.isOpen() and
            self.engine.clock.changes.load(.seq_cst) == self.clock_changes;
    }

    /// After a freeze or a step: the guest's clock has moved against the host's.
    fn followClock(self: *VcpuThread) !void {
        if (self.engine.clock.changes.load(.seq_cst) == self.clock_changes) return;
        try self.setClock();
        self.armed_deadline = null;
    }

    /// This thread, or any while it does not exist or is parked.
    pub fn setClock(self: *VcpuThread) !void {
        // Before the offset: a change in between is followed on the next turn.
        self.clock_changes = self.engine.clock.changes.load(.seq_cst);
        if (self.engine.config.node_count == 1) return;
        try self.vcpu.setTscOffset(self.engine.clock.tscOffset());
    }

    fn kvmFailed(self: *VcpuThread) bool {
        self.engine.stopWith(.kvm_internal_error, self.index, sys.last_errno);
        return false;
    }

    fn takeInbox(self: *VcpuThread) !void {
        var taken = self.inbox.take();
        if (self.deferred.signals != 0) {
            if (taken.signals & Signal.startup == 0) {
                taken.startup_vector = self.deferred.startup_vector;
            }
            taken.signals |= self.deferred.signals;
            self.deferred = .{ .signals = 0, .startup_vector = 0 };
        }
        const signals = taken.signals;
        if (signals == 0) return;
        if (signals & Signal.init != 0) try self.initialise();
        if (signals & Signal.startup != 0 and self.state.load(.monotonic) == .wait_startup) {
            try self.vcpu.setStartup(taken.startup_vector);
            self.state.store(.running, .monotonic);
        }
        if (signals & Signal.interrupts != 0) {
            for (0..8) |word| {
                const posted = self.inbox.takeWord(word);
                var rest = posted.vectors;
                while (rest != 0) : (rest &= rest - 1) {
                    const bit: u5 = @intCast(@ctz(rest));
                    const vector: u8 = @intCast(word * 32 + bit);
                    self.lapic.accept(vector, posted.level >> bit & 1 != 0);
                }
            }
        }
        if (signals & Signal.nmi != 0 and self.state.load(.monotonic) != .wait_startup) {
            try self.vcpu.nmi();
            self.stats.nmis += 1;
            self.state.store(.running, .monotonic);
        }
    }

    /// INIT: the vCPU waits for SIPI with a reset LAPIC; KVM keeps the APIC base.
    fn initialise(self: *VcpuThread) !void {
        self.lapic.reset(.init);
        try self.vcpu.setInit(self.lapic.base());
        self.ready = false;
        self.state.store(.wait_startup, .monotonic);
        self.publish();
    }

    pub fn publish(self: *VcpuThread) void {
        self.engine.router.publish(self.index, self.lapic.view());
    }

    fn tick(self: *VcpuThread) void {
        if (self.lapic.timerDeadline()) |deadline| {
            const now = self.engine.clock.now();
            if (now >= deadline) {
                self.lapic.timerTick(now);
                self.stats.timer_fires += 1;
            }
        }
        const deadline = self.lapic.timerDeadline();
        if (deadline == null and self.armed_deadline == null) return;
        if (deadline != null and self.armed_deadline != null and
            deadline.? == self.armed_deadline.?) return;
        self.armed_deadline = deadline;
        self.timer.set(if (deadline) |d| self.engine.clock.hostTime(d) else 0);
    }

    fn runnable(self: *VcpuThread) bool {
        switch (self.state.load(.monotonic)) {
            .running => return true,
            .wait_startup => return false,
            .halted => {
                if (self.halted_masked or self.lapic.pending() == null) return false;
                self.state.store(.running, .monotonic);
                return true;
            },
        }
    }

    fn sleep(self: *VcpuThread) void {
        var timeout: ?u64 = null;
        // The timer's signal also wakes the sleeper, but one that arrives just before the futex
        // call would be lost without this bound.
        if (self.armed_deadline) |deadline| {
            const at = self.engine.clock.hostTime(deadline);
            const now = sys.monotonicNs();
            if (at <= now) return;
            timeout = at - now;
        }
        self.inbox.sleep(timeout);
    }

    fn prepare(self: *VcpuThread) !void {
        const run = self.vcpu.run;
        // Without an in-kernel LAPIC cr8 is an input of KVM_RUN.
        run.cr8 = self.lapic.cr8();
        run.request_interrupt_window = 0;
        if (self.lapic.pending() == null) return;
        if (self.ready) {
            self.ready = false;
            try self.vcpu.interrupt(self.lapic.acknowledge());
            self.stats.interrupts += 1;
            if (self.lapic.pending() == null) return;
        }
        run.request_interrupt_window = 1;
    }

    fn afterExit(self: *VcpuThread) void {
        const run = self.vcpu.run;
        self.ready = run.ready_for_interrupt_injection != 0 and run.if_flag != 0;
        const cr8: u8 = @truncate(run.cr8);
        if (cr8 != self.lapic.cr8()) self.lapic.setTpr(cr8 << 4);
        if (run.apic_base != self.lapic.base()) {
            // KVM checked the transition when it took the WRMSR; a LAPIC that disagrees with it
            // would answer for another mode than the guest's.
            self.lapic.setBase(run.apic_base) catch {
                self.engine.stopWith(.kvm_internal_error, self.index, run.apic_base);
            };
            self.publish();
        }
    }

    pub fn halt(self: *VcpuThread) void {
        self.stats.halts += 1;
        self.halted_masked = self.vcpu.run.if_flag == 0;
        self.state.store(.halted, .monotonic);
        if (self.halted_masked) self.engine.maskedHalt(self.index);
    }

    /// Posts an io request and waits for its completer; null when the VM stops first. Kicks end the
    /// wait only if they stop the VM: their signals are kept for the next turn.
    pub fn request(self: *VcpuThread, access: bus_file.Access, completer: Completer) ?u64 {
        const slot = &self.engine.shared.io_slots[self.index];
        slot.kind = @backingInt(access.kind);
        slot.size = access.size;
        slot.is_write = @intFromBool(access.is_write);
        slot.address = access.address;
        slot.value = access.value;
        slot.sequence +%= 1;
        switch (completer) {
            .typescript => |device| {
                slot.device = device;
                self.stats.io_typescript += 1;
            },
            .remote => self.stats.io_remote += 1,
            .balloon => {},
        }
        // Release: the completer sees the fields before the state.
        @atomicStore(u32, &slot.state, @backingInt(abi.IoState.posted), .release);
        switch (completer) {
            .typescript => self.engine.events.simple(.io_request, self.index, access.address, 0, 0),
            .remote => |node| self.engine.forward(self.index, node),
            .balloon => self.engine.balloon.?.waitFor(self.index),
        }
        // Acquire: pairs with the completer's release of `done`.
        while (@atomicLoad(u32, &slot.state, .acquire) != @backingInt(abi.IoState.done)) {
            if (self.engine.stopping()) return null;
            self.inbox.sleep(null);
            self.deferSignals();
        }
        @atomicStore(u32, &slot.state, @backingInt(abi.IoState.idle), .release);
        return slot.value;
    }

    fn deferSignals(self: *VcpuThread) void {
        const taken = self.inbox.take();
        if (taken.signals & Signal.init != 0) self.deferred.signals &= ~Signal.startup;
        if (taken.signals & Signal.startup != 0) {
            self.deferred.startup_vector = taken.startup_vector;
        }
        self.deferred.signals |= taken.signals;
    }
};

pub const Completer = union(enum) { typescript: u32, remote: u32, balloon };
