//! Protection Servers that are gone, slow, or answer nonsense: an opener of malware waits
//! no longer than the deadline, and is let through by the failure table or not at all.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use palisade_protocol::bounded::{List, Text};
use palisade_protocol::endpoint::{self, Bounds};
use palisade_protocol::frame;
use palisade_protocol::identity::Identity;
use palisade_protocol::scan::{self, LoadHint, ToAgent, ToSvm, Welcome};
use palisade_protocol::tls::{self, Accept};
use palisade_tests::process::Process;
use palisade_tests::{command, skip};
use rand::Rng as _;

use super::common::peer;
use super::guest::{Guest, PATIENCE, denied, number, open_aside, open_soon, wait_until};

/// In these tests.
const DEADLINE: Duration = Duration::from_secs(3);
/// What is promised.
const ANSWERED_WITHIN: Duration = Duration::from_secs(4);

/// A Protection Server's settings and identity, besides the site's own.
fn enrolled(guest: &Guest, name: &str) -> (PathBuf, SocketAddr) {
    let folder = guest.test.folder().join(name);
    fs::create_dir(&folder).unwrap();
    let address = UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let settings = folder.join("scanserver.toml");
    let program = command::program("palisade-scanserver").unwrap();
    let text = format!(
        "listen = '{address}'\nstate_dir = '{0}/var'\nrun_dir = '{0}/run'\n\
         helpers_dir = '{2}'\n[definitions]\nsource = '{1}'\n",
        folder.display(),
        guest.test.definitions().display(),
        program.parent().unwrap().display()
    );
    fs::write(&settings, text).unwrap();
    let token = guest.test.site.join_token("svm").unwrap();
    let config = ["--config", settings.to_str().unwrap(), "enrol", &token];
    let enrolled = guest
        .test
        .site
        .run("palisade-scanserver", &config, PATIENCE);
    enrolled.unwrap().expect(&[0]).unwrap();
    (folder, address)
}

/// A second one.
struct Second {
    process: Process,
    address: SocketAddr,
}

impl Second {
    fn start(guest: &Guest) -> Self {
        let (folder, address) = enrolled(guest, "second");
        let mut command = Command::new(command::program("palisade-scanserver").unwrap());
        command
            .arg("--config")
            .arg(folder.join("scanserver.toml"))
            .arg("run");
        let log = folder.join("log");
        let process = Process::start("second", &command, &folder, &log).unwrap();
        wait_until("the second one serves", || {
            let log = fs::read_to_string(&log).unwrap_or_default();
            assert!(process.is_running(), "{log}");
            UdpSocket::bind(address).is_err()
        });
        Self { process, address }
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _ = self.process.signal(Signal::SIGCONT);
        let _ = self.process.stop();
    }
}

/// An agent that prefers the first of these.
fn use_only(guest: &Guest, addresses: &[SocketAddr]) {
    let svms: Vec<String> = addresses
        .iter()
        .map(|address| format!("{{ address = '{address}' }}"))
        .collect();
    guest.set(&format!(
        "svm = [{}]\n[on_access]\ndeadline_ms = {}",
        svms.join(", "),
        DEADLINE.as_millis()
    ));
    guest.restart_agent(&[]);
    wait_until("a Protection Server is connected", || {
        guest
            .try_status()
            .is_some_and(|status| status["svm"]["id"].is_string())
    });
}

/// Opens malware at the same moment; gives how many were let through. Each is answered
/// in time, and nobody is let through by a verdict.
fn open_malware(guest: &Guest, name: &str) -> usize {
    const OPENS: usize = 20;
    let allowed = |guest: &Guest| number(&guest.settled(), "failed_open");
    let before = allowed(guest);
    let files: Vec<_> = (0..OPENS)
        .map(|n| guest.bad(&format!("{name}-{n}")))
        .collect();
    let waiting: Vec<_> = files.iter().map(|file| open_aside(file)).collect();
    let mut through = 0;
    let mut longest = Duration::ZERO;
    for opened in waiting {
        let (opened, took) = opened.recv_timeout(PATIENCE).unwrap();
        assert!(took <= ANSWERED_WITHIN, "{name}: {took:?}");
        longest = longest.max(took);
        through += usize::from(!denied(opened));
    }
    let by_the_table = allowed(guest) - before;
    println!("{name}: {through} of {OPENS} let through, within {longest:?}");
    assert!(
        through as u64 <= by_the_table,
        "{name}: {through} by {by_the_table}"
    );
    through
}

/// Waits until malware is blocked by a verdict again; says how long it took.
fn wait_blocked(guest: &Guest, name: &str) {
    let started = Instant::now();
    let mut n = 0;
    wait_until(&format!("malware is blocked: {name}"), || {
        n += 1;
        denied(open_soon(&guest.bad(&format!("{name}-again-{n}"))))
    });
    println!("{name}: blocked again after {:?}", started.elapsed());
}

#[test]
fn lost_and_slow_protection_servers_let_nothing_through_as_clean() {
    if !skip::is_root("lost_and_slow_protection_servers_let_nothing_through_as_clean") {
        return;
    }
    let guest = Guest::start("");
    let second = Second::start(&guest);
    let first = guest.test.site.scan_address().unwrap();
    use_only(&guest, &[first, second.address]);
    // The control: with both nothing is let through.
    wait_blocked(&guest, "both");
    assert_eq!(open_malware(&guest, "both"), 0);

    // Slow: it is there, and answers nobody.
    guest.signal_svm(Signal::SIGSTOP);
    open_malware(&guest, "slow");
    wait_blocked(&guest, "slow");
    guest.signal_svm(Signal::SIGCONT);
    wait_blocked(&guest, "slow no more");

    // One is gone.
    use_only(&guest, &[first, second.address]);
    wait_blocked(&guest, "restarted");
    guest.test.kill_svm();
    open_malware(&guest, "one gone");
    wait_blocked(&guest, "one gone");

    // All are gone.
    second.process.kill().unwrap();
    let through = open_malware(&guest, "all gone");
    assert_eq!(through, 20, "the table says allow");
    guest.test.site.start_part("scanserver").unwrap();
    wait_blocked(&guest, "back");
    assert_eq!(open_malware(&guest, "back"), 0);
}

/// A Protection Server by its identity, and by nothing else.
struct Liar {
    address: SocketAddr,
    asked: Arc<AtomicU64>,
    _runtime: tokio::runtime::Runtime,
}

impl Liar {
    fn start(identity: &Identity, at: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let accept = Accept {
            agents: true,
            svms: false,
            unenrolled: false,
        };
        let tls = tls::server_config(identity, identity.trust(), accept, scan::ALPN).unwrap();
        let asked = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&asked);
        let endpoint = {
            let _context = runtime.enter();
            endpoint::listen(at, tls, Bounds::SCAN_SERVER).unwrap()
        };
        let address = endpoint.local_addr().unwrap();
        runtime.spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let asked = Arc::clone(&counted);
                tokio::spawn(async move {
                    let Ok(connection) = incoming.await else {
                        return;
                    };
                    while let Ok((send, receive)) = connection.accept_bi().await {
                        tokio::spawn(lie(send, receive, Arc::clone(&asked)));
                    }
                });
            }
        });
        Self {
            address,
            asked,
            _runtime: runtime,
        }
    }
}

/// Greets as it should; all else is answered by noise.
async fn lie(mut send: quinn::SendStream, mut receive: quinn::RecvStream, asked: Arc<AtomicU64>) {
    let hello = matches!(
        frame::read::<ToSvm>(&mut receive).await,
        Ok(Some(ToSvm::Hello(_)))
    );
    if hello {
        let welcome = Welcome {
            version: Text::cut("liar"),
            max_scan_bytes: 64 << 20,
            max_requests: 32,
            generations: List::default(),
            load: LoadHint::default(),
        };
        let _ = frame::write(&mut send, &ToAgent::Welcome(welcome)).await;
    } else {
        asked.fetch_add(1, Ordering::Relaxed);
        let noise: Vec<u8> = {
            let mut rng = rand::rng();
            let length = rng.random_range(1..2000);
            (0..length).map(|_| rng.random()).collect()
        };
        // A frame of noise, or noise that is no frame.
        if noise[0].is_multiple_of(2) {
            let length = u32::try_from(noise.len()).unwrap();
            let _ = send.write_all(&length.to_le_bytes()).await;
        }
        let _ = send.write_all(&noise).await;
    }
    let _ = send.finish();
    let _ = send.stopped().await;
}

#[test]
fn a_protection_server_that_answers_nonsense_makes_nothing_clean() {
    if !skip::is_root("a_protection_server_that_answers_nonsense_makes_nothing_clean") {
        return;
    }
    let guest = Guest::start("");
    let (folder, at) = enrolled(&guest, "liar");
    let liar = Liar::start(&peer::identity(&folder.join("var")), at);
    let good = guest.test.site.scan_address().unwrap();
    // Alone, and before a good one.
    use_only(&guest, &[liar.address]);
    assert_eq!(open_malware(&guest, "alone"), 20, "the table says allow");
    assert!(liar.asked.load(Ordering::Relaxed) > 0, "it was asked");
    assert_eq!(
        guest.status()["protection"]["state"],
        "off",
        "and that is said"
    );
    let clean = number(&guest.status()["events"], "scanned");
    assert_eq!(clean, 0, "nonsense is no verdict");
    use_only(&guest, &[liar.address, good]);
    open_malware(&guest, "before a good one");
    // The control: the good one alone.
    use_only(&guest, &[good]);
    wait_blocked(&guest, "the good one");
    assert_eq!(open_malware(&guest, "the good one"), 0);
}

/// When a guest runs without verdicts, the site knows: since when, why, what was let
/// through, and what it turned out to be.
#[test]
fn the_site_is_told_of_time_without_verdicts() {
    if !skip::is_root("the_site_is_told_of_time_without_verdicts") {
        return;
    }
    const BAD: u64 = 3;
    let guest = Guest::start("");
    let exposures = || {
        let said = guest.test.site.console(&["exposure", "list"]);
        said.unwrap().as_array().unwrap().clone()
    };
    // The control: a guest with its Protection Server has no window that lasts, and none
    // of that cause.
    wait_blocked(&guest, "before");
    let without = |all: &[serde_json::Value]| -> Option<serde_json::Value> {
        let is = |window: &&serde_json::Value| {
            let causes = window["causes"].as_array().unwrap();
            causes.contains(&"no_svm".into()) && number(window, "opens") > 0
        };
        all.iter().find(is).cloned()
    };
    assert_eq!(without(&exposures()), None);

    guest.test.kill_svm();
    wait_until("the agent knows", || guest.status()["svm"]["id"].is_null());
    for n in 0..BAD {
        assert!(!denied(open_soon(&guest.bad(&format!("exposed-{n}")))));
    }
    wait_until("the site knows of it while it lasts", || {
        exposures().iter().any(|window| window["until"].is_null())
    });
    guest.test.site.start_part("scanserver").unwrap();
    wait_blocked(&guest, "after");
    let mut shown = serde_json::Value::Null;
    wait_until("the site knows what came of it", || {
        shown = without(&exposures()).unwrap_or_default();
        shown["until"].is_string() && shown["waiting"] == 0 && shown["malware"] != 0
    });
    assert!(number(&shown, "opens") >= BAD, "{shown}");
    assert!(number(&shown, "malware") >= BAD, "{shown}");
    assert_eq!(number(&shown, "not_kept"), 0, "{shown}");
    let detections = guest.test.site.console(&["detection", "list"]).unwrap();
    let paths = detections.as_array().unwrap().iter();
    let of_it = paths.filter(|found| found["path"].as_str().unwrap().contains("exposed-"));
    assert_eq!(of_it.count() as u64, BAD, "{detections}");
}
