//! One KVM vCPU: its file descriptor, run record and the architectural states user space gives it
//! (boot record, INIT, SIPI). Every ioctl here is made by the vCPU's own thread, except before the
//! first run: KVM's vcpu ioctls from another thread wait for one that sits in KVM_RUN.

const std = @import("std");
const linux = std.os.linux;
const abi = @import("../abi.zig");
const api = @import("api.zig");
const sys = @import("../base/sys.zig");
const Vm = @import("vm.zig").Vm;

pub const Error = error{SystemCall};

pub const Entered = enum {
    exited,
    /// A kick or another signal ended KVM_RUN.
    interrupted,
};

pub const Vcpu = struct {
    fd: i32,
    run: *volatile api.Run,
    run_memory: []align(std.heap.page_size_min) u8,

    pub fn create(vm: *const Vm, id: u32) Error!Vcpu {
        const fd: i32 = @intCast(try sys.ioctl(vm.fd, api.CREATE_VCPU, id));
        errdefer sys.close(fd);
        const memory = try sys.mapShared(fd, vm.run_size);
        return .{ .fd = fd, .run = @ptrCast(memory.ptr), .run_memory = memory };
    }

    pub fn destroy(self: *Vcpu) void {
        sys.unmap(self.run_memory);
        sys.close(self.fd);
        self.* = undefined;
    }

    pub fn setCpuid(self: *const Vcpu, entries: []const abi.CpuidEntry) Error!void {
        var list: api.Cpuid2 = undefined;
        list.nent = @intCast(entries.len);
        list.padding = 0;
        @memcpy(list.entries[0..entries.len], entries);
        _ = try sys.ioctl(self.fd, api.SET_CPUID2, @intFromPtr(&list));
    }

    /// One MSR; errno EINVAL names one this KVM refuses (KVM_SET_MSRS counts what it took).
    pub fn setMsr(self: *const Vcpu, entry: abi.MsrEntry) Error!void {
        var list: api.MsrsOne = .{ .entry = entry };
        if (try sys.ioctl(self.fd, api.SET_MSRS, @intFromPtr(&list)) == 1) return;
        sys.last_errno = @backingInt(linux.E.INVAL);
        return error.SystemCall;
    }

    /// Guest TSC = host TSC + offset. Err where KVM has no such attribute.
    pub fn setTscOffset(self: *const Vcpu, offset: u64) Error!void {
        var value = offset;
        var attr: api.DeviceAttr = .{
            .group = api.VCPU_TSC_CTRL,
            .attr = api.VCPU_TSC_OFFSET,
            .addr = @intFromPtr(&value),
        };
        _ = try sys.ioctl(self.fd, api.SET_DEVICE_ATTR, @intFromPtr(&attr));
    }

    pub fn getRegs(self: *const Vcpu) Error!api.Regs {
        var regs: api.Regs = undefined;
        _ = try sys.ioctl(self.fd, api.GET_REGS, @intFromPtr(&regs));
        return regs;
    }

    pub fn setRegs(self: *const Vcpu, regs: *const api.Regs) Error!void {
        _ = try sys.ioctl(self.fd, api.SET_REGS, @intFromPtr(regs));
    }

    pub fn getSregs(self: *const Vcpu) Error!api.Sregs {
        var sregs: api.Sregs = undefined;
        _ = try sys.ioctl(self.fd, api.GET_SREGS, @intFromPtr(&sregs));
        return sregs;
    }

    fn setSregs(self: *const Vcpu, sregs: *const api.Sregs) Error!void {
        _ = try sys.ioctl(self.fd, api.SET_SREGS, @intFromPtr(sregs));
    }

    /// The state a loader decided (boot vCPU).
    pub fn setBoot(self: *const Vcpu, record: *const abi.VcpuRecord, apic_base: u64) Error!void {
        var sregs = try self.getSregs();
        sregs.cs = record.cs;
        sregs.ds = record.ds;
        sregs.es = record.es;
        sregs.fs = record.fs;
        sregs.gs = record.gs;
        sregs.ss = record.ss;
        sregs.tr = record.tr;
        sregs.ldt = record.ldt;
        sregs.gdt = record.gdt;
        sregs.idt = record.idt;
        sregs.cr0 = record.cr0;
        sregs.cr2 = record.cr2;
        sregs.cr3 = record.cr3;
        sregs.cr4 = record.cr4;
        sregs.cr8 = record.cr8;
        sregs.efer = record.efer;
        sregs.apic_base = apic_base;
        try self.setSregs(&sregs);
        var regs: api.Regs = undefined;
        inline for (@typeInfo(api.Regs).@"struct".field_names) |name| {
            @field(regs, name) = @field(record, name);
        }
        try self.setRegs(&regs);
    }

    /// What INIT leaves (Intel SDM vol. 3, table 10-1): real mode at the reset vector, CR0 keeps CD
    /// and NW, caches and FPU untouched, nothing pending. Then the vCPU waits for SIPI.
    pub fn setInit(self: *const Vcpu, apic_base: u64) Error!void {
        var sregs = try self.getSregs();
        const data: abi.Segment = .{
            .base = 0,
            .limit = 0xffff,
            .selector = 0,
            .type = 3,
            .present = 1,
            .dpl = 0,
            .db = 0,
            .s = 1,
            .l = 0,
            .g = 0,
            .avl = 0,
            .unusable = 0,
        };
        sregs.ds = data;
        sregs.es = data;
        sregs.fs = data;
        sregs.gs = data;
        sregs.ss = data;
        sregs.cs = data;
        sregs.cs.type = 0xb;
        sregs.cs.selector = 0xf000;
        sregs.cs.base = 0xffff_0000;
        sregs.tr = data;
        sregs.tr.type = 0xb;
        sregs.tr.s = 0;
        sregs.ldt = data;
        sregs.ldt.type = 2;
        sregs.ldt.s = 0;
        sregs.gdt = .{ .base = 0, .limit = 0xffff };
        sregs.idt = .{ .base = 0, .limit = 0xffff };
        sregs.cr0 = (sregs.cr0 & 0x6000_0000) | 0x10;
        sregs.cr2 = 0;
        sregs.cr3 = 0;
        sregs.cr4 = 0;
        sregs.cr8 = 0;
        sregs.efer = 0;
        sregs.apic_base = apic_base;
        sregs.interrupt_bitmap = @splat(0);
        try self.setSregs(&sregs);
        // EDX holds family, model and stepping after INIT; guests that care read CPUID instead.
        try self.setRegs(&.{ .rip = 0xfff0, .rdx = 0x600 });
        var events: api.VcpuEvents = .{};
        events.flags = api.VCPUEVENT_VALID_NMI_PENDING | api.VCPUEVENT_VALID_SHADOW;
        _ = try sys.ioctl(self.fd, api.SET_VCPU_EVENTS, @intFromPtr(&events));
        var debug: [128]u8 align(8) = @splat(0);
        std.mem.writeInt(u64, debug[32..40], 0xffff_0ff0, .little); // DR6
        std.mem.writeInt(u64, debug[40..48], 0x400, .little); // DR7
        _ = try sys.ioctl(self.fd, api.SET_DEBUGREGS, @intFromPtr(&debug));
    }

    /// Start-up IPI: real mode at vector << 12.
    pub fn setStartup(self: *const Vcpu, vector: u8) Error!void {
        var sregs = try self.getSregs();
        sregs.cs.selector = @as(u16, vector) << 8;
        sregs.cs.base = @as(u64, vector) << 12;
        try self.setSregs(&sregs);
        var regs = try self.getRegs();
        regs.rip = 0;
        try self.setRegs(&regs);
    }

    pub fn interrupt(self: *const Vcpu, vector: u8) Error!void {
        var number: u32 = vector;
        _ = try sys.ioctl(self.fd, api.INTERRUPT, @intFromPtr(&number));
    }

    pub fn nmi(self: *const Vcpu) Error!void {
        _ = try sys.ioctl(self.fd, api.NMI, 0);
    }

    pub fn enter(self: *const Vcpu) Error!Entered {
        const r = linux.ioctl(self.fd, api.RUN, 0);
        return switch (linux.errno(r)) {
            .SUCCESS => .exited,
            .INTR, .AGAIN => .interrupted,
            else => |e| {
                sys.last_errno = @backingInt(e);
                return error.SystemCall;
            },
        };
    }

    /// The bytes of a port exit: `count` items of `size` bytes, inside the run mapping.
    pub fn ioData(self: *const Vcpu) []u8 {
        const io = self.run.exit.io;
        const len = @as(usize, io.size) * io.count;
        return self.run_memory[io.data_offset..][0..len];
    }

    pub fn dump(self: *const Vcpu, index: u32, out: *abi.CpuDump) void {
        const regs = self.getRegs() catch return;
        const sregs = self.getSregs() catch return;
        out.vcpu = index;
        inline for (@typeInfo(api.Regs).@"struct".field_names) |name| {
            @field(out, name) = @field(regs, name);
        }
        out.cr0 = sregs.cr0;
        out.cr2 = sregs.cr2;
        out.cr3 = sregs.cr3;
        out.cr4 = sregs.cr4;
        out.efer = sregs.efer;
        out.cs_base = sregs.cs.base;
        out.cs_selector = sregs.cs.selector;
        out.valid = 1;
    }
};
