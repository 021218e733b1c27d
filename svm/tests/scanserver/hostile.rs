//! Peers that lie, stall, or speak nonsense; and the others, who notice nothing.

use std::time::Duration;

use palisade_protocol::content::{ContentId, FRAGMENT_BYTES};
use palisade_protocol::scan::{Fragment, RefusalCode, ToAgent, ToSvm, VerdictSource};
use palisade_protocol::verdict::VerdictKind;
use tokio::io::AsyncWriteExt;

use crate::client::{Client, Stream, dial, fragment, indices, outline, request, unique};
use crate::site::{Ca, Daemon, Site, marker, rule};

async fn site() -> (Site, Daemon, Client) {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[limits]\nstall_s = 1\n".to_owned();
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    (site, daemon, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn claiming_one_content_and_sending_another_changes_nothing() {
    let (site, daemon, honest) = site().await;
    let liar = Client::connect(&daemon, &site.ca.agent("default")).await;
    for size in [1000, 700_000] {
        let (a, mut b) = (unique(size), unique(size));
        b[0] ^= 0xff;
        // Before A is known.
        let refused = liar.begin(&a).await.finish(&b).await.refusal();
        assert_eq!(refused, RefusalCode::ContentMismatch);
        assert_eq!(honest.source(&a).await, VerdictSource::Scanned);
        // And after: B's bytes under A's id get A's verdict, and are not even asked for.
        assert_eq!(liar.begin(&a).await.finish(&b).await.fragments_sent, 0);
        // With B's chaining values under A's id, for another size.
        let mut stream = liar.stream().await;
        let longer = [&b[..], b"longer"].concat();
        let claim = request(outline(&a).id(), longer.len() as u64);
        stream.say(&ToSvm::Scan(claim)).await;
        stream.say_outline(&outline(&longer)).await;
        assert_eq!(
            stream.finish(&longer).await.refusal(),
            RefusalCode::ContentMismatch
        );
        let known = honest.scan(&a).await.result();
        assert_eq!(known.source, VerdictSource::SharedCache);
        assert_eq!(known.verdict.kind(), VerdictKind::Clean);
        assert_eq!(
            honest.source(&b).await,
            VerdictSource::Scanned,
            "B was never stored"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lie_about_the_size_is_found_out() {
    let (_site, _daemon, client) = site().await;
    let bytes = unique(700_000);
    assert_eq!(client.kind(&bytes).await, VerdictKind::Clean);
    for size in [bytes.len() - 1, bytes.len() + 1] {
        let mut stream = client.stream().await;
        stream
            .say(&ToSvm::Scan(request(outline(&bytes).id(), size as u64)))
            .await;
        stream.say_outline(&outline(&bytes)).await;
        // The verdict is not known for that size, and the last fragment is another.
        assert_eq!(indices(&stream.need().await), [2]);
        let mut claimed = bytes.clone();
        claimed.resize(size, 0);
        stream.say(&fragment(&claimed, 2)).await;
        assert_eq!(
            stream.finish(&claimed).await.refusal(),
            RefusalCode::ContentMismatch
        );
    }
    // As many fragments as no outline has.
    let mut stream = client.stream().await;
    stream
        .say(&ToSvm::Scan(request(outline(&bytes).id(), 2_000_000)))
        .await;
    stream.say_outline(&outline(&bytes)).await;
    // More values are waited for, and do not come.
    assert_eq!(stream.finish(&bytes).await.refusal(), RefusalCode::Protocol);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_duplicate_and_unasked_fragments_are_refused() {
    let (_site, _daemon, client) = site().await;
    let bytes = unique(700_000);
    let own = |index| fragment(&bytes, index);
    let raw = |index, length| {
        ToSvm::Fragment(Fragment {
            index,
            bytes: vec![7; length],
        })
    };
    let whole = FRAGMENT_BYTES as usize;
    for (frames, code) in [
        (vec![raw(0, whole)], RefusalCode::ContentMismatch),
        (vec![raw(0, whole - 1)], RefusalCode::Protocol),
        (vec![raw(0, 0)], RefusalCode::Protocol),
        (vec![raw(2, whole)], RefusalCode::Protocol),
        (vec![raw(3, 10)], RefusalCode::Protocol),
        (vec![raw(u32::MAX, 10)], RefusalCode::Protocol),
        (vec![own(0), own(0)], RefusalCode::Protocol),
        (
            vec![own(0), own(1), ToSvm::Scan(request(ContentId::of(b"x"), 1))],
            RefusalCode::Protocol,
        ),
        // Two of three: the third is waited for, and does not come.
        (vec![own(2), own(0)], RefusalCode::Protocol),
    ] {
        let mut stream = client.begin(&bytes).await;
        stream.need().await;
        for frame in &frames {
            stream.say(frame).await;
        }
        let ToAgent::Refused(refusal) = stream.hear().await else {
            panic!("{frames:?}")
        };
        assert_eq!(refusal.code, code, "{frames:?}");
    }
    assert_eq!(
        client.source(&bytes).await,
        VerdictSource::Scanned,
        "nothing of it was stored"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fragment_before_it_is_asked_for_is_refused() {
    let (_site, _daemon, client) = site().await;
    let bytes = unique(700_000);
    let mut stream = client.stream().await;
    stream
        .say(&ToSvm::Scan(request(
            outline(&bytes).id(),
            bytes.len() as u64,
        )))
        .await;
    stream.say(&fragment(&bytes, 0)).await;
    let ToAgent::Refused(refusal) = stream.hear().await else {
        panic!("not refused")
    };
    assert_eq!(refusal.code, RefusalCode::Protocol);
}

async fn answered(mut stream: Stream, bytes: &[u8]) -> RefusalCode {
    let _ = stream.send.write_all(bytes).await;
    let _ = stream.send.finish();
    match stream.hear().await {
        ToAgent::Refused(refusal) => refusal.code,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_refused_and_harms_nobody() {
    let (_site, mut daemon, client) = site().await;
    let huge = u32::MAX.to_le_bytes();
    let over = (FRAGMENT_BYTES as u32 + 65).to_le_bytes();
    let unknown = [1, 0, 0, 0, 250];
    let empty = [0, 0, 0, 0];
    let cut = [100, 0, 0, 0, 1, 2, 3];
    // A list that says it is longer than all memory.
    let mut list = vec![11, 0, 0, 0, 2, 253];
    list.extend_from_slice(&u64::MAX.to_le_bytes());
    list.push(0);
    for bytes in [&huge[..], &over, &unknown, &empty, &cut, &list] {
        assert_eq!(
            answered(client.stream().await, bytes).await,
            RefusalCode::Protocol,
            "{bytes:?}"
        );
    }
    let mut random = vec![0; 2000];
    for _ in 0..300 {
        random.iter_mut().for_each(|byte| *byte = rand::random());
        let length = rand::random_range(1..random.len());
        let mut stream = client.stream().await;
        let _ = stream.send.write_all(&random[..length]).await;
        let _ = stream.send.finish();
        let _ = stream.hear().await;
    }
    assert_eq!(client.kind(&unique(1000)).await, VerdictKind::Clean);
    daemon.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn mutated_conversations_are_answered_or_ended() {
    let (_site, daemon, client) = site().await;
    let bytes = unique(300_000);
    let outline = outline(&bytes);
    let mut whole = Vec::new();
    for message in [
        ToSvm::Scan(request(outline.id(), outline.size())),
        ToSvm::Outline(palisade_protocol::bounded::List::cut(
            outline.chaining_values().to_vec(),
        )),
        fragment(&bytes, 0),
        fragment(&bytes, 1),
    ] {
        whole.extend_from_slice(&palisade_protocol::frame::to_bytes(&message).unwrap());
    }
    for _ in 0..300 {
        let mut mutated = whole.clone();
        for _ in 0..rand::random_range(1..4) {
            // Heads are where the meaning is.
            let at = rand::random_range(0..400.min(mutated.len()));
            mutated[at] = rand::random();
        }
        let mut stream = client.stream().await;
        let _ = stream.send.write_all(&mutated).await;
        let _ = stream.send.finish();
        match stream.hear_soon(Duration::from_secs(30)).await {
            Some(ToAgent::Need(_)) => drop(stream),
            Some(_) => {}
            None => panic!("neither answered nor ended"),
        }
    }
    assert_eq!(client.kind(&unique(1000)).await, VerdictKind::Clean);
    assert!(!daemon.log.has("panicked"));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_agents_of_the_site_are_served() {
    let (site, daemon, _client) = site().await;
    let stranger = Ca::new("test-site").agent("default");
    let svm = site.ca.svm();
    for (identity, what) in [(svm, "an SVM's certificate"), (stranger, "another root")] {
        let refused = match dial(daemon.address, &identity).await {
            Err(_) => true,
            // TLS 1.3 lets a client believe that it is connected until it hears.
            Ok((_endpoint, connection)) => {
                tokio::time::timeout(Duration::from_secs(10), connection.closed())
                    .await
                    .is_ok()
            }
        };
        assert!(refused, "{what}");
    }
    daemon.log.wait_for("a connection was not accepted");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_says_nothing_is_ended() {
    let (site, daemon, client) = site().await;
    let mut silent = Vec::new();
    for _ in 0..50 {
        silent.push(
            dial(daemon.address, &site.ca.agent("default"))
                .await
                .unwrap(),
        );
    }
    assert_eq!(
        client.kind(&unique(1000)).await,
        VerdictKind::Clean,
        "others are served meanwhile"
    );
    for (_endpoint, connection) in silent {
        // The promise is ten seconds.
        let ended = tokio::time::timeout(Duration::from_secs(20), connection.closed()).await;
        assert!(ended.is_ok(), "a silent session stays");
    }
    // Something else than a Hello is no beginning either.
    let (_endpoint, connection) = dial(daemon.address, &site.ca.agent("default"))
        .await
        .unwrap();
    let mut stream = Stream::open(&connection).await;
    stream
        .say(&ToSvm::Scan(request(ContentId::of(b"x"), 1)))
        .await;
    let ended = tokio::time::timeout(Duration::from_secs(10), connection.closed()).await;
    assert!(ended.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_has_so_many_requests_open_and_no_more() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[limits]\nrequests_per_agent = 3\nstall_s = 60\n".to_owned();
    let daemon = site.start();
    let greedy = Client::connect(&daemon, &site.ca.agent("default")).await;
    let other = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(greedy.welcome.max_requests, 3);
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = greedy.begin(&unique(100)).await;
        stream.need().await;
        open.push(stream);
    }
    assert_eq!(
        greedy.scan(b"one too many").await.refusal(),
        RefusalCode::OverLimit
    );
    assert_eq!(other.kind(b"another's").await, VerdictKind::Clean);
    // An abandoned request makes room.
    let mut abandoned = open.pop().unwrap();
    let _ = abandoned.receive.stop(0_u32.into());
    drop(abandoned);
    for _ in 0..200 {
        let scanned = greedy.scan(b"one more").await;
        if matches!(scanned.answer, ToAgent::Verdict(_)) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("an abandoned request keeps its place");
}

/// Connects an agent that takes memory for a content of this size, and sends nothing.
async fn hold(site: &Site, daemon: &Daemon, tenant: &str, size: usize) -> (Client, Stream) {
    let client = Client::connect(daemon, &site.ca.agent(tenant)).await;
    let mut stream = client.begin(&unique(size)).await;
    stream.need().await;
    (client, stream)
}

/// Whatever one tenant's agents hold, another's are served; and if all is held, it is said.
#[tokio::test(flavor = "multi_thread")]
async fn memory_for_content_is_bounded_and_busy_is_said() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings =
        "[scan]\nmax_scan_size = '4 MiB'\nmemory = '8 MiB'\n[limits]\nstall_s = 60\n".to_owned();
    let daemon = site.start();
    let [large, small] = [4 << 20, 1 << 20];
    let first = hold(&site, &daemon, "one", large).await;
    let _second = hold(&site, &daemon, "one", small).await;
    let _third = hold(&site, &daemon, "one", small).await;
    let busy = async |tenant: &str, bytes: &[u8]| {
        let client = Client::connect(&daemon, &site.ca.agent(tenant)).await;
        match client.scan(bytes).await.answer {
            ToAgent::Busy { retry_after_ms } => retry_after_ms > 0,
            ToAgent::Verdict(_) => false,
            other => panic!("{other:?}"),
        }
    };
    let bytes = unique(small);
    assert!(busy("one", &bytes).await, "three quarters are one tenant's");
    assert!(!busy("two", &bytes).await);
    let _fourth = hold(&site, &daemon, "two", 2 * small).await;
    let bytes = unique(small);
    assert!(busy("two", &bytes).await, "all of it is held");
    let (client, _stream) = first;
    client.connection.close(0_u32.into(), b"");
    for _ in 0..20 {
        if !busy("one", &bytes).await {
            return;
        }
    }
    panic!("the memory of a client that left stays taken");
}

/// A claim takes no memory before its chaining values fit.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_alone_takes_no_memory() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings =
        "[scan]\nmax_scan_size = '4 MiB'\nmemory = '4 MiB'\n[limits]\nstall_s = 60\n".to_owned();
    let daemon = site.start();
    let mut claims = Vec::new();
    for _ in 0..8 {
        let client = Client::connect(&daemon, &site.ca.agent("default")).await;
        let bytes = unique(3 << 20);
        let mut stream = client.stream().await;
        let claim = request(outline(&bytes).id(), bytes.len() as u64);
        stream.say(&ToSvm::Scan(claim)).await;
        assert!(stream.hear_soon(Duration::from_millis(50)).await.is_none());
        claims.push((client, stream));
    }
    let honest = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(honest.kind(&unique(3 << 20)).await, VerdictKind::Clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_sender_is_given_up() {
    let (_site, _daemon, client) = site().await;
    // Nothing, half a frame, and frames but not the ones asked for.
    let mut nothing = client.stream().await;
    nothing.send.write_all(&[9]).await.unwrap();
    assert_eq!(nothing.finish(b"").await.refusal(), RefusalCode::Protocol);
    let bytes = unique(700_000);
    let mut half = client.begin(&bytes).await;
    half.need().await;
    half.send.write_all(&[0, 0, 4, 0, 3, 0]).await.unwrap();
    half.send.flush().await.unwrap();
    assert_eq!(half.finish(&bytes).await.refusal(), RefusalCode::Protocol);
}
