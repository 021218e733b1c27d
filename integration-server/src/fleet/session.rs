//! One enrolled member's session: its sockets, its queue, its time limits.
//!
//! ```text
//!   reader:  frame ─► Conversation ─► Fleet::answer ─► queue (bounded)
//!   writer:  queue, questions, "lists and policies may have changed" ─► Sealer ─► frame
//! ```
//!
//! Both run in one task. The writer alone seals, so that sequences on the wire are
//! in order, and it alone knows which list the agent has: the last that was written. So
//! no older list comes after a newer one without the newest behind it. A peer that does
//! not take what it is sent stops its own reader by the full queue, and is cut after
//! [`WRITE_TIMEOUT`].

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use palisade_protocol::control::{ControlFrame, Denied, DeniedCode, FromServer, Hello, SvmList};
use palisade_protocol::envelope::{Envelope, Sealer};
use palisade_protocol::frame::{self, FrameError};
use palisade_protocol::policy::Fingerprint;
use palisade_protocol::spiffe::SpiffeId;
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use super::clones::Machine;
use super::conversation::{Asked, Conversation, Member};
use super::desk::denied;
use super::lost::End;
use super::policies::Told;
use super::sessions::{Cut, Taken};
use super::{EXPIRY_GRACE, Fleet, asking, pulls};
use crate::store::AgentRecord;
use crate::time;

/// How long the greeting may take.
const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one frame may take to be sent.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers that may wait to be sent.
const MAX_QUEUED: usize = 16;
/// Changes of the list that come together are one push.
const DEBOUNCE: Duration = Duration::from_millis(300);
/// How long a refusal may take to reach the peer.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What the writer sends.
enum Outgoing {
    /// Begins an epoch; pushes for this domain follow.
    Welcome {
        epoch: u64,
        answers: u64,
        product_uuid: Option<Uuid>,
    },
    /// An answer.
    Answer {
        message: FromServer,
        answers: u64,
        /// The version of the list that the agent has by this.
        list: Option<u64>,
    },
    /// The agent asks for its policy: answered in one order with pushes of it.
    Policy {
        held: Option<Fingerprint>,
        answers: u64,
    },
    /// A refusal; the session ends.
    Denied(Denied),
}

/// One session, seen by both its halves.
struct Session<'a> {
    fleet: &'a Fleet,
    connection: &'a Connection,
    peer: SpiffeId,
    member: Member,
    /// Whether it was let in.
    admitted: AtomicBool,
    /// Where questions to it go.
    questions: mpsc::Sender<asking::Numbered>,
}

/// Serves a session until it ends.
pub async fn run(fleet: &Fleet, connection: Connection, peer: SpiffeId, member: Member) {
    let opened = tokio::time::timeout(GREETING_TIMEOUT, connection.accept_bi()).await;
    let Ok(Ok((send, receive))) = opened else {
        return Cut::Silent.close(&connection);
    };
    let own = fleet.own.identity();
    let sealer = match Sealer::new(own.clone(), peer.clone(), 0) {
        Ok(sealer) => sealer,
        Err(error) => {
            tracing::error!(%error, "the server's own key cannot sign");
            return Cut::Refused.close(&connection);
        }
    };
    let trust = fleet.authority.trust();
    trust.grace.set(EXPIRY_GRACE);
    let conversation = Conversation::new(member.clone(), peer.clone(), own.id().clone(), trust);
    let (questions, asked) = asking::queue();
    let session = Session {
        fleet,
        connection: &connection,
        peer,
        member,
        admitted: AtomicBool::new(false),
        questions,
    };
    let (queue, queued) = mpsc::channel(MAX_QUEUED);
    tokio::join!(
        async {
            // The queue's end is dropped with the reader, and ends the writer.
            let queue = queue;
            session.read(conversation, receive, &queue).await;
        },
        session.write(sealer, send, queued, asked),
        async {
            if let Member::Svm(_) = session.member {
                pulls::serve(&fleet.definitions, &connection, &session.admitted).await;
            }
        },
        async {
            // At once, whatever the others still wait for. They end by closing it.
            connection.closed().await;
            session.gone();
        },
    );
    session.ended();
}

impl Session<'_> {
    async fn read(
        &self,
        mut conversation: Conversation,
        mut receive: RecvStream,
        queue: &mpsc::Sender<Outgoing>,
    ) {
        let Some(product_uuid) = self.greet(&mut conversation, &mut receive, queue).await else {
            return;
        };
        let patience = match self.member {
            Member::Agent { .. } => self.fleet.settings.agent_lost_after,
            Member::Svm(_) => self.fleet.settings.svm_lost_after,
        };
        loop {
            let Some(envelope) = self.next(&mut receive, patience.get(), queue).await else {
                return;
            };
            let now_ms = time::now_ms();
            let (asked, answers) = match conversation.take(&envelope, now_ms) {
                Ok(taken) => taken,
                Err(refused) => return self.refuse(refused.denied(), queue).await,
            };
            if let Asked::Policy { held } = asked {
                let policy = Outgoing::Policy { held, answers };
                match queue.send(policy).await {
                    Ok(()) => continue,
                    Err(_) => return,
                }
            }
            let held = match &asked {
                Asked::List { etag, .. } => Some(*etag),
                _ => None,
            };
            // What a replaced session still says is older than what its successor says.
            if !self.is_current() {
                return;
            }
            let message = self
                .fleet
                .answer(&self.peer, product_uuid, asked, now_ms, || {
                    self.is_current()
                })
                .await;
            let list = match &message {
                FromServer::SvmList(list) => Some(list.etag),
                FromServer::NotModified => held,
                _ => None,
            };
            let answer = Outgoing::Answer {
                message,
                answers,
                list,
            };
            if queue.send(answer).await.is_err() {
                return;
            }
        }
    }

    /// Takes the greeting; gives the product UUID that the member claims.
    async fn greet(
        &self,
        conversation: &mut Conversation,
        receive: &mut RecvStream,
        queue: &mpsc::Sender<Outgoing>,
    ) -> Option<Option<Uuid>> {
        let envelope = self.next(receive, GREETING_TIMEOUT, queue).await?;
        let now_ms = time::now_ms();
        let (hello, answers) = match conversation.take(&envelope, now_ms) {
            Ok((Asked::Hello(hello), answers)) => (hello, answers),
            // `take` lets nothing but Hello through here.
            Ok(_) => return None,
            Err(refused) => {
                self.refuse(refused.denied(), queue).await;
                return None;
            }
        };
        // Entered before it is admitted: a revocation that comes meanwhile finds it.
        let began = self.fleet.sessions.begin(
            self.member.uuid(),
            self.connection,
            Machine::of(&hello.host),
            time::steady_ms(),
        );
        if let Err(Taken) = began {
            let why = "another machine with this identity is connected, and both cannot be let \
                       in: one was cloned from the other; let this one join anew with a token";
            self.refuse(denied(DeniedCode::NotAdmitted, why), queue)
                .await;
            return None;
        }
        let admitted = match self.fleet.admit(&self.member, &hello, now_ms).await {
            Ok(admitted) => admitted,
            Err(denied) => {
                self.refuse(denied, queue).await;
                return None;
            }
        };
        conversation.greeted(admitted.epoch);
        self.began(&hello, &admitted.name);
        let welcome = Outgoing::Welcome {
            epoch: admitted.epoch,
            answers,
            product_uuid: hello.host.product_uuid,
        };
        queue.send(welcome).await.ok()?;
        Some(hello.host.product_uuid)
    }

    /// The next envelope; `None` when the session is over.
    async fn next(
        &self,
        receive: &mut RecvStream,
        patience: Duration,
        queue: &mpsc::Sender<Outgoing>,
    ) -> Option<Envelope> {
        // Cancelled reads lose their place, and a cancelled one ends the session.
        match tokio::time::timeout(patience, frame::read::<ControlFrame>(receive)).await {
            Ok(Ok(Some(ControlFrame::Envelope(envelope)))) => Some(envelope),
            Ok(Ok(None) | Err(FrameError::Io(_))) => None,
            Ok(Ok(Some(_))) => {
                let why = "an enrolled session carries envelopes only";
                self.refuse(super::conversation::Refused::Order(why).denied(), queue)
                    .await;
                None
            }
            Ok(Err(FrameError::Codec(error))) => {
                tracing::warn!(peer = %self.peer, %error, "malformed frame");
                let why = "a frame is malformed";
                self.refuse(super::conversation::Refused::Order(why).denied(), queue)
                    .await;
                None
            }
            Err(_) => {
                tracing::info!(peer = %self.peer, "silent for too long");
                Cut::Silent.close(self.connection);
                None
            }
        }
    }

    async fn refuse(&self, denied: Denied, queue: &mpsc::Sender<Outgoing>) {
        tracing::warn!(peer = %self.peer, code = ?denied.code, "session refused: {}", denied.message);
        // An error means that the writer has ended the session already.
        let _ = queue.send(Outgoing::Denied(denied)).await;
    }

    async fn write(
        &self,
        mut sealer: Sealer,
        mut send: SendStream,
        mut queued: mpsc::Receiver<Outgoing>,
        mut asked: mpsc::Receiver<asking::Numbered>,
    ) {
        let mut changes = self.fleet.changes();
        let mut published = self.fleet.definitions.published();
        let is_svm = matches!(self.member, Member::Svm(_));
        let (mut domain, mut agent) = (None, None);
        let mut told = Told::default();
        let (mut welcomed, mut pushes) = (false, false);
        // The version of the list that the agent has; 0 when it has none.
        let mut held = 0;
        let mut push_at = None;
        loop {
            let messages = tokio::select! {
                biased;
                outgoing = queued.recv() => match outgoing {
                    Some(Outgoing::Welcome { epoch, answers, product_uuid }) => {
                        sealer.set_epoch(epoch);
                        welcomed = true;
                        pushes = !is_svm;
                        if *published.borrow() > 0 {
                            published.mark_changed();
                        }
                        domain = product_uuid;
                        agent = self.agent().await.unwrap_or_default();
                        let welcome = self.fleet.welcome(epoch, time::now_ms());
                        vec![(FromServer::Welcome(welcome), Some(answers))]
                    }
                    Some(Outgoing::Answer { message, answers, list }) => {
                        if let Some(list) = list {
                            held = list;
                            // It may have changed since the answer was made.
                            push_at.get_or_insert_with(Instant::now);
                        }
                        vec![(message, Some(answers))]
                    }
                    Some(Outgoing::Policy { held, answers }) => {
                        let known = match agent.take() {
                            Some(known) => Ok(Some(known)),
                            None => self.agent().await,
                        };
                        let message = match known {
                            Ok(known) => {
                                agent = known;
                                match &agent {
                                    Some(agent) => told.answer(self.fleet, agent, held),
                                    None => FromServer::NotModified,
                                }
                            }
                            // It asks again; unsaid, it would take what it has for right.
                            Err(denied) => FromServer::Denied(denied),
                        };
                        vec![(message, Some(answers))]
                    }
                    Some(Outgoing::Denied(denied)) => {
                        match self.send(&mut send, &ControlFrame::Denied(denied)).await {
                            true => continue,
                            false => return,
                        }
                    }
                    None => break,
                },
                // Nothing goes before Welcome.
                Some(question) = asked.recv(), if welcomed => vec![(question.into(), None)],
                () = until(push_at), if pushes => {
                    push_at = None;
                    changes.mark_unchanged();
                    let list = self.list_unless(domain, held);
                    held = list.as_ref().map_or(held, |list| list.etag);
                    if agent.is_none() {
                        agent = self.agent().await.unwrap_or_default();
                    }
                    let policy = agent.as_ref().and_then(|agent| told.changed(self.fleet, agent));
                    let changed = list.map(FromServer::SvmList).into_iter().chain(policy);
                    changed.map(|message| (message, None)).collect()
                }
                Ok(()) = published.changed(), if welcomed && is_svm => {
                    let version = *published.borrow_and_update();
                    vec![(FromServer::Published { version }, None)]
                }
                Ok(()) = changes.changed(), if pushes => {
                    push_at.get_or_insert_with(|| Instant::now() + DEBOUNCE);
                    continue;
                }
            };
            for (message, answers) in messages {
                let Some(frame) = self.seal(&mut sealer, &message, answers) else {
                    return Cut::Refused.close(self.connection);
                };
                if !self.send(&mut send, &frame).await {
                    return;
                }
            }
        }
        if send.finish().is_ok() {
            let _ = tokio::time::timeout(LAST_WORDS, send.stopped()).await;
        }
        Cut::Done.close(self.connection);
    }

    /// Sends a frame; false when the session was ended because it cannot be sent.
    async fn send(&self, send: &mut SendStream, frame: &ControlFrame) -> bool {
        match tokio::time::timeout(WRITE_TIMEOUT, frame::write(send, frame)).await {
            Ok(Ok(())) => true,
            Ok(Err(_)) => {
                Cut::Done.close(self.connection);
                false
            }
            Err(_) => {
                tracing::warn!(peer = %self.peer, "too slow; the session is cut");
                Cut::Slow.close(self.connection);
                false
            }
        }
    }

    fn seal(
        &self,
        sealer: &mut Sealer,
        message: &FromServer,
        answers: Option<u64>,
    ) -> Option<ControlFrame> {
        match sealer.seal(message, answers, time::now_ms()) {
            Ok((envelope, _)) => Some(ControlFrame::Envelope(envelope)),
            Err(error) => {
                tracing::error!(peer = %self.peer, %error, "a message cannot be sent");
                None
            }
        }
    }

    /// The agent's list, if it is not the one of this version.
    fn list_unless(&self, product_uuid: Option<Uuid>, held: u64) -> Option<SvmList> {
        let Member::Agent { tenant, .. } = &self.member else {
            return None;
        };
        let list = self.fleet.list_for(tenant, product_uuid);
        (list.etag != held).then_some(list)
    }

    /// Whether no other session of the member has begun since.
    fn is_current(&self) -> bool {
        let sessions = &self.fleet.sessions;
        sessions.is_current(self.member.uuid(), self.connection)
    }

    /// What is known of the agent, if it is one.
    async fn agent(&self) -> Result<Option<AgentRecord>, Denied> {
        let Member::Agent { id, .. } = &self.member else {
            return Ok(None);
        };
        let found = self.fleet.store.agent(*id).await;
        found.map_err(super::desk::unavailable)
    }

    fn began(&self, hello: &Hello, name: &str) {
        self.admitted.store(true, Ordering::Relaxed);
        match &self.member {
            Member::Svm(id) => {
                self.fleet.svm_connected(*id, name, hello.host.product_uuid);
                self.fleet.orders.began(*id, &self.questions);
            }
            Member::Agent { id, tenant } => {
                self.fleet.claimed(*id, tenant, hello.host.product_uuid);
                self.fleet.alarms.began(*id, hello.host.product_uuid);
                self.fleet.choices.began(*id, &self.questions);
            }
        }
        tracing::info!(peer = %self.peer, %name, version = %hello.version.escape_debug(), "session began");
    }

    fn ended(&self) {
        match &self.member {
            Member::Svm(id) => self.fleet.orders.ended(*id, &self.questions),
            Member::Agent { id, .. } => self.fleet.choices.ended(*id, &self.questions),
        }
        let last = self.fleet.sessions.end(self.member.uuid(), self.connection);
        if let (true, Member::Svm(id)) = (last, &self.member) {
            self.fleet.svm_gone(*id);
        }
        // It may have been let in after its connection was lost.
        self.gone();
        tracing::info!(peer = %self.peer, "session ended");
    }

    /// An agent that was let in is there no more: said once for each session, so that
    /// the order in which two of them begin and end is nothing.
    fn gone(&self) {
        if let Member::Agent { id, .. } = &self.member
            && self.admitted.swap(false, Ordering::Relaxed)
        {
            let end = match self.connection.close_reason() {
                Some(ConnectionError::ApplicationClosed(_)) => End::Farewell,
                _ => End::Cut,
            };
            self.fleet.alarms.ended(*id, end);
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
