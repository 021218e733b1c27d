//! Alerts about agents that are gone: real sessions, some in processes of their own that
//! are killed or stopped, and a domain of a real libvirtd.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use palisade_daemon::control::Session;
use palisade_daemon::membership::Membership;
use palisade_integration_server::fleet::alarms::{FAREWELL_GRACE, PROMISE, TICK};
use palisade_protocol::bounded::{List, Text};
use palisade_protocol::control::{AgentReport, Component, Protection, SvmReport, ToServer};
use palisade_protocol::exposure::{ExposureCause, ExposureWindow};
use palisade_protocol::ids::AgentId;
use palisade_protocol::problem::{Problem, ProblemKind};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::libvirtd::{Libvirtd, UUID, domain_is};
use crate::site::{Site, host, until};
use crate::talk::{agent_id, hello, report, svm_id};

/// Where an agent's process finds its membership, and the domain that it claims.
const STATE: &str = "PALISADE_TEST_AGENT_STATE";
const CLAIM: &str = "PALISADE_TEST_AGENT_CLAIM";

/// An agent's control session in a process of its own.
struct Agent {
    member: Membership,
    claim: Uuid,
    child: Child,
    _state: TempDir,
}

/// The process of an [`Agent`]; no test by itself.
#[tokio::test]
#[ignore = "it is the process of an agent, which other tests start"]
async fn agent_process() {
    let Some(state) = std::env::var_os(STATE) else {
        return;
    };
    let member = Membership::load(Path::new(&state)).unwrap().unwrap();
    let claim = std::env::var(CLAIM).unwrap().parse().unwrap();
    let (session, ..) = Session::connect(&member, hello(Some(claim))).await.unwrap();
    session.ended().await;
}

impl Agent {
    async fn start(site: &Site, name: &str, claim: Uuid) -> Self {
        let member = site.join(Component::Agent, host(name, Some(claim))).await;
        let state = tempfile::tempdir().unwrap();
        member.save(state.path()).unwrap();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "alerts::agent_process", "--ignored"])
            .env(STATE, state.path())
            .env(CLAIM, claim.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self {
            member,
            claim,
            child,
            _state: state,
        };
        until(&format!("{name} is connected"), || async {
            agent.state(site).await == "connected"
        })
        .await;
        agent
    }

    fn id(&self) -> AgentId {
        agent_id(&self.member)
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([signal, &self.child.id().to_string()])
            .status();
        assert!(sent.unwrap().success());
    }

    async fn state(&self, site: &Site) -> String {
        state(site, self.id()).await
    }

    /// A session of the same agent, in this process.
    async fn again(&self, site: &Site) -> Session {
        again(&self.member, self.claim, site).await
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn again(member: &Membership, claim: Uuid, site: &Site) -> Session {
    let member = Membership {
        servers: vec![site.control()],
        ..member.clone()
    };
    Session::connect(&member, hello(Some(claim)))
        .await
        .unwrap()
        .0
}

async fn state(site: &Site, id: AgentId) -> String {
    let agents = site.get("agents").await;
    let listed = agents["items"].as_array().unwrap();
    let agent = listed.iter().find(|agent| agent["id"] == id.to_string());
    agent.unwrap()["state"].as_str().unwrap().to_owned()
}

async fn alerts(site: &Site) -> Vec<Value> {
    site.get("alerts").await["items"]
        .as_array()
        .unwrap()
        .clone()
}

/// The agents of the alerts, by name.
async fn names(site: &Site) -> Vec<String> {
    let alerts = alerts(site).await;
    let name = |alert: &Value| alert["agent_name"].as_str().map(str::to_owned);
    let mut names: Vec<String> = alerts.iter().filter_map(name).collect();
    names.sort();
    names
}

async fn until_alerts_are(site: &Site, wanted: &[&str]) {
    until(&format!("the alerts are {wanted:?}"), || async {
        names(site).await == wanted
    })
    .await;
}

fn settings(daemon: &Libvirtd, more: &str) -> String {
    format!("[[libvirt]]\nuri = '{}'\n{more}", daemon.uri())
}

/// Of all agents that are gone, those alone are alerts whose domain runs, who are not
/// granted it, and who do not come back: within the promise, whatever ended them.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_agent_is_an_alert_in_time_and_only_while_it_is_one() {
    let Some(daemon) = Libvirtd::start() else {
        return;
    };
    daemon.define("tiny");
    daemon.must(&["start", "tiny"]);
    let site = Site::start(&settings(&daemon, "")).await;
    domain_is(&site, "tiny", "running").await;

    let domain: Uuid = UUID.parse().unwrap();
    let killed = Agent::start(&site, "killed", domain).await;
    let stopped = Agent::start(&site, "stopped", domain).await;
    let granted = Agent::start(&site, "granted", domain).await;
    let elsewhere = Agent::start(&site, "elsewhere", Uuid::from_u128(9)).await;
    let replaced = Agent::start(&site, "replaced", domain).await;
    let (grantee, new) = (granted.id(), json!({"allowed": "stop", "reason": "a test"}));
    site.api(move |client| client.post::<Value>(&format!("agents/{grantee}/maintenance"), &new))
        .await
        .unwrap();
    assert_eq!(granted.state(&site).await, "connected");
    assert!(alerts(&site).await.is_empty());

    let lost = Instant::now();
    for agent in [&killed, &granted, &elsewhere, &replaced] {
        agent.signal("-KILL");
    }
    // Its socket stays and takes datagrams, and nobody answers them: as a cut cable.
    stopped.signal("-STOP");
    let back = replaced.again(&site).await;
    let wanted = ["killed", "stopped"];
    while names(&site).await != wanted {
        assert!(
            lost.elapsed() < PROMISE,
            "after {PROMISE:?} the alerts are {:?}",
            names(&site).await
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    println!("alerts {:?} after the loss", lost.elapsed());
    // Whoever else was lost at that moment would be an alert by then.
    tokio::time::sleep(PROMISE.saturating_sub(lost.elapsed())).await;
    assert_eq!(names(&site).await, wanted);
    assert_eq!(site.get("status").await["alerts"], 2);
    assert_eq!(granted.state(&site).await, "maintenance");
    assert_eq!(elsewhere.state(&site).await, "lost");
    assert_eq!(killed.state(&site).await, "lost");
    let alert = alerts(&site).await[0].clone();
    assert_eq!(
        (&alert["kind"], &alert["severity"], &alert["domain_name"]),
        // Another agent that says it is in this domain is there.
        (&"agent_lost".into(), &"warning".into(), &"tiny".into())
    );
    assert_eq!(alert["domain"], UUID);
    assert_eq!(alerts(&site).await[0], alert, "it stays the same");

    // Back, and gone again, by a word this time: closing is no excuse.
    let session = killed.again(&site).await;
    until_alerts_are(&site, &["stopped"]).await;
    session.close();
    until_alerts_are(&site, &["killed", "stopped"]).await;
    // A grant ends it, and so does the end of the domain.
    let (id, new) = (
        killed.id(),
        json!({"allowed": "remove", "reason": "a test"}),
    );
    site.api(move |client| client.post::<Value>(&format!("agents/{id}/maintenance"), &new))
        .await
        .unwrap();
    assert_eq!(names(&site).await, ["stopped"]);
    daemon.must(&["destroy", "tiny"]);
    until_alerts_are(&site, &[]).await;
    drop(back);
    site.server.stop().await;
}

/// Three agents say goodbye, as a guest's service manager has them do. One domain restarts
/// meanwhile and its agent comes back, one restarts and its agent does not, and one does
/// not restart: that alone is an alert in time.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_a_guest_is_no_alert_unless_its_agent_stays_away() {
    const GRACE: Duration = Duration::from_secs(40);
    let Some(daemon) = Libvirtd::start() else {
        return;
    };
    let settings = format!(
        "{}[fleet]\nagent_boot_grace = '40s'\n[inventory]\npoll = '1h'",
        settings(&daemon, "")
    );
    let domains: Vec<Uuid> = (0..3).map(|_| Uuid::new_v4()).collect();
    let names = ["back", "away", "stopped"];
    for (name, uuid) in names.iter().zip(&domains) {
        daemon.define_as(name, &uuid.to_string());
        daemon.must(&["start", name]);
    }
    let site = Site::start(&settings).await;
    until("all domains run", || async {
        let host = site.get("inventory").await["items"][0].clone();
        let domains = host["domains"].as_array().unwrap().clone();
        domains.len() == 3 && domains.iter().all(|domain| domain["state"] == "running")
    })
    .await;
    let mut sessions = Vec::new();
    for (name, uuid) in names.iter().zip(&domains) {
        let member = site.join(Component::Agent, host(name, Some(*uuid))).await;
        let session = again(&member, *uuid, &site).await;
        sessions.push((member, session));
    }
    // Long enough to be seen in their domains.
    tokio::time::sleep(3 * TICK).await;
    assert!(alerts(&site).await.is_empty());
    let lost = Instant::now();
    for (_, session) in &sessions {
        session.close();
    }
    // The guests stop what else they run, and two of them restart.
    tokio::time::sleep(FAREWELL_GRACE - Duration::from_secs(8)).await;
    for name in ["back", "away"] {
        daemon.must(&["reset", name]);
    }
    let reset = Instant::now();
    let alert_at = async |wanted: &[&str]| {
        while self::names(&site).await != wanted {
            let shown = self::names(&site).await;
            assert!(lost.elapsed() < 3 * GRACE, "{wanted:?}: {shown:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    alert_at(&["stopped"]).await;
    assert!(lost.elapsed() < PROMISE, "{:?}", lost.elapsed());
    let _back = again(&sessions[0].0, domains[0], &site).await;
    alert_at(&["away", "stopped"]).await;
    let late = reset.elapsed();
    println!("no alert for {late:?} after the restart");
    assert!(late >= GRACE, "{late:?}");
    // A restart of those that are alerts already gives them the time that they need.
    daemon.must(&["reset", "stopped"]);
    alert_at(&["away"]).await;
    let _stopped = again(&sessions[2].0, domains[2], &site).await;
    for name in names {
        daemon.must(&["destroy", name]);
    }
    site.server.stop().await;
}

/// Whether their guests run cannot be told: they are alerts, not so soon, and with other
/// words.
#[tokio::test]
async fn an_agent_that_no_domain_accounts_for_is_an_alert_when_it_is_gone_for_long() {
    let more = "[[libvirt]]\nuri = 'test:///default'\n[fleet]\nagent_boot_grace = '7s'";
    let site = Site::start(more).await;
    let unknown = Uuid::new_v4();
    let mut sessions = Vec::new();
    for (name, claim) in [
        ("nameless", None),
        ("strange", Some(unknown)),
        ("there", None),
    ] {
        let member = site.join(Component::Agent, host(name, claim)).await;
        let (session, ..) = Session::connect(&member, hello(claim)).await.unwrap();
        sessions.push((member, session));
    }
    // It is said while they are there.
    assert_eq!(site.get("status").await["agents"]["unplaced"], 3);
    let lost = Instant::now();
    sessions[0].1.close();
    sessions[1].1.close();
    until_alerts_are(&site, &["nameless", "strange"]).await;
    assert!(
        lost.elapsed() >= Duration::from_secs(7),
        "{:?}",
        lost.elapsed()
    );
    let alerts = alerts(&site).await;
    let of = |name: &str| {
        let mut all = alerts.iter();
        all.find(|alert| alert["agent_name"] == name).unwrap()
    };
    let says = |name: &str, key: &str, what: &str| {
        let text = of(name)[key].as_str().unwrap();
        assert!(text.contains(what), "{text}");
    };
    for name in ["nameless", "strange"] {
        assert_eq!(of(name)["severity"], "warning");
        says(name, "text", "cannot be told");
        says(name, "remedy", "palisade agent revoke");
    }
    says("strange", "text", &unknown.to_string());
    says("strange", "remedy", "[[libvirt]]");
    says("nameless", "remedy", "SMBIOS");
    assert!(of("nameless")["domain"].is_null());
    // Back.
    let member = sessions[0].0.clone();
    let (_session, ..) = Session::connect(&member, hello(None)).await.unwrap();
    until_alerts_are(&site, &["strange"]).await;
    site.server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_who_does_not_come_back_is_lost_and_who_is_off_is_not() {
    let Some(daemon) = Libvirtd::start() else {
        return;
    };
    daemon.define("tiny");
    let more = settings(&daemon, "[fleet]\nagent_boot_grace = '8s'");
    let site = Site::start(&more).await;
    let domain: Uuid = UUID.parse().unwrap();
    let joined = |name: &'static str| site.join(Component::Agent, host(name, Some(domain)));
    let (silent, steady, revoked) = (
        joined("silent").await,
        joined("steady").await,
        joined("revoked").await,
    );
    domain_is(&site, "tiny", "shutoff").await;
    let session = again(&silent, domain, &site).await;
    session.close();
    until("silent is lost", || async {
        state(&site, agent_id(&silent)).await == "lost"
    })
    .await;
    let Site { dir, server } = site;
    server.stop().await;

    daemon.must(&["start", "tiny"]);
    let site = Site::start_in(dir, &more).await;
    let _steady = again(&steady, domain, &site).await;
    until_alerts_are(&site, &["revoked", "silent"]).await;
    let id = agent_id(&revoked);
    site.api(move |client| client.delete(&format!("agents/{id}")))
        .await
        .unwrap();
    assert_eq!(names(&site).await, ["silent"]);
    // One that is connected says that it is in the same domain, as if the guest had joined
    // anew: so it may be, and so it is said.
    let alert = alerts(&site).await[0].clone();
    assert_eq!(alert["severity"], "warning");
    let says = |key: &str, what: &str| alert[key].as_str().unwrap().contains(what);
    assert!(says("text", "the agent steady"), "{alert}");
    assert!(says("remedy", &agent_id(&silent).to_string()), "{alert}");
    // The same domain starts anew: the alert is over, and its guest has time to boot.
    daemon.must(&["destroy", "tiny"]);
    until_alerts_are(&site, &[]).await;
    daemon.must(&["start", "tiny"]);
    domain_is(&site, "tiny", "running").await;
    assert!(alerts(&site).await.is_empty());
    until_alerts_are(&site, &["silent"]).await;
    site.server.stop().await;
}

/// What agents say of themselves: no libvirt is needed to hear it.
#[tokio::test]
async fn a_guest_without_verdicts_is_an_alert_until_it_has_them() {
    const MINUTE: u64 = 60_000;
    let site = Site::start("").await;
    let member = site.join(Component::Agent, host("exposed", None)).await;
    let (session, ..) = Session::connect(&member, hello(None)).await.unwrap();
    // By a clock of its own.
    let clock_ms = 1_000_000_000;
    let window = |age_ms: u64| ExposureWindow {
        id: 7,
        from_ms: clock_ms - age_ms,
        causes: List::cut([ExposureCause::Bypass, ExposureCause::NoSvm]),
        opens: 12,
        ..ExposureWindow::default()
    };
    let over = ExposureWindow {
        until_ms: Some(clock_ms),
        ..window(9 * MINUTE)
    };
    let say = async |windows: &[ExposureWindow]| {
        let report = AgentReport {
            protection: Protection::Monitoring,
            svm: None,
            events: Default::default(),
            clock_ms,
            exposure: List::cut(windows.iter().cloned()),
            maintenance: None,
        };
        let said = session.request(&ToServer::AgentReport(report)).await;
        said.unwrap();
    };
    // Neither one that is over, nor one that has just begun.
    say(std::slice::from_ref(&over)).await;
    assert!(alerts(&site).await.is_empty());
    say(&[window(MINUTE / 2)]).await;
    assert!(alerts(&site).await.is_empty());
    say(&[window(MINUTE), over.clone()]).await;
    let alert = alerts(&site).await[0].clone();
    assert_eq!(
        (&alert["kind"], &alert["severity"]),
        (&json!("agent_exposed"), &json!("warning"))
    );
    assert_eq!(alert["agent"], agent_id(&member).to_string());
    let says = |key: &str, what: &str| alert[key].as_str().unwrap().contains(what);
    assert!(
        says("text", "no Protection Server") && says("text", "12 opens"),
        "{alert}"
    );
    assert!(
        says("remedy", "bypass --end") && says("remedy", "explain"),
        "{alert}"
    );
    assert_eq!(alerts(&site).await[0], alert, "it stays the same");
    assert_eq!(site.get("status").await["alerts"], 1);
    let shown = site.get("exposures").await["items"].clone();
    let untils: Vec<&Value> = shown
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["until"])
        .collect();
    assert!(untils[0].is_null() && untils[1].is_string(), "{shown}");
    assert_eq!(shown[0]["causes"], json!(["bypass", "no_svm"]));
    say(&[over]).await;
    assert!(alerts(&site).await.is_empty());
    // Who is gone is another matter.
    say(&[window(MINUTE)]).await;
    session.close();
    until_alerts_are(&site, &[]).await;
    site.server.stop().await;
}

#[tokio::test]
async fn leave_that_the_guest_gave_back_is_over() {
    let site = Site::start("").await;
    let member = site.join(Component::Agent, host("guest", None)).await;
    let id = agent_id(&member);
    let (session, ..) = Session::connect(&member, hello(None)).await.unwrap();
    let new = json!({"allowed": "stop", "reason": "a test", "for_s": 604_800});
    let path = format!("agents/{id}/maintenance");
    let made: Value = site
        .api(move |client| client.post(&path, &new))
        .await
        .unwrap();
    let grant: Uuid = made["id"].as_str().unwrap().parse().unwrap();
    let granted = async |site: &Site| site.get("agents").await["items"][0]["maintenance"].clone();
    for (said, stays) in [(None, true), (Some(grant), true), (None, false)] {
        let report = AgentReport {
            protection: Protection::Blocking,
            svm: None,
            events: Default::default(),
            clock_ms: 1,
            exposure: List::default(),
            maintenance: said,
        };
        session
            .request(&ToServer::AgentReport(report))
            .await
            .unwrap();
        assert_eq!(granted(&site).await.is_object(), stays, "{said:?}");
    }
    session.close();
    // For good.
    let Site { dir, server } = site;
    server.stop().await;
    let site = Site::start_in(dir, "").await;
    assert!(granted(&site).await.is_null());
}

/// A Protection Server has no login: what it says is wrong with it is an alert while it says
/// so, and so is its silence.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_protection_server_is_an_alert_until_it_is_not() {
    let site = Site::start("[fleet]\nsvm_lost_after = '5s'").await;
    let member = site.join(Component::Svm, host("svm-one", None)).await;
    let kinds = async || -> Vec<String> {
        let kind = |alert: &Value| {
            assert_eq!(
                (&alert["svm_name"], &alert["agent"]),
                (&"svm-one".into(), &Value::Null)
            );
            alert["kind"].as_str().unwrap().to_owned()
        };
        alerts(&site).await.iter().map(kind).collect()
    };
    let (session, ..) = Session::connect(&member, hello(None)).await.unwrap();
    let signature = format!("Some.{}", Uuid::new_v4());
    let wrong = [
        ProblemKind::EngineDown {
            engine: Text::cut("yara-x"),
        },
        ProblemKind::SignatureBraked {
            engine: Text::cut("clamav"),
            signature: Text::cut(&signature),
        },
    ];
    let say = async |wrong: &[ProblemKind]| {
        let problem = |(since_ms, kind): (u64, &ProblemKind)| Problem {
            kind: kind.clone(),
            since_ms,
        };
        let report = SvmReport {
            problems: List::cut((1..).zip(wrong).map(problem)),
            ..report(1)
        };
        session.request(&ToServer::SvmReport(report)).await.unwrap();
    };
    say(&wrong).await;
    assert_eq!(kinds().await, ["svm_engine_down", "svm_signature_braked"]);
    let told = alerts(&site).await;
    assert_eq!(told[0]["severity"], "critical");
    assert!(told[1]["remedy"].as_str().unwrap().contains(&signature));
    assert_ne!(told[0]["id"], told[1]["id"]);
    say(&wrong[1..]).await;
    assert_eq!(kinds().await, ["svm_signature_braked"]);
    say(&[]).await;
    assert!(kinds().await.is_empty());

    say(&wrong).await;
    session.close();
    // What it said last is not known to be so any more.
    until("its end is the alert", || async {
        kinds().await == ["svm_lost"]
    })
    .await;
    let gone = alerts(&site).await.remove(0);
    assert_eq!(gone["severity"], "critical");
    let (session, ..) = Session::connect(&member, hello(None)).await.unwrap();
    until("it is back", || async {
        !kinds().await.contains(&"svm_lost".to_owned())
    })
    .await;
    session.close();
    until("it is gone again", || async {
        kinds().await == ["svm_lost"]
    })
    .await;
    let revoke = format!("svms/{}", svm_id(&member));
    site.api(move |client| client.delete(&revoke))
        .await
        .unwrap();
    assert!(kinds().await.is_empty());
    site.server.stop().await;
}
