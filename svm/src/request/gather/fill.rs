//! What is known of a content already, copied into it.
//!
//! From memory as fast as that is; from a disk for as long as it is worth while: one
//! that is slow, or does not answer at all, is left alone, and the rest is asked for.

use std::time::Duration;

use palisade_protocol::content::FRAGMENT_BYTES;
use palisade_worker::client::MemFile;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::{Gathering, no_memory};
use crate::failure::Failure;
use crate::fragments::{Piece, Source, disk};

/// How long a disk with known fragments is waited for, and at which rate it has to
/// give them: it is slower than an agent otherwise.
const DISK_STALL: Duration = Duration::from_secs(1);
const DISK_BYTES_PER_MS: u64 = 32 * 1024;

impl Gathering {
    /// Copies what is known already; gives how many bytes that were. What cannot be
    /// had is left to be asked for.
    ///
    /// # Errors
    /// [`Failure::Memory`] when the kernel gives no pages.
    pub async fn fill(&mut self, mut pieces: Vec<Piece>) -> Result<u64, Failure> {
        let lacks = |piece: &Piece| self.held.get(piece.index as usize) == Some(&false);
        pieces.retain(lacks);
        let in_memory = |piece: &Piece| matches!(piece.source, Source::Memory(_));
        let (memory, disk): (Vec<_>, Vec<_>) = pieces.into_iter().partition(in_memory);
        Ok(self.fill_from_memory(memory).await? + self.fill_from_disk(disk).await?)
    }

    async fn fill_from_memory(&mut self, pieces: Vec<Piece>) -> Result<u64, Failure> {
        if pieces.is_empty() {
            return Ok(0);
        }
        let Some(file) = self.file.take() else {
            return Ok(0);
        };
        let copied =
            tokio::task::spawn_blocking(move || copy(&file, &pieces).map(|copied| (file, copied)));
        // A leader that leaves meanwhile leaves no file: the next one begins anew.
        let (file, (indices, bytes)) = copied
            .await
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(|error| no_memory(&error))?;
        self.file = Some(file);
        for index in indices {
            if let Some(held) = self.held.get_mut(index as usize) {
                *held = true;
            }
        }
        Ok(bytes)
    }

    async fn fill_from_disk(&mut self, pieces: Vec<Piece>) -> Result<u64, Failure> {
        let Some(outline) = &self.outline else {
            return Ok(0);
        };
        let bytes: u64 = pieces.iter().map(|piece| piece.length).sum();
        let within = DISK_STALL + Duration::from_millis(bytes / DISK_BYTES_PER_MS);
        match disk::read(pieces, outline.clone()) {
            Some(reading) => self.fill_within(within, reading).await,
            None => Ok(0),
        }
    }

    /// Takes what is read until nothing more is, or the time is over.
    async fn fill_within(
        &mut self,
        within: Duration,
        mut reading: mpsc::Receiver<(Piece, Vec<u8>)>,
    ) -> Result<u64, Failure> {
        let Some(file) = &self.file else {
            return Ok(0);
        };
        let deadline = Instant::now() + within;
        let mut copied = 0;
        while let Ok(Some((piece, bytes))) = timeout_at(deadline, reading.recv()).await {
            file.write_at(&bytes, piece.offset)
                .map_err(|error| no_memory(&error))?;
            if let Some(held) = self.held.get_mut(piece.index as usize) {
                *held = true;
            }
            copied += bytes.len() as u64;
        }
        Ok(copied)
    }
}

/// Copies what is in memory; gives which fragments that were, and how many bytes.
fn copy(file: &MemFile, pieces: &[Piece]) -> std::io::Result<(Vec<u32>, u64)> {
    let mut buffer = vec![0; FRAGMENT_BYTES as usize];
    let (mut indices, mut bytes) = (Vec::new(), 0);
    for piece in pieces {
        let Source::Memory(source) = &piece.source else {
            continue;
        };
        let part = &mut buffer[..(piece.length.min(FRAGMENT_BYTES)) as usize];
        source.read_exact_at(part, piece.offset)?;
        file.write_at(part, piece.offset)?;
        indices.push(piece.index);
        bytes += part.len() as u64;
    }
    Ok((indices, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::fragments::Kept;
    use palisade_protocol::ids::{AgentId, TenantId};
    use palisade_worker::client::SealedContent;
    use std::sync::Arc;

    const SIZE: u64 = 3 * FRAGMENT_BYTES;

    fn piece(index: u32) -> Piece {
        let bytes = SealedContent::from_bytes(b"held by the test alone").unwrap();
        let share = Budget::new(SIZE, SIZE).spare(1).unwrap();
        Piece {
            index,
            source: Source::Memory(Arc::new(Kept::file(bytes, share))),
            offset: u64::from(index) * FRAGMENT_BYTES,
            length: FRAGMENT_BYTES,
        }
    }

    async fn begun() -> Gathering {
        let budget = Budget::new(SIZE, SIZE);
        let mut gathering = Gathering::default();
        let tenant = TenantId::default_tenant();
        let begun = gathering.begin(SIZE, || {
            budget.take(&tenant, AgentId::random(), SIZE, || ())
        });
        begun.await.unwrap();
        gathering
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_stops_answering_is_waited_for_no_longer_than_it_may() {
        let mut gathering = begun().await;
        let (give, reading) = mpsc::channel(2);
        let bytes = vec![7; FRAGMENT_BYTES as usize];
        give.send((piece(1), bytes)).await.unwrap();
        let start = Instant::now();
        // The sender lives on, and sends nothing more.
        let copied = gathering.fill_within(DISK_STALL, reading).await.unwrap();
        assert_eq!(start.elapsed().as_secs(), DISK_STALL.as_secs());
        assert_eq!(copied, FRAGMENT_BYTES);
        assert_eq!(gathering.held, [false, true, false]);
        assert!(give.is_closed(), "whoever reads is told");
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_is_done_is_not_waited_for() {
        let mut gathering = begun().await;
        let (give, reading) = mpsc::channel(2);
        drop(give);
        let start = Instant::now();
        assert_eq!(gathering.fill_within(DISK_STALL, reading).await.unwrap(), 0);
        assert!(start.elapsed().is_zero());
    }
}
