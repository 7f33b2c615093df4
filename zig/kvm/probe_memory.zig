//! Host probes about memory: does the guest see a page table that was replaced behind its back, do
//! the hardware's page walks write, what does userfaultfd offer, may memory be locked. The first
//! two decide whether and how pages can be moved between hosts at all.

const std = @import("std");
const linux = std.os.linux;
const abi = @import("../abi.zig");
const guest = @import("probe_guest.zig");
const sys = @import("../base/sys.zig");
const uffd_api = @import("../base/uffd_api.zig");
const probe_vm = @import("probe_vm.zig");
const ProbeVm = probe_vm.ProbeVm;
const Error = probe_vm.Error;
const good = @import("probe_cpu.zig").good;
const Faults = @import("probe_faults.zig").Faults;

const page_size = guest.page_size;

fn result(state: abi.ProbeState, value: u64) abi.ProbeResult {
    return .{ .state = @backingInt(state), .errno = 0, .value = value };
}

/// The page that holds the guest's last-level table is dropped and written anew by the host, as
/// when it comes back from another node. After INVLPG and a CR3 reload the guest must read through
/// the new content; shadow paging, which only watches the guest's own writes, reads through the
/// old. Read at level 3: a KVM that emulates level 0 walks the tables in software there.
pub fn replacedTables() Error!abi.ProbeResult {
    const rounds = 8;
    var vm = try ProbeVm.create(.xapic);
    defer vm.destroy();
    if (try readWindow(&vm) != guest.old_value) return error.WrongValue;
    for (0..rounds) |i| {
        const to_new = i % 2 == 0;
        try replaceTable(&vm, if (to_new) guest.Page.data_new else guest.Page.data_old);
        try vm.start(.{ .routine = .flush, .rbx = guest.window_va });
        try vm.runToPort(guest.Port.done);
        const expected = if (to_new) guest.new_value else guest.old_value;
        if (try readWindow(&vm) != expected) return result(.missing, 0);
    }
    return good(1);
}

fn readWindow(vm: *ProbeVm) Error!u64 {
    try vm.start(.{ .routine = .read, .level = .user, .rbx = guest.window_va });
    try vm.runToPort(guest.Port.done);
    return (try vm.vcpu.getRegs()).rax;
}

fn replaceTable(vm: *ProbeVm, data: u64) Error!void {
    const MADV_DONTNEED = 4;
    const memory = vm.ram[guest.Page.pt * page_size ..][0..page_size];
    _ = try sys.check(linux.madvise(memory.ptr, memory.len, MADV_DONTNEED));
    guest.fillTable(guest.entries(vm.ram, guest.Page.pt), data);
}

/// Every page-table page and the data page are write-protected, all accessed and dirty bits are set
/// already, and the guest only reads. Value: page-table pages that took a write fault all the same.
/// By the manuals a nested walk on AMD counts as a write, and on Intel with EPT A/D bits.
pub fn walksWrite() Error!abi.ProbeResult {
    var vm = try ProbeVm.create(.xapic);
    defer vm.destroy();
    var faults = try Faults.start(vm.ram, .full);
    defer faults.stop();
    for (guest.table_pages) |page| try faults.protect(page);
    try faults.protect(guest.Page.data_old);
    if (try readWindow(&vm) != guest.old_value) return error.WrongValue;
    var tables: u64 = 0;
    for (guest.table_pages) |page| tables += @intFromBool(faults.protectedWrites(page) > 0);
    return result(if (tables == 0) .good else .degraded, tables);
}

/// Value: every feature this kernel offers (UFFDIO_API). A process that may only open the user-mode
/// kind gets its answer too: the next probe says what is lacking.
pub fn userfaultfd() Error!abi.ProbeResult {
    const fd = uffd_api.open(.full) catch try uffd_api.open(.user_only);
    defer sys.close(fd);
    var features: uffd_api.Api = .{ .features = 0 };
    _ = try sys.ioctl(fd, uffd_api.UFFDIO_API, @intFromPtr(&features));
    return good(features.features);
}

/// A system call that reads an absent page waits for it like any thread, as KVM's own accesses do.
pub fn kernelFaults() Error!abi.ProbeResult {
    const memory = try sys.mapAnonymous(page_size);
    defer sys.unmap(memory);
    var faults = try Faults.start(memory, .full);
    defer faults.stop();
    const file: i32 = @intCast(try sys.check(linux.memfd_create("ssihv-probe", linux.MFD.CLOEXEC)));
    defer sys.close(file);
    const written = try sys.check(linux.write(file, memory.ptr, page_size));
    if (written != page_size or faults.absent(0) != 1) return error.WrongValue;
    return good(0);
}

/// A page installed read-only faults on the first write, with the protection named.
pub fn writeProtect() Error!abi.ProbeResult {
    const memory = try sys.mapAnonymous(page_size);
    defer sys.unmap(memory);
    var faults = try Faults.startAny(memory);
    defer faults.stop();
    const word: *volatile u64 = @ptrCast(memory.ptr);
    word.* = 1;
    try faults.protect(0);
    word.* = 2;
    if (faults.protectedWrites(0) != 1 or word.* != 2) return error.WrongValue;
    return good(0);
}

/// The fault message names the thread that waits.
pub fn threadIds() Error!abi.ProbeResult {
    const memory = try sys.mapAnonymous(page_size);
    defer sys.unmap(memory);
    var faults = try Faults.startAny(memory);
    defer faults.stop();
    const word: *volatile u64 = @ptrCast(memory.ptr);
    word.* = 1;
    const self: u32 = @intCast(linux.gettid());
    if (faults.lastThread() != self) return result(.degraded, faults.lastThread());
    return good(self);
}

/// Room that an engine wants to lock for itself: code, stacks, rings, tables. Value: bytes tried.
pub fn memoryLock() Error!abi.ProbeResult {
    const wanted = 64 << 20;
    const MLOCK_ONFAULT = 1;
    const memory = try sys.mapAnonymous(wanted);
    defer sys.unmap(memory);
    _ = try sys.check(linux.syscall3(.mlock2, @intFromPtr(memory.ptr), wanted, MLOCK_ONFAULT));
    return good(wanted);
}

test "faults are answered and counted by kind" {
    const ram = try sys.mapAnonymous(3 * page_size);
    defer sys.unmap(ram);
    var faults = Faults.startAny(ram) catch return error.SkipZigTest;
    defer faults.stop();
    const bytes: [*]volatile u8 = ram.ptr;
    try std.testing.expectEqual(@as(u8, 0), bytes[page_size]);
    bytes[page_size] = 7;
    try faults.protect(1);
    try std.testing.expectEqual(@as(u8, 7), bytes[page_size]);
    try std.testing.expectEqual(@as(u32, 0), faults.protectedWrites(1));
    bytes[page_size + 1] = 8;
    bytes[page_size + 2] = 9;
    try std.testing.expectEqual(@as(u32, 1), faults.protectedWrites(1));
    try std.testing.expectEqual(@as(u32, 1), faults.absent(1));
    try std.testing.expectEqual(@as(u32, 0), faults.absent(0) + faults.absent(2));
}
