//! The guest kernel's page tables, as its vCPUs use them: entries are written under one lock that
//! lies in ordinary memory, tables are linked and unlinked, a table that was unlinked is reused as
//! data after (where hardware walks) every vCPU has answered an interrupt. Hardware walks tables
//! from the root through its own node's copies and sets accessed and dirty bits without any lock.
//! Whoever holds the lock must read what the last holder wrote.

const std = @import("std");
const types = @import("../dsm/types.zig");
const finding = @import("finding.zig");
const guest = @import("guest.zig");
const Attempt = guest.Attempt;
const Cluster = @import("cluster.zig").Cluster;
const kernel = @import("kernel.zig");
const tables_max = @import("config.zig").tables_max;
const truth_file = @import("truth.zig");
const Vcpu = guest.Vcpu;

const ignored = truth_file.accessed_dirty;
const lock_page = 0;
const lock_offset = 64;
const root_level = 4;
const entries_per_page = 512;
/// Present and writable (Intel SDM vol. 3A, 4.5).
const entry_link: u64 = 3;
const entry_present: u64 = 1;
const entry_large: u64 = 1 << 7;
const entry_address: u64 = 0x000f_ffff_ffff_f000;

/// Entries that lead to tables, and others; of a root in its kernel half.
const link_slots = [_]u16{ 0, 1, 100, 255 };
const leaf_slots = [_]u16{ 2, 3, 99, 254 };

const Table = struct {
    /// 0: not a table now.
    level: u8 = 0,
    parent: u8 = 0,
    slot: u8 = 0,
};

/// What the holder of the lock knows.
pub const Tables = struct {
    count: u8,
    items: [tables_max]Table = @splat(.{}),
    is_root_told: bool = false,

    pub fn init(count: u8) Tables {
        var self: Tables = .{ .count = count };
        self.items[0].level = root_level;
        return self;
    }

    fn pageOf(table: usize) u32 {
        return @intCast(lock_page + 1 + table);
    }

    fn indexOf(self: *const Tables, table: usize, slot: u16) u16 {
        const kernel_half: u16 = types.kernel_half_first;
        return if (self.items[table].level == root_level) kernel_half + slot else slot;
    }

    fn pick(self: *const Tables, random: std.Random, wanted: enum { linked, free, parent }) ?u8 {
        var found: [tables_max]u8 = undefined;
        var count: usize = 0;
        for (self.items[0..self.count], 0..) |t, i| {
            const fits = switch (wanted) {
                .linked => t.level > 0,
                .free => t.level == 0,
                .parent => t.level > 1,
            };
            if (!fits) continue;
            found[count] = @intCast(i);
            count += 1;
        }
        return if (count == 0) null else found[random.uintLessThan(usize, count)];
    }

    fn isTaken(self: *const Tables, parent: u8, slot: u8) bool {
        for (self.items[1..self.count]) |t| {
            if (t.level > 0 and t.parent == parent and t.slot == slot) return true;
        }
        return false;
    }

    fn free(self: *Tables, table: u8) void {
        self.items[table].level = 0;
        for (1..self.count) |i| {
            const t = self.items[i];
            if (t.level > 0 and t.parent == table) self.free(@intCast(i));
        }
    }
};

const Step = union(enum) {
    read: struct { page: u32, index: u16 },
    write: struct { page: u32, index: u16, value: u64 },
    clear: u32,
    /// Every other vCPU must answer: none of them uses the entry any more.
    shoot: struct { page: u32, index: u16 },
    root,
    unlock,
};

const steps_max = 40;

pub const Script = struct {
    mode: enum { idle, locking, locked, walking } = .idle,
    steps: [steps_max]Step = undefined,
    count: usize = 0,
    at: usize = 0,
    /// The address that hardware translates.
    path: [root_level]u16 = undefined,
    is_shot: bool = false,
    answers_missing: u32 = 0,

    pub fn isActive(self: *const Script) bool {
        return self.mode != .idle;
    }

    pub fn begin(self: *Script, v: *Vcpu) void {
        const random = v.cluster.guest.random();
        if (v.cluster.habits.walks and random.boolean()) {
            self.mode = .walking;
            for (&self.path) |*slot| {
                const leaf = random.uintLessThan(u8, 4) == 0;
                const i = random.uintLessThan(usize, 4);
                slot.* = if (leaf) leaf_slots[i] else link_slots[random.uintLessThan(usize, 2)];
            }
            return;
        }
        self.* = .{ .mode = .locking };
    }

    pub fn run(self: *Script, v: *Vcpu) Attempt {
        return switch (self.mode) {
            .idle => unreachable,
            .locking => self.lock(v),
            .locked => self.runStep(v),
            .walking => self.walk(v),
        };
    }

    fn lock(self: *Script, v: *Vcpu) Attempt {
        if (missing(v, lock_page)) |fault| return fault;
        check(v, lock_page, lock_offset, 0);
        if (v.word(lock_page, lock_offset).* != 0) return .again;
        v.store(lock_page, lock_offset, v.tid());
        self.mode = .locked;
        self.count = 0;
        self.at = 0;
        self.plan(v);
        self.add(.unlock);
        return .done;
    }

    fn runStep(self: *Script, v: *Vcpu) Attempt {
        switch (self.steps[self.at]) {
            .read => |r| {
                const node_kernel = &v.cluster.machines[v.node].kernel;
                if (!node_kernel.canRead(r.page)) {
                    return .{ .fault = .{ .page = r.page, .write = false } };
                }
                check(v, r.page, @as(usize, r.index) * 8, ignored);
            },
            .write => |w| {
                if (missing(v, w.page)) |fault| return fault;
                v.cluster.trace("vcpu {d} of node {d} writes entry {d} of page {d}: 0x{x}", .{
                    v.index, v.node, w.index, w.page, w.value,
                });
                v.store(w.page, @as(usize, w.index) * 8, w.value);
            },
            .clear => |page| {
                if (missing(v, page)) |fault| return fault;
                for (0..entries_per_page) |i| v.store(page, i * 8, 0);
            },
            .shoot => |s| if (!self.shoot(v, s.page, s.index)) return .again,
            .root => v.cluster.postRoot(v.node, Tables.pageOf(0)),
            .unlock => {
                if (missing(v, lock_page)) |fault| return fault;
                check(v, lock_page, lock_offset, 0);
                v.store(lock_page, lock_offset, 0);
                self.mode = .idle;
            },
        }
        self.at += 1;
        return .done;
    }

    fn missing(v: *Vcpu, page: u32) ?Attempt {
        if (v.cluster.machines[v.node].kernel.canWrite(page)) return null;
        return .{ .fault = .{ .page = page, .write = true } };
    }

    fn check(v: *Vcpu, page: u32, offset: usize, mask: u64) void {
        v.cluster.counters.reads += 1;
        const found = v.word(page, offset).*;
        const right = v.trueWord(page, offset).*;
        if (found & ~mask == right & ~mask) return;
        finding.fail(.stale_read, "vcpu {d} of node {d}, which has the lock, reads 0x{x} in " ++
            "page {d} at {d}, where the last write was 0x{x}", .{
            v.index, v.node, found, page, offset, right,
        });
    }

    /// True when all have answered.
    fn shoot(self: *Script, v: *Vcpu, page: u32, index: u16) bool {
        if (!self.is_shot) {
            self.is_shot = true;
            v.cluster.shootDown(v, page, index);
        }
        if (self.answers_missing > 0) return false;
        self.is_shot = false;
        return true;
    }

    fn add(self: *Script, step: Step) void {
        self.steps[self.count] = step;
        self.count += 1;
    }

    /// What the holder of the lock does with it.
    fn plan(self: *Script, v: *Vcpu) void {
        const tables = &v.cluster.tables;
        const random = v.cluster.guest.random();
        for (0..random.intRangeAtMost(usize, 1, 3)) |_| {
            switch (random.uintLessThan(u8, 12)) {
                0...2 => self.planLeaf(tables, random),
                3...6 => self.planLink(tables, random),
                7, 8 => self.planUnlink(v, tables, random),
                9 => self.planRelink(tables, random),
                10 => self.planData(tables, random),
                else => self.planRead(tables, random),
            }
        }
        if (!tables.is_root_told or random.uintLessThan(u8, 16) == 0) {
            // The root is a page that somebody has written to.
            self.planWrite(tables, random, 0);
            self.add(.root);
            tables.is_root_told = true;
        }
        self.planRead(tables, random);
    }

    fn planRead(self: *Script, tables: *const Tables, random: std.Random) void {
        const table = random.uintLessThan(u8, tables.count);
        const slots = if (random.boolean()) link_slots else leaf_slots;
        self.add(.{ .read = .{
            .page = Tables.pageOf(table),
            .index = tables.indexOf(table, slots[random.uintLessThan(usize, 4)]),
        } });
    }

    fn planWrite(self: *Script, tables: *const Tables, random: std.Random, table: u8) void {
        const frame = kernel.gpaOfPage(random.uintLessThan(u32, tables.count + 1));
        const level = tables.items[table].level;
        const present = random.boolean() and level > 0 and level < root_level;
        const large: u64 = if (level > 1) entry_large else 0;
        const noise = random.int(u64) & 0xff00_0000_0000;
        self.add(.{ .write = .{
            .page = Tables.pageOf(table),
            .index = tables.indexOf(table, leaf_slots[random.uintLessThan(usize, 4)]),
            .value = if (present) frame | large | entry_link else noise << 8,
        } });
    }

    fn planLeaf(self: *Script, tables: *const Tables, random: std.Random) void {
        self.planWrite(tables, random, tables.pick(random, .linked).?);
    }

    fn planData(self: *Script, tables: *const Tables, random: std.Random) void {
        const table = tables.pick(random, .free) orelse return;
        for (0..2) |_| self.planWrite(tables, random, table);
        self.planRead(tables, random);
    }

    fn linkOf(table: u8) u64 {
        return kernel.gpaOfPage(Tables.pageOf(table)) | entry_link;
    }

    fn planLink(self: *Script, tables: *Tables, random: std.Random) void {
        const table = tables.pick(random, .free) orelse return;
        const parent = tables.pick(random, .parent) orelse return;
        const slot = random.uintLessThan(u8, 4);
        if (tables.isTaken(parent, slot)) return;
        const t: Table = .{
            .level = tables.items[parent].level - 1,
            .parent = parent,
            .slot = slot,
        };
        self.add(.{ .clear = Tables.pageOf(table) });
        tables.items[table] = t;
        if (random.boolean()) self.planWrite(tables, random, table);
        self.add(.{ .write = .{
            .page = Tables.pageOf(parent),
            .index = tables.indexOf(parent, link_slots[slot]),
            .value = linkOf(table),
        } });
        if (random.boolean()) self.planWrite(tables, random, table);
    }

    fn planUnlink(self: *Script, v: *Vcpu, tables: *Tables, random: std.Random) void {
        const table = tables.pick(random, .linked).?;
        if (table == 0) return;
        const t = tables.items[table];
        const page = Tables.pageOf(t.parent);
        const index = tables.indexOf(t.parent, link_slots[t.slot]);
        self.add(.{ .write = .{ .page = page, .index = index, .value = 0 } });
        tables.free(table);
        if (v.cluster.habits.walks) self.add(.{ .shoot = .{ .page = page, .index = index } });
        if (random.boolean()) self.planWrite(tables, random, table);
    }

    /// The entry goes and comes back.
    fn planRelink(self: *Script, tables: *const Tables, random: std.Random) void {
        const table = tables.pick(random, .linked).?;
        if (table == 0) return;
        const t = tables.items[table];
        const page = Tables.pageOf(t.parent);
        const index = tables.indexOf(t.parent, link_slots[t.slot]);
        self.add(.{ .write = .{ .page = page, .index = index, .value = 0 } });
        if (random.boolean()) self.planRead(tables, random);
        self.add(.{ .write = .{ .page = page, .index = index, .value = linkOf(table) } });
    }

    /// As the hardware does it under nested paging: every table it reads must be writable.
    fn walk(self: *Script, v: *Vcpu) Attempt {
        var page = Tables.pageOf(0);
        for (self.path, 0..) |slot, depth| {
            const level = root_level - depth;
            if (missing(v, page)) |fault| return fault;
            const half: u16 = if (level == root_level) types.kernel_half_first else 0;
            const entry = v.word(page, 8 * @as(usize, half + slot));
            if (entry.* & entry_present == 0) break;
            const is_leaf = level == 1 or entry.* & entry_large != 0;
            v.cluster.trace("vcpu {d} of node {d} walks by entry {d} of page {d}: 0x{x}", .{
                v.index, v.node, half + slot, page, entry.*,
            });
            entry.* |= if (is_leaf) ignored else ignored & 0x20;
            if (is_leaf) break;
            page = v.cluster.pageOfGpa(entry.* & entry_address) orelse finding.fail(
                .wrong_content,
                "vcpu {d} of node {d} walks to 0x{x}, which no table was ever",
                .{ v.index, v.node, entry.* },
            );
        }
        self.mode = .idle;
        return .done;
    }
};

/// A node's shard has the interrupt that says that an entry was changed: its own copy must say so
/// already, if it has one.
pub fn checkShot(cluster: *Cluster, node: u8, page: u32, index: u16) void {
    const node_kernel = &cluster.machines[node].kernel;
    if (!node_kernel.canRead(page)) return;
    const offset = @as(usize, index) * 8;
    const found: *const u64 = @ptrCast(@alignCast(node_kernel.bytes(page)[offset..][0..8]));
    const right: *const u64 = @ptrCast(@alignCast(cluster.truth.page(page)[offset..][0..8]));
    if (found.* & ~ignored == right.* & ~ignored) return;
    finding.fail(.stale_read, "node {d} is told that entry {d} of page {d} has changed to 0x{x} " ++
        "and has 0x{x} itself", .{ node, index, page, right.*, found.* });
}
