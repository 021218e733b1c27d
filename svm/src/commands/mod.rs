//! The program's commands, each a few lines over the library.

pub mod definitions;
pub mod run;
pub mod setup;

use anyhow::Context as _;
use tokio::runtime::Runtime;

/// What asynchronous steps run on.
///
/// # Errors
/// When threads cannot be started.
pub fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no runtime")
}
