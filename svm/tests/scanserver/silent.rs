//! Peers that say nothing, or too little: thousands of connections, a byte a second,
//! contents with gaps. What they take is given back, and others notice nothing.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::pin::pin;
use std::time::Duration;

use palisade_protocol::content::FRAGMENT_BYTES;
use palisade_protocol::endpoint;
use palisade_protocol::frame;
use palisade_protocol::identity::Identity;
use palisade_protocol::scan::{MAX_NEED_RANGES, RefusalCode, ToAgent};
use palisade_protocol::verdict::VerdictKind;
use tokio::task::JoinSet;

use crate::client::{Client, Stream, dial_from, fragment, indices, unique};
use crate::load::Honest;
use crate::measured::{read, sum};
use crate::site::{Daemon, PATIENCE, Site, marker, rule};

/// What the daemon may take more afterwards, in KiB.
const MAX_GROWTH_KIB: u64 = 64 * 1024;
/// The same after as many sessions at a time as there may be (`limits.sessions`): each
/// costs up to 32 KiB, and the allocator keeps what it is given back for the next ones.
const SESSIONS_GROWTH_KIB: u64 = 4096 * 32;
/// Connections that are made at a time.
const BATCH: usize = 200;
/// Guests whose certificates the silent ones hold.
const GUESTS: usize = 100;

fn site(settings: &str) -> (Site, String) {
    let marker = marker();
    let mut site = Site::new(&[("some.yar", &rule("Known", &marker))]);
    site.settings = format!("[metrics]\nlisten = '127.0.0.1:0'\n{settings}");
    (site, marker)
}

async fn until(what: &str, done: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !done() {
        assert!(tokio::time::Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn free(daemon: &Daemon) -> f64 {
    sum(&read(daemon), "palisade_svm_content_memory_bytes")
}

fn dialler() -> quinn::Endpoint {
    endpoint::dialler((Ipv4Addr::LOCALHOST, 0).into()).unwrap()
}

/// First datagrams as real clients send them, each of another connection.
async fn first_datagrams(identity: &Identity, count: usize) -> Vec<Vec<u8>> {
    let nowhere = tokio::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let address = nowhere.local_addr().unwrap();
    let mut datagrams = Vec::new();
    let mut known = HashSet::new();
    let mut buffer = [0; 2048];
    while datagrams.len() < count {
        let endpoint = dialler();
        let mut dialling = JoinSet::new();
        for _ in 0..BATCH {
            let (endpoint, identity) = (endpoint.clone(), identity.clone());
            dialling.spawn(async move { dial_from(&endpoint, address, &identity).await });
        }
        for _ in 0..BATCH {
            let (length, _) = nowhere.recv_from(&mut buffer).await.unwrap();
            // A long header's first bytes: kind, version, and the connection's name. What
            // comes again is a client's second try.
            if known.insert(buffer[..20].to_vec()) {
                datagrams.push(buffer[..length].to_vec());
            }
        }
    }
    datagrams
}

/// Connects without a certificate that anybody of the site gave; the daemon refuses.
async fn stranger(endpoint: quinn::Endpoint, daemon: SocketAddr, foreign: &Identity) {
    if let Ok(connection) = dial_from(&endpoint, daemon, foreign).await {
        let closed = tokio::time::timeout(PATIENCE, connection.closed()).await;
        closed.expect("a stranger's session stays");
    }
}

/// The control: with an hour for the listener's `HELLO` the sessions stay, and it is red.
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_connections_that_say_nothing() {
    const HALF_OPEN: usize = 4000;
    const SILENT: usize = 4000;
    const STRANGERS: usize = 2000;
    let (site, marker) = site("");
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    client.kind(&unique(100)).await;
    let before = daemon.resident_kib();
    let honest = Honest::start(client, &marker);
    let address = daemon.address;

    // A client's first datagram, from a port each, and then nothing.
    let guest = site.ca.agent("default");
    let datagrams = first_datagrams(&guest, HALF_OPEN).await;
    for batch in datagrams.chunks(BATCH) {
        for datagram in batch {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            socket.send_to(datagram, address).unwrap();
        }
        // The kernel's buffer for the daemon is no part of this.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // A new agent gets in all the while.
    let newcomer = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(newcomer.kind(&unique(50)).await, VerdictKind::Clean);

    // Whole handshakes, with a guest's certificate, and no Hello.
    let guests: Vec<Identity> = (0..GUESTS).map(|_| site.ca.agent("default")).collect();
    let mut held = Vec::new();
    for batch in 0..SILENT / BATCH {
        let mut dialling = JoinSet::new();
        let endpoints: Vec<quinn::Endpoint> = (0..BATCH / 10).map(|_| dialler()).collect();
        for n in 0..BATCH {
            let identity = guests[(batch * BATCH + n) % GUESTS].clone();
            let endpoint = endpoints[n % endpoints.len()].clone();
            dialling.spawn(async move { dial_from(&endpoint, address, &identity).await });
        }
        held.extend(dialling.join_all().await.into_iter().flatten());
    }
    println!("{} of {SILENT} silent sessions were let in", held.len());
    assert!(held.len() > SILENT / 2);
    let agents = sum(&read(&daemon), "palisade_svm_agents");
    assert!(agents <= (GUESTS + 3) as f64, "{agents}");

    // And whole handshakes with another site's certificate.
    let foreign = crate::site::Ca::new("test-site").agent("default");
    for _ in 0..STRANGERS / BATCH {
        let (mut dialling, endpoint) = (JoinSet::new(), dialler());
        for _ in 0..BATCH {
            let (endpoint, foreign) = (endpoint.clone(), foreign.clone());
            dialling.spawn(async move { stranger(endpoint, address, &foreign).await });
        }
        dialling.join_all().await;
    }

    // Nobody is sent away but by the daemon: each of them is given up.
    for connection in &held {
        let ended = tokio::time::timeout(PATIENCE, connection.closed()).await;
        ended.expect("a session that says nothing stays");
    }
    until("the silent ones are forgotten", || {
        sum(&read(&daemon), "palisade_svm_agents") == 2.0
    })
    .await;
    let verdicts = honest.stop().await;
    let after = daemon.resident_kib();
    println!("{before} KiB before, {after} KiB after; {verdicts} verdicts of others meanwhile");
    assert!(verdicts >= 20, "{verdicts}");
    assert!(
        after < before + SESSIONS_GROWTH_KIB,
        "{before} to {after} KiB"
    );
    assert!(!daemon.log.has("panicked"));
}

async fn a_byte_a_second(mut stream: Stream, bytes: Vec<u8>) -> ToAgent {
    let heard = tokio::time::timeout(PATIENCE, frame::read(&mut stream.receive));
    let mut heard = pin!(heard);
    for byte in bytes {
        tokio::select! {
            answer = &mut heard => return answer.expect("nobody gives it up").unwrap().unwrap(),
            () = tokio::time::sleep(Duration::from_secs(1)) => {
                // When nobody listens any more, the answer is on its way.
                let _ = stream.send.write_all(&[byte]).await;
            }
        }
    }
    panic!("256 bytes in 256 seconds were taken");
}

/// The control: with `PALISADE_SCANSERVER__LIMITS__STALL_S=3600` nobody is given up, and
/// it is red.
#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_streams_of_a_byte_a_second() {
    const AGENTS: usize = 20;
    const STREAMS: usize = 50;
    const SIZE: usize = FRAGMENT_BYTES as usize + 1000;
    let (site, marker) = site("");
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    client.kind(&unique(100)).await;
    let all = free(&daemon);
    let before = daemon.resident_kib();
    let honest = Honest::start(client, &marker);
    let mut slow = JoinSet::new();
    for _ in 0..AGENTS {
        let client = Client::connect(&daemon, &site.ca.agent("default")).await;
        slow.spawn(async move {
            let mut each = JoinSet::new();
            for _ in 0..STREAMS {
                let bytes = unique(SIZE);
                let mut stream = client.begin(&bytes).await;
                stream.need().await;
                let frame = frame::to_bytes(&fragment(&bytes, 0)).unwrap();
                each.spawn(a_byte_a_second(stream, frame[..256].to_vec()));
            }
            // The client lives as long as its streams.
            (each.join_all().await, client).0
        });
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let held = sum(&read(&daemon), "palisade_svm_requests_open");
    let answers: Vec<ToAgent> = slow.join_all().await.concat();
    println!("{held} requests were open at a time");
    assert_eq!(answers.len(), AGENTS * STREAMS);
    for answer in answers {
        let ToAgent::Refused(refusal) = answer else {
            panic!("not given up but {answer:?}")
        };
        assert_eq!(refusal.code, RefusalCode::Protocol);
    }
    until("their memory is free again", || free(&daemon) == all).await;
    let verdicts = honest.stop().await;
    let after = daemon.resident_kib();
    println!("{before} KiB before, {after} KiB after; {verdicts} verdicts of others meanwhile");
    assert!(verdicts >= 20, "{verdicts}");
    assert!(after < before + MAX_GROWTH_KIB, "{before} to {after} KiB");
}

/// Every second fragment is known: as many gaps as a content of that size can have.
/// The control is `without_a_store_everything_is_sent`.
#[tokio::test(flavor = "multi_thread")]
async fn a_content_of_gaps_is_asked_for_in_bounded_ranges() {
    const FRAGMENTS: usize = 150;
    const FRAGMENT: usize = FRAGMENT_BYTES as usize;
    let (site, marker) = site("");
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let first = unique(FRAGMENTS * FRAGMENT);
    assert_eq!(client.scan(&first).await.fragments_sent, FRAGMENTS);
    let mut second = first;
    for odd in (1..FRAGMENTS).step_by(2) {
        // One byte of each.
        second[odd * FRAGMENT] ^= 1;
    }
    second[5 * FRAGMENT - 10..][..marker.len()].copy_from_slice(marker.as_bytes());
    let mut stream = client.begin(&second).await;
    let (mut sent, mut rounds) = (Vec::new(), Vec::new());
    let result = loop {
        match stream.hear().await {
            ToAgent::Need(ranges) => {
                rounds.push(ranges.len());
                for index in indices(&ranges) {
                    stream.say(&fragment(&second, index)).await;
                    sent.push(index);
                }
            }
            ToAgent::Verdict(result) => break result,
            other => panic!("{other:?}"),
        }
    };
    // The marker lies over the border of two, of which one had a gap anyway.
    let expected: Vec<u32> = (0..FRAGMENTS as u32)
        .filter(|index| index % 2 == 1 || *index == 4)
        .collect();
    assert_eq!(sent, expected);
    assert!(rounds.len() > 1 && rounds.iter().all(|ranges| *ranges <= MAX_NEED_RANGES));
    assert_eq!(result.verdict.kind(), VerdictKind::Malware);
}
