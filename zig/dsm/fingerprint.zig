//! What of a model's state decides its future, as one number: the explorer takes two states with
//! the same number for one. No counters, no versions (behaviour does not depend on them, unless
//! hardware's marks can come late), no order of pool records; ages and times only as far as they
//! differ.

const std = @import("std");
const types = @import("types.zig");
const core_file = @import("core.zig");
const model_file = @import("model.zig");

const behind_max = 15;

/// `done`: what may not happen again.
pub fn of(model: anytype, done: anytype) u64 {
    var f: Fingerprint(@TypeOf(model)) = .{ .model = model };
    f.base = f.oldestAge();
    f.mix(done);
    f.mixAll();
    return f.hash.final();
}

fn Fingerprint(comptime Model: type) type {
    return struct {
        const Self = @This();

        model: Model,
        hash: std.hash.Wyhash = .init(0x5516),
        /// Ages count relative to it: only their differences matter.
        base: u64 = 0,

        fn mixAll(self: *Self) void {
            const m = self.model;
            const nodes = m.settings.nodes;
            const all = nodes + m.settings.memory;
            self.mix(m.crashed);
            for (0..m.settings.pages) |p| self.mix(m.truth[p]);
            for (0..nodes) |n| {
                self.mixMachine(&m.machines[n]);
                self.mixCore(n);
            }
            for (0..all) |n| {
                if (n >= nodes and !m.hasCrashed(n)) self.mix(m.frames[n]);
                for (0..all) |t| {
                    const lane = &m.lanes[n][t];
                    self.mix(lane.count);
                    for (lane.items[0..lane.count]) |e| self.mixEnvelope(e);
                }
            }
        }

        fn mix(self: *Self, value: anytype) void {
            std.hash.autoHash(&self.hash, value);
        }

        fn hasAge(msg: types.Msg) bool {
            return switch (@as(types.MsgKind, @fromBackingInt(@intCast(msg.kind)))) {
                .get_shared, .get_exclusive, .upgrade, .discard => true,
                .forward_shared, .forward_exclusive, .invalidate => true,
                else => false,
            };
        }

        fn oldestAge(self: *const Self) u64 {
            if (self.model.settings.hold_ns_max == 0) return 0;
            const m = self.model;
            var age: u64 = std.math.maxInt(u64);
            for (m.cores[0..m.settings.nodes], 0..) |*core, n| {
                age = @min(age, core.holds.clock);
                for (core.holds.chains) |c| if (c.open) {
                    age = @min(age, c.age);
                };
                for (core.holds.deferred[0..core.holds.deferred_count]) |d| age = @min(age, d.age);
                for (core.pending.items) |p| if (p.waits) {
                    age = @min(age, p.age);
                };
                for (core.txns.items) |t| if (t.page != types.page_none) {
                    age = @min(age, t.request.age);
                    var waiting = core.requests.iterate(t.queue);
                    while (waiting.next()) |q| age = @min(age, q.age);
                };
                for (m.lanes[n]) |lane| for (lane.items[0..lane.count]) |e| {
                    if (hasAge(e.msg)) age = @min(age, e.msg.age);
                };
            }
            return age;
        }

        fn mixEnvelope(self: *Self, e: model_file.Envelope) void {
            var msg = e.msg;
            const kind: types.MsgKind = @fromBackingInt(@intCast(msg.kind));
            if (isFrameKind(kind)) {
                msg.version = @intFromBool(self.isCurrent(msg));
            } else if (kind != .diff and kind != .diff_ack and kind != .unreplicate) {
                msg.version = if (msg.page < self.model.settings.pages)
                    self.behind(msg.page, msg.version)
                else
                    0;
            }
            if (kind == .diff) msg.making = @intCast(self.behind(msg.page, msg.making));
            if (hasAge(msg)) msg.age -= self.base;
            self.mix(msg);
            if (msg.hasData()) self.mix(e.data);
        }

        /// With marks: by how many versions something is older than what its home knows, which
        /// decides whether a late diff counts. Copies that are in use or on their way are closer
        /// to it than the limit.
        fn behind(self: *const Self, page: types.Page, version: u32) u32 {
            if (self.model.settings.walked == null) return 0;
            const home = &self.model.cores[self.model.cores[0].homeOf(page)];
            const least: u16 = @truncate(home.directory[page].version -% version);
            return @min(least, behind_max);
        }

        fn isFrameKind(kind: types.MsgKind) bool {
            return switch (kind) {
                .frame_put, .frame_ack, .frame_get, .frame_data, .frame_free => true,
                else => false,
            };
        }

        /// Whether the page's home still waits for that answer.
        fn isCurrent(self: *const Self, msg: types.Msg) bool {
            const core = &self.model.cores[msg.requester];
            if (core.txns.find(msg.page)) |t| {
                if (t.phase == .load and t.sequence == msg.version) return true;
            }
            const slot = core.slots.find(msg.page) orelse return false;
            return slot.use == .store and slot.sequence == msg.version;
        }

        fn mixMachine(self: *Self, m: anytype) void {
            for (0..self.model.settings.pages) |p| {
                self.mix(m.present[p]);
                self.mix(m.replica[p]);
                if (m.present[p]) self.mix(m.content[p]);
                if (m.present[p]) self.mix(m.writable[p]);
                if (m.replica[p] != 0) self.mix(m.twin[p]);
            }
            self.mix(m.thread.pc);
            self.mix(m.thread.busy);
            if (m.thread.busy) self.mix(m.thread.op);
            self.mix(m.thread.blocked);
            self.mix(m.held_count);
            for (m.held[0..m.held_count]) |h| {
                self.mix(h.to);
                self.mix(h.sequence);
                self.mixEnvelope(h.envelope);
            }
        }

        fn mixCore(self: *Self, n: usize) void {
            const core = &self.model.cores[n];
            for (0..self.model.settings.pages) |i| {
                const page: u32 = @intCast(i);
                self.mix(core.local[page]);
                var entry = core.directory[page];
                entry.version = 0;
                if (core.local[page] != .invalid) self.mix(self.behind(page, core.versions[page]));
                self.mix(@as(u128, @bitCast(entry)));
                self.mix(core.pending.index[page] != 0);
                if (core.pending.find(page)) |p| {
                    var copy = p.*;
                    copy.version = 0;
                    if (copy.waits) copy.age -= self.base;
                    self.mix(copy);
                }
                self.mix(core.txns.index[page] != 0);
                if (core.txns.find(page)) |t| {
                    self.mixRequest(t.request);
                    self.mix(.{ t.phase, t.missing, t.refused, t.queue.count });
                    if (t.phase == .load) self.mix(t.place);
                    var waiting = core.requests.iterate(t.queue);
                    while (waiting.next()) |q| self.mixRequest(q);
                }
                self.mix(core.tables.index[page] != 0);
                if (core.tables.find(page)) |t| self.mix(t.*);
                self.mixSlot(n, page);
            }
            const r = &core.replicas;
            self.mix(.{ r.count, r.active, r.sequence, r.acknowledged, r.heard });
            for (0..r.count) |i| self.mix(r.wants[(r.first + i) % r.wants.len]);
            self.mixHolds(core);
            for (core.discards.asked[0..core.discards.count]) |page| self.mix(page);
            if (self.model.settings.memory > 0) self.mixStore(&core.store);
        }

        fn mixStore(self: *Self, s: anytype) void {
            for (s.pages) |page| self.mix(page);
            for (s.lots) |lot| self.mix(lot);
            self.mix(.{ s.repair.is_recovering, s.repair.left > 0 });
            if (s.singles > 0) self.mix(s.repair.next);
        }

        fn mixSlot(self: *Self, n: usize, page: u32) void {
            if (self.model.settings.slots == 0) return;
            const core = &self.model.cores[n];
            const slot = core.slots.find(page);
            self.mix(slot != null);
            const s = slot orelse return;
            const content = self.model.machines[n].slots[core.slots.index[page] - 1];
            self.mix(.{ s.use, s.sent, s.missing, s.is_repair, s.spare });
            if (s.use != .copy) self.mix(content);
        }

        fn mixRequest(self: *Self, r: core_file.Request) void {
            self.mix(.{ r.node, r.kind, r.age - self.base });
        }

        fn mixHolds(self: *Self, core: anytype) void {
            if (self.model.settings.hold_ns_max == 0) return;
            const h = &core.holds;
            // Times count relative to now, as far as they can still make a difference.
            self.mix(.{ h.clock - self.base, h.deferred_count });
            for (h.chains) |c| {
                self.mix(.{ c.open, c.next });
                for (c.kept) |k| {
                    const own = c.open and k.age == c.age;
                    self.mix(.{ k.page, own, (k.until + 1) -| core.now });
                }
                if (!c.open) continue;
                self.mix(.{ c.waiting, c.age - self.base, c.acquired });
                if (c.waiting) self.mix(.{ c.page, core.now > c.since });
                if (!c.waiting) self.mix((c.until + 1) -| core.now);
            }
            for (h.deferred[0..h.deferred_count]) |d| {
                self.mix(.{ d.page, d.kind, d.requester, d.acks });
                self.mix(.{ d.age - self.base, d.until -| core.now });
            }
        }
    };
}
