//! One schedule's configuration: everything that decides it. From a seed, or from the flags that
//! such a configuration prints as: a seed in the list of regressions keeps its meaning when the
//! choice of sizes changes. Most schedules are tiny; some have dozens of nodes.

const std = @import("std");

/// What can go wrong around core and shell. A schedule injects those of its set, each at random.
pub const Fault = enum {
    /// COPY, WRITEPROTECT and madvise answer EAGAIN, WAKE answers EINTR.
    eagain,
    /// COPY finds a page there that nobody installed: the shell has to stop the VM.
    exists,
    /// A woken vCPU runs late.
    late_wake,
    /// The shard hears of a fault late.
    late_read,
    /// A signal takes a vCPU out of its fault: it faults again, there or elsewhere first.
    signal,
    /// vCPUs run between any two system calls of the shard.
    race,
    /// A frame takes long, and all behind it on its lane.
    delay,
    /// A frame is lost and sent again much later, those behind it wait.
    loss,
    /// No frame passes between two halves of the nodes for a while.
    partition,
    /// A node stands still, with its shard and its vCPUs.
    pause_node,
    /// One vCPU stands still.
    pause_vcpu,
    /// A node dies. The others hear of it later, and the VM ends.
    crash,
    /// A memory node dies: nothing is lost where each page has two copies.
    crash_memory,
    /// Lanes have room for few requests.
    small_lane,
    // Of simulated sockets below the production lanes only.
    /// A connection is cut, with what is in flight.
    cut,
    /// A byte changes on the way.
    corrupt,
    /// A socket takes less than it is given.
    short_write,
    /// A node stands still for seconds: the others may give it up, and then all have to end.
    standstill,
    /// No byte passes between two halves of the nodes for seconds.
    outage,

    fn isOfSockets(self: Fault) bool {
        return switch (self) {
            .cut, .corrupt, .short_write, .standstill, .outage => true,
            else => false,
        };
    }
};

pub const Faults = std.EnumSet(Fault);

pub const nodes_max = 48;
pub const pages_max = 256;
pub const vcpus_max = 8;
pub const tables_max = 24;
pub const slots_max = 8;
pub const memory_nodes_max = 3;
/// Most pages that an instruction needs where caches are small.
pub const small_instruction_pages = 3;
const wires_nodes_max = @import("wires.zig").nodes_max;

pub const Config = struct {
    seed: u64,
    nodes: u8 = 2,
    pages: u16 = 2,
    /// vCPUs of each node.
    vcpus: u8 = 1,
    /// Of each vCPU and round.
    operations: u32 = 20,
    /// Every round ends at rest, is checked, and may be followed by a reset of the machine.
    rounds: u8 = 1,
    hold_us: u32 = 0,
    /// Of the pages, how many are page tables at first; 0: nothing is replicated.
    tables: u8 = 0,
    /// Most pages of other nodes that a node keeps; 0: any number.
    cache: u16 = 0,
    /// Memory nodes, which come after all others, and on how many of them each page is that is not
    /// at home.
    memory: u8 = 0,
    copies: u8 = 1,
    /// Most pages of its own that a node keeps; 0: any number.
    own: u16 = 0,
    /// Write-back slots of a node that does not keep everything.
    slots: u8 = 1,
    /// Of a hundred operations, so many begin a discard of a few pages.
    discards: u8 = 0,
    /// The production lanes, sealed and resumed, over simulated sockets; else a model of them.
    lanes: enum { model, real } = .model,
    /// What lasts longer freezes the whole VM, over production lanes; 0: nothing does.
    stall_ms: u16 = 0,
    faults: Faults = .empty,
    /// No fault is injected after so many.
    faults_max: u32 = std.math.maxInt(u32),

    pub fn fromSeed(seed: u64) Config {
        var prng: std.Random.DefaultPrng = .init(seed);
        const random = prng.random();
        var config: Config = .{ .seed = seed };
        config.nodes = switch (random.uintLessThan(u8, 100)) {
            0...54 => 2,
            55...79 => 3,
            80...93 => random.intRangeAtMost(u8, 4, 8),
            94...98 => random.intRangeAtMost(u8, 9, 16),
            else => random.intRangeAtMost(u8, 17, nodes_max),
        };
        config.pages = switch (random.uintLessThan(u8, 10)) {
            0...3 => random.intRangeAtMost(u16, 2, 3),
            4...8 => random.intRangeAtMost(u16, 4, 12),
            else => random.intRangeAtMost(u16, 13, 40),
        };
        config.vcpus = if (random.uintLessThan(u8, 10) < 8)
            random.intRangeAtMost(u8, 1, 2)
        else
            random.intRangeAtMost(u8, 3, 4);
        config.operations = switch (random.uintLessThan(u16, 1000)) {
            0...799 => random.intRangeAtMost(u32, 4, 30),
            800...994 => random.intRangeAtMost(u32, 31, 100),
            else => random.intRangeAtMost(u32, 200, 2000),
        };
        if (config.nodes > 16) config.operations = @min(config.operations, 60);
        config.rounds = if (random.uintLessThan(u8, 4) == 0) 2 else 1;
        config.hold_us = switch (random.uintLessThan(u8, 4)) {
            0 => 0,
            1 => random.intRangeAtMost(u32, 1, 20),
            else => random.intRangeAtMost(u32, 50, 2000),
        };
        if (random.uintLessThan(u8, 3) == 0) {
            config.tables = random.intRangeAtMost(u8, 2, 8);
            config.pages += config.tables;
        }
        if (config.nodes <= wires_nodes_max and random.uintLessThan(u8, 4) == 0) {
            config.lanes = .real;
        }
        if (random.uintLessThan(u8, 3) == 0) {
            config.cache = config.cacheMin() + random.intRangeAtMost(u16, 0, 4);
            config.slots = random.intRangeAtMost(u8, 1, slots_max);
            const more = random.intRangeAtMost(u16, 4, 20);
            config.pages = @max(config.pages, config.cache + more);
        }
        if (config.lanes == .model and random.uintLessThan(u8, 4) == 0) {
            config.memory = random.intRangeAtMost(u8, 1, memory_nodes_max);
            config.copies = random.intRangeAtMost(u8, 1, @min(2, config.memory));
            config.own = config.cacheMin() + random.intRangeAtMost(u16, 0, 4);
            config.slots = random.intRangeAtMost(u8, 1, slots_max);
            const more = random.intRangeAtMost(u16, 4, 20);
            config.pages = @max(config.pages, config.own + more);
        }
        config.faults = someFaults(random, config.lanes == .real, config.memory > 0);
        const freezes = random.boolean();
        if (config.lanes == .real and freezes) {
            config.stall_ms = random.intRangeAtMost(u16, 50, 400);
        }
        if (random.uintLessThan(u8, 3) == 0) {
            config.discards = random.intRangeAtMost(u8, 5, 40);
        }
        return config.sound();
    }

    /// What the instructions of all vCPUs may need at once; page tables stay besides.
    fn cacheMin(self: Config) u16 {
        return @as(u16, self.vcpus) * small_instruction_pages + self.tables;
    }

    fn someFaults(random: std.Random, has_sockets: bool, has_memory: bool) Faults {
        var faults: Faults = .empty;
        if (random.uintLessThan(u8, 8) == 0) return faults;
        const percent = random.intRangeAtMost(u8, 10, 60);
        for (std.enums.values(Fault)) |fault| {
            if (fault.isOfSockets() and !has_sockets) continue;
            // These often end the VM, which ends the schedule early.
            const rare: ?u8 = switch (fault) {
                .crash, .exists => 4,
                .standstill, .outage => 8,
                else => null,
            };
            if (fault == .crash_memory and !has_memory) continue;
            const chance = rare orelse percent;
            if (random.uintLessThan(u8, 100) < chance) faults.insert(fault);
        }
        return faults;
    }

    /// As flags that parse() takes.
    pub fn format(self: Config, w: *std.Io.Writer) std.Io.Writer.Error!void {
        try w.print("--seed {d} --nodes {d} --pages {d} --vcpus {d} --operations {d}", .{
            self.seed, self.nodes, self.pages, self.vcpus, self.operations,
        });
        if (self.rounds != 1) try w.print(" --rounds {d}", .{self.rounds});
        if (self.hold_us != 0) try w.print(" --hold {d}", .{self.hold_us});
        if (self.tables != 0) try w.print(" --tables {d}", .{self.tables});
        if (self.cache != 0) try w.print(" --cache {d}", .{self.cache});
        if (self.own != 0) try w.print(" --own {d}", .{self.own});
        if (self.slots != 1) try w.print(" --slots {d}", .{self.slots});
        if (self.memory != 0) {
            try w.print(" --memory {d} --copies {d}", .{ self.memory, self.copies });
        }
        if (self.discards != 0) try w.print(" --discards {d}", .{self.discards});
        if (self.lanes != .model) try w.print(" --lanes {t}", .{self.lanes});
        if (self.stall_ms != 0) try w.print(" --stall {d}", .{self.stall_ms});
        var faults = self.faults.iterator();
        var separator: []const u8 = " --faults ";
        while (faults.next()) |fault| {
            try w.print("{s}{t}", .{ separator, fault });
            separator = ",";
        }
        if (self.faults_max != std.math.maxInt(u32)) {
            try w.print(" --faults-max {d}", .{self.faults_max});
        }
    }

    pub const ParseError = error{ UnknownFlag, ValueInvalid };

    /// Takes one flag with its value.
    pub fn parseFlag(self: *Config, flag: []const u8, value: []const u8) ParseError!void {
        if (std.mem.eql(u8, flag, "--seed")) {
            self.seed = std.fmt.parseUnsigned(u64, value, 0) catch return error.ValueInvalid;
        } else if (std.mem.eql(u8, flag, "--nodes")) {
            self.nodes = try number(u8, value, 2, nodes_max);
        } else if (std.mem.eql(u8, flag, "--pages")) {
            self.pages = try number(u16, value, 1, pages_max);
        } else if (std.mem.eql(u8, flag, "--vcpus")) {
            self.vcpus = try number(u8, value, 1, vcpus_max);
        } else if (std.mem.eql(u8, flag, "--operations")) {
            self.operations = try number(u32, value, 1, 1_000_000);
        } else if (std.mem.eql(u8, flag, "--rounds")) {
            self.rounds = try number(u8, value, 1, 100);
        } else if (std.mem.eql(u8, flag, "--hold")) {
            self.hold_us = try number(u32, value, 0, 1_000_000);
        } else if (std.mem.eql(u8, flag, "--tables")) {
            self.tables = try number(u8, value, 0, tables_max);
        } else if (std.mem.eql(u8, flag, "--cache")) {
            self.cache = try number(u16, value, 0, pages_max);
        } else if (std.mem.eql(u8, flag, "--own")) {
            self.own = try number(u16, value, 0, pages_max);
        } else if (std.mem.eql(u8, flag, "--memory")) {
            self.memory = try number(u8, value, 0, memory_nodes_max);
        } else if (std.mem.eql(u8, flag, "--copies")) {
            self.copies = try number(u8, value, 1, 2);
        } else if (std.mem.eql(u8, flag, "--slots")) {
            self.slots = try number(u8, value, 1, slots_max);
        } else if (std.mem.eql(u8, flag, "--discards")) {
            self.discards = try number(u8, value, 0, 100);
        } else if (std.mem.eql(u8, flag, "--stall")) {
            self.stall_ms = try number(u16, value, 0, 2000);
        } else if (std.mem.eql(u8, flag, "--faults-max")) {
            self.faults_max = try number(u32, value, 0, std.math.maxInt(u32));
        } else if (std.mem.eql(u8, flag, "--lanes")) {
            self.lanes = std.meta.stringToEnum(@TypeOf(self.lanes), value) orelse
                return error.ValueInvalid;
        } else if (std.mem.eql(u8, flag, "--faults")) {
            self.faults = .empty;
            var names = std.mem.tokenizeScalar(u8, value, ',');
            while (names.next()) |name| {
                self.faults.insert(std.meta.stringToEnum(Fault, name) orelse
                    return error.ValueInvalid);
            }
        } else return error.UnknownFlag;
    }

    /// A line of flags, up to a `#`. Null: nothing before it.
    pub fn parseLine(line: []const u8) ParseError!?Config {
        const flags = if (std.mem.findScalar(u8, line, '#')) |at| line[0..at] else line;
        var words = std.mem.tokenizeScalar(u8, flags, ' ');
        var config: Config = .{ .seed = 0 };
        var found = false;
        while (words.next()) |flag| {
            try config.parseFlag(flag, words.next() orelse return error.ValueInvalid);
            found = true;
        }
        return if (found) config.sound() else null;
    }

    /// Values that go together.
    pub fn sound(self: Config) Config {
        var config = self;
        if (config.cache > 0) config.cache = @max(config.cache, config.cacheMin());
        if (config.lanes == .real) config.memory = 0;
        config.copies = @min(config.copies, @max(1, config.memory));
        if (config.memory == 0) config.own = 0;
        if (config.own > 0) config.own = @max(config.own, config.cacheMin());
        if (config.cache == 0 and config.own == 0) config.slots = 1;
        if (config.tables == 1) config.tables = 2;
        if (config.nodes > wires_nodes_max) config.lanes = .model;
        if (config.lanes == .model) config.stall_ms = 0;
        // The lock's page, and one for data.
        if (config.tables > 0) config.pages = @max(config.pages, config.tables + 2);
        return config;
    }

    /// All machines, those without vCPUs as well.
    pub fn machines(self: Config) u8 {
        return self.nodes + self.memory;
    }

    fn number(comptime T: type, text: []const u8, least: T, most: T) ParseError!T {
        const value = std.fmt.parseUnsigned(T, text, 0) catch return error.ValueInvalid;
        return if (value < least or value > most) error.ValueInvalid else value;
    }
};

const testing = std.testing;

test "a configuration reads back from what it prints" {
    for (0..2000) |seed| {
        const config = Config.fromSeed(seed).sound();
        var buffer: [512]u8 = undefined;
        const line = try std.fmt.bufPrint(&buffer, "{f} # found nothing", .{config});
        const again = (try Config.parseLine(line)).?;
        try testing.expect(std.meta.eql(config, again));
    }
}

test "bad lines are refused, empty ones are none" {
    try testing.expectEqual(@as(?Config, null), try Config.parseLine("  # a comment"));
    try testing.expectError(error.ValueInvalid, Config.parseLine("--seed"));
    try testing.expectError(error.ValueInvalid, Config.parseLine("--seed 1 --nodes 49"));
    try testing.expectError(error.ValueInvalid, Config.parseLine("--seed 1 --faults rain"));
    try testing.expectError(error.UnknownFlag, Config.parseLine("--seed 1 --weather 3"));
}
