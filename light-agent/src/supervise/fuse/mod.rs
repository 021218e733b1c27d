//! What is done about an agent that no signal ends: it waits in the kernel for a
//! file system in user space, whose server took a question and does not answer.
//!
//! The kernel keeps such a process, and with it every opener that waits for it, until
//! the connection is aborted. Whoever uses that file system gets errors from then on, so
//! the one that the process waits for goes first ([`waits`]), and only if that does not
//! end it, one by one, the others that somebody waits for. One whose server answers is
//! never waited for long enough to be among them, and nothing is aborted at all unless
//! the process waits for such a file system.

mod waits;

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// Where the kernel shows the connections, each under its file system's number.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";
/// How long the process may take to end once its connection is aborted.
const GONE_WITHIN: Duration = Duration::from_millis(500);
/// How often its end is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(10);

/// Aborts what this killed process waits for, until it is gone.
pub fn free(pid: u32, mut is_gone: impl FnMut() -> bool) {
    let process = Path::new("/proc").join(pid.to_string());
    let waits = waits::of(&process);
    if !waits.for_fuse {
        tracing::error!(pid, waits_for = %waits.places.trim(), "the killed agent does not end: it waits in the kernel");
        return;
    }
    let asked = match asked(Path::new(CONNECTIONS)) {
        Ok(asked) => asked,
        Err(error) => {
            tracing::error!(pid, %error, "a FUSE server keeps the killed agent, and the connections cannot be seen");
            return;
        }
    };
    if asked.is_empty() {
        tracing::error!(
            pid,
            "a FUSE server keeps the killed agent, and no connection is seen in {CONNECTIONS}: \
             `mount -t fusectl fusectl {CONNECTIONS}` shows them"
        );
    }
    for connection in in_order(asked, &waits.devices) {
        match fs::write(
            Path::new(CONNECTIONS)
                .join(connection.to_string())
                .join("abort"),
            "1",
        ) {
            Ok(()) => {
                tracing::error!(pid, %connection, "a FUSE server does not answer and kept the killed agent: its connection was aborted");
            }
            Err(error) => {
                tracing::error!(pid, %error, %connection, "a FUSE server keeps the killed agent, and its connection cannot be aborted");
                continue;
            }
        }
        let until = Instant::now() + GONE_WITHIN;
        while Instant::now() < until {
            if is_gone() {
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// The connections that somebody waits for.
fn asked(folder: &Path) -> io::Result<Vec<u64>> {
    let mut asked = Vec::new();
    for connection in fs::read_dir(folder)? {
        let connection = connection?;
        let waiting = fs::read_to_string(connection.path().join("waiting")).unwrap_or_default();
        let waiting: u64 = waiting.trim().parse().unwrap_or(0);
        let number = connection.file_name();
        if let Some(number) = number.to_str().and_then(|name| name.parse().ok())
            && waiting > 0
        {
            asked.push(number);
        }
    }
    asked.sort_unstable();
    Ok(asked)
}

/// Those that the process is known to wait for first.
fn in_order(mut asked: Vec<u64>, named: &[u64]) -> Vec<u64> {
    asked.sort_by_key(|connection| !named.contains(connection));
    asked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_connections_that_somebody_waits_for_count() {
        let folder = tempfile::tempdir().unwrap();
        for (name, waiting) in [
            ("42", "1\n"),
            ("7", "0\n"),
            ("9", "3\n"),
            ("x", "1\n"),
            ("8", ""),
        ] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("waiting"), waiting).unwrap();
        }
        assert_eq!(asked(folder.path()).unwrap(), [9, 42]);
        assert!(asked(&folder.path().join("no")).is_err());
    }

    #[test]
    fn what_is_known_to_be_waited_for_goes_first() {
        assert_eq!(in_order(vec![1, 2, 3, 4], &[3, 9]), [3, 1, 2, 4]);
        assert_eq!(in_order(vec![1, 2], &[]), [1, 2]);
    }
}
