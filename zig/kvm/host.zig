//! What this host's KVM offers a guest: CPUID, feature MSRs, TSC frequency. Read once at start; the
//! CPU model of a VM is the intersection of these over its hosts.

const std = @import("std");
const linux = std.os.linux;
const abi = @import("../abi.zig");
const api = @import("api.zig");
const sys = @import("../base/sys.zig");

pub const Error = error{ SystemCall, RoomTooSmall };

fn openKvm() Error!i32 {
    const flags: linux.O = .{ .ACCMODE = .RDWR, .CLOEXEC = true };
    return @intCast(try sys.check(linux.open("/dev/kvm", flags, 0)));
}

/// KVM_GET_SUPPORTED_CPUID into `out`; returns how many entries there are.
pub fn supportedCpuid(out: []abi.CpuidEntry) Error!usize {
    const fd = try openKvm();
    defer sys.close(fd);
    var list: api.Cpuid2 = undefined;
    list.nent = api.cpuid_entries_max;
    list.padding = 0;
    _ = try sys.ioctl(fd, api.GET_SUPPORTED_CPUID, @intFromPtr(&list));
    if (list.nent > out.len) return error.RoomTooSmall;
    @memcpy(out[0..list.nent], list.entries[0..list.nent]);
    return list.nent;
}

const feature_msrs_max = 256;

const MsrIndexList = extern struct {
    count: u32,
    indices: [feature_msrs_max]u32,
};

/// The MSRs that describe features (such as IA32_ARCH_CAPABILITIES) with their values; one that KVM
/// lists but will not read is left out.
pub fn featureMsrs(out: []abi.MsrEntry) Error!usize {
    const fd = try openKvm();
    defer sys.close(fd);
    var list: MsrIndexList = undefined;
    list.count = feature_msrs_max;
    _ = try sys.ioctl(fd, api.GET_MSR_FEATURE_INDEX_LIST, @intFromPtr(&list));
    var n: usize = 0;
    for (list.indices[0..list.count]) |index| {
        var one: api.MsrsOne = .{ .entry = .{ .index = index, .value = 0 } };
        const read = sys.ioctl(fd, api.GET_MSRS, @intFromPtr(&one)) catch continue;
        if (read != 1) continue;
        if (n == out.len) return error.RoomTooSmall;
        out[n] = one.entry;
        n += 1;
    }
    return n;
}

/// Frequency of a new vCPU's TSC, which is the host's.
pub fn tscKhz() Error!u32 {
    const fd = try openKvm();
    defer sys.close(fd);
    const vm: i32 = @intCast(try sys.ioctl(fd, api.CREATE_VM, 0));
    defer sys.close(vm);
    const vcpu: i32 = @intCast(try sys.ioctl(vm, api.CREATE_VCPU, 0));
    defer sys.close(vcpu);
    return @intCast(try sys.ioctl(vcpu, api.GET_TSC_KHZ, 0));
}

test "this host's KVM describes a CPU" {
    if (linux.errno(linux.access("/dev/kvm", linux.R_OK | linux.W_OK)) != .SUCCESS) {
        return error.SkipZigTest;
    }
    var entries: [api.cpuid_entries_max]abi.CpuidEntry = undefined;
    const n = try supportedCpuid(&entries);
    try std.testing.expect(n > 5);
    try std.testing.expectEqual(@as(u32, 0), entries[0].function);
    try std.testing.expect(try tscKhz() > 100_000);
    try std.testing.expectError(error.RoomTooSmall, supportedCpuid(entries[0..1]));
}
