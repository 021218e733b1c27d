//! Tests that cannot run on a machine say so, and are counted.

use std::io::Write as _;

/// Says why a test cannot run here; `scripts/test` counts it, and fails in CI.
pub fn skip(test: &str, reason: &str) {
    eprintln!("skipped: {test}: {reason}");
    if let Some(file) = std::env::var_os("PALISADE_SKIPS") {
        let file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(file);
        if let Ok(mut file) = file {
            let _ = writeln!(file, "{test}: {reason}");
        }
    }
}

/// Whether the process is root; otherwise says that the test is skipped.
pub fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip(test, "it needs root");
    }
    root
}
