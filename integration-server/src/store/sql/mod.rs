//! The statements, written once and compiled for each backend: each has this folder
//! as a module of its own, and gives it what differs.
//!
//! | name | is, in `super` |
//! | --- | --- |
//! | `Backend` | the store: pools, `begin`, `snapshot`, `alone`, `bounded`, `failed` |
//! | `Db`, `Row` | sqlx's types of that database |
//! | `HAS_KEYS`, `HAS_PLAIN`, `SWEEP` | how it says that a table or a column is there; how free pages are emptied |
//! | `AFTER_IMPORT`, `INTEGRITY` | what sets counters after rows were put; what looks for damage |
//!
//! What both databases read the same stands here: `$1` parameters, `BIGINT`, `TEXT`,
//! bytes, `ON CONFLICT`, `RETURNING`. A statement that only one of them knows belongs
//! to that backend's own file.
//!
//! | module | owns the tables |
//! | --- | --- |
//! | `tokens` | `meta`, `counters`, `join_tokens`, `api_tokens` |
//! | `components` | `svms`, `agents`, and joining |
//! | `maintenance` | `maintenance_grants` |
//! | `quarantine_keys` | `quarantine_keys` |
//! | `definitions_keys` | `definitions_keys` |
//! | `detections` | `detections` |
//! | `inventory` | `hosts`, `domains` |
//! | `accounts`, `logins`, `account_tokens` | `accounts`, `recovery_codes`, `setup_tokens`; `sessions`, `login_sources`; `account_tokens` |
//! | `policies` | `policies`, `policy_groups`, `policy_reports` |
//! | `audit` | `audit`, whose length is a counter |
//! | `change` | none: what somebody answers for, with its entry in `audit` |
//! | `keys` | `data_keys`; the first sealing, another data key |
//! | `copy` | all of them, for backups and checks |
//! | `row`, `opened` | none: between Rust's types and a column's, plain and sealed |

mod account_tokens;
mod accounts;
mod audit;
mod change;
mod components;
mod copy;
mod definitions_keys;
mod detections;
mod inventory;
pub mod keys;
mod logins;
mod maintenance;
mod opened;
mod policies;
mod quarantine_keys;
mod row;
mod tokens;

use std::collections::BTreeMap;

use async_trait::async_trait;
use palisade_protocol::control::{AgentReport, Detection, Hello, QuarantineKey, SvmReport};
use palisade_protocol::ids::{AgentId, DeploymentId, SvmId};
use palisade_protocol::policy::PolicyReport;
use uuid::Uuid;

use super::{AFTER_IMPORT, Backend, Db, HAS_KEYS, HAS_PLAIN, INTEGRITY, Row, SWEEP};
use crate::accounts::lockout::Counter;
use crate::audit::{Entry, Head, Record, Verification};
use crate::inventory::HostRecord;
use crate::policy::Subject;
use crate::secret::Hash;
use crate::store::backup::{RowSink, RowSource};
use crate::store::seal::Key;
use crate::store::{
    AccountRecord, AccountToken, AgentRecord, ApiToken, Attempt, Change, Changed, DefinitionsKey,
    DetectionPage, GroupRecord, JoinTokenRecord, Joined, MaintenanceRecord, NewComponent,
    PolicyRecord, PolicyReportRecord, Result, SessionRecord, Spent, Store, SvmRecord,
};

type Connection = <Db as sqlx::Database>::Connection;

#[async_trait]
impl Store for Backend {
    async fn fix_deployment(&self, wanted: &DeploymentId) -> Result<String> {
        self.bounded(tokens::fix_deployment(self, wanted)).await
    }
    async fn next_epoch(&self, now_ms: u64) -> Result<u64> {
        self.bounded(tokens::next_epoch(self, now_ms)).await
    }
    async fn change(
        &self,
        change: Change<'_>,
        entry: Option<&Entry>,
        now_ms: u64,
    ) -> Result<Changed> {
        self.bounded(change::change(self, change, entry, now_ms))
            .await
    }
    async fn accounts(&self) -> Result<Vec<AccountRecord>> {
        self.bounded(accounts::all(self)).await
    }
    async fn account(&self, id: Uuid) -> Result<Option<AccountRecord>> {
        self.bounded(accounts::one(self, id)).await
    }
    async fn account_named(&self, name: &str) -> Result<Option<AccountRecord>> {
        self.bounded(accounts::named(self, name)).await
    }
    async fn has_accounts(&self) -> Result<bool> {
        self.bounded(accounts::any(self)).await
    }
    async fn attempt(&self, counters: &[Counter], now_ms: u64) -> Result<Attempt> {
        self.bounded(logins::attempt(self, counters, now_ms)).await
    }
    async fn take_back(&self, counters: &[Counter], proven: bool) -> Result<()> {
        self.bounded(logins::take_back(self, counters, proven))
            .await
    }
    async fn use_totp(&self, account: Uuid, step: u64) -> Result<bool> {
        self.bounded(accounts::use_totp(self, account, step)).await
    }
    async fn use_recovery_code(&self, account: Uuid, code: &Hash, now_ms: u64) -> Result<bool> {
        self.bounded(accounts::use_recovery_code(self, account, code, now_ms))
            .await
    }
    async fn session(&self, hash: &Hash) -> Result<Option<(SessionRecord, AccountRecord)>> {
        self.bounded(logins::session(self, hash)).await
    }
    async fn saw_session(&self, id: Uuid, now_ms: u64) -> Result<()> {
        self.bounded(logins::saw_session(self, id, now_ms)).await
    }
    async fn account_token(&self, hash: &Hash) -> Result<Option<(AccountToken, AccountRecord)>> {
        self.bounded(account_tokens::one(self, hash)).await
    }
    async fn account_tokens(&self, account: Option<Uuid>) -> Result<Vec<AccountToken>> {
        self.bounded(account_tokens::all(self, account)).await
    }
    async fn account_token_by_id(&self, id: Uuid) -> Result<Option<AccountToken>> {
        self.bounded(account_tokens::by_id(self, id)).await
    }
    async fn saw_account_token(&self, id: Uuid, now_ms: u64) -> Result<()> {
        self.bounded(account_tokens::saw(self, id, now_ms)).await
    }
    async fn has_setup_token(&self, hash: Option<&Hash>) -> Result<bool> {
        self.bounded(accounts::has_setup_token(self, hash)).await
    }
    async fn audit(&self, before: Option<u64>, limit: u32) -> Result<Vec<Record>> {
        self.bounded(audit::page(self, before, limit)).await
    }
    async fn verify_audit(&self, noted: Option<Head>) -> Result<Verification> {
        // As long as it takes: each of its pages is bounded by itself.
        audit::verify_all(self, noted).await
    }
    async fn join_token(&self, id: Uuid) -> Result<Option<JoinTokenRecord>> {
        self.bounded(tokens::join_token(self, id)).await
    }
    async fn join_tokens(&self) -> Result<Vec<JoinTokenRecord>> {
        self.bounded(tokens::join_tokens(self)).await
    }
    async fn joined(&self, token: Uuid, key_sha256: &Hash) -> Result<Option<Joined>> {
        self.bounded(components::joined(self, token, key_sha256))
            .await
    }
    async fn join(&self, component: &NewComponent, now_ms: u64) -> Result<Spent> {
        self.bounded(components::join(self, component, now_ms))
            .await
    }
    async fn api_token(&self, hash: &Hash) -> Result<Option<ApiToken>> {
        self.bounded(tokens::api_token(self, hash)).await
    }
    async fn has_api_token(&self, name: &str) -> Result<bool> {
        self.bounded(tokens::has_api_token(self, name)).await
    }
    async fn svms(&self) -> Result<Vec<SvmRecord>> {
        self.bounded(components::svms(self)).await
    }
    async fn revoked_svms(&self, limit: usize) -> Result<Vec<SvmRecord>> {
        self.bounded(components::revoked_svms(self, limit)).await
    }
    async fn svm(&self, id: SvmId) -> Result<Option<SvmRecord>> {
        self.bounded(components::svm(self, id)).await
    }
    async fn greet_svm(&self, id: SvmId, hello: &Hello, now_ms: u64) -> Result<()> {
        self.bounded(components::greet_svm(self, id, hello, now_ms))
            .await
    }
    async fn report_svm(&self, id: SvmId, report: &SvmReport, now_ms: u64) -> Result<()> {
        self.bounded(components::report_svm(self, id, report, now_ms))
            .await
    }
    async fn agents(&self) -> Result<Vec<AgentRecord>> {
        self.bounded(components::agents(self)).await
    }
    async fn agent(&self, id: AgentId) -> Result<Option<AgentRecord>> {
        self.bounded(components::agent(self, id)).await
    }
    async fn greet_agent(&self, id: AgentId, hello: &Hello, now_ms: u64) -> Result<()> {
        self.bounded(components::greet_agent(self, id, hello, now_ms))
            .await
    }
    async fn report_agent(&self, id: AgentId, report: &AgentReport, now_ms: u64) -> Result<()> {
        self.bounded(components::report_agent(self, id, report, now_ms))
            .await
    }
    async fn end_maintenance(&self, id: Uuid, now_ms: u64) -> Result<()> {
        self.bounded(maintenance::end(self, id, now_ms)).await
    }
    async fn maintenance(&self, now_ms: u64) -> Result<Vec<MaintenanceRecord>> {
        self.bounded(maintenance::in_force(self, now_ms)).await
    }
    async fn policies(&self) -> Result<Vec<PolicyRecord>> {
        self.bounded(policies::all(self)).await
    }
    async fn policy_revisions(
        &self,
        subject: &Subject,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<PolicyRecord>> {
        self.bounded(policies::revisions(self, subject, before, limit))
            .await
    }
    async fn policy_revision(
        &self,
        subject: &Subject,
        revision: u64,
    ) -> Result<Option<PolicyRecord>> {
        self.bounded(policies::revision(self, subject, revision))
            .await
    }
    async fn groups(&self) -> Result<Vec<GroupRecord>> {
        self.bounded(policies::groups(self)).await
    }
    async fn policy_version(&self) -> Result<u64> {
        self.bounded(policies::version(self)).await
    }
    async fn keep_policy_report(
        &self,
        id: AgentId,
        report: &PolicyReport,
        now_ms: u64,
    ) -> Result<()> {
        self.bounded(policies::keep_report(self, id, report, now_ms))
            .await
    }
    async fn policy_report(&self, id: AgentId) -> Result<Option<PolicyReportRecord>> {
        self.bounded(policies::report(self, id)).await
    }
    async fn refused_policies(&self) -> Result<BTreeMap<AgentId, PolicyReportRecord>> {
        self.bounded(policies::refused(self)).await
    }
    async fn keep_quarantine_key(
        &self,
        id: AgentId,
        key: &QuarantineKey,
        now_ms: u64,
    ) -> Result<()> {
        self.bounded(quarantine_keys::keep(self, id, key, now_ms))
            .await
    }
    async fn definitions_key(&self, key: DefinitionsKey) -> Result<Option<Vec<u8>>> {
        self.bounded(definitions_keys::find(self, key)).await
    }

    async fn quarantine_key(&self, id: AgentId) -> Result<Option<QuarantineKey>> {
        self.bounded(quarantine_keys::find(self, id)).await
    }
    async fn add_detections(
        &self,
        agent: AgentId,
        detections: &[Detection],
        now_ms: u64,
    ) -> Result<u64> {
        self.bounded(detections::add(self, agent, detections, now_ms))
            .await
    }
    async fn detections(&self, before: Option<u64>, limit: u32) -> Result<DetectionPage> {
        self.bounded(detections::page(self, None, before, limit))
            .await
    }
    async fn detections_of(
        &self,
        tenants: &[String],
        before: Option<u64>,
        limit: u32,
    ) -> Result<DetectionPage> {
        if tenants.is_empty() {
            return Ok(DetectionPage {
                items: Vec::new(),
                next: None,
            });
        }
        let page = detections::page(self, Some(tenants), before, limit);
        self.bounded(page).await
    }
    async fn count_detections(&self) -> Result<u64> {
        self.bounded(detections::count(self)).await
    }
    async fn hosts(&self) -> Result<Vec<HostRecord>> {
        self.bounded(inventory::hosts(self)).await
    }
    async fn put_host(&self, host: &HostRecord) -> Result<()> {
        self.bounded(inventory::put_host(self, host)).await
    }
    async fn keep_hosts(&self, uris: &[String]) -> Result<()> {
        self.bounded(inventory::keep_hosts(self, uris)).await
    }
    async fn rewrap(&self, master: &Key) -> Result<()> {
        self.bounded(keys::rewrap(self, master)).await
    }
    async fn reseal(&self, master: &Key) -> Result<u64> {
        // As long as it takes: the server is stopped, and somebody waits for it.
        keys::reseal(self, master).await
    }
    async fn export(&self, sink: &mut dyn RowSink) -> Result<()> {
        copy::export(self, sink).await
    }
    async fn import(&self, source: &mut dyn RowSource, master: &Key) -> Result<()> {
        copy::import(self, source, master).await
    }
    async fn check(&self) -> Result<Vec<String>> {
        copy::check(self).await
    }
    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
        self.release();
    }
}
