//! Data that comes from a device while the other node takes its target pages: one side has KVM
//! store what a port reads (`rep insb`) into pages that the other side writes to all the time, in
//! words beside them. Both the data and the other side's counts must be whole. The port is the
//! scratch register of the first UART, which the kernel leaves alone; it lives on node 0, so one
//! side's reads are forwarded exits and the other's are not. Needs a guest: on a real machine it
//! would touch the real serial port, hence it is no part of `all`.

const std = @import("std");
const sides = @import("sides.zig");
const page_size = sides.page_size;

/// COM1 + 7 (16550 data sheet): a byte that reads as it was written.
const scratch_port = 0x3ff;
/// A forwarded exit for each byte makes this dear.
const rounds_per_burst = 30;
const burst_bytes = 96;

/// The bursts go across the border of the two pages; the other side's words are beside them.
var pages: [2 * page_size]u8 align(page_size) = @splat(0);
const target_offset = page_size - burst_bytes / 2;
const word_offsets = [_]usize{ 0, 64, page_size + 2048, 2 * page_size - 8 };

var reader: u32 = 0;
var reading: std.atomic.Value(bool) align(page_size) = .init(false);
var stored: u64 = 0;
var wrong: u64 = 0;

fn burstCount() u64 {
    return @max(2, sides.options.rounds / rounds_per_burst);
}

fn word(offset: usize) *volatile u64 {
    return @ptrCast(@alignCast(&pages[offset]));
}

pub fn device() void {
    for (0..sides.cpus) |side| {
        reader = @intCast(side);
        pages = @splat(0);
        stored = 0;
        wrong = 0;
        reading.store(true, .seq_cst);
        sides.both(work);
        for (word_offsets) |offset| {
            if (word(offset).* != stored) wrong += 1;
        }
        const name = if (side == 0) "device-read-from-side-0" else "device-read-from-side-1";
        sides.report(name, wrong == 0 and stored > 0, burstCount(), wrong);
    }
}

fn work(side: u32) void {
    if (side == reader) read() else write();
}

/// Steals the pages until the reader is done: at least once.
fn write() void {
    while (true) {
        for (word_offsets) |offset| word(offset).* += 1;
        stored += 1;
        if (!reading.load(.acquire)) return;
    }
}

fn read() void {
    sides.allowPorts(scratch_port, 1);
    for (0..burstCount()) |round| {
        const value: u8 = @truncate(sides.pattern(round, reader) | 1);
        out(value);
        const target = pages[target_offset..][0..burst_bytes];
        input(target);
        const planted = sides.options.plant and round == 0;
        for (target, 0..) |*byte, i| {
            const seen = @as(*volatile u8, byte).* ^ @intFromBool(planted and i == 7);
            if (seen != value) wrong += 1;
        }
    }
    reading.store(false, .release);
}

fn out(value: u8) void {
    asm volatile ("outb %[value], %[port]"
        :
        : [value] "{al}" (value),
          [port] "{dx}" (@as(u16, scratch_port)),
    );
}

/// One instruction for all bytes: KVM stores them, not the guest's CPU.
fn input(target: []u8) void {
    var to = target.ptr;
    var count = target.len;
    asm volatile ("rep insb"
        : [to] "+{rdi}" (to),
          [count] "+{rcx}" (count),
        : [port] "{dx}" (@as(u16, scratch_port)),
        : .{ .memory = true });
}
