//! `/api/v1/alerts`: what somebody must look at now. Those about Protection Servers are in
//! [`svms`], those about hosts, clones and disputed domains in [`site`], those about policies
//! in [`policies`].

mod policies;
mod site;
mod svms;

use std::collections::HashMap;

use axum::Json;
use palisade_protocol::exposure::{ExposureCause, ExposureWindow};
use palisade_protocol::ids::{AgentId, SvmId};
use palisade_protocol::trust::sha256;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use self::site::Cloned;
use super::State;
use super::agents::place;
use super::auth::Caller;
use super::page::Page;
use super::problem::{ApiError, Problem};
use crate::access::{Access, Permission, Scope};
use crate::fleet::Fleet;
use crate::fleet::lost::Alarm;
use crate::store::{AgentRecord, Result as Stored, SvmRecord};
use crate::time::{now_ms, rfc3339, steady_ms, wall_ms};

/// How long a guest may be without verdicts until it is an alert, in milliseconds.
const EXPOSED_GRACE_MS: u64 = 60_000;

/// Something that somebody must look at now. It is gone when its cause is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Alert {
    /// The same for as long as it lasts.
    pub id: Uuid,
    /// `agent_lost`: an agent has no session although its domain runs, or no host knows
    /// its domain. `agent_exposed`: an agent says that opens in its guest get no verdicts.
    /// `policy_refused`: an agent does not take the policy that is set for it.
    /// `agent_cloned`, `svm_cloned`: two machines have one identity. `domain_disputed`: agents
    /// of several tenants say that they are in one domain. `host_unread`: a hypervisor cannot
    /// be read. `svm_lost`: a Protection Server has no session. `svm_` and what is wrong, as in METRICS.md's `palisade_svm_problems`:
    /// a Protection Server says so.
    pub kind: String,
    /// `critical` or `warning`.
    pub severity: String,
    /// Which agent, if it is about one.
    pub agent: Option<Uuid>,
    /// That agent's name.
    pub agent_name: Option<String>,
    /// Which Protection Server, if it is about one.
    pub svm: Option<Uuid>,
    /// That Protection Server's name.
    pub svm_name: Option<String>,
    /// The libvirt domain that the agent says it runs in.
    pub domain: Option<Uuid>,
    /// That domain's name, when the inventory has it.
    pub domain_name: Option<String>,
    /// Since when the agent or the Protection Server is gone, as far as this server can tell,
    /// or the guest without verdicts, or something wrong, by its own clock (RFC 3339, UTC).
    pub since: String,
    /// When that became an alert (RFC 3339, UTC).
    pub raised: String,
    /// What happened, for people.
    pub text: String,
    /// What to do, for people.
    pub remedy: String,
}

/// What somebody must look at now, the oldest first
#[utoipa::path(
    get,
    path = "/api/v1/alerts",
    operation_id = "listAlerts",
    tag = "alerts",
    responses(
        (status = 200, body = Page<Alert>),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn list(state: State, caller: Caller) -> Result<Json<Page<Alert>>, ApiError> {
    let seen = all(&state.fleet, &caller.access, now_ms()).await?;
    Ok(Json(Page::whole(seen)))
}

/// All that somebody may see, the oldest first.
///
/// # Errors
/// The store's.
pub async fn all(fleet: &Fleet, access: &Access, now_ms: u64) -> Stored<Vec<Alert>> {
    // Which domain an agent is in is what it says: it must not tell a tenant another
    // one's name.
    let whole = access.may(Permission::SeeSite, &Scope::site());
    let name_of = |domain| {
        let known = fleet.inventory.domain(domain).filter(|_| whole);
        known.map(|facts| facts.name)
    };
    let mut agents = fleet.store.agents().await?;
    agents.retain(|agent| access.may(Permission::SeeGuests, &place(agent)));
    let by_id: HashMap<AgentId, &AgentRecord> =
        agents.iter().map(|agent| (agent.id, agent)).collect();
    let is_connected = |agent: &&AgentRecord| fleet.sessions.is_connected(agent.id.0);
    let mut in_domain: HashMap<Uuid, Vec<&AgentRecord>> = HashMap::new();
    for agent in agents.iter().filter(is_connected) {
        let in_it = agent
            .product_uuid
            .map(|domain| in_domain.entry(domain).or_default());
        in_it.into_iter().for_each(|in_it| in_it.push(agent));
    }
    let mut alerts: Vec<(u64, Alert)> = Vec::new();
    for alarm in fleet.alarms.all() {
        let Some(agent) = by_id.get(&alarm.agent) else {
            continue;
        };
        let name = alarm.domain.and_then(name_of);
        // A guest that joined anew has another agent: of the same tenant, since whoever
        // says to be in another tenant's guest must not make its loss look less.
        let others = alarm.domain.and_then(|domain| in_domain.get(&domain));
        let another = others
            .into_iter()
            .flatten()
            .find(|other| other.id != alarm.agent && other.tenant == agent.tenant);
        alerts.push((alarm.raised_ms, lost(alarm, name, another.copied())));
    }
    let said = fleet.store.refused_policies().await?;
    for agent in agents.iter().filter(is_connected) {
        if let Some(said) = said.get(&agent.id)
            && let Some(refused) = policies::refused_by(fleet, agent, said)
        {
            let name = agent.product_uuid.and_then(name_of);
            let alert = policies::refused(agent, said, refused, name);
            alerts.push((said.reported_ms, alert));
        }
        if let Some((window, raised_ms)) = exposed_at(agent, now_ms) {
            let name = agent.product_uuid.and_then(name_of);
            alerts.push((raised_ms, exposed(agent, window, raised_ms, name)));
        }
    }
    for held in fleet.sessions.held(steady_ms()) {
        if let Some(agent) = by_id.get(&AgentId(held.id)) {
            let of = Cloned::Agent(held.id);
            alerts.push((held.since_ms, site::cloned(&agent.name, of, held.since_ms)));
        }
    }
    if whole {
        svm_alerts(fleet, &mut alerts).await?;
        for host in fleet.inventory.unread(steady_ms()) {
            alerts.push((host.raised_ms, site::unread(&host)));
        }
        for dispute in fleet.disputed() {
            let claims = dispute
                .agents
                .iter()
                .filter_map(|id| by_id.get(id).copied());
            let claims: Vec<&AgentRecord> = claims.collect();
            let alert = site::disputed(&dispute, name_of(dispute.domain), &claims);
            alerts.push((dispute.since_ms, alert));
        }
    }
    alerts.sort_by_key(|(raised_ms, alert)| (*raised_ms, alert.id));
    Ok(alerts.into_iter().map(|(_, alert)| alert).collect())
}

/// Those about Protection Servers.
async fn svm_alerts(fleet: &Fleet, alerts: &mut Vec<(u64, Alert)>) -> Stored<()> {
    let records = fleet.store.svms().await?;
    let by_id: HashMap<SvmId, &SvmRecord> = records.iter().map(|svm| (svm.id, svm)).collect();
    let is_connected = |svm: &&SvmRecord| fleet.sessions.is_connected(svm.id.0);
    let connected: Vec<&SvmRecord> = records.iter().filter(is_connected).collect();
    let now_ms = steady_ms();
    // Who is turned away for this server's own sake is not lost.
    let turns_away = fleet.alarms.turns_away();
    for absent in fleet.absent_svms() {
        // One that was revoked at this moment has no record.
        let known = by_id.get(&absent.id).filter(|svm| !is_connected(svm));
        if known.is_some() && absent.alert_ms <= now_ms && !turns_away {
            alerts.push((absent.alert_ms, svms::gone(&absent, connected.len())));
        }
    }
    for held in fleet.sessions.held(now_ms) {
        if let Some(svm) = by_id.get(&SvmId(held.id)) {
            let of = Cloned::Svm(held.id);
            alerts.push((held.since_ms, site::cloned(&svm.name, of, held.since_ms)));
        }
    }
    for svm in connected {
        for problem in svm.report.iter().flat_map(|report| report.problems.iter()) {
            alerts.push((problem.since_ms, svms::problem(svm, problem)));
        }
    }
    Ok(())
}

fn lost(alarm: Alarm, domain_name: Option<String>, another: Option<&AgentRecord>) -> Alert {
    let since = rfc3339(wall_ms(alarm.since_ms));
    let (severity, text, remedy) = match (alarm.placed, another) {
        (false, _) => unplaced(&alarm, &since),
        (true, another) => gone(&alarm, domain_name.as_deref(), another, &since),
    };
    Alert {
        id: id_of(alarm.agent.0, alarm.since_ms, &alarm.raised_ms.to_string()),
        kind: "agent_lost".to_owned(),
        severity: severity.to_owned(),
        agent: Some(alarm.agent.0),
        agent_name: Some(alarm.name),
        svm: None,
        svm_name: None,
        domain: alarm.domain,
        domain_name,
        since,
        raised: rfc3339(wall_ms(alarm.raised_ms)),
        text,
        remedy,
    }
}

/// What is said of an agent that is gone while its domain runs.
fn gone(
    alarm: &Alarm,
    domain_name: Option<&str>,
    another: Option<&AgentRecord>,
    since: &str,
) -> (&'static str, String, String) {
    let name = &alarm.name;
    let domain = match (domain_name, alarm.domain) {
        (Some(name), _) => name.to_owned(),
        (None, domain) => domain.unwrap_or_default().to_string(),
    };
    let gone = format!(
        "The agent {name} has been gone since {since}, although its domain {domain} runs and no \
         maintenance token allows it: "
    );
    let revoke = format!("`palisade agent revoke {}` ends this.", alarm.agent);
    match another {
        // Which domain it runs in is what it says itself.
        Some(another) => (
            "warning",
            format!(
                "{gone}the agent {} says that it runs in the same domain, and is connected.",
                another.name
            ),
            format!("If the guest joined anew, which makes it another agent, {revoke}"),
        ),
        None => (
            "critical",
            format!("{gone}the guest may be unprotected."),
            format!(
                "First see in the guest whether the agent runs: `systemctl status \
                 palisade-agent` says how it ended, and whoever stopped it may be in that guest \
                 still. If it runs, the network from the guest to this server is cut: \
                 `palisade-agent doctor` says where. If the guest is just starting, this ends by \
                 itself. If the agent was removed for good, {revoke} Planned work wants a token \
                 beforehand: `palisade agent maintenance {name} --reason TEXT`."
            ),
        ),
    }
}

/// What is said of an agent that is gone and whose domain no host knows.
fn unplaced(alarm: &Alarm, since: &str) -> (&'static str, String, String) {
    let name = &alarm.name;
    let domain = match alarm.domain {
        Some(domain) => format!("no host that this server follows has its domain {domain}"),
        None => "it never said in which domain it runs".to_owned(),
    };
    let source = match alarm.domain {
        Some(_) => {
            "If it runs, its host is missing under [[libvirt]] in server.toml or cannot be read: \
             `palisade inventory list` says which hosts are followed."
        }
        None => {
            "If it runs, it has no SMBIOS UUID to show, or its agent may not read it: \
             `dmidecode -s system-uuid` in the guest, as root, is what libvirt calls the domain's \
             UUID."
        }
    };
    (
        "warning",
        format!(
            "The agent {name} has been gone since {since}, no maintenance token allows it, and \
             {domain}: whether its guest runs, perhaps unprotected, cannot be told."
        ),
        format!(
            "First see whether the guest runs, and there whether the agent does: `systemctl \
             status palisade-agent`. {source} If the guest is off, this ends when it is back; if \
             it is gone for good, `palisade agent revoke {}` ends it.",
            alarm.agent
        ),
    )
}

/// The window that a connected agent has had for too long, and when that became too long
/// by this server's clock. An agent tells at once when one ends.
fn exposed_at(agent: &AgentRecord, now_ms: u64) -> Option<(&ExposureWindow, u64)> {
    let report = agent.report.as_ref()?;
    let open = |window: &&ExposureWindow| window.until_ms.is_none();
    let window = report.exposure.iter().find(open)?;
    // What the agent's clock says is compared with that clock alone.
    let old_ms = report.clock_ms.saturating_sub(window.from_ms);
    // This server's clock may have been set back since.
    let since_ms = agent.last_seen_ms?.min(now_ms).saturating_sub(old_ms);
    let raised_ms = since_ms.saturating_add(EXPOSED_GRACE_MS);
    (raised_ms <= now_ms).then_some((window, raised_ms))
}

fn exposed(
    agent: &AgentRecord,
    window: &ExposureWindow,
    raised_ms: u64,
    domain_name: Option<String>,
) -> Alert {
    let since = rfc3339(window.from_ms);
    let causes: Vec<&str> = window.causes.iter().map(|cause| cause.explain()).collect();
    let text = format!(
        "Opens in the guest of the agent {} have had no verdicts since {since}: {}. {} opens and \
         {} executions were let through by then.",
        agent.name,
        causes.join(", "),
        window.opens,
        window.execs
    );
    let mut remedies: Vec<&str> = window.causes.iter().map(|cause| remedy(*cause)).collect();
    remedies.dedup();
    Alert {
        id: id_of(agent.id.0, window.from_ms, &window.id.to_string()),
        kind: "agent_exposed".to_owned(),
        severity: "warning".to_owned(),
        agent: Some(agent.id.0),
        agent_name: Some(agent.name.clone()),
        svm: None,
        svm_name: None,
        domain: agent.product_uuid,
        domain_name,
        since,
        raised: rfc3339(raised_ms),
        text,
        remedy: remedies.join(" "),
    }
}

/// What to do about a cause.
fn remedy(cause: ExposureCause) -> &'static str {
    match cause {
        ExposureCause::NoSvm | ExposureCause::Overload => {
            "`palisade svm list` says whether Protection Servers run and how loaded they are; in \
             the guest, `palisade-agent explain` says why none is used."
        }
        ExposureCause::Bypass => {
            "In the guest, `palisade-agent status` says who switched protection and for how \
             long; `palisade-agent bypass --end` has it protect again."
        }
        ExposureCause::Fallback => {
            "In the guest, `palisade-agent status` says why the agent failed; \
             `palisade-agent supervise --reset` has it hold opens again."
        }
        ExposureCause::Off | ExposureCause::NotRunning => {
            "In the guest, `palisade-agent doctor` says what is wrong and what helps."
        }
    }
}

/// Made of what the alert is about: equal each time it is asked for.
fn id_of(whose: Uuid, since: u64, which: &str) -> Uuid {
    let mut about = whose.as_bytes().to_vec();
    about.extend(since.to_be_bytes());
    about.extend(which.as_bytes());
    let mut first = [0; 16];
    first.copy_from_slice(&sha256(&about)[..16]);
    uuid::Builder::from_random_bytes(first).into_uuid()
}
