//! A device that is only registers (abi.RegisterFile): what it reads, which bits a write may
//! change, which it clears by a written one, and which written ones TypeScript wants to hear of. It
//! knows nothing of its meaning. Accesses of any size and offset are safe: what lies behind the end
//! reads as ones and is dropped when written.

const std = @import("std");
const abi = @import("../abi.zig");

/// Widest access a guest can make with one instruction.
const access_max = 8;

pub const RegisterFile = struct {
    registers: abi.RegisterFile,

    pub fn init(registers: abi.RegisterFile) RegisterFile {
        var self: RegisterFile = .{ .registers = registers };
        self.registers.len = @min(registers.len, abi.register_file_max);
        return self;
    }

    /// Little endian, `size` bytes (at most 8).
    pub fn read(self: *const RegisterFile, offset: u32, size: u32) u64 {
        var value: u64 = 0;
        for (0..@min(size, access_max)) |i| {
            const at = @as(u64, offset) + i;
            const byte = if (at < self.registers.len) self.registers.image[at] else 0xff;
            value |= @as(u64, byte) << shift(i);
        }
        return value;
    }

    /// Returns the written ones under the event mask, in the position of `value`; null when none.
    pub fn write(self: *RegisterFile, offset: u32, size: u32, value: u64) ?u64 {
        var events: u64 = 0;
        for (0..@min(size, access_max)) |i| {
            const at = @as(u64, offset) + i;
            if (at >= self.registers.len) break;
            const byte: u8 = @truncate(value >> shift(i));
            const writable = self.registers.write_mask[at];
            const image = &self.registers.image[at];
            image.* = (image.* & ~writable) | (byte & writable);
            image.* &= ~(byte & self.registers.w1c_mask[at]);
            events |= @as(u64, byte & self.registers.event_mask[at]) << shift(i);
        }
        return if (events != 0) events else null;
    }
};

fn shift(byte: usize) u6 {
    return @intCast(byte * 8);
}

fn testFile() RegisterFile {
    var r = std.mem.zeroes(abi.RegisterFile);
    r.len = 4;
    r.image[0..4].* = .{ 0x11, 0x22, 0x33, 0x44 };
    r.write_mask[0] = 0x0f;
    r.w1c_mask[1] = 0xf0;
    r.event_mask[2] = 0x20;
    return RegisterFile.init(r);
}

test "reads compose bytes, and ones behind the end" {
    const file = testFile();
    try std.testing.expectEqual(@as(u64, 0x4433_2211), file.read(0, 4));
    try std.testing.expectEqual(@as(u64, 0x3322), file.read(1, 2));
    try std.testing.expectEqual(@as(u64, 0xffff_ff44), file.read(3, 4));
    try std.testing.expectEqual(@as(u64, 0xffff), file.read(4, 2));
    try std.testing.expectEqual(~@as(u64, 0), file.read(std.math.maxInt(u32), 8));
    try std.testing.expectEqual(@as(u64, 0), file.read(0, 0));
}

test "a write obeys its masks" {
    var file = testFile();
    try std.testing.expectEqual(null, file.write(0, 4, 0xff00_20ff));
    // Byte 0: low half written. Byte 1: 0x22 with bit 5 cleared by a one. Bytes 2, 3: read only.
    try std.testing.expectEqual(@as(u64, 0x4433_021f), file.read(0, 4));
}

test "event bits come back in the position they were written at" {
    var file = testFile();
    try std.testing.expectEqual(@as(?u64, 0x20_0000), file.write(0, 4, 0x00ff_0000));
    try std.testing.expectEqual(@as(?u64, 0x20), file.write(2, 1, 0x20));
    try std.testing.expectEqual(@as(?u64, 0x2000), file.write(1, 2, 0x2000));
    try std.testing.expectEqual(null, file.write(2, 1, 0xdf));
}

test "a length beyond the record is cut" {
    var r = std.mem.zeroes(abi.RegisterFile);
    r.len = 4000;
    const file = RegisterFile.init(r);
    try std.testing.expectEqual(@as(u64, 0xffff_ff00), file.read(abi.register_file_max - 1, 4));
}

test "hostile offsets and sizes never reach outside and never change a read-only bit" {
    var prng = std.Random.DefaultPrng.init(0x5eed_0001);
    const random = prng.random();
    var r = std.mem.zeroes(abi.RegisterFile);
    r.len = abi.register_file_max;
    random.bytes(&r.image);
    random.bytes(&r.write_mask);
    var file = RegisterFile.init(r);
    for (0..20_000) |_| {
        const offset = if (random.boolean()) random.uintLessThan(u32, 80) else random.int(u32);
        const size = if (random.boolean()) random.uintLessThan(u32, 9) else random.int(u32);
        if (random.boolean()) _ = file.read(offset, size) else {
            try std.testing.expectEqual(null, file.write(offset, size, random.int(u64)));
        }
    }
    for (file.registers.image, r.image, r.write_mask) |now, first, mask| {
        try std.testing.expectEqual(first & ~mask, now & ~mask);
    }
}
