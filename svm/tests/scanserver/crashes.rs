//! Killed daemons, killed workers, damaged caches, clean stops.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_protocol::content::ContentId;
use palisade_protocol::scan::{ToSvm, VerdictSource};
use palisade_protocol::verdict::{NotScanned, Verdict, VerdictKind};

use crate::client::{Client, fragment, request, unique};
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

/// Between a malware verdict and the moment in which the copy on disk has it, the daemon is
/// killed: the clean verdict of earlier definitions, which stands there, is not served.
/// The same where the disk has no room to note that.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_brings_no_clean_verdict_back_that_was_overruled() {
    for full in [false, true] {
        let known = marker();
        let mut site = Site::new(&[("rules.yar", &rule("Other", &marker()))]);
        site.settings = "[retroactive]\nrescan = false\n".to_owned();
        let identity = site.ca.agent("default");
        let bytes = known.clone().into_bytes();
        let mut daemon = site.start();
        let client = Client::connect(&daemon, &identity).await;
        assert_eq!(client.kind(&bytes).await, VerdictKind::Clean);
        daemon.signal(Signal::SIGTERM);
        daemon.wait();

        let daemon = site.start();
        let client = Client::connect(&daemon, &identity).await;
        assert_eq!(client.source(&bytes).await, VerdictSource::SharedCache);
        site.define("rules.yar", &rule("Known", &known));
        site.definitions_json(&["refresh"]);
        if full {
            let notes = site.state().join("cache.overruled");
            std::os::unix::fs::symlink("/dev/full", notes).unwrap();
        }
        assert_eq!(client.kind(&bytes).await, VerdictKind::Malware);
        daemon.signal(Signal::SIGKILL);
        drop(daemon);

        let daemon = site.start();
        let client = Client::connect(&daemon, &identity).await;
        let mut asked = request(ContentId::of(&bytes), bytes.len() as u64);
        asked.max_age_s = 86_400;
        let mut stream = client.stream().await;
        stream.say(&ToSvm::Scan(asked)).await;
        let result = stream.finish(&bytes).await.result();
        assert_eq!(result.verdict.kind(), VerdictKind::Malware, "{result:?}");
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
    // No content sends SIGKILL: whoever did, it is not held against this one.
    assert!(!daemon.log.has("a content killed its worker twice"));
    assert_eq!(client.kind(b"another").await, VerdictKind::Clean);
    // A failure of the engine's own words kills nobody and is never stored: asked
    // again, it is tried again.
    for _ in 0..2 {
        let scanned = client.scan(b"error").await;
        assert_eq!(scanned.fragments_sent, 1);
        let result = scanned.result();
        assert_eq!(result.verdict.kind(), VerdictKind::NotScanned);
        assert_eq!(result.source, VerdictSource::Scanned);
    }
}

/// Its workers were killed once and once again; that is remembered, for the tenant
/// whose content it is, until the definitions change.
#[tokio::test(flavor = "multi_thread")]
async fn a_content_that_killed_twice_is_not_tried_again() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[scan]\nworkers = 1\n".to_owned();
    site.plant(&["palisade-engine-yara"]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let lost = || {
        let lines = daemon.log.lines();
        let lost = lines
            .iter()
            .filter(|line| line.contains("a worker was lost"));
        lost.count()
    };
    let engine_failed = |verdict: &Verdict| matches!(verdict, Verdict::NotScanned(NotScanned::EngineFailed { detail }) if detail.as_str().contains("SIGABRT"));

    let first = client.scan(b"crash").await;
    assert_eq!(first.fragments_sent, 1);
    assert!(engine_failed(&first.result().verdict));
    daemon.log.wait_for("a content killed its worker twice");
    assert_eq!(lost(), 2);
    for _ in 0..3 {
        let again = client.scan(b"crash").await;
        assert_eq!(again.fragments_sent, 0, "it was asked for again");
        let result = again.result();
        assert!(engine_failed(&result.verdict), "{:?}", result.verdict);
        assert_eq!(result.source, VerdictSource::Scanned);
    }
    assert_eq!(lost(), 2);
    assert_eq!(client.kind(b"another").await, VerdictKind::Clean);

    // What one tenant's contents do is nothing that another's verdicts show.
    let other = Client::connect(&daemon, &site.ca.agent("other")).await;
    assert_eq!(other.scan(b"crash").await.fragments_sent, 1);
    wait_until("the log has it", || lost() == 4);

    // Other definitions may do better: it is tried again.
    site.define("more.yar", &rule("More", &marker()));
    daemon.signal(Signal::SIGHUP);
    daemon.log.wait_for("definitions are in force generation=2");
    assert_eq!(client.scan(b"crash").await.fragments_sent, 1);
    wait_until("the log has it", || lost() == 6);
}

/// The process that scanned a content, by its own word.
async fn scanned_by(client: &Client, content: &str) -> String {
    match client.verdict(format!("pid {content}").as_bytes()).await {
        Verdict::Malware { name, .. } => name.as_str().to_owned(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_serves_one_tenant_and_not_for_ever() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[scan]\nworkers = 1\nrecycle_after = 3\n".to_owned();
    site.plant(&["palisade-engine-yara"]);
    let daemon = site.start();
    let one = Client::connect(&daemon, &site.ca.agent("one")).await;
    let two = Client::connect(&daemon, &site.ca.agent("two")).await;

    let first = scanned_by(&one, "a").await;
    let others = scanned_by(&two, "b").await;
    assert_ne!(first, others, "a worker went from one tenant to another");
    // Both are kept for their tenants, whoever was asked for last.
    assert_eq!(scanned_by(&one, "c").await, first);
    assert_eq!(scanned_by(&two, "d").await, others);
    // Three contents each; then others take over.
    assert_eq!(scanned_by(&one, "e").await, first);
    let second = scanned_by(&one, "f").await;
    assert_ne!(second, first);
    // A limit that was hit is an oddity that ends a worker.
    assert_eq!(one.kind(b"limit").await, VerdictKind::NotScanned);
    assert_ne!(scanned_by(&one, "g").await, second);
    assert_eq!(scanned_by(&two, "h").await, others);
}

/// So long it may take until a killed worker's successor has given a verdict.
const BACK_WITHIN: std::time::Duration = std::time::Duration::from_millis(50);

/// Whoever kills workers, those that wait included, has killed no content's. They are
/// stopped first, which is how a process looks that takes a moment to die: seen red with
/// a second attempt that takes one that waits.
#[tokio::test(flavor = "multi_thread")]
async fn workers_that_others_killed_are_no_contents_fault() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[scan]\nworkers = 1\n".to_owned();
    let daemon = site.start();
    let client = std::sync::Arc::new(Client::connect(&daemon, &site.ca.agent("default")).await);
    client.kind(&unique(100)).await;
    // The one that scanned is the oldest of its engine, and the first to go.
    let mut workers = daemon.workers();
    workers.sort_unstable();
    let tell = |worker: &u32, signal| {
        // Gone already is as good.
        let _ = kill(Pid::from_raw(*worker as i32), signal);
    };
    workers
        .iter()
        .for_each(|worker| tell(worker, Signal::SIGSTOP));
    let asked = tokio::spawn({
        let client = std::sync::Arc::clone(&client);
        async move { client.verdict(&unique(101)).await }
    });
    for worker in &workers {
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        tell(worker, Signal::SIGKILL);
    }
    assert_eq!(asked.await.unwrap(), Verdict::Clean);
    assert!(!daemon.log.has("a content killed its worker twice"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_is_back_at_once() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[scan]\nworkers = 1\n".to_owned();
    site.plant(&["palisade-engine-yara"]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let mut scanner = scanned_by(&client, "first").await;
    let mut took = Vec::new();
    for round in 0..20 {
        // One that is still dying would be a scan that failed.
        let pid: u32 = scanner.parse().unwrap();
        kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
        let killed = std::time::Instant::now();
        wait_until("it is gone", || is_gone(pid));
        let successor = scanned_by(&client, &format!("round {round}")).await;
        took.push(killed.elapsed());
        assert_ne!(successor, scanner);
        scanner = successor;
    }
    took.sort();
    println!(
        "from a worker's end until its successor has given a verdict: {:?} at best, {:?} in the \
         middle, {:?} at worst",
        took[0], took[10], took[19]
    );
    assert!(took[10] <= BACK_WITHIN, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_past_its_deadline_is_not_clean_and_not_stored() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[scan]\ntimeout_s = 1\n".to_owned();
    site.plant(&["palisade-engine-yara"]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    // It is not stored, and neither does it take a lane for as long at every open.
    for sent in [1, 0] {
        let scanned = client.scan(b"hang").await;
        assert_eq!(scanned.fragments_sent, sent);
        let result = scanned.result();
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
