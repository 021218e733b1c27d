use super::*;
use crate::budget::Budget;
use palisade_protocol::content::OutlineBuilder;
use palisade_protocol::ids::{AgentId, TenantId};
use palisade_protocol::scan::Fragment;
use proptest::prelude::*;
use tokio::io::{DuplexStream, ReadHalf, WriteHalf, duplex, split};

const STALL: Duration = Duration::from_secs(5);

fn outline(bytes: &[u8]) -> Outline {
    let mut builder = OutlineBuilder::new();
    for part in bytes.chunks(FRAGMENT_BYTES as usize) {
        builder.push(part).unwrap();
    }
    builder.finish()
}

fn content(size: usize) -> Vec<u8> {
    (0..size).map(|n| (n / 1000) as u8).collect()
}

fn fragment(bytes: &[u8], index: u32) -> ToSvm {
    let parts: Vec<&[u8]> = bytes.chunks(FRAGMENT_BYTES as usize).collect();
    ToSvm::Fragment(Fragment {
        index,
        bytes: parts[index as usize].to_vec(),
    })
}

type Half = Peer<ReadHalf<DuplexStream>, WriteHalf<DuplexStream>>;

async fn gather(
    gathering: &mut Gathering,
    content: &Outline,
    frames: Vec<ToSvm>,
) -> Result<Vec<u8>, Failure> {
    let (ours, theirs) = duplex(16 << 20);
    let (mut receive_theirs, mut send_theirs) = split(theirs);
    for frame in frames {
        frame::write(&mut send_theirs, &frame).await.unwrap();
    }
    // Drained, and kept open: whoever sends no more stalls.
    let drain = tokio::spawn(async move {
        while let Ok(Some(_)) = frame::read::<ToAgent>(&mut receive_theirs).await {}
        send_theirs
    });
    let (receive, send) = split(ours);
    let mut peer: Half = Peer::new(receive, send, STALL);
    let size = content.size();
    gathering
        .read_outline(content.id(), size, &mut peer)
        .await?;
    begin(gathering, size).await;
    gathering.read_fragments(&mut peer, &mut 0).await?;
    drain.abort();
    Ok(gathering.finish()?.bytes.to_vec().unwrap())
}

async fn begin(gathering: &mut Gathering, size: u64) {
    let (budget, tenant) = (Budget::new(1 << 30, 1 << 30), TenantId::default_tenant());
    let begun = gathering.begin(size, || {
        budget.take(&tenant, AgentId::random(), size, || ())
    });
    begun.await.unwrap();
}

fn values(outline: &Outline) -> ToSvm {
    ToSvm::Outline(List::cut(outline.chaining_values().iter().copied()))
}

#[tokio::test(start_paused = true)]
async fn whole_contents_of_every_shape_are_gathered_in_any_order() {
    for size in [1, 1000, 262_144, 262_145, 524_288, 9_000_001] {
        let bytes = content(size);
        let outline = outline(&bytes);
        let mut frames = Vec::new();
        if outline.fragments() > 1 {
            frames.push(values(&outline));
        }
        let count = outline.fragments() as u32;
        // Backwards within each round.
        for round in (0..count).step_by(ROUND_FRAGMENTS) {
            let end = count.min(round + ROUND_FRAGMENTS as u32);
            frames.extend((round..end).rev().map(|index| fragment(&bytes, index)));
        }
        let got = gather(&mut Gathering::default(), &outline, frames)
            .await
            .unwrap();
        assert!(got == bytes, "{size}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_next_leader_goes_on_where_the_last_one_stopped() {
    let bytes = content(600_000);
    let outline = outline(&bytes);
    let mut gathering = Gathering::default();
    let half = vec![values(&outline), fragment(&bytes, 2)];
    let failure = gather(&mut gathering, &outline, half).await.unwrap_err();
    assert!(
        matches!(failure, Failure::Stalled { waited_s: 5 }),
        "{failure}"
    );
    assert_eq!(gathering.held, [false, false, true]);
    let rest = vec![values(&outline), fragment(&bytes, 0), fragment(&bytes, 1)];
    assert!(gather(&mut gathering, &outline, rest).await.unwrap() == bytes);
}

#[tokio::test(start_paused = true)]
async fn wrong_fragments_are_told_apart() {
    let bytes = content(600_000);
    let outline = outline(&bytes);
    let mut wrong = bytes.clone();
    wrong[300_000] ^= 1;
    let cases: Vec<(&str, Vec<ToSvm>, bool)> = vec![
        ("other bytes", vec![fragment(&wrong, 1)], true),
        (
            "twice",
            vec![fragment(&bytes, 0), fragment(&bytes, 0)],
            false,
        ),
        (
            "out of range",
            vec![ToSvm::Fragment(Fragment {
                index: 3,
                bytes: vec![0; 10],
            })],
            false,
        ),
        (
            "far out of range",
            vec![ToSvm::Fragment(Fragment {
                index: u32::MAX,
                bytes: Vec::new(),
            })],
            false,
        ),
        (
            "too short",
            vec![ToSvm::Fragment(Fragment {
                index: 0,
                bytes: vec![0; 10],
            })],
            false,
        ),
        (
            "empty",
            vec![ToSvm::Fragment(Fragment {
                index: 0,
                bytes: Vec::new(),
            })],
            false,
        ),
        ("another outline", vec![values(&outline)], false),
    ];
    for (name, mut frames, mismatch) in cases {
        frames.insert(0, values(&outline));
        let failure = gather(&mut Gathering::default(), &outline, frames)
            .await
            .unwrap_err();
        assert_eq!(
            matches!(failure, Failure::Mismatch(_)),
            mismatch,
            "{name}: {failure}"
        );
        assert_eq!(
            matches!(failure, Failure::Protocol(_)),
            !mismatch,
            "{name}: {failure}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_outline_of_another_content_is_a_mismatch_before_any_need() {
    let bytes = content(600_000);
    let mut other = bytes.clone();
    other[0] ^= 1;
    let failure = gather(
        &mut Gathering::default(),
        &outline(&bytes),
        vec![values(&outline(&other))],
    )
    .await
    .unwrap_err();
    assert!(matches!(failure, Failure::Mismatch(_)), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn a_drip_of_frames_is_no_rate() {
    let bytes = content(9_000_000);
    let outline = outline(&bytes);
    let (ours, theirs) = duplex(16 << 20);
    let (_receive, mut send_theirs) = split(theirs);
    let (first, dripped) = (values(&outline), bytes.clone());
    let drip = tokio::spawn(async move {
        frame::write(&mut send_theirs, &first).await.unwrap();
        for index in 0..30 {
            // Each within the stall time, all of them far too slow.
            tokio::time::sleep(Duration::from_secs(4)).await;
            let _ = frame::write(&mut send_theirs, &fragment(&dripped, index)).await;
        }
    });
    let (receive, send) = split(ours);
    let mut peer: Half = Peer::new(receive, send, STALL);
    let mut gathering = Gathering::default();
    gathering
        .read_outline(outline.id(), outline.size(), &mut peer)
        .await
        .unwrap();
    begin(&mut gathering, 9_000_000).await;
    let failure = gathering
        .read_fragments(&mut peer, &mut 0)
        .await
        .unwrap_err();
    assert!(matches!(failure, Failure::Stalled { .. }), "{failure}");
    drip.abort();
}

/// A stream on which these frames come, one in so many milliseconds.
fn dripping(frames: Vec<ToSvm>, every_ms: u64) -> Half {
    let (ours, theirs) = duplex(16 << 20);
    tokio::spawn(async move {
        let (_receive, mut send) = split(theirs);
        for frame in frames {
            tokio::time::sleep(Duration::from_millis(every_ms)).await;
            let _ = frame::write(&mut send, &frame).await;
        }
        std::future::pending::<()>().await;
    });
    let (receive, send) = split(ours);
    Peer::new(receive, send, STALL)
}

#[tokio::test(start_paused = true)]
async fn a_drip_of_outlines_is_given_up() {
    let outline = outline(&content(20 << 20));
    let one = |value: &[u8; 32]| ToSvm::Outline(List::cut([*value]));
    let frames: Vec<ToSvm> = outline.chaining_values().iter().map(one).collect();
    assert!(frames.len() > 70);
    // Each within the stall time.
    let mut peer = dripping(frames, 2000);
    let (start, mut gathering) = (Instant::now(), Gathering::default());
    let read = gathering.read_outline(outline.id(), outline.size(), &mut peer);
    let failure = read.await.unwrap_err();
    assert!(matches!(failure, Failure::Stalled { .. }), "{failure}");
    assert!(start.elapsed() < STALL + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn who_is_slow_or_silent_gives_way_to_one_that_waits() {
    let bytes = content(2_000_000);
    let outline = outline(&bytes);
    let patience = Duration::from_secs(1);
    // A frame in these milliseconds, how many wait, and whether it gives way.
    for (every_ms, waiting, gives_way) in [
        (600, 1, true),
        (100, 1, false),
        (600, 0, false),
        (4000, 1, true),
        (4000, 0, false),
    ] {
        let frames = (0..8).map(|index| fragment(&bytes, index)).collect();
        let mut peer = dripping(frames, every_ms);
        peer.others = Some(Others {
            rivals: Rivals::waiting(waiting),
            patience,
        });
        let mut gathering = Gathering {
            outline: Some(outline.clone()),
            ..Gathering::default()
        };
        begin(&mut gathering, outline.size()).await;
        let start = Instant::now();
        let read = gathering.read_fragments(&mut peer, &mut 0).await;
        let gave_way = matches!(read, Err(Failure::HandedOver));
        assert_eq!(gave_way, gives_way, "{every_ms} {waiting}: {read:?}");
        if gave_way {
            assert!(start.elapsed() < 2 * patience, "{every_ms}");
            let kept = gathering.held.iter().filter(|held| **held).count();
            assert_eq!(kept, if every_ms == 600 { 1 } else { 0 });
        }
    }
}

proptest! {
    #[test]
    fn rounds_ask_for_what_lacks_and_for_no_more(held in proptest::collection::vec(any::<bool>(), 0..200)) {
        let (need, count) = ranges(&held);
        let asked: Vec<usize> = need
            .iter()
            .flat_map(|range| range.first..range.first + range.count)
            .map(|index| index as usize)
            .collect();
        let lacks: Vec<usize> =
            (0..held.len()).filter(|index| !held[*index]).take(ROUND_FRAGMENTS).collect();
        prop_assert_eq!(count, asked.len());
        prop_assert_eq!(asked, lacks);
        prop_assert!(need.len() <= MAX_NEED_RANGES);
    }
}
