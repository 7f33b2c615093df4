//! One number for the whole boundary: a hash of every constant, enum value, record layout and
//! function signature of abi.zig and exports.zig. The library reports it, the generated bindings
//! carry it, the shared page stores it; builds that differ refuse each other.
//! Also the one place that turns a Zig name into its exported C name, and that exports.

const std = @import("std");
const abi = @import("abi.zig");
const exports = @import("exports.zig");

/// FNV-1a, 64 bit (draft-eastlake-fnv): small enough for comptime, and not a security measure.
const fnv_offset: u64 = 0xcbf29ce484222325;
const fnv_prime: u64 = 0x100000001b3;

pub const value: u64 = compute();

fn compute() u64 {
    @setEvalBranchQuota(4_000_000);
    comptime var hash = fnv_offset;
    hash = comptime text(hash, descriptionOfData());
    hash = comptime text(hash, descriptionOfFunctions(exports));
    return hash;
}

fn text(start: u64, comptime bytes: []const u8) u64 {
    var hash = start;
    for (bytes) |byte| hash = (hash ^ byte) *% fnv_prime;
    return hash;
}

/// Everything a reader of the data depends on, one item a line.
fn descriptionOfData() []const u8 {
    comptime var out: []const u8 = "";
    inline for (@typeInfo(abi).@"struct".decl_names) |name| {
        const decl = @field(abi, name);
        if (isConstant(@TypeOf(decl))) out = out ++ print("const {s} {d}\n", .{ name, decl });
    }
    inline for (abi.enums) |E| {
        out = out ++ print("enum {s} {s}\n", .{ shortName(E), @typeName(backing(E)) });
        inline for (@typeInfo(E).@"enum".field_names) |name| {
            out = out ++ print(" {s} {d}\n", .{ name, @backingInt(@field(E, name)) });
        }
    }
    inline for (abi.records) |R| {
        out = out ++ print("record {s} {d}\n", .{ shortName(R), @sizeOf(R) });
        const info = @typeInfo(R).@"struct";
        inline for (info.field_names, info.field_types) |name, T| {
            out = out ++ print(" {s} {d} {s}\n", .{ name, @offsetOf(R, name), @typeName(T) });
        }
    }
    return out;
}

fn descriptionOfFunctions(comptime S: type) []const u8 {
    comptime var out: []const u8 = "";
    inline for (exportedNames(S)) |name| {
        out = out ++ cName(name);
        inline for (@typeInfo(@TypeOf(@field(S, name))).@"fn".param_types) |P| {
            out = out ++ " " ++ @typeName(P.?);
        }
        out = out ++ "\n";
    }
    return out;
}

fn print(comptime format: []const u8, args: anytype) []const u8 {
    return std.fmt.comptimePrint(format, args);
}

pub fn isConstant(comptime T: type) bool {
    return switch (@typeInfo(T)) {
        .int, .comptime_int => true,
        else => false,
    };
}

/// The integer behind an enum.
pub fn backing(comptime E: type) type {
    return @typeInfo(E).@"enum".tag_type;
}

/// "IoSlot" of abi.IoSlot.
pub fn shortName(comptime T: type) []const u8 {
    const name = @typeName(T);
    const dot = std.mem.findScalarLast(u8, name, '.') orelse return name;
    return name[dot + 1 ..];
}

/// Names of the C functions of `S` in source order. A public function with another calling
/// convention or result would be a hole in the boundary: refused.
pub fn exportedNames(comptime S: type) []const []const u8 {
    comptime var out: []const []const u8 = &.{};
    inline for (@typeInfo(S).@"struct".decl_names) |name| {
        const T = @TypeOf(@field(S, name));
        if (@typeInfo(T) != .@"fn") continue;
        const info = @typeInfo(T).@"fn";
        if (info.return_type != i32 or std.meta.activeTag(info.attrs.@"callconv") != .x86_64_sysv) {
            @compileError(name ++ ": exported functions are callconv(.c) and return an i32 status");
        }
        out = out ++ &[_][]const u8{name};
    }
    return out;
}

/// "engineCreate" is exported as "ssihv_engine_create".
pub fn cName(comptime name: []const u8) []const u8 {
    comptime var out: []const u8 = "ssihv_";
    inline for (name) |c| {
        out = out ++ if (std.ascii.isUpper(c)) &[_]u8{ '_', std.ascii.toLower(c) } else &[_]u8{c};
    }
    return out;
}

/// Exports every function of the library's root. Elsewhere (tests, the generator) nothing: those
/// read signatures only, and must not pull in the whole engine.
pub fn exportAll(comptime S: type) void {
    if (@import("root") != S) return;
    @setEvalBranchQuota(100_000);
    inline for (exportedNames(S)) |name| {
        @export(&@field(S, name), .{ .name = cName(name) });
    }
}

test "names become C names" {
    try std.testing.expectEqualStrings("ssihv_engine_create", comptime cName("engineCreate"));
    try std.testing.expectEqualStrings("ssihv_nmi", comptime cName("nmi"));
}

test "the hash is FNV-1a and sees one changed byte" {
    // Test vector of draft-eastlake-fnv for "a".
    try std.testing.expectEqual(@as(u64, 0xaf63dc4c8601ec8c), text(fnv_offset, "a"));
    try std.testing.expect(text(fnv_offset, "u32 a") != text(fnv_offset, "u32 b"));
    try std.testing.expect(value != fnv_offset);
}
