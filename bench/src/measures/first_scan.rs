//! The corpus with every cache empty: ours over QUIC, clamd by descriptor and by
//! stream. Like for like with libclamav alone; then ours with YARA-X rules besides.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use crate::bench::Bench;
use crate::clamd::Way;
use crate::pass::{self, Pass};
use crate::report::{Row, Target, short};
use crate::signatures::{YARA_FILE, write_yara};
use crate::stats::Summary;

pub(super) fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let corpus = bench.corpus.folder.clone();
    let (mut ours, mut descriptor, mut stream) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.scale.repeats {
        bench.forget()?;
        ours.push(bench.site.scan(&bench.first, &corpus)?);
        descriptor.push(bench.clamd.scan(Way::Descriptor, &corpus)?);
        bench.clamd.restart()?;
        stream.push(bench.clamd.scan(Way::Stream, &corpus)?);
    }
    for (own, peer) in ours.iter().zip(&descriptor).chain(ours.iter().zip(&stream)) {
        pass::same(own, peer, &corpus)?;
    }
    let limit = format!(
        "reading and hashing the corpus on one core: {} s; its bytes through quinn: {} s",
        short(bench.limits.hash_corpus.median),
        short(bench.corpus.bytes as f64 / bench.limits.quinn.median)
    );
    let elapsed = |way: Way, peer: &[Pass]| -> Result<Row> {
        Ok(Row::new("first scan", "s", elapsed(&ours)?)
            .against(way.command(), self::elapsed(peer)?)
            .limit(limit.clone()))
    };
    let cpu = |way: Way, peer: &[Pass]| -> Result<Row> {
        Ok(Row::new(
            "first scan, processor time of client and daemon",
            "s",
            cpu(&ours)?,
        )
        .against(way.command(), self::cpu(peer)?))
    };
    Ok(vec![
        elapsed(Way::Descriptor, &descriptor)?
            .target(Target::Ratio(1.0))
            .note(format!(
                "{} files and {} findings on both sides",
                ours[0].files,
                ours[0].findings.len()
            )),
        elapsed(Way::Stream, &stream)?,
        cpu(Way::Descriptor, &descriptor)?,
        cpu(Way::Stream, &stream)?,
        with_yara(bench, &ours[0], &descriptor)?,
    ])
}

/// The same with YARA-X rules: each content goes through both engines.
fn with_yara(bench: &mut Bench, without: &Pass, descriptor: &[Pass]) -> Result<Row> {
    let (definitions, signatures) = (bench.definitions().to_owned(), bench.scale.signatures);
    write_yara(&definitions, signatures)?;
    let scanned = bench
        .site
        .restart(&bench.first)
        .and_then(|()| bench.site.scan(&bench.first, &bench.corpus.folder));
    fs::remove_file(definitions.join(YARA_FILE))?;
    let scanned = scanned?;
    bench.site.restart(&bench.first)?;
    ensure!(
        without
            .findings
            .keys()
            .all(|path| scanned.findings.contains_key(path)),
        "with YARA rules some findings are missing"
    );
    Ok(Row::new(
        "first scan, with YARA-X rules too",
        "s",
        elapsed(&[scanned])?,
    )
    .against(
        format!("{}, which has none", Way::Descriptor.command()),
        elapsed(descriptor)?,
    )
    .note(format!("{} rules besides", signatures.yara)))
}

/// How long scans took, in seconds.
pub(super) fn elapsed(passes: &[Pass]) -> Result<Summary> {
    let seconds: Vec<f64> = passes
        .iter()
        .map(|pass| pass.elapsed.as_secs_f64())
        .collect();
    Summary::of(&seconds).context("nothing was scanned")
}

fn cpu(passes: &[Pass]) -> Result<Summary> {
    let seconds: Vec<f64> = passes.iter().map(|pass| pass.cpu.as_secs_f64()).collect();
    Summary::of(&seconds).context("nothing was scanned")
}
