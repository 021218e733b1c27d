//! `palisade definitions`: the site's definitions, from a directory or an offline bundle
//! to the Protection Servers.
//!
//! ```text
//!  directory | bundle.tar ─► bundle ─► what the server lacks, in parts ─► generation
//!                                           └── with --key: targets signed here ──┘
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use palisade_daemon::cli::{Output, exit};
use palisade_repository::contents::MAX_ORIGIN_BYTES;

use super::Printed;
use super::bundle::Bundle;
use super::client::Client;
use super::publisher;
use super::resources::json;
use super::table::{Table, safe};
use crate::api::repository::{
    Choose, Chosen, Files, GenerationFiles, MAX_PART_BYTES, Missing, NewGeneration, Received,
    SiteDefinitions,
};

/// So often a part is sent again that another sender was faster with.
const MAX_TRIES: usize = 16;

/// What is to be done.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// The generations that there are, and which of them each Protection Server has
    List,
    /// One generation and its files
    Show {
        /// Its number
        generation: u64,
    },
    /// Import a directory or an offline bundle (a tar file) as a new generation
    ///
    /// What the server has already is not sent again, and an import that broke off goes on.
    Import {
        /// A directory with ClamAV databases, YARA rules and hash lists, or a tar file of one
        from: PathBuf,
        /// Do not have Protection Servers take it yet; `activate` does
        #[arg(long)]
        stage: bool,
        /// With which key is signed
        #[command(flatten)]
        key: Key,
    },
    /// Have Protection Servers take a generation that is there
    Activate {
        /// Its number
        generation: u64,
        /// With which key is signed
        #[command(flatten)]
        key: Key,
    },
    /// Have Protection Servers take the generation before the wanted one
    Rollback {
        /// With which key is signed
        #[command(flatten)]
        key: Key,
    },
    /// The publisher's key, kept elsewhere than on the server
    #[command(subcommand)]
    Key(KeyVerb),
}

/// What is done with the publisher's key.
#[derive(Debug, Subcommand)]
pub enum KeyVerb {
    /// Make a new key in a file; asks no server
    Create {
        /// The file, which must not be there
        file: PathBuf,
    },
    /// Have this key sign from now on; the server forgets the one that it held
    Use {
        /// The file with the new key
        file: PathBuf,
        /// The file with the key that has signed so far, if the server does not hold it
        #[arg(long, value_name = "FILE")]
        old_key: Option<PathBuf>,
    },
}

/// With which key is signed.
#[derive(Debug, Args)]
pub struct Key {
    /// The file with the publisher's key, if the server does not hold it
    #[arg(long = "key", value_name = "FILE")]
    file: Option<PathBuf>,
}

/// Whether it is done without any server.
pub fn is_local(verb: &Verb) -> bool {
    matches!(verb, Verb::Key(KeyVerb::Create { .. }))
}

/// What is done without any server.
///
/// # Errors
/// What is in the way, and what helps.
pub fn run_local(verb: &Verb) -> anyhow::Result<Printed> {
    match verb {
        Verb::Key(KeyVerb::Create { file }) => publisher::create(file),
        _ => bail!("this asks a server"),
    }
}

/// Does it.
///
/// # Errors
/// What is in the way, and what helps.
pub fn run(client: &Client, verb: &Verb, output: Output) -> anyhow::Result<Printed> {
    match verb {
        Verb::List => list(client, output).map(Printed::from),
        Verb::Show { generation } => show(client, *generation, output).map(Printed::from),
        Verb::Import { from, stage, key } => import(client, from, *stage, key, output),
        Verb::Activate { generation, key } => choose(client, Some(*generation), key, output),
        Verb::Rollback { key } => choose(client, None, key, output),
        Verb::Key(KeyVerb::Create { file }) => publisher::create(file),
        Verb::Key(KeyVerb::Use { file, old_key }) => {
            publisher::hand_over(client, file, old_key.as_deref())
        }
    }
}

fn list(client: &Client, output: Output) -> anyhow::Result<String> {
    let site: SiteDefinitions = client.get("definitions")?;
    if output == Output::Json {
        return json(&site);
    }
    let mut table = Table::new(["GENERATION", "STATE", "ADDED", "FILES", "MIB", "ORIGIN"]);
    for one in &site.generations {
        table.row([
            one.generation.to_string(),
            if one.wanted { "wanted" } else { "kept" }.to_owned(),
            one.added.clone(),
            one.files.to_string(),
            one.bytes.div_ceil(1 << 20).to_string(),
            one.origin.clone(),
        ]);
    }
    let mut text =
        table.print("there are no definitions yet; `palisade definitions import DIR` brings some");
    if !site.svms.is_empty() {
        let mut table = Table::new(["PROTECTION SERVER", "STATE", "GENERATION"]);
        for svm in &site.svms {
            table.row([
                svm.name.clone(),
                if svm.connected { "connected" } else { "lost" }.to_owned(),
                svm.generation
                    .map_or_else(|| "of its own".to_owned(), |number| number.to_string()),
            ]);
        }
        text += "\n";
        text += &table.print("");
    }
    if let Some(key) = &site.publisher {
        let place = match site.signs_here {
            true => "the server signs what is imported",
            false => "it is not on the server: sign with `--key FILE`",
        };
        text += &format!("\npublisher's key {}: {place}\n", short(key));
    }
    if let Some(problem) = &site.problem {
        text += &format!("{}\n", safe(problem));
    }
    Ok(text)
}

/// The beginning of a key's id: enough for people to compare.
pub fn short(id: &str) -> String {
    safe(&id.chars().take(16).collect::<String>())
}

fn show(client: &Client, generation: u64, output: Output) -> anyhow::Result<String> {
    let shown: GenerationFiles = client.get(&format!("definitions/generations/{generation}"))?;
    if output == Output::Json {
        return json(&shown);
    }
    let mut table = Table::new(["FILE", "BYTES", "SHA-256"]);
    for file in &shown.contents {
        table.row([
            file.name.clone(),
            file.length.to_string(),
            file.sha256.clone(),
        ]);
    }
    Ok(table.print("it has no files"))
}

fn import(
    client: &Client,
    from: &Path,
    stage: bool,
    key: &Key,
    output: Output,
) -> anyhow::Result<Printed> {
    let bundle = Bundle::open(from)?;
    upload(client, &bundle)?;
    let mut origin = from
        .canonicalize()
        .unwrap_or_else(|_| from.to_owned())
        .to_string_lossy()
        .replace(char::is_control, "?");
    while origin.len() > MAX_ORIGIN_BYTES {
        origin.pop();
    }
    let chosen = match &key.file {
        Some(file) => publisher::import(client, file, &bundle, origin, !stage)?,
        None => {
            let new = NewGeneration {
                origin,
                files: bundle.named(),
                wanted: !stage,
            };
            client.post("definitions/generations", &new)?
        }
    };
    said(&chosen, stage, output)
}

fn choose(
    client: &Client,
    generation: Option<u64>,
    key: &Key,
    output: Output,
) -> anyhow::Result<Printed> {
    let chosen = match &key.file {
        Some(file) => publisher::choose(client, file, generation)?,
        None => client.put("definitions/wanted", &Choose { generation })?,
    };
    said(&chosen, false, output)
}

fn said(chosen: &Chosen, stage: bool, output: Output) -> anyhow::Result<Printed> {
    if output == Output::Json {
        return Ok(json(chosen)?.into());
    }
    let note = match stage {
        true => "It is kept; `palisade definitions activate` has Protection Servers take it.\n",
        false => {
            "Protection Servers that follow the site take it; `palisade definitions list` shows which have it.\n"
        }
    };
    Ok(Printed {
        out: format!("generation {}\n", chosen.generation),
        note: note.to_owned(),
        code: exit::FINE,
    })
}

/// Sends what the server lacks.
fn upload(client: &Client, bundle: &Bundle) -> anyhow::Result<()> {
    let files = bundle.named();
    let missing: Missing = client.post("definitions/missing", &Files { files })?;
    let mut left: u64 = 0;
    for one in &missing.files {
        left = left.saturating_add(bundle.length(&one.sha256)?.saturating_sub(one.have));
    }
    // On a terminal alone, as indicatif has it.
    let bar = ProgressBar::new(left);
    if let Ok(style) =
        ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    {
        bar.set_style(style);
    }
    for one in &missing.files {
        let length = bundle.length(&one.sha256)?;
        let (mut have, mut tries) = (one.have, 0);
        loop {
            let part = bundle.part(&one.sha256, have, MAX_PART_BYTES)?;
            let path = format!(
                "definitions/files/{}?length={length}&from={have}",
                one.sha256
            );
            match client.put_bytes::<Received>(&path, &part) {
                Ok(received) => {
                    bar.inc(received.have.saturating_sub(have));
                    have = received.have;
                }
                // Somebody else sends the same, or a part came without its answer.
                Err(error)
                    if super::client::is_refusal(&error, "conflict") && tries < MAX_TRIES =>
                {
                    tries += 1;
                    have = progressed(client, bundle, &one.sha256).context(error)?;
                }
                Err(error) => return Err(error),
            }
            if have >= length {
                break;
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// How far a file has come at the server.
fn progressed(client: &Client, bundle: &Bundle, sha256: &str) -> anyhow::Result<u64> {
    let mut files = bundle.named();
    files.retain(|file| file.sha256 == sha256);
    let missing: Missing = client.post("definitions/missing", &Files { files })?;
    match missing.files.first() {
        Some(file) => Ok(file.have),
        None => bundle.length(sha256),
    }
}
