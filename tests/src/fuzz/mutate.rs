//! Mutations of bytes: what libFuzzer does, in small, on the stable toolchain.

use rand::Rng;

/// Most changes in one mutation.
const MAX_CHANGES: usize = 6;
/// Longest stretch that is copied or cut out, in bytes.
const MAX_STRETCH: usize = 64;
/// Values where encodings change their length, and where signs and sums turn over.
const EDGES: [&[u8]; 10] = [
    &[0],
    &[0x7f],
    &[0x80],
    &[250],
    &[251, 255, 255],
    &[252, 255, 255, 255, 255],
    &[253, 255, 255, 255, 255, 255, 255, 255, 255],
    &[254],
    &[255; 4],
    &[255; 16],
];

/// Changes bytes in a few places; `others` lends stretches.
pub fn mutate(rng: &mut impl Rng, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    // Mostly few: of much that is changed the first place alone is looked at.
    let changes = rng.random_range(1..=MAX_CHANGES);
    for _ in 0..rng.random_range(1..=changes) {
        change(rng, bytes, others);
    }
}

fn change(rng: &mut impl Rng, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
    if bytes.is_empty() {
        bytes.push(rng.random());
        return;
    }
    let at = rng.random_range(0..bytes.len());
    let stretch = rng.random_range(0..=MAX_STRETCH.min(bytes.len() - at));
    match rng.random_range(0..8) {
        0 => bytes[at] ^= 1 << rng.random_range(0..8),
        1 => bytes[at] = rng.random(),
        2 => bytes.truncate(at),
        3 => bytes.insert(at, rng.random()),
        4 => drop(bytes.drain(at..at + stretch)),
        5 => {
            let copy = bytes[at..at + stretch].to_vec();
            let to = rng.random_range(0..=bytes.len());
            bytes.splice(to..to, copy);
        }
        6 => {
            let edge = EDGES[rng.random_range(0..EDGES.len())];
            let end = bytes.len().min(at + edge.len());
            bytes.splice(at..end, edge.iter().copied());
        }
        _ => {
            let Some(other) = others.get(rng.random_range(0..others.len().max(1))) else {
                return;
            };
            let from = rng.random_range(0..=other.len());
            let end = other.len().min(from + MAX_STRETCH);
            bytes.splice(at..at + stretch, other[from..end].iter().copied());
        }
    }
}
