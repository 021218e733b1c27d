//! In which container a process runs, for detections alone: no open waits for this.
//!
//! Owns the questions to `/proc`; what the answer means is [`name`]'s. A process is asked
//! about after its open was answered, so it may be gone (of programs that end as soon as
//! they are refused, about one in twenty was), and another may have its number: one that
//! is younger than the open is not it. Whatever cannot be found out is no name.

pub mod name;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;
use std::time::{Duration, Instant};

use palisade_protocol::control::ContainerName;

/// Most that is read of a process's cgroups, in bytes: a path has 4,096 at the most, and
/// there is one for each hierarchy.
const MAX_CGROUP_BYTES: u64 = 64 * 1024;
/// Most that is read of any other file of `/proc`, in bytes.
const MAX_FACTS_BYTES: u64 = 4096;
/// The kernel's clock ticks in a second, as `/proc` counts them.
const TICKS_PER_S: u64 = 100;
/// How exactly a process's age is known: the kernel rounds twice, to ticks.
const ROUNDED: Duration = Duration::from_millis(20);
/// Where a process's start is in its `stat`, counted from behind its name.
const START_FIELD: usize = 19;

/// The container of the process that opened something at `seen`, if it is there still
/// and runs in one.
pub fn of(pid: u32, seen: Instant) -> Option<ContainerName> {
    if pid == 0 {
        return None;
    }
    let process = Path::new("/proc").join(pid.to_string());
    let cgroups = read(&process.join("cgroup"), MAX_CGROUP_BYTES).ok()?;
    let name = name::of(&cgroups)?;
    // Asked last: had another taken the number before, it would be this young.
    let stat = read(&process.join("stat"), MAX_FACTS_BYTES).ok()?;
    let uptime = read(Path::new("/proc/uptime"), MAX_FACTS_BYTES).ok()?;
    (age(&stat, &uptime)? + ROUNDED >= seen.elapsed()).then_some(name)
}

fn read(file: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// How long a process has been there, of its `stat` and the machine's `uptime`.
fn age(stat: &[u8], uptime: &[u8]) -> Option<Duration> {
    // Its name is the process's own choice, parentheses and spaces included.
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let fields = std::str::from_utf8(stat.get(end + 1..)?).ok()?;
    let start: u64 = fields.split_whitespace().nth(START_FIELD)?.parse().ok()?;
    let uptime = std::str::from_utf8(uptime).ok()?;
    let up: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    let up = Duration::try_from_secs_f64(up).ok()?;
    let start = Duration::from_millis(start.saturating_mul(1000 / TICKS_PER_S));
    Some(up.saturating_sub(start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_process_is_as_old_as_it_is() {
        let before = Instant::now();
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = child.id();
        std::thread::sleep(Duration::from_millis(300));
        let read = |name: &str| read(Path::new(name), MAX_FACTS_BYTES).unwrap();
        let stat = read(&format!("/proc/{pid}/stat"));
        let age = age(&stat, &read("/proc/uptime")).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(age + ROUNDED >= Duration::from_millis(300), "{age:?}");
        assert!(age <= before.elapsed() + ROUNDED, "{age:?}");
    }

    #[test]
    fn a_name_in_a_stat_is_no_field() {
        let stat = |name: &str| {
            let fields = ["S"; START_FIELD].join(" ");
            format!("7 ({name}) {fields} 500 0 0\n").into_bytes()
        };
        for name in ["sh", "a b) S 1 1 (", ") ) )", ""] {
            let age = age(&stat(name), b"15.25 9.00\n");
            assert_eq!(age, Some(Duration::from_millis(10_250)), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(stat: Vec<u8>, uptime in "[-0-9.e ]{0,40}") {
            let _ = age(&stat, uptime.as_bytes());
            let _ = age(format!(") {} 7", "0 ".repeat(START_FIELD)).as_bytes(), uptime.as_bytes());
        }
    }
}
