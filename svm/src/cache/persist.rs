//! The SharedCache's copy on disk: the only file that knows sled.
//!
//! ```text
//! put ──try_send──► bounded channel ──► one thread ──► batches ──► sled
//!                                          │  ▲
//!                         it fails ────────┘  └── begun anew, after a while
//! ```
//!
//! sled keeps what was written through a killed process, and may lose it or
//! refuse to open (by a panic, even) after a power cut. So: opening happens on a
//! thread of its own, guarded and timed; a database that does not open is renamed
//! out of the way; each value carries a checksum over key and value, and one that
//! does not fit is dropped. A write that is lost costs a scan, and is counted: that a
//! clean verdict is overruled stands elsewhere before anybody is told ([`overruled`]), and
//! what it is said of is dropped at the start.
//!
//! A database that fails is set aside, and another one begun: at once, and then less and
//! less often.
//!
//! **Invariant:** nobody waits for the database. A full channel loses the write.

use std::collections::HashSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use palisade_protocol::codec;

use super::overruled::{self, Note, Noted, Overruled, note_of};
use super::{CopyCounts, Entry, Key};

/// Writes that may wait.
const QUEUE: usize = 8192;
/// Writes in one batch.
const BATCH: usize = 512;
/// How long a write waits for others to share its batch.
const GATHER: Duration = Duration::from_millis(200);
/// How long opening and reading the database may take.
const OPEN_WITHIN: Duration = Duration::from_secs(30);
/// How long another holder of the database may take to let go of it: sled's own
/// threads keep its lock for a moment after it was closed, and so does a process
/// that is being ended.
const LOCKED_WITHIN: Duration = Duration::from_secs(5);
/// How often a locked database is tried.
const LOCKED_POLL: Duration = Duration::from_millis(20);
/// How long closing may take.
const CLOSE_WITHIN: Duration = Duration::from_secs(3);
/// How often a full queue is looked at meanwhile.
const CLOSE_POLL: Duration = Duration::from_millis(10);
/// First and longest wait before a database that failed is begun anew.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));
/// sled's own page cache, in bytes: the copy is read once, at the start.
const PAGE_CACHE_BYTES: u64 = 16 << 20;
/// Bytes of the checksum before each value.
const SUM_BYTES: usize = 16;
/// What the checksum is for (BLAKE3's key derivation context).
const SUM_CONTEXT: &str = "palisade scanserver 2026 SharedCache entry";
/// The folder's format: another one is set aside.
const FORMAT: &[u8] = b"palisade-shared-cache 2";
/// Where the format stands in the database; no key is that short.
const FORMAT_KEY: &[u8] = b"format";

enum Write {
    Put {
        key: Vec<u8>,
        sealed: Vec<u8>,
        /// What was noted of what it overrules in the copy.
        noted: Noted,
    },
    Remove(Vec<u8>),
    Close(SyncSender<()>),
}

/// How the copy fares.
#[derive(Debug, Default)]
pub(super) struct Health {
    lost: AtomicU64,
    begun_anew: AtomicU64,
    unnoted: AtomicU64,
    /// The folder is another copy's from here on: the database is to be opened anew.
    renew: AtomicBool,
    /// The next batch fails: for tests.
    #[cfg(test)]
    fails: AtomicBool,
}

impl Health {
    /// It could not be noted that a verdict overrules the copy.
    pub(super) fn unnoted(&self) {
        self.unnoted.fetch_add(1, Ordering::Relaxed);
    }

    /// The copy was set aside under the writer's hands.
    pub(super) fn renew(&self) {
        self.renew.store(true, Ordering::Relaxed);
    }

    fn counts(&self) -> CopyCounts {
        CopyCounts {
            lost: self.lost.load(Ordering::Relaxed),
            begun_anew: self.begun_anew.load(Ordering::Relaxed),
            unnoted: self.unnoted.load(Ordering::Relaxed),
        }
    }
}

/// The handle to the writing thread. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Store {
    writes: SyncSender<Write>,
    overruled: Overruled,
    health: Arc<Health>,
}

impl Store {
    /// Notes that a content's clean verdict, if the copy holds one, counts no more: to be
    /// called before its verdict is given.
    pub(super) async fn overrule(&self, key: &Key) -> Noted {
        match codec::encode(key) {
            Ok(key) => self.overruled.note(&key).await,
            // Nor is it in the copy.
            Err(_) => Noted::default(),
        }
    }

    pub(super) fn counts(&self) -> CopyCounts {
        self.health.counts()
    }

    pub(super) fn insert(&self, key: &Key, entry: &Entry, noted: Noted) {
        let (Ok(key), Ok(value)) = (codec::encode(key), codec::encode(entry)) else {
            return;
        };
        let mut sealed = checksum(&key, &value).to_vec();
        sealed.extend_from_slice(&value);
        self.send(Write::Put { key, sealed, noted });
    }

    pub(super) fn remove(&self, key: &Key) {
        if let Ok(key) = codec::encode(key) {
            self.send(Write::Remove(key));
        }
    }

    pub(super) fn close(&self) {
        let deadline = Instant::now() + CLOSE_WITHIN;
        let (done, closed) = sync_channel(1);
        let mut close = Write::Close(done);
        while let Err(TrySendError::Full(back)) = self.writes.try_send(close) {
            if Instant::now() >= deadline {
                return;
            }
            close = back;
            std::thread::sleep(CLOSE_POLL);
        }
        let _ = closed.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }

    fn send(&self, write: Write) {
        if self.writes.try_send(write).is_err() {
            self.health.lost.fetch_add(1, Ordering::Relaxed);
            tracing::debug!("the SharedCache's copy on disk lags: a write is left out");
        }
    }
}

fn checksum(key: &[u8], value: &[u8]) -> [u8; SUM_BYTES] {
    let mut hasher = blake3::Hasher::new_derive_key(SUM_CONTEXT);
    hasher
        .update(&(key.len() as u64).to_le_bytes())
        .update(key)
        .update(value);
    let mut sum = [0; SUM_BYTES];
    hasher.finalize_xof().fill(&mut sum);
    sum
}

type Kept = Vec<(Key, Entry)>;

/// Opens the copy in `folder` and reads at most `entries` of it. `None` when there
/// can be no copy; the log says why.
pub(super) fn open(folder: &Path, entries: u64) -> (Option<Store>, Kept) {
    let opened = match noted_open(folder, entries) {
        Ok(opened) => Ok(opened),
        Err(reason) => {
            let aside = set_aside(folder);
            tracing::warn!(
                folder = %folder.display(), %reason, set_aside = ?aside,
                "the SharedCache on disk is damaged; it was set aside, and the cache starts empty"
            );
            aside
                .and_then(|_| overruled::end_of(folder))
                .map_err(|error| error.to_string())
                .and_then(|()| guarded_open(folder, entries, HashSet::new()))
        }
    };
    match opened {
        Ok((database, kept)) => {
            tracing::info!(entries = kept.len(), "the SharedCache was read from disk");
            match start(folder, database) {
                Ok(store) => (Some(store), kept),
                Err(error) => {
                    tracing::warn!(%error, "the SharedCache stays in memory alone");
                    (None, kept)
                }
            }
        }
        Err(reason) => {
            tracing::warn!(
                folder = %folder.display(), %reason,
                "the SharedCache cannot be kept on disk and stays in memory alone"
            );
            (None, Vec::new())
        }
    }
}

/// Opens it without what an earlier run noted. The notes are read and ended by this thread
/// alone: one that opens the database may hang, and go on when others are written.
fn noted_open(folder: &Path, entries: u64) -> Result<(sled::Db, Kept), String> {
    let opened = guarded_open(folder, entries, overruled::read(folder)?)?;
    overruled::end_of(folder).map_err(|error| error.to_string())?;
    Ok(opened)
}

/// Takes away what may be left of a copy that is not used: the next run that uses one would
/// serve what this one overrules.
///
/// # Errors
/// The file system's: it is still there.
pub(super) fn put_away(folder: &Path) -> io::Result<()> {
    if folder.exists() {
        set_aside(folder)?;
    }
    overruled::end_of(folder)
}

fn start(folder: &Path, database: sled::Db) -> io::Result<Store> {
    let health = Arc::<Health>::default();
    let overruled = Overruled::start(folder, Arc::clone(&health))?;
    let (writes, queue) = sync_channel(QUEUE);
    let writer = Writer {
        folder: folder.to_owned(),
        queue,
        overruled: overruled.clone(),
        health: Arc::clone(&health),
    };
    std::thread::Builder::new()
        .name("cache-writer".to_owned())
        .spawn(move || writer.run(database))?;
    Ok(Store {
        writes,
        overruled,
        health,
    })
}

fn guarded_open(
    folder: &Path,
    entries: u64,
    overruled: HashSet<Note>,
) -> Result<(sled::Db, Kept), String> {
    let (done, opened) = sync_channel(1);
    let folder = folder.to_owned();
    std::thread::Builder::new()
        .name("cache-open".to_owned())
        .spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(|| read(&folder, entries, &overruled)));
            // Nobody may be waiting any more.
            let _ = done.send(result.unwrap_or_else(|_| Err("opening it panicked".to_owned())));
        })
        .map_err(|error| error.to_string())?;
    opened.recv_timeout(OPEN_WITHIN).unwrap_or_else(|_| {
        Err(format!(
            "it did not open within {} s",
            OPEN_WITHIN.as_secs()
        ))
    })
}

fn read(
    folder: &Path,
    entries: u64,
    overruled: &HashSet<Note>,
) -> Result<(sled::Db, Kept), String> {
    std::fs::create_dir_all(folder).map_err(|error| error.to_string())?;
    let config = sled::Config::new()
        .path(folder)
        .cache_capacity(PAGE_CACHE_BYTES)
        .flush_every_ms(Some(1000));
    let database = open_unlocked(&config)?;
    match database
        .get(FORMAT_KEY)
        .map_err(|error| error.to_string())?
    {
        Some(format) if format == FORMAT => {}
        None if database.is_empty() => {
            database
                .insert(FORMAT_KEY, FORMAT)
                .map_err(|error| error.to_string())?;
            database.flush().map_err(|error| error.to_string())?;
        }
        _ => return Err("it has an unknown format".to_owned()),
    }
    let mut kept = Vec::new();
    let mut dropped: u64 = 0;
    for pair in database.iter() {
        let (key, sealed) = pair.map_err(|error| error.to_string())?;
        if key == FORMAT_KEY {
            continue;
        }
        let counts = overruled.is_empty() || !overruled.contains(&note_of(&key));
        match unseal(&key, &sealed) {
            Some(pair) if counts && (kept.len() as u64) < entries => kept.push(pair),
            _ => {
                dropped += 1;
                database.remove(&key).map_err(|error| error.to_string())?;
            }
        }
    }
    if dropped > 0 {
        tracing::warn!(
            dropped,
            "entries of the SharedCache were unusable, overruled or too many"
        );
    }
    if !overruled.is_empty() {
        database.flush().map_err(|error| error.to_string())?;
    }
    Ok((database, kept))
}

/// Opens the database once nobody else has it. A lock says nothing about what is
/// in it: taken for damage, it would cost a good copy.
fn open_unlocked(config: &sled::Config) -> Result<sled::Db, String> {
    let deadline = Instant::now() + LOCKED_WITHIN;
    loop {
        match config.open() {
            Ok(database) => return Ok(database),
            Err(error) if is_lock(&error) && Instant::now() < deadline => {
                std::thread::sleep(LOCKED_POLL);
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// sled has no error of its own for a lock that another holds: it is an
/// [`std::io::ErrorKind::Other`] with this text.
fn is_lock(error: &sled::Error) -> bool {
    matches!(error, sled::Error::Io(error) if error.to_string().contains("could not acquire lock"))
}

fn unseal(key: &[u8], sealed: &[u8]) -> Option<(Key, Entry)> {
    let (sum, value) = sealed.split_at_checked(SUM_BYTES)?;
    if sum != checksum(key, value) {
        return None;
    }
    Some((codec::decode(key).ok()?, codec::decode(value).ok()?))
}

/// Renames what is there; one such folder is kept, for whoever wants to know. Gives where
/// it is.
pub(super) fn set_aside(folder: &Path) -> io::Result<PathBuf> {
    let aside: PathBuf = folder.with_extension("damaged");
    let _ = std::fs::remove_dir_all(&aside);
    match std::fs::rename(folder, &aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(aside),
    }
}

/// The writing thread.
struct Writer {
    folder: PathBuf,
    queue: Receiver<Write>,
    overruled: Overruled,
    health: Arc<Health>,
}

/// Why the writer is done with a database.
enum Ended {
    /// Nobody writes any more; who waits for that, if anybody does.
    Closed(Option<SyncSender<()>>),
    /// It was set aside.
    Renew,
}

impl Writer {
    fn run(self, database: sled::Db) {
        let mut database = Some(database);
        let mut wait = RETRY.0;
        loop {
            let ended = match database.take() {
                // The closure owns it: closed means that another may open it.
                Some(database) => {
                    let ended = catch_unwind(AssertUnwindSafe(|| self.write_batches(&database)));
                    drop(database);
                    ended.unwrap_or_else(|_| Err("the database panicked".to_owned()))
                }
                None => Err("it is still not to be had".to_owned()),
            };
            match ended {
                Ok(Ended::Closed(closing)) => {
                    if let Some(done) = closing {
                        let _ = done.send(());
                    }
                    return;
                }
                Ok(Ended::Renew) => wait = RETRY.0,
                Err(reason) => {
                    let again_s = wait.as_secs();
                    tracing::warn!(
                        reason,
                        again_s,
                        "the SharedCache's copy on disk fails; it is begun anew"
                    );
                    if let Some(closing) = self.rest(wait) {
                        let _ = closing.map(|done| done.send(()));
                        return;
                    }
                    wait = (wait * 2).min(RETRY.1);
                }
            }
            // Nothing is known of what it holds, unless that was taken away already.
            let away = self.health.renew.swap(false, Ordering::Relaxed);
            let aside = match away {
                true => Ok(()),
                false => set_aside(&self.folder).map(drop),
            };
            let opened = aside.map_err(|error| error.to_string());
            match opened.and_then(|()| guarded_open(&self.folder, 0, HashSet::new())) {
                Ok((fresh, _)) => {
                    self.health.begun_anew.fetch_add(1, Ordering::Relaxed);
                    database = Some(fresh);
                }
                Err(reason) => tracing::debug!(reason, "the SharedCache has no copy on disk"),
            }
        }
    }

    /// Waits, and loses what is written meanwhile; the end, if that comes.
    fn rest(&self, wait: Duration) -> Option<Option<SyncSender<()>>> {
        let deadline = Instant::now() + wait;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.queue.recv_timeout(left) {
                Ok(Write::Close(done)) => return Some(Some(done)),
                Ok(_) => {
                    self.health.lost.fetch_add(1, Ordering::Relaxed);
                }
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => return Some(None),
            }
        }
    }

    fn write_batches(&self, database: &sled::Db) -> Result<Ended, String> {
        while let Ok(first) = self.queue.recv() {
            let deadline = Instant::now() + GATHER;
            let mut batch = sled::Batch::default();
            let mut closing = None;
            let mut next = Some(first);
            let (mut count, mut overruling) = (0_usize, Vec::new());
            while let Some(write) = next.take() {
                match write {
                    Write::Put { key, sealed, noted } => {
                        overruling.push(noted);
                        batch.insert(key, sealed);
                    }
                    Write::Remove(key) => batch.remove(key),
                    Write::Close(done) => {
                        closing = Some(done);
                        break;
                    }
                }
                count += 1;
                if count < BATCH {
                    next = self
                        .queue
                        .recv_timeout(deadline.saturating_duration_since(Instant::now()))
                        .ok();
                }
            }
            if self.health.renew.load(Ordering::Relaxed) {
                self.health.lost.fetch_add(count as u64, Ordering::Relaxed);
                if closing.is_some() {
                    return Ok(Ended::Closed(closing));
                }
                return Ok(Ended::Renew);
            }
            let written = self.write(database, batch);
            if let Err(error) = written {
                self.health.lost.fetch_add(count as u64, Ordering::Relaxed);
                if closing.is_some() {
                    return Ok(Ended::Closed(closing));
                }
                return Err(error.to_string());
            }
            for noted in overruling {
                self.overruled.written(noted);
            }
            if closing.is_some() {
                return Ok(Ended::Closed(closing));
            }
        }
        Ok(Ended::Closed(None))
    }

    fn write(&self, database: &sled::Db, batch: sled::Batch) -> sled::Result<()> {
        #[cfg(test)]
        if self.health.fails.load(Ordering::Relaxed) {
            return Err(sled::Error::Unsupported("the disk fails".to_owned()));
        }
        database.apply_batch(batch)?;
        database.flush()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
