//! The numbers that Prometheus reads, over HTTP, and what they show.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use palisade_protocol::verdict::VerdictKind;

use crate::client::{Client, unique};
use crate::site::{Daemon, PATIENCE, Site, field, marker, rule};

fn measured() -> (Site, Daemon) {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[metrics]\nlisten = '127.0.0.1:0'\n".to_owned();
    let daemon = site.start();
    (site, daemon)
}

/// What `GET /metrics` answers: samples by name and labels.
pub fn read(daemon: &Daemon) -> BTreeMap<String, f64> {
    let line = daemon.log.wait_for(" metrics address=");
    let address: SocketAddr = field(&line, "address").parse().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    let lines = body
        .lines()
        .filter(|line| line.starts_with("palisade_svm_"));
    lines.filter_map(sample).collect()
}

/// The sum of all samples whose names begin so.
pub fn sum(samples: &BTreeMap<String, f64>, prefix: &str) -> f64 {
    let of = samples.iter().filter(|(name, _)| name.starts_with(prefix));
    of.map(|(_, value)| value).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_agents_of_one_golden_image_have_each_content_scanned_once() {
    const AGENTS: usize = 50;
    const CONTENTS: usize = 40;
    let (site, daemon) = measured();
    let image: Arc<Vec<Vec<u8>>> =
        Arc::new((0..CONTENTS).map(|n| unique(500 + n * 20_000)).collect());
    let bytes: usize = image.iter().map(Vec::len).sum();
    let mut guests = Vec::new();
    for number in 0..AGENTS {
        let client = Client::connect(&daemon, &site.ca.agent("default")).await;
        let image = Arc::clone(&image);
        guests.push(tokio::spawn(async move {
            for n in 0..CONTENTS {
                // Each begins elsewhere, so that all are asked for at once.
                let content = &image[(n + number) % CONTENTS];
                assert_eq!(client.kind(content).await, VerdictKind::Clean);
            }
        }));
    }
    for guest in guests {
        guest.await.unwrap();
    }
    let samples = read(&daemon);
    assert_eq!(sum(&samples, "palisade_svm_scans_total"), CONTENTS as f64);
    assert_eq!(
        samples["palisade_svm_content_received_bytes_total"],
        bytes as f64
    );
    let saved = sum(&samples, "palisade_svm_content_saved_bytes_total");
    assert_eq!(saved, ((AGENTS - 1) * bytes) as f64);
    let answers = sum(&samples, "palisade_svm_answers_total");
    assert_eq!(answers, (AGENTS * CONTENTS) as f64);
    assert_eq!(samples["palisade_svm_cache_entries"], CONTENTS as f64);
    // And the log, which is written elsewhere, says the same.
    assert_eq!(daemon.scans(CONTENTS), CONTENTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_command_says_what_the_numbers_say() {
    let (site, daemon) = measured();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let bytes = unique(1000);
    client.kind(&bytes).await;
    client.kind(&bytes).await;
    let status = site.status_json();
    let samples = read(&daemon);
    let number = |path: &str| status.pointer(path).and_then(|n| n.as_f64()).unwrap();
    assert_eq!(number("/now/agents"), 1.0);
    assert_eq!(number("/since_start/scanned"), 1.0);
    assert_eq!(number("/since_start/cached"), 1.0);
    for (pointer, sample) in [
        ("/now/cache_entries", "palisade_svm_cache_entries"),
        (
            "/since_start/received_bytes",
            "palisade_svm_content_received_bytes_total",
        ),
        (
            "/now/free_bytes",
            "palisade_svm_content_memory_bytes{use=\"free\"}",
        ),
    ] {
        assert_eq!(number(pointer), samples[sample], "{pointer}");
    }
    assert_eq!(status["address"], daemon.address.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_path_content_or_tenant_is_in_the_numbers() {
    let (site, daemon) = measured();
    let client = Client::connect(&daemon, &site.ca.agent("secret-tenant")).await;
    client.kind(&unique(1000)).await;
    for name in read(&daemon).keys() {
        assert!(!name.contains("secret-tenant"), "{name}");
    }
    assert!(
        TcpStream::connect(daemon.address).is_err(),
        "QUIC's port speaks no TCP"
    );
}
