//! Too much at a time: no descriptors left, thousands of notifications, an agent that is
//! stopped while opens come by the hundreds.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::Signal;
use palisade_tests::skip;

use super::guest::{
    Guest, PATIENCE, SOON, denied, number, open_aside, open_soon, signal, wait_until,
};

/// What is promised for an agent that stalls at the worst moment, and what a busy machine
/// adds.
const STALL_ENDS_WITHIN: Duration = Duration::from_secs(16);

#[test]
fn without_descriptors_the_table_answers_everyone() {
    /// Of these most are kept for other things than events.
    const DESCRIPTORS: &str = "--nofile=320:320";
    const OPENERS: usize = 200;
    if !skip::is_root("without_descriptors_the_table_answers_everyone") {
        return;
    }
    let guest = Guest::start("[on_access]\ndeadline_ms = 3000");
    for (few, by) in [(true, &["prlimit", DESCRIPTORS][..]), (false, &[])] {
        guest.restart_agent(by);
        guest.wait_state("blocking");
        let before = guest.settled();
        let files: Vec<PathBuf> = (0..OPENERS)
            .map(|n| guest.clean(&format!("{few}-{n}")))
            .collect();
        guest.signal_svm(Signal::SIGSTOP);
        let waiting: Vec<_> = files.iter().map(|file| open_aside(file)).collect();
        for opened in waiting {
            let (opened, took) = opened.recv_timeout(PATIENCE).unwrap();
            opened.expect("the table says allow");
            assert!(took <= Duration::from_secs(4), "deadline + 1 s: {took:?}");
        }
        guest.signal_svm(Signal::SIGCONT);
        let events = guest.settled();
        let failed =
            |key: &str| number(&events["failures"], key) - number(&before["failures"], key);
        let opened = number(&events, "seen") - number(&before, "seen");
        assert!(opened >= OPENERS as u64, "{events}");
        assert_eq!(number(&events, "kernel_refused"), 0, "{events}");
        // The second is the control: with enough of them each waits for its deadline.
        let out_of_fds = failed("out_of_fds");
        assert_eq!(out_of_fds >= OPENERS as u64 / 2, few, "{events}");
        assert!(few || out_of_fds == 0, "{events}");
        // And all is well again.
        guest.wait_state("blocking");
        wait_until("malware is blocked", || {
            denied(open_soon(&guest.bad(&format!("bad-{few}"))))
        });
    }
}

#[test]
fn thousands_of_written_files_delay_no_opener() {
    const FILES: u64 = 20_000;
    if !skip::is_root("thousands_of_written_files_delay_no_opener") {
        return;
    }
    let guest = Guest::start("[on_access]\nafter_writes = true\nqueue = 20000");
    let folder = guest.test.protected.join("many");
    fs::create_dir(&folder).unwrap();
    let writes = || guest.status()["writes"].clone();
    guest.signal_svm(Signal::SIGSTOP);
    for n in 0..FILES {
        fs::write(folder.join(n.to_string()), n.to_string()).unwrap();
    }
    wait_until("all are seen, or counted as lost", || {
        let writes = writes();
        number(&writes, "seen") >= FILES || number(&writes, "overflows") > 0
    });
    let waiting = number(&writes(), "pending");
    guest.signal_svm(Signal::SIGCONT);
    wait_until("the Protection Server is back", || {
        guest.status()["svm"]["id"].is_string()
    });
    let started = Instant::now();
    let bad = guest.bad("bad");
    assert!(denied(File::open(&bad)));
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    println!(
        "{waiting} written files waited; malware was blocked within {:?}",
        started.elapsed()
    );
    // The control: they did wait.
    assert!(waiting > 1000, "{waiting}");
    guest.settled();
}

#[test]
fn written_files_leave_opens_their_descriptors() {
    const DESCRIPTORS: &str = "--nofile=1000:1000";
    const FILES: u64 = 2_000;
    if !skip::is_root("written_files_leave_opens_their_descriptors") {
        return;
    }
    let guest = Guest::start("[on_access]\nafter_writes = true\nqueue = 20000");
    guest.restart_agent(&["prlimit", DESCRIPTORS]);
    guest.wait_state("blocking");
    let folder = guest.test.protected.join("many");
    fs::create_dir(&folder).unwrap();
    guest.signal_svm(Signal::SIGSTOP);
    for n in 0..FILES {
        fs::write(folder.join(n.to_string()), n.to_string()).unwrap();
    }
    let mut writes = serde_json::Value::Null;
    wait_until("all are seen", || {
        writes = guest.status()["writes"].clone();
        number(&writes, "seen") >= FILES
    });
    guest.signal_svm(Signal::SIGCONT);
    assert!(denied(open_soon(&guest.bad("bad"))));
    // The control: there were more than they may have, and each had one for long.
    assert!(number(&writes["failures"], "out_of_fds") > 0, "{writes}");
    assert!(number(&writes, "pending") > 100, "{writes}");
    assert_eq!(number(&writes, "kernel_refused"), 0, "{writes}");
}

/// Ends the openers, however the test ends.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn hundreds_of_openers_are_released_by_a_stopped_agent() {
    /// At five opens a second each.
    const OPENERS: usize = 200;
    const EACH: Duration = Duration::from_millis(200);
    if !skip::is_root("hundreds_of_openers_are_released_by_a_stopped_agent") {
        return;
    }
    // The kernel would ask no more about them, and nobody would be held.
    let guest = Guest::start("[on_access]\nignore_marks = 'off'");
    let clean: Vec<PathBuf> = (0..OPENERS).map(|n| guest.clean(&n.to_string())).collect();
    let bad = guest.bad("bad");
    assert!(denied(open_soon(&bad)));
    let pid = guest.agent_pid();
    let (over, opens, wrong) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let longest = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let (over, opens, wrong, longest) = (&over, &opens, &wrong, &longest);
        for file in &clean {
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    if File::open(file).is_err() {
                        wrong.fetch_add(1, Ordering::Relaxed);
                    }
                    let took = started.elapsed();
                    opens.fetch_add(1, Ordering::Relaxed);
                    longest.fetch_max(took.as_millis() as u64, Ordering::Relaxed);
                    std::thread::sleep(EACH.saturating_sub(took));
                }
            });
        }
        let _over = Over(over);
        std::thread::sleep(Duration::from_secs(2));
        let (before, undisturbed) = (
            opens.load(Ordering::Relaxed),
            longest.load(Ordering::Relaxed),
        );
        signal(pid, Signal::SIGSTOP);
        wait_until("another agent blocks", || {
            guest.try_status().is_some_and(|status| {
                status["agent"]["pid"] != pid && status["protection"]["state"] == "blocking"
            })
        });
        assert!(denied(open_soon(&bad)), "and malware is blocked again");
        println!(
            "{} opens/s before, the longest {undisturbed} ms; the stop held one {} ms",
            before / 2,
            longest.load(Ordering::Relaxed)
        );
        // The control: nothing held them before.
        assert!(undisturbed < 1000, "{undisturbed} ms");
    });
    let longest = Duration::from_millis(longest.into_inner());
    assert!(longest > Duration::from_secs(1), "the stop held them");
    assert!(longest <= STALL_ENDS_WITHIN, "{longest:?}");
    assert_eq!(wrong.into_inner(), 0, "no clean file was refused");
    assert_eq!(guest.status()["supervisor"]["restarts"], 1);
    guest.settled();
    // Nobody is left of the one that was stopped.
    let gone = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None);
    assert_eq!(gone.map_err(|error| error as i32), Err(libc::ESRCH));
}
