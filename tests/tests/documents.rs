//! The documents are true: what they link to, name or show is there.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use palisade_tests::command;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

fn documents() -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![repository()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && name != "node_modules" && !name.starts_with('.')
            {
                folders.push(path);
            } else if name.ends_with(".md") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path, text));
            }
        }
    }
    assert!(
        found.len() >= 6,
        "README, ARCHITECTURE, SECURITY, CONTRIBUTING, SOAK, BENCHMARKS are expected"
    );
    found
}

/// Texts in backquotes, code blocks left out.
fn quoted(text: &str) -> Vec<String> {
    let outside: String = text
        .split("```")
        .enumerate()
        .filter(|(index, _)| index % 2 == 0)
        .map(|(_, part)| part)
        .collect::<Vec<_>>()
        .join("\n");
    outside
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    for (path, text) in documents() {
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            let target = link.split('#').next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            assert!(
                path.parent().unwrap().join(target).exists(),
                "{}: {link}",
                path.display()
            );
        }
    }
}

#[test]
fn every_path_that_is_named_exists() {
    let roots = [
        "protocol/",
        "svm/",
        "light-agent/",
        "integration-server/",
        "tests/",
        "scripts/",
        "bench/",
        "packaging/",
    ];
    for (path, text) in documents() {
        for name in quoted(&text) {
            let first = name.split_whitespace().next().unwrap_or_default();
            if roots.iter().any(|root| first.starts_with(root)) && !first.contains(['*', '{', '<'])
            {
                assert!(
                    repository().join(first).exists(),
                    "{}: {first}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn every_module_of_the_programs_is_on_the_map() {
    let map = fs::read_to_string(repository().join("ARCHITECTURE.md")).unwrap();
    for crate_folder in [
        "protocol",
        "svm",
        "light-agent",
        "integration-server",
        "bench",
    ] {
        for entry in fs::read_dir(repository().join(crate_folder).join("src")).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if ["lib.rs", "main.rs", "bin"].contains(&name.as_str()) {
                continue;
            }
            let place = format!("{crate_folder}/src/{name}");
            assert!(map.contains(&place), "{place} is not in ARCHITECTURE.md");
        }
    }
}

/// Each option and subcommand that a document shows is one that the program knows.
#[test]
fn every_command_that_is_shown_is_known() {
    let programs = [
        "palisade",
        "palisade-agent",
        "palisade-server",
        "palisade-scanserver",
    ];
    for (path, text) in documents() {
        for shown in quoted(&text) {
            let mut words = shown.split_whitespace();
            let Some(program) = words.next().filter(|word| programs.contains(word)) else {
                continue;
            };
            let verbs: Vec<&str> = words
                .take_while(|word| {
                    word.chars().all(|c| c.is_ascii_lowercase() || c == '-')
                        && !word.starts_with('-')
                })
                .collect();
            if verbs.is_empty() {
                continue;
            }
            let mut arguments = verbs.clone();
            arguments.push("--help");
            let help = command::run(
                &command::program(program).unwrap(),
                &arguments,
                Duration::from_secs(20),
            )
            .unwrap();
            assert_eq!(
                help.code,
                Some(0),
                "{}: `{shown}`: {}",
                path.display(),
                help.stderr
            );
            let help = String::from_utf8_lossy(&help.stdout).into_owned();
            for option in shown
                .split_whitespace()
                .filter(|word| word.starts_with("--"))
            {
                let option = option.split('=').next().unwrap();
                assert!(
                    help.contains(option),
                    "{}: `{shown}`: no {option}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn every_script_option_that_is_shown_is_known() {
    for (path, text) in documents() {
        for shown in quoted(&text)
            .iter()
            .filter(|shown| shown.starts_with("scripts/"))
        {
            let mut words = shown.split_whitespace();
            let script = fs::read_to_string(repository().join(words.next().unwrap())).unwrap();
            for word in words.filter(|word| word.starts_with("--")) {
                assert!(
                    script.contains(word),
                    "{}: `{shown}`: no {word}",
                    path.display()
                );
            }
        }
    }
}

#[test]
fn help_fits_on_one_screen() {
    for program in [
        "palisade",
        "palisade-agent",
        "palisade-server",
        "palisade-scanserver",
        "palisade-site",
        "palisade-bench",
    ] {
        let help = command::run(
            &command::program(program).unwrap(),
            ["--help"],
            Duration::from_secs(20),
        );
        let help = String::from_utf8(help.unwrap().expect(&[0]).unwrap().stdout).unwrap();
        let lines = help.lines().count();
        assert!(lines <= 40, "{program} --help has {lines} lines");
    }
}

#[test]
fn nothing_of_a_developers_machine_is_in_the_tree() {
    let tracked = command::run(
        Path::new("git"),
        ["-C", repository().to_str().unwrap(), "ls-files"],
        Duration::from_secs(20),
    );
    let tracked = String::from_utf8(tracked.unwrap().stdout).unwrap();
    let own = Path::new(file!()).file_name().unwrap().to_str().unwrap();
    for name in tracked
        .lines()
        .filter(|name| !name.ends_with(".lock") && !name.ends_with(own))
    {
        let Ok(text) = fs::read_to_string(repository().join(name)) else {
            continue;
        };
        assert!(
            !text.contains("/root/"),
            "{name} names a developer's folder"
        );
    }
}
