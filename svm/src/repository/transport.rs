//! Requests on a stream of the control session, for the verifier and for files.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use palisade_daemon::control::Session;
use palisade_protocol::bounded::Text;
use palisade_protocol::frame;
use palisade_protocol::pull::{Answer, Wanted, What};
use palisade_repository::tuf::Error;
use palisade_repository::tuf::transport::{FetchFuture, Repository};
use tokio::sync::Mutex;

/// How long a part may take.
const PART_TIMEOUT: Duration = Duration::from_secs(30);

/// Where parts come from.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// A part of something, from this byte on.
    ///
    /// # Errors
    /// [`Cut`].
    async fn part(&self, what: &What, from: u64) -> Result<Answer, Cut>;
}

/// The session ended, or the server does not answer: not what it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session with the Integration Server was cut")]
pub struct Cut;

/// A stream of a session, opened when it is first needed.
#[derive(Debug)]
pub struct OverSession {
    session: Session,
    stream: Mutex<Option<(quinn::SendStream, quinn::RecvStream)>>,
}

impl OverSession {
    /// Of this session.
    pub fn new(session: Session) -> Self {
        Self {
            session,
            stream: Mutex::new(None),
        }
    }

    async fn ask(&self, wanted: &Wanted) -> Result<Answer, Cut> {
        let mut place = self.stream.lock().await;
        let (mut send, mut receive) = match place.take() {
            Some(stream) => stream,
            None => self.session.open_stream().await.map_err(|_| Cut)?,
        };
        frame::write(&mut send, wanted).await.map_err(|_| Cut)?;
        let answer = frame::read::<Answer>(&mut receive).await;
        let answer = answer.ok().flatten().ok_or(Cut)?;
        // One that failed or was given up half-way is dropped, and not used again.
        *place = Some((send, receive));
        Ok(answer)
    }
}

#[async_trait]
impl Source for OverSession {
    async fn part(&self, what: &What, from: u64) -> Result<Answer, Cut> {
        let wanted = Wanted {
            what: what.clone(),
            from,
        };
        let asked = tokio::time::timeout(PART_TIMEOUT, self.ask(&wanted));
        asked.await.unwrap_or(Err(Cut))
    }
}

/// A source as the verifier asks it.
pub struct Fetching<S: Source> {
    source: Arc<S>,
    cut: Arc<AtomicBool>,
}

impl<S: Source> Fetching<S> {
    /// Of this source; `cut` says afterwards whether it was one that failed.
    pub fn new(source: Arc<S>, cut: Arc<AtomicBool>) -> Self {
        Self { source, cut }
    }

    async fn metadata(&self, name: &str, max: u64) -> Result<Option<Vec<u8>>, Error> {
        let text = Text::new(name).map_err(|_| Error::transport(format!("{name}: too long")))?;
        let what = What::Metadata(text);
        match whole(self.source.as_ref(), &what, max).await {
            Ok(found) => Ok(found),
            Err(WholeError::Cut(cut)) => {
                self.cut.store(true, Ordering::Relaxed);
                Err(Error::transport(cut.to_string()))
            }
            Err(WholeError::TooLong) => Err(Error::transport(format!(
                "the server has more than {max} bytes of {name}"
            ))),
        }
    }
}

impl<S: Source> Repository for Fetching<S> {
    fn fetch_metadata<'a>(&'a self, name: &'a str, max_length: u64) -> FetchFuture<'a> {
        Box::pin(self.metadata(name, max_length))
    }

    /// Files are fetched by their hash, and not through the verifier's memory.
    fn fetch_target<'a>(&'a self, _: &'a str, _: u64) -> FetchFuture<'a> {
        Box::pin(std::future::ready(Ok(None)))
    }
}

/// Why something is not had as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WholeError {
    /// The source failed.
    Cut(Cut),
    /// It is longer than it may be.
    TooLong,
}

/// Something as a whole, of so many bytes at the most; none if it is not there.
///
/// # Errors
/// [`WholeError`].
pub async fn whole<S: Source>(
    source: &S,
    what: &What,
    max: u64,
) -> Result<Option<Vec<u8>>, WholeError> {
    let mut all: Vec<u8> = Vec::new();
    loop {
        let have = all.len() as u64;
        match source.part(what, have).await.map_err(WholeError::Cut)? {
            Answer::Absent => return Ok(None),
            Answer::Busy => return Err(WholeError::Cut(Cut)),
            Answer::Part { length, bytes } => {
                if length > max || have.saturating_add(bytes.len() as u64) > max {
                    return Err(WholeError::TooLong);
                }
                let ends = bytes.is_empty();
                all.extend(bytes);
                if ends || all.len() as u64 >= length {
                    return Ok(Some(all));
                }
            }
        }
    }
}
