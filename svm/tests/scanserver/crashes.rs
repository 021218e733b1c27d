//! Killed daemons, killed workers, damaged caches, clean stops.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_protocol::scan::VerdictSource;
use palisade_protocol::verdict::{NotScanned, Verdict, VerdictKind};

use crate::client::{Client, fragment, unique};
use crate::site::{Site, is_gone, marker, rule, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_outlives_a_kill() {
    let marker = marker();
    let site = Site::new(&[("some.yar", &rule("Known", &marker))]);
    let identity = site.ca.agent("default");
    let contents = [unique(1000), unique(600_000), marker.into_bytes()];
    let daemon = site.start();
    let client = Client::connect(&daemon, &identity).await;
    let mut kinds = Vec::new();
    for bytes in &contents {
        kinds.push(client.kind(bytes).await);
    }
    // Writes are gathered for a fifth of a second, and one more is under way.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let below = daemon.descendants();
    assert!(
        below.len() >= 2,
        "an engine and a worker at the least: {below:?}"
    );
    daemon.signal(Signal::SIGKILL);
    wait_until("the engines die with their daemon", || {
        below.iter().all(|pid| is_gone(*pid))
    });
    drop(daemon);

    let daemon = site.start();
    let client = Client::connect(&daemon, &identity).await;
    for (bytes, kind) in contents.iter().zip(kinds) {
        let scanned = client.scan(bytes).await;
        assert_eq!(scanned.fragments_sent, 0);
        let result = scanned.result();
        assert_eq!(
            (result.verdict.kind(), result.source),
            (kind, VerdictSource::SharedCache)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_cache_is_set_aside() {
    let site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    let identity = site.ca.agent("default");
    let bytes = unique(1000);
    for damage in [0_usize, 1, 2] {
        let mut daemon = site.start();
        let client = Client::connect(&daemon, &identity).await;
        assert_eq!(client.kind(&bytes).await, VerdictKind::Clean);
        daemon.signal(Signal::SIGTERM);
        daemon.wait();
        for file in std::fs::read_dir(site.state().join("cache")).unwrap() {
            let path = file.unwrap().path();
            if path.is_file() {
                let content = std::fs::read(&path).unwrap();
                let damaged = match damage {
                    0 => vec![0x55; content.len()],
                    1 => content[..content.len() / 2].to_vec(),
                    _ => Vec::new(),
                };
                std::fs::write(&path, damaged).unwrap();
            }
        }
        let daemon = site.start();
        let client = Client::connect(&daemon, &identity).await;
        if damage == 0 {
            assert!(
                daemon
                    .log
                    .has("it was set aside, and the cache starts empty")
            );
            assert!(site.state().join("cache.damaged").exists());
        }
        assert_eq!(client.kind(&bytes).await, VerdictKind::Clean);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_costs_one_retry() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[scan]\nworkers = 1\n".to_owned();
    site.plant(&["palisade-engine-yara"]);
    let daemon = site.start();
    let client = std::sync::Arc::new(Client::connect(&daemon, &site.ca.agent("default")).await);
    client.kind(b"clean").await;
    let hanging = tokio::spawn({
        let client = std::sync::Arc::clone(&client);
        async move { client.verdict(b"hang").await }
    });
    // The worker that served is killed, or the one that hangs; then its successor.
    let mut killed = Vec::new();
    while !hanging.is_finished() {
        for worker in daemon.workers() {
            if kill(Pid::from_raw(worker as i32), Signal::SIGKILL).is_ok() {
                killed.push(worker);
            }
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(killed.len() >= 2, "{killed:?}");
    let verdict = hanging.await.unwrap();
    assert!(
        matches!(
            verdict,
            Verdict::NotScanned(NotScanned::EngineFailed { .. })
        ),
        "{verdict:?}"
    );
    assert_eq!(client.kind(b"another").await, VerdictKind::Clean);
    // A failure is never stored: asked again, it is tried again.
    assert_eq!(client.kind(b"crash").await, VerdictKind::NotScanned);
    let again = client.scan(b"crash").await;
    assert_eq!(again.fragments_sent, 1);
    assert_eq!(again.result().source, VerdictSource::Scanned);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_past_its_deadline_is_not_clean_and_not_stored() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[scan]\ntimeout_s = 1\n".to_owned();
    site.plant(&["palisade-engine-yara"]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    for _ in 0..2 {
        let result = client.scan(b"hang").await.result();
        assert_eq!(result.verdict, Verdict::NotScanned(NotScanned::TimedOut));
        assert_eq!(result.source, VerdictSource::Scanned);
    }
    assert_eq!(client.kind(b"clean").await, VerdictKind::Clean);
    // What is deterministic is stored.
    for source in [VerdictSource::Scanned, VerdictSource::SharedCache] {
        let result = client.scan(b"limit").await.result();
        assert!(matches!(
            result.verdict,
            Verdict::NotScanned(NotScanned::LimitHit { .. })
        ));
        assert_eq!(result.source, source);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_engine_is_started_again_and_meanwhile_nothing_is_clean() {
    let site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(client.kind(&unique(100)).await, VerdictKind::Clean);
    let engines = daemon.engines();
    for engine in &engines {
        kill(Pid::from_raw(*engine as i32), Signal::SIGKILL).unwrap();
    }
    wait_until("they are gone", || engines.iter().all(|pid| is_gone(*pid)));
    let mut refused = 0;
    for _ in 0..600 {
        match client.scan(&unique(100)).await.answer {
            palisade_protocol::scan::ToAgent::Verdict(result) => {
                assert_eq!(result.verdict.kind(), VerdictKind::Clean);
                let now = daemon.engines();
                assert_eq!(now.len(), engines.len());
                assert!(now.iter().all(|pid| !engines.contains(pid)));
                assert!(refused > 0, "somebody scanned without an engine");
                return;
            }
            _ => refused += 1,
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the engine stays away");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_bounded_and_leaves_nothing() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.plant(&["palisade-engine-yara"]);
    let mut daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    // One that hangs in its engine, and one that never sends.
    let mut hanging = client.begin(b"hang").await;
    hanging.need().await;
    hanging.say(&fragment(b"hang", 0)).await;
    let mut silent = client.begin(b"never sent").await;
    silent.need().await;
    let below = daemon.descendants();
    let started = std::time::Instant::now();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    // Five seconds for requests, and a little for engines and sessions to end.
    assert!(started.elapsed().as_secs() < 15, "{:?}", started.elapsed());
    assert!(below.iter().all(|pid| is_gone(*pid)), "{below:?}");
    assert!(!site.dir.path().join("run/scanserver/scratch").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_daemon_stops_at_once_with_everything_reaped() {
    let site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    let mut daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(client.kind(&unique(100)).await, VerdictKind::Clean);
    let below = daemon.descendants();
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(below.iter().all(|pid| is_gone(*pid)), "{below:?}");
    daemon.log.wait_for("stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_do_not_share_a_state() {
    let site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    let _daemon = site.start();
    let (code, said) = site.start_fails();
    assert_eq!(code, 3);
    assert!(said.contains("in use"), "{said}");
}
