//! What was sent once is not sent again, within a tenant and within bounds.

use palisade_protocol::content::FRAGMENT_BYTES;
use palisade_protocol::verdict::VerdictKind;

use crate::client::{Client, unique};
use crate::site::{Site, marker, rule};

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
