//! A storm of broken streams against a live Protection Server: it does not end, its
//! memory stays flat, nothing stays taken, and another agent's verdicts are right all
//! the while. The decoders alone are in `decoders.rs`.
//!
//! The controls: each kind of answer must have been heard, so the storm got behind the
//! first refusal; and with `RequestPlace` not given back in `svm/src/agents.rs` it is red:
//! the requests stay open.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::TestSite;
use common::peer::{self, PATIENCE, Peer, Stream, fragment, indices, outline, request};
use common::watch::{Numbers, resident_kib};
use palisade_protocol::bounded::List;
use palisade_protocol::content::{ContentId, FRAGMENT_BYTES};
use palisade_protocol::identity::Identity;
use palisade_protocol::scan::{self, Fragment, RefusalCode, ScanClass, ToAgent, ToSvm};
use palisade_protocol::verdict::VerdictKind;
use palisade_protocol::{bounded::Text, frame};
use palisade_tests::command::wait_for;
use palisade_tests::definitions::Marker;
use palisade_tests::fuzz::mutate::mutate;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Hostile agents.
const AGENTS: usize = 4;
/// Streams that each of them has open at a time.
const STREAMS: usize = 24;
/// Streams after which an agent's session is thrown away for a new one.
const SESSION_STREAMS: usize = 500;
/// Streams that share one content, so that one's failure is the next one's start.
const SHARED: usize = 32;
/// Contents that are kept are counted by the byte and take whole pages: 512 of them at
/// the most.
const ROUNDING: f64 = 512.0 * 4096.0;
/// How long the honest agent rests between its rounds.
const BETWEEN: Duration = Duration::from_millis(20);
/// What the daemon, and all its engines together, may take more at the end than after a
/// quarter of the storm, in KiB.
const MAX_GROWTH_KIB: u64 = 64 * 1024;

/// Streams here; `scripts/soak` sets `PALISADE_MUTATIONS` to a million.
fn streams() -> usize {
    std::env::var("PALISADE_MUTATIONS").map_or(50_000, |text| text.parse().unwrap())
}

struct Storm {
    svm: SocketAddr,
    seed: u64,
    total: usize,
    next: AtomicUsize,
    heard: Mutex<BTreeMap<String, usize>>,
    marker: Marker,
}

impl Storm {
    fn count(&self, what: &str) {
        *self
            .heard
            .lock()
            .unwrap()
            .entry(what.to_owned())
            .or_default() += 1;
    }

    fn heard(&self, answer: Option<&ToAgent>) {
        self.count(match answer {
            None => "ended",
            Some(ToAgent::Welcome(_)) => "welcome",
            Some(ToAgent::Need(_)) => "need",
            Some(ToAgent::Verdict(_)) => "verdict",
            Some(ToAgent::Busy { .. }) => "busy",
            Some(ToAgent::Known(_)) => "known",
            Some(ToAgent::Refused(refusal)) => match refusal.code {
                RefusalCode::ContentMismatch => "refused: mismatch",
                RefusalCode::Protocol => "refused: protocol",
                RefusalCode::OverLimit => "refused: limit",
                RefusalCode::Unavailable => "refused: unavailable",
            },
        });
    }

    /// One of an agent's many streams, again and again.
    async fn blow(&self, sessions: &tokio::sync::RwLock<Arc<Peer>>, identity: &Identity) {
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.total {
                return;
            }
            let mut rng = StdRng::seed_from_u64(self.seed ^ index as u64);
            let session = Arc::clone(&*sessions.read().await);
            let Some(stream) = session
                .open()
                .await
                .filter(|_| !index.is_multiple_of(SESSION_STREAMS))
            else {
                // A session may be ended for what its peer does; the daemon may not.
                self.greet_badly(&mut rng, identity).await;
                let fresh = Arc::new(Peer::connect(self.svm, identity).await);
                *sessions.write().await = fresh;
                continue;
            };
            match rng.random_range(0..100) {
                0..55 => self.broken(stream, &mut rng).await,
                55..70 => self.broken_lookup(stream, &mut rng).await,
                _ => self.goes_wrong(stream, index, &mut rng).await,
            }
        }
    }

    /// A session whose first word is already wrong.
    async fn greet_badly(&self, rng: &mut StdRng, identity: &Identity) {
        let peer = Peer::dial(self.svm, identity).await;
        let hello = ToSvm::Hello(scan::Hello {
            version: Text::cut("storm"),
            notices: true,
        });
        let mut bytes = frame::to_bytes(&hello).unwrap();
        mutate(rng, &mut bytes, &[]);
        if let Some(stream) = peer.open().await {
            self.say_all(stream, &bytes).await;
        }
    }

    async fn say_all(&self, mut stream: Stream, bytes: &[u8]) {
        let _ = stream.send.write_all(bytes).await;
        let _ = stream.send.finish();
        loop {
            let answer = stream.hear().await;
            self.heard(answer.as_ref());
            if answer.is_none() {
                return;
            }
        }
    }

    /// What an honest agent would send, all at once, and changed in some places.
    async fn broken(&self, stream: Stream, rng: &mut StdRng) {
        let mut content = vec![0; FRAGMENT_BYTES as usize + 1000];
        rng.fill(&mut content[..64]);
        let outline = outline(&content);
        let ToSvm::Scan(mut scan) = request(&outline) else {
            unreachable!()
        };
        if rng.random_bool(0.1) {
            scan.content = ContentId(rng.random());
        }
        if rng.random_bool(0.1) {
            scan.size = rng.random();
        }
        scan.class = ScanClass::OnAccess;
        scan.deadline_ms = rng.random_range(0..5000);
        scan.max_age_s = rng.random();
        let messages = [
            ToSvm::Scan(scan),
            ToSvm::Outline(List::cut(outline.chaining_values().iter().copied())),
            ToSvm::Fragment(Fragment {
                index: rng.random_range(0..3),
                bytes: content[FRAGMENT_BYTES as usize..].to_vec(),
            }),
        ];
        let frames = messages.map(|message| frame::to_bytes(&message).unwrap());
        let mut bytes = frames.concat();
        mutate(rng, &mut bytes, &frames);
        self.say_all(stream, &bytes).await;
    }

    async fn broken_lookup(&self, stream: Stream, rng: &mut StdRng) {
        let contents: Vec<[u8; 8]> = (0..rng.random_range(0..128))
            .map(|_| rng.random())
            .collect();
        let contents: Vec<&[u8]> = contents.iter().map(<[u8; 8]>::as_slice).collect();
        let mut bytes = frame::to_bytes(&peer::lookup(&contents)).unwrap();
        mutate(rng, &mut bytes, &[]);
        self.say_all(stream, &bytes).await;
    }

    /// The content of a stream: every so many share one.
    fn content(&self, index: usize) -> (Vec<u8>, bool) {
        let mut rng = StdRng::seed_from_u64(!self.seed ^ (index / SHARED) as u64);
        let size = if rng.random_bool(0.3) {
            rng.random_range(FRAGMENT_BYTES + 1..3 * FRAGMENT_BYTES)
        } else {
            rng.random_range(100..20_000)
        };
        let mut bytes = vec![0; size as usize];
        rng.fill(&mut bytes[..]);
        let bad = rng.random_bool(0.3);
        if bad {
            bytes[..self.marker.bytes.len()].copy_from_slice(&self.marker.bytes);
        }
        (bytes, bad)
    }

    /// An honest agent up to what it is asked for, and then not, or to the end.
    async fn goes_wrong(&self, mut stream: Stream, index: usize, rng: &mut StdRng) {
        let (bytes, bad) = self.content(index);
        stream.begin(&bytes).await;
        let answer = stream.hear().await;
        self.heard(answer.as_ref());
        let Some(ToAgent::Need(ranges)) = answer else {
            return self.is_true(answer, bad);
        };
        let asked = indices(&ranges);
        let (first, last) = (asked[0], asked[asked.len() - 1]);
        let true_one = fragment(&bytes, first);
        let mut frame = frame::to_bytes(&true_one).unwrap();
        match rng.random_range(0..200) {
            0..25 => {
                let at = rng.random_range(20..frame.len());
                frame[at] ^= 1;
                let _ = stream.send.write_all(&frame).await;
            }
            25..50 => {
                stream.say(&true_one).await;
                stream.say(&true_one).await;
            }
            50..75 => {
                let unasked = Fragment {
                    index: last + 1,
                    bytes: vec![7; 1000],
                };
                stream.say(&ToSvm::Fragment(unasked)).await;
            }
            75..100 => {
                let _ = stream.send.write_all(&frame[..frame.len() / 2]).await;
            }
            100..120 => {
                // Gone in the midst of it, without a word.
                let _ = stream.send.write_all(&frame[..frame.len() / 2]).await;
                let _ = stream.send.reset(7_u32.into());
                let _ = stream.receive.stop(7_u32.into());
                return;
            }
            // No more, and no end either: it has to be given up.
            120..122 => {
                let _ = stream.send.write_all(&frame[..frame.len() / 2]).await;
                let answer = stream.hear().await;
                return self.heard(answer.as_ref());
            }
            122..140 => {
                for index in asked.iter().skip(1) {
                    stream.say(&fragment(&bytes, *index)).await;
                }
            }
            _ => {
                for index in asked {
                    stream.say(&fragment(&bytes, index)).await;
                }
            }
        }
        let _ = stream.send.finish();
        let answer = stream.hear().await;
        self.heard(answer.as_ref());
        self.is_true(answer, bad);
    }

    /// Whatever went wrong, a verdict is a true one.
    fn is_true(&self, answer: Option<ToAgent>, bad: bool) {
        if let Some(ToAgent::Verdict(result)) = answer {
            let expected = if bad {
                VerdictKind::Malware
            } else {
                VerdictKind::Clean
            };
            assert_eq!(result.verdict.kind(), expected, "seed {}", self.seed);
        }
    }
}

/// Asks without a pause until the storm is over; gives how many true verdicts it had.
async fn honest(svm: SocketAddr, identity: Identity, marker: Marker, over: &AtomicBool) -> usize {
    let peer = Peer::connect(svm, &identity).await;
    let unique = |bad: bool| {
        let mut bytes = vec![0; 3000];
        rand::rng().fill(&mut bytes[..]);
        if bad {
            bytes.extend_from_slice(&marker.bytes);
        }
        bytes
    };
    let (known_good, known_bad) = (unique(false), unique(true));
    let mut verdicts = 0;
    loop {
        let (new_good, new_bad) = (unique(false), unique(true));
        for (bytes, expected) in [
            (&known_good, VerdictKind::Clean),
            (&known_bad, VerdictKind::Malware),
            (&new_good, VerdictKind::Clean),
            (&new_bad, VerdictKind::Malware),
        ] {
            match peer.scan(bytes).await {
                Some(ToAgent::Verdict(result)) => assert_eq!(result.verdict.kind(), expected),
                lost => panic!("a verdict is lost after {verdicts}: {lost:?}"),
            }
            verdicts += 1;
        }
        let unknown = unique(false);
        let known = peer
            .look_up(&[&known_good, &unknown, &known_bad, &new_good])
            .await;
        let clean = known.expect("a lookup is lost").clean.into_vec();
        assert_eq!(clean, [true, false, false, true]);
        if over.load(Ordering::Relaxed) {
            return verdicts;
        }
        // The machine is the storm's too.
        tokio::time::sleep(BETWEEN).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_streams_hurt_nobody() {
    let marker = Marker::random();
    let test = TestSite::prepare(&[("m.ndb", marker.ndb())]);
    let metrics = test.start_with_numbers();
    let svm = test.site.scan_address().unwrap();
    let process = test.site.process("scanserver").unwrap().unwrap();
    let enrolled = |name: &str| {
        let settings = test.other_agent(name);
        peer::identity(&settings.parent().unwrap().join("var"))
    };
    let identities: Vec<Identity> = (0..AGENTS)
        .map(|n| enrolled(&format!("hostile-{n}")))
        .collect();
    let second = enrolled("second");
    let free = |numbers: &Numbers| numbers.sum("content_memory_bytes");
    let before = Numbers::read(metrics);

    let seed: u64 = rand::random();
    println!("seed {seed}, {} streams", streams());
    let storm = Arc::new(Storm {
        svm,
        seed,
        total: streams(),
        next: AtomicUsize::new(0),
        heard: Mutex::default(),
        marker: marker.clone(),
    });
    let over = Arc::new(AtomicBool::new(false));
    let asking = tokio::spawn({
        let (over, marker) = (Arc::clone(&over), marker.clone());
        async move { honest(svm, second, marker, &over).await }
    });
    let started = Instant::now();
    let mut blowing = Vec::new();
    for identity in identities {
        let session = Arc::new(Peer::connect(svm, &identity).await);
        let sessions = Arc::new(tokio::sync::RwLock::new(session));
        for _ in 0..STREAMS {
            let (storm, sessions, identity) =
                (Arc::clone(&storm), Arc::clone(&sessions), identity.clone());
            blowing.push(tokio::spawn(async move {
                storm.blow(&sessions, &identity).await;
            }));
        }
    }
    while storm.next.load(Ordering::Relaxed) < storm.total / 4 {
        assert!(!asking.is_finished(), "the other agent was hurt");
        assert!(blowing.iter().any(|task| !task.is_finished()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let quarter = resident_kib(process.pid);
    for task in blowing {
        task.await.unwrap();
    }
    let took = started.elapsed();
    over.store(true, Ordering::Relaxed);
    let verdicts = asking.await.unwrap();

    assert!(process.is_running(), "seed {seed}");
    let heard = storm.heard.lock().unwrap().clone();
    println!("{heard:?} in {took:?}; {verdicts} true verdicts of another agent meanwhile");
    for kind in [
        "need",
        "verdict",
        "known",
        "refused: mismatch",
        "refused: protocol",
    ] {
        assert!(heard.contains_key(kind), "the storm never heard {kind}");
    }
    assert!(verdicts >= 20, "{verdicts}");

    // Nothing stays taken.
    let after = wait_for("an idle Protection Server", PATIENCE, || {
        let now = Numbers::read(metrics);
        let open = ["requests_open", "queue_length", "lanes_busy"].map(|name| now.sum(name));
        anyhow::ensure!(open == [0.0; 3], "still open: {open:?}");
        let taken = free(&before) - free(&now);
        anyhow::ensure!(taken <= ROUNDING, "{taken} bytes of memory are still taken");
        Ok(resident_kib(process.pid))
    })
    .unwrap();
    assert!(free(&before) > 0.0);
    println!("resident, in KiB: {quarter:?} after a quarter, {after:?} at the end");
    let daemon = |all: &[(i32, u64)]| all[0].1;
    let engines = |all: &[(i32, u64)]| all[1..].iter().map(|(_, kib)| kib).sum::<u64>();
    assert!(
        daemon(&after) < daemon(&quarter) + MAX_GROWTH_KIB,
        "seed {seed}"
    );
    assert!(
        engines(&after) < engines(&quarter) + MAX_GROWTH_KIB,
        "seed {seed}"
    );
    let log = fs::read_to_string(test.site.log("scanserver")).unwrap();
    assert!(!log.contains("panicked"), "seed {seed}");

    // The site's own agent is served as before, too.
    let bad = test.file("bad", &marker.bytes);
    let good = test.file("good", b"harmless");
    let (code, result) = test.scan(&[bad.as_path(), good.as_path()]);
    assert_eq!(
        (code, &result["malware"], &result["clean"]),
        (1, &1.into(), &1.into()),
        "{result}"
    );
}
