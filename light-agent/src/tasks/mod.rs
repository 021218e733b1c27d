//! Scan tasks: scans that the daemon runs in the background, one at a time.
//!
//! ```text
//!  palisade-agent task … ─► socket ─┐
//!                                   ├─► desk (book, store) ─► runner ─► scan
//!  clock ─► schedule ───────────────┘        ▲                  │
//!                                            └─ place, counts ──┘
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`task`], [`book`] | one task, and all of them: states, numbers, bounds (pure) |
//! | [`ledger`] | how far a scan is whose files are done out of order (pure) |
//! | [`store`], [`saved`] | tasks on disk |
//! | [`desk`] | where orders and questions come |
//! | [`runner`] | the task that has the turn |
//! | [`schedule`] | scans that begin by themselves |
//! | [`socket`], [`command`], [`shown`] | `palisade-agent task` |
//! | [`settings`] | what may be set |
//!
//! How a file is scanned is [`scan`](crate::scan)'s business. A task waits while no
//! Protection Server can be reached, and fails after `scan.svm_wait_s`. **Invariant:** a
//! file of a task is counted once, and none is left out, whatever is paused, killed or
//! restarted in between; files that come and go meanwhile may be missed. (One exception:
//! with `scan.packaged = 'last'`, files that differ from their package's may be looked at
//! again after a restart.)

pub mod book;
pub mod command;
pub mod desk;
pub mod ledger;
pub mod runner;
pub mod saved;
pub mod schedule;
pub mod settings;
pub mod shown;
pub mod socket;
pub mod store;
pub mod task;

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::current::Current;
use crate::daemon::Parts;
use crate::index::scans::Scans;
use crate::packaged::rpm;
use crate::private::Private;
use crate::quarantine::remedies::Remedies;
use crate::scan::hands::Priority;
use crate::settings::{Folders, Settings};
use desk::Desk;
use runner::{How, Runner};
use schedule::Clock;
use store::Store;

/// How long the task under way may take to be kept when the agent ends.
const GRACE: Duration = Duration::from_secs(1);

/// The tasks of a running agent.
pub struct Tasks {
    stop: watch::Sender<bool>,
    runner: JoinHandle<()>,
    how: Current<How>,
    priority: Current<Priority>,
    desk: Desk,
    agent: String,
    clock: Option<JoinHandle<()>>,
}

impl Tasks {
    /// Goes on with what is kept, and serves commands and schedules. `agent` is whose
    /// starts are spread.
    ///
    /// # Errors
    /// The state or the run folder's.
    pub fn start(
        settings: &Settings,
        folders: &Folders,
        parts: &Parts,
        agent: String,
    ) -> anyhow::Result<Self> {
        let folder = |path: &Path| format!("the folder {}", path.display());
        let desk =
            Desk::open(Store::new(&folders.state)).with_context(|| folder(&folders.state))?;
        let listener = socket::listen(&folders.run).with_context(|| folder(&folders.run))?;
        let priority = Current::new(settings.tasks.priority);
        tokio::spawn(socket::serve(listener, desk.clone(), priority.clone()));
        let how = Current::new(how(settings, parts.remedies.get().as_ref()));
        let runner = Runner {
            desk: desk.clone(),
            link: parts.link.clone(),
            detections: parts.detections.clone(),
            tenant: parts.tenant.clone(),
            how: how.clone(),
            rpm_listing: rpm::listing(&folders.state),
            held: Scans::start(&folders.state).ok().map(std::sync::Arc::new),
        };
        let (stop, stopped) = watch::channel(false);
        let mut tasks = Self {
            stop,
            runner: tokio::spawn(runner.run(stopped)),
            how,
            priority,
            desk,
            agent,
            clock: None,
        };
        tasks.follow(settings);
        Ok(tasks)
    }

    /// Other settings are in force: for tasks that begin from now on, and for schedules.
    pub fn change(&mut self, settings: &Settings, remedies: &Remedies) {
        self.how.set(how(settings, remedies));
        self.priority.set(settings.tasks.priority);
        self.follow(settings);
    }

    /// Watches the clock for these schedules and no others.
    fn follow(&mut self, settings: &Settings) {
        if let Some(clock) = self.clock.take() {
            clock.abort();
        }
        if settings.schedule.is_empty() {
            return;
        }
        let clock = Clock {
            schedules: settings.schedule.clone(),
            agent: self.agent.clone(),
            desk: self.desk.clone(),
            priority: settings.tasks.priority,
        };
        self.clock = Some(tokio::spawn(clock.run()));
    }

    /// Keeps the place of the task under way.
    pub async fn stop(self, folders: &Folders) {
        self.stop.send_replace(true);
        if tokio::time::timeout(GRACE, self.runner).await.is_err() {
            tracing::warn!("the place of a scan task may be an old one");
        }
        let _ = std::fs::remove_file(socket::socket(&folders.run));
    }
}

fn how(settings: &Settings, remedies: &Remedies) -> How {
    How {
        scan: settings.scan.clone(),
        asking: settings.tasks.concurrency,
        options: settings.scan.options(),
        private: Private::new(&settings.private),
        remedies: remedies.clone(),
        exclude: settings.exclude.clone(),
    }
}
