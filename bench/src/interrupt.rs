//! A run that is interrupted ends both sides: their processes are told to end, so
//! that the measure under way fails soon, and what it made is taken down as always.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_daemon::lifecycle;

use crate::processes;

/// Whether the run was interrupted. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens for SIGINT and SIGTERM from now on.
    ///
    /// # Errors
    /// When the process cannot listen.
    pub fn listen() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("no runtime")?;
        let interrupt = Self::default();
        let shared = interrupt.clone();
        std::thread::Builder::new()
            .name("interrupt".to_owned())
            .spawn(move || {
                if runtime.block_on(lifecycle::stop_requested()).is_ok() {
                    shared.0.store(true, Ordering::Relaxed);
                    end_children();
                }
            })?;
        Ok(interrupt)
    }

    /// Fails if the run was interrupted.
    ///
    /// # Errors
    /// If so.
    pub fn check(&self) -> Result<()> {
        ensure!(!self.0.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }
}

fn end_children() {
    let own = std::process::id();
    let all = i32::try_from(own).map(processes::tree);
    for process in all.into_iter().flatten().flatten() {
        if u32::try_from(process.pid) != Ok(own) {
            // It may have ended meanwhile.
            let _ = kill(Pid::from_raw(process.pid), Signal::SIGTERM);
        }
    }
}
