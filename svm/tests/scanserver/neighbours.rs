//! What neighbours may notice of each other: nothing of another tenant's contents, and
//! no refusal for another agent's flood. By count, not by time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use palisade_protocol::scan::{RefusalCode, ToAgent};
use palisade_protocol::verdict::VerdictKind;
use tokio::task::JoinSet;

use crate::client::{Client, unique};
use crate::measured::{read, sum};
use crate::site::{Site, marker, ndb, rule};

/// The control is the first tenant's second agent, for which all of it is known.
#[tokio::test(flavor = "multi_thread")]
async fn another_tenants_contents_are_never_consulted() {
    const CONTENTS: usize = 40;
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[metrics]\nlisten = '127.0.0.1:0'\n".to_owned();
    let daemon = site.start();
    // Some of one fragment, some of more, with their fragments kept.
    let contents: Vec<Vec<u8>> = (0..CONTENTS).map(|n| unique(1000 + n * 20_000)).collect();
    let bytes: usize = contents.iter().map(Vec::len).sum();
    let views: Vec<&[u8]> = contents.iter().map(Vec::as_slice).collect();
    let received = "palisade_svm_content_received_bytes_total";
    let saved = "palisade_svm_content_saved_bytes_total";
    let hits = "palisade_svm_answers_total{source=\"cache";
    let coalesced = "palisade_svm_answers_total{source=\"coalesced";
    let whole = |client: Client| {
        let contents = contents.clone();
        async move {
            for content in &contents {
                assert_eq!(client.kind(content).await, VerdictKind::Clean);
            }
            client
        }
    };

    let first = Client::connect(&daemon, &site.ca.agent("tenant-one")).await;
    let first = whole(first).await;
    let before = read(&daemon);
    assert_eq!(sum(&before, received), bytes as f64);

    let second = Client::connect(&daemon, &site.ca.agent("tenant-two")).await;
    assert_eq!(second.look_up(&views).await, [false; CONTENTS]);
    // At the same time as the other tenant asks, and as its own agents do.
    let both = tokio::join!(whole(second), whole(first));
    let after = read(&daemon);
    let grown = |name: &str| sum(&after, name) - sum(&before, name);
    assert_eq!(grown(received), bytes as f64, "all bytes were asked for");
    assert_eq!(grown(hits), CONTENTS as f64, "the first tenant's own");
    assert_eq!((grown(saved), grown(coalesced)), (bytes as f64, 0.0));
    let entries = sum(&after, "palisade_svm_cache_entries");
    assert_eq!(entries, 2.0 * CONTENTS as f64);

    let own = Client::connect(&daemon, &site.ca.agent("tenant-one")).await;
    assert_eq!(own.look_up(&views).await, [true; CONTENTS]);
    whole(own).await;
    assert_eq!(sum(&read(&daemon), received), sum(&after, received));
    drop(both);
}

/// Requests of the others that were turned away, and of the flooder.
async fn flood(per_agent: usize) -> (usize, usize) {
    const OTHERS: usize = 4;
    const EACH: usize = 5;
    let found = rule("Members", "mmmmmmmmmmmmmmmmmmmmmmmm");
    let mut site = Site::new(&[("x.ndb", &ndb("X", &marker())), ("m.yar", &found)]);
    site.settings = format!(
        "[scan]\nworkers = 1\n[limits]\nqueue = 64\nqueue_per_tenant = 64\n\
         queue_per_agent = {per_agent}\nrequests_per_agent = 128\n"
    );
    // Its contents take the engines so long as they say, and are all different.
    site.plant(&["palisade-engine-clamav"]);
    let daemon = site.start();
    let next = Arc::new(AtomicUsize::new(0));
    let content = move || {
        let n = next.fetch_add(1, Ordering::Relaxed);
        format!("members {} {}", 40 + n % 100, 1 + n / 100).into_bytes()
    };
    let over = Arc::new(AtomicBool::new(false));
    let flooder = Arc::new(Client::connect(&daemon, &site.ca.agent("default")).await);
    let mut flooding = JoinSet::new();
    for _ in 0..10 * OTHERS * EACH / 2 {
        let (flooder, over, content) = (Arc::clone(&flooder), Arc::clone(&over), content.clone());
        flooding.spawn(async move {
            let mut refused = 0;
            while !over.load(Ordering::Relaxed) {
                match flooder.ask(&content()).await {
                    Some(ToAgent::Verdict(_)) => {}
                    Some(ToAgent::Busy { .. }) => {
                        refused += 1;
                        tokio::task::yield_now().await;
                    }
                    other => panic!("{other:?}"),
                }
            }
            refused
        });
    }
    // It has begun when it was turned away, or fills the queue.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let mut asking = JoinSet::new();
    for _ in 0..OTHERS {
        let client = Client::connect(&daemon, &site.ca.agent("default")).await;
        let content = content.clone();
        asking.spawn(async move {
            let mut refused = 0;
            for _ in 0..EACH {
                match client.ask(&content()).await {
                    Some(ToAgent::Verdict(_)) => {}
                    Some(ToAgent::Busy { .. }) => refused += 1,
                    Some(ToAgent::Refused(refusal)) => {
                        assert_eq!(refusal.code, RefusalCode::OverLimit);
                        refused += 1;
                    }
                    other => panic!("{other:?}"),
                }
            }
            refused
        });
    }
    let others = asking.join_all().await.into_iter().sum();
    over.store(true, Ordering::Relaxed);
    let own = flooding.join_all().await.into_iter().sum();
    (others, own)
}

/// The control is the second flood: where one agent may fill the queue alone, the
/// others are turned away.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenfold_flood_of_one_agent_refuses_nobody_else() {
    let (others, own) = flood(16).await;
    println!("with a bound for each agent: {others} of others' refused, {own} of the flooder's");
    assert_eq!(others, 0);
    assert!(own > 0, "it was no flood");
    let (others, own) = flood(64).await;
    println!("without: {others} of others' refused, {own} of the flooder's");
    assert!(others > 0);
}
