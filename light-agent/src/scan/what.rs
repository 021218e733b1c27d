//! What is asked to be scanned: quick, full, or given paths.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use palisade_protocol::bounded::PathBytes;
use serde::{Deserialize, Serialize};

use super::places::{self, Cover};

/// The kinds of scans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// What runs and what is started.
    Quick,
    /// All local file systems.
    Full,
    /// Given paths.
    Custom,
}

impl Kind {
    /// As it stands in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Full => "full",
            Self::Custom => "custom",
        }
    }

    /// What this kind covers now; looks at the file system. What is left out of it is
    /// logged.
    ///
    /// # Errors
    /// When the mounted file systems cannot be listed.
    pub fn cover(self, paths: &[PathBuf], exclude: &[PathBuf]) -> io::Result<Cover> {
        let cover = match self {
            Self::Quick => places::quick(Path::new("/"), exclude)?,
            Self::Full => places::full(exclude)?,
            Self::Custom => places::given(paths, exclude),
        };
        for (path, kind) in &cover.left_out {
            let path = PathBytes::from_path(path);
            tracing::info!(%path, kind, "a file system that is not local is not scanned");
        }
        Ok(cover)
    }
}

/// What a command says.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct What {
    /// What runs, what is started by itself, and temporary folders
    #[arg(long)]
    quick: bool,
    /// All local file systems
    #[arg(long)]
    full: bool,
    /// What to scan
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

impl What {
    /// The kind.
    pub fn kind(&self) -> Kind {
        match (self.quick, self.full) {
            (true, _) => Kind::Quick,
            (_, true) => Kind::Full,
            _ => Kind::Custom,
        }
    }

    /// The given paths, made absolute.
    ///
    /// # Errors
    /// One that is none.
    pub fn paths(&self) -> anyhow::Result<Vec<PathBuf>> {
        self.paths
            .iter()
            .map(|path| {
                std::path::absolute(path)
                    .with_context(|| format!("{} is no usable path", path.display()))
            })
            .collect()
    }
}
