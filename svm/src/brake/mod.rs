//! The brake: a new signature that hits many guests at once is reported only, until
//! somebody confirms it.
//!
//! A bad signature that matches libc would stop every guest of the hypervisor. The
//! brake is here, and not on the Integration Server where the detections of the site
//! meet, because only here it holds in the answer itself: at once, and whatever else is
//! down. Its price is that each Protection Server counts its own guests.
//!
//! ```text
//!  definitions in force ──► signatures ──► ledger: since when each is in force
//!                                             │
//!  Malware{signature} ──────────────────► policy ──► Malware, or Suspicious, same name
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`signatures`] | names and what they stand for, out of files of definitions |
//! | [`ledger`] | since when each is in force: a sorted file for each engine |
//! | [`policy`] | when a signature turns report-only (pure) |
//! | this | all of it under one lock, and what outlives a restart |
//!
//! A guest is hit when it is told of a signature, or when what it holds turns out to be
//! malware by it ([`crate::retro`]): it is about to ask, and with many of them the brake
//! is to hold before the first does. Whether a guest that held it has deleted it since is
//! not known, and it counts.
//!
//! Guests that were told before the brake held remember that; they are told to ask again.
//! A suspicion is reported and, by default, blocks nothing. The cache and the notices
//! of [`crate::retro`] keep what the engines said: a confirmation needs no new scan.
//! What is braked and what was confirmed outlives a restart.

pub mod ledger;
pub mod policy;
pub mod signatures;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use palisade_protocol::bounded::List;
use palisade_protocol::content::ContentId;
use palisade_protocol::definitions::{BrakedSignature, MAX_BRAKED_SHOWN};
use palisade_protocol::identity::write_atomic;
use palisade_protocol::ids::{AgentId, TenantId};
use palisade_protocol::verdict::Verdict;
use serde::{Deserialize, Serialize};

use ledger::{InForce, Ledger, Terms};
use policy::{Braked, Effect, Policy, Rule, Signature};
use signatures::{FAMILIES, Part, name_of};

/// In the folder of ledgers once each was written for the first time.
const BEGUN: &str = "begun";

/// The brake. Clones share it.
#[derive(Debug, Clone)]
pub struct Brake(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    file: PathBuf,
    /// Where the ledgers are.
    ledgers: PathBuf,
    rule: Rule,
    state: Mutex<State>,
    /// Held while the file is written, so that the last one written is the newest.
    writing: Mutex<()>,
}

#[derive(Debug)]
struct State {
    policy: Policy,
    /// By the engines' names in verdicts.
    engines: BTreeMap<&'static str, InForce>,
}

/// The file.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    braked: Vec<(Braked, u64)>,
    confirmed: Vec<Signature>,
}

impl Brake {
    /// A brake for signatures that hit more than `guests` guests, 0 for none; it knows
    /// what the file of an earlier run holds, and the ledgers in the other folder. What
    /// cannot be used of it is no reason not to scan.
    pub fn open(file: &Path, ledgers: &Path, guests: usize) -> Self {
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
        let rule = Rule::new(guests);
        Self(Arc::new(Shared {
            file: file.to_owned(),
            ledgers: ledgers.to_owned(),
            rule,
            state: Mutex::new(State {
                policy: Policy::new(rule, kept.braked, kept.confirmed),
                engines: BTreeMap::new(),
            }),
            writing: Mutex::new(()),
        }))
    }

    /// These definitions are in force from here on. Signatures that were before, as after
    /// a rollback, are as old as they were then; and the first that there ever are count
    /// as old: there is nothing that they could be new against. Reads and writes as much as
    /// there are signatures, and blocks for that.
    ///
    /// Where that fails, signatures count as old: a verdict acts in doubt, since whoever
    /// could bring doubt about would otherwise switch verdicts off.
    pub fn in_force(&self, parts: &[Part], now_ms: u64) {
        if self.0.rule.guests == 0 {
            return;
        }
        let seconds = |ms: u64| u32::try_from(ms / 1000).unwrap_or(u32::MAX);
        let begun = self.0.ledgers.join(BEGUN);
        let is_first = !begun.exists();
        let marked = self.lock().marked();
        let terms = Terms {
            now_s: seconds(now_ms),
            new_for_s: seconds(self.0.rule.new_for_ms),
            unknown_since_s: if is_first { 0 } else { seconds(now_ms) },
            marked: &marked,
        };
        let mut engines = BTreeMap::new();
        for part in parts {
            let ledger = Ledger::of(&self.0.ledgers, part);
            // What is read is a vendor's, by parsers that may have bugs of their own.
            let read = AssertUnwindSafe(|| ledger.bring_up_to_date(part, &terms));
            let read = catch_unwind(read)
                .unwrap_or_else(|_| Err(std::io::Error::other("reading them panicked; see above")));
            match read {
                Ok(in_force) => {
                    engines.insert(part.engine.name(), in_force);
                }
                Err(error) => {
                    let engine = part.engine.name();
                    tracing::error!(engine, %error, "its new signatures are not told from old ones, and are not braked; those that are stay so");
                }
            }
        }
        // A first time that was cut short is no reason to take all that there is for new.
        if is_first
            && !parts.is_empty()
            && engines.len() == parts.len()
            && let Err(error) = std::fs::write(&begun, "")
        {
            tracing::error!(file = %begun.display(), %error, "signatures count as old that are new");
        }
        self.lock().engines = engines;
    }

    /// The verdict that an agent is told of a content. When that brakes its signature,
    /// `again` hears who was told before that it is malware, and of which content: they are
    /// to ask again.
    pub fn judge(
        &self,
        tenant: &TenantId,
        (guest, content): (AgentId, ContentId),
        verdict: Verdict,
        now_ms: u64,
        again: impl FnMut((AgentId, ContentId)),
    ) -> Verdict {
        let Verdict::Malware { name, engine } = verdict else {
            return verdict;
        };
        let mut state = self.lock();
        let known = state.engines.get(engine.as_str());
        let effect = match known.map(|in_force| in_force.of(&name)) {
            Some(known) => {
                let signature = Signature {
                    engine: engine.clone(),
                    name: name.clone(),
                    definition: known.definition,
                };
                let since_ms = known.since_ms;
                let policy = &mut state.policy;
                let hit = (guest, content);
                policy.hit(&signature, tenant, hit, since_ms, now_ms)
            }
            None => state.policy.hit_of_unknown(tenant, &engine, &name),
        };
        let told = state.policy.take_told();
        drop(state);
        told.into_iter().for_each(again);
        match effect {
            Effect::Act => return Verdict::Malware { name, engine },
            Effect::ReportOnly => {}
            Effect::Braked => {
                tracing::error!(
                    signature = %name, %engine, %tenant,
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

    /// What is braked, each signature once, for however many tenants.
    pub fn braked(&self) -> List<BrakedSignature, MAX_BRAKED_SHOWN> {
        let state = self.lock();
        let mut shown: BTreeMap<&Signature, u64> = BTreeMap::new();
        for ((_, signature), since_ms) in state.policy.braked() {
            let since = shown.entry(signature).or_insert(since_ms);
            *since = since_ms.min(*since);
        }
        List::cut(
            shown
                .into_iter()
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
    /// The names, hashed, of what is braked or confirmed, and of the families that they are
    /// written down as: whether it is still the same has to be known, however old it gets.
    fn marked(&self) -> BTreeSet<u64> {
        let braked = self.policy.braked().map(|((_, signature), _)| signature);
        let all = braked.chain(self.policy.confirmed());
        all.flat_map(|signature| {
            let name = signature.name.as_str();
            let family = FAMILIES.iter().find(|family| name.starts_with(**family));
            std::iter::once(name_of(name)).chain(family.map(|family| name_of(family)))
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineKind;
    use palisade_protocol::bounded::Text;
    use palisade_protocol::verdict::VerdictKind;

    const DAY: u64 = 24 * 3600 * 1000;
    const NOW: u64 = 1000 * DAY;

    /// A brake in a folder, and rules that come into force.
    struct Bench {
        dir: tempfile::TempDir,
        count: u8,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                dir: tempfile::tempdir().unwrap(),
                count: 0,
            }
        }

        fn file(&self) -> PathBuf {
            self.dir.path().join("brake.json")
        }

        fn open(&self, guests: usize) -> Brake {
            Brake::open(&self.file(), &self.dir.path().join("signatures"), guests)
        }

        fn define(&mut self, brake: &Brake, rules: &str, now_ms: u64) {
            self.bring(brake, EngineKind::Yara, ("some.yar", rules), now_ms);
        }

        /// Lists of links, whose findings have their family's name alone.
        fn define_links(&mut self, brake: &Brake, lines: &str, now_ms: u64) {
            self.bring(brake, EngineKind::Clamav, ("some.pdb", lines), now_ms);
        }

        fn bring(
            &mut self,
            brake: &Brake,
            engine: EngineKind,
            (file, text): (&str, &str),
            now_ms: u64,
        ) {
            self.count += 1;
            let folder = self.dir.path().join(file.replace('.', "-"));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join(file), text).unwrap();
            let part = Part {
                engine,
                fingerprint: [self.count; 16],
                folder,
            };
            brake.in_force(&[part], now_ms);
        }
    }

    const OLD: &str = "rule Old { condition: true } ";
    const BAD: &str = "rule Bad { condition: true } ";
    const EDITED: &str = "rule Bad { condition: filesize > 0 } ";

    fn hit(brake: &Brake, name: &str, now_ms: u64) -> VerdictKind {
        hit_by(brake, "yara-x", name, now_ms)
    }

    fn hit_by(brake: &Brake, engine: &str, name: &str, now_ms: u64) -> VerdictKind {
        let verdict = Verdict::Malware {
            name: Text::cut(name),
            engine: Text::cut(engine),
        };
        let tenant = TenantId::default_tenant();
        let guest = (AgentId::random(), ContentId([7; 32]));
        let judged = brake.judge(&tenant, guest, verdict, now_ms, |_| ());
        judged.kind()
    }

    fn acts(brake: &Brake, name: &str, now_ms: u64) {
        for _ in 0..20 {
            assert_eq!(hit(brake, name, now_ms), VerdictKind::Malware, "{name}");
        }
    }

    fn is_braked(brake: &Brake, name: &str, now_ms: u64) {
        let kinds: Vec<_> = (0..7).map(|_| hit(brake, name, now_ms)).collect();
        assert_eq!(kinds[..5], [VerdictKind::Malware; 5]);
        assert_eq!(kinds[5..], [VerdictKind::Suspicious; 2]);
    }

    #[tokio::test]
    async fn a_new_signature_is_braked_and_those_that_came_with_it_before_are_not() {
        let mut bench = Bench::new();
        let brake = bench.open(5);
        bench.define(&brake, OLD, NOW);
        acts(&brake, "Old", NOW);
        bench.define(&brake, &[OLD, BAD].concat(), NOW + 1000);
        acts(&brake, "Old", NOW + 1000);
        is_braked(&brake, "Bad", NOW + 1000);
        // What it is written by may still be on its way.
        while !std::fs::read_to_string(bench.file()).is_ok_and(|text| text.contains("Bad")) {
            tokio::task::yield_now().await;
        }

        // However old it gets, until somebody confirms it.
        let brake = bench.open(5);
        bench.define(&brake, &[BAD, OLD].concat(), NOW + 3 * DAY);
        assert_eq!(hit(&brake, "Bad", NOW + 3 * DAY), VerdictKind::Suspicious);
        assert_eq!(brake.braked()[0].name.as_str(), "Bad");
        assert!(!brake.confirm("Other") && brake.confirm("Bad"));
        assert!(brake.braked().is_empty());
        let brake = bench.open(5);
        bench.define(&brake, &[BAD, OLD, " "].concat(), NOW + 3 * DAY);
        acts(&brake, "Bad", NOW + 3 * DAY);

        // Edited, it is another one, which nobody confirmed.
        bench.define(&brake, &[EDITED, OLD].concat(), NOW + 4 * DAY);
        is_braked(&brake, "Bad", NOW + 4 * DAY);
        acts(&brake, "Old", NOW + 4 * DAY);
        // And as it was, it is what was confirmed.
        bench.define(&brake, &[BAD, OLD, "  "].concat(), NOW + 4 * DAY);
        acts(&brake, "Bad", NOW + 4 * DAY);
    }

    #[tokio::test]
    async fn what_was_in_force_before_is_as_old_as_then() {
        let mut bench = Bench::new();
        let brake = bench.open(5);
        bench.define(&brake, &[OLD, BAD].concat(), NOW);
        bench.define(&brake, &[OLD, EDITED].concat(), NOW + 1000);
        bench.define(&brake, &[OLD, BAD, " "].concat(), NOW + 2000);
        acts(&brake, "Bad", NOW + 2000);
    }

    /// What is written down by its family, too, stays what was decided about it.
    #[tokio::test]
    async fn a_member_of_a_family_stays_braked_when_it_is_old() {
        let mut bench = Bench::new();
        let brake = bench.open(5);
        bench.define_links(&brake, "", NOW);
        bench.define_links(&brake, "H:one.example\n", NOW + 1000);
        let of_links = |now_ms| {
            hit_by(
                &brake,
                "libclamav",
                "Heuristics.Phishing.Email.Spoofed",
                now_ms,
            )
        };
        let kinds: Vec<_> = (0..7).map(|_| of_links(NOW + 1000)).collect();
        assert_eq!(kinds[5..], [VerdictKind::Suspicious; 2]);
        bench.define_links(&brake, "H:one.example\n", NOW + 3 * DAY);
        assert_eq!(of_links(NOW + 3 * DAY), VerdictKind::Suspicious);
    }

    /// Braked is braked, whatever becomes of the ledger.
    #[tokio::test]
    async fn a_ledger_that_cannot_be_read_lets_nothing_act_that_is_braked() {
        let mut bench = Bench::new();
        let brake = bench.open(5);
        bench.define(&brake, OLD, NOW);
        bench.define(&brake, &[OLD, BAD].concat(), NOW + 1000);
        is_braked(&brake, "Bad", NOW + 1000);
        let ledgers = bench.dir.path().join("signatures");
        std::fs::remove_dir_all(&ledgers).unwrap();
        std::fs::write(&ledgers, "").unwrap();
        bench.define(&brake, &[OLD, BAD, " "].concat(), NOW + 2000);
        assert_eq!(hit(&brake, "Bad", NOW + 2000), VerdictKind::Suspicious);
        acts(&brake, "Old", NOW + 2000);
        brake.confirm("Bad");
        acts(&brake, "Bad", NOW + 2000);
    }

    /// The first start reads millions of lines, and may be killed meanwhile.
    #[tokio::test]
    async fn a_first_time_that_was_cut_short_makes_nothing_new() {
        let mut bench = Bench::new();
        let ledgers = bench.dir.path().join("signatures");
        std::fs::create_dir_all(&ledgers).unwrap();
        std::fs::write(ledgers.join("clamav.next"), "palsig 1").unwrap();
        let brake = bench.open(5);
        bench.define(&brake, OLD, NOW);
        acts(&brake, "Old", NOW);
        bench.define(&brake, &[OLD, BAD].concat(), NOW + 1000);
        is_braked(&brake, "Bad", NOW + 1000);
    }

    #[tokio::test]
    async fn doubt_and_a_brake_that_is_off_let_everything_act() {
        let mut bench = Bench::new();
        std::fs::write(bench.file(), "{").unwrap();
        let brake = bench.open(0);
        bench.define(&brake, OLD, NOW);
        bench.define(&brake, BAD, NOW + 1000);
        acts(&brake, "Bad", NOW + 1000);
        // Without a folder for its ledgers.
        std::fs::write(bench.dir.path().join("signatures"), "").unwrap();
        let brake = bench.open(5);
        bench.define(&brake, OLD, NOW);
        bench.define(&brake, BAD, NOW + 1000);
        acts(&brake, "Bad", NOW + 1000);
    }
}
