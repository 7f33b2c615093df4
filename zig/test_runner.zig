//! Runs the unit tests and ends with `N passed, N failed, N skipped`. Against the standard runner:
//! a leak or a logged error fails its own test, a panic names the test it happened in, and
//! std.testing.fuzz targets get inputs from a seeded generator besides their corpus. The seed is
//! printed with a failure; `zig test --seed N` runs the same inputs again.

const std = @import("std");
const builtin = @import("builtin");
const testing = std.testing;

pub const std_options: std.Options = .{ .logFn = log };
pub const panic = std.debug.FullPanic(onPanic);

/// Inputs per fuzz target: a few hundred milliseconds for a typical one.
const fuzz_inputs = 2000;
const fuzz_bytes_max = 4096;

/// Where a test that expects panics sends them (sim/fiber.zig).
pub threadlocal var panic_trap: ?*const fn (words: []const u8) noreturn = null;

var current: []const u8 = "before the first test";
var logged_errors: usize = 0;

pub fn main(init: std.process.Init.Minimal) void {
    var args = init.args.iterate();
    while (args.next()) |arg| {
        const value = flag(arg, "--seed=") orelse continue;
        testing.random_seed = std.fmt.parseUnsigned(u32, value, 0) catch {
            fatal("--seed={s}: not a number", .{value});
        };
    }
    var passed: usize = 0;
    var failed: usize = 0;
    var skipped: usize = 0;
    for (builtin.test_functions) |function| {
        const counted = isNamed(function.name);
        switch (runOne(function, init)) {
            .passed => passed += @intFromBool(counted),
            .failed => failed += 1,
            .skipped => skipped += 1,
        }
    }
    std.debug.print("{d} passed, {d} failed, {d} skipped\n", .{ passed, failed, skipped });
    if (failed != 0) std.process.exit(1);
}

const Outcome = enum { passed, failed, skipped };

fn runOne(function: std.builtin.TestFn, init: std.process.Init.Minimal) Outcome {
    current = function.name;
    logged_errors = 0;
    testing.allocator_instance = .init(std.heap.page_allocator, .{
        .check_write_after_free = true,
    });
    testing.io_instance = .init(testing.allocator, .{
        .argv0 = .init(init.args),
        .environ = init.environ,
    });
    testing.environ = init.environ;
    testing.log_level = .warn;

    var outcome: Outcome = .passed;
    if (function.func()) |_| {} else |err| {
        outcome = if (err == error.SkipZigTest) .skipped else .failed;
        report(if (outcome == .skipped) "SKIP" else "FAIL", "{t}", .{err});
        if (outcome == .failed) if (@errorReturnTrace()) |trace| {
            std.debug.dumpErrorReturnTrace(trace);
        };
    }
    testing.io_instance.deinit();
    const leaks = testing.allocator_instance.deinit();
    if (leaks != 0) report("FAIL", "{d} allocations leaked", .{leaks});
    if (logged_errors != 0) report("FAIL", "{d} errors logged", .{logged_errors});
    return if (leaks != 0 or logged_errors != 0) .failed else outcome;
}

/// Unnamed test blocks only pull files in: "tests.test_0" where a named one is "x.test.name".
fn isNamed(name: []const u8) bool {
    return std.mem.find(u8, name, ".test.") != null or std.mem.find(u8, name, ".decltest.") != null;
}

fn flag(arg: []const u8, comptime name: []const u8) ?[]const u8 {
    return if (std.mem.startsWith(u8, arg, name)) arg[name.len..] else null;
}

fn report(word: []const u8, comptime format: []const u8, args: anytype) void {
    const all = .{ word, current } ++ args ++ .{testing.random_seed};
    std.debug.print("{s} {s}: " ++ format ++ " (seed {d})\n", all);
}

fn fatal(comptime format: []const u8, args: anytype) noreturn {
    std.debug.print(format ++ "\n", args);
    std.process.exit(2);
}

fn onPanic(message: []const u8, return_address: ?usize) noreturn {
    if (panic_trap) |trap| trap(message);
    report("PANIC", "{s}", .{message});
    std.debug.defaultPanic(message, return_address);
}

fn log(
    comptime level: std.log.Level,
    comptime scope: @EnumLiteral(),
    comptime format: []const u8,
    args: anytype,
) void {
    if (level == .err) logged_errors += 1;
    if (@backingInt(level) > @backingInt(testing.log_level)) return;
    const origin = "[" ++ @tagName(scope) ++ "] " ++ @tagName(level) ++ ": ";
    std.debug.print(origin ++ format ++ "\n", args);
}

/// What std.testing.fuzz calls: the corpus, then short and long random inputs.
pub fn fuzz(
    context: anytype,
    comptime testOne: fn (context: @TypeOf(context), *testing.Smith) anyerror!void,
    options: testing.FuzzInputOptions,
) anyerror!void {
    for (options.corpus) |input| try fuzzOne(context, testOne, input, "corpus", 0);
    var prng: std.Random.DefaultPrng = .init(testing.random_seed);
    var buffer: [fuzz_bytes_max]u8 = undefined;
    for (0..fuzz_inputs) |i| {
        // Lengths grow with the square, so most inputs are short and fast.
        const input = buffer[0 .. i * i * fuzz_bytes_max / (fuzz_inputs * fuzz_inputs)];
        prng.fill(input);
        try fuzzOne(context, testOne, input, "input", i);
    }
}

fn fuzzOne(
    context: anytype,
    comptime testOne: fn (context: @TypeOf(context), *testing.Smith) anyerror!void,
    input: []const u8,
    kind: []const u8,
    index: usize,
) anyerror!void {
    var smith: testing.Smith = .{ .in = input };
    testOne(context, &smith) catch |err| {
        if (err == error.SkipZigTest) return;
        report("FUZZ", "{s} {d} of {d} bytes: {t}", .{ kind, index, input.len, err });
        return err;
    };
}
