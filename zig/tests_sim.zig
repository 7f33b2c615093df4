//! Root of the simulator's tests: apart from tests.zig, since they run schedules by the 100,000 and
//! want an optimised build.

test {
    _ = @import("sim/config.zig");
    _ = @import("sim/events.zig");
    _ = @import("sim/fiber.zig");
    _ = @import("sim/sim_test.zig");
}
