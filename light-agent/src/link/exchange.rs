//! One request's stream: what is sent, what is asked back, how it ends.
//!
//! ```text
//!  Scan, Outline* ─► │ ◄─ Need ─┐ fragments are read and sent one at a time,
//!                    │          │ while the next message is already awaited
//!                    │ ◄─ Verdict | Busy | Refused: the end
//! ```
//!
//! **Invariant:** at most one fragment of a request is in memory, and no more
//! fragments are sent than [`MAX_ROUNDS`] times the content.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use palisade_protocol::bounded::List;
use palisade_protocol::content::FRAGMENT_BYTES;
use palisade_protocol::frame::{self, FrameError};
use palisade_protocol::scan::{
    FragmentRange, Known, MAX_OUTLINE_VALUES, Refusal, ScanRequest, ScanResult, ToAgent, ToSvm,
};
use palisade_protocol::verdict::NotScanned;
use quinn::{Connection, RecvStream, SendStream, WriteError};
use tokio::sync::{Notify, Semaphore, mpsc};

use super::LinkError;
use crate::content::{self, Content, Hashed, NoFragment};

/// How often the whole content may be asked for within one request.
const MAX_ROUNDS: usize = 4;

/// What may be sent of a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Share {
    /// What the Protection Server asks for.
    Content,
    /// Its hashes alone.
    Hashes,
}

/// Content bytes that left the guest. Clones share the count.
#[derive(Debug, Clone, Default)]
pub struct Sent(Arc<AtomicU64>);

impl Sent {
    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The most that any session asked for within a request: asked for by two, it is one
/// content all the same.
#[derive(Debug, Default)]
pub struct Needed {
    since: OnceLock<Instant>,
    bytes: AtomicU64,
    first: Notify,
}

impl Needed {
    /// One session has asked for so much by now.
    fn reaches(&self, bytes: u64) {
        self.bytes.fetch_max(bytes, Ordering::Relaxed);
        self.since.get_or_init(Instant::now);
        self.first.notify_one();
    }

    /// Waits until something is asked for; gives how many bytes it was.
    pub async fn begun(&self) -> u64 {
        self.first.notified().await;
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes so far, and since when; none if nothing was asked for.
    pub fn so_far(&self) -> Option<(u64, Instant)> {
        let since = self.since.get()?;
        Some((self.bytes.load(Ordering::Relaxed), *since))
    }
}

/// What a request is answered from.
#[derive(Clone, Copy)]
pub struct Offer<'a> {
    /// The bytes.
    pub content: &'a Content,
    /// As they were hashed.
    pub hashed: &'a Arc<Hashed>,
    /// What may be sent of them.
    pub share: Share,
    /// Counts what was sent.
    pub sent: &'a Sent,
    /// Takes down what was asked for.
    pub needed: &'a Needed,
}

/// How a request ended.
#[derive(Debug)]
pub enum Reply {
    /// With a verdict.
    Verdict(ScanResult),
    /// Ask again after this long.
    Busy(Duration),
    /// It cannot be served as it is.
    Refused(Refusal),
    /// The content could not be read again as it was hashed.
    Unreadable(NotScanned),
}

/// Runs one request. A fragment is in hand while it has a turn of `in_hand`.
pub(super) async fn run(
    connection: &Connection,
    in_hand: &Semaphore,
    request: ScanRequest,
    offer: Offer<'_>,
) -> Result<Reply, LinkError> {
    let lost = |error: quinn::ConnectionError| LinkError::Lost(error.to_string());
    let (mut send, mut receive) = connection.open_bi().await.map_err(lost)?;
    let (want, wanted) = mpsc::unbounded_channel();
    let whole_frames = AtomicBool::new(true);
    // Both sides go on side by side: a frame that is begun in either direction
    // must be finished, and the answer may come before all content is sent.
    let reply = tokio::select! {
        reply = receive_all(&mut receive, Wanted::new(offer, want), offer.share) => reply,
        reply = send_all(&mut send, in_hand, request, offer, wanted, &whole_frames) => reply,
    };
    frame::take_end(&mut receive).await;
    let _ = if whole_frames.load(Ordering::Relaxed) {
        send.finish()
    } else {
        send.reset(0_u32.into())
    };
    reply
}

/// Asks or says something in one message, which is answered by [`Known`].
pub(super) async fn say(connection: &Connection, message: &ToSvm) -> Result<Known, LinkError> {
    let lost = |error: quinn::ConnectionError| LinkError::Lost(error.to_string());
    let (mut send, mut receive) = connection.open_bi().await.map_err(lost)?;
    frame::write(&mut send, message).await?;
    let _ = send.finish();
    let answer = frame::read::<ToAgent>(&mut receive).await?;
    frame::take_end(&mut receive).await;
    match answer {
        Some(ToAgent::Known(known)) => Ok(known),
        Some(ToAgent::Refused(refusal)) => Err(LinkError::Refused(refusal.message.to_string())),
        Some(ToAgent::Busy { .. }) => Err(LinkError::Refused("it is busy".to_owned())),
        Some(_) => Err(LinkError::Protocol(
            "it answered a lookup with something else".to_owned(),
        )),
        None => Err(LinkError::Lost(
            "the lookup ended without an answer".to_owned(),
        )),
    }
}

/// Takes what the peer says until the request ends.
async fn receive_all(
    receive: &mut RecvStream,
    mut wanted: Wanted<'_>,
    share: Share,
) -> Result<Reply, LinkError> {
    loop {
        match frame::read::<ToAgent>(receive).await? {
            Some(ToAgent::Verdict(result)) => return Ok(Reply::Verdict(result)),
            Some(ToAgent::Busy { retry_after_ms }) => {
                return Ok(Reply::Busy(Duration::from_millis(retry_after_ms.into())));
            }
            Some(ToAgent::Refused(refusal)) => return Ok(Reply::Refused(refusal)),
            Some(ToAgent::Need(_)) if share == Share::Hashes => {
                return Ok(Reply::Unreadable(NotScanned::Private));
            }
            Some(ToAgent::Need(ranges)) => wanted.add(&ranges)?,
            Some(ToAgent::Welcome(_) | ToAgent::Known(_)) => {
                return Err(LinkError::Protocol(
                    "the answer to something else came within a request".to_owned(),
                ));
            }
            None => {
                return Err(LinkError::Lost(
                    "the request ended without a verdict".to_owned(),
                ));
            }
        }
    }
}

/// Sends the request and what is wanted. Ends only when it fails: the end of the
/// request is the peer's to say.
async fn send_all(
    send: &mut SendStream,
    in_hand: &Semaphore,
    request: ScanRequest,
    offer: Offer<'_>,
    mut wanted: mpsc::UnboundedReceiver<u32>,
    whole_frames: &AtomicBool,
) -> Result<Reply, LinkError> {
    let mut frames = vec![ToSvm::Scan(request)];
    for values in offer
        .hashed
        .outline
        .chaining_values()
        .chunks(MAX_OUTLINE_VALUES)
    {
        frames.push(ToSvm::Outline(List::cut(values.iter().copied())));
    }
    for frame in frames {
        let frame = frame::to_bytes(&frame).map_err(FrameError::from)?;
        if !write(send, frame, whole_frames).await? {
            return std::future::pending().await;
        }
    }
    while let Some(index) = wanted.recv().await {
        let turn = in_hand.acquire().await;
        match read_fragment(offer.content, offer.hashed, index).await? {
            Ok((length, frame)) => {
                offer.sent.0.fetch_add(length, Ordering::Relaxed);
                if !write(send, frame, whole_frames).await? {
                    break;
                }
            }
            Err(reason) => return Ok(Reply::Unreadable(reason)),
        }
        drop(turn);
    }
    // Its answer is on the way.
    std::future::pending().await
}

/// The fragments that were asked for. The queue is bounded by the budget.
struct Wanted<'a> {
    fragments: usize,
    budget: usize,
    size: u64,
    /// Bytes, over this session.
    asked: u64,
    needed: &'a Needed,
    queue: mpsc::UnboundedSender<u32>,
}

impl<'a> Wanted<'a> {
    fn new(offer: Offer<'a>, queue: mpsc::UnboundedSender<u32>) -> Self {
        let outline = &offer.hashed.outline;
        Self {
            fragments: outline.fragments(),
            budget: outline.fragments() * MAX_ROUNDS,
            size: outline.size(),
            asked: 0,
            needed: offer.needed,
            queue,
        }
    }

    fn add(&mut self, ranges: &[FragmentRange]) -> Result<(), LinkError> {
        let mut bytes = 0_u64;
        for range in ranges {
            let end = range.first as usize + range.count as usize;
            if end > self.fragments || range.count as usize > self.budget {
                return Err(LinkError::Protocol(format!(
                    "it asks for fragments {} to {end} of {}, or too often",
                    range.first, self.fragments
                )));
            }
            self.budget -= range.count as usize;
            for index in range.first..range.first + range.count {
                // The sending side is gone only when the request is over.
                let _ = self.queue.send(index);
            }
            bytes += u64::from(range.count) * FRAGMENT_BYTES;
        }
        self.asked += bytes.min(self.size);
        self.needed.reaches(self.asked);
        Ok(())
    }
}

/// Reads and encodes one fragment on the blocking pool.
async fn read_fragment(
    content: &Content,
    hashed: &Arc<Hashed>,
    index: u32,
) -> Result<Result<(u64, Vec<u8>), NotScanned>, LinkError> {
    let (content, hashed) = (content.clone(), Arc::clone(hashed));
    let read =
        tokio::task::spawn_blocking(move || content::fragment(&content, &hashed.outline, index));
    match read.await {
        Ok(Ok(framed)) => Ok(Ok(framed)),
        Ok(Err(NoFragment::Content(reason))) => Ok(Err(reason)),
        Ok(Err(NoFragment::Codec(error))) => Err(FrameError::from(error).into()),
        Err(error) => Err(LinkError::Lost(error.to_string())),
    }
}

/// Writes one frame; false if the peer takes no more, because its answer is on the way.
async fn write(
    send: &mut SendStream,
    frame: Vec<u8>,
    whole_frames: &AtomicBool,
) -> Result<bool, LinkError> {
    whole_frames.store(false, Ordering::Relaxed);
    match send.write_chunk(frame.into()).await {
        Ok(()) => {
            whole_frames.store(true, Ordering::Relaxed);
            Ok(true)
        }
        Err(WriteError::Stopped(_)) => Ok(false),
        Err(error) => Err(LinkError::Lost(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What two Protection Servers ask for is one content: the rate must not look twice as
    /// high as it is. What one asks for again is sent again.
    #[test]
    fn a_hedged_content_counts_once() {
        const SIZE: u64 = 2 * FRAGMENT_BYTES + 9;
        let needed = Needed::default();
        let (queue, _wanted) = mpsc::unbounded_channel();
        let session = || Wanted {
            fragments: 3,
            budget: 3 * MAX_ROUNDS,
            size: SIZE,
            asked: 0,
            needed: &needed,
            queue: queue.clone(),
        };
        let (mut first, mut second) = (session(), session());
        let all = [FragmentRange { first: 0, count: 3 }];
        let bytes = || needed.so_far().map(|(bytes, _)| bytes);
        first.add(&all).unwrap();
        assert_eq!(bytes(), Some(SIZE));
        second.add(&all).unwrap();
        assert_eq!(bytes(), Some(SIZE));
        second.add(&all).unwrap();
        assert_eq!(bytes(), Some(2 * SIZE));
    }
}
