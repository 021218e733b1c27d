//! What is done with hostile bytes, decoder by decoder.
//!
//! Owns the bodies of the fuzz targets, which `fuzz/` runs with libFuzzer and
//! `tests/tests/decoders.rs` over their corpora on the stable toolchain; the corpora's
//! seeds ([`seeds`]); and the mutations ([`mutate`]) that the tests of live daemons use
//! too. A body says whether the bytes were accepted, and panics where a decoder breaks
//! a promise: an accepted message must come through its own encoding unchanged, nothing
//! forged may be believed, and what was not scanned may not end as clean.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic is a target's finding"
)]

pub mod mutate;
pub mod seeds;
mod stateful;

use std::fmt::Debug;
use std::path::Path;
use std::pin::pin;
use std::str::FromStr;
use std::task::{Context, Poll, Waker};

use palisade_protocol::codec;
use palisade_protocol::control::{FromServer, ToServer};
use palisade_protocol::frame;
use palisade_protocol::notice::Notice;
use palisade_protocol::pull;
use palisade_protocol::scan::{ToAgent, ToSvm, ToSvmRef};
use palisade_protocol::spiffe::SpiffeId;
use palisade_protocol::token::JoinToken;
use palisade_repository::{Contents, reading};
use palisade_svm::cache;
use palisade_svm::hash_lists::HashLists;
use palisade_svm::local::{LocalAnswer, LocalRequest};
use palisade_svm::settings::ByteSize;
use palisade_svm::status::Status;
use palisade_worker::ipc;
use palisade_worker::message::{WorkerRequest, ZygoteEvent, ZygoteRequest};

/// A decoder under test.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: of its program in `fuzz/`, and of its corpus.
    pub name: &'static str,
    /// Whether these bytes were accepted; panics where a promise is broken.
    pub run: fn(&[u8]) -> bool,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    target("to_svm", wire::<ToSvm>),
    target("to_svm_ref", borrowed),
    target("to_agent", wire::<ToAgent>),
    target("notice", wire::<Notice>),
    target("to_server", wire::<ToServer>),
    target("from_server", wire::<FromServer>),
    target("control_frame", stateful::control_frame),
    target("envelope", stateful::envelope),
    target("frames", frames),
    target("join_token", join_token),
    target("spiffe_id", spiffe_id),
    target("outline", stateful::outline),
    target("fragments", stateful::fragments),
    target("worker_result", stateful::worker_result),
    target("worker_request", packet::<WorkerRequest>),
    target("zygote_event", packet::<ZygoteEvent>),
    target("zygote_request", packet::<ZygoteRequest>),
    target("hash_list", hash_list),
    target("byte_size", byte_size),
    target("local_request", wire::<LocalRequest>),
    target("local_answer", wire::<LocalAnswer>),
    target("svm_status", wire::<Status>),
    target("cache_key", wire::<cache::Key>),
    target("cache_entry", wire::<cache::Entry>),
    target("pull_wanted", wire::<pull::Wanted>),
    target("pull_answer", wire::<pull::Answer>),
    target("signed_targets", signed_targets),
];

const fn target(name: &'static str, run: fn(&[u8]) -> bool) -> Target {
    Target { name, run }
}

/// Metadata of definitions before anything of it was verified: what is read keeps within
/// its bounds, and is not believed.
fn signed_targets(bytes: &[u8]) -> bool {
    let Ok(targets) = reading::unverified_targets(bytes) else {
        return false;
    };
    let Ok(contents) = Contents::of(&targets) else {
        return false;
    };
    contents.check().expect("what was read is within bounds");
    for generation in contents.generations.values() {
        for name in generation.files.keys() {
            let path = Path::new("folder").join(name);
            assert_eq!(path.parent(), Some(Path::new("folder")), "{name:?}");
        }
    }
    let root = seeds::root();
    assert!(
        reading::signed_targets(bytes, &root).is_err(),
        "it is forged"
    );
    true
}

/// Runs the target of that name; what a program in `fuzz/` does.
pub fn run(name: &str, bytes: &[u8]) {
    let found = TARGETS.iter().find(|target| target.name == name);
    (found.expect("a target").run)(bytes);
}

/// What was accepted must encode, and come back as itself.
fn wire<M: codec::Message + PartialEq + Debug>(bytes: &[u8]) -> bool {
    let Ok(message) = codec::decode::<M>(bytes) else {
        return false;
    };
    let encoded = codec::encode(&message).expect("what was decoded can be encoded");
    assert!(
        encoded.len() <= bytes.len(),
        "the encoding is the shortest one"
    );
    assert_eq!(codec::decode::<M>(&encoded).unwrap(), message);
    true
}

/// What a Protection Server reads in place is what a copy would be, or neither is read.
fn borrowed(bytes: &[u8]) -> bool {
    let (read, copied) = (ToSvmRef::decode(bytes), codec::decode::<ToSvm>(bytes));
    let (Ok(read), Ok(copied)) = (&read, &copied) else {
        assert_eq!(read.is_ok(), copied.is_ok(), "{read:?} {copied:?}");
        return false;
    };
    match (read, copied) {
        (ToSvmRef::Hello(read), ToSvm::Hello(copied)) => assert_eq!(read, copied),
        (ToSvmRef::Scan(read), ToSvm::Scan(copied)) => assert_eq!(read, copied),
        (ToSvmRef::Lookup(read), ToSvm::Lookup(copied)) => assert_eq!(read, copied),
        (ToSvmRef::Holds(read), ToSvm::Holds(copied)) => assert_eq!(read, copied),
        (ToSvmRef::Outline(read), ToSvm::Outline(copied)) => assert_eq!(read, copied),
        (ToSvmRef::Fragment(read), ToSvm::Fragment(copied)) => {
            assert_eq!((read.index, read.bytes), (copied.index, &copied.bytes[..]));
        }
        (read, copied) => panic!("{read:?} is not {copied:?}"),
    }
    true
}

/// The same for packets between daemon, zygote and worker.
fn packet<M>(bytes: &[u8]) -> bool
where
    M: palisade_worker::message::Message + PartialEq + Debug,
{
    let Ok(message) = ipc::decode::<M>(bytes) else {
        return false;
    };
    let encoded = ipc::encode(&message).expect("what was decoded can be encoded");
    assert_eq!(ipc::decode::<M>(&encoded).unwrap(), message);
    true
}

/// A stream of frames, read to its end or to the first that is none.
fn frames(bytes: &[u8]) -> bool {
    let mut stream = bytes;
    let mut read = 0;
    loop {
        let before = stream.len();
        match ready(frame::read::<ToSvm>(&mut stream)) {
            Ok(Some(message)) => {
                let written = frame::to_bytes(&message).unwrap().len();
                assert!(written <= before - stream.len(), "it took what was its own");
                read += 1;
            }
            Ok(None) => return read > 0,
            Err(_) => return false,
        }
    }
}

/// The result of a future that has nothing to wait for.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("bytes in memory are always ready"),
    }
}

fn join_token(bytes: &[u8]) -> bool {
    let binary = wire::<JoinToken>(bytes);
    let Ok(token) = JoinToken::from_str(&String::from_utf8_lossy(bytes)) else {
        return binary;
    };
    assert_eq!(
        token.to_text().unwrap().parse::<JoinToken>().unwrap(),
        token
    );
    true
}

/// One id has one text.
fn spiffe_id(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let Ok(id) = text.parse::<SpiffeId>() else {
        return false;
    };
    assert_eq!(id.to_string(), text);
    true
}

/// The first byte picks the kind of list.
fn hash_list(bytes: &[u8]) -> bool {
    const NAMES: [&str; 4] = [
        "x.allow.sha256",
        "x.deny.sha256",
        "x.allow.md5",
        "x.deny.md5",
    ];
    let Some((kind, list)) = bytes.split_first() else {
        return false;
    };
    let name = NAMES[usize::from(*kind) % NAMES.len()];
    let Ok(lists) = HashLists::parse(Path::new(name), list) else {
        return false;
    };
    let lines = list.split(|byte| *byte == b'\n').count();
    assert!(lists.len() <= lines, "a line holds one hash at the most");
    !lists.is_empty()
}

/// Text with a unit, as a settings file holds it.
fn byte_size(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let Ok(ByteSize(size)) = serde_json::from_value(text.into()) else {
        return false;
    };
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit());
    let number: u64 = text[..end.unwrap_or(text.len())].parse().unwrap();
    assert!(size >= number && (size == number || size.is_multiple_of(1024)));
    true
}
