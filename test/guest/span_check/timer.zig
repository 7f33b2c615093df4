//! The ACPI PM timer, which each node answers from its own clock: read on one side and then on the
//! other, again and again, it must not go back. Needs a guest, hence it is no part of `all`.

const sides = @import("sides.zig");

/// As the FADT of SSI-HV has it.
const port = 0x608;

pub fn timer() void {
    sides.allowPorts(port, 4);
    var last = read();
    var back: u64 = 0;
    for (0..sides.options.rounds) |round| {
        for (0..sides.cpus) |side| {
            sides.pin(side);
            const planted = sides.options.plant and round == 0 and side == 1;
            const time = if (planted) last -% 1 else read();
            // Of 32 bits, which come round after 20 minutes.
            if (@as(i32, @bitCast(time -% last)) < 0) back += 1;
            last = time;
        }
    }
    sides.report("timer", back == 0, sides.options.rounds, back);
}

fn read() u32 {
    return asm volatile ("inl %[port], %[value]"
        : [value] "={eax}" (-> u32),
        : [port] "{dx}" (@as(u16, port)),
    );
}
