//! Files that change after a verdict, and while there is none yet: the next open is about
//! what is there then.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use palisade_tests::skip;

use super::guest::{Guest, Mount, PATIENCE, denied, number, open_aside, open_soon, wait_until};

/// A file that changed of late is not remembered.
const SETTLED: Duration = Duration::from_millis(2500);

/// Maps its first argument, and writes what it is told through the mapping alone.
const MAPPED: &str = "
import mmap, os, sys
f = os.open(sys.argv[1], os.O_RDWR)
m = mmap.mmap(f, 0, mmap.MAP_SHARED)
os.close(f)
print('mapped', flush=True)
for line in sys.stdin:
    text = bytes.fromhex(line.strip())
    m[:len(text)] = text
    print('written', flush=True)
m.close()
print('unmapped', flush=True)
";

struct Mapping {
    process: Child,
    answers: BufReader<ChildStdout>,
}

impl Mapping {
    fn of(test: &str, file: &Path) -> Option<Self> {
        let mut command = Command::new("python3");
        command.args(["-c", MAPPED]).arg(file);
        let process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut process = match process {
            Ok(process) => process,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                skip::skip(test, "python3 maps the file, and is not there");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let answers = BufReader::new(process.stdout.take().unwrap());
        let mut mapping = Self { process, answers };
        assert_eq!(mapping.hear(), "mapped");
        Some(mapping)
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn write(&mut self, bytes: &[u8]) {
        let mut stdin = self.process.stdin.as_ref().unwrap();
        writeln!(stdin, "{}", hex::encode(bytes)).unwrap();
        assert_eq!(self.hear(), "written");
    }

    fn unmap(mut self) {
        drop(self.process.stdin.take());
        assert_eq!(self.hear(), "unmapped");
        self.process.wait().unwrap();
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn what_is_written_through_a_mapping_is_scanned_anew() {
    const TEST: &str = "what_is_written_through_a_mapping_is_scanned_anew";
    if !skip::is_root(TEST) {
        return;
    }
    let guest = Guest::start("");
    let malware = guest.malware("mapped");
    let harmless = vec![b'.'; malware.len()];
    let file = guest.file("file", &harmless);
    // About root's own files, which nobody else could change so, the kernel asks no more.
    std::os::unix::fs::chown(&file, Some(1000), None).unwrap();
    std::thread::sleep(SETTLED);
    open_soon(&file).unwrap();
    wait_until("its verdict is remembered", || {
        guest.status()["cached_files"] == 1
    });
    // The control: as long as nobody can write, that is what answers.
    let scanned = number(&guest.settled(), "scanned");
    for _ in 0..10 {
        open_soon(&file).unwrap();
    }
    assert_eq!(number(&guest.settled(), "scanned"), scanned);

    let Some(mut mapping) = Mapping::of(TEST, &file) else {
        return;
    };
    std::thread::sleep(SETTLED);
    open_soon(&file).unwrap();
    mapping.write(&malware);
    assert!(denied(open_soon(&file)), "a mapping's first write");
    mapping.write(&harmless);
    open_soon(&file).unwrap();
    // The second one moves no time of the file's.
    mapping.write(&malware);
    assert!(denied(open_soon(&file)), "a mapping's later write");
    mapping.unmap();
    assert!(denied(open_soon(&file)));
    guest.settled();
}

/// An overlay's own file knows nothing of such a writer.
#[test]
fn what_is_written_through_a_mapping_of_an_overlay_is_scanned_anew() {
    const TEST: &str = "what_is_written_through_a_mapping_of_an_overlay_is_scanned_anew";
    if !skip::is_root(TEST) {
        return;
    }
    // The overlay is all that is protected, and so is marked itself.
    let guest = Guest::prepare("");
    let layers = guest.test.protected.clone();
    for folder in ["lower", "upper", "work"] {
        fs::create_dir(layers.join(folder)).unwrap();
    }
    let merged = guest.test.folder().join("merged");
    let options = format!(
        "lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work",
        layers.display()
    );
    let _mount = Mount::overlay(&merged, &options);
    guest.set(&format!("[on_access]\npaths = ['{}']", merged.display()));
    guest.test.site.start().unwrap();
    guest.wait_state("blocking");
    let malware = guest.malware("mapped");
    let harmless = vec![b'.'; malware.len()];
    let file = merged.join("file");
    fs::write(&file, &harmless).unwrap();
    std::os::unix::fs::chown(&file, Some(1000), None).unwrap();
    std::thread::sleep(SETTLED);
    open_soon(&file).unwrap();
    let Some(mut mapping) = Mapping::of(TEST, &file) else {
        return;
    };
    std::thread::sleep(SETTLED);
    for _ in 0..3 {
        open_soon(&file).unwrap();
        mapping.write(&malware);
        assert!(denied(open_soon(&file)));
        mapping.write(&harmless);
    }
    mapping.unmap();
    open_soon(&file).unwrap();
    guest.settled();
}

#[test]
fn what_is_written_during_the_scan_is_not_clean_by_the_older_content() {
    if !skip::is_root("what_is_written_during_the_scan_is_not_clean_by_the_older_content") {
        return;
    }
    let guest = Guest::start("[on_access]\ndeadline_ms = 30000");
    let malware = guest.malware("later");
    let harmless = vec![b'.'; malware.len()];
    for (name, content) in [("changes", &malware), ("stays", &harmless)] {
        let file = guest.file(name, &harmless);
        let writer = OpenOptions::new().write(true).open(&file).unwrap();
        guest.signal_svm(Signal::SIGSTOP);
        let before = number(&guest.status()["events"], "seen");
        let opened = open_aside(&file);
        wait_until("it waits for a verdict", || {
            let events = &guest.status()["events"];
            number(events, "seen") > before && number(events, "pending") == 1
        });
        // Hashed by then; a fresh content of the same size is what the opener would read.
        std::thread::sleep(Duration::from_millis(300));
        writer.write_all_at(content, 0).unwrap();
        guest.signal_svm(Signal::SIGCONT);
        let (opened, _) = opened.recv_timeout(PATIENCE).unwrap();
        // The second is the control.
        assert_eq!(denied(opened), name == "changes", "{name}");
        drop(writer);
        assert_eq!(denied(File::open(&file)), name == "changes", "{name}");
    }
    assert_eq!(number(&guest.settled(), "failed_open"), 0);
}
