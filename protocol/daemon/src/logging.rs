//! Logs go to stderr: for people, or one JSON object a line.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::cli::LogFormat;

/// Starts logging for the process. `PALISADE_LOG` filters as `tracing`'s
/// `EnvFilter` does (`info`, `palisade_svm=debug`); without it, `default` applies.
/// A second call changes nothing.
pub fn start(format: LogFormat, default: &str) {
    let filter =
        EnvFilter::try_from_env("PALISADE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false);
    // An error here means that a logger is already there, which is enough.
    let _ = match format {
        LogFormat::Human => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
