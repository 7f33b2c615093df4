//! One lane: the framed, sealed stream between this engine's shard and one peer, over one TCP
//! connection after another. Owned by the shard thread alone, so it has no locks; no call blocks
//! and none allocates after init.
//! Outgoing frames wait in a ring, in the clear, until the peer has acknowledged them; they are
//! sealed on their way to the socket. So a cut costs nothing but time: on the next connection, with
//! its own keys, each side says how many frames it has, and the other goes on from there. Every
//! frame carries an acknowledgement; one travels alone only after a pause or a lot of frames.
//! Incoming bytes land in one linear buffer in which every frame lies whole and is opened in place,
//! so a payload is a slice of it.
//! After PeerClosed, SystemCall or Refused the caller cuts the lane and adopts another connection;
//! after ProtocolViolated the peer itself is broken.

// Credit: the ring bounds what is queued and in flight together, and only acknowledgements of the
// peer's shard make room. Whoever asks (faults, posts of other threads) must see mayRequest() first
// and hold back while it is false. What answers (grants, acks, dones, patches) may use the whole
// ring: there are at most as many open transactions as there are faulting threads, all of them
// requests that were let in, so their answers fit into the part kept from requests (engine/link.zig
// checks the sum). Hence no answer ever waits for a request to be read, and the two ends cannot
// wait for each other.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("../base/sys.zig");
const frame = @import("frame.zig");
const seal = @import("seal.zig");

pub const Received = struct {
    kind: frame.Kind,
    /// Not aligned. Valid until the next receive().
    payload: []const u8,
};

pub const ConnectionError = error{
    PeerClosed,
    SystemCall,
    /// Bytes that the peer did not send so: this connection is worthless, the peer may be sound.
    Refused,
};
/// ProtocolViolated: the peer sealed what makes no sense.
pub const Error = ConnectionError || error{ProtocolViolated};

pub const Options = struct {
    /// A power of two: what may be queued and unacknowledged together.
    tx_bytes: usize = 8 << 20,
    /// Of those, what requests must leave free for answers.
    reserve_bytes: usize = 6 << 20,
    /// Sealed bytes on their way to the socket: 30 pages a system call.
    wire_bytes: usize = 128 << 10,
    /// At least one frame. 256 KiB drains a busy socket in few calls and still fits a core's cache.
    rx_bytes: usize = 256 << 10,
};

/// A connected socket and the keys that its handshake gave.
pub const Connection = struct {
    fd: i32,
    keys: seal.Keys,
};

/// Silence after which an acknowledgement goes alone. Long against a page's round trip, whose next
/// frame carries it for free; short against peer_timeout.
pub const ack_idle_ns = 20 * std.time.ns_per_ms;
/// Frames, or this part of the ring in bytes, after which it does not wait.
const ack_frames = 512;
const ack_ring_part = 16;
/// Kept free in the wire buffer, for an acknowledgement.
const control_bytes = frame.header_bytes + frame.tag_bytes;

pub const Counters = struct {
    messages_sent: u64 = 0,
    messages_received: u64 = 0,
    /// Bytes given to and taken from the socket, headers and tags included.
    bytes_sent: u64 = 0,
    bytes_received: u64 = 0,
    /// System calls that moved bytes.
    writes: u64 = 0,
    reads: u64 = 0,
    /// Times the socket took less than there was.
    blocked: u64 = 0,
    /// queue() calls refused for want of room.
    refused: u64 = 0,
    /// Times requests were held back: mayRequest() became false.
    held_back: u64 = 0,
    unacked_bytes_max: u64 = 0,
    /// Acknowledgements that travelled alone.
    acks_alone: u64 = 0,
    /// Connections adopted, the first included.
    connections: u64 = 0,
    /// Frames sent on an earlier connection too.
    resent: u64 = 0,
    /// Frames refused as changed, repeated or senseless.
    violations: u64 = 0,
    /// Frames of any kind that opened: the sign of life that counts.
    opened: u64 = 0,
};

const Phase = enum {
    /// No connection.
    down,
    /// Own resume queued, the peer's not yet here: nothing else is sent.
    resuming,
    up,
};

/// The system calls of a real socket, raw results; the simulator has others.
pub const Socket = struct {
    /// sendto, not write: only it can ask for no SIGPIPE, whose handling is our host's business.
    pub fn send(fd: i32, bytes: []const u8) usize {
        const flags = linux.MSG.NOSIGNAL | linux.MSG.DONTWAIT;
        return linux.sendto(fd, bytes.ptr, bytes.len, flags, null, 0);
    }

    pub fn receive(fd: i32, buffer: []u8) usize {
        const flags = linux.MSG.DONTWAIT;
        return linux.recvfrom(fd, buffer.ptr, buffer.len, flags, null, null);
    }

    pub fn close(fd: i32) void {
        sys.close(fd);
    }

    pub const prepare = prepareSocket;
};

pub const Lane = LaneOf(Socket);

pub fn LaneOf(comptime System: type) type {
    return struct {
        fd: i32 = -1,
        peer: u8,
        allocator: std.mem.Allocator,
        options: Options,
        phase: Phase = .down,
        keys: seal.Keys = undefined,

        /// Frames as frame.Header and payload, each in one piece: what does not fit before the end
        /// starts anew at the front. Free-running positions, their low bits index `tx`.
        tx: []u8,
        /// First unacknowledged frame, first not sealed on this connection, end.
        tx_head: u64 = 0,
        tx_sealed: u64 = 0,
        tx_tail: u64 = 0,
        /// The numbers of the frames at these three places.
        acked: u64 = 0,
        sealed: u64 = 0,
        tx_sequence: u64 = 0,
        /// The highest `sealed` ever: from here on nobody can have seen a frame.
        sealed_max: u64 = 0,
        is_held_back: bool = false,

        wire: []u8,
        wire_start: usize = 0,
        wire_end: usize = 0,

        rx: []u8,
        rx_start: usize = 0,
        rx_end: usize = 0,
        /// Frames taken so far: what acknowledgements say.
        rx_sequence: u64 = 0,
        /// Taken since the last acknowledgement left.
        owed_frames: u64 = 0,
        owed_bytes: u64 = 0,
        is_ack_due: bool = false,

        counters: Counters = .{},
        /// Set by the caller, with its own clock, when receive() brought something.
        last_heard_ns: u64 = 0,
        /// What next() refused, once it has returned Refused or ProtocolViolated.
        violation: ?frame.Violation = null,

        const Self = @This();

        /// Without a connection yet: frames may be queued all the same.
        pub fn init(allocator: std.mem.Allocator, peer: u8, options: Options) !Self {
            std.debug.assert(std.math.isPowerOfTwo(options.tx_bytes));
            std.debug.assert(options.tx_bytes - options.reserve_bytes >= 2 * frame.frame_max);
            std.debug.assert(options.wire_bytes >= frame.frame_max + control_bytes);
            std.debug.assert(options.rx_bytes >= frame.frame_max);
            const tx = try allocator.alloc(u8, options.tx_bytes);
            errdefer allocator.free(tx);
            const wire = try allocator.alloc(u8, options.wire_bytes);
            errdefer allocator.free(wire);
            return .{
                .peer = peer,
                .allocator = allocator,
                .options = options,
                .tx = tx,
                .wire = wire,
                .rx = try allocator.alloc(u8, options.rx_bytes),
            };
        }

        /// Closes the connection.
        pub fn deinit(self: *Self) void {
            self.cut();
            self.allocator.free(self.tx);
            self.allocator.free(self.wire);
            self.allocator.free(self.rx);
            self.* = undefined;
        }

        /// Goes on over a new connection, whose socket is the lane's from here, also if this fails.
        pub fn adopt(self: *Self, connection: Connection) sys.Error!void {
            self.cut();
            errdefer System.close(connection.fd);
            try System.prepare(connection.fd);
            self.fd = connection.fd;
            self.keys = connection.keys;
            self.phase = .resuming;
            self.counters.connections += 1;
            self.putControl(.@"resume", 0, std.mem.asBytes(&self.rx_sequence));
        }

        /// Gives the connection up. Whole frames in the buffer that next() has not returned are not
        /// acknowledged, so they come again.
        pub fn cut(self: *Self) void {
            if (self.phase == .down) return;
            System.close(self.fd);
            self.fd = -1;
            self.keys.wipe();
            self.phase = .down;
            self.violation = null;
            self.wire_start = 0;
            self.wire_end = 0;
            self.rx_start = 0;
            self.rx_end = 0;
        }

        /// Bytes that wait for the socket, headers included, tags of those not sealed yet left out.
        pub fn queued(self: *const Self) usize {
            return @intCast(self.tx_tail - self.tx_sealed + (self.wire_end - self.wire_start));
        }

        /// Bytes kept until the peer acknowledges them, sent or not.
        pub fn unacked(self: *const Self) usize {
            return @intCast(self.tx_tail - self.tx_head);
        }

        /// Whether to poll for POLLOUT.
        pub fn wantsOut(self: *const Self) bool {
            return switch (self.phase) {
                .down => false,
                .resuming => self.wire_start < self.wire_end,
                .up => self.queued() > 0,
            };
        }

        /// False: would block. Whatever is not an answer waits until takeRoomNotice().
        pub fn mayRequest(self: *Self) bool {
            const is_free = self.unacked() + 2 * frame.frame_max <=
                self.tx.len - self.options.reserve_bytes;
            if (!is_free and !self.is_held_back) {
                self.is_held_back = true;
                self.counters.held_back += 1;
            }
            return is_free;
        }

        /// True once when there is room again after mayRequest() was false. Room comes with
        /// acknowledgements, so with POLLIN: look after next() has returned null.
        pub fn takeRoomNotice(self: *Self) bool {
            if (!self.is_held_back or !self.mayRequest()) return false;
            self.is_held_back = false;
            return true;
        }

        /// Copies header and parts into the ring; flush() sends. A payload its kind does not allow
        /// is a bug here, not at the peer.
        pub fn queue(self: *Self, kind: u8, parts: []const []const u8) error{Full}!void {
            var length: usize = 0;
            for (parts) |part| length += part.len;
            std.debug.assert(frame.fits(kind, length));
            const size = frame.header_bytes + length;
            const left = self.tx.len - self.ringIndex(self.tx_tail);
            const padding = if (left < size) left else 0;
            if (self.unacked() + padding + size > self.tx.len) {
                self.counters.refused += 1;
                return error.Full;
            }
            if (padding >= frame.header_bytes) self.ringHeader(self.tx_tail).* = padding_header;
            var at = self.ringIndex(self.tx_tail + padding);
            const header: frame.Header = .{
                .length = @intCast(length),
                .kind = kind,
                .sequence = @truncate(self.tx_sequence),
            };
            @memcpy(self.tx[at..][0..frame.header_bytes], std.mem.asBytes(&header));
            at += frame.header_bytes;
            for (parts) |part| {
                @memcpy(self.tx[at..][0..part.len], part);
                at += part.len;
            }
            self.tx_tail += padding + size;
            self.tx_sequence += 1;
            self.counters.messages_sent += 1;
            self.counters.unacked_bytes_max = @max(self.counters.unacked_bytes_max, self.unacked());
        }

        /// Kind 0 is no frame: the rest of the ring is not used this time round.
        const padding_header: frame.Header = .{ .length = 0, .kind = 0, .sequence = 0 };

        fn ringIndex(self: *const Self, position: u64) usize {
            return @intCast(position & (self.tx.len - 1));
        }

        fn ringHeader(self: *Self, position: u64) *align(1) frame.Header {
            return @ptrCast(self.tx[self.ringIndex(position)..][0..frame.header_bytes]);
        }

        /// Where the frame that `position` stands before begins: there, or past the ring's unused
        /// end.
        fn frameAt(self: *Self, position: u64) u64 {
            const left = self.tx.len - self.ringIndex(position);
            if (left < frame.header_bytes) return position + left;
            return if (self.ringHeader(position).kind == 0) position + left else position;
        }

        /// Seals and writes what the socket takes. True: nothing is left. False: wait for POLLOUT,
        /// or for a connection.
        pub fn flush(self: *Self) ConnectionError!bool {
            if (self.phase == .down) return self.tx_sealed == self.tx_tail;
            while (true) {
                self.fillWire();
                if (self.wire_start == self.wire_end) return self.tx_sealed == self.tx_tail;
                const sent = try self.send(self.wire[self.wire_start..self.wire_end]) orelse {
                    self.counters.blocked += 1;
                    return false;
                };
                self.wire_start += sent;
                self.counters.bytes_sent += sent;
                self.counters.writes += 1;
            }
        }

        fn fillWire(self: *Self) void {
            if (self.wire_start == self.wire_end) {
                self.wire_start = 0;
                self.wire_end = 0;
            }
            if (self.phase != .up) return;
            while (self.tx_sealed < self.tx_tail) {
                const at = self.frameAt(self.tx_sealed);
                const header = self.ringHeader(at).*;
                const first = self.ringIndex(at) + frame.header_bytes;
                const payload = self.tx[first..][0..header.length];
                const size = frame.header_bytes + payload.len + frame.tag_bytes;
                if (self.wire_end + size + control_bytes > self.wire.len) return;
                self.put(header, payload);
                self.tx_sealed = at + frame.header_bytes + payload.len;
                self.sealed += 1;
                self.sealed_max = @max(self.sealed_max, self.sealed);
            }
            const is_much = self.owed_frames >= ack_frames or
                self.owed_bytes >= self.tx.len / ack_ring_part;
            if (!is_much and !self.is_ack_due) return;
            if (self.wire_end + control_bytes > self.wire.len) return;
            self.putControl(.ack, @truncate(self.sealed), &.{});
            self.counters.acks_alone += 1;
        }

        fn putControl(self: *Self, kind: frame.Kind, sequence: u32, payload: []const u8) void {
            self.put(.{
                .length = @intCast(payload.len),
                .kind = @backingInt(kind),
                .sequence = sequence,
            }, payload);
        }

        /// Seals a frame into the wire buffer, which has room for it. The acknowledgement is of
        /// now.
        fn put(self: *Self, unfinished: frame.Header, payload: []const u8) void {
            var header = unfinished;
            header.ack = @truncate(self.rx_sequence);
            const out = self.wire[self.wire_end..];
            const ad = out[0..frame.header_bytes];
            ad.* = std.mem.toBytes(header);
            const sealed_payload = out[frame.header_bytes..][0..payload.len];
            const tag = out[frame.header_bytes + payload.len ..][0..frame.tag_bytes];
            self.keys.tx.seal(sealed_payload, tag, payload, ad);
            self.wire_end += frame.header_bytes + payload.len + frame.tag_bytes;
            self.owed_frames = 0;
            self.owed_bytes = 0;
            self.is_ack_due = false;
        }

        /// When an acknowledgement must go alone, unless a frame takes it along before.
        pub fn ackDeadline(self: *const Self) ?u64 {
            if (self.owed_frames == 0 or self.phase != .up) return null;
            return self.last_heard_ns + ack_idle_ns;
        }

        /// Before flush(), with the caller's clock.
        pub fn onTime(self: *Self, now: u64) void {
            if (self.ackDeadline()) |deadline| self.is_ack_due = now >= deadline;
        }

        fn send(self: *Self, bytes: []const u8) ConnectionError!?usize {
            while (true) {
                const r = System.send(self.fd, bytes);
                switch (linux.errno(r)) {
                    .SUCCESS => return r,
                    .INTR => {},
                    .AGAIN => return null,
                    else => |e| return ended(e),
                }
            }
        }

        /// Reads once what is there, as far as the buffer has room; 0 = nothing there (or no room:
        /// take frames with next() first). What came before a close is delivered before PeerClosed.
        pub fn receive(self: *Self) ConnectionError!usize {
            if (self.phase == .down) return 0;
            self.compact();
            const free = self.rx[self.rx_end..];
            if (free.len == 0) return 0;
            while (true) {
                const r = System.receive(self.fd, free);
                switch (linux.errno(r)) {
                    .SUCCESS => {
                        if (r == 0) return error.PeerClosed;
                        self.rx_end += r;
                        self.counters.bytes_received += r;
                        self.counters.reads += 1;
                        return r;
                    },
                    .INTR => {},
                    .AGAIN => return 0,
                    else => |e| return ended(e),
                }
            }
        }

        /// Moves the unread rest (part of a frame, unless the caller left frames) to the front.
        fn compact(self: *Self) void {
            if (self.rx_start == 0) return;
            const rest = self.rx_end - self.rx_start;
            std.mem.copyForwards(u8, self.rx[0..rest], self.rx[self.rx_start..self.rx_end]);
            self.rx_start = 0;
            self.rx_end = rest;
        }

        /// The next whole frame for the caller, null when more bytes are needed. `violation` says
        /// what was wrong.
        pub fn next(self: *Self) error{ Refused, ProtocolViolated }!?Received {
            while (true) {
                if (self.violation) |_| return error.Refused;
                const unread = self.rx[self.rx_start..self.rx_end];
                if (unread.len < frame.header_bytes) return null;
                const header = std.mem.bytesToValue(frame.Header, unread[0..frame.header_bytes]);
                const due: u32 = if (self.phase == .up) @truncate(self.rx_sequence) else 0;
                // Before its payload has come: length is bounded from here on.
                if (frame.judge(header, due, self.phase == .up)) |violation| {
                    return self.refuse(violation);
                }
                const size = frame.header_bytes + @as(usize, header.length) + frame.tag_bytes;
                if (unread.len < size) return null;
                const payload = unread[frame.header_bytes..][0..header.length];
                const tag = unread[size - frame.tag_bytes ..][0..frame.tag_bytes].*;
                if (!self.keys.rx.open(payload, tag, unread[0..frame.header_bytes])) {
                    return self.refuse(.{ .what = .seal, .header = header, .expected = due });
                }
                self.counters.opened += 1;
                self.rx_start += size;
                const kind: frame.Kind = @fromBackingInt(header.kind);
                if (kind == .@"resume") {
                    try self.takeResume(header, std.mem.readInt(u64, payload[0..8], .little));
                    continue;
                }
                try self.takeAck(header);
                if (!kind.isNumbered()) continue;
                self.rx_sequence += 1;
                self.owed_frames += 1;
                self.owed_bytes += size;
                self.counters.messages_received += 1;
                return .{ .kind = kind, .payload = payload };
            }
        }

        fn refuse(self: *Self, violation: frame.Violation) error{Refused} {
            self.violation = violation;
            self.counters.violations += 1;
            return error.Refused;
        }

        fn broken(
            self: *Self,
            what: frame.Violation.What,
            header: frame.Header,
        ) error{ProtocolViolated} {
            self.violation = .{ .what = what, .header = header, .expected = @truncate(self.acked) };
            self.counters.violations += 1;
            return error.ProtocolViolated;
        }

        /// The peer has `received` frames: from there on they are sent, again or for the first
        /// time.
        fn takeResume(
            self: *Self,
            header: frame.Header,
            received: u64,
        ) error{ProtocolViolated}!void {
            if (received < self.acked or received > self.sealed_max) {
                return self.broken(.@"resume", header);
            }
            self.phase = .up;
            self.forget(received);
            self.tx_sealed = self.tx_head;
            self.sealed = received;
            self.counters.resent += self.sealed_max - received;
        }

        fn takeAck(self: *Self, header: frame.Header) error{ProtocolViolated}!void {
            const more = header.ack -% @as(u32, @truncate(self.acked));
            if (more > self.sealed - self.acked) return self.broken(.ack, header);
            if (more > 0) self.forget(self.acked + more);
        }

        /// Forgets frames below number `upto`, all of which are in the ring and have been sealed.
        fn forget(self: *Self, upto: u64) void {
            while (self.acked < upto) : (self.acked += 1) {
                const at = self.frameAt(self.tx_head);
                self.tx_head = at + frame.header_bytes + self.ringHeader(at).length;
            }
            if (self.tx_head != self.tx_tail) return;
            // Empty: back to the front, which is warm in the cache.
            self.tx_head = 0;
            self.tx_sealed = 0;
            self.tx_tail = 0;
        }

        /// What an error of this lane means, in words, for the report of a lost peer.
        pub fn explain(self: *const Self, err: Error, buffer: []u8) []const u8 {
            var w: std.Io.Writer = .fixed(buffer);
            const written = switch (err) {
                error.ProtocolViolated => if (self.violation) |violation|
                    w.print("it broke the lane's protocol: {f}", .{violation})
                else
                    w.writeAll("it broke the lane's protocol"),
                error.Refused => if (self.violation) |violation|
                    w.print("bytes on the lane were refused: {f}", .{violation})
                else
                    w.writeAll("bytes on the lane were refused"),
                error.PeerClosed => if (self.midFrame())
                    w.writeAll("it closed the connection in the middle of a frame")
                else
                    w.writeAll("it closed the connection"),
                error.SystemCall => w.print("socket failed, errno {d}", .{sys.last_errno}),
            };
            // A short buffer cuts the words; what is in it stays.
            written catch |e| std.debug.assert(e == error.WriteFailed);
            return w.buffered();
        }

        /// Whether the stream stopped inside a frame: after PeerClosed, the peer broke off in it.
        pub fn midFrame(self: *const Self) bool {
            return self.rx_end != self.rx_start;
        }
    };
}

fn ended(e: linux.E) error{ PeerClosed, SystemCall } {
    sys.last_errno = @backingInt(e);
    return switch (e) {
        // The connection is gone: reset, timed out by the kernel, or the peer's host unreachable.
        .PIPE, .CONNRESET, .TIMEDOUT, .HOSTUNREACH, .NETUNREACH, .HOSTDOWN, .NETDOWN => //
        error.PeerClosed,
        // By an administrator of this host (ss -K).
        .CONNABORTED => error.PeerClosed,
        else => error.SystemCall,
    };
}

/// Makes the socket fit for a lane. Without TCP_NODELAY a small frame waits for the last one's
/// acknowledgement (Nagle); TCP_QUICKACK has the first exchanges acknowledged at once, while the
/// congestion window is small. The kernel ends that by itself (tcp(7)), and it is not renewed: the
/// peer's next frame acknowledges for free, where a renewal after every read made a page's round
/// trip 28 us instead of 21 (loopback, 2-core VM, Nov 2026; bench_lane.zig).
fn prepareSocket(fd: i32) sys.Error!void {
    const status = try sys.check(linux.fcntl(fd, linux.F.GETFL, 0));
    const nonblocking: u32 = @bitCast(linux.O{ .NONBLOCK = true });
    _ = try sys.check(linux.fcntl(fd, linux.F.SETFL, status | nonblocking));
    var protocol: i32 = 0;
    var size: linux.socklen_t = @sizeOf(i32);
    const bytes = std.mem.asBytes(&protocol);
    _ = try sys.check(linux.getsockopt(fd, linux.SOL.SOCKET, linux.SO.PROTOCOL, bytes, &size));
    if (protocol != linux.IPPROTO.TCP) return;
    const on: i32 = 1;
    const on_bytes = std.mem.asBytes(&on);
    for ([_]u32{ linux.TCP.NODELAY, linux.TCP.QUICKACK }) |option| {
        const r = linux.setsockopt(fd, linux.IPPROTO.TCP, option, on_bytes, @sizeOf(i32));
        _ = try sys.check(r);
    }
}
