//! What can go wrong with the database, with the remedy.

use std::path::PathBuf;

/// A store operation failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder of the database cannot be made or used.
    #[error(
        "the database's folder {path}: {source}; create it, or give this user the right to write there"
    )]
    Directory {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a database, or is damaged.
    #[error(
        "the database {path} is damaged ({detail}); stop the server, keep a copy of the file, and restore the last backup"
    )]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// Another process holds it.
    #[error(
        "the database {path} is locked by another process ({detail}); stop whatever else has it open"
    )]
    Locked {
        /// Which.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// The disk is full or fails.
    #[error(
        "the database {path} cannot be written ({detail}); free disk space or repair the disk, nothing acknowledged is lost"
    )]
    Disk {
        /// Which.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// The file cannot be opened or may not be written.
    #[error(
        "the database {path} cannot be opened for writing ({detail}); check its owner and permissions"
    )]
    Unwritable {
        /// Which.
        path: PathBuf,
        /// What SQLite says.
        detail: String,
    },
    /// The schema is not one of this version.
    #[error(
        "the database {path} does not fit this version of the server ({detail}); run the version that wrote it, or restore the backup made before the change"
    )]
    Schema {
        /// Which.
        path: PathBuf,
        /// What does not fit.
        detail: String,
    },
    /// A row holds what it cannot hold.
    #[error("the database holds a bad {column}: {detail}")]
    BadRow {
        /// Which column.
        column: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// Anything else.
    #[error("the database failed to {operation}: {source}")]
    Failed {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}
