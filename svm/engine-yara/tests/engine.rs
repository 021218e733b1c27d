//! The engine program as the daemon sees it: started through the client, with real
//! rules.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic here is a failed test"
)]

use palisade_worker::client::{
    DefinitionProblem, EngineCommand, EngineProcess, NotScanned, Outcome, ScanOptions,
    SealedContent, StartError, WorkerError, WorkerExit, WorkerHandle,
};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(120);
const PROGRAM: &str = env!("CARGO_BIN_EXE_palisade-engine-yara");

struct Site(TempDir);

impl Site {
    fn new(rules: &[(&str, &str)]) -> Self {
        let site = Self(TempDir::new().unwrap());
        for directory in ["rules", "scratch"] {
            std::fs::create_dir(site.0.path().join(directory)).unwrap();
        }
        for (name, text) in rules {
            std::fs::write(site.rules().join(name), text).unwrap();
        }
        site
    }

    fn rules(&self) -> PathBuf {
        self.0.path().join("rules")
    }

    fn command(&self) -> EngineCommand {
        EngineCommand::new(PROGRAM)
            .arg("--rules")
            .arg(self.rules())
            .arg("--scratch")
            .arg(self.0.path().join("scratch"))
    }

    fn start(&self) -> EngineProcess {
        EngineProcess::start(&self.command()).unwrap().0
    }

    fn problems(&self) -> Vec<DefinitionProblem> {
        match EngineProcess::start(&self.command()) {
            Err(StartError::Definitions(problems)) => problems,
            other => panic!("{other:?}"),
        }
    }
}

fn scan(worker: &mut WorkerHandle, bytes: &[u8]) -> Outcome {
    let content = SealedContent::from_bytes(bytes).unwrap();
    worker
        .scan(&content, ScanOptions::default(), LONG, &mut drop)
        .unwrap()
        .outcome
}

fn scan_with(worker: &mut WorkerHandle, bytes: &[u8], options: &ScanOptions) -> Outcome {
    let content = SealedContent::from_bytes(bytes).unwrap();
    let done = worker.scan(&content, options.clone(), LONG, &mut drop);
    match done.unwrap().outcome {
        Outcome::Found {
            names, suspicious, ..
        } => Outcome::found(names, suspicious),
        other => other,
    }
}

fn found(names: &[&str], suspicious: bool) -> Outcome {
    Outcome::found(names.iter().map(|name| (*name).into()), suspicious)
}

fn marker() -> String {
    palisade_worker::zygote::random_hex(24).unwrap()
}

fn rule(name: &str, head: &str, marker: &str) -> String {
    format!("rule {name} {head} strings: $m = \"{marker}\" condition: $m }}\n")
}

#[test]
fn a_marker_is_found_in_small_and_large_content() {
    let marker = marker();
    let site = Site::new(&[("marker.yar", &rule("Marker_Test", "{", &marker))]);
    let (engine, loaded) = EngineProcess::start(&site.command()).unwrap();
    assert_eq!((loaded.engine.as_str(), loaded.signatures), ("yara", 1));
    let mut worker = engine.spawn_worker().unwrap();
    assert_eq!(
        scan(&mut worker, format!("x {marker}").as_bytes()),
        found(&["Marker_Test"], false)
    );
    assert_eq!(scan(&mut worker, b"nothing"), Outcome::Clean);
    assert_eq!(scan(&mut worker, b""), Outcome::Clean);
    // Read into a buffer, read by yara-x, mapped by yara-x.
    for size in [1 << 20, 3 << 20, 40 << 20] {
        let mut bytes = vec![b'.'; size];
        assert_eq!(scan(&mut worker, &bytes), Outcome::Clean, "{size}");
        bytes[size - marker.len()..].copy_from_slice(marker.as_bytes());
        assert_eq!(
            scan(&mut worker, &bytes),
            found(&["Marker_Test"], false),
            "{size}"
        );
    }
}

#[test]
fn rules_say_how_sure_they_are() {
    let (a, b, c) = (marker(), marker(), marker());
    let text = [
        rule("Malware", "{", &a),
        rule("By_Tag", ": suspicious {", &b),
        rule("By_Metadata", "{ meta: severity = \"suspicious\"", &c),
    ]
    .concat();
    let site = Site::new(&[("rules.yara", &text)]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    assert_eq!(scan(&mut worker, a.as_bytes()), found(&["Malware"], false));
    assert_eq!(scan(&mut worker, b.as_bytes()), found(&["By_Tag"], true));
    let both = format!("{b}{c}");
    assert_eq!(
        scan(&mut worker, both.as_bytes()),
        found(&["By_Tag", "By_Metadata"], true)
    );
    // The one that is sure comes first, and decides.
    let all = format!("{b}{c}{a}");
    let names = ["Malware", "By_Tag", "By_Metadata"];
    assert_eq!(scan(&mut worker, all.as_bytes()), found(&names, false));
    // Who does not ask for suspicions is told of none, and of malware all the same.
    let options = ScanOptions {
        heuristics: false,
        ..ScanOptions::default()
    };
    assert_eq!(
        scan_with(&mut worker, both.as_bytes(), &options),
        Outcome::Clean
    );
    assert_eq!(
        scan_with(&mut worker, all.as_bytes(), &options),
        found(&names, false)
    );
}

#[test]
fn a_low_score_or_severity_is_a_suspicion() {
    let cases = [
        ("score = 59", true),
        ("score = 60", false),
        ("score = \"40\"", true),
        ("score = \"high\"", false),
        ("Severity = \"Low\"", true),
        ("severity = \"informational\"", true),
        ("severity = \"critical\"", false),
        ("severity = 1", false),
    ];
    let markers: Vec<String> = cases.iter().map(|_| marker()).collect();
    let text: String = cases
        .iter()
        .zip(&markers)
        .enumerate()
        .map(|(n, ((meta, _), marker))| rule(&format!("R{n}"), &format!("{{ meta: {meta}"), marker))
        .collect();
    let site = Site::new(&[("rules.yar", &text)]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    for ((meta, suspicious), marker) in cases.iter().zip(&markers) {
        match scan(&mut worker, marker.as_bytes()) {
            Outcome::Found {
                suspicious: said, ..
            } => assert_eq!(said, *suspicious, "{meta}"),
            other => panic!("{meta}: {other:?}"),
        }
    }
}

#[test]
fn a_finding_carries_what_the_rule_says_of_itself() {
    let marker = marker();
    let head = format!(
        "{{ meta: Author = \"somebody\" hash = \"not shown\" description = \"{}\" score = 80 \
         author = \"another\" reference = \"https://example.org/\\x1b[2J\"",
        "long ".repeat(100)
    );
    let site = Site::new(&[("rules.yar", &rule("Told", &head, &marker))]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    let Outcome::Found { metadata, .. } = scan(&mut worker, marker.as_bytes()) else {
        panic!("not found")
    };
    let said: Vec<(&str, &str)> = metadata
        .iter()
        .map(|one| (one.key.as_str(), one.value.as_str()))
        .collect();
    let long = "long ".repeat(100);
    assert_eq!(
        said,
        [
            ("description", &long[..256]),
            ("author", "somebody"),
            ("reference", "https://example.org/\u{fffd}[2J"),
            ("score", "80"),
        ]
    );
}

#[test]
fn rules_see_the_names_of_parts_and_of_nothing_else() {
    let text = "rule By_Name { condition: filename == \"c.EXE\" and extension == \".EXE\" and \
                filepath == \"a.zip/b\" and owner == \"\" and filetype == \"\" }\n\
                rule Nameless { condition: filename == \"\" and filepath == \"\" and \
                extension == \"\" }\n\
                rule Hidden { condition: filename == \".profile\" and extension == \"\" }\n";
    let site = Site::new(&[("rules.yar", text)]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    let mut named = |name: &str| {
        let options = ScanOptions {
            name: name.into(),
            ..ScanOptions::default()
        };
        scan_with(&mut worker, b"content", &options)
    };
    // A name is forgotten with its content.
    for _ in 0..2 {
        assert_eq!(named("a.zip/b/c.EXE"), found(&["By_Name"], false));
        assert_eq!(named(""), found(&["Nameless"], false));
        assert_eq!(named(".profile"), found(&["Hidden"], false));
    }
}

#[test]
fn private_rules_are_not_findings_and_modules_and_globals_are_there() {
    let marker = marker();
    let text = format!(
        "import \"pe\"\nimport \"elf\"\nimport \"math\"\nimport \"hash\"\nimport \"dotnet\"\n\
         import \"macho\"\nimport \"string\"\nimport \"time\"\nimport \"lnk\"\nimport \"dex\"\n\
         private rule Hidden {{ strings: $m = \"{marker}\" condition: $m }}\n\
         rule Shown {{ condition: Hidden and filename == \"\" and filepath == \"\" and \
         extension == \"\" and filetype == \"\" and owner == \"\" and not pe.is_pe }}\n\
         rule Relaxed {{ strings: $r = /a{{}}b\\R{{/ condition: $r }}\n\
         rule Elf {{ condition: elf.type == elf.ET_DYN or elf.type == elf.ET_EXEC }}\n"
    );
    let site = Site::new(&[("rules.yar", &text)]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    assert_eq!(
        scan(&mut worker, marker.as_bytes()),
        found(&["Shown"], false)
    );
    let own = std::fs::read(PROGRAM).unwrap();
    assert_eq!(scan(&mut worker, &own), found(&["Elf"], false));
}

#[test]
fn one_name_in_two_files_is_two_rules() {
    let (a, b) = (marker(), marker());
    let site = Site::new(&[
        ("a.yar", &rule("Same", "{", &a)),
        ("b.yar", &rule("Same", "{", &b)),
        // Nor does a file's stem have to be its own.
        ("b.yara", &rule("Same", "{", &a)),
    ]);
    let (engine, loaded) = EngineProcess::start(&site.command()).unwrap();
    assert_eq!(loaded.signatures, 3);
    let mut worker = engine.spawn_worker().unwrap();
    assert_eq!(scan(&mut worker, b.as_bytes()), found(&["Same"], false));
}

#[test]
fn a_malformed_rule_names_file_and_line() {
    let good = rule("Good", "{", &marker());
    let site = Site::new(&[
        ("good.yar", &good),
        (
            "syntax.yar",
            "rule One { condition: true }\n\nrule Two {\n  condition: and\n}\n",
        ),
        (
            "unknown.yar",
            "rule Three {\n  condition:\n    no_such_thing\n}\n",
        ),
        (
            "module.yar",
            "import \"nonsense\"\nrule Four { condition: true }\n",
        ),
        ("include.yar", "include \"/etc/passwd\"\n"),
    ]);
    std::fs::write(
        site.rules().join("utf8.yar"),
        b"rule A { condition: true }\n// \xff\n",
    )
    .unwrap();
    let problems = site.problems();
    let said: Vec<(Option<&str>, Option<u32>)> = problems
        .iter()
        .map(|problem| (problem.file.as_str().rsplit('/').next(), problem.line))
        .collect();
    let expected = [
        (Some("include.yar"), Some(1)),
        (Some("module.yar"), Some(1)),
        (Some("syntax.yar"), Some(4)),
        (Some("unknown.yar"), Some(3)),
        (Some("utf8.yar"), Some(2)),
    ];
    assert_eq!(said, expected, "{problems:?}");
}

#[test]
fn nothing_to_load_is_an_error() {
    let site = Site::new(&[("README.txt", "no rule")]);
    let said = site.problems()[0].to_string();
    assert!(
        said.contains("rules: holds no .yar or .yara file"),
        "{said}"
    );

    let site = Site::new(&[("empty.yar", "// no rule\n")]);
    let said = site.problems()[0].to_string();
    assert!(said.contains("hold no rule"), "{said}");

    std::fs::remove_dir_all(site.rules()).unwrap();
    let said = site.problems()[0].to_string();
    assert!(
        said.contains("rules: cannot be read: No such file"),
        "{said}"
    );
}

/// A loop that takes hours on a content that begins with "!" (no canary does); the timeout has to work in every worker, not only in
/// the first one.
#[test]
fn the_engines_own_timeout_works_in_every_worker() {
    let slow = "rule Slow { condition: uint8(0) == 0x21 and for all i in (0..1000000000) : \
                ( for all j in (0..1000000000) : ( uint8(i % 3) + j >= 0 ) ) }\n";
    let site = Site::new(&[("slow.yar", slow)]);
    let engine = site.start();
    let options = ScanOptions {
        timeout_ms: 10,
        ..ScanOptions::default()
    };
    let content = SealedContent::from_bytes(b"!bc").unwrap();
    for _ in 0..2 {
        let mut worker = engine.spawn_worker().unwrap();
        for _ in 0..2 {
            let done = worker
                .scan(&content, options.clone(), LONG, &mut drop)
                .unwrap();
            assert_eq!(
                done.outcome,
                Outcome::NotScanned {
                    reason: NotScanned::TimedOut
                }
            );
        }
        assert_eq!(scan(&mut worker, b"quick"), Outcome::Clean);
    }
}

#[test]
fn a_worker_that_dies_is_replaced() {
    let marker = marker();
    let site = Site::new(&[("marker.yar", &rule("Marker_Test", "{", &marker))]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    let killed = Command::new("kill")
        .arg("-KILL")
        .arg(worker.pid().to_string())
        .status();
    assert!(killed.unwrap().success());
    let content = SealedContent::from_bytes(b"abc").unwrap();
    let error = worker
        .scan(&content, ScanOptions::default(), LONG, &mut drop)
        .unwrap_err();
    assert!(
        matches!(
            error,
            WorkerError::Died {
                exit: Some(WorkerExit::Signal(9))
            }
        ),
        "{error:?}"
    );
    let mut worker = engine.spawn_worker().unwrap();
    assert_eq!(
        scan(&mut worker, marker.as_bytes()),
        found(&["Marker_Test"], false)
    );
}

#[test]
fn what_can_still_change_is_refused() {
    let marker = marker();
    let site = Site::new(&[("marker.yar", &rule("Marker_Test", "{", &marker))]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    let file = std::fs::File::open(site.rules().join("marker.yar")).unwrap();
    let size = file.metadata().unwrap().len();
    let done = worker.scan_unverified(file.into(), size, LONG).unwrap();
    assert_eq!(
        done.outcome,
        Outcome::engine_error("the content is not sealed")
    );
}

#[test]
fn a_wrong_command_line_names_the_option() {
    let output = Command::new(PROGRAM)
        .args(["--rules", "/r"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--scratch is required"));
}
