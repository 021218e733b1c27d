//! `palisade-agent generalize`: takes away what makes an agent this guest's, so that the
//! guest can be a template, and each of its clones joins the site by itself.
//!
//! Owns which of the files are the agent's own. What else lies in the state folder stays,
//! and is named: somebody may have pointed it at a folder of others. Settings and the join
//! token stay, too, because the clones are to use them. Refuses while an agent runs, which
//! would go on as who it was, and write it down again.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use palisade_daemon::cli::{Format, Output, exit};
use serde::Serialize;

use crate::settings::{Folders, Settings};
use crate::state_file;

/// What the agent keeps in its state folder. The identity is first: whatever stops the
/// rest, a clone is not who this was.
const OWN: &[(&str, &str)] = &[
    ("identity", "key and certificates"),
    ("site.json", "the site it belongs to, and its name"),
    ("quarantine.key", "the key of the quarantine"),
    ("quarantine", "files in quarantine"),
    ("spool", "detections that were not reported yet"),
    ("svm-list.json", "the last list of Protection Servers"),
    ("policy.json", "the site's policy for this guest"),
    ("policy-good.json", "the policy before"),
    ("tasks", "scans in the background, and when they ran"),
    ("supervisor.json", "the record of crashes"),
    ("bypass.json", "the emergency switch"),
    ("verdicts.redb", "verdicts over contents"),
    ("deferred.jsonl", "files that wait to be scanned"),
    ("exposure.json", "times without verdicts"),
    ("held.1", "files that scans called clean"),
    ("held.2", "files that earlier scans called clean"),
    ("maintenance.token", "leave to stop the agent"),
    ("rpm.sums", "what rpm's packages have"),
    (state_file::LOCK, "says that an agent runs"),
];
/// Ends the name of a file that was being written.
const BEING_WRITTEN: &str = "new";

/// The command's options.
#[derive(Debug, Args)]
pub struct Generalize {
    /// Remove it; without this nothing is removed, and the list is shown
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    format: Format,
}

/// Something that is removed, or was.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Where.
    pub path: PathBuf,
    /// What it is.
    pub what: &'static str,
}

/// What is removed, and what is not.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Whether it was done.
    pub done: bool,
    /// The agent's own, in the order of their removal.
    pub removed: Vec<Item>,
    /// What lies there and is not the agent's.
    pub kept: Vec<PathBuf>,
    /// Files in quarantine, which are lost.
    pub quarantined: usize,
    /// What clones would have in common.
    pub warnings: Vec<String>,
}

/// Runs the command; gives the exit code.
///
/// # Errors
/// That an agent runs, or what could not be removed.
pub fn run(settings: &Settings, folders: &Folders, command: &Generalize) -> anyhow::Result<u8> {
    // It would go on as who it is. Held to the end: none is started meanwhile.
    let _claimed = match folders.state.is_dir() {
        true => Some(state_file::claim(&folders.state)?),
        false => None,
    };
    let mut plan = plan(folders).with_context(|| {
        let state = folders.state.display();
        format!("the state folder {state} cannot be read (are you root?)")
    })?;
    if let Some(name) = &settings.name {
        plan.warnings.push(format!(
            "the settings name every clone {name:?}: remove `name` for the host name"
        ));
    }
    if command.yes {
        for item in &plan.removed {
            remove(&item.path).with_context(|| {
                let path = item.path.display();
                format!("{path} cannot be removed, nor what comes after it")
            })?;
        }
        sync(&folders.state)?;
        plan.done = true;
    }
    match command.format.output {
        Output::Json => println!("{}", serde_json::to_string(&plan)?),
        Output::Text => print!("{}", plan.for_people()),
    }
    Ok(if plan.done { exit::FINE } else { exit::USAGE })
}

/// Looks at what is there.
///
/// # Errors
/// The file system's.
pub fn plan(folders: &Folders) -> io::Result<Plan> {
    let mut plan = Plan::default();
    let present = names(&folders.state)?;
    for (name, what) in OWN {
        let own = present
            .iter()
            .filter(|present| is_or_becomes(present, name));
        plan.removed.extend(own.map(|name| Item {
            path: folders.state.join(name),
            what,
        }));
    }
    let known = |path: &Path| plan.removed.iter().any(|item| item.path == path);
    let others = present.iter().map(|name| folders.state.join(name));
    plan.kept = others.filter(|path| !known(path)).collect();
    for name in names(&folders.run)? {
        if Path::new(&name).extension() == Some(OsStr::new("sock")) {
            plan.removed.push(Item {
                path: folders.run.join(name),
                what: "a socket",
            });
        }
    }
    plan.quarantined = names(&folders.state.join("quarantine/items"))?
        .iter()
        .filter(|name| Path::new(name).extension() == Some(OsStr::new("record")))
        .count();
    Ok(plan)
}

/// Whether a file is the agent's file of that name, or was to become it.
fn is_or_becomes(present: &OsStr, name: &str) -> bool {
    present == name || present == Path::new(name).with_extension(BEING_WRITTEN)
}

/// The names in a folder, sorted; none where there is no folder.
fn names(folder: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = entries
        .map(|entry| Ok(entry?.file_name()))
        .collect::<io::Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Removes a file, or a folder with all that is in it; a link is no way out of it.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(there) if there.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// Makes the removals outlive the machine being switched off, as templates are.
fn sync(state: &Path) -> anyhow::Result<()> {
    match fs::File::open(state) {
        Ok(folder) => folder.sync_all(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
    .with_context(|| format!("what was removed of {} is not on disk", state.display()))
}

impl Plan {
    fn for_people(&self) -> String {
        use std::fmt::Write as _;
        let mut text = String::new();
        let verb = if self.done { "removed" } else { "would remove" };
        for Item { path, what } in &self.removed {
            let _ = writeln!(text, "{verb} {}: {what}", path.display());
        }
        for path in &self.kept {
            let _ = writeln!(text, "kept {}: it is not the agent's", path.display());
        }
        if self.quarantined > 0 {
            let lost = if self.done {
                "are lost"
            } else {
                "would be lost"
            };
            let _ = writeln!(text, "{} files in quarantine {lost}", self.quarantined);
        }
        for warning in &self.warnings {
            let _ = writeln!(text, "note: {warning}");
        }
        text.push_str(match (self.done, self.removed.is_empty()) {
            (true, true) => "there was nothing to remove: this guest can be a template\n",
            (true, false) => "this guest can be a template now\n",
            (false, _) => "nothing was removed: give --yes to remove it\n",
        });
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn folders(of: &Path) -> Folders {
        Folders {
            state: of.join("state"),
            run: of.join("run"),
        }
    }

    #[test]
    fn the_identity_goes_first_and_what_is_of_others_stays() {
        let dir = tempfile::tempdir().unwrap();
        let folders = folders(dir.path());
        fs::create_dir_all(folders.state.join("quarantine/items")).unwrap();
        fs::create_dir_all(folders.state.join("identity")).unwrap();
        for name in ["site.json", "site.new", "svm-list.json", "mine.txt"] {
            fs::write(folders.state.join(name), "x").unwrap();
        }
        fs::write(folders.state.join("quarantine/items/a.record"), "x").unwrap();
        let plan = plan(&folders).unwrap();
        assert!(plan.removed[0].path.ends_with("identity"), "{plan:?}");
        assert_eq!(plan.removed.len(), 5);
        assert_eq!(plan.kept, [folders.state.join("mine.txt")]);
        assert_eq!(plan.quarantined, 1);
        assert!(plan.for_people().contains("--yes"));
    }

    #[test]
    fn a_link_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let folders = folders(dir.path());
        fs::create_dir_all(&folders.state).unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "x").unwrap();
        symlink(&outside, folders.state.join("quarantine")).unwrap();
        for item in plan(&folders).unwrap().removed {
            remove(&item.path).unwrap();
        }
        assert!(outside.join("file").exists());
        assert!(!folders.state.join("quarantine").is_symlink());
    }

    #[test]
    fn nothing_there_is_nothing_to_do() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(plan(&folders(dir.path())).unwrap(), Plan::default());
    }
}
