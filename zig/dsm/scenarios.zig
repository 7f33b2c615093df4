//! What the explorer explores: machines and scripts with a name, for the tests and the program.

const core_file = @import("core.zig");
const explorer = @import("explorer.zig");
const model_file = @import("model.zig");
const Op = model_file.Op;
const HomeRange = core_file.HomeRange;

pub const two_pages: explorer.Options = .{
    .pages = 2,
    .operations = 3,
    .homes = &.{ .{ .first_page = 0, .node = 0 }, .{ .first_page = 1, .node = 1 } },
};

pub const held: explorer.Options = .{
    .pages = 2,
    .operations = 2,
    .homes = two_pages.homes,
    .hold_ns_max = 1,
};

pub const evicting: explorer.Options = .{ .operations = 3, .evictions = 2 };

pub const evicting_held = blk: {
    var o = held;
    o.evictions = 1;
    break :blk o;
};

pub const evicting_of_three: explorer.Options = .{ .nodes = 3, .operations = 1, .evictions = 1 };

/// Homes that push pages out to memory nodes; with fewer frames than pages, two copies, both.
pub const storing = [_]explorer.Options{
    .{ .operations = 2, .evictions = 2, .memory = 1 },
    .{ .pages = 2, .homes = two_pages.homes, .operations = 2, .evictions = 1, .memory = 1 },
    .{ .nodes = 1, .pages = 2, .operations = 3, .evictions = 3, .memory = 1, .slots = 2 },
    storing_twice,
};

pub const storing_twice: explorer.Options = .{
    .nodes = 1,
    .pages = 2,
    .operations = 3,
    .evictions = 2,
    .memory = 2,
    .frame_copies = 2,
};

/// A memory node crashes: the other copy serves; with a third memory node all have two copies
/// again.
pub const losing = [_]explorer.Options{
    .{
        .nodes = 1,
        .pages = 2,
        .operations = 3,
        .evictions = 2,
        .memory = 2,
        .frames = 2,
        .frame_copies = 2,
        .crashes = 1,
    },
    .{ .operations = 1, .evictions = 2, .memory = 2, .frame_copies = 2, .crashes = 1 },
    repairing,
};

pub const repairing: explorer.Options = .{
    .nodes = 1,
    .pages = 2,
    .operations = 2,
    .evictions = 2,
    .memory = 3,
    .frame_copies = 2,
    .crashes = 1,
};

/// The home is repairing the page's copies while another node puts it, or asks for it.
pub const repairing_while_put: explorer.Options = .{
    .operations = 1,
    .evictions = 1,
    .memory = 3,
    .frame_copies = 2,
    .crashes = 1,
};

/// Without a second copy there is no help.
pub const losing_the_only_copy: explorer.Options = .{
    .operations = 2,
    .evictions = 1,
    .memory = 1,
    .crashes = 1,
};

pub const discarding: explorer.Options = .{ .operations = 2, .discards = 2 };

pub const discarding_of_three: explorer.Options = .{ .nodes = 3, .operations = 1, .discards = 1 };

pub const discarding_stored: explorer.Options = .{
    .operations = 2,
    .evictions = 1,
    .memory = 1,
    .discards = 1,
};

/// Pages of the page-table scenarios. An entry is 100 + the page it points at.
const lock_page = 0;
const parent = 1;
pub const child = 2;
const link = 100 + child;

/// Where the parent points at the child.
const slot = 1;

const prepare = [_]Op{
    .{ .kind = .store, .page = lock_page, .value = 0 },
    .{ .kind = .store, .page = child, .word = 0, .value = 7 },
    .{ .kind = .store, .page = parent, .word = slot, .value = link },
};

const lock: Op = .{ .kind = .lock, .page = lock_page };
const unlock: Op = .{ .kind = .unlock, .page = lock_page };
const see: Op = .{ .page = parent, .word = slot };
const unlinks: Op = .{ .kind = .store, .page = parent, .word = slot, .value = 0 };

/// Takes the entry out, then uses the freed page as data.
const frees = [_]Op{
    lock,
    see,
    unlinks,
    .{ .page = child, .word = 0 },
    .{ .kind = .store, .page = child, .word = 0, .value = 20 },
    unlock,
};

/// Changes an entry of the table (or the data that the page holds by then), twice.
const changes = [_]Op{
    lock,
    see,
    .{ .page = child, .word = 0 },
    .{ .kind = .store, .page = child, .word = 0 },
    unlock,
    lock,
    .{ .page = child, .word = 0 },
    .{ .kind = .store, .page = child, .word = 0 },
    unlock,
};

/// Takes the entry out, says so, then shares the freed page without a lock.
const hands_over = [_]Op{
    unlinks,
    .{ .kind = .store, .page = lock_page, .word = 1, .value = 1 },
    .{ .kind = .store, .page = child, .word = 0 },
    .{ .kind = .store, .page = child, .word = 0 },
};

const takes_over = [_]Op{
    .{ .kind = .await_set, .page = lock_page, .word = 1 },
    .{ .kind = .store, .page = child, .word = 0 },
    .{ .kind = .store, .page = child, .word = 0 },
};

/// The same with a table that is linked and unlinked at once.
const links_and_hands_over = [_]Op{
    .{ .kind = .store, .page = parent, .word = 0, .value = link },
    .{ .kind = .store, .page = lock_page, .word = 0 },
    .{ .kind = .store, .page = parent, .word = 0, .value = 0 },
    .{ .kind = .store, .page = lock_page, .word = 1, .value = 1 },
    .{ .kind = .store, .page = child, .word = 0 },
};

const takes_over_once = [_]Op{
    .{ .kind = .store, .page = child, .word = 1 },
    .{ .kind = .await_set, .page = lock_page, .word = 1 },
    .{ .kind = .store, .page = child, .word = 0 },
};

const changes_once = changes[0..5].*;

const homes = [_][]const HomeRange{
    &.{.{ .first_page = 0, .node = 0 }},
    &.{ .{ .first_page = 0, .node = 0 }, .{ .first_page = 2, .node = 1 } },
    &.{ .{ .first_page = 0, .node = 0 }, .{ .first_page = 1, .node = 1 } },
    &.{.{ .first_page = 0, .node = 1 }},
};

/// The entry that goes leads to a table with a table below it, and that one is reused.
const grandchild = 3;

const drops_both = [_]Op{
    unlinks,
    .{ .kind = .store, .page = lock_page, .word = 1, .value = 1 },
    .{ .kind = .store, .page = grandchild, .word = 0 },
    .{ .kind = .store, .page = grandchild, .word = 0 },
};

const reuses_grandchild = [_]Op{
    .{ .kind = .await_set, .page = lock_page, .word = 1 },
    .{ .kind = .store, .page = grandchild, .word = 0 },
    .{ .kind = .store, .page = grandchild, .word = 0 },
};

fn deepWith(home: []const HomeRange, scripts: []const []const Op) explorer.Options {
    var o = tablesWith(home, scripts);
    o.pages = 4;
    o.prepare = &.{
        .{ .kind = .store, .page = grandchild, .word = 0, .value = 3 },
        .{ .kind = .store, .page = child, .word = 0, .value = 100 + grandchild },
        .{ .kind = .store, .page = parent, .word = slot, .value = link },
    };
    return o;
}

pub const deep = [_]explorer.Options{
    deepWith(homes[0], &.{ &drops_both, &reuses_grandchild }),
    deepWith(homes[1], &.{ &drops_both, &reuses_grandchild }),
    deepWith(homes[2], &.{ &reuses_grandchild, &drops_both }),
};

/// One node clears the entry, another asks for the table at its home, a third one.
pub const asked_while_dropped = ofThree(
    &.{ .{ .first_page = 0, .node = 0 }, .{ .first_page = child, .node = 2 } },
    &.{
        &.{unlinks},
        &.{.{ .kind = .store, .page = child, .word = 1 }},
        &.{.{ .kind = .store, .page = lock_page, .word = 0 }},
    },
);

/// An entry goes and comes back: the table below is dropped and found again while its home, a node
/// that is late with both, offers it. What was offered is not the copy that came back.
pub const relinked_while_offered = ofThree(homes[1], &.{
    &.{
        unlinks,
        .{ .kind = .load, .page = lock_page, .word = 1 },
        .{ .kind = .store, .page = parent, .word = slot, .value = link },
        .{ .kind = .load, .page = lock_page, .word = 1 },
    },
    &.{},
    &.{
        .{ .kind = .store, .page = lock_page, .word = 1 },
        .{ .kind = .store, .page = lock_page, .word = 1 },
        .{ .kind = .store, .page = child, .word = 1 },
    },
});

/// One entry goes and another one comes, in one scan, and the home of the table hears of both
/// before it offers it; it is a third node, the parent's home, that hears of them late, with its
/// copy of the table taken already. It must see what the others write there.
pub const relinked_before_offer = relinkedAtOnce(&.{
    .{ .kind = .store, .page = child, .word = 1 },
    .{ .kind = .store, .page = lock_page, .word = 1, .value = 1 },
}, &.{.{ .kind = .store, .page = child, .word = 0 }}, &.{
    // Takes a page of node 0, which scans before it gives it.
    .{ .kind = .store, .page = lock_page, .word = 0 },
    .{ .kind = .await_set, .page = lock_page, .word = 1 },
    .{ .kind = .load, .page = child, .word = 1 },
});

/// The other way round: the third node has heard of both when the offer comes, and its home has
/// not.
pub const relinked_before_home_knew = relinkedAtOnce(&.{
    .{ .kind = .store, .page = lock_page, .word = 1, .value = 1 },
    .{ .kind = .await_set, .page = lock_page, .word = 0 },
    .{ .kind = .load, .page = child, .word = 1 },
}, &.{}, &.{
    .{ .kind = .await_set, .page = lock_page, .word = 1 },
    .{ .kind = .store, .page = child, .word = 1 },
    .{ .kind = .store, .page = lock_page, .word = 0, .value = 1 },
});

/// `first` and `third`: what nodes 0 and 2 do after the entries have changed.
fn relinkedAtOnce(
    comptime first: []const Op,
    second: []const Op,
    third: []const Op,
) explorer.Options {
    var o = ofThree(&.{
        .{ .first_page = lock_page, .node = 0 },
        .{ .first_page = parent, .node = 2 },
        .{ .first_page = child, .node = 1 },
    }, &.{
        &[_]Op{
            .{ .kind = .store, .page = parent, .word = 0, .value = 0 },
            .{ .kind = .store, .page = parent, .word = slot, .value = link },
        } ++ first,
        second,
        third,
    });
    o.prepare = &.{
        .{ .kind = .store, .page = lock_page, .value = 0 },
        .{ .kind = .store, .page = child, .word = 0, .value = 7 },
        .{ .kind = .store, .page = parent, .word = 0, .value = link },
    };
    return o;
}

/// The table goes out of use, and its new owner puts it, while its home still waits to hear that a
/// third node had made it writable.
pub const put_while_replicated = blk: {
    var o = ofThree(homes[1], &.{
        &.{ unlinks, .{ .kind = .store, .page = lock_page, .word = 1 } },
        &.{},
        &.{.{ .page = child, .word = 0 }},
    });
    o.evictions = 1;
    o.evictable = .{ .node = 0, .page = child };
    break :blk o;
};

/// A node that waits for the right to write a table is told to by another's entry, before its home
/// lets it, and takes the table out of use: its own request is still at the home.
pub const dropped_before_let = ofThree(&.{
    .{ .first_page = lock_page, .node = 2 },
    .{ .first_page = parent, .node = 0 },
}, &.{
    &.{},
    &.{
        .{ .kind = .store, .page = lock_page, .word = 1 },
        .{ .kind = .store, .page = child, .word = 1 },
        unlinks,
    },
    &.{
        .{ .kind = .store, .page = child, .word = 0 },
        .{ .kind = .load, .page = lock_page, .word = 1 },
    },
});

/// The parent starts empty.
fn linking(home: []const HomeRange, scripts: []const []const Op) explorer.Options {
    var o = tablesWith(home, scripts);
    o.prepare = &.{
        .{ .kind = .store, .page = parent, .word = slot, .value = 1 },
        .{ .kind = .store, .page = child, .word = 1, .value = 3 },
    };
    return o;
}

/// Index in tables of the first one that hands over.
pub const handover = 2;

fn tablesWith(home: []const HomeRange, scripts: []const []const Op) explorer.Options {
    return .{
        .pages = 3,
        .homes = home,
        .scripts = scripts,
        .prepare = &prepare,
        .root = parent,
    };
}

/// Three nodes: the third one uses the freed page too, or only keeps replicas.
pub const tables_of_three = [_]explorer.Options{
    ofThree(homes[0], &.{ &hands_over, &takes_over_once, &.{} }),
    ofThree(homes[1], &.{ &frees, &.{}, &changes_once }),
    ofThree(homes[2], &.{ &takes_over_once, &hands_over, &.{} }),
    linkless(homes[0], &.{ &writes_leaf, &looks, &looks }),
};

/// A changed leaf, seen by whoever has the lock next, from whomever.
const writes_leaf = [_]Op{
    lock,
    .{ .kind = .store, .page = parent, .word = 0, .value = 5 },
    unlock,
};
const looks = [_]Op{ lock, .{ .page = parent, .word = 0 }, unlock };

/// Index in tables_of_three of one that goes wrong when nobody waits for diffs to arrive.
pub const ungated = 3;

fn linkless(home: []const HomeRange, scripts: []const []const Op) explorer.Options {
    var o = linking(home, scripts);
    o.nodes = 3;
    o.pages = 2;
    o.prepare = o.prepare[0..1];
    return o;
}

fn ofThree(home: []const HomeRange, scripts: []const []const Op) explorer.Options {
    var o = tablesWith(home, scripts);
    o.nodes = 3;
    return o;
}

pub const tables = blk: {
    var list: [6 * homes.len]explorer.Options = undefined;
    for (homes, 0..) |h, i| {
        list[6 * i] = tablesWith(h, &.{ &frees, &changes });
        list[6 * i + 1] = tablesWith(h, &.{ &changes, &frees });
        list[6 * i + 2] = tablesWith(h, &.{ &hands_over, &takes_over });
        list[6 * i + 3] = tablesWith(h, &.{ &takes_over, &hands_over });
        list[6 * i + 4] = linking(h, &.{ &links_and_hands_over, &takes_over_once });
        list[6 * i + 5] = linking(h, &.{ &takes_over_once, &links_and_hands_over });
    }
    break :blk list;
};

/// The hardware of each node sets one accessed bit, in any table, at any time.
pub const marked_tables = blk: {
    var list = tables ++ .{tables_of_three[0]};
    for (&list) |*o| o.marks = 1;
    break :blk list;
};

/// The table that goes out of use is discarded, before that in vain.
pub const discarding_tables = blk: {
    var list = [_]explorer.Options{ tables[0], tables[8], tables[14], tables[21] };
    for (&list) |*o| {
        o.discards = 1;
        o.discardable = .{ .page = child };
    }
    break :blk list;
};

/// Those of the above in which an evicted page becomes a table, or a freed one is evicted.
pub const evicting_tables = blk: {
    var list = [_]explorer.Options{ tables[0], tables[5], tables[10], tables[20] };
    for (&list) |*o| o.evictions = 1;
    break :blk list;
};
