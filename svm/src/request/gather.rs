//! Reading a content from a peer that may lie, stall or leave.
//!
//! ```text
//! read_outline ─► begin ─► fill ─► read_fragments ─► finish
//! chaining values  memory   known   Need, Fragment*   sealed
//! against the id            pieces  until none lacks
//! ```
//!
//! What one peer leaves unfinished, the next goes on with: each fragment was
//! verified on its own. The outline as a whole, and each round of at most
//! [`ROUND_FRAGMENTS`], has to come at [`MIN_RATE`] or better, each frame within the stall
//! time. And while another peer waits that could send the same, whoever is silent, or
//! slower than [`HAND_OVER_RATE`], gives way to it ([`Failure::HandedOver`]).
//!
//! [`fill`] copies what is known.

mod fill;

use std::future::Future;
use std::time::Duration;

use palisade_protocol::bounded::List;
use palisade_protocol::codec::Message as _;
use palisade_protocol::content::{ContentId, FRAGMENT_BYTES, Outline, fragment_count, has_outline};
use palisade_protocol::frame::{self, FrameError};
use palisade_protocol::scan::{
    FragmentRange, FragmentRef, MAX_NEED_RANGES, ToAgent, ToSvm, ToSvmRef,
};
use palisade_worker::client::{MemFile, SealedContent};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, timeout, timeout_at};

use crate::budget::Share;
use crate::failure::Failure;
use crate::flight::Rivals;

/// Fragments that one round asks for: 8 MiB.
const ROUND_FRAGMENTS: usize = 32;
/// Slowest sender that is put up with, in bytes a second.
const MIN_RATE: u64 = 256 * 1024;
/// Slowest sender that is put up with while another one waits, in bytes a second.
const HAND_OVER_RATE: u64 = 1 << 20;
/// How often it is looked whether another one waits.
const HAND_OVER_LOOK: Duration = Duration::from_millis(100);
/// Bytes of a chaining value.
const VALUE_BYTES: usize = 32;
/// Milliseconds until it is worth asking again when the kernel has no memory.
const NO_MEMORY_RETRY_MS: u32 = 2_000;

/// Who else could send the same content.
#[derive(Debug, Clone)]
pub struct Others {
    /// Those who wait.
    pub rivals: Rivals,
    /// How long they are kept waiting by one that is silent or slow.
    pub patience: Duration,
}

/// Frames that are expected together, since when, and how many bytes came.
#[derive(Debug)]
struct Round {
    since: Instant,
    last: Instant,
    bytes: u64,
    deadline: Instant,
    within: Duration,
}

impl Round {
    fn of(bytes: u64, stall: Duration) -> Self {
        let now = Instant::now();
        let within = stall + Duration::from_millis(bytes * 1000 / MIN_RATE);
        Self {
            since: now,
            last: now,
            bytes: 0,
            deadline: now + within,
            within,
        }
    }

    fn came(&mut self, bytes: usize) {
        self.last = Instant::now();
        self.bytes += bytes as u64;
    }

    /// Whether somebody else had better send the rest.
    fn holds_up(&self, others: &Others) -> bool {
        if !others.rivals.any() {
            return false;
        }
        let patience = others.patience;
        let (since, silent) = (self.since.elapsed(), self.last.elapsed());
        let due = since.as_millis() * u128::from(HAND_OVER_RATE) / 1000;
        silent >= patience || (since >= patience && u128::from(self.bytes) < due)
    }
}

/// The two halves of a stream, and how long a frame may take.
#[derive(Debug)]
pub struct Peer<R, W> {
    /// To the agent.
    pub send: W,
    /// Time without the expected frame after which the sender is given up.
    pub stall: Duration,
    /// Who else could send the same; nobody, until somebody says so.
    pub others: Option<Others>,
    receive: R,
    /// The last frame's body; at most one frame large.
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Peer<R, W> {
    /// The two halves of a stream.
    pub fn new(receive: R, send: W, stall: Duration) -> Self {
        Self {
            send,
            stall,
            others: None,
            receive,
            buffer: Vec::new(),
        }
    }

    /// Reads the next frame of a round.
    async fn next_of(&mut self, round: &Round) -> Result<ToSvmRef<'_>, Failure> {
        let others = self.others.clone();
        let next = timeout_at(round.deadline, self.next());
        let late = Failure::Stalled {
            waited_s: round.within.as_secs(),
        };
        let Some(others) = others else {
            return next.await.map_err(|_| late)?;
        };
        let held_up = async {
            while !round.holds_up(&others) {
                tokio::time::sleep(HAND_OVER_LOOK).await;
            }
        };
        tokio::select! {
            biased;
            next = next => next.map_err(|_| late)?,
            () = held_up => Err(Failure::HandedOver),
        }
    }

    /// Reads the next frame.
    ///
    /// # Errors
    /// [`Failure::Stalled`], [`Failure::PeerGone`], or [`Failure::Protocol`] for
    /// bytes that are no frame.
    pub async fn next(&mut self) -> Result<ToSvmRef<'_>, Failure> {
        let body = frame::read_body(&mut self.receive, &mut self.buffer, ToSvm::MAX_BYTES);
        match timeout(self.stall, body).await {
            Err(_) => Err(Failure::Stalled {
                waited_s: self.stall.as_secs(),
            }),
            Ok(Ok(Some(body))) => {
                ToSvmRef::decode(body).map_err(|error| Failure::Protocol(error.to_string()))
            }
            Ok(Ok(None)) => Err(Failure::Protocol("the stream ended early".to_owned())),
            Ok(Err(FrameError::Codec(error))) => Err(Failure::Protocol(error.to_string())),
            Ok(Err(FrameError::Io(error))) => match error.kind() {
                std::io::ErrorKind::UnexpectedEof => Err(Failure::Protocol(
                    "the stream ended within a frame".to_owned(),
                )),
                _ => Err(Failure::PeerGone),
            },
        }
    }

    /// Writes a frame.
    ///
    /// # Errors
    /// [`Failure::Stalled`] when the peer does not take it, [`Failure::PeerGone`].
    pub async fn tell(&mut self, message: &ToAgent) -> Result<(), Failure> {
        match timeout(self.stall, frame::write(&mut self.send, message)).await {
            Err(_) => Err(Failure::Stalled {
                waited_s: self.stall.as_secs(),
            }),
            Ok(Ok(())) => Ok(()),
            Ok(Err(FrameError::Codec(error))) => {
                tracing::error!(%error, "an answer cannot be encoded");
                Err(Failure::PeerGone)
            }
            Ok(Err(FrameError::Io(_))) => Err(Failure::PeerGone),
        }
    }
}

/// A content in the making.
#[derive(Debug, Default)]
pub struct Gathering {
    share: Option<Share>,
    outline: Option<Outline>,
    file: Option<MemFile>,
    /// Which fragments are there and verified.
    held: Vec<bool>,
}

/// A content that is whole.
#[derive(Debug)]
pub struct Gathered {
    /// Its bytes.
    pub bytes: SealedContent,
    /// Its outline.
    pub outline: Outline,
    /// Its memory.
    pub share: Share,
}

/// Bytes of a content's outline, which are held before its own memory is taken.
pub fn outline_bytes(size: u64) -> u64 {
    match has_outline(size) {
        true => size.div_ceil(FRAGMENT_BYTES) * VALUE_BYTES as u64,
        false => 0,
    }
}

impl Gathering {
    /// Whether memory was taken.
    pub fn has_begun(&self) -> bool {
        self.file.is_some()
    }

    /// Takes memory, unless an earlier leader did.
    ///
    /// # Errors
    /// [`Failure::Memory`].
    pub async fn begin<F>(&mut self, size: u64, take: impl FnOnce() -> F) -> Result<(), Failure>
    where
        F: Future<Output = Result<Share, Failure>>,
    {
        if self.file.is_some() {
            return Ok(());
        }
        let share = take().await?;
        let file = MemFile::create(size).map_err(|error| no_memory(&error))?;
        self.held = vec![false; fragment_count(size)?];
        (self.share, self.file) = (Some(share), Some(file));
        Ok(())
    }

    /// Reads the peer's chaining values, which follow its request in any case, and
    /// checks them against the content id.
    ///
    /// # Errors
    /// [`Failure::Mismatch`] when they do not merge to the id, and the stream's.
    pub async fn read_outline<R, W>(
        &mut self,
        id: ContentId,
        size: u64,
        peer: &mut Peer<R, W>,
    ) -> Result<(), Failure>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let want = if has_outline(size) {
            fragment_count(size)?
        } else {
            0
        };
        let mut values = Vec::with_capacity(want);
        let mut round = Round::of(outline_bytes(size), peer.stall);
        while values.len() < want {
            match peer.next_of(&round).await? {
                ToSvmRef::Outline(part) if part.is_empty() => {
                    return Err(Failure::Protocol("an Outline without values".to_owned()));
                }
                ToSvmRef::Outline(part) => {
                    round.came(part.len() * VALUE_BYTES);
                    values.extend_from_slice(&part);
                }
                _ => return Err(Failure::Protocol("an Outline is expected".to_owned())),
            }
        }
        let outline = Outline::verify(id, size, values)?;
        self.outline.get_or_insert(outline);
        Ok(())
    }

    /// The outline, once it was read.
    pub fn outline(&self) -> Option<&Outline> {
        self.outline.as_ref()
    }

    /// Asks for what lacks, until nothing does; counts the bytes that came, whatever it
    /// ends in.
    ///
    /// # Errors
    /// [`Failure::Mismatch`] for bytes of another content, [`Failure::Protocol`]
    /// for a fragment that was not asked for, and the stream's.
    pub async fn read_fragments<R, W>(
        &mut self,
        peer: &mut Peer<R, W>,
        received: &mut u64,
    ) -> Result<(), Failure>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        loop {
            let (need, mut count) = ranges(&self.held);
            if count == 0 {
                return Ok(());
            }
            peer.tell(&ToAgent::Need(List::cut(need.iter().copied())))
                .await?;
            let mut round = Round::of(count as u64 * FRAGMENT_BYTES, peer.stall);
            while count > 0 {
                let ToSvmRef::Fragment(fragment) = peer.next_of(&round).await? else {
                    return Err(Failure::Protocol("a Fragment is expected".to_owned()));
                };
                if !need.iter().any(|range| holds(range, fragment.index)) {
                    return Err(Failure::Protocol(format!(
                        "fragment {} was not asked for",
                        fragment.index
                    )));
                }
                self.keep(fragment)?;
                round.came(fragment.bytes.len());
                *received += fragment.bytes.len() as u64;
                count -= 1;
            }
        }
    }

    fn keep(&mut self, fragment: FragmentRef<'_>) -> Result<(), Failure> {
        let (Some(outline), Some(file)) = (&self.outline, &self.file) else {
            return Err(Failure::Protocol(
                "a Fragment before its Outline".to_owned(),
            ));
        };
        let (offset, _) = outline.span(fragment.index)?;
        let Some(held) = self.held.get_mut(fragment.index as usize) else {
            return Err(Failure::Protocol(format!(
                "there is no fragment {}",
                fragment.index
            )));
        };
        if *held {
            return Err(Failure::Protocol(format!(
                "fragment {} came twice",
                fragment.index
            )));
        }
        outline.verify_fragment(fragment.index, fragment.bytes)?;
        file.write_at(fragment.bytes, offset)
            .map_err(|error| no_memory(&error))?;
        *held = true;
        Ok(())
    }

    /// Seals the whole content; nothing is left here.
    ///
    /// # Errors
    /// [`Failure::Protocol`] if a fragment lacks, [`Failure::Memory`] if the kernel
    /// does not seal.
    pub fn finish(&mut self) -> Result<Gathered, Failure> {
        let whole = std::mem::take(self);
        match (whole.file, whole.outline, whole.share) {
            (Some(file), Some(outline), Some(share)) if whole.held.iter().all(|held| *held) => {
                Ok(Gathered {
                    bytes: file.seal().map_err(|error| no_memory(&error))?,
                    outline,
                    share,
                })
            }
            _ => Err(Failure::Protocol("a fragment lacks".to_owned())),
        }
    }
}

fn no_memory(error: &std::io::Error) -> Failure {
    tracing::error!(%error, "no memory file");
    Failure::Memory {
        retry_after_ms: NO_MEMORY_RETRY_MS,
    }
}

fn holds(range: &FragmentRange, index: u32) -> bool {
    index >= range.first && index - range.first < range.count
}

/// The next round: the first fragments that lack, as ranges, and how many they are.
fn ranges(held: &[bool]) -> (Vec<FragmentRange>, usize) {
    let mut need: Vec<FragmentRange> = Vec::new();
    let mut count = 0;
    for (index, _) in held.iter().enumerate().filter(|(_, held)| !**held) {
        if count == ROUND_FRAGMENTS {
            break;
        }
        // No content has more than u32::MAX fragments.
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        match need.last_mut() {
            Some(last) if last.first + last.count == index => last.count += 1,
            _ => need.push(FragmentRange {
                first: index,
                count: 1,
            }),
        }
        count += 1;
    }
    (need, count)
}

const _: () = assert!(ROUND_FRAGMENTS <= MAX_NEED_RANGES);

#[cfg(test)]
mod tests;
