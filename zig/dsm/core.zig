const std = @import("std");
const t = @import("types.zig");
pub const HomeRange = struct { first_page: u32, node: u8 };
pub const Config = struct { node: u8, node_count: u8, page_count: u32, home: []const HomeRange, replicate: bool, hold_ns_max: u64, threads: u16 };
pub const Actions = struct {
    items: [600]t.Action = undefined,
    count: usize = 0,
    pub const empty: Actions = .{};
    pub fn slice(self: *const Actions) []const t.Action {
        return self.items[0..self.count];
    }
    fn add(self: *Actions, a: t.Action) void {
        self.items[self.count] = a;
        self.count += 1;
    }
};
const State = enum(u8) { untouched, shared, exclusive, replicated };
const Dir = struct { state: State = .untouched, owner: u8 = 0, sharers: u8 = 0, migr: u8 = 0 };
const Kind = enum(u8) { s, x, up, rep };
const Req = struct { node: u8, kind: Kind };
const Txn = struct { page: u32, used: bool = false, req: Req, q: [16]Req = undefined, qn: usize = 0, acks: u8 = 0 };
const Pend = struct { page: u32, used: bool = false, x: bool, data: bool = false, grant: bool = false, installed: bool = false, need: i32 = 0, got: i32 = 0, excl: bool = false, zero: bool = false };
pub const Core = struct {
    a: std.mem.Allocator,
    c: Config,
    local: []t.Access,
    dir: []Dir,
    level: []u8,
    txns: [256]Txn,
    pends: [256]Pend,
    pub fn init(a: std.mem.Allocator, c: Config) !Core {
        const local = try a.alloc(t.Access, c.page_count);
        @memset(local, .invalid);
        const dir = try a.alloc(Dir, c.page_count);
        @memset(dir, .{});
        const level = try a.alloc(u8, c.page_count);
        @memset(level, 0);
        var s: Core = .{ .a = a, .c = c, .local = local, .dir = dir, .level = level, .txns = undefined, .pends = undefined };
        for (&s.txns) |*x| x.used = false;
        for (&s.pends) |*x| x.used = false;
        return s;
    }
    pub fn deinit(s: *Core) void {
        s.a.free(s.local);
        s.a.free(s.dir);
        s.a.free(s.level);
    }
    pub fn access(s: *const Core, p: u32) t.Access {
        return s.local[p];
    }
    pub fn nextDeadline(_: *const Core) ?u64 {
        return null;
    }
    pub fn validate(s: *const Core, _: u8, m: t.Msg) !void {
        if (m.page >= s.c.page_count or m.kind == 0 or m.kind > 18) return error.ProtocolViolated;
    }
    fn home(s: *const Core, p: u32) u8 {
        var n: u8 = 0;
        for (s.c.home) |h| {
            if (p >= h.first_page) n = h.node;
        }
        return n;
    }
    fn txn(s: *Core, p: u32) ?*Txn {
        for (&s.txns) |*x| if (x.used and x.page == p) return x;
        return null;
    }
    fn pend(s: *Core, p: u32) ?*Pend {
        for (&s.pends) |*x| if (x.used and x.page == p) return x;
        return null;
    }
    fn send(o: *Actions, to: u8, m: t.Msg) void {
        o.add(.{ .send = .{ .to = to, .msg = m } });
    }
    fn k(x: t.MsgKind) u8 {
        return @backingInt(x);
    }
    pub fn step(s: *Core, e: t.Event, o: *Actions) void {
        switch (e) {
            .fault => |f| s.fault(f.page, f.write, o),
            .message => |m| s.message(m.from, m.msg, o),
            .tick => {},
            .root => |r| s.want(r.page, 4, o),
            .child => |c| s.want(c.page, c.level, o),
            .replica_changed => |r| s.changed(r.page, r.index, r.old, r.new, r.old_child, r.new_child, o),
        }
    }
    fn fault(s: *Core, p: u32, w: bool, o: *Actions) void {
        switch (s.local[p]) {
            .replicated, .exclusive => return o.add(.{ .unprotect = p }),
            .shared => if (!w) return o.add(.{ .wake = p }),
            .invalid => {},
        }
        if (s.pend(p) != null) return;
        const h = s.home(p);
        if (h == s.c.node and s.dir[p].state == .untouched and s.txn(p) == null) {
            s.dir[p] = .{ .state = .exclusive, .owner = s.c.node };
            s.local[p] = .exclusive;
            return o.add(.{ .install = .{ .page = p, .access = .exclusive, .source = .zero, .wake = true } });
        }
        for (&s.pends) |*x| if (!x.used) {
            x.* = .{ .page = p, .used = true, .x = w };
            break;
        };
        const kind: Kind = if (s.local[p] == .shared) .up else if (w) .x else .s;
        if (h == s.c.node) return s.request(p, .{ .node = h, .kind = kind }, o);
        send(o, h, .{ .kind = switch (kind) {
            .s => k(.get_shared),
            .x => k(.get_exclusive),
            else => k(.upgrade),
        }, .page = p, .requester = s.c.node });
    }
    fn request(s: *Core, p: u32, r: Req, o: *Actions) void {
        if (s.txn(p)) |x| {
            x.q[x.qn] = r;
            x.qn += 1;
            return;
        }
        if (s.dir[p].state == .replicated) return;
        for (&s.txns) |*x| if (!x.used) {
            x.* = .{ .page = p, .used = true, .req = r };
            break;
        };
        s.begin(p, r, o);
    }
    fn close(s: *Core, p: u32, o: *Actions) void {
        const x = s.txn(p).?;
        if (s.dir[p].state == .replicated or x.qn == 0) {
            x.used = false;
            return;
        }
        const r = x.q[0];
        for (1..x.qn) |i| x.q[i - 1] = x.q[i];
        x.qn -= 1;
        x.req = r;
        s.begin(p, r, o);
    }
    fn begin(s: *Core, p: u32, r0: Req, o: *Actions) void {
        var r = r0;
        const me = s.c.node;
        const d = &s.dir[p];
        const rb = @as(u8, 1) << @intCast(r.node);
        if (r.kind == .rep) return s.replicate(p, o);
        if (r.kind == .up and !(d.state == .shared and d.sharers & rb != 0)) r.kind = .x;
        switch (d.state) {
            .untouched => {
                d.* = .{ .state = .exclusive, .owner = r.node };
                if (r.node == me) {
                    const q = s.pend(p).?;
                    q.zero = true;
                    q.data = true;
                    q.grant = true;
                    q.excl = true;
                    return s.complete(q, o);
                }
                send(o, r.node, .{ .kind = k(.grant), .flags = t.flag_zero | t.flag_exclusive, .page = p });
            },
            .replicated => unreachable,
            .shared => {
                if (r.kind == .s) {
                    if (@popCount(d.sharers) > 2) d.migr = 0;
                    const mine = d.sharers & (@as(u8, 1) << @intCast(me)) != 0;
                    const src: u8 = if (mine) me else @ctz(d.sharers);
                    d.sharers |= rb;
                    if (src == me) return send(o, r.node, .{ .kind = k(.grant), .flags = t.flag_data, .page = p });
                    return send(o, src, .{ .kind = k(.forward_shared), .page = p, .requester = r.node });
                }
                var others = d.sharers & ~rb;
                const meb = @as(u8, 1) << @intCast(me);
                if (r.kind == .up and d.owner != r.node and @popCount(d.sharers) == 2) d.migr +|= 1;
                const migr = d.migr;
                d.* = .{ .state = .exclusive, .owner = r.node, .migr = migr };
                if (r.kind == .up) {
                    if (others & meb != 0) {
                        o.add(.{ .drop = p });
                        s.local[p] = .invalid;
                        others &= ~meb;
                    }
                    const n: u8 = @popCount(others);
                    for (0..8) |i| if (others >> @intCast(i) & 1 != 0) send(o, @intCast(i), .{ .kind = k(.invalidate), .page = p, .requester = r.node });
                    if (r.node == me) {
                        const q = s.pend(p).?;
                        q.data = true;
                        q.installed = true;
                        q.grant = true;
                        q.excl = true;
                        q.need = n;
                        return s.complete(q, o);
                    }
                    return send(o, r.node, .{ .kind = k(.grant), .flags = t.flag_exclusive, .acks = n, .page = p });
                }
                const src: u8 = if (others & meb != 0) me else @ctz(others);
                others &= ~(@as(u8, 1) << @intCast(src));
                const n: u8 = @popCount(others);
                for (0..8) |i| if (others >> @intCast(i) & 1 != 0) send(o, @intCast(i), .{ .kind = k(.invalidate), .page = p, .requester = r.node });
                if (src == me) {
                    o.add(.{ .protect = p });
                    send(o, r.node, .{ .kind = k(.grant), .flags = t.flag_data | t.flag_exclusive, .acks = n, .page = p });
                    o.add(.{ .drop = p });
                    s.local[p] = .invalid;
                } else send(o, src, .{ .kind = k(.forward_exclusive), .acks = n, .page = p, .requester = r.node });
            },
            .exclusive => {
                const own = d.owner;
                if (own == r.node) {
                    if (own == me) {
                        const q = s.pend(p).?;
                        q.data = true;
                        q.installed = true;
                        q.grant = true;
                        q.excl = true;
                        return s.complete(q, o);
                    }
                    return send(o, r.node, .{ .kind = k(.grant), .flags = t.flag_exclusive, .page = p });
                }
                const ex = r.kind == .x;
                if (ex) d.* = .{ .state = .exclusive, .owner = r.node, .migr = d.migr } else d.* = .{ .state = .shared, .owner = own, .sharers = rb | (@as(u8, 1) << @intCast(own)), .migr = d.migr };
                if (own == me) {
                    o.add(.{ .protect = p });
                    send(o, r.node, .{ .kind = k(.grant), .flags = t.flag_data | (if (ex) t.flag_exclusive else 0), .page = p });
                    if (ex) {
                        o.add(.{ .drop = p });
                        s.local[p] = .invalid;
                    } else s.local[p] = .shared;
                } else send(o, own, .{ .kind = if (ex) k(.forward_exclusive) else k(.forward_shared), .page = p, .requester = r.node });
            },
        }
    }
    fn complete(s: *Core, q: *Pend, o: *Actions) void {
        if (!q.data or !q.grant or q.got != q.need) return;
        const p = q.page;
        const acc: t.Access = if (q.excl) .exclusive else .shared;
        if (q.zero) o.add(.{ .install = .{ .page = p, .access = acc, .source = .zero, .wake = true } }) else if (q.installed) {
            if (q.excl) o.add(.{ .unprotect = p }) else o.add(.{ .wake = p });
        } else o.add(.{ .install = .{ .page = p, .access = acc, .source = .message, .wake = true } });
        s.local[p] = acc;
        q.used = false;
        const h = s.home(p);
        if (h == s.c.node) s.close(p, o) else send(o, h, .{ .kind = k(.done), .page = p });
    }
    fn message(s: *Core, from: u8, m: t.Msg, o: *Actions) void {
        const p = m.page;
        switch (@as(t.MsgKind, @fromBackingInt(@intCast(m.kind)))) {
            .get_shared => s.request(p, .{ .node = from, .kind = .s }, o),
            .get_exclusive => s.request(p, .{ .node = from, .kind = .x }, o),
            .upgrade => s.request(p, .{ .node = from, .kind = .up }, o),
            .replicate => s.homeWant(p, @intCast(m.index), o),
            .forward_shared => {
                if (s.local[p] == .exclusive) o.add(.{ .protect = p });
                s.local[p] = .shared;
                send(o, m.requester, .{ .kind = k(.grant), .flags = t.flag_data, .page = p });
            },
            .forward_exclusive => {
                o.add(.{ .protect = p });
                send(o, m.requester, .{ .kind = k(.grant), .flags = t.flag_data | t.flag_exclusive, .acks = m.acks, .page = p });
                o.add(.{ .drop = p });
                s.local[p] = .invalid;
            },
            .invalidate => {
                o.add(.{ .drop = p });
                s.local[p] = .invalid;
                send(o, m.requester, .{ .kind = k(.ack), .page = p });
            },
            .grant => {
                const q = s.pend(p) orelse @panic("grant without pending");
                q.grant = true;
                q.need = m.acks;
                q.excl = m.flags & t.flag_exclusive != 0;
                if (m.flags & t.flag_zero != 0) {
                    q.zero = true;
                    q.data = true;
                } else if (m.flags & t.flag_data != 0) {
                    q.data = true;
                    if (q.got != q.need) {
                        o.add(.{ .install = .{ .page = p, .access = .shared, .source = .message, .wake = false } });
                        q.installed = true;
                    }
                } else {
                    q.data = true;
                    q.installed = true;
                }
                s.complete(q, o);
            },
            .ack => {
                const q = s.pend(p).?;
                q.got += 1;
                s.complete(q, o);
            },
            .done => s.close(p, o),
            .recall => {
                if (s.local[p] == .exclusive) o.add(.{ .protect = p });
                s.local[p] = .shared;
                send(o, from, .{ .kind = k(.returned), .flags = t.flag_data, .page = p });
            },
            .returned => {
                o.add(.{ .install = .{ .page = p, .access = .shared, .source = .message, .wake = false } });
                s.local[p] = .shared;
                s.broadcast(p, o);
            },
            .replica => {
                s.level[p] = @intCast(m.index);
                if (s.local[p] == .shared) {
                    o.add(.{ .twin = .{ .page = p, .level = s.level[p] } });
                    o.add(.{ .unprotect = p });
                } else o.add(.{ .install_replica = .{ .page = p, .source = .message, .level = s.level[p] } });
                s.local[p] = .replicated;
                if (s.pend(p)) |q| q.used = false;
                send(o, from, .{ .kind = k(.replica_ack), .page = p });
            },
            .replica_ack => {
                const x = s.txn(p).?;
                x.acks -= 1;
                if (x.acks == 0) {
                    s.dir[p].state = .replicated;
                    if (s.pend(p)) |q| {
                        q.used = false;
                        o.add(.{ .wake = p });
                    }
                    s.close(p, o);
                }
            },
            .diff => o.add(.{ .patch = .{ .page = p, .index = m.index, .old = m.old, .new = m.new } }),
            .unreplicate => {
                o.add(.{ .forget_replica = p });
                o.add(.{ .drop = p });
                s.local[p] = .invalid;
                if (s.home(p) == s.c.node) s.dir[p] = .{ .state = .exclusive, .owner = from };
            },
            else => {},
        }
    }
    fn want(s: *Core, p: u32, level: u8, o: *Actions) void {
        if (!s.c.replicate or s.local[p] == .replicated) return;
        if (s.home(p) == s.c.node) return s.homeWant(p, level, o);
        send(o, s.home(p), .{ .kind = k(.replicate), .page = p, .index = level });
    }
    fn homeWant(s: *Core, p: u32, level: u8, o: *Actions) void {
        if (s.dir[p].state == .replicated) return;
        if (s.txn(p)) |x| {
            if (x.req.kind == .rep) return;
            for (x.q[0..x.qn]) |q| if (q.kind == .rep) return;
        }
        s.level[p] = level;
        s.request(p, .{ .node = s.c.node, .kind = .rep }, o);
    }
    fn replicate(s: *Core, p: u32, o: *Actions) void {
        const d = &s.dir[p];
        if (s.local[p] != .invalid) {
            if (s.local[p] == .exclusive) o.add(.{ .protect = p });
            return s.broadcast(p, o);
        }
        switch (d.state) {
            .untouched => {
                o.add(.{ .install = .{ .page = p, .access = .shared, .source = .zero, .wake = false } });
                s.broadcast(p, o);
            },
            .exclusive => send(o, d.owner, .{ .kind = k(.recall), .page = p }),
            .shared => send(o, @ctz(d.sharers), .{ .kind = k(.recall), .page = p }),
            .replicated => unreachable,
        }
    }
    fn broadcast(s: *Core, p: u32, o: *Actions) void {
        const x = s.txn(p).?;
        x.acks = s.c.node_count - 1;
        for (0..s.c.node_count) |i| if (i != s.c.node) send(o, @intCast(i), .{ .kind = k(.replica), .flags = t.flag_data, .page = p, .index = s.level[p] });
        o.add(.{ .twin = .{ .page = p, .level = s.level[p] } });
        o.add(.{ .unprotect = p });
        s.local[p] = .replicated;
    }
    fn changed(s: *Core, p: u32, index: u16, old: u64, new: u64, oc: ?u32, nc: ?u32, o: *Actions) void {
        for (0..s.c.node_count) |i| if (i != s.c.node) send(o, @intCast(i), .{ .kind = k(.diff), .page = p, .index = index, .old = old, .new = new });
        const lv = s.level[p];
        if (lv < 2 or (lv == 4 and index < 256)) return;
        if (oc) |c| if (nc == null or nc.? != c) if (s.local[c] == .replicated) {
            for (0..s.c.node_count) |i| if (i != s.c.node) send(o, @intCast(i), .{ .kind = k(.unreplicate), .page = c });
            o.add(.{ .forget_replica = c });
            s.local[c] = .exclusive;
            if (s.home(c) == s.c.node) s.dir[c] = .{ .state = .exclusive, .owner = s.c.node };
        };
        if (nc) |c| if (oc == null or oc.? != c) s.want(c, lv - 1, o);
    }
};
