//! Detections on their way to the Integration Server: on disk until it has them.
//!
//! Owns the folder `spool/` in the state folder: one file a batch, one detection a
//! line. Any process of the agent may add; the daemon sends and removes. The
//! number of files is bounded; what does not fit is counted and dropped, the
//! newest first, since the first finding says most.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use palisade_protocol::bounded::PathBytes;
use palisade_protocol::control::{Action, Detection, MAX_DETECTIONS};
use palisade_protocol::identity::write_atomic;
use palisade_protocol::ids::{DetectionId, TenantId};
use palisade_protocol::scan::ScanClass;
use palisade_protocol::verdict::Verdict;
use tokio::sync::{Notify, mpsc};

use crate::scanner::Scanned;

/// Batches that may wait; each holds up to [`MAX_DETECTIONS`].
pub const MAX_BATCHES: usize = 2048;
/// Detections that may wait for the disk.
const MAX_QUEUED: usize = 1024;

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

/// The detection that a scan's result makes, if it makes one.
pub fn detection(
    tenant: TenantId,
    path: &Path,
    scanned: &Scanned,
    action: Action,
    class: ScanClass,
) -> Option<Detection> {
    let (Verdict::Malware { name, engine } | Verdict::Suspicious { name, engine }) =
        &scanned.verdict
    else {
        return None;
    };
    Some(Detection {
        id: DetectionId::random(),
        time_ms: now_ms(),
        tenant,
        path: PathBytes::from_path(path),
        verdict: scanned.verdict.kind(),
        name: name.clone(),
        engine: engine.clone(),
        member: scanned.details.member.clone(),
        action,
        class,
        blake3: scanned.content.map(|content| content.0).unwrap_or_default(),
        sha256: scanned.sha256,
        size: scanned.size,
        pid: 0,
        container: None,
    })
}

/// The folder. Clones share the counter of what was dropped.
#[derive(Debug, Clone)]
pub struct Spool {
    folder: PathBuf,
    dropped: Arc<AtomicU64>,
}

/// A batch that waits.
#[derive(Debug)]
pub struct Batch {
    file: PathBuf,
    /// What was found.
    pub detections: Vec<Detection>,
}

impl Spool {
    /// The spool in a state folder.
    pub fn new(state: &Path) -> Self {
        Self {
            folder: state.join("spool"),
            dropped: Arc::default(),
        }
    }

    /// Keeps detections until they are sent.
    ///
    /// # Errors
    /// The disk's. What could not be kept is counted as dropped.
    pub fn put(&self, detections: &[Detection]) -> io::Result<()> {
        for batch in detections.chunks(MAX_DETECTIONS) {
            let kept = self.put_batch(batch);
            if !matches!(kept, Ok(true)) {
                self.dropped
                    .fetch_add(batch.len() as u64, Ordering::Relaxed);
            }
            kept?;
        }
        Ok(())
    }

    fn put_batch(&self, batch: &[Detection]) -> io::Result<bool> {
        if self.files()?.len() >= MAX_BATCHES {
            return Ok(false);
        }
        let mut text = Vec::new();
        for detection in batch {
            serde_json::to_writer(&mut text, detection)?;
            text.push(b'\n');
        }
        let name = format!("{:013}-{}.jsonl", now_ms(), DetectionId::random());
        write_atomic(&self.folder.join(name), &text, 0o600).map_err(io::Error::other)?;
        Ok(true)
    }

    /// The oldest batch. A file that is damaged is set aside.
    ///
    /// # Errors
    /// The disk's.
    pub fn next(&self) -> io::Result<Option<Batch>> {
        for file in self.files()? {
            let text = fs::read_to_string(&file)?;
            let detections: Result<Vec<Detection>, _> = text
                .lines()
                .take(MAX_DETECTIONS)
                .map(serde_json::from_str)
                .collect();
            match detections {
                Ok(detections) if !detections.is_empty() => {
                    return Ok(Some(Batch { file, detections }));
                }
                _ => {
                    tracing::error!(file = %file.display(), "a spooled batch is damaged and set aside");
                    fs::rename(&file, file.with_extension("damaged"))?;
                }
            }
        }
        Ok(None)
    }

    /// Forgets a batch that the Integration Server has.
    ///
    /// # Errors
    /// The disk's.
    pub fn done(&self, batch: &Batch) -> io::Result<()> {
        fs::remove_file(&batch.file)
    }

    /// Batches that wait.
    pub fn waiting(&self) -> usize {
        self.files().map_or(0, |files| files.len())
    }

    /// Detections that were dropped since the process started.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn files(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|extension| extension == "jsonl")
            {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }
}

/// Hands detections to the task that writes them; never blocks.
#[derive(Debug, Clone)]
pub struct Sender {
    queue: mpsc::Sender<Detection>,
    dropped: Arc<AtomicU64>,
}

impl Sender {
    /// Hands one on; a full queue is a counted drop.
    pub fn send(&self, detection: Detection) {
        if self.queue.try_send(detection).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Starts the task that writes detections, and tells `written` after each batch.
pub fn start(spool: &Spool, written: Arc<Notify>) -> Sender {
    let (queue, mut queued) = mpsc::channel(MAX_QUEUED);
    let sender = Sender {
        queue,
        dropped: Arc::clone(&spool.dropped),
    };
    let spool = spool.clone();
    tokio::spawn(async move {
        let mut batch = Vec::new();
        while queued.recv_many(&mut batch, MAX_DETECTIONS).await > 0 {
            let (spool, write) = (spool.clone(), std::mem::take(&mut batch));
            let put = tokio::task::spawn_blocking(move || spool.put(&write)).await;
            if let Ok(Err(error)) = put {
                tracing::error!(%error, "detections cannot be kept on disk");
            }
            written.notify_one();
        }
    });
    sender
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::bounded::Text;
    use palisade_protocol::verdict::VerdictKind;
    use std::os::unix::ffi::OsStrExt as _;

    fn found(path: &[u8]) -> Detection {
        Detection {
            id: DetectionId::random(),
            time_ms: 1,
            tenant: TenantId::default_tenant(),
            path: PathBytes::from_path(Path::new(std::ffi::OsStr::from_bytes(path))),
            verdict: VerdictKind::Malware,
            name: Text::cut("Eicar"),
            engine: Text::cut("e"),
            member: None,
            action: Action::Blocked,
            class: ScanClass::OnAccess,
            blake3: [7; 32],
            sha256: None,
            size: 3,
            pid: 4,
            container: Some(Text::cut("lxc:web")),
        }
    }

    #[test]
    fn batches_survive_and_leave_in_order() {
        let state = tempfile::tempdir().unwrap();
        let first = found(b"/a\xff\n");
        Spool::new(state.path())
            .put(std::slice::from_ref(&first))
            .unwrap();
        std::thread::sleep(std::time::Duration::from_millis(3));
        Spool::new(state.path()).put(&[found(b"/b")]).unwrap();

        let spool = Spool::new(state.path());
        let batch = spool.next().unwrap().unwrap();
        assert_eq!(batch.detections, [first]);
        spool.done(&batch).unwrap();
        assert_eq!(spool.waiting(), 1);
    }

    #[test]
    fn a_damaged_batch_holds_up_nothing() {
        let state = tempfile::tempdir().unwrap();
        let spool = Spool::new(state.path());
        spool.put(&[found(b"/b")]).unwrap();
        fs::write(state.path().join("spool/0-x.jsonl"), "{").unwrap();
        assert_eq!(spool.next().unwrap().unwrap().detections.len(), 1);
        assert!(state.path().join("spool/0-x.damaged").exists());
    }

    #[test]
    fn the_bound_drops_and_counts() {
        let state = tempfile::tempdir().unwrap();
        let spool = Spool::new(state.path());
        fs::create_dir_all(state.path().join("spool")).unwrap();
        for i in 0..MAX_BATCHES {
            fs::write(state.path().join(format!("spool/{i}.jsonl")), "").unwrap();
        }
        spool.put(&[found(b"/b")]).unwrap();
        assert_eq!((spool.waiting(), spool.dropped()), (MAX_BATCHES, 1));
    }
}
