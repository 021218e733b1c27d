//! What the Integration Server is told, and how the session with it is kept.
//!
//! ```text
//!  connect ──► SvmReport ──► on a change, every report_every_s ──ends──► wait ──► connect
//! ```
//!
//! What is wrong here ([`crate::problems`]) is looked for once a second, and told at once.
//! Agents are served whether or not the server is there. While it is not, their
//! certificates are honoured for [`EXPIRY_GRACE`] beyond their end, because
//! nobody could have renewed them.
//!
//! The server may order something about definitions ([`crate::definitions::desk`]):
//! an SVM has no login. Answers come when it is done; reports go on meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use palisade_daemon::control::{ControlError, Session};
use palisade_daemon::host;
use palisade_daemon::membership::Membership;
use palisade_protocol::bounded::{List, Text};
use palisade_protocol::control::{
    FromServer, Hello, InfrastructurePath, LicenceState, MAX_TAGS, Name, SvmAddress, SvmReport,
    ToServer,
};
use palisade_protocol::definitions::{self, DefinitionsAnswer, DefinitionsOrder};
use palisade_protocol::ids::TenantId;
use palisade_protocol::problem::Problems;
use palisade_protocol::scan::LoadHint;
use palisade_protocol::trust::ExpiryGrace;
use tokio::sync::{Notify, mpsc};
use tokio::time::MissedTickBehavior;

use crate::agents::Agents;
use crate::cache::now_ms;
use crate::definitions::desk::{Answer, Desk, Order};
use crate::listener::Handle;
use crate::problems::Watch;
use crate::repository::Follower;
use crate::scan::Scanner;
use crate::settings::{Licence, Settings};

/// How long an expired certificate is honoured while the server is away.
pub const EXPIRY_GRACE: Duration = Duration::from_secs(90 * 24 * 3600);
/// First and longest wait between two attempts to connect.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Between two reports, as far as the server does not say otherwise within these
/// bounds.
const REPORT_EVERY: std::ops::RangeInclusive<u64> = 1..=3600;
/// How long until a report is made again that the server could not take.
const LATER: Duration = Duration::from_secs(30);
/// How often the load is looked at for its average.
const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// What stays the same from report to report.
#[derive(Debug, Clone)]
pub struct Standing {
    /// Where agents reach this Protection Server.
    pub addresses: Vec<SvmAddress>,
    /// Where it stands.
    pub path: InfrastructurePath,
    /// Its licence.
    pub licence: LicenceState,
    /// Which agents may use it.
    pub tags: Vec<Name>,
    /// Whose agents may.
    pub tenants: Vec<TenantId>,
}

impl Standing {
    /// What the settings say, for these addresses.
    pub fn new(settings: &Settings, addresses: Vec<SvmAddress>) -> Self {
        Self {
            addresses,
            path: InfrastructurePath {
                datacenter: Text::cut(&settings.path.datacenter),
                cluster: Text::cut(&settings.path.cluster),
                hypervisor: Text::cut(&settings.path.hypervisor),
            },
            licence: match settings.licence {
                Licence::BuiltIn => LicenceState::Valid,
            },
            tags: settings
                .tags
                .iter()
                .take(MAX_TAGS)
                .map(|tag| Text::cut(tag))
                .collect(),
            tenants: settings.tenants.clone(),
        }
    }
}

/// Makes reports, and the sessions that carry them.
#[derive(Debug)]
pub struct Reporter {
    standing: Standing,
    scanner: Scanner,
    agents: Agents<Handle>,
    grace: ExpiryGrace,
    desk: Desk,
    problems: Arc<Watch>,
    follower: Option<Arc<Follower>>,
    changed: Notify,
    reported: Notify,
    draining: AtomicBool,
    average: Average,
}

impl Reporter {
    /// A reporter that has said nothing yet. Certificates are honoured with `grace`.
    pub fn new(
        standing: Standing,
        scanner: Scanner,
        agents: Agents<Handle>,
        grace: ExpiryGrace,
        desk: Desk,
        problems: Arc<Watch>,
        follower: Option<Arc<Follower>>,
    ) -> Arc<Self> {
        grace.set(EXPIRY_GRACE);
        Arc::new(Self {
            standing,
            scanner,
            agents,
            grace,
            desk,
            problems,
            follower,
            changed: Notify::new(),
            reported: Notify::new(),
            draining: AtomicBool::new(false),
            average: Average::default(),
        })
    }

    /// Something changed that the server should know at once.
    pub fn changed(&self) {
        self.changed.notify_one();
    }

    /// Says that it takes no new agents; waits at most `patience` for the server to
    /// hear it.
    pub async fn drain(&self, patience: Duration) {
        self.draining.store(true, Ordering::Relaxed);
        let reported = self.reported.notified();
        self.changed.notify_one();
        // Agents notice a dead Protection Server without the server's word.
        let _ = tokio::time::timeout(patience, reported).await;
    }

    /// Keeps a session with the server, for ever.
    pub async fn run(self: Arc<Self>, membership: Membership) {
        let sampler = Arc::clone(&self);
        let sampling = tokio::spawn(async move { sampler.sample().await });
        let mut wait = RETRY.0;
        let mut complained = false;
        loop {
            let hello = Hello {
                version: Text::cut(env!("CARGO_PKG_VERSION")),
                host: host::facts(),
            };
            match Session::connect(&membership, hello).await {
                Ok((session, welcome, mut pushed)) => {
                    tracing::info!(version = %welcome.version, "connected to the Integration Server");
                    self.grace.set(Duration::ZERO);
                    if let Some(follower) = &self.follower {
                        follower.connected(&session);
                    }
                    (wait, complained) = (RETRY.0, false);
                    let every = u64::from(welcome.report_every_s);
                    let every = every.clamp(*REPORT_EVERY.start(), *REPORT_EVERY.end());
                    let ended = tokio::select! {
                        ended = self.report(&session, Duration::from_secs(every)) => ended,
                        () = session.ended() => ControlError::Closed,
                        () = self.obey(&session, &mut pushed) => ControlError::Closed,
                    };
                    session.close();
                    self.grace.set(EXPIRY_GRACE);
                    tracing::warn!(error = %ended, "the session with the Integration Server ended; agents are served meanwhile");
                }
                Err(error) if complained => tracing::debug!(%error, "no Integration Server"),
                Err(error) => {
                    complained = true;
                    tracing::warn!(%error, "no Integration Server; agents are served meanwhile, and it is tried again");
                }
            }
            tokio::time::sleep(jittered(wait)).await;
            wait = (wait * 2).min(RETRY.1);
            if sampling.is_finished() {
                return;
            }
        }
    }

    async fn report(&self, session: &Session, every: Duration) -> ControlError {
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // The first tick is now.
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.changed.notified() => {}
            }
            let report = self.current();
            let draining = report.draining;
            match session.request(&ToServer::SvmReport(report)).await {
                Ok(_) if draining => self.reported.notify_waiters(),
                Ok(_) => {}
                // The next report is as good.
                Err(error) if error.is_for_now() => {
                    tracing::warn!(%error, "the Integration Server does not take a report now");
                    ticks.reset_after(LATER.min(every));
                }
                Err(error) => return error,
            }
        }
    }

    /// Carries out what the server orders, until the session is over. An order that is
    /// being carried out then goes on.
    async fn obey(&self, session: &Session, pushed: &mut mpsc::Receiver<FromServer>) {
        while let Some(message) = pushed.recv().await {
            let command = match message {
                FromServer::Definitions(command) => command,
                FromServer::Published { version } => {
                    tracing::debug!(version, "the site's definitions were published");
                    if let Some(follower) = &self.follower {
                        follower.published();
                    }
                    continue;
                }
                _ => {
                    tracing::debug!("a message that is none for a Protection Server was left");
                    continue;
                }
            };
            tracing::info!(order = ?command.order, "the Integration Server's order");
            let (desk, session) = (self.desk.clone(), session.clone());
            let follower = self.follower.clone();
            // As many at a time as the desk takes, and a refusal for each more.
            tokio::spawn(async move {
                if let (DefinitionsOrder::Refresh, Some(follower)) = (&command.order, follower) {
                    // What is wrong with it is a problem, and said as such.
                    let _ = follower.pull(&session).await;
                }
                let answer = match Order::of(command.order) {
                    Some(order) => desk.order(order).await,
                    None => Answer {
                        done: Ok(String::new()),
                        status: desk.status(),
                    },
                };
                let answer = ToServer::Definitions(DefinitionsAnswer {
                    number: command.number,
                    failure: answer.done.err(),
                    status: answer.status,
                });
                if let Err(error) = session.request(&answer).await {
                    tracing::info!(%error, "the Integration Server did not take an answer");
                }
            });
        }
        session.ended().await;
    }

    fn current(&self) -> SvmReport {
        SvmReport {
            addresses: List::cut(self.standing.addresses.iter().cloned()),
            path: self.standing.path.clone(),
            licence: self.standing.licence,
            average_load: self.average.take().unwrap_or_else(|| self.scanner.load()),
            agents: self.agents.count(),
            generations: self.scanner.generations(),
            draining: self.draining.load(Ordering::Relaxed),
            tags: List::cut(self.standing.tags.iter().cloned()),
            problems: self.problems.look(now_ms()),
            tenants: List::cut(self.standing.tenants.iter().cloned()),
            followed: self.followed(),
        }
    }

    /// The site's generation that is in force.
    fn followed(&self) -> Option<u64> {
        let follower = self.follower.as_ref()?;
        let status = self.desk.status();
        let active = status
            .generations
            .iter()
            .find(|one| one.standing == definitions::Standing::Active)?;
        follower.folder().number_of(&active.origin)
    }

    async fn sample(&self) {
        let mut ticks = tokio::time::interval(SAMPLE_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut told = Problems::default();
        loop {
            ticks.tick().await;
            self.average.add(self.scanner.load());
            let problems = self.problems.look(now_ms());
            if are_others(&told, &problems) {
                self.changed();
            }
            told = problems;
        }
    }
}

/// Whether problems came or went; that the same ones have other details by now can wait.
fn are_others(before: &Problems, now: &Problems) -> bool {
    let (mut before, mut now) = (before.iter(), now.iter());
    loop {
        match (before.next(), now.next()) {
            (None, None) => return false,
            (Some(one), Some(two)) if one.kind.is_same_as(&two.kind) => {}
            _ => return true,
        }
    }
}

/// An average since the last report.
#[derive(Debug, Default)]
struct Average {
    samples: AtomicU64,
    permille: AtomicU64,
    wait_ms: AtomicU64,
}

impl Average {
    fn add(&self, load: LoadHint) {
        self.permille
            .fetch_add(load.load_permille.into(), Ordering::Relaxed);
        self.wait_ms
            .fetch_add(load.queue_wait_ms.into(), Ordering::Relaxed);
        self.samples.fetch_add(1, Ordering::Relaxed);
    }

    fn take(&self) -> Option<LoadHint> {
        let samples = self.samples.swap(0, Ordering::Relaxed);
        let permille = self.permille.swap(0, Ordering::Relaxed);
        let wait_ms = self.wait_ms.swap(0, Ordering::Relaxed);
        (samples > 0).then(|| LoadHint {
            load_permille: u16::try_from(permille / samples).unwrap_or(u16::MAX),
            queue_wait_ms: u32::try_from(wait_ms / samples).unwrap_or(u32::MAX),
        })
    }
}

/// Half of it to all of it, so that Protection Servers do not come back at once.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_average_is_over_what_was_added_since() {
        let average = Average::default();
        assert_eq!(average.take(), None);
        average.add(LoadHint {
            load_permille: 100,
            queue_wait_ms: 0,
        });
        average.add(LoadHint {
            load_permille: 300,
            queue_wait_ms: 10,
        });
        assert_eq!(
            average.take(),
            Some(LoadHint {
                load_permille: 200,
                queue_wait_ms: 5
            })
        );
        assert_eq!(average.take(), None);
    }
}
