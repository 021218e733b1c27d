//! What is said of the machine: versions, kernel, limits, mounts, the service's log.
//! Of each file those parts alone that are known to hold no secret.

use std::fmt::Write as _;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes of one file that are read, at the most.
const MAX_BYTES: u64 = 1 << 20;
/// Names of the state folder that are listed, at the most.
const MAX_NAMES: usize = 500;
/// Lines of the log.
const LOG_LINES: &str = "5000";
/// How long the log's program may take.
const LOG_WITHIN: Duration = Duration::from_secs(10);
/// What the kernel says in one line.
const LINES: [&str; 9] = [
    "/proc/version",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/sys/fs/file-nr",
    "/proc/sys/fs/fanotify/max_queued_events",
    "/proc/sys/fs/fanotify/max_user_groups",
    "/proc/sys/fs/fanotify/max_user_marks",
    "/proc/sys/kernel/unprivileged_userns_clone",
    "/proc/sys/vm/memfd_noexec",
];
/// Mount options that are shown; others may hold credentials.
const OPTIONS: [&str; 8] = [
    "ro", "rw", "nosuid", "nodev", "noexec", "relatime", "noatime", "bind",
];

fn read(path: impl AsRef<Path>) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        let _ = file.take(MAX_BYTES).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Versions, kernel and limits.
pub fn kernel() -> String {
    let mut text = format!("palisade-agent {}\n", crate::VERSION);
    for line in read("/etc/os-release").lines() {
        if ["PRETTY_NAME=", "VERSION_ID=", "ID="]
            .iter()
            .any(|key| line.starts_with(key))
        {
            let _ = writeln!(text, "{line}");
        }
    }
    for path in LINES {
        let said = read(path);
        let said = match said.trim() {
            "" => "-",
            said => said,
        };
        let _ = writeln!(text, "{path}: {said}");
    }
    for line in read("/proc/meminfo").lines().take(3) {
        let _ = writeln!(text, "{line}");
    }
    for word in read("/proc/cmdline").split_whitespace() {
        // Others may hold what is nobody's business.
        if word.starts_with("palisade=") {
            let _ = writeln!(text, "kernel parameter: {word}");
        }
    }
    let capabilities = read("/proc/self/status");
    for line in capabilities
        .lines()
        .filter(|line| line.starts_with("CapEff:"))
    {
        let _ = writeln!(text, "{line}");
    }
    text
}

/// Mounts: where, which type, and harmless options.
pub fn mounts() -> String {
    let mut text = String::new();
    for line in read("/proc/self/mountinfo").lines() {
        // ID PARENT MAJ:MIN ROOT PLACE OPTIONS [FIELDS…] - TYPE SOURCE OPTIONS
        let Some((before, after)) = line.split_once(" - ") else {
            continue;
        };
        let before: Vec<&str> = before.split(' ').collect();
        let (Some(device), Some(place), Some(options)) =
            (before.get(2), before.get(4), before.get(5))
        else {
            continue;
        };
        let kind = after.split(' ').next().unwrap_or("-");
        let options: Vec<&str> = options
            .split(',')
            .filter(|option| OPTIONS.contains(option))
            .collect();
        let _ = writeln!(text, "{device} {kind} {place} {}", options.join(","));
    }
    text
}

/// Names and sizes in the state folder, one level deep.
pub fn listing(state: &Path) -> String {
    let mut lines: Vec<String> = fs::read_dir(state)
        .into_iter()
        .flatten()
        .flatten()
        .take(MAX_NAMES)
        .map(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy().escape_debug().to_string();
            match entry.metadata() {
                Ok(found) if found.is_dir() => {
                    let inside = fs::read_dir(entry.path()).map_or(0, Iterator::count);
                    format!("{name}/ ({inside} inside)")
                }
                Ok(found) => format!("{name} {} bytes", found.len()),
                Err(error) => format!("{name}: {error}"),
            }
        })
        .collect();
    lines.sort();
    lines.join("\n")
}

/// The end of the service's log, where the system keeps one.
pub fn log() -> String {
    let child = Command::new("journalctl")
        .args(["--unit", "palisade-agent", "--no-pager", "--quiet"])
        .args(["--lines", LOG_LINES])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return format!("there is no journal: {error}"),
    };
    let out = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(out) = out {
            let _ = out.take(8 * MAX_BYTES).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let until = Instant::now() + LOG_WITHIN;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < until && !reader.is_finished() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    reader.join().unwrap_or_default()
}
