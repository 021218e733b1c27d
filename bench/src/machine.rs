//! Where a run takes place, and what else runs there.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use palisade_tests::command;
use serde::Serialize;

/// The machine and the programs.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Processors that may be used.
    pub cores: usize,
    /// Their model.
    pub cpu: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
    /// The distribution.
    pub system: String,
    /// Versions, ours and the peers'.
    pub versions: Vec<String>,
}

/// The load average over a minute: processes that ran or waited.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Load {
    /// Before anything was measured or built.
    pub before: f64,
    /// At the end, the benchmarks themselves included.
    pub after: f64,
}

impl Machine {
    /// This one.
    ///
    /// # Errors
    /// When the kernel or a program does not say.
    pub fn here(revision: Option<&str>, clamd: String) -> Result<Self> {
        let line = |file: &str, key: &str| -> Result<String> {
            let text = fs::read_to_string(file).context(file.to_owned())?;
            let value = text
                .lines()
                .find_map(|line| line.strip_prefix(key))
                .unwrap_or_default();
            Ok(value.trim_matches([' ', '\t', ':', '=', '"']).to_owned())
        };
        let own = command::run(
            &command::program("palisade-agent")?,
            ["--version"],
            Duration::from_secs(20),
        )?;
        let own = String::from_utf8(own.expect(&[0])?.stdout)?
            .trim()
            .to_owned();
        let own = revision.map_or(own.clone(), |revision| format!("{own} ({revision})"));
        let memory_kib: u64 = line("/proc/meminfo", "MemTotal")?
            .trim_end_matches(" kB")
            .parse()?;
        Ok(Self {
            cores: std::thread::available_parallelism()?.get(),
            cpu: line("/proc/cpuinfo", "model name")?,
            memory_bytes: memory_kib * 1024,
            kernel: line("/proc/sys/kernel/osrelease", "")?.trim().to_owned(),
            system: line("/etc/os-release", "PRETTY_NAME").unwrap_or_default(),
            versions: vec![own, clamd],
        })
    }
}

/// The load average over the last minute.
///
/// # Errors
/// When the kernel does not say.
pub fn load() -> Result<f64> {
    let text = fs::read_to_string(Path::new("/proc/loadavg")).context("/proc/loadavg")?;
    text.split(' ')
        .next()
        .unwrap_or_default()
        .parse()
        .context("/proc/loadavg")
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = self.memory_bytes as f64 / f64::from(1 << 30);
        write!(
            f,
            "Machine: {} cores ({}), {gib:.1} GiB, Linux {}, {}. Versions: {}.",
            self.cores,
            self.cpu,
            self.kernel,
            self.system,
            self.versions.join("; ")
        )
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Load average over a minute: {:.2} before the run, {:.2} at its end (its own work included).",
            self.before, self.after
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_a_number() {
        assert!(load().unwrap() >= 0.0);
    }
}
