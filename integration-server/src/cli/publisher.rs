//! A publisher's key that is not on the server: made, used, and put in place of another.
//!
//! What is signed here is made here: of the files that were hashed here, and of the
//! generations that this very key has signed before. The server cannot have anything
//! signed that the publisher has not seen.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;
use palisade_daemon::cli::exit;
use palisade_repository::keys::{PublicKey, SigningKey, sign};
use palisade_repository::roles::{self, Signers};
use palisade_repository::tuf::{Root, Targets};
use palisade_repository::{Contents, Generation, reading};
use serde_json::Value;

use super::Printed;
use super::bundle::Bundle;
use super::client::Client;
use super::repository::short;
use crate::api::repository::{Chosen, Signed};
use crate::definitions::publish;
use crate::time::now_ms;

/// Generations that a publisher keeps, the wanted one and the one before included.
const KEEP: usize = 5;
/// Largest key file, in bytes.
const MAX_KEY_BYTES: u64 = 4096;

/// Makes a key in a file that only its owner may read.
///
/// # Errors
/// The file is there, or cannot be written.
pub fn create(file: &Path) -> anyhow::Result<Printed> {
    let secret = SigningKey::generate()?;
    let key = SigningKey::from_pkcs8(&secret)?;
    let text = format!("{}\n", hex::encode(&secret));
    File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut to| {
            to.write_all(text.as_bytes())?;
            to.sync_all()
        })
        .with_context(|| format!("{} cannot be made", file.display()))?;
    Ok(Printed {
        out: format!("{}\n", key.public().id),
        note: "Keep a copy of the file in a safe place: without it, nobody publishes definitions to Protection Servers that know it.\n"
            .to_owned(),
        code: exit::FINE,
    })
}

fn read(file: &Path) -> anyhow::Result<SigningKey> {
    let metadata =
        std::fs::metadata(file).with_context(|| format!("{} cannot be read", file.display()))?;
    ensure!(
        metadata.len() <= MAX_KEY_BYTES,
        "{} is no key of `palisade definitions key create`",
        file.display()
    );
    ensure!(
        metadata.permissions().mode() & 0o077 == 0,
        "others may read {}; `chmod 600` it",
        file.display()
    );
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("{} cannot be read", file.display()))?;
    let key = hex::decode(text.trim())
        .ok()
        .and_then(|secret| SigningKey::from_pkcs8(&secret).ok());
    key.with_context(|| {
        format!(
            "{} is no key of `palisade definitions key create`",
            file.display()
        )
    })
}

/// What is published now, as whoever holds this key may believe it.
struct Published {
    root: Root,
    targets: Targets,
    contents: Contents,
}

fn published(client: &Client) -> anyhow::Result<Published> {
    let root: Value = client.get("definitions/metadata/root")?;
    let root = reading::root(&serde_json::to_vec(&root)?)?;
    let targets: Value = client.get("definitions/metadata/targets")?;
    let (targets, contents) = reading::signed_targets(&serde_json::to_vec(&targets)?, &root)?;
    Ok(Published {
        root,
        targets,
        contents,
    })
}

impl Published {
    /// Only what this key itself has signed is signed by it again.
    fn of(client: &Client, key: &SigningKey) -> anyhow::Result<Self> {
        let published = published(client)?;
        let role = published.root.role("targets");
        ensure!(
            role.is_some_and(|role| role.keyids == [key.public().id.clone()]),
            "the publisher's key of this site is another one than {}; `palisade definitions list` shows it",
            short(&key.public().id)
        );
        Ok(published)
    }

    fn next(&self, contents: &Contents, key: &SigningKey) -> anyhow::Result<Value> {
        let now = Timestamp::now();
        let number = publish::next_number(self.targets.version, now);
        let document = publish::targets(number, contents, key, now)?;
        Ok(serde_json::from_slice(&document)?)
    }
}

fn send(client: &Client, root: Option<Value>, targets: Value) -> anyhow::Result<()> {
    let signed = Signed { root, targets };
    client
        .send("PUT", "definitions/signed", Some(&signed))
        .map(drop)
}

/// Signs a new generation, whose files the server has.
///
/// # Errors
/// What is in the way, and what helps.
pub fn import(
    client: &Client,
    file: &Path,
    bundle: &Bundle,
    origin: String,
    wanted: bool,
) -> anyhow::Result<Chosen> {
    let key = read(file)?;
    let published = Published::of(client, &key)?;
    let generation = Generation {
        added_ms: now_ms(),
        origin,
        files: bundle.files().clone(),
    };
    let (number, next) = published.contents.with(generation, wanted, KEEP)?;
    let targets = published.next(&next, &key)?;
    send(client, None, targets)?;
    Ok(Chosen { generation: number })
}

/// Signs that another generation is wanted: this one, or the one before the wanted one.
///
/// # Errors
/// What is in the way, and what helps.
pub fn choose(client: &Client, file: &Path, generation: Option<u64>) -> anyhow::Result<Chosen> {
    let key = read(file)?;
    let published = Published::of(client, &key)?;
    let number = match generation.or_else(|| published.contents.before()) {
        Some(number) => number,
        None => bail!("there is no generation before the wanted one; import another one"),
    };
    let next = published.contents.wanting(number).with_context(|| {
        format!("there is no generation {number}; `palisade definitions list` shows those that are there")
    })?;
    let targets = published.next(&next, &key)?;
    send(client, None, targets)?;
    Ok(Chosen { generation: number })
}

/// Puts a key in place of the one that has signed so far: the server's, or an old one's.
///
/// # Errors
/// What is in the way, and what helps.
pub fn hand_over(client: &Client, file: &Path, old: Option<&Path>) -> anyhow::Result<Printed> {
    let key = read(file)?;
    let old = old.map(read).transpose()?;
    let published = match &old {
        Some(old) => Published::of(client, old)?,
        None => published(client)?,
    };
    let online = published
        .root
        .role("timestamp")
        .and_then(|role| published.root.keys.get(role.keyids.first()?))
        .context("the root names no key for timestamps")?;
    let signers = Signers {
        publisher: key.public().clone(),
        online: PublicKey::of(&serde_json::to_value(online)?)?,
    };
    let version = published.root.version.saturating_add(1);
    let now = Timestamp::now();
    let root = roles::root(version, publish::until(now, publish::ROOT_FOR), &signers);
    // The server adds its own signature if it holds the key that has signed so far.
    let mut keys = vec![&key];
    keys.extend(&old);
    let root = serde_json::from_slice(&sign(&root, &keys)?)?;
    let targets = published.next(&published.contents, &key)?;
    send(client, Some(root), targets)?;
    Ok(Printed {
        out: format!("{}\n", key.public().id),
        note: "This key signs from now on: give `--key FILE` to import, activate and rollback.\n"
            .to_owned(),
        code: exit::FINE,
    })
}
