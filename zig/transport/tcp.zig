//! Addresses and connections of lanes: "192.0.2.1:7000", "[2001:db8::1]:7000" or "unix:/path".
//! Literals only: names are resolved by the control plane, where a failure can be explained.
//! Every descriptor made here is close-on-exec and non-blocking; waiting is done by poll with a
//! deadline of the monotonic clock. Connecting is patient, since a peer may start later than we do.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("../base/sys.zig");

const socket_flags = linux.SOCK.CLOEXEC | linux.SOCK.NONBLOCK;
/// Pause between attempts to reach a peer that is not there yet.
pub const retry_ns = 50 * std.time.ns_per_ms;
/// A SYN into the void is given up and sent anew after this, sooner than the kernel would.
pub const attempt_ns = 2 * std.time.ns_per_s;

pub const WaitError = error{ TimedOut, SystemCall };

pub const ParseError = error{ MissingPort, InvalidPort, InvalidHost, InvalidPath };

/// What to tell whoever wrote the address.
pub fn explain(err: ParseError) []const u8 {
    return switch (err) {
        error.MissingPort => "no port: write host:port, or [host]:port for IPv6",
        error.InvalidPort => "the port is not a number from 0 to 65535",
        error.InvalidHost => "the host is not an IPv4 or IPv6 literal",
        error.InvalidPath => "the path after unix: must have 1 to 107 bytes",
    };
}

pub const Address = union(enum) {
    ip4: linux.sockaddr.in,
    ip6: linux.sockaddr.in6,
    unix: linux.sockaddr.un,

    pub fn parse(text: []const u8) ParseError!Address {
        if (std.mem.startsWith(u8, text, "unix:")) return parsePath(text["unix:".len..]);
        const colon = std.mem.findScalarLast(u8, text, ':') orelse return error.MissingPort;
        const host = text[0..colon];
        const port = try parsePort(text[colon + 1 ..]);
        if (host.len >= 2 and host[0] == '[') {
            if (host[host.len - 1] != ']') return error.MissingPort;
            return parseIp6(host[1 .. host.len - 1], port);
        }
        // "2001:db8::1" would lose its last group to the port.
        if (std.mem.findScalar(u8, host, ':') != null) return error.MissingPort;
        const ip = std.Io.net.Ip4Address.parse(host, port) catch return error.InvalidHost;
        return .{ .ip4 = .{
            .port = std.mem.nativeToBig(u16, port),
            .addr = @bitCast(ip.bytes),
        } };
    }

    fn parsePort(text: []const u8) ParseError!u16 {
        if (text.len == 0) return error.MissingPort;
        for (text) |c| if (!std.ascii.isDigit(c)) return error.InvalidPort;
        return std.fmt.parseUnsigned(u16, text, 10) catch error.InvalidPort;
    }

    /// A scope ("%2") is a number: names of interfaces belong to the host that has them.
    fn parseIp6(text: []const u8, port: u16) ParseError!Address {
        const percent = std.mem.findScalar(u8, text, '%') orelse text.len;
        const ip = std.Io.net.Ip6Address.parse(text[0..percent], port) catch
            return error.InvalidHost;
        const scope: u32 = if (percent == text.len)
            0
        else
            std.fmt.parseUnsigned(u32, text[percent + 1 ..], 10) catch return error.InvalidHost;
        return .{ .ip6 = .{
            .port = std.mem.nativeToBig(u16, port),
            .flowinfo = 0,
            .addr = ip.bytes,
            .scope_id = scope,
        } };
    }

    fn parsePath(path: []const u8) ParseError!Address {
        var un: linux.sockaddr.un = .{ .path = @splat(0) };
        // One byte stays for the terminator (unix(7)); a zero inside would cut the path short.
        if (path.len == 0 or path.len >= un.path.len) return error.InvalidPath;
        if (std.mem.findScalar(u8, path, 0) != null) return error.InvalidPath;
        @memcpy(un.path[0..path.len], path);
        return .{ .unix = un };
    }

    pub fn portNumber(self: Address) u16 {
        return switch (self) {
            .ip4 => |a| std.mem.bigToNative(u16, a.port),
            .ip6 => |a| std.mem.bigToNative(u16, a.port),
            .unix => 0,
        };
    }

    fn sockaddr(self: *const Address) *const linux.sockaddr {
        return switch (self.*) {
            inline else => |*a| @ptrCast(a),
        };
    }

    fn size(self: Address) linux.socklen_t {
        return switch (self) {
            inline else => |a| @sizeOf(@TypeOf(a)),
        };
    }

    fn family(self: Address) u32 {
        return switch (self) {
            inline else => |a| a.family,
        };
    }

    pub fn format(self: Address, w: *std.Io.Writer) std.Io.Writer.Error!void {
        switch (self) {
            .ip4 => |a| {
                const b: [4]u8 = @bitCast(a.addr);
                try w.print("{d}.{d}.{d}.{d}:{d}", .{ b[0], b[1], b[2], b[3], self.portNumber() });
            },
            .ip6 => |a| {
                const text: std.Io.net.Ip6Address.Unresolved = .{
                    .bytes = a.addr,
                    .interface_name = null,
                };
                try w.print("[{f}", .{text});
                if (a.scope_id != 0) try w.print("%{d}", .{a.scope_id});
                try w.print("]:{d}", .{self.portNumber()});
            },
            .unix => |a| try w.print("unix:{s}", .{std.mem.sliceTo(&a.path, 0)}),
        }
    }

    /// Room for any address the kernel writes.
    const Storage = struct {
        bytes: linux.sockaddr.storage = .{ .family = 0, .padding = @splat(0) },
        length: linux.socklen_t = @sizeOf(linux.sockaddr.storage),

        /// Null for a family that is none of ours.
        fn address(self: *Storage) ?Address {
            return switch (self.bytes.family) {
                linux.AF.INET => .{ .ip4 = @as(*linux.sockaddr.in, @ptrCast(&self.bytes)).* },
                linux.AF.INET6 => .{ .ip6 = @as(*linux.sockaddr.in6, @ptrCast(&self.bytes)).* },
                linux.AF.UNIX => .{ .unix = @as(*linux.sockaddr.un, @ptrCast(&self.bytes)).* },
                else => null,
            };
        }
    };

    /// The address of a socket's own or far end.
    fn ofSocket(fd: i32, comptime query: anytype) ?Address {
        var storage: Storage = .{};
        const r = query(fd, @ptrCast(&storage.bytes), &storage.length);
        return if (linux.errno(r) == .SUCCESS) storage.address() else null;
    }

    pub fn local(fd: i32) ?Address {
        return ofSocket(fd, linux.getsockname);
    }

    pub fn remote(fd: i32) ?Address {
        return ofSocket(fd, linux.getpeername);
    }
};

pub const Listener = struct {
    fd: i32,
    /// The port bound, also when 0 was asked for; 0 for a path.
    port: u16,
};

pub fn listen(address: Address) sys.Error!Listener {
    const fd = try open(address);
    errdefer sys.close(fd);
    const on: i32 = 1;
    const bytes = std.mem.asBytes(&on);
    const level = linux.SOL.SOCKET;
    _ = try sys.check(linux.setsockopt(fd, level, linux.SO.REUSEADDR, bytes, @sizeOf(i32)));
    const bound = linux.bind(fd, address.sockaddr(), address.size());
    if (linux.errno(bound) == .ADDRINUSE and address == .unix and isStale(address)) {
        _ = linux.unlink(@ptrCast(&address.unix.path));
        _ = try sys.check(linux.bind(fd, address.sockaddr(), address.size()));
    } else _ = try sys.check(bound);
    // A full queue makes peers wait for a second SYN: room for a crowd of strangers before them.
    _ = try sys.check(linux.listen(fd, 128));
    const own = Address.local(fd) orelse address;
    return .{ .fd = fd, .port = own.portNumber() };
}

/// Whether nobody listens on a socket file that is there: left behind by an engine that is gone.
fn isStale(address: Address) bool {
    const fd = open(address) catch return false;
    defer sys.close(fd);
    const r = linux.connect(fd, address.sockaddr(), address.size());
    return linux.errno(r) == .CONNREFUSED;
}

fn open(address: Address) sys.Error!i32 {
    const kind = linux.SOCK.STREAM | socket_flags;
    return @intCast(try sys.check(linux.socket(address.family(), kind, 0)));
}

pub const Attempt = union(enum) {
    connected: i32,
    /// Wait for POLLOUT, then finish().
    pending: i32,
    /// The peer is not there yet: try again after retry_ns.
    absent: linux.E,
};

/// Begins to connect. error.SystemCall = waiting will not help (sys.last_errno).
pub fn begin(address: Address) sys.Error!Attempt {
    const fd = try open(address);
    const r = linux.connect(fd, address.sockaddr(), address.size());
    return switch (linux.errno(r)) {
        .SUCCESS => settled(fd),
        // Interrupted or not, a non-blocking connect goes on by itself (connect(2)).
        .INPROGRESS, .INTR => .{ .pending = fd },
        else => |e| failed(fd, e),
    };
}

/// After POLLOUT (or POLLERR) on a pending attempt.
pub fn finish(fd: i32) sys.Error!Attempt {
    var code: i32 = 0;
    var size: linux.socklen_t = @sizeOf(i32);
    const bytes = std.mem.asBytes(&code);
    const r = linux.getsockopt(fd, linux.SOL.SOCKET, linux.SO.ERROR, bytes, &size);
    if (linux.errno(r) != .SUCCESS) return failed(fd, linux.errno(r));
    if (code != 0) return failed(fd, @fromBackingInt(@intCast(code)));
    return settled(fd);
}

/// Trying a port of the ephemeral range on the own host again and again meets, sooner or later, a
/// socket that was given just that port and so connects to itself.
fn settled(fd: i32) Attempt {
    const near = Address.local(fd) orelse return .{ .connected = fd };
    const far = Address.remote(fd) orelse return .{ .connected = fd };
    const is_self = switch (near) {
        .ip4 => |a| far == .ip4 and far.ip4.port == a.port and far.ip4.addr == a.addr,
        .ip6 => |a| far == .ip6 and far.ip6.port == a.port and
            std.mem.eql(u8, &far.ip6.addr, &a.addr),
        .unix => false,
    };
    if (!is_self) return .{ .connected = fd };
    sys.close(fd);
    return .{ .absent = .CONNREFUSED };
}

fn failed(fd: i32, e: linux.E) sys.Error!Attempt {
    sys.close(fd);
    sys.last_errno = @backingInt(e);
    return switch (e) {
        // Not started, host still booting, link or address still coming up, path not made yet,
        // queue of a listener full.
        .CONNREFUSED, .HOSTUNREACH, .NETUNREACH, .TIMEDOUT, .CONNRESET, .CONNABORTED => //
        .{ .absent = e },
        .HOSTDOWN, .NETDOWN, .ADDRNOTAVAIL, .NOENT, .AGAIN => .{ .absent = e },
        else => error.SystemCall,
    };
}

/// Connects, patiently, until the deadline. TimedOut leaves the last attempt's errno behind.
pub fn connect(address: Address, deadline_ns: u64) WaitError!i32 {
    while (true) {
        var attempt = try begin(address);
        if (attempt == .pending) {
            const fd = attempt.pending;
            const until = @min(deadline_ns, sys.monotonicNs() + attempt_ns);
            if (waitFor(fd, linux.POLL.OUT, until)) |_| {
                attempt = try finish(fd);
            } else |err| {
                sys.close(fd);
                if (err == error.SystemCall) return err;
                attempt = .{ .absent = .TIMEDOUT };
            }
        }
        const reason = switch (attempt) {
            .connected => |fd| return fd,
            .absent => |e| e,
            .pending => unreachable,
        };
        sys.last_errno = @backingInt(reason);
        if (sys.monotonicNs() + retry_ns >= deadline_ns) return error.TimedOut;
        sys.pause(retry_ns);
    }
}

pub const Accepted = struct {
    fd: i32,
    /// Known even when the peer is gone again.
    from: ?Address,
};

/// One connection if there is one now.
pub fn acceptNow(listen_fd: i32) sys.Error!?Accepted {
    while (true) {
        var storage: Address.Storage = .{};
        const from: *linux.sockaddr = @ptrCast(&storage.bytes);
        const r = linux.accept4(listen_fd, from, &storage.length, socket_flags);
        switch (linux.errno(r)) {
            .SUCCESS => return .{ .fd = @intCast(r), .from = storage.address() },
            .INTR => {},
            .AGAIN => return null,
            // Errors of the connection, not of the listener (accept(2), "Error handling").
            .CONNABORTED, .PROTO, .NOPROTOOPT, .HOSTDOWN, .NONET, .HOSTUNREACH => {},
            .OPNOTSUPP, .NETUNREACH, .NETDOWN => {},
            else => |e| {
                sys.last_errno = @backingInt(e);
                return error.SystemCall;
            },
        }
    }
}

pub fn accept(listen_fd: i32, deadline_ns: u64) WaitError!i32 {
    while (true) {
        if (try acceptNow(listen_fd)) |accepted| return accepted.fd;
        try waitFor(listen_fd, linux.POLL.IN, deadline_ns);
    }
}

/// Waits until `fd` has one of `events`, an error or a hang-up.
pub fn waitFor(fd: i32, events: i16, deadline_ns: u64) WaitError!void {
    var fds: [1]linux.pollfd = .{.{ .fd = fd, .events = events, .revents = 0 }};
    while (!try pollUntil(&fds, deadline_ns)) {
        if (sys.monotonicNs() >= deadline_ns) return error.TimedOut;
    }
}

/// Polls until something happens (true), or the deadline or a signal comes (false).
pub fn pollUntil(fds: []linux.pollfd, deadline_ns: u64) sys.Error!bool {
    const now = sys.monotonicNs();
    const left = deadline_ns -| now;
    // Rounded up, or the last millisecond would be spun away; capped to what poll takes.
    const ms = @min(left / std.time.ns_per_ms + @intFromBool(left > 0), std.math.maxInt(i32));
    const r = linux.poll(fds.ptr, fds.len, @intCast(ms));
    if (linux.errno(r) == .INTR) return false;
    return try sys.check(r) > 0;
}

const testing = std.testing;

fn expectText(want: []const u8, address: Address) !void {
    var buffer: [160]u8 = undefined;
    try testing.expectEqualStrings(want, try std.fmt.bufPrint(&buffer, "{f}", .{address}));
}

test "addresses are read and written alike" {
    const texts = [_][]const u8{
        "127.0.0.1:0",     "192.0.2.17:65535",      "[::1]:7000", "[2001:db8::42]:9",
        "[fe80::1%3]:700", "unix:/run/ssihv/lane0", "unix:x",
    };
    for (texts) |text| try expectText(text, try Address.parse(text));
    try testing.expectEqual(@as(u16, 7000), (try Address.parse("[::1]:7000")).portNumber());
    const ip4 = (try Address.parse("192.0.2.17:258")).ip4;
    try testing.expectEqualSlices(u8, &.{ 192, 0, 2, 17 }, std.mem.asBytes(&ip4.addr));
    try testing.expectEqualSlices(u8, &.{ 1, 2 }, std.mem.asBytes(&ip4.port));
}

test "bad addresses are refused by name" {
    const Case = struct { text: []const u8, err: ParseError };
    const long: [108]u8 = @splat('p');
    const cases = [_]Case{
        .{ .text = "", .err = error.MissingPort },
        .{ .text = "127.0.0.1", .err = error.MissingPort },
        .{ .text = "127.0.0.1:", .err = error.MissingPort },
        .{ .text = "2001:db8::1", .err = error.MissingPort },
        .{ .text = "[::1]", .err = error.InvalidPort },
        .{ .text = "[::1:80", .err = error.MissingPort },
        .{ .text = "127.0.0.1:65536", .err = error.InvalidPort },
        .{ .text = "127.0.0.1:+80", .err = error.InvalidPort },
        .{ .text = "127.0.0.1:8_0", .err = error.InvalidPort },
        .{ .text = "127.0.0:80", .err = error.InvalidHost },
        .{ .text = "127.0.0.256:80", .err = error.InvalidHost },
        .{ .text = ":80", .err = error.InvalidHost },
        .{ .text = "localhost:80", .err = error.InvalidHost },
        .{ .text = "[]:80", .err = error.InvalidHost },
        .{ .text = "[::g]:80", .err = error.InvalidHost },
        .{ .text = "[fe80::1%eth0]:80", .err = error.InvalidHost },
        .{ .text = "unix:", .err = error.InvalidPath },
        .{ .text = "unix:a\x00b", .err = error.InvalidPath },
        .{ .text = "unix:" ++ long, .err = error.InvalidPath },
    };
    for (cases) |case| {
        try testing.expectError(case.err, Address.parse(case.text));
        try testing.expect(explain(case.err).len > 0);
    }
    _ = try Address.parse("unix:" ++ long[0..107]);
}

test "random text never crashes the parser" {
    var prng = std.Random.DefaultPrng.init(testing.random_seed);
    const random = prng.random();
    const alphabet = "0123456789abcdef.:[]%/unix- \x00";
    for (0..20_000) |_| {
        var buffer: [40]u8 = undefined;
        const text = buffer[0..random.uintLessThan(usize, buffer.len)];
        for (text) |*c| c.* = alphabet[random.uintLessThan(usize, alphabet.len)];
        if (Address.parse(text)) |address| {
            var out: [160]u8 = undefined;
            const again = try Address.parse(try std.fmt.bufPrint(&out, "{f}", .{address}));
            try testing.expectEqual(address.portNumber(), again.portNumber());
        } else |err| try testing.expect(explain(err).len > 0);
    }
}

fn soon() u64 {
    return sys.monotonicNs() + 10 * std.time.ns_per_s;
}

fn expectMeets(listen_text: []const u8) !void {
    const listener = try listen(try Address.parse(listen_text));
    defer sys.close(listener.fd);
    const own = Address.local(listener.fd).?;
    if (own != .unix) try testing.expect(listener.port != 0);
    const near = try connect(own, soon());
    defer sys.close(near);
    const far = try accept(listener.fd, soon());
    defer sys.close(far);
    try sys.writeAll(near, "x");
    try waitFor(far, linux.POLL.IN, soon());
    var byte: [1]u8 = undefined;
    try testing.expectEqual(@as(usize, 1), try sys.check(linux.read(far, &byte, 1)));
    try testing.expectEqual(@as(?Accepted, null), try acceptNow(listener.fd));
}

test "the two ends meet over IPv4" {
    try expectMeets("127.0.0.1:0");
}

test "the two ends meet over IPv6" {
    expectMeets("[::1]:0") catch |err| {
        const no_ip6 = [_]linux.E{ .AFNOSUPPORT, .ADDRNOTAVAIL };
        for (no_ip6) |e| if (sys.last_errno == @backingInt(e)) return error.SkipZigTest;
        return err;
    };
}

/// A socket path of this process in the temporary folder.
fn testPath(buffer: []u8, name: []const u8) ![]const u8 {
    return std.fmt.bufPrint(buffer, "unix:/tmp/ssihv-{d}-{s}", .{ linux.getpid(), name });
}

test "the two ends meet over a path, also one that a dead engine left behind" {
    var buffer: [100]u8 = undefined;
    const text = try testPath(&buffer, "tcp");
    const address = try Address.parse(text);
    defer _ = linux.unlink(@ptrCast(&address.unix.path));
    try expectMeets(text);
    try expectMeets(text);
    const listener = try listen(address);
    defer sys.close(listener.fd);
    // A live listener keeps its path.
    try testing.expectError(error.SystemCall, listen(address));
    try testing.expectEqual(@backingInt(linux.E.ADDRINUSE), sys.last_errno);
}

test "a peer that starts later is found" {
    const probe = try listen(try Address.parse("127.0.0.1:0"));
    const address = Address.local(probe.fd).?;
    sys.close(probe.fd);
    const Late = struct {
        fn run(at: Address, out: *sys.Error!Listener) void {
            sys.pause(120 * std.time.ns_per_ms);
            out.* = listen(at);
        }
    };
    var listener: sys.Error!Listener = undefined;
    const thread = try std.Thread.spawn(.{}, Late.run, .{ address, &listener });
    const connected = connect(address, soon());
    thread.join();
    defer if (listener) |l| sys.close(l.fd) else |_| {};
    sys.close(try connected);
    _ = try listener;
}

test "a peer that never starts, or never comes, ends in a timeout" {
    const probe = try listen(try Address.parse("127.0.0.1:0"));
    const address = Address.local(probe.fd).?;
    const soon_over = sys.monotonicNs() + 30 * std.time.ns_per_ms;
    try testing.expectError(error.TimedOut, accept(probe.fd, soon_over));
    sys.close(probe.fd);
    const deadline = sys.monotonicNs() + 120 * std.time.ns_per_ms;
    try testing.expectError(error.TimedOut, connect(address, deadline));
    try testing.expectEqual(@backingInt(linux.E.CONNREFUSED), sys.last_errno);
}
