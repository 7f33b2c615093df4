//! How two engines find out, before a lane carries anything, that both belong to the same VM and
//! run the same build. Both prove the per-VM key without showing it: HMAC-SHA256 over both hellos,
//! each with a fresh nonce, and the prover's role: a recorded or reflected proof is worthless.
//!   connecting -> accepting  hello
//!   accepting -> connecting  hello                 (nothing at all to a stranger: wrong magic)
//!   connecting -> accepting  proof, or a refusal
//!   accepting -> connecting  proof, or a refusal
//!   connecting -> accepting  verdict
//! A refusal names its cause on both sides. What follows is sealed with keys that only these two
//! hellos and the VM's key give (seal.zig). The magic, the version and the size of a hello stay as
//! they are for ever, so that builds of different wire versions can still name each other's.
//! Handshake is a step machine over a non-blocking socket; perform() is the blocking form.

const std = @import("std");
const linux = std.os.linux;
const HmacSha256 = std.crypto.auth.hmac.sha2.HmacSha256;
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const seal = @import("seal.zig");
const tcp = @import("tcp.zig");

pub const Key = [32]u8;
/// Of frame.zig and this file: raise it with every change of their bytes.
pub const wire_version: u32 = 4;
const magic = "SSIHVLAN".*;
const proof_label = "ssi-hv lane proof 2";

pub const Role = enum(u8) { connecting = 1, accepting = 2 };

/// What this node says of itself, and whom it will take for a peer.
pub const Identity = struct {
    node: u8,
    /// The build: hash of records and functions (abi_hash.zig).
    abi_hash: u64,
    /// Grows with every start of the VM: engines of an earlier one are strangers.
    vm_generation: u64,
    /// Drawn once by each engine process: whose frames a lane still holds. See randomInstance().
    instance: u64 = 0,
    /// Instances of peers already known, 0 = not yet (index = node); null at the first link-up.
    peer_instances: ?*const [abi.nodes_max]u64 = null,
    /// Node ids accepted as peer, both inclusive.
    peer_min: u8 = 0,
    peer_max: u8 = abi.nodes_max - 1,
};

pub const Hello = extern struct {
    magic: [8]u8 = magic,
    wire_version: u32 = wire_version,
    role: u8,
    node: u8,
    /// Bits of seal.Cipher.
    ciphers: u16,
    abi_hash: u64,
    vm_generation: u64,
    instance: u64,
    nonce: [24]u8,
};

/// The second message of each side; `refusal` other than 0 says why there is no proof.
pub const Answer = extern struct {
    refusal: u8,
    reserved: [7]u8 = @splat(0),
    proof: [32]u8,
};

pub const Verdict = extern struct {
    refusal: u8,
    reserved: [7]u8 = @splat(0),
};

comptime {
    std.debug.assert(@sizeOf(Hello) == 64);
    std.debug.assert(@sizeOf(Answer) == 40);
    std.debug.assert(@sizeOf(Verdict) == 8);
}

/// Values cross the wire in Answer and Verdict.
pub const Reason = enum(u8) {
    wrong_magic = 1,
    wrong_wire_version = 2,
    /// Both ends have the same role: our own hello came back.
    wrong_role = 3,
    wrong_build = 4,
    wrong_generation = 5,
    wrong_node = 6,
    bad_proof = 7,
    timed_out = 8,
    closed = 9,
    system_call = 10,
    /// The peer sent a refusal: `theirs` is its Reason.
    refused_by_peer = 11,
    /// Another process than the one this lane was opened with.
    wrong_instance = 12,
    _,
};

pub const Phase = enum { hello, proof, verdict };

pub const Refusal = struct {
    reason: Reason,
    phase: Phase,
    own: u64 = 0,
    own_max: u64 = 0,
    theirs: u64 = 0,

    /// Whether another attempt, with nothing changed, could end differently.
    pub fn isTransient(self: Refusal) bool {
        return switch (self.reason) {
            .wrong_role, .timed_out, .closed, .system_call => true,
            else => false,
        };
    }

    pub fn format(self: Refusal, w: *std.Io.Writer) std.Io.Writer.Error!void {
        switch (self.reason) {
            .wrong_magic => try w.writeAll("what answers there is not an SSI-HV lane"),
            .wrong_wire_version => try w.print(
                "peer speaks wire version {d}, this node {d}: install the same build on both",
                .{ self.theirs, self.own },
            ),
            .wrong_role => try w.writeAll("connected to itself: check the peer's address"),
            .wrong_build => try w.print(
                "peer runs build {x:0>16}, this is {x:0>16}: install the same build on both",
                .{ self.theirs, self.own },
            ),
            .wrong_generation => try w.print(
                "peer belongs to start {d} of the VM, this is start {d}: an engine was left behind",
                .{ self.theirs, self.own },
            ),
            .wrong_node => try self.formatNode(w),
            .bad_proof => try w.writeAll("peer does not have this VM's key"),
            .timed_out => try w.print("no {t} from the peer in time", .{self.phase}),
            .closed => try w.print("peer closed the connection before its {t}", .{self.phase}),
            .system_call => try w.print("socket failed, errno {d}", .{self.theirs}),
            .refused_by_peer => try self.formatPeers(w),
            .wrong_instance => try w.writeAll(
                "peer was started anew: what its engine held of the VM is gone",
            ),
            _ => try w.print("reason {d}", .{@backingInt(self.reason)}),
        }
    }

    fn formatNode(self: Refusal, w: *std.Io.Writer) std.Io.Writer.Error!void {
        try w.print("peer is node {d}, expected node {d}", .{ self.theirs, self.own });
        if (self.own_max != self.own) try w.print(" to {d}", .{self.own_max});
        try w.writeAll(": check ids and addresses");
    }

    fn formatPeers(self: Refusal, w: *std.Io.Writer) std.Io.Writer.Error!void {
        try w.writeAll("peer refused this node: ");
        const reason: Reason = @fromBackingInt(@truncate(self.theirs));
        switch (reason) {
            .bad_proof => try w.writeAll("its key for this VM is another"),
            .wrong_node => try w.writeAll("it expects another node id"),
            .wrong_instance => try w.writeAll("it knows another process as this node"),
            _ => try w.print("reason {d}", .{self.theirs}),
            else => try w.print("{t}", .{reason}),
        }
    }
};

pub const Peer = struct { node: u8, instance: u64, keys: seal.Keys };

pub const Result = union(enum) { connected: Peer, refused: Refusal };

pub const Progress = union(enum) {
    /// Poll for events(), then advance again.
    waiting,
    finished: Result,
};

pub const Handshake = struct {
    role: Role,
    own: Identity,
    /// Lives longer than the handshake; never copied.
    key: *const Key,
    phase: Phase = .hello,
    own_hello: Hello,
    peer_hello: Hello = undefined,

    out: [out_max]u8 = undefined,
    out_start: usize = 0,
    out_end: usize = 0,
    in: [@sizeOf(Hello)]u8 = undefined,
    in_length: usize = 0,
    /// The peer takes nothing any more; what it said before may still be unread.
    is_deaf: bool = false,
    result: ?Result = null,

    /// Everything one side ever sends.
    const out_max = @sizeOf(Hello) + @sizeOf(Answer) + @sizeOf(Verdict);

    pub fn init(role: Role, own: Identity, key: *const Key) sys.Error!Handshake {
        var nonce: [24]u8 = undefined;
        try fillRandom(&nonce);
        var self: Handshake = .{ .role = role, .own = own, .key = key, .own_hello = .{
            .role = @backingInt(role),
            .node = own.node,
            .abi_hash = own.abi_hash,
            .ciphers = seal.offered(),
            .vm_generation = own.vm_generation,
            .instance = own.instance,
            .nonce = nonce,
        } };
        if (role == .connecting) self.put(&self.own_hello);
        return self;
    }

    /// What to poll for before the next advance().
    pub fn events(self: *const Handshake) i16 {
        const out: i16 = if (self.out_start < self.out_end and !self.is_deaf) linux.POLL.OUT else 0;
        return if (self.result == null) linux.POLL.IN | out else out;
    }

    /// Goes as far as the socket lets it.
    pub fn advance(self: *Handshake, fd: i32) Progress {
        while (true) {
            const all_sent = self.sendSome(fd);
            if (self.result) |result| {
                // A refusal's last bytes are a courtesy: not waited for.
                if (all_sent or result == .refused) return .{ .finished = result };
                return .waiting;
            }
            const need = self.needed();
            if (self.in_length < need and !self.readSome(fd, need)) {
                if (self.result != null) continue;
                return .waiting;
            }
            if (self.in_length == need) {
                self.in_length = 0;
                self.take();
            }
        }
    }

    /// Exactly one message: what follows the last one belongs to the lane.
    fn needed(self: *const Handshake) usize {
        return switch (self.phase) {
            .hello => @sizeOf(Hello),
            .proof => @sizeOf(Answer),
            .verdict => @sizeOf(Verdict),
        };
    }

    fn take(self: *Handshake) void {
        switch (self.phase) {
            .hello => self.takeHello(),
            .proof => self.takeAnswer(),
            .verdict => {
                const verdict = std.mem.bytesToValue(Verdict, self.in[0..@sizeOf(Verdict)]);
                if (verdict.refusal != 0) return self.refusedByPeer(verdict.refusal);
                self.result = .{ .connected = self.peer() };
            },
        }
    }

    /// Plays `bytes` as if the socket had brought them; how many were taken.
    pub fn feed(self: *Handshake, bytes: []const u8) usize {
        var taken: usize = 0;
        while (self.result == null and taken < bytes.len) {
            const n = @min(self.needed() - self.in_length, bytes.len - taken);
            @memcpy(self.in[self.in_length..][0..n], bytes[taken..][0..n]);
            self.in_length += n;
            taken += n;
            if (self.in_length < self.needed()) break;
            self.in_length = 0;
            self.take();
        }
        return taken;
    }

    fn peer(self: *const Handshake) Peer {
        const cipher = seal.Cipher.choose(self.own_hello.ciphers, self.peer_hello.ciphers);
        const hellos = std.mem.toBytes(self.inOrder());
        return .{
            .node = self.peer_hello.node,
            .instance = self.peer_hello.instance,
            .keys = .derive(self.key, cipher, &hellos, self.role == .connecting),
        };
    }

    fn inOrder(self: *const Handshake) [2]Hello {
        const hellos = [2]Hello{ self.own_hello, self.peer_hello };
        return if (self.role == .connecting) hellos else .{ hellos[1], hellos[0] };
    }

    fn takeHello(self: *Handshake) void {
        self.peer_hello = std.mem.bytesToValue(Hello, &self.in);
        const refusal = self.judgeHello();
        if (self.role == .accepting) {
            if (refusal) |r| if (r.reason == .wrong_magic) return self.finish(r);
            self.put(&self.own_hello);
        }
        if (refusal) |r| return self.refuseAloud(r);
        if (self.role == .connecting) self.put(&self.ownAnswer());
        self.phase = .proof;
    }

    fn judgeHello(self: *const Handshake) ?Refusal {
        const own = self.own;
        const theirs = self.peer_hello;
        if (!std.mem.eql(u8, &theirs.magic, &magic)) return refusalOf(.wrong_magic, 0, 0);
        if (theirs.wire_version != wire_version) {
            return refusalOf(.wrong_wire_version, wire_version, theirs.wire_version);
        }
        if (theirs.role != @backingInt(otherRole(self.role))) {
            return refusalOf(.wrong_role, @backingInt(self.role), theirs.role);
        }
        if (theirs.abi_hash != own.abi_hash) {
            return refusalOf(.wrong_build, own.abi_hash, theirs.abi_hash);
        }
        if (theirs.vm_generation != own.vm_generation) {
            return refusalOf(.wrong_generation, own.vm_generation, theirs.vm_generation);
        }
        const is_expected = theirs.node >= own.peer_min and theirs.node <= own.peer_max;
        if (!is_expected or theirs.node == own.node) {
            var refusal = refusalOf(.wrong_node, own.peer_min, theirs.node);
            refusal.own_max = own.peer_max;
            return refusal;
        }
        if (own.peer_instances) |known| {
            const due = known[theirs.node];
            if (due != 0 and due != theirs.instance) {
                return refusalOf(.wrong_instance, due, theirs.instance);
            }
        }
        return null;
    }

    fn takeAnswer(self: *Handshake) void {
        const answer = std.mem.bytesToValue(Answer, self.in[0..@sizeOf(Answer)]);
        if (answer.refusal != 0) return self.refusedByPeer(answer.refusal);
        const due: Answer = .{ .refusal = 0, .proof = self.proofOf(otherRole(self.role)) };
        if (!std.crypto.timing_safe.eql([40]u8, std.mem.toBytes(due), std.mem.toBytes(answer))) {
            return self.refuseAloud(.{ .reason = .bad_proof, .phase = .proof });
        }
        switch (self.role) {
            .accepting => {
                self.put(&self.ownAnswer());
                self.phase = .verdict;
            },
            .connecting => {
                self.put(&Verdict{ .refusal = 0 });
                self.result = .{ .connected = self.peer() };
            },
        }
    }

    fn ownAnswer(self: *const Handshake) Answer {
        return .{ .refusal = 0, .proof = self.proofOf(self.role) };
    }

    pub fn proofOf(self: *const Handshake, role: Role) [32]u8 {
        var mac = HmacSha256.init(self.key);
        mac.update(proof_label);
        mac.update(&.{@backingInt(role)});
        mac.update(std.mem.asBytes(&self.inOrder()));
        return mac.finalResult();
    }

    /// Tells the peer why, in the message it waits for.
    fn refuseAloud(self: *Handshake, refusal: Refusal) void {
        const code = @backingInt(refusal.reason);
        if (self.role == .connecting and self.phase == .proof) {
            self.put(&Verdict{ .refusal = code });
        } else self.put(&Answer{ .refusal = code, .proof = @splat(0) });
        self.finish(refusal);
    }

    fn refusedByPeer(self: *Handshake, code: u8) void {
        self.finish(.{ .reason = .refused_by_peer, .phase = self.phase, .theirs = code });
    }

    fn finish(self: *Handshake, refusal: Refusal) void {
        self.result = .{ .refused = refusal };
    }

    fn put(self: *Handshake, message: anytype) void {
        const bytes = std.mem.asBytes(message);
        @memcpy(self.out[self.out_end..][0..bytes.len], bytes);
        self.out_end += bytes.len;
    }

    /// Whether nothing waits to be sent.
    fn sendSome(self: *Handshake, fd: i32) bool {
        while (self.out_start < self.out_end and !self.is_deaf) {
            const rest = self.out[self.out_start..self.out_end];
            const flags = linux.MSG.NOSIGNAL | linux.MSG.DONTWAIT;
            const r = linux.sendto(fd, rest.ptr, rest.len, flags, null, 0);
            switch (linux.errno(r)) {
                .SUCCESS => self.out_start += r,
                .INTR => {},
                .AGAIN => return false,
                // Its last words, a refusal perhaps, are still to be read.
                .PIPE, .CONNRESET => self.is_deaf = true,
                else => |e| {
                    self.fail(e);
                    return true;
                },
            }
        }
        return true;
    }

    /// False: nothing more now, or `result` says why never.
    fn readSome(self: *Handshake, fd: i32, need: usize) bool {
        while (self.in_length < need) {
            const rest = self.in[self.in_length..need];
            const r = linux.recvfrom(fd, rest.ptr, rest.len, linux.MSG.DONTWAIT, null, null);
            switch (linux.errno(r)) {
                .SUCCESS => {
                    if (r == 0) {
                        self.finish(.{ .reason = .closed, .phase = self.phase });
                        return false;
                    }
                    self.in_length += r;
                },
                .INTR => {},
                .AGAIN => return false,
                .PIPE, .CONNRESET => {
                    self.finish(.{ .reason = .closed, .phase = self.phase });
                    return false;
                },
                else => |e| {
                    self.fail(e);
                    return false;
                },
            }
        }
        return true;
    }

    fn fail(self: *Handshake, e: linux.E) void {
        if (self.result != null) return;
        const errno = @backingInt(e);
        self.finish(.{ .reason = .system_call, .phase = self.phase, .theirs = errno });
    }

    pub fn timedOut(self: *const Handshake) Refusal {
        return .{ .reason = .timed_out, .phase = self.phase };
    }
};

fn refusalOf(reason: Reason, own: u64, theirs: u64) Refusal {
    return .{ .reason = reason, .phase = .hello, .own = own, .theirs = theirs };
}

fn otherRole(role: Role) Role {
    return if (role == .connecting) .accepting else .connecting;
}

/// Never 0, which stands for "not known".
pub fn randomInstance() sys.Error!u64 {
    var bytes: [8]u8 = undefined;
    try fillRandom(&bytes);
    return std.mem.readInt(u64, &bytes, .little) | 1;
}

fn fillRandom(bytes: []u8) sys.Error!void {
    var filled: usize = 0;
    while (filled < bytes.len) {
        const r = linux.getrandom(bytes.ptr + filled, bytes.len - filled, 0);
        if (linux.errno(r) == .INTR) continue;
        filled += try sys.check(r);
    }
}

/// Blocks until both sides have proved themselves, one has refused, or the deadline (monotonic)
/// has come. The descriptor stays the caller's.
pub fn perform(fd: i32, role: Role, own: Identity, key: *const Key, deadline_ns: u64) Result {
    var shake = Handshake.init(role, own, key) catch return failedCall();
    while (true) {
        switch (shake.advance(fd)) {
            .finished => |result| return result,
            .waiting => tcp.waitFor(fd, shake.events(), deadline_ns) catch |err| switch (err) {
                error.TimedOut => return .{ .refused = shake.timedOut() },
                error.SystemCall => return failedCall(),
            },
        }
    }
}

fn failedCall() Result {
    const refusal: Refusal = .{
        .reason = .system_call,
        .phase = .hello,
        .theirs = sys.last_errno,
    };
    return .{ .refused = refusal };
}
