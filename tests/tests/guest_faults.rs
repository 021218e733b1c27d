//! What goes wrong within a guest, with real processes, as root: mounts and namespaces,
//! file systems that do not answer, shortages, a stopped agent, another listener, lost and
//! lying Protection Servers, jumping clocks. Openers never hang, malware is blocked or the
//! failure table answers, and what is not protected is said.
//!
//! Each test has its control: the same without the defence, or without the fault.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod common;

#[path = "guest_faults/clock.rs"]
mod clock;
#[path = "guest_faults/disks.rs"]
mod disks;
#[path = "guest_faults/fuse.rs"]
mod fuse;
#[path = "guest_faults/guest.rs"]
mod guest;
#[path = "guest_faults/listeners.rs"]
mod listeners;
#[path = "guest_faults/mounts.rs"]
mod mounts;
#[path = "guest_faults/policy.rs"]
mod policy;
#[path = "guest_faults/pressure.rs"]
mod pressure;
#[path = "guest_faults/programs.rs"]
mod programs;
#[path = "guest_faults/ring.rs"]
mod ring;
#[path = "guest_faults/servers.rs"]
mod servers;
#[path = "guest_faults/work.rs"]
mod work;
#[path = "guest_faults/writers.rs"]
mod writers;
