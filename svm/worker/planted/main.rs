//! An engine that does what it is told by the content that it scans: the tests'
//! stand-in for an engine that crashes, hangs, or has been taken over.
//!
//! Content is a command: `clean`, `find NAME`, `crash`, `hang …`, `spin`, `exit N`,
//! `sleep MILLISECONDS …`, `members N SIZE`, `error`, `limit`, `pid`, `fds`,
//! `grow BYTES`, `lie KIND REQUEST`, `escape ATTEMPT TARGET…`. `--load fail|exit|hang|threads` and `--canary miss|late`
//! misbehave earlier; `--says-version V` names another version; `--early "ATTEMPT TARGET…"` makes an attempt in the warm-up,
//! when all of the sandbox but seccomp is there.
//!
//! `attempts` lists what `escape` knows; `attempt NAME TARGET…` makes one attempt
//! right here, outside any sandbox: the negative control.

#![deny(unsafe_code)]

mod attempts;
mod lies;

use attempts::{ATTEMPTS, Target, attempt};
use palisade_worker::args::{Args, ArgsError};
use palisade_worker::content::SealedContent;
use palisade_worker::message::{DefinitionProblem, NotScanned, Outcome, ScanOptions};
use palisade_worker::zygote::{self, Engine, Group, LoadReport, MemberSink, check_canary, problem};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

struct Planted {
    canary: String,
    early: String,
    scans: u32,
}

impl Engine for Planted {
    fn enter_worker(&mut self, scratch: &Path) -> Result<(), String> {
        std::fs::write(scratch.join("here"), "").map_err(|error| error.to_string())?;
        match self.early.split(' ').collect::<Vec<_>>().as_slice() {
            [""] => Ok(()),
            [name, target @ ..] => Err(attempt(name, &Target::from_words(target))),
            [] => Ok(()),
        }
    }

    fn canary(&mut self) -> Result<(), String> {
        match (self.canary.as_str(), self.scans) {
            ("miss", _) => check_canary(self, b"clean", "Planted.Canary"),
            // Fine at first, missed once the engine has worked.
            ("late", 1..) => check_canary(self, b"clean", "Planted.Canary"),
            _ => check_canary(self, b"find Planted.Canary", "Planted.Canary"),
        }
    }

    fn scan(
        &mut self,
        content: &SealedContent,
        options: &ScanOptions,
        members: &mut MemberSink<'_>,
    ) -> Outcome {
        let Ok(bytes) = content.to_vec() else {
            return Outcome::engine_error("unreadable");
        };
        let command = String::from_utf8_lossy(&bytes).into_owned();
        let words: Vec<&str> = command.split(' ').collect();
        let outcome = match words.as_slice() {
            ["find", name] => Outcome::found([(*name).into()], false),
            ["pid", ..] => Outcome::found([std::process::id().to_string().as_str().into()], false),
            ["fds"] => Outcome::found([open_descriptors().as_str().into()], false),
            ["escape", name, target @ ..] => {
                let said = attempt(name, &Target::from_words(target));
                Outcome::found([said.as_str().into()], false)
            }
            ["lie", kind, request] => {
                lies::lie(kind, request.parse().unwrap_or(0));
                Outcome::Clean
            }
            ["grow", bytes] => {
                let grown = vec![1_u8; bytes.parse().unwrap_or(0)];
                Outcome::found([grown.len().to_string().as_str().into()], false)
            }
            ["crash"] => std::process::abort(),
            ["exit", code] => std::process::exit(code.parse().unwrap_or(1)),
            ["hang", ..] => loop {
                std::thread::sleep(Duration::from_secs(1));
            },
            ["sleep", millis, ..] => {
                std::thread::sleep(Duration::from_millis(millis.parse().unwrap_or(0)));
                Outcome::Clean
            }
            ["spin"] => loop {
                std::hint::spin_loop();
            },
            ["error"] => Outcome::engine_error("as told"),
            ["limit"] => Outcome::NotScanned {
                reason: NotScanned::Limit {
                    which: "AsTold".into(),
                },
            },
            ["members", count, size] if members.wanted() == options.members => {
                let content = vec![b'm'; size.parse().unwrap_or(0)];
                for n in 0..count.parse().unwrap_or(0) {
                    members.member(format!("member-{n}").as_str().into(), &content);
                }
                Outcome::Clean
            }
            _ => Outcome::Clean,
        };
        self.scans += 1;
        outcome
    }
}

/// The numbers of this process's descriptors.
fn open_descriptors() -> String {
    attempts::open_descriptors()
        .map(|number| number.to_string())
        .collect::<Vec<_>>()
        .join(",")
}

fn load(
    how: &str,
    canary: &str,
    early: &str,
    version: &str,
) -> Result<LoadReport<Planted>, Vec<DefinitionProblem>> {
    match how {
        "fail" => {
            let rules = Path::new("/planted/rules.yar");
            return Err(vec![problem(rules, Some(7), "told to fail\u{7}")]);
        }
        "exit" => std::process::exit(9),
        "hang" => std::thread::sleep(Duration::from_secs(3600)),
        "threads" => {
            std::thread::spawn(|| std::thread::sleep(Duration::from_secs(3600)));
        }
        _ => {}
    }
    Ok(LoadReport {
        engine: Planted {
            canary: canary.to_owned(),
            early: early.to_owned(),
            scans: 0,
        },
        version: version.to_owned(),
        signatures: 1,
        warnings: Vec::new(),
    })
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["attempts"] => {
            for (name, outside, _) in ATTEMPTS {
                println!("{name} {outside:?}");
            }
            return ExitCode::SUCCESS;
        }
        ["attempt", name, target @ ..] => {
            println!("{}", attempt(name, &Target::from_words(target)));
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let parsed = Args::parse(
        std::env::args_os().skip(1),
        &["--load", "--canary", "--early", "--says-version"],
    )
    .and_then(|args| Ok((args.settings()?, args)));
    let (mut settings, args): (zygote::Settings, Args) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => return usage(&error),
    };
    let text = |option| {
        args.get(option)
            .and_then(|value| value.to_str())
            .unwrap_or("")
    };
    settings.confinement.groups = &[Group::Files];
    zygote::run("planted", &settings, || {
        load(
            text("--load"),
            text("--canary"),
            text("--early"),
            text("--says-version"),
        )
    })
}

fn usage(error: &ArgsError) -> ExitCode {
    eprintln!("palisade-planted-engine: {error}");
    ExitCode::from(2)
}
