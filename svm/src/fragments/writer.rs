//! From memory to disk, while the contents are still in memory.
//!
//! ```text
//!  keep, make_room ──wakes──► which is next? ──► its bytes, a fragment at a time ──► disk
//!                               ▲   (memory)                                       │
//!                               └───────────────── done, or the disk rests ────────┘
//! ```
//!
//! One thread. It holds a content's memory only while it copies one fragment of it to
//! a buffer of its own, never while the disk works; the content can be forgotten even
//! then ([`Glance`](super::kept::Glance)), so that whoever wants the memory has it at
//! once. If the disk is behind, contents are forgotten before they were copied.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;
use std::{io, thread};

use palisade_protocol::content::FRAGMENT_BYTES;

use super::disk::Disk;
use super::memory::{Copying, Inner, locked};

/// How long a disk rests that did not take a fragment.
const REST: Duration = Duration::from_secs(30);

/// Starts the thread, which ends with the store. A word in the channel wakes it.
///
/// # Errors
/// When there are no more threads.
pub(super) fn start(store: Weak<Mutex<Inner>>, disk: Arc<Disk>) -> io::Result<SyncSender<()>> {
    let (wake, woken) = sync_channel(1);
    thread::Builder::new()
        .name("fragment-writer".to_owned())
        .spawn(move || run(&store, &disk, &woken))?;
    Ok(wake)
}

fn run(store: &Weak<Mutex<Inner>>, disk: &Disk, woken: &Receiver<()>) {
    let mut buffer = vec![0; FRAGMENT_BYTES as usize];
    while woken.recv().is_ok() {
        while let Some(next) = next(store, disk) {
            if copy(next, store, disk, &mut buffer).is_err() {
                thread::sleep(REST);
            }
        }
    }
}

fn next(store: &Weak<Mutex<Inner>>, disk: &Disk) -> Option<Copying> {
    let store = store.upgrade()?;
    locked(&store).next_copy(disk.capacity())
}

/// Has one fragment on disk.
fn copy(
    next: Copying,
    store: &Weak<Mutex<Inner>>,
    disk: &Disk,
    buffer: &mut [u8],
) -> io::Result<()> {
    let Copying {
        content,
        tenant,
        value,
        offset,
        length,
        bytes,
    } = next;
    if disk.has(&tenant, &value, content) {
        drop(bytes);
    } else {
        let buffer = &mut buffer[..length.min(FRAGMENT_BYTES) as usize];
        bytes.read_exact_at(buffer, offset)?;
        // From here on its memory is none of the writer's.
        drop(bytes);
        disk.store(&tenant, &value, content, buffer)?;
    }
    if let Some(store) = store.upgrade() {
        locked(&store).copied(content);
    }
    Ok(())
}

/// Copies what is to be copied now, as the thread does.
#[cfg(test)]
pub(super) fn copy_all(store: &Arc<Mutex<Inner>>, disk: &Disk) -> io::Result<()> {
    let store = Arc::downgrade(store);
    let mut buffer = vec![0; FRAGMENT_BYTES as usize];
    while let Some(next) = next(&store, disk) {
        copy(next, &store, disk, &mut buffer)?;
    }
    Ok(())
}
