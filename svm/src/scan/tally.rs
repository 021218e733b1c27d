//! From what engines say of a content and its members to one verdict: pure.
//!
//! ```text
//! allowed  >  malware  >  suspicious  >  not scanned  >  clean
//! ```
//!
//! Within a rank the first that was said counts. Beside the verdict, it says who
//! decided, where in the content, and how long each engine took. **Invariant:** the
//! end is `Clean` only if a list allows the content, or if every engine of the set
//! completed, on all of the content and on every member, and found nothing.

use std::time::Duration;

use palisade_protocol::bounded::{List, Text};
use palisade_protocol::verdict::{
    Details, EngineRun, EngineRuns, MAX_METADATA, MemberPath, Metadatum, NotScanned, SignatureName,
    Verdict, VerdictKind,
};
use palisade_worker::client as worker;

use super::engines::NoWorker;
use crate::engine::EngineKind;

/// What a scan ended in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The verdict.
    pub verdict: Verdict,
    /// Who decided, and where.
    pub details: Details,
    /// Each engine's part.
    pub runs: EngineRuns,
    /// Whether the same definitions would say the same again: only such verdicts
    /// may be stored.
    pub lasting: bool,
    /// An engine ran out of time or memory before the verdict was decided, whatever that is:
    /// it costs as much each time.
    pub exhausted: bool,
}

/// Collects what engines say.
#[derive(Debug, Default)]
pub struct Tally {
    allowed: Option<Details>,
    malware: Option<(Verdict, Details)>,
    suspicious: Option<(Verdict, Details)>,
    not_scanned: Option<(Verdict, Details)>,
    /// Something failed that may succeed another time.
    passing: bool,
    exhausted: bool,
    no_worker: Option<NoWorker>,
    runs: Vec<Run>,
}

#[derive(Debug)]
struct Run {
    engine: EngineKind,
    took: Duration,
    worst: VerdictKind,
}

impl Tally {
    /// Nothing was said yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether nothing that is still to come can change the verdict.
    pub fn is_decided(&self) -> bool {
        self.allowed.is_some() || self.malware.is_some()
    }

    /// Whether an engine that found malware in a container might find it in this part
    /// of the container as well: the innermost is what people want to know.
    pub fn may_be_deeper(&self, engine: EngineKind, part: &str) -> bool {
        let part = Details {
            member: inside(part, ""),
            ..decided_by(engine)
        };
        self.malware
            .as_ref()
            .is_some_and(|(_, known)| known.engine == part.engine && is_inside(&part, known))
    }

    /// An engine worked for so long.
    pub fn took(&mut self, engine: EngineKind, time: Duration) {
        let run = self.run(engine);
        run.took = run.took.saturating_add(time);
    }

    /// A list says that the content is fine, whatever others say.
    pub fn allowed(&mut self, engine: EngineKind, metadata: &[worker::Metadatum]) {
        self.saw(engine, VerdictKind::Clean);
        self.allowed.get_or_insert_with(|| Details {
            metadata: carried(metadata),
            ..decided_by(engine)
        });
    }

    /// An engine completed, on the part of the content called `part`; empty for the
    /// content itself.
    pub fn said(&mut self, engine: EngineKind, outcome: &worker::Outcome, part: &str) {
        match outcome {
            worker::Outcome::Clean => self.saw(engine, VerdictKind::Clean),
            worker::Outcome::Found {
                names,
                member,
                metadata,
                suspicious,
            } => {
                let name = Text::cut(names.first().map_or("", |name| name.as_str()));
                let details = Details {
                    member: inside(part, member.as_str()),
                    metadata: carried(metadata),
                    ..decided_by(engine)
                };
                self.found(engine, name, *suspicious, details);
            }
            worker::Outcome::NotScanned { reason } => match reason {
                worker::NotScanned::Encrypted => self.stopped(engine, NotScanned::Encrypted),
                worker::NotScanned::Limit { which } => self.limit(engine, which.as_str()),
                worker::NotScanned::TooLarge { max } => {
                    self.stopped(engine, NotScanned::TooLarge { max: *max });
                }
                worker::NotScanned::TimedOut => self.timed_out(engine),
                worker::NotScanned::EngineError { detail } => {
                    self.failed(engine, detail.as_str());
                }
            },
        }
    }

    fn found(
        &mut self,
        engine: EngineKind,
        name: SignatureName,
        suspicious: bool,
        details: Details,
    ) {
        let by = Text::cut(engine.name());
        let (place, verdict) = if suspicious {
            let verdict = Verdict::Suspicious { name, engine: by };
            (&mut self.suspicious, verdict)
        } else {
            let verdict = Verdict::Malware { name, engine: by };
            (&mut self.malware, verdict)
        };
        let kind = verdict.kind();
        match place {
            None => *place = Some((verdict, details)),
            Some((known, outer)) if *known == verdict && is_inside(&details, outer) => {
                outer.member = details.member;
            }
            Some(_) => {}
        }
        self.saw(engine, kind);
    }

    /// A limit was reached, as the engine calls it.
    pub fn limit(&mut self, engine: EngineKind, limit: &str) {
        let limit = Text::cut(limit);
        self.stopped(engine, NotScanned::LimitHit { limit });
    }

    /// The deadline passed.
    pub fn timed_out(&mut self, engine: EngineKind) {
        self.passing = true;
        self.exhausted = true;
        self.stopped(engine, NotScanned::TimedOut);
    }

    /// An engine failed at this content.
    pub fn failed(&mut self, engine: EngineKind, detail: &str) {
        self.passing = true;
        let detail = Text::cut(&format!("{}: {detail}", engine.name()));
        self.stopped(engine, NotScanned::EngineFailed { detail });
    }

    /// An engine's workers were killed from outside, as by a machine that is out of memory.
    pub fn killed(&mut self, engine: EngineKind, detail: &str) {
        self.exhausted = true;
        self.failed(engine, detail);
    }

    /// The content killed an engine's workers before, and is not given to any.
    pub fn poisoned(&mut self, detail: &str) {
        self.passing = true;
        let detail = Text::cut(&format!("it killed its worker twice: {detail}"));
        let verdict = Verdict::NotScanned(NotScanned::EngineFailed { detail });
        self.not_scanned
            .get_or_insert((verdict, Details::default()));
    }

    /// An engine could not be asked.
    pub fn absent(&mut self, no_worker: NoWorker) {
        self.passing = true;
        self.no_worker.get_or_insert(no_worker);
    }

    fn stopped(&mut self, engine: EngineKind, reason: NotScanned) {
        self.saw(engine, VerdictKind::NotScanned);
        self.not_scanned
            .get_or_insert((Verdict::NotScanned(reason), decided_by(engine)));
    }

    fn saw(&mut self, engine: EngineKind, kind: VerdictKind) {
        let run = self.run(engine);
        if rank(kind) > rank(run.worst) {
            run.worst = kind;
        }
    }

    fn run(&mut self, engine: EngineKind) -> &mut Run {
        let at = match self.runs.iter().position(|run| run.engine == engine) {
            Some(at) => at,
            None => {
                self.runs.push(Run {
                    engine,
                    took: Duration::ZERO,
                    worst: VerdictKind::Clean,
                });
                self.runs.len() - 1
            }
        };
        &mut self.runs[at]
    }

    /// The verdict.
    ///
    /// # Errors
    /// [`NoWorker`] when an engine could not be asked, and nothing is decided.
    pub fn end(self) -> Result<End, NoWorker> {
        let decided = match self.allowed {
            Some(details) => Some((Verdict::Clean, details)),
            None => self.malware,
        };
        let lasting = decided.is_some() || !self.passing;
        let exhausted = decided.is_none() && self.exhausted;
        let (verdict, details) = match (decided, self.no_worker) {
            (Some(decided), _) => decided,
            (None, Some(no_worker)) => return Err(no_worker),
            (None, None) => self
                .suspicious
                .or(self.not_scanned)
                .unwrap_or((Verdict::Clean, Details::default())),
        };
        Ok(End {
            verdict,
            details,
            runs: List::cut(self.runs.iter().map(|run| EngineRun {
                engine: Text::cut(run.engine.name()),
                micros: u64::try_from(run.took.as_micros()).unwrap_or(u64::MAX),
                outcome: run.worst,
            })),
            lasting,
            exhausted,
        })
    }
}

fn rank(kind: VerdictKind) -> u8 {
    match kind {
        VerdictKind::Clean => 0,
        VerdictKind::NotScanned => 1,
        VerdictKind::Suspicious => 2,
        VerdictKind::Malware => 3,
    }
}

fn decided_by(engine: EngineKind) -> Details {
    Details {
        engine: Some(Text::cut(engine.name())),
        ..Details::default()
    }
}

fn is_inside(part: &Details, container: &Details) -> bool {
    match (&part.member, &container.member) {
        (Some(_), None) => true,
        (Some(part), Some(container)) => part
            .strip_prefix(container.as_str())
            .is_some_and(|rest| rest.starts_with('/')),
        (None, _) => false,
    }
}

/// A part's path, and a part's of it.
fn inside(part: &str, deeper: &str) -> Option<MemberPath> {
    let path = match (part, deeper) {
        ("", path) | (path, "") => path.to_owned(),
        (part, deeper) => format!("{part}/{deeper}"),
    };
    (!path.is_empty()).then(|| Text::cut(&path))
}

fn carried(metadata: &[worker::Metadatum]) -> List<Metadatum, MAX_METADATA> {
    List::cut(metadata.iter().map(|one| Metadatum {
        key: Text::cut(one.key.as_str()),
        value: Text::cut(one.value.as_str()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_worker::client::Outcome;
    use proptest::prelude::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    enum Said {
        Clean,
        Limit,
        Encrypted,
        TimedOut,
        Failed,
        Absent,
        Suspicious,
        Malware,
        Allowed,
    }

    fn tally(all: &[Said]) -> Result<End, NoWorker> {
        let mut tally = Tally::new();
        let engine = EngineKind::Clamav;
        for said in all {
            match said {
                Said::Clean => tally.said(engine, &Outcome::Clean, ""),
                Said::Limit => tally.limit(engine, "MaxFiles"),
                Said::Encrypted => tally.said(
                    engine,
                    &Outcome::NotScanned {
                        reason: worker::NotScanned::Encrypted,
                    },
                    "",
                ),
                Said::TimedOut => tally.timed_out(engine),
                Said::Failed => tally.said(engine, &Outcome::engine_error("broke"), ""),
                Said::Absent => tally.absent(NoWorker {
                    engine: "x",
                    detail: String::new(),
                }),
                Said::Suspicious => tally.said(engine, &Outcome::found(["X".into()], true), ""),
                Said::Malware => tally.said(engine, &Outcome::found(["X".into()], false), ""),
                Said::Allowed => tally.allowed(EngineKind::HashList, &[]),
            }
        }
        tally.end()
    }

    #[test]
    fn a_finding_says_who_and_where() {
        let mut tally = Tally::new();
        let metadata = vec![worker::Metadatum {
            key: "author".into(),
            value: "somebody".into(),
        }];
        let found = |name: &str, suspicious| Outcome::Found {
            names: vec![name.into()],
            member: "c.exe".into(),
            metadata: metadata.clone(),
            suspicious,
        };
        tally.took(EngineKind::Yara, Duration::from_micros(5));
        tally.said(EngineKind::Yara, &found("Weak", true), "first");
        tally.took(EngineKind::Clamav, Duration::from_micros(7));
        tally.said(EngineKind::Clamav, &Outcome::Clean, "");
        tally.took(EngineKind::Yara, Duration::from_micros(6));
        tally.said(EngineKind::Yara, &found("Rule", false), "a.zip/b.tar");
        let end = tally.end().unwrap();
        let Verdict::Malware { name, engine } = &end.verdict else {
            panic!("{end:?}")
        };
        assert_eq!((name.as_str(), engine.as_str()), ("Rule", "yara-x"));
        assert_eq!(end.details.engine.as_deref(), Some("yara-x"));
        assert_eq!(end.details.member.as_deref(), Some("a.zip/b.tar/c.exe"));
        assert_eq!(end.details.metadata[0].value.as_str(), "somebody");
        let runs: Vec<_> = end
            .runs
            .iter()
            .map(|run| (run.engine.as_str(), run.micros, run.outcome))
            .collect();
        assert_eq!(
            runs,
            [
                ("yara-x", 11, VerdictKind::Malware),
                ("libclamav", 7, VerdictKind::Clean)
            ]
        );
    }

    #[test]
    fn the_innermost_part_is_named() {
        let mut tally = Tally::new();
        let found = Outcome::found(["Rule".into()], false);
        tally.said(EngineKind::Yara, &found, "b.tar");
        assert!(tally.may_be_deeper(EngineKind::Yara, "b.tar/c.exe"));
        assert!(!tally.may_be_deeper(EngineKind::Yara, "b.target"));
        assert!(!tally.may_be_deeper(EngineKind::Yara, "a.txt"));
        assert!(!tally.may_be_deeper(EngineKind::Clamav, "b.tar/c.exe"));
        tally.said(EngineKind::Yara, &Outcome::Clean, "b.tar/a.txt");
        tally.said(EngineKind::Yara, &found, "b.tar/c.exe");
        tally.said(EngineKind::Yara, &found, "d.exe");
        let other = Outcome::found(["Other".into()], false);
        tally.said(EngineKind::Yara, &other, "b.tar/c.exe/e");
        let end = tally.end().unwrap();
        assert_eq!(end.details.member.as_deref(), Some("b.tar/c.exe"));
    }

    fn all() -> impl Strategy<Value = Vec<Said>> {
        let one = prop_oneof![
            Just(Said::Clean),
            Just(Said::Limit),
            Just(Said::Encrypted),
            Just(Said::TimedOut),
            Just(Said::Failed),
            Just(Said::Absent),
            Just(Said::Suspicious),
            Just(Said::Malware),
            Just(Said::Allowed),
        ];
        proptest::collection::vec(one, 0..8)
    }

    proptest! {
        /// Written out once more, as a table: what is said of the ranks holds.
        #[test]
        fn ranks_hold_in_any_order(said in all()) {
            let has = |wanted: Said| said.contains(&wanted);
            let end = tally(&said);
            if has(Said::Absent) && !has(Said::Malware) && !has(Said::Allowed) {
                prop_assert!(end.is_err());
                return Ok(());
            }
            let end = end.unwrap();
            let expected = if has(Said::Allowed) {
                VerdictKind::Clean
            } else if has(Said::Malware) {
                VerdictKind::Malware
            } else if has(Said::Suspicious) {
                VerdictKind::Suspicious
            } else if said.iter().any(|said| *said != Said::Clean) {
                VerdictKind::NotScanned
            } else {
                VerdictKind::Clean
            };
            prop_assert_eq!(end.verdict.kind(), expected);
            let decided = has(Said::Allowed) || has(Said::Malware);
            let passing = [Said::TimedOut, Said::Failed, Said::Absent];
            prop_assert_eq!(end.lasting, decided || !said.iter().any(|said| passing.contains(said)));
            prop_assert_eq!(end.exhausted, !decided && has(Said::TimedOut), "whatever the verdict");
            // Somebody decided, unless all had to agree.
            let agreed = expected == VerdictKind::Clean && !has(Said::Allowed);
            prop_assert_eq!(end.details.engine.is_none(), agreed);
        }

        /// Nothing that comes after a decision changes it.
        #[test]
        fn a_decision_stands(before in all(), after in all()) {
            let decided = before.contains(&Said::Allowed) ||
                (before.contains(&Said::Malware) && !after.contains(&Said::Allowed));
            if decided {
                let end = tally(&before).unwrap().verdict;
                prop_assert_eq!(end, tally(&[before, after].concat()).unwrap().verdict);
            }
        }
    }
}
