//! What threads and payload guests have in common while they work on the RAM of several nodes: the
//! machine's own instructions in their place in the program, and a barrier. A payload is an
//! ordinary function of this program that runs either on a thread or, through test_guest.zig, as a
//! guest at privilege level 3 that sees the same addresses. So it makes no system call, has no
//! thread-local variable, and touches only its context, its stack and a node's RAM.

const std = @import("std");
const linux = std.os.linux;
const cluster_file = @import("test_cluster.zig");

pub const page_size = cluster_file.page_size;
pub const nodes_max = cluster_file.nodes_max;

pub const Word = *align(1) u64;

/// Ports a payload guest writes to, to end its run and to let others run.
pub const Port = struct {
    pub const done = 0x10;
    pub const yield = 0x11;
};

/// Who runs the payload: it decides how to give the CPU away.
pub const Runner = enum(u8) { thread, guest };

/// The nodes' RAM as payloads see it, and where they meet.
pub const Stage = struct {
    runner: Runner,
    rams: [nodes_max][*]u8,
    nodes: usize,
    barrier: Barrier,

    /// The 8-byte word at `offset` of the VM's RAM, in this node's copy.
    pub fn word(self: *const Stage, node: usize, offset: usize) Word {
        return @ptrCast(self.rams[node][offset..][0..8]);
    }
};

/// Lets `count` payloads go on together, over and over. In memory that no pager moves.
pub const Barrier = struct {
    runner: Runner,
    count: u32,
    arrived: std.atomic.Value(u32) = .init(0),
    turn: std.atomic.Value(u32) = .init(0),

    const spins_max = 200;

    /// seq_cst throughout: what was done before is visible to whoever goes on.
    pub fn wait(self: *Barrier) void {
        const turn = self.turn.load(.seq_cst);
        if (self.arrived.fetchAdd(1, .seq_cst) + 1 == self.count) {
            self.arrived.store(0, .seq_cst);
            _ = self.turn.fetchAdd(1, .seq_cst);
            return;
        }
        var spins: usize = 0;
        while (self.turn.load(.seq_cst) == turn) : (spins += 1) {
            if (spins % spins_max == spins_max - 1) yield(self.runner);
        }
    }
};

fn yield(runner: Runner) void {
    switch (runner) {
        .thread => _ = linux.sched_yield(),
        .guest => asm volatile ("outb %%al, %[port]"
            :
            : [port] "n" (Port.yield),
            : .{ .memory = true }),
    }
}

/// A plain load of the machine.
pub fn load(address: Word) u64 {
    return asm volatile ("movq (%[p]), %[v]"
        : [v] "=r" (-> u64),
        : [p] "r" (address),
        : .{ .memory = true });
}

pub fn store(address: Word, value: u64) void {
    asm volatile ("movq %[v], (%[p])"
        :
        : [p] "r" (address),
          [v] "r" (value),
        : .{ .memory = true });
}

/// One instruction that reads and writes, also where the word crosses a page: a split lock.
pub fn lockedIncrement(address: Word) void {
    asm volatile ("lock incq (%[p])"
        :
        : [p] "r" (address),
        : .{ .memory = true });
}

pub fn lockedAdd(address: Word, value: u64) void {
    asm volatile ("lock addq %[v], (%[p])"
        :
        : [p] "r" (address),
          [v] "r" (value),
        : .{ .memory = true });
}

/// A load by a locked instruction, which needs the page or pages writable.
pub fn lockedLoad(address: Word) u64 {
    var value: u64 = 0;
    asm volatile ("lock xaddq %[v], (%[p])"
        : [v] "+r" (value),
        : [p] "r" (address),
        : .{ .memory = true });
    return value;
}

/// xchg locks by itself (Intel SDM vol. 2).
pub fn lockedStore(address: Word, value: u64) void {
    var exchanged = value;
    asm volatile ("xchgq %[v], (%[p])"
        : [v] "+r" (exchanged),
        : [p] "r" (address),
        : .{ .memory = true });
}

pub fn fence() void {
    asm volatile ("mfence" ::: .{ .memory = true });
}

/// Small and good enough for delays and choices (xorshift64, Marsaglia 2003).
pub const Dice = struct {
    state: u64,

    pub fn init(seed: u64) Dice {
        return .{ .state = (seed +% 1) *% 0x9e37_79b9_7f4a_7c15 | 1 };
    }

    pub fn next(self: *Dice) u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        return self.state;
    }

    pub fn below(self: *Dice, limit: u64) u64 {
        return (self.next() >> 16) % limit;
    }
};

/// Up to about 2^bits turns of a loop, short ones as likely as long ones.
pub fn dawdle(dice: *Dice, bits: u6) void {
    const size: u6 = @intCast(dice.below(@as(u64, bits) + 1));
    var turns = dice.next() & ((@as(u64, 1) << size) - 1);
    while (turns != 0) : (turns -= 1) asm volatile ("" ::: .{ .memory = true });
}
