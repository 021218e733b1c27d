//! The Light Agent's packages, as `scripts/package` builds them: what is in them, and
//! what becomes of a system that gets them.
//!
//! | module | owns |
//! | --- | --- |
//! | `built` | the packages, built once a test by the script, and unpacked |
//! | `root` | a small Debian in memory, to be changed at will |
//! | `boot` | systemd as that Debian's first process, in namespaces of its own |
//! | `contents` | what is in the packages: files, scripts, pages, completions, the program |
//! | `unit` | the service's file, by systemd's own checks |
//! | `life` | installed, used, upgraded, removed, purged, against a real site |
//! | `kernel` | the program on Debian 12's own kernel, in an emulated guest (`guest.sh`) |
//! | `places` | the program where there is no library, and on an older Debian |
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

#[path = "../common/mod.rs"]
mod common;

mod boot;
mod built;
mod contents;
mod kernel;
mod life;
mod places;
mod root;
mod unit;
