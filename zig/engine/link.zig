//! Bringing a span up: lanes to every peer, then one clock, then the shard. Runs on its own thread,
//! since peers may start later; TypeScript hears of the end by the event `linked`.
//!
//! Clock: guest TSC = host TSC + offset on every host. Node 0 chooses its offset so that the
//! guest's TSC starts near zero; every other node asks node 0 for its TSC many times and takes the
//! quickest answer as the truth (error at most half that round trip). Two engines on one host (same
//! boot id) share one TSC and get exactly the same offset.

const std = @import("std");
const linux = std.os.linux;
const abi = @import("../abi.zig");
const abi_hash = @import("../abi_hash.zig");
const sys = @import("../base/sys.zig");
const tcp = @import("../transport/tcp.zig");
const linkup = @import("../transport/linkup.zig");
const Lane = @import("../transport/lane.zig").Lane;
const failure = @import("../base/failure.zig");
const Engine = @import("../engine.zig").Engine;

/// How long peers may take to appear; their hosts may still be starting their part.
const patience_ns = 120 * std.time.ns_per_s;
const clock_rounds = 32;
const clock_patience_ms = 5000;

pub const Link = struct {
    engine: *Engine,
    listener: ?tcp.Listener = null,
    addresses: [abi.nodes_max]?tcp.Address = @splat(null),
    cancel: std.atomic.Value(u32) = .init(0),
    outcome: linkup.Outcome = .{},
    words: [240]u8 = undefined,
    words_len: usize = 0,

    pub fn run(self: *Link) void {
        self.bringUp() catch |e| {
            if (self.words_len == 0) self.say("{t} (errno {d})", .{ e, sys.last_errno });
            self.engine.events.simple(.linked, 0, 1, 0, 0);
            return;
        };
        self.engine.events.simple(.linked, 0, 0, 0, 0);
    }

    fn say(self: *Link, comptime format: []const u8, args: anytype) void {
        const text = std.fmt.bufPrint(&self.words, format, args) catch self.words[0..];
        self.words_len = text.len;
    }

    fn bringUp(self: *Link) !void {
        const config = &self.engine.config;
        linkup.connectAll(&.{
            .node = @intCast(config.node),
            .node_count = @intCast(config.node_count),
            .listen_fd = if (self.listener) |l| l.fd else -1,
            .addresses = self.addresses,
            .key = &config.lane_key,
            .abi_hash = abi_hash.value,
            .vm_generation = config.vm_generation,
            .deadline_ns = sys.monotonicNs() + patience_ns,
            .cancel = &self.cancel,
        }, &self.outcome);
        if (self.listener) |l| sys.close(l.fd);
        if (self.outcome.status != .linked) {
            self.say("{s}", .{self.outcome.text()});
            return error.PeerFailed;
        }
        try self.agreeOnClock();
        const pager = self.engine.pager.?;
        for (self.outcome.fds, 0..) |fd, node| {
            if (fd < 0) continue;
            const lane = try self.engine.allocator.create(Lane);
            lane.* = try Lane.init(self.engine.allocator, fd, @intCast(node));
            pager.setLane(@intCast(node), lane);
        }
        try pager.start();
    }

    fn agreeOnClock(self: *Link) !void {
        const config = &self.engine.config;
        if (config.node != 0) {
            config.tsc_offset = try askClock(self.outcome.fds[0]);
            return;
        }
        config.tsc_offset = 0 -% readTsc();
        for (self.outcome.fds) |fd| {
            if (fd >= 0) try answerClock(fd, config.tsc_offset);
        }
    }
};

const Answer = extern struct { tsc: u64, offset: u64, boot_id: [36]u8, pad: u32 = 0 };

/// Node 0: answers a peer's questions until it has asked them all.
fn answerClock(fd: i32, offset: u64) !void {
    var answer: Answer = .{ .tsc = 0, .offset = offset, .boot_id = bootId() };
    for (0..clock_rounds) |_| {
        var question: [1]u8 = undefined;
        try readExactly(fd, &question);
        answer.tsc = readTsc();
        try sys.writeAll(fd, std.mem.asBytes(&answer));
    }
}

/// Another node: the offset that makes its guest TSC equal node 0's.
fn askClock(fd: i32) !u64 {
    const own_boot = bootId();
    var best: u64 = std.math.maxInt(u64);
    var offset: u64 = 0;
    for (0..clock_rounds) |_| {
        const before = readTsc();
        try sys.writeAll(fd, "?");
        var answer: Answer = undefined;
        try readExactly(fd, std.mem.asBytes(&answer));
        const after = readTsc();
        if (std.mem.eql(u8, &own_boot, &answer.boot_id)) {
            offset = answer.offset;
            continue;
        }
        if (after -% before >= best) continue;
        best = after -% before;
        // Half-way between question and answer this host's clock stood at before + best / 2.
        offset = answer.offset +% answer.tsc -% (before +% best / 2);
    }
    return offset;
}

fn readExactly(fd: i32, out: []u8) !void {
    var done: usize = 0;
    while (done < out.len) {
        const r = linux.read(fd, out[done..].ptr, out.len - done);
        switch (linux.errno(r)) {
            .SUCCESS => {
                if (r == 0) return error.PeerClosed;
                done += r;
            },
            .INTR => {},
            .AGAIN => {
                var p = [1]linux.pollfd{.{ .fd = fd, .events = linux.POLL.IN, .revents = 0 }};
                if (linux.poll(&p, 1, clock_patience_ms) == 0) return error.PeerSilent;
            },
            else => |e| {
                sys.last_errno = @backingInt(e);
                return error.SystemCall;
            },
        }
    }
}

/// Names this boot of this host; all zero where /proc is missing, which equals no real one.
fn bootId() [36]u8 {
    var id: [36]u8 = @splat(0);
    const flags: linux.O = .{ .CLOEXEC = true };
    const fd = sys.check(linux.open("/proc/sys/kernel/random/boot_id", flags, 0)) catch return id;
    defer sys.close(@intCast(fd));
    const n = sys.check(linux.read(@intCast(fd), &id, id.len)) catch 0;
    if (n != id.len) id = @splat(0);
    return id;
}

fn readTsc() u64 {
    var low: u32 = undefined;
    var high: u32 = undefined;
    asm volatile ("lfence; rdtsc"
        : [low] "={eax}" (low),
          [high] "={edx}" (high),
    );
    return @as(u64, high) << 32 | low;
}

test "two engines of one host get the same offset" {
    var fds: [2]i32 = undefined;
    _ = try sys.check(linux.socketpair(linux.AF.UNIX, linux.SOCK.STREAM, 0, &fds));
    defer for (fds) |fd| sys.close(fd);
    const offset: u64 = 0 -% readTsc();
    const Server = struct {
        fn run(fd: i32, value: u64) void {
            answerClock(fd, value) catch unreachable;
        }
    };
    const thread = try std.Thread.spawn(.{}, Server.run, .{ fds[0], offset });
    defer thread.join();
    try std.testing.expectEqual(offset, try askClock(fds[1]));
}
