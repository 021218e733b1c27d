//! `tasks.sock` in the run folder: commands order tasks and ask after them.
//!
//! One request a connection: a line of JSON ([`Request`]), answered by one JSON value
//! ([`Answer`]). Root and the agent's own user alone may ask.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use palisade_daemon::local;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::book::Wish;
use super::desk::Desk;
use super::saved::SavedPath;
use super::shown::Shown;
use super::task::Order;
use crate::current::Current;
use crate::scan::hands::Priority;
use crate::scan::what::Kind;

/// Commands at a time.
const MAX_CLIENTS: usize = 8;
/// How long a command may take to say what it wants, or to hear the answer.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest request, in bytes: all the paths of a task.
const MAX_REQUEST_BYTES: u64 = 8 << 20;
/// Largest answer that a command takes, in bytes.
const MAX_ANSWER_BYTES: u64 = 64 << 20;

/// From a command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// A new task.
    Start {
        /// What.
        kind: Kind,
        /// The paths of a custom one.
        paths: Vec<SavedPath>,
        /// How much it gives way; as the settings say, if none.
        priority: Option<Priority>,
    },
    /// All tasks.
    List,
    /// One task.
    Show {
        /// Which.
        id: u64,
    },
    /// Stop it, and keep its place.
    Pause {
        /// Which.
        id: u64,
    },
    /// Go on with it.
    Resume {
        /// Which.
        id: u64,
    },
    /// End it.
    Cancel {
        /// Which.
        id: u64,
    },
}

/// To a command.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// To a list.
    Tasks(Vec<Shown>),
    /// To all else.
    Task(Box<Shown>),
    /// Why it cannot be.
    Refused(String),
}

/// The socket in a run folder.
pub fn socket(run: &Path) -> PathBuf {
    run.join("tasks.sock")
}

/// Opens the socket; the caller holds the run folder.
///
/// # Errors
/// The file system's.
pub fn listen(run: &Path) -> io::Result<UnixListener> {
    local::listen(&socket(run))
}

/// Answers commands for ever.
pub async fn serve(listener: UnixListener, desk: Desk, priority: Current<Priority>) {
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
        let (desk, priority) = (desk.clone(), *priority.get());
        tokio::spawn(async move {
            if let Err(error) = converse(stream, &desk, priority).await {
                tracing::info!(%error, "a command was not answered");
            }
            drop(client);
        });
    }
}

async fn converse(
    mut stream: tokio::net::UnixStream,
    desk: &Desk,
    priority: Priority,
) -> io::Result<()> {
    if !local::is_trusted(&stream, nix::unistd::geteuid().as_raw())? {
        return Ok(());
    }
    let mut line = Vec::new();
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read.take(MAX_REQUEST_BYTES));
    timeout(CLIENT_TIMEOUT, read.read_until(b'\n', &mut line)).await??;
    let answer = match serde_json::from_slice::<Request>(&line) {
        Ok(request) => answer(desk, request, priority).await,
        Err(error) => Answer::Refused(format!("the request cannot be understood: {error}")),
    };
    let text = serde_json::to_vec(&answer)?;
    timeout(CLIENT_TIMEOUT, write.write_all(&text)).await?
}

async fn answer(desk: &Desk, request: Request, priority: Priority) -> Answer {
    let outcome = match request {
        Request::List => return Answer::Tasks(desk.list()),
        Request::Show { id } => desk.show(id),
        Request::Start {
            kind,
            paths,
            priority: wanted,
        } => {
            let wish = Wish {
                kind,
                paths,
                priority: wanted.unwrap_or(priority),
                schedule: None,
            };
            desk.add(wish).await
        }
        Request::Pause { id } => desk.order(id, Order::Pause).await,
        Request::Resume { id } => desk.order(id, Order::Resume).await,
        Request::Cancel { id } => desk.order(id, Order::Cancel).await,
    };
    match outcome {
        Ok(task) => Answer::Task(Box::new(task)),
        Err(reason) => Answer::Refused(reason),
    }
}

/// Asks the running agent.
///
/// # Errors
/// When none runs, or it does not answer.
pub fn ask(run: &Path, request: &Request) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket(run))?;
    stream.set_read_timeout(Some(CLIENT_TIMEOUT * 3))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut text = String::new();
    stream.take(MAX_ANSWER_BYTES).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn requests_are_one_line_of_json() {
        let request = Request::Start {
            kind: Kind::Custom,
            paths: vec![SavedPath("/a\nb".into())],
            priority: Some(Priority::Low),
        };
        assert_eq!(
            serde_json::to_string(&request).unwrap(),
            r#"{"do":"start","kind":"custom","paths":["/a\\x0ab"],"priority":"low"}"#
        );
        assert_eq!(
            serde_json::from_str::<Request>(r#"{"do":"show","id":3}"#).unwrap(),
            Request::Show { id: 3 }
        );
    }

    proptest! {
        #[test]
        fn random_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = serde_json::from_slice::<Request>(&bytes);
            let _ = serde_json::from_slice::<Answer>(&bytes);
        }
    }
}
