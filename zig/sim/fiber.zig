//! Runs a function on a stack of its own, which may end it from any depth: a fatal condition or a
//! panic of the code under test does not return, and here it must end neither the process nor the
//! run. What it had allocated is the caller's to free at once (an arena). x86-64 only, like the
//! rest. The root file of the program says where panics go: `panic_trap`.

const std = @import("std");
const root = @import("root");
const sys = @import("../base/sys.zig");

const stack_bytes = 1 << 20;

/// The fiber that this OS thread is on.
threadlocal var current: ?*Fiber = null;

pub const Fiber = struct {
    stack: []align(std.heap.page_size_min) u8,
    /// Stack pointers of whoever is not running.
    inner: usize = 0,
    outer: usize = 0,
    main: *const fn (context: *anyopaque) void = undefined,
    context: *anyopaque = undefined,
    words: [512]u8 = undefined,
    words_length: usize = 0,
    has_ended: bool = false,

    pub fn init() sys.Error!Fiber {
        return .{ .stack = try sys.mapAnonymous(stack_bytes) };
    }

    pub fn deinit(self: *Fiber) void {
        sys.unmap(self.stack);
    }

    /// Null: `main` returned. Else the words that it was ended with.
    pub fn run(self: *Fiber, main: *const fn (*anyopaque) void, context: *anyopaque) ?[]const u8 {
        std.debug.assert(current == null);
        self.main = main;
        self.context = context;
        self.has_ended = false;
        self.prepareStack();
        current = self;
        if (@hasDecl(root, "panic_trap")) root.panic_trap = end;
        switchStack(&self.outer, self.inner);
        if (@hasDecl(root, "panic_trap")) root.panic_trap = null;
        current = null;
        return if (self.has_ended) self.words[0..self.words_length] else null;
    }

    /// What switchStack() pops: six registers, then where to go on. At a function's first
    /// instruction the stack is 8 bytes off a multiple of 16 (System V ABI).
    fn prepareStack(self: *Fiber) void {
        const top = @intFromPtr(self.stack.ptr) + self.stack.len - 16;
        const words: [*]usize = @ptrFromInt(top - 8 * 8);
        for (words[0..6]) |*word| word.* = 0;
        words[6] = @intFromPtr(&enter);
        words[7] = 0;
        self.inner = @intFromPtr(words);
    }
};

fn enter() callconv(.c) noreturn {
    const self = current.?;
    self.main(self.context);
    leave(self);
}

fn leave(self: *Fiber) noreturn {
    switchStack(&self.inner, self.outer);
    unreachable;
}

/// Whether this OS thread is on a fiber that end() could end.
pub fn isOn() bool {
    return current != null;
}

/// Ends the function that runs on this thread's fiber.
pub fn end(words: []const u8) noreturn {
    const self = current.?;
    self.has_ended = true;
    self.words_length = @min(words.len, self.words.len);
    std.mem.copyForwards(u8, self.words[0..self.words_length], words[0..self.words_length]);
    leave(self);
}

/// Saves the callee-saved registers and this stack's pointer in `save`, and goes on where `to` was
/// saved. An ordinary call for the compiler.
const switchStack: *const fn (save: *usize, to: usize) callconv(.c) void = @ptrCast(&switchNaked);

fn switchNaked() callconv(.naked) void {
    asm volatile (
        \\pushq %%rbp
        \\pushq %%rbx
        \\pushq %%r12
        \\pushq %%r13
        \\pushq %%r14
        \\pushq %%r15
        \\movq %%rsp, (%%rdi)
        \\movq %%rsi, %%rsp
        \\popq %%r15
        \\popq %%r14
        \\popq %%r13
        \\popq %%r12
        \\popq %%rbx
        \\popq %%rbp
        \\retq
    );
}

const TestCount = struct {
    calls: u32 = 0,
    depth: u32,

    fn main(context: *anyopaque) void {
        const self: *TestCount = @ptrCast(@alignCast(context));
        self.dig(self.depth);
    }

    fn dig(self: *TestCount, depth: u32) void {
        self.calls += 1;
        if (depth == 0) end("deep enough");
        if (depth < 100) self.dig(depth - 1);
    }
};

test "a function is ended from any depth, or returns, and the stack serves again" {
    var fiber: Fiber = try .init();
    defer fiber.deinit();
    for (0..3) |_| {
        var count: TestCount = .{ .depth = 5 };
        try std.testing.expectEqualStrings("deep enough", fiber.run(TestCount.main, &count).?);
        try std.testing.expectEqual(@as(u32, 6), count.calls);
        count = .{ .depth = 200 };
        try std.testing.expect(fiber.run(TestCount.main, &count) == null);
    }
}

fn overrun(context: *anyopaque) void {
    const index: *usize = @ptrCast(@alignCast(context));
    const few = [_]u8{ 1, 2, 3 };
    index.* = few[index.*];
}

test "a panic ends it with its words" {
    var fiber: Fiber = try .init();
    defer fiber.deinit();
    var index: usize = 9;
    const words = fiber.run(overrun, &index).?;
    try std.testing.expectEqualStrings("index out of bounds: index 9, len 3", words);
}
