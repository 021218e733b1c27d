//! What was sent once is not sent again, within a tenant and within bounds: from memory,
//! and from a disk that is worth nothing to others and believed nothing.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::PathBuf;

use nix::sys::signal::Signal;
use palisade_protocol::content::FRAGMENT_BYTES;
use palisade_protocol::verdict::VerdictKind;

use crate::client::{Client, unique};
use crate::measured;
use crate::site::{Daemon, Site, marker, rule, wait_until};

const FRAGMENT: usize = FRAGMENT_BYTES as usize;

/// Content that changed in place, from `from` on.
fn changed(bytes: &[u8], from: usize, what: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[from..from + what.len()].copy_from_slice(what);
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_changed_file_only_what_changed_is_sent_and_all_of_it_is_scanned() {
    let marker = marker();
    let site = Site::new(&[("some.yar", &rule("Some", &marker))]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let first = unique(40 * FRAGMENT + 77);
    assert_eq!(client.scan(&first).await.fragments_sent, 41);

    // The marker lies over the border of a fragment that changed and one that did
    // half: neither alone holds it.
    let second = changed(&first, 7 * FRAGMENT - 5, marker.as_bytes());
    let scanned = client.scan(&second).await;
    assert_eq!(scanned.fragments_sent, 2);
    assert_eq!(scanned.result().verdict.kind(), VerdictKind::Malware);

    // Another agent of the tenant goes on from there.
    let other = Client::connect(&daemon, &site.ca.agent("default")).await;
    let third = changed(&second, 20 * FRAGMENT, b"another change");
    let scanned = other.scan(&third).await;
    assert_eq!(scanned.fragments_sent, 1);
    assert_eq!(
        scanned.result().verdict.kind(),
        VerdictKind::Malware,
        "the marker came with an earlier version"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_is_asked_for_all_of_what_another_has_sent() {
    let site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    let daemon = site.start();
    let bytes = unique(4 * FRAGMENT);
    let own = Client::connect(&daemon, &site.ca.agent("tenant-one")).await;
    assert_eq!(own.scan(&bytes).await.fragments_sent, 4);
    let near = changed(&bytes, 0, b"x");
    let other = Client::connect(&daemon, &site.ca.agent("tenant-two")).await;
    assert_eq!(other.scan(&near).await.fragments_sent, 4);
    assert_eq!(own.scan(&changed(&bytes, 0, b"y")).await.fragments_sent, 1);
}

/// The control of the first test: without the store everything is sent.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_store_everything_is_sent() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[scan]\nfragment_store = 0\n".to_owned();
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let bytes = unique(4 * FRAGMENT);
    assert_eq!(client.scan(&bytes).await.fragments_sent, 4);
    assert_eq!(
        client.scan(&changed(&bytes, 0, b"x")).await.fragments_sent,
        4
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_kept_makes_room_for_what_comes() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings =
        "[scan]\nmax_scan_size = '4 MiB'\nmemory = '8 MiB'\nfragment_store = '8 MiB'\n".to_owned();
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    for _ in 0..12 {
        // Refused as busy, if what is kept were in the way.
        assert_eq!(client.kind(&unique(4 << 20)).await, VerdictKind::Clean);
    }
    let last = unique(4 << 20);
    client.kind(&last).await;
    assert_eq!(
        client.scan(&changed(&last, 0, b"x")).await.fragments_sent,
        1,
        "what came last is kept"
    );
}

/// Fragments of the large contents here: one is one per cent.
const MANY: usize = 100;

/// A daemon with memory for one content of [`MANY`] fragments, and a disk behind it.
fn with_disk(definitions: &[(&str, &str)], disk: &str) -> Site {
    let mut site = Site::new(definitions);
    site.settings = format!(
        "[metrics]\nlisten = '127.0.0.1:0'\n[scan]\nmax_scan_size = '32 MiB'\nmemory = '64 MiB'\n\
         fragment_store = '26 MiB'\nfragment_disk = {disk}\n"
    );
    site
}

fn number(daemon: &Daemon, name: &str) -> u64 {
    measured::read(daemon)[&format!("palisade_svm_{name}")] as u64
}

fn events(daemon: &Daemon, event: &str) -> u64 {
    let name = format!("fragment_disk_events_total{{event=\"{event}\"}}");
    number(daemon, &name)
}

fn received(daemon: &Daemon) -> u64 {
    number(daemon, "content_received_bytes_total")
}

/// The daemon's open files whose names begin so.
fn open_files(daemon: &Daemon, begin: &str) -> Vec<PathBuf> {
    let folder = format!("/proc/{}/fd", daemon.pid());
    let links = fs::read_dir(folder).unwrap().flatten();
    let links = links.map(|entry| entry.path());
    links
        .filter(|link| {
            fs::read_link(link).is_ok_and(|name| name.to_string_lossy().starts_with(begin))
        })
        .collect()
}

/// The file of the fragments on disk, which has no name but its descriptor's.
fn disk_file(daemon: &Daemon, site: &Site) -> PathBuf {
    let folder = site.state().join("fragments");
    let mut files = open_files(daemon, &folder.to_string_lossy());
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

fn holds(file: &PathBuf, text: &str) -> bool {
    let bytes = fs::read(file).unwrap();
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

/// One content that malware is found in, on disk and no longer in memory.
struct OnDisk {
    client: Client,
    daemon: Daemon,
    site: Site,
    bytes: Vec<u8>,
}

/// Where the rule's marker lies: over the border of two fragments.
const MARKED: usize = 20;

impl OnDisk {
    async fn new(disk: &str) -> Self {
        let marker = marker();
        let site = with_disk(&[("some.yar", &rule("Some", &marker))], disk);
        let daemon = site.start();
        let client = Client::connect(&daemon, &site.ca.agent("default")).await;
        let bytes = changed(
            &unique(MANY * FRAGMENT),
            MARKED * FRAGMENT - 5,
            marker.as_bytes(),
        );
        let scanned = client.scan(&bytes).await;
        assert_eq!(scanned.fragments_sent, MANY);
        assert_eq!(scanned.result().verdict.kind(), VerdictKind::Malware);
        let on_disk = Self {
            site,
            daemon,
            client,
            bytes,
        };
        if disk != "0" {
            on_disk.written(MANY);
        }
        on_disk
    }

    /// Waits until so many fragments were written.
    fn written(&self, fragments: usize) {
        wait_until("so many fragments are on disk", || {
            events(&self.daemon, "written") == fragments as u64
        });
    }

    /// Another content takes the memory; gives it.
    async fn push_out(&self) -> Vec<u8> {
        let other = unique(MANY * FRAGMENT);
        assert_eq!(self.client.scan(&other).await.fragments_sent, MANY);
        assert_eq!(
            number(&self.daemon, "content_memory_bytes{use=\"fragments\"}"),
            other.len() as u64,
            "nothing else is in memory"
        );
        other
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_changed_file_that_left_memory_only_what_changed_is_sent() {
    let on_disk = OnDisk::new("'64 MiB'").await;
    on_disk.push_out().await;
    let before = received(&on_disk.daemon);
    let near = changed(&on_disk.bytes, 70 * FRAGMENT + 9, b"changed in place");
    let scanned = on_disk.client.scan(&near).await;
    assert_eq!(scanned.fragments_sent, 1);
    assert_eq!(
        scanned.result().verdict.kind(),
        VerdictKind::Malware,
        "the marker came from the disk"
    );
    let daemon = &on_disk.daemon;
    assert_eq!(received(daemon) - before, FRAGMENT_BYTES);
    assert_eq!(events(daemon, "read"), MANY as u64 - 1);
    assert_eq!(events(daemon, "damaged") + events(daemon, "failed"), 0);
    assert!(number(daemon, "fragment_disk_bytes") >= on_disk.bytes.len() as u64);
    let status = on_disk.site.status_json();
    assert_eq!(status["since_start"]["disk_read"], MANY - 1);

    // Another tenant, whose contents push nobody's out, is asked for all of it.
    let other = Client::connect(daemon, &on_disk.site.ca.agent("other")).await;
    let nearer = changed(&on_disk.bytes, 0, b"x");
    assert_eq!(other.scan(&nearer).await.fragments_sent, MANY);
    assert_eq!(events(daemon, "read"), MANY as u64 - 1);
}

/// The control of the test before.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_disk_a_changed_file_that_left_memory_is_sent_whole() {
    let on_disk = OnDisk::new("0").await;
    on_disk.push_out().await;
    let before = received(&on_disk.daemon);
    let near = changed(&on_disk.bytes, 70 * FRAGMENT + 9, b"changed in place");
    let scanned = on_disk.client.scan(&near).await;
    assert_eq!(scanned.fragments_sent, MANY);
    let bytes = on_disk.bytes.len() as u64;
    assert_eq!(received(&on_disk.daemon) - before, bytes);
    assert_eq!(number(&on_disk.daemon, "fragment_disk_bytes"), 0);
    assert!(!on_disk.site.state().join("fragments").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_shows_nothing_of_a_content_and_the_folder_no_file() {
    let on_disk = OnDisk::new("'64 MiB'").await;
    // Content is its marker, over and over.
    let text = std::str::from_utf8(&on_disk.bytes[..marker().len()]).unwrap();
    let file = disk_file(&on_disk.daemon, &on_disk.site);
    assert_eq!(
        fs::metadata(&file).unwrap().len(),
        on_disk.bytes.len() as u64
    );
    assert!(!holds(&file, text), "content is readable on the disk");

    // Controls: it is found where it is readable, and would be found here.
    let mut memory = open_files(&on_disk.daemon, "/memfd:palisade-content");
    // The file of small contents has no end that could be read to.
    memory.retain(|file| fs::metadata(file).unwrap().len() == on_disk.bytes.len() as u64);
    assert!(memory.iter().any(|file| holds(file, text)));
    let planted = File::options().write(true).open(&file).unwrap();
    let place = 31 * FRAGMENT_BYTES + 77;
    planted.write_all_at(text.as_bytes(), place).unwrap();
    assert!(holds(&file, text));

    let folder = on_disk.site.state().join("fragments");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    let mode = fs::metadata(&folder).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_disk_costs_what_was_damaged_and_no_verdict() {
    let on_disk = OnDisk::new("'64 MiB'").await;
    let (daemon, client) = (&on_disk.daemon, &on_disk.client);
    let other = on_disk.push_out().await;
    on_disk.written(2 * MANY);

    // One bit in each slot of the first half, the marker's among them.
    let file = disk_file(daemon, &on_disk.site);
    let file = File::options().read(true).write(true).open(file).unwrap();
    for slot in 0..50 {
        let (mut byte, place) = ([0], slot * FRAGMENT_BYTES + 1234);
        file.read_exact_at(&mut byte, place).unwrap();
        file.write_all_at(&[byte[0] ^ 1], place).unwrap();
    }
    let near = changed(&on_disk.bytes, 70 * FRAGMENT + 9, b"changed in place");
    let scanned = client.scan(&near).await;
    assert_eq!(scanned.fragments_sent, 51);
    assert_eq!(scanned.result().verdict.kind(), VerdictKind::Malware);
    assert_eq!(events(daemon, "damaged"), 50);
    assert_eq!(events(daemon, "read"), 49);

    // It is written again what was asked for again.
    on_disk.written(2 * MANY + 51);
    file.set_len(0).unwrap();
    let scanned = client.scan(&changed(&other, 0, b"x")).await;
    assert_eq!(scanned.fragments_sent, MANY, "all of it is lost");
    assert_eq!(scanned.result().verdict.kind(), VerdictKind::Clean);
    assert_eq!(events(daemon, "failed"), MANY as u64 - 1);
    daemon.log.wait_for("a fragment on disk is not readable");

    // And from then on it works again.
    on_disk.written(3 * MANY + 51);
    on_disk.push_out().await;
    let scanned = client.scan(&changed(&other, 0, b"y")).await;
    assert_eq!(scanned.fragments_sent, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outlives_a_daemon_that_is_killed() {
    let mut on_disk = OnDisk::new("'64 MiB'").await;
    on_disk.daemon.signal(Signal::SIGKILL);
    on_disk.daemon.wait();
    let folder = on_disk.site.state().join("fragments");
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0);

    let daemon = on_disk.site.start();
    assert_eq!(number(&daemon, "fragment_disk_bytes"), 0);
    let client = Client::connect(&daemon, &on_disk.site.ca.agent("default")).await;
    let near = changed(&on_disk.bytes, 0, b"x");
    assert_eq!(client.scan(&near).await.fragments_sent, MANY);
}

/// A request that wants memory has it, whatever is still to be written.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_to_disk_makes_room_for_what_comes() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[scan]\nmax_scan_size = '4 MiB'\nmemory = '8 MiB'\nfragment_store = '8 MiB'\n\
                     fragment_disk = '64 MiB'\n"
        .to_owned();
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    for _ in 0..24 {
        // Refused as busy, if what is kept were in the way.
        assert_eq!(client.kind(&unique(4 << 20)).await, VerdictKind::Clean);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_cannot_be_had_is_told_and_not_needed() {
    let site = with_disk(&[("some.yar", &rule("Some", &marker()))], "'64 MiB'");
    fs::write(site.state().join("fragments"), "not a folder").unwrap();
    let daemon = site.start();
    daemon.log.wait_for("fragments are not kept on disk");
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let bytes = unique(4 * FRAGMENT);
    assert_eq!(client.scan(&bytes).await.fragments_sent, 4);
    assert_eq!(
        client.scan(&changed(&bytes, 0, b"x")).await.fragments_sent,
        1
    );
}
