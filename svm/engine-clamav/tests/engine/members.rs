//! Where in a content something was found: libclamav's own findings carry the path
//! of the part.

use crate::site::{MARKER_NAME, Site, found, marker, run_in, scan_bytes, scan_file, scan_with};
use palisade_worker::client::{Outcome, ScanOptions};

#[test]
fn a_finding_names_the_part_however_deep_it_is() {
    let (marker, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    let files = site.files();
    site.put("c.exe", format!("{marker} ").repeat(20).as_bytes());
    site.put("readme.txt", "clean ".repeat(100).as_bytes());
    std::fs::create_dir(files.join("sub")).unwrap();
    site.put("sub/d.txt", "also clean ".repeat(100).as_bytes());
    let steps: [(&str, &[&str]); 5] = [
        ("tar", &["cf", "b.tar", "readme.txt", "sub/d.txt", "c.exe"]),
        ("zip", &["-q", "a.zip", "readme.txt", "b.tar", "sub/d.txt"]),
        ("7z", &["a", "-bd", "s.7z", "readme.txt", "a.zip"]),
        // Found before and after other parts, in the last place and in the first.
        (
            "zip",
            &["-q", "first.zip", "c.exe", "readme.txt", "sub/d.txt"],
        ),
        ("zip", &["-q", "sub.zip", "sub/d.txt", "c.exe"]),
    ];
    for (program, args) in steps {
        if !run_in(&files, program, args) {
            return;
        }
    }
    for (archive, member) in [
        ("c.exe", ""),
        ("b.tar", "c.exe"),
        ("a.zip", "b.tar/c.exe"),
        ("s.7z", "a.zip/b.tar/c.exe"),
        ("first.zip", "c.exe"),
        ("sub.zip", "c.exe"),
    ] {
        assert_eq!(
            scan_file(&mut worker, &files.join(archive)),
            found(MARKER_NAME).inside(member.into()),
            "{archive}"
        );
    }
}

/// A match in the container's own bytes, after its parts were scanned, is not one in
/// the last of them.
#[test]
fn a_match_beside_the_parts_is_in_none() {
    let (marker, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    site.put("readme.txt", "clean ".repeat(100).as_bytes());
    if !run_in(&site.files(), "tar", &["cf", "a.tar", "readme.txt"]) {
        return;
    }
    let mut bytes = std::fs::read(site.files().join("a.tar")).unwrap();
    assert_eq!(scan_bytes(&mut worker, &bytes), Outcome::Clean);
    bytes.extend(marker.as_bytes());
    assert_eq!(scan_bytes(&mut worker, &bytes), found(MARKER_NAME));
}

#[test]
fn names_that_nobody_can_show_are_cut_and_replaced() {
    let (marker, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    let text = format!("{marker} ").repeat(20);
    for (name, shown) in [
        (
            b"in\x1b[2J\n.exe".to_vec(),
            "in\u{fffd}[2J\u{fffd}.exe".to_owned(),
        ),
        (b"../../etc/x".to_vec(), "../../etc/x".to_owned()),
    ] {
        let bytes = tar(&name, text.as_bytes());
        match scan_bytes(&mut worker, &bytes) {
            Outcome::Found { member, .. } => assert_eq!(member.as_str(), shown),
            other => panic!("{other:?}"),
        }
    }
}

/// What is handed out and what is found have the same names.
#[test]
fn parts_that_are_handed_out_are_named_the_same() {
    let (_, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    let files = site.files();
    site.put("c.txt", "third ".repeat(100).as_bytes());
    if !run_in(&files, "tar", &["czf", "b.tar.gz", "c.txt"])
        || !run_in(&files, "zip", &["-q", "a.zip", "b.tar.gz"])
    {
        return;
    }
    let bytes = std::fs::read(files.join("a.zip")).unwrap();
    let options = ScanOptions {
        members: true,
        ..ScanOptions::default()
    };
    let (_, members) = scan_with(&mut worker, &bytes, options);
    let names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.first(), Some(&"b.tar.gz"));
    assert_eq!(names.last(), Some(&"b.tar.gz/c.txt"), "{names:?}");
}

/// A tar file of one member with any name, as no program would write it.
fn tar(name: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name);
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[148..156].fill(b' ');
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    header.extend(content);
    header.resize(header.len().next_multiple_of(512) + 1024, 0);
    header
}
