//! The session with the Integration Server: the list comes, reports and
//! detections go.
//!
//! ```text
//!  no session ── connect (waits 1 s, 2 s, … 30 s) ─► session ─► poll, report, send
//!       ▲                                                │ ended
//!       └────────────────────────────────────────────────┘
//! ```
//!
//! The policy comes when a session opens, and whenever it changes; what is made of it is
//! reported.
//!
//! Owns one task. While the agent has no list it asks every 30 s, then as often as
//! the server says (5 minutes); pushed lists apply at once. The agent works without
//! all of this, by the list it keeps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_daemon::control::{ControlError, Session};
use palisade_daemon::membership::Membership;
use palisade_protocol::bounded::{List, Text};
use palisade_protocol::control::{AgentReport, FromServer, Hello, HostFacts, SvmList, ToServer};
use palisade_protocol::policy::Policy;
use tokio::sync::{Notify, mpsc, watch};
use uuid::Uuid;

use crate::deferred::Deferred;
use crate::health::{Health, ServerState};
use crate::list::ListFile;
use crate::maintenance::TokenFile;
use crate::pace::jittered;
use crate::policy::board::Board;
use crate::quarantine::escrow::Escrow;
use crate::selection::explained::Explanation;
use crate::spool::{Spool, now_ms};

/// Between attempts while there is no list, and the longest wait with one.
const RETRY: Duration = Duration::from_secs(30);
/// The first wait after a session ended.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// The bounds of what a server may ask for between reports.
const REPORT_BOUNDS: (u64, u64) = (5, 3600);

/// The list in force, watched by the keeper.
pub type Lists = watch::Sender<Option<Arc<SvmList>>>;

/// The last policy that came.
pub type Policies = watch::Sender<Option<Arc<Policy>>>;

/// What the task works with.
pub struct Control {
    /// Who this is, and where the servers are.
    pub membership: Membership,
    /// What is said of the machine.
    pub host: HostFacts,
    /// Where lists go.
    pub lists: Lists,
    /// Where they are kept.
    pub file: ListFile,
    /// What was found.
    pub spool: Spool,
    /// Told when something was spooled.
    pub spooled: Arc<Notify>,
    /// What is reported.
    pub health: Health,
    /// The quarantine's key.
    pub escrow: Escrow,
    /// The maintenance token, if there is one.
    pub token: TokenFile,
    /// The guest's time without verdicts, which is reported.
    pub deferred: Deferred,
    /// Why which Protection Server is used, which the server may ask.
    pub explanation: watch::Receiver<Arc<Explanation>>,
    /// Where policies go; the last one counts.
    pub policies: Policies,
    /// What was made of them.
    pub board: Board,
}

/// The greeting of this agent.
pub fn hello(host: &HostFacts) -> Hello {
    Hello {
        version: Text::cut(crate::VERSION),
        host: host.clone(),
    }
}

impl Control {
    /// Runs for ever.
    pub async fn run(self) {
        let mut wait = FIRST_RETRY;
        loop {
            match Session::connect(&self.membership, hello(&self.host)).await {
                Ok((session, welcome, pushed)) => {
                    tracing::info!(version = %welcome.version, "connected to the Integration Server");
                    self.health.set_server(ServerState::connected());
                    self.health.set_clock(welcome.server_time_ms, now_ms());
                    let every =
                        u64::from(welcome.report_every_s).clamp(REPORT_BOUNDS.0, REPORT_BOUNDS.1);
                    let ended = self
                        .serve(&session, pushed, Duration::from_secs(every))
                        .await;
                    session.close();
                    let reason = ended
                        .err()
                        .map_or("it ended".to_owned(), |error| error.to_string());
                    tracing::warn!(%reason, "lost the Integration Server");
                    self.health.set_server(ServerState::disconnected(&reason));
                    wait = FIRST_RETRY;
                }
                Err(error) => {
                    let reason = error.to_string();
                    if self.health.set_server(ServerState::disconnected(&reason)) {
                        tracing::warn!(%reason, "no Integration Server");
                    }
                    wait = if self.lists.borrow().is_none() {
                        RETRY
                    } else {
                        (wait * 2).min(RETRY)
                    };
                }
            }
            tokio::time::sleep(jittered(wait, 0.9, 1.1)).await;
        }
    }

    async fn serve(
        &self,
        session: &Session,
        mut pushed: mpsc::Receiver<FromServer>,
        every: Duration,
    ) -> Result<(), ControlError> {
        self.fetch(session).await?;
        // Before the report: a change while that travels is reported next.
        let mut posture = self.health.posture();
        let mut exposure = self.deferred.turns();
        let mut reported = self.report(session).await?;
        let mut policy = self.board.changes();
        self.ask_policy(session).await?;
        self.report_policy(session).await?;
        self.escrow.settle(session).await?;
        let mut turn = tokio::time::interval_at(tokio::time::Instant::now() + every, every);
        self.spooled.notify_one();
        loop {
            let without_list = self.lists.borrow().is_none();
            tokio::select! {
                () = session.ended() => return Ok(()),
                Some(message) = pushed.recv() => match message {
                    FromServer::SvmList(list) => self.take(list),
                    FromServer::Policy(policy) => self.take_policy(policy),
                    FromServer::Explain { number } => self.explain(session, number).await?,
                    _ => {}
                },
                Ok(()) = posture.changed() => reported = self.report(session).await?,
                Ok(()) = exposure.changed() => reported = self.report(session).await?,
                () = tokio::time::sleep(RETRY), if !reported => {
                    reported = self.report(session).await?;
                }
                () = policy.next() => self.report_policy(session).await?,
                () = self.spooled.notified() => {
                    self.deliver(session).await?;
                    // What was found may be the first that was moved.
                    self.escrow.settle(session).await?;
                }
                _ = turn.tick() => {
                    self.fetch(session).await?;
                    // One that was pushed while too many waited was dropped.
                    self.ask_policy(session).await?;
                    reported = self.report(session).await?;
                    self.deliver(session).await?;
                }
                () = tokio::time::sleep(RETRY), if without_list => self.fetch(session).await?,
            }
        }
    }

    async fn fetch(&self, session: &Session) -> Result<(), ControlError> {
        let etag = self.lists.borrow().as_ref().map_or(0, |list| list.etag);
        let answer = session.request(&ToServer::GetSvmList { etag }).await;
        later(answer.map(|answer| {
            if let FromServer::SvmList(list) = answer {
                self.take(list);
            }
        }))
        .map(drop)
    }

    fn take(&self, list: SvmList) {
        tracing::info!(
            etag = list.etag,
            svms = list.svms.len(),
            "took the list of Protection Servers"
        );
        if let Err(error) = self.file.save(&list) {
            tracing::error!(%error, "the list of Protection Servers cannot be kept");
        }
        self.lists.send_replace(Some(Arc::new(list)));
    }

    async fn ask_policy(&self, session: &Session) -> Result<(), ControlError> {
        let held = self.board.in_force();
        let asked = ToServer::GetPolicy { held };
        let answer = session.request(&asked).await;
        let answer = answer.map(|answer| {
            if let FromServer::Policy(policy) = answer {
                self.take_policy(policy);
            }
        });
        // What the server cannot say now is asked for with the next turn.
        later(answer).map(drop)
    }

    fn take_policy(&self, policy: Policy) {
        self.policies.send_replace(Some(Arc::new(policy)));
    }

    async fn report_policy(&self, session: &Session) -> Result<(), ControlError> {
        let report = ToServer::PolicyReport(self.board.report());
        later(session.request(&report).await.map(drop)).map(drop)
    }

    /// False if the server does not take it now.
    async fn report(&self, session: &Session) -> Result<bool, ControlError> {
        let posture = self.health.posture().borrow().clone();
        let report = AgentReport {
            protection: posture.protection,
            svm: posture.svm,
            events: self.health.accounts().snapshot().reported(),
            clock_ms: now_ms(),
            exposure: self.deferred.windows_now().reported(),
            maintenance: self.granted().await,
        };
        let taken = session.request(&ToServer::AgentReport(report)).await;
        later(taken.map(drop))
    }

    async fn explain(&self, session: &Session, number: u64) -> Result<(), ControlError> {
        let shown = self.explanation.borrow().shown(Instant::now());
        let choice = ToServer::Choice(shown.told(number));
        later(session.request(&choice).await.map(drop)).map(drop)
    }

    /// The maintenance token that is in force.
    async fn granted(&self) -> Option<Uuid> {
        let (token, identity) = (self.token.clone(), self.membership.identity.clone());
        // It is a file.
        let granted = tokio::task::spawn_blocking(move || token.grant(&identity, now_ms()));
        Some(granted.await.ok()??.ok()?.id)
    }

    async fn deliver(&self, session: &Session) -> Result<(), ControlError> {
        deliver(session, &self.spool).await
    }
}

/// Whether it is done. What the server cannot do now, as without its store, is tried again
/// later: the session is as good as before.
fn later(done: Result<(), ControlError>) -> Result<bool, ControlError> {
    match done {
        Err(error) if error.is_for_now() => {
            tracing::warn!(%error, "it is tried again later");
            Ok(false)
        }
        done => done.map(|()| true),
    }
}

/// Sends all that is spooled; a batch is forgotten once the server has it.
///
/// # Errors
/// The session's. A batch that the server refuses stays, and is tried again later.
pub async fn deliver(session: &Session, spool: &Spool) -> Result<(), ControlError> {
    loop {
        let from = spool.clone();
        let next = tokio::task::spawn_blocking(move || from.next()).await;
        let batch = match next {
            Ok(Ok(Some(batch))) => batch,
            Ok(Ok(None)) | Err(_) => return Ok(()),
            Ok(Err(error)) => {
                tracing::error!(%error, "the spool cannot be read");
                return Ok(());
            }
        };
        let message = ToServer::Detections(List::cut(batch.detections.iter().cloned()));
        match session.request(&message).await {
            Ok(_) => {
                if let Err(error) = spool.done(&batch) {
                    tracing::error!(%error, "a sent batch cannot be removed from the spool");
                    return Ok(());
                }
            }
            Err(ControlError::Denied(denied)) => {
                tracing::warn!(reason = %denied.message, "the Integration Server does not take detections now");
                return Ok(());
            }
            Err(error) => return Err(error),
        }
    }
}

/// Fetches the list once and keeps it: for a scan without a running daemon.
///
/// # Errors
/// The session's.
pub async fn fetch_once(
    membership: &Membership,
    host: &HostFacts,
    etag: u64,
) -> Result<(Session, Option<SvmList>), ControlError> {
    let (session, _, _) = Session::connect(membership, hello(host)).await?;
    match session.request(&ToServer::GetSvmList { etag }).await? {
        FromServer::SvmList(list) => Ok((session, Some(list))),
        _ => Ok((session, None)),
    }
}

#[cfg(test)]
mod tests {
    use palisade_protocol::control::{Denied, DeniedCode};

    use super::*;

    /// A server without its store for a moment keeps its sessions.
    #[test]
    fn what_cannot_be_done_now_ends_no_session() {
        let denied = |code| {
            let message = Text::default();
            Err(ControlError::Denied(Denied { code, message }))
        };
        assert!(later(Ok(())).unwrap());
        assert!(!later(denied(DeniedCode::Unavailable)).unwrap());
        assert!(later(denied(DeniedCode::NotAdmitted)).is_err());
        assert!(later(Err(ControlError::Closed)).is_err());
    }
}
