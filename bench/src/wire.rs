//! Bytes on the wire to one port, counted by the kernel.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result};
use palisade_tests::command;
use serde_json::Value;

const NFT: &str = "/usr/sbin/nft";
const TIMEOUT: Duration = Duration::from_secs(20);

/// A counter in a table of its own, removed at the end.
#[derive(Debug)]
pub struct Counter {
    table: String,
}

/// The kernel's word for a transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// Ours.
    Udp,
    /// clamd's.
    Tcp,
}

impl Counter {
    /// Counts what is sent to `port` of this machine, from now on.
    ///
    /// # Errors
    /// When the kernel may not be asked to (it takes root), or nft is missing.
    pub fn start(transport: Transport, port: u16) -> Result<Self> {
        let name = match transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        let table = format!("palisade_bench_{}_{name}_{port}", std::process::id());
        let rules = format!(
            "table inet {table} {{\n  counter sent {{ }}\n  chain output {{\n    type filter hook output priority 0; policy accept;\n    {name} dport {port} counter name sent\n  }}\n}}\n"
        );
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("rules");
        fs::write(&file, rules)?;
        nft(&["-f", file.to_str().context("a path that is not UTF-8")?])
            .context("bytes on the wire are counted by nftables, as root")?;
        Ok(Self { table })
    }

    /// Bytes so far, headers included.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn bytes(&self) -> Result<u64> {
        let listed = nft(&["-j", "list", "counter", "inet", &self.table, "sent"])?;
        let listed: Value = serde_json::from_str(&listed)?;
        listed["nftables"]
            .as_array()
            .and_then(|objects| {
                objects
                    .iter()
                    .find_map(|object| object["counter"]["bytes"].as_u64())
            })
            .with_context(|| format!("nft lists no counter: {listed}"))
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // Nothing else is left to do if it stays.
        let _ = Command::new(NFT)
            .args(["delete", "table", "inet", &self.table])
            .status();
    }
}

fn nft(arguments: &[&str]) -> Result<String> {
    let finished = command::run(Path::new(NFT), arguments, TIMEOUT)?.expect(&[0])?;
    Ok(String::from_utf8(finished.stdout)?)
}
