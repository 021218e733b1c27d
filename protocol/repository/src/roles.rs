//! The documents of the four roles: root, targets, snapshot, timestamp.
//!
//! The publisher's keys sign root and targets, the server's own key snapshot and
//! timestamp, each with a threshold of one.

use jiff::Timestamp;
use ring::digest;
use serde_json::{Map, Value, json};

use crate::contents::Contents;
use crate::keys::PublicKey;

/// The version of TUF's specification that documents name.
const SPEC_VERSION: &str = "1.0.31";

/// Who signs what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signers {
    /// Of root and targets.
    pub publisher: PublicKey,
    /// Of snapshot and timestamp.
    pub online: PublicKey,
}

fn head(kind: &str, version: u64, expires: Timestamp) -> Map<String, Value> {
    // The specification wants whole seconds.
    let expires = Timestamp::from_second(expires.as_second()).unwrap_or(expires);
    let mut head = Map::new();
    head.insert("_type".to_owned(), kind.into());
    head.insert("spec_version".to_owned(), SPEC_VERSION.into());
    head.insert("version".to_owned(), version.into());
    head.insert("expires".to_owned(), expires.to_string().into());
    head
}

/// Who signs what.
pub fn root(version: u64, expires: Timestamp, signers: &Signers) -> Value {
    let role = |key: &PublicKey| json!({ "keyids": [key.id], "threshold": 1 });
    let (publisher, online) = (&signers.publisher, &signers.online);
    let mut keys = Map::new();
    for key in [publisher, online] {
        keys.insert(key.id.clone(), key.value().clone());
    }
    let mut root = head("root", version, expires);
    root.insert("consistent_snapshot".to_owned(), true.into());
    root.insert("keys".to_owned(), keys.into());
    root.insert(
        "roles".to_owned(),
        json!({
            "root": role(publisher),
            "targets": role(publisher),
            "snapshot": role(online),
            "timestamp": role(online),
        }),
    );
    root.into()
}

/// What the definitions are.
pub fn targets(version: u64, expires: Timestamp, contents: &Contents) -> Value {
    let mut targets = head("targets", version, expires);
    contents.write(&mut targets);
    targets.into()
}

/// Which targets are current: their version, and the bytes of their document.
pub fn snapshot(version: u64, expires: Timestamp, targets: (u64, &[u8])) -> Value {
    let mut snapshot = head("snapshot", version, expires);
    snapshot.insert(
        "meta".to_owned(),
        json!({ "targets.json": described(targets) }),
    );
    snapshot.into()
}

/// Which snapshot is current: its version, and the bytes of its document.
pub fn timestamp(version: u64, expires: Timestamp, snapshot: (u64, &[u8])) -> Value {
    let mut timestamp = head("timestamp", version, expires);
    timestamp.insert(
        "meta".to_owned(),
        json!({ "snapshot.json": described(snapshot) }),
    );
    timestamp.into()
}

fn described((version, bytes): (u64, &[u8])) -> Value {
    json!({
        "version": version,
        "length": bytes.len(),
        "hashes": { "sha256": hex::encode(digest::digest(&digest::SHA256, bytes)) },
    })
}
