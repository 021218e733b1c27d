//! What the server must not forget, behind one trait.
//!
//! ```text
//!   fleet, inventory, api ──► Store (trait) ─┬─► sqlite::SqliteStore      ─┬─► sql
//!                                            └─► postgres::PostgresStore  ─┘
//! ```
//!
//! Owns the records and the meaning of each operation; a backend owns its pools, its
//! errors and what only it can say. A call that returns `Ok` has committed: what is
//! acknowledged to a peer after it is not lost. Statements are constants with bound
//! values, in SQL that SQLite and PostgreSQL share; they stand once, in `store/sql`, and
//! are compiled for each.
//!
//! | module | owns |
//! | --- | --- |
//! | [`change`] | changes that somebody answers for, each with its entry of the audit log |
//! | [`records`] | the rows, as the rest of the server sees them |
//! | [`error`] | what can go wrong, with the remedy |
//! | [`place`] | which database the settings name, and opening it |
//! | [`backup`], [`shape`] | a backup's file, and a restore; every column of every table |
//! | [`seal`] | values that nobody reads without the master key |
//! | [`sqlite`] | the embedded backend |
//! | [`postgres`] | the backend that several servers share |

pub mod backup;
pub mod change;
pub mod error;
pub mod place;
pub mod postgres;
pub mod records;
pub mod seal;
pub mod shape;
pub mod sqlite;

use std::collections::BTreeMap;

use async_trait::async_trait;
use palisade_protocol::control::{AgentReport, Detection, Hello, QuarantineKey, SvmReport};
use palisade_protocol::ids::{AgentId, DeploymentId, SvmId};
use palisade_protocol::policy::PolicyReport;
use uuid::Uuid;

use crate::accounts::lockout::Counter;
use crate::audit::{Entry, Head, Record, Verification};
use crate::inventory::HostRecord;
use crate::policy::Subject;
use crate::secret::Hash;
use backup::{RowSink, RowSource};
pub use change::{Change, Changed};
pub use error::StoreError;
pub use place::{Database, Opening, Place};
pub use records::{
    AccountRecord, AccountToken, AgentRecord, ApiToken, Attempt, DefinitionsKey, DetectionPage,
    DetectionRecord, GroupRecord, JoinTokenRecord, Joined, MaintenanceRecord, NewComponent,
    PolicyRecord, PolicyReportRecord, SessionRecord, Spent, SvmRecord,
};
use seal::Key;

/// Makes a folder that its owner alone may enter (mode 0700); those above it are
/// made as usual, and one that is there stays as it is.
///
/// # Errors
/// The file system's.
pub fn private_folder(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// What one transaction has for itself among all servers, until it ends.
#[derive(Debug, Clone, Copy)]
enum Alone {
    /// Choosing a component's name.
    Names,
    /// Counting attempts to log in.
    Logins,
    /// What is kept of one agent.
    Agent(AgentId),
}

/// Why a schema was not brought up to date.
fn unmigrated(
    database: &str,
    error: sqlx::migrate::MigrateError,
    of_sqlx: impl FnOnce(sqlx::Error) -> StoreError,
) -> StoreError {
    match error {
        sqlx::migrate::MigrateError::Execute(error)
        | sqlx::migrate::MigrateError::ExecuteMigration(error, _) => of_sqlx(error),
        other => StoreError::Schema {
            database: database.to_owned(),
            detail: other.to_string(),
        },
    }
}

/// Result of a store operation.
pub type Result<T> = std::result::Result<T, StoreError>;

/// The server's memory.
#[async_trait]
pub trait Store: std::fmt::Debug + Send + Sync {
    /// The deployment that this store belongs to: `wanted` at first start, what
    /// was fixed then ever after.
    async fn fix_deployment(&self, wanted: &DeploymentId) -> Result<String>;
    /// A session's epoch, above all before, whatever backup was restored: at
    /// least `now_ms`.
    async fn next_epoch(&self, now_ms: u64) -> Result<u64>;

    /// Makes a change and its entry in the audit log: both or neither. Without an entry
    /// it is one that nobody answers for.
    async fn change(
        &self,
        change: Change<'_>,
        entry: Option<&Entry>,
        now_ms: u64,
    ) -> Result<Changed>;

    /// Keeps a new join token.
    async fn add_join_token(&self, token: &JoinTokenRecord) -> Result<()> {
        let change = Change::AddJoinToken(token);
        self.change(change, None, token.created_ms).await.map(drop)
    }
    /// A join token, if there is one.
    async fn join_token(&self, id: Uuid) -> Result<Option<JoinTokenRecord>>;
    /// All join tokens, newest first.
    async fn join_tokens(&self) -> Result<Vec<JoinTokenRecord>>;
    /// Revokes a join token; false when there is none that could be.
    async fn revoke_join_token(&self, id: Uuid, now_ms: u64) -> Result<bool> {
        let changed = self.change(Change::RevokeJoinToken(id), None, now_ms).await;
        changed.map(Changed::is_done)
    }
    /// Who joined with this token and this key before, if anyone did.
    async fn joined(&self, token: Uuid, key_sha256: &Hash) -> Result<Option<Joined>>;
    /// Uses a join token once and keeps the component that joined: both or neither.
    async fn join(&self, component: &NewComponent, now_ms: u64) -> Result<Spent>;

    /// The valid API token with this hash.
    async fn api_token(&self, hash: &Hash) -> Result<Option<ApiToken>>;
    /// Whether a valid API token of this name exists.
    async fn has_api_token(&self, name: &str) -> Result<bool>;

    /// All accounts, disabled ones too, by name.
    async fn accounts(&self) -> Result<Vec<AccountRecord>>;
    /// One account.
    async fn account(&self, id: Uuid) -> Result<Option<AccountRecord>>;
    /// Whether there is any.
    async fn has_accounts(&self) -> Result<bool>;
    /// The account of this name.
    async fn account_named(&self, name: &str) -> Result<Option<AccountRecord>>;
    /// Counts an attempt to prove who somebody is, if it is too early for none of these:
    /// several at once are no more than one after the other.
    async fn attempt(&self, counters: &[Counter], now_ms: u64) -> Result<Attempt>;
    /// Takes an attempt back that was no failure. With `proven`, failures before are
    /// forgotten, too; a source's never are, or whoever has an account would guess others'
    /// for ever.
    async fn take_back(&self, counters: &[Counter], proven: bool) -> Result<()>;
    /// Uses a code of the second factor: false when its step, or a later one, was used.
    async fn use_totp(&self, account: Uuid, step: u64) -> Result<bool>;
    /// Uses a recovery code: false when there is none, or it was used.
    async fn use_recovery_code(&self, account: Uuid, code: &Hash, now_ms: u64) -> Result<bool>;
    /// The session with this token, and whose it is.
    async fn session(&self, hash: &Hash) -> Result<Option<(SessionRecord, AccountRecord)>>;
    /// A session was used.
    async fn saw_session(&self, id: Uuid, now_ms: u64) -> Result<()>;
    /// The API token with this text's hash, and whose it is; void ones too.
    async fn account_token(&self, hash: &Hash) -> Result<Option<(AccountToken, AccountRecord)>>;
    /// API tokens that are not revoked, newest first: one account's, or all accounts'.
    async fn account_tokens(&self, account: Option<Uuid>) -> Result<Vec<AccountToken>>;
    /// The API token of an account with this id, if it is not revoked.
    async fn account_token_by_id(&self, id: Uuid) -> Result<Option<AccountToken>>;
    /// An API token was used.
    async fn saw_account_token(&self, id: Uuid, now_ms: u64) -> Result<()>;
    /// Whether there is a setup token that was not used: any, or the one with this hash.
    async fn has_setup_token(&self, hash: Option<&Hash>) -> Result<bool>;

    /// Entries of the audit log, newest first, those before a number.
    async fn audit(&self, before: Option<u64>, limit: u32) -> Result<Vec<Record>>;
    /// Goes through the whole audit log; a head that was noted elsewhere must come by.
    async fn verify_audit(&self, noted: Option<Head>) -> Result<Verification>;

    /// All Protection Servers that are not revoked, by name.
    async fn svms(&self) -> Result<Vec<SvmRecord>>;
    /// Those that were revoked, the latest first, up to so many.
    async fn revoked_svms(&self, limit: usize) -> Result<Vec<SvmRecord>>;
    /// One Protection Server, revoked or not.
    async fn svm(&self, id: SvmId) -> Result<Option<SvmRecord>>;
    /// A Protection Server opened a session.
    async fn greet_svm(&self, id: SvmId, hello: &Hello, now_ms: u64) -> Result<()>;
    /// A Protection Server reported.
    async fn report_svm(&self, id: SvmId, report: &SvmReport, now_ms: u64) -> Result<()>;
    /// Revokes a Protection Server; false when there is none that could be.
    async fn revoke_svm(&self, id: SvmId, now_ms: u64) -> Result<bool> {
        let changed = self.change(Change::RevokeSvm(id), None, now_ms).await;
        changed.map(Changed::is_done)
    }

    /// All agents that are not revoked, by name.
    async fn agents(&self) -> Result<Vec<AgentRecord>>;
    /// One agent, revoked or not.
    async fn agent(&self, id: AgentId) -> Result<Option<AgentRecord>>;
    /// An agent opened a session.
    async fn greet_agent(&self, id: AgentId, hello: &Hello, now_ms: u64) -> Result<()>;
    /// An agent reported.
    async fn report_agent(&self, id: AgentId, report: &AgentReport, now_ms: u64) -> Result<()>;
    /// Revokes an agent; false when there is none that could be.
    async fn revoke_agent(&self, id: AgentId, now_ms: u64) -> Result<bool> {
        let changed = self.change(Change::RevokeAgent(id), None, now_ms).await;
        changed.map(Changed::is_done)
    }

    /// Keeps what a maintenance token allows; who was let stop an agent is on record for good.
    async fn add_maintenance(&self, grant: &MaintenanceRecord) -> Result<()> {
        let change = Change::AddMaintenance(grant);
        self.change(change, None, grant.from_ms).await.map(drop)
    }
    /// A grant ends now, if it has not ended before.
    async fn end_maintenance(&self, id: Uuid, now_ms: u64) -> Result<()>;
    /// The grants that have not ended, the first to end first.
    async fn maintenance(&self, now_ms: u64) -> Result<Vec<MaintenanceRecord>>;

    /// The latest revision of each policy, in no order.
    async fn policies(&self) -> Result<Vec<PolicyRecord>>;
    /// A policy's revisions, newest first, those before a number.
    async fn policy_revisions(
        &self,
        subject: &Subject,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<PolicyRecord>>;
    /// One revision of a policy.
    async fn policy_revision(
        &self,
        subject: &Subject,
        revision: u64,
    ) -> Result<Option<PolicyRecord>>;
    /// All groups, in no order.
    async fn groups(&self) -> Result<Vec<GroupRecord>>;
    /// Grows with each change of policies and groups, whichever server made it.
    async fn policy_version(&self) -> Result<u64>;
    /// Keeps what an agent made of its policy, in place of what it said before.
    async fn keep_policy_report(
        &self,
        id: AgentId,
        report: &PolicyReport,
        now_ms: u64,
    ) -> Result<()>;
    /// What an agent last said that it made of its policy.
    async fn policy_report(&self, id: AgentId) -> Result<Option<PolicyReportRecord>>;
    /// What those agents last said that refused a policy.
    async fn refused_policies(&self) -> Result<BTreeMap<AgentId, PolicyReportRecord>>;

    /// Keeps an agent's quarantine key, in place of the one it had.
    async fn keep_quarantine_key(
        &self,
        id: AgentId,
        key: &QuarantineKey,
        now_ms: u64,
    ) -> Result<()>;
    /// The quarantine key of an agent, or else of one of the same tenant that said
    /// the same SMBIOS UUID.
    async fn quarantine_key(&self, id: AgentId) -> Result<Option<QuarantineKey>>;

    /// The secret of a key that signs the repository of definitions, if this server has it.
    async fn definitions_key(&self, key: DefinitionsKey) -> Result<Option<Vec<u8>>>;

    /// Keeps an agent's detections; those that it sent before stay as they are.
    /// Says how many are new.
    async fn add_detections(
        &self,
        agent: AgentId,
        detections: &[Detection],
        now_ms: u64,
    ) -> Result<u64>;
    /// Detections in the order of their arrival, newest first, those before the
    /// cursor's.
    async fn detections(&self, before: Option<u64>, limit: u32) -> Result<DetectionPage>;
    /// The same of some tenants alone.
    async fn detections_of(
        &self,
        tenants: &[String],
        before: Option<u64>,
        limit: u32,
    ) -> Result<DetectionPage>;
    /// How many detections there are.
    async fn count_detections(&self) -> Result<u64>;

    /// The inventory as it was last known.
    async fn hosts(&self) -> Result<Vec<HostRecord>>;
    /// Keeps what is known of one host, its domains included.
    async fn put_host(&self, host: &HostRecord) -> Result<()>;
    /// Forgets all hosts but these.
    async fn keep_hosts(&self, uris: &[String]) -> Result<()>;

    /// Wraps the data keys with another master key: all, or none.
    async fn rewrap(&self, master: &Key) -> Result<()>;
    /// Seals every value anew with a new data key, which this master key wraps, and
    /// forgets the ones before. Says how many rows there were. The store is opened anew
    /// afterwards.
    async fn reseal(&self, master: &Key) -> Result<u64>;

    /// Hands all rows over as they were at one moment.
    async fn export(&self, sink: &mut dyn RowSink) -> Result<()>;
    /// Puts rows into a store that has none: all of them, or nothing. It is opened anew
    /// afterwards.
    async fn import(&self, source: &mut dyn RowSource, master: &Key) -> Result<()>;
    /// Looks at everything, and says what is wrong.
    async fn check(&self) -> Result<Vec<String>>;

    /// Ends all connections; what was acknowledged is kept.
    async fn close(&self);
}
