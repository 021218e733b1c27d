//! Memory and disk together, the writer a step at a time.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;

use palisade_protocol::content::{ChainingValue, FRAGMENT_BYTES};
use palisade_protocol::ids::AgentId;
use palisade_worker::client::SealedContent;
use proptest::prelude::*;

use super::disk::{self, Disk};
use super::memory::{self, Tier};
use super::samples::{FRAGMENT, content, key, outline, tenant};
use super::{Bounds, FragmentStore, Loan, Source, writer};
use crate::budget::Budget;
use crate::metrics::{Gauges, Metrics};
use palisade_protocol::problem::Problems;

/// A store whose writer runs when it is told to.
struct Part {
    store: FragmentStore,
    disk: Arc<Disk>,
    budget: Budget,
    metrics: Arc<Metrics>,
    folder: tempfile::TempDir,
}

impl Part {
    /// Room for so many fragments in memory and on disk.
    fn new(memory: u64, on_disk: u64) -> Self {
        let (folder, metrics) = (tempfile::tempdir().unwrap(), Arc::new(Metrics::default()));
        let bytes = on_disk * FRAGMENT_BYTES;
        let disk = Disk::open(&folder.path().join("f"), bytes, Arc::clone(&metrics)).unwrap();
        Self::of(memory, disk, metrics, folder)
    }

    fn of(memory: u64, disk: Arc<Disk>, metrics: Arc<Metrics>, folder: tempfile::TempDir) -> Self {
        let bounds = Bounds {
            bytes: memory * FRAGMENT_BYTES,
            small: 2 * FRAGMENT_BYTES,
        };
        let mut store = FragmentStore::new(bounds);
        store.tier = Some(Tier {
            disk: Arc::clone(&disk),
            wake: sync_channel(1).0,
        });
        let budget = Budget::new(64 << 20, 64 << 20);
        Self {
            store,
            disk,
            budget,
            metrics,
            folder,
        }
    }

    async fn keep(&self, owner: &str, bytes: &[u8]) {
        let tenant = key(owner, bytes).tenant;
        let taken = self
            .budget
            .take(&tenant, AgentId::random(), bytes.len() as u64, || ());
        let share = taken.await.unwrap();
        let sealed = SealedContent::from_bytes(bytes).unwrap();
        let outline = outline(bytes);
        let key = key(owner, bytes);
        self.store.keep(&key, true, outline, sealed, share);
    }

    fn lend(&self, owner: &str, bytes: &[u8]) -> Option<Loan> {
        self.store.lend(&key(owner, bytes))
    }

    fn write(&self) {
        writer::copy_all(&self.store.inner, &self.disk).unwrap();
    }

    /// What can be had of a content: which fragments, from memory and from disk.
    /// Whatever comes has to be right.
    async fn had(&self, owner: &str, bytes: &[u8]) -> (Vec<u32>, Vec<u32>) {
        let outline = outline(bytes);
        let found = self.store.find(&tenant(owner), &outline);
        let is_right = |offset: u64, copy: &[u8]| {
            let start = offset as usize;
            assert!(copy == &bytes[start..start + copy.len()], "other bytes");
        };
        let (mut memory, mut pieces) = (Vec::new(), Vec::new());
        for piece in found {
            match &piece.source {
                Source::Memory(source) => {
                    let mut copy = vec![0; piece.length as usize];
                    source.read_exact_at(&mut copy, piece.offset).unwrap();
                    is_right(piece.offset, &copy);
                    memory.push(piece.index);
                }
                Source::Disk(_) => pieces.push(piece),
            }
        }
        let mut on_disk = Vec::new();
        if let Some(mut reading) = disk::read(pieces, outline) {
            while let Some((piece, copy)) = reading.recv().await {
                assert_eq!(copy.len() as u64, piece.length);
                is_right(piece.offset, &copy);
                on_disk.push(piece.index);
            }
        }
        (memory, on_disk)
    }

    fn events(&self, event: &str) -> u64 {
        let text = self.metrics.text(&Gauges::default(), &Problems::default());
        let name = format!("palisade_svm_fragment_disk_events_total{{event=\"{event}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap().parse().unwrap()
    }
}

#[tokio::test]
async fn what_memory_forgot_is_on_disk_for_its_own_tenant() {
    let part = Part::new(4, 16);
    let (a, b) = (content(&[1, 2, 3], 100), content(&[4, 5, 6], 100));
    part.keep("a", &a).await;
    part.write();
    assert_eq!(part.events("written"), 3);
    assert_eq!(part.had("a", &a).await, (vec![0, 1, 2], vec![]));
    part.keep("a", &b).await;
    assert_eq!(part.store.contents(), 1);
    assert_eq!(part.had("a", &a).await, (vec![], vec![0, 1, 2]));
    let changed = content(&[1, 9, 3], 100);
    assert_eq!(part.had("a", &changed).await, (vec![], vec![0, 2]));
    let shorter = content(&[1, 2, 3], 99);
    assert_eq!(part.had("a", &shorter).await, (vec![], vec![0, 1]));
    assert_eq!(part.had("b", &a).await, (vec![], vec![]));
    assert_eq!(part.events("skipped"), 0);
    assert_eq!(part.store.bytes_on_disk(), a.len() as u64);
}

/// The memory is there at once, whatever the writer does; what it had not written yet
/// is gone, and counted.
#[tokio::test]
async fn memory_that_is_wanted_does_not_wait_for_the_disk() {
    let part = Part::new(8, 16);
    let all = part.budget.free_bytes();
    let (a, b) = (content(&[1, 2, 3], 100), content(&[4, 5, 6], 100));
    part.keep("a", &a).await;
    part.write();
    assert_eq!(part.events("written"), 0, "it is of the younger half");
    part.keep("a", &b).await;
    part.write();
    assert_eq!(part.events("written"), 3, "the older half");
    part.store.make_room(u64::MAX);
    assert_eq!(part.budget.free_bytes(), all);
    assert_eq!(part.had("a", &a).await, (vec![], vec![0, 1, 2]));
    assert_eq!(part.had("a", &b).await, (vec![], vec![]));
    assert_eq!(part.events("skipped"), 3);
    // From here on the young ones are written, too, as long as so little is kept.
    part.keep("a", &b).await;
    part.write();
    part.store.make_room(u64::MAX);
    assert_eq!(part.had("a", &b).await, (vec![], vec![0, 1, 2]));
}

/// The writer is no user: what it copies is forgotten when its memory is wanted, and the
/// memory is counted until the one fragment is copied.
#[tokio::test]
async fn what_is_being_copied_makes_room_and_is_counted_until_it_is_copied() {
    let part = Part::new(4, 16);
    let all = part.budget.free_bytes();
    let bytes = content(&[1, 2, 3], FRAGMENT);
    part.keep("a", &bytes).await;
    let capacity = part.disk.capacity();
    let next = || memory::locked(&part.store.inner).next_copy(capacity);
    let copying = next().unwrap();
    part.store.make_room(1);
    assert_eq!((part.store.contents(), part.store.bytes()), (0, 0));
    assert_eq!(part.events("skipped"), 3);
    assert_eq!(part.budget.free_bytes(), all - bytes.len() as u64);
    let mut copy = vec![0; FRAGMENT];
    copying.bytes.read_exact_at(&mut copy, 0).unwrap();
    assert!(copy == bytes[..FRAGMENT]);
    drop(copying);
    assert_eq!(part.budget.free_bytes(), all);
    assert!(next().is_none());
    // It was on loan: that is a use, and it stays.
    part.keep("a", &bytes).await;
    let (loan, copying) = (part.lend("a", &bytes).unwrap(), next().unwrap());
    drop(copying);
    part.store.make_room(u64::MAX);
    assert_eq!(part.store.contents(), 1);
    drop(loan);
    part.store.make_room(u64::MAX);
    assert_eq!(part.budget.free_bytes(), all);
}

#[tokio::test]
async fn what_is_on_loan_is_copied_and_found_on_disk_when_it_is_back_and_forgotten() {
    let part = Part::new(4, 16);
    let bytes = content(&[1, 2, 3], 100);
    part.keep("a", &bytes).await;
    let loan = part.lend("a", &bytes).unwrap();
    part.write();
    assert_eq!(part.events("written"), 3);
    part.store.make_room(u64::MAX);
    assert_eq!(part.had("a", &bytes).await, (vec![0, 1, 2], vec![]));
    drop(loan);
    part.store.make_room(u64::MAX);
    assert_eq!(part.had("a", &bytes).await, (vec![], vec![0, 1, 2]));
    assert!(part.lend("a", &bytes).is_none(), "fragments are no content");
    assert!(part.store.called_clean().is_empty());
    // Scanned once more, and kept once more: nothing is written twice.
    part.keep("a", &bytes).await;
    part.write();
    assert_eq!(part.events("written"), 3);
}

#[tokio::test]
async fn contents_of_one_fragment_are_none_of_the_disks() {
    let part = Part::new(8, 16);
    let all = part.budget.free_bytes();
    for name in 1..=2 {
        part.keep("a", &content(&[name], FRAGMENT)).await;
    }
    part.write();
    assert_eq!(part.events("written"), 0);
    // Of the room that they leave to large ones the older half is copied.
    part.keep("a", &content(&[3, 4, 5, 6], FRAGMENT)).await;
    part.write();
    assert_eq!(part.events("written"), 4);
    part.keep("a", &content(&[7, 8], FRAGMENT)).await;
    part.write();
    assert_eq!(part.events("written"), 4, "it is of the younger half");
    part.store.make_room(6 * FRAGMENT_BYTES);
    assert_eq!(part.store.contents(), 2, "large ones go first");
    assert_eq!(part.events("skipped"), 2);
    // The pressure changes nothing for small ones.
    part.write();
    part.store.make_room(u64::MAX);
    assert_eq!(part.budget.free_bytes(), all);
    assert_eq!((part.events("written"), part.events("skipped")), (4, 2));
    assert_eq!(part.store.bytes_on_disk(), 4 * FRAGMENT_BYTES);
}

#[tokio::test]
async fn of_the_next_version_only_what_changed_is_written() {
    let part = Part::new(4, 5);
    part.keep("a", &content(&[1, 2, 3, 4], FRAGMENT)).await;
    part.write();
    let next = content(&[1, 9, 3, 4], FRAGMENT);
    part.keep("a", &next).await;
    part.write();
    assert_eq!(part.events("written"), 5);
    part.keep("a", &content(&[7, 8, 9], FRAGMENT)).await;
    part.write();
    // The old version's own fragment went first, and then the rest of it all.
    assert_eq!(part.events("written"), 8);
    let (_, on_disk) = part.had("a", &next).await;
    assert!(on_disk.is_empty(), "{on_disk:?}");
}

/// Every kind of damage: nothing wrong comes, it is counted, and the slot is free.
#[tokio::test]
async fn a_damaged_disk_gives_nothing_but_what_was_there() {
    type Damage = fn(&File);
    let flip: Damage = |file| {
        for slot in 0..3 {
            let (mut byte, place) = ([0], slot * FRAGMENT_BYTES + 50);
            file.read_exact_at(&mut byte, place).unwrap();
            byte[0] ^= 4;
            file.write_all_at(&byte, place).unwrap();
        }
    };
    let swap: Damage = |file| {
        let mut slots = [vec![0; FRAGMENT], vec![0; FRAGMENT], vec![0; 100]];
        for (slot, bytes) in (0..).zip(&mut slots) {
            file.read_exact_at(bytes, slot * FRAGMENT_BYTES).unwrap();
        }
        file.write_all_at(&slots[0], FRAGMENT_BYTES).unwrap();
        file.write_all_at(&slots[1], 0).unwrap();
        file.write_all_at(&slots[0][..100], 2 * FRAGMENT_BYTES)
            .unwrap();
    };
    let cut: Damage = |file| file.set_len(0).unwrap();
    for (name, damage, event) in [
        ("flip", flip, "damaged"),
        ("swap", swap, "damaged"),
        ("cut", cut, "failed"),
    ] {
        let part = Part::new(3, 16);
        let bytes = content(&[1, 2, 3], 100);
        part.keep("a", &bytes).await;
        part.write();
        part.store.make_room(u64::MAX);
        assert_eq!(part.had("a", &bytes).await.1, [0, 1, 2], "{name}: control");
        damage(part.disk.file());
        assert_eq!(part.had("a", &bytes).await, (vec![], vec![]), "{name}");
        assert_eq!(part.events(event), 3, "{name}");
        assert_eq!(part.disk.bytes(), 0, "{name}: the slots are free");
        assert!(part.store.find(&tenant("a"), &outline(&bytes)).is_empty());
        // And from then on it works again.
        part.keep("a", &bytes).await;
        part.write();
        part.store.make_room(u64::MAX);
        assert_eq!(part.had("a", &bytes).await.1, [0, 1, 2], "{name}");
    }
}

#[tokio::test]
async fn a_full_disk_costs_fragments_and_nothing_else() {
    let (folder, metrics) = (tempfile::tempdir().unwrap(), Arc::new(Metrics::default()));
    let full = File::options()
        .read(true)
        .write(true)
        .open("/dev/full")
        .unwrap();
    let disk = Disk::on(full, 16, Arc::clone(&metrics)).unwrap();
    let part = Part::of(4, disk, metrics, folder);
    let bytes = content(&[1, 2, 3], 100);
    part.keep("a", &bytes).await;
    let error = writer::copy_all(&part.store.inner, &part.disk).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    assert_eq!((part.events("failed"), part.events("written")), (1, 0));
    assert_eq!(part.had("a", &bytes).await, (vec![0, 1, 2], vec![]));
    part.store.make_room(u64::MAX);
    assert_eq!(part.had("a", &bytes).await, (vec![], vec![]));
    assert_eq!(part.disk.bytes(), 0);
}

#[test]
fn the_folder_is_nobody_elses_and_the_file_has_no_name() {
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("state/fragments");
    std::fs::create_dir_all(&own).unwrap();
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::write(own.join("left"), "by a daemon that was killed").unwrap();
    std::fs::create_dir(own.join("lost+found")).unwrap();
    let _disk = Disk::open(&own, 1 << 20, Arc::default()).unwrap();
    let mode = own.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    let names: Vec<_> = own.read_dir().unwrap().flatten().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    let file = folder.path().join("no-folder");
    std::fs::write(&file, "").unwrap();
    assert!(Disk::open(&file, 1 << 20, Arc::default()).is_err());
}

#[test]
fn the_thread_writes_and_ends_with_its_store() {
    let (folder, metrics) = (tempfile::tempdir().unwrap(), Arc::new(Metrics::default()));
    let disk = Disk::open(folder.path(), 4 << 20, Arc::clone(&metrics)).unwrap();
    let bounds = Bounds {
        bytes: 4 * FRAGMENT_BYTES,
        small: 0,
    };
    let store = FragmentStore::with_disk(bounds, Arc::clone(&disk)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let bytes = content(&[1, 2, 3], 100);
    let budget = Budget::new(64 << 20, 64 << 20);
    let key = key("a", &bytes);
    let taken = budget.take(&key.tenant, AgentId::random(), bytes.len() as u64, || ());
    let share = runtime.block_on(taken);
    let sealed = SealedContent::from_bytes(&bytes).unwrap();
    store.keep(&key, true, outline(&bytes), sealed, share.unwrap());
    wait_until(|| disk.bytes() == bytes.len() as u64);
    assert_eq!(store.bytes_on_disk(), bytes.len() as u64);
    drop(store);
    // The thread's was the last other reference.
    wait_until(|| Arc::strong_count(&disk) == 1);
}

fn wait_until(done: impl Fn() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !done() {
        assert!(std::time::Instant::now() < end, "never");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Against a map of what each tenant sent: whatever is found, in memory or on disk, is
    /// what it sent itself, whatever is lent and copied meanwhile; the bounds hold; all
    /// memory is counted; and what was kept last is found whole.
    #[test]
    fn whatever_is_found_is_what_the_tenant_itself_sent(
        on_disk in 4..12_u64,
        steps in prop::collection::vec(
            (
                0..2_usize,
                prop::collection::vec(0..4_u8, 1..5),
                1..FRAGMENT,
                any::<bool>(),
                0..4_u64,
                0..4_u8,
            ),
            1..14,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let part = Part::new(6, on_disk);
            let mut sent: HashMap<(&str, ChainingValue), Vec<u8>> = HashMap::new();
            let (mut lent, mut copied) = (Vec::new(), Vec::new());
            for (owner, names, tail, write, wanted, then) in steps {
                let owner = ["a", "b"][owner];
                let bytes = content(&names, tail);
                let values = outline(&bytes).chaining_values().to_vec();
                let (memory, disk) = part.had(owner, &bytes).await;
                for index in memory.iter().chain(&disk) {
                    let known = sent.get(&(owner, values[*index as usize]));
                    let part = bytes.chunks(FRAGMENT).nth(*index as usize);
                    assert_eq!(known.map(Vec::as_slice), part, "not this tenant's");
                }
                let in_use = !lent.is_empty();
                part.keep(owner, &bytes).await;
                for (value, part) in values.into_iter().zip(bytes.chunks(FRAGMENT)) {
                    sent.insert((owner, value), part.to_vec());
                }
                if write {
                    part.write();
                }
                match then {
                    0 => lent.extend(part.lend(owner, &bytes)),
                    1 => lent.clear(),
                    2 => copied.extend(memory::locked(&part.store.inner).next_copy(on_disk as usize)),
                    _ => copied.clear(),
                }
                part.store.make_room(wanted * FRAGMENT_BYTES / 2);
                assert!(part.store.bytes() <= 6 * FRAGMENT_BYTES);
                assert!(part.store.bytes_on_disk() <= on_disk * FRAGMENT_BYTES);
                if wanted == 0 && names.len() > 1 && !in_use {
                    let (memory, _) = part.had(owner, &bytes).await;
                    assert_eq!(memory.len(), bytes.chunks(FRAGMENT).count());
                }
                let used = part.budget.total_bytes() - part.budget.free_bytes();
                assert!(used >= part.store.bytes());
                if lent.is_empty() && copied.is_empty() {
                    assert_eq!(used, part.store.bytes());
                }
            }
            drop((lent, copied));
            part.store.make_room(u64::MAX);
            assert_eq!(part.budget.free_bytes(), part.budget.total_bytes());
            let length = part.disk.file().metadata().unwrap().len();
            assert!(length <= on_disk * FRAGMENT_BYTES);
            assert_eq!(part.events("damaged") + part.events("failed"), 0);
            let names = part.folder.path().join("f").read_dir().unwrap().count();
            assert_eq!(names, 0);
        });
    }
}
