//! SIGUSR1 to an engine: its open transactions go to stderr. The signal's handler only counts and
//! wakes a thread of its own; that thread asks the shard for the text and writes it, so a reader of
//! stderr that does not read holds up nobody but this thread, and a shard that is stuck is told.
//! No JavaScript takes part: it may be what hangs.

const std = @import("std");
const posix = std.posix;
const sys = @import("../base/sys.zig");
const Pager = @import("pager.zig").Pager;

/// Every list of a dump at its longest fits (dump.zig).
pub const text_max = 32 << 10;
/// A shard that is alive looks at questions once a turn.
const patience_ns = 2 * std.time.ns_per_s;

/// Signals so far. Starts the thread's work; the handler may touch nothing else.
var signals: std.atomic.Value(u32) = .init(0);

fn onSignal(_: posix.SIG) callconv(.c) void {
    _ = signals.fetchAdd(1, .release);
    sys.futexWake(&signals, 1);
}

/// From here on SIGUSR1 ends this process no more, as it would by default.
pub fn installHandler() void {
    const action: posix.Sigaction = .{
        .handler = .{ .handler = onSignal },
        .mask = posix.sigemptyset(),
        .flags = posix.SA.RESTART,
    };
    posix.sigaction(.USR1, &action, null);
}

pub const Dumper = struct {
    node: u32,
    /// Null with plain memory.
    pager: ?*Pager = null,
    fd: i32 = posix.STDERR_FILENO,
    text: [text_max]u8 = undefined,

    /// Lives as long as the process.
    pub fn start(self: *Dumper) error{ThreadFailed}!void {
        const old = sys.blockSignals();
        defer sys.restoreSignals(old);
        const thread = std.Thread.spawn(.{}, run, .{self}) catch return error.ThreadFailed;
        thread.detach();
    }

    fn run(self: *Dumper) void {
        // A signal that came before this thread counts.
        var seen: u32 = 0;
        while (true) {
            const now = signals.load(.acquire);
            if (now == seen) {
                sys.futexWait(&signals, seen, null);
                continue;
            }
            seen = now;
            self.dump();
        }
    }

    fn dump(self: *Dumper) void {
        const pager = self.pager orelse {
            return self.say("no pager here: plain memory, or a node that only lends some", .{});
        };
        const text = pager.inspection.takeDump(&self.text, patience_ns) orelse {
            const seconds = patience_ns / std.time.ns_per_s;
            return self.say(
                "the shard did not answer for {d} s: it is stuck, or its lanes are not linked yet",
                .{seconds},
            );
        };
        self.put(text);
    }

    fn say(self: *Dumper, comptime format: []const u8, args: anytype) void {
        var buffer: [160]u8 = undefined;
        const all = .{self.node} ++ args;
        const text = std.fmt.bufPrint(&buffer, "node {d}: " ++ format ++ "\n", all);
        self.put(text catch &buffer);
    }

    fn put(self: *Dumper, text: []const u8) void {
        // Nobody reads stderr any more: nobody is left to tell.
        sys.writeAll(self.fd, text) catch return;
    }
};

test "a signal to the process is answered on the descriptor" {
    const Static = struct {
        var dumper: Dumper = .{ .node = 3 };
    };
    var fds: [2]i32 = undefined;
    _ = try sys.check(std.os.linux.pipe2(&fds, .{}));
    Static.dumper.fd = fds[1];
    installHandler();
    try Static.dumper.start();
    for (0..2) |_| {
        _ = try sys.check(std.os.linux.kill(std.os.linux.getpid(), .USR1));
        var buffer: [160]u8 = undefined;
        const n = try sys.check(std.os.linux.read(fds[0], &buffer, buffer.len));
        const expected = "node 3: no pager here: plain memory, or a node that only lends some\n";
        try std.testing.expectEqualStrings(expected, buffer[0..n]);
    }
}
