//! On-access protection: a group, its reader, its self-test and whoever serves it,
//! from their start to their end.
//!
//! ```text
//!   other settings:  new groups ─► marked ─► the old ones' marks away ─► their events served
//!                                    └─ cannot be: the old ones stay
//! ```
//!
//! Where settings change, there is never a moment without a group that is marked: for
//! some milliseconds there are two, both are asked, and both must let an open through.
//!
//! Only composes; does not own the order in which an agent starts
//! ([`daemon`](crate::daemon)).

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use palisade_protocol::bounded::PathBytes;
use palisade_protocol::scan::ScanClass;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;

use crate::accounts::Accounts;
use crate::daemon::Parts;
use crate::deadline::{Chore, Deadlines};
use crate::decide::Scope;
use crate::fanotify::coverage::Coverage;
use crate::fanotify::devices;
use crate::fanotify::event::{Desk, Respond};
use crate::fanotify::follow::Follower;
use crate::fanotify::group::{Group, Watched};
use crate::fanotify::overlay::Seen;
use crate::fanotify::places::{self, Places};
use crate::fanotify::plan::Rules;
use crate::fanotify::programs::Programs;
use crate::fanotify::reader::{self, Told, Triage};
use crate::guard::Guard;
use crate::health::off;
use crate::learn::Learned;
use crate::marks::{Level, Marks};
use crate::mode::Mode;
use crate::private::Private;
use crate::probe::Probe;
use crate::pulse::{Pulse, Readers, Supervisor};
use crate::quarantine::remedies::Remedies;
use crate::scanner::Scanner;
use crate::selftest::{SelfTest, TestFiles};
use crate::settings::Settings;
use crate::threads;

/// Descriptors that are kept for everything but events.
const FD_RESERVE: u64 = 256;
/// Groups of one agent.
const GROUPS: usize = 2;
/// How long a file that was written may wait to be scanned.
const WRITES_WITHIN: Duration = Duration::from_secs(60);
/// Written files that are scanned at a time.
const WRITES_AT_A_TIME: usize = 2;

/// On-access protection, from its start to its end.
pub struct OnAccess {
    /// What is protected at the start, and what is not.
    pub places: Places,
    /// What is protected now.
    pub coverage: Coverage,
    /// Files that the kernel asks no more about.
    pub marks: Marks,
    /// What costs how much, where settings ask for it.
    pub learned: Option<Learned>,
    running: Vec<Running>,
    deadlines: Option<Deadlines>,
    self_test: Option<AbortHandle>,
    /// Nothing is marked any more once it is set.
    over: Arc<AtomicBool>,
}

/// What is there before it starts, and outlives it where settings change.
pub struct Needs {
    /// Opens files for the self-test.
    pub probe: Option<Arc<Mutex<Probe>>>,
    /// Descriptors that the process may have.
    pub descriptors: u64,
    /// Who hears signs of life.
    pub supervisor: Option<Supervisor>,
    /// Why it is off, if it was switched off.
    pub off: Option<String>,
    /// Whether marks of an overlay's layers see what is opened through it.
    pub overlays: Seen,
    /// The self-test's file, which is no detection, whichever group sees it.
    pub test_files: TestFiles,
    /// All readers whose turning is part of a sign of life.
    pub readers: Readers,
    /// Who answers in time; since the first start.
    pub deadlines: OnceLock<Deadlines>,
}

impl Needs {
    fn deadlines(&self, accounts: &Arc<Accounts>) -> Result<Deadlines, String> {
        if let Some(deadlines) = self.deadlines.get() {
            return Ok(deadlines.clone());
        }
        let chore = match &self.supervisor {
            Some(supervisor) => {
                let supervisor = supervisor.try_clone().map_err(|error| error.to_string())?;
                let mut pulse = Pulse::new(supervisor, self.readers.clone(), Arc::clone(accounts));
                Some(Box::new(move |now| pulse.beat(now)) as Chore)
            }
            None => None,
        };
        let deadlines = Deadlines::start(chore).map_err(|error| error.to_string())?;
        Ok(self.deadlines.get_or_init(|| deadlines).clone())
    }
}

/// One group with its reader.
struct Running {
    group: Arc<Group>,
    /// Closing it ends the reader.
    stop: Option<UnixStream>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl OnAccess {
    /// Starts it, or says in the health why it is off. The receiver tells when it
    /// ended by itself; a supervisor hears signs of life.
    pub fn start(
        settings: &Settings,
        parts: &Parts,
        needs: &Needs,
    ) -> (Self, mpsc::Receiver<nix::Error>) {
        let (failing, failed) = mpsc::channel(GROUPS);
        let mut started = Self::new(settings, None);
        let remedies = parts.remedies.get();
        match started.protect(settings, (parts, &remedies), needs, &failing) {
            Ok(test) => started.test(test, parts),
            Err(reason) => {
                // Half of it is none: what says "off" must not hold opens. The thread that
                // answers in time stays: a later change of settings goes on with it.
                started.deadlines = None;
                started.stop();
                parts.health.set_protection(off(&reason));
            }
        }
        (started, failed)
    }

    /// Goes on by other settings: nothing is opened unseen meanwhile, and whoever waits
    /// has his answer as if nothing had changed. `remedies` are what these settings ask for,
    /// which nobody else has yet.
    ///
    /// # Errors
    /// Why not; it goes on as before then.
    pub async fn change(
        &mut self,
        settings: &Settings,
        (parts, remedies): (&Parts, &Remedies),
        needs: &Needs,
    ) -> Result<mpsc::Receiver<nix::Error>, String> {
        let (failing, failed) = mpsc::channel(GROUPS);
        let mut next = Self::new(settings, self.learned.clone());
        match next.protect(settings, (parts, remedies), needs, &failing) {
            Ok(test) => {
                let former = std::mem::replace(self, next);
                // Verdicts that were forgotten since the first of these marks lifted the old ones alone.
                self.marks.follow(&parts.cache);
                self.marks.lift_all();
                former.hand_over().await;
                self.test(test, parts);
                Ok(failed)
            }
            Err(reason) => {
                // The thread that answers in time is the old one's, too.
                next.deadlines = None;
                // Before the wait: what is forgotten meanwhile is forgotten by these marks.
                self.marks.follow(&parts.cache);
                self.marks.lift_all();
                next.hand_over().await;
                Err(reason)
            }
        }
    }

    fn new(settings: &Settings, learned: Option<Learned>) -> Self {
        let places = if settings.on_access.enabled {
            places::survey(&settings.on_access.paths, &settings.on_access.exclude_types)
        } else {
            Places::default()
        };
        for gap in &places.gaps {
            tracing::warn!(path = %gap.path(), reason = %gap.reason(), "a path is not protected on access");
        }
        let learns = settings.on_access.mode == Mode::Learn;
        Self {
            coverage: Coverage::new(&places),
            over: Arc::default(),
            places,
            marks: Marks::none(),
            learned: learns.then(|| learned.unwrap_or_default()),
            running: Vec::new(),
            deadlines: None,
            self_test: None,
        }
    }

    fn test(&mut self, test: SelfTest, parts: &Parts) {
        let testing = tokio::spawn(test.run(parts.health.clone(), parts.link.clone()));
        self.self_test = Some(testing.abort_handle());
    }

    fn protect(
        &mut self,
        settings: &Settings,
        (parts, remedies): (&Parts, &Remedies),
        needs: &Needs,
        failing: &mpsc::Sender<nix::Error>,
    ) -> Result<SelfTest, String> {
        let places = &self.places.places;
        if let Some(reason) = &needs.off {
            return Err(reason.clone());
        }
        if !settings.on_access.enabled {
            return Err("switched off in the settings (on_access.enabled)".to_owned());
        }
        if settings.on_access.paths.is_empty() {
            return Err("no paths are configured (on_access.paths)".to_owned());
        }
        if places.is_empty() {
            return Err("none of the configured paths can be protected; see the gaps".to_owned());
        }
        let mode = settings.on_access.mode;
        let opens = Group::open(Watched::opens(mode)).map_err(|error| error.to_string())?;
        let probe = needs
            .probe
            .clone()
            .ok_or("the self-test's probe does not run; restart the agent")?;
        let test = SelfTest::new(places, needs.test_files.clone(), probe, mode);
        let deadlines = needs.deadlines(&parts.accounts)?;
        self.deadlines = Some(deadlines.clone());
        let watching = Watching {
            settings,
            parts,
            remedies,
            deadlines,
            needs,
            failing,
            learned: self.learned.clone(),
        };
        let whole = scope(settings, &self.places, &test);
        let opens = Arc::new(opens);
        let level = match mode {
            Mode::Block => settings.on_access.ignore_marks,
            // Nobody waits, and every open is to be seen.
            Mode::Monitor | Mode::Learn => Level::Off,
        };
        self.marks =
            Marks::start(level, &opens, &parts.cache).map_err(|error| error.to_string())?;
        let running = watching.start(
            "reader",
            opens,
            &Kind::opens(settings, parts, self.marks.clone()),
            whole.clone(),
        );
        self.running.push(running?);
        if settings.on_access.after_writes {
            let writes = Group::open(Watched::Writes).map_err(|error| error.to_string())?;
            // The self-test's file is opened, and found then.
            let mut written = whole.clone();
            written.exclude.extend_from_slice(test.paths());
            let running = watching.start(
                "writes",
                Arc::new(writes),
                &Kind::writes(settings, parts),
                written,
            );
            self.running.push(running?);
        }
        // Whoever reads is there before the first event can come.
        for running in &self.running {
            for place in places {
                running.group.mark(&place.path).map_err(|error| {
                    format!(
                        "the file system of {} cannot be marked: {error}",
                        PathBytes::from_path(&place.path)
                    )
                })?;
            }
        }
        for place in places {
            tracing::info!(path = %PathBytes::from_path(&place.path), kind = place.kind, "protecting");
        }
        tokio::spawn(self.follower(settings, parts, needs.overlays).run());
        Ok(test)
    }

    fn follower(&self, settings: &Settings, parts: &Parts, overlays: Seen) -> Follower {
        let groups = self.running.iter();
        Follower {
            groups: groups.map(|one| Arc::downgrade(&one.group)).collect(),
            rules: Rules {
                paths: chosen(settings, &self.places),
                below: settings.on_access.new_mounts,
                exclude: settings.exclude.clone(),
                overlay: self.places.overlay.clone(),
                overlays,
            },
            unusable: self.places.gaps.clone(),
            elsewhere: settings.on_access.other_namespaces,
            devices_seen: devices::are_seen(),
            coverage: self.coverage.clone(),
            accounts: Arc::clone(&parts.accounts),
            over: Arc::clone(&self.over),
        }
    }

    /// Ends where another one is marked already: what was asked here is served to its end.
    async fn hand_over(mut self) {
        // The thread that answers in time goes on with the other one's.
        self.deadlines = None;
        // Its readers are waited for, and they open tables of mounts.
        let ended = tokio::task::spawn_blocking(move || {
            // First: once a reader is told, nobody reads what comes.
            for running in &self.running {
                running.group.unmark_all();
            }
            for mut stop in self.running.iter().filter_map(|one| one.stop.as_ref()) {
                // Unsaid, whoever waits is let go by the failure table.
                let _ = stop.write_all(&[reader::HAND_OVER]);
            }
            drop(self);
        });
        let _ = ended.await;
    }

    /// No new events, then the readers' end, then whatever waits is answered as
    /// its event is dropped with its task.
    fn stop(&mut self) {
        if let Some(test) = self.self_test.take() {
            test.abort();
        }
        self.over.store(true, Ordering::Relaxed);
        self.coverage.end();
        for running in &self.running {
            running.group.unmark_all();
        }
        for mut running in self.running.drain(..) {
            running.stop = None;
            if let Some(reader) = running.reader.take() {
                let _ = reader.join();
            }
        }
        if let Some(deadlines) = self.deadlines.take() {
            deadlines.stop();
        }
    }
}

impl Drop for OnAccess {
    fn drop(&mut self) {
        self.stop();
    }
}

/// How the events of one group are served.
struct Kind {
    mode: Mode,
    told: Told,
    accounts: Arc<Accounts>,
    class: ScanClass,
    deadline: Duration,
    at_a_time: usize,
    marks: Marks,
    programs: Programs,
}

impl Kind {
    fn opens(settings: &Settings, parts: &Parts, marks: Marks) -> Self {
        Self {
            mode: settings.on_access.mode,
            told: Told::Opens,
            accounts: Arc::clone(&parts.accounts),
            class: ScanClass::OnAccess,
            deadline: settings.on_access.deadline(),
            at_a_time: settings.scan.concurrency,
            marks,
            programs: Programs::new(&settings.on_access.exclude_processes),
        }
    }

    /// Nobody waits: they come after everything else.
    fn writes(settings: &Settings, parts: &Parts) -> Self {
        Self {
            mode: Mode::Monitor,
            told: Told::Writes,
            accounts: Arc::clone(&parts.writes),
            class: ScanClass::OnDemand,
            deadline: WRITES_WITHIN,
            at_a_time: WRITES_AT_A_TIME.min(settings.scan.concurrency),
            // Marks are of the group that holds opens.
            marks: Marks::none(),
            // Whoever wrote it, somebody else may open it.
            programs: Programs::default(),
        }
    }
}

/// What the readers share.
struct Watching<'a> {
    settings: &'a Settings,
    parts: &'a Parts,
    remedies: &'a Remedies,
    deadlines: Deadlines,
    needs: &'a Needs,
    failing: &'a mpsc::Sender<nix::Error>,
    learned: Option<Learned>,
}

impl Watching<'_> {
    /// Starts a group's reader and whoever serves it.
    fn start(
        &self,
        name: &'static str,
        group: Arc<Group>,
        kind: &Kind,
        scope: Scope,
    ) -> Result<Running, String> {
        let (settings, parts) = (self.settings, self.parts);
        let (queue, queued) = mpsc::channel(settings.on_access.queue);
        let desk = Arc::new(Desk {
            responder: Arc::clone(&group) as Arc<dyn Respond>,
            accounts: Arc::clone(&kind.accounts),
            table: settings.failure_table(),
            mode: kind.mode,
        });
        let triage = Triage {
            desk,
            scope,
            programs: kind.programs.clone(),
            cache: Arc::clone(&parts.cache),
            marks: kind.marks.clone(),
            deferred: parts.deferred.clone(),
            told: kind.told,
            learned: self.learned.clone().filter(|_| kind.told == Told::Opens),
            deadlines: self.deadlines.clone(),
            deadline: kind.deadline,
            max_scan_bytes: Arc::clone(&parts.max_scan_bytes),
            fd_reserve_from: reserve_from(self.needs.descriptors, kind.told),
            queue,
            turns: Arc::default(),
        };
        self.needs.readers.add(&group, Arc::clone(&triage.turns));
        let asking = 2 * kind.at_a_time;
        let guard = Guard {
            scanner: Scanner::new(parts.link.clone(), asking, settings.scan.options())
                .keeping(Private::new(&settings.private)),
            class: kind.class,
            max_age_s: settings.on_access.max_verdict_age_s,
            cache: Arc::clone(&parts.cache),
            marks: kind.marks.clone(),
            index: Arc::clone(&parts.index),
            accounts: Arc::clone(&kind.accounts),
            deferred: parts.deferred.clone(),
            told: kind.told,
            learned: self.learned.clone().filter(|_| kind.told == Told::Opens),
            detections: parts.detections.clone(),
            remedies: self.remedies.clone(),
            test_files: self.needs.test_files.clone(),
            tenant: parts.tenant.clone(),
            on_time: Arc::new(Semaphore::new(kind.at_a_time)),
            late: Arc::new(Semaphore::new(kind.at_a_time.div_ceil(2))),
        };
        tokio::spawn(Arc::new(guard).run(queued));
        let (stop, stopped) = UnixStream::pair().map_err(|error| error.to_string())?;
        let (reading, failing) = (Arc::clone(&group), self.failing.clone());
        let reader = threads::vital(name, move || {
            if let Err(error) = reader::run(&reading, &stopped, &triage) {
                let _ = failing.try_send(error);
            }
        })
        .map_err(|error| error.to_string())?;
        Ok(Running {
            group,
            stop: Some(stop),
            reader: Some(reader),
        })
    }
}

/// The descriptor's number from which on a group of this kind answers by the failure table,
/// where the process may have so many. The kernel gives the lowest that is free: a number
/// says how many are in use. Files that were written wait for long, in thousands, and
/// whoever writes them must not have opens let through: half is left to those.
fn reserve_from(descriptors: u64, told: Told) -> i32 {
    let all = descriptors.saturating_sub(FD_RESERVE);
    let from = match told {
        Told::Opens => all,
        Told::Writes => all / 2,
    };
    i32::try_from(from).unwrap_or(i32::MAX)
}

/// The protected paths: without links, and as the settings name those that could not be
/// used. These are not looked at again: a server may not answer.
fn chosen(settings: &Settings, places: &Places) -> Vec<PathBuf> {
    let mut paths: Vec<_> = places
        .places
        .iter()
        .map(|place| place.path.clone())
        .collect();
    let unusable = |path: &&PathBuf| {
        let mut gaps = places.gaps.iter();
        gaps.any(|gap| gap.at() == Some(path.as_path()))
    };
    let named = settings.on_access.paths.iter();
    paths.extend(named.filter(unusable).cloned());
    paths
}

fn scope(settings: &Settings, places: &Places, test: &SelfTest) -> Scope {
    let mut paths = chosen(settings, places);
    paths.extend(test.paths().iter().cloned());
    Scope {
        paths,
        exclude: settings.exclude.clone(),
        exclude_types: places::numbers(&settings.on_access.exclude_types),
        max_bytes: settings.on_access.max_bytes,
    }
}
