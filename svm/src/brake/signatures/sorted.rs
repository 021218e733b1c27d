//! Any number of signatures in order, within bounded memory: sorted in parts, which wait
//! in a file without a name and are merged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::Signature;

/// Signatures that are sorted at a time: 16 MiB.
const PART: usize = 1 << 20;
/// Most parts: 64 million signatures.
const MAX_PARTS: usize = 64;
/// Bytes that are read of a part at a time.
const READ_BYTES: usize = 64 * 1024;
/// Bytes of a signature.
const BYTES: usize = 16;

/// Takes signatures in any order.
#[derive(Debug)]
pub struct Sorter {
    part: Vec<Signature>,
    files: Vec<File>,
    folder: std::path::PathBuf,
    max: usize,
}

impl Sorter {
    /// Whose parts wait in `folder`.
    pub fn new(folder: &Path) -> Self {
        Self {
            part: Vec::new(),
            files: Vec::new(),
            folder: folder.to_owned(),
            max: PART,
        }
    }

    /// One more.
    ///
    /// # Errors
    /// The disk's.
    pub fn add(&mut self, signature: Signature) -> io::Result<()> {
        self.part.push(signature);
        if self.part.len() >= self.max {
            self.spill()?;
        }
        Ok(())
    }

    fn spill(&mut self) -> io::Result<()> {
        if self.files.len() >= MAX_PARTS {
            return Err(io::Error::other("more signatures than there can be"));
        }
        self.part.sort_unstable();
        let mut file = BufWriter::new(tempfile::tempfile_in(&self.folder)?);
        for signature in self.part.drain(..) {
            file.write_all(&signature.name.to_le_bytes())?;
            file.write_all(&signature.definition.to_le_bytes())?;
        }
        let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.seek(SeekFrom::Start(0))?;
        self.files.push(file);
        Ok(())
    }

    /// All of them by name, each name once.
    ///
    /// # Errors
    /// The disk's.
    pub fn finish(mut self) -> io::Result<Sorted> {
        self.part.sort_unstable();
        let mut sorted = Sorted {
            last: self.part.into_iter(),
            files: Vec::new(),
            heads: BinaryHeap::new(),
            next: None,
        };
        for file in self.files {
            sorted
                .files
                .push(BufReader::with_capacity(READ_BYTES, file));
        }
        for source in 0..=sorted.files.len() {
            sorted.refill(source)?;
        }
        sorted.next = sorted.pop()?;
        Ok(sorted)
    }
}

/// Signatures in order; those of one name are one.
#[derive(Debug)]
pub struct Sorted {
    files: Vec<BufReader<File>>,
    /// The part that never left memory: the last source.
    last: std::vec::IntoIter<Signature>,
    heads: BinaryHeap<Reverse<(Signature, usize)>>,
    next: Option<Signature>,
}

impl Sorted {
    /// The next one.
    ///
    /// # Errors
    /// The disk's.
    pub fn take_next(&mut self) -> io::Result<Option<Signature>> {
        let Some(mut signature) = self.next.take() else {
            return Ok(None);
        };
        let mut last = signature.definition;
        loop {
            match self.pop()? {
                Some(same) if same.name == signature.name => {
                    // The same line twice says no more than once: a `.cvd` and its `.cld`
                    // may lie side by side for a while.
                    if same.definition != last {
                        last = same.definition;
                        signature.definition = signature.definition.wrapping_add(last);
                    }
                }
                other => {
                    self.next = other;
                    return Ok(Some(signature));
                }
            }
        }
    }

    fn pop(&mut self) -> io::Result<Option<Signature>> {
        let Some(Reverse((signature, source))) = self.heads.pop() else {
            return Ok(None);
        };
        self.refill(source)?;
        Ok(Some(signature))
    }

    fn refill(&mut self, source: usize) -> io::Result<()> {
        let head = match self.files.get_mut(source) {
            Some(file) => read(file)?,
            None => self.last.next(),
        };
        if let Some(head) = head {
            self.heads.push(Reverse((head, source)));
        }
        Ok(())
    }
}

fn read(file: &mut BufReader<File>) -> io::Result<Option<Signature>> {
    let mut bytes = [0; BYTES];
    match file.read_exact(&mut bytes) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let both = u128::from_le_bytes(bytes);
    Ok(Some(Signature {
        name: both as u64,
        definition: (both >> 64) as u64,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    proptest! {
        /// However many parts there are, it is all names in order, each once, with the sum
        /// of whatever else is said under it.
        #[test]
        fn parts_are_merged(all in prop::collection::vec((0..40_u64, 0..9_u64), 0..200), max in 1..50_usize) {
            let dir = tempfile::tempdir().unwrap();
            let mut sorter = Sorter::new(dir.path());
            sorter.max = max.max(all.len() / MAX_PARTS + 1);
            let mut wanted: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
            for (name, definition) in all {
                sorter.add(Signature { name, definition }).unwrap();
                wanted.entry(name).or_default().insert(definition);
            }
            let wanted: Vec<(u64, u64)> = wanted
                .into_iter()
                .map(|(name, said)| (name, said.into_iter().sum()))
                .collect();
            let mut sorted = sorter.finish().unwrap();
            let mut got = Vec::new();
            while let Some(signature) = sorted.take_next().unwrap() {
                got.push((signature.name, signature.definition));
            }
            prop_assert_eq!(got, wanted);
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }
}
