//! A synthetic signature set of realistic size, the same for both sides.
//!
//! No public virus database may be needed to measure, so this is one: random
//! patterns that match nothing, markers that the corpus holds, and EICAR. Neither
//! markers nor EICAR stand literally in this program.
//!
//! | file | what |
//! | --- | --- |
//! | `synthetic.hsb` | SHA-256 of whole files, with their sizes |
//! | `synthetic.ndb` | patterns in bodies, of several file types; markers and EICAR |
//! | `synthetic.ldb` | logical signatures of three patterns in ELF files |
//! | `synthetic.yar` | YARA rules, where they are asked for |

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use palisade_tests::definitions::eicar;

use crate::random::Random;

/// The file with YARA rules.
pub const YARA_FILE: &str = "synthetic.yar";
/// Target types of the body signatures: any file three times in six, else PE or ELF.
const TARGETS: [u8; 6] = [0, 0, 0, 1, 6, 6];

/// How many signatures of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Hashes of whole files.
    pub hashes: u64,
    /// Patterns in bodies.
    pub bodies: u64,
    /// Logical signatures.
    pub logical: u64,
    /// YARA rules.
    pub yara: u64,
}

impl Counts {
    /// ClamAV signatures in all, without markers and EICAR.
    pub fn clamav(&self) -> u64 {
        self.hashes + self.bodies + self.logical
    }
}

/// What the corpus holds and both sides must find.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marker {
    /// Its signature's name.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The markers.
pub fn markers() -> Vec<Marker> {
    let mut random = Random::new("markers");
    ["A", "B"]
        .iter()
        .map(|letter| Marker {
            name: format!("Palisade.Bench.Marker-{letter}"),
            bytes: format!("palisade-bench-{}", random.hex(16)).into_bytes(),
        })
        .collect()
}

/// Writes the ClamAV databases into `folder`.
///
/// # Errors
/// The file system's.
pub fn write_clamav(folder: &Path, counts: Counts) -> Result<()> {
    write(folder, "synthetic.hsb", |out| {
        let mut random = Random::new("hashes");
        for number in 0..counts.hashes {
            let (hash, size) = (random.hex(32), random.within(512, 4_000_000));
            writeln!(out, "{hash}:{size}:Synthetic.Hash-{number}:73")?;
        }
        Ok(())
    })?;
    write(folder, "synthetic.ndb", |out| {
        let mut random = Random::new("bodies");
        for number in 0..counts.bodies {
            let length = usize::try_from(random.within(16, 48))?;
            let target = TARGETS[usize::try_from(random.within(0, TARGETS.len() as u64))?];
            let body = random.hex(length);
            writeln!(out, "Synthetic.Body-{number}:{target}:*:{body}")?;
        }
        for marker in markers() {
            writeln!(out, "{}:0:*:{}", marker.name, hex::encode(marker.bytes))?;
        }
        writeln!(out, "Eicar-Test-Signature:0:0:{}", hex::encode(eicar()))?;
        Ok(())
    })?;
    write(folder, "synthetic.ldb", |out| {
        let mut random = Random::new("logical");
        for number in 0..counts.logical {
            let parts = [random.hex(12), random.hex(12), random.hex(12)].join(";");
            writeln!(
                out,
                "Synthetic.Logical-{number};Engine:51-255,Target:6;0&1&2;{parts}"
            )?;
        }
        Ok(())
    })
}

/// Writes the YARA rules into `folder`: three texts and a pattern each, and the markers.
///
/// # Errors
/// The file system's.
pub fn write_yara(folder: &Path, counts: Counts) -> Result<()> {
    write(folder, YARA_FILE, |out| {
        let mut random = Random::new("yara");
        for number in 0..counts.yara {
            writeln!(out, "rule Synthetic_{number} {{\n  strings:")?;
            for text in 0..3 {
                writeln!(out, "    $s{text} = \"{}\" ascii wide", random.hex(8))?;
            }
            writeln!(out, "    $c = {{ {} }}", random.hex(12))?;
            writeln!(
                out,
                "  condition:\n    filesize < 20MB and (2 of ($s*) or $c)\n}}"
            )?;
        }
        for marker in markers() {
            let name = marker.name.replace(['.', '-'], "_");
            let bytes = hex::encode(marker.bytes);
            writeln!(
                out,
                "rule {name} {{ strings: $m = {{ {bytes} }} condition: $m }}"
            )?;
        }
        Ok(())
    })
}

fn write(
    folder: &Path,
    name: &str,
    fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
) -> Result<()> {
    let path = folder.join(name);
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    let mut out = BufWriter::new(file);
    fill(&mut out).with_context(|| path.display().to_string())?;
    out.flush().with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const FEW: Counts = Counts {
        hashes: 50,
        bodies: 40,
        logical: 30,
        yara: 20,
    };

    fn written(counts: Counts) -> Vec<(String, String)> {
        let folder = tempfile::tempdir().unwrap();
        write_clamav(folder.path(), counts).unwrap();
        write_yara(folder.path(), counts).unwrap();
        let mut files: Vec<_> = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let name = path.file_name().unwrap().to_str().unwrap().to_owned();
                (name, fs::read_to_string(path).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn the_set_is_the_same_each_time_and_has_its_counts() {
        let files = written(FEW);
        assert_eq!(files, written(FEW));
        let lines = |name: &str| {
            let (_, text) = files.iter().find(|(file, _)| file == name).unwrap();
            text.lines().count() as u64
        };
        assert_eq!(lines("synthetic.hsb"), FEW.hashes);
        assert_eq!(
            lines("synthetic.ndb"),
            FEW.bodies + markers().len() as u64 + 1
        );
        assert_eq!(lines("synthetic.ldb"), FEW.logical);
        let (_, rules) = files.iter().find(|(file, _)| file == YARA_FILE).unwrap();
        assert_eq!(
            rules.matches("rule ").count() as u64,
            FEW.yara + markers().len() as u64
        );
    }

    #[test]
    fn a_smaller_set_is_a_part_of_a_larger_one() {
        let smaller = Counts {
            hashes: 10,
            bodies: 10,
            logical: 10,
            yara: 5,
        };
        for ((_, small), (_, large)) in written(smaller).iter().zip(written(FEW)) {
            assert!(small.lines().take(5).all(|line| large.contains(line)));
        }
    }

    #[test]
    fn patterns_have_the_shapes_that_clamav_reads() {
        for (name, text) in written(FEW) {
            for line in text
                .lines()
                .filter(|line| line.starts_with("Synthetic.Body"))
            {
                let fields: Vec<&str> = line.split(':').collect();
                assert_eq!(fields.len(), 4, "{name}: {line}");
                assert!((32..96).contains(&fields[3].len()), "{name}: {line}");
                assert!(hex::decode(fields[3]).is_ok(), "{name}: {line}");
            }
        }
    }
}
