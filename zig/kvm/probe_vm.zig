//! One probe's virtual machine: the engine's own Vm and Vcpu with a tiny guest, and a KVM_RUN that
//! always ends. The bound is a POSIX timer whose signal handler sets immediate_exit, so a signal
//! that comes before the ioctl counts too. Used by one thread at a time, the one that created it.

const std = @import("std");
const linux = std.os.linux;
const posix = std.posix;
const abi = @import("../abi.zig");
const api = @import("api.zig");
const guest = @import("probe_guest.zig");
const sys = @import("../base/sys.zig");
const ThreadTimer = @import("../base/timer.zig").ThreadTimer;
const Vm = @import("vm.zig").Vm;
const Vcpu = @import("vcpu.zig").Vcpu;

pub const Error = error{
    SystemCall,
    ApiVersion,
    CapabilityMissing,
    /// The guest did not come back in time.
    TimedOut,
    /// KVM returned for another reason than the probe is about; see last_exit.
    UnexpectedExit,
    /// The guest saw something it should not have seen.
    WrongValue,
};

/// Longest time any routine may take: a thousand times what the slowest rig needs.
pub const run_limit_ns = 3 * std.time.ns_per_s;

/// Exit reason of this thread's newest KVM_RUN, for reports.
pub threadlocal var last_exit: api.ExitReason = .unknown;

const apic_base_enabled: u64 = guest.apic_gpa | 0x900; // enable, BSP
const apic_base_x2apic: u64 = guest.apic_gpa | 0xd00; // and EXTD

pub const ApicMode = enum { xapic, x2apic };

/// Run record of this thread's vCPU while it runs. Monotonic: the handler that reads it runs on the
/// same thread (SIGEV_THREAD_ID), so only the compiler could reorder.
threadlocal var interrupted: std.atomic.Value(?*volatile api.Run) = .init(null);

fn onSignal(_: posix.SIG) callconv(.c) void {
    if (interrupted.load(.monotonic)) |run| run.immediate_exit = 1;
}

/// Not the engine's kick: a probe may run beside an engine.
fn probeSignal() posix.SIG {
    return @fromBackingInt(@intCast(std.c.sigrtmin() + 3));
}

pub const ProbeVm = struct {
    vm: Vm,
    vcpu: Vcpu,
    ram: []align(std.heap.page_size_min) u8,
    timer: ThreadTimer,
    apic: ApicMode,

    pub fn create(apic: ApicMode) Error!ProbeVm {
        const ram = try sys.mapAnonymous(guest.ram_size);
        errdefer sys.unmap(ram);
        // As for an engine's RAM; a refusal (no huge pages in this kernel) changes nothing.
        const MADV_NOHUGEPAGE = 15;
        _ = linux.madvise(ram.ptr, ram.len, MADV_NOHUGEPAGE);
        guest.build(ram);
        var vm = try Vm.create();
        errdefer vm.destroy();
        try vm.setSlot(0, 0, ram);
        var vcpu = try Vcpu.create(&vm, 0);
        errdefer vcpu.destroy();
        if (apic == .x2apic) try offerX2apic(&vm, &vcpu);
        const action: posix.Sigaction = .{
            .handler = .{ .handler = onSignal },
            .mask = posix.sigemptyset(),
            .flags = 0,
        };
        posix.sigaction(probeSignal(), &action, null);
        sys.unblockSignal(probeSignal());
        const timer = try ThreadTimer.create(probeSignal());
        return .{ .vm = vm, .vcpu = vcpu, .ram = ram, .timer = timer, .apic = apic };
    }

    /// Guest RAM goes last: KVM must be through with it.
    pub fn destroy(self: *ProbeVm) void {
        self.timer.destroy();
        self.vcpu.destroy();
        self.vm.destroy();
        sys.unmap(self.ram);
        self.* = undefined;
    }

    /// EXTD in IA32_APIC_BASE is only accepted from a CPU that has x2APIC (CPUID 1, ECX bit 21).
    fn offerX2apic(vm: *const Vm, vcpu: *const Vcpu) Error!void {
        var list: api.Cpuid2 = undefined;
        list.nent = api.cpuid_entries_max;
        list.padding = 0;
        _ = try sys.ioctl(vm.kvm_fd, api.GET_SUPPORTED_CPUID, @intFromPtr(&list));
        for (list.entries[0..list.nent]) |*e| {
            if (e.function == 1) e.ecx |= 1 << 21;
        }
        try vcpu.setCpuid(list.entries[0..list.nent]);
    }

    pub fn start(self: *ProbeVm, how: guest.Start) Error!void {
        try self.finish();
        const base = if (self.apic == .x2apic) apic_base_x2apic else apic_base_enabled;
        try self.vcpu.setBoot(&guest.record(how), base);
    }

    /// Runs to the next exit; its reason must be `expected`.
    pub fn runTo(self: *ProbeVm, expected: api.ExitReason) Error!void {
        if (!try self.run(run_limit_ns)) return error.TimedOut;
        if (last_exit != expected) return error.UnexpectedExit;
    }

    pub fn runToPort(self: *ProbeVm, port: u16) Error!void {
        try self.runTo(.io);
        if (self.vcpu.run.exit.io.port != port) return error.UnexpectedExit;
    }

    /// False when the time was over and the signal ended it.
    pub fn run(self: *ProbeVm, limit_ns: u64) Error!bool {
        const record = self.vcpu.run;
        record.immediate_exit = 0;
        interrupted.store(record, .monotonic);
        defer interrupted.store(null, .monotonic);
        const deadline = sys.monotonicNs() + limit_ns;
        self.timer.set(deadline);
        defer self.timer.set(0);
        while (true) {
            switch (try self.vcpu.enter()) {
                .interrupted => if (sys.monotonicNs() >= deadline) return false,
                .exited => {
                    last_exit = record.exit_reason;
                    if (last_exit != .intr) return true;
                },
            }
        }
    }

    /// Completes the instruction of the newest exit without running on (KVM API, immediate_exit):
    /// needed before registers are changed.
    pub fn finish(self: *ProbeVm) Error!void {
        self.vcpu.run.immediate_exit = 1;
        defer self.vcpu.run.immediate_exit = 0;
        _ = try self.vcpu.enter();
    }
};
