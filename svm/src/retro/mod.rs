//! Retroactive verdicts: who is told when a content that was called clean is malware
//! by newer definitions.
//!
//! ```text
//!  a Clean answer ──► saw ──► Holders
//!                                │ a scan of the same content finds malware: somebody
//!                                │ asked for it, or new definitions came and it was kept
//!                                ▼
//!                           Pending ──► a Notice on each holder's session, now or when
//!                                       it is back
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`holders`] | which agents hold what (pure) |
//! | [`pending`] | what each is still to be told (pure) |
//! | [`rescan`] | contents that are kept are scanned anew by new definitions, unasked |
//! | this | both under their locks, and waking whoever tells |
//!
//! Only sessions are told that take notices: a command's, of the same agent, would lose
//! them. A notice is no verdict: the agent looks the content up, hashes its file again, and
//! asks ([`palisade_protocol::notice`]). All of it is in memory, bounded, and gone with
//! the process; what was forgotten is counted.

pub mod holders;
pub mod pending;
pub mod rescan;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use palisade_protocol::bounded::List;
use palisade_protocol::content::ContentId;
use palisade_protocol::frame;
use palisade_protocol::ids::{AgentId, TenantId};
use palisade_protocol::notice::Notice;
use quinn::Connection;
use tokio::sync::watch;
use tokio::time::timeout;

use holders::Holders;
use pending::Pending;

/// How long an agent may take to accept a notice.
const TELL: Duration = Duration::from_secs(30);
/// Until an agent that did not accept one, and is there, is tried again.
const AGAIN: Duration = Duration::from_secs(30);

/// What is remembered. Clones share it.
#[derive(Debug, Clone)]
pub struct Retro(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    holders: Mutex<Holders>,
    pending: Mutex<Pending>,
    /// Counts up when something is to be told.
    more: watch::Sender<u64>,
}

/// How much is remembered, and was forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Contents with a holder.
    pub contents: usize,
    /// Holders that were forgotten since the start.
    pub forgotten: u64,
    /// Contents that agents are still to be told of.
    pub waiting: usize,
    /// Contents that agents were not told of, for want of room.
    pub dropped: u64,
}

impl Retro {
    /// Remembers the holders of at most so many contents; of none when it is 0.
    pub fn new(max_contents: usize) -> Self {
        Self(Arc::new(Shared {
            holders: Mutex::new(Holders::new(max_contents)),
            pending: Mutex::default(),
            more: watch::Sender::new(0),
        }))
    }

    /// An agent was told that a content is clean: from here on it holds it.
    pub fn saw(&self, agent: AgentId, tenant: &TenantId, content: ContentId) {
        lock(&self.0.holders).saw(agent, tenant, content);
    }

    /// A content is malware: all of the tenant's agents that hold it will be told, each
    /// once, and `first` hears of each before it is. To be called for every such verdict:
    /// who was told is forgotten.
    pub fn turned_bad(&self, tenant: &TenantId, content: ContentId, first: impl FnMut(AgentId)) {
        let told = lock(&self.0.holders).turned_bad(tenant, content);
        if told.holders.is_empty() {
            return;
        }
        let (holders, forgotten) = (told.holders.len(), told.forgotten);
        tracing::warn!(%content, %tenant, holders, forgotten, "called clean before, and malware now; its holders are told");
        told.holders.iter().copied().for_each(first);
        let mut pending = lock(&self.0.pending);
        for agent in told.holders {
            pending.add(agent, tenant, content);
        }
        drop(pending);
        self.0.more.send_modify(|count| *count += 1);
    }

    /// An agent was told a verdict that is another by now: it is told to ask again.
    pub fn ask_again(&self, agent: AgentId, tenant: &TenantId, content: ContentId) {
        lock(&self.0.pending).add(agent, tenant, content);
        self.0.more.send_modify(|count| *count += 1);
    }

    /// How much there is.
    pub fn counts(&self) -> Counts {
        let holders = lock(&self.0.holders);
        let (contents, forgotten) = (holders.contents(), holders.forgotten());
        drop(holders);
        let pending = lock(&self.0.pending);
        Counts {
            contents,
            forgotten,
            waiting: pending.waiting(),
            dropped: pending.dropped(),
        }
    }

    /// Tells an agent what it is to know, on its session, until that ends or this is
    /// dropped. What did not arrive by then waits for another session, which may be there
    /// already: a guest that was reset is back before its old session is known to be dead.
    pub async fn tell(&self, agent: AgentId, tenant: &TenantId, connection: &Connection) {
        let mut more = self.0.more.subscribe();
        loop {
            more.mark_unchanged();
            while let Some(mut taken) = self.take(agent, tenant) {
                match timeout(TELL, send(connection, &taken.notice)).await {
                    Ok(Ok(())) => taken.arrived(),
                    failed => {
                        tracing::debug!(%agent, ?failed, "it took no notice");
                        drop(taken);
                        if timeout(AGAIN, connection.closed()).await.is_ok() {
                            return;
                        }
                    }
                }
            }
            // The sender lives as long as this does.
            let _ = more.changed().await;
        }
    }

    fn take(&self, agent: AgentId, tenant: &TenantId) -> Option<Taken> {
        let notice = lock(&self.0.pending).take(agent, tenant)?;
        Some(Taken {
            retro: self.clone(),
            agent,
            tenant: tenant.clone(),
            notice,
        })
    }
}

/// A notice on its way. Unless it arrives, what it says waits again when this is dropped:
/// so a session that ends at any moment loses nothing.
struct Taken {
    retro: Retro,
    agent: AgentId,
    tenant: TenantId,
    notice: Notice,
}

impl Taken {
    fn arrived(&mut self) {
        self.notice.contents = List::default();
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if self.notice.contents.is_empty() {
            return;
        }
        let mut pending = lock(&self.retro.0.pending);
        for content in self.notice.contents.iter() {
            pending.add(self.agent, &self.tenant, *content);
        }
        drop(pending);
        self.retro.0.more.send_modify(|count| *count += 1);
    }
}

/// Sends a notice, and waits until it arrived.
async fn send(connection: &Connection, notice: &Notice) -> Result<(), frame::FrameError> {
    let gone = |error: &dyn std::fmt::Display| std::io::Error::other(error.to_string());
    let mut stream = connection.open_uni().await.map_err(|error| gone(&error))?;
    frame::write(&mut stream, notice).await?;
    stream.finish().map_err(|error| gone(&error))?;
    match stream.stopped().await {
        Ok(None) => Ok(()),
        Ok(Some(code)) => Err(gone(&format!("refused with {code}")).into()),
        Err(error) => Err(gone(&error).into()),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
