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
    /// The password's file cannot be used.
    #[error("{0}")]
    Password(String),
    /// It is not a database, or is damaged.
    #[error(
        "the database {database} is damaged ({detail}); stop the server, keep a copy of it, and restore the last backup"
    )]
    Damaged {
        /// Which.
        database: String,
        /// What the database says.
        detail: String,
    },
    /// Another process holds it.
    #[error(
        "the database {database} is locked by another process ({detail}); stop whatever else has it open"
    )]
    Locked {
        /// Which.
        database: String,
        /// What the database says.
        detail: String,
    },
    /// The disk is full or fails.
    #[error(
        "the database {database} cannot be written ({detail}); free disk space or repair the disk, nothing acknowledged is lost"
    )]
    Disk {
        /// Which.
        database: String,
        /// What the database says.
        detail: String,
    },
    /// The file cannot be opened or may not be written.
    #[error(
        "the database {database} cannot be opened for writing ({detail}); check its owner and permissions"
    )]
    Unwritable {
        /// Which.
        database: String,
        /// What the database says.
        detail: String,
    },
    /// The schema is not one of this version.
    #[error(
        "the database {database} does not fit this version of the server ({detail}); run the version that wrote it, or restore the backup made before the change"
    )]
    Schema {
        /// Which.
        database: String,
        /// What does not fit.
        detail: String,
    },
    /// The database's server is not there.
    #[error(
        "the database {database} cannot be reached ({detail}); start it, or check its address and the network: no restart is needed here once it answers"
    )]
    Unreachable {
        /// Which.
        database: String,
        /// What was tried, and what came of it.
        detail: String,
    },
    /// No answer in time.
    #[error(
        "the database {database} did not answer within {seconds} s, so it is not known whether a change was kept; look at its load, its locks and the network, then ask again"
    )]
    TooSlow {
        /// Which.
        database: String,
        /// How long it had.
        seconds: u64,
    },
    /// The user or its password is not accepted.
    #[error(
        "the database {database} refuses this user ({detail}); check the user, the password in database_password_file or in ~/.pgpass, and the database's pg_hba.conf"
    )]
    Refused {
        /// Which.
        database: String,
        /// What the database says.
        detail: String,
    },
    /// The server has no such database.
    #[error(
        "the database {database} does not exist ({detail}); make it with createdb, owned by the user of the address"
    )]
    Missing {
        /// Which.
        database: String,
        /// What the database says.
        detail: String,
    },
    /// The user may not do what is needed.
    #[error(
        "the database {database} does not allow it ({detail}); make the user of the address the owner of the database and of its schema public"
    )]
    Forbidden {
        /// Which.
        database: String,
        /// What the database says.
        detail: String,
    },
    /// It takes no changes.
    #[error(
        "the database {database} is read-only ({detail}); connect to the primary, not to a standby"
    )]
    ReadOnly {
        /// Which.
        database: String,
        /// What the database says.
        detail: String,
    },
    /// No secure connection.
    #[error(
        "the database {database} has no TLS that can be trusted ({detail}); name its CA with sslrootcert=FILE in the address, and a host that is in its certificate"
    )]
    Tls {
        /// Which.
        database: String,
        /// What is wrong.
        detail: String,
    },
    /// The master key cannot be used.
    #[error(transparent)]
    Master(#[from] super::seal::master::BadMaster),
    /// Others have it open.
    #[error("the database {database} is in use: {detail}")]
    InUse {
        /// Which.
        database: String,
        /// What helps.
        detail: &'static str,
    },
    /// There is something already.
    #[error(
        "the database is not empty (table {0}); a backup is restored into a new one, and nothing was changed"
    )]
    NotEmpty(&'static str),
    /// A backup cannot be written or used.
    #[error("backup: {file}: {detail}")]
    Backup {
        /// Which file.
        file: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A sealed value does not open.
    #[error(
        "the database holds a {column} in {table} that does not open: {reason}; keep a copy of the database, and restore the last backup"
    )]
    Unsealed {
        /// Which table.
        table: &'static str,
        /// Which column.
        column: &'static str,
        /// Why.
        reason: super::seal::Unsealed,
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
