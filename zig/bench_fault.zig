//! How long a thread waits for a page: two pagers in one process (engine/test_cluster.zig), one
//! thread that touches a page on the one and then on the other. Each kind of fault against the
//! floor of the same run: a 40-byte question and a 4 KiB page back over a bare loopback TCP socket
//! between two threads. Ratios are the result; microseconds belong to the machine.
//! zig run -O safe zig/bench_fault.zig -lc [-- rounds [poll-us]]

const std = @import("std");
const linux = std.os.linux;
const sys = @import("base/sys.zig");
const tcp = @import("transport/tcp.zig");
const Cluster = @import("engine/test_cluster.zig").Cluster;

const page_size = 4096;
const pages = 64;
const question = 40;
const answer = question + page_size;

const Kind = enum { floor, first_touch, read, upgrade, write };

const words = [_][]const u8{
    "bare socket, 40 B -> page",
    "first touch at home",
    "read a page another node wrote",
    "write it then (upgrade)",
    "write a page another node wrote",
};

var poll_ns: u64 = 0;

const Samples = std.ArrayList(u64);

const Bench = struct {
    gpa: std.mem.Allocator,
    samples: [words.len]Samples = @splat(.empty),

    fn time(self: *Bench, kind: Kind, start: u64) !void {
        try self.samples[@backingInt(kind)].append(self.gpa, sys.monotonicNs() - start);
    }

    /// A fresh cluster: every page is touched at home, then goes back and forth.
    fn faults(self: *Bench, rounds: usize) !void {
        const cluster = try Cluster.start(self.gpa, .{
            .pages_per_node = pages,
            .hold_ns_max = 0,
            .poll_ns_max = poll_ns,
        });
        for (0..pages) |p| {
            const start = sys.monotonicNs();
            cluster.word(0, p * page_size).* = 1;
            try self.time(.first_touch, start);
        }
        for (0..rounds) |round| for (0..pages) |p| {
            const reader = (round + 1) % 2;
            const start = sys.monotonicNs();
            std.mem.doNotOptimizeAway(volatileLoad(cluster.word(reader, p * page_size)));
            try self.time(.read, start);
            const between = sys.monotonicNs();
            cluster.word(1 - reader, p * page_size).* = round;
            try self.time(.upgrade, between);
            const last = sys.monotonicNs();
            cluster.word(reader, p * page_size).* = round;
            try self.time(.write, last);
        };
        try cluster.stop();
    }

    fn floor(self: *Bench, rounds: usize) !void {
        const listener = try tcp.listen(try tcp.Address.parse("127.0.0.1:0"));
        defer sys.close(listener.fd);
        const deadline = sys.monotonicNs() + 10 * std.time.ns_per_s;
        const near = try tcp.connect(tcp.Address.local(listener.fd).?, deadline);
        defer sys.close(near);
        const far = try tcp.accept(listener.fd, deadline);
        defer sys.close(far);
        try prepare(near);
        try prepare(far);
        const thread = try std.Thread.spawn(.{}, serve, .{ far, rounds });
        for (0..rounds) |_| {
            const bytes: [question]u8 = @splat(1);
            const start = sys.monotonicNs();
            try sys.writeAll(near, &bytes);
            try take(near, answer);
            try self.time(.floor, start);
        }
        thread.join();
    }

    fn report(self: *Bench) !void {
        for (&self.samples) |s| std.mem.sort(u64, s.items, {}, std.sort.asc(u64));
        const base = at(self.samples[0].items, 50);
        for (self.samples, words) |s, what| {
            var buffer: [160]u8 = undefined;
            try sys.writeAll(1, try std.fmt.bufPrint(
                &buffer,
                "{s:<34} {d:>6} times  median {d:7.1} us  p99 {d:7.1} us  ratio {d:.2}\n",
                .{ what, s.items.len, at(s.items, 50), at(s.items, 99), at(s.items, 50) / base },
            ));
        }
    }
};

/// Microseconds.
fn at(sorted: []const u64, percent: usize) f64 {
    return @as(f64, @floatFromInt(sorted[(sorted.len - 1) * percent / 100])) / 1000;
}

fn volatileLoad(word: *align(1) volatile u64) u64 {
    return word.*;
}

fn prepare(fd: i32) !void {
    const nonblocking: u32 = @bitCast(linux.O{ .NONBLOCK = true });
    const flags = try sys.check(linux.fcntl(fd, linux.F.GETFL, 0));
    _ = try sys.check(linux.fcntl(fd, linux.F.SETFL, flags & ~@as(usize, nonblocking)));
    const on: i32 = 1;
    const bytes = std.mem.asBytes(&on);
    const level = linux.IPPROTO.TCP;
    _ = try sys.check(linux.setsockopt(fd, level, linux.TCP.NODELAY, bytes, @sizeOf(i32)));
}

fn serve(fd: i32, rounds: usize) void {
    const bytes: [answer]u8 = @splat(2);
    for (0..rounds) |_| {
        take(fd, question) catch |e| std.debug.panic("{t}", .{e});
        sys.writeAll(fd, &bytes) catch |e| std.debug.panic("{t}", .{e});
    }
}

fn take(fd: i32, comptime length: usize) !void {
    var bytes: [length]u8 = undefined;
    var got: usize = 0;
    while (got < length) {
        const n = try sys.check(linux.read(fd, bytes[got..].ptr, length - got));
        if (n == 0) return error.PeerClosed;
        got += n;
    }
}

pub fn main(init: std.process.Init) !void {
    var args = init.minimal.args.iterate();
    _ = args.next();
    const rounds = if (args.next()) |text| try std.fmt.parseUnsigned(usize, text, 10) else 200;
    if (args.next()) |text| poll_ns = 1000 * try std.fmt.parseUnsigned(u64, text, 10);
    var bench: Bench = .{ .gpa = init.gpa };
    defer for (&bench.samples) |*s| s.deinit(init.gpa);
    // Alternating, so that a noisy moment meets both.
    for (0..10) |_| {
        try bench.floor(@max(1, rounds * pages / 10));
        try bench.faults(@max(1, rounds / 10));
    }
    try bench.report();
}
