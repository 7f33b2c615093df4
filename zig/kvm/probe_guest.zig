//! The guest that host probes run: 256 KiB of RAM with page tables, descriptor tables and a dozen
//! routines of a few bytes, written by hand. A routine does one thing, reports with a port write
//! (results stay in registers) and starts over. It runs in 64-bit mode, at privilege level 3 where
//! the probe is about the hardware's own page walks: some software KVMs emulate level 0.

const std = @import("std");
const abi = @import("../abi.zig");

pub const page_size = 4096;
pub const ram_pages = 64;
pub const ram_size = ram_pages * page_size;

/// Guest-physical pages.
pub const Page = struct {
    pub const pml4 = 1;
    pub const pdpt = 2;
    pub const pd = 3;
    pub const pt = 4;
    const gdt = 5;
    const idt = 6;
    const task = 7;
    /// The stack grows down from the end of this page.
    const stack = 8;
    const code = 9;
    pub const data_old = 16;
    pub const data_new = 17;
};

pub const table_pages = [_]u32{ Page.pml4, Page.pdpt, Page.pd, Page.pt };

/// The page whose mapping the staleness probe changes: 1 MiB, through the last-level table.
pub const window_va: u64 = 0x10_0000;
/// Where the guest sees the local APIC's page (physical 0xfee00000).
pub const apic_va: u64 = 0x1f_f000;
pub const apic_gpa: u64 = 0xfee0_0000;

/// Ports by which routines report; nobody else answers in a probe.
pub const Port = struct {
    pub const done = 0x10;
    pub const interrupt = 0x11;
    pub const nmi = 0x12;
};

pub const interrupt_vector = 0x30;
const nmi_vector = 2;

/// One routine: bytes of machine code (Intel SDM vol. 2), each at its own 16-byte slot.
pub const Routine = enum(u8) {
    read,
    read32,
    flush,
    halt,
    time_stamp,
    read_msr,
    write_msr,
    spin,
    open_window,
    on_interrupt,
    on_nmi,

    fn code(self: Routine) []const u8 {
        return switch (self) {
            // mov rax, [rbx]; out 0x10, al; jmp start
            .read => &.{ 0x48, 0x8b, 0x03, 0xe6, Port.done, 0xeb, 0xf9 },
            // mov eax, [rbx]; out 0x10, al; jmp start
            .read32 => &.{ 0x8b, 0x03, 0xe6, Port.done, 0xeb, 0xfa },
            // invlpg [rbx]; mov rcx, cr3; mov cr3, rcx; out 0x10, al; jmp start
            .flush => &.{
                0x0f, 0x01, 0x3b, 0x0f,      0x20, 0xd9, 0x0f,
                0x22, 0xd9, 0xe6, Port.done, 0xeb, 0xf3,
            },
            // hlt; out 0x10, al; jmp start
            .halt => &.{ 0xf4, 0xe6, Port.done, 0xeb, 0xfb },
            // rdtsc; out 0x10, al; jmp start
            .time_stamp => &.{ 0x0f, 0x31, 0xe6, Port.done, 0xeb, 0xfa },
            // rdmsr; out 0x10, al; jmp start
            .read_msr => &.{ 0x0f, 0x32, 0xe6, Port.done, 0xeb, 0xfa },
            // wrmsr; out 0x10, al; jmp start
            .write_msr => &.{ 0x0f, 0x30, 0xe6, Port.done, 0xeb, 0xfa },
            // inc rax; pause; jmp start
            .spin => &.{ 0x48, 0xff, 0xc0, 0xf3, 0x90, 0xeb, 0xf9 },
            // sti; nop; 1: pause; jmp 1b
            .open_window => &.{ 0xfb, 0x90, 0xf3, 0x90, 0xeb, 0xfc },
            // out 0x11, al; iretq
            .on_interrupt => &.{ 0xe6, Port.interrupt, 0x48, 0xcf },
            // out 0x12, al; iretq
            .on_nmi => &.{ 0xe6, Port.nmi, 0x48, 0xcf },
        };
    }

    pub fn address(self: Routine) u64 {
        return Page.code * page_size + @as(u64, @backingInt(self)) * slot;
    }

    const slot = 16;
};

/// Page-table entry bits (Intel SDM vol. 3, 4.5): present, writable, user, accessed, dirty. The
/// last two are set from the start, so that no walk has a reason of its own to write.
const entry_bits: u64 = 0x67;
const cache_disable: u64 = 0x10;

/// Fills RAM: everything a routine needs.
pub fn build(ram: []align(page_size) u8) void {
    std.debug.assert(ram.len == ram_size);
    @memset(ram, 0);
    entries(ram, Page.pml4)[0] = Page.pdpt * page_size | entry_bits;
    entries(ram, Page.pdpt)[0] = Page.pd * page_size | entry_bits;
    entries(ram, Page.pd)[0] = Page.pt * page_size | entry_bits;
    fillTable(entries(ram, Page.pt), Page.data_old);
    for (std.enums.values(Routine)) |r| {
        const bytes = r.code();
        @memcpy(ram[r.address()..][0..bytes.len], bytes);
    }
    const gdt = entries(ram, Page.gdt);
    gdt[kernel_code / 8] = 0x00af_9b00_0000_ffff;
    gdt[kernel_data / 8] = 0x00cf_9300_0000_ffff;
    gate(ram, nmi_vector, .on_nmi);
    gate(ram, interrupt_vector, .on_interrupt);
    entries(ram, Page.data_old)[0] = old_value;
    entries(ram, Page.data_new)[0] = new_value;
}

pub const old_value: u64 = 0x6f6c_646f_6c64_6f6c;
pub const new_value: u64 = 0x6e65_776e_6577_6e65;

/// The last-level table with the window mapped to `data`: RAM one to one otherwise.
pub fn fillTable(table: *[512]u64, data: u64) void {
    table.* = @splat(0);
    for (table[0..ram_pages], 0..) |*entry, i| entry.* = i * page_size | entry_bits;
    table[window_va / page_size] = data * page_size | entry_bits;
    table[apic_va / page_size] = apic_gpa | entry_bits | cache_disable;
}

pub fn entries(ram: []align(page_size) u8, page: usize) *[512]u64 {
    return @ptrCast(@alignCast(ram[page * page_size ..][0..page_size]));
}

/// A 64-bit interrupt gate (Intel SDM vol. 3, 6.14.1).
fn gate(ram: []align(page_size) u8, vector: usize, handler: Routine) void {
    const at = handler.address();
    std.debug.assert(at < 0x1_0000);
    const idt = entries(ram, Page.idt);
    idt[vector * 2] = at | kernel_code << 16 | 0x8e00 << 32;
    idt[vector * 2 + 1] = 0;
}

const kernel_code = 0x08;
const kernel_data = 0x10;
const user_code = 0x18 | 3;
const user_data = 0x20 | 3;
const task_selector = 0x28;

fn segment(selector: u16, kind: u8, level: u8, is_code: bool) abi.Segment {
    return .{
        .base = 0,
        .limit = 0xffff_ffff,
        .selector = selector,
        .type = kind,
        .present = 1,
        .dpl = level,
        .db = @intFromBool(!is_code),
        .s = 1,
        .l = @intFromBool(is_code),
        .g = 1,
        .avl = 0,
        .unusable = 0,
    };
}

/// RFLAGS: reserved bit, and IOPL 3 so that level 3 may report by port.
const rflags: u64 = 0x3002;

pub const Start = struct {
    routine: Routine,
    level: enum { kernel, user } = .kernel,
    rbx: u64 = 0,
    /// MSR number and value for the MSR routines.
    rcx: u64 = 0,
    rax: u64 = 0,
    rdx: u64 = 0,
    interrupts: bool = false,
};

pub fn record(start: Start) abi.VcpuRecord {
    var r = std.mem.zeroes(abi.VcpuRecord);
    const user = start.level == .user;
    const level: u8 = if (user) 3 else 0;
    // Types: execute/read and read/write, accessed; TR: a busy 64-bit TSS.
    const data = segment(if (user) user_data else kernel_data, 0x3, level, false);
    r.cs = segment(if (user) user_code else kernel_code, 0xb, level, true);
    r.ds = data;
    r.es = data;
    r.fs = data;
    r.gs = data;
    r.ss = data;
    r.tr = segment(task_selector, 0xb, 0, false);
    r.tr.base = Page.task * page_size;
    r.tr.limit = 0x67;
    r.tr.s = 0;
    r.tr.g = 0;
    r.tr.db = 0;
    r.ldt.unusable = 1;
    r.gdt = .{ .base = Page.gdt * page_size, .limit = 0x27 };
    r.idt = .{ .base = Page.idt * page_size, .limit = 0xfff };
    // CR0: PE, ET, NE, PG. CR4: PAE. EFER: LME, LMA.
    r.cr0 = 0x8000_0031;
    r.cr3 = Page.pml4 * page_size;
    r.cr4 = 0x20;
    r.efer = 0x500;
    r.rip = start.routine.address();
    r.rsp = (Page.stack + 1) * page_size;
    r.rflags = rflags | (if (start.interrupts) @as(u64, 0x200) else 0);
    r.rax = start.rax;
    r.rbx = start.rbx;
    r.rcx = start.rcx;
    r.rdx = start.rdx;
    return r;
}

test "routines fit their slots, and jumps go back to their start" {
    for (std.enums.values(Routine)) |r| {
        const bytes = r.code();
        try std.testing.expect(bytes.len <= Routine.slot);
        switch (r) {
            .on_interrupt, .on_nmi, .open_window => continue,
            else => {},
        }
        try std.testing.expectEqual(@as(u8, 0xeb), bytes[bytes.len - 2]);
        const back: i8 = @bitCast(bytes[bytes.len - 1]);
        try std.testing.expectEqual(@as(i64, 0), @as(i64, @intCast(bytes.len)) + back);
    }
    try std.testing.expect(Routine.on_nmi.address() + Routine.slot <= (Page.code + 1) * page_size);
}

test "the tables map the window, the APIC page and RAM" {
    var ram: [ram_size]u8 align(page_size) = undefined;
    build(&ram);
    const table = entries(&ram, Page.pt);
    try std.testing.expectEqual(Page.data_old * page_size | entry_bits, table[256]);
    try std.testing.expectEqual(apic_gpa, table[511] & ~@as(u64, 0xfff));
    try std.testing.expectEqual(9 * page_size | entry_bits, table[9]);
    try std.testing.expectEqual(old_value, entries(&ram, Page.data_old)[0]);
}
