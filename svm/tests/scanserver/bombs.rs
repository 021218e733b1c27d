//! Archives that unpack to more than there is: not scanned for a limit, within bounded
//! memory, and the next content is served.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use palisade_protocol::scan::ToAgent;
use palisade_protocol::verdict::{NotScanned, Verdict, VerdictKind};

use crate::client::{Client, fragment, indices, unique};
use crate::load::Honest;
use crate::site::{Daemon, Site, marker, ndb, resident_kib, rule};

/// What the daemon may take more at any moment, in KiB: it unpacks nothing.
const MAX_DAEMON_KIB: u64 = 64 * 1024;
/// What all engines and workers together may take more at any moment, in KiB: two lanes
/// of two engines, each with a content of the largest part's size and its members.
const MAX_ENGINES_KIB: u64 = 1024 * 1024;

/// A wait that only a defect exhausts.
const BOMB_PATIENCE: Duration = Duration::from_secs(600);

/// Looks at the memory of the daemon's processes all the while.
struct Watch {
    over: Arc<AtomicBool>,
    daemon: Arc<AtomicU64>,
    engines: Arc<AtomicU64>,
    looking: std::thread::JoinHandle<()>,
}

impl Watch {
    fn start(daemon: &Daemon) -> Self {
        let (pid, engines) = (daemon.pid(), daemon.descendants());
        let watch = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicU64::new(0)),
        );
        let (over, own, below) = watch.clone();
        let looking = std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                own.fetch_max(resident_kib(pid), Ordering::Relaxed);
                let all = engines.iter().map(|pid| resident_kib(*pid)).sum();
                below.fetch_max(all, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self {
            over: watch.0,
            daemon: watch.1,
            engines: watch.2,
            looking,
        }
    }

    /// The most that the daemon and its engines took, in KiB.
    fn stop(self) -> (u64, u64) {
        self.over.store(true, Ordering::Relaxed);
        self.looking.join().unwrap();
        (
            self.daemon.load(Ordering::Relaxed),
            self.engines.load(Ordering::Relaxed),
        )
    }
}

/// The verdict, however long it takes: libclamav unpacks half a gigabyte until then.
async fn patient(client: &Client, bytes: &[u8]) -> Verdict {
    let mut stream = client.begin(bytes).await;
    for index in indices(&stream.need().await) {
        stream.say(&fragment(bytes, index)).await;
    }
    let answer = stream.hear_soon(BOMB_PATIENCE).await;
    match answer.expect("no verdict") {
        ToAgent::Verdict(result) => result.verdict,
        other => panic!("no verdict but {other:?}"),
    }
}

fn run(folder: &Path, program: &str, arguments: &[&str]) {
    let status = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .stdout(Stdio::null())
        .status();
    let status = status.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(status.success(), "{program} {arguments:?}");
}

/// A file of so many zeros that takes no room.
fn zeros(folder: &Path, name: &str, bytes: u64) {
    let file = std::fs::File::create(folder.join(name)).unwrap();
    file.set_len(bytes).unwrap();
}

/// Zips in zips, `levels` of them with `width` copies each, and 8 MiB of zeros at the
/// bottom. Without `-n :` a zip would not be packed again.
fn nested(folder: &Path, levels: u32, width: u32) -> Vec<u8> {
    zeros(folder, "zeros", 8 << 20);
    run(folder, "zip", &["-q", "-n", ":", "0.zip", "zeros"]);
    for level in 1..=levels {
        let outer = format!("{level}.zip");
        let copies: Vec<String> = (0..width).map(|n| format!("{level}-{n}.zip")).collect();
        for copy in &copies {
            std::fs::copy(folder.join(format!("{}.zip", level - 1)), folder.join(copy)).unwrap();
        }
        let mut arguments = vec!["-q", "-n", ":", outer.as_str()];
        arguments.extend(copies.iter().map(String::as_str));
        run(folder, "zip", &arguments);
    }
    std::fs::read(folder.join(format!("{levels}.zip"))).unwrap()
}

fn many(folder: &Path, members: u32) -> Vec<u8> {
    let inner = folder.join("many");
    std::fs::create_dir(&inner).unwrap();
    for n in 0..members {
        std::fs::write(inner.join(format!("{n}.txt")), format!("member {n}")).unwrap();
    }
    run(folder, "zip", &["-q", "-r", "many.zip", "many"]);
    std::fs::read(folder.join("many.zip")).unwrap()
}

/// Controls: the same shapes within the limits are clean; and libclamav, which is silent
/// of its limits, calls these clean too unless it is told not to (`alert-exceeds-max`,
/// which engine-clamav's tests show).
#[tokio::test(flavor = "multi_thread")]
async fn bombs_are_not_scanned_and_cost_nobody_else() {
    let marker = marker();
    let mut site = Site::new(&[
        ("some.yar", &rule("Known", &marker)),
        ("other.ndb", &ndb("Other", &crate::site::marker())),
    ]);
    // A limit is to end it, and not the clock.
    site.settings = "[scan]\ntimeout_s = 600\n".to_owned();
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    client.kind(&unique(100)).await;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    zeros(folder, "large", 300_000_000);
    run(folder, "gzip", &["-k", "large"]);
    let small = folder.join("small");
    std::fs::create_dir(&small).unwrap();
    zeros(&small, "little", 3_000_000);
    run(&small, "gzip", &["little"]);
    let bombs = [
        ("zips in zips", nested(folder, 5, 3)),
        ("many members", many(folder, 15_000)),
        (
            "300 MB of zeros",
            std::fs::read(folder.join("large.gz")).unwrap(),
        ),
    ];
    let harmless = [
        many(&small, 150),
        std::fs::read(small.join("little.gz")).unwrap(),
    ];

    let engines: u64 = daemon
        .descendants()
        .iter()
        .map(|pid| resident_kib(*pid))
        .sum();
    let own = daemon.resident_kib();
    let watch = Watch::start(&daemon);
    let other = Client::connect(&daemon, &site.ca.agent("default")).await;
    let honest = Honest::start(other, &marker);
    for (name, bytes) in &bombs {
        let started = std::time::Instant::now();
        let verdict = patient(&client, bytes).await;
        println!(
            "{name}: {} bytes, {verdict:?} in {:?}",
            bytes.len(),
            started.elapsed()
        );
        let limit = matches!(verdict, Verdict::NotScanned(NotScanned::LimitHit { .. }));
        assert!(limit, "{name}: {verdict:?}");
        assert_eq!(client.kind(&unique(1000)).await, VerdictKind::Clean);
    }
    for bytes in &harmless {
        assert_eq!(client.verdict(bytes).await, Verdict::Clean);
    }
    let verdicts = honest.stop().await;
    let (most_own, most_engines) = watch.stop();
    println!(
        "daemon {own} KiB before, {most_own} at the most; engines {engines} before, \
         {most_engines} at the most; {verdicts} verdicts of another agent meanwhile"
    );
    assert!(verdicts >= 20, "{verdicts}");
    assert!(most_own < own + MAX_DAEMON_KIB);
    assert!(most_engines < engines + MAX_ENGINES_KIB);
}
