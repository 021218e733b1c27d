//! Threads that list folders, open files and hash them, and at which priority.
//!
//! A scan that somebody waits for uses the runtime's threads. A task in the background
//! has threads of its own ([`Hands::background`]), which give way to whatever else the
//! guest does; the runtime's one thread, on which the answers to openers depend too,
//! keeps its priority.
//!
//! The priority is the nice value. The kernel takes a thread's I/O priority from it
//! as long as nobody sets another (`ioprio_set(2)`): nice 19 is the last level of the
//! class best-effort, which the schedulers `bfq` and `mq-deadline` heed. The classes
//! `SCHED_IDLE` and `IOPRIO_CLASS_IDLE` would need unsafe code here.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// How much a task in the background gives way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// To everything: nice 19.
    #[default]
    Idle,
    /// To most: nice 10.
    Low,
    /// Not at all.
    Normal,
}

impl Priority {
    /// The nice value.
    pub fn nice(self) -> i32 {
        match self {
            Self::Idle => 19,
            Self::Low => 10,
            Self::Normal => 0,
        }
    }

    /// As it stands in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Low => "low",
            Self::Normal => "normal",
        }
    }
}

/// Bytes of stack of a thread.
const STACK_BYTES: usize = 512 * 1024;

/// Whoever does what takes a thread. Clones share the threads.
#[derive(Debug, Clone, Default)]
pub struct Hands(Option<Arc<Pool>>);

/// A runtime that only lends its threads for blocking work; they end when idle.
#[derive(Debug)]
struct Pool(Option<Runtime>);

impl Hands {
    /// At most `threads` threads of their own.
    ///
    /// # Errors
    /// The system's.
    pub fn background(priority: Priority, threads: usize) -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread()
            .max_blocking_threads(threads)
            .thread_name("palisade-task")
            .thread_stack_size(STACK_BYTES)
            .on_thread_start(move || lower(priority))
            .build()?;
        Ok(Self(Some(Arc::new(Pool(Some(runtime))))))
    }

    /// Does something that takes a thread.
    pub fn spawn<R: Send + 'static>(
        &self,
        work: impl FnOnce() -> R + Send + 'static,
    ) -> JoinHandle<R> {
        match self.0.as_deref() {
            Some(Pool(Some(runtime))) => runtime.spawn_blocking(work),
            _ => tokio::task::spawn_blocking(work),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// On Linux a nice value is a thread's.
fn lower(priority: Priority) {
    if priority == Priority::Normal {
        return;
    }
    let thread = rustix::thread::gettid();
    if let Err(error) = rustix::process::setpriority_process(Some(thread), priority.nice()) {
        tracing::warn!(%error, "a task's thread keeps its priority");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nice() -> i32 {
        rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap()
    }

    #[tokio::test]
    async fn only_the_background_gives_way() {
        let usual = nice();
        for (priority, want) in [(Priority::Idle, 19), (Priority::Low, 10.max(usual))] {
            let hands = Hands::background(priority, 2).unwrap();
            assert_eq!(hands.spawn(nice).await.unwrap(), want);
        }
        assert_eq!(Hands::default().spawn(nice).await.unwrap(), usual);
        assert_eq!(nice(), usual);
    }
}
