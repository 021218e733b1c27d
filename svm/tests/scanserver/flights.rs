//! One content, many requests, one scan.

use std::sync::Arc;

use palisade_protocol::bounded::List;
use palisade_protocol::scan::{ToAgent, ToSvm, VerdictSource};
use palisade_protocol::verdict::VerdictKind;

use crate::client::{Client, fragment, indices, outline, request, unique};
use crate::site::{Site, marker, rule};

#[tokio::test(flavor = "multi_thread")]
async fn fifty_requests_are_one_scan() {
    let site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    let daemon = site.start();
    let mut clients = Vec::new();
    for _ in 0..10 {
        clients.push(Arc::new(
            Client::connect(&daemon, &site.ca.agent("default")).await,
        ));
    }
    let bytes = Arc::new(unique(3_000_000));
    let requests: Vec<_> = (0..50)
        .map(|n| {
            let (client, bytes) = (Arc::clone(&clients[n % 10]), Arc::clone(&bytes));
            tokio::spawn(async move {
                let scanned = client.scan(&bytes).await;
                (scanned.fragments_sent, scanned.result())
            })
        })
        .collect();
    let (mut sent, mut scanned) = (0, 0);
    for request in requests {
        let (fragments, result) = request.await.unwrap();
        assert_eq!(result.verdict.kind(), VerdictKind::Clean);
        sent += fragments;
        scanned += usize::from(result.source == VerdictSource::Scanned);
    }
    assert_eq!((sent, scanned, daemon.scans(1)), (12, 1, 1));
}

/// A leader that has sent the first of its fragments, and a follower that waits.
async fn leader_and_follower(
    site: &Site,
    daemon: &crate::site::Daemon,
    bytes: &[u8],
) -> (
    (Client, crate::client::Stream),
    (Client, crate::client::Stream),
) {
    let leader = Client::connect(daemon, &site.ca.agent("default")).await;
    let mut leading = leader.begin(bytes).await;
    assert_eq!(indices(&leading.need().await), [0, 1, 2]);
    leading.say(&fragment(bytes, 1)).await;
    let follower = Client::connect(daemon, &site.ca.agent("default")).await;
    let mut following = follower.begin(bytes).await;
    let soon = following
        .hear_soon(std::time::Duration::from_millis(300))
        .await;
    assert!(soon.is_none(), "a follower waits, and hears {soon:?}");
    ((leader, leading), (follower, following))
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_disconnects_a_follower_sends_the_rest() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[limits]\nstall_s = 60\nhand_over_ms = 60000\n".to_owned();
    let daemon = site.start();
    let bytes = unique(700_000);
    let ((leader, _leading), (_follower, mut following)) =
        leader_and_follower(&site, &daemon, &bytes).await;
    leader.connection.close(0_u32.into(), b"");
    assert_eq!(
        indices(&following.need().await),
        [0, 2],
        "what the leader sent is kept"
    );
    following.say(&fragment(&bytes, 0)).await;
    following.say(&fragment(&bytes, 2)).await;
    let result = following.finish(&bytes).await.result();
    assert_eq!(result.verdict.kind(), VerdictKind::Clean);
    assert_eq!(daemon.scans(1), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_stalls_a_follower_sends_the_rest() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[limits]\nstall_s = 2\nhand_over_ms = 60000\n".to_owned();
    let daemon = site.start();
    let bytes = unique(700_000);
    let ((_leader, leading), (_follower, following)) =
        leader_and_follower(&site, &daemon, &bytes).await;
    assert_eq!(following.finish(&bytes).await.fragments_sent, 2);
    // The staller is told so.
    leading.finish(&bytes).await.refusal();
}

/// A guest that sends nothing, or hardly anything, keeps no other one waiting; what it sent
/// is kept, and the verdict is its own, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_leader_gives_way_to_a_follower() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[limits]\nstall_s = 60\nhand_over_ms = 1000\n".to_owned();
    let daemon = site.start();
    let bytes = unique(700_000);
    let ((_leader, leading), (_follower, following)) =
        leader_and_follower(&site, &daemon, &bytes).await;
    let scanned = following.finish(&bytes).await;
    assert_eq!(scanned.fragments_sent, 2);
    assert_eq!(scanned.result().verdict.kind(), VerdictKind::Clean);
    let result = leading.finish(&bytes).await.result();
    assert_eq!(result.source, VerdictSource::Coalesced);
    // The same of one that says what its content is, value by value.
    let bytes = unique(2_000_000);
    let dripping = Client::connect(&daemon, &site.ca.agent("default")).await;
    let mut drip = dripping.stream().await;
    let outline = outline(&bytes);
    drip.say(&ToSvm::Scan(request(outline.id(), outline.size())))
        .await;
    let first = outline.chaining_values()[..1].to_vec();
    drip.say(&ToSvm::Outline(List::cut(first))).await;
    let other = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(other.kind(&bytes).await, VerdictKind::Clean);
    assert_eq!(daemon.scans(2), 2);
}

/// However often one guest asks and then says nothing, it keeps another waiting once.
#[tokio::test(flavor = "multi_thread")]
async fn one_guests_many_silent_requests_cost_another_one_turn() {
    const PATIENCE_MS: u64 = 1000;
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = format!("[limits]\nstall_s = 60\nhand_over_ms = {PATIENCE_MS}\n");
    let daemon = site.start();
    let bytes = unique(700_000);
    let silent = Client::connect(&daemon, &site.ca.agent("default")).await;
    let mut streams = vec![silent.begin(&bytes).await];
    streams[0].need().await;
    for _ in 0..40 {
        streams.push(silent.begin(&bytes).await);
    }
    let honest = Client::connect(&daemon, &site.ca.agent("default")).await;
    let asked = std::time::Instant::now();
    let scanned = honest.scan(&bytes).await;
    assert_eq!(scanned.result().verdict.kind(), VerdictKind::Clean);
    // A second for each would be 40.
    let turns = asked.elapsed().as_millis() as u64 / PATIENCE_MS;
    assert!(turns < 20, "{turns}");
}

/// Guests that are all slow take turns, and each turn gets something done.
#[tokio::test(flavor = "multi_thread")]
async fn guests_that_are_all_slow_get_there() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[limits]\nstall_s = 5\nhand_over_ms = 200\n".to_owned();
    let daemon = site.start();
    let bytes = unique(700_000);
    let mut slow = Vec::new();
    for _ in 0..5 {
        let (client, bytes) = (
            Client::connect(&daemon, &site.ca.agent("default")).await,
            bytes.clone(),
        );
        slow.push(tokio::spawn(async move {
            // As an agent does that is told to come back.
            loop {
                let mut stream = client.begin(&bytes).await;
                let answer = loop {
                    match stream.hear().await {
                        // A fragment needs longer than the first turn lasts.
                        ToAgent::Need(ranges) => {
                            for index in indices(&ranges) {
                                tokio::time::sleep(std::time::Duration::from_millis(400)).await;
                                stream.say(&fragment(&bytes, index)).await;
                            }
                        }
                        answer => break answer,
                    }
                };
                match answer {
                    ToAgent::Verdict(result) => return result.verdict.kind(),
                    other => println!("{other:?}"),
                }
            }
        }));
    }
    let all = async {
        for one in slow {
            assert_eq!(one.await.unwrap(), VerdictKind::Clean);
        }
    };
    tokio::time::timeout(crate::site::PATIENCE, all)
        .await
        .unwrap();
    assert_eq!(daemon.scans(1), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_leader_lies_a_follower_is_not_harmed() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[limits]\nstall_s = 60\nhand_over_ms = 60000\n".to_owned();
    let daemon = site.start();
    let bytes = unique(700_000);
    let ((_leader, mut leading), (_follower, following)) =
        leader_and_follower(&site, &daemon, &bytes).await;
    let mut wrong = bytes.clone();
    wrong[0] ^= 1;
    leading.say(&fragment(&wrong, 0)).await;
    leading.finish(&wrong).await.refusal();
    let scanned = following.finish(&bytes).await;
    assert_eq!(scanned.fragments_sent, 2);
    assert_eq!(scanned.result().verdict.kind(), VerdictKind::Clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_whole_is_scanned_though_nobody_waits() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.plant(&["palisade-engine-yara"]);
    let daemon = site.start();
    let identity = site.ca.agent("default");
    let client = Client::connect(&daemon, &identity).await;
    let bytes = b"find Late.Verdict";
    let mut stream = client.begin(bytes).await;
    stream.need().await;
    stream.say(&fragment(bytes, 0)).await;
    // Gone before the verdict, maybe; the next one finds it known or in flight.
    daemon.log.wait_for(" scanned content=");
    client.connection.close(0_u32.into(), b"");
    let client = Client::connect(&daemon, &identity).await;
    let scanned = client.scan(bytes).await;
    assert_eq!(scanned.fragments_sent, 0);
    assert_eq!(scanned.result().verdict.kind(), VerdictKind::Malware);
}
