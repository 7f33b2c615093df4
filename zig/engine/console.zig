//! The console thread: guest serial output to a file descriptor, input from another, and the RTC's
//! rare interrupts. Output is taken in batches, a few milliseconds after its first byte, so that a
//! chatty boot costs one wake-up per batch and not per character.

const std = @import("std");
const linux = std.os.linux;
const sys = @import("../base/sys.zig");
const Board = @import("board.zig").Board;
const abi = @import("../abi.zig");

const batch_delay_ns = 2 * std.time.ns_per_ms;

pub const Console = struct {
    board: *Board,
    stats: *abi.EngineStats,
    in_fd: i32,
    out_fd: i32,
    eventfd: i32,
    stopping: std.atomic.Value(bool) = .init(false),
    /// Input that the UART had no room for yet.
    held: [256]u8 = undefined,
    held_start: usize = 0,
    held_end: usize = 0,

    pub fn run(self: *Console) void {
        // Acquire: what stop() wrote before it is visible.
        while (!self.stopping.load(.acquire)) {
            self.wait();
            self.output();
            self.input();
        }
        self.output();
    }

    pub fn stop(self: *Console) void {
        self.stopping.store(true, .release);
        sys.eventfdSignal(self.eventfd);
    }

    fn wait(self: *Console) void {
        const room = self.held_start == self.held_end;
        var fds = [2]linux.pollfd{
            .{ .fd = self.eventfd, .events = linux.POLL.IN, .revents = 0 },
            .{ .fd = if (room) self.in_fd else -1, .events = linux.POLL.IN, .revents = 0 },
        };
        // Held input is offered again soon: the guest empties its FIFO without telling anyone but
        // by reading, which rings the eventfd; the timeout only bounds a missed bell.
        var timeout: i32 = if (room) 1000 else 20;
        if (self.board.rtcTick()) |deadline| {
            const host = self.board.clock.hostWalltime(deadline);
            const now = sys.monotonicNs();
            const ms = if (host > now) (host - now) / std.time.ns_per_ms + 1 else 1;
            timeout = @intCast(@min(ms, @as(u64, @intCast(timeout))));
        }
        _ = linux.poll(&fds, 2, timeout);
        if (fds[0].revents != 0) {
            sys.eventfdDrain(self.eventfd);
            sys.pause(batch_delay_ns);
        }
        if (fds[1].revents != 0 and room) self.fill();
    }

    fn fill(self: *Console) void {
        const r = linux.read(self.in_fd, &self.held, self.held.len);
        switch (linux.errno(r)) {
            .SUCCESS => {
                self.held_start = 0;
                self.held_end = r;
                // End of input: the guest goes on without one.
                if (r == 0) self.in_fd = -1;
            },
            .INTR, .AGAIN => {},
            else => self.in_fd = -1,
        }
    }

    fn input(self: *Console) void {
        if (self.held_start == self.held_end) return;
        const n = self.board.consoleInput(self.held[self.held_start..self.held_end]);
        self.held_start += n;
        self.stats.serial_bytes_in += n;
    }

    fn output(self: *Console) void {
        var buffer: [4096]u8 = undefined;
        while (true) {
            const n = self.board.consoleOutput(&buffer);
            if (n == 0) return;
            self.stats.serial_bytes_out += n;
            if (self.out_fd < 0) continue;
            // The reader went away: the guest runs on, its words go nowhere.
            sys.writeAll(self.out_fd, buffer[0..n]) catch {
                self.out_fd = -1;
            };
        }
    }
};
