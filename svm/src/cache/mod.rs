//! SharedCache: verdicts by content, within one tenant.
//!
//! Owns who may read what: an entry is found only by its tenant, content id, size
//! and options, and served while the definitions that gave it are in force. New
//! definitions do not void everything at once: a clean verdict of earlier ones is
//! served for as long as the request allows, marked as older, until it is re-checked
//! ([`recheck`]). Does not own whether a verdict may be stored: the caller hands over complete
//! scans of verified bytes and nothing else ([`Entry`] is built in
//! [`crate::request`] alone).
//!
//! Memory decides; [`persist`] keeps a copy that outlives a restart, and may be
//! lost at any time; [`overruled`] sees to it that no clean verdict comes back from there
//! that was overruled since.

mod overruled;
mod persist;
pub mod recheck;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use moka::sync::Cache;
use palisade_protocol::codec::Message;
use palisade_protocol::content::ContentId;
use palisade_protocol::ids::TenantId;
use palisade_protocol::scan::ScanOptions;
use palisade_protocol::verdict::{Details, Generations, Verdict, VerdictKind};
use serde::{Deserialize, Serialize};

pub use overruled::Noted;
use persist::Store;

/// What an entry is found by.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key {
    /// Whose content: the border over which no verdict passes.
    pub tenant: TenantId,
    /// Which content.
    pub content: ContentId,
    /// Its size in bytes: a claim that a wrong one finds nothing for.
    pub size: u64,
    /// What was looked into.
    pub options: ScanOptions,
}

impl Message for Key {
    const MAX_BYTES: usize = 256;
}

/// A verdict of a complete scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// What the scan ended in.
    pub verdict: Verdict,
    /// Who decided, and where.
    pub details: Details,
    /// SHA-256 of the content; of findings only.
    pub sha256: Option<[u8; 32]>,
    /// The definitions that gave it.
    pub generations: Generations,
    /// When, in milliseconds since 1970.
    pub scanned_ms: u64,
}

impl Message for Entry {
    const MAX_BYTES: usize = 8192;
}

impl Entry {
    /// Whether every engine found it clean: not one that a list allowed.
    fn is_clean_by_engines(&self) -> bool {
        self.verdict.kind() == VerdictKind::Clean && self.details == Details::default()
    }
}

/// An entry that answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The entry.
    pub entry: Entry,
    /// Earlier definitions than those in force gave it.
    pub older: bool,
}

/// What the copy on disk went through since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CopyCounts {
    /// Writes that it did not get: the disk is behind, or fails.
    pub lost: u64,
    /// How often another copy was begun, because the one before failed.
    pub begun_anew: u64,
    /// Verdicts other than clean of which it could not be noted in time that they overrule
    /// it.
    pub unnoted: u64,
}

/// Milliseconds since 1970, for [`Entry::scanned_ms`].
pub fn now_ms() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The cache. Clones share it.
#[derive(Debug, Clone)]
pub struct SharedCache {
    entries: Cache<Key, Entry>,
    store: Option<Store>,
    /// A copy of an earlier run could not be taken away: the next may serve what is in it.
    is_left: bool,
    /// Verdicts that overrule it, perhaps.
    unnoted: Arc<AtomicU64>,
    evicted: Arc<AtomicU64>,
}

impl SharedCache {
    /// A cache of at most `entries` verdicts, in memory alone.
    pub fn in_memory(entries: u64) -> Self {
        Self::build(entries, None)
    }

    /// A cache of at most `entries` verdicts, in memory alone, where an earlier run may have
    /// kept a copy in `folder`: that is taken away, since it would lag behind.
    pub fn in_memory_beside(folder: &Path, entries: u64) -> Self {
        let mut cache = Self::in_memory(entries);
        cache.put_away(folder);
        cache
    }

    fn put_away(&mut self, folder: &Path) {
        if let Err(error) = persist::put_away(folder) {
            tracing::error!(
                folder = %folder.display(), %error,
                "a copy of the SharedCache is left that is not kept up to date: remove it, or the next start may serve older clean verdicts"
            );
            self.is_left = true;
        }
    }

    /// A cache of at most `entries` verdicts with a copy in `folder`. What is
    /// damaged there is set aside, and the cache starts empty; it is never an
    /// error.
    pub fn open(folder: &Path, entries: u64) -> Self {
        let (store, kept) = persist::open(folder, entries);
        let mut cache = Self::build(entries, store);
        if cache.store.is_none() {
            cache.put_away(folder);
        }
        for (key, entry) in kept {
            cache.entries.insert(key, entry);
        }
        cache
    }

    /// moka's default policy (TinyLFU) keeps what is asked for often: a scan of many
    /// files that nobody asks for again does not displace it.
    fn build(entries: u64, store: Option<Store>) -> Self {
        let evicted = Arc::new(AtomicU64::new(0));
        let (forget, count) = (store.clone(), Arc::clone(&evicted));
        let cache = Cache::builder()
            .max_capacity(entries)
            .eviction_listener(move |key: Arc<Key>, _, cause| {
                if cause.was_evicted() {
                    count.fetch_add(1, Ordering::Relaxed);
                    if let Some(store) = &forget {
                        store.remove(&key);
                    }
                }
            })
            .build();
        Self {
            entries: cache,
            store,
            is_left: false,
            unnoted: Arc::default(),
            evicted,
        }
    }

    /// The verdict of a content: of the definitions in force, or a clean one of
    /// earlier definitions that is at most `max_age` old.
    pub fn get(
        &self,
        key: &Key,
        in_force: &Generations,
        max_age: Duration,
        now_ms: u64,
    ) -> Option<Found> {
        let entry = self.entries.get(key)?;
        let older = !same_definitions(&entry.generations, in_force);
        let age_ms = u128::from(now_ms.saturating_sub(entry.scanned_ms));
        let serves = !older
            || (entry.is_clean_by_engines()
                && !in_force.is_empty()
                && age_ms < max_age.as_millis());
        serves.then_some(Found { entry, older })
    }

    /// The definitions under which a content was found clean, whatever their age: what
    /// did not change since need not be asked again.
    pub fn clean_by(&self, key: &Key) -> Option<Generations> {
        let entry = self.entries.get(key)?;
        entry.is_clean_by_engines().then_some(entry.generations)
    }

    /// The last verdict of a content, whatever the definitions that gave it: to be judged,
    /// never to be answered.
    pub fn last(&self, key: &Key) -> Option<Entry> {
        self.entries.get(key)
    }

    /// Entries that were dropped for lack of room since the start.
    pub fn evicted(&self) -> u64 {
        self.evicted.load(Ordering::Relaxed)
    }

    /// Notes that a content's clean verdict on disk, if there is one, counts no more. To be
    /// called before a verdict other than clean is stored and given; waits for the disk a
    /// bounded time.
    pub async fn overrule(&self, key: &Key) -> Noted {
        match &self.store {
            Some(store) => store.overrule(key).await,
            None => {
                if self.is_left {
                    self.unnoted.fetch_add(1, Ordering::Relaxed);
                }
                Noted::default()
            }
        }
    }

    /// What the copy on disk went through; nothing, where there is none.
    pub fn copy_counts(&self) -> CopyCounts {
        match &self.store {
            Some(store) => store.counts(),
            None => CopyCounts {
                unnoted: self.unnoted.load(Ordering::Relaxed),
                ..CopyCounts::default()
            },
        }
    }

    /// Stores the verdict of a complete scan of verified bytes, with what was noted of it.
    pub fn put(&self, key: Key, entry: Entry, noted: Noted) {
        if let Some(store) = &self.store {
            store.insert(&key, &entry, noted);
        }
        self.entries.insert(key, entry);
    }

    /// Entries, at this moment. The cache does its bookkeeping when it is used again,
    /// and its count would lag behind for as long as nobody asks for anything.
    pub fn len(&self) -> u64 {
        self.entries.run_pending_tasks();
        self.entries.entry_count()
    }

    /// Whether nothing is stored, at this moment.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes what was put so far to disk; waits a bounded time.
    pub fn close(&self) {
        if let Some(store) = &self.store {
            store.close();
        }
    }
}

/// Whether two sets of definitions are the same bytes for the same engines. The
/// numbers do not matter: they are each Protection Server's own.
pub fn same_definitions(a: &Generations, b: &Generations) -> bool {
    a.len() == b.len()
        && a.iter().all(|one| {
            b.iter()
                .any(|other| one.engine == other.engine && one.fingerprint == other.fingerprint)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::bounded::{List, Text};
    use palisade_protocol::verdict::{EngineGeneration, Generation};
    use proptest::prelude::*;

    pub(super) fn generations(fingerprint: u8) -> Generations {
        List::cut([EngineGeneration {
            engine: Text::cut("libclamav"),
            generation: Generation(fingerprint.into()),
            fingerprint: [fingerprint; 16],
        }])
    }

    pub(super) fn key(content: &[u8]) -> Key {
        Key {
            tenant: TenantId::default_tenant(),
            content: ContentId::of(content),
            size: content.len() as u64,
            options: ScanOptions::default(),
        }
    }

    pub(super) fn entry(fingerprint: u8) -> Entry {
        Entry {
            verdict: Verdict::Clean,
            details: Details::default(),
            sha256: None,
            generations: generations(fingerprint),
            scanned_ms: 1,
        }
    }

    /// What the definitions in force say, and no others.
    pub(super) fn current(cache: &SharedCache, key: &Key, in_force: &Generations) -> Option<Entry> {
        let found = cache.get(key, in_force, Duration::ZERO, 1)?;
        assert!(!found.older);
        Some(found.entry)
    }

    #[test]
    fn other_definitions_are_no_hit_whatever_their_number() {
        let cache = SharedCache::in_memory(10);
        cache.put(key(b"a"), entry(1), Noted::default());
        assert_eq!(current(&cache, &key(b"a"), &generations(2)), None);
        let mut renumbered = generations(1).into_vec();
        renumbered[0].generation = Generation(99);
        assert!(current(&cache, &key(b"a"), &List::cut(renumbered)).is_some());
        assert_eq!(current(&cache, &key(b"a"), &Generations::default()), None);
    }

    #[test]
    fn an_older_verdict_serves_while_it_is_clean_and_young_enough() {
        let cache = SharedCache::in_memory(10);
        let malware = Entry {
            verdict: Verdict::Malware {
                name: Text::cut("X"),
                engine: Text::cut("libclamav"),
            },
            ..entry(1)
        };
        cache.put(key(b"clean"), entry(1), Noted::default());
        cache.put(key(b"malware"), malware, Noted::default());
        let minute = Duration::from_secs(60);
        let get = |content: &[u8], in_force: &Generations, now_ms| {
            cache.get(&key(content), in_force, minute, now_ms)
        };
        let found = get(b"clean", &generations(2), 60_000).unwrap();
        assert_eq!((found.entry, found.older), (entry(1), true));
        assert_eq!(get(b"clean", &generations(2), 60_001), None, "too old");
        assert!(
            get(b"clean", &generations(1), u64::MAX).is_some(),
            "no age matters then"
        );
        assert_eq!(
            get(b"malware", &generations(2), 1),
            None,
            "it may have been a mistake"
        );
        assert_eq!(get(b"clean", &Generations::default(), 1), None, "no engine");
        assert_eq!(cache.clean_by(&key(b"clean")), Some(generations(1)));
        assert_eq!(cache.clean_by(&key(b"malware")), None);
    }

    #[test]
    fn a_scan_of_many_files_does_not_displace_what_is_asked_for_often() {
        let cache = SharedCache::in_memory(200);
        let hot: Vec<Key> = (0..50u32).map(|n| key(&n.to_le_bytes())).collect();
        for key in &hot {
            cache.put(key.clone(), entry(1), Noted::default());
        }
        for round in 0..20_000u32 {
            if round % 100 == 0 {
                for key in &hot {
                    cache.entries.get(key);
                }
            }
            cache.put(
                key(&(1_000_000 + round).to_le_bytes()),
                entry(1),
                Noted::default(),
            );
        }
        cache.entries.run_pending_tasks();
        let kept = hot.iter().filter(|key| cache.entries.contains_key(*key));
        assert!(
            kept.count() >= 45,
            "the flood displaced what is asked for often"
        );
        assert!(cache.evicted() > 10_000);
    }

    #[test]
    fn the_cache_is_bounded() {
        let cache = SharedCache::in_memory(100);
        for n in 0..1000u32 {
            cache.put(key(&n.to_le_bytes()), entry(1), Noted::default());
        }
        cache.entries.run_pending_tasks();
        assert!(cache.len() <= 100);
    }

    fn keys() -> impl Strategy<Value = Key> {
        (
            "[a-z]{1,8}",
            any::<[u8; 32]>(),
            any::<u64>(),
            any::<[bool; 3]>(),
        )
            .prop_map(|(tenant, content, size, [archives, heuristics, pua])| Key {
                tenant: tenant.parse().unwrap(),
                content: ContentId(content),
                size,
                options: ScanOptions {
                    archives,
                    heuristics,
                    pua,
                },
            })
    }

    proptest! {
        /// On disk, two keys are the same bytes only if they are the same key.
        #[test]
        fn keys_are_told_apart(a in keys(), b in keys()) {
            let encode = |key: &Key| palisade_protocol::codec::encode(key).unwrap();
            prop_assert_eq!(a == b, encode(&a) == encode(&b));
            prop_assert_eq!(palisade_protocol::codec::decode::<Key>(&encode(&a)).unwrap(), a);
        }

        /// A key that differs in any one part finds nothing.
        #[test]
        fn no_part_of_the_key_is_optional(a in keys(), part in 0..6usize) {
            let cache = SharedCache::in_memory(10);
            cache.put(a.clone(), entry(1), Noted::default());
            let mut other = a.clone();
            match part {
                0 => other.tenant = "another-tenant".parse().unwrap(),
                1 => other.content.0[0] ^= 1,
                2 => other.size ^= 1,
                3 => other.options.archives ^= true,
                4 => other.options.heuristics ^= true,
                _ => other.options.pua ^= true,
            }
            prop_assert_eq!(current(&cache, &other, &generations(1)), None);
            prop_assert!(current(&cache, &a, &generations(1)).is_some());
        }
    }
}
