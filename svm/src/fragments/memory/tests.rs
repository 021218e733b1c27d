//! Memory alone, without a disk behind it.

use super::*;
use crate::budget::Budget;
use crate::fragments::samples::{FRAGMENT, content, key, outline, tenant};
use palisade_protocol::content::{ContentId, FRAGMENT_BYTES};
use palisade_protocol::ids::AgentId;
use palisade_protocol::scan::ScanOptions;
use proptest::prelude::*;

fn large(bytes: u64) -> FragmentStore {
    FragmentStore::new(Bounds { bytes, small: 0 })
}

async fn keep_as(store: &FragmentStore, budget: &Budget, key: &Key, clean: bool, bytes: &[u8]) {
    let share = budget
        .take(&key.tenant, AgentId::random(), key.size, || ())
        .await
        .unwrap();
    let sealed = SealedContent::from_bytes(bytes).unwrap();
    store.keep(key, clean, outline(bytes), sealed, share);
}

async fn keep(store: &FragmentStore, budget: &Budget, owner: &str, bytes: &[u8]) {
    keep_as(store, budget, &key(owner, bytes), true, bytes).await;
}

fn indices(store: &FragmentStore, owner: &str, bytes: &[u8]) -> Vec<u32> {
    let found = store.find(&tenant(owner), &outline(bytes));
    for piece in &found {
        let mut copy = vec![0; piece.length as usize];
        let Source::Memory(source) = &piece.source else {
            panic!("there is no disk");
        };
        source.read_exact_at(&mut copy, piece.offset).unwrap();
        let start = piece.offset as usize;
        assert_eq!(
            copy,
            bytes[start..start + copy.len()],
            "another fragment's bytes"
        );
    }
    found.iter().map(|piece| piece.index).collect()
}

#[tokio::test]
async fn what_stayed_in_its_place_is_found_by_its_own_tenant_alone() {
    let (store, budget) = (large(64 << 20), Budget::new(64 << 20, 64 << 20));
    keep(&store, &budget, "a", &content(&[1, 2, 3, 4], 100)).await;
    assert_eq!(
        indices(&store, "a", &content(&[1, 9, 3, 4], 100)),
        [0, 2, 3]
    );
    assert_eq!(indices(&store, "a", &content(&[1, 9, 3, 4], 99)), [0, 2]);
    assert_eq!(indices(&store, "a", &content(&[2, 1, 3, 4], 100)), [2, 3]);
    assert!(indices(&store, "b", &content(&[1, 2, 3, 4], 100)).is_empty());
}

#[tokio::test]
async fn the_newest_version_takes_the_place_of_the_one_before() {
    let (store, budget) = (large(64 << 20), Budget::new(64 << 20, 64 << 20));
    keep(&store, &budget, "a", &content(&[1, 2, 3, 4], FRAGMENT)).await;
    keep(&store, &budget, "a", &content(&[1, 9, 3, 4], FRAGMENT)).await;
    assert_eq!(store.contents(), 1);
    assert_eq!(
        indices(&store, "a", &content(&[1, 2, 3, 4], FRAGMENT)),
        [0, 2, 3]
    );
}

#[tokio::test]
async fn memory_that_is_wanted_is_given_back_oldest_first() {
    let size = 2 * FRAGMENT_BYTES;
    let budget = Budget::new(4 * size, size);
    let store = large(3 * size);
    for name in [1, 3, 5, 7] {
        keep(&store, &budget, "a", &content(&[name, name + 1], FRAGMENT)).await;
    }
    assert_eq!((store.contents(), store.bytes()), (3, 3 * size));
    assert!(indices(&store, "a", &content(&[1, 2], FRAGMENT)).is_empty());
    // Its use makes the content with 3 the newest.
    assert_eq!(indices(&store, "a", &content(&[3, 4], FRAGMENT)), [0, 1]);
    store.make_room(1);
    assert!(indices(&store, "a", &content(&[5, 6], FRAGMENT)).is_empty());
    assert_eq!(indices(&store, "a", &content(&[3, 4], FRAGMENT)), [0, 1]);
    store.make_room(u64::MAX);
    assert_eq!((store.contents(), store.bytes()), (0, 0));
    assert_eq!(budget.free_bytes(), 4 * size, "every share came back");
    let inner = store.inner();
    assert!(inner.places.is_empty() && inner.ids.is_empty() && inner.large.order.is_empty());
}

#[tokio::test]
async fn small_contents_are_kept_apart_and_forgotten_last() {
    let page = 4096;
    let budget = Budget::new(64 << 20, 1 << 20);
    let bounds = Bounds {
        bytes: 4 * FRAGMENT_BYTES,
        small: 3 * page,
    };
    let store = FragmentStore::new(bounds);
    let small = |n: u8| vec![n; 100 + usize::from(n)];
    for n in 1..=3 {
        keep(&store, &budget, "a", &small(n)).await;
    }
    let big = content(&[1, 2], FRAGMENT);
    keep(&store, &budget, "a", &big).await;
    assert_eq!(store.contents(), 4);
    assert_eq!(store.bytes(), 3 * page + 2 * FRAGMENT_BYTES);
    // Its own kind makes room, and what is scanned again is the newest.
    keep(&store, &budget, "a", &small(1)).await;
    keep(&store, &budget, "a", &small(4)).await;
    let names = store.called_clean();
    assert_eq!(
        names,
        [small(4), small(1), big.clone(), small(3)].map(|bytes| key("a", &bytes))
    );
    for name in &names {
        let loan = store.lend(name).unwrap();
        let bytes = loan.sealed().unwrap().to_vec().unwrap();
        assert_eq!(ContentId::of(&bytes), name.content);
        assert_eq!(loan.copies_bytes() == 0, name.size > FRAGMENT_BYTES);
    }
    assert!(store.lend(&key("b", &small(4))).is_none(), "another tenant");
    assert!(store.lend(&key("a", &small(2))).is_none(), "forgotten");
    store.make_room(1);
    assert_eq!((store.contents(), store.bytes()), (3, 3 * page));
    store.make_room(2 * page);
    assert_eq!(store.called_clean(), [key("a", &small(4))]);
    // Above its bound none is kept.
    keep(&store, &budget, "a", &vec![9; 4 * page as usize]).await;
    assert_eq!(store.contents(), 1);
    store.make_room(u64::MAX);
    assert_eq!(budget.free_bytes(), budget.total_bytes());
}

#[tokio::test]
async fn what_is_called_clean_is_the_last_word_by_each_option() {
    let (store, budget) = (
        FragmentStore::new(Bounds {
            bytes: 64 << 20,
            small: 1 << 20,
        }),
        Budget::new(64 << 20, 64 << 20),
    );
    for bytes in [vec![1; 100], content(&[1, 2, 3], 7)] {
        let plain = key("a", &bytes);
        let deep = Key {
            options: ScanOptions {
                pua: true,
                ..plain.options
            },
            ..plain.clone()
        };
        keep_as(&store, &budget, &plain, true, &bytes).await;
        keep_as(&store, &budget, &deep, true, &bytes).await;
        let of = |named: &Key| store.called_clean().contains(named);
        assert!(of(&plain) && of(&deep));
        keep_as(&store, &budget, &deep, false, &bytes).await;
        assert!(of(&plain) && !of(&deep));
    }
    assert_eq!(store.contents(), 2);
}

/// Memory on loan is counted, and never given away twice.
#[tokio::test]
async fn what_is_on_loan_is_counted_until_it_is_back() {
    let size = 2 * FRAGMENT_BYTES;
    let budget = Budget::new(4 * size, size);
    let store = large(3 * size);
    let contents = [1, 3, 5].map(|name| content(&[name, name + 1], FRAGMENT));
    for bytes in &contents {
        keep(&store, &budget, "a", bytes).await;
    }
    let loan = store.lend(&key("a", &contents[0])).unwrap();
    // The oldest is in use: the next one makes room.
    store.make_room(1);
    assert_eq!(budget.free_bytes(), 2 * size);
    assert!(store.lend(&key("a", &contents[1])).is_none());
    store.make_room(u64::MAX);
    assert_eq!((store.contents(), budget.free_bytes()), (1, 3 * size));
    // Another copy of it takes its place, and both are counted while both are there.
    keep(&store, &budget, "a", &contents[0]).await;
    assert_eq!((store.contents(), budget.free_bytes()), (1, 2 * size));
    drop(loan);
    assert_eq!(budget.free_bytes(), 3 * size);
    // Nothing can be kept beyond the bound while what is kept is in use.
    let loans: Vec<Loan> = contents
        .iter()
        .filter_map(|bytes| store.lend(&key("a", bytes)))
        .collect();
    assert_eq!(loans.len(), 1);
    let tight = large(size);
    keep(&tight, &budget, "a", &contents[1]).await;
    let _loan = tight.lend(&key("a", &contents[1])).unwrap();
    keep(&tight, &budget, "a", &contents[2]).await;
    assert!(tight.lend(&key("a", &contents[2])).is_none());
    assert_eq!(tight.bytes(), size);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    /// Whatever comes and is lent: the bounds hold, the indices agree, the bytes are the
    /// right ones, and all memory that is used is counted.
    #[test]
    fn it_stays_within_its_bound_and_true(
        steps in prop::collection::vec(
            (0..2_usize, prop::collection::vec(0..4_u8, 1..5), 1..FRAGMENT, any::<bool>(), 0..3_u8),
            1..16,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let budget = Budget::new(64 << 20, 64 << 20);
            let bounds = Bounds { bytes: 10 * FRAGMENT_BYTES, small: 2 * FRAGMENT_BYTES };
            let store = FragmentStore::new(bounds);
            let mut lent: Vec<(Key, Loan)> = Vec::new();
            for (owner, names, tail, clean, then) in steps {
                let owner = ["a", "b"][owner];
                let bytes = content(&names, tail);
                indices(&store, owner, &bytes);
                let named = key(owner, &bytes);
                let on_loan = !lent.is_empty();
                keep_as(&store, &budget, &named, clean, &bytes).await;
                assert_eq!(store.called_clean().contains(&named), clean && store.lend(&named).is_some());
                if names.len() > 1 && !on_loan {
                    let all = (0..names.len() as u32).collect::<Vec<_>>();
                    assert_eq!(indices(&store, owner, &bytes), all);
                }
                match then {
                    0 => lent.extend(store.lend(&named).map(|loan| (named, loan))),
                    1 => { lent.pop(); }
                    _ => store.make_room(tail as u64),
                }
                for (named, loan) in &lent {
                    let bytes = loan.sealed().unwrap().to_vec().unwrap();
                    assert_eq!(outline(&bytes).id(), named.content);
                }
                let inner = store.inner();
                assert!(inner.bytes() <= bounds.bytes && inner.small.bytes <= bounds.small);
                let shelved = inner.large.order.len() + inner.small.order.len();
                assert_eq!((shelved, inner.ids.len()), (inner.contents.len(), inner.contents.len()));
                let sum: u64 = inner.contents.values().map(|held| held.kept.held_bytes()).sum();
                assert_eq!(inner.bytes(), sum);
                let used = budget.total_bytes() - budget.free_bytes();
                assert!(used >= sum);
                for (tenant, places) in &inner.places {
                    for content in places.values() {
                        assert_eq!(&inner.contents[content].tenant, tenant);
                    }
                }
            }
            lent.clear();
            store.make_room(u64::MAX);
            assert_eq!((store.contents(), budget.free_bytes()), (0, budget.total_bytes()));
        });
    }
}
