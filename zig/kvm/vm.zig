//! One KVM virtual machine without an in-kernel irqchip: the LAPIC and IOAPIC are ours, so x2APIC
//! MSR accesses and HLT reach user space. Owns the VM's file descriptors, not guest RAM.
//! Sequence and MSR filter: measured, see the notes on KVM behind each step.

const std = @import("std");
const linux = std.os.linux;
const abi = @import("../abi.zig");
const api = @import("api.zig");
const sys = @import("../base/sys.zig");

pub const Error = error{ SystemCall, ApiVersion, CapabilityMissing };

/// Intel VT-x without unrestricted guest wants three pages for its TSS and one for an identity map,
/// in guest-physical space nobody else uses: under the firmware area, where QEMU puts them too.
const identity_map_gpa: u64 = 0xfffb_c000;
const tss_gpa: u64 = 0xfffb_d000;

pub const Vm = struct {
    kvm_fd: i32,
    fd: i32,
    run_size: usize,

    pub fn create() Error!Vm {
        const flags: linux.O = .{ .ACCMODE = .RDWR, .CLOEXEC = true };
        const kvm_fd: i32 = @intCast(try sys.check(linux.open("/dev/kvm", flags, 0)));
        errdefer sys.close(kvm_fd);
        return createOn(kvm_fd);
    }

    /// A fresh VM in place of this one, by the descriptor of /dev/kvm that it has: a sandbox opens
    /// no other. Unlike `destroy` it leaves that open where it fails.
    pub fn renew(self: *Vm) Error!void {
        sys.close(self.fd);
        self.fd = -1;
        self.* = try createOn(self.kvm_fd);
    }

    fn createOn(kvm_fd: i32) Error!Vm {
        if (try sys.ioctl(kvm_fd, api.GET_API_VERSION, 0) != api.api_version) {
            return error.ApiVersion;
        }
        const run_size = try sys.ioctl(kvm_fd, api.GET_VCPU_MMAP_SIZE, 0);
        const fd: i32 = @intCast(try sys.ioctl(kvm_fd, api.CREATE_VM, 0));
        errdefer sys.close(fd);
        const needed = [_]u32{
            api.Cap.X86_USER_SPACE_MSR,
            api.Cap.X86_MSR_FILTER,
            api.Cap.IMMEDIATE_EXIT,
        };
        for (needed) |cap| {
            if (try sys.ioctl(fd, api.CHECK_EXTENSION, cap) == 0) return error.CapabilityMissing;
        }
        var identity = identity_map_gpa;
        _ = try sys.ioctl(fd, api.SET_IDENTITY_MAP_ADDR, @intFromPtr(&identity));
        _ = try sys.ioctl(fd, api.SET_TSS_ADDR, tss_gpa);
        const vm: Vm = .{ .kvm_fd = kvm_fd, .fd = fd, .run_size = run_size };
        try vm.filterMsrs();
        return vm;
    }

    pub fn destroy(self: *Vm) void {
        sys.close(self.fd);
        sys.close(self.kvm_fd);
        self.* = undefined;
    }

    /// MSR accesses KVM rejects (x2APIC without a LAPIC) or does not know reach user space, and
    /// so do writes that would break the clock: TSC (0x10), TSC_ADJUST (0x3b), TSC deadline
    /// (0x6e0).
    fn filterMsrs(self: *const Vm) Error!void {
        var cap: api.EnableCap = .{ .cap = api.Cap.X86_USER_SPACE_MSR };
        cap.args[0] = api.MSR_EXIT_REASON_INVAL | api.MSR_EXIT_REASON_UNKNOWN |
            api.MSR_EXIT_REASON_FILTER;
        _ = try sys.ioctl(self.fd, api.ENABLE_CAP, @intFromPtr(&cap));
        // A clear bit denies; one zero byte serves every range of one MSR.
        var deny: [8]u8 align(8) = @splat(0);
        const both = api.MSR_FILTER_READ | api.MSR_FILTER_WRITE;
        var filter: api.MsrFilter = .{};
        const bitmap = @intFromPtr(&deny);
        filter.ranges[0] = .{
            .flags = api.MSR_FILTER_WRITE,
            .nmsrs = 1,
            .base = 0x10,
            .bitmap = bitmap,
        };
        filter.ranges[1] = .{ .flags = both, .nmsrs = 1, .base = 0x3b, .bitmap = bitmap };
        filter.ranges[2] = .{ .flags = both, .nmsrs = 1, .base = 0x6e0, .bitmap = bitmap };
        filter.ranges[3] = .{ .flags = both, .nmsrs = 1, .base = 0xc001_0015, .bitmap = bitmap };
        _ = try sys.ioctl(self.fd, api.X86_SET_MSR_FILTER, @intFromPtr(&filter));
    }

    pub fn setSlot(self: *const Vm, slot: u32, gpa: u64, memory: []const u8) Error!void {
        var region: api.UserMemoryRegion = .{
            .slot = slot,
            .flags = 0,
            .guest_phys_addr = gpa,
            .memory_size = memory.len,
            .userspace_addr = @intFromPtr(memory.ptr),
        };
        _ = try sys.ioctl(self.fd, api.SET_USER_MEMORY_REGION, @intFromPtr(&region));
    }
};
