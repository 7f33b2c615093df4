//! Sealing of frames (AEAD): what the bytes of a lane look like to everybody else. Every connection
//! has two keys of its own, one for each direction, derived from the VM's key and both hellos with
//! their fresh nonces (handshake.zig), and a frame's nonce is its number in that direction of that
//! connection. So no pair of key and nonce ever comes twice, and a frame that is changed, repeated,
//! left out or moved does not open.
//! AEGIS-128L where both CPUs have AES instructions, else ChaCha20-Poly1305. For the 4136 bytes of
//! a page, library as shipped (plain x86-64), AMD EPYC (Zen 4), 2-core VM, Nov 2026: AEGIS-128L
//! 0.28 us; from std.crypto ChaCha20-Poly1305 6.6, AES-256-GCM 51, AEGIS-128L 41.

const std = @import("std");
const HkdfSha256 = std.crypto.kdf.hkdf.HkdfSha256;
const ChaCha = std.crypto.aead.chacha_poly.ChaCha20Poly1305;
const aegis = @import("aegis.zig");

pub const tag_bytes = 16;
const key_bytes = 32;
const label = "ssi-hv lane keys 2 ";

pub const Cipher = enum(u8) {
    chacha20_poly1305 = 0,
    aegis_128l = 1,

    /// Of what each side offers (bit = value of the enum); ChaCha20-Poly1305 always is.
    pub fn choose(a: u16, b: u16) Cipher {
        const both = a & b;
        return if (both & offer(.aegis_128l) != 0) .aegis_128l else .chacha20_poly1305;
    }

    pub fn offer(self: Cipher) u16 {
        return @as(u16, 1) << @intCast(@backingInt(self));
    }
};

/// The ciphers of this host, for a hello.
pub fn offered() u16 {
    const always = Cipher.chacha20_poly1305.offer();
    return if (aegis.isSupported()) always | Cipher.aegis_128l.offer() else always;
}

/// One direction of one connection.
pub const Sealer = struct {
    cipher: Cipher,
    key: [key_bytes]u8,
    /// Frames sealed or opened so far: the nonce of the next one. 2^64 is never reached.
    count: u64 = 0,

    /// Seals `plain` into `out`, of the same length and not the same memory unless exactly so.
    pub fn seal(
        self: *Sealer,
        out: []u8,
        tag: *[tag_bytes]u8,
        plain: []const u8,
        ad: []const u8,
    ) void {
        switch (self.cipher) {
            .aegis_128l => aegis.encrypt(out, tag, plain, ad, self.nonce(16), self.key[0..16].*),
            .chacha20_poly1305 => ChaCha.encrypt(out, tag, plain, ad, self.nonce(12), self.key),
        }
        self.count += 1;
    }

    /// Opens in place. False: these are not the bytes that the holder of the key sent next; what is
    /// in `bytes` then must not be looked at.
    pub fn open(self: *Sealer, bytes: []u8, tag: [tag_bytes]u8, ad: []const u8) bool {
        switch (self.cipher) {
            .aegis_128l => {
                const key = self.key[0..16].*;
                if (!aegis.decrypt(bytes, bytes, tag, ad, self.nonce(16), key)) return false;
            },
            .chacha20_poly1305 => {
                ChaCha.decrypt(bytes, bytes, tag, ad, self.nonce(12), self.key) catch return false;
            },
        }
        self.count += 1;
        return true;
    }

    fn nonce(self: *const Sealer, comptime bytes: usize) [bytes]u8 {
        var out: [bytes]u8 = @splat(0);
        std.mem.writeInt(u64, out[0..8], self.count, .little);
        return out;
    }

    pub fn wipe(self: *Sealer) void {
        std.crypto.secureZero(u8, &self.key);
    }
};

/// Both directions, as one end sees them.
pub const Keys = struct {
    tx: Sealer,
    rx: Sealer,

    /// `hellos` are the bytes as they crossed the wire, the connecting side's first: whatever they
    /// say, nonces, nodes, roles, starts, is bound into the keys. HKDF (RFC 5869) with them as the
    /// salt.
    pub fn derive(
        key: *const [32]u8,
        cipher: Cipher,
        hellos: []const u8,
        is_connecting: bool,
    ) Keys {
        var secret = HkdfSha256.extract(hellos, key);
        defer std.crypto.secureZero(u8, &secret);
        var to_accepting: Sealer = .{ .cipher = cipher, .key = undefined };
        var to_connecting: Sealer = .{ .cipher = cipher, .key = undefined };
        const name = [1]u8{@backingInt(cipher)};
        HkdfSha256.expand(&to_accepting.key, label ++ "a" ++ name, secret);
        HkdfSha256.expand(&to_connecting.key, label ++ "c" ++ name, secret);
        return if (is_connecting)
            .{ .tx = to_accepting, .rx = to_connecting }
        else
            .{ .tx = to_connecting, .rx = to_accepting };
    }

    pub fn wipe(self: *Keys) void {
        self.tx.wipe();
        self.rx.wipe();
    }
};

const testing = std.testing;

fn pairOf(cipher: Cipher, hellos: []const u8) [2]Keys {
    const key: [32]u8 = @splat(9);
    const connecting: Keys = .derive(&key, cipher, hellos, true);
    return .{ connecting, .derive(&key, cipher, hellos, false) };
}

test "what one end seals the other opens, in order only, each way with its own key" {
    for ([_]Cipher{ .chacha20_poly1305, .aegis_128l }) |cipher| {
        if (cipher == .aegis_128l and !aegis.isSupported()) continue;
        var ends = pairOf(cipher, "hellos");
        var out: [3][8]u8 = undefined;
        var tags: [3][tag_bytes]u8 = undefined;
        for (&out, &tags) |*o, *tag| ends[0].tx.seal(o, tag, "the same", "head");
        // The same words never look the same.
        try testing.expect(!std.mem.eql(u8, &out[0], &out[1]));
        var bytes = out[1];
        try testing.expect(!ends[1].rx.open(&bytes, tags[1], "head"));
        bytes = out[0];
        try testing.expect(!ends[1].rx.open(&bytes, tags[0], "tail"));
        for (&out, tags) |*o, tag| {
            bytes = o.*;
            try testing.expect(ends[1].rx.open(&bytes, tag, "head"));
            try testing.expectEqualStrings("the same", &bytes);
            // Neither twice nor back to its sender.
            bytes = o.*;
            try testing.expect(!ends[1].rx.open(&bytes, tag, "head"));
            bytes = o.*;
            try testing.expect(!ends[0].rx.open(&bytes, tag, "head"));
        }
    }
}

test "other hellos or another cipher make other keys" {
    const one = pairOf(.chacha20_poly1305, "hellos");
    const others = [_][2]Keys{
        pairOf(.chacha20_poly1305, "hellus"),
        pairOf(.aegis_128l, "hellos"),
    };
    for (others) |other| {
        try testing.expect(!std.mem.eql(u8, &one[0].tx.key, &other[0].tx.key));
        try testing.expect(!std.mem.eql(u8, &one[0].rx.key, &other[0].rx.key));
    }
    try testing.expect(!std.mem.eql(u8, &one[0].tx.key, &one[0].rx.key));
    try testing.expectEqualSlices(u8, &one[0].tx.key, &one[1].rx.key);
}

test "the quick cipher needs both sides" {
    try testing.expectEqual(Cipher.aegis_128l, Cipher.choose(3, 3));
    try testing.expectEqual(Cipher.aegis_128l, Cipher.choose(0xffff, 3));
    for ([_]u16{ 0, 1, 5 }) |theirs| {
        try testing.expectEqual(Cipher.chacha20_poly1305, Cipher.choose(3, theirs));
    }
}
