//! Other processes, more of them, and memory beyond a worker's own.

use super::kernel::{address_of, call, child_ends, text, words};
use super::{Target, would};
use nix::errno::Errno;
use nix::libc;

/// Memory that no test's worker may allocate (bytes).
const OVER_MEMORY: i64 = 600 << 20;
/// `PTRACE_SEIZE`, which does not stop the other process.
const PTRACE_SEIZE: i64 = 0x4206;
const PAGE: i64 = 4096;

pub fn ptrace(target: &Target) -> Result<(), Errno> {
    let args = [
        PTRACE_SEIZE.into(),
        target.process.into(),
        0.into(),
        0.into(),
    ];
    call(libc::SYS_ptrace, &args).map(drop)
}

pub fn read_memory(target: &Target) -> Result<(), Errno> {
    // Nothing is at this address, which is found out after the right was checked.
    let local = words(&[address_of(vec![0; 8]), 8]);
    let remote = words(&[8, 8]);
    let args = [
        target.process.into(),
        (&local).into(),
        1.into(),
        (&remote).into(),
        1.into(),
        0.into(),
    ];
    would(call(libc::SYS_process_vm_readv, &args), Errno::EFAULT)
}

/// Signal 0 reaches nobody, and needs the same right as the others.
pub fn signal_zygote(target: &Target) -> Result<(), Errno> {
    call(libc::SYS_kill, &[target.process.into(), 0.into()]).map(drop)
}

pub fn signal_daemon(target: &Target) -> Result<(), Errno> {
    call(libc::SYS_kill, &[target.daemon.into(), 0.into()]).map(drop)
}

pub fn signal_thread(target: &Target) -> Result<(), Errno> {
    let args = [target.process.into(), target.process.into(), 0.into()];
    call(libc::SYS_tgkill, &args).map(drop)
}

fn pidfd(target: &Target) -> Result<i64, Errno> {
    call(libc::SYS_pidfd_open, &[target.process.into(), 0.into()])
}

pub fn signal_by_pidfd(target: &Target) -> Result<(), Errno> {
    let args = [pidfd(target)?.into(), 0.into(), 0.into(), 0.into()];
    call(libc::SYS_pidfd_send_signal, &args).map(drop)
}

/// Whoever owns a descriptor is told by signal when it is ready.
pub fn signal_by_descriptor(target: &Target) -> Result<(), Errno> {
    let args = [0.into(), libc::F_SETOWN.into(), target.daemon.into()];
    call(libc::SYS_fcntl, &args).map(drop)
}

pub fn take_descriptor(target: &Target) -> Result<(), Errno> {
    let args = [pidfd(target)?.into(), 0.into(), 0.into()];
    call(libc::SYS_pidfd_getfd, &args).map(drop)
}

/// `KCMP_VM`
pub fn compare(target: &Target) -> Result<(), Errno> {
    let args = [
        target.process.into(),
        target.process.into(),
        1.into(),
        0.into(),
        0.into(),
    ];
    call(libc::SYS_kcmp, &args).map(drop)
}

/// Reads its limits, which needs the right to set them.
pub fn limits_of_zygote(target: &Target) -> Result<(), Errno> {
    let args = [
        target.process.into(),
        (libc::RLIMIT_NOFILE as i64).into(),
        0.into(),
        (&[0; 16]).into(),
    ];
    call(libc::SYS_prlimit64, &args).map(drop)
}

/// The first is enough to know; a bomb is no more than more of them.
pub fn fork(_: &Target) -> Result<(), Errno> {
    let args = [libc::SIGCHLD.into(), 0.into(), 0.into(), 0.into(), 0.into()];
    child_ends(call(libc::SYS_clone, &args))
}

pub fn clone3(_: &Target) -> Result<(), Errno> {
    // struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, …
    let mut args = [0; 8];
    args[4] = libc::SIGCHLD as u64;
    let args = words(&args);
    child_ends(call(
        libc::SYS_clone3,
        &[(&args).into(), (args.len() as i64).into()],
    ))
}

pub fn thread(_: &Target) -> Result<(), Errno> {
    match std::thread::Builder::new().spawn(|| {}) {
        Ok(_) => Ok(()),
        Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(0))),
    }
}

pub fn clone_into_namespaces(_: &Target) -> Result<(), Errno> {
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::SIGCHLD;
    let args = [flags.into(), 0.into(), 0.into(), 0.into(), 0.into()];
    child_ends(call(libc::SYS_clone, &args))
}

pub fn unshare(_: &Target) -> Result<(), Errno> {
    call(libc::SYS_unshare, &[libc::CLONE_NEWNS.into()]).map(drop)
}

pub fn setns(_: &Target) -> Result<(), Errno> {
    let path = text("/proc/self/ns/uts");
    let args = [libc::AT_FDCWD.into(), (&path).into(), libc::O_RDONLY.into()];
    // Without /proc the call is still tried.
    let fd = call(libc::SYS_openat, &args).unwrap_or(0);
    call(libc::SYS_setns, &[fd.into(), libc::CLONE_NEWUTS.into()]).map(drop)
}

/// What says so itself.
fn echo() -> Vec<u8> {
    words(&[
        address_of(text("/bin/echo")),
        address_of(text("escaped")),
        0,
    ])
}

pub fn execve(_: &Target) -> Result<(), Errno> {
    let args = [(&text("/bin/echo")).into(), (&echo()).into(), 0.into()];
    call(libc::SYS_execve, &args).map(drop)
}

pub fn exec_memory_file(_: &Target) -> Result<(), Errno> {
    let fd = call(
        libc::SYS_memfd_create,
        &[(&text("program")).into(), 0.into()],
    )?;
    let script = b"#!/bin/echo escaped\n";
    let args = [fd.into(), script.into(), (script.len() as i64).into()];
    call(libc::SYS_write, &args)?;
    let args = [
        fd.into(),
        (&text("")).into(),
        (&echo()).into(),
        0.into(),
        libc::AT_EMPTY_PATH.into(),
    ];
    call(libc::SYS_execveat, &args).map(drop)
}

pub fn memory_file(_: &Target) -> Result<(), Errno> {
    let fd = call(
        libc::SYS_memfd_create,
        &[(&text("memory")).into(), 0.into()],
    )?;
    call(libc::SYS_ftruncate, &[fd.into(), OVER_MEMORY.into()]).map(drop)
}

fn map(length: i64, protection: i32, flags: i32) -> Result<i64, Errno> {
    let args = [
        0.into(),
        length.into(),
        protection.into(),
        (flags | libc::MAP_ANONYMOUS).into(),
        (-1).into(),
        0.into(),
    ];
    call(libc::SYS_mmap, &args)
}

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

pub fn mprotect_exec(_: &Target) -> Result<(), Errno> {
    let at = map(PAGE, READ_WRITE, libc::MAP_PRIVATE)?;
    let executable = libc::PROT_READ | libc::PROT_EXEC;
    let args = [at.into(), PAGE.into(), executable.into()];
    call(libc::SYS_mprotect, &args).map(drop)
}

pub fn mmap_exec(_: &Target) -> Result<(), Errno> {
    map(PAGE, READ_WRITE | libc::PROT_EXEC, libc::MAP_PRIVATE).map(drop)
}

pub fn shared_memory(_: &Target) -> Result<(), Errno> {
    map(PAGE, READ_WRITE, libc::MAP_SHARED).map(drop)
}

/// A segment that is removed at once.
pub fn system_v(_: &Target) -> Result<(), Errno> {
    let args = [libc::IPC_PRIVATE.into(), PAGE.into(), 0o600.into()];
    let id = call(libc::SYS_shmget, &args)?;
    let args = [id.into(), libc::IPC_RMID.into(), 0.into()];
    call(libc::SYS_shmctl, &args).map(drop)
}

pub fn memory_over_cap(_: &Target) -> Result<(), Errno> {
    map(OVER_MEMORY, READ_WRITE, libc::MAP_PRIVATE).map(drop)
}
