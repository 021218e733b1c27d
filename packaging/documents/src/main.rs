//! `palisade-documents DIR DATE`: the man pages and shell completions of `palisade-agent`, made
//! from its command line and its settings file, so that they say what the program does.
//!
//! ```text
//! DIR/man8/palisade-agent.8, palisade-agent-scan.8, …   one for each command
//! DIR/man5/palisade-agent.toml.5                         from agent.toml
//! DIR/palisade-agent.bash, _palisade-agent, palisade-agent.fish
//! ```
//!
//! Used by `scripts/package`; a crate of its own, so that the program does not hold it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, italic, roman};
use palisade_light_agent::cli::Cli;
use palisade_light_agent::settings::COMPONENT;

/// The program's name.
const PROGRAM: &str = "palisade-agent";
/// The settings file, whose comments explain each setting.
const SETTINGS: &str = include_str!("../../../light-agent/agent.toml");

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(out), Some(date)) = (arguments.next(), arguments.next()) else {
        bail!("usage: palisade-documents DIR DATE");
    };
    let out = PathBuf::from(out);
    for folder in ["man5", "man8"] {
        let folder = out.join(folder);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    let mut program = Cli::command().disable_help_subcommand(true);
    // Gives every command the options that are common to all.
    program.build();
    pages(&program, PROGRAM, &date, &out)?;
    write(
        &out.join("man5/palisade-agent.toml.5"),
        &settings_page(&date),
    )?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), PROGRAM, &out)
            .with_context(|| format!("the completions for {shell}"))?;
    }
    Ok(())
}

fn write(path: &Path, text: &[u8]) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| path.display().to_string())
}

/// A page for a command, and for each below it.
fn pages(command: &Command, name: &str, date: &str, out: &Path) -> anyhow::Result<()> {
    let version = palisade_light_agent::VERSION;
    let man = Man::new(command.clone().display_name(name.to_owned()))
        .title(name)
        .section("8")
        .date(date)
        .source(format!("palisade-agent {version}"))
        .manual("Palisade");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.get_subcommands().any(|below| !below.is_hide_set()) {
        man.render_subcommands_section(&mut text)?;
    }
    text.extend(closing(name).to_roff().into_bytes());
    write(&out.join("man8").join(format!("{name}.8")), &text)?;
    for below in command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
    {
        pages(below, &format!("{name}-{}", below.get_name()), date, out)?;
    }
    Ok(())
}

/// What is the same for every command.
fn closing(name: &str) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in [
        ("0", "Fine; for a scan: all clean."),
        ("1", "Malware was found, or a check failed."),
        ("2", "Wrong usage."),
        ("3", "It could not be done."),
        ("4", "Nothing was found, but something was not scanned."),
    ] {
        roff.control("TP", [])
            .text([bold(code)])
            .text([roman(meaning)]);
    }
    roff.control("SH", ["FILES"]);
    for (path, what) in [
        ("/etc/palisade/agent.toml", "The settings."),
        (
            "/etc/palisade/agent.conf.d/*.toml",
            "More of them, by name; later ones win.",
        ),
        (
            "/var/lib/palisade/agent",
            "Identity, quarantine, and what else outlives a restart.",
        ),
        ("/run/palisade/agent", "The running agent's sockets."),
    ] {
        roff.control("TP", [])
            .text([italic(path)])
            .text([roman(what)]);
    }
    roff.control("SH", ["SEE ALSO"]);
    let mut pages = vec![bold("palisade-agent.toml"), roman("(5)")];
    if name != PROGRAM {
        pages.extend([roman(", "), bold(PROGRAM), roman("(8)")]);
    }
    roff.text(pages);
    roff
}

/// `palisade-agent.toml(5)`: the settings file, its comments as text.
fn settings_page(date: &str) -> Vec<u8> {
    let mut roff = Roff::new();
    let source = format!("palisade-agent {}", palisade_light_agent::VERSION);
    roff.control(
        "TH",
        [
            "palisade-agent.toml",
            "5",
            date,
            source.as_str(),
            "Palisade",
        ],
    );
    roff.control("SH", ["NAME"]);
    roff.text([roman("palisade-agent.toml - settings of palisade-agent")]);
    roff.control("SH", ["DESCRIPTION"]);
    roff.text([
        roman("The file "),
        italic(format!("/etc/palisade/{COMPONENT}.toml")),
        roman(
            " is TOML. After it the files in /etc/palisade/agent.conf.d are read by name, and then \
             the variables PALISADE_AGENT__SECTION__KEY; the last one counts. An unknown key is \
             an error that names it.",
        ),
    ]);
    let mut lines = SETTINGS.lines().peekable();
    while let Some(line) = lines.next() {
        let (prose, commented) = match line.strip_prefix('#') {
            Some(text) if text.is_empty() || text.starts_with(' ') => (Some(text.trim()), ""),
            Some(text) => (None, text),
            None => (None, line),
        };
        match prose {
            Some(text) => {
                roff.text([roman(text)]);
            }
            // A section's head parts paragraphs itself.
            None if commented.is_empty() => {
                if lines.peek().is_some_and(|next| !next.contains("[")) {
                    roff.control("PP", []);
                }
            }
            None if commented.starts_with('[') => {
                roff.control("SS", [commented]);
            }
            None => {
                roff.control("RS", ["4"]).control("nf", []);
                roff.text([bold(commented)]);
                // Settings that one comment explains stand together.
                while let Some(next) = lines.next_if(|next| is_setting(next)) {
                    roff.text([bold(next.trim_start_matches('#'))]);
                }
                roff.control("fi", []).control("RE", []);
            }
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold(PROGRAM), roman("(8)")]);
    roff.to_roff().into_bytes()
}

/// Whether a line of the settings file is a setting, in force or not.
fn is_setting(line: &str) -> bool {
    let text = line.strip_prefix('#').unwrap_or(line);
    text.chars()
        .next()
        .is_some_and(|first| first.is_ascii_lowercase())
}
