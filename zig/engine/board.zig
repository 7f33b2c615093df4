//! The devices of one engine and their interrupt lines: UART, RTC, IOAPIC, PM timer, register
//! files. Each device is a pure state machine; this file gives it a lock, the time and a wire to
//! the IOAPIC. Lock order: uart or rtc, then ioapic.

const std = @import("std");
const abi = @import("../abi.zig");
const sys = @import("../base/sys.zig");
const Access = @import("bus.zig").Access;
const ones = @import("bus.zig").ones;
const Clock = @import("clock.zig").Clock;
const Events = @import("events.zig").Events;
const Router = @import("router.zig").Router;
const Ioapic = @import("../irq/ioapic.zig").Ioapic;
const Uart = @import("../devices/uart.zig").Uart;
const Rtc = @import("../devices/rtc.zig").Rtc;
const RegisterFile = @import("../devices/register_file.zig").RegisterFile;
const pm_timer = @import("../devices/pm_timer.zig");

/// ISA interrupt lines (PC/AT).
const uart_line = 4;
const rtc_line = 8;

pub const register_files_max = 16;

pub const Board = struct {
    clock: *const Clock,
    events: *Events,
    router: *Router,
    ioapic: Ioapic,
    ioapic_lock: sys.Mutex = .{},
    uart: Uart,
    uart_lock: sys.Mutex = .{},
    rtc: Rtc,
    rtc_lock: sys.Mutex = .{},
    files: [register_files_max]RegisterFile = undefined,
    file_initial: [register_files_max]abi.RegisterFile = undefined,
    file_count: u32 = 0,
    files_lock: sys.Mutex = .{},
    /// Signalled when the UART has output or room for input: the console thread waits on it.
    console_eventfd: i32,
    /// The console thread has been told and has not looked yet: one eventfd write per batch.
    console_told: std.atomic.Value(bool) = .init(false),

    pub fn init(clock: *const Clock, events: *Events, router: *Router, console_eventfd: i32) Board {
        return .{
            .clock = clock,
            .events = events,
            .router = router,
            .ioapic = Ioapic.init(),
            .uart = Uart.init(),
            .rtc = Rtc.init(sys.realtimeSeconds()),
            .console_eventfd = console_eventfd,
        };
    }

    /// Machine reset; vCPUs are parked, the console thread is not. The RTC keeps its time.
    pub fn reset(self: *Board) void {
        {
            self.ioapic_lock.lock();
            defer self.ioapic_lock.unlock();
            self.ioapic.reset();
        }
        {
            self.uart_lock.lock();
            defer self.uart_lock.unlock();
            self.uart.reset();
            self.setLine(uart_line, self.uart.irq());
        }
        {
            self.rtc_lock.lock();
            defer self.rtc_lock.unlock();
            self.rtc.reset();
            self.setLine(rtc_line, self.rtc.irq());
        }
        self.file_count = @min(self.file_count, register_files_max);
        for (0..self.file_count) |i| self.files[i] = RegisterFile.init(self.file_initial[i]);
    }

    pub fn addFile(self: *Board, file: abi.RegisterFile) error{FilesTooMany}!void {
        if (self.file_count == register_files_max) return error.FilesTooMany;
        self.files[self.file_count] = RegisterFile.init(file);
        self.file_initial[self.file_count] = file;
        self.file_count += 1;
    }

    pub fn setLine(self: *Board, pin: u5, level: bool) void {
        self.ioapic_lock.lock();
        defer self.ioapic_lock.unlock();
        self.ioapic.setLine(pin, level);
        self.flushIoapic();
    }

    pub fn endOfInterrupt(self: *Board, vector: u8) void {
        self.ioapic_lock.lock();
        defer self.ioapic_lock.unlock();
        self.ioapic.eoi(vector);
        self.flushIoapic();
    }

    /// Under ioapic_lock: hands out what the IOAPIC wants delivered.
    fn flushIoapic(self: *Board) void {
        while (self.ioapic.take()) |message| self.router.deliver(message);
    }

    pub fn ioapicAccess(self: *Board, a: Access, offset: u64) u64 {
        self.ioapic_lock.lock();
        defer self.ioapic_lock.unlock();
        const register: u32 = @truncate(offset);
        if (!a.is_write) return self.ioapic.read(register) & ones(a.size);
        self.ioapic.write(register, @truncate(a.value));
        self.flushIoapic();
        return 0;
    }

    pub fn uartAccess(self: *Board, a: Access, offset: u64) u64 {
        if (a.size != 1 or offset > 7) return ones(a.size);
        self.uart_lock.lock();
        defer self.uart_lock.unlock();
        var value: u64 = 0;
        if (a.is_write) self.uart.write(@intCast(offset), @truncate(a.value)) else {
            value = self.uart.read(@intCast(offset));
        }
        self.setLine(uart_line, self.uart.irq());
        // THR written or RBR read: the console thread has bytes to take or room to fill.
        // acq_rel: pairs with the exchange in consoleOutput, so no byte waits for a bell nobody
        // rings.
        if (offset == 0 and !self.console_told.swap(true, .acq_rel)) {
            sys.eventfdSignal(self.console_eventfd);
        }
        return value;
    }

    /// Console thread: input for the guest; returns how much fitted.
    pub fn consoleInput(self: *Board, bytes: []const u8) usize {
        self.uart_lock.lock();
        defer self.uart_lock.unlock();
        const n = self.uart.receive(bytes);
        self.setLine(uart_line, self.uart.irq());
        return n;
    }

    /// Console thread: output of the guest.
    pub fn consoleOutput(self: *Board, out: []u8) usize {
        _ = self.console_told.swap(false, .acq_rel);
        self.uart_lock.lock();
        defer self.uart_lock.unlock();
        const n = self.uart.transmitted(out);
        if (n > 0) self.setLine(uart_line, self.uart.irq());
        return n;
    }

    pub fn rtcAccess(self: *Board, a: Access, offset: u64) u64 {
        if (a.size != 1 or offset > 1) return ones(a.size);
        self.rtc_lock.lock();
        defer self.rtc_lock.unlock();
        self.rtc.tick(self.clock.walltime());
        var value: u64 = 0;
        if (a.is_write) self.rtc.write(@intCast(offset), @truncate(a.value)) else {
            value = self.rtc.read(@intCast(offset));
        }
        self.setLine(rtc_line, self.rtc.irq());
        return value;
    }

    /// Console thread: lets the RTC's interrupts happen; returns the guest's walltime of the next.
    pub fn rtcTick(self: *Board) ?u64 {
        self.rtc_lock.lock();
        defer self.rtc_lock.unlock();
        self.rtc.tick(self.clock.walltime());
        self.setLine(rtc_line, self.rtc.irq());
        return self.rtc.deadline(self.clock.walltime());
    }

    pub fn pmTimerAccess(self: *Board, offset: u64, size: u32) u64 {
        if (offset > 3) return ones(size);
        const value: u64 = pm_timer.read(self.clock.machineTime());
        return (value >> @intCast(offset * 8)) & ones(size);
    }

    pub fn registerAccess(self: *Board, a: Access, device: u32, offset: u64) u64 {
        self.files_lock.lock();
        defer self.files_lock.unlock();
        const file = for (self.files[0..self.file_count]) |*f| {
            if (f.registers.device == device) break f;
        } else return ones(a.size);
        if (!a.is_write) return file.read(@truncate(offset), a.size);
        if (file.write(@truncate(offset), a.size, a.value)) |bits| {
            self.events.simple(.register_event, 0, device, offset, bits);
        }
        return 0;
    }
};
