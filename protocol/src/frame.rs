//! Frames on a stream: a 4-byte little-endian length, then one encoded message.
//!
//! Owns the framing and its refusals; does not own deadlines, which belong to
//! whoever knows what it waits for.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::Poll;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::codec::{self, CodecError, Message};
use crate::content::FRAGMENT_BYTES;
use crate::scan;

/// Bytes of a frame's length prefix.
pub const PREFIX_BYTES: usize = 4;

/// Why no message could be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream failed, or ended within a frame.
    #[error("the stream ended or failed within a frame: {0}")]
    Io(#[from] std::io::Error),
    /// The message is not acceptable.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// Encodes a message with its length prefix.
///
/// # Errors
/// [`CodecError::TooLarge`] above the type's bound.
pub fn to_bytes<M: Message>(message: &M) -> Result<Vec<u8>, CodecError> {
    let body = codec::encode(message)?;
    let length = u32::try_from(body.len()).map_err(|_| CodecError::TooLarge {
        length: body.len(),
        max: M::MAX_BYTES,
    })?;
    let mut bytes = Vec::with_capacity(PREFIX_BYTES + body.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// The frame of a fragment whose bytes `fill` writes into their place: they are many,
/// and are not copied once more.
///
/// # Errors
/// What `fill` gives, or [`CodecError::TooLarge`] above [`FRAGMENT_BYTES`].
pub fn fragment<E: From<CodecError>>(
    index: u32,
    length: usize,
    fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<Vec<u8>, E> {
    let max = FRAGMENT_BYTES as usize;
    if length > max {
        return Err(CodecError::TooLarge { length, max }.into());
    }
    let head = codec::encode_head(scan::FRAGMENT_VARIANT, index, length)?;
    let body = head.len() + length;
    let prefix = u32::try_from(body).map_err(|_| CodecError::TooLarge { length, max })?;
    let mut frame = Vec::with_capacity(PREFIX_BYTES + body);
    frame.extend_from_slice(&prefix.to_le_bytes());
    frame.extend_from_slice(&head);
    let start = frame.len();
    frame.resize(start + length, 0);
    fill(&mut frame[start..])?;
    Ok(frame)
}

/// Writes one message.
///
/// # Errors
/// The stream's, or [`CodecError::TooLarge`].
pub async fn write<M: Message>(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &M,
) -> Result<(), FrameError> {
    stream.write_all(&to_bytes(message)?).await?;
    Ok(())
}

/// Reads one message; `None` when the stream ends before its first byte.
/// Nothing is allocated before the length was checked against the type's bound, and
/// what is allocated is not touched before bytes came for it: a peer that announces
/// much and sends little costs little.
/// Not cancel-safe: a cancelled read loses its place in the stream.
///
/// # Errors
/// The stream's, or a [`CodecError`].
pub async fn read<M: Message>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<M>, FrameError> {
    let mut body = Vec::new();
    match read_body(stream, &mut body, M::MAX_BYTES).await? {
        Some(body) => Ok(Some(codec::decode(body)?)),
        None => Ok(None),
    }
}

/// Takes in a stream's end, if it came together with the frame that was just read.
/// A receiving side that is dropped without it tells the peer to stop sending: a
/// datagram, and one more to acknowledge it, for a stream that had ended. Waits for
/// nothing.
pub async fn take_end(stream: &mut (impl AsyncRead + Unpin)) {
    let mut byte = [0];
    let mut read = pin!(stream.read(&mut byte));
    poll_fn(|context| {
        let _ = read.as_mut().poll(context);
        Poll::Ready(())
    })
    .await;
}

/// Reads one frame's body of at most `max` bytes into a buffer that is kept between
/// frames; `None` when the stream ends before its first byte. As [`read`] otherwise.
///
/// # Errors
/// The stream's, or [`CodecError::TooLarge`].
pub async fn read_body<'a>(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &'a mut Vec<u8>,
    max: usize,
) -> Result<Option<&'a [u8]>, FrameError> {
    let mut prefix = [0; PREFIX_BYTES];
    let first = stream.read(&mut prefix).await?;
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut prefix[first..]).await?;
    let length = u32::from_le_bytes(prefix) as usize;
    if length > max {
        return Err(CodecError::TooLarge { length, max }.into());
    }
    // Memory is touched as the bytes come: a peer that only announces them costs none.
    buffer.clear();
    buffer.reserve_exact(length);
    let mut rest = stream.take(length as u64);
    while buffer.len() < length {
        if rest.read_buf(buffer).await? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
    }
    Ok(Some(buffer))
}
