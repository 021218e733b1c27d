//! Verdicts of earlier definitions: served for a while, marked, and re-checked.

use nix::sys::signal::Signal;
use palisade_protocol::bounded::List;
use palisade_protocol::content::ContentId;
use palisade_protocol::scan::{
    Known, Lookup, Named, ScanOptions, ScanResult, ToAgent, ToSvm, VerdictSource,
};
use palisade_protocol::verdict::VerdictKind;

use crate::client::{Client, request, unique};
use crate::site::{Daemon, Site, marker, ndb, rule};

const DAY_S: u32 = 86_400;

/// A site that leaves older verdicts to those who ask.
fn site_of(definitions: &[(&str, &str)]) -> Site {
    let mut site = Site::new(definitions);
    site.settings = "[retroactive]\nrescan = false\n".to_owned();
    site
}

/// Asks with a verdict's age allowed.
async fn ask(client: &Client, bytes: &[u8], max_age_s: u32) -> ScanResult {
    let mut asked = request(ContentId::of(bytes), bytes.len() as u64);
    asked.max_age_s = max_age_s;
    let mut stream = client.stream().await;
    stream.say(&ToSvm::Scan(asked)).await;
    stream.finish(bytes).await.result()
}

async fn look_up(client: &Client, contents: &[&[u8]], max_age_s: u32) -> Known {
    let named = contents.iter().map(|bytes| Named {
        content: ContentId::of(bytes),
        size: bytes.len() as u64,
    });
    let mut stream = client.stream().await;
    let lookup = Lookup {
        options: ScanOptions::default(),
        max_age_s,
        contents: List::cut(named),
    };
    stream.say(&ToSvm::Lookup(lookup)).await;
    match stream.hear().await {
        ToAgent::Known(known) => known,
        other => panic!("no Known but {other:?}"),
    }
}

fn change(site: &Site, daemon: &Daemon, name: &str, text: &str) {
    let lines = daemon.log.lines().len();
    site.define(name, text);
    daemon.signal(Signal::SIGHUP);
    daemon.log.wait_for_after(lines, "definitions are in force");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_clean_verdict_serves_until_it_is_rechecked() {
    let (old, new) = (marker(), marker());
    let site = site_of(&[("rules.yar", &rule("Old", &old))]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let bytes = new.clone().into_bytes();
    let first = ask(&client, &bytes, DAY_S).await;
    assert_eq!((first.older, first.recheck), (false, false));

    change(&site, &daemon, "rules.yar", &rule("New", &new));
    let older = ask(&client, &bytes, DAY_S).await;
    assert_eq!(older.verdict.kind(), VerdictKind::Clean);
    assert_eq!(older.source, VerdictSource::SharedCache);
    assert_eq!((older.older, older.recheck), (true, true));
    assert_ne!(
        older.generations, first.generations,
        "those in force are told"
    );
    let again = ask(&client, &bytes, DAY_S).await;
    assert_eq!(
        (again.older, again.recheck),
        (true, false),
        "one re-check at a time"
    );
    assert_eq!(daemon.scans(1), 1);

    // The re-check: no age is allowed.
    let fresh = ask(&client, &bytes, 0).await;
    assert_eq!(fresh.verdict.kind(), VerdictKind::Malware);
    assert_eq!((fresh.older, fresh.source), (false, VerdictSource::Scanned));
    let known = ask(&client, &bytes, DAY_S).await;
    assert_eq!(known.verdict.kind(), VerdictKind::Malware);
    assert!(!known.older);

    // What was malware to earlier definitions is never served as such.
    change(&site, &daemon, "rules.yar", &rule("Old", &old));
    let forgiven = ask(&client, &bytes, DAY_S).await;
    assert_eq!(forgiven.verdict.kind(), VerdictKind::Clean);
    assert_eq!(forgiven.source, VerdictSource::Scanned);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_has_the_last_word_on_the_age() {
    let mut site = site_of(&[("rules.yar", &rule("Old", &marker()))]);
    site.settings += "[cache]\nmax_verdict_age_s = 0\n";
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let new = marker();
    let bytes = new.clone().into_bytes();
    ask(&client, &bytes, DAY_S).await;
    change(&site, &daemon, "rules.yar", &rule("New", &new));
    let result = ask(&client, &bytes, DAY_S).await;
    assert_eq!(result.verdict.kind(), VerdictKind::Malware);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lookup_tells_what_is_clean_and_nothing_else() {
    let marker = marker();
    let site = site_of(&[("rules.yar", &rule("Marker", &marker))]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let (clean, unknown, malware) = (unique(100), unique(101), marker.into_bytes());
    ask(&client, &clean, 0).await;
    ask(&client, &malware, 0).await;
    let contents: [&[u8]; 3] = [&clean, &unknown, &malware];
    assert_eq!(
        *look_up(&client, &contents, 0).await.clean,
        [true, false, false]
    );
    let stranger = Client::connect(&daemon, &site.ca.agent("another-tenant")).await;
    let known = look_up(&stranger, &contents, DAY_S).await;
    assert_eq!(*known.clean, [false, false, false]);

    change(
        &site,
        &daemon,
        "more.yar",
        &rule("More", &crate::site::marker()),
    );
    assert_eq!(*look_up(&client, &[&clean], 0).await.clean, [false]);
    // One that is to be re-checked has to be asked for on its own; then it serves.
    assert_eq!(*look_up(&client, &[&clean], DAY_S).await.clean, [false]);
    assert_eq!(*look_up(&client, &[&clean], DAY_S).await.clean, [true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_engine_that_changed_scans_again() {
    let site = site_of(&[
        ("rules.yar", &rule("Old", &marker())),
        ("some.ndb", &ndb("Some", &marker())),
    ]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let bytes = unique(100);
    assert_eq!(
        ask(&client, &bytes, 0).await.verdict.kind(),
        VerdictKind::Clean
    );
    let content = ContentId::of(&bytes).to_string();
    let ran = |skip: usize| -> Vec<String> {
        let lines = daemon.log.lines();
        // New definitions are tried on contents of their own.
        let asked = lines
            .iter()
            .skip(skip)
            .filter(|line| line.contains("an engine is asked") && line.contains(&content));
        asked
            .map(|line| {
                crate::site::field(line, "engine")
                    .trim_matches('"')
                    .to_owned()
            })
            .collect()
    };
    daemon.scans(1);
    assert_eq!(ran(0), ["libclamav", "yara-x"]);

    let clam = crate::site::marker();
    change(&site, &daemon, "some.ndb", &ndb("Other", &clam));
    let skip = daemon.log.lines().len();
    assert_eq!(ask(&client, &bytes, 0).await.source, VerdictSource::Scanned);
    daemon.scans(2);
    assert_eq!(ran(skip), ["libclamav"]);
    // The one that ran finds what it should.
    assert_eq!(
        ask(&client, clam.as_bytes(), 0).await.verdict.kind(),
        VerdictKind::Malware
    );
}

/// Another engine may find what the one before did not, in what it called clean.
#[tokio::test(flavor = "multi_thread")]
async fn a_verdict_of_another_version_of_the_engine_is_an_older_one() {
    let mut site = site_of(&[("rules.yar", &rule("Some", &marker()))]);
    site.plant(&["palisade-engine-clamav", "palisade-engine-yara"]);
    let version = site.dir.path().join("helpers/version");
    let identity = site.ca.agent("default");
    let bytes = unique(100);
    for (said, source) in [
        ("1.0", VerdictSource::Scanned),
        ("1.0", VerdictSource::SharedCache),
        ("1.1", VerdictSource::Scanned),
        ("1.1", VerdictSource::SharedCache),
    ] {
        std::fs::write(&version, said).unwrap();
        let mut daemon = site.start();
        let client = Client::connect(&daemon, &identity).await;
        if (said, source) == ("1.1", VerdictSource::Scanned) {
            assert!(ask(&client, &bytes, DAY_S).await.older);
        }
        assert_eq!(ask(&client, &bytes, 0).await.source, source, "{said}");
        daemon.signal(Signal::SIGTERM);
        assert_eq!(daemon.wait().code(), Some(0));
    }
}
