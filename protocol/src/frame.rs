//! Frames on a stream: a 4-byte little-endian length, then one encoded message.
//!
//! Owns the framing and its refusals; does not own deadlines, which belong to
//! whoever knows what it waits for.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::codec::{self, CodecError, Message};

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
/// Nothing is allocated before the length was checked against the type's bound.
/// Not cancel-safe: a cancelled read loses its place in the stream.
///
/// # Errors
/// The stream's, or a [`CodecError`].
pub async fn read<M: Message>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<M>, FrameError> {
    let mut prefix = [0; PREFIX_BYTES];
    let first = stream.read(&mut prefix).await?;
    if first == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut prefix[first..]).await?;
    let length = u32::from_le_bytes(prefix) as usize;
    if length > M::MAX_BYTES {
        return Err(CodecError::TooLarge {
            length,
            max: M::MAX_BYTES,
        }
        .into());
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(codec::decode(&body)?))
}
