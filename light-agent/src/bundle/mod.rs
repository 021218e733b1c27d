//! `palisade-agent support-bundle`: all that helps to find a fault, in one file, without
//! secrets and without contents of the guest's files.
//!
//! | module | owns |
//! | --- | --- |
//! | [`settings`] | what of the settings may leave: known keys, and no text beside them |
//! | [`machine`] | versions, kernel, mounts, the service's log |
//! | [`scrub`] | that no secret is in any of it, whatever went wrong before |
//! | [`archive`] | the file, and its bounds |
//!
//! Two defences, either of which must do: what is put in is chosen piece by piece, never
//! a file as it is; and every text goes through [`scrub`], which knows this guest's own
//! secrets and the shapes of others'. The names of files that were let through, and of
//! the quarantine, stay out, of the log, too; protected paths and mounts are in it.

pub mod archive;
pub mod machine;
pub mod scrub;
pub mod settings;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use palisade_daemon::cli::exit;

use self::archive::Archive;
use self::scrub::Scrub;
use crate::doctor::{self, InForce};
use crate::spool::now_ms;
use crate::status;

/// How long gathering may take; what is not there by then is left out, and said.
const WITHIN: Duration = Duration::from_secs(40);

/// The command: writes the file, and says where it is.
///
/// # Errors
/// When the file cannot be written.
pub fn run(in_force: &InForce, file: &Path, out: Option<PathBuf>) -> anyhow::Result<u8> {
    let out = out.unwrap_or_else(|| {
        let seconds = now_ms() / 1000;
        PathBuf::from(format!("palisade-agent-{seconds}.tar.gz"))
    });
    let began = Instant::now();
    let scrub = Scrub::of(&in_force.settings, &in_force.folders);
    let mut archive = Archive::default();
    let mut left_out = Vec::new();
    for (name, text) in pieces(in_force, file) {
        if began.elapsed() > WITHIN {
            left_out.push(name);
            continue;
        }
        archive.add(name, &scrub.text(&text()));
    }
    let mut about = format!(
        "palisade-agent {} support bundle, made {} ms after 1970 in {} ms\n{}",
        crate::VERSION,
        now_ms(),
        began.elapsed().as_millis(),
        ABOUT
    );
    for name in left_out {
        about.push_str(&format!("left out, for it took too long: {name}\n"));
    }
    archive.add("README", &about);
    let bytes = archive.write(&out).map_err(|error| {
        anyhow::anyhow!(
            "{} cannot be written: {error}; name another place with --out",
            out.display()
        )
    })?;
    println!(
        "{} ({bytes} bytes): look into it before you hand it on",
        out.display()
    );
    Ok(exit::FINE)
}

/// What is in it, for whoever opens it.
const ABOUT: &str = "\
Settings are their known keys alone, without comments; secrets are removed everywhere.
No contents of files are in it. Paths of mounts and protected folders are.
";

/// A piece: its name, and how its text is made.
type Piece<'a> = (&'static str, Box<dyn Fn() -> String + 'a>);

fn pieces<'a>(in_force: &'a InForce, file: &'a Path) -> Vec<Piece<'a>> {
    let state = &in_force.folders.state;
    vec![
        ("doctor.json", Box::new(|| doctor_json(in_force))),
        ("status.json", Box::new(|| status_json(in_force))),
        ("settings.toml", Box::new(|| settings::shown(file))),
        ("machine.txt", Box::new(machine::kernel)),
        ("mounts.txt", Box::new(machine::mounts)),
        ("state.txt", Box::new(|| machine::listing(state))),
        (
            "log.txt",
            Box::new(|| scrub::without_names(&machine::log())),
        ),
    ]
}

/// A message about settings may quote them: that there is one is enough here.
fn doctor_json(in_force: &InForce) -> String {
    let in_force = InForce {
        problem: in_force.problem.as_deref().map(settings::place_of),
        ..in_force.clone()
    };
    match doctor::report(&in_force) {
        Ok(report) => serde_json::to_string_pretty(&report).unwrap_or_default(),
        Err(error) => format!("{error}"),
    }
}

fn status_json(in_force: &InForce) -> String {
    match status::ask(&in_force.folders.run) {
        Ok(status) => serde_json::to_string_pretty(&status).unwrap_or_default(),
        Err(error) => format!("no agent answers: {error}"),
    }
}
