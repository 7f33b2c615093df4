//! A 16550A serial port: registers, both FIFOs, interrupt priorities and loopback, as far as software
//! can see them (National Semiconductor PC16550D data sheet; "DS" below names its section).
//! Pure: bytes in, bytes out, the level of the interrupt line. Characters take no time: what the
//! guest sends is in `sent` at once, and data below the trigger level counts as timed out at once.
//! Invariant: THR-empty is only told while a whole FIFO load fits, so a guest that looks loses none.

const std = @import("std");

/// Depth of both FIFOs (DS 8.0).
const fifo_size = 16;
/// Bytes of output kept for the console thread.
pub const sent_max = 8192;

const Ier = struct {
    const received: u8 = 0x01;
    const thr_empty: u8 = 0x02;
    const line_status: u8 = 0x04;
    const modem_status: u8 = 0x08;
    const mask: u8 = 0x0f;
};

/// IIR values in the order of their priority (DS table IV).
const Iir = struct {
    const line_status: u8 = 0x06;
    const received: u8 = 0x04;
    const timeout: u8 = 0x0c;
    const thr_empty: u8 = 0x02;
    const modem_status: u8 = 0x00;
    const none: u8 = 0x01;
    const fifos_enabled: u8 = 0xc0;
};

const Fcr = struct {
    const enable: u8 = 0x01;
    const clear_receive: u8 = 0x02;
};

const Lcr = struct {
    const divisor_latch: u8 = 0x80;
};

const Mcr = struct {
    const dtr: u8 = 0x01;
    const rts: u8 = 0x02;
    const out1: u8 = 0x04;
    const out2: u8 = 0x08;
    const loopback: u8 = 0x10;
    const mask: u8 = 0x1f;
};

const Lsr = struct {
    const data_ready: u8 = 0x01;
    const overrun: u8 = 0x02;
    const thr_empty: u8 = 0x20;
    const transmitter_empty: u8 = 0x40;
};

const Msr = struct {
    const delta_cts: u8 = 0x01;
    const delta_dsr: u8 = 0x02;
    const trailing_ri: u8 = 0x04;
    const delta_dcd: u8 = 0x08;
    const cts: u8 = 0x10;
    const dsr: u8 = 0x20;
    const ri: u8 = 0x40;
    const dcd: u8 = 0x80;
};

/// Divisor of 9600 baud from the PC's 1.8432 MHz (the chip leaves it undefined after reset).
const divisor_reset = 12;

pub const Uart = struct {
    ier: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: u16,
    /// FCR bits 0 and 7:6; the others act and are gone.
    fcr: u8,
    overrun: bool,
    /// A THR-empty interrupt is due: set when THR becomes empty or its interrupt is enabled, cleared
    /// by reading it from IIR and by the next byte (DS table IV).
    thr_interrupt: bool,
    /// Modem lines (bits 7:4) and what changed since the last read (bits 3:0).
    msr: u8,
    receive_fifo: [fifo_size]u8,
    receive_head: u8,
    receive_count: u8,
    sent: [sent_max]u8,
    sent_head: u32,
    sent_count: u32,
    /// Bytes a guest wrote without looking at THR-empty while the buffer was full.
    lost: u64,

    pub fn init() Uart {
        var self: Uart = undefined;
        self.sent_head = 0;
        self.sent_count = 0;
        self.lost = 0;
        self.reset();
        return self;
    }

    /// Master reset (DS table III). Output not yet taken stays: the guest did send it.
    pub fn reset(self: *Uart) void {
        self.ier = 0;
        self.lcr = 0;
        self.mcr = 0;
        self.scratch = 0;
        self.divisor = divisor_reset;
        self.fcr = 0;
        self.overrun = false;
        self.thr_interrupt = false;
        self.receive_head = 0;
        self.receive_count = 0;
        self.msr = self.modemLines();
    }

    pub fn read(self: *Uart, offset: u3) u8 {
        const latch = self.lcr & Lcr.divisor_latch != 0;
        return switch (offset) {
            0 => if (latch) @truncate(self.divisor) else self.takeReceived(),
            1 => if (latch) @truncate(self.divisor >> 8) else self.ier,
            2 => self.readIdentification(),
            3 => self.lcr,
            4 => self.mcr,
            5 => self.readLineStatus(),
            6 => self.readModemStatus(),
            7 => self.scratch,
        };
    }

    pub fn write(self: *Uart, offset: u3, value: u8) void {
        const latch = self.lcr & Lcr.divisor_latch != 0;
        switch (offset) {
            0 => if (latch) {
                self.divisor = (self.divisor & 0xff00) | value;
            } else self.send(value),
            1 => if (latch) {
                self.divisor = (self.divisor & 0x00ff) | @as(u16, value) << 8;
            } else self.writeEnable(value),
            2 => self.writeFifoControl(value),
            3 => self.lcr = value,
            4 => self.writeModemControl(value),
            // LSR is a factory test register, MSR is read only (DS 8.4, 8.8).
            5, 6 => {},
            7 => self.scratch = value,
        }
    }

    /// Input from outside; returns how many bytes the receive FIFO had room for. In loopback the
    /// receiver is cut off from its pin (DS 8.6): nothing is taken, the caller offers it again.
    pub fn receive(self: *Uart, bytes: []const u8) usize {
        if (self.mcr & Mcr.loopback != 0) return 0;
        const n = @min(bytes.len, self.receiveSize() - self.receive_count);
        for (bytes[0..n]) |byte| self.pushReceived(byte);
        return n;
    }

    /// Takes what the guest sent, oldest first.
    pub fn transmitted(self: *Uart, out: []u8) usize {
        const had_room = self.thrEmpty();
        const n = @min(out.len, self.sent_count);
        for (out[0..n]) |*byte| {
            byte.* = self.sent[self.sent_head];
            self.sent_head = (self.sent_head + 1) % sent_max;
        }
        self.sent_count -= @intCast(n);
        if (!had_room and self.thrEmpty()) self.thr_interrupt = true;
        return n;
    }

    /// Level of the interrupt line. On a PC the pin passes through a gate that OUT2 opens; loopback
    /// holds OUT2 inactive (DS 8.6).
    pub fn irq(self: *const Uart) bool {
        if (self.mcr & (Mcr.out2 | Mcr.loopback) != Mcr.out2) return false;
        return self.identification() != Iir.none;
    }

    fn fifosEnabled(self: *const Uart) bool {
        return self.fcr & Fcr.enable != 0;
    }

    fn receiveSize(self: *const Uart) u8 {
        return if (self.fifosEnabled()) fifo_size else 1;
    }

    /// Bytes at which the receive interrupt comes (DS 8.5, FCR bits 7:6).
    fn triggerLevel(self: *const Uart) u8 {
        if (!self.fifosEnabled()) return 1;
        return switch (@as(u2, @truncate(self.fcr >> 6))) {
            0 => 1,
            1 => 4,
            2 => 8,
            3 => 14,
        };
    }

    /// A driver that sees THR empty writes a whole FIFO load without looking again.
    fn thrEmpty(self: *const Uart) bool {
        return sent_max - self.sent_count >= fifo_size;
    }

    fn identification(self: *const Uart) u8 {
        if (self.ier & Ier.line_status != 0 and self.overrun) return Iir.line_status;
        if (self.ier & Ier.received != 0 and self.receive_count > 0) {
            return if (self.receive_count >= self.triggerLevel()) Iir.received else Iir.timeout;
        }
        if (self.ier & Ier.thr_empty != 0 and self.thr_interrupt) return Iir.thr_empty;
        if (self.ier & Ier.modem_status != 0 and self.msr & 0x0f != 0) return Iir.modem_status;
        return Iir.none;
    }

    fn readIdentification(self: *Uart) u8 {
        const id = self.identification();
        if (id == Iir.thr_empty) self.thr_interrupt = false;
        return if (self.fifosEnabled()) id | Iir.fifos_enabled else id;
    }

    fn readLineStatus(self: *Uart) u8 {
        var status: u8 = 0;
        if (self.receive_count > 0) status |= Lsr.data_ready;
        if (self.overrun) status |= Lsr.overrun;
        // No shift register to wait for: a drained guest must not wait for our console.
        if (self.thrEmpty()) status |= Lsr.thr_empty | Lsr.transmitter_empty;
        self.overrun = false;
        return status;
    }

    fn readModemStatus(self: *Uart) u8 {
        const status = self.msr;
        self.msr &= 0xf0;
        return status;
    }

    fn writeEnable(self: *Uart, value: u8) void {
        const enabled = value & ~self.ier & Ier.mask;
        self.ier = value & Ier.mask;
        // Enabling it while THR is empty interrupts at once; Linux probes for chips that do not.
        if (enabled & Ier.thr_empty != 0 and self.thrEmpty()) self.thr_interrupt = true;
    }

    fn writeFifoControl(self: *Uart, value: u8) void {
        // A changed enable bit empties both FIFOs (DS 8.5). The transmit side has nothing to clear:
        // its bytes left the moment they were written.
        const switched = (value ^ self.fcr) & Fcr.enable != 0;
        const enabled = value & Fcr.enable != 0;
        if (switched or (enabled and value & Fcr.clear_receive != 0)) self.receive_count = 0;
        // The other bits only program while bit 0 is written as one.
        self.fcr = if (enabled) value & (0xc0 | Fcr.enable) else 0;
    }

    fn writeModemControl(self: *Uart, value: u8) void {
        self.mcr = value & Mcr.mask;
        const lines = self.modemLines();
        const changed = (lines ^ self.msr) & 0xf0;
        var deltas = self.msr & 0x0f;
        if (changed & Msr.cts != 0) deltas |= Msr.delta_cts;
        if (changed & Msr.dsr != 0) deltas |= Msr.delta_dsr;
        if (changed & Msr.dcd != 0) deltas |= Msr.delta_dcd;
        if (changed & Msr.ri != 0 and lines & Msr.ri == 0) deltas |= Msr.trailing_ri;
        self.msr = lines | deltas;
    }

    /// A connected, ready terminal; in loopback our own outputs (DS 8.6).
    fn modemLines(self: *const Uart) u8 {
        if (self.mcr & Mcr.loopback == 0) return Msr.cts | Msr.dsr | Msr.dcd;
        var lines: u8 = 0;
        if (self.mcr & Mcr.rts != 0) lines |= Msr.cts;
        if (self.mcr & Mcr.dtr != 0) lines |= Msr.dsr;
        if (self.mcr & Mcr.out1 != 0) lines |= Msr.ri;
        if (self.mcr & Mcr.out2 != 0) lines |= Msr.dcd;
        return lines;
    }

    fn send(self: *Uart, byte: u8) void {
        if (self.mcr & Mcr.loopback != 0) {
            self.loopBack(byte);
        } else if (self.sent_count == sent_max) {
            self.lost += 1;
        } else {
            self.sent[(self.sent_head + self.sent_count) % sent_max] = byte;
            self.sent_count += 1;
        }
        // The byte leaves at once: THR was full and is empty again, unless the buffer holds it back.
        self.thr_interrupt = self.thrEmpty();
    }

    fn loopBack(self: *Uart, byte: u8) void {
        if (self.receive_count < self.receiveSize()) return self.pushReceived(byte);
        self.overrun = true;
        // A full FIFO keeps what it has; a lone receive buffer keeps the newest (DS 8.4, bit 1).
        if (!self.fifosEnabled()) self.receive_fifo[self.receive_head] = byte;
    }

    fn pushReceived(self: *Uart, byte: u8) void {
        self.receive_fifo[(self.receive_head + self.receive_count) % fifo_size] = byte;
        self.receive_count += 1;
    }

    fn takeReceived(self: *Uart) u8 {
        if (self.receive_count == 0) return 0;
        const byte = self.receive_fifo[self.receive_head];
        self.receive_head = (self.receive_head + 1) % fifo_size;
        self.receive_count -= 1;
        return byte;
    }
};
