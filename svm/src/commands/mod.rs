//! The program's commands, each a few lines over the library.

pub mod definitions;
pub mod run;
pub mod setup;
pub mod status;

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

/// A moment for people, UTC; `-` if it is none.
pub fn time(ms: u64) -> String {
    i64::try_from(ms)
        .ok()
        .and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok())
        .map_or_else(|| "-".to_owned(), |time| format!("{time:.0}"))
}
