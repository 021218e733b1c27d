//! Generations: good, bad, missing.

use nix::sys::signal::Signal;
use palisade_protocol::scan::VerdictSource;
use palisade_protocol::verdict::{EngineGeneration, Generations, VerdictKind};

use crate::client::{Client, unique};
use crate::site::{Site, marker, ndb, rule};

fn of_rules(generations: &Generations) -> EngineGeneration {
    let mut of = generations.iter();
    of.find(|one| one.engine.as_str() == "yara-x")
        .unwrap()
        .clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn new_definitions_are_in_force_after_sighup() {
    let (old, new) = (marker(), marker());
    let mut site = Site::new(&[("rules.yar", &rule("Old", &old))]);
    // Whoever asks has it scanned, and nobody before.
    site.settings = "[retroactive]\nrescan = false\n".to_owned();
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let (with_old, with_new) = (old.clone().into_bytes(), new.clone().into_bytes());
    assert_eq!(client.kind(&with_old).await, VerdictKind::Malware);
    assert_eq!(client.kind(&with_new).await, VerdictKind::Clean);
    let before = of_rules(&client.scan(&with_new).await.result().generations);

    site.define("rules.yar", &rule("New", &new));
    let lines = daemon.log.lines().len();
    daemon.signal(Signal::SIGHUP);
    daemon.log.wait_for_after(lines, "definitions are in force");
    let result = client.scan(&with_new).await.result();
    assert_eq!(
        result.verdict.kind(),
        VerdictKind::Malware,
        "a verdict of old definitions"
    );
    assert_eq!(result.source, VerdictSource::Scanned);
    let after = of_rules(&result.generations);
    assert!(after.generation > before.generation && after.fingerprint != before.fingerprint);
    assert_eq!(client.kind(&with_old).await, VerdictKind::Clean);

    // Nothing new is no new generation.
    let lines = daemon.log.lines().len();
    daemon.signal(Signal::SIGHUP);
    daemon.log.wait_for_after(lines, "SIGHUP");
    assert_eq!(client.source(&with_new).await, VerdictSource::SharedCache);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_without_definitions_does_not_run() {
    let marker = marker();
    let site = Site::new(&[("only.ndb", &ndb("Only", &marker))]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let engines: Vec<&str> = client
        .welcome
        .generations
        .iter()
        .map(|engine| engine.engine.as_str())
        .collect();
    assert_eq!(engines, ["libclamav"]);
    assert_eq!(client.kind(marker.as_bytes()).await, VerdictKind::Malware);

    // Until it gets some.
    let ruled = crate::site::marker();
    site.define("more.yar", &rule("More", &ruled));
    let lines = daemon.log.lines().len();
    daemon.signal(Signal::SIGHUP);
    daemon.log.wait_for_after(lines, "definitions are in force");
    assert_eq!(client.kind(ruled.as_bytes()).await, VerdictKind::Malware);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_definitions_are_named_and_the_last_good_ones_stay() {
    let marker = marker();
    for (good, bad) in [("rules.yar", "broken.yar"), ("good.ndb", "broken.ndb")] {
        let text = if good.ends_with("yar") {
            rule("Good", &marker)
        } else {
            ndb("Good", &marker)
        };
        let site = Site::new(&[(good, &text)]);
        let daemon = site.start();
        let broken = if bad.ends_with("yar") {
            "rule fine { condition: true }\nrule broken {\n  condition: nonsense\n}\n".to_owned()
        } else {
            format!("{}this is no signature\n", ndb("Fine", "some other text"))
        };
        site.define(bad, &broken);
        let lines = daemon.log.lines().len();
        daemon.signal(Signal::SIGHUP);
        let said = daemon.log.wait_for_after(lines, "stays in force");
        let file = site.source().join(bad).display().to_string();
        let line = if bad.ends_with("yar") { 3 } else { 2 };
        assert!(said.contains(&format!("{file}:{line}")), "{said}");

        let client = Client::connect(&daemon, &site.ca.agent("default")).await;
        let infected = format!("{marker} {bad}").into_bytes();
        assert_eq!(client.kind(&infected).await, VerdictKind::Malware);
        drop(daemon);
        // Across a restart too.
        let daemon = site.start();
        assert!(daemon.log.has("stays in force"));
        let client = Client::connect(&daemon, &site.ca.agent("default")).await;
        let infected = format!("{marker} {bad} again").into_bytes();
        assert_eq!(client.kind(&infected).await, VerdictKind::Malware);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_gone_leaves_the_last_generation_in_force() {
    let marker = marker();
    let site = Site::new(&[("rules.yar", &rule("Kept", &marker))]);
    drop(site.start());
    std::fs::remove_dir_all(site.source()).unwrap();
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(client.kind(marker.as_bytes()).await, VerdictKind::Malware);
}

#[test]
fn without_any_definitions_it_does_not_start() {
    let site = Site::new(&[("README", "no definitions here")]);
    let (code, said) = site.start_fails();
    assert_eq!(code, 3, "{said}");
    assert!(said.contains(&*site.source().to_string_lossy()), "{said}");
    assert!(said.contains("definitions.source"), "{said}");

    std::fs::remove_dir_all(site.source()).unwrap();
    let (code, said) = site.start_fails();
    assert_eq!(code, 3, "{said}");
    assert!(said.contains(&*site.source().to_string_lossy()), "{said}");

    let site = Site::new(&[("broken.yar", "rule x {")]);
    let (code, said) = site.start_fails();
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("broken.yar:1"), "{said}");
}

#[test]
fn without_identity_it_does_not_start() {
    let site = Site::new(&[("rules.yar", &rule("Some", "some"))]);
    std::fs::remove_dir_all(site.state().join("identity")).unwrap();
    let (code, said) = site.start_fails();
    assert_eq!(code, 3, "{said}");
    assert!(
        said.contains("join_token_file") && said.contains("token create"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn scans_in_flight_survive_a_change_of_definitions() {
    let site = Site::new(&[("rules.yar", &rule("Some", &marker()))]);
    let daemon = site.start();
    let client = std::sync::Arc::new(Client::connect(&daemon, &site.ca.agent("default")).await);
    let scanning = tokio::spawn({
        let client = std::sync::Arc::clone(&client);
        async move {
            for _ in 0..40 {
                assert_eq!(client.kind(&unique(500_000)).await, VerdictKind::Clean);
            }
        }
    });
    for n in 0..3 {
        site.define("rules.yar", &rule(&format!("Some{n}"), &marker()));
        let lines = daemon.log.lines().len();
        daemon.signal(Signal::SIGHUP);
        let log = daemon.log.clone();
        tokio::task::spawn_blocking(move || log.wait_for_after(lines, "definitions are in force"))
            .await
            .unwrap();
    }
    scanning.await.unwrap();
    assert!(!daemon.log.has("a worker was lost"));
    drop(client);
}
