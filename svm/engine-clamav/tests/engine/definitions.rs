//! Definitions that cannot be used, and what is said of them.

use crate::site::{MARKER_NAME, PROGRAM, Site, found, marker, run_in, scan_bytes, scan_with};
use palisade_worker::client::{
    DefinitionProblem, EngineProcess, NotScanned, Outcome, ScanOptions, StartError, WorkerHandle,
};

fn problems(site: &Site) -> Vec<DefinitionProblem> {
    match site.start_with(&[]) {
        Err(StartError::Definitions(problems)) => problems,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_malformed_signature_names_file_and_line() {
    let (_, good) = marker();
    let cases: [(&str, String, u32); 4] = [
        ("bad.ndb", format!("{good}Broken.Test:0:*:zz-not-hex\n"), 2),
        (
            "bad.hdb",
            format!("{}:5:Fine\nnot a hash:5:Broken\n", "0".repeat(32)),
            2,
        ),
        ("bad.hsb", format!("{}:5:Fine\n\n", "0".repeat(64)), 2),
        (
            "bad.ldb",
            "Broken;Engine:51-255,Target:0;(0&1);zz;41424344\n".to_owned(),
            1,
        ),
    ];
    for (name, text, line) in cases {
        let site = Site::new(&[("good.ndb", &good), (name, &text)]);
        let problems = problems(&site);
        assert_eq!(problems.len(), 1, "{name}: {problems:?}");
        assert!(problems[0].file.as_str().ends_with(name), "{}", problems[0]);
        assert_eq!(problems[0].line, Some(line), "{}", problems[0]);
    }
}

#[test]
fn every_bad_file_is_named() {
    let (_, good) = marker();
    let site = Site::new(&[
        ("a.ndb", "Broken.Test:0:*:zz\n"),
        ("b.ndb", &good),
        ("c.hdb", "broken\n"),
        ("d.cvd", "ClamAV-VDB:not really"),
    ]);
    let problems = problems(&site);
    let files: Vec<_> = problems
        .iter()
        .map(|p| p.file.as_str().rsplit('/').next())
        .collect();
    assert_eq!(
        files,
        [Some("a.ndb"), Some("c.hdb"), Some("d.cvd")],
        "{problems:?}"
    );
}

#[test]
fn nothing_to_load_is_an_error() {
    let site = Site::new(&[("README.txt", "not a database"), ("rules.yar", "rule x {}")]);
    let said = problems(&site)[0].to_string();
    assert!(
        said.contains("definitions: holds no ClamAV database"),
        "{said}"
    );

    let site = Site::new(&[("empty.ndb", "# only a comment\n")]);
    let said = problems(&site)[0].to_string();
    assert!(said.contains("hold no signature"), "{said}");

    std::fs::remove_dir_all(site.definitions()).unwrap();
    let said = problems(&site)[0].to_string();
    assert!(
        said.contains("definitions: cannot be read: No such file"),
        "{said}"
    );
}

#[test]
fn every_kind_loads_and_ignored_signatures_are_ignored() {
    let (marker, line) = marker();
    let hex: String = marker.bytes().map(|byte| format!("{byte:02x}")).collect();
    let logical = format!("Logical.Test;Engine:51-255,Target:0;0;{hex}\n");
    let site = Site::new(&[("a.ldb", &logical), ("notes.md", "not read")]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    assert_eq!(
        scan_bytes(&mut worker, marker.as_bytes()),
        found("Logical.Test.UNOFFICIAL")
    );

    let site = Site::new(&[
        ("a.ldb", &logical),
        ("b.ndb", &line),
        ("local.ign2", "Logical.Test\n"),
    ]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    assert_eq!(
        scan_bytes(&mut worker, marker.as_bytes()),
        found(MARKER_NAME)
    );
}

#[test]
fn unwanted_applications_are_looked_for_on_request_only() {
    let (marker, line) = marker();
    let (unwanted, hex_line) = crate::site::marker();
    let unwanted_line = hex_line.replace("Marker.Test", "PUA.Test.Thing");
    let site = Site::new(&[("marker.ndb", &line), ("unwanted.ndu", &unwanted_line)]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    let asked = ScanOptions {
        pua: true,
        ..ScanOptions::default()
    };
    let scan = |worker: &mut WorkerHandle, bytes: &[u8], options: &ScanOptions| {
        scan_with(worker, bytes, options.clone()).0.outcome
    };
    let not_asked = ScanOptions::default();
    // Not loaded, it is not found, whoever asks.
    assert_eq!(
        scan(&mut worker, unwanted.as_bytes(), &asked),
        Outcome::Clean
    );

    let (engine, _) = site.start_with(&["detect-pua=yes"]).unwrap();
    let mut worker = engine.spawn_worker().unwrap();
    let name = "PUA.Test.Thing.UNOFFICIAL".into();
    assert_eq!(
        scan(&mut worker, unwanted.as_bytes(), &asked),
        Outcome::found([name], true)
    );
    assert_eq!(
        scan(&mut worker, unwanted.as_bytes(), &not_asked),
        Outcome::Clean
    );
    // Malware beside it is found, whichever comes first.
    for both in [
        format!("{unwanted} {marker}"),
        format!("{marker} {unwanted}"),
    ] {
        assert_eq!(
            scan(&mut worker, both.as_bytes(), &not_asked),
            found(MARKER_NAME)
        );
    }
    // Nobody asked for it, and it does not hide what could not be looked at.
    site.put("unwanted.txt", unwanted.as_bytes());
    site.put("secret.txt", "a secret ".repeat(50).as_bytes());
    let (files, zip) = (site.files(), "e.zip");
    if run_in(&files, "zip", &["-q", zip, "unwanted.txt"])
        && run_in(&files, "zip", &["-q", "-P", "password", zip, "secret.txt"])
    {
        let bytes = std::fs::read(files.join(zip)).unwrap();
        let encrypted = Outcome::NotScanned {
            reason: NotScanned::Encrypted,
        };
        for _ in 0..8 {
            assert_eq!(scan(&mut worker, &bytes, &not_asked), encrypted);
        }
    }
}

#[test]
fn categories_of_unwanted_applications_are_chosen_by_name() {
    let (_, line) = marker();
    let (tool, tool_line) = marker();
    let (packed, packed_line) = marker();
    let named = |line: &str, name: &str| line.replace("Marker.Test", name);
    let lines = named(&tool_line, "PUA.NetTool.One") + &named(&packed_line, "PUA.Packed.Two");
    let site = Site::new(&[("marker.ndb", &line), ("unwanted.ndu", &lines)]);
    let options = ScanOptions {
        pua: true,
        ..ScanOptions::default()
    };
    for (setting, finds_tool) in [
        ("include-pua=NetTool", true),
        ("exclude-pua=NetTool", false),
    ] {
        let (engine, _) = site.start_with(&[setting]).unwrap();
        let mut worker = engine.spawn_worker().unwrap();
        for (bytes, finds) in [(&tool, finds_tool), (&packed, !finds_tool)] {
            let outcome = scan_with(&mut worker, bytes.as_bytes(), options.clone())
                .0
                .outcome;
            assert_eq!(outcome != Outcome::Clean, finds, "{setting}: {outcome:?}");
        }
    }
}

#[test]
fn heuristics_are_suspicions() {
    // An executable with a broken header, and the alert for it switched on.
    let (_, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    let (engine, _) = site.start_with(&["alert-broken=yes"]).unwrap();
    let mut worker = engine.spawn_worker().unwrap();
    let mut bytes = vec![0; 4096];
    bytes[..2].copy_from_slice(b"MZ");
    bytes[0x3c] = 0x80;
    bytes[0x80..0x84].copy_from_slice(b"PE\0\0");
    bytes[0x84..0x86].copy_from_slice(&[0x4c, 0x01]);
    bytes[0x86] = 200;
    let outcome = scan_bytes(&mut worker, &bytes);
    assert_eq!(
        outcome,
        Outcome::found(["Heuristics.Broken.Executable".into()], true)
    );
    let options = ScanOptions {
        heuristics: false,
        ..ScanOptions::default()
    };
    let outcome = scan_with(&mut worker, &bytes, options).0.outcome;
    assert_eq!(outcome, Outcome::Clean);
}

#[test]
fn a_wrong_command_line_names_the_option() {
    let said = |args: &[&str]| {
        let output = std::process::Command::new(PROGRAM)
            .args(args)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(said(&[]).contains("--definitions is required"));
    assert!(said(&["--definitions", "/d"]).contains("--scratch is required"));
    assert!(
        said(&[
            "--definitions",
            "/d",
            "--scratch",
            "/s",
            "--set",
            "nonsense=1"
        ])
        .contains("nonsense is not a setting")
    );
    let site = Site::new(&[]);
    let command = site.command().arg("--no-such-option");
    assert!(matches!(
        EngineProcess::start(&command),
        Err(StartError::Ended { .. })
    ));
}
