//! The backend that several servers share: one PostgreSQL database.
//!
//! ```text
//!   open ─► held: one connection by which others know that it is in use
//!        ─► one connection, alone by an advisory lock: keys, migrations ─► pool
//!   call ─► pool (ACQUIRE) ─► statements ─► within CALL, or `TooSlow`
//!   server gone ─► `Unreachable`; back ─► the next call connects anew
//! ```
//!
//! Owns the pool, its bounds, what is exclusive among servers, and the mapping of
//! PostgreSQL's errors; the statements are `store/sql`. There are several writers.
//! `READ COMMITTED` is enough: what one statement decides by a row, it decides with
//! that row locked; what takes two statements asks for [`Alone`]; what is read in two
//! statements is read in a snapshot.
//!
//! | module | owns |
//! | --- | --- |
//! | [`address`] | `postgres://…`: what is accepted, TLS by default, where the password is |
//! | `held` | who has the database open, to serve or alone |
//! | `errors` | SQLSTATE → what it means and what helps: one table |

pub mod address;
mod errors;
mod held;
// Compiled for SQLite, too: that is what it is written for.
#[allow(clippy::duplicate_mod)]
#[path = "../sql/mod.rs"]
mod sql;

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::{PgConnection, PgPoolOptions, PgRow};
use sqlx::{Connection as _, PgPool, Postgres, Transaction};

use super::seal::Seals;
use super::seal::master::Source;
use super::{Alone, Opening, Result, StoreError};
pub use address::Address;
use held::Held;

type Backend = PostgresStore;
type Db = Postgres;
type Row = PgRow;

/// Connections of one server: PostgreSQL takes a hundred unless told, and a few
/// servers and an administrator share them.
const CONNECTIONS: u32 = 16;
/// How long a call waits for a connection; a database that is gone is known by then.
const ACQUIRE: Duration = Duration::from_secs(5);
/// How long a call takes at most, the wait for its connection included. The database
/// ends a statement by itself after the same time.
pub const CALL: Duration = Duration::from_secs(10);
/// How long a connection may take to say that it is fit for the next call; one that
/// says nothing is closed, so that none is kept that leads nowhere.
const RELEASE: Duration = Duration::from_secs(2);
/// How long a start waits: for another server's migrations, and for its own.
const MIGRATE: Duration = Duration::from_secs(300);
/// What the database ends a transaction after whose server says nothing.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(30);
/// Class of our advisory locks: "PALI".
const LOCKS: i32 = 0x5041_4c49;
/// The lock of who brings a database up to date; agents' numbers are odd, names' is 0, and `held` has one, too.
const PREPARING: i32 = 2;
/// The lock of who counts an attempt to log in.
const LOGINS: i32 = 6;

const HAS_KEYS: &str = "SELECT COUNT(*) FROM pg_tables \
     WHERE schemaname = current_schema() AND tablename = 'data_keys'";
const HAS_PLAIN: &str = "SELECT COUNT(*) FROM information_schema.columns \
     WHERE table_schema = current_schema() AND table_name = 'agents' \
     AND column_name = 'sealed_name'";
const AFTER_IMPORT: &str = "SELECT setval(pg_get_serial_sequence('detections', 'seq'), \
     COALESCE((SELECT MAX(seq) FROM detections), 0) + 1, false)";
/// It checks its pages as it reads them.
const INTEGRITY: Option<&str> = None;
const SWEEP: &[&str] = &[
    "VACUUM FULL api_tokens",
    "VACUUM FULL svms",
    "VACUUM FULL agents",
    "VACUUM FULL detections",
    "VACUUM FULL quarantine_keys",
    "VACUUM FULL maintenance_grants",
    "VACUUM FULL hosts",
    "VACUUM FULL domains",
    "VACUUM FULL accounts",
    "VACUUM FULL sessions",
    "VACUUM FULL account_tokens",
    "VACUUM FULL audit",
    "VACUUM FULL data_keys",
];

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations/postgres");

/// The store in one PostgreSQL database.
#[derive(Clone)]
pub struct PostgresStore {
    name: String,
    seals: Arc<Seals>,
    held: Arc<Held>,
    // The same pool twice: any connection reads and writes.
    writer: PgPool,
    readers: PgPool,
}

impl std::fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PostgresStore({})", self.name)
    }
}

impl PostgresStore {
    /// Connects, and brings the schema up to this version's. Several servers may do so
    /// at once: one migrates, the others wait for it.
    ///
    /// # Errors
    /// [`StoreError`] naming the database and the remedy.
    pub async fn open(address: &Address, master: &Source, purpose: Opening) -> Result<Self> {
        let name = address.to_string();
        let at = |error| errors::of_sqlx(&name, "open the database", error);
        let held = Held::take(address, &name, purpose).await?;
        let connecting = PgConnection::connect_with(address.options());
        let mut connection = match tokio::time::timeout(ACQUIRE, connecting).await {
            Ok(connected) => connected.map_err(at)?,
            Err(_) => return Err(errors::silent(&name, ACQUIRE)),
        };
        let preparing = async {
            // Until this connection ends: others wait, and find it done.
            sqlx::query("SELECT pg_advisory_lock($1, $2)")
                .bind(LOCKS)
                .bind(PREPARING)
                .execute(&mut connection)
                .await
                .map_err(at)?;
            match purpose {
                Opening::Look => {
                    sql::keys::look(&mut connection, &MIGRATIONS, master, &name, at).await
                }
                Opening::Serve | Opening::Alone => {
                    sql::keys::prepare(&mut connection, &MIGRATIONS, master, &name, at).await
                }
            }
        };
        let seals = match tokio::time::timeout(MIGRATE, preparing).await {
            Ok(prepared) => prepared?,
            Err(_) => {
                return Err(StoreError::TooSlow {
                    database: name,
                    seconds: MIGRATE.as_secs(),
                });
            }
        };
        // What it did is committed.
        let _ = tokio::time::timeout(RELEASE, connection.close()).await;

        let milliseconds = |time: Duration| time.as_millis().to_string();
        let options = address.options().clone().options([
            ("statement_timeout", milliseconds(CALL)),
            (
                "idle_in_transaction_session_timeout",
                milliseconds(IDLE_IN_TRANSACTION),
            ),
        ]);
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE)
            .after_release(|connection, _| {
                Box::pin(async move {
                    match tokio::time::timeout(RELEASE, connection.ping()).await {
                        Ok(fit) => fit.map(|()| true),
                        Err(late) => Err(sqlx::Error::Io(late.into())),
                    }
                })
            })
            .connect_with(options)
            .await
            .map_err(at)?;
        Ok(Self {
            name,
            seals: Arc::new(seals),
            held: Arc::new(held),
            writer: pool.clone(),
            readers: pool,
        })
    }

    /// A transaction that writes.
    async fn begin(&self) -> sqlx::Result<Transaction<'static, Postgres>> {
        self.writer.begin().await
    }

    /// A transaction that reads what was committed when its first statement ran.
    async fn snapshot(&self) -> sqlx::Result<Transaction<'static, Postgres>> {
        self.readers
            .begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await
    }

    /// Until the transaction ends, no other one on any server has the same.
    async fn alone(
        &self,
        transaction: &mut Transaction<'_, Postgres>,
        what: Alone,
    ) -> sqlx::Result<()> {
        let key = match what {
            Alone::Names => 0,
            Alone::Logins => LOGINS,
            // Two agents of one number wait for each other now and then: no harm.
            Alone::Agent(agent) => {
                let (number, ..) = agent.0.as_fields();
                i32::from_ne_bytes((number | 1).to_ne_bytes())
            }
        };
        sqlx::query("SELECT pg_advisory_xact_lock($1, $2)")
            .bind(LOCKS)
            .bind(key)
            .execute(&mut **transaction)
            .await
            .map(drop)
    }

    /// What hangs ends as an error: a connection can lead nowhere without saying so.
    async fn bounded<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        match tokio::time::timeout(CALL, work).await {
            Ok(done) => done,
            Err(_) => Err(errors::silent(&self.name, CALL)),
        }
    }

    /// Others may have the database alone.
    fn release(&self) {
        self.held.end();
    }

    fn failed(&self, operation: &'static str, error: sqlx::Error) -> StoreError {
        errors::of_sqlx(&self.name, operation, error)
    }
}
