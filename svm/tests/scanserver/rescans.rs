//! What new definitions find in contents that nobody asks for again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_protocol::content::{ContentId, FRAGMENT_BYTES};
use palisade_protocol::scan::VerdictSource;
use palisade_protocol::verdict::VerdictKind;
use tokio::task::JoinSet;

use crate::client::{Client, fragment, unique};
use crate::measured::{read, sum};
use crate::retro::{is_told, notice};
use crate::site::{Daemon, Site, field, marker, rule, wait_until};

const FRAGMENT: usize = FRAGMENT_BYTES as usize;
const METRICS: &str = "[metrics]\nlisten = '127.0.0.1:0'\n";
/// What a guest's work holds: it is malware, and therefore never due itself.
const LOAD: &str = "mmmmmmmmmmmmmmmmmmmmmmmm";

/// Content of a size with a marker at its end.
fn with(marker: &str, size: usize) -> Vec<u8> {
    [unique(size).as_slice(), marker.as_bytes()].concat()
}

fn ids<'a>(contents: impl IntoIterator<Item = &'a Vec<u8>>) -> BTreeSet<ContentId> {
    contents
        .into_iter()
        .map(|bytes| ContentId::of(bytes))
        .collect()
}

/// Hears notices until these contents, and no others, were named, each once.
async fn hears(client: &Client, wanted: &BTreeSet<ContentId>) {
    let mut heard = Vec::new();
    while heard.len() < wanted.len() {
        heard.extend(notice(client).await);
    }
    assert_eq!(
        (heard.len(), &heard.into_iter().collect()),
        (wanted.len(), wanted)
    );
}

fn came_to(daemon: &Daemon, outcome: &str) -> f64 {
    read(daemon)[&format!("palisade_svm_rescans_total{{outcome=\"{outcome}\"}}")]
}

fn rescanned(daemon: &Daemon) -> f64 {
    sum(&read(daemon), "palisade_svm_rescans_total")
}

/// A pass that was under way is over.
fn wait_for_the_end(daemon: &Daemon) {
    wait_until("the pass ends", || {
        read(daemon)["palisade_svm_rescans_left"] == 0.0
    });
}

/// Puts these rules in force.
fn import(site: &Site, name: &str, files: &[(&str, &str)]) {
    let dir = site.directory(name, files);
    site.definitions_json(&["import", &dir]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_content_that_turned_bad_is_told_though_nobody_asks() {
    let known = marker();
    let mut site = Site::new(&[("rules.yar", &rule("Other", &marker()))]);
    site.settings = METRICS.to_owned();
    let daemon = site.start();
    let agent = async |tenant| Client::connect(&daemon, &site.ca.agent(tenant)).await;
    let (holder, clean, stranger) = (
        agent("tenant-a").await,
        agent("tenant-a").await,
        agent("tenant-b").await,
    );
    // Of one fragment, of exactly one, of several.
    let sizes = [100, FRAGMENT - known.len(), 5 * FRAGMENT + 77];
    let bad = sizes.map(|size| with(&known, size));
    let good = sizes.map(unique);
    for content in bad.iter().chain(&good) {
        assert_eq!(holder.kind(content).await, VerdictKind::Clean);
    }
    for content in &good {
        assert_eq!(clean.kind(content).await, VerdictKind::Clean);
        assert_eq!(stranger.kind(content).await, VerdictKind::Clean);
    }

    import(&site, "next", &[("rules.yar", &rule("Known", &known))]);
    hears(&holder, &ids(&bad)).await;
    wait_for_the_end(&daemon);
    assert_eq!(came_to(&daemon, "malware"), 3.0);
    assert_eq!(came_to(&daemon, "clean"), 6.0, "of both tenants");
    for nobody in [&clean, &stranger, &holder] {
        assert!(!is_told(nobody).await);
    }

    // Whoever asks now is answered at once, and nothing is sent or scanned for it.
    let scans = sum(&read(&daemon), "palisade_svm_scans_total");
    let other = agent("tenant-a").await;
    for (contents, kind) in [(&bad, VerdictKind::Malware), (&good, VerdictKind::Clean)] {
        for content in contents {
            let scanned = other.scan(content).await;
            assert_eq!(scanned.fragments_sent, 0);
            let result = scanned.result();
            let said = (result.verdict.kind(), result.source, result.older);
            assert_eq!(said, (kind, VerdictSource::SharedCache, false));
            assert_eq!(result.sha256.is_some(), kind == VerdictKind::Malware);
        }
    }
    assert_eq!(sum(&read(&daemon), "palisade_svm_scans_total"), scans);

    // Going back looks at what is clean once more, and finds nothing to tell.
    site.definitions_json(&["rollback"]);
    wait_for_the_end(&daemon);
    assert_eq!(came_to(&daemon, "clean"), 12.0);
    assert_eq!(rescanned(&daemon), 15.0);
    assert!(!is_told(&holder).await);
}

/// The control: without re-scans nobody is told, until somebody asks.
#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_switched_off() {
    let known = marker();
    let mut site = Site::new(&[("rules.yar", &rule("Other", &marker()))]);
    site.settings = format!("{METRICS}[retroactive]\nrescan = false\n");
    let daemon = site.start();
    let holder = Client::connect(&daemon, &site.ca.agent("default")).await;
    let bad = [with(&known, 100), with(&known, 3 * FRAGMENT)];
    for content in &bad {
        assert_eq!(holder.kind(content).await, VerdictKind::Clean);
    }
    import(&site, "next", &[("rules.yar", &rule("Known", &known))]);
    assert!(!is_told(&holder).await);
    assert_eq!(rescanned(&daemon), 0.0);
    let other = Client::connect(&daemon, &site.ca.agent("default")).await;
    for content in &bad {
        assert_eq!(other.kind(content).await, VerdictKind::Malware);
    }
    hears(&holder, &ids(&bad)).await;
}

/// What one tenant sent tells another nothing, though it holds the very same content:
/// only what it sent itself does.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_told_of_its_own_contents_alone() {
    let known = marker();
    let mut site = Site::new(&[("rules.yar", &rule("Other", &marker()))]);
    // One of the two has room.
    site.settings = format!("{METRICS}[scan]\nfragment_store = '1 MiB'\n");
    let daemon = site.start();
    let bad = with(&known, 3 * FRAGMENT);
    let [first, second] = ["tenant-a", "tenant-b"].map(|tenant| site.ca.agent(tenant));
    let first = Client::connect(&daemon, &first).await;
    let second = Client::connect(&daemon, &second).await;
    for client in [&first, &second] {
        assert_eq!(client.kind(&bad).await, VerdictKind::Clean);
    }
    import(&site, "next", &[("rules.yar", &rule("Known", &known))]);
    hears(&second, &ids([&bad])).await;
    wait_for_the_end(&daemon);
    assert_eq!(rescanned(&daemon), 1.0);
    assert!(!is_told(&first).await);
    let own = Client::connect(&daemon, &site.ca.agent("tenant-a")).await;
    let scanned = own.scan(&bad).await;
    assert_eq!(scanned.fragments_sent, 4);
    assert_eq!(scanned.result().verdict.kind(), VerdictKind::Malware);
    hears(&first, &ids([&bad])).await;
}

/// A site with one lane, whose first rules find what holds it.
fn one_lane(settings: &str) -> Site {
    let mut site = Site::new(&[("rules.yar", &rule("Load", LOAD))]);
    site.settings = format!("{METRICS}[scan]\nworkers = 1\n{settings}");
    site
}

/// Rules that find that and this.
fn turn_bad(site: &Site, name: &str, known: &str) {
    let rules = rule("Load", LOAD) + &rule("Known", known);
    import(site, name, &[("rules.yar", &rules)]);
}

/// A guest's work in the one lane, and more of it that waits.
struct Load {
    workers: Vec<u32>,
    asked: JoinSet<VerdictKind>,
    contents: Vec<ContentId>,
}

impl Load {
    /// Stops the workers of the engine whose definitions are to change, and gives them
    /// work.
    async fn start(daemon: &Daemon, client: Client) -> Self {
        let workers = daemon.workers_of("palisade-engine-yara");
        signal(&workers, Signal::SIGSTOP);
        let client = Arc::new(client);
        let contents: Vec<Vec<u8>> = (0..4).map(|_| with(LOAD, 500)).collect();
        let mut asked = JoinSet::new();
        for content in contents.clone() {
            let client = Arc::clone(&client);
            asked.spawn(async move { client.kind(&content).await });
        }
        wait_until("one is in the lane and the others wait", || {
            let samples = read(daemon);
            let waiting = samples["palisade_svm_queue_length{class=\"on_access\"}"];
            (samples["palisade_svm_lanes_busy"], waiting) == (1.0, 3.0)
        });
        Self {
            workers,
            asked,
            contents: ids(&contents).into_iter().collect(),
        }
    }

    async fn end(self) -> Vec<ContentId> {
        signal(&self.workers, Signal::SIGCONT);
        assert_eq!(self.asked.join_all().await, [VerdictKind::Malware; 4]);
        self.contents
    }
}

fn signal(pids: &[u32], signal: Signal) {
    for pid in pids {
        kill(Pid::from_raw(*pid as i32), signal).unwrap();
    }
}

/// Contents in the order in which lanes were done with them.
fn scanned(daemon: &Daemon) -> Vec<String> {
    let lines = daemon.log.lines();
    let scanned = lines
        .iter()
        .filter(|line| line.contains(" scanned content="));
    // The request's own field of that name comes first.
    let last =
        |line: &String| field(line.rsplit_once(" scanned ").unwrap().1, "content").to_owned();
    scanned.map(last).collect()
}

/// Guests' work goes first: while there is any, no kept content is scanned; and a pass
/// that waits is one by the newest definitions.
#[tokio::test(flavor = "multi_thread")]
async fn guests_work_goes_first_and_the_newest_definitions_count() {
    let [passing, lasting] = [marker(), marker()];
    let site = one_lane("");
    let daemon = site.start();
    let agent = async || Client::connect(&daemon, &site.ca.agent("default")).await;
    let holder = agent().await;
    let forgiven = [with(&passing, 100), with(&passing, 2 * FRAGMENT)];
    let bad = [with(&lasting, 100), with(&lasting, 2 * FRAGMENT)];
    for content in forgiven.iter().chain(&bad) {
        assert_eq!(holder.kind(content).await, VerdictKind::Clean);
    }
    let load = Load::start(&daemon, agent().await).await;
    for (name, known) in [("first", &passing), ("second", &lasting)] {
        turn_bad(&site, name, known);
        // Long enough for many looks whether there is time.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let samples = read(&daemon);
        assert_eq!(samples["palisade_svm_rescans_left"], 4.0);
        assert_eq!(sum(&samples, "palisade_svm_rescans_total"), 0.0);
    }
    daemon.log.wait_for("there are newer definitions");

    let guests = load.end().await;
    hears(&holder, &ids(&bad)).await;
    wait_for_the_end(&daemon);
    assert_eq!(came_to(&daemon, "malware"), 2.0);
    assert_eq!(came_to(&daemon, "clean"), 2.0);
    assert_eq!(rescanned(&daemon), 4.0);
    assert!(!is_told(&holder).await);
    // Four before, then the guests', then the kept ones, the last used first.
    daemon.scans(12);
    let order = scanned(&daemon);
    let guests: BTreeSet<String> = guests.iter().map(ToString::to_string).collect();
    assert_eq!(order[4..8].iter().cloned().collect::<BTreeSet<_>>(), guests);
    let kept = forgiven.iter().chain(&bad).rev();
    let kept: Vec<String> = kept.map(|bytes| ContentId::of(bytes).to_string()).collect();
    assert_eq!(order[8..], kept);
}

/// What a guest sends just now is scanned by its request, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_content_that_is_being_sent_is_not_scanned_twice() {
    let known = marker();
    let site = one_lane("[limits]\nstall_s = 60\n");
    let daemon = site.start();
    let agent = async || Client::connect(&daemon, &site.ca.agent("default")).await;
    let holder = agent().await;
    let contents = [with(&known, 100), with(&known, 200)];
    for content in &contents {
        assert_eq!(holder.kind(content).await, VerdictKind::Clean);
    }
    // The pass waits until the request has begun.
    let load = Load::start(&daemon, agent().await).await;
    turn_bad(&site, "next", &known);
    let sender = agent().await;
    let mut sending = sender.begin(&contents[0]).await;
    sending.need().await;
    load.end().await;
    hears(&holder, &ids([&contents[1]])).await;
    let content = ContentId::of(&contents[0]).to_string();
    let scans = || {
        scanned(&daemon)
            .iter()
            .filter(|one| **one == content)
            .count()
    };
    assert_eq!(scans(), 1, "before the definitions changed");
    // Its holder may hear of the other one before the pass has gone on.
    wait_until("one is left", || {
        read(&daemon)["palisade_svm_rescans_left"] == 1.0
    });
    sending.say(&fragment(&contents[0], 0)).await;
    let result = sending.finish(&contents[0]).await.result();
    assert_eq!(result.verdict.kind(), VerdictKind::Malware);
    hears(&holder, &ids([&contents[0]])).await;
    wait_for_the_end(&daemon);
    daemon.scans(8);
    assert_eq!((scans(), rescanned(&daemon)), (2, 1.0));
}

/// A scan that is held in its worker while the definitions change.
struct Late {
    workers: Vec<u32>,
    asked: tokio::task::JoinHandle<VerdictKind>,
}

impl Late {
    /// Has the content scanned, and new definitions put in force that find its marker.
    async fn start(site: &Site, daemon: &Daemon, holder: &Arc<Client>, bad: &[u8]) -> Self {
        // Those of the engine whose definitions change: others go over to the new set.
        let workers = daemon.workers_of("palisade-engine-yara");
        signal(&workers, Signal::SIGSTOP);
        let (holder, content) = (Arc::clone(holder), bad.to_vec());
        let asked = tokio::spawn(async move { holder.kind(&content).await });
        let content = ContentId::of(bad);
        let held = format!("an engine is asked content={content} engine=\"yara-x\"");
        daemon.log.wait_for(&held);
        let known = String::from_utf8_lossy(&bad[bad.len() - marker().len()..]).into_owned();
        import(site, "next", &[("rules.yar", &rule("Known", &known))]);
        Self { workers, asked }
    }

    async fn end(self) -> VerdictKind {
        signal(&self.workers, Signal::SIGCONT);
        self.asked.await.unwrap()
    }
}

/// A site with two lanes, and an agent whose tenant has an idle worker there, which is
/// the first choice.
async fn two_lanes(settings: &str) -> (Site, Daemon, Arc<Client>) {
    let other = marker();
    let mut site = Site::new(&[("rules.yar", &rule("Other", &other))]);
    site.settings = format!("{METRICS}[scan]\nworkers = 2\n{settings}");
    let daemon = site.start();
    let holder = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(holder.kind(other.as_bytes()).await, VerdictKind::Malware);
    (site, daemon, Arc::new(holder))
}

/// A scan that earlier definitions began, and that ended after the pass, is due too.
#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_began_before_new_definitions_is_not_forgotten() {
    let (site, daemon, holder) = two_lanes("").await;
    let bad = with(&marker(), 100);
    let late = Late::start(&site, &daemon, &holder, &bad).await;
    daemon
        .log
        .wait_for("kept contents were looked at contents=0");
    assert_eq!(late.end().await, VerdictKind::Clean, "by those that began");
    hears(&holder, &ids([&bad])).await;
}

/// Nor does it undo what newer definitions said of the content meanwhile, and whoever was
/// told that it is clean hears of it: without any re-scan.
#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_ends_late_undoes_nothing() {
    let (site, daemon, holder) = two_lanes("[retroactive]\nrescan = false\n").await;
    let bad = with(&marker(), 100);
    let late = Late::start(&site, &daemon, &holder, &bad).await;
    let other = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(other.kind(&bad).await, VerdictKind::Malware);
    assert_eq!(late.end().await, VerdictKind::Clean, "by those that began");
    hears(&holder, &ids([&bad])).await;
    let result = other.scan(&bad).await.result();
    let said = (result.verdict.kind(), result.source);
    assert_eq!(said, (VerdictKind::Malware, VerdictSource::SharedCache));
}

/// A bad signature that hits what many guests hold is braked before it blocks any.
#[tokio::test(flavor = "multi_thread")]
async fn the_brake_counts_those_who_hold_what_turned_bad() {
    let known = marker();
    let mut site = Site::new(&[("rules.yar", &rule("Other", &marker()))]);
    site.settings = METRICS.to_owned();
    let daemon = site.start();
    let bad = with(&known, 1000);
    let mut guests = Vec::new();
    for _ in 0..7 {
        let client = Client::connect(&daemon, &site.ca.agent("default")).await;
        assert_eq!(client.kind(&bad).await, VerdictKind::Clean);
        guests.push(client);
    }
    import(&site, "next", &[("rules.yar", &rule("Known", &known))]);
    for guest in &guests {
        hears(guest, &ids([&bad])).await;
        assert_eq!(guest.kind(&bad).await, VerdictKind::Suspicious);
    }
    assert_eq!(came_to(&daemon, "malware"), 1.0);
    let status = site.definitions_json(&["status"]);
    assert_eq!(status["braked"][0]["name"], "Known");
    site.definitions_json(&["confirm", "Known"]);
    assert_eq!(guests[0].kind(&bad).await, VerdictKind::Malware);
}

/// What leaves no room for the largest content of a guest is left to its next sight.
#[tokio::test(flavor = "multi_thread")]
async fn a_rescan_leaves_room_for_the_largest_content() {
    let known = marker();
    let mut site = Site::new(&[("rules.yar", &rule("Other", &marker()))]);
    site.settings = format!(
        "{METRICS}[scan]\nmax_scan_size = '4 MiB'\nmemory = '6 MiB'\nfragment_store = '6 MiB'\n"
    );
    let daemon = site.start();
    let holder = Client::connect(&daemon, &site.ca.agent("default")).await;
    let [large, small] = [3 << 20, 1 << 20].map(|size| with(&known, size));
    for content in [&large, &small] {
        assert_eq!(holder.kind(content).await, VerdictKind::Clean);
    }
    import(&site, "next", &[("rules.yar", &rule("Known", &known))]);
    hears(&holder, &ids([&small])).await;
    wait_for_the_end(&daemon);
    assert_eq!(came_to(&daemon, "no_room"), 1.0);
    let free = "palisade_svm_content_memory_bytes{use=\"free\"}";
    let kept = "palisade_svm_content_memory_bytes{use=\"fragments\"}";
    let samples = read(&daemon);
    assert_eq!(samples[free] + samples[kept], (6 << 20) as f64);
    assert!(!is_told(&holder).await);
    // It does find room, and the other is found when it is seen again.
    assert_eq!(holder.kind(&unique(4 << 20)).await, VerdictKind::Clean);
    assert_eq!(holder.kind(&large).await, VerdictKind::Malware);
}

/// A stop ends a pass: but for what is in a lane, no kept content is scanned after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_a_pass() {
    let known = marker();
    let site = one_lane("");
    let mut daemon = site.start();
    let holder = Client::connect(&daemon, &site.ca.agent("default")).await;
    for _ in 0..300 {
        let content = with(&known, 5000);
        assert_eq!(holder.kind(&content).await, VerdictKind::Clean);
    }
    turn_bad(&site, "next", &known);
    daemon.log.wait_for("kept contents are looked at");
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
    daemon.log.wait_for(" stopped");
    let lines = daemon.log.lines();
    let stopping = lines.iter().position(|line| line.contains(" stopping"));
    let after = lines[stopping.unwrap()..].iter();
    let scans = after.filter(|line| line.contains(" scanned content="));
    // One in the lane, and one that was on its way there.
    assert!(scans.count() <= 2);
}
