//! Against clamscan, on Debian's test files: one hash of one file, which is packed
//! and archived in 44 ways.

use crate::site::{Site, found, scan_file};
use std::path::Path;
use std::process::Command;

const TESTFILES: &str = "/usr/share/clamav-testfiles";
const NAME: &str = "ClamAV-Test-File.UNOFFICIAL";

#[test]
fn finds_what_clamscan_finds() {
    let Ok(directory) = std::fs::read_dir(TESTFILES) else {
        println!("skipped: {TESTFILES} is not there (apt-get install clamav-testfiles)");
        return;
    };
    let mut files: Vec<_> = directory.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 44);

    let sample = Path::new(TESTFILES).join("clam.exe");
    let summed = Command::new("md5sum").arg(&sample).output().unwrap();
    let md5 = String::from_utf8_lossy(&summed.stdout)
        .split(' ')
        .next()
        .unwrap()
        .to_owned();
    let size = std::fs::metadata(&sample).unwrap().len();
    let site = Site::new(&[("clam.hdb", &format!("{md5}:{size}:ClamAV-Test-File\n"))]);

    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    for file in &files {
        // Where in the file, differs from one to the other.
        let outcome = scan_file(&mut worker, file).inside("".into());
        assert_eq!(outcome, found(NAME), "{}", file.display());
    }

    let clamscan = Command::new("clamscan")
        .arg("--database")
        .arg(site.definitions())
        .args(["--no-summary", TESTFILES])
        .output();
    match clamscan {
        Err(error) => println!("clamscan was not compared: {error}"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout);
            let theirs = said
                .lines()
                .filter(|line| line.ends_with(&format!(": {NAME} FOUND")));
            assert_eq!(theirs.count(), files.len(), "{said}");
        }
    }
}
