//! The embedded backend: one SQLite file, write-ahead log, every commit synced.
//!
//! Owns the connection pools, the mapping of SQLite's errors, and the SQL. SQLite
//! has one writer: writes go through a pool of one connection, so that they queue
//! here in order instead of waiting for each other's locks; reads have their own.
//!
//! One file per group of tables: `components`, `detections`, `inventory`,
//! `maintenance`, `quarantine_keys`, `tokens`.

mod components;
mod detections;
mod inventory;
mod maintenance;
mod quarantine_keys;
mod row;
mod tokens;

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use palisade_protocol::control::{AgentReport, Detection, Hello, QuarantineKey, SvmReport};
use palisade_protocol::ids::{AgentId, DeploymentId, SvmId};
use sqlx::SqlitePool;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use uuid::Uuid;

use super::{
    AgentRecord, ApiToken, DetectionPage, JoinTokenRecord, Joined, MaintenanceRecord, NewComponent,
    Result, Spent, Store, StoreError, SvmRecord,
};
use crate::inventory::HostRecord;
use crate::secret::Hash;

/// How long a statement waits for another process's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Connections that read.
const READERS: u32 = 4;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations/sqlite");

/// The store in one SQLite file.
#[derive(Debug, Clone)]
pub struct SqliteStore {
    path: PathBuf,
    writer: SqlitePool,
    readers: SqlitePool,
}

impl SqliteStore {
    /// Opens the database; makes it and its folder (mode 0700) if there is none,
    /// and brings its schema up to this version's.
    ///
    /// # Errors
    /// [`StoreError`] naming the file and the remedy.
    pub async fn open(path: &Path) -> Result<Self> {
        make_directory(path)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(BUSY_TIMEOUT);
        let at = |error| of_sqlx(path, "open the database", error);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(BUSY_TIMEOUT * 2)
            .connect_with(options.clone())
            .await
            .map_err(at)?;
        MIGRATIONS.run(&writer).await.map_err(|error| match error {
            sqlx::migrate::MigrateError::Execute(error) => {
                of_sqlx(path, "bring the schema up to date", error)
            }
            other => StoreError::Schema {
                path: path.to_owned(),
                detail: other.to_string(),
            },
        })?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(BUSY_TIMEOUT * 2)
            .connect_with(options.create_if_missing(false))
            .await
            .map_err(at)?;
        let store = Self {
            path: path.to_owned(),
            writer,
            readers,
        };
        store.quick_check().await?;
        Ok(store)
    }

    /// Ends all connections, what is written is on disk.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
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
            path: self.path.clone(),
            detail: verdict,
        })
    }

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

/// SQLite's primary result codes (<https://sqlite.org/rescode.html>).
fn of_sqlx(path: &Path, operation: &'static str, error: sqlx::Error) -> StoreError {
    let path = path.to_owned();
    let code = error
        .as_database_error()
        .and_then(|error| error.code())
        .and_then(|code| code.parse::<u32>().ok())
        .map(|code| code & 0xff);
    let detail = error.to_string();
    match code {
        Some(5 | 6) => StoreError::Locked { path, detail },
        Some(11 | 26) => StoreError::Damaged { path, detail },
        Some(10 | 13) => StoreError::Disk { path, detail },
        Some(3 | 8 | 14 | 23) => StoreError::Unwritable { path, detail },
        _ => StoreError::Failed {
            operation,
            source: Box::new(error),
        },
    }
}

#[async_trait]
impl Store for SqliteStore {
    async fn fix_deployment(&self, wanted: &DeploymentId) -> Result<String> {
        tokens::fix_deployment(self, wanted).await
    }
    async fn next_epoch(&self, now_ms: u64) -> Result<u64> {
        tokens::next_epoch(self, now_ms).await
    }
    async fn add_join_token(&self, token: &JoinTokenRecord) -> Result<()> {
        tokens::add_join_token(self, token).await
    }
    async fn join_token(&self, id: Uuid) -> Result<Option<JoinTokenRecord>> {
        tokens::join_token(self, id).await
    }
    async fn join_tokens(&self) -> Result<Vec<JoinTokenRecord>> {
        tokens::join_tokens(self).await
    }
    async fn revoke_join_token(&self, id: Uuid, now_ms: u64) -> Result<bool> {
        tokens::revoke_join_token(self, id, now_ms).await
    }
    async fn joined(&self, token: Uuid, key_sha256: &Hash) -> Result<Option<Joined>> {
        components::joined(self, token, key_sha256).await
    }
    async fn join(&self, component: &NewComponent, now_ms: u64) -> Result<Spent> {
        components::join(self, component, now_ms).await
    }
    async fn add_api_token(&self, token: &ApiToken) -> Result<()> {
        tokens::add_api_token(self, token).await
    }
    async fn api_token(&self, hash: &Hash) -> Result<Option<ApiToken>> {
        tokens::api_token(self, hash).await
    }
    async fn has_api_token(&self, name: &str) -> Result<bool> {
        tokens::has_api_token(self, name).await
    }
    async fn revoke_api_tokens(&self, name: &str, now_ms: u64) -> Result<()> {
        tokens::revoke_api_tokens(self, name, now_ms).await
    }
    async fn svms(&self) -> Result<Vec<SvmRecord>> {
        components::svms(self).await
    }
    async fn svm(&self, id: SvmId) -> Result<Option<SvmRecord>> {
        components::svm(self, id).await
    }
    async fn greet_svm(&self, id: SvmId, hello: &Hello, now_ms: u64) -> Result<()> {
        components::greet_svm(self, id, hello, now_ms).await
    }
    async fn report_svm(&self, id: SvmId, report: &SvmReport, now_ms: u64) -> Result<()> {
        components::report_svm(self, id, report, now_ms).await
    }
    async fn revoke_svm(&self, id: SvmId, now_ms: u64) -> Result<bool> {
        components::revoke_svm(self, id, now_ms).await
    }
    async fn agents(&self) -> Result<Vec<AgentRecord>> {
        components::agents(self).await
    }
    async fn agent(&self, id: AgentId) -> Result<Option<AgentRecord>> {
        components::agent(self, id).await
    }
    async fn greet_agent(&self, id: AgentId, hello: &Hello, now_ms: u64) -> Result<()> {
        components::greet_agent(self, id, hello, now_ms).await
    }
    async fn report_agent(&self, id: AgentId, report: &AgentReport, now_ms: u64) -> Result<()> {
        components::report_agent(self, id, report, now_ms).await
    }
    async fn revoke_agent(&self, id: AgentId, now_ms: u64) -> Result<bool> {
        components::revoke_agent(self, id, now_ms).await
    }
    async fn add_maintenance(&self, grant: &MaintenanceRecord) -> Result<()> {
        maintenance::add(self, grant).await
    }
    async fn end_maintenance(&self, id: Uuid, now_ms: u64) -> Result<()> {
        maintenance::end(self, id, now_ms).await
    }
    async fn maintenance(&self, now_ms: u64) -> Result<Vec<MaintenanceRecord>> {
        maintenance::in_force(self, now_ms).await
    }
    async fn keep_quarantine_key(
        &self,
        id: AgentId,
        key: &QuarantineKey,
        now_ms: u64,
    ) -> Result<()> {
        quarantine_keys::keep(self, id, key, now_ms).await
    }
    async fn quarantine_key(&self, id: AgentId) -> Result<Option<QuarantineKey>> {
        quarantine_keys::find(self, id).await
    }
    async fn add_detections(
        &self,
        agent: AgentId,
        detections: &[Detection],
        now_ms: u64,
    ) -> Result<u64> {
        detections::add(self, agent, detections, now_ms).await
    }
    async fn detections(&self, before: Option<u64>, limit: u32) -> Result<DetectionPage> {
        detections::page(self, before, limit).await
    }
    async fn count_detections(&self) -> Result<u64> {
        detections::count(self).await
    }
    async fn hosts(&self) -> Result<Vec<HostRecord>> {
        inventory::hosts(self).await
    }
    async fn put_host(&self, host: &HostRecord) -> Result<()> {
        inventory::put_host(self, host).await
    }
    async fn keep_hosts(&self, uris: &[String]) -> Result<()> {
        inventory::keep_hosts(self, uris).await
    }
}
