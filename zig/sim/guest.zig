//! Guest threads. A vCPU runs operations one after another: plain and locked accesses, words split
//! over two pages, instructions that need many pages at once, interrupts to other vCPUs. An
//! operation runs only when all its pages are accessible in the node's kernel, else the vCPU waits
//! in a fault for the first that is not and tries again from the start, as an instruction does.
//! Every read is compared with the last write.

const std = @import("std");
const Inbox = @import("../engine/inbox.zig").Inbox;
const Mode = @import("../engine/inbox.zig").Mode;
const Cluster = @import("cluster.zig").Cluster;
const finding = @import("finding.zig");
const Kernel = @import("kernel.zig").Kernel;
const Script = @import("tables.zig").Script;

const us = std.time.ns_per_us;
const page_size = 4096;

/// Pages that one instruction may need here.
pub const pages_max = 8;

pub const Operation = struct {
    kind: Kind,
    pages: [pages_max]u32 = undefined,
    count: u8 = 1,
    offset: u16 = 0,

    pub const Kind = enum {
        load,
        store,
        /// Reads and writes one word.
        increment,
        /// The same with a word that lies on two pages.
        split,
        /// Reads a word of the first page, writes one of the second.
        copy,
        /// Reads and writes a word of each page.
        many,
        /// Interrupts another vCPU.
        interrupt,
        /// Has its node discard pages; goes on at once. They are anybody's to use meanwhile, and
        /// read as zeroes from some moment on.
        discard,
    };

    fn writes(self: Operation, index: usize) bool {
        return switch (self.kind) {
            .load, .interrupt, .discard => false,
            .copy => index == 1,
            .store, .increment, .split, .many => true,
        };
    }

    fn reads(self: Operation, index: usize) bool {
        return switch (self.kind) {
            .load, .increment, .split, .many => true,
            .copy => index == 0,
            .store, .interrupt, .discard => false,
        };
    }
};

pub const Attempt = union(enum) {
    done,
    fault: struct { page: u32, write: bool },
    /// Nothing done, nothing missing: somebody else has to do something first.
    again,
};

/// What the vCPUs of one schedule like to do, in percent.
pub const Habits = struct {
    hot_pages: u32,
    hot: u8,
    reads: u8,
    split: u8,
    many: u8,
    many_pages: u8,
    copy: u8,
    interrupt: u8,
    /// Read, then write the same word: what makes a page migrate.
    migrate: u8,
    table: u8,
    /// Longest pause between two operations.
    think_ns: u64,
    leave: u8,
    /// Hardware walks the page tables and sets accessed bits.
    walks: bool,

    pub fn choose(random: std.Random, pages: u32, has_holds: bool, has_tables: bool) Habits {
        const few = random.intRangeAtMost(u32, 1, 3);
        return .{
            .hot_pages = @min(few, pages),
            .hot = random.uintLessThan(u8, 100),
            .reads = random.intRangeAtMost(u8, 10, 90),
            // Without holds, instructions that need several pages may never get them together.
            .split = if (has_holds and random.boolean()) 15 else 0,
            .many = if (has_holds and random.uintLessThan(u8, 4) == 0) 10 else 0,
            .many_pages = random.intRangeAtMost(u8, 2, pages_max),
            .copy = if (has_holds) 10 else 0,
            .interrupt = if (random.boolean()) 10 else 0,
            .migrate = random.uintLessThan(u8, 80),
            .table = if (has_tables) random.intRangeAtMost(u8, 20, 80) else 0,
            .think_ns = if (random.boolean()) us else 1 + random.uintLessThan(u64, 50 * us),
            .leave = random.uintLessThan(u8, 60),
            .walks = random.boolean(),
        };
    }
};

pub const State = enum { ready, blocked, finished };

pub const Vcpu = struct {
    cluster: *Cluster,
    node: u8,
    index: u32,
    inbox: Inbox = .{},
    state: State = .ready,
    /// When it runs next; older events of it are void.
    due: u64 = 0,
    operation: ?Operation = null,
    /// What a signal took it away from.
    interrupted: ?Operation = null,
    script: Script = .{},
    left: u32 = 0,
    /// Times in a row that it found nothing it could do.
    spins: u8 = 0,
    /// Counts its waits, so that a signal meets the wait it was meant for.
    waits: u32 = 0,
    /// Who waits for it to forget what it knows of page tables.
    shooter: ?u32 = null,

    pub fn tid(self: *const Vcpu) u32 {
        return 1000 + self.index;
    }

    fn kernel(self: *Vcpu) *Kernel {
        return &self.cluster.machines[self.node].kernel;
    }

    fn random(self: *Vcpu) std.Random {
        return self.cluster.guest.random();
    }

    /// As the vCPU's thread does around KVM_RUN (engine/inbox.zig).
    fn enterGuest(self: *Vcpu) void {
        if (self.inbox.mode.raw == Mode.guest) return;
        self.inbox.entries.raw += 1;
        self.inbox.mode.raw = Mode.guest;
    }

    pub fn leaveGuest(self: *Vcpu) void {
        self.inbox.mode.raw = Mode.host;
    }

    /// One turn of the vCPU, which is neither blocked nor standing still.
    pub fn run(self: *Vcpu) void {
        std.debug.assert(self.state == .ready);
        self.cluster.takeInterrupts(self);
        if (self.operation == null and !self.script.isActive()) {
            if (self.left == 0) {
                self.state = .finished;
                self.cluster.unfinished -= 1;
                return self.leaveGuest();
            }
            self.choose();
        }
        self.enterGuest();
        const attempt = if (self.operation) |o| self.tryOperation(o) else self.script.run(self);
        switch (attempt) {
            .done => self.finish(),
            .again => self.spin(),
            .fault => |f| self.block(f.page, f.write),
        }
    }

    fn finish(self: *Vcpu) void {
        self.cluster.progressed();
        self.spins = 0;
        if (self.operation != null) {
            self.operation = self.interrupted;
            self.interrupted = null;
        }
        if (self.operation == null and !self.script.isActive()) self.left -= 1;
        if (self.random().uintLessThan(u8, 100) < self.cluster.habits.leave) self.leaveGuest();
        const pause = self.random().uintLessThan(u64, self.cluster.habits.think_ns);
        self.cluster.scheduleVcpu(self, self.cluster.now + 100 + pause);
    }

    /// Ever longer, as a guest's locks do it, up to a fraction of a millisecond.
    fn spin(self: *Vcpu) void {
        self.spins = @min(self.spins + 1, 7);
        const pause = @as(u64, 2 * us) << @intCast(self.spins);
        const at = self.cluster.now + 2 * us + self.random().uintLessThan(u64, pause);
        self.cluster.scheduleVcpu(self, at);
    }

    fn block(self: *Vcpu, page: u32, write: bool) void {
        self.state = .blocked;
        self.waits += 1;
        self.cluster.trace("vcpu {d} of node {d} waits to {s} page {d}", .{
            self.index, self.node, if (write) "write" else "read", page,
        });
        self.kernel().raise(self.index, page, write);
        self.cluster.faulted(self);
    }

    /// A signal took it out of the wait that was its `wait`th.
    pub fn signal(self: *Vcpu, wait: u32) void {
        if (self.state != .blocked or self.waits != wait) return;
        self.kernel().interrupt(self.index);
        self.state = .ready;
        self.leaveGuest();
        const elsewhere = self.random().boolean();
        if (elsewhere and self.interrupted == null) {
            // A handler of the guest runs first.
            self.interrupted = self.operation;
            self.operation = self.access();
        }
        self.cluster.scheduleVcpu(self, self.cluster.now + self.random().uintLessThan(u64, us));
    }

    fn choose(self: *Vcpu) void {
        const habits = &self.cluster.habits;
        const percent = self.random().uintLessThan(u8, 100);
        if (percent < habits.table) {
            self.script.begin(self);
            if (self.script.isActive()) return;
        }
        if (self.random().uintLessThan(u8, 100) < habits.interrupt) {
            self.operation = .{ .kind = .interrupt };
            return;
        }
        const discards = self.cluster.config.discards;
        if (discards > 0 and self.random().uintLessThan(u8, 100) < discards) {
            self.operation = .{ .kind = .discard };
            return;
        }
        self.operation = self.access();
        if (self.operation.?.kind != .load) return;
        if (self.random().uintLessThan(u8, 100) >= habits.migrate) return;
        // The load first, then a store to the same word.
        self.interrupted = self.operation;
        self.interrupted.?.kind = .store;
    }

    pub fn pickPage(self: *Vcpu) u32 {
        const cluster = self.cluster;
        const first = cluster.firstDataPage();
        const hot = self.random().uintLessThan(u8, 100) < cluster.habits.hot;
        const all = cluster.config.pages - first;
        const count = if (hot) @min(cluster.habits.hot_pages, all) else all;
        return first + self.random().uintLessThan(u32, count);
    }

    const offsets = [_]u16{ 0, 8, 2048, page_size - 16 };

    fn access(self: *Vcpu) Operation {
        const habits = &self.cluster.habits;
        const r = self.random();
        var op: Operation = .{ .kind = .load, .offset = offsets[r.uintLessThan(usize, 4)] };
        op.pages[0] = self.pickPage();
        const percent = r.uintLessThan(u8, 100);
        if (percent < habits.split and op.pages[0] + 1 < self.cluster.config.pages) {
            op.kind = .split;
            op.count = 2;
            op.pages[1] = op.pages[0] + 1;
            return op;
        }
        if (percent < habits.split + habits.many) {
            op.kind = .many;
            op.count = habits.many_pages;
            for (op.pages[0..op.count]) |*page| page.* = self.pickPage();
            return op;
        }
        if (percent < habits.split + habits.many + habits.copy) {
            op.kind = .copy;
            op.count = 2;
            op.pages[1] = self.pickPage();
            return op;
        }
        if (r.uintLessThan(u8, 100) < habits.reads) return op;
        op.kind = if (r.boolean()) .store else .increment;
        return op;
    }

    fn tryOperation(self: *Vcpu, op: Operation) Attempt {
        if (op.kind == .interrupt) {
            self.cluster.sendInterrupt(self);
            return .done;
        }
        if (op.kind == .discard) {
            self.cluster.postDiscard(self);
            return .done;
        }
        for (op.pages[0..op.count], 0..) |page, i| {
            const write = op.writes(i);
            const may = if (write) self.kernel().canWrite(page) else self.kernel().canRead(page);
            if (!may) return .{ .fault = .{ .page = page, .write = write } };
        }
        if (op.kind == .split) {
            self.doSplit(op);
            return .done;
        }
        for (op.pages[0..op.count], 0..) |page, i| {
            if (op.reads(i)) self.check(page, op.offset);
            if (op.writes(i)) self.store(page, op.offset, self.cluster.truth.newValue());
        }
        return .done;
    }

    pub fn word(self: *Vcpu, page: u32, offset: usize) *u64 {
        return @ptrCast(@alignCast(self.kernel().bytes(page)[offset..][0..8]));
    }

    pub fn trueWord(self: *Vcpu, page: u32, offset: usize) *u64 {
        return @ptrCast(@alignCast(self.cluster.truth.page(page)[offset..][0..8]));
    }

    fn check(self: *Vcpu, page: u32, offset: usize) void {
        self.cluster.counters.reads += 1;
        const found = self.word(page, offset).*;
        const right = self.trueWord(page, offset).*;
        if (found == right) return;
        finding.fail(.stale_read, "vcpu {d} of node {d} reads 0x{x} in page {d} at {d}, where " ++
            "the last write was 0x{x}", .{ self.index, self.node, found, page, offset, right });
    }

    /// The node's copy can be written to.
    pub fn store(self: *Vcpu, page: u32, offset: usize, value: u64) void {
        self.cluster.counters.writes += 1;
        self.word(page, offset).* = value;
        self.trueWord(page, offset).* = value;
    }

    const split_offset = page_size - 4;

    fn doSplit(self: *Vcpu, op: Operation) void {
        const kernel_here = self.kernel();
        const low = kernel_here.bytes(op.pages[0])[split_offset..];
        const high = kernel_here.bytes(op.pages[1])[0..4];
        const true_low = self.cluster.truth.page(op.pages[0])[split_offset..];
        const true_high = self.cluster.truth.page(op.pages[1])[0..4];
        self.cluster.counters.reads += 1;
        self.cluster.counters.writes += 1;
        if (!std.mem.eql(u8, low, true_low) or !std.mem.eql(u8, high, true_high)) {
            finding.fail(.stale_read, "vcpu {d} of node {d} reads a stale word split over pages " ++
                "{d} and {d}", .{ self.index, self.node, op.pages[0], op.pages[1] });
        }
        const bytes = std.mem.toBytes(self.cluster.truth.newValue() >> 8);
        for ([_][]u8{ low, true_low }) |half| @memcpy(half, bytes[0..4]);
        for ([_][]u8{ high, true_high }) |half| @memcpy(half, bytes[0..4]);
    }
};
