//! Contents whose scans take long: what they cost those who wait, and themselves. By
//! order and count, not by time.

use std::time::Duration;

use palisade_protocol::scan::{ScanResult, ToAgent};
use palisade_protocol::verdict::{NotScanned, Verdict};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::client::{Client, Stream, fragment, indices, unique};
use crate::measured::{read, sum};
use crate::site::{Daemon, Site, marker, ndb, rule, wait_until};

/// A wait that only a defect exhausts.
const LONG_PATIENCE: Duration = Duration::from_secs(120);

/// A site whose first engine takes as long as a content says.
fn site(lanes: usize, settings: &str) -> Site {
    let members = rule("Members", &marker());
    let mut site = Site::new(&[("x.ndb", &ndb("X", &marker())), ("m.yar", &members)]);
    site.settings =
        format!("[metrics]\nlisten = '127.0.0.1:0'\n[scan]\nworkers = {lanes}\n{settings}\n");
    site.plant(&["palisade-engine-clamav"]);
    site
}

/// Sends a content; its verdict comes later.
async fn send(client: &Client, bytes: &[u8]) -> Stream {
    let mut stream = client.begin(bytes).await;
    for index in indices(&stream.need().await) {
        stream.say(&fragment(bytes, index)).await;
    }
    stream
}

async fn verdict(mut stream: Stream) -> ScanResult {
    match stream.hear_soon(LONG_PATIENCE).await {
        Some(ToAgent::Verdict(result)) => result,
        other => panic!("no verdict but {other:?}"),
    }
}

/// Waits until so many of the contents have been given to an engine.
fn wait_until_asked(daemon: &Daemon, contents: usize) {
    wait_until("the lanes are taken", || {
        let lines = daemon.log.lines();
        let asked = lines
            .iter()
            .filter(|line| line.contains("an engine is asked") && line.contains("libclamav"));
        asked.count() >= contents
    });
}

/// Who had verdicts in which order: one agent sends three times as many contents that
/// hang as there are lanes; then an agent of its tenant and one of another have small ones.
async fn order(lanes: usize, settings: &str) -> Vec<&'static str> {
    let site = site(lanes, settings);
    let daemon = site.start();
    let slow = Client::connect(&daemon, &site.ca.agent("one")).await;
    let (told, mut hears) = mpsc::unbounded_channel();
    let mut waiting = JoinSet::new();
    let mut say = |who: &'static str, stream: Stream| {
        let told = told.clone();
        waiting.spawn(async move {
            let result = verdict(stream).await;
            let expected = match who {
                "slow" => Verdict::NotScanned(NotScanned::TimedOut),
                _ => Verdict::Clean,
            };
            assert_eq!(result.verdict, expected, "{who}");
            told.send(who).unwrap();
        });
    };
    for n in 0..3 * lanes {
        let bytes = format!("hang {n} {}", marker());
        say("slow", send(&slow, bytes.as_bytes()).await);
    }
    wait_until_asked(&daemon, lanes);
    let neighbour = Client::connect(&daemon, &site.ca.agent("one")).await;
    let stranger = Client::connect(&daemon, &site.ca.agent("two")).await;
    for _ in 0..5 {
        say("neighbour", send(&neighbour, &unique(1000)).await);
        say("stranger", send(&stranger, &unique(1000)).await);
    }
    let mut order = Vec::new();
    while order.len() < 10 {
        order.push(hears.recv().await.unwrap());
    }
    order
}

/// The control is the same with scans that never give way: then slow ones end first.
async fn small_ones_first(lanes: usize) {
    let defended = order(lanes, "timeout_s = 30\ngive_way_ms = 300").await;
    assert!(!defended.contains(&"slow"), "{defended:?}");
    let control = order(lanes, "timeout_s = 3\ngive_way_ms = 600000").await;
    // What a lane is given next may be answered before its slow one is heard of.
    assert!(control[..2].contains(&"slow"), "{control:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn small_contents_do_not_wait_for_anothers_slow_ones_with_one_lane() {
    small_ones_first(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_contents_do_not_wait_for_anothers_slow_ones_with_two_lanes() {
    small_ones_first(2).await;
}

/// Slow contents that give way are scanned in the end, whole, and their workers' deaths
/// are not held against them. The control is the content that takes too long wherever it
/// runs: it is not clean.
#[tokio::test(flavor = "multi_thread")]
async fn what_gave_way_is_scanned_whole_and_blamed_for_nothing() {
    let site = site(1, "timeout_s = 5\ngive_way_ms = 200");
    let daemon = site.start();
    let slow = Client::connect(&daemon, &site.ca.agent("one")).await;
    let other = Client::connect(&daemon, &site.ca.agent("two")).await;
    let slowly: Vec<String> = (0..3).map(|_| format!("sleep 2000 {}", marker())).collect();
    let hangs = format!("hang {}", marker());
    let mut streams = Vec::new();
    for content in &slowly {
        streams.push(send(&slow, content.as_bytes()).await);
    }
    let hanging = send(&slow, hangs.as_bytes()).await;
    wait_until_asked(&daemon, 1);
    // As long as any is on the lane, others have it give way.
    let stopped = || {
        sum(
            &read(&daemon),
            "palisade_svm_scans_gave_way_total{how=\"stopped\"}",
        )
    };
    let mut small = 0;
    while stopped() < 2.0 {
        assert_eq!(other.verdict(&unique(1000)).await, Verdict::Clean);
        small += 1;
        assert!(small < 10_000, "nobody gave way");
    }
    let moved = sum(
        &read(&daemon),
        "palisade_svm_scans_gave_way_total{how=\"moved\"}",
    );
    assert!(moved >= 1.0, "the side lane was not used");
    for stream in streams {
        assert_eq!(verdict(stream).await.verdict, Verdict::Clean);
    }
    let timed_out = Verdict::NotScanned(NotScanned::TimedOut);
    assert_eq!(verdict(hanging).await.verdict, timed_out);
    assert!(!daemon.log.has("a worker was lost"));
    let samples = read(&daemon);
    assert_eq!(samples["palisade_svm_contents_poisoned"], 0.0);
    assert_eq!(sum(&samples, "palisade_svm_queue_length"), 0.0);
    for busy in ["palisade_svm_lanes_busy", "palisade_svm_side_lanes_busy"] {
        assert_eq!(samples[busy], 0.0, "{busy}");
    }
    // What was clean is known, what was not scanned is not.
    let contents: Vec<&[u8]> = slowly
        .iter()
        .chain([&hangs])
        .map(|text| text.as_bytes())
        .collect();
    assert_eq!(slow.look_up(&contents).await, [true, true, true, false]);
}

/// A stop ends scans that gave way and wait, as all others.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_does_not_wait_for_what_gave_way() {
    let site = site(1, "timeout_s = 60\ngive_way_ms = 200");
    let mut daemon = site.start();
    let slow = Client::connect(&daemon, &site.ca.agent("one")).await;
    let other = Client::connect(&daemon, &site.ca.agent("two")).await;
    let mut streams = Vec::new();
    for n in 0..4 {
        let bytes = format!("hang {n} {}", marker());
        streams.push(send(&slow, bytes.as_bytes()).await);
    }
    wait_until_asked(&daemon, 1);
    let long = || sum(&read(&daemon), "palisade_svm_queue_length{class=\"long\"}");
    for _ in 0..10_000 {
        if long() >= 1.0 {
            break;
        }
        assert_eq!(other.verdict(&unique(1000)).await, Verdict::Clean);
    }
    assert!(long() >= 1.0, "nobody gave way");
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    for mut stream in streams {
        let heard = palisade_protocol::frame::read::<ToAgent>(&mut stream.receive).await;
        assert!(!matches!(heard, Ok(Some(ToAgent::Verdict(_)))), "{heard:?}");
    }
}
