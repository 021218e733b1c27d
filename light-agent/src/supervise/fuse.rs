//! What is done about an agent that no signal ends: it waits in the kernel for a
//! file system in user space, whose server does not answer.
//!
//! The kernel keeps such a process, and with it every opener that waits for it, until
//! the connection is aborted. Only connections that somebody waits for are, and only
//! if the process waits for one.

use std::fs;
use std::path::Path;

/// Where the kernel shows the connections.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// Aborts the connections that are waited for, if this process waits for one.
pub fn abort_stuck(pid: u32) {
    let waits_for = waits_for(&Path::new("/proc").join(pid.to_string()));
    if !waits_for.contains("fuse") && !waits_for.contains("request_wait_answer") {
        tracing::error!(pid, waits_for = %waits_for.trim(), "the killed agent does not end: it waits in the kernel");
        return;
    }
    for connection in fs::read_dir(CONNECTIONS).into_iter().flatten().flatten() {
        let folder = connection.path();
        let waiting = fs::read_to_string(folder.join("waiting")).unwrap_or_default();
        if waiting.trim() == "0" || waiting.is_empty() {
            continue;
        }
        match fs::write(folder.join("abort"), "1") {
            Ok(()) => {
                tracing::error!(pid, connection = %connection.file_name().display(), "a FUSE server does not answer and kept the killed agent: its connection was aborted")
            }
            Err(error) => {
                tracing::error!(pid, %error, connection = %connection.file_name().display(), "a FUSE server keeps the killed agent, and its connection cannot be aborted")
            }
        }
    }
}

/// Where its threads wait, by the kernel's names.
fn waits_for(process: &Path) -> String {
    let mut all = String::new();
    for task in fs::read_dir(process.join("task"))
        .into_iter()
        .flatten()
        .flatten()
    {
        for file in ["wchan", "stack"] {
            all.push_str(&fs::read_to_string(task.path().join(file)).unwrap_or_default());
            all.push(' ');
        }
    }
    all
}
