//! What went wrong, and what the agent is told: one table.
//!
//! Everything that ends a request without a verdict of the engines is a
//! [`Failure`]; [`Failure::answer`] is the only place where one becomes a message.
//! None of them is, or becomes, `Clean`, and none of them is cached.

use palisade_protocol::bounded::Text;
use palisade_protocol::content::ContentError;
use palisade_protocol::scan::{Refusal, RefusalCode, ToAgent};

/// Shortest and longest wait that an agent is told, in milliseconds.
const RETRY_MS: std::ops::RangeInclusive<u32> = 50..=60_000;

/// What an agent is told to wait whose content another one sends, in milliseconds.
const HANDED_OVER_RETRY_MS: u32 = 1000;

/// Why a request ended without a verdict.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The bytes or chaining values are not those of the content id.
    #[error("{0}; hash the file again and ask again")]
    Mismatch(ContentError),
    /// A message does not fit the protocol's order or bounds.
    #[error("{0}")]
    Protocol(String),
    /// The sender was given up.
    #[error("no frame came in time ({waited_s} s); send what is asked for, or ask again")]
    Stalled {
        /// Seconds that were waited.
        waited_s: u64,
    },
    /// Another one sends the same content in its place, and has not come to an end.
    #[error("another agent sends this content, being faster; ask again")]
    HandedOver,
    /// The agent has as many requests open as it may.
    #[error("{max} requests are open, which is as many as one agent may have; wait for answers")]
    OverLimit {
        /// The bound.
        max: u32,
    },
    /// The queue is full, or longer than the request can wait.
    #[error("the queue is full")]
    Queue {
        /// Milliseconds until it is worth asking again.
        retry_after_ms: u32,
    },
    /// The memory for contents in flight is taken.
    #[error("the memory for contents in flight is taken")]
    Memory {
        /// Milliseconds until it is worth asking again.
        retry_after_ms: u32,
    },
    /// No engine can scan.
    #[error("this Protection Server cannot scan: {0}; see its log")]
    NoEngine(String),
    /// It finishes what it has, and takes nothing new.
    #[error("this Protection Server is stopping; use another")]
    Stopping,
    /// The peer is gone: nobody is told.
    #[error("the peer is gone")]
    PeerGone,
}

impl Failure {
    /// What the agent is told; `None` when there is nobody to tell.
    pub fn answer(&self) -> Option<ToAgent> {
        let code = match self {
            Self::Mismatch(_) => RefusalCode::ContentMismatch,
            Self::Protocol(_) | Self::Stalled { .. } => RefusalCode::Protocol,
            Self::OverLimit { .. } => RefusalCode::OverLimit,
            Self::NoEngine(_) | Self::Stopping => RefusalCode::Unavailable,
            Self::HandedOver => {
                return Some(ToAgent::Busy {
                    retry_after_ms: HANDED_OVER_RETRY_MS,
                });
            }
            Self::Queue { retry_after_ms } | Self::Memory { retry_after_ms } => {
                let retry_after_ms = (*retry_after_ms).clamp(*RETRY_MS.start(), *RETRY_MS.end());
                return Some(ToAgent::Busy { retry_after_ms });
            }
            Self::PeerGone => return None,
        };
        Some(ToAgent::Refused(Refusal {
            code,
            message: Text::cut(&self.to_string()),
        }))
    }
}

/// What does not fit a content id is a lie or a change; the rest is disorder.
impl From<ContentError> for Failure {
    fn from(error: ContentError) -> Self {
        match error {
            ContentError::OutlineMismatch(_) | ContentError::FragmentMismatch { .. } => {
                Self::Mismatch(error)
            }
            other => Self::Protocol(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::content::ContentId;

    #[test]
    fn each_failure_has_its_answer() {
        let id = ContentId::of(b"x");
        let refused = |failure: Failure| match failure.answer() {
            Some(ToAgent::Refused(refusal)) => Some(refusal.code),
            _ => None,
        };
        let mismatch = ContentError::FragmentMismatch { index: 0, id };
        assert_eq!(refused(mismatch.into()), Some(RefusalCode::ContentMismatch));
        let outline = ContentError::OutlineLength { got: 1, want: 2 };
        assert_eq!(refused(outline.into()), Some(RefusalCode::Protocol));
        assert_eq!(
            refused(Failure::OverLimit { max: 1 }),
            Some(RefusalCode::OverLimit)
        );
        assert_eq!(
            refused(Failure::NoEngine("x".into())),
            Some(RefusalCode::Unavailable)
        );
        let busy = Failure::Queue { retry_after_ms: 0 }.answer();
        assert_eq!(busy, Some(ToAgent::Busy { retry_after_ms: 50 }));
        assert_eq!(Failure::PeerGone.answer(), None);
    }
}
