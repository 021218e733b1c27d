//! The demonstration: what a newcomer sees after `scripts/up`.
//!
//! Files that are clean stay readable; EICAR and two markers that are random per
//! run (one as a ClamAV signature, one as a YARA rule) are blocked when they are
//! opened, and the Integration Server names the signature for each. Only the
//! Protection Server knows these signatures, so a detection that names one is its
//! verdict. Without the right to watch opens, the same files are found on demand.

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::command::{self, wait_for};
use crate::definitions::{self, Marker};
use crate::report::Report;
use crate::site::Site;

/// How long the definitions may take to become active, and a detection to arrive.
const PATIENCE: Duration = Duration::from_secs(120);
/// Real files that are scanned to show a scan.
const REAL_FILES: &str = "/usr/sbin";

/// A sample and what has to happen to it.
struct Sample {
    what: &'static str,
    file: PathBuf,
    /// The signature's name, without the suffix that libclamav adds; `None` where
    /// it depends on the definitions in use.
    name: Option<String>,
}

/// Runs the demonstration.
///
/// # Errors
/// When anything that had to happen did not.
pub fn run(site: &Site, report: Report) -> Result<()> {
    let folder = site.protected()?;
    let markers = [Marker::random(), Marker::random()];
    teach(site, &markers, report)?;
    let blocking = on_access(site)?;
    clean_files(&folder, &markers[0].name, report)?;
    real_files(site, report)?;
    let samples = samples(&folder, &markers)?;
    let outcome = samples.iter().try_for_each(|sample| {
        write_sample(sample, &markers)?;
        match &blocking {
            Ok(()) => blocked(site, sample, report),
            Err(_) => found_on_demand(site, sample, report),
        }
    });
    for sample in &samples {
        // Never leave live samples behind, whatever happened.
        let _ = fs::remove_file(&sample.file);
    }
    outcome?;
    if let Err(reason) = blocking {
        let facts = json!({ "on_access": false, "reason": reason });
        report.step(
            "on_access",
            &format!("On-access protection is off: {reason}"),
            &facts,
        );
    }
    Ok(())
}

/// Adds this run's signatures and waits until the Protection Server finds them.
fn teach(site: &Site, markers: &[Marker; 2], report: Report) -> Result<()> {
    let folder = site.definitions();
    fs::write(folder.join("demonstration.ndb"), markers[0].ndb())?;
    fs::write(folder.join("demonstration.yar"), markers[1].yara())?;
    reload(site)?;
    let probe = site.dir().join("run/probe");
    let found = |bytes: &[u8]| -> Result<()> {
        fs::write(&probe, bytes)?;
        let (code, _) = site.scan(&[&probe], PATIENCE)?;
        fs::remove_file(&probe)?;
        ensure!(code == 1, "the new signatures are not active yet");
        Ok(())
    };
    for marker in markers {
        wait_for("the new signatures", PATIENCE, || found(&marker.bytes))?;
    }
    if found(&definitions::eicar()).is_err() {
        definitions::write_builtin(&folder)?;
        reload(site)?;
        wait_for("the EICAR signature", PATIENCE, || {
            found(&definitions::eicar())
        })?;
        report.step(
            "definitions",
            "These definitions do not know EICAR; the built-in signature was added.",
            &json!({ "added": "Eicar-Test-Signature" }),
        );
    }
    let names: Vec<&str> = markers.iter().map(|marker| marker.name.as_str()).collect();
    report.step(
        "signatures",
        &format!(
            "Two signatures made for this run are active: {}.",
            names.join(", ")
        ),
        &json!({ "names": names }),
    );
    Ok(())
}

fn reload(site: &Site) -> Result<()> {
    let process = site
        .process("scanserver")?
        .context("the Protection Server does not run")?;
    process.signal(Signal::SIGHUP)
}

/// Whether opens are blocked; otherwise why not.
fn on_access(site: &Site) -> Result<Result<(), String>> {
    let status = wait_for("the agent's self-test", Duration::from_secs(30), || {
        let finished = site.run(
            "palisade-agent",
            &["status", "-o", "json"],
            Duration::from_secs(20),
        )?;
        let status = finished.json()?;
        let settled =
            status["protection"]["state"] == "blocking" || !nix::unistd::geteuid().is_root();
        ensure!(
            settled,
            "protection is {}: {}",
            status["protection"],
            status["protection"]["reason"]
        );
        Ok(status)
    })?;
    if status["protection"]["state"] == "blocking" {
        return Ok(Ok(()));
    }
    Ok(Err(status["protection"]["reason"]
        .as_str()
        .unwrap_or("no reason given")
        .to_owned()))
}

/// The folder may be the operator's own: names are this run's, and nothing stays.
fn clean_files(folder: &Path, tag: &str, report: Report) -> Result<()> {
    let note = folder.join(format!("clean-{tag}.txt"));
    let program = folder.join(format!("clean-{tag}"));
    let outcome = use_clean_files(&note, &program);
    for file in [&note, &program] {
        let _ = fs::remove_file(file);
    }
    outcome?;
    report.step(
        "clean",
        &format!(
            "Clean files in {} are read and run as always.",
            folder.display()
        ),
        &json!({ "files": [note, program] }),
    );
    Ok(())
}

fn use_clean_files(note: &Path, program: &Path) -> Result<()> {
    let text = b"Nothing to see here.\n";
    fs::write(note, text).with_context(|| note.display().to_string())?;
    fs::copy("/bin/true", program).with_context(|| program.display().to_string())?;
    for _ in 0..2 {
        let found = read(note).context("a clean file must stay readable")?;
        ensure!(found == text, "a clean file was read wrongly");
        command::run(program, [""; 0], Duration::from_secs(20))?.expect(&[0])?;
    }
    Ok(())
}

fn real_files(site: &Site, report: Report) -> Result<()> {
    let (code, result) = site.scan(&[Path::new(REAL_FILES)], Duration::from_secs(600))?;
    ensure!(
        code == 0 || code == 4,
        "the scan of {REAL_FILES} ended with {code}: {result}"
    );
    ensure!(
        result["clean"].as_u64() > Some(0),
        "nothing in {REAL_FILES} was scanned: {result}"
    );
    report.step(
        "scan",
        &format!(
            "Scanned {REAL_FILES}: {} files, {} clean, {} bytes sent, {} ms.",
            result["scanned"], result["clean"], result["sent_bytes"], result["elapsed_ms"]
        ),
        &result,
    );
    Ok(())
}

fn samples(folder: &Path, markers: &[Marker; 2]) -> Result<[Sample; 3]> {
    let tag = &markers[0].name;
    let file = |kind: &str| folder.join(format!("{kind}-{tag}"));
    Ok([
        Sample {
            what: "EICAR",
            file: file("eicar"),
            name: None,
        },
        Sample {
            what: "the ClamAV marker",
            file: file("clamav"),
            name: Some(markers[0].name.clone()),
        },
        Sample {
            what: "the YARA marker",
            file: file("yara"),
            name: Some(markers[1].name.clone()),
        },
    ])
}

fn write_sample(sample: &Sample, markers: &[Marker; 2]) -> Result<()> {
    let bytes = match &sample.name {
        None => definitions::eicar(),
        Some(name) if *name == markers[0].name => markers[0].bytes.clone(),
        Some(_) => markers[1].bytes.clone(),
    };
    fs::write(&sample.file, bytes).with_context(|| sample.file.display().to_string())
}

fn blocked(site: &Site, sample: &Sample, report: Report) -> Result<()> {
    match read(&sample.file) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
        Err(error) => bail!(
            "{}: blocking gives EPERM, and not: {error}",
            sample.file.display()
        ),
        Ok(_) => bail!(
            "{} was opened: {} is not blocked",
            sample.file.display(),
            sample.what
        ),
    }
    let by_another = command::run(
        Path::new("/bin/cat"),
        [&sample.file],
        Duration::from_secs(20),
    )?;
    ensure!(
        by_another.code == Some(1),
        "cat could read {}",
        sample.file.display()
    );
    let detection = detection(site, sample)?;
    report.step(
        "blocked",
        &format!(
            "Blocked {}: {} is {}.",
            sample.what,
            sample.file.display(),
            plain(&detection["name"])
        ),
        &detection,
    );
    Ok(())
}

/// Root may open whatever its mode says, so EPERM or EACCES can only be the agent's.
fn read(file: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The site's record of the block, which must name the signature.
fn detection(site: &Site, sample: &Sample) -> Result<Value> {
    let path = sample.file.display().to_string();
    wait_for("the detection", PATIENCE, || {
        let list = site.console(&["detection", "list"])?;
        let all = list.as_array().context("a list is expected")?;
        let found = all
            .iter()
            .find(|detection| {
                detection["path"] == path.as_str() && detection["action"] == "blocked"
            })
            .with_context(|| format!("no detection of {path}"))?;
        let name = found["name"].as_str().unwrap_or_default();
        let fits = sample
            .name
            .as_ref()
            .is_none_or(|wanted| name.starts_with(wanted.as_str()));
        ensure!(
            fits && !name.is_empty(),
            "{path} is {name}, and should be {:?}",
            sample.name
        );
        Ok(found.clone())
    })
}

fn found_on_demand(site: &Site, sample: &Sample, report: Report) -> Result<()> {
    let (code, result) = site.scan(&[&sample.file], PATIENCE)?;
    ensure!(
        code == 1 && result["malware"] == 1,
        "{} is not found: {result}",
        sample.what
    );
    let finding = &result["findings"][0];
    report.step(
        "found",
        &format!(
            "Found {}: {} is {}.",
            sample.what,
            sample.file.display(),
            plain(&finding["name"])
        ),
        finding,
    );
    Ok(())
}

/// A JSON text without its quotes.
fn plain(value: &Value) -> &str {
    value.as_str().unwrap_or("-")
}

/// What a person would type next.
pub fn next_commands(site: &Site) -> Vec<String> {
    let folder = command::program("palisade")
        .ok()
        .and_then(|path| path.parent().map(Path::to_owned))
        .unwrap_or_default();
    let dir = site.dir().display();
    let at = |program: &str| format!("{} --site {dir}", folder.join(program).display());
    vec![
        format!("{} status", at("palisade")),
        format!("{} detection list", at("palisade")),
        format!("{} scan /usr/bin", at("palisade-agent")),
        format!("scripts/down --state {dir}"),
    ]
}
