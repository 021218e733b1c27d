//! Fragments verify alone and merge to BLAKE3's own hash, for any content.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic fails the test"
)]

use palisade_protocol::content::{
    ContentError, ContentId, FRAGMENT_BYTES, MAX_CONTENT_BYTES, Outline, OutlineBuilder,
    fragment_count,
};
use proptest::prelude::*;

fn outline(bytes: &[u8]) -> Outline {
    let mut builder = OutlineBuilder::new();
    for fragment in bytes.chunks(FRAGMENT_BYTES as usize) {
        builder.push(fragment).unwrap();
    }
    builder.finish()
}

fn content(size: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

fn sizes() -> impl Strategy<Value = usize> {
    let f = FRAGMENT_BYTES as usize;
    prop_oneof![
        0..3usize,
        (0..8usize, -2..3i64).prop_map(move |(n, d)| (n * f).saturating_add_signed(d as isize)),
        0..6 * f,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn the_id_is_blake3s_hash(size in sizes(), seed: u64) {
        let bytes = content(size, seed);
        let outline = outline(&bytes);
        prop_assert_eq!(outline.id(), ContentId::of(&bytes));
        prop_assert_eq!(outline.size(), size as u64);
        let again = Outline::verify(outline.id(), outline.size(), outline.chaining_values().to_vec());
        prop_assert_eq!(again.as_ref(), Ok(&outline));
    }

    #[test]
    fn each_fragment_verifies_alone_and_no_other_in_its_place(size in sizes(), seed: u64, flip: prop::sample::Index) {
        let bytes = content(size, seed);
        let outline = outline(&bytes);
        for (index, fragment) in bytes.chunks(FRAGMENT_BYTES as usize).enumerate() {
            let index = index as u32;
            prop_assert_eq!(outline.verify_fragment(index, fragment), Ok(()));
            let mut changed = fragment.to_vec();
            let at = flip.index(changed.len());
            changed[at] ^= 1;
            prop_assert_eq!(
                outline.verify_fragment(index, &changed),
                Err(ContentError::FragmentMismatch { index, id: outline.id() })
            );
            let shorter = outline.verify_fragment(index, &fragment[1..]);
            let refused = matches!(shorter, Err(ContentError::FragmentLength { .. }));
            prop_assert!(refused);
        }
        let beyond = outline.verify_fragment(outline.fragments() as u32, b"x");
        let refused = matches!(beyond, Err(ContentError::NoSuchFragment { .. }));
        prop_assert!(refused);
    }

    #[test]
    fn a_changed_outline_is_refused(size in (FRAGMENT_BYTES as usize + 1)..6 * FRAGMENT_BYTES as usize, seed: u64, at: prop::sample::Index, byte in 0..32usize) {
        let outline = outline(&content(size, seed));
        let mut values = outline.chaining_values().to_vec();
        let index = at.index(values.len());
        values[index][byte] ^= 0x80;
        prop_assert_eq!(
            Outline::verify(outline.id(), outline.size(), values),
            Err(ContentError::OutlineMismatch(outline.id()))
        );
    }

    #[test]
    fn any_claim_is_answered_without_panic(size: u64, id: [u8; 32], values in prop::collection::vec(any::<[u8; 32]>(), 0..9), index: u32, bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        if let Ok(outline) = Outline::verify(ContentId(id), size, values) {
            let _ = outline.verify_fragment(index, &bytes);
        }
    }
}

#[test]
fn a_size_lie_within_the_last_fragment_is_found_by_its_bytes() {
    let bytes = content(2 * FRAGMENT_BYTES as usize - 10, 7);
    let honest = outline(&bytes);
    // One byte more gives as many fragments, so the outline itself still fits.
    let lie = Outline::verify(
        honest.id(),
        honest.size() + 1,
        honest.chaining_values().to_vec(),
    )
    .unwrap();
    let last = &bytes[FRAGMENT_BYTES as usize..];
    let mut padded = last.to_vec();
    padded.push(0);
    assert!(lie.verify_fragment(1, last).is_err());
    assert!(lie.verify_fragment(1, &padded).is_err());
}

#[test]
fn a_builder_refuses_what_blake3_would_panic_on() {
    let mut builder = OutlineBuilder::new();
    assert!(builder.push(b"").is_err());
    assert!(builder.push(&vec![0; FRAGMENT_BYTES as usize + 1]).is_err());
    builder.push(b"short, so the last").unwrap();
    assert!(builder.push(b"more").is_err());
}

#[test]
fn sizes_above_the_bound_have_no_fragments() {
    assert_eq!(fragment_count(0), Ok(0));
    assert_eq!(fragment_count(MAX_CONTENT_BYTES), Ok(8192));
    assert_eq!(
        fragment_count(MAX_CONTENT_BYTES + 1),
        Err(ContentError::TooLarge(MAX_CONTENT_BYTES + 1))
    );
}
