//! The coherence protocol's vocabulary: messages between nodes, events into the core, actions out
//! of it. The core (core.zig) is a pure step function over these; the pager's shell executes
//! actions on a userfaultfd and lanes, the explorer and the simulator on models. Wire form =
//! memory form, little endian, no hidden padding.

const std = @import("std");

pub const Page = u32;
pub const Node = u8;
pub const node_none: Node = 0xff;
/// Sharer sets are one byte in a directory entry.
pub const nodes_max = 8;

/// Entries of a root page table (level 4) from here on map the kernel's half of the address space.
pub const kernel_half_first = 256;

pub const MsgKind = enum(u8) {
    /// requester -> home. `age` orders them.
    get_shared = 1,
    get_exclusive = 2,
    /// `version` is the one the requester holds.
    upgrade = 3,
    /// home -> owner: send the page to `requester`; forward_exclusive also gives it up.
    forward_shared = 4,
    forward_exclusive = 5,
    /// home -> sharer: drop it, ack to `requester`.
    invalidate = 6,
    /// home or owner -> requester. flag_data: the page follows; flag_exclusive, flag_zero
    /// (content is zeroes, nothing follows), flag_more: another grant brings what is missing;
    /// `acks` to await.
    grant = 7,
    /// sharer -> requester.
    ack = 8,
    /// requester -> home: closes the transaction.
    done = 9,
    /// any -> home: make this page-table page replicated.
    replicate = 10,
    /// home -> owner or sharer: give the page back to the home (start of a replicate transaction).
    recall = 11,
    /// holder -> home, flag_data: answer to recall.
    returned = 12,
    /// home -> every node, flag_data: install writable, keep a twin.
    replica = 13,
    replica_ack = 14,
    /// 8-byte entry `index` of a replicated page changed from `old` to `new`.
    diff = 15,
    /// Acknowledges diffs up to sequence `old` (more than two nodes).
    diff_ack = 16,
    /// The page is strict again, owned by `requester`; drop the replica.
    unreplicate = 17,
    unreplicate_ack = 18,
};

pub const flag_data: u8 = 1;
pub const flag_exclusive: u8 = 2;
pub const flag_zero: u8 = 4;
pub const flag_more: u8 = 8;

pub const Msg = extern struct {
    kind: u8,
    flags: u8 = 0,
    acks: u8 = 0,
    requester: Node = node_none,
    page: Page,
    /// Version of the page (grants, upgrade), or the transaction it belongs to (ack, done).
    version: u32 = 0,
    index: u16 = 0,
    pad: u16 = 0,
    /// Age of the requester's chain of faults: smaller is older; ties by requester.
    age: u64 = 0,
    old: u64 = 0,
    new: u64 = 0,

    /// Whether a guest could learn of another node's stores by this message. Requests and their
    /// ends carry nothing a guest wrote; everything else waits for the diffs of replicated page
    /// tables.
    pub fn tells(self: Msg) bool {
        return switch (@as(MsgKind, @fromBackingInt(@intCast(self.kind)))) {
            .get_shared, .get_exclusive, .upgrade, .done, .replicate, .diff, .diff_ack => false,
            else => true,
        };
    }

    pub fn hasData(self: Msg) bool {
        return self.flags & flag_data != 0;
    }
};

/// How a page is mapped on this node.
pub const Access = enum(u8) {
    invalid = 0,
    /// Present, write-protected.
    shared = 1,
    /// Present, writable, the only copy.
    exclusive = 2,
    /// Present, writable, one of several copies kept equal by diffs (page tables only).
    replicated = 3,
};

pub const Event = union(enum) {
    /// A local thread cannot go on: `page` is absent, or write-protected for a writer. `thread`
    /// is a small index of the faulting thread (vCPU or device thread).
    fault: struct { page: Page, write: bool, thread: u16, now: u64 },
    message: struct { from: Node, msg: Msg, now: u64 },
    /// Deadlines may have passed.
    tick: struct { now: u64 },
    /// The shell's scan found that an entry of a replicated page differs from its twin (`old`); the
    /// shell has updated the twin. Comes before the sends of the step that caused the scan.
    replica_changed: struct {
        page: Page,
        index: u16,
        old: u64,
        new: u64,
        old_child: ?Page = null,
        new_child: ?Page = null,
    },
    /// The table that pointed at this one is no page table any more.
    unlinked: struct { page: Page },
    /// A page that is the root of the guest kernel's page tables.
    root: struct { page: Page },
    /// A replica was just installed here (by the action of that name): its present non-leaf entries
    /// are page tables of the next level; the shell reports each child once.
    child: struct { parent: Page, index: u16, page: Page, level: u8 },
};

pub const Source = enum {
    /// The content that came with the message of this step.
    message,
    zero,
};

pub const Action = union(enum) {
    /// Map the page: UFFDIO_COPY, with _MODE_WP for shared. Wakes waiters if `wake`.
    install: struct { page: Page, access: Access, source: Source, wake: bool },
    /// Write-protect (give-away begins, or downgrade).
    protect: Page,
    /// Remove write protection and wake: an upgrade, or data that waited for its acks.
    unprotect: Page,
    /// Discard the local copy.
    drop: Page,
    /// Wake waiters without changing anything: they will fault again or go on.
    wake: Page,
    /// Map writable with a twin; page-table level 4..1 (0 = not known yet).
    install_replica: struct { page: Page, source: Source, level: u8 },
    /// The local exclusive page becomes a replica in place: take its twin.
    twin: struct { page: Page, level: u8 },
    /// No longer replicated here; the copy stays (exclusive) unless dropped by its own action.
    forget_replica: Page,
    /// Apply a peer's entry to page and twin.
    patch: struct { page: Page, index: u16, old: u64, new: u64 },
    /// With data: the page's bytes as they are when this action is reached (after protect, before
    /// drop). Sends leave after the scan of replicas that ends the step; diffs first.
    send: struct { to: Node, msg: Msg },
    /// Memory can no longer be right (conflicting entries): stop the VM.
    fatal: struct { page: Page, code: u32 },
};

comptime {
    std.debug.assert(@sizeOf(Msg) == 40);
}
