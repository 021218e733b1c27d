//! The canary: a signature that only this process knows, and content that shows it
//! only to an engine that can unpack.
//!
//! libclamav calls everything clean when it cannot write its temporary files. The
//! marker is in a gzip file, which libclamav unpacks to a temporary file, and the
//! signature matches at the start of a file only: the packed bytes do not match.

use palisade_worker::zygote::random_hex;
use std::fs;
use std::io;
use std::path::Path;

/// A canary of this process.
#[derive(Clone, Debug)]
pub struct Canary {
    /// Its signature's name, as libclamav reports it.
    pub name: String,
    /// A gzip file that holds the marker.
    pub content: Vec<u8>,
    signature: String,
}

impl Canary {
    /// A canary with a random marker.
    pub fn new() -> io::Result<Self> {
        let marker = random_hex(32)?;
        let name = format!("Palisade.Canary-{}", random_hex(4)?);
        Ok(Self {
            content: gzip(marker.as_bytes()),
            // Any type of file, offset 0.
            signature: format!("{name}:0:0:{}\n", hex_of(marker.as_bytes())),
            name: format!("{name}.UNOFFICIAL"),
        })
    }

    /// Hands the signature's file to `load`, and removes it again.
    pub fn with_file<T>(
        &self,
        scratch: &Path,
        load: impl FnOnce(&Path) -> Result<T, String>,
    ) -> Result<T, String> {
        let file = scratch.join(format!("canary-{}.ndb", std::process::id()));
        let failed = |error: io::Error| format!("{}: {error}", file.display());
        fs::write(&file, &self.signature).map_err(failed)?;
        let loaded = load(&file);
        fs::remove_file(&file).map_err(failed)?;
        loaded
    }
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A gzip file with one stored block; `bytes` are few.
fn gzip(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    let mut file = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1];
    file.extend(length.to_le_bytes());
    file.extend((!length).to_le_bytes());
    file.extend(bytes);
    file.extend(crc32(bytes).to_le_bytes());
    file.extend(u32::from(length).to_le_bytes());
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            if crc & 1 == 1 {
                (crc >> 1) ^ 0xedb8_8320
            } else {
                crc >> 1
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_value_of_crc_32() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }
}
