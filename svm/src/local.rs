//! The local control socket: `palisade-scanserver definitions …` and `status`, and a
//! running daemon.
//!
//! ```text
//!  command ── LocalRequest ────────► control.sock (0600, root's or the daemon's own user) ──► Desk
//!          ◄── LocalAnswer, Status ──
//! ```
//!
//! One request a connection, in the same bounded frames as on the wire. An order goes
//! on when the command is interrupted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use palisade_daemon::local;
use palisade_protocol::bounded::{PathBytes, Text};
use palisade_protocol::codec::Message;
use palisade_protocol::definitions::{DefinitionsOrder, DefinitionsStatus, Failure};
use palisade_protocol::frame::{self, FrameError};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::definitions::desk::{Answer, Desk, Order};
use crate::status::Status;

/// Commands at a time.
const MAX_CLIENTS: usize = 8;
/// How long a command may take to say what it wants, or to hear the answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a command waits for an order to be carried out: copies, loads and checks
/// of large sets take minutes.
const ORDER_TIMEOUT: Duration = Duration::from_secs(3600);

/// From a command to the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LocalRequest {
    /// What the Integration Server could ask for as well.
    Order(DefinitionsOrder),
    /// What the daemon does: answered by a [`Status`].
    Status,
    /// A directory of this machine.
    Import {
        /// Which; absolute.
        directory: PathBytes,
        /// It is not put in force.
        stage_only: bool,
    },
}

impl Message for LocalRequest {
    const MAX_BYTES: usize = 8 * 1024;
}

/// From the daemon to a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalAnswer {
    /// What was done; empty for a mere question.
    pub done: Text<512>,
    /// Why it could not be done.
    pub failure: Option<Failure>,
    /// What there is now.
    pub status: DefinitionsStatus,
}

impl Message for LocalAnswer {
    const MAX_BYTES: usize = 128 * 1024;
}

/// Why a daemon gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// None runs here.
    #[error("no palisade-scanserver is running at {path}", path = path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
    },
    /// The socket may not be used.
    #[error("{path}: {error}; run this as root, or as the daemon's user", path = path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It ended the conversation.
    #[error("the daemon ended the conversation; its log says why")]
    Ended,
    /// It says something else.
    #[error("the daemon cannot be understood ({0}); use the command of its version")]
    Frame(#[from] FrameError),
    /// No answer came.
    #[error("no answer came within {} s; the order goes on", ORDER_TIMEOUT.as_secs())]
    TimedOut,
}

/// The socket in a run folder.
pub fn socket(run: &Path) -> PathBuf {
    run.join("control.sock")
}

/// Opens the socket; the caller holds the state folder's lock, so that what is there
/// is left over.
///
/// # Errors
/// The file system's.
pub fn listen(run: &Path) -> io::Result<UnixListener> {
    local::listen(&socket(run))
}

/// Gives the daemon's state.
pub type Told = Arc<dyn Fn() -> Status + Send + Sync>;

/// Serves commands for ever.
pub async fn serve(listener: UnixListener, desk: Desk, told: Told) {
    let clients = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        let Ok(client) = Arc::clone(&clients).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: others end.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let (desk, told) = (desk.clone(), Arc::clone(&told));
        tokio::spawn(async move {
            if let Err(error) = converse(stream, &desk, &told).await {
                tracing::info!(%error, "a command was not answered");
            }
            drop(client);
        });
    }
}

async fn converse(mut stream: UnixStream, desk: &Desk, told: &Told) -> Result<(), FrameError> {
    if !local::is_trusted(&stream, nix::unistd::geteuid().as_raw())? {
        return Ok(());
    }
    let Some(request) = timeout(CLIENT_TIMEOUT, frame::read::<LocalRequest>(&mut stream))
        .await
        .map_err(late)??
    else {
        return Ok(());
    };
    let order = match request {
        LocalRequest::Status => return say(&mut stream, &told()).await,
        LocalRequest::Order(order) => Order::of(order),
        LocalRequest::Import {
            directory,
            stage_only,
        } => Some(Order::Import {
            directory: directory.as_path().to_owned(),
            stage_only,
        }),
    };
    let answer = match order {
        Some(order) => desk.order(order).await.into(),
        None => LocalAnswer {
            done: Text::default(),
            failure: None,
            status: desk.status(),
        },
    };
    say(&mut stream, &answer).await
}

async fn say<M: Message>(stream: &mut UnixStream, answer: &M) -> Result<(), FrameError> {
    timeout(CLIENT_TIMEOUT, frame::write(stream, answer))
        .await
        .map_err(late)?
}

fn late(_: tokio::time::error::Elapsed) -> io::Error {
    io::Error::from(io::ErrorKind::TimedOut)
}

impl From<Answer> for LocalAnswer {
    fn from(answer: Answer) -> Self {
        Self {
            done: Text::cut(answer.done.as_deref().unwrap_or_default()),
            failure: answer.done.err(),
            status: answer.status,
        }
    }
}

/// Asks the daemon of a run folder; the answer is of the kind that the request has.
///
/// # Errors
/// [`AskError`].
pub async fn ask<M: Message>(run: &Path, request: &LocalRequest) -> Result<M, AskError> {
    let path = socket(run);
    let mut stream = UnixStream::connect(&path)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                AskError::NotRunning { path }
            }
            _ => AskError::Connect { path, error },
        })?;
    frame::write(&mut stream, request).await?;
    timeout(ORDER_TIMEOUT, frame::read(&mut stream))
        .await
        .map_err(|_| AskError::TimedOut)??
        .ok_or(AskError::Ended)
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::bounded::List;
    use palisade_protocol::codec;
    use palisade_protocol::definitions::{
        BrakedSignature, GenerationEntry, LastOrder, MAX_BRAKED_SHOWN, MAX_GENERATIONS, Standing,
    };
    use palisade_protocol::verdict::{EngineGeneration, Generation, MAX_ENGINES};
    use proptest::prelude::*;

    fn long<const MAX: usize>() -> Text<MAX> {
        Text::cut(&"x".repeat(MAX))
    }

    #[test]
    fn the_largest_answer_fits_its_frame() {
        let engine = EngineGeneration {
            engine: long(),
            generation: Generation(u64::MAX),
            fingerprint: [0xff; 16],
        };
        let entry = GenerationEntry {
            generation: u64::MAX,
            standing: Standing::Refused,
            engines: List::cut(vec![engine; MAX_ENGINES]),
            origin: long(),
            added_ms: u64::MAX,
            bytes: u64::MAX,
        };
        let braked = BrakedSignature {
            engine: long(),
            name: long(),
            since_ms: u64::MAX,
        };
        let answer = LocalAnswer {
            done: long(),
            failure: Some(long()),
            status: DefinitionsStatus {
                generations: List::cut(vec![entry; MAX_GENERATIONS]),
                source: long(),
                problem: Some(long()),
                working: Some(long()),
                last: Some(LastOrder {
                    number: u64::MAX,
                    what: long(),
                    failure: Some(long()),
                }),
                braked: List::cut(vec![braked; MAX_BRAKED_SHOWN]),
            },
        };
        let bytes = codec::encode(&answer).unwrap();
        assert_eq!(codec::decode::<LocalAnswer>(&bytes).unwrap(), answer);
    }

    proptest! {
        #[test]
        fn random_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = codec::decode::<LocalRequest>(&bytes);
            let _ = codec::decode::<LocalAnswer>(&bytes);
        }
    }
}
