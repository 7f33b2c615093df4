//! The coherence protocol's vocabulary: messages between nodes, events into the core, actions out
//! of it. The core (core.zig) is a pure step function over these; the pager's shell executes
//! actions on a userfaultfd and lanes, the explorer and the simulator on models. Wire form =
//! memory form, little endian, no hidden padding.

const std = @import("std");

pub const Page = u32;
pub const Node = u8;
pub const node_none: Node = 0xff;
pub const nodes_max = 64;
/// A set of nodes: bit n = node n.
pub const Nodes = u64;

/// Entries of a root page table (level 4) from here on map the kernel's half of the address space
/// (canonical addresses, Intel SDM vol. 3A, 4.5).
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
    /// home -> sharer: drop it, ack to `requester`. A discard's: to any holder, the home asks.
    invalidate = 6,
    /// home or owner -> requester. flag_data: the page follows; flag_exclusive, flag_zero
    /// (content is zeroes, nothing follows); neither: the requester's copy serves; `acks` to await.
    grant = 7,
    /// sharer -> requester.
    ack = 8,
    /// requester -> home: closes the transaction.
    done = 9,
    /// any -> home: this page is the root of the kernel's page tables, replicate it.
    replicate = 10,
    /// home -> whoever was told to give the page up for a younger chain: an older one waits behind
    /// that (`age`, of `requester`), so nobody younger than it may put the revoke aside.
    hurry = 11,
    /// home -> every node. flag_data: take a read-only copy of the table (`index` = its level,
    /// `old` = its parent's page; known by the change number `new` of `requester`, none: of
    /// nobody). Without: every node has one, make it writable with a twin.
    replica = 13,
    /// The change that this node knows the table by, in the same way.
    replica_ack = 14,
    /// 8-byte entry `index` of a replicated page changed from `old` to `new`. `age` holds the pages
    /// both point at (new in the high half), `version` the sequence to acknowledge.
    diff = 15,
    /// Acknowledges diffs and unreplicates up to sequence `version` (more than two nodes).
    diff_ack = 16,
    /// No longer a table, owned by the sender alone: drop the replica. `version` as in diff.
    unreplicate = 17,
    /// node -> home: gives its copy back. flag_data: the bytes follow, it may be the only copy.
    put = 18,
    /// home -> node: the home answers for the page; the node's slot is free.
    put_ack = 19,
    /// home -> node: a put without data came, but that was the only copy: put it again with data.
    put_more = 20,
    /// home -> memory node: keep the page in frame `old`; `version` is the store's sequence number,
    /// which the answer repeats.
    frame_put = 21,
    frame_ack = 22,
    /// home -> memory node: the bytes of frame `old`, please; they come with frame_data.
    frame_get = 23,
    frame_data = 24,
    /// any -> home: nobody needs the page's content any more, drop every copy.
    discard = 25,
    /// home -> who asked: done; flag_refused: it is a page table.
    discarded = 26,
    /// home -> memory node: frame `old` holds nothing any more, its memory may go. Advice without
    /// an answer: one that is never sent costs memory until the frame's next put.
    frame_free = 27,
};

pub const flag_data: u8 = 1;
pub const flag_exclusive: u8 = 2;
pub const flag_zero: u8 = 4;
/// replica_ack: this node knows no table at that place (any more) and did not take the replica.
/// discarded: it was not.
pub const flag_refused: u8 = 8;

/// Action.fatal: one entry took more tables out of use than a step can say.
pub const fatal_unlinked: u32 = 1;
/// Action.fatal: the only copy of the page was on a memory node that is lost.
pub const fatal_page_lost: u32 = 2;

pub const page_none: Page = 0xffff_ffff;

pub const Msg = extern struct {
    kind: u8,
    flags: u8 = 0,
    acks: u8 = 0,
    requester: Node = node_none,
    page: Page,
    /// Version of the page (grants, upgrade), or the transaction it belongs to (ack, done).
    version: u32 = 0,
    index: u16 = 0,
    /// diff: of which making of the replica (replica.zig).
    making: u16 = 0,
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
            .put_ack, .put_more, .hurry => false,
            // No other guest part sees these bytes before a grant.
            .frame_put, .frame_ack, .frame_get, .frame_data, .frame_free => false,
            .put => self.hasData(),
            else => true,
        };
    }

    /// Whether the message brings word of replicated page tables itself: it leaves at once, ahead
    /// of everything that tells.
    pub fn isTableWord(self: Msg) bool {
        return switch (@as(MsgKind, @fromBackingInt(@intCast(self.kind)))) {
            .diff, .diff_ack, .unreplicate => true,
            else => false,
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
    /// A page that is the root of the guest kernel's page tables.
    root: struct { page: Page },
    /// A replica came to be here (action twin): its present non-leaf entries are page tables of the
    /// next level; the shell reports each child once.
    child: struct { parent: Page, index: u16, page: Page, level: u8 },
    /// The shell's policy wants the page to leave this node. Refused (counted, no action) where
    /// canEvict(page) says no.
    evict: struct { page: Page, now: u64 },
    /// The page's content is not needed any more, on no node: action discarded says when every copy
    /// is gone. Until then the page may still be read as it was. Refused (counted, no action)
    /// where canDiscard(page) says no: then the shell asks again after another one is done.
    discard: struct { page: Page },
    /// A memory node is gone for good, and everything it kept. No message of it is taken any more.
    node_lost: struct { node: Node },
};

/// Number of a write-back slot: a page of the shell's memory, below Config.slots_max. The core
/// says by its actions what is in which one, and gives out again what it needs no more.
pub const SlotNumber = u16;

pub const Source = union(enum) {
    /// The content that came with the message of this step.
    message,
    zero,
    slot: SlotNumber,
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
    /// The local page, still write-protected, becomes a replica in place (level 4..1): take its
    /// twin.
    twin: struct { page: Page, level: u8 },
    /// No longer replicated here; the copy stays (exclusive) unless dropped by its own action.
    forget_replica: Page,
    /// Apply a peer's entry to page and twin.
    patch: struct { page: Page, index: u16, old: u64, new: u64 },
    /// Copy the page's bytes into the slot; the page is write-protected.
    save: struct { page: Page, slot: SlotNumber },
    /// Copy the content that came with the message of this step into the slot.
    keep: SlotNumber,
    /// With data: the slot's bytes if there is one, else the page's, as they are when this action
    /// is reached (after protect, before drop). Sends leave after the scan of replicas that ends
    /// the step; diffs first. A slot's bytes stay until the end of the step at least.
    send: struct { to: Node, msg: Msg, slot: ?SlotNumber = null },
    /// At the page's home: from here on nobody has the page, and it reads as zeroes until it is
    /// written again, whoever asked for that.
    emptied: Page,
    /// A discard that was asked for here is done: the page reads as zeroes until it is written
    /// again. Refused: it is a page table, and stays as it is.
    discarded: struct { page: Page, refused: bool },
    /// Memory can no longer be right: stop the VM. `code` is one of fatal_*.
    fatal: struct { page: Page, code: u32 },
};

comptime {
    std.debug.assert(@sizeOf(Msg) == 40);
}
