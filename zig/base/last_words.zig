//! Last words: why this engine died, written into the shared page before the process ends, so that
//! the parent can say it. Sources: a Zig panic (broken invariant), a fatal signal in our threads,
//! and named fatal conditions. Async-signal-safe: no allocation, no locks.

const std = @import("std");
const linux = std.os.linux;
const posix = std.posix;
const abi = @import("../abi.zig");

/// Set once at start; null means there is nowhere to write.
var page: ?*abi.Shared = null;
threadlocal var thread_vcpu: u32 = 0xffff_ffff;

pub fn attach(shared: *abi.Shared) void {
    page = shared;
}

pub fn enterVcpu(index: u32) void {
    thread_vcpu = index;
}

/// The first cause wins: a panic's own abort signal must not overwrite it.
fn write(kind: abi.LastWordsKind, signo: u32, address: u64, text: []const u8) void {
    const shared = page orelse return;
    const words = &shared.last_words;
    // signo doubles as the claim: 0 -> nonzero once (0xffff for causes without a signal).
    const claim: u32 = if (signo == 0) 0xffff else signo;
    if (@cmpxchgStrong(u32, &words.signo, 0, claim, .acq_rel, .acquire) != null) return;
    words.vcpu = thread_vcpu;
    words.address = address;
    const n = @min(text.len, words.text.len);
    @memcpy(words.text[0..n], text[0..n]);
    words.text_len = @intCast(n);
    @atomicStore(u32, &shared.state, @backingInt(abi.EngineState.dead), .release);
    // Release: a reader that sees the kind sees everything else.
    @atomicStore(u32, &words.kind, @backingInt(kind), .release);
}

pub fn onPanic(message: []const u8, return_address: ?usize) noreturn {
    write(.panic, 0, return_address orelse 0, message);
    linux.exit_group(134);
}

/// A named condition after which running on would show wrong memory.
pub fn fatal(comptime format: []const u8, args: anytype) noreturn {
    var buffer: [512]u8 = undefined;
    const text = std.fmt.bufPrint(&buffer, format, args) catch &buffer;
    write(.fatal, 0, @returnAddress(), text);
    linux.exit_group(135);
}

fn onSignal(signal: posix.SIG, info: *const posix.siginfo_t, _: ?*anyopaque) callconv(.c) void {
    const address: u64 = @intFromPtr(info.fields.sigfault.addr);
    write(.signal, @intCast(@backingInt(signal)), address, "fatal signal in the engine");
    linux.exit_group(128 + @as(i32, @intCast(@backingInt(signal))));
}

/// Replaces the runtime's crash handlers: its report would blame the wrong program.
pub fn installSignalHandlers() void {
    const action: posix.Sigaction = .{
        .handler = .{ .sigaction = onSignal },
        .mask = posix.sigemptyset(),
        .flags = posix.SA.SIGINFO,
    };
    const fatal_signals = [_]posix.SIG{ .SEGV, .BUS, .ILL, .FPE, .ABRT, .TRAP };
    for (fatal_signals) |signal| posix.sigaction(signal, &action, null);
}

test "the first cause wins" {
    var shared = try std.testing.allocator.create(abi.Shared);
    defer std.testing.allocator.destroy(shared);
    shared.* = std.mem.zeroes(abi.Shared);
    attach(shared);
    defer page = null;
    write(.panic, 0, 0x1234, "index out of bounds");
    write(.signal, 6, 0, "fatal signal in the engine");
    const words = &shared.last_words;
    try std.testing.expectEqual(@backingInt(abi.LastWordsKind.panic), words.kind);
    try std.testing.expectEqualStrings("index out of bounds", words.text[0..words.text_len]);
    try std.testing.expectEqual(@backingInt(abi.EngineState.dead), shared.state);
}
