//! Who answers a port or MMIO access: the table TypeScript made (abi.BusRegion), and the devices of
//! this engine behind it. A device of another node, a device in TypeScript and an address nobody
//! owns are answers too; the vCPU thread acts on them.
//! Lock order: a device's lock, then the IOAPIC's; interrupts are posted with both released or
//! under the IOAPIC's only (posting is lock-free).

const std = @import("std");
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const Balloon = @import("balloon.zig").Balloon;
const Board = @import("board.zig").Board;

pub const Access = struct {
    kind: abi.IoKind,
    address: u64,
    size: u32,
    is_write: bool,
    value: u64,
};

pub const Answer = union(enum) {
    /// Completed here; the value read.
    done: u64,
    /// TypeScript completes it: device id.
    typescript: u32,
    /// The node that has the device completes it.
    remote: u32,
    /// The balloon's own thread completes it.
    balloon,
    /// Reads as ones, writes dropped.
    unclaimed,
};

pub const regions_max = 64;

pub const Bus = struct {
    node: u32,
    board: *Board,
    balloon: ?*Balloon = null,
    regions: [regions_max]abi.BusRegion = undefined,
    region_count: u32 = 0,
    /// Region index + 1 of every port, 0 where nobody lives.
    ports: [65536]u8 = @splat(0),

    pub const Error = error{ RegionInvalid, RegionsTooMany };

    pub fn add(self: *Bus, region: abi.BusRegion) Error!void {
        if (self.region_count == regions_max) return error.RegionsTooMany;
        _ = std.enums.fromInt(abi.BusTarget, region.target) orelse return error.RegionInvalid;
        if (region.len == 0 or region.node >= abi.nodes_max) return error.RegionInvalid;
        switch (std.enums.fromInt(abi.IoKind, region.kind) orelse return error.RegionInvalid) {
            .pio => {
                if (region.base + region.len > 65536) return error.RegionInvalid;
                for (self.ports[region.base..][0..region.len]) |*p| {
                    p.* = @intCast(self.region_count + 1);
                }
            },
            .mmio => {},
            else => return error.RegionInvalid,
        }
        self.regions[self.region_count] = region;
        self.region_count += 1;
    }

    pub fn clear(self: *Bus) void {
        self.region_count = 0;
        self.ports = @splat(0);
    }

    fn find(self: *const Bus, kind: abi.IoKind, address: u64) ?*const abi.BusRegion {
        if (kind == .pio) {
            const index = self.ports[@as(u16, @truncate(address))];
            return if (index == 0) null else &self.regions[index - 1];
        }
        for (self.regions[0..self.region_count]) |*r| {
            if (r.kind == @backingInt(abi.IoKind.mmio) and address -% r.base < r.len) return r;
        }
        return null;
    }

    /// Answers on this node where it can. Ports of adjacent devices that one wide access covers go
    /// to the first one, as on hardware behind one decoder.
    pub fn access(self: *Bus, a: Access) Answer {
        const region = self.find(a.kind, a.address) orelse return .unclaimed;
        const target: abi.BusTarget = @fromBackingInt(@intCast(region.target));
        if (target == .none) return .{ .done = ones(a.size) };
        // The PM timer reads every node's own synchronised clock: never worth a message.
        const everywhere = target == .pm_timer or target == .hypervisor_port;
        if (region.node != self.node and !everywhere) return .{ .remote = region.node };
        const offset = a.address - region.base;
        return switch (target) {
            .typescript => .{ .typescript = region.device },
            .uart => .{ .done = self.board.uartAccess(a, offset) },
            .rtc => .{ .done = self.board.rtcAccess(a, offset) },
            .pm_timer => .{ .done = self.board.pmTimerAccess(offset, a.size) },
            .ioapic => .{ .done = self.board.ioapicAccess(a, offset) },
            .register_file => .{ .done = self.board.registerAccess(a, region.device, offset) },
            .virtio => self.virtio(a, region.device, offset),
            // Needs the vCPU's registers: the vCPU thread answers it before it comes here.
            .hypervisor_port => .unclaimed,
            .none => unreachable,
        };
    }

    fn virtio(self: *Bus, a: Access, device: u32, offset: u64) Answer {
        const balloon = self.balloon orelse return .unclaimed;
        if (balloon.transport.device.device != device) return .unclaimed;
        return if (balloon.access(a, offset)) |value| .{ .done = value } else .balloon;
    }

    pub fn isHypervisorPort(self: *const Bus, port: u16) bool {
        const index = self.ports[port];
        if (index == 0) return false;
        return self.regions[index - 1].target == @backingInt(abi.BusTarget.hypervisor_port);
    }
};

/// What a bus without a driver reads: every bit of `size` bytes set.
pub fn ones(size: u32) u64 {
    return if (size >= 8) ~@as(u64, 0) else (@as(u64, 1) << @intCast(size * 8)) - 1;
}

test "ones has as many bits as the access" {
    try std.testing.expectEqual(@as(u64, 0xff), ones(1));
    try std.testing.expectEqual(@as(u64, 0xffff_ffff), ones(4));
    try std.testing.expectEqual(~@as(u64, 0), ones(8));
}
