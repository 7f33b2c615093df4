//! The shard of a memory node: lanes to every other node and a store of frames, served by one
//! thread. It has no vCPU, no guest RAM, no userfaultfd and no page states, so nothing it does can
//! wait for another node: whoever asks for a frame gets an answer.

const std = @import("std");
const linux = std.os.linux;
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const last_words = @import("../base/last_words.zig");
const types = @import("../dsm/types.zig");
const protocol = @import("../dsm/lender.zig");
const frames = @import("../memory/frames.zig");
const frame_size = frames.frame_size;
const Store = frames.Store;
const Mailbox = @import("../memory/mailbox.zig").Mailbox;
const frame = @import("../transport/frame.zig");
const Lanes = @import("lanes.zig").Lanes;
const shell_file = @import("shell.zig");
const sleep = @import("sleep.zig").sleep;
const Command = shell_file.Command;
const Handler = shell_file.Handler;

pub const Error = error{ SystemCall, OutOfMemory, ThreadFailed };

pub const Settings = struct {
    node: u8,
    node_count: u8,
    frames_lent: u32,
    /// Frames of each compute node; a range of no frames: none.
    ranges: [abi.nodes_max]abi.FrameRange = @splat(.{ .first = 0, .count = 0 }),
    poll_ns_max: u64,
    peer_timeout_ns: u64,
    service_priority: u32,
};

/// True on the lender's own thread.
threadlocal var on_shard: bool = false;

pub const Lender = struct {
    allocator: std.mem.Allocator,
    settings: Settings,
    mailbox: *Mailbox,
    lanes: Lanes,
    store: Store,
    lent: [abi.nodes_max]protocol.Lent,
    handler: Handler,
    stats: *abi.EngineStats,
    stopping: bool = false,
    thread: ?std.Thread = null,

    pub fn create(
        allocator: std.mem.Allocator,
        settings: Settings,
        handler: Handler,
        stats: *abi.EngineStats,
    ) Error!*Lender {
        const self = try allocator.create(Lender);
        errdefer allocator.destroy(self);
        const mailbox = try allocator.create(Mailbox);
        errdefer allocator.destroy(mailbox);
        mailbox.* = .{ .eventfd = try sys.eventfd() };
        errdefer sys.close(mailbox.eventfd);
        self.* = .{
            .allocator = allocator,
            .settings = settings,
            .mailbox = mailbox,
            .lanes = .{
                .env = .{},
                .own = settings.node,
                .peer_timeout_ns = settings.peer_timeout_ns,
                .stats = stats,
                .observer = .{
                    .context = handler.context,
                    .lost = handler.lost,
                    .noticed = handler.noticed,
                },
            },
            .store = try .init(settings.frames_lent),
            .lent = undefined,
            .handler = handler,
            .stats = stats,
        };
        for (&self.lent, settings.ranges, 0..) |*lent, range, node| {
            lent.* = .{ .home = @intCast(node), .first = range.first, .count = range.count };
        }
        return self;
    }

    pub fn start(self: *Lender) Error!void {
        const old = sys.blockSignals();
        defer sys.restoreSignals(old);
        self.thread = std.Thread.spawn(.{}, run, .{self}) catch return error.ThreadFailed;
    }

    /// Any thread: a span message to the nodes of the mask.
    pub fn post(self: *Lender, nodes: u64, payload: []const u8) void {
        // The shard itself must not wait for its own box.
        if (on_shard) return self.sendSpan(nodes, payload);
        self.mailbox.post(nodes, 0, payload);
    }

    /// Whether the caller is the shard itself.
    pub fn isShard() bool {
        return on_shard;
    }

    pub fn command(self: *Lender, which: u8, argument: u64) void {
        self.mailbox.post(0, which, std.mem.asBytes(&argument));
    }

    /// Ends the thread.
    pub fn join(self: *Lender) void {
        const thread = self.thread orelse return;
        self.command(Command.stop, 0);
        thread.join();
        self.thread = null;
    }

    /// After join().
    pub fn destroy(self: *Lender) void {
        std.debug.assert(self.thread == null);
        self.store.deinit();
        sys.close(self.mailbox.eventfd);
        self.allocator.destroy(self.mailbox);
        self.allocator.destroy(self);
    }

    fn run(self: *Lender) void {
        on_shard = true;
        _ = sys.setFifoPriority(self.settings.service_priority);
        while (!self.stopping) {
            self.wait();
            self.turn();
        }
    }

    fn wait(self: *Lender) void {
        var fds: [1 + abi.nodes_max]linux.pollfd = undefined;
        fds[0] = .{ .fd = self.mailbox.eventfd, .events = linux.POLL.IN, .revents = 0 };
        const n = 1 + self.lanes.poll(fds[1..]);
        const now = sys.monotonicNs();
        sleep(fds[0..n], self.lanes.deadline(now) -| now, self.settings.poll_ns_max);
        if (fds[0].revents != 0) sys.eventfdDrain(self.mailbox.eventfd);
    }

    /// All that is there to do now.
    pub fn turn(self: *Lender) void {
        self.takePosts();
        for (0..self.settings.node_count) |node| self.takeFrames(@intCast(node));
        self.lanes.onTime(sys.monotonicNs());
        self.lanes.flush();
    }

    fn takePosts(self: *Lender) void {
        while (self.lanes.mayRequest()) {
            const p = self.mailbox.take() orelse return;
            if (p.nodes != 0) self.sendSpan(p.nodes, p.bytes()) else self.obey(p.kind);
        }
    }

    fn obey(self: *Lender, which: u8) void {
        switch (which) {
            Command.reset => {
                self.store.clear() catch last_words.fatal("the frames cannot be cleared", .{});
                self.stats.frames_held = 0;
                self.handler.reset_done(self.handler.context);
            },
            // It begins nothing by itself.
            Command.settle => self.handler.settled(self.handler.context),
            Command.leave => self.leave(),
            Command.stop => self.stopping = true,
            else => unreachable,
        }
    }

    /// Its homes go on with other copies at once, instead of after peer_timeout.
    fn leave(self: *Lender) void {
        for (0..self.settings.node_count) |node| {
            self.lanes.lose(@intCast(node), "the user of its host took it out of the VM");
        }
    }

    /// A home's page comes, or is asked for. Answers may always be sent (transport/lane.zig): a
    /// home has a bounded number of pages on their way.
    fn serve(self: *Lender, from: u8, payload: []const u8) !void {
        self.stats.messages_received += 1;
        const msg = std.mem.bytesToValue(types.Msg, payload[0..@sizeOf(types.Msg)]);
        const rest = payload[@sizeOf(types.Msg)..];
        const size: usize = if (msg.hasData()) frame_size else 0;
        if (rest.len != size) return error.ProtocolViolated;
        try protocol.validate(&self.lent, from, msg);
        const number: u32 = @intCast(msg.old);
        if (protocol.isFree(msg)) {
            try self.store.free(number);
            self.stats.frames_held = self.store.counters.written;
            return;
        }
        const answer = protocol.answer(msg);
        const head = std.mem.asBytes(&answer);
        if (msg.hasData()) {
            self.stats.pages_received += 1;
            try self.store.put(number, rest[0..frame_size]);
            self.queue(from, &.{head});
        } else {
            self.stats.pages_sent += 1;
            self.queue(from, &.{ head, try self.store.get(number) });
        }
        self.stats.frames_held = self.store.counters.written;
        self.stats.frame_puts = self.store.counters.puts;
        self.stats.frame_gets = self.store.counters.gets;
    }

    fn queue(self: *Lender, to: u8, parts: []const []const u8) void {
        if (self.lanes.queue(to, .protocol, parts)) self.stats.messages_sent += 1;
    }

    fn sendSpan(self: *Lender, nodes: u64, payload: []const u8) void {
        var rest = nodes;
        while (rest != 0) : (rest &= rest - 1) {
            _ = self.lanes.queue(@intCast(@ctz(rest)), .span, &.{payload});
        }
    }

    fn takeFrames(self: *Lender, node: u8) void {
        const lane = self.lanes.receive(node) orelse return;
        while (self.lanes.next(node, lane)) |f| {
            self.onFrame(node, f.kind, f.payload) catch |e| {
                return self.lanes.lose(node, @errorName(e));
            };
            if (self.lanes.isLost(node)) return;
        }
    }

    fn onFrame(self: *Lender, from: u8, kind: frame.Kind, payload: []const u8) !void {
        switch (kind) {
            .protocol => try self.serve(from, payload),
            .span => self.handler.receive(self.handler.context, from, payload),
            .ping => _ = self.lanes.queue(from, .pong, &.{payload}),
            .pong => {},
            .bye => self.lanes.heardGoodbye(from, payload),
            .ack, .@"resume", .clock, .measure, _ => return error.ProtocolViolated,
        }
    }
};
