//! The self-check: what definitions must find, and what they must not.
//!
//! ```text
//!  loaded set ──► EICAR is malware? ──► clean contents are not? ──► may be put in force
//! ```
//!
//! That each engine finds its canary was seen when it was loaded. EICAR is asked for
//! on top where it must be known: in a vendor's main set ([`expects_eicar`]), unless
//! `definitions.require_eicar` says otherwise for all sets or for none. A site's own three rules have no signature for
//! it, and need none.
//!
//! Clean contents must not be malware. A suspicion about one is said in the log and is
//! no reason to refuse: nothing is blocked for it by default. A content of which a
//! scan comes to no end (a dead worker, a deadline) refuses the set; one that reaches
//! an engine's limit does not.

use std::sync::Arc;
use std::time::Duration;

use palisade_protocol::verdict::{NotScanned, Verdict};

use super::source::Listing;
use super::{DefinitionsError, corpus};
use crate::scan::engines::EngineSet;
use crate::scan::trial::Trial;
use crate::settings;

/// What a set is checked against.
#[derive(Debug, Clone)]
pub struct Check {
    directories: Vec<std::path::PathBuf>,
    require_eicar: Option<bool>,
    timeout: Duration,
}

impl Check {
    /// As the settings say.
    pub fn new(settings: &settings::Settings) -> Self {
        Self {
            directories: settings.definitions.clean_corpus.clone(),
            require_eicar: settings.definitions.require_eicar,
            timeout: settings.scan_timeout(),
        }
    }

    /// Checks a loaded set, which was copied from `listing`.
    ///
    /// # Errors
    /// [`DefinitionsError`] naming the content that is not judged as it should be.
    pub fn run(
        &self,
        set: &Arc<EngineSet>,
        listing: &Listing,
        origin: &str,
    ) -> Result<(), DefinitionsError> {
        let mut trial = Trial::new(Arc::clone(set), self.timeout);
        if self.require_eicar.unwrap_or_else(|| expects_eicar(listing)) {
            let verdict = judged(&mut trial, "the EICAR test file", &corpus::eicar())?;
            if !matches!(verdict, Verdict::Malware { .. }) {
                return Err(DefinitionsError::EicarMissed);
            }
        }
        for (what, bytes) in corpus::built_in() {
            clean(&mut trial, what, &bytes, origin)?;
        }
        for path in corpus::sample(&self.directories)? {
            if let Some(bytes) = corpus::read(&path) {
                clean(&mut trial, &path.display().to_string(), &bytes, origin)?;
            }
        }
        Ok(())
    }
}

/// Whether a set is one that knows EICAR when it is whole: it has a vendor's main or
/// daily container. (A vendor's bytecode container alone has no signature for it.)
pub fn expects_eicar(listing: &Listing) -> bool {
    listing.files.iter().any(|file| {
        let name = file.path.file_name().and_then(|name| name.to_str());
        let container = name.and_then(|name| name.rsplit_once('.'));
        matches!(container, Some(("main" | "daily", "cvd" | "cld" | "cud")))
    })
}

fn clean(
    trial: &mut Trial,
    what: &str,
    bytes: &[u8],
    origin: &str,
) -> Result<(), DefinitionsError> {
    match judged(trial, what, bytes)? {
        Verdict::Malware { name, engine } => Err(DefinitionsError::FalsePositive {
            what: what.to_owned(),
            found: format!("{name}, {engine}"),
            origin: origin.to_owned(),
        }),
        Verdict::Suspicious { name, engine } => {
            tracing::warn!(content = what, %name, %engine, "new definitions suspect a clean content");
            Ok(())
        }
        Verdict::Clean | Verdict::NotScanned(_) => Ok(()),
    }
}

fn judged(trial: &mut Trial, what: &str, bytes: &[u8]) -> Result<Verdict, DefinitionsError> {
    let failed = |detail: &dyn std::fmt::Display| DefinitionsError::CheckFailed {
        what: what.to_owned(),
        detail: detail.to_string(),
    };
    let end = trial.scan(bytes).map_err(|error| failed(&error))?;
    match end.verdict {
        Verdict::NotScanned(
            ref reason @ (NotScanned::TimedOut | NotScanned::EngineFailed { .. }),
        ) => Err(failed(reason)),
        verdict => Ok(verdict),
    }
}
