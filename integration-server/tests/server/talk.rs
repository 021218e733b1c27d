//! Control sessions, with the real client at the other end.

use std::time::Duration;

use palisade_daemon::control::{ControlError, Session};
use palisade_daemon::membership::Membership;
use palisade_protocol::bounded::{List, Text};
use palisade_protocol::control::{
    AgentReport, Component, ControlFrame, DeniedCode, FromServer, Hello, InfrastructurePath,
    LicenceState, Protection, SvmAddress, SvmList, SvmReport, ToServer, Welcome,
};
use palisade_protocol::identity;
use palisade_protocol::ids::{AgentId, SvmId};
use palisade_protocol::scan::LoadHint;
use palisade_protocol::spiffe::Role;
use serde_json::Value;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::envelopes::Raw;
use crate::site::{Site, host, until};
use crate::store::detection;

/// Only a hang reaches it.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn hello(product_uuid: Option<Uuid>) -> Hello {
    Hello {
        version: Text::cut("0.1.0"),
        host: host("guest", product_uuid),
    }
}

pub async fn connect(member: &Membership) -> (Session, Welcome, mpsc::Receiver<FromServer>) {
    Session::connect(member, hello(None)).await.unwrap()
}

pub fn report(port: u16) -> SvmReport {
    SvmReport {
        addresses: List::cut([SvmAddress {
            network: Text::default(),
            address: ([127, 0, 0, 1], port).into(),
        }]),
        path: InfrastructurePath {
            hypervisor: Text::cut("hv1"),
            ..Default::default()
        },
        licence: LicenceState::Valid,
        average_load: LoadHint {
            load_permille: 250,
            queue_wait_ms: 0,
        },
        agents: 3,
        generations: List::default(),
        draining: false,
        tags: List::default(),
        problems: List::default(),
        tenants: List::default(),
        followed: None,
    }
}

pub fn blocking(svm: Option<SvmId>) -> ToServer {
    ToServer::AgentReport(AgentReport {
        protection: Protection::Blocking,
        svm,
        events: Default::default(),
        clock_ms: 1,
        exposure: Default::default(),
        maintenance: None,
    })
}

pub async fn list(session: &Session, etag: u64) -> Option<SvmList> {
    match session
        .request(&ToServer::GetSvmList { etag })
        .await
        .unwrap()
    {
        FromServer::SvmList(list) => Some(list),
        FromServer::NotModified => None,
        other => panic!("{other:?}"),
    }
}

pub async fn pushed(pushes: &mut mpsc::Receiver<FromServer>) -> SvmList {
    match tokio::time::timeout(PATIENCE, pushes.recv())
        .await
        .unwrap()
        .unwrap()
    {
        FromServer::SvmList(list) => list,
        other => panic!("{other:?}"),
    }
}

/// An agent that says it is in this domain, and has its list.
pub async fn agent_in(site: &Site, domain: Uuid) -> (Session, mpsc::Receiver<FromServer>) {
    let member = site.join(Component::Agent, host("guest", None)).await;
    let greeting = hello(Some(domain));
    let (session, _, pushes) = Session::connect(&member, greeting).await.unwrap();
    list(&session, 0).await.unwrap();
    (session, pushes)
}

pub fn svm_id(member: &Membership) -> SvmId {
    let Role::Svm(id) = member.identity.id().role else {
        panic!()
    };
    id
}

pub fn agent_id(member: &Membership) -> AgentId {
    let Role::Agent { id, .. } = &member.identity.id().role else {
        panic!()
    };
    *id
}

#[tokio::test]
async fn a_list_is_given_pushed_on_change_and_not_sent_twice() {
    let site = Site::start("").await;
    let agent = site.join(Component::Agent, host("guest", None)).await;
    let svm = site.join(Component::Svm, host("svm-1", None)).await;
    let (agent, welcome, mut pushes) = connect(&agent).await;
    assert!(welcome.epoch > 0 && welcome.report_every_s == 300);
    let empty = list(&agent, 0).await.unwrap();
    assert!(empty.svms.is_empty() && empty.etag != 0);
    assert!(list(&agent, empty.etag).await.is_none());

    let id = svm_id(&svm);
    let (svm, _, _svm_pushes) = connect(&svm).await;
    assert_eq!(
        svm.request(&ToServer::SvmReport(report(1))).await.unwrap(),
        FromServer::Ack
    );
    let first = pushed(&mut pushes).await;
    assert_eq!(
        (first.svms[0].id, first.svms[0].name.as_str()),
        (id, "svm-1")
    );
    assert_ne!(first.etag, empty.etag);
    assert!(list(&agent, first.etag).await.is_none());

    let draining = SvmReport {
        draining: true,
        ..report(1)
    };
    svm.request(&ToServer::SvmReport(draining)).await.unwrap();
    assert!(pushed(&mut pushes).await.svms[0].report.draining);

    let svms = site.get("svms").await;
    let shown = &svms["items"][0];
    assert_eq!(
        (&shown["state"], &shown["agents"]),
        (&"connected".into(), &3.into())
    );
    assert_eq!(
        (&shown["path"], &shown["load"]),
        (&"hv1".into(), &0.25.into())
    );
    svm.close();
    until("the SVM is lost", || async {
        site.get("svms").await["items"][0]["state"] == "lost"
    })
    .await;
    assert_eq!(
        list(&agent, 0).await.unwrap().svms.len(),
        1,
        "still offered for a while"
    );

    site.api(move |client| client.delete(&format!("svms/{id}")))
        .await
        .unwrap();
    assert!(pushed(&mut pushes).await.svms.is_empty());
}

#[tokio::test]
async fn who_is_reserved_for_tenants_is_in_no_other_ones_list() {
    let site = Site::start("").await;
    let svm = site.join(Component::Svm, host("svm-1", None)).await;
    let acme = site.join_of("acme", host("guest-a", None)).await;
    let other = site.join(Component::Agent, host("guest-b", None)).await;
    let (svm, ..) = connect(&svm).await;
    let say = async |tenants: &[&str]| {
        let tenants = tenants.iter().map(|name| name.parse().unwrap());
        let report = SvmReport {
            tenants: List::cut(tenants),
            ..report(1)
        };
        svm.request(&ToServer::SvmReport(report)).await.unwrap();
    };
    say(&["acme"]).await;
    let ((acme, _, mut to_acme), (other, _, mut to_other)) =
        (connect(&acme).await, connect(&other).await);
    let entry = list(&acme, 0).await.unwrap().svms[0].clone();
    assert!(entry.report.tenants.is_empty(), "nobody is told who else");
    assert!(list(&other, 0).await.unwrap().svms.is_empty());
    // And on a change both are told, each its own.
    say(&["other", "default"]).await;
    assert!(pushed(&mut to_acme).await.svms.is_empty());
    assert_eq!(pushed(&mut to_other).await.svms.len(), 1);
    say(&[]).await;
    assert_eq!(pushed(&mut to_acme).await.svms.len(), 1);
}

#[tokio::test]
async fn detections_are_stored_before_they_are_acknowledged_and_once() {
    let site = Site::start("").await;
    let member = site.join(Component::Agent, host("guest", None)).await;
    let (agent, _, _pushes) = connect(&member).await;
    let mut outside = detection(b"/tmp/b");
    outside.container = None;
    let mut found = detection(b"/tmp/a\n\xff");
    // As no agent writes it.
    found.container = Some(Text::cut("lxc:we\n\u{202e}b"));
    let found = List::cut([found, outside]);
    let message = ToServer::Detections(found);
    assert_eq!(agent.request(&message).await.unwrap(), FromServer::Ack);
    assert_eq!(
        site.server.fleet().store.count_detections().await.unwrap(),
        2
    );
    agent.close();
    let (agent, _, _pushes) = connect(&member).await;
    assert_eq!(agent.request(&message).await.unwrap(), FromServer::Ack);
    let shown = site.get("detections").await;
    assert_eq!(shown["items"].as_array().unwrap().len(), 2);
    assert_eq!(shown["items"][1]["path"], "/tmp/a\\x0a\\xff");
    assert_eq!(shown["items"][1]["member"], "b.tar/c.exe");
    let containers = [0, 1].map(|n| shown["items"][n]["container"].clone());
    assert_eq!(
        containers,
        [Value::Null, "lxc:we\\x0a\\xe2\\x80\\xaeb".into()]
    );
    assert_eq!(shown["items"][1]["agent"], agent_id(&member).to_string());
    assert_eq!(shown["items"][1]["time"], "2023-11-14T22:13:20Z");
}

#[tokio::test]
async fn each_role_says_only_what_is_its_own() {
    let site = Site::start("").await;
    let agent = site.join(Component::Agent, host("guest", None)).await;
    let svm = site.join(Component::Svm, host("svm-1", None)).await;
    let (agent, _, _agent_pushes) = connect(&agent).await;
    let (svm, _, _svm_pushes) = connect(&svm).await;
    let mut other_tenant = detection(b"/x");
    other_tenant.tenant = "other".parse().unwrap();
    for (session, message) in [
        (&agent, ToServer::SvmReport(report(1))),
        (&agent, ToServer::Detections(List::cut([other_tenant]))),
        (&svm, blocking(None)),
        (&svm, ToServer::Detections(List::cut([detection(b"/x")]))),
        (&svm, ToServer::GetSvmList { etag: 0 }),
    ] {
        let refused = session.request(&message).await;
        let Err(ControlError::Denied(denied)) = refused else {
            panic!("{refused:?}")
        };
        assert_eq!(denied.code, DeniedCode::BadRequest);
    }
    // The sessions go on.
    assert_eq!(
        agent.request(&blocking(None)).await.unwrap(),
        FromServer::Ack
    );
    assert_eq!(
        svm.request(&ToServer::SvmReport(report(1))).await.unwrap(),
        FromServer::Ack
    );
    assert_eq!(
        site.server.fleet().store.count_detections().await.unwrap(),
        0
    );
}

#[tokio::test]
async fn a_renewed_certificate_is_the_same_component_with_a_new_key() {
    let site = Site::start("").await;
    let member = site.join(Component::Agent, host("guest", None)).await;
    let (agent, _, _pushes) = connect(&member).await;
    let key = identity::new_key().unwrap();
    let csr = List::new(identity::certificate_request(&key).unwrap()).unwrap();
    let answer = agent.request(&ToServer::Renew { csr }).await.unwrap();
    let FromServer::Renewed(enrolled) = answer else {
        panic!("{answer:?}")
    };
    let chain = enrolled
        .chain
        .iter()
        .map(|der| der.to_vec().into())
        .collect();
    let renewed = identity::Identity::new(&key, chain).unwrap();
    assert_eq!(renewed.id(), member.identity.id());
    let member = Membership {
        identity: renewed,
        ..member
    };
    let (agent, _, _pushes) = connect(&member).await;
    assert_eq!(
        agent.request(&blocking(None)).await.unwrap(),
        FromServer::Ack
    );
    let bad = ToServer::Renew {
        csr: List::cut([1, 2, 3]),
    };
    assert!(matches!(
        agent.request(&bad).await,
        Err(ControlError::Denied(_))
    ));
}

#[tokio::test]
async fn a_revoked_component_is_cut_and_stays_out() {
    let site = Site::start("").await;
    let member = site.join(Component::Agent, host("guest", None)).await;
    let (agent, _, _pushes) = connect(&member).await;
    let id = agent_id(&member);
    site.api(move |client| client.delete(&format!("agents/{id}")))
        .await
        .unwrap();
    tokio::time::timeout(PATIENCE, agent.ended()).await.unwrap();
    let refused = Session::connect(&member, hello(None)).await;
    let Err(ControlError::Denied(denied)) = refused else {
        panic!("not refused")
    };
    assert_eq!(denied.code, DeniedCode::NotAdmitted);
    let gone = site
        .api(move |client| client.delete(&format!("agents/{id}")))
        .await
        .unwrap_err();
    assert!(gone.to_string().contains("no agent"), "{gone}");
}

#[tokio::test]
async fn a_component_that_comes_back_replaces_its_old_session() {
    let site = Site::start("").await;
    let member = site.join(Component::Agent, host("guest", None)).await;
    let (old, first, _old_pushes) = connect(&member).await;
    let (new, second, _new_pushes) = connect(&member).await;
    assert!(second.epoch > first.epoch);
    tokio::time::timeout(PATIENCE, old.ended()).await.unwrap();
    assert_eq!(new.request(&blocking(None)).await.unwrap(), FromServer::Ack);
    assert_eq!(site.get("agents").await["items"][0]["state"], "connected");
}

#[tokio::test]
async fn sessions_epochs_and_lists_survive_a_restart_of_the_server() {
    let site = Site::start("").await;
    let agent = site.join(Component::Agent, host("guest", None)).await;
    let svm = site.join(Component::Svm, host("svm-1", None)).await;
    let (session, first, _pushes) = connect(&agent).await;
    let (svm_session, _, _svm_pushes) = connect(&svm).await;
    svm_session
        .request(&ToServer::SvmReport(report(1)))
        .await
        .unwrap();
    let before = list(&session, 0).await.unwrap();
    let Site { dir, server } = site;
    server.stop().await;
    tokio::time::timeout(PATIENCE, session.ended())
        .await
        .unwrap();
    let site = Site::start_in(dir, "").await;
    let agent = Membership {
        servers: vec![site.control()],
        ..agent
    };
    let (session, second, _pushes) = connect(&agent).await;
    assert!(second.epoch > first.epoch);
    assert!(
        list(&session, before.etag).await.is_none(),
        "an equal list has its version still"
    );
}

#[tokio::test]
async fn a_certificate_that_ran_out_still_opens_a_session_to_renew() {
    // The path is judged at the certificate's end, so the CA must be older than that.
    let dir = tempfile::tempdir().unwrap();
    let sixty_days_ago = palisade_integration_server::time::now_ms() - 60 * 24 * 3600 * 1000;
    palisade_integration_server::ca::Authority::open(
        &dir.path().join("var/server/ca"),
        &"palisade".parse().unwrap(),
        sixty_days_ago,
    )
    .unwrap();
    let site = Site::start_in(dir, "").await;
    let member = site.join(Component::Agent, host("guest", None)).await;
    let key = identity::new_key().unwrap();
    let csr = identity::certificate_request(&key).unwrap();
    let request =
        palisade_integration_server::ca::request::CertificateRequest::from_der(&csr).unwrap();
    let forty_days_ago = palisade_integration_server::time::now_ms() - 40 * 24 * 3600 * 1000;
    let authority = &site.server.fleet().authority;
    let chain = authority
        .issue(member.identity.id(), &request, forty_days_ago)
        .unwrap();
    let old = identity::Identity::new(&key, chain).unwrap();
    let (session, _, _pushes) = connect(&Membership {
        identity: old,
        ..member
    })
    .await;
    let csr = List::new(identity::certificate_request(&key).unwrap()).unwrap();
    let renewed = session.request(&ToServer::Renew { csr }).await.unwrap();
    assert!(matches!(renewed, FromServer::Renewed(_)));
}

#[tokio::test]
async fn a_server_is_no_member_of_the_fleet_and_a_stranger_is_not_admitted() {
    let site = Site::start("").await;
    let member = site.join(Component::Agent, host("guest", None)).await;
    let authority = &site.server.fleet().authority;
    let now_ms = palisade_integration_server::time::now_ms();
    let id = site.server.fleet().own.identity().id().clone();
    let identity = authority.own_identity(&id, now_ms).unwrap();
    let refused = Session::connect(
        &Membership {
            identity,
            ..member.clone()
        },
        hello(None),
    )
    .await;
    assert!(matches!(refused, Err(ControlError::Unreachable(_))));

    // Vouched for by the site's CA, and unknown to its store.
    let id = palisade_protocol::spiffe::SpiffeId::svm(authority.deployment(), SvmId::random());
    let identity = authority.own_identity(&id, now_ms).unwrap();
    let refused = Session::connect(&Membership { identity, ..member }, hello(None)).await;
    let Err(ControlError::Denied(denied)) = refused else {
        panic!("not refused")
    };
    assert_eq!(denied.code, DeniedCode::NotAdmitted);
}

#[tokio::test]
async fn a_guest_whose_clock_is_an_hour_behind_can_begin() {
    let site = Site::start("").await;
    let member = site.join(Component::Agent, host("guest", None)).await;
    let mut late = Raw::connect(&member).await;
    let hour_ago = palisade_integration_server::time::now_ms() - 3600 * 1000;
    let greeting = ToServer::Hello(hello(None));
    let (envelope, _) = late.sealer.seal(&greeting, None, hour_ago).unwrap();
    late.send(&ControlFrame::Envelope(envelope)).await;
    assert!(matches!(late.answer().await, Some(FromServer::Welcome(_))));
}

#[tokio::test]
async fn a_claimed_domain_gives_the_agent_its_place_and_the_domain_its_protection() {
    let uuid = Uuid::from_u128(0x6695eb01_f6a4_8304_79aa_97f2502e193f);
    let site = Site::start(
        "[[libvirt]]\nuri = 'test:///default'\ndatacenter = 'dc'\ncluster = 'c'\nhost = 'hv'",
    )
    .await;
    let member = site.join(Component::Agent, host("guest", None)).await;
    until("the host is up", || async {
        site.get("inventory").await["items"][0]["state"] == "up"
    })
    .await;
    let protected = || async {
        site.get("inventory").await["items"][0]["domains"][0]["protected"]
            .as_bool()
            .unwrap()
    };
    let (session, _, _pushes) = Session::connect(&member, hello(Some(uuid))).await.unwrap();
    assert_eq!(
        list(&session, 0).await.unwrap().own_path.to_string(),
        "dc/c/hv"
    );
    assert!(
        !protected().await,
        "connected, and says nothing of protection yet"
    );
    session.request(&blocking(None)).await.unwrap();
    assert!(protected().await);
    let agents = site.get("agents").await;
    assert_eq!(agents["items"][0]["domain"], uuid.to_string());
    assert_eq!(agents["items"][0]["domain_name"], "test");
    assert_eq!(site.get("status").await["domains"]["protected"], 1);
    session.close();
    until("protection is gone with the session", || async {
        !protected().await
    })
    .await;
}
