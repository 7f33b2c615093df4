//! One lane: the framed byte stream between this engine's shard and one peer. Owned by the shard
//! thread alone, so it has no locks; no call blocks and none allocates after init.
//! Outgoing frames wait in a fixed ring: a full ring refuses (`Full`) and the caller holds its
//! thread back; nothing is dropped and nothing grows. Incoming bytes land in one linear buffer in
//! which every frame lies whole, so a payload is a slice of it.
//! A lane that has reported PeerClosed or ProtocolViolated is over: what comes later is noise.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("../base/sys.zig");
const frame = @import("frame.zig");

pub const Received = struct {
    kind: frame.Kind,
    /// Not aligned. Valid until the next receive().
    payload: []const u8,
};

pub const Error = error{ PeerClosed, SystemCall, ProtocolViolated };

pub const Options = struct {
    /// A power of two. 8 MiB is 2000 page grants: more than all vCPUs of a node can have in flight.
    tx_bytes: usize = 8 << 20,
    /// At least one frame. 256 KiB drains a busy socket in few calls and still fits a core's cache.
    rx_bytes: usize = 256 << 10,
};

pub const Counters = struct {
    messages_sent: u64 = 0,
    messages_received: u64 = 0,
    /// Bytes given to and taken from the socket, headers included.
    bytes_sent: u64 = 0,
    bytes_received: u64 = 0,
    /// System calls that moved bytes.
    writes: u64 = 0,
    reads: u64 = 0,
    /// Times the socket took less than there was.
    blocked: u64 = 0,
    /// queue() calls refused for want of room.
    refused: u64 = 0,
    queued_bytes_max: u64 = 0,
};

pub const Lane = struct {
    fd: i32,
    peer: u8,
    allocator: std.mem.Allocator,

    tx: []u8,
    /// Bytes ever queued and ever taken by the socket; their low bits index `tx`.
    tx_tail: u64 = 0,
    tx_head: u64 = 0,
    tx_sequence: u64 = 0,

    rx: []u8,
    rx_start: usize = 0,
    rx_end: usize = 0,
    rx_sequence: u64 = 0,

    counters: Counters = .{},
    /// Set by the caller, with its own clock, when receive() brought something.
    last_heard_ns: u64 = 0,
    /// What next() refused, once it has returned ProtocolViolated.
    violation: ?frame.Violation = null,

    /// `fd` is connected and authenticated; the lane owns it from here, also if this fails.
    pub fn init(allocator: std.mem.Allocator, fd: i32, peer: u8) !Lane {
        return initSized(allocator, fd, peer, .{});
    }

    pub fn initSized(allocator: std.mem.Allocator, fd: i32, peer: u8, options: Options) !Lane {
        std.debug.assert(std.math.isPowerOfTwo(options.tx_bytes));
        std.debug.assert(options.tx_bytes >= frame.frame_max);
        std.debug.assert(options.rx_bytes >= frame.frame_max);
        errdefer sys.close(fd);
        try prepare(fd);
        const tx = try allocator.alloc(u8, options.tx_bytes);
        errdefer allocator.free(tx);
        const rx = try allocator.alloc(u8, options.rx_bytes);
        return .{
            .fd = fd,
            .peer = peer,
            .allocator = allocator,
            .tx = tx,
            .rx = rx,
        };
    }

    /// Closes the connection.
    pub fn deinit(self: *Lane) void {
        sys.close(self.fd);
        self.allocator.free(self.tx);
        self.allocator.free(self.rx);
        self.* = undefined;
    }

    /// Bytes that wait for the socket.
    pub fn queued(self: *const Lane) usize {
        return @intCast(self.tx_tail - self.tx_head);
    }

    /// Room in the ring, headers included.
    pub fn room(self: *const Lane) usize {
        return self.tx.len - self.queued();
    }

    /// Copies header and parts into the ring; flush() sends. A payload its kind does not allow is a
    /// bug here, not at the peer.
    pub fn queue(self: *Lane, kind: u8, parts: []const []const u8) error{Full}!void {
        var length: usize = 0;
        for (parts) |part| length += part.len;
        std.debug.assert(frame.fits(kind, length));
        if (self.room() < frame.header_bytes + length) {
            self.counters.refused += 1;
            return error.Full;
        }
        const header: frame.Header = .{
            .length = @intCast(length),
            .kind = kind,
            .sequence = self.tx_sequence,
        };
        self.append(std.mem.asBytes(&header));
        for (parts) |part| self.append(part);
        self.tx_sequence += 1;
        self.counters.messages_sent += 1;
        self.counters.queued_bytes_max = @max(self.counters.queued_bytes_max, self.queued());
    }

    fn append(self: *Lane, bytes: []const u8) void {
        const at: usize = @intCast(self.tx_tail & (self.tx.len - 1));
        const first = @min(bytes.len, self.tx.len - at);
        @memcpy(self.tx[at..][0..first], bytes[0..first]);
        @memcpy(self.tx[0 .. bytes.len - first], bytes[first..]);
        self.tx_tail += bytes.len;
    }

    /// Writes what the socket takes. True: the ring is empty. False: wait for POLLOUT.
    pub fn flush(self: *Lane) error{ PeerClosed, SystemCall }!bool {
        while (self.queued() > 0) {
            const at: usize = @intCast(self.tx_head & (self.tx.len - 1));
            const first = @min(self.queued(), self.tx.len - at);
            const rest = self.queued() - first;
            const parts = [2]std.posix.iovec_const{
                .{ .base = self.tx.ptr + at, .len = first },
                .{ .base = self.tx.ptr, .len = rest },
            };
            const count: usize = if (rest == 0) 1 else 2;
            const sent = try self.send(parts[0..count]) orelse {
                self.counters.blocked += 1;
                return false;
            };
            self.tx_head += sent;
            self.counters.bytes_sent += sent;
            self.counters.writes += 1;
        }
        return true;
    }

    /// sendmsg, not writev: only it can ask for no SIGPIPE, whose handling is our host's business.
    fn send(
        self: *Lane,
        parts: []const std.posix.iovec_const,
    ) error{ PeerClosed, SystemCall }!?usize {
        const message: linux.msghdr_const = .{
            .name = null,
            .namelen = 0,
            .iov = parts.ptr,
            .iovlen = parts.len,
            .control = null,
            .controllen = 0,
            .flags = 0,
        };
        while (true) {
            const r = linux.sendmsg(self.fd, &message, linux.MSG.NOSIGNAL | linux.MSG.DONTWAIT);
            switch (linux.errno(r)) {
                .SUCCESS => return r,
                .INTR => {},
                .AGAIN => return null,
                else => |e| return ended(e),
            }
        }
    }

    /// Reads once what is there, as far as the buffer has room; 0 = nothing there (or no room: take
    /// frames with next() first). What came before a close is delivered before PeerClosed.
    pub fn receive(self: *Lane) error{ PeerClosed, SystemCall }!usize {
        self.compact();
        const free = self.rx[self.rx_end..];
        if (free.len == 0) return 0;
        while (true) {
            const flags = linux.MSG.DONTWAIT;
            const r = linux.recvfrom(self.fd, free.ptr, free.len, flags, null, null);
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
    fn compact(self: *Lane) void {
        if (self.rx_start == 0) return;
        const rest = self.rx_end - self.rx_start;
        std.mem.copyForwards(u8, self.rx[0..rest], self.rx[self.rx_start..self.rx_end]);
        self.rx_start = 0;
        self.rx_end = rest;
    }

    /// The next whole frame, null when more bytes are needed. `violation` says what was wrong.
    pub fn next(self: *Lane) error{ProtocolViolated}!?Received {
        const unread = self.rx[self.rx_start..self.rx_end];
        if (unread.len < frame.header_bytes) return null;
        const header = std.mem.bytesToValue(frame.Header, unread[0..frame.header_bytes]);
        if (frame.judge(header, self.rx_sequence)) |violation| {
            self.violation = violation;
            return error.ProtocolViolated;
        }
        const size = frame.header_bytes + @as(usize, header.length);
        if (unread.len < size) return null;
        self.rx_start += size;
        self.rx_sequence += 1;
        self.counters.messages_received += 1;
        const kind: frame.Kind = @fromBackingInt(header.kind);
        return .{ .kind = kind, .payload = unread[frame.header_bytes..size] };
    }

    /// What an error of this lane means, in words, for the report of a lost peer.
    pub fn explain(self: *const Lane, err: Error, buffer: []u8) []const u8 {
        var w: std.Io.Writer = .fixed(buffer);
        const written = switch (err) {
            error.ProtocolViolated => if (self.violation) |violation|
                w.print("it broke the lane's protocol: {f}", .{violation})
            else
                w.writeAll("it broke the lane's protocol"),
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
    pub fn midFrame(self: *const Lane) bool {
        return self.rx_end != self.rx_start;
    }
};

fn ended(e: linux.E) error{ PeerClosed, SystemCall } {
    sys.last_errno = @backingInt(e);
    return switch (e) {
        // The connection is gone: reset, timed out by the kernel, or the peer's host unreachable.
        .PIPE, .CONNRESET, .TIMEDOUT, .HOSTUNREACH, .NETUNREACH, .HOSTDOWN, .NETDOWN => //
        error.PeerClosed,
        else => error.SystemCall,
    };
}

/// Makes the socket fit for a lane. Without TCP_NODELAY a small frame waits for the last one's
/// acknowledgement (Nagle); TCP_QUICKACK has the first exchanges acknowledged at once, while the
/// congestion window is small. The kernel ends that by itself (tcp(7)), and it is not renewed: the
/// peer's next frame acknowledges for free, where a renewal after every read made a page's round
/// trip 28 us instead of 21 (loopback, 2-core VM, Nov 2026; bench_lane.zig).
fn prepare(fd: i32) sys.Error!void {
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
