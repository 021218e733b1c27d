//! The only code that touches libvirt, on threads of its own.
//!
//! ```text
//!   thread "libvirt events"      virEventRunDefaultImpl, for the whole process
//!   thread "libvirt 1", "2", …   one a URI:
//!
//!        ┌──────────── wait (poll interval, growing while it fails) ◄──────────┐
//!        ▼                                                                     │
//!     connect ──failed──► Reading(error) ──────────────────────────────────────┤
//!        │                                                                     │
//!     subscribe, read all ──► Reading(facts)                                   │
//!        │                                                                     │
//!        └─► wait: event or poll ──► read all … ──connection dead──────────────┘
//! ```
//!
//! libvirt's calls block, and a host may hang: nothing else waits for these
//! threads. They read only (`virConnectOpenReadOnly`).
//!
//! | module | owns |
//! | --- | --- |
//! | [`collector`] | the loop above |
//! | [`connection`] | a connection that is closed when it is dropped, and one reading of it |
//! | [`events`] | what happens to domains; the only unsafe code |
//! | [`tags`] | a domain's tags, from the element that its administrator put into it |

pub mod collector;
pub mod connection;
#[allow(unsafe_code)]
pub mod events;
pub mod tags;

use std::sync::OnceLock;

use tokio::sync::mpsc;

use crate::interval::Interval;
use crate::inventory::Reading;
use crate::settings::LibvirtSource;

/// libvirt cannot be used in this process.
#[derive(Debug, Clone, thiserror::Error)]
#[error("libvirt's event loop cannot be started: {0}")]
pub struct LibvirtError(String);

/// Starts a collector for each source. They end when the receiver of their
/// readings is gone.
///
/// # Errors
/// [`LibvirtError`] when libvirt's event loop or a thread cannot be started.
pub fn start(
    sources: &[LibvirtSource],
    poll: Interval,
    readings: &mpsc::Sender<Reading>,
) -> Result<(), LibvirtError> {
    if sources.is_empty() {
        return Ok(());
    }
    run_events()?;
    for (number, source) in sources.iter().enumerate() {
        let collector = collector::Collector::new(source.uri.clone(), poll.get(), readings.clone());
        std::thread::Builder::new()
            .name(format!("libvirt {}", number + 1))
            .spawn(move || collector.run())
            .map_err(|error| LibvirtError(error.to_string()))?;
    }
    Ok(())
}

/// Registers libvirt's event loop, which must come before the first connection,
/// and runs it; once for the process.
fn run_events() -> Result<(), LibvirtError> {
    static STARTED: OnceLock<Result<(), LibvirtError>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            // libvirt would print each error to stderr, past the log.
            virt::error::clear_error_callback();
            virt::event::event_register_default_impl()
                .map_err(|error| LibvirtError(error.to_string()))?;
            std::thread::Builder::new()
                .name("libvirt events".to_owned())
                .spawn(|| {
                    loop {
                        if let Err(error) = virt::event::event_run_default_impl() {
                            tracing::error!(%error, "libvirt's event loop failed");
                            std::thread::sleep(std::time::Duration::from_secs(1));
                        }
                    }
                })
                .map(drop)
                .map_err(|error| LibvirtError(error.to_string()))
        })
        .clone()
}
