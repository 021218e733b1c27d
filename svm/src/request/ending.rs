//! What a scan comes to, whoever asked for it: stored, told, kept.
//!
//! ```text
//!  Done ─► settle ─► SharedCache (a lasting verdict) ─► malware: holders are told
//!             │
//!             └─► of a request: the content is kept; of a re-scan it is already
//! ```

use palisade_protocol::content::{ContentId, Outline};
use palisade_protocol::ids::{AgentId, TenantId};
use palisade_protocol::verdict::{Generations, Verdict, VerdictKind};
use palisade_worker::client::SealedContent;
use tokio::sync::oneshot;

use super::{Landed, Service};
use crate::budget::Share;
use crate::cache::{self, Key, Noted, same_definitions};
use crate::digest::{Digests, Wanted};
use crate::failure::Failure;
use crate::scan::Done;

impl Service {
    /// Waits for the engines; stores, tells and keeps what may be.
    pub(super) async fn conclude(
        &self,
        done: oneshot::Receiver<Done>,
        key: Key,
        outline: Outline,
        share: Share,
    ) -> Result<Landed, Failure> {
        let done = done.await.map_err(|_| Failure::Stopping)?;
        let (landed, bytes) = self.settle(done, &key).await?;
        let clean = landed.verdict.kind() == VerdictKind::Clean;
        if !self.budget.is_wanted() {
            self.fragments.keep(&key, clean, outline, bytes, share);
        }
        // After it was kept: a pass that began when they came into force did not see it.
        if clean && self.is_outdated(&landed.generations) {
            self.rescans.due();
        }
        Ok(landed)
    }

    /// From the engines' end to a verdict, which is stored if it lasts, and told to those
    /// who hold what it calls malware. The content comes back.
    pub(super) async fn settle(
        &self,
        done: Done,
        key: &Key,
    ) -> Result<(Landed, SealedContent), Failure> {
        let Done {
            end,
            generations,
            bytes,
            sha256: known,
        } = done;
        let end = end.map_err(|no_worker| Failure::NoEngine(no_worker.to_string()))?;
        let sha256 = match end.verdict.kind() {
            VerdictKind::Malware | VerdictKind::Suspicious => match known {
                Some(known) => Some(known),
                None => sha256(&bytes).await,
            },
            VerdictKind::Clean | VerdictKind::NotScanned => None,
        };
        let landed = Landed {
            verdict: end.verdict,
            details: end.details,
            engines: end.runs,
            sha256,
            generations,
            older: false,
        };
        audit(key, &landed);
        // Before holders are told, so that who asks at once has this answer.
        if end.lasting && !self.is_superseded(key, &landed.generations) {
            let entry = cache::Entry {
                verdict: landed.verdict.clone(),
                details: landed.details.clone(),
                sha256: landed.sha256,
                generations: landed.generations.clone(),
                scanned_ms: cache::now_ms(),
            };
            let noted = match landed.verdict.kind() {
                VerdictKind::Clean => Noted::default(),
                _ => self.cache.overrule(key).await,
            };
            self.cache.put(key.clone(), entry, noted);
        }
        if landed.verdict.kind() == VerdictKind::Malware {
            tracing::info!(content = %key.content, tenant = %key.tenant, verdict = ?landed.verdict, "malware");
            self.turned_bad(&key.tenant, key.content, &landed.verdict);
        }
        Ok((landed, bytes))
    }

    /// A content is malware: its holders are told. Each is a guest that the signature
    /// hits, whether or not it asks: the brake counts them before the first is told, so
    /// that a bad signature is braked before it blocks what many have.
    pub fn turned_bad(&self, tenant: &TenantId, content: ContentId, verdict: &Verdict) {
        let now_ms = cache::now_ms();
        self.retro.turned_bad(tenant, content, |holder| {
            self.judge(tenant, (holder, content), verdict.clone(), now_ms);
        });
    }

    /// The verdict that an agent is told of a content: the brake's.
    pub fn judge(
        &self,
        tenant: &TenantId,
        whose: (AgentId, ContentId),
        verdict: Verdict,
        now_ms: u64,
    ) -> Verdict {
        let again = |(agent, content)| self.retro.ask_again(agent, tenant, content);
        self.brake.judge(tenant, whose, verdict, now_ms, again)
    }

    /// An agent is told that a content is clean: from here on it holds it. Where a scan
    /// by newer definitions found malware meanwhile, those who held it then were told
    /// already, and this one is now.
    pub fn called_clean(&self, agent: AgentId, key: &Key) {
        self.retro.saw(agent, &key.tenant, key.content);
        if let Some(entry) = self.cache.last(key)
            && entry.verdict.kind() == VerdictKind::Malware
        {
            self.turned_bad(&key.tenant, key.content, &entry.verdict);
        }
    }

    fn is_outdated(&self, generations: &Generations) -> bool {
        !same_definitions(generations, &self.scanner.generations())
    }

    /// Whether these definitions are not in force, and a verdict is known that those are that
    /// are, or that is not clean: a scan that was in flight when they changed, once or more
    /// often, must not undo it.
    fn is_superseded(&self, key: &Key, generations: &Generations) -> bool {
        let in_force = self.scanner.generations();
        !same_definitions(generations, &in_force)
            && self.cache.last(key).is_some_and(|entry| {
                entry.verdict.kind() != VerdictKind::Clean
                    || same_definitions(&entry.generations, &in_force)
            })
    }
}

/// A list overruled every engine: this is to be found again, whoever looks.
fn audit(key: &Key, landed: &Landed) {
    if landed.verdict == Verdict::Clean
        && let Some(list) = landed.details.metadata.first()
    {
        tracing::info!(
            target: "audit", content = %key.content, tenant = %key.tenant, size = key.size,
            list = list.value.as_str(), "audit: allowed by a list"
        );
    }
}

/// SHA-256 of verified bytes; `None` only if the memory file cannot be read.
async fn sha256(bytes: &SealedContent) -> Option<[u8; 32]> {
    let bytes = bytes.try_clone().ok()?;
    let wanted = Wanted {
        sha256: true,
        md5: false,
    };
    match tokio::task::spawn_blocking(move || Digests::of(&bytes, wanted)).await {
        Ok(Ok(digests)) => digests.sha256,
        Ok(Err(error)) => {
            tracing::error!(%error, "content in memory cannot be hashed");
            None
        }
        Err(_) => None,
    }
}
