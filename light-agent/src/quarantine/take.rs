//! How a file is taken out of its place: renamed, compared, sealed, removed.
//!
//! ```text
//!  path ─► folder (no link followed) ─► same file there? ─► move noted ─► renamed into hold
//!                                                                             │
//!        put back ◄─ another file, a writer, another content, any error ◄─────┤ same file?
//!                                                                             ▼
//!                                    sealed ─► record ─► removed from hold ─► note removed
//! ```
//!
//! Between the verdict and the rename anybody who may write to the folder can put
//! another file at the path. So what was renamed is compared with the descriptor that
//! the verdict is about, and goes back to where it was if it is another. From the
//! rename to the record the file is in the hold, whole; a crash at any point leaves the
//! note, by which [`super::sweep`] puts it back or finishes.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::sys::stat::fstat;
use nix::sys::uio::pread;
use palisade_protocol::bounded::{MAX_PATH_BYTES, PathBytes};
use palisade_protocol::content::OutlineBuilder;
use palisade_protocol::identity::write_atomic;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::folders::{self, Hold, Named, Place};
use super::policy::{Kept, Movement};
use super::record::{Attributes, Found, Record, VERSION};
use super::seal::Sealer;
use super::vault::{Locked, Vault};
use crate::lease;

/// Moves that could not be put back, at the most: with more, nothing is moved any more.
const MAX_STUCK: usize = 64;

/// A file that was found.
#[derive(Debug)]
pub struct Subject<'a> {
    /// The file that the verdict is about.
    pub file: BorrowedFd<'a>,
    /// Its path, as the kernel names it.
    pub path: &'a Path,
    /// What was found.
    pub found: Found,
}

/// A point that a move has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// The file at the path was the one that was found.
    Looked,
    /// The move is noted.
    Noted,
    /// Something was renamed into the hold.
    Moved,
    /// It is the file that was found.
    Matched,
    /// Its content is sealed and on the disk.
    Sealed,
    /// Its record is there.
    Recorded,
    /// It is gone from the hold.
    Removed,
}

impl Step {
    /// All, in their order.
    pub const ALL: [Self; 7] = [
        Self::Looked,
        Self::Noted,
        Self::Moved,
        Self::Matched,
        Self::Sealed,
        Self::Recorded,
        Self::Removed,
    ];
}

/// Told of each step: tests look at what is there, and end the process.
pub trait Witness {
    /// A move has passed this point.
    fn reached(&self, step: Step);
}

impl Witness for () {
    fn reached(&self, _step: Step) {}
}

/// What is being moved, as it is noted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Move {
    pub(super) id: Uuid,
    pub(super) movement: Movement,
    pub(super) path: PathBytes,
    /// Which file.
    pub(super) place: Place,
    /// The holding folder.
    pub(super) hold: PathBytes,
}

impl Move {
    pub(super) fn file(locked: &Locked, id: Uuid) -> PathBuf {
        locked.moves().join(format!("{id}.json"))
    }

    pub(super) fn held_as(id: Uuid) -> OsString {
        id.to_string().into()
    }

    fn note(&self, locked: &Locked) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        write_atomic(&Self::file(locked, self.id), &text, 0o600).map_err(io::Error::other)?;
        File::open(locked.moves())?.sync_all()
    }

    pub(super) fn forget(&self, locked: &Locked) -> io::Result<()> {
        fs::remove_file(Self::file(locked, self.id))?;
        // Before the hold may go: a note without its hold says nothing.
        File::open(locked.moves())?.sync_all()
    }
}

/// Moves a file; gives its id.
///
/// # Errors
/// Why it stays, or was put back.
pub fn take(
    vault: &Vault,
    movement: Movement,
    subject: &Subject<'_>,
    witness: &dyn Witness,
) -> Result<Uuid, Kept> {
    let locked = vault.lock().map_err(failed("the quarantine"))?;
    if super::vault::named(&locked.moves(), "json")
        .map_err(failed("the quarantine"))?
        .len()
        >= MAX_STUCK
    {
        return Err(Kept::Busy);
    }
    if subject.path.as_os_str().len() > MAX_PATH_BYTES {
        return Err(Kept::NoName);
    }
    let there = fstat(subject.file).map_err(|error| Kept::Failed(error.to_string()))?;
    let place = (there.st_dev, there.st_ino);
    let size = u64::try_from(there.st_size).unwrap_or(0);
    let id = Uuid::new_v4();
    let sealer = match movement {
        Movement::Quarantine => {
            locked.room(size)?;
            let key = locked.key_for_new()?;
            Some(Sealer::new(&key, id).map_err(failed("the key"))?)
        }
        Movement::Delete => None,
    };
    let attributes = Attributes::of(subject.file).map_err(failed("its attributes"))?;
    let named = Named::open(subject.path).map_err(failed("its folder"))?;
    if named.place().map_err(failed("its path"))? != place {
        return Err(Kept::Swapped);
    }
    witness.reached(Step::Looked);
    let hold = Hold::beside(&named, &locked.hold()).map_err(failed("its holding folder"))?;
    let moving = Move {
        id,
        movement,
        path: PathBytes::from_path(subject.path),
        place,
        hold: PathBytes::from_path(&hold.path),
    };
    moving
        .note(&locked)
        .map_err(failed("the note of the move"))?;
    witness.reached(Step::Noted);
    let held = Move::held_as(id);
    if let Err(error) = folders::rename(&named.folder, &named.name, &hold.folder, &held) {
        let _ = moving.forget(&locked);
        hold.clear();
        return Err(Kept::Failed(format!("it cannot be moved: {error}")));
    }
    witness.reached(Step::Moved);
    let taking = Taking {
        locked: &locked,
        moving: &moving,
        named: &named,
        hold: &hold,
    };
    let record = Record {
        version: VERSION,
        id,
        path: moving.path.clone(),
        size,
        links: there.st_nlink,
        attributes,
        found: subject.found.clone(),
        again: None,
    };
    let done = taking.finish(subject, sealer.as_ref(), record, witness);
    hold.clear();
    done.map(|()| id)
}

/// A move whose file is in the hold.
struct Taking<'a> {
    locked: &'a Locked,
    moving: &'a Move,
    named: &'a Named,
    hold: &'a Hold,
}

impl Taking<'_> {
    fn finish(
        &self,
        subject: &Subject<'_>,
        sealer: Option<&Sealer>,
        record: Record,
        witness: &dyn Witness,
    ) -> Result<(), Kept> {
        let id = self.moving.id;
        let held = Move::held_as(id);
        let kept = match folders::place_at(&self.hold.folder, &held) {
            Ok(place) if place == self.moving.place => {
                // Whoever opened it for writing since it was judged has it still.
                (!lease::has_no_writer(subject.file)).then_some(Kept::Writer)
            }
            Ok(_) => Some(Kept::Swapped),
            Err(error) => Some(failed("what was moved")(error)),
        };
        if let Some(kept) = kept {
            return Err(self.put_back(kept));
        }
        witness.reached(Step::Matched);
        if let Some(sealer) = sealer {
            if let Err(kept) = self.seal(subject, sealer, witness) {
                let _ = fs::remove_file(self.locked.content_file(id));
                return Err(self.put_back(kept));
            }
            if let Err(error) = self.locked.put_record(&record) {
                let _ = fs::remove_file(self.locked.record_file(id));
                let _ = fs::remove_file(self.locked.content_file(id));
                return Err(self.put_back(failed("its record")(error)));
            }
            witness.reached(Step::Recorded);
        }
        // From here on it is done, whatever fails: the note has the rest done later.
        let removed = folders::remove(&self.hold.folder, &held)
            .and_then(|()| folders::sync(&self.hold.folder))
            .and_then(|()| folders::sync(&self.named.folder));
        witness.reached(Step::Removed);
        if let Err(error) = removed.and_then(|()| self.moving.forget(self.locked)) {
            tracing::warn!(%id, %error, "what is left of a file in quarantine is removed later");
        }
        Ok(())
    }

    fn seal(
        &self,
        subject: &Subject<'_>,
        sealer: &Sealer,
        witness: &dyn Witness,
    ) -> Result<(), Kept> {
        let at = failed("it cannot be sealed");
        let mut to = self.locked.new_content(self.moving.id).map_err(&at)?;
        let mut from = Reading {
            file: subject.file,
            offset: 0,
        };
        let mut outline = OutlineBuilder::new();
        sealer
            .seal(&mut from, &mut to, &mut |chunk| {
                if chunk.is_empty() {
                    return Ok(());
                }
                outline.push(chunk).map_err(io::Error::other)
            })
            .and_then(|()| to.sync_all())
            .and_then(|()| self.locked.sync())
            .map_err(&at)?;
        if outline.finish().id() != subject.found.content {
            return Err(Kept::Changed);
        }
        witness.reached(Step::Sealed);
        Ok(())
    }

    /// Puts what was moved back; gives what is to be told.
    fn put_back(&self, why: Kept) -> Kept {
        match put_back(self.moving, self.hold, Some(self.named)) {
            Ok(()) => match self.moving.forget(self.locked) {
                Ok(()) => why,
                Err(error) => Kept::Failed(format!("{why}; {error}")),
            },
            Err(error) => {
                let held = self.hold.path.join(Move::held_as(self.moving.id));
                let held = PathBytes::from_path(&held);
                tracing::error!(path = %self.moving.path, %held, %error, "a file cannot be put back; it is tried again");
                Kept::Failed(format!(
                    "{why}; and it cannot be put back ({error}): it is {held}"
                ))
            }
        }
    }
}

/// Puts what is in the hold back to its path; beside it, if something is there by now.
pub(super) fn put_back(moving: &Move, hold: &Hold, named: Option<&Named>) -> io::Result<()> {
    let opened;
    let named = match named {
        Some(named) => named,
        None => {
            opened = Named::open(moving.path.as_path())?;
            &opened
        }
    };
    let held = Move::held_as(moving.id);
    let back = |name: &OsString| folders::rename(&hold.folder, &held, &named.folder, name);
    match back(&named.name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mut beside = OsString::from(format!("palisade-{}-", moving.id.simple()));
            // A name may have 255 bytes; the whole path is in the log.
            if named.name.len() < 200 {
                beside.push(&named.name);
            }
            tracing::warn!(path = %moving.path, name = %beside.to_string_lossy(), "something is at its place by now: it is put beside it");
            back(&beside)
        }
        done => done,
    }?;
    folders::sync(&named.folder)
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> Kept {
    move |error| Kept::Failed(format!("{what}: {error}"))
}

/// Reads a file from its start, wherever others are in it.
struct Reading<'a> {
    file: BorrowedFd<'a>,
    offset: i64,
}

impl Read for Reading<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = pread(self.file.as_fd(), into, self.offset)?;
        self.offset += i64::try_from(read).unwrap_or(0);
        Ok(read)
    }
}
