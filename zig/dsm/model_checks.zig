//! What must be true of the model (model.zig): after every step, and when nothing is under way.

const std = @import("std");
const audit_file = @import("audit.zig");
const store = @import("store.zig");
const model_file = @import("model.zig");
const core_file = @import("core.zig");
const Failure = model_file.Failure;

/// One writer or many readers.
pub fn writers(m: anytype) Failure!void {
    for (0..m.settings.pages) |p| {
        var present: usize = 0;
        var writing: usize = 0;
        for (m.machines[0..m.settings.nodes]) |*machine| {
            if (!machine.present[p]) continue;
            present += 1;
            if (machine.writable[p] and machine.replica[p] == 0) writing += 1;
        }
        if (writing > 0 and present > 1 and !m.settings.replicate) {
            return error.TwoWriters;
        }
        if (writing > 1) return error.TwoWriters;
    }
}

/// A page that no node has is in the home's slot or in every frame that its entry names.
pub fn stored(m: anytype) Failure!void {
    for (0..m.settings.pages) |i| {
        const p: u32 = @intCast(i);
        const core = &m.cores[m.cores[0].homeOf(p)];
        if (core.directory[p].state != .stored) continue;
        if (core.slots.find(p)) |slot| if (slot.use == .store) {
            const machine = &m.machines[core.config.node];
            const content = machine.slots[core.slots.index[p] - 1];
            if (!std.meta.eql(content, m.truth[p])) return error.LostStore;
            continue;
        };
        const copies: store.Copies = .of(core.directory[p]);
        for (copies.list()) |place| {
            if (place == store.no_place) continue;
            const lot = core.store.lotOf(place);
            if (m.hasCrashed(lot.node)) continue;
            const frame = lot.first_frame + (place - lot.first_place);
            const content = m.frames[lot.node][frame];
            if (!std.meta.eql(content, m.truth[p])) return error.LostStore;
        }
    }
}

/// Nothing to do and nothing left over.
pub fn quiet(m: anytype) Failure!void {
    const cores = m.cores[0..m.settings.nodes];
    for (cores, 0..) |*core, n| {
        const machine = &m.machines[n];
        if (machine.thread.busy or machine.held_count > 0) return error.Stuck;
        if (core.pending.free_count != core.pending.items.len) return error.Stuck;
        if (core.txns.free_count != core.txns.items.len) return error.Stuck;
        if (core.slots.free_count != core.slots.items.len) return error.Leaked;
        if (core.store.inUse() != listed(core)) return error.Leaked;
        try repaired(core);
        if (core.discards.count != 0) return error.Leaked;
        for (core.discards.open) |open| if (open != 0) return error.Leaked;
        for (0..m.settings.pages) |p| {
            const access = core.local[p];
            if (machine.present[p] != (access != .invalid)) return error.AuditFailed;
            const writable = access == .exclusive or access == .replicated;
            if (machine.present[p] and machine.writable[p] != writable) return error.AuditFailed;
        }
    }
    if (audit_file.audit(cores) != null) return error.AuditFailed;
}

/// Frames that the home's directory names.
fn listed(core: anytype) u64 {
    var n: u64 = 0;
    for (core.directory) |entry| {
        if (entry.state == .stored) n += store.Copies.of(entry).count();
    }
    return n;
}

/// Whatever has too few copies is counted, and no other memory node has room for it.
fn repaired(core: anytype) Failure!void {
    var singles: u64 = 0;
    for (core.directory) |entry| {
        if (entry.state != .stored) continue;
        const copies: store.Copies = .of(entry);
        if (copies.count() == core.config.frame_copies) continue;
        singles += 1;
        if (core.store.roomiest(core.store.lotOf(copies.first).node) != null) return error.Stuck;
    }
    if (singles != core.store.singles or core.store.repair.active != 0) return error.Leaked;
}
