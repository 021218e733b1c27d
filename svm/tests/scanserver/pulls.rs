//! Signed definitions, pulled from a server that may be anybody's by now: whoever lacks the
//! publisher's key makes a Protection Server load nothing, and is reported.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use palisade_protocol::bounded::Text;
use palisade_protocol::control::{self, ControlFrame, FromServer, SvmReport, ToServer, Welcome};
use palisade_protocol::endpoint::{self, Bounds};
use palisade_protocol::envelope::{Opener, Sealer};
use palisade_protocol::frame;
use palisade_protocol::identity::Identity;
use palisade_protocol::problem::ProblemKind;
use palisade_protocol::pull::{Answer, MAX_PART_BYTES, Wanted, What};
use palisade_protocol::spiffe::SpiffeId;
use palisade_protocol::tls::{self, Accept, Peer};
use palisade_protocol::verdict::VerdictKind;
use palisade_repository::keys::sign;
use tokio::sync::{mpsc, watch};

use crate::client::Client;
use crate::publisher::{Key, Publisher, Shelf, sha256};
use crate::site::{Daemon, PATIENCE, Site, marker, rule};

/// What a server does besides handing out its shelf.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Honest,
    /// It says that everything is this long, and sends without an end.
    Endless(u64),
    /// It ends the session when this byte of a file is asked for, or a later one.
    Cuts(u64),
}

struct Open {
    shelf: Shelf,
    manner: Manner,
    /// Parts of files that were asked for: of which, from which byte.
    asked: Vec<([u8; 32], u64)>,
    /// How many pulls have begun.
    begun: watch::Sender<u64>,
}

/// An Integration Server that does nothing but publish.
struct Server {
    address: SocketAddr,
    open: Arc<Mutex<Open>>,
    published: watch::Sender<u64>,
    reports: mpsc::Receiver<SvmReport>,
}

impl Server {
    fn start(site: &Site, shelf: Shelf) -> Self {
        let name = "server-1".parse().unwrap();
        let identity = site.ca.issue(&SpiffeId::server(&site.ca.deployment, &name));
        let accept = Accept {
            agents: true,
            svms: true,
            unenrolled: false,
        };
        let tls = tls::server_config(&identity, identity.trust(), accept, control::ALPN).unwrap();
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let endpoint = endpoint::listen(local, tls, Bounds::CONTROL).unwrap();
        let address = endpoint.local_addr().unwrap();
        let open = Arc::new(Mutex::new(Open {
            shelf,
            manner: Manner::Honest,
            asked: Vec::new(),
            begun: watch::Sender::new(0),
        }));
        let (published, told) = watch::channel(0);
        let (heard, reports) = mpsc::channel(64);
        let shared = Arc::clone(&open);
        tokio::spawn(async move {
            let mut epoch = 0;
            while let Some(incoming) = endpoint.accept().await {
                epoch += 1;
                let Ok(connection) = incoming.await else {
                    continue;
                };
                let (open, told, heard) = (Arc::clone(&shared), told.clone(), heard.clone());
                tokio::spawn(session(
                    connection,
                    identity.clone(),
                    epoch,
                    open,
                    told,
                    heard,
                ));
            }
        });
        site.enrol(vec![address]);
        Self {
            address,
            open,
            published,
            reports,
        }
    }

    /// Hands this out from here on, and says so.
    fn offer(&self, shelf: &Shelf, manner: Manner) {
        let mut open = self.open.lock().unwrap();
        (open.shelf, open.manner) = (shelf.clone(), manner);
        open.asked.clear();
        drop(open);
        self.published.send_modify(|version| *version += 1);
    }

    /// Says that something was published, and waits until a pull begins after that.
    async fn pulled_again(&self) {
        let mut begun = self.open.lock().unwrap().begun.subscribe();
        self.published.send_modify(|version| *version += 1);
        let waited = tokio::time::timeout(PATIENCE, begun.changed());
        waited.await.unwrap().unwrap();
    }

    async fn next(&mut self) -> SvmReport {
        let report = tokio::time::timeout(PATIENCE, self.reports.recv());
        report.await.unwrap().unwrap()
    }

    /// Waits until the repository is the problem; gives why.
    async fn refused(&mut self) -> String {
        loop {
            let report = self.next().await;
            let why = report.problems.iter().find_map(|one| match &one.kind {
                ProblemKind::DefinitionsRepository { why } => Some(why.to_string()),
                _ => None,
            });
            if let Some(why) = why {
                return why;
            }
        }
    }

    /// Waits until this generation is in force, and nothing is wrong.
    async fn follows(&mut self, generation: u64) {
        loop {
            let report = self.next().await;
            if report.followed == Some(generation) && report.problems.is_empty() {
                return;
            }
        }
    }

    fn asked(&self) -> Vec<([u8; 32], u64)> {
        self.open.lock().unwrap().asked.clone()
    }
}

async fn session(
    connection: quinn::Connection,
    identity: Identity,
    epoch: u64,
    open: Arc<Mutex<Open>>,
    mut told: watch::Receiver<u64>,
    heard: mpsc::Sender<SvmReport>,
) {
    let Ok(Peer::Enrolled(peer)) = endpoint::peer(&connection) else {
        panic!("unenrolled")
    };
    let (mut send, mut receive) = connection.accept_bi().await.unwrap();
    tokio::spawn(pulls(connection.clone(), open));
    let (frames, mut received) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Ok(Some(frame)) = frame::read::<ControlFrame>(&mut receive).await {
            if frames.send(frame).await.is_err() {
                return;
            }
        }
    });
    let mut opener = Opener::new(identity.trust(), peer.clone(), identity.id().clone(), 0);
    let mut sealer = Sealer::new(identity, peer, 1).unwrap();
    if *told.borrow() > 0 {
        told.mark_changed();
    }
    let mut welcomed = false;
    loop {
        let now_ms = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_millis() as u64;
        let (message, answers) = tokio::select! {
            frame = received.recv() => {
                let Some(ControlFrame::Envelope(envelope)) = frame else { return };
                let opened = opener.open::<ToServer>(&envelope, now_ms).unwrap();
                let answer = match opened.message {
                    ToServer::Hello(_) => {
                        opener.expect_epoch(epoch);
                        welcomed = true;
                        FromServer::Welcome(Welcome {
                            version: Text::cut("test"),
                            epoch,
                            server_time_ms: now_ms,
                            report_every_s: 1,
                        })
                    }
                    ToServer::SvmReport(report) => {
                        let _ = heard.try_send(report);
                        FromServer::Ack
                    }
                    other => panic!("{other:?}"),
                };
                (answer, Some(opened.sequence))
            }
            Ok(()) = told.changed(), if welcomed => {
                let version = *told.borrow_and_update();
                (FromServer::Published { version }, None)
            }
        };
        let (envelope, _) = sealer.seal(&message, answers, now_ms).unwrap();
        if frame::write(&mut send, &ControlFrame::Envelope(envelope))
            .await
            .is_err()
        {
            return;
        }
    }
}

async fn pulls(connection: quinn::Connection, open: Arc<Mutex<Open>>) {
    while let Ok((mut send, mut receive)) = connection.accept_bi().await {
        while let Ok(Some(Wanted { what, from })) = frame::read::<Wanted>(&mut receive).await {
            let answer = {
                let mut open = open.lock().unwrap();
                if let What::File(sha256) = &what {
                    open.asked.push((*sha256, from));
                    if matches!(open.manner, Manner::Cuts(at) if from >= at) {
                        open.manner = Manner::Honest;
                        connection.close(9_u32.into(), b"cut");
                        return;
                    }
                }
                // Whether there is another root is asked first of all.
                if matches!(&what, What::Metadata(name) if name.ends_with(".root.json")) {
                    open.begun.send_modify(|begun| *begun += 1);
                }
                let found = match &what {
                    What::Metadata(name) => open.shelf.metadata.get(name.as_str()),
                    What::File(sha256) => open.shelf.files.get(sha256),
                };
                match (open.manner, found) {
                    (_, None) => Answer::Absent,
                    (Manner::Endless(length), Some(_)) => Answer::Part {
                        length,
                        bytes: vec![b' '; MAX_PART_BYTES],
                    },
                    (_, Some(bytes)) => {
                        let part = bytes.get(from as usize..).unwrap_or_default();
                        Answer::Part {
                            length: bytes.len() as u64,
                            bytes: part.iter().copied().take(MAX_PART_BYTES).collect(),
                        }
                    }
                }
            };
            if frame::write(&mut send, &answer).await.is_err() {
                break;
            }
        }
    }
}

fn following() -> Site {
    let mut site = Site::new(&[]);
    site.definitions = "repository = true\npoll_s = 3600\nclean_corpus = []\n".to_owned();
    // Each look is another guest's, and a marker is to stay malware for all of them.
    site.settings = "[retroactive]\nbrake_guests = 1000\n".to_owned();
    site
}

async fn start(site: Site) -> (Arc<Site>, Daemon) {
    let site = Arc::new(site);
    let of = Arc::clone(&site);
    let daemon = tokio::task::spawn_blocking(move || of.start()).await;
    (site, daemon.unwrap())
}

async fn finds(site: &Site, daemon: &Daemon, text: &str) -> bool {
    let client = Client::connect(daemon, &site.ca.agent("default")).await;
    let content = format!("{} {text}", marker()).into_bytes();
    client.kind(&content).await == VerdictKind::Malware
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_lacks_the_publishers_key_makes_nothing_be_loaded() {
    let [first, second, evil] = [marker(), marker(), marker()];
    let site = following();
    let mut publisher = Publisher::new();
    let mut server = Server::start(&site, publisher.shelf.clone());
    // It has nothing yet, and says so.
    let starting = tokio::spawn(start(site));
    assert!(
        server
            .refused()
            .await
            .contains("palisade definitions import")
    );
    publisher.publish(&[("some.yar", &rule("First", &first))]);
    server.offer(&publisher.shelf, Manner::Honest);
    let (site, daemon) = starting.await.unwrap();
    server.follows(1).await;
    assert!(finds(&site, &daemon, &first).await);
    let before = publisher.shelf.clone();
    publisher.publish(&[("some.yar", &rule("Second", &second))]);
    server.offer(&publisher.shelf, Manner::Honest);
    server.follows(2).await;
    assert!(finds(&site, &daemon, &second).await && !finds(&site, &daemon, &first).await);
    let good = publisher.shelf.clone();

    let bad = rule("Evil", &evil);
    let anew = |more: &dyn Fn(&mut Publisher)| {
        let mut publisher = Publisher::new();
        publisher.shelf = good.clone();
        more(&mut publisher);
        publisher.shelf
    };
    // Somebody with the server's own key, and without the publisher's.
    let taken_over = |more: &dyn Fn(&mut Publisher)| {
        anew(&|other| {
            other.online = publisher.online.clone();
            other.contents = publisher.contents.clone();
            other.sign_as(50);
            more(other);
        })
    };
    let attacks: Vec<(&str, &str, Shelf, Manner)> = vec![
        (
            "targets of another key",
            "threshold",
            taken_over(&|other| {
                other.publish(&[("some.yar", &bad)]);
            }),
            Manner::Honest,
        ),
        (
            "a whole other repository",
            "threshold",
            anew(&|other| {
                let root = sign(&other.root(2), &[&other.publisher.key]).unwrap();
                other.put_root(2, root);
                other.publish(&[("some.yar", &bad)]);
            }),
            Manner::Honest,
        ),
        (
            "an earlier timestamp",
            "rollback",
            before.clone(),
            Manner::Honest,
        ),
        (
            "a new timestamp of an earlier snapshot",
            "rollback",
            signed_by(&publisher, |mine| mine.point_back_to(1)),
            Manner::Honest,
        ),
        (
            "a new snapshot of earlier targets",
            "rollback",
            signed_by(&publisher, |mine| mine.mix_in(1)),
            Manner::Honest,
        ),
        (
            "a timestamp that is over",
            "not current",
            signed_by(&publisher, |mine| {
                mine.timestamp_lasts = Duration::ZERO;
                mine.sign();
            }),
            Manner::Honest,
        ),
        (
            "targets that are over",
            "not current",
            signed_by(&publisher, |mine| {
                mine.targets_last = Duration::ZERO;
                mine.sign();
            }),
            Manner::Honest,
        ),
        (
            "metadata without an end",
            "more than",
            good.clone(),
            Manner::Endless(u64::MAX),
        ),
        (
            "metadata that hides its end",
            "more than",
            good.clone(),
            Manner::Endless(1000),
        ),
    ];
    for (what, reason, shelf, manner) in attacks {
        server.offer(&shelf, manner);
        let why = server.refused().await;
        assert!(why.to_lowercase().contains(reason), "{what}: {why}");
        // Nor is what was refused once taken the next time.
        for _ in 0..3 {
            server.pulled_again().await;
        }
        assert!(!finds(&site, &daemon, &evil).await, "{what}");
        assert!(finds(&site, &daemon, &second).await, "{what}");
        // What is right is taken again: nothing bad was kept.
        server.offer(&good, Manner::Honest);
        server.follows(2).await;
    }

    // What the right publisher signs, and the server lacks or has other bytes of.
    let text = rule("Third", &marker());
    publisher.publish(&[("some.yar", &text)]);
    let right = publisher.shelf.clone();
    let mut lacking = right.clone();
    lacking.files.clear();
    let mut changed = right.clone();
    let place = changed.files.get_mut(&sha256(text.as_bytes())).unwrap();
    let length = place.len();
    *place = bad.into_bytes();
    place.resize(length, b' ');
    for (reason, shelf) in [
        ("lacks some.yar", lacking),
        ("other bytes of some.yar", changed),
    ] {
        server.offer(&shelf, Manner::Honest);
        while !server.refused().await.contains(reason) {}
        assert!(!finds(&site, &daemon, &evil).await, "{reason}");
        assert!(finds(&site, &daemon, &second).await, "{reason}");
    }
    server.offer(&right, Manner::Honest);
    server.follows(3).await;
}

/// What the right publisher signs besides, without its being the good shelf's.
fn signed_by(publisher: &Publisher, more: impl FnOnce(&mut Publisher)) -> Shelf {
    let mut mine = publisher.clone();
    more(&mut mine);
    mine.shelf
}

/// A root that names other keys is followed when the one before has signed it, and a
/// restart forgets no version that was seen.
#[tokio::test(flavor = "multi_thread")]
async fn another_key_is_followed_when_the_one_before_has_signed_it() {
    let [first, second] = [marker(), marker()];
    let site = following();
    let mut publisher = Publisher::new();
    publisher.publish(&[("some.yar", &rule("First", &first))]);
    let mut server = Server::start(&site, publisher.shelf.clone());
    server.offer(&publisher.shelf, Manner::Honest);
    let (site, mut daemon) = start(site).await;
    server.follows(1).await;
    let earlier = publisher.shelf.clone();

    let old = std::mem::replace(&mut publisher.publisher, Key::new());
    let root = sign(&publisher.root(2), &[&publisher.publisher.key, &old.key]).unwrap();
    publisher.put_root(2, root);
    publisher.publish(&[("some.yar", &rule("Second", &second))]);
    server.offer(&publisher.shelf, Manner::Honest);
    server.follows(2).await;
    assert!(finds(&site, &daemon, &second).await);

    daemon.signal(Signal::SIGKILL);
    tokio::task::spawn_blocking(move || daemon.wait())
        .await
        .unwrap();
    server.offer(&earlier, Manner::Honest);
    let of = Arc::clone(&site);
    let daemon = tokio::task::spawn_blocking(move || of.start())
        .await
        .unwrap();
    let why = server.refused().await.to_lowercase();
    assert!(
        why.contains("rollback") || why.contains("threshold"),
        "{why}"
    );
    assert!(finds(&site, &daemon, &second).await);
}

/// What came before a cut does not travel again, nor does what did not change.
#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_is_cut_goes_on_where_it_was() {
    let [first, second] = [marker(), marker()];
    let large = |name: &str, text: &str| {
        let comment = "// a long comment that travels in many parts\n".repeat(30_000);
        comment + &rule(name, text)
    };
    let site = following();
    let mut publisher = Publisher::new();
    let (one, other) = (large("First", &first), rule("Second", &second));
    publisher.publish(&[("large.yar", &one)]);
    let mut server = Server::start(&site, publisher.shelf.clone());
    let part = MAX_PART_BYTES as u64;
    server.offer(&publisher.shelf, Manner::Cuts(2 * part));
    let (site, daemon) = start(site).await;
    server.follows(1).await;
    let asked: Vec<u64> = server.asked().iter().map(|(_, from)| *from).collect();
    let again = asked.iter().filter(|from| **from == 2 * part).count();
    assert_eq!(again, 2, "{asked:?}");
    assert_eq!(
        asked.iter().filter(|from| **from == 0).count(),
        1,
        "{asked:?}"
    );
    assert!(finds(&site, &daemon, &first).await);

    publisher.publish(&[("large.yar", &one), ("other.yar", &other)]);
    server.offer(&publisher.shelf, Manner::Honest);
    server.follows(2).await;
    let files: Vec<[u8; 32]> = server.asked().iter().map(|(file, _)| *file).collect();
    assert_eq!(files, [sha256(other.as_bytes())]);
    assert!(finds(&site, &daemon, &second).await);

    // Back, and nothing travels.
    publisher.contents = publisher.contents.wanting(1).unwrap();
    publisher.sign();
    server.offer(&publisher.shelf, Manner::Honest);
    server.follows(1).await;
    assert_eq!(server.asked(), []);
    assert!(!finds(&site, &daemon, &second).await);
    assert!(server.address.ip().is_loopback());
}

/// What cannot be loaded is no generation, and the next one is taken; at the very first,
/// too, where there is none to go on with.
#[tokio::test(flavor = "multi_thread")]
async fn signed_definitions_that_do_not_load_are_reported_and_replaced() {
    let good = marker();
    let site = following();
    let mut publisher = Publisher::new();
    publisher.publish(&[("some.yar", "rule Broken {")]);
    let mut server = Server::start(&site, publisher.shelf.clone());
    server.offer(&publisher.shelf, Manner::Honest);
    let starting = tokio::spawn(start(site));
    while !server.refused().await.contains("some.yar") {}
    publisher.publish(&[("some.yar", &rule("Good", &good))]);
    server.offer(&publisher.shelf, Manner::Honest);
    let (site, daemon) = starting.await.unwrap();
    server.follows(2).await;
    assert!(finds(&site, &daemon, &good).await);
}
