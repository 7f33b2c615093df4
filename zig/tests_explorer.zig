//! Root of the exhaustive protocol tests: apart from tests.zig, since they want an optimised build.

test {
    _ = @import("dsm/explorer_test.zig");
}
