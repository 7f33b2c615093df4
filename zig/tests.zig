//! Root of the Zig unit tests: one line for each file that has any. It sits here because imports
//! may not leave the root file's folder.

test {
    _ = @import("abi_hash.zig");
    _ = @import("base/failure.zig");
    _ = @import("base/histogram.zig");
    _ = @import("base/last_words.zig");
    _ = @import("base/sys.zig");
    _ = @import("base/timer.zig");
    _ = @import("base/uffd_api.zig");
    _ = @import("devices/calendar.zig");
    _ = @import("devices/hypervisor_port.zig");
    _ = @import("devices/pm_timer.zig");
    _ = @import("devices/register_file.zig");
    _ = @import("devices/rtc.zig");
    _ = @import("devices/uart.zig");
    _ = @import("dsm/core_test.zig");
    _ = @import("dsm/lender.zig");
    _ = @import("dsm/page_array.zig");
    _ = @import("dsm/request_queue.zig");
    _ = @import("dsm/livelock_test.zig");
    _ = @import("engine/bus.zig");
    _ = @import("engine/clock.zig");
    _ = @import("engine/events.zig");
    _ = @import("engine/exits.zig");
    _ = @import("engine/gate.zig");
    _ = @import("engine/inbox.zig");
    _ = @import("engine/lanes.zig");
    _ = @import("engine/link.zig");
    _ = @import("kvm/api.zig");
    _ = @import("kvm/probe.zig");
    _ = @import("kvm/probe_guest.zig");
    _ = @import("kvm/probe_memory.zig");
    _ = @import("kvm/host.zig");
    _ = @import("memory/faults.zig");
    _ = @import("memory/mailbox.zig");
    _ = @import("memory/pagemap.zig");
    _ = @import("memory/replicas.zig");
    _ = @import("memory/uffd.zig");
    _ = @import("memory/ram.zig");
    _ = @import("irq/fuzz_test.zig");
    _ = @import("irq/ioapic.zig");
    _ = @import("irq/lapic.zig");
    _ = @import("irq/lapic_access.zig");
    _ = @import("irq/lapic_registers.zig");
    _ = @import("irq/lapic_timer.zig");
    _ = @import("irq/message.zig");
    _ = @import("irq/model_test.zig");
    _ = @import("irq/route.zig");
    _ = @import("transport/aegis.zig");
    _ = @import("transport/frame.zig");
    _ = @import("transport/seal.zig");
    _ = @import("transport/tcp.zig");
    _ = @import("transport/lane_test.zig");
    _ = @import("transport/handshake_test.zig");
    _ = @import("transport/linkup_test.zig");
}
