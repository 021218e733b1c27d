//! Protection Servers pull signed definitions, on streams of their own within the session.
//!
//! One stream of a session is served at a time, and on it one part: what is pulled is no
//! more than a quarter of what the session may have on its way, at a lower priority, so
//! that answers and orders go on meanwhile. Only who was let in is served.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use palisade_protocol::frame;
use palisade_protocol::pull::{Answer, Wanted};
use quinn::{Connection, RecvStream, SendStream};

use crate::definitions::Repository;

/// How long a stream may be silent, and how long a part may take to be sent.
const STREAM_TIMEOUT: Duration = Duration::from_secs(30);
/// Below the stream of the session itself.
const PRIORITY: i32 = -1;

/// Serves one stream after the other, until the connection ends.
pub async fn serve(repository: &Repository, connection: &Connection, admitted: &AtomicBool) {
    while let Ok((send, receive)) = connection.accept_bi().await {
        if !admitted.load(Ordering::Relaxed) {
            // Both are reset when dropped.
            continue;
        }
        stream(repository, send, receive).await;
    }
}

async fn stream(repository: &Repository, mut send: SendStream, mut receive: RecvStream) {
    if send.set_priority(PRIORITY).is_err() {
        return;
    }
    loop {
        let asked = tokio::time::timeout(STREAM_TIMEOUT, frame::read::<Wanted>(&mut receive));
        let Ok(Ok(Some(Wanted { what, from }))) = asked.await else {
            return;
        };
        let answer = repository.part(what, from).await.unwrap_or_else(|error| {
            tracing::error!(%error, "definitions cannot be read for a Protection Server");
            Answer::Absent
        });
        let sent = tokio::time::timeout(STREAM_TIMEOUT, frame::write(&mut send, &answer)).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
    }
}
