//! The balloon of this engine: the transport's registers (devices/virtio_mmio.zig) under a lock,
//! and the thread that serves its queues. The thread alone touches the guest's memory, and may
//! fault there like a vCPU; registers are answered by any vCPU's thread, and for other nodes by the
//! shard, so nothing here waits with the lock held.
//!
//! A chain goes back to the driver only when all of its pages are discarded on every node: a page
//! that is taken again cannot meet a late discard. Whoever wants the thread out of the queues (a
//! pause, a reset by the driver) has it leave between two batches with the chain not taken: what is
//! left there is begun again from its start, and to discard a page twice that its owner has given
//! away changes nothing.
//!
//! Lock order: this lock, then the IOAPIC's.

const std = @import("std");
const linux = std.os.linux;
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const balloon = @import("../devices/balloon.zig");
const virtio_mmio = @import("../devices/virtio_mmio.zig");
const virtqueue = @import("../devices/virtqueue.zig");
const Access = @import("bus.zig").Access;
const Batch = @import("discards.zig").Batch;
const Command = @import("shell.zig").Command;
const Engine = @import("../engine.zig").Engine;
const Inbox = @import("inbox.zig").Inbox;

const page_size = 4096;
const MADV_DONTNEED = 4;
/// Between two looks at whether the VM ends, while the shard works on a batch.
const patience_ns = 100 * std.time.ns_per_ms;
const queues_max = abi.virtio_queues_max;

/// io slots whose vCPU waits until the thread is out of the queues.
const Waiting = std.StaticBitSet(abi.io_slots_max);

/// Why a chain is not given back now.
const Left = error{ Interrupted, Broken };

pub const Balloon = struct {
    engine: *Engine,
    lock: sys.Mutex = .{},
    transport: virtio_mmio.VirtioMmio,
    pin: u5,
    /// Queues that were notified and are not looked at yet.
    notified: u32 = 0,
    /// The thread is in the queues.
    is_busy: bool = false,
    /// Wants a reset of the device: not before the thread is out.
    waiting: Waiting = .empty,
    /// Changes with everything that the thread has to look at.
    bell: std.atomic.Value(u32) = .init(0),
    /// Batches that the shard has done.
    done: std.atomic.Value(u32) = .init(0),
    batch: Batch = .{},
    /// So that the shard knows that this thread stores to memory (shell.zig, stillness).
    inbox: Inbox = .{},
    parked: u32 = 0,
    thread: ?std.Thread = null,

    pub fn init(engine: *Engine, device: abi.VirtioDevice) Balloon {
        return .{
            .engine = engine,
            .transport = .init(device),
            .pin = @intCast(device.pin),
        };
    }

    pub fn start(self: *Balloon) error{ThreadFailed}!void {
        self.count();
        self.thread = std.Thread.spawn(.{}, run, .{self}) catch return error.ThreadFailed;
    }

    /// Any thread: there is something to look at.
    pub fn ring(self: *Balloon) void {
        _ = self.bell.fetchAdd(1, .seq_cst);
        sys.futexWake(&self.bell, 1);
    }

    // Registers.

    /// Null: the device's thread has to leave the queues first; waitFor() says when.
    pub fn access(self: *Balloon, a: Access, offset: u64) ?u64 {
        self.lock.lock();
        defer self.lock.unlock();
        if (!a.is_write) return self.transport.read(offset, a.size);
        switch (self.transport.write(offset, a.size, a.value, &self.engine.ram)) {
            .none => {},
            .notify => |queue| if (queue < queues_max) {
                self.notified |= @as(u32, 1) << @intCast(queue);
                self.ring();
            },
            .reset => {
                if (self.is_busy) return null;
                self.resetTransport();
            },
            .broken => |b| self.broken(b.queue, b.fault),
            .config_written => self.count(),
        }
        self.setLine();
        return 0;
    }

    /// The io slot, which is posted, is answered when the driver's reset is done.
    pub fn waitFor(self: *Balloon, slot: u32) void {
        const is_busy = busy: {
            self.lock.lock();
            defer self.lock.unlock();
            self.waiting.set(slot);
            break :busy self.is_busy;
        };
        // Out of the queues since: it may be parked.
        if (!is_busy) self.answerWaiting();
    }

    /// Pages that the guest is to give.
    pub fn setTarget(self: *Balloon, pages: u32) void {
        self.lock.lock();
        defer self.lock.unlock();
        self.transport.setConfig(balloon.config_target, pages);
        self.count();
        self.setLine();
    }

    /// Machine reset: all threads are parked, this one too.
    pub fn reset(self: *Balloon) void {
        self.lock.lock();
        defer self.lock.unlock();
        std.debug.assert(!self.is_busy);
        self.resetTransport();
        self.setLine();
    }

    /// Under the lock, the thread out of the queues.
    fn resetTransport(self: *Balloon) void {
        self.transport.reset();
        self.transport.clearConfig(balloon.config_actual);
        self.notified = 0;
        self.count();
    }

    fn count(self: *Balloon) void {
        const stats = &self.engine.shared.stats;
        stats.balloon_target = self.transport.getConfig(balloon.config_target);
        stats.balloon_actual = self.transport.getConfig(balloon.config_actual);
    }

    fn setLine(self: *Balloon) void {
        self.engine.board.setLine(self.pin, self.transport.interrupts != 0);
    }

    /// Under the lock. What is wrong is told once: the device is dead until its driver resets it.
    fn broken(self: *Balloon, queue: u32, fault: virtqueue.Fault) void {
        if (self.transport.status & virtio_mmio.status_needs_reset != 0) return;
        self.transport.fail();
        self.engine.shared.stats.balloon_faults += 1;
        var buffer: [200]u8 = undefined;
        const text = std.fmt.bufPrint(
            &buffer,
            "virtio balloon: the guest's driver gave queue {d} {s} (0x{x}); it needs a reset",
            .{ queue, fault.what, fault.value },
        ) catch unreachable;
        self.engine.events.notice(text);
    }

    // The thread.

    fn run(self: *Balloon) void {
        self.inbox.tid.store(linux.gettid(), .release);
        while (self.engine.checkpoint(&self.parked)) {
            const bell = self.bell.load(.seq_cst);
            if (self.enter()) |queue| {
                self.serve(queue);
                self.leave();
                continue;
            }
            if (!self.engine.parking.isOpen()) continue;
            sys.futexWait(&self.bell, bell, null);
        }
    }

    /// A queue to serve, if there is one.
    fn enter(self: *Balloon) ?u32 {
        self.lock.lock();
        defer self.lock.unlock();
        if (self.notified == 0) return null;
        const queue: u32 = @ctz(self.notified);
        self.notified &= self.notified - 1;
        if (!self.transport.isLive() or !self.transport.queues[queue].is_ready) {
            return if (self.notified != 0) self.again() else null;
        }
        self.is_busy = true;
        return queue;
    }

    /// Another queue was notified: the next turn's.
    fn again(self: *Balloon) ?u32 {
        self.ring();
        return null;
    }

    fn leave(self: *Balloon) void {
        {
            self.lock.lock();
            defer self.lock.unlock();
            self.is_busy = false;
        }
        self.answerWaiting();
    }

    /// The device is reset for those who wait for that, and they go on.
    fn answerWaiting(self: *Balloon) void {
        var slots: Waiting = .empty;
        {
            self.lock.lock();
            defer self.lock.unlock();
            if (self.waiting.count() == 0) return;
            slots = self.waiting;
            self.waiting = .empty;
            self.resetTransport();
            self.setLine();
        }
        var each = slots.iterator(.{});
        while (each.next()) |slot| {
            // Only its own vCPU waits for it, and for nothing else: unless the VM ends.
            const index: u32 = @intCast(slot);
            self.engine.completeIo(index, 0) catch std.debug.assert(self.engine.stopping());
        }
    }

    /// Whether somebody wants this thread out of the queues.
    fn isWanted(self: *Balloon) bool {
        if (!self.engine.parking.isOpen()) return true;
        self.lock.lock();
        defer self.lock.unlock();
        return self.waiting.count() > 0;
    }

    /// All chains of the queue. Its place and its fields are this thread's while it is busy: ready
    /// queues do not move.
    fn serve(self: *Balloon, index: u32) void {
        const queue = &self.transport.queues[index];
        const kind = balloon.kindOf(index) orelse return;
        self.serveAll(kind, queue) catch |e| {
            self.lock.lock();
            defer self.lock.unlock();
            switch (e) {
                error.Broken => {
                    self.broken(index, queue.fault);
                    self.setLine();
                },
                // Once more, from the chain that was not given back.
                error.Interrupted => self.notified |= @as(u32, 1) << @intCast(index),
            }
        };
    }

    fn serveAll(self: *Balloon, kind: balloon.Kind, queue: *virtqueue.Queue) Left!void {
        while (true) {
            if (self.isWanted()) return error.Interrupted;
            const head = try self.peek(queue) orelse return;
            const pages = try self.take(kind, queue, head);
            if (self.push(queue, head)) self.interrupt();
            const stats = &self.engine.shared.stats;
            switch (kind) {
                .inflate => stats.balloon_inflated += pages,
                .report => stats.balloon_reported += pages,
                .deflate => {},
            }
        }
    }

    fn peek(self: *Balloon, queue: *virtqueue.Queue) virtqueue.Error!?u16 {
        self.touches(true);
        defer self.touches(false);
        return queue.peek(&self.engine.ram);
    }

    fn push(self: *Balloon, queue: *virtqueue.Queue, head: u16) bool {
        self.touches(true);
        defer self.touches(false);
        return queue.push(&self.engine.ram, head, 0);
    }

    /// Around whatever may store to the guest's memory, as a vCPU does around the guest.
    fn touches(self: *Balloon, is_begin: bool) void {
        if (!is_begin) return self.inbox.endGuest();
        _ = self.inbox.entries.fetchAdd(1, .seq_cst);
        self.inbox.mode.store(Inbox.guest_mode, .seq_cst);
    }

    /// Discards what the chain names; how many pages.
    fn take(
        self: *Balloon,
        kind: balloon.Kind,
        queue: *virtqueue.Queue,
        head: u16,
    ) Left!u64 {
        var walk: balloon.Walk = .init(kind, queue, head);
        var pages: u64 = 0;
        var more = true;
        while (more) {
            self.batch.count = 0;
            more = try walk.fill(&self.engine.ram, &self.batch);
            pages += self.batch.count;
            // A page that leaves the balloon comes back when it is touched.
            if (kind != .deflate and self.batch.count > 0) try self.discard();
            if (more and self.isWanted()) return error.Interrupted;
        }
        return pages;
    }

    fn discard(self: *Balloon) error{Interrupted}!void {
        const pager = self.engine.pager orelse return self.discardPlain();
        const before = self.done.load(.seq_cst);
        pager.command(Command.discard, @intFromPtr(&self.batch));
        while (self.done.load(.seq_cst) == before) {
            // The batch is the shard's: whatever else is wanted waits for it, but for the end.
            if (self.engine.stopping()) return error.Interrupted;
            sys.futexWait(&self.done, before, patience_ns);
        }
    }

    /// Pager.Handler.discarded: shard thread.
    pub fn discarded(self: *Balloon) void {
        _ = self.done.fetchAdd(1, .seq_cst);
        sys.futexWake(&self.done, 1);
    }

    /// Without a pager the kernel is all there is.
    fn discardPlain(self: *Balloon) void {
        const stats = &self.engine.shared.stats;
        for (self.batch.slice()) |page| {
            const bytes = self.engine.ram.pageBytes(page);
            // It refuses locked memory, which nobody here locks: the page stays as it is then.
            const result = linux.madvise(bytes, page_size, MADV_DONTNEED);
            const is_done = linux.errno(result) == .SUCCESS;
            stats.pages_discarded += @intFromBool(is_done);
            stats.discards_refused += @intFromBool(!is_done);
        }
    }

    fn interrupt(self: *Balloon) void {
        self.lock.lock();
        defer self.lock.unlock();
        self.transport.interrupts |= virtio_mmio.interrupt_used;
        self.setLine();
    }
};
