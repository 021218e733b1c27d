//! What a worker that was taken over might say to the daemon, past the code that
//! keeps to the protocol.

use crate::attempts::{is_socket, open_descriptors};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, shutdown};
use palisade_worker::ipc::encode;
use palisade_worker::message::{
    MAX_MEMBERS, MAX_PACKET, MemberName, Outcome, ScanDone, WorkerEvent,
};
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, RawFd};

/// A request that nobody made.
const ANOTHER: u64 = 4711;

/// Tells the lie called `kind`, about request `request`.
pub fn lie(kind: &str, request: u64) {
    let Some(channel) = open_descriptors().find(|fd| is_socket(*fd)) else {
        return;
    };
    // A daemon that hung up is the end that a lie is to have.
    let say = |packet: &[u8], fds: &[RawFd]| {
        let rights = [ControlMessage::ScmRights(fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights };
        let flags = MsgFlags::MSG_NOSIGNAL;
        let _ = sendmsg::<()>(channel, &[IoSlice::new(packet)], control, flags, None);
    };
    let done = |request| {
        WorkerEvent::Done(ScanDone {
            request,
            outcome: Outcome::Clean,
            members_truncated: false,
            cpu_ms: 0,
            wall_ms: 0,
        })
    };
    let member = |index, size| WorkerEvent::Member {
        request,
        index,
        name: MemberName::default(),
        size,
    };
    let packet = |event: &WorkerEvent| encode(event).unwrap_or_default();
    match kind {
        "for-another" => say(&packet(&done(ANOTHER)), &[]),
        "noise" => say(&[0xff; 64], &[]),
        "oversize" => say(&vec![0; MAX_PACKET + 1], &[]),
        "nothing" => say(&packet(&member(0, 0)), &[]),
        "channel" => say(&packet(&member(0, 0)), &[channel]),
        "device" => say(&packet(&member(0, 0)), &[0]),
        "many-descriptors" => say(&packet(&member(0, 0)), &[0; 200]),
        "size" => with_file(|file| say(&packet(&member(0, 5)), &[file])),
        "flood" => with_file(|file| {
            for index in 0..=MAX_MEMBERS {
                say(&packet(&member(index, 0)), &[file]);
            }
        }),
        "hang-up" => {
            let _ = shutdown(channel, nix::sys::socket::Shutdown::Both);
        }
        _ => {}
    }
}

fn with_file(say: impl Fn(RawFd)) {
    if let Ok(file) = File::create("lie") {
        say(file.as_raw_fd());
    }
}
