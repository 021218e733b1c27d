//! Seccomp: the system calls that scanning needs, and no other.
//!
//! Any other call kills the process. The milder answer, an error, would not do:
//! libclamav goes on after errors that it does not expect, and calls what it did
//! not look at clean. A worker that is killed is a scan that failed.

use super::super::serve::Place;
use super::{Gap, Obstacle};
use crate::ipc::Channel;
use nix::errno::Errno;
use nix::libc;
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};
use std::collections::BTreeMap;
use std::io;

/// System calls that not every engine needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// Temporary files.
    Files,
}

/// What every engine needs: its channel, its content, memory, time, threads that
/// there are already, and an end.
const COMMON: &[i64] = &[
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getrusage,
    libc::SYS_sysinfo,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // A thread that the warm-up started may only now be starting.
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// For [`Group::Files`].
const FILES: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_newfstatat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_ftruncate,
    libc::SYS_unlinkat,
    libc::SYS_mkdirat,
    libc::SYS_fchmodat,
    libc::SYS_getcwd,
    libc::SYS_dup,
    libc::SYS_fstatfs,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
];

/// Calls of [`COMMON`] and [`FILES`] by older names, which only some machines have.
#[cfg(target_arch = "x86_64")]
const COMMON_OLD: &[i64] = &[libc::SYS_time];
#[cfg(target_arch = "x86_64")]
const FILES_OLD: &[i64] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_unlink,
    libc::SYS_rmdir,
    libc::SYS_mkdir,
    libc::SYS_chmod,
];
#[cfg(not(target_arch = "x86_64"))]
const COMMON_OLD: &[i64] = &[];
#[cfg(not(target_arch = "x86_64"))]
const FILES_OLD: &[i64] = &[];

/// What may be asked of a descriptor.
const FCNTL: [i32; 6] = [
    libc::F_DUPFD,
    libc::F_DUPFD_CLOEXEC,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_GET_SEALS,
];

/// Bits of `mmap`'s flags that say whose the memory is.
const MAP_TYPE: u64 = 0x0f;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

pub(super) fn filter(place: &Place, _: &Channel) -> Result<(), Obstacle> {
    let program = program(place.confinement.groups, std::process::id())?;
    apply_filter_all_threads(&program).map_err(|error| match error {
        Error::Prctl(error) | Error::Seccomp(error) => Obstacle::Missing(Gap {
            feature: "this kernel has no seccomp filters",
            remedy: "use a kernel with CONFIG_SECCOMP_FILTER",
            errno: Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        }),
        other => io::Error::other(other).into(),
    })
}

fn program(groups: &[Group], own_pid: u32) -> io::Result<BpfProgram> {
    let mut allowed: Vec<i64> = [COMMON, COMMON_OLD].concat();
    for group in groups {
        match group {
            Group::Files => allowed.extend([FILES, FILES_OLD].concat()),
        }
    }
    let mut rules: Rules = allowed.into_iter().map(|call| (call, Vec::new())).collect();
    rules.extend(conditional(own_pid).map_err(io::Error::other)?);
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(io::Error::other)?;
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::KillProcess,
        SeccompAction::Allow,
        arch,
    );
    filter
        .and_then(BpfProgram::try_from)
        .map_err(io::Error::other)
}

/// Calls that are harmless with some arguments only.
fn conditional(own_pid: u32) -> Result<Rules, seccompiler::BackendError> {
    let is =
        |argument, op, value| SeccompCondition::new(argument, SeccompCmpArgLen::Qword, op, value);
    let clear = |argument, bits| is(argument, SeccompCmpOp::MaskedEq(bits), 0);
    let executable = libc::PROT_EXEC as u64;
    let private = is(
        3,
        SeccompCmpOp::MaskedEq(MAP_TYPE),
        libc::MAP_PRIVATE as u64,
    )?;
    // The upper half of an int's register is the caller's rubbish.
    let int = |argument, value| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
    };
    Ok([
        // Memory of its own, and never executable; shared memory would not count.
        (
            libc::SYS_mmap,
            vec![SeccompRule::new(vec![clear(2, executable)?, private])?],
        ),
        (
            libc::SYS_mprotect,
            vec![SeccompRule::new(vec![clear(2, executable)?])?],
        ),
        // abort() signals itself.
        (
            libc::SYS_tgkill,
            vec![SeccompRule::new(vec![is(
                0,
                SeccompCmpOp::Eq,
                own_pid.into(),
            )?])?],
        ),
        // Without the one that has signals sent to others.
        (
            libc::SYS_fcntl,
            FCNTL
                .iter()
                .map(|command| SeccompRule::new(vec![int(1, *command as u64)?]))
                .collect::<Result<_, _>>()?,
        ),
        // A thread names itself.
        (
            libc::SYS_prctl,
            vec![SeccompRule::new(vec![int(0, libc::PR_SET_NAME as u64)?])?],
        ),
        // stdio asks whether its output is a terminal.
        (
            libc::SYS_ioctl,
            vec![SeccompRule::new(vec![int(1, libc::TCGETS)?])?],
        ),
    ]
    .into())
}
