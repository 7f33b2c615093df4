//! Memory of every node, written from one side and verified from the other: of what is mapped on a
//! node, side 0 writes the first half and side 1 the second, then each reads the other's. So both
//! sides write and read both nodes' memory, with one write and one read of every page. The sides
//! take turns: at once they would pass the process's mmap lock and page tables back and forth, at
//! a multiple of the page transfers.

const std = @import("std");
const linux = std.os.linux;
const sides = @import("sides.zig");
const node_memory = @import("node_memory.zig");
const page_size = sides.page_size;

const default_mib = 4;

/// Stays free on each node at least, or the kernel's low watermark where that is more: the guest
/// must not run out of memory.
const reserve_bytes = 4 << 20;

/// A share may need more than one go: the kernel may drop page cache while memory fills.
const goes_max = 4;
/// More than is missing, times the number of the later go: pages on the kernel's per-CPU lists
/// count as in use already, so the first ones taken change nothing.
const slack_bytes = 1 << 20;

const Part = struct {
    node: u32,
    writer: u32,
    words: []align(page_size) u64,
    /// Set by the side that verifies.
    mismatches: u64 = 0,
};

var part_buffer: [node_memory.nodes_max * sides.cpus * goes_max]Part = undefined;
var parts: std.ArrayList(Part) = .initBuffer(&part_buffer);
/// Parts before this one are written.
var written: usize = 0;
/// Part of every pattern, with the address and the writer: no earlier run wrote the same words.
var round: u64 = 0;

/// The nodes, as they were when last measured.
var infos: [node_memory.nodes_max]node_memory.Meminfo = undefined;

pub fn fill() void {
    var numbers: [node_memory.nodes_max]u32 = undefined;
    const nodes = node_memory.online(&numbers);
    round = now();
    measure(nodes);
    for (0..goes_max) |go| {
        if (!mapMissing(nodes, go)) return;
        if (written == parts.items.len) break;
        sides.inTurn(write);
        written = parts.items.len;
        measure(nodes);
        // What was asked for in MiB is mapped at once.
        if (sides.options.share == null) break;
    }
    sides.inTurn(verify);
    for (nodes, infos[0..nodes.len]) |node, info| {
        for (0..sides.cpus) |writer| reportPart(node, @intCast(writer), info);
    }
    for (parts.items) |part| node_memory.unmap(part.words);
}

fn measure(nodes: []const u32) void {
    for (nodes, infos[0..nodes.len]) |node, *info| info.* = node_memory.meminfo(node);
}

fn now() u64 {
    var ts: linux.timespec = undefined;
    _ = linux.clock_gettime(.MONOTONIC, &ts);
    return @intCast(ts.sec * std.time.ns_per_s + ts.nsec);
}

/// Maps on every node what is still to be filled there. False, and said, when the reserve forbids
/// it from the start: filling the rest would prove nothing. Later the share reached is the verdict.
fn mapMissing(nodes: []const u32, go: usize) bool {
    var total: u64 = 0;
    for (infos[0..nodes.len]) |info| total += info.total;
    var missing: [node_memory.nodes_max]u64 = undefined;
    var refused = false;
    for (nodes, infos[0..nodes.len], missing[0..nodes.len]) |node, info, *bytes| {
        const reserve = @max(reserve_bytes, node_memory.lowWatermark(info.total, total));
        bytes.* = missingBytes(info, nodes.len);
        if (bytes.* > 0) bytes.* += go * slack_bytes;
        if (bytes.* == 0 or bytes.* + reserve <= info.free) continue;
        if (go == 0) refuse(node, info, bytes.*, reserve);
        refused = true;
        bytes.* = 0;
    }
    if (refused and go == 0) return false;
    for (nodes, missing[0..nodes.len]) |node, bytes| {
        if (bytes > 0) mapHalves(node, bytes);
    }
    return true;
}

/// Bytes still to fill on one of `node_count` nodes, in whole pages for each side.
fn missingBytes(info: node_memory.Meminfo, node_count: usize) u64 {
    const bytes = if (sides.options.share) |share|
        (info.total * share + 99) / 100 -| info.inUse()
    else
        ((sides.options.mib orelse default_mib) << 20) / node_count;
    return std.mem.alignForward(u64, bytes, sides.cpus * page_size);
}

fn refuse(node: u32, info: node_memory.Meminfo, bytes: u64, reserve: u64) void {
    sides.failed = true;
    const values = .{ node, info.percentInUse(), toMib(bytes), toMib(reserve) };
    const verdict = "FAILED: {d} MiB more would leave less than {d} MiB free";
    sides.say("fill node={d} mib=0 used={d}% " ++ verdict, values);
}

fn mapHalves(node: u32, bytes: u64) void {
    const words = node_memory.mapBound(node, bytes);
    const half = words.len / sides.cpus;
    for (0..sides.cpus) |writer| {
        parts.appendAssumeCapacity(.{
            .node = node,
            .writer = @intCast(writer),
            .words = @alignCast(words[writer * half ..][0..half]),
        });
    }
}

/// What the word at this address must hold.
fn expected(word: *const u64, writer: u32) u64 {
    return sides.pattern(@intFromPtr(word), round +% (@as(u64, writer) << 56));
}

fn write(side: u32) void {
    for (parts.items[written..]) |part| {
        if (part.writer != side) continue;
        for (part.words) |*word| word.* = expected(word, side);
        node_memory.expectOn(part.node, &part.words[0]);
        if (sides.options.plant) part.words[part.words.len / 2] ^= 1 << 20;
    }
}

/// Reads what the other side wrote.
fn verify(side: u32) void {
    for (parts.items) |*part| {
        if (part.writer == side) continue;
        var mismatches: u64 = 0;
        for (part.words) |*word| {
            const right = expected(word, part.writer);
            if (word.* == right) continue;
            mismatches += 1;
            if (mismatches > 3) continue;
            const values = .{ part.node, word.*, @intFromPtr(word), right };
            sides.say("node {d}: {x} at {x}, not {x}", values);
        }
        part.mismatches = mismatches;
    }
}

/// One line for what `writer` wrote on `node`; `full` is the node once all was written.
fn reportPart(node: u32, writer: u32, full: node_memory.Meminfo) void {
    var bytes: u64 = 0;
    var mismatches: u64 = 0;
    for (parts.items) |part| {
        if (part.node != node or part.writer != writer) continue;
        bytes += part.words.len * @sizeOf(u64);
        mismatches += part.mismatches;
    }
    const share = sides.options.share orelse 0;
    const reached = full.percentInUse() >= share;
    if (mismatches > 0 or !reached) sides.failed = true;
    var text: [64]u8 = undefined;
    const verdict = if (mismatches > 0)
        std.fmt.bufPrint(&text, "FAILED mismatches={d}", .{mismatches}) catch unreachable
    else if (!reached)
        std.fmt.bufPrint(&text, "FAILED: below {d}%", .{share}) catch unreachable
    else
        "ok";
    const values = .{ node, writer, toMib(bytes), full.percentInUse(), verdict };
    sides.say("fill node={d} from={d} mib={d} used={d}% {s}", values);
}

/// To the nearest.
fn toMib(bytes: u64) u64 {
    return (bytes + (1 << 19)) >> 20;
}
