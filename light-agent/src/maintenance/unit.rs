//! That systemd refuses to stop the service by hand, while that needs leave.
//!
//! One drop-in in `/run`, which a boot takes away and the supervisor puts back when it
//! starts. A shutdown is not by hand, and neither is the restart of a service that ended.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use palisade_protocol::identity::write_atomic;

/// The service.
pub const UNIT: &str = "palisade-agent.service";
/// Drop-ins of this boot.
const DROP_INS: &str = "/run/systemd/system/palisade-agent.service.d";
const NAME: &str = "50-maintenance.conf";
const TEXT: &str = "# Made by the agent, since its settings say maintenance.token_required.\n\
                    [Unit]\nRefuseManualStop=yes\n";

/// Whether systemd is what runs this system.
pub fn has_systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Whether this process is a service's of systemd.
pub fn is_service() -> bool {
    has_systemd() && std::env::var_os("INVOCATION_ID").is_some()
}

/// Has systemd refuse to stop the service by hand, or not; nothing is done where that is
/// so already.
///
/// # Errors
/// The system's, or systemd's.
pub fn refuse_stop(refuse: bool) -> io::Result<()> {
    let file = Path::new(DROP_INS).join(NAME);
    let is = std::fs::read(&file).is_ok_and(|text| text == TEXT.as_bytes());
    match (is, refuse) {
        (true, true) => return Ok(()),
        (false, false) if !file.exists() => return Ok(()),
        (_, true) => {
            std::fs::create_dir_all(DROP_INS)?;
            write_atomic(&file, TEXT.as_bytes(), 0o644).map_err(io::Error::other)?;
        }
        (_, false) => {
            std::fs::remove_file(&file)?;
            // Others may have drop-ins there.
            let _ = std::fs::remove_dir(DROP_INS);
        }
    }
    systemctl(&["daemon-reload"])
}

/// Runs `systemctl`, whose messages are the caller's.
///
/// # Errors
/// The system's, or that it failed.
pub fn systemctl(arguments: &[&str]) -> io::Result<()> {
    let status = Command::new("systemctl")
        .args(arguments)
        .stdin(Stdio::null())
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "`systemctl {}` ended with {status}",
            arguments.join(" ")
        ))),
    }
}
