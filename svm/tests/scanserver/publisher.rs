//! What an Integration Server publishes, made by a test: with the right keys, or with
//! those that somebody has who took it over.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use jiff::Timestamp;
use palisade_repository::keys::{SigningKey, sign};
use palisade_repository::roles::{self, Signers};
use palisade_repository::{Contents, FileInfo, Generation};
use sha2::{Digest as _, Sha256};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A key, and its secret: somebody may have stolen it.
pub struct Key {
    secret: Vec<u8>,
    pub key: SigningKey,
}

impl Key {
    pub fn new() -> Self {
        Self::of(SigningKey::generate().unwrap())
    }

    fn of(secret: Vec<u8>) -> Self {
        let key = SigningKey::from_pkcs8(&secret).unwrap();
        Self { secret, key }
    }
}

impl Clone for Key {
    fn clone(&self) -> Self {
        Self::of(self.secret.clone())
    }
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// What a server hands out.
#[derive(Clone, Default)]
pub struct Shelf {
    pub metadata: HashMap<String, Vec<u8>>,
    pub files: HashMap<[u8; 32], Vec<u8>>,
}

/// Who signs, and how long it lasts.
#[derive(Clone)]
pub struct Publisher {
    pub publisher: Key,
    pub online: Key,
    pub contents: Contents,
    pub shelf: Shelf,
    pub timestamp_lasts: Duration,
    pub targets_last: Duration,
    version: u64,
}

impl Publisher {
    pub fn new() -> Self {
        let (publisher, online) = (Key::new(), Key::new());
        let mut made = Self {
            publisher,
            online,
            contents: Contents::default(),
            shelf: Shelf::default(),
            timestamp_lasts: DAY,
            targets_last: 30 * DAY,
            version: 0,
        };
        let root = sign(&made.root(1), &[&made.publisher.key]).unwrap();
        made.put_root(1, root);
        made
    }

    pub fn root(&self, version: u64) -> serde_json::Value {
        let signers = Signers {
            publisher: self.publisher.key.public().clone(),
            online: self.online.key.public().clone(),
        };
        roles::root(version, Timestamp::now() + 365 * DAY, &signers)
    }

    pub fn put_root(&mut self, version: u64, root: Vec<u8>) {
        let metadata = &mut self.shelf.metadata;
        metadata.insert("root.json".to_owned(), root.clone());
        metadata.insert(format!("{version}.root.json"), root);
    }

    /// Adds a generation of these files, which is wanted; publishes it.
    pub fn publish(&mut self, files: &[(&str, &str)]) -> u64 {
        let mut generation = Generation {
            added_ms: 1,
            origin: "a test".to_owned(),
            files: BTreeMap::new(),
        };
        for (name, text) in files {
            let sha256 = sha256(text.as_bytes());
            let length = text.len() as u64;
            let info = FileInfo { sha256, length };
            generation.files.insert((*name).to_owned(), info);
            self.shelf.files.insert(sha256, text.as_bytes().to_vec());
        }
        let (number, contents) = self.contents.with(generation, true, 5).unwrap();
        self.contents = contents;
        self.sign();
        number
    }

    /// Signs what is there as a new version.
    pub fn sign(&mut self) {
        self.sign_as(self.version + 1);
    }

    pub fn sign_as(&mut self, version: u64) {
        self.version = version;
        let now = Timestamp::now();
        let expires = |lasts: Duration| now + lasts;
        let targets = roles::targets(version, expires(self.targets_last), &self.contents);
        let targets = sign(&targets, &[&self.publisher.key]).unwrap();
        let snapshot = roles::snapshot(version, expires(30 * DAY), (version, &targets));
        let snapshot = sign(&snapshot, &[&self.online.key]).unwrap();
        let lasts = self.timestamp_lasts;
        let timestamp = roles::timestamp(version, expires(lasts), (version, &snapshot));
        let timestamp = sign(&timestamp, &[&self.online.key]).unwrap();
        let metadata = &mut self.shelf.metadata;
        metadata.insert(format!("{version}.targets.json"), targets);
        metadata.insert(format!("{version}.snapshot.json"), snapshot);
        metadata.insert("timestamp.json".to_owned(), timestamp);
    }

    /// A timestamp that leads to this version's snapshot, as the newest.
    pub fn point_back_to(&mut self, version: u64) {
        self.version += 1;
        let snapshot = self.shelf.metadata[&format!("{version}.snapshot.json")].clone();
        let expires = Timestamp::now() + DAY;
        let timestamp = roles::timestamp(self.version, expires, (version, &snapshot));
        let timestamp = sign(&timestamp, &[&self.online.key]).unwrap();
        self.shelf
            .metadata
            .insert("timestamp.json".to_owned(), timestamp);
    }

    /// A snapshot as the newest that leads to this version's targets.
    pub fn mix_in(&mut self, version: u64) {
        self.version += 1;
        let now = self.version;
        let targets = self.shelf.metadata[&format!("{version}.targets.json")].clone();
        let expires = Timestamp::now() + DAY;
        let snapshot = roles::snapshot(now, expires, (version, &targets));
        let snapshot = sign(&snapshot, &[&self.online.key]).unwrap();
        let timestamp = roles::timestamp(now, expires, (now, &snapshot));
        let timestamp = sign(&timestamp, &[&self.online.key]).unwrap();
        let metadata = &mut self.shelf.metadata;
        metadata.insert(format!("{now}.snapshot.json"), snapshot);
        metadata.insert("timestamp.json".to_owned(), timestamp);
    }
}
