//! A 16550A serial port: registers, both FIFOs, interrupt priorities and loopback, as far as
//! software can see them (National Semiconductor PC16550D data sheet; "DS" below names its
//! section). Pure: bytes in, bytes out, the level of the interrupt line. Characters take no time:
//! what the guest sends is in `sent` at once, and data below the trigger level counts as timed
//! out at once. Invariant: THR-empty is told only while a whole FIFO load fits: a guest that
//! looks loses none.

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
    /// A THR-empty interrupt is due: set when THR becomes empty or its interrupt is enabled,
    /// cleared by reading it from IIR and by the next byte (DS table IV).
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
        // The byte leaves at once: THR was full and is empty again, unless the buffer is full.
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

fn testUart() Uart {
    var uart = Uart.init();
    uart.write(4, Mcr.out2 | Mcr.dtr | Mcr.rts);
    _ = uart.read(6);
    return uart;
}

test "Linux finds a 16550A here: interrupt enable, loopback lines, FIFO bits, scratch" {
    var uart = Uart.init();
    uart.write(1, 0);
    try std.testing.expectEqual(@as(u8, 0), uart.read(1));
    uart.write(1, 0xff);
    try std.testing.expectEqual(@as(u8, 0x0f), uart.read(1));
    uart.write(1, 0);
    // drivers/tty/serial/8250: OUT2 and RTS looped back must read as DCD and CTS alone.
    uart.write(4, Mcr.loopback | Mcr.out2 | Mcr.rts);
    try std.testing.expectEqual(@as(u8, 0x90), uart.read(6) & 0xf0);
    uart.write(4, 0);
    try std.testing.expectEqual(@as(u8, 0), uart.read(2) >> 6);
    uart.write(2, Fcr.enable);
    try std.testing.expectEqual(@as(u8, 3), uart.read(2) >> 6);
    // Not one of the enhanced parts: with DLAB, and with 0xbf in LCR, register 2 stays IIR.
    for ([_]u8{ 0x80, 0xbf, 0xe0 }) |lcr| {
        uart.write(3, lcr);
        try std.testing.expectEqual(@as(u8, 0xc1), uart.read(2));
    }
    // Nor a 16750: bit 5 of FCR does nothing.
    uart.write(2, Fcr.enable | 0x20);
    try std.testing.expectEqual(@as(u8, 0xc1), uart.read(2));
    uart.write(7, 0xa5);
    try std.testing.expectEqual(@as(u8, 0xa5), uart.read(7));
}

test "divisor latches are apart from data and interrupt enable" {
    var uart = testUart();
    uart.write(1, Ier.line_status);
    uart.write(3, Lcr.divisor_latch | 3);
    uart.write(0, 0x34);
    uart.write(1, 0x12);
    try std.testing.expectEqual(@as(u16, 0x1234), uart.divisor);
    try std.testing.expectEqual(@as(u8, 0x34), uart.read(0));
    try std.testing.expectEqual(@as(u8, 0x12), uart.read(1));
    uart.write(3, 3);
    try std.testing.expectEqual(Ier.line_status, uart.read(1));
    var out: [4]u8 = undefined;
    try std.testing.expectEqual(@as(usize, 0), uart.transmitted(&out));
}

test "THR-empty interrupts: on enabling, after each byte, gone when IIR is read" {
    var uart = testUart();
    // The probe for chips that do not interrupt again (UART_BUG_THRE).
    for (0..2) |_| {
        uart.write(1, Ier.thr_empty);
        try std.testing.expect(uart.irq());
        try std.testing.expectEqual(Iir.thr_empty, uart.read(2));
        try std.testing.expect(!uart.irq());
        uart.write(1, 0);
    }
    uart.write(1, Ier.thr_empty);
    try std.testing.expectEqual(Iir.thr_empty, uart.read(2));
    uart.write(1, Ier.thr_empty | Ier.received);
    try std.testing.expectEqual(Iir.none, uart.read(2));
    uart.write(0, 'a');
    try std.testing.expect(uart.irq());
    // Disabled it does not show, and enabling it tells the same state again.
    uart.write(1, 0);
    try std.testing.expect(!uart.irq());
}

test "output keeps its order through a full buffer, and a guest that looks loses nothing" {
    var uart = testUart();
    uart.write(1, Ier.thr_empty);
    var sent: u32 = 0;
    var taken: u32 = 0;
    var out: [100]u8 = undefined;
    var refused: u32 = 0;
    while (taken < 3 * sent_max) {
        if (uart.read(5) & Lsr.thr_empty != 0) {
            for (0..fifo_size) |_| {
                uart.write(0, @truncate(sent *% 31));
                sent += 1;
            }
            continue;
        }
        refused += 1;
        _ = uart.read(2);
        try std.testing.expect(!uart.irq());
        const n = uart.transmitted(&out);
        for (out[0..n]) |byte| {
            try std.testing.expectEqual(@as(u8, @truncate(taken *% 31)), byte);
            taken += 1;
        }
        // Room again is an interrupt.
        try std.testing.expect(uart.irq());
    }
    try std.testing.expect(refused > 100);
    try std.testing.expectEqual(@as(u64, 0), uart.lost);
}

test "a guest that does not look loses the newest bytes, counted" {
    var uart = testUart();
    for (0..sent_max + 5) |i| uart.write(0, @truncate(i));
    try std.testing.expectEqual(@as(u64, 5), uart.lost);
    var out: [sent_max]u8 = undefined;
    try std.testing.expectEqual(@as(usize, sent_max), uart.transmitted(&out));
    try std.testing.expectEqual(@as(u8, 1), out[1]);
}

test "receiving: capacity, trigger levels, character timeout" {
    var uart = testUart();
    uart.write(1, Ier.received);
    try std.testing.expectEqual(@as(usize, 1), uart.receive("xyz"));
    try std.testing.expectEqual(Iir.received, uart.read(2));
    try std.testing.expectEqual(@as(u8, 'x'), uart.read(0));
    try std.testing.expectEqual(@as(u8, 0), uart.read(0));
    for ([_]u8{ 0, 1, 2, 3 }, [_]u8{ 1, 4, 8, 14 }) |level, bytes| {
        uart.write(2, Fcr.enable | Fcr.clear_receive | level << 6);
        try std.testing.expectEqual(Iir.none | Iir.fifos_enabled, uart.read(2));
        for (1..bytes) |_| {
            _ = uart.receive("a");
            try std.testing.expectEqual(Iir.timeout | Iir.fifos_enabled, uart.read(2));
            try std.testing.expect(uart.irq());
        }
        _ = uart.receive("b");
        try std.testing.expectEqual(Iir.received | Iir.fifos_enabled, uart.read(2));
    }
    uart.write(2, Fcr.enable | Fcr.clear_receive);
    const text = "0123456789abcdefgh";
    try std.testing.expectEqual(@as(usize, fifo_size), uart.receive(text));
    for (text[0..fifo_size]) |byte| {
        try std.testing.expectEqual(Lsr.data_ready, uart.read(5) & Lsr.data_ready);
        try std.testing.expectEqual(byte, uart.read(0));
    }
    try std.testing.expectEqual(@as(u8, 0), uart.read(5) & (Lsr.data_ready | Lsr.overrun));
    try std.testing.expect(!uart.irq());
}

test "loopback: data comes back, overrun is told once, the line is cut" {
    var uart = testUart();
    uart.write(2, Fcr.enable);
    uart.write(1, Ier.mask);
    uart.write(4, Mcr.loopback | Mcr.out2);
    for (0..20) |i| uart.write(0, @intCast(i));
    try std.testing.expectEqual(@as(usize, 0), uart.receive("z"));
    try std.testing.expect(!uart.irq());
    try std.testing.expectEqual(Iir.line_status | Iir.fifos_enabled, uart.read(2));
    try std.testing.expectEqual(Lsr.overrun, uart.read(5) & Lsr.overrun);
    try std.testing.expectEqual(@as(u8, 0), uart.read(5) & Lsr.overrun);
    for (0..fifo_size) |i| try std.testing.expectEqual(@as(u8, @intCast(i)), uart.read(0));
    var out: [1]u8 = undefined;
    try std.testing.expectEqual(@as(usize, 0), uart.transmitted(&out));
    // Without FIFOs the newest byte stays.
    uart.write(2, 0);
    uart.write(0, 'a');
    uart.write(0, 'b');
    try std.testing.expectEqual(@as(u8, 'b'), uart.read(0));
}

test "interrupts come by priority and OUT2 opens the gate" {
    var uart = testUart();
    uart.write(2, Fcr.enable);
    uart.write(4, Mcr.loopback);
    for (0..17) |_| uart.write(0, 'x');
    uart.write(4, 0);
    uart.write(1, Ier.mask);
    try std.testing.expect(!uart.irq());
    uart.write(4, Mcr.out2);
    const fifos = Iir.fifos_enabled;
    try std.testing.expectEqual(Iir.line_status | fifos, uart.read(2));
    _ = uart.read(5);
    try std.testing.expectEqual(Iir.received | fifos, uart.read(2));
    uart.write(2, Fcr.enable | Fcr.clear_receive);
    try std.testing.expectEqual(Iir.thr_empty | fifos, uart.read(2));
    try std.testing.expectEqual(Iir.modem_status | fifos, uart.read(2));
    try std.testing.expect(uart.irq());
    _ = uart.read(6);
    try std.testing.expectEqual(Iir.none | fifos, uart.read(2));
    try std.testing.expect(!uart.irq());
}

test "modem status: deltas are kept until read, RI counts when it falls" {
    var uart = Uart.init();
    try std.testing.expectEqual(Msr.cts | Msr.dsr | Msr.dcd, uart.read(6));
    uart.write(4, Mcr.loopback | Mcr.out1);
    const fell = Msr.delta_cts | Msr.delta_dsr | Msr.delta_dcd;
    try std.testing.expectEqual(Msr.ri | fell, uart.read(6));
    uart.write(4, Mcr.loopback);
    try std.testing.expectEqual(Msr.trailing_ri, uart.read(6));
    uart.write(4, Mcr.loopback | Mcr.rts | Mcr.dtr);
    const lines = Msr.cts | Msr.dsr;
    try std.testing.expectEqual(lines | Msr.delta_cts | Msr.delta_dsr, uart.read(6));
    try std.testing.expectEqual(lines, uart.read(6));
}

test "reset forgets registers and input, not output" {
    var uart = testUart();
    uart.write(2, Fcr.enable);
    uart.write(1, Ier.mask);
    uart.write(0, 'o');
    _ = uart.receive("in");
    uart.reset();
    try std.testing.expect(!uart.irq());
    try std.testing.expectEqual(Lsr.thr_empty | Lsr.transmitter_empty, uart.read(5));
    var out: [2]u8 = undefined;
    try std.testing.expectEqual(@as(usize, 1), uart.transmitted(&out));
    try std.testing.expectEqual(@as(u8, 'o'), out[0]);
}

test "no sequence of accesses breaks it, and an interrupt always has a cause" {
    var prng = std.Random.DefaultPrng.init(0x5eed_0004);
    const random = prng.random();
    var uart = Uart.init();
    var buffer: [300]u8 = undefined;
    for (0..200_000) |_| {
        const offset = random.int(u3);
        switch (random.uintLessThan(u32, 8)) {
            0, 1, 2 => _ = uart.read(offset),
            3, 4, 5 => uart.write(offset, random.int(u8)),
            6 => {
                random.bytes(&buffer);
                const n = random.uintLessThan(usize, buffer.len);
                try std.testing.expect(uart.receive(buffer[0..n]) <= n);
            },
            else => _ = uart.transmitted(buffer[0..random.uintLessThan(usize, buffer.len)]),
        }
        try std.testing.expect(uart.receive_count <= uart.receiveSize());
        if (uart.irq()) {
            try std.testing.expect(uart.ier != 0 and uart.mcr & Mcr.out2 != 0);
            // Serving every cause once silences the line.
            var served = uart;
            _ = served.read(5);
            _ = served.read(2);
            _ = served.read(6);
            served.lcr = 0;
            while (served.receive_count > 0) _ = served.read(0);
            _ = served.read(2);
            try std.testing.expect(!served.irq());
        }
    }
}
