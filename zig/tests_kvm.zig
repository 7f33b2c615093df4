//! Root of the tests of one memory over several virtual machines. Needs KVM, of any kind, and a
//! static program (test_guest.zig). Optimised, because races want speed.

test {
    _ = @import("engine/kvm_memory_test.zig");
    _ = @import("engine/kvm_walks_test.zig");
    _ = @import("engine/test_guest.zig");
    _ = @import("engine/test_litmus.zig");
    _ = @import("engine/test_loads.zig");
}
