//! The SharedCache's copy on disk: the only file that knows sled.
//!
//! ```text
//! put ──try_send──► bounded channel ──► one thread ──► batches ──► sled
//! ```
//!
//! sled keeps what was written through a killed process, and may lose it or
//! refuse to open (by a panic, even) after a power cut. So: opening happens on a
//! thread of its own, guarded and timed; a database that does not open is renamed
//! out of the way; each value carries a checksum over key and value, and one that
//! does not fit is dropped. A lost copy costs scans, never a wrong verdict.
//!
//! **Invariant:** nobody waits for the disk. A full channel loses the write.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use palisade_protocol::codec;

use super::{Entry, Key};

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
    Put(Vec<u8>, Vec<u8>),
    Remove(Vec<u8>),
    Close(SyncSender<()>),
}

/// The handle to the writing thread. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Store {
    writes: SyncSender<Write>,
}

impl Store {
    pub(super) fn insert(&self, key: &Key, entry: &Entry) {
        let (Ok(key), Ok(value)) = (codec::encode(key), codec::encode(entry)) else {
            return;
        };
        let mut sealed = checksum(&key, &value).to_vec();
        sealed.extend_from_slice(&value);
        self.send(Write::Put(key, sealed));
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
    let opened = match guarded_open(folder, entries) {
        Ok(opened) => Ok(opened),
        Err(reason) => {
            let aside = set_aside(folder);
            tracing::warn!(
                folder = %folder.display(), %reason, set_aside = %aside,
                "the SharedCache on disk is damaged; it was set aside, and the cache starts empty"
            );
            guarded_open(folder, entries)
        }
    };
    match opened {
        Ok((database, kept)) => {
            tracing::info!(entries = kept.len(), "the SharedCache was read from disk");
            let (writes, queue) = sync_channel(QUEUE);
            let thread = std::thread::Builder::new()
                .name("cache-writer".to_owned())
                .spawn(move || write_all(database, &queue));
            match thread {
                Ok(_) => (Some(Store { writes }), kept),
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

fn guarded_open(folder: &Path, entries: u64) -> Result<(sled::Db, Kept), String> {
    let (done, opened) = sync_channel(1);
    let folder = folder.to_owned();
    std::thread::Builder::new()
        .name("cache-open".to_owned())
        .spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(|| read(&folder, entries)));
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

fn read(folder: &Path, entries: u64) -> Result<(sled::Db, Kept), String> {
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
        match unseal(&key, &sealed) {
            Some(pair) if (kept.len() as u64) < entries => kept.push(pair),
            _ => {
                dropped += 1;
                database.remove(&key).map_err(|error| error.to_string())?;
            }
        }
    }
    if dropped > 0 {
        tracing::warn!(
            dropped,
            "entries of the SharedCache were unusable or too many"
        );
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

/// Renames what is there; one such folder is kept, for whoever wants to know.
fn set_aside(folder: &Path) -> String {
    let aside: PathBuf = folder.with_extension("damaged");
    let _ = std::fs::remove_dir_all(&aside);
    match std::fs::rename(folder, &aside) {
        Ok(()) => aside.display().to_string(),
        Err(error) => format!("not possible: {error}"),
    }
}

fn write_all(database: sled::Db, queue: &Receiver<Write>) {
    let ended = catch_unwind(AssertUnwindSafe(|| write_batches(&database, queue)));
    // Closed means that another may open it.
    drop(database);
    let reason = match ended {
        Ok(Ok(closing)) => {
            if let Some(done) = closing {
                let _ = done.send(());
            }
            return;
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => "the database panicked".to_owned(),
    };
    tracing::warn!(reason, "the SharedCache is no longer kept on disk");
}

fn write_batches(
    database: &sled::Db,
    queue: &Receiver<Write>,
) -> sled::Result<Option<SyncSender<()>>> {
    while let Ok(first) = queue.recv() {
        let deadline = Instant::now() + GATHER;
        let mut batch = sled::Batch::default();
        let mut closing = None;
        let mut next = Some(first);
        let mut count = 0;
        while let Some(write) = next.take() {
            match write {
                Write::Put(key, value) => batch.insert(key, value),
                Write::Remove(key) => batch.remove(key),
                Write::Close(done) => {
                    closing = Some(done);
                    break;
                }
            }
            count += 1;
            if count < BATCH {
                next = queue
                    .recv_timeout(deadline.saturating_duration_since(Instant::now()))
                    .ok();
            }
        }
        database.apply_batch(batch)?;
        database.flush()?;
        if closing.is_some() {
            return Ok(closing);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::super::SharedCache;
    use super::super::tests::{current, entry, generations, key};
    use super::*;
    use std::fs;

    fn filled(folder: &Path, count: u32) {
        let cache = SharedCache::open(folder, 1000);
        for n in 0..count {
            cache.put(key(&n.to_le_bytes()), entry(1));
        }
        cache.close();
    }

    fn reopened(folder: &Path) -> u32 {
        let cache = SharedCache::open(folder, 1000);
        let found = (0..100u32)
            .filter(|n| current(&cache, &key(&n.to_le_bytes()), &generations(1)).is_some());
        let found = found.count() as u32;
        cache.close();
        found
    }

    #[test]
    fn entries_outlive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cache");
        filled(&folder, 100);
        assert_eq!(reopened(&folder), 100);
    }

    /// Without the wait the good copy is set aside, and nothing is found.
    #[test]
    fn a_copy_that_another_still_holds_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("cache");
        filled(&folder, 100);
        let held = open_unlocked(&sled::Config::new().path(&folder)).unwrap();
        let refused = sled::Config::new().path(&folder).open();
        assert!(refused.is_err_and(|error| is_lock(&error)));
        let holder = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(300));
            drop(held);
        });
        assert_eq!(reopened(&folder), 100);
        holder.join().unwrap();
        assert!(!folder.with_extension("damaged").exists());
    }

    #[test]
    fn a_damaged_database_is_never_fatal_and_never_wrong() {
        for damage in ["truncate", "garbage", "file"] {
            let dir = tempfile::tempdir().unwrap();
            let folder = dir.path().join("cache");
            filled(&folder, 100);
            if damage == "file" {
                fs::remove_dir_all(&folder).unwrap();
                fs::write(&folder, "not a folder").unwrap();
            } else {
                for file in fs::read_dir(&folder).unwrap() {
                    let path = file.unwrap().path();
                    let Ok(bytes) = fs::read(&path) else { continue };
                    let damaged = match damage {
                        "truncate" => bytes[..bytes.len() / 3].to_vec(),
                        _ => vec![0xa5; bytes.len()],
                    };
                    fs::write(&path, damaged).unwrap();
                }
            }
            assert!(reopened(&folder) <= 100, "{damage}");
            // And from then on it works again.
            let cache = SharedCache::open(&folder, 1000);
            cache.put(key(b"after"), entry(1));
            cache.close();
            drop(cache);
            let cache = SharedCache::open(&folder, 1000);
            assert!(
                current(&cache, &key(b"after"), &generations(1)).is_some(),
                "{damage}"
            );
        }
    }

    #[test]
    fn a_value_that_does_not_fit_its_key_is_dropped() {
        let value = codec::encode(&entry(1)).unwrap();
        let (a, b) = (
            codec::encode(&key(b"a")).unwrap(),
            codec::encode(&key(b"b")).unwrap(),
        );
        let mut sealed = checksum(&a, &value).to_vec();
        sealed.extend_from_slice(&value);
        assert!(unseal(&a, &sealed).is_some());
        assert!(
            unseal(&b, &sealed).is_none(),
            "a clean verdict moved to another content"
        );
        *sealed.last_mut().unwrap() ^= 1;
        assert!(unseal(&a, &sealed).is_none());
        assert!(unseal(&a, &[]).is_none());
    }
}
