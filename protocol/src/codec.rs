//! Bounded encoding: the one place that knows bincode.
//!
//! Owns the wire's byte format (bincode 2, standard configuration: little
//! endian, variable-length integers). Each message type names its bound; a
//! value above it is refused when it is encoded as well as when it is decoded,
//! so that a peer's limit is never found out by a dropped connection.
//!
//! Message types must not be recursive and must not hold `Vec<()>`: the limit
//! counts bytes, and those have none.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Why bytes are not a message, or a message is not sendable.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// The encoded message is larger than its type's bound.
    #[error("a message of {length} bytes is over the bound of {max}")]
    TooLarge {
        /// Bytes of the message.
        length: usize,
        /// The bound, in bytes.
        max: usize,
    },
    /// The bytes end early, hold an unknown variant, or break a field's bound.
    #[error("the bytes are not a valid message: {0}")]
    Malformed(#[from] bincode::error::DecodeError),
    /// A whole message is followed by further bytes.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
    /// The value cannot be encoded.
    #[error("the message cannot be encoded: {0}")]
    Unencodable(#[from] bincode::error::EncodeError),
}

/// A type that travels as one frame.
pub trait Message: Serialize + DeserializeOwned {
    /// Largest encoding, in bytes.
    const MAX_BYTES: usize;
}

/// Decoding guard over all types: `with_limit` wants a constant, and constants of
/// a trait cannot be generic arguments. Above every [`Message::MAX_BYTES`], which is
/// checked first and so is the bound in force.
const DECODE_LIMIT: usize = 2 * 1024 * 1024;

/// Encodes a message.
///
/// # Errors
/// [`CodecError::TooLarge`] above the type's bound.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(message, bincode::config::standard())?;
    within(&bytes, M::MAX_BYTES)?;
    Ok(bytes)
}

/// Decodes a message; all bytes must belong to it.
///
/// # Errors
/// Any [`CodecError`] but `Unencodable`.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, CodecError> {
    within(bytes, M::MAX_BYTES)?;
    let config = bincode::config::standard().with_limit::<DECODE_LIMIT>();
    whole(bincode::serde::decode_from_slice(bytes, config)?, bytes)
}

/// As [`decode`], for a message that borrows from its bytes.
///
/// # Errors
/// As [`decode`].
pub fn decode_borrowed<'de, T: Deserialize<'de>>(
    bytes: &'de [u8],
    max: usize,
) -> Result<T, CodecError> {
    within(bytes, max)?;
    let config = bincode::config::standard().with_limit::<DECODE_LIMIT>();
    whole(
        bincode::serde::borrow_decode_from_slice(bytes, config)?,
        bytes,
    )
}

/// The encoding of an enum's variant up to a last field of `length` raw bytes, which
/// are to follow: for a message whose bytes are too many to be copied.
///
/// # Errors
/// [`CodecError::Unencodable`], which fixed numbers never are.
pub fn encode_head(variant: u32, field: u32, length: usize) -> Result<Vec<u8>, CodecError> {
    let head = (variant, field, length);
    Ok(bincode::serde::encode_to_vec(
        head,
        bincode::config::standard(),
    )?)
}

fn within(bytes: &[u8], max: usize) -> Result<(), CodecError> {
    if bytes.len() > max {
        return Err(CodecError::TooLarge {
            length: bytes.len(),
            max,
        });
    }
    Ok(())
}

fn whole<T>((message, used): (T, usize), bytes: &[u8]) -> Result<T, CodecError> {
    if used != bytes.len() {
        return Err(CodecError::Trailing(bytes.len() - used));
    }
    Ok(message)
}
