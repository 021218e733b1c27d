//! Contents that must not leave the guest: what others had scanned is known of them by
//! their hashes, and nothing of them is sent.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod common;

use std::fs;
use std::path::Path;

use common::TestSite;
use common::watch::Numbers;
use palisade_tests::definitions::Marker;
use serde_json::Value;

/// More than one fragment.
const LARGE_BYTES: usize = 600_000;

fn scan(site: &TestSite, settings: &Path, folder: &Path) -> Value {
    let arguments = ["scan", folder.to_str().unwrap(), "-o", "json"];
    site.agent(settings, &arguments).json().unwrap()
}

#[test]
fn nothing_of_them_is_sent_and_what_is_known_by_hash_is_said() {
    let marker = Marker::random();
    let site = TestSite::prepare(&[("marker.ndb", marker.ndb())]);
    let numbers = site.start_with_numbers();
    let received = || Numbers::read(numbers).sum("content_received_bytes");
    let (secret, open) = (site.folder().join("secret"), site.folder().join("open"));
    let mut large: Vec<u8> = (0..LARGE_BYTES).map(|_| rand::random()).collect();
    large.extend_from_slice(&marker.bytes);
    let files = [
        (
            "clean",
            format!("clean {:x}", rand::random::<u64>()).into_bytes(),
        ),
        ("bad", [b"x", &marker.bytes[..]].concat()),
        ("large", large),
    ];
    for folder in [&secret, &open] {
        fs::create_dir(folder).unwrap();
        for (name, bytes) in &files {
            fs::write(folder.join(name), bytes).unwrap();
        }
    }
    let keeping = site.other_agent("keeping");
    let text = fs::read_to_string(&keeping).unwrap();
    fs::write(
        &keeping,
        format!("private = ['{}']\n{text}", secret.display()),
    )
    .unwrap();
    let sharing = site.other_agent("sharing");

    // Nobody knows them yet.
    let before = received();
    let result = scan(&site, &keeping, &secret);
    assert_eq!(result["not_scanned"], 3, "{result}");
    for finding in result["findings"].as_array().unwrap() {
        assert_eq!(finding["reason"], "private", "{finding}");
    }
    assert_eq!(result["sent_bytes"], 0);
    assert_eq!(received(), before);

    // The control: the same contents elsewhere in the guest are sent and scanned.
    let result = scan(&site, &sharing, &open);
    assert_eq!(
        (&result["malware"], &result["clean"]),
        (&2.into(), &1.into()),
        "{result}"
    );
    assert!(result["sent_bytes"].as_u64().unwrap() > LARGE_BYTES as u64);
    let after = received();
    assert!(after > before + LARGE_BYTES as f64);

    // From then on their hashes say what they are.
    let result = scan(&site, &keeping, &secret);
    assert_eq!(
        (&result["malware"], &result["clean"]),
        (&2.into(), &1.into()),
        "{result}"
    );
    assert_eq!(result["sent_bytes"], 0);
    assert_eq!(received(), after);
}
