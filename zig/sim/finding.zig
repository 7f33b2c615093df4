//! What a schedule can find: a kind, by which the shrinker recognises it, and words. Whoever sees
//! it ends the schedule's fiber.

const std = @import("std");
const fiber = @import("fiber.zig");

pub const Kind = enum {
    /// Two nodes can write a page at a time, or one can while another reads.
    two_writers,
    /// A guest read something else than the last write.
    stale_read,
    /// A page was mapped with bytes that are not its own.
    wrong_content,
    /// The version of a page shrank, or two exclusive grants carried the same.
    version,
    /// Work is left and nothing will happen, or too much happens without any work done.
    stuck,
    /// The directory does not say what the nodes have.
    directory,
    /// A kernel maps a page in another way than its core thinks.
    mapping,
    /// A record, a frame or a staged page is left when all is done.
    leak,
    /// A node was given up though it lives.
    peer_lost,
    /// A guest's clock went back, or the nodes do not agree on a freeze.
    freeze,
    /// The shard touched memory that is not there: it would wait for itself.
    shard_fault,
    /// A system call that makes no sense.
    kernel_misuse,
    /// The shell stopped the VM.
    fatal,
    /// A broken invariant inside the code under test, or inside the simulator.
    panic,
};

pub const Finding = struct {
    kind: Kind,
    words_buffer: [512]u8 = undefined,
    words_length: usize = 0,

    pub fn words(self: *const Finding) []const u8 {
        return self.words_buffer[0..self.words_length];
    }
};

threadlocal var last: Kind = .panic;

/// Ends the schedule that runs on this thread.
pub fn fail(kind: Kind, comptime format: []const u8, args: anytype) noreturn {
    var buffer: [512]u8 = undefined;
    last = kind;
    fiber.end(std.fmt.bufPrint(&buffer, format, args) catch &buffer);
}

threadlocal var has_finished: bool = false;

/// Ends the schedule that runs on this thread, in a way that was to be expected.
pub fn finish() noreturn {
    has_finished = true;
    fiber.end("");
}

/// Runs a schedule; null: nothing was found.
pub fn catching(
    on: *fiber.Fiber,
    main: *const fn (*anyopaque) void,
    context: *anyopaque,
) ?Finding {
    last = .panic;
    has_finished = false;
    const words = on.run(main, context) orelse return null;
    if (has_finished) return null;
    var finding: Finding = .{ .kind = last, .words_length = words.len };
    @memcpy(finding.words_buffer[0..words.len], words);
    return finding;
}
