//! Programs that open files all the while something happens to their guest.

use std::fs::{self, File};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::libc;
use palisade_tests::definitions::Marker;
use rand::Rng as _;
use serde_json::Value;

use super::common::{self, TestSite};

/// Openers at a time.
const OPENERS: usize = 4;
/// How long each pauses between opens.
const PAUSE: Duration = Duration::from_millis(20);
/// An opener that waits longer than this is not served.
pub const ANSWERED: Duration = Duration::from_secs(4);

/// What the opens came to.
#[derive(Debug, Default)]
pub struct Opened {
    pub all: usize,
    /// Malware that was let through, and what is clean and was denied.
    pub wrong: usize,
    pub longest: Duration,
}

/// Opens new files, clean and not, until `happens` returns.
pub fn open_while(folder: &Path, marker: &Marker, happens: impl FnOnce()) -> Opened {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir(folder).unwrap();
    let over = AtomicBool::new(false);
    let next = AtomicUsize::new(0);
    let open = || {
        let mut opened = Opened::default();
        while !over.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let bad = number.is_multiple_of(3);
            let path = folder.join(number.to_string());
            let mut content = vec![0; rand::rng().random_range(1000..200_000)];
            rand::rng().fill(&mut content[..]);
            if bad {
                content.extend_from_slice(&marker.bytes);
            }
            fs::write(&path, content).unwrap();
            let began = Instant::now();
            let outcome = File::open(&path).map(drop);
            let denied = outcome.is_err_and(|error| error.raw_os_error() == Some(libc::EPERM));
            if denied != bad {
                eprintln!("{}: denied {denied}, bad {bad}", path.display());
                opened.wrong += 1;
            }
            opened.all += 1;
            opened.longest = opened.longest.max(began.elapsed());
            fs::remove_file(&path).unwrap();
            std::thread::sleep(PAUSE);
        }
        opened
    };
    std::thread::scope(|scope| {
        let openers: Vec<_> = (0..OPENERS).map(|_| scope.spawn(open)).collect();
        // The openers end, too, if this panics.
        let ends = Ends(&over);
        happens();
        drop(ends);
        let add = |mut sum: Opened, one: Opened| {
            sum.all += one.all;
            sum.wrong += one.wrong;
            sum.longest = sum.longest.max(one.longest);
            sum
        };
        let all = openers.into_iter().map(|opener| opener.join().unwrap());
        all.fold(Opened::default(), add)
    })
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What the agent says of itself.
pub fn status(test: &TestSite) -> Value {
    let arguments = ["status", "-o", "json"];
    let said = test.site.run("palisade-agent", &arguments, common::SCAN);
    said.unwrap().json().unwrap()
}

/// No open was answered without a verdict.
pub fn all_had_verdicts(test: &TestSite) {
    let events = &status(test)["events"];
    for key in ["failed_open", "failed_closed"] {
        assert_eq!(events[key], 0, "{events}");
    }
}
