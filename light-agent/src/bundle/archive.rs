//! The bundle's file: a tar of texts, compressed, and bounded in size.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

/// Bytes of one text; of a longer one the end is kept, which is the newest of a log.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// Texts that are to be written.
#[derive(Debug, Default)]
pub struct Archive {
    texts: Vec<(&'static str, Vec<u8>)>,
}

impl Archive {
    /// Adds a text.
    pub fn add(&mut self, name: &'static str, text: &str) {
        let bytes = text.as_bytes();
        let from = bytes.len().saturating_sub(MAX_TEXT_BYTES);
        self.texts.push((name, bytes[from..].to_vec()));
    }

    /// Writes all of it into a new file that its owner alone may read; gives its size.
    ///
    /// # Errors
    /// The file's. One that is there already is not overwritten.
    pub fn write(&self, path: &Path) -> io::Result<u64> {
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        let mut tar = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        for (name, text) in &self.texts {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_mode(0o600);
            header.set_cksum();
            tar.append_data(
                &mut header,
                format!("palisade-agent/{name}"),
                text.as_slice(),
            )?;
        }
        let file = tar.into_inner()?.finish()?;
        file.sync_all()?;
        Ok(file.metadata()?.len())
    }
}
