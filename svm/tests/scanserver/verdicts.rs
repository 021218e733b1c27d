//! What is found, cached, and kept apart.

use std::process::{Command, Stdio};

use palisade_protocol::bounded::Text;
use palisade_protocol::content::{ContentId, MAX_CONTENT_BYTES};
use palisade_protocol::scan::{RefusalCode, ScanOptions, ToAgent, ToSvm, VerdictSource};
use palisade_protocol::verdict::{NotScanned, Verdict, VerdictKind};
use sha2::{Digest, Sha256};

use crate::client::{Client, request, unique};
use crate::site::{Site, marker, ndb, rule};

fn malware(verdict: &Verdict) -> (&str, &str) {
    match verdict {
        Verdict::Malware { name, engine } => (name.as_str(), engine.as_str()),
        other => panic!("no malware but {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_marker_is_found_by_the_engine_that_knows_it() {
    let (by_clamav, by_yara) = (marker(), marker());
    let site = Site::new(&[
        ("marker.ndb", &ndb("Test.Marker", &by_clamav)),
        ("marker.yar", &rule("TestMarker", &by_yara)),
    ]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(client.welcome.generations.len(), 2);

    let infected = format!("before {by_clamav} after").into_bytes();
    let result = client.scan(&infected).await.result();
    let (name, engine) = malware(&result.verdict);
    assert!(name.starts_with("Test.Marker"), "{name}");
    assert_eq!(
        (engine, result.source),
        ("libclamav", VerdictSource::Scanned)
    );
    assert_eq!(result.sha256, Some(Sha256::digest(&infected).into()));

    let verdict = client
        .verdict(format!("before {by_yara} after").as_bytes())
        .await;
    assert_eq!(malware(&verdict), ("TestMarker", "yara-x"));

    assert_eq!(client.kind(&unique(1000)).await, VerdictKind::Clean);
    assert_eq!(client.kind(b"").await, VerdictKind::Clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_content_is_scanned_to_its_last_byte() {
    let marker = marker();
    let site = Site::new(&[("marker.yar", &rule("AtTheEnd", &marker))]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let clean = client.scan(&unique(20 << 20)).await;
    assert_eq!(clean.fragments_sent, 80);
    assert_eq!(clean.result().verdict.kind(), VerdictKind::Clean);
    let mut bytes = unique(20 << 20);
    bytes.extend_from_slice(marker.as_bytes());
    let scanned = client.scan(&bytes).await;
    assert_eq!(scanned.fragments_sent, 81);
    assert_eq!(malware(&scanned.result().verdict).0, "AtTheEnd");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_request_sends_nothing() {
    let marker = marker();
    let site = Site::new(&[("marker.yar", &rule("Known", &marker))]);
    let daemon = site.start();
    let first = Client::connect(&daemon, &site.ca.agent("default")).await;
    let second = Client::connect(&daemon, &site.ca.agent("default")).await;
    for bytes in [unique(700_000), unique(10), marker.into_bytes()] {
        let before = first.scan(&bytes).await.result();
        let known = second.scan(&bytes).await;
        assert_eq!(known.fragments_sent, 0);
        let known = known.result();
        assert_eq!(known.source, VerdictSource::SharedCache);
        assert_eq!(
            (&known.verdict, known.sha256),
            (&before.verdict, before.sha256)
        );
    }
    assert_eq!(daemon.scans(3), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn tenants_share_nothing() {
    let site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    let daemon = site.start();
    let one = Client::connect(&daemon, &site.ca.agent("tenant-one")).await;
    let two = Client::connect(&daemon, &site.ca.agent("tenant-two")).await;
    let bytes = unique(1000);
    assert_eq!(one.source(&bytes).await, VerdictSource::Scanned);
    let other = two.scan(&bytes).await;
    assert_eq!(
        other.fragments_sent, 1,
        "it has to show that it has the content"
    );
    assert_eq!(other.result().source, VerdictSource::Scanned);
    assert_eq!(two.source(&bytes).await, VerdictSource::SharedCache);
}

#[tokio::test(flavor = "multi_thread")]
async fn options_are_part_of_what_is_known() {
    let site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let bytes = unique(1000);
    client.scan(&bytes).await.result();
    let mut other = request(ContentId::of(&bytes), bytes.len() as u64);
    other.options = ScanOptions {
        archives: false,
        ..ScanOptions::default()
    };
    let mut stream = client.stream().await;
    stream.say(&ToSvm::Scan(other)).await;
    assert_eq!(
        stream.finish(&bytes).await.result().source,
        VerdictSource::Scanned
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn too_large_is_said_at_once() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[scan]\nmax_scan_size = '1 MiB'\n".to_owned();
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(client.welcome.max_scan_bytes, 1 << 20);
    for size in [
        (1 << 20) + 1,
        MAX_CONTENT_BYTES,
        MAX_CONTENT_BYTES + 1,
        u64::MAX,
    ] {
        let mut stream = client.stream().await;
        // Without an outline, and without the bytes.
        stream
            .say(&ToSvm::Scan(request(ContentId::of(b"x"), size)))
            .await;
        let ToAgent::Verdict(result) = stream.hear().await else {
            panic!("no verdict")
        };
        assert_eq!(
            result.verdict,
            Verdict::NotScanned(NotScanned::TooLarge { max: 1 << 20 })
        );
    }
    assert_eq!(client.kind(&unique(1 << 20)).await, VerdictKind::Clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_content_has_one_id() {
    let site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let mut stream = client.stream().await;
    stream
        .say(&ToSvm::Scan(request(ContentId::of(b"x"), 0)))
        .await;
    assert_eq!(
        stream.finish(b"").await.refusal(),
        RefusalCode::ContentMismatch
    );
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut child = Command::new("gzip")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = bytes.to_owned();
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let packed = child.wait_with_output().unwrap().stdout;
    writer.join().unwrap().unwrap();
    packed
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_find_what_libclamav_unpacks() {
    let (marker, unrelated) = (marker(), marker());
    let site = Site::new(&[
        ("marker.yar", &rule("Packed", &marker)),
        ("unrelated.ndb", &ndb("Unrelated", &unrelated)),
    ]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let packed = gzip(format!("packed {marker}").repeat(10).as_bytes());
    assert!(
        !packed
            .windows(marker.len())
            .any(|part| part == marker.as_bytes())
    );
    assert_eq!(
        malware(&client.verdict(&packed).await),
        ("Packed", "yara-x")
    );
    assert_eq!(client.kind(&gzip(&unique(5000))).await, VerdictKind::Clean);

    // Who asks not to look into archives is not told about them by the rules.
    let mut plain = request(ContentId::of(&packed), packed.len() as u64);
    plain.options.archives = false;
    let mut stream = client.stream().await;
    stream.say(&ToSvm::Scan(plain)).await;
    assert_eq!(
        stream.finish(&packed).await.result().verdict.kind(),
        VerdictKind::Clean
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn members_that_were_left_out_are_not_clean() {
    let found = rule("Members", "mmmmmmmmmmmmmmmmmmmmmmmm");
    let mut site = Site::new(&[("x.ndb", &ndb("X", &marker())), ("m.yar", &found)]);
    site.plant(&["palisade-engine-clamav"]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(
        malware(&client.verdict(b"members 3 100").await),
        ("Members", "yara-x")
    );
    assert_eq!(client.kind(b"members 4000 1").await, VerdictKind::Clean);
    let limit = Verdict::NotScanned(NotScanned::LimitHit {
        limit: Text::cut("members"),
    });
    assert_eq!(client.verdict(b"members 4097 1").await, limit);
    // 300 members of 1 MiB: over the bytes of one scan; and one that is malware.
    assert_eq!(
        malware(&client.verdict(b"members 300 1048576").await).0,
        "Members"
    );
    assert_eq!(
        client.source(b"members 4097 1").await,
        VerdictSource::SharedCache
    );
}
