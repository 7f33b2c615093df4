//! What a lane costs over a bare socket: a 16-byte question, a 4 KiB page as the answer, over
//! loopback TCP between two threads, measured against plain send and receive of the same bytes in
//! the same run, in alternating batches. Ratios are the result; microseconds belong to the machine.
//! The last line is the lane between hosts of which one has no AES instructions.
//! zig run -O safe zig/bench_lane.zig -lc [-- round-trips [pages-per-answer]]

const std = @import("std");
const linux = std.os.linux;
const sys = @import("base/sys.zig");
const frame = @import("transport/frame.zig");
const Lane = @import("transport/lane.zig").Lane;
const seal = @import("transport/seal.zig");
const tcp = @import("transport/tcp.zig");

const question_bytes = 16;
const answer_bytes = frame.payload_max;
const wire_question = frame.header_bytes + question_bytes;
const wire_answer = frame.header_bytes + answer_bytes;
const batch = 500;
const patience_ns = 10 * std.time.ns_per_s;

const Way = enum { bare, polled, lane, lane_chacha };
const way_count = @typeInfo(Way).@"enum".field_names.len;

const words = [way_count][]const u8{
    "bare socket, blocking calls",
    "bare socket, poll before each read",
    "lane",
    "lane, ChaCha20-Poly1305",
};

pub fn main(init: std.process.Init) !void {
    const gpa = init.gpa;
    var args = init.minimal.args.iterate();
    _ = args.next();
    const total = if (args.next()) |text| try std.fmt.parseUnsigned(usize, text, 10) else 20_000;
    const pages = if (args.next()) |text| try std.fmt.parseUnsigned(usize, text, 10) else 1;
    const batches = @max(1, total / batch);
    var samples: [way_count][]u64 = undefined;
    for (&samples) |*s| s.* = try gpa.alloc(u64, batches * batch);
    defer for (samples) |s| gpa.free(s);
    for (0..batches) |b| {
        inline for (0..way_count) |w| {
            const out = samples[w][b * batch ..][0..batch];
            try runBatch(gpa, @fromBackingInt(@intCast(w)), pages, out);
        }
    }
    for (&samples) |s| std.mem.sort(u64, s, {}, std.sort.asc(u64));
    try report(samples, pages);
}

fn report(samples: [way_count][]u64, pages: usize) !void {
    var buffer: [1024]u8 = undefined;
    var w: std.Io.Writer = .fixed(&buffer);
    try w.print("{d} B -> {d} x {d} B over loopback TCP, {d} round trips each\n", .{
        question_bytes, pages, answer_bytes, samples[0].len,
    });
    const floor = samples[0];
    for (samples, words) |s, what| {
        try w.print("{s:<44} median {d:6.1} us  p99 {d:6.1} us  ratio {d:.2} / {d:.2}\n", .{
            what,
            us(at(s, 50)),
            us(at(s, 99)),
            us(at(s, 50)) / us(at(floor, 50)),
            us(at(s, 99)) / us(at(floor, 99)),
        });
    }
    try sys.writeAll(1, w.buffered());
}

fn at(sorted: []const u64, percent: usize) u64 {
    return sorted[(sorted.len - 1) * percent / 100];
}

fn us(ns: u64) f64 {
    return @as(f64, @floatFromInt(ns)) / 1000;
}

fn runBatch(gpa: std.mem.Allocator, comptime way: Way, pages: usize, out: []u64) !void {
    const listener = try tcp.listen(try tcp.Address.parse("127.0.0.1:0"));
    defer sys.close(listener.fd);
    const deadline = sys.monotonicNs() + patience_ns;
    const near_fd = try tcp.connect(tcp.Address.local(listener.fd).?, deadline);
    const far_fd = try tcp.accept(listener.fd, deadline);
    const End = if (way == .lane or way == .lane_chacha) LaneEnd else BareEnd;
    var near = try End.open(gpa, near_fd, way, true);
    defer near.close();
    var far = try End.open(gpa, far_fd, way, false);
    defer far.close();
    const Server = struct {
        fn run(end: *End, count: usize, answers: usize) void {
            for (0..count) |_| {
                end.take(question_bytes) catch |e| std.debug.panic("{t}", .{e});
                for (0..answers) |_| {
                    end.give(answer_bytes) catch |e| std.debug.panic("{t}", .{e});
                }
            }
        }
    };
    const warm_up = batch / 10;
    const thread = try std.Thread.spawn(.{}, Server.run, .{ &far, warm_up + out.len, pages });
    for (0..warm_up) |_| {
        try near.give(question_bytes);
        for (0..pages) |_| try near.take(answer_bytes);
    }
    for (out) |*sample| {
        const start = sys.monotonicNs();
        try near.give(question_bytes);
        for (0..pages) |_| try near.take(answer_bytes);
        sample.* = sys.monotonicNs() - start;
    }
    thread.join();
}

const page: [answer_bytes]u8 = @splat(0x5a);

/// What the shard does: poll, receive, next; queue, flush.
const LaneEnd = struct {
    lane: Lane,

    fn open(gpa: std.mem.Allocator, fd: i32, way: Way, is_near: bool) !LaneEnd {
        const key: [32]u8 = @splat(1);
        const best = seal.Cipher.choose(seal.offered(), seal.offered());
        const cipher: seal.Cipher = if (way == .lane_chacha) .chacha20_poly1305 else best;
        var lane: Lane = try .init(gpa, 0, .{});
        try lane.adopt(.{ .fd = fd, .keys = .derive(&key, cipher, "bench", is_near) });
        // Its resume goes now; the peer's comes before the first frame.
        _ = try lane.flush();
        return .{ .lane = lane };
    }

    fn close(self: *LaneEnd) void {
        self.lane.deinit();
    }

    fn give(self: *LaneEnd, comptime length: usize) !void {
        const kind: frame.Kind = if (length == question_bytes) .span else .protocol;
        try self.lane.queue(@backingInt(kind), &.{page[0..length]});
        while (!try self.lane.flush()) {
            if (self.lane.wantsOut()) try wait(self.lane.fd, linux.POLL.OUT) else try self.hear();
        }
    }

    fn take(self: *LaneEnd, comptime length: usize) !void {
        while (true) {
            if (try self.lane.next()) |received| {
                std.debug.assert(received.payload.len == length);
                return;
            }
            try wait(self.lane.fd, linux.POLL.IN);
            _ = try self.lane.receive();
        }
    }

    /// Before the first frame can go: the peer's resume.
    fn hear(self: *LaneEnd) !void {
        try wait(self.lane.fd, linux.POLL.IN);
        _ = try self.lane.receive();
        std.debug.assert(try self.lane.next() == null);
    }
};

/// The same bytes with nothing around them.
const BareEnd = struct {
    fd: i32,
    polls: bool,

    fn open(_: std.mem.Allocator, fd: i32, way: Way, _: bool) !BareEnd {
        const nonblocking: u32 = @bitCast(linux.O{ .NONBLOCK = true });
        const flags = try sys.check(linux.fcntl(fd, linux.F.GETFL, 0));
        _ = try sys.check(linux.fcntl(fd, linux.F.SETFL, flags & ~@as(usize, nonblocking)));
        const on: i32 = 1;
        const bytes = std.mem.asBytes(&on);
        const level = linux.IPPROTO.TCP;
        _ = try sys.check(linux.setsockopt(fd, level, linux.TCP.NODELAY, bytes, @sizeOf(i32)));
        return .{ .fd = fd, .polls = way == .polled };
    }

    fn close(self: *BareEnd) void {
        sys.close(self.fd);
    }

    fn give(self: *BareEnd, comptime length: usize) !void {
        const bytes: [frame.header_bytes + length]u8 = @splat(0x5a);
        try sys.writeAll(self.fd, &bytes);
    }

    fn take(self: *BareEnd, comptime length: usize) !void {
        var bytes: [frame.header_bytes + length]u8 = undefined;
        var got: usize = 0;
        while (got < bytes.len) {
            if (self.polls) try wait(self.fd, linux.POLL.IN);
            const n = try sys.check(linux.read(self.fd, bytes[got..].ptr, bytes.len - got));
            if (n == 0) return error.PeerClosed;
            got += n;
        }
    }
};

fn wait(fd: i32, events: i16) !void {
    try tcp.waitFor(fd, events, sys.monotonicNs() + patience_ns);
}

comptime {
    std.debug.assert(wire_question == 32 and wire_answer == 4152);
}
