//! What is done about moves that were cut short, whenever the quarantine is locked.
//!
//! | in the hold | its record | what is done |
//! | --- | --- | --- |
//! | the file that was found | there, and its content opens | removed from the hold: the move is finished |
//! | the file that was found, to be deleted | | removed: the same |
//! | the file that was found | missing | put back |
//! | another file | | put back |
//! | nothing | whichever | the move never began, or was finished |
//!
//! Contents without a record are what a cut move, or a cut removal, left; they go.

use std::fs;
use std::io;

use palisade_protocol::bounded::PathBytes;
use uuid::Uuid;

use super::folders::{self, Hold, Named};
use super::policy::Movement;
use super::take::{self, Move};
use super::vault::{Locked, named};

/// Bytes of a note, at the most: a path's bytes are written as numbers.
const MAX_NOTE_BYTES: u64 = 64 * 1024;

/// Settles everything that was cut short. What cannot be settled now stays noted.
///
/// # Errors
/// When the quarantine's own folders cannot be read.
pub fn sweep(locked: &Locked) -> io::Result<()> {
    for id in named(&locked.moves(), "json")? {
        if let Err(error) = settle(locked, id) {
            tracing::error!(%id, %error, "a move that was cut short cannot be settled yet");
        }
    }
    let moving = named(&locked.moves(), "json")?;
    let records = named(&locked.items(), "record")?;
    for id in named(&locked.items(), "content")? {
        if !records.contains(&id) && !moving.contains(&id) {
            fs::remove_file(locked.content_file(id))?;
        }
    }
    for id in named(&locked.items(), "new")? {
        fs::remove_file(locked.items().join(format!("{id}.new")))?;
    }
    Ok(())
}

fn settle(locked: &Locked, id: Uuid) -> io::Result<()> {
    let file = Move::file(locked, id);
    if fs::metadata(&file)?.len() > MAX_NOTE_BYTES {
        return Err(io::Error::other("its note is too long"));
    }
    let moving: Move = serde_json::from_slice(&fs::read(&file)?)?;
    let hold = match Hold::open(moving.hold.as_path()) {
        Ok(hold) => hold,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // An empty one may have been removed; or its file system is not mounted now.
            let there = Named::open(moving.path.as_path()).and_then(|named| named.place());
            return match there.is_ok_and(|place| place == moving.place) {
                true => moving.forget(locked),
                false => Err(error),
            };
        }
        Err(error) => return Err(error),
    };
    let held = Move::held_as(id);
    match folders::place_at(&hold.folder, &held) {
        Ok(place) => {
            let ours = place == moving.place;
            if ours && (moving.movement == Movement::Delete || is_whole(locked, id)) {
                folders::remove(&hold.folder, &held)?;
                folders::sync(&hold.folder)?;
                tracing::info!(%id, path = %moving.path, "a move that was cut short is finished");
            } else {
                take::put_back(&moving, &hold, None)?;
                discard(locked, id);
                let path: &PathBytes = &moving.path;
                tracing::warn!(%id, %path, "a move was cut short: the file is back at its place");
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    moving.forget(locked)?;
    hold.clear();
    Ok(())
}

/// Whether the quarantine has all of the file, readable.
fn is_whole(locked: &Locked, id: Uuid) -> bool {
    let record = locked.record(id);
    record.is_ok_and(|record| {
        locked
            .content(id, &mut |_| Ok(()))
            .is_ok_and(|content| content == record.found.content)
    })
}

fn discard(locked: &Locked, id: Uuid) {
    // Either may be missing.
    let _ = fs::remove_file(locked.record_file(id));
    let _ = fs::remove_file(locked.content_file(id));
}
