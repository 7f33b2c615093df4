//! Host probes about the CPU side of KVM: the exits that the userspace LAPIC relies on, injection,
//! kicks, MSR filter and clocks. Each is one behaviour shown by a guest, not a capability bit: bits
//! are asked only for limits. Every function makes its own VM and returns what it saw.

const std = @import("std");
const linux = std.os.linux;
const abi = @import("../abi.zig");
const api = @import("api.zig");
const guest = @import("probe_guest.zig");
const sys = @import("../base/sys.zig");
const probe_vm = @import("probe_vm.zig");
const ProbeVm = probe_vm.ProbeVm;
const Error = probe_vm.Error;
const Port = guest.Port;

pub fn good(value: u64) abi.ProbeResult {
    return .{ .state = @backingInt(abi.ProbeState.good), .errno = 0, .value = value };
}

/// /dev/kvm opens, speaks the one API version there is, and makes a VM with what an engine enables.
pub fn kvm() Error!abi.ProbeResult {
    var vm = try ProbeVm.create(.xapic);
    defer vm.destroy();
    for ([_]u32{ api.Cap.USER_MEMORY, api.Cap.SYNC_MMU, api.Cap.VCPU_EVENTS }) |cap| {
        if (try sys.ioctl(vm.vm.fd, api.CHECK_EXTENSION, cap) == 0) return error.CapabilityMissing;
    }
    return good(api.api_version);
}

/// RDMSR and WRMSR of 0x800-0x8ff end in user space because KVM itself has no LAPIC for them (exit
/// reason INVAL). Behaviour, not documented ABI: hence the probe.
pub fn x2apicExits() Error!abi.ProbeResult {
    const id_register = 0x802; // Intel SDM vol. 3, table 11-6
    const eoi_register = 0x80b;
    var vm = try ProbeVm.create(.x2apic);
    defer vm.destroy();
    const run = vm.vcpu.run;
    try vm.start(.{ .routine = .read_msr, .rcx = id_register });
    try vm.runTo(.x86_rdmsr);
    const reason = run.exit.msr.reason;
    if (run.exit.msr.index != id_register) return error.WrongValue;
    run.exit.msr.data = 0x1234;
    run.exit.msr.err = 0;
    try vm.runToPort(Port.done);
    if ((try vm.vcpu.getRegs()).rax != 0x1234) return error.WrongValue;
    try vm.start(.{ .routine = .write_msr, .rcx = eoi_register, .rax = 0 });
    try vm.runTo(.x86_wrmsr);
    if (run.exit.msr.index != eoi_register) return error.WrongValue;
    run.exit.msr.err = 0;
    try vm.runToPort(Port.done);
    return good(reason);
}

/// A load from the APIC page ends in user space, and the value given is the value loaded.
pub fn xapicExits() Error!abi.ProbeResult {
    const version_register = 0x30;
    var vm = try ProbeVm.create(.xapic);
    defer vm.destroy();
    const run = vm.vcpu.run;
    try vm.start(.{ .routine = .read32, .rbx = guest.apic_va + version_register });
    try vm.runTo(.mmio);
    const address = run.exit.mmio.phys_addr;
    if (address != guest.apic_gpa + version_register) return error.WrongValue;
    if (run.exit.mmio.is_write != 0 or run.exit.mmio.len != 4) return error.WrongValue;
    run.exit.mmio.data = .{ 0x14, 0x00, 0x05, 0x00, 0, 0, 0, 0 };
    try vm.runToPort(Port.done);
    if ((try vm.vcpu.getRegs()).rax != 0x0005_0014) return error.WrongValue;
    return good(address);
}

/// HLT returns to user space, and an interrupt injected then wakes the guest behind it.
pub fn haltExits() Error!abi.ProbeResult {
    var vm = try ProbeVm.create(.xapic);
    defer vm.destroy();
    const run = vm.vcpu.run;
    try vm.start(.{ .routine = .halt, .interrupts = true });
    try vm.runTo(.hlt);
    if (run.if_flag == 0 or run.ready_for_interrupt_injection == 0) return error.WrongValue;
    try vm.vcpu.interrupt(guest.interrupt_vector);
    try vm.runToPort(Port.interrupt);
    try vm.runToPort(Port.done);
    return good(0);
}

/// With interrupts off nothing is injected; the window is told when they go on.
pub fn interruptWindow() Error!abi.ProbeResult {
    var vm = try ProbeVm.create(.xapic);
    defer vm.destroy();
    const run = vm.vcpu.run;
    try vm.start(.{ .routine = .open_window });
    run.request_interrupt_window = 1;
    try vm.runTo(.irq_window_open);
    run.request_interrupt_window = 0;
    if (run.if_flag == 0 or run.ready_for_interrupt_injection == 0) return error.WrongValue;
    try vm.vcpu.interrupt(guest.interrupt_vector);
    try vm.runToPort(Port.interrupt);
    return good(guest.interrupt_vector);
}

/// KVM_NMI arrives although the guest has interrupts off.
pub fn nmi() Error!abi.ProbeResult {
    var vm = try ProbeVm.create(.xapic);
    defer vm.destroy();
    try vm.start(.{ .routine = .spin });
    try vm.vcpu.nmi();
    try vm.runToPort(Port.nmi);
    return good(0);
}

/// The three ways an MSR access must reach us: filtered read (TSC deadline), filtered write (TSC),
/// and one that KVM does not know. Value: a bit for each of them that does.
pub fn msrFilter() Error!abi.ProbeResult {
    const Case = struct { index: u32, write: bool, reason: u32 };
    const cases = [_]Case{
        .{ .index = 0x6e0, .write = false, .reason = api.MSR_EXIT_REASON_FILTER },
        .{ .index = 0x10, .write = true, .reason = api.MSR_EXIT_REASON_FILTER },
        // In a range no CPU and no KVM uses.
        .{ .index = 0x4b56_4dfe, .write = false, .reason = api.MSR_EXIT_REASON_UNKNOWN },
    };
    var vm = try ProbeVm.create(.xapic);
    defer vm.destroy();
    const run = vm.vcpu.run;
    var seen: u64 = 0;
    for (cases, 0..) |case, i| {
        const routine: guest.Routine = if (case.write) .write_msr else .read_msr;
        try vm.start(.{ .routine = routine, .rcx = case.index });
        if (!try vm.run(probe_vm.run_limit_ns)) return error.TimedOut;
        const expected: api.ExitReason = if (case.write) .x86_wrmsr else .x86_rdmsr;
        if (probe_vm.last_exit != expected) continue;
        if (run.exit.msr.index == case.index and run.exit.msr.reason == case.reason) {
            seen |= @as(u64, 1) << @intCast(i);
        }
        run.exit.msr.err = 0;
    }
    var result = good(seen);
    if (seen != (1 << cases.len) - 1) result.state = @backingInt(abi.ProbeState.missing);
    return result;
}

/// immediate_exit keeps the guest from running at all; a signal ends one that never exits.
/// Value: ns from the signal's time to the return.
pub fn immediateExit() Error!abi.ProbeResult {
    const kick_after_ns = 20 * std.time.ns_per_ms;
    var vm = try ProbeVm.create(.xapic);
    defer vm.destroy();
    try vm.start(.{ .routine = .spin, .level = .user });
    vm.vcpu.run.immediate_exit = 1;
    if (try vm.vcpu.enter() != .interrupted) return error.UnexpectedExit;
    if ((try vm.vcpu.getRegs()).rax != 0) return error.WrongValue;
    const due = sys.monotonicNs() + kick_after_ns;
    if (try vm.run(kick_after_ns)) return error.UnexpectedExit;
    const late = sys.monotonicNs() -| due;
    if ((try vm.vcpu.getRegs()).rax == 0) return error.WrongValue;
    return good(late);
}

/// The guest's own RDTSC moves by what KVM_VCPU_TSC_OFFSET was changed by; some software KVMs take
/// the attribute and ignore it. Value: the movement seen.
pub fn tscOffset() Error!abi.ProbeResult {
    // About two hours at 2.5 GHz: no pause of this machine is as long.
    const step: u64 = 1 << 44;
    var vm = try ProbeVm.create(.xapic);
    defer vm.destroy();
    var offset: u64 = 0;
    var attr: api.DeviceAttr = .{
        .group = api.VCPU_TSC_CTRL,
        .attr = api.VCPU_TSC_OFFSET,
        .addr = @intFromPtr(&offset),
    };
    _ = try sys.ioctl(vm.vcpu.fd, api.GET_DEVICE_ATTR, @intFromPtr(&attr));
    const before = try readTsc(&vm);
    try vm.vcpu.setTscOffset(offset +% step);
    const after = try readTsc(&vm);
    const moved = after -% before;
    // Twice the step would be an offset applied twice; less than it, one ignored.
    if (moved < step or moved >= 2 * step) return error.WrongValue;
    return good(moved);
}

fn readTsc(vm: *ProbeVm) Error!u64 {
    try vm.start(.{ .routine = .time_stamp });
    try vm.runToPort(Port.done);
    const regs = try vm.vcpu.getRegs();
    return (regs.rax & 0xffff_ffff) | regs.rdx << 32;
}

pub fn tscKhz() Error!abi.ProbeResult {
    var vm = try ProbeVm.create(.xapic);
    defer vm.destroy();
    return good(try sys.ioctl(vm.vcpu.fd, api.GET_TSC_KHZ, 0));
}

/// Guests at another TSC rate than the host's: many hosts cannot, and like hosts need it not.
pub fn tscScaling() Error!abi.ProbeResult {
    var result = try capability(api.Cap.TSC_CONTROL);
    if (result.value == 0) result.state = @backingInt(abi.ProbeState.degraded);
    return result;
}

/// Value: most vCPUs KVM allows in a VM; degraded when an engine could use more.
pub fn vcpusLimit() Error!abi.ProbeResult {
    var result = try capability(api.Cap.MAX_VCPUS);
    if (result.value < abi.vcpus_max) result.state = @backingInt(abi.ProbeState.degraded);
    return result;
}

fn capability(cap: u32) Error!abi.ProbeResult {
    var vm = try ProbeVm.create(.xapic);
    defer vm.destroy();
    return good(try sys.ioctl(vm.vm.fd, api.CHECK_EXTENSION, cap));
}
