//! Logs go to stderr: for people, or one JSON object a line.
//!
//! ```text
//!  a line ─► queue (bounded) ─► one thread ─► stderr
//!             └─ full, or stderr takes nothing: lost, counted, and said in the next line
//! ```
//!
//! A log can be on a disk that is full or frozen, or go to a journal that is. Whoever
//! answers others must not wait for that, and takes [`start_unheld`].

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::fmt::MakeWriter;

use crate::cli::LogFormat;

/// Lines that wait for stderr, at the most.
const MOST_LINES: usize = 4096;
/// How long the last lines may take when the program ends.
const LAST_WITHIN: Duration = Duration::from_secs(1);

/// Lines that were lost since the process started.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Starts logging for the process. `PALISADE_LOG` filters as `tracing`'s
/// `EnvFilter` does (`info`, `palisade_svm=debug`); without it, `default` applies.
/// A second call changes nothing.
pub fn start(format: LogFormat, default: &str) {
    start_to(format, default, io::stderr);
}

/// The same, but nobody who logs ever waits for stderr. Keep what it gives until the
/// program ends: the last lines are written when it is dropped.
///
/// # Errors
/// When the system gives no thread.
pub fn start_unheld(format: LogFormat, default: &str) -> io::Result<Ending> {
    let (queue, queued) = sync_channel(MOST_LINES);
    std::thread::Builder::new()
        .name("log".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || write_all(&queued, &mut io::stderr(), &LOST))?;
    let lines = Lines(queue.clone());
    start_to(format, default, move || lines.clone());
    Ok(Ending(queue))
}

/// Lines of the log that were lost since the process started.
pub fn lost() -> u64 {
    LOST.load(Relaxed)
}

fn start_to<W>(format: LogFormat, default: &str, writer: W)
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter =
        EnvFilter::try_from_env("PALISADE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let builder = fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_target(false);
    // An error here means that a logger is already there, which is enough.
    let _ = match format {
        LogFormat::Human => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

enum Message {
    Line(Vec<u8>),
    /// Told once all before it is written.
    Flush(SyncSender<()>),
}

/// Where lines are left.
#[derive(Clone)]
struct Lines(SyncSender<Message>);

impl Write for Lines {
    /// A line is written at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.try_send(Message::Line(line.to_vec())).is_err() {
            LOST.fetch_add(1, Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The end of a program that logs: dropped, it waits for the last lines, if not for long.
pub struct Ending(SyncSender<Message>);

impl Drop for Ending {
    fn drop(&mut self) {
        let (written, told) = sync_channel(1);
        if let Err(TrySendError::Full(_)) = self.0.try_send(Message::Flush(written)) {
            return; // stderr takes nothing
        }
        let _ = told.recv_timeout(LAST_WITHIN);
    }
}

fn write_all(queued: &Receiver<Message>, to: &mut impl Write, lost: &AtomicU64) {
    let mut said = 0;
    for message in queued {
        match message {
            Message::Line(line) => {
                let gone = lost.load(Relaxed);
                let written = if gone == said {
                    to.write_all(&line)
                } else {
                    let (more, total) = (gone - said, gone);
                    writeln!(to, "{more} lines of the log were lost ({total} in all): it could not be written")
                        .and_then(|()| {
                            said = gone;
                            to.write_all(&line)
                        })
                };
                if written.is_err() {
                    lost.fetch_add(1, Relaxed);
                }
            }
            Message::Flush(written) => {
                let _ = to.flush();
                let _ = written.try_send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes a line, or nothing.
    struct Disk {
        full: bool,
        text: Vec<u8>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.full {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.text.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_lost_is_said_once_there_is_room() {
        let lost = AtomicU64::new(0);
        let mut disk = Disk {
            full: true,
            text: Vec::new(),
        };
        let write = |disk: &mut Disk, lines: &[&str]| {
            let (queue, queued) = sync_channel(9);
            for line in lines {
                let line = Message::Line(line.as_bytes().to_vec());
                assert!(queue.try_send(line).is_ok());
            }
            drop(queue);
            write_all(&queued, disk, &lost);
        };
        write(&mut disk, &["a\n", "b\n"]);
        assert_eq!(lost.load(Relaxed), 2);
        disk.full = false;
        write(&mut disk, &["c\n", "d\n"]);
        let text = String::from_utf8(disk.text).unwrap();
        assert_eq!(
            text,
            "2 lines of the log were lost (2 in all): it could not be written\nc\nd\n"
        );
    }

    #[test]
    fn nobody_waits_for_a_log_that_takes_nothing() {
        let (queue, _queued) = sync_channel(2);
        let before = lost();
        let mut lines = Lines(queue.clone());
        for _ in 0..5 {
            lines.write_all(b"x\n").unwrap();
        }
        assert_eq!(lost() - before, 3);
        drop(Ending(queue));
    }
}
