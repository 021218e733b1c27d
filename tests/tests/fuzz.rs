//! Broken frames against a live Protection Server: it neither ends nor answers
//! another agent wrongly. The decoders alone are mutated in `protocol/tests/wire.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod common;

use std::net::SocketAddr;
use std::time::Duration;

use common::TestSite;
use palisade_daemon::membership::Membership;
use palisade_protocol::bounded::{List, Text};
use palisade_protocol::content::{ContentId, FRAGMENT_BYTES};
use palisade_protocol::endpoint::{self, Bounds};
use palisade_protocol::frame;
use palisade_protocol::scan::{self, Fragment, ScanClass, ScanOptions, ScanRequest, ToSvm};
use palisade_protocol::tls::{self, Expect, Own};
use palisade_tests::definitions::Marker;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

/// Mutated streams here; `scripts/soak` sets `PALISADE_MUTATIONS` to a million.
fn mutations() -> usize {
    std::env::var("PALISADE_MUTATIONS").map_or(2000, |text| text.parse().unwrap())
}

fn resident_kib(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn connect(test: &TestSite, svm: SocketAddr) -> quinn::Connection {
    let membership = Membership::load(&test.site.dir().join("var/agent"))
        .unwrap()
        .unwrap();
    let identity = membership.identity;
    let trust = identity.trust();
    let config =
        tls::client_config(Own::Enrolled(identity), trust, Expect::AnySvm, scan::ALPN).unwrap();
    endpoint::dialler("127.0.0.1:0".parse().unwrap())
        .unwrap()
        .connect_with(
            endpoint::client(config, Bounds::SCAN_AGENT).unwrap(),
            svm,
            endpoint::SERVER_NAME,
        )
        .unwrap()
        .await
        .unwrap()
}

/// What an honest agent would send for a content of two fragments, all at once.
fn honest(rng: &mut StdRng) -> Vec<u8> {
    let mut content = vec![0; FRAGMENT_BYTES as usize + 1000];
    rng.fill(&mut content[..64]);
    let mut builder = palisade_protocol::content::OutlineBuilder::new();
    for fragment in content.chunks(FRAGMENT_BYTES as usize) {
        builder.push(fragment).unwrap();
    }
    let outline = builder.finish();
    let messages = [
        ToSvm::Scan(ScanRequest {
            content: if rng.random_bool(0.9) {
                outline.id()
            } else {
                ContentId(rng.random())
            },
            size: if rng.random_bool(0.9) {
                outline.size()
            } else {
                rng.random()
            },
            class: ScanClass::OnDemand,
            deadline_ms: rng.random_range(0..5000),
            options: ScanOptions::default(),
            max_age_s: rng.random(),
        }),
        ToSvm::Outline(List::cut(outline.chaining_values().iter().copied())),
        ToSvm::Fragment(Fragment {
            index: rng.random_range(0..3),
            bytes: content[..1000].to_vec(),
        }),
        ToSvm::Hello(scan::Hello {
            version: Text::cut("fuzz"),
        }),
    ];
    messages
        .iter()
        .flat_map(|message| frame::to_bytes(message).unwrap())
        .collect()
}

fn mutate(rng: &mut StdRng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.random_range(1..6) {
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..4) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            2 => bytes.truncate(at.max(1)),
            _ => bytes.insert(at, rng.random()),
        }
    }
}

#[tokio::test]
async fn broken_streams_hurt_nobody() {
    let marker = Marker::random();
    let test = TestSite::start(&[("m.ndb", marker.ndb())]);
    let svm = test.site.scan_address().unwrap();
    let process = test.site.process("scanserver").unwrap().unwrap();
    let seed: u64 = rand::random();
    println!("seed {seed}, {} streams", mutations());
    let mut rng = StdRng::seed_from_u64(seed);
    let mut connection = connect(&test, svm).await;
    let mut before = 0;
    for index in 0..mutations() {
        if index == mutations() / 4 {
            before = resident_kib(process.pid);
        }
        let mut bytes = honest(&mut rng);
        mutate(&mut rng, &mut bytes);
        let opened = tokio::time::timeout(Duration::from_secs(20), connection.open_bi()).await;
        let Ok(Ok((mut send, mut receive))) = opened else {
            // It may end the session of a peer that misbehaves; it may not end itself.
            connection = connect(&test, svm).await;
            continue;
        };
        let _ = send.write_all(&bytes).await;
        let _ = send.finish();
        // The answer's kind does not matter; that there is an end does.
        let answer = tokio::time::timeout(Duration::from_secs(30), receive.read_to_end(1 << 20));
        assert!(answer.await.is_ok(), "stream {index} of seed {seed} hangs");
    }
    assert!(process.is_running(), "seed {seed}");
    let after = resident_kib(process.pid);
    println!("resident: {before} KiB after a quarter, {after} KiB at the end");
    assert!(
        after < before + 64 * 1024,
        "memory grew from {before} to {after} KiB (seed {seed})"
    );

    // Another agent's verdicts are what they should be.
    let bad = test.file("bad", &marker.bytes);
    let good = test.file("good", b"harmless");
    let (code, result) = test.scan(&[&bad, &good]);
    assert_eq!(
        (code, &result["malware"], &result["clean"]),
        (1, &1.into(), &1.into()),
        "{result}"
    );
}
