//! Contents whose verdict on disk must not count any more: noted before anybody is told.
//!
//! ```text
//!  not clean ──► note ──► one thread: append, fsync ──► told ──► Put, in its own time
//!                              │ it cannot be noted              │ it was written
//!                              ▼                                 ▼
//!                      the copy is set aside          all were: the notes end
//! ```
//!
//! The copy of the SharedCache lags behind and may lose writes. A lost clean verdict costs
//! a scan; a lost malware verdict would leave the clean one of earlier definitions, which
//! the next start served. So the key of whatever is not clean stands in a small file of
//! its own until the copy has it, and what is named there is dropped at a start. Owns that
//! file; does not own the copy ([`super::persist`]).
//!
//! **Invariant:** what is not clean is noted, or the copy is out of the way, before its
//! verdict is given; a disk that does not answer at all is waited for [`NOTE_WITHIN`] once,
//! and counted.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tokio::sync::oneshot;

use super::persist::{Health, set_aside};

/// Bytes of a note: the beginning of the key's BLAKE3.
const NOTE_BYTES: usize = 16;
/// Most bytes of notes; with more the copy is set aside instead.
const MAX_BYTES: u64 = 1 << 20;
/// Notes that may wait for the disk.
const QUEUE: usize = 256;
/// How long a verdict waits until it is noted.
const NOTE_WITHIN: Duration = Duration::from_secs(1);

/// A key, as it is noted.
pub(super) type Note = [u8; NOTE_BYTES];

/// What a key is noted as.
pub(super) fn note_of(key: &[u8]) -> Note {
    let mut note = [0; NOTE_BYTES];
    blake3::Hasher::new()
        .update(key)
        .finalize_xof()
        .fill(&mut note);
    note
}

/// What became of a note: the notes that it is among, if the copy has still to have its
/// verdict; nothing, where there is no copy that could say otherwise, or no note.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Noted(Option<u64>);

enum Say {
    Note(Note, oneshot::Sender<Noted>),
    Written(Noted),
}

/// The handle to the noting thread. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Overruled {
    say: SyncSender<Say>,
    /// The thread did not answer in time, and has not since.
    stuck: Arc<AtomicBool>,
    health: Arc<Health>,
}

impl Overruled {
    /// Starts the thread for the copy in `folder`.
    pub(super) fn start(folder: &Path, health: Arc<Health>) -> io::Result<Self> {
        let (say, said) = sync_channel(QUEUE);
        let stuck = Arc::new(AtomicBool::new(false));
        let notes = Notes {
            file: path(folder),
            folder: folder.to_owned(),
            bytes: 0,
            open: 0,
            epoch: 0,
            stuck: Arc::clone(&stuck),
            health: Arc::clone(&health),
        };
        std::thread::Builder::new()
            .name("cache-notes".to_owned())
            .spawn(move || notes.run(&said))?;
        Ok(Self { say, stuck, health })
    }

    /// Notes a key, so that it is on disk or the copy out of the way. Where neither can be
    /// had, that is counted.
    pub(super) async fn note(&self, key: &[u8]) -> Noted {
        let (done, noted) = oneshot::channel();
        let asked = self.say.try_send(Say::Note(note_of(key), done)).is_ok();
        let waits = asked && !self.stuck.load(Ordering::Relaxed);
        if waits && let Ok(Ok(noted)) = tokio::time::timeout(NOTE_WITHIN, noted).await {
            return noted;
        }
        if !self.stuck.swap(true, Ordering::Relaxed) {
            tracing::error!(
                "the disk does not take what overrules the SharedCache's copy: after a restart an older clean verdict may be served"
            );
        }
        self.health.unnoted();
        Noted::default()
    }

    /// A verdict that was noted is in the copy.
    pub(super) fn written(&self, noted: Noted) {
        // Otherwise it stays noted, and costs a scan at the next start.
        if noted.0.is_some()
            && let Err(TrySendError::Full(_)) = self.say.try_send(Say::Written(noted))
        {
            tracing::debug!("notes of the SharedCache stay");
        }
    }
}

/// The thread's own.
struct Notes {
    file: PathBuf,
    folder: PathBuf,
    bytes: u64,
    /// Notes whose verdicts are not in the copy yet.
    open: usize,
    /// Grows whenever the notes end: what is written of earlier ones counts no more.
    epoch: u64,
    stuck: Arc<AtomicBool>,
    health: Arc<Health>,
}

impl Notes {
    fn run(mut self, said: &Receiver<Say>) {
        while let Ok(first) = said.recv() {
            let (mut notes, mut waiting) = (Vec::new(), Vec::new());
            for say in std::iter::once(first).chain(said.try_iter().take(QUEUE)) {
                match say {
                    Say::Note(note, done) => {
                        notes.extend_from_slice(&note);
                        waiting.push(done);
                    }
                    Say::Written(Noted(epoch)) => {
                        let counts = epoch == Some(self.epoch);
                        self.open = self.open.saturating_sub(usize::from(counts));
                    }
                }
            }
            // A verdict that is being noted is not in the copy.
            if waiting.is_empty() && self.open == 0 && self.bytes > 0 {
                self.forget();
            }
            if !waiting.is_empty()
                && let Some(noted) = self.keep(&notes, waiting.len())
            {
                self.stuck.store(false, Ordering::Relaxed);
                for done in waiting {
                    // Whoever waited may be gone.
                    let _ = done.send(noted);
                }
            }
        }
    }

    /// Puts notes on disk, or else the copy out of the way; none if neither can be done.
    fn keep(&mut self, notes: &[u8], count: usize) -> Option<Noted> {
        let fits = self.bytes + notes.len() as u64 <= MAX_BYTES;
        let noted = match fits {
            true => append(&self.file, notes),
            false => Err(io::Error::other("too many notes")),
        };
        let Err(error) = noted else {
            self.bytes += notes.len() as u64;
            self.open += count;
            return Some(Noted(Some(self.epoch)));
        };
        let out_of_the_way = set_aside(&self.folder);
        if out_of_the_way.is_ok() {
            // What is written from here on is another copy.
            self.health.renew();
            self.forget();
        }
        tracing::error!(
            file = %self.file.display(), %error, ?out_of_the_way,
            "what overrules the SharedCache's copy cannot be noted; the copy is set aside"
        );
        out_of_the_way.is_ok().then(Noted::default)
    }

    fn forget(&mut self) {
        match end(&self.file) {
            Ok(()) => {
                (self.bytes, self.open) = (0, 0);
                self.epoch += 1;
            }
            Err(error) => tracing::debug!(%error, "notes of the SharedCache stay"),
        }
    }
}

fn append(file: &Path, notes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(file)?;
    file.write_all(notes)?;
    file.sync_data()
}

/// Where the notes about the copy in `folder` are.
fn path(folder: &Path) -> PathBuf {
    folder.with_extension("overruled")
}

/// What an earlier run noted and did not write.
pub(super) fn read(folder: &Path) -> Result<HashSet<Note>, String> {
    let path = path(folder);
    let mut bytes = Vec::new();
    let said = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    match File::open(&path) {
        Ok(file) => file
            .take(MAX_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| said(&error))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(HashSet::new()),
        Err(error) => return Err(said(&error)),
    };
    if bytes.len() as u64 > MAX_BYTES {
        return Err(said(&"more than it can hold"));
    }
    // What was not written to its end was not told to anybody.
    let (notes, _) = bytes.as_chunks::<NOTE_BYTES>();
    Ok(notes.iter().copied().collect())
}

/// All that was noted is in the copy, or the copy is gone.
pub(super) fn end_of(folder: &Path) -> io::Result<()> {
    end(&path(folder))
}

fn end(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
