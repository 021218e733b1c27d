//! The kept verdicts' file, `verdicts.redb` in the state folder: the only file that
//! knows redb.
//!
//! Every entry carries a MAC over content, verdict, definitions, scan options and the
//! agent's id, under a key derived from the agent's own. So what is damaged, cut short,
//! of another agent, of other options or of another version is not believed: the
//! database is removed, the reason is said, and an empty one begins. All it holds can be
//! asked for again.
//!
//! redb is sound after a killed process and a lost machine. It may panic on a file that
//! was changed under it: whoever calls this expects that ([`super::writer`]).

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use palisade_protocol::content::ContentId;
use palisade_protocol::identity::Identity;
use palisade_protocol::scan::ScanOptions;
use redb::{
    ReadableDatabase as _, ReadableTable as _, ReadableTableMetadata as _, TableDefinition,
};
use ring::hmac;

use super::kept::{Batch, Common, Entry, MOST};

/// The file in the state folder.
pub const FILE: &str = "verdicts.redb";
/// redb's own cache, in bytes: the file is read once, and then written in batches.
const CACHE_BYTES: usize = 512 * 1024;
/// A larger file is none of ours, in bytes.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Bytes of one entry, at the most.
const MAX_ENTRY_BYTES: usize = 1024;
/// How long a process that is ending may take to let go of the file.
const LOCKED_WITHIN: Duration = Duration::from_secs(2);
/// How often a locked file is tried.
const LOCKED_POLL: Duration = Duration::from_millis(20);
/// Bytes of a MAC that are kept.
const TAG_BYTES: usize = 16;
/// The shape of the file, and what its MACs are for.
const FORMAT: &str = "palisade agent 2026 kept verdicts 1";

const VERDICTS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("verdicts");
const COMMON: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("common");

/// Why there is nothing to be read.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The file system's word.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// redb's word.
    #[error(transparent)]
    Database(Box<redb::Error>),
    /// It is not what this agent wrote.
    #[error("{0}")]
    NotOurs(&'static str),
}

impl<E: Into<redb::Error>> From<E> for Unusable
where
    E: std::error::Error + redb_error::Sealed,
{
    fn from(error: E) -> Self {
        Self::Database(Box::new(error.into()))
    }
}

/// redb has an error for each kind of work: they are one here.
mod redb_error {
    pub trait Sealed {}
    impl Sealed for redb::DatabaseError {}
    impl Sealed for redb::TransactionError {}
    impl Sealed for redb::TableError {}
    impl Sealed for redb::StorageError {}
    impl Sealed for redb::CommitError {}
}

/// Who may read what is written.
#[derive(Clone)]
pub struct Seal {
    key: hmac::Key,
}

impl Seal {
    /// Of an agent that asks with these options.
    pub fn new(identity: &Identity, options: ScanOptions) -> Self {
        let own = hmac::Key::new(hmac::HMAC_SHA256, identity.key_pkcs8());
        let ScanOptions {
            archives,
            heuristics,
            pua,
        } = options;
        let of = format!("{FORMAT} {} {archives} {heuristics} {pua}", identity.id());
        let derived = hmac::sign(&own, of.as_bytes());
        Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()),
        }
    }

    fn tag(&self, parts: &[&[u8]]) -> [u8; TAG_BYTES] {
        let mut context = hmac::Context::with_key(&self.key);
        for part in parts {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        let mut tag = [0; TAG_BYTES];
        for (to, from) in tag.iter_mut().zip(context.sign().as_ref()) {
            *to = *from;
        }
        tag
    }

    fn sealed(&self, parts: &[&[u8]], value: Vec<u8>) -> Vec<u8> {
        let tag = self.tag(&[parts, &[value.as_slice()]].concat());
        [tag.as_slice(), value.as_slice()].concat()
    }

    fn opened<'a>(&self, parts: &[&[u8]], sealed: &'a [u8]) -> Option<&'a [u8]> {
        let (tag, value) = sealed.split_at_checked(TAG_BYTES)?;
        let own = self.tag(&[parts, &[value]].concat());
        let differences = own.iter().zip(tag).fold(0, |sum, (a, b)| sum | (a ^ b));
        (differences == 0).then_some(value)
    }
}

/// The open file.
pub struct Database {
    file: redb::Database,
    seal: Seal,
}

/// What it held.
pub type Held = (Common, Vec<(ContentId, Entry)>);

impl Database {
    /// Opens the file, or makes an empty one; gives what it holds.
    ///
    /// # Errors
    /// Why it cannot be used; the caller removes it then.
    pub fn open(path: &Path, seal: Seal) -> Result<(Self, Option<Held>), Unusable> {
        match std::fs::metadata(path) {
            Ok(found) if found.len() > MAX_FILE_BYTES => {
                return Err(Unusable::NotOurs("it is too large to be ours"));
            }
            // redb takes an empty file for a new one: it is one that was cut short.
            Ok(found) if found.len() == 0 => return Err(Unusable::NotOurs("it is empty")),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let database = Self {
            file: patiently(path)?,
            seal,
        };
        let held = database.read()?;
        Ok((database, held))
    }

    fn read(&self) -> Result<Option<Held>, Unusable> {
        let transaction = self.file.begin_read()?;
        let common = match transaction.open_table(COMMON) {
            Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
            table => table?,
        };
        let Some(sealed) = common.get(FORMAT)? else {
            return Err(Unusable::NotOurs("it is of another version"));
        };
        let foreign = || Unusable::NotOurs("it is damaged, or of another agent or other settings");
        let text = self.seal.opened(&[], sealed.value()).ok_or_else(foreign)?;
        let common: Common = serde_json::from_slice(text).map_err(|_| foreign())?;
        let definitions = definitions(&common);
        let table = transaction.open_table(VERDICTS)?;
        if table.len()? > MOST as u64 {
            return Err(Unusable::NotOurs("it holds more than we keep"));
        }
        let mut entries = Vec::new();
        for row in table.iter()? {
            let (content, sealed) = row?;
            let content = content.value();
            let sealed = sealed.value();
            if sealed.len() > MAX_ENTRY_BYTES {
                return Err(foreign());
            }
            let parts: [&[u8]; 2] = [content, &definitions];
            let text = self.seal.opened(&parts, sealed).ok_or_else(foreign)?;
            let entry = serde_json::from_slice(text).map_err(|_| foreign())?;
            entries.push((ContentId(*content), entry));
        }
        Ok(Some((common, entries)))
    }

    /// Writes a batch, whole or not at all, and to the disk before it returns.
    ///
    /// # Errors
    /// The disk's.
    pub fn write(&self, batch: &Batch) -> Result<(), Unusable> {
        let transaction = self.file.begin_write()?;
        {
            if batch.anew {
                transaction.delete_table(VERDICTS)?;
            }
            let definitions = definitions(&batch.common);
            let mut table = transaction.open_table(VERDICTS)?;
            for content in &batch.removed {
                table.remove(&content.0)?;
            }
            for (content, entry) in &batch.put {
                let text = serde_json::to_vec(entry).map_err(io::Error::from)?;
                let sealed = self.seal.sealed(&[&content.0, &definitions], text);
                table.insert(&content.0, sealed.as_slice())?;
            }
            let text = serde_json::to_vec(&batch.common).map_err(io::Error::from)?;
            let sealed = self.seal.sealed(&[], text);
            let mut common = transaction.open_table(COMMON)?;
            common.insert(FORMAT, sealed.as_slice())?;
        }
        transaction.commit()?;
        Ok(())
    }
}

/// The definitions that an entry's MAC binds: those of every engine, by fingerprint.
fn definitions(common: &Common) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (engine, fingerprint) in Common::definitions(&common.generations) {
        bytes.extend_from_slice(&(engine.len() as u64).to_le_bytes());
        bytes.extend_from_slice(engine.as_bytes());
        bytes.extend_from_slice(&fingerprint);
    }
    bytes
}

fn patiently(path: &Path) -> Result<redb::Database, Unusable> {
    let since = Instant::now();
    loop {
        let opened = redb::Builder::new()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .create(path);
        match opened {
            Err(redb::DatabaseError::DatabaseAlreadyOpen) if since.elapsed() < LOCKED_WITHIN => {
                std::thread::sleep(LOCKED_POLL);
            }
            opened => return Ok(opened?),
        }
    }
}

/// The file of a state folder.
pub fn file(state: &Path) -> PathBuf {
    state.join(FILE)
}
