//! AEGIS-128L (draft-irtf-cfrg-aegis-aead, sections 2.1 to 2.5) on the CPU's AES instructions. Our
//! library is built for plain x86-64, for which std.crypto computes AES in software: 33 us for a
//! page where this takes 0.3 (see ARCHITECTURE.md). The assembler knows AESENC whatever the target
//! is, so one instruction in assembly is all that this needs; isSupported() says whether the CPU
//! has it. Every test compares with std.crypto's version bit for bit.
//! Only the legacy SSE form is used: it also runs on CPUs with AES and without AVX.

const std = @import("std");
const builtin = @import("builtin");

pub const key_bytes = 16;
pub const nonce_bytes = 16;
pub const tag_bytes = 16;

const Block = @Vector(2, u64);
const block_bytes = 16;
/// Two blocks are taken at a time.
const rate = 2 * block_bytes;

/// The first 32 Fibonacci numbers modulo 256, as the draft's C0 and C1.
const c0: Block = @bitCast([16]u8{
    0x00, 0x01, 0x01, 0x02, 0x03, 0x05, 0x08, 0x0d, 0x15, 0x22, 0x37, 0x59, 0x90, 0xe9, 0x79, 0x62,
});
const c1: Block = @bitCast([16]u8{
    0xdb, 0x3d, 0x18, 0x55, 0x6d, 0xc2, 0x2f, 0xf1, 0x20, 0x11, 0x31, 0x42, 0x73, 0xb5, 0x28, 0xdd,
});

/// CPUID.01H:ECX bit 25 (Intel SDM vol. 2A, CPUID): AESENC and its kin.
pub fn isSupported() bool {
    if (builtin.cpu.arch != .x86_64) return false;
    var eax: u32 = 1;
    var ebx: u32 = undefined;
    var ecx: u32 = 0;
    var edx: u32 = undefined;
    asm volatile ("cpuid"
        : [a] "={eax}" (eax),
          [b] "={ebx}" (ebx),
          [c] "={ecx}" (ecx),
          [d] "={edx}" (edx),
        : [leaf] "{eax}" (eax),
          [subleaf] "{ecx}" (ecx),
    );
    return ecx & (1 << 25) != 0;
}

/// One AES round of `state` with round key `round_key`.
inline fn round(state: Block, round_key: Block) Block {
    return asm ("aesenc %[key], %[out]"
        : [out] "=x" (-> Block),
        : [in] "0" (state),
          [key] "x" (round_key),
    );
}

inline fn load(bytes: *const [block_bytes]u8) Block {
    return @as(*align(1) const Block, @ptrCast(bytes)).*;
}

inline fn store(bytes: *[block_bytes]u8, value: Block) void {
    @as(*align(1) Block, @ptrCast(bytes)).* = value;
}

const State = struct {
    s: [8]Block,

    fn init(key: [key_bytes]u8, nonce: [nonce_bytes]u8) State {
        const k = load(&key);
        const n = load(&nonce);
        var self: State = .{ .s = .{ k ^ n, c1, c0, c1, k ^ n, k ^ c0, k ^ c1, k ^ c0 } };
        for (0..10) |_| self.update(n, k);
        return self;
    }

    inline fn update(self: *State, m0: Block, m1: Block) void {
        const s = self.s;
        // In this order AESENC, which overwrites its state, needs only two copies.
        const k0 = s[0] ^ m0;
        const k4 = s[4] ^ m1;
        const n1 = round(s[0], s[1]);
        const n2 = round(s[1], s[2]);
        const n3 = round(s[2], s[3]);
        const n4 = round(s[3], k4);
        const n5 = round(s[4], s[5]);
        const n6 = round(s[5], s[6]);
        const n7 = round(s[6], s[7]);
        self.s = .{ round(s[7], k0), n1, n2, n3, n4, n5, n6, n7 };
    }

    fn absorb(self: *State, bytes: []const u8) void {
        var at: usize = 0;
        while (at + rate <= bytes.len) : (at += rate) {
            self.update(load(bytes[at..][0..16]), load(bytes[at + 16 ..][0..16]));
        }
        if (at == bytes.len) return;
        var last: [rate]u8 = @splat(0);
        @memcpy(last[0 .. bytes.len - at], bytes[at..]);
        self.update(load(last[0..16]), load(last[16..32]));
    }

    inline fn keystream(self: *const State) [2]Block {
        const s = &self.s;
        return .{ s[6] ^ s[1] ^ (s[2] & s[3]), s[2] ^ s[5] ^ (s[6] & s[7]) };
    }

    fn encrypt(self: *State, out: []u8, in: []const u8) void {
        // A copy that lives in registers: `self` may be memory that `out` could alias.
        var state = self.*;
        var at: usize = 0;
        while (at + rate <= in.len) : (at += rate) {
            const z = state.keystream();
            const m0 = load(in[at..][0..16]);
            const m1 = load(in[at + 16 ..][0..16]);
            store(out[at..][0..16], m0 ^ z[0]);
            store(out[at + 16 ..][0..16], m1 ^ z[1]);
            state.update(m0, m1);
        }
        if (at < in.len) {
            const z = state.keystream();
            var last: [rate]u8 = @splat(0);
            @memcpy(last[0 .. in.len - at], in[at..]);
            const m0 = load(last[0..16]);
            const m1 = load(last[16..32]);
            store(last[0..16], m0 ^ z[0]);
            store(last[16..32], m1 ^ z[1]);
            @memcpy(out[at..], last[0 .. in.len - at]);
            state.update(m0, m1);
        }
        self.* = state;
    }

    fn decrypt(self: *State, out: []u8, in: []const u8) void {
        var state = self.*;
        var at: usize = 0;
        while (at + rate <= in.len) : (at += rate) {
            const z = state.keystream();
            const m0 = load(in[at..][0..16]) ^ z[0];
            const m1 = load(in[at + 16 ..][0..16]) ^ z[1];
            store(out[at..][0..16], m0);
            store(out[at + 16 ..][0..16], m1);
            state.update(m0, m1);
        }
        if (at < in.len) {
            const z = state.keystream();
            var last: [rate]u8 = @splat(0);
            @memcpy(last[0 .. in.len - at], in[at..]);
            store(last[0..16], load(last[0..16]) ^ z[0]);
            store(last[16..32], load(last[16..32]) ^ z[1]);
            // What lies behind the message's end is keystream: zero, as the sender padded.
            @memset(last[in.len - at ..], 0);
            @memcpy(out[at..], last[0 .. in.len - at]);
            state.update(load(last[0..16]), load(last[16..32]));
        }
        self.* = state;
    }

    fn finish(self: *State, ad_bytes: usize, message_bytes: usize) [tag_bytes]u8 {
        const lengths: Block = .{ @as(u64, ad_bytes) * 8, @as(u64, message_bytes) * 8 };
        const t = self.s[2] ^ lengths;
        for (0..7) |_| self.update(t, t);
        const s = &self.s;
        return @bitCast(s[0] ^ s[1] ^ s[2] ^ s[3] ^ s[4] ^ s[5] ^ s[6]);
    }
};

/// `out` is as long as `in`, and may be the same memory.
pub fn encrypt(
    out: []u8,
    tag: *[tag_bytes]u8,
    in: []const u8,
    ad: []const u8,
    nonce: [nonce_bytes]u8,
    key: [key_bytes]u8,
) void {
    std.debug.assert(out.len == in.len);
    var state: State = .init(key, nonce);
    state.absorb(ad);
    state.encrypt(out, in);
    tag.* = state.finish(ad.len, in.len);
}

/// False: the tag does not fit, and `out` holds nothing that may be used.
pub fn decrypt(
    out: []u8,
    in: []const u8,
    tag: [tag_bytes]u8,
    ad: []const u8,
    nonce: [nonce_bytes]u8,
    key: [key_bytes]u8,
) bool {
    std.debug.assert(out.len == in.len);
    var state: State = .init(key, nonce);
    state.absorb(ad);
    state.decrypt(out, in);
    const due = state.finish(ad.len, in.len);
    return std.crypto.timing_safe.eql([tag_bytes]u8, due, tag);
}

const testing = std.testing;
const Reference = std.crypto.aead.aegis.Aegis128L;

test "every length is what std.crypto makes of it, in place too" {
    if (!isSupported()) return error.SkipZigTest;
    var prng = std.Random.DefaultPrng.init(17);
    const random = prng.random();
    var plain: [300]u8 = undefined;
    var key: [key_bytes]u8 = undefined;
    var nonce: [nonce_bytes]u8 = undefined;
    for (0..plain.len) |length| {
        random.bytes(&plain);
        random.bytes(&key);
        random.bytes(&nonce);
        const ad = plain[0 .. length % 70];
        const in = plain[plain.len - length ..];
        var want: [300]u8 = undefined;
        var want_tag: [tag_bytes]u8 = undefined;
        Reference.encrypt(want[0..length], &want_tag, in, ad, nonce, key);
        var out: [300]u8 = undefined;
        var tag: [tag_bytes]u8 = undefined;
        encrypt(out[0..length], &tag, in, ad, nonce, key);
        try testing.expectEqualSlices(u8, want[0..length], out[0..length]);
        try testing.expectEqualSlices(u8, &want_tag, &tag);
        const sealed = out[0..length];
        try testing.expect(decrypt(sealed, sealed, tag, ad, nonce, key));
        try testing.expectEqualSlices(u8, in, sealed);
    }
}

test "one changed bit anywhere is refused" {
    if (!isSupported()) return error.SkipZigTest;
    const key: [key_bytes]u8 = @splat(3);
    const nonce: [nonce_bytes]u8 = @splat(4);
    var message: [77]u8 = @splat(5);
    var ad: [16]u8 = @splat(6);
    var tag: [tag_bytes]u8 = undefined;
    encrypt(&message, &tag, &message, &ad, nonce, key);
    var out: [77]u8 = undefined;
    for ([_][]u8{ &message, &ad, &tag }) |bytes| {
        for (0..bytes.len * 8) |bit| {
            const flip = @as(u8, 1) << @intCast(bit % 8);
            bytes[bit / 8] ^= flip;
            try testing.expect(!decrypt(&out, &message, tag, &ad, nonce, key));
            bytes[bit / 8] ^= flip;
        }
    }
    try testing.expect(decrypt(&out, &message, tag, &ad, nonce, key));
}
