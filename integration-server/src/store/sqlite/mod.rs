//! The embedded backend: one SQLite file, write-ahead log, every commit synced.
//!
//! Owns the connection pools and the mapping of SQLite's errors; the statements are
//! `store/sql`. SQLite has one writer: writes go through a pool of one connection, so
//! that they queue here in order instead of waiting for each other's locks; reads have
//! their own.

// Compiled for PostgreSQL, too: that is what it is written for.
#[allow(clippy::duplicate_mod)]
#[path = "../sql/mod.rs"]
mod sql;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Connection as _, Sqlite, SqliteConnection, SqlitePool, Transaction};

use super::seal::Seals;
use super::seal::master::Source;
use super::{Alone, Opening, Result, StoreError};

type Backend = SqliteStore;
type Db = Sqlite;
type Row = SqliteRow;

const HAS_KEYS: &str = "SELECT COUNT(*) FROM sqlite_master WHERE name = 'data_keys'";
const HAS_PLAIN: &str =
    "SELECT COUNT(*) FROM pragma_table_info('agents') WHERE name = 'sealed_name'";
const AFTER_IMPORT: &str = "SELECT 1";
const INTEGRITY: Option<&str> = Some("PRAGMA integrity_check");
const SWEEP: &[&str] = &["VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"];

/// How long a statement waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that read.
const READERS: u32 = 4;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations/sqlite");

/// The store in one SQLite file.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    path: PathBuf,
    seals: Arc<Seals>,
    writer: SqlitePool,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens the database; makes it and its folder (mode 0700) if there is none,
    /// and brings its schema up to this version's.
    ///
    /// # Errors
    /// [`StoreError`] naming the file and the remedy.
    pub async fn open(path: &Path, master: &Source, purpose: Opening) -> Result<Self> {
        let looks = purpose == Opening::Look;
        if !looks {
            make_directory(path)?;
        }
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(!looks)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let at = |error| of_sqlx(path, "open the database", error);
        // A connection of its own: what it knows of tables is void after a migration.
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(at)?;
        let name = named(path);
        let seals = match looks {
            true => sql::keys::look(&mut connection, &MIGRATIONS, master, &name, at).await?,
            false => sql::keys::prepare(&mut connection, &MIGRATIONS, master, &name, at).await?,
        };
        connection.close().await.map_err(at)?;
        let options = options.create_if_missing(false);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(BUSY_TIMEOUT * 2)
            .connect_with(options.clone())
            .await
            .map_err(at)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(BUSY_TIMEOUT * 2)
            .connect_with(options)
            .await
            .map_err(at)?;
        let store = Self {
            path: path.to_owned(),
            seals: Arc::new(seals),
            writer,
            readers,
        };
        store.quick_check().await?;
        Ok(store)
    }

    async fn quick_check(&self) -> Result<()> {
        let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)")
            .fetch_one(&self.readers)
            .await
            .map_err(|error| self.failed("check the database", error))?;
        if verdict == "ok" {
            return Ok(());
        }
        Err(StoreError::Damaged {
            database: named(&self.path),
            detail: verdict,
        })
    }

    /// A transaction that writes: it has the lock from the beginning.
    async fn begin(&self) -> sqlx::Result<Transaction<'static, Sqlite>> {
        self.writer.begin_with("BEGIN IMMEDIATE").await
    }

    /// A transaction that reads what was committed when its first statement ran.
    async fn snapshot(&self) -> sqlx::Result<Transaction<'static, Sqlite>> {
        self.readers.begin().await
    }

    /// There is one writer, and it has begun.
    async fn alone(&self, _: &mut Transaction<'_, Sqlite>, _: Alone) -> sqlx::Result<()> {
        Ok(())
    }

    /// Statements end by themselves: they wait for locks for `BUSY_TIMEOUT`, and for
    /// nobody else.
    async fn bounded<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        work.await
    }

    /// Nothing is held but by its connections.
    fn release(&self) {}

    fn failed(&self, operation: &'static str, error: sqlx::Error) -> StoreError {
        of_sqlx(&self.path, operation, error)
    }
}

fn make_directory(path: &Path) -> Result<()> {
    let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) else {
        return Ok(());
    };
    crate::store::private_folder(dir).map_err(|source| StoreError::Directory {
        path: dir.to_owned(),
        source,
    })
}

fn named(path: &Path) -> String {
    path.display().to_string()
}

/// SQLite's primary result codes (<https://sqlite.org/rescode.html>).
fn of_sqlx(path: &Path, operation: &'static str, error: sqlx::Error) -> StoreError {
    let database = named(path);
    let code = error
        .as_database_error()
        .and_then(|error| error.code())
        .and_then(|code| code.parse::<u32>().ok())
        .map(|code| code & 0xff);
    let detail = error.to_string();
    match code {
        Some(5 | 6) => StoreError::Locked { database, detail },
        Some(11 | 26) => StoreError::Damaged { database, detail },
        Some(10 | 13) => StoreError::Disk { database, detail },
        Some(3 | 8 | 14 | 23) => StoreError::Unwritable { database, detail },
        _ => StoreError::Failed {
            operation,
            source: Box::new(error),
        },
    }
}
