//! What other threads may tell a vCPU: interrupts to accept, NMI, INIT, SIPI, and "look up" kicks.
//! Everything is atomic bits; the vCPU thread alone turns them into LAPIC and KVM state, so a LAPIC
//! has one owner. Lost-wakeup rule: a poster sets bits, then reads `mode`; the vCPU stores `mode`,
//! then reads the bits; all of these are seq_cst, so one of the two sees the other.

const std = @import("std");
const linux = std.os.linux;
const posix = std.posix;
const sys = @import("../base/sys.zig");

pub const Mode = struct {
    /// Running VMM code: it will look at the inbox before it enters or sleeps.
    pub const host: u32 = 0;
    /// In (or about to enter) KVM_RUN: needs the kick signal.
    pub const guest: u32 = 1;
    /// In futexWait on `mode`.
    pub const sleeping: u32 = 2;
};

pub const Signal = struct {
    pub const nmi: u32 = 1;
    pub const init: u32 = 2;
    pub const startup: u32 = 4;
    pub const interrupts: u32 = 8;
    pub const wake: u32 = 16;
    pub const startup_vector_shift = 8;
};

pub const Taken = struct {
    signals: u32,
    startup_vector: u8,
};

pub const Inbox = struct {
    pub const guest_mode = Mode.guest;

    posted: [8]std.atomic.Value(u32) = @splat(.init(0)),
    posted_level: [8]std.atomic.Value(u32) = @splat(.init(0)),
    signals: std.atomic.Value(u32) = .init(0),
    mode: std.atomic.Value(u32) = .init(Mode.host),
    /// Kernel thread id of the vCPU thread, 0 before it runs.
    tid: std.atomic.Value(i32) = .init(0),
    kicks: std.atomic.Value(u64) = .init(0),
    /// Times this vCPU began to enter the guest: while it stands still and the mode is not `guest`,
    /// the vCPU has stored nothing.
    entries: std.atomic.Value(u64) = .init(0),

    pub fn postInterrupt(self: *Inbox, vector: u8, level: bool) void {
        const bit = @as(u32, 1) << @intCast(vector & 31);
        const trigger = &self.posted_level[vector >> 5];
        // The trigger mode is in place before the vector bit that makes it meaningful.
        if (level) _ = trigger.fetchOr(bit, .seq_cst) else _ = trigger.fetchAnd(~bit, .seq_cst);
        _ = self.posted[vector >> 5].fetchOr(bit, .seq_cst);
        self.post(Signal.interrupts);
    }

    pub fn post(self: *Inbox, signal: u32) void {
        _ = self.signals.fetchOr(signal, .seq_cst);
        self.kick();
    }

    /// INIT forgets a SIPI that came before it.
    pub fn postInit(self: *Inbox) void {
        var old = self.signals.load(.seq_cst);
        while (true) {
            const new = (old & 0xff & ~Signal.startup) | Signal.init;
            old = self.signals.cmpxchgWeak(old, new, .seq_cst, .seq_cst) orelse break;
        }
        self.kick();
    }

    pub fn postStartup(self: *Inbox, vector: u8) void {
        var old = self.signals.load(.seq_cst);
        while (true) {
            // The first of the two SIPIs of the usual sequence counts.
            if (old & Signal.startup != 0) break;
            const new = old | Signal.startup |
                @as(u32, vector) << Signal.startup_vector_shift;
            old = self.signals.cmpxchgWeak(old, new, .seq_cst, .seq_cst) orelse break;
        }
        self.kick();
    }

    pub fn kick(self: *Inbox) void {
        switch (self.mode.load(.seq_cst)) {
            Mode.guest => {
                _ = self.kicks.fetchAdd(1, .monotonic);
                _ = linux.tgkill(linux.getpid(), self.tid.load(.acquire), sys.kickSignal());
            },
            Mode.sleeping => {
                if (self.mode.cmpxchgStrong(Mode.sleeping, Mode.host, .seq_cst, .seq_cst) == null) {
                    sys.futexWake(&self.mode, 1);
                }
            },
            else => {},
        }
    }

    /// vCPU thread: takes all signals. Interrupt bits stay in `posted` for takeWord.
    pub fn take(self: *Inbox) Taken {
        const all = self.signals.swap(0, .seq_cst);
        return .{
            .signals = all & 0xff,
            .startup_vector = @truncate(all >> Signal.startup_vector_shift),
        };
    }

    pub fn takeWord(self: *Inbox, index: usize) struct { vectors: u32, level: u32 } {
        const vectors = self.posted[index].swap(0, .seq_cst);
        return .{ .vectors = vectors, .level = self.posted_level[index].load(.seq_cst) & vectors };
    }

    /// Machine reset, vCPU thread parked: nothing posted before survives.
    pub fn clear(self: *Inbox) void {
        _ = self.signals.swap(0, .seq_cst);
        for (&self.posted) |*word| _ = word.swap(0, .seq_cst);
    }

    /// vCPU thread: true when it may enter the guest, false when something came in meanwhile.
    pub fn beginGuest(self: *Inbox) bool {
        _ = self.entries.fetchAdd(1, .seq_cst);
        self.mode.store(Mode.guest, .seq_cst);
        if (self.signals.load(.seq_cst) == 0) return true;
        self.mode.store(Mode.host, .seq_cst);
        return false;
    }

    pub fn endGuest(self: *Inbox) void {
        self.mode.store(Mode.host, .seq_cst);
    }

    /// vCPU thread: sleeps until something is posted or the time is over.
    pub fn sleep(self: *Inbox, timeout_ns: ?u64) void {
        self.mode.store(Mode.sleeping, .seq_cst);
        if (self.signals.load(.seq_cst) == 0) {
            sys.futexWait(&self.mode, Mode.sleeping, timeout_ns);
        }
        self.mode.store(Mode.host, .seq_cst);
    }
};

test "posted interrupts keep their trigger mode" {
    var inbox: Inbox = .{};
    inbox.postInterrupt(0x31, true);
    inbox.postInterrupt(0x32, false);
    const taken = inbox.take();
    try std.testing.expectEqual(Signal.interrupts, taken.signals);
    const word = inbox.takeWord(1);
    try std.testing.expectEqual(@as(u32, 3 << 17), word.vectors);
    try std.testing.expectEqual(@as(u32, 1 << 17), word.level);
    try std.testing.expectEqual(@as(u32, 0), inbox.takeWord(1).vectors);
}

test "INIT drops an older SIPI and the first SIPI after it counts" {
    var inbox: Inbox = .{};
    inbox.postStartup(0x10);
    inbox.postInit();
    inbox.postStartup(0x9a);
    inbox.postStartup(0x20);
    const taken = inbox.take();
    try std.testing.expectEqual(Signal.init | Signal.startup, taken.signals);
    try std.testing.expectEqual(@as(u8, 0x9a), taken.startup_vector);
}

test "a sleeper wakes on a post from another thread" {
    var inbox: Inbox = .{};
    const Poster = struct {
        fn run(box: *Inbox) void {
            while (box.mode.load(.seq_cst) != Mode.sleeping) std.atomic.spinLoopHint();
            box.post(Signal.wake);
        }
    };
    const thread = try std.Thread.spawn(.{}, Poster.run, .{&inbox});
    while (inbox.signals.load(.seq_cst) == 0) inbox.sleep(null);
    thread.join();
    try std.testing.expectEqual(Signal.wake, inbox.take().signals);
    try std.testing.expect(inbox.beginGuest());
    inbox.endGuest();
    _ = inbox.signals.fetchOr(Signal.wake, .seq_cst);
    try std.testing.expect(!inbox.beginGuest());
}
