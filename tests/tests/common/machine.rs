//! A machine of this thread's own, as far as its mounts and its network go: what it starts
//! from here on is in it, too. It is gone with the last of its processes.

use std::fs;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// SMBIOS as the kernel shows it; libvirt puts the domain's UUID there.
const SMBIOS: &str = "/sys/class/dmi/id";

/// Gives this thread mounts of its own, in which the machine has this SMBIOS UUID.
pub fn with_smbios_uuid(uuid: &str) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).unwrap();
    // A machine without SMBIOS has no such folder, and none can be made there.
    let over = if fs::exists(SMBIOS).unwrap() {
        SMBIOS
    } else {
        "/sys/class"
    };
    let tmpfs = Some("tmpfs");
    mount(tmpfs, over, tmpfs, MsFlags::empty(), none).unwrap();
    fs::create_dir_all(SMBIOS).unwrap();
    fs::write(format!("{SMBIOS}/product_uuid"), format!("{uuid}\n")).unwrap();
}

/// Gives this thread a network of its own: a loopback and nothing else.
pub fn with_own_network() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    ip(&["link", "set", "lo", "up"]);
}

/// Runs `ip`, in this thread's network.
pub fn ip(arguments: &[&str]) {
    run("ip", arguments);
}

/// Runs a program that has to succeed.
pub fn run(program: &str, arguments: &[&str]) {
    let done = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{program} {arguments:?}: {said}");
}
