//! Hashing a file in order to find its verdict among those that are kept by content.
//!
//! A content whose size none of them has is not hashed; what was hashed in vain is given
//! back, so that nobody hashes it again.

use palisade_protocol::content::MAX_CONTENT_BYTES;
use palisade_protocol::verdict::{Details, EngineRuns, Generations, Verdict};

use super::writer::Keeper;
use crate::content::{self, Content, Hashed};
use crate::scanner::Scanned;
use crate::stamp::Stamp;

/// What came of it.
pub enum Recalled {
    /// Its verdict.
    Known(Box<Scanned>),
    /// None is kept; its hash.
    Hashed(Box<Hashed>),
    /// None can be kept, or it cannot be read.
    Nothing,
}

/// Looks for the verdict of an open file that somebody waits for. While somebody can be
/// asked, malware is: the Protection Server may have taken it back without other
/// definitions, when it hit too many guests.
pub async fn recall(keeper: &Keeper, content: &Content, can_ask: bool) -> Recalled {
    let size = Stamp::of(content).map_or(0, |stamp| stamp.size);
    if size == 0 || !keeper.may_know(size) {
        return Recalled::Nothing;
    }
    let hashed = match content::hash_at_once(content, MAX_CONTENT_BYTES) {
        Some(hashed) => hashed,
        None => {
            let Ok(_permit) = keeper.hashing().acquire().await else {
                return Recalled::Nothing;
            };
            let content = content.clone();
            let hash = move || content::hash(&content, MAX_CONTENT_BYTES);
            match tokio::task::spawn_blocking(hash).await {
                Ok(Ok(hashed)) => hashed,
                // Whoever asks says why.
                _ => return Recalled::Nothing,
            }
        }
    };
    let (id, size) = (hashed.outline.id(), hashed.outline.size());
    match keeper.get(&id, size) {
        Some((Verdict::Malware { .. }, _)) if can_ask => Recalled::Hashed(Box::new(hashed)),
        Some((verdict, generations)) => {
            Recalled::Known(Box::new(scanned(&hashed, verdict, generations)))
        }
        None => Recalled::Hashed(Box::new(hashed)),
    }
}

fn scanned(hashed: &Hashed, verdict: Verdict, generations: Generations) -> Scanned {
    Scanned {
        verdict,
        details: Details::default(),
        engines: EngineRuns::default(),
        source: None,
        content: Some(hashed.outline.id()),
        sha256: None,
        size: hashed.outline.size(),
        stamp: Some(hashed.stamp),
        generations,
        older: false,
        recheck: false,
        by_spare: false,
        action: None,
    }
}
