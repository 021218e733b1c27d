//! The workers of one engine process: those that scan, those that are idle, and a
//! few that were forked before anybody asked.
//!
//! ```text
//!   spares (have seen nothing) ──► taken ──► idle, of one tenant ──► taken …
//!      ▲ forked by a thread          │            │
//!      └─────────────────────────────┴── ended ◄──┘ when unfit, or pushed out
//! ```
//!
//! A tenant's worker scans that tenant's contents alone, and a fork costs
//! milliseconds: so idle workers are kept by tenant, and whoever finds none takes a
//! spare, which costs nothing. A killed worker is back as soon as it is missed.
//!
//! **Invariant:** nothing here waits for a worker that another holds.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use palisade_protocol::ids::TenantId;
use palisade_worker::client::{EngineProcess, SpawnError, WorkerHandle};

use super::pool::Idle;

/// How many workers are kept that scan nothing now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserve {
    /// Idle ones that have scanned.
    pub idle: usize,
    /// Spares.
    pub spares: usize,
}

impl Reserve {
    /// For so many scans at a time: an idle worker for each, as many again for
    /// other tenants; and a spare for every second.
    pub fn for_lanes(lanes: usize) -> Self {
        Self {
            idle: lanes * 2,
            spares: lanes.div_ceil(2).max(1),
        }
    }
}

/// The workers of one engine process. Dropping it ends them all, and the process.
#[derive(Debug)]
pub struct Crew {
    shared: Arc<Shared>,
    forker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    process: EngineProcess,
    reserve: Reserve,
    workers: Mutex<Workers>,
    wanted: Condvar,
}

#[derive(Debug)]
struct Workers {
    idle: Idle<TenantId, WorkerHandle>,
    spares: Vec<WorkerHandle>,
    /// The last spare could not be forked: nobody tries again before a worker is
    /// taken.
    failing: bool,
    ended: bool,
}

impl Crew {
    /// Takes over a process and its first worker.
    ///
    /// # Errors
    /// When the thread that forks cannot be started.
    pub fn start(
        process: EngineProcess,
        first: WorkerHandle,
        reserve: Reserve,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            process,
            reserve,
            workers: Mutex::new(Workers {
                idle: Idle::new(reserve.idle),
                spares: vec![first],
                failing: false,
                ended: false,
            }),
            wanted: Condvar::new(),
        });
        let forker = std::thread::Builder::new()
            .name("spare-workers".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.keep_spares()
            })?;
        Ok(Self {
            shared,
            forker: Some(forker),
        })
    }

    /// The engine's process.
    pub fn process(&self) -> &EngineProcess {
        &self.shared.process
    }

    /// A worker that has seen no other tenant's content.
    ///
    /// # Errors
    /// When there is none and none can be forked.
    pub fn take(&self, tenant: &TenantId) -> Result<WorkerHandle, SpawnError> {
        let mut unusable = Vec::new();
        let taken = {
            let mut workers = self.shared.lock();
            workers.failing = false;
            loop {
                let worker = workers.idle.take(tenant).or_else(|| workers.spares.pop());
                match worker {
                    Some(worker) if !worker.is_usable() => unusable.push(worker),
                    other => break other,
                }
            }
        };
        self.shared.wanted.notify_all();
        drop(unusable);
        taken.map_or_else(|| self.fresh(), Ok)
    }

    /// A worker that is forked now.
    ///
    /// # Errors
    /// When none can be forked.
    pub fn fresh(&self) -> Result<WorkerHandle, SpawnError> {
        self.shared.process.spawn_worker()
    }

    /// Keeps a worker that has scanned the tenant's content, for its next.
    pub fn give_back(&self, tenant: TenantId, worker: WorkerHandle) {
        let pushed_out = self.shared.lock().idle.put(tenant, worker);
        // Its end is asked for outside the lock.
        drop(pushed_out);
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.wanted.notify_all();
        if let Some(forker) = self.forker.take() {
            // It ends after the fork that it is at, and cannot panic.
            let _ = forker.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Workers> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forks what is missing, until the end of the process.
    fn keep_spares(&self) {
        let mut workers = self.lock();
        while !workers.ended {
            if workers.failing || workers.spares.len() >= self.reserve.spares {
                workers = self
                    .wanted
                    .wait(workers)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            drop(workers);
            let spare = self.process.spawn_worker();
            workers = self.lock();
            match spare {
                Ok(spare) => workers.spares.push(spare),
                Err(error) => {
                    // Whoever takes a worker next hears the same, and says so.
                    tracing::debug!(%error, "no spare worker");
                    workers.failing = true;
                }
            }
        }
    }
}
