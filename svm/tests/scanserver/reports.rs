//! What the Integration Server hears.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use palisade_protocol::bounded::Text;
use palisade_protocol::control::{self, ControlFrame, FromServer, SvmReport, ToServer, Welcome};
use palisade_protocol::definitions::{
    DefinitionsAnswer, DefinitionsCommand, DefinitionsOrder, Standing,
};
use palisade_protocol::endpoint::{self, Bounds};
use palisade_protocol::envelope::{Opener, Sealer};
use palisade_protocol::frame;
use palisade_protocol::identity::Identity;
use palisade_protocol::problem::{ProblemKind, Problems};
use palisade_protocol::spiffe::SpiffeId;
use palisade_protocol::tls::{self, Accept, Peer};
use palisade_protocol::verdict::VerdictKind;
use tokio::sync::mpsc;

use crate::client::{Client, unique};
use crate::site::{PATIENCE, Site, marker, rule};

/// A server that hears reports, and says so; it gives an order after a report.
struct Server {
    endpoint: quinn::Endpoint,
    reports: mpsc::Receiver<SvmReport>,
    orders: mpsc::Sender<DefinitionsCommand>,
    answers: mpsc::Receiver<DefinitionsAnswer>,
}

/// A session's ends of a server's channels.
#[derive(Clone)]
struct Desk {
    heard: mpsc::Sender<SvmReport>,
    orders: Arc<tokio::sync::Mutex<mpsc::Receiver<DefinitionsCommand>>>,
    answered: mpsc::Sender<DefinitionsAnswer>,
}

impl Server {
    fn open(identity: &Identity) -> Self {
        let accept = Accept {
            agents: true,
            svms: true,
            unenrolled: false,
        };
        let tls = tls::server_config(identity, identity.trust(), accept, control::ALPN).unwrap();
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let endpoint = endpoint::listen(local, tls, Bounds::CONTROL).unwrap();
        let (heard, reports) = mpsc::channel(64);
        let (orders, ordered) = mpsc::channel(64);
        let (answered, answers) = mpsc::channel(64);
        let desk = Desk {
            heard,
            orders: Arc::new(tokio::sync::Mutex::new(ordered)),
            answered,
        };
        let (accepting, identity) = (endpoint.clone(), identity.clone());
        tokio::spawn(async move {
            let mut epoch = 0;
            while let Some(incoming) = accepting.accept().await {
                epoch += 1;
                if let Ok(connection) = incoming.await {
                    tokio::spawn(session(connection, identity.clone(), epoch, desk.clone()));
                }
            }
        });
        Self {
            endpoint,
            reports,
            orders,
            answers,
        }
    }

    /// Gives an order and waits for its answer.
    async fn order(&mut self, number: u64, order: DefinitionsOrder) -> DefinitionsAnswer {
        let command = DefinitionsCommand { number, order };
        self.orders.send(command).await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, async {
            loop {
                tokio::select! {
                    answer = self.answers.recv() => return answer.unwrap(),
                    // Reports are not to fill their channel meanwhile.
                    _ = self.reports.recv() => {}
                }
            }
        });
        let answer = answer.await.unwrap();
        assert_eq!(answer.number, number);
        answer
    }

    fn address(&self) -> SocketAddr {
        self.endpoint.local_addr().unwrap()
    }

    /// Waits until these are the problems.
    async fn problems(&mut self, names: &[&str]) -> Problems {
        loop {
            let problems = self.next().await.problems;
            let kinds = problems.iter().map(|problem| problem.kind.as_str());
            if kinds.eq(names.iter().copied()) {
                return problems;
            }
        }
    }

    async fn next(&mut self) -> SvmReport {
        tokio::time::timeout(PATIENCE, self.reports.recv())
            .await
            .unwrap()
            .unwrap()
    }
}

async fn session(connection: quinn::Connection, identity: Identity, epoch: u64, desk: Desk) {
    let Ok(Peer::Enrolled(peer)) = endpoint::peer(&connection) else {
        panic!("unenrolled")
    };
    let (mut send, mut receive) = connection.accept_bi().await.unwrap();
    let mut opener = Opener::new(identity.trust(), peer.clone(), identity.id().clone(), 0);
    let mut sealer = Sealer::new(identity, peer, 1).unwrap();
    while let Ok(Some(ControlFrame::Envelope(envelope))) = frame::read(&mut receive).await {
        let now_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_millis() as u64;
        let opened = opener.open::<ToServer>(&envelope, now_ms).unwrap();
        let mut pushes = None;
        let answer = match opened.message {
            ToServer::Hello(_) => FromServer::Welcome(Welcome {
                version: Text::cut("test"),
                epoch,
                server_time_ms: now_ms,
                report_every_s: 1,
            }),
            ToServer::SvmReport(report) => {
                let _ = desk.heard.send(report).await;
                pushes = desk.orders.lock().await.try_recv().ok();
                FromServer::Ack
            }
            ToServer::Definitions(answer) => {
                let _ = desk.answered.send(answer).await;
                FromServer::Ack
            }
            other => panic!("{other:?}"),
        };
        let pushed = pushes.map(|command| (FromServer::Definitions(command), None));
        for (message, answers) in [(answer, Some(opened.sequence))].into_iter().chain(pushed) {
            let (envelope, _) = sealer.seal(&message, answers, now_ms).unwrap();
            if frame::write(&mut send, &ControlFrame::Envelope(envelope))
                .await
                .is_err()
            {
                return;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reports_come_at_once_on_a_change_and_regularly() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings =
        "tags = ['blue']\ntenants = ['default']\n[path]\ndatacenter = 'dc'\nhypervisor = 'hv-1'\n"
            .to_owned();
    let name = "server-1".parse().unwrap();
    let server = site.ca.issue(&SpiffeId::server(&site.ca.deployment, &name));
    let mut server = Server::open(&server);
    site.enrol(vec![server.address()]);
    let mut daemon = site.start();

    let first = server.next().await;
    assert_eq!(first.addresses[0].address, daemon.address);
    assert_eq!(
        (
            first.path.datacenter.as_str(),
            first.path.hypervisor.as_str()
        ),
        ("dc", "hv-1")
    );
    assert_eq!(first.tags[0].as_str(), "blue");
    assert_eq!(first.tenants[0].as_str(), "default");
    assert_eq!(
        (first.agents, first.draining, first.generations.is_empty()),
        (0, false, false)
    );

    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(client.kind(&unique(100)).await, VerdictKind::Clean);
    while server.next().await.agents != 1 {}

    site.define("some.yar", &rule("Other", &marker()));
    daemon.signal(Signal::SIGHUP);
    while server.next().await.generations == first.generations {}

    daemon.signal(Signal::SIGTERM);
    while !server.next().await.draining {}
    tokio::task::spawn_blocking(move || assert_eq!(daemon.wait().code(), Some(0)))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_orders_what_a_command_could() {
    let [first, second] = [marker(), marker()];
    let site = Site::new(&[("some.yar", &rule("First", &first))]);
    let name = "server-1".parse().unwrap();
    let server = site.ca.issue(&SpiffeId::server(&site.ca.deployment, &name));
    let mut server = Server::open(&server);
    site.enrol(vec![server.address()]);
    let daemon = site.start();
    let standing = |answer: &DefinitionsAnswer| {
        let entries = answer.status.generations.iter();
        let of = entries.map(|entry| (entry.generation, entry.standing));
        of.collect::<Vec<_>>()
    };

    let shown = server.order(1, DefinitionsOrder::Show).await;
    assert_eq!(
        (shown.failure.clone(), standing(&shown)),
        (None, vec![(1, Standing::Active)])
    );

    site.define("some.yar", &rule("Second", &second));
    let refreshed = server.order(2, DefinitionsOrder::Refresh).await;
    assert_eq!(refreshed.failure, None);
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let found = |text: &str| {
        let content = format!("{} {text}", marker()).into_bytes();
        let client = &client;
        async move { client.kind(&content).await == VerdictKind::Malware }
    };
    assert!(found(&second).await && !found(&first).await);

    let back = server.order(3, DefinitionsOrder::Rollback).await;
    assert_eq!(
        (back.failure.clone(), standing(&back)),
        (None, vec![(1, Standing::Active), (2, Standing::Refused)])
    );
    assert!(found(&first).await && !found(&second).await);

    let wrong = server
        .order(4, DefinitionsOrder::Activate { generation: 9 })
        .await;
    let failure = wrong.failure.unwrap();
    assert!(
        failure.contains("generation 9 is not kept; there are 1, 2"),
        "{failure}"
    );
    assert!(found(&first).await);
    server
        .order(5, DefinitionsOrder::Activate { generation: 2 })
        .await;
    assert!(found(&second).await);
    let in_force = |report: &SvmReport| report.generations.iter().any(|one| one.generation.0 == 2);
    while !in_force(&server.next().await) {}
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_are_served_without_a_server_and_it_is_found_again() {
    let site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    let name = "server-1".parse().unwrap();
    let identity = site.ca.issue(&SpiffeId::server(&site.ca.deployment, &name));
    let mut server = Server::open(&identity);
    site.enrol(vec![server.address()]);
    let daemon = site.start();
    server.next().await;

    server.endpoint.close(1_u32.into(), b"gone for a while");
    let log = daemon.log.clone();
    tokio::task::spawn_blocking(move || log.wait_for("the Integration Server ended"))
        .await
        .unwrap();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(client.kind(&unique(100)).await, VerdictKind::Clean);

    let address = server.address();
    drop(server);
    // The port is free once the last of the old endpoint is gone.
    let accept = Accept {
        agents: false,
        svms: true,
        unenrolled: false,
    };
    let deadline = std::time::Instant::now() + PATIENCE;
    let back = loop {
        let tls = tls::server_config(&identity, identity.trust(), accept, control::ALPN).unwrap();
        match endpoint::listen(address, tls, Bounds::CONTROL) {
            Ok(endpoint) => break endpoint,
            Err(error) => assert!(std::time::Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let incoming = tokio::time::timeout(PATIENCE, back.accept())
        .await
        .unwrap()
        .unwrap();
    incoming.await.unwrap();
}

/// What is wrong with a Protection Server reaches the Integration Server when it begins and
/// when it ends: its source, the age of its definitions, a braked signature, an engine that
/// does not start again, and contents that kill.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_reported_while_it_is() {
    let [old, new] = [marker(), marker()];
    let mut site = Site::new(&[("some.yar", &rule("Old", &old))]);
    site.start_engines_by("[ ! -e \"$0.broken\" ] && exec \"$@\"");
    let name = "server-1".parse().unwrap();
    let server = site.ca.issue(&SpiffeId::server(&site.ca.deployment, &name));
    let mut server = Server::open(&server);
    site.enrol(vec![server.address()]);
    let mut daemon = site.start();
    assert!(server.next().await.problems.is_empty());

    site.define("some.yar", "rule Broken {");
    daemon.signal(Signal::SIGHUP);
    let source = server.problems(&["definitions_source"]).await;
    let ProblemKind::DefinitionsSource { why } = &source[0].kind else {
        panic!("{source:?}")
    };
    assert!(why.contains("some.yar"), "{why}");
    let status = site.status_json();
    assert_eq!(status["problems"].as_array().unwrap().len(), 1, "{status}");
    site.define("some.yar", &(rule("Old", &old) + &rule("New", &new)));
    daemon.signal(Signal::SIGHUP);
    server.problems(&[]).await;

    for _ in 0..6 {
        let client = Client::connect(&daemon, &site.ca.agent("default")).await;
        client.kind(new.as_bytes()).await;
    }
    let braked = server.problems(&["signature_braked"]).await;
    let signature = match &braked[0].kind {
        ProblemKind::SignatureBraked { signature, .. } => signature.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(signature.as_str(), "New");
    site.definitions_json(&["confirm", "New"]);
    server.problems(&[]).await;

    // As its makers would find it: it ends, and does not start again.
    site.break_engine("palisade-engine-yara", true);
    let engine = daemon.engine("palisade-engine-yara");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(engine as i32), Signal::SIGKILL).unwrap();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    client.ask(&unique(100)).await;
    server.problems(&["engine_down"]).await;
    daemon.signal(Signal::SIGTERM);
    tokio::task::spawn_blocking(move || daemon.wait())
        .await
        .unwrap();

    // Nobody has updated them for 8 days.
    site.break_engine("palisade-engine-yara", false);
    site.age_definitions(Duration::from_secs(8 * 24 * 3600));
    let _daemon = site.start();
    let old = server.problems(&["definitions_old"]).await;
    assert!(matches!(old[0].kind, ProblemKind::DefinitionsOld { .. }));
}
