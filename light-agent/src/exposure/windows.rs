//! From when to when the guest ran without verdicts, and what came of it: pure.
//!
//! ```text
//!            a cause begins                     the last cause ends
//!  (none) ───────────────────► present window ──────────────────────► one of the last few
//!            or an open is let through              │
//!            without a verdict                      └─ opens are counted in it, and
//!                                                      what their files turn out to be
//! ```
//!
//! Owns the windows and their bound; time, in milliseconds since 1970, is an argument,
//! and a clock that is put back makes a window of no length. Does not own the files
//! that wait ([`crate::deferred`]) or who notices causes ([`super::watch`]).

use std::collections::{BTreeSet, VecDeque};

use palisade_protocol::bounded::List;
pub use palisade_protocol::exposure::ExposureCause as Cause;
use palisade_protocol::exposure::{self, ExposureWindow, ExposureWindows};
use serde::{Deserialize, Serialize};

/// Windows that are remembered besides the present one.
pub const LAST: usize = exposure::MAX_WINDOWS - 1;
/// After this long without another open let through, in milliseconds, the Protection
/// Server has caught up.
pub const CAUGHT_UP_MS: u64 = 60_000;

/// How a file came to be let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// It was opened.
    Open,
    /// It was executed.
    Exec,
    /// It was written, and nobody waited.
    Written,
}

/// What a file that was let through turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Result {
    /// Clean.
    Clean,
    /// Malware: a detection.
    Malware,
    /// Suspicious: a detection.
    Suspicious,
    /// There is no verdict for it (too large, encrypted, private, …).
    NotScanned,
    /// It is not there any more.
    Gone,
}

/// How many files turned out to be what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Results {
    /// Clean.
    pub clean: u64,
    /// Malware.
    pub malware: u64,
    /// Suspicious.
    pub suspicious: u64,
    /// Without a verdict for good.
    pub not_scanned: u64,
    /// Not there any more.
    pub gone: u64,
    /// Of all of these, changed since they were let through.
    pub changed: u64,
}

impl Results {
    fn add(&mut self, result: Result, changed: bool) {
        match result {
            Result::Clean => self.clean += 1,
            Result::Malware => self.malware += 1,
            Result::Suspicious => self.suspicious += 1,
            Result::NotScanned => self.not_scanned += 1,
            Result::Gone => self.gone += 1,
        }
        self.changed += u64::from(changed);
    }

    /// All of them.
    pub fn sum(&self) -> u64 {
        self.clean + self.malware + self.suspicious + self.not_scanned + self.gone
    }
}

/// One window.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Window {
    /// Its number.
    pub id: u64,
    /// When it began, in milliseconds since 1970.
    pub from_ms: u64,
    /// When it ended; it lasts if unset.
    pub until_ms: Option<u64>,
    /// All causes that it had.
    pub causes: BTreeSet<Cause>,
    /// Opens that were let through without a verdict.
    pub opens: u64,
    /// Executions likewise.
    pub execs: u64,
    /// Files among them that are scanned later.
    pub files: u64,
    /// Files that are not: the queue had no room.
    pub not_kept: u64,
    /// What those that were scanned later turned out to be.
    pub results: Results,
}

impl Window {
    /// Files that still wait.
    pub fn waiting(&self) -> u64 {
        self.files.saturating_sub(self.results.sum())
    }
}

impl From<&Window> for ExposureWindow {
    fn from(window: &Window) -> Self {
        let results = &window.results;
        Self {
            id: window.id,
            from_ms: window.from_ms,
            until_ms: window.until_ms,
            causes: List::cut(window.causes.iter().copied()),
            opens: window.opens,
            execs: window.execs,
            files: window.files,
            not_kept: window.not_kept,
            clean: results.clean,
            malware: results.malware,
            suspicious: results.suspicious,
            not_scanned: results.not_scanned,
            gone: results.gone,
        }
    }
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Windows {
    present: Option<Window>,
    last: VecDeque<Window>,
    next: u64,
    #[serde(skip)]
    active: BTreeSet<Cause>,
    /// The last open that was let through while a Protection Server was connected.
    #[serde(skip)]
    late_ms: u64,
}

/// When an agent was last known to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alive {
    /// In which boot.
    pub boot: String,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
}

impl Windows {
    /// The agent starts: the time since it was last known to run is a window, or the
    /// time since the guest booted.
    pub fn started(&mut self, last: &Alive, boot: &str, booted_ms: u64, now_ms: u64) {
        let from = match last.boot == boot {
            true => last.at_ms,
            false => last.at_ms.max(booted_ms),
        };
        self.active.clear();
        let from = from.min(now_ms);
        if let Some(present) = &mut self.present
            && last.boot != boot
        {
            // The guest was off meanwhile: that is no exposure.
            present.until_ms = Some(last.at_ms.max(present.from_ms));
            self.end();
        }
        self.set(Cause::NotRunning, true, from);
    }

    /// A cause begins or ends. Says whether anything changed.
    pub fn set(&mut self, cause: Cause, on: bool, now_ms: u64) -> bool {
        let changed = match on {
            true => self.active.insert(cause),
            false => self.active.remove(&cause),
        };
        if changed && on {
            self.present(now_ms).causes.insert(cause);
        }
        if changed && self.active.is_empty() {
            self.close(now_ms);
        }
        changed
    }

    /// An open was let through without a verdict. Gives the window it belongs to.
    pub fn let_through(&mut self, way: Way, now_ms: u64) -> u64 {
        if self.active.iter().all(|cause| *cause == Cause::Overload) {
            self.set(Cause::Overload, true, now_ms);
            self.late_ms = now_ms;
        }
        let window = self.present(now_ms);
        match way {
            Way::Open => window.opens += 1,
            Way::Exec => window.execs += 1,
            Way::Written => {}
        }
        window.id
    }

    /// Ends what has ended by itself.
    pub fn tick(&mut self, now_ms: u64) -> bool {
        let quiet = now_ms.saturating_sub(self.late_ms) >= CAUGHT_UP_MS || now_ms < self.late_ms;
        self.active.contains(&Cause::Overload) && quiet && {
            let at = self.late_ms.min(now_ms);
            self.set(Cause::Overload, false, at)
        }
    }

    /// A file of a window waits to be scanned, or finds no room.
    pub fn kept(&mut self, window: u64, kept: bool) {
        if let Some(window) = self.find(window) {
            match kept {
                true => window.files += 1,
                false => window.not_kept += 1,
            }
        }
    }

    /// A file of a window was looked at.
    pub fn result(&mut self, window: u64, result: Result, changed: bool) {
        if let Some(window) = self.find(window) {
            window.results.add(result, changed);
        }
    }

    /// The present window.
    pub fn now(&self) -> Option<&Window> {
        self.present.as_ref()
    }

    /// Those that have ended, the newest first.
    pub fn ended(&self) -> impl Iterator<Item = &Window> {
        self.last.iter().rev()
    }

    /// All of them for the Integration Server, the newest first.
    pub fn reported(&self) -> ExposureWindows {
        let all = self.now().into_iter().chain(self.ended());
        List::cut(all.map(ExposureWindow::from))
    }

    /// As it is read from a file, where anybody may have written anything.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        while self.last.len() > LAST {
            self.last.pop_front();
        }
        self
    }

    fn find(&mut self, id: u64) -> Option<&mut Window> {
        let all = self.present.iter_mut().chain(self.last.iter_mut());
        all.into_iter().find(|window| window.id == id)
    }

    fn present(&mut self, now_ms: u64) -> &mut Window {
        let next = &mut self.next;
        self.present.get_or_insert_with(|| {
            *next = next.wrapping_add(1);
            Window {
                id: *next,
                from_ms: now_ms,
                ..Window::default()
            }
        })
    }

    fn close(&mut self, now_ms: u64) {
        if let Some(window) = &mut self.present {
            window.until_ms = Some(now_ms.max(window.from_ms));
        }
        self.end();
    }

    fn end(&mut self) {
        self.last.extend(self.present.take());
        while self.last.len() > LAST {
            self.last.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_800_000_000_000;

    fn alive(boot: &str, at_ms: u64) -> Alive {
        Alive {
            boot: boot.to_owned(),
            at_ms,
        }
    }

    #[test]
    fn causes_that_overlap_are_one_window() {
        let mut windows = Windows::default();
        windows.started(&alive("a", NOW - 10), "a", NOW - 99, NOW);
        windows.set(Cause::NoSvm, true, NOW);
        windows.set(Cause::NotRunning, false, NOW);
        let id = windows.let_through(Way::Open, NOW + 1);
        windows.let_through(Way::Exec, NOW + 2);
        windows.kept(id, true);
        windows.kept(id, false);
        assert_eq!(windows.now().unwrap().waiting(), 1);
        windows.set(Cause::NoSvm, false, NOW + 5);
        assert_eq!(windows.now(), None);
        windows.result(id, Result::Malware, true);
        let window = windows.ended().next().unwrap();
        assert_eq!((window.from_ms, window.until_ms), (NOW - 10, Some(NOW + 5)));
        assert_eq!(
            window.causes,
            [Cause::NotRunning, Cause::NoSvm].into_iter().collect()
        );
        assert_eq!((window.opens, window.execs, window.not_kept), (1, 1, 1));
        assert_eq!((window.results.malware, window.results.changed), (1, 1));
        assert_eq!(window.waiting(), 0);
    }

    #[test]
    fn a_guest_that_was_off_was_not_exposed() {
        let mut windows = Windows::default();
        windows.set(Cause::NoSvm, true, NOW);
        let (booted, now) = (NOW + 90_000, NOW + 95_000);
        windows.started(&alive("a", NOW + 100), "b", booted, now);
        windows.set(Cause::NotRunning, false, now);
        let mut ended = windows.ended();
        let boot = ended.next().unwrap();
        assert_eq!((boot.from_ms, boot.until_ms), (booted, Some(now)));
        let before = ended.next().unwrap();
        assert_eq!((before.from_ms, before.until_ms), (NOW, Some(NOW + 100)));
    }

    #[test]
    fn a_late_verdict_is_a_window_until_the_server_has_caught_up() {
        let mut windows = Windows::default();
        windows.let_through(Way::Open, NOW);
        windows.let_through(Way::Open, NOW + 30_000);
        assert!(!windows.tick(NOW + CAUGHT_UP_MS));
        assert!(windows.tick(NOW + 30_000 + CAUGHT_UP_MS));
        let window = windows.ended().next().unwrap();
        assert_eq!((window.opens, window.until_ms), (2, Some(NOW + 30_000)));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Set(u8, bool),
        Open(bool),
        Result,
        Tick,
        Restart(bool),
    }

    fn steps() -> impl Strategy<Value = Vec<(Step, i64)>> {
        let step = prop_oneof![
            (0_u8..6, any::<bool>()).prop_map(|(cause, on)| Step::Set(cause, on)),
            any::<bool>().prop_map(Step::Open),
            Just(Step::Result),
            Just(Step::Tick),
            any::<bool>().prop_map(Step::Restart),
        ];
        prop::collection::vec((step, -70_000_i64..90_000), 0..120)
    }

    proptest! {
        #[test]
        fn whatever_the_clock_does_windows_are_whole_and_few(steps in steps()) {
            const CAUSES: [Cause; 6] =
                [Cause::NotRunning, Cause::NoSvm, Cause::Fallback, Cause::Off, Cause::Overload, Cause::Bypass];
            let mut windows = Windows::default();
            let (mut now, mut waiting) = (NOW, Vec::new());
            let mut boot = 0;
            for (step, ms) in steps {
                now = now.saturating_add_signed(ms);
                match step {
                    Step::Set(cause, on) => {
                        windows.set(CAUSES[cause as usize], on, now);
                    }
                    Step::Open(kept) => {
                        let id = windows.let_through(Way::Open, now);
                        windows.kept(id, kept);
                        waiting.extend(kept.then_some(id));
                    }
                    Step::Result => {
                        if let Some(id) = waiting.pop() {
                            windows.result(id, Result::Clean, false);
                        }
                    }
                    Step::Tick => {
                        windows.tick(now);
                    }
                    Step::Restart(reboot) => {
                        let last = alive(&boot.to_string(), now.saturating_sub(5));
                        boot += u64::from(reboot);
                        let text = serde_json::to_string(&windows).unwrap();
                        windows = serde_json::from_str::<Windows>(&text).unwrap().bounded();
                        windows.started(&last, &boot.to_string(), now.saturating_sub(3), now);
                    }
                }
                prop_assert_eq!(windows.now().is_some(), !windows.active.is_empty());
                prop_assert!(windows.last.len() <= LAST);
                for window in windows.ended() {
                    prop_assert!(window.until_ms.unwrap() >= window.from_ms);
                    prop_assert!(window.results.sum() <= window.files);
                    prop_assert!(!window.causes.is_empty());
                }
                let mut ids: Vec<u64> = windows.ended().map(|window| window.id).collect();
                ids.extend(windows.now().map(|window| window.id));
                let count = ids.len();
                ids.sort_unstable();
                ids.dedup();
                prop_assert_eq!(ids.len(), count);
            }
        }
    }
}
