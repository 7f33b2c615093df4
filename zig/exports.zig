//! The function half of the Zig-TypeScript boundary: every `pub fn` here with C calling convention
//! is exported as ssihv_<name in snake case> and appears in src/native/abi.gen.ts. Each returns a
//! Status at once; long work belongs to the engine's threads. Only the JavaScript thread calls in.

const std = @import("std");
const linux = std.os.linux;
const abi = @import("abi.zig");
const abi_hash = @import("abi_hash.zig");
const sys = @import("base/sys.zig");
const failure = @import("base/failure.zig");
const last_words = @import("base/last_words.zig");
const seccomp = @import("base/seccomp.zig");
const user = @import("base/user.zig");
const host = @import("kvm/host.zig");
const probe = @import("kvm/probe.zig");
const dumper = @import("engine/dumper.zig");
const engine_file = @import("engine.zig");
const Engine = engine_file.Engine;

pub const panic = std.debug.FullPanic(last_words.onPanic);

comptime {
    abi_hash.exportAll(@This());
}

const ok: i32 = @backingInt(abi.Status.ok);
const allocator = std.heap.c_allocator;

/// One engine a process; the handle's generation makes a stale one visible.
var current: ?*Engine = null;
var generation: u32 = 0;
var mapped: ?*abi.Shared = null;

pub fn abiInfo(out: *abi.AbiInfo) callconv(.c) i32 {
    out.* = .{ .version = abi.abi_version, .hash = abi_hash.value };
    return ok;
}

pub fn errorLast(out: *abi.ErrorRecord) callconv(.c) i32 {
    out.* = failure.record;
    return ok;
}

/// A new shared page (memfd) mapped in this process: the parent's side.
pub fn sharedCreate(out: *abi.SharedInfo) callconv(.c) i32 {
    const r = linux.memfd_create("ssihv-shared", linux.MFD.CLOEXEC);
    const fd: i32 = @intCast(sys.check(r) catch {
        return failure.fail(.io_failed, "memfd_create for the shared page failed", .{});
    });
    _ = sys.check(linux.ftruncate(fd, @sizeOf(abi.Shared))) catch {
        sys.close(fd);
        return failure.fail(.io_failed, "ftruncate of the shared page failed", .{});
    };
    const memory = sys.mapShared(fd, @sizeOf(abi.Shared)) catch {
        sys.close(fd);
        return failure.fail(.io_failed, "mmap of the shared page failed", .{});
    };
    const shared: *abi.Shared = @ptrCast(memory.ptr);
    shared.magic = abi.shared_magic;
    shared.version = abi.abi_version;
    shared.hash = abi_hash.value;
    shared.size = @sizeOf(abi.Shared);
    out.* = .{ .fd = fd, .address = @intFromPtr(shared), .size = @sizeOf(abi.Shared) };
    return ok;
}

/// The engine's side: maps the page its parent made and leaves last words there from now on; and
/// from now on SIGUSR1 asks for what is open instead of ending the process.
pub fn sharedMap(fd: i32, out: *abi.SharedInfo) callconv(.c) i32 {
    const memory = sys.mapShared(fd, @sizeOf(abi.Shared)) catch {
        return failure.fail(.io_failed, "mmap of shared page fd {d} failed", .{fd});
    };
    const shared: *abi.Shared = @ptrCast(memory.ptr);
    if (shared.magic != abi.shared_magic or shared.hash != abi_hash.value) {
        return failure.fail(.invalid_argument, "shared page fd {d} is of another build", .{fd});
    }
    shared.pid = @intCast(linux.getpid());
    mapped = shared;
    last_words.attach(shared);
    last_words.installSignalHandlers();
    dumper.installHandler();
    out.* = .{ .fd = fd, .address = @intFromPtr(shared), .size = @sizeOf(abi.Shared) };
    return ok;
}

/// Unmaps and closes a page that sharedCreate made.
pub fn sharedClose(fd: i32, address: u64) callconv(.c) i32 {
    const p: [*]align(std.heap.page_size_min) u8 = @ptrFromInt(address);
    sys.unmap(p[0..std.mem.alignForward(usize, @sizeOf(abi.Shared), std.heap.page_size_min)]);
    sys.close(fd);
    return ok;
}

/// A pair of connected sockets: the doorbell (both non-blocking, close-on-exec).
pub fn doorbellCreate(out: *[2]i32) callconv(.c) i32 {
    const kind = linux.SOCK.STREAM | linux.SOCK.CLOEXEC | linux.SOCK.NONBLOCK;
    _ = sys.check(linux.socketpair(linux.AF.UNIX, kind, 0, out)) catch {
        return failure.fail(.io_failed, "socketpair for the doorbell failed", .{});
    };
    return ok;
}

/// The process ends when its parent does: no engine outlives the one who would report it.
pub fn parentDeathSignal(parent: i32, signal: i32) callconv(.c) i32 {
    user.dieWith(parent, signal) catch |e| return switch (e) {
        error.Orphaned => failure.fail(.state_wrong, "process {d} is not its parent", .{parent}),
        else => failure.fail(.unsupported, "PR_SET_PDEATHSIG failed", .{}),
    };
    return ok;
}

/// Becomes user and group `id` for good; threads may go on to ask for real-time priorities up to
/// `priority`. After engineCreate, which needs root's rights; parentDeathSignal has to follow.
pub fn sandboxUser(id: u32, priority: u32) callconv(.c) i32 {
    user.become(id, priority) catch {
        return failure.fail(.unsupported, "it cannot become user {d}", .{id});
    };
    return ok;
}

/// For good: no new privileges, and only the system calls of zig/base/seccomp.zig.
pub fn sandboxFilter() callconv(.c) i32 {
    seccomp.enter() catch {
        return failure.fail(.unsupported, "the kernel takes no filter of system calls", .{});
    };
    return ok;
}

pub fn hostProbe(out: *abi.HostProbe) callconv(.c) i32 {
    out.* = std.mem.zeroes(abi.HostProbe);
    probe.run(out);
    return ok;
}

/// KVM_GET_SUPPORTED_CPUID: at most `capacity` entries to `entries`, their number to `count`.
pub fn hostCpuid(entries: [*]abi.CpuidEntry, capacity: u32, count: *u32) callconv(.c) i32 {
    const n = host.supportedCpuid(entries[0..capacity]) catch |e| {
        return failure.fail(.kvm_failed, "KVM_GET_SUPPORTED_CPUID: {t}", .{e});
    };
    count.* = @intCast(n);
    return ok;
}

pub fn hostMsrs(entries: [*]abi.MsrEntry, capacity: u32, count: *u32) callconv(.c) i32 {
    const n = host.featureMsrs(entries[0..capacity]) catch |e| {
        return failure.fail(.kvm_failed, "KVM feature MSRs: {t}", .{e});
    };
    count.* = @intCast(n);
    return ok;
}

pub fn hostTscKhz(khz: *u32) callconv(.c) i32 {
    khz.* = host.tscKhz() catch |e| return failure.fail(.kvm_failed, "TSC frequency: {t}", .{e});
    return ok;
}

/// 1 when page walks need write access to the guest's page tables on this host.
pub fn hostWalksWrite(answer: *u32) callconv(.c) i32 {
    answer.* = @intFromBool(probe.walksWrite() catch |e| {
        return failure.fail(.kvm_failed, "page-walk probe: {t}", .{e});
    });
    return ok;
}

pub fn engineCreate(config: *const abi.EngineConfig, handle: *u32) callconv(.c) i32 {
    if (current != null) return failure.fail(.state_wrong, "this process has an engine", .{});
    const shared = mapped orelse {
        return failure.fail(.state_wrong, "shared page not mapped: call sharedMap first", .{});
    };
    current = Engine.create(allocator, config, shared) catch |e| {
        return failure.fail(.kvm_failed, "engine of node {d}: {t}", .{ config.node, e });
    };
    generation += 1;
    handle.* = generation;
    return ok;
}

fn engineOf(handle: u32) ?*Engine {
    if (handle != generation) return null;
    return current;
}

fn stale(handle: u32) i32 {
    return failure.fail(.handle_stale, "engine handle {d} is stale", .{handle});
}

fn notRam(gpa: u64, len: u64) i32 {
    return failure.fail(.guest_range_invalid, "load of {d} bytes at 0x{x}: not RAM", .{ len, gpa });
}

/// Copies bytes into guest RAM: images and tables, before start or while paused.
pub fn engineLoad(handle: u32, gpa: u64, bytes: [*]const u8, len: u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    const memory = engine.ram.slice(gpa, len) orelse {
        return notRam(gpa, len);
    };
    @memcpy(memory, bytes[0..len]);
    return ok;
}

/// Copies a file range into guest RAM.
pub fn engineLoadFile(handle: u32, gpa: u64, fd: i32, offset: u64, len: u64) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    const memory = engine.ram.slice(gpa, len) orelse {
        return notRam(gpa, len);
    };
    // Through a bounce buffer: no kernel I/O may target guest RAM (see the pager's rules).
    var bounce: [65536]u8 = undefined;
    var done: u64 = 0;
    while (done < len) {
        const want: usize = @intCast(@min(bounce.len, len - done));
        const r = linux.pread(fd, &bounce, want, @intCast(offset + done));
        const n = sys.check(r) catch {
            return failure.fail(.io_failed, "image: read at {d} failed", .{offset + done});
        };
        if (n == 0) {
            const where = .{ offset + done, len - done };
            return failure.fail(.io_failed, "image ends at {d}, {d} bytes short", where);
        }
        @memcpy(memory[done..][0..n], bounce[0..n]);
        done += n;
    }
    return ok;
}

pub fn engineBusAdd(handle: u32, region: *const abi.BusRegion) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    engine.bus.add(region.*) catch |e| {
        return failure.fail(.invalid_argument, "bus region at 0x{x}: {t}", .{ region.base, e });
    };
    return ok;
}

pub fn engineRegisterFile(handle: u32, file: *const abi.RegisterFile) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    engine.board.addFile(file.*) catch |e| {
        return failure.fail(.invalid_argument, "register file {d}: {t}", .{ file.device, e });
    };
    return ok;
}

pub fn engineVirtio(handle: u32, device: *const abi.VirtioDevice) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    engine.addVirtio(device) catch |e| {
        return failure.fail(.invalid_argument, "virtio device {d}: {t}", .{ device.id, e });
    };
    return ok;
}

/// Pages that the guest is to give into its balloon, from now on.
pub fn engineBalloon(handle: u32, pages: u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    const balloon = engine.balloon orelse {
        return failure.fail(.state_wrong, "this engine has no balloon", .{});
    };
    balloon.setTarget(pages);
    return ok;
}

pub fn engineCpuid(
    handle: u32,
    vcpu: u32,
    entries: [*]const abi.CpuidEntry,
    count: u32,
) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    if (vcpu >= engine.vcpus.len or count > @import("kvm/api.zig").cpuid_entries_max) {
        return failure.fail(.invalid_argument, "CPUID of vCPU {d}: {d} entries", .{ vcpu, count });
    }
    engine.setCpuid(vcpu, entries[0..count]) catch |e| {
        return failure.fail(.kvm_failed, "CPUID of vCPU {d}: {t}", .{ vcpu, e });
    };
    return ok;
}

/// MSRs that every vCPU starts with.
pub fn engineMsrs(handle: u32, entries: [*]const abi.MsrEntry, count: u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    engine.setMsrs(entries[0..count]) catch |e| {
        return failure.fail(.invalid_argument, "{d} start MSRs: {t}", .{ count, e });
    };
    return ok;
}

/// Start state of the boot vCPU; only node 0 has one.
pub fn engineBoot(handle: u32, record: *const abi.VcpuRecord) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    engine.boot = record.*;
    return ok;
}

pub fn engineStart(handle: u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    if (engine.started) return failure.fail(.state_wrong, "engine already started", .{});
    engine.start() catch |e| {
        return failure.fail(.kvm_failed, "start of node {d}: {t}", .{ engine.config.node, e });
    };
    return ok;
}

/// Event `paused` tells when every vCPU is parked.
pub fn enginePause(handle: u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    engine.pause();
    return ok;
}

pub fn engineResume(handle: u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    engine.continueRun();
    return ok;
}

/// Power-on state again, only while paused; then load the images and resume.
pub fn engineReset(handle: u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    engine.reset() catch |e| return failure.fail(.kvm_failed, "reset: {t}", .{e});
    return ok;
}

/// After engineReset and the loads: the boot vCPU gets its record.
pub fn engineApplyBoot(handle: u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    engine.prepareVcpus() catch |e| return failure.fail(.kvm_failed, "boot state: {t}", .{e});
    return ok;
}

/// Event `stopped` tells when it is over.
pub fn engineStop(handle: u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    engine.stop();
    return ok;
}

/// A memory node leaves: its homes hear it at once. Event `stopped` tells when they have been told.
pub fn engineLeave(handle: u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    engine.leave() catch |e| return failure.fail(.state_wrong, "leave: {t}", .{e});
    return ok;
}

/// The process of that memory node has ended and was reaped: it is lost at once, as after
/// peer_timeout.
pub fn enginePeerEnded(handle: u32, node: u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    engine.peerEnded(node) catch |e| {
        return failure.fail(.state_wrong, "end of node {d}: {t}", .{ node, e });
    };
    return ok;
}

/// After event `stopped`: why, in words, at most `capacity` bytes of UTF-8; none for most reasons.
pub fn engineStopWords(handle: u32, out: [*]u8, capacity: u32, len: *u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    const words = engine.stopWords();
    const n = @min(words.len, capacity);
    @memcpy(out[0..n], words[0..n]);
    len.* = @intCast(n);
    return ok;
}

/// Answers the io request in the vCPU's slot.
pub fn ioComplete(handle: u32, vcpu: u32, value: u64) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    if (vcpu >= abi.io_slots_max) return failure.fail(.invalid_argument, "io slot {d}", .{vcpu});
    engine.completeIo(vcpu, value) catch {
        return failure.fail(.state_wrong, "vCPU {d} waits for nothing", .{vcpu});
    };
    return ok;
}

/// Raises or lowers a line of the IOAPIC, for devices in TypeScript.
pub fn irqLine(handle: u32, pin: u32, level: u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    if (pin >= 24) return failure.fail(.invalid_argument, "IOAPIC pin {d}", .{pin});
    engine.board.setLine(@intCast(pin), level != 0);
    return ok;
}

/// Where this node's lanes listen: "host:port" or "unix:/path"; `port` is the one bound.
pub fn engineListen(handle: u32, text: [*]const u8, len: u32, port: *u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    const address = engine_file.Address.parse(text[0..len]) catch |e| {
        return failure.fail(.invalid_argument, "lane address {s}: {s}", .{
            text[0..len],
            engine_file.explainAddress(e),
        });
    };
    port.* = engine.listen(address) catch {
        return failure.fail(.io_failed, "cannot listen on {s}", .{text[0..len]});
    };
    return ok;
}

/// Where a peer's lanes listen; before engineLink.
pub fn enginePeer(handle: u32, node: u32, text: [*]const u8, len: u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    if (node >= abi.nodes_max) return failure.fail(.invalid_argument, "node {d}", .{node});
    engine.link.addresses[node] = engine_file.Address.parse(text[0..len]) catch |e| {
        return failure.fail(.invalid_argument, "address of node {d}, {s}: {s}", .{
            node,
            text[0..len],
            engine_file.explainAddress(e),
        });
    };
    return ok;
}

/// Connects to every peer and agrees on the clock, in the background; event `linked` follows.
pub fn engineLink(handle: u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    engine.startLink() catch |e| return failure.fail(.peer_failed, "link: {t}", .{e});
    return ok;
}

/// After a `linked` event with a = 1: records why, for ssihv_error_last.
pub fn linkFailure(handle: u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    const link = &engine.link;
    return failure.fail(.peer_failed, "{s}", .{link.words[0..link.words_len]});
}

/// After event `linked`, on node 0: nodes_max rows (node of the CPU) of nodes_max records (node of
/// the memory). Zeros where a node has no vCPUs, or is not there.
pub fn linkCosts(handle: u32, out: [*]abi.LinkCost) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    for (&engine.link.costs, 0..) |*row, node| {
        @memcpy(out[node * abi.nodes_max ..][0..abi.nodes_max], row);
    }
    return ok;
}

/// A control message to the TypeScript of other nodes (bit n = node n); ordered with all else.
pub fn spanSend(handle: u32, nodes: u32, operation: u32, argument: u64) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    const span = engine.span orelse return failure.fail(.state_wrong, "the VM has one node", .{});
    span.sendControl(nodes, operation, argument);
    return ok;
}

/// All vCPUs are parked: lets arrive what this node has under way. Event `settled` follows.
pub fn pagesSettle(handle: u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    if (!engine.settlePages()) return failure.fail(.state_wrong, "plain memory", .{});
    return ok;
}

/// Forgets every page of this node; all nodes' vCPUs are parked. Event `reset_done` follows.
pub fn pagesReset(handle: u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    if (!engine.forgetPages()) return failure.fail(.state_wrong, "plain memory", .{});
    return ok;
}

/// Pages that moved here most often, most first: at most `capacity`, their number to `count`.
pub fn pagesHot(handle: u32, out: [*]abi.HotPage, capacity: u32, count: *u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    const pager = engine.pager orelse return failure.fail(.state_wrong, "plain memory", .{});
    count.* = pager.hottest(out[0..capacity]);
    return ok;
}

/// Asks the shard about `count` pages from `gpa` on; event `pages_answered` with the sequence (not
/// 0) follows, and the shared page then holds the answer.
pub fn pagesQuery(handle: u32, gpa: u64, count: u32, sequence: u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    const number = std.math.cast(u16, sequence) orelse 0;
    if (count == 0 or count > abi.page_records_max or number == 0) {
        const what = .{ sequence, count };
        return failure.fail(.invalid_argument, "question {d} about {d} pages", what);
    }
    engine.queryPages(gpa, count, number) catch |e| return switch (e) {
        error.PlainMemory => failure.fail(.state_wrong, "plain memory", .{}),
        error.NotRam => failure.fail(
            .guest_range_invalid,
            "{d} pages from 0x{x} on: not RAM",
            .{ count, gpa },
        ),
        error.Busy => failure.fail(.state_wrong, "the shard has not answered yet", .{}),
    };
    return ok;
}

/// NMI to every vCPU of this node (operator's request).
pub fn nmiSend(handle: u32) callconv(.c) i32 {
    const engine = engineOf(handle) orelse return stale(handle);
    engine.sendNmi();
    return ok;
}

/// Dies on purpose, so that tests can see the last words: 1 = panic, 2 = SIGSEGV on another thread.
pub fn crashPlant(kind: u32) callconv(.c) i32 {
    switch (kind) {
        1 => {
            var three: [3]u8 = .{ 1, 2, 3 };
            var index: usize = 9;
            std.mem.doNotOptimizeAway(&index);
            three[index] = 0;
        },
        2 => {
            const Crash = struct {
                fn run() void {
                    var address: usize = 8;
                    std.mem.doNotOptimizeAway(&address);
                    @as(*volatile u8, @ptrFromInt(address)).* = 1;
                }
            };
            const thread = std.Thread.spawn(.{}, Crash.run, .{}) catch {
                return failure.fail(.io_failed, "thread", .{});
            };
            thread.join();
        },
        else => return failure.fail(.invalid_argument, "crash kind {d}", .{kind}),
    }
    return ok;
}
