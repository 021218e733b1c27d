//! Who has the database open: servers and commands each hold a lock for as long as they
//! do, by a connection of its own. Whoever changes what they rely on, the keys or all
//! rows, takes it alone or not at all.
//!
//! A connection that is lost is replaced, so that a database that was restarted knows its
//! servers again within [`EVERY`].

use std::time::{Duration, Instant};

use sqlx::Connection as _;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use tokio::task::JoinHandle;

use super::errors;
use super::{ACQUIRE, Address, LOCKS, RELEASE};
use crate::store::{Opening, Result, StoreError};

/// The lock of who has the database open; see `PREPARING` for the other numbers.
const OPEN: i32 = 4;
/// How often it is looked whether the connection is still there.
const EVERY: Duration = Duration::from_secs(10);
/// How long the database may take to notice that whoever had it has gone.
const LET_GO: Duration = Duration::from_secs(2);
/// Between looks at that.
const AGAIN: Duration = Duration::from_millis(50);

/// The lock, until this is dropped.
#[derive(Debug)]
pub struct Held(JoinHandle<()>);

impl Held {
    /// Takes it.
    ///
    /// # Errors
    /// [`StoreError::InUse`], and what keeps a connection away.
    pub async fn take(address: &Address, name: &str, purpose: Opening) -> Result<Self> {
        let at = |error| errors::of_sqlx(name, "open the database", error);
        let options = address.options().clone();
        let taking = async {
            let mut connection = PgConnection::connect_with(&options).await?;
            let mut taken = lock(&mut connection, purpose).await?;
            let tried = Instant::now();
            while !taken && tried.elapsed() < LET_GO {
                tokio::time::sleep(AGAIN).await;
                taken = lock(&mut connection, purpose).await?;
            }
            Ok::<_, sqlx::Error>((connection, taken))
        };
        let (connection, taken) = match tokio::time::timeout(ACQUIRE, taking).await {
            Ok(taken) => taken.map_err(at)?,
            Err(_) => return Err(errors::silent(name, ACQUIRE)),
        };
        if !taken {
            return Err(StoreError::InUse {
                database: name.to_owned(),
                detail: match purpose {
                    Opening::Alone => "stop every palisade-server that uses it, and commands",
                    Opening::Serve | Opening::Look => {
                        "its keys are changed, or it is restored; wait until that has ended"
                    }
                },
            });
        }
        let name = name.to_owned();
        Ok(Self(tokio::spawn(keep(connection, options, purpose, name))))
    }
}

impl Held {
    /// Lets it go.
    pub fn end(&self) {
        // The connection goes with the task, and the lock with the connection.
        self.0.abort();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.end();
    }
}

async fn lock(connection: &mut PgConnection, purpose: Opening) -> sqlx::Result<bool> {
    let sql = match purpose {
        Opening::Alone => "SELECT pg_try_advisory_lock($1, $2)",
        Opening::Serve | Opening::Look => "SELECT pg_try_advisory_lock_shared($1, $2)",
    };
    sqlx::query_scalar(sql)
        .bind(LOCKS)
        .bind(OPEN)
        .fetch_one(connection)
        .await
}

async fn keep(
    mut connection: PgConnection,
    options: PgConnectOptions,
    purpose: Opening,
    name: String,
) {
    loop {
        tokio::time::sleep(EVERY).await;
        if matches!(
            tokio::time::timeout(RELEASE, connection.ping()).await,
            Ok(Ok(()))
        ) {
            continue;
        }
        let again = async {
            let mut connection = PgConnection::connect_with(&options).await?;
            let taken = lock(&mut connection, purpose).await?;
            Ok::<_, sqlx::Error>((connection, taken))
        };
        match tokio::time::timeout(ACQUIRE, again).await {
            Ok(Ok((new, true))) => connection = new,
            Ok(Ok((_, false))) => tracing::error!(
                database = %name,
                "the database is being changed by another command although this server uses it: \
                 restart this server once that has ended"
            ),
            // Whoever needs the database says that it is gone.
            Ok(Err(_)) | Err(_) => {}
        }
    }
}
