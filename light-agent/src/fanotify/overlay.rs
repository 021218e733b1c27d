//! Whether marks of an overlay's layers see what is opened through the overlay: tried on
//! the running kernel, not assumed.
//!
//! Where they do, an overlay must never be marked beside its layers: the reader would
//! wait for itself. Where they do not (Linux 6.1), overlays are marked themselves. A process of its
//! own tries it in mounts of its own, before any other group exists, and ends. A service
//! that may have no mounts of its own finds the answer in its run folder: systemd has it
//! tried before it starts the service, and without the service's bounds.
//!
//! Owns the trial and its answer, and which folders are an overlay's layers.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::fcntl::AT_FDCWD;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};

use palisade_protocol::identity::write_atomic;

use super::mountinfo::unescaped;
use crate::settings::Folders;
use crate::state_file::believed;
use crate::supervise::record::boot;

/// The hidden subcommand that tries it.
pub const COMMAND: &str = "probe-overlay";

/// Its answer, in the run folder: with the boot that it is of.
pub const ANSWER: &str = "overlay";
/// Of an answer, in bytes.
const MAX_ANSWER_BYTES: u64 = 128;
/// How long the trial may take.
const WITHIN: Duration = Duration::from_secs(5);
/// Layers of one overlay that are looked at; the kernel allows 500.
const MOST_LAYERS: usize = 512;

/// Whether marks of the layers see opens through an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Seen {
    /// They do.
    Yes,
    /// They do not.
    No,
    /// It could not be tried, perhaps because this kernel has no overlays.
    #[default]
    Unknown,
}

impl Seen {
    fn said(text: &str) -> Option<Self> {
        match text {
            "seen" => Some(Self::Yes),
            "unseen" => Some(Self::No),
            _ => None,
        }
    }
}

/// The answer of this boot that was left in the run folder; without one it is tried below
/// the state folder, by another process. Call before a fanotify group exists.
pub fn ask(folders: &Folders) -> Seen {
    left(&folders.run.join(ANSWER), &boot())
        .or_else(|| Seen::said(&tried(&folders.state)?))
        .unwrap_or_default()
}

fn left(file: &Path, boot: &str) -> Option<Seen> {
    let mut text = String::new();
    let (file, _) = believed(file).ok()?;
    file.take(MAX_ANSWER_BYTES).read_to_string(&mut text).ok()?;
    let (answer, of) = text.trim_end().split_once(' ')?;
    Seen::said(answer).filter(|_| of == boot)
}

/// Has it tried, and leaves the answer in a run folder.
///
/// # Errors
/// That it could not be tried, or the system's.
pub fn leave(run: &Path) -> Result<()> {
    let answer = tried(run).context("it could not be tried")?;
    let text = format!("{answer} {}\n", boot());
    Ok(write_atomic(&run.join(ANSWER), text.as_bytes(), 0o644)?)
}

fn tried(folder: &Path) -> Option<String> {
    let mut child = Command::new(std::env::current_exe().ok()?)
        .arg(COMMAND)
        .arg(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let until = Instant::now() + WITHIN;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    // Ended already, usually.
    let _ = child.kill();
    let _ = child.wait();
    let mut said = String::new();
    let mut out = child.stdout.take()?.take(MAX_ANSWER_BYTES);
    out.read_to_string(&mut said).ok()?;
    let said = said.trim();
    Seen::said(said).is_some().then(|| said.to_owned())
}

/// The trial itself, in this process: an overlay over a folder, in mounts of its own.
///
/// # Errors
/// What the system does not allow.
pub fn serve(folder: &Path) -> Result<()> {
    let none: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS).context("mounts of its own")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).context("private mounts")?;
    mount(
        Some("tmpfs"),
        folder,
        Some("tmpfs"),
        MsFlags::empty(),
        Some("size=64k"),
    )
    .context("a tmpfs")?;
    // From here on by short names: whatever the folder's name is, it is in no option.
    std::env::set_current_dir(folder)?;
    for layer in ["lower", "upper", "work", "merged"] {
        fs::create_dir(layer)?;
    }
    fs::write("lower/file", "x")?;
    let layers = Some("lowerdir=lower,upperdir=upper,workdir=work");
    let (flags, kind) = (MsFlags::empty(), Some("overlay"));
    mount(kind, "merged", kind, flags, layers).context("an overlay")?;
    let flags = InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_NONBLOCK | InitFlags::FAN_CLOEXEC;
    let group = Fanotify::init(flags, EventFFlags::O_RDONLY)?;
    group.mark(
        MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM,
        MaskFlags::FAN_OPEN,
        AT_FDCWD,
        Some("lower"),
    )?;
    File::open("merged/file")?;
    let seen = group.read_events().is_ok_and(|events| !events.is_empty());
    println!("{}", if seen { "seen" } else { "unseen" });
    Ok(())
}

/// The folders that an overlay's options name as its layers, as whoever mounted it knew
/// them. None, if any of them cannot be told.
pub fn layers(options: &str) -> Option<Vec<PathBuf>> {
    let mut found = Vec::new();
    for option in options.split(',') {
        let Some((key, value)) = option.split_once('=') else {
            continue;
        };
        match key {
            "upperdir" => found.push(unescaped(value)),
            "lowerdir" | "lowerdir+" | "datadir+" => {
                let lower = value.split(':').filter(|part| !part.is_empty());
                found.extend(lower.map(unescaped));
            }
            _ => {}
        }
    }
    // A colon or comma of a name comes escaped, and cuts it: such a part is not absolute.
    let told = found.len() <= MOST_LAYERS
        && !found.is_empty()
        && found
            .iter()
            .all(|layer| layer.is_absolute() && !layer.to_string_lossy().ends_with('\\'));
    told.then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_for_its_boot_and_as_roots_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let run = tempfile::tempdir().unwrap();
        let file = run.path().join(ANSWER);
        let says = |text: &str| {
            fs::write(&file, text).unwrap();
            left(&file, "b-1")
        };
        assert_eq!(left(&file, "b-1"), None);
        assert_eq!(says("seen b-1\n"), Some(Seen::Yes));
        assert_eq!(says("unseen b-1\n"), Some(Seen::No));
        for other in [
            "seen b-2\n",
            "seen",
            "",
            "seen \n",
            "yes b-1",
            &"x".repeat(999),
        ] {
            assert_eq!(says(other), None, "{other}");
        }
        fs::write(&file, "seen b-1\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(left(&file, "b-1"), None);
    }

    #[test]
    fn layers_are_told_or_not_at_all() {
        let all = |text| layers(text).map(|all| all.len());
        assert_eq!(all("rw,lowerdir=/a:/b,upperdir=/u,workdir=/w"), Some(3));
        assert_eq!(all("ro,lowerdir+=/a,datadir+=/d"), Some(2));
        assert_eq!(all("ro,lowerdir=/a::/d"), Some(2));
        assert_eq!(all("rw,lowerdir=a:b"), None);
        assert_eq!(all("rw,lowerdir=/a\\:b"), None);
        assert_eq!(all("rw"), None);
    }
}
