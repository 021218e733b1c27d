//! What processes take, by the kernel's count: memory and processor time of a
//! program with all its children.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::{SysconfVar, sysconf};

/// A process as `/proc/PID/stat` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// Its program's name, at most 15 bytes.
    pub name: String,
    /// Its parent's id.
    pub parent: i32,
    /// Processor time in clock ticks, of waited-for children too.
    ticks: u64,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Its proportional share: shared pages are divided among those that share them.
    pub pss: u64,
    /// What no other process shares.
    pub private: u64,
    /// All that it has mapped and is in memory.
    pub rss: u64,
}

/// A process and all that descend from it.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn tree(root: i32) -> Result<Vec<Process>> {
    let mut all = Vec::new();
    for entry in fs::read_dir("/proc").context("/proc")? {
        let name = entry?.file_name();
        if let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok())
            && let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat"))
        {
            all.extend(parse(&stat));
        }
    }
    let mut found: Vec<Process> = all
        .iter()
        .filter(|process| process.pid == root)
        .cloned()
        .collect();
    let mut at = 0;
    while let Some(parent) = found.get(at).map(|process| process.pid) {
        found.extend(
            all.iter()
                .filter(|process| process.parent == parent)
                .cloned(),
        );
        at += 1;
    }
    Ok(found)
}

/// The name may hold anything, so fields count from the last bracket.
fn parse(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, fields) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = fields
        .get(11..15)?
        .iter()
        .map(|field| field.parse::<u64>().unwrap_or(0))
        .sum();
    Some(Process {
        pid: pid.parse().ok()?,
        name: name.to_owned(),
        parent: fields.get(1)?.parse().ok()?,
        ticks,
    })
}

/// Processor time of a process and all that descend from it, so far.
///
/// # Errors
/// As [`tree`].
pub fn cpu(root: i32) -> Result<Duration> {
    of_ticks(tree(root)?.iter().map(|process| process.ticks).sum())
}

/// Processor time of this process alone, so far.
///
/// # Errors
/// The kernel's.
pub fn own_cpu() -> Result<Duration> {
    used(UsageWho::RUSAGE_SELF)
}

fn of_ticks(ticks: u64) -> Result<Duration> {
    let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the clock's ticks")?;
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}

/// Processor time of programs that were run to their end, so far.
///
/// # Errors
/// The kernel's.
pub fn ended_cpu() -> Result<Duration> {
    used(UsageWho::RUSAGE_CHILDREN)
}

fn used(who: UsageWho) -> Result<Duration> {
    let usage = getrusage(who)?;
    let part = |time: nix::sys::time::TimeVal| {
        Duration::new(
            u64::try_from(time.tv_sec()).unwrap_or(0),
            u32::try_from(time.tv_usec()).unwrap_or(0) * 1000,
        )
    };
    Ok(part(usage.user_time()) + part(usage.system_time()))
}

/// Memory of one process.
///
/// # Errors
/// When it is gone, or is somebody else's.
pub fn memory(pid: i32) -> Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).context(path)?;
    Ok(rollup(&text))
}

fn rollup(text: &str) -> Memory {
    let field = |name: &str| {
        text.lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .filter_map(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok())
            .sum::<u64>()
            * 1024
    };
    Memory {
        pss: field("Pss"),
        private: field("Private_Clean") + field("Private_Dirty"),
        rss: field("Rss"),
    }
}

/// Proportional memory of a process and all that descend from it; those that end
/// meanwhile count nothing.
///
/// # Errors
/// As [`tree`].
pub fn tree_pss(root: i32) -> Result<u64> {
    let all = tree(root)?;
    Ok(all
        .iter()
        .filter_map(|process| memory(process.pid).ok())
        .map(|memory| memory.pss)
        .sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_brackets_and_blanks_are_read() {
        let stat = "7 (a) b (c) S 3 7 7 0 -1 0 1 2 3 4 10 20 30 40 20 0 1 0 5";
        let process = parse(stat).unwrap();
        assert_eq!((process.pid, process.parent, process.ticks), (7, 3, 100));
        assert_eq!(process.name, "a) b (c");
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn the_rollup_is_in_bytes() {
        let text = "0-1 ---p 0 0:0 0 [rollup]\nRss:  20 kB\nPss:   10 kB\nPss_Dirty: 3 kB\nPrivate_Clean:  2 kB\nPrivate_Dirty: 4 kB\n";
        let memory = rollup(text);
        assert_eq!(
            (memory.rss, memory.pss, memory.private),
            (20 << 10, 10 << 10, 6 << 10)
        );
    }

    #[test]
    fn this_process_has_a_tree_memory_and_time() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(tree(own).unwrap().iter().any(|process| process.pid == own));
        assert!(tree_pss(own).unwrap() > 0);
        assert!(memory(own).unwrap().rss >= memory(own).unwrap().private);
        assert!(cpu(own).is_ok());
    }
}
