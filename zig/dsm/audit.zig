//! Compares what each node has with what the directories say. For tests, the explorer and on demand
//! when nothing is in flight: while a transaction of a page is open, its page is left out.

const std = @import("std");
const types = @import("types.zig");
const home = @import("home.zig");
const Page = types.Page;
const Node = types.Node;

pub const Violation = struct {
    page: Page,
    node: Node,
    found: types.Access,
    expected: types.Access,
};

/// The first difference, or null. `cores`: every compute node's, in order from node 0.
pub fn audit(cores: anytype) ?Violation {
    for (0..cores[0].config.page_count) |i| {
        const page: Page = @intCast(i);
        const keeper = &cores[cores[0].homeOf(page)];
        if (keeper.txns.find(page) != null) continue;
        const entry = keeper.directory[page];
        for (cores, 0..) |*core, n| {
            const node: Node = @intCast(n);
            const expected: types.Access = switch (entry.state) {
                .untouched, .stored => .invalid,
                .shared => if (entry.sharers & home.bit(node) != 0) .shared else .invalid,
                .exclusive => if (entry.owner == node) .exclusive else .invalid,
                .replicated => .replicated,
            };
            const found = core.access(page);
            if (found == expected) continue;
            return .{ .page = page, .node = node, .found = found, .expected = expected };
        }
    }
    return null;
}
