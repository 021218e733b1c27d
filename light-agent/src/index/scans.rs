//! Which files on-demand scans called clean: on disk, since a full scan sees more files
//! than an agent that stays light can remember.
//!
//! ```text
//!  scans (the daemon's tasks, `palisade-agent scan`) ─► blocks ─append─► held.1 ─► held.2
//!  a notice ─► both files are read through, once ─► the files that held what it names
//! ```
//!
//! Owns the two files, their format and bound; does not own what is done about what is
//! found ([`crate::again`]). A notice is rare and a scan's file is many: to write costs one
//! append for some hundred files, and to find reads at most twice [`MAX_BYTES`].
//!
//! Several processes append. A block is one write, so that blocks do not mix; one that was
//! cut short, as by a full disk, is passed over. Whatever cannot be written costs that
//! a file is found at its next open or scan, and no more.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use palisade_protocol::content::ContentId;
use palisade_protocol::trust::sha256;

use super::Held;
use crate::stamp::Stamp;

/// Largest size of each of the two files, in bytes: some 300,000 files.
const MAX_BYTES: u64 = 32 << 20;
/// Bytes of records that are gathered for one block.
const GATHERED_BYTES: usize = 32 * 1024;
/// How long records wait for others to share their block, while more come.
const GATHERED_FOR: Duration = Duration::from_secs(5);
/// Blocks that may wait for the disk.
const MAX_WAITING: usize = 16;
/// The writing thread's stack, in bytes.
const STACK_BYTES: usize = 128 * 1024;
/// Longest block, in bytes: one more record may come on top.
const MAX_BLOCK_BYTES: usize = GATHERED_BYTES + RECORD_BYTES + MAX_PATH_BYTES;
/// Longest path that is remembered, in bytes.
const MAX_PATH_BYTES: usize = 4096;
/// How a block begins.
const MAGIC: [u8; 8] = *b"palheld1";
/// Bytes of a block's head: magic, length, checksum.
const HEAD_BYTES: usize = 8 + 4 + 8;
/// Bytes of a content's id that are kept: who is found is asked about anyway.
const ID_BYTES: usize = 16;
/// Bytes of a record without its path: id, device, inode, the path's length.
const RECORD_BYTES: usize = ID_BYTES + 8 + 8 + 2;

/// Writes down what scans find clean, by a thread of its own: a disk that does not answer
/// holds up no scan.
#[derive(Debug)]
pub struct Scans {
    gathered: Mutex<Gathered>,
    blocks: SyncSender<Vec<u8>>,
    writer: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Gathered {
    records: Vec<u8>,
    /// When the first of them came.
    since: Option<Instant>,
}

impl Scans {
    /// For the files in the state folder.
    ///
    /// # Errors
    /// The kernel's, when there can be no thread.
    pub fn start(state: &Path) -> io::Result<Self> {
        let (blocks, written) = sync_channel::<Vec<u8>>(MAX_WAITING);
        let folder = state.to_owned();
        let writer = std::thread::Builder::new()
            .name("held".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                for records in written {
                    if let Err(error) = append(&folder, &records) {
                        lost(&folder, &error);
                    }
                }
            })?;
        Ok(Self {
            gathered: Mutex::default(),
            blocks,
            writer,
        })
    }

    /// A file's content was called clean.
    pub fn saw(&self, content: ContentId, file: &Stamp, path: &Path) {
        let path = path.as_os_str().as_encoded_bytes();
        let Some(length) = u16::try_from(path.len())
            .ok()
            .filter(|length| usize::from(*length) <= MAX_PATH_BYTES)
        else {
            return;
        };
        let mut gathered = self.lock();
        let since = *gathered.since.get_or_insert_with(Instant::now);
        let records = &mut gathered.records;
        records.extend_from_slice(&content.0[..ID_BYTES]);
        records.extend_from_slice(&file.device.to_le_bytes());
        records.extend_from_slice(&file.inode.to_le_bytes());
        records.extend_from_slice(&length.to_le_bytes());
        records.extend_from_slice(path);
        if records.len() >= GATHERED_BYTES || since.elapsed() >= GATHERED_FOR {
            self.send(&mut gathered);
        }
    }

    /// Has written what is gathered; does not wait for it.
    pub fn flush(&self) {
        self.send(&mut self.lock());
    }

    /// Writes what is gathered, and waits until all is written.
    pub fn finish(self) {
        self.flush();
        let Self { blocks, writer, .. } = self;
        drop(blocks);
        // It has said what it could not write.
        let _ = writer.join();
    }

    fn send(&self, gathered: &mut Gathered) {
        let Gathered { records, .. } = std::mem::take(gathered);
        if !records.is_empty() && self.blocks.try_send(records).is_err() {
            lost(
                Path::new("the state folder"),
                &io::Error::other("its disk does not keep up"),
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, Gathered> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lost(folder: &Path, error: &io::Error) {
    tracing::warn!(folder = %folder.display(), %error, "which files a scan called clean cannot be kept; if one turns bad, it is found at its next open or scan");
}

fn newest(folder: &Path) -> PathBuf {
    folder.join("held.1")
}

fn older(folder: &Path) -> PathBuf {
    folder.join("held.2")
}

fn append(folder: &Path, records: &[u8]) -> io::Result<()> {
    let path = newest(folder);
    let open = || {
        OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(&path)
    };
    let mut file = open()?;
    if file.metadata()?.len() >= MAX_BYTES {
        // Another process may do the same: who has the file's lock, and sees it there
        // still, makes it the older one.
        file.lock()?;
        let there = fs::metadata(&path).map(|there| (there.dev(), there.ino()));
        let own = file.metadata()?;
        if there.is_ok_and(|there| there == (own.dev(), own.ino())) {
            fs::rename(&path, older(folder))?;
        }
        file = open()?;
    }
    let mut block = Vec::with_capacity(HEAD_BYTES + records.len());
    block.extend_from_slice(&MAGIC);
    let length = u32::try_from(records.len()).map_err(io::Error::other)?;
    block.extend_from_slice(&length.to_le_bytes());
    block.extend_from_slice(&checksum(records));
    block.extend_from_slice(records);
    file.write_all(&block)
}

fn checksum(records: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&sha256(records)[..8]);
    sum
}

/// At most so many files that held one of these contents when a scan saw them last; those
/// of the newest scans first. Reads both files through.
pub fn find(state: &Path, contents: &[ContentId], most: usize) -> Vec<Held> {
    let wanted = |id: &[u8]| contents.iter().find(|content| content.0.starts_with(id));
    let mut found: Vec<Held> = Vec::new();
    let mut known = HashSet::new();
    for path in [newest(state), older(state)] {
        let read = each_record(&path, &mut |record| {
            let Some(content) = wanted(record.id) else {
                return;
            };
            if found.len() < most && known.insert((record.device, record.inode)) {
                found.push(Held {
                    content: *content,
                    device: record.device,
                    inode: record.inode,
                    path: record.path.into(),
                });
            }
        });
        match read {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "which files scans called clean is not known");
            }
            _ => {}
        }
    }
    found
}

struct Record<'a> {
    id: &'a [u8],
    device: u64,
    inode: u64,
    path: &'a [u8],
}

fn each_record(path: &Path, tell: &mut impl FnMut(&Record<'_>)) -> io::Result<()> {
    let mut file = BufReader::with_capacity(64 * 1024, File::open(path)?.take(2 * MAX_BYTES));
    let mut block = Vec::new();
    while skip_to_block(&mut file)? {
        if !read_block(&mut file, &mut block)? {
            // What follows may be whole: the next head is looked for.
            continue;
        }
        let mut rest = block.as_slice();
        while let Some(record) = next_record(&mut rest) {
            tell(&record);
        }
    }
    Ok(())
}

/// Reads on until a head's magic was read; whether there is one.
fn skip_to_block(file: &mut impl BufRead) -> io::Result<bool> {
    let mut matched = 0;
    while matched < MAGIC.len() {
        let buffer = file.fill_buf()?;
        let Some(&byte) = buffer.first() else {
            return Ok(false);
        };
        file.consume(1);
        matched = match byte == MAGIC[matched] {
            true => matched + 1,
            // No other byte of the magic is its first one.
            false => usize::from(byte == MAGIC[0]),
        };
    }
    Ok(true)
}

/// Reads what follows a magic; whether it is whole and what was written.
fn read_block(file: &mut impl BufRead, block: &mut Vec<u8>) -> io::Result<bool> {
    let mut head = [0; HEAD_BYTES - MAGIC.len()];
    match file.read_exact(&mut head) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        read => read?,
    }
    let [a, b, c, d, sum @ ..] = head;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    block.clear();
    if length > MAX_BLOCK_BYTES {
        return Ok(false);
    }
    file.take(length as u64).read_to_end(block)?;
    Ok(block.len() == length && checksum(block) == sum)
}

fn next_record<'a>(rest: &mut &'a [u8]) -> Option<Record<'a>> {
    let (id, after) = rest.split_at_checked(ID_BYTES)?;
    let (device, after) = after.split_first_chunk::<8>()?;
    let (inode, after) = after.split_first_chunk::<8>()?;
    let (length, after) = after.split_first_chunk::<2>()?;
    let (path, after) = after.split_at_checked(u16::from_le_bytes(*length).into())?;
    *rest = after;
    Some(Record {
        id,
        device: u64::from_le_bytes(*device),
        inode: u64::from_le_bytes(*inode),
        path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stamp(inode: u64) -> Stamp {
        Stamp {
            device: 1,
            inode,
            size: 10,
            modified_ns: 5,
            changed_ns: 5,
            regular: true,
        }
    }

    fn content(number: u8) -> ContentId {
        ContentId([number; 32])
    }

    fn inodes(found: &[Held]) -> Vec<u64> {
        found.iter().map(|held| held.inode).collect()
    }

    #[test]
    fn what_scans_saw_is_found_by_content() {
        let dir = tempfile::tempdir().unwrap();
        assert!(find(dir.path(), &[content(1)], 10).is_empty());
        let (one, two) = (
            Scans::start(dir.path()).unwrap(),
            Scans::start(dir.path()).unwrap(),
        );
        one.saw(content(1), &stamp(1), Path::new("/a b"));
        two.saw(content(2), &stamp(2), Path::new("/two"));
        two.saw(content(1), &stamp(3), Path::new("/three"));
        one.finish();
        two.finish();
        let again = Scans::start(dir.path()).unwrap();
        again.saw(content(1), &stamp(1), Path::new("/a b"));
        again.saw(content(1), &stamp(4), Path::new(&"/x".repeat(4000)));
        again.finish();
        let found = find(dir.path(), &[content(1), content(9)], 10);
        assert_eq!(inodes(&found), [1, 3], "each once, and no endless path");
        assert_eq!(found[0].path, b"/a b"[..].into());
        assert_eq!(find(dir.path(), &[content(1)], 1).len(), 1);
        let mode = fs::metadata(newest(dir.path())).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn two_files_of_bounded_size_are_all_that_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let scans = Scans::start(dir.path()).unwrap();
        scans.saw(content(1), &stamp(1), Path::new("/before"));
        scans.finish();
        let grown = OpenOptions::new().append(true).open(newest(dir.path()));
        grown.unwrap().set_len(MAX_BYTES).unwrap();
        let scans = Scans::start(dir.path()).unwrap();
        scans.saw(content(1), &stamp(2), Path::new("/after"));
        scans.finish();
        let found = find(dir.path(), &[content(1)], 10);
        assert_eq!(inodes(&found), [2, 1]);
        assert!(fs::metadata(newest(dir.path())).unwrap().len() < 1000);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    proptest! {
        /// Whatever is in the file is read to its end, and blocks around damage are found.
        #[test]
        fn damage_costs_what_it_hits(
            damage in prop::collection::vec(any::<u8>(), 0..200),
            cut in 0..60_usize,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let saw = |inode| {
                let scans = Scans::start(dir.path()).unwrap();
                scans.saw(content(1), &stamp(inode), Path::new("/next"));
                scans.finish();
            };
            saw(1);
            let whole = fs::read(newest(dir.path())).unwrap();
            let mut bytes = whole[..whole.len() - cut.min(whole.len())].to_vec();
            bytes.extend_from_slice(&damage);
            fs::write(newest(dir.path()), bytes).unwrap();
            saw(2);
            saw(3);
            let found = inodes(&find(dir.path(), &[content(1)], 10));
            // A head that was cut short may take a block after it along.
            prop_assert!(found.contains(&3) || cut > 0, "{found:?}");
            prop_assert!(found.iter().all(|inode| (1..4).contains(inode)), "{found:?}");
        }
    }
}
