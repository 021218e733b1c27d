//! Since when each signature is in force here: a sorted file for each engine.
//!
//! ```text
//!  the signatures in force ─┐
//!  the ledger before ───────┴─ merge, both in order ─► the ledger; those that are new, in memory
//! ```
//!
//! A record is a signature's name and definition, hashed, since when it is in force, and
//! since when it is so no longer: one that comes back, as after a rollback, is as old as it
//! was when it went. Neither side of the merge is ever in memory as a whole; what is, is what is new,
//! and what the brake has to know again.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::signatures::sorted::{Sorted, Sorter};
use super::signatures::{self, FAMILIES, Part, Signature, name_of};

/// How long what is gone is remembered, in seconds: 30 days.
const GONE_FOR_S: u32 = 30 * 24 * 3600;
/// Most records of what is gone.
const MAX_GONE: usize = 1 << 20;
/// Most new signatures that are told from old ones; what is beyond counts as old.
const MAX_NEW: usize = 1 << 20;
/// How a ledger begins: its format.
const MAGIC: &[u8; 8] = b"palsig 1";
/// Bytes of its beginning: format, the definitions' fingerprint.
const HEAD_BYTES: usize = 24;
/// Bytes of a record.
const RECORD_BYTES: usize = 24;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    signature: Signature,
    since_s: u32,
    /// 0 while it is in force.
    gone_s: u32,
}

impl Record {
    /// It is in force, now: as long as it was before, whenever that was. One whose beginning
    /// lies ahead, since a clock was put back, begins now.
    fn in_force(self, now_s: u32) -> Self {
        let away_s = match self.gone_s {
            0 => 0,
            gone_s => now_s.saturating_sub(gone_s),
        };
        let since_s = match self.since_s {
            0 => 0,
            since_s => since_s.saturating_add(away_s).min(now_s.max(1)),
        };
        Self {
            since_s,
            gone_s: 0,
            ..self
        }
    }
}

/// What is known of a signature that hits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// What it says, hashed; 0 where that does not matter: it is old, and neither braked nor
    /// confirmed.
    pub definition: u64,
    /// Since when it is in force, in milliseconds since 1970; 0 for long ago.
    pub since_ms: u64,
}

/// What is in memory of one engine's signatures.
#[derive(Debug, Default)]
pub struct InForce {
    new: HashMap<u64, Signed>,
    marked: HashMap<u64, u64>,
}

#[derive(Debug, Clone, Copy)]
struct Signed {
    definition: u64,
    since_s: u32,
}

impl InForce {
    /// What is known of the signature that verdicts give this name.
    pub fn of(&self, name: &str) -> Known {
        let family = FAMILIES.iter().find(|family| name.starts_with(**family));
        let hashes = [Some(name_of(name)), family.map(|family| name_of(family))];
        let new = hashes.iter().flatten().find_map(|hash| self.new.get(hash));
        if let Some(new) = new {
            return Known {
                definition: new.definition,
                since_ms: u64::from(new.since_s) * 1000,
            };
        }
        let marked = hashes
            .iter()
            .flatten()
            .find_map(|hash| self.marked.get(hash));
        Known {
            definition: marked.copied().unwrap_or_default(),
            since_ms: 0,
        }
    }
}

/// What a merge needs to know besides the two sides.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// Now, in seconds since 1970.
    pub now_s: u32,
    /// How long a signature is new, in seconds.
    pub new_for_s: u32,
    /// Since when signatures are in force that the ledger does not know, in seconds since
    /// 1970.
    pub unknown_since_s: u32,
    /// Names, hashed, that the brake has to know whatever their age.
    pub marked: &'a BTreeSet<u64>,
}

/// The ledger of an engine's signatures, in `folder`.
#[derive(Debug)]
pub struct Ledger {
    folder: PathBuf,
    path: PathBuf,
}

impl Ledger {
    /// Where an engine's is.
    pub fn of(folder: &Path, part: &Part) -> Self {
        Self {
            folder: folder.to_owned(),
            path: folder.join(part.engine.folder()),
        }
    }

    /// Writes down which signatures are in force now.
    ///
    /// # Errors
    /// The file or disk that is in the way.
    pub fn bring_up_to_date(&self, part: &Part, terms: &Terms<'_>) -> io::Result<InForce> {
        std::fs::create_dir_all(&self.folder)?;
        let before = match Before::open(&self.path) {
            Ok(before) => before,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Before::default(),
            Err(error) => {
                tracing::error!(file = %self.path.display(), %error, "damaged; signatures count as old that were new");
                let long_ago = Terms {
                    unknown_since_s: 0,
                    ..*terms
                };
                let _ = std::fs::remove_file(&self.path);
                return self.write(part, Before::default(), &long_ago);
            }
        };
        if before.fingerprint == Some(part.fingerprint) {
            return before.read(terms);
        }
        self.write(part, before, terms)
    }

    fn write(&self, part: &Part, before: Before, terms: &Terms<'_>) -> io::Result<InForce> {
        let mut sorter = Sorter::new(&self.folder);
        signatures::read(part, &mut sorter)?;
        let next = self.path.with_extension("next");
        let mut file = BufWriter::new(File::create(&next)?);
        file.write_all(MAGIC)?;
        file.write_all(&part.fingerprint)?;
        let mut in_force = Gathered::new(terms);
        merge(sorter.finish()?, before, terms, &mut |record| {
            in_force.add(&record);
            file.write_all(&record.signature.name.to_le_bytes())?;
            file.write_all(&record.signature.definition.to_le_bytes())?;
            file.write_all(&record.since_s.to_le_bytes())?;
            file.write_all(&record.gone_s.to_le_bytes())
        })?;
        let file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        std::fs::rename(&next, &self.path)?;
        Ok(in_force.done)
    }
}

/// Collects what is to be in memory.
struct Gathered<'a> {
    terms: Terms<'a>,
    max_new: usize,
    done: InForce,
}

impl<'a> Gathered<'a> {
    fn new(terms: &Terms<'a>) -> Self {
        Self {
            terms: *terms,
            max_new: MAX_NEW,
            done: InForce::default(),
        }
    }

    fn add(&mut self, record: &Record) {
        if record.gone_s > 0 {
            return;
        }
        let Signature { name, definition } = record.signature;
        if self.terms.marked.contains(&name) {
            self.done.marked.insert(name, definition);
        }
        if self.terms.now_s.saturating_sub(record.since_s) >= self.terms.new_for_s {
            return;
        }
        // In doubt a verdict acts: with a vendor's whole database that comes a day after the
        // first one, signatures of ten years would be reported only.
        if self.done.new.len() < self.max_new {
            let since_s = record.since_s;
            self.done.new.insert(
                name,
                Signed {
                    definition,
                    since_s,
                },
            );
        }
    }
}

/// Merges what is in force with what was known.
fn merge(
    mut now: Sorted,
    mut before: Before,
    terms: &Terms<'_>,
    write: &mut impl FnMut(Record) -> io::Result<()>,
) -> io::Result<()> {
    let (mut new, mut old) = (now.take_next()?, before.next()?);
    let mut gone = 0;
    loop {
        match (new, old) {
            (None, None) => return Ok(()),
            (Some(signature), Some(record)) if record.signature == signature => {
                write(record.in_force(terms.now_s))?;
                (new, old) = (now.take_next()?, before.next()?);
            }
            (Some(signature), other) if other.is_none_or(|other| signature < other.signature) => {
                write(Record {
                    signature,
                    since_s: terms.unknown_since_s,
                    gone_s: 0,
                })?;
                new = now.take_next()?;
            }
            (_, Some(record)) => {
                let gone_s = match record.gone_s {
                    0 => terms.now_s.max(1),
                    since => since,
                };
                if gone < MAX_GONE && terms.now_s.saturating_sub(gone_s) < GONE_FOR_S {
                    gone += 1;
                    write(Record { gone_s, ..record })?;
                }
                old = before.next()?;
            }
            // The second arm takes what is left of the first side.
            (Some(_), None) => return Ok(()),
        }
    }
}

/// A ledger as it was.
#[derive(Debug, Default)]
struct Before {
    file: Option<BufReader<File>>,
    fingerprint: Option<[u8; 16]>,
}

impl Before {
    fn open(path: &Path) -> io::Result<Self> {
        let mut file = BufReader::new(File::open(path)?);
        let mut head = [0; HEAD_BYTES];
        file.read_exact(&mut head)?;
        let (magic, print) = head.split_at(MAGIC.len());
        let whole = file
            .get_ref()
            .metadata()?
            .len()
            .saturating_sub(HEAD_BYTES as u64);
        if magic != MAGIC || !whole.is_multiple_of(RECORD_BYTES as u64) {
            return Err(io::Error::other("it is no ledger of signatures"));
        }
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(print);
        Ok(Self {
            file: Some(file),
            fingerprint: Some(fingerprint),
        })
    }

    fn read(mut self, terms: &Terms<'_>) -> io::Result<InForce> {
        let mut in_force = Gathered::new(terms);
        while let Some(record) = self.next()? {
            in_force.add(&record);
        }
        Ok(in_force.done)
    }

    fn next(&mut self) -> io::Result<Option<Record>> {
        let Some(file) = &mut self.file else {
            return Ok(None);
        };
        let mut bytes = [0; RECORD_BYTES];
        match file.read_exact(&mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let times = word(16);
        Ok(Some(Record {
            signature: Signature {
                name: word(0),
                definition: word(8),
            },
            since_s: times as u32,
            gone_s: (times >> 32) as u32,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineKind;

    const DAY_S: u32 = 24 * 3600;
    const NOW_S: u32 = 1000 * DAY_S;

    struct Bench {
        dir: tempfile::TempDir,
        marked: BTreeSet<u64>,
        count: u8,
    }

    impl Bench {
        fn new() -> Self {
            Self {
                dir: tempfile::tempdir().unwrap(),
                marked: BTreeSet::new(),
                count: 0,
            }
        }

        /// These lines come into force.
        fn at(&mut self, now_s: u32, unknown_since_s: u32, lines: &str) -> InForce {
            self.count += 1;
            let folder = self.dir.path().join("definitions");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("some.ndb"), lines).unwrap();
            let part = Part {
                engine: EngineKind::Clamav,
                fingerprint: [self.count; 16],
                folder,
            };
            let terms = Terms {
                now_s,
                new_for_s: DAY_S,
                unknown_since_s,
                marked: &self.marked,
            };
            let ledger = Ledger::of(&self.dir.path().join("signatures"), &part);
            let first = ledger.bring_up_to_date(&part, &terms).unwrap();
            // Once more, as after a restart: the same.
            let again = ledger.bring_up_to_date(&part, &terms).unwrap();
            for name in ["A", "B", "C"] {
                assert_eq!(first.of(name), again.of(name));
            }
            first
        }
    }

    fn since_s(in_force: &InForce, name: &str) -> u64 {
        in_force.of(name).since_ms / 1000
    }

    #[test]
    fn what_is_new_and_what_is_old_in_a_set_that_is_new() {
        let mut bench = Bench::new();
        let first = bench.at(NOW_S, 0, "A:0:*:61\nB:0:*:62\n");
        assert_eq!((since_s(&first, "A"), since_s(&first, "C")), (0, 0));
        let more = bench.at(NOW_S + 9, NOW_S + 9, "A:0:*:61\nB:0:*:62\nC:0:*:63\n");
        assert_eq!(since_s(&more, "A.UNOFFICIAL"), 0);
        assert_eq!(since_s(&more, "C.UNOFFICIAL"), u64::from(NOW_S + 9));
        let edited = bench.at(NOW_S + 20, NOW_S + 20, "A:0:*:6161\nC:0:*:63\n");
        assert_eq!(
            since_s(&edited, "A"),
            u64::from(NOW_S + 20),
            "another of that name"
        );
        assert_eq!(since_s(&edited, "C"), u64::from(NOW_S + 9));
        assert_ne!(edited.of("A").definition, more.of("A").definition);
        // Back, as by a rollback: as old as they were.
        let back = bench.at(NOW_S + 30, NOW_S + 30, "A:0:*:61\nB:0:*:62\nC:0:*:63\n");
        assert_eq!((since_s(&back, "A"), since_s(&back, "B")), (0, 0));
        assert_eq!(since_s(&back, "C"), u64::from(NOW_S + 9));
        let later = bench.at(NOW_S + 9 + DAY_S, NOW_S + 9 + DAY_S, "A:0:*:61\nC:0:*:63\n");
        assert_eq!(
            later.of("C"),
            Known {
                definition: 0,
                since_ms: 0
            }
        );
    }

    #[test]
    fn what_is_gone_is_forgotten_in_time_and_what_is_marked_is_known() {
        let mut bench = Bench::new();
        bench.at(NOW_S, 0, "A:0:*:61\nB:0:*:62\n");
        bench.at(NOW_S + 1, NOW_S + 1, "A:0:*:61\n");
        let month = NOW_S + 2 + GONE_FOR_S;
        bench.at(month, month, "A:0:*:61\n\n");
        let back = bench.at(month + 1, month + 1, "A:0:*:61\nB:0:*:62\n");
        assert_eq!(since_s(&back, "B"), u64::from(month + 1));
        assert_eq!(back.of("A").definition, 0);
        bench.marked.insert(name_of("A"));
        let marked = bench.at(month + 2, month + 2, "A:0:*:61\nB:0:*:62\n#\n");
        assert_ne!(marked.of("A").definition, 0);
    }

    /// Rolled back after ten minutes because it was bad, and back a month later: it has been
    /// tried for ten minutes.
    #[test]
    fn time_away_does_not_make_a_signature_older() {
        let mut bench = Bench::new();
        bench.at(NOW_S, 0, "A:0:*:61\n");
        bench.at(NOW_S + 100, NOW_S + 100, "A:0:*:61\nB:0:*:62\n");
        bench.at(NOW_S + 700, NOW_S + 700, "A:0:*:61\n\n");
        let later = NOW_S + 700 + 9 * DAY_S;
        let back = bench.at(later, later, "A:0:*:61\nB:0:*:62\n\n");
        assert_eq!(since_s(&back, "B"), u64::from(later - 600));
        assert_eq!(since_s(&back, "A"), 0);
        // The clock was ahead, and is put back.
        let before = bench.at(NOW_S, NOW_S, "A:0:*:61\nB:0:*:62\n#\n");
        assert_eq!(since_s(&before, "B"), u64::from(NOW_S));
    }

    #[test]
    fn more_new_signatures_than_are_told_apart_are_old() {
        let terms = Terms {
            now_s: NOW_S,
            new_for_s: DAY_S,
            unknown_since_s: NOW_S,
            marked: &BTreeSet::new(),
        };
        let mut gathered = Gathered::new(&terms);
        gathered.max_new = 2;
        for name in ["A", "B", "C"] {
            gathered.add(&Record {
                signature: Signature {
                    name: name_of(name),
                    definition: 1,
                },
                since_s: NOW_S,
                gone_s: 0,
            });
        }
        let since = ["A", "C", "Old"].map(|name| since_s(&gathered.done, name));
        assert_eq!(since, [u64::from(NOW_S), 0, 0]);
    }

    #[test]
    fn a_damaged_ledger_makes_nothing_new() {
        let mut bench = Bench::new();
        bench.at(NOW_S, 0, "A:0:*:61\n");
        let file = bench.dir.path().join("signatures/clamav");
        for damage in [
            &b""[..],
            b"palsig 1",
            b"something else, and long enough to be read",
        ] {
            std::fs::write(&file, damage).unwrap();
            let next = bench.at(NOW_S + 1, NOW_S + 1, "A:0:*:61\nC:0:*:63\n");
            assert_eq!((since_s(&next, "A"), since_s(&next, "C")), (0, 0));
        }
    }
}
