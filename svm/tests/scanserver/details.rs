//! What a result says besides its verdict, and what decides it besides definitions:
//! parts, engines' times, settings, the request's options.

use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;
use palisade_protocol::scan::{ScanOptions, ScanResult, VerdictSource};
use palisade_protocol::verdict::{NotScanned, Verdict, VerdictKind};

use crate::client::{Client, unique};
use crate::site::{Daemon, Site, marker, ndb, rule};

/// The archive that a program makes of files (name, content); none, with the reason
/// printed, where there is no such program.
fn packed(program: &str, arguments: &[&str], files: &[(&str, &[u8])]) -> Option<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let mut command = Command::new(program);
    command.args(arguments).arg("archive").current_dir(&dir);
    command.args(files.iter().map(|(name, _)| name));
    match command.output() {
        Ok(output) => assert!(output.status.success(), "{output:?}"),
        Err(error) => {
            println!("skipped: archives: {program} cannot be run: {error}");
            return None;
        }
    }
    let made = |name: &str| std::fs::read(Path::new(dir.path()).join(name)).ok();
    Some(made("archive").or_else(|| made("archive.zip")).unwrap())
}

fn zip(files: &[(&str, &[u8])]) -> Option<Vec<u8>> {
    packed("zip", &["-q"], files)
}

fn member(result: &ScanResult) -> Option<&str> {
    result.details.member.as_deref()
}

fn runs(result: &ScanResult) -> Vec<(&str, VerdictKind)> {
    let runs = result.engines.iter();
    runs.map(|run| (run.engine.as_str(), run.outcome)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_finding_says_where_by_whom_and_how_long_it_took() {
    let (by_clamav, by_yara) = (marker(), marker());
    let told = rule("Told", &by_yara).replace(
        "  strings:",
        "  meta:\n    author = \"somebody\"\n    description = \"a marker\"\n  strings:",
    );
    let site = Site::new(&[("m.ndb", &ndb("Known", &by_clamav)), ("m.yar", &told)]);
    let mut daemon = site.start();
    let identity = site.ca.agent("default");
    let text = |marker: &str| format!("{marker} ").repeat(30).into_bytes();
    let filling = b"nothing to see here, as so often before ".repeat(20);
    let mut samples = Vec::new();
    for (marker, engine) in [(&by_clamav, "libclamav"), (&by_yara, "yara-x")] {
        let inner = text(marker);
        let Some(tar) = packed("tar", &["cf"], &[("a.txt", &filling), ("c.exe", &inner)]) else {
            return;
        };
        let Some(zipped) = zip(&[("first.txt", &filling), ("b.tar", &tar)]) else {
            return;
        };
        samples.push((zipped, engine));
    }
    {
        let client = Client::connect(&daemon, &identity).await;
        for (bytes, engine) in &samples {
            let result = client.scan(bytes).await.result();
            assert_eq!(member(&result), Some("b.tar/c.exe"), "{result:?}");
            assert_eq!(result.details.engine.as_deref(), Some(*engine));
            assert_eq!(result.source, VerdictSource::Scanned);
            let other = match *engine {
                "libclamav" => ("libclamav", VerdictKind::Malware),
                _ => ("libclamav", VerdictKind::Clean),
            };
            assert!(runs(&result).contains(&other), "{result:?}");
            assert!(
                result.engines.iter().all(|run| run.micros > 0),
                "{result:?}"
            );
            if *engine == "yara-x" {
                let said: Vec<_> = result.details.metadata.iter().collect();
                assert_eq!(said[0].key.as_str(), "description");
                assert_eq!(said[1].value.as_str(), "somebody");
                assert!(runs(&result).contains(&("yara-x", VerdictKind::Malware)));
            }
        }
        // Plain: no part. Clean: nobody alone decided, and everybody was asked.
        let plain = client.scan(&text(&by_yara)).await.result();
        assert_eq!(member(&plain), None);
        let clean = client.scan(&unique(5000)).await.result();
        assert_eq!((clean.details.engine.clone(), member(&clean)), (None, None));
        assert_eq!(
            runs(&clean),
            [
                ("libclamav", VerdictKind::Clean),
                ("yara-x", VerdictKind::Clean)
            ]
        );
    }
    // What is known says the same, across a restart too; but nobody worked for it.
    for _ in 0..2 {
        let client = Client::connect(&daemon, &identity).await;
        for (bytes, engine) in &samples {
            let known = client.scan(bytes).await.result();
            assert_eq!(known.source, VerdictSource::SharedCache);
            assert_eq!(member(&known), Some("b.tar/c.exe"));
            assert_eq!(known.details.engine.as_deref(), Some(*engine));
            assert_eq!(known.details.metadata.is_empty(), *engine == "libclamav");
            assert!(known.engines.is_empty());
        }
        stop(daemon);
        daemon = site.start();
    }
}

/// Ends it as it should be ended: what it knows is on disk then.
fn stop(mut daemon: Daemon) {
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.wait().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_see_the_names_of_parts() {
    let text = "rule Named { condition: filename == \"c.exe\" and extension == \".exe\" }\n";
    let site = Site::new(&[("named.yar", text)]);
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let filling = b"nothing to see here, as so often before ".repeat(20);
    let Some(bytes) = zip(&[("a.txt", &filling), ("c.exe", &filling)]) else {
        return;
    };
    let result = client.scan(&bytes).await.result();
    assert_eq!(result.verdict.kind(), VerdictKind::Malware);
    assert_eq!(member(&result), Some("c.exe"));
    // The same bytes without a name.
    assert_eq!(client.kind(&filling).await, VerdictKind::Clean);
}

fn limit(result: &ScanResult) -> &str {
    match &result.verdict {
        Verdict::NotScanned(NotScanned::LimitHit { limit }) => limit.as_str(),
        other => panic!("no limit but {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_set_named_and_part_of_what_is_known() {
    let filling = b"filling ".repeat(100);
    let names: Vec<String> = (0..20).map(|n| format!("{n}.txt")).collect();
    let files: Vec<(&str, &[u8])> = names
        .iter()
        .map(|name| (name.as_str(), filling.as_slice()))
        .collect();
    let Some(bytes) = zip(&files) else {
        return;
    };
    let mut site = Site::new(&[("x.ndb", &ndb("X", &marker()))]);
    site.settings = "[engines.clamav]\nmax_files = 10\n".to_owned();
    let identity = site.ca.agent("default");
    {
        let daemon = site.start();
        let client = Client::connect(&daemon, &identity).await;
        let result = client.scan(&bytes).await.result();
        assert_eq!(limit(&result), "MaxFiles");
        assert_eq!(result.details.engine.as_deref(), Some("libclamav"));
        assert_eq!(client.source(&bytes).await, VerdictSource::SharedCache);
        stop(daemon);
    }
    site.settings = "[engines.clamav]\nmax_files = 100\n".to_owned();
    {
        let daemon = site.start();
        let client = Client::connect(&daemon, &identity).await;
        let result = client.scan(&bytes).await.result();
        assert_eq!(
            result.source,
            VerdictSource::Scanned,
            "known by other limits"
        );
        assert_eq!(result.verdict, Verdict::Clean);
        stop(daemon);
    }
    // The same limits are the same again.
    let daemon = site.start();
    let client = Client::connect(&daemon, &identity).await;
    assert_eq!(client.source(&bytes).await, VerdictSource::SharedCache);
}

#[test]
fn a_limit_that_cannot_be_names_its_key() {
    let mut site = Site::new(&[("x.ndb", &ndb("X", &marker()))]);
    for (text, key) in [
        ("max_recursion = 1", "engines.clamav.max_recursion"),
        ("alert_exceeds_max = false", "alert_exceeds_max"),
        ("include_pua = ['a.b']", "include-pua"),
    ] {
        site.settings = format!("[engines.clamav]\n{text}\n");
        let (code, said) = site.start_fails();
        assert_eq!(code, 3, "{said}");
        assert!(said.contains(key), "{said}");
    }
}

/// Every key there is, so that none is one that the engine does not know.
#[test]
fn every_setting_of_libclamav_is_one_that_it_takes() {
    let mut site = Site::new(&[("x.ndb", &ndb("X", &marker()))]);
    let source = include_str!("../../src/settings/engines.rs");
    let keys = source.lines().filter_map(|line| {
        let (key, kind) = line.trim().strip_prefix("pub ")?.split_once(": ")?;
        let value = match kind {
            "Option<bool>," => "true",
            "Option<u32>," => "20",
            "Option<ByteSize>," => "'64 MiB'",
            "Vec<String>," if key == "include_pua" => "['NetTool']",
            _ => return None,
        };
        Some(format!("{key} = {value}\n"))
    });
    let text: String = keys.collect();
    assert!(text.lines().count() > 45, "{text}");
    site.settings = format!("[engines.clamav]\n{text}");
    drop(site.start());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requests_options_act_in_the_engines() {
    let (bad, unwanted, weak) = (marker(), marker(), marker());
    let suspected = rule("Weak", &weak).replace("rule Weak {", "rule Weak : suspicious {");
    let mut site = Site::new(&[
        ("bad.ndb", &ndb("Bad", &bad)),
        ("unwanted.ndu", &ndb("PUA.Tool.Test", &unwanted)),
        ("weak.yar", &suspected),
    ]);
    site.settings = "[engines.clamav]\ndetect_pua = true\n".to_owned();
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let usual = ScanOptions::default();
    let pua = ScanOptions { pua: true, ..usual };
    let bare = ScanOptions {
        heuristics: false,
        ..usual
    };
    let (tool, weak) = (unwanted.as_bytes(), weak.as_bytes());
    let both = format!("{unwanted} {bad}").into_bytes();
    for (bytes, options, kind) in [
        (tool, usual, VerdictKind::Clean),
        (tool, pua, VerdictKind::Suspicious),
        (&both, usual, VerdictKind::Malware),
        (weak, usual, VerdictKind::Suspicious),
        (weak, bare, VerdictKind::Clean),
        // Unwanted applications are no heuristics.
        (
            tool,
            ScanOptions { pua: true, ..bare },
            VerdictKind::Suspicious,
        ),
    ] {
        let result = client.scan_with(bytes, options).await.result();
        assert_eq!(result.verdict.kind(), kind, "{options:?}: {result:?}");
    }
    let filling = b"a secret ".repeat(50);
    let Some(secret) = packed("zip", &["-q", "-P", "password"], &[("s.txt", &filling)]) else {
        return;
    };
    for options in [usual, bare] {
        let result = client.scan_with(&secret, options).await.result();
        assert_eq!(
            result.verdict,
            Verdict::NotScanned(NotScanned::Encrypted),
            "{options:?}"
        );
    }
}

/// What one engine never unpacked, the other never saw: a clean verdict from then says
/// nothing about it, although that other one is as it was.
#[tokio::test(flavor = "multi_thread")]
async fn members_that_were_not_unpacked_before_are_scanned_by_all() {
    let known = marker();
    let mut site = Site::new(&[("rules.yar", &rule("Known", &known))]);
    let text = known.repeat(20);
    let Some(packed) = packed("tar", &["czf"], &[("a.txt", text.as_bytes())]) else {
        return;
    };
    let identity = site.ca.agent("default");
    site.settings = "[engines.clamav]\nscan_archive = false\n".to_owned();
    let mut daemon = site.start();
    let client = Client::connect(&daemon, &identity).await;
    assert_eq!(client.kind(&packed).await, VerdictKind::Clean);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.wait().code(), Some(0));

    site.settings.clear();
    let daemon = site.start();
    let client = Client::connect(&daemon, &identity).await;
    let result = client.scan(&packed).await.result();
    assert_eq!(result.verdict.kind(), VerdictKind::Malware, "{result:?}");
    assert_eq!(result.details.engine.as_deref(), Some("yara-x"));
}
