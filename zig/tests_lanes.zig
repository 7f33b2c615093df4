//! Root of the lanes' long tests, cuts and hostile bytes: apart from tests.zig, since they want an
//! optimised build.

test {
    _ = @import("transport/fuzz_test.zig");
    _ = @import("transport/resume_test.zig");
}
