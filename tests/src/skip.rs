//! Tests that cannot run on a machine say so.

/// Says why a test cannot run here; `scripts/test` counts such lines, and fails in CI.
pub fn skip(test: &str, reason: &str) {
    println!("skipped: {test}: {reason}");
}

/// Whether the process is root; otherwise says that the test is skipped.
pub fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip(test, "it needs root");
    }
    root
}
