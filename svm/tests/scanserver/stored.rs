//! Nothing is stored but the end of a whole scan of verified bytes: by the number of
//! entries, and by asking again.

use std::time::Duration;

use palisade_protocol::scan::VerdictSource;
use palisade_protocol::verdict::{NotScanned, Verdict, VerdictKind};

use crate::client::{Client, fragment, unique};
use crate::measured::{read, sum};
use crate::site::{Daemon, Site, marker, rule};

fn entries(daemon: &Daemon) -> f64 {
    sum(&read(daemon), "palisade_svm_cache_entries")
}

/// The control is at the end: what was scanned whole is one entry, and is not scanned
/// again. Partial and mistaken contents by single frames are in `hostile`.
#[tokio::test(flavor = "multi_thread")]
async fn partial_crashed_overdue_and_cancelled_scans_store_nothing() {
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[metrics]\nlisten = '127.0.0.1:0'\n[scan]\ntimeout_s = 1\n".to_owned();
    site.plant(&["palisade-engine-yara"]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;

    // Two fragments of three, and gone.
    let bytes = unique(700_000);
    let mut stream = client.begin(&bytes).await;
    stream.need().await;
    stream.say(&fragment(&bytes, 0)).await;
    stream.say(&fragment(&bytes, 1)).await;
    stream.send.reset(1_u32.into()).unwrap();
    stream.receive.stop(1_u32.into()).unwrap();
    drop(stream);

    // Twice each, so that nothing of the first time is there the second time.
    for _ in 0..2 {
        for content in [&b"crash"[..], b"error", b"hang"] {
            let result = client.scan(content).await.result();
            assert_eq!(result.verdict.kind(), VerdictKind::NotScanned);
            assert_eq!(result.source, VerdictSource::Scanned);
        }
        assert_eq!(entries(&daemon), 0.0);
    }

    // Sent whole, and cancelled while the engine works: the scan goes on, and fails.
    let mut stream = client.begin(b"hang once more").await;
    stream.need().await;
    stream.say(&fragment(b"hang once more", 0)).await;
    stream.receive.stop(1_u32.into()).unwrap();
    drop(stream);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(
        client.verdict(b"hang once more").await,
        Verdict::NotScanned(NotScanned::TimedOut)
    );
    assert_eq!(entries(&daemon), 0.0);

    // A limit says the same each time, so it is kept: as not scanned, for ever not clean.
    for source in [VerdictSource::Scanned, VerdictSource::SharedCache] {
        let result = client.scan(b"limit").await.result();
        let kind = result.verdict.kind();
        assert_eq!((kind, result.source), (VerdictKind::NotScanned, source));
    }
    assert_eq!(entries(&daemon), 1.0);
    assert_eq!(
        client.look_up(&[b"limit", b"hang", b"crash"]).await,
        [false; 3]
    );

    for source in [VerdictSource::Scanned, VerdictSource::SharedCache] {
        let result = client.scan(&bytes).await.result();
        let kind = result.verdict.kind();
        assert_eq!((kind, result.source), (VerdictKind::Clean, source));
    }
    assert_eq!(entries(&daemon), 2.0);
}
