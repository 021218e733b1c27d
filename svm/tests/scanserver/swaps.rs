//! Nothing is missed, and little is in memory, while generations change.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_protocol::scan::ToAgent;
use palisade_protocol::verdict::VerdictKind;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::client::{Client, unique};
use crate::site::{Daemon, Site, marker, ndb, rule, wait_until};

/// What a stream of scans came to.
#[derive(Debug, Default)]
struct Account {
    scans: AtomicUsize,
    /// Answers that are no verdict, or no verdict of engines.
    failed: AtomicUsize,
    /// Verdicts that are not the right ones.
    wrong: AtomicUsize,
}

/// Scans without a pause until it is stopped: contents with one of two markers, and
/// clean ones, none of which a cache knows.
struct Stream {
    account: Arc<Account>,
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Stream {
    async fn start(daemon: &Daemon, site: &Site, markers: [&str; 2]) -> Self {
        let account = Arc::new(Account::default());
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        for _ in 0..3 {
            let client = Client::connect(daemon, &site.ca.agent("default")).await;
            let (account, stop) = (Arc::clone(&account), Arc::clone(&stop));
            let markers = markers.map(str::to_owned);
            tasks.push(tokio::spawn(async move {
                let kinds = [Some(&markers[0]), None, Some(&markers[1]), None];
                for marker in kinds.iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let mut content = unique(20_000);
                    let expected = match marker {
                        Some(marker) => {
                            content.extend(marker.as_bytes());
                            VerdictKind::Malware
                        }
                        None => VerdictKind::Clean,
                    };
                    let counter = match client.scan(&content).await.answer {
                        ToAgent::Verdict(result) => match result.verdict.kind() {
                            kind if kind == expected => None,
                            VerdictKind::NotScanned => Some(&account.failed),
                            _ => Some(&account.wrong),
                        },
                        _ => Some(&account.failed),
                    };
                    account.scans.fetch_add(1, Ordering::Relaxed);
                    if let Some(counter) = counter {
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }));
        }
        Self {
            account,
            stop,
            tasks,
        }
    }

    /// Waits until so many more scans are done.
    fn flows(&self, more: usize) {
        let before = self.account.scans.load(Ordering::Relaxed);
        wait_until("the stream goes on", || {
            self.account.scans.load(Ordering::Relaxed) >= before + more
        });
    }

    async fn end(self) -> (usize, usize, usize) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
        let of = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        let account = &self.account;
        (of(&account.scans), of(&account.failed), of(&account.wrong))
    }
}

/// A set that knows both markers, and otherwise differs from every other.
fn set(markers: [&str; 2]) -> [(&'static str, String); 2] {
    let filler = format!("F{:032x}", rand::random::<u128>());
    [
        (
            "known.ndb",
            ndb("Known", markers[0]) + &ndb(&filler, &marker()),
        ),
        (
            "known.yar",
            rule("Known", markers[1]) + &rule(&filler, &marker()),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_scan_fails_or_is_wrong_while_generations_are_swapped() {
    let [by_clamav, by_yara] = [marker(), marker()];
    let markers = [by_clamav.as_str(), by_yara.as_str()];
    let site = Site::new(
        &set(markers)
            .each_ref()
            .map(|(name, text)| (*name, text.as_str())),
    );
    let daemon = site.start();
    let stream = Stream::start(&daemon, &site, markers).await;
    stream.flows(20);
    for generation in 2..=6 {
        let files = set(markers);
        let files = files.each_ref().map(|(name, text)| (*name, text.as_str()));
        let dir = site.directory(&format!("set{generation}"), &files);
        let said = site.definitions_json(&["import", &dir]);
        assert_eq!(said["active"], generation);
        stream.flows(20);
    }
    let (scans, failed, wrong) = stream.end().await;
    assert_eq!((failed, wrong), (0, 0), "of {scans}");
    wait_until("the old engines are gone", || daemon.engines().len() == 2);
}

/// The control: were the old engines dropped before the new ones serve, the stream
/// would notice. Their end from outside is that gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_gap_between_two_sets_would_be_noticed() {
    let [by_clamav, by_yara] = [marker(), marker()];
    let markers = [by_clamav.as_str(), by_yara.as_str()];
    let site = Site::new(
        &set(markers)
            .each_ref()
            .map(|(name, text)| (*name, text.as_str())),
    );
    let daemon = site.start();
    let stream = Stream::start(&daemon, &site, markers).await;
    stream.flows(20);
    for engine in daemon.engines() {
        kill(Pid::from_raw(engine as i32), Signal::SIGKILL).unwrap();
    }
    stream.flows(20);
    let (_, failed, wrong) = stream.end().await;
    assert!(failed > 0);
    assert_eq!(wrong, 0, "not even then");
}

/// Signatures as a vendor's set has them, by number: hashes of whole files and byte
/// sequences, none of which is anywhere.
fn synthetic(hashes: usize, bodies: usize) -> [(&'static str, String); 2] {
    let mut random = StdRng::seed_from_u64(7);
    let mut hsb = String::new();
    for n in 0..hashes {
        let size = random.random_range(1_000..2_000_000);
        let hash: [u8; 32] = random.random();
        hsb += &format!("{}:{size}:Made.Up.File-{n}:73\n", hex::encode(hash));
    }
    let mut body = String::new();
    for n in 0..bodies {
        let length = random.random_range(16..48);
        let bytes: Vec<u8> = (0..length).map(|_| random.random()).collect();
        let target = [0, 1, 6][n % 3];
        body += &format!("Made.Up.Body-{n}:{target}:*:{}\n", hex::encode(bytes));
    }
    [("made-up.hsb", hsb), ("made-up.ndb", body)]
}

/// Memory of processes in KiB, each shared page counted once among those that have it.
fn pss_kib(processes: &[u32]) -> u64 {
    let of = |pid: &u32| -> Option<u64> {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = rollup.lines().find(|line| line.starts_with("Pss:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    };
    processes.iter().filter_map(of).sum()
}

/// While a set is swapped, at most two and a tenth are in memory; and where only the
/// rules changed, only one and a little.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_engines_and_a_tenth_are_the_most_in_memory() {
    let rules = |n: usize| rule(&format!("Rule{n}"), &marker());
    let [hashes, bodies] = synthetic(100_000, 20_000);
    let mut site = Site::new(&[
        (hashes.0, &hashes.1),
        (bodies.0, &bodies.1),
        ("rules.yar", &rules(0)),
    ]);
    site.settings = "[scan]\nworkers = 2\n".to_owned();
    // Checked against the machine's own programs, as by default.
    site.definitions = "poll_s = 3600\n".to_owned();
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    // Both lanes have their workers.
    for _ in 0..8 {
        let (one, other) = (unique(50_000), unique(60_000));
        tokio::join!(client.kind(&one), client.kind(&other));
    }
    let one = pss_kib(&daemon.descendants());

    let peak = |order: &[&str]| {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let sampling = scope.spawn(|| {
                // A fork between two of a sample's readings has its pages counted twice:
                // what a peak is lasts for three samples.
                let (mut peak, mut last) = (0, [0; 3]);
                while !done.load(Ordering::Relaxed) {
                    last.rotate_left(1);
                    last[2] = pss_kib(&daemon.descendants());
                    peak = peak.max(last.into_iter().min().unwrap_or(0));
                    std::thread::sleep(Duration::from_millis(5));
                }
                peak
            });
            site.definitions_json(order);
            done.store(true, Ordering::Relaxed);
            sampling.join().unwrap()
        })
    };

    site.define("more.ndb", &ndb("More", &marker()));
    let whole = peak(&["refresh"]);
    eprintln!("one engine {one} KiB, at most {whole} KiB in a swap of the large one");
    assert!(whole * 10 <= one * 21, "{whole} KiB of {one} KiB");
    // The control: the measure does see both.
    assert!(whole * 10 >= one * 15, "{whole} KiB of {one} KiB");

    wait_until("the old engine is gone", || daemon.engines().len() == 2);
    site.define("rules.yar", &rules(1));
    let small = peak(&["refresh"]);
    eprintln!("at most {small} KiB in a swap of the rules");
    assert!(
        small * 10 <= one * 14,
        "{small} KiB of {one} KiB: more than the rules was loaded"
    );
}
