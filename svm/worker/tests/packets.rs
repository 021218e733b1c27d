//! Packets: what is refused, and that refusing it costs nothing.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic here is a failed test"
)]

use palisade_worker::ipc::{Channel, IpcError, decode, encode};
use palisade_worker::message::{
    DefinitionProblem, Detail, Loaded, MAX_METADATA, MAX_NAMES, MAX_PACKET, MAX_PROBLEMS,
    MemberName, Message, Metadatum, Name, NotScanned, Outcome, ScanDone, ScanOptions, WorkerEvent,
    WorkerExit, WorkerRequest, ZygoteEvent, ZygoteRequest,
};
use palisade_worker::text::Text;
use proptest::prelude::*;
use std::fmt::Debug;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

fn round_trip<M: Message + PartialEq + Debug>(message: &M) {
    let packet = encode(message).unwrap();
    assert!(packet.len() <= MAX_PACKET);
    assert_eq!(&decode::<M>(&packet).unwrap(), message);
    // Every shorter packet is a different message or none; a longer one is none.
    let mut longer = packet.clone();
    longer.push(0);
    assert!(matches!(decode::<M>(&longer), Err(IpcError::Malformed(_))));
    for cut in 0..packet.len() {
        assert!(
            matches!(decode::<M>(&packet[..cut]), Err(IpcError::Malformed(_))),
            "{cut}"
        );
    }
}

fn done(outcome: Outcome) -> WorkerEvent {
    WorkerEvent::Done(ScanDone {
        request: u64::MAX,
        outcome,
        members_truncated: true,
        cpu_ms: 1,
        wall_ms: 2,
    })
}

fn metadatum() -> Metadatum {
    Metadatum {
        key: Text::lossy(&[b'k'; 99]),
        value: Text::lossy(&[b'v'; 999]),
    }
}

#[test]
fn every_message_makes_the_round_trip() {
    let problem = DefinitionProblem {
        file: Detail::lossy(&[b'f'; 9999]),
        line: Some(u32::MAX),
        message: Detail::lossy(&[b'm'; 9999]),
    };
    round_trip(&ZygoteRequest::Spawn { worker: 7 });
    round_trip(&ZygoteRequest::Kill { worker: u64::MAX });
    // The largest that the bounds allow fits into a packet.
    let problems = vec![problem; MAX_PROBLEMS];
    round_trip(&ZygoteEvent::LoadFailed {
        problems: problems[..1].to_vec(),
    });
    assert!(
        encode(&ZygoteEvent::LoadFailed {
            problems: problems.clone()
        })
        .is_ok()
    );
    let loaded = Loaded {
        engine: "clamav".into(),
        engine_version: "1.4".into(),
        signatures: 1 << 40,
        load_ms: 3,
        warnings: problems,
    };
    assert!(encode(&ZygoteEvent::Loaded(loaded)).is_ok());
    round_trip(&ZygoteEvent::Exited {
        worker: 1,
        exit: WorkerExit::Signal(9),
    });
    round_trip(&WorkerRequest::Scan {
        request: 1,
        size: 2,
        options: ScanOptions::default(),
    });
    round_trip(&done(Outcome::NotScanned {
        reason: NotScanned::Limit { which: "x".into() },
    }));
    let names = vec![Name::lossy(&[b'n'; 999]); MAX_NAMES];
    assert!(
        encode(&done(Outcome::Found {
            names,
            member: MemberName::lossy(&[b'm'; 999]),
            metadata: vec![metadatum(); MAX_METADATA],
            suspicious: false
        }))
        .is_ok()
    );
}

#[test]
fn bounds_hold_on_both_sides() {
    let names = |count| vec![Name::from("n"); count];
    let metadata = |count| vec![metadatum(); count];
    for (names, metadata) in [
        (names(MAX_NAMES + 1), metadata(0)),
        (names(0), metadata(0)),
        (names(1), metadata(MAX_METADATA + 1)),
    ] {
        let event = done(Outcome::Found {
            names,
            member: MemberName::default(),
            metadata,
            suspicious: false,
        });
        assert!(matches!(encode(&event), Err(IpcError::TooLarge)));
        let config = bincode::config::standard();
        let forged = bincode::serde::encode_to_vec(&event, config).unwrap();
        assert!(matches!(
            decode::<WorkerEvent>(&forged),
            Err(IpcError::Malformed(_))
        ));
    }
    assert!(decode::<WorkerEvent>(&vec![0; MAX_PACKET + 1]).is_err());
}

proptest! {
    #[test]
    fn no_packet_makes_decoding_panic(packet in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = decode::<ZygoteRequest>(&packet);
        let _ = decode::<ZygoteEvent>(&packet);
        let _ = decode::<WorkerRequest>(&packet);
        let _ = decode::<WorkerEvent>(&packet);
    }

    #[test]
    fn a_damaged_packet_is_refused_or_within_bounds(
        names in proptest::collection::vec("[ -~]{0,40}", 1..20),
        at in any::<proptest::sample::Index>(),
        bits in 1u8..,
    ) {
        let names: Vec<Name> = names.iter().map(|name| Name::from(name.as_str())).collect();
        let mut packet = encode(&done(Outcome::found(names, true))).unwrap();
        let at = at.index(packet.len());
        packet[at] ^= bits;
        if let Ok(event) = decode::<WorkerEvent>(&packet) {
            prop_assert!(event.within_bounds());
            prop_assert!(encode(&event).is_ok());
        }
    }
}

#[test]
fn a_channel_keeps_packets_and_descriptors_together() {
    let (a, b) = Channel::pair().unwrap();
    let (pipe, _other) = std::io::pipe().unwrap();
    a.send(&ZygoteRequest::Spawn { worker: 1 }, Some(pipe.as_fd()))
        .unwrap();
    a.send(&ZygoteRequest::Kill { worker: 1 }, None).unwrap();
    let (first, fd) = b.receive::<ZygoteRequest>(None).unwrap().unwrap();
    assert_eq!(first, ZygoteRequest::Spawn { worker: 1 });
    assert!(fd.is_some());
    let (second, fd) = b.receive::<ZygoteRequest>(None).unwrap().unwrap();
    assert_eq!(second, ZygoteRequest::Kill { worker: 1 });
    assert!(fd.is_none());

    let soon = Instant::now() + Duration::from_millis(20);
    assert!(matches!(
        b.receive::<ZygoteRequest>(Some(soon)),
        Err(IpcError::TimedOut)
    ));
    drop(a);
    assert!(b.receive::<ZygoteRequest>(None).unwrap().is_none());
}

#[test]
fn what_another_process_sends_is_refused_without_harm() {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::io::IoSlice;
    use std::os::fd::AsRawFd;

    let (a, b) = Channel::pair().unwrap();
    let raw = |bytes: &[u8], fds: &[i32]| {
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let fd = a.as_fd().as_raw_fd();
        sendmsg::<()>(fd, &[IoSlice::new(bytes)], control, MsgFlags::empty(), None).unwrap();
    };
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    let good = encode(&ZygoteRequest::Kill { worker: 1 }).unwrap();
    let stdin = [0; 200];
    raw(&vec![0; MAX_PACKET + 1], &[]);
    raw(&[0xff; 100], &[]);
    raw(&good, &stdin[..2]);
    raw(&good, &stdin);
    for _ in 0..4 {
        assert!(matches!(
            b.receive::<ZygoteRequest>(None),
            Err(IpcError::Malformed(_))
        ));
    }
    raw(&good, &[]);
    assert!(b.receive::<ZygoteRequest>(None).unwrap().is_some());
    assert_eq!(open(), before, "descriptors were left open");
}
