//! What the fleet promises when something is wrong with it: lost and revoked Protection
//! Servers, clones, disputed domains, hosts that nobody can read, a store that is gone, and
//! strangers at the control port.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use palisade_daemon::control::{ControlError, Session};
use palisade_daemon::membership::Membership;
use palisade_integration_server::fleet::listener::{MAX_UNENROLLED_OF_SOURCE, UNPROVEN_HANDSHAKES};
use palisade_protocol::control::{
    self, Component, DeniedCode, FromServer, Hello, SvmList, SvmReport, ToServer,
};
use palisade_protocol::endpoint::{self, Bounds};
use palisade_protocol::identity;
use palisade_protocol::scan::LoadHint;
use palisade_protocol::tls::{self, Expect, Own};
use palisade_protocol::token::JoinToken;
use palisade_protocol::trust::{Anchor, Trust};
use rcgen::KeyPair;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::Value;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::envelopes::Raw;
use crate::site::{Site, host, until};
use crate::talk::{PATIENCE, agent_id, blocking, connect, hello, list, pushed, report, svm_id};

/// The domain of libvirt's test driver.
const DOMAIN: Uuid = uuid::uuid!("6695eb01-f6a4-8304-79aa-97f2502e193f");

async fn alerts(site: &Site, kind: &str) -> Vec<Value> {
    let alerts = site.get("alerts").await;
    let all = alerts["items"].as_array().unwrap().iter();
    all.filter(|alert| alert["kind"] == kind).cloned().collect()
}

/// The server may be the one that is cut off: who takes its agents' only Protection Server
/// away for that leaves them with none.
#[tokio::test]
async fn an_svm_that_is_gone_for_long_is_listed_as_absent() {
    let site = Site::start("[fleet]\nsvm_lost_after = '1s'").await;
    let member = site.join(Component::Svm, host("svm-1", None)).await;
    let agent = site.join(Component::Agent, host("guest", None)).await;
    let (agent, _, mut pushes) = connect(&agent).await;
    let (svm, ..) = connect(&member).await;
    svm.request(&ToServer::SvmReport(report(1))).await.unwrap();
    while list(&agent, 0).await.unwrap().svms.is_empty() {}
    svm.close();
    let absent = async |pushes: &mut _, wanted: bool| loop {
        let list = pushed(pushes).await;
        assert_eq!(list.svms.len(), 1, "it is never taken away");
        if list.svms[0].absent == wanted {
            return;
        }
    };
    absent(&mut pushes, true).await;
    let _back = connect(&member).await;
    absent(&mut pushes, false).await;
}

/// Agents are told who was revoked, and a restart of the server forgets none.
#[tokio::test]
async fn a_revoked_svm_is_named() {
    let site = Site::start("").await;
    let svm = site.join(Component::Svm, host("svm-1", None)).await;
    let guest = site.join(Component::Agent, host("guest", None)).await;
    let id = svm_id(&svm);
    let (agent, _, mut pushes) = connect(&guest).await;
    let (svm, ..) = connect(&svm).await;
    svm.request(&ToServer::SvmReport(report(1))).await.unwrap();
    let is_named = |list: &SvmList| list.revoked.contains(&id);
    assert!(!is_named(&list(&agent, 0).await.unwrap()));
    site.api(move |client| client.delete(&format!("svms/{id}")))
        .await
        .unwrap();
    loop {
        let list = pushed(&mut pushes).await;
        if list.svms.is_empty() {
            assert!(is_named(&list));
            break;
        }
    }
    let Site { dir, server } = site;
    server.stop().await;
    let site = Site::start_in(dir, "").await;
    let servers = vec![site.control()];
    let (agent, ..) = connect(&Membership { servers, ..guest }).await;
    assert!(is_named(&list(&agent, 0).await.unwrap()));
}

/// An answer that was made before a change is on the wire before what is pushed for that
/// change: the last list that comes is the newest.
#[tokio::test(flavor = "multi_thread")]
async fn no_older_list_comes_after_a_newer_one() {
    let site = Site::start("").await;
    let svm = site.join(Component::Svm, host("svm-1", None)).await;
    let agent = site.join(Component::Agent, host("guest", None)).await;
    let (svm, ..) = connect(&svm).await;
    let say = async |load_permille| {
        let average_load = LoadHint {
            load_permille,
            queue_wait_ms: 0,
        };
        let report = SvmReport {
            average_load,
            ..report(1)
        };
        svm.request(&ToServer::SvmReport(report)).await.unwrap();
    };
    say(0).await;
    let mut raw = Raw::connect(&agent).await;
    raw.greet().await;
    let mut next = async |ask: bool| {
        if ask {
            let frame = raw.seal(&ToServer::GetSvmList { etag: 0 });
            raw.send(&frame).await;
            return 0;
        }
        match tokio::time::timeout(PATIENCE, raw.answer()).await.unwrap() {
            Some(FromServer::SvmList(list)) => list.svms[0].report.average_load.load_permille,
            other => panic!("{other:?}"),
        }
    };
    next(true).await;
    assert_eq!(next(false).await, 0);
    for round in 1..=3 {
        // A change whose push is due soon, an answer meanwhile, and another change.
        say(round * 1000).await;
        next(true).await;
        say(round * 1000 + 500).await;
        let seen = [next(false).await, next(false).await];
        assert_eq!(seen, [round * 1000, round * 1000 + 500]);
    }
}

/// Two machines with one identity: the first few replacements may be restarts; then the one
/// that is there stays, and somebody is told.
#[tokio::test]
async fn a_clone_is_held_and_its_original_unharmed() {
    let site = Site::start("").await;
    let member = site.join(Component::Agent, host("guest", None)).await;
    let machine = |number| Hello {
        host: palisade_protocol::control::HostFacts {
            boot_id: Some(Uuid::from_u128(number)),
            ..host("guest", None)
        },
        ..hello(None)
    };
    let connect = async |number| Session::connect(&member, machine(number)).await;
    let (original, ..) = connect(1).await.unwrap();
    let (_clone, ..) = connect(2).await.unwrap();
    original.ended().await;
    // The same boot again, as after a cut cable, replaces its own session each time.
    let mut original = connect(1).await.unwrap().0;
    for _ in 0..4 {
        assert!(alerts(&site, "agent_cloned").await.is_empty());
        original = connect(1).await.unwrap().0;
    }
    match connect(2).await {
        Err(ControlError::Denied(denied)) => {
            assert_eq!(denied.code, DeniedCode::NotAdmitted);
            assert!(denied.message.contains("cloned"), "{}", denied.message);
        }
        other => panic!("{:?}", other.map(drop)),
    }
    assert!(original.request(&blocking(None)).await.is_ok());
    let alert = alerts(&site, "agent_cloned").await.remove(0);
    let id = agent_id(&member).to_string();
    assert_eq!(
        (&alert["agent"], &alert["severity"]),
        (&id.into(), &"critical".into())
    );
    // Once it is gone, whoever comes is let in.
    original.close();
    until("it is let in", || async { connect(2).await.is_ok() }).await;
}

/// Which domain it is in is what a guest says. Who says to be in another tenant's learns
/// nothing of it, gets none of its tags, and does not make its loss look less.
#[tokio::test]
async fn a_domain_that_two_tenants_claim_is_nobody_s_until_that_is_settled() {
    let more = "[[libvirt]]\nuri = 'test:///default'\nhost = 'hv1'\n\
                [fleet]\nagent_boot_grace = '1s'";
    let site = Site::start(more).await;
    until("the host is read", || async {
        site.get("inventory").await["items"][0]["state"] == "up"
    })
    .await;
    let victim = site.join_of("acme", host("victim", Some(DOMAIN))).await;
    let seat = async |member: &Membership| {
        let (session, ..) = Session::connect(member, hello(Some(DOMAIN))).await.unwrap();
        let list = list(&session, 0).await.unwrap();
        (session, list.own_path.hypervisor.to_string())
    };
    let (session, own) = seat(&victim).await;
    assert_eq!(own, "hv1");
    session.close();
    let impostor = site.join_of("other", host("impostor", Some(DOMAIN))).await;
    let (_there, stolen) = seat(&impostor).await;
    assert_eq!(stolen, "", "it is not told");
    let dispute = alerts(&site, "domain_disputed").await.remove(0);
    let text = dispute["text"].as_str().unwrap();
    assert!(text.contains("victim of the tenant acme"), "{text}");
    assert!(text.contains("impostor of the tenant other"), "{text}");

    // The victim's agent is not there: whoever else says to be is no comfort.
    until("the victim is lost", || async {
        !alerts(&site, "agent_lost").await.is_empty()
    })
    .await;
    let lost = alerts(&site, "agent_lost").await.remove(0);
    assert_eq!(
        (&lost["agent_name"], &lost["severity"]),
        (&"victim".into(), &"critical".into())
    );
    // The control: another agent of its own tenant is one.
    let again = site.join_of("acme", host("again", Some(DOMAIN))).await;
    let (again, _) = seat(&again).await;
    assert_eq!(alerts(&site, "agent_lost").await[0]["severity"], "warning");

    let id = agent_id(&impostor);
    site.api(move |client| client.delete(&format!("agents/{id}")))
        .await
        .unwrap();
    assert!(alerts(&site, "domain_disputed").await.is_empty());
    assert_eq!(
        list(&again, 0).await.unwrap().own_path.hypervisor.as_str(),
        "hv1"
    );
}

/// A host that cannot be read is an alert: nobody would be missed there.
#[tokio::test]
async fn a_host_that_is_not_read_is_an_alert() {
    let more = "[inventory]\npoll = '1s'\n[[libvirt]]\nuri = 'test:///no/such/file.xml'\n\
                [[libvirt]]\nuri = 'test:///default'";
    let site = Site::start(more).await;
    until("it is an alert", || async {
        !alerts(&site, "host_unread").await.is_empty()
    })
    .await;
    let [alert] = &alerts(&site, "host_unread").await[..] else {
        panic!("the host that is read is none")
    };
    let text = alert["text"].as_str().unwrap();
    assert!(text.contains("test:///no/such/file.xml"), "{text}");
    assert!(
        alert["remedy"]
            .as_str()
            .unwrap()
            .contains("virsh -r -c test:///no")
    );
}

/// A copy of a stopped site's folder: the same authority and members, another server.
fn copy_of(from: &std::path::Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .arg(from.join("."))
        .arg(to.path())
        .status();
    assert!(copied.unwrap().success());
    to
}

/// A store that is gone for a moment ends no session, sends whoever comes to the next
/// server, and makes nobody an alert whom this server itself does not let in.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_gone_ends_nothing_and_blames_nobody() {
    let more = "[[libvirt]]\nuri = 'test:///default'\n[fleet]\nagent_boot_grace = '1s'";
    let site = Site::start(more).await;
    let stays = site.join(Component::Agent, host("stays", None)).await;
    let comes = site
        .join(Component::Agent, host("comes", Some(DOMAIN)))
        .await;
    let Site { dir, server } = site;
    server.stop().await;
    let copy = copy_of(dir.path());
    let (site, next) = (
        Site::start_in(dir, more).await,
        Site::start_in(copy, more).await,
    );
    let both = |member: &Membership| Membership {
        servers: vec![site.control(), next.control()],
        ..member.clone()
    };
    let (session, ..) = connect(&both(&stays)).await;
    assert!(
        site.server
            .fleet()
            .sessions
            .is_connected(agent_id(&stays).0)
    );

    site.server.fleet().store.close().await;
    let refused = session.request(&blocking(None)).await.unwrap_err();
    assert!(refused.is_for_now(), "{refused}");
    assert!(
        list(&session, 0).await.is_some(),
        "the session is as good as before"
    );
    let (elsewhere, ..) = connect(&both(&comes)).await;
    assert!(
        next.server
            .fleet()
            .sessions
            .is_connected(agent_id(&comes).0)
    );
    assert!(elsewhere.request(&blocking(None)).await.is_ok());

    // It would be an alert here by now, were it not this server that does not let it in.
    let alarms = &site.server.fleet().alarms;
    assert!(alarms.turns_away());
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert!(alarms.all().is_empty());
}

/// A client without an identity, from this address.
fn stranger(from: [u8; 4], token: &JoinToken) -> (quinn::Endpoint, quinn::ClientConfig) {
    let key = KeyPair::generate().unwrap();
    let trust = Trust {
        anchor: Anchor::RootHash(token.root_sha256),
        deployment: None,
        grace: Default::default(),
    };
    let own = Own::Enrolling {
        certificate: identity::enrolment_certificate(&key).unwrap(),
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
    };
    let config = tls::client_config(own, trust, Expect::Server, control::ALPN).unwrap();
    let dialler = endpoint::dialler(SocketAddr::from((from, 0))).unwrap();
    (dialler, endpoint::client(config, Bounds::CONTROL).unwrap())
}

/// Strangers of one address hold no place of those of another one.
#[tokio::test(flavor = "multi_thread")]
async fn one_address_does_not_take_all_places_of_strangers() {
    const TOO_MANY: usize = 8;
    let site = Site::start("").await;
    let token = site.token("agent", 1, "1h").await;
    let (dialler, config) = stranger([127, 0, 0, 1], &token);
    let to = site.control();
    let mut strangers = JoinSet::new();
    for _ in 0..MAX_UNENROLLED_OF_SOURCE + TOO_MANY {
        let connecting = dialler.connect_with(config.clone(), to, endpoint::SERVER_NAME);
        let connecting = connecting.unwrap();
        strangers.spawn(async move {
            let connection = connecting.await.unwrap();
            let closed = tokio::time::timeout(Duration::from_secs(1), connection.closed()).await;
            (connection, closed.is_ok())
        });
    }
    let strangers = strangers.join_all().await;
    let closed = strangers.iter().filter(|(_, closed)| *closed).count();
    assert_eq!(closed, TOO_MANY);
    let (other, config) = stranger([127, 0, 0, 2], &token);
    let other = other
        .connect_with(config, to, endpoint::SERVER_NAME)
        .unwrap()
        .await
        .unwrap();
    let closed = tokio::time::timeout(Duration::from_millis(500), other.closed()).await;
    assert!(closed.is_err(), "{closed:?}");
}

/// Whoever does not show that he has his address gets no more than a retry once many
/// handshakes are under way, and whoever has one is served.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_nobody_finishes_keep_nobody_out() {
    let site = Site::start("").await;
    let member = site.join(Component::Agent, host("guest", None)).await;
    let token = site.token("agent", 1, "1h").await;
    // First datagrams of many attempts, caught on their way.
    let sink = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (dialler, config) = stranger([127, 0, 0, 1], &token);
    let attempts: Vec<_> = (0..UNPROVEN_HANDSHAKES * 2)
        .map(|_| {
            let to = sink.local_addr().unwrap();
            dialler
                .connect_with(config.clone(), to, endpoint::SERVER_NAME)
                .unwrap()
        })
        .collect();
    let (mut ids, mut first) = (BTreeSet::new(), Vec::new());
    let mut datagram = [0; 65_535];
    while first.len() < attempts.len() {
        let caught = tokio::time::timeout(PATIENCE, sink.recv(&mut datagram)).await;
        let bytes = caught.expect("each attempt begins").unwrap();
        // A long header: flags, version, and the connection's id behind its length.
        // Repetitions of one attempt are no other one, and the rest of a split first flight
        // is of none.
        if ids.insert(datagram[6..6 + usize::from(datagram[5])].to_vec()) {
            first.push(datagram[..bytes].to_vec());
        }
    }
    // No more of them than these: who began them is gone.
    drop(attempts);
    let attacker = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let answer = async || {
        let mut reply = [0; 65_535];
        let answer = tokio::time::timeout(PATIENCE, attacker.recv(&mut reply)).await;
        answer.expect("the server answers").unwrap();
        // A retry is a long header of the kind 3.
        reply[0] & 0xf0 == 0xf0
    };
    attacker.send_to(&first[0], site.control()).await.unwrap();
    assert!(
        !answer().await,
        "the control: while it is quiet there is none"
    );
    for datagram in &first[1..] {
        attacker.send_to(datagram, site.control()).await.unwrap();
    }
    while !answer().await {}
    let served = tokio::time::timeout(PATIENCE, connect(&member))
        .await
        .unwrap();
    assert!(matches!(
        served.0.request(&blocking(None)).await,
        Ok(FromServer::Ack)
    ));
}
