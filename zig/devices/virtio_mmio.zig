//! The registers of a virtio device over MMIO (virtio 1.2, 4.2; version 2 only): features, status,
//! queues, interrupt status and the device's configuration. What it is (device id, features, queue
//! sizes, configuration) is data, made in TypeScript (abi.VirtioDevice). Pure: the caller has a
//! lock, the interrupt's line, and the thread that serves the queues.
//!
//! Everything here is the guest's choice: registers of other widths, offsets and values do nothing.

const std = @import("std");
const abi = @import("../abi.zig");
const virtqueue = @import("virtqueue.zig");
const Queue = virtqueue.Queue;

const magic = 0x7472_6976; // "virt", little endian
const version = 2;

pub const status_driver_ok: u32 = 4;
const status_features_ok: u32 = 8;
pub const status_needs_reset: u32 = 64;
const feature_version_1: u64 = 1 << 32;

/// Interrupt status (4.2.2): a buffer was used, the configuration changed.
pub const interrupt_used: u32 = 1;
pub const interrupt_config: u32 = 2;

/// 4.2.2, table 4.1.
const Register = enum(u32) {
    magic = 0x00,
    version = 0x04,
    device_id = 0x08,
    vendor_id = 0x0c,
    device_features = 0x10,
    device_features_select = 0x14,
    driver_features = 0x20,
    driver_features_select = 0x24,
    queue_select = 0x30,
    queue_size_max = 0x34,
    queue_size = 0x38,
    queue_ready = 0x44,
    queue_notify = 0x50,
    interrupt_status = 0x60,
    interrupt_ack = 0x64,
    status = 0x70,
    descriptors_low = 0x80,
    descriptors_high = 0x84,
    driver_low = 0x90,
    driver_high = 0x94,
    device_low = 0xa0,
    device_high = 0xa4,
    shared_len_low = 0xb0,
    shared_len_high = 0xb4,
    shared_base_low = 0xb8,
    shared_base_high = 0xbc,
    config_generation = 0xfc,
    _,
};

const config_offset = 0x100;

/// What a write asks of the device.
pub const Effect = union(enum) {
    none,
    /// Look at this queue.
    notify: u32,
    /// Status 0 was written: reset() when nothing is under way any more.
    reset,
    /// The driver broke the rules: queue and what.
    broken: struct { queue: u32, fault: virtqueue.Fault },
    config_written,
};

pub const VirtioMmio = struct {
    device: abi.VirtioDevice,
    status: u32 = 0,
    interrupts: u32 = 0,
    device_features_select: u32 = 0,
    driver_features_select: u32 = 0,
    driver_features: u64 = 0,
    queue_select: u32 = 0,
    queues: [abi.virtio_queues_max]Queue = @splat(.{}),
    config_generation: u32 = 0,

    pub fn init(device: abi.VirtioDevice) VirtioMmio {
        var self: VirtioMmio = .{ .device = device };
        self.device.config_len = @min(device.config_len, abi.virtio_config_max);
        for (&self.device.queue_sizes) |*size| size.* = @min(size.*, virtqueue.size_max);
        return self;
    }

    /// As the driver's, or the machine's. The configuration stays.
    pub fn reset(self: *VirtioMmio) void {
        self.* = .{ .device = self.device, .config_generation = self.config_generation };
    }

    /// Whether queues may be looked at.
    pub fn isLive(self: *const VirtioMmio) bool {
        return self.status & status_driver_ok != 0 and self.status & status_needs_reset == 0;
    }

    /// 2.1.2: only a reset by the driver ends this.
    pub fn fail(self: *VirtioMmio) void {
        const was_running = self.status & status_driver_ok != 0;
        self.status |= status_needs_reset;
        if (was_running) self.interrupts |= interrupt_config;
    }

    pub fn setConfig(self: *VirtioMmio, offset: usize, value: u32) void {
        std.mem.writeInt(u32, self.device.config[offset..][0..4], value, .little);
        self.config_generation +%= 1;
        if (self.isLive()) self.interrupts |= interrupt_config;
    }

    /// What a driver wrote of a field, at its reset.
    pub fn clearConfig(self: *VirtioMmio, offset: usize) void {
        @memset(self.device.config[offset..][0..4], 0);
    }

    pub fn getConfig(self: *const VirtioMmio, offset: usize) u32 {
        return std.mem.readInt(u32, self.device.config[offset..][0..4], .little);
    }

    fn selected(self: *VirtioMmio) ?*Queue {
        return if (self.queue_select < self.queues.len) &self.queues[self.queue_select] else null;
    }

    fn sizeMax(self: *const VirtioMmio) u32 {
        if (self.queue_select >= self.queues.len) return 0;
        return self.device.queue_sizes[self.queue_select];
    }

    pub fn read(self: *VirtioMmio, offset: u64, size: u32) u64 {
        if (offset >= config_offset) return self.readConfig(offset - config_offset, size);
        if (size != 4 or offset % 4 != 0) return 0;
        const register: Register = @fromBackingInt(@as(u32, @intCast(offset)));
        return switch (register) {
            .magic => magic,
            .version => version,
            .device_id => self.device.id,
            .vendor_id => self.device.vendor,
            .device_features => half(self.device.features, self.device_features_select),
            .queue_size_max => self.sizeMax(),
            .queue_ready => if (self.selected()) |q| @intFromBool(q.is_ready) else 0,
            .interrupt_status => self.interrupts,
            .status => self.status,
            // No shared memory (4.2.2).
            .shared_len_low,
            .shared_len_high,
            .shared_base_low,
            .shared_base_high,
            => 0xffff_ffff,
            .config_generation => self.config_generation,
            else => 0,
        };
    }

    fn half(features: u64, select: u32) u32 {
        return switch (select) {
            0 => @truncate(features),
            1 => @intCast(features >> 32),
            else => 0,
        };
    }

    fn readConfig(self: *const VirtioMmio, offset: u64, size: u32) u64 {
        var value: u64 = 0;
        for (0..@min(size, 8)) |i| {
            const at = offset + i;
            if (at < self.device.config_len) {
                value |= @as(u64, self.device.config[@intCast(at)]) << @intCast(8 * i);
            }
        }
        return value;
    }

    pub fn write(self: *VirtioMmio, offset: u64, size: u32, value: u64, ram: anytype) Effect {
        if (offset >= config_offset) return self.writeConfig(offset - config_offset, size, value);
        if (size != 4 or offset % 4 != 0) return .none;
        const word: u32 = @truncate(value);
        const register: Register = @fromBackingInt(@as(u32, @intCast(offset)));
        switch (register) {
            .device_features_select => self.device_features_select = word,
            .driver_features_select => self.driver_features_select = word,
            .driver_features => self.takeFeatures(word),
            .queue_select => self.queue_select = word,
            .queue_notify => if (self.isLive()) return .{ .notify = word },
            .interrupt_ack => self.interrupts &= ~word,
            .status => return self.writeStatus(word),
            else => return self.configureQueue(register, word, ram),
        }
        return .none;
    }

    fn takeFeatures(self: *VirtioMmio, word: u32) void {
        if (self.status & status_features_ok != 0 or self.driver_features_select > 1) return;
        const shift: u6 = @intCast(32 * self.driver_features_select);
        const mask = @as(u64, 0xffff_ffff) << shift;
        self.driver_features = (self.driver_features & ~mask) | @as(u64, word) << shift;
    }

    fn writeStatus(self: *VirtioMmio, word: u32) Effect {
        if (word == 0) return .reset;
        var status = word & ~status_needs_reset;
        const strange = self.driver_features & ~self.device.features;
        const agreed = strange == 0 and self.driver_features & feature_version_1 != 0;
        // 3.1.1: the driver reads it back.
        if (!agreed) status &= ~(status_features_ok | status_driver_ok);
        if (status & status_features_ok == 0) status &= ~status_driver_ok;
        // A driver only ever adds bits (2.1.1).
        self.status |= status & 0xff;
        return .none;
    }

    fn configureQueue(self: *VirtioMmio, register: Register, word: u32, ram: anytype) Effect {
        const queue = self.selected() orelse return .none;
        if (self.sizeMax() == 0) return .none;
        if (register == .queue_ready) return self.readyQueue(queue, word, ram);
        // Only a queue that is not in use changes its place (4.2.2.2).
        if (queue.is_ready) return .none;
        switch (register) {
            // A size that fits no register is no size: check() says so.
            .queue_size => queue.size = std.math.cast(u16, word) orelse 0,
            .descriptors_low => setHalf(&queue.descriptors, 0, word),
            .descriptors_high => setHalf(&queue.descriptors, 32, word),
            .driver_low => setHalf(&queue.driver, 0, word),
            .driver_high => setHalf(&queue.driver, 32, word),
            .device_low => setHalf(&queue.device, 0, word),
            .device_high => setHalf(&queue.device, 32, word),
            else => {},
        }
        return .none;
    }

    /// Looks at where the queue is, not into it. A queue in use ends with a reset only: its thread
    /// may be in it.
    fn readyQueue(self: *VirtioMmio, queue: *Queue, word: u32, ram: anytype) Effect {
        if (word & 1 == 0 or queue.is_ready) return .none;
        queue.check(ram, @intCast(self.sizeMax())) catch {
            return .{ .broken = .{ .queue = self.queue_select, .fault = queue.fault } };
        };
        queue.next_available = 0;
        queue.next_used = 0;
        queue.is_ready = true;
        return .none;
    }

    fn setHalf(place: *u64, comptime shift: u6, word: u32) void {
        place.* = (place.* & ~(@as(u64, 0xffff_ffff) << shift)) | @as(u64, word) << shift;
    }

    fn writeConfig(self: *VirtioMmio, offset: u64, size: u32, value: u64) Effect {
        var written = false;
        for (0..@min(size, 8)) |i| {
            const at = offset +| i;
            if (at >= self.device.config_len) break;
            const mask = self.device.config_write_mask[@intCast(at)];
            const byte: u8 = @truncate(value >> @intCast(8 * i));
            const place = &self.device.config[@intCast(at)];
            place.* = (place.* & ~mask) | (byte & mask);
            written = written or mask != 0;
        }
        return if (written) .config_written else .none;
    }
};

const testing = std.testing;
const TestRam = virtqueue.TestRam;

fn testDevice() VirtioMmio {
    var d = std.mem.zeroes(abi.VirtioDevice);
    d.id = 5;
    d.vendor = 0x1234;
    d.features = feature_version_1 | 0x24;
    d.queue_sizes[0] = 8;
    d.queue_sizes[2] = 4000;
    d.config_len = 8;
    d.config[0] = 0x11;
    for (d.config_write_mask[4..8]) |*m| m.* = 0xff;
    return .init(d);
}

fn set(d: *VirtioMmio, register: Register, value: u32) Effect {
    var ram: TestRam = .{};
    return d.write(@backingInt(register), 4, value, &ram);
}

fn get(d: *VirtioMmio, register: Register) u32 {
    return @intCast(d.read(@backingInt(register), 4));
}

/// As a driver starts a device (3.1.1), with these features.
fn negotiate(d: *VirtioMmio, features: u64) void {
    for ([_]u32{ 1, 3 }) |bits| _ = set(d, .status, bits);
    for (0..2) |i| {
        _ = set(d, .driver_features_select, @intCast(i));
        _ = set(d, .driver_features, @truncate(features >> @intCast(32 * i)));
    }
    _ = set(d, .status, 11);
}

test "a driver finds the device, agrees on features, and starts it" {
    var d = testDevice();
    try testing.expectEqual(@as(u32, 0x7472_6976), get(&d, .magic));
    try testing.expectEqual(@as(u32, 2), get(&d, .version));
    try testing.expectEqual(@as(u32, 5), get(&d, .device_id));
    for ([_]u32{ 0x24, 1, 0, 0 }, [_]u32{ 0, 1, 2, 0xffff_ffff }) |bits, select| {
        _ = set(&d, .device_features_select, select);
        try testing.expectEqual(bits, get(&d, .device_features));
    }
    negotiate(&d, feature_version_1 | 4);
    try testing.expectEqual(@as(u32, 11), get(&d, .status));
    for ([_]u32{ 8, 0, 256, 0, 0 }, [_]u32{ 0, 1, 2, 3, 0xffff_ffff }) |most, queue| {
        _ = set(&d, .queue_select, queue);
        try testing.expectEqual(most, get(&d, .queue_size_max));
    }
    _ = set(&d, .queue_select, 0);
    _ = set(&d, .queue_size, 8);
    _ = set(&d, .driver_low, 0x200);
    _ = set(&d, .device_low, 0x400);
    try testing.expectEqual(Effect.none, set(&d, .queue_notify, 0));
    try testing.expectEqual(Effect.none, set(&d, .queue_ready, 1));
    try testing.expectEqual(@as(u32, 1), get(&d, .queue_ready));
    // In use: its place stays.
    _ = set(&d, .device_low, 0x800);
    try testing.expectEqual(@as(u64, 0x400), d.queues[0].device);
    _ = set(&d, .status, 15);
    try testing.expect(d.isLive());
    try testing.expectEqual(Effect{ .notify = 0 }, set(&d, .queue_notify, 0));
    try testing.expectEqual(Effect.reset, set(&d, .status, 0));
    d.reset();
    try testing.expectEqual(@as(u32, 0), get(&d, .status) | get(&d, .queue_ready));
    try testing.expect(!d.isLive());
}

test "features that were not offered, and drivers of old, are refused" {
    for ([_]u64{ 4, feature_version_1 | 8, feature_version_1 | 1 << 40 }) |features| {
        var d = testDevice();
        negotiate(&d, features);
        try testing.expectEqual(@as(u32, 3), get(&d, .status));
        _ = set(&d, .status, 15);
        try testing.expect(!d.isLive());
    }
}

test "the configuration is read in any width, written where it may be, and its change is told" {
    var d = testDevice();
    negotiate(&d, feature_version_1);
    _ = set(&d, .status, 15);
    var ram: TestRam = .{};
    try testing.expectEqual(@as(u64, 0x11), d.read(0x100, 8));
    try testing.expectEqual(Effect.none, d.write(0x100, 4, 7, &ram));
    try testing.expectEqual(Effect.config_written, d.write(0x104, 4, 0x0102_0304, &ram));
    try testing.expectEqual(@as(u64, 0x0304_0000_0011), d.read(0x100, 6) & 0xffff_ffff_ffff);
    try testing.expectEqual(@as(u64, 0), d.read(0x108, 4));
    const generation = get(&d, .config_generation);
    d.setConfig(0, 99);
    try testing.expect(generation != get(&d, .config_generation));
    try testing.expectEqual(interrupt_config, get(&d, .interrupt_status));
    _ = set(&d, .interrupt_ack, interrupt_config);
    try testing.expectEqual(@as(u32, 0), get(&d, .interrupt_status));
    try testing.expectEqual(@as(u32, 99), d.getConfig(0));
}

test "a queue outside RAM breaks the device, until it is reset" {
    var d = testDevice();
    negotiate(&d, feature_version_1);
    _ = set(&d, .status, 15);
    _ = set(&d, .queue_size, 8);
    _ = set(&d, .descriptors_high, 1);
    const effect = set(&d, .queue_ready, 1);
    try testing.expectEqual(@as(u64, 1 << 32), effect.broken.fault.value);
    d.fail();
    try testing.expectEqual(@as(u32, 79), get(&d, .status));
    try testing.expectEqual(Effect.none, set(&d, .queue_notify, 0));
    // The driver cannot talk it away.
    _ = set(&d, .status, 15);
    try testing.expectEqual(@as(u32, 79), get(&d, .status));
    d.reset();
    try testing.expectEqual(@as(u32, 0), get(&d, .status));
}

test "hostile accesses of any width, offset and value change nothing that they may not" {
    var prng: std.Random.DefaultPrng = .init(0x6d6d_696f);
    const random = prng.random();
    var ram: TestRam = .{};
    var d = testDevice();
    const device = d.device;
    var seen: std.EnumSet(std.meta.Tag(Effect)) = .empty;
    for (0..200_000) |_| {
        const near = random.uintLessThan(u64, 0x110) & ~@as(u64, random.uintLessThan(u8, 4));
        const offset = if (random.uintLessThan(u8, 8) > 0) near else random.int(u64);
        const size = if (random.boolean()) 4 else random.uintLessThan(u32, 9);
        const value = if (random.boolean()) random.uintLessThan(u64, 16) else random.int(u64);
        if (random.boolean()) {
            _ = d.read(offset, size);
            continue;
        }
        const effect = d.write(offset, size, value, &ram);
        seen.insert(effect);
        switch (effect) {
            .reset => if (random.uintLessThan(u8, 8) == 0) {
                d.reset();
                negotiate(&d, feature_version_1);
                _ = set(&d, .status, 15);
            },
            .broken => d.fail(),
            else => {},
        }
        for (&d.queues, d.device.queue_sizes) |*q, most| {
            if (!q.is_ready) continue;
            var copy = q.*;
            try copy.check(&ram, @intCast(most));
        }
    }
    try testing.expectEqual(device.features, d.device.features);
    try testing.expectEqualSlices(u8, device.config[0..4], d.device.config[0..4]);
    try testing.expect(seen.contains(.reset) and seen.contains(.broken));
    try testing.expect(seen.contains(.notify) and seen.contains(.config_written));
}
