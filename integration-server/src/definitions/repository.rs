//! What is published, who signs it, and one change of it at a time.
//!
//! ```text
//!  change ─► next contents ─► targets signed here, or brought signed ─► checked as a reader
//!    would ─► entry in the audit log ─► metadata on disk, the timestamp last ─► told
//! ```

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use palisade_protocol::pull::{Answer, What};
use palisade_repository::keys::{self, SigningKey};
use palisade_repository::tuf::Root;
use palisade_repository::{Contents, FileInfo, Generation, reading};
use tokio::sync::{Mutex, Semaphore, watch};

use super::DefinitionsError;
use super::error::at;
use super::folder::Folder;
use super::publish::{self, Version, next_number};
use crate::audit::{Actor, Entry};
use crate::settings::DefinitionsSettings;
use crate::store::{Change, DefinitionsKey, Store};
use crate::time::now_ms;

/// Parts that are read from disk at a time, of all Protection Servers.
const MAX_READING: usize = 16;

/// What is published now.
#[derive(Debug)]
struct Current {
    roots: Vec<Vec<u8>>,
    root: Root,
    version: Version,
    contents: Contents,
    timestamp_ends: Timestamp,
}

/// What there is, for people.
#[derive(Debug, Clone, Default)]
pub struct Overview {
    /// The generations, and which is wanted.
    pub contents: Contents,
    /// The publisher's key, by its id; none while nothing was published.
    pub publisher: Option<String>,
    /// Whether this server holds it.
    pub publisher_here: bool,
    /// What is wrong with the repository or with the watched directory.
    pub problem: Option<String>,
}

/// The site's repository.
#[derive(Debug)]
pub struct Repository {
    folder: Folder,
    store: Arc<dyn Store>,
    settings: DefinitionsSettings,
    /// Held by whoever changes what is published, or adds a file.
    changing: Mutex<()>,
    current: RwLock<Option<Arc<Current>>>,
    /// Why what is on disk is not used.
    damage: Option<String>,
    /// Why the watched directory was not imported.
    watched: RwLock<Option<String>>,
    published: watch::Sender<u64>,
    reading: Semaphore,
}

impl Repository {
    /// The repository in the state folder. One that is damaged is served to nobody, and
    /// everything else goes on.
    ///
    /// # Errors
    /// The folder cannot be used.
    pub fn open(
        state: &Path,
        store: Arc<dyn Store>,
        settings: DefinitionsSettings,
    ) -> Result<Arc<Self>, DefinitionsError> {
        let folder = Folder::open(state.join("definitions"))?;
        let (current, damage) = match load(&folder) {
            Ok(current) => (current.map(Arc::new), None),
            Err(error) => {
                tracing::error!(%error, "no definitions are offered to Protection Servers");
                (None, Some(error.to_string()))
            }
        };
        let number = current.as_ref().map_or(0, |current| current.version.number);
        Ok(Arc::new(Self {
            folder,
            store,
            settings,
            changing: Mutex::new(()),
            current: RwLock::new(current),
            damage,
            watched: RwLock::default(),
            published: watch::Sender::new(number),
            reading: Semaphore::new(MAX_READING),
        }))
    }

    /// The settings.
    pub fn settings(&self) -> &DefinitionsSettings {
        &self.settings
    }

    /// The version that Protection Servers are told of; 0 for none.
    pub fn published(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    fn current(&self) -> Option<Arc<Current>> {
        self.current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What there is.
    ///
    /// # Errors
    /// The store's.
    pub async fn overview(&self) -> Result<Overview, DefinitionsError> {
        let key = self
            .store
            .definitions_key(DefinitionsKey::Publisher)
            .await?;
        let current = self.current();
        let publisher = current
            .as_ref()
            .and_then(|current| current.root.role("targets")?.keyids.first().cloned());
        Ok(Overview {
            contents: current.map_or_else(Contents::default, |current| current.contents.clone()),
            publisher,
            publisher_here: key.is_some(),
            problem: self.problem(),
        })
    }

    /// What is wrong with it.
    pub fn problem(&self) -> Option<String> {
        let watched = self.watched.read().unwrap_or_else(PoisonError::into_inner);
        self.damage.clone().or_else(|| watched.clone())
    }

    /// What came of the last look at the watched directory.
    pub(super) fn watched(&self, problem: Option<String>) {
        *self.watched.write().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    /// The number of the targets that are published; 0 for none.
    pub fn targets_number(&self) -> u64 {
        self.current()
            .map_or(0, |current| current.version.targets.0)
    }

    /// A part of something, for a Protection Server or a publisher.
    ///
    /// # Errors
    /// The disk's.
    pub async fn part(&self, what: What, from: u64) -> Result<Answer, DefinitionsError> {
        // The semaphore is never closed.
        let Ok(_permit) = self.reading.acquire().await else {
            return Ok(Answer::Busy);
        };
        if self.damage.is_some() {
            return Ok(Answer::Absent);
        }
        let folder = self.folder.clone();
        blocking(move || folder.part(&what, from)).await
    }

    /// Of which of these files not all bytes are there, and how many are.
    pub async fn missing(&self, files: Vec<FileInfo>) -> Vec<(FileInfo, u64)> {
        let folder = self.folder.clone();
        let look = move || {
            let missing = files.into_iter().filter(|file| !folder.has(file));
            let found = missing.map(|file| (file, folder.received(&file)));
            Ok(found.collect())
        };
        blocking(look).await.unwrap_or_default()
    }

    /// Adds a part of a file; says how many bytes have come in then.
    ///
    /// # Errors
    /// [`DefinitionsError`].
    pub async fn receive(
        &self,
        file: FileInfo,
        from: u64,
        part: Vec<u8>,
    ) -> Result<u64, DefinitionsError> {
        self.bounded(file.length)?;
        let _changing = self.changing.lock().await;
        let (folder, kept, max) = (self.folder.clone(), self.kept(), self.max_bytes());
        blocking(move || {
            if from == 0 {
                folder.prune(&kept, SystemTime::now());
                let loose = folder.loose_bytes(&kept).saturating_add(file.length);
                // One generation, and another one that was given up.
                if loose > max.saturating_mul(2) {
                    return Err(DefinitionsError::Loose { loose });
                }
            }
            folder.receive(&file, from, &part)
        })
        .await
    }

    fn max_bytes(&self) -> u64 {
        u64::from(self.settings.max_mib) << 20
    }

    fn bounded(&self, bytes: u64) -> Result<(), DefinitionsError> {
        let max = self.max_bytes();
        if bytes > max {
            return Err(DefinitionsError::TooLarge { bytes, max });
        }
        Ok(())
    }

    /// Files that some generation has.
    fn kept(&self) -> HashSet<[u8; 32]> {
        self.current()
            .map(|current| hashes(&current.contents))
            .unwrap_or_default()
    }

    /// Publishes a generation whose files are there, and has it wanted if so said; gives
    /// its number.
    ///
    /// # Errors
    /// [`DefinitionsError`]; what was published stays.
    pub async fn import(
        &self,
        generation: Generation,
        wanted: bool,
        entry: impl FnOnce(u64) -> Entry,
    ) -> Result<u64, DefinitionsError> {
        self.bounded(generation.bytes())?;
        let _changing = self.changing.lock().await;
        self.usable()?;
        let keep = usize::from(self.settings.keep);
        let contents = self.current().map(|current| current.contents.clone());
        let before = contents.unwrap_or_default();
        let (number, next) = before
            .with(generation, wanted, keep)
            .map_err(|error| DefinitionsError::Refused(error.to_string()))?;
        let entry = entry(number).before(said(&before)).after(said(&next));
        self.sign_and_publish(next, entry).await?;
        Ok(number)
    }

    /// Has another generation wanted: this one, or the one before the wanted one.
    ///
    /// # Errors
    /// [`DefinitionsError`]; what was published stays.
    pub async fn want(
        &self,
        number: Option<u64>,
        entry: impl FnOnce(u64) -> Entry,
    ) -> Result<u64, DefinitionsError> {
        let _changing = self.changing.lock().await;
        self.usable()?;
        let before = self.current().ok_or(DefinitionsError::Nothing)?;
        let before = &before.contents;
        let number = match number {
            Some(number) => number,
            None => before.before().ok_or(DefinitionsError::NoPrevious)?,
        };
        let next = before
            .wanting(number)
            .ok_or(DefinitionsError::NoGeneration(number))?;
        if next == *before {
            return Ok(number);
        }
        let entry = entry(number).before(said(before)).after(said(&next));
        self.sign_and_publish(next, entry).await?;
        Ok(number)
    }

    /// Publishes targets that a publisher elsewhere has signed.
    ///
    /// # Errors
    /// [`DefinitionsError`]; what was published stays.
    pub async fn publish_targets(
        &self,
        document: Vec<u8>,
        entry: Entry,
    ) -> Result<(), DefinitionsError> {
        let _changing = self.changing.lock().await;
        self.usable()?;
        let current = self.current().ok_or(DefinitionsError::Nothing)?;
        self.take_targets(current.roots.clone(), document, entry, Change::Nothing)
            .await
    }

    /// Follows a root that names another publisher's key: the one before has signed it, or
    /// this server holds that one and signs it now, and forgets it then. Targets come along,
    /// signed by the new key.
    ///
    /// # Errors
    /// [`DefinitionsError`]; what was published stays.
    pub async fn hand_over(
        &self,
        root: Vec<u8>,
        targets: Vec<u8>,
        entry: Entry,
    ) -> Result<(), DefinitionsError> {
        let _changing = self.changing.lock().await;
        self.usable()?;
        let current = self.current().ok_or(DefinitionsError::Nothing)?;
        let held = self.key(DefinitionsKey::Publisher).await?;
        let root = match &held {
            Some(key) => keys::add_signature(&root, key)?,
            None => root,
        };
        let online = current.root.role("timestamp").cloned();
        let named = reading::root(&root)?;
        if ["timestamp", "snapshot"].iter().any(|role| {
            named.role(role).map(|role| &role.keyids) != online.as_ref().map(|role| &role.keyids)
        }) {
            let why = "the root names another key for timestamps than this server's".to_owned();
            return Err(DefinitionsError::Refused(why));
        }
        let mut roots = current.roots.clone();
        roots.push(root);
        let stays = held.as_ref().is_some_and(|key| {
            let role = named.role("targets");
            role.is_some_and(|role| role.keyids.contains(&key.public().id))
        });
        let change = match held.is_some() && !stays {
            true => Change::ForgetDefinitionsKey(DefinitionsKey::Publisher),
            false => Change::Nothing,
        };
        self.take_targets(roots, targets, entry, change).await
    }

    async fn take_targets(
        &self,
        roots: Vec<Vec<u8>>,
        document: Vec<u8>,
        entry: Entry,
        change: Change<'_>,
    ) -> Result<(), DefinitionsError> {
        let refused = |error: palisade_repository::RepositoryError| {
            DefinitionsError::Refused(error.to_string())
        };
        let last = self.current();
        let targets = reading::unverified_targets(&document).map_err(refused)?;
        if last.is_some_and(|last| targets.version <= last.version.targets.0) {
            return Err(DefinitionsError::Outdated);
        }
        let targets = (targets.version, document);
        self.publish(roots, targets, entry, change)
            .await
            .map_err(|error| match error {
                DefinitionsError::Repository(error) => refused(error),
                other => other,
            })
    }

    async fn sign_and_publish(
        &self,
        contents: Contents,
        entry: Entry,
    ) -> Result<(), DefinitionsError> {
        let now = now();
        let roots = self.current().map(|current| current.roots.clone());
        let roots = match roots {
            Some(roots) => roots,
            None => vec![self.first_root(now).await?],
        };
        let publisher = self
            .key(DefinitionsKey::Publisher)
            .await?
            .ok_or(DefinitionsError::KeyElsewhere)?;
        let last = self
            .current()
            .map_or(0, |current| current.version.targets.0);
        let number = next_number(last, now);
        let document = publish::targets(number, &contents, &publisher, now)?;
        self.publish(roots, (number, document), entry, Change::Nothing)
            .await
    }

    /// The root of a repository that begins; its keys are made with it.
    async fn first_root(&self, now: Timestamp) -> Result<Vec<u8>, DefinitionsError> {
        if self.key(DefinitionsKey::Online).await?.is_none() {
            let (publisher, online) = (SigningKey::generate()?, SigningKey::generate()?);
            let change = Change::MakeDefinitionsKeys {
                publisher: &publisher,
                online: &online,
            };
            let id = SigningKey::from_pkcs8(&publisher)?.public().id.clone();
            let entry = Entry::done(Actor::local(), "definitions.keys", id, now_ms());
            self.store.change(change, Some(&entry), now_ms()).await?;
        }
        let publisher = self.key(DefinitionsKey::Publisher).await?;
        let online = self.key(DefinitionsKey::Online).await?;
        let (Some(publisher), Some(online)) = (publisher, online) else {
            return Err(DefinitionsError::KeyElsewhere);
        };
        Ok(publish::first_root(&publisher, &online, now)?)
    }

    async fn publish(
        &self,
        roots: Vec<Vec<u8>>,
        targets: (u64, Vec<u8>),
        entry: Entry,
        change: Change<'_>,
    ) -> Result<(), DefinitionsError> {
        let online = self
            .key(DefinitionsKey::Online)
            .await?
            .ok_or_else(|| self.damaged("the store has no key for timestamps"))?;
        let last = self.current().map_or(0, |current| current.version.number);
        let (now, lasts) = (now(), self.settings.timestamp_lifetime.get());
        let number = next_number(last, now);
        let version = publish::version(number, targets, &online, (now, lasts))?;
        let contents = version.verify(&roots, now)?;
        let folder = self.folder.clone();
        let files: HashSet<FileInfo> = contents
            .generations
            .values()
            .flat_map(|generation| generation.files.values().copied())
            .collect();
        for generation in contents.generations.values() {
            self.bounded(generation.bytes())?;
        }
        let missing = blocking(move || Ok(files.iter().filter(|file| !folder.has(file)).count()));
        match missing.await? {
            0 => {}
            missing => return Err(DefinitionsError::Missing(missing)),
        }
        let root = reading::root(roots.last().map_or(&[][..], Vec::as_slice))?;
        self.store.change(change, Some(&entry), now_ms()).await?;
        let next = Current {
            roots,
            root,
            contents,
            version,
            timestamp_ends: publish::until(now, lasts),
        };
        self.write(next).await
    }

    /// Puts a version on disk, and tells of it.
    async fn write(&self, next: Current) -> Result<(), DefinitionsError> {
        let folder = self.folder.clone();
        let kept = hashes(&next.contents);
        let next = Arc::new(next);
        let written = Arc::clone(&next);
        blocking(move || {
            put(&folder, &written)?;
            folder.prune_metadata();
            folder.prune(&kept, SystemTime::now());
            Ok(())
        })
        .await?;
        let number = next.version.number;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(next);
        self.published.send_replace(number);
        Ok(())
    }

    /// Signs the timestamp anew when a third of its time is left, so that a reader can
    /// tell a repository that is current from one that somebody holds back.
    ///
    /// # Errors
    /// [`DefinitionsError`].
    pub async fn renew_if_due(&self) -> Result<(), DefinitionsError> {
        let _changing = self.changing.lock().await;
        let (now, lasts) = (now(), self.settings.timestamp_lifetime.get());
        let Some(current) = self.current() else {
            return Ok(());
        };
        if publish::until(now, lasts / 3 * 2) < current.timestamp_ends {
            return Ok(());
        }
        let Some(online) = self.key(DefinitionsKey::Online).await? else {
            return Err(self.damaged("the store has no key for timestamps"));
        };
        let number = next_number(current.version.number, now);
        let targets = current.version.targets.clone();
        let version = publish::version(number, targets, &online, (now, lasts))?;
        let contents = version.verify(&current.roots, now)?;
        let next = Current {
            roots: current.roots.clone(),
            root: current.root.clone(),
            contents,
            version,
            timestamp_ends: publish::until(now, lasts),
        };
        self.write(next).await
    }

    /// Copies a file of this machine into the repository.
    pub(super) async fn copy(&self, from: PathBuf) -> Result<FileInfo, DefinitionsError> {
        let _changing = self.changing.lock().await;
        let (folder, max) = (self.folder.clone(), self.max_bytes());
        blocking(move || folder.copy(&from, max)).await
    }

    async fn key(&self, key: DefinitionsKey) -> Result<Option<SigningKey>, DefinitionsError> {
        let secret = self.store.definitions_key(key).await?;
        let key = secret.map(|secret| SigningKey::from_pkcs8(&secret));
        Ok(key.transpose()?)
    }

    fn usable(&self) -> Result<(), DefinitionsError> {
        match &self.damage {
            Some(why) => Err(self.damaged(why)),
            None => Ok(()),
        }
    }

    fn damaged(&self, why: &str) -> DefinitionsError {
        DefinitionsError::Damaged {
            folder: self.folder.path().to_owned(),
            why: why.to_owned(),
        }
    }
}

/// Forgets the keys, and removes all that was published. No server runs meanwhile.
///
/// # Errors
/// The store's, or the file system's.
pub async fn forget(store: &dyn Store, state: &Path, now_ms: u64) -> Result<(), DefinitionsError> {
    for key in [DefinitionsKey::Publisher, DefinitionsKey::Online] {
        let change = Change::ForgetDefinitionsKey(key);
        let entry = Entry::done(Actor::local(), "definitions.forget", key.as_str(), now_ms);
        store.change(change, Some(&entry), now_ms).await?;
    }
    let folder = state.join("definitions");
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(&folder)(error)),
        _ => Ok(()),
    }
}

fn hashes(contents: &Contents) -> HashSet<[u8; 32]> {
    contents
        .generations
        .values()
        .flat_map(|generation| generation.files.values().map(|file| file.sha256))
        .collect()
}

/// What an entry of the audit log says of contents.
fn said(contents: &Contents) -> String {
    let numbers: Vec<String> = contents.generations.keys().map(u64::to_string).collect();
    match contents.wanted {
        0 => "no generation wanted".to_owned(),
        wanted => format!(
            "generation {wanted} wanted; there are {}",
            numbers.join(", ")
        ),
    }
}

fn now() -> Timestamp {
    i64::try_from(now_ms())
        .ok()
        .and_then(|now| Timestamp::from_millisecond(now).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

/// The timestamp comes last: a reader that finds it finds all that it leads to.
fn put(folder: &Folder, current: &Current) -> Result<(), DefinitionsError> {
    for (number, root) in (1..).zip(&current.roots) {
        let name = format!("{number}.root.json");
        if folder.metadata(&name)?.as_ref() != Some(root) {
            folder.put_metadata(&name, root)?;
        }
    }
    let Version {
        number,
        targets,
        snapshot,
        timestamp,
    } = &current.version;
    folder.put_metadata(&format!("{}.targets.json", targets.0), &targets.1)?;
    folder.put_metadata(&format!("{number}.snapshot.json"), snapshot)?;
    folder.put_metadata("timestamp.json", timestamp)
}

/// What is on disk, if it is what a reader would take, but for what has expired since.
fn load(folder: &Folder) -> Result<Option<Current>, DefinitionsError> {
    let damaged = |why: String| DefinitionsError::Damaged {
        folder: folder.path().to_owned(),
        why,
    };
    let Some(timestamp) = folder.metadata("timestamp.json")? else {
        return Ok(None);
    };
    let read = |name: String| {
        let found = folder.metadata(&name)?;
        found.ok_or_else(|| damaged(format!("metadata/{name} is missing")))
    };
    let last = folder.versions("root")?.last().copied().unwrap_or(0);
    let roots = (1..=last)
        .map(|number| read(format!("{number}.root.json")))
        .collect::<Result<Vec<_>, _>>()?;
    let snapshot = folder.versions("snapshot")?;
    let targets = folder.versions("targets")?;
    // An interrupted change may have left newer ones than the timestamp names.
    for snapshot in snapshot.iter().rev() {
        for target in targets.iter().rev() {
            let version = Version {
                number: *snapshot,
                targets: (*target, read(format!("{target}.targets.json"))?),
                snapshot: read(format!("{snapshot}.snapshot.json"))?,
                timestamp: timestamp.clone(),
            };
            let Ok(contents) = version.verify(&roots, Timestamp::UNIX_EPOCH) else {
                continue;
            };
            let root = reading::root(roots.last().map_or(&[][..], Vec::as_slice))?;
            return Ok(Some(Current {
                root,
                roots,
                version,
                contents,
                // Signed anew at once.
                timestamp_ends: Timestamp::UNIX_EPOCH,
            }));
        }
    }
    Err(damaged(
        "its metadata is not signed as it should be".to_owned(),
    ))
}

/// Does something on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, DefinitionsError> + Send + 'static,
) -> Result<T, DefinitionsError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(DefinitionsError::Refused(format!(
            "the work on the repository broke off: {error}"
        ))),
    }
}

/// How often it is looked whether the timestamp is due.
pub fn renewal_check(lifetime: Duration) -> Duration {
    (lifetime / 6).clamp(Duration::from_secs(1), Duration::from_secs(600))
}
