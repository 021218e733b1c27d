//! One event: who opens or wrote what, and the one outcome it gets. Where opens are
//! held the kernel is told; elsewhere it asked nothing, and the outcome is booked.
//!
//! ```text
//!            answer(outcome)          first caller wins: the kernel is told,
//!  waiting ──────────────────► answered     the outcome is booked
//!     │  expire() at the deadline     ▲
//!     └─ drop ────────────────────────┘
//! ```
//!
//! **Invariant:** the kernel is answered exactly once for each event, and before
//! its descriptor closes. The descriptor stays open while anybody still scans it,
//! answered or not.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use nix::sys::fanotify::{FanotifyEvent, MaskFlags};
use palisade_protocol::verdict::Verdict;

use crate::accounts::{Accounts, Outcome};
use crate::deadline::{Deadlines, Expires, Ticket};
use crate::decide::verdict_outcome;
use crate::failure::{Access, Answer, Failure, Table};
use crate::mode::Mode;

/// Who tells the kernel.
pub trait Respond: Send + Sync {
    /// Tells the kernel; must not block.
    fn respond(&self, file: BorrowedFd<'_>, answer: Answer);
}

/// What all events share.
pub struct Desk {
    /// Tells the kernel.
    pub responder: Arc<dyn Respond>,
    /// Books what was told.
    pub accounts: Arc<Accounts>,
    /// Says what is told when there is no verdict.
    pub table: Table,
    /// Whether anything is denied.
    pub mode: Mode,
}

enum Handle {
    Kernel(FanotifyEvent),
    #[cfg(test)]
    Test(std::fs::File),
}

/// An event.
pub struct Event {
    handle: Handle,
    desk: Arc<Desk>,
    /// How the file is opened.
    pub access: Access,
    /// The process that opens it.
    pub pid: u32,
    /// When it was taken: the process is older.
    pub seen: Instant,
    /// When its answer is due; set once it is watched.
    due: OnceLock<(Deadlines, Ticket)>,
    answered: AtomicBool,
    let_through: AtomicBool,
}

impl Event {
    /// Takes an event that the kernel gave, and books it as seen. Gives `None`
    /// for what needs no answer (an overflow of the queue, which is counted).
    pub fn take(raw: FanotifyEvent, desk: &Arc<Desk>) -> Option<Self> {
        let mask = raw.mask();
        if mask.contains(MaskFlags::FAN_Q_OVERFLOW) {
            desk.accounts.overflow();
        }
        raw.fd()?;
        let exec = MaskFlags::FAN_OPEN_EXEC_PERM | MaskFlags::FAN_OPEN_EXEC;
        let access = if mask.intersects(exec) {
            Access::Exec
        } else {
            Access::Open
        };
        let pid = u32::try_from(raw.pid()).unwrap_or(0);
        Some(Self::new(Handle::Kernel(raw), desk, access, pid))
    }

    fn new(handle: Handle, desk: &Arc<Desk>, access: Access, pid: u32) -> Self {
        desk.accounts.seen();
        Self {
            handle,
            desk: Arc::clone(desk),
            access,
            pid,
            seen: Instant::now(),
            due: OnceLock::new(),
            answered: AtomicBool::new(false),
            let_through: AtomicBool::new(false),
        }
    }

    /// Has the event answered by the failure table at `when`, if nothing else does.
    pub fn due_at(self: &Arc<Self>, when: Instant, deadlines: &Deadlines) {
        let this: Weak<Self> = Arc::downgrade(self);
        let ticket = deadlines.watch(when, this);
        if let Err((deadlines, ticket)) = self.due.set((deadlines.clone(), ticket)) {
            deadlines.forget(ticket);
        }
    }

    /// When the answer is due.
    pub fn due(&self) -> Option<Instant> {
        self.due.get().map(|(_, (when, _))| *when)
    }

    /// What a verdict comes to.
    pub fn outcome(&self, verdict: &Verdict) -> Outcome {
        self.desk
            .mode
            .outcome(verdict_outcome(verdict, self.access, &self.desk.table))
    }

    /// Answers the kernel and books it, unless that was done before. Says whether
    /// this was the answer.
    pub fn answer(&self, outcome: Outcome) -> bool {
        if self.answered.swap(true, Ordering::AcqRel) {
            return false;
        }
        let outcome = self.desk.mode.outcome(outcome);
        let let_through = matches!(outcome, Outcome::Failed(_, Answer::Allow));
        self.let_through.store(let_through, Ordering::Release);
        self.desk.responder.respond(self.as_fd(), outcome.answer());
        self.desk.accounts.book(outcome);
        true
    }

    /// Answers from the failure table.
    pub fn fail(&self, failure: Failure) -> bool {
        self.answer(Outcome::Failed(
            failure,
            self.desk.table.answer(failure, self.access),
        ))
    }

    /// Whether it was let through without a verdict.
    pub fn is_let_through(&self) -> bool {
        self.let_through.load(Ordering::Acquire)
    }

    /// Whether somebody waits for the answer.
    pub fn is_held(&self) -> bool {
        self.desk.mode == Mode::Block && !self.is_answered()
    }

    /// Whether the kernel was answered.
    pub fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Acquire)
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.handle {
            // `take` refused events without descriptor.
            Handle::Kernel(raw) => raw.fd().unwrap_or_else(|| std::process::abort()),
            #[cfg(test)]
            Handle::Test(file) => file.as_fd(),
        }
    }
}

impl Expires for Event {
    fn expire(&self) {
        self.fail(Failure::Deadline);
    }

    fn give_up(&self) {
        self.fail(Failure::Stopping);
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.fail(Failure::Stopping);
        if let Some((deadlines, ticket)) = self.due.take() {
            deadlines.forget(ticket);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Mutex;
    use std::time::Duration;

    #[derive(Default)]
    struct Kernel(Mutex<Vec<Answer>>);

    impl Respond for Kernel {
        fn respond(&self, _file: BorrowedFd<'_>, answer: Answer) {
            self.0.lock().unwrap().push(answer);
        }
    }

    fn event(desk: &Arc<Desk>, access: Access) -> Event {
        let file = std::fs::File::open("/dev/null").unwrap();
        Event::new(Handle::Test(file), desk, access, 1)
    }

    fn desk() -> (Arc<Kernel>, Arc<Desk>) {
        let kernel = Arc::new(Kernel::default());
        let desk = Desk {
            responder: Arc::clone(&kernel) as Arc<dyn Respond>,
            accounts: Arc::default(),
            table: Table::default(),
            mode: Mode::Block,
        };
        (kernel, Arc::new(desk))
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Answer(Outcome),
        Expire,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let answer = || prop_oneof![Just(Answer::Allow), Just(Answer::Deny)];
        let step = prop_oneof![
            answer().prop_map(|answer| Step::Answer(Outcome::Scanned(answer))),
            answer().prop_map(|answer| Step::Answer(Outcome::Cached(answer))),
            Just(Step::Answer(Outcome::Policy)),
            answer().prop_map(|answer| Step::Answer(Outcome::Failed(Failure::Busy, answer))),
            Just(Step::Expire),
        ];
        prop::collection::vec(step, 0..4)
    }

    proptest! {
        #[test]
        fn each_event_is_answered_once_and_the_books_balance(all in prop::collection::vec((steps(), any::<bool>()), 0..40)) {
            let (kernel, desk) = desk();
            for (steps, exec) in &all {
                let event = event(&desk, if *exec { Access::Exec } else { Access::Open });
                for step in steps {
                    match step {
                        Step::Answer(outcome) => { event.answer(*outcome); }
                        Step::Expire => event.expire(),
                    }
                }
            }
            let snapshot = desk.accounts.snapshot();
            prop_assert_eq!(kernel.0.lock().unwrap().len(), all.len());
            prop_assert_eq!(snapshot.seen, all.len() as u64);
            prop_assert!(snapshot.balances(), "{:?}", snapshot);
            let denied = kernel.0.lock().unwrap().iter().filter(|a| **a == Answer::Deny).count();
            prop_assert_eq!(snapshot.denied, denied as u64);
        }
    }

    #[test]
    fn a_due_event_is_answered_by_the_table_even_if_nobody_does() {
        let (kernel, desk) = desk();
        let deadlines = Deadlines::start(None).unwrap();
        let event = Arc::new(event(&desk, Access::Open));
        event.due_at(Instant::now() + Duration::from_millis(20), &deadlines);
        let started = Instant::now();
        while !event.is_answered() {
            assert!(started.elapsed() < Duration::from_secs(5));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!event.answer(Outcome::Scanned(Answer::Deny)), "too late");
        drop(event);
        assert_eq!(*kernel.0.lock().unwrap(), [Answer::Allow]);
        assert_eq!(desk.accounts.snapshot().failures["deadline"], 1);
        deadlines.stop();
    }
}
