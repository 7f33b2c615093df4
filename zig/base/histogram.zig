//! Counting into the log2 histograms of the shared page (abi.Histogram): one writer each, read from
//! outside while it is written, so every count only ever grows.

const std = @import("std");
const abi = @import("../abi.zig");

/// Counts one sample. The sum stops at the largest value instead of wrapping.
pub fn record(histogram: *abi.Histogram, ns: u64) void {
    const bucket = if (ns == 0) 0 else std.math.log2_int(u64, ns);
    histogram.buckets[@min(bucket, histogram.buckets.len - 1)] += 1;
    histogram.count += 1;
    histogram.sum_ns +|= ns;
    histogram.max_ns = @max(histogram.max_ns, ns);
}

test "buckets are powers of two, the last takes everything above" {
    var histogram = std.mem.zeroes(abi.Histogram);
    for ([_]u64{ 0, 1, 1023, 1024, 1 << 39, 1 << 50 }) |ns| record(&histogram, ns);
    try std.testing.expectEqual(@as(u64, 2), histogram.buckets[0]);
    try std.testing.expectEqual(@as(u64, 1), histogram.buckets[9]);
    try std.testing.expectEqual(@as(u64, 1), histogram.buckets[10]);
    try std.testing.expectEqual(@as(u64, 2), histogram.buckets[39]);
    try std.testing.expectEqual(@as(u64, 6), histogram.count);
    try std.testing.expectEqual(@as(u64, 1 << 50), histogram.max_ns);
}

test "count and sum agree with the samples, and the sum does not wrap" {
    var prng = std.Random.DefaultPrng.init(0x5eed_0005);
    const random = prng.random();
    var histogram = std.mem.zeroes(abi.Histogram);
    var sum: u64 = 0;
    for (0..1000) |_| {
        const ns = random.int(u64) >> random.intRangeAtMost(u6, 16, 63);
        record(&histogram, ns);
        sum += ns;
    }
    var counted: u64 = 0;
    for (histogram.buckets) |n| counted += n;
    try std.testing.expectEqual(@as(u64, 1000), counted);
    try std.testing.expectEqual(sum, histogram.sum_ns);
    record(&histogram, std.math.maxInt(u64));
    try std.testing.expectEqual(std.math.maxInt(u64), histogram.sum_ns);
}
