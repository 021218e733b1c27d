//! A second program that holds opens, as another antivirus does: neither waits for the
//! other for ever, and both answer.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use nix::fcntl::AT_FDCWD;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response,
};
use palisade_tests::skip;

use super::guest::{Guest, denied, number, open_soon};

/// Reads each file that is opened by its path, too, as many such programs do, and denies
/// those of one name.
struct Listener {
    group: Arc<Fanotify>,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    answered: Arc<AtomicU64>,
    ended: Arc<AtomicBool>,
}

impl Listener {
    fn start(folder: &Path, denies: &'static str) -> Self {
        let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC;
        let group = Fanotify::init(
            flags | InitFlags::FAN_NONBLOCK,
            EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC,
        );
        let group = Arc::new(group.unwrap());
        group
            .mark(
                MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM,
                MaskFlags::FAN_OPEN_PERM,
                AT_FDCWD,
                Some(folder),
            )
            .unwrap();
        // No program that is started meanwhile holds an end of it.
        let (stopped, stop) = UnixStream::pair().unwrap();
        let (answered, ended) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let thread = std::thread::spawn({
            let (group, answered, ended) = (Arc::clone(&group), answered.clone(), ended.clone());
            move || {
                while listen(&group, &stopped, &answered, denies) {}
                ended.store(true, Ordering::Relaxed);
            }
        });
        Self {
            group,
            stop: Some(stop),
            thread: Some(thread),
            answered,
            ended,
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let flush = MarkFlags::FAN_MARK_FLUSH | MarkFlags::FAN_MARK_FILESYSTEM;
        let _ = self
            .group
            .mark(flush, MaskFlags::empty(), AT_FDCWD, Some(Path::new("/")));
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One turn; whether there is another.
fn listen(group: &Fanotify, stop: &UnixStream, answered: &AtomicU64, denies: &str) -> bool {
    let mut wait = [
        PollFd::new(group.as_fd(), PollFlags::POLLIN),
        PollFd::new(stop.as_fd(), PollFlags::POLLIN),
    ];
    poll(&mut wait, PollTimeout::NONE).unwrap();
    if wait[1].any().unwrap_or(true) {
        return false;
    }
    for event in group.read_events().unwrap_or_default() {
        let Some(fd) = event.fd() else { continue };
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        let path = fs::read_link(path).unwrap_or_default();
        let denied = path.file_name().is_some_and(|name| name == denies);
        let response = if denied {
            Response::FAN_DENY
        } else {
            Response::FAN_ALLOW
        };
        let _ = group.write_response(FanotifyResponse::new(fd, response));
        answered.fetch_add(1, Ordering::Relaxed);
    }
    true
}

#[test]
fn two_listeners_both_answer() {
    const FILES: u64 = 300;
    if !skip::is_root("two_listeners_both_answer") {
        return;
    }
    let guest = Guest::start("[on_access]\nignore_marks = 'off'");
    let theirs = guest.clean("theirs");
    let other = Listener::start(&guest.test.protected, "theirs");
    let files: Vec<PathBuf> = (0..FILES).map(|n| guest.clean(&n.to_string())).collect();
    let (bad, before) = (guest.bad("bad"), guest.settled());
    let answered = other.answered.load(Ordering::Relaxed);
    std::thread::scope(|scope| {
        for part in files.chunks(FILES as usize / 6) {
            scope.spawn(move || {
                for file in part {
                    open_soon(file).unwrap();
                }
            });
        }
    });
    // What either denies is denied.
    assert!(denied(open_soon(&bad)));
    assert!(denied(open_soon(&theirs)));
    let events = guest.settled();
    let seen = number(&events, "seen") - number(&before, "seen");
    assert!(seen > FILES, "{events}");
    assert_eq!(number(&events, "failed_open"), 0, "{events}");
    let answered = other.answered.load(Ordering::Relaxed) - answered;
    assert!(answered > FILES, "{answered}");
    assert!(!other.ended.load(Ordering::Relaxed));
    // Neither is lost when the other is restarted.
    guest.restart_agent(&[]);
    guest.wait_state("blocking");
    assert!(denied(open_soon(&guest.bad("again"))));
    assert!(denied(open_soon(&theirs)));
    // The control: without the other the agent lets its file through, and blocks on.
    drop(other);
    File::open(&theirs).unwrap();
    assert!(denied(open_soon(&bad)));
}
