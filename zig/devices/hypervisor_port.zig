//! The hypervisor's backdoor port, by which a guest that finds the VMware CPUID leaf (0x40000000)
//! learns its TSC and APIC-bus frequencies without calibration and that x2APIC needs no interrupt
//! remapping. Pure: registers in, registers out. Facts as Linux uses them
//! (arch/x86/kernel/cpu/vmware.c, arch/x86/include/asm/vmware.h).
//! Anything we do not offer answers as a refusal, above all the stolen-time clock: it would be a
//! page that one host's kernel writes.

const std = @import("std");

/// The port the guest reads (IN EAX, DX).
pub const port = 0x5658;
/// EAX of every request: "VMXh".
pub const magic = 0x564d_5868;

/// Request numbers, in ECX bits 15:0.
const Command = enum(u16) {
    get_version = 10,
    get_hz = 45,
    get_vcpu_info = 68,
    _,
};

/// GETVCPU_INFO: bit 3 says x2APIC works without interrupt remapping; bit 31 would void the answer.
const vcpu_info_legacy_x2apic = 1 << 3;

/// GETVERSION: interface version 6 and product type 2 (server), what the field answers since 2001.
const interface_version = 6;
const product_type = 2;

const refused = std.math.maxInt(u32);

pub const Registers = struct { eax: u32, ebx: u32, ecx: u32, edx: u32 };

/// What the guest is told; dilation is already in them.
pub const Frequencies = struct { tsc_hz: u64, bus_hz: u32 };

pub fn answer(request: Registers, frequencies: Frequencies) Registers {
    var reply = request;
    // Without the magic the port is nobody's: ones, and no other register changes.
    if (request.eax != magic) {
        reply.eax = refused;
        return reply;
    }
    switch (@as(Command, @fromBackingInt(@intCast(@as(u16, @truncate(request.ecx)))))) {
        .get_version => {
            reply.eax = interface_version;
            reply.ebx = magic;
            reply.ecx = product_type;
        },
        .get_hz => {
            reply.eax = @truncate(frequencies.tsc_hz);
            reply.ebx = @truncate(frequencies.tsc_hz >> 32);
            reply.ecx = frequencies.bus_hz;
        },
        .get_vcpu_info => reply.eax = vcpu_info_legacy_x2apic,
        // EBX stays: guests put all ones there and read that as "not answered".
        _ => reply.eax = refused,
    }
    return reply;
}

const test_frequencies: Frequencies = .{ .tsc_hz = 0x1_9abc_def0, .bus_hz = 1_000_000_000 };

fn ask(command: u32) Registers {
    const request: Registers = .{ .eax = magic, .ebx = refused, .ecx = command, .edx = port };
    return answer(request, test_frequencies);
}

test "frequencies as Linux puts them together" {
    const r = ask(45);
    try std.testing.expectEqual(test_frequencies.tsc_hz, r.eax | @as(u64, r.ebx) << 32);
    try std.testing.expect(r.ebx != refused);
    try std.testing.expectEqual(test_frequencies.bus_hz, r.ecx);
}

test "x2APIC is allowed and the reserved bit is clear" {
    const r = ask(68);
    try std.testing.expectEqual(@as(u32, 1 << 3), r.eax & (1 << 31 | 1 << 3));
}

test "version answers with the magic in EBX" {
    const r = ask(10);
    try std.testing.expect(r.eax != refused);
    try std.testing.expectEqual(@as(u32, magic), r.ebx);
}

test "the stolen-time clock and unknown commands are refused, other registers kept" {
    // 91 is STEALCLOCK with subcommand in EBX; Linux takes only EAX = 0 as available.
    for ([_]u32{ 91, 0, 1, 99, 0xffff }) |command| {
        const r = ask(command);
        try std.testing.expectEqual(@as(u32, refused), r.eax);
        try std.testing.expectEqual(@as(u32, refused), r.ebx);
        try std.testing.expectEqual(command, r.ecx);
    }
}

test "without the magic nothing is told" {
    const request: Registers = .{ .eax = magic + 1, .ebx = 1, .ecx = 45, .edx = port };
    const r = answer(request, test_frequencies);
    try std.testing.expectEqual(Registers{ .eax = refused, .ebx = 1, .ecx = 45, .edx = port }, r);
}

test "only the low half of ECX names the command" {
    try std.testing.expectEqual(ask(45).eax, ask(0xabcd_0000 | 45).eax);
}

test "any registers get an answer" {
    var prng = std.Random.DefaultPrng.init(0x5eed_0002);
    const random = prng.random();
    for (0..10_000) |_| {
        const request: Registers = .{
            .eax = if (random.boolean()) magic else random.int(u32),
            .ebx = random.int(u32),
            .ecx = random.int(u32),
            .edx = random.int(u32),
        };
        const r = answer(request, test_frequencies);
        try std.testing.expectEqual(request.edx, r.edx);
    }
}
