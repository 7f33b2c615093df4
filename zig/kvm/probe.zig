//! Is this host's KVM and userfaultfd fit? Runs every probe (probe_cpu.zig, probe_memory.zig) and
//! fills abi.HostProbe; `ssihv check` puts it in words. The probes run on a thread of their own,
//! each with a time limit, and the caller stops waiting when the sum of them is over: a KVM that
//! hangs must not hang the check. A thread given up keeps what it has mapped; its results come too
//! late and go nowhere.

const std = @import("std");
const linux = std.os.linux;
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const cpu = @import("probe_cpu.zig");
const memory = @import("probe_memory.zig");
const probe_vm = @import("probe_vm.zig");
const Error = probe_vm.Error;

const Probe = struct {
    /// Field of abi.HostProbe.
    name: []const u8,
    function: *const fn () Error!abi.ProbeResult,
    needs: enum { nothing, kvm, tdp } = .kvm,
    /// What a failure means: some things an engine can do without.
    failure: abi.ProbeState = .missing,
};

/// In the order of running: kvm first, since the others need it.
const probes = [_]Probe{
    .{ .name = "kvm", .function = cpu.kvm, .needs = .nothing },
    .{ .name = "tdp", .function = memory.replacedTables },
    .{ .name = "x2apic_exits", .function = cpu.x2apicExits, .failure = .degraded },
    .{ .name = "xapic_exits", .function = cpu.xapicExits },
    .{ .name = "hlt_exits", .function = cpu.haltExits },
    .{ .name = "irq_window", .function = cpu.interruptWindow },
    .{ .name = "nmi", .function = cpu.nmi, .failure = .degraded },
    .{ .name = "msr_filter", .function = cpu.msrFilter },
    .{ .name = "immediate_exit", .function = cpu.immediateExit },
    .{ .name = "uffd", .function = memory.userfaultfd, .needs = .nothing },
    .{ .name = "uffd_kernel_mode", .function = memory.kernelFaults, .needs = .nothing },
    .{ .name = "uffd_write_protect", .function = memory.writeProtect, .needs = .nothing },
    .{
        .name = "uffd_thread_id",
        .function = memory.threadIds,
        .needs = .nothing,
        .failure = .degraded,
    },
    .{
        .name = "walks_write",
        .function = memory.walksWrite,
        // Without it the hardware walks the host's shadow tables, not the guest's.
        .needs = .tdp,
        .failure = .degraded,
    },
    .{ .name = "tsc_offset", .function = cpu.tscOffset, .failure = .degraded },
    .{ .name = "tsc_khz", .function = cpu.tscKhz },
    .{ .name = "tsc_scaling", .function = cpu.tscScaling, .failure = .degraded },
    .{ .name = "vcpus_limit", .function = cpu.vcpusLimit },
    .{
        .name = "memory_lock",
        .function = memory.memoryLock,
        .needs = .nothing,
        .failure = .degraded,
    },
};

comptime {
    // Every field but the reserved ones has its probe.
    const fields = @typeInfo(abi.HostProbe).@"struct".field_names;
    std.debug.assert(fields.len - 1 == probes.len);
    for (probes) |p| std.debug.assert(@hasField(abi.HostProbe, p.name));
}

/// Longest time all probes together may take; each single run of a guest is bounded besides.
const total_limit_ns = 20 * std.time.ns_per_s;

/// One go of the probes; lives as long as its thread.
const Session = struct {
    results: abi.HostProbe = std.mem.zeroes(abi.HostProbe),
    selected: ?[]const u8,
    /// Probes finished. Release after each result, acquire before results are read.
    finished: std.atomic.Value(u32) = .init(0),
    over: std.atomic.Value(u32) = .init(0),

    fn work(self: *Session) void {
        inline for (probes) |p| {
            const wanted = if (self.selected) |name| std.mem.eql(u8, name, p.name) else true;
            if (wanted) {
                if (self.selected != null or self.usable(p)) @field(self.results, p.name) = one(p);
            }
            // Release: the result above is visible to who sees the count.
            _ = self.finished.fetchAdd(1, .release);
        }
        // From here on the session may be freed: the wake only takes its address.
        self.over.store(1, .release);
        sys.futexWake(&self.over, 1);
    }

    fn usable(self: *const Session, p: Probe) bool {
        const good = @backingInt(abi.ProbeState.good);
        return switch (p.needs) {
            .nothing => true,
            .kvm => self.results.kvm.state == good,
            .tdp => self.results.tdp.state == good,
        };
    }

    /// False when the limit came first.
    fn wait(self: *Session, limit_ns: u64) bool {
        const deadline = sys.monotonicNs() + limit_ns;
        while (self.over.load(.acquire) == 0) {
            const now = sys.monotonicNs();
            if (now >= deadline) return false;
            sys.futexWait(&self.over, 0, deadline - now);
        }
        return true;
    }
};

fn one(p: Probe) abi.ProbeResult {
    sys.last_errno = 0;
    return p.function() catch |e| .{
        .state = @backingInt(p.failure),
        .errno = switch (e) {
            error.SystemCall => sys.last_errno,
            error.TimedOut => @backingInt(linux.E.TIMEDOUT),
            error.CapabilityMissing, error.ApiVersion => @backingInt(linux.E.OPNOTSUPP),
            error.UnexpectedExit, error.WrongValue => 0,
        },
        // What KVM_RUN returned with instead.
        .value = if (e == error.UnexpectedExit) @backingInt(probe_vm.last_exit) else 0,
    };
}

fn start(selected: ?[]const u8) sys.Error!*Session {
    const session = std.heap.c_allocator.create(Session) catch return noThread();
    session.* = .{ .selected = selected };
    const thread = std.Thread.spawn(.{}, Session.work, .{session}) catch {
        std.heap.c_allocator.destroy(session);
        return noThread();
    };
    thread.detach();
    return session;
}

fn noThread() sys.Error {
    sys.last_errno = @backingInt(linux.E.AGAIN);
    return error.SystemCall;
}

/// Runs every probe; returns within total_limit_ns.
pub fn run(out: *abi.HostProbe) void {
    const session = start(null) catch {
        out.kvm = failed(.missing, sys.last_errno);
        return;
    };
    const ended = session.wait(total_limit_ns);
    collect(session, ended, out);
    if (ended) std.heap.c_allocator.destroy(session);
}

/// Results so far; the probe that is still running has failed by its time.
fn collect(session: *Session, ended: bool, out: *abi.HostProbe) void {
    // Acquire: pairs with the release after each result.
    const finished = session.finished.load(.acquire);
    inline for (probes, 0..) |p, i| {
        if (i < finished) @field(out, p.name) = @field(session.results, p.name);
        if (!ended and i == finished) {
            @field(out, p.name) = failed(p.failure, @backingInt(linux.E.TIMEDOUT));
        }
    }
}

fn failed(state: abi.ProbeState, errno: u32) abi.ProbeResult {
    return .{ .state = @backingInt(state), .errno = errno, .value = 0 };
}

/// True when page walks need write access to the guest's page tables, measured now.
pub fn walksWrite() sys.Error!bool {
    const session = try start("walks_write");
    if (!session.wait(total_limit_ns)) {
        sys.last_errno = @backingInt(linux.E.TIMEDOUT);
        return error.SystemCall;
    }
    defer std.heap.c_allocator.destroy(session);
    const result = session.results.walks_write;
    if (result.errno != 0) {
        sys.last_errno = result.errno;
        return error.SystemCall;
    }
    return result.value > 0;
}

fn stateOf(result: abi.ProbeResult) abi.ProbeState {
    return @fromBackingInt(result.state);
}

test "a probe that never ends fails by its time and the rest stays untested" {
    var session: Session = .{ .selected = null };
    session.results.kvm = .{ .state = @backingInt(abi.ProbeState.good), .errno = 0, .value = 12 };
    // Not finished yet: must not be taken over.
    session.results.x2apic_exits = session.results.kvm;
    session.finished = .init(2);
    try std.testing.expect(!session.wait(std.time.ns_per_ms));
    var out = std.mem.zeroes(abi.HostProbe);
    collect(&session, false, &out);
    try std.testing.expectEqual(abi.ProbeState.good, stateOf(out.kvm));
    try std.testing.expectEqual(abi.ProbeState.not_run, stateOf(out.tdp));
    try std.testing.expectEqual(abi.ProbeState.degraded, stateOf(out.x2apic_exits));
    try std.testing.expectEqual(@as(u32, 110), out.x2apic_exits.errno);
    try std.testing.expectEqual(abi.ProbeState.not_run, stateOf(out.xapic_exits));
}

test "failures keep their errno, and an odd exit its reason" {
    const plant = struct {
        fn call() Error!abi.ProbeResult {
            _ = try sys.check(linux.open("/nowhere/at/all", .{}, 0));
            return cpu.good(0);
        }
        fn exit() Error!abi.ProbeResult {
            probe_vm.last_exit = .shutdown;
            return error.UnexpectedExit;
        }
    };
    const refused = one(.{ .name = "kvm", .function = plant.call });
    try std.testing.expectEqual(failed(.missing, @backingInt(linux.E.NOENT)), refused);
    const odd = one(.{ .name = "kvm", .function = plant.exit, .failure = .degraded });
    try std.testing.expectEqual(abi.ProbeState.degraded, stateOf(odd));
    try std.testing.expectEqual(@as(u64, 8), odd.value);
}

test "on a machine with KVM every probe answers, and injection and exits work" {
    if (linux.errno(linux.access("/dev/kvm", linux.R_OK | linux.W_OK)) != .SUCCESS) {
        return error.SkipZigTest;
    }
    var out = std.mem.zeroes(abi.HostProbe);
    run(&out);
    inline for (probes) |p| {
        const has_answer = stateOf(@field(out, p.name)) != .not_run;
        try std.testing.expectEqual(p.needs != .tdp or stateOf(out.tdp) == .good, has_answer);
    }
    const must = .{ "kvm", "xapic_exits", "hlt_exits", "irq_window", "immediate_exit", "tsc_khz" };
    inline for (must) |name| {
        try std.testing.expectEqual(abi.ProbeState.good, stateOf(@field(out, name)));
    }
    // Measured one by one it says the same.
    if (stateOf(out.tdp) == .good and out.walks_write.errno == 0) {
        try std.testing.expectEqual(out.walks_write.value > 0, try walksWrite());
    }
}
