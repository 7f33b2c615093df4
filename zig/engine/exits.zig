//! What each KVM exit means to a vCPU thread. Answers what this engine can (LAPIC, devices, MSRs),
//! asks TypeScript or another node for the rest, and stops the VM where running on would be wrong.
//! Guest input: every address, size and value here is the guest's choice; none may crash us.

const std = @import("std");
const abi = @import("../abi.zig");
const api = @import("../kvm/api.zig");
const bus_file = @import("bus.zig");
const Access = bus_file.Access;
const ones = bus_file.ones;
const VcpuThread = @import("vcpu_thread.zig").VcpuThread;
const Effects = @import("../irq/lapic.zig").Effects;
const hypervisor_port = @import("../devices/hypervisor_port.zig");

/// MSR numbers (Intel SDM vol. 4; x2APIC range: vol. 3, 11.12).
const msr_tsc = 0x10;
const msr_tsc_adjust = 0x3b;
/// AMD's hardware configuration register; TscFreqSel: the TSC counts at the P0 frequency (AMD64
/// APM vol. 2, and the PPRs). KVM before Linux 6.7 reads it as 0, which Linux calls a firmware bug.
const msr_hwcr = 0xc001_0015;
const hwcr_tsc_at_p0 = 1 << 24;
const x2apic_first = 0x800;
const x2apic_last = 0x8ff;

/// Handles the exit in the run record; false ends the vCPU thread.
pub fn handle(self: *VcpuThread) bool {
    const run = self.vcpu.run;
    switch (run.exit_reason) {
        .io => return port(self),
        .mmio => return mmio(self),
        .x86_rdmsr => readMsr(self),
        .x86_wrmsr => writeMsr(self),
        .hlt => self.halt(),
        .irq_window_open => self.stats.irq_windows += 1,
        // A lowered TPR only matters to the next prepare(); the others carry nothing for us.
        .set_tpr, .intr, .nmi => {},
        .shutdown => {
            self.vcpu.dump(self.index, &self.engine.shared.cpu_dump);
            self.engine.stopWith(.triple_fault, self.index, 0);
            return false;
        },
        .internal_error => return broken(self, run.exit.internal.suberror),
        .fail_entry => return broken(self, run.exit.fail_entry.reason),
        else => return broken(self, @backingInt(run.exit_reason)),
    }
    return true;
}

fn broken(self: *VcpuThread, detail: u64) bool {
    self.vcpu.dump(self.index, &self.engine.shared.cpu_dump);
    self.engine.stopWith(.kvm_internal_error, self.index, detail);
    return false;
}

/// Answers one access from the bus, TypeScript or another node; null when the VM stops meanwhile.
fn complete(self: *VcpuThread, access: Access) ?u64 {
    return switch (self.engine.bus.access(access)) {
        .done => |value| value,
        .typescript => |device| self.request(access, .{ .typescript = device }),
        .remote => |node| self.request(access, .{ .remote = node }),
        .balloon => self.request(access, .balloon),
        .unclaimed => {
            self.stats.unclaimed += 1;
            return ones(access.size);
        },
    };
}

fn port(self: *VcpuThread) bool {
    const io = self.vcpu.run.exit.io;
    self.stats.pio += 1;
    if (self.engine.bus.isHypervisorPort(io.port)) return hypervisorPort(self);
    const data = self.vcpu.ioData();
    const size: usize = io.size;
    const is_write = io.direction == api.IO_OUT;
    var i: usize = 0;
    while (i < io.count) : (i += 1) {
        const item = data[i * size ..][0..size];
        const value = complete(self, .{
            .kind = .pio,
            .address = io.port,
            .size = io.size,
            .is_write = is_write,
            .value = if (is_write) readItem(item) else 0,
        }) orelse return false;
        if (!is_write) writeItem(item, value);
    }
    return true;
}

fn readItem(bytes: []const u8) u64 {
    var value: u64 = 0;
    for (bytes, 0..) |b, i| value |= @as(u64, b) << @intCast(i * 8);
    return value;
}

fn writeItem(bytes: []u8, value: u64) void {
    for (bytes, 0..) |*b, i| b.* = @truncate(value >> @intCast(i * 8));
}

/// The hypervisor's backdoor answers in four registers, of which the port exit carries only EAX.
fn hypervisorPort(self: *VcpuThread) bool {
    const regs = self.vcpu.getRegs() catch return broken(self, 0);
    const answer = hypervisor_port.answer(.{
        .eax = @truncate(regs.rax),
        .ebx = @truncate(regs.rbx),
        .ecx = @truncate(regs.rcx),
        .edx = @truncate(regs.rdx),
    }, self.engine.frequencies());
    var changed = regs;
    changed.rbx = answer.ebx;
    changed.rcx = answer.ecx;
    changed.rdx = answer.edx;
    self.vcpu.setRegs(&changed) catch return broken(self, 0);
    if (self.vcpu.run.exit.io.direction != api.IO_OUT) {
        writeItem(self.vcpu.ioData(), answer.eax);
    }
    return true;
}

fn mmio(self: *VcpuThread) bool {
    const m = self.vcpu.run.exit.mmio;
    self.stats.mmio += 1;
    const len = @min(m.len, 8);
    const bytes = @as(*[8]u8, @volatileCast(&self.vcpu.run.exit.mmio.data))[0..len];
    const is_write = m.is_write != 0;
    if (self.lapic.mmioBase()) |base| {
        if (m.phys_addr -% base < 0x1000) {
            localApic(self, @intCast(m.phys_addr - base), bytes, is_write);
            return true;
        }
    }
    if (self.engine.ram.offsetOf(m.phys_addr) != null) {
        // KVM could not reach RAM that exists: running on would lose this access.
        self.engine.stopWith(.mmio_in_ram, self.index, m.phys_addr);
        return false;
    }
    const value = complete(self, .{
        .kind = .mmio,
        .address = m.phys_addr,
        .size = len,
        .is_write = is_write,
        .value = if (is_write) readItem(bytes) else 0,
    }) orelse return false;
    if (!is_write) writeItem(bytes, value);
    return true;
}

/// xAPIC registers are 32 bits wide; other widths are undefined there (SDM vol. 3, 11.4.1).
fn localApic(self: *VcpuThread, offset: u32, bytes: []u8, is_write: bool) void {
    const now = self.engine.clock.now();
    if (is_write) {
        if (bytes.len != 4) return;
        apply(self, self.lapic.writeMmio(offset, @truncate(readItem(bytes)), now));
    } else {
        const value = self.lapic.readMmio(offset & ~@as(u32, 3), now);
        writeItem(bytes, @as(u64, value) >> @intCast((offset & 3) * 8));
    }
}

fn apply(self: *VcpuThread, effects: Effects) void {
    if (effects.view_changed) self.publish();
    if (effects.eoi_level) |vector| self.engine.endOfInterrupt(vector);
    if (effects.ipi) |message| {
        self.stats.ipis_sent += 1;
        if (message.mode() == .startup) self.engine.sampleRoot(self);
        self.engine.router.deliver(message);
    }
}

fn readMsr(self: *VcpuThread) void {
    const msr = &self.vcpu.run.exit.msr;
    self.stats.msr += 1;
    msr.err = 0;
    switch (msr.index) {
        x2apic_first...x2apic_last => {
            if (self.lapic.readX2apic(msr.index, self.engine.clock.now())) |value| {
                msr.data = value;
            } else |_| msr.err = 1;
        },
        msr_tsc_adjust => msr.data = self.tsc_adjust,
        msr_hwcr => msr.data = hwcr_tsc_at_p0,
        else => {
            self.stats.msr_unknown += 1;
            msr.err = 1;
        },
    }
}

fn writeMsr(self: *VcpuThread) void {
    const msr = &self.vcpu.run.exit.msr;
    self.stats.msr += 1;
    msr.err = 0;
    switch (msr.index) {
        x2apic_first...x2apic_last => {
            const now = self.engine.clock.now();
            if (self.lapic.writeX2apic(msr.index, msr.data, now)) |effects| {
                apply(self, effects);
            } else |_| msr.err = 1;
        },
        msr_tsc => {},
        msr_tsc_adjust => self.tsc_adjust = msr.data,
        // Nothing in it that this machine has: as KVM does, taken and forgotten.
        msr_hwcr => {},
        else => {
            self.stats.msr_unknown += 1;
            msr.err = 1;
        },
    }
}

test "items are little endian and cut to their size" {
    var bytes = [_]u8{ 0x78, 0x56, 0x34, 0x12 };
    try std.testing.expectEqual(@as(u64, 0x12345678), readItem(&bytes));
    writeItem(bytes[0..2], 0xaabbccdd);
    try std.testing.expectEqual([4]u8{ 0xdd, 0xcc, 0x34, 0x12 }, bytes);
}
