//! What is in the packages, asked of the tools that will install them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use palisade_tests::{command, skip};
use sha2::{Digest as _, Sha256};

use crate::built::{Packages, said, tool};

/// Lines of a listing, each cut to what is promised: type, mode, owner, path.
fn listed(lines: &str, cut: impl Fn(&str) -> String) -> String {
    let mut lines: Vec<String> = lines.lines().map(cut).collect();
    lines.sort();
    lines.join("\n")
}

#[test]
fn the_deb_holds_what_is_promised() {
    let packages = Packages::build();
    let deb = packages.deb.to_str().unwrap();
    let listing = said("dpkg-deb", ["--contents", deb]);
    let listing = listed(&listing, |line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        format!("{} {} {}", words[0], words[1], words[5])
    });
    insta::assert_snapshot!("deb", listing);

    let fields = said("dpkg-deb", ["--field", deb]);
    assert!(fields.contains("\nArchitecture: amd64\n") || !cfg!(target_arch = "x86_64"));
    assert!(!fields.contains("Depends"), "it is static: {fields}");
    let version = said("dpkg-deb", ["--field", deb, "Version"]);
    assert_eq!(version.trim(), env!("CARGO_PKG_VERSION"));

    let control = tempfile::tempdir().unwrap();
    said(
        "dpkg-deb",
        ["--control", deb, control.path().to_str().unwrap()],
    );
    let conffiles = fs::read_to_string(control.path().join("conffiles")).unwrap();
    assert_eq!(conffiles, "/etc/palisade/agent.toml\n");
    for script in ["postinst", "prerm", "postrm"] {
        let script = control.path().join(script);
        said("sh", ["-n", script.to_str().unwrap()]);
    }
}

#[test]
fn the_rpm_holds_the_same_files_and_its_payload_is_whole() {
    let packages = Packages::build();
    let rpm = packages.rpm.to_str().unwrap();
    let query = |format: &str| said("rpm", ["-qp", "--qf", format, rpm]);
    let in_rpm = query("[%{FILEMODES:perms} %{FILEUSERNAME}/%{FILEGROUPNAME} .%{FILENAMES}\n]");
    let in_rpm: BTreeSet<&str> = in_rpm.lines().collect();
    let deb = packages.deb.to_str().unwrap();
    let in_deb = said("dpkg-deb", ["--contents", deb]);
    let in_deb: BTreeSet<String> = in_deb
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            format!(
                "{} {} {}",
                words[0],
                words[1],
                words[5].trim_end_matches('/')
            )
        })
        .collect();
    // A deb lists the folders of the system that files lie in, too.
    let missing: Vec<&String> = in_deb
        .iter()
        .filter(|line| !line.starts_with('d') || line.contains("palisade"))
        .filter(|line| !in_rpm.contains(line.as_str()))
        .collect();
    let more: Vec<&&str> = in_rpm
        .iter()
        .filter(|line| !in_deb.contains(**line))
        .collect();
    assert!(
        missing.is_empty() && more.is_empty(),
        "{missing:?} {more:?}"
    );

    let needs = said("rpm", ["-qp", "--requires", rpm]);
    assert!(
        needs.lines().all(|line| line.starts_with("rpmlib(")
            || line == "/bin/sh"
            || line.starts_with("config(")),
        "it is static: {needs}"
    );
    insta::assert_snapshot!("rpm_scripts", said("rpm", ["-qp", "--scripts", rpm]));
    assert_eq!(
        query("[%{FILEFLAGS:fflags} %{FILENAMES}\n]")
            .lines()
            .filter(|line| line.starts_with("cn "))
            .collect::<Vec<_>>(),
        ["cn /etc/palisade/agent.toml"]
    );

    let whole = |path: &Path| tool("rpm", ["-K", "--nosignature", path.to_str().unwrap()]).code;
    assert_eq!(query("%{PAYLOADDIGEST}").len(), 64);
    assert_eq!(whole(&packages.rpm), Some(0));
    // The control: one byte of the payload is another.
    let changed = packages.files.join("changed.rpm");
    let mut bytes = fs::read(&packages.rpm).unwrap();
    let near_the_end = bytes.len() - 1000;
    bytes[near_the_end] ^= 1;
    fs::write(&changed, bytes).unwrap();
    assert_eq!(whole(&changed), Some(1));
}

#[test]
fn two_builds_of_one_commit_are_the_same() {
    let digests = || {
        let packages = Packages::build();
        [&packages.deb, &packages.rpm].map(|path| Sha256::digest(fs::read(path).unwrap()))
    };
    assert_eq!(digests(), digests());
}

#[test]
fn the_program_asks_nothing_of_the_systems_libraries() {
    let packages = Packages::build();
    let needs = |program: &Path| {
        let headers = said("readelf", ["-l", "-d", program.to_str().unwrap()]);
        headers.contains("INTERP") || headers.contains("(NEEDED)")
    };
    assert!(!needs(&packages.agent()));
    // The control: the program that tests use is a common one.
    assert!(needs(&command::program("palisade-agent").unwrap()));
    let symbols = tool("nm", [packages.agent()]).stderr;
    assert!(symbols.contains("no symbols"), "it is stripped: {symbols}");
}

#[test]
fn the_settings_file_is_fine_and_asks_for_the_join_token() {
    let packages = Packages::build();
    let settings = packages.files.join("etc/palisade/agent.toml");
    let settings = settings.to_str().unwrap();
    let agent = packages.agent();
    let agent = agent.to_str().unwrap();
    said(agent, ["--config", settings, "check-config"]);
    let text = fs::read_to_string(settings).unwrap();
    let in_force: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with(['#', '[']) && !line.is_empty())
        .collect();
    assert_eq!(in_force, ["join_token_file = \"/etc/palisade/join-token\""]);
}

/// Each command's `--help`, by the words that lead to it.
fn helps(agent: &Path) -> Vec<(Vec<String>, String)> {
    let mut found = Vec::new();
    let mut open: Vec<Vec<String>> = vec![Vec::new()];
    while let Some(words) = open.pop() {
        let mut arguments = words.clone();
        arguments.push("--help".to_owned());
        let help = said(agent.to_str().unwrap(), &arguments);
        let commands = help
            .split_once("\nCommands:\n")
            .map(|(_, after)| after.split("\n\n").next().unwrap_or_default());
        for line in commands.unwrap_or_default().lines() {
            let name = line.split_whitespace().next().unwrap_or_default();
            // Deeper lines go on with a text.
            if line.starts_with("  ") && !line.starts_with("   ") && name != "help" {
                open.push([&words[..], &[name.to_owned()]].concat());
            }
        }
        found.push((words, help));
    }
    assert!(found.len() > 12, "all commands are found: {}", found.len());
    found
}

/// Options of a help, long ones.
fn options(help: &str) -> BTreeSet<String> {
    help.lines()
        .filter(|line| line.trim_start().starts_with('-'))
        .flat_map(str::split_whitespace)
        .filter(|word| word.starts_with("--"))
        .map(|word| word.trim_end_matches([',', '.']).to_owned())
        .collect()
}

#[test]
fn every_command_has_a_page_with_every_option() {
    let packages = Packages::build();
    let folder = packages.files.join("usr/share/man");
    let mut pages = 0;
    for (words, help) in helps(&packages.agent()) {
        let name = [&["palisade-agent".to_owned()], &words[..]]
            .concat()
            .join("-");
        let page = folder.join(format!("man8/{name}.8.gz"));
        let shown = show(&page);
        let options = options(&help);
        assert!(options.contains("--help"), "{name}: {help}");
        for option in options {
            assert!(shown.contains(&option), "{name}(8) lacks {option}: {shown}");
        }
        pages += 1;
    }
    let there = fs::read_dir(folder.join("man8")).unwrap().count();
    assert_eq!(there, pages, "a page is of no command");

    let settings = show(&folder.join("man5/palisade-agent.toml.5.gz"));
    let text = fs::read_to_string(packages.files.join("etc/palisade/agent.toml")).unwrap();
    let keys = text.lines().filter_map(|line| {
        let (key, _) = line.trim_start_matches('#').split_once(" = ")?;
        key.chars()
            .all(|c| c.is_ascii_lowercase() || c == '_')
            .then_some(key)
    });
    for key in keys {
        assert!(settings.contains(key), "palisade-agent.toml(5) lacks {key}");
    }
}

/// A page as it is read, once nothing is wrong with it.
fn show(page: &Path) -> String {
    let page = page.to_str().unwrap();
    let script = format!(
        "set -o pipefail; zcat {page} | LC_ALL=C.UTF-8 groff -man -Tutf8 -ww -P-cbou -rLL=200n"
    );
    let shown = tool("bash", ["-c", &script]).expect(&[0]).unwrap();
    assert_eq!(shown.stderr, "", "{page}");
    let lint = format!("zcat {page} | mandoc -T lint -W warning");
    let lint = tool("bash", ["-c", &lint]);
    // Spacing alone, of what is made of the command line.
    let said = String::from_utf8(lint.stdout).unwrap();
    let wrong: Vec<&str> = said
        .lines()
        .filter(|line| !line.contains("skipping paragraph macro"))
        .collect();
    assert!(wrong.is_empty(), "{page}: {wrong:#?}");
    // A hyphen that is typed is what a reader copies.
    String::from_utf8(shown.stdout)
        .unwrap()
        .replace(['\u{2010}', '\u{2212}'], "-")
}

#[test]
fn shells_offer_the_commands() {
    let packages = Packages::build();
    let share = packages.files.join("usr/share");
    let bash = share.join("bash-completion/completions/palisade-agent");
    let bash = bash.to_str().unwrap();
    said("bash", ["-n", bash]);
    let offered = |words: &str, last: usize| {
        let script = format!(
            "source {bash}; COMP_WORDS=({words}); COMP_CWORD={last}; COMP_LINE='{words}'; \
             _palisade__agent palisade-agent '' ''; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        said("bash", ["-c", &script])
    };
    let commands = offered("palisade-agent ''", 1);
    let all = helps(&packages.agent());
    for (words, _) in all.iter().filter(|(words, _)| words.len() == 1) {
        assert!(
            commands.lines().any(|line| line == words[0]),
            "{words:?}: {commands}"
        );
    }
    let below = offered("palisade-agent task ''", 2);
    assert!(below.lines().any(|line| line == "start"), "{below}");
    assert!(!commands.lines().any(|line| line == "start"), "{commands}");

    for (shell, file) in [
        ("zsh", "zsh/vendor-completions/_palisade-agent"),
        ("fish", "fish/vendor_completions.d/palisade-agent.fish"),
    ] {
        let file = share.join(file);
        let text = fs::read_to_string(&file).unwrap();
        for (words, _) in all.iter().filter(|(words, _)| words.len() == 1) {
            assert!(text.contains(&words[0]), "{shell}: {words:?}");
        }
        let checked = command::run(
            Path::new(shell),
            ["-n", file.to_str().unwrap()],
            Duration::from_secs(20),
        );
        match checked {
            Ok(checked) => drop(checked.expect(&[0]).unwrap()),
            Err(_) => skip::skip("shells_offer_the_commands", &format!("no {shell} is here")),
        }
    }
}
