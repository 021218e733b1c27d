//! A large file of which one percent changes in place: what travels when it is
//! scanned again, counted by the kernel.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Result, ensure};
use palisade_protocol::content::FRAGMENT_BYTES;

use crate::bench::Bench;
use crate::random::Random;
use crate::report::{Row, Target, short};
use crate::stats::Summary;
use crate::wire::{Counter, Transport};

/// Where the change begins, in parts of a hundred: at no fragment's border.
const FROM_PERCENT: u64 = 37;
/// Bytes that are written at a time.
const PART: usize = 1 << 20;

pub(super) fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let size = bench.scale.large_bytes;
    let folder = bench.folder().join("large");
    fs::create_dir_all(&folder)?;
    let file = folder.join("disk.img");
    write_random(&file, size)?;
    let first = bench.site.scan(&bench.first, &folder)?;
    ensure!(
        first.findings.is_empty(),
        "the large file is not clean: {:?}",
        first.findings
    );
    change(&file, size)?;
    let own = {
        let counter = Counter::start(Transport::Udp, bench.site.scan_address()?.port())?;
        bench.site.scan(&bench.first, &folder)?;
        counter.bytes()?
    };
    let peer = {
        let counter = Counter::start(Transport::Tcp, bench.clamd.port)?;
        bench.clamd.scan_by_network(&folder)?;
        counter.bytes()?
    };
    fs::remove_dir_all(&folder)?;
    let percent = |bytes: u64| Summary::one(bytes as f64 * 100.0 / size as f64);
    let fragments = size.div_ceil(FRAGMENT_BYTES);
    let changed = changed(size);
    let touched = (changed.end - 1) / FRAGMENT_BYTES - changed.start / FRAGMENT_BYTES + 1;
    let least = touched * FRAGMENT_BYTES + fragments * 32;
    Ok(vec![
        Row::new(
            "bytes on the wire after 1 % changed in place",
            "% of the file",
            percent(own),
        )
        .against("clamdscan --stream by TCP", percent(peer))
        .target(Target::AtMost(3.0))
        .limit(format!(
            "{touched} fragments and the outline: {} %",
            short(least as f64 * 100.0 / size as f64)
        ))
        .note(format!(
            "a file of {} MB; {own} bytes, counted by nftables",
            size / 1_000_000
        )),
    ])
}

fn write_random(path: &Path, size: u64) -> Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    let mut random = Random::new("large file");
    let mut part = vec![0; PART];
    let mut left = size;
    while left > 0 {
        let length = usize::try_from(left.min(PART as u64))?;
        random.fill(&mut part[..length]);
        out.write_all(&part[..length])?;
        left -= length as u64;
    }
    Ok(out.flush()?)
}

/// Which bytes change.
fn changed(size: u64) -> Range<u64> {
    let start = size / 100 * FROM_PERCENT + 7;
    start..start + size / 100
}

fn change(path: &Path, size: u64) -> Result<()> {
    let Range { start, end } = changed(size);
    let mut part = vec![0; usize::try_from(end - start)?];
    Random::new("changed part").fill(&mut part);
    let file = File::options().write(true).open(path)?;
    Ok(file.write_all_at(&part, start)?)
}
