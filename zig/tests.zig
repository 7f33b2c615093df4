//! Root of the Zig unit tests: one line for each file that has any. It sits here because imports
//! may not leave the root file's folder.

test {
    _ = @import("irq/ioapic.zig");
    _ = @import("irq/lapic.zig");
    _ = @import("irq/lapic_access.zig");
    _ = @import("irq/lapic_registers.zig");
    _ = @import("irq/lapic_timer.zig");
    _ = @import("irq/message.zig");
    _ = @import("irq/route.zig");
}
