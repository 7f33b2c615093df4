//! What makes several engines one machine besides memory: interrupts, end-of-interrupts and exits
//! for the vCPUs and devices of other nodes, control messages of TypeScript, and the common end.
//! All of it are small messages over the shard's lanes, so they keep their order with the pages.
//! receive() runs on the shard's thread: it posts, answers from devices and never blocks.

const std = @import("std");
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const Message = @import("../irq/message.zig").Message;
const Shard = @import("shard.zig").Shard;
const bus_file = @import("bus.zig");
const Access = bus_file.Access;
const Inbox = @import("inbox.zig").Inbox;
const freezer_file = @import("freezer.zig");
const Freezer = freezer_file.Freezer;
const steering_file = @import("steering.zig");
const Steering = steering_file.Steering;
const Engine = @import("../engine.zig").Engine;

const Op = enum(u8) {
    interrupt = 1,
    end_of_interrupt = 2,
    io_request = 3,
    io_answer = 4,
    control = 5,
    /// The only one that may be longer: words follow.
    stop = 6,
    freeze = 7,
    time = 8,
    _,
};

/// Everything a span message can say; the receiver checks each field it uses.
const Wire = extern struct {
    op: u8,
    size: u8 = 0,
    kind: u8 = 0,
    is_write: u8 = 0,
    vcpu: u16 = 0,
    pad: u16 = 0,
    a: u64 = 0,
    b: u64 = 0,
    message: Message = std.mem.zeroes(Message),
};

/// Words of a stop: with the message they fit one frame.
const stop_words_max = 200;

/// A forwarded exit that TypeScript of this node answers.
const Foreign = struct { busy: bool = false, node: u8 = 0, vcpu: u16 = 0 };

pub const Span = struct {
    engine: *Engine,
    shard: Shard,
    /// Of a compute node.
    freezer: ?Freezer,
    steering: ?Steering,
    foreign: [abi.io_slots_max - abi.vcpus_max]Foreign = @splat(.{}),
    foreign_lock: sys.Mutex = .{},

    pub fn init(engine: *Engine, shard: Shard) Span {
        const freezer: ?Freezer = switch (shard) {
            .pager => |pager| .init(engine, &pager.shell, @backingInt(Op.freeze)),
            .lender => null,
        };
        const steering: ?Steering = switch (shard) {
            .pager => |pager| .{
                .env = .{ .engine = engine, .shell = &pager.shell },
                .op = @backingInt(Op.time),
            },
            .lender => null,
        };
        return .{ .engine = engine, .shard = shard, .freezer = freezer, .steering = steering };
    }

    fn others(self: *const Span) u32 {
        const all = (@as(u32, 1) << @intCast(self.engine.config.node_count)) - 1;
        return all & ~(@as(u32, 1) << @intCast(self.engine.config.node));
    }

    fn send(self: *Span, nodes: u32, wire: Wire) void {
        self.shard.post(nodes, std.mem.asBytes(&wire));
    }

    /// Router.remote.
    pub fn sendInterrupt(context: *anyopaque, nodes: u32, message: Message) void {
        const self: *Span = @ptrCast(@alignCast(context));
        self.send(nodes, .{ .op = @backingInt(Op.interrupt), .message = message });
    }

    /// A level interrupt ended on this node: the IOAPIC is on node 0.
    pub fn sendEndOfInterrupt(self: *Span, vector: u8) void {
        self.send(1, .{ .op = @backingInt(Op.end_of_interrupt), .a = vector });
    }

    /// The vCPU's posted io slot goes to the node that has the device.
    pub fn forward(self: *Span, vcpu: u32, node: u32) void {
        const slot = &self.engine.shared.io_slots[vcpu];
        self.send(@as(u32, 1) << @intCast(node), .{
            .op = @backingInt(Op.io_request),
            .size = @intCast(slot.size),
            .kind = @intCast(slot.kind),
            .is_write = @intCast(slot.is_write),
            .vcpu = @intCast(vcpu),
            .a = slot.address,
            .b = slot.value,
        });
    }

    pub fn sendControl(self: *Span, nodes: u32, operation: u32, argument: u64) void {
        const wire: Wire = .{ .op = @backingInt(Op.control), .a = operation, .b = argument };
        self.send(nodes & self.others(), wire);
    }

    /// Every engine of the VM stops for the same reason. The shard itself says it past whatever
    /// waits for page-table entries, with words: the node that these wait for may be the lost one.
    pub fn sendStop(self: *Span, reason: abi.StopReason, detail: u64, words: []const u8) void {
        const wire: Wire = .{ .op = @backingInt(Op.stop), .a = @backingInt(reason), .b = detail };
        if (!self.shard.isCurrent()) return self.send(self.others(), wire);
        const cut = words[0..@min(words.len, stop_words_max)];
        self.shard.sendAtOnce(self.others(), &.{ std.mem.asBytes(&wire), cut });
    }

    /// Pager.Handler.receive.
    pub fn receive(context: *anyopaque, from: u8, payload: []const u8) void {
        const self: *Span = @ptrCast(@alignCast(context));
        if (payload.len < @sizeOf(Wire)) return self.hostile(from, "message too short");
        const head = payload[0..@sizeOf(Wire)];
        const wire = std.mem.bytesToValue(Wire, head);
        const op: Op = @fromBackingInt(@intCast(wire.op));
        if (payload.len > head.len and op != .stop) return self.hostile(from, "message too long");
        switch (op) {
            .interrupt => {
                if (!wire.message.valid()) return self.hostile(from, "bad interrupt message");
                self.engine.router.deliverFromPeer(wire.message);
            },
            .end_of_interrupt => self.engine.board.endOfInterrupt(@truncate(wire.a)),
            .io_request => self.request(from, wire),
            .io_answer => self.engine.completeIo(wire.vcpu, wire.b) catch {
                self.hostile(from, "answer to a question nobody asked");
            },
            .control => self.engine.events.simple(.control, 0, from, wire.a, wire.b),
            .stop => self.stopped(from, wire, payload[head.len..]),
            .freeze => {
                const message = std.mem.bytesToValue(freezer_file.Wire, head);
                if (self.freezer) |*freezer| return freezer.receive(from, message);
                self.hostile(from, "a memory node has no guest to freeze");
            },
            .time => self.heardTime(from, std.mem.bytesToValue(steering_file.Wire, head)),
            _ => self.hostile(from, "unknown operation"),
        }
    }

    fn heardTime(self: *Span, from: u8, message: steering_file.Wire) void {
        const broken: ?[]const u8 = if (self.steering) |*steering|
            steering.receive(from, message, self.freezer.?.machine.is_frozen)
        else
            "a memory node has no clock";
        if (broken) |why| self.hostile(from, why);
    }

    fn stopped(self: *Span, from: u8, wire: Wire, words: []const u8) void {
        const reason = std.enums.fromInt(abi.StopReason, wire.a) orelse .vcpu_lost;
        var buffer: [stop_words_max + 32]u8 = undefined;
        var w: std.Io.Writer = .fixed(&buffer);
        if (words.len > 0) {
            const cut = words[0..@min(words.len, stop_words_max)];
            w.print("{s} (told by node {d})", .{ cut, from }) catch unreachable;
        }
        _ = self.engine.stopLocally(reason, 0xffff_ffff, wire.b, w.buffered());
    }

    /// An authenticated peer that talks nonsense is a broken engine: the VM cannot be trusted
    /// further.
    pub fn hostile(self: *Span, from: u8, why: []const u8) void {
        self.stopFor(.vcpu_lost, from, "node {d} broke the protocol: {s}", .{ from, why });
    }

    fn stopFor(
        self: *Span,
        reason: abi.StopReason,
        detail: u64,
        comptime format: []const u8,
        arguments: anytype,
    ) void {
        var buffer: [stop_words_max]u8 = undefined;
        var w: std.Io.Writer = .fixed(&buffer);
        // A full buffer cuts the words; what is in it stays.
        w.print(format, arguments) catch |e| std.debug.assert(e == error.WriteFailed);
        self.engine.stopTelling(reason, 0xffff_ffff, detail, w.buffered());
    }

    fn request(self: *Span, from: u8, wire: Wire) void {
        const size_good = wire.size == 1 or wire.size == 2 or wire.size == 4 or wire.size == 8;
        if (!size_good or wire.kind > 1 or wire.vcpu >= abi.vcpus_max) {
            return self.hostile(from, "bad forwarded exit");
        }
        const access: Access = .{
            .kind = @fromBackingInt(@intCast(wire.kind)),
            .address = wire.a,
            .size = wire.size,
            .is_write = wire.is_write != 0,
            .value = wire.b,
        };
        switch (self.engine.bus.access(access)) {
            .done => |value| self.answer(from, wire.vcpu, value),
            .typescript => |device| {
                const slot = self.postForeign(from, wire, device) orelse return;
                self.engine.events.simple(.io_request, slot, wire.a, 0, 0);
            },
            .balloon => {
                const slot = self.postForeign(from, wire, 0) orelse return;
                self.engine.balloon.?.waitFor(slot);
            },
            // The peer's table sent it here and ours says elsewhere: answer as an empty bus does.
            .remote, .unclaimed => self.answer(from, wire.vcpu, bus_file.ones(wire.size)),
        }
    }

    fn answer(self: *Span, node: u8, vcpu: u16, value: u64) void {
        const wire: Wire = .{ .op = @backingInt(Op.io_answer), .vcpu = vcpu, .b = value };
        self.send(@as(u32, 1) << @intCast(node), wire);
    }

    /// The slot in which it waits for whoever completes it; null: the peer is broken.
    fn postForeign(self: *Span, from: u8, wire: Wire, device: u32) ?u32 {
        const index = self.reserve(from, wire.vcpu) orelse {
            self.hostile(from, "more forwarded exits than vCPUs");
            return null;
        };
        const slot = &self.engine.shared.io_slots[abi.vcpus_max + index];
        slot.kind = wire.kind;
        slot.size = wire.size;
        slot.is_write = wire.is_write;
        slot.address = wire.a;
        slot.value = wire.b;
        slot.device = device;
        slot.sequence +%= 1;
        // Release: TypeScript sees the fields before the state.
        @atomicStore(u32, &slot.state, @backingInt(abi.IoState.posted), .release);
        return abi.vcpus_max + index;
    }

    fn reserve(self: *Span, node: u8, vcpu: u16) ?u32 {
        self.foreign_lock.lock();
        defer self.foreign_lock.unlock();
        for (&self.foreign, 0..) |*f, i| {
            if (f.busy) continue;
            f.* = .{ .busy = true, .node = node, .vcpu = vcpu };
            return @intCast(i);
        }
        return null;
    }

    /// A forwarded exit is answered (JavaScript thread, or the balloon's).
    pub fn completeForeign(self: *Span, index: u32, value: u64) error{StateWrong}!void {
        self.foreign_lock.lock();
        const f = self.foreign[index];
        self.foreign[index].busy = false;
        self.foreign_lock.unlock();
        if (!f.busy) return error.StateWrong;
        const slot = &self.engine.shared.io_slots[abi.vcpus_max + index];
        @atomicStore(u32, &slot.state, @backingInt(abi.IoState.idle), .release);
        self.answer(f.node, f.vcpu, value);
    }

    /// Pager.Handler.lost.
    pub fn lost(context: *anyopaque, node: u8, why: []const u8) void {
        const self: *Span = @ptrCast(@alignCast(context));
        if (self.engine.stopping()) return;
        // Who leaves knows.
        if (!self.engine.isLeaving()) self.laneNotice(node, "lost", why);
        self.engine.events.simple(.peer, 0, node, @backingInt(abi.PeerState.dead), 0);
        // No vCPU went with a memory node; whether pages did, their homes know.
        if (self.engine.isMemoryNode(node)) return;
        if (self.engine.isMemoryNode(self.engine.config.node)) return self.homeLost(node, why);
        self.stopFor(.vcpu_lost, node, "node {d}: {s}", .{ node, why });
    }

    /// On a memory node, which decides nothing: the home may be well, only cut off from here, and
    /// has other copies then; or it is dead, which others find out. With the last one it ends.
    fn homeLost(self: *Span, node: u8, why: []const u8) void {
        for (0..self.engine.config.node_count) |other| {
            const is_there = !self.shard.lanes().isLost(@intCast(other));
            if (is_there and !self.engine.isMemoryNode(@intCast(other))) return;
        }
        const reason: abi.StopReason = if (self.engine.isLeaving()) .requested else .vcpu_lost;
        self.stopFor(reason, node, "node {d}: {s}", .{ node, why });
    }

    /// Pager.Handler.page_lost: the other engines end with the same words before this one does.
    pub fn pageLost(context: *anyopaque, gpa: u64, why: []const u8) void {
        const self: *Span = @ptrCast(@alignCast(context));
        const node = self.engine.config.node;
        self.stopFor(.page_lost, gpa, "page 0x{x} on node {d}: {s}", .{ gpa, node, why });
        self.shard.lanes().flush();
    }

    /// Pager.Handler.on_time.
    pub fn onTime(context: *anyopaque, now: u64) void {
        const self: *Span = @ptrCast(@alignCast(context));
        const freezer = if (self.freezer) |*f| f else return;
        freezer.onTime(now);
        self.steering.?.onTime(now, freezer.machine.is_frozen);
    }

    /// Pager.Handler.noticed.
    pub fn noticed(context: *anyopaque, node: u8, what: []const u8) void {
        const self: *Span = @ptrCast(@alignCast(context));
        if (!self.engine.stopping()) self.laneNotice(node, "lane", what);
    }

    fn laneNotice(self: *Span, node: u8, what: []const u8, why: []const u8) void {
        var buffer: [280]u8 = undefined;
        const text = std.fmt.bufPrint(&buffer, "node {d} {s}: {s}", .{ node, what, why });
        self.engine.events.notice(text catch &buffer);
    }

    /// Pager.Handler.inboxes.
    pub fn inboxAt(context: *anyopaque, index: usize) ?*const Inbox {
        const self: *Span = @ptrCast(@alignCast(context));
        const vcpus = self.engine.vcpus;
        if (index < vcpus.len) return &vcpus[index].inbox;
        const balloon = self.engine.balloon orelse return null;
        return if (index == vcpus.len) &balloon.inbox else null;
    }

    /// Pager.Handler.discarded.
    pub fn discarded(context: *anyopaque) void {
        const self: *Span = @ptrCast(@alignCast(context));
        self.engine.balloon.?.discarded();
    }

    /// Pager.Handler.settled.
    pub fn settled(context: *anyopaque) void {
        const self: *Span = @ptrCast(@alignCast(context));
        self.engine.events.simple(.settled, 0, 0, 0, 0);
    }

    /// Pager.Handler.reset_done.
    pub fn resetDone(context: *anyopaque) void {
        const self: *Span = @ptrCast(@alignCast(context));
        self.engine.events.simple(.reset_done, 0, 0, 0, 0);
    }
};

comptime {
    std.debug.assert(@sizeOf(Wire) == 40);
    const frame = @import("../transport/frame.zig");
    std.debug.assert(@sizeOf(Wire) + stop_words_max <= frame.span_max);
}
