//! From what engines say of a content and its members to one verdict: pure.
//!
//! ```text
//! malware  >  suspicious  >  not scanned  >  clean
//! ```
//!
//! Within a rank the first that was said counts. **Invariant:** the end is `Clean`
//! only if every engine of the set completed, on all of the content and on every
//! member, and found nothing.

use palisade_protocol::bounded::Text;
use palisade_protocol::scan::ScanOptions;
use palisade_protocol::verdict::{NotScanned, Verdict};
use palisade_worker::client as worker;

use super::engines::NoWorker;
use crate::engine::EngineKind;

/// What a scan ended in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The verdict.
    pub verdict: Verdict,
    /// Whether the same definitions would say the same again: only such verdicts
    /// may be stored.
    pub lasting: bool,
}

/// Collects what engines say.
#[derive(Debug)]
pub struct Tally {
    options: ScanOptions,
    found: Option<Verdict>,
    not_scanned: Option<NotScanned>,
    /// Something failed that may succeed another time.
    passing: bool,
    no_worker: Option<NoWorker>,
}

impl Tally {
    /// Nothing was said yet.
    pub fn new(options: ScanOptions) -> Self {
        Self {
            options,
            found: None,
            not_scanned: None,
            passing: false,
            no_worker: None,
        }
    }

    /// Whether nothing that is still to come can change the verdict.
    pub fn is_decided(&self) -> bool {
        matches!(self.found, Some(Verdict::Malware { .. }))
    }

    /// An engine completed.
    pub fn said(&mut self, engine: EngineKind, outcome: &worker::Outcome) {
        match outcome {
            worker::Outcome::Clean => {}
            worker::Outcome::Found { names, suspicious } => {
                let name = Text::cut(names.first().map_or("", |name| name.as_str()));
                let engine = Text::cut(engine.name());
                if !suspicious {
                    if !self.is_decided() {
                        self.found = Some(Verdict::Malware { name, engine });
                    }
                } else if self.options.heuristics && self.found.is_none() {
                    self.found = Some(Verdict::Suspicious { name, engine });
                }
            }
            worker::Outcome::NotScanned { reason } => match reason {
                worker::NotScanned::Encrypted => self.stopped(NotScanned::Encrypted),
                worker::NotScanned::Limit { which } => self.limit(which.as_str()),
                worker::NotScanned::TooLarge => self.limit(&format!("{} size", engine.name())),
                worker::NotScanned::TimedOut => self.timed_out(),
                worker::NotScanned::EngineError { detail } => {
                    self.failed(engine, detail.as_str());
                }
            },
        }
    }

    /// A limit was reached, as the engine calls it.
    pub fn limit(&mut self, limit: &str) {
        self.stopped(NotScanned::LimitHit {
            limit: Text::cut(limit),
        });
    }

    /// The deadline passed.
    pub fn timed_out(&mut self) {
        self.passing = true;
        self.stopped(NotScanned::TimedOut);
    }

    /// An engine failed at this content.
    pub fn failed(&mut self, engine: EngineKind, detail: &str) {
        self.passing = true;
        let detail = Text::cut(&format!("{}: {detail}", engine.name()));
        self.stopped(NotScanned::EngineFailed { detail });
    }

    /// An engine could not be asked.
    pub fn absent(&mut self, no_worker: NoWorker) {
        self.passing = true;
        self.no_worker.get_or_insert(no_worker);
    }

    fn stopped(&mut self, reason: NotScanned) {
        self.not_scanned.get_or_insert(reason);
    }

    /// The verdict.
    ///
    /// # Errors
    /// [`NoWorker`] when an engine could not be asked, and no other found malware.
    pub fn end(self) -> Result<End, NoWorker> {
        let verdict = match (self.found, self.no_worker, self.not_scanned) {
            (Some(malware @ Verdict::Malware { .. }), _, _) => {
                return Ok(End {
                    verdict: malware,
                    lasting: true,
                });
            }
            (_, Some(no_worker), _) => return Err(no_worker),
            (Some(found), None, _) => found,
            (None, None, Some(reason)) => Verdict::NotScanned(reason),
            (None, None, None) => Verdict::Clean,
        };
        Ok(End {
            verdict,
            lasting: !self.passing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::verdict::VerdictKind;
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
    }

    fn tally(all: &[Said], heuristics: bool) -> Result<End, NoWorker> {
        let mut tally = Tally::new(ScanOptions {
            heuristics,
            ..ScanOptions::default()
        });
        let engine = EngineKind::Clamav;
        let found = |suspicious| Outcome::Found {
            names: vec!["X".into()],
            suspicious,
        };
        for said in all {
            match said {
                Said::Clean => tally.said(engine, &Outcome::Clean),
                Said::Limit => tally.limit("MaxFiles"),
                Said::Encrypted => tally.said(
                    engine,
                    &Outcome::NotScanned {
                        reason: worker::NotScanned::Encrypted,
                    },
                ),
                Said::TimedOut => tally.timed_out(),
                Said::Failed => tally.said(engine, &Outcome::engine_error("broke")),
                Said::Absent => tally.absent(NoWorker {
                    engine: "x",
                    detail: String::new(),
                }),
                Said::Suspicious => tally.said(engine, &found(true)),
                Said::Malware => tally.said(engine, &found(false)),
            }
        }
        tally.end()
    }

    #[test]
    fn heuristics_count_only_if_asked_for() {
        let kind = |said: &[Said], heuristics| tally(said, heuristics).unwrap().verdict.kind();
        assert_eq!(kind(&[Said::Suspicious], true), VerdictKind::Suspicious);
        assert_eq!(kind(&[Said::Suspicious], false), VerdictKind::Clean);
        assert_eq!(
            kind(&[Said::Suspicious, Said::Limit], false),
            VerdictKind::NotScanned
        );
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
        ];
        proptest::collection::vec(one, 0..8)
    }

    proptest! {
        #[test]
        fn clean_only_if_all_said_so(said in all()) {
            let end = tally(&said, true);
            let clean = matches!(&end, Ok(End { verdict: Verdict::Clean, .. }));
            prop_assert_eq!(clean, said.iter().all(|said| *said == Said::Clean));
            let malware = matches!(&end, Ok(End { verdict: Verdict::Malware { .. }, .. }));
            prop_assert_eq!(malware, said.contains(&Said::Malware));
            if let Ok(End { lasting: true, verdict }) = &end {
                let passing = [Said::TimedOut, Said::Failed, Said::Absent];
                let malware = verdict.kind() == VerdictKind::Malware;
                prop_assert!(malware || !said.iter().any(|said| passing.contains(said)));
            }
            if !malware && said.contains(&Said::Absent) {
                prop_assert!(end.is_err());
            }
        }
    }
}
