//! Root of the tests of one memory over several pagers: optimised, because races want speed.

test {
    _ = @import("engine/discard_test.zig");
    _ = @import("engine/eviction_test.zig");
    _ = @import("engine/inspect_test.zig");
    _ = @import("engine/memory_test.zig");
}
