//! Names in libclamav's databases, by the kind of each file.
//!
//! A container (`.cvd`, `.cld`) is a header of 512 bytes before a tar archive, which is
//! packed or not. libclamav has checked its signature when this is read.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use tar::Archive;

use super::{BYTECODE, Found, LINKS, extension};

/// Bytes of a container's header.
const HEADER: usize = 512;
/// Most bytes that a container unpacks to.
const MAX_UNPACKED: u64 = 8 << 30;
/// Longest line; what is longer is another line from there on, and part of the same
/// definitions as long as it does not change.
const MAX_LINE: u64 = 4 << 20;
/// How a packed archive begins.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Where a line has its signature's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Names {
    /// In this field, counted from 0, of those that end with this byte.
    Field(usize, u8),
    /// Nowhere: the whole file is one signature, of this family.
    Family(&'static str),
    /// It finds nothing by itself.
    None,
}

fn names(kind: &str) -> Names {
    match kind {
        "ndb" | "ndu" | "sdb" | "cdb" | "zmd" | "rmd" => Names::Field(0, b':'),
        "ldb" | "ldu" | "crb" => Names::Field(0, b';'),
        "db" => Names::Field(0, b'='),
        "hdb" | "hsb" | "hdu" | "hsu" | "mdb" | "msb" | "mdu" | "msu" | "imp" => {
            Names::Field(2, b':')
        }
        "cbc" => Names::Family(BYTECODE),
        "pdb" | "gdb" | "wdb" => Names::Family(LINKS),
        _ => Names::None,
    }
}

pub(super) fn read(file: &Path, found: &mut Found<'_>) -> io::Result<()> {
    match extension(file) {
        "cvd" | "cld" | "cud" => container(File::open(file)?, found),
        kind => lines(&mut BufReader::new(File::open(file)?), names(kind), found),
    }
}

fn container(file: File, found: &mut Found<'_>) -> io::Result<()> {
    let mut file = BufReader::new(file);
    file.read_exact(&mut [0; HEADER])?;
    let packed = file.fill_buf()?.starts_with(&GZIP);
    let unpacked: Box<dyn Read> = match packed {
        true => Box::new(MultiGzDecoder::new(file)),
        false => Box::new(file),
    };
    let mut archive = Archive::new(unpacked.take(MAX_UNPACKED));
    for entry in archive.entries()? {
        let entry = entry?;
        let names = names(extension(&entry.path()?));
        lines(&mut BufReader::new(entry), names, found)?;
    }
    Ok(())
}

fn lines(text: &mut impl BufRead, names: Names, found: &mut Found<'_>) -> io::Result<()> {
    if names == Names::None {
        return Ok(());
    }
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut *text).take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        let said = line.trim_ascii();
        if said.is_empty() || said.starts_with(b"#") {
            continue;
        }
        match names {
            Names::Field(at, between) => {
                if let Some(name) = said.split(|byte| *byte == between).nth(at) {
                    found.add(name, said)?;
                }
            }
            Names::Family(family) => found.add(family.as_bytes(), said)?,
            Names::None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sorted::Sorter;
    use super::super::{Signature, hash, name_of};
    use super::*;
    use std::io::Write;

    fn of(file: &Path) -> Vec<Signature> {
        let dir = tempfile::tempdir().unwrap();
        let mut sorter = Sorter::new(dir.path());
        let mut found = Found {
            sorter: &mut sorter,
        };
        read(file, &mut found).unwrap();
        let mut sorted = sorter.finish().unwrap();
        std::iter::from_fn(|| sorted.take_next().unwrap()).collect()
    }

    fn one(name: &str, line: &str) -> Signature {
        Signature {
            name: name_of(name),
            definition: hash(line.as_bytes()),
        }
    }

    #[test]
    fn every_kind_has_its_names_in_its_place() {
        let dir = tempfile::tempdir().unwrap();
        for (kind, line, name) in [
            ("ndb", "Some.Name:0:*:6162", "Some.Name.UNOFFICIAL"),
            (
                "ldb",
                "Some.Name;Engine:51-255;0;6162",
                "Some.Name.UNOFFICIAL",
            ),
            (
                "hdb",
                "44d88612fea8a8f36de82e1278abb02f:68:Some.Name",
                "Some.Name",
            ),
            ("hsb", "275a:68:Some.Name:73", "Some.Name"),
            (
                "mdb",
                "68:44d88612fea8a8f36de82e1278abb02f:Some.Name",
                "Some.Name",
            ),
            ("cdb", "Some.Name:CL_TYPE_ZIP:*:*:*:*:*:*:*:*", "Some.Name"),
            ("cbc", "ClamBCafhmmldh", "BC."),
            ("gdb", "S2:P:45a9", "Heuristics.Phishing."),
        ] {
            let file = dir.path().join(format!("some.{kind}"));
            std::fs::write(&file, format!("{line}\r\n\n")).unwrap();
            let said = of(&file);
            assert!(
                said.contains(&one(name, line)) || kind == "cbc" || kind == "gdb",
                "{kind}"
            );
            assert_eq!(said.len(), 1, "{kind}");
            assert_eq!(said[0].name, name_of(name), "{kind}");
        }
        for kind in ["ign2", "fp", "sfp", "ftm", "cfg", "txt"] {
            let file = dir.path().join(format!("some.{kind}"));
            std::fs::write(&file, "Some.Name:1:2\n").unwrap();
            assert_eq!(of(&file), [], "{kind}");
        }
    }

    #[test]
    fn containers_are_looked_into_packed_or_not() {
        let dir = tempfile::tempdir().unwrap();
        let line = "Some.Name:0:*:6162";
        let mut builder = tar::Builder::new(Vec::new());
        for (name, text) in [
            ("COPYING", "text"),
            ("daily.ndb", line),
            ("daily.info", "x:1:y"),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_size(text.len() as u64);
            header.set_cksum();
            builder
                .append_data(&mut header, name, text.as_bytes())
                .unwrap();
        }
        let archive = builder.into_inner().unwrap();
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(&archive).unwrap();
        let packed = packed.finish().unwrap();
        for (name, archive) in [("daily.cvd", packed), ("daily.cld", archive)] {
            let file = dir.path().join(name);
            std::fs::write(&file, [[b' '; HEADER].as_slice(), &archive].concat()).unwrap();
            assert_eq!(of(&file), [one("Some.Name", line)], "{name}");
        }
    }
}
