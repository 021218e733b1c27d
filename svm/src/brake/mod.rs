//! The brake: a new signature that hits many guests at once is reported only, until
//! somebody confirms it.
//!
//! A bad signature that matches libc would stop every guest of the hypervisor. The
//! brake is here, and not on the Integration Server where the detections of the site
//! meet, because only here it holds in the answer itself: at once, and whatever else is
//! down. Its price is that each Protection Server counts its own guests.
//!
//! ```text
//!  Malware{signature} ──► policy ──► Malware, or Suspicious with the same name
//! ```
//!
//! A guest is hit when it is told of a signature, or when what it holds turns out to be
//! malware by it ([`crate::retro`]): it is about to ask, and with many of them the brake
//! is to hold before the first does. Whether a guest that held it has deleted it since is
//! not known, and it counts.
//!
//! A suspicion is reported and, by default, blocks nothing. The cache and the notices
//! of [`crate::retro`] keep what the engines said: a confirmation needs no new scan.
//! What is braked and what was confirmed outlives a restart.

pub mod policy;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use palisade_protocol::bounded::List;
use palisade_protocol::definitions::{BrakedSignature, MAX_BRAKED_SHOWN};
use palisade_protocol::identity::write_atomic;
use palisade_protocol::ids::AgentId;
use palisade_protocol::verdict::{Generations, Verdict};
use serde::{Deserialize, Serialize};

use policy::{Effect, Policy, Rule, Signature};

/// Most engines whose definitions are known.
const MAX_ENGINES: usize = 16;
/// Most sets of definitions of one engine that are known: those that are kept, and some.
const MAX_SETS: usize = 32;

/// The brake. Clones share it.
#[derive(Debug, Clone)]
pub struct Brake(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    file: PathBuf,
    state: Mutex<State>,
    /// Held while the file is written, so that the last one written is the newest.
    writing: Mutex<()>,
}

#[derive(Debug)]
struct State {
    policy: Policy,
    /// When each engine's definitions came into force here for the first time, the
    /// latest last.
    engines: BTreeMap<String, Vec<Introduced>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Introduced {
    #[serde(with = "hex::serde")]
    fingerprint: [u8; 16],
    at_ms: u64,
}

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    engines: BTreeMap<String, Vec<Introduced>>,
    braked: Vec<(Signature, u64)>,
    confirmed: Vec<Signature>,
}

impl Brake {
    /// A brake for signatures that hit more than `guests` guests, 0 for none; it knows
    /// what the file of an earlier run holds. A file that cannot be used is no reason not
    /// to scan.
    pub fn open(file: &Path, guests: usize) -> Self {
        let kept = match std::fs::read(file) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::error!(file = %file.display(), %error, "damaged; braked signatures act again");
                Kept::default()
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Kept::default(),
            Err(error) => {
                tracing::error!(file = %file.display(), %error, "cannot be read; braked signatures act again");
                Kept::default()
            }
        };
        Self(Arc::new(Shared {
            file: file.to_owned(),
            state: Mutex::new(State {
                policy: Policy::new(Rule::new(guests), kept.braked, kept.confirmed),
                engines: kept.engines,
            }),
            writing: Mutex::new(()),
        }))
    }

    /// These definitions are in force from here on. Those that were before, as after a
    /// rollback, are as old as they were then; and the first that there ever are count as
    /// old: there is nothing that they could be new against. Blocks for a write.
    pub fn in_force(&self, generations: &Generations, now_ms: u64) {
        let mut state = self.lock();
        let at_ms = if state.engines.is_empty() { 0 } else { now_ms };
        let before = state.engines.clone();
        for used in generations.iter() {
            let room = state.engines.len() < MAX_ENGINES;
            if !room && !state.engines.contains_key(used.engine.as_str()) {
                continue;
            }
            let sets = state.engines.entry(used.engine.to_string()).or_default();
            if sets.iter().all(|set| set.fingerprint != used.fingerprint) {
                if sets.len() >= MAX_SETS {
                    sets.remove(0);
                }
                sets.push(Introduced {
                    fingerprint: used.fingerprint,
                    at_ms,
                });
            }
        }
        let changed = state.engines != before;
        drop(state);
        if changed {
            self.save();
        }
    }

    /// The verdict that an agent is told.
    pub fn judge(
        &self,
        guest: AgentId,
        verdict: Verdict,
        generations: &Generations,
        now_ms: u64,
    ) -> Verdict {
        let Verdict::Malware { name, engine } = verdict else {
            return verdict;
        };
        let signature = Signature { engine, name };
        let mut state = self.lock();
        let introduced_ms = state.introduced(&signature, generations);
        let effect = state.policy.hit(&signature, guest, introduced_ms, now_ms);
        drop(state);
        let Signature { engine, name } = signature;
        match effect {
            Effect::Act => return Verdict::Malware { name, engine },
            Effect::ReportOnly => {}
            Effect::Braked => {
                tracing::error!(
                    signature = %name, %engine,
                    "a new signature hits many guests: it is reported only, until it is confirmed with `palisade-scanserver definitions confirm`"
                );
                let brake = self.clone();
                tokio::task::spawn_blocking(move || brake.save());
            }
        }
        Verdict::Suspicious { name, engine }
    }

    /// A braked signature acts from here on; false when none of this name is braked.
    /// Blocks for a write.
    pub fn confirm(&self, name: &str) -> bool {
        let confirmed = self.lock().policy.confirm(name) > 0;
        if confirmed {
            tracing::warn!(signature = name, "confirmed: it acts from here on");
            self.save();
        }
        confirmed
    }

    /// What is braked.
    pub fn braked(&self) -> List<BrakedSignature, MAX_BRAKED_SHOWN> {
        let state = self.lock();
        List::cut(
            state
                .policy
                .braked()
                .map(|(signature, since_ms)| BrakedSignature {
                    engine: signature.engine.clone(),
                    name: signature.name.clone(),
                    since_ms,
                }),
        )
    }

    fn save(&self) {
        let _writing = self
            .0
            .writing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let state = self.lock();
        let braked = state.policy.braked();
        let kept = Kept {
            engines: state.engines.clone(),
            braked: braked.map(|(one, since)| (one.clone(), since)).collect(),
            confirmed: state.policy.confirmed().cloned().collect(),
        };
        drop(state);
        let written = serde_json::to_vec(&kept)
            .map_err(|error| error.to_string())
            .and_then(|bytes| {
                write_atomic(&self.0.file, &bytes, 0o600).map_err(|error| error.to_string())
            });
        if let Err(error) = written {
            tracing::error!(file = %self.0.file.display(), error, "what is braked will be forgotten by a restart");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// When the definitions that gave a verdict came into force; long ago, if that is
    /// not known.
    fn introduced(&self, signature: &Signature, generations: &Generations) -> u64 {
        let used = generations
            .iter()
            .find(|used| used.engine == signature.engine);
        let sets = self.engines.get(signature.engine.as_str());
        used.zip(sets)
            .and_then(|(used, sets)| sets.iter().find(|set| set.fingerprint == used.fingerprint))
            .map_or(0, |set| set.at_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::bounded::Text;
    use palisade_protocol::verdict::{EngineGeneration, Generation, VerdictKind};

    const DAY: u64 = 24 * 3600 * 1000;
    const NOW: u64 = 1000 * DAY;

    fn generations(fingerprint: u8) -> Generations {
        List::cut([EngineGeneration {
            engine: Text::cut("yara-x"),
            generation: Generation(1),
            fingerprint: [fingerprint; 16],
        }])
    }

    fn hit(brake: &Brake, fingerprint: u8, now_ms: u64) -> VerdictKind {
        let verdict = Verdict::Malware {
            name: Text::cut("Bad"),
            engine: Text::cut("yara-x"),
        };
        let of = generations(fingerprint);
        let judged = brake.judge(AgentId::random(), verdict, &of, now_ms);
        judged.kind()
    }

    #[tokio::test]
    async fn new_definitions_are_braked_and_first_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("brake.json");
        let brake = Brake::open(&file, 5);
        brake.in_force(&generations(1), NOW);
        for _ in 0..20 {
            assert_eq!(hit(&brake, 1, NOW), VerdictKind::Malware);
        }
        let brake = Brake::open(&file, 5);
        brake.in_force(&generations(2), NOW);
        let kinds: Vec<_> = (0..7).map(|_| hit(&brake, 2, NOW)).collect();
        assert_eq!(kinds[..5], [VerdictKind::Malware; 5]);
        assert_eq!(kinds[5..], [VerdictKind::Suspicious; 2]);
        // What it is written by may still be on its way.
        while std::fs::read_to_string(&file).is_ok_and(|text| !text.contains("Bad")) {
            tokio::task::yield_now().await;
        }

        let brake = Brake::open(&file, 5);
        brake.in_force(&generations(2), NOW + DAY);
        assert_eq!(hit(&brake, 2, NOW + DAY), VerdictKind::Suspicious);
        assert_eq!(brake.braked()[0].name.as_str(), "Bad");
        assert!(!brake.confirm("Other") && brake.confirm("Bad"));
        assert!(brake.braked().is_empty());
        let brake = Brake::open(&file, 5);
        for _ in 0..20 {
            assert_eq!(hit(&brake, 2, NOW + DAY), VerdictKind::Malware);
        }
    }

    #[tokio::test]
    async fn what_was_in_force_before_is_as_old_as_then() {
        let dir = tempfile::tempdir().unwrap();
        let brake = Brake::open(&dir.path().join("brake.json"), 5);
        brake.in_force(&generations(1), NOW);
        brake.in_force(&generations(2), NOW);
        brake.in_force(&generations(1), NOW + 1);
        for _ in 0..20 {
            assert_eq!(
                hit(&brake, 1, NOW + 1),
                VerdictKind::Malware,
                "rolled back to"
            );
        }
        for n in 0..100 {
            brake.in_force(&generations(n), NOW + 2);
        }
        assert_eq!(brake.lock().engines["yara-x"].len(), MAX_SETS);
    }

    #[tokio::test]
    async fn a_damaged_file_and_a_brake_that_is_off_let_everything_act() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("brake.json");
        std::fs::write(&file, "{").unwrap();
        let brake = Brake::open(&file, 0);
        brake.in_force(&generations(1), NOW);
        brake.in_force(&generations(2), NOW);
        for _ in 0..20 {
            assert_eq!(hit(&brake, 2, NOW), VerdictKind::Malware);
        }
    }
}
