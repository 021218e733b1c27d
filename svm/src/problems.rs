//! What is wrong with this Protection Server, and since when: for the Integration Server
//! ([`crate::report`]), `status` and Prometheus.
//!
//! ```text
//!  engines, desk, brake, cache ─► Facts ─► found (pure) ─► Log: since when (pure) ─► told
//! ```
//!
//! Owns which facts are problems; does not own the facts, nor what helps: whoever reads a
//! report looks that up by the kind. A problem is gone when its cause is.

use std::sync::{Arc, Mutex, PoisonError};

use palisade_protocol::bounded::{List, Text};
use palisade_protocol::definitions::{DefinitionsStatus, GenerationEntry, Standing};
use palisade_protocol::problem::{MAX_PROBLEMS, Problem, ProblemKind, Problems};

use crate::cache::SharedCache;
use crate::definitions::desk::Desk;
use crate::repository::Follower;
use crate::scan::Scanner;

const DAY_MS: u64 = 24 * 3600 * 1000;

/// What is looked at.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Engines that cannot scan.
    pub down: Vec<&'static str>,
    /// Somebody looks after definitions.
    pub attended: bool,
    /// The definitions.
    pub definitions: DefinitionsStatus,
    /// What was wrong with the last pull from the site's repository.
    pub repository: Option<Text<1024>>,
    /// Contents that killed their workers twice, and are not scanned now.
    pub poisoned: u64,
    /// Verdicts of which it could not be noted that they overrule the cache's copy.
    pub unnoted: u64,
}

/// What is wrong by these facts, the worst first, with since when where facts say so.
/// Definitions are too old after so many days; 0 for never.
pub fn found(facts: &Facts, stale_after_days: u32, now_ms: u64) -> Vec<(ProblemKind, Option<u64>)> {
    let mut found = Vec::new();
    for engine in &facts.down {
        let engine = Text::cut(engine);
        found.push((ProblemKind::EngineDown { engine }, None));
    }
    if !facts.attended {
        found.push((ProblemKind::DefinitionsUnattended, None));
    }
    if let Some(why) = &facts.definitions.problem {
        let why = Text::cut(why);
        found.push((ProblemKind::DefinitionsSource { why }, None));
    }
    if let Some(why) = facts.repository.clone() {
        found.push((ProblemKind::DefinitionsRepository { why }, None));
    }
    let stale_ms = u64::from(stale_after_days) * DAY_MS;
    if let Some(active) = in_force(&facts.definitions)
        && stale_ms > 0
        && now_ms.saturating_sub(active.added_ms) >= stale_ms
    {
        let added_ms = active.added_ms;
        let since_ms = added_ms.saturating_add(stale_ms);
        found.push((ProblemKind::DefinitionsOld { added_ms }, Some(since_ms)));
    }
    if facts.poisoned > 0 {
        let contents = facts.poisoned;
        found.push((ProblemKind::ContentsPoisoned { contents }, None));
    }
    if facts.unnoted > 0 {
        found.push((ProblemKind::CacheUnsafe, None));
    }
    // There may be more of these than a report has room for, and no other must go for them.
    let room = MAX_PROBLEMS.saturating_sub(found.len());
    for braked in facts.definitions.braked.iter().take(room) {
        let kind = ProblemKind::SignatureBraked {
            engine: braked.engine.clone(),
            signature: braked.name.clone(),
        };
        found.push((kind, Some(braked.since_ms)));
    }
    found.sort_by(|(one, _), (two, _)| one.cmp(two));
    found
}

fn in_force(definitions: &DefinitionsStatus) -> Option<&GenerationEntry> {
    let mut generations = definitions.generations.iter();
    generations.find(|one| one.standing == Standing::Active)
}

/// Since when what is wrong is so.
#[derive(Debug, Default)]
pub struct Log(Vec<Problem>);

impl Log {
    /// This is what is wrong now. What was wrong at the last look has been since then.
    pub fn look(&mut self, found: Vec<(ProblemKind, Option<u64>)>, now_ms: u64) -> Problems {
        let before = std::mem::take(&mut self.0);
        let since = |kind: &ProblemKind| {
            let known = before.iter().find(|known| known.kind.is_same_as(kind));
            known.map_or(now_ms, |known| known.since_ms)
        };
        self.0 = found
            .into_iter()
            .take(MAX_PROBLEMS)
            .map(|(kind, since_ms)| Problem {
                since_ms: since_ms.unwrap_or_else(|| since(&kind)),
                kind,
            })
            .collect();
        List::cut(self.0.iter().cloned())
    }
}

/// Where facts come from.
#[derive(Debug)]
pub struct Watch {
    scanner: Scanner,
    cache: SharedCache,
    desk: Desk,
    follower: Option<Arc<Follower>>,
    stale_after_days: u32,
    log: Mutex<Log>,
}

impl Watch {
    /// Definitions are too old after so many days; 0 for never.
    pub fn new(
        scanner: Scanner,
        cache: SharedCache,
        desk: Desk,
        follower: Option<Arc<Follower>>,
        stale_after_days: u32,
    ) -> Self {
        Self {
            scanner,
            cache,
            desk,
            follower,
            stale_after_days,
            log: Mutex::default(),
        }
    }

    /// When the definitions in force were added, in milliseconds since 1970.
    pub fn definitions_added_ms(&self) -> u64 {
        in_force(&self.desk.status()).map_or(0, |active| active.added_ms)
    }

    /// What is wrong now.
    pub fn look(&self, now_ms: u64) -> Problems {
        let facts = Facts {
            down: self.scanner.down(),
            attended: self.desk.is_attended(),
            definitions: self.desk.status(),
            repository: self.follower.as_ref().and_then(|one| one.problem()),
            poisoned: self.scanner.poisoned_now(),
            unnoted: self.cache.copy_counts().unnoted,
        };
        let found = found(&facts, self.stale_after_days, now_ms);
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.look(found, now_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::definitions::BrakedSignature;
    use palisade_protocol::verdict::Generations;
    use proptest::prelude::*;

    const NOW: u64 = 1000 * DAY_MS;

    fn fine() -> Facts {
        Facts {
            attended: true,
            ..Facts::default()
        }
    }

    fn with_generation(standing: Standing, added_ms: u64) -> Facts {
        let mut facts = fine();
        facts.definitions.generations = List::cut([GenerationEntry {
            generation: 1,
            standing,
            engines: Generations::default(),
            origin: Text::default(),
            added_ms,
            bytes: 0,
        }]);
        facts
    }

    fn names(facts: &Facts) -> Vec<&'static str> {
        let found = found(facts, 7, NOW);
        found.iter().map(|(kind, _)| kind.as_str()).collect()
    }

    #[test]
    fn nothing_is_wrong_until_something_is_and_the_worst_comes_first() {
        assert!(names(&fine()).is_empty());
        let mut all = with_generation(Standing::Active, NOW - 8 * DAY_MS);
        all.unnoted = 1;
        all.poisoned = 2;
        all.down = vec!["yara-x", "clamav"];
        all.attended = false;
        all.definitions.problem = Some(Text::cut("no such folder"));
        all.repository = Some(Text::cut("another key"));
        all.definitions.braked = List::cut([BrakedSignature {
            engine: Text::cut("yara-x"),
            name: Text::cut("Bad"),
            since_ms: 5,
        }]);
        assert_eq!(
            names(&all),
            [
                "engine_down",
                "engine_down",
                "definitions_unattended",
                "definitions_source",
                "definitions_repository",
                "definitions_old",
                "signature_braked",
                "contents_poisoned",
                "cache_unsafe",
            ]
        );
    }

    #[test]
    fn however_many_signatures_are_braked_nothing_else_goes_untold() {
        let mut facts = fine();
        (facts.unnoted, facts.poisoned) = (1, 2);
        let braked = |number: usize| BrakedSignature {
            engine: Text::cut("yara-x"),
            name: Text::cut(&format!("Bad{number}")),
            since_ms: 5,
        };
        facts.definitions.braked = List::cut((0..MAX_PROBLEMS + 5).map(braked));
        let told = Log::default().look(found(&facts, 7, NOW), NOW);
        let told: Vec<_> = told.iter().map(|one| one.kind.as_str()).collect();
        assert_eq!(told.len(), MAX_PROBLEMS);
        assert_eq!(
            told[MAX_PROBLEMS - 2..],
            ["contents_poisoned", "cache_unsafe"]
        );
    }

    #[test]
    fn what_is_in_force_is_too_old_after_so_many_days() {
        let week = 7 * DAY_MS;
        let old =
            |standing, added_ms, days| found(&with_generation(standing, added_ms), days, NOW).pop();
        assert_eq!(old(Standing::Active, NOW - week + 1, 7), None);
        assert_eq!(old(Standing::Previous, NOW - week, 7), None);
        assert_eq!(old(Standing::Active, 0, 0), None);
        let added_ms = NOW - week - 9;
        assert_eq!(
            old(Standing::Active, added_ms, 7),
            Some((ProblemKind::DefinitionsOld { added_ms }, Some(NOW - 9)))
        );
    }

    proptest! {
        #[test]
        fn since_when_is_the_first_look_of_an_unbroken_row(
            looks in proptest::collection::vec(proptest::collection::vec(0_u64..3, 0..3), 1..20),
        ) {
            let mut log = Log::default();
            let mut begun: Option<u64> = None;
            for (now_ms, poisoned) in (1..).zip(looks) {
                let facts = Facts { poisoned: poisoned.iter().sum(), ..fine() };
                let told = log.look(found(&facts, 7, now_ms), now_ms);
                begun = (facts.poisoned > 0).then(|| begun.unwrap_or(now_ms));
                prop_assert_eq!(told.first().map(|one| one.since_ms), begun);
            }
        }

        #[test]
        fn a_report_is_bounded(down in 0..100_usize) {
            let facts = Facts { down: vec!["some"; down], ..fine() };
            let told = Log::default().look(found(&facts, 7, NOW), NOW);
            prop_assert_eq!(told.len(), down.min(MAX_PROBLEMS));
        }
    }
}
