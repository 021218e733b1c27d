//! Killed under load, again and again: each time it comes back with a usable cache, no
//! verdict is ever wrong, and nothing of the killed ones is left.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nix::sys::signal::Signal;
use palisade_protocol::identity::Identity;
use palisade_protocol::scan::{ToAgent, VerdictSource};
use palisade_protocol::verdict::VerdictKind;
use tokio::task::JoinSet;

use crate::client::{Client, unique};
use crate::load::sample;
use crate::measured::{read, sum};
use crate::site::{Daemon, Site, is_gone, marker, rule, wait_until};

/// Agents that ask all the while.
const AGENTS: usize = 4;
/// Contents that all of them ask for in every life of the daemon.
const COMMON: usize = 30;
/// Longest life under load, in milliseconds.
const LIFE_MS: u64 = 1500;

/// Kills after which a long run says where it is.
const SAID_EVERY: usize = 50;

/// Kills here; `scripts/soak` sets `PALISADE_KILLS` to a thousand.
fn kills() -> usize {
    std::env::var("PALISADE_KILLS").map_or(20, |text| text.parse().unwrap())
}

/// What an agent heard in one life of the daemon.
#[derive(Default)]
struct Heard {
    scanned: usize,
    cached: usize,
    none: usize,
}

/// Asks for common contents and for new ones, and checks each verdict against what is
/// true, until nobody answers.
async fn ask(client: Client, common: Arc<Vec<(Vec<u8>, VerdictKind)>>, marker: String) -> Heard {
    let mut heard = Heard::default();
    for turn in 0_usize.. {
        let bad = turn.is_multiple_of(4);
        let kind = if bad {
            VerdictKind::Malware
        } else {
            VerdictKind::Clean
        };
        let changing = (sample(&marker, bad), kind);
        let (bytes, kind) = match turn % 2 {
            0 => &changing,
            _ => &common[rand::random_range(0..common.len())],
        };
        match client.ask(bytes).await {
            Some(ToAgent::Verdict(result)) => {
                assert_eq!(result.verdict.kind(), *kind, "{:?}", result.verdict);
                match result.source {
                    VerdictSource::SharedCache => heard.cached += 1,
                    _ => heard.scanned += 1,
                }
            }
            Some(_) => heard.none += 1,
            None => return heard,
        }
    }
    heard
}

fn entries(daemon: &Daemon) -> f64 {
    sum(&read(daemon), "palisade_svm_cache_entries")
}

/// What lies below a folder and was made before `time`.
fn older(folder: &Path, time: SystemTime) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let made = entry.metadata().and_then(|data| data.created());
        if made.is_ok_and(|made| made < time) {
            found.push(entry.path());
        }
        found.extend(older(&entry.path(), time));
    }
    found
}

async fn connect(daemon: &Daemon, identities: &[Identity]) -> Vec<Client> {
    let mut clients = Vec::new();
    for identity in identities {
        clients.push(Client::connect(daemon, identity).await);
    }
    clients
}

/// The control: with `PALISADE_SCANSERVER__CACHE__PERSIST=false` the cache is empty after
/// each kill, and it is red.
#[tokio::test(flavor = "multi_thread")]
async fn no_kill_makes_a_verdict_wrong() {
    let marker = marker();
    let mut site = Site::new(&[("some.yar", &rule("Known", &marker))]);
    site.settings = "[metrics]\nlisten = '127.0.0.1:0'\n".to_owned();
    let scratch = site.dir.path().join("run/scanserver/scratch");
    let identities: Vec<Identity> = (0..AGENTS).map(|_| site.ca.agent("default")).collect();
    let common: Vec<(Vec<u8>, VerdictKind)> = (0..COMMON)
        .map(|n| match n % 3 {
            0 => (sample(&marker, true), VerdictKind::Malware),
            1 => (sample(&marker, false), VerdictKind::Clean),
            _ => (unique(300_000 + n), VerdictKind::Clean),
        })
        .collect();
    let common = Arc::new(common);
    let anchor = unique(5000);
    let mut below = HashSet::new();
    let mut all = Heard::default();
    let mut damaged = 0;
    for round in 0..kills() {
        if round > 0 && round % SAID_EVERY == 0 {
            println!("{round} kills so far");
        }
        let daemon = site.start();
        let found = entries(&daemon);
        let clients = connect(&daemon, &identities).await;
        let source = clients[0].source(&anchor).await;
        if round == 0 || damaged == round {
            assert_eq!(
                (found, source),
                (0.0, VerdictSource::Scanned),
                "round {round}"
            );
            // It is written within a moment, and the kills are to come after that.
            tokio::time::sleep(Duration::from_secs(1)).await;
        } else {
            assert!(found > 0.0, "the cache is empty in round {round}");
            assert_eq!(source, VerdictSource::SharedCache, "round {round}");
        }
        let mut asking = JoinSet::new();
        let sessions: Vec<_> = clients.iter().map(|one| one.connection.clone()).collect();
        for client in clients {
            asking.spawn(ask(client, Arc::clone(&common), marker.clone()));
        }
        let life = rand::random_range(LIFE_MS / 10..LIFE_MS);
        tokio::time::sleep(Duration::from_millis(life)).await;
        below.extend(daemon.descendants());
        assert!(!daemon.log.has("panicked"));
        let killed = SystemTime::now();
        daemon.signal(Signal::SIGKILL);
        drop(daemon);
        // A killed peer says nothing: the sessions would last until they are idle.
        for session in sessions {
            session.close(0_u32.into(), b"");
        }
        for heard in asking.join_all().await {
            all.scanned += heard.scanned;
            all.cached += heard.cached;
            all.none += heard.none;
        }
        wait_until("engines and workers die with their daemon", || {
            below.iter().all(|pid| is_gone(*pid))
        });
        below.clear();
        // Once in between, the copy on disk is damaged, too.
        if round + 1 == kills() / 2 {
            for file in std::fs::read_dir(site.state().join("cache")).unwrap() {
                let path = file.unwrap().path();
                if path.is_file() {
                    let length = std::fs::metadata(&path).unwrap().len() as usize;
                    std::fs::write(path, vec![0x55; length]).unwrap();
                }
            }
            damaged = round + 1;
            let daemon = site.start();
            let said = "it was set aside, and the cache starts empty";
            assert!(daemon.log.has(said));
            assert_eq!(entries(&daemon), 0.0);
            let left = older(&scratch, killed);
            assert!(left.is_empty(), "of the killed ones: {left:?}");
            below.extend(daemon.descendants());
        }
    }
    let Heard {
        scanned,
        cached,
        none,
    } = all;
    println!(
        "{} kills: {scanned} scanned, {cached} from the cache, {none} put off",
        kills()
    );
    assert!(
        scanned >= kills() && cached >= kills(),
        "{scanned} {cached}"
    );

    let mut daemon = site.start();
    below.extend(daemon.descendants());
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(below.iter().all(|pid| is_gone(*pid)), "{below:?}");
    assert!(!scratch.exists());
}
