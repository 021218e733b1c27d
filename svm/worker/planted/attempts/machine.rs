//! Rights, and what belongs to the machine.

use super::kernel::{address_of, call, text, words};
use super::{Target, would};
use nix::errno::Errno;
use nix::libc;

pub fn become_dumpable(_: &Target) -> Result<(), Errno> {
    let args = [libc::PR_SET_DUMPABLE.into(), 1.into()];
    call(libc::SYS_prctl, &args).map(drop)
}

pub fn setuid(_: &Target) -> Result<(), Errno> {
    call(libc::SYS_setresuid, &[0.into(), 0.into(), 0.into()]).map(drop)
}

pub fn setgroups(_: &Target) -> Result<(), Errno> {
    call(libc::SYS_setgroups, &[1.into(), (&[0; 4]).into()]).map(drop)
}

/// `CAP_SYS_ADMIN`, effective and permitted.
pub fn capset(_: &Target) -> Result<(), Errno> {
    let header = words(&[0x2008_0522]);
    let admin: u32 = 1 << 21;
    let sets: Vec<u8> = [admin, admin, 0, 0, 0, 0]
        .iter()
        .flat_map(|word: &u32| word.to_ne_bytes())
        .collect();
    call(libc::SYS_capset, &[(&header).into(), (&sets).into()]).map(drop)
}

/// What makes all memory executable, in programs to come.
pub fn personality(_: &Target) -> Result<(), Errno> {
    call(libc::SYS_personality, &[libc::READ_IMPLIES_EXEC.into()]).map(drop)
}

pub fn real_time(_: &Target) -> Result<(), Errno> {
    let priority = 1_i32.to_ne_bytes();
    let args = [0.into(), libc::SCHED_FIFO.into(), (&priority).into()];
    call(libc::SYS_sched_setscheduler, &args).map(drop)
}

pub fn priority(_: &Target) -> Result<(), Errno> {
    call(libc::SYS_setpriority, &[0.into(), 0.into(), (-5).into()]).map(drop)
}

/// An array map of one entry.
pub fn bpf(_: &Target) -> Result<(), Errno> {
    let mut attributes = vec![0; 128];
    for (at, word) in [2_u32, 4, 4, 1].iter().enumerate() {
        attributes[at * 4..][..4].copy_from_slice(&word.to_ne_bytes());
    }
    let args = [0.into(), (&attributes).into(), 128.into()];
    call(libc::SYS_bpf, &args).map(drop)
}

/// This process' own processor clock.
pub fn perf_event(_: &Target) -> Result<(), Errno> {
    let (software, size) = (1_u32, 128_u32);
    let mut attributes = vec![0; size as usize];
    attributes[..4].copy_from_slice(&software.to_ne_bytes());
    attributes[4..8].copy_from_slice(&size.to_ne_bytes());
    let args = [
        (&attributes).into(),
        0.into(),
        (-1).into(),
        (-1).into(),
        0.into(),
    ];
    call(libc::SYS_perf_event_open, &args).map(drop)
}

pub fn io_uring(_: &Target) -> Result<(), Errno> {
    call(libc::SYS_io_uring_setup, &[1.into(), (&[0; 120]).into()]).map(drop)
}

pub fn userfaultfd(_: &Target) -> Result<(), Errno> {
    // UFFD_USER_MODE_ONLY
    call(libc::SYS_userfaultfd, &[1.into()]).map(drop)
}

/// A key in this process' own keyring.
pub fn keyring(_: &Target) -> Result<(), Errno> {
    let process_keyring = -2;
    let args = [
        (&text("user")).into(),
        (&text("planted")).into(),
        b"x".into(),
        1.into(),
        process_keyring.into(),
    ];
    call(libc::SYS_add_key, &args).map(drop)
}

/// The port that is written to in order to pass time.
#[cfg(target_arch = "x86_64")]
pub fn io_ports(_: &Target) -> Result<(), Errno> {
    call(libc::SYS_ioperm, &[0x80.into(), 1.into(), 1.into()]).map(drop)
}

/// Other machines have no such ports.
#[cfg(not(target_arch = "x86_64"))]
pub fn io_ports(_: &Target) -> Result<(), Errno> {
    Err(Errno::ENOSYS)
}

pub fn kexec(_: &Target) -> Result<(), Errno> {
    let no_such_flags = 0xff;
    let args = [0.into(), 0.into(), 0.into(), no_such_flags.into()];
    would(call(libc::SYS_kexec_load, &args), Errno::EINVAL)
}

pub fn reboot(_: &Target) -> Result<(), Errno> {
    let no_such_magic = 1;
    let args = [no_such_magic.into(), 0.into(), 0.into(), 0.into()];
    would(call(libc::SYS_reboot, &args), Errno::EINVAL)
}

pub fn set_clock(_: &Target) -> Result<(), Errno> {
    // struct timezone: no place is so far west.
    let nowhere: Vec<u8> = [9999_i32, 0]
        .iter()
        .flat_map(|word: &i32| word.to_ne_bytes())
        .collect();
    let args = [0.into(), (&nowhere).into()];
    would(call(libc::SYS_settimeofday, &args), Errno::EINVAL)
}

pub fn set_host_name(_: &Target) -> Result<(), Errno> {
    let too_long = 10_000;
    let args = [(&text("planted")).into(), too_long.into()];
    would(call(libc::SYS_sethostname, &args), Errno::EINVAL)
}

/// `Q_SYNC` of all file systems: writes what is written anyway.
pub fn quota(_: &Target) -> Result<(), Errno> {
    let sync = 0x80_0001 << 8;
    let args = [sync.into(), 0.into(), 0.into(), 0.into()];
    call(libc::SYS_quotactl, &args).map(drop)
}

pub fn swap(_: &Target) -> Result<(), Errno> {
    would(call(libc::SYS_swapon, &[0.into(), 0.into()]), Errno::EFAULT)
}

pub fn load_module(_: &Target) -> Result<(), Errno> {
    let args = [address_of_nothing().into(), 0.into(), (&text("")).into()];
    would(call(libc::SYS_init_module, &args), Errno::ENOEXEC)
}

pub fn remove_module(_: &Target) -> Result<(), Errno> {
    would(
        call(libc::SYS_delete_module, &[0.into(), 0.into()]),
        Errno::EFAULT,
    )
}

fn address_of_nothing() -> i64 {
    address_of(vec![0; 8]) as i64
}

/// How large it is; its content needs no other right.
pub fn kernel_log(_: &Target) -> Result<(), Errno> {
    let size_unread = 9;
    call(libc::SYS_syslog, &[size_unread.into(), 0.into(), 0.into()]).map(drop)
}
