//! Threads on which the answering of the kernel depends.
//!
//! If one of them panics, the process ends: the kernel then lets the openers go,
//! which a half-dead agent that still holds the group would not.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle};

/// Bytes of stack: these threads call nothing deep.
const STACK_BYTES: usize = 256 * 1024;

/// Starts a thread whose panic ends the process.
///
/// # Errors
/// When the system gives no thread.
pub fn vital(
    name: &'static str,
    body: impl FnOnce() + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    Builder::new()
        .name(name.to_owned())
        .stack_size(STACK_BYTES)
        .spawn(move || {
            if catch_unwind(AssertUnwindSafe(body)).is_err() {
                std::process::abort();
            }
        })
}
