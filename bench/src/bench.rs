//! What every measure works with: made once, before the first.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::clamd::Clamd;
use crate::corpus::Corpus;
use crate::limits::Limits;
use crate::scale::Scale;
use crate::signatures;
use crate::site::{Agent, OwnSite};

/// Scans at a time, on both sides.
pub const LANES: usize = 2;
/// Largest content that both sides scan (bytes): the Protection Server's default.
pub const MAX_BYTES: u64 = 512 << 20;

/// Both sides, running, and what they scan.
#[derive(Debug)]
pub struct Bench {
    /// The counts.
    pub scale: Scale,
    /// The files to scan.
    pub corpus: Corpus,
    /// What the machine could do at best.
    pub limits: Limits,
    /// The peer.
    pub clamd: Clamd,
    /// Our side.
    pub site: OwnSite,
    /// The guest that scans first.
    pub first: Agent,
    /// Another guest of the same tenant.
    pub second: Agent,
    /// For clients within this process.
    pub runtime: Runtime,
    definitions: PathBuf,
    // The last field: removed after both sides ended.
    folder: TempDir,
}

impl Bench {
    /// Makes signatures and corpus, and starts both sides.
    ///
    /// # Errors
    /// When one side does not come to serve.
    pub fn prepare(scale: Scale) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("palisade-bench-")
            .tempdir()?;
        let definitions = folder.path().join("definitions");
        fs::create_dir(&definitions)?;
        signatures::write_clamav(&definitions, scale.signatures)?;
        let corpus = Corpus::build(&folder.path().join("corpus"), scale.corpus_bytes)?;
        let runtime = Runtime::new().context("no runtime")?;
        let limits = Limits::measure(&corpus, &runtime)?;
        let clamd = Clamd::start(&folder.path().join("clamd"), &definitions, LANES, MAX_BYTES)?;
        let site = OwnSite::start(folder.path(), &definitions, LANES)?;
        let (first, second) = (site.agent("first")?, site.agent("second")?);
        site.warm_up(&first)?;
        site.warm_up(&second)?;
        Ok(Self {
            scale,
            corpus,
            limits,
            clamd,
            site,
            first,
            second,
            runtime,
            definitions,
            folder,
        })
    }

    /// A folder of the run, for what a measure makes.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where both sides' databases are.
    pub fn definitions(&self) -> &Path {
        &self.definitions
    }

    /// Empties both sides' caches.
    ///
    /// # Errors
    /// When one side does not come to serve again.
    pub fn forget(&mut self) -> Result<()> {
        self.site.restart(&self.first)?;
        self.clamd.restart()
    }

    /// What is scanned with what, for people.
    pub fn setup(&self) -> Vec<String> {
        let signatures = self.scale.signatures;
        vec![
            format!(
                "{} synthetic signatures ({} hashes, {} patterns, {} logical), markers and EICAR; {LANES} scans at a time; contents of up to {} MiB",
                signatures.clamav(),
                signatures.hashes,
                signatures.bodies,
                signatures.logical,
                MAX_BYTES >> 20
            ),
            format!(
                "corpus: {} files of {:.1} MB from `/usr/bin` and `/usr/lib` and archives of them, {} different contents of {:.1} MB, {} infected",
                self.corpus.files.len(),
                self.corpus.bytes as f64 / 1e6,
                self.corpus.distinct,
                self.corpus.distinct_bytes as f64 / 1e6,
                self.corpus.infected
            ),
        ]
    }
}
