//! Lists of hashes that a site allows or denies.

use md5::{Digest as _, Md5};
use nix::sys::signal::Signal;
use palisade_protocol::content::ContentId;
use palisade_protocol::scan::{ScanResult, VerdictSource};
use palisade_protocol::verdict::{Verdict, VerdictKind};
use sha2::Sha256;

use crate::client::{Client, unique};
use crate::site::{Daemon, Site, marker, ndb, rule};

fn sha256(bytes: &[u8]) -> String {
    hex::encode(<Sha256 as sha2::Digest>::digest(bytes))
}

fn md5(bytes: &[u8]) -> String {
    hex::encode(Md5::digest(bytes))
}

fn reload(daemon: &Daemon, until: &str) -> String {
    let lines = daemon.log.lines().len();
    daemon.signal(Signal::SIGHUP);
    daemon.log.wait_for_after(lines, until)
}

fn decided(result: &ScanResult) -> (Option<&str>, Option<&str>) {
    let list = result.details.metadata.first().map(|one| &*one.value);
    (result.details.engine.as_deref(), list)
}

#[tokio::test(flavor = "multi_thread")]
async fn denied_hashes_are_malware_by_their_names() {
    let [plain, sized, by_md5, other] = [1000, 300_000, 50, 60].map(unique);
    let site = Site::new(&[
        ("x.ndb", &ndb("X", &marker())),
        (
            "site.deny.sha256",
            &format!(
                "# by hand\n{}\n{}:{}:Win.Given.Name\n",
                sha256(&plain),
                sha256(&sized).to_uppercase(),
                sized.len()
            ),
        ),
        ("feed.deny.md5", &format!("{}  dropper.exe\n", md5(&by_md5))),
    ]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(client.welcome.generations[0].engine.as_str(), "hash-list");
    let unnamed = format!("Palisade.DenyList.{}", &sha256(&plain)[..8]);
    for (bytes, name, list) in [
        (&plain, unnamed.as_str(), "site.deny.sha256:2"),
        (&sized, "Win.Given.Name", "site.deny.sha256:3"),
        (&by_md5, "dropper.exe", "feed.deny.md5:1"),
    ] {
        let result = client.scan(bytes).await.result();
        let Verdict::Malware {
            name: given,
            engine,
        } = &result.verdict
        else {
            panic!("{result:?}")
        };
        assert_eq!((given.as_str(), engine.as_str()), (name, "hash-list"));
        assert_eq!(decided(&result), (Some("hash-list"), Some(list)));
        // Nobody else had to be asked.
        assert_eq!(result.engines.len(), 1);
        assert_eq!(result.sha256.map(hex::encode), Some(sha256(bytes)));
    }
    assert_eq!(client.kind(&other).await, VerdictKind::Clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allowed_hash_wins_over_every_engine_and_is_audited() {
    let marker = marker();
    let infected = format!("{marker} allowed").into_bytes();
    let also = format!("{marker} not allowed").into_bytes();
    let hash = sha256(&infected);
    let site = Site::new(&[
        ("x.ndb", &ndb("X", &marker)),
        ("y.yar", &rule("Y", &marker)),
        ("a.deny.sha256", &format!("{hash}\n")),
        ("b.allow.sha256", &format!("# ours\n\n{hash}  tool.exe\n")),
    ]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let result = client.scan(&infected).await.result();
    assert_eq!(result.verdict, Verdict::Clean);
    let expected = (Some("hash-list"), Some("b.allow.sha256:3"));
    assert_eq!(decided(&result), expected);
    assert_eq!(result.details.metadata[0].key.as_str(), "allow list");
    let audited = daemon.log.wait_for("audit: allowed by a list");
    for part in [
        "tenant=default",
        "b.allow.sha256:3",
        &ContentId::of(&infected).to_string(),
    ] {
        assert!(audited.contains(part), "{part}: {audited}");
    }
    // Known, it says so still.
    let known = client.scan(&infected).await.result();
    assert_eq!(known.source, VerdictSource::SharedCache);
    assert_eq!(decided(&known), expected);
    assert_eq!(client.kind(&also).await, VerdictKind::Malware);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_lists_is_a_change_of_definitions() {
    let marker = marker();
    let infected = format!("{marker} x").into_bytes();
    let harmless = unique(500);
    let site = Site::new(&[("x.ndb", &ndb("X", &marker))]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(client.kind(&infected).await, VerdictKind::Malware);
    assert_eq!(client.kind(&harmless).await, VerdictKind::Clean);

    site.define("site.allow.sha256", &format!("{}\n", sha256(&infected)));
    site.define("site.deny.md5", &format!("{}\n", md5(&harmless)));
    reload(&daemon, "definitions are in force");
    assert_eq!(client.kind(&infected).await, VerdictKind::Clean);
    assert_eq!(client.kind(&harmless).await, VerdictKind::Malware);

    // A list that cannot be read is named, and the last good ones stay.
    site.define("site.deny.md5", &format!("{}\nno hash\n", md5(&harmless)));
    std::fs::remove_file(site.source().join("site.allow.sha256")).unwrap();
    let said = reload(&daemon, "stays in force");
    let file = site.source().join("site.deny.md5").display().to_string();
    assert!(said.contains(&format!("{file}:2: 32 hex")), "{said}");
    assert_eq!(client.kind(&infected).await, VerdictKind::Clean);

    // Without lists it is as it was.
    std::fs::remove_file(site.source().join("site.deny.md5")).unwrap();
    reload(&daemon, "definitions are in force");
    assert_eq!(client.kind(&infected).await, VerdictKind::Malware);
    assert_eq!(client.kind(&harmless).await, VerdictKind::Clean);
}

/// What no list names would pass as clean, and nobody would have looked at it.
#[test]
fn lists_alone_are_no_definitions() {
    let site = Site::new(&[("site.deny.sha256", &format!("{}\n", sha256(b"x")))]);
    let (code, said) = site.start_fails();
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("holds no definitions"), "{said}");
}
