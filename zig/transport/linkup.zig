//! Start-up of a node's lanes: one connected, authenticated socket to every peer. Of two nodes the
//! lower-numbered accepts and the higher connects, so each pair has exactly one connection.
//! One thread, one poll loop, no call that blocks on a single peer: a stranger that connects and
//! stays silent costs a slot for a while, never the others' time. Incoming connections that fail
//! are refused and remembered for the report (anyone can connect; only a peer can prove itself).
//! Outgoing ones are tried again until the deadline unless the peer gave a cause that will not
//! change (another build, another key): then all ends at once.
//! The same loop goes on as keeper.zig while the VM runs, for connections that were cut.

const std = @import("std");
const linux = std.os.linux;
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const tcp = @import("tcp.zig");
const handshake = @import("handshake.zig");
const seal = @import("seal.zig");
const Connection = @import("lane.zig").Connection;
const Keeper = @import("keeper.zig").Keeper;

const nodes_max = abi.nodes_max;
pub const node_none: u8 = 0xff;
/// Unproven connections kept at a time; another one takes the oldest one's place.
const incoming_max = 32;
/// Time a handshake may take; several round trips of a slow network.
const handshake_ns = 3 * std.time.ns_per_s;
/// How often `cancel` is looked at while nothing happens.
const cancel_poll_ns = 50 * std.time.ns_per_ms;

pub const Config = struct {
    node: u8,
    node_count: u8,
    /// Listening socket for the peers with higher numbers; stays the caller's. -1 on the last node.
    listen_fd: i32,
    /// Where the lower-numbered peers listen (index = node); the others' entries are not read.
    addresses: [nodes_max]?tcp.Address = @splat(null),
    key: *const handshake.Key,
    abi_hash: u64,
    vm_generation: u64,
    /// See handshake.Identity.
    instance: u64 = 0,
    peer_instances: ?*const [nodes_max]u64 = null,
    /// Of the monotonic clock.
    deadline_ns: u64,
    /// Pause before the second attempt to reach a peer; doubles with each, up to the other one.
    retry_ns: u64 = tcp.retry_ns,
    retry_max_ns: u64 = tcp.retry_ns,
    /// Another thread may end the attempt by storing other than 0.
    cancel: ?*const std.atomic.Value(u32) = null,
};

pub const Status = enum(u8) { linked, failed, cancelled };

pub const Outcome = struct {
    status: Status = .failed,
    /// Connected and proven, the caller's to close; -1 for the own node and, unless linked, all.
    fds: [nodes_max]i32 = @splat(-1),
    /// Where there is a descriptor: what its handshake gave.
    keys: [nodes_max]seal.Keys = undefined,
    instances: [nodes_max]u64 = @splat(0),
    /// The peer that `text` speaks of, or node_none.
    failed_node: u8 = node_none,
    counters: Counters = .{},
    text_buffer: [text_max]u8 = undefined,
    text_length: usize = 0,

    const text_max = 240;

    /// Why it failed, for people; empty when linked.
    pub fn text(self: *const Outcome) []const u8 {
        return self.text_buffer[0..self.text_length];
    }

    pub fn connection(self: *const Outcome, node: usize) Connection {
        return .{ .fd = self.fds[node], .keys = self.keys[node] };
    }

    /// The first failure stays: later ones are its consequences.
    fn fail(self: *Outcome, node: u8, comptime words: []const u8, args: anytype) void {
        if (self.text_length != 0) return;
        self.failed_node = node;
        var w: std.Io.Writer = .fixed(&self.text_buffer);
        // A full buffer cuts the text; what is in it stays.
        w.print(words, args) catch |err| std.debug.assert(err == error.WriteFailed);
        self.text_length = w.end;
    }
};

pub const Counters = struct {
    /// Connection attempts to lower-numbered peers.
    attempts: u32 = 0,
    accepted: u32 = 0,
    /// Incoming connections that did not prove themselves.
    refused: u32 = 0,
    /// Of those: pushed out by newer ones.
    evicted: u32 = 0,
    /// Proven peers that came again: the newer connection counts, the peer gave up the older.
    replaced: u32 = 0,
};

const Outgoing = struct {
    stage: enum { absent, waiting, connecting, shaking, linked } = .absent,
    fd: i32 = -1,
    /// Next attempt (waiting) or end of the present one.
    until_ns: u64 = 0,
    /// Pause before the next attempt, should this one fail; 0 = the first.
    pause_ns: u64 = 0,
    linked_ns: u64 = 0,
    shake: handshake.Handshake = undefined,
    last: Last = .{ .errno = .SUCCESS },
};

/// A connection that lasted so long was a good one: the next attempt is a first one again.
const good_ns = std.time.ns_per_s;

/// Why the newest attempt failed.
const Last = union(enum) {
    errno: linux.E,
    refusal: handshake.Refusal,

    pub fn format(self: Last, w: *std.Io.Writer) std.Io.Writer.Error!void {
        switch (self) {
            .refusal => |refusal| try refusal.format(w),
            .errno => |e| switch (e) {
                .SUCCESS => try w.writeAll("the time was over before the first attempt"),
                .CONNREFUSED => try w.writeAll("connection refused: is its engine running?"),
                .NOENT => try w.writeAll("no such path: is its engine running?"),
                .TIMEDOUT => try w.writeAll("no answer: wrong address, host down, or a firewall"),
                .HOSTUNREACH, .NETUNREACH => try w.writeAll("no route to it"),
                else => try w.print("errno {d}", .{@backingInt(e)}),
            },
        }
    }
};

const Incoming = struct {
    fd: i32 = -1,
    from: ?tcp.Address = null,
    until_ns: u64 = 0,
    shake: handshake.Handshake = undefined,
};

const Stranger = struct { from: ?tcp.Address, refusal: handshake.Refusal };

/// Links this node to all its peers, or says which could not be linked and why.
pub fn connectAll(config: *const Config, outcome: *Outcome) void {
    std.debug.assert(config.node_count <= nodes_max and config.node < config.node_count);
    outcome.* = .{};
    var linkup: Linkup = .{ .config = config, .outcome = outcome };
    linkup.run();
    linkup.closeUnproven();
    if (outcome.status != .linked) {
        for (&outcome.fds) |*fd| {
            sys.close(fd.*);
            fd.* = -1;
        }
    }
}

pub const Linkup = struct {
    config: *const Config,
    outcome: *Outcome,
    /// Set while the VM runs: takes connections and refusals; nothing ends the loop but its stop.
    keeper: ?*Keeper = null,
    outgoing: [nodes_max]Outgoing = @splat(.{}),
    incoming: [incoming_max]Incoming = @splat(.{}),
    newest_stranger: ?Stranger = null,

    const polls_max = nodes_max + incoming_max + 2;

    fn run(self: *Linkup) void {
        for (0..self.config.node) |i| {
            if (self.config.addresses[i] == null) {
                const node: u8 = @intCast(i);
                return self.outcome.fail(node, "node {d} has no address to connect to", .{i});
            }
            self.outgoing[i].stage = .waiting;
        }
        if (self.acceptsAny() and self.config.listen_fd < 0) {
            return self.outcome.fail(node_none, "node {d} has no socket for its peers to " ++
                "connect to", .{self.config.node});
        }
        while (self.outcome.text_length == 0) {
            if (self.isCancelled()) {
                self.outcome.status = .cancelled;
                return self.outcome.fail(node_none, "cancelled while waiting for peers", .{});
            }
            if (self.isComplete()) {
                self.outcome.status = .linked;
                return;
            }
            const now = sys.monotonicNs();
            if (now >= self.config.deadline_ns) return self.reportMissing();
            self.startAttempts(now);
            self.expire(now);
            if (self.outcome.text_length == 0 and !self.isComplete()) self.pollOnce();
        }
    }

    fn acceptsAny(self: *const Linkup) bool {
        return self.config.node + 1 < self.config.node_count;
    }

    fn isComplete(self: *const Linkup) bool {
        for (self.outcome.fds[0..self.config.node_count], 0..) |fd, i| {
            if (fd < 0 and i != self.config.node) return false;
        }
        return true;
    }

    fn isCancelled(self: *const Linkup) bool {
        const cancel = self.config.cancel orelse return false;
        // Relaxed: nothing else is read because of it.
        return cancel.load(.monotonic) != 0;
    }

    fn identity(self: *const Linkup, peer_min: u8, peer_max: u8) handshake.Identity {
        return .{
            .node = self.config.node,
            .abi_hash = self.config.abi_hash,
            .vm_generation = self.config.vm_generation,
            .instance = self.config.instance,
            .peer_instances = self.config.peer_instances,
            .peer_min = peer_min,
            .peer_max = peer_max,
        };
    }

    /// Another connection to a lower-numbered peer, unless one is being made.
    pub fn want(self: *Linkup, node: u8, now: u64) void {
        const out = &self.outgoing[node];
        if (out.stage != .absent and out.stage != .linked) return;
        if (now -| out.linked_ns >= good_ns) out.pause_ns = 0;
        self.pauseBefore(out, now);
    }

    fn pauseBefore(self: *const Linkup, out: *Outgoing, now: u64) void {
        out.stage = .waiting;
        out.until_ns = now + out.pause_ns;
        const doubled = @max(self.config.retry_ns, 2 * out.pause_ns);
        out.pause_ns = @min(doubled, self.config.retry_max_ns);
    }

    /// One round: attempts that are due, then whatever happens first.
    pub fn serve(self: *Linkup) void {
        const now = sys.monotonicNs();
        self.startAttempts(now);
        self.expire(now);
        self.pollOnce();
    }

    fn startAttempts(self: *Linkup, now: u64) void {
        for (&self.outgoing, 0..) |*out, i| {
            if (out.stage != .waiting or now < out.until_ns) continue;
            self.outcome.counters.attempts += 1;
            if (tcp.begin(self.config.addresses[i].?)) |attempt| {
                self.tookAttempt(@intCast(i), attempt, now);
            } else |_| self.failSystem(@intCast(i), "connect");
        }
    }

    fn tookAttempt(self: *Linkup, node: u8, attempt: tcp.Attempt, now: u64) void {
        const out = &self.outgoing[node];
        switch (attempt) {
            .absent => |e| {
                out.fd = -1;
                self.again(node, .{ .errno = e }, now);
            },
            .pending => |fd| {
                out.fd = fd;
                out.stage = .connecting;
                out.until_ns = now + tcp.attempt_ns;
            },
            .connected => |fd| {
                out.fd = fd;
                const own = self.identity(node, node);
                out.shake = handshake.Handshake.init(.connecting, own, self.config.key) catch
                    return self.failSystem(node, "getrandom");
                out.stage = .shaking;
                out.until_ns = now + handshake_ns;
                self.advanceOutgoing(node);
            },
        }
    }

    /// Closes what there is and waits for the next attempt.
    fn again(self: *Linkup, node: u8, why: Last, now: u64) void {
        const out = &self.outgoing[node];
        sys.close(out.fd);
        out.fd = -1;
        out.last = why;
        if (out.pause_ns == 0) out.pause_ns = self.config.retry_ns;
        self.pauseBefore(out, now);
    }

    fn advanceOutgoing(self: *Linkup, node: u8) void {
        const out = &self.outgoing[node];
        const result = switch (out.shake.advance(out.fd)) {
            .waiting => return,
            .finished => |result| result,
        };
        switch (result) {
            .connected => |peer| {
                out.stage = .linked;
                out.linked_ns = sys.monotonicNs();
                self.connected(out.fd, peer);
                out.fd = -1;
            },
            .refused => |refusal| {
                if (!refusal.isTransient()) {
                    self.outcome.fail(node, "node {d} at {f}: {f}", .{
                        node, self.config.addresses[node].?, refusal,
                    });
                    if (self.keeper) |keeper| keeper.refused(node, self.takeText());
                }
                self.again(node, .{ .refusal = refusal }, sys.monotonicNs());
            },
        }
    }

    fn connected(self: *Linkup, fd: i32, peer: handshake.Peer) void {
        if (self.keeper) |keeper| {
            return keeper.arrived(peer.node, .{ .fd = fd, .keys = peer.keys });
        }
        const outcome = self.outcome;
        if (outcome.fds[peer.node] >= 0) {
            outcome.counters.replaced += 1;
            sys.close(outcome.fds[peer.node]);
        }
        outcome.fds[peer.node] = fd;
        outcome.keys[peer.node] = peer.keys;
        outcome.instances[peer.node] = peer.instance;
    }

    /// The words of a failure that does not end a keeper.
    fn takeText(self: *Linkup) []const u8 {
        const text = self.outcome.text();
        self.outcome.text_length = 0;
        return text;
    }

    fn failSystem(self: *Linkup, node: u8, call: []const u8) void {
        if (self.keeper != null) {
            const e: linux.E = @fromBackingInt(@intCast(sys.last_errno));
            return self.again(node, .{ .errno = e }, sys.monotonicNs());
        }
        self.outcome.fail(node, "{s} for node {d} failed, errno {d}", .{
            call, node, sys.last_errno,
        });
    }

    /// Ends what has taken too long.
    fn expire(self: *Linkup, now: u64) void {
        for (&self.outgoing, 0..) |*out, i| {
            if (now < out.until_ns) continue;
            switch (out.stage) {
                .connecting => self.again(@intCast(i), .{ .errno = .TIMEDOUT }, now),
                .shaking => {
                    self.again(@intCast(i), .{ .refusal = out.shake.timedOut() }, now);
                },
                else => {},
            }
        }
        for (&self.incoming) |*in| {
            if (in.fd >= 0 and now >= in.until_ns) self.refuse(in, in.shake.timedOut());
        }
    }

    fn refuse(self: *Linkup, in: *Incoming, refusal: handshake.Refusal) void {
        self.newest_stranger = .{ .from = in.from, .refusal = refusal };
        self.outcome.counters.refused += 1;
        sys.close(in.fd);
        in.fd = -1;
    }

    fn pollOnce(self: *Linkup) void {
        var fds: [polls_max]linux.pollfd = undefined;
        var owners: [polls_max]Owner = undefined;
        const count = self.collect(&fds, &owners);
        _ = tcp.pollUntil(fds[0..count], self.wakeAt()) catch return self.failHere("poll");
        for (fds[0..count], owners[0..count]) |p, owner| {
            if (p.revents == 0) continue;
            switch (owner) {
                .outgoing => |node| self.outgoingReady(node),
                .incoming => |slot| self.advanceIncoming(&self.incoming[slot]),
                .listener => self.acceptAll(),
                .keeper => sys.eventfdDrain(p.fd),
            }
        }
    }

    /// A call failed that concerns no peer: memory or descriptors are short. A keeper waits.
    fn failHere(self: *Linkup, call: []const u8) void {
        if (self.keeper != null) return sys.pause(tcp.retry_ns);
        self.outcome.fail(node_none, "{s} failed, errno {d}", .{ call, sys.last_errno });
    }

    const Owner = union(enum) { outgoing: u8, incoming: u8, listener, keeper };

    /// The listener comes last: what it brings takes slots whose events were looked at before.
    fn collect(self: *Linkup, fds: []linux.pollfd, owners: []Owner) usize {
        var count: usize = 0;
        for (&self.outgoing, 0..) |*out, i| {
            if (out.fd < 0) continue;
            const events = if (out.stage == .connecting) linux.POLL.OUT else out.shake.events();
            fds[count] = .{ .fd = out.fd, .events = events, .revents = 0 };
            owners[count] = .{ .outgoing = @intCast(i) };
            count += 1;
        }
        for (&self.incoming, 0..) |*in, i| {
            if (in.fd < 0) continue;
            fds[count] = .{ .fd = in.fd, .events = in.shake.events(), .revents = 0 };
            owners[count] = .{ .incoming = @intCast(i) };
            count += 1;
        }
        if (self.keeper) |keeper| {
            fds[count] = .{ .fd = keeper.eventfd, .events = linux.POLL.IN, .revents = 0 };
            owners[count] = .keeper;
            count += 1;
        }
        if (self.acceptsAny()) {
            fds[count] = .{ .fd = self.config.listen_fd, .events = linux.POLL.IN, .revents = 0 };
            owners[count] = .listener;
            count += 1;
        }
        return count;
    }

    fn wakeAt(self: *const Linkup) u64 {
        var at = self.config.deadline_ns;
        for (&self.outgoing) |*out| switch (out.stage) {
            .waiting, .connecting, .shaking => at = @min(at, out.until_ns),
            .absent, .linked => {},
        };
        for (&self.incoming) |*in| if (in.fd >= 0) {
            at = @min(at, in.until_ns);
        };
        if (self.config.cancel != null) at = @min(at, sys.monotonicNs() + cancel_poll_ns);
        return at;
    }

    fn outgoingReady(self: *Linkup, node: u8) void {
        const out = &self.outgoing[node];
        if (out.stage == .shaking) return self.advanceOutgoing(node);
        const now = sys.monotonicNs();
        const fd = out.fd;
        out.fd = -1;
        if (tcp.finish(fd)) |attempt| {
            self.tookAttempt(node, attempt, now);
        } else |_| self.failSystem(node, "connect");
    }

    fn acceptAll(self: *Linkup) void {
        // Bounded: a flood must not keep the loop from its other work.
        for (0..incoming_max) |_| {
            const accepted = tcp.acceptNow(self.config.listen_fd) catch
                return self.failHere("accept");
            const new = accepted orelse return;
            self.outcome.counters.accepted += 1;
            const in = self.freeSlot();
            const own = self.identity(self.config.node + 1, self.config.node_count - 1);
            in.shake = handshake.Handshake.init(.accepting, own, self.config.key) catch {
                sys.close(new.fd);
                return self.failHere("getrandom");
            };
            in.fd = new.fd;
            in.from = new.from;
            in.until_ns = sys.monotonicNs() + handshake_ns;
            self.advanceIncoming(in);
        }
    }

    fn freeSlot(self: *Linkup) *Incoming {
        var oldest = &self.incoming[0];
        for (&self.incoming) |*in| {
            if (in.fd < 0) return in;
            if (in.until_ns < oldest.until_ns) oldest = in;
        }
        self.outcome.counters.evicted += 1;
        self.refuse(oldest, oldest.shake.timedOut());
        return oldest;
    }

    fn advanceIncoming(self: *Linkup, in: *Incoming) void {
        const result = switch (in.shake.advance(in.fd)) {
            .waiting => return,
            .finished => |result| result,
        };
        switch (result) {
            .refused => |refusal| self.refuse(in, refusal),
            .connected => |peer| {
                self.connected(in.fd, peer);
                in.fd = -1;
            },
        }
    }

    /// The deadline has come: names the lowest peer that is missing, and the likeliest cause.
    fn reportMissing(self: *Linkup) void {
        for (self.outcome.fds[0..self.config.node_count], 0..) |fd, i| {
            if (fd >= 0 or i == self.config.node) continue;
            const node: u8 = @intCast(i);
            if (node < self.config.node) {
                return self.outcome.fail(node, "node {d} at {f} not reached in time: {f}", .{
                    node, self.config.addresses[node].?, self.outgoing[node].last,
                });
            }
            const stranger = self.newest_stranger orelse {
                return self.outcome.fail(node, "node {d} did not connect in time, and nobody " ++
                    "else did: is its engine running, and does it have this node's address?", .{
                    node,
                });
            };
            if (stranger.from) |from| if (from != .unix) {
                return self.outcome.fail(node, "node {d} did not connect in time; newest of {d} " ++
                    "refused connections, from {f}: {f}", .{
                    node, self.outcome.counters.refused, from, stranger.refusal,
                });
            };
            return self.outcome.fail(node, "node {d} did not connect in time; newest of {d} " ++
                "refused connections: {f}", .{
                node, self.outcome.counters.refused, stranger.refusal,
            });
        }
    }

    pub fn closeUnproven(self: *Linkup) void {
        for (&self.outgoing) |*out| sys.close(out.fd);
        for (&self.incoming) |*in| sys.close(in.fd);
    }
};
