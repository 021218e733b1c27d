//! Whether marks of an overlay's layers see what is opened through the overlay: tried on
//! the running kernel, not assumed.
//!
//! Where they do, an overlay must never be marked beside its layers: the reader would
//! wait for itself. Where they do not (Linux 6.1), an overlay is a gap. A process of its
//! own tries it in mounts of its own, before any other group exists, and ends.
//!
//! Owns the trial, and which folders are an overlay's layers.

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

use super::mountinfo::unescaped;

/// The hidden subcommand that tries it.
pub const COMMAND: &str = "probe-overlay";

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

/// Has it tried by another process. Call before a fanotify group exists.
pub fn ask(folder: &Path) -> Seen {
    tried(folder).unwrap_or_default()
}

fn tried(folder: &Path) -> Option<Seen> {
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
    let answer = child.stdout.take()?.take(16).read_to_string(&mut said);
    match (answer.is_ok(), said.trim()) {
        (true, "seen") => Some(Seen::Yes),
        (true, "unseen") => Some(Seen::No),
        _ => None,
    }
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
