//! What a Protection Server says of itself, and what its processes take.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Samples of `GET /metrics`, by name and labels.
pub struct Numbers(BTreeMap<String, f64>);

impl Numbers {
    pub fn read(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        let limit = Some(Duration::from_secs(60));
        stream.set_read_timeout(limit).unwrap();
        stream
            .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let samples = answer.lines().filter_map(|line| {
            let (name, value) = line.strip_prefix("palisade_svm_")?.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(samples.collect())
    }

    /// The sum of all samples whose names begin so.
    pub fn sum(&self, prefix: &str) -> f64 {
        let of = self.0.iter().filter(|(name, _)| name.starts_with(prefix));
        of.map(|(_, value)| value).sum()
    }
}

/// Resident memory of a process and of all below it, in KiB: pages that processes
/// share count once for each.
pub fn resident_kib(pid: i32) -> Vec<(i32, u64)> {
    let mut all = Vec::new();
    let mut parents = vec![pid];
    while let Some(pid) = parents.pop() {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
        all.extend(kib.map(|kib| (pid, kib)));
        // Threads start processes too.
        let threads = fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten();
        for thread in threads.flatten() {
            let text = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            parents.extend(
                text.split_whitespace()
                    .filter_map(|pid| pid.parse::<i32>().ok()),
            );
        }
    }
    all
}
