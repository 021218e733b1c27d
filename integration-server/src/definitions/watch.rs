//! A directory whose changes are imported, and metadata that is signed anew in time.
//!
//! The directory is one that others write to, such as freshclam's private mirror. It is
//! imported once it keeps still, and only when the publisher's key is here: a publisher
//! elsewhere imports by himself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use palisade_repository::files::{self, Found};
use palisade_repository::{Generation, names};

use super::DefinitionsError;
use super::repository::{Repository, renewal_check};
use crate::audit::{Actor, Entry};
use crate::time::now_ms;

/// A change within this time may be one of several: it is waited for the next look.
const FRESH: Duration = Duration::from_secs(2);
/// The next look at a directory that has just changed.
const SETTLE: Duration = Duration::from_secs(1);

/// What was seen at a look.
type Sight = Vec<Found>;

/// Watches and renews until the task is dropped.
pub async fn run(repository: Arc<Repository>) {
    let settings = repository.settings();
    let renewal = renewal_check(settings.timestamp_lifetime.get());
    let (mut seen, mut wait) = (None, Duration::ZERO);
    let mut renewals = tokio::time::interval(renewal);
    renewals.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = renewals.tick() => {
                if let Err(error) = repository.renew_if_due().await {
                    tracing::error!(%error, "the definitions' timestamp cannot be signed anew");
                }
            }
            () = tokio::time::sleep(wait), if settings.source.is_some() => {
                let Some(source) = settings.source.clone() else { continue };
                let looked = look(&repository, &source, seen.as_ref()).await;
                wait = settings.poll.get();
                match looked {
                    Ok(Look::Unchanged) => {}
                    Ok(Look::Restless) => wait = SETTLE,
                    Ok(Look::Imported(sight)) => {
                        seen = Some(sight);
                        repository.watched(None);
                    }
                    Err(error) => {
                        let problem = format!("{}: {error}", source.display());
                        tracing::error!(%problem, "the definitions' source cannot be imported");
                        repository.watched(Some(problem));
                    }
                }
            }
        }
    }
}

enum Look {
    Unchanged,
    /// Somebody may still be writing.
    Restless,
    Imported(Sight),
}

async fn look(
    repository: &Repository,
    source: &Path,
    seen: Option<&Sight>,
) -> Result<Look, DefinitionsError> {
    let sight = see(source.to_owned()).await?;
    if seen == Some(&sight) {
        return Ok(Look::Unchanged);
    }
    if sight.is_empty() {
        let why = "there are no files of definitions in it".to_owned();
        return Err(DefinitionsError::Refused(why));
    }
    if files::is_fresh(&sight, SystemTime::now(), FRESH) {
        return Ok(Look::Restless);
    }
    let mut files = BTreeMap::new();
    for file in &sight {
        if !names::is_file_name(&file.stored) {
            let why = format!("{:?} is no name for a file of definitions", file.stored);
            return Err(DefinitionsError::Refused(why));
        }
        let info = repository.copy(file.path.clone()).await?;
        files.insert(file.stored.clone(), info);
    }
    if see(source.to_owned()).await? != sight {
        return Ok(Look::Restless);
    }
    let overview = repository.overview().await?;
    let last = overview.contents.generations.values().next_back();
    if last.is_none_or(|last| last.files != files) {
        let generation = Generation {
            added_ms: now_ms(),
            origin: source.display().to_string(),
            files,
        };
        let entry = |number| Entry::done(Actor::local(), "definitions.import", number, now_ms());
        let number = repository.import(generation, true, entry).await?;
        tracing::info!(number, source = %source.display(), "new definitions were imported");
    }
    Ok(Look::Imported(sight))
}

async fn see(source: PathBuf) -> Result<Sight, DefinitionsError> {
    let walked = tokio::task::spawn_blocking(move || {
        let mut found = files::newest_containers(files::walk(&source)?);
        found.sort_by(|a, b| a.stored.cmp(&b.stored));
        Ok(found)
    });
    walked
        .await
        .map_err(|error| DefinitionsError::Refused(error.to_string()))?
}
